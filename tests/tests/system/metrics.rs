//! What every process shows at `/metrics`: each number moves when that happens which it counts.

use anyhow::{Context, Result, bail, ensure};
use lapin::options::{BasicGetOptions, BasicNackOptions, BasicPublishOptions};
use longshore_tests::system::client::{connect, consume, drain, fill, next};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::{admin, http, inspect, run, until};
use std::collections::BTreeMap;
use std::time::Duration;

type Metrics = BTreeMap<String, f64>;

const MESSAGES: u64 = 200;
/// Gauges of depths are set each 5 s, with their smallest value in the end.
const SHOWN: Duration = Duration::from_secs(20);

fn value(metrics: &Metrics, name: &str) -> f64 {
    metrics.get(name).copied().unwrap_or(0.0)
}

/// Of all nodes together.
async fn of_nodes(cluster: &Cluster) -> Result<Metrics> {
    let mut sums = Metrics::new();
    for n in 0..3 {
        for (name, value) in http::metrics(&cluster.node_http(n)).await? {
            *sums.entry(name).or_insert(0.0) += value;
        }
    }
    Ok(sums)
}

async fn wait_for(cluster: &Cluster, what: &str, holds: impl Fn(&Metrics) -> bool) -> Result<()> {
    until(what, SHOWN, async || {
        let metrics = of_nodes(cluster).await?;
        if holds(&metrics) { Ok(Some(())) } else { bail!("{metrics:?}") }
    })
    .await
}

/// What a gateway must have counted after `something_of_everything`, and how much at least.
const OF_A_GATEWAY: [(&str, f64); 9] = [
    ("longshore_publish_durable_seconds_count", 1.0),
    ("longshore_publish_durable_seconds_sum", 0.000_01),
    ("longshore_gateway_publishes_total", MESSAGES as f64),
    ("longshore_gateway_deliveries_total", MESSAGES as f64),
    ("longshore_gateway_unroutable_total", 1.0),
    ("longshore_amqp_returned_total", 1.0),
    ("longshore_amqp_errors_total", 1.0),
    ("longshore_amqp_connections_opened_total", 2.0),
    ("longshore_amqp_connections", 1.0),
];

/// What each node must have counted.
const OF_A_NODE: [(&str, f64); 7] = [
    ("longshore_log_sync_seconds_count", 1.0),
    ("longshore_log_sync_seconds_sum", 0.000_01),
    ("longshore_log_batch_requests_count", 1.0),
    ("longshore_log_batch_bytes_sum", MESSAGES as f64 * 100.0),
    ("longshore_log_bytes", MESSAGES as f64 * 100.0),
    ("longshore_log_live_bytes", 1.0),
    ("longshore_disk_free_bytes", 1.0),
];

/// Every counter that docs/operations.md names is there before anything happened, but for one that has a series per code.
async fn documented_counters_are_there(cluster: &Cluster) -> Result<()> {
    let docs = include_str!("../../../docs/operations.md");
    let (gateway, nodes) = (http::metrics(&cluster.management(0)).await?, of_nodes(cluster).await?);
    let table = docs.lines().filter(|line| line.starts_with("| `longshore_"));
    let names: Vec<&str> =
        table.flat_map(|line| line.split('`')).filter(|word| word.ends_with("_total")).collect();
    ensure!(names.len() > 15, "the table of metrics was not found: {names:?}");
    for name in names.into_iter().filter(|name| *name != "longshore_amqp_errors_total") {
        ensure!(gateway.contains_key(name) || nodes.contains_key(name), "{name} is not there at the start");
    }
    Ok(())
}

/// Publishes, a return to the publisher, an error, deliveries, a return to the queue, a change of leader.
async fn something_of_everything(cluster: &Cluster, connection: &lapin::Connection) -> Result<()> {
    fill(&cluster.amqp(), "q", 0..MESSAGES, 100).await?;
    let channel = connection.create_channel().await?;
    channel.confirm_select(Default::default()).await?;
    let mandatory = BasicPublishOptions { mandatory: true, ..Default::default() };
    let confirm = channel
        .basic_publish("".into(), "nowhere".into(), mandatory, b"text", Default::default())
        .await?
        .await?;
    ensure!(confirm.take_message().is_some(), "an unroutable message was not returned");
    let missing = channel.basic_get("missing".into(), BasicGetOptions::default()).await;
    ensure!(missing.is_err(), "a get from a queue that does not exist");
    let (channel, mut consumer) = consume(connection, "q", 0).await?;
    let first = next(&mut consumer).await?;
    let back = BasicNackOptions { requeue: true, ..Default::default() };
    channel.basic_nack(first.delivery_tag, back).await?;
    while !next(&mut consumer).await?.redelivered {}
    channel.close(200, "done".into()).await?;
    Ok(())
}

#[test]
fn metrics_of_every_process_move() -> Result<()> {
    run("metrics", Duration::from_secs(120), async |dir| {
        let cluster = Cluster::start(dir, 1, &[]).await?;
        inspect::wait_for_spread_leaders(&cluster).await?;
        documented_counters_are_there(&cluster).await?;
        let changes = value(&of_nodes(&cluster).await?, "longshore_leader_changes_total");
        ensure!(changes >= 7.0, "7 groups have a leader after {changes} changes");
        let connection = connect(&cluster.amqp()).await?;
        something_of_everything(&cluster, &connection).await?;

        let listed = admin::queue(&cluster.management(0), "q").await?;
        let shard = listed["shard"].as_u64().context("the queue's shard")? as u32;
        wait_for(&cluster, "the queue's depth", |all| {
            value(all, "longshore_queue_messages") == MESSAGES as f64
                && value(all, "longshore_queue_messages_deepest") == MESSAGES as f64
                && value(all, "longshore_queues") == 1.0
        })
        .await?;
        let before = of_nodes(&cluster).await?;
        let leader = inspect::leader(&cluster, shard).await?;
        inspect::transfer(&cluster, shard, (leader + 1) % 3).await?;
        drain(&cluster.amqp(), "q", (0..MESSAGES).collect()).await?;

        let gateway = http::metrics(&cluster.management(0)).await?;
        for (name, least) in OF_A_GATEWAY {
            ensure!(value(&gateway, name) >= least, "gateway: {name} is below {least}: {gateway:?}");
        }
        for n in 0..3 {
            let node = http::metrics(&cluster.node_http(n)).await?;
            for (name, least) in OF_A_NODE {
                ensure!(value(&node, name) >= least, "node {n}: {name} is below {least}: {node:?}");
            }
        }
        wait_for(&cluster, "everything that was delivered, returned and moved", |all| {
            value(all, "longshore_delivered_total") >= MESSAGES as f64
                && value(all, "longshore_returned_total") >= 1.0
                && value(all, "longshore_redelivered_total") >= 1.0
                && value(all, "longshore_leader_changes_total")
                    > value(&before, "longshore_leader_changes_total")
                && value(all, "longshore_log_garbage_bytes") > value(&before, "longshore_log_garbage_bytes")
                && value(all, "longshore_queue_messages") == 0.0
                && value(all, "longshore_queues") == 1.0
        })
        .await
    })
}
