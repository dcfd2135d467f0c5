//! Out of Raft: what it wants written, sent and applied, in the order that makes it safe.
//!
//! For each `Ready`: a leader's messages leave at once (its followers may sync before it does); committed entries are
//! applied; entries go into memory and into the turn's write; what a follower says leaves as held mail, after the
//! write. Two traps: an answer that needs no write of its own still waits for the writes before it, and
//! `on_persist_ready` is cumulative, so it is called for an empty `Ready` only when nothing is in flight.

use super::{Group, Hard, Turn};
use crate::api::{Action, Membership};
use crate::codec::conf::Change;
use crate::codec::{Answer, Beat};
use crate::storage::entry_bytes;
use bytes::Bytes;
use longshore_mutations::{self as mutations, Mutation};
use longshore_wire::{Index, ReplicaId, Term};
use raft::Ready;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

impl Group {
    /// Does everything that Raft wants done now.
    pub(crate) fn drain(&mut self, turn: &mut Turn<'_>) {
        let before = self.store().applied().0;
        while !self.stopped && self.raw.has_ready() {
            let ready = self.raw.ready();
            self.handle(ready, turn);
        }
        self.after_step(turn);
        let applied = self.store().applied().0;
        if applied > before {
            turn.batch.applied(self.id, Index(applied));
        }
        self.report_role(turn);
    }

    fn handle(&mut self, mut ready: Ready, turn: &mut Turn<'_>) {
        let number = ready.number();
        self.last_ready = number;
        // A leader of one voter made its term in this very Ready: nothing may be said in it before it is synced.
        let new_term = ready.must_sync() && ready.hs().is_some_and(|h| h.term != self.hard.term.0);
        for m in ready.take_messages() {
            self.post(m, new_term, turn);
        }
        let installs = !ready.snapshot().is_empty();
        if installs {
            self.install(ready.snapshot().get_metadata(), turn);
        }
        let applied = self.apply(ready.take_committed_entries(), turn);
        let entries = ready.take_entries();
        let writes = installs || !entries.is_empty() || ready.must_sync();
        self.write(&entries, &ready, writes, turn);

        let answers_early = mutations::on(Mutation::AckBeforeSync)
            || (!writes && mutations::on(Mutation::DuplicateAnsweredEarly));
        let held = (writes || !self.in_flight.is_empty()) && !answers_early;
        for m in ready.take_persisted_messages() {
            self.post(m, held, turn);
        }
        self.raw.advance_append_async(ready);
        if let Some(index) = applied {
            self.raw.advance_apply_to(index);
        }
        if self.in_flight.is_empty() || mutations::on(Mutation::PersistReadyEarly) {
            self.raw.on_persist_ready(number);
        }
    }

    /// Puts entries and hard state into memory and into this turn's write.
    fn write(&mut self, entries: &[Entry], ready: &Ready, writes: bool, turn: &mut Turn<'_>) {
        if writes {
            // Before the entries of its term.
            self.in_flight.push_back((turn.write, ready.number()));
            self.write_hard(turn);
        }
        if !entries.is_empty() {
            self.raw.mut_store().append(entries);
            turn.batch.append(self.id, entries);
            self.unsynced.push_back((turn.write, entries.iter().map(entry_bytes).sum()));
            if mutations::on(Mutation::ApplyBeforeCommit) {
                self.apply_early(entries, turn);
            }
        }
    }

    /// Puts the newest term, vote and commit into this turn's write, if they changed.
    pub(crate) fn write_hard(&mut self, turn: &mut Turn<'_>) {
        let raft = &self.raw.raft;
        let hard = Hard {
            term: Term(raft.term),
            vote: ReplicaId(raft.vote),
            commit: Index(raft.raft_log.committed),
        };
        if hard == self.hard || mutations::on(Mutation::VoteNotSynced) {
            return;
        }
        if (hard.term, hard.vote) != (self.hard.term, self.hard.vote) {
            self.vote_write = turn.write;
        }
        self.hard = hard;
        turn.batch.hard(self.id, hard);
    }

