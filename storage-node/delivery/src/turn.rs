//! The turn: where everything that events, commands and time made possible happens, and the record store's answers.

use crate::action::{Actions, LoadId};
use crate::core::{Turn, Waiting, earlier};
use crate::delivery::Delivery;
use crate::view::View;
use longshore_io::Mono;
use longshore_wire::row::Row;
use longshore_wire::{LogTime, Offset};

/// Queues that one turn looks at; the others wait for the next.
const TURN_QUEUES_MAX: usize = 1_024;

impl Delivery {
    /// Does what is due and possible: answers, proposals, deliveries, questions, in that order per queue.
    ///
    /// `log_time`: the stamp that the leader would give now, not below the shard's last. `may_deliver`: the leader's
    /// lease holds; without it only what was answered between turns goes out, and the work stays.
    pub fn turn(
        &mut self,
        now: Mono,
        log_time: LogTime,
        may_deliver: bool,
        shard: &impl View,
        out: &mut Actions,
    ) {
        out.append(&mut self.core.outbox);
        if !self.leading {
            return;
        }
        self.core.log_time = self.core.log_time.max(log_time);
        self.end_waiting(now);
        self.agenda.ring(now);
        self.held_up = !may_deliver;
        if may_deliver {
            if !self.core.leases_full() {
                std::mem::take(&mut self.core.starved).into_iter().for_each(|queue| self.agenda.mark(queue));
            }
            let budget = self.core.config.turn_messages_max;
            self.serve_queues(now, budget, shard, out);
            self.core.turn += 1;
            out.append(&mut self.core.outbox);
        }
    }

    /// Ends the wait for gateways when all have reported or the time is over.
    fn end_waiting(&mut self, now: Mono) {
        let over = |waiting: &mut Waiting| waiting.sessions.is_empty() || waiting.until <= now;
        if self.core.waiting.take_if(over).is_some() {
            self.durable.keys().for_each(|queue| self.agenda.mark(*queue));
        }
    }

    fn serve_queues(&mut self, now: Mono, mut budget: usize, shard: &impl View, out: &mut Actions) {
        for _ in 0..self.agenda.len().min(TURN_QUEUES_MAX) {
            let Some(queue) = self.agenda.pop() else { return };
            let log_time = self.core.log_time;
            let mut turn = Turn { now, log_time, budget, core: &mut self.core, out };
            let (wake, forget) = if let Some(transient) = self.transients.queues.get_mut(&queue.log) {
                (transient.serve(&mut turn), false)
            } else if let Some(durable) = self.durable.get_mut(&queue) {
                durable.serve(&mut turn, shard)
            } else {
                (None, false)
            };
            budget = turn.budget;
            self.agenda.wake(queue, wake);
            if forget && let Some(mut durable) = self.durable.remove(&queue) {
                durable.forget(&mut self.core);
            }
            self.end_if_over(queue.log, now);
            if budget == 0 {
                self.agenda.mark(queue);
                return;
            }
        }
    }

    /// When the next turn is due without any other input: in the past if work is left now. While the leader's
    /// lease does not hold, work waits for it: call `turn` when it does.
    pub fn next_deadline(&self) -> Option<Mono> {
        if !self.leading {
            return None;
        }
        let work = self.agenda.len() > 0 && !self.held_up || !self.core.outbox.is_empty();
        if work {
            return Some(Mono(0));
        }
        earlier(self.agenda.next_timer(), self.core.waiting.as_ref().map(|waiting| waiting.until))
    }

    /// The rows that the record store answers to [`LoadRows`](crate::Action::LoadRows): those whose end is beyond `from`, ascending, at
    /// most `max`; none only if there are none now. A late answer is ignored.
    pub fn rows_loaded(&mut self, _: Mono, id: LoadId, rows: Vec<Row>, shard: &impl View) {
        let Some(load_for) = self.core.loads.remove(&id) else { return };
        let Some(durable) = self.durable.get_mut(&load_for.queue) else { return };
        match load_for.reader {
            None => durable.rows_loaded(id, &rows, &mut self.core, shard),
            Some(key) => {
                if let Some(reader) = durable.readers.get_mut(&key) {
                    reader.loaded(id, rows);
                }
            }
        }
        self.agenda.mark(load_for.queue);
    }

    /// The answer to [`FindTime`](crate::Action::FindTime); the log's next offset where nothing is as young.
    pub fn time_found(&mut self, id: LoadId, offset: Offset) {
        let Some(load_for) = self.core.loads.remove(&id) else { return };
        let Some(durable) = self.durable.get_mut(&load_for.queue) else { return };
        if let Some(reader) = load_for.reader.and_then(|key| durable.readers.get_mut(&key)) {
            reader.found(id, offset);
        }
        self.agenda.mark(load_for.queue);
    }

    /// A question could not be answered; it is asked again a little later, under another id.
    pub fn load_failed(&mut self, now: Mono, id: LoadId) {
        let Some(load_for) = self.core.loads.remove(&id) else { return };
        let Some(durable) = self.durable.get_mut(&load_for.queue) else { return };
        let again = now.plus_ms(self.core.config.load_again_ms);
        match load_for.reader {
            Some(key) => {
                if let Some(reader) = durable.readers.get_mut(&key) {
                    reader.failed(id, again);
                }
            }
            None => {
                if durable.window.load.take_if(|load| load.id == id).is_some() {
                    durable.window.load_again = Some(again);
                }
            }
        }
        self.agenda.mark(load_for.queue);
    }
}
