//! The transient queues of a shard's leader, by id and by name.

use crate::action::{Actions, InMemory};
use crate::command::{Refused, TransientAppended, TransientDeclare, TransientInfo};
use crate::core::Core;
use crate::transient::TransientQueue;
use bytes::Bytes;
use longshore_io::Mono;
use longshore_wire::{LogId, LogTime, NamespaceId, Offset, SessionId, ShardId, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Bits of the counter in a log's id; the term's low bits stand above. Ids come round after 16 million queues of a
/// term; those in use are passed over.
const COUNTER_BITS: u32 = 24;
/// Bits of an offset within its term: the bits above are the term's, so that a settle of an older term finds nothing.
const OFFSET_BITS: u32 = 40;

/// All transient queues.
#[derive(Debug)]
pub(crate) struct Transients {
    shard: ShardId,
    term: Term,
    counter: u64,
    pub queues: BTreeMap<LogId, TransientQueue>,
    names: BTreeMap<(NamespaceId, Bytes), LogId>,
    owned: BTreeSet<(SessionId, u64, LogId)>,
}

impl Transients {
    pub fn new(shard: ShardId) -> Transients {
        Transients {
            shard,
            term: Term(0),
            counter: 0,
            queues: BTreeMap::new(),
            names: BTreeMap::new(),
            owned: BTreeSet::new(),
        }
    }

    pub fn begin(&mut self, term: Term) {
        self.term = term;
        self.counter = 0;
    }

    fn new_id(&mut self) -> LogId {
        loop {
            self.counter = (self.counter + 1) & ((1 << COUNTER_BITS) - 1);
            let term = (self.term.0 & ((1 << (48 - COUNTER_BITS)) - 1)) << COUNTER_BITS;
            let id = LogId::transient(self.shard, term | self.counter);
            if !self.queues.contains_key(&id) {
                return id;
            }
        }
    }

    /// Makes a queue, or answers the one of that name if `asker` may use it and it is the same.
    pub fn declare(
        &mut self,
        now: Mono,
        asker: (SessionId, u64),
        declare: TransientDeclare,
        core: &mut Core,
    ) -> Result<TransientInfo, Refused> {
        let name = (declare.namespace, declare.name.clone());
        if let Some(log) = self.names.get(&name).copied() {
            return self.found(now, asker, log, &declare);
        }
        if self.queues.len() >= core.config.transient_queues_max {
            return Err(Refused::Busy);
        }
        let log = self.new_id();
        let term = (self.term.0 & ((1 << (63 - OFFSET_BITS)) - 1)) << OFFSET_BITS;
        if let Some((session, connection)) = declare.owner {
            self.owned.insert((session, connection, log));
        }
        self.names.insert(name, log);
        self.queues.insert(log, TransientQueue::new(log, Offset(term), declare, now));
        core.counters.transient_queues = self.queues.len() as u64;
        self.info(log, true).ok_or(Refused::UnknownLog)
    }

    fn found(
        &mut self,
        now: Mono,
        asker: (SessionId, u64),
        log: LogId,
        declare: &TransientDeclare,
    ) -> Result<TransientInfo, Refused> {
        let queue = self.queues.get_mut(&log).ok_or(Refused::UnknownLog)?;
        if queue.declared.owner.is_some_and(|owner| owner != asker) {
            return Err(Refused::Exclusive);
        }
        if queue.declared != *declare {
            return Err(Refused::Inequivalent);
        }
        queue.touch(now);
        self.info(log, false).ok_or(Refused::UnknownLog)
    }

    fn info(&self, log: LogId, created: bool) -> Option<TransientInfo> {
        let queue = self.queues.get(&log)?;
        Some(TransientInfo {
            log,
            created,
            counts: queue.counts(),
            owner: queue.declared.owner,
            auto_delete: queue.declared.auto_delete,
            arguments: queue.declared.arguments.clone(),
        })
    }

    /// The queue of this name.
    pub fn find(&self, namespace: NamespaceId, name: &Bytes) -> Option<TransientInfo> {
        self.info(*self.names.get(&(namespace, name.clone()))?, false)
    }

    /// The queue of this name is used now, if it is here.
    pub fn touch(&mut self, now: Mono, namespace: NamespaceId, name: &Bytes) -> Option<LogId> {
        let log = *self.names.get(&(namespace, name.clone()))?;
        self.queues.get_mut(&log)?.touch(now);
        Some(log)
    }

    /// Deletes one; how many messages it had.
    pub fn delete(
        &mut self,
        log: LogId,
        if_unused: bool,
        if_empty: bool,
        core: &mut Core,
    ) -> Result<u64, Refused> {
        let queue = self.queues.get(&log).ok_or(Refused::UnknownLog)?;
        if if_unused && !queue.desk.consumers.is_empty() {
            return Err(Refused::InUse);
        }
        let counts = queue.counts();
        if if_empty && counts.ready + counts.delayed > 0 {
            return Err(Refused::NotEmpty);
        }
        self.remove(log, core);
        Ok(counts.ready + counts.delayed)
    }

    /// Ends a queue and says so to its consumers; its name, if there was one.
    pub fn remove(&mut self, log: LogId, core: &mut Core) -> Option<(NamespaceId, Bytes)> {
        let mut queue = self.queues.remove(&log)?;
        let mut out = std::mem::take(&mut core.outbox);
        queue.close(Refused::UnknownLog, core, &mut out);
        let TransientDeclare { namespace, name, owner, .. } = queue.declared;
        self.names.remove(&(namespace, name.clone()));
        if let Some((session, connection)) = owner {
            self.owned.remove(&(session, connection, log));
        }
        core.outbox = out;
        core.counters.transient_queues = self.queues.len() as u64;
        Some((namespace, name))
    }

    /// The queues that a session, or one of its connections, owns.
    pub fn owned_by(&self, session: SessionId, connection: Option<u64>) -> Vec<LogId> {
        let first = (session, connection.unwrap_or(0), LogId(0));
        let last = (session, connection.unwrap_or(u64::MAX), LogId(u64::MAX));
        self.owned.range(first..=last).map(|(_, _, log)| *log).collect()
    }

    /// Stores `message` in those of its targets that are here and have room.
    pub fn append(
        &mut self,
        log_time: LogTime,
        message: &Arc<InMemory>,
        core: &mut Core,
        mut stored: impl FnMut(LogId),
    ) -> TransientAppended {
        let mut result = TransientAppended::default();
        for log in message.record.targets() {
            match self.queues.get_mut(&log) {
                None => result.missing.push(log),
                Some(queue) if !queue.has_room(message, core) => {
                    core.counters.refused += 1;
                    result.full.push(log);
                }
                Some(queue) => {
                    queue.append(message, log_time, core);
                    stored(log);
                }
            }
        }
        result
    }

    /// All of them end with the leader.
    pub fn resign(&mut self, core: &mut Core, out: &mut Actions) {
        for (_, mut queue) in std::mem::take(&mut self.queues) {
            queue.close(Refused::NotLeader, core, out);
        }
        self.names.clear();
        self.owned.clear();
    }
}
