//! The state machines of one node: each is the list of the values that were applied.
//!
//! `Saved` is what a node keeps on its disk beside the log: checkpoints and staged snapshots. It survives a crash.

use bytes::Bytes;
use longshore_consensus::{Machine, Membership, Role, SnapshotMeta, SnapshotPages};
use longshore_wire::{Index, ReplicaId, ShardId, Term};
use std::collections::BTreeMap;

/// One group's state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct State {
    pub applied: u64,
    pub values: Vec<Bytes>,
}

/// What survives a crash.
#[derive(Clone, Default)]
pub struct Saved {
    /// How far each group is known to have been applied before.
    pub reached: BTreeMap<ShardId, Index>,
    pub checkpoints: BTreeMap<ShardId, State>,
    /// By group and index: complete, with all bodies.
    pub staged: BTreeMap<(ShardId, u64), Vec<Bytes>>,
}

/// What was applied anywhere: the same everywhere, or it is noted.
#[derive(Default)]
pub struct History {
    applied: BTreeMap<(ShardId, u64), (u64, Bytes)>,
    pub violations: Vec<String>,
}

impl History {
    pub fn applied(&mut self, group: ShardId, index: u64, term: u64, data: &Bytes) {
        let found = self.applied.entry((group, index)).or_insert_with(|| (term, data.clone()));
        if (found.0, &found.1) != (term, data) {
            self.violations.push(format!("two entries at {group} {index}: terms {} and {term}", found.0));
        }
    }

    /// The values of a group in the order of their indexes.
    pub fn values(&self, group: ShardId) -> Vec<Bytes> {
        let all = self.applied.range((group, 0)..(ShardId(group.0 + 1), 0));
        all.map(|(_, (_, data))| data.clone()).filter(|d| !d.is_empty()).collect()
    }
}

/// The machines of a running node.
#[derive(Default)]
pub struct Machines {
    pub states: BTreeMap<ShardId, State>,
    pub roles: BTreeMap<ShardId, Role>,
    pub members: BTreeMap<ShardId, Membership>,
    pub staged: BTreeMap<(ShardId, u64), Vec<Bytes>>,
    /// Pages whose bodies are not here yet.
    pub arriving: BTreeMap<(ShardId, u64), Vec<Bytes>>,
    /// Taken by the cluster after each turn.
    pub applied: Vec<(ShardId, u64, u64, Bytes)>,
    pub restored: Vec<(ShardId, u64)>,
}

impl Machine for Machines {
    fn apply(&mut self, group: ShardId, index: Index, term: Term, _context: &Bytes, data: &Bytes) {
        let state = self.states.entry(group).or_default();
        // A broken build may apply anything; a sound one applies the next index.
        state.applied = index.0;
        if !data.is_empty() {
            state.values.push(data.clone());
        }
        self.applied.push((group, index.0, term.0, data.clone()));
    }

    fn role_changed(&mut self, group: ShardId, role: Role) {
        self.roles.insert(group, role);
    }

    fn snapshot(&mut self, group: ShardId, meta: &SnapshotMeta, _to: ReplicaId) -> SnapshotPages {
        let state = self.states.entry(group).or_default();
        assert!(state.applied == meta.index.0 || meta.index == longshore_consensus::BOOTSTRAP_INDEX);
        SnapshotPages { index: meta.index, pages: state.values.clone() }
    }

    fn restore(&mut self, group: ShardId, meta: &SnapshotMeta) {
        let key = (group, meta.index.0);
        let lost = |pages: &Vec<Bytes>| vec![Bytes::from_static(b"body lost"); pages.len()];
        let arriving = self.arriving.get(&key).map(lost);
        let values = self.staged.get(&key).cloned().or(arriving).unwrap_or_default();
        self.states.insert(group, State { applied: meta.index.0, values });
        self.restored.push(key);
    }

    fn membership_changed(&mut self, group: ShardId, membership: &Membership) {
        self.members.insert(group, membership.clone());
    }
}
