//! A set of offsets in chunks of 65,536, made for acks: ten million messages with every second one acked take
//! 1.3 MiB. Used by [`crate::Cursor`] for what is settled above the floor and for what is rewindable.

use crate::chunk::{CHUNK_OFFSETS, ChunkSet};
use longshore_wire::{Offset, OffsetRange};
use std::collections::BTreeMap;

/// The chunk of an offset.
pub(crate) fn chunk_of(offset: u64) -> u64 {
    offset / CHUNK_OFFSETS
}

fn place(offset: u64) -> u16 {
    (offset % CHUNK_OFFSETS) as u16
}

fn range(first: u64, last: u64) -> OffsetRange {
    OffsetRange { first: Offset(first), last: Offset(last) }
}

/// Adds a range to a list, as part of the last one where they touch.
pub(crate) fn push_range(ranges: &mut Vec<OffsetRange>, first: u64, last: u64) {
    match ranges.last_mut() {
        Some(before) if before.last.0.checked_add(1) == Some(first) => before.last = Offset(last),
        _ => ranges.push(range(first, last)),
    }
}

/// Sorts ranges and joins those that meet or touch.
pub(crate) fn merged(mut ranges: Vec<OffsetRange>) -> Vec<OffsetRange> {
    ranges.sort_unstable();
    let mut out: Vec<OffsetRange> = Vec::with_capacity(ranges.len());
    for next in ranges {
        match out.last_mut() {
            Some(before) if next.first.0 <= before.last.0.saturating_add(1) => {
                before.last = before.last.max(next.last);
            }
            _ => out.push(next),
        }
    }
    out
}

/// What of `first..end` is in none of the ranges, which are merged.
pub(crate) fn complement(first: u64, end: u64, ranges: &[OffsetRange]) -> Vec<OffsetRange> {
    let mut out = Vec::new();
    let mut at = first;
    for range in ranges.iter().filter(|range| range.last.0 >= first && range.first.0 < end) {
        if range.first.0 > at {
            push_range(&mut out, at, range.first.0 - 1);
        }
        at = at.max(range.last.0.saturating_add(1));
    }
    if at < end {
        push_range(&mut out, at, end - 1);
    }
    out
}

/// A set of offsets. No chunk in it is empty.
#[derive(Clone, Debug, Default)]
pub(crate) struct OffsetSet {
    chunks: BTreeMap<u64, ChunkSet>,
    count: u64,
}

impl OffsetSet {
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn contains(&self, offset: u64) -> bool {
        self.chunks.get(&chunk_of(offset)).is_some_and(|chunk| chunk.contains(place(offset)))
    }

    pub(crate) fn first(&self) -> Option<u64> {
        let (n, chunk) = self.chunks.first_key_value()?;
        chunk.next_present(0).map(|at| n * CHUNK_OFFSETS + u64::from(at))
    }

    pub(crate) fn last(&self) -> Option<u64> {
        let (n, chunk) = self.chunks.last_key_value()?;
        chunk.runs().last().map(|(_, at)| n * CHUNK_OFFSETS + u64::from(at))
    }

    /// The first member at or after `from`.
    pub(crate) fn next_present(&self, from: u64) -> Option<u64> {
        let first = chunk_of(from);
        self.chunks.range(first..).find_map(|(n, chunk)| {
            let at = if *n == first { place(from) } else { 0 };
            chunk.next_present(at).map(|at| n * CHUNK_OFFSETS + u64::from(at))
        })
    }

    /// The first offset at or after `from` that is not a member.
    pub(crate) fn next_absent(&self, from: u64) -> u64 {
        let mut at = from;
        for (n, chunk) in self.chunks.range(chunk_of(from)..) {
            if *n != chunk_of(at) {
                break;
            }
            match chunk.next_absent(place(at)) {
                Some(free) => return n * CHUNK_OFFSETS + u64::from(free),
                None => at = (n + 1) * CHUNK_OFFSETS,
            }
        }
        at
    }

