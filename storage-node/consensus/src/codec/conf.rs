//! Memberships and their changes as bytes, in entries, in the node log and in snapshots.
//!
//! A change travels twice in its entry: `data` holds the library's protobuf, which the proposing leader's own
//! `step` looks at; every replica, also after a restart, reads only `context`, which is ours.

use crate::api::Membership;
use bytes::{BufMut, Bytes, BytesMut};
use longshore_wire::{DecodeError, Reader, ReplicaId};
use protobuf::Message as _;
use raft::eraftpb::{
    ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2, ConfState, Entry, EntryType,
};

const VERSION: u8 = 1;
const CHANGE: &str = "membership change";
const MEMBERSHIP: &str = "membership";
/// Members that one change or one membership may name.
const MEMBERS_MAX: usize = 64;

/// One step of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    Remove(ReplicaId),
    AddLearner(ReplicaId),
    Promote(ReplicaId),
}

/// A change of a group's membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Enters a joint membership (several steps) or changes at once (one step).
    Enter(Vec<Step>),
    /// Leaves the joint membership.
    Leave,
}

impl Change {
    /// The entry that proposes this change.
    pub(crate) fn entry(&self) -> Option<Entry> {
        let mut e = Entry::default();
        e.set_entry_type(EntryType::EntryConfChangeV2);
        e.data = self.library_form().write_to_bytes().ok()?.into();
        e.context = self.encode();
        Some(e)
    }

    fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        let steps: &[Step] = match self {
            Change::Enter(steps) => steps,
            Change::Leave => &[],
        };
        out.put_u32_le(steps.len() as u32);
        for step in steps {
            let (kind, id) = match step {
                Step::Remove(id) => (0, id),
                Step::AddLearner(id) => (1, id),
                Step::Promote(id) => (2, id),
            };
            out.put_u8(kind);
            out.put_u64_le(id.0);
        }
        out.freeze()
    }

    /// Reads the context of an entry.
    pub(crate) fn decode(context: Bytes) -> Result<Change, DecodeError> {
        let mut r = Reader::new(context, CHANGE);
        version(r.u8()?, CHANGE)?;
        let n = bounded(r.count(9)?, CHANGE)?;
        let mut steps = Vec::with_capacity(n);
        for _ in 0..n {
            let kind = r.u8()?;
            let id = ReplicaId(r.u64()?);
            steps.push(match kind {
                _ if id.0 == 0 => return Err(DecodeError::Invalid(CHANGE)),
                0 => Step::Remove(id),
                1 => Step::AddLearner(id),
                2 => Step::Promote(id),
                _ => return Err(DecodeError::Invalid(CHANGE)),
            });
        }
        r.finish()?;
        Ok(if steps.is_empty() { Change::Leave } else { Change::Enter(steps) })
    }

    /// The change as the library wants it. Several steps are joint and left explicitly.
    pub(crate) fn library_form(&self) -> ConfChangeV2 {
        let mut cc = ConfChangeV2::default();
        let Change::Enter(steps) = self else {
            return cc;
        };
        if steps.len() > 1 {
            cc.set_transition(ConfChangeTransition::Explicit);
        }
        for step in steps {
            let mut single = ConfChangeSingle::default();
            let (kind, id) = match step {
                Step::Remove(id) => (ConfChangeType::RemoveNode, id),
                Step::AddLearner(id) => (ConfChangeType::AddLearnerNode, id),
                Step::Promote(id) => (ConfChangeType::AddNode, id),
            };
            single.set_change_type(kind);
            single.node_id = id.0;
            cc.mut_changes().push(single);
        }
        cc
    }
}

fn version(found: u8, what: &'static str) -> Result<(), DecodeError> {
    if found == VERSION { Ok(()) } else { Err(DecodeError::Version { what, found, known: VERSION }) }
}

fn bounded(n: usize, what: &'static str) -> Result<usize, DecodeError> {
    if n <= MEMBERS_MAX { Ok(n) } else { Err(DecodeError::Invalid(what)) }
}

impl Membership {
    /// The encoded form: version, then four lists of replica ids.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        for list in [&self.voters, &self.outgoing, &self.learners, &self.learners_next] {
            out.put_u32_le(list.len() as u32);
            for id in list {
                out.put_u64_le(id.0);
            }
        }
        out.freeze()
    }

    /// Reads the encoded form.
    ///
    /// # Errors
    /// Bytes that are cut, of an unknown version, or name more than 64 members in a list.
    pub fn decode(bytes: Bytes) -> Result<Membership, DecodeError> {
        let mut r = Reader::new(bytes, MEMBERSHIP);
        version(r.u8()?, MEMBERSHIP)?;
        let mut list = || -> Result<Vec<ReplicaId>, DecodeError> {
            let n = bounded(r.count(8)?, MEMBERSHIP)?;
            (0..n).map(|_| Ok(ReplicaId(r.u64()?))).collect()
        };
        let m = Membership { voters: list()?, outgoing: list()?, learners: list()?, learners_next: list()? };
        r.finish()?;
        Ok(m)
    }

    pub(crate) fn of(cs: &ConfState) -> Membership {
        let sorted = |ids: &[u64]| {
            let mut list: Vec<ReplicaId> = ids.iter().map(|id| ReplicaId(*id)).collect();
            list.sort_unstable();
            list
        };
        Membership {
            voters: sorted(&cs.voters),
            outgoing: sorted(&cs.voters_outgoing),
            learners: sorted(&cs.learners),
            learners_next: sorted(&cs.learners_next),
        }
    }

    pub(crate) fn conf_state(&self) -> ConfState {
        let ids = |list: &[ReplicaId]| -> Vec<u64> { list.iter().map(|id| id.0).collect() };
        ConfState {
            voters: ids(&self.voters),
            voters_outgoing: ids(&self.outgoing),
            learners: ids(&self.learners),
            learners_next: ids(&self.learners_next),
            ..ConfState::default()
        }
    }
}
