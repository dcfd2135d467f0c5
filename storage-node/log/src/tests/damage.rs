//! Bit rot: placeholder.
