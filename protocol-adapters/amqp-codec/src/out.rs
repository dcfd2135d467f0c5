//! The out-buffer of a connection: small things are encoded in place, large bodies stay the slices they are, and
//! all of it leaves in vectored writes.
//!
//! The danger is growth: a client that does not read lets it grow. Whoever fills it watches [`OutBuffer::len`].

use crate::frame::{FRAME_END, FrameKind};
use crate::{BASIC_CLASS, FRAME_OVERHEAD_BYTES, Method, PROTOCOL_HEADER};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// Body pieces from this size on are not copied into the buffer, in bytes.
pub const SLICE_BYTES_MIN: usize = 4_096;
/// The tail is closed and a new one begun beyond this size, in bytes.
const TAIL_BYTES_MAX: usize = 64 << 10;

/// Frames on their way to a client.
#[derive(Debug, Default)]
pub struct OutBuffer {
    chunks: VecDeque<Bytes>,
    tail: BytesMut,
    chunk_bytes: usize,
}

impl OutBuffer {
    /// An empty one.
    pub fn new() -> OutBuffer {
        OutBuffer::default()
    }

    /// Bytes that wait.
    pub fn len(&self) -> usize {
        self.chunk_bytes + self.tail.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the protocol header: the answer to another protocol or version.
    pub fn put_protocol_header(&mut self) {
        self.tail.put_slice(&PROTOCOL_HEADER);
    }

    /// Appends a heartbeat frame.
    pub fn put_heartbeat(&mut self) {
        self.frame(FrameKind::Heartbeat, 0, |_| ());
    }

    /// Appends a method frame. The caller keeps methods below the agreed frame size; none that a server sends can
    /// reach 4,096 bytes but `connection.start`, whose table is the server's own.
    pub fn put_method(&mut self, channel: u16, method: &Method) {
        self.frame(FrameKind::Method, channel, |out| method.encode(out));
    }

    /// Appends a method with its content header and body frames, split so that no frame exceeds
    /// `frame_bytes_max`, overhead included. `properties` are flags and list; a body may come in any slices.
    pub fn put_content(
        &mut self,
        channel: u16,
        method: &Method,
        properties: &[u8],
        body: &[Bytes],
        frame_bytes_max: usize,
    ) {
        self.put_method(channel, method);
        let body_bytes: u64 = body.iter().map(|slice| slice.len() as u64).sum();
        self.frame(FrameKind::Header, channel, |out| {
            out.put_u16(BASIC_CLASS);
            out.put_u16(0);
            out.put_u64(body_bytes);
            out.put_slice(properties);
        });
        let piece_bytes_max = frame_bytes_max.saturating_sub(FRAME_OVERHEAD_BYTES).max(1);
        self.put_body(channel, body, body_bytes, piece_bytes_max);
        if self.tail.len() >= TAIL_BYTES_MAX {
            self.close_tail();
        }
    }

    fn put_body(&mut self, channel: u16, body: &[Bytes], body_bytes: u64, piece_bytes_max: usize) {
        let mut slices = body.iter();
        let mut current = Bytes::new();
        let mut left = body_bytes;
        while left > 0 {
            let piece = left.min(piece_bytes_max as u64) as usize;
            self.put_frame_head(FrameKind::Body, channel, piece as u32);
            let mut missing = piece;
            while missing > 0 {
                if current.is_empty() {
                    let Some(next) = slices.next() else { return };
                    current = next.clone();
                    continue;
                }
                let n = missing.min(current.len());
                self.put_slice(current.split_to(n));
                missing -= n;
            }
            self.tail.put_u8(FRAME_END);
            left -= piece as u64;
        }
    }

    fn put_slice(&mut self, slice: Bytes) {
        if slice.len() < SLICE_BYTES_MIN {
            self.tail.put_slice(&slice);
        } else {
            self.close_tail();
            self.chunk_bytes += slice.len();
            self.chunks.push_back(slice);
        }
    }

    fn close_tail(&mut self) {
        if !self.tail.is_empty() {
            let tail = self.tail.split().freeze();
            self.chunk_bytes += tail.len();
            self.chunks.push_back(tail);
        }
    }

    fn put_frame_head(&mut self, kind: FrameKind, channel: u16, len: u32) {
        self.tail.put_u8(kind as u8);
        self.tail.put_u16(channel);
        self.tail.put_u32(len);
    }

    /// Appends a frame whose length is patched in after `fill` has written the payload.
    fn frame(&mut self, kind: FrameKind, channel: u16, fill: impl FnOnce(&mut BytesMut)) {
        self.put_frame_head(kind, channel, 0);
        let start = self.tail.len();
        fill(&mut self.tail);
        let len = (self.tail.len() - start) as u32;
        self.tail[start - 4..start].copy_from_slice(&len.to_be_bytes());
        self.tail.put_u8(FRAME_END);
    }

    /// Fills `slices` with what waits, in order, for a vectored write; answers how many it filled.
    pub fn io_slices<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = (!self.tail.is_empty()).then_some(&self.tail[..]);
        let all = self.chunks.iter().map(|chunk| &chunk[..]).chain(tail);
        let mut filled = 0;
        for (slot, bytes) in slices.iter_mut().zip(all) {
            *slot = IoSlice::new(bytes);
            filled += 1;
        }
        filled
    }

    /// Forgets `n` bytes at the front, which were written. `n` above what waits forgets everything.
    pub fn advance(&mut self, mut n: usize) {
        while n > 0 {
            let Some(front) = self.chunks.front_mut() else {
                self.tail.advance(n.min(self.tail.len()));
                return;
            };
            let step = n.min(front.len());
            front.advance(step);
            self.chunk_bytes -= step;
            n -= step;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    /// Everything that waits as one run of bytes, for tests and small answers.
    pub fn take_all(&mut self) -> Bytes {
        self.close_tail();
        let mut all = BytesMut::with_capacity(self.chunk_bytes);
        for chunk in self.chunks.drain(..) {
            all.put_slice(&chunk);
        }
        self.chunk_bytes = 0;
        all.freeze()
    }
}
