//! Blocks of index columns: round trips and damage.

use super::*;
use proptest::prelude::*;

fn any_row() -> impl Strategy<Value = Located> {
    let times = (any::<u32>(), prop::option::of(any::<i64>()), any::<Option<u32>>(), any::<Option<u64>>());
    let places = (0u64..1 << 40, any::<u32>(), 1u32..2_000_000, 0u64..9, 0u64..1 << 50, 0u32..1 << 30);
    let rest = (1u32..5, 0u64..3, any::<u8>(), prop_oneof![Just(0), any::<u64>()]);
    let parts = prop::collection::vec((any::<u64>(), any::<u32>(), any::<u32>()), 0..3);
    (times, places, rest, parts).prop_map(|((time, client, due, expiry), place, rest, parts)| {
        let (index, start, len, term, position, head) = place;
        let (count, gap, priority, key_hash) = rest;
        let source = |(index, start, len)| Source { index: Index(index), start, len };
        Located {
            row: Row {
                log: LogId(5),
                offset: Offset(gap),
                count,
                time: LogTime(u64::from(time)),
                client_time_ms: client.unwrap_or(NO_CLIENT_TIME),
                due: LogTime(due.map_or(0, u64::from)),
                expiry: expiry.map_or(NEVER, LogTime),
                priority,
                key_hash,
                record: source((index, start, len)),
                parts: parts.into_iter().map(source).collect(),
            },
            term: Term(term),
            position,
            head,
        }
    })
}

fn ascending(mut rows: Vec<Located>) -> Vec<Located> {
    let mut next = 100;
    for located in &mut rows {
        located.row.offset = Offset(next + located.row.offset.0);
        next = located.row.end().0;
    }
    rows
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_was_encoded_is_decoded(rows in prop::collection::vec(any_row(), 0..100)) {
        let rows = ascending(rows);
        prop_assert_eq!(decode(LogId(5), &encode(&rows)).unwrap(), rows);
    }

    #[test]
    fn every_flip_is_noticed(
        rows in prop::collection::vec(any_row(), 1..5),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
    ) {
        let mut bytes = encode(&ascending(rows));
        let at = at.index(bytes.len());
        bytes[at] ^= 1u8 << bit;
        prop_assert!(decode(LogId(5), &bytes).is_err());
    }

    /// A block that was written with a right checksum by something else must not panic either.
    #[test]
    fn garbage_with_a_right_checksum_never_panics(
        garbage in prop::collection::vec(any::<u8>(), 0..200),
        n in 0u8..200,
    ) {
        let mut bytes = vec![0, 0, 0, 0, VERSION, n];
        bytes.extend(garbage);
        let crc = crc32c::crc32c(&bytes[4..]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        let _ = decode(LogId(5), &bytes);
    }
}
