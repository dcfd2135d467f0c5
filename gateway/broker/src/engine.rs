//! One session of the gateway: its shards, links, connections and requests. Ends with its lease; the next session
//! is a new engine.
//!
//! Danger: locks are taken one at a time, never one inside another, but for `Shard` (which pushes to an outbox).

use crate::api::*;
use crate::broker::BrokerConfig;
use crate::budget::Budget;
use crate::connection_state::ConnectionState;
use crate::lease::Lease;
use crate::mail::Mail;
use crate::meta_batch::MetaBatch;
use crate::metadata::Metadata;
use crate::outbox::Outbox;
use crate::requests::{Leased, Reply, Requests};
use crate::session::consumers::AttachResult;
use crate::shard::{Appends, Owner, Shard, message};
use crate::transients::Transients;
use bytes::Bytes;
use longshore_proto::v1::{self, node_item::Item};
use longshore_wire::{NodeId, SessionId, ShardId, Term};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::oneshot;

/// How often declined batches are tried again.
const TICK: Duration = Duration::from_millis(100);
/// After how many ticks an attach without an answer is sent again.
const ATTACH_TICKS: u32 = 10;

/// Who says that publishes must wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum BlockedBy {
    Node(NodeId),
    Shard(ShardId),
}

/// A consumer that the gateway has.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerPlace {
    pub queue: Arc<str>,
    pub namespace: Arc<crate::metadata::Namespace>,
}

type AttachAnswer = Result<(), BrokerError>;

/// See the module.
#[derive(Debug)]
pub(crate) struct Engine {
    pub session: SessionId,
    /// Follows the view's revision.
    pub revision: tokio::sync::watch::Receiver<u64>,
    pub config: Arc<BrokerConfig>,
    pub view: Arc<Metadata>,
    pub lease: Arc<Lease>,
    pub meta: MetaBatch,
    pub requests: Requests,
    pub transients: Transients,
    pub budget: Arc<Budget>,
    runtime: tokio::runtime::Handle,
    shards: RwLock<HashMap<ShardId, Arc<Shard>>>,
    links: Mutex<HashMap<NodeId, (String, tokio::task::AbortHandle)>>,
    outboxes: RwLock<HashMap<NodeId, Arc<Outbox>>>,
    connections: RwLock<HashMap<ConnectionId, Arc<ConnectionState>>>,
    attaches: Mutex<HashMap<u64, oneshot::Sender<AttachAnswer>>>,
    consumers: Mutex<HashMap<u64, ConsumerPlace>>,
    blocked: Mutex<BTreeMap<BlockedBy, String>>,
    appends: Appends,
    next_id: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Engine {
    /// An engine for a session that meta gave; it does nothing before [`Engine::run`].
    pub fn new(
        session: SessionId,
        config: Arc<BrokerConfig>,
        view: Arc<Metadata>,
        revision: tokio::sync::watch::Receiver<u64>,
        meta: MetaBatch,
    ) -> Engine {
        let budget = config.pending_bytes_max;
        Engine {
            session,
            revision,
            config,
            view,
            lease: Arc::new(Lease::new()),
            meta,
            requests: Requests::default(),
            transients: Transients::default(),
            budget: Arc::new(Budget::new(budget)),
            runtime: tokio::runtime::Handle::current(),
            shards: RwLock::default(),
            links: Mutex::default(),
            outboxes: RwLock::default(),
            connections: RwLock::default(),
            attaches: Mutex::default(),
            consumers: Mutex::default(),
            blocked: Mutex::default(),
            appends: Appends::default(),
            next_id: AtomicU64::new(1),
        }
    }

    /// The engine's housekeeping; ends with the lease.
    pub async fn run(self: Arc<Self>) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        let mut ticks = 0_u32;
        while !self.lease.is_lost() {
            tick.tick().await;
            ticks = ticks.wrapping_add(1);
            for shard in self.shards() {
                shard.tick(ticks.is_multiple_of(ATTACH_TICKS));
            }
        }
        self.end(CloseReason::LeaseLost);
    }

    /// Waits until every live gateway, and this one, has applied a revision.
    pub async fn applied_everywhere(&self, revision: u64) -> Result<(), BrokerError> {
        self.meta.barrier(revision).await?;
        let mut receiver = self.revision.clone();
        let applied = receiver.wait_for(|applied| *applied >= revision);
        match tokio::time::timeout(self.config.operation_timeout, applied).await {
            Ok(Ok(_)) => Ok(()),
            _ => Err(BrokerError::Unavailable("the change did not reach this gateway in time")),
        }
    }

