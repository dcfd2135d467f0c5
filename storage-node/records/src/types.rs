//! The words of this crate's boundary: places, answers, configuration, errors.
//!
//! Danger: a [`Place`] is where bytes lie on *this* node; an offset, an index and a position are three different
//! numbers. Used by the node's store loop and by whoever runs [`crate::ReadTask`]s and [`crate::Job`]s.

use bytes::Bytes;
use longshore_wire::row::{Row, Source};
use longshore_wire::{Index, LogId, Offset, OffsetRange, ShardId, Term};
use std::collections::BTreeMap;
use std::io;

/// A segment of the node log: the number of `longshore_log::SegmentId`, given once and never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentId(pub u64);

/// A store file of this crate: what rewriting and importing make. Never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StoreId(pub u64);

/// Where the batch of one applied entry lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its segment.
    pub segment: SegmentId,
    /// Position in the segment's file of the first byte of the entry's batch.
    pub position: u64,
    /// Bytes from the start of the entry's local header to `position`.
    pub head: u32,
    /// Length of the batch in bytes.
    pub len: u32,
    /// The entry's term.
    pub term: Term,
}

/// What the local header of an entry must say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct EntryKey {
    /// The Raft group.
    pub group: ShardId,
    /// The entry's index.
    pub index: Index,
    /// The entry's term.
    pub term: Term,
}

/// The node log's segments, as readers see them. Called off the store thread.
pub trait Segments: Send + Sync + 'static {
    /// Reads exactly `len` bytes at `position`, unchecked. The bytes stay this segment's while
    /// [`crate::Records::holds`] says yes.
    fn read(&self, segment: SegmentId, position: u64, len: usize) -> io::Result<Bytes>;
    /// Whether `head`, the `Place::head` bytes before an entry's batch, belongs to this entry of this segment.
    fn check(&self, segment: SegmentId, head: &[u8], entry: &EntryKey) -> bool;
}

/// What the node log says of a segment that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Which.
    pub id: SegmentId,
    /// Bytes that it takes on disk.
    pub bytes: u64,
    /// Whether nothing more is written to it.
    pub sealed: bool,
    /// Whether every entry in it is below its group's durable checkpoint and first index: only bodies may live in it.
    pub retired: bool,
    /// For each group with entries in it, an index above which it has none; the last appended index at the moment of
    /// sealing will do. Empty for a retired segment.
    pub last: Vec<(ShardId, Index)>,
}

/// Sizes and limits. Every field has a default that suits a node with 64 MiB segments.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory within the data directory.
    pub dir: String,
    /// Recent records kept in memory, in bytes, with what they pin and their rows.
    pub tail_bytes_max: usize,
    /// Decoded index blocks kept in memory, in bytes.
    pub block_cache_bytes_max: usize,
    /// Records read ahead and kept in memory, in bytes.
    pub read_cache_bytes_max: usize,
    /// How far a sequential reader is read ahead, in bytes.
    pub read_ahead_bytes: usize,
    /// Most bytes of bodies that one read task brings; at least one record is always read.
    pub read_bytes_max: usize,
    /// A file with a smaller share of live bytes is rewritten, in percent.
    pub rewrite_live_percent_max: u8,
    /// Most live bytes that one rewrite copies (a single source may exceed it).
    pub rewrite_bytes_per_run: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            dir: "records".into(),
            tail_bytes_max: 128 << 20,
            block_cache_bytes_max: 8 << 20,
            read_cache_bytes_max: 16 << 20,
            read_ahead_bytes: 2 << 20,
            read_bytes_max: 4 << 20,
            rewrite_live_percent_max: 25,
            rewrite_bytes_per_run: 16 << 20,
        }
    }
}

/// What the state machine still needs, told once per group after a start or an installed snapshot.
pub trait LiveView {
    /// The index up to which this view's state is applied.
    fn applied(&self) -> Index;
    /// The first offset that the log retains, or `None` if the state has no such log.
    fn first(&self, log: LogId) -> Option<Offset>;
    /// Calls `dead` for each run of offsets at or above [`LiveView::first`] that nothing needs any more, ascending.
    /// *Settled but rewindable* offsets are needed.
    fn dead(&self, log: LogId, dead: &mut dyn FnMut(OffsetRange));
    /// The index of the oldest part of an upload that has no end yet; without one, the index after `applied`.
    fn uploads_from(&self) -> Index;
}

/// A record with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    /// What the index says of it.
    pub row: Row,
    /// The encoded record; its checksum was compared.
    pub record: Bytes,
    /// The pieces of a large body in order; empty if they were not asked for.
    pub parts: Vec<Bytes>,
}

impl StoredRecord {
    /// Bytes of the record and its parts.
    pub fn bytes(&self) -> usize {
        self.record.len() + self.parts.iter().map(Bytes::len).sum::<usize>()
    }
}

/// Whether a read brings the pieces of large bodies too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// All of them, however large the body (up to 128 MiB).
    All,
    /// None; they are read with [`crate::Records::read_parts`] piece by piece.
    None,
}

/// An answer from memory, or the task that brings it.
#[derive(Debug)]
pub enum Lookup<T> {
    /// Known at once.
    Ready(T),
    /// Run this off the store thread and give its result to [`crate::Records::read_done`].
    Task(crate::ReadTask),
    /// This node does not hold it.
    Missing,
}

