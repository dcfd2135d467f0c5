//! Deliberate mistakes, each of which would lose, double or misplace a message; they prove that the simulation finds such
//! mistakes from what clients saw.
//!
//! Danger: compiled in only under the feature `mutations`, which a build without debug assertions refuses. Without
//! the feature [`on`] is a constant `false` and every hook vanishes. Called by the crates of the storage node at the
//! places that they name, and by `tests/tests/broken_builds.rs`, which chooses.
#![forbid(unsafe_code)]

#[cfg(all(feature = "mutations", not(debug_assertions)))]
compile_error!("the feature `mutations` breaks the storage node on purpose: never in a release build");

/// One mistake, chosen at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutation {
    /// A follower's acknowledgement leaves before its entries are synced.
    AckBeforeSync,
    /// Terms and votes are sent although they are never written.
    VoteNotSynced,
    /// `on_persist_ready` is called when the write is submitted, not when it is done.
    PersistReadyEarly,
    /// A duplicate append is answered while the first one is still being written.
    DuplicateAnsweredEarly,
    /// A snapshot is installed and acknowledged before its bodies were fetched; nor does a new leader look whether it has
    /// them.
    SnapshotBeforeBodies,
    /// A node that lost its disk comes back under its old ids.
    WipedNodeKeepsId,
    /// The log below what was applied goes, not below what a checkpoint holds durably; nor does a start look whether they
    /// meet.
    SegmentRemovedEarly,
    /// An entry that was overwritten keeps its place in the tables, and the index names it; nor is its term compared when it
    /// is read.
    IndexNamesOverwritten,
    /// A start takes the last synced batch for a torn one.
    SyncedTailCut,
    /// Entries are applied when they are appended.
    ApplyBeforeCommit,
    /// A state that is made from pages knows its sessions, but not their numbers: it takes the next batch as it comes.
    BatchNumberLost,
    /// Every third message goes to a second consumer under the same lease.
    LeaseReused,
    /// A leader delivers without a lease.
    PausedLeaderDelivers,
}

impl Mutation {
    /// All of them, for a test that tries one after the other.
    pub const ALL: [Mutation; 13] = [
        Mutation::AckBeforeSync,
        Mutation::VoteNotSynced,
        Mutation::PersistReadyEarly,
        Mutation::DuplicateAnsweredEarly,
        Mutation::SnapshotBeforeBodies,
        Mutation::WipedNodeKeepsId,
        Mutation::SegmentRemovedEarly,
        Mutation::IndexNamesOverwritten,
        Mutation::SyncedTailCut,
        Mutation::ApplyBeforeCommit,
        Mutation::BatchNumberLost,
        Mutation::LeaseReused,
        Mutation::PausedLeaderDelivers,
    ];
}

#[cfg(feature = "mutations")]
mod switch {
    use super::Mutation;
    use std::cell::Cell;

    thread_local! {
        // Per thread: a simulation is one thread, and tests run side by side.
        static CHOSEN: Cell<Option<Mutation>> = const { Cell::new(None) };
    }

    /// Makes this thread commit `mutation` from now on; `None` heals it.
    pub fn choose(mutation: Option<Mutation>) {
        CHOSEN.with(|c| c.set(mutation));
    }

    /// Whether this thread commits the mistake.
    pub fn on(mutation: Mutation) -> bool {
        CHOSEN.with(Cell::get) == Some(mutation)
    }

    /// Whether this thread commits any.
    pub fn any() -> bool {
        CHOSEN.with(Cell::get).is_some()
    }
}

#[cfg(feature = "mutations")]
pub use switch::{any, choose, on};

/// Whether the mistake is chosen: never, in this build.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn on(_mutation: Mutation) -> bool {
    false
}

/// Whether any mistake is chosen: never, in this build.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub const fn any() -> bool {
    false
}
