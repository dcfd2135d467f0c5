//! The engine that hands messages over: consumers, gets and leases of one queue, whatever its messages are kept in.
//!
//! Danger: this is where a message could go to two receivers. An entry leaves the stock (`Stock::take`) and becomes a
//! lease in one step, `Desk::hand_over`, and nowhere else.

use crate::action::{Action, Handed, Message};
use crate::command::{ConsumerKey, QueueId, Refused};
use crate::consumers::Consumers;
use crate::core::Turn;
use crate::leases::{Lease, Leases};
use crate::ready::Entry;
use longshore_mutations::{self as mutations, Mutation};
use longshore_wire::SessionId;
use std::collections::VecDeque;

/// What a queue has to hand over.
pub(crate) trait Stock {
    /// Whether a message may go now. Moves expired heads aside first.
    fn prepare(&mut self, turn: &mut Turn<'_>) -> bool;
    /// Takes out the message that goes next; only after `prepare` said so.
    fn take(&mut self) -> Option<Taken>;
    /// Whether one may appear without anything new being appended or returned: rows are being read.
    fn more_coming(&self) -> bool;
    /// How many are ready, given how many are leased.
    fn ready(&self, leased: u64) -> u64;
}

/// A message that left the stock.
pub(crate) struct Taken {
    pub entry: Entry,
    pub returns: u32,
    pub redelivered: bool,
}

impl Taken {
    /// The message as it is sent under `lease`.
    pub fn into_handed(self, queue: QueueId, lease: longshore_wire::LeaseId) -> Handed {
        Handed {
            log: queue.log,
            cursor: queue.cursor,
            offset: self.entry.offset(),
            count: 1,
            lease,
            redelivered: self.redelivered,
            returns: self.returns,
            message: match self.entry.message {
                Some(message) => Message::Memory(message),
                None => Message::Stored(self.entry.row),
            },
        }
    }
}

/// A basic.get that waits for its answer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Get {
    pub session: SessionId,
    pub request: u64,
}

/// Consumers, gets and leases of one queue.
#[derive(Debug)]
pub(crate) struct Desk {
    pub queue: QueueId,
    pub consumers: Consumers,
    pub leases: Leases,
    pub gets: VecDeque<Get>,
}

impl Desk {
    pub fn new(queue: QueueId) -> Desk {
        Desk { queue, consumers: Consumers::default(), leases: Leases::default(), gets: VecDeque::new() }
    }

    /// Whether somebody could get a message now.
    pub fn is_hungry(&self) -> bool {
        !self.gets.is_empty() || self.consumers.any_with_credit()
    }

    /// Hands over what may go: gets first, in their order, then consumers.
    pub fn dispatch(&mut self, turn: &mut Turn<'_>, stock: &mut impl Stock) {
        self.answer_gets(turn, stock);
        while stock.prepare(turn) {
            let Some(to) = self.consumers.next() else { return };
            if turn.budget == 0 || self.is_full(turn) {
                return;
            }
            let Some(handed) = self.hand_over(turn, stock, to) else { return };
            self.broken_build(turn, to, &handed);
            turn.out.push(Action::Deliver { to, handed });
        }
    }

    fn is_full(&self, turn: &mut Turn<'_>) -> bool {
        let full = turn.core.leases_full();
        if full {
            turn.core.starved.insert(self.queue);
        }
        full
    }

    fn answer_gets(&mut self, turn: &mut Turn<'_>, stock: &mut impl Stock) {
        while let Some(get) = self.gets.front().copied() {
            let ready = stock.prepare(turn);
            if !ready && stock.more_coming() || ready && (turn.budget == 0 || self.is_full(turn)) {
                return;
            }
            self.gets.pop_front();
            let to = ConsumerKey { session: get.session, consumer: 0 };
            let handed = if ready { self.hand_over(turn, stock, to) } else { None };
            let left = stock.ready(self.leases.len() as u64);
            turn.out.push(Action::Got {
                session: get.session,
                request: get.request,
                result: Ok(handed),
                ready: left,
            });
        }
    }

    /// Turns the next message of the stock into a lease of `to`.
    fn hand_over(&mut self, turn: &mut Turn<'_>, stock: &mut impl Stock, to: ConsumerKey) -> Option<Handed> {
        let taken = stock.take()?;
        let lease_ms = self.consumers.charge(to, taken.entry.row.bytes());
        let id = turn.core.new_lease();
        let lease = Lease {
            id,
            term: turn.core.term,
            owner: to,
            deadline: lease_ms.map(|ms| turn.now.plus_ms(ms)),
            ending: false,
            returning: false,
        };
        self.leases.insert(taken.entry.offset(), lease);
        turn.budget = turn.budget.saturating_sub(1);
        turn.core.counters.leases += 1;
        turn.core.counters.delivered += 1;
        turn.core.counters.redelivered += u64::from(taken.redelivered);
        Some(taken.into_handed(self.queue, id))
    }

    /// `lease reused`: a second consumer gets the same message under the same lease.
    fn broken_build(&mut self, turn: &mut Turn<'_>, to: ConsumerKey, handed: &Handed) {
        if mutations::on(Mutation::LeaseReused)
            && turn.core.counters.delivered.is_multiple_of(3)
            && let Some(other) = self.consumers.other_with_credit(to)
        {
            turn.out.push(Action::Deliver { to: other, handed: handed.clone() });
        }
    }

    /// Answers every get with a refusal and cancels every consumer: the queue is gone.
    pub fn close(&mut self, reason: Refused, out: &mut Vec<Action>) {
        for get in self.gets.drain(..) {
            out.push(Action::Got {
                session: get.session,
                request: get.request,
                result: Err(reason),
                ready: 0,
            });
        }
        let keys: Vec<ConsumerKey> = self.consumers.keys().collect();
        for key in keys {
            self.consumers.remove(key);
            out.push(Action::Cancelled { to: key, reason });
        }
    }
}
