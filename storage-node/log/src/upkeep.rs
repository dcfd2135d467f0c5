//! Segments on the store thread: what the record store asks, and what goes when.
//!
//! Danger: a segment that is retired too early is lost history, one that is freed too early lost bodies. The ledger
//! judges the first, [`NodeLog::release`] and pins the second. Called by the store thread.

use crate::format::Body;
use crate::ledger::Verdict;
use crate::maintenance::{MaintenanceDone, MaintenanceJob};
use crate::node_log::{InUse, NodeLog};
use crate::pool::Change;
use crate::read::ScanTask;
use crate::segment::SegmentPin;
use crate::types::{LogError, SegmentId, SegmentInfo, SegmentState};
use longshore_wire::ShardId;
use std::sync::Arc;

/// Calls of [`NodeLog::maintain`] that pass before a full disk is tried again.
const FULL_PAUSE_CALLS: u32 = 64;

impl NodeLog {
    // -- for the record store

    /// All segments that hold anything, oldest first.
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let info = |in_use: &InUse| SegmentInfo {
            id: in_use.segment.id,
            state: in_use.state,
            held: in_use.held,
            bytes: in_use.segment.bytes,
        };
        self.segments.values().filter(|in_use| !in_use.going).map(info).collect()
    }

    /// Keeps a segment readable while the pin lives; `None` if it is gone.
    pub fn pin(&self, segment: SegmentId) -> Option<SegmentPin> {
        let in_use = self.segments.get(&segment).filter(|in_use| !in_use.going)?;
        Some(SegmentPin::new(&in_use.segment))
    }

    /// A task that lists the entries of a sealed or retired segment; `None` if it is gone or open.
    pub fn scan(&self, segment: SegmentId) -> Option<ScanTask> {
        let in_use = self.segments.get(&segment).filter(|in_use| in_use.state != SegmentState::Open)?;
        Some(ScanTask { pin: self.pin(segment)?, end_sequence: in_use.end_sequence })
    }

    /// The record store needs nothing of this segment any more. Until then every segment is held, also after a restart.
    pub fn release(&mut self, segment: SegmentId) {
        if let Some(in_use) = self.segments.get_mut(&segment) {
            in_use.held = false;
        }
    }

    /// The record store needs the segment again. `false`: too late, it is gone.
    pub fn hold(&mut self, segment: SegmentId) -> bool {
        let found = self.segments.get_mut(&segment).filter(|in_use| !in_use.going);
        found.map(|in_use| in_use.held = true).is_some()
    }

    // -- upkeep

    /// Work to be done in the background, if there is any and none is under way. May add records to the open request
    /// (condition d), so call [`NodeLog::take_request`] after it.
    pub fn maintain(&mut self) -> Option<MaintenanceJob> {
        if self.job_runs {
            return None;
        }
        let mut change = Change { forget_lost: self.losses_are_written(), ..Change::default() };
        if self.unwritten_losses.is_none() || change.forget_lost {
            change.retire = self.plan_retire();
        }
        change.free = self.plan_free();
        self.pause = self.pause.saturating_sub(1);
        let prepare = self.pause == 0 && self.pool.standby_len() < self.config.standby_segments;
        let work = prepare || !change.is_empty();
        self.job_runs = work;
        let standby = if prepare { self.config.standby_segments } else { 0 };
        work.then(|| MaintenanceJob { pool: Arc::clone(&self.pool), change, standby })
    }

    /// Whether durable records say all that recovery found lost.
    fn losses_are_written(&self) -> bool {
        self.unwritten_losses.as_ref().is_some_and(|losses| {
            losses.groups.iter().all(|group| self.ledger.knows(*group))
                && (!losses.every_other || self.ledger.knows_every_other())
        })
    }

    /// Segments that can be retired, oldest first, each with the number after its last batch. Where only small states stand
    /// in the way, those are written again.
    fn plan_retire(&mut self) -> Vec<(SegmentId, u64)> {
        let mut retire = Vec::new();
        let mut rewrite = None;
        for (id, in_use) in self.segments.iter().filter(|(_, in_use)| in_use.state != SegmentState::Retired) {
            if in_use.state == SegmentState::Open {
                break;
            }
            match self.ledger.judge(*id) {
                Verdict::Retire => retire.push((*id, in_use.end_sequence)),
                Verdict::Pinned(_) => break,
                Verdict::Rewrite { groups, every_other } => {
                    rewrite = Some((*id, groups, every_other));
                    break;
                }
            }
        }
        if let Some((id, groups, every_other)) = rewrite.filter(|(id, ..)| self.rewritten_for < Some(*id)) {
            self.rewritten_for = Some(id);
            self.rewrite(&groups, every_other);
        }
        retire
    }

    fn rewrite(&mut self, groups: &[ShardId], every_other: bool) {
        for group in groups {
            let body = match self.groups.get(group) {
                Some(table) => Body::State(table.state()),
                None if self.aside.contains(group) => Body::Aside,
                // It was removed; the record of that is on its way.
                None => continue,
            };
            self.push(*group, body);
        }
        if every_other {
            self.push(ShardId(0), Body::EveryOtherAside);
        }
    }

    /// Retired segments that nobody needs; from here on nobody can pin them.
    fn plan_free(&mut self) -> Vec<SegmentId> {
        let mut free = Vec::new();
        for (id, in_use) in &mut self.segments {
            if in_use.state == SegmentState::Retired && !in_use.held && !in_use.segment.is_pinned() {
                in_use.going = true;
                free.push(*id);
            }
        }
        free
    }

    /// Takes note of a finished job.
    ///
    /// Errors: [`LogError::Failed`]: the process must end.
    pub fn maintained(&mut self, done: MaintenanceDone) -> Result<(), LogError> {
        self.job_runs = false;
        let (change, change_full, prepare_full) = done.outcome()?;
        if prepare_full {
            self.pause = FULL_PAUSE_CALLS;
        }
        if change_full {
            for id in &change.free {
                if let Some(in_use) = self.segments.get_mut(id) {
                    in_use.going = false;
                }
            }
            return Ok(());
        }
        for (id, _) in &change.retire {
            self.ledger.retired(*id);
            if let Some(in_use) = self.segments.get_mut(id) {
                in_use.state = SegmentState::Retired;
                in_use.segment.close();
            }
        }
        for id in &change.free {
            self.segments.remove(id);
            self.pause = 0;
        }
        if change.forget_lost && !change.is_empty() {
            self.unwritten_losses = None;
        }
        Ok(())
    }

    /// Groups whose oldest entries pin the oldest segment while more than `raft_segments_max` are in use: checkpoint
    /// and compact them.
    pub fn wants_checkpoint(&self) -> Vec<ShardId> {
        self.pinning_oldest(self.config.raft_segments_max)
    }

    /// Groups whose oldest entries pin the oldest segment while at least `younger` segments after it are in use.
    pub fn pinning_oldest(&self, younger: usize) -> Vec<ShardId> {
        let mut raft = self.segments.iter().filter(|(_, in_use)| in_use.state != SegmentState::Retired);
        let oldest = raft.next().map(|(id, _)| *id);
        if raft.count() < younger {
            return Vec::new();
        }
        match oldest.map(|id| self.ledger.judge(id)) {
            Some(Verdict::Pinned(groups)) => groups,
            _ => Vec::new(),
        }
    }

    /// Bytes of segments that Raft or recovery may need.
    pub(crate) fn raft_bytes(&self) -> u64 {
        let raft = self.segments.values().filter(|in_use| in_use.state != SegmentState::Retired);
        raft.map(|in_use| in_use.segment.bytes).sum()
    }

    /// Whether the last write found no room for a new segment: refuse publishes.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// Bytes of segment files that hold anything.
    pub fn segment_bytes_used(&self) -> u64 {
        self.segments.values().map(|in_use| in_use.segment.bytes).sum()
    }
}
