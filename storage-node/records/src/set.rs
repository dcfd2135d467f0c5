//! Sets of offsets: a bit each in chunks of 65,536, or less where a chunk is full or nearly empty.
//!
//! Danger: membership here decides whether a message may be thrown away. Ten million offsets of which every second one is
//! in the set cost 1.25 MiB. Used for what is dead in a log and for what a file with holes holds.

use bytes::BufMut;
use longshore_wire::{DecodeError, Reader};
use std::collections::BTreeMap;

const CHUNK_BITS: u32 = 16;
const CHUNK_LEN: u64 = 1 << CHUNK_BITS;
/// More single offsets than this in a chunk are kept as bits.
const FEW_MAX: usize = 1024;
const WORDS: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq)]
enum Chunk {
    Few(Vec<u16>),
    Bits(Box<[u64]>, u32),
    Full,
}

impl Chunk {
    fn len(&self) -> u64 {
        match self {
            Chunk::Few(few) => few.len() as u64,
            Chunk::Bits(_, ones) => u64::from(*ones),
            Chunk::Full => CHUNK_LEN,
        }
    }

    fn contains(&self, at: u16) -> bool {
        match self {
            Chunk::Few(few) => few.binary_search(&at).is_ok(),
            Chunk::Bits(words, _) => bit(words, usize::from(at)),
            Chunk::Full => true,
        }
    }

    fn to_bits(&self) -> Box<[u64]> {
        match self {
            Chunk::Few(few) => {
                let mut words = vec![0; WORDS].into_boxed_slice();
                for at in few {
                    words[usize::from(*at) / 64] |= 1 << (at % 64);
                }
                words
            }
            Chunk::Bits(words, _) => words.clone(),
            Chunk::Full => vec![u64::MAX; WORDS].into_boxed_slice(),
        }
    }

    fn from_bits(words: Box<[u64]>) -> Option<Chunk> {
        let ones: u32 = words.iter().map(|word| word.count_ones()).sum();
        match ones as usize {
            0 => None,
            n if n as u64 == CHUNK_LEN => Some(Chunk::Full),
            n if n <= FEW_MAX / 2 => {
                let mut few = Vec::with_capacity(n);
                each_run(&words, 0, CHUNK_LEN as usize - 1, &mut |first, last| {
                    few.extend((first..=last).map(|at| at as u16));
                });
                Some(Chunk::Few(few))
            }
            _ => Some(Chunk::Bits(words, ones)),
        }
    }

    /// Calls `run` for each run of members within [first, last], positions within the chunk.
    fn runs(&self, first: usize, last: usize, run: &mut dyn FnMut(usize, usize)) {
        match self {
            Chunk::Full => run(first, last),
            Chunk::Bits(words, _) => each_run(words, first, last, run),
            Chunk::Few(few) => {
                let start = few.partition_point(|at| usize::from(*at) < first);
                let mut open: Option<(usize, usize)> = None;
                for at in few[start..].iter().map(|at| usize::from(*at)).take_while(|at| *at <= last) {
                    match &mut open {
                        Some((_, end)) if *end + 1 == at => *end = at,
                        _ => {
                            if let Some((from, to)) = open.replace((at, at)) {
                                run(from, to);
                            }
                        }
                    }
                }
                if let Some((from, to)) = open {
                    run(from, to);
                }
            }
        }
    }
}

fn bit(words: &[u64], at: usize) -> bool {
    words[at / 64] >> (at % 64) & 1 == 1
}

/// The first position in [from, last] whose bit equals `value`.
fn find(words: &[u64], from: usize, last: usize, value: bool) -> Option<usize> {
    let mut at = from;
    while at <= last {
        let word = if value { words[at / 64] } else { !words[at / 64] } >> (at % 64);
        if word != 0 {
            let hit = at + word.trailing_zeros() as usize;
            return (hit <= last).then_some(hit);
        }
        at = (at / 64 + 1) * 64;
    }
    None
}

fn each_run(words: &[u64], first: usize, last: usize, run: &mut dyn FnMut(usize, usize)) {
    let mut at = first;
    while let Some(start) = find(words, at, last, true) {
        let end = find(words, start, last, false).map_or(last, |clear| clear - 1);
        run(start, end);
        if end >= last {
            return;
        }
        at = end + 1;
    }
}

fn fill(words: &mut [u64], first: usize, last: usize, value: bool) {
    let touched = words.iter_mut().enumerate().take(last / 64 + 1).skip(first / 64);
    for (at, word) in touched {
        let low = if at == first / 64 { first % 64 } else { 0 };
        let high = if at == last / 64 { last % 64 } else { 63 };
        let mask = (u64::MAX >> (63 - (high - low))) << low;
        if value {
            *word |= mask;
        } else {
            *word &= !mask;
        }
    }
}

