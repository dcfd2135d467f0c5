//! The shard's logs by id, and the ids that are gone for ever.

use crate::Log;
use crate::bounds::LOGS_MAX;
use crate::id_ranges::IdRanges;
use crate::page::{Key, Pages, read_version, versioned};
use bytes::Bytes;
use longshore_wire::outcome::Refusal;
use longshore_wire::spec::LogSpec;
use longshore_wire::{DecodeError, LogId, LogTime, Reader};
use std::collections::BTreeMap;

const DROPPED_VERSION: u8 = 1;

/// All logs. Boxed, so that ten thousand idle ones do not fill half-empty tree nodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logs {
    live: BTreeMap<LogId, Box<Log>>,
    dropped: IdRanges,
    dirty: Vec<LogId>,
    /// Pages of logs that were dropped since pages were taken last.
    removed: Pages,
    dirty_dropped: bool,
}

impl Logs {
    pub(crate) fn get(&self, id: LogId) -> Option<&Log> {
        self.live.get(&id).map(|log| &**log)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Log> + '_ {
        self.live.values().map(|log| &**log)
    }

    pub(crate) fn is_dropped(&self, id: LogId) -> bool {
        !self.live.contains_key(&id) && self.dropped.contains(id.0)
    }

    /// A log that is about to be changed.
    pub(crate) fn change(&mut self, id: LogId) -> Result<&mut Log, Refusal> {
        match self.live.get_mut(&id) {
            Some(log) => {
                if !log.dirty {
                    log.dirty = true;
                    self.dirty.push(id);
                }
                Ok(log)
            }
            None if self.dropped.contains(id.0) => Err(Refusal::DroppedLog),
            None => Err(Refusal::UnknownLog),
        }
    }

    /// True if it was made now, false if it exists. Log 0 never exists, and transient logs are not replicated.
    pub(crate) fn create(&mut self, id: LogId, spec: LogSpec, now: LogTime) -> Result<bool, Refusal> {
        if self.live.contains_key(&id) {
            return Ok(false);
        }
        if self.dropped.contains(id.0) {
            return Err(Refusal::DroppedLog);
        }
        if id.0 == 0 || id.is_transient() {
            return Err(Refusal::Malformed);
        }
        if self.live.len() >= LOGS_MAX {
            return Err(Refusal::LimitReached);
        }
        let mut log = Box::new(Log::new(id, spec, now));
        log.dirty = true;
        self.dirty.push(id);
        self.live.insert(id, log);
        Ok(true)
    }

    /// Drops a log for ever, also one that never was. True if it existed.
    pub(crate) fn remove(&mut self, id: LogId) -> bool {
        self.dirty_dropped |= self.dropped.insert(id.0);
        match self.live.remove(&id) {
            Some(log) => {
                log.remove_all(&mut self.removed);
                true
            }
            None => false,
        }
    }

    fn dropped_page(&self) -> Bytes {
        versioned(DROPPED_VERSION, |out| self.dropped.encode(out))
    }

    pub(crate) fn take_dirty(&mut self, pages: &mut Pages) {
        if std::mem::take(&mut self.dirty_dropped) {
            pages.push(Key::Dropped, Some(self.dropped_page()));
        }
        pages.0.append(&mut self.removed.0);
        for id in std::mem::take(&mut self.dirty) {
            if let Some(log) = self.live.get_mut(&id) {
                log.take_dirty(pages);
            }
        }
    }

    pub(crate) fn all(&self, pages: &mut Pages) {
        if !self.dropped.is_empty() {
            pages.push(Key::Dropped, Some(self.dropped_page()));
        }
        self.live.values().for_each(|log| log.all(pages));
    }

    pub(crate) fn restore_dropped(&mut self, page: Bytes) -> Result<(), DecodeError> {
        let mut r = Reader::new(page, "dropped logs page");
        read_version(&mut r, "dropped logs page", DROPPED_VERSION)?;
        self.dropped = IdRanges::decode(&mut r)?;
        r.finish()
    }

    pub(crate) fn restore_log(&mut self, id: LogId, page: Bytes) -> Result<(), DecodeError> {
        self.live.insert(id, Box::new(Log::restored(id, page)?));
        Ok(())
    }

    /// The log that a chunk or position page belongs to.
    pub(crate) fn restoring(&mut self, id: LogId) -> Result<&mut Log, DecodeError> {
        self.live.get_mut(&id).map(|log| &mut **log).ok_or(DecodeError::Invalid("log of a page"))
    }
}
