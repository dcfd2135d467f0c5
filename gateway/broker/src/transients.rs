//! Transient queues: their names, publishes to them, and making them again when their leader is lost.
//!
//! A transient queue lives in the memory of one shard's leader, chosen by its name. The gateway that declared it makes
//! it again, empty, under the same name. Publishes to a name that is not known here are held, in order, until the
//! leader was asked.

use crate::api::*;
use crate::connection_state::ConnectionState;
use crate::engine::{ConsumerPlace, Engine};
use crate::fan::{PublishTicket, Ticket};
use crate::mail::Mail;
use crate::metadata::Namespace;
use crate::session::consumers::item;
use crate::session::{Chunk, Upload};
use crate::shard::{Handover, Owner, Work};
use bytes::{Bytes, BytesMut};
use longshore_proto::v1::{self, answer, gateway_item::Item};
use longshore_wire::record::{NewRecord, Record};
use longshore_wire::{DecodeError, LogId, NodeId, ShardId};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

/// Names that a gateway remembers; beyond it they are forgotten and asked for again.
const NAMES_MAX: usize = 100_000;
/// A piece of a large body.
const PIECE_BYTES: usize = 256 << 10;
/// How often, and how long apart, another gateway's queue is looked for after its leader was lost.
const LOOKS: u32 = 20;
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(150);

/// A queue that a client of this gateway declared.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub namespace: Arc<Namespace>,
    pub declare: v1::TransientDeclare,
    pub connection: ConnectionId,
    /// The client chose its name; else the broker did, and no other client looks for it.
    pub named_by_client: bool,
    /// Its name is claimed in meta.
    pub claimed: bool,
    /// A leader has made it for this gateway; until then it may be another gateway's.
    pub made: bool,
}

impl Owned {
    /// Whether meta knew the queue and does not any more: another gateway's client deleted it, or it ended at its leader.
    /// The claim of a name that a client chose was in this gateway's view before the queue was made; that of another name
    /// is only on its way when it is noted, and an exclusive queue ends with its connection.
    fn was_deleted_elsewhere(&self, name: &str) -> bool {
        let told = self.claimed && self.named_by_client && !self.declare.exclusive;
        told && self.namespace.queue(name).is_none()
    }
}

/// What a queue is asked about for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To know of it.
    Look,
    /// For a client that declares it again: one that ends after a time without use (`x-expires`) lives on.
    Use,
}

/// A publish on its way to transient queues.
#[derive(Debug)]
struct Sent {
    node: NodeId,
    ticket: PublishTicket,
    namespace: Arc<Namespace>,
    targets: Vec<(Arc<str>, LogId)>,
    record: Bytes,
    body: Vec<Bytes>,
    /// It was sent before: what is missing now is gone.
    again: bool,
}

/// A publish that waits for its queue to be found.
#[derive(Debug)]
pub(crate) struct Held {
    pub record: Bytes,
    /// A large body, which goes before the record in pieces; else the record has it.
    pub body: Vec<Bytes>,
    pub ticket: PublishTicket,
    pub again: bool,
}

