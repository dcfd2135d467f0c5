//! Delivery's transient queues: what gateways ask about logs in the memory of this leader.

use crate::action::{Action, InMemory};
use crate::command::{QueueId, Refused, TransientAppended, TransientDeclare, TransientInfo};
use crate::delivery::Delivery;
use bytes::Bytes;
use longshore_io::Mono;
use longshore_wire::record::Record;
use longshore_wire::{CursorId, LogId, LogTime, NamespaceId, Offset, SessionId};
use std::sync::Arc;

fn queue(log: LogId) -> QueueId {
    QueueId { log, cursor: CursorId(0) }
}

impl Delivery {
    /// Makes a transient queue, or answers the one of that name. `asker` is the client connection that asks.
    ///
    /// Errors: [`Refused::Exclusive`] if it belongs to another connection, [`Refused::Inequivalent`] if it was declared
    /// otherwise, [`Refused::Busy`] at the bound of queues, [`Refused::NotLeader`].
    pub fn transient_declare(
        &mut self,
        now: Mono,
        asker: (SessionId, u64),
        declare: TransientDeclare,
    ) -> Result<TransientInfo, Refused> {
        if !self.leading {
            return Err(Refused::NotLeader);
        }
        let info = self.transients.declare(now, asker, declare, &mut self.core)?;
        self.core.sessions.insert(asker.0);
        self.agenda.mark(queue(info.log));
        Ok(info)
    }

    /// The transient queue of this name, if this leader has it.
    pub fn transient_find(&self, namespace: NamespaceId, name: &[u8]) -> Option<TransientInfo> {
        self.transients.find(namespace, &Bytes::copy_from_slice(name))
    }

    /// The transient queue of this name was declared again: its time without use begins anew.
    pub fn transient_use(&mut self, now: Mono, namespace: NamespaceId, name: &[u8]) {
        if let Some(log) = self.transients.touch(now, namespace, &Bytes::copy_from_slice(name)) {
            self.agenda.mark(queue(log));
        }
    }

    /// Deletes one; how many messages were ready in it. Its consumers are cancelled.
    ///
    /// Errors: [`Refused::UnknownLog`], [`Refused::InUse`], [`Refused::NotEmpty`].
    pub fn transient_delete(&mut self, log: LogId, if_unused: bool, if_empty: bool) -> Result<u64, Refused> {
        let keys = self.transient_consumers(log);
        let count = self.transients.delete(log, if_unused, if_empty, &mut self.core)?;
        for key in keys {
            self.consumers.remove(&key);
        }
        self.agenda.wake(queue(log), None);
        Ok(count)
    }

    /// Deletes everything that a client connection owns; how many queues.
    pub fn transient_delete_owned(&mut self, session: SessionId, connection: u64) -> u64 {
        let logs = self.transients.owned_by(session, Some(connection));
        for log in &logs {
            self.remove_transient(*log);
        }
        logs.len() as u64
    }

    pub(crate) fn remove_transient(&mut self, log: LogId) -> Option<(NamespaceId, Bytes)> {
        for key in self.transient_consumers(log) {
            self.consumers.remove(&key);
        }
        let removed = self.transients.remove(log, &mut self.core);
        self.agenda.wake(queue(log), None);
        removed
    }

    fn transient_consumers(&self, log: LogId) -> Vec<crate::ConsumerKey> {
        self.transients.queues.get(&log).map_or_else(Vec::new, |queue| queue.desk.consumers.keys().collect())
    }

    /// Ends an auto-delete or expired queue, and says so: nobody asked for it who would tell meta.
    pub(crate) fn end_if_over(&mut self, log: LogId, now: Mono) {
        if log.is_transient()
            && self.transients.queues.get(&log).is_some_and(|queue| queue.is_over(now))
            && let Some((namespace, name)) = self.remove_transient(log)
        {
            self.core.outbox.push(Action::TransientGone { log, namespace, name });
        }
    }

    /// Appends to those of the record's targets that exist here and have room. What arrives when it cannot be
    /// handed over at once obeys its time to live from `log_time` on.
    /// `parts`: a large body, if the record does not have it itself.
    pub fn transient_append(
        &mut self,
        log_time: LogTime,
        record: Record,
        parts: Vec<Bytes>,
    ) -> TransientAppended {
        let message = Arc::new(InMemory { record, parts });
        let agenda = &mut self.agenda;
        self.transients.append(log_time, &message, &mut self.core, |log| agenda.mark(queue(log)))
    }

    /// Settles what `session` holds of a transient queue; anything else, such as offsets of an older term, is ignored.
    pub fn transient_settle(
        &mut self,
        session: SessionId,
        log: LogId,
        acked: &[Offset],
        returned: &[Offset],
    ) {
        let Some(transient) = self.transients.queues.get_mut(&log) else { return };
        transient.settle(session, acked, returned, &mut self.core);
        if !returned.is_empty() {
            self.agenda.mark(queue(log));
        }
    }

    /// Drops what is ready in a transient queue; how many messages. What is out stays.
    ///
    /// Errors: [`Refused::UnknownLog`].
    pub fn transient_purge(&mut self, log: LogId) -> Result<u64, Refused> {
        let transient = self.transients.queues.get_mut(&log).ok_or(Refused::UnknownLog)?;
        Ok(transient.purge(&mut self.core))
    }
}
