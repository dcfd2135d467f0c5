//! What gateways ask of a shard's leader: batches, consumers, gets, transient queues.
//!
//! Every answer that needs a leader is, on any other node, the name of the leader. Called by the turn only.

use crate::explain;
use crate::host::Host;
use crate::io::LinkId;
use crate::shard_host::ShardHost;
use bytes::Bytes;
use longshore_consensus::{ProposeError, Store};
use longshore_delivery::{
    Attach, ConsumerKey, Counts, Held, Mode, QueueId, Refused, Start, TransientAppended, TransientDeclare,
    TransientInfo,
};
use longshore_io::Mono;
use longshore_proto::v1::{self, answer, batch_outcome, gateway_item, node_item, start_at};
use longshore_wire::batch::{Batch, Item};
use longshore_wire::context::EntryContext;
use longshore_wire::record::{Record, flags};
use longshore_wire::spec::LogSpec;
use longshore_wire::{
    BATCH_BYTES_MAX, CursorId, LeaseId, LogId, LogTime, NamespaceId, Offset, Reader, SessionId, ShardId, Term,
};

/// Which shard and which request an item is for; request 0 where it has none.
fn address(item: &gateway_item::Item) -> Option<(ShardId, u64)> {
    use gateway_item::Item as I;
    let (shard, request) = match item {
        I::Hello(_) => return None,
        I::Submit(i) => (i.shard, 0),
        I::Attach(i) => (i.shard, 0),
        I::Detach(i) => (i.shard, 0),
        I::Credit(i) => (i.shard, 0),
        I::Get(i) => (i.shard, i.request),
        I::TransientDeclare(i) => (i.shard, i.request),
        I::TransientDelete(i) => (i.shard, i.request),
        I::TransientAppend(i) => (i.shard, i.request),
        I::TransientPart(i) => (i.shard, 0),
        I::TransientSettle(i) => (i.shard, 0),
        I::LogStat(i) => (i.shard, i.request),
        I::EnsureLog(i) => (i.shard, i.request),
        I::TransientFind(i) => (i.shard, i.request),
        I::Purge(i) => (i.shard, i.request),
        I::Explain(i) => (i.shard, i.request),
        I::Reported(i) => (i.shard, 0),
        I::Hold(i) => (i.shard, 0),
    };
    Some((ShardId(shard), request))
}

pub(crate) fn refused(why: Refused) -> v1::Refused {
    match why {
        Refused::UnknownLog => v1::Refused::UnknownLog,
        Refused::Exclusive => v1::Refused::Exclusive,
        Refused::InUse => v1::Refused::InUse,
        Refused::NotEmpty => v1::Refused::NotEmpty,
        Refused::Inequivalent => v1::Refused::Inequivalent,
        Refused::Busy | Refused::NotLeader => v1::Refused::Busy,
    }
}

fn counts(counts: Counts) -> v1::LogCounts {
    v1::LogCounts {
        ready: counts.ready,
        unacked: counts.unacked,
        consumers: counts.consumers,
        first: counts.first.0,
        next: counts.next.0,
    }
}

fn transient(info: TransientInfo) -> v1::TransientQueue {
    let (session, owner) = info.owner.unwrap_or_default();
    v1::TransientQueue {
        log: info.log.0,
        created: info.created,
        counts: Some(counts(info.counts)),
        exclusive: info.owner.is_some(),
        owner_session: session.0,
        owner,
        auto_delete: info.auto_delete,
        arguments: info.arguments,
    }
}

fn held(list: &[v1::Held]) -> Vec<Held> {
    list.iter()
        .map(|h| Held { offset: Offset(h.offset), lease: LeaseId(h.lease), term: Term(h.term) })
        .collect()
}

fn answer(request: u64, result: answer::Result) -> node_item::Item {
    node_item::Item::Answer(v1::Answer { request, result: Some(result) })
}

