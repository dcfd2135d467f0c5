//! Delivery of one shard: the commands of gateways and the turn. Called by the node's turn loop only.
//!
//! Danger: everything here is volatile and true only for the term that `become_leader` was given. The rules of the
//! calls stand at each method; breaking them hands messages over twice or leaves them lying.

use crate::action::{Action, Actions};
use crate::agenda::Agenda;
use crate::command::{Attach, ConsumerKey, Counts, Held, Mode, QueueId, Refused};
use crate::config::{Config, Counters};
use crate::consumers::Credit;
use crate::core::{Core, Waiting};
use crate::desk::Get;
use crate::durable::Durable;
use crate::reader::Reader;
use crate::takes::{TAKE_MAX, Wish};
use crate::transients::Transients;
use crate::view::{CursorView, View};
use longshore_io::Mono;
use longshore_wire::batch::Item;
use longshore_wire::{CursorId, LogId, LogTime, SessionId, ShardId, Term};
use std::collections::BTreeMap;

/// Delivery of one shard. Does nothing, and refuses everything, while this replica does not lead it.
#[derive(Debug)]
pub struct Delivery {
    pub(crate) leading: bool,
    pub(crate) core: Core,
    pub(crate) durable: BTreeMap<QueueId, Durable>,
    pub(crate) transients: Transients,
    pub(crate) consumers: BTreeMap<ConsumerKey, QueueId>,
    pub(crate) agenda: Agenda,
    /// The last turn was not allowed to deliver.
    pub(crate) held_up: bool,
}

impl Delivery {
    /// Delivery of `shard`, which this replica does not lead yet.
    pub fn new(shard: ShardId, config: Config) -> Delivery {
        Delivery {
            leading: false,
            core: Core::new(config),
            durable: BTreeMap::new(),
            transients: Transients::new(shard),
            consumers: BTreeMap::new(),
            agenda: Agenda::default(),
            held_up: false,
        }
    }

    /// Begins a term. Call it once an entry of that term is applied, so that everything earlier is: what is stored
    /// now may have been delivered by an earlier leader, what is appended later was not.
    pub fn become_leader(&mut self, now: Mono, term: Term, shard: &impl View) {
        self.forget();
        self.leading = true;
        self.core.begin(term, shard.applied());
        self.transients.begin(term);
        let sessions = shard.sessions();
        if !sessions.is_empty() {
            let until = now.plus_ms(self.core.config.report_wait_ms);
            self.core.waiting = Some(Waiting { sessions: sessions.into_iter().collect(), until });
        }
        for (log, cursor) in shard.unsettled_queues() {
            self.track(QueueId { log, cursor });
        }
    }

    /// Ends the term: everything is forgotten. Consumers of durable logs hear of the new leader by the node's own push;
    /// those of transient queues are cancelled, because their queues are gone.
    pub fn resign(&mut self, out: &mut Actions) {
        self.transients.resign(&mut self.core, out);
        self.forget();
    }

    fn forget(&mut self) {
        self.leading = false;
        self.held_up = false;
        self.core.end();
        self.durable.clear();
        self.consumers.clear();
        self.agenda.clear();
    }

    /// The term that this replica leads, if it does.
    pub fn term(&self) -> Option<Term> {
        self.leading.then_some(self.core.term)
    }

    /// For metrics.
    pub fn counters(&self) -> Counters {
        Counters { consumers: self.consumers.len() as u64, ..self.core.counters }
    }

    /// How many messages may be out at a time.
    pub fn leases_max(&self) -> u64 {
        self.core.config.leases_max
    }

    /// The queue, remembered from now on and looked at in the next turn.
    pub(crate) fn track(&mut self, queue: QueueId) -> &mut Durable {
        self.agenda.mark(queue);
        self.durable.entry(queue).or_insert_with(|| Durable::new(queue))
    }

    /// Remembered queues of a log.
    pub(crate) fn queues_of(&self, log: LogId) -> Vec<QueueId> {
        let first = QueueId { log, cursor: CursorId(0) };
        let last = QueueId { log, cursor: CursorId(u32::MAX) };
        self.durable.range(first..=last).map(|(queue, _)| *queue).collect()
    }

    /// Makes a consumer; answered by [`Action::Attached`] in the next turn. One of the same key is replaced. Transient
    /// queues and settlement cursors refuse what they do not have: [`Refused::UnknownLog`].
    pub fn attach(&mut self, now: Mono, attach: Attach, shard: &impl View) {
        let (to, attempt) = (attach.key, attach.attempt);
        let result = self.try_attach(now, attach, shard);
        self.core.outbox.push(Action::Attached { to, attempt, result });
    }

