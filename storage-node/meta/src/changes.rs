//! The recent past, for watchers that come back. In memory only: after a restart every watcher starts anew.
//! Danger: a gap here would leave a gateway with wrong routes for ever; so a watcher either gets every change
//! after its revision or is told to [`Reset`]. Called by `state`.

use crate::limits::{CHANGES_BYTES_MAX, CHANGES_MAX};
use bytes::Bytes;
use longshore_proto::v1::MetaChange;
use longshore_wire::Revision;
use prost::Message;
use std::collections::VecDeque;

/// The changes after the watcher's revision are forgotten: send it [`crate::Meta::whole_state`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("changes are remembered from revision {oldest} on; the watcher must take the whole state")]
pub struct Reset {
    /// The oldest revision that can be resumed after.
    pub oldest: Revision,
}

#[derive(Debug, Default)]
pub(crate) struct ChangeLog {
    /// Everything up to here is forgotten.
    base: u64,
    /// With their revisions, as they travel: decoded they take three times the room, and they are seldom asked for.
    changes: VecDeque<(u64, Bytes)>,
    bytes: usize,
}

impl ChangeLog {
    /// Empty, for a state at `revision`.
    pub fn at(revision: u64) -> ChangeLog {
        ChangeLog { base: revision, ..ChangeLog::default() }
    }

    pub fn push(&mut self, change: &MetaChange) {
        let encoded = Bytes::from(change.encode_to_vec());
        self.bytes += cost(&encoded);
        self.changes.push_back((change.revision, encoded));
        while self.changes.len() > CHANGES_MAX || self.bytes > CHANGES_BYTES_MAX {
            let Some((revision, old)) = self.changes.pop_front() else { break };
            self.base = revision;
            self.bytes -= cost(&old);
        }
    }

    pub fn since(&self, revision: Revision) -> Result<Vec<MetaChange>, Reset> {
        if revision.0 < self.base {
            return Err(Reset { oldest: Revision(self.base) });
        }
        let first = self.changes.partition_point(|(known, _)| *known <= revision.0);
        let decoded = self.changes.iter().skip(first).map(|(_, change)| MetaChange::decode(change.clone()));
        // Not even a change that cannot be read may leave a gap.
        decoded.collect::<Result<_, _>>().map_err(|_| Reset { oldest: Revision(self.base) })
    }
}

fn cost(change: &Bytes) -> usize {
    change.len() + size_of::<(u64, Bytes)>()
}
