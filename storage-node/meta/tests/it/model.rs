//! Random commands: what is restored from pages is what lives, and a watcher that takes change by change sees
//! what one sees that takes the whole state.

use crate::common::{Live, form};
use bytes::Bytes;
use longshore_meta::Meta;
use longshore_proto::v1::meta_change::Change;
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::*;
use longshore_wire::context::EntryContext;
use longshore_wire::{Index, LogTime, ReplicaId, Revision, Term};
use proptest::prelude::*;
use prost::Message;
use std::collections::BTreeMap;

/// A watcher: entities by a name of their own.
#[derive(Default, Debug, PartialEq)]
struct Watcher(BTreeMap<String, Change>);

fn in_namespace(namespace: u32, kind: &str) -> String {
    format!("{namespace}/{kind}/")
}

fn binding_name(b: &Binding) -> String {
    let (key, arguments) = (&b.routing_key, &b.arguments);
    let rest = format!("{}>{}{}:{key:?}{arguments:?}", b.source, b.to_exchange, b.destination);
    in_namespace(b.namespace, "binding") + &rest
}

impl Watcher {
    fn take(&mut self, change: &MetaChange) {
        let change = change.change.clone().unwrap();
        let (name, keep) = match &change {
            Change::Cluster(_) => ("cluster".into(), true),
            Change::Namespace(n) => (format!("namespace {}", n.id), true),
            Change::NamespaceDeleted(id) => {
                let (exchanges, bindings) = (in_namespace(*id, "exchange"), in_namespace(*id, "binding"));
                self.0.retain(|name, _| !name.starts_with(&exchanges) && !name.starts_with(&bindings));
                (format!("namespace {id}"), false)
            }
            Change::User(u) => (format!("user {}", u.name), true),
            Change::UserDeleted(name) => (format!("user {name}"), false),
            Change::Queue(q) => (in_namespace(q.namespace, "queue") + &q.name, true),
            Change::QueueDeleted(q) => (in_namespace(q.namespace, "queue") + &q.name, false),
            Change::Exchange(x) => (in_namespace(x.namespace, "exchange") + &x.name, true),
            Change::ExchangeDeleted(x) => (in_namespace(x.namespace, "exchange") + &x.name, false),
            Change::Binding(b) => (binding_name(b), true),
            Change::BindingDeleted(b) => (binding_name(b), false),
            Change::Node(n) => (format!("node {}", n.id), true),
            Change::NodeRemoved(id) => (format!("node {id}"), false),
            Change::Shard(s) => (format!("shard {}", s.id), true),
            Change::Gateway(g) => (format!("gateway {}", g.session), true),
            Change::GatewayGone(session) => (format!("gateway {session}"), false),
        };
        match keep {
            true => self.0.insert(name, change),
            false => self.0.remove(&name),
        };
    }

    fn of(changes: &[MetaChange]) -> Watcher {
        let mut watcher = Watcher::default();
        changes.iter().for_each(|change| watcher.take(change));
        if let Some(Change::Cluster(cluster)) = watcher.0.get_mut("cluster") {
            cluster.sessions_given = 0;
        }
        watcher
    }
}

fn queue_command() -> impl Strategy<Value = Command> {
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (1u32..4, 0u8..5, flags, 0u64..4, 0u64..3, 0u8..2).prop_map(
        |(namespace, name, flags, session, owner, args)| {
            let (durable, exclusive, auto_delete) = flags;
            let owner_session = if durable { 0 } else { session };
            Command::DeclareQueue(DeclareQueue {
                queue: Some(Queue {
                    namespace,
                    name: format!("q{name}"),
                    durable,
                    exclusive: exclusive && owner_session != 0,
                    auto_delete,
                    arguments: Bytes::from(vec![args]),
                    owner_session,
                    owner: if owner_session == 0 { 0 } else { owner },
                    ..Queue::default()
                }),
            })
        },
    )
}

fn binding() -> impl Strategy<Value = Binding> {
    (1u32..4, 0u8..4, any::<bool>(), 0u8..5, 0u8..3, (0u64..4, 0u64..3)).prop_map(
        |(namespace, source, to_exchange, destination, key, (owner_session, owner))| Binding {
            namespace,
            source: format!("x{source}"),
            to_exchange,
            destination: format!("{}{destination}", if to_exchange { 'x' } else { 'q' }),
            routing_key: Bytes::from(vec![key]),
            arguments: Bytes::new(),
            owner_session,
            owner,
        },
    )
}

