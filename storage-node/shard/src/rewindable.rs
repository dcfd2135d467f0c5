//! What is settled but can be brought back: sets of offsets by the slot of log time in which they were settled.
//!
//! A slot is a thirty-second part of the rewind time, so there are at most 34 of them and a message is kept for
//! at most a thirty-second longer than promised, never shorter. Used by [`crate::Cursor`].

use crate::offset_set::OffsetSet;
use longshore_wire::{LogTime, OffsetRange};
use std::collections::VecDeque;

const SLOTS: u64 = 32;

/// Length of a slot in milliseconds.
fn slot_ms(rewind_ms: u64) -> u64 {
    (rewind_ms / SLOTS).max(1)
}

/// The log time from which on a slot's messages are no longer kept.
fn release_at(slot: u64, rewind_ms: u64) -> LogTime {
    let closed = slot.saturating_add(1).saturating_mul(slot_ms(rewind_ms));
    LogTime(closed.saturating_add(rewind_ms))
}

/// Settled messages that a rewind can bring back. The sets are disjoint, oldest slot first.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rewindable {
    slots: VecDeque<(u64, OffsetSet)>,
}

impl Rewindable {
    pub(crate) fn insert(&mut self, now: LogTime, rewind_ms: u64, ranges: &[OffsetRange]) {
        if ranges.is_empty() {
            return;
        }
        let slot = now.0 / slot_ms(rewind_ms);
        let set = self.slot(slot);
        let mut new = Vec::new();
        for range in ranges {
            new.clear();
            set.insert(range.first.0, range.last.0, &mut new);
        }
    }

    /// The set of a slot, made if need be. Slots come in ascending order, but for restored pages.
    pub(crate) fn slot(&mut self, slot: u64) -> &mut OffsetSet {
        let i = self.slots.partition_point(|(other, _)| *other < slot);
        if self.slots.get(i).is_none_or(|(other, _)| *other != slot) {
            self.slots.insert(i, (slot, OffsetSet::default()));
        }
        &mut self.slots[i].1
    }

    /// When the oldest slot is to be released.
    pub(crate) fn next_release(&self, rewind_ms: u64) -> Option<LogTime> {
        self.slots.front().map(|(slot, _)| release_at(*slot, rewind_ms))
    }

    /// Takes the oldest slot's messages out if their time is over.
    pub(crate) fn release(&mut self, now: LogTime, rewind_ms: u64) -> Option<OffsetSet> {
        let due = self.next_release(rewind_ms).is_some_and(|at| at <= now);
        if due { self.slots.pop_front().map(|(_, set)| set) } else { None }
    }

    /// Takes everything at or above `from` out, slot by slot.
    pub(crate) fn take_from(&mut self, from: u64) -> Vec<OffsetSet> {
        let taken = self.slots.iter_mut().map(|(_, set)| set.split_off(from)).collect::<Vec<_>>();
        self.slots.retain(|(_, set)| !set.is_empty());
        taken.into_iter().filter(|set| !set.is_empty()).collect()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(crate) fn contains(&self, offset: u64) -> bool {
        self.slots.iter().any(|(_, set)| set.contains(offset))
    }

    pub(crate) fn count(&self) -> u64 {
        self.slots.iter().map(|(_, set)| set.count()).sum()
    }

    pub(crate) fn first(&self) -> Option<u64> {
        self.slots.iter().filter_map(|(_, set)| set.first()).min()
    }

    pub(crate) fn slots(&self) -> impl Iterator<Item = (u64, &OffsetSet)> + '_ {
        self.slots.iter().map(|(slot, set)| (*slot, set))
    }
}
