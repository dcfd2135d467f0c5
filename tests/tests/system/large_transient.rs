//! Large messages that only memory holds: published through one gateway, consumed through the other.

use anyhow::{Result, ensure};
use lapin::BasicProperties;
use lapin::options::{
    BasicAckOptions, BasicCancelOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions,
};
use lapin::types::FieldTable;
use longshore_tests::system::client::{body, connect_once, consume, next, number_of};
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::{admin, run, until};
use std::time::Duration;

/// Many frames, and far beyond what one message between the parts may have.
const BYTES: usize = 20 << 20;
/// Together below what a transient queue may hold.
const MESSAGES: u64 = 5;

#[test]
fn a_large_transient_message_crosses_two_gateways() -> Result<()> {
    run("large_transient", Duration::from_secs(120), async |dir| {
        let cluster = Cluster::start(dir, 2, &[]).await?;
        let gateways = cluster.amqp();
        let publisher = connect_once(&gateways[0]).await?;
        let consumer = connect_once(&gateways[1]).await?;
        let channel = publisher.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        channel.queue_declare("large".into(), QueueDeclareOptions::default(), FieldTable::default()).await?;
        // The first goes to a consumer that waits, the others wait in the queue, and a small one keeps its place.
        let (consuming, mut deliveries) = consume(&consumer, "large", 0).await?;
        for number in 0..MESSAGES {
            let bytes = if number == 2 { 100 } else { BYTES };
            let sent_body = body(number, bytes);
            let properties = BasicProperties::default().with_delivery_mode(1);
            let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
            let sent = channel.basic_publish("".into(), "large".into(), options, &sent_body, properties);
            let confirm = sent.await?.await?;
            ensure!(confirm.is_ack() && confirm.take_message().is_none(), "message {number} was not taken");
            if number == 0 {
                let delivery = next(&mut deliveries).await?;
                ensure!(delivery.data.len() == BYTES && number_of(&delivery.data)? == 0, "another body");
                consuming.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
                consuming.basic_cancel(deliveries.tag(), BasicCancelOptions::default()).await?;
            }
        }
        let (consuming, mut deliveries) = consume(&consumer, "large", 1).await?;
        for number in 1..MESSAGES {
            let delivery = next(&mut deliveries).await?;
            let found = number_of(&delivery.data)?;
            ensure!(found == number, "message {found} in the place of {number}");
            ensure!(!delivery.redelivered, "message {number} was delivered before");
            consuming.basic_ack(delivery.delivery_tag, BasicAckOptions::default()).await?;
        }
        until("the queue to be empty", Duration::from_secs(20), async || {
            let listed = admin::queue(&cluster.management(0), "large").await?;
            if listed["messages"] == 0 { Ok(Some(())) } else { anyhow::bail!("{listed}") }
        })
        .await
    })
}
