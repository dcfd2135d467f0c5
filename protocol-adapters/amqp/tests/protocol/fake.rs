//! A broker in memory: enough of exchanges, queues, consumers and credit to run the protocol against, and knobs for
//! what a real one does rarely (refuse, block, close).

use bytes::Bytes;
use longshore_amqp::backend::{Backend, Events, Link, Operations};
use longshore_broker::*;
use longshore_wire::record::Form;
use longshore_wire::{LeaseId, LogId, Offset, ShardId, Term};
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::sync::mpsc;

#[derive(Clone)]
struct Stored {
    offset: Offset,
    routing_key: Bytes,
    properties: Bytes,
    body: Vec<Bytes>,
    returns: u32,
    redelivered: bool,
}

struct Consumer {
    connection: u64,
    tag: ConsumerTag,
    exclusive: bool,
    messages: u64,
    bytes: u64,
}

struct Queue {
    info: QueueInfo,
    owner: Option<u64>,
    messages: VecDeque<Stored>,
    out: BTreeMap<u64, (Stored, Option<(u64, ConsumerTag)>)>,
    consumers: Vec<Consumer>,
    next: u64,
}

#[derive(Default)]
pub struct State {
    exchanges: BTreeMap<String, ExchangeInfo>,
    bindings: Vec<BindingInfo>,
    queues: BTreeMap<String, Queue>,
    events: HashMap<u64, mpsc::UnboundedSender<Event>>,
    next: u64,
    /// Publishes are refused (nacked).
    pub refuse: bool,
    /// Bytes of bodies sent to consumers so far.
    pub delivered_bytes: u64,
    /// (user, right, name) that are refused.
    pub denied: BTreeSet<(String, &'static str, String)>,
}

/// The broker.
#[derive(Clone, Default)]
pub struct Fake {
    pub state: Arc<Mutex<State>>,
}

fn exchange(name: &str, kind: ExchangeKind) -> ExchangeInfo {
    let (arguments, alternate) = (Bytes::new(), None);
    ExchangeInfo {
        name: name.into(),
        kind,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments,
        alternate,
    }
}

impl Fake {
    pub fn new() -> Fake {
        let fake = Fake::default();
        let kinds = [
            ("", ExchangeKind::Direct),
            ("amq.direct", ExchangeKind::Direct),
            ("amq.fanout", ExchangeKind::Fanout),
            ("amq.headers", ExchangeKind::Headers),
        ];
        for (name, kind) in kinds {
            fake.lock().exchanges.insert(name.into(), exchange(name, kind));
        }
        fake.lock().exchanges.insert(
            "inner".into(),
            ExchangeInfo { internal: true, ..exchange("inner", ExchangeKind::Fanout) },
        );
        fake
    }

    pub fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Sends an event to every connection.
    pub fn tell(&self, event: &Event) {
        self.lock().events.values().for_each(|sender| drop(sender.send(event.clone())));
    }

    /// Messages ready in a queue.
    pub fn ready(&self, queue: &str) -> usize {
        self.lock().queues.get(queue).map_or(0, |queue| queue.messages.len())
    }

    /// Messages out with consumers.
    pub fn unacked(&self, queue: &str) -> usize {
        self.lock().queues.get(queue).map_or(0, |queue| queue.out.len())
    }

    /// Whether the queue exists.
    pub fn has_queue(&self, queue: &str) -> bool {
        self.lock().queues.contains_key(queue)
    }

    /// Makes a queue of an unknown other connection.
    pub fn foreign_queue(&self, name: &str, kind: &str) {
        let mut state = self.lock();
        let log = LogId(state.id());
        let exclusive = kind == "exclusive";
        let info = QueueInfo {
            name: name.into(),
            log,
            durable: !exclusive,
            exclusive,
            auto_delete: false,
            arguments: Bytes::new(),
            spec: None,
            expires_ms: 0,
            single_active: kind == "single active",
            kind: if kind == "stream" { kind.into() } else { "classic".into() },
            accessible: true,
        };
        let owner = exclusive.then_some(u64::MAX);
        state.queues.insert(name.into(), Queue::new(info, owner));
    }
}

impl Queue {
    fn new(info: QueueInfo, owner: Option<u64>) -> Queue {
        Queue { info, owner, messages: VecDeque::new(), out: BTreeMap::new(), consumers: Vec::new(), next: 0 }
    }
}

impl State {
    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn route(&self, exchange: &str, key: &[u8]) -> BTreeSet<String> {
        if exchange.is_empty() {
            let name = String::from_utf8_lossy(key).into_owned();
            return self.queues.contains_key(&name).then_some(name).into_iter().collect();
        }
        let fanout = self.exchanges.get(exchange).is_some_and(|e| e.kind == ExchangeKind::Fanout);
        let hits = self.bindings.iter().filter(|b| b.source == exchange && (fanout || b.routing_key == key));
        hits.filter_map(|b| match &b.destination {
            Destination::Queue(name) => Some(name.clone()),
            Destination::Exchange(_) => None,
        })
        .collect()
    }

