//! Why a message is not being delivered: the answer behind `longshore explain QUEUE`.

use crate::command::{ConsumerKey, Counts, QueueId};
use crate::delivery::Delivery;
use crate::desk::Desk;
use crate::durable::Durable;
use crate::view::View;
use longshore_io::Mono;
use longshore_wire::{LogTime, Offset};

/// Most consumers and leases that an explanation lists.
pub const LISTED_MAX: usize = 16;

/// Everything that holds a queue's messages up, most telling first; what is out with somebody comes last. Empty
/// `reasons`: the next message is about to go.
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

impl Delivery {
    /// Why messages of the queue are not being delivered. `log_time` and `may_deliver` as for a turn.
    pub fn explain(
        &self,
        log_time: LogTime,
        may_deliver: bool,
        queue: QueueId,
        shard: &impl View,
    ) -> Explanation {
        if !self.leading {
            return Explanation { counts: Counts::default(), reasons: vec![Reason::NotLeader] };
        }
        let Some(counts) = self.stat(queue, shard) else {
            return Explanation { counts: Counts::default(), reasons: vec![Reason::NoSuchLog] };
        };
        let mut reasons = Vec::new();
        if !may_deliver {
            reasons.push(Reason::LeaseNotHeld);
        }
        if self.core.leases_full() {
            reasons.push(Reason::TooManyLeases { max: self.core.config.leases_max });
        }
        if let Some(transient) = self.transients.queues.get(&queue.log) {
            explain_counts(&counts, transient.delayed_until(), &mut reasons);
            explain_desk(&transient.desk, &mut reasons);
        } else if shard.cursor(queue.log, queue.cursor).is_some() {
            self.explain_settled(queue, &counts, log_time, &mut reasons);
        } else {
            self.explain_readers(queue, &counts, &mut reasons);
        }
        Explanation { counts, reasons }
    }

    fn explain_settled(&self, queue: QueueId, counts: &Counts, log_time: LogTime, reasons: &mut Vec<Reason>) {
        if let Some(waiting) = &self.core.waiting
            && counts.ready > 0
        {
            let sessions = waiting.sessions.len() as u64;
            reasons.push(Reason::WaitingForGateways { sessions, until: waiting.until });
        }
        let Some(durable) = self.durable.get(&queue) else {
            explain_counts(counts, None, reasons);
            return reasons.push(Reason::NoConsumer);
        };
        explain_window(durable, log_time, reasons);
        explain_counts(counts, durable.window.delayed.first().map(|(due, _)| *due), reasons);
        explain_desk(&durable.desk, reasons);
        let taken = durable.window.taken.iter().take(LISTED_MAX);
        reasons.extend(taken.map(|(until, offset)| Reason::Taken { offset: *offset, until: *until }));
    }

    fn explain_readers(&self, queue: QueueId, counts: &Counts, reasons: &mut Vec<Reason>) {
        if counts.first == counts.next {
            reasons.push(Reason::Empty);
        }
        let Some(durable) = self.durable.get(&queue).filter(|durable| !durable.readers.is_empty()) else {
            return reasons.push(Reason::NoConsumer);
        };
        let readers = durable.readers.values();
        let idle = readers.filter(|reader| !reader.is_hungry()).map(|reader| reader.key);
        let consumers: Vec<ConsumerKey> = idle.take(LISTED_MAX).collect();
        if !consumers.is_empty() {
            reasons.push(Reason::NoCredit { consumers });
        }
        let loading = durable.readers.values().filter_map(|reader| reader.loading()).min();
        reasons.extend(loading.map(|from| Reason::RowsLoading { from }));
    }
}

fn explain_counts(counts: &Counts, due: Option<LogTime>, reasons: &mut Vec<Reason>) {
    if counts.ready + counts.unacked + counts.delayed == 0 {
        reasons.push(Reason::Empty);
    }
    if let Some(until) = due {
        reasons.push(Reason::Delayed { until, count: counts.delayed });
    }
}

fn explain_window(durable: &Durable, log_time: LogTime, reasons: &mut Vec<Reason>) {
    let window = &durable.window;
    let head = window.ready.front().filter(|head| head.row.expiry <= log_time).map(|head| head.offset());
    if let Some(offset) = window.expiring.keys().next().copied().or(head) {
        let count = window.expiring.len() as u64 + u64::from(head.is_some());
        reasons.push(Reason::Expired { offset, count });
    }
    if let Some(load) = window.load
        && window.ready.is_empty()
    {
        reasons.push(Reason::RowsLoading { from: load.from });
    }
}

fn explain_desk(desk: &Desk, reasons: &mut Vec<Reason>) {
    reasons.extend(desk.consumers.blocked(LISTED_MAX));
    reasons.extend(desk.leases.iter().take(LISTED_MAX).map(|(offset, lease)| Reason::Leased {
        offset,
        by: lease.owner,
        until: lease.deadline.filter(|_| !lease.ending),
        ending: lease.ending,
    }));
}
