//! Bounds and counters of delivery. Every table of this crate is bounded by a field here.

/// Parameters; the simulation uses small ones.
#[derive(Clone, Debug)]
pub struct Config {
    /// Rows kept ahead of the consumers of one cursor.
    pub window_rows_max: usize,
    /// Memory of those rows, in bytes (of the rows, not of the messages).
    pub window_bytes_max: usize,
    /// Rows kept ahead over all cursors; beyond it each keeps no more than 16.
    pub window_rows_total_max: u64,
    /// Leases out over the whole shard; beyond it nothing is handed over until one ends.
    pub leases_max: u64,
    /// Delayed messages whose time is kept in memory, per cursor; later ones are found again by reading.
    pub delayed_max: usize,
    /// Returned messages that wait for their rows, per cursor; beyond it the cursor is read again from the oldest.
    pub returned_max: usize,
    /// Gets and takes waiting on one cursor; more are refused as busy.
    pub polls_max: usize,
    /// Consumers of one cursor; more are refused as busy.
    pub consumers_max: usize,
    /// Messages handed over in one turn; the rest goes in the next.
    pub turn_messages_max: usize,
    /// How long a new leader waits for gateways to say what they hold, in milliseconds.
    pub report_wait_ms: u64,
    /// A proposal of which nothing was heard for this long is made again, in milliseconds.
    pub propose_again_ms: u64,
    /// A read of rows that failed is tried again after this long, in milliseconds.
    pub load_again_ms: u64,
    /// Memory of one transient queue's messages, in bytes.
    pub transient_queue_bytes_max: u64,
    /// Memory of all transient queues of the shard, in bytes.
    pub transient_bytes_max: u64,
    /// Transient queues of the shard.
    pub transient_queues_max: usize,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            window_rows_max: 1_024,
            window_bytes_max: 256 << 10,
            window_rows_total_max: 262_144,
            leases_max: 1_000_000,
            delayed_max: 65_536,
            returned_max: 4_096,
            polls_max: 4_096,
            consumers_max: 65_536,
            turn_messages_max: 4_096,
            report_wait_ms: 2_000,
            propose_again_ms: 5_000,
            load_again_ms: 100,
            transient_queue_bytes_max: 160 << 20,
            transient_bytes_max: 256 << 20,
            transient_queues_max: 200_000,
        }
    }
}

/// What metrics show. The first group only grows, the second is of now; both start at 0 with the process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages handed over, streams included.
    pub delivered: u64,
    /// Of these, how many were marked redelivered.
    pub redelivered: u64,
    /// Leases that ended in a return.
    pub returned: u64,
    /// Messages whose time to live ended at the head of their queue.
    pub expired: u64,
    /// Transient messages refused because a bound was reached.
    pub refused: u64,
    /// Rows that the record store did not have although they are unsettled: damage.
    pub missing: u64,

    /// Leases out now.
    pub leases: u64,
    /// Consumers now.
    pub consumers: u64,
    /// Rows ahead in memory now.
    pub ready: u64,
    /// Transient queues now.
    pub transient_queues: u64,
    /// Memory of transient messages now, in bytes.
    pub transient_bytes: u64,
}
