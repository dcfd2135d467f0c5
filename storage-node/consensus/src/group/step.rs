//! Into Raft: a peer's messages, ticks, proposals; and what is dropped on the way.

use super::{Group, Turn};
use crate::api::{Action, ProposeError, Role};
use crate::codec::conf::Change;
use crate::codec::{Answer, Beat};
use crate::config::Config;
use longshore_io::Mono;
use longshore_wire::{BATCH_BYTES_MAX, Index, NodeId, ReplicaId, Term};
use raft::StateRole;
use raft::eraftpb::{Entry, Message, MessageType};

/// The library's mark on a vote request that the old leader asked for.
const CHOSEN_BY_LEADER: &[u8] = b"CampaignTransfer";
/// What an entry costs beside its data when proposals are counted.
const PROPOSAL_BYTES: usize = 64;

fn round_of(m: &Message) -> Option<u64> {
    Some(u64::from_le_bytes(m.context.as_ref().try_into().ok()?))
}

impl Group {
    /// Takes a message from a peer.
    pub(crate) fn receive(&mut self, m: Message, turn: &mut Turn<'_>) {
        if self.stopped || self.drops(&m, turn) {
            return;
        }
        if m.get_msg_type() == MessageType::MsgHeartbeatResponse {
            // An answer that had to wait for a write; it is too old to count for a lease.
            let mut late = m;
            late.context.clear();
            self.step(late, turn);
            return;
        }
        self.step(m, turn);
    }

    fn drops(&self, m: &Message, turn: &Turn<'_>) -> bool {
        if m.to != self.me.0 {
            return true;
        }
        match m.get_msg_type() {
            MessageType::MsgRequestVote | MessageType::MsgRequestPreVote => {
                !self.promise.may_vote(turn.now, m.context.as_ref() == CHOSEN_BY_LEADER)
            }
            MessageType::MsgTimeoutNow => {
                let stale = |round| self.promise.is_stale_hand_over(Term(m.term), round);
                turn.leaving || self.installing.is_some() || round_of(m).is_none_or(stale)
            }
            MessageType::MsgAppend => {
                let unsynced: usize = self.unsynced.iter().map(|(_, bytes)| bytes).sum();
                !m.entries.is_empty() && unsynced >= turn.config.unsynced_bytes_max
            }
            _ => false,
        }
    }

