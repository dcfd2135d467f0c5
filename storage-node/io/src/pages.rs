//! A buffer that starts on a page of memory: what direct writes need.
//!
//! Duty: hold bytes so that their first one lies at a multiple of [`PAGE_BYTES`] in memory. It never moves, so it never
//! grows. Used by whoever calls [`crate::DiskFile::write_pages`].

/// Direct writes begin and end at multiples of this, in files and in memory, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Bytes from a page boundary on, up to a fixed capacity.
pub struct PageBuf {
    /// One page longer than the capacity, so that a page boundary is among the first bytes.
    store: Vec<u8>,
    start: usize,
    len: usize,
    capacity: usize,
}

impl std::fmt::Debug for PageBuf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PageBuf").field("len", &self.len).field("capacity", &self.capacity).finish()
    }
}

impl PageBuf {
    /// An empty one of this many pages, at least one.
    pub fn new(pages: usize) -> PageBuf {
        let capacity = pages.max(1) * PAGE_BYTES;
        let store = vec![0; capacity + PAGE_BYTES];
        let start = store.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        PageBuf { store, start, len: 0, capacity }
    }

    /// What it holds.
    pub fn bytes(&self) -> &[u8] {
        &self.store[self.start..self.start + self.len]
    }

    /// How many bytes it holds.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends as much of `bytes` as there is room for; returns how much that was.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(self.capacity - self.len);
        let at = self.start + self.len;
        self.store[at..at + taken].copy_from_slice(&bytes[..taken]);
        self.len += taken;
        taken
    }

    /// Appends zeros up to the next page boundary.
    pub fn pad(&mut self) {
        let end = self.len.next_multiple_of(PAGE_BYTES);
        self.store[self.start + self.len..self.start + end].fill(0);
        self.len = end;
    }

    /// Keeps only `bytes[from..to]`, moved to the front. `from` is at most `to`, that at most the length.
    pub fn keep(&mut self, from: usize, to: usize) {
        self.store.copy_within(self.start + from..self.start + to, self.start);
        self.len = to - from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_fits_pads_and_keeps() {
        let mut pages = PageBuf::new(2);
        assert_eq!(pages.bytes().as_ptr().align_offset(PAGE_BYTES), 0);
        assert_eq!(pages.put(&[7; 5000]), 5000);
        pages.pad();
        assert_eq!(pages.len(), 2 * PAGE_BYTES);
        assert_eq!(pages.bytes()[4999..5001], [7, 0]);
        assert_eq!(pages.put(&[1]), 0, "full");
        pages.keep(PAGE_BYTES, 5000);
        assert_eq!(pages.bytes(), [7; 5000 - PAGE_BYTES]);
        assert_eq!(pages.put(&[8; 9000]), 2 * PAGE_BYTES - (5000 - PAGE_BYTES));
    }
}
