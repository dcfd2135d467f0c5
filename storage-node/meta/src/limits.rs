//! Every bound of the state, so that no client can make it grow without end. Beyond a count the answer is
//! `META_LIMIT`, beyond a length `META_INVALID`.

/// Storage nodes, retired ones included while they still have replicas.
pub const NODES_MAX: usize = 64;
/// Shards that hold logs.
pub const SHARDS_MAX: u32 = 256;
/// Gateways with a session.
pub const GATEWAYS_MAX: usize = 1024;
/// Namespaces.
pub const NAMESPACES_MAX: usize = 1000;
/// Users.
pub const USERS_MAX: usize = 10_000;
/// Queues and claimed names, over all namespaces; with the tombstones of deleted ones, which stay until their logs are dropped.
pub const QUEUES_MAX: usize = 200_000;
/// Exchanges over all namespaces, without the predeclared ones.
pub const EXCHANGES_MAX: usize = 50_000;
/// Bindings over all namespaces.
pub const BINDINGS_MAX: usize = 500_000;
/// Replicas that a shard may ever have had: what a replica id has room for.
pub const INCARNATIONS_MAX: u32 = u16::MAX as u32;
/// Commands within one `Many`.
pub const MANY_MAX: usize = 4096;

/// Names of everything, in bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Addresses of a gateway.
pub const ADDRESSES_MAX: usize = 32;
/// A routing key, in bytes.
pub const ROUTING_KEY_BYTES_MAX: usize = 65_535;
/// Arguments as the client gave them, in bytes.
pub const ARGUMENTS_BYTES_MAX: usize = 64 << 10;
/// A log's settings, in bytes.
pub const SPEC_BYTES_MAX: usize = 1024;
/// Spans of a queue's log.
pub const SPANS_MAX: usize = 64;
/// A permission's pattern, in bytes.
pub const PATTERN_BYTES_MAX: usize = 1024;
/// A password hash, in bytes.
pub const PASSWORD_HASH_BYTES_MAX: usize = 512;
/// Each of a SCRAM verifier's parts, in bytes.
pub const VERIFIER_BYTES_MAX: usize = 128;
/// A data directory's identity, in bytes.
pub const IDENTITY_BYTES_MAX: usize = 64;

/// Changes that are remembered for watchers.
pub const CHANGES_MAX: usize = 8_192;
/// Their bytes, about.
pub const CHANGES_BYTES_MAX: usize = 1 << 20;
