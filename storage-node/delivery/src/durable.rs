//! One cursor of a replicated log on its leader: the desk over the window, readers by position, takes.
//!
//! Exists only while there is something to do: consumers, leases, timers. The facade calls `serve` when the
//! agenda says so, and the event methods after an apply.

use crate::action::{Action, Actions, LoadId};
use crate::command::{Attach, ConsumerKey, Held, QueueId, Refused};
use crate::core::{Core, LoadFor, Named, OFFSETS_PER_ITEM_MAX, Turn, earlier};
use crate::desk::Desk;
use crate::leases::Lease;
use crate::reader::Reader;
use crate::stock::WindowStock;
use crate::takes::Takes;
use crate::view::{CursorView, LogInfo, View};
use crate::window::{Admission, Load, Window};
use longshore_io::Mono;
use longshore_wire::batch::{Item, Returned};
use longshore_wire::row::{NEVER, Row};
use longshore_wire::{Index, LeaseId, LogTime, Offset, OffsetRange, SessionId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// Rows that a queue without consumers keeps: enough to see its head's time to live end.
const IDLE_ROWS_MAX: usize = 16;
/// The same where every message has a time to live, so that long runs of expired ones go quickly.
const IDLE_TTL_ROWS_MAX: usize = 256;
/// What each window is cut down to when all of them together have reached their bound.
const CROWDED_ROWS_MAX: usize = 16;

/// See the module.
#[derive(Debug)]
pub(crate) struct Durable {
    pub desk: Desk,
    pub window: Window,
    pub readers: BTreeMap<ConsumerKey, Reader>,
    pub takes: Takes,
}

impl Durable {
    pub fn new(queue: QueueId) -> Durable {
        Durable {
            desk: Desk::new(queue),
            window: Window::default(),
            readers: BTreeMap::new(),
            takes: Takes::default(),
        }
    }

    fn queue(&self) -> QueueId {
        self.desk.queue
    }

    /// Whether somebody will want messages: the window is kept filled then.
    fn has_interest(&self) -> bool {
        !self.desk.consumers.is_empty() || !self.desk.gets.is_empty() || !self.takes.is_empty()
    }

    /// Whether nothing is left to do or to watch.
    fn is_idle(&self) -> bool {
        !self.has_interest()
            && self.readers.is_empty()
            && self.desk.leases.is_empty()
            && self.window.back.is_empty()
            && self.window.is_quiet()
            && self.window.ready.front().is_none_or(|head| head.row.expiry == NEVER)
    }

    fn rows_max(&self, log: &LogInfo, core: &Core) -> usize {
        if !self.has_interest() {
            return if log.spec.ttl_ms.is_some() { IDLE_TTL_ROWS_MAX } else { IDLE_ROWS_MAX };
        }
        if core.counters.ready >= core.config.window_rows_total_max {
            CROWDED_ROWS_MAX.min(core.config.window_rows_max)
        } else {
            core.config.window_rows_max
        }
    }

    /// Calls `work` with the window and what rows are admitted against.
    fn with_admission<C: CursorView, R>(
        &mut self,
        core: &mut Core,
        log: &LogInfo,
        cursor: &C,
        turn: u64,
        work: impl FnOnce(&mut Window, &Admission<'_, C>) -> R,
    ) -> R {
        let before = self.window.ready.len();
        let rows_max = self.rows_max(log, core);
        let takes = &self.takes;
        let admission = Admission {
            cursor,
            leases: &self.desk.leases,
            taking: &|at| takes.is_taking(at),
            log_time: core.log_time,
            priority_max: log.spec.priority_max,
            turn,
            rows_max,
            bytes_max: core.config.window_bytes_max,
            delayed_max: core.config.delayed_max,
        };
        let result = work(&mut self.window, &admission);
        core.counters.ready =
            (core.counters.ready + self.window.ready.len() as u64).saturating_sub(before as u64);
        result
    }

    /// Runs `work`, which may take rows out of the window, and keeps the shard's count of them.
    pub fn counting<R>(&mut self, core: &mut Core, work: impl FnOnce(&mut Durable, &mut Core) -> R) -> R {
        let before = self.window.ready.len() as u64;
        let result = work(self, core);
        core.counters.ready = (core.counters.ready + self.window.ready.len() as u64).saturating_sub(before);
        result
    }

    /// Everything that time, credit and rows allow now. Answers when it wants to be called again by itself, or
    /// `None` with `true` when the queue may be forgotten.
    pub fn serve<V: View>(&mut self, turn: &mut Turn<'_>, shard: &V) -> (Option<Mono>, bool) {
        let queue = self.queue();
        let Some(log) = shard.log(queue.log) else { return (None, true) };
        let mut wake = None;
        for reader in self.readers.values_mut() {
            wake = earlier(wake, reader.serve(queue, &log, turn));
        }
        if let Some(cursor) = shard.cursor(queue.log, queue.cursor) {
            let before = self.window.ready.len() as u64;
            wake = earlier(wake, self.serve_cursor(turn, &log, &cursor));
            let after = self.window.ready.len() as u64;
            turn.core.counters.ready = (turn.core.counters.ready + after).saturating_sub(before);
        }
        (wake, self.is_idle())
    }

    fn serve_cursor<C: CursorView>(
        &mut self,
        turn: &mut Turn<'_>,
        log: &LogInfo,
        cursor: &C,
    ) -> Option<Mono> {
        let returned_max = turn.core.config.returned_max;
        let over = self.window.pass_time(turn.now, turn.log_time, cursor, turn.again(), returned_max);
        let over: Vec<_> =
            over.into_iter().map(|offset| Returned { offset, lease: LeaseId(0), counted: true }).collect();
        turn.core.propose_returns(self.queue(), turn.core.term, &over, turn.out);
        self.end_leases(turn);
        for at in self.takes.give_up(turn.now, turn.out) {
            if !cursor.is_settled(at) {
                self.window.give_back(at, returned_max);
            }
        }
        let expired = self.hand_out(turn, log, cursor);
        let more_expired = expired.len() >= OFFSETS_PER_ITEM_MAX;
        if !expired.is_empty() {
            turn.core.counters.expired += expired.len() as u64;
            let queue = self.queue();
            let ranges = Window::expired_runs(expired);
            turn.out.push(Action::Propose(Item::Expire { log: queue.log, cursor: queue.cursor, ranges }));
        }
        if !self.has_interest() {
            self.window.shrink(self.rows_max(log, turn.core));
        }
        self.ask_rows(turn, log, cursor);
        if more_expired { Some(turn.now) } else { self.next_wake(turn) }
    }

    fn hand_out<C: CursorView>(&mut self, turn: &mut Turn<'_>, log: &LogInfo, cursor: &C) -> Vec<Offset> {
        let waiting = turn.core.waiting.is_some();
        let inherited = turn.core.inherited;
        let unread = cursor.next_unsettled(self.window.scan).is_some_and(|at| at < log.next);
        let mut stock = WindowStock {
            window: &mut self.window,
            cursor,
            unread,
            gate: if waiting { inherited } else { Index(0) },
            inherited,
            expired: Vec::new(),
            pending_takes: self.takes.pending(),
        };
        self.desk.dispatch(turn, &mut stock);
        self.takes.dispatch(self.desk.queue, turn, &mut stock);
        stock.expired
    }

    /// Proposes the return of leases whose time is over, and again of those whose return was not heard of.
    fn end_leases(&mut self, turn: &mut Turn<'_>) {
        let due = self.desk.leases.due(turn.now);
        self.propose_returns(&due, turn.again(), turn.core, turn.out);
    }

    /// Proposes the return of `offsets` (ascending); they stay out until it is applied.
    pub fn propose_returns(&mut self, offsets: &[Offset], again: Mono, core: &Core, out: &mut Actions) {
        // Leases that outlived a leader are named by that leader's term.
        let mut by_term: BTreeMap<Term, Vec<Returned>> = BTreeMap::new();
        for at in offsets {
            if let Some(lease) = self.desk.leases.end(*at, again) {
                let back = Returned { offset: *at, lease: lease.id, counted: true };
                by_term.entry(lease.term).or_default().push(back);
            }
        }
        for (term, returned) in by_term {
            core.propose_returns(self.queue(), term, &returned, out);
        }
    }

    fn ask_rows<C: CursorView>(&mut self, turn: &mut Turn<'_>, log: &LogInfo, cursor: &C) {
        if self.window.load.is_some() || self.window.load_again.is_some_and(|again| again > turn.now) {
            return;
        }
        self.window.load_again = None;
        let bounds = (self.rows_max(log, turn.core), turn.core.config.window_bytes_max);
        let Some((from, max, back)) = self.window.wanted(cursor, log.next, bounds) else { return };
        let queue = self.queue();
        let id = turn.core.new_load(LoadFor { queue, reader: None });
        self.window.load = Some(Load { id, from, back, next: log.next });
        turn.out.push(Action::LoadRows { id, log: queue.log, from, max });
    }

    fn next_wake(&mut self, turn: &Turn<'_>) -> Option<Mono> {
        let times = [
            self.window.delayed.first().map(|(due, _)| *due),
            self.window.delayed_beyond,
            self.window.taken.first().map(|(until, _)| *until),
            self.window.ready.front().map(|head| head.row.expiry).filter(|expiry| *expiry != NEVER),
        ];
        let spared = self.window.ready.front().filter(|head| head.row.expiry <= turn.log_time);
        if spared.is_some_and(|head| head.turn == turn.core.turn) {
            return Some(turn.now); // A time to live of zero, spared for this turn only.
        }
        // Any other head that expired already waits for an event (a report, a row), not for time.
        let ahead = times.into_iter().flatten().filter(|at| *at > turn.log_time);
        let by_log_time = ahead.min().map(|at: LogTime| turn.mono_of(at));
        let expiring = self.window.expiring.values().chain(self.window.lapsing.values()).copied().min();
        let mut wake = earlier(by_log_time, expiring);
        wake = earlier(wake, self.desk.leases.next_deadline());
        wake = earlier(wake, self.takes.next_deadline(turn.now));
        earlier(wake, self.window.load_again)
    }

    /// Rows that the window asked for.
    pub fn rows_loaded<V: View>(&mut self, id: LoadId, rows: &[Row], core: &mut Core, shard: &V) {
        let Some(load) = self.window.load.take_if(|load| load.id == id) else { return };
        let queue = self.queue();
        let (Some(log), Some(cursor)) = (shard.log(queue.log), shard.cursor(queue.log, queue.cursor)) else {
            return;
        };
        let missing = self.with_admission(core, &log, &cursor, 0, |window, to| window.loaded(load, rows, to));
        core.counters.missing += missing;
    }

    /// A row was appended. Whether the queue has work because of it.
    pub fn appended<V: View>(&mut self, row: &Row, core: &mut Core, shard: &V) -> bool {
        let queue = self.queue();
        for reader in self.readers.values_mut() {
            reader.appended(row);
        }
        let (Some(log), Some(cursor)) = (shard.log(queue.log), shard.cursor(queue.log, queue.cursor)) else {
            return !self.readers.is_empty();
        };
        let turn = core.turn;
        self.with_admission(core, &log, &cursor, turn, |window, to| window.appended(row, to));
        let wants = self.desk.is_hungry() || !self.takes.wishes.is_empty();
        wants || !self.readers.is_empty() || row.expiry != NEVER || row.due > core.log_time
    }

    /// Messages ended: acked, refused, or expired.
    pub fn settled(&mut self, ranges: &[OffsetRange], core: &mut Core) {
        for range in ranges {
            let leased = self.desk.leases.remove_range(*range);
            core.counters.leases = core.counters.leases.saturating_sub(leased);
            self.window.settled(*range, leased);
            self.takes.settled(*range, &mut core.outbox);
        }
    }

    /// A receiver without a connection has a message.
    pub fn taken(&mut self, at: Offset, lease: LeaseId, until: LogTime, core: &mut Core) {
        self.window.settled(OffsetRange::one(at), 0);
        self.window.taken.insert((until, at));
        self.takes.taken(at, lease, &mut core.outbox);
    }

    /// A message is ready again, unless it is out under another lease than the one that ends: a return may be applied twice
    /// (the leader proposes its own again when it has not heard of them for long), or after the leader ended that lease.
    pub fn returned(&mut self, back: &Returned, term: Term, core: &mut Core) {
        let at = back.offset;
        if self.desk.leases.get(at).is_some_and(|lease| !lease.is(back.lease, term)) {
            return;
        }
        if self.desk.leases.remove(at).is_some() {
            core.counters.leases = core.counters.leases.saturating_sub(1);
            core.counters.returned += 1;
        }
        self.window.give_back(at, core.config.returned_max);
    }

    /// The cursor jumped (purge, rewind): everything is read again, leases of settled messages end.
    pub fn jumped<C: CursorView>(&mut self, cursor: &C, core: &mut Core) {
        self.window.reset();
        let ended = self.desk.leases.remove_if(|at| cursor.is_settled(at));
        core.counters.leases = core.counters.leases.saturating_sub(ended);
    }

    /// Takes over what a consumer says that it holds; drops leases of this term that it does not name.
    pub fn reattach<C: CursorView>(
        &mut self,
        now: Mono,
        attach: &Attach,
        log: &LogInfo,
        cursor: &C,
        core: &mut Core,
    ) {
        for at in self.desk.leases.unnamed(attach.key, &attach.held) {
            self.take_back(at, core);
        }
        let deadline = attach.lease_ms.map(|ms| now.plus_ms(ms));
        self.hold((attach.key, deadline), &attach.held, log, cursor, core);
    }

    /// A lease ends that its holder does not have: the message was lost on its way, or its holder is done with it.
    pub fn take_back(&mut self, at: Offset, core: &mut Core) {
        if self.desk.leases.remove(at).is_some() {
            core.counters.leases = core.counters.leases.saturating_sub(1);
            self.window.give_back(at, core.config.returned_max);
        }
    }

    /// Takes back what a session has out without a consumer and did not name since its stream broke.
    pub fn take_back_loose(&mut self, session: SessionId, named: &BTreeSet<Named>, core: &mut Core) {
        let (queue, consumers) = (self.queue(), &self.desk.consumers);
        for at in self.desk.leases.loose_of(session, |key| consumers.contains(key)) {
            let lease = self.desk.leases.get(at);
            if lease.is_some_and(|lease| !named.contains(&(queue, at, lease.id, lease.term))) {
                self.take_back(at, core);
            }
        }
    }

    /// Leases that stand: of this term if they are still out with that session; of an earlier one if the message is
    /// unsettled, nobody else has it, and the session has not reported in this term before; until `deadline`.
    pub fn hold<C: CursorView>(
        &mut self,
        (owner, deadline): (ConsumerKey, Option<Mono>),
        held: &[Held],
        log: &LogInfo,
        cursor: &C,
        core: &mut Core,
    ) {
        let (queue, reported) = (self.queue(), core.reported.contains(&owner.session));
        for held in held {
            let at = held.offset;
            if at >= log.next || cursor.is_settled(at) {
                continue;
            }
            let own = |lease: &Lease| {
                lease.is(held.lease, held.term) && lease.owner.session == owner.session && !lease.ending
            };
            match self.desk.leases.get(at) {
                Some(lease) if own(&lease) => self.desk.leases.hand_on(at, owner),
                Some(_) => {}
                None if core.was_done_early(owner.session, queue, held) => {}
                None if held.term < core.term && !reported && self.is_free(at, cursor) => {
                    let lease = Lease {
                        id: held.lease,
                        term: held.term,
                        owner,
                        deadline,
                        ending: false,
                        returning: false,
                    };
                    self.window.settled(OffsetRange::one(at), 0);
                    self.desk.leases.insert(at, lease);
                    core.counters.leases += 1;
                }
                None => {}
            }
            if self.desk.leases.get(at).is_some_and(|lease| lease.is(held.lease, held.term)) {
                core.note_named(owner.session, (queue, at, held.lease, held.term));
            }
        }
    }

    fn is_free<C: CursorView>(&self, at: Offset, cursor: &C) -> bool {
        cursor.taken_until(at).is_none()
            && !self.takes.is_taking(at)
            && !self.window.expiring.contains_key(&at)
    }

    /// Makes a consumer; the caller has checked that it may be.
    pub fn attach(&mut self, attach: &Attach) {
        self.readers.remove(&attach.key);
        self.desk.consumers.add(attach);
    }

    /// The queue is gone.
    pub fn close(&mut self, reason: Refused, core: &mut Core) {
        self.desk.close(reason, &mut core.outbox);
        self.takes.refuse(reason, &mut core.outbox);
        for reader in self.readers.values() {
            reader.cancel(reason, &mut core.outbox);
        }
        self.forget(core);
    }

    /// Takes the queue out of the shard's counts before it is dropped.
    pub fn forget(&mut self, core: &mut Core) {
        core.counters.leases = core.counters.leases.saturating_sub(self.desk.leases.len() as u64);
        core.counters.ready = core.counters.ready.saturating_sub(self.window.ready.len() as u64);
        if let Some(load) = self.window.load {
            core.loads.remove(&load.id);
        }
    }
}
