//! Checkpoints of the machines: when one is due, and the order of its steps.
//!
//! Danger: a checkpoint lets the log below it go, so every row up to it must be in an index file first. The steps:
//! pages are taken from the machine · rows up to there become durable · the pages are written · consensus is told.

use crate::META;
use crate::host::Host;
use crate::io::{Output, Task};
use bytes::Bytes;
use longshore_checkpoint::{JobDone, JobError, Mark};
use longshore_consensus::{Event, Store};
use longshore_wire::{Index, LogTime, ShardId, Term};
use std::collections::BTreeMap;

/// Pages that wait until the rows up to their mark are durable.
#[derive(Debug)]
pub(crate) struct Pending {
    mark: Mark,
    pages: Vec<(Bytes, Option<Bytes>)>,
    /// They are the whole state: what the store has is replaced.
    whole: bool,
}

/// The page store keeps staged snapshots beside the checkpoints, under their group with this bit.
pub(crate) const STAGED: u32 = 1 << 31;

/// However little is written: this often, in milliseconds, the groups that pin the oldest segment are checkpointed. The
/// bounds in bytes alone would let a node that is written to slowly keep many segments of nothing.
const UNPIN_EVERY_MS: u64 = 5_000;
/// A group that applied so much since its checkpoint, and nothing since the last such look, gets one: its entries leave the
/// memory, and a restart need not apply them again. Fewer bytes are not worth the files.
const QUIET_BYTES: u64 = 64 << 10;

impl Host {
    /// Starts what is due.
    pub(crate) fn tend_checkpoints(&mut self, store: &mut Store, everything: bool, out: &mut Output) {
        let mut pinning = store.log().wants_checkpoint();
        let looks = self.now >= self.unpin_at;
        if looks {
            self.unpin_at = self.now.plus_ms(UNPIN_EVERY_MS);
            if pinning.is_empty() {
                pinning = store.log().pinning_oldest(1);
            }
        }
        let groups: Vec<ShardId> = store.groups().collect();
        for group in groups {
            let free = !self.pending.contains_key(&group) && !self.pages.is_busy(group);
            if free && self.stands_on_staged(store, group) {
                // Also after one that could not be written.
                self.replace_checkpoint.insert(group);
            }
            let due = (looks && self.is_quiet(group))
                || (everything && self.uncheckpointed(group) > 0)
                || self.uncheckpointed(group) >= self.config.checkpoint_bytes
                || self.replace_checkpoint.contains(&group)
                || (pinning.contains(&group) && self.uncheckpointed(group) > 0);
            if due && free && store.may_checkpoint(group) {
                self.take_pages(group);
            }
        }
        self.write_pending(out);
    }

    /// Whether nothing was applied since the last look, but enough since the checkpoint.
    fn is_quiet(&mut self, group: ShardId) -> bool {
        let bytes = self.uncheckpointed(group);
        self.looked_at.insert(group, bytes) == Some(bytes) && bytes >= QUIET_BYTES
    }

    fn uncheckpointed(&self, group: ShardId) -> u64 {
        if group == META {
            return self.meta.uncheckpointed_bytes;
        }
        self.shards.get(&group).map_or(0, |host| host.uncheckpointed_bytes)
    }

    fn take_pages(&mut self, group: ShardId) {
        let whole = self.replace_checkpoint.remove(&group);
        let mark =
            |index: Index, term: Term, log_time: LogTime| Mark { index, term, log_time, conf: Bytes::new() };
        let pending = if group == META {
            let meta = &mut self.meta.meta;
            self.meta.uncheckpointed_bytes = 0;
            let dirty = meta.take_dirty_pages();
            let pages = if whole { all(meta.all_pages()) } else { dirty };
            Pending { mark: mark(meta.applied(), meta.applied_term(), meta.log_time()), pages, whole }
        } else {
            let Some(host) = self.shards.get_mut(&group) else { return };
            host.uncheckpointed_bytes = 0;
            let dirty = host.shard.take_dirty_pages();
            let pages = if whole { all(host.shard.all_pages()) } else { dirty };
            let shard = &host.shard;
            Pending { mark: mark(shard.applied(), shard.applied_term(), shard.log_time()), pages, whole }
        };
        if pending.mark.index > Index(0) {
            self.pending.insert(group, pending);
        }
    }

