//! What must not grow with the number of queues, the backlog, or the messages that are out.

use crate::support::{self, Publish, World};
use longshore_delivery::{Action, Attach, Config, ConsumerKey, Delivery, LogInfo, View};
use longshore_io::Mono;
use longshore_shard::Event;
use longshore_wire::batch::Item;
use longshore_wire::row::{NEVER, Row, Source};
use longshore_wire::spec::LogSpec;
use longshore_wire::{CursorId, Index, LogId, LogTime, Offset, OffsetRange, SessionId, ShardId, Term};
use std::time::Instant;

fn attach(consumer: u64, log: LogId, credit: u64) -> Attach {
    support::attach(ConsumerKey { session: SessionId(1), consumer }, log, credit)
}

#[test]
fn ten_thousand_idle_queues_cost_nothing_per_turn() {
    let mut world = World::new(Config::default());
    for n in 1..=10_000 {
        let log = LogId(n);
        world.command(Item::CreateLog { log, spec: LogSpec::QUEUE });
        world.delivery.attach(world.now, attach(n, log, 10), &world.shard);
    }
    world.pump();
    assert_eq!(world.delivery.next_deadline(), None, "an idle queue has no timer");
    let begun = Instant::now();
    for _ in 0..10_000 {
        world.publish(LogId(5_000), "m", Publish::default());
        assert!(world.pump().len() <= 1);
    }
    let spent = begun.elapsed();
    assert!(spent.as_secs() < 5, "10,000 turns beside 10,000 idle queues took {spent:?}");
}

#[test]
fn a_backlog_is_not_read_into_memory() {
    let mut world = World::new(Config::default());
    let log = LogId(1);
    world.command(Item::CreateLog { log, spec: LogSpec::QUEUE });
    (0..20_000).for_each(|_| _ = world.publish(log, "m", Publish::default()));
    world.pump();
    assert_eq!(world.delivery.counters().ready, 0, "nobody consumes: nothing is kept");
    world.delivery.attach(world.now, attach(1, log, 5_000), &world.shard);
    let delivered =
        world.pump().into_iter().filter(|action| matches!(action, Action::Deliver { .. })).count();
    assert_eq!(delivered, 5_000);
    let counters = world.delivery.counters();
    assert!(counters.ready <= Config::default().window_rows_max as u64, "{counters:?}");
}

/// A log of which everything from the floor on is unsettled.
struct Endless {
    floor: Offset,
    next: Offset,
}

impl View for Endless {
    type Cursor<'a> = &'a Endless;

    fn applied(&self) -> Index {
        Index(0)
    }

    fn log(&self, _: LogId) -> Option<LogInfo> {
        Some(LogInfo { first: Offset(0), next: self.next, spec: LogSpec::QUEUE })
    }

    fn cursor(&self, _: LogId, _: CursorId) -> Option<&Endless> {
        Some(self)
    }

    fn sessions(&self) -> Vec<SessionId> {
        Vec::new()
    }

    fn unsettled_queues(&self) -> Vec<(LogId, CursorId)> {
        Vec::new()
    }
}

impl longshore_delivery::CursorView for &Endless {
    fn next_unsettled(&self, from: Offset) -> Option<Offset> {
        let at = from.max(self.floor);
        (at < self.next).then_some(at)
    }

    fn is_settled(&self, at: Offset) -> bool {
        at < self.floor
    }

    fn returns(&self, _: Offset) -> u32 {
        0
    }

    fn redelivered(&self, _: Offset) -> bool {
        false
    }

    fn taken_until(&self, _: Offset) -> Option<LogTime> {
        None
    }

    fn unsettled_count(&self) -> u64 {
        self.next.0 - self.floor.0
    }
}

/// Prints what one message costs from its row to its ack, in batches of 64: `cargo test -p longshore-delivery --test
/// delivery -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn cost_of_a_delivery() {
    const ROUNDS: u64 = 20_000;
    const BATCH: u64 = 64;
    let log = LogId(1);
    let mut state = Endless { floor: Offset(0), next: Offset(0) };
    let mut delivery = Delivery::new(ShardId(1), Config::default());
    delivery.become_leader(Mono(1), Term(1), &state);
    delivery.attach(Mono(1), attach(1, log, u64::MAX), &state);
    let (mut actions, mut delivered) = (Vec::new(), 0);
    let begun = Instant::now();
    for round in 0..ROUNDS {
        let rows: Vec<Row> = (0..BATCH).map(|n| row(log, round * BATCH + n)).collect();
        state.next = Offset((round + 1) * BATCH);
        delivery.appended_rows(&rows, &state);
        delivery.turn(Mono(round), LogTime(1), true, &state, &mut actions);
        delivered +=
            actions.drain(..).filter(|action| matches!(action, Action::Deliver { .. })).count() as u64;
        let range = OffsetRange { first: Offset(round * BATCH), last: Offset((round + 1) * BATCH - 1) };
        state.floor = state.next;
        let event = Event::Settled { log, cursor: CursorId(0), ranges: vec![range] };
        delivery.on_event(Mono(round), &event, &state);
    }
    let each = begun.elapsed().as_nanos() / u128::from(ROUNDS * BATCH);
    println!("{delivered} messages, {each} ns each from row to ack");
    assert_eq!(delivered, ROUNDS * BATCH);
}

fn row(log: LogId, at: u64) -> Row {
    Row {
        log,
        offset: Offset(at),
        count: 1,
        time: LogTime(1),
        client_time_ms: 0,
        due: LogTime(0),
        expiry: NEVER,
        priority: 0,
        key_hash: 0,
        record: Source { index: Index(at / 64 + 1), start: 0, len: 1_024 },
        parts: vec![],
    }
}
