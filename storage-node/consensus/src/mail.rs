//! What one turn says to each peer, gathered into as few frames as can be.
//!
//! Heartbeats and answers come first in a frame of the control lane, entries travel in the bulk lane. Held mail leaves
//! after the turn's write is synced.

use crate::api::{Frame, Lane};
use crate::codec::message::{split_append, travels};
use crate::codec::{Answer, Beat, FrameWriter, NodeState};
use longshore_wire::{NodeId, ReplicaId, ShardId};
use raft::eraftpb::Message;
use std::collections::BTreeMap;

#[derive(Default)]
struct Letters {
    control: Vec<(ShardId, Message)>,
    bulk: FrameWriter,
}

#[derive(Default)]
struct Box {
    beats: Vec<Beat>,
    /// By round; a round without groups still carries this node's clock.
    answers: BTreeMap<u64, Vec<Answer>>,
    now: Letters,
    held: Letters,
}

/// The mail of one turn.
#[derive(Default)]
pub(crate) struct Mail {
    boxes: BTreeMap<NodeId, Box>,
    append_bytes_max: usize,
}

impl Mail {
    pub(crate) fn new(append_bytes_max: usize) -> Mail {
        Mail { boxes: BTreeMap::new(), append_bytes_max }
    }

    fn to(&mut self, node: NodeId) -> &mut Box {
        self.boxes.entry(node).or_default()
    }

    pub(crate) fn beat(&mut self, beat: Beat) {
        self.to(beat.to.node()).beats.push(beat);
    }

    /// Answers a round, with this replica's answer for a group if it has one yet.
    pub(crate) fn answer(&mut self, node: NodeId, round: u64, answer: Option<Answer>) {
        self.to(node).answers.entry(round).or_default().extend(answer);
    }

    /// Adds a Raft message, to leave now or after the write.
    pub(crate) fn message(&mut self, group: ShardId, m: Message, held: bool) {
        if !travels(m.get_msg_type()) {
            return;
        }
        let bytes_max = self.append_bytes_max;
        let letters = self.to(ReplicaId(m.to).node());
        let letters = if held { &mut letters.held } else { &mut letters.now };
        if m.entries.is_empty() {
            letters.control.push((group, m));
            return;
        }
        for part in split_append(m, bytes_max) {
            letters.bulk.message(group, &part);
        }
    }

    /// Whether some heartbeat waits for a round.
    pub(crate) fn has_beats(&self) -> bool {
        self.boxes.values().any(|b| !b.beats.is_empty())
    }

    /// The frames that leave now and those that wait. `round` is the round that begins in this turn, to `peers`.
    pub(crate) fn seal(
        mut self,
        round: Option<u64>,
        peers: impl Iterator<Item = NodeId>,
        state: NodeState,
    ) -> (Vec<Frame>, Vec<Frame>) {
        if round.is_some() {
            for node in peers {
                self.to(node);
            }
        }
        let (mut now, mut held) = (Vec::new(), Vec::new());
        for (to, letterbox) in self.boxes {
            let mut control = FrameWriter::default();
            if let Some(round) = round {
                control.beats(round, &letterbox.beats);
            }
            for (round, answers) in &letterbox.answers {
                control.answers(*round, state, answers);
            }
            letters(to, control, letterbox.now, &mut now);
            letters(to, FrameWriter::default(), letterbox.held, &mut held);
        }
        (now, held)
    }
}

fn letters(to: NodeId, mut control: FrameWriter, from: Letters, out: &mut Vec<Frame>) {
    for (group, m) in &from.control {
        control.message(*group, m);
    }
    out.extend(control.finish().into_iter().map(|bytes| Frame { to, lane: Lane::Control, bytes }));
    out.extend(from.bulk.finish().into_iter().map(|bytes| Frame { to, lane: Lane::Bulk, bytes }));
}
