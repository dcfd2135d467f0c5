//! What the driver publishes, and the ledger that knows each message: nothing lost, nothing doubled is checked by
//! the bodies' own numbers, not by comparing counts.
//!
//! ```text
//! u32 run   u32 producer   u64 number, from 0   u64 nanoseconds since the run's start   filler
//! ```

use super::connection::CHANNEL;
use bytes::Bytes;
use longshore_amqp_codec::content::PropertiesBuilder;
use longshore_amqp_codec::method::BasicPublish;
use longshore_amqp_codec::{OutBuffer, ShortStr};

/// Bytes at the front of a body that tell the message; smaller bodies tell nothing.
pub const STAMP_BYTES: usize = 24;
/// Frame type, channel, length.
const FRAME_HEADER_BYTES: usize = 7;
/// Messages of one producer that the ledger can tell apart; 512 MiB of bits.
const NUMBER_MAX: u64 = 1 << 32;
const PRODUCERS_MAX: u32 = 4_096;

/// Who a message is from, and when it was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The run, so that what an earlier one left is not taken for ours.
    pub run: u32,
    /// The producer, from 0.
    pub producer: u32,
    /// Its message, from 0.
    pub number: u64,
    /// When it was encoded, in nanoseconds since the run's start.
    pub at_ns: u64,
}

impl Stamp {
    /// Reads the stamp of a body.
    pub fn read(body: &[u8]) -> Option<Stamp> {
        let ([r0, r1, r2, r3, p0, p1, p2, p3], rest) = body.split_first_chunk::<8>()?;
        let (number, rest) = rest.split_first_chunk::<8>()?;
        let (at, _) = rest.split_first_chunk::<8>()?;
        Some(Stamp {
            run: u32::from_be_bytes([*r0, *r1, *r2, *r3]),
            producer: u32::from_be_bytes([*p0, *p1, *p2, *p3]),
            number: u64::from_be_bytes(*number),
            at_ns: u64::from_be_bytes(*at),
        })
    }

    fn write(&self, body: &mut [u8]) {
        let mut stamp = [0; STAMP_BYTES];
        stamp[..4].copy_from_slice(&self.run.to_be_bytes());
        stamp[4..8].copy_from_slice(&self.producer.to_be_bytes());
        stamp[8..16].copy_from_slice(&self.number.to_be_bytes());
        stamp[16..].copy_from_slice(&self.at_ns.to_be_bytes());
        if let Some(place) = body.get_mut(..STAMP_BYTES) {
            place.copy_from_slice(&stamp);
        }
    }
}

/// A publish to one queue, encoded once: method, header, body frames.
#[derive(Clone, Debug)]
pub struct Template {
    frames: Bytes,
    stamp_at: Option<usize>,
}

impl Template {
    /// A persistent message of `body_bytes` for the default exchange.
    pub fn new(queue: &str, body_bytes: usize, frame_bytes_max: usize) -> Template {
        let method = BasicPublish { routing_key: ShortStr::cut(queue), ..Default::default() }.into();
        let properties = PropertiesBuilder::new().delivery_mode(2).build();
        let encode = |body: &[Bytes]| {
            let mut out = OutBuffer::new();
            out.put_content(CHANNEL, &method, properties.bytes(), body, frame_bytes_max);
            out.take_all()
        };
        let before = encode(&[]).len();
        let body = Bytes::from(vec![b'x'; body_bytes]);
        let stamp_at = (body_bytes >= STAMP_BYTES).then_some(before + FRAME_HEADER_BYTES);
        Template { frames: encode(&[body]), stamp_at }
    }

    /// The frames without a stamp.
    pub fn frames(&self) -> &Bytes {
        &self.frames
    }

    /// Appends the frames, stamped.
    pub fn put(&self, out: &mut Vec<u8>, stamp: &Stamp) {
        let start = out.len();
        out.extend_from_slice(&self.frames);
        if let Some(body) = self.stamp_at.and_then(|at| out.get_mut(start + at..)) {
            stamp.write(body);
        }
    }
}

/// Which messages of a run have arrived.
#[derive(Debug, Default)]
pub struct Ledger {
    seen: Vec<Vec<u64>>,
    distinct: u64,
}

impl Ledger {
    /// Enters a message; answers whether it arrived for the first time, `None` if its stamp cannot be ours.
    pub fn enter(&mut self, stamp: &Stamp) -> Option<bool> {
        if stamp.producer >= PRODUCERS_MAX || stamp.number >= NUMBER_MAX {
            return None;
        }
        let producer = stamp.producer as usize;
        if self.seen.len() <= producer {
            self.seen.resize(producer + 1, Vec::new());
        }
        let words = self.seen.get_mut(producer)?;
        let word = (stamp.number / 64) as usize;
        if words.len() <= word {
            words.resize(word + 1, 0);
        }
        let word = words.get_mut(word)?;
        let bit = 1 << (stamp.number % 64);
        let first = *word & bit == 0;
        *word |= bit;
        self.distinct += u64::from(first);
        Some(first)
    }

    /// Different messages so far.
    pub fn distinct(&self) -> u64 {
        self.distinct
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::amqp::hot::{Hot, next};

    #[test]
    fn a_stamp_comes_out_of_the_frames_that_it_went_into() {
        let template = Template::new("q", 100, 131_072);
        let stamp = Stamp { run: 7, producer: 3, number: 1 << 31, at_ns: 42 };
        let mut out = Vec::new();
        template.put(&mut out, &stamp);
        template.put(&mut out, &Stamp { number: 0, ..stamp });
        let mut rest = &out[..];
        let mut stamps = Vec::new();
        while let Some((hot, length)) = next(rest).unwrap() {
            if let Hot::Body(body) = hot {
                assert_eq!(body.len(), 100);
                stamps.push(Stamp::read(body).unwrap());
            }
            rest = &rest[length..];
        }
        assert!(rest.is_empty());
        assert_eq!(stamps, [stamp, Stamp { number: 0, ..stamp }]);
    }

    #[test]
    fn a_body_over_the_frame_size_is_cut_and_a_tiny_one_has_no_stamp() {
        let template = Template::new("q", 10_000, 4_096);
        let mut rest = &template.frames()[..];
        let mut bodies = 0;
        while let Some((hot, length)) = next(rest).unwrap() {
            assert!(length <= 4_096);
            bodies += usize::from(matches!(hot, Hot::Body(_)));
            rest = &rest[length..];
        }
        assert_eq!(bodies, 3);
        assert_eq!(Template::new("q", STAMP_BYTES - 1, 4_096).stamp_at, None);
    }

    #[test]
    fn the_ledger_tells_first_from_second() {
        let mut ledger = Ledger::default();
        let stamp = Stamp { run: 0, producer: 2, number: 130, at_ns: 0 };
        assert_eq!(ledger.enter(&stamp), Some(true));
        assert_eq!(ledger.enter(&stamp), Some(false));
        assert_eq!(ledger.enter(&Stamp { number: 131, ..stamp }), Some(true));
        assert_eq!(ledger.enter(&Stamp { producer: u32::MAX, ..stamp }), None);
        assert_eq!(ledger.distinct(), 2);
    }
}
