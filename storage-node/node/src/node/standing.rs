//! What a node says of itself between two turns; nothing here changes it.

use super::Node;
use crate::META;
use crate::io::Standing;
use longshore_consensus::Role;
use longshore_io::Mono;
use longshore_wire::{LogTime, ShardId};

impl Node {
    /// When the next turn is due without an input.
    pub fn next_wakeup(&self) -> Mono {
        let mut next = self.store.next_wakeup().min(self.next_upkeep);
        let deadlines = self.host.shards.values().filter_map(|host| host.delivery.next_deadline());
        for deadline in deadlines.chain(self.host.meta.next_wake()) {
            next = next.min(deadline);
        }
        next
    }

    /// How this node stands.
    pub fn standing(&self) -> Standing {
        let (meta_term, meta_leader) = match self.host.meta.role {
            Role::Leader { term } => (term, Some(self.host.node)),
            Role::Follower { term, leader } => (term, leader.map(|leader| leader.node())),
        };
        let led = |group: ShardId| match self.store.role(group) {
            Some(Role::Leader { .. }) => true,
            Some(Role::Follower { leader, .. }) => leader.is_some(),
            None => false,
        };
        let mine = self.host.meta.meta.shards_of(self.host.node);
        let formed = self.host.meta.meta.cluster().is_some();
        let ready = formed && mine.iter().all(|(group, _, _)| led(*group));
        let meta_request = self.host.requests.get(META);
        Standing { meta_term, meta_leader, formed, ready, meta_request }
    }

    /// Whether the start cut a batch that a crash had torn.
    pub fn had_torn_tail(&self) -> bool {
        self.torn_tail
    }

    /// Entries that were overwritten after their segment was sealed, since the start.
    pub fn overwritten_sealed(&self) -> u64 {
        self.store.log().overwritten_sealed()
    }

    /// How many groups this node leads.
    pub fn leads(&self) -> usize {
        self.store.leads()
    }

    /// Log time of a shard as applied here, for tests.
    pub fn log_time(&self, shard: ShardId) -> Option<LogTime> {
        self.host.shards.get(&shard).map(|host| host.shard.log_time())
    }
}
