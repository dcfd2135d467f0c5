//! Transient queues under random use: every message is ready, out, or settled, once.

use crate::support::{self, Publish, World, record};
use bytes::{Bytes, BytesMut};
use longshore_delivery::{Action, Attach, Config, ConsumerKey, Message, QueueId, TransientDeclare};
use longshore_wire::record::Record;
use longshore_wire::spec::LogSpec;
use longshore_wire::{CursorId, LogId, NamespaceId, Offset, SessionId};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

#[derive(Clone, Debug)]
enum Step {
    Send(u8),
    Attach(u8, u8),
    Detach(u8, bool),
    Ack(u8),
    Return(u8),
    Get,
    Close(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (1..5u8).prop_map(Step::Send),
        3 => (1..4u8, 0..6u8).prop_map(|(who, credit)| Step::Attach(who, credit)),
        1 => (1..4u8, any::<bool>()).prop_map(|(who, keep)| Step::Detach(who, keep)),
        4 => any::<u8>().prop_map(Step::Ack),
        3 => any::<u8>().prop_map(Step::Return),
        1 => Just(Step::Get),
        1 => (1..4u8).prop_map(Step::Close),
    ]
}

struct Model {
    world: World,
    log: LogId,
    sent: u64,
    settled: u64,
    out: BTreeMap<Offset, ConsumerKey>,
    attached: BTreeSet<u8>,
}

/// One consumer for each session, of the same number.
fn key(who: u8) -> ConsumerKey {
    ConsumerKey { session: SessionId(u64::from(who)), consumer: 1 }
}

impl Model {
    fn new() -> Model {
        let mut world = World::new(Config::default());
        let declare = TransientDeclare {
            namespace: NamespaceId(1),
            name: Bytes::from_static(b"q"),
            owner: None,
            auto_delete: false,
            arguments: Bytes::new(),
            spec: LogSpec::QUEUE,
            expires_ms: 0,
            single_active: false,
        };
        let made = world.delivery.transient_declare(world.now, (SessionId(1), 1), declare).unwrap();
        Model { world, log: made.log, sent: 0, settled: 0, out: BTreeMap::new(), attached: BTreeSet::new() }
    }

    fn pump(&mut self) {
        for action in self.world.pump() {
            let (to, handed) = match action {
                Action::Deliver { to, handed } => (to, handed),
                Action::Got { session, result: Ok(Some(handed)), .. } => {
                    (ConsumerKey { session, consumer: 0 }, handed)
                }
                _ => continue,
            };
            assert!(matches!(handed.message, Message::Memory(_)));
            assert_eq!(handed.redelivered, handed.returns > 0);
            assert_eq!(self.out.insert(handed.offset, to), None, "{:?} is out twice", handed.offset);
        }
        let queue = QueueId { log: self.log, cursor: CursorId(0) };
        let counts = self.world.delivery.stat(queue, &self.world.shard).unwrap();
        assert_eq!(counts.unacked, self.out.len() as u64);
        assert_eq!(counts.ready + counts.unacked + self.settled, self.sent);
        assert_eq!(self.world.delivery.counters().leases, counts.unacked);
    }

    fn settle(&mut self, nth: u8, ack: bool) {
        let Some((at, to)) = self.out.iter().nth(usize::from(nth) % self.out.len().max(1)) else { return };
        let (at, session) = (*at, to.session);
        let (acked, returned) = if ack { (vec![at], vec![]) } else { (vec![], vec![at]) };
        let stranger = SessionId(99);
        self.world.delivery.transient_settle(stranger, self.log, &[at], &[]);
        self.world.delivery.transient_settle(session, self.log, &acked, &returned);
        self.out.remove(&at);
        self.settled += u64::from(ack);
    }

    fn step(&mut self, step: &Step) {
        let now = self.world.now;
        match *step {
            Step::Send(n) => (0..n).for_each(|_| self.send()),
            Step::Attach(who, credit) => self.attach(who, u64::from(credit)),
            Step::Detach(who, keep) => {
                self.world.delivery.detach(now, key(who), keep);
                // A consumer that ended before owes its settlements one by one.
                if self.attached.remove(&who) && !keep {
                    self.out.retain(|_, to| *to != key(who));
                }
            }
            Step::Ack(nth) => self.settle(nth, true),
            Step::Return(nth) => self.settle(nth, false),
            Step::Get => {
                let queue = QueueId { log: self.log, cursor: CursorId(0) };
                self.world.delivery.get(SessionId(1), 1, queue, &self.world.shard);
            }
            Step::Close(who) => {
                self.attached.remove(&who);
                self.world.delivery.session_gone(now, key(who).session);
                self.out.retain(|_, to| to.session != key(who).session);
            }
        }
        self.pump();
    }

    fn send(&mut self) {
        let mut bytes = BytesMut::new();
        record(&[self.log], Publish::default()).encode(&[Bytes::from_static(b"m")], &mut bytes).unwrap();
        let record = Record::parse(bytes.freeze()).unwrap();
        let appended = self.world.delivery.transient_append(self.world.log_time(), record, Vec::new());
        assert!(appended.missing.is_empty() && appended.full.is_empty());
        self.sent += 1;
    }

    fn attach(&mut self, who: u8, credit: u64) {
        // Nothing is named as held: what this consumer had counts as lost on the way. A detached one's leases stay.
        let first = support::attach(key(who), self.log, credit);
        let attached = Attach { priority: i32::from(who) % 2, ..first };
        self.attached.insert(who);
        self.out.retain(|_, to| *to != key(who));
        self.world.delivery.attach(self.world.now, attached, &self.world.shard);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_transient_message_is_in_one_place(steps in prop::collection::vec(step(), 1..80)) {
        let mut model = Model::new();
        steps.iter().for_each(|step| model.step(step));
        model.attach(9, u64::MAX);
        model.pump();
        while !model.out.is_empty() {
            model.settle(0, true);
            model.pump();
        }
        prop_assert_eq!(model.settled, model.sent);
        prop_assert_eq!(model.world.delivery.counters().transient_bytes, 0);
    }
}
