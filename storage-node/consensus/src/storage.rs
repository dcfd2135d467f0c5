//! What Raft reads of one group's log: terms of every index, and the entries that are in memory.
//!
//! Danger: everything unapplied is in memory here, always, because the library reads it without waiting (`hup`, votes,
//! committed entries). Applied entries stay while the budget allows; a follower that needs older ones is served by
//! a read off the store thread: [`Storage::entries`] notes what is wanted and says "temporarily unavailable".

use crate::api::{Membership, SnapshotMeta};
use longshore_wire::{Index, ReplicaId, Term};
use raft::eraftpb::{ConfState, Entry, HardState, Snapshot};
use raft::{Error, GetEntriesContext, RaftState, Storage, StorageError};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};

/// Blocks of old entries that a group keeps for its followers at a time.
const BLOCKS_MAX: usize = 4;
/// Followers that wait for one read.
const WAITERS_MAX: usize = 16;

/// A read that Raft wants: `low..high`, and who asked.
pub(crate) struct Wanted {
    pub low: Index,
    pub high: Index,
}

struct Reading {
    waiters: Vec<GetEntriesContext>,
    submitted: bool,
    high: u64,
}

/// The log of one group in memory.
pub(crate) struct GroupStorage {
    /// The last index that is gone, and its term.
    base: (u64, u64),
    /// Where each term begins; ascending.
    terms: Vec<(u64, u64)>,
    last: u64,
    /// Ends at `last`; holds at least everything unapplied.
    tail: VecDeque<Entry>,
    tail_bytes: usize,
    hard: HardState,
    members: Membership,
    applied: (u64, u64),
    blocks: BTreeMap<u64, Vec<Entry>>,
    reading: RefCell<BTreeMap<u64, Reading>>,
    /// Receivers whose last snapshot failed a moment ago.
    waiting: Vec<ReplicaId>,
}

pub(crate) fn entry_bytes(e: &Entry) -> usize {
    e.data.len() + e.context.len() + size_of::<Entry>()
}

impl GroupStorage {
    /// A log that begins after `base`, with the terms of `terms` (from, term) up to `last`; entries come by
    /// [`GroupStorage::load`].
    pub(crate) fn new(base: (Index, Term), hard: HardState, members: Membership) -> GroupStorage {
        GroupStorage {
            base: (base.0.0, base.1.0),
            terms: Vec::new(),
            last: base.0.0,
            tail: VecDeque::new(),
            tail_bytes: 0,
            hard,
            members,
            applied: (base.0.0, base.1.0),
            blocks: BTreeMap::new(),
            reading: RefCell::default(),
            waiting: Vec::new(),
        }
    }

    /// Adds the term of the next index at the start, without its entry: it stays on disk.
    pub(crate) fn load_term(&mut self, index: u64, term: u64) {
        self.push_term(index, term);
        self.last = index;
    }

    fn push_term(&mut self, index: u64, term: u64) {
        if self.terms.last().is_none_or(|(_, t)| *t != term) {
            self.terms.push((index, term));
        }
    }

    pub(crate) fn first(&self) -> u64 {
        self.base.0 + 1
    }

    pub(crate) fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    pub(crate) fn applied(&self) -> (u64, u64) {
        self.applied
    }

    pub(crate) fn members(&self) -> &Membership {
        &self.members
    }

    pub(crate) fn set_members(&mut self, members: Membership) {
        self.members = members;
    }

    pub(crate) fn set_applied(&mut self, index: u64, term: u64) {
        self.applied = (index, term);
    }

    /// Who gets no snapshot for now.
    pub(crate) fn set_waiting(&mut self, waiting: Vec<ReplicaId>) {
        self.waiting = waiting;
    }

    pub(crate) fn term_of(&self, index: u64) -> Option<u64> {
        if index == self.base.0 {
            return Some(self.base.1);
        }
        if index < self.base.0 || index > self.last {
            return None;
        }
        let at = self.terms.partition_point(|(from, _)| *from <= index);
        at.checked_sub(1).and_then(|i| self.terms.get(i)).map(|(_, term)| *term)
    }

