//! Tests of the queue of deliveries that wait for bodies.

use super::*;
use crate::links::tests::row;

const NONE: [u64; 0] = [];

fn slot(offset: u64, consumer: u64) -> Slot {
    let delivery = v1::Delivery { consumer, offset, ..v1::Delivery::default() };
    Slot::stored(ShardId(1), Term(1), SlotKind::Consumer, delivery, row(offset))
}

fn record(offset: u64) -> StoredRecord {
    StoredRecord { row: row(offset), record: offset.to_string().into(), parts: Vec::new() }
}

fn asked(queue: &mut Queue) -> Vec<u64> {
    queue.ask().into_iter().map(|(_, offset)| offset.0).collect()
}

fn popped(queue: &mut Queue) -> Vec<u64> {
    std::iter::from_fn(|| queue.pop_ready()).map(|(slot, _)| slot.delivery.offset).collect()
}

#[test]
fn deliveries_leave_in_order_though_bodies_come_in_any() {
    let mut queue = Queue::default();
    (0..4).for_each(|offset| queue.push(slot(offset, 1)));
    assert_eq!(asked(&mut queue), [0, 1, 2, 3]);
    for offset in [2, 1, 3] {
        queue.body(&record(offset));
        assert_eq!(popped(&mut queue), NONE, "nothing overtakes 0");
    }
    queue.body(&record(0));
    assert_eq!(popped(&mut queue), [0, 1, 2, 3]);
    assert!(queue.is_empty());
}

#[test]
fn asking_goes_on_as_the_queue_moves_and_never_too_far_ahead() {
    let mut queue = Queue::default();
    (0..READS_AHEAD_MAX + 3).for_each(|offset| queue.push(slot(offset, 1)));
    assert_eq!(asked(&mut queue).len() as u64, READS_AHEAD_MAX);
    assert_eq!(asked(&mut queue), NONE);
    assert!(!queue.wants_more());
    (0..2).for_each(|offset| queue.body(&record(offset)));
    assert_eq!(popped(&mut queue), [0, 1]);
    assert!(queue.wants_more());
    assert_eq!(asked(&mut queue), [READS_AHEAD_MAX, READS_AHEAD_MAX + 1]);
}

#[test]
fn what_did_not_come_is_asked_for_again_and_nothing_else() {
    let mut queue = Queue::default();
    (0..4).for_each(|offset| queue.push(slot(offset, 1)));
    queue.ask();
    queue.body(&record(1));
    queue.ask_again();
    assert_eq!(asked(&mut queue), [0, 2, 3]);
}

#[test]
fn one_record_serves_every_delivery_that_waits_for_it() {
    let mut queue = Queue::default();
    queue.push(slot(5, 1));
    queue.push(slot(5, 2));
    queue.ask();
    queue.body(&record(5));
    assert_eq!(popped(&mut queue), [5, 5]);
}

#[test]
fn taking_a_consumer_away_leaves_the_others_where_they_were() {
    let mut queue = Queue::default();
    (0..6).for_each(|offset| queue.push(slot(offset, offset % 2)));
    queue.ask();
    (0..3).for_each(|offset| queue.body(&record(offset)));
    assert_eq!(popped(&mut queue), [0, 1, 2]);
    queue.push(slot(6, 0));
    queue.retain(|slot| slot.consumer() == 0);
    assert_eq!(asked(&mut queue), [6]);
    queue.body(&record(6));
    assert_eq!(popped(&mut queue), NONE);
    queue.body(&record(4));
    assert_eq!(popped(&mut queue), [4, 6]);
}

#[test]
fn what_waits_for_a_record_that_is_gone_can_be_taken_out_of_the_way() {
    let mut queue = Queue::default();
    (0..3).for_each(|offset| queue.push(slot(offset, 1)));
    queue.ask();
    [1, 2].into_iter().for_each(|offset| queue.body(&record(offset)));
    assert!(queue.waits_for(Offset(0)) && !queue.waits_for(Offset(1)));
    queue.retain(|slot| !slot.waits_for(Offset(0)));
    assert_eq!(popped(&mut queue), [1, 2]);
}
