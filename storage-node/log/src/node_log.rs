//! The store thread's half: the tables of all groups.
//!
//! Duty: take changes in memory at once, gather them for the writer, and note what is durable. Danger: see the crate's
//! manual; nothing here is durable before [`NodeLog::completed`] says so. Called by the store thread only.
//! Segments and upkeep are in `upkeep.rs`.

use crate::format::{Body, Mark, Record};
use crate::ledger::Ledger;
use crate::open;
use crate::pool::Pool;
use crate::read::{ReadTask, Wanted};
use crate::segment::{Segment, SegmentPin};
use crate::table::Group;
use crate::types::*;
use crate::writer::{Completion, Effect, LogWriter, WriteRequest, Written};
use bytes::Bytes;
use longshore_io::Disk;
use longshore_wire::{Index, ShardId, Term};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

/// Entries in one [`ReadTask`], and in one answer from memory.
const ENTRIES_READ_MAX: usize = 4096;

/// Entries, or the way to them.
#[derive(Debug)]
pub enum Fetched {
    /// They were in memory.
    Ready(Vec<Entry>),
    /// They are on disk: run this on another thread (or here, where waiting is allowed).
    Read(ReadTask),
}

/// A segment that holds batches.
#[derive(Debug)]
pub(crate) struct InUse {
    pub(crate) segment: Arc<Segment>,
    pub(crate) state: SegmentState,
    /// Number after its last batch; 0 while it is open, or not known.
    pub(crate) end_sequence: u64,
    /// The record store needs it.
    pub(crate) held: bool,
    /// A job is about to free it.
    pub(crate) going: bool,
}

/// What recovery found lost.
#[derive(Debug)]
pub(crate) struct UnwrittenLosses {
    pub(crate) groups: BTreeSet<ShardId>,
    pub(crate) every_other: bool,
}

/// The log's tables; lives on the store thread.
#[derive(Debug)]
pub struct NodeLog {
    pub(crate) config: LogConfig,
    pub(crate) pool: Arc<Pool>,
    pub(crate) groups: BTreeMap<ShardId, Group>,
    pub(crate) aside: BTreeSet<ShardId>,
    every_other_aside: bool,
    pub(crate) open: WriteRequest,
    pub(crate) ledger: Ledger,
    pub(crate) segments: BTreeMap<SegmentId, InUse>,
    /// One token per entry taken, oldest first: whose turn it is to leave the memory.
    tail_order: VecDeque<ShardId>,
    /// At this length, tokens whose entries have left otherwise (compacted, overwritten) are dropped.
    tail_order_max: usize,
    tail_bytes: usize,
    pending_bytes: usize,
    body_bytes_max: usize,
    pub(crate) full: bool,
    pub(crate) job_runs: bool,
    /// Losses that the manifest keeps because no durable record may say them yet.
    pub(crate) unwritten_losses: Option<UnwrittenLosses>,
    /// The newest segment for whose sake small states were written again.
    pub(crate) rewritten_for: Option<SegmentId>,
    /// Calls of [`NodeLog::maintain`] to let pass before a full disk is tried again.
    pub(crate) pause: u32,
}

impl NodeLog {
    /// Opens the log under `log/` of a data directory, or makes it, and recovers what was durable. Blocking.
    ///
    /// Errors: [`OpenError::Io`], [`OpenError::Version`], [`OpenError::Config`]. Damage to the content is no error but part
    /// of [`Recovery`].
    pub fn open(disk: Arc<dyn Disk>, config: LogConfig) -> Result<(NodeLog, LogWriter, Recovery), OpenError> {
        let opened = open::open(disk, &config)?;
        let half = usize::try_from(config.segment_bytes / 2).unwrap_or(usize::MAX);
        let body_bytes_max = config.batch_bytes_max.min(half);
        let scan = opened.scan;
        let mut log = NodeLog {
            config,
            pool: Arc::clone(&opened.pool),
            groups: scan.groups,
            aside: scan.lost,
            every_other_aside: scan.every_other_lost,
            open: WriteRequest::default(),
            ledger: scan.ledger,
            segments: BTreeMap::new(),
            tail_order: VecDeque::new(),
            tail_order_max: TAIL_TOKENS_MIN,
            tail_bytes: 0,
            pending_bytes: 0,
            body_bytes_max,
            full: false,
            job_runs: false,
            unwritten_losses: None,
            rewritten_for: None,
            pause: 0,
        };
        for (segment, end_sequence) in opened.retired {
            log.list_segment(segment, SegmentState::Retired, end_sequence);
        }
        for (segment, first_sequence) in opened.raft {
            log.seal_open(first_sequence);
            log.list_segment(segment, SegmentState::Open, 0);
        }
        if opened.has_unwritten_losses {
            log.write_losses();
        }
        let recovery = log.recovery(scan.cut_bytes, scan.damage);
        let writer = LogWriter::new(opened.pool, opened.resume, body_bytes_max);
        Ok((log, writer, recovery))
    }