    /// Hands out what consumers have credit for.
    fn pump(&mut self) {
        let names: Vec<String> = self.queues.keys().cloned().collect();
        for name in names {
            loop {
                let lease = self.id();
                let Some(queue) = self.queues.get_mut(&name) else { break };
                let Some(at) = queue.consumers.iter().position(|c| c.messages > 0 && c.bytes > 0) else {
                    break;
                };
                let Some(stored) = queue.messages.pop_front() else { break };
                let mut consumer = queue.consumers.remove(at);
                let charged: u64 = 100 + stored.body.iter().map(|b| b.len() as u64).sum::<u64>();
                consumer.messages -= 1;
                consumer.bytes = consumer.bytes.saturating_sub(charged);
                let (connection, tag) = (consumer.connection, consumer.tag);
                queue.consumers.push(consumer);
                let delivery = delivery(queue.info.log, &stored, lease, Some(tag), charged);
                if queue.info.kind != "stream" {
                    queue.out.insert(lease, (stored, Some((connection, tag))));
                }
                self.delivered_bytes += charged;
                if let Some(sender) = self.events.get(&connection) {
                    let _ = sender.send(Event::Deliveries(vec![delivery]));
                }
            }
        }
    }

    fn settle(&mut self, handle: &Handle, settlement: Settlement) {
        let Some(queue) = self.queues.values_mut().find(|queue| queue.info.log == handle.log) else { return };
        let Some((mut stored, _)) = queue.out.remove(&handle.lease.0) else { return };
        if let Settlement::Returned { counted } = settlement {
            stored.returns += u32::from(counted);
            stored.redelivered = true;
            let at =
                queue.messages.iter().position(|m| m.offset > stored.offset).unwrap_or(queue.messages.len());
            queue.messages.insert(at, stored);
        }
    }

    fn detach(&mut self, connection: u64, tag: Option<ConsumerTag>, keep: bool) {
        let hit = |c: u64, t: ConsumerTag| c == connection && tag.is_none_or(|tag| tag == t);
        let mut gone = Vec::new();
        for (name, queue) in &mut self.queues {
            let before = queue.consumers.len();
            queue.consumers.retain(|c| !hit(c.connection, c.tag));
            if queue.info.auto_delete && queue.consumers.is_empty() && before > 0 {
                gone.push(name.clone());
            }
            if keep {
                continue;
            }
            let back: Vec<u64> = queue
                .out
                .iter()
                .filter(|(_, (_, by))| by.is_some_and(|(c, t)| hit(c, t)))
                .map(|(l, _)| *l)
                .collect();
            for lease in back.into_iter().rev() {
                let (mut stored, _) = queue.out.remove(&lease).unwrap();
                (stored.returns, stored.redelivered) = (stored.returns + 1, true);
                queue.messages.push_front(stored);
            }
        }
        gone.iter().for_each(|name| drop(self.queues.remove(name)));
        self.pump();
    }
}

fn delivery(
    log: LogId,
    stored: &Stored,
    lease: u64,
    tag: Option<ConsumerTag>,
    charged_bytes: u64,
) -> Delivery {
    let handle =
        Handle { log, shard: ShardId(1), offset: stored.offset, lease: LeaseId(lease), term: Term(1), tag };
    Delivery {
        handle,
        redelivered: stored.redelivered,
        returns: stored.returns,
        form: Form::Amqp,
        routing_key: stored.routing_key.clone(),
        properties: stored.properties.clone(),
        body: Body::Many(stored.body.clone()),
        priority: 0,
        client_time_ms: None,
        charged_bytes,
    }
}

pub struct FakeLink {
    fake: Fake,
    id: u64,
    user: String,
    published: Vec<Published>,
}

#[derive(Clone)]
pub struct FakeControl {
    fake: Fake,
    id: u64,
}

pub struct FakeEvents(mpsc::UnboundedReceiver<Event>);

impl Events for FakeEvents {
    async fn recv(&mut self) -> Option<Event> {
        self.0.recv().await
    }
    fn try_recv(&mut self) -> Option<Event> {
        self.0.try_recv().ok()
    }
}

impl Backend for Fake {
    type Link = FakeLink;
    type Events = FakeEvents;

    async fn authenticate(&self, user: &str, password: &[u8], _: SocketAddr) -> Result<Identity, AuthError> {
        if password != b"secret" {
            return Err(AuthError::Refused);
        }
        Ok(Identity { user: user.into(), namespace: "/".into(), administrator: false, version: 1 })
    }

