//! Queues: found, made and deleted, durable ones through meta, transient ones at their leader.

use crate::api::*;
use crate::connection_state::ConnectionState;
use crate::engine::Engine;
use crate::metadata::{QueueEntry, convert};
use crate::transients::{Owned, Purpose};

use longshore_proto::v1::{self, MetaError, answer, gateway_item::Item, meta_command::Command};
use longshore_wire::{LogId, ShardId};
use std::sync::Arc;

/// A queue, wherever it lives.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub info: QueueInfo,
    pub shard: ShardId,
    /// Of a transient queue, as its leader says.
    pub counts: Option<QueueCounts>,
    /// Of a durable one.
    pub entry: Option<Arc<QueueEntry>>,
}

fn counts(counts: v1::LogCounts) -> QueueCounts {
    QueueCounts {
        ready: counts.ready,
        unacked: counts.unacked,
        consumers: counts.consumers,
        first: counts.first,
        next: counts.next,
    }
}

/// What meta's refusal means.
pub(crate) fn meta_error(reply: &v1::MetaReply, what: &'static str, name: &str) -> Result<(), BrokerError> {
    let name = name.to_owned();
    Err(match reply.error() {
        MetaError::MetaOk => return Ok(()),
        MetaError::MetaNotFound => BrokerError::NotFound { what, name },
        MetaError::MetaInequivalent | MetaError::MetaExists => {
            BrokerError::Inequivalent { what: "arguments", name }
        }
        MetaError::MetaInUse => BrokerError::InUse(name),
        MetaError::MetaLimit => BrokerError::Limit(reply.message.clone()),
        MetaError::MetaInvalid => BrokerError::Invalid(reply.message.clone()),
        MetaError::MetaExclusive => BrokerError::ResourceLocked(name),
        MetaError::MetaForbidden => BrokerError::Forbidden(reply.message.clone()),
        MetaError::MetaNotLeader | MetaError::MetaUnavailable => BrokerError::Unavailable("meta refused"),
        MetaError::MetaSession => BrokerError::Closed,
    })
}

/// The queue of that name: from the view, else asked of the leader that would have it.
pub(crate) async fn find(
    engine: &Engine,
    who: &ConnectionState,
    name: &str,
    purpose: Purpose,
) -> Result<Found, BrokerError> {
    let entry = who.namespace.queue(name);
    if let Some(entry) = entry.as_ref().filter(|entry| entry.queue.durable) {
        let (_, shard) = entry.place();
        let info = convert::queue_info(entry, engine.session.0, who.id.0);
        return Ok(Found { info, shard, counts: None, entry: Some(entry.clone()) });
    }
    let shard = engine.view.transient_shard(who.namespace.id, name);
    let shard = shard.ok_or(BrokerError::Unavailable("the cluster is not known yet"))?;
    let found = engine.find_transient(&who.namespace, name, purpose).await?;
    engine.transients.learn(who.namespace.id.0, &name.into(), LogId(found.log));
    let owned = engine.transients.owned(who.namespace.id.0, name);
    let mine = (found.owner_session, found.owner) == (engine.session.0, who.id.0);
    let spec = owned.and_then(|owned| {
        longshore_wire::spec::LogSpec::decode(&mut longshore_wire::Reader::new(owned.declare.spec, "spec"))
            .ok()
    });
    let info = QueueInfo {
        name: name.to_owned(),
        log: LogId(found.log),
        durable: false,
        exclusive: found.exclusive,
        auto_delete: found.auto_delete,
        arguments: found.arguments,
        spec: spec.or(entry.as_ref().map(|entry| entry.spec)),
        expires_ms: entry.as_ref().map_or(0, |entry| entry.queue.expires_ms),
        single_active: entry.as_ref().is_some_and(|entry| entry.queue.single_active),
        kind: entry.map_or_else(|| "classic".to_owned(), |entry| entry.queue.kind.clone()),
        accessible: !found.exclusive || mine,
    };
    Ok(Found { info, shard, counts: found.counts.map(counts), entry: None })
}

