//! The messages of a queue that could go now, in the order in which they go. Used by both kinds of queue.
//!
//! Danger: an entry that is here and leased at the same time would be handed over twice; whoever makes a lease
//! takes the entry out first.

use crate::action::InMemory;
use longshore_wire::row::Row;
use longshore_wire::{LogTime, Offset, OffsetRange};
use std::collections::VecDeque;
use std::sync::Arc;

/// The order of delivery: higher priority first, then by when it became visible, then by offset. A returned
/// message has its old key, so it goes before younger ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    rank: u8,
    visible: LogTime,
    offset: Offset,
}

impl Key {
    /// The key of one message of `row` in a log that tells `priority_max` priorities apart.
    pub fn new(row: &Row, offset: Offset, priority_max: u8) -> Key {
        Key { rank: priority_max - row.priority.min(priority_max), visible: row.due.max(row.time), offset }
    }
}

/// One message that could go.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: Key,
    pub row: Row,
    /// The bytes, for queues in memory.
    pub message: Option<Arc<InMemory>>,
    /// How often it was returned, for queues in memory (durable ones ask the state).
    pub returns: u32,
    /// The turn in which it was appended; 0 if it was read later. A TTL of zero spares it for that turn.
    pub turn: u64,
}

impl Entry {
    pub fn offset(&self) -> Offset {
        self.key.offset
    }

    /// Whether its time to live has ended. One of zero means: now or never.
    pub fn expired(&self, log_time: LogTime, turn: u64) -> bool {
        self.row.expiry <= log_time && !(self.turn == turn && self.row.expiry <= self.row.time)
    }

    /// Memory that it takes, in bytes, without the message's own.
    pub fn memory(&self) -> usize {
        size_of::<Entry>() + self.row.parts.len() * 16
    }
}

/// Entries by key. Appends at the end and takes at the front cost O(1).
#[derive(Debug, Default)]
pub(crate) struct ReadyList {
    entries: VecDeque<Entry>,
    memory: usize,
}

impl ReadyList {
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Memory of all entries, in bytes.
    pub fn memory(&self) -> usize {
        self.memory
    }

    pub fn front(&self) -> Option<&Entry> {
        self.entries.front()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter()
    }

    /// Puts an entry in its place; `false` if it is here already.
    pub fn insert(&mut self, entry: Entry) -> bool {
        let memory = entry.memory();
        if self.entries.back().is_none_or(|last| last.key < entry.key) {
            self.entries.push_back(entry);
        } else {
            match self.entries.binary_search_by(|other| other.key.cmp(&entry.key)) {
                Ok(_) => return false,
                Err(at) => self.entries.insert(at, entry),
            }
        }
        self.memory += memory;
        true
    }

    pub fn pop_front(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.memory -= entry.memory();
        if self.entries.is_empty() && self.entries.capacity() > 64 {
            self.entries.shrink_to(16);
        }
        Some(entry)
    }

    /// Takes out what lies in `range`; how many.
    pub fn remove(&mut self, range: OffsetRange) -> usize {
        let before = self.entries.len();
        let memory = &mut self.memory;
        self.entries.retain(|entry| {
            let stays = !range.contains(entry.offset());
            if !stays {
                *memory -= entry.memory();
            }
            stays
        });
        before - self.entries.len()
    }

    /// Keeps the first `n`; the lowest offset of those that went.
    pub fn truncate(&mut self, n: usize) -> Option<Offset> {
        let mut lowest = None;
        while self.entries.len() > n {
            let Some(entry) = self.entries.pop_back() else { break };
            self.memory -= entry.memory();
            lowest = Some(lowest.map_or(entry.offset(), |low: Offset| low.min(entry.offset())));
        }
        self.entries.shrink_to(16);
        lowest
    }
}
