//! What apply costs, by hand: `cargo test -p longshore-shard --test measure --profile sim -- --ignored --nocapture`.
#![cfg(test)]

mod common;

use bytes::Bytes;
use common::{Append, Put, batch};
use longshore_shard::{Effects, OWN_CURSOR, Shard};
use longshore_wire::batch::{Item, Settle};
use longshore_wire::context::EntryContext;
use longshore_wire::spec::LogSpec;
use longshore_wire::{Index, LogId, LogTime, Offset, OffsetRange, SessionId, ShardId, Term};
use std::time::Instant;

const ENTRIES: u64 = 2_000;
const ITEMS: u64 = 500;

fn shard(logs: u64) -> Shard {
    let mut shard = Shard::new(ShardId(1));
    let mut setup: Vec<_> =
        (1..=logs).map(|log| Put::Item(Item::CreateLog { log: LogId(log), spec: LogSpec::QUEUE })).collect();
    setup.push(Put::Item(Item::OpenSession(SessionId(7))));
    common::apply(&mut shard, 1, &batch(0, 0, &setup));
    shard
}

/// Applies prepared entries and prints the time for each of `units`.
fn measure(what: &str, shard: &mut Shard, entries: &[Bytes], units: u64) {
    let mut out = Effects::default();
    let first = shard.applied().0 + 1;
    let start = Instant::now();
    for (index, data) in (first..).zip(entries) {
        out.clear();
        shard.apply(Index(index), Term(1), &EntryContext { stamp: LogTime(index) }, data, &mut out);
    }
    println!("{what}: {:.0} ns", start.elapsed().as_nanos() as f64 / units as f64);
}

fn acks(shard: &Shard, offsets: impl Fn(u64) -> OffsetRange) -> Vec<Bytes> {
    let number = shard.session(SessionId(7)).unwrap().last().0;
    let entry = |n: u64| {
        let acked = (0..ITEMS).map(|i| offsets(n * ITEMS + i)).collect();
        let (returned, dead) = (Vec::new(), Vec::new());
        let settle = Settle { log: LogId(1), cursor: OWN_CURSOR, term: Term(1), acked, returned, dead };
        batch(7, number + 1 + n, &[Put::Item(Item::Settle(settle))])
    };
    (0..ENTRIES).map(entry).collect()
}

#[test]
#[ignore = "a measurement"]
fn apply() {
    for logs in [1, 10_000] {
        let mut shard = shard(logs);
        let entry = |n: u64| {
            let puts: Vec<_> =
                (0..ITEMS).map(|i| Put::Append(Append::to(1 + (n * ITEMS + i) % logs))).collect();
            batch(7, 1 + n, &puts)
        };
        let entries: Vec<_> = (0..ENTRIES).map(entry).collect();
        measure(&format!("append, {logs} logs"), &mut shard, &entries, ENTRIES * ITEMS);
        if logs > 1 {
            continue;
        }
        let every_second = acks(&shard, |n| OffsetRange::one(Offset(n * 2 % (ENTRIES * ITEMS) + 1)));
        measure("ack of every second one, one by one", &mut shard, &every_second, ENTRIES * ITEMS);
        let start = Instant::now();
        let pages = shard.take_dirty_pages();
        println!("{} dirty pages: {:?}", pages.len(), start.elapsed());
        let in_order = acks(&shard, |n| OffsetRange::one(Offset(n)));
        measure("ack in order, one by one", &mut shard, &in_order, ENTRIES * ITEMS);
    }
}
