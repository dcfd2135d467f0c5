//! What delivery wants done. The node carries the actions out in order.

use crate::command::{ConsumerKey, Refused};
use bytes::Bytes;
use longshore_wire::batch::Item;
use longshore_wire::record::Record;
use longshore_wire::row::Row;
use longshore_wire::{CursorId, LeaseId, LogId, LogTime, NamespaceId, Offset, SessionId};
use std::sync::Arc;

/// Where the bytes of a delivered message are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// In the record store, by this row. The node reads the body and keeps the order per consumer.
    Stored(Row),
    /// Here (transient queues).
    Memory(Arc<InMemory>),
}

/// A message of a transient queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InMemory {
    /// The record.
    pub record: Record,
    /// A large body, in pieces; else the record has it.
    pub parts: Vec<Bytes>,
}

impl InMemory {
    /// Bytes of the record and of the pieces.
    pub fn bytes(&self) -> u64 {
        let parts: usize = self.parts.iter().map(Bytes::len).sum();
        (self.record.bytes().len() + parts) as u64
    }
}

/// One message handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handed {
    /// The log.
    pub log: LogId,
    /// Its cursor.
    pub cursor: CursorId,
    /// The message: its offset, which may lie inside the row of a Kafka batch.
    pub offset: Offset,
    /// How many messages from `offset` on: 1, or for readers by position the rest of the row.
    pub count: u32,
    /// The lease; 0 for readers by position.
    pub lease: LeaseId,
    /// Someone may have seen it before.
    pub redelivered: bool,
    /// How often it was returned.
    pub returns: u32,
    /// Its bytes.
    pub message: Message,
}

/// Names a question to the record store, so that a late answer is not taken for another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LoadId(pub u64);

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message to a consumer. The node checks the leader's lease once more when it sends.
    Deliver {
        /// To whom.
        to: ConsumerKey,
        /// What.
        handed: Handed,
    },
    /// Ask the record store for up to `max` rows whose end is beyond `from`, in order, settled ones may be left out;
    /// answered by `Delivery::rows_loaded` (fewer than `max`: there are no more now) or `load_failed`.
    LoadRows {
        /// The question.
        id: LoadId,
        /// The log.
        log: LogId,
        /// First offset wanted.
        from: Offset,
        /// At most so many rows, at least 1.
        max: u32,
    },
    /// Ask the record store for the first offset appended at or after `time`; answered by `Delivery::time_found`.
    FindTime {
        /// The question.
        id: LoadId,
        /// The log.
        log: LogId,
        /// Log time.
        time: LogTime,
    },
    /// Propose this as the leader's own command; many may go into one batch.
    Propose(Item),
    /// Answer of a get.
    Got {
        /// Who asked.
        session: SessionId,
        /// Its number for the question.
        request: u64,
        /// The message, `None`: the queue is empty.
        result: Result<Option<Handed>, Refused>,
        /// Messages left ready.
        ready: u64,
    },
    /// Answer of a take, once its leases are committed.
    Took {
        /// Its number for the question.
        request: u64,
        /// The messages; empty when the wait ended without one.
        result: Result<Vec<Handed>, Refused>,
        /// The leases' end, by log time.
        until: LogTime,
    },
    /// Answer of an attach.
    Attached {
        /// Who.
        to: ConsumerKey,
        /// Which of its attaches.
        attempt: u64,
        /// Whether the consumer exists now.
        result: Result<(), Refused>,
    },
    /// A consumer ended that nobody detached.
    Cancelled {
        /// Who.
        to: ConsumerKey,
        /// Why.
        reason: Refused,
    },
    /// A transient queue ended by itself (auto-delete, expiry); its bindings should go too.
    TransientGone {
        /// Its log.
        log: LogId,
        /// Its namespace.
        namespace: NamespaceId,
        /// Its name.
        name: Bytes,
    },
}

/// Actions of a turn, in order.
pub type Actions = Vec<Action>;
