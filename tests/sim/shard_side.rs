//! What a gateway keeps per shard: the shipped `Sender` and `Consumers`, wired as the broker's own shard wires them.

use crate::sim::clients::Tag;
use crate::sim::world::World;
use bytes::Bytes;
use longshore_broker::session::consumers::{AttachResult, Verdict};
use longshore_broker::session::pieces::Pieces;
use longshore_broker::session::settles::End;
use longshore_broker::session::{Consumers, Limits, Resolved, Sender, SenderError};
use longshore_node::{Input, LinkId};
use longshore_proto::v1::{self, batch_outcome, gateway_item::Item};
use longshore_wire::{BatchNo, CursorId, LeaseId, LogId, NodeId, Offset, SessionId, ShardId, Term, outcome};

/// Small, so that many batches are under way.
const LIMITS: Limits = Limits {
    in_flight_max: 32,
    batch_bytes_max: 8 << 10,
    eager_batches: 8,
    eager_bytes: 4 << 10,
    part_bytes: 4 << 10,
    parts_in_flight_max: 4,
    part_bytes_beside: 1 << 10,
    parts_beside: 8,
    tries_max: 50,
};

/// Few, so that most attaches need more than one item.
const NAMES_MAX: usize = 3;

/// One shard.
pub struct ShardSide {
    pub sender: Sender<Tag>,
    pub consumers: Consumers<u64>,
    pub leader: Option<(Term, NodeId)>,
    /// The stream to the leader, if it is up.
    pub link: Option<u64>,
    pieces: Pieces,
    nudged: bool,
}

impl ShardSide {
    pub fn new(shard: ShardId, session: SessionId) -> ShardSide {
        ShardSide {
            sender: Sender::new(session, LIMITS),
            consumers: Consumers::new(shard, NAMES_MAX),
            leader: None,
            link: None,
            pieces: Pieces::default(),
            nudged: false,
        }
    }

    /// The leader cannot be reached.
    pub fn unreachable(&mut self) {
        self.link = None;
        self.sender.disconnected();
        self.pieces.clear();
    }
}

impl World {
    /// Somebody says who leads.
    pub fn shard_leader(&mut self, at: usize, shard: ShardId, term: Term, node: Option<NodeId>) {
        let slot = node.and_then(|node| self.slot_of(node));
        let gateway = &mut self.gateways[at];
        let link = slot.and_then(|slot| gateway.link_to(slot));
        let Some(side) = gateway.shards.get_mut(&shard) else { return };
        if side.leader.is_some_and(|(known, _)| term < known) {
            return;
        }
        let Some(node) = node else {
            if side.leader.is_none_or(|(known, _)| known < term) {
                side.unreachable();
                side.leader = None;
            }
            return;
        };
        let same = side.leader == Some((term, node));
        self.reached.leaders_seen += u64::from(!same);
        side.leader = Some((term, node));
        if same && side.link == link {
            side.nudged = link.is_some();
            return;
        }
        side.unreachable();
        side.consumers.seen(term);
        if let Some(link) = link {
            self.reach(at, shard, link);
        }
    }

    /// A stream is up: the shards that its node leads can be reached.
    pub fn reach_through(&mut self, at: usize, slot: usize, link: u64) {
        let node = self.machines[slot].node;
        let led = self.gateways[at].shards.iter().filter(|(_, side)| {
            side.link != Some(link) && side.leader.is_some_and(|(_, leader)| leader == node)
        });
        for shard in led.map(|(shard, _)| *shard).collect::<Vec<_>>() {
            self.reach(at, shard, link);
        }
        self.pump(at);
    }

    /// First what is held, so that the new leader does not deliver it to others; then the batches.
    fn reach(&mut self, at: usize, shard: ShardId, link: u64) {
        let Some(side) = self.gateways[at].shards.get_mut(&shard) else { return };
        let items = side.consumers.attach_all(LogId::is_transient);
        side.link = Some(link);
        side.sender.connected();
        for item in items.into_iter().filter_map(|item| item.item) {
            self.send_to_node(link, Input::Link { link: LinkId(link), item });
        }
    }

    /// Sends what may go now.
    pub fn pump(&mut self, at: usize) {
        if !self.gateways[at].holds_lease(self.now) {
            return;
        }
        for shard in self.gateways[at].shards.keys().copied().collect::<Vec<_>>() {
            while let Some(batch) = self.gateways[at]
                .shards
                .get_mut(&shard)
                .filter(|side| side.link.is_some())
                .and_then(|side| side.sender.poll())
            {
                self.send_to_leader(at, shard, Item::Submit(v1::Submit { shard: shard.0, batch }));
            }
        }
    }

