//! What goes out to gateways: items in order per link, and deliveries in order per (link, log) although some bodies
//! must first be read from disk.
//!
//! Danger: a delivery that overtakes an earlier one of its queue breaks the order that clients rely on, so a
//! queue with a body under way holds back everything behind it. Called by the turn only.

use crate::io::{LinkId, LinkItem};
use bytes::Bytes;
use longshore_delivery::{ConsumerKey, Handed, Message};
use longshore_proto::{FRAME_BYTES_TARGET, v1};
use longshore_records::StoredRecord;
use longshore_wire::{LogId, Offset, SessionId, ShardId, Term};
use queue::{Queue, Slot, SlotKind};
use std::collections::{BTreeMap, BTreeSet};

mod queue;

/// Bodies that one queue of deliveries needs.
#[derive(Debug)]
pub(crate) struct Wanted {
    /// The queue: its link.
    pub link: LinkId,
    /// The queue: its log.
    pub log: LogId,
    /// The first offsets of the rows whose bodies it needs.
    pub offsets: Vec<(LogId, Offset)>,
}

/// Deliveries of one shard to one link, for one item. Danger: an item beyond the size of a message ends the stream.
#[derive(Debug, Default)]
struct Gathered {
    deliver: v1::Deliver,
    bytes: usize,
}

/// All links of this node.
#[derive(Debug, Default)]
pub(crate) struct Links {
    links: BTreeMap<LinkId, SessionId>,
    newest: BTreeMap<SessionId, LinkId>,
    queues: BTreeMap<(LinkId, LogId), Queue>,
    /// Queues that may have something to ask for or to send.
    touched: BTreeSet<(LinkId, LogId)>,
    deliveries: BTreeMap<(LinkId, ShardId), Gathered>,
    out: Vec<LinkItem>,
}

impl Links {
    /// A gateway's stream. An older stream of the same session counts as lost.
    pub fn open(&mut self, link: LinkId, session: SessionId) {
        self.links.insert(link, session);
        self.newest.insert(session, link);
    }

    /// The stream ended; the session that it was the newest stream of, if it was.
    pub fn close(&mut self, link: LinkId) -> Option<SessionId> {
        self.queues.retain(|(of, _), _| *of != link);
        self.touched.retain(|(of, _)| *of != link);
        self.deliveries.retain(|(of, _), _| *of != link);
        let session = self.links.remove(&link)?;
        (self.newest.get(&session) == Some(&link)).then(|| {
            self.newest.remove(&session);
            session
        })
    }

    /// The session of a link.
    pub fn session(&self, link: LinkId) -> Option<SessionId> {
        self.links.get(&link).copied()
    }

    /// The newest link of a session.
    pub fn of_session(&self, session: SessionId) -> Option<LinkId> {
        self.newest.get(&session).copied()
    }

    /// All links.
    pub fn all(&self) -> impl Iterator<Item = LinkId> + '_ {
        self.links.keys().copied()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Sends an item, behind the deliveries that were made before it.
    pub fn send(&mut self, link: LinkId, item: v1::node_item::Item) {
        self.flush_deliveries(Some(link));
        self.out.push(LinkItem { link, item });
    }

    /// Sends an item to the newest link of a session; drops it if the session has none.
    pub fn send_to_session(&mut self, session: SessionId, item: v1::node_item::Item) {
        if let Some(link) = self.of_session(session) {
            self.send(link, item);
        }
    }

    /// Hands a message to a consumer.
    pub fn deliver(&mut self, shard: ShardId, term: Term, to: ConsumerKey, handed: Handed) {
        if let Some(link) = self.of_session(to.session) {
            let delivery = delivery(to.consumer, &handed);
            self.enqueue(link, shard, term, SlotKind::Consumer, delivery, handed);
        }
    }

    /// Answers a get with a message.
    pub fn got(
        &mut self,
        shard: ShardId,
        term: Term,
        session: SessionId,
        request: u64,
        handed: Handed,
        ready: u64,
    ) {
        if let Some(link) = self.of_session(session) {
            let delivery = delivery(0, &handed);
            self.enqueue(link, shard, term, SlotKind::Get { request, ready }, delivery, handed);
        }
    }

    fn enqueue(
        &mut self,
        link: LinkId,
        shard: ShardId,
        term: Term,
        kind: SlotKind,
        mut delivery: v1::Delivery,
        handed: Handed,
    ) {
        let log = handed.log;
        let queue = self.queues.entry((link, log)).or_default();
        self.touched.insert((link, log));
        match handed.message {
            Message::Stored(row) => queue.push(Slot::stored(shard, term, kind, delivery, row)),
            Message::Memory(message) => {
                delivery.record = message.record.bytes().clone();
                delivery.body_bytes = message.parts.iter().map(|part| part.len() as u64).sum();
                queue.push(Slot::in_memory(shard, term, kind, delivery, message.parts.clone()));
            }
        }
    }

    /// Bodies that must be asked for now; they count as asked.
    pub fn wanted(&mut self) -> Vec<Wanted> {
        let mut all = Vec::new();
        for (link, log) in &self.touched {
            let Some(queue) = self.queues.get_mut(&(*link, *log)) else { continue };
            let offsets = queue.ask();
            if !offsets.is_empty() {
                all.push(Wanted { link: *link, log: *log, offsets });
            }
        }
        all
    }

    /// A body that was asked for is here.
    pub fn body(&mut self, link: LinkId, log: LogId, stored: &StoredRecord) {
        let Some(queue) = self.queues.get_mut(&(link, log)) else { return };
        queue.body(stored);
        self.touched.insert((link, log));
    }

