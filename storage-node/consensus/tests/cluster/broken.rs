//! Broken builds: each deliberate mistake must show in what the cluster noted, in at least one of a few seeds.
//!
//! Run with `--features mutations`. A panic of the consensus library (it notices some losses by itself) does not count.

use crate::chaos;
use longshore_mutations::{Mutation, choose};
use std::panic::{AssertUnwindSafe, catch_unwind};

const SEEDS: u64 = 500;
/// Those that this crate alone can show.
const HERE: [Mutation; 6] = [
    Mutation::AckBeforeSync,
    Mutation::VoteNotSynced,
    Mutation::PersistReadyEarly,
    Mutation::DuplicateAnsweredEarly,
    Mutation::ApplyBeforeCommit,
    Mutation::PausedLeaderDelivers,
];

fn message(payload: &(dyn std::any::Any + Send)) -> &str {
    payload.downcast_ref::<String>().map_or("", String::as_str)
}

/// The first seed whose history shows the mistake.
fn found(mutation: Mutation) -> Option<u64> {
    (0..SEEDS).find(|seed| {
        choose(Some(mutation));
        let result = catch_unwind(AssertUnwindSafe(|| chaos::run(*seed)));
        choose(None);
        result.is_err_and(|payload| message(payload.as_ref()).starts_with("seed "))
    })
}

#[test]
fn every_deliberate_mistake_is_found_in_what_clients_could_see() {
    std::panic::set_hook(Box::new(|_| {}));
    let seeds: Vec<(Mutation, Option<u64>)> = HERE.into_iter().map(|m| (m, found(m))).collect();
    let _ = std::panic::take_hook();
    for (mutation, seed) in &seeds {
        println!("{mutation:?}: seed {seed:?}");
    }
    assert!(seeds.iter().all(|(_, seed)| seed.is_some()), "{seeds:?}");
}
