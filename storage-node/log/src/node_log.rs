//! The store thread's half: the tables of all groups.
//!
//! Duty: take changes in memory at once, gather them for the writer, and note what is durable. Danger: see the crate's
//! manual; nothing here is durable before [`NodeLog::completed`] says so. Called by the store thread only.
//! Taking changes is in `take.rs`, reading in `query.rs`, segments and upkeep in `upkeep.rs`.

use crate::format::Body;
use crate::ledger::Ledger;
use crate::open;
use crate::pool::Pool;
use crate::segment::Segment;
use crate::table::Group;
use crate::types::*;
use crate::writer::{Completion, Effect, LogWriter, WriteRequest, Written};
use longshore_io::Disk;
use longshore_wire::{Index, ShardId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

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
    pub(crate) every_other_aside: bool,
    pub(crate) open: WriteRequest,
    /// Number of the newest write.
    pub(crate) serial: u64,
    pub(crate) ledger: Ledger,
    pub(crate) segments: BTreeMap<SegmentId, InUse>,
    /// The order in which entries leave the memory: one token (the entry's group) per entry taken, oldest first.
    pub(crate) tail_order: VecDeque<ShardId>,
    /// When `tail_order` is this long, tokens of entries that are gone already (compacted, overwritten) are dropped.
    tail_order_max: usize,
    pub(crate) tail_bytes: usize,
    pub(crate) pending_bytes: usize,
    pub(crate) body_bytes_max: usize,
    pub(crate) full: bool,
    pub(crate) job_runs: bool,
    /// Losses that the manifest keeps because no durable record may say them yet.
    pub(crate) unwritten_losses: Option<UnwrittenLosses>,
    /// The newest segment that small states were written again for, so that it can go.
    pub(crate) rewritten_for: Option<SegmentId>,
    /// See [`NodeLog::overwritten_sealed`].
    pub(crate) overwritten_sealed: u64,
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
            serial: 0,
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
            overwritten_sealed: 0,
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
            self.push(*group, Body::Aside);
        }
        if self.every_other_aside && !self.ledger.knows_every_other() {
            self.push(ShardId(0), Body::EveryOtherAside);
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
            Effect::Entry { index, place, .. } => {
                let bytes = usize::from(place.context_len) + place.data_len as usize;
                self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
                table.is_some_and(|table| table.entry_durable(index, written.serial, place))
            }
            Effect::Snapshot(mark) => table.is_some_and(|table| table.mark_durable(mark, written.serial)),
            _ => false,
        }
    }

    /// Lets the oldest entries go until the tail fits its budget, or everything left is still needed.
    pub(crate) fn trim_tail(&mut self) {
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
    pub(crate) fn drop_stale_tokens(&mut self) {
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
/// After a token whose entry cannot leave the memory, at most this many more are tried.
const STUCK_TOKENS_MAX: usize = 64;
