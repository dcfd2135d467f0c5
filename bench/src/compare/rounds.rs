//! Rounds: in each, both systems are started in turn (the order alternates) and every row that still needs a pair is
//! run, with the disk probed before and after every run.
//!
//! A pair is *steady* when the probes around its two runs differ by no more than 30 %. Rows with too few steady pairs
//! are run again in further rounds, up to a bound; every run is recorded, and every steady pair counts.

use super::cases::Case;
use super::drivers::{self, Measured};
use super::systems::{Places, Running, System};
use super::table::RawFile;
use crate::probe;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::thread::sleep;
use std::time::Duration;

/// Probes around a pair may differ by this factor.
pub const PROBE_RATIO_MAX: f64 = 1.3;
/// The write whose median time is compared: the size of a usual group commit.
const PROBE_BYTES: u64 = 65_536;
/// Between what a run leaves behind and the next probe.
const SETTLE_TIME: Duration = Duration::from_millis(1_500);

/// What to do.
#[derive(Debug)]
pub struct Plan {
    /// The rows.
    pub cases: Vec<Case>,
    /// Whom Longshore is compared with.
    pub peer: System,
    /// Where everything is.
    pub places: Places,
    /// Steady pairs wanted per row.
    pub pairs: usize,
    /// Rounds beyond that, at most.
    pub extra_rounds: usize,
    /// Measured seconds per run.
    pub secs: f64,
    /// Seconds before them.
    pub warmup_secs: f64,
    /// Seconds per probe.
    pub probe_secs: f64,
}

/// One run with its probes.
#[derive(Clone, Debug)]
pub struct Run {
    /// What was measured.
    pub measured: Measured,
    /// Median time of a probe's write and sync before, in milliseconds.
    pub probe_before_ms: f64,
    /// The same after.
    pub probe_after_ms: f64,
}

/// The two runs of a row in one round.
#[derive(Clone, Debug)]
pub struct Pair {
    /// From 1.
    pub round: usize,
    /// The peer's run.
    pub peer: Run,
    /// Longshore's run.
    pub longshore: Run,
}

impl Pair {
    /// The slowest probe over the fastest.
    pub fn probe_ratio(&self) -> f64 {
        let probes = [&self.peer, &self.longshore].map(|run| [run.probe_before_ms, run.probe_after_ms]);
        let slowest = probes.as_flattened().iter().copied().fold(0.0, f64::max);
        let fastest = probes.as_flattened().iter().copied().fold(f64::INFINITY, f64::min);
        slowest / fastest
    }

    /// Whether the disk was the same for both, as far as the probes can tell.
    pub fn is_steady(&self) -> bool {
        self.probe_ratio() <= PROBE_RATIO_MAX
    }
}

/// Runs all rounds; the pairs of each row, steady or not.
///
/// Errors: a system that does not start, a driver that cannot be run.
pub fn run(plan: &Plan, file: &mut RawFile) -> Result<BTreeMap<Case, Vec<Pair>>> {
    let mut pairs: BTreeMap<Case, Vec<Pair>> = plan.cases.iter().map(|case| (*case, Vec::new())).collect();
    for round in 1..=plan.pairs + plan.extra_rounds {
        let wanting: Vec<Case> =
            plan.cases.iter().copied().filter(|case| wants_more(&pairs, case, plan.pairs)).collect();
        if wanting.is_empty() {
            break;
        }
        eprintln!("round {round}: {} rows", wanting.len());
        let longshore_first = round % 2 == 0;
        let first = if longshore_first { System::Longshore } else { plan.peer };
        let second = if longshore_first { plan.peer } else { System::Longshore };
        let one = all_rows(first, &wanting, plan, file)?;
        let other = all_rows(second, &wanting, plan, file)?;
        for ((case, one), other) in wanting.iter().zip(one).zip(other) {
            let (peer, longshore) = if longshore_first { (other, one) } else { (one, other) };
            let pair = Pair { round, peer, longshore };
            file.write(case, plan.peer.name(), &pair)?;
            if let Some(list) = pairs.get_mut(case) {
                list.push(pair);
            }
        }
    }
    Ok(pairs)
}

fn wants_more(pairs: &BTreeMap<Case, Vec<Pair>>, case: &Case, wanted: usize) -> bool {
    pairs.get(case).is_none_or(|list| list.iter().filter(|pair| pair.is_steady()).count() < wanted)
}

/// Starts a system, runs the rows, stops it. The probe after a run is the one before the next.
fn all_rows(system: System, cases: &[Case], plan: &Plan, file: &mut RawFile) -> Result<Vec<Run>> {
    let running = system.start(&plan.places)?;
    file.name(system, &running.version(&plan.places)?)?;
    let mut probe_before_ms = probe_ms(plan)?;
    let mut runs = Vec::new();
    for case in cases {
        let measured = one_row(case, &running, plan);
        sleep(SETTLE_TIME);
        let probe_after_ms = probe_ms(plan)?;
        eprintln!(
            "  {:9} {:24} {:>8.0}/s p50 {:>8.2} ms p99 {:>8.2} ms {:>6.2} CPU s/100k, probe {:.2} {:.2} ms {}",
            system.name(),
            case.label(),
            measured.confirmed_per_s,
            measured.p50_ms,
            measured.p99_ms,
            measured.cpu_s_per_100k,
            probe_before_ms,
            probe_after_ms,
            measured.errors.join("; "),
        );
        runs.push(Run { measured, probe_before_ms, probe_after_ms });
        probe_before_ms = probe_after_ms;
    }
    Ok(runs)
}

/// A run that fails is a result, too: it is recorded with its error and without figures.
fn one_row(case: &Case, running: &Running, plan: &Plan) -> Measured {
    drivers::measure(case, running, plan).unwrap_or_else(|error| Measured {
        errors: vec![format!("failed: {error:#}")],
        ..Measured::default()
    })
}

fn probe_ms(plan: &Plan) -> Result<f64> {
    let rows = probe::measure(&plan.places.dir.join("probe"), &[PROBE_BYTES], plan.probe_secs)?;
    match rows.first() {
        Some(row) => Ok(row.p50_ms),
        None => bail!("the probe gave nothing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(probes: [f64; 4]) -> Pair {
        let run = |before, after| Run {
            measured: Measured::default(),
            probe_before_ms: before,
            probe_after_ms: after,
        };
        Pair { round: 1, peer: run(probes[0], probes[1]), longshore: run(probes[2], probes[3]) }
    }

    #[test]
    fn a_pair_is_steady_when_no_probe_differs_by_more_than_the_bound() {
        assert!(pair([1.0, 1.1, 1.2, 1.3]).is_steady());
        assert!(!pair([1.0, 1.1, 1.31, 1.0]).is_steady());
        assert!(!pair([2.0, 1.0, 2.0, 2.0]).is_steady());
    }
}
