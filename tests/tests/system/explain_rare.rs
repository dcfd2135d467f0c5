//! `longshore explain QUEUE` for reasons that last a moment only, or that no AMQP client can ask for yet: those are
//! made over gRPC, as the gateway of another protocol will.
//!
//! Not here: `taken` (no protocol receives without a connection yet: a gateway's batch with a take is refused),
//! `too_many_leases` (a million deliveries of one shard without an ack) and `no_such_log` (a queue that meta knows and
//! its shard does not; gateways wait for the log before they answer). The delivery crate's tests make them.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use lapin::BasicProperties;
use longshore_tests::system::client::{connect, consume, declare, fill, next};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::process::Process;
use longshore_tests::system::{admin, grpc, http, inspect, run, until};
use longshore_wire::LogId;
use longshore_wire::record::{Form, NewRecord};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
const SOON: Duration = Duration::from_secs(10);
/// How long messages are held back where that is the point, in milliseconds.
const HELD_BACK_MS: u64 = 60_000;

/// Asks the management API as fast as it answers until the reason is named. (The command takes longer to start than
/// some reasons last; it shows the same answer.)
async fn explained_by(cluster: &Cluster, gateway: usize, queue: &str, reason: &str) -> Result<Value> {
    let path = format!("/api/explain/%2F/{queue}");
    let start = std::time::Instant::now();
    let mut last = Value::Null;
    while start.elapsed() < SOON {
        if let Ok(text) = http::get(&cluster.management(gateway), &path).await {
            last = serde_json::from_str(&text)?;
            let reasons = last["delivery"]["reasons"].as_array().into_iter().flatten();
            if let Some(found) = reasons.into_iter().find(|one| one["reason"] == reason) {
                return Ok(found.clone());
            }
        }
        tokio::task::yield_now().await;
    }
    bail!("{queue} was not explained by {reason}; the last answer: {last}")
}

/// The shard and the log of a queue.
async fn place(cluster: &Cluster, queue: &str) -> Result<(u32, LogId)> {
    let listed = admin::queue(&cluster.management(0), queue).await?;
    let shard = listed["shard"].as_u64().context("its shard")? as u32;
    Ok((shard, LogId(listed["log"].as_u64().context("its log")?)))
}

#[test]
fn explain_a_new_leader_waits_for_the_gateways() -> Result<()> {
    run("waiting", LIMIT, async |dir| {
        let cluster = Cluster::start(dir, 2, &[]).await?;
        inspect::wait_for_spread_leaders(&cluster).await?;
        fill(&cluster.amqp()[..1], "q", 0..3, 100).await?;
        let connection = connect(&cluster.amqp()[1..]).await?;
        let (_channel, mut consumer) = consume(&connection, "q", 1).await?;
        next(&mut consumer).await?;
        let (shard, _) = place(&cluster, "q").await?;
        let leader = inspect::leader(&cluster, shard).await?;
        // What the consumer's gateway holds cannot be told to the next leader.
        cluster.gateway(1)?.signal("STOP")?;
        let (explained, moved) = tokio::join!(
            explained_by(&cluster, 0, "q", "waiting_for_gateways"),
            inspect::transfer(&cluster, shard, (leader + 1) % 3)
        );
        moved?;
        let reason = explained?;
        let (sessions, left) = (reason["sessions"].as_u64(), reason["in_ms"].as_u64());
        ensure!(sessions >= Some(1) && sessions <= Some(2) && left <= Some(2_000), "{reason}");
        cluster.gateway(1)?.signal("CONT")
    })
}

