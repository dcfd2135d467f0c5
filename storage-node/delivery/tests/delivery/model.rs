//! Random gateways against a naive oracle: at most one live lease per message and term, nothing settled is
//! delivered, order per log, and nothing stays lying while there is credit.

use crate::support::{self, Publish, World};
use longshore_delivery::{Action, Attach, Config, ConsumerKey, Handed, Held, QueueId, TakeWish};
use longshore_wire::batch::{Item, Returned, Settle};
use longshore_wire::spec::LogSpec;
use longshore_wire::{CursorId, LeaseId, LogId, Offset, OffsetRange, SessionId, Term};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const LOG: LogId = LogId(1);
const QUEUE: QueueId = QueueId { log: LOG, cursor: CursorId(0) };

#[derive(Clone, Debug)]
enum Step {
    Publish { n: u8, ttl: bool, delay: bool },
    Attach { session: u8, consumer: u8, credit: u8, lease: bool },
    Detach { session: u8, consumer: u8, keep: bool },
    Credit { session: u8, consumer: u8, more: u8 },
    Ack { session: u8, nth: u8 },
    Return { session: u8, nth: u8 },
    ReturnAgain { session: u8, nth: u8 },
    Get { session: u8 },
    Take { max: u8 },
    LinkLost { session: u8 },
    Close { session: u8 },
    Leader { report: bool },
    Lease { on: bool },
    Hold { on: bool },
    Release,
    FailLoads,
    Wait { ms: u16 },
    Purge,
    Rewind { to: u8 },
}

fn step() -> impl Strategy<Value = Step> {
    let who = || (0..3u8, 1..4u8);
    prop_oneof![
        6 => (1..6u8, prop::bool::weighted(0.1), prop::bool::weighted(0.1))
            .prop_map(|(n, ttl, delay)| Step::Publish { n, ttl, delay }),
        4 => (who(), 0..8u8, prop::bool::weighted(0.2))
            .prop_map(|((session, consumer), credit, lease)| Step::Attach { session, consumer, credit, lease }),
        2 => (who(), any::<bool>()).prop_map(|((session, consumer), keep)| Step::Detach { session, consumer, keep }),
        5 => (who(), 1..6u8).prop_map(|((session, consumer), more)| Step::Credit { session, consumer, more }),
        8 => (0..3u8, any::<u8>()).prop_map(|(session, nth)| Step::Ack { session, nth }),
        4 => (0..3u8, any::<u8>()).prop_map(|(session, nth)| Step::Return { session, nth }),
        1 => (0..3u8, any::<u8>()).prop_map(|(session, nth)| Step::ReturnAgain { session, nth }),
        2 => (0..3u8).prop_map(|session| Step::Get { session }),
        1 => (1..4u8).prop_map(|max| Step::Take { max }),
        1 => (0..3u8).prop_map(|session| Step::LinkLost { session }),
        1 => (0..3u8).prop_map(|session| Step::Close { session }),
        1 => any::<bool>().prop_map(|report| Step::Leader { report }),
        1 => any::<bool>().prop_map(|on| Step::Lease { on }),
        2 => any::<bool>().prop_map(|on| Step::Hold { on }),
        3 => Just(Step::Release),
        1 => Just(Step::FailLoads),
        3 => (0..1500u16).prop_map(|ms| Step::Wait { ms }),
        1 => Just(Step::Purge),
        1 => (0..30u8).prop_map(|to| Step::Rewind { to }),
    ]
}

/// What one gateway knows: its deliveries whose settlement it has not sent.
#[derive(Default)]
struct Gateway {
    incarnation: u64,
    held: BTreeMap<Offset, (LeaseId, Term, u64)>,
    /// Ended once already, with their leases.
    settled: Vec<(Offset, LeaseId, Term)>,
    consumers: BTreeMap<u64, (u64, u64)>,
}

struct Model {
    world: World,
    gateways: [Gateway; 3],
    taken: BTreeSet<Offset>,
    term: u64,
    takes: u64,
}

fn settle(term: Term) -> Settle {
    Settle { log: LOG, cursor: CursorId(0), term, acked: vec![], returned: vec![], dead: vec![] }
}

/// Small bounds, so that each is reached.
fn config() -> Config {
    Config {
        window_rows_max: 6,
        window_bytes_max: 700,
        delayed_max: 2,
        returned_max: 3,
        leases_max: 20,
        turn_messages_max: 5,
        ..Config::default()
    }
}

