//! Why a message is not being delivered: the answer behind `longshore explain QUEUE`.

use crate::command::{ConsumerKey, Counts};
use longshore_io::Mono;
use longshore_wire::{LogTime, Offset};

/// Most consumers and leases that an explanation lists.
pub const LISTED_MAX: usize = 16;

/// Everything that holds a queue up, most telling first. Empty `reasons`: the next message is about to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What there is.
    pub counts: Counts,
    /// Why nothing goes.
    pub reasons: Vec<Reason>,
}

/// One thing that holds messages up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// This replica does not lead the shard.
    NotLeader,
    /// No majority answered the leader lately, so it must not deliver.
    LeaseNotHeld,
    /// The log does not exist here, or was dropped.
    NoSuchLog,
    /// Nothing is unsettled.
    Empty,
    /// Nobody consumes.
    NoConsumer,
    /// Consumers exist, but their credit (prefetch) is used up.
    NoCredit {
        /// The first of them.
        consumers: Vec<ConsumerKey>,
    },
    /// These stand by while `active` is the single active consumer.
    SingleActiveStandby {
        /// Who is served.
        active: ConsumerKey,
        /// How many stand by.
        standing_by: u64,
    },
    /// Consumers whose gateway's stream broke and has not come back.
    Suspended {
        /// How many.
        consumers: u64,
    },
    /// The leader is new and waits until the gateways have said what they hold.
    WaitingForGateways {
        /// Sessions that have not.
        sessions: u64,
        /// It goes on then at the latest.
        until: Mono,
    },
    /// The earliest of the delayed messages becomes visible then.
    Delayed {
        /// Log time.
        until: LogTime,
        /// How many are known to wait.
        count: u64,
    },
    /// Out with a consumer.
    Leased {
        /// The message.
        offset: Offset,
        /// With whom; consumer 0: by a get.
        by: ConsumerKey,
        /// Until then, `None`: until it is settled or its session ends.
        until: Option<Mono>,
        /// Its lease ended and the return is being replicated.
        ending: bool,
    },
    /// Out with a receiver without a connection.
    Taken {
        /// The message.
        offset: Offset,
        /// Log time.
        until: LogTime,
    },
    /// Its time to live ended; the end is being replicated.
    Expired {
        /// The first of them.
        offset: Offset,
        /// How many.
        count: u64,
    },
    /// The rows of the next messages are being read.
    RowsLoading {
        /// From here.
        from: Offset,
    },
    /// The shard's bound on leases is reached.
    TooManyLeases {
        /// The bound.
        max: u64,
    },
}