#[test]
fn explain_expired_while_its_end_cannot_be_replicated() -> Result<()> {
    run("expired", LIMIT, async |dir| {
        // The leader believes in itself for as long as that.
        let cluster = Cluster::start(dir, 1, &["storage.engine.election_timeout_ms=4000"]).await?;
        let connection = connect(&cluster.amqp()).await?;
        let channel = connection.create_channel().await?;
        declare(&channel, "q").await?;
        let (shard, _) = place(&cluster, "q").await?;
        let leader = inspect::leader(&cluster, shard).await?;
        // A consumer without room keeps the queue under the leader's eyes.
        let (_consuming, mut consumer) = consume(&connection, "q", 1).await?;
        channel.confirm_select(Default::default()).await?;
        let short = BasicProperties::default().with_delivery_mode(2).with_expiration("1000".into());
        for _ in 0..3 {
            let sent =
                channel.basic_publish("".into(), "q".into(), Default::default(), b"text", short.clone());
            ensure!(sent.await?.await?.is_ack(), "a publish was refused");
        }
        next(&mut consumer).await?;
        for follower in [(leader + 1) % 3, (leader + 2) % 3] {
            cluster.node(follower)?.signal("STOP")?;
        }
        let explained = explained_by(&cluster, 0, "q", "expired").await;
        for follower in [(leader + 1) % 3, (leader + 2) % 3] {
            cluster.node(follower)?.signal("CONT")?;
        }
        let reason = explained?;
        ensure!(reason["count"].as_u64() >= Some(1), "{reason}");
        Ok(())
    })
}

#[test]
fn explain_delayed_until() -> Result<()> {
    run("delayed", LIMIT, async |dir| {
        let cluster = Cluster::start(dir, 1, &[]).await?;
        let connection = connect(&cluster.amqp()).await?;
        declare(&connection.create_channel().await?, "q").await?;
        let _consumer = consume(&connection, "q", 10).await?;
        inspect::wait_for_spread_leaders(&cluster).await?;
        let (shard, log) = place(&cluster, "q").await?;
        grpc::submit(&cluster, shard, |batch| {
            let targets = [log];
            let mut record = NewRecord::plain(Form::Amqp, &targets, b"q", &[0; 3]);
            record.delay_ms = HELD_BACK_MS;
            Ok(batch.append(None, &record, &[Bytes::from_static(b"later")])?)
        })
        .await?;
        let reason = explained_by(&cluster, 0, "q", "delayed").await?;
        let left = reason["in_ms"].as_u64().context("when")?;
        ensure!(reason["count"] == 1 && left > HELD_BACK_MS / 2 && left <= HELD_BACK_MS, "{reason}");
        Ok(())
    })
}

/// Makes each read of a file by a process take 300 ms, while the value lives. Returns once all its threads are slow.
async fn slow_reads(dir: &Path, pid: u32) -> Result<Process> {
    const DELAY_US: u32 = 300_000;
    let mut command = Command::new("strace");
    command.args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=pread64", "-e"]);
    command.arg(format!("inject=pread64:delay_enter={DELAY_US}")).arg("-p").arg(pid.to_string());
    let strace = Process::spawn_command(dir, "strace", command)?;
    until("strace to hold every thread", SOON, async || {
        for thread in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let status = std::fs::read_to_string(thread?.path().join("status"))?;
            if status.lines().any(|line| line.starts_with("TracerPid:") && line.ends_with("\t0")) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await?;
    Ok(strace)
}

#[test]
fn explain_the_next_messages_are_being_read() -> Result<()> {
    if Command::new("strace").arg("-V").output().is_err() {
        ensure!(std::env::var_os("CI").is_none(), "strace is missing");
        println!("skipped: strace is not installed");
        return Ok(());
    }
    run("loading", LIMIT, async |dir| {
        // Small segments: only what is sealed has its rows in files.
        let small = ["storage.engine.segment_bytes=1048576", "storage.engine.checkpoint_bytes=1048576"];
        let mut cluster = Cluster::start(dir, 1, &small).await?;
        fill(&cluster.amqp(), "q", 0..40_000, 40).await?;
        // Nothing is in memory after a restart.
        cluster.kill_all()?;
        cluster.start_all().await?;
        inspect::wait_for_spread_leaders(&cluster).await?;
        let (shard, _) = place(&cluster, "q").await?;
        let leader = inspect::leader(&cluster, shard).await?;
        let slow = slow_reads(dir, cluster.node(leader)?.pid()).await?;
        let connection = connect(&cluster.amqp()).await?;
        let (_channel, mut consumer) = consume(&connection, "q", 1_000).await?;
        let reason = explained_by(&cluster, 0, "q", "loading").await?;
        ensure!(reason["from"].is_u64(), "{reason}");
        drop(slow);
        next(&mut consumer).await?;
        Ok(())
    })
}
