//! Clients on a gateway: producers that number their messages, consumers that ack, return and come back.

use crate::sim::gateway::Gateway;
use crate::sim::history::Rule;
use crate::sim::machine::SHARDS;
use crate::sim::shard_side::{ShardSide, joined};
use crate::sim::world::{GATEWAYS, Queue, World};
use bytes::Bytes;
use longshore_broker::session::consumers::Wanted;
use longshore_broker::session::sender::Appended;
use longshore_broker::session::settles::End;
use longshore_broker::session::{Chunk, Upload};
use longshore_proto::v1::{self, gateway_item::Item};
use longshore_wire::batch::DeadReason;
use longshore_wire::record::{Form, NewRecord, Record, flags};
use longshore_wire::{CursorId, LeaseId, LogId, Offset, ShardId, Term};
use std::collections::BTreeMap;

const PRODUCERS: u64 = 4;
const WINDOW: usize = 24;
const CREDIT: u64 = 12;
const CREDIT_BYTES: u64 = 1 << 30;
const UNIFORM_BYTES: usize = 400;
/// Messages that ask whether a shard still serves have producers from this number on.
const PROBES: u64 = 9_000;

/// What an outcome is for.
#[derive(Debug)]
pub enum Tag {
    /// A message.
    Append { producer: u64, number: u64 },
    /// Ends of deliveries: which, and whether for good.
    Settle { log: LogId, term: Term, consumer: u64, ends: Vec<(Offset, LeaseId, bool)> },
}

/// One connection that publishes.
#[derive(Debug)]
pub struct Producer {
    id: u64,
    next: u64,
    pub in_flight: usize,
    next_at: u64,
}

#[derive(Debug)]
struct HeldMessage {
    consumer: u64,
    shard: ShardId,
    log: LogId,
    offset: Offset,
    lease: LeaseId,
    term: Term,
}

/// All clients of a gateway.
#[derive(Debug)]
pub struct Clients {
    pub producers: Vec<Producer>,
    /// Consumers by id: the queue.
    consumers: BTreeMap<u64, Queue>,
    held: BTreeMap<(u64, u64), HeldMessage>,
    making: BTreeMap<u64, ()>,
    made: usize,
    uploads: u64,
}

impl Clients {
    pub fn new(at: usize) -> Clients {
        let producer = |n| Producer { id: at as u64 * 100 + n, next: 1, in_flight: 0, next_at: 0 };
        Clients {
            producers: (0..PRODUCERS).map(producer).collect(),
            consumers: BTreeMap::new(),
            held: BTreeMap::new(),
            making: BTreeMap::new(),
            made: 0,
            uploads: 0,
        }
    }

    /// The connections of a session ended with it; new ones come with the next.
    pub fn session_over(&mut self) {
        self.consumers.clear();
        self.held.clear();
        self.making.clear();
    }

    /// A consumer was refused or cancelled.
    pub fn consumer_gone(&mut self, consumer: u64) {
        self.consumers.remove(&consumer);
        self.held.retain(|_, held| held.consumer != consumer);
    }

    /// An `EnsureLog` was answered.
    pub fn log_made(&mut self, request: u64) {
        if self.making.remove(&request).is_some() {
            self.made += 1;
        }
    }

    /// How many logs were made sure of.
    pub fn made(&self) -> usize {
        self.made
    }
}

impl World {
    /// A session begins: its shards, without leaders yet.
    pub fn session_begins(&mut self, at: usize) {
        let gateway = &mut self.gateways[at];
        let Some(session) = gateway.session else { return };
        gateway.shards = (1..=SHARDS).map(|id| (ShardId(id), ShardSide::new(ShardId(id), session))).collect();
    }

    /// Asks the leaders to make every queue's log.
    pub fn make_logs(&mut self, at: usize, spec: &Bytes) {
        for queue in self.queues.clone() {
            let request = self.id();
            self.gateways[at].clients.making.insert(request, ());
            let ensure =
                v1::EnsureLog { request, shard: queue.shard.0, log: queue.log.0, spec: spec.clone() };
            self.send_to_leader(at, queue.shard, Item::EnsureLog(ensure));
        }
    }

    /// One tick of all clients.
    pub fn run_clients(&mut self, at: usize) {
        if self.queues.is_empty() {
            return;
        }
        self.consume(at);
        self.end_deliveries(at);
        if self.publishing {
            for index in 0..self.gateways[at].clients.producers.len() {
                self.produce(at, index);
            }
        }
    }

    fn produce(&mut self, at: usize, index: usize) {
        let now = self.now;
        let burst = if self.uniform { 1 } else { 1 + self.rng.below(6) };
        if now < self.gateways[at].clients.producers[index].next_at {
            return;
        }
        let pause = 20_000 + self.rng.below(160_000);
        self.gateways[at].clients.producers[index].next_at = now + pause;
        for _ in 0..burst {
            if self.gateways[at].clients.producers[index].in_flight >= WINDOW {
                return;
            }
            self.publish(at, index);
        }
    }

