//! Passwords: hashes, SCRAM verifiers, and checking them without becoming slow or guessable.
//!
//! Duty: turn a password into what meta stores ([`hash_password`]), and check logins ([`Verifier`]) so that a right
//! password costs its hash once per process, and wrong ones cost at most a tenth of a core in all.
//! Danger: secrets. No type here shows one in `Debug`; comparisons do not tell by their time how much was right;
//! an unknown user costs as much as a wrong password.
//! Called by the broker (logins, `put_user`) and by the storage node that forms a cluster (the first administrator).
//!
//! | module | what |
//! |---|---|
//! | [`password`] | argon2 hashes and what they cost |
//! | [`scram`] | SCRAM-SHA-256 and -512: verifiers, and the check of a client's proof |
//! | [`verifier`] | logins: cache, limits, budget |
//! | `bucket` | a rate limit in one number |
#![forbid(unsafe_code)]

mod bucket;
pub mod password;
pub mod scram;
#[cfg(test)]
mod tests;
pub mod verifier;

pub use password::{PasswordError, PasswordSet, hash_password};
pub use scram::{ScramHash, ScramVerifier};
pub use verifier::{Begun, Check, Checked, Login, Outcome, Verifier};

use std::fmt;

/// Bytes that nobody may see: a password, or a key. Overwritten when dropped, as far as safe code can.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes the bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }

    /// The bytes, for whoever must have them.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.fill(0);
        std::hint::black_box(&self.0);
    }
}
