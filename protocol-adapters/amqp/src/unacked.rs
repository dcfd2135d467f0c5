//! What a channel's client holds: delivery tags in order, each with the hand-over that its settlement names.

use longshore_broker::{ConsumerTag, Handle};
use std::collections::VecDeque;

/// One unsettled delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    /// As counted on the channel, from 1.
    pub(crate) delivery_tag: u64,
    /// For its settlement.
    pub(crate) handle: Handle,
    /// Which consumer's credit it took; `None` for a get.
    pub(crate) consumer: Option<ConsumerTag>,
    /// It was read from a stream, where nothing is settled.
    pub(crate) stream: bool,
    /// When it was sent, in seconds since the connection began.
    pub(crate) sent_at_seconds: u32,
}

/// The unsettled deliveries of a channel.
#[derive(Debug, Default)]
pub(crate) struct Unacked {
    /// In order of delivery tags; settled ones in the middle stay as holes until the front reaches them.
    slots: VecDeque<(u64, Option<Held>)>,
    /// Those of consumers.
    delivered: usize,
}

impl Unacked {
    /// How many were delivered to consumers; the rest was taken by gets.
    pub(crate) fn delivered(&self) -> usize {
        self.delivered
    }

    /// Adds a delivery; its tag is above all before it.
    pub(crate) fn push(&mut self, held: Held) {
        self.slots.push_back((held.delivery_tag, Some(held)));
        self.delivered += usize::from(held.consumer.is_some());
    }

    /// Puts back what a rolled back transaction had taken.
    pub(crate) fn put_back(&mut self, held: Held) {
        let added = match self.slots.binary_search_by_key(&held.delivery_tag, |(tag, _)| *tag) {
            Ok(at) => self.slots.get_mut(at).is_some_and(|(_, slot)| slot.replace(held).is_none()),
            Err(at) => {
                self.slots.insert(at, (held.delivery_tag, Some(held)));
                true
            }
        };
        self.delivered += usize::from(added && held.consumer.is_some());
    }

    /// Takes what a settlement names, in order, into `taken`. Tag 0 with `multiple` means all there are. Answers
    /// whether the tag is known; if not, nothing was taken.
    pub(crate) fn take(&mut self, delivery_tag: u64, multiple: bool, taken: &mut Vec<Held>) -> bool {
        if multiple && delivery_tag == 0 {
            self.take_front(self.slots.len(), taken);
            return true;
        }
        let Ok(at) = self.slots.binary_search_by_key(&delivery_tag, |(tag, _)| *tag) else { return false };
        let Some((_, slot)) = self.slots.get_mut(at).filter(|(_, slot)| slot.is_some()) else { return false };
        if multiple {
            self.take_front(at + 1, taken);
        } else {
            let held = slot.take();
            self.delivered -= usize::from(held.is_some_and(|held| held.consumer.is_some()));
            taken.extend(held);
            self.trim();
        }
        true
    }

    fn take_front(&mut self, slots: usize, taken: &mut Vec<Held>) {
        let before = taken.len();
        taken.extend(self.slots.drain(..slots).filter_map(|(_, held)| held));
        let consumed = taken.iter().skip(before).filter(|held| held.consumer.is_some()).count();
        self.delivered -= consumed;
        self.trim();
    }

    fn trim(&mut self) {
        while matches!(self.slots.front(), Some((_, None))) {
            self.slots.pop_front();
        }
    }

    /// The oldest one.
    pub(crate) fn oldest(&self) -> Option<&Held> {
        self.slots.front().and_then(|(_, held)| held.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use longshore_wire::{LeaseId, LogId, Offset, ShardId, Term};

    fn held(delivery_tag: u64) -> Held {
        let handle = Handle {
            log: LogId(1),
            shard: ShardId(1),
            offset: Offset(delivery_tag),
            lease: LeaseId(delivery_tag),
            term: Term(1),
            tag: None,
        };
        Held { delivery_tag, handle, consumer: Some(ConsumerTag(1)), stream: false, sent_at_seconds: 0 }
    }

    fn with(tags: std::ops::RangeInclusive<u64>) -> Unacked {
        let mut unacked = Unacked::default();
        tags.for_each(|tag| unacked.push(held(tag)));
        unacked
    }

    fn take(unacked: &mut Unacked, tag: u64, multiple: bool) -> Option<Vec<u64>> {
        let mut taken = Vec::new();
        let known = unacked.take(tag, multiple, &mut taken);
        known.then(|| taken.iter().map(|held| held.delivery_tag).collect())
    }

    #[test]
    fn single_and_multiple() {
        let mut unacked = with(1..=6);
        assert_eq!(take(&mut unacked, 2, false), Some(vec![2]));
        assert_eq!(take(&mut unacked, 2, false), None);
        assert_eq!(take(&mut unacked, 2, true), None, "a settled tag is unknown to multiple too");
        assert_eq!(take(&mut unacked, 4, true), Some(vec![1, 3, 4]));
        assert_eq!(take(&mut unacked, 1, false), None);
        assert_eq!((unacked.delivered(), unacked.oldest().map(|held| held.delivery_tag)), (2, Some(5)));
        assert_eq!(take(&mut unacked, 0, false), None);
        assert_eq!(take(&mut unacked, 7, true), None);
        assert_eq!(take(&mut unacked, 0, true), Some(vec![5, 6]));
        assert_eq!(take(&mut unacked, 0, true), Some(vec![]));
        assert_eq!(unacked.delivered(), 0);
    }

    #[test]
    fn a_rollback_puts_back_in_order() {
        let mut unacked = with(1..=4);
        let mut taken = Vec::new();
        assert!(unacked.take(3, true, &mut taken));
        taken.into_iter().rev().for_each(|held| unacked.put_back(held));
        assert_eq!(unacked.delivered(), 4);
        assert_eq!(take(&mut unacked, 3, false), Some(vec![3]));
        unacked.put_back(held(3));
        assert_eq!(take(&mut unacked, 4, true), Some(vec![1, 2, 3, 4]));
    }

    #[test]
    fn gets_are_held_and_not_counted_as_delivered() {
        let mut unacked = with(1..=2);
        unacked.push(Held { consumer: None, ..held(3) });
        assert_eq!(unacked.delivered(), 2);
        assert_eq!(take(&mut unacked, 3, false), Some(vec![3]));
        unacked.put_back(Held { consumer: None, ..held(3) });
        assert_eq!(unacked.delivered(), 2);
        assert_eq!(take(&mut unacked, 0, true), Some(vec![1, 2, 3]));
        assert_eq!(unacked.delivered(), 0);
    }
}
