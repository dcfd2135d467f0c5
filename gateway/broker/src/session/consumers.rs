//! The consumers that a session has in one shard: credit, what they hold, and how they come back after a change
//! of leader or stream.
//!
//! Danger: a message handed to a client from a leader that is no longer one may be out twice; so deliveries of a
//! term below the highest seen are dropped. A lease that is not reported at re-attach is delivered again.
//! Called by `shard.rs` of the runtime, and by the simulation.

use crate::api::StartAt;
use longshore_proto::v1;
use longshore_wire::{CursorId, LeaseId, LogId, Offset, ShardId, Term};
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};

/// What a consumer is made with.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The log.
    pub log: LogId,
    /// Its cursor.
    pub cursor: CursorId,
    /// Streams: where it begins.
    pub start: Option<StartAt>,
    /// Nobody beside it.
    pub exclusive: bool,
    /// One at a time.
    pub single_active: bool,
    /// Higher first.
    pub priority: i32,
    /// First credit.
    pub credit_messages: u64,
    /// First credit.
    pub credit_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Asked for, no answer yet.
    Attaching,
    /// The leader delivers to it.
    Attached,
}

#[derive(Debug)]
struct Consumer<O> {
    owner: O,
    wanted: Wanted,
    stage: Stage,
    /// Counts attaches: only the answer to the newest one counts, and what is delivered before it on the stream was
    /// handed over for an older one, so the leader has taken it back.
    attempt: u64,
    /// The leader answered at least once: later attaches are `again`.
    known: bool,
    /// Granted since it was made, and delivered since then.
    granted: (u64, u64),
    delivered: (u64, u64),
    /// `delivered` when the current attach was sent: credit is cumulative since the attach.
    base: (u64, u64),
    held: BTreeMap<Offset, (LeaseId, Term)>,
    patience: Patience,
}

/// How many calls of [`Consumers::unanswered`] pass an attach over. Naming a million leases takes its time: an attach that came
/// again and again before its answer would never see one that counts.
#[derive(Clone, Copy, Debug)]
struct Patience {
    left: u32,
    next: u32,
}

impl Patience {
    const NEW: Patience = Patience { left: 0, next: 1 };
    const CALLS_MAX: u32 = 32;
}

impl<O> Consumer<O> {
    /// It is attached anew: nothing that comes before the answer counts.
    fn begin_attach(&mut self) {
        self.stage = Stage::Attaching;
        self.attempt += 1;
        self.base = self.delivered;
        self.patience = Patience::NEW;
    }

    /// Whether an attach without an answer is sent again now; the pauses grow.
    fn attaches_again(&mut self) -> bool {
        let Patience { left, next } = self.patience;
        if left > 0 {
            self.patience.left -= 1;
            return false;
        }
        self.begin_attach();
        self.patience = Patience { left: next, next: (next * 2).min(Patience::CALLS_MAX) };
        true
    }
}

/// A message that is out without a consumer: got, or held by a consumer that ended.
#[derive(Debug)]
struct Loose<O> {
    lease: LeaseId,
    term: Term,
    owner: O,
}

/// A settlement under way.
#[derive(Debug)]
struct Settling {
    lease: LeaseId,
    term: Term,
    /// Whose message it was; 0: of none.
    consumer: u64,
}

/// What an attach led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttachResult {
    /// The consumer is there for the first time.
    Made,
    /// It is there again.
    Back,
    /// The leader asks to try again ([`Consumers::unanswered`]).
    Later,
    /// It was refused; it is gone.
    Refused(v1::Refused),
    /// Nobody waits for it.
    Nobody,
}

/// What to do with a delivery.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<O> {
    /// Hand it to the owner.
    Deliver(O),
    /// Drop it: an old term, or nobody wants it and the leader knows.
    Drop,
    /// Nobody wants it, but the leader counts it as out: return it.
    Return,
}

/// The consumers of a session in one shard. `O` says whose a consumer is.
#[derive(Debug)]
pub struct Consumers<O> {
    shard: ShardId,
    names_max: usize,
    term: Term,
    consumers: HashMap<u64, Consumer<O>>,
    loose: BTreeMap<(LogId, Offset), Loose<O>>,
    /// Settled by the client, without an outcome yet: still held, as far as a new leader is concerned.
    settling: BTreeMap<(LogId, Offset), Settling>,
    /// Ended with their leases kept: what was on its way to them must be returned. The newest [`ENDED_MAX`].
    ended: VecDeque<u64>,
}

/// How many ended consumers are remembered for deliveries that were on their way.
const ENDED_MAX: usize = 1024;
/// Leases that one item names, so that it stays well below the size of a message: 36 bytes each at most.
pub const NAMES_MAX: usize = 10_000;

