//! The entities of group 0 and every write to them.
//!
//! Danger: a write that forgets its page is lost at the next restart, one that forgets its change leaves gateways
//! behind. So the fields are written only by the `put_` and `drop_` methods here, which do all three. Called by the
//! modules that decide.

use crate::bindings::Bindings;
use crate::changes::{ChangeLog, Reset};
use crate::pages::PageKey;
use bytes::Bytes;
use longshore_proto::v1::meta_change::Change;
use longshore_proto::v1::{
    Binding, Cluster, Exchange, ExchangeKey, Gateway, MetaChange, MetaNumbers, Namespace, Queue,
    QueueDeleted, Shard, StorageNode, User,
};
use longshore_wire::{Index, LogTime, NodeId, ReplicaId, Revision, SessionId, ShardId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// A name within a namespace.
pub(crate) type Key = (u32, String);

/// The state of group 0.
#[derive(Debug, Default)]
pub struct Meta {
    pub(crate) numbers: MetaNumbers,
    pub(crate) cluster: Option<Cluster>,
    pub(crate) namespaces: BTreeMap<u32, Namespace>,
    pub(crate) users: BTreeMap<String, User>,
    pub(crate) queues: BTreeMap<Key, Queue>,
    /// By log.
    pub(crate) tombstones: BTreeMap<u64, QueueDeleted>,
    pub(crate) exchanges: BTreeMap<Key, Exchange>,
    pub(crate) bindings: Bindings,
    pub(crate) nodes: BTreeMap<u32, StorageNode>,
    pub(crate) shards: BTreeMap<u32, Shard>,
    pub(crate) gateways: BTreeMap<u64, Gateway>,

    // -- derived from the above
    pub(crate) namespace_ids: BTreeMap<String, u32>,
    /// Claims by (session, client connection, queue).
    pub(crate) claims: BTreeSet<(u64, u64, Key)>,
    /// Durable logs per shard.
    pub(crate) shard_logs: BTreeMap<u32, u64>,

    // -- not part of the state
    pub(crate) dirty: BTreeSet<PageKey>,
    /// Of the entry that is being applied.
    pub(crate) fresh: Vec<MetaChange>,
    pub(crate) log: ChangeLog,
}

/// Looking at the state.
impl Meta {
    /// The state before the first entry.
    pub fn new() -> Meta {
        Meta::default()
    }

    /// Index of the last applied entry.
    pub fn applied(&self) -> Index {
        Index(self.numbers.applied_index)
    }

    /// Term of the last applied entry.
    pub fn applied_term(&self) -> Term {
        Term(self.numbers.applied_term)
    }

    /// The group's log time.
    pub fn log_time(&self) -> LogTime {
        LogTime(self.numbers.log_time_ms)
    }

    /// The last change's revision.
    pub fn revision(&self) -> Revision {
        Revision(self.numbers.revision)
    }

    /// The cluster, once it is formed.
    pub fn cluster(&self) -> Option<&Cluster> {
        self.cluster.as_ref()
    }

    /// A namespace by name.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(self.namespace_ids.get(name)?)
    }

    /// A namespace by its id.
    pub fn namespace_by_id(&self, id: u32) -> Option<&Namespace> {
        self.namespaces.get(&id)
    }

    /// A user by name.
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name)
    }

    /// A queue, or a claimed name.
    pub fn queue(&self, namespace: u32, name: &str) -> Option<&Queue> {
        self.queues.get(&(namespace, name.to_owned()))
    }

    /// All queues and claimed names, by namespace and name.
    pub fn queues(&self) -> impl Iterator<Item = &Queue> {
        self.queues.values()
    }

    /// Durable queues that were deleted and whose logs are not yet known to be dropped, by log.
    pub fn tombstones(&self) -> impl Iterator<Item = &QueueDeleted> {
        self.tombstones.values()
    }

    /// An exchange.
    pub fn exchange(&self, namespace: u32, name: &str) -> Option<&Exchange> {
        self.exchanges.get(&(namespace, name.to_owned()))
    }

    /// All bindings, in the order of their making.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.bindings.iter()
    }

    /// A storage node.
    pub fn node(&self, node: NodeId) -> Option<&StorageNode> {
        self.nodes.get(&node.0)
    }

    /// All storage nodes by id, retired ones too.
    pub fn nodes(&self) -> impl Iterator<Item = &StorageNode> {
        self.nodes.values()
    }

    /// A shard's replicas; shard 0 is this group.
    pub fn shard(&self, shard: ShardId) -> Option<&Shard> {
        self.shards.get(&shard.0)
    }

    /// All shards by id, shard 0 first.
    pub fn shards(&self) -> impl Iterator<Item = &Shard> {
        self.shards.values()
    }

    /// The replicas that a node should have, leaving ones left out: shard, replica, whether it is a learner.
    pub fn shards_of(&self, node: NodeId) -> Vec<(ShardId, ReplicaId, bool)> {
        let here = |shard: &Shard| {
            let on_node =
                |replica: &&longshore_proto::v1::Replica| replica.node == node.0 && !replica.leaving;
            shard.replicas.iter().find(on_node).map(|r| (ShardId(shard.id), ReplicaId(r.id), r.learner))
        };
        self.shards.values().filter_map(here).collect()
    }

    /// Gateways with a session, by session.
    pub fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        self.gateways.values()
    }

    /// A gateway by its session.
    pub fn gateway(&self, session: SessionId) -> Option<&Gateway> {
        self.gateways.get(&session.0)
    }

    /// Whether this session was given and is over. One that was never given is not: this replica may be behind.
    pub fn is_session_over(&self, session: SessionId) -> bool {
        let given = 1..=self.numbers.last_session;
        given.contains(&session.0) && !self.gateways.contains_key(&session.0)
    }

    /// Every change after `revision`; nothing if this replica is behind the watcher.
    ///
    /// Errors: [`Reset`] if they are forgotten.
    pub fn changes_since(&self, revision: Revision) -> Result<Vec<MetaChange>, Reset> {
        self.log.since(revision)
    }

    /// The whole state as changes, all with the current revision: tombstones come before the queues that may have
    /// taken their names.
    pub fn whole_state(&self) -> Vec<MetaChange> {
        let cluster = self.cluster.clone().map(|mut cluster| {
            cluster.sessions_given = self.numbers.last_session;
            Change::Cluster(cluster)
        });
        cluster
            .into_iter()
            .chain(self.nodes.values().cloned().map(Change::Node))
            .chain(self.shards.values().cloned().map(Change::Shard))
            .chain(self.namespaces.values().cloned().map(Change::Namespace))
            .chain(self.users.values().cloned().map(Change::User))
            .chain(self.tombstones.values().cloned().map(Change::QueueDeleted))
            .chain(self.queues.values().cloned().map(Change::Queue))
            .chain(self.exchanges.values().cloned().map(Change::Exchange))
            .chain(self.bindings.iter().cloned().map(Change::Binding))
            .chain(self.gateways.values().cloned().map(Change::Gateway))
            .map(|change| MetaChange { revision: self.numbers.revision, change: Some(change) })
            .collect()
    }
}

