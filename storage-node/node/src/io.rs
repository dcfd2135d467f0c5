//! What goes into a node's turn and what comes out of it: the whole surface between the sans-IO node and the
//! runtime (threads and gRPC in the shipped server, one seeded loop in the simulation).

use bytes::Bytes;
use longshore_consensus::{Frame, Held};
use longshore_log::WriteRequest;
use longshore_proto::v1;
use longshore_wire::{NodeId, ReplicaId, SessionId, ShardId, Term};

/// A gateway's stream to this node, numbered by the runtime, never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u64);

/// A stream that follows meta, numbered by the runtime, never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WatchId(pub u64);

/// A unary call that waits for its answer, numbered by the runtime, never reused within a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(pub u64);

/// Something that happened since the last turn.
#[derive(Debug)]
pub enum Input {
    /// Frames, finished writes and reads of consensus.
    Consensus(longshore_consensus::Event),
    /// A gateway opened a stream and said hello.
    LinkOpened {
        /// The stream.
        link: LinkId,
        /// The gateway's session.
        session: SessionId,
    },
    /// A gateway's item.
    Link {
        /// The stream.
        link: LinkId,
        /// The item.
        item: v1::gateway_item::Item,
    },
    /// A gateway's stream ended.
    LinkClosed {
        /// The stream.
        link: LinkId,
    },
    /// A command for meta.
    Meta {
        /// Answered by [`Reply::Meta`].
        ticket: Ticket,
        /// The command.
        command: v1::MetaCommand,
    },
    /// A follower of meta, or news from it. The first one of a stream opens it.
    Watch {
        /// The stream.
        watch: WatchId,
        /// What it says.
        up: v1::WatchUp,
    },
    /// A follower of meta is gone.
    WatchClosed {
        /// The stream.
        watch: WatchId,
    },
    /// A task of [`Output::tasks`] is finished.
    Done(TaskDone),
    /// A peer wants records that a snapshot of ours names.
    Fetch {
        /// Answered by [`Reply::Fetched`].
        ticket: Ticket,
        /// Which.
        request: v1::FetchRequest,
    },
    /// What [`Output::fetches`] asked a peer for. The last one of a fetch has no reply, or one that says so.
    Fetched {
        /// [`FetchSend::fetch`].
        fetch: u64,
        /// The records; `None`: the peer did not answer.
        reply: Option<v1::FetchReply>,
    },
    /// Somebody looks.
    Inspect {
        /// Answered by [`Reply::Inspected`].
        ticket: Ticket,
        /// What.
        request: v1::InspectRequest,
    },
    /// An administrator moves a shard's leadership.
    TransferLeader {
        /// Answered by [`Reply::Transfer`].
        ticket: Ticket,
        /// The shard.
        shard: ShardId,
        /// Where to.
        to: NodeId,
    },
    /// Bytes that the data directory's file system can still take.
    FreeBytes(u64),
    /// Meta, as another node tells it, made a replica of itself for this node's request ([`Standing::meta_request`]).
    JoinMeta {
        /// Its id.
        replica: ReplicaId,
        /// The request that it was made for.
        request: u64,
    },
    /// The process is asked to stop: hand the leaderships over.
    Stopping,
}

/// Blocking work; [`Task::run`] it on any thread and give the result back as [`Input::Done`].
#[derive(Debug)]
pub enum Task {
    /// A read of old Raft entries.
    ReadEntries(longshore_log::ReadTask),
    /// A job of the node log (segments).
    Log(longshore_log::MaintenanceJob),
    /// A read of stored records.
    ReadRecords(longshore_records::ReadTask),
    /// A job of the record store (index, rewrite, import).
    Records(longshore_records::Job),
    /// A checkpoint.
    Checkpoint(longshore_checkpoint::Job),
}

/// A finished [`Task`].
#[derive(Debug)]
pub enum TaskDone {
    /// See [`Task::ReadEntries`].
    ReadEntries(longshore_log::ReadDone),
    /// See [`Task::Log`].
    Log(longshore_log::MaintenanceDone),
    /// See [`Task::ReadRecords`].
    ReadRecords(longshore_records::ReadDone),
    /// See [`Task::Records`].
    Records(longshore_records::JobDone),
    /// See [`Task::Checkpoint`].
    Checkpoint(longshore_checkpoint::JobDone),
}