impl Model {
    fn new() -> Model {
        let mut world = World::new(config());
        let spec = LogSpec { rewind_ms: 60_000, ..LogSpec::QUEUE };
        world.command(Item::CreateLog { log: LOG, spec });
        let mut model =
            Model { world, gateways: Default::default(), taken: BTreeSet::new(), term: 1, takes: 0 };
        for n in 0..3 {
            let session = model.session(n);
            model.world.command(Item::OpenSession(session));
        }
        model
    }

    fn session(&self, n: u8) -> SessionId {
        SessionId(u64::from(n) + 1 + 10 * self.gateways[usize::from(n)].incarnation)
    }

    fn key(&self, session: u8, consumer: u64) -> ConsumerKey {
        ConsumerKey { session: self.session(session), consumer }
    }

    fn is_settled(&self, at: Offset) -> bool {
        self.world.shard.log(LOG).unwrap().cursor(CursorId(0)).unwrap().is_settled(at)
    }

    /// Pumps and checks what came.
    fn pump(&mut self) {
        let actions = self.world.pump();
        self.check(actions);
    }

    fn check(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Deliver { to, handed } => self.received(to, &handed),
                Action::Got { session, result: Ok(Some(handed)), .. } => {
                    self.received(ConsumerKey { session, consumer: 0 }, &handed);
                }
                Action::Took { result: Ok(handed), .. } => {
                    handed.iter().for_each(|handed| _ = self.taken.insert(handed.offset));
                }
                Action::Propose(Item::Settle(settle)) => {
                    // The leader ends these leases: their holders may not settle them any more, but do not know.
                    for back in settle.returned {
                        for gateway in &mut self.gateways {
                            gateway.held.remove(&back.offset);
                        }
                    }
                }
                _ => {}
            }
        }
    }

    fn received(&mut self, to: ConsumerKey, handed: &Handed) {
        let at = handed.offset;
        let n = ((to.session.0 - 1) % 10) as usize;
        assert_eq!(self.session(n as u8), to.session, "delivered to a dead session");
        for gateway in &self.gateways {
            if let Some((_, term, _)) = gateway.held.get(&at) {
                assert!(*term < Term(self.term), "{at:?} is out twice in a term");
            }
        }
        // A lease of an earlier term that was not reported is void: its settle will be dropped.
        for gateway in &mut self.gateways {
            gateway.held.remove(&at);
        }
        let gateway = &mut self.gateways[n];
        if to.consumer > 0 {
            let (granted, used) =
                gateway.consumers.get_mut(&to.consumer).expect("a consumer that is attached");
            *used += 1;
            assert!(*used <= *granted, "more than the credit");
        }
        gateway.held.insert(at, (handed.lease, Term(self.term), to.consumer));
    }

    fn ack(&mut self, session: u8, at: Offset) {
        let acked = vec![OffsetRange::one(at)];
        self.submit(session, Settle { acked, ..settle(Term(self.term)) });
    }

    fn give_back(&mut self, session: u8, (offset, lease, term): (Offset, LeaseId, Term)) {
        let returned = vec![Returned { offset, lease, counted: true }];
        self.submit(session, Settle { returned, ..settle(term) });
    }

    fn submit(&mut self, session: u8, settle: Settle) {
        let from = self.session(session);
        self.world.submit(from, &[Item::Settle(settle)]);
    }

    fn nth_held(&self, session: u8, nth: u8) -> Option<Offset> {
        let held = &self.gateways[usize::from(session)].held;
        held.keys().nth(usize::from(nth) % held.len().max(1)).copied()
    }

    fn attach(&mut self, session: u8, consumer: u64, credit: u64, lease: bool) {
        let gateway = &mut self.gateways[usize::from(session)];
        gateway.consumers.insert(consumer, (credit, 0));
        let mine = gateway.held.iter().filter(|(_, (_, _, owner))| *owner == consumer);
        let held =
            mine.map(|(at, (lease, term, _))| Held { offset: *at, lease: *lease, term: *term }).collect();
        let first = support::attach(self.key(session, consumer), LOG, credit);
        let attach = Attach { lease_ms: lease.then_some(700), held, ..first };
        self.world.delivery.attach(self.world.now, attach, &self.world.shard);
    }

    fn detach(&mut self, session: u8, consumer: u64, keep: bool) {
        self.world.delivery.detach(self.world.now, self.key(session, consumer), keep);
        let gateway = &mut self.gateways[usize::from(session)];
        if gateway.consumers.remove(&consumer).is_some() && !keep {
            gateway.held.retain(|_, (_, _, owner)| *owner != consumer);
        }
    }

    fn credit(&mut self, session: u8, consumer: u64, more: u64) {
        let key = self.key(session, consumer);
        if let Some((granted, _)) = self.gateways[usize::from(session)].consumers.get_mut(&consumer) {
            *granted += more;
            self.world.delivery.credit(key, *granted, u64::MAX);
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Publish { n, ttl, delay } => {
                let how = Publish {
                    ttl_ms: ttl.then_some(400),
                    delay_ms: if delay { 600 } else { 0 },
                    ..Publish::default()
                };
                (0..n).for_each(|_| _ = self.world.publish(LOG, "body", how));
            }
            Step::Attach { session, consumer, credit, lease } => {
                self.attach(session, u64::from(consumer), u64::from(credit), lease);
            }
            Step::Detach { session, consumer, keep } => {
                self.detach(session, u64::from(consumer), keep);
            }
            Step::Credit { session, consumer, more } => {
                self.credit(session, u64::from(consumer), u64::from(more));
            }
            Step::Ack { session, nth } => {
                if let Some(at) = self.nth_held(session, nth)
                    && let Some(ended) = self.end(session, at)
                {
                    self.ack(session, ended.0);
                }
            }
            Step::Return { session, nth } => {
                if let Some(at) = self.nth_held(session, nth)
                    && let Some(ended) = self.end(session, at)
                {
                    self.give_back(session, ended);
                }
            }
            Step::ReturnAgain { session, nth } => self.return_again(session, nth),
            Step::Get { session } => {
                let from = self.session(session);
                self.world.delivery.get(from, 1, QUEUE, &self.world.shard);
            }
            Step::Take { max } => {
                self.takes += 1;
                let wish = TakeWish { max: u32::from(max), visibility_ms: 300, wait_ms: 100 };
                self.world.delivery.take(self.world.now, self.takes, QUEUE, wish, &self.world.shard);
            }
            Step::LinkLost { session } => self.link_lost(session),
            Step::Close { session } => self.close(session),
            Step::Leader { report } => self.new_leader(report),
            Step::Lease { on } => self.world.may_deliver = on,
            Step::Hold { on } => self.world.hold = on,
            Step::Release => self.world.release(),
            Step::FailLoads => self.world.failures = 2,
            Step::Wait { ms } => {
                let actions = self.world.wait(u64::from(ms));
                self.check(actions);
            }
            Step::Purge => {
                let item = self.world.delivery.purge_item(QUEUE, &self.world.shard).unwrap();
                self.world.command(item);
            }
            Step::Rewind { to } => {
                let to = Offset(u64::from(to));
                self.world.command(Item::Rewind { log: LOG, cursor: CursorId(0), to });
            }
        }
        self.pump();
        self.forget_settled();
    }

    /// What was settled meanwhile by others (a purge, a rewind) is held by nobody.
    fn forget_settled(&mut self) {
        let held: Vec<Offset> = self.gateways.iter().flat_map(|g| g.held.keys().copied()).collect();
        let settled: Vec<Offset> = held.into_iter().filter(|at| self.is_settled(*at)).collect();
        for at in settled {
            self.gateways.iter_mut().for_each(|gateway| _ = gateway.held.remove(&at));
        }
    }

    /// The gateway holds a message no more, as it sees it.
    fn end(&mut self, session: u8, at: Offset) -> Option<(Offset, LeaseId, Term)> {
        let gateway = &mut self.gateways[usize::from(session)];
        let (lease, term, _) = gateway.held.remove(&at)?;
        gateway.settled.push((at, lease, term));
        Some((at, lease, term))
    }

    /// A return comes late, or a second time: neither another session's lease may suffer, nor a later one of its own.
    fn return_again(&mut self, session: u8, nth: u8) {
        let settled = &self.gateways[usize::from(session)].settled;
        if let Some(ended) = settled.get(usize::from(nth) % settled.len().max(1)).copied() {
            self.give_back(session, ended);
        }
    }

    fn link_lost(&mut self, session: u8) {
        self.world.delivery.link_lost(self.session(session));
        let keys: Vec<u64> = self.gateways[usize::from(session)].consumers.keys().copied().collect();
        keys.into_iter().for_each(|consumer| self.attach(session, consumer, 2, false));
    }

    fn close(&mut self, session: u8) {
        let gone = self.session(session);
        self.world.command(Item::CloseSession(gone));
        let gateway = &mut self.gateways[usize::from(session)];
        *gateway = Gateway { incarnation: gateway.incarnation + 1, ..Gateway::default() };
        let next = self.session(session);
        self.world.command(Item::OpenSession(next));
    }

    fn new_leader(&mut self, report: bool) {
        self.term += 1;
        self.world.lead(self.term);
        for session in 0..3u8 {
            let keys: Vec<u64> = self.gateways[usize::from(session)].consumers.keys().copied().collect();
            if report {
                keys.into_iter().for_each(|consumer| self.attach(session, consumer, 3, false));
                let from = self.session(session);
                let held = &self.gateways[usize::from(session)].held;
                let all: Vec<Held> = held
                    .iter()
                    .map(|(at, (lease, term, _))| Held { offset: *at, lease: *lease, term: *term })
                    .collect();
                self.world.delivery.hold(self.world.now, from, QUEUE, &all, &self.world.shard);
                self.world.delivery.session_reported(self.world.now, from);
            } else {
                self.gateways[usize::from(session)].consumers.clear();
            }
        }
    }

    /// Everything is let go, acked and waited for: in the end the queue must be empty.
    fn drain(&mut self) {
        self.world.may_deliver = true;
        self.world.hold = false;
        self.world.release();
        self.attach(0, 99, 10_000, false);
        for _ in 0..50 {
            let actions = self.world.wait(3_000);
            self.check(actions);
            for session in 0..3 {
                while let Some(at) = self.nth_held(session, 0) {
                    self.gateways[usize::from(session)].held.remove(&at);
                    self.ack(session, at);
                }
            }
            if self.unsettled() == 0 {
                break;
            }
        }
        let log_time = self.world.log_time();
        let found = self.world.delivery.explain(log_time, true, QUEUE, &self.world.shard);
        assert_eq!(self.unsettled(), 0, "stuck: {found:?}");
        let counters = self.world.delivery.counters();
        assert_eq!((counters.leases, counters.ready, counters.missing), (0, 0, 0));
    }

    /// Acks what comes, which must follow on `next`; what follows then.
    fn consume_in_order(&mut self, mut next: u64) -> u64 {
        for action in self.world.pump() {
            if let Action::Deliver { handed, .. } = action {
                assert_eq!(handed.offset, Offset(next));
                assert!(!handed.redelivered);
                next += 1;
                self.ack(0, handed.offset);
            }
        }
        next
    }

    fn unsettled(&self) -> u64 {
        self.world.shard.log(LOG).unwrap().cursor(CursorId(0)).unwrap().unsettled_count()
    }
}

