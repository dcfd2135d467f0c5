//! Counts and lengths have ends; the log of changes too; pages that are no state are refused.

use crate::common::{Live, form};
use bytes::Bytes;
use longshore_meta::limits::*;
use longshore_meta::{Meta, RestoreError};
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::*;
use longshore_wire::{NodeId, ReplicaId, Revision, SessionId, ShardId};
use prost::Message;

fn live() -> Live {
    let mut live = Live::new();
    live.submit(form(1, 1, &[]));
    live
}

fn many(commands: impl Iterator<Item = Command>) -> Command {
    let boxed = |command| MetaCommand { command: Some(command), ..MetaCommand::default() };
    Command::Many(Many { commands: commands.map(boxed).collect() })
}

fn namespace(n: usize) -> Command {
    Command::PutNamespace(PutNamespace { name: format!("n{n}") })
}

fn queue(name: String) -> Command {
    let queue = Queue { namespace: 1, name, durable: true, ..Queue::default() };
    Command::DeclareQueue(DeclareQueue { queue: Some(queue) })
}

#[test]
fn a_count_at_its_limit_refuses_one_more() {
    let mut live = live();
    live.submit(many((1..NAMESPACES_MAX).map(namespace)));
    let reply = live.submit(namespace(0)).reply;
    assert_eq!(reply.error(), MetaError::MetaLimit, "{}", reply.message);
    assert!(reply.message.contains("1000 namespaces"));
    assert_eq!(live.submit(namespace(1)).reply.error(), MetaError::MetaOk, "one that exists is found");
    live.submit(Command::DeleteNamespace(DeleteNamespace { name: "n5".into() }));
    assert!(live.submit(namespace(0)).reply.created);

    let gateway = || Command::OpenGateway(OpenGateway::default());
    live.submit(many((0..GATEWAYS_MAX).map(|_| gateway())));
    assert_eq!(live.submit(gateway()).reply.error(), MetaError::MetaLimit);
    live.restart();
}

/// A shard that cannot be reached drops no log: what was deleted meanwhile counts, and none of it is forgotten.
#[test]
fn a_deleted_queue_counts_until_its_log_is_dropped() {
    let mut live = live();
    let delete = |n: usize| {
        Command::DeleteQueue(DeleteQueue { namespace: 1, name: format!("q{n}"), ..DeleteQueue::default() })
    };
    let numbers: Vec<usize> = (0..QUEUES_MAX).collect();
    for some in numbers.chunks(MANY_MAX / 2) {
        live.submit(many(some.iter().flat_map(|n| [queue(format!("q{n}")), delete(*n)])));
    }
    assert_eq!(live.meta.tombstones().count(), QUEUES_MAX);
    assert_eq!(live.submit(queue("q".into())).reply.error(), MetaError::MetaLimit);
    live.submit(Command::LogsDropped(LogsDropped { logs: vec![1] }));
    assert!(live.submit(queue("q".into())).reply.created);
}

#[test]
fn many_is_bounded_flat_and_each_stands_alone() {
    let mut live = live();
    let revision = live.meta.revision();
    let too_many = live.submit(many((0..=MANY_MAX).map(namespace)));
    assert_eq!((too_many.reply.error(), live.meta.revision()), (MetaError::MetaLimit, revision));
    let nested =
        many([many([namespace(1)].into_iter()), queue("q".into()), queue(String::new())].into_iter());
    let replies = live.submit(nested).reply.many;
    let errors: Vec<_> = replies.iter().map(MetaReply::error).collect();
    assert_eq!(errors, [MetaError::MetaInvalid, MetaError::MetaOk, MetaError::MetaInvalid]);
    assert_eq!(live.submit(Command::Barrier(Barrier::default())).reply.error(), MetaError::MetaInvalid);
}

#[test]
fn lengths_are_bounded() {
    let mut live = live();
    assert!(live.submit(queue("q".repeat(NAME_BYTES_MAX))).reply.created);
    let key = Bytes::from(vec![0; ROUTING_KEY_BYTES_MAX + 1]);
    let arguments = Bytes::from(vec![0; ARGUMENTS_BYTES_MAX + 1]);
    let binding =
        Binding { namespace: 1, source: "amq.direct".into(), destination: "q".into(), ..Binding::default() };
    let long_pattern =
        Permission { namespace: 1, read: "a".repeat(PATTERN_BYTES_MAX + 1), ..Permission::default() };
    let user = User { name: "u".into(), ..User::default() };
    let put = |user| Command::PutUser(PutUser { user: Some(user), ..PutUser::default() });
    let refused = [
        queue("q".repeat(NAME_BYTES_MAX + 1)),
        Command::Bind(Bind { binding: Some(Binding { routing_key: key, ..binding.clone() }) }),
        Command::Bind(Bind { binding: Some(Binding { arguments, ..binding }) }),
        put(User { permissions: vec![long_pattern], ..user.clone() }),
        put(User { password_hash: "h".repeat(PASSWORD_HASH_BYTES_MAX + 1), ..user.clone() }),
        put(User { permissions: vec![Permission { namespace: 1, ..Permission::default() }; 2], ..user }),
        Command::PutUser(PutUser::default()),
        Command::OpenGateway(OpenGateway {
            addresses: vec![String::new(); ADDRESSES_MAX + 1],
            ..Default::default()
        }),
        Command::PutNamespace(PutNamespace { name: String::new() }),
    ];
    for command in refused {
        let reply = live.submit(command).reply;
        assert_eq!(reply.error(), MetaError::MetaInvalid, "{}", reply.message);
    }
}

