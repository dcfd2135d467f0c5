//! The node log's segments as the record store's readers see them, off the store thread.
//!
//! A book of pins, kept by the store thread: a segment stays readable while the record store holds it.

use bytes::Bytes;
use longshore_log::{NodeLog, SegmentPin};
use longshore_mutations::{self as mutations, Mutation};
use longshore_records::{EntryKey, Place, SegmentId, Segments};
use longshore_wire::Term;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Where an entry's local header names group, index and term (longshore-log's format).
const GROUP_AT: usize = 12;
const INDEX_AT: usize = 16;
const TERM_AT: usize = 24;

/// The record store's name of a segment.
pub(crate) fn record_id(segment: longshore_log::SegmentId) -> SegmentId {
    SegmentId(segment.0)
}

/// The node log's name of a segment.
pub(crate) fn log_id(segment: SegmentId) -> longshore_log::SegmentId {
    longshore_log::SegmentId(segment.0)
}

/// An entry's place in the record store's words.
pub(crate) fn place_of(place: &longshore_log::Place, term: Term) -> Place {
    let position = place.data_position();
    Place {
        segment: record_id(place.segment),
        position,
        head: (position - u64::from(place.header_position)) as u32,
        len: place.data_len,
        term,
    }
}

/// The pins.
#[derive(Debug, Default)]
pub(crate) struct SegmentBook {
    pins: Mutex<BTreeMap<SegmentId, SegmentPin>>,
}

impl SegmentBook {
    /// Pins a segment unless it is pinned already. False: it is gone.
    pub fn pin(&self, log: &NodeLog, segment: SegmentId) -> bool {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        if pins.contains_key(&segment) {
            return true;
        }
        let Some(pin) = log.pin(log_id(segment)) else { return false };
        pins.insert(segment, pin);
        true
    }

    /// The record store needs nothing of it any more.
    pub fn unpin(&self, segment: SegmentId) {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner).remove(&segment);
    }
}

fn u64_at(head: &[u8], at: usize) -> Option<u64> {
    head.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

impl Segments for SegmentBook {
    fn read(&self, segment: SegmentId, position: u64, len: usize) -> io::Result<Bytes> {
        let pin = self.pins.lock().unwrap_or_else(PoisonError::into_inner).get(&segment).cloned();
        let pin = pin.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the segment is gone"))?;
        pin.read(position, len).map_err(|error| io::Error::other(error.to_string()))
    }

    fn check(&self, _: SegmentId, head: &[u8], entry: &EntryKey) -> bool {
        let group = head
            .get(GROUP_AT..)
            .and_then(|bytes| bytes.first_chunk())
            .map(|bytes| u32::from_le_bytes(*bytes));
        // The broken build whose index names overwritten entries believes it.
        let believes = mutations::on(Mutation::IndexNamesOverwritten);
        group == Some(entry.group.0)
            && u64_at(head, INDEX_AT) == Some(entry.index.0)
            && (believes || u64_at(head, TERM_AT) == Some(entry.term.0))
    }
}
