//! Whole-system tests: helpers that start real processes.
