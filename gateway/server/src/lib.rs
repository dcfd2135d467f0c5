//! The gateway process: listeners, TLS, limits per address, and the management port. Wiring only: protocols live in
//! `protocol-adapters`, routing and the links to the storage tier in `gateway/broker`.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the gateway's settings |
//! | [`http`] | health, metrics, management |
//! | [`limits`] | connections in all and per address |
//! | [`listener`] | accept, PROXY protocol, TLS, then the protocol's adapter |
//! | [`proxy`] | PROXY protocol v1 and v2 |
//! | [`tls`] | rustls for clients |
#![forbid(unsafe_code)]

pub mod config;
pub mod http;
pub mod limits;
pub mod listener;
pub mod proxy;
pub mod tls;

use config::{GatewayConfig, TlsConfig};
use limits::Limits;
use listener::{Acceptor, ListenerError};
use longshore_amqp::AmqpConfig;
use longshore_broker::api::BrokerError;
pub use longshore_broker::contain;
use longshore_broker::{Broker, BrokerConfig};
use longshore_metrics::{MetricsError, Recorded};
use longshore_proto::transport::{TlsIdentity, TransportError};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How long a start waits for the storage tier.
const STORAGE_PATIENCE: Duration = Duration::from_secs(60);

/// Counters that are shown from the start on, so that alerts see the first event too.
const COUNTERS: [&str; 10] = [
    "longshore_gateway_publishes_total",
    "longshore_gateway_deliveries_total",
    "longshore_gateway_unroutable_total",
    "longshore_gateway_links_lost_total",
    "longshore_gateway_sessions_lost_total",
    "longshore_gateway_logins_refused_total",
    "longshore_amqp_logins_refused_total",
    "longshore_amqp_connections_opened_total",
    "longshore_amqp_returned_total",
    "longshore_connection_panics_total",
];

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The storage tier did not answer.
    #[error("the storage tier at {nodes} does not answer: {source}")]
    Storage {
        /// The addresses that were tried.
        nodes: String,
        /// Why.
        source: BrokerError,
    },
    /// A listener could not be set up.
    #[error(transparent)]
    Listener(#[from] ListenerError),
    /// Certificates could not be used.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The certificates of the links to the storage tier.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// The recorder of metrics.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// A setting that makes no sense.
    #[error("{key}: {why}")]
    Setting {
        /// Its key.
        key: &'static str,
        /// Why.
        why: String,
    },
}

/// What the management port sees.
pub struct GatewayState {
    pub(crate) broker: Broker,
    pub(crate) metrics: Recorded,
    stopping: AtomicBool,
}

impl GatewayState {
    /// Whether clients may be sent here.
    pub fn is_ready(&self) -> bool {
        !self.stopping.load(Ordering::Acquire) && self.broker.is_ready()
    }
}

