//! The parameters of a store; all are plain numbers, so that the simulation can make them small.

use longshore_wire::NodeId;

/// What a [`crate::Store`] is made with.
#[derive(Clone, Debug)]
pub struct Config {
    /// This node.
    pub node: NodeId,
    /// Microseconds between ticks. A late tick counts once, ticks are never made up. 100,000 by default.
    pub tick_us: u64,
    /// Ticks without a leader before a replica asks for votes; at least 6. 10 by default: one second. A replica
    /// waits a random number of ticks from this plus one to twice this.
    pub election_ticks: usize,
    /// Ticks between heartbeat rounds; at least 1 and at most a third of `election_ticks`. 2 by default.
    pub heartbeat_ticks: usize,
    /// Bytes of entries in one append message; a larger single entry travels alone. 1 MiB by default.
    pub append_bytes_max: usize,
    /// Append messages that may be under way to one replica. 256 by default.
    pub appends_in_flight_max: usize,
    /// Bytes of a group's entries that may be proposed but not committed; more is [`crate::ProposeError::Busy`].
    /// 16 MiB by default.
    pub uncommitted_bytes_max: usize,
    /// Bytes of a group's entries that a follower takes before they are synced; further appends are dropped and
    /// come again. 64 MiB by default.
    pub unsynced_bytes_max: usize,
    /// Bytes of applied entries that all groups together keep in memory for slow followers. Unapplied entries
    /// are kept besides. 32 MiB by default.
    pub tail_bytes_max: usize,
    /// Bytes of one read of old entries for one follower. 4 MiB by default.
    pub read_bytes_max: usize,
    /// How long a leader on the wrong node waits for calm before it hands over, in ticks; 0 never does. 50 by default.
    pub balance_ticks: u64,
    /// Seeds the election timeouts.
    pub seed: u64,
}

impl Config {
    /// The defaults for `node`.
    pub fn new(node: NodeId) -> Config {
        Config {
            node,
            tick_us: 100_000,
            election_ticks: 10,
            heartbeat_ticks: 2,
            append_bytes_max: 1 << 20,
            appends_in_flight_max: 256,
            uncommitted_bytes_max: 16 << 20,
            unsynced_bytes_max: 64 << 20,
            tail_bytes_max: 32 << 20,
            read_bytes_max: 4 << 20,
            balance_ticks: 50,
            seed: u64::from(node.0),
        }
    }

    /// The election timeout in microseconds.
    pub fn election_us(&self) -> u64 {
        self.tick_us.saturating_mul(self.election_ticks as u64)
    }

    /// How long after the start of a heartbeat round its majority lets a leader deliver, in microseconds: the election
    /// timeout less a margin of two ticks.
    pub fn lease_us(&self) -> u64 {
        self.tick_us.saturating_mul(self.election_ticks.saturating_sub(2) as u64)
    }

    /// Refuses numbers that would make elections or leases unsafe; names the field.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        if self.tick_us == 0 {
            return Err("tick_us must be positive");
        }
        if self.election_ticks < 6 {
            return Err("election_ticks must be at least 6");
        }
        if self.heartbeat_ticks == 0 || self.heartbeat_ticks * 3 > self.election_ticks {
            return Err("heartbeat_ticks must be at least 1 and at most a third of election_ticks");
        }
        if self.append_bytes_max == 0 || self.appends_in_flight_max == 0 {
            return Err("append_bytes_max and appends_in_flight_max must be positive");
        }
        if self.uncommitted_bytes_max < self.append_bytes_max {
            return Err("uncommitted_bytes_max must be at least append_bytes_max");
        }
        Ok(())
    }
}
