//! Switches that break the state machine on purpose, so that the simulation can prove that its oracle sees it.
//! Only under the cargo feature `mutations`, which release builds refuse.

use std::sync::atomic::{AtomicBool, Ordering};

static BATCH_NUMBER_LOST: AtomicBool = AtomicBool::new(false);

/// *Batch number lost over a snapshot*: a state that is made from pages knows its sessions, but neither their
/// numbers nor their outcomes, and takes the first batch that comes for the next one.
pub fn lose_batch_numbers(on: bool) {
    BATCH_NUMBER_LOST.store(on, Ordering::Relaxed);
}

pub(crate) fn batch_number_lost() -> bool {
    BATCH_NUMBER_LOST.load(Ordering::Relaxed)
}
