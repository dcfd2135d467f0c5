//! The consumers of one queue that read by settlement: credit, priority, fairness, exclusiveness.
//!
//! Fairness is round robin among those with credit in the highest priority that has any. Consumers without credit are
//! not in the ring, so that a thousand of them cost nothing per message.

use crate::command::{Attach, ConsumerKey, Refused};
use crate::explain::Reason;
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// What may be sent, and what was, since the attach.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Credit {
    messages: u64,
    bytes: u64,
    messages_sent: u64,
    bytes_sent: u64,
}

impl Credit {
    pub fn new(messages: u64, bytes: u64) -> Credit {
        Credit { messages, bytes, ..Credit::default() }
    }

    /// Whether one more message may go. It may exceed what is left in bytes: otherwise one larger than the
    /// gateway's whole allowance would stay for ever.
    pub fn is_left(&self) -> bool {
        self.messages_sent < self.messages && self.bytes_sent < self.bytes
    }

    /// Credit only grows.
    pub fn raise(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.max(messages);
        self.bytes = self.bytes.max(bytes);
    }

    pub fn charge(&mut self, messages: u64, bytes: u64) {
        self.messages_sent = self.messages_sent.saturating_add(messages);
        self.bytes_sent = self.bytes_sent.saturating_add(bytes);
    }
}

#[derive(Debug)]
struct Consumer {
    priority: i32,
    /// Attach order: who comes next as single active consumer.
    order: u64,
    exclusive: bool,
    credit: Credit,
    lease_ms: Option<u64>,
    /// Held something when it attached: it was the active one before a leader change.
    held: bool,
    /// Its gateway's stream broke.
    suspended: bool,
    in_ring: bool,
}

/// Who consumes.
#[derive(Debug, Default)]
pub(crate) struct Consumers {
    all: BTreeMap<ConsumerKey, Consumer>,
    ring: BTreeMap<Reverse<i32>, VecDeque<ConsumerKey>>,
    single_active: bool,
    active: Option<ConsumerKey>,
    next_order: u64,
}

impl Consumers {
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub fn contains(&self, key: ConsumerKey) -> bool {
        self.all.contains_key(&key)
    }

