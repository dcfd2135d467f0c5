//! What no run may show: two values at one index, two leaders that may deliver at one moment, an acknowledged value that
//! is missing or comes twice, replicas that do not come to agree.

use crate::harness::{CALM, Cluster};
use crate::node::Node;
use bytes::Bytes;
use longshore_consensus::Role;
use longshore_wire::{NodeId, ReplicaId, ShardId};
use std::collections::BTreeSet;

impl Cluster {
    /// At no moment may two leaders of a group deliver.
    pub fn check_leases(&mut self) {
        for group in &self.groups {
            let delivering = self
                .nodes
                .values()
                .filter(|n| n.process.as_ref().is_some_and(|p| p.store.may_deliver(*group, self.now)));
            let ids: Vec<NodeId> = delivering.map(|n| n.id).collect();
            if ids.len() > 1 {
                self.history.violations.push(format!("{ids:?} deliver for {group} at {:?}", self.now));
            }
        }
    }

    /// The node that leads a group and says so.
    pub fn leader(&self, group: ShardId) -> Option<NodeId> {
        let leads = |n: &&Node| {
            n.process.as_ref().is_some_and(|p| matches!(p.store.role(group), Some(Role::Leader { .. })))
        };
        self.nodes
            .values()
            .filter(leads)
            .max_by_key(|n| {
                let p = n.process.as_ref().expect("it leads");
                match p.store.role(group) {
                    Some(Role::Leader { term }) => term,
                    _ => longshore_wire::Term(0),
                }
            })
            .map(|n| n.id)
    }

    /// Runs until a group has a leader that may deliver; says which.
    pub fn await_leader(&mut self, group: ShardId) -> NodeId {
        for _ in 0..3_000 {
            if let Some(id) = self.leader(group).filter(|id| {
                let p = self.nodes[id].process.as_ref().expect("it leads");
                p.store.may_deliver(group, self.now)
            }) {
                return id;
            }
            self.run_ms(10);
        }
        panic!("seed {}: no leader of {group} after 30 s", self.seed);
    }

    /// Heals everything, waits, and checks that all replicas agree and nothing acknowledged is lost or doubled.
    pub fn settle(&mut self) {
        self.cut.clear();
        self.weather = CALM;
        for id in self.ids() {
            let now = self.now;
            self.node(id).paused_until = now;
            self.start(id);
        }
        for _ in 0..600 {
            self.run_ms(100);
            if self.groups.clone().into_iter().all(|g| self.agrees(g)) {
                break;
            }
        }
        self.check();
    }

    fn agrees(&self, group: ShardId) -> bool {
        let Some(leader) = self.leader(group) else { return false };
        let status = |id: NodeId| self.nodes[&id].process.as_ref().and_then(|p| p.store.status(group));
        let Some(led) = status(leader) else { return false };
        let voters: BTreeSet<ReplicaId> =
            self.nodes.values().filter_map(|n| n.replicas.get(&group)).copied().collect();
        let complete = led.membership.voters.iter().copied().collect::<BTreeSet<_>>() == voters;
        complete
            && !led.membership.is_joint()
            && self.ids().into_iter().all(|id| {
                status(id)
                    .is_some_and(|s| s.applied == led.last && s.membership.voters == led.membership.voters)
            })
    }

    pub fn check(&self) {
        let mut wrong = self.history.violations.clone();
        for group in &self.groups {
            if !self.agrees(*group) {
                wrong.push(format!("{group} does not settle: {}", self.describe(*group)));
            }
            let values = self.history.values(*group);
            let unique: BTreeSet<&Bytes> = values.iter().collect();
            if unique.len() != values.len() {
                wrong.push(format!("{group} applied a value twice"));
            }
            for acked in self.acked.get(group).into_iter().flatten() {
                if !unique.contains(acked) {
                    wrong.push(format!("{group} lost an acknowledged value"));
                }
            }
            for node in self.nodes.values() {
                let state = node.process.as_ref().and_then(|p| p.machines.states.get(group));
                if state.is_some_and(|s| s.values != values) {
                    wrong.push(format!("{group} differs on {:?}", node.id));
                }
            }
        }
        wrong.truncate(8);
        assert!(wrong.is_empty(), "seed {}: {wrong:#?}", self.seed);
    }

    fn describe(&self, group: ShardId) -> String {
        let status = |n: &Node| n.process.as_ref().and_then(|p| p.store.status(group));
        let all: Vec<String> = self.nodes.values().map(|n| format!("{:?}: {:?}", n.id, status(n))).collect();
        all.join("\n")
    }
}
