//! Snapshots: a leader names the place and the pages; the receiver makes everything durable before Raft hears of it.
//!
//! Danger: an acknowledged snapshot counts towards promotion and towards commits. It is stepped into Raft only after
//! its pages are staged and every body that they name is synced here, and always as a message of the current term from
//! the current leader, whoever sent it.

use super::{Group, Turn};
use crate::api::{Action, SnapshotMeta};
use crate::storage::snapshot_of;
use bytes::Bytes;
use longshore_io::Mono;
use longshore_wire::{Index, ReplicaId, Term};
use raft::eraftpb::{Message, MessageType, SnapshotMetadata};
use raft::{SnapshotStatus, StateRole};

/// A snapshot on its way in.
pub(super) struct Incoming {
    from: ReplicaId,
    meta: SnapshotMeta,
    durable: bool,
}

impl Group {
    /// Raft wants `to` to have a snapshot: it gets the state of this moment, which is not older than the one that Raft named.
    pub(super) fn send_snapshot(&mut self, to: ReplicaId, turn: &mut Turn<'_>) {
        let (index, term) = self.store().applied();
        let meta = SnapshotMeta { index: Index(index), term: Term(term), membership: self.members().clone() };
        let pages = turn.machine.snapshot(self.id, &meta, to).pages;
        turn.actions.push(Action::SendSnapshot { group: self.id, to, meta, pages });
    }

    /// The end of a sending.
    pub(crate) fn snapshot_sent(&mut self, to: ReplicaId, installed: bool, turn: &mut Turn<'_>) {
        if !self.is_leader() {
            return;
        }
        if installed {
            // The receiver's acknowledgement through Raft says it better, with the index; unless it gets lost.
            self.delivered.push((to, turn.now));
        } else {
            self.raw.report_snapshot(to.0, SnapshotStatus::Failure);
            self.failed.push((to, turn.now));
            self.hold_failed();
        }
        self.after_step(turn);
    }

    fn hold_failed(&mut self) {
        let waiting = self.failed.iter().map(|(to, _)| *to).collect();
        self.raw.mut_store().set_waiting(waiting);
    }

    /// Lets receivers whose snapshot failed a while ago have another one.
    pub(super) fn retry_failed(&mut self, turn: &mut Turn<'_>) {
        if self.failed.is_empty() {
            return;
        }
        let patience_us = turn.config.election_us();
        self.failed.retain(|(_, since)| turn.now.since(*since) < patience_us);
        self.hold_failed();
    }

    /// Probes receivers whose acknowledgement got lost.
    pub(super) fn probe_delivered(&mut self, turn: &mut Turn<'_>) {
        let patience_us = turn.config.election_us();
        let (late, waiting) =
            self.delivered.drain(..).partition(|(_, since)| turn.now.since(*since) >= patience_us);
        self.delivered = waiting;
        let late: Vec<(ReplicaId, Mono)> = late;
        for (to, _) in late {
            self.raw.report_snapshot(to.0, SnapshotStatus::Finish);
        }
    }

    /// A snapshot came in; one at a time.
    pub(crate) fn snapshot_arrived(
        &mut self,
        from: ReplicaId,
        meta: SnapshotMeta,
        pages: Vec<Bytes>,
        turn: &mut Turn<'_>,
    ) {
        // Not only a message that came late: a replica may have died with an installed snapshot before its leader heard of
        // it. The leader that is told of a failure then would send it again for ever (simulation, seed 115).
        let held = !self.stopped && meta.index.0 <= self.raw.raft.raft_log.committed;
        let busy = self.stopped || self.installing.is_some() || self.incoming.is_some();
        if held || busy || !meta.membership.contains(self.me) {
            turn.actions.push(Action::SnapshotRefused { group: self.id, from, index: meta.index, held });
            return;
        }
        self.incoming = Some(Incoming { from, meta: meta.clone(), durable: false });
        turn.actions.push(Action::FetchBodies { group: self.id, from, meta, pages });
    }

    /// The fetch of a snapshot's bodies ended.
    pub(crate) fn bodies(&mut self, index: Index, durable: bool) {
        if self.incoming.as_ref().is_none_or(|i| i.meta.index != index) {
            return;
        }
        match &mut self.incoming {
            Some(incoming) if durable => incoming.durable = true,
            _ => self.incoming = None,
        }
    }

    /// Steps a durable snapshot as soon as a leader is known.
    pub(crate) fn step_snapshot(&mut self, turn: &mut Turn<'_>) {
        let Some(incoming) = self.incoming.as_ref().filter(|i| i.durable) else {
            return;
        };
        let raft = &self.raw.raft;
        if incoming.meta.index.0 <= raft.raft_log.committed {
            return self.need_not(turn);
        }
        if raft.state != StateRole::Follower || raft.leader_id == 0 {
            return;
        }
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgSnapshot);
        (m.to, m.from, m.term) = (self.me.0, raft.leader_id, raft.term);
        let meta = &incoming.meta;
        m.set_snapshot(snapshot_of(meta.index.0, meta.term.0, meta.membership.conf_state()));
        let _ = self.raw.step(m);
        self.after_step(turn);
        if self.raw.snap().is_none() {
            // The log had it all: Raft moved its commit forward instead.
            self.need_not(turn);
        }
    }

    /// The log reached as far as the snapshot while it was fetched.
    fn need_not(&mut self, turn: &mut Turn<'_>) {
        if let Some(Incoming { from, meta, .. }) = self.incoming.take() {
            turn.actions.push(Action::SnapshotNotNeeded { group: self.id, from, index: meta.index });
        }
    }

    /// Raft took the snapshot: one record in this turn's write supersedes the group's whole log.
    pub(super) fn install(&mut self, metadata: &SnapshotMetadata, turn: &mut Turn<'_>) {
        let meta = match self.incoming.take() {
            Some(incoming) if incoming.meta.index.0 == metadata.index => incoming.meta,
            _ => SnapshotMeta {
                index: Index(metadata.index),
                term: Term(metadata.term),
                membership: crate::api::Membership::of(metadata.get_conf_state()),
            },
        };
        self.raw.mut_store().install(&meta);
        self.members_at = meta.index;
        turn.batch.install(self.id, &meta);
        self.installing = Some((turn.write, meta));
    }

    /// The record that supersedes the log is synced: the staged state becomes the state.
    pub(super) fn restore_if_written(&mut self, turn: &mut Turn<'_>) {
        let Some((_, meta)) = self.installing.take_if(|(write, _)| *write <= turn.written) else {
            return;
        };
        turn.machine.restore(self.id, &meta);
        turn.machine.membership_changed(self.id, &meta.membership);
        self.raw.mut_store().set_applied(meta.index.0, meta.term.0);
        self.raw.advance_apply_to(meta.index.0);
    }
}
