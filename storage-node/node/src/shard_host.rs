//! One shard on this node: its replicated state, and delivery while this node leads it.
//!
//! Danger: followers apply the same entries and must not answer anybody; every answer goes through
//! [`ShardHost::is_leader`]. Called by the turn only.

use crate::links::Links;
use crate::transient_uploads::TransientUploads;
use bytes::Bytes;
use longshore_consensus::{Membership, ProposeError, Role, Store};
use longshore_delivery::{Action, Actions, Delivery, Held};
use longshore_io::Mono;
use longshore_proto::v1::{self, batch_outcome, node_item};
use longshore_shard::{BatchResult, Effects, Event, Shard};
use longshore_wire::batch::{Batch, BatchBuilder, Item};
use longshore_wire::context::EntryContext;
use longshore_wire::row::Row;
use longshore_wire::{
    BATCH_BYTES_MAX, BatchNo, INTERNAL_SESSION, Index, LogId, LogTime, NodeId, OffsetRange, SessionId,
    ShardId, Term,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What an entry counts towards the next checkpoint besides its data, in bytes. Never 0: an empty entry (each new
/// leader begins with one) pins its segment like any other, and an idle group must be checkpointed for its sake.
pub(crate) const ENTRY_BYTES: u64 = 64;

/// What an apply left for the record store.
#[derive(Debug)]
pub(crate) struct Applied {
    pub group: ShardId,
    pub index: Index,
    pub rows: Vec<Row>,
    pub data: Bytes,
    pub released: Vec<(LogId, Vec<OffsetRange>)>,
    pub events: Vec<Event>,
}

#[derive(Debug)]
pub(crate) struct ShardHost {
    pub id: ShardId,
    node: NodeId,
    pub shard: Shard,
    pub delivery: Delivery,
    pub role: Role,
    pub membership: Membership,
    /// Bytes applied since the last checkpoint began.
    pub uncheckpointed_bytes: u64,
    /// Sessions whose opening is proposed.
    pub opening: BTreeSet<SessionId>,
    /// Sessions whose closing is proposed.
    pub closing: BTreeSet<SessionId>,
    /// Logs whose making or dropping is proposed.
    pub making: BTreeSet<LogId>,
    pub dropping: BTreeSet<LogId>,
    /// Large bodies on their way to transient queues.
    pub transient_uploads: TransientUploads,
    /// What consumers have out, as they name it ahead of their attach.
    pub naming: BTreeMap<(SessionId, u64), Vec<Held>>,
    /// What the leader itself wants replicated.
    pub proposals: Vec<Item>,
    /// What consensus could not take yet (leadership is being handed over, or too much waits for commits).
    unproposed: VecDeque<Bytes>,
    effects: Effects,
    pub actions: Actions,
    /// What delivery's counter of missing rows was when it was last looked at.
    pub missing_seen: u64,
}

impl ShardHost {
    pub fn new(id: ShardId, node: NodeId, shard: Shard, config: longshore_delivery::Config) -> ShardHost {
        ShardHost {
            id,
            node,
            shard,
            delivery: Delivery::new(id, config),
            role: Role::Follower { term: Term(0), leader: None },
            membership: Membership::default(),
            uncheckpointed_bytes: 0,
            opening: BTreeSet::new(),
            closing: BTreeSet::new(),
            making: BTreeSet::new(),
            dropping: BTreeSet::new(),
            transient_uploads: TransientUploads::default(),
            naming: BTreeMap::new(),
            proposals: Vec::new(),
            unproposed: VecDeque::new(),
            effects: Effects::default(),
            actions: Vec::new(),
            missing_seen: 0,
        }
    }

    /// The term that this node leads the shard in, if it does.
    pub fn is_leader(&self) -> Option<Term> {
        match self.role {
            Role::Leader { term } => Some(term),
            Role::Follower { .. } => None,
        }
    }

    /// Keeps what a consumer has out for its attach, which comes next. Beyond the shard's bound on leases nothing is kept: what is
    /// not named is handed over again.
    pub fn name(&mut self, session: SessionId, consumer: u64, held: Vec<Held>) {
        let named: usize = self.naming.values().map(Vec::len).sum();
        if ((named + held.len()) as u64) < self.delivery.leases_max() {
            self.naming.entry((session, consumer)).or_default().extend(held);
        }
    }

    /// The session's stream ended: it names everything again.
    pub fn session_unlinked(&mut self, session: SessionId) {
        self.delivery.link_lost(session);
        self.transient_uploads.forget(session);
        self.naming.retain(|(of, _), _| *of != session);
    }

    /// Applies one committed entry; answers gateways if this node leads.
    pub fn apply(
        &mut self,
        index: Index,
        term: Term,
        context: &Bytes,
        data: &Bytes,
        now: Mono,
        links: &mut Links,
    ) -> Applied {
        let stamp = EntryContext::decode(context.clone()).unwrap_or_default();
        self.effects.clear();
        let repeated = self.repeated(data);
        self.shard.apply(index, term, &stamp, data, &mut self.effects);
        self.uncheckpointed_bytes += ENTRY_BYTES + (context.len() + data.len()) as u64;
        if self.is_leader().is_some() {
            self.tell_delivery(now);
            repeated.into_iter().for_each(|batch| self.tell_repeated(&batch));
            self.answer(links);
        }
        Applied {
            group: self.id,
            index,
            events: std::mem::take(&mut self.effects.events),
            rows: std::mem::take(&mut self.effects.rows),
            released: std::mem::take(&mut self.effects.released),
            data: data.clone(),
        }
    }

    /// The batch, if it is one that was applied before: it only gets its old outcomes again.
    fn repeated(&self, data: &Bytes) -> Option<Batch> {
        self.is_leader()?;
        let batch = Batch::parse(data.clone()).ok()?;
        let last = self.shard.session(batch.session)?.last();
        (batch.number <= last).then_some(batch)
    }

    fn tell_repeated(&mut self, batch: &Batch) {
        for item in batch.items().filter_map(Result::ok) {
            if let Item::Settle(settle) = item.item {
                self.delivery.already_applied(batch.session, &settle, &self.shard);
            }
        }
    }

    fn tell_delivery(&mut self, now: Mono) {
        for event in &self.effects.events {
            match event {
                Event::SessionOpened(session) => {
                    self.opening.remove(session);
                }
                Event::SessionClosed(session) => {
                    self.closing.remove(session);
                }
                Event::Created { log } | Event::NotCreated { log, .. } => {
                    self.making.remove(log);
                }
                Event::Dropped { log } => {
                    self.dropping.remove(log);
                }
                _ => {}
            }
            self.delivery.on_event(now, event, &self.shard);
        }
        if !self.effects.rows.is_empty() {
            self.delivery.appended_rows(&self.effects.rows, &self.shard);
        }
    }

    fn answer(&mut self, links: &mut Links) {
        for (session, number, result) in self.effects.outcomes.drain(..) {
            if session == INTERNAL_SESSION {
                continue;
            }
            let result = match result {
                BatchResult::Outcomes(bytes) => batch_outcome::Result::Outcomes(bytes),
                BatchResult::Gap { expected } => batch_outcome::Result::Expected(expected.0),
                BatchResult::UnknownSession => batch_outcome::Result::Refused(v1::Refused::Session.into()),
                BatchResult::Malformed => batch_outcome::Result::Refused(v1::Refused::Malformed.into()),
            };
            let outcome = v1::BatchOutcome { shard: self.id.0, number: number.0, result: Some(result) };
            links.send_to_session(session, node_item::Item::Outcome(outcome));
        }
    }

    /// This node begins or ceases to lead the shard.
    pub fn role_changed(&mut self, role: Role, now: Mono, links: &mut Links) {
        let led_before = self.is_leader();
        self.role = role;
        match (led_before, role) {
            (Some(before), Role::Leader { term }) if before == term => {}
            (_, Role::Leader { term }) => {
                if led_before.is_some() {
                    self.delivery.resign(&mut self.actions);
                    links.forget_shard(self.id);
                }
                self.delivery.become_leader(now, term, &self.shard);
            }
            (Some(_), Role::Follower { .. }) => {
                self.delivery.resign(&mut self.actions);
                links.forget_shard(self.id);
            }
            (None, Role::Follower { .. }) => {}
        }
        self.transient_uploads.clear();
        self.naming.clear();
        self.opening.clear();
        self.closing.clear();
        self.making.clear();
        self.dropping.clear();
        self.proposals.clear();
        self.unproposed.clear();
        let leader = self.leader_item(0);
        for link in links.all().collect::<Vec<_>>() {
            links.send(link, leader.clone());
        }
    }

    /// Who leads, for a gateway.
    pub fn leader_item(&self, request: u64) -> node_item::Item {
        let (term, node) = match self.role {
            Role::Leader { term } => (term, self.node.0),
            Role::Follower { term, leader } => (term, leader.map_or(0, |leader| leader.node().0)),
        };
        node_item::Item::Leader(v1::Leader { shard: self.id.0, term: term.0, node, request })
    }

    /// Proposes the leader's own commands, each batch within its bound. What is not taken stays for the next try.
    /// Returns whether anything was proposed.
    pub fn propose_own(&mut self, store: &mut Store, context: &Bytes) -> Result<bool, ProposeError> {
        let mut builder = BatchBuilder::new(INTERNAL_SESSION);
        for item in self.proposals.drain(..) {
            builder.push(&item);
            if builder.bytes() >= BATCH_BYTES_MAX / 4 {
                let full = std::mem::replace(&mut builder, BatchBuilder::new(INTERNAL_SESSION));
                self.unproposed.push_back(full.finish_to_keep(BatchNo(0)));
            }
        }
        if !builder.is_empty() {
            self.unproposed.push_back(builder.finish_to_keep(BatchNo(0)));
        }
        let mut proposed = false;
        while let Some(batch) = self.unproposed.front() {
            store.propose(self.id, context.clone(), batch.clone())?;
            self.unproposed.pop_front();
            proposed = true;
        }
        Ok(proposed)
    }

    /// Asks for a gateway's session, once.
    pub fn open_session(&mut self, session: SessionId) {
        if self.shard.session(session).is_none() && self.opening.insert(session) {
            self.proposals.push(Item::OpenSession(session));
        }
    }

    /// Moves what delivery wants into `actions`.
    pub fn turn_delivery(&mut self, now: Mono, log_time: LogTime, may_deliver: bool) -> Vec<Action> {
        self.delivery.turn(now, log_time, may_deliver, &self.shard, &mut self.actions);
        std::mem::take(&mut self.actions)
    }
}