    fn publish(&mut self, at: usize, index: usize) {
        if self.uniform {
            return self.publish_alike(at, index);
        }
        let first = self.queues[self.rng.below(self.queues.len() as u64) as usize];
        let mut targets = vec![first.log];
        if self.rng.one_in(5) {
            let other = self.queues.iter().find(|queue| queue.shard == first.shard && queue.log != first.log);
            targets.extend(other.map(|queue| queue.log));
        }
        let large = self.rng.one_in(60);
        let len = if large { 9_000 + self.rng.below(9_000) } else { 20 + self.rng.below(900) };
        let gateway = &mut self.gateways[at];
        if gateway.session.is_none() {
            self.rng.next_u64();
            return;
        }
        let producer = &mut gateway.clients.producers[index];
        let (id, number) = (producer.id, producer.next);
        producer.next += 1;
        producer.in_flight += 1;
        self.send_message(at, first, &targets, (id, number), len as usize, large);
    }

    fn publish_alike(&mut self, at: usize, index: usize) {
        let queue = self.queues[self.rng.below(self.queues.len() as u64) as usize];
        let gateway = &mut self.gateways[at];
        if gateway.session.is_none() {
            return;
        }
        let producer = &mut gateway.clients.producers[index];
        let key = (producer.id, producer.next);
        producer.next += 1;
        producer.in_flight += 1;
        self.send_message(at, queue, &[queue.log], key, UNIFORM_BYTES, false);
    }

    fn send_message(
        &mut self,
        at: usize,
        first: Queue,
        targets: &[LogId],
        (id, number): (u64, u64),
        len: usize,
        large: bool,
    ) {
        let filler = self.rng.next_u64();
        let gateway = &mut self.gateways[at];
        let Some(session) = gateway.session else { return };
        let body = body(id, number, len, filler);
        self.history.sent(session, id, number, targets, &body);
        gateway.clients.uploads += 1;
        let upload = gateway.clients.uploads;
        let Some(side) = gateway.shards.get_mut(&first.shard) else { return };
        let tag = Tag::Append { producer: id, number };
        let mut chunk = Chunk::new(session);
        let mut new = NewRecord::plain(Form::Amqp, targets, b"key", b"");
        let encoded = if large {
            (new.flags, new.upload) = (flags::PARTS, upload);
            chunk.append(None, &new, &[], tag)
        } else {
            chunk.append(None, &new, std::slice::from_ref(&body), tag)
        };
        self.history.expect(Rule::Outcome, encoded.is_ok(), || "a message cannot be encoded".to_owned());
        if large {
            side.sender.push_upload(id, Upload { id: upload, body: [body].into(), last: chunk });
        } else {
            side.sender.push(id, chunk);
            side.sender.published_beside();
        }
    }

    /// Publishes one message to each queue through each gateway; their keys, by log.
    pub fn publish_probes(&mut self) -> Vec<(LogId, (u64, u64))> {
        let mut keys = Vec::new();
        for queue in self.queues.clone() {
            for at in 0..GATEWAYS {
                let key = (PROBES + at as u64, self.id());
                self.send_message(at, queue, &[queue.log], key, 64, false);
                keys.push((queue.log, key));
            }
        }
        keys
    }

    /// The clients of a gateway end what they hold at once.
    pub fn hurry(&mut self, at: usize) {
        let now = self.now;
        let held = &mut self.gateways[at].clients.held;
        *held = std::mem::take(held).into_iter().map(|((_, id), message)| ((now, id), message)).collect();
    }

    /// A message has its outcome.
    pub fn appended(&mut self, at: usize, tag: &Tag, result: Appended) {
        let Tag::Append { producer, number } = tag else {
            let text = "a settlement was answered as an append".to_owned();
            return self.history.violation(Rule::Outcome, text);
        };
        for known in &mut self.gateways[at].clients.producers {
            if known.id == *producer {
                known.in_flight = known.in_flight.saturating_sub(1);
            }
        }
        match result {
            Appended::Stored => self.history.acknowledged(*producer, *number),
            other => {
                self.history.violation(Rule::Outcome, format!("message {producer}/{number} is {other:?}"));
            }
        }
    }

    /// A settlement has its outcome.
    pub fn settled(&mut self, at: usize, shard: ShardId, tag: &Tag) {
        let Tag::Settle { log, term, consumer, ends } = tag else {
            let text = "an append was answered as a settlement".to_owned();
            return self.history.violation(Rule::Outcome, text);
        };
        let leases: Vec<_> = ends.iter().map(|(offset, lease, _)| (*offset, *lease)).collect();
        // A settlement told to a later leader may have come too late: the message may be out to another session there.
        let mut binding = false;
        if let Some(side) = self.gateways[at].shards.get_mut(&shard) {
            side.consumers.settle_done(*log, *term, &leases);
            binding = side.leader.is_some_and(|(leading, _)| leading == *term);
            // Or its consumer ended with everything it had, while the settlement was still on its way.
            binding &= self.gateways[at].clients.consumers.contains_key(consumer);
        }
        for (offset, _, for_good) in ends.iter().filter(|(.., for_good)| *for_good) {
            self.history.settle_acknowledged(self.now, *log, *offset, *for_good && binding);
        }
    }

