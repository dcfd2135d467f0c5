//! SCRAM (RFC 5802, RFC 7677): what is stored of a password, and the check of a client's proof.
//!
//! Passwords are taken as bytes: no SASLprep, so one that it would change must be typed alike everywhere.
//! Danger: a stored key lets its holder check guesses, a server key lets him play the server: both are secrets.
//! Called by [`crate::hash_password`] and by adapters whose protocol speaks SCRAM.

use hmac::{Hmac, Mac};
use pbkdf2::pbkdf2_hmac;
use sha2::{Digest, Sha256, Sha512};
use std::fmt;
use subtle::ConstantTimeEq;

/// Iterations of new verifiers; the client computes as many at each login. RFC 7677 asks for 4,096 at least.
pub const ITERATIONS: u32 = 16_384;

/// Which hash a verifier is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ScramHash {
    /// SCRAM-SHA-256
    Sha256,
    /// SCRAM-SHA-512
    Sha512,
}

/// What a server stores to check SCRAM logins.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramVerifier {
    /// Sent to the client.
    pub salt: Vec<u8>,
    /// Sent to the client.
    pub iterations: u32,
    /// The hash of the client's key.
    pub stored_key: Vec<u8>,
    /// Signs what the server says.
    pub server_key: Vec<u8>,
}

impl fmt::Debug for ScramVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramVerifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

impl ScramHash {
    pub(crate) fn hash(self, bytes: &[u8]) -> Vec<u8> {
        match self {
            ScramHash::Sha256 => Sha256::digest(bytes).to_vec(),
            ScramHash::Sha512 => Sha512::digest(bytes).to_vec(),
        }
    }

    pub(crate) fn hmac(self, key: &[u8], bytes: &[u8]) -> Vec<u8> {
        // A key of any length is allowed, so that the empty answer cannot occur.
        match self {
            ScramHash::Sha256 => Hmac::<Sha256>::new_from_slice(key)
                .map(|mac| mac.chain_update(bytes).finalize().into_bytes().to_vec())
                .unwrap_or_default(),
            ScramHash::Sha512 => Hmac::<Sha512>::new_from_slice(key)
                .map(|mac| mac.chain_update(bytes).finalize().into_bytes().to_vec())
                .unwrap_or_default(),
        }
    }

    pub(crate) fn salted(self, password: &[u8], salt: &[u8], iterations: u32) -> Vec<u8> {
        match self {
            ScramHash::Sha256 => {
                let mut out = vec![0; 32];
                pbkdf2_hmac::<Sha256>(password, salt, iterations, &mut out);
                out
            }
            ScramHash::Sha512 => {
                let mut out = vec![0; 64];
                pbkdf2_hmac::<Sha512>(password, salt, iterations, &mut out);
                out
            }
        }
    }
}

impl ScramVerifier {
    /// For a new password. Blocking: some milliseconds.
    pub fn new(hash: ScramHash, password: &[u8], salt: &[u8]) -> ScramVerifier {
        ScramVerifier::with_iterations(hash, password, salt, ITERATIONS)
    }

    pub(crate) fn with_iterations(
        hash: ScramHash,
        password: &[u8],
        salt: &[u8],
        iterations: u32,
    ) -> ScramVerifier {
        let salted = hash.salted(password, salt, iterations);
        let client_key = hash.hmac(&salted, b"Client Key");
        ScramVerifier {
            salt: salt.to_vec(),
            iterations,
            stored_key: hash.hash(&client_key),
            server_key: hash.hmac(&salted, b"Server Key"),
        }
    }

    /// Checks the proof in a client's final message: `Some` is the signature that the server answers with, `None`
    /// means that the password was another one. `auth_message` is RFC 5802's AuthMessage.
    pub fn check(&self, hash: ScramHash, auth_message: &[u8], proof: &[u8]) -> Option<Vec<u8>> {
        let signature = hash.hmac(&self.stored_key, auth_message);
        if proof.len() != signature.len() {
            return None;
        }
        let client_key: Vec<u8> = proof.iter().zip(&signature).map(|(a, b)| a ^ b).collect();
        let is_right = hash.hash(&client_key).ct_eq(&self.stored_key);
        bool::from(is_right).then(|| hash.hmac(&self.server_key, auth_message))
    }
}
