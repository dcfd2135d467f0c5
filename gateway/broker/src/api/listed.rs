//! What administrators list and set.

use super::{ConnectionId, ConnectionInfo, QueueInfo};
use longshore_wire::{NamespaceId, NodeId, SessionId, ShardId};

/// A connection as listed.
#[derive(Clone, Debug)]
pub struct ConnectionListing {
    /// Its id.
    pub id: ConnectionId,
    /// The user.
    pub user: String,
    /// The namespace.
    pub namespace: String,
    /// What the adapter said of it.
    pub info: ConnectionInfo,
    /// Consumers that it has.
    pub consumers: usize,
}

/// A storage node as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeListing {
    /// Its id.
    pub id: NodeId,
    /// Where it is reached.
    pub address: String,
    /// What it fails together with; empty if unknown.
    pub zone: String,
    /// Which Longshore it runs.
    pub version: String,
    /// This gateway has a stream to it.
    pub connected: bool,
    /// Shards of which it has a replica.
    pub shards: usize,
    /// Of these, how many it leads, as far as this gateway knows.
    pub leads: usize,
}

/// A gateway as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayListing {
    /// Its session.
    pub session: SessionId,
    /// Its name.
    pub name: String,
    /// `amqp=host:port`, ...
    pub addresses: Vec<String>,
}

/// A queue as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueListing {
    /// What it is.
    pub info: QueueInfo,
    /// Where it lives.
    pub shard: ShardId,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Counts, unless its leader did not answer.
    pub counts: Option<QueueCounts>,
}

/// Messages and consumers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueueCounts {
    /// Could be delivered now.
    pub ready: u64,
    /// Out with consumers.
    pub unacked: u64,
    /// Consumers.
    pub consumers: u64,
    /// Oldest offset.
    pub first: u64,
    /// Next offset.
    pub next: u64,
}

/// A user as an administrator sets or sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserInfo {
    /// Its name.
    pub name: String,
    /// May do admin calls.
    pub administrator: bool,
    /// `/` if empty.
    pub default_namespace: String,
    /// Only from this machine.
    pub loopback_only: bool,
    /// Namespace name, then configure, write and read patterns.
    pub permissions: Vec<(String, PermissionPatterns)>,
}

/// Regular expressions as RabbitMQ's: empty matches only the empty name.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PermissionPatterns {
    /// See [`Right::Configure`].
    pub configure: String,
    /// See [`Right::Write`].
    pub write: String,
    /// See [`Right::Read`].
    pub read: String,
}