type Name = (u32, Arc<str>);

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Transients {
    names: RwLock<HashMap<u32, HashMap<Arc<str>, LogId>>>,
    owned: Mutex<BTreeMap<Name, Owned>>,
    sent: Mutex<HashMap<u64, Sent>>,
    finding: Mutex<HashMap<Name, Vec<Held>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The record again, for other targets.
fn retarget(record: &Record, targets: &[LogId]) -> Result<Bytes, DecodeError> {
    let (routing_key, properties) = (record.routing_key(), record.properties());
    let new = NewRecord {
        form: record.form(),
        flags: record.flags(),
        priority: record.priority(),
        count: record.count(),
        delay_ms: record.delay_ms(),
        ttl_ms: record.ttl_ms(),
        client_time_ms: record.client_time_ms(),
        key_hash: record.key_hash(),
        upload: record.upload(),
        targets,
        routing_key: &routing_key,
        properties: &properties,
    };
    let mut out = BytesMut::new();
    new.encode(&[record.body()], &mut out)?;
    Ok(out.freeze())
}

impl Transients {
    /// The log of a queue, if it is known and nobody is looking for it.
    pub fn log(&self, namespace: u32, name: &str) -> Option<LogId> {
        let names = self.names.read().unwrap_or_else(PoisonError::into_inner);
        names.get(&namespace)?.get(name).copied()
    }

    /// A queue was declared or found.
    pub fn learn(&self, namespace: u32, name: &Arc<str>, log: LogId) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if names.values().map(HashMap::len).sum::<usize>() >= NAMES_MAX {
            names.clear();
        }
        names.entry(namespace).or_default().insert(name.clone(), log);
    }

    /// A queue is gone, or not where it was.
    pub fn forget(&self, namespace: u32, name: &str) {
        let mut names = self.names.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(names) = names.get_mut(&namespace) {
            names.remove(name);
        }
    }

    /// Notes a queue before its leader is asked to make it: should that leader be lost once it has answered, the
    /// queue is made again with the others. False: it was noted before.
    pub fn own_early(&self, name: Arc<str>, owned: &Owned) -> bool {
        match lock(&self.owned).entry((owned.namespace.id.0, name)) {
            Entry::Vacant(vacant) => {
                vacant.insert(owned.clone());
                true
            }
            Entry::Occupied(_) => false,
        }
    }

    /// A leader was asked for a queue again. False: the queue was deleted meanwhile.
    fn made_again(&self, namespace: u32, name: &str, created: bool) -> bool {
        let mut owned = lock(&self.owned);
        let owned = owned.get_mut(&(namespace, name.into()));
        let known = owned.is_some();
        if let Some(owned) = owned {
            owned.made |= created;
        }
        known
    }

    /// Notes a queue that a connection declared.
    pub fn own(&self, name: Arc<str>, owned: Owned) {
        lock(&self.owned).insert((owned.namespace.id.0, name), owned);
    }

    /// The queue of that name that this gateway declared.
    pub fn owned(&self, namespace: u32, name: &str) -> Option<Owned> {
        lock(&self.owned).get(&(namespace, name.into())).cloned()
    }

    /// The name of a queue of this gateway is claimed in meta now. False: the queue was deleted meanwhile.
    pub fn claimed(&self, namespace: u32, name: &str) -> bool {
        let mut owned = lock(&self.owned);
        let owned = owned.get_mut(&(namespace, name.into()));
        let known = owned.is_some();
        if let Some(owned) = owned {
            owned.claimed = true;
        }
        known
    }

    /// A queue was deleted.
    pub fn disown(&self, namespace: u32, name: &str) -> Option<Owned> {
        self.forget(namespace, name);
        lock(&self.owned).remove(&(namespace, name.into()))
    }

    /// The stream to a node died: the fate of what was sent on it is unknown.
    pub fn link_down(&self, node: NodeId) -> Vec<PublishTicket> {
        lock(&self.sent).extract_if(|_, sent| sent.node == node).map(|(_, sent)| sent.ticket).collect()
    }

    /// The node does not lead the shard: the publish went nowhere.
    pub fn not_leader(&self, request: u64) -> Option<PublishTicket> {
        lock(&self.sent).remove(&request).map(|sent| sent.ticket)
    }
}

impl Engine {
    /// Sends a record to transient queues of one shard; `None` in place of a log: to be found first.
    pub(crate) fn send_transient(
        self: &Arc<Self>,
        connection: &ConnectionState,
        shard: ShardId,
        targets: Vec<(Arc<str>, LogId)>,
        held: Held,
    ) {
        let shard = self.shard(shard);
        let (Some((_, node)), Some(_)) = shard.leader() else {
            // No leader now, and none of these queues survives that: look for them once there is one.
            return self.find_all_and_send(&connection.namespace, targets, held);
        };
        let logs: Vec<LogId> = targets.iter().map(|(_, log)| *log).collect();
        let encoded = Record::parse(held.record.clone()).and_then(|record| {
            if record.targets().eq(logs.iter().copied()) { Ok(held.record) } else { retarget(&record, &logs) }
        });
        let record = match encoded {
            Ok(record) => record,
            Err(error) => {
                let mut mail = Mail::default();
                mail.resolve(&held.ticket, PublishResult::Refused(BrokerError::Invalid(error.to_string())));
                return self.post(mail);
            }
        };
        let request = self.next_id();
        let body_bytes = held.body.iter().map(|slice| slice.len() as u64).sum();
        let sent = Sent {
            node,
            ticket: held.ticket,
            namespace: connection.namespace.clone(),
            targets,
            record: record.clone(),
            body: held.body,
            again: held.again,
        };
        lock(&self.transients.sent).insert(request, sent);
        let append = v1::TransientAppend { request, shard: shard.id.0, record, body_bytes };
        if shard.push_to(node, Item::TransientAppend(append)) {
            return;
        }
        // The leader went after the look. If its link did, that gave the publish its outcome; else nobody would.
        let unsent = lock(&self.transients.sent).remove(&request);
        if let Some(Sent { ticket, targets, record, body, again, .. }) = unsent {
            self.find_all_and_send(&connection.namespace, targets, Held { record, body, ticket, again });
        }
    }

