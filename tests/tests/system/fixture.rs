//! A small data directory of three nodes, made by an earlier build and kept in `tests/fixtures`: every later build must
//! open it and find everything. `cargo xtask fixture` makes one of the present formats; what was released stays.
//!
//! Danger: a node's address is part of its cluster's state, so the nodes run where they ran when the fixture was made:
//! on loopback addresses that nothing else uses.

use anyhow::{Context, Result, ensure};
use lapin::ExchangeKind;
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicQosOptions, ExchangeDeclareOptions, QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use longshore_tests::system::admin::admin;
use longshore_tests::system::client::{
    body, connect, connect_as, consume, declare, drain, fill, next, number_of, persistent, publish,
    reply_code,
};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::{inspect, run, until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(120);
/// The formats on disk that this build writes; a new number with the first release that changes one of them.
const FORMAT: u32 = 1;
/// Messages of each queue; every third of `orders` was acked.
const MESSAGES: u64 = 120;
const BODY_BYTES: usize = 100;
/// Large messages that compress well: they fill segments, and one in eight stays, so that segments are rewritten.
const LARGE: u64 = 96;
const LARGE_BYTES: usize = 64 << 10;
const LARGE_KEPT_EACH: u64 = 8;
/// Small files, so that segments are sealed, checkpoints and index files written, and the archive stays small.
const SETTINGS: [&str; 2] = ["storage.engine.segment_bytes=1048576", "storage.engine.checkpoint_bytes=65536"];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn addresses(format: u32) -> Vec<String> {
    (1..=3).map(|n| format!("127.{}.11.{n}:17400", 70 + format % 100)).collect()
}

fn prepare(dir: &Path, format: u32) -> Result<Cluster> {
    Cluster::prepare_at(dir, addresses(format), 1, &SETTINGS)
}

fn stream_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("stream".into()));
    arguments
}

fn durable() -> ExchangeDeclareOptions {
    ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() }
}

fn large(number: u64) -> Vec<u8> {
    vec![number as u8; LARGE_BYTES]
}

/// Fills the queue `large`, and acks most of it; returns once a node has rewritten what is left of a segment.
async fn make_garbage(cluster: &Cluster, connection: &lapin::Connection) -> Result<()> {
    let channel = connection.create_channel().await?;
    declare(&channel, "large").await?;
    channel.confirm_select(Default::default()).await?;
    for number in 0..LARGE {
        ensure!(publish(&channel, "large", &large(number)).await?.await?.is_ack(), "a publish was refused");
    }
    let (channel, mut consumer) = consume(connection, "large", u16::try_from(LARGE)?).await?;
    for number in 0..LARGE {
        let delivery = next(&mut consumer).await?;
        if !number.is_multiple_of(LARGE_KEPT_EACH) {
            channel.basic_ack(delivery.delivery_tag, Default::default()).await?;
        }
    }
    channel.close(200, "done".into()).await?;
    until("segments to be rewritten", Duration::from_secs(60), async || {
        let mut with_store_files = 0;
        for n in 0..3 {
            let node = inspect::ask(&cluster.node_address(n), "node").await?;
            with_store_files += u32::from(node["store_files"].as_u64() > Some(0));
        }
        Ok((with_store_files == 3).then_some(()))
    })
    .await
}

/// Declares and publishes what [`check`] looks for.
async fn furnish(cluster: &Cluster) -> Result<()> {
    let amqp = cluster.amqp();
    fill(&amqp, "orders", 0..MESSAGES, BODY_BYTES).await?;
    let connection = connect(&amqp).await?;
    let channel = connection.create_channel().await?;
    channel.queue_declare("events".into(), QueueDeclareOptions::durable(), stream_arguments()).await?;
    channel.exchange_declare("x".into(), ExchangeKind::Topic, durable(), FieldTable::default()).await?;
    declare(&channel, "bound").await?;
    let key = "a.*.c".into();
    channel.queue_bind("bound".into(), "x".into(), key, Default::default(), FieldTable::default()).await?;
    channel.confirm_select(Default::default()).await?;
    for number in 0..MESSAGES {
        for (exchange, key) in [("", "events"), ("x", "a.b.c")] {
            let text = body(number, BODY_BYTES);
            let sent =
                channel.basic_publish(exchange.into(), key.into(), Default::default(), &text, persistent());
            ensure!(sent.await?.await?.is_ack(), "a publish was refused");
        }
    }
    channel.basic_qos(u16::try_from(MESSAGES)?, BasicQosOptions::default()).await?;
    let mut consumer =
        channel.basic_consume("orders".into(), "".into(), Default::default(), FieldTable::default()).await?;
    for _ in 0..MESSAGES {
        let delivery = next(&mut consumer).await?;
        if number_of(&delivery.data)?.is_multiple_of(3) {
            channel.basic_ack(delivery.delivery_tag, Default::default()).await?;
        }
    }
    channel.close(200, "done".into()).await?;
    make_garbage(cluster, &connection).await?;
    let management = cluster.management(0);
    admin(&management, &["add-vhost", "tenant"]).await?;
    admin(&management, &["add-user", "reader", "secret"]).await?;
    admin(&management, &["set-permissions", "reader", "^$", "^$", "^orders$", "--vhost", "/"]).await?;
    Ok(())
}

