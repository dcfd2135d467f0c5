//! One shard as the gateway's session sees it: its leader, its sender, its consumers, behind one short lock.
//!
//! Danger: the order of pushes to the outbox is the order that the leader sees; so whatever sends does it under the
//! lock. Nothing here waits.

use crate::api::*;
use crate::fan::Ticket;
use crate::lease::Lease;
use crate::mail::{Mail, Settlements};
use crate::outbox::Outbox;
use crate::session::consumers::{AttachResult, Verdict, Wanted, item};
use crate::session::pieces::Pieces;
use crate::session::sender::{Appended, Limits, Resolved, Sender, SenderError};
use crate::session::settles::End;
use crate::session::{Chunk, Consumers, NAMES_MAX, Upload};
use bytes::Bytes;
use longshore_proto::v1::{self, gateway_item::Item};
use longshore_wire::record::{NO_CLIENT_TIME, Record};
use longshore_wire::{BatchNo, CursorId, LeaseId, LogId, NodeId, Offset, SessionId, ShardId, Term, outcome};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Notify;

/// Whose a consumer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    /// The connection.
    pub connection: ConnectionId,
    /// Its name for the consumer; `None`: a get.
    pub tag: Option<ConsumerTag>,
}

/// What a connection has for a shard.
#[derive(Debug)]
pub(crate) enum Work {
    /// Encoded appends.
    Chunk(Chunk<Ticket>),
    /// A large message.
    Upload(Upload<Ticket>),
}

/// What a flush hands over.
#[derive(Debug, Default)]
pub(crate) struct Handover {
    /// Appends in order.
    pub works: Vec<Work>,
    /// Ends of deliveries, with the consumer's id.
    pub settles: Vec<(Handle, Option<u64>, End)>,
    /// Credit: consumer, messages, bytes.
    pub credits: Vec<(u64, u64, u64)>,
}

/// Counts what all shards of a session were handed, large bodies aside.
pub(crate) type Appends = Arc<AtomicU64>;

#[derive(Debug)]
pub(crate) struct State {
    session: SessionId,
    lease: Arc<Lease>,
    appends: Appends,
    /// How many there were at the last look.
    appends_seen: u64,
    pub sender: Sender<Ticket>,
    pub consumers: Consumers<Owner>,
    pieces: Pieces,
    leader: Option<(Term, NodeId)>,
    outbox: Option<Arc<Outbox>>,
    /// The leader named itself again: perhaps instead of taking a batch, so the next tick sends again.
    nudged: bool,
    /// Sent once a leader can be reached (client connections that ended meanwhile).
    deferred: Vec<v1::GatewayItem>,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Shard {
    /// Its id.
    pub id: ShardId,
    state: Mutex<State>,
    /// As `Sender::pending_bytes` after the last call.
    pending: AtomicUsize,
    /// A leader can be reached.
    pub ready: Notify,
}

impl Shard {
    /// Without a leader.
    pub fn new(id: ShardId, session: SessionId, lease: Arc<Lease>, appends: Appends) -> Shard {
        let state = State {
            session,
            lease,
            appends,
            appends_seen: 0,
            sender: Sender::new(session, Limits::default()),
            consumers: Consumers::new(id, NAMES_MAX),
            pieces: Pieces::default(),
            leader: None,
            outbox: None,
            nudged: false,
            deferred: Vec::new(),
        };
        Shard { id, state: Mutex::new(state), pending: AtomicUsize::new(0), ready: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| {
            let state = poisoned.into_inner();
            // Whoever changed it did not come to its end: a new session begins with new shards.
            state.lease.lose();
            state
        })
    }

    /// Acts on the state and then sends what may go.
    pub fn with<R>(&self, act: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = act(&mut state);
        state.pump(self.id);
        self.pending.store(state.sender.pending_bytes(), Ordering::Relaxed);
        result
    }

    /// Bytes of publishes without an outcome.
    pub fn pending_bytes(&self) -> usize {
        self.pending.load(Ordering::Relaxed)
    }