/// Where a queue is that this connection declared for itself alone: its leader need not be asked who may use it.
/// Not one that can end by itself, since then only the leader knows whether it exists.
pub(crate) fn own_queue(engine: &Engine, who: &ConnectionState, name: &str) -> Option<(ShardId, LogId)> {
    let owned = engine.transients.owned(who.namespace.id.0, name)?;
    let declare = &owned.declare;
    let sure = declare.exclusive && !declare.auto_delete && declare.expires_ms == 0;
    let log = engine.transients.log(who.namespace.id.0, name)?;
    (sure && owned.connection == who.id).then_some((ShardId(declare.shard), log))
}

/// As [`find`], refused if the queue is exclusive to another connection.
pub(crate) async fn find_mine(
    engine: &Engine,
    who: &ConnectionState,
    name: &str,
) -> Result<Found, BrokerError> {
    accessible(find(engine, who, name, Purpose::Look).await?)
}

fn accessible(found: Found) -> Result<Found, BrokerError> {
    if found.info.accessible { Ok(found) } else { Err(BrokerError::ResourceLocked(found.info.name)) }
}

/// A queue that a client declares again, passively or not, with its counts.
pub(crate) async fn redeclared(
    engine: &Engine,
    who: &ConnectionState,
    name: &str,
) -> Result<QueueCounts, BrokerError> {
    let found = accessible(find(engine, who, name, Purpose::Use).await?)?;
    match found.counts {
        Some(counts) => Ok(counts),
        None => count(engine, &found, Purpose::Use).await,
    }
}

