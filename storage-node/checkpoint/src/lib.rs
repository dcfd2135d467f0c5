//! Checkpoints: the pages of a state machine on disk
