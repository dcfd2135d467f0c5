//! The broker API that protocol adapters call: metadata cache, routing, per-shard senders