    /// The session ended with these under way: their fate is unknown.
    pub fn clients_forget(&mut self, at: usize, tags: Vec<Tag>) {
        for tag in tags {
            if let Tag::Append { producer, .. } = tag {
                for known in &mut self.gateways[at].clients.producers {
                    if known.id == producer {
                        known.in_flight = known.in_flight.saturating_sub(1);
                    }
                }
            }
        }
    }

    /// Makes the consumers that are missing; ends one now and then.
    fn consume(&mut self, at: usize) {
        if !self.consuming {
            return;
        }
        if self.stormy && self.rng.one_in(200) {
            self.end_consumer(at);
        }
        for queue in self.queues.clone() {
            let has = self.gateways[at].clients.consumers.values().any(|known| known.log == queue.log);
            if has || !self.publishing && !self.history.stormy {
                continue;
            }
            let consumer = self.id();
            let Gateway { shards, clients, .. } = &mut self.gateways[at];
            let Some(side) = shards.get_mut(&queue.shard) else { continue };
            let wanted = Wanted {
                log: queue.log,
                cursor: CursorId(0),
                start: None,
                exclusive: false,
                single_active: false,
                priority: 0,
                credit_messages: CREDIT,
                credit_bytes: CREDIT_BYTES,
            };
            clients.consumers.insert(consumer, queue);
            let attach = side.consumers.attach(consumer, wanted, consumer);
            self.send_to_leader(at, queue.shard, Item::Attach(attach));
        }
    }

    fn end_consumer(&mut self, at: usize) {
        let Gateway { shards, clients, .. } = &mut self.gateways[at];
        let Some((consumer, queue)) = clients.consumers.iter().next().map(|(id, queue)| (*id, *queue)) else {
            return;
        };
        clients.consumer_gone(consumer);
        let detach = shards.get_mut(&queue.shard).and_then(|side| side.consumers.detach(consumer, false));
        self.history.consumer_over(at, consumer);
        if let Some(item) = detach.and_then(|item| item.item) {
            self.send_to_leader(at, queue.shard, item);
        }
    }

    /// A message for a consumer.
    pub fn delivered(
        &mut self,
        at: usize,
        sent: u64,
        shard: ShardId,
        term: Term,
        delivery: &v1::Delivery,
        pieces: &[Bytes],
    ) {
        let (now, id) = (self.now, self.id());
        let Ok(record) = Record::parse(delivery.record.clone()) else {
            let text = format!("an unreadable record at {}", delivery.offset);
            return self.history.violation(Rule::Replaced, text);
        };
        let session = self.gateways[at].session.unwrap_or_default();
        let body = joined(&record.body(), pieces);
        let leases = self.gateways.iter().map(|gateway| (gateway.session, gateway.lease_until));
        let leases: Vec<_> = leases.collect();
        let holds = |session| leases.iter().any(|(of, until)| *of == Some(session) && *until > sent);
        self.history.delivered(sent, (at, session), term, delivery, &body, holds);
        let slow = self.stormy && self.rng.one_in(20);
        let due = now + self.rng.below(if slow { 1_500_000 } else { self.hold_us });
        let held = HeldMessage {
            consumer: delivery.consumer,
            shard,
            log: LogId(delivery.log),
            offset: Offset(delivery.offset),
            lease: LeaseId(delivery.lease),
            term,
        };
        self.gateways[at].clients.held.insert((due, id), held);
    }

    /// Clients ack, return or refuse what they had long enough.
    fn end_deliveries(&mut self, at: usize) {
        let now = self.now;
        while let Some(entry) = self.gateways[at].clients.held.first_entry().filter(|e| e.key().0 <= now) {
            let held = entry.remove();
            let end = match self.rng.below(20) {
                0 | 1 if self.stormy => End::Returned { counted: true },
                2 => End::Dead(DeadReason::Rejected),
                _ => End::Acked,
            };
            let for_good = !matches!(end, End::Returned { .. });
            let Some(side) = self.gateways[at].shards.get_mut(&held.shard) else { continue };
            if !side.consumers.settled(Some(held.consumer), held.log, held.offset, held.lease) {
                continue;
            }
            self.history.given_up(held.log, held.offset, held.lease, held.term, for_good);
            let tag = Tag::Settle {
                log: held.log,
                term: held.term,
                consumer: held.consumer,
                ends: vec![(held.offset, held.lease, for_good)],
            };
            side.sender.settle((held.log, CursorId(0), held.term), [(held.offset, held.lease, end)], tag);
            let credit = side.consumers.credit(held.consumer, 1, 0);
            if let Some(credit) = credit {
                self.send_to_leader(at, held.shard, Item::Credit(credit));
            }
        }
    }
}

/// A message's body: who sent it, its number, and bytes that follow from `filler`.
fn body(producer: u64, number: u64, len: usize, filler: u64) -> Bytes {
    let mut body = Vec::with_capacity(len.max(16));
    body.extend_from_slice(&producer.to_le_bytes());
    body.extend_from_slice(&number.to_le_bytes());
    let mut word = filler;
    while body.len() < len {
        word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        body.push((word >> 56) as u8);
    }
    body.into()
}
