//! Delivery of one shard: the commands of gateways, the events of apply, and the turn. Called by the node's turn loop only.
#![allow(clippy::todo, unused_variables)]
use crate::*;
use bytes::Bytes;
use longshore_io::Mono;
use longshore_shard::Event;
use longshore_wire::batch::{Batch, Item, Settle};
use longshore_wire::record::Record;
use longshore_wire::row::Row;
use longshore_wire::spec::LogSpec;
use longshore_wire::*;

/// A transient queue as it is asked for.
#[derive(Clone, Debug)]
pub struct TransientDeclare {
    /// Namespace of the name.
    pub namespace: NamespaceId,
    /// Its name.
    pub name: Bytes,
    /// The client connection that alone may use it: (session, connection).
    pub owner: Option<(SessionId, u64)>,
    /// Goes when the last consumer leaves.
    pub auto_delete: bool,
    /// As the client gave them, for equivalence.
    pub arguments: Bytes,
    /// Its settings.
    pub spec: LogSpec,
    /// Goes when unused this long, in milliseconds; 0: never.
    pub expires_ms: u64,
    /// One consumer at a time.
    pub single_active: bool,
}
/// A transient queue as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransientInfo {
    /// Its log.
    pub log: LogId,
    /// Made by this declare.
    pub created: bool,
    /// Its counts.
    pub counts: Counts,
    /// See [`TransientDeclare::owner`].
    pub owner: Option<(SessionId, u64)>,
    /// See [`TransientDeclare::auto_delete`].
    pub auto_delete: bool,
    /// See [`TransientDeclare::arguments`].
    pub arguments: Bytes,
}
/// What became of a transient append.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransientAppended {
    /// Targets that do not exist.
    pub missing: Vec<LogId>,
    /// Targets that refused it because a bound is reached.
    pub full: Vec<LogId>,
}

/// Delivery of one shard.
#[derive(Debug)]
pub struct Delivery {}

impl Delivery {
    /// Delivery of `shard`; does nothing until [`Delivery::become_leader`].
    pub fn new(shard: ShardId, config: Config) -> Delivery { todo!() }
    /// Call once an entry of the new term is applied, so that everything earlier is.
    pub fn become_leader(&mut self, now: Mono, term: Term, shard: &impl View) { todo!() }
    /// Forgets everything; transient queues end, their consumers are cancelled.
    pub fn resign(&mut self, out: &mut Actions) { todo!() }
    /// The term it leads, if it does.
    pub fn term(&self) -> Option<Term> { todo!() }
    /// Every event of apply, after the apply, in order.
    pub fn on_event(&mut self, now: Mono, event: &Event, shard: &impl View) { todo!() }
    /// The rows of an apply, after its events.
    pub fn appended_rows(&mut self, rows: &[Row], shard: &impl View) { todo!() }
    /// Answers `LoadRows`.
    pub fn rows_loaded(&mut self, now: Mono, id: LoadId, rows: Vec<Row>, shard: &impl View) { todo!() }
    /// Answers `FindTime`.
    pub fn time_found(&mut self, id: LoadId, offset: Offset) { todo!() }
    /// `LoadRows` or `FindTime` could not be answered; asked again after a while.
    pub fn load_failed(&mut self, now: Mono, id: LoadId) { todo!() }
    /// Makes a consumer; answered by `Attached` in the next turn.
    pub fn attach(&mut self, now: Mono, attach: Attach, shard: &impl View) { todo!() }
    /// Ends a consumer. `keep_leases`: the channel still owes settlements; else they are returned.
    pub fn detach(&mut self, now: Mono, key: ConsumerKey, keep_leases: bool) { todo!() }
    /// Raises a consumer's credit: cumulative since its attach; lower values are ignored.
    pub fn credit(&mut self, key: ConsumerKey, messages: u64, bytes: u64) { todo!() }
    /// Leases that a session holds without a consumer (gets, cancelled consumers), after a leader change.
    pub fn hold(&mut self, now: Mono, session: SessionId, queue: QueueId, held: &[Held], shard: &impl View) { todo!() }
    /// basic.get; answered by `Got`.
    pub fn get(&mut self, session: SessionId, request: u64, queue: QueueId, shard: &impl View) { todo!() }
    /// Takes for a receiver without a connection; answered by `Took`.
    #[allow(clippy::too_many_arguments)]
    pub fn take(&mut self, now: Mono, request: u64, queue: QueueId, max: u32, visibility_ms: u64, wait_ms: u64, shard: &impl View) { todo!() }
    /// The session has attached again all that it holds in this shard.
    pub fn session_reported(&mut self, session: SessionId) { todo!() }
    /// The session's stream to this node broke: its consumers get nothing until they attach again; leases stand.
    pub fn link_lost(&mut self, session: SessionId) { todo!() }
    /// The session ended: its consumers go, its leases are returned, its exclusive queues end.
    pub fn session_gone(&mut self, now: Mono, session: SessionId) { todo!() }
    /// Counts; `None`: no such log.
    pub fn stat(&self, queue: QueueId, shard: &impl View) -> Option<Counts> { todo!() }
    /// Why nothing is delivered.
    pub fn explain(&self, log_time: LogTime, may_deliver: bool, queue: QueueId, shard: &impl View) -> Explanation { todo!() }
    /// The item to propose for a purge; `None`: no such log. For durable logs.
    pub fn purge_item(&self, queue: QueueId, shard: &impl View) -> Option<Item> { todo!() }
    /// Filters a settle before it is proposed; `None`: unchanged.
    pub fn admit_settle(&self, settle: &Settle, session: SessionId) -> Option<Settle> { todo!() }
    /// The batch to propose instead when a settle in it must be filtered; `None`: as it is.
    pub fn admit_batch(&self, batch: &Batch) -> Result<Option<Bytes>, DecodeError> { todo!() }
    /// One turn.
    pub fn turn(&mut self, now: Mono, log_time: LogTime, may_deliver: bool, shard: &impl View, out: &mut Actions) { todo!() }
    /// When the next turn is due without other input; at once if work is left.
    pub fn next_deadline(&self) -> Option<Mono> { todo!() }
    /// For metrics.
    pub fn counters(&self) -> Counters { todo!() }

    /// Makes or finds a transient queue. `asker` is the client connection.
    pub fn transient_declare(&mut self, now: Mono, asker: (SessionId, u64), declare: TransientDeclare) -> Result<TransientInfo, Refused> { todo!() }
    /// Finds one by name.
    pub fn transient_find(&self, namespace: NamespaceId, name: &[u8]) -> Option<TransientInfo> { todo!() }
    /// Deletes one; how many messages it had.
    pub fn transient_delete(&mut self, log: LogId, if_unused: bool, if_empty: bool) -> Result<u64, Refused> { todo!() }
    /// Deletes everything that a client connection owns; how many queues.
    pub fn transient_delete_owned(&mut self, session: SessionId, owner: u64) -> u64 { todo!() }
    /// Appends to all targets that exist and have room.
    pub fn transient_append(&mut self, log_time: LogTime, record: Record) -> TransientAppended { todo!() }
    /// Settles deliveries of a transient queue; offsets of an older term are dropped.
    pub fn transient_settle(&mut self, session: SessionId, log: LogId, acked: &[Offset], returned: &[Offset]) { todo!() }
    /// Drops what is ready in a transient queue; how many messages.
    pub fn transient_purge(&mut self, log: LogId) -> Result<u64, Refused> { todo!() }
}
