//! Limits and names of the AMQP adapter. Every bound names its unit.

use crate::assembly::Assembly;
use std::sync::Arc;
use std::time::Duration;

/// The RabbitMQ release whose behaviour this adapter follows; told to clients as `version`, since some of them
/// choose by it what they use.
pub const RABBITMQ_VERSION: &str = "4.1.0";

/// Settings of all AMQP connections of a gateway.
#[derive(Clone, Debug)]
pub struct AmqpConfig {
    /// Told to clients in the server properties.
    pub cluster_name: String,
    /// Highest channel number offered, 1 to 65,535.
    pub channel_max: u16,
    /// Largest frame offered, overhead included, in bytes; at least 4,096.
    pub frame_max: u32,
    /// Heartbeat offered, in seconds; 0: none. The client's answer counts.
    pub heartbeat_s: u16,
    /// Largest message body, in bytes.
    pub message_bytes_max: u64,
    /// Bytes of half received messages over all connections: shared by them, so clones share it, too. Beyond it
    /// connections with one under way are not read on, but for the one that began first.
    pub assembly: Arc<Assembly>,
    /// Time for everything from the first byte to `connection.open`.
    pub handshake: Duration,
    /// How long a client whose login failed waits before its socket is closed without a word.
    pub refused_login_delay: Duration,
    /// How long `connection.close` waits for its answer.
    pub close_timeout: Duration,
    /// Bytes waiting for a client that does not read, beyond which nothing more is taken for it.
    pub out_bytes_max: usize,
    /// Bytes of frames that wait on channels whose operation is under way, beyond which reading stops.
    pub backlog_bytes_max: usize,
    /// Bytes of messages that a consumer may have on their way to this connection.
    pub consumer_window_bytes: u64,
    /// Bytes of publishes that the open transactions of a connection may hold before their commits.
    pub transaction_bytes_max: u64,
    /// A delivery that is not settled for this long closes its channel; `None` (RabbitMQ: 30 minutes): never.
    pub consumer_timeout: Option<Duration>,
}

impl Default for AmqpConfig {
    fn default() -> AmqpConfig {
        AmqpConfig {
            cluster_name: "longshore".to_owned(),
            channel_max: 2_047,
            frame_max: 131_072,
            heartbeat_s: 60,
            message_bytes_max: 128 << 20,
            assembly: Assembly::new(512 << 20),
            handshake: Duration::from_secs(10),
            refused_login_delay: Duration::from_secs(1),
            close_timeout: Duration::from_secs(10),
            out_bytes_max: 4 << 20,
            backlog_bytes_max: 1 << 20,
            consumer_window_bytes: 2 << 20,
            transaction_bytes_max: 128 << 20,
            consumer_timeout: None,
        }
    }
}
