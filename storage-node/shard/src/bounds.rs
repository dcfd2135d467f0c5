//! The limits of a shard's state. Every table here is replicated and lies in memory on three nodes, so each has
//! a bound, and reaching it has one defined consequence: a refusal, or the oldest being forgotten.

/// The highest offset that a log can reach; beyond it an append is refused.
pub const OFFSET_MAX: u64 = 1 << 62;
/// Live logs of a shard; beyond it a new log is refused.
pub const LOGS_MAX: usize = 1 << 20;
/// Open gateway sessions of a shard; beyond it another one is refused.
pub const SESSIONS_MAX: usize = 4096;
/// Runs of ids that are remembered as dropped (logs) or closed (sessions). Beyond it the two oldest runs
/// become one, together with the ids between them: those are older than all others, so none of them is about
/// to be made.
pub const GONE_RANGES_MAX: usize = 16_384;
/// Uploads that one session may have open in a shard. Beyond it the session can begin no other, for good: a
/// piece that was refused must never be missing from the middle of a body that is taken.
pub const UPLOADS_OPEN_MAX: usize = 16_384;
/// Pieces of one upload; beyond it the upload is broken and its record is refused.
pub const UPLOAD_PARTS_MAX: usize = 8192;
/// Bytes of one upload's pieces; beyond it the upload is broken. A little over the largest message (128 MiB).
pub const UPLOAD_BYTES_MAX: u64 = 136 << 20;
/// Tokens that a shard remembers; beyond it the oldest is forgotten.
pub const TOKENS_MAX: usize = 65_536;
/// Targets over all remembered tokens; beyond it the oldest token is forgotten.
pub const TOKEN_TARGETS_MAX: usize = 262_144;
/// Log time after which a token is forgotten at the latest when the next one comes, in milliseconds.
pub const TOKEN_AGE_MS_MAX: u64 = 24 * 3600 * 1000;
/// (producer, log) pairs that a shard remembers; beyond it the one that was silent longest is forgotten.
pub const PRODUCERS_MAX: usize = 65_536;
/// Log time after which a silent producer is forgotten at the latest when another one appends, in milliseconds.
pub const PRODUCER_AGE_MS_MAX: u64 = 24 * 3600 * 1000;
/// Batches of one (producer, log) whose offsets are remembered: Kafka's five in flight.
pub const PRODUCER_BATCHES_MAX: usize = 5;
/// Named positions of one log; beyond it a new name is refused.
pub const POSITIONS_MAX: usize = 16_384;
/// Returned messages of one cursor that are remembered. Beyond it the youngest is forgotten: a message that
/// nobody can process is among the oldest.
pub const RETURNS_MAX: usize = 262_144;
/// Replicated leases of one cursor; beyond it a take is refused.
pub const TAKEN_MAX: usize = 131_072;
/// Delayed messages of one cursor; beyond it a delayed append is refused.
pub const DELAYED_MAX: usize = 1 << 20;
/// Delayed messages that are found due and dropped from the table in one append, at most.
pub(crate) const DUE_SWEPT_MAX: usize = 64;
