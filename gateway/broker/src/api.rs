//! The types of the broker API: what protocol adapters say to the broker and hear from it.
//!
//! Danger: adapters of every protocol are written against these; a change here is a change everywhere.
//! Nothing here knows a protocol, gRPC or a shard's state.
//!
//! How an adapter uses it:
//! ```text
//! let identity = broker.authenticate(user, password, peer).await?;
//! let (mut connection, mut events) = broker.connect(&identity, vhost, info)?;
//! let control = connection.control();                    // Clone; the rare, asynchronous operations
//! loop { select! {
//!     burst = read_socket() => {
//!         for each method: connection.publish(..)? | connection.settle(..) | connection.credit(..)
//!                          | spawn or await control.declare_queue(..) ...
//!         if connection.flush() == Flow::Wait { connection.writable().await }   // once per read burst
//!     }
//!     event = events.recv() => match event { Published | Deliveries | Cancelled | Blocked | Close }
//! }}
//! ```
//! Every operation of [`crate::Control`] sees what the same connection flushed before it. Dropping the
//! [`crate::Connection`] returns what it holds and drops what it owns.
//!
//! | handle | calls |
//! |---|---|
//! | [`crate::Broker`] | `start authenticate connect admin namespaces session shutdown is_ready` |
//! | [`crate::Connection`] (hot, synchronous) | `publish settle credit flush writable permit control` |
//! | [`crate::Control`] (rare, asynchronous) | `permit queue exchange declare_queue delete_queue purge declare_exchange delete_exchange bind unbind attach detach get stat settled` |
//! | [`crate::EventReceiver`] | `recv try_recv` |
//! | [`crate::Admin`] | `connections close_connection gateways queues exchanges bindings users nodes shards put_user set_permission delete_user put_namespace delete_namespace explain` |

use bytes::Bytes;
use longshore_wire::batch::DeadReason;
use longshore_wire::record::Form;
use longshore_wire::spec::LogSpec;
use longshore_wire::{LeaseId, LogId, NamespaceId, Offset, SessionId, ShardId, Term};
use std::net::SocketAddr;
use std::sync::Arc;

/// What a user may do with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Right {
    /// Make, delete, change.
    Configure,
    /// Publish into, bind from.
    Write,
    /// Consume, get, purge, bind to.
    Read,
}

/// Who logged in. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The user's name, without any namespace prefix.
    pub user: Arc<str>,
    /// The namespace that the login named (`ns:user`), or the user's default one.
    pub namespace: Arc<str>,
    /// May do admin calls.
    pub administrator: bool,
    /// The version of the user that was authenticated.
    pub version: u64,
}

/// Why a login was refused. What a client is told must not differ between the first two.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// Unknown user or wrong password.
    #[error("user name or password is wrong")]
    Refused,
    /// The user may only log in from this machine.
    #[error("this user can only log in from localhost")]
    LoopbackOnly,
    /// Too many failed logins; try again later.
    #[error("too many failed logins, try again later")]
    Throttled,
    /// The gateway has no valid lease; another gateway may serve.
    #[error("the gateway is not connected to the storage tier")]
    Unavailable,
}

/// What is known of a client connection; shown by `longshore connections`.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// Protocol and version, for example `AMQP 0-9-1`.
    pub protocol: &'static str,
    /// The client's address.
    pub peer: SocketAddr,
    /// What the client calls itself; cut to 256 bytes by the broker.
    pub client: String,
    /// Whether it came over TLS.
    pub tls: bool,
}

/// An id of a client connection, unique within the gateway's session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// An adapter's name for one of its consumers, unique within the connection for the connection's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConsumerTag(pub u64);

/// A value of a header or a binding argument, as far as matching needs it.
#[derive(Clone, Debug, PartialEq)]
pub enum HeaderValue {
    /// No value: in a binding it matches any value that is present.
    Void,
    /// A truth value.
    Bool(bool),
    /// Any integer or timestamp.
    Int(i64),
    /// Any floating-point number.
    Double(f64),
    /// Text or bytes.
    Bytes(Bytes),
    /// Anything else, compared by its encoded bytes (type tag included).
    Other(Bytes),
}

/// Access to a message's headers; asked only by headers exchanges.
pub trait Headers {
    /// The value of the header `name`, if the message has it.
    fn get(&self, name: &[u8]) -> Option<HeaderValue>;
}

/// A message without headers.
#[derive(Clone, Copy, Debug)]
pub struct NoHeaders;

impl Headers for NoHeaders {
    fn get(&self, _: &[u8]) -> Option<HeaderValue> {
        None
    }
}

/// Reads a binding's arguments (field table bytes as an adapter stored them) for headers exchanges.
/// Given by whoever assembles the gateway; unreadable bytes give an empty list.
pub type ArgumentsReader = fn(&[u8]) -> Vec<(Bytes, HeaderValue)>;

