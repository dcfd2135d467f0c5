//! A storage node without runtime: the node log, Raft groups, shards, delivery and meta put together in one
//! single-threaded turn.
//!
//! [`Node::turn`] takes what happened ([`Input`]) and says what to do ([`Output`]); blocking work leaves as [`Task`]s. The shipped
//! server gives it threads and gRPC, the simulation one seeded loop. There is no clock, file or thread in here
//! but what [`longshore_io`] abstracts.
//!
//! | module | what |
//! |---|---|
//! | [`io`] | inputs, outputs, tasks |
//! | `node`, `node/open` | the turn; opening what the data directory holds |
//! | `host` | the machines behind consensus |
//! | `shard_host` | one shard: state, delivery |
//! | `meta_host` | group 0: commands, followers, leases |
//! | `gateway_items` | what gateways ask |
//! | `links` | what goes to gateways, in order |
//! | `transient_uploads` | large bodies on their way to queues in memory |
//! | `bodies` | reading, exporting, repairing records |
//! | `checkpoints`, `snapshots` | state on disk and between nodes |
//! | `reconcile`, `requests` | bringing this node to what meta says; asking it for new replicas |
//! | `usage` | durable queues that end by themselves |
//! | `segments` | the node log's segments for the record store |
//! | `inspect`, `explain` | JSON for people |
//! | `gauges` | what metrics show |
#![forbid(unsafe_code)]

mod bodies;
mod checkpoints;
mod explain;
mod gateway_items;
mod gauges;
mod host;
mod inspect;
pub mod io;
mod links;
mod meta_host;
mod node;
mod pages;
mod reconcile;
mod requests;
mod segments;
mod shard_host;
mod snapshots;
#[cfg(test)]
mod testing;
mod transient_uploads;
mod usage;

pub use io::{
    FetchSend, Input, LinkId, LinkItem, Output, Reply, SnapshotSend, Standing, Task, TaskDone, Ticket,
    WatchId,
};
pub use node::{Node, NodeError, OpenError};
pub use pages::snapshot_meta;

use longshore_wire::{NodeId, ShardId};

/// The Raft group that replicates meta.
pub const META: ShardId = ShardId(0);

/// What a node is made with.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// The cluster that it belongs to.
    pub cluster: String,
    /// Its id in that cluster.
    pub node: NodeId,
    /// Consensus.
    pub consensus: longshore_consensus::Config,
    /// The node log.
    pub log: longshore_log::LogConfig,
    /// The record store.
    pub records: longshore_records::Config,
    /// Checkpoints.
    pub checkpoint: longshore_checkpoint::Config,
    /// Delivery.
    pub delivery: longshore_delivery::Config,
    /// A group's checkpoint is due after this much of its log, in bytes.
    pub checkpoint_bytes: u64,
    /// Below this much free disk, publishes are refused, in bytes.
    pub reserve_bytes: u64,
    /// Bytes that a rewrite may copy in a second.
    pub rewrite_bytes_per_s: u64,
}
