//! What goes into a turn and what comes out of it, and what the replicated state machines must offer.
//!
//! Called by the node crate, which owns the network, the threads and the machines.

use bytes::Bytes;
use longshore_log::{Completion, ReadDone, ReadTask, SegmentId, WriteRequest};
use longshore_wire::{Index, NodeId, ReplicaId, ShardId, Term};

/// Who votes and who listens in a group.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Membership {
    /// Replicas whose majority decides; sorted.
    pub voters: Vec<ReplicaId>,
    /// The voters before a change that is under way: a majority of them must agree too. Empty otherwise.
    pub outgoing: Vec<ReplicaId>,
    /// Replicas that get every entry and do not vote.
    pub learners: Vec<ReplicaId>,
    /// Voters that become learners when the change ends.
    pub learners_next: Vec<ReplicaId>,
}

impl Membership {
    /// A membership of these voters alone.
    pub fn of_voters(mut voters: Vec<ReplicaId>) -> Membership {
        voters.sort_unstable();
        voters.dedup();
        Membership { voters, ..Membership::default() }
    }

    /// Whether a change is under way.
    pub fn is_joint(&self) -> bool {
        !self.outgoing.is_empty()
    }

    /// Whether `id` is in any of the lists.
    pub fn contains(&self, id: ReplicaId) -> bool {
        self.members().any(|m| m == id)
    }

    /// Every replica of the group; one may come twice while a change is under way.
    pub fn members(&self) -> impl Iterator<Item = ReplicaId> + '_ {
        [&self.voters, &self.outgoing, &self.learners, &self.learners_next].into_iter().flatten().copied()
    }
}

/// A member that [`crate::Store::reconcile`] shall bring about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    /// Its id; names its node.
    pub id: ReplicaId,
    /// Whether it shall stay a learner.
    pub learner: bool,
}

/// Where a snapshot stands in its group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMeta {
    /// The last entry that the state contains.
    pub index: Index,
    /// The term of that entry.
    pub term: Term,
    /// The members at that entry.
    pub membership: Membership,
}

/// A state machine's state in pages, as [`Machine::snapshot`] gave it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotPages {
    /// The last applied entry; must be the machine's applied index.
    pub index: Index,
    /// The pages; consensus never looks into them.
    pub pages: Vec<Bytes>,
}

/// What a replica is in its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It leads, and its machine holds everything that was committed before its term began. It may propose; it may
    /// deliver while [`crate::Store::lease_until`] says so.
    Leader {
        /// The term it leads.
        term: Term,
    },
    /// It follows, or nobody leads.
    Follower {
        /// The newest term it knows.
        term: Term,
        /// The leader of that term, if known.
        leader: Option<ReplicaId>,
    },
}

/// The replicated state machines of a node, one per group; implemented by the node crate.
///
/// All calls come from within [`crate::Store::turn`] (or [`crate::Store::open`]) on the store thread. None of them
/// may block on a disk or a peer. A machine's state follows from its applied entries alone.
pub trait Machine {
    /// Applies the entry at `index`, once, in order, without gaps, and only after it was committed. `data` is empty
    /// for entries that Raft itself makes: remember the index and do nothing else. `context` and `data` share the
    /// memory of the frame that brought them.
    fn apply(&mut self, group: ShardId, index: Index, term: Term, context: &Bytes, data: &Bytes);

    /// This replica's role changed. A leader is told so only after it applied the first entry of its own term.
    fn role_changed(&mut self, group: ShardId, role: Role);

    /// The state at exactly the applied index, for a replica that cannot be served from the log any more. The node
    /// crate pins here what the pages name, until [`Event::SnapshotSent`] for the same group and replica.
    fn snapshot(&mut self, group: ShardId, meta: &SnapshotMeta, to: ReplicaId) -> SnapshotPages;

    /// The staged snapshot at `meta` (see [`Event::BodiesDurable`]) becomes the state: the log already says, durably, that
    /// everything up to `meta.index` is superseded. After a crash from here on, [`crate::Store::open`] must be told
    /// an applied index of at least `meta.index`, from the staged pages if no checkpoint has it.
    fn restore(&mut self, group: ShardId, meta: &SnapshotMeta);

    /// The group's members changed, or were read at the start.
    fn membership_changed(&mut self, group: ShardId, membership: &Membership);
}