    /// Takes a leader's heartbeat; the answer comes out of [`Group::drain`].
    pub(crate) fn beat(&mut self, round: u64, b: &Beat, turn: &mut Turn<'_>) {
        if self.stopped || b.to != self.me || b.term.0 == 0 {
            return;
        }
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgHeartbeat);
        (m.to, m.from, m.term, m.commit) = (b.to.0, b.from.0, b.term.0, b.commit.0);
        m.context = round.to_le_bytes().to_vec().into();
        self.step(m, turn);
        let raft = &self.raw.raft;
        if raft.term == b.term.0 && raft.leader_id == b.from.0 && raft.state == StateRole::Follower {
            self.floor = self.floor.max(b.floor);
            self.promise.answer(b.term, round, turn.now, turn.config.election_us());
        }
    }

    /// Takes a follower's answer to a round that began at `sent`.
    pub(crate) fn answered(&mut self, round: u64, sent: Option<Mono>, a: &Answer, turn: &mut Turn<'_>) {
        if self.stopped || a.to != self.me || a.term.0 == 0 {
            return;
        }
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgHeartbeatResponse);
        (m.to, m.from, m.term, m.commit) = (a.to.0, a.from.0, a.term.0, a.commit.0);
        self.step(m, turn);
        if let Some(sent) = sent.filter(|_| self.is_leader() && self.raw.raft.term == a.term.0) {
            self.lease.answered(a.from, round, sent);
        }
    }

    fn step(&mut self, m: Message, turn: &mut Turn<'_>) {
        // An error means that the message is of no use here (an unknown member's answer).
        let _ = self.raw.step(m);
        self.after_step(turn);
    }

    /// What must follow every step and tick at once.
    pub(super) fn after_step(&mut self, turn: &mut Turn<'_>) {
        let raft = &self.raw.raft;
        let now_is = (raft.term, raft.state);
        if now_is != self.seen {
            let led = self.seen.1 == StateRole::Leader;
            self.seen = now_is;
            self.draw_timeout(turn.config);
            self.lease = Default::default();
            self.transferring = None;
            self.calm_ticks = 0;
            self.delivered.clear();
            if now_is.1 == StateRole::Leader {
                self.raw.ping();
            } else if led {
                self.drop_proposals();
            }
        } else if raft.randomized_election_timeout() != self.timeout_ticks {
            self.raw.raft.set_randomized_election_timeout(self.timeout_ticks);
        }
        if let (Some(to), None) = (self.transferring, self.raw.raft.lead_transferee) {
            self.transferring = None;
            self.lease.transfer_aborted(to, turn.round_stamp, turn.now);
        }
    }

    /// One tick; `beat` when a heartbeat round is due.
    pub(crate) fn tick(&mut self, beat: bool, turn: &mut Turn<'_>) {
        // Between a snapshot's mark and its restore the log begins above the state: no election then.
        if self.stopped || self.installing.is_some() {
            return;
        }
        self.raw.tick();
        self.after_step(turn);
        if beat && self.is_leader() {
            self.raw.ping();
        }
    }

    /// The connection to a node broke.
    pub(crate) fn unreachable(&mut self, node: NodeId, turn: &mut Turn<'_>) {
        if !self.is_leader() {
            return;
        }
        let ids: Vec<ReplicaId> = self.members().members().filter(|id| id.node() == node).collect();
        for id in ids {
            self.raw.report_unreachable(id.0);
        }
        self.after_step(turn);
    }

    /// Queues an entry for this turn's append.
    pub(crate) fn propose(&mut self, entry: Entry, config: &Config) -> Result<(), ProposeError> {
        let bytes = entry.data.len() + entry.context.len();
        if entry.data.len() > BATCH_BYTES_MAX || entry.context.len() > usize::from(u16::MAX) {
            return Err(ProposeError::TooLarge { bytes, max: BATCH_BYTES_MAX });
        }
        let leads = matches!(self.role, Role::Leader { .. }) && self.is_leader();
        if !leads {
            let raft = &self.raw.raft;
            let known = raft.leader_id != 0 && raft.leader_id != self.me.0;
            let leader = known.then_some(ReplicaId(raft.leader_id));
            return Err(ProposeError::NotLeader { term: Term(raft.term), leader });
        }
        let waiting = self.proposed_bytes + self.raw.raft.uncommitted_size();
        let full = waiting > 0 && waiting + bytes + PROPOSAL_BYTES > config.uncommitted_bytes_max;
        if full || self.raw.raft.lead_transferee.is_some() {
            return Err(ProposeError::Busy);
        }
        self.proposed_bytes += bytes + PROPOSAL_BYTES;
        self.proposals.push_back(entry);
        Ok(())
    }

    /// Steps what was proposed: as few appends as the size of a message allows. What Raft does not take now stays.
    pub(crate) fn flush_proposals(&mut self, turn: &mut Turn<'_>) {
        if !self.is_leader() {
            self.drop_proposals();
            return;
        }
        while !self.proposals.is_empty() {
            let mut bytes = 0;
            let fits = |e: &&Entry| {
                let first = bytes == 0;
                bytes += e.data.len() + e.context.len() + PROPOSAL_BYTES;
                first || bytes <= turn.config.append_bytes_max
            };
            let chunk: Vec<Entry> = self.proposals.iter().take_while(fits).cloned().collect();
            let n = chunk.len();
            if !self.step_proposal(chunk, turn) {
                return;
            }
            for e in self.proposals.drain(..n) {
                let cost = e.data.len() + e.context.len() + PROPOSAL_BYTES;
                self.proposed_bytes = self.proposed_bytes.saturating_sub(cost);
            }
        }
    }

    fn step_proposal(&mut self, entries: Vec<Entry>, turn: &mut Turn<'_>) -> bool {
        let mut m = Message::default();
        m.set_msg_type(MessageType::MsgPropose);
        m.from = self.me.0;
        m.entries = entries.into();
        let taken = self.raw.raft.step(m).is_ok();
        self.after_step(turn);
        taken
    }

    pub(super) fn propose_change(&mut self, change: &Change, turn: &mut Turn<'_>) {
        if self.raw.raft.has_pending_conf() {
            return;
        }
        if let Some(entry) = change.entry() {
            self.step_proposal(vec![entry], turn);
        }
    }

    fn drop_proposals(&mut self) {
        self.proposals.clear();
        self.proposed_bytes = 0;
    }

    /// Entries that this replica's followers wanted were read (or not); `ask` has Raft try again now.
    pub(crate) fn fetched(&mut self, low: Index, entries: Vec<Entry>, ask: bool, turn: &mut Turn<'_>) {
        for context in self.raw.mut_store().fetched(low, entries) {
            if ask {
                self.raw.on_entries_fetched(context);
            }
        }
        self.after_step(turn);
    }

    /// The log holds something else than what was written: this replica ends.
    pub(crate) fn damaged(&mut self, turn: &mut Turn<'_>) {
        if !self.stopped {
            self.stopped = true;
            turn.actions.push(Action::Damaged { group: self.id, replica: self.me });
            self.report_role(turn);
        }
    }
}