impl Task {
    /// Does the work. Blocks on the disk.
    pub fn run(self) -> TaskDone {
        match self {
            Task::ReadEntries(task) => TaskDone::ReadEntries(task.run()),
            Task::Log(job) => TaskDone::Log(job.run()),
            Task::ReadRecords(task) => TaskDone::ReadRecords(task.run()),
            Task::Records(job) => TaskDone::Records(job.run()),
            Task::Checkpoint(job) => TaskDone::Checkpoint(job.run()),
        }
    }

    /// Whether somebody waits for it: reads go before jobs.
    pub fn is_urgent(&self) -> bool {
        matches!(self, Task::ReadEntries(_) | Task::ReadRecords(_))
    }
}

/// An answer to a unary call.
#[derive(Debug)]
pub enum Reply {
    /// To [`Input::Meta`].
    Meta(Box<v1::MetaReply>),
    /// To [`Input::Fetch`].
    Fetched(v1::FetchReply),
    /// To [`Input::Inspect`]: a JSON text.
    Inspected(String),
    /// To [`Input::TransferLeader`]: why not.
    Transfer(Result<(), String>),
}

/// A snapshot on its way to a peer; end it with `Event::SnapshotSent`.
#[derive(Debug)]
pub struct SnapshotSend {
    /// The receiving node.
    pub to_node: NodeId,
    /// The receiving replica.
    pub to: ReplicaId,
    /// What it begins with.
    pub head: v1::SnapshotHead,
    /// The state.
    pub pages: Vec<Bytes>,
}

/// Records wanted from a peer; answered by [`Input::Fetched`].
#[derive(Debug)]
pub struct FetchSend {
    /// A number of this process's own.
    pub fetch: u64,
    /// The node that has them pinned.
    pub to_node: NodeId,
    /// The group that they belong to.
    pub group: ShardId,
    /// Which.
    pub request: v1::FetchRequest,
}

/// An item for a gateway.
#[derive(Debug)]
pub struct LinkItem {
    /// The stream.
    pub link: LinkId,
    /// The item.
    pub item: v1::node_item::Item,
}

/// What a turn wants done. Everything may start at once, except that [`Held`] frames wait for their write.
#[derive(Debug, Default)]
pub struct Output {
    /// Frames for peers that leave now.
    pub frames: Vec<Frame>,
    /// Writes for the log thread, in order, each with the frames that wait for it.
    pub writes: Vec<(WriteRequest, Option<Held>)>,
    /// Blocking work.
    pub tasks: Vec<Task>,
    /// Items for gateways, in order per link.
    pub items: Vec<LinkItem>,
    /// Links that must be closed.
    pub close_links: Vec<LinkId>,
    /// News for followers of meta, in order per stream. A message with `not_leader` or `lease_lost` is its last.
    pub watch: Vec<(WatchId, v1::WatchDown)>,
    /// Answers to unary calls.
    pub replies: Vec<(Ticket, Reply)>,
    /// Snapshots to send.
    pub snapshots: Vec<SnapshotSend>,
    /// Records to fetch.
    pub fetches: Vec<FetchSend>,
    /// Snapshots that arrived and whether their state is here now: answer the sender.
    pub snapshots_installed: Vec<(ShardId, bool)>,
    /// Commands for meta, for its leader, which is another node. They may get lost: each comes again until meta's state
    /// shows that it was carried out.
    pub meta_commands: Vec<v1::MetaCommand>,
    /// Addresses of nodes that meta knows, when they changed.
    pub addresses: Option<Vec<(NodeId, String)>>,
    /// Work is left: take another turn at once.
    pub again: bool,
}

/// What a runtime shows of a node without asking it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// The newest term of meta that it knows.
    pub meta_term: Term,
    /// The node that leads meta, if known.
    pub meta_leader: Option<NodeId>,
    /// As far as it knows, the cluster is formed.
    pub formed: bool,
    /// Every group that it hosts has a leader, and meta is formed.
    pub ready: bool,
    /// It runs no replica of meta: `request` of the `ReplaceReplica` that shall give it one.
    pub meta_request: Option<u64>,
}
