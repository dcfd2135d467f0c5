//! Many queues without traffic: what they cost in memory and CPU.

use super::Target;
use super::connection::Connection;
use crate::proc::{Cost, Watch, rss_mib};
use anyhow::Result;
use clap::Args;
use longshore_amqp_codec::{ShortStr, Table};
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::task::spawn_local;
use tokio::time::sleep;

/// Flags of `idle-queues`.
#[derive(Debug, Args)]
pub struct IdleArgs {
    #[command(flatten)]
    target: Target,
    /// Durable queues.
    #[arg(long, default_value_t = 10_000)]
    queues: usize,
    /// Queues that are declared and deleted first: the program's pages that the first ones bring in, its buffers and its threads'
    /// heaps are not what 10,000 queues cost.
    #[arg(long, default_value_t = 200)]
    warm_up: usize,
    /// Connections that declare and delete them.
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Seconds that pass before the queues are left alone, so that checkpoints are done.
    #[arg(long, default_value_t = 5.0)]
    settle_secs: f64,
    /// Seconds that are measured, before there are queues and while they idle.
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
    /// Leave the queues.
    #[arg(long)]
    keep: bool,
}

/// What came of it. Memory per watched process, in their order.
#[derive(Debug, Serialize)]
pub struct IdleReport {
    queues: usize,
    declared_per_s: f64,
    /// Before anything was declared at all.
    rss_fresh_mib: Vec<f64>,
    rss_before_mib: Vec<f64>,
    rss_after_mib: Vec<f64>,
    rss_growth_mib_max: f64,
    /// Share of one core, of all watched processes, before there were queues.
    core_share_before: f64,
    /// The same while the queues idle.
    core_share_idle: f64,
    before: Cost,
    idle: Cost,
}

/// Declares the queues, leaves them alone, deletes them.
pub async fn run(args: &IdleArgs) -> Result<IdleReport> {
    let pids = &args.target.pids;
    let rss_fresh_mib = rss(pids)?;
    each(args, args.warm_up, Action::Declare).await?;
    each(args, args.warm_up, Action::Delete).await?;
    let (before, rss_before_mib) = (stretch(pids, args.secs).await?, rss(pids)?);
    let began = Instant::now();
    each(args, args.queues, Action::Declare).await?;
    let declared_per_s = args.queues as f64 / began.elapsed().as_secs_f64();
    sleep(Duration::try_from_secs_f64(args.settle_secs)?).await;
    let (idle, rss_after_mib) = (stretch(pids, args.secs).await?, rss(pids)?);
    if !args.keep {
        each(args, args.queues, Action::Delete).await?;
    }
    let growth = rss_after_mib.iter().zip(&rss_before_mib).map(|(after, before)| after - before);
    Ok(IdleReport {
        queues: args.queues,
        declared_per_s,
        rss_fresh_mib,
        rss_growth_mib_max: growth.fold(0.0, f64::max),
        rss_before_mib,
        rss_after_mib,
        core_share_before: before.cpu_s / before.seconds,
        core_share_idle: idle.cpu_s / idle.seconds,
        before,
        idle,
    })
}

async fn stretch(pids: &[u32], secs: f64) -> Result<Cost> {
    let watch = Watch::start(pids)?;
    sleep(Duration::try_from_secs_f64(secs)?).await;
    watch.finish()
}

fn rss(pids: &[u32]) -> Result<Vec<f64>> {
    pids.iter().map(|pid| rss_mib(*pid)).collect()
}

#[derive(Clone, Copy)]
enum Action {
    Declare,
    Delete,
}

/// Does it to the first `queues`, over several connections.
async fn each(args: &IdleArgs, queues: usize, action: Action) -> Result<()> {
    let arguments = args.target.table()?;
    let connections = args.connections.max(1);
    let mut tasks = Vec::new();
    for first in 0..connections {
        let uri = args.target.uris.get(first % args.target.uris.len().max(1)).unwrap_or(args.target.first()?);
        let mut connection = Connection::open(uri).await?;
        let arguments: Table = arguments.clone();
        tasks.push(spawn_local(async move {
            for n in (first..queues).step_by(connections) {
                let queue = format!("idle-{n}");
                match action {
                    Action::Declare => drop(connection.declare(&queue, &arguments).await?),
                    Action::Delete => connection.delete(&ShortStr::cut(&queue)).await?,
                }
            }
            anyhow::Ok(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok(())
}
