//! A cursor as pages: one per chunk of 65,536 offsets that has anything to say. The floor stands in the log's page.
//!
//! ```text
//! u8 version = 1, settled set, u16 slots, per slot: u64 slot, set of rewindable
//! u32 returns: (u16 place, u32 count)   u32 takes: (u16, u64 lease, u64 until)   u32 delays: (u16, u64 due)
//! ```

use super::{Cursor, Taken};
use crate::chunk::{CHUNK_OFFSETS, ChunkSet};
use crate::offset_set::chunk_of;
use crate::page::{read_version, versioned};
use bytes::{BufMut, Bytes};
use longshore_wire::{DecodeError, LeaseId, LogTime, Reader};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const VERSION: u8 = 1;

fn span(n: u64) -> Range<u64> {
    n * CHUNK_OFFSETS..(n + 1) * CHUNK_OFFSETS
}

fn place(offset: u64) -> u16 {
    (offset % CHUNK_OFFSETS) as u16
}

impl Cursor {
    pub(crate) fn take_dirty_chunks(&mut self) -> BTreeSet<u64> {
        std::mem::take(&mut self.dirty_chunks)
    }

    /// All chunks that have a page now, and those that may have had one.
    pub(crate) fn page_chunks(&self) -> BTreeSet<u64> {
        let mut chunks: BTreeSet<u64> = self.settled.chunk_numbers().collect();
        chunks.extend(self.rewindable.slots().flat_map(|(_, set)| set.chunk_numbers()));
        chunks.extend(self.returns.keys().map(|at| chunk_of(*at)));
        chunks.extend(self.taken.keys().map(|at| chunk_of(*at)));
        chunks.extend(self.delayed.keys().map(|at| chunk_of(*at)));
        chunks.extend(&self.dirty_chunks);
        chunks
    }

    /// The page of a chunk, or nothing if all its messages are in the plain state that the floor says.
    pub(crate) fn chunk_page(&self, n: u64) -> Option<Bytes> {
        let slots: Vec<_> =
            self.rewindable.slots().filter_map(|(slot, set)| Some((slot, set.chunk(n)?))).collect();
        let settled = self.settled.chunk(n);
        let returns = self.returns.range(span(n));
        let taken = self.taken.range(span(n));
        let delayed = self.delayed.range(span(n));
        let tables = [returns.clone().count(), taken.clone().count(), delayed.clone().count()];
        if settled.is_none() && slots.is_empty() && tables == [0, 0, 0] {
            return None;
        }
        Some(versioned(VERSION, |out| {
            settled.unwrap_or(&ChunkSet::new()).encode(out);
            out.put_u16_le(slots.len() as u16);
            for (slot, set) in slots {
                out.put_u64_le(slot);
                set.encode(out);
            }
            out.put_u32_le(tables[0] as u32);
            for (at, count) in returns {
                out.put_u16_le(place(*at));
                out.put_u32_le(*count);
            }
            out.put_u32_le(tables[1] as u32);
            for (at, held) in taken {
                out.put_u16_le(place(*at));
                out.put_u64_le(held.lease.0);
                out.put_u64_le(held.until.0);
            }
            out.put_u32_le(tables[2] as u32);
            for (at, due) in delayed {
                out.put_u16_le(place(*at));
                out.put_u64_le(due.0);
            }
        }))
    }

    /// An otherwise empty cursor as the log's page describes it; its chunks follow.
    pub(crate) fn restored(floor: u64, end: u64) -> Result<Cursor, DecodeError> {
        if floor > end {
            return Err(DecodeError::Invalid("cursor floor"));
        }
        Ok(Cursor { floor, end, ..Cursor::default() })
    }

    /// Takes up the page of one chunk.
    pub(crate) fn restore_chunk(&mut self, n: u64, page: Bytes) -> Result<(), DecodeError> {
        let mut r = Reader::new(page, "chunk page");
        read_version(&mut r, "chunk page", VERSION)?;
        if n > chunk_of(self.end) {
            return Err(DecodeError::Invalid("chunk number"));
        }
        self.settled.set_chunk(n, ChunkSet::decode(&mut r)?);
        for _ in 0..r.u16()? {
            let slot = r.u64()?;
            self.rewindable.slot(slot).set_chunk(n, ChunkSet::decode(&mut r)?);
        }
        let base = n * CHUNK_OFFSETS;
        self.returns.extend(read_table(&mut r, base, 6, |r| r.u32())?);
        self.taken.extend(read_table(&mut r, base, 18, |r| {
            Ok(Taken { lease: LeaseId(r.u64()?), until: LogTime(r.u64()?) })
        })?);
        let delayed = read_table(&mut r, base, 10, |r| Ok(LogTime(r.u64()?)))?;
        self.by_due.extend(delayed.iter().map(|(at, due)| (*due, *at)));
        self.delayed.extend(delayed);
        r.finish()
    }

    /// Checks what holds for every state, after the last chunk.
    pub(crate) fn check_restored(&self) -> Result<(), DecodeError> {
        let in_span = |at: &u64| self.floor <= *at && *at < self.end && !self.settled.contains(*at);
        let tables = self.returns.keys().chain(self.taken.keys()).chain(self.delayed.keys());
        let set_fits = self.settled.first().is_none_or(|first| first > self.floor)
            && self.settled.last().is_none_or(|last| last < self.end);
        if !set_fits || !tables.into_iter().all(in_span) {
            return Err(DecodeError::Invalid("settled offset"));
        }
        let rewindable =
            |(_, set): (u64, &crate::offset_set::OffsetSet)| set.last().is_none_or(|last| last < self.end);
        if !self.rewindable.slots().all(rewindable) {
            return Err(DecodeError::Invalid("rewindable offset"));
        }
        Ok(())
    }
}

fn read_table<T>(
    r: &mut Reader,
    base: u64,
    entry_bytes: usize,
    mut read: impl FnMut(&mut Reader) -> Result<T, DecodeError>,
) -> Result<BTreeMap<u64, T>, DecodeError> {
    let n = r.count(entry_bytes)?;
    (0..n).map(|_| Ok((base + u64::from(r.u16()?), read(r)?))).collect()
}
