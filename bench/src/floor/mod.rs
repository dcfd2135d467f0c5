//! The floor: what three processes on this machine cost for the same promise without Raft. The leader writes and two
//! followers write, each syncs with natural batching, an entry is acknowledged once a majority has synced it.
//!
//! It leaves out terms, votes, state machines and recovery, so nothing that keeps the promise can be much below it.
//! Like the node log it encodes an entry once: the followers check its checksum and write the bytes that came.
//!
//! | module | what |
//! |---|---|
//! | `log` | records, and the thread that writes and syncs what waits |
//! | `leader` | the turn loop: proposals in, frames out, acknowledgements at a majority |
//! | `follower` | the other two processes |

mod follower;
mod leader;
mod log;

use crate::clock::{Clock, ns_of, seconds_of};
use crate::histogram::Histogram;
use crate::proc::Watch;
use anyhow::{Context, Result, bail};
use bytes::Bytes;
use clap::Args;
use leader::{Proposal, Store};
use serde::Serialize;
use std::collections::VecDeque;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

pub use follower::{FollowerArgs, run as follower};

/// Replicas, the leader included.
const REPLICAS: usize = 3;

/// Flags of `floor`.
#[derive(Debug, Args)]
pub struct FloorArgs {
    /// Groups that the entries are spread over.
    #[arg(long, default_value_t = 16)]
    groups: u32,
    /// Entries without an acknowledgement, over all groups.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    window: u32,
    /// Bytes of an entry.
    #[arg(long, default_value_t = 1_024)]
    body: usize,
    /// Seconds that are measured.
    #[arg(long, default_value_t = 5.0)]
    secs: f64,
    /// Seconds before that.
    #[arg(long, default_value_t = 1.0)]
    warmup_secs: f64,
    /// A directory for the three logs.
    #[arg(long, default_value = "target/bench/floor")]
    dir: PathBuf,
}

/// What a run gave.
#[derive(Debug, Serialize)]
struct FloorRow {
    groups: u32,
    window: u32,
    body: usize,
    entries: u64,
    entries_per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// CPU of the three processes, generator included, in milliseconds per 1,000 entries.
    cpu_ms_per_1000: f64,
    records_per_sync: f64,
    foreign_share: f64,
}

/// Runs the subcommand.
pub fn run(args: &FloorArgs) -> Result<()> {
    let mut followers = Vec::new();
    for n in 1..REPLICAS {
        followers.push(FollowerProcess::start(&args.dir.join(format!("follower{n}")))?);
    }
    let addresses: Vec<SocketAddr> = followers.iter().map(|f| f.address).collect();
    let store = leader::start(&args.dir.join("leader"), &addresses, args.window)?;
    let pids: Vec<u32> = followers.iter().map(|f| f.child.id()).collect();
    let row = generate(args, &store, &pids)?;
    println!("{}", serde_json::to_string(&row)?);
    Ok(())
}

/// The closed loop: keeps `window` entries in flight and measures from the end of the warm-up.
fn generate(args: &FloorArgs, store: &Store, pids: &[u32]) -> Result<FloorRow> {
    let clock = Clock::start();
    let (warm, end) = (ns_of(args.warmup_secs), ns_of(args.warmup_secs + args.secs));
    let mut histogram = Histogram::default();
    let mut sent: VecDeque<u64> = VecDeque::new();
    let (mut proposed, mut acknowledged) = (0u64, 0u64);
    let mut watch = None;
    let (mut syncs, mut warm_acknowledged) = (0, 0);
    let source = vec![0x5Au8; args.body];
    let groups = args.groups.max(1) as usize;
    loop {
        let now = clock.now_ns();
        if now >= warm && watch.is_none() {
            watch = Some((Watch::start(pids)?, now));
            (syncs, warm_acknowledged) = (store.syncs(), acknowledged);
        }
        if now >= end {
            break;
        }
        let free = u64::from(args.window) - (proposed - acknowledged);
        // A batch per group, as gateways send them: the leader's turn takes what has come by then.
        let mut batches: Vec<Vec<Proposal>> = vec![Vec::new(); groups];
        for n in proposed..proposed + free {
            let group = (n % groups as u64) as usize;
            if let Some(batch) = batches.get_mut(group) {
                // A copy an entry, as a client's socket would give.
                batch.push(Proposal { group: group as u32, body: Bytes::copy_from_slice(&source) });
            }
            sent.push_back(now);
        }
        proposed += free;
        for batch in batches {
            store.propose(batch)?;
        }
        let committed = store.committed()?;
        let now = clock.now_ns();
        for at in sent.drain(..usize::try_from(committed - acknowledged)?) {
            if watch.is_some() {
                histogram.record(now - at);
            }
        }
        acknowledged = committed;
    }
    let Some((watch, since)) = watch else { bail!("--secs must be above 0") };
    let cost = watch.finish()?;
    let entries = acknowledged - warm_acknowledged;
    Ok(FloorRow {
        groups: args.groups,
        window: args.window,
        body: args.body,
        entries,
        entries_per_s: entries as f64 / seconds_of(clock.now_ns() - since),
        p50_ms: histogram.quantile(0.5) as f64 / 1e6,
        p99_ms: histogram.quantile(0.99) as f64 / 1e6,
        cpu_ms_per_1000: (cost.cpu_s + cost.driver_cpu_s) * 1e6 / entries.max(1) as f64,
        records_per_sync: entries as f64 / (store.syncs() - syncs).max(1) as f64,
        foreign_share: cost.foreign_share,
    })
}

/// A follower; ends with this value.
struct FollowerProcess {
    child: Child,
    address: SocketAddr,
}

impl FollowerProcess {
    fn start(dir: &Path) -> Result<FollowerProcess> {
        let program = std::env::current_exe().context("cannot find this program")?;
        let mut child = Command::new(program)
            .arg("floor-follower")
            .arg("--dir")
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a follower")?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout).read_line(&mut line)?;
        }
        match line.trim().parse() {
            Ok(address) => Ok(FollowerProcess { child, address }),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("a follower did not start; its message is above")
            }
        }
    }
}

impl Drop for FollowerProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
