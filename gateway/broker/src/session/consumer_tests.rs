//! Consumers over changes of leader and stream.

use super::consumers::*;
use super::pieces::Pieces;
use crate::api::StartAt;
use bytes::Bytes;
use longshore_proto::v1::{self, gateway_item::Item};
use longshore_wire::{CursorId, LeaseId, LogId, Offset, ShardId, Term};

const LOG: LogId = LogId(9);

fn wanted(start: Option<StartAt>) -> Wanted {
    Wanted {
        log: LOG,
        cursor: CursorId(0),
        start,
        exclusive: false,
        single_active: false,
        priority: 0,
        credit_messages: 10,
        credit_bytes: 1000,
    }
}

fn delivery(consumer: u64, offset: u64, lease: u64) -> v1::Delivery {
    v1::Delivery { consumer, log: LOG.0, offset, lease, ..v1::Delivery::default() }
}

fn attached(consumer: u64, term: u64, attempt: u64, refused: Option<v1::Refused>) -> v1::Attached {
    v1::Attached { shard: 1, consumer, term, refused: refused.map(i32::from), attempt }
}

fn with_consumer(start: Option<StartAt>) -> Consumers<&'static str> {
    let mut consumers = Consumers::new(ShardId(1), NAMES_MAX);
    let attach = consumers.attach(5, wanted(start), "me");
    assert_eq!((attach.credit_messages, attach.again, attach.held.len()), (10, false, 0));
    assert_eq!(consumers.attached(&attached(5, 3, 1, None)), (AttachResult::Made, Some("me")));
    consumers
}

fn attaches(items: &[v1::GatewayItem]) -> Vec<v1::Attach> {
    let attaches = items.iter().filter_map(|item| match &item.item {
        Some(Item::Attach(attach)) => Some(attach.clone()),
        _ => None,
    });
    attaches.collect()
}

fn holds(items: &[v1::GatewayItem]) -> Vec<u64> {
    let holds = items.iter().filter_map(|item| match &item.item {
        Some(Item::Hold(hold)) => Some(hold.held.iter().map(|held| held.offset)),
        _ => None,
    });
    holds.flatten().collect()
}

#[test]
fn a_new_leader_hears_what_is_held_and_what_credit_is_left() {
    let mut consumers = with_consumer(None);
    for offset in 0..4 {
        let verdict = consumers.delivery(Term(3), &delivery(5, offset, 100 + offset), 50);
        assert_eq!(verdict, Verdict::Deliver("me"));
    }
    assert!(consumers.settled(Some(5), LOG, Offset(1), LeaseId(101)));
    assert!(!consumers.settled(Some(5), LOG, Offset(1), LeaseId(101)), "settled twice");
    assert!(!consumers.settled(Some(5), LOG, Offset(2), LeaseId(1)), "another lease's settlement");
    let items = consumers.attach_all(|_| false);
    let attach = &attaches(&items)[0];
    assert_eq!((attach.credit_messages, attach.credit_bytes, attach.again), (6, 800, true));
    assert_eq!(
        attach.held.iter().map(|h| h.offset).collect::<Vec<_>>(),
        [0, 1, 2, 3],
        "1 is settled without an outcome"
    );
    assert!(holds(&items).is_empty(), "the consumer names it");
    assert!(matches!(items.last().unwrap().item, Some(Item::Reported(_))), "last of all");
    consumers.settle_done(LOG, Term(3), &[(Offset(1), LeaseId(101))]);
    let held = attaches(&consumers.attach_all(|_| false))[0].held.len();
    assert_eq!(held, 3);
    assert_eq!(consumers.attached(&attached(5, 4, 3, None)), (AttachResult::Back, Some("me")));
    let credit = consumers.credit(5, 3, 30).unwrap();
    assert_eq!((credit.messages, credit.bytes), (9, 830), "cumulative since the last attach");
}

/// The leader ended the first lease by itself, and the message came again before that lease's own end had its outcome.
#[test]
fn an_earlier_leases_outcome_does_not_end_a_later_ones_settlement() {
    let mut consumers = with_consumer(None);
    for lease in [100, 200] {
        consumers.delivery(Term(3), &delivery(5, 1, lease), 50);
        assert!(consumers.settled(Some(5), LOG, Offset(1), LeaseId(lease)));
    }
    consumers.settle_done(LOG, Term(3), &[(Offset(1), LeaseId(100))]);
    let held = &attaches(&consumers.attach_all(|_| false))[0].held;
    assert_eq!(held.iter().map(|held| held.lease).collect::<Vec<_>>(), [200]);
    consumers.settle_done(LOG, Term(3), &[(Offset(1), LeaseId(200))]);
    assert!(attaches(&consumers.attach_all(|_| false))[0].held.is_empty());
}

#[test]
fn deliveries_of_an_older_term_are_dropped() {
    let mut consumers = with_consumer(None);
    consumers.seen(Term(4));
    assert_eq!(consumers.delivery(Term(3), &delivery(5, 0, 1), 1), Verdict::Drop);
    assert_eq!(consumers.delivery(Term(4), &delivery(5, 0, 2), 1), Verdict::Deliver("me"));
    assert_eq!(consumers.attached(&attached(5, 3, 1, None)).0, AttachResult::Nobody);
}

#[test]
fn what_comes_before_the_answer_to_the_newest_attach_is_dropped() {
    let mut consumers = with_consumer(None);
    consumers.attach_all(|_| false);
    assert_eq!(attaches(&consumers.unanswered(|_| false))[0].attempt, 3);
    assert_eq!(consumers.attached(&attached(5, 3, 2, None)).0, AttachResult::Nobody, "an older attach's");
    assert_eq!(consumers.delivery(Term(3), &delivery(5, 0, 1), 1), Verdict::Drop, "taken back by the third");
    assert_eq!(consumers.attached(&attached(5, 3, 3, None)).0, AttachResult::Back);
    assert_eq!(consumers.delivery(Term(3), &delivery(5, 0, 2), 1), Verdict::Deliver("me"));
}