    /// Some times a second: what was declined or not answered goes again.
    pub fn tick_shards(&mut self, at: usize, attaches: bool) {
        for shard in self.gateways[at].shards.keys().copied().collect::<Vec<_>>() {
            let Some(side) = self.gateways[at].shards.get_mut(&shard) else { continue };
            if std::mem::take(&mut side.nudged) && side.link.is_some() {
                side.sender.connected();
            }
            if side.sender.needs_retry() {
                side.sender.retry();
                self.reached.retries += 1;
            }
            let unanswered = match side.link {
                Some(_) if attaches => side.consumers.unanswered(LogId::is_transient),
                _ => Vec::new(),
            };
            for item in unanswered.into_iter().filter_map(|item| item.item) {
                self.send_to_leader(at, shard, item);
            }
        }
    }

    /// A batch's answer; one of a leader of before does not count.
    pub fn batch_outcome(&mut self, at: usize, link: u64, answer: v1::BatchOutcome) {
        let Some(side) = self.gateways[at].shards.get_mut(&ShardId(answer.shard)) else { return };
        if side.link != Some(link) {
            return;
        }
        let (mut resolved, number) = (Vec::new(), BatchNo(answer.number));
        let result = match answer.result {
            Some(batch_outcome::Result::Outcomes(bytes)) => match outcome::decode(bytes) {
                Ok(outcomes) => side.sender.outcome(number, outcomes, &mut resolved),
                Err(_) => Err(SenderError::Contradiction("unreadable outcomes")),
            },
            Some(batch_outcome::Result::Expected(expected)) => {
                self.reached.gaps += 1;
                side.sender.gap(number, BatchNo(expected), &mut resolved)
            }
            Some(batch_outcome::Result::Refused(reason)) => {
                let reason = v1::Refused::try_from(reason).unwrap_or(v1::Refused::Busy);
                self.reached.refused += 1;
                side.sender.refused(number, reason, &mut resolved)
            }
            None => Err(SenderError::Contradiction("an outcome without a result")),
        };
        for resolved in resolved {
            match resolved {
                Resolved::Appended(tag, result) => self.appended(at, &tag, result),
                Resolved::Settled(tag) => self.settled(at, ShardId(answer.shard), &tag),
            }
        }
        match result {
            Ok(()) => {}
            Err(SenderError::SessionClosed) => self.session_over(at),
            Err(error) => {
                self.history.sound(false, || format!("gateway {at}, shard {}: {error}", answer.shard));
            }
        }
    }

    /// The leader answered an attach.
    pub fn shard_attached(&mut self, at: usize, attached: &v1::Attached) {
        let Some(side) = self.gateways[at].shards.get_mut(&ShardId(attached.shard)) else { return };
        if let (AttachResult::Refused(why), _) = side.consumers.attached(attached) {
            // The log may not be made yet in this shard: the consumer comes again.
            self.history.note(self.now, format!("consumer {} refused: {why:?}", attached.consumer));
            self.gateways[at].clients.consumer_gone(attached.consumer);
        }
    }

    /// The leader ended a consumer.
    pub fn consumer_cancelled(&mut self, at: usize, cancelled: &v1::Cancelled) {
        if let Some(side) = self.gateways[at].shards.get_mut(&ShardId(cancelled.shard)) {
            side.consumers.cancelled(cancelled.consumer);
        }
        self.history.consumer_over(at, cancelled.consumer);
        self.gateways[at].clients.consumer_gone(cancelled.consumer);
    }

    /// Messages for consumers.
    pub fn deliveries(&mut self, at: usize, sent: u64, deliver: v1::Deliver) {
        let (shard, term) = (ShardId(deliver.shard), Term(deliver.term));
        for delivery in deliver.deliveries {
            let Some(side) = self.gateways[at].shards.get_mut(&shard) else { return };
            let Some((delivery, pieces)) = side.pieces.take(delivery) else { continue };
            let bytes = delivery.record.len() as u64 + delivery.body_bytes;
            match side.consumers.delivery(term, &delivery, bytes) {
                Verdict::Deliver(_) => self.delivered(at, sent, shard, term, &delivery, &pieces),
                Verdict::Return => {
                    let (log, offset) = (LogId(delivery.log), Offset(delivery.offset));
                    let lease = LeaseId(delivery.lease);
                    let end = (offset, lease, End::Returned { counted: false });
                    let tag = Tag::Settle { log, term, consumer: 0, ends: vec![(offset, lease, false)] };
                    side.sender.settle((log, CursorId(0), term), [end], tag);
                }
                Verdict::Drop => self.reached.deliveries_dropped += 1,
            }
        }
    }
}

/// The bytes of a body that came in pieces or within the record.
pub fn joined(record_body: &Bytes, pieces: &[Bytes]) -> Vec<u8> {
    let mut all = record_body.to_vec();
    pieces.iter().for_each(|piece| all.extend_from_slice(piece));
    all
}