    fn try_attach(&mut self, now: Mono, attach: Attach, shard: &impl View) -> Result<(), Refused> {
        if !self.leading {
            return Err(Refused::NotLeader);
        }
        let (key, queue) = (attach.key, attach.queue);
        if self.consumers.get(&key).is_some_and(|other| *other != queue) {
            self.end_consumer(key, true, now);
        }
        if queue.log.is_transient() {
            let transient = self.transients.queues.get_mut(&queue.log).ok_or(Refused::UnknownLog)?;
            if attach.mode != Mode::Settle {
                return Err(Refused::UnknownLog);
            }
            if transient.declared.owner.is_some_and(|(session, _)| session != key.session) {
                return Err(Refused::Exclusive);
            }
            transient.desk.consumers.admit(&attach, self.core.config.consumers_max)?;
            transient.attach(&attach, &mut self.core);
        } else {
            self.attach_durable(now, &attach, shard)?;
        }
        self.consumers.insert(key, queue);
        self.core.sessions.insert(key.session);
        self.agenda.mark(queue);
        Ok(())
    }

    fn attach_durable(&mut self, now: Mono, attach: &Attach, shard: &impl View) -> Result<(), Refused> {
        let (key, queue) = (attach.key, attach.queue);
        let log = shard.log(queue.log).ok_or(Refused::UnknownLog)?;
        let consumers_max = self.core.config.consumers_max;
        match attach.mode {
            Mode::Position(start) => {
                let durable = self.track(queue);
                if durable.readers.len() >= consumers_max {
                    return Err(Refused::Busy);
                }
                durable.desk.consumers.remove(key);
                let credit = Credit::new(attach.credit_messages, attach.credit_bytes);
                durable.readers.insert(key, Reader::new(key, credit, start, &log));
            }
            Mode::Settle => {
                let cursor = shard.cursor(queue.log, queue.cursor).ok_or(Refused::UnknownLog)?;
                let durable = self.track(queue);
                durable.desk.consumers.admit(attach, consumers_max)?;
                durable.attach(attach);
                let Some(durable) = self.durable.get_mut(&queue) else { return Ok(()) };
                let core = &mut self.core;
                durable.counting(core, |durable, core| {
                    durable.reattach(now, attach, &log, &cursor, core);
                });
            }
        }
        Ok(())
    }

    /// Ends a consumer. `keep_leases`: what it holds stays out, because its channel still owes settlements;
    /// otherwise it is returned.
    pub fn detach(&mut self, now: Mono, key: ConsumerKey, keep_leases: bool) {
        self.end_consumer(key, keep_leases, now);
    }

    fn end_consumer(&mut self, key: ConsumerKey, keep_leases: bool, now: Mono) {
        let Some(queue) = self.consumers.remove(&key) else { return };
        self.agenda.mark(queue);
        if let Some(transient) = self.transients.queues.get_mut(&queue.log) {
            transient.detach(key, keep_leases, now, &mut self.core);
            self.end_if_over(queue.log, now);
        } else if let Some(durable) = self.durable.get_mut(&queue) {
            durable.readers.remove(&key);
            durable.desk.consumers.remove(key);
            if !keep_leases {
                let offsets = durable.desk.leases.of_consumer(key);
                let again = now.plus_ms(self.core.config.propose_again_ms);
                let mut out = std::mem::take(&mut self.core.outbox);
                durable.propose_returns(&offsets, again, &self.core, &mut out);
                self.core.outbox = out;
            }
        }
    }

    /// Raises a consumer's credit: both numbers count from its attach; lower ones are ignored.
    pub fn credit(&mut self, key: ConsumerKey, messages: u64, bytes: u64) {
        let Some(queue) = self.consumers.get(&key).copied() else { return };
        if let Some(transient) = self.transients.queues.get_mut(&queue.log) {
            transient.desk.consumers.credit(key, messages, bytes);
        } else if let Some(durable) = self.durable.get_mut(&queue) {
            match durable.readers.get_mut(&key) {
                Some(reader) => reader.credit.raise(messages, bytes),
                None => _ = durable.desk.consumers.credit(key, messages, bytes),
            }
        }
        self.agenda.mark(queue);
    }

    /// What a session holds without a consumer (gets, cancelled consumers), after a leader change or a lost stream.
    pub fn hold(&mut self, _: Mono, session: SessionId, queue: QueueId, held: &[Held], shard: &impl View) {
        let owner = ConsumerKey { session, consumer: 0 };
        if !self.leading {
            return;
        }
        self.core.sessions.insert(session);
        if let Some(transient) = self.transients.queues.get_mut(&queue.log) {
            transient.hold(owner, held);
        } else if let (Some(log), Some(cursor)) =
            (shard.log(queue.log), shard.cursor(queue.log, queue.cursor))
        {
            self.track(queue);
            let Some(durable) = self.durable.get_mut(&queue) else { return };
            durable.counting(&mut self.core, |durable, core| {
                durable.hold((owner, None), held, &log, &cursor, core);
            });
        }
    }

