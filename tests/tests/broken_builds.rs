//! Broken builds: each deliberate mistake must show in what the clients of a whole simulated cluster saw.
//!
//! Run with `--features mutations`. A panic of the code, or what a gateway notices by itself, does not count; a node that
//! panics is a node that died. `LONGSHORE_SIM_SEED=n` tries that seed alone and shows what was seen.

// What a sound run is reported with is of no interest here.
#[allow(dead_code, reason = "only verdicts count here")]
#[path = "../sim/mod.rs"]
mod sim;

use longshore_mutations::{Mutation, choose};
use sim::history::BY_CLIENTS;
use sim::run::run;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Seeds that a mistake has to show in.
const SEEDS: u64 = 60;
/// What clients saw of a mistake.
enum Seen {
    /// A rule is broken: a message was lost, doubled, out twice, or replicas differ.
    Broken(u64, String),
    /// Only this: although everything healed, the cluster never served again.
    Stuck(u64),
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Seen::Broken(seed, what) => write!(f, "seed {seed}: {what}"),
            Seen::Stuck(seed) => write!(f, "seed {seed}: never served again"),
        }
    }
}

/// What the clients saw of it, in the first seed that breaks a rule if there is one.
fn seen(mutation: Mutation, seeds: std::ops::Range<u64>) -> Option<Seen> {
    let mut stuck = None;
    for seed in seeds {
        choose(Some(mutation));
        let result = catch_unwind(AssertUnwindSafe(|| run(seed)));
        choose(None);
        let Ok(Err(why)) = result else { continue };
        let Some(what) = why.strip_prefix(BY_CLIENTS).and_then(|why| why.lines().nth(1)) else { continue };
        let what = what.trim();
        if !what.starts_with("\"drained") {
            return Some(Seen::Broken(seed, what.chars().take(200).collect()));
        }
        stuck = stuck.or(Some(Seen::Stuck(seed)));
    }
    stuck
}

#[test]
fn every_deliberate_mistake_is_seen_by_clients() {
    std::panic::set_hook(Box::new(|_| {}));
    let only = std::env::var("LONGSHORE_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let seeds = only.map_or(0..SEEDS, |seed: u64| seed..seed + 1);
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(mutation) = Mutation::ALL.get(next.fetch_add(1, Ordering::Relaxed)).copied() {
                    let found = seen(mutation, seeds.clone());
                    match &found {
                        Some(seen) => println!("{mutation:?}: {seen}"),
                        None => println!("{mutation:?}: not seen"),
                    }
                    results.lock().unwrap().push((mutation, found.is_some()));
                }
            });
        }
    });
    let _ = std::panic::take_hook();
    let results = results.into_inner().unwrap();
    let unseen: Vec<Mutation> = results.iter().filter(|(_, found)| !found).map(|(m, _)| *m).collect();
    assert!(unseen.is_empty(), "no client saw {unseen:?}");
}
