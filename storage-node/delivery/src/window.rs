//! The bounded window over a durable cursor: the next messages' rows, and why others are not among them.
//!
//! Every unsettled offset below `scan` is in exactly one place: ready, leased (the desk), being taken or taken, delayed,
//! expiring, or `back` (ready again, its row not here). Everything from `scan` on is found by reading rows.
//! Danger: an offset that falls out of all of these is stuck until the next leader; one in two may go twice.

use crate::action::LoadId;
use crate::leases::{Leases, runs};
use crate::ready::{Entry, Key, ReadyList};
use crate::view::CursorView;
use longshore_io::Mono;
use longshore_wire::row::Row;
use longshore_wire::{LogTime, Offset, OffsetRange};
use std::collections::{BTreeMap, BTreeSet};

/// Returned messages that lie closer than this are read in one go.
const BACK_GAP_MAX: u64 = 16;
/// Most offsets that one reading of returned messages spans.
const BACK_SPAN_MAX: u64 = 512;

/// An open question to the record store.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub id: LoadId,
    pub from: Offset,
    /// The last offset of a run of returned messages; `None`: reading on from `scan`.
    pub back: Option<Offset>,
    /// The log's next offset when it was asked.
    pub next: Offset,
}

/// What a row's messages are checked against before they become ready.
pub(crate) struct Admission<'a, C> {
    pub cursor: &'a C,
    pub leases: &'a Leases,
    pub taking: &'a dyn Fn(Offset) -> bool,
    pub log_time: LogTime,
    pub priority_max: u8,
    /// The turn to which an append counts; 0 for rows that were read.
    pub turn: u64,
    /// Rows that the window may hold.
    pub rows_max: usize,
    pub bytes_max: usize,
    pub delayed_max: usize,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Window {
    pub ready: ReadyList,
    pub scan: Offset,
    pub back: BTreeSet<Offset>,
    pub delayed: BTreeSet<(LogTime, Offset)>,
    /// The earliest due time of delayed messages for which there was no room above: read again then.
    pub delayed_beyond: Option<LogTime>,
    /// Out with receivers without a connection, until that log time.
    pub taken: BTreeSet<(LogTime, Offset)>,
    /// Takes whose time is over, the return proposed; proposed again at that moment.
    pub lapsing: BTreeMap<Offset, Mono>,
    /// Expired, the end proposed; proposed again at that moment.
    pub expiring: BTreeMap<Offset, Mono>,
    pub load: Option<Load>,
    pub load_again: Option<Mono>,
}

impl Window {
    /// Whether nothing but ready rows is remembered.
    pub fn is_quiet(&self) -> bool {
        self.load.is_none()
            && self.delayed.is_empty()
            && self.taken.is_empty()
            && self.lapsing.is_empty()
            && self.expiring.is_empty()
            && self.delayed_beyond.is_none()
    }

    /// Forgets everything: it is read again from the oldest unsettled message.
    pub fn reset(&mut self) {
        *self = Window::default();
    }

    /// Keeps `n` ready rows; the others are read again.
    pub fn shrink(&mut self, n: usize) {
        if let Some(lowest) = self.ready.truncate(n) {
            self.scan = self.scan.min(lowest);
        }
    }

    /// `at` is ready again, at its old place.
    pub fn give_back(&mut self, at: Offset, returned_max: usize) {
        self.lapsing.remove(&at);
        if at >= self.scan {
            return;
        }
        self.back.insert(at);
        if self.back.len() > returned_max
            && let Some(first) = self.back.first().copied()
        {
            self.back.clear();
            self.scan = first;
        }
    }

    /// `range` is settled; `leased` of it were leases and thus nowhere here.
    pub fn settled(&mut self, range: OffsetRange, leased: u64) {
        if leased >= range.count() {
            return;
        }
        self.ready.remove(range);
        self.back.extract_if(range.first..=range.last, |_| true).for_each(drop);
        self.expiring.extract_if(range.first..=range.last, |_, _| true).for_each(drop);
        self.lapsing.extract_if(range.first..=range.last, |_, _| true).for_each(drop);
    }

    /// Moves what time has freed to `back`. Answers the takes that are over: their return is to be proposed.
    pub fn pass_time<C: CursorView>(
        &mut self,
        now: Mono,
        log_time: LogTime,
        cursor: &C,
        again: Mono,
        returned_max: usize,
    ) -> Vec<Offset> {
        while let Some((due, at)) = self.delayed.first().copied()
            && due <= log_time
        {
            self.delayed.remove(&(due, at));
            if !cursor.is_settled(at) {
                self.give_back(at, returned_max);
            }
        }
        if self.delayed_beyond.is_some_and(|due| due <= log_time) {
            self.delayed_beyond = None;
            self.scan = Offset(0);
        }
        let unheard =
            self.expiring.extract_if(.., |_, until| *until <= now).map(|(at, _)| at).collect::<Vec<_>>();
        for at in unheard {
            if !cursor.is_settled(at) {
                self.give_back(at, returned_max);
            }
        }
        let mut over: Vec<Offset> =
            self.lapsing.extract_if(.., |_, until| *until <= now).map(|(at, _)| at).collect();
        while let Some((until, at)) = self.taken.first().copied()
            && until <= log_time
        {
            self.taken.remove(&(until, at));
            // Prolonged: another entry stands for it. Settled or returned: nothing is left of it.
            if cursor.taken_until(at) == Some(until) {
                over.push(at);
            }
        }
        over.retain(|at| !cursor.is_settled(*at));
        over.sort_unstable();
        self.lapsing.extend(over.iter().map(|at| (*at, again)));
        over
    }

