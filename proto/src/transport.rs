//! Channels and servers between the parts, with the settings that both ends must share, and mutual TLS.
//!
//! Ports between the parts refuse a non-loopback address without TLS:
//! [`check_plain`] is that rule, and whoever listens or dials asks it.

use crate::{CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity, Server, ServerTlsConfig};

/// Why a channel or a server between the parts could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// A certificate or key file that could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An address that is not `host:port`, or TLS settings that do not fit together.
    #[error("cannot use {address}: {source}")]
    Setup {
        /// The address.
        address: String,
        /// Why.
        source: tonic::transport::Error,
    },
    /// An address beyond this machine without mutual TLS.
    #[error(
        "{address} is not a loopback address: set tls.ca, tls.cert and tls.key, since the parts speak plainly only within one machine"
    )]
    Plain {
        /// The address.
        address: String,
    },
}

/// A part's certificate, its key, and the authority that it expects its peers to come from.
#[derive(Clone)]
pub struct TlsIdentity {
    ca: Certificate,
    identity: Identity,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity")
    }
}

impl TlsIdentity {
    /// Reads three PEM files.
    pub fn read(ca: &Path, cert: &Path, key: &Path) -> Result<TlsIdentity, TransportError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| TransportError::Read { path: path.to_owned(), source })
        };
        Ok(TlsIdentity {
            ca: Certificate::from_pem(read(ca)?),
            identity: Identity::from_pem(read(cert)?, read(key)?),
        })
    }
}

/// Refuses a plain connection to or on anything but a loopback address. A name counts as remote unless it is `localhost`.
pub fn check_plain(address: &str, tls: Option<&TlsIdentity>) -> Result<(), TransportError> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']);
    let loopback = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if tls.is_some() || loopback {
        Ok(())
    } else {
        Err(TransportError::Plain { address: address.to_owned() })
    }
}

/// A channel to `address` (`host:port`) that connects when it is first used.
pub fn channel(address: &str, tls: Option<&TlsIdentity>) -> Result<Channel, TransportError> {
    check_plain(address, tls)?;
    let setup = |source| TransportError::Setup { address: address.to_owned(), source };
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}"))
        .map_err(setup)?
        .tcp_nodelay(true)
        .connect_timeout(Duration::from_secs(2))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true);
    if let Some(tls) = tls {
        let config = ClientTlsConfig::new().ca_certificate(tls.ca.clone()).identity(tls.identity.clone());
        endpoint = endpoint.tls_config(config).map_err(setup)?;
    }
    Ok(endpoint.connect_lazy())
}

/// A server for the parts; with TLS it accepts only peers with a certificate of the same authority.
pub fn server(tls: Option<&TlsIdentity>) -> Result<Server, TransportError> {
    let server = Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_frame_size(1 << 20)
        .http2_keepalive_interval(Some(Duration::from_secs(5)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)));
    let Some(tls) = tls else { return Ok(server) };
    let config = ServerTlsConfig::new().identity(tls.identity.clone()).client_ca_root(tls.ca.clone());
    server
        .tls_config(config)
        .map_err(|source| TransportError::Setup { address: "the listener".to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_connections_stay_on_this_machine() {
        for good in ["127.0.0.1:7400", "[::1]:7400", "localhost:7400"] {
            assert!(check_plain(good, None).is_ok(), "{good}");
        }
        for bad in ["0.0.0.0:7400", "[::]:7400", "192.168.1.1:7400", "storage-1:7400"] {
            assert!(check_plain(bad, None).is_err(), "{bad}");
        }
    }
}
