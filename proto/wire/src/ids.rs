//! Newtypes for every number that has been mistaken for another one in some system of this field.

use std::fmt;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

id! {
    /// A Raft group: 0 is meta, the others hold logs.
    ShardId(u32)
}
id! {
    /// A storage node's identity, made with its data directory and never reused.
    NodeId(u32)
}
id! {
    /// A member of one Raft group: `node << 16 | incarnation`; never reused, so that a replica that lost
    /// its log comes back as a new one.
    ReplicaId(u64)
}
id! {
    /// A log: global, given by meta, never reused. The top bit marks a transient one, which lives in the
    /// memory of a shard's leader (see [`LogId::is_transient`]).
    LogId(u64)
}
id! {
    /// A record's place in its log; only grows. Not a Raft index.
    Offset(u64)
}
id! {
    /// A position in a Raft group's log. Not an offset.
    Index(u64)
}
id! {
    /// A Raft term.
    Term(u64)
}
id! {
    /// A gateway's session, given by meta with its lease; the same id in every shard. Not a client's session.
    SessionId(u64)
}
id! {
    /// The number of a batch within (session, shard): 1, 2, 3 ... without gaps.
    BatchNo(u64)
}
id! {
    /// A cursor of a log: 0 is a queue's own settlement cursor.
    CursorId(u32)
}
id! {
    /// A hand-over of one message; unique within (shard, term) and never derived from time.
    LeaseId(u64)
}
id! {
    /// Milliseconds since the Unix epoch as the shard's leaders stamp them; never goes back within a shard.
    LogTime(u64)
}
id! {
    /// A namespace: AMQP virtual host, Kafka tenant, MQTT namespace, CMQ account.
    NamespaceId(u32)
}
id! {
    /// Meta's counter of changes.
    Revision(u64)
}

/// The session of batches that a shard's leader proposes itself; they carry no number.
pub const INTERNAL_SESSION: SessionId = SessionId(0);

const TRANSIENT_BIT: u64 = 1 << 63;

impl LogId {
    /// A log in the memory of a shard's leader: `shard` below 2^15, the low 32 bits of the term, `n` below 2^16
    /// wraps into the term's counter, so that an id is not given twice within a term.
    pub fn transient(shard: ShardId, counter: u64) -> LogId {
        LogId(TRANSIENT_BIT | (u64::from(shard.0) & 0x7FFF) << 48 | (counter & 0xFFFF_FFFF_FFFF))
    }

    /// Whether the log lives in a leader's memory only.
    pub fn is_transient(self) -> bool {
        self.0 & TRANSIENT_BIT != 0
    }

    /// The shard of a transient log.
    pub fn transient_shard(self) -> Option<ShardId> {
        self.is_transient().then_some(ShardId((self.0 >> 48) as u32 & 0x7FFF))
    }
}

impl ReplicaId {
    /// The replica of incarnation `incarnation` on `node`.
    pub fn new(node: NodeId, incarnation: u16) -> ReplicaId {
        ReplicaId(u64::from(node.0) << 16 | u64::from(incarnation))
    }

    /// The node that this replica lives on.
    pub fn node(self) -> NodeId {
        NodeId((self.0 >> 16) as u32)
    }
}

impl Offset {
    /// The offset `n` further on.
    pub fn plus(self, n: u64) -> Offset {
        Offset(self.0.saturating_add(n))
    }
}

/// A run of offsets, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
pub struct OffsetRange {
    /// First offset of the run.
    pub first: Offset,
    /// Last offset of the run, at least `first`.
    pub last: Offset,
}

impl OffsetRange {
    /// The run of one offset.
    pub fn one(at: Offset) -> OffsetRange {
        OffsetRange { first: at, last: at }
    }

    /// How many offsets the run has.
    pub fn count(&self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// Whether `at` is in the run.
    pub fn contains(&self, at: Offset) -> bool {
        self.first <= at && at <= self.last
    }
}