    /// basic.get: one message leased to the session, or "empty"; answered by [`Action::Got`], at the latest when the
    /// rows are read and the gateways have reported.
    pub fn get(&mut self, session: SessionId, request: u64, queue: QueueId, shard: &impl View) {
        let result = self.try_get(session, request, queue, shard);
        if let Err(reason) = result {
            self.core.outbox.push(Action::Got { session, request, result: Err(reason), ready: 0 });
        }
    }

    fn try_get(
        &mut self,
        session: SessionId,
        request: u64,
        queue: QueueId,
        shard: &impl View,
    ) -> Result<(), Refused> {
        if !self.leading {
            return Err(Refused::NotLeader);
        }
        let gets_max = self.core.config.polls_max;
        let desk = if queue.log.is_transient() {
            let transient = self.transients.queues.get_mut(&queue.log).ok_or(Refused::UnknownLog)?;
            if transient.declared.owner.is_some_and(|(owner, _)| owner != session) {
                return Err(Refused::Exclusive);
            }
            &mut transient.desk
        } else {
            shard.cursor(queue.log, queue.cursor).ok_or(Refused::UnknownLog)?;
            &mut self.track(queue).desk
        };
        if desk.gets.len() >= gets_max {
            return Err(Refused::Busy);
        }
        desk.gets.push_back(Get { session, request });
        self.core.sessions.insert(session);
        self.agenda.mark(queue);
        Ok(())
    }

    /// Takes up to `max` (at most 64) messages of a durable queue for a receiver without a connection, hidden for
    /// `visibility_ms`; waits up to `wait_ms` for the first. Answered by [`Action::Took`] once the leases are committed.
    /// `request` is unique within the shard's leader.
    pub fn take(&mut self, now: Mono, request: u64, queue: QueueId, wish: TakeWish, shard: &impl View) {
        let result = self.try_take(now, request, queue, wish, shard);
        if let Err(reason) = result {
            self.core.outbox.push(Action::Took { request, result: Err(reason), until: LogTime(0) });
        }
    }

    fn try_take(
        &mut self,
        now: Mono,
        request: u64,
        queue: QueueId,
        wish: TakeWish,
        shard: &impl View,
    ) -> Result<(), Refused> {
        if !self.leading {
            return Err(Refused::NotLeader);
        }
        shard.cursor(queue.log, queue.cursor).ok_or(Refused::UnknownLog)?;
        let wishes_max = self.core.config.polls_max;
        let takes = &mut self.track(queue).takes;
        if takes.wishes.len() >= wishes_max {
            return Err(Refused::Busy);
        }
        takes.wishes.push_back(Wish {
            request,
            max: wish.max.clamp(1, TAKE_MAX),
            visibility_ms: wish.visibility_ms,
            until: now.plus_ms(wish.wait_ms),
        });
        Ok(())
    }

    /// The session has attached again everything that it holds in this shard.
    ///
    /// A consumer that did not come back after its stream broke was ended meanwhile: what it had is returned. What the session
    /// has out without a consumer and did not name was lost on its way: it is ready again.
    pub fn session_reported(&mut self, now: Mono, session: SessionId) {
        self.session_is_heard(session);
        self.core.reported.insert(session);
        self.core.forget_done_early(session);
        let ended = |(key, queue): &(ConsumerKey, QueueId)| {
            self.durable.get(queue).is_some_and(|durable| {
                durable.desk.consumers.is_suspended(*key)
                    || durable.readers.get(key).is_some_and(|reader| reader.suspended)
            })
        };
        let ended: Vec<_> = self.consumers_of(session).into_iter().filter(ended).collect();
        for (key, _) in ended {
            self.end_consumer(key, false, now);
        }
        let Some(named) = self.core.take_named(session) else { return };
        for (queue, durable) in &mut self.durable {
            durable.take_back_loose(session, &named, &mut self.core);
            self.agenda.mark(*queue);
        }
    }

    fn session_is_heard(&mut self, session: SessionId) {
        if let Some(waiting) = &mut self.core.waiting {
            waiting.sessions.remove(&session);
        }
    }

