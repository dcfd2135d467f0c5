//! A group's log in memory: what was appended, where it lies, and the newest entries themselves.
//!
//! Danger: appended is not durable; `durable` moves only by [`Group::entry_durable`] and [`Group::mark_durable`]. Called by
//! [`crate::NodeLog`] for each change, and by recovery, which replays the same changes.

use crate::format::{GroupState, Mark};
use crate::types::{Entry, HardState, Place};
use bytes::Bytes;
use longshore_mutations::{self as mutations, Mutation};
use longshore_wire::{Index, Term};
use std::collections::{BTreeMap, VecDeque};

#[derive(Clone, Debug)]
struct Slot {
    term: Term,
    lies: Lies,
}

/// Where an entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lies {
    /// In memory only; its write completes under this number.
    Pending(u64),
    /// On disk.
    At(Place),
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Group {
    /// The entry before the first.
    mark: Mark,
    /// Number of the write of the newest snapshot's mark.
    mark_serial: u64,
    /// From `mark.index + 1` on.
    slots: VecDeque<Slot>,
    /// The last entries; the end of `slots`.
    tail: VecDeque<Entry>,
    pub(crate) hard_state: HardState,
    pub(crate) conf: Bytes,
    durable: u64,
    pub(crate) checkpointed: u64,
    pub(crate) replicated: u64,
    pub(crate) applied: u64,
    /// Where overwritten entries lay: kept by the broken build that names them, empty in a sound one.
    overwritten: BTreeMap<u64, Place>,
}

impl Group {
    pub(crate) fn first(&self) -> u64 {
        self.mark.index.0 + 1
    }

    pub(crate) fn last(&self) -> u64 {
        self.mark.index.0 + self.slots.len() as u64
    }

    pub(crate) fn durable(&self) -> u64 {
        self.durable
    }

    pub(crate) fn mark(&self) -> Mark {
        self.mark
    }

    /// First index whose entry is in memory; `last + 1` if none is.
    pub(crate) fn tail_first(&self) -> u64 {
        self.last() + 1 - self.tail.len() as u64
    }

    pub(crate) fn tail_len(&self) -> usize {
        self.tail.len()
    }

    fn slot(&self, index: u64) -> Option<&Slot> {
        self.slots.get(usize::try_from(index.checked_sub(self.first())?).ok()?)
    }

    pub(crate) fn term(&self, index: u64) -> Option<Term> {
        if index == self.mark.index.0 { Some(self.mark.term) } else { self.slot(index).map(|s| s.term) }
    }

    pub(crate) fn place(&self, index: u64) -> Option<Place> {
        match self.slot(index)?.lies {
            Lies::At(place) => Some(place),
            Lies::Pending(_) => None,
        }
    }

    pub(crate) fn in_tail(&self, index: u64) -> Option<&Entry> {
        self.tail.get(usize::try_from(index.checked_sub(self.tail_first())?).ok()?)
    }

    /// Whether an entry of this index can be taken: above the mark and not beyond the next one.
    pub(crate) fn follows(&self, index: u64) -> bool {
        index > self.mark.index.0 && index <= self.last() + 1
    }

    /// Discards entries at and above `index`. Returns the bytes that left the memory.
    pub(crate) fn truncate(&mut self, index: u64) -> usize {
        let keep = index.saturating_sub(self.first()) as usize;
        let tail_keep = index.saturating_sub(self.tail_first()) as usize;
        let freed = self.tail.iter().skip(tail_keep).map(Entry::bytes).sum();
        if mutations::on(Mutation::IndexNamesOverwritten) {
            let gone = (index..).map_while(|index| Some((index, self.slot(index)?.lies)));
            let places = gone.filter_map(|(index, lies)| match lies {
                Lies::At(place) => Some((index, place)),
                Lies::Pending(_) => None,
            });
            let places: Vec<(u64, Place)> = places.collect();
            self.overwritten.extend(places);
        }
        self.tail.truncate(tail_keep);
        self.slots.truncate(keep);
        self.durable = self.durable.min(self.last());
        freed
    }

    /// Takes an entry that follows, whose write has this number. Returns the bytes that left the memory for it.
    pub(crate) fn append(&mut self, entry: Entry, serial: u64) -> usize {
        let freed = self.truncate(entry.index.0);
        let lies = self.overwritten.remove(&entry.index.0).map_or(Lies::Pending(serial), Lies::At);
        self.slots.push_back(Slot { term: entry.term, lies });
        self.tail.push_back(entry);
        freed
    }