fn names_command() -> impl Strategy<Value = Command> {
    let name = |n: u8| format!("n{n}");
    prop_oneof![
        (0u8..3).prop_map(move |n| Command::PutNamespace(PutNamespace { name: name(n) })),
        (0u8..3).prop_map(move |n| Command::DeleteNamespace(DeleteNamespace { name: name(n) })),
        (0u8..3, 1u32..4, any::<bool>()).prop_map(move |(n, namespace, keep_password)| {
            let permission = Permission { namespace, ..Permission::default() };
            let user = User { name: name(n), permissions: vec![permission], ..User::default() };
            Command::PutUser(PutUser { user: Some(user), keep_password, permissions_only: false })
        }),
        (0u8..3).prop_map(move |n| Command::DeleteUser(DeleteUser { name: name(n) })),
    ]
}

fn routing_command() -> impl Strategy<Value = Command> {
    prop_oneof![
        3 => (1u32..4, 0u8..4, any::<bool>()).prop_map(|(namespace, name, auto_delete)| {
            let (name, kind) = (format!("x{name}"), "topic".to_owned());
            let exchange = Exchange { namespace, name, kind, auto_delete, ..Exchange::default() };
            Command::DeclareExchange(DeclareExchange { exchange: Some(exchange) })
        }),
        1 => (1u32..4, 0u8..4, any::<bool>()).prop_map(|(namespace, name, if_unused)| {
            Command::DeleteExchange(DeleteExchange { namespace, name: format!("x{name}"), if_unused })
        }),
        6 => binding().prop_map(|binding| Command::Bind(Bind { binding: Some(binding) })),
        2 => binding().prop_map(|binding| Command::Unbind(Unbind { binding: Some(binding) })),
        2 => (1u32..4, 0u8..5).prop_map(|(namespace, name)| {
            Command::DeleteQueue(DeleteQueue { namespace, name: format!("q{name}"), log: 0 })
        }),
        1 => (1u64..9).prop_map(|log| Command::LogsDropped(LogsDropped { logs: vec![log] })),
    ]
}