    /// Appends entries that follow each other; what overlaps is replaced.
    pub(crate) fn append(&mut self, entries: &[Entry]) {
        let Some(first) = entries.first().map(|e| e.index) else {
            return;
        };
        assert!(
            first > self.base.0 && first <= self.last + 1,
            "append at {first} to a log that ends at {}",
            self.last
        );
        self.truncate_from(first);
        for e in entries {
            self.push_term(e.index, e.term);
            self.tail_bytes += entry_bytes(e);
            self.last = e.index;
            self.tail.push_back(e.clone());
        }
    }

    fn truncate_from(&mut self, first: u64) {
        while self.tail.back().is_some_and(|e| e.index >= first) {
            if let Some(e) = self.tail.pop_back() {
                self.tail_bytes -= entry_bytes(&e);
            }
        }
        let keep = self.terms.partition_point(|(from, _)| *from < first);
        self.terms.truncate(keep);
        self.last = first - 1;
    }

    /// Drops everything up to `to`; only applied entries may go.
    pub(crate) fn compact(&mut self, to: u64) {
        let Some(term) = self.term_of(to).filter(|_| to > self.base.0 && to <= self.applied.0) else {
            return;
        };
        while self.tail.front().is_some_and(|e| e.index <= to) {
            self.pop_front();
        }
        if self.tail.len() < self.tail.capacity() / 4 {
            // A group that is quiet now keeps no room for its busy days.
            self.tail.shrink_to(self.tail.len() * 2);
        }
        let at = self.terms.partition_point(|(from, _)| *from <= to + 1).saturating_sub(1);
        self.terms.drain(..at);
        self.base = (to, term);
        self.blocks.retain(|low, _| *low > to);
    }

    /// The log begins anew after a snapshot. What is applied stays behind until the machine has it.
    pub(crate) fn install(&mut self, meta: &SnapshotMeta) {
        let (hard, applied) = (std::mem::take(&mut self.hard), self.applied);
        *self = GroupStorage::new((meta.index, meta.term), hard, meta.membership.clone());
        self.applied = applied;
    }

    fn pop_front(&mut self) {
        if let Some(e) = self.tail.pop_front() {
            self.tail_bytes -= entry_bytes(&e);
        }
    }

    /// Frees about `bytes` of applied entries, oldest first; says how much it freed.
    pub(crate) fn evict(&mut self, bytes: usize) -> usize {
        let before = self.tail_bytes;
        while before - self.tail_bytes < bytes && self.tail.front().is_some_and(|e| e.index <= self.applied.0)
        {
            self.pop_front();
        }
        before - self.tail_bytes
    }

    fn tail_first(&self) -> u64 {
        self.tail.front().map_or(self.last + 1, |e| e.index)
    }

    /// Reads that were asked for since the last call.
    pub(crate) fn take_wanted(&self) -> Vec<Wanted> {
        let mut reading = self.reading.borrow_mut();
        let new = reading.iter_mut().filter(|(_, r)| !r.submitted);
        new.map(|(low, r)| {
            r.submitted = true;
            Wanted { low: Index(*low), high: Index(r.high) }
        })
        .collect()
    }

    /// Takes what a read brought (nothing, if it failed) and says who waited for it.
    pub(crate) fn fetched(&mut self, low: Index, entries: Vec<Entry>) -> Vec<GetEntriesContext> {
        let waiters = self.reading.borrow_mut().remove(&low.0).map(|r| r.waiters).unwrap_or_default();
        let follows =
            entries.iter().zip(low.0..).all(|(e, i)| e.index == i && self.term_of(i) == Some(e.term));
        if low.0 > self.base.0 && follows && !entries.is_empty() {
            while self.blocks.len() >= BLOCKS_MAX {
                self.blocks.pop_first();
            }
            self.blocks.insert(low.0, entries);
        }
        waiters
    }