fn answer_refused(request: u64, why: v1::Refused) -> node_item::Item {
    answer(request, answer::Result::Refused(why.into()))
}

impl Host {
    /// Carries out an item of a gateway, or says who leads.
    pub(crate) fn link_item(&mut self, store: &mut Store, now: Mono, link: LinkId, item: gateway_item::Item) {
        let Some(session) = self.links.session(link) else { return };
        if self.links.of_session(session) != Some(link) {
            // Late, on an older stream. On the newer one everything was said again; an attach of before would take from the
            // consumer what it was handed since (simulation, seeds 38 and 84).
            return;
        }
        let Some((shard, request)) = address(&item) else { return };
        let Some(mut host) = self.shards.remove(&shard) else {
            let leader = v1::Leader { shard: shard.0, term: 0, node: 0, request };
            return self.links.send(link, node_item::Item::Leader(leader));
        };
        if let Some(term) = host.is_leader() {
            let mut turn = ItemTurn { store, now, link, session, term };
            self.lead_item(&mut turn, &mut host, item);
            self.dirty.insert(shard);
        } else {
            self.links.send(link, host.leader_item(request));
        }
        self.shards.insert(shard, host);
    }

    fn lead_item(&mut self, turn: &mut ItemTurn<'_>, host: &mut ShardHost, item: gateway_item::Item) {
        use gateway_item::Item as I;
        match &item {
            I::Attach(i) => self.usage.touch(LogId(i.log), turn.now, true),
            I::Get(i) => self.usage.touch(LogId(i.log), turn.now, false),
            I::LogStat(i) if i.r#use => self.usage.touch(LogId(i.log), turn.now, false),
            I::EnsureLog(i) => self.usage.touch(LogId(i.log), turn.now, false),
            _ => {}
        }
        match item {
            I::Hello(_) => {}
            I::Submit(submit) => self.submit(turn, host, submit.batch),
            I::Attach(attach) => self.attach(turn, host, attach),
            I::Detach(i) => host.delivery.detach(turn.now, turn.key(i.consumer), i.keep_leases),
            I::Credit(i) => host.delivery.credit(turn.key(i.consumer), i.messages, i.bytes),
            I::Get(i) if !self.ensure_session(turn, host) => {
                self.links.send(turn.link, answer_refused(i.request, v1::Refused::Busy));
            }
            I::Get(i) => {
                host.delivery.get(turn.session, i.request, queue(i.log, i.cursor), &host.shard);
            }
            I::TransientDeclare(i) => self.transient_declare(turn, host, i),
            I::TransientFind(i) => {
                let (namespace, name) = (NamespaceId(i.namespace), i.name.as_bytes());
                if i.r#use {
                    host.delivery.transient_use(turn.now, namespace, name);
                }
                let found = host.delivery.transient_find(namespace, name);
                let result = found.map_or(answer_refused(i.request, v1::Refused::UnknownLog), |info| {
                    answer(i.request, answer::Result::Transient(transient(info)))
                });
                self.links.send(turn.link, result);
            }
            I::TransientDelete(i) => self.transient_delete(turn, host, i),
            I::TransientAppend(i) => self.transient_append(turn, host, i),
            I::TransientPart(i) => host.transient_uploads.part(turn.session, i.upload, i.at, i.bytes),
            I::TransientSettle(i) => {
                let offsets = |list: Vec<u64>| list.into_iter().map(Offset).collect::<Vec<_>>();
                let (acked, returned) = (offsets(i.acked), offsets(i.returned));
                host.delivery.transient_settle(turn.session, LogId(i.log), &acked, &returned);
            }
            I::LogStat(i) => {
                let found = host.delivery.stat(queue(i.log, i.cursor), &host.shard);
                let result = found.map_or(answer_refused(i.request, v1::Refused::UnknownLog), |found| {
                    answer(i.request, answer::Result::Counts(counts(found)))
                });
                self.links.send(turn.link, result);
            }
            I::EnsureLog(i) => self.ensure_log(turn, host, i),
            I::Purge(i) => self.purge(turn, host, &i),
            I::Explain(i) => {
                let may_deliver = turn.store.may_deliver(host.id, turn.now);
                let log_time = turn.log_time(host);
                let found = host.delivery.explain(log_time, may_deliver, queue(i.log, i.cursor), &host.shard);
                let text = explain::json(&found, turn.now, log_time);
                self.links.send(turn.link, answer(i.request, answer::Result::Text(text)));
            }
            I::Reported(_) => host.delivery.session_reported(turn.now, turn.session),
            I::Hold(i) if i.consumer != 0 => host.name(turn.session, i.consumer, held(&i.held)),
            I::Hold(_) if !self.ensure_session(turn, host) => {}
            I::Hold(i) => {
                let id = queue(i.log, i.cursor);
                host.delivery.hold(turn.now, turn.session, id, &held(&i.held), &host.shard);
            }
        }
    }

    /// Makes sure that the session is open in the shard before what needs it is applied. False: it is closed, or meta does not
    /// know it here yet, so it may be a dead one.
    fn ensure_session(&mut self, turn: &ItemTurn<'_>, host: &mut ShardHost) -> bool {
        if host.shard.session(turn.session).is_some() || host.opening.contains(&turn.session) {
            return true;
        }
        if host.shard.is_session_closed(turn.session) || !self.meta.has_session(turn.session) {
            return false;
        }
        host.open_session(turn.session);
        true
    }

    fn submit(&mut self, turn: &mut ItemTurn<'_>, host: &mut ShardHost, bytes: Bytes) {
        let Ok(batch) = Batch::parse(bytes) else {
            // Without a number there is nothing to answer to: the gateway is broken, its stream ends.
            return self.close_links.push(turn.link);
        };
        let (shard, number) = (host.id.0, batch.number.0);
        let refuse = |why: v1::Refused| {
            let result = Some(batch_outcome::Result::Refused(why.into()));
            node_item::Item::Outcome(v1::BatchOutcome { shard, number, result })
        };
        if batch.session != turn.session {
            return self.links.send(turn.link, refuse(v1::Refused::Session));
        }
        if batch.bytes().len() > BATCH_BYTES_MAX || batch.verify().is_err() || !only_client_items(&batch) {
            return self.links.send(turn.link, refuse(v1::Refused::Malformed));
        }
        if self.is_short_of_space(turn.store, host.id) && has_append(&batch) {
            return self.links.send(turn.link, refuse(v1::Refused::NoSpace));
        }
        if !self.ensure_session(turn, host) {
            return self.links.send(turn.link, refuse(v1::Refused::Busy));
        }
        let data = match host.delivery.admit_batch(&batch) {
            Ok(Some(filtered)) => filtered,
            Ok(None) => batch.bytes().clone(),
            Err(_) => return self.links.send(turn.link, refuse(v1::Refused::Malformed)),
        };
        if let Err(error) = self.propose_with_own(turn, host, data) {
            let item = match error {
                ProposeError::NotLeader { .. } | ProposeError::UnknownGroup => host.leader_item(0),
                ProposeError::Busy => refuse(v1::Refused::Busy),
                ProposeError::TooLarge { .. } => refuse(v1::Refused::Malformed),
            };
            self.links.send(turn.link, item);
        }
    }

    /// Proposes `data`, after what the leader itself wants replicated before it.
    fn propose_with_own(
        &mut self,
        turn: &mut ItemTurn<'_>,
        host: &mut ShardHost,
        data: Bytes,
    ) -> Result<(), ProposeError> {
        // Without a majority's clocks nothing can be stamped: that is over with the first heartbeats.
        let stamp = turn.store.stamp(host.id, turn.now).ok_or(ProposeError::Busy)?;
        let context = EntryContext { stamp }.encode();
        host.propose_own(turn.store, &context)?;
        turn.store.propose(host.id, context, data)
    }

    fn attach(&mut self, turn: &ItemTurn<'_>, host: &mut ShardHost, attach: v1::Attach) {
        let id = queue(attach.log, attach.cursor);
        let mut names = host.naming.remove(&(turn.session, attach.consumer)).unwrap_or_default();
        names.extend(held(&attach.held));
        if !id.log.is_transient() && !self.ensure_session(turn, host) {
            let attached = v1::Attached {
                shard: host.id.0,
                consumer: attach.consumer,
                term: turn.term.0,
                refused: Some(v1::Refused::Busy.into()),
                attempt: attach.attempt,
            };
            return self.links.send(turn.link, node_item::Item::Attached(attached));
        }
        let attach = Attach {
            key: turn.key(attach.consumer),
            queue: id,
            mode: attach.start.map_or(Mode::Settle, |start| Mode::Position(start_of(start))),
            exclusive: attach.exclusive,
            single_active: attach.single_active,
            priority: attach.priority,
            credit_messages: attach.credit_messages,
            credit_bytes: attach.credit_bytes,
            lease_ms: None,
            held: names,
            attempt: attach.attempt,
        };
        // Whatever still waits for its body was handed over for an earlier attach: it is taken back.
        self.links.forget_consumer(turn.session, attach.key.consumer);
        host.delivery.attach(turn.now, attach, &host.shard);
    }

    fn ensure_log(&mut self, turn: &mut ItemTurn<'_>, host: &mut ShardHost, ensure: v1::EnsureLog) {
        let log = LogId(ensure.log);
        if host.shard.log(log).is_some() {
            return self.links.send(turn.link, answer(ensure.request, answer::Result::Done(0)));
        }
        let Ok(spec) = LogSpec::decode(&mut Reader::new(ensure.spec, "log spec")) else {
            return self.links.send(turn.link, answer_refused(ensure.request, v1::Refused::Malformed));
        };
        if host.shard.is_dropped(log) {
            return self.links.send(turn.link, answer_refused(ensure.request, v1::Refused::UnknownLog));
        }
        if host.making.insert(log) {
            host.proposals.push(Item::CreateLog { log, spec });
        }
        self.waiting_for_log.entry((host.id, log)).or_default().push((turn.link, ensure.request));
    }

    fn purge(&mut self, turn: &ItemTurn<'_>, host: &mut ShardHost, purge: &v1::Purge) {
        let log = LogId(purge.log);
        if log.is_transient() {
            let result = match host.delivery.transient_purge(log) {
                Ok(count) => answer(purge.request, answer::Result::Done(count)),
                Err(why) => answer_refused(purge.request, refused(why)),
            };
            return self.links.send(turn.link, result);
        }
        let queue = queue(purge.log, purge.cursor);
        let counts = host.delivery.stat(queue, &host.shard);
        match host.delivery.purge_item(queue, &host.shard) {
            // Nothing would be purged, and no event would tell so.
            Some(_) if counts.is_some_and(|counts| counts.ready + counts.delayed == 0) => {
                self.links.send(turn.link, answer(purge.request, answer::Result::Done(0)));
            }
            Some(item) => {
                host.proposals.push(item);
                self.waiting_for_purge.entry((host.id, log)).or_default().push((turn.link, purge.request));
            }
            None => self.links.send(turn.link, answer_refused(purge.request, v1::Refused::UnknownLog)),
        }
    }

    fn transient_declare(
        &mut self,
        turn: &ItemTurn<'_>,
        host: &mut ShardHost,
        declare: v1::TransientDeclare,
    ) {
        let Ok(spec) = LogSpec::decode(&mut Reader::new(declare.spec, "log spec")) else {
            return self.links.send(turn.link, answer_refused(declare.request, v1::Refused::Malformed));
        };
        let asker = (turn.session, declare.owner);
        let wanted = TransientDeclare {
            namespace: NamespaceId(declare.namespace),
            name: Bytes::from(declare.name),
            owner: declare.exclusive.then_some(asker),
            auto_delete: declare.auto_delete,
            arguments: declare.arguments,
            spec,
            expires_ms: declare.expires_ms,
            single_active: declare.single_active,
        };
        let result = match host.delivery.transient_declare(turn.now, asker, wanted) {
            Ok(info) => answer(declare.request, answer::Result::Transient(transient(info))),
            Err(why) => answer_refused(declare.request, refused(why)),
        };
        self.links.send(turn.link, result);
    }

    fn transient_delete(&mut self, turn: &ItemTurn<'_>, host: &mut ShardHost, delete: v1::TransientDelete) {
        let result = if delete.owner != 0 {
            Ok(host.delivery.transient_delete_owned(turn.session, delete.owner))
        } else {
            host.delivery.transient_delete(LogId(delete.log), delete.if_unused, delete.if_empty)
        };
        let item = match result {
            Ok(count) => answer(delete.request, answer::Result::Done(count)),
            Err(why) => answer_refused(delete.request, refused(why)),
        };
        self.links.send(turn.link, item);
    }

    fn transient_append(
        &mut self,
        turn: &mut ItemTurn<'_>,
        host: &mut ShardHost,
        append: v1::TransientAppend,
    ) {
        let Ok(record) = Record::parse(append.record) else { return self.close_links.push(turn.link) };
        let parts = match record.flags() & flags::PARTS {
            0 => Some(Vec::new()),
            _ => host.transient_uploads.take(turn.session, record.upload(), append.body_bytes),
        };
        let appended = match parts {
            Some(parts) => host.delivery.transient_append(turn.log_time(host), record, parts),
            None => TransientAppended { full: record.targets().collect(), missing: Vec::new() },
        };
        if append.request != 0 {
            let ids = |logs: &[LogId]| logs.iter().map(|log| log.0).collect();
            let (missing, full) = (ids(&appended.missing), ids(&appended.full));
            let outcome = v1::TransientOutcome { request: append.request, missing, full };
            self.links.send(turn.link, node_item::Item::TransientOutcome(outcome));
        }
    }
}

