//! One Raft group on this node: the library's `RawNode` and what the driver keeps beside it.
//!
//! Danger: which message may leave before which write is decided in [`ready`]; which request for a vote may be heard
//! is decided in [`step`]. Both carry guarantees that no later layer can restore.
//!
//! | module | duty |
//! |---|---|
//! | [`step`] | messages, ticks and proposals into Raft |
//! | [`ready`] | what Raft wants done: writes, messages, applies |
//! | [`lead`] | a leader's own duties: membership, hand-over, balance |
//! | [`snapshot`] | snapshots out and in |

mod lead;
mod ready;
mod snapshot;
mod step;

use crate::api::{Action, GroupStatus, Machine, Membership, Replica, Role};
use crate::clock::LogClock;
use crate::config::Config;
use crate::journal::Batch;
use crate::lease::{Lease, Promise};
use crate::mail::Mail;
use crate::rng::Rng;
use crate::storage::GroupStorage;
use longshore_io::Mono;
use longshore_mutations::{self as mutations, Mutation};
use longshore_wire::{Index, ReplicaId, ShardId, Term};
use raft::eraftpb::Entry;
use raft::{RawNode, StateRole};
use snapshot::Incoming;
use std::collections::VecDeque;

pub(crate) use lead::Duty;

/// What all groups share within one turn.
pub(crate) struct Turn<'a> {
    pub now: Mono,
    pub config: &'a Config,
    /// The number of the write that this turn may submit, and of the newest one that is synced.
    pub write: u64,
    pub written: u64,
    /// Whether the node stops: it takes no leadership.
    pub leaving: bool,
    /// What a `MsgTimeoutNow` of this turn carries.
    pub round_stamp: u64,
    pub machine: &'a mut dyn Machine,
    pub batch: Batch<'a>,
    pub mail: Mail,
    pub actions: Vec<Action>,
}

/// Term, vote and commit as they were last put into a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(crate) struct Hard {
    pub term: Term,
    pub vote: ReplicaId,
    pub commit: Index,
}

/// One replica.
pub(crate) struct Group {
    id: ShardId,
    me: ReplicaId,
    raw: RawNode<GroupStorage>,
    /// Taken by `propose`, not yet stepped.
    proposals: VecDeque<Entry>,
    proposed_bytes: usize,
    /// (write, ready) of writes that are not synced yet; ascending.
    in_flight: VecDeque<(u64, u64)>,
    /// (write, bytes) of entries that are not synced yet.
    unsynced: VecDeque<(u64, usize)>,
    last_ready: u64,
    hard: Hard,
    /// The newest write that holds a term or a vote.
    vote_write: u64,
    /// The newest write that holds a membership.
    members_write: u64,
    /// Term and state after the last step: a change tells that the library drew a new election timeout.
    seen: (u64, StateRole),
    timeout_ticks: usize,
    rng: Rng,
    role: Role,
    lease: Lease,
    promise: Promise,
    pub(crate) clock: LogClock,
    floor: Index,
    /// The entry that made the current membership.
    members_at: Index,
    wanted: Vec<Replica>,
    /// Whom an administrator wants to lead; tried once.
    asked: Option<ReplicaId>,
    transferring: Option<ReplicaId>,
    calm_ticks: u64,
    /// See [`crate::Store::set_stays`].
    pub(crate) stays: bool,
    incoming: Option<Incoming>,
    /// Receivers that have their bodies, since when; Raft's own acknowledgement should have come.
    delivered: Vec<(ReplicaId, Mono)>,
    /// Receivers whose snapshot failed, since when.
    failed: Vec<(ReplicaId, Mono)>,
    installing: Option<(u64, crate::api::SnapshotMeta)>,
    /// Entries that a broken build applied too early; 0 in a sound one.
    applied_early: u64,
    /// The machine has not been told of role and members yet.
    fresh: bool,
    stopped: bool,
}

/// What a group starts from.
pub(crate) struct Begin {
    pub id: ShardId,
    pub me: ReplicaId,
    pub hard: Hard,
    pub members_at: Index,
}

