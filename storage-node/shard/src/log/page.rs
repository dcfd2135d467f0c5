//! A log as pages: one for itself, one per chunk of each cursor, one per named position.

use super::{Log, Position};
use crate::Cursor;
use crate::bounds::OFFSET_MAX;
use crate::page::{Key, Pages, read_version, versioned};
use bytes::{BufMut, Bytes};
use longshore_wire::spec::{LogKind, LogSpec};
use longshore_wire::{CursorId, DecodeError, LogId, LogTime, Offset, Reader};
use std::collections::{BTreeMap, BTreeSet};

const VERSION: u8 = 1;
const POSITION_VERSION: u8 = 1;

impl Log {
    fn page(&self) -> Bytes {
        versioned(VERSION, |out| {
            self.spec.encode(out);
            out.put_u64_le(self.created.0);
            out.put_u64_le(self.start.0);
            out.put_u64_le(self.next.0);
            out.put_u16_le(self.cursors.len() as u16);
            for (id, cursor) in &self.cursors {
                out.put_u32_le(id.0);
                out.put_u64_le(cursor.floor().0);
            }
        })
    }

    fn position_page(&self, name: &Bytes) -> Option<Bytes> {
        let position = self.positions.get(name)?;
        Some(versioned(POSITION_VERSION, |out| {
            out.put_u64_le(position.offset.0);
            out.put_u64_le(position.time.0);
        }))
    }

    /// The pages that changed since the last call.
    pub(crate) fn take_dirty(&mut self, pages: &mut Pages) {
        self.dirty = false;
        pages.push(Key::Log(self.id), Some(self.page()));
        for (id, cursor) in &mut self.cursors {
            for n in cursor.take_dirty_chunks() {
                pages.push(Key::Chunk(self.id, *id, n), cursor.chunk_page(n));
            }
        }
        for name in std::mem::take(&mut self.dirty_positions) {
            let page = self.position_page(&name);
            pages.push(Key::Position(self.id, name), page);
        }
    }

    /// All pages.
    pub(crate) fn all(&self, pages: &mut Pages) {
        pages.push(Key::Log(self.id), Some(self.page()));
        for (id, cursor) in &self.cursors {
            for n in cursor.page_chunks() {
                if let Some(page) = cursor.chunk_page(n) {
                    pages.push(Key::Chunk(self.id, *id, n), Some(page));
                }
            }
        }
        for name in self.positions.keys() {
            pages.push(Key::Position(self.id, name.clone()), self.position_page(name));
        }
    }

    /// The keys of all pages that this log may have anywhere, for its removal.
    pub(crate) fn remove_all(&self, pages: &mut Pages) {
        pages.push(Key::Log(self.id), None);
        for (id, cursor) in &self.cursors {
            for n in cursor.page_chunks() {
                pages.push(Key::Chunk(self.id, *id, n), None);
            }
        }
        for name in self.positions.keys() {
            pages.push(Key::Position(self.id, name.clone()), None);
        }
    }

    /// A log from its own page; chunks and positions follow.
    pub(crate) fn restored(id: LogId, page: Bytes) -> Result<Log, DecodeError> {
        let mut r = Reader::new(page, "log page");
        read_version(&mut r, "log page", VERSION)?;
        let spec = LogSpec::decode(&mut r)?;
        let (created, start, next) = (LogTime(r.u64()?), Offset(r.u64()?), Offset(r.u64()?));
        let n = usize::from(r.u16()?);
        let mut cursors: Vec<(CursorId, Cursor)> = Vec::with_capacity(n.min(16));
        for _ in 0..n {
            let id = CursorId(r.u32()?);
            if cursors.last().is_some_and(|(before, _)| *before >= id) {
                return Err(DecodeError::Invalid("cursor order"));
            }
            cursors.push((id, Cursor::restored(r.u64()?, next.0)?));
        }
        r.finish()?;
        if start > next || next.0 > OFFSET_MAX || (spec.kind == LogKind::Queue) == cursors.is_empty() {
            return Err(DecodeError::Invalid("log page"));
        }
        let (positions, dirty_positions) = (BTreeMap::new(), BTreeSet::new());
        Ok(Log { id, spec, created, start, next, cursors, positions, dirty: false, dirty_positions })
    }

    pub(crate) fn restore_chunk(&mut self, cursor: CursorId, n: u64, page: Bytes) -> Result<(), DecodeError> {
        let cursor = self.cursor_mut(cursor).map_err(|_| DecodeError::Invalid("cursor of a chunk page"))?;
        cursor.restore_chunk(n, page)
    }

    pub(crate) fn restore_position(&mut self, name: Bytes, page: Bytes) -> Result<(), DecodeError> {
        let mut r = Reader::new(page, "position page");
        read_version(&mut r, "position page", POSITION_VERSION)?;
        let position = Position { offset: Offset(r.u64()?), time: LogTime(r.u64()?) };
        self.positions.insert(name, position);
        r.finish()
    }

    pub(crate) fn check_restored(&self) -> Result<(), DecodeError> {
        self.cursors.iter().try_for_each(|(_, cursor)| cursor.check_restored())
    }
}
