//! Delivery on a shard's leader: who holds which message until when, who gets the next one; without I/O.
#![forbid(unsafe_code)]

#[cfg(all(feature = "mutations", not(debug_assertions)))]
compile_error!("`mutations` breaks delivery on purpose: never in a release build");

mod action;
mod command;
mod config;
mod delivery;
mod explain;
mod view;

pub use action::{Action, Actions, Handed, LoadId, Message};
pub use command::*;
pub use config::{Config, Counters};
pub use delivery::*;
pub use explain::{Explanation, LISTED_MAX, Reason};
pub use view::{CursorView, LogInfo, View};