    /// The session's stream to this node broke: its consumers get nothing until they attach again, its gets end; leases
    /// stand.
    pub fn link_lost(&mut self, session: SessionId) {
        self.core.stream_broke(session);
        for (key, queue) in self.consumers_of(session) {
            self.agenda.mark(queue);
            if let Some(transient) = self.transients.queues.get_mut(&queue.log) {
                transient.desk.consumers.suspend(key);
            } else if let Some(durable) = self.durable.get_mut(&queue) {
                durable.desk.consumers.suspend(key);
                if let Some(reader) = durable.readers.get_mut(&key) {
                    reader.suspended = true;
                }
            }
        }
        for durable in self.durable.values_mut() {
            durable.desk.gets.retain(|get| get.session != session);
        }
        for transient in self.transients.queues.values_mut() {
            transient.desk.gets.retain(|get| get.session != session);
        }
    }

    pub(crate) fn consumers_of(&self, session: SessionId) -> Vec<(ConsumerKey, QueueId)> {
        let first = ConsumerKey { session, consumer: 0 };
        let last = ConsumerKey { session, consumer: u64::MAX };
        self.consumers.range(first..=last).map(|(key, queue)| (*key, *queue)).collect()
    }

    /// Sessions that may have something here: consumers, leases, queues of their own. Those that meta has closed must be told to
    /// [`Delivery::session_gone`] even if the shard never opened them.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> + '_ {
        self.core.sessions.iter().copied()
    }

    /// The session ended for ever (its close was applied, or meta closed one that this shard never opened): its consumers go,
    /// what it holds is returned with its count raised, its exclusive queues end. Does nothing when called again.
    pub fn session_gone(&mut self, now: Mono, session: SessionId) {
        self.session_is_heard(session);
        self.core.reported.remove(&session);
        self.core.sessions.remove(&session);
        self.core.take_named(session);
        self.core.forget_done_early(session);
        for (key, _) in self.consumers_of(session) {
            self.end_consumer(key, true, now);
        }
        let again = now.plus_ms(self.core.config.propose_again_ms);
        let mut out = std::mem::take(&mut self.core.outbox);
        for (queue, durable) in &mut self.durable {
            durable.desk.gets.retain(|get| get.session != session);
            let offsets = durable.desk.leases.of_session(session);
            if !offsets.is_empty() {
                durable.propose_returns(&offsets, again, &self.core, &mut out);
                self.agenda.mark(*queue);
            }
        }
        self.core.outbox = out;
        for log in self.transients.owned_by(session, None) {
            self.remove_transient(log);
        }
        let logs: Vec<LogId> = self.transients.queues.keys().copied().collect();
        for log in logs {
            let Some(transient) = self.transients.queues.get_mut(&log) else { continue };
            transient.session_gone(session, now, &mut self.core);
            self.agenda.mark(transient.desk.queue);
        }
    }

    /// Counts of a queue; `None`: there is no such log here.
    pub fn stat(&self, queue: QueueId, shard: &impl View) -> Option<Counts> {
        if let Some(transient) = self.transients.queues.get(&queue.log) {
            return Some(transient.counts());
        }
        let log = shard.log(queue.log)?;
        let kept = Counts { first: log.first, next: log.next, ..Counts::default() };
        let Some(cursor) = shard.cursor(queue.log, queue.cursor) else {
            // A stream: nobody settles anything, all that is kept can be read.
            let readers = self.durable.get(&queue).map_or(0, |durable| durable.readers.len() as u64);
            return Some(Counts {
                ready: log.next.0.saturating_sub(log.first.0),
                consumers: readers,
                ..kept
            });
        };
        let unsettled = cursor.unsettled_count();
        let mut counts = Counts { ready: unsettled, ..kept };
        if let Some(durable) = self.durable.get(&queue) {
            let window = &durable.window;
            let leased = durable.desk.leases.len() as u64 + durable.takes.pending();
            counts.ready = window.ready_count(unsettled, leased);
            counts.unacked = leased + (window.taken.len() + window.lapsing.len()) as u64;
            counts.delayed = window.delayed.len() as u64;
            counts.consumers = (durable.desk.consumers.len() + durable.readers.len()) as u64;
        }
        Some(counts)
    }

    /// What to propose for a purge of a durable queue: everything ready now goes, what is out stays. `None`: there
    /// is no such log here. The outcome tells how many messages went.
    pub fn purge_item(&self, queue: QueueId, shard: &impl View) -> Option<Item> {
        let log = shard.log(queue.log)?;
        shard.cursor(queue.log, queue.cursor)?;
        let leased = self.durable.get(&queue).map_or_else(Vec::new, |durable| durable.desk.leases.ranges());
        Some(Item::Purge { log: queue.log, cursor: queue.cursor, end: log.next, leased })
    }
}

/// What a receiver without a connection wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TakeWish {
    /// At most so many messages, 1 to 64.
    pub max: u32,
    /// They are hidden from others this long, in milliseconds of log time.
    pub visibility_ms: u64,
    /// Wait so long for the first one, in milliseconds.
    pub wait_ms: u64,
}