fn start_at(start: StartAt) -> v1::StartAt {
    use v1::start_at::At;
    let at = match start {
        StartAt::Offset(offset) => At::Offset(offset),
        StartAt::First => At::First(true),
        StartAt::Last => At::Last(true),
        StartAt::Next => At::Next(true),
        StartAt::TimeMs(time) => At::TimeMs(time),
    };
    v1::StartAt { at: Some(at) }
}

impl<O: Clone> Consumers<O> {
    /// None yet. One item names at most `names_max` leases, at least 1: [`NAMES_MAX`].
    pub fn new(shard: ShardId, names_max: usize) -> Consumers<O> {
        Consumers {
            shard,
            names_max: names_max.max(1),
            term: Term(0),
            consumers: HashMap::new(),
            loose: BTreeMap::new(),
            settling: BTreeMap::new(),
            ended: VecDeque::new(),
        }
    }

    /// A leader of `term` is known: what comes from older ones is dropped from now on.
    pub fn seen(&mut self, term: Term) {
        self.term = self.term.max(term);
    }

    /// Makes a consumer; send the message if a leader can be reached, else it goes with [`Consumers::attach_all`].
    pub fn attach(&mut self, id: u64, wanted: Wanted, owner: O) -> v1::Attach {
        let granted = (wanted.credit_messages, wanted.credit_bytes);
        let consumer = Consumer {
            owner,
            wanted,
            stage: Stage::Attaching,
            attempt: 1,
            known: false,
            granted,
            delivered: (0, 0),
            base: (0, 0),
            held: BTreeMap::new(),
            patience: Patience::NEW,
        };
        let message = attach_message(self.shard, id, &consumer, Vec::new());
        self.consumers.insert(id, consumer);
        message
    }

    /// Attaches all anew, with what they hold, at a new leader or on a new stream, and reports what is held without
    /// a consumer; sorted by consumer. Those that `skip` says come later, by [`Consumers::attach_again`].
    pub fn attach_all(&mut self, skip: impl Fn(LogId) -> bool) -> Vec<v1::GatewayItem> {
        self.ended.clear();
        let mut ids: Vec<u64> = self.consumers.keys().copied().collect();
        ids.sort_unstable();
        let mut items = Vec::new();
        for id in ids {
            let Some(consumer) = self.consumers.get_mut(&id) else { continue };
            consumer.begin_attach();
            if skip(consumer.wanted.log) {
                continue;
            }
            self.attach_items(id, &mut items);
        }
        self.hold_items(&mut items);
        items.push(item(v1::gateway_item::Item::Reported(v1::Reported { shard: self.shard.0 })));
        items
    }

    fn hold_items(&self, items: &mut Vec<v1::GatewayItem>) {
        let loose = self.loose.iter().map(|(key, loose)| (*key, loose.lease, loose.term));
        // Those of a consumer that is there are named by its attach.
        let settling = self
            .settling
            .iter()
            .filter(|(_, settling)| !self.consumers.contains_key(&settling.consumer))
            .map(|(key, settling)| (*key, settling.lease, settling.term));
        let mut by_log: BTreeMap<LogId, Vec<v1::Held>> = BTreeMap::new();
        for ((log, offset), lease, term) in loose.chain(settling) {
            let held = v1::Held { offset: offset.0, lease: lease.0, term: term.0 };
            by_log.entry(log).or_default().push(held);
        }
        for (log, mut held) in by_log {
            held.sort_unstable_by_key(|held| held.offset);
            for held in held.chunks(self.names_max) {
                let held = held.to_vec();
                let hold = v1::Hold { shard: self.shard.0, log: log.0, cursor: 0, held, consumer: 0 };
                items.push(item(v1::gateway_item::Item::Hold(hold)));
            }
        }
    }

    /// Names all that a consumer has out, settlements without an outcome included: the leader gives back the rest.
    fn attach_items(&self, id: u64, items: &mut Vec<v1::GatewayItem>) {
        let Some(consumer) = self.consumers.get(&id) else { return };
        let held = consumer.held.iter().map(|(offset, (lease, term))| (*offset, *lease, *term));
        let settling = self.settling.iter().filter(|(_, settling)| settling.consumer == id);
        let settling = settling.map(|((_, offset), settling)| (*offset, settling.lease, settling.term));
        let mut held: Vec<v1::Held> = held
            .chain(settling)
            .map(|(offset, lease, term)| v1::Held { offset: offset.0, lease: lease.0, term: term.0 })
            .collect();
        held.sort_unstable_by_key(|held| held.offset);
        let (log, cursor) = (consumer.wanted.log.0, consumer.wanted.cursor.0);
        while held.len() > self.names_max {
            let rest = held.split_off(self.names_max);
            let hold = v1::Hold { shard: self.shard.0, log, cursor, held, consumer: id };
            items.push(item(v1::gateway_item::Item::Hold(hold)));
            held = rest;
        }
        let attach = attach_message(self.shard, id, consumer, held);
        items.push(item(v1::gateway_item::Item::Attach(attach)));
    }

