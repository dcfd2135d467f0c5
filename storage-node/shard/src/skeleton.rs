//! Signatures that delivery and the node build against; bodies follow.
#![allow(clippy::todo, unused_variables)]
use crate::Effects;
use bytes::Bytes;
use longshore_wire::context::EntryContext;
use longshore_wire::row::Source;
use longshore_wire::spec::LogSpec;
use longshore_wire::*;

/// The shard.
#[derive(Debug)]
pub struct Shard {}
/// One log.
#[derive(Debug)]
pub struct Log {}
/// A settlement cursor.
#[derive(Debug)]
pub struct Cursor {}
/// An open session.
#[derive(Debug)]
pub struct Session {}
/// A replicated lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Taken {
    /// Lease.
    pub lease: LeaseId,
    /// Visible again at this log time.
    pub until: LogTime,
}
/// A named reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Next offset that it wants.
    pub offset: Offset,
    /// Log time of the commit.
    pub time: LogTime,
}
/// Why pages do not make a state.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A page that cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
}

impl Shard {
    /// Empty state.
    pub fn new(id: ShardId) -> Shard {
        todo!()
    }
    /// Applies one committed entry.
    pub fn apply(&mut self, index: Index, term: Term, ctx: &EntryContext, data: &Bytes, out: &mut Effects) {
        todo!()
    }
    /// Which shard.
    pub fn id(&self) -> ShardId {
        todo!()
    }
    /// Index of the last applied entry.
    pub fn applied(&self) -> Index {
        todo!()
    }
    /// Term of the last applied entry.
    pub fn applied_term(&self) -> Term {
        todo!()
    }
    /// The last log time.
    pub fn log_time(&self) -> LogTime {
        todo!()
    }
    /// A live log.
    pub fn log(&self, log: LogId) -> Option<&Log> {
        todo!()
    }
    /// All live logs by id.
    pub fn logs(&self) -> impl Iterator<Item = &Log> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// Whether the log was dropped.
    pub fn is_dropped(&self, log: LogId) -> bool {
        todo!()
    }
    /// An open session.
    pub fn session(&self, session: SessionId) -> Option<&Session> {
        todo!()
    }
    /// All open sessions by id.
    pub fn sessions(&self) -> impl Iterator<Item = (SessionId, &Session)> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// The oldest entry that an open upload needs.
    pub fn oldest_pinned_index(&self) -> Option<Index> {
        todo!()
    }
    /// Where the pieces of open uploads lie.
    pub fn upload_sources(&self) -> impl Iterator<Item = Source> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// What the record store must keep of a log, ascending; nothing for an unknown log.
    pub fn live_ranges(&self, log: LogId) -> impl Iterator<Item = OffsetRange> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// Pages that changed since the last call (None: removed).
    pub fn take_dirty_pages(&mut self) -> Vec<(Bytes, Option<Bytes>)> {
        todo!()
    }
    /// The whole state.
    pub fn all_pages(&self) -> Vec<(Bytes, Bytes)> {
        todo!()
    }
    /// State from pages.
    pub fn restore(
        id: ShardId,
        pages: impl IntoIterator<Item = (Bytes, Bytes)>,
    ) -> Result<Shard, RestoreError> {
        todo!()
    }
    /// Equal on equal state.
    pub fn state_hash(&self) -> u64 {
        todo!()
    }
}

impl Session {
    /// The last number applied.
    pub fn last(&self) -> BatchNo {
        todo!()
    }
}

impl Log {
    /// Its id.
    pub fn id(&self) -> LogId {
        todo!()
    }
    /// Its settings.
    pub fn spec(&self) -> &LogSpec {
        todo!()
    }
    /// The oldest retained offset (= next if there is none).
    pub fn first(&self) -> Offset {
        todo!()
    }
    /// The offset that the next record gets.
    pub fn next(&self) -> Offset {
        todo!()
    }
    /// A settlement cursor; 0 is a queue's own, streams have none.
    pub fn cursor(&self, cursor: CursorId) -> Option<&Cursor> {
        todo!()
    }
    /// All settlement cursors by id.
    pub fn cursors(&self) -> impl Iterator<Item = (CursorId, &Cursor)> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// A named position.
    pub fn position(&self, name: &[u8]) -> Option<Position> {
        todo!()
    }
    /// All named positions by name.
    pub fn positions(&self) -> impl Iterator<Item = (&Bytes, Position)> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// What the record store must keep, ascending.
    pub fn live_ranges(&self) -> impl Iterator<Item = OffsetRange> + '_ {
        std::iter::from_fn(|| todo!())
    }
}

impl Cursor {
    /// Everything below is settled.
    pub fn floor(&self) -> Offset {
        todo!()
    }
    /// The first unsettled offset at or after `from`.
    pub fn next_unsettled(&self, from: Offset) -> Option<Offset> {
        todo!()
    }
    /// Unsettled runs from `from` on, ascending.
    pub fn unsettled_ranges(&self, from: Offset) -> impl Iterator<Item = OffsetRange> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// Whether this offset is settled; false for offsets that do not exist yet.
    pub fn is_settled(&self, offset: Offset) -> bool {
        todo!()
    }
    /// Whether it is settled, but a rewind brings it back.
    pub fn is_rewindable(&self, offset: Offset) -> bool {
        todo!()
    }
    /// How many are unsettled, O(1).
    pub fn unsettled_count(&self) -> u64 {
        todo!()
    }
    /// How many are settled but rewindable.
    pub fn rewindable_count(&self) -> u64 {
        todo!()
    }
    /// How often an unsettled message was returned and counted.
    pub fn returns(&self, offset: Offset) -> u32 {
        todo!()
    }
    /// Whether an unsettled message was returned at all, counted or not.
    pub fn redelivered(&self, offset: Offset) -> bool {
        todo!()
    }
    /// Returned messages and their counts, ascending.
    pub fn returned(&self) -> impl Iterator<Item = (Offset, u32)> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// The replicated lease of an unsettled message, also one whose time has passed.
    pub fn taken(&self, offset: Offset) -> Option<Taken> {
        todo!()
    }
    /// All replicated leases, ascending by offset.
    pub fn takes(&self) -> impl Iterator<Item = (Offset, Taken)> + '_ {
        std::iter::from_fn(|| todo!())
    }
    /// Until which log time an unsettled message is held back; may be in the past.
    pub fn delayed_until(&self, offset: Offset) -> Option<LogTime> {
        todo!()
    }
    /// Delayed messages, by due time, then offset; may begin with some that are due.
    pub fn delayed(&self) -> impl Iterator<Item = (LogTime, Offset)> + '_ {
        std::iter::from_fn(|| todo!())
    }
}