    /// Writes what waits and may be written; asks for the rows of the rest.
    fn write_pending(&mut self, out: &mut Output) {
        let groups: Vec<ShardId> = self.pending.keys().copied().collect();
        let mut rows_missing = false;
        for group in groups {
            let Some(pending) = self.pending.get(&group) else { continue };
            if group != META && self.records.rows_durable(group) < pending.mark.index {
                rows_missing = true;
                continue;
            }
            let Some(Pending { mark, pages, whole }) = self.pending.remove(&group) else { continue };
            if whole {
                let all: BTreeMap<Bytes, Bytes> =
                    pages.into_iter().filter_map(|(key, value)| Some((key, value?))).collect();
                match self.pages.replace(group, mark.clone(), all) {
                    Ok(job) => out.tasks.push(Task::Checkpoint(job)),
                    Err(busy) => {
                        let pages = busy.pages.into_iter().map(|(key, value)| (key, Some(value))).collect();
                        self.pending.insert(group, Pending { mark, pages, whole });
                    }
                }
            } else {
                match self.pages.begin(group, mark.clone(), pages) {
                    Ok(job) => out.tasks.push(Task::Checkpoint(job)),
                    Err(busy) => {
                        self.pending.insert(group, Pending { mark, pages: busy.pages, whole });
                    }
                }
            }
        }
        if rows_missing && let Some(job) = self.records.flush() {
            out.tasks.push(Task::Records(job));
        }
    }

    /// A checkpoint was written, or not.
    ///
    /// Errors: the disk failed, the process must end.
    pub(crate) fn checkpoint_done(
        &mut self,
        store: &mut Store,
        done: JobDone,
        events: &mut Vec<Event>,
        out: &mut Output,
    ) -> Result<(), JobError> {
        match self.pages.job_done(done) {
            Ok(saved) => {
                if let Some(mark) = saved.mark {
                    if saved.group.0 & STAGED != 0 {
                        self.snapshot_staged(ShardId(saved.group.0 & !STAGED), mark.index);
                    } else {
                        store.checkpointed(saved.group, mark.index);
                        self.remove_staged(saved.group, mark.index, out);
                    }
                }
            }
            Err(error @ JobError::Failed { .. }) => return Err(error),
            Err(error) if error.group().0 & STAGED != 0 => {
                tracing::warn!(node = %self.node, %error, "a snapshot could not be staged");
                self.give_up_installing(ShardId(error.group().0 & !STAGED), events);
            }
            Err(JobError::Damaged { group, .. }) => {
                // The file on disk is not what was written: the whole state replaces it.
                self.replace_checkpoint.insert(group);
            }
            Err(error) => tracing::warn!(node = %self.node, %error, "a checkpoint could not be written"),
        }
        Ok(())
    }

    /// A checkpoint holds all that was staged for the group up to its mark: the staged pages would only take the state's size
    /// again, on the disk and in the memory of each start.
    fn remove_staged(&mut self, group: ShardId, checkpointed: Index, out: &mut Output) {
        let staged = ShardId(group.0 | STAGED);
        if self.pages.mark(staged).is_some_and(|mark| mark.index <= checkpointed)
            && !self.installing.contains_key(&group)
            && let Ok(job) = self.pages.remove(staged)
        {
            out.tasks.push(Task::Checkpoint(job));
        }
    }
}

fn all(pages: Vec<(Bytes, Bytes)>) -> Vec<(Bytes, Option<Bytes>)> {
    pages.into_iter().map(|(key, value)| (key, Some(value))).collect()
}
