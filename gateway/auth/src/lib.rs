//! Passwords: argon2 hashes, SCRAM verifiers, a cache of successful checks
