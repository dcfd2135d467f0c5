//! Tests of the node log on a simulated disk.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helpers fail by panicking"
)]

mod damage;
mod life;
mod random;
mod world;
