//! The shard state machine: logs, cursors, sessions; deterministic, without I/O
