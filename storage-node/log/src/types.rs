//! The words of the node log: positions, entries, what is read and what a request reports.
//!
//! Danger: [`Appended`] is not [`Durable`], and a [`SegmentId`] is not a file (files are recycled under new ids).
//! Used by every caller of this crate.

use bytes::Bytes;
use longshore_wire::{Index, ReplicaId, ShardId, Term};
use std::collections::BTreeSet;
use std::io;

/// One generation of a segment file; only grows and is never reused, while its file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SegmentId(pub u64);

/// The last entry of a group that the log has taken. A crash may lose it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Appended(pub Index);

/// Everything of a group up to here is on this node's disk: the fdatasync that covers it has returned.
/// Not committed: that takes a majority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Durable(pub Index);

/// Sizes and limits of a node log. `Default` is a base: the storage node's process sets its own sizes over it and keeps
/// `batch_bytes_max` and `standby_segments`; the simulation makes all of it small.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Size of a segment file, in bytes; from 16 KiB to 1 GiB. Changing it affects new segments only.
    pub segment_bytes: u64,
    /// Largest batch (one write and one sync), in bytes; at most a quarter of `segment_bytes`, more is cut to that.
    pub batch_bytes_max: usize,
    /// Budget of the in-memory tail of recent entries, in bytes. Entries that are not durable, or above what was
    /// told by [`crate::NodeLog::applied`], stay in memory even beyond it.
    pub tail_bytes_max: usize,
    /// Segments kept ready (written once, named in the manifest) for the writer.
    pub standby_segments: usize,
    /// Freed segment files kept for recycling; further ones are deleted.
    pub free_segments_max: usize,
    /// Above this many bytes of segments that Raft needs, a lagging replica no longer holds back compaction; it
    /// will get a snapshot.
    pub log_bytes_max: u64,
    /// Above this many segments that Raft needs, [`crate::NodeLog::wants_checkpoint`] names the groups that pin the oldest.
    pub raft_segments_max: usize,
    /// The node identity's random bytes ([`crate::Identity`]): they seed the checksums, so that no client can forge
    /// log structure inside a body. Used when the log is made; later the manifest's copy counts.
    pub salt: [u8; 16],
    /// The log was made before ([`crate::Identity::settled`]). If nothing of it is there, every group is set aside: a replica
    /// that began again under its old id would vote against what it has forgotten.
    pub must_exist: bool,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig {
            segment_bytes: 64 << 20,
            batch_bytes_max: 8 << 20,
            tail_bytes_max: 128 << 20,
            standby_segments: 2,
            free_segments_max: 4,
            log_bytes_max: 4 << 30,
            raft_segments_max: 8,
            salt: [0; 16],
            must_exist: false,
        }
    }
}

/// A Raft entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its place in the group's log, from 1.
    pub index: Index,
    /// The term it was proposed in.
    pub term: Term,
    /// Opaque to the log (consensus keeps Raft's entry type here).
    pub kind: u8,
    /// The leader's few bytes beside the data, at most 65,535.
    pub context: Bytes,
    /// The command; written as it is, never copied or re-encoded.
    pub data: Bytes,
}

impl Entry {
    /// Bytes of context and data.
    pub fn bytes(&self) -> usize {
        self.context.len() + self.data.len()
    }
}

/// What a replica must remember across a restart before it may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct HardState {
    /// Newest term seen.
    pub term: Term,
    /// Who got this replica's vote in `term`; `ReplicaId(0)` for nobody.
    pub vote: ReplicaId,
    /// Known commit index. A hint after a restart: take max(checkpoint index, min(commit, last index)).
    pub commit: Index,
}

/// Where an entry lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The segment.
    pub segment: SegmentId,
    /// Position of the entry's local header in the segment, in bytes.
    pub header_position: u32,
    /// Length of the context, in bytes.
    pub context_len: u16,
    /// Length of the data, in bytes.
    pub data_len: u32,
}

impl Place {
    /// Position of the first byte of the entry's data in the segment.
    pub fn data_position(&self) -> u64 {
        u64::from(self.header_position)
            + crate::format::RECORD_HEADER_BYTES as u64
            + u64::from(self.context_len)
    }
}

/// An entry that a segment holds, current or overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry {
    /// The group.
    pub group: ShardId,
    /// Index in the group's log.
    pub index: Index,
    /// Its term; the pair (index, term) tells an overwritten entry from the current one.
    pub term: Term,
    /// Where it lies.
    pub place: Place,
}