/// A running gateway.
pub struct Gateway {
    state: Arc<GatewayState>,
    listeners: Vec<(&'static str, SocketAddr)>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Gateway {
    /// Starts listening once the storage tier answers and the gateway has its session.
    pub async fn start(config: GatewayConfig, tls: TlsConfig) -> Result<Gateway, StartError> {
        let metrics = longshore_metrics::recorder()?;
        for name in COUNTERS {
            metrics::counter!(name).increment(0);
        }
        metrics::counter!("longshore_connections_refused_total", "reason" => "limit").increment(0);
        let broker = start_broker(&config, &tls).await?;
        let state =
            Arc::new(GatewayState { broker: broker.clone(), metrics, stopping: AtomicBool::new(false) });
        let (stop, stopped) = watch::channel(false);
        let mut gateway = Gateway { state, listeners: Vec::new(), stop, tasks: JoinSet::new() };
        gateway.listen_amqp(&config, &tls, &broker, &stopped).await?;
        gateway.listen_http(&config, stopped).await?;
        Ok(gateway)
    }

    async fn listen_amqp(
        &mut self,
        config: &GatewayConfig,
        tls: &TlsConfig,
        broker: &Broker,
        stopped: &watch::Receiver<bool>,
    ) -> Result<(), StartError> {
        let sources =
            proxy::Sources::parse(&config.proxy_protocol_from).map_err(|text| StartError::Setting {
                key: "gateway.proxy_protocol_from",
                why: format!("{text:?} is no address or network"),
            })?;
        let limits = Limits::new(config.connections_max, config.connections_per_address_max);
        let amqp = Arc::new(amqp_config(config));
        let mut wanted = Vec::new();
        if !config.amqp.listen.is_empty() {
            wanted.push(("AMQP", &config.amqp.listen, None));
        }
        if !config.amqp.tls_listen.is_empty() {
            let (Some(cert), Some(key)) = (&tls.cert, &tls.key) else {
                return Err(StartError::Setting {
                    key: "gateway.amqp.tls_listen",
                    why: "needs tls.cert and tls.key".into(),
                });
            };
            wanted.push(("AMQPS", &config.amqp.tls_listen, Some(tls::acceptor(cert, key)?)));
        }
        for (what, address, tls) in wanted {
            let acceptor = Acceptor {
                protocol: what,
                tls,
                sources: sources.clone(),
                limits: limits.clone(),
                handshake: Duration::from_millis(config.amqp.handshake_ms_max),
                broker: broker.clone(),
                amqp: Arc::clone(&amqp),
                stopped: stopped.clone(),
            };
            let (local, task) = acceptor.listen(address).await?;
            self.listeners.push((what, local));
            self.tasks.spawn(task);
        }
        Ok(())
    }

    async fn listen_http(
        &mut self,
        config: &GatewayConfig,
        mut stopped: watch::Receiver<bool>,
    ) -> Result<(), StartError> {
        if config.http.listen.is_empty() {
            return Ok(());
        }
        let (local, listener) = listener::bind(&config.http.listen).await?;
        let service =
            http::router(Arc::clone(&self.state)).into_make_service_with_connect_info::<SocketAddr>();
        self.listeners.push(("management", local));
        self.tasks.spawn(async move {
            let until = async move {
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(until).await {
                tracing::error!(%error, "the management listener ended");
            }
        });
        Ok(())
    }

    /// What listens where.
    pub fn listeners(&self) -> &[(&'static str, SocketAddr)] {
        &self.listeners
    }

    /// Turns readiness off, says goodbye to the clients, and ends within about `patience`.
    pub async fn shutdown(mut self, patience: Duration) {
        self.state.stopping.store(true, Ordering::Release);
        let _ = self.stop.send(true);
        self.state.broker.shutdown(patience).await;
        self.tasks.abort_all();
    }
}

async fn start_broker(config: &GatewayConfig, tls: &TlsConfig) -> Result<Broker, StartError> {
    let name =
        if config.name.is_empty() { format!("gateway-{}", config.http.listen) } else { config.name.clone() };
    let mut broker = BrokerConfig::new(config.storage_nodes.clone(), name);
    broker.addresses = [("amqp", &config.amqp.listen), ("amqps", &config.amqp.tls_listen)]
        .iter()
        .filter(|(_, address)| !address.is_empty())
        .map(|(protocol, address)| format!("{protocol}={address}"))
        .collect();
    broker.pending_bytes_max = usize::try_from(config.pending_bytes_max).unwrap_or(usize::MAX);
    broker.message_bytes_max = config.amqp.message_bytes_max;
    broker.arguments = longshore_amqp::binding_arguments;
    if !config.plain_storage {
        broker.tls = storage_tls(tls)?;
    }
    Broker::start(broker, STORAGE_PATIENCE)
        .await
        .map_err(|source| StartError::Storage { nodes: config.storage_nodes.join(", "), source })
}

fn storage_tls(tls: &TlsConfig) -> Result<Option<TlsIdentity>, StartError> {
    let (Some(ca), Some(cert), Some(key)) = (&tls.ca, &tls.cert, &tls.key) else { return Ok(None) };
    Ok(Some(TlsIdentity::read(ca, cert, key)?))
}

fn amqp_config(config: &GatewayConfig) -> AmqpConfig {
    let amqp = &config.amqp;
    AmqpConfig {
        frame_max: amqp.frame_max,
        channel_max: amqp.channel_max,
        heartbeat_s: amqp.heartbeat_s,
        message_bytes_max: amqp.message_bytes_max,
        handshake: Duration::from_millis(amqp.handshake_ms_max),
        consumer_timeout: (amqp.consumer_timeout_ms > 0)
            .then(|| Duration::from_millis(amqp.consumer_timeout_ms)),
        ..AmqpConfig::default()
    }
}
