//! The broker API that protocol adapters call: metadata cache, routing, per-shard senders.
//!
//! Duty: take what a protocol adapter says in the broker's own terms, and carry it to the storage tier exactly once.
//! It knows routing, shards and leaders, and nothing of protocols. Danger: a confirm given too early, a message sent
//! under two numbers, a delivery of a deposed leader. Called by the protocol adapters and the gateway's admin HTTP.
//!
//! | module | what | kind |
//! |---|---|---|
//! | [`api`] | the types that adapters see | pure |
//! | [`routing`] | exchanges, bindings, patterns | pure |
//! | [`metadata`] | the copy of what meta knows | pure |
//! | [`session`] | numbered batches and consumers of one session in one shard | pure |
//! | [`broker`], [`connection`], [`control`], [`admin`] | the API's handles | runtime |
//! | `engine`, `shard`, `link`, `outbox` | one session: its shards and streams | runtime |
//! | `budget`, `events` | what all connections may hold, what one has not taken | pure |
//! | `requests`, `queues`, `transients` | questions to leaders; queues of both kinds | runtime |
//! | [`contain`] | one client's panic ends that client's connection only | runtime |
//! | `meta_client`, `meta_batch`, `watch`, `lease` | talking to meta | runtime |
//!
//! The way of a publish: [`Connection::publish`] (route, encode) · [`Connection::flush`] · `Shard::hand_over` ·
//! [`session::Sender::poll`] · `Outbox` · the node · `Engine::on_frame` · [`session::Sender::outcome`] · `Mail` ·
//! [`Event::Published`]. The way of a delivery: `Engine::on_frame` · [`session::Consumers::delivery`] · `Mail` ·
//! [`Event::Deliveries`].
#![forbid(unsafe_code)]

pub mod admin;
pub mod api;
pub mod broker;
mod budget;
pub mod connection;
mod connection_state;
pub mod contain;
pub mod control;
mod engine;
mod events;
mod explain;
mod fan;
mod lease;
mod link;
mod mail;
mod meta_batch;
mod meta_client;
pub mod metadata;
mod outbox;
mod permissions;
mod queues;
mod requests;
mod routes;
pub mod routing;
pub mod session;
mod shard;
mod transients;
mod watch;

pub use admin::Admin;
pub use api::*;
pub use broker::{Broker, BrokerConfig};
pub use connection::{Connection, EventReceiver};
pub use control::Control;
