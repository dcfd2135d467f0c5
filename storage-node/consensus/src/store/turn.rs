//! One turn: everything that waits goes in, Raft is drained, one write for all groups comes out.
//!
//! The order: what is synced first (so that no answer overtakes the news of the write it followed), then messages and
//! reads, ticks, proposals; then each dirty group is drained; then the write is taken and the mail sealed.

use super::Store;
use crate::api::{Action, Event, Held, Machine, Output};
use crate::codec::{NodeState, Section, decode_frame};
use crate::group::{Duty, Turn};
use crate::journal::{Batch, from_log};
use crate::mail::Mail;
use bytes::Bytes;
use longshore_io::{Mono, WallMs};
use longshore_log::{Fetched, LogError, ReadDone, ReadError};
use longshore_wire::{Index, NodeId, ReplicaId, ShardId};
use std::collections::BTreeSet;

/// Ticks between two looks at what may be compacted.
const COMPACT_TICKS: u64 = 10;
/// Groups are asked in turn to give back memory; a pass takes this share of what is too much, at least.
const EVICT_BYTES_MIN: usize = 64 << 10;

impl Store {
    /// Takes all that happened and fills `out` with what shall be done; see the crate's page for the contract. `events` is left
    /// empty. `now` and `wall` are read after the events were gathered.
    ///
    /// # Errors
    /// The log refused a record: nothing of this turn may be sent, the process must end.
    pub fn turn(
        &mut self,
        now: Mono,
        wall: WallMs,
        events: &mut Vec<Event>,
        machine: &mut dyn Machine,
        out: &mut Output,
    ) -> Result<(), LogError> {
        assert!(out.write.is_none() && out.held.is_none(), "the write of the last turn was not carried out");
        self.clocks.own(self.config.node, now, wall);
        let synced = self.note_writes(events, out);
        let beat_due = self.tick_due(now);
        // A wakeup by the clock concerns every group; anything else only those that it names.
        let ticked = beat_due.is_some();

        let mut dirty = std::mem::take(&mut self.dirty);
        let mut turn = Turn {
            now,
            config: &self.config,
            write: self.submitted + 1,
            written: self.written,
            leaving: self.leaving,
            round_stamp: self.rounds.stamp(),
            machine,
            batch: Batch::new(&mut self.log),
            mail: Mail::new(self.config.append_bytes_max),
            actions: std::mem::take(&mut out.actions),
        };
        let mut work = Work {
            groups: &mut self.groups,
            dirty: &mut dirty,
            rounds: &self.rounds,
            clocks: &mut self.clocks,
            space: &mut self.space,
            malformed: &mut self.malformed_frames,
        };
        if synced {
            work.written(&mut turn);
        }
        // What was opened since the last turn applies all that is committed before its first message or tick.
        work.drain(&mut turn);
        for event in events.drain(..) {
            work.event(event, &mut turn);
        }
        if let Some(beat) = beat_due {
            let duty = if self.leaving { Duty::Leave } else { Duty::Serve };
            work.tick(beat, duty, &mut turn);
        }
        work.flush(&mut turn);
        work.drain(&mut turn);
        work.write_commits(&mut turn);
        let wanted = work.reads_wanted();

        let Turn { batch, mail, actions, .. } = turn;
        let touched = batch.touched();
        batch.finish()?;
        out.actions = actions;
        for action in &out.actions {
            if let Action::Damaged { group, .. } = action {
                self.log.set_aside(*group);
            }
        }
        self.ask_for_reads(wanted, out);
        self.seal(mail, now, wall, beat_due == Some(true), touched, out);
        if ticked {
            self.upkeep();
        }
        Ok(())
    }

    /// Hands completed writes to the log; whether any came.
    fn note_writes(&mut self, events: &mut Vec<Event>, out: &mut Output) -> bool {
        let before = self.written;
        for event in events.extract_if(.., |e| matches!(e, Event::Written(_))) {
            if let Event::Written(completion) = event {
                let progress = self.log.completed(completion);
                self.written = progress.tickets.into_iter().fold(self.written, u64::max);
                out.sealed.extend(progress.sealed);
            }
        }
        self.written > before
    }