    /// The leader, and its outbox if it can be reached.
    pub fn leader(&self) -> (Option<(Term, NodeId)>, Option<Arc<Outbox>>) {
        let state = self.lock();
        (state.leader, state.outbox.clone())
    }

    /// A node says who leads. True: a leader can be reached that could not be reached before.
    pub fn set_leader(&self, term: Term, node: Option<NodeId>, outbox: Option<Arc<Outbox>>) -> bool {
        let mut state = self.lock();
        if state.leader.is_some_and(|(known, _)| term < known) {
            return false;
        }
        let Some(node) = node else {
            if state.leader.is_none_or(|(known, _)| known < term) {
                state.unreachable();
                state.leader = None;
            }
            return false;
        };
        let same = state.leader == Some((term, node));
        state.leader = Some((term, node));
        let known_outbox = match (&state.outbox, &outbox) {
            (Some(old), Some(new)) => Arc::ptr_eq(old, new),
            (None, None) => true,
            _ => false,
        };
        if same && known_outbox {
            state.nudged = outbox.is_some();
            return false;
        }
        state.unreachable();
        state.consumers.seen(term);
        let Some(outbox) = outbox else { return false };
        state.reach(outbox);
        state.pump(self.id);
        drop(state);
        self.ready.notify_waiters();
        true
    }

    /// The stream to a node is there. True: that node leads, so it can be reached now.
    pub fn link_up(&self, node: NodeId, outbox: &Arc<Outbox>) -> bool {
        let leader = self.lock().leader;
        match leader {
            Some((term, leader)) if leader == node => self.set_leader(term, Some(node), Some(outbox.clone())),
            _ => false,
        }
    }

    /// The stream to a node is gone.
    pub fn link_down(&self, node: NodeId) {
        let mut state = self.lock();
        if state.leader.is_some_and(|(_, leader)| leader == node) {
            state.unreachable();
        }
    }

    /// Takes what a connection flushed. Whether the shard has too much to do, and how many settlements it
    /// made of what came.
    pub fn hand_over(
        &self,
        connection: ConnectionId,
        work: Handover,
        pending_bytes_max: usize,
    ) -> (bool, Settlements) {
        self.with(|state| {
            for work in work.works {
                match work {
                    Work::Chunk(chunk) => {
                        state.appends.fetch_add(1, Ordering::Relaxed);
                        state.sender.push(connection.0, chunk);
                    }
                    Work::Upload(upload) => state.sender.push_upload(connection.0, upload),
                }
            }
            let settlements = state.settle(self.id, connection, work.settles);
            for (consumer, messages, bytes) in work.credits {
                if let Some(credit) = state.consumers.credit(consumer, messages, bytes) {
                    state.push(Item::Credit(credit));
                }
            }
            (state.sender.pending_bytes() > pending_bytes_max, settlements)
        })
    }

    /// Sends something to `node`. False: it does not lead any more, or cannot be reached.
    pub fn push_to(&self, node: NodeId, what: Item) -> bool {
        self.with(|state| match &state.outbox {
            Some(outbox) if state.leader.is_some_and(|(_, leader)| leader == node) => outbox.push(item(what)),
            _ => false,
        })
    }

    /// Returns a message that a get took and nobody wants, unseen by any client. Nothing happens if it went back
    /// already, with the end of its connection.
    pub fn give_back(&self, handle: &Handle) {
        let settles = vec![(*handle, None, End::Returned { counted: false })];
        // In nobody's name: no connection waits for the outcome.
        self.with(|state| state.settle(self.id, ConnectionId(0), settles));
    }

    /// Asks for a consumer; the answer comes through [`State::attached`].
    pub fn attach(&self, id: u64, wanted: Wanted, owner: Owner) {
        self.with(|state| {
            let attach = state.consumers.attach(id, wanted, owner);
            state.push(Item::Attach(attach));
        });
    }

