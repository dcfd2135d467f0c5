//! Taking changes: in memory at once, durable later.
//!
//! Danger: the order of the records is the order of history; whatever changes a table here must push its record in the same
//! call. Called by consensus on the store thread.

use crate::format::{Body, Mark, Record};
use crate::node_log::NodeLog;
use crate::table::Group;
use crate::types::{Entry, HardState, LogError, SegmentState};
use crate::writer::WriteRequest;
use bytes::Bytes;
use longshore_wire::{Index, ShardId, Term};

impl NodeLog {
    /// The group's table, unless it is set aside. Makes the table of a group that is new here.
    fn living(&mut self, group: ShardId) -> Result<&mut Group, LogError> {
        if self.is_set_aside(group) {
            return Err(LogError::SetAside(group));
        }
        Ok(self.groups.entry(group).or_default())
    }

    /// Writes are numbered, so that a completion is never taken for that of a later write of the same index.
    fn next_serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Adds a record to the open request.
    pub(crate) fn push(&mut self, group: ShardId, body: Body) {
        let serial = self.next_serial();
        self.open.push(serial, Record { group, body });
    }

    fn check_len(&self, body: &Body) -> Result<(), LogError> {
        let bytes = body.len();
        let context_fits = !matches!(body, Body::Entry(e) if e.context.len() > usize::from(u16::MAX));
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
        let body = Body::Entry(entry.clone());
        self.check_len(&body)?;
        let serial = self.next_serial();
        let table = self.living(group)?;
        if !table.follows(entry.index.0) {
            return Err(LogError::Gap { group, index: entry.index, last: Index(table.last()) });
        }
        let bytes = entry.bytes();
        let overwritten = table.place(entry.index.0).map(|place| place.segment);
        let freed = table.append(entry, serial);
        if overwritten.is_some_and(|id| self.segments.get(&id).is_some_and(|s| s.state != SegmentState::Open))
        {
            self.overwritten_sealed += 1;
        }
        self.tail_bytes = self.tail_bytes.saturating_sub(freed) + bytes;
        self.pending_bytes += bytes;
        self.tail_order.push_back(group);
        self.open.push(serial, Record { group, body });
        self.trim_tail();
        self.drop_stale_tokens();
        Ok(())
    }

    /// Sets the group's hard state.
    ///
    /// Errors: [`LogError::SetAside`].
    pub fn set_hard_state(&mut self, group: ShardId, state: HardState) -> Result<(), LogError> {
        self.living(group)?.hard_state = state;
        self.push(group, Body::HardState(state));
        Ok(())
    }

    /// Sets the group's conf state (voters, learners; opaque), at most 64 KiB.
    ///
    /// Errors: [`LogError::TooLarge`], [`LogError::SetAside`]; nothing was taken.
    pub fn set_conf(&mut self, group: ShardId, conf: Bytes) -> Result<(), LogError> {
        let body = Body::Conf(conf.clone());
        self.check_len(&body)?;
        self.living(group)?.conf = conf;
        self.push(group, body);
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
            self.push(group, Body::Compact(mark));
        }
        Index(first)
    }

    /// Marks that a snapshot up to `index` is installed (its checkpoint is durable already): it replaces the group's whole log.
    ///
    /// Errors: [`LogError::SetAside`].
    pub fn install_snapshot(&mut self, group: ShardId, index: Index, term: Term) -> Result<(), LogError> {
        let mark = Mark { index, term };
        let serial = self.next_serial();
        let freed = self.living(group)?.install(mark, serial);
        self.tail_bytes = self.tail_bytes.saturating_sub(freed);
        self.open.push(serial, Record { group, body: Body::Snapshot(mark) });
        Ok(())
    }

    /// Begins a new replica of the group: everything of an older one in this log is forgotten, also that it was set aside.
    /// Call it for every replica that is made on this node, before its first hard state.
    pub fn reset(&mut self, group: ShardId) {
        self.drop_table(group);
        self.aside.remove(&group);
        self.groups.insert(group, Group::default());
        self.push(group, Body::Reset);
    }

    /// Forgets the group: its replica left this node.
    pub fn remove(&mut self, group: ShardId) {
        self.drop_table(group);
        self.aside.remove(&group);
        self.push(group, Body::Remove);
    }

    /// Gives up the group's replica (an entry proved corrupt); remembered across restarts until [`NodeLog::reset`].
    pub fn set_aside(&mut self, group: ShardId) {
        self.drop_table(group);
        self.aside.insert(group);
        self.push(group, Body::Aside);
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
}
