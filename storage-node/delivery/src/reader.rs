//! A consumer that reads by position: streams, and queues read as a log. No lease, nothing to settle; each reader
//! goes its own way with its own credit and a small window of its own.

use crate::action::{Action, Actions, Handed, LoadId, Message};
use crate::command::{ConsumerKey, QueueId, Start};
use crate::consumers::Credit;
use crate::core::{LoadFor, Turn};
use crate::view::LogInfo;
use longshore_io::Mono;
use longshore_wire::row::Row;
use longshore_wire::{LeaseId, LogTime, Offset};
use std::collections::VecDeque;

/// Rows that a reader keeps ahead.
const AHEAD_ROWS_MAX: usize = 256;

#[derive(Clone, Copy, Debug)]
struct Asked {
    id: LoadId,
    from: Offset,
    /// The log's next offset when it was asked.
    next: Offset,
}

/// One reader.
#[derive(Debug)]
pub(crate) struct Reader {
    pub key: ConsumerKey,
    pub credit: Credit,
    pub suspended: bool,
    /// A start by time that was not found yet.
    time: Option<LogTime>,
    /// The next offset to send.
    position: Offset,
    /// Where reading on begins: the end of `ahead`.
    read_to: Offset,
    ahead: VecDeque<Row>,
    asked: Option<Asked>,
    again: Option<Mono>,
}

impl Reader {
    pub fn new(key: ConsumerKey, credit: Credit, start: Start, log: &LogInfo) -> Reader {
        let (position, time) = match start {
            Start::Offset(at) => (at.max(log.first), None),
            Start::First => (log.first, None),
            Start::Last => (Offset(log.next.0.saturating_sub(1)).max(log.first), None),
            Start::Next => (log.next, None),
            Start::Time(time) => (log.first, Some(time)),
        };
        Reader {
            key,
            credit,
            suspended: false,
            time,
            position,
            read_to: position,
            ahead: VecDeque::new(),
            asked: None,
            again: None,
        }
    }

    /// Whether it could send if it had rows.
    pub fn is_hungry(&self) -> bool {
        !self.suspended && self.credit.is_left()
    }

    /// A row was appended: taken at once by a reader at the end of the log.
    pub fn appended(&mut self, row: &Row) {
        if self.asked.is_none()
            && self.time.is_none()
            && self.read_to == row.offset
            && self.ahead.len() < AHEAD_ROWS_MAX
        {
            self.take_row(row.clone());
        }
    }

    fn take_row(&mut self, row: Row) {
        self.read_to = row.end();
        if row.end() > self.position {
            self.ahead.push_back(row);
        }
    }

    /// Sends what credit allows, then asks for more. Answers when it wants to be called again by itself.
    pub fn serve(&mut self, queue: QueueId, log: &LogInfo, turn: &mut Turn<'_>) -> Option<Mono> {
        while self.is_hungry() && turn.budget > 0 {
            let Some(row) = self.ahead.pop_front() else { break };
            if row.end() <= log.first {
                continue; // Retention overtook it.
            }
            let offset = self.position.max(row.offset);
            let count = (row.end().0 - offset.0) as u32;
            self.position = row.end();
            self.credit.charge(u64::from(count), row.bytes());
            turn.budget -= 1;
            turn.core.counters.delivered += u64::from(count);
            let handed = Handed {
                log: queue.log,
                cursor: queue.cursor,
                offset,
                count,
                lease: LeaseId(0),
                redelivered: false,
                returns: 0,
                message: Message::Stored(row),
            };
            turn.out.push(Action::Deliver { to: self.key, handed });
        }
        self.ask(queue, log, turn)
    }

    fn ask(&mut self, queue: QueueId, log: &LogInfo, turn: &mut Turn<'_>) -> Option<Mono> {
        if self.asked.is_some() || !self.is_hungry() || !self.ahead.is_empty() {
            return None;
        }
        if self.again.is_some_and(|again| again > turn.now) {
            return self.again;
        }
        self.again = None;
        let load_for = LoadFor { queue, reader: Some(self.key) };
        if let Some(time) = self.time {
            let id = turn.core.new_load(load_for);
            self.asked = Some(Asked { id, from: self.read_to, next: log.next });
            turn.out.push(Action::FindTime { id, log: queue.log, time });
            return None;
        }
        self.read_to = self.read_to.max(log.first);
        if self.read_to < log.next {
            let id = turn.core.new_load(load_for);
            self.asked = Some(Asked { id, from: self.read_to, next: log.next });
            let max = AHEAD_ROWS_MAX as u32;
            turn.out.push(Action::LoadRows { id, log: queue.log, from: self.read_to, max });
        }
        None
    }

    /// Rows came. An answer to an older question is ignored.
    pub fn loaded(&mut self, id: LoadId, rows: Vec<Row>) {
        let Some(asked) = self.asked.take_if(|asked| asked.id == id) else { return };
        if rows.is_empty() {
            self.read_to = asked.next.max(asked.from);
        }
        for row in rows {
            self.take_row(row);
        }
    }

    /// The offset of a start by time came.
    pub fn found(&mut self, id: LoadId, at: Offset) {
        if self.asked.take_if(|asked| asked.id == id).is_some() {
            self.time = None;
            self.position = at;
            self.read_to = at;
        }
    }

    /// The question could not be answered.
    pub fn failed(&mut self, id: LoadId, again: Mono) {
        if self.asked.take_if(|asked| asked.id == id).is_some() {
            self.again = Some(again);
        }
    }

    /// Whether rows are being read for it.
    pub fn loading(&self) -> Option<Offset> {
        self.asked.map(|asked| asked.from)
    }

    /// Tells the gateway that it is over.
    pub fn cancel(&self, reason: crate::Refused, out: &mut Actions) {
        out.push(Action::Cancelled { to: self.key, reason });
    }
}
