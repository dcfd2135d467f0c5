//! The gateway's copy of what meta knows: namespaces, users, queues, exchanges, bindings, nodes, shards, gateways.
//!
//! Danger: a gateway confirms by this view, so a change that is skipped or applied half is a message lost.
//! Changes come in order from `Meta.Watch` through [`Metadata::apply`], one caller; every publish reads. A namespace has a lock
//! and a version of its own, so that a stream of bindings copies nothing and stops nobody for long.

mod apply;
pub mod convert;
#[cfg(test)]
mod tests;

use crate::api::*;
use crate::routing::{Exchanges, Input, Matched};
use longshore_proto::v1;
use longshore_wire::spec::LogSpec;
use longshore_wire::{LogId, NamespaceId, Reader, ShardId};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// What changed, for whoever must act on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ViewEvent {
    /// A user was made, changed or deleted.
    User(String),
    /// A namespace is gone.
    NamespaceDeleted(NamespaceId),
    /// Storage nodes, or which nodes hold a shard.
    Topology,
}

/// A queue that meta knows.
#[derive(Clone, Debug, PartialEq)]
pub struct QueueEntry {
    /// As meta has it; for transient ones the log is not used (`spans` neither).
    pub queue: v1::Queue,
    /// Settings of its log.
    pub spec: LogSpec,
}

impl QueueEntry {
    fn new(queue: v1::Queue) -> QueueEntry {
        let spec =
            LogSpec::decode(&mut Reader::new(queue.spec.clone(), "queue spec")).unwrap_or(LogSpec::QUEUE);
        QueueEntry { queue, spec }
    }

    /// Its log, and the shard in which that goes on now.
    pub fn place(&self) -> (LogId, ShardId) {
        let shard = self.queue.spans.last().map_or(0, |span| span.shard);
        (LogId(self.queue.log), ShardId(shard))
    }
}

/// Where a message goes, resolved to logs.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// Durable targets: per shard the logs, both sorted.
    pub durable: Vec<(ShardId, Vec<LogId>)>,
    /// Transient queues by name; their logs change with their leader.
    pub transient: Vec<Arc<str>>,
    /// Names on the default exchange (of the routing key, CC and BCC) that the view lacks: transient queues may have
    /// them. Sorted.
    pub unknown: Vec<Arc<str>>,
}

impl Route {
    /// Whether nothing is known to want the message.
    pub fn is_empty(&self) -> bool {
        self.durable.is_empty() && self.transient.is_empty() && self.unknown.is_empty()
    }
}

/// The contents of a namespace.
#[derive(Debug)]
pub struct NamespaceState {
    queues: HashMap<Arc<str>, Arc<QueueEntry>>,
    exchanges: Exchanges,
}

impl NamespaceState {
    fn new(arguments: ArgumentsReader) -> NamespaceState {
        NamespaceState { queues: HashMap::new(), exchanges: Exchanges::new(arguments) }
    }
}

/// A namespace. Connections keep it; its contents change under them.
#[derive(Debug)]
pub struct Namespace {
    /// Its id.
    pub id: NamespaceId,
    /// Its name.
    pub name: Arc<str>,
    version: AtomicU64,
    state: RwLock<NamespaceState>,
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    // A poisoned lock means a panic in a writer, which ends the process in release builds.
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

impl Namespace {
    fn new(id: NamespaceId, name: &str, state: NamespaceState) -> Namespace {
        Namespace { id, name: name.into(), version: AtomicU64::new(1), state: RwLock::new(state) }
    }

    /// Grows with each change in the namespace; cached routes of an older version are stale.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    fn change<R>(&self, change: impl FnOnce(&mut NamespaceState) -> R) -> R {
        let mut state = write(&self.state);
        let result = change(&mut state);
        // Within the lock: whoever routes after it sees the new version.
        self.version.fetch_add(1, Ordering::Release);
        result
    }

    /// The queue of that name.
    pub fn queue(&self, name: &str) -> Option<Arc<QueueEntry>> {
        read(&self.state).queues.get(name).cloned()
    }

    /// All queues, by name.
    pub fn queues(&self) -> Vec<Arc<QueueEntry>> {
        let mut all: Vec<_> = read(&self.state).queues.values().cloned().collect();
        all.sort_by(|a, b| a.queue.name.cmp(&b.queue.name));
        all
    }

    /// The exchange of that name.
    pub fn exchange(&self, name: &str) -> Option<Arc<ExchangeInfo>> {
        read(&self.state).exchanges.exchange(name).cloned()
    }

    /// All exchanges, by name.
    pub fn exchanges(&self) -> Vec<Arc<ExchangeInfo>> {
        read(&self.state).exchanges.exchanges()
    }

    /// All bindings.
    pub fn bindings(&self) -> Vec<BindingInfo> {
        read(&self.state).exchanges.bindings()
    }

    /// Whether a binding exists.
    pub fn is_bound(&self, binding: &BindingInfo) -> bool {
        read(&self.state).exchanges.is_bound(binding)
    }

    /// Whether an exchange has bindings.
    pub fn has_bindings(&self, exchange: &str) -> bool {
        read(&self.state).exchanges.has_bindings(exchange)
    }

