//! The broker of one gateway: what everything else hangs on.

use crate::admin::Admin;
use crate::api::*;
use crate::connection::{Connection, EventReceiver};
use std::net::SocketAddr;
use std::time::Duration;

/// Settings of a gateway's broker. All bounds in bytes or counts as their names say.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Addresses (`host:port`) of storage nodes to begin with; meta tells of the others.
    pub nodes: Vec<String>,
    /// The gateway's name, for logs and listings.
    pub name: String,
    /// What clients can dial: `amqp=host:port`, ...
    pub addresses: Vec<String>,
    /// Largest message body, in bytes.
    pub message_bytes_max: u64,
    /// Bytes of publishes waiting for their outcome, per shard, at which connections must wait.
    pub shard_pending_bytes_max: usize,
    /// Bytes of publishes waiting for their outcome, per connection, at which it must wait.
    pub connection_pending_bytes_max: usize,
    /// How long a rare operation waits for storage.
    pub operation_timeout: Duration,
    /// Reads binding arguments for headers exchanges.
    pub arguments: ArgumentsReader,
    /// TLS to the storage nodes: none on loopback.
    pub tls: Option<StorageTls>,
}

/// Client TLS to storage nodes, PEM text.
#[derive(Clone)]
pub struct StorageTls {
    /// Certificates that sign the storage nodes'.
    pub ca_pem: Vec<u8>,
    /// The gateway's certificate chain.
    pub certificate_pem: Vec<u8>,
    /// Its private key.
    pub key_pem: Vec<u8>,
}

impl std::fmt::Debug for StorageTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StorageTls(..)")
    }
}

impl BrokerConfig {
    /// Defaults for these storage nodes.
    pub fn new(nodes: Vec<String>, name: impl Into<String>) -> BrokerConfig {
        BrokerConfig {
            nodes,
            name: name.into(),
            addresses: Vec::new(),
            message_bytes_max: 128 << 20,
            shard_pending_bytes_max: 64 << 20,
            connection_pending_bytes_max: 8 << 20,
            operation_timeout: Duration::from_secs(15),
            arguments: |_| Vec::new(),
            tls: None,
        }
    }
}

/// A gateway's broker. Clone it freely; needs a tokio runtime.
#[derive(Clone, Debug)]
pub struct Broker {}

impl Broker {
    /// Starts the broker's tasks and returns once it has a session and the whole metadata.
    /// Errors: `Unavailable` when no storage node answered within `patience`.
    pub async fn start(config: BrokerConfig, patience: Duration) -> Result<Broker, BrokerError> {
        let _ = (config, patience);
        todo!()
    }

    /// Checks a login. `user` may be `namespace:user`. Spends the time of a password hash at most once per process
    /// and password; failed logins are limited.
    pub async fn authenticate(
        &self,
        user: &str,
        password: &[u8],
        peer: SocketAddr,
    ) -> Result<Identity, AuthError> {
        let _ = (user, password, peer);
        todo!()
    }

    /// Opens a connection in `namespace`. Errors: `NotAllowed` (no permission there, or no such namespace: not told
    /// apart), `Unavailable` (no lease).
    pub fn connect(
        &self,
        identity: &Identity,
        namespace: &str,
        info: ConnectionInfo,
    ) -> Result<(Connection, EventReceiver), BrokerError> {
        let _ = (identity, namespace, info);
        todo!()
    }

    /// Administration; callers check that the identity is an administrator.
    pub fn admin(&self) -> Admin {
        todo!()
    }

    /// Whether the gateway holds its lease and reaches a leader of meta.
    pub fn is_ready(&self) -> bool {
        todo!()
    }

    /// Whether storage refuses publishes now, and why.
    pub fn blocked(&self) -> Option<String> {
        todo!()
    }

    /// Closes all connections ([`CloseReason::Shutdown`]), waits until they are dropped or `patience` is over, gives the
    /// lease back.
    pub async fn shutdown(&self, patience: Duration) {
        let _ = patience;
        todo!()
    }
}
