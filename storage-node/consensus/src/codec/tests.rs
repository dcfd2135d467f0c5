//! Round trips, refusals, and mutated frames that must never panic.

use super::conf::{Change, Step};
use super::message::{decode, encode, encoded_len, split_append};
use super::*;
use crate::api::Membership;
use crate::rng::Rng;
use raft::eraftpb::{Entry, EntryType, MessageType};

fn entry(index: u64, len: usize) -> Entry {
    Entry {
        term: 3,
        index,
        context: Bytes::from_static(b"ctx"),
        data: vec![index as u8; len].into(),
        ..Entry::default()
    }
}

fn append(first: u64, lens: &[usize]) -> Message {
    let mut m = Message::default();
    m.set_msg_type(MessageType::MsgAppend);
    (m.to, m.from, m.term, m.log_term, m.index, m.commit) = (1 << 16, 2 << 16, 3, 2, first - 1, first - 1);
    m.entries = lens.iter().enumerate().map(|(i, l)| entry(first + i as u64, *l)).collect::<Vec<_>>().into();
    m
}

fn sample_frame() -> Bytes {
    let mut w = FrameWriter::default();
    w.beats(
        7,
        &[Beat {
            group: ShardId(3),
            to: ReplicaId(1),
            from: ReplicaId(2),
            term: Term(3),
            commit: Index(4),
            floor: Index(2),
        }],
    );
    w.answers(
        6,
        NodeState { wall: WallMs(1_700_000_000_000), short_of_space: true },
        &[Answer {
            group: ShardId(3),
            to: ReplicaId(2),
            from: ReplicaId(1),
            term: Term(3),
            commit: Index(4),
        }],
    );
    w.message(ShardId(9), &append(5, &[10, 0, 200]));
    let frames = w.finish();
    assert_eq!(frames.len(), 1);
    frames[0].clone()
}

#[test]
fn a_frame_comes_back_as_it_went() {
    let sections = decode_frame(sample_frame()).unwrap();
    assert_eq!(sections.len(), 3);
    assert!(matches!(&sections[0], Section::Beats { round: 7, beats } if beats[0].floor == Index(2)));
    let said = NodeState { wall: WallMs(1_700_000_000_000), short_of_space: true };
    assert!(matches!(&sections[1], Section::Answers { round: 6, state, .. } if *state == said));
    assert_eq!(sections[2], Section::Message { group: ShardId(9), message: append(5, &[10, 0, 200]) });
}

#[test]
fn an_empty_round_still_travels() {
    let mut w = FrameWriter::default();
    w.beats(1, &[]);
    w.answers(1, NodeState { wall: WallMs(5), short_of_space: false }, &[]);
    let sections = decode_frame(w.finish()[0].clone()).unwrap();
    assert_eq!(sections.len(), 2);
}

#[test]
fn a_flipped_bit_is_noticed() {
    let good = sample_frame();
    for bit in 0..good.len() * 8 {
        let mut bad = good.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(decode_frame(bad.into()).is_err(), "bit {bit}");
    }
}

#[test]
fn mutated_bodies_with_a_right_checksum_never_panic() {
    let good = sample_frame();
    let mut rng = Rng::new(1);
    for _ in 0..20_000 {
        let mut bad = good.to_vec();
        for _ in 0..rng.range(1, 4) {
            let at = rng.range(HEADER_BYTES, bad.len());
            bad[at] = rng.range(0, 256) as u8;
        }
        bad.truncate(rng.range(HEADER_BYTES, bad.len() + 1));
        let crc = crc32c::crc32c(&bad[HEADER_BYTES..]).to_le_bytes();
        bad[1..HEADER_BYTES].copy_from_slice(&crc);
        let _ = decode_frame(bad.into());
    }
}

#[test]
fn a_gap_between_entries_is_refused() {
    let mut m = append(5, &[1, 1]);
    m.mut_entries()[1].index = 7;
    let mut out = BytesMut::new();
    encode(&m, &mut out);
    assert_eq!(out.len(), encoded_len(&m));
    assert!(decode(&mut Reader::new(out.freeze(), "test")).is_err());
}

#[test]
fn what_a_replica_says_to_itself_does_not_travel() {
    for t in [MessageType::MsgHup, MessageType::MsgPropose, MessageType::MsgSnapshot, MessageType::MsgBeat] {
        assert!(!message::travels(t));
    }
}

#[test]
fn frames_stay_below_their_bound() {
    let mut w = FrameWriter::default();
    for i in 0..10 {
        w.message(ShardId(1), &append(5 + i, &[300 << 10]));
    }
    let frames = w.finish();
    assert!(frames.len() > 2 && frames.iter().all(|f| f.len() <= FRAME_BYTES_MAX));
    let total: usize = frames.into_iter().map(|f| decode_frame(f).unwrap().len()).sum();
    assert_eq!(total, 10);
}

#[test]
fn a_large_append_is_cut_into_appends_that_follow_each_other() {
    let parts = split_append(append(10, &[600, 600, 1500, 10, 10]), 1000);
    let firsts: Vec<_> = parts.iter().map(|p| (p.index, p.log_term, p.entries.len())).collect();
    assert_eq!(firsts, vec![(9, 2, 1), (10, 3, 1), (11, 3, 1), (12, 3, 2)]);
}

#[test]
fn changes_and_memberships_come_back() {
    let change = Change::Enter(vec![Step::Remove(ReplicaId(1)), Step::AddLearner(ReplicaId(65537))]);
    let e = change.entry().unwrap();
    assert_eq!(e.get_entry_type(), EntryType::EntryConfChangeV2);
    assert_eq!(Change::decode(e.context).unwrap(), change);
    assert_eq!(Change::decode(Change::Leave.entry().unwrap().context).unwrap(), Change::Leave);
    assert!(Change::Leave.library_form().leave_joint());

    let m = Membership {
        voters: vec![ReplicaId(1), ReplicaId(2)],
        outgoing: vec![ReplicaId(3)],
        learners: vec![ReplicaId(4)],
        learners_next: vec![],
    };
    assert_eq!(Membership::decode(m.encode()).unwrap(), m);
    assert_eq!(Membership::of(&m.conf_state()), m);
    assert!(Membership::decode(m.encode().slice(..9)).is_err());
}
