//! Recent records in memory: the same bytes that were applied, a whole entry at a time, oldest out first.
//!
//! A slice of an entry pins the whole entry, so an entry's full length counts, and its rows with it.

use bytes::Bytes;
use longshore_wire::row::Row;
use longshore_wire::{LogId, Offset};
use std::collections::{BTreeMap, VecDeque};

/// What an entry costs beside its bytes and rows, about.
const ENTRY_BYTES: usize = 96;

#[derive(Debug)]
struct TailEntry {
    data: Bytes,
    /// By (log, offset).
    rows: Box<[Row]>,
}

impl TailEntry {
    fn bytes(&self) -> usize {
        let parts: usize = self.rows.iter().map(|row| row.parts.len() * 16).sum();
        self.data.len() + self.rows.len() * size_of::<Row>() + parts + ENTRY_BYTES
    }

    fn logs(&self) -> impl Iterator<Item = (LogId, u64)> + '_ {
        self.rows
            .iter()
            .enumerate()
            .filter(|(i, row)| *i == 0 || self.rows[i - 1].log != row.log)
            .map(|(_, row)| (row.log, row.offset.0))
    }
}

/// The tail. Bounded by its bytes; one entry is kept whatever its size.
#[derive(Debug)]
pub(crate) struct Tail {
    bytes_max: usize,
    bytes: usize,
    entries: VecDeque<TailEntry>,
    /// Number of the first entry in `entries`.
    first: u64,
    /// First offset and entry number, for each entry with rows of the log.
    logs: BTreeMap<LogId, VecDeque<(u64, u64)>>,
}

impl Tail {
    pub fn new(bytes_max: usize) -> Tail {
        Tail { bytes_max, bytes: 0, entries: VecDeque::new(), first: 0, logs: BTreeMap::new() }
    }

    /// Bytes held, with what they pin.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes the rows of one entry and its batch.
    pub fn push(&mut self, mut rows: Vec<Row>, data: &Bytes) {
        if rows.is_empty() || self.bytes_max == 0 {
            return;
        }
        rows.sort_unstable_by_key(|row| (row.log, row.offset));
        let entry = TailEntry { data: data.clone(), rows: rows.into_boxed_slice() };
        let number = self.first + self.entries.len() as u64;
        for (log, first) in entry.logs() {
            self.logs.entry(log).or_default().push_back((first, number));
        }
        self.bytes += entry.bytes();
        self.entries.push_back(entry);
        while self.bytes > self.bytes_max && self.entries.len() > 1 {
            self.evict();
        }
    }

    /// Forgets everything: records came in that did not pass through here.
    pub fn clear(&mut self) {
        self.first += self.entries.len() as u64;
        self.entries.clear();
        self.logs.clear();
        self.bytes = 0;
    }

    fn evict(&mut self) {
        let Some(entry) = self.entries.pop_front() else { return };
        for (log, _) in entry.logs() {
            let Some(of_log) = self.logs.get_mut(&log) else { continue };
            if of_log.front().is_some_and(|(_, number)| *number == self.first) {
                of_log.pop_front();
            }
            if of_log.is_empty() {
                self.logs.remove(&log);
            }
        }
        self.bytes -= entry.bytes();
        self.first += 1;
    }

    /// The record that holds `offset`, if it is recent.
    pub fn get(&self, log: LogId, offset: Offset) -> Option<(&Row, Bytes)> {
        let of_log = self.logs.get(&log)?;
        let at = of_log.partition_point(|(first, _)| *first <= offset.0).checked_sub(1)?;
        let (_, number) = of_log.get(at)?;
        let entry = self.entries.get(number.checked_sub(self.first)? as usize)?;
        let at = entry.rows.partition_point(|row| (row.log, row.offset) <= (log, offset)).checked_sub(1)?;
        let row = entry.rows.get(at).filter(|row| row.log == log && offset < row.end())?;
        let start = row.record.start as usize;
        let end = start.checked_add(row.record.len as usize)?;
        (end <= entry.data.len()).then(|| (row, entry.data.slice(start..end)))
    }

    /// Whether the tail has everything of the log from its oldest entry on, and where that begins.
    pub fn first_of(&self, log: LogId) -> Option<u64> {
        self.logs.get(&log)?.front().map(|(first, _)| *first)
    }

    /// The rows of `log` from `from` on, in order.
    pub fn rows_from(&self, log: LogId, from: Offset) -> impl Iterator<Item = &Row> + '_ {
        let of_log = self.logs.get(&log);
        let start = of_log
            .map_or(0, |of_log| of_log.partition_point(|(first, _)| *first <= from.0).saturating_sub(1));
        of_log
            .into_iter()
            .flat_map(move |of_log| of_log.range(start.min(of_log.len())..))
            .filter_map(|(_, number)| self.entries.get(number.checked_sub(self.first)? as usize))
            .flat_map(move |entry| {
                let start = entry.rows.partition_point(|row| row.log < log);
                entry.rows[start..].iter().take_while(move |row| row.log == log)
            })
            .filter(move |row| row.end() > from)
    }
}
