//! AMQP 0-9-1 as RabbitMQ speaks it, on the broker API.
//!
//! One task per client connection reads a burst, feeds it to the session (the protocol's state machine), hands over
//! to the broker once, and writes what there is to say. The danger: everything of a client lives in that one task,
//! so nothing in it may wait for storage; rare operations (declare, bind, attach ...) run beside it, and only the
//! channel that asked waits for its answer.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | limits and names |
//! | [`backend`] | what is needed of the broker; the real one, or a fake in tests |
//! | `handshake` | protocol header to `connection.open-ok` |
//! | `connection` | the task: socket, heartbeats, back-pressure |
//! | `session` | frames to channels; `channel` is one channel's state |
//! | `publish`, `consume`, `deliver`, `settle`, `transaction`, `entities` | the methods by theme |
//! | `closing` | how channels and connections end |
//! | `operations` | the asynchronous side of declare, bind, consume, get |
//! | `assembly` | the bound on half received messages of all connections |
//! | `arguments`, `exception`, `confirms`, `unacked`, `headers` | pure rules |
//!
//! Called by the gateway's listener through [`serve`].
#![forbid(unsafe_code)]

pub mod backend;
pub mod config;

mod arguments;
mod assembly;
mod channel;
mod closing;
mod confirms;
mod connection;
mod consume;
mod deliver;
mod entities;
mod exception;
mod handshake;
mod headers;
mod operations;
mod pieces;
mod publish;
mod session;
mod settle;
mod transaction;
mod unacked;

pub use assembly::Assembly;
pub use config::AmqpConfig;
pub use connection::serve;
pub use headers::binding_arguments;
