//! Delivery on a shard's leader: who holds which message until when, who gets the next one; without I/O.
#![forbid(unsafe_code)]

#[cfg(all(feature = "mutations", not(debug_assertions)))]
compile_error!("`mutations` breaks delivery on purpose: never in a release build");

mod action;
mod admit;
mod agenda;
mod command;
mod config;
mod consumers;
mod core;
mod delivery;
mod desk;
mod durable;
mod events;
mod explain;
mod leases;
mod memory;
mod reader;
mod ready;
mod takes;
mod transient;
mod transients;
mod view;
mod window;

pub use action::{Action, Actions, Handed, LoadId, Message};
pub use command::*;
pub use config::{Config, Counters};
pub use delivery::{Delivery, TakeWish};
pub use explain::{Explanation, LISTED_MAX, Reason};
pub use view::{CursorView, LogInfo, View};
