//! What is stored of a password: an argon2id hash, and SCRAM verifiers for protocols that never send it.
//!
//! Danger: [`hash_password`] and the check take tens of milliseconds and [`MEMORY_KIB`] of memory: blocking threads
//! only. Called by the broker's administration and by [`crate::verifier`].

use crate::Secret;
use crate::scram::{ScramHash, ScramVerifier};
use argon2::password_hash::{PasswordHash, PasswordHasher, PasswordVerifier, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use rand::CryptoRng;
use std::fmt;

/// Memory of one hash, in KiB. With [`PASSES`] one of the pairs that OWASP recommends for argon2id.
pub const MEMORY_KIB: u32 = 12 << 10;
/// Passes over the memory.
pub const PASSES: u32 = 3;
/// Threads of one hash.
pub const LANES: u32 = 1;
/// A stored hash that asks for more memory than this is not checked, in KiB.
pub const MEMORY_KIB_MAX: u32 = 64 << 10;
/// A stored hash that asks for more passes than this is not checked.
pub const PASSES_MAX: u32 = 10;
/// Longest password, in bytes.
pub const PASSWORD_BYTES_MAX: usize = 1024;
/// Random salt, in bytes.
pub const SALT_BYTES: usize = 16;
const HASH_BYTES: usize = 32;

/// Why a password was not hashed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// An empty password; a user without one cannot log in by password at all.
    #[error("a password has at least one byte")]
    Empty,
    /// Longer than [`PASSWORD_BYTES_MAX`].
    #[error("a password has at most {PASSWORD_BYTES_MAX} bytes")]
    TooLong,
    /// The hash could not be made; out of memory.
    #[error("the password could not be hashed: {0}")]
    Hash(String),
}

/// What meta stores of a password.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordSet {
    /// Argon2id, as a PHC string.
    pub hash: String,
    /// For SCRAM-SHA-256.
    pub scram_sha_256: ScramVerifier,
    /// For SCRAM-SHA-512.
    pub scram_sha_512: ScramVerifier,
}

impl fmt::Debug for PasswordSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PasswordSet(..)")
    }
}

/// Makes what is stored of a password, each part with a salt of its own from `rng`. Blocking: tens of milliseconds.
///
/// Errors: [`PasswordError`].
pub fn hash_password<R: CryptoRng>(password: &[u8], rng: &mut R) -> Result<PasswordSet, PasswordError> {
    if password.is_empty() {
        return Err(PasswordError::Empty);
    }
    if password.len() > PASSWORD_BYTES_MAX {
        return Err(PasswordError::TooLong);
    }
    let failed = |error: &dyn fmt::Display| PasswordError::Hash(error.to_string());
    let params = Params::new(MEMORY_KIB, PASSES, LANES, Some(HASH_BYTES)).map_err(|e| failed(&e))?;
    let salt = SaltString::encode_b64(&random::<SALT_BYTES, R>(rng)).map_err(|e| failed(&e))?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let hash = argon2.hash_password(password, &salt).map_err(|e| failed(&e))?.to_string();
    Ok(PasswordSet {
        hash,
        scram_sha_256: ScramVerifier::new(ScramHash::Sha256, password, &random::<SALT_BYTES, R>(rng)),
        scram_sha_512: ScramVerifier::new(ScramHash::Sha512, password, &random::<SALT_BYTES, R>(rng)),
    })
}

/// `N` random bytes.
pub(crate) fn random<const N: usize, R: CryptoRng>(rng: &mut R) -> [u8; N] {
    let mut bytes = [0; N];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// A hash that no password has, and that costs as much to check as a real one.
pub(crate) fn impossible_hash<R: CryptoRng>(rng: &mut R) -> String {
    let salt = STANDARD_NO_PAD.encode(random::<SALT_BYTES, R>(rng));
    let hash = STANDARD_NO_PAD.encode(random::<HASH_BYTES, R>(rng));
    format!("$argon2id$v=19$m={MEMORY_KIB},t={PASSES},p={LANES}${salt}${hash}")
}

/// Whether `hash` is one that [`matches()`] would check.
pub(crate) fn is_affordable(hash: &str) -> bool {
    let params = PasswordHash::new(hash).ok().and_then(|parsed| Params::try_from(&parsed).ok());
    params.is_some_and(|p| p.m_cost() <= MEMORY_KIB_MAX && p.t_cost() <= PASSES_MAX && p.p_cost() <= LANES)
}

/// Whether the password has this hash; compared in constant time. Blocking.
pub(crate) fn matches(password: &Secret, hash: &str) -> bool {
    let Ok(parsed) = PasswordHash::new(hash) else { return false };
    is_affordable(hash) && Argon2::default().verify_password(password.expose(), &parsed).is_ok()
}
