//! One transient queue: a log in the memory of the shard's leader, served by the same desk as the durable ones.
//!
//! Nothing here is replicated: a return or a settlement counts at once, and all of it goes with the leader.

use crate::action::{Actions, InMemory};
use crate::command::{Attach, ConsumerKey, Counts, Held, QueueId, Refused, TransientDeclare};
use crate::core::{Core, Turn, earlier};
use crate::desk::{Desk, Stock, Taken};
use crate::ready::{Entry, Key, ReadyList};
use bytes::Bytes;
use longshore_io::Mono;
use longshore_wire::record::NO_TTL;
use longshore_wire::row::{NEVER, Row, Source};
use longshore_wire::{CursorId, Index, LogId, LogTime, Offset, SessionId};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a message in memory is counted as, beside its own bytes.
const OVERHEAD_BYTES: u64 = 256;

/// The messages.
#[derive(Debug)]
struct Memory {
    ready: ReadyList,
    delayed: BTreeMap<(LogTime, Offset), Entry>,
    out: BTreeMap<Offset, Entry>,
    first: Offset,
    next: Offset,
    bytes: u64,
    expired: u64,
}

/// One queue.
#[derive(Debug)]
pub(crate) struct TransientQueue {
    pub declared: TransientDeclare,
    pub desk: Desk,
    memory: Memory,
    had_consumer: bool,
    unused_since: Mono,
}

fn cost(message: &InMemory) -> u64 {
    message.bytes() + OVERHEAD_BYTES
}

/// In memory only the length counts.
fn source(bytes: &Bytes) -> Source {
    Source { index: Index(0), start: 0, len: bytes.len() as u32 }
}

impl Memory {
    fn drop_entry(&mut self, entry: &Entry) {
        self.bytes = self.bytes.saturating_sub(entry.message.as_deref().map_or(0, cost));
    }

    fn pass_time(&mut self, log_time: LogTime) {
        while let Some(first) = self.delayed.first_entry()
            && first.key().0 <= log_time
        {
            self.ready.insert(first.remove());
        }
    }
}

impl Stock for Memory {
    fn prepare(&mut self, turn: &mut Turn<'_>) -> bool {
        while let Some(front) = self.ready.front() {
            if !front.expired(turn.log_time, turn.core.turn) {
                return true;
            }
            if let Some(entry) = self.ready.pop_front() {
                self.drop_entry(&entry);
                self.expired += 1;
            }
        }
        false
    }

    fn take(&mut self) -> Option<Taken> {
        let entry = self.ready.pop_front()?;
        self.out.insert(entry.offset(), entry.clone());
        Some(Taken { returns: entry.returns, redelivered: entry.returns > 0, entry })
    }

    fn more_coming(&self) -> bool {
        false
    }

    fn ready(&self, _: u64) -> u64 {
        self.ready.len() as u64
    }
}

impl TransientQueue {
    /// An empty queue whose offsets begin at `first`.
    pub fn new(log: LogId, first: Offset, declared: TransientDeclare, now: Mono) -> TransientQueue {
        TransientQueue {
            declared,
            desk: Desk::new(QueueId { log, cursor: CursorId(0) }),
            memory: Memory {
                ready: ReadyList::default(),
                delayed: BTreeMap::new(),
                out: BTreeMap::new(),
                first,
                next: first,
                bytes: 0,
                expired: 0,
            },
            had_consumer: false,
            unused_since: now,
        }
    }

    pub fn counts(&self) -> Counts {
        let memory = &self.memory;
        let oldest = [
            memory.ready.iter().map(Entry::offset).min(),
            memory.out.keys().next().copied(),
            memory.delayed.keys().map(|(_, at)| *at).min(),
        ];
        Counts {
            ready: memory.ready.len() as u64,
            unacked: memory.out.len() as u64,
            delayed: memory.delayed.len() as u64,
            consumers: self.desk.consumers.len() as u64,
            first: oldest.into_iter().flatten().min().unwrap_or(memory.next).max(memory.first),
            next: memory.next,
        }
    }

