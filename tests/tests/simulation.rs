//! The simulation: many seeds, each a whole cluster in one thread (see `sim`).
//!
//! `LONGSHORE_SIM_SEED=n` repeats one seed, `LONGSHORE_SIM_SEEDS=n` says how many run, `LONGSHORE_SIM_FIRST=n` which is the first.

#[path = "../sim/mod.rs"]
mod sim;

use sim::machine::panic_text;
use sim::reached::{RARE, Reached};
use sim::run::{ACKNOWLEDGED_MIN, Report, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Seeds of an ordinary run.
const SEEDS: u64 = 500;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Faults of each seed, at least.
const FAULTS_MIN: u64 = 5;

fn guarded(seed: u64) -> Result<Report, String> {
    let report = catch_unwind(AssertUnwindSafe(|| run(seed)))
        .unwrap_or_else(|panic| Err(format!("panicked: {}", panic_text(panic.as_ref()))))?;
    if report.acknowledged < ACKNOWLEDGED_MIN || report.reached.faults < FAULTS_MIN {
        return Err(format!(
            "too little happened: {} acknowledged, {} faults",
            report.acknowledged, report.reached.faults
        ));
    }
    Ok(report)
}

fn failed(seed: u64, why: &str) -> String {
    format!(
        "seed {seed}: {why}\nagain: LONGSHORE_SIM_SEED={seed} cargo test --profile sim -p longshore-tests --test simulation seeds -- --nocapture"
    )
}

#[test]
fn seeds() {
    if let Some(seed) = number("LONGSHORE_SIM_SEED") {
        match guarded(seed) {
            Ok(report) => println!("seed {seed}: {report:#?}"),
            Err(why) => panic!("{}", failed(seed, &why)),
        }
        return;
    }
    let first = number("LONGSHORE_SIM_FIRST").unwrap_or(0);
    let seeds = number("LONGSHORE_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, results) = (AtomicU64::new(first), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    let result = guarded(seed);
                    results.lock().unwrap().push((seed, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap();
    results.sort_by_key(|(seed, _)| *seed);
    let reached = report(&results);
    let failures: Vec<String> = results
        .iter()
        .filter_map(|(seed, result)| result.as_ref().err().map(|why| failed(*seed, why)))
        .collect();
    assert!(failures.is_empty(), "{} of {seeds} seeds failed:\n{}", failures.len(), failures.join("\n\n"));
    if seeds >= SEEDS {
        check_rare(&reached, seeds);
    }
}

/// Each rare state in one seed of twenty at least.
fn check_rare(reached: &Reached, seeds: u64) {
    let least = seeds / 20;
    let seldom: Vec<_> =
        reached.list().into_iter().filter(|(name, runs)| RARE.contains(name) && *runs < least).collect();
    assert!(seldom.is_empty(), "reached in fewer than {least} seeds: {seldom:?}");
}

/// The same seed is the same run, event by event.
#[test]
fn a_seed_repeats() {
    for seed in [3, 7] {
        let (first, second) = (guarded(seed), guarded(seed));
        let trace = |result: &Result<Report, String>| result.as_ref().map(|report| report.trace).ok();
        assert!(trace(&first).is_some(), "{}", failed(seed, &first.err().unwrap_or_default()));
        assert_eq!(trace(&first), trace(&second), "seed {seed}");
    }
}

fn report(results: &[(u64, Result<Report, String>)]) -> Reached {
    let mut runs = Reached::default();
    let good: Vec<&Report> = results.iter().filter_map(|(_, result)| result.as_ref().ok()).collect();
    good.iter().for_each(|report| runs.count_runs(&report.reached));
    let least = |of: fn(&Report) -> u64| good.iter().map(|report| of(report)).min().unwrap_or(0);
    println!(
        "{} of {} seeds; at least {} acknowledged, {} faults, {} deliveries, {} settlements, {} comparisons each",
        good.len(),
        results.len(),
        least(|r| r.acknowledged),
        least(|r| r.reached.faults),
        least(|r| r.deliveries),
        least(|r| r.settles),
        least(|r| r.compared),
    );
    println!("runs that reached: {:?}", runs.list());
    runs
}
