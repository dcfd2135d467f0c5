//! Puts large bodies together that a leader delivers in pieces.

use bytes::Bytes;
use longshore_proto::v1;
use std::collections::HashMap;

/// Bodies under way, by (consumer, log, offset). Bounded by the consumers' credit in bytes.
#[derive(Debug, Default)]
pub struct Pieces {
    open: HashMap<(u64, u64, u64), Open>,
}

#[derive(Debug)]
struct Open {
    head: v1::Delivery,
    left: u64,
    pieces: Vec<Bytes>,
}

impl Pieces {
    /// Takes one item of a delivery stream; gives the delivery back with its pieces once it is whole. The pieces
    /// come before what the record itself holds.
    pub fn take(&mut self, item: v1::Delivery) -> Option<(v1::Delivery, Vec<Bytes>)> {
        let key = (item.consumer, item.log, item.offset);
        if item.body_bytes > 0 && !item.record.is_empty() {
            let left = item.body_bytes;
            self.open.insert(key, Open { head: item, left, pieces: Vec::new() });
            return None;
        }
        if item.piece.is_empty() {
            return Some((item, Vec::new()));
        }
        let open = self.open.get_mut(&key)?;
        open.left = open.left.saturating_sub(item.piece.len() as u64);
        open.pieces.push(item.piece);
        if open.left > 0 {
            return None;
        }
        self.open.remove(&key).map(|open| (open.head, open.pieces))
    }

    /// The stream or the leader changed: what was not whole comes again.
    pub fn clear(&mut self) {
        self.open.clear();
    }
}