    fn recovery(&self, cut_bytes: u64, damage: Vec<Damage>) -> Recovery {
        let group = |g: &Group| RecoveredGroup {
            first: Index(g.first()),
            last: Index(g.last()),
            hard_state: g.hard_state,
            conf: g.conf.clone(),
        };
        Recovery {
            groups: self.groups.iter().map(|(id, g)| (*id, group(g))).collect(),
            set_aside: self.aside.clone(),
            every_other_set_aside: self.every_other_aside,
            cut_bytes,
            damage,
        }
    }

    /// Puts what recovery found lost into the log, so that the manifest need not keep it.
    fn write_losses(&mut self) {
        let losses: BTreeSet<ShardId> =
            self.aside.iter().copied().filter(|g| !self.ledger.knows(*g)).collect();
        for group in &losses {
            self.open.push(Record { group: *group, body: Body::Aside });
        }
        if self.every_other_aside && !self.ledger.knows_every_other() {
            self.open.push(Record { group: ShardId(0), body: Body::EveryOtherAside });
        }
        self.unwritten_losses = Some(UnwrittenLosses { groups: losses, every_other: self.every_other_aside });
    }

    fn list_segment(&mut self, segment: Arc<Segment>, state: SegmentState, end_sequence: u64) {
        let in_use = InUse { segment, state, end_sequence, held: true, going: false };
        self.segments.insert(in_use.segment.id, in_use);
    }

    /// The open segments are full, now that batch `next_sequence` went into another one.
    fn seal_open(&mut self, next_sequence: u64) -> Vec<SegmentId> {
        let open = self.segments.values_mut().filter(|in_use| in_use.state == SegmentState::Open);
        open.map(|in_use| {
            in_use.state = SegmentState::Sealed;
            in_use.end_sequence = next_sequence;
            in_use.segment.id
        })
        .collect()
    }

    // -- appending: takes effect in memory at once, durable once its request is completed

    /// The group's table, unless it is set aside. Makes the table of a group that is new here.
    fn living(&mut self, group: ShardId) -> Result<&mut Group, LogError> {
        if self.is_set_aside(group) {
            return Err(LogError::SetAside(group));
        }
        Ok(self.groups.entry(group).or_default())
    }

    fn check_len(&self, record: &Record) -> Result<(), LogError> {
        let bytes = record.len();
        let context_fits = !matches!(&record.body, Body::Entry(e) if e.context.len() > usize::from(u16::MAX));
        if bytes <= self.body_bytes_max && context_fits {
            return Ok(());
        }
        Err(LogError::TooLarge { bytes, bytes_max: self.body_bytes_max })
    }

    /// Appends an entry; entries of the group at or above its index are discarded first. It must not leave a gap
    /// and must lie above the compaction mark. The first entry of a group without marks has index 1.
    ///
    /// Errors: [`LogError::Gap`], [`LogError::TooLarge`], [`LogError::SetAside`]; nothing was taken.
    pub fn append(&mut self, group: ShardId, entry: Entry) -> Result<(), LogError> {
        let record = Record { group, body: Body::Entry(entry.clone()) };
        self.check_len(&record)?;
        let table = self.living(group)?;
        if !table.follows(entry.index.0) {
            return Err(LogError::Gap { group, index: entry.index, last: Index(table.last()) });
        }
        let bytes = entry.bytes();
        let freed = table.append(entry);
        self.tail_bytes = self.tail_bytes.saturating_sub(freed) + bytes;
        self.pending_bytes += bytes;
        self.tail_order.push_back(group);
        self.open.push(record);
        self.trim_tail();
        self.drop_stale_tokens();
        Ok(())
    }