    /// Forgets blocks that nobody asked for; called now and then.
    pub(crate) fn drop_blocks(&mut self) {
        self.blocks.clear();
    }

    fn in_blocks(&self, low: u64, high: u64, bytes_max: u64) -> Option<Vec<Entry>> {
        let (start, block) = self.blocks.range(..=low).next_back()?;
        let rest = block.get((low - start) as usize..)?;
        let found = limited(rest.iter().take_while(|e| e.index < high), bytes_max);
        (!found.is_empty()).then_some(found)
    }

    fn want(&self, low: u64, high: u64, context: GetEntriesContext) {
        let mut reading = self.reading.borrow_mut();
        let entry = reading.entry(low).or_insert(Reading { waiters: Vec::new(), submitted: false, high });
        if entry.waiters.len() < WAITERS_MAX {
            entry.waiters.push(context);
        }
    }
}

/// Entries until `bytes_max`, at least one.
fn limited<'a>(entries: impl Iterator<Item = &'a Entry>, bytes_max: u64) -> Vec<Entry> {
    let mut bytes = 0u64;
    let mut out = Vec::new();
    for e in entries {
        bytes = bytes.saturating_add(entry_bytes(e) as u64);
        if !out.is_empty() && bytes > bytes_max {
            break;
        }
        out.push(e.clone());
    }
    out
}

impl Storage for GroupStorage {
    fn initial_state(&self) -> raft::Result<RaftState> {
        Ok(RaftState { hard_state: self.hard.clone(), conf_state: self.members.conf_state() })
    }

    fn entries(
        &self,
        low: u64,
        high: u64,
        max_size: impl Into<Option<u64>>,
        context: GetEntriesContext,
    ) -> raft::Result<Vec<Entry>> {
        if low <= self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        if high > self.last + 1 {
            return Err(Error::Store(StorageError::Unavailable));
        }
        let bytes_max = max_size.into().unwrap_or(u64::MAX);
        let tail_first = self.tail_first();
        if low >= tail_first {
            let from = (low - tail_first) as usize;
            let to = (high - tail_first) as usize;
            return Ok(limited(self.tail.range(from..to), bytes_max));
        }
        if !context.can_async() {
            return Err(Error::Store(StorageError::Unavailable));
        }
        if let Some(found) = self.in_blocks(low, high.min(tail_first), bytes_max) {
            return Ok(found);
        }
        self.want(low, high.min(tail_first), context);
        Err(Error::Store(StorageError::LogTemporarilyUnavailable))
    }

    fn term(&self, index: u64) -> raft::Result<u64> {
        if index < self.base.0 {
            return Err(Error::Store(StorageError::Compacted));
        }
        self.term_of(index).ok_or(Error::Store(StorageError::Unavailable))
    }

    fn first_index(&self) -> raft::Result<u64> {
        Ok(self.first())
    }

    fn last_index(&self) -> raft::Result<u64> {
        Ok(self.last)
    }

    fn snapshot(&self, request_index: u64, to: u64) -> raft::Result<Snapshot> {
        let unavailable = Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
        // A change that adds the receiver is being applied right now: the next heartbeat's answer asks again.
        let to = ReplicaId(to);
        if self.waiting.contains(&to) || !self.members.contains(to) {
            return unavailable;
        }
        if self.applied.0 == 0 || self.applied.0 < request_index {
            return unavailable;
        }
        Ok(snapshot_of(self.applied.0, self.applied.1, self.members.conf_state()))
    }
}

/// A snapshot that names its place and members and carries no data: pages and bodies travel apart.
pub(crate) fn snapshot_of(index: u64, term: u64, members: ConfState) -> Snapshot {
    let mut s = Snapshot::default();
    let meta = s.mut_metadata();
    meta.index = index;
    meta.term = term;
    meta.set_conf_state(members);
    s
}

#[cfg(test)]
mod tests;
