//! Wiped nodes come back with everything: a backlog, each node wiped in turn and rebuilt until it is a voter again,
//! then every confirmed message is consumed and its hash checked.

use anyhow::Result;
use longshore_tests::system::client::{drain, fill};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::inspect::{describe, wait_for_three_voters};
use longshore_tests::system::load::Load;
use longshore_tests::system::{full_size, goes_on, run};
use std::time::{Duration, Instant};

const BODY_BYTES: usize = 16 << 10;

/// Bytes of backlog, and how long one rebuilding may take.
fn size() -> (u64, Duration) {
    if full_size() { (1 << 30, Duration::from_secs(600)) } else { (256 << 20, Duration::from_secs(120)) }
}

async fn wipe_and_rebuild(cluster: &mut Cluster, n: usize, limit: Duration) -> Result<()> {
    let start = Instant::now();
    cluster.kill_node(n)?;
    std::fs::remove_dir_all(cluster.data_dir(n))?;
    cluster.start_node(n).await?;
    wait_for_three_voters(cluster, limit).await?;
    let (took, bytes) = (start.elapsed(), cluster.disk_bytes(n));
    let rate = bytes as f64 / took.as_secs_f64() / f64::from(1 << 20);
    println!("node {n} wiped, a voter again after {took:?} with {} MiB, {rate:.1} MiB/s", bytes >> 20);
    Ok(())
}

#[test]
fn fault_every_node_wiped_in_turn() -> Result<()> {
    let (backlog, limit) = size();
    run("wiped", limit * 4, async |dir| {
        let mut cluster = Cluster::start(dir, 1, &[]).await?;
        let messages = backlog / BODY_BYTES as u64;
        let start = Instant::now();
        fill(&cluster.amqp(), "backlog", 0..messages, BODY_BYTES).await?;
        println!("{messages} messages, {} MiB, confirmed in {:?}", backlog >> 20, start.elapsed());
        wait_for_three_voters(&cluster, limit).await?;
        for n in [2, 0, 1] {
            wipe_and_rebuild(&mut cluster, n, limit).await?;
        }
        let start = Instant::now();
        let drained = drain(&cluster.amqp(), "backlog", (0..messages).collect()).await;
        match &drained {
            Ok(()) => println!("{messages} messages consumed and checked in {:?}", start.elapsed()),
            Err(_) => println!("{}", describe(&cluster).await),
        }
        drained
    })
}

#[test]
fn fault_wiped_under_load_then_another_killed() -> Result<()> {
    let (_, limit) = size();
    run("replaced", limit * 3, async |dir| {
        let mut cluster = Cluster::start(dir, 1, &[]).await?;
        let load = Load::start(cluster.amqp(), "q").await?;
        wipe_and_rebuild(&mut cluster, 0, limit).await?;
        load.confirms(500, goes_on()).await?;
        cluster.kill_node(1)?;
        println!("writes went on after {:?}", load.goes_on(goes_on()).await?);
        load.confirms(500, goes_on()).await?;
        cluster.start_node(1).await?;
        load.finish().await
    })
}