    /// Sets the group's hard state.
    ///
    /// Errors: [`LogError::SetAside`].
    pub fn set_hard_state(&mut self, group: ShardId, state: HardState) -> Result<(), LogError> {
        self.living(group)?.hard_state = state;
        self.open.push(Record { group, body: Body::HardState(state) });
        Ok(())
    }

    /// Sets the group's conf state (voters, learners; opaque), at most 64 KiB.
    ///
    /// Errors: [`LogError::TooLarge`], [`LogError::SetAside`]; nothing was taken.
    pub fn set_conf(&mut self, group: ShardId, conf: Bytes) -> Result<(), LogError> {
        let record = Record { group, body: Body::Conf(conf.clone()) };
        self.check_len(&record)?;
        self.living(group)?.conf = conf;
        self.open.push(record);
        Ok(())
    }

    /// Drops entries up to and including `to` from the group's log, but none above the checkpoint told by
    /// [`NodeLog::checkpointed`] or not yet durable. Returns the first index after it.
    pub fn compact(&mut self, group: ShardId, to: Index) -> Index {
        let Some(table) = self.groups.get_mut(&group) else { return Index(0) };
        let before = table.first();
        let (mark, freed) = table.compact(to.0.min(table.compactable(false)));
        let first = table.first();
        self.tail_bytes = self.tail_bytes.saturating_sub(freed);
        if first > before {
            self.open.push(Record { group, body: Body::Compact(mark) });
        }
        Index(first)
    }

    /// Marks that a snapshot up to `index` is installed (its checkpoint is durable already): it replaces the group's whole log.
    ///
    /// Errors: [`LogError::SetAside`].
    pub fn install_snapshot(&mut self, group: ShardId, index: Index, term: Term) -> Result<(), LogError> {
        let mark = Mark { index, term };
        let freed = self.living(group)?.install(mark);
        self.tail_bytes = self.tail_bytes.saturating_sub(freed);
        self.open.push(Record { group, body: Body::Snapshot(mark) });
        Ok(())
    }

    /// Begins a new replica of the group: everything of an older one in this log is forgotten, also that it was set aside.
    /// Call it for every replica that is made on this node, before its first hard state.
    pub fn reset(&mut self, group: ShardId) {
        self.drop_table(group);
        self.aside.remove(&group);
        self.groups.insert(group, Group::default());
        self.open.push(Record { group, body: Body::Reset });
    }

    /// Forgets the group: its replica left this node.
    pub fn remove(&mut self, group: ShardId) {
        self.drop_table(group);
        self.aside.remove(&group);
        self.open.push(Record { group, body: Body::Remove });
    }

    /// Gives up the group's replica (an entry proved corrupt); remembered across restarts until [`NodeLog::reset`].
    pub fn set_aside(&mut self, group: ShardId) {
        self.drop_table(group);
        self.aside.insert(group);
        self.open.push(Record { group, body: Body::Aside });
    }

    fn drop_table(&mut self, group: ShardId) {
        if let Some(mut table) = self.groups.remove(&group) {
            self.tail_bytes = self.tail_bytes.saturating_sub(table.truncate(0));
        }
    }

    /// Adds a number that comes back in [`Completion::tickets`] once everything before it is durable.
    pub fn ticket(&mut self, ticket: u64) {
        self.open.tickets.push(ticket);
    }

    /// What was gathered since the last call, if anything. Requests go to [`LogWriter::write`] in this order.
    pub fn take_request(&mut self) -> Option<WriteRequest> {
        (!self.open.is_empty()).then(|| std::mem::take(&mut self.open))
    }

    /// Takes note of what is durable now.
    pub fn completed(&mut self, completion: Completion) -> Progress {
        self.full = completion.no_space;
        let mut sealed = Vec::new();
        for (segment, first_sequence) in completion.opened {
            sealed.extend(self.seal_open(first_sequence));
            self.list_segment(segment, SegmentState::Open, 0);
        }
        let mut grown = BTreeSet::new();
        for written in &completion.written {
            if self.note_durable(written) {
                grown.insert(written.group);
            }
        }
        self.trim_tail();
        let durable = grown.iter().filter_map(|group| Some((*group, self.last_durable(*group)?))).collect();
        Progress { durable, tickets: completion.tickets, sealed }
    }