/// Everything that [`furnish`] made is there.
async fn check(cluster: &Cluster) -> Result<()> {
    let amqp = cluster.amqp();
    let vhosts = admin(&cluster.management(0), &["vhosts"]).await?;
    let names: Vec<_> = vhosts.as_array().into_iter().flatten().map(|vhost| &vhost["name"]).collect();
    ensure!(names.iter().any(|name| *name == "tenant"), "virtual hosts: {names:?}");

    let reader = connect_as(&amqp[0], "reader", "secret", "%2f").await?;
    let channel = reader.create_channel().await?;
    ensure!(channel.basic_get("orders".into(), Default::default()).await?.is_some(), "nothing to read");
    channel.close(200, "done".into()).await?;
    let refused = reader.create_channel().await?.queue_delete("orders".into(), Default::default()).await;
    ensure!(refused.is_err_and(|error| reply_code(&error) == Some(403)), "a reader may delete");
    reader.close(200, "done".into()).await?;

    let connection = connect(&amqp).await?;
    let channel = connection.create_channel().await?;
    let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
    for (queue, messages) in [("orders", MESSAGES * 2 / 3), ("bound", MESSAGES)] {
        let declared = channel.queue_declare(queue.into(), passive, FieldTable::default()).await?;
        let count = u64::from(declared.message_count());
        // What the reader got and did not settle may not be back yet.
        ensure!(count == messages || count + 1 == messages, "{queue}: {count} instead of {messages}");
    }
    drain(&amqp, "orders", (0..MESSAGES).filter(|number| !number.is_multiple_of(3)).collect()).await?;
    drain(&amqp, "bound", (0..MESSAGES).collect()).await?;

    for number in (0..LARGE).step_by(LARGE_KEPT_EACH as usize) {
        let got = channel.basic_get("large".into(), BasicGetOptions { no_ack: true }).await?;
        let got = got.context("a large message is missing")?;
        ensure!(got.delivery.data == large(number), "large message {number} is another");
    }

    channel.basic_qos(100, BasicQosOptions::default()).await?;
    let kept =
        channel.queue_declare("events".into(), QueueDeclareOptions::durable(), stream_arguments()).await?;
    ensure!(u64::from(kept.message_count()) == MESSAGES, "the stream says it keeps {}", kept.message_count());
    let mut first = FieldTable::default();
    first.insert("x-stream-offset".into(), AMQPValue::LongString("first".into()));
    let options = BasicConsumeOptions::default();
    let mut stream = channel.basic_consume("events".into(), "".into(), options, first).await?;
    for number in 0..MESSAGES {
        let delivery = next(&mut stream).await?;
        ensure!(number_of(&delivery.data)? == number, "the stream's message {number} is another");
        channel.basic_ack(delivery.delivery_tag, Default::default()).await?;
    }
    channel.close(200, "done".into()).await?;

    // The exchange, its kind, and the binding.
    let channel = connection.create_channel().await?;
    channel.exchange_declare("x".into(), ExchangeKind::Topic, durable(), FieldTable::default()).await?;
    channel.confirm_select(Default::default()).await?;
    let text = body(MESSAGES, BODY_BYTES);
    let sent = channel.basic_publish("x".into(), "a.new.c".into(), Default::default(), &text, persistent());
    ensure!(sent.await?.await?.is_ack(), "a publish was refused");
    drain(&amqp, "bound", [MESSAGES].into()).await
}

/// `tar ACTION ARCHIVE -C DIR MEMBERS...`
fn tar(action: &str, archive: &Path, dir: &Path, members: &[&str]) -> Result<()> {
    let mut command = Command::new("tar");
    command.arg(action).arg(archive).arg("-C").arg(dir).args(members);
    let status = command.status().context("tar is missing")?;
    ensure!(status.success(), "tar {action} {}: {status}", archive.display());
    Ok(())
}

#[test]
fn fixture_of_every_format_opens() -> Result<()> {
    for format in 1..=FORMAT {
        run("fixture", LIMIT, async |dir| {
            tar("-xzf", &folder().join(format!("data-v{format}.tar.gz")), dir, &[])?;
            let mut cluster = prepare(dir, format)?;
            cluster.start_all().await?;
            check(&cluster).await
        })?;
    }
    Ok(())
}

/// `cargo xtask fixture` runs it.
#[test]
#[ignore = "writes tests/fixtures; by cargo xtask fixture only"]
fn fixture_is_made() -> Result<()> {
    run("fixture", LIMIT, async |dir| {
        let mut cluster = prepare(dir, FORMAT)?;
        cluster.start_all().await?;
        inspect::wait_for_spread_leaders(&cluster).await?;
        furnish(&cluster).await?;
        cluster.stop_all().await?;
        std::fs::create_dir_all(folder())?;
        let archive = folder().join(format!("data-v{FORMAT}.tar.gz"));
        tar("-czf", &archive, dir, &["node0", "node1", "node2"])?;
        println!("{}: {} bytes", archive.display(), archive.metadata()?.len());
        Ok(())
    })
}
