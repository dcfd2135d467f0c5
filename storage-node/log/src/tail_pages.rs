//! The end of the log in whole pages, for direct writes.
//!
//! Duty: batches begin and end anywhere, direct writes only at page boundaries. So the last page of a batch stays here and is
//! written again, longer, with the next one, as the page cache would do it. Danger: the bytes of that page before the next
//! batch are synced history; they are written again as they were. Called by the writer only.

use crate::segment::Segment;
use crate::types::SegmentId;
use longshore_io::{DiskFile, PAGE_BYTES, PageBuf};
use std::io::{self, IoSlice};

/// Bytes are gathered up to so many pages before they are written: 1 MiB, more than most batches have.
const PAGES_MAX: usize = 256;

/// See the module.
#[derive(Debug)]
pub(crate) struct TailPages {
    pages: PageBuf,
    /// Where in the segment `pages` begins; a multiple of the page size.
    at: u64,
    segment: Option<SegmentId>,
}

impl TailPages {
    pub(crate) fn new() -> TailPages {
        TailPages { pages: PageBuf::new(PAGES_MAX), at: 0, segment: None }
    }

    /// Bytes from `position` of this segment on follow.
    pub(crate) fn begin(&mut self, segment: &Segment, file: &dyn DiskFile, position: u64) -> io::Result<()> {
        if self.segment == Some(segment.id) && self.at + self.pages.len() as u64 == position {
            return Ok(());
        }
        self.segment = Some(segment.id);
        self.at = position - position % PAGE_BYTES as u64;
        let mut before = vec![0; (position - self.at) as usize];
        if !before.is_empty() && file.read_at(&mut before, self.at)? < before.len() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the segment is shorter than its log"));
        }
        self.pages.keep(0, 0);
        self.pages.put(&before);
        Ok(())
    }

    /// Appends; writes what is gathered whenever the buffer is full.
    pub(crate) fn put(&mut self, file: &dyn DiskFile, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = self.pages.put(bytes);
            bytes = &bytes[taken..];
            if taken == 0 {
                file.write_pages(&self.pages, self.at)?;
                self.at += self.pages.len() as u64;
                self.pages.keep(0, 0);
            }
        }
        Ok(())
    }

    /// Writes the rest, with zeros to the end of its last page, and keeps that page. A segment's last page may be a part of one.
    pub(crate) fn finish(&mut self, file: &dyn DiskFile, segment_bytes: u64) -> io::Result<()> {
        let len = self.pages.len();
        let whole = len - len % PAGE_BYTES;
        if self.at + len.next_multiple_of(PAGE_BYTES) as u64 <= segment_bytes {
            self.pages.pad();
            file.write_pages(&self.pages, self.at)?;
        } else {
            file.write_at(&[IoSlice::new(self.pages.bytes())], self.at)?;
        }
        self.pages.keep(whole, len);
        self.at += whole as u64;
        Ok(())
    }
}
