//! Checkpoints: the pages of each group's state machine, on disk.
//!
//! Duty: keep, per Raft group, the newest complete set of pages (key bytes to value bytes) together with the
//! [`Mark`] up to which they hold, so that a restart re-applies only the log above it.
//! Danger: a page of an older checkpoint beside a mark of a newer one is a silently wrong replica. So a checkpoint
//! is all of its pages or none, and what cannot be read back exactly is reported as [`Damaged`], never left out.
//! Called by the node's turn loop ([`PageStore`]) and by its background threads ([`Job::run`]).
//!
//! What a caller does:
//! 1. [`PageStore::open`] at start; each [`Loaded`] goes to its machine's `restore`. A mark below the log's first
//!    index less one means that the newest delta was cut as torn and the log has moved on: set that replica aside.
//! 2. [`PageStore::begin`] with the pages changed since the last `begin`; carry the [`Job`] to a thread, run it, and
//!    hand the [`JobDone`] to [`PageStore::job_done`]. Only what that answers is durable. One job per group at a time.
//! 3. After [`JobError::NoSpace`] simply begin again later: the pages of the failed job ride along.
//!
//! | module | what |
//! |---|---|
//! | [`format`] | bytes of a file: header, frames, pages, commits |
//! | `store` | which group has which file; what runs |
//! | `job` | the blocking part: append a delta, write a base |
//! | `load` | reading everything back at start |
#![forbid(unsafe_code)]

pub mod format;
mod job;
mod load;
mod store;
#[cfg(test)]
mod tests;

pub use job::{Job, JobDone};
pub use store::{Busy, PageStore};

use bytes::Bytes;
use longshore_wire::{Index, LogTime, ShardId, Term};
use std::collections::BTreeMap;
use std::io;

/// Longest page key, in bytes.
pub const KEY_BYTES_MAX: usize = u16::MAX as usize;
/// Longest page value, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// Longest conf state in a mark, in bytes.
pub const CONF_BYTES_MAX: usize = 64 << 10;

/// Up to where a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Mark {
    /// Everything up to this Raft index is applied in the pages.
    pub index: Index,
    /// The term of the entry at `index`.
    pub term: Term,
    /// The group's log time after that entry.
    pub log_time: LogTime,
    /// The group's Raft conf state, opaque here; at most [`CONF_BYTES_MAX`] bytes.
    pub conf: Bytes,
}

/// A group's checkpoint as found at start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    /// The group.
    pub group: ShardId,
    /// Up to where the pages hold.
    pub mark: Mark,
    /// All pages.
    pub pages: BTreeMap<Bytes, Bytes>,
    /// Bytes of a torn delta that were cut; 0 after an orderly stop. Worth a log line.
    pub cut_bytes: u64,
}

/// A group whose checkpoint cannot be trusted: its replica must be set aside and rebuilt from its peers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damaged {
    /// The group.
    pub group: ShardId,
    /// Path of the damaged file.
    pub path: String,
    /// Position in the file, in bytes, where reading failed.
    pub at: u64,
    /// What was found there.
    pub what: &'static str,
}

/// What [`PageStore::open`] found.
#[derive(Debug)]
pub struct Opened {
    /// The store, ready for use.
    pub store: PageStore,
    /// One per readable group, ascending.
    pub loaded: Vec<Loaded>,
    /// One per group that is not readable, ascending.
    pub damaged: Vec<Damaged>,
}

/// Where and how checkpoints are written.
#[derive(Clone, Debug)]
pub struct Config {
    /// Directory of the files.
    pub dir: String,
    /// A frame is closed once it has this many bytes.
    pub frame_bytes: usize,
    /// Files below this size are never rewritten, in bytes.
    pub rewrite_bytes_min: u64,
}

impl Default for Config {
    fn default() -> Config {
        Config { dir: "checkpoint".into(), frame_bytes: 256 << 10, rewrite_bytes_min: 1 << 20 }
    }
}

/// A checkpoint that is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Saved {
    /// The group.
    pub group: ShardId,
    /// Durable up to here; `None` after a removal.
    pub mark: Option<Mark>,
    /// Bytes that the job wrote.
    pub written_bytes: u64,
    /// Whether a new base was written.
    pub rewritten: bool,
}

/// Why a store could not be opened. Nothing was changed, except that torn tails may have been cut.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file could not be read or cut.
    #[error("checkpoint file {path}: {source}; check the disk, then start again")]
    Io {
        /// The path.
        path: String,
        /// What the disk said.
        source: io::Error,
    },
    /// A file of a newer build.
    #[error("{path} has format version {found}, this build knows up to {known}; start a newer build")]
    Version {
        /// The path.
        path: String,
        /// The version found.
        found: u16,
        /// The newest version that this build reads.
        known: u16,
    },
    /// A file that is not ours.
    #[error("{path} is not a checkpoint; move it out of the data directory")]
    Foreign {
        /// The path.
        path: String,
    },
}

/// Why a job did not save its checkpoint. The checkpoint before it stays valid.
#[derive(Debug, thiserror::Error)]
pub enum JobError {
    /// The disk is full. Nothing is lost: begin again later.
    #[error("no space for the checkpoint of group {0}: free disk space, it is tried again")]
    NoSpace(ShardId),
    /// A write or sync failed. What the disk holds is not known: the process must end.
    #[error("checkpoint of group {group}, {doing}: {source}; the process must end")]
    Failed {
        /// The group.
        group: ShardId,
        /// What was being done.
        doing: &'static str,
        /// What the disk said.
        source: io::Error,
    },
    /// The old file does not read back what was written to it. The state in memory is good: call
    /// [`PageStore::replace`] with all pages.
    #[error("checkpoint of group {group} is damaged at byte {at} ({what}): it is written anew")]
    Damaged {
        /// The group.
        group: ShardId,
        /// Position in the file, in bytes.
        at: u64,
        /// What was found there.
        what: &'static str,
    },
    /// A key, value or conf state beyond its limit; a bug of the machine that made it. Nothing was written.
    #[error("checkpoint of group {group}: {what} of {bytes} bytes is beyond the limit")]
    TooLarge {
        /// The group.
        group: ShardId,
        /// What is too large.
        what: &'static str,
        /// Its size.
        bytes: usize,
    },
}

impl JobError {
    /// Whose checkpoint was not written.
    pub fn group(&self) -> ShardId {
        match self {
            JobError::NoSpace(group)
            | JobError::Failed { group, .. }
            | JobError::Damaged { group, .. }
            | JobError::TooLarge { group, .. } => *group,
        }
    }
}
