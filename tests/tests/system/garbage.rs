//! Most of a backlog acked at random: disk use falls although what is left is spread over all segments, while
//! publishing goes on, with a kill -9 of a node that is rewriting; what was not acked is still there.

use anyhow::{Context, Result, ensure};
use lapin::options::BasicAckOptions;
use longshore_tests::system::client::{connect, consume, drain, fill, next, number_of};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::load::Load;
use longshore_tests::system::{full_size, inspect, run, until};
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const BODY_BYTES: usize = 16 << 10;
/// One message in so many stays, by chance.
const ONE_STAYS_IN: u64 = 20;
/// Messages that are out at a time.
const BATCH: u16 = 2_000;

/// Bytes of backlog, what a node may take in the end, settings, and how long the falling may take.
fn size() -> (u64, u64, &'static [&'static str], Duration) {
    if full_size() {
        (2 << 30, 400 << 20, &[], Duration::from_secs(300))
    } else {
        let small = &["storage.engine.segment_bytes=4194304", "storage.engine.checkpoint_bytes=4194304"];
        (512 << 20, 100 << 20, small, Duration::from_secs(120))
    }
}

/// Which messages stay, of `messages`.
fn chosen(messages: u64) -> BTreeSet<u64> {
    let mut random = rand::rngs::StdRng::seed_from_u64(messages);
    (0..messages).filter(|_| random.random_range(0..ONE_STAYS_IN) == 0).collect()
}

/// Takes everything and acks all but `kept`, in random order.
async fn ack_most(addresses: &[String], messages: u64, kept: &BTreeSet<u64>) -> Result<()> {
    let mut random = rand::rngs::StdRng::seed_from_u64(messages);
    let connection = connect(addresses).await?;
    // What stays is out all the time: the prefetch covers it and one batch.
    let prefetch = u16::try_from(kept.len() + usize::from(BATCH)).context("too many to hold")?;
    let (channel, mut consumer) = consume(&connection, "backlog", prefetch).await?;
    let (mut tags, mut taken) = (Vec::new(), 0);
    while taken < messages {
        let delivery =
            next(&mut consumer).await.with_context(|| format!("{taken} of {messages} were delivered"))?;
        let number = number_of(&delivery.data)?;
        taken += 1;
        if !kept.contains(&number) {
            tags.push(delivery.delivery_tag);
        }
        if tags.len() >= usize::from(BATCH) || taken == messages {
            tags.shuffle(&mut random);
            for tag in tags.drain(..) {
                channel.basic_ack(tag, BasicAckOptions::default()).await?;
            }
        }
    }
    channel.close(200, "done".into()).await?;
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// Store files of a node: what rewrites make.
async fn store_files(cluster: &Cluster, n: usize) -> Result<u64> {
    let answer = inspect::ask(&cluster.node_address(n), "node").await?;
    answer["store_files"].as_u64().context("no count of store files")
}

/// kill -9 of node 1 as soon as it has rewritten the first segment of very many, and its next start.
async fn kill_while_it_rewrites(cluster: &mut Cluster, limit: Duration) -> Result<()> {
    until("node 1 to rewrite", limit, async || Ok((store_files(cluster, 1).await? > 0).then_some(())))
        .await?;
    cluster.kill_node(1)?;
    println!("node 1 killed while it rewrote, with {} MiB on disk", cluster.disk_bytes(1) >> 20);
    cluster.start_node(1).await
}

#[test]
fn fault_disk_use_falls_when_most_is_acked() -> Result<()> {
    let (backlog, small, settings, limit) = size();
    run("garbage", limit * 4, async |dir| {
        let mut cluster = Cluster::start(dir, 1, settings).await?;
        let messages = backlog / BODY_BYTES as u64;
        fill(&cluster.amqp(), "backlog", 0..messages, BODY_BYTES).await?;
        let full = cluster.disk_bytes(0);
        ensure!(full >= backlog, "{full} bytes on disk for {backlog} of backlog");
        let kept = chosen(messages);
        let start = Instant::now();
        let load = Load::start(cluster.amqp(), "load").await?;
        let addresses = cluster.amqp();
        let (acked, killed) =
            tokio::join!(ack_most(&addresses, messages, &kept), kill_while_it_rewrites(&mut cluster, limit));
        acked?;
        killed?;
        println!("{} of {messages} acked in {:?}", messages - kept.len() as u64, start.elapsed());
        // Larger messages beside the load: checkpoints follow the log.
        let mut extra = messages;
        let start = Instant::now();
        until("disk use to fall", limit, async || {
            fill(&cluster.amqp(), "other", extra..extra + 64, BODY_BYTES).await?;
            drain(&cluster.amqp(), "other", (extra..extra + 64).collect()).await?;
            extra += 64;
            let sizes = [0, 1, 2].map(|n| cluster.disk_bytes(n));
            let fell = sizes.iter().all(|size| *size < small);
            if fell { Ok(Some(())) } else { anyhow::bail!("bytes on disk: {sizes:?}") }
        })
        .await?;
        let sizes = [0, 1, 2].map(|n| cluster.disk_bytes(n) >> 20);
        println!("MiB on disk: {sizes:?} after {} before, in {:?}", full >> 20, start.elapsed());
        load.finish().await?;
        drain(&cluster.amqp(), "backlog", kept).await
    })
}
