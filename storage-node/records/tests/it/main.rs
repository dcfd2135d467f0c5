//! The record store from outside: its public interface over a disk that loses and flips things.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail by panicking")]

mod common;
mod jobs;
mod model;
mod reads;
mod size;
mod snapshot;