    /// Routes a message; the second value says whether the route may be cached under (exchange, key) as long as
    /// the third, the version, holds. `None`: no such exchange.
    pub fn route(&self, exchange: &str, input: &Input<'_>) -> Option<(Route, bool, u64)> {
        let state = read(&self.state);
        let version = self.version();
        let mut route = Route::default();
        let matched = match exchange.is_empty() {
            true => Matched { by_name: true, cacheable: input.more_keys.is_empty(), ..Matched::default() },
            false => state.exchanges.route(exchange, input)?,
        };
        if matched.by_name {
            for key in std::iter::once(&input.key).chain(input.more_keys) {
                let Ok(name) = std::str::from_utf8(key) else { continue };
                match state.queues.get_key_value(name) {
                    Some((name, entry)) => add_target(&mut route, name, entry),
                    None => route.unknown.push(name.into()),
                }
            }
        }
        for name in &matched.queues {
            if let Some(entry) = state.queues.get(name) {
                add_target(&mut route, name, entry);
            }
        }
        finish(&mut route);
        let cacheable = matched.cacheable && route.unknown.is_empty();
        Some((route, cacheable, version))
    }
}

fn add_target(route: &mut Route, name: &Arc<str>, entry: &QueueEntry) {
    if !entry.queue.durable {
        route.transient.push(name.clone());
        return;
    }
    let (log, shard) = entry.place();
    match route.durable.iter_mut().find(|(s, _)| *s == shard) {
        Some((_, logs)) => logs.push(log),
        None => route.durable.push((shard, vec![log])),
    }
}

fn finish(route: &mut Route) {
    route.durable.sort_unstable();
    for (_, logs) in &mut route.durable {
        logs.sort_unstable();
        logs.dedup();
    }
    route.transient.sort_unstable();
    route.transient.dedup();
    route.unknown.sort_unstable();
    route.unknown.dedup();
}

#[derive(Debug, Default)]
struct Global {
    namespaces: BTreeMap<u32, Arc<Namespace>>,
    users: BTreeMap<String, Arc<v1::User>>,
    nodes: BTreeMap<u32, v1::StorageNode>,
    shards: BTreeMap<u32, v1::Shard>,
    gateways: BTreeMap<u64, v1::Gateway>,
    cluster: Option<v1::Cluster>,
}

/// The view. Shared by all connections of the gateway.
#[derive(Debug)]
pub struct Metadata {
    arguments: ArgumentsReader,
    global: RwLock<Global>,
    revision: AtomicU64,
    staging: std::sync::Mutex<Option<apply::Staging>>,
}

impl Metadata {
    /// Empty, at revision 0.
    pub fn new(arguments: ArgumentsReader) -> Metadata {
        Metadata {
            arguments,
            global: RwLock::new(Global::default()),
            revision: AtomicU64::new(0),
            staging: std::sync::Mutex::new(None),
        }
    }

    /// Everything up to here is contained.
    pub fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// The namespace of that name.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        read(&self.global).namespaces.values().find(|ns| &*ns.name == name).cloned()
    }

    /// The namespace of that id.
    pub fn namespace_by_id(&self, id: NamespaceId) -> Option<Arc<Namespace>> {
        read(&self.global).namespaces.get(&id.0).cloned()
    }

    /// All namespaces, by id.
    pub fn namespaces(&self) -> Vec<Arc<Namespace>> {
        read(&self.global).namespaces.values().cloned().collect()
    }

    /// The user of that name.
    pub fn user(&self, name: &str) -> Option<Arc<v1::User>> {
        read(&self.global).users.get(name).cloned()
    }

    /// All users, by name.
    pub fn users(&self) -> Vec<Arc<v1::User>> {
        read(&self.global).users.values().cloned().collect()
    }

    /// Nodes in service.
    pub fn nodes(&self) -> Vec<v1::StorageNode> {
        read(&self.global).nodes.values().filter(|node| !node.retired).cloned().collect()
    }

    /// The shards that hold logs (all but meta's own).
    pub fn shards(&self) -> Vec<v1::Shard> {
        read(&self.global).shards.values().filter(|shard| shard.id != 0).cloned().collect()
    }

    /// Gateways with a lease.
    pub fn gateways(&self) -> Vec<v1::Gateway> {
        read(&self.global).gateways.values().cloned().collect()
    }

    /// The cluster, once it is formed.
    pub fn cluster(&self) -> Option<v1::Cluster> {
        read(&self.global).cluster.clone()
    }

    /// The shard that keeps a transient queue of this name; `None` before the cluster is known. Every gateway
    /// must answer alike, so the hash is FNV-1a over the namespace's id (little-endian) and the name, for ever.
    pub fn transient_shard(&self, namespace: NamespaceId, name: &str) -> Option<ShardId> {
        let shards = read(&self.global).cluster.as_ref()?.shards;
        if shards == 0 {
            return None;
        }
        let bytes = namespace.0.to_le_bytes().into_iter().chain(name.bytes());
        let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
        });
        Some(ShardId((hash >> 16) as u32 % shards + 1))
    }
}