#[test]
fn what_was_on_its_way_to_a_consumer_that_ended_goes_back() {
    let mut consumers = with_consumer(None);
    consumers.delivery(Term(3), &delivery(5, 0, 1), 1);
    consumers.detach(5, true).unwrap();
    assert_eq!(consumers.delivery(Term(3), &delivery(5, 1, 2), 1), Verdict::Return);
    assert_eq!(holds(&consumers.attach_all(|_| false)), [0], "the channel still owes this one");
    assert!(consumers.settled(None, LOG, Offset(0), LeaseId(1)));

    let mut consumers = with_consumer(None);
    consumers.detach(5, false).unwrap();
    assert_eq!(consumers.delivery(Term(3), &delivery(5, 1, 2), 1), Verdict::Drop, "its leader returns it");
}

#[test]
fn what_a_get_took_is_given_back_with_its_connection() {
    let mut consumers: Consumers<&str> = Consumers::new(ShardId(1), NAMES_MAX);
    consumers.got(Term(2), &delivery(0, 7, 70), "me");
    consumers.got(Term(2), &delivery(0, 8, 80), "you");
    assert_eq!(consumers.take_loose(|owner| *owner == "me"), [(LOG, Term(2), Offset(7), LeaseId(70))]);
    assert_eq!(holds(&consumers.attach_all(|_| false)), [7, 8], "until its return has an outcome");
    assert!(consumers.settled(None, LOG, Offset(8), LeaseId(80)));
}

#[test]
fn a_busy_leader_is_asked_again_and_a_refusal_ends_the_consumer() {
    let mut consumers = Consumers::new(ShardId(1), NAMES_MAX);
    consumers.attach(5, wanted(None), "me");
    let busy = attached(5, 1, 1, Some(v1::Refused::Busy));
    assert_eq!(consumers.attached(&busy).0, AttachResult::Later);
    assert_eq!(attaches(&consumers.unanswered(|_| false)).len(), 1);
    let exclusive = attached(5, 1, 2, Some(v1::Refused::Exclusive));
    assert_eq!(consumers.attached(&exclusive).0, AttachResult::Refused(v1::Refused::Exclusive));
    assert!(consumers.is_empty());
}

#[test]
fn a_streams_reader_goes_on_behind_what_it_has() {
    let mut consumers = with_consumer(Some(StartAt::First));
    consumers.delivery(Term(3), &delivery(5, 41, 0), 1);
    let attach = attaches(&consumers.attach_all(|_| false)).remove(0);
    assert_eq!(attach.start.unwrap().at, Some(v1::start_at::At::Offset(42)));
    assert!(attach.held.is_empty());
}

#[test]
fn pieces_make_one_delivery() {
    let mut pieces = Pieces::default();
    let head = v1::Delivery { record: Bytes::from_static(b"r"), body_bytes: 5, ..delivery(1, 2, 3) };
    let piece = |bytes: &'static [u8]| v1::Delivery { piece: Bytes::from_static(bytes), ..delivery(1, 2, 3) };
    assert_eq!(pieces.take(head.clone()), None);
    assert_eq!(pieces.take(piece(b"abc")), None);
    let (whole, parts) = pieces.take(piece(b"de")).unwrap();
    assert_eq!((whole, parts), (head.clone(), vec![Bytes::from_static(b"abc"), Bytes::from_static(b"de")]));
    pieces.take(head);
    pieces.clear();
    assert_eq!(pieces.take(piece(b"abc")), None, "of a leader before");
    assert!(pieces.take(delivery(1, 9, 9)).is_some(), "small ones pass");
}

/// A consumer without prefetch may hold more than one item can name: the leader would never hear of any of it.
#[test]
fn what_does_not_fit_into_an_attach_is_named_before_it() {
    let mut consumers = Consumers::new(ShardId(1), 3);
    consumers.attach(5, wanted(None), "me");
    consumers.attached(&attached(5, 3, 1, None));
    for offset in 0..8 {
        consumers.delivery(Term(3), &delivery(5, offset, 100 + offset), 50);
    }
    let items = consumers.attach_all(|_| false);
    let named = items.iter().map(|item| match &item.item {
        Some(Item::Hold(hold)) => (hold.consumer, hold.held.iter().map(|held| held.offset).collect()),
        Some(Item::Attach(attach)) => (0, attach.held.iter().map(|held| held.offset).collect()),
        _ => (0, Vec::new()),
    });
    let named: Vec<(u64, Vec<u64>)> = named.collect();
    assert_eq!(named, [(5, vec![0, 1, 2]), (5, vec![3, 4, 5]), (0, vec![6, 7]), (0, vec![])]);
    assert_eq!(consumers.unanswered(|_| false).len(), 3);
    assert_eq!(consumers.attach_again(5, LOG).len(), 3);
}

/// However long a leader takes to read what is named, an attach comes to rest before it is sent again.
#[test]
fn the_pauses_between_attaches_without_an_answer_grow() {
    let mut consumers = with_consumer(None);
    consumers.attach_all(|_| false);
    let sent = |consumers: &mut Consumers<&'static str>| consumers.unanswered(|_| false).len();
    let calls: Vec<usize> = (0..12).map(|_| sent(&mut consumers)).collect();
    assert_eq!(calls, [1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0]);
    assert_eq!(consumers.attached(&attached(5, 3, 6, Some(v1::Refused::Busy))).0, AttachResult::Later);
    assert_eq!(sent(&mut consumers), 1, "an answer came");
}
