//! Appending, replacing, compacting and evicting against what Raft asks.

use super::*;

fn entry(index: u64, term: u64) -> Entry {
    let mut e = Entry::default();
    (e.index, e.term) = (index, term);
    e.data = vec![0; 100].into();
    e
}

fn log(terms: &[u64]) -> GroupStorage {
    let mut s = GroupStorage::new((Index(1), Term(1)), HardState::default(), Membership::default());
    let entries: Vec<Entry> = terms.iter().zip(2..).map(|(t, i)| entry(i, *t)).collect();
    s.append(&entries);
    s
}

fn asking() -> GetEntriesContext {
    GetEntriesContext::empty(true)
}

#[test]
fn an_overlap_replaces_and_terms_follow() {
    let mut s = log(&[1, 1, 2, 2]);
    s.append(&[entry(4, 3)]);
    assert_eq!((s.last, s.term_of(3), s.term_of(4), s.term_of(5)), (4, Some(1), Some(3), None));
    assert_eq!(s.entries(2, 5, None, asking()).unwrap().len(), 3);
}

#[test]
fn compaction_keeps_the_term_before_the_first() {
    let mut s = log(&[1, 1, 2, 2, 3]);
    s.set_applied(6, 3);
    s.compact(4);
    assert_eq!((s.first(), s.term_of(4), s.term_of(5), s.term_of(6)), (5, Some(2), Some(2), Some(3)));
    assert!(matches!(s.entries(4, 6, None, asking()), Err(Error::Store(StorageError::Compacted))));
}

#[test]
fn unapplied_entries_are_neither_compacted_nor_evicted() {
    let mut s = log(&[1, 1, 1]);
    s.set_applied(2, 1);
    s.compact(3);
    assert_eq!(s.first(), 2);
    s.evict(usize::MAX);
    assert_eq!(s.entries(3, 5, None, GetEntriesContext::empty(false)).unwrap().len(), 2);
}

#[test]
fn what_is_behind_the_tail_is_asked_for_once_and_then_served() {
    let mut s = log(&[1, 1, 1, 1]);
    s.set_applied(5, 1);
    s.evict(usize::MAX);
    for _ in 0..2 {
        let refused = s.entries(2, 6, None, asking());
        assert!(matches!(refused, Err(Error::Store(StorageError::LogTemporarilyUnavailable))));
    }
    let wanted = s.take_wanted();
    assert_eq!((wanted.len(), wanted[0].low, wanted[0].high), (1, Index(2), Index(6)));
    assert!(s.take_wanted().is_empty());
    assert_eq!(s.fetched(Index(2), vec![entry(2, 1), entry(3, 1)]).len(), 2);
    assert_eq!(s.entries(2, 6, None, asking()).unwrap().len(), 2);
    assert_eq!(s.entries(3, 6, None, asking()).unwrap().len(), 1);
}

#[test]
fn a_read_of_entries_with_another_term_is_not_served() {
    let mut s = log(&[1, 1]);
    s.set_applied(3, 1);
    s.evict(usize::MAX);
    let _ = s.entries(2, 4, None, asking());
    assert_eq!(s.fetched(Index(2), vec![entry(2, 9)]).len(), 1);
    assert!(s.entries(2, 4, None, asking()).is_err());
}

#[test]
fn sizes_limit_but_one_entry_always_comes() {
    let s = log(&[1, 1, 1]);
    assert_eq!(s.entries(2, 5, Some(1), asking()).unwrap().len(), 1);
    let two = 2 * entry_bytes(&entry(2, 1)) as u64;
    assert_eq!(s.entries(2, 5, Some(two), asking()).unwrap().len(), 2);
}

#[test]
fn a_snapshot_waits_until_its_receiver_is_a_member() {
    let mut s = log(&[1]);
    s.set_applied(2, 1);
    assert!(s.snapshot(0, 7).is_err());
    s.set_members(Membership::of_voters(vec![ReplicaId(7)]));
    assert_eq!(s.snapshot(0, 7).unwrap().get_metadata().index, 2);
}