    /// Looks for the queues of a publish, each for itself.
    fn find_all_and_send(
        self: &Arc<Self>,
        namespace: &Arc<Namespace>,
        targets: Vec<(Arc<str>, LogId)>,
        held: Held,
    ) {
        let tickets = held.ticket.split(targets.len() as u32);
        for ((name, _), ticket) in targets.into_iter().zip(tickets) {
            self.transients.forget(namespace.id.0, &name);
            let held =
                Held { record: held.record.clone(), body: held.body.clone(), ticket, again: held.again };
            self.find_and_send(namespace, name, held);
        }
    }

    /// A leader took a publish to transient queues.
    pub(crate) fn on_transient_outcome(self: &Arc<Self>, outcome: &v1::TransientOutcome, mail: &mut Mail) {
        let Some(sent) = lock(&self.transients.sent).remove(&outcome.request) else { return };
        if !outcome.full.is_empty() {
            // Whatever became of the other targets: the publish was not stored everywhere.
            let why = BrokerError::Unavailable("a transient queue is full");
            return mail.resolve(&sent.ticket, PublishResult::Refused(why));
        }
        if outcome.missing.is_empty() {
            return mail.resolve(&sent.ticket, PublishResult::Stored);
        }
        let missing: Vec<Arc<str>> = sent
            .targets
            .iter()
            .filter(|(_, log)| outcome.missing.contains(&log.0))
            .map(|(name, _)| name.clone())
            .collect();
        let stored = missing.len() < sent.targets.len();
        for name in &missing {
            self.transients.forget(sent.namespace.id.0, name);
        }
        if sent.again {
            let result = if stored { PublishResult::Stored } else { PublishResult::Unroutable };
            return mail.resolve(&sent.ticket, result);
        }
        let mut tickets = sent.ticket.split(missing.len() as u32 + u32::from(stored)).into_iter();
        if stored && let Some(ticket) = tickets.next() {
            mail.resolve(&ticket, PublishResult::Stored);
        }
        for (name, ticket) in missing.into_iter().zip(tickets) {
            let held = Held { record: sent.record.clone(), body: sent.body.clone(), ticket, again: true };
            self.find_and_send(&sent.namespace, name, held);
        }
    }

    /// Holds a publish until its queue is found; those to one name go in order.
    pub(crate) fn find_and_send(self: &Arc<Self>, namespace: &Arc<Namespace>, name: Arc<str>, held: Held) {
        let key = (namespace.id.0, name.clone());
        let begin = {
            let mut finding = lock(&self.transients.finding);
            let begin = !finding.contains_key(&key);
            finding.entry(key).or_default().push(held);
            begin
        };
        if begin {
            let (engine, namespace) = (self.clone(), namespace.clone());
            self.spawn(async move {
                let found = engine.find_transient(&namespace, &name, Purpose::Look).await;
                engine.send_held(&namespace, &name, found).await;
            });
        }
    }

    /// Whether publishes to the name are held now: later ones must queue behind them.
    pub(crate) fn is_finding(&self, namespace: u32, name: &Arc<str>) -> bool {
        let finding = lock(&self.transients.finding);
        !finding.is_empty() && finding.contains_key(&(namespace, name.clone()))
    }

    async fn send_held(
        self: &Arc<Self>,
        namespace: &Arc<Namespace>,
        name: &Arc<str>,
        found: Result<v1::TransientQueue, BrokerError>,
    ) {
        let key = (namespace.id.0, name.clone());
        loop {
            let waiting = {
                let mut finding = lock(&self.transients.finding);
                let waiting = finding.get_mut(&key).map(std::mem::take).unwrap_or_default();
                if waiting.is_empty() {
                    // Within the lock: whoever publishes next either sees the name or is still held.
                    if let Ok(found) = &found {
                        self.transients.learn(namespace.id.0, name, LogId(found.log));
                    }
                    finding.remove(&key);
                    return;
                }
                waiting
            };
            for held in waiting {
                if found.is_ok() && !held.body.is_empty() {
                    self.send_pieces(namespace, name, &held).await;
                }
                let mut mail = Mail::default();
                self.send_one_held(namespace, name, &found, held, &mut mail);
                self.post(mail);
            }
        }
    }