    fn connect(
        &self,
        identity: &Identity,
        namespace: &str,
        _: ConnectionInfo,
    ) -> Result<(FakeLink, FakeEvents), BrokerError> {
        if namespace != "/" {
            return Err(BrokerError::NotAllowed(namespace.into()));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let id = self.lock().id();
        self.lock().events.insert(id, sender);
        let user = identity.user.to_string();
        Ok((FakeLink { fake: self.clone(), id, user, published: Vec::new() }, FakeEvents(receiver)))
    }

    fn blocked(&self) -> Option<String> {
        None
    }
}

impl Drop for FakeLink {
    fn drop(&mut self) {
        let mut state = self.fake.lock();
        state.events.remove(&self.id);
        state.detach(self.id, None, false);
        state.queues.retain(|_, queue| queue.owner != Some(self.id));
    }
}

impl Link for FakeLink {
    type Control = FakeControl;

    fn publish(&mut self, publish: &Publish<'_>) -> Result<Routed, BrokerError> {
        let mut state = self.fake.lock();
        let Some(exchange) = state.exchanges.get(publish.exchange) else {
            return Err(BrokerError::NotFound { what: "exchange", name: publish.exchange.into() });
        };
        if exchange.internal {
            return Err(BrokerError::Forbidden("internal".into()));
        }
        let keys = std::iter::once(publish.routing_key).chain(publish.more_keys.iter().copied());
        let targets: BTreeSet<String> = keys.flat_map(|key| state.route(publish.exchange, key)).collect();
        // A name that only the storage tier could know is found missing later.
        let late = publish.routing_key == b"perhaps";
        if targets.is_empty() && !late {
            return Ok(Routed::Unroutable);
        }
        let refused = state.refuse;
        for name in targets.iter().filter(|_| !refused) {
            let queue = state.queues.get_mut(name).unwrap();
            queue.next += 1;
            queue.messages.push_back(Stored {
                offset: Offset(queue.next),
                routing_key: Bytes::copy_from_slice(publish.routing_key),
                properties: Bytes::copy_from_slice(publish.properties),
                body: publish.body.to_vec(),
                returns: 0,
                redelivered: false,
            });
        }
        if publish.report {
            let result = match (late, refused) {
                (true, _) => PublishResult::Unroutable,
                (_, true) => PublishResult::Refused(BrokerError::NoSpace),
                _ => PublishResult::Stored,
            };
            self.published.push(Published { channel: publish.channel, token: publish.token, result });
        }
        Ok(Routed::Queued)
    }

    fn settle(&mut self, handle: &Handle, settlement: Settlement) {
        self.fake.lock().settle(handle, settlement);
    }

    fn credit(&mut self, tag: ConsumerTag, messages: u64, bytes: u64) {
        let mut state = self.fake.lock();
        let all = state.queues.values_mut().flat_map(|queue| &mut queue.consumers);
        for consumer in all.filter(|c| c.connection == self.id && c.tag == tag) {
            consumer.messages += messages;
            consumer.bytes += bytes;
        }
    }

    fn flush(&mut self) -> Flow {
        let mut state = self.fake.lock();
        state.pump();
        if !self.published.is_empty() {
            let _ = state.events[&self.id].send(Event::Published(std::mem::take(&mut self.published)));
        }
        Flow::Open
    }

    async fn writable(&mut self) {}

    fn permit(&mut self, right: Right, name: &str) -> bool {
        let right = match right {
            Right::Configure => "configure",
            Right::Write => "write",
            Right::Read => "read",
        };
        !self.fake.lock().denied.contains(&(self.user.clone(), right, name.to_owned()))
    }

    fn control(&self) -> FakeControl {
        FakeControl { fake: self.fake.clone(), id: self.id }
    }
}

fn missing(what: &'static str, name: &str) -> BrokerError {
    BrokerError::NotFound { what, name: name.into() }
}

impl FakeControl {
    fn with<T>(
        &self,
        name: &str,
        act: impl FnOnce(&mut Queue) -> Result<T, BrokerError>,
    ) -> Result<T, BrokerError> {
        let mut state = self.fake.lock();
        let queue = state.queues.get_mut(name).ok_or_else(|| missing("queue", name))?;
        if queue.owner.is_some_and(|owner| owner != self.id) {
            return Err(BrokerError::ResourceLocked(name.into()));
        }
        act(queue)
    }
}

impl Operations for FakeControl {
    async fn settled(&self) {
        tokio::task::yield_now().await;
    }

    async fn queue(&self, name: &str) -> Result<QueueInfo, BrokerError> {
        let state = self.fake.lock();
        let queue = state.queues.get(name).ok_or_else(|| missing("queue", name))?;
        Ok(QueueInfo { accessible: queue.owner.is_none_or(|owner| owner == self.id), ..queue.info.clone() })
    }

