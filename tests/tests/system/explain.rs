//! `longshore explain QUEUE`, one test per reason that a client or a fault can make.
//!
//! Those that last a moment only, or that no AMQP client can ask for yet, are in `explain_rare`.

use anyhow::{Context, Result, bail, ensure};
use lapin::options::{BasicGetOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use longshore_tests::system::admin::admin;
use longshore_tests::system::client::{connect, consume, declare, fill, next, persistent};
use longshore_tests::system::cluster::{Cluster, Dev};
use longshore_tests::system::{inspect, run, until};
use serde_json::Value;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(90);
const SOON: Duration = Duration::from_secs(15);

fn reasons(explained: &Value) -> Vec<&Value> {
    explained["delivery"]["reasons"].as_array().into_iter().flatten().collect()
}

/// Asks until the reason is named; the reason's object.
async fn explained_by(management: &str, queue: &str, reason: &str) -> Result<Value> {
    until(&format!("{queue} to be explained by {reason}"), SOON, async || {
        let explained = admin(management, &["explain", queue]).await?;
        match reasons(&explained).into_iter().find(|one| one["reason"] == reason) {
            Some(found) => Ok(Some(found.clone())),
            None => bail!("{explained}"),
        }
    })
    .await
}

/// Runs on `dev` with a connection and a durable queue `q` of `messages` messages.
fn on_dev<F>(name: &str, messages: u64, test: F) -> Result<()>
where
    F: AsyncFnOnce(&Dev, lapin::Connection) -> Result<()>,
{
    run(name, LIMIT, async |dir| {
        let dev = Dev::start(dir).await?;
        let addresses = [dev.amqp()];
        fill(&addresses, "q", 0..messages, 100).await?;
        let connection = connect(&addresses).await?;
        test(&dev, connection).await
    })
}

#[test]
fn explain_no_consumer() -> Result<()> {
    on_dev("no-consumer", 3, async |dev, _| {
        explained_by(&dev.management(), "q", "no_consumer").await?;
        let explained = admin(&dev.management(), &["explain", "q"]).await?;
        ensure!(explained["delivery"]["ready"] == 3, "{explained}");
        Ok(())
    })
}

#[test]
fn explain_empty() -> Result<()> {
    on_dev("empty", 0, async |dev, connection| {
        let _consumer = consume(&connection, "q", 10).await?;
        explained_by(&dev.management(), "q", "empty").await?;
        Ok(())
    })
}

#[test]
fn explain_no_credit_and_leased() -> Result<()> {
    on_dev("no-credit", 5, async |dev, connection| {
        let (_channel, mut consumer) = consume(&connection, "q", 2).await?;
        next(&mut consumer).await?;
        next(&mut consumer).await?;
        explained_by(&dev.management(), "q", "no_credit").await?;
        let leased = explained_by(&dev.management(), "q", "leased").await?;
        ensure!(leased["by"]["consumer"] != 0, "leased by nobody: {leased}");
        let connections = admin(&dev.management(), &["connections"]).await?;
        let connection = connections[0]["id"].as_u64().context("no connection is listed")?;
        ensure!(leased["by"]["connection"] == connection, "{leased} is not of connection {connection}");
        let explained = admin(&dev.management(), &["explain", "q"]).await?;
        ensure!(explained["delivery"]["unacked"] == 2 && explained["delivery"]["ready"] == 3, "{explained}");
        Ok(())
    })
}

#[test]
fn explain_out_with_a_get() -> Result<()> {
    on_dev("get", 1, async |dev, connection| {
        let channel = connection.create_channel().await?;
        let got = channel.basic_get("q".into(), BasicGetOptions { no_ack: false }).await?;
        ensure!(got.is_some(), "nothing to get");
        let leased = explained_by(&dev.management(), "q", "leased").await?;
        ensure!(leased["by"]["consumer"] == 0, "not by a get: {leased}");
        Ok(())
    })
}

#[test]
fn explain_single_active_consumer() -> Result<()> {
    on_dev("single-active", 0, async |dev, connection| {
        let channel = connection.create_channel().await?;
        let mut arguments = FieldTable::default();
        arguments.insert("x-single-active-consumer".into(), AMQPValue::Boolean(true));
        channel.queue_declare("sac".into(), QueueDeclareOptions::durable(), arguments).await?;
        // The one that is served has its prefetch used up; the other could take more, and may not.
        let (_first, mut active) = consume(&connection, "sac", 1).await?;
        let _second = consume(&connection, "sac", 10).await?;
        for _ in 0..2 {
            channel
                .basic_publish("".into(), "sac".into(), Default::default(), b"text", persistent())
                .await?
                .await?;
        }
        next(&mut active).await?;
        let reason = explained_by(&dev.management(), "sac", "single_active").await?;
        ensure!(reason["standing_by"] == 1, "{reason}");
        Ok(())
    })
}

#[test]
fn explain_a_queue_that_is_missing() -> Result<()> {
    on_dev("missing", 0, async |dev, _| {
        let error =
            admin(&dev.management(), &["explain", "nowhere"]).await.err().map(|error| error.to_string());
        ensure!(error.as_ref().is_some_and(|text| text.contains("nowhere")), "{error:?}");
        Ok(())
    })
}

#[test]
fn explain_the_consumers_gateway_is_gone() -> Result<()> {
    run("gateway-gone", LIMIT, async |dir| {
        let mut cluster = Cluster::start(dir, 2, &[]).await?;
        fill(&cluster.amqp()[1..], "q", 0..3, 100).await?;
        let connection = connect(&cluster.amqp()[..1]).await?;
        let (_channel, mut consumer) = consume(&connection, "q", 1).await?;
        next(&mut consumer).await?;
        cluster.kill_gateway(0)?;
        explained_by(&cluster.management(1), "q", "gateway_away").await?;
        // Once its lease is over, its consumers are gone.
        explained_by(&cluster.management(1), "q", "no_consumer").await?;
        Ok(())
    })
}

#[test]
fn explain_no_leader_without_a_majority() -> Result<()> {
    run("no-majority", LIMIT, async |dir| {
        let mut cluster = Cluster::start(dir, 1, &[]).await?;
        let connection = connect(&cluster.amqp()).await?;
        declare(&connection.create_channel().await?, "q").await?;
        let listed = longshore_tests::system::admin::queue(&cluster.management(0), "q").await?;
        let shard = listed["shard"].as_u64().unwrap_or(0) as u32;
        let leader = inspect::leader(&cluster, shard).await?;
        for n in [(leader + 1) % 3, (leader + 2) % 3] {
            cluster.kill_node(n)?;
        }
        until("the missing majority to be told", SOON, async || {
            let text = match admin(&cluster.management(0), &["explain", "q"]).await {
                Ok(explained) => explained.to_string(),
                Err(error) => error.to_string(),
            };
            let told = ["no_majority", "no_leader", "no leader"].iter().any(|reason| text.contains(reason));
            if told { Ok(Some(())) } else { bail!("{text}") }
        })
        .await
    })
}
