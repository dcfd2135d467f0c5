//! The shard state machine: logs, cursors, sessions; deterministic, without I/O
#![forbid(unsafe_code)]

mod effects;
pub mod skeleton;
pub use effects::{BatchResult, Effects, Event};
pub use skeleton::*;