impl Group {
    /// Wraps a `RawNode` that was just made.
    pub(crate) fn new(begin: Begin, raw: RawNode<GroupStorage>, now: Mono, config: &Config) -> Group {
        let seed = config.seed ^ u64::from(begin.id.0).rotate_left(32) ^ begin.me.0.rotate_left(17);
        let mut group = Group {
            id: begin.id,
            me: begin.me,
            seen: (raw.raft.term, raw.raft.state),
            role: Role::Follower { term: Term(raw.raft.term), leader: None },
            raw,
            proposals: VecDeque::new(),
            proposed_bytes: 0,
            in_flight: VecDeque::new(),
            unsynced: VecDeque::new(),
            last_ready: 0,
            hard: begin.hard,
            vote_write: 0,
            members_write: 0,
            timeout_ticks: 0,
            rng: Rng::new(seed),
            lease: Lease::default(),
            promise: Promise::at_start(now, config.election_us()),
            clock: LogClock::default(),
            floor: Index(0),
            members_at: begin.members_at,
            wanted: Vec::new(),
            asked: None,
            transferring: None,
            calm_ticks: 0,
            stays: false,
            incoming: None,
            delivered: Vec::new(),
            failed: Vec::new(),
            installing: None,
            applied_early: 0,
            fresh: true,
            stopped: false,
        };
        group.draw_timeout(config);
        group
    }

    pub(crate) fn members(&self) -> &Membership {
        self.raw.store().members()
    }

    pub(crate) fn store(&self) -> &GroupStorage {
        self.raw.store()
    }

    pub(crate) fn store_mut(&mut self) -> &mut GroupStorage {
        self.raw.mut_store()
    }

    pub(crate) fn is_leader(&self) -> bool {
        self.raw.raft.state == StateRole::Leader && !self.stopped
    }

    /// Removed or damaged: the log may have nothing of it any more.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped
    }

    pub(crate) fn role(&self) -> Role {
        self.role
    }

    /// Whether the membership as of what is applied would be there after a crash, if writes are synced up to this one.
    pub(crate) fn members_durable(&self, written: u64) -> bool {
        self.members_write <= written
    }

    pub(crate) fn floor(&self) -> Index {
        self.floor
    }

    pub(crate) fn want(&mut self, wanted: &[Replica]) {
        self.wanted = wanted.to_vec();
    }

    pub(crate) fn ask_transfer(&mut self, to: ReplicaId) {
        self.asked = Some(to);
    }

    /// When this leader must stop delivering; `None` if it may not at all.
    pub(crate) fn lease_until(&self, config: &Config) -> Option<Mono> {
        if !matches!(self.role, Role::Leader { .. }) || !self.is_leader() {
            return None;
        }
        if mutations::on(Mutation::PausedLeaderDelivers) {
            return Some(Mono(u64::MAX));
        }
        if self.raw.raft.lead_transferee.is_some() {
            return None;
        }
        let sent = self.lease.majority_sent(self.me, self.members())?;
        Some(Mono(sent.0.saturating_add(config.lease_us())))
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let raft = &self.raw.raft;
        let mut matched: Vec<(ReplicaId, Index)> = Vec::new();
        if self.is_leader() {
            let others = raft.prs().iter().filter(|(id, _)| **id != self.me.0);
            matched.extend(others.map(|(id, p)| (ReplicaId(*id), Index(p.matched))));
            matched.sort_unstable();
        }
        GroupStatus {
            replica: self.me,
            role: self.role,
            first: Index(self.store().first()),
            last: Index(raft.raft_log.last_index()),
            committed: Index(raft.raft_log.committed),
            applied: Index(self.store().applied().0),
            membership: self.members().clone(),
            matched,
        }
    }

    /// Tells the machine of a new role, once what it implies holds.
    pub(crate) fn report_role(&mut self, turn: &mut Turn<'_>) {
        let raft = &self.raw.raft;
        let term = Term(raft.term);
        let holds_all = self.store().applied().1 == raft.term;
        let role = if self.is_leader() && holds_all {
            Role::Leader { term }
        } else {
            let known = raft.leader_id != 0 && raft.leader_id != self.me.0;
            Role::Follower { term, leader: known.then_some(ReplicaId(raft.leader_id)) }
        };
        if role != self.role || self.fresh {
            self.role = role;
            turn.machine.role_changed(self.id, role);
        }
        if std::mem::take(&mut self.fresh) && self.members().contains(self.me) {
            turn.machine.membership_changed(self.id, self.raw.store().members());
        }
    }

    /// The library draws its own random timeout at each reset; ours replaces it, so that runs repeat from a seed.
    fn draw_timeout(&mut self, config: &Config) {
        let (low, high) = (min_election_ticks(config), max_election_ticks(config));
        self.timeout_ticks = self.rng.range(low, high);
        self.raw.raft.set_randomized_election_timeout(self.timeout_ticks);
    }
}

/// A follower waits longer than the promise it gives to a leader, so that its neighbours are free to vote for it.
pub(crate) fn min_election_ticks(config: &Config) -> usize {
    config.election_ticks + 1
}

pub(crate) fn max_election_ticks(config: &Config) -> usize {
    config.election_ticks * 2 + 1
}
