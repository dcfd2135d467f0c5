//! Deliberate mistakes, each of which would lose or double a message; they prove that the simulation finds such
//! mistakes from what clients saw.
//!
//! Danger: compiled in only under the feature `mutations`, which a build without debug assertions refuses. Without
//! the feature [`on`] is a constant `false` and every hook vanishes.

#[cfg(all(feature = "mutations", not(debug_assertions)))]
compile_error!("the feature `mutations` breaks the storage node on purpose: never in a release build");

/// One mistake, chosen at run time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Mutation {
    /// A follower's acknowledgement leaves before its entries are synced.
    AckBeforeSync = 1,
    /// Terms and votes are sent although they are never written.
    VoteNotSynced = 2,
    /// `on_persist_ready` is called when the write is submitted, not when it is done.
    PersistReadyEarly = 3,
    /// A duplicate append is answered while the first one is still being written.
    DuplicateAnsweredEarly = 4,
    /// A snapshot is installed and acknowledged before its bodies were fetched.
    SnapshotBeforeBodies = 5,
    /// Entries are applied when they are appended.
    ApplyBeforeCommit = 6,
    /// A leader delivers without a lease.
    PausedLeaderDelivers = 7,
}

impl Mutation {
    /// All of them, for a test that tries one after the other.
    pub const ALL: [Mutation; 7] = [
        Mutation::AckBeforeSync,
        Mutation::VoteNotSynced,
        Mutation::PersistReadyEarly,
        Mutation::DuplicateAnsweredEarly,
        Mutation::SnapshotBeforeBodies,
        Mutation::ApplyBeforeCommit,
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

    /// Makes this thread's stores commit `mutation` from now on; `None` heals them.
    pub fn choose(mutation: Option<Mutation>) {
        CHOSEN.with(|c| c.set(mutation));
    }

    pub(crate) fn on(mutation: Mutation) -> bool {
        CHOSEN.with(Cell::get) == Some(mutation)
    }
}

#[cfg(feature = "mutations")]
pub use switch::choose;
#[cfg(feature = "mutations")]
pub(crate) use switch::on;

/// Whether the mistake is chosen: never, in this build.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub(crate) const fn on(_mutation: Mutation) -> bool {
    false
}