/// Counts of a queue, from its leader.
async fn count(engine: &Engine, found: &Found, purpose: Purpose) -> Result<QueueCounts, BrokerError> {
    let (shard, log, r#use) = (found.shard.0, found.info.log.0, purpose == Purpose::Use);
    let stat = |request| Item::LogStat(v1::LogStat { request, shard, log, cursor: 0, r#use });
    match engine.ask_for(found.shard, &found.info.name, stat).await? {
        answer::Result::Counts(found) => Ok(counts(found)),
        _ => Err(BrokerError::Unavailable("an answer of another kind")),
    }
}

/// Makes a queue, or finds it equal.
pub(crate) async fn declare(
    engine: &Arc<Engine>,
    who: &ConnectionState,
    declare: QueueDeclare,
) -> Result<QueueState, BrokerError> {
    let (name, given) = match &declare.name {
        QueueName::Given(name) => (name.clone(), true),
        QueueName::Generated(prefix) => (generate(prefix), false),
    };
    if declare.durable && !declare.exclusive {
        declare_durable(engine, who, &name, &declare).await
    } else {
        declare_transient(engine, who, &name, given, &declare).await
    }
}

/// 22 characters from 128 random bits.
fn generate(prefix: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut bits: u128 = rand::random();
    let mut name = String::with_capacity(prefix.len() + 22);
    name.push_str(prefix);
    for _ in 0..22 {
        name.push(char::from(LETTERS[(bits & 63) as usize]));
        bits >>= 6;
    }
    name
}

async fn declare_durable(
    engine: &Arc<Engine>,
    who: &ConnectionState,
    name: &str,
    declare: &QueueDeclare,
) -> Result<QueueState, BrokerError> {
    let mut created = false;
    if !who.namespace.queue(name).is_some_and(|entry| entry.queue.durable) {
        // Nobody claims the name of a transient queue that the broker named; do not put a durable one over it.
        match engine.find_transient(&who.namespace, name, Purpose::Look).await {
            Ok(found) if found.exclusive => {
                return Err(BrokerError::ResourceLocked(name.to_owned()));
            }
            Ok(_) => return Err(BrokerError::Inequivalent { what: "durable", name: name.to_owned() }),
            Err(BrokerError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
        let queue = convert::queue_message(who.namespace.id, name, declare);
        let command = Command::DeclareQueue(v1::DeclareQueue { queue: Some(queue) });
        let reply = engine.meta.submit(command, false).await?.reply;
        if reply.error() == MetaError::MetaInequivalent
            && let Some(existing) = &reply.queue
        {
            let what = differs(declare, existing).unwrap_or("arguments");
            return Err(BrokerError::Inequivalent { what, name: name.to_owned() });
        }
        meta_error(&reply, "queue", name)?;
        created = reply.created;
        let made = reply.queue.ok_or(BrokerError::Unavailable("meta named no queue"))?;
        tokio::try_join!(engine.applied_everywhere(reply.revision), ensure_log(engine, &made))?;
    }
    let found = find_mine(engine, who, name).await?;
    if let Some(what) = found.entry.as_ref().and_then(|entry| differs(declare, &entry.queue)) {
        return Err(BrokerError::Inequivalent { what, name: name.to_owned() });
    }
    let counts = if created { QueueCounts::default() } else { count(engine, &found, Purpose::Use).await? };
    Ok(QueueState { name: name.to_owned(), ready: counts.ready, consumers: counts.consumers, created })
}

fn differs(declare: &QueueDeclare, existing: &v1::Queue) -> Option<&'static str> {
    convert::queue_difference(
        declare,
        existing.durable,
        existing.exclusive,
        existing.auto_delete,
        &existing.arguments,
    )
}

/// Returns once the queue's log exists in its shard.
async fn ensure_log(engine: &Engine, queue: &v1::Queue) -> Result<(), BrokerError> {
    let Some(span) = queue.spans.last() else {
        return Err(BrokerError::Unavailable("meta gave the queue no place"));
    };
    let make = |request| {
        let (shard, log, spec) = (span.shard, queue.log, queue.spec.clone());
        Item::EnsureLog(v1::EnsureLog { request, shard, log, spec })
    };
    engine.ask_for(ShardId(span.shard), &queue.name, make).await.map(|_| ())
}

async fn declare_transient(
    engine: &Arc<Engine>,
    who: &ConnectionState,
    name: &str,
    given: bool,
    declare: &QueueDeclare,
) -> Result<QueueState, BrokerError> {
    let namespace = who.namespace.id;
    let shard = engine.view.transient_shard(namespace, name);
    let shard = shard.ok_or(BrokerError::Unavailable("the cluster is not known yet"))?;
    if declare.exclusive {
        // Before anything is asked for: the connection may go at each await, and what it asked for comes to be.
        who.note_exclusive(shard, given);
    }
    let leaving = |entry: &QueueEntry| {
        // This gateway's claim of a queue that it has no more: it goes with what waits for meta's next entry, and a
        // new claim goes behind it.
        !entry.queue.durable
            && entry.queue.owner_session == engine.session.0
            && engine.transients.owned(namespace.0, name).is_none()
    };
    if let Some(entry) = who.namespace.queue(name).filter(|entry| !leaving(entry)) {
        if !convert::queue_info(&entry, engine.session.0, who.id.0).accessible {
            return Err(BrokerError::ResourceLocked(name.to_owned()));
        }
        let durable = QueueDeclare { durable: declare.durable && !declare.exclusive, ..declare.clone() };
        if let Some(what) = differs(&durable, &entry.queue) {
            return Err(BrokerError::Inequivalent { what, name: name.to_owned() });
        }
    } else if given {
        claim(engine, who, name, declare).await?;
    }
    let message = v1::TransientDeclare {
        request: 0,
        shard: shard.0,
        namespace: namespace.0,
        name: name.to_owned(),
        exclusive: declare.exclusive,
        owner: who.id.0,
        auto_delete: declare.auto_delete,
        arguments: declare.arguments.clone(),
        spec: convert::encode_spec(&declare.spec),
        expires_ms: declare.expires_ms,
        single_active: declare.single_active,
    };
    let owned = Owned {
        namespace: who.namespace.clone(),
        declare: message,
        connection: who.id,
        named_by_client: given,
        claimed: given,
        made: false,
    };
    let made = make_transient(engine, who, name, owned).await?;
    engine.transients.learn(namespace.0, &name.into(), LogId(made.log));
    let counts = made.counts.map(counts).unwrap_or_default();
    Ok(QueueState {
        name: name.to_owned(),
        ready: counts.ready,
        consumers: counts.consumers,
        created: made.created,
    })
}

/// Has the leader make a queue, which is this gateway's from then on.
async fn make_transient(
    engine: &Arc<Engine>,
    who: &ConnectionState,
    name: &str,
    owned: Owned,
) -> Result<v1::TransientQueue, BrokerError> {
    let (namespace, exclusive) = (who.namespace.id.0, owned.declare.exclusive);
    let early = engine.transients.own_early(name.into(), &owned);
    match engine.declare_transient(&owned.declare).await {
        Ok(mut made) => {
            // A change of leader may have had it made before this request came.
            let earlier = engine.transients.owned(namespace, name).is_some_and(|known| known.made);
            made.created |= early && earlier;
            if made.created || exclusive {
                engine.transients.own(name.into(), Owned { made: true, ..owned });
            } else if early {
                engine.transients.disown(namespace, name);
            }
            if exclusive && who.is_closed() {
                // Its end may have passed before the queue was there.
                engine.drop_owned(who);
                return Err(BrokerError::Closed);
            }
            Ok(made)
        }
        Err(error) => {
            // Without an answer it may exist: an exclusive one then goes with its connection.
            if early && !(exclusive && matches!(error, BrokerError::Unavailable(_))) {
                engine.transients.disown(namespace, name);
            }
            Err(error)
        }
    }
}

fn claim_message(engine: &Engine, who: &ConnectionState, name: &str, declare: &QueueDeclare) -> Command {
    let queue = v1::Queue {
        durable: false,
        exclusive: declare.exclusive,
        owner_session: engine.session.0,
        owner: if declare.exclusive { who.id.0 } else { 0 },
        ..convert::queue_message(who.namespace.id, name, declare)
    };
    Command::DeclareQueue(v1::DeclareQueue { queue: Some(queue) })
}

/// Tells meta of a transient queue's name, so that no durable queue shares it and bindings can name it.
async fn claim(
    engine: &Engine,
    who: &ConnectionState,
    name: &str,
    declare: &QueueDeclare,
) -> Result<(), BrokerError> {
    let reply = engine.meta.submit(claim_message(engine, who, name, declare), true).await?.reply;
    if reply.error() == MetaError::MetaInequivalent
        && let Some(existing) = &reply.queue
    {
        let locked =
            existing.exclusive && (existing.owner_session, existing.owner) != (engine.session.0, who.id.0);
        if locked {
            return Err(BrokerError::ResourceLocked(name.to_owned()));
        }
        let what = differs(declare, existing).unwrap_or("arguments");
        return Err(BrokerError::Inequivalent { what, name: name.to_owned() });
    }
    meta_error(&reply, "queue", name)?;
    engine.applied_everywhere(reply.revision).await
}

/// What must go to meta before a transient queue of this gateway can be bound: the claim of its name.
pub(crate) fn claim_for_binding(engine: &Engine, who: &ConnectionState, name: &str) -> Option<Command> {
    let owned = engine.transients.owned(who.namespace.id.0, name).filter(|owned| !owned.claimed)?;
    let declare = QueueDeclare {
        name: QueueName::Given(name.to_owned()),
        durable: false,
        exclusive: owned.declare.exclusive,
        auto_delete: owned.declare.auto_delete,
        arguments: owned.declare.arguments.clone(),
        spec: longshore_wire::spec::LogSpec::QUEUE,
        expires_ms: owned.declare.expires_ms,
        single_active: owned.declare.single_active,
        kind: "classic".to_owned(),
    };
    if owned.declare.exclusive {
        who.note_exclusive(ShardId(owned.declare.shard), true);
    }
    Some(claim_message(engine, who, name, &declare))
}

/// Deletes a queue; returns how many messages were ready in it.
pub(crate) async fn delete(
    engine: &Arc<Engine>,
    who: &ConnectionState,
    name: &str,
    if_unused: bool,
    if_empty: bool,
) -> Result<u64, BrokerError> {
    if let Some((shard, log)) = own_queue(engine, who, name) {
        match delete_transient(engine, who, name, (shard, log), if_unused, if_empty).await {
            // It was made again elsewhere meanwhile: look for it.
            Err(BrokerError::NotFound { .. }) => {}
            result => return result,
        }
    }
    let found = find_mine(engine, who, name).await?;
    if found.entry.is_some() {
        let counts = count(engine, &found, Purpose::Look).await?;
        if if_unused && counts.consumers > 0 {
            return Err(BrokerError::InUse(name.to_owned()));
        }
        if if_empty && counts.ready > 0 {
            return Err(BrokerError::NotEmpty(name.to_owned()));
        }
        delete_in_meta(engine, who, name, found.info.log, false).await?;
        return Ok(counts.ready);
    }
    delete_transient(engine, who, name, (found.shard, found.info.log), if_unused, if_empty).await
}

async fn delete_transient(
    engine: &Engine,
    who: &ConnectionState,
    name: &str,
    (shard, log): (ShardId, LogId),
    if_unused: bool,
    if_empty: bool,
) -> Result<u64, BrokerError> {
    let make = |request| {
        let (shard, log) = (shard.0, log.0);
        Item::TransientDelete(v1::TransientDelete { request, shard, log, if_unused, if_empty, owner: 0 })
    };
    let result = engine.ask_for(shard, name, make).await?;
    forget_transient(engine, who, name).await?;
    match result {
        answer::Result::Done(count) => Ok(count),
        _ => Err(BrokerError::Unavailable("an answer of another kind")),
    }
}

async fn delete_in_meta(
    engine: &Engine,
    who: &ConnectionState,
    name: &str,
    log: LogId,
    paced: bool,
) -> Result<(), BrokerError> {
    let delete = v1::DeleteQueue { namespace: who.namespace.id.0, name: name.to_owned(), log: log.0 };
    let submitted = engine.meta.submit(Command::DeleteQueue(delete), paced).await?;
    let gone = submitted.reply.error() == MetaError::MetaNotFound;
    // Deleted by an attempt before, or by somebody else meanwhile: it is gone, as was asked.
    if !(gone && (submitted.repeated || paced)) {
        meta_error(&submitted.reply, "queue", name)?;
    }
    engine.applied_everywhere(submitted.reply.revision).await
}

/// An auto-delete queue lost a consumer: it goes if that was the last one. Transient ones went at their leader already;
/// what meta knows of them goes too.
pub(crate) async fn delete_if_unused(engine: &Arc<Engine>, who: &ConnectionState, name: &str) {
    let durable = who.namespace.queue(name).is_some_and(|entry| entry.queue.durable);
    let result = if durable {
        delete(engine, who, name, true, false).await.map(|_| ())
    } else {
        match engine.find_transient(&who.namespace, name, Purpose::Look).await {
            Err(BrokerError::NotFound { .. }) => forget_transient(engine, who, name).await,
            other => other.map(|_| ()),
        }
    };
    match result {
        Ok(()) | Err(BrokerError::NotFound { .. } | BrokerError::InUse(_)) => {}
        Err(error) => {
            tracing::warn!(queue = name, %error, "an auto-delete queue without consumers was not deleted");
        }
    }
}

/// A transient queue is gone: its name and its bindings go from meta, if meta knows it. Waited for only where the
/// client chose the name, which another one may want next: until its bindings are gone, a message routed by them finds
/// no queue, as it would without them.
async fn forget_transient(engine: &Engine, who: &ConnectionState, name: &str) -> Result<(), BrokerError> {
    let owned = engine.transients.disown(who.namespace.id.0, name);
    if let Some(owned) = owned.as_ref().filter(|owned| !owned.named_by_client) {
        if owned.claimed {
            engine.meta.forget_queue(who.namespace.id, name);
        }
        return Ok(());
    }
    if owned.is_some_and(|owned| owned.claimed) || who.namespace.queue(name).is_some() {
        delete_in_meta(engine, who, name, LogId(0), true).await?;
    }
    Ok(())
}

/// Drops what is ready in a queue; returns how many.
pub(crate) async fn purge(engine: &Engine, who: &ConnectionState, name: &str) -> Result<u64, BrokerError> {
    let found = find_mine(engine, who, name).await?;
    let make =
        |request| Item::Purge(v1::Purge { request, shard: found.shard.0, log: found.info.log.0, cursor: 0 });
    match engine.ask_for(found.shard, name, make).await? {
        answer::Result::Done(count) => Ok(count),
        _ => Err(BrokerError::Unavailable("an answer of another kind")),
    }
}

/// What the leader of a queue says of it: a JSON object.
pub(crate) async fn explain(
    engine: &Engine,
    shard: ShardId,
    log: LogId,
    name: &str,
) -> Result<String, BrokerError> {
    let make = |request| Item::Explain(v1::Explain { request, shard: shard.0, log: log.0, cursor: 0 });
    match engine.ask_for(shard, name, make).await? {
        answer::Result::Text(text) => Ok(text),
        _ => Err(BrokerError::Unavailable("an answer of another kind")),
    }
}

/// The counts of an answer, if it has them.
pub(crate) fn counts_of(answer: Result<answer::Result, BrokerError>) -> Option<QueueCounts> {
    match answer {
        Ok(answer::Result::Counts(found)) => Some(counts(found)),
        _ => None,
    }
}
