//! The bytes that travel between two storage nodes: frames of heartbeats, answers and Raft messages of all groups.
//!
//! Danger: this is the only place where a peer's bytes are read. Every length is bounded before it is believed, message
//! types that only a replica may say to itself are refused, and nothing here is protobuf (the library's own
//! codec overflows its stack on hostile input).
//!
//! A frame is `version u8, crc32c u32 of what follows, sections`. A section is a kind byte and:
//!
//! | kind | what |
//! |---|---|
//! | 1 | beats: round u64, count u32, then group u32, to u64, from u64, term u64, commit u64, floor u64 each |
//! | 2 | answers: round u64, wall clock u64 (ms), flags u8 (1: short of disk space), count u32, then group u32, to, from, term, commit u64 each |
//! | 3 | message: group u32 and a Raft message ([`message`]) |

pub(crate) mod conf;
pub(crate) mod message;

use bytes::{BufMut, Bytes, BytesMut};
use longshore_io::WallMs;
use longshore_wire::{BATCH_BYTES_MAX, DecodeError, Index, Reader, ReplicaId, ShardId, Term};
use raft::eraftpb::Message;

/// Largest frame in bytes: the largest entry and its headers.
pub const FRAME_BYTES_MAX: usize = BATCH_BYTES_MAX + (4 << 10);

const VERSION: u8 = 1;
const WHAT: &str = "peer frame";
const HEADER_BYTES: usize = 5;
const BEATS: u8 = 1;
const ANSWERS: u8 = 2;
const MESSAGE: u8 = 3;
/// A flag of a node's state.
const SHORT_OF_SPACE: u8 = 1;
const BEAT_BYTES: usize = 4 + 5 * 8;
const ANSWER_BYTES: usize = 4 + 4 * 8;
/// Groups in one section of beats or answers; more go into further sections.
const SECTION_GROUPS_MAX: usize = 16_384;

/// A leader's heartbeat for one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    pub group: ShardId,
    pub to: ReplicaId,
    pub from: ReplicaId,
    pub term: Term,
    pub commit: Index,
    /// What every replica holds, as far as the leader knows.
    pub floor: Index,
}

/// A replica's answer to a [`Beat`], given after Raft took it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub group: ShardId,
    pub to: ReplicaId,
    pub from: ReplicaId,
    pub term: Term,
    pub commit: Index,
}

/// What a node says of itself with its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct NodeState {
    pub wall: WallMs,
    /// Its disk is below its reserve.
    pub short_of_space: bool,
}

/// One part of a frame.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Section {
    Beats { round: u64, beats: Vec<Beat> },
    Answers { round: u64, state: NodeState, answers: Vec<Answer> },
    Message { group: ShardId, message: Message },
}

/// Builds frames that stay below [`FRAME_BYTES_MAX`] unless one message alone is larger.
#[derive(Default)]
pub(crate) struct FrameWriter {
    done: Vec<Bytes>,
    open: BytesMut,
}

impl FrameWriter {
    fn room(&mut self, bytes: usize) -> &mut BytesMut {
        if !self.open.is_empty() && self.open.len() + bytes > FRAME_BYTES_MAX {
            self.close();
        }
        if self.open.is_empty() {
            self.open.reserve(HEADER_BYTES + bytes);
            self.open.put_u8(VERSION);
            self.open.put_u32_le(0);
        }
        &mut self.open
    }

    fn close(&mut self) {
        let mut frame = std::mem::take(&mut self.open);
        if let Some((head, rest)) = frame.split_at_mut_checked(HEADER_BYTES) {
            let crc = crc32c::crc32c(rest).to_le_bytes();
            if let Some(slot) = head.get_mut(1..HEADER_BYTES) {
                slot.copy_from_slice(&crc);
            }
            self.done.push(frame.freeze());
        }
    }