    /// The first delayed message's time.
    pub fn delayed_until(&self) -> Option<LogTime> {
        self.memory.delayed.keys().next().map(|(due, _)| *due)
    }

    /// Somebody used it.
    pub fn touch(&mut self, now: Mono) {
        self.unused_since = now;
    }

    /// Whether it ends now: its last consumer left, or nobody used it for too long.
    pub fn is_over(&self, now: Mono) -> bool {
        if !self.desk.consumers.is_empty() {
            return false;
        }
        self.declared.auto_delete && self.had_consumer || self.expires_at().is_some_and(|at| at <= now)
    }

    fn expires_at(&self) -> Option<Mono> {
        let counts = self.declared.expires_ms > 0 && self.desk.consumers.is_empty();
        counts.then(|| self.unused_since.plus_ms(self.declared.expires_ms))
    }

    /// Whether `message` fits into the queue's and the shard's bounds.
    pub fn has_room(&self, message: &InMemory, core: &Core) -> bool {
        let cost = cost(message);
        self.memory.bytes.saturating_add(cost) <= core.config.transient_queue_bytes_max
            && core.counters.transient_bytes.saturating_add(cost) <= core.config.transient_bytes_max
    }

    /// Stores a message; the caller has asked `has_room`.
    pub fn append(&mut self, message: &Arc<InMemory>, log_time: LogTime, core: &mut Core) {
        let record = &message.record;
        let offset = self.memory.next;
        self.memory.next = offset.plus(1);
        let ttl = match record.ttl_ms() {
            NO_TTL => self.declared.spec.ttl_ms,
            ms => Some(self.declared.spec.ttl_ms.map_or(ms, |queue| queue.min(ms))),
        };
        let due = match record.delay_ms() {
            0 => LogTime(0),
            ms => LogTime(log_time.0.saturating_add(ms)),
        };
        let row = Row {
            log: self.desk.queue.log,
            offset,
            count: 1,
            time: log_time,
            client_time_ms: record.client_time_ms(),
            due,
            expiry: ttl.map_or(NEVER, |ms| LogTime(log_time.0.saturating_add(ms))),
            priority: record.priority(),
            key_hash: record.key_hash(),
            record: source(record.bytes()),
            parts: message.parts.iter().map(source).collect(),
        };
        let key = Key::new(&row, offset, self.declared.spec.priority_max);
        let entry = Entry { key, row, message: Some(message.clone()), returns: 0, turn: core.turn };
        self.memory.bytes += cost(message);
        core.counters.transient_bytes += cost(message);
        if due > log_time {
            self.memory.delayed.insert((due, offset), entry);
        } else {
            self.memory.ready.insert(entry);
        }
    }

    /// Everything that time and credit allow now. Answers when it wants to be called again by itself.
    pub fn serve(&mut self, turn: &mut Turn<'_>) -> Option<Mono> {
        let bytes = self.memory.bytes;
        self.memory.pass_time(turn.log_time);
        for at in self.desk.leases.due(turn.now) {
            self.give_back(at, turn.core);
        }
        if !self.desk.gets.is_empty() {
            self.touch(turn.now);
        }
        self.desk.dispatch(turn, &mut self.memory);
        turn.core.counters.expired += std::mem::take(&mut self.memory.expired);
        self.account(bytes, turn.core);
        let head = self.memory.ready.front().map(|head| head.row.expiry).filter(|expiry| *expiry != NEVER);
        let due = self.delayed_until().into_iter().chain(head).min();
        let wake = earlier(due.map(|at| turn.mono_of(at)), self.desk.leases.next_deadline());
        earlier(wake, self.expires_at())
    }

    fn account(&self, before: u64, core: &mut Core) {
        let freed = before.saturating_sub(self.memory.bytes);
        core.counters.transient_bytes = core.counters.transient_bytes.saturating_sub(freed);
    }

