//! A storage node without runtime: log, Raft, shards, delivery and meta put together