/// A set of `u64`s that are mostly close together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct OffsetSet {
    chunks: BTreeMap<u64, Chunk>,
}

/// The chunks that [first, last] touches, with the positions within each.
fn pieces(first: u64, last: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    (first >> CHUNK_BITS..=last >> CHUNK_BITS).map(move |chunk| {
        let base = chunk << CHUNK_BITS;
        (chunk, first.saturating_sub(base) as usize, (last - base).min(CHUNK_LEN - 1) as usize)
    })
}

impl OffsetSet {
    /// How many members it has.
    pub fn len(&self) -> u64 {
        self.chunks.values().map(Chunk::len).sum()
    }

    /// Adds [first, last] and calls `new` for each run that was not in the set before. The caller bounds the range:
    /// time and memory grow with its length / 65,536.
    pub fn insert(&mut self, first: u64, last: u64, new: &mut dyn FnMut(u64, u64)) {
        for (number, from, to) in pieces(first, last) {
            let base = number << CHUNK_BITS;
            let whole = from == 0 && to as u64 == CHUNK_LEN - 1;
            let Some(chunk) = self.chunks.get_mut(&number) else {
                new(base + from as u64, base + to as u64);
                let chunk = if whole {
                    Chunk::Full
                } else if to - from < FEW_MAX {
                    Chunk::Few((from..=to).map(|at| at as u16).collect())
                } else {
                    let mut words = vec![0; WORDS].into_boxed_slice();
                    fill(&mut words, from, to, true);
                    Chunk::Bits(words, (to - from + 1) as u32)
                };
                self.chunks.insert(number, chunk);
                continue;
            };
            if let Chunk::Few(few) = chunk {
                if from == to && few.len() < FEW_MAX {
                    if let Err(at) = few.binary_search(&(from as u16)) {
                        few.insert(at, from as u16);
                        new(base + from as u64, base + from as u64);
                    }
                    continue;
                }
                let ones = few.len() as u32;
                *chunk = Chunk::Bits(chunk.to_bits(), ones);
            }
            if let Chunk::Bits(words, ones) = chunk {
                let mut at = from;
                while let Some(start) = find(words, at, to, false) {
                    let end = find(words, start, to, true).map_or(to, |set| set - 1);
                    new(base + start as u64, base + end as u64);
                    *ones += (end - start + 1) as u32;
                    at = end + 1;
                }
                fill(words, from, to, true);
                if u64::from(*ones) == CHUNK_LEN {
                    *chunk = Chunk::Full;
                }
            }
        }
    }

    /// Takes [first, last] out.
    pub fn remove(&mut self, first: u64, last: u64) {
        let numbers: Vec<u64> =
            self.chunks.range(first >> CHUNK_BITS..=last >> CHUNK_BITS).map(|(number, _)| *number).collect();
        for number in numbers {
            let base = number << CHUNK_BITS;
            let (from, to) = (first.saturating_sub(base) as usize, (last - base).min(CHUNK_LEN - 1) as usize);
            let Some(chunk) = self.chunks.remove(&number) else { continue };
            let mut words = chunk.to_bits();
            fill(&mut words, from, to, false);
            if let Some(chunk) = Chunk::from_bits(words) {
                self.chunks.insert(number, chunk);
            }
        }
    }

    /// Forgets everything below `floor`, and moves the floor on over what is in the set right above it.
    pub fn advance(&mut self, mut floor: u64) -> u64 {
        if let Some(clear) = self.next_absent(floor) {
            floor = clear;
        }
        while self.chunks.first_key_value().is_some_and(|(number, _)| *number < floor >> CHUNK_BITS) {
            self.chunks.pop_first();
        }
        floor
    }

    /// Whether `at` is in the set.
    pub fn contains(&self, at: u64) -> bool {
        self.chunks.get(&(at >> CHUNK_BITS)).is_some_and(|chunk| chunk.contains(at as u16))
    }

    /// The first member at or above `from`.
    pub fn next(&self, from: u64) -> Option<u64> {
        for (number, chunk) in self.chunks.range(from >> CHUNK_BITS..) {
            let base = number << CHUNK_BITS;
            let first = from.saturating_sub(base) as usize;
            let hit = match chunk {
                Chunk::Full => Some(first),
                Chunk::Bits(words, _) => find(words, first, CHUNK_LEN as usize - 1, true),
                Chunk::Few(few) => {
                    few.get(few.partition_point(|at| usize::from(*at) < first)).map(|at| usize::from(*at))
                }
            };
            if let Some(hit) = hit {
                return Some(base + hit as u64);
            }
        }
        None
    }

