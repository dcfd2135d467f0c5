//! Takes: leases of receivers without a connection. Such a lease is replicated before it is answered, so it
//! outlives the gateway and the leader.

use crate::action::{Action, Actions, Handed};
use crate::command::{QueueId, Refused};
use crate::core::Turn;
use crate::desk::Stock;
use longshore_io::Mono;
use longshore_wire::batch::Item;
use longshore_wire::{LeaseId, LogTime, Offset, OffsetRange};
use std::collections::{BTreeMap, VecDeque};

/// Most messages of one take.
pub(crate) const TAKE_MAX: u32 = 64;

/// A receiver that waits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish {
    pub request: u64,
    pub max: u32,
    pub visibility_ms: u64,
    /// It is answered empty then.
    pub until: Mono,
}

/// A take that is being replicated.
#[derive(Debug)]
struct Answer {
    handed: Vec<Handed>,
    open: usize,
    until: LogTime,
}

#[derive(Debug)]
struct Pending {
    request: u64,
    lease: LeaseId,
    handed: Handed,
    /// If nothing is heard of it until then, it is given up.
    until: Mono,
}

/// Takes of one cursor.
#[derive(Debug, Default)]
pub(crate) struct Takes {
    pub wishes: VecDeque<Wish>,
    pending: BTreeMap<Offset, Pending>,
    answers: BTreeMap<u64, Answer>,
}

impl Takes {
    /// Whether a take of this message is being replicated.
    pub fn is_taking(&self, at: Offset) -> bool {
        !self.pending.is_empty() && self.pending.contains_key(&at)
    }

    pub fn is_empty(&self) -> bool {
        self.wishes.is_empty() && self.pending.is_empty()
    }

    /// Messages whose take is being replicated.
    pub fn pending(&self) -> u64 {
        self.pending.len() as u64
    }

    /// Proposes takes of what is ready for whoever waits.
    pub fn dispatch(&mut self, queue: QueueId, turn: &mut Turn<'_>, stock: &mut impl Stock) {
        while let Some(wish) = self.wishes.front().copied() {
            if turn.budget == 0 || !stock.prepare(turn) {
                break;
            }
            self.wishes.pop_front();
            self.serve(queue, wish, turn, stock);
        }
        let now = turn.now;
        let rows_coming = stock.more_coming();
        self.wishes.retain(|wish| {
            let waits = wish.until > now || rows_coming;
            if !waits {
                turn.out.push(Action::Took {
                    request: wish.request,
                    result: Ok(Vec::new()),
                    until: turn.log_time,
                });
            }
            waits
        });
    }

    fn serve(&mut self, queue: QueueId, wish: Wish, turn: &mut Turn<'_>, stock: &mut impl Stock) {
        let until = LogTime(turn.log_time.0.saturating_add(wish.visibility_ms));
        let mut open = 0;
        while open < wish.max as usize && turn.budget > 0 && stock.prepare(turn) {
            let Some(taken) = stock.take() else { break };
            let lease = turn.core.new_lease();
            let handed = taken.into_handed(queue, lease);
            let offset = handed.offset;
            turn.out.push(Action::Propose(Item::Take {
                log: queue.log,
                cursor: queue.cursor,
                offset,
                lease,
                until,
            }));
            let pending = Pending { request: wish.request, lease, handed, until: turn.again() };
            self.pending.insert(offset, pending);
            turn.budget -= 1;
            open += 1;
        }
        if open > 0 {
            self.answers.insert(wish.request, Answer { handed: Vec::with_capacity(open), open, until });
        } else {
            turn.out.push(Action::Took { request: wish.request, result: Ok(Vec::new()), until });
        }
    }

    /// A take was applied. Answers when the request is complete.
    pub fn taken(&mut self, at: Offset, lease: LeaseId, out: &mut Actions) {
        if self.pending.get(&at).is_some_and(|pending| pending.lease == lease)
            && let Some(pending) = self.pending.remove(&at)
        {
            self.close(pending.request, Some(pending.handed), out);
        }
    }

    /// Messages were settled: nothing is left of them to take.
    pub fn settled(&mut self, range: OffsetRange, out: &mut Actions) {
        let gone = self.pending.extract_if(range.first..=range.last, |_, _| true);
        let requests: Vec<u64> = gone.map(|(_, pending)| pending.request).collect();
        requests.into_iter().for_each(|request| self.close(request, None, out));
    }

    /// Gives up takes of which nothing was heard; their messages.
    pub fn give_up(&mut self, now: Mono, out: &mut Actions) -> Vec<Offset> {
        let late: Vec<Offset> =
            self.pending.iter().filter(|(_, pending)| pending.until <= now).map(|(at, _)| *at).collect();
        for at in &late {
            self.settled(OffsetRange::one(*at), out);
        }
        late
    }

    fn close(&mut self, request: u64, handed: Option<Handed>, out: &mut Actions) {
        let Some(answer) = self.answers.get_mut(&request) else { return };
        answer.handed.extend(handed);
        answer.open = answer.open.saturating_sub(1);
        if answer.open == 0
            && let Some(mut answer) = self.answers.remove(&request)
        {
            answer.handed.sort_by_key(|handed| handed.lease);
            out.push(Action::Took { request, result: Ok(answer.handed), until: answer.until });
        }
    }

    /// The earliest moment at which something here ends by itself. Wishes that are late wait for rows.
    pub fn next_deadline(&self, now: Mono) -> Option<Mono> {
        let wishes = self.wishes.iter().map(|wish| wish.until).filter(|until| *until > now);
        wishes.chain(self.pending.values().map(|pending| pending.until)).min()
    }

    /// Refuses everything: the queue is gone.
    pub fn refuse(&mut self, reason: Refused, out: &mut Actions) {
        let wishes = self.wishes.drain(..).map(|wish| wish.request);
        let requests: Vec<u64> = wishes.chain(self.answers.keys().copied()).collect();
        self.answers.clear();
        self.pending.clear();
        for request in requests {
            out.push(Action::Took { request, result: Err(reason), until: LogTime(0) });
        }
    }
}
