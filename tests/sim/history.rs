//! The oracle. It sees what clients sent and what they were told, and judges each delivery when it comes and the whole
//! at the end.
//!
//! Rules: what was acknowledged is delivered and stays until its settlement is; one (producer, number) has one offset
//! per log; offsets follow the numbers of a connection; an offset never changes its message; at most one live lease
//! per message among leaders of one term; nothing is handed over after its settlement was acknowledged; nothing is
//! handed over before it is committed (what was delivered once stays until a client ends it, at its offset);
//! what meta confirmed stays; replicas agree at equal index.

use longshore_proto::v1;
use longshore_wire::{LeaseId, LogId, Offset, SessionId, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Notes kept for a failing seed.
const NOTES_MAX: usize = 60;
const VIOLATIONS_MAX: usize = 8;

/// What a system has to keep, as its clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// A confirmed message is delivered.
    Lost,
    /// A message is in a log once.
    Doubled,
    /// Offsets follow the order of a connection; deliveries follow the offsets.
    Order,
    /// An offset never changes its message, and the message is what was sent.
    Replaced,
    /// At most one live lease per message among leaders of one term.
    LeasedTwice,
    /// Nothing goes out after its settlement was confirmed.
    SettledDelivered,
    /// What was delivered stays until a client ends it: it was committed.
    Uncommitted,
    /// Replicas agree at equal index.
    ReplicasDiffer,
    /// What meta confirmed (a queue, a session's number) stays.
    MetaLost,
    /// An outcome fits what was asked.
    Outcome,
    /// When everything is healed, the cluster serves again.
    Stuck,
}

/// A run that broke rules.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What clients saw.
    pub broken: Vec<(Rule, String)>,
    /// What the code noticed by itself.
    pub noticed: Vec<String>,
    /// What came before.
    pub notes: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let by = if self.broken.is_empty() { "the code noticed" } else { "clients saw" };
        write!(f, "{by}: {:#?} {:#?}\nbefore: {:#?}", self.broken, self.noticed, self.notes)
    }
}

type Key = (u64, u64);

#[derive(Debug)]
struct Sent {
    targets: Vec<LogId>,
    session: SessionId,
    crc: u32,
    acknowledged: bool,
}

#[derive(Debug)]
struct Lease {
    session: SessionId,
    gateway: usize,
    consumer: u64,
    term: Term,
    lease: LeaseId,
}

/// What clients saw.
#[derive(Debug, Default)]
pub struct History {
    sent: BTreeMap<Key, Sent>,
    at: BTreeMap<(LogId, Offset), Key>,
    offsets: BTreeMap<(LogId, Key), Offset>,
    leases: BTreeMap<(LogId, Offset), Lease>,
    settled: BTreeMap<(LogId, Offset), u64>,
    /// Ended for good by some client, confirmed or not.
    ended: BTreeSet<(LogId, Offset)>,
    /// Queues that meta confirmed, and sessions that it opened.
    queues: BTreeMap<String, u64>,
    sessions: BTreeSet<SessionId>,
    /// The newest first delivery to a consumer in a term.
    newest: BTreeMap<(usize, u64, Term), Offset>,
    hashes: BTreeMap<(u32, u64), (u64, usize)>,
    pub acknowledged: u64,
    pub deliveries: u64,
    pub redeliveries: u64,
    pub settles: u64,
    pub compared: u64,
    /// Nothing broke yet: first deliveries come in order. Later, what was lost on its way goes out again, unmarked.
    pub stormy: bool,
    /// A run goes on although the code noticed something: a broken build has to be seen by clients.
    pub patient: bool,
    violations: Vec<(Rule, String)>,
    noticed: Vec<String>,
    notes: VecDeque<String>,
}

impl History {
    /// Something for whoever reads a failing seed.
    pub fn note(&mut self, now: u64, text: String) {
        if self.notes.len() == NOTES_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back(format!("{:.3}s {text}", now as f64 / 1e6));
    }