/// Writing: the field, its page and its change.
impl Meta {
    fn tell(&mut self, change: Change) {
        self.numbers.revision += 1;
        let change = MetaChange { revision: self.numbers.revision, change: Some(change) };
        self.log.push(&change);
        self.fresh.push(change);
    }

    /// The revision that the next change will have.
    pub(crate) fn next_revision(&self) -> u64 {
        self.numbers.revision + 1
    }

    pub(crate) fn put_cluster(&mut self, cluster: Cluster) {
        self.dirty.insert(PageKey::Cluster);
        self.cluster = Some(cluster.clone());
        self.tell(Change::Cluster(cluster));
    }

    pub(crate) fn put_namespace(&mut self, namespace: Namespace) {
        self.dirty.insert(PageKey::Namespace(namespace.id));
        self.namespace_ids.insert(namespace.name.clone(), namespace.id);
        self.namespaces.insert(namespace.id, namespace.clone());
        self.tell(Change::Namespace(namespace));
    }

    pub(crate) fn drop_namespace(&mut self, id: u32) {
        if let Some(old) = self.namespaces.remove(&id) {
            self.dirty.insert(PageKey::Namespace(id));
            self.namespace_ids.remove(&old.name);
            self.tell(Change::NamespaceDeleted(id));
        }
    }

    /// Its version becomes the change's revision, so that a user made again is never taken for the one before.
    pub(crate) fn put_user(&mut self, mut user: User) {
        user.version = self.next_revision();
        self.dirty.insert(PageKey::User(user.name.clone()));
        self.users.insert(user.name.clone(), user.clone());
        self.tell(Change::User(user));
    }

    pub(crate) fn drop_user(&mut self, name: &str) {
        if self.users.remove(name).is_some() {
            self.dirty.insert(PageKey::User(name.to_owned()));
            self.tell(Change::UserDeleted(name.to_owned()));
        }
    }

    pub(crate) fn put_queue(&mut self, queue: Queue) {
        let key = (queue.namespace, queue.name.clone());
        self.forget_queue(&key);
        self.dirty.insert(PageKey::Queue(key));
        self.note_queue(queue.clone());
        self.tell(Change::Queue(queue));
    }

    /// Adds a queue to the maps, without page and change.
    pub(crate) fn note_queue(&mut self, queue: Queue) {
        let key = (queue.namespace, queue.name.clone());
        if queue.owner_session != 0 {
            self.claims.insert((queue.owner_session, queue.owner, key.clone()));
        }
        if queue.durable {
            for span in &queue.spans {
                *self.shard_logs.entry(span.shard).or_default() += 1;
            }
        }
        self.queues.insert(key, queue);
    }

