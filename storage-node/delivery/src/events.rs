//! What apply tells delivery. Events come after the apply of their entry, in order; rows after them.

use crate::command::{ConsumerKey, QueueId, Refused};
use crate::delivery::Delivery;
use crate::view::View;
use longshore_io::Mono;
use longshore_shard::Event;
use longshore_wire::row::{NEVER, Row};
use longshore_wire::{CursorId, LogId, OffsetRange};

impl Delivery {
    /// One event of an apply. Ignored while this replica does not lead.
    pub fn on_event(&mut self, now: Mono, event: &Event, shard: &impl View) {
        if !self.leading {
            return;
        }
        let id = |log: &LogId, cursor: &CursorId| QueueId { log: *log, cursor: *cursor };
        match event {
            Event::Created { .. }
            | Event::NotCreated { .. }
            | Event::Appended { .. }
            | Event::SessionOpened(_)
            | Event::PositionCommitted { .. } => {}
            Event::SessionClosed(session) => self.session_gone(now, *session),
            Event::Dropped { log } => self.dropped(*log),
            Event::Settled { log, cursor, ranges } | Event::Expired { log, cursor, ranges } => {
                self.settled(id(log, cursor), ranges);
            }
            Event::Returned { log, cursor, term, returned } => {
                let queue = id(log, cursor);
                self.track(queue);
                let Some(durable) = self.durable.get_mut(&queue) else { return };
                for back in returned {
                    durable.returned(back, *term, &mut self.core);
                }
            }
            Event::Purged { log, cursor, .. } | Event::Rewound { log, cursor, .. } => {
                self.jumped(id(log, cursor), shard);
            }
            Event::Taken { log, cursor, offset, lease, until } => {
                let queue = id(log, cursor);
                self.track(queue);
                let Some(durable) = self.durable.get_mut(&queue) else { return };
                durable
                    .counting(&mut self.core, |durable, core| durable.taken(*offset, *lease, *until, core));
            }
            Event::Trimmed { log, .. } => {
                for queue in self.queues_of(*log) {
                    self.agenda.mark(queue);
                }
            }
        }
    }

    fn settled(&mut self, queue: QueueId, ranges: &[OffsetRange]) {
        match self.durable.get_mut(&queue) {
            Some(durable) => {
                let full = self.core.leases_full();
                durable.counting(&mut self.core, |durable, core| durable.settled(ranges, core));
                // With consumers and room, an ack alone makes nothing possible that was not before.
                if full || durable.desk.consumers.is_empty() || !self.core.outbox.is_empty() {
                    self.agenda.mark(queue);
                }
            }
            // The head may be another message now, with a time to live of its own.
            None => _ = self.track(queue),
        }
    }

    fn jumped(&mut self, queue: QueueId, shard: &impl View) {
        self.track(queue);
        let (Some(durable), Some(cursor)) =
            (self.durable.get_mut(&queue), shard.cursor(queue.log, queue.cursor))
        else {
            return;
        };
        durable.counting(&mut self.core, |durable, core| durable.jumped(&cursor, core));
    }

    fn dropped(&mut self, log: LogId) {
        for queue in self.queues_of(log) {
            if let Some(mut durable) = self.durable.remove(&queue) {
                let keys: Vec<ConsumerKey> =
                    durable.desk.consumers.keys().chain(durable.readers.keys().copied()).collect();
                for key in keys {
                    self.consumers.remove(&key);
                }
                durable.close(Refused::UnknownLog, &mut self.core);
            }
            self.agenda.wake(queue, None);
        }
    }

    /// The rows of an apply, after its events, so that consumers that wait get them without a read.
    pub fn appended_rows(&mut self, rows: &[Row], shard: &impl View) {
        if !self.leading {
            return;
        }
        for row in rows {
            let first = QueueId { log: row.log, cursor: CursorId(0) };
            let last = QueueId { log: row.log, cursor: CursorId(u32::MAX) };
            let mut tracked = false;
            for (queue, durable) in self.durable.range_mut(first..=last) {
                tracked = true;
                if durable.appended(row, &mut self.core, shard) {
                    self.agenda.mark(*queue);
                }
            }
            if !tracked && row.expiry != NEVER && shard.cursor(row.log, first.cursor).is_some() {
                self.track(first);
            }
        }
    }
}