    /// A rule is broken.
    pub fn violation(&mut self, rule: Rule, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push((rule, text));
        }
    }

    /// The code noticed by itself that something is wrong: a seed fails of it, but it proves nothing of this oracle.
    pub fn sound(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds && self.noticed.len() < VIOLATIONS_MAX {
            self.noticed.push(text());
        }
    }

    /// A rule is broken unless `holds`.
    pub fn expect(&mut self, rule: Rule, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.violation(rule, text());
        }
    }

    /// Whether enough is known.
    pub fn is_broken(&self) -> bool {
        self.violations.len() >= VIOLATIONS_MAX || !self.patient && !self.noticed.is_empty()
    }

    /// The broken rules, with what led to them.
    pub fn verdict(&self) -> Result<(), Failure> {
        if self.violations.is_empty() && (self.patient || self.noticed.is_empty()) {
            return Ok(());
        }
        let notes = self.notes.iter().cloned().collect();
        Err(Failure { broken: self.violations.clone(), noticed: self.noticed.clone(), notes })
    }

    /// Meta confirmed a queue, or showed one that it confirmed before.
    pub fn declared(&mut self, name: &str, log: u64) {
        let known = *self.queues.entry(name.to_owned()).or_insert(log);
        self.expect(Rule::MetaLost, known == log, || format!("{name} was log {known} and is log {log}"));
    }

    /// Meta opened a session for a gateway.
    pub fn session_opened(&mut self, session: SessionId) {
        let new = self.sessions.insert(session);
        self.expect(Rule::MetaLost, new, || format!("session {session} was opened before"));
    }

    /// A client published.
    pub fn sent(&mut self, session: SessionId, producer: u64, number: u64, targets: &[LogId], body: &[u8]) {
        let sent = Sent { targets: targets.to_vec(), session, crc: sum(body), acknowledged: false };
        self.sent.insert((producer, number), sent);
    }

    /// A client's publish was confirmed.
    pub fn acknowledged(&mut self, producer: u64, number: u64) {
        if let Some(sent) = self.sent.get_mut(&(producer, number)) {
            sent.acknowledged = true;
            self.acknowledged += 1;
        }
    }

    /// A client's settlement for good was confirmed.
    pub fn settle_acknowledged(&mut self, now: u64, log: LogId, offset: Offset, for_good: bool) {
        self.settles += 1;
        if for_good {
            self.settled.entry((log, offset)).or_insert(now);
        }
    }

    /// A client acks, returns or refuses: it holds the message no more.
    pub fn given_up(&mut self, log: LogId, offset: Offset, lease: LeaseId, term: Term, for_good: bool) {
        if for_good {
            self.ended.insert((log, offset));
        }
        let held = self.leases.get(&(log, offset));
        if held.is_some_and(|held| (held.lease, held.term) == (lease, term)) {
            self.leases.remove(&(log, offset));
        }
    }

    /// A session ended, and its clients' connections with it.
    pub fn session_over(&mut self, session: SessionId) {
        self.leases.retain(|_, lease| lease.session != session);
    }

    /// A consumer ended and gave everything back.
    pub fn consumer_over(&mut self, gateway: usize, consumer: u64) {
        self.leases.retain(|_, lease| (lease.gateway, lease.consumer) != (gateway, consumer));
    }

    /// A client got a message that a node handed over at `sent_at`; which sessions' gateways trusted their lease then: the
    /// clients of the others were cut off and hold nothing.
    pub fn delivered(
        &mut self,
        sent_at: u64,
        (gateway, session): (usize, SessionId),
        term: Term,
        delivery: &v1::Delivery,
        body: &[u8],
        holds: impl Fn(SessionId) -> bool,
    ) {
        let (log, offset) = (LogId(delivery.log), Offset(delivery.offset));
        self.deliveries += 1;
        self.redeliveries += u64::from(delivery.redelivered);
        let Some(key) = key_of(body) else {
            return self.violation(Rule::Replaced, format!("{log} {offset}: a body of nobody"));
        };
        let place = format!("{log} offset {offset}, message {key:?}, term {term}");
        match self.sent.get(&key) {
            None => self.violation(Rule::Replaced, format!("{place}: never sent")),
            Some(sent) if sent.crc != sum(body) => {
                self.violation(Rule::Replaced, format!("{place}: another body"));
            }
            Some(sent) if !sent.targets.contains(&log) => {
                self.violation(Rule::Replaced, format!("{place}: another log"));
            }
            Some(_) => {}
        }
        let before = *self.at.entry((log, offset)).or_insert(key);
        self.expect(Rule::Replaced, before == key, || format!("{place}: it was {before:?} before"));
        let elsewhere = *self.offsets.entry((log, key)).or_insert(offset);
        self.expect(Rule::Doubled, elsewhere == offset, || format!("{place}: it is at {elsewhere} too"));
        if let Some(settled) = self.settled.get(&(log, offset)).copied() {
            self.expect(Rule::SettledDelivered, sent_at <= settled, || {
                format!("{place}: handed over at {sent_at}, its settlement was confirmed at {settled}")
            });
        }
        let lease = LeaseId(delivery.lease);
        let live = Lease { session, gateway, consumer: delivery.consumer, term, lease };
        if let Some(held) = self.leases.insert((log, offset), live)
            && held.term == term
            && holds(held.session)
        {
            let to = format!("consumer {} of gateway {gateway}", delivery.consumer);
            let text = format!("{place}: leased as {lease} to {to} while {held:?} holds it");
            self.violation(Rule::LeasedTwice, text);
        }
        if !delivery.redelivered && !self.stormy {
            let newest = self.newest.insert((gateway, delivery.consumer, term), offset);
            self.expect(Rule::Order, newest.is_none_or(|newest| newest < offset), || {
                format!("{place}: after {newest:?} to consumer {}", delivery.consumer)
            });
        }
    }

    /// A replica's state at an applied index.
    pub fn compare(&mut self, shard: u32, applied: u64, hash: u64, slot: usize) {
        match self.hashes.get(&(shard, applied)) {
            None => {
                self.hashes.insert((shard, applied), (hash, slot));
            }
            Some((other, by)) => {
                self.compared += u64::from(*by != slot);
                if *other != hash {
                    let text = format!("shard {shard} at {applied}: {hash} on {slot}, {other} on {by}");
                    self.violation(Rule::ReplicasDiffer, text);
                }
            }
        }
    }

    /// Messages that only asked whether they would be confirmed.
    pub fn forget(&mut self, keys: impl Iterator<Item = (u64, u64)>) {
        keys.for_each(|key| drop(self.sent.remove(&key)));
    }

    /// Whether a message was confirmed.
    pub fn is_acknowledged(&self, producer: u64, number: u64) -> bool {
        self.sent.get(&(producer, number)).is_some_and(|sent| sent.acknowledged)
    }

    /// The end, everything healed and drained.
    pub fn judge(&mut self) {
        self.judge_lost(|_| true);
        self.judge_order();
        let gone: Vec<_> = self.at.iter().filter(|(at, _)| !self.ended.contains(at)).collect();
        let gone: Vec<String> = gone
            .into_iter()
            .map(|((log, offset), key)| {
                format!("{key:?} at {offset} of log {log} was delivered, nobody ended it, and it is gone")
            })
            .collect();
        gone.into_iter().for_each(|text| self.violation(Rule::Uncommitted, text));
    }

    /// What was confirmed and never delivered, of the logs that `ought` to have delivered everything.
    pub fn judge_lost(&mut self, ought: impl Fn(LogId) -> bool) {
        let mut lost = Vec::new();
        for (key, sent) in self.sent.iter().filter(|(_, sent)| sent.acknowledged) {
            let targets = sent.targets.iter().filter(|log| ought(**log));
            for log in targets.filter(|log| !self.offsets.contains_key(&(**log, *key))) {
                lost.push(format!("{key:?} in log {log} of session {} was confirmed and lost", sent.session));
            }
        }
        lost.into_iter().for_each(|text| self.violation(Rule::Lost, text));
    }

    fn judge_order(&mut self) {
        let mut newest: BTreeMap<(LogId, u64, SessionId), (u64, Offset)> = BTreeMap::new();
        let mut wrong = BTreeSet::new();
        for ((log, offset), (producer, number)) in &self.at {
            let Some(session) = self.sent.get(&(*producer, *number)).map(|sent| sent.session) else {
                continue;
            };
            let before = newest.insert((*log, *producer, session), (*number, *offset));
            if let Some((earlier, at)) = before.filter(|(earlier, _)| earlier > number) {
                wrong.insert(format!("{log}: producer {producer}: {earlier} at {at}, {number} at {offset}"));
            }
        }
        wrong.into_iter().for_each(|text| self.violation(Rule::Order, text));
    }
}

fn key_of(body: &[u8]) -> Option<Key> {
    let word = |at: usize| body.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    Some((word(0)?, word(8)?))
}

fn sum(body: &[u8]) -> u32 {
    crc32c::crc32c(body)
}
