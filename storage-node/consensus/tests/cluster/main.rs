//! Clusters of stores over simulated disks, clocks and networks: elections, replication, crashes, leases, hand-over,
//! slow followers, snapshots, replacement of wiped replicas; each from a seed.

#[cfg(feature = "mutations")]
mod broken;
mod chaos;
mod harness;
mod machine;
mod node;
mod random;
mod stories;