    /// Adds `first..=last`; what was not there before is added to `new`.
    pub(crate) fn insert(&mut self, first: u64, last: u64, new: &mut Vec<OffsetRange>) {
        let mut at = first;
        while at <= last {
            let n = chunk_of(at);
            let base = n * CHUNK_OFFSETS;
            let end = last.min(base + (CHUNK_OFFSETS - 1));
            let count = &mut self.count;
            self.chunks.entry(n).or_insert_with(ChunkSet::new).insert(
                place(at),
                place(end),
                &mut |first, last| {
                    *count += u64::from(last - first) + 1;
                    push_range(new, base + u64::from(first), base + u64::from(last));
                },
            );
            match end.checked_add(1) {
                Some(next) => at = next,
                None => return,
            }
        }
    }

    /// Adds `first..=last`, O(chunks).
    pub(crate) fn cover(&mut self, first: u64, last: u64) {
        for n in chunk_of(first)..=chunk_of(last) {
            let base = n * CHUNK_OFFSETS;
            let chunk = self.chunks.entry(n).or_insert_with(ChunkSet::new);
            let before = chunk.count();
            chunk.cover(place(first.max(base)), place(last.min(base + (CHUNK_OFFSETS - 1))));
            self.count += u64::from(chunk.count() - before);
        }
    }

    /// Removes `first..=last`, O(chunks in it). The chunks that changed are given to `touched`.
    pub(crate) fn remove(&mut self, first: u64, last: u64, touched: &mut impl FnMut(u64)) {
        let mut from = chunk_of(first);
        while let Some((n, chunk)) = self.chunks.range_mut(from..=chunk_of(last)).next() {
            let (n, base, before) = (*n, n * CHUNK_OFFSETS, chunk.count());
            chunk.remove(place(first.max(base)), place(last.min(base + (CHUNK_OFFSETS - 1))));
            let after = chunk.count();
            if after == 0 {
                self.chunks.remove(&n);
            }
            if after != before {
                self.count -= u64::from(before - after);
                touched(n);
            }
            if n == chunk_of(last) {
                return;
            }
            from = n + 1;
        }
    }

    /// Takes everything at or above `from` out of the set.
    pub(crate) fn split_off(&mut self, from: u64) -> OffsetSet {
        let mut high = OffsetSet { chunks: self.chunks.split_off(&chunk_of(from)), count: 0 };
        if place(from) > 0
            && let Some(chunk) = high.chunks.get_mut(&chunk_of(from))
        {
            let mut low = chunk.clone();
            low.remove(place(from), u16::MAX);
            chunk.remove(0, place(from) - 1);
            if chunk.count() == 0 {
                high.chunks.remove(&chunk_of(from));
            }
            if low.count() > 0 {
                self.chunks.insert(chunk_of(from), low);
            }
        }
        high.count = high.chunks.values().map(|chunk| u64::from(chunk.count())).sum();
        self.count -= high.count;
        high
    }

    /// Removes all members of `other`.
    pub(crate) fn subtract(&mut self, other: &OffsetSet) {
        for (n, gone) in &other.chunks {
            let Some(chunk) = self.chunks.get_mut(n) else { continue };
            let before = chunk.count();
            chunk.subtract(gone);
            let after = chunk.count();
            if after == 0 {
                self.chunks.remove(n);
            }
            self.count -= u64::from(before - after);
        }
    }

    /// How many members are below `end`.
    pub(crate) fn count_below(&self, end: u64) -> u64 {
        let whole: u64 = self.chunks.range(..chunk_of(end)).map(|(_, chunk)| u64::from(chunk.count())).sum();
        whole + self.chunks.get(&chunk_of(end)).map_or(0, |chunk| u64::from(chunk.count_below(place(end))))
    }

    /// The runs of members, ascending.
    pub(crate) fn ranges(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        let mut at = Some(0);
        std::iter::from_fn(move || {
            let first = self.next_present(at?)?;
            let next = self.next_absent(first);
            at = Some(next);
            Some(range(first, next - 1))
        })
    }

    pub(crate) fn chunk(&self, n: u64) -> Option<&ChunkSet> {
        self.chunks.get(&n)
    }

    pub(crate) fn chunk_numbers(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks.keys().copied()
    }

    /// Puts a restored chunk in place.
    pub(crate) fn set_chunk(&mut self, n: u64, chunk: ChunkSet) {
        if chunk.count() == 0 {
            return;
        }
        self.count += u64::from(chunk.count());
        if let Some(old) = self.chunks.insert(n, chunk) {
            self.count -= u64::from(old.count());
        }
    }
}
