//! Frames as the loops of producers and consumers need them: borrowed from the read buffer, the few methods of the
//! hot path read in place. The driver shares two cores with the brokers that it measures, so it must cost little.

use anyhow::{Result, bail};
use longshore_amqp_codec::frame::FRAME_END;
use longshore_amqp_codec::{BASIC_CLASS, FRAME_OVERHEAD_BYTES, FrameKind};

const HEADER_BYTES: usize = 7;
const DELIVER: u16 = 60;
const ACK: u16 = 80;
const NACK: u16 = 120;

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub enum Hot<'a> {
    /// The broker confirms publishes (`positive`), or refuses them.
    Confirm {
        /// Confirmed, not refused.
        positive: bool,
        /// The newest publish that is meant.
        tag: u64,
        /// All older ones are meant too.
        multiple: bool,
    },
    /// A delivery begins.
    Deliver {
        /// Its number on the channel.
        tag: u64,
        /// It may have been delivered before.
        redelivered: bool,
    },
    /// Its content header.
    Header {
        /// Length of the body.
        body_bytes: u64,
    },
    /// A piece of its body.
    Body(&'a [u8]),
    /// A sign of life.
    Heartbeat,
    /// Any other method: its payload.
    Method(&'a [u8]),
}

/// Reads the frame at the front of `input`; answers it and its length, or `None` if it is not all there.
///
/// Errors: what is no frame of AMQP 0-9-1.
pub fn next(input: &[u8]) -> Result<Option<(Hot<'_>, usize)>> {
    let Some((head, rest)) = input.split_first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]) as usize;
    let Some((payload, rest)) = rest.split_at_checked(length) else { return Ok(None) };
    match rest.first() {
        None => return Ok(None),
        Some(&FRAME_END) => {}
        Some(other) => bail!("a frame that ends with {other:#04x}"),
    }
    let hot = match FrameKind::from_u8(head[0]) {
        Some(FrameKind::Method) => method(payload),
        Some(FrameKind::Header) => {
            let Some(size) = payload.get(4..12).and_then(|bytes| bytes.first_chunk()) else {
                bail!("a cut content header");
            };
            Hot::Header { body_bytes: u64::from_be_bytes(*size) }
        }
        Some(FrameKind::Body) => Hot::Body(payload),
        Some(FrameKind::Heartbeat) => Hot::Heartbeat,
        None => bail!("a frame of type {}", head[0]),
    };
    Ok(Some((hot, length + FRAME_OVERHEAD_BYTES)))
}

fn method(payload: &[u8]) -> Hot<'_> {
    read_basic(payload).unwrap_or(Hot::Method(payload))
}

fn read_basic(payload: &[u8]) -> Option<Hot<'_>> {
    let ([c0, c1, m0, m1], rest) = payload.split_first_chunk::<4>()?;
    if u16::from_be_bytes([*c0, *c1]) != BASIC_CLASS {
        return None;
    }
    match u16::from_be_bytes([*m0, *m1]) {
        id @ (ACK | NACK) => {
            let (tag, rest) = rest.split_first_chunk::<8>()?;
            let multiple = rest.first()? & 1 != 0;
            Some(Hot::Confirm { positive: id == ACK, tag: u64::from_be_bytes(*tag), multiple })
        }
        DELIVER => {
            let (consumer_tag_bytes, rest) = rest.split_first()?;
            let (tag, rest) = rest.get(usize::from(*consumer_tag_bytes)..)?.split_first_chunk::<8>()?;
            Some(Hot::Deliver { tag: u64::from_be_bytes(*tag), redelivered: rest.first()? & 1 != 0 })
        }
        _ => None,
    }
}

/// Appends `basic.ack` of a delivery.
pub fn put_ack(out: &mut Vec<u8>, channel: u16, tag: u64, multiple: bool) {
    let mut frame = [0u8; 21];
    frame[0] = FrameKind::Method as u8;
    frame[1..3].copy_from_slice(&channel.to_be_bytes());
    frame[3..7].copy_from_slice(&13u32.to_be_bytes());
    frame[7..9].copy_from_slice(&BASIC_CLASS.to_be_bytes());
    frame[9..11].copy_from_slice(&ACK.to_be_bytes());
    frame[11..19].copy_from_slice(&tag.to_be_bytes());
    frame[19] = u8::from(multiple);
    frame[20] = FRAME_END;
    out.extend_from_slice(&frame);
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_amqp_codec::method::{BasicAck, BasicCancelOk, BasicDeliver, BasicNack};
    use longshore_amqp_codec::{Method, OutBuffer, ShortStr};

    fn encoded(method: impl Into<Method>) -> Vec<u8> {
        let mut out = OutBuffer::new();
        out.put_method(1, &method.into());
        out.take_all().to_vec()
    }

    #[test]
    fn the_codec_s_frames_are_read_as_what_they_are() {
        let ack = encoded(BasicAck { delivery_tag: 77, multiple: true });
        let expected = Hot::Confirm { positive: true, tag: 77, multiple: true };
        assert_eq!(next(&ack).unwrap(), Some((expected, ack.len())));
        let nack = encoded(BasicNack { delivery_tag: 5, multiple: false, requeue: true });
        let expected = Hot::Confirm { positive: false, tag: 5, multiple: false };
        assert_eq!(next(&nack).unwrap(), Some((expected, nack.len())));
        let deliver = BasicDeliver {
            consumer_tag: ShortStr::from_static("ctag"),
            delivery_tag: 9,
            redelivered: true,
            exchange: ShortStr::from_static("x"),
            routing_key: ShortStr::from_static("k"),
        };
        let deliver = encoded(deliver);
        let expected = Hot::Deliver { tag: 9, redelivered: true };
        assert_eq!(next(&deliver).unwrap(), Some((expected, deliver.len())));
        let other = encoded(BasicCancelOk { consumer_tag: ShortStr::from_static("c") });
        assert!(matches!(next(&other).unwrap(), Some((Hot::Method(_), _))));
    }

    #[test]
    fn a_cut_frame_waits_and_a_broken_one_is_refused() {
        let mut ack = encoded(BasicAck { delivery_tag: 77, multiple: true });
        for cut in 0..ack.len() {
            assert_eq!(next(&ack[..cut]).unwrap(), None);
        }
        if let Some(end) = ack.last_mut() {
            *end = 0;
        }
        assert!(next(&ack).is_err());
    }

    #[test]
    fn an_ack_put_is_the_codec_s_ack() {
        let mut out = Vec::new();
        put_ack(&mut out, 1, 1 << 40, true);
        assert_eq!(out, encoded(BasicAck { delivery_tag: 1 << 40, multiple: true }));
    }
}
