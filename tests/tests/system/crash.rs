//! Processes killed and stopped under a publisher with confirms and a consumer: no confirmed message is lost, writes
//! go on while a majority lives, and nothing is confirmed while none does.

use anyhow::{Result, ensure};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::load::Load;
use longshore_tests::system::{full_size, goes_on, inspect, run};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(180);
/// What the client of these tests takes on top to find another gateway when its own is silent, not gone: it gives a
/// connection up after 4 s, and an attempt to connect after 5 s.
const NOTICES: Duration = Duration::from_secs(10);
/// After everything was down: the start of the processes and their elections.
const COMES_BACK: Duration = Duration::from_secs(40);
/// Confirms between two faults.
const BETWEEN: usize = 500;

fn pause() -> Duration {
    Duration::from_secs(if full_size() { 20 } else { 6 })
}

/// The shard of a queue, by the listing of gateway 0.
async fn shard_of(cluster: &Cluster, queue: &str) -> Result<u32> {
    let queue = longshore_tests::system::admin::queue(&cluster.management(0), queue).await?;
    Ok(queue["shard"].as_u64().unwrap_or(0) as u32)
}

#[test]
fn fault_follower_killed_and_restarted() -> Result<()> {
    run("follower", LIMIT, async |dir| {
        let mut cluster = Cluster::start(dir, 1, &[]).await?;
        let load = Load::start(cluster.amqp(), "q").await?;
        let leader = inspect::leader(&cluster, shard_of(&cluster, "q").await?).await?;
        let follower = (leader + 1) % 3;
        cluster.kill_node(follower)?;
        println!("writes went on after {:?}", load.goes_on(goes_on()).await?);
        load.confirms(BETWEEN, goes_on()).await?;
        cluster.start_node(follower).await?;
        load.confirms(BETWEEN, goes_on()).await?;
        // The restarted follower counts again: with the other follower gone it is the majority.
        cluster.kill_node((leader + 2) % 3)?;
        println!("writes went on after {:?}", load.goes_on(goes_on()).await?);
        cluster.start_node((leader + 2) % 3).await?;
        load.finish().await
    })
}

#[test]
fn fault_leader_killed_and_restarted() -> Result<()> {
    run("leader", LIMIT, async |dir| {
        let mut cluster = Cluster::start(dir, 1, &[]).await?;
        let load = Load::start(cluster.amqp(), "q").await?;
        let shard = shard_of(&cluster, "q").await?;
        for _ in 0..2 {
            let leader = inspect::leader(&cluster, shard).await?;
            cluster.kill_node(leader)?;
            println!("writes went on after {:?}", load.goes_on(goes_on()).await?);
            cluster.start_node(leader).await?;
            load.confirms(BETWEEN, goes_on()).await?;
        }
        load.finish().await
    })
}

#[test]
fn fault_gateway_killed_client_goes_to_another() -> Result<()> {
    run("gateway", LIMIT, async |dir| {
        let mut cluster = Cluster::start(dir, 2, &[]).await?;
        let load = Load::start(cluster.amqp(), "q").await?;
        for n in [0, 1] {
            cluster.kill_gateway(n)?;
            println!("writes went on after {:?}", load.goes_on(goes_on()).await?);
            load.confirms(BETWEEN, goes_on()).await?;
            cluster.start_gateway(n).await?;
        }
        load.finish().await
    })
}

#[test]
fn fault_all_killed_at_once() -> Result<()> {
    run("all", LIMIT, async |dir| {
        let mut cluster = Cluster::start(dir, 2, &[]).await?;
        let load = Load::start(cluster.amqp(), "q").await?;
        for _ in 0..2 {
            load.confirms(BETWEEN, goes_on()).await?;
            let killed = Instant::now();
            cluster.kill_all()?;
            cluster.start_all().await?;
            load.goes_on(COMES_BACK).await?;
            println!("writes went on {:?} after everything was killed, its start included", killed.elapsed());
        }
        load.finish().await
    })
}

#[test]
fn fault_nothing_is_confirmed_without_a_majority() -> Result<()> {
    run("majority", LIMIT, async |dir| {
        let mut cluster = Cluster::start(dir, 1, &[]).await?;
        let load = Load::start(cluster.amqp(), "q").await?;
        for down in [[0, 1], [1, 2]] {
            for n in down {
                cluster.kill_node(n)?;
            }
            let lost = Instant::now();
            while lost.elapsed() < pause() {
                ensure!(
                    !load.confirmed_since(lost),
                    "a message that was sent without a majority was confirmed"
                );
                // That nothing is confirmed has no event to wait for: the time itself is tested.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            for n in down {
                cluster.spawn_node(n)?;
            }
            for n in down {
                cluster.node_ready(n).await?;
            }
            println!("writes went on after {:?}", load.goes_on(COMES_BACK).await?);
            load.confirms(BETWEEN, goes_on()).await?;
        }
        load.finish().await
    })
}

#[test]
fn fault_each_process_paused_for_a_while() -> Result<()> {
    run("paused", LIMIT * 2, async |dir| {
        let cluster = Cluster::start(dir, 2, &[]).await?;
        let load = Load::start(cluster.amqp(), "q").await?;
        let shard = shard_of(&cluster, "q").await?;
        let leader = inspect::leader(&cluster, shard).await?;
        for n in [leader, (leader + 1) % 3, (leader + 2) % 3] {
            let node = cluster.node(n)?;
            node.signal("STOP")?;
            let stopped = Instant::now();
            println!("node {n} stopped: writes went on after {:?}", load.goes_on(goes_on()).await?);
            // How long a process is stopped is the fault itself: long enough that others take over and go far ahead.
            tokio::time::sleep(pause().saturating_sub(stopped.elapsed())).await;
            node.signal("CONT")?;
            println!("node {n} goes on: writes after {:?}", load.goes_on(goes_on()).await?);
            load.confirms(BETWEEN, goes_on()).await?;
        }
        for n in [0, 1] {
            let gateway = cluster.gateway(n)?;
            gateway.signal("STOP")?;
            println!(
                "gateway {n} stopped: writes went on after {:?}",
                load.goes_on(goes_on() + NOTICES).await?
            );
            // As above: a gateway that was long away comes back.
            tokio::time::sleep(pause()).await;
            gateway.signal("CONT")?;
            load.confirms(BETWEEN, goes_on() + NOTICES).await?;
        }
        load.finish().await
    })
}