    /// Attaches without an answer, to be sent again, but for those that `skip` says; each after a pause of twice as many calls. If
    /// the answer is on its way, what comes with it is dropped, and handed over again after the answer to this one.
    pub fn unanswered(&mut self, skip: impl Fn(LogId) -> bool) -> Vec<v1::GatewayItem> {
        let waiting =
            self.consumers.iter_mut().filter(|(_, c)| c.stage == Stage::Attaching && !skip(c.wanted.log));
        let mut ids: Vec<u64> =
            waiting.filter_map(|(id, consumer)| consumer.attaches_again().then_some(*id)).collect();
        ids.sort_unstable();
        let mut items = Vec::new();
        ids.into_iter().for_each(|id| self.attach_items(id, &mut items));
        items
    }

    /// Attaches one consumer anew, at a log that was made anew under the same name (transient queues): what it
    /// held is gone with the old one.
    pub fn attach_again(&mut self, id: u64, log: LogId) -> Vec<v1::GatewayItem> {
        let mut items = Vec::new();
        let Some(consumer) = self.consumers.get_mut(&id) else { return items };
        if consumer.wanted.log != log {
            consumer.held.clear();
            consumer.wanted.log = log;
        }
        consumer.begin_attach();
        self.attach_items(id, &mut items);
        items
    }

    /// The leader answered an attach.
    pub fn attached(&mut self, answer: &v1::Attached) -> (AttachResult, Option<O>) {
        if Term(answer.term) < self.term {
            return (AttachResult::Nobody, None);
        }
        self.seen(Term(answer.term));
        let Some(consumer) = self.consumers.get_mut(&answer.consumer) else {
            return (AttachResult::Nobody, None);
        };
        if answer.attempt != consumer.attempt {
            return (AttachResult::Nobody, None);
        }
        let owner = consumer.owner.clone();
        consumer.patience = Patience::NEW;
        if let Some(refused) = answer.refused {
            let refused = v1::Refused::try_from(refused).unwrap_or(v1::Refused::Unspecified);
            if refused == v1::Refused::Busy {
                return (AttachResult::Later, Some(owner));
            }
            self.consumers.remove(&answer.consumer);
            return (AttachResult::Refused(refused), Some(owner));
        }
        consumer.stage = Stage::Attached;
        let result = if consumer.known { AttachResult::Back } else { AttachResult::Made };
        consumer.known = true;
        (result, Some(owner))
    }

    /// Adds credit; the message if the leader should hear of it.
    pub fn credit(&mut self, id: u64, messages: u64, bytes: u64) -> Option<v1::Credit> {
        let consumer = self.consumers.get_mut(&id)?;
        consumer.granted.0 = consumer.granted.0.saturating_add(messages);
        consumer.granted.1 = consumer.granted.1.saturating_add(bytes);
        let (messages, bytes) = credit_of(consumer);
        Some(v1::Credit { shard: self.shard.0, consumer: id, messages, bytes })
    }

    /// Judges a delivery of `bytes` from a leader of `term`, and notes it as held if it is to be handed on.
    pub fn delivery(&mut self, term: Term, delivery: &v1::Delivery, bytes: u64) -> Verdict<O> {
        if term < self.term {
            return Verdict::Drop;
        }
        self.seen(term);
        let Some(consumer) = self.consumers.get_mut(&delivery.consumer) else {
            let returned = self.ended.contains(&delivery.consumer);
            return if returned { Verdict::Return } else { Verdict::Drop };
        };
        if consumer.wanted.log != LogId(delivery.log) || consumer.stage == Stage::Attaching {
            return Verdict::Drop;
        }
        let offset = Offset(delivery.offset);
        consumer.delivered.0 += 1;
        consumer.delivered.1 = consumer.delivered.1.saturating_add(bytes);
        if consumer.wanted.start.is_some() {
            // A stream's reader goes on behind what it has; it holds nothing.
            consumer.wanted.start = Some(StartAt::Offset(offset.0.saturating_add(1)));
        } else {
            consumer.held.insert(offset, (LeaseId(delivery.lease), term));
        }
        Verdict::Deliver(consumer.owner.clone())
    }

    /// Notes a message that a get took.
    pub fn got(&mut self, term: Term, delivery: &v1::Delivery, owner: O) {
        self.seen(term);
        let loose = Loose { lease: LeaseId(delivery.lease), term, owner };
        self.loose.insert((LogId(delivery.log), Offset(delivery.offset)), loose);
    }

