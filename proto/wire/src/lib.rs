//! The bytes that gateways and storage nodes share: ids, records, batches and their outcomes.
//!
//! A gateway encodes a batch once. The same bytes travel over gRPC, are replicated by Raft, lie in the
//! node log and are delivered; a storage node parses only the small header of each record. Everything
//! here is pure: no I/O, no clock. All integers are little-endian. Decoders believe no length or count
//! that the remaining bytes cannot hold, so hostile input never reserves memory.
//!
//! | module | what |
//! |---|---|
//! | [`ids`] | newtypes that keep one number from being taken for another |
//! | [`record`] | a stored message: header, routing key, properties, body |
//! | [`batch`] | what a gateway's session submits to a shard, and what a leader proposes itself |
//! | [`spec`] | what a log is made with |
//! | [`outcome`] | what apply answers, item by item |
//! | [`context`] | the leader's few bytes beside an entry: log time |
//! | [`reader`] | bounded decoding |
//! | [`row`] | what the index says of a stored record |
#![forbid(unsafe_code)]

pub mod batch;
pub mod context;
pub mod ids;
pub mod outcome;
pub mod reader;
pub mod record;
pub mod row;
pub mod spec;

pub use ids::*;
pub use reader::{DecodeError, Reader};

/// Largest payload of one Raft entry, gRPC message or peer frame, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// What headers may add to [`PAYLOAD_BYTES_MAX`], in bytes.
pub const HEADER_BYTES_MAX: usize = 64 << 10;
/// Largest encoded batch, in bytes.
pub const BATCH_BYTES_MAX: usize = PAYLOAD_BYTES_MAX + HEADER_BYTES_MAX;
/// Batches of one session that may be in flight in one shard, and outcomes that a shard remembers.
pub const BATCHES_IN_FLIGHT_MAX: usize = 32;