    /// As recovery sees an entry: durable, and not in memory.
    pub(crate) fn recovered(&mut self, index: Index, term: Term, place: Place) {
        self.truncate(index.0);
        self.slots.push_back(Slot { term, lies: Lies::At(place) });
        self.durable = index.0;
    }

    /// The write of this number, of an entry, was synced; unless the entry was overwritten or forgotten in memory since, it is
    /// durable. Whether the durable position grew.
    pub(crate) fn entry_durable(&mut self, index: Index, serial: u64, place: Place) -> bool {
        let first = self.first();
        let slot = index.0.checked_sub(first).and_then(|i| self.slots.get_mut(i as usize));
        let Some(slot) = slot.filter(|slot| slot.lies == Lies::Pending(serial)) else { return false };
        slot.lies = Lies::At(place);
        if index.0 == self.durable + 1 {
            self.durable = index.0;
            return true;
        }
        false
    }

    /// The write of this number, of a snapshot's mark, was synced.
    pub(crate) fn mark_durable(&mut self, mark: Mark, serial: u64) -> bool {
        let grows = self.mark_serial == serial && self.durable < mark.index.0;
        if grows {
            self.durable = mark.index.0;
        }
        grows
    }

    /// Drops entries up to `to`, at most the last. Returns the new mark and the bytes that left the memory.
    pub(crate) fn compact(&mut self, to: u64) -> (Mark, usize) {
        let to = to.min(self.last());
        let Some(term) = self.term(to).filter(|_| to > self.mark.index.0) else { return (self.mark, 0) };
        let tail_drop = (to + 1).saturating_sub(self.tail_first()).min(self.tail.len() as u64) as usize;
        let freed = self.tail.drain(..tail_drop).map(|e| e.bytes()).sum();
        self.slots.drain(..(to - self.mark.index.0) as usize);
        give_room_back(&mut self.slots);
        give_room_back(&mut self.tail);
        self.mark = Mark { index: Index(to), term };
        (self.mark, freed)
    }

    /// Replaces the whole log by a snapshot up to `mark`, whose write has this number. Returns the bytes that left the memory.
    pub(crate) fn install(&mut self, mark: Mark, serial: u64) -> usize {
        let freed = self.tail.drain(..).map(|e| e.bytes()).sum();
        self.slots.clear();
        self.durable = self.durable.min(mark.index.0);
        self.mark = mark;
        self.mark_serial = serial;
        self.checkpointed = self.checkpointed.max(mark.index.0);
        self.applied = self.applied.max(mark.index.0);
        freed
    }

    /// As recovery sees a mark: entries up to it are gone, later ones stay.
    pub(crate) fn recovered_mark(&mut self, mark: Mark) {
        if mark.index < self.mark.index {
            return;
        }
        if mark.index.0 <= self.last() {
            self.slots.drain(..(mark.index.0 - self.mark.index.0) as usize);
        } else {
            self.slots.clear();
        }
        self.mark = mark;
        self.durable = self.durable.max(mark.index.0);
    }

    /// Recovery read an entry that does not follow the last one: drops everything before it; the log begins at `index`.
    pub(crate) fn rebase(&mut self, index: u64) {
        self.slots.clear();
        self.mark = Mark { index: Index(index.saturating_sub(1)), term: Term(0) };
        self.durable = self.mark.index.0;
    }

    /// Evicts the oldest entry from memory, if it can be read again and is not needed soon. Returns the bytes that it took.
    pub(crate) fn evict_oldest(&mut self) -> Option<usize> {
        let index = self.tail_first();
        if index > self.durable || index > self.applied || self.place(index).is_none() {
            return None;
        }
        self.tail.pop_front().map(|e| e.bytes())
    }

    pub(crate) fn state(&self) -> GroupState {
        GroupState { hard_state: self.hard_state, mark: self.mark, conf: self.conf.clone() }
    }

    /// Up to where the group may be compacted; `lagging_counts`: replicas that lag hold it back.
    pub(crate) fn compactable(&self, lagging_counts: bool) -> u64 {
        let early = mutations::on(Mutation::SegmentRemovedEarly);
        let needless = if early { self.applied } else { self.checkpointed };
        let limit = needless.min(self.durable).min(self.last());
        if lagging_counts { limit.min(self.replicated) } else { limit }
    }
}

/// A group that is quiet now keeps no room for its busy days.
fn give_room_back<T>(queue: &mut VecDeque<T>) {
    if queue.len() < queue.capacity() / 4 {
        queue.shrink_to(queue.len() * 2);
    }
}
