//! The set against a plain one, in both forms and over the change between them.

use super::*;
use std::collections::BTreeSet;

fn random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *seed >> 33
}

fn bytes_of(set: &ChunkSet) -> BytesMut {
    let mut out = BytesMut::new();
    set.encode(&mut out);
    out
}

fn check(set: &ChunkSet, model: &BTreeSet<u16>, seed: &mut u64) {
    assert_eq!(set.count() as usize, model.len());
    for _ in 0..20 {
        let at = random(seed) as u16;
        assert_eq!(set.contains(at), model.contains(&at));
        assert_eq!(set.next_present(at), model.range(at..).next().copied());
        assert_eq!(set.next_absent(at), (at..=u16::MAX).find(|at| !model.contains(at)));
        assert_eq!(set.count_below(at) as usize, model.range(..at).count());
    }
}

#[test]
fn agrees_with_a_plain_set_in_both_forms() {
    for (seed, longest) in [(1, 1), (2, 3), (3, 300), (4, 20_000)] {
        let mut seed = seed;
        let (mut set, mut model) = (ChunkSet::new(), BTreeSet::new());
        for step in 0..1_500 {
            let first = random(&mut seed) as u16;
            let last = first.saturating_add((random(&mut seed) % longest) as u16);
            if random(&mut seed).is_multiple_of(4) {
                set.remove(first, last);
                model.retain(|at| *at < first || *at > last);
            } else if random(&mut seed).is_multiple_of(4) {
                set.cover(first, last);
                model.extend(first..=last);
            } else {
                let mut new = Vec::new();
                set.insert(first, last, &mut |a, b| new.extend(a..=b));
                let expected: Vec<_> = (first..=last).filter(|at| model.insert(*at)).collect();
                assert_eq!(new, expected);
            }
            if step % 300 == 0 {
                check(&set, &model, &mut seed);
                let mut r = Reader::new(bytes_of(&set).freeze(), "test");
                let again = ChunkSet::decode(&mut r).unwrap();
                check(&again, &model, &mut seed);
                assert_eq!(bytes_of(&again), bytes_of(&set));
            }
        }
    }
}

#[test]
fn subtracts_as_plain_sets_do() {
    let mut seed = 9;
    let (mut a, mut b) = (ChunkSet::new(), ChunkSet::new());
    for _ in 0..900 {
        let first = random(&mut seed) as u16;
        a.insert(first, first.saturating_add(9), &mut |_, _| {});
        b.insert(first.wrapping_add(5), first.wrapping_add(5), &mut |_, _| {});
    }
    let expected: Vec<u16> = (0..=u16::MAX).filter(|at| a.contains(*at) && !b.contains(*at)).collect();
    a.subtract(&b);
    assert_eq!((0..=u16::MAX).filter(|at| a.contains(*at)).collect::<Vec<_>>(), expected);
    assert_eq!(a.count() as usize, expected.len());
}

#[test]
fn a_full_chunk_is_one_run() {
    let mut set = ChunkSet::new();
    (0..=u16::MAX).rev().step_by(2).for_each(|at| set.insert(at, at, &mut |_, _| {}));
    (0..=u16::MAX).step_by(2).for_each(|at| set.insert(at, at, &mut |_, _| {}));
    assert_eq!((set.count(), bytes_of(&set).len()), (65_536, 6));
    assert_eq!((set.next_absent(0), set.next_present(77)), (None, Some(77)));
}
