//! The shard state machine: logs, their cursors, and gateways' sessions. Pure: no I/O, no clock, no
//! thread, no randomness; the state depends on the applied entries alone, and so do its bytes.
//!
//! What the caller does:
//! 1. [`Shard::apply`] for every committed entry, in order of index. It takes any bytes and fails on none: what
//!    cannot be read is refused and changes nothing but the applied index.
//! 2. It acts on the [`Effects`]: rows and released offsets to the record store, outcomes to the gateways, events
//!    to delivery (on the leader). It may act on those of many entries at once, but not before they are committed.
//! 3. From time to time it writes [`Shard::take_dirty_pages`] durably, all or nothing, with the applied index, and
//!    after a restart gives them to [`Shard::restore`] and applies what follows that index. A snapshot is
//!    [`Shard::all_pages`].
//!
//! Rules that hold everywhere:
//! - *Log time* is the larger of an entry's stamp and the last log time. It never decides that something is settled:
//!   expiry, returns and trims are commands. It decides what is forgotten: rewindable messages whose time is over
//!   (when the next entry is applied), old tokens and producers.
//! - A settled message stays settled unless it is rewound. Acks of what is settled, or not there yet, are harmless.
//! - A session's batches are applied in order of their numbers, each once.
//! - Every table has a bound in [`bounds`].
//!
//! The rules are told as stories in `tests/transcripts/*.txt`: read those first.
//!
//! | module | what |
//! |---|---|
//! | `shard` | [`Shard`]: the state, its views, its pages |
//! | `apply` | one entry, item by item |
//! | `effects` | what an entry caused |
//! | `logs`, `log`, `cursor` | logs by id; one log; what of it is settled, returned, taken, delayed |
//! | `rewindable`, `offset_set`, `chunk` | sets of offsets by settle time, by chunk, as runs or bitmaps |
//! | `sessions`, `tokens`, `producers` | the three ways to count once |
//! | `id_ranges` | ids that are gone for ever |
//! | `page` | keys and versions of pages; the pages themselves stand beside what they hold |
#![forbid(unsafe_code)]

mod apply;
pub mod bounds;
mod chunk;
mod cursor;
mod effects;
mod id_ranges;
mod log;
mod logs;
mod offset_set;
mod page;
mod producers;
mod rewindable;
mod sessions;
mod shard;
mod tokens;

pub use cursor::{Cursor, Taken};
pub use effects::{BatchResult, Effects, Event};
pub use log::{Log, OWN_CURSOR, Position};
pub use sessions::Session;
pub use shard::{RestoreError, Shard};
