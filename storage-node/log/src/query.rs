//! What the log answers: entries, terms, states.
//!
//! Danger: what is answered here is *appended*; only [`NodeLog::last_durable`] speaks of the disk. Called by consensus and the
//! record store on the store thread.

use crate::node_log::NodeLog;
use crate::read::{ReadTask, Wanted};
use crate::segment::SegmentPin;
use crate::table::Group;
use crate::types::*;
use bytes::Bytes;
use longshore_wire::{Index, ShardId, Term};

/// Entries in one [`ReadTask`], and in one answer from memory.
const ENTRIES_READ_MAX: usize = 4096;

/// Entries, or the way to them.
#[derive(Debug)]
pub enum Fetched {
    /// They were in memory.
    Ready(Vec<Entry>),
    /// They are on disk: run this on another thread (or here, where waiting is allowed).
    Read(ReadTask),
}

impl NodeLog {
    fn table(&self, group: ShardId) -> Result<&Group, ReadError> {
        self.groups.get(&group).ok_or(ReadError::UnknownGroup(group))
    }

    /// Entries `low <= index < high`: as many as `max_bytes` allow, at least one. Those on disk and those in memory are
    /// not mixed; ask again for the rest.
    ///
    /// Errors: [`ReadError::Compacted`], [`ReadError::Unavailable`], [`ReadError::UnknownGroup`].
    pub fn entries(
        &self,
        group: ShardId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Fetched, ReadError> {
        let table = self.table(group)?;
        if low.0 < table.first() {
            return Err(ReadError::Compacted);
        }
        if low >= high || low.0 > table.last() {
            return Err(ReadError::Unavailable);
        }
        let high = high.0.min(table.last() + 1).min(low.0.saturating_add(ENTRIES_READ_MAX as u64));
        let mut bytes = 0usize;
        let mut fits = |len: usize| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(len.max(1));
            first || bytes <= max_bytes
        };
        if low.0 >= table.tail_first() {
            let ready =
                (low.0..high).map_while(|i| table.in_tail(i)).take_while(|e| fits(e.bytes())).cloned();
            return Ok(Fetched::Ready(ready.collect()));
        }
        let mut wanted = Vec::new();
        for index in low.0..high.min(table.tail_first()) {
            let (Some(term), Some(place)) = (table.term(index), table.place(index)) else { break };
            if !fits(usize::from(place.context_len) + place.data_len as usize) {
                break;
            }
            let Some(pin) = self.pin_from(wanted.last(), place.segment) else { break };
            wanted.push(Wanted { pin, index: Index(index), term, place });
        }
        if wanted.is_empty() {
            return Err(ReadError::Unavailable);
        }
        Ok(Fetched::Read(ReadTask { group, low, wanted }))
    }

    /// The pin of the entry before, if that lies in the same segment: one file handle for a run of entries.
    fn pin_from(&self, before: Option<&Wanted>, segment: SegmentId) -> Option<SegmentPin> {
        match before {
            Some(wanted) if wanted.pin.id() == segment => Some(wanted.pin.clone()),
            _ => self.pin(segment),
        }
    }

    /// The term of an entry; also of the one at the compaction mark (0 for index 0).
    ///
    /// Errors: [`ReadError::Compacted`], [`ReadError::Unavailable`], [`ReadError::UnknownGroup`].
    pub fn term(&self, group: ShardId, index: Index) -> Result<Term, ReadError> {
        let table = self.table(group)?;
        let missing = if index.0 < table.first() { ReadError::Compacted } else { ReadError::Unavailable };
        table.term(index.0).ok_or(missing)
    }

    /// First index that the group's log has or would have.
    pub fn first_index(&self, group: ShardId) -> Option<Index> {
        self.groups.get(&group).map(|table| Index(table.first()))
    }

    /// The last entry taken.
    pub fn last_appended(&self, group: ShardId) -> Option<Appended> {
        self.groups.get(&group).map(|table| Appended(Index(table.last())))
    }

    /// Up to where the group's log is on disk.
    pub fn last_durable(&self, group: ShardId) -> Option<Durable> {
        self.groups.get(&group).map(|table| Durable(Index(table.durable())))
    }

    /// The newest hard state, as appended.
    pub fn hard_state(&self, group: ShardId) -> Option<HardState> {
        self.groups.get(&group).map(|table| table.hard_state)
    }

    /// The newest conf state, as appended; empty if none was set.
    pub fn conf(&self, group: ShardId) -> Option<Bytes> {
        self.groups.get(&group).map(|table| table.conf.clone())
    }

    /// How many appends since the start overwrote an entry in a segment that was sealed already.
    pub fn overwritten_sealed(&self) -> u64 {
        self.overwritten_sealed
    }

    /// Whether the group's replica was given up.
    pub fn is_set_aside(&self, group: ShardId) -> bool {
        self.aside.contains(&group) || (self.every_other_aside && !self.groups.contains_key(&group))
    }

    /// The groups in this log, ascending.
    pub fn groups(&self) -> Vec<ShardId> {
        self.groups.keys().copied().collect()
    }

    /// Where an entry lies, once it is durable and while it is above the compaction mark.
    pub fn place(&self, group: ShardId, index: Index) -> Option<Place> {
        self.groups.get(&group)?.place(index.0)
    }
}