/// A message to be routed and stored. Everything is borrowed; the body's slices are shared, not copied here.
pub struct Publish<'a> {
    /// The adapter's channel; order holds per (channel, queue). 0 where a protocol has none.
    pub channel: u16,
    /// Comes back in [`Event::Published`]; the adapter's own numbering.
    pub token: u64,
    /// Whether [`Event::Published`] is wanted (confirms, mandatory).
    pub report: bool,
    /// Exchange name; empty for the default exchange (the routing key is a queue's name).
    pub exchange: &'a str,
    /// Routing key, at most 65,535 bytes.
    pub routing_key: &'a [u8],
    /// Further keys that are routed too (CC, BCC); stored is `routing_key`.
    pub more_keys: &'a [&'a [u8]],
    /// For headers exchanges.
    pub headers: &'a dyn Headers,
    /// Shape of `properties` and `body`.
    pub form: Form,
    /// Stored as they are, delivered as they are.
    pub properties: &'a [u8],
    /// The body in slices; copied once, into the batch.
    pub body: &'a [Bytes],
    /// 0 (lowest) to 255.
    pub priority: u8,
    /// Milliseconds to live, from the append on; `None`: as the queue says.
    pub ttl_ms: Option<u64>,
    /// Milliseconds before it is visible.
    pub delay_ms: u64,
    /// The client's timestamp in milliseconds since 1970.
    pub client_time_ms: Option<i64>,
    /// Hash of its key or group, 0: none.
    pub key_hash: u64,
}

/// What became of a [`Publish`] at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Routed {
    /// It is on its way; if a report was asked for, [`Event::Published`] will come (also `Unroutable` can).
    Queued,
    /// No queue wants it: nothing was sent and no [`Event::Published`] will come.
    Unroutable,
}

/// The final fate of a publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PublishResult {
    /// Every target that still exists has it: durable queues on disk on a majority.
    Stored,
    /// All targets were gone, or the queue does not exist.
    Unroutable,
    /// At least one target did not take it; the client may send it again (a nack).
    Refused(BrokerError),
}

/// One line of [`Event::Published`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// As in [`Publish::channel`].
    pub channel: u16,
    /// As in [`Publish::token`].
    pub token: u64,
    /// What became of it.
    pub result: PublishResult,
}

/// Whether the connection may go on sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Flow {
    /// Go on.
    Open,
    /// A bound of bytes is reached: stop reading from the client until `writable()` returns.
    Wait,
}

/// Identifies a delivery for its settlement. Copy; keep it with the unacked message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Handle {
    /// The log of the queue.
    pub log: LogId,
    /// The shard that delivered it.
    pub shard: ShardId,
    /// Place in the log.
    pub offset: Offset,
    /// The hand-over's id.
    pub lease: LeaseId,
    /// The leader's term.
    pub term: Term,
    /// The consumer that received it, `None` for a get.
    pub tag: Option<ConsumerTag>,
}

/// How a delivery ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settlement {
    /// Done with.
    Acked,
    /// To be delivered again at its old place; `counted`: its delivery count grows.
    Returned {
        /// Whether the count grows.
        counted: bool,
    },
    /// Refused for good: to the dead-letter target, or away.
    Dead(DeadReason),
}

/// The body of a delivery: one slice, or several for a large one.
#[derive(Clone, Debug)]
pub enum Body {
    /// In one piece.
    One(Bytes),
    /// In pieces, in order.
    Many(Vec<Bytes>),
}

impl Body {
    /// The slices in order.
    pub fn slices(&self) -> &[Bytes] {
        match self {
            Body::One(bytes) => std::slice::from_ref(bytes),
            Body::Many(pieces) => pieces,
        }
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.slices().iter().map(Bytes::len).sum()
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A message handed to a consumer or got.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// For its settlement; `handle.tag` is the consumer.
    pub handle: Handle,
    /// It may have been delivered before.
    pub redelivered: bool,
    /// How often it was returned before.
    pub returns: u32,
    /// Shape of `properties` and `body`.
    pub form: Form,
    /// The routing key that it was published with.
    pub routing_key: Bytes,
    /// As published.
    pub properties: Bytes,
    /// As published.
    pub body: Body,
    /// 0 to 255.
    pub priority: u8,
    /// The client's timestamp, milliseconds since 1970.
    pub client_time_ms: Option<i64>,
    /// What it took from the consumer's credit: bytes of the stored record and its parts, all targets included.
    pub charged_bytes: u64,
}

/// What a connection hears. Bounded by credit and by unreported publishes.
#[derive(Clone, Debug)]
pub enum Event {
    /// Fates of publishes, in the order of their completion (per channel and queue: in sending order).
    Published(Vec<Published>),
    /// Messages for consumers, in order per consumer.
    Deliveries(Vec<Delivery>),
    /// The consumer ended: its queue was deleted, or cannot be reached any more.
    Cancelled {
        /// Which consumer.
        tag: ConsumerTag,
    },
    /// `Some(reason)`: storage refuses publishes (disk low); `None`: it takes them again.
    Blocked(Option<String>),
    /// The last event: close the client connection now.
    Close(CloseReason),
}

/// Why the broker ends a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The user was deleted, restricted or has a new password.
    UserChanged,
    /// The namespace was deleted.
    NamespaceDeleted,
    /// An administrator asked, with the words given.
    Admin(String),
    /// The gateway's lease ended; clients go to another gateway or come back.
    LeaseLost,
    /// The gateway stops.
    Shutdown,
    /// The client does not take its events.
    Overrun,
}

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
    /// Where messages go that it cannot route.
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

