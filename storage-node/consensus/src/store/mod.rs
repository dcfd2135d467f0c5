//! All groups of a node: opening and closing them, and what may be asked between turns.

mod turn;

use crate::api::{GroupStatus, OpenError, ProposeError, Replica, Role};
use crate::clock::Clocks;
use crate::config::Config;
use crate::group::{Begin, Group, Hard, max_election_ticks, min_election_ticks};
use crate::journal::{decode_conf, first_conf, from_log};
use crate::lease::Rounds;
use crate::space::Space;
use crate::storage::GroupStorage;
use crate::{BOOTSTRAP_INDEX, BOOTSTRAP_TERM, Membership};
use bytes::Bytes;
use longshore_io::Mono;
use longshore_log::{Fetched, MaintenanceDone, MaintenanceJob, NodeLog};
use longshore_mutations::{self as mutations, Mutation};
use longshore_wire::{Index, LogTime, NodeId, ReplicaId, ShardId, Term};
use raft::RawNode;
use raft::eraftpb::{Entry, HardState};
use std::collections::{BTreeMap, BTreeSet};

/// Bytes of one read while a group is opened.
const OPEN_READ_BYTES_MAX: usize = 8 << 20;
/// Clock samples older than this many election timeouts count for nothing.
const CLOCK_AGE_TIMEOUTS: u64 = 3;

/// Owns the groups and the node log's tables; lives on the store thread.
pub struct Store {
    config: Config,
    log: NodeLog,
    logger: slog::Logger,
    groups: BTreeMap<ShardId, Group>,
    /// Groups that were opened since the last turn, or that have something to do in the next one.
    dirty: BTreeSet<ShardId>,
    rounds: Rounds,
    clocks: Clocks,
    space: Space,
    next_tick: Mono,
    ticks: u64,
    /// Number of the newest write submitted, and of the newest one synced.
    submitted: u64,
    written: u64,
    leaving: bool,
    malformed_frames: u64,
}

impl Store {
    /// A store without groups.
    ///
    /// # Errors
    /// [`OpenError::Config`] for parameters outside their ranges.
    pub fn new(config: Config, log: NodeLog, now: Mono) -> Result<Store, OpenError> {
        config.check().map_err(OpenError::Config)?;
        Ok(Store {
            next_tick: Mono(now.0.saturating_add(config.tick_us)),
            config,
            log,
            logger: slog::Logger::root(slog::Discard, slog::o!()),
            groups: BTreeMap::new(),
            dirty: BTreeSet::new(),
            rounds: Rounds::default(),
            clocks: Clocks::default(),
            space: Space::default(),
            ticks: 0,
            submitted: 0,
            written: 0,
            leaving: false,
            malformed_frames: 0,
        })
    }

    /// Makes the first replica `me` of a new group, as all of `voters` do in the same way. Durable with the next
    /// turn's write; the machine begins empty at [`BOOTSTRAP_INDEX`]. Only for forming a cluster or placing a new shard:
    /// never for a replica that existed before.
    pub fn bootstrap(
        &mut self,
        group: ShardId,
        me: ReplicaId,
        voters: &[ReplicaId],
        now: Mono,
    ) -> Result<(), OpenError> {
        let members = Membership::of_voters(voters.to_vec());
        let hard = Hard { term: BOOTSTRAP_TERM, vote: ReplicaId(0), commit: BOOTSTRAP_INDEX };
        self.check_new(group)?;
        self.log.reset(group);
        let log = &mut self.log;
        log.install_snapshot(group, BOOTSTRAP_INDEX, BOOTSTRAP_TERM)
            .and_then(|()| log.set_conf(group, first_conf(BOOTSTRAP_INDEX, &members)))
            .and_then(|()| log.set_hard_state(group, hard.into()))
            .map_err(|e| OpenError::Log { group, message: e.to_string() })?;
        let storage = GroupStorage::new((BOOTSTRAP_INDEX, BOOTSTRAP_TERM), library_hard(&hard), members);
        let begin = Begin { id: group, me, hard, members_at: BOOTSTRAP_INDEX };
        self.start(begin, storage, BOOTSTRAP_INDEX, now)
    }