    pub fn keys(&self) -> impl Iterator<Item = ConsumerKey> + '_ {
        self.all.keys().copied()
    }

    /// Those of one session.
    pub fn of_session(&self, session: longshore_wire::SessionId) -> Vec<ConsumerKey> {
        let first = ConsumerKey { session, consumer: 0 };
        let last = ConsumerKey { session, consumer: u64::MAX };
        self.all.range(first..=last).map(|(key, _)| *key).collect()
    }

    /// Whether `attach` may join the others.
    pub fn admit(&self, attach: &Attach, max: usize) -> Result<(), Refused> {
        let mut others = self.all.iter().filter(|(key, _)| **key != attach.key).peekable();
        if attach.exclusive && others.peek().is_some() || others.any(|(_, other)| other.exclusive) {
            return Err(Refused::Exclusive);
        }
        if self.all.len() >= max && !self.all.contains_key(&attach.key) { Err(Refused::Busy) } else { Ok(()) }
    }

    /// Adds a consumer, or replaces it when it attaches again, keeping its place in the order.
    pub fn add(&mut self, attach: &Attach) {
        let order = match self.all.get(&attach.key) {
            Some(old) => old.order,
            None => {
                self.next_order += 1;
                self.next_order
            }
        };
        self.leave_ring(attach.key);
        self.single_active |= attach.single_active;
        let consumer = Consumer {
            priority: attach.priority,
            order,
            exclusive: attach.exclusive,
            credit: Credit::new(attach.credit_messages, attach.credit_bytes),
            lease_ms: attach.lease_ms,
            held: !attach.held.is_empty(),
            suspended: false,
            in_ring: false,
        };
        self.all.insert(attach.key, consumer);
        self.enter_ring(attach.key);
    }

    /// Takes a consumer away; `false` if there is none.
    pub fn remove(&mut self, key: ConsumerKey) -> bool {
        self.leave_ring(key);
        if self.active == Some(key) {
            self.active = None;
        }
        self.all.remove(&key).is_some()
    }

    /// Raises the credit; whether it has some now.
    pub fn credit(&mut self, key: ConsumerKey, messages: u64, bytes: u64) -> bool {
        let Some(consumer) = self.all.get_mut(&key) else { return false };
        consumer.credit.raise(messages, bytes);
        self.enter_ring(key);
        true
    }

    /// Its gateway's stream broke; it gets nothing until it attaches again.
    pub fn suspend(&mut self, key: ConsumerKey) {
        self.leave_ring(key);
        if let Some(consumer) = self.all.get_mut(&key) {
            consumer.suspended = true;
        }
    }

    /// Whether its gateway's stream broke and it did not attach again yet.
    pub fn is_suspended(&self, key: ConsumerKey) -> bool {
        self.all.get(&key).is_some_and(|consumer| consumer.suspended)
    }

    fn enter_ring(&mut self, key: ConsumerKey) {
        if let Some(consumer) = self.all.get_mut(&key)
            && !consumer.in_ring
            && !consumer.suspended
            && consumer.credit.is_left()
        {
            consumer.in_ring = true;
            self.ring.entry(Reverse(consumer.priority)).or_default().push_back(key);
        }
    }

    fn leave_ring(&mut self, key: ConsumerKey) {
        let Some(consumer) = self.all.get_mut(&key) else { return };
        if !std::mem::take(&mut consumer.in_ring) {
            return;
        }
        let level = Reverse(consumer.priority);
        if let Some(ring) = self.ring.get_mut(&level) {
            ring.retain(|other| *other != key);
            if ring.is_empty() {
                self.ring.remove(&level);
            }
        }
    }

    /// Chooses the active one where only one may be: who held messages before, then priority, then age.
    fn choose_active(&mut self) {
        if self.active.is_none() {
            let ranked = self.all.iter().filter(|(_, consumer)| !consumer.suspended);
            let best = ranked.min_by_key(|(_, c)| (Reverse(c.held), Reverse(c.priority), c.order));
            self.active = best.map(|(key, _)| *key);
        }
    }

    /// Who gets the next message. The choice stands until [`Consumers::charge`].
    pub fn next(&mut self) -> Option<ConsumerKey> {
        if self.single_active {
            self.choose_active();
            return self.active.filter(|key| self.all.get(key).is_some_and(|consumer| consumer.in_ring));
        }
        self.ring.first_key_value().and_then(|(_, ring)| ring.front().copied())
    }

    /// Accounts for a message of `bytes` to `key`, which goes to the end of its ring, or out of it when its
    /// credit is used up. Answers how long its leases last.
    pub fn charge(&mut self, key: ConsumerKey, bytes: u64) -> Option<u64> {
        let consumer = self.all.get_mut(&key)?;
        consumer.credit.charge(1, bytes);
        let stays = consumer.credit.is_left();
        let lease_ms = consumer.lease_ms;
        let level = Reverse(consumer.priority);
        if !stays {
            self.leave_ring(key);
        } else if let Some(ring) = self.ring.get_mut(&level)
            && ring.len() > 1
            && ring.front() == Some(&key)
        {
            ring.rotate_left(1);
        }
        lease_ms
    }

    /// The one other consumer that could get a message now (only the broken build asks).
    pub fn other_with_credit(&self, than: ConsumerKey) -> Option<ConsumerKey> {
        self.all.iter().find(|(key, consumer)| **key != than && consumer.in_ring).map(|(key, _)| *key)
    }

    /// Whether anyone could get a message now. Chooses nobody: who held messages may still attach again.
    pub fn any_with_credit(&self) -> bool {
        match self.active.filter(|_| self.single_active) {
            Some(active) => self.all.get(&active).is_some_and(|consumer| consumer.in_ring),
            None => !self.ring.is_empty(),
        }
    }

    /// Why nobody could get a message now; empty if someone could.
    pub fn blocked(&self, listed_max: usize) -> Vec<Reason> {
        if self.all.is_empty() {
            return vec![Reason::NoConsumer];
        }
        let active = self.active.filter(|_| self.single_active);
        let served = |key: &ConsumerKey| active.is_none_or(|active| active == *key);
        if self.all.iter().any(|(key, consumer)| consumer.in_ring && served(key)) {
            return Vec::new();
        }
        let mut reasons = Vec::new();
        let idle = self.all.iter().filter(|(key, consumer)| !consumer.suspended && served(key));
        let consumers: Vec<ConsumerKey> = idle.map(|(key, _)| *key).take(listed_max).collect();
        if !consumers.is_empty() {
            reasons.push(Reason::NoCredit { consumers });
        }
        let suspended = self.all.values().filter(|consumer| consumer.suspended).count() as u64;
        if suspended > 0 {
            reasons.push(Reason::Suspended { consumers: suspended });
        }
        if let Some(active) = active
            && self.all.len() > 1
        {
            reasons.push(Reason::SingleActiveStandby { active, standing_by: self.all.len() as u64 - 1 });
        }
        reasons
    }
}