/// Why an operation failed. Adapters map the kind to their codes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// No such queue, exchange, binding, user or namespace: the words say which.
    #[error("no {what} '{name}'")]
    NotFound {
        /// `queue`, `exchange`, ...
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// The user's permissions do not allow it.
    #[error("access to {what} '{name}' refused")]
    AccessRefused {
        /// `queue`, `exchange`, ...
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// It exists with other settings.
    #[error("{name} exists with another {what}")]
    Inequivalent {
        /// The first setting that differs: `durable`, `exclusive`, `auto_delete`, `type`, `arguments`, ...
        what: &'static str,
        /// The thing's name.
        name: String,
    },
    /// Consumers use it (if-unused), or bindings do.
    #[error("{0} is in use")]
    InUse(String),
    /// It still holds messages (if-empty).
    #[error("{0} is not empty")]
    NotEmpty(String),
    /// It is exclusive to another connection.
    #[error("{0} is exclusive to another connection")]
    ResourceLocked(String),
    /// Another consumer consumes exclusively, or others consume already.
    #[error("{0} is consumed exclusively, or has other consumers")]
    ExclusiveUse(String),
    /// Not permitted in this namespace, or there is no such namespace (not told apart).
    #[error("access to namespace '{0}' refused")]
    NotAllowed(String),
    /// The thing itself forbids it (a predeclared exchange, an internal one, a reserved name).
    #[error("{0}")]
    Forbidden(String),
    /// No leader, no majority, no lease, or no answer in time: try again.
    #[error("the storage tier cannot answer now: {0}")]
    Unavailable(&'static str),
    /// Storage refuses publishes until there is room again.
    #[error("the storage tier is short of disk space")]
    NoSpace,
    /// A message over the configured size.
    #[error("a message of {bytes} bytes is over the limit of {max}")]
    TooLarge {
        /// Its size.
        bytes: u64,
        /// The limit.
        max: u64,
    },
    /// A bound is reached; the words say which.
    #[error("limit reached: {0}")]
    Limit(String),
    /// The request makes no sense; the words say why.
    #[error("{0}")]
    Invalid(String),
    /// The connection was closed by the broker.
    #[error("the connection is closed")]
    Closed,
}

/// A connection as listed.
#[derive(Clone, Debug)]
pub struct ConnectionListing {
    /// Its id.
    pub id: ConnectionId,
    /// The user.
    pub user: String,
    /// The namespace.
    pub namespace: String,
    /// What the adapter said of it.
    pub info: ConnectionInfo,
    /// Consumers that it has.
    pub consumers: usize,
}

/// A gateway as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewayListing {
    /// Its session.
    pub session: SessionId,
    /// Its name.
    pub name: String,
    /// `amqp=host:port`, ...
    pub addresses: Vec<String>,
}

/// A queue as listed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueListing {
    /// What it is.
    pub info: QueueInfo,
    /// Where it lives.
    pub shard: ShardId,
    /// Its namespace.
    pub namespace: NamespaceId,
    /// Counts, unless its leader did not answer.
    pub counts: Option<QueueCounts>,
}

/// Messages and consumers of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct QueueCounts {
    /// Could be delivered now.
    pub ready: u64,
    /// Out with consumers.
    pub unacked: u64,
    /// Consumers.
    pub consumers: u64,
    /// Oldest offset.
    pub first: u64,
    /// Next offset.
    pub next: u64,
}

/// A user as an administrator sets or sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UserInfo {
    /// Its name.
    pub name: String,
    /// May do admin calls.
    pub administrator: bool,
    /// `/` if empty.
    pub default_namespace: String,
    /// Only from this machine.
    pub loopback_only: bool,
    /// Namespace name, then configure, write and read patterns.
    pub permissions: Vec<(String, PermissionPatterns)>,
}

/// Regular expressions as RabbitMQ's: empty matches only the empty name.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct PermissionPatterns {
    /// See [`Right::Configure`].
    pub configure: String,
    /// See [`Right::Write`].
    pub write: String,
    /// See [`Right::Read`].
    pub read: String,
}