    /// Whether a tick is due, and with it a heartbeat round. A late tick counts once.
    fn tick_due(&mut self, now: Mono) -> Option<bool> {
        if now < self.next_tick {
            return None;
        }
        self.next_tick = Mono(now.0.saturating_add(self.config.tick_us));
        self.ticks += 1;
        Some(self.ticks.is_multiple_of(self.config.heartbeat_ticks as u64))
    }

    fn ask_for_reads(&mut self, wanted: Vec<(ShardId, Index, Index)>, out: &mut Output) {
        for (group, low, high) in wanted {
            let done = match self.log.entries(group, low, high, self.config.read_bytes_max) {
                Ok(Fetched::Read(task)) => {
                    out.actions.push(Action::ReadEntries(task));
                    continue;
                }
                // Still in the log's memory: they are fed to Raft at the start of the next turn, which is due now.
                Ok(Fetched::Ready(entries)) => ReadDone { group, low, entries: Ok(entries) },
                Err(error) => ReadDone { group, low, entries: Err(error) },
            };
            out.again.push(Event::EntriesRead(done));
        }
    }

    /// Takes the write and seals the mail.
    fn seal(&mut self, mail: Mail, now: Mono, wall: WallMs, beat_due: bool, touched: bool, out: &mut Output) {
        let round = (beat_due || mail.has_beats()).then(|| self.rounds.begin(now));
        let peers = if round.is_some() { self.peers() } else { BTreeSet::new() };
        let state = NodeState { wall, short_of_space: self.space.is_short(self.config.node) };
        let (frames, held) = mail.seal(round, peers.into_iter(), state);
        out.frames.extend(frames);
        let ticket = self.submitted + 1;
        if touched || !held.is_empty() {
            self.log.ticket(ticket);
            self.submitted = ticket;
        }
        out.write = self.log.take_request();
        out.held = (!held.is_empty()).then_some(Held { ticket, frames: held });
    }

    /// Compacts what may go, and keeps the tails within their budget.
    fn upkeep(&mut self) {
        if self.ticks.is_multiple_of(COMPACT_TICKS) {
            for (id, group) in &mut self.groups {
                self.log.replicated(*id, group.floor());
                if let Some(to) = self.log.compactable(*id) {
                    let first = self.log.compact(*id, to);
                    group.store_mut().compact(first.0.saturating_sub(1));
                }
                group.store_mut().drop_blocks();
            }
        }
        let held: usize = self.groups.values().map(|g| g.store().tail_bytes()).sum();
        let mut excess = held.saturating_sub(self.config.tail_bytes_max);
        let share = (excess / self.groups.len().max(1)).max(EVICT_BYTES_MIN);
        for group in self.groups.values_mut() {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(group.store_mut().evict(share.min(excess)));
        }
        for group in self.groups.values_mut() {
            if excess == 0 {
                break;
            }
            excess = excess.saturating_sub(group.store_mut().evict(excess));
        }
    }
}

/// The groups, and what events touch beside them.
struct Work<'a> {
    groups: &'a mut std::collections::BTreeMap<ShardId, crate::group::Group>,
    dirty: &'a mut BTreeSet<ShardId>,
    rounds: &'a crate::lease::Rounds,
    clocks: &'a mut crate::clock::Clocks,
    space: &'a mut crate::space::Space,
    malformed: &'a mut u64,
}