    /// What was asked for and did not come is asked for again.
    pub fn ask_again(&mut self, link: LinkId, log: LogId) {
        let Some(queue) = self.queues.get_mut(&(link, log)) else { return };
        queue.ask_again();
        self.touched.insert((link, log));
    }

    /// Drops the deliveries that wait for the record at this offset and whose own offset is not to be kept.
    pub fn forget_record(&mut self, log: LogId, record: Offset, keep: impl Fn(Offset) -> bool) {
        for (key, queue) in self.queues.iter_mut().filter(|((_, of), _)| *of == log) {
            queue.retain(|slot| !slot.waits_for(record) || keep(slot.offset()));
            self.touched.insert(*key);
        }
    }

    /// Whether a delivery waits for the record at this offset.
    pub fn waits_for(&self, log: LogId, record: Offset) -> bool {
        let mut queues = self.queues.iter().filter(|((_, of), _)| *of == log);
        queues.any(|(_, queue)| queue.waits_for(record))
    }

    /// A shard is led elsewhere from now on: nothing of the old term leaves any more.
    pub fn forget_shard(&mut self, shard: ShardId) {
        self.deliveries.retain(|(_, of), _| *of != shard);
        self.queues.retain(|_, queue| {
            queue.retain(|slot| slot.shard() != shard);
            !queue.is_empty()
        });
    }

    /// A consumer is attached anew: nothing of its earlier attach leaves any more.
    pub fn forget_consumer(&mut self, session: SessionId, consumer: u64) {
        let links = &self.links;
        for (key, queue) in self.queues.iter_mut().filter(|((link, _), _)| links.get(link) == Some(&session))
        {
            queue.retain(|slot| slot.consumer() != consumer);
            // What waited behind it may go now (simulation, seeds 46 and 162).
            self.touched.insert(*key);
        }
    }

    /// Moves what is ready into the outgoing items. `may_deliver` is asked per shard, at the moment of sending.
    pub fn flush(&mut self, may_deliver: impl Fn(ShardId) -> bool) {
        let touched: Vec<_> = self.touched.iter().copied().collect();
        for key in touched {
            let Some(mut queue) = self.queues.remove(&key) else {
                self.touched.remove(&key);
                continue;
            };
            let mut held_by_lease = false;
            while let Some(shard) = queue.first_ready() {
                if !may_deliver(shard) {
                    held_by_lease = true;
                    break;
                }
                if let Some((slot, parts)) = queue.pop_ready() {
                    self.push(key.0, slot, parts);
                }
            }
            if !held_by_lease && !queue.wants_more() {
                self.touched.remove(&key);
            }
            if !queue.is_empty() {
                self.queues.insert(key, queue);
            }
        }
    }

    fn push(&mut self, link: LinkId, slot: Slot, parts: Vec<Bytes>) {
        let Slot { shard, term, kind, delivery, .. } = slot;
        if let SlotKind::Get { request, ready } = kind {
            let pieces = pieces(&delivery, parts);
            let got = v1::Got { request, term: term.0, delivery: Some(delivery), ready };
            self.send(link, v1::node_item::Item::Got(got));
            for piece in pieces {
                let deliver = v1::Deliver { shard: shard.0, term: term.0, deliveries: vec![piece] };
                self.out.push(LinkItem { link, item: v1::node_item::Item::Deliver(deliver) });
            }
            return;
        }
        let pieces = pieces(&delivery, parts);
        for delivery in std::iter::once(delivery).chain(pieces) {
            let gathered = self.deliveries.entry((link, shard)).or_default();
            gathered.bytes += delivery.record.len() + delivery.piece.len();
            gathered.deliver.shard = shard.0;
            gathered.deliver.term = term.0;
            gathered.deliver.deliveries.push(delivery);
            if gathered.bytes >= FRAME_BYTES_TARGET {
                self.flush_delivery((link, shard));
            }
        }
    }

    fn flush_delivery(&mut self, key: (LinkId, ShardId)) {
        if let Some(gathered) = self.deliveries.remove(&key) {
            self.out.push(LinkItem { link: key.0, item: v1::node_item::Item::Deliver(gathered.deliver) });
        }
    }

    fn flush_deliveries(&mut self, only: Option<LinkId>) {
        let keys: Vec<_> = match only {
            Some(link) => self
                .deliveries
                .range((link, ShardId(0))..=(link, ShardId(u32::MAX)))
                .map(|(k, _)| *k)
                .collect(),
            None => self.deliveries.keys().copied().collect(),
        };
        for key in keys {
            self.flush_delivery(key);
        }
    }

    /// Everything that leaves in this turn.
    pub fn take(&mut self, out: &mut Vec<LinkItem>) {
        self.flush_deliveries(None);
        out.append(&mut self.out);
    }
}

fn delivery(consumer: u64, handed: &Handed) -> v1::Delivery {
    v1::Delivery {
        consumer,
        log: handed.log.0,
        offset: handed.offset.0,
        lease: handed.lease.0,
        redelivered: handed.redelivered,
        returns: handed.returns,
        record: Bytes::new(),
        body_bytes: 0,
        piece: Bytes::new(),
        cursor: handed.cursor.0,
    }
}

/// The pieces of a large body, each as a delivery that names the same consumer and offset.
fn pieces(head: &v1::Delivery, parts: Vec<Bytes>) -> Vec<v1::Delivery> {
    let piece = |piece| v1::Delivery {
        consumer: head.consumer,
        log: head.log,
        offset: head.offset,
        piece,
        ..v1::Delivery::default()
    };
    parts.into_iter().map(piece).collect()
}

#[cfg(test)]
mod tests;
