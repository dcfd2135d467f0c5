//! What clients declare, bind, consume and get: queues, exchanges, bindings, consumers.

use super::{ConsumerTag, Delivery};
use bytes::Bytes;
use longshore_wire::LogId;
use longshore_wire::spec::LogSpec;

/// How a queue is named in a declare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueName {
    /// The client chose it.
    Given(String),
    /// The broker makes one, unique in the namespace, that begins with this (`amq.gen-`).
    Generated(&'static str),
}

/// What a queue is declared with.
#[derive(Clone, Debug)]
pub struct QueueDeclare {
    /// Its name.
    pub name: QueueName,
    /// Survives a restart of everything; else it is transient.
    pub durable: bool,
    /// Only this connection uses it, and it goes with it. Exclusive queues are never durable here.
    pub exclusive: bool,
    /// Goes when its last consumer goes.
    pub auto_delete: bool,
    /// The arguments as the client gave them; shown, and compared byte for byte where the adapter does not.
    pub arguments: Bytes,
    /// Settings of the log.
    pub spec: LogSpec,
    /// Goes after this long without use, milliseconds; 0: never.
    pub expires_ms: u64,
    /// One consumer at a time.
    pub single_active: bool,
    /// What the client asked for: `classic`, `quorum`, `stream`.
    pub kind: String,
}

/// What a queue is. Equivalence checks compare with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueInfo {
    /// Its name.
    pub name: String,
    /// Its log.
    pub log: LogId,
    /// Survives a restart.
    pub durable: bool,
    /// Belongs to one connection.
    pub exclusive: bool,
    /// Goes with its last consumer.
    pub auto_delete: bool,
    /// As declared.
    pub arguments: Bytes,
    /// Settings of the log; `None` for a transient queue of another connection.
    pub spec: Option<LogSpec>,
    /// Milliseconds without use; 0: never.
    pub expires_ms: u64,
    /// One consumer at a time.
    pub single_active: bool,
    /// `classic`, `quorum`, `stream`.
    pub kind: String,
    /// Whether the asking connection may use it (false: exclusive to another one).
    pub accessible: bool,
}

/// A queue after a declare, or looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueState {
    /// Its name.
    pub name: String,
    /// Messages that could be delivered now.
    pub ready: u64,
    /// Consumers, of all gateways.
    pub consumers: u64,
    /// Whether this declare made it.
    pub created: bool,
}

/// How an exchange routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExchangeKind {
    /// By equal key.
    Direct,
    /// To all.
    Fanout,
    /// By pattern with `*` and `#` over words between dots.
    Topic,
    /// By headers.
    Headers,
}

impl ExchangeKind {
    /// The kind of that name.
    pub fn parse(name: &str) -> Option<ExchangeKind> {
        Some(match name {
            "direct" => ExchangeKind::Direct,
            "fanout" => ExchangeKind::Fanout,
            "topic" => ExchangeKind::Topic,
            "headers" => ExchangeKind::Headers,
            _ => return None,
        })
    }

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            ExchangeKind::Direct => "direct",
            ExchangeKind::Fanout => "fanout",
            ExchangeKind::Topic => "topic",
            ExchangeKind::Headers => "headers",
        }
    }
}

/// What an exchange is (declared with, and looked up).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExchangeInfo {
    /// Its name; empty only for the default exchange.
    pub name: String,
    /// How it routes.
    pub kind: ExchangeKind,
    /// Survives a restart.
    pub durable: bool,
    /// Goes with its last binding.
    pub auto_delete: bool,
    /// Clients may not publish to it.
    pub internal: bool,
    /// As declared.
    pub arguments: Bytes,
    /// Where messages go that it cannot route; empty: the default exchange.
    pub alternate: Option<String>,
}

/// What a binding leads to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Destination {
    /// A queue.
    Queue(String),
    /// Another exchange.
    Exchange(String),
}

/// A binding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindingInfo {
    /// The exchange that it hangs on.
    pub source: String,
    /// Where it leads.
    pub destination: Destination,
    /// Its key or pattern.
    pub routing_key: Bytes,
    /// Field table bytes.
    pub arguments: Bytes,
}

/// Where a reader of a stream begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At this offset.
    Offset(u64),
    /// At the oldest record.
    First,
    /// At the newest record.
    Last,
    /// At what comes from now on.
    Next,
    /// At this time, milliseconds since 1970.
    TimeMs(u64),
}

/// A consumer to be made.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The adapter's name for it. Deliveries may come before `attach` returns: attach without credit and
    /// grant credit once the client knows of its consumer.
    pub tag: ConsumerTag,
    /// The queue.
    pub queue: String,
    /// No other consumer beside it.
    pub exclusive: bool,
    /// Higher ones are served first.
    pub priority: i32,
    /// Only for streams.
    pub start: Option<StartAt>,
    /// Messages and bytes that may be delivered at once; more by `Connection::credit`.
    pub credit_messages: u64,
    /// See `credit_messages`.
    pub credit_bytes: u64,
}

/// The answer to a get that found something.
#[derive(Clone, Debug)]
pub struct Got {
    /// The message.
    pub delivery: Delivery,
    /// Messages left in the queue.
    pub ready: u64,
}
