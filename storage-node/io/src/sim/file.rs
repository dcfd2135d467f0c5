//! One file: its durable bytes, its current bytes, and what was changed since the last sync.
//!
//! Danger: what a crash keeps must never be kinder than a disk; a sector is the only thing written as a whole.

use super::fault::Rng;

/// What a disk writes at once: either all of a sector's new bytes survive a crash, or none.
pub const SECTOR_BYTES: u64 = 512;

#[derive(Clone, Debug)]
pub(super) enum Change {
    Write { at: u64, bytes: Vec<u8> },
    SetLen(u64),
}

#[derive(Clone, Debug, Default)]
pub(super) struct File {
    pub(super) durable: Vec<u8>,
    pub(super) current: Vec<u8>,
    pub(super) unsynced: Vec<Change>,
    /// Room reserved beyond the length.
    pub(super) reserved: u64,
}

/// Writes `bytes` at `at`, with zeros in a hole before it.
pub(super) fn overlay(target: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let start = at as usize;
    let end = start + bytes.len();
    if target.len() < end {
        target.resize(end, 0);
    }
    target[start..end].copy_from_slice(bytes);
}

/// How much of the unsynced changes a crash keeps.
enum Survival {
    Nothing,
    Everything,
    /// So many bytes of the writes in order, torn at a sector.
    Prefix(u64),
    /// Each sector for itself.
    AnySectors,
}

impl File {
    pub(super) fn apply(change: &Change, to: &mut Vec<u8>) {
        match change {
            Change::Write { at, bytes } => overlay(to, *at, bytes),
            Change::SetLen(len) => to.resize(*len as usize, 0),
        }
    }

    pub(super) fn crash(&mut self, rng: &mut Rng) {
        let total: u64 = self
            .unsynced
            .iter()
            .map(|c| if let Change::Write { bytes, .. } = c { bytes.len() as u64 } else { 1 })
            .sum();
        let survival = match rng.below(5) {
            0 => Survival::Nothing,
            1 => Survival::Everything,
            2 => Survival::Prefix(rng.below(total + 1)),
            _ => Survival::AnySectors,
        };
        let mut passed = 0u64;
        for change in std::mem::take(&mut self.unsynced) {
            match &change {
                Change::SetLen(_) => {
                    let keep = match survival {
                        Survival::Nothing => false,
                        Survival::Everything => true,
                        Survival::Prefix(limit) => passed < limit,
                        Survival::AnySectors => rng.one_in(2),
                    };
                    passed += 1;
                    if keep {
                        File::apply(&change, &mut self.durable);
                    }
                }
                Change::Write { at, bytes } => {
                    let mut done = 0usize;
                    while done < bytes.len() {
                        let position = at + done as u64;
                        let piece =
                            ((SECTOR_BYTES - position % SECTOR_BYTES) as usize).min(bytes.len() - done);
                        let keep = match survival {
                            Survival::Nothing => false,
                            Survival::Everything => true,
                            Survival::Prefix(limit) => passed + piece as u64 <= limit,
                            Survival::AnySectors => rng.one_in(2),
                        };
                        passed += piece as u64;
                        if keep {
                            overlay(&mut self.durable, position, &bytes[done..done + piece]);
                        }
                        done += piece;
                    }
                }
            }
        }
        self.current = self.durable.clone();
        self.reserved = 0;
    }

    pub(super) fn taken(&self) -> u64 {
        (self.current.len() as u64).max(self.reserved)
    }
}
