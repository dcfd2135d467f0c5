//! A log of the shard: its settings, where it begins and ends, and its cursors.
//!
//! Called by `apply` alone; read by delivery, the record store's recovery and admin calls.

use crate::Cursor;
use crate::bounds::{OFFSET_MAX, POSITIONS_MAX};
use crate::offset_set::push_range;
use bytes::Bytes;
use longshore_wire::outcome::Refusal;
use longshore_wire::spec::{LogKind, LogSpec};
use longshore_wire::{CursorId, LogId, LogTime, Offset, OffsetRange};
use std::collections::{BTreeMap, BTreeSet};

mod page;

/// A queue's own settlement cursor.
pub const OWN_CURSOR: CursorId = CursorId(0);

/// Where a named reader of a log stands. Pins nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// The next offset that it wants; any number that it committed.
    pub offset: Offset,
    /// Log time of the commit.
    pub time: LogTime,
}

/// A log.
#[derive(Clone, Debug)]
pub struct Log {
    id: LogId,
    spec: LogSpec,
    created: LogTime,
    /// Streams: the oldest retained offset. Queues: 0, their cursor says it.
    start: Offset,
    next: Offset,
    /// Ascending by id; one in a queue, none in a stream.
    cursors: Vec<(CursorId, Cursor)>,
    positions: BTreeMap<Bytes, Position>,
    /// Whether a page of this log changed since pages were taken last.
    pub(crate) dirty: bool,
    dirty_positions: BTreeSet<Bytes>,
}

impl Log {
    pub(crate) fn new(id: LogId, spec: LogSpec, created: LogTime) -> Log {
        let cursors = match spec.kind {
            LogKind::Queue => vec![(OWN_CURSOR, Cursor::new(0))],
            LogKind::Stream => Vec::new(),
        };
        Log {
            id,
            spec,
            created,
            start: Offset(0),
            next: Offset(0),
            cursors,
            positions: BTreeMap::new(),
            dirty: false,
            dirty_positions: BTreeSet::new(),
        }
    }

    /// Its id.
    pub fn id(&self) -> LogId {
        self.id
    }

    /// Its settings.
    pub fn spec(&self) -> &LogSpec {
        &self.spec
    }

    /// Log time of its creation.
    pub fn created(&self) -> LogTime {
        self.created
    }

    /// The oldest retained offset, [`Log::next`] if there is none. A queue has gaps after it.
    pub fn first(&self) -> Offset {
        self.cursors.iter().map(|(_, cursor)| Offset(cursor.first_live())).min().unwrap_or(self.start)
    }

    /// The offset that the next record gets.
    pub fn next(&self) -> Offset {
        self.next
    }

    /// A settlement cursor: [`OWN_CURSOR`] in queues; streams have none.
    pub fn cursor(&self, cursor: CursorId) -> Option<&Cursor> {
        let i = self.cursors.binary_search_by_key(&cursor, |(id, _)| *id).ok()?;
        Some(&self.cursors[i].1)
    }

    /// All settlement cursors by id.
    pub fn cursors(&self) -> impl Iterator<Item = (CursorId, &Cursor)> + '_ {
        self.cursors.iter().map(|(id, cursor)| (*id, cursor))
    }

    /// A named position.
    pub fn position(&self, name: &[u8]) -> Option<Position> {
        self.positions.get(name).copied()
    }

    /// All named positions by name.
    pub fn positions(&self) -> impl Iterator<Item = (&Bytes, Position)> + '_ {
        self.positions.iter().map(|(name, position)| (name, *position))
    }

    /// What the record store must keep, ascending and merged: unsettled and rewindable messages of a queue,
    /// everything from `first` to `next` of a stream. Without rewindable messages the runs are found one by
    /// one; with them, all are gathered at the call.
    pub fn live_ranges(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        let gathered = match &self.cursors[..] {
            [] => {
                let mut all = Vec::new();
                if self.start < self.next {
                    push_range(&mut all, self.start.0, self.next.0 - 1);
                }
                all
            }
            [(_, cursor)] if !cursor.has_rewindable() => Vec::new(),
            cursors => {
                let all = cursors.iter().flat_map(|(_, cursor)| cursor.live_ranges()).collect();
                crate::offset_set::merged(all)
            }
        };
        let one_by_one = match &self.cursors[..] {
            [(_, cursor)] if !cursor.has_rewindable() => Some(cursor.unsettled_ranges(Offset(0))),
            _ => None,
        };
        gathered.into_iter().chain(one_by_one.into_iter().flatten())
    }

    /// What keeps an acked message rewindable: now and for how long.
    pub(crate) fn keep(&self, now: LogTime) -> Option<(LogTime, u64)> {
        (self.spec.rewind_ms > 0).then_some((now, self.spec.rewind_ms))
    }

    pub(crate) fn cursor_mut(&mut self, cursor: CursorId) -> Result<&mut Cursor, Refusal> {
        match self.cursors.binary_search_by_key(&cursor, |(id, _)| *id) {
            Ok(i) => Ok(&mut self.cursors[i].1),
            Err(_) => Err(Refusal::UnknownCursor),
        }
    }

    /// Gives `count` offsets away; the first of them. Refused if more messages would be delayed than may be,
    /// or the offsets are used up.
    pub(crate) fn append(
        &mut self,
        count: u32,
        due: Option<LogTime>,
        now: LogTime,
    ) -> Result<Offset, Refusal> {
        let first = self.next;
        let next = first.0.checked_add(u64::from(count)).filter(|next| *next <= OFFSET_MAX);
        let next = next.ok_or(Refusal::LimitReached)?;
        let has_room = |(_, cursor): &(CursorId, Cursor)| cursor.has_room_for_delayed(count);
        if due.is_some() && !self.cursors.iter().all(has_room) {
            return Err(Refusal::LimitReached);
        }
        for (_, cursor) in &mut self.cursors {
            cursor.append(next, due, now);
        }
        self.next = Offset(next);
        Ok(first)
    }

    pub(crate) fn commit_position(&mut self, name: Bytes, position: Position) -> Result<(), Refusal> {
        if self.positions.len() >= POSITIONS_MAX && !self.positions.contains_key(&name) {
            return Err(Refusal::LimitReached);
        }
        // A copy: the name must not keep the entry's whole buffer alive.
        let name = Bytes::copy_from_slice(&name);
        self.dirty_positions.insert(name.clone());
        self.positions.insert(name, position);
        Ok(())
    }

    /// Streams: moves the start on, never back nor beyond the end; what is freed.
    pub(crate) fn trim(&mut self, start: Offset) -> Option<OffsetRange> {
        let start = start.min(self.next);
        if self.spec.kind != LogKind::Stream || start <= self.start {
            return None;
        }
        let freed = OffsetRange { first: self.start, last: Offset(start.0 - 1) };
        self.start = start;
        Some(freed)
    }
}
