//! Durable queues that end by themselves: auto-delete when the last consumer leaves, `x-expires` when unused.
//!
//! The shard's leader watches their use and asks meta to delete them. A new leader begins to count anew, so a queue may
//! live longer than asked, never shorter. Called by the upkeep.

use crate::host::Host;
use longshore_delivery::QueueId;
use longshore_io::Mono;
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::{DeleteQueue, MetaCommand};
use longshore_wire::{CursorId, LogId, ShardId};
use std::collections::BTreeMap;

/// How a queue was used, as far as this leader saw.
#[derive(Debug)]
struct Use {
    last: Mono,
    consumed: bool,
}

/// The use of queues that may end by themselves.
#[derive(Debug, Default)]
pub(crate) struct Usage {
    uses: BTreeMap<LogId, Use>,
}

impl Usage {
    /// A queue was declared, looked at, got from or consumed.
    pub fn touch(&mut self, log: LogId, now: Mono, consumed: bool) {
        if let Some(known) = self.uses.get_mut(&log) {
            known.last = now;
            known.consumed |= consumed;
        }
    }
}

impl Host {
    /// Asks meta to delete what has ended.
    pub(crate) fn tend_usage(&mut self, now: Mono) {
        let mut seen = BTreeMap::new();
        let ending = self.meta.meta.queues().filter(|q| q.durable && (q.auto_delete || q.expires_ms > 0));
        for queue in ending {
            let log = LogId(queue.log);
            let Some(shard) = queue.spans.last().map(|span| ShardId(span.shard)) else { continue };
            let Some(host) = self.shards.get(&shard).filter(|host| host.is_leader().is_some()) else {
                continue;
            };
            let id = QueueId { log, cursor: CursorId(0) };
            let Some(counts) = host.delivery.stat(id, &host.shard) else { continue };
            let mut used = self.usage.uses.remove(&log).unwrap_or(Use { last: now, consumed: false });
            if counts.consumers > 0 {
                used = Use { last: now, consumed: true };
            }
            let left = queue.auto_delete && used.consumed && counts.consumers == 0;
            let unused = queue.expires_ms > 0 && now >= used.last.plus_ms(queue.expires_ms);
            if left || unused {
                let delete =
                    DeleteQueue { namespace: queue.namespace, name: queue.name.clone(), log: queue.log };
                let command = Some(Command::DeleteQueue(delete));
                self.meta.wanted.push(MetaCommand { command, ..MetaCommand::default() });
            }
            seen.insert(log, used);
        }
        self.usage.uses = seen;
    }
}