    /// A write is synced: tells Raft, and makes an installed snapshot the state. Whether it concerned this group.
    pub(crate) fn written(&mut self, turn: &mut Turn<'_>) -> bool {
        while self.unsynced.front().is_some_and(|(write, _)| *write <= turn.written) {
            self.unsynced.pop_front();
        }
        let mut persisted = None;
        while let Some((_, number)) = self.in_flight.front().copied().filter(|(w, _)| *w <= turn.written) {
            persisted = Some(number);
            self.in_flight.pop_front();
        }
        if let Some(number) = persisted {
            // Every later Ready was empty if nothing is in flight any more.
            let number = if self.in_flight.is_empty() { self.last_ready } else { number };
            self.raw.on_persist_ready(number);
        }
        self.restore_if_written(turn);
        persisted.is_some()
    }

    fn post(&mut self, mut m: Message, held: bool, turn: &mut Turn<'_>) {
        let to = ReplicaId(m.to);
        match m.get_msg_type() {
            MessageType::MsgHeartbeat => turn.mail.beat(Beat {
                group: self.id,
                to,
                from: self.me,
                term: Term(m.term),
                commit: Index(m.commit),
                floor: self.floor,
            }),
            // It acknowledges no entry: it need not wait for a slow disk, only for the term it speaks of.
            MessageType::MsgHeartbeatResponse if self.vote_write <= turn.written => {
                let Ok(round) = m.context.as_ref().try_into().map(u64::from_le_bytes) else {
                    return;
                };
                let answer =
                    Answer { group: self.id, to, from: self.me, term: Term(m.term), commit: Index(m.commit) };
                turn.mail.answer(to.node(), round, Some(answer));
            }
            MessageType::MsgSnapshot => self.send_snapshot(to, turn),
            MessageType::MsgTimeoutNow => {
                m.context = turn.round_stamp.to_le_bytes().to_vec().into();
                turn.mail.message(self.id, m, held);
            }
            _ => turn.mail.message(self.id, m, held),
        }
    }

    fn apply(&mut self, entries: Vec<Entry>, turn: &mut Turn<'_>) -> Option<u64> {
        for e in &entries {
            let (index, term) = (Index(e.index), Term(e.term));
            if e.get_entry_type() == EntryType::EntryNormal {
                if e.index > self.applied_early {
                    turn.machine.apply(self.id, index, term, &e.context, &e.data);
                }
            } else {
                turn.machine.apply(self.id, index, term, &Bytes::new(), &Bytes::new());
                self.apply_change(e, turn);
            }
            self.raw.mut_store().set_applied(e.index, e.term);
        }
        entries.last().map(|e| e.index)
    }

    fn apply_early(&mut self, entries: &[Entry], turn: &mut Turn<'_>) {
        for e in entries.iter().filter(|e| e.get_entry_type() == EntryType::EntryNormal) {
            if e.index > self.applied_early.max(self.raw.store().applied().0) {
                turn.machine.apply(self.id, Index(e.index), Term(e.term), &e.context, &e.data);
                self.applied_early = e.index;
            }
        }
    }

    /// A committed change of the membership. One that cannot be read or does not fit changes nothing, on every replica
    /// alike; one that a stored membership already contains is passed over.
    fn apply_change(&mut self, e: &Entry, turn: &mut Turn<'_>) {
        if Index(e.index) <= self.members_at {
            return;
        }
        let Ok(change) = Change::decode(e.context.clone()) else {
            return;
        };
        let Ok(state) = self.raw.apply_conf_change(&change.library_form()) else {
            return;
        };
        let was_member = self.members().contains(self.me);
        let members = Membership::of(&state);
        self.members_at = Index(e.index);
        turn.batch.members(self.id, self.members_at, &members);
        self.members_write = turn.write;
        turn.machine.membership_changed(self.id, &members);
        if self.is_leader() && !members.is_joint() {
            turn.actions.push(Action::MembershipChanged {
                group: self.id,
                voters: members.voters.clone(),
                learners: members.learners.clone(),
            });
        }
        let removed = was_member && !members.contains(self.me);
        self.raw.mut_store().set_members(members);
        if removed {
            self.stopped = true;
            turn.actions.push(Action::Removed { group: self.id, replica: self.me });
        }
    }
}
