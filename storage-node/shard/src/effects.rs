//! What an apply did, for the parts of the node that act on it.
//!
//! Danger: whatever is missing here never reaches the record store (bytes are lost or never freed) or the
//! gateway (a confirm that never comes). Filled by [`crate::Shard::apply`]; read by the node's turn loop, by
//! the record store (`rows`, `released`) and on a leader by delivery (`events`, `outcomes`).

use bytes::Bytes;
use longshore_wire::batch::Returned;
use longshore_wire::outcome::Refusal;
use longshore_wire::row::Row;
use longshore_wire::{BatchNo, CursorId, LeaseId, LogId, LogTime, Offset, OffsetRange, SessionId, Term};

/// The consequences of applied entries, in the order in which they happened. Reusable: [`Effects::clear`]
/// keeps the room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// Records that were stored, one row per target log.
    pub rows: Vec<Row>,
    /// Offsets whose records may be freed: settled and not rewindable, or trimmed. A purge, and a rewind that sets
    /// a cursor on, may name some that were named before; nothing else does. A dropped log is not named:
    /// [`Event::Dropped`] frees all of it.
    pub released: Vec<(LogId, Vec<OffsetRange>)>,
    /// What delivery acts on.
    pub events: Vec<Event>,
    /// An answer for every batch whose header could be read, also for duplicates. The leader's own batches
    /// answer as session 0, number 0.
    pub outcomes: Vec<(SessionId, BatchNo, BatchResult)>,
}

impl Effects {
    /// Empties all lists and keeps their room.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.released.clear();
        self.events.clear();
        self.outcomes.clear();
    }

    /// Whether nothing happened.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.released.is_empty() && self.events.is_empty() && self.outcomes.is_empty()
    }

    pub(crate) fn release(&mut self, log: LogId, ranges: Vec<OffsetRange>) {
        if !ranges.is_empty() {
            self.released.push((log, ranges));
        }
    }

    /// Appends of one batch to one log become one event.
    pub(crate) fn appended(&mut self, log: LogId, first: Offset, next: Offset) {
        if let Some(Event::Appended { log: last, next: end, .. }) = self.events.last_mut()
            && *last == log
            && *end == first
        {
            *end = next;
            return;
        }
        self.events.push(Event::Appended { log, first, next });
    }
}

/// The answer to a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BatchResult {
    /// Applied now, or before and remembered: encoded `longshore_wire::outcome`s, one per item.
    Outcomes(Bytes),
    /// Nothing was applied: the next number is `expected`. Also the answer to a number that was applied so long
    /// ago that its outcomes are forgotten, which a gateway that keeps to the limit in flight never sends.
    Gap {
        /// The number that the session has to send next.
        expected: BatchNo,
    },
    /// Nothing was applied: the session was never opened here, or it is closed.
    UnknownSession,
    /// Nothing was applied and the number is not used up: the items cannot be read. A leader refuses such
    /// batches before it proposes them.
    Malformed,
}

/// A change of the state that concerns who may receive what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A log was made.
    Created {
        /// Which.
        log: LogId,
    },
    /// A log was not made: it was dropped before, or a bound is reached. Somebody waits for the answer.
    NotCreated {
        /// Which.
        log: LogId,
        /// Why.
        why: Refusal,
    },
    /// A log was dropped for ever.
    Dropped {
        /// Which.
        log: LogId,
    },
    /// Records were stored at `first..next`.
    Appended {
        /// Where.
        log: LogId,
        /// First new offset.
        first: Offset,
        /// The offset after the last new one.
        next: Offset,
    },
    /// Messages were acked, or refused for good, that were unsettled until now.
    Settled {
        /// The log.
        log: LogId,
        /// Its cursor.
        cursor: CursorId,
        /// Only what changed, ascending within each of the settle's ranges.
        ranges: Vec<OffsetRange>,
    },
    /// Messages were given back; they stay at their old place.
    Returned {
        /// The log.
        log: LogId,
        /// Its cursor.
        cursor: CursorId,
        /// The term of the leases that end with it.
        term: Term,
        /// Only those that are unsettled.
        returned: Vec<Returned>,
    },
    /// All unsettled messages below `end`, but for those that are out, were settled.
    Purged {
        /// The log.
        log: LogId,
        /// Its cursor.
        cursor: CursorId,
        /// Up to here, exclusive.
        end: Offset,
        /// How many messages it settled.
        count: u64,
    },
    /// The cursor was set: below `to` all is settled, from there on everything retained is unsettled.
    Rewound {
        /// The log.
        log: LogId,
        /// Its cursor.
        cursor: CursorId,
        /// Where it stands now.
        to: Offset,
        /// How many messages came back.
        count: u64,
    },
    /// A message has a replicated lease, new or prolonged.
    Taken {
        /// The log.
        log: LogId,
        /// Its cursor.
        cursor: CursorId,
        /// The message.
        offset: Offset,
        /// Who has it.
        lease: LeaseId,
        /// It is visible again at this log time.
        until: LogTime,
    },
    /// Messages ended by their time to live.
    Expired {
        /// The log.
        log: LogId,
        /// Its cursor.
        cursor: CursorId,
        /// Only what changed.
        ranges: Vec<OffsetRange>,
    },
    /// A gateway's session is open.
    SessionOpened(SessionId),
    /// A gateway's session is closed for ever.
    SessionClosed(SessionId),
    /// A named position was set.
    PositionCommitted {
        /// The log.
        log: LogId,
        /// The reader.
        name: Bytes,
        /// The next offset that it wants.
        offset: Offset,
    },
    /// A stream lost its oldest records to retention.
    Trimmed {
        /// The log.
        log: LogId,
        /// Its new first offset.
        first: Offset,
    },
}
