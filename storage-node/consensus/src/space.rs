//! Which nodes are short of disk space, by their own word.
//!
//! Danger: a leader that counted only its own disk would go on taking publishes that its followers cannot store. A node that is
//! silent is counted by the last that it said. Called by the store.

use crate::Membership;
use longshore_wire::{NodeId, ReplicaId};
use std::collections::BTreeSet;

/// See the module.
#[derive(Default)]
pub(crate) struct Space {
    short: BTreeSet<NodeId>,
}

impl Space {
    /// What a node said of itself.
    pub(crate) fn note(&mut self, node: NodeId, short: bool) {
        if short {
            self.short.insert(node);
        } else {
            self.short.remove(&node);
        }
    }

    pub(crate) fn is_short(&self, node: NodeId) -> bool {
        self.short.contains(&node)
    }

    /// Whether a majority of a group's voters, of either half of a change, is short of space.
    pub(crate) fn is_majority_short(&self, members: &Membership) -> bool {
        let majority = |voters: &[ReplicaId]| {
            voters.iter().filter(|voter| self.is_short(voter.node())).count() * 2 > voters.len()
        };
        majority(&members.voters) || majority(&members.outgoing)
    }
}