/// What an item of a gateway meets.
struct ItemTurn<'a> {
    store: &'a mut Store,
    now: Mono,
    link: LinkId,
    session: SessionId,
    term: Term,
}

impl ItemTurn<'_> {
    fn log_time(&mut self, host: &ShardHost) -> LogTime {
        self.store.stamp(host.id, self.now).unwrap_or_else(|| host.shard.log_time())
    }

    fn key(&self, consumer: u64) -> ConsumerKey {
        ConsumerKey { session: self.session, consumer }
    }
}

fn queue(log: u64, cursor: u32) -> QueueId {
    QueueId { log: LogId(log), cursor: CursorId(cursor) }
}

fn start_of(start: v1::StartAt) -> Start {
    match start.at {
        Some(start_at::At::Offset(offset)) => Start::Offset(Offset(offset)),
        Some(start_at::At::First(_)) => Start::First,
        Some(start_at::At::Last(_)) => Start::Last,
        Some(start_at::At::TimeMs(ms)) => Start::Time(LogTime(ms)),
        Some(start_at::At::Next(_)) | None => Start::Next,
    }
}

/// Logs and sessions are made, dropped, opened, closed, expired and trimmed by leaders only.
fn only_client_items(batch: &Batch) -> bool {
    batch.items().all(|located| {
        located.is_ok_and(|located| {
            matches!(
                located.item,
                Item::Append { .. }
                    | Item::Part { .. }
                    | Item::Settle(_)
                    | Item::Purge { .. }
                    | Item::CommitPosition { .. }
                    | Item::Rewind { .. }
            )
        })
    })
}

fn has_append(batch: &Batch) -> bool {
    batch.items().any(|located| {
        located.is_ok_and(|located| matches!(located.item, Item::Append { .. } | Item::Part { .. }))
    })
}