    /// The client settled a delivery of a consumer (or of none). It counts as held until [`Consumers::settle_done`].
    /// False: it was not held (already settled, or taken back), so there is nothing to send.
    pub fn settled(&mut self, id: Option<u64>, log: LogId, offset: Offset, lease: LeaseId) -> bool {
        let consumer = id.and_then(|id| self.consumers.get_mut(&id));
        let in_consumer = consumer.and_then(|consumer| match consumer.held.get(&offset) {
            Some((held, _)) if *held == lease => consumer.held.remove(&offset),
            _ => None,
        });
        let consumer = id.filter(|_| in_consumer.is_some()).unwrap_or(0);
        let held = in_consumer.or_else(|| match self.loose.get(&(log, offset)) {
            Some(loose) if loose.lease == lease => {
                self.loose.remove(&(log, offset)).map(|loose| (loose.lease, loose.term))
            }
            _ => None,
        });
        let Some((lease, term)) = held else { return false };
        if !log.is_transient() {
            self.settling.insert((log, offset), Settling { lease, term, consumer });
        }
        true
    }

    /// The outcome of a settlement came.
    ///
    /// A message that is out again meanwhile, and settled again, stays held until the outcome of that settlement.
    pub fn settle_done(&mut self, log: LogId, term: Term, leases: &[(Offset, LeaseId)]) {
        for (offset, lease) in leases {
            if let Entry::Occupied(settling) = self.settling.entry((log, *offset))
                && (settling.get().lease, settling.get().term) == (*lease, term)
            {
                settling.remove();
            }
        }
    }

    /// Ends a consumer. With `keep_leases` what it holds stays out until settled. The message for the leader, if
    /// the consumer was there.
    pub fn detach(&mut self, id: u64, keep_leases: bool) -> Option<v1::GatewayItem> {
        let consumer = self.consumers.remove(&id)?;
        if keep_leases {
            for (offset, (lease, term)) in consumer.held {
                let loose = Loose { lease, term, owner: consumer.owner.clone() };
                self.loose.insert((consumer.wanted.log, offset), loose);
            }
            self.ended.push_back(id);
            if self.ended.len() > ENDED_MAX {
                self.ended.pop_front();
            }
        }
        Some(self.detach_item(id, keep_leases))
    }

    /// Takes what is out without a consumer and belongs to an owner that `whose` says: it must be returned.
    pub fn take_loose(&mut self, whose: impl Fn(&O) -> bool) -> Vec<(LogId, Term, Offset, LeaseId)> {
        let mine = self.loose.extract_if(.., |_, loose| whose(&loose.owner));
        let taken: Vec<_> =
            mine.map(|((log, offset), loose)| (log, loose.term, offset, loose.lease)).collect();
        for (log, term, offset, lease) in &taken {
            self.settling.insert((*log, *offset), Settling { lease: *lease, term: *term, consumer: 0 });
        }
        taken
    }

    fn detach_item(&self, consumer: u64, keep_leases: bool) -> v1::GatewayItem {
        item(v1::gateway_item::Item::Detach(v1::Detach { shard: self.shard.0, consumer, keep_leases }))
    }

    /// The leader ended a consumer (its queue is gone): whose it was.
    pub fn cancelled(&mut self, id: u64) -> Option<O> {
        self.consumers.remove(&id).map(|consumer| consumer.owner)
    }

    /// Whose a consumer is.
    pub fn owner(&self, id: u64) -> Option<&O> {
        self.consumers.get(&id).map(|consumer| &consumer.owner)
    }

    /// Consumers of logs that satisfy `which`, sorted.
    pub fn of_logs(&self, which: impl Fn(LogId) -> bool) -> Vec<(u64, LogId)> {
        let chosen = self.consumers.iter().filter(|(_, c)| which(c.wanted.log));
        let mut all: Vec<_> = chosen.map(|(id, c)| (*id, c.wanted.log)).collect();
        all.sort_unstable();
        all
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.consumers.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.consumers.is_empty()
    }
}

fn credit_of<O>(consumer: &Consumer<O>) -> (u64, u64) {
    (consumer.granted.0.saturating_sub(consumer.base.0), consumer.granted.1.saturating_sub(consumer.base.1))
}

fn attach_message<O>(shard: ShardId, id: u64, consumer: &Consumer<O>, held: Vec<v1::Held>) -> v1::Attach {
    let (messages, bytes) = credit_of(consumer);
    v1::Attach {
        shard: shard.0,
        consumer: id,
        log: consumer.wanted.log.0,
        cursor: consumer.wanted.cursor.0,
        start: consumer.wanted.start.map(start_at),
        exclusive: consumer.wanted.exclusive,
        single_active: consumer.wanted.single_active,
        priority: consumer.wanted.priority,
        credit_messages: messages,
        credit_bytes: bytes,
        held,
        again: consumer.known,
        attempt: consumer.attempt,
    }
}

/// Wraps an item of a frame.
pub fn item(item: v1::gateway_item::Item) -> v1::GatewayItem {
    v1::GatewayItem { item: Some(item) }
}