/// What happened since the last turn. The clocks given to a turn are read *after* its events were gathered.
#[derive(Debug)]
pub enum Event {
    /// A frame from a peer, as [`Frame::bytes`] left it. Frames may be lost, doubled and reordered.
    Frame {
        /// The authenticated sender.
        from: NodeId,
        /// The frame.
        bytes: Bytes,
    },
    /// The log thread finished a write. It must be queued here *before* the frames held for its ticket leave.
    Written(Completion),
    /// A read of [`Action::ReadEntries`] finished.
    EntriesRead(ReadDone),
    /// The connection to a peer broke: what was sent last may be lost.
    PeerUnreachable(NodeId),
    /// A peer's snapshot came in over its own connection: meta and all pages, not yet durable, bodies missing.
    SnapshotArrived {
        /// The group.
        group: ShardId,
        /// The replica that sent it and has its bodies pinned.
        from: ReplicaId,
        /// Where it stands.
        meta: SnapshotMeta,
        /// The machine's pages.
        pages: Vec<Bytes>,
    },
    /// What [`Action::FetchBodies`] asked for is durable: the pages are staged under (group, index, term), and every
    /// body that they name was fetched and synced.
    BodiesDurable {
        /// The group.
        group: ShardId,
        /// Index of the staged snapshot.
        index: Index,
    },
    /// What [`Action::FetchBodies`] asked for failed; what was fetched is kept for the next try.
    BodiesFailed {
        /// The group.
        group: ShardId,
        /// Index of the snapshot.
        index: Index,
    },
    /// The end of [`Action::SendSnapshot`]. Must come once for each, also when the connection breaks.
    SnapshotSent {
        /// The group.
        group: ShardId,
        /// The receiver.
        to: ReplicaId,
        /// Whether the receiver said that it has all of it, from this snapshot or from before.
        installed: bool,
    },
}

/// Which queue of a connection a frame waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lane {
    /// Heartbeats, votes, acknowledgements: before everything else.
    Control,
    /// Entries.
    Bulk,
}

/// Bytes for a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The receiver.
    pub to: NodeId,
    /// Its queue.
    pub lane: Lane,
    /// At most [`crate::FRAME_BYTES_MAX`] bytes.
    pub bytes: Bytes,
}

/// Frames that may leave only after the write that carries their ticket is synced.
#[derive(Clone, Debug)]
pub struct Held {
    /// The ticket in that turn's [`WriteRequest`]; comes back in its [`Completion`].
    pub ticket: u64,
    /// The frames.
    pub frames: Vec<Frame>,
}

/// Work that consensus asks of the node crate.
#[derive(Debug)]
pub enum Action {
    /// Run the task off the store thread, bring its result back as [`Event::EntriesRead`].
    ReadEntries(ReadTask),
    /// Bring this snapshot to a replica over a connection of its own; there it is [`Event::SnapshotArrived`]. End
    /// with [`Event::SnapshotSent`].
    SendSnapshot {
        /// The group.
        group: ShardId,
        /// The receiver.
        to: ReplicaId,
        /// Where it stands.
        meta: SnapshotMeta,
        /// The machine's pages.
        pages: Vec<Bytes>,
    },
    /// Stage these pages durably under (group, index, term), fetch every body they name that is not here yet from
    /// `from`, sync; then [`Event::BodiesDurable`] or [`Event::BodiesFailed`].
    FetchBodies {
        /// The group.
        group: ShardId,
        /// The replica that has the bodies pinned.
        from: ReplicaId,
        /// Where it stands.
        meta: SnapshotMeta,
        /// The machine's pages.
        pages: Vec<Bytes>,
    },
    /// An [`Event::SnapshotArrived`] is of no use: tell its sender how it ended.
    SnapshotRefused {
        /// The group.
        group: ShardId,
        /// Who sent it.
        from: ReplicaId,
        /// Where it stood.
        index: Index,
        /// Whether this replica has all of it already: its sender goes on behind it. Otherwise (another one is being fetched)
        /// the sending failed.
        held: bool,
    },
    /// What [`Action::FetchBodies`] asked for is of no use any more: the log reached as far without it. Its sender goes on
    /// behind it.
    SnapshotNotNeeded {
        /// The group.
        group: ShardId,
        /// Who sent it.
        from: ReplicaId,
        /// Where it stood.
        index: Index,
    },
    /// The group's settled members (never a joint state), told by its leader.
    MembershipChanged {
        /// The group.
        group: ShardId,
        /// Voters, sorted.
        voters: Vec<ReplicaId>,
        /// Learners, sorted.
        learners: Vec<ReplicaId>,
    },
    /// An entry in this node's log proved corrupt: the replica has stopped and is set aside in the log. Replace it.
    Damaged {
        /// The group.
        group: ShardId,
        /// The id that must never be used again.
        replica: ReplicaId,
    },
    /// This replica was removed from its group and has stopped: call [`crate::Store::set_aside`] when its state may go.
    Removed {
        /// The group.
        group: ShardId,
        /// The id that must never be used again.
        replica: ReplicaId,
    },
}