    /// A task of this session.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.runtime.spawn(task);
    }

    /// An id for a connection, consumer, request or upload; unique within the session, never 0.
    pub fn next_id(&self) -> u64 {
        self.next_id.fetch_add(1, Ordering::Relaxed)
    }

    /// The shard of that id.
    pub fn shard(&self, id: ShardId) -> Arc<Shard> {
        if let Some(shard) = self.shards.read().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return shard.clone();
        }
        let mut shards = self.shards.write().unwrap_or_else(PoisonError::into_inner);
        let new = || Shard::new(id, self.session, self.lease.clone(), self.appends.clone());
        shards.entry(id).or_insert_with(|| Arc::new(new())).clone()
    }

    fn shards(&self) -> Vec<Arc<Shard>> {
        self.shards.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes the links that the view asks for, and ends those to nodes that are gone.
    pub fn sync_links(self: &Arc<Self>) {
        let nodes = self.view.nodes().into_iter();
        let wanted: BTreeMap<NodeId, String> = nodes.map(|node| (NodeId(node.id), node.address)).collect();
        let gone: Vec<(NodeId, tokio::task::AbortHandle)> = lock(&self.links)
            .extract_if(|node, (address, _)| wanted.get(node) != Some(address))
            .map(|(node, (_, task))| (node, task))
            .collect();
        for (node, task) in gone {
            task.abort();
            let outbox = self.outboxes.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
            if let Some(outbox) = outbox {
                outbox.close();
            }
            // The task does not say so itself any more.
            self.link_down(node);
        }
        let mut links = lock(&self.links);
        for (node, address) in wanted {
            links.entry(node).or_insert_with(|| {
                let task = crate::link::run(self.clone(), node, address.clone());
                (address, self.runtime.spawn(task).abort_handle())
            });
        }
    }

    /// A stream to a node is open.
    pub fn link_up(self: &Arc<Self>, node: NodeId, outbox: &Arc<Outbox>) {
        self.outboxes.write().unwrap_or_else(PoisonError::into_inner).insert(node, outbox.clone());
        for shard in self.shards() {
            if shard.link_up(node, outbox) {
                self.recover_transients(shard.id);
            }
        }
    }

    /// Whether a stream to a node is open.
    pub fn is_linked(&self, node: NodeId) -> bool {
        self.outboxes.read().unwrap_or_else(PoisonError::into_inner).contains_key(&node)
    }

    /// The stream to a node died.
    pub fn link_down(self: &Arc<Self>, node: NodeId) {
        self.outboxes.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
        for shard in self.shards() {
            shard.link_down(node);
        }
        self.requests.link_down(node);
        self.set_blocked(BlockedBy::Node(node), None);
        let mut mail = Mail::default();
        for ticket in self.transients.link_down(node) {
            let why = BrokerError::Unavailable("the transient queue's node was lost");
            mail.resolve(&ticket, PublishResult::Refused(why));
        }
        self.post(mail);
    }

    /// Everything that a node says.
    pub fn on_frame(self: &Arc<Self>, node: NodeId, frame: v1::NodeFrame) {
        let mut mail = Mail::default();
        for item in frame.items {
            if let Some(item) = item.item {
                self.on_item(node, item, &mut mail);
            }
        }
        self.post(mail);
    }

    fn on_item(self: &Arc<Self>, node: NodeId, item: Item, mail: &mut Mail) {
        match item {
            Item::Outcome(answer) => self.on_outcome(node, answer, mail),
            Item::Deliver(deliver) => {
                let term = Term(deliver.term);
                let shard = self.shard(ShardId(deliver.shard));
                for (delivery, pieces) in shard.with(|state| state.deliver(shard.id, deliver, mail)) {
                    let key = (delivery.log, delivery.offset);
                    if let Some((request, ready)) = self.requests.take_open_get(key) {
                        self.got_whole(request, ready, term, delivery, pieces);
                    }
                }
            }
            Item::Leader(leader) => self.on_leader(leader),
            Item::Attached(answer) => self.on_attached(&answer, mail),
            Item::Cancelled(cancelled) => {
                let shard = self.shard(ShardId(cancelled.shard));
                if let Some(owner) = shard.with(|state| state.consumers.cancelled(cancelled.consumer)) {
                    self.consumer_ended(cancelled.consumer, owner, mail);
                }
            }
            Item::Got(got) => self.on_got(got),
            Item::Answer(answer) => {
                if let Some(result) = answer.result {
                    self.requests.resolve(answer.request, Reply::Answer(result));
                }
            }
            Item::TransientOutcome(outcome) => self.on_transient_outcome(&outcome, mail),
            Item::Blocked(blocked) => {
                let reason = blocked.blocked.then_some(blocked.reason);
                if reason.is_none() {
                    self.unblock(node);
                }
                self.set_blocked(BlockedBy::Node(node), reason);
            }
            Item::Welcome(_) => {}
        }
    }

    fn on_outcome(&self, node: NodeId, answer: v1::BatchOutcome, mail: &mut Mail) {
        let shard = self.shard(ShardId(answer.shard));
        let (result, blocked) = shard.with(|state| {
            let result = state.outcome(node, answer, mail);
            (result, state.sender.is_blocked())
        });
        if let Err(error) = result {
            // What has no outcome is unknown now; it never goes out under another session.
            tracing::error!(shard = %shard.id, %error, "the session cannot go on, a new one begins");
            self.lease.lose();
        }
        let reason = blocked.then(|| "low on disk".to_owned());
        self.set_blocked(BlockedBy::Shard(shard.id), reason);
    }

    fn on_leader(self: &Arc<Self>, leader: v1::Leader) {
        let node = (leader.node != 0).then_some(NodeId(leader.node));
        let shard = self.shard(ShardId(leader.shard));
        let outbox = node.and_then(|node| {
            self.outboxes.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
        });
        if leader.term != 0 && shard.set_leader(Term(leader.term), node, outbox) {
            self.recover_transients(shard.id);
        }
        if let Some((_, node)) = shard.leader().0 {
            self.requests.leader_changed(shard.id, node);
        }
        if leader.request != 0 {
            self.requests.again(leader.request);
            if let Some(ticket) = self.transients.not_leader(leader.request) {
                let mut mail = Mail::default();
                let why = BrokerError::Unavailable("the transient queue's leader changed");
                mail.resolve(&ticket, PublishResult::Refused(why));
                self.post(mail);
            }
        }
    }

    fn on_attached(&self, answer: &v1::Attached, mail: &mut Mail) {
        let shard = self.shard(ShardId(answer.shard));
        let (result, owner) = shard.with(|state| state.attached(answer));
        let waiter = || lock(&self.attaches).remove(&answer.consumer);
        match (result, owner) {
            (AttachResult::Made | AttachResult::Back, _) => {
                if let Some(waiter) = waiter() {
                    let _ = waiter.send(Ok(()));
                }
            }
            (AttachResult::Refused(reason), Some(owner)) => match waiter() {
                Some(waiter) => {
                    let place = lock(&self.consumers).remove(&answer.consumer);
                    let queue = place.map_or_else(String::new, |place| place.queue.to_string());
                    let _ = waiter.send(Err(refused(reason, &queue)));
                }
                None => self.consumer_ended(answer.consumer, owner, mail),
            },
            _ => {}
        }
    }

    fn on_got(&self, got: v1::Got) {
        let Some(pending) = self.requests.get_of(got.request) else { return };
        let Some(delivery) = got.delivery else {
            return self.requests.resolve(got.request, Reply::Got { delivery: None, ready: got.ready });
        };
        let term = Term(got.term);
        let key = (delivery.log, delivery.offset);
        match self.shard(pending.shard).with(|state| state.got(delivery)) {
            Some((delivery, pieces)) => self.got_whole(got.request, got.ready, term, delivery, pieces),
            None => self.requests.open_get(key, got.request, got.ready),
        }
    }

    /// A get's message is there. Only now it counts as held: one whose pieces do not all come is not reported to the
    /// next leader, which so delivers it again.
    fn got_whole(&self, request: u64, ready: u64, term: Term, delivery: v1::Delivery, pieces: Vec<Bytes>) {
        let Some(pending) = self.requests.get_of(request) else { return };
        let shard = self.shard(pending.shard);
        let owner = Owner { connection: pending.connection, tag: None };
        shard.with(|state| state.consumers.got(term, &delivery, owner));
        let delivery =
            message(shard.id, term, delivery, pieces, None).map(|delivery| Leased::new(shard, delivery));
        self.requests.resolve(request, Reply::Got { delivery, ready });
    }

    /// A consumer ended without its connection's asking.
    pub fn consumer_ended(&self, id: u64, owner: Owner, mail: &mut Mail) {
        lock(&self.consumers).remove(&id);
        if let Some(waiter) = lock(&self.attaches).remove(&id) {
            let _ = waiter.send(Err(BrokerError::NotFound { what: "queue", name: String::new() }));
            return;
        }
        if let Some(tag) = owner.tag {
            if let Some(connection) = self.connection(owner.connection) {
                connection.forget_consumer(tag);
            }
            mail.to(owner.connection).cancelled.push(tag);
        }
    }

    /// Notes a consumer; the receiver gets the answer to its attach.
    pub fn expect_attach(&self, id: u64, place: ConsumerPlace) -> oneshot::Receiver<AttachAnswer> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.consumers).insert(id, place);
        lock(&self.attaches).insert(id, sender);
        receiver
    }

    /// A consumer is gone, or was given up.
    pub fn forget_consumer(&self, id: u64) {
        lock(&self.consumers).remove(&id);
        lock(&self.attaches).remove(&id);
    }

    /// What is known of a consumer.
    pub fn consumer(&self, id: u64) -> Option<ConsumerPlace> {
        lock(&self.consumers).get(&id).cloned()
    }

    /// Hands out what a frame meant.
    pub fn post(&self, mail: Mail) {
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        for (id, letter) in mail.into_letters() {
            // Also of a connection that is gone.
            self.budget.complete(letter.bytes);
            if let Some(connection) = connections.get(&id) {
                connection.receive(letter);
            }
        }
    }

    fn set_blocked(&self, by: BlockedBy, reason: Option<String>) {
        let mut blocked = lock(&self.blocked);
        if blocked.get(&by).is_some() == reason.is_some() {
            return;
        }
        let before = blocked.is_empty();
        match reason {
            Some(reason) => blocked.insert(by, reason),
            None => blocked.remove(&by),
        };
        let now = blocked.values().next().cloned();
        drop(blocked);
        if before != now.is_none() {
            tracing::warn!(reason = now.as_deref().unwrap_or("none"), "publishes blocked or taken again");
            for connection in self.connections() {
                connection.events.push(Event::Blocked(now.clone()));
            }
        }
    }

    fn unblock(&self, node: NodeId) {
        for shard in self.shards() {
            shard.with(|state| state.unblocked(node));
        }
    }

    /// Whether storage refuses publishes, and why.
    pub fn blocked(&self) -> Option<String> {
        lock(&self.blocked).values().next().cloned()
    }

    /// All client connections, by id.
    pub fn connections(&self) -> Vec<Arc<ConnectionState>> {
        let connections = self.connections.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = connections.values().cloned().collect();
        all.sort_by_key(|connection| connection.id);
        all
    }

    /// One client connection.
    pub fn connection(&self, id: ConnectionId) -> Option<Arc<ConnectionState>> {
        self.connections.read().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    /// A client connection began.
    pub fn add_connection(&self, connection: Arc<ConnectionState>) {
        self.connections.write().unwrap_or_else(PoisonError::into_inner).insert(connection.id, connection);
    }

    /// A client connection ended: consumers detach, what is out comes back, what it owned goes.
    pub fn remove_connection(self: &Arc<Self>, connection: &Arc<ConnectionState>) {
        self.connections.write().unwrap_or_else(PoisonError::into_inner).remove(&connection.id);
        connection.events.end();
        let consumers = connection.take_consumers();
        for consumer in &consumers {
            self.shard(consumer.shard).detach(consumer.id, false);
            self.forget_consumer(consumer.id);
        }
        for shard in self.shards() {
            shard.with(|state| state.return_loose(shard.id, connection.id));
        }
        self.drop_owned(connection);
        let auto_delete: Vec<_> = consumers.into_iter().filter(|consumer| consumer.auto_delete).collect();
        if !auto_delete.is_empty() && !self.lease.is_lost() {
            let (engine, connection) = (self.clone(), connection.clone());
            self.spawn(async move {
                for consumer in auto_delete {
                    crate::queues::delete_if_unused(&engine, &connection, &consumer.queue).await;
                }
            });
        }
    }

    /// The session is over: every connection is closed, everything without an outcome is given up.
    pub fn end(self: &Arc<Self>, reason: CloseReason) {
        self.lease.lose();
        for (_, task) in lock(&self.links).drain().map(|(_, link)| link) {
            task.abort();
        }
        let outboxes: Vec<_> = {
            let mut outboxes = self.outboxes.write().unwrap_or_else(PoisonError::into_inner);
            outboxes.drain().map(|(_, outbox)| outbox).collect()
        };
        for outbox in outboxes {
            outbox.close();
        }
        for shard in self.shards() {
            drop(shard.end());
        }
        self.requests.end();
        for connection in self.connections() {
            connection.close(reason.clone());
        }
    }
}

/// What a storage node's refusal means for an operation on a queue.
pub(crate) fn refused(reason: v1::Refused, queue: &str) -> BrokerError {
    let name = queue.to_owned();
    match reason {
        v1::Refused::UnknownLog => BrokerError::NotFound { what: "queue", name },
        v1::Refused::Exclusive => BrokerError::ExclusiveUse(name),
        v1::Refused::InUse => BrokerError::InUse(name),
        v1::Refused::NotEmpty => BrokerError::NotEmpty(name),
        v1::Refused::Inequivalent => BrokerError::Inequivalent { what: "arguments", name },
        v1::Refused::NoSpace => BrokerError::NoSpace,
        v1::Refused::Malformed | v1::Refused::Version => {
            BrokerError::Invalid(format!("storage cannot read the request for queue '{name}'"))
        }
        v1::Refused::Busy | v1::Refused::Session | v1::Refused::Cluster | v1::Refused::Unspecified => {
            BrokerError::Unavailable("the shard's leader refused")
        }
    }
}