/// What [`crate::Records::read_many`] found.
#[derive(Debug, Default)]
pub struct Many {
    /// Answered from memory.
    pub ready: Vec<StoredRecord>,
    /// Not held here.
    pub missing: Vec<(LogId, Offset)>,
    /// Brings the others.
    pub task: Option<crate::ReadTask>,
}

/// What a finished read brought.
#[derive(Debug, Default)]
pub struct Answer {
    /// The task's number, see [`crate::ReadTask::id`].
    pub id: u64,
    /// Rows, for [`crate::Records::rows`]; ascending.
    pub rows: Vec<Row>,
    /// Records, in the order (log, offset). What is absent from both lists did not fit: ask again.
    pub records: Vec<StoredRecord>,
    /// Pieces, for [`crate::Records::read_parts`].
    pub parts: Vec<(Source, Bytes)>,
    /// What could not be read.
    pub failed: Vec<ReadError>,
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The bytes are not this record. Fetch it from a peer and give it to [`crate::Records::repair`].
    #[error("record {offset} of log {log} is corrupt here; fetch it from a peer")]
    Corrupt {
        /// The record's group.
        group: ShardId,
        /// Its log; for a piece of a body see [`crate::part_log`].
        log: LogId,
        /// Its first offset.
        offset: Offset,
    },
    /// A block of the index is damaged; its offsets count as missing from now on. Fetch them from a peer and import them.
    #[error("the index of log {log} is corrupt from offset {} to {}; fetch these from a peer", range.first, range.last)]
    CorruptIndex {
        /// The log's group.
        group: ShardId,
        /// The log.
        log: LogId,
        /// The offsets that the block may have named.
        range: OffsetRange,
    },
    /// The disk refused to read.
    #[error("cannot read {file}: {error}")]
    Io {
        /// The file.
        file: String,
        /// The system's error.
        error: io::Error,
    },
}

/// Why something could not be stored or opened.
#[derive(Debug, thiserror::Error)]
pub enum RecordsError {
    /// The disk refused. After a failed write or sync the file is abandoned; the job may be asked for again.
    #[error("cannot {what} {file}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The file.
        file: String,
        /// The system's error.
        error: io::Error,
    },
    /// The manifest cannot be read: the node's records cannot be trusted. Wipe the node and let it rebuild.
    #[error("{file} is damaged; wipe this node's data directory and let it rebuild from its peers")]
    Manifest {
        /// The file.
        file: String,
    },
    /// A file of a newer format.
    #[error("{file} has format version {found}, this build reads up to {known}; start the newer build")]
    Version {
        /// The file.
        file: String,
        /// What it has.
        found: u8,
        /// What this build knows.
        known: u8,
    },
    /// An applied entry that has rows but no place: it was compacted away before its rows were durable.
    #[error("entry {index} of group {group} has rows but no place in the node log")]
    Unplaced {
        /// The group.
        group: ShardId,
        /// The entry.
        index: Index,
    },
    /// Bytes given for storing are not what their row says.
    #[error("record {offset} of log {log} does not match its row or checksum; fetch it again")]
    Mismatch {
        /// The log.
        log: LogId,
        /// The offset.
        offset: Offset,
    },
    /// A live record that a rewrite had to copy is corrupt. Nothing changed; repair it.
    #[error("a rewrite met a corrupt record: {0}")]
    Corrupt(ReadError),
}

/// Whom an import is for: given with its batch, and back with its outcome, since several may be under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImportFor(pub u64);

/// Something fetched from a peer for a snapshot.
#[derive(Clone, Debug)]
pub enum Import {
    /// A record with all its parts.
    Record {
        /// Its group.
        group: ShardId,
        /// Record, row and parts.
        stored: StoredRecord,
    },
    /// A piece of an upload that has no end yet.
    Part {
        /// Its group.
        group: ShardId,
        /// The piece's identity.
        source: Source,
        /// Its bytes.
        bytes: Bytes,
    },
}

/// How much of the files is still needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Garbage {
    /// Bytes of all segments and store files known here.
    pub bytes: u64,
    /// Bytes of the store files among them.
    pub store_bytes: u64,
    /// Bytes of records with a live pointer, estimated.
    pub live_bytes: u64,
    /// Live pointers: offsets that something needs.
    pub live_pointers: u64,
    /// Segments with records.
    pub segments: u64,
    /// Store files.
    pub stores: u64,
    /// Bytes of the tail, with what it pins.
    pub tail_bytes: u64,
}

/// A damaged index file that was found at start; what it named counts as missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The file's name.
    pub file: String,
    /// The segment that it described, if it was a segment's index.
    pub segment: Option<SegmentId>,
}

/// What [`crate::Records::open`] found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Opened {
    /// Index and store files that could not be read. Their records count as missing: after `recover`, ask
    /// [`crate::Records::missing`] for the live ranges of each log and import what it names.
    pub damaged: Vec<Damaged>,
    /// What each group had applied, at least, when records were last let go. These entries are committed: whoever opens the group
    /// must apply them again before its state is shown to anybody. A state from before may call live what was settled in
    /// between and is gone from here.
    pub reached: BTreeMap<ShardId, Index>,
}

/// Keeps files from removal until [`crate::Records::unpin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PinId(pub u64);
