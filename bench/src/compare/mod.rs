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

mod cases;
mod drivers;
mod rounds;
mod systems;
mod table;

use anyhow::{Result, bail};
use cases::Case;
use clap::{Args, ValueEnum};
use std::path::PathBuf;
use systems::{Places, System};

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
    /// The folder of scripts that start peers; default: `PEERS_DIR`, else `../shared/peers`.
    #[arg(long)]
    peers_dir: Option<PathBuf>,
    /// Where those scripts install and keep data; default: `PEERS_WORK`, else `/tmp/peers` (their own default).
    #[arg(long)]
    peers_work: Option<PathBuf>,
    /// The release binary.
    #[arg(long, default_value = "target/release/longshore")]
    longshore: PathBuf,
    /// A setting for storage nodes and gateway, as `longshore --set`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// First of the ports that Longshore gets; five are used.
    #[arg(long, default_value_t = 17_400)]
    port_base: u16,
    /// Data of Longshore, and the file of the probe: on the disk that the peers use, too.
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
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
    fn places(&self) -> Places {
        let chosen = |flag: &Option<PathBuf>, variable: &str, default: &str| {
            flag.clone()
                .or_else(|| std::env::var_os(variable).map(PathBuf::from))
                .unwrap_or_else(|| default.into())
        };
        Places {
            peers_dir: chosen(&self.peers_dir, "PEERS_DIR", "../shared/peers"),
            peers_work: chosen(&self.peers_work, "PEERS_WORK", "/tmp/peers"),
            longshore: self.longshore.clone(),
            settings: self.settings.clone(),
            port_base: self.port_base,
            dir: self.dir.clone(),
        }
    }

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
    if !args.longshore.is_file() {
        bail!(
            "{} does not exist: cargo build --release -p longshore, or --longshore",
            args.longshore.display()
        );
    }
    let peer = match args.peer {
        Peer::Rabbitmq => System::RabbitMq,
        Peer::Nats => System::Nats,
    };
    let mut file = table::RawFile::create(&args.results_dir, peer.name())?;
    let plan = rounds::Plan {
        cases,
        peer,
        places: args.places(),
        pairs: args.pairs,
        extra_rounds: args.extra_rounds,
        secs: args.secs,
        warmup_secs: args.warmup_secs,
        probe_secs: args.probe_secs,
    };
    let pairs = rounds::run(&plan, &mut file)?;
    print!("{}", table::markdown(&pairs, peer.name(), args.pairs));
    println!("\nraw rows: {}", file.path().display());
    Ok(())
}

fn labels(cases: &[Case]) -> String {
    cases.iter().map(Case::label).collect::<Vec<_>>().join(", ")
}
