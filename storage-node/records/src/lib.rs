//! The record store: where (log, offset) lives, and how long. The log is the message store.
//!
//! A body is written once, by the node log. This crate remembers where: in memory for what was applied lately, in index
//! files (blocks of bit-packed columns) for the rest. It counts in *pointers* (offsets) what is still needed, says which
//! segments hold nothing live, and copies the live rest of a mostly dead segment into a *store file* of its own.
//!
//! Danger: everything here that removes something decides over acknowledged messages. A file goes only when no live
//! pointer leads into it, nobody reads it, and what replaced it is synced and named in the manifest.
//!
//! Who calls what: the store thread owns [`Records`]; it never blocks on the disk after [`Records::open`]. What needs the disk
//! is handed out as a [`ReadTask`] or a [`Job`], run on another thread, and its result given back.
//!
//! ```text
//! apply ──applied──▶ tail (bytes) + pending rows ──flush/next_job──▶ index file      checkpoint waits for rows_durable
//! settle ─settled──▶ dead offsets per log ──▶ live pointers per file ──▶ removable / rewrite ──▶ store file + manifest
//! read  ──▶ tail │ read-ahead │ ReadTask: index block, coalesced bodies, (group, index, term), checksum
//! ```
//!
//! How it is driven:
//! 1. Start: [`Records::open`] with the node log's segments, [`Records::recover`] for each group with its checkpoint's state, then
//!    [`Records::applied`] (and settled, dropped) for every entry above it, as at any other time.
//! 2. Checkpoint at an applied index: [`Records::flush`] and its job first; write it once [`Records::rows_durable`] has reached the
//!    index; then [`Records::uploads_from`]. The node log must not compact below the oldest piece of an open upload.
//! 3. Node log: [`Records::segment_sealed`], [`Records::segment_retired`]; now and then [`Records::removable`],
//!    and [`Records::segment_removed`] for what the log has let go.
//! 4. Snapshot received: [`Records::missing`], fetch, [`Records::import`] until nothing is missing; `flush`; [`Records::recover`].
//! 5. [`Records::next_job`] about once a second and after each finished job; after a failed one wait before asking again.
//!
//! | module | what |
//! |---|---|
//! | [`types`] | places, answers, configuration, errors |
//! | `store` | [`Records`]: what is known of every file and log |
//! | `liveness` | settled, dropped, live counts, which segment may go |
//! | `lookup` | rows, reads, read-ahead |
//! | `snapshot` | missing, export, import, repair |
//! | `maintain` | which job is due, and what a finished one changes |
//! | `recover` | opening, and liveness from the state machine |
//! | `set` | sets of offsets, a bit each |
//! | `column`, `block`, `directory` | the index format, inner to outer |
//! | `file`, `logs` | what memory holds of one file and of one log |
//! | `store_file`, `manifest` | what rewriting and importing write |
//! | `read`, `fetch`, `job` | what runs off the store thread |
//! | `tail`, `cache` | bytes and blocks in memory |
#![forbid(unsafe_code)]

mod block;
mod cache;
mod column;
mod directory;
mod fetch;
mod file;
mod job;
mod liveness;
mod logs;
mod lookup;
mod maintain;
mod manifest;
mod read;
mod recover;
mod set;
mod snapshot;
mod store;
mod store_file;
mod tail;
pub mod types;

pub use job::{Job, JobDone, JobOutcome, What};
pub use read::{ReadDone, ReadTask};
pub use store::{Records, part_log, part_offset};
pub(crate) use store::{is_part_log, part_key};
pub use types::*;