/// What a turn wants done. Everything in it may start at once and overlap, except that [`Held`] frames wait for
/// their ticket. The caller empties it after each turn; a write that is left in it is a write lost, and the next turn refuses
/// to go on.
#[derive(Debug, Default)]
pub struct Output {
    /// Frames that leave now, in order per peer and lane.
    pub frames: Vec<Frame>,
    /// Goes to the log thread, behind those of earlier turns.
    pub write: Option<WriteRequest>,
    /// Frames that wait for the write.
    pub held: Option<Held>,
    /// Other work.
    pub actions: Vec<Action>,
    /// Events for the next turn, which is then due at once.
    pub again: Vec<Event>,
    /// Segments that were filled: the record store may index them.
    pub sealed: Vec<SegmentId>,
}

/// Why a proposal was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Ask the leader instead, or again later if none is known.
    #[error("this replica does not lead: term {term}, leader {leader:?}")]
    NotLeader {
        /// The newest term known here.
        term: Term,
        /// The leader of that term.
        leader: Option<ReplicaId>,
    },
    /// Too much is proposed and not yet committed, or leadership is being handed over: wait for commits.
    #[error("too many bytes are proposed and not committed; wait for commits")]
    Busy,
    /// The node has no such group: the caller's view of placement is old.
    #[error("no replica of this group here")]
    UnknownGroup,
    /// The entry is larger than any entry may be.
    #[error("an entry has at most {max} bytes, this one {bytes}")]
    TooLarge {
        /// Bytes offered.
        bytes: usize,
        /// The limit.
        max: usize,
    },
}

/// Why a group could not be opened. The others go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The group is open already.
    #[error("group {0} is open already")]
    AlreadyOpen(ShardId),
    /// The log set the group aside: its part of the log is damaged. Replace this replica by a new one.
    #[error("the log of group {0} is damaged; this replica must be replaced by a new one")]
    SetAside(ShardId),
    /// The state machine is behind the log's first entry: its checkpoint or staged snapshot is missing. Replace it.
    #[error(
        "group {group}: state at {applied}, but the log begins after {base}; the replica must be replaced"
    )]
    StateMissing {
        /// The group.
        group: ShardId,
        /// What the state machine has.
        applied: Index,
        /// The last index that the log has dropped.
        base: Index,
    },
    /// The state machine is ahead of the log: synced entries are gone. Replace it.
    #[error("group {group}: state at {applied}, but the log ends at {last}; synced entries are lost")]
    EntriesLost {
        /// The group.
        group: ShardId,
        /// What the state machine has.
        applied: Index,
        /// The last entry in the log.
        last: Index,
    },
    /// The log has nothing of this group and the call was not one that makes a replica.
    #[error("the log has nothing of group {0}")]
    Unknown(ShardId),
    /// A stored membership cannot be read.
    #[error("group {group}: stored membership: {error}")]
    Membership {
        /// The group.
        group: ShardId,
        /// Why.
        error: longshore_wire::DecodeError,
    },
    /// The consensus library refused the state.
    #[error("group {group}: {message}")]
    Library {
        /// The group.
        group: ShardId,
        /// What it said.
        message: String,
    },
    /// A parameter of [`crate::Config`] is out of its range.
    #[error("configuration: {0}")]
    Config(&'static str),
    /// The log refused the write that makes the replica.
    #[error("group {group}: {message}")]
    Log {
        /// The group.
        group: ShardId,
        /// What it said.
        message: String,
    },
}

/// A group as this node sees it, for `explain`, metrics and admin commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStatus {
    /// This node's replica.
    pub replica: ReplicaId,
    /// Its role.
    pub role: Role,
    /// First index in the log.
    pub first: Index,
    /// Last index in the log, perhaps not durable.
    pub last: Index,
    /// Known to be on a majority.
    pub committed: Index,
    /// In the state machine.
    pub applied: Index,
    /// The members.
    pub membership: Membership,
    /// On the leader: each other member and the last entry it is known to hold.
    pub matched: Vec<(ReplicaId, Index)>,
}
