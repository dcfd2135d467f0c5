//! The helpers of the suite: a scene for each test, waiting until something holds, and refusals.

use futures_lite::StreamExt;
use lapin::message::{BasicGetMessage, Delivery};
use lapin::options::{
    BasicConsumeOptions, BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeDeclareOptions,
    ExchangeDeleteOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};
use lapin::{BasicProperties, Channel, Connection, ConnectionProperties, Consumer, ErrorKind, ExchangeKind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long something that must come may take.
pub const PATIENCE: Duration = Duration::from_secs(10);
/// How long we look for what must not come.
const IDLE: Duration = Duration::from_millis(300);

/// Why a test failed: an error of the client, or a text.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;
pub type Outcome<T = ()> = Result<T, Failure>;

/// Fails unless it holds.
pub fn ensure(holds: bool, why: impl Into<String>) -> Outcome {
    if holds { Ok(()) } else { Err(why.into().into()) }
}

pub fn equal<T: PartialEq + std::fmt::Debug>(got: T, wanted: T) -> Outcome {
    ensure(got == wanted, format!("got {got:?}, expected {wanted:?}"))
}

/// A name that no other test uses.
fn unique() -> ShortString {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    format!("rs-{now:x}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)).into()
}

pub fn numbers(count: usize) -> Vec<String> {
    (0..count).map(|n| n.to_string()).collect()
}

pub fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(LongString::from(value))
}

pub fn table<const N: usize>(fields: [(&str, AMQPValue); N]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in fields {
        table.insert(name.into(), value);
    }
    table
}

pub fn persistent() -> BasicProperties {
    BasicProperties::default().with_delivery_mode(2)
}

pub fn body(message: &BasicGetMessage) -> String {
    String::from_utf8_lossy(&message.delivery.data).into_owned()
}

pub async fn connect(uri: &str) -> lapin::Result<Connection> {
    Connection::connect(uri, ConnectionProperties::default()).await
}

/// The code and text with which the broker refused something.
pub fn refusal<T>(result: lapin::Result<T>) -> Outcome<(u16, String)> {
    match result {
        Ok(_) => Err("was not refused".into()),
        Err(error) => match error.kind() {
            ErrorKind::ProtocolError(refusal) => Ok((refusal.get_id(), refusal.get_message().to_string())),
            _ => Err(error.into()),
        },
    }
}

/// The broker refused it with this code; answers the text.
pub fn refused<T>(code: u16, result: lapin::Result<T>) -> Outcome<String> {
    let (got, text) = refusal(result)?;
    ensure(got == code, format!("{got} {text}, expected {code}"))?;
    Ok(text)
}

/// A consumer's next message, waited for.
pub async fn next(consumer: &mut Consumer) -> Outcome<Delivery> {
    match tokio::time::timeout(PATIENCE, consumer.next()).await? {
        Some(delivery) => Ok(delivery?),
        None => Err("the consumer ended".into()),
    }
}

pub async fn take(consumer: &mut Consumer, count: usize) -> Outcome<Vec<Delivery>> {
    let mut got = Vec::new();
    while got.len() < count {
        got.push(next(consumer).await?);
    }
    Ok(got)
}

/// No more messages come to the consumer.
pub async fn silent(consumer: &mut Consumer) -> Outcome {
    match tokio::time::timeout(IDLE, consumer.next()).await {
        Ok(Some(delivery)) => Err(format!("came unasked: {:?}", delivery?.data).into()),
        Ok(None) | Err(_) => Ok(()),
    }
}

pub fn bodies_of(messages: &[Delivery]) -> Vec<String> {
    messages.iter().map(|message| String::from_utf8_lossy(&message.data).into_owned()).collect()
}

/// A connection with a channel in confirm mode. [`Scene::end`] removes what was declared.
pub struct Scene {
    uri: String,
    pub connection: Connection,
    pub channel: Channel,
    queues: Vec<ShortString>,
    exchanges: Vec<ShortString>,
}

impl Scene {
    pub async fn begin(uri: &str) -> Outcome<Scene> {
        let connection = connect(uri).await?;
        let channel = confirming(&connection).await?;
        Ok(Scene { uri: uri.to_owned(), connection, channel, queues: Vec::new(), exchanges: Vec::new() })
    }

    pub async fn end(mut self) -> Outcome {
        if !self.connection.status().connected() {
            self.connection = connect(&self.uri).await?;
        }
        let channel = self.connection.create_channel().await?;
        for queue in self.queues {
            channel.queue_delete(queue, QueueDeleteOptions::default()).await?;
        }
        for exchange in self.exchanges {
            channel.exchange_delete(exchange, ExchangeDeleteOptions::default()).await?;
        }
        Ok(self.connection.close(200, "done".into()).await?)
    }

    /// Closes the channel, which returns what it has not acked, and opens another.
    pub async fn reopen(&mut self) -> Outcome {
        self.channel.close(200, "done".into()).await?;
        self.channel = confirming(&self.connection).await?;
        Ok(())
    }

    pub async fn queue(&mut self) -> Outcome<ShortString> {
        self.queue_with(FieldTable::default()).await
    }

    pub async fn queue_with(&mut self, arguments: FieldTable) -> Outcome<ShortString> {
        let name = unique();
        self.channel.queue_declare(name.clone(), QueueDeclareOptions::durable(), arguments).await?;
        self.queues.push(name.clone());
        Ok(name)
    }

    pub async fn private_queue(&self) -> Outcome<ShortString> {
        let queue = self
            .channel
            .queue_declare("".into(), QueueDeclareOptions::exclusive(), FieldTable::default())
            .await?;
        Ok(queue.name().clone())
    }

    pub async fn exchange(&mut self, kind: ExchangeKind) -> Outcome<ShortString> {
        self.exchange_with(kind, FieldTable::default()).await
    }

    pub async fn exchange_with(&mut self, kind: ExchangeKind, arguments: FieldTable) -> Outcome<ShortString> {
        let name = unique();
        self.channel
            .exchange_declare(name.clone(), kind, ExchangeDeclareOptions::default(), arguments)
            .await?;
        self.exchanges.push(name.clone());
        Ok(name)
    }

    pub async fn bind(
        &self,
        queue: &ShortString,
        exchange: &ShortString,
        key: &str,
        arguments: FieldTable,
    ) -> Outcome {
        let options = QueueBindOptions::default();
        Ok(self.channel.queue_bind(queue.clone(), exchange.clone(), key.into(), options, arguments).await?)
    }

    /// Publishes persistent messages to a queue and waits for their confirms.
    pub async fn send<B: AsRef<[u8]>>(&self, queue: &ShortString, bodies: &[B]) -> Outcome {
        self.send_to(&"".into(), queue.as_str(), bodies).await
    }

    pub async fn send_to<B: AsRef<[u8]>>(&self, exchange: &ShortString, key: &str, bodies: &[B]) -> Outcome {
        let mut confirms = Vec::new();
        for body in bodies {
            let options = BasicPublishOptions::default();
            confirms.push(
                self.channel
                    .basic_publish(exchange.clone(), key.into(), options, body.as_ref(), persistent())
                    .await?,
            );
        }
        for confirm in confirms {
            ensure(confirm.await?.is_ack(), "a message was refused")?;
        }
        Ok(())
    }

    pub async fn publish(
        &self,
        exchange: &ShortString,
        key: &str,
        body: &str,
        properties: BasicProperties,
    ) -> Outcome {
        let options = BasicPublishOptions::default();
        let confirm = self
            .channel
            .basic_publish(exchange.clone(), key.into(), options, body.as_bytes(), properties)
            .await?;
        ensure(confirm.await?.is_ack(), "the message was refused")
    }

    /// The next message of a queue, waited for.
    pub async fn get(&self, queue: &ShortString, no_ack: bool) -> Outcome<BasicGetMessage> {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(message) = self.channel.basic_get(queue.clone(), BasicGetOptions { no_ack }).await? {
                return Ok(message);
            }
            ensure(Instant::now() < end, "it did not come in time")?;
            pause().await;
        }
    }

    pub async fn bodies(&self, queue: &ShortString, count: usize) -> Outcome<Vec<String>> {
        let mut bodies = Vec::new();
        while bodies.len() < count {
            bodies.push(body(&self.get(queue, true).await?));
        }
        Ok(bodies)
    }

    pub async fn empty(&self, queue: &ShortString) -> Outcome {
        let message = self.channel.basic_get(queue.clone(), BasicGetOptions { no_ack: true }).await?;
        ensure(message.is_none(), format!("{queue} is not empty"))
    }

    /// The queue holds these messages and no others.
    pub async fn holds<B: AsRef<str>>(&self, queue: &ShortString, bodies: &[B]) -> Outcome {
        let wanted: Vec<String> = bodies.iter().map(|body| body.as_ref().to_owned()).collect();
        equal(self.bodies(queue, bodies.len()).await?, wanted)?;
        self.empty(queue).await
    }

    pub async fn passive(&self, queue: &ShortString) -> lapin::Result<u32> {
        let options = QueueDeclareOptions::default().passive();
        Ok(self.channel.queue_declare(queue.clone(), options, FieldTable::default()).await?.message_count())
    }

    /// Waits until a queue holds so many messages.
    pub async fn until_count(&self, queue: &ShortString, count: u32) -> Outcome {
        let end = Instant::now() + PATIENCE;
        while self.passive(queue).await? != count {
            ensure(Instant::now() < end, format!("{queue} did not come to {count} messages in time"))?;
            pause().await;
        }
        Ok(())
    }

    pub async fn consume(&self, queue: &ShortString, no_ack: bool) -> lapin::Result<Consumer> {
        consume(&self.channel, queue, BasicConsumeOptions { no_ack, ..Default::default() }).await
    }
}

pub async fn consume(
    channel: &Channel,
    queue: &ShortString,
    options: BasicConsumeOptions,
) -> lapin::Result<Consumer> {
    channel.basic_consume(queue.clone(), "".into(), options, FieldTable::default()).await
}

pub async fn confirming(connection: &Connection) -> lapin::Result<Channel> {
    let channel = connection.create_channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    Ok(channel)
}

async fn pause() {
    tokio::time::sleep(Duration::from_millis(5)).await;
}
