//! The oracle. It sees what clients sent and what they were told, and judges each delivery when it comes and the whole
//! at the end.
//!
//! Rules: what was acknowledged is delivered and stays until its settlement is; one (producer, number) has one offset
//! per log; offsets follow the numbers of a connection; an offset never changes its message; at most one live lease
//! per message among leaders of one term; nothing is handed over after its settlement was acknowledged; replicas
//! agree at equal index.

use longshore_proto::v1;
use longshore_wire::{LeaseId, LogId, Offset, SessionId, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// Notes kept for a failing seed.
const NOTES_MAX: usize = 60;
const VIOLATIONS_MAX: usize = 8;
/// A failure begins with one of these: clients saw it, or the code did.
pub const BY_CLIENTS: &str = "clients saw: ";
pub const BY_CODE: &str = "the code noticed: ";

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
    violations: Vec<String>,
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
    pub fn violation(&mut self, text: String) {
        if self.violations.len() < VIOLATIONS_MAX {
            self.violations.push(text);
        }
    }

    /// The code noticed by itself that something is wrong: a seed fails of it, but it proves nothing of this oracle.
    pub fn sound(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds && self.noticed.len() < VIOLATIONS_MAX {
            self.noticed.push(text());
        }
    }

    /// A rule is broken unless `holds`.
    pub fn expect(&mut self, holds: bool, text: impl FnOnce() -> String) {
        if !holds {
            self.violation(text());
        }
    }

    /// Whether enough is known.
    pub fn is_broken(&self) -> bool {
        self.violations.len() >= VIOLATIONS_MAX || !self.noticed.is_empty()
    }

    /// The broken rules, with what led to them.
    pub fn verdict(&self) -> Result<(), String> {
        if self.violations.is_empty() && self.noticed.is_empty() {
            return Ok(());
        }
        let notes: Vec<&str> = self.notes.iter().map(String::as_str).collect();
        let by = if self.violations.is_empty() { BY_CODE } else { BY_CLIENTS };
        Err(format!("{by}{:#?} {:#?}\nbefore: {notes:#?}", self.violations, self.noticed))
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
    pub fn given_up(&mut self, log: LogId, offset: Offset, lease: LeaseId, term: Term) {
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
            return self.violation(format!("{log} {offset}: a body of nobody"));
        };
        let place = format!("{log} offset {offset}, message {key:?}, term {term}");
        match self.sent.get(&key) {
            None => self.violation(format!("{place}: never sent")),
            Some(sent) if sent.crc != sum(body) => self.violation(format!("{place}: another body")),
            Some(sent) if !sent.targets.contains(&log) => self.violation(format!("{place}: another log")),
            Some(_) => {}
        }
        let before = *self.at.entry((log, offset)).or_insert(key);
        self.expect(before == key, || format!("{place}: it was {before:?} before"));
        let elsewhere = *self.offsets.entry((log, key)).or_insert(offset);
        self.expect(elsewhere == offset, || format!("{place}: it is at {elsewhere} too"));
        if let Some(settled) = self.settled.get(&(log, offset)).copied() {
            self.expect(sent_at <= settled, || {
                format!("{place}: handed over at {sent_at}, its settlement was confirmed at {settled}")
            });
        }
        let lease = LeaseId(delivery.lease);
        let live = Lease { session, gateway, consumer: delivery.consumer, term, lease };
        if let Some(held) = self.leases.insert((log, offset), live)
            && held.term == term
            && holds(held.session)
        {
            self.violation(format!("{place}: leased as {lease} while {held:?} holds it"));
        }
        if !delivery.redelivered && !self.stormy {
            let newest = self.newest.insert((gateway, delivery.consumer, term), offset);
            self.expect(newest.is_none_or(|newest| newest < offset), || {
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
                    self.violation(text);
                }
            }
        }
    }

    /// The end, everything healed and drained.
    pub fn judge(&mut self) {
        let mut lost = Vec::new();
        for (key, sent) in self.sent.iter().filter(|(_, sent)| sent.acknowledged) {
            for log in sent.targets.iter().filter(|log| !self.offsets.contains_key(&(**log, *key))) {
                lost.push(format!("{key:?} in log {log} of session {} was confirmed and lost", sent.session));
            }
        }
        lost.into_iter().for_each(|text| self.violation(text));
        self.judge_order();
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
        wrong.into_iter().for_each(|text| self.violation(text));
    }
}

fn key_of(body: &[u8]) -> Option<Key> {
    let word = |at: usize| body.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes);
    Some((word(0)?, word(8)?))
}

fn sum(body: &[u8]) -> u32 {
    crc32c::crc32c(body)
}