    fn forget_queue(&mut self, key: &Key) -> Option<Queue> {
        let old = self.queues.remove(key)?;
        self.claims.remove(&(old.owner_session, old.owner, key.clone()));
        if old.durable {
            for span in &old.spans {
                if let Some(count) = self.shard_logs.get_mut(&span.shard) {
                    *count = count.saturating_sub(1);
                }
            }
        }
        Some(old)
    }

    /// A durable queue leaves a tombstone.
    pub(crate) fn drop_queue(&mut self, key: &Key) -> Option<Queue> {
        let old = self.forget_queue(key)?;
        self.dirty.insert(PageKey::Queue(key.clone()));
        let deleted = QueueDeleted {
            namespace: old.namespace,
            name: old.name.clone(),
            log: old.log,
            spans: old.spans.clone(),
            revision: self.next_revision(),
        };
        if old.durable {
            self.dirty.insert(PageKey::Tombstone(old.log));
            self.tombstones.insert(old.log, deleted.clone());
        }
        self.tell(Change::QueueDeleted(deleted));
        Some(old)
    }

    /// Watchers are not told: a tombstone that is no longer needed changes nothing for them.
    pub(crate) fn drop_tombstone(&mut self, log: u64) {
        if self.tombstones.remove(&log).is_some() {
            self.dirty.insert(PageKey::Tombstone(log));
        }
    }

    pub(crate) fn put_exchange(&mut self, exchange: Exchange) {
        let key = (exchange.namespace, exchange.name.clone());
        self.dirty.insert(PageKey::Exchange(key.clone()));
        self.exchanges.insert(key, exchange.clone());
        self.tell(Change::Exchange(exchange));
    }

    pub(crate) fn drop_exchange(&mut self, key: &Key) {
        if self.exchanges.remove(key).is_some() {
            self.dirty.insert(PageKey::Exchange(key.clone()));
            self.tell(Change::ExchangeDeleted(ExchangeKey { namespace: key.0, name: key.1.clone() }));
        }
    }

    /// Without a change: the namespace's own tells it.
    pub(crate) fn drop_exchange_silently(&mut self, key: Key) {
        self.exchanges.remove(&key);
        self.dirty.insert(PageKey::Exchange(key));
    }

    pub(crate) fn put_binding(&mut self, binding: Binding) {
        self.numbers.last_binding += 1;
        let id = self.numbers.last_binding;
        self.dirty.insert(PageKey::Binding(id));
        self.bindings.insert(id, binding.clone());
        self.tell(Change::Binding(binding));
    }

    pub(crate) fn drop_binding(&mut self, id: u64) -> Option<Binding> {
        let old = self.drop_binding_silently(id)?;
        self.tell(Change::BindingDeleted(old.clone()));
        Some(old)
    }

    /// Without a change: the namespace's own tells it.
    pub(crate) fn drop_binding_silently(&mut self, id: u64) -> Option<Binding> {
        let old = self.bindings.remove(id)?;
        self.dirty.insert(PageKey::Binding(id));
        Some(old)
    }

    pub(crate) fn put_node(&mut self, node: StorageNode) {
        self.dirty.insert(PageKey::Node(node.id));
        self.nodes.insert(node.id, node.clone());
        self.tell(Change::Node(node));
    }

    pub(crate) fn drop_node(&mut self, id: u32) {
        if self.nodes.remove(&id).is_some() {
            self.dirty.insert(PageKey::Node(id));
            self.tell(Change::NodeRemoved(id));
        }
    }

    pub(crate) fn put_shard(&mut self, mut shard: Shard) {
        shard.revision = self.next_revision();
        self.dirty.insert(PageKey::Shard(shard.id));
        self.shards.insert(shard.id, shard.clone());
        self.tell(Change::Shard(shard));
    }

    pub(crate) fn put_gateway(&mut self, gateway: Gateway) {
        self.dirty.insert(PageKey::Gateway(gateway.session));
        self.gateways.insert(gateway.session, gateway.clone());
        self.tell(Change::Gateway(gateway));
    }

    pub(crate) fn drop_gateway(&mut self, session: u64) {
        if self.gateways.remove(&session).is_some() {
            self.dirty.insert(PageKey::Gateway(session));
            self.tell(Change::GatewayGone(session));
        }
    }

    /// Pages that changed since the last call, `None` for removed ones.
    pub fn take_dirty_pages(&mut self) -> Vec<(Bytes, Option<Bytes>)> {
        let dirty = std::mem::take(&mut self.dirty);
        dirty.into_iter().map(|key| (key.encode(), self.page(&key))).collect()
    }
}
