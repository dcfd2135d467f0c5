//! Development certificates: a certificate authority, and one certificate for all storage nodes and gateways.
//!
//! `longshore certs` and the first start of `longshore dev` call [`write_all`]. The authority's key is not kept:
//! to add a host, make a new set. Not for production; there, bring certificates of your own.
#![forbid(unsafe_code)]

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Why certificates could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// A name that cannot stand in a certificate.
    #[error("cannot make a certificate: {0}")]
    Generate(#[from] rcgen::Error),
    /// A file that could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The names of the files that [`write_all`] makes.
pub const FILES: [&str; 3] = ["ca.crt", "server.crt", "server.key"];

/// Writes `ca.crt`, `server.crt` and `server.key` (PEM, the key with mode 0600) into `dir`, which is made if missing.
/// The certificate is good for `hosts` (DNS names or addresses) as server and as client, since the parts of Longshore
/// present it to each other. Nobody else gets one of this authority: it opens the storage tier.
pub fn write_all(dir: &Path, hosts: &[String]) -> Result<(), CertsError> {
    fs::create_dir_all(dir).map_err(|source| CertsError::Write { path: dir.to_owned(), source })?;
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    ca.distinguished_name.push(DnType::CommonName, "Longshore development CA");
    let ca_cert = ca.self_signed(&ca_key)?;
    let issuer = Issuer::new(ca, ca_key);

    write(dir, "ca.crt", &ca_cert.pem(), 0o644)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(hosts.to_vec())?;
    params.distinguished_name.push(DnType::CommonName, "longshore");
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let cert = params.signed_by(&key, &issuer)?;
    write(dir, "server.crt", &cert.pem(), 0o644)?;
    write(dir, "server.key", &key.serialize_pem(), 0o600)
}

fn write(dir: &Path, name: &str, text: &str, mode: u32) -> Result<(), CertsError> {
    let path = dir.join(name);
    let result = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()));
    result.map_err(|source| CertsError::Write { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn all_files_are_there_and_the_key_is_private() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), &["localhost".into(), "127.0.0.1".into()]).unwrap();
        for name in FILES {
            let file = dir.path().join(name);
            let text = fs::read_to_string(&file).unwrap();
            assert!(text.starts_with("-----BEGIN "), "{name}");
            let mode = fs::metadata(&file).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, if name.ends_with(".key") { 0o600 } else { 0o644 }, "{name}");
        }
    }
}
