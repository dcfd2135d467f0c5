//! What a host does for groups and for meta between turns.

#![allow(clippy::unwrap_used, reason = "a test may end by it")]

use super::*;
use crate::io::LinkItem;
use crate::testing;
use longshore_checkpoint::Mark;
use longshore_proto::v1::{MetaCommand, Queue, Span};
use longshore_wire::batch::{BatchBuilder, Item};
use longshore_wire::context::EntryContext;
use longshore_wire::spec::LogSpec;
use longshore_wire::{BatchNo, LogTime, Revision, SessionId};
use prost::Message;

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

#[test]
fn what_was_staged_goes_once_a_checkpoint_holds_it() {
    let (mut host, mut store) = (testing::host(Shard::new(GROUP)), testing::store());
    let staged = ShardId(GROUP.0 | STAGED);
    let mark = |index| Mark { index: Index(index), term: Term(1), log_time: LogTime(0), conf: Bytes::new() };
    let job = host.pages.replace(staged, mark(9), BTreeMap::new()).unwrap();
    host.checkpoint_done(&mut store, job.run(), &mut Vec::new(), &mut Output::default()).unwrap();
    for (index, tasks) in [(8, 0), (9, 1)] {
        let job = host.pages.replace(GROUP, mark(index), BTreeMap::new()).unwrap();
        let mut out = Output::default();
        host.checkpoint_done(&mut store, job.run(), &mut Vec::new(), &mut out).unwrap();
        assert_eq!(out.tasks.len(), tasks);
    }
    assert!(host.pages.mark(staged).is_none());
}

fn log() -> LogId {
    LogId::transient(GROUP, 7)
}

fn apply(host: &mut Host, index: u64, command: Command) {
    let data = MetaCommand { command: Some(command), ..MetaCommand::default() }.encode_to_vec();
    host.apply(META, Index(index), Term(1), &EntryContext::default().encode(), &data.into());
}

/// Meta knows the name of a transient queue whose log is `log`.
fn claimed(log: LogId) -> Host {
    let mut host = testing::host(Shard::new(GROUP));
    let node = |id| v1::StorageNode {
        id,
        address: format!("node{id}:7400"),
        identity: Bytes::from(vec![id as u8]),
        ..v1::StorageNode::default()
    };
    let administrator = v1::User { name: "admin".into(), administrator: true, ..v1::User::default() };
    let form = v1::FormCluster {
        cluster: "test".into(),
        shards: 8,
        nodes: (1..=3).map(node).collect(),
        administrator: Some(administrator),
    };
    apply(&mut host, 1, Command::FormCluster(form));
    let spans = vec![Span { from_offset: 0, shard: GROUP.0 }];
    let queue = Queue {
        namespace: 1,
        name: "q".into(),
        log: log.0,
        spans,
        kind: "classic".into(),
        ..Queue::default()
    };
    apply(&mut host, 2, Command::DeclareQueue(v1::DeclareQueue { queue: Some(queue) }));
    assert!(host.meta.meta.queue(1, "q").is_some());
    host.shards.get_mut(&GROUP).unwrap().role = Role::Leader { term: Term(4) };
    host
}

fn wanted(host: &mut Host) -> Vec<Command> {
    std::mem::take(&mut host.meta.wanted).into_iter().filter_map(|command| command.command).collect()
}

#[test]
fn the_name_of_a_transient_queue_that_ended_is_taken_back_until_meta_has_done_so() {
    let mut host = claimed(log());
    host.transient_gone(GROUP, log(), NamespaceId(1), &Bytes::from_static(b"q"));
    // What was sent first got lost.
    for _ in 0..2 {
        host.tend_claims();
        let delete = v1::DeleteQueue { namespace: 1, name: "q".into(), log: log().0 };
        assert_eq!(wanted(&mut host), [Command::DeleteQueue(delete)]);
    }
    apply(
        &mut host,
        3,
        Command::DeleteQueue(v1::DeleteQueue { namespace: 1, name: "q".into(), log: log().0 }),
    );
    host.tend_claims();
    assert!(wanted(&mut host).is_empty() && host.gone.is_empty());
}

#[test]
fn a_name_is_not_taken_back_from_a_queue_that_another_leader_has() {
    let mut host = claimed(log());
    host.transient_gone(GROUP, log(), NamespaceId(1), &Bytes::from_static(b"q"));
    host.shards.get_mut(&GROUP).unwrap().role = Role::Leader { term: Term(6) };
    host.tend_claims();
    assert!(wanted(&mut host).is_empty() && host.gone.is_empty());

    let mut moved = claimed(LogId::transient(ShardId(4), 1));
    moved.transient_gone(GROUP, log(), NamespaceId(1), &Bytes::from_static(b"q"));
    moved.tend_claims();
    assert!(wanted(&mut moved).is_empty());
}

/// What links were told since the last call.
fn answers(host: &mut Host) -> Vec<(LinkId, u64, Option<answer::Result>)> {
    let mut items = Vec::new();
    host.links.take(&mut items);
    let answer = |item: LinkItem| match item.item {
        node_item::Item::Answer(answer) => Some((item.link, answer.request, answer.result)),
        _ => None,
    };
    items.into_iter().filter_map(answer).collect()
}

#[test]
fn who_waits_for_a_log_that_is_dropped_before_it_is_made_hears_so() {
    let mut host = testing::host(Shard::new(GROUP));
    let (log, link, gone) = (LogId(9), LinkId(5), LinkId(6));
    host.links.open(link, SessionId(3));
    host.links.open(gone, SessionId(4));
    let shard = host.shards.get_mut(&GROUP).unwrap();
    (shard.role, shard.making) = (Role::Leader { term: Term(1) }, [log].into());
    for waiting in [&mut host.waiting_for_log, &mut host.waiting_for_purge] {
        waiting.insert((GROUP, log), vec![(link, 1), (gone, 2)]);
    }
    host.link_closed(gone);

    let (mut drop, mut create) = (BatchBuilder::new(SessionId(0)), BatchBuilder::new(SessionId(0)));
    drop.push(&Item::DropLog { log, revision: Revision(1) });
    create.push(&Item::CreateLog { log, spec: LogSpec::QUEUE });
    let context = EntryContext::default().encode();
    host.apply(GROUP, Index(1), Term(1), &context, &drop.finish(BatchNo(0)));
    assert!(answers(&mut host).is_empty(), "it never was");
    host.apply(GROUP, Index(2), Term(1), &context, &create.finish(BatchNo(0)));
    let refused = answer::Result::Refused(v1::Refused::UnknownLog.into());
    assert_eq!(answers(&mut host), [(link, 1, Some(refused))]);
    assert!(host.waiting_for_log.is_empty() && host.shards[&GROUP].making.is_empty());
}
