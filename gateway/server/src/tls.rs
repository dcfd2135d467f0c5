//! TLS for clients, by rustls with ring. Client certificates are not asked for: clients log in with a password, and the
//! authority that the parts trust is for the parts alone.

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_rustls::TlsAcceptor;

/// Why the TLS listeners cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A PEM file that cannot be read or holds nothing fitting.
    #[error("cannot read {path}: {why}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Certificate and key do not fit together.
    #[error("cannot use the certificates: {0}")]
    Setup(String),
}

/// An acceptor with the certificate chain and key.
pub fn acceptor(cert: &Path, key: &Path) -> Result<TlsAcceptor, TlsError> {
    let setup = |error: String| TlsError::Setup(error);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key_der = PrivateKeyDer::from_pem_file(key).map_err(|error| pem_error(key, &error))?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| setup(error.to_string()))?
        .with_no_client_auth()
        .with_single_cert(certificates(cert)?, key_der)
        .map_err(|error| setup(error.to_string()))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| pem_error(path, &error))
}

fn pem_error(path: &Path, error: &rustls_pki_types::pem::Error) -> TlsError {
    TlsError::Pem { path: path.to_owned(), why: error.to_string() }
}
