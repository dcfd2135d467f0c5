//! Accepts connections: bounds first, then PROXY protocol, then TLS, then the protocol's adapter, each connection
//! in a task of its own. The PROXY header, the TLS handshake and the adapter's handshake have the handshake time each, counted
//! from the accept and from the end of the step before.

use crate::limits::{Limits, Place};
use crate::proxy::{self, Sources};
use longshore_amqp::AmqpConfig;
use longshore_broker::Broker;
use longshore_broker::contain::contain;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// After an accept that failed for lack of file descriptors, this long until the next try.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A listener that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}")]
pub struct ListenerError {
    address: String,
    source: io::Error,
}

/// Binds `address`; returns the real one, since the port may be 0.
pub async fn bind(address: &str) -> Result<(SocketAddr, TcpListener), ListenerError> {
    let failed = |source| ListenerError { address: address.to_owned(), source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((local, listener))
}

/// Everything that a connection of one AMQP listener needs.
#[derive(Clone)]
pub struct Acceptor {
    pub(crate) protocol: &'static str,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) sources: Sources,
    pub(crate) limits: Limits,
    pub(crate) handshake: Duration,
    pub(crate) broker: Broker,
    pub(crate) amqp: Arc<AmqpConfig>,
    pub(crate) stopped: watch::Receiver<bool>,
}

impl Acceptor {
    /// Binds `address`; the future accepts until the gateway stops.
    pub async fn listen(
        self,
        address: &str,
    ) -> Result<(SocketAddr, impl Future<Output = ()> + use<>), ListenerError> {
        let (local, listener) = bind(address).await?;
        Ok((local, self.accept_all(listener)))
    }

    async fn accept_all(self, listener: TcpListener) {
        let mut stopped = self.stopped.clone();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = stopped.wait_for(|stop| *stop) => return,
            };
            match accepted {
                Ok((stream, peer)) => self.admit(stream, peer),
                Err(error) => {
                    tracing::warn!(%error, listener = self.protocol, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// A connection through a trusted proxy counts for the client that the proxy names.
    fn admit(&self, stream: TcpStream, peer: SocketAddr) {
        let behind_proxy = self.sources.contains(peer.ip());
        let place = if behind_proxy { None } else { Some(self.limits.enter(peer.ip())) };
        if matches!(place, Some(None)) {
            refused();
            return;
        }
        let acceptor = self.clone();
        tokio::spawn(contain(async move { acceptor.serve(stream, peer, place.flatten()).await }));
    }

    async fn serve(self, mut stream: TcpStream, peer: SocketAddr, place: Option<Place>) {
        let _ = stream.set_nodelay(true);
        let mut client = peer;
        let _place = match place {
            Some(place) => place,
            None => {
                match tokio::time::timeout(self.handshake, proxy::read_header(&mut stream)).await {
                    Ok(Ok(named)) => client = named.unwrap_or(peer),
                    Ok(Err(error)) => {
                        return tracing::warn!(%peer, %error, "no PROXY header from a configured source");
                    }
                    Err(_) => return,
                }
                let Some(place) = self.limits.enter(client.ip()) else { return refused() };
                place
            }
        };
        match &self.tls {
            None => longshore_amqp::serve(stream, client, false, self.broker, self.amqp, self.stopped).await,
            Some(tls) => match tokio::time::timeout(self.handshake, tls.accept(stream)).await {
                Ok(Ok(stream)) => {
                    longshore_amqp::serve(stream, client, true, self.broker, self.amqp, self.stopped).await;
                }
                Ok(Err(error)) => tracing::debug!(%client, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(%client, "TLS handshake took too long"),
            },
        }
    }
}

/// A limit on connections was reached: the client sees the connection close.
fn refused() {
    metrics::counter!("longshore_connections_refused_total", "reason" => "limit").increment(1);
}
