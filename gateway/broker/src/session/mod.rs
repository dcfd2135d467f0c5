//! What a gateway's session says to one shard: numbered batches ([`sender`]), consumers ([`consumers`]), and the
//! assembly of large bodies ([`pieces`]). Pure: no clock, no I/O, no tokio; the runtime and the simulation drive it.

pub mod consumers;
pub mod pieces;
pub mod sender;
pub mod settles;
pub mod work;

#[cfg(test)]
mod consumer_tests;
#[cfg(test)]
mod sender_tests;

pub use consumers::{Consumers, NAMES_MAX};
pub use sender::{Limits, Resolved, Sender, SenderError};
pub use work::{Chunk, Upload};