    /// Whether the group's durable position grew.
    fn note_durable(&mut self, written: &Written) -> bool {
        self.ledger.note(written);
        let table = self.groups.get_mut(&written.group);
        match written.effect {
            Effect::Entry { index, term, place } => {
                let bytes = usize::from(place.context_len) + place.data_len as usize;
                self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
                table.is_some_and(|table| table.entry_durable(index, term, place))
            }
            Effect::Snapshot(mark) => table.is_some_and(|table| table.mark_durable(mark)),
            _ => false,
        }
    }

    /// Lets the oldest entries go until the tail fits its budget, or everything left is still needed.
    fn trim_tail(&mut self) {
        let mut patience = self.tail_order.len();
        while self.tail_bytes > self.config.tail_bytes_max && patience > 0 {
            patience -= 1;
            let Some(group) = self.tail_order.pop_front() else { return };
            let Some(table) = self.groups.get_mut(&group).filter(|table| table.tail_len() > 0) else {
                continue;
            };
            match table.evict_oldest() {
                Some(bytes) => self.tail_bytes = self.tail_bytes.saturating_sub(bytes),
                None => {
                    self.tail_order.push_back(group);
                    // Others may have something; but do not walk a long queue of one stuck group on every call.
                    patience = patience.min(STUCK_TOKENS_MAX);
                }
            }
        }
    }

    /// Keeps the queue of tokens in proportion to the entries in memory.
    fn drop_stale_tokens(&mut self) {
        if self.tail_order.len() <= self.tail_order_max {
            return;
        }
        let mut left: BTreeMap<ShardId, usize> =
            self.groups.iter().map(|(id, table)| (*id, table.tail_len())).collect();
        let mut kept = VecDeque::new();
        for group in self.tail_order.drain(..).rev() {
            if let Some(count) = left.get_mut(&group).filter(|count| **count > 0) {
                *count -= 1;
                kept.push_front(group);
            }
        }
        self.tail_order_max = TAIL_TOKENS_MIN.max(2 * kept.len());
        self.tail_order = kept;
    }

    // -- what consensus tells

    /// The group's checkpoint on this node holds durably up to `index`.
    pub fn checkpointed(&mut self, group: ShardId, index: Index) {
        if let Some(table) = self.groups.get_mut(&group) {
            table.checkpointed = table.checkpointed.max(index.0);
        }
    }

    /// Every live replica of the group holds everything up to `index`. May go down when a replica joins.
    pub fn replicated(&mut self, group: ShardId, index: Index) {
        if let Some(table) = self.groups.get_mut(&group) {
            table.replicated = index.0;
        }
    }

    /// The state machine has taken entries up to `index`: they may leave the memory.
    pub fn applied(&mut self, group: ShardId, index: Index) {
        if let Some(table) = self.groups.get_mut(&group) {
            table.applied = table.applied.max(index.0);
        }
    }

    /// Up to where the group may be compacted now, if that is above its mark: min(checkpointed, replicated), or
    /// the checkpoint alone once the log exceeds `log_bytes_max` (a replica that lags then gets a snapshot).
    pub fn compactable(&self, group: ShardId) -> Option<Index> {
        let table = self.groups.get(&group)?;
        let to = table.compactable(self.raft_bytes() <= self.config.log_bytes_max);
        (to >= table.first()).then_some(Index(to))
    }

    // -- reading

    fn table(&self, group: ShardId) -> Result<&Group, ReadError> {
        self.groups.get(&group).ok_or(ReadError::UnknownGroup(group))
    }

