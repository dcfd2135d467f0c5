//! The node log: one synced, segmented log per data directory, shared by all Raft groups of the node.
//!
//! Duty: make entries, hard states and marks of all groups durable with one write and one sync for everything that
//! waits, and give back after any crash exactly what was durable, or say which groups lost something.
//! Danger: whatever [`Completion`] reports as durable has been promised to others. Called by consensus (store
//! thread), the log thread, the record store, and maintenance threads.
//!
//! How it is driven:
//! 1. Store thread: [`NodeLog::append`], [`NodeLog::set_hard_state`] ... take effect in memory at once (*appended*) and
//!    gather in the open request; [`NodeLog::take_request`] once per turn. Put a hard state before the entries of its
//!    term: a request larger than a batch is written in pieces, in order.
//! 2. Log thread: [`LogWriter::write`] with every request that waits, in order.
//! 3. Store thread: [`NodeLog::completed`] with what that returned; only then is anything *durable*.
//! 4. Store thread, now and then: [`NodeLog::maintain`]; run the [`MaintenanceJob`] on any thread, hand its result
//!    to [`NodeLog::maintained`]. Segments are prepared, retired and freed there.
//! 5. After [`LogError::Failed`], or a failed [`MaintenanceDone`], the process ends.
//!
//! When a segment goes: it is *retired*, oldest first, once each of its entries is below the durable first index of its
//! group (and so below its checkpoint), and each group's newest hard state, conf state and mark lie in newer
//! segments. It is freed once the record store has released it too and nobody has it pinned.
#![forbid(unsafe_code)]

pub mod format;
mod identity;
mod ledger;
mod maintenance;
mod manifest;
mod node_log;
mod open;
mod pool;
mod query;
mod read;
mod recovery;
mod segment;
mod table;
mod tail_pages;
mod take;
#[cfg(test)]
mod tests;
mod types;
mod upkeep;
mod writer;

pub use identity::{Identity, IdentityError};
pub use maintenance::{MaintenanceDone, MaintenanceJob};
pub use node_log::NodeLog;
pub use query::Fetched;
pub use read::{ReadDone, ReadTask, ScanTask};
pub use segment::SegmentPin;
pub use types::*;
pub use writer::{Completion, LogWriter, WriteRequest};
