//! Deliveries across a change of leader, and replies across gateways.

use anyhow::{Context, Result, ensure};
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Connection};
use longshore_tests::system::client::{connect, consume, declare, fill, next, number_of, persistent};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::{admin, full_size, inspect, run, until};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// Requests, each with a reply queue of its own.
const ROUNDS: u64 = 10_000;
/// Clients that ask at the same time.
const REQUESTERS: usize = 8;

/// A consumer takes `unacked` messages without acking, the queue's leader changes twice, and only what is published then comes.
fn transfer_keeps_what_is_out(name: &str, unacked: u64, prefetch: u16) -> Result<()> {
    run(name, Duration::from_secs(120), async |dir| {
        let cluster = Cluster::start(dir, 1, &[]).await?;
        // What is on its way while a leader moves by itself would come again, marked so.
        inspect::wait_for_spread_leaders(&cluster).await?;
        fill(&cluster.amqp(), "q", 0..unacked, 100).await?;
        let connection = connect(&cluster.amqp()).await?;
        let (channel, mut consumer) = consume(&connection, "q", prefetch).await?;
        let mut seen = BTreeSet::new();
        for _ in 0..unacked {
            let delivery = next(&mut consumer).await?;
            let number = number_of(&delivery.data)?;
            ensure!(seen.insert(number), "message {number} came twice");
            ensure!(!delivery.redelivered, "message {number} is marked, behind {} others", seen.len());
        }
        let listed = admin::queue(&cluster.management(0), "q").await?;
        let shard = listed["shard"].as_u64().context("the queue's shard")? as u32;
        let leader = inspect::leader(&cluster, shard).await?;
        let mut published = unacked;
        for to in [(leader + 1) % 3, (leader + 2) % 3] {
            inspect::transfer(&cluster, shard, to).await?;
            // What is published now comes, and nothing else does.
            fill(&cluster.amqp(), "q", published..published + 100, 100).await?;
            for _ in 0..100 {
                let delivery = next(&mut consumer).await?;
                let number = number_of(&delivery.data)?;
                ensure!(number >= published && seen.insert(number), "message {number} was delivered again");
            }
            published += 100;
        }
        // Tags count from 1. Half of it is acked, and the rest comes again once the connection is gone.
        let acked = published / 2;
        channel.basic_ack(acked, BasicAckOptions { multiple: true }).await?;
        connection.close(200, "done".into()).await?;
        let connection = connect(&cluster.amqp()).await?;
        let (channel, mut consumer) = consume(&connection, "q", prefetch).await?;
        for number in acked..published {
            let delivery = next(&mut consumer).await?;
            let came = number_of(&delivery.data)?;
            ensure!(delivery.redelivered && came == number, "{came} came instead of {number}");
        }
        channel.basic_ack(published - acked, BasicAckOptions { multiple: true }).await?;
        until("all acks to be taken", Duration::from_secs(20), async || {
            let listed = admin::queue(&cluster.management(0), "q").await?;
            if listed["messages"] == 0 { Ok(Some(())) } else { anyhow::bail!("{listed}") }
        })
        .await
    })
}

#[test]
fn fault_leader_transfer_delivers_no_unacked_message_again() -> Result<()> {
    transfer_keeps_what_is_out("transfer", 1_000, 2_000)
}

/// A consumer without prefetch may have more out than one item of a stream can name.
#[test]
fn fault_leader_transfer_keeps_more_than_one_item_can_name() -> Result<()> {
    transfer_keeps_what_is_out("transfer-many", 400_000, 0)
}

/// Answers every request with its own body, for ever.
async fn serve(connection: &Connection) -> Result<()> {
    let channel = connection.create_channel().await?;
    declare(&channel, "rpc").await?;
    let (channel, mut consumer) = consume(connection, "rpc", 100).await?;
    loop {
        // Silence is no error here: the requesters decide when it is over.
        let Ok(request) = next(&mut consumer).await else { return Ok(()) };
        let reply_to = request.properties.reply_to().clone().context("a request without reply_to")?;
        let sent = channel.basic_publish(
            "".into(),
            reply_to,
            BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() },
            &request.data,
            BasicProperties::default(),
        );
        sent.await?.await?;
        channel.basic_ack(request.delivery_tag, BasicAckOptions::default()).await?;
    }
}

/// One round: a fresh exclusive queue with the server's name, one request, its reply.
async fn round(connection: &Connection, number: u64) -> Result<()> {
    let channel = connection.create_channel().await?;
    let exclusive = QueueDeclareOptions::exclusive();
    let queue = channel.queue_declare("".into(), exclusive, FieldTable::default()).await?;
    let no_ack = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    let mut replies =
        channel.basic_consume(queue.name().clone(), "".into(), no_ack, FieldTable::default()).await?;
    let body = longshore_tests::system::client::body(number, 100);
    let properties = persistent().with_reply_to(queue.name().clone());
    channel
        .basic_publish("".into(), "rpc".into(), BasicPublishOptions::default(), &body, properties)
        .await?
        .await?;
    let reply = next(&mut replies).await.with_context(|| {
        let (channel, connection) = (channel.status().connected(), connection.status().connected());
        format!("round {number}: the reply is lost; channel open: {channel}, connection open: {connection}")
    })?;
    ensure!(number_of(&reply.data)? == number, "round {number} got another's reply");
    channel.queue_delete(queue.name().clone(), Default::default()).await?;
    channel.close(200, "done".into()).await?;
    Ok(())
}

#[test]
fn fault_replies_over_two_gateways_are_never_lost() -> Result<()> {
    run("replies", Duration::from_secs(if full_size() { 900 } else { 400 }), async |dir| {
        let cluster = Cluster::start(dir, 2, &[]).await?;
        // Transient queues live with their shard's leader: one that moves may lose them.
        inspect::wait_for_spread_leaders(&cluster).await?;
        let addresses = cluster.amqp();
        let server = connect(&addresses[1..]).await?;
        let channel = server.create_channel().await?;
        declare(&channel, "rpc").await?;
        let serving = tokio::spawn(async move { serve(&server).await });
        let start = Instant::now();
        let requesters: Vec<_> = (0..REQUESTERS)
            .map(|first| {
                let address = addresses[..1].to_vec();
                tokio::spawn(async move {
                    let connection = connect(&address).await?;
                    for number in (0..ROUNDS).skip(first).step_by(REQUESTERS) {
                        round(&connection, number).await?;
                    }
                    anyhow::Ok(())
                })
            })
            .collect();
        for requester in requesters {
            requester.await??;
        }
        println!("{ROUNDS} rounds in {:?}", start.elapsed());
        serving.abort();
        Ok(())
    })
}
