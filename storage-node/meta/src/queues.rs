//! Queues: durable ones, which get a log and a shard here, and claims on names by transient ones.
//!
//! Danger: a log's id is never given twice, or a tombstone would drop a living log. Called by `apply`.

use crate::Meta;
use crate::apply::{Decided, given, refusal, room, valid};
use crate::limits::{ARGUMENTS_BYTES_MAX, NAME_BYTES_MAX, QUEUES_MAX, SPANS_MAX, SPEC_BYTES_MAX};
use longshore_proto::v1::{DeclareQueue, DeleteQueue, MetaError, MetaReply, Queue, Span};
use longshore_wire::{LogId, ShardId};

impl Meta {
    pub(crate) fn declare_queue(&mut self, declare: DeclareQueue) -> Decided {
        let asked = given(declare.queue, "no queue given")?;
        self.check_queue(&asked)?;
        let Some(known) = self.queue(asked.namespace, &asked.name) else {
            return self.make_queue(asked);
        };
        let owns = known.owner_session == asked.owner_session && known.owner == asked.owner;
        if known.exclusive && !owns {
            let mut refused =
                refusal(MetaError::MetaExclusive, "the queue is exclusive to another connection");
            refused.queue = Some(known.clone());
            return Err(refused);
        }
        if let Some(what) = difference(known, &asked) {
            let mut refused = refusal(MetaError::MetaInequivalent, what);
            refused.queue = Some(known.clone());
            return Err(refused);
        }
        // The shard's leader was lost with the transient queue; its owner made it again somewhere else.
        let moved =
            !known.durable && asked.log != 0 && (known.log != asked.log || known.spans != asked.spans);
        if moved {
            let mut again = known.clone();
            again.log = asked.log;
            again.spans = asked.spans;
            self.put_queue(again.clone());
            return Ok(MetaReply { queue: Some(again), ..MetaReply::default() });
        }
        Ok(MetaReply { queue: Some(known.clone()), ..MetaReply::default() })
    }

    fn check_queue(&self, queue: &Queue) -> Result<(), Box<MetaReply>> {
        valid(
            !queue.name.is_empty() && queue.name.len() <= NAME_BYTES_MAX,
            "a queue's name has 1 to 255 bytes",
        )?;
        valid(queue.kind.len() <= NAME_BYTES_MAX, "a queue's kind has at most 255 bytes")?;
        valid(queue.arguments.len() <= ARGUMENTS_BYTES_MAX, "the arguments are too long")?;
        valid(queue.spec.len() <= SPEC_BYTES_MAX, "the log's settings are too long")?;
        valid(queue.spans.len() <= SPANS_MAX, "too many spans")?;
        self.check_namespace(queue.namespace)?;
        if queue.durable {
            return valid(
                queue.owner_session == 0 && queue.owner == 0 && !queue.exclusive,
                "a durable queue has no owner",
            );
        }
        let log = LogId(queue.log);
        valid(log.0 == 0 || log.is_transient(), "a transient queue has a transient log")?;
        valid(!queue.exclusive || queue.owner_session != 0, "an exclusive queue has an owner")?;
        self.check_session(queue.owner_session)
    }

    pub(crate) fn check_namespace(&self, namespace: u32) -> Result<(), Box<MetaReply>> {
        if self.namespaces.contains_key(&namespace) {
            return Ok(());
        }
        Err(refusal(MetaError::MetaNotFound, "no such namespace"))
    }

    /// An owner must be alive, or what it owns would never go.
    pub(crate) fn check_session(&self, session: u64) -> Result<(), Box<MetaReply>> {
        if session == 0 || self.gateways.contains_key(&session) {
            return Ok(());
        }
        Err(refusal(MetaError::MetaSession, format!("gateway session {session} is over")))
    }

    fn make_queue(&mut self, mut queue: Queue) -> Decided {
        // A tombstone is never forgotten before its log is dropped: the log would stay for ever.
        room(
            self.queues.len() + self.tombstones.len(),
            QUEUES_MAX,
            "queues, deleted ones whose messages are not gone yet included",
        )?;
        queue.created_revision = self.next_revision();
        if queue.durable {
            let shard =
                self.emptiest_shard().ok_or_else(|| refusal(MetaError::MetaUnavailable, "no shard"))?;
            self.numbers.last_log += 1;
            queue.log = self.numbers.last_log;
            queue.spans = vec![Span { from_offset: 0, shard: shard.0 }];
        }
        self.put_queue(queue.clone());
        Ok(MetaReply { queue: Some(queue), created: true, ..MetaReply::default() })
    }

    /// The shard with the fewest durable logs; of several the first.
    fn emptiest_shard(&self) -> Option<ShardId> {
        let logs = |shard: &u32| self.shard_logs.get(shard).copied().unwrap_or(0);
        self.shards
            .keys()
            .copied()
            .filter(|shard| *shard != 0)
            .min_by_key(|shard| (logs(shard), *shard))
            .map(ShardId)
    }

    /// Deletes a queue with its bindings. A transient queue need not be claimed: then its bindings go.
    pub(crate) fn delete_queue(&mut self, delete: DeleteQueue) -> Decided {
        let key = (delete.namespace, delete.name);
        let known = self.queues.get(&key);
        if let Some(known) = known
            && delete.log != 0
            && known.log != delete.log
        {
            return Err(refusal(MetaError::MetaNotFound, "the queue of that name has another log"));
        }
        if known.is_none() && self.bindings.leading_to(key.0, false, &key.1).is_empty() {
            return Err(refusal(MetaError::MetaNotFound, format!("no queue '{}'", key.1)));
        }
        self.drop_bindings_into(key.0, false, &key.1);
        let queue = self.drop_queue(&key);
        Ok(MetaReply { queue, ..MetaReply::default() })
    }

    pub(crate) fn logs_dropped(&mut self, logs: &[u64]) -> Decided {
        for log in logs {
            self.drop_tombstone(*log);
        }
        Ok(MetaReply::default())
    }
}

/// What differs between a queue and what is asked for, in AMQP's words.
fn difference(known: &Queue, asked: &Queue) -> Option<&'static str> {
    let same = [
        (known.durable == asked.durable, "durable"),
        (known.exclusive == asked.exclusive, "exclusive"),
        (known.auto_delete == asked.auto_delete, "auto_delete"),
        (known.kind == asked.kind, "type"),
        (known.arguments == asked.arguments, "arguments"),
        (known.spec == asked.spec, "arguments"),
        (known.expires_ms == asked.expires_ms, "x-expires"),
        (known.single_active == asked.single_active, "x-single-active-consumer"),
    ];
    same.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
}
