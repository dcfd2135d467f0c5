//! Whole-system tests: helpers that start real processes.
#![forbid(unsafe_code)]

pub mod system;