    /// Entries `low <= index < high`: as many as `max_bytes` allow, at least one. Those on disk and those in memory are
    /// not mixed; ask again for the rest.
    ///
    /// Errors: [`ReadError::Compacted`], [`ReadError::Unavailable`], [`ReadError::UnknownGroup`].
    pub fn entries(
        &self,
        group: ShardId,
        low: Index,
        high: Index,
        max_bytes: usize,
    ) -> Result<Fetched, ReadError> {
        let table = self.table(group)?;
        if low.0 < table.first() {
            return Err(ReadError::Compacted);
        }
        if low >= high || low.0 > table.last() {
            return Err(ReadError::Unavailable);
        }
        let high = high.0.min(table.last() + 1).min(low.0.saturating_add(ENTRIES_READ_MAX as u64));
        let mut bytes = 0usize;
        let mut fits = |len: usize| {
            let first = bytes == 0;
            bytes = bytes.saturating_add(len.max(1));
            first || bytes <= max_bytes
        };
        if low.0 >= table.tail_first() {
            let ready =
                (low.0..high).map_while(|i| table.in_tail(i)).take_while(|e| fits(e.bytes())).cloned();
            return Ok(Fetched::Ready(ready.collect()));
        }
        let mut wanted = Vec::new();
        for index in low.0..high.min(table.tail_first()) {
            let (Some(term), Some(place)) = (table.term(index), table.place(index)) else { break };
            if !fits(usize::from(place.context_len) + place.data_len as usize) {
                break;
            }
            let Some(pin) = self.pin_from(wanted.last(), place.segment) else { break };
            wanted.push(Wanted { pin, index: Index(index), term, place });
        }
        if wanted.is_empty() {
            return Err(ReadError::Unavailable);
        }
        Ok(Fetched::Read(ReadTask { group, low, wanted }))
    }

    /// The pin of the entry before, if that lies in the same segment: one file handle for a run of entries.
    fn pin_from(&self, before: Option<&Wanted>, segment: SegmentId) -> Option<SegmentPin> {
        match before {
            Some(wanted) if wanted.pin.id() == segment => Some(wanted.pin.clone()),
            _ => self.pin(segment),
        }
    }

    /// The term of an entry; also of the one at the compaction mark (0 for index 0).
    ///
    /// Errors: [`ReadError::Compacted`], [`ReadError::Unavailable`], [`ReadError::UnknownGroup`].
    pub fn term(&self, group: ShardId, index: Index) -> Result<Term, ReadError> {
        let table = self.table(group)?;
        let missing = if index.0 < table.first() { ReadError::Compacted } else { ReadError::Unavailable };
        table.term(index.0).ok_or(missing)
    }

    /// First index that the group's log has or would have.
    pub fn first_index(&self, group: ShardId) -> Option<Index> {
        self.groups.get(&group).map(|table| Index(table.first()))
    }

    /// The last entry taken.
    pub fn last_appended(&self, group: ShardId) -> Option<Appended> {
        self.groups.get(&group).map(|table| Appended(Index(table.last())))
    }

    /// Up to where the group's log is on disk.
    pub fn last_durable(&self, group: ShardId) -> Option<Durable> {
        self.groups.get(&group).map(|table| Durable(Index(table.durable())))
    }

    /// The newest hard state, as appended.
    pub fn hard_state(&self, group: ShardId) -> Option<HardState> {
        self.groups.get(&group).map(|table| table.hard_state)
    }

    /// The newest conf state, as appended; empty if none was set.
    pub fn conf(&self, group: ShardId) -> Option<Bytes> {
        self.groups.get(&group).map(|table| table.conf.clone())
    }

    /// Whether the group's replica was given up.
    pub fn is_set_aside(&self, group: ShardId) -> bool {
        self.aside.contains(&group) || (self.every_other_aside && !self.groups.contains_key(&group))
    }

    /// The groups in this log, ascending.
    pub fn groups(&self) -> Vec<ShardId> {
        self.groups.keys().copied().collect()
    }

    /// Where an entry lies, once it is durable and while it is above the compaction mark.
    pub fn place(&self, group: ShardId, index: Index) -> Option<Place> {
        self.groups.get(&group)?.place(index.0)
    }

    /// Bytes of entries in memory.
    pub fn tail_bytes(&self) -> usize {
        self.tail_bytes
    }

    /// Bytes of entries taken but not yet durable.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }
}

/// Tokens below which nothing is tidied.
const TAIL_TOKENS_MIN: usize = 1024;
/// Tokens that are looked at after the first whose entry cannot leave the memory.
const STUCK_TOKENS_MAX: usize = 64;