impl Work<'_> {
    fn with(&mut self, id: ShardId, f: impl FnOnce(&mut crate::group::Group)) {
        if let Some(group) = self.groups.get_mut(&id) {
            self.dirty.insert(id);
            f(group);
        }
    }

    fn written(&mut self, turn: &mut Turn<'_>) {
        for (id, group) in self.groups.iter_mut() {
            if group.written(turn) {
                self.dirty.insert(*id);
            }
        }
    }

    fn event(&mut self, event: Event, turn: &mut Turn<'_>) {
        match event {
            Event::Frame { from, bytes } => self.frame(from, bytes, turn),
            Event::PeerUnreachable(node) => {
                for (id, group) in self.groups.iter_mut().filter(|(_, g)| g.is_leader()) {
                    group.unreachable(node, turn);
                    self.dirty.insert(*id);
                }
            }
            Event::SnapshotArrived { group, from, meta, pages } => {
                self.with(group, |g| g.snapshot_arrived(from, meta, pages, turn));
            }
            Event::BodiesDurable { group, index } => self.with(group, |g| g.bodies(index, true)),
            Event::BodiesFailed { group, index } => self.with(group, |g| g.bodies(index, false)),
            Event::SnapshotSent { group, to, installed } => {
                self.with(group, |g| g.snapshot_sent(to, installed, turn));
            }
            Event::EntriesRead(done) => self.read_done(done, turn),
            // Taken out before.
            Event::Written(_) => {}
        }
    }

    fn frame(&mut self, from: NodeId, bytes: Bytes, turn: &mut Turn<'_>) {
        let Ok(sections) = decode_frame(bytes) else {
            *self.malformed += 1;
            return;
        };
        let sent_by = |id: ReplicaId| id.node() == from;
        for section in sections {
            match section {
                Section::Beats { round, beats } => {
                    // Also without a group: the peer wants this node's clock.
                    turn.mail.answer(from, round, None);
                    for b in beats.iter().filter(|b| sent_by(b.from)) {
                        self.with(b.group, |g| g.beat(round, b, turn));
                    }
                }
                Section::Answers { round, state, answers } => {
                    self.space.note(from, state.short_of_space);
                    let sent = self.rounds.sent(round);
                    if let Some(sent) = sent {
                        self.clocks.answered(from, sent, turn.now, state.wall);
                    }
                    for a in answers.iter().filter(|a| sent_by(a.from)) {
                        self.with(a.group, |g| g.answered(round, sent, a, turn));
                    }
                }
                Section::Message { group, message } => {
                    if sent_by(ReplicaId(message.from)) {
                        self.with(group, |g| g.receive(message, turn));
                    }
                }
            }
        }
    }

    fn read_done(&mut self, done: ReadDone, turn: &mut Turn<'_>) {
        let ReadDone { group, low, entries } = done;
        self.with(group, |g| match entries {
            Ok(entries) => g.fetched(low, entries.into_iter().map(from_log).collect(), true, turn),
            Err(ReadError::Corrupt { .. }) => g.damaged(turn),
            // Compacted: asking again leads Raft to a snapshot. Otherwise the next heartbeat's answer asks again.
            Err(error) => g.fetched(low, Vec::new(), matches!(error, ReadError::Compacted), turn),
        });
    }

    fn tick(&mut self, beat: bool, duty: Duty, turn: &mut Turn<'_>) {
        for (id, group) in self.groups.iter_mut() {
            group.tick(beat, turn);
            group.lead(duty, turn);
            self.dirty.insert(*id);
        }
    }

    fn flush(&mut self, turn: &mut Turn<'_>) {
        for id in self.dirty.iter() {
            if let Some(group) = self.groups.get_mut(id) {
                group.step_snapshot(turn);
                group.flush_proposals(turn);
                group.hand_over_asked(turn);
            }
        }
    }

    /// Drains every dirty group.
    fn drain(&mut self, turn: &mut Turn<'_>) {
        for id in self.dirty.iter() {
            if let Some(group) = self.groups.get_mut(id) {
                group.drain(turn);
            }
        }
    }

    /// A commit index that moved is worth no sync of its own; it rides with a write that goes anyway.
    fn write_commits(&mut self, turn: &mut Turn<'_>) {
        if turn.batch.touched() {
            for id in self.dirty.iter() {
                if let Some(group) = self.groups.get_mut(id).filter(|group| !group.is_stopped()) {
                    group.write_hard(turn);
                }
            }
        }
    }

    fn reads_wanted(&self) -> Vec<(ShardId, Index, Index)> {
        let dirty = self.dirty.iter().filter_map(|id| Some((*id, self.groups.get(id)?)));
        dirty
            .flat_map(|(id, g)| g.store().take_wanted().into_iter().map(move |w| (id, w.low, w.high)))
            .collect()
    }
}
