//! The recent past, for watchers that come back. In memory only: after a restart every watcher starts anew.
//! Danger: a gap here would leave a gateway with wrong routes for ever; so a watcher either gets every change
//! after its revision or is told to [`Reset`]. Called by `state`.

use crate::limits::{CHANGES_BYTES_MAX, CHANGES_MAX};
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
    changes: VecDeque<(MetaChange, usize)>,
    bytes: usize,
}

impl ChangeLog {
    /// Empty, for a state at `revision`.
    pub fn at(revision: u64) -> ChangeLog {
        ChangeLog { base: revision, ..ChangeLog::default() }
    }

    pub fn push(&mut self, change: MetaChange) {
        let bytes = change.encoded_len() + size_of::<MetaChange>();
        self.bytes += bytes;
        self.changes.push_back((change, bytes));
        while self.changes.len() > CHANGES_MAX || self.bytes > CHANGES_BYTES_MAX {
            let Some((old, bytes)) = self.changes.pop_front() else { break };
            self.base = old.revision;
            self.bytes -= bytes;
        }
    }

    pub fn since(&self, revision: Revision) -> Result<Vec<MetaChange>, Reset> {
        if revision.0 < self.base {
            return Err(Reset { oldest: Revision(self.base) });
        }
        let first = self.changes.partition_point(|(change, _)| change.revision <= revision.0);
        Ok(self.changes.iter().skip(first).map(|(change, _)| change.clone()).collect())
    }
}
