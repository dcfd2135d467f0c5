//! Killed and started again: everything durable is there, also where the cluster was only about to be formed.

use anyhow::{Context, Result, ensure};
use lapin::options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use longshore_io::real::RealDisk;
use longshore_log::Identity;
use longshore_tests::system::client::{connect, declare, drain, fill};
use longshore_tests::system::cluster::{Cluster, Dev};
use longshore_tests::system::run;
use std::path::Path;
use std::time::Duration;

const MESSAGES: u64 = 1_000;

#[test]
fn restart_of_dev_finds_queue_exchange_binding_and_messages() -> Result<()> {
    run("restart", Duration::from_secs(120), async |dir| {
        let mut dev = Dev::start(dir).await?;
        let address = [dev.amqp()];
        let connection = connect(&address).await?;
        let channel = connection.create_channel().await?;
        declare(&channel, "kept").await?;
        let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
        channel
            .exchange_declare("kept.x".into(), lapin::ExchangeKind::Topic, durable, FieldTable::default())
            .await?;
        channel
            .queue_bind(
                "kept".into(),
                "kept.x".into(),
                "a.#".into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            )
            .await?;
        fill(&address, "kept", 0..MESSAGES, 1_024).await?;
        dev.kill()?;
        dev.restart().await?;

        let connection = connect(&address).await?;
        let channel = connection.create_channel().await?;
        let passive = QueueDeclareOptions { passive: true, durable: true, ..QueueDeclareOptions::default() };
        let queue = channel.queue_declare("kept".into(), passive, FieldTable::default()).await?;
        ensure!(queue.message_count() == MESSAGES as u32, "{} of {MESSAGES} messages", queue.message_count());
        let passive = ExchangeDeclareOptions { passive: true, ..durable };
        channel
            .exchange_declare("kept.x".into(), lapin::ExchangeKind::Topic, passive, FieldTable::default())
            .await?;
        // The binding still routes.
        channel.confirm_select(Default::default()).await?;
        let body = longshore_tests::system::client::body(MESSAGES, 64);
        let properties = longshore_tests::system::client::persistent();
        let sent =
            channel.basic_publish("kept.x".into(), "a.b".into(), Default::default(), &body, properties);
        ensure!(sent.await?.await?.is_ack(), "the publish was refused");
        drain(&address, "kept", (0..=MESSAGES).collect()).await
    })
}

/// The data directory as it is while its node does not know yet that the cluster is formed.
fn unsettle(dir: &Path) -> Result<()> {
    let disk = RealDisk::open(dir)?;
    let identity = Identity::load(&disk)?.context("a node has an identity")?;
    ensure!(identity.settled, "the node did not write down that it is of a formed cluster");
    Ok(Identity { settled: false, ..identity }.store(&disk)?)
}

#[test]
fn fault_killed_before_the_cluster_is_formed() -> Result<()> {
    run("unformed", Duration::from_secs(120), async |dir| {
        let mut cluster = Cluster::start(dir, 1, &[]).await?;
        cluster.kill_all()?;
        // They had only written down who they are.
        for n in 0..3 {
            let identity = std::fs::read(cluster.data_dir(n).join("identity"))?;
            std::fs::remove_dir_all(cluster.data_dir(n))?;
            std::fs::create_dir_all(cluster.data_dir(n))?;
            std::fs::write(cluster.data_dir(n).join("identity"), identity)?;
            unsettle(&cluster.data_dir(n))?;
        }
        cluster.start_all().await?;
        fill(&cluster.amqp(), "kept", 0..MESSAGES, 1_024).await?;

        // The cluster is formed, but they died before they wrote that down.
        cluster.kill_all()?;
        (0..3).try_for_each(|n| unsettle(&cluster.data_dir(n)))?;
        cluster.start_all().await?;
        drain(&cluster.amqp(), "kept", (0..MESSAGES).collect()).await
    })
}
