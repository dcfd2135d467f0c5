//! Many Raft groups over one node log and one connection per pair of nodes.
//!
//! A [`Store`] owns all groups of a node: the `raft` library's state machines, the node log's tables, heartbeat rounds,
//! leases and log time. It does no I/O and reads no clock: the node crate gives it [`Event`]s and the time, and carries out
//! the [`Output`]. A whole cluster runs in one thread from a seed.
//!
//! # A turn
//!
//! ```text
//! gather events ─ read the clocks ─▶ Store::turn ─▶ Output
//!                                                   ├─ frames   ─▶ peers, at once (leaders' appends, heartbeats, answers)
//!                                                   ├─ write    ─▶ log thread: write, sync ─▶ Event::Written
//!                                                   ├─ held     ─▶ peers, after the sync (followers' acks, votes)
//!                                                   ├─ actions  ─▶ reads, snapshots, ... ─▶ events
//!                                                   └─ again    ─▶ events of the next turn, which is due now
//! ```
//!
//! Within a turn: writes that are synced are noted first; then messages are stepped, ticks counted, all proposals of a
//! group become one append; then each group that something happened to is drained; at the end there is *one* write for all groups.
//!
//! # What the caller must do, and in which order
//!
//! 1. Writes go to the log thread in the order of the turns. Several may be under way.
//! 2. When a write is synced, [`Event::Written`] is queued for the store *before* the [`Held`] frames of its tickets leave: no answer
//!    may arrive ahead of the news of the write it followed. Frames whose ticket never completes are never sent.
//! 3. Frames in `Output::frames` need not wait for anything, also not for the write of the same turn: a leader's own sync
//!    runs in parallel with its followers'.
//! 4. Frames may be lost, doubled and reordered between lanes and connections. Control goes before bulk.
//! 5. A failed write ends the process, and so does an error of [`Store::turn`].
//! 6. Clocks are read after the events of the turn were gathered; [`Store::lease_until`] is compared with a clock read at each send.
//! 7. A checkpoint may be written at any time up to the applied index; tell it by [`Store::checkpointed`] once it is durable.
//!
//! # Snapshots
//!
//! Sender: [`Machine::snapshot`] gives pages and pins bodies, [`Action::SendSnapshot`] moves the pages, [`Event::SnapshotSent`] ends it.
//! Receiver: [`Event::SnapshotArrived`], [`Action::FetchBodies`]: stage the pages durably, fetch and sync the bodies,
//! [`Event::BodiesDurable`]. Only now is the snapshot stepped into Raft, one log record supersedes the group's old log, and when
//! that is synced the acknowledgement leaves and [`Machine::restore`] makes the staged state the state. A crash before that record is
//! synced leaves the old replica; after it, [`Store::open`] is told the staged snapshot's index.
//!
//! # Replicas
//!
//! [`Store::bootstrap`] when a cluster or shard is formed, [`Store::join`] for a new replica id on a node that has lost its log or
//! gets the group anew, [`Store::open`] after a restart. A replica id is never used again: what came back without its memory must not vote.
//! [`Store::reconcile`] on all nodes with meta's view; whoever leads brings it about.
//!
//! # Invariants
//!
//! - A follower's acknowledgement and a vote leave after the sync that covers them (`group/ready.rs`).
//! - An entry is applied only when it is committed and synced here.
//! - What may be delivered is decided by numbered heartbeat rounds (`lease.rs`), never by the role alone.
//! - Peers' bytes are read by `codec` alone, bounded, never as protobuf.
#![forbid(unsafe_code)]

mod api;
mod clock;
mod codec;
mod config;
mod group;
mod journal;
mod lease;
mod mail;
mod membership;
mod rng;
mod space;
mod storage;
mod store;

pub use api::{
    Action, Event, Frame, GroupStatus, Held, Lane, Machine, Membership, OpenError, Output, ProposeError,
    Replica, Role, SnapshotMeta, SnapshotPages,
};
pub use codec::FRAME_BYTES_MAX;
pub use config::Config;
pub use store::Store;

use longshore_wire::{Index, Term};

/// Every group's log begins after this index, so that a replica without memory always needs a snapshot.
pub const BOOTSTRAP_INDEX: Index = Index(1);
/// The term of [`BOOTSTRAP_INDEX`].
pub const BOOTSTRAP_TERM: Term = Term(1);