    /// Sends a large body to the leader of a transient queue. Its record comes behind it on the same stream; if that
    /// breaks, the leader refuses the record for want of pieces.
    async fn send_pieces(&self, namespace: &Namespace, name: &str, held: &Held) {
        let Some(shard) = self.view.transient_shard(namespace.id, name) else { return };
        let Ok(record) = Record::parse(held.record.clone()) else { return };
        let (Some(_), Some(outbox)) = self.shard(shard).leader() else { return };
        let mut at = 0;
        for slice in &held.body {
            let mut rest = slice.clone();
            while !rest.is_empty() {
                if !outbox.room().await {
                    return;
                }
                let bytes = rest.split_to(rest.len().min(PIECE_BYTES));
                let len = bytes.len() as u64;
                let part = v1::TransientPart { shard: shard.0, upload: record.upload(), at, bytes };
                outbox.push(item(Item::TransientPart(part)));
                at += len;
            }
        }
    }

    fn send_one_held(
        self: &Arc<Self>,
        namespace: &Arc<Namespace>,
        name: &Arc<str>,
        found: &Result<v1::TransientQueue, BrokerError>,
        held: Held,
        mail: &mut Mail,
    ) {
        let connection = self.connection(held.ticket.connection);
        let (Some(connection), Some(shard)) = (connection, self.view.transient_shard(namespace.id, name))
        else {
            return mail.resolve(&held.ticket, PublishResult::Unroutable);
        };
        match found {
            Ok(found) => {
                let targets = vec![(name.clone(), LogId(found.log))];
                self.send_transient(&connection, shard, targets, held);
            }
            Err(BrokerError::NotFound { .. }) => {
                match namespace.queue(name).filter(|entry| entry.queue.durable) {
                    // It was declared meanwhile, as a durable one.
                    Some(entry) => {
                        let (log, shard) = entry.place();
                        self.send_durable(&connection, shard, log, held, mail);
                    }
                    None => mail.resolve(&held.ticket, PublishResult::Unroutable),
                }
            }
            Err(error) => mail.resolve(&held.ticket, PublishResult::Refused(error.clone())),
        }
    }

    fn send_durable(
        &self,
        connection: &ConnectionState,
        shard: ShardId,
        log: LogId,
        held: Held,
        mail: &mut Mail,
    ) {
        let record =
            Record::parse(held.record).and_then(|record| retarget(&record, &[log])).and_then(Record::parse);
        match record {
            Ok(record) => {
                let id = record.upload();
                let mut chunk = Chunk::new(self.session);
                chunk.append_record(record, Ticket::Publish(held.ticket));
                let work = match held.body.is_empty() {
                    true => Work::Chunk(chunk),
                    false => Work::Upload(Upload { id, body: held.body.into(), last: chunk }),
                };
                let work = Handover { works: vec![work], ..Handover::default() };
                self.shard(shard).hand_over(connection.id, work, usize::MAX);
            }
            Err(error) => {
                let why = BrokerError::Invalid(error.to_string());
                mail.resolve(&held.ticket, PublishResult::Refused(why));
            }
        }
    }

    /// Asks the leader of the name's shard for a transient queue.
    pub(crate) async fn find_transient(
        &self,
        namespace: &Namespace,
        name: &str,
        purpose: Purpose,
    ) -> Result<v1::TransientQueue, BrokerError> {
        let unknown = BrokerError::Unavailable("the cluster is not known yet");
        let shard = self.view.transient_shard(namespace.id, name).ok_or(unknown)?;
        let find = |request| {
            Item::TransientFind(v1::TransientFind {
                request,
                shard: shard.0,
                namespace: namespace.id.0,
                name: name.to_owned(),
                r#use: purpose == Purpose::Use,
            })
        };
        match self.ask_for(shard, name, find).await? {
            answer::Result::Transient(found) => Ok(found),
            _ => Err(BrokerError::Unavailable("an answer of another kind")),
        }
    }

    /// Makes or finds a transient queue at its leader.
    pub(crate) async fn declare_transient(
        &self,
        declare: &v1::TransientDeclare,
    ) -> Result<v1::TransientQueue, BrokerError> {
        let make = |request| Item::TransientDeclare(v1::TransientDeclare { request, ..declare.clone() });
        match self.ask_for(ShardId(declare.shard), &declare.name, make).await {
            Ok(answer::Result::Transient(found)) => Ok(found),
            Ok(_) => Err(BrokerError::Unavailable("an answer of another kind")),
            Err(BrokerError::ExclusiveUse(what)) => Err(BrokerError::ResourceLocked(what)),
            Err(error) => Err(error),
        }
    }