#[test]
fn changes_are_remembered_up_to_a_bound_and_then_a_watcher_starts_anew() {
    let mut live = live();
    let early = live.meta.revision();
    for n in 0..=CHANGES_MAX / 6 {
        live.submit(namespace(n % 900));
        live.submit(Command::DeleteNamespace(DeleteNamespace { name: format!("n{}", n % 900) }));
    }
    let reset = live.meta.changes_since(early).unwrap_err();
    let rest = live.meta.changes_since(reset.oldest).unwrap();
    assert_eq!(rest.len(), CHANGES_MAX);
    assert_eq!(rest[0].revision, reset.oldest.0 + 1);
    assert_eq!(
        live.meta.changes_since(Revision(u64::MAX)),
        Ok(vec![]),
        "a replica that is behind says nothing"
    );
}

#[test]
fn a_replica_id_is_never_given_twice() {
    let mut live = live();
    let mut old = ReplicaId::new(NodeId(1), 1).0;
    let mut given = std::collections::BTreeSet::from([old]);
    for _ in 1..INCARNATIONS_MAX {
        let replace = Command::ReplaceReplica(ReplaceReplica { shard: 1, old, node: 1, request: 0 });
        let new = live.submit(replace).reply.replica;
        assert!(given.insert(new));
        live.submit(Command::ReplicaRemoved(ReplicaRemoved { shard: 1, replica: old }));
        live.submit(Command::ReplicaPromoted(ReplicaPromoted { shard: 1, replica: new }));
        old = new;
    }
    let replace = Command::ReplaceReplica(ReplaceReplica { shard: 1, old, node: 1, request: 0 });
    assert_eq!(live.submit(replace).reply.error(), MetaError::MetaLimit);
    assert_eq!(live.meta.shards_of(NodeId(1)).len(), 2);
    assert_eq!(live.meta.shards_of(NodeId(1))[1], (ShardId(1), ReplicaId(old), false));
}

#[test]
fn sessions_that_are_over_are_told_from_those_not_yet_known() {
    let mut live = live();
    live.submit(Command::OpenGateway(OpenGateway::default()));
    live.submit(Command::OpenGateway(OpenGateway::default()));
    live.submit(Command::CloseGateway(CloseGateway { session: 1 }));
    let over: Vec<_> = (0..4).map(|n| live.meta.is_session_over(SessionId(n))).collect();
    assert_eq!(over, [false, true, false, false]);
}

#[test]
fn pages_that_are_no_state_are_refused() {
    let live = {
        let mut live = live();
        live.submit(queue("q".into()));
        live
    };
    let pages = live.meta.all_pages();
    let without_numbers = pages.iter().filter(|(key, _)| key != "0").cloned();
    assert_eq!(Meta::restore(without_numbers).unwrap_err(), RestoreError::NoNumbers);
    let with = |key: &'static str, value: Bytes| pages.iter().cloned().chain([(Bytes::from(key), value)]);
    assert!(matches!(Meta::restore(with("z", Bytes::new())), Err(RestoreError::Kind(_))));
    assert!(matches!(Meta::restore(with("", Bytes::new())), Err(RestoreError::Kind(_))));
    assert!(matches!(Meta::restore(with("b", Bytes::new())), Err(RestoreError::Mismatch(_))));
    assert!(matches!(Meta::restore(with("uother", Bytes::new())), Err(RestoreError::Mismatch(_))));
    let garbage = Bytes::from_static(&[0xFF; 9]);
    assert!(matches!(Meta::restore(with("ux", garbage)), Err(RestoreError::Value { .. })));
    let newer = Cluster { format: 2, ..Cluster::default() }.encode_to_vec();
    let error = Meta::restore(with("c", Bytes::from(newer))).unwrap_err();
    assert_eq!(error.to_string(), "the cluster has meta format 2, this build knows 1; start a newer build");
}
