//! The gateway's settings. Part of the one typed schema; `cli` reads it from file, environment and flags.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Everything a gateway can be told. Unknown keys are refused.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct GatewayConfig {
    /// Its name in lists and logs; empty: `gateway-` and `gateway.http.listen`.
    pub name: String,
    /// Addresses (`host:port`) of storage nodes to begin with; the others are learned from meta.
    pub storage_nodes: Vec<String>,
    /// Speak plainly to storage nodes although certificates are configured (for the TLS listeners); loopback only.
    pub plain_storage: bool,
    /// AMQP 0-9-1.
    pub amqp: AmqpListener,
    /// Management, health and metrics.
    pub http: HttpListener,
    /// Who may say whom a connection comes from (PROXY protocol v1 and v2): addresses or networks `a.b.c.d/n`.
    pub proxy_protocol_from: Vec<String>,
    /// Connections that one client address may hold; 0: no limit.
    pub connections_per_address_max: u32,
    /// Connections in all.
    pub connections_max: u32,
    /// Bytes of publishes without an outcome, of all connections, at which none is read from; and of deliveries and confirms
    /// that clients do not take, beyond which those that hold more than their share are closed. At least 16 MiB.
    pub pending_bytes_max: u64,
}

impl Default for GatewayConfig {
    fn default() -> Self {
        GatewayConfig {
            name: String::new(),
            storage_nodes: vec!["127.0.0.1:7400".into()],
            plain_storage: false,
            amqp: AmqpListener::default(),
            http: HttpListener::default(),
            proxy_protocol_from: Vec::new(),
            connections_per_address_max: 20_000,
            connections_max: 50_000,
            pending_bytes_max: 2 << 30,
        }
    }
}

/// AMQP's listeners and limits.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AmqpListener {
    /// Plain listener, `host:port`; empty: none.
    pub listen: String,
    /// TLS listener, `host:port`; empty: none.
    pub tls_listen: String,
    /// Largest frame that is offered in tune, in bytes; 8,192 at least.
    pub frame_max: u32,
    /// Channels per connection that are offered in tune.
    pub channel_max: u16,
    /// Heartbeat that is offered in tune, in seconds; 0: none.
    pub heartbeat_s: u16,
    /// Largest message body, in bytes.
    pub message_bytes_max: u64,
    /// A client has this long to open its connection, in milliseconds.
    pub handshake_ms_max: u64,
    /// A delivery must be settled within this time, in milliseconds; 0: no limit.
    pub consumer_timeout_ms: u64,
}

impl Default for AmqpListener {
    fn default() -> Self {
        AmqpListener {
            listen: "127.0.0.1:5672".into(),
            tls_listen: String::new(),
            frame_max: 131_072,
            channel_max: 2_047,
            heartbeat_s: 60,
            message_bytes_max: 128 << 20,
            handshake_ms_max: 10_000,
            consumer_timeout_ms: 0,
        }
    }
}

/// The management listener.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HttpListener {
    /// `host:port`; empty: none.
    pub listen: String,
}

impl Default for HttpListener {
    fn default() -> Self {
        HttpListener { listen: "127.0.0.1:15672".into() }
    }
}

/// Certificates, PEM: of the links between the parts, and of the clients' TLS listeners.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The authority that peers (and clients that show a certificate) must come from.
    pub ca: Option<PathBuf>,
    /// This part's certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
}
