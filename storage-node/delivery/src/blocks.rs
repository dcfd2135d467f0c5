//! A map from offsets that lie close together: blocks of [`BLOCK`] offsets, each with a bit per offset and its values side by side.
//!
//! A value costs little more than its own size, where a balanced tree that grows at its end is half empty.

use longshore_wire::{Offset, OffsetRange};
use std::collections::BTreeMap;

/// Offsets in a block. An insertion or a removal moves up to as many values.
const BLOCK: u64 = 32;

#[derive(Debug)]
struct Block<V> {
    /// Bit i: the block's offset i has a value.
    present: u32,
    /// The values of the bits that are set, in order.
    values: Vec<V>,
}

impl<V> Block<V> {
    fn slot(&self, bit: u32) -> usize {
        (self.present & ((1 << bit) - 1)).count_ones() as usize
    }

    fn find(&self, bit: u32) -> Option<usize> {
        (self.present & 1 << bit != 0).then(|| self.slot(bit))
    }
}

/// The bits that are set, in order.
fn bits(of: u32) -> impl Iterator<Item = u64> {
    (0..BLOCK).filter(move |bit| of & 1 << bit != 0)
}

/// The map.
#[derive(Debug)]
pub(crate) struct Blocks<V> {
    /// By offset / [`BLOCK`]; none is empty.
    blocks: BTreeMap<u64, Block<V>>,
    len: usize,
}

impl<V> Default for Blocks<V> {
    fn default() -> Blocks<V> {
        Blocks { blocks: BTreeMap::new(), len: 0 }
    }
}

fn place(at: Offset) -> (u64, u32) {
    (at.0 / BLOCK, (at.0 % BLOCK) as u32)
}

impl<V> Blocks<V> {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, at: Offset) -> Option<&V> {
        let (number, bit) = place(at);
        let block = self.blocks.get(&number)?;
        block.values.get(block.find(bit)?)
    }

    pub fn get_mut(&mut self, at: Offset) -> Option<&mut V> {
        let (number, bit) = place(at);
        let block = self.blocks.get_mut(&number)?;
        let slot = block.find(bit)?;
        block.values.get_mut(slot)
    }

    /// The value that was there before.
    pub fn insert(&mut self, at: Offset, value: V) -> Option<V> {
        let (number, bit) = place(at);
        let empty = || Block { present: 0, values: Vec::new() };
        let block = self.blocks.entry(number).or_insert_with(empty);
        let slot = block.slot(bit);
        if block.present & 1 << bit != 0 {
            return block.values.get_mut(slot).map(|known| std::mem::replace(known, value));
        }
        block.values.insert(slot, value);
        block.present |= 1 << bit;
        self.len += 1;
        None
    }

    pub fn remove(&mut self, at: Offset) -> Option<V> {
        let (number, bit) = place(at);
        let block = self.blocks.get_mut(&number)?;
        let slot = block.find(bit)?;
        let value = block.values.remove(slot);
        block.present &= !(1 << bit);
        if block.present == 0 {
            self.blocks.remove(&number);
        }
        self.len -= 1;
        Some(value)
    }

    /// Takes out what lies in `range`, in order; how many.
    pub fn remove_range(&mut self, range: OffsetRange, mut removed: impl FnMut(Offset, V)) -> u64 {
        let (from, to) = (place(range.first), place(range.last));
        let len_before = self.len;
        let numbers: Vec<u64> = self.blocks.range(from.0..=to.0).map(|(number, _)| *number).collect();
        for number in numbers {
            let Some(block) = self.blocks.get_mut(&number) else { continue };
            let lowest = if number == from.0 { from.1 } else { 0 };
            let highest = if number == to.0 { to.1 } else { BLOCK as u32 - 1 };
            let gone = block.present & u32::MAX << lowest & u32::MAX >> (BLOCK as u32 - 1 - highest);
            let slots = block.slot(lowest)..block.slot(lowest) + gone.count_ones() as usize;
            self.len -= slots.len();
            for (bit, value) in bits(gone).zip(block.values.drain(slots)) {
                removed(Offset(number * BLOCK + bit), value);
            }
            block.present &= !gone;
            if block.present == 0 {
                self.blocks.remove(&number);
            }
        }
        (len_before - self.len) as u64
    }

    /// Everything, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Offset, &V)> {
        self.blocks.iter().flat_map(|(number, block)| {
            bits(block.present).map(move |bit| Offset(number * BLOCK + bit)).zip(&block.values)
        })
    }

    /// What lies in `range`, in order.
    pub fn range(&self, range: OffsetRange) -> impl Iterator<Item = (Offset, &V)> {
        let blocks = self.blocks.range(place(range.first).0..=place(range.last).0);
        let all = blocks.flat_map(|(number, block)| {
            bits(block.present).map(move |bit| Offset(number * BLOCK + bit)).zip(&block.values)
        });
        all.filter(move |(at, _)| range.first <= *at && *at <= range.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u8),
        Remove(u64),
        RemoveRange(u64, u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let at = 0..200_u64;
        prop_oneof![
            6 => (at.clone(), any::<u8>()).prop_map(|(at, value)| Step::Insert(at, value)),
            2 => at.clone().prop_map(Step::Remove),
            1 => (at, 0..80_u64).prop_map(|(at, more)| Step::RemoveRange(at, at + more)),
        ]
    }

    proptest! {
        #[test]
        fn does_what_a_balanced_tree_does(steps in proptest::collection::vec(step(), 1..200)) {
            let (mut blocks, mut tree) = (Blocks::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(at, value) => {
                        prop_assert_eq!(blocks.insert(Offset(at), value), tree.insert(Offset(at), value));
                    }
                    Step::Remove(at) => {
                        prop_assert_eq!(blocks.get(Offset(at)), tree.get(&Offset(at)));
                        prop_assert_eq!(blocks.remove(Offset(at)), tree.remove(&Offset(at)));
                    }
                    Step::RemoveRange(first, last) => {
                        let range = OffsetRange { first: Offset(first), last: Offset(last) };
                        let inside: Vec<_> = tree.range(range.first..=range.last).map(|(k, v)| (*k, *v)).collect();
                        prop_assert_eq!(blocks.range(range).map(|(k, v)| (k, *v)).collect::<Vec<_>>(), inside.clone());
                        let mut removed = Vec::new();
                        let count = blocks.remove_range(range, |at, value| removed.push((at, value)));
                        prop_assert_eq!(count, inside.len() as u64);
                        prop_assert_eq!(removed, inside);
                        tree.retain(|at, _| *at < range.first || *at > range.last);
                    }
                }
                prop_assert_eq!(blocks.len(), tree.len());
                prop_assert!(blocks.iter().eq(tree.iter().map(|(at, value)| (*at, value))));
            }
        }
    }
}
