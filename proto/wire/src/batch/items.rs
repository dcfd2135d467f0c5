//! What a batch may hold, item by item; the bytes of each are in the module above.

use crate::record::Record;
use crate::spec::LogSpec;
use crate::{CursorId, LeaseId, LogId, LogTime, Offset, OffsetRange, Revision, SessionId, Term};
use bytes::Bytes;

/// Makes an append count once although it may be sent again under another session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A Kafka producer's sequence: batches of one (producer, epoch, log) are accepted without gaps.
    Producer {
        /// Producer id.
        id: u64,
        /// Its epoch; an older one is refused.
        epoch: u16,
        /// Sequence of the first record.
        sequence: u32,
    },
    /// A token: an append with a token that the shard remembers is answered with the first one's outcome.
    Token {
        /// For example the source log of a dead letter, or a hash of an MQTT session id.
        scope: u64,
        /// For example the source offset, or (session epoch, packet id).
        id: u64,
        /// For example the attempt.
        attempt: u32,
    },
}

/// One message given back unsettled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Returned {
    /// Which.
    pub offset: Offset,
    /// The lease that ends, of the settle's term. The message may be out again under another one by the time this is
    /// applied; that one stands. 0: none (a take that lapsed).
    pub lease: LeaseId,
    /// Whether its delivery count grows by one.
    pub counted: bool,
}

/// Why a message is dead (kept in the cursor, shown to whoever receives it from the dead-letter target).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DeadReason {
    /// A consumer refused it without requeue.
    Rejected = 1,
    /// Its time to live ended.
    Expired = 2,
    /// The queue's length limit pushed it out.
    MaxLength = 3,
    /// It was returned too often.
    DeliveryLimit = 4,
}

impl DeadReason {
    /// The reason with this number.
    pub fn from_u8(n: u8) -> Option<DeadReason> {
        match n {
            1 => Some(DeadReason::Rejected),
            2 => Some(DeadReason::Expired),
            3 => Some(DeadReason::MaxLength),
            4 => Some(DeadReason::DeliveryLimit),
            _ => None,
        }
    }
}

/// What became of deliveries of one cursor. Where the log has no dead-letter target, `dead` equals `acked`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settle {
    /// The log.
    pub log: LogId,
    /// Its cursor.
    pub cursor: CursorId,
    /// The term in which the messages were handed over.
    pub term: Term,
    /// Done with.
    pub acked: Vec<OffsetRange>,
    /// To be delivered again, at their old place.
    pub returned: Vec<Returned>,
    /// Refused for good.
    pub dead: Vec<(Offset, DeadReason)>,
}

/// One command of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// Store a record in its targets.
    Append {
        /// Guards against a second append from another session.
        origin: Option<Origin>,
        /// The message.
        record: Record,
    },
    /// One piece of a body too large for an entry. Pieces of an upload come in order; the record that ends
    /// it has `flags::PARTS` and the same upload id (unique within the session).
    Part {
        /// Which upload of the session.
        upload: u64,
        /// CRC32C of `bytes`.
        crc: u32,
        /// The piece.
        bytes: Bytes,
    },
    /// Settle deliveries.
    Settle(Settle),
    /// Make a log, unless it exists or was dropped.
    CreateLog {
        /// Its id.
        log: LogId,
        /// Its settings.
        spec: LogSpec,
    },
    /// Drop a log for ever.
    DropLog {
        /// Its id.
        log: LogId,
        /// The revision of meta's tombstone.
        revision: Revision,
    },
    /// Settle everything of the cursor that is not out with a consumer now. `leased` are the offsets to spare.
    Purge {
        /// The log.
        log: LogId,
        /// The cursor.
        cursor: CursorId,
        /// Up to here, exclusive.
        end: Offset,
        /// Offsets that consumers hold; they stay.
        leased: Vec<OffsetRange>,
    },
    /// Open a gateway's session.
    OpenSession(SessionId),
    /// Close a gateway's session for ever, with its uploads.
    CloseSession(SessionId),
    /// The time to live of these ended (proposed by the leader only).
    Expire {
        /// The log.
        log: LogId,
        /// The cursor.
        cursor: CursorId,
        /// Which; those that are settled by then are skipped.
        ranges: Vec<OffsetRange>,
    },
    /// A replicated lease of a receiver without a connection.
    Take {
        /// The log.
        log: LogId,
        /// The cursor.
        cursor: CursorId,
        /// Which message.
        offset: Offset,
        /// The lease's id.
        lease: LeaseId,
        /// Visible again at this log time.
        until: LogTime,
    },
    /// Set a named position cursor.
    CommitPosition {
        /// The log.
        log: LogId,
        /// The reader's name, 1 to 255 bytes.
        name: Bytes,
        /// The next offset that it wants.
        offset: Offset,
    },
    /// Set a settlement cursor back (or on) to an offset.
    Rewind {
        /// The log.
        log: LogId,
        /// The cursor.
        cursor: CursorId,
        /// The first offset that is to be delivered again.
        to: Offset,
    },
    /// Streams: everything below is beyond retention. Leaders only; none proposes it while no retention can be declared
    /// (`x-max-age`, `x-max-length-bytes`), but every replica understands it.
    Trim {
        /// The log.
        log: LogId,
        /// The new first offset.
        start: Offset,
    },
}
