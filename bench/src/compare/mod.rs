//! The comparison: a peer and Longshore in turn, in alternating pairs, the disk probed around every run.
//!
//! The danger is a figure that says more about the moment than about the program: so both sides run in the same
//! minutes, a pair whose probes differ is run again (bounded, and every run is recorded), and the medians are taken
//! by rule, never by choice. See `bench/README.md`.
//!
//! | module | what |
//! |---|---|
//! | `cases` | which rows there are |
//! | `systems` | starting and stopping RabbitMQ, NATS and Longshore |
//! | `drivers` | one timed run by our driver, PerfTest or natsbench |
//! | `rounds` | alternation, probes, repetition |
//! | `table` | raw rows, medians, ratios |
//! | `with` | one system, and commands of our own choice against it |

mod cases;
mod drivers;
mod rounds;
mod systems;
mod table;
mod with;

use anyhow::{Result, bail};
use cases::Case;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use systems::System;
pub use with::{WithArgs, run as with};

/// Whom Longshore is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Peer {
    /// RabbitMQ, three nodes, quorum queues.
    Rabbitmq,
    /// NATS JetStream, three nodes, R3 file streams, `sync_interval: always`.
    Nats,
}

/// Flags of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// Whom to compare with.
    #[arg(long, value_enum, default_value = "rabbitmq")]
    peer: Peer,
    #[command(flatten)]
    places: systems::PlaceArgs,
    /// Where the raw rows go.
    #[arg(long, default_value = "bench/results")]
    results_dir: PathBuf,
    /// Pairs per row.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// Further rounds at most, for rows with pairs whose probes differed.
    #[arg(long, default_value_t = 5)]
    extra_rounds: usize,
    /// Seconds that are measured, per run.
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Seconds before that (our driver).
    #[arg(long, default_value_t = 2.0)]
    warmup_secs: f64,
    /// Seconds per probe.
    #[arg(long, default_value_t = 1.0)]
    probe_secs: f64,
    /// The rows by RabbitMQ PerfTest, too.
    #[arg(long)]
    perftest: bool,
    /// Only rows whose label contains this; may be repeated.
    #[arg(long)]
    only: Vec<String>,
}

impl CompareArgs {
    fn cases(&self) -> Vec<Case> {
        let all = cases::all(self.perftest && self.peer == Peer::Rabbitmq);
        all.into_iter()
            .filter(|case| {
                self.only.is_empty() || self.only.iter().any(|part| case.label().contains(part.as_str()))
            })
            .collect()
    }
}

/// Runs the subcommand.
pub fn run(args: &CompareArgs) -> Result<()> {
    let cases = args.cases();
    if cases.is_empty() {
        bail!("no row is called so; the rows: {}", labels(&cases::all(true)));
    }
    let places = args.places.places()?;
    let peer = match args.peer {
        Peer::Rabbitmq => System::RabbitMq,
        Peer::Nats => System::Nats,
    };
    peer.check_scripts(&places)?;
    let mut file = table::RawFile::create(&args.results_dir, peer.name())?;
    let plan = rounds::Plan {
        cases,
        peer,
        places,
        pairs: args.pairs,
        extra_rounds: args.extra_rounds,
        secs: args.secs,
        warmup_secs: args.warmup_secs,
        probe_secs: args.probe_secs,
    };
    let pairs = rounds::run(&plan, &mut file)?;
    print!("{}", table::markdown(&pairs, peer.name(), args.pairs));
    println!("\nVersions: {}", file.versions());
    println!("raw rows: {}", file.path().display());
    Ok(())
}

fn labels(cases: &[Case]) -> String {
    cases.iter().map(Case::label).collect::<Vec<_>>().join(", ")
}
