//! Meta: the state machine of group 0. What exists in the cluster, and where it is.
//!
//! Duty: decide commands one after the other, equally on every replica, and tell watchers what changed.
//! Danger: every gateway routes by this. [`Meta::apply`] must therefore depend on nothing but the state and the
//! entry: no clock, no randomness, no map with an order of its own. No bytes may make it panic.
//! Called by the node crate: `apply` from Raft, the look-ups from the Meta service, [`Leases`] on group 0's leader.
//!
//! The life of a command: proposed by the leader as the bytes of a `MetaCommand` · committed · [`Meta::apply`] on each
//! replica · the leader answers with [`Applied::reply`], watchers get [`Applied::changes`] · where the client must be
//! able to rely on it, [`Leases::barrier`] waits until every live gateway has applied the revision.
//!
//! | module | what |
//! |---|---|
//! | [`limits`] | every bound, by name |
//! | `state` | the entities, look-ups; every write goes through here |
//! | `apply` | from bytes to a decision |
//! | `cluster` | forming, storage nodes |
//! | `replicas` | the shards' replicas, and replacing them |
//! | `placement` | which nodes hold which shard of a new cluster |
//! | `gateways` | sessions, and what goes with them |
//! | `namespaces` | namespaces, users, permissions |
//! | `queues`, `exchanges`, `bindings` | what their names say |
//! | `pages` | checkpoints and snapshots |
//! | `changes` | the recent past, for watchers |
//! | [`leases`] | volatile, leader only: gateway leases and barriers |
#![forbid(unsafe_code)]

mod apply;
mod bindings;
mod changes;
mod cluster;
mod exchanges;
mod gateways;
pub mod leases;
pub mod limits;
mod namespaces;
mod pages;
mod placement;
mod queues;
mod replicas;
mod state;

pub use changes::Reset;
pub use leases::{Heard, Leases};
pub use pages::RestoreError;
pub use placement::first_nodes;
pub use replicas::ReplicaChange;
pub use state::Meta;

use longshore_proto::v1::{MetaChange, MetaReply};

/// The id of the namespace `/`.
pub const ROOT_NAMESPACE: u32 = 1;
/// Copies of each shard, where there are enough nodes.
pub const COPIES: usize = 3;
/// Version of the state that this build forms clusters with.
pub const FORMAT: u32 = 1;
/// The exchanges that every namespace has, with their kinds; the default exchange, whose name is empty, is implicit.
pub const PREDECLARED: [(&str, &str); 5] = [
    ("amq.direct", "direct"),
    ("amq.fanout", "fanout"),
    ("amq.topic", "topic"),
    ("amq.headers", "headers"),
    ("amq.match", "headers"),
];

/// What applying an entry gave.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Applied {
    /// The answer to whoever proposed it.
    pub reply: MetaReply,
    /// What changed, in order, each with a revision of its own; empty if nothing did.
    pub changes: Vec<MetaChange>,
}