    /// Makes an empty replica `me`: it never campaigns, and becomes a member by a snapshot from the leader that was told
    /// to [`Store::reconcile`] it in. `me` must be an id that was never used.
    pub fn join(&mut self, group: ShardId, me: ReplicaId, now: Mono) -> Result<(), OpenError> {
        self.check_new(group)?;
        self.log.reset(group);
        let hard = Hard::default();
        let storage = GroupStorage::new((Index(0), Term(0)), library_hard(&hard), Membership::default());
        self.start(Begin { id: group, me, hard, members_at: Index(0) }, storage, Index(0), now)
    }

    /// Opens a replica that the log recovered; `applied` is what its machine holds after loading its checkpoint (or
    /// its staged snapshot, if that is newer). `committed` is an index that it is known to have applied before the restart, although
    /// the log's hard state may not say so yet. Blocking: reads the entries above `applied`. Everything committed is applied in
    /// the next turn, before its first tick.
    pub fn open(
        &mut self,
        group: ShardId,
        me: ReplicaId,
        applied: Index,
        committed: Index,
        now: Mono,
    ) -> Result<(), OpenError> {
        self.check_new(group)?;
        if self.log.is_set_aside(group) {
            return Err(OpenError::SetAside(group));
        }
        let first = self.log.first_index(group).ok_or(OpenError::Unknown(group))?;
        let base = Index(first.0.saturating_sub(1));
        let last = self.log.last_appended(group).map_or(base, |a| a.0);
        // The broken build that loses entries does not look for them either.
        let unchecked = base == BOOTSTRAP_INDEX || mutations::on(Mutation::SegmentRemovedEarly);
        let applied = if unchecked { applied.max(base) } else { applied };
        if applied < base {
            return Err(OpenError::StateMissing { group, applied, base });
        }
        if applied > last {
            return Err(OpenError::EntriesLost { group, applied, last });
        }
        let conf = self.log.conf(group).unwrap_or_default();
        let (members_at, members) =
            decode_conf(conf).map_err(|error| OpenError::Membership { group, error })?;
        let kept = self.log.hard_state(group).unwrap_or_default();
        let commit = applied.max(kept.commit.max(committed).min(last));
        let hard = Hard { term: kept.term, vote: kept.vote, commit };
        let storage = self.load(group, (base, last), applied, &hard, members)?;
        self.start(Begin { id: group, me, hard, members_at }, storage, applied, now)
    }

    fn load(
        &self,
        group: ShardId,
        (base, last): (Index, Index),
        applied: Index,
        hard: &Hard,
        members: Membership,
    ) -> Result<GroupStorage, OpenError> {
        let failed = |e: longshore_log::ReadError| OpenError::Log { group, message: e.to_string() };
        let base_term = self.log.term(group, base).map_err(failed)?;
        let mut storage = GroupStorage::new((base, base_term), library_hard(hard), members);
        for index in base.0 + 1..=applied.0 {
            storage.load_term(index, self.log.term(group, Index(index)).map_err(failed)?.0);
        }
        let mut next = applied.0 + 1;
        while next <= last.0 {
            let fetched = self.log.entries(group, Index(next), Index(last.0 + 1), OPEN_READ_BYTES_MAX);
            let entries = match fetched.map_err(failed)? {
                Fetched::Ready(entries) => entries,
                Fetched::Read(task) => task.run().entries.map_err(failed)?,
            };
            if entries.is_empty() {
                return Err(failed(longshore_log::ReadError::Unavailable));
            }
            next += entries.len() as u64;
            let entries: Vec<Entry> = entries.into_iter().map(from_log).collect();
            storage.append(&entries);
        }
        if let Some(term) = storage.term_of(applied.0) {
            storage.set_applied(applied.0, term);
        }
        Ok(storage)
    }

    fn check_new(&self, group: ShardId) -> Result<(), OpenError> {
        if self.groups.contains_key(&group) { Err(OpenError::AlreadyOpen(group)) } else { Ok(()) }
    }