    /// Ends a consumer.
    pub fn detach(&self, id: u64, keep_leases: bool) {
        self.with(|state| {
            if let Some(detach) = state.consumers.detach(id, keep_leases) {
                state.push_item(detach);
            }
        });
    }

    /// Some times a second: tries again what was declined, and with `attaches` what was not answered.
    pub fn tick(&self, attaches: bool) {
        self.with(|state| {
            if std::mem::take(&mut state.nudged) && state.outbox.is_some() {
                state.sender.connected();
            }
            if state.sender.needs_retry() {
                state.sender.retry();
            }
            if attaches && state.outbox.is_some() {
                for item in state.consumers.unanswered(LogId::is_transient) {
                    state.push_item(item);
                }
            }
        });
    }

    /// The session is over: everything whose fate is unknown.
    pub fn end(&self) -> Vec<Ticket> {
        let mut state = self.lock();
        state.unreachable();
        let session = state.session;
        std::mem::replace(&mut state.sender, Sender::new(session, Limits::default())).into_tags()
    }
}

impl State {
    fn push(&self, what: Item) {
        self.push_item(item(what));
    }

    fn push_item(&self, item: v1::GatewayItem) {
        if let Some(outbox) = &self.outbox {
            // If the stream has ended, the loss of the link makes good for it.
            let _sent = outbox.push(item);
        }
    }

    /// Sends now, or once a leader can be reached.
    pub fn push_or_defer(&mut self, item: v1::GatewayItem) {
        match &self.outbox {
            Some(outbox) => {
                let _sent = outbox.push(item);
            }
            None => self.deferred.push(item),
        }
    }

    fn pump(&mut self, shard: ShardId) {
        let Some(outbox) = &self.outbox else { return };
        // Without a lease nothing new goes out; the next tick looks again.
        if !self.lease.holds() {
            return;
        }
        let appends = self.appends.load(Ordering::Relaxed);
        if std::mem::replace(&mut self.appends_seen, appends) != appends {
            self.sender.published_beside();
        }
        while let Some(batch) = self.sender.poll() {
            outbox.push(item(Item::Submit(v1::Submit { shard: shard.0, batch })));
        }
    }

    fn unreachable(&mut self) {
        self.outbox = None;
        self.sender.disconnected();
        self.pieces.clear();
    }

    /// First what is held, so that the new leader does not deliver it to others; then the batches.
    fn reach(&mut self, outbox: Arc<Outbox>) {
        for item in self.consumers.attach_all(LogId::is_transient) {
            outbox.push(item);
        }
        for item in self.deferred.drain(..) {
            outbox.push(item);
        }
        self.outbox = Some(outbox);
        self.sender.connected();
    }

    /// Ends deliveries: those of transient queues at once, the others with the next batch.
    fn settle(
        &mut self,
        shard: ShardId,
        connection: ConnectionId,
        settles: Vec<(Handle, Option<u64>, End)>,
    ) -> Settlements {
        let mut settlements = Settlements::default();
        let mut settles: Vec<_> = settles
            .into_iter()
            .filter(|(handle, id, _)| self.consumers.settled(*id, handle.log, handle.offset, handle.lease))
            .map(|(handle, _, end)| (handle.log, handle.term, (handle.offset, handle.lease, end)))
            .collect();
        settles.sort_by_key(|(log, term, (offset, ..))| (*log, *term, *offset));
        for group in settles.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let Some((log, term, ..)) = group.first().copied() else { continue };
            if !log.is_transient() {
                settlements.count(group.iter().all(|(.., (.., end))| *end == End::Acked));
            }
            self.settle_group(shard, connection, log, term, group.iter().map(|(.., ended)| *ended));
        }
        settlements
    }

