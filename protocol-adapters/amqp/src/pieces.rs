//! The body of a message under way, in as few slices as its frames allow.
//!
//! The danger is memory: a slice costs its own size and keeps a read buffer alive, so a body that comes in tiny frames
//! would cost many times its length. Small pieces are copied together; large ones stay where they were read.

use bytes::{Bytes, BytesMut};

/// Pieces below this many bytes are copied.
const SLICE_BYTES_MIN: usize = 4 << 10;
/// Copied pieces are closed at this size, so that growing them copies little.
const JOINED_BYTES_MAX: usize = 64 << 10;
/// What a slice costs beside its bytes.
const SLICE_OVERHEAD: u64 = 32;

/// The pieces that came so far.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    slices: Vec<Bytes>,
    /// Small pieces behind all slices.
    joined: BytesMut,
    cost: u64,
}

impl Pieces {
    /// Adds a piece. `last`: nothing follows it; so the only frame of a small message is not copied.
    pub(crate) fn push(&mut self, piece: Bytes, last: bool) {
        if piece.is_empty() {
            return;
        }
        self.cost += piece.len() as u64;
        let only = last && self.slices.is_empty() && self.joined.is_empty();
        if piece.len() >= SLICE_BYTES_MIN || only {
            self.close_joined();
            self.slices.push(piece);
            self.cost += SLICE_OVERHEAD;
            return;
        }
        self.joined.extend_from_slice(&piece);
        if self.joined.len() >= JOINED_BYTES_MAX {
            self.close_joined();
        }
    }

    fn close_joined(&mut self) {
        if !self.joined.is_empty() {
            self.slices.push(std::mem::take(&mut self.joined).freeze());
            self.cost += SLICE_OVERHEAD;
        }
    }

    /// About how many bytes of memory they take.
    pub(crate) fn cost(&self) -> u64 {
        self.cost
    }

    /// The body.
    pub(crate) fn finish(mut self) -> Vec<Bytes> {
        self.close_joined();
        self.slices
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiny_pieces_become_few_slices_and_keep_their_order() {
        let body: Vec<u8> = (0..200_000_u32).map(|n| n as u8).collect();
        let mut pieces = Pieces::default();
        let (tiny, rest) = body.split_at(150_000);
        tiny.iter().for_each(|byte| pieces.push(Bytes::copy_from_slice(&[*byte]), false));
        pieces.push(Bytes::copy_from_slice(rest), true);
        assert!(pieces.cost() < 200_000 + 10 * SLICE_OVERHEAD, "{}", pieces.cost());
        let slices = pieces.finish();
        assert_eq!(slices.len(), 4, "three of joined bytes, one large");
        assert_eq!(slices.concat(), body);
    }

    #[test]
    fn a_message_of_one_frame_is_not_copied() {
        let frame = Bytes::from_static(b"small");
        let mut pieces = Pieces::default();
        pieces.push(frame.clone(), true);
        assert_eq!(pieces.finish().first().map(|slice| slice.as_ptr()), Some(frame.as_ptr()));
    }
}
