//! Counters of rare states: a simulation that never gets there proves nothing about them.

macro_rules! reached {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How often a run came to each state.
        #[derive(Clone, Debug, Default)]
        pub struct Reached { $($(#[$doc])* pub $name: u64,)* }

        impl Reached {
            /// Names and counts.
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }

            fn fields(&mut self) -> Vec<&mut u64> {
                vec![$(&mut self.$name,)*]
            }
        }
    };
}

reached! {
    /// Faults of any kind.
    faults,
    /// A process died with entries that no sync covered.
    lost_unsynced,
    /// And it led a shard.
    leader_lost_unsynced,
    /// All processes died at once.
    all_died,
    /// The disk died inside a write of the log.
    torn_write,
    /// A start found the torn batch and cut it.
    torn_tail,
    /// An entry was overwritten whose segment was sealed.
    overwritten_sealed,
    /// A write failed and ended its process.
    write_failed,
    /// A node ended itself for another failure.
    node_failed,
    /// A node could not be opened at once.
    open_failed,
    /// A process died inside a task.
    died_in_task,
    /// A process died while the record store indexed, merged or rewrote.
    job_interrupted,
    /// And it was a rewrite of a segment.
    rewrite_interrupted,
    /// The log found no room.
    no_space,
    /// Gateways were told that storage is full.
    blocked,
    /// A bit of a segment flipped.
    bit_rot,
    /// A machine lost its disk.
    wiped,
    /// It was a voter of every group again.
    rebuilt,
    /// A process stood still.
    paused,
    /// And it led a shard.
    leader_paused,
    /// The network was cut.
    cut,
    /// In one direction only.
    cut_one_way,
    /// A wall clock stepped.
    clock_stepped,
    /// The disk was slow.
    slow_disk,
    /// A gateway died.
    gateway_died,
    /// A gateway stood still.
    gateway_paused,
    /// A session ended with its lease.
    sessions_lost,
    /// A stream broke.
    links_broken,
    /// A leader was asked to hand over.
    transfers,
    /// A shard had a new leader, as a gateway saw it.
    leaders_seen,
    /// A shard expected an earlier batch.
    gaps,
    /// A leader declined a batch.
    refused,
    /// A sender tried again what was declined.
    retries,
    /// A delivery of an old leader was dropped.
    deliveries_dropped,
    /// Snapshots.
    snapshots_sent,
    /// Snapshots that were installed.
    snapshots_installed,
    /// And clients were publishing.
    snapshots_under_load,
    /// Records could not be fetched.
    fetches_failed,
    /// A call to meta came twice.
    calls_doubled,
}

/// States that at least one seed in twenty must come to, or a full run fails.
pub const RARE: [&str; 17] = [
    "leader_lost_unsynced",
    "all_died",
    "torn_tail",
    "overwritten_sealed",
    "died_in_task",
    "rewrite_interrupted",
    "no_space",
    "bit_rot",
    "rebuilt",
    "leader_paused",
    "cut_one_way",
    "clock_stepped",
    "slow_disk",
    "deliveries_dropped",
    "gaps",
    "snapshots_under_load",
    "calls_doubled",
];

impl Reached {
    /// Adds another run: in how many runs each state was reached.
    pub fn count_runs(&mut self, run: &Reached) {
        for (total, (_, n)) in self.fields().into_iter().zip(run.list()) {
            *total += u64::from(n > 0);
        }
    }
}
