//! What gateways ask of delivery, in this crate's words. The node translates frames into these.

use bytes::Bytes;
use longshore_wire::spec::LogSpec;
use longshore_wire::{CursorId, LeaseId, LogId, LogTime, NamespaceId, Offset, SessionId, Term};

/// A consumer: unique within the gateway's session. Number 0 stands for the session's gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConsumerKey {
    /// The gateway's session.
    pub session: SessionId,
    /// Its number for the consumer.
    pub consumer: u64,
}

/// One cursor of one log: what consumers attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct QueueId {
    /// The log.
    pub log: LogId,
    /// Its cursor.
    pub cursor: CursorId,
}

/// Where a reader by position starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At this offset, or the first stored one after it.
    Offset(Offset),
    /// At the oldest stored record.
    First,
    /// At the last stored record.
    Last,
    /// Only what comes from now on.
    Next,
    /// At the first record appended at or after this log time.
    Time(LogTime),
}

/// How a consumer reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By settlement: each message to one consumer, under a lease.
    Settle,
    /// By position: all messages, no lease, nothing to settle.
    Position(Start),
}

/// A delivery that the gateway still holds: its settlement has no outcome yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The message.
    pub offset: Offset,
    /// The lease under which it came.
    pub lease: LeaseId,
    /// The term of that lease.
    pub term: Term,
}

/// Makes a consumer, or makes it again after a leader change or a lost stream.
#[derive(Clone, Debug)]
pub struct Attach {
    /// Who.
    pub key: ConsumerKey,
    /// What is consumed.
    pub queue: QueueId,
    /// How.
    pub mode: Mode,
    /// Nobody else may consume beside it.
    pub exclusive: bool,
    /// One consumer of the queue at a time, the others stand by.
    pub single_active: bool,
    /// Higher ones are served first.
    pub priority: i32,
    /// Messages that may be sent in all since this attach.
    pub credit_messages: u64,
    /// Bytes that may be sent in all since this attach; a message goes while any is left, so it may exceed the rest.
    pub credit_bytes: u64,
    /// A lease of this consumer ends by itself after this long, in milliseconds; `None`: never.
    pub lease_ms: Option<u64>,
    /// What it holds already: *every* delivery whose settlement has no outcome yet. What this term handed to it and
    /// is not listed counts as lost on the way and is delivered again.
    pub held: Vec<Held>,
    /// Counts this consumer's attaches; comes back in [`crate::Action::Attached`].
    pub attempt: u64,
}

/// Counts of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Could be handed over now, if someone had credit.
    pub ready: u64,
    /// Out with consumers or takers.
    pub unacked: u64,
    /// Waiting for their time.
    pub delayed: u64,
    /// Consumers.
    pub consumers: u64,
    /// First stored offset.
    pub first: Offset,
    /// The next append's offset.
    pub next: Offset,
}

/// Why a command was refused. The node translates it into the contract's `Refused`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refused {
    /// No such log here, or it was dropped.
    UnknownLog,
    /// Someone else consumes exclusively, or owns the queue.
    Exclusive,
    /// It has consumers.
    InUse,
    /// It has messages.
    NotEmpty,
    /// It exists with other arguments.
    Inequivalent,
    /// A bound is reached: again later.
    Busy,
    /// This replica does not lead the shard.
    NotLeader,
}

/// A transient queue as it is asked for. Two are the same when all of this is equal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransientDeclare {
    /// Namespace of the name.
    pub namespace: NamespaceId,
    /// Its name.
    pub name: Bytes,
    /// The client connection (session, connection) that alone may use it.
    pub owner: Option<(SessionId, u64)>,
    /// Goes when the last consumer leaves.
    pub auto_delete: bool,
    /// As the client gave them, for equivalence.
    pub arguments: Bytes,
    /// Its settings.
    pub spec: LogSpec,
    /// Goes when nobody consumed, got or declared for this long, in milliseconds; 0: never.
    pub expires_ms: u64,
    /// One consumer at a time.
    pub single_active: bool,
}

/// A transient queue as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransientInfo {
    /// Its log.
    pub log: LogId,
    /// Made by this declare.
    pub created: bool,
    /// Its counts.
    pub counts: Counts,
    /// See [`TransientDeclare::owner`].
    pub owner: Option<(SessionId, u64)>,
    /// See [`TransientDeclare::auto_delete`].
    pub auto_delete: bool,
    /// See [`TransientDeclare::arguments`].
    pub arguments: Bytes,
}

/// What became of a transient append. Targets in neither list have it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransientAppended {
    /// Targets that do not exist.
    pub missing: Vec<LogId>,
    /// Targets that refused it because a bound is reached.
    pub full: Vec<LogId>,
}
