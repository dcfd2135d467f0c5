//! Tests of the node log on a simulated disk.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod damage;
mod life;
mod random;
mod world;
