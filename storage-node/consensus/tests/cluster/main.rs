//! Clusters of stores over simulated disks, clocks and networks: elections, replication, crashes, leases, hand-over,
//! slow followers, snapshots, replacement of wiped replicas; each from a seed.
#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "test code; clippy's own exception sees only #[test] functions"
)]

#[cfg(feature = "mutations")]
mod broken;
mod chaos;
mod harness;
mod machine;
mod node;
mod oracle;
mod random;
mod stories;