    fn settle_group(
        &mut self,
        shard: ShardId,
        connection: ConnectionId,
        log: LogId,
        term: Term,
        ends: impl Iterator<Item = (Offset, LeaseId, End)> + Clone,
    ) {
        if log.is_transient() {
            let (mut acked, mut returned) = (Vec::new(), Vec::new());
            for (offset, _, end) in ends {
                match end {
                    End::Returned { .. } => returned.push(offset.0),
                    End::Acked | End::Dead(_) => acked.push(offset.0),
                }
            }
            return self.push(Item::TransientSettle(v1::TransientSettle {
                shard: shard.0,
                log: log.0,
                acked,
                returned,
            }));
        }
        let leases = ends.clone().map(|(offset, lease, _)| (offset, lease)).collect();
        let acked = ends.clone().all(|(.., end)| end == End::Acked);
        let ticket = Ticket::Settle { connection, log, term, leases, acked };
        self.sender.settle((log, CursorId(0), term), ends, ticket);
    }

    /// Gives back what a connection that ended holds without a consumer.
    pub fn return_loose(&mut self, shard: ShardId, connection: ConnectionId) {
        let mut loose = self.consumers.take_loose(|owner| owner.connection == connection);
        loose.sort_unstable();
        for group in loose.chunk_by(|a, b| (a.0, a.1) == (b.0, b.1)) {
            let Some((log, term, ..)) = group.first().copied() else { continue };
            let ends =
                group.iter().map(|(_, _, offset, lease)| (*offset, *lease, End::Returned { counted: true }));
            self.settle_group(shard, connection, log, term, ends);
        }
    }

    /// Attaches a consumer of a transient queue to the queue's log as it is now.
    pub fn attach_again(&mut self, id: u64, log: LogId) {
        for item in self.consumers.attach_again(id, log) {
            self.push_item(item);
        }
    }

    /// The node has space again.
    pub fn unblocked(&mut self, node: NodeId) {
        if self.leader.is_some_and(|(_, leader)| leader == node) {
            self.sender.unblocked();
        }
    }

    /// A batch's answer. One of a leader of before does not count: the new one is asked again, so that it learns of
    /// returns that were applied before its term while they were still named to it as held.
    pub fn outcome(
        &mut self,
        node: NodeId,
        answer: v1::BatchOutcome,
        mail: &mut Mail,
    ) -> Result<(), SenderError> {
        if self.outbox.is_none() || self.leader.is_none_or(|(_, leader)| leader != node) {
            return Ok(());
        }
        let mut resolved = Vec::new();
        let number = BatchNo(answer.number);
        match answer.result {
            Some(v1::batch_outcome::Result::Outcomes(bytes)) => {
                let outcomes =
                    outcome::decode(bytes).map_err(|_| SenderError::Contradiction("unreadable outcomes"))?;
                self.sender.outcome(number, outcomes, &mut resolved)?;
            }
            Some(v1::batch_outcome::Result::Expected(expected)) => {
                self.sender.gap(number, BatchNo(expected), &mut resolved)?;
            }
            Some(v1::batch_outcome::Result::Refused(reason)) => {
                let reason = v1::Refused::try_from(reason).unwrap_or(v1::Refused::Busy);
                self.sender.refused(number, reason, &mut resolved)?;
            }
            None => return Err(SenderError::Contradiction("an outcome without a result")),
        }
        for resolved in resolved {
            match resolved {
                Resolved::Appended(Ticket::Publish(ticket), result) => {
                    mail.resolve(&ticket, publish_result(result));
                }
                Resolved::Settled(Ticket::Settle { connection, log, term, leases, acked }) => {
                    self.consumers.settle_done(log, term, &leases);
                    mail.to(connection).settled.count(acked);
                }
                Resolved::Appended(Ticket::Settle { .. }, _) | Resolved::Settled(Ticket::Publish(_)) => {
                    return Err(SenderError::Contradiction("an outcome of another kind"));
                }
            }
        }
        Ok(())
    }

    /// An attach was answered.
    pub fn attached(&mut self, answer: &v1::Attached) -> (AttachResult, Option<Owner>) {
        self.consumers.attached(answer)
    }

