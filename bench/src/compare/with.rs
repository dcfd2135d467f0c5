//! One system, and commands of this program against it: for the claims that are no row of the comparison.

use super::systems::{PlaceArgs, Running, System};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::{Duration, Instant};

/// Between two commands.
const NEXT: &str = "+";
/// Stops Longshore and starts it again: not a command of the program.
const RESTART: &str = "restart";
/// Says how often each storage node synced while the commands before it ran: not a command of the program either.
const SYNCS: &str = "syncs";
/// The counter of a node's syncs.
const SYNCS_METRIC: &str = "longshore_log_sync_seconds_count";
/// A node answers within this time.
const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Flags of `with`.
#[derive(Debug, Args)]
pub struct WithArgs {
    /// What to start, on empty data.
    #[arg(value_enum)]
    system: System,
    #[command(flatten)]
    places: PlaceArgs,
    /// Commands, with `+` between them; `@uri` and `@pids` stand for the system's, `@storage` for the
    /// pids of its storage nodes alone; `restart` restarts Longshore.
    #[arg(last = true, required = true)]
    commands: Vec<String>,
}

/// Runs the subcommand; the commands print their own reports.
pub fn run(args: &WithArgs) -> Result<()> {
    let places = args.places.places()?;
    let mut running = args.system.start(&places)?;
    let mut last = Syncs::read(&running)?;
    for command in args.commands.split(|word| word == NEXT) {
        if command == [RESTART] {
            let (again, time) = running.restart(&places)?;
            running = again;
            last = Syncs::read(&running)?;
            println!("{}", serde_json::json!({ "restart_to_ready_s": time.as_secs_f64() }));
        } else if command == [SYNCS] {
            let now = Syncs::read(&running)?;
            let (seconds, rates) = now.since(&last);
            println!("{}", serde_json::json!({ "seconds": seconds, "syncs_per_s": rates }));
            last = now;
        } else {
            execute(command, &running)?;
        }
    }
    Ok(())
}

fn execute(command: &[String], running: &Running) -> Result<()> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let status = Command::new(program).args(filled_in(command, running)).status()?;
    if !status.success() {
        bail!("{} failed: {status}", command.join(" "));
    }
    Ok(())
}

fn filled_in(command: &[String], running: &Running) -> Vec<String> {
    let listed = |pids: &[u32]| pids.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
    let words = command.iter().map(|word| match word.as_str() {
        "@uri" => running.uris.join(","),
        "@pids" => listed(&running.pids),
        "@storage" => listed(running.storage_pids()),
        other => other.to_owned(),
    });
    words.collect()
}

/// How often each storage node synced its log since its start; empty for a system that does not tell.
struct Syncs {
    at: Instant,
    counts: Vec<f64>,
}

impl Syncs {
    /// Errors: a node does not answer, or has no such counter.
    fn read(running: &Running) -> Result<Syncs> {
        let counts = running.metrics.iter().map(|address| syncs_of(address));
        Ok(Syncs { counts: counts.collect::<Result<_>>()?, at: Instant::now() })
    }

    /// The seconds between two readings, and each node's syncs per second in them.
    fn since(&self, earlier: &Syncs) -> (f64, Vec<f64>) {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let rates = self.counts.iter().zip(&earlier.counts).map(|(now, then)| (now - then) / seconds);
        (seconds, rates.collect())
    }
}

fn syncs_of(address: &str) -> Result<f64> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("no answer from {address}"))?;
    stream.set_read_timeout(Some(ANSWER_TIME))?;
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let line = text.lines().find(|line| line.starts_with(SYNCS_METRIC));
    let value = line.and_then(|line| line.rsplit(' ').next());
    Ok(value.with_context(|| format!("{address} has no {SYNCS_METRIC}"))?.parse()?)
}