    /// A shard's leader changed or its stream came back: transient queues of this gateway are made again, and
    /// consumers of transient queues attach anew.
    pub(crate) fn recover_transients(self: &Arc<Self>, shard: ShardId) {
        let owned: Vec<(Name, Owned)> = {
            let all = lock(&self.transients.owned);
            let here = all.iter().filter(|(_, owned)| owned.declare.shard == shard.0);
            here.map(|(name, owned)| (name.clone(), owned.clone())).collect()
        };
        let consumers = self.shard(shard).with(|state| state.consumers.of_logs(LogId::is_transient));
        if owned.is_empty() && consumers.is_empty() {
            return;
        }
        let engine = self.clone();
        self.spawn(async move {
            for ((namespace, name), owned) in owned {
                engine.make_again(namespace, &name, &owned).await;
            }
            for (id, _) in consumers {
                if let Some(place) = engine.consumer(id) {
                    engine.attach_transient_again(shard, id, &place).await;
                }
            }
        });
    }

    /// Makes a queue of this gateway again, unless it was deleted, here or elsewhere, before that was done.
    async fn make_again(&self, namespace: u32, name: &Arc<str>, owned: &Owned) {
        if self.transients.owned(namespace, name).is_none() {
            return;
        }
        if owned.was_deleted_elsewhere(name) {
            self.transients.disown(namespace, name);
            return;
        }
        self.transients.forget(namespace, name);
        match self.declare_transient(&owned.declare).await {
            Ok(found) if self.transients.made_again(namespace, name, found.created) => {
                self.transients.learn(namespace, name, LogId(found.log));
            }
            Ok(found) => {
                let (shard, log) = (owned.declare.shard, found.log);
                let delete = v1::TransientDelete { shard, log, ..v1::TransientDelete::default() };
                let item = item(Item::TransientDelete(delete));
                self.shard(ShardId(shard)).with(|state| state.push_or_defer(item));
            }
            Err(error) => tracing::warn!(queue = %name, %error, "a transient queue was not made again"),
        }
    }

    async fn attach_transient_again(self: &Arc<Self>, shard: ShardId, id: u64, place: &ConsumerPlace) {
        let namespace = place.namespace.id.0;
        for _ in 0..LOOKS {
            let log = match self.transients.log(namespace, &place.queue) {
                Some(log) => Ok(log),
                None => {
                    let found = self.find_transient(&place.namespace, &place.queue, Purpose::Look).await;
                    found.map(|found| LogId(found.log))
                }
            };
            match log {
                Ok(log) => {
                    return self.shard(shard).with(|state| state.attach_again(id, log));
                }
                Err(BrokerError::NotFound { .. }) => tokio::time::sleep(LOOK_AGAIN_AFTER).await,
                Err(_) => break,
            }
        }
        let owner: Option<Owner> = self.shard(shard).with(|state| state.consumers.cancelled(id));
        if let Some(owner) = owner {
            let mut mail = Mail::default();
            self.consumer_ended(id, owner, &mut mail);
            self.post(mail);
        }
    }

    /// What a connection that ended had of its own goes.
    pub(crate) fn drop_owned(self: &Arc<Self>, connection: &ConnectionState) {
        let mut owned = lock(&self.transients.owned);
        let mine: Vec<_> =
            owned.extract_if(.., |_, o| o.connection == connection.id && o.declare.exclusive).collect();
        drop(owned);
        // Also what was under way when the connection went, and is noted as nobody's.
        let (mut shards, mut claimed) = connection.take_exclusive();
        shards.extend(mine.iter().map(|(_, owned)| ShardId(owned.declare.shard)));
        claimed |= mine.iter().any(|(_, owned)| owned.claimed);
        for ((namespace, name), _) in &mine {
            self.transients.forget(*namespace, name);
        }
        for shard in shards {
            let delete = v1::TransientDelete {
                shard: shard.0,
                owner: connection.id.0,
                ..v1::TransientDelete::default()
            };
            self.shard(shard).with(|state| state.push_or_defer(item(Item::TransientDelete(delete))));
        }
        if claimed && !self.lease.is_lost() {
            self.meta.forget_owner(self.session, connection.id);
        }
    }
}
