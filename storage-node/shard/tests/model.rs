//! Random commands against a model that keeps one entry per message and one number per session, on three shards at
//! once: the first is never restored, the second is restored from the pages of its checkpoints, the third from
//! snapshots of the first. All three must do the same at every step.
#![cfg(test)]

#[path = "model/commands.rs"]
mod commands;
mod common;
#[path = "model/plain.rs"]
mod plain;

use bytes::Bytes;
use commands::{Number, Step, spec, step};
use common::{Put, apply, batch};
use longshore_shard::{Effects, Shard};
use longshore_wire::batch::Item;
use longshore_wire::{LogId, SessionId, ShardId};
use plain::Model;
use proptest::prelude::*;
use std::collections::BTreeMap;

/// The shard, its twins and the pages that the second one's checkpoints left.
struct Trio {
    shards: [Shard; 3],
    stored: BTreeMap<Bytes, Bytes>,
}

impl Trio {
    fn apply(&mut self, stamp: u64, data: &Bytes) -> Effects {
        let [first, second, third] = self.shards.each_mut().map(|shard| apply(shard, stamp, data));
        assert_eq!(first, second, "after a restore from a checkpoint");
        assert_eq!(first, third, "after a restore from a snapshot");
        first
    }

    fn checkpoint(&mut self) {
        for (key, page) in self.shards[1].take_dirty_pages() {
            match page {
                Some(page) => drop(self.stored.insert(key, page)),
                None => drop(self.stored.remove(&key)),
            }
        }
        self.shards[1] = Shard::restore(ShardId(3), self.stored.clone()).unwrap();
        assert_eq!(self.stored.clone().into_iter().collect::<Vec<_>>(), self.shards[1].all_pages());
        self.same();
    }

    fn snapshot(&mut self) {
        self.shards[2] = Shard::restore(ShardId(3), self.shards[0].all_pages()).unwrap();
        self.same();
    }

    fn same(&self) {
        let [a, b, c] = self.shards.each_ref().map(Shard::state_hash);
        assert_eq!((a, a), (b, c));
    }
}

fn run(steps: Vec<Step>) {
    let mut trio = Trio { shards: [0; 3].map(|_| Shard::new(ShardId(3))), stored: BTreeMap::new() };
    let mut model = Model::default();
    let mut setup: Vec<Put> =
        (1..5_u64).map(|log| Put::Item(Item::CreateLog { log: LogId(log), spec: spec(log) })).collect();
    setup.extend([7, 8].map(|id| Put::Item(Item::OpenSession(SessionId(id)))));
    let effects = trio.apply(0, &batch(0, 0, &setup));
    model.batch(0, 0, 0, &setup, &effects);
    for step in steps {
        match step {
            Step::Batch { session, number, after_ms, puts } => {
                let last = model.sessions.get(&session).map_or(0, |(last, _)| *last);
                let number = match number {
                    Number::Next => last + 1,
                    Number::Again(back) => last.saturating_sub(back),
                    Number::Ahead => last + 2,
                };
                let effects = trio.apply(model.now + after_ms, &batch(session, number, &puts));
                model.batch(after_ms, session, number, &puts, &effects);
                model.compare(&trio.shards[0]);
            }
            Step::Garbage { bytes } => {
                let pages = trio.shards[0].all_pages();
                let effects = trio.apply(model.now + 1_000, &Bytes::from(bytes));
                assert!(effects.rows.is_empty() && effects.released.is_empty() && effects.events.is_empty());
                // The first page names the applied index; no other may differ.
                assert_eq!(trio.shards[0].all_pages()[1..], pages[1..]);
            }
            Step::Checkpoint => trio.checkpoint(),
            Step::Snapshot => trio.snapshot(),
        }
    }
    trio.checkpoint();
    trio.snapshot();
}

/// `PROPTEST_CASES` for a longer run.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn does_what_a_plain_model_does(steps in prop::collection::vec(step(), 1..60)) {
        run(steps);
    }
}