    fn start(
        &mut self,
        begin: Begin,
        storage: GroupStorage,
        applied: Index,
        now: Mono,
    ) -> Result<(), OpenError> {
        let group = begin.id;
        let c = &self.config;
        let config = raft::Config {
            id: begin.me.0,
            election_tick: c.election_ticks,
            // The store starts heartbeat rounds itself, all groups in one; the library's own is only a fallback.
            heartbeat_tick: c.election_ticks - 1,
            min_election_tick: min_election_ticks(c),
            max_election_tick: max_election_ticks(c),
            applied: applied.0,
            max_size_per_msg: c.append_bytes_max as u64,
            max_inflight_msgs: c.appends_in_flight_max,
            max_uncommitted_size: c.uncommitted_bytes_max as u64,
            check_quorum: true,
            pre_vote: true,
            // Followers learn the commit with the next append or heartbeat; they serve no reads.
            skip_bcast_commit: true,
            batch_append: true,
            ..raft::Config::default()
        };
        let raw = RawNode::new(&config, storage, &self.logger)
            .map_err(|e| OpenError::Library { group, message: e.to_string() })?;
        self.groups.insert(group, Group::new(begin, raw, now, &self.config));
        self.dirty.insert(group);
        Ok(())
    }

    /// Gives up a replica that has left its group, or whose part of this node is damaged: it stops here, and stays given up
    /// over a restart until [`Store::join`] makes a new one under another id.
    pub fn set_aside(&mut self, group: ShardId) {
        self.groups.remove(&group);
        self.log.set_aside(group);
    }

    /// Queues an entry; it is appended in the next turn together with all that was proposed for its group. Nothing tells
    /// of an entry that is lost because leadership ends: its proposer learns it from the role and sends again.
    ///
    /// # Errors
    /// See [`ProposeError`]; nothing was queued.
    pub fn propose(&mut self, group: ShardId, context: Bytes, data: Bytes) -> Result<(), ProposeError> {
        let found = self.groups.get_mut(&group).ok_or(ProposeError::UnknownGroup)?;
        let mut entry = Entry::default();
        (entry.context, entry.data) = (context, data);
        found.propose(entry, &self.config)?;
        self.dirty.insert(group);
        Ok(())
    }

    /// Log time for an entry that is proposed now: the monotonic clock, anchored to the median of the voters' wall
    /// clocks; it never goes back within this process. `None` until a majority's clocks are known: wait a heartbeat.
    pub fn stamp(&mut self, group: ShardId, now: Mono) -> Option<LogTime> {
        let found = self.groups.get_mut(&group)?;
        let nodes = found.voter_nodes();
        let age_us_max = self.config.election_us().saturating_mul(CLOCK_AGE_TIMEOUTS);
        found.clock.adjust(&self.clocks, &nodes, now, age_us_max);
        found.clock.stamp(now)
    }

    /// Until when this node may deliver and answer gets for the group: it leads, and a majority answered a heartbeat round that began
    /// less than an election timeout, less two ticks, earlier. `None`: not at all. Compare with a clock read at
    /// *each send*, so that a process that was paused notices.
    pub fn lease_until(&self, group: ShardId) -> Option<Mono> {
        self.groups.get(&group)?.lease_until(&self.config)
    }

    /// Whether [`Store::lease_until`] is later than `now`.
    pub fn may_deliver(&self, group: ShardId, now: Mono) -> bool {
        self.lease_until(group).is_some_and(|until| now < until)
    }

    /// The role of this node's replica; `None` without one.
    pub fn role(&self, group: ShardId) -> Option<Role> {
        self.groups.get(&group).map(Group::role)
    }

    /// The groups of this node, ascending.
    pub fn groups(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.groups.keys().copied()
    }

    /// A group as this node sees it.
    pub fn status(&self, group: ShardId) -> Option<GroupStatus> {
        self.groups.get(&group).map(Group::status)
    }

    /// Tells which members the group shall have; acted upon whenever this node leads it. Level-triggered: call it with
    /// meta's view whenever that changes. An empty list changes nothing.
    pub fn reconcile(&mut self, group: ShardId, desired: &[Replica]) {
        if let Some(found) = self.groups.get_mut(&group) {
            found.want(desired);
        }
    }

    /// Hands over every leadership, now and from now on; for an orderly stop. Takes effect in the following turns, until
    /// [`Store::leads`] is 0 or the caller's patience ends.
    pub fn transfer_all(&mut self) {
        if !self.leaving {
            self.leaving = true;
            // Once: ticks that come too early would shorten election timeouts, and with them the margin of leases.
            self.next_tick = Mono(0);
        }
    }

