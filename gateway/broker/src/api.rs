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

mod declared;
mod listed;

pub use declared::*;
pub use listed::*;

use bytes::Bytes;
use longshore_wire::batch::DeadReason;
use longshore_wire::record::Form;
use longshore_wire::{LeaseId, LogId, Offset, ShardId, Term};
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
