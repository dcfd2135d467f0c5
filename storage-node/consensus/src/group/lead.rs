//! What a leader does on its own: bring the membership about, hand over, keep leaders spread, tell the floor.

use super::{Group, Turn};
use crate::api::Role;
use crate::codec::conf::Change;
use crate::config::Config;
use crate::membership::{Plan, plan};
use longshore_io::Mono;
use longshore_wire::{Index, NodeId, ReplicaId};
use raft::{ProgressState, StateRole};

/// Entries that a chosen successor may lack when leadership moves for the sake of balance.
const BALANCE_LAG_ENTRIES: u64 = 64;

/// What the store tells every leader at a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Duty {
    /// Ordinary work.
    Serve,
    /// The node stops: every leadership goes.
    Leave,
}

impl Group {
    /// Once per tick, on a leader.
    pub(crate) fn lead(&mut self, duty: Duty, turn: &mut Turn<'_>) {
        if !self.is_leader() {
            return;
        }
        self.update_floor();
        self.probe_delivered(turn);
        self.retry_failed(turn);
        let blocked = self.lease.blocked_since();
        if blocked.is_some_and(|since| turn.now.since(since) >= turn.config.election_us()) {
            self.step_down(turn);
            return;
        }
        if self.raw.raft.lead_transferee.is_some() || !matches!(self.role, Role::Leader { .. }) {
            return;
        }
        match duty {
            Duty::Leave => {
                if let Some(heir) = self.best_heir(turn) {
                    self.hand_over(heir, turn);
                }
            }
            Duty::Serve => {
                self.drive_membership(turn);
                self.balance(turn);
            }
        }
    }

    /// A hand-over failed and its receiver stays silent, so this leader could never deliver again: a new term
    /// makes the old `MsgTimeoutNow` worthless.
    fn step_down(&mut self, turn: &mut Turn<'_>) {
        let term = self.raw.raft.term;
        self.raw.raft.become_follower(term, raft::INVALID_ID);
        self.after_step(turn);
    }

    fn update_floor(&mut self) {
        let held = self.raw.raft.prs().iter().map(|(_, p)| p.matched).min();
        self.floor = self.floor.max(Index(held.unwrap_or(0)));
    }

    fn drive_membership(&mut self, turn: &mut Turn<'_>) {
        if self.raw.raft.has_pending_conf() {
            return;
        }
        let raft = &self.raw.raft;
        let caught_up = |id: ReplicaId| {
            let progress = raft.prs().get(id.0);
            let committed = raft.raft_log.committed;
            progress.is_some_and(|p| p.state != ProgressState::Snapshot && p.matched >= committed)
        };
        match plan(self.members(), &self.wanted, self.me, caught_up) {
            Plan::Nothing => {}
            Plan::Leave => self.propose_change(&Change::Leave, turn),
            Plan::Change(steps) => self.propose_change(&Change::Enter(steps), turn),
            Plan::HandOver(to) => {
                self.hand_over(to, turn);
            }
        }
    }

    /// Starts a hand-over: from here on nothing is delivered. Says whether it began.
    pub(crate) fn hand_over(&mut self, to: ReplicaId, turn: &mut Turn<'_>) -> bool {
        let voter = self.members().voters.contains(&to);
        if !self.is_leader() || to == self.me || !voter || self.raw.raft.lead_transferee.is_some() {
            return false;
        }
        self.raw.transfer_leader(to.0);
        self.transferring = self.raw.raft.lead_transferee.map(ReplicaId);
        self.after_step(turn);
        self.raw.raft.state == StateRole::Leader && self.transferring.is_some()
    }

    /// Does what [`crate::Store::transfer`] asked for, unless something else is being handed over.
    pub(crate) fn hand_over_asked(&mut self, turn: &mut Turn<'_>) {
        if let Some(to) = self.asked.take() {
            self.hand_over(to, turn);
        }
    }

    fn lags_at_most(&self, id: ReplicaId, entries: u64) -> bool {
        let last = self.raw.raft.raft_log.last_index();
        self.raw.raft.prs().get(id.0).is_some_and(|p| p.matched + entries >= last)
    }

    fn heard_lately(&self, id: ReplicaId, now: Mono, config: &Config) -> bool {
        self.lease.heard(id).is_some_and(|sent| now.since(sent) < config.lease_us())
    }

    /// See [`crate::Store::can_be_spared`].
    pub(crate) fn can_be_spared(&self, now: Mono, config: &Config) -> bool {
        let raft = &self.raw.raft;
        let members = self.members();
        let sound = |id: &ReplicaId| {
            let holds_all = raft.prs().get(id.0).is_some_and(|p| p.matched >= raft.raft_log.committed);
            holds_all && self.heard_lately(*id, now, config)
        };
        self.lease_until(config).is_some_and(|until| now < until)
            && members.outgoing.is_empty()
            && members.voters.len() > 2
            && members.voters.iter().filter(|id| **id != self.me).all(sound)
    }

    /// The voter that answers and lacks least.
    fn best_heir(&self, turn: &Turn<'_>) -> Option<ReplicaId> {
        let others = self.members().voters.iter().filter(|id| **id != self.me);
        let alive = others.filter(|id| self.heard_lately(**id, turn.now, turn.config));
        alive.copied().max_by_key(|id| (self.raw.raft.prs().get(id.0).map_or(0, |p| p.matched), id.0))
    }

    /// Leaders spread: group g belongs on the (g mod n)th of its voters' nodes. After a while of calm it goes there.
    fn balance(&mut self, turn: &mut Turn<'_>) {
        let config = turn.config;
        let mut home: Vec<ReplicaId> = self.members().voters.clone();
        home.sort_unstable_by_key(|id| (id.node(), *id));
        home.dedup_by_key(|id| id.node());
        let at = self.id.0 as usize % home.len().max(1);
        let wanted = home.get(at).copied().filter(|id| id.node() != self.me.node());
        let may_go = config.balance_ticks > 0 && !self.stays && !self.members().is_joint();
        let Some(heir) = wanted.filter(|_| may_go) else {
            self.calm_ticks = 0;
            return;
        };
        let calm =
            self.heard_lately(heir, turn.now, turn.config) && self.lags_at_most(heir, BALANCE_LAG_ENTRIES);
        self.calm_ticks = if calm { self.calm_ticks + 1 } else { 0 };
        if self.calm_ticks >= config.balance_ticks {
            self.calm_ticks = 0;
            self.hand_over(heir, turn);
        }
    }

    /// The nodes whose clocks anchor this group's stamps.
    pub(crate) fn voter_nodes(&self) -> Vec<NodeId> {
        self.members().voters.iter().map(|id| id.node()).collect()
    }
}
