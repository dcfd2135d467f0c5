//! Sets of offsets against a plain set.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeSet;

const SPAN: u64 = 3 * CHUNK_LEN;

fn model_runs(model: &BTreeSet<u64>, first: u64, last: u64) -> u64 {
    model.range(first..=last).count() as u64
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn behaves_like_a_tree_of_numbers(
        steps in prop::collection::vec((0..SPAN, 0u64..3_000, 0u8..6), 1..40),
        wide in prop::option::of((0..SPAN, 0..SPAN)),
    ) {
        let (mut set, mut model) = (OffsetSet::default(), BTreeSet::new());
        let mut steps = steps;
        if let Some((first, len)) = wide {
            steps.insert(steps.len() / 2, (first, len, 0));
        }
        for (first, len, what) in steps {
            let len = if what % 2 == 1 { len % 3 } else { len };
            let last = first + len;
            if what == 5 {
                set.remove(first, last);
                for at in first..=last {
                    model.remove(&at);
                }
            } else {
                let mut new = 0;
                set.insert(first, last, &mut |a, b| new += b - a + 1);
                prop_assert_eq!(new, (first..=last).filter(|at| model.insert(*at)).count() as u64);
            }
            prop_assert_eq!(set.len(), model.len() as u64);
            prop_assert_eq!(set.count(first / 2, last), model_runs(&model, first / 2, last));
            prop_assert_eq!(set.contains(first), model.contains(&first));
            prop_assert_eq!(set.next(first), model.range(first..).next().copied());
            let absent = (first..).find(|at| !model.contains(at));
            prop_assert_eq!(set.next_absent(first), absent);
        }
        let mut bytes = Vec::new();
        set.encode(&mut bytes);
        let read = OffsetSet::decode(&mut Reader::new(bytes.into(), "set")).unwrap();
        prop_assert_eq!(read.len(), set.len());
        prop_assert_eq!(read.count_common(&set, 0, SPAN * 4), set.len());
        prop_assert_eq!(read.count_common(&set, 7, SPAN), set.count(7, SPAN));
    }
}

#[test]
fn the_floor_moves_over_what_is_in_the_set() {
    let mut set = OffsetSet::default();
    set.insert(10, 200_000, &mut |_, _| {});
    set.insert(300_000, 300_000, &mut |_, _| {});
    assert_eq!(set.advance(10), 200_001);
    assert_eq!(set.next(200_001), Some(300_000));
}

#[test]
fn every_second_of_ten_million_costs_little_more_than_a_bit_each() {
    let mut set = OffsetSet::default();
    for at in (0..10_000_000).step_by(2) {
        set.insert(at, at, &mut |_, _| {});
    }
    let mut bytes = Vec::new();
    set.encode(&mut bytes);
    assert!(bytes.len() < 1_300_000, "{} bytes", bytes.len());
    assert_eq!(set.len(), 5_000_000);
}
