//! The storage node's settings. Part of the one typed schema; `cli` reads it from file, environment and flags.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::PathBuf;

/// A text that never shows itself in logs or in `--print-config`.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Whether none was given.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "(none)" } else { "(hidden)" })
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { "(hidden)" })
    }
}

/// Everything a storage node can be told. Unknown keys are refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StorageConfig {
    /// Where everything is kept. One process at a time.
    pub data_dir: PathBuf,
    /// gRPC listener, `host:port`.
    pub listen: String,
    /// What peers and gateways dial; empty: the listener's address.
    pub advertise: String,
    /// Addresses of the nodes that form the cluster, this one included; the same list on each. One node: itself alone.
    pub initial_nodes: Vec<String>,
    /// What the node fails together with: a data centre, a rack. Replicas are spread over zones. Empty: unknown.
    pub zone: String,
    /// Health and metrics over HTTP, `host:port`; empty: none.
    pub http_listen: String,
    /// Shards of a new cluster, 1 to 256.
    pub shards: u32,
    /// The first administrator, when the cluster is formed.
    pub administrator: String,
    /// The first administrator's password; empty: one is made and printed once.
    pub administrator_password: Secret,
    /// Whether the first administrator may log in from this machine only.
    pub administrator_loopback_only: bool,
    /// Sizes and times of the storage engine.
    pub engine: EngineConfig,
}

impl Default for StorageConfig {
    fn default() -> Self {
        StorageConfig {
            data_dir: "longshore-data".into(),
            listen: "127.0.0.1:7400".into(),
            advertise: String::new(),
            initial_nodes: Vec::new(),
            zone: String::new(),
            http_listen: String::new(),
            shards: 6,
            administrator: "admin".into(),
            administrator_password: Secret::default(),
            administrator_loopback_only: false,
            engine: EngineConfig::default(),
        }
    }
}

impl StorageConfig {
    /// What peers and gateways dial.
    pub fn advertised(&self) -> &str {
        if self.advertise.is_empty() { &self.listen } else { &self.advertise }
    }
}

/// Sizes and times; the simulation uses small ones.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineConfig {
    /// Size of a segment file, in bytes.
    pub segment_bytes: u64,
    /// Recent entries and records that stay in memory, in bytes.
    pub tail_bytes_max: u64,
    /// A checkpoint is written after this much log of a group, in bytes.
    pub checkpoint_bytes: u64,
    /// Election timeout, in milliseconds; ten ticks.
    pub election_timeout_ms: u64,
    /// Below this much free disk the node counts as full for publishes, in bytes.
    pub reserve_bytes: u64,
    /// Entries kept for a replica that is behind, per node, in bytes; beyond, it gets a snapshot.
    pub behind_bytes_max: u64,
    /// How fast garbage is rewritten in background, in bytes per second.
    pub rewrite_bytes_per_s: u64,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            segment_bytes: 32 << 20,
            tail_bytes_max: 128 << 20,
            checkpoint_bytes: 64 << 20,
            election_timeout_ms: 1_000,
            reserve_bytes: 512 << 20,
            behind_bytes_max: 1 << 30,
            rewrite_bytes_per_s: 64 << 20,
        }
    }
}
