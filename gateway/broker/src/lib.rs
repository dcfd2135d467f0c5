//! The broker API that protocol adapters call: metadata cache, routing, per-shard senders
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod broker;
pub mod connection;
pub mod control;

pub use admin::Admin;
pub use api::*;
pub use broker::{Broker, BrokerConfig, StorageTls};
pub use connection::{Connection, EventReceiver};
pub use control::Control;