    /// A lease ends unsettled: the message is ready again at its old place.
    fn give_back(&mut self, at: Offset, core: &mut Core) {
        if self.desk.leases.remove(at).is_some() {
            core.counters.leases = core.counters.leases.saturating_sub(1);
            core.counters.returned += 1;
        }
        if let Some(mut entry) = self.memory.out.remove(&at) {
            entry.returns = entry.returns.saturating_add(1);
            self.memory.ready.insert(entry);
        }
    }

    /// Settles what `session` has out; anything else is ignored.
    pub fn settle(&mut self, session: SessionId, acked: &[Offset], returned: &[Offset], core: &mut Core) {
        let bytes = self.memory.bytes;
        for at in acked {
            if self.desk.leases.get(*at).is_some_and(|lease| lease.owner.session == session) {
                self.desk.leases.remove(*at);
                core.counters.leases = core.counters.leases.saturating_sub(1);
                if let Some(entry) = self.memory.out.remove(at) {
                    self.memory.drop_entry(&entry);
                }
            }
        }
        for at in returned {
            if self.desk.leases.get(*at).is_some_and(|lease| lease.owner.session == session) {
                self.give_back(*at, core);
            }
        }
        self.account(bytes, core);
    }

    /// Drops what is ready or delayed; how many.
    pub fn purge(&mut self, core: &mut Core) -> u64 {
        let bytes = self.memory.bytes;
        let mut purged = 0;
        while let Some(entry) = self.memory.ready.pop_front() {
            self.memory.drop_entry(&entry);
            purged += 1;
        }
        for entry in std::mem::take(&mut self.memory.delayed).into_values() {
            self.memory.drop_entry(&entry);
            purged += 1;
        }
        self.account(bytes, core);
        purged
    }

    /// Makes a consumer, or makes it again; leases that it does not name any more are given back.
    pub fn attach(&mut self, attach: &Attach, core: &mut Core) {
        self.had_consumer = true;
        for at in self.desk.leases.unnamed(attach.key, &attach.held) {
            self.give_back(at, core);
        }
        self.hold(attach.key, &attach.held);
        let single_active = attach.single_active || self.declared.single_active;
        self.desk.consumers.add(&Attach { single_active, ..attach.clone() });
    }

    /// Leases that stand although their consumer is another one now.
    pub fn hold(&mut self, owner: ConsumerKey, held: &[Held]) {
        for held in held {
            let lease = self.desk.leases.get(held.offset);
            if lease
                .is_some_and(|lease| lease.is(held.lease, held.term) && lease.owner.session == owner.session)
            {
                self.desk.leases.hand_on(held.offset, owner);
            }
        }
    }

    /// Ends a consumer.
    pub fn detach(&mut self, key: ConsumerKey, keep_leases: bool, now: Mono, core: &mut Core) {
        self.desk.consumers.remove(key);
        self.touch(now);
        if !keep_leases {
            for at in self.desk.leases.of_consumer(key) {
                self.give_back(at, core);
            }
        }
    }

    /// A session ended.
    pub fn session_gone(&mut self, session: SessionId, now: Mono, core: &mut Core) {
        for key in self.desk.consumers.of_session(session) {
            self.desk.consumers.remove(key);
            self.touch(now);
        }
        self.desk.gets.retain(|get| get.session != session);
        for at in self.desk.leases.of_session(session) {
            self.give_back(at, core);
        }
    }

    /// It is gone: what waits is refused, its memory is free.
    pub fn close(&mut self, reason: Refused, core: &mut Core, out: &mut Actions) {
        self.desk.close(reason, out);
        core.counters.leases = core.counters.leases.saturating_sub(self.desk.leases.len() as u64);
        core.counters.transient_bytes = core.counters.transient_bytes.saturating_sub(self.memory.bytes);
    }
}