/// What became of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentState {
    /// Prepared or being written.
    Open,
    /// Full; Raft or recovery may still need it.
    Sealed,
    /// No entry of it is needed by Raft any more; only bodies may live in it. Not read at start.
    Retired,
}

/// A segment as [`crate::NodeLog::segments`] lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// Which.
    pub id: SegmentId,
    /// What became of it.
    pub state: SegmentState,
    /// Whether the record store still needs it (see [`crate::NodeLog::release`]).
    pub held: bool,
    /// Size of the file, in bytes.
    pub bytes: u64,
}

/// Why the log refused or died.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The entry does not follow the group's log: a mistake of the caller. Nothing was taken.
    #[error("entry {index} of shard {group} does not follow {last}: the log takes no gaps")]
    Gap {
        /// The group.
        group: ShardId,
        /// The refused entry.
        index: Index,
        /// The last entry that the log has.
        last: Index,
    },
    /// The group's replica was given up: reset the group before it is written to. Nothing was taken.
    #[error("shard {0} is set aside on this node: make a new replica first")]
    SetAside(ShardId),
    /// Larger than a batch may be. Nothing was taken.
    #[error("a record of {bytes} bytes exceeds the limit of {bytes_max}; raise segment_bytes or send less")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// A write or sync failed: nothing is known of what was written since the last success. The process must end.
    #[error("the node log failed in {path}: {source}; the process must end, what was acknowledged is safe")]
    Failed {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// Why the log could not be opened. Damage to its content is no such error: see [`Recovery`].
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A file could not be read or written.
    #[error("cannot open the node log: {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Written by a newer build.
    #[error("{path} has format version {found}, this build knows up to {known}: start the newer build")]
    Version {
        /// The file.
        path: String,
        /// The version found.
        found: u32,
        /// The newest version that this build reads.
        known: u32,
    },
    /// The configuration cannot work.
    #[error("{0}")]
    Config(&'static str),
}

/// Why an entry could not be given out.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Below the group's first index; a peer that wants it needs a snapshot.
    #[error("the entry is compacted away")]
    Compacted,
    /// Above the group's last index.
    #[error("the entry is not there yet")]
    Unavailable,
    /// The log has nothing of this group, or it is set aside.
    #[error("shard {0} is not in this log")]
    UnknownGroup(ShardId),
    /// What lies there is not the entry: the disk lost or changed it. Set the replica aside.
    #[error(
        "segment {segment:?} is corrupt at position {position}: set the replica aside and rebuild it from its peers"
    )]
    Corrupt {
        /// The segment.
        segment: SegmentId,
        /// Position in bytes.
        position: u64,
    },
    /// The read failed; the entry may be fine.
    #[error("reading segment {segment:?} failed: {source}")]
    Io {
        /// The segment.
        segment: SegmentId,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// What a request's write reports, to [`crate::NodeLog::completed`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Groups whose durable position grew (or was set by a snapshot), ascending.
    pub durable: Vec<(ShardId, Durable)>,
    /// The tickets whose requests, and all before them, are durable; in the order of submission.
    pub tickets: Vec<u64>,
    /// Segments that were filled meanwhile.
    pub sealed: Vec<SegmentId>,
}

/// A group as recovery found it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveredGroup {
    /// First index that the log has, or would have: one above the compaction or snapshot mark.
    pub first: Index,
    /// Last index, `first - 1` if there is no entry.
    pub last: Index,
    /// Newest hard state.
    pub hard_state: HardState,
    /// Newest conf state, as consensus encoded it; empty if none was written.
    pub conf: Bytes,
}

/// A damaged range that recovery went around.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// The segment.
    pub segment: SegmentId,
    /// Where the damage begins, in bytes.
    pub position: u64,
    /// The groups that may have lost something there; `None`: not known, so every group.
    pub groups: Option<BTreeSet<ShardId>>,
}

/// What recovery found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// The groups that are whole.
    pub groups: std::collections::BTreeMap<ShardId, RecoveredGroup>,
    /// Groups that lost something: their replicas must be given up and rebuilt under new ids.
    pub set_aside: BTreeSet<ShardId>,
    /// Every group of this node that is not in `groups` is set aside too: the damage could not be narrowed down.
    pub every_other_set_aside: bool,
    /// Bytes of a torn batch that were cut; nothing in them was acknowledged.
    pub cut_bytes: u64,
    /// Damage found by this start; worth a log line each.
    pub damage: Vec<Damage>,
}