    /// Messages for consumers. What completes a get is given back.
    pub fn deliver(
        &mut self,
        shard: ShardId,
        deliver: v1::Deliver,
        mail: &mut Mail,
    ) -> Vec<(v1::Delivery, Vec<Bytes>)> {
        let term = Term(deliver.term);
        let mut gets = Vec::new();
        for delivery in deliver.deliveries {
            let Some((delivery, pieces)) = self.pieces.take(delivery) else { continue };
            if delivery.consumer == 0 {
                gets.push((delivery, pieces));
                continue;
            }
            let bytes = delivery.record.len() as u64 + delivery.body_bytes;
            match self.consumers.delivery(term, &delivery, bytes) {
                Verdict::Deliver(owner) => {
                    if let Some(message) = message(shard, term, delivery, pieces, owner.tag) {
                        mail.to(owner.connection).deliveries.push(message);
                    }
                }
                Verdict::Return => {
                    let returned = End::Returned { counted: false };
                    let end = (Offset(delivery.offset), LeaseId(delivery.lease), returned);
                    let (log, none) = (LogId(delivery.log), ConnectionId(0));
                    self.settle_group(shard, none, log, term, std::iter::once(end));
                }
                Verdict::Drop => {}
            }
        }
        gets
    }

    /// A get was answered; `None` while pieces of it are to come.
    pub fn got(&mut self, delivery: v1::Delivery) -> Option<(v1::Delivery, Vec<Bytes>)> {
        self.pieces.take(delivery)
    }
}

fn publish_result(appended: Appended) -> PublishResult {
    match appended {
        Appended::Stored => PublishResult::Stored,
        Appended::Gone => PublishResult::Unroutable,
        Appended::Refused(refusal) => {
            PublishResult::Refused(BrokerError::Limit(format!("the shard refused the message: {refusal:?}")))
        }
    }
}

/// A delivery as adapters see it; `None` (and a log line) if the record cannot be read.
pub(crate) fn message(
    shard: ShardId,
    term: Term,
    delivery: v1::Delivery,
    mut pieces: Vec<Bytes>,
    tag: Option<ConsumerTag>,
) -> Option<Delivery> {
    let charged_bytes = delivery.record.len() as u64 + delivery.body_bytes;
    let record = match Record::parse(delivery.record) {
        Ok(record) => record,
        Err(error) => {
            tracing::error!(log = delivery.log, offset = delivery.offset, %error, "unreadable record, not delivered");
            return None;
        }
    };
    let own = record.body();
    let body = if pieces.is_empty() {
        Body::One(own)
    } else {
        if !own.is_empty() {
            pieces.push(own);
        }
        Body::Many(pieces)
    };
    let time = record.client_time_ms();
    Some(Delivery {
        handle: Handle {
            log: LogId(delivery.log),
            shard,
            offset: Offset(delivery.offset),
            lease: LeaseId(delivery.lease),
            term,
            tag,
        },
        redelivered: delivery.redelivered,
        returns: delivery.returns,
        form: record.form(),
        routing_key: record.routing_key(),
        properties: record.properties(),
        body,
        priority: record.priority(),
        client_time_ms: (time != NO_CLIENT_TIME).then_some(time),
        charged_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_taken_for_a_node_that_is_no_reachable_leader() {
        let shard = Shard::new(ShardId(1), SessionId(1), Arc::new(Lease::new()), Appends::default());
        let stat = || Item::LogStat(v1::LogStat { request: 1, shard: 1, ..v1::LogStat::default() });
        assert!(!shard.push_to(NodeId(1), stat()), "no leader");
        let outbox = Arc::new(Outbox::default());
        assert!(shard.set_leader(Term(1), Some(NodeId(1)), Some(outbox.clone())));
        assert!(shard.push_to(NodeId(1), stat()));
        assert!(!shard.push_to(NodeId(2), stat()), "another one leads");
        outbox.close();
        assert!(!shard.push_to(NodeId(1), stat()), "its stream has ended, which the shard was not told yet");
        shard.set_leader(Term(2), Some(NodeId(2)), None);
        assert!(!shard.push_to(NodeId(2), stat()), "no link");
    }
}
