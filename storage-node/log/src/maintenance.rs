//! Segments are prepared, retired and freed here, off the store thread.
//!
//! Danger: a job changes which segments are history; [`crate::NodeLog::maintain`] decides, this only does. One job at a
//! time. Run by a background thread.

use crate::pool::{Change, Pool, PoolError};
use crate::types::LogError;
use std::sync::Arc;

/// Work for a background thread: preparing, retiring and freeing segments.
#[derive(Debug)]
pub struct MaintenanceJob {
    pub(crate) pool: Arc<Pool>,
    pub(crate) change: Change,
    /// How many segments should stand by.
    pub(crate) standby: usize,
}

/// What a [`MaintenanceJob`] did; for [`crate::NodeLog::maintained`].
#[derive(Debug)]
pub struct MaintenanceDone {
    pub(crate) change: Change,
    pub(crate) changed: Result<(), PoolError>,
    pub(crate) prepared: Result<(), PoolError>,
}

impl MaintenanceJob {
    /// Does it; blocking, for as long as it takes to write the missing segments. A full disk is no failure: it is
    /// tried again later.
    pub fn run(self) -> MaintenanceDone {
        let changed = if self.change.is_empty() { Ok(()) } else { self.pool.change(&self.change) };
        let mut prepared = Ok(());
        while prepared.is_ok() && !failed(&changed) && self.pool.standby_len() < self.standby {
            prepared = self.pool.prepare_one();
        }
        MaintenanceDone { change: self.change, changed, prepared }
    }
}

fn failed(result: &Result<(), PoolError>) -> bool {
    matches!(result, Err(PoolError::Failed(_)))
}

impl MaintenanceDone {
    /// The failure after which the process must end, or whether the disk was full at the (change, preparation).
    pub(crate) fn outcome(self) -> Result<(Change, bool, bool), LogError> {
        let full = |result| match result {
            Ok(()) => Ok(false),
            Err(PoolError::NoSpace) => Ok(true),
            Err(PoolError::Failed(error)) => Err(error),
        };
        Ok((self.change, full(self.changed)?, full(self.prepared)?))
    }
}
