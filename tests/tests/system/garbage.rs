//! Most of a backlog acked at random: disk use falls although what is left is spread over all segments, with a
//! kill -9 meanwhile; what was not acked is still there.

use anyhow::{Context, Result, ensure};
use lapin::options::BasicAckOptions;
use longshore_tests::system::client::{connect, consume, drain, fill, next, number_of};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::{full_size, run, until};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use std::collections::BTreeSet;
use std::time::Duration;

const BODY_BYTES: usize = 16 << 10;
/// Of a hundred messages so many stay.
const KEPT_PERCENT: u64 = 5;
/// Messages that are out at a time.
const BATCH: u16 = 2_000;

/// Bytes of backlog, what a node may take in the end, settings, and how long the falling may take.
fn size() -> (u64, u64, &'static [&'static str], Duration) {
    if full_size() {
        (2 << 30, 400 << 20, &[], Duration::from_secs(300))
    } else {
        let small = &["storage.engine.segment_bytes=4194304", "storage.engine.checkpoint_bytes=4194304"];
        (128 << 20, 48 << 20, small, Duration::from_secs(120))
    }
}

/// Takes everything, acks all but every twentieth in random order; what stays, of `messages`. Holds its connection.
async fn ack_most(addresses: &[String], messages: u64) -> Result<BTreeSet<u64>> {
    let mut random = rand::rngs::StdRng::seed_from_u64(messages);
    let kept_stride = 100 / KEPT_PERCENT;
    let connection = connect(addresses).await?;
    // What stays is out all the time: the prefetch covers it and one batch.
    let prefetch = u16::try_from(messages / kept_stride + u64::from(BATCH)).context("too many to hold")?;
    let (channel, mut consumer) = consume(&connection, "backlog", prefetch).await?;
    let (mut kept, mut tags, mut taken) = (BTreeSet::new(), Vec::new(), 0);
    while taken < messages {
        let delivery =
            next(&mut consumer).await.with_context(|| format!("{taken} of {messages} were delivered"))?;
        let number = number_of(&delivery.data)?;
        taken += 1;
        if number % kept_stride == 0 {
            kept.insert(number);
        } else {
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
    Ok(kept)
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
        let kept = ack_most(&cluster.amqp(), messages).await?;
        // Publishing goes on: checkpoints follow the log.
        let mut extra = messages;
        let mut killed = false;
        until("disk use to fall", limit, async || {
            fill(&cluster.amqp(), "other", extra..extra + 64, BODY_BYTES).await?;
            drain(&cluster.amqp(), "other", (extra..extra + 64).collect()).await?;
            extra += 64;
            let sizes = [0, 1, 2].map(|n| cluster.disk_bytes(n));
            if !killed && sizes[1] < full * 3 / 4 {
                killed = true;
                cluster.kill_node(1)?;
                cluster.start_node(1).await?;
            }
            println!("bytes on disk: {sizes:?} after {full}");
            let fell = sizes.iter().all(|size| *size < small);
            if fell && killed { Ok(Some(())) } else { anyhow::bail!("bytes on disk: {sizes:?}") }
        })
        .await?;
        drain(&cluster.amqp(), "backlog", kept).await
    })
}