    /// Adds a round's heartbeats; an empty round still asks for the peer's clock.
    pub(crate) fn beats(&mut self, round: u64, beats: &[Beat]) {
        let mut chunks = beats.chunks(SECTION_GROUPS_MAX);
        let mut next = Some(chunks.next().unwrap_or(&[]));
        while let Some(chunk) = next {
            let out = self.room(13 + chunk.len() * BEAT_BYTES);
            out.put_u8(BEATS);
            out.put_u64_le(round);
            out.put_u32_le(chunk.len() as u32);
            for b in chunk {
                out.put_u32_le(b.group.0);
                for n in [b.to.0, b.from.0, b.term.0, b.commit.0, b.floor.0] {
                    out.put_u64_le(n);
                }
            }
            next = chunks.next();
        }
    }

    /// Adds the answers to a round.
    pub(crate) fn answers(&mut self, round: u64, state: NodeState, answers: &[Answer]) {
        let mut chunks = answers.chunks(SECTION_GROUPS_MAX);
        let mut next = Some(chunks.next().unwrap_or(&[]));
        while let Some(chunk) = next {
            let out = self.room(22 + chunk.len() * ANSWER_BYTES);
            out.put_u8(ANSWERS);
            out.put_u64_le(round);
            out.put_u64_le(state.wall.0);
            out.put_u8(if state.short_of_space { SHORT_OF_SPACE } else { 0 });
            out.put_u32_le(chunk.len() as u32);
            for a in chunk {
                out.put_u32_le(a.group.0);
                for n in [a.to.0, a.from.0, a.term.0, a.commit.0] {
                    out.put_u64_le(n);
                }
            }
            next = chunks.next();
        }
    }

    /// Adds a Raft message.
    pub(crate) fn message(&mut self, group: ShardId, m: &Message) {
        let out = self.room(5 + message::encoded_len(m));
        out.put_u8(MESSAGE);
        out.put_u32_le(group.0);
        message::encode(m, out);
    }

    /// The frames, in the order in which their parts were added.
    pub(crate) fn finish(mut self) -> Vec<Bytes> {
        self.close();
        self.done
    }
}

/// Reads a frame. The entries' data share `bytes`.
pub(crate) fn decode_frame(bytes: Bytes) -> Result<Vec<Section>, DecodeError> {
    let mut r = Reader::new(bytes, WHAT);
    let version = r.u8()?;
    if version != VERSION {
        return Err(DecodeError::Version { what: WHAT, found: version, known: VERSION });
    }
    let crc = r.u32()?;
    let body = r.rest();
    if crc32c::crc32c(&body) != crc {
        return Err(DecodeError::Checksum(WHAT));
    }
    let mut r = Reader::new(body, WHAT);
    let mut sections = Vec::new();
    while r.remaining() > 0 {
        sections.push(match r.u8()? {
            BEATS => read_beats(&mut r)?,
            ANSWERS => read_answers(&mut r)?,
            MESSAGE => Section::Message { group: ShardId(r.u32()?), message: message::decode(&mut r)? },
            _ => return Err(DecodeError::Invalid("kind of section")),
        });
    }
    Ok(sections)
}

fn read_beats(r: &mut Reader) -> Result<Section, DecodeError> {
    let round = r.u64()?;
    let n = r.count(BEAT_BYTES)?;
    let mut beats = Vec::with_capacity(n);
    for _ in 0..n {
        beats.push(Beat {
            group: ShardId(r.u32()?),
            to: ReplicaId(r.u64()?),
            from: ReplicaId(r.u64()?),
            term: Term(r.u64()?),
            commit: Index(r.u64()?),
            floor: Index(r.u64()?),
        });
    }
    Ok(Section::Beats { round, beats })
}

fn read_answers(r: &mut Reader) -> Result<Section, DecodeError> {
    let round = r.u64()?;
    let wall = WallMs(r.u64()?);
    let short_of_space = r.u8()? & SHORT_OF_SPACE != 0;
    let n = r.count(ANSWER_BYTES)?;
    let mut answers = Vec::with_capacity(n);
    for _ in 0..n {
        answers.push(Answer {
            group: ShardId(r.u32()?),
            to: ReplicaId(r.u64()?),
            from: ReplicaId(r.u64()?),
            term: Term(r.u64()?),
            commit: Index(r.u64()?),
        });
    }
    Ok(Section::Answers { round, state: NodeState { wall, short_of_space }, answers })
}

#[cfg(test)]
mod tests;