    async fn stat(&self, name: &str) -> Result<QueueState, BrokerError> {
        tokio::task::yield_now().await;
        self.with(name, |queue| {
            let (ready, consumers) = (queue.messages.len() as u64, queue.consumers.len() as u64);
            Ok(QueueState { name: name.into(), ready, consumers, created: false })
        })
    }

    async fn declare_queue(&self, declare: QueueDeclare) -> Result<QueueState, BrokerError> {
        let mut state = self.fake.lock();
        let id = state.id();
        let name = match declare.name {
            QueueName::Given(name) => name,
            QueueName::Generated(prefix) => format!("{prefix}{id}"),
        };
        let info = QueueInfo {
            name: name.clone(),
            log: LogId(id),
            durable: declare.durable,
            exclusive: declare.exclusive,
            auto_delete: declare.auto_delete,
            arguments: declare.arguments,
            spec: Some(declare.spec),
            expires_ms: declare.expires_ms,
            single_active: declare.single_active,
            kind: declare.kind,
            accessible: true,
        };
        let owner = declare.exclusive.then_some(self.id);
        state.queues.insert(name.clone(), Queue::new(info, owner));
        Ok(QueueState { name, ready: 0, consumers: 0, created: true })
    }

    async fn delete_queue(&self, name: &str, if_unused: bool, if_empty: bool) -> Result<u64, BrokerError> {
        let (count, consumers) = self.with(name, |queue| {
            if if_unused && !queue.consumers.is_empty() {
                return Err(BrokerError::InUse(name.into()));
            }
            if if_empty && !queue.messages.is_empty() {
                return Err(BrokerError::NotEmpty(name.into()));
            }
            let consumers: Vec<_> = queue.consumers.iter().map(|c| (c.connection, c.tag)).collect();
            Ok((queue.messages.len() as u64, consumers))
        })?;
        let mut state = self.fake.lock();
        state.queues.remove(name);
        for (connection, tag) in consumers {
            if let Some(sender) = state.events.get(&connection) {
                let _ = sender.send(Event::Cancelled { tag });
            }
        }
        Ok(count)
    }

    async fn purge(&self, name: &str) -> Result<u64, BrokerError> {
        self.with(name, |queue| Ok(queue.messages.drain(..).count() as u64))
    }

    fn exchange(&self, name: &str) -> Option<ExchangeInfo> {
        self.fake.lock().exchanges.get(name).cloned()
    }

    async fn declare_exchange(&self, declare: ExchangeInfo) -> Result<(), BrokerError> {
        self.fake.lock().exchanges.insert(declare.name.clone(), declare);
        Ok(())
    }

    async fn delete_exchange(&self, name: &str, if_unused: bool) -> Result<(), BrokerError> {
        let mut state = self.fake.lock();
        if if_unused && state.bindings.iter().any(|b| b.source == name) {
            return Err(BrokerError::InUse(name.into()));
        }
        state.exchanges.remove(name).map(|_| ()).ok_or_else(|| missing("exchange", name))
    }

    async fn bind(&self, binding: BindingInfo) -> Result<(), BrokerError> {
        let mut state = self.fake.lock();
        if !state.exchanges.contains_key(&binding.source) {
            return Err(missing("exchange", &binding.source));
        }
        if let Destination::Queue(name) = &binding.destination
            && !state.queues.contains_key(name)
        {
            return Err(missing("queue", name));
        }
        state.bindings.push(binding);
        Ok(())
    }

    async fn unbind(&self, binding: BindingInfo) -> Result<(), BrokerError> {
        self.fake.lock().bindings.retain(|other| *other != binding);
        Ok(())
    }

    async fn attach(&self, attach: Attach) -> Result<(), BrokerError> {
        let id = self.id;
        self.with(&attach.queue.clone(), |queue| {
            if queue.consumers.iter().any(|c| c.exclusive || attach.exclusive) {
                return Err(BrokerError::ExclusiveUse(attach.queue.clone()));
            }
            let Attach { tag, exclusive, credit_messages: messages, credit_bytes: bytes, .. } = attach;
            queue.consumers.push(Consumer { connection: id, tag, exclusive, messages, bytes });
            Ok(())
        })
    }

    async fn detach(&self, tag: ConsumerTag, keep_leases: bool) {
        self.fake.lock().detach(self.id, Some(tag), keep_leases);
    }

    async fn get(&self, queue: &str) -> Result<Option<Got>, BrokerError> {
        let lease = self.fake.lock().id();
        self.with(queue, |queue| {
            let Some(stored) = queue.messages.pop_front() else { return Ok(None) };
            let delivery = delivery(queue.info.log, &stored, lease, None, 0);
            queue.out.insert(lease, (stored, None));
            Ok(Some(Got { delivery, ready: queue.messages.len() as u64 }))
        })
    }
}
