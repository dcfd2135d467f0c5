//! The record store from outside: its public interface over a disk that loses and flips things.
// A helper that cannot go on fails the test by panicking.
#![allow(clippy::unwrap_used, clippy::panic)]

mod common;
mod jobs;
mod model;
mod reads;
mod size;
mod snapshot;