    /// Hands the leadership of a group to a node, in the next turn, unless another hand-over is under way. Delivery stops before
    /// it begins; it may come to nothing.
    ///
    /// # Errors
    /// [`ProposeError::NotLeader`], [`ProposeError::UnknownGroup`]; and [`ProposeError::Busy`] if no voter lives there.
    pub fn transfer(&mut self, group: ShardId, to: NodeId) -> Result<(), ProposeError> {
        let found = self.groups.get_mut(&group).ok_or(ProposeError::UnknownGroup)?;
        if let Role::Follower { term, leader } = found.role() {
            return Err(ProposeError::NotLeader { term, leader });
        }
        let voter = found.members().voters.iter().copied().find(|id| id.node() == to);
        found.ask_transfer(voter.ok_or(ProposeError::Busy)?);
        self.dirty.insert(group);
        Ok(())
    }

    /// Whether this replica leads a group whose other voters all answered lately and hold everything that is committed: the
    /// group stays available without it, and with one more loss after its replacement.
    pub fn can_be_spared(&self, group: ShardId, now: Mono) -> bool {
        self.groups.get(&group).is_some_and(|group| group.can_be_spared(now, &self.config))
    }

    /// Whether a leadership has something in memory that a change of leader would lose: it is not moved for balance then.
    pub fn set_stays(&mut self, group: ShardId, stays: bool) {
        if let Some(group) = self.groups.get_mut(&group) {
            group.stays = stays;
        }
    }

    /// This node's disk is below its reserve, or above it again: its peers hear it with the answers to their heartbeats.
    pub fn set_short_of_space(&mut self, short: bool) {
        self.space.note(self.config.node, short);
    }

    /// Whether a majority of the group's voters is short of disk space, as far as this node has heard: a leader then
    /// takes no publishes. False for a group that is not here.
    pub fn lacks_space(&self, group: ShardId) -> bool {
        self.groups.get(&group).is_some_and(|group| self.space.is_majority_short(group.members()))
    }

    /// The members of a group as this node's log has them, also of one that is not open; `None` if it has none.
    pub fn stored_membership(&self, group: ShardId) -> Option<Membership> {
        let (_, members) = decode_conf(self.log.conf(group)?).ok()?;
        if members == Membership::default() { None } else { Some(members) }
    }

    /// How many groups this node leads.
    pub fn leads(&self) -> usize {
        self.groups.values().filter(|g| g.is_leader()).count()
    }

    /// Whether a checkpoint of what is applied may be taken now: a start from it does not replay the changes of the
    /// membership before it, so their record must be synced (simulation, seed 198).
    pub fn may_checkpoint(&self, group: ShardId) -> bool {
        self.groups.get(&group).is_some_and(|g| g.members_durable(self.written))
    }

    /// The group's checkpoint holds durably up to `index`: its log may be compacted to there, once every replica has it.
    pub fn checkpointed(&mut self, group: ShardId, index: Index) {
        self.log.checkpointed(group, index);
    }

    /// What every replica of the group holds, as far as its leader told.
    pub fn floor(&self, group: ShardId) -> Option<Index> {
        self.groups.get(&group).map(Group::floor)
    }

    /// Background work of the log, if any is due; see [`NodeLog::maintain`].
    pub fn maintain(&mut self) -> Option<MaintenanceJob> {
        self.log.maintain()
    }

    /// The end of background work.
    ///
    /// # Errors
    /// The process must end.
    pub fn maintained(&mut self, done: MaintenanceDone) -> Result<(), longshore_log::LogError> {
        self.log.maintained(done)
    }

    /// The node log's tables.
    pub fn log(&self) -> &NodeLog {
        &self.log
    }

    /// The node log's tables, for the record store's releases and holds. Entries and states are consensus' own.
    pub fn log_mut(&mut self) -> &mut NodeLog {
        &mut self.log
    }

    /// When the next turn is due even without an event.
    pub fn next_wakeup(&self) -> Mono {
        self.next_tick
    }

    /// Frames from peers that could not be read since the start.
    pub fn malformed_frames(&self) -> u64 {
        self.malformed_frames
    }

    fn peers(&self) -> BTreeSet<NodeId> {
        let members = self.groups.values().flat_map(|g| g.members().members());
        members.map(|id| id.node()).filter(|n| *n != self.config.node).collect()
    }
}

fn library_hard(hard: &Hard) -> HardState {
    let mut out = HardState::default();
    (out.term, out.vote, out.commit) = (hard.term.0, hard.vote.0, hard.commit.0);
    out
}
