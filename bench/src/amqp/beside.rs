//! What a small producer sees while something heavy goes on beside it: exclusive queues that come and go, or messages
//! of 128 MiB. The small producer runs alone first; the ratio of the two is the result.

use super::connection::Connection;
use super::consumer::AckRule;
use super::load::{Load, Report};
use super::{Target, Uri};
use crate::histogram::Histogram;
use crate::proc::{Cost, Watch};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use longshore_amqp_codec::ShortStr;
use serde::Serialize;
use std::time::{Duration, Instant};
use tokio::task::{JoinHandle, spawn_local};

const SMALL_QUEUE: &str = "bench-small";
const LARGE_QUEUE: &str = "bench-large";
const MIB: usize = 1 << 20;

/// The small producer.
#[derive(Debug, Args)]
struct SmallArgs {
    /// Unconfirmed publishes of the small producer.
    #[arg(long, default_value_t = 1)]
    small_window: usize,
    /// Bytes of its messages.
    #[arg(long, default_value_t = 1_024)]
    small_body: usize,
    /// Seconds alone, and seconds beside the load.
    #[arg(long, default_value_t = 10.0)]
    secs: f64,
}

/// Flags of `exclusive-churn`.
#[derive(Debug, Args)]
pub struct ChurnArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    small: SmallArgs,
    /// Connections that declare, bind and drop, each one queue at a time.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Without the small producer: for what the queues alone cost the broker.
    #[arg(long)]
    alone: bool,
}

/// Flags of `large`.
#[derive(Debug, Args)]
pub struct LargeArgs {
    #[command(flatten)]
    target: Target,
    #[command(flatten)]
    small: SmallArgs,
    /// Size of a large message, in MiB.
    #[arg(long, default_value_t = 128)]
    large_mib: usize,
    /// Do not consume the large messages.
    #[arg(long)]
    no_consumer: bool,
}

/// What the small producer saw, alone and beside the load. Times in milliseconds.
#[derive(Debug, Serialize)]
struct Small {
    calm_per_s: f64,
    calm_p50_ms: f64,
    calm_p99_ms: f64,
    beside_per_s: f64,
    beside_p50_ms: f64,
    beside_p99_ms: f64,
    p99_ratio: f64,
    cost: Cost,
    errors: Vec<String>,
}

impl Small {
    fn new(calm: Report, beside: Report) -> Small {
        Small {
            calm_per_s: calm.confirmed_per_s,
            calm_p50_ms: calm.p50_ms,
            calm_p99_ms: calm.p99_ms,
            beside_per_s: beside.confirmed_per_s,
            beside_p50_ms: beside.p50_ms,
            beside_p99_ms: beside.p99_ms,
            p99_ratio: beside.p99_ms / calm.p99_ms.max(1e-6),
            cost: beside.cost,
            errors: calm.errors.into_iter().chain(beside.errors).collect(),
        }
    }
}

fn small_load(target: &Target, args: &SmallArgs) -> Result<Load> {
    Ok(Load {
        produce: true,
        consume: Some(AckRule::Each { every: 1 }),
        prefetch: 100,
        window: args.small_window,
        body: args.small_body,
        warmup_secs: 1.0,
        secs: args.secs,
        delete: true,
        ..target.load(vec![SMALL_QUEUE.into()])?
    })
}

/// What `exclusive-churn` gives.
#[derive(Debug, Serialize)]
pub struct ChurnReport {
    cycles: u64,
    cycles_per_s: f64,
    cycle_p50_ms: f64,
    cycle_p99_ms: f64,
    /// Absent with `--alone`.
    small: Option<Small>,
}

/// Declares, binds and drops exclusive queues, each named by the broker, for as long as the small producer runs.
pub async fn churn(args: &ChurnArgs) -> Result<ChurnReport> {
    let load = small_load(&args.target, &args.small)?;
    let calm = if args.alone { None } else { Some(load.run().await?) };
    let began = Instant::now();
    let until = began + Duration::try_from_secs_f64(args.small.secs + load.warmup_secs)?;
    let tasks: Vec<JoinHandle<Result<Histogram>>> = (0..args.connections)
        .map(|n| {
            let uri = args.target.uris.get(n % args.target.uris.len().max(1)).cloned();
            spawn_local(async move { cycles(&uri.context("no broker: give --uri")?, until).await })
        })
        .collect();
    let small = match calm {
        Some(calm) => Some(Small::new(calm, load.run().await?)),
        None => None,
    };
    let mut all = Histogram::default();
    for task in tasks {
        all.merge(&task.await??);
    }
    let seconds = until.saturating_duration_since(began).as_secs_f64();
    Ok(ChurnReport {
        cycles: all.len(),
        cycles_per_s: all.len() as f64 / seconds,
        cycle_p50_ms: all.quantile(0.5) as f64 / 1e6,
        cycle_p99_ms: all.quantile(0.99) as f64 / 1e6,
        small,
    })
}

async fn cycles(uri: &Uri, until: Instant) -> Result<Histogram> {
    let mut connection = Connection::open(uri).await?;
    let exchange = ShortStr::from_static("amq.direct");
    let mut histogram = Histogram::default();
    while Instant::now() < until {
        let start = Instant::now();
        let queue = connection.declare_exclusive("").await?;
        connection.bind(&queue, &exchange).await?;
        connection.delete(&queue).await?;
        histogram.record(u64::try_from(start.elapsed().as_nanos())?);
    }
    Ok(histogram)
}

/// What `large` gives.
#[derive(Debug, Serialize)]
pub struct LargeReport {
    large_mib: usize,
    large_confirmed: u64,
    large_mib_per_s: f64,
    large_p50_ms: f64,
    large_errors: Vec<String>,
    /// Cost of the brokers over the whole time of the large messages.
    large_cost: Cost,
    small: Small,
}

/// Sends large messages, one at a time without pause, for as long as the small producer runs.
pub async fn large(args: &LargeArgs) -> Result<LargeReport> {
    let small = small_load(&args.target, &args.small)?;
    let calm = small.run().await?;
    let large = Load {
        produce: true,
        consume: (!args.no_consumer).then_some(AckRule::Each { every: 1 }),
        prefetch: 1,
        window: 1,
        body: args.large_mib * MIB,
        secs: args.small.secs + small.warmup_secs,
        delete: true,
        ..args.target.load(vec![LARGE_QUEUE.into()])?
    };
    let watch = Watch::start(&args.target.pids)?;
    // On a thread of its own: the driver's work on a large body must not show in the small producer's latency.
    let heavy = std::thread::spawn(move || super::on_one_thread(large.run()));
    let beside = small.run().await?;
    let large = heavy.join().map_err(|_| anyhow!("the large producer panicked"))??;
    Ok(LargeReport {
        large_mib: args.large_mib,
        large_confirmed: large.confirmed,
        large_mib_per_s: large.confirmed_per_s * args.large_mib as f64,
        large_p50_ms: large.p50_ms,
        large_errors: large.errors,
        large_cost: watch.finish()?,
        small: Small::new(calm, beside),
    })
}
