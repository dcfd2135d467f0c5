//! Delivery on a shard's leader: who holds which message until when, who gets the next one. Pure: events in, actions
//! out, time is a parameter; volatile: nothing here survives the leader.
//!
//! # What the caller does
//!
//! One [`Delivery`] per shard and node. The node's turn loop
//! 1. calls [`Delivery::become_leader`] once an entry of the new term is applied, and [`Delivery::resign`] before it does
//!    anything that could let another lead;
//! 2. after each apply gives every event to [`Delivery::on_event`], then the rows to [`Delivery::appended_rows`];
//! 3. passes every gateway batch through [`Delivery::admit_batch`] before it proposes it (the rule stands there);
//! 4. translates gateways' frames into commands ([`Delivery::attach`], [`Delivery::credit`], [`Delivery::get`] ...);
//! 5. calls [`Delivery::turn`] when anything of this happened, when [`Delivery::next_deadline`] has come, or when the
//!    leader's lease holds again, and carries out the [`Action`]s in order. A delivery is sent only while the lease
//!    holds at the moment of sending; the bodies of one consumer leave in the order of the actions.
//!
//! # What holds
//!
//! - *One live lease per message and term.* A message leaves the ready list and becomes a lease in one step; ids come
//!   from a counter and never from time. A lease ends by a settlement or a return that was *applied*, never by a wish.
//! - A settled message is not delivered: rows are checked against the applied state when they become ready, and
//!   settlements take them out again.
//! - Returned messages go before younger ones. Higher priorities go first among the rows in the window.
//! - After a leader change nothing that an earlier term may have delivered goes out before every open session has
//!   reported ([`Delivery::session_reported`]) or the wait is over; it is marked redelivered then.
//! - No backlog is read into memory: each cursor has a bounded window of rows ahead, filled by what is appended at
//!   the end of the log or by questions to the record store.
//! - A queue without work costs nothing per turn; one without consumers, leases and timers is not even remembered.
//!
//! The rules are told as stories in `tests/transcripts/*.txt`: read those first.
//!
//! | module | what |
//! |---|---|
//! | `delivery`, `turn`, `events`, `memory`, `admit`, `explain` | [`Delivery`]: commands; the turn; apply's events; transient queues; which settles pass; why nothing goes |
//! | `desk` | the engine: consumers, gets and leases of one queue over whatever holds its messages |
//! | `consumers`, `leases`, `ready` | credit and fairness; what is out; what could go |
//! | `durable`, `window`, `stock`, `reader`, `takes` | a replicated log's cursor; its rows ahead; which of them may go; readers by position; receivers without a connection |
//! | `transient`, `transients` | a queue in memory; all of them by name and owner |
//! | `blocks` | a map for offsets that lie close together |
//! | `agenda`, `core` | who has work; what all queues share |
//! | `view` | what is read of the shard's state |
#![forbid(unsafe_code)]

mod action;
mod admit;
mod agenda;
mod blocks;
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
mod stock;
mod takes;
mod transient;
mod transients;
mod turn;
mod view;
mod window;

pub use action::{Action, Actions, Handed, InMemory, LoadId, Message};
pub use command::*;
pub use config::{Config, Counters};
pub use delivery::{Delivery, TakeWish};
pub use explain::{Explanation, LISTED_MAX, Reason};
pub use view::{CursorView, LogInfo, View};
