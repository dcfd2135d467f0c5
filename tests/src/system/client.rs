//! An AMQP client for tests: connecting with patience, bodies that prove themselves, filling and draining a queue.

use anyhow::{Context, Result, bail, ensure};
use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions};
use lapin::options::{ConfirmSelectOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, PublisherConfirm};
use sha2::{Digest, Sha256};
use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A connection attempt that takes longer is given up.
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// A queue that delivers nothing for so long, though messages are missing, has lost them.
pub const SILENCE: Duration = Duration::from_secs(30);
/// Publishes without a confirm at a time.
const WINDOW: usize = 256;

/// Connects once as guest to virtual host `/`.
pub async fn connect_once(address: &str) -> Result<Connection> {
    connect_as(address, "guest", "guest", "%2f").await
}

/// Connects once; the virtual host is percent-encoded.
pub async fn connect_as(address: &str, user: &str, password: &str, vhost: &str) -> Result<Connection> {
    let uri = format!("amqp://{user}:{password}@{address}/{vhost}?heartbeat=10");
    let connecting = Connection::connect(&uri, ConnectionProperties::default());
    Ok(tokio::time::timeout(CONNECT_TIME, connecting).await.context("no connection in time")??)
}

/// Connects to one of the addresses, trying them in turn for up to half a minute.
pub async fn connect(addresses: &[String]) -> Result<Connection> {
    let start = Instant::now();
    let mut last = None;
    while start.elapsed() < SILENCE {
        for address in addresses {
            match connect_once(address).await {
                Ok(connection) => return Ok(connection),
                Err(error) => last = Some(error),
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Err(last.context("no address")?)
}

/// The AMQP reply code in an error; `None` if the error is something else, for example a lost socket.
pub fn reply_code(error: &lapin::Error) -> Option<u16> {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(error) => Some(error.get_id()),
        _ => None,
    }
}

/// The body of message `number`: the number, filler that depends on it, and the hash of both; `bytes` in all, at
/// least 40.
pub fn body(number: u64, bytes: usize) -> Vec<u8> {
    let mut body = Vec::with_capacity(bytes.max(40));
    body.extend(number.to_be_bytes());
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    while body.len() + 32 < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let left = bytes - 32 - body.len();
        body.extend(&state.to_be_bytes()[..left.min(8)]);
    }
    let hash = Sha256::digest(&body);
    body.extend(hash);
    body
}

/// The number in a body. Errors: its hash does not fit.
pub fn number_of(body: &[u8]) -> Result<u64> {
    ensure!(body.len() >= 40, "a body of {} bytes", body.len());
    let (text, hash) = body.split_at(body.len() - 32);
    ensure!(Sha256::digest(text).as_slice() == hash, "a body with a wrong hash");
    Ok(u64::from_be_bytes(text[..8].try_into()?))
}

/// Persistent, as most publishers send.
pub fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

/// Declares a durable queue.
pub async fn declare(channel: &Channel, queue: &str) -> Result<()> {
    channel.queue_declare(queue.into(), QueueDeclareOptions::durable(), FieldTable::default()).await?;
    Ok(())
}

/// Publishes a persistent message to a queue; the answer resolves when it is confirmed.
pub async fn publish(channel: &Channel, queue: &str, body: &[u8]) -> lapin::Result<PublisherConfirm> {
    channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body, persistent()).await
}

/// Publishes messages `numbers` of `bytes` each to a durable queue; returns when all are confirmed.
pub async fn fill(
    addresses: &[String],
    queue: &str,
    numbers: std::ops::Range<u64>,
    bytes: usize,
) -> Result<()> {
    let connection = connect(addresses).await?;
    let channel = connection.create_channel().await?;
    declare(&channel, queue).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut waiting = VecDeque::new();
    for number in numbers {
        waiting.push_back(publish(&channel, queue, &body(number, bytes)).await?);
        if waiting.len() >= WINDOW
            && let Some(oldest) = waiting.pop_front()
        {
            ensure!(oldest.await?.is_ack(), "a publish was refused");
        }
    }
    for confirm in waiting {
        ensure!(confirm.await?.is_ack(), "a publish was refused");
    }
    connection.close(200, "done".into()).await?;
    Ok(())
}

/// A consumer with a prefetch, on a channel of its own.
pub async fn consume(connection: &Connection, queue: &str, prefetch: u16) -> Result<(Channel, Consumer)> {
    let channel = connection.create_channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let consumer = channel
        .basic_consume(queue.into(), "".into(), BasicConsumeOptions::default(), FieldTable::default())
        .await?;
    Ok((channel, consumer))
}

/// The next delivery. Errors: none for half a minute, or the channel ended.
pub async fn next(consumer: &mut Consumer) -> Result<lapin::message::Delivery> {
    match tokio::time::timeout(SILENCE, consumer.next()).await {
        Ok(Some(delivery)) => Ok(delivery?),
        Ok(None) => bail!("the consumer ended"),
        Err(_) => bail!("no delivery for {SILENCE:?}"),
    }
}

/// Consumes until every number of `wanted` was seen with its right hash, acking each.
pub async fn drain(addresses: &[String], queue: &str, mut wanted: BTreeSet<u64>) -> Result<()> {
    let connection = connect(addresses).await?;
    let (channel, mut consumer) = consume(&connection, queue, 500).await?;
    let mut since_ack = 0;
    while !wanted.is_empty() {
        let delivery = next(&mut consumer).await.with_context(|| {
            format!("{} messages are missing, the first is {:?}", wanted.len(), wanted.first())
        })?;
        wanted.remove(&number_of(&delivery.data)?);
        since_ack += 1;
        if since_ack == 100 || wanted.is_empty() {
            since_ack = 0;
            channel.basic_ack(delivery.delivery_tag, BasicAckOptions { multiple: true }).await?;
        }
    }
    // The channel's orderly end comes after its acks.
    channel.close(200, "done".into()).await?;
    connection.close(200, "done".into()).await?;
    Ok(())
}