    /// The first number at or above `from` that is not in the set; `None` only at the end of the numbers.
    pub fn next_absent(&self, from: u64) -> Option<u64> {
        let mut at = from;
        while let Some(chunk) = self.chunks.get(&(at >> CHUNK_BITS)) {
            let base = at >> CHUNK_BITS << CHUNK_BITS;
            let absent = match chunk {
                Chunk::Full => None,
                Chunk::Bits(words, _) => find(words, (at - base) as usize, CHUNK_LEN as usize - 1, false),
                Chunk::Few(few) => {
                    let mut next = (at - base) as usize;
                    let start = few.partition_point(|at| usize::from(*at) < next);
                    for member in &few[start..] {
                        if usize::from(*member) != next {
                            break;
                        }
                        next += 1;
                    }
                    (next < CHUNK_LEN as usize).then_some(next)
                }
            };
            match absent {
                Some(position) => return Some(base + position as u64),
                None => at = base.checked_add(CHUNK_LEN)?,
            }
        }
        Some(at)
    }

    /// Calls `run` for each run of members within [first, last], ascending; runs end at chunk borders.
    pub fn runs(&self, first: u64, last: u64, run: &mut dyn FnMut(u64, u64)) {
        if first > last {
            return;
        }
        for (number, chunk) in self.chunks.range(first >> CHUNK_BITS..=last >> CHUNK_BITS) {
            let base = number << CHUNK_BITS;
            let (from, to) = (first.saturating_sub(base) as usize, (last - base).min(CHUNK_LEN - 1) as usize);
            chunk.runs(from, to, &mut |a, b| run(base + a as u64, base + b as u64));
        }
    }

    /// How many members are in [first, last].
    pub fn count(&self, first: u64, last: u64) -> u64 {
        let mut n = 0;
        self.runs(first, last, &mut |a, b| n += b - a + 1);
        n
    }

    /// How many members both sets have within [first, last].
    pub fn count_common(&self, other: &OffsetSet, first: u64, last: u64) -> u64 {
        if first > last {
            return 0;
        }
        let mut n = 0;
        for (number, chunk) in self.chunks.range(first >> CHUNK_BITS..=last >> CHUNK_BITS) {
            let Some(theirs) = other.chunks.get(number) else { continue };
            let base = number << CHUNK_BITS;
            let (from, to) = (first.max(base), last.min(base + (CHUNK_LEN - 1)));
            n += match (chunk, theirs) {
                (Chunk::Bits(a, _), Chunk::Bits(b, _)) if to - from == CHUNK_LEN - 1 => {
                    a.iter().zip(b.iter()).map(|(a, b)| u64::from((a & b).count_ones())).sum()
                }
                _ => {
                    let mut common = 0;
                    self.runs(from, to, &mut |a, b| common += other.count(a, b));
                    common
                }
            };
        }
        n
    }

    /// Appends the encoded form.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.put_u32_le(self.chunks.len() as u32);
        for (number, chunk) in &self.chunks {
            out.put_u64_le(*number);
            match chunk {
                Chunk::Full => out.put_u8(0),
                Chunk::Few(few) => {
                    out.put_u8(1);
                    out.put_u16_le(few.len() as u16);
                    few.iter().for_each(|at| out.put_u16_le(*at));
                }
                Chunk::Bits(words, _) => {
                    out.put_u8(2);
                    words.iter().for_each(|word| out.put_u64_le(*word));
                }
            }
        }
    }

    /// Reads the encoded form.
    pub fn decode(r: &mut Reader) -> Result<OffsetSet, DecodeError> {
        let mut set = OffsetSet::default();
        for _ in 0..r.count(9)? {
            let number = r.u64()?;
            let chunk = match r.u8()? {
                0 => Chunk::Full,
                1 => {
                    let n = r.u16()?;
                    let mut few = (0..n).map(|_| r.u16()).collect::<Result<Vec<_>, _>>()?;
                    few.sort_unstable();
                    few.dedup();
                    Chunk::Few(few)
                }
                2 => {
                    let words = (0..WORDS).map(|_| r.u64()).collect::<Result<Box<[u64]>, _>>()?;
                    let ones = words.iter().map(|word| word.count_ones()).sum();
                    Chunk::Bits(words, ones)
                }
                _ => return Err(DecodeError::Invalid("offset set")),
            };
            if number >= 1 << (64 - CHUNK_BITS) {
                return Err(DecodeError::Invalid("offset set"));
            }
            set.chunks.insert(number, chunk);
        }
        Ok(set)
    }
}

#[cfg(test)]
#[path = "set/tests.rs"]
mod tests;
