//! Between Raft's words and the node log's: entries, hard states, memberships and snapshot marks of one turn.
//!
//! Danger: the log takes records in the order of these calls, and a group's hard state must precede the entries of
//! its term. An error of the log means that nothing may be acknowledged any more: the first one ends the turn.

use crate::api::{Membership, SnapshotMeta};
use crate::codec::message::{byte_entry_type, entry_type_byte};
use crate::group::Hard;
use bytes::{BufMut, BytesMut};
use longshore_log::{HardState, LogError, NodeLog};
use longshore_wire::{DecodeError, Index, Reader, ShardId, Term};
use raft::eraftpb::Entry;

/// What a turn writes; gathered by the log into one request.
pub(crate) struct Batch<'a> {
    log: &'a mut NodeLog,
    error: Option<LogError>,
    touched: bool,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(log: &'a mut NodeLog) -> Batch<'a> {
        Batch { log, error: None, touched: false }
    }

    pub(crate) fn append(&mut self, group: ShardId, entries: &[Entry]) {
        for e in entries {
            let result = self.log.append(group, to_log(e));
            self.note(result);
        }
    }

    pub(crate) fn hard(&mut self, group: ShardId, hard: Hard) {
        let result = self.log.set_hard_state(group, hard.into());
        self.note(result);
    }

    pub(crate) fn members(&mut self, group: ShardId, at: Index, members: &Membership) {
        let result = self.log.set_conf(group, encode_conf(at, members));
        self.note(result);
    }

    /// Everything that the group had is superseded.
    pub(crate) fn install(&mut self, group: ShardId, meta: &SnapshotMeta) {
        let result = self.log.install_snapshot(group, meta.index, meta.term);
        self.note(result);
        self.members(group, meta.index, &meta.membership);
    }

    pub(crate) fn applied(&mut self, group: ShardId, index: Index) {
        self.log.applied(group, index);
    }

    fn note(&mut self, result: Result<(), LogError>) {
        self.touched = true;
        if let Err(error) = result {
            self.error.get_or_insert(error);
        }
    }

    /// Whether something was written in this turn.
    pub(crate) fn touched(&self) -> bool {
        self.touched
    }

    pub(crate) fn finish(self) -> Result<(), LogError> {
        self.error.map_or(Ok(()), Err)
    }
}

impl From<Hard> for HardState {
    fn from(hard: Hard) -> HardState {
        HardState { term: hard.term, vote: hard.vote, commit: hard.commit }
    }
}

fn to_log(e: &Entry) -> longshore_log::Entry {
    longshore_log::Entry {
        index: Index(e.index),
        term: Term(e.term),
        kind: entry_type_byte(e.get_entry_type()),
        context: e.context.clone(),
        data: e.data.clone(),
    }
}

/// An entry as Raft knows it. One of a kind that this build does not know changes nothing, as on every replica.
pub(crate) fn from_log(e: longshore_log::Entry) -> Entry {
    let mut out = Entry::default();
    (out.index, out.term) = (e.index.0, e.term.0);
    if let Some(kind) = byte_entry_type(e.kind) {
        out.set_entry_type(kind);
        (out.context, out.data) = (e.context, e.data);
    }
    out
}

fn encode_conf(at: Index, members: &Membership) -> bytes::Bytes {
    let mut out = BytesMut::new();
    out.put_u64_le(at.0);
    out.put_slice(&members.encode());
    out.freeze()
}

/// A stored membership and the entry that made it; empty bytes are a replica that has none yet.
pub(crate) fn decode_conf(bytes: bytes::Bytes) -> Result<(Index, Membership), DecodeError> {
    if bytes.is_empty() {
        return Ok((Index(0), Membership::default()));
    }
    let mut r = Reader::new(bytes, "stored membership");
    let at = Index(r.u64()?);
    Ok((at, Membership::decode(r.rest())?))
}

/// The bytes of a membership and its entry, for a replica that is made new.
pub(crate) fn first_conf(at: Index, members: &Membership) -> bytes::Bytes {
    encode_conf(at, members)
}