/// 400 cases, or as many as PROPTEST_CASES says.
fn cases() -> ProptestConfig {
    let asked = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    ProptestConfig { cases: asked.unwrap_or(400), failure_persistence: None, ..ProptestConfig::default() }
}

/// The broken build is seen by the oracle, from deliveries alone.
#[cfg(feature = "mutations")]
#[test]
#[should_panic(expected = "is out twice in a term")]
fn a_reused_lease_is_seen() {
    let mut model = Model::new();
    model.world = World::new(config());
    longshore_mutations::choose(Some(longshore_mutations::Mutation::LeaseReused));
    model.world.command(Item::CreateLog { log: LOG, spec: LogSpec::QUEUE });
    (0..2).for_each(|session| model.attach(session, 1, 10, false));
    (0..6).for_each(|_| _ = model.world.publish(LOG, "body", Publish::default()));
    model.pump();
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn leases_are_single_and_nothing_is_stuck(steps in prop::collection::vec(step(), 1..120)) {
        let mut model = Model::new();
        for step in &steps {
            model.step(step);
        }
        model.drain();
    }

    #[test]
    fn one_consumer_gets_a_log_in_its_order(
        sizes in prop::collection::vec((0..20u8, 0..10u8, any::<bool>()), 1..40)
    ) {
        let mut model = Model::new();
        let (mut granted, mut next) = (0, 0);
        model.attach(0, 1, 0, false);
        for (publish, credit, hold) in sizes {
            model.world.hold = hold;
            (0..publish).for_each(|_| _ = model.world.publish(LOG, "body", Publish::default()));
            granted += u64::from(credit);
            let key = model.key(0, 1);
            model.world.delivery.credit(key, granted, u64::MAX);
            next = model.consume_in_order(next);
        }
        model.world.hold = false;
        model.world.release();
        loop {
            let after = model.consume_in_order(next);
            if after == next {
                break;
            }
            next = after;
        }
        prop_assert_eq!(next, granted.min(model.world.shard.log(LOG).unwrap().next().0));
    }
}