fn cluster_command() -> impl Strategy<Value = Command> {
    let replica = |node, incarnation| ReplicaId::new(longshore_wire::NodeId(node), incarnation).0;
    prop_oneof![
        3 => Just(Command::OpenGateway(OpenGateway { name: "g".into(), addresses: vec![] })),
        1 => (1u64..5).prop_map(|session| Command::CloseGateway(CloseGateway { session })),
        2 => (1u64..5, 0u64..3).prop_map(|(session, owner)| Command::DropOwner(DropOwner { session, owner })),
        1 => (1u32..5, 0u8..9).prop_map(|(node, identity)| {
            let identity = Bytes::from(vec![identity]);
            let node = StorageNode { address: format!("node{node}:7400"), identity, ..StorageNode::default() };
            Command::RegisterNode(RegisterNode { node: Some(node) })
        }),
        1 => (0u32..3, 1u32..6, 1u16..5, 1u32..6).prop_map(move |(shard, old, n, node)| {
            Command::ReplaceReplica(ReplaceReplica { shard, old: replica(old, n), node, request: 0 })
        }),
        1 => (1u32..6).prop_map(|node| Command::ObserveMeta(ObserveMeta { node, request: 0 })),
        1 => (0u32..3, 1u32..6, 1u16..5).prop_map(move |(shard, node, n)| {
            Command::ReplicaPromoted(ReplicaPromoted { shard, replica: replica(node, n) })
        }),
        1 => (0u32..3, 1u32..6, 1u16..5).prop_map(move |(shard, node, n)| {
            Command::ReplicaRemoved(ReplicaRemoved { shard, replica: replica(node, n) })
        }),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let one = prop_oneof![
        4 => queue_command(),
        1 => names_command(),
        6 => routing_command(),
        2 => cluster_command(),
    ];
    let many = proptest::collection::vec(one.boxed(), 1..4);
    many.prop_map(|mut commands| match commands.len() {
        1 => commands.remove(0),
        _ => {
            let boxed = |command| MetaCommand { command: Some(command), ..MetaCommand::default() };
            Command::Many(Many { commands: commands.into_iter().map(boxed).collect() })
        }
    })
}

/// What holds in every state.
fn check_invariants(meta: &Meta) {
    for binding in meta.bindings() {
        assert!(meta.exchange(binding.namespace, &binding.source).is_some(), "{binding:?}");
        let target = match binding.to_exchange {
            true => meta.exchange(binding.namespace, &binding.destination).is_some(),
            false => {
                binding.owner_session != 0 || meta.queue(binding.namespace, &binding.destination).is_some()
            }
        };
        assert!(target, "{binding:?}");
        let session = longshore_wire::SessionId(binding.owner_session);
        assert!(!meta.is_session_over(session), "{binding:?}");
    }
    for queue in meta.queues() {
        assert!(!meta.is_session_over(longshore_wire::SessionId(queue.owner_session)), "{queue:?}");
        assert_eq!(queue.durable, queue.log != 0);
        assert!(meta.tombstones().all(|tombstone| tombstone.log != queue.log));
    }
    for shard in meta.shards() {
        assert!(shard.replicas.iter().all(|replica| replica.id & 0xFFFF <= shard.incarnations.into()));
        let staying = || shard.replicas.iter().filter(|replica| !replica.leaving);
        assert_eq!(staying().filter(|replica| !replica.observer).count(), 3, "{shard:?}");
        let nodes: std::collections::BTreeSet<u32> = staying().map(|replica| replica.node).collect();
        assert_eq!(nodes.len(), staying().count(), "two of one node: {shard:?}");
        assert!(staying().all(|replica| !replica.observer || replica.learner), "{shard:?}");
        for replica in &shard.replicas {
            assert!(meta.node(longshore_wire::NodeId(replica.node)).is_some());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn restored_is_live_and_changes_tell_everything(
        commands in proptest::collection::vec((command(), 0u8..10), 1..80),
    ) {
        let mut live = Live::new();
        let mut watcher = Watcher::of(&live.submit(form(3, 2, &[])).changes);
        for (command, then) in commands {
            let mut twin = Meta::restore(live.meta.all_pages()).unwrap();
            let before = live.meta.revision();
            let applied = live.submit(command.clone());
            // A replica that came back from its pages decides alike.
            let bytes = MetaCommand { command: Some(command), ..MetaCommand::default() }.encode_to_vec();
            let context = EntryContext { stamp: live.meta.log_time() };
            let again = twin.apply(live.meta.applied(), Term(1), &context, &Bytes::from(bytes));
            prop_assert_eq!(&again, &applied);
            prop_assert_eq!(twin.state_hash(), live.meta.state_hash());
            // Revisions have no gaps, and the log of changes has them.
            let revisions: Vec<_> = applied.changes.iter().map(|change| change.revision).collect();
            let expected: Vec<_> = (before.0 + 1..=live.meta.revision().0).collect();
            prop_assert_eq!(revisions, expected);
            prop_assert_eq!(applied.reply.revision, live.meta.revision().0);
            prop_assert_eq!(live.meta.changes_since(before).unwrap(), applied.changes.clone());
            applied.changes.iter().for_each(|change| watcher.take(change));
            prop_assert_eq!(&watcher, &Watcher::of(&live.meta.whole_state()));
            check_invariants(&live.meta);
            match then {
                0 => live.restart(),
                1..4 => live.checkpoint(),
                _ => {}
            }
        }
        live.restart();
        prop_assert!(live.meta.changes_since(Revision(0)).is_err());
        prop_assert_eq!(live.meta.changes_since(live.meta.revision()), Ok(vec![]));
    }

    #[test]
    fn no_bytes_break_it(
        noise in proptest::collection::vec(any::<u8>(), 1..200),
        command in command(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut live = Live::new();
        live.submit(form(3, 2, &[]));
        live.apply(Bytes::from(noise));
        let mut bytes = MetaCommand { command: Some(command), ..MetaCommand::default() }.encode_to_vec();
        for (at, byte) in flips {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        live.apply(Bytes::from(bytes));
        live.restart();
    }
}

#[test]
fn entries_of_raft_itself_only_move_the_index() {
    let mut live = Live::new();
    live.submit(form(1, 1, &[]));
    let revision = live.meta.revision();
    let applied = live.meta.apply(Index(9), Term(4), &EntryContext { stamp: LogTime(5) }, &Bytes::new());
    assert!(applied.changes.is_empty());
    assert_eq!((live.meta.applied(), live.meta.applied_term()), (Index(9), Term(4)));
    assert_eq!(
        (live.meta.revision(), live.meta.log_time()),
        (revision, LogTime(1001)),
        "time never goes back"
    );
    live.restart();
}
