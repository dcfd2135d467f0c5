//! Producers with sequences (Kafka's idempotent producer): batches of one (producer, epoch, log) are taken once
//! and without gaps. As in Kafka, a producer that nobody remembers may begin with any sequence, a new epoch with 0,
//! and the sequence after 2^31 - 1 is 0.

use crate::bounds::{PRODUCER_AGE_MS_MAX, PRODUCER_BATCHES_MAX, PRODUCERS_MAX};
use crate::page::{Key, Pages, read_version, versioned};
use bytes::{BufMut, Bytes};
use longshore_wire::outcome::Refusal;
use longshore_wire::{DecodeError, LogId, LogTime, Offset, Reader};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

const VERSION: u8 = 1;
/// Pages over which producers are spread by id.
const BUCKETS: u64 = 256;
const SEQUENCES: u64 = 1 << 31;

/// A batch of a producer as it says it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub(crate) producer: u64,
    pub(crate) epoch: u16,
    pub(crate) sequence: u32,
    pub(crate) count: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    sequence: u32,
    count: u32,
    offset: Offset,
}

#[derive(Clone, Debug)]
struct Producer {
    epoch: u16,
    /// The last batches, oldest first; never empty.
    batches: VecDeque<Seen>,
    time: LogTime,
}

/// All remembered producers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Producers {
    known: BTreeMap<(u64, LogId), Producer>,
    /// By the time of their last append.
    by_time: BTreeSet<(LogTime, u64, LogId)>,
    dirty: BTreeSet<u16>,
}

fn bucket(producer: u64) -> u16 {
    (producer % BUCKETS) as u16
}

impl Producers {
    /// `Ok(None)`: new, append it. `Ok(Some)`: it was appended there before.
    pub(crate) fn check(&self, claim: Claim, log: LogId) -> Result<Option<Offset>, Refusal> {
        let Some(known) = self.known.get(&(claim.producer, log)) else { return Ok(None) };
        if claim.epoch < known.epoch {
            return Err(Refusal::FencedProducer);
        }
        if claim.epoch > known.epoch {
            return if claim.sequence == 0 { Ok(None) } else { Err(Refusal::OutOfSequence) };
        }
        let same = |seen: &&Seen| seen.sequence == claim.sequence && seen.count == claim.count;
        if let Some(seen) = known.batches.iter().find(same) {
            return Ok(Some(seen.offset));
        }
        let next =
            known.batches.back().map(|seen| (u64::from(seen.sequence) + u64::from(seen.count)) % SEQUENCES);
        if next == Some(u64::from(claim.sequence)) { Ok(None) } else { Err(Refusal::OutOfSequence) }
    }

    /// Remembers a batch that was checked and appended.
    pub(crate) fn appended(&mut self, claim: Claim, log: LogId, offset: Offset, now: LogTime) {
        let key = (claim.producer, log);
        let known = self.known.entry(key).or_insert_with(|| Producer {
            epoch: claim.epoch,
            batches: VecDeque::new(),
            time: now,
        });
        self.by_time.remove(&(known.time, claim.producer, log));
        if known.epoch != claim.epoch {
            known.epoch = claim.epoch;
            known.batches.clear();
        }
        known.time = now;
        known.batches.push_back(Seen { sequence: claim.sequence, count: claim.count, offset });
        if known.batches.len() > PRODUCER_BATCHES_MAX {
            known.batches.pop_front();
        }
        self.by_time.insert((now, claim.producer, log));
        self.dirty.insert(bucket(claim.producer));
        while self.known.len() > PRODUCERS_MAX || self.most_silent_is_over(now) {
            self.forget_most_silent();
        }
    }

    fn most_silent_is_over(&self, now: LogTime) -> bool {
        self.by_time.first().is_some_and(|(time, ..)| now.0.saturating_sub(time.0) > PRODUCER_AGE_MS_MAX)
    }

    fn forget_most_silent(&mut self) {
        if let Some((_, producer, log)) = self.by_time.pop_first() {
            self.known.remove(&(producer, log));
            self.dirty.insert(bucket(producer));
        }
    }

    fn encode_one(out: &mut bytes::BytesMut, id: u64, log: LogId, producer: &Producer) {
        out.put_u64_le(id);
        out.put_u64_le(log.0);
        out.put_u16_le(producer.epoch);
        out.put_u64_le(producer.time.0);
        out.put_u8(producer.batches.len() as u8);
        for seen in &producer.batches {
            out.put_u32_le(seen.sequence);
            out.put_u32_le(seen.count);
            out.put_u64_le(seen.offset.0);
        }
    }

    /// The pages of some buckets; one pass over all producers.
    fn pages(&self, buckets: &BTreeSet<u16>) -> BTreeMap<u16, Bytes> {
        let mut members: BTreeMap<u16, Vec<_>> = BTreeMap::new();
        for ((id, log), producer) in &self.known {
            if buckets.contains(&bucket(*id)) {
                members.entry(bucket(*id)).or_default().push((*id, *log, producer));
            }
        }
        let page = |members: Vec<(u64, LogId, &Producer)>| {
            versioned(VERSION, |out| {
                out.put_u32_le(members.len() as u32);
                members.iter().for_each(|(id, log, producer)| Self::encode_one(out, *id, *log, producer));
            })
        };
        members.into_iter().map(|(bucket, members)| (bucket, page(members))).collect()
    }

    pub(crate) fn take_dirty(&mut self, pages: &mut Pages) {
        if self.dirty.is_empty() {
            return;
        }
        let dirty = std::mem::take(&mut self.dirty);
        let mut made = self.pages(&dirty);
        for bucket in dirty {
            pages.push(Key::Producers(bucket), made.remove(&bucket));
        }
    }

    pub(crate) fn all(&self, pages: &mut Pages) {
        for (bucket, page) in self.pages(&(0..BUCKETS as u16).collect()) {
            pages.push(Key::Producers(bucket), Some(page));
        }
    }

    pub(crate) fn restore(&mut self, page: Bytes) -> Result<(), DecodeError> {
        let mut r = Reader::new(page, "producers page");
        read_version(&mut r, "producers page", VERSION)?;
        for _ in 0..r.count(27)? {
            let (id, log) = (r.u64()?, LogId(r.u64()?));
            let (epoch, time, n) = (r.u16()?, LogTime(r.u64()?), usize::from(r.u8()?));
            if n == 0 || n > PRODUCER_BATCHES_MAX {
                return Err(DecodeError::Invalid("batches of a producer"));
            }
            let batches = (0..n)
                .map(|_| Ok(Seen { sequence: r.u32()?, count: r.u32()?, offset: Offset(r.u64()?) }))
                .collect::<Result<_, DecodeError>>()?;
            self.by_time.insert((time, id, log));
            self.known.insert((id, log), Producer { epoch, batches, time });
        }
        r.finish()
    }
}
