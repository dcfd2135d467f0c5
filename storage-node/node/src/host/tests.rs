//! What a host does for groups and for meta between turns.

#![allow(clippy::unwrap_used, reason = "a test may end by it")]

use super::*;
use crate::testing;
use longshore_checkpoint::Mark;
use longshore_wire::LogTime;

const GROUP: ShardId = ShardId(3);

#[test]
fn a_new_replica_of_meta_begins_empty_and_not_while_the_old_ones_checkpoint_is_written() {
    let (mut host, mut store) = (testing::host(Shard::new(GROUP)), testing::store());
    let mut out = Output::default();
    let replica = ReplicaId::new(host.node, 2);
    host.damaged.insert(META);
    host.meta.uncheckpointed_bytes = 5;
    let mark = Mark { index: Index(9), term: Term(1), log_time: LogTime(0), conf: Bytes::new() };
    let job = host.pages.begin(META, mark, Vec::new()).unwrap();
    assert!(!host.join(&mut store, META, replica, Mono(0), &mut out).unwrap());
    assert_eq!(store.groups().count(), 0);

    host.pages.job_done(job.run()).unwrap();
    assert!(host.join(&mut store, META, replica, Mono(0), &mut out).unwrap());
    assert_eq!(store.groups().collect::<Vec<_>>(), [META]);
    assert_eq!(host.meta.uncheckpointed_bytes, 0);
    assert!(!host.damaged.contains(&META) && host.pages.mark(META).is_none());
}