    /// Puts one message of `row` where it belongs.
    fn admit_one<C: CursorView>(&mut self, row: &Row, at: Offset, to: &Admission<'_, C>) {
        self.back.remove(&at);
        let ending = self.expiring.contains_key(&at) || self.lapsing.contains_key(&at);
        if ending || to.leases.contains(at) || (to.taking)(at) || to.cursor.is_settled(at) {
            return;
        }
        if let Some(until) = to.cursor.taken_until(at) {
            // Also one whose time is over: it is ready once its return was applied.
            self.taken.insert((until, at));
        } else if row.due > to.log_time {
            self.delay(row.due, at, to.delayed_max);
        } else {
            let key = Key::new(row, at, to.priority_max);
            self.ready.insert(Entry { key, row: row.clone(), message: None, returns: 0, turn: to.turn });
        }
    }

    fn delay(&mut self, due: LogTime, at: Offset, max: usize) {
        self.delayed.insert((due, at));
        if self.delayed.len() > max
            && let Some((due, _)) = self.delayed.pop_last()
        {
            self.delayed_beyond = Some(self.delayed_beyond.map_or(due, |other| other.min(due)));
        }
    }

    fn is_full<C>(&self, to: &Admission<'_, C>) -> bool {
        self.ready.len() >= to.rows_max || self.ready.memory() >= to.bytes_max
    }

    /// Takes rows that follow on `scan`, as far as there is room.
    fn admit_on<C: CursorView>(&mut self, row: &Row, to: &Admission<'_, C>) {
        while self.scan < row.end() {
            if self.is_full(to) {
                return;
            }
            let at = self.scan.max(row.offset);
            self.scan = at.plus(1);
            self.admit_one(row, at, to);
        }
    }

    /// A row was appended. Taken at once if the window reaches to the end of the log and has room.
    pub fn appended<C: CursorView>(&mut self, row: &Row, to: &Admission<'_, C>) {
        if self.scan == row.offset {
            self.admit_on(row, to);
        }
    }

    /// What to ask the record store next, if anything: (from, max, the end of a run of returned messages).
    pub fn wanted<C: CursorView>(
        &mut self,
        cursor: &C,
        next: Offset,
        (rows_max, bytes_max): (usize, usize),
    ) -> Option<(Offset, u32, Option<Offset>)> {
        if let Some(first) = self.back.first().copied() {
            let mut last = first;
            for at in self.back.iter().copied() {
                if at.0 - last.0 > BACK_GAP_MAX || at.0 - first.0 >= BACK_SPAN_MAX {
                    break;
                }
                last = at;
            }
            return Some((first, (last.0 - first.0 + 1) as u32, Some(last)));
        }
        // Asked again only when half empty by both bounds; asking while full would get nowhere.
        let enough = self.ready.len() * 2 > rows_max || self.ready.memory() * 2 > bytes_max;
        if enough || self.scan >= next {
            return None;
        }
        match cursor.next_unsettled(self.scan) {
            None => {
                self.scan = next;
                None
            }
            Some(at) => {
                self.scan = self.scan.max(at);
                let room = rows_max.saturating_sub(self.ready.len()).max(1);
                Some((self.scan, room as u32, None))
            }
        }
    }

    /// The answer to `load`. Answers how many unsettled messages had no row although they should: damage.
    pub fn loaded<C: CursorView>(&mut self, load: Load, rows: &[Row], to: &Admission<'_, C>) -> u64 {
        match load.back {
            Some(last) => self.back_loaded(load.from, last, rows, to),
            None => self.scan_loaded(load, rows, to),
        }
    }

    fn back_loaded<C: CursorView>(
        &mut self,
        first: Offset,
        last: Offset,
        rows: &[Row],
        to: &Admission<'_, C>,
    ) -> u64 {
        for row in rows {
            let end = row.end().0.saturating_sub(1);
            let of_row: Vec<Offset> = self.back.range(row.offset..=Offset(end)).copied().collect();
            for at in of_row {
                self.admit_one(row, at, to);
            }
        }
        // Rows come in order: what the last one has passed, or all if there are none, does not exist.
        let covered = rows.last().map_or(last, |row| Offset(row.end().0.saturating_sub(1)).min(last));
        if covered < first {
            return 0;
        }
        let gone = self.back.extract_if(first..=covered, |_| true);
        gone.filter(|at| !to.cursor.is_settled(*at) && !to.leases.contains(*at)).count() as u64
    }

    fn scan_loaded<C: CursorView>(&mut self, load: Load, rows: &[Row], to: &Admission<'_, C>) -> u64 {
        if self.scan != load.from {
            return 0; // Set back meanwhile: it is read again from there.
        }
        let mut missing = 0;
        for row in rows {
            if self.is_full(to) {
                return missing;
            }
            if row.offset > self.scan {
                missing += self.skip_to(row.offset, to);
            }
            self.admit_on(row, to);
        }
        if rows.is_empty() {
            missing += self.skip_to(load.next, to);
        }
        missing
    }

    /// Passes offsets without a row; how many of them were unsettled (counted up to a bound).
    fn skip_to<C: CursorView>(&mut self, end: Offset, to: &Admission<'_, C>) -> u64 {
        let mut missing = 0;
        let mut at = self.scan;
        while missing < BACK_SPAN_MAX
            && let Some(unsettled) = to.cursor.next_unsettled(at)
            && unsettled < end
        {
            missing += u64::from(!to.leases.contains(unsettled));
            at = unsettled.plus(1);
        }
        self.scan = self.scan.max(end);
        missing
    }

    /// What expired in this turn, as runs to propose.
    pub fn expired_runs(mut expired: Vec<Offset>) -> Vec<OffsetRange> {
        expired.sort_unstable();
        runs(expired.into_iter())
    }
}
