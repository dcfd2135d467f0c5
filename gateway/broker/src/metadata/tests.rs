//! The view follows what meta pushes, in any order within a reset.

use super::*;
use crate::api::NoHeaders;
use bytes::Bytes;
use v1::meta_change::Change;

fn change(change: Change) -> v1::MetaChange {
    v1::MetaChange { revision: 0, change: Some(change) }
}

fn queue(name: &str, log: u64, shard: u32) -> Change {
    Change::Queue(v1::Queue {
        namespace: 1,
        name: name.into(),
        log,
        spans: vec![v1::Span { from_offset: 0, shard }],
        durable: true,
        ..v1::Queue::default()
    })
}

fn binding(destination: &str, key: &str) -> v1::Binding {
    v1::Binding {
        namespace: 1,
        source: "amq.topic".into(),
        destination: destination.into(),
        routing_key: Bytes::copy_from_slice(key.as_bytes()),
        ..v1::Binding::default()
    }
}

fn down(revision: u64, reset: bool, more: bool, changes: Vec<Change>) -> v1::WatchDown {
    let changes = changes.into_iter().map(change).collect();
    v1::WatchDown { revision, reset, more, changes, ..v1::WatchDown::default() }
}

fn view() -> Metadata {
    let view = Metadata::new(|_| Vec::new());
    let exchange = v1::Exchange {
        namespace: 1,
        name: "amq.topic".into(),
        kind: "topic".into(),
        ..v1::Exchange::default()
    };
    view.apply(down(
        5,
        true,
        true,
        vec![queue("a", 10, 2), queue("b", 11, 1), Change::Binding(binding("a", "x.*"))],
    ));
    assert!(view.namespace("/").is_none(), "half a state must not be seen");
    view.apply(down(
        5,
        false,
        false,
        vec![
            Change::Exchange(exchange),
            Change::Namespace(v1::Namespace { id: 1, name: "/".into() }),
            Change::Cluster(v1::Cluster { id: "c".into(), shards: 6, format: 1, sessions_given: 0 }),
        ],
    ));
    view
}

fn routed(view: &Metadata, exchange: &str, key: &str) -> Route {
    let input = Input { key: key.as_bytes(), more_keys: &[], headers: &NoHeaders };
    view.namespace("/").unwrap().route(exchange, &input).unwrap().0
}

#[test]
fn a_reset_in_parts_takes_effect_as_one() {
    let view = view();
    assert_eq!(view.revision(), 5);
    assert_eq!(routed(&view, "amq.topic", "x.y").durable, [(ShardId(2), vec![LogId(10)])]);
    assert_eq!(routed(&view, "", "b").durable, [(ShardId(1), vec![LogId(11)])]);
    assert_eq!(routed(&view, "", "new").unknown, ["new".into()]);
}

#[test]
fn the_default_exchange_as_alternate_routes_by_name() {
    let view = view();
    let info = ExchangeInfo {
        name: "first".into(),
        kind: ExchangeKind::Fanout,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Bytes::new(),
        alternate: Some(String::new()),
    };
    let message = convert::exchange_message(NamespaceId(1), &info);
    assert_eq!(convert::exchange_info(&message), info);
    let second = ExchangeInfo { name: "second".into(), alternate: Some("first".into()), ..info };
    let second = convert::exchange_message(NamespaceId(1), &second);
    view.apply(down(6, false, false, vec![Change::Exchange(message), Change::Exchange(second)]));
    for exchange in ["first", "second"] {
        assert_eq!(routed(&view, exchange, "b").durable, [(ShardId(1), vec![LogId(11)])]);
        // A queue that only the storage tier could know.
        let input = Input { key: b"new", more_keys: &[], headers: &NoHeaders };
        let (route, cacheable, _) = view.namespace("/").unwrap().route(exchange, &input).unwrap();
        assert_eq!((&route.unknown[..], cacheable), (&["new".into()][..], false));
    }
    view.apply(down(
        7,
        false,
        false,
        vec![Change::Binding(v1::Binding { source: "first".into(), ..binding("a", "") })],
    ));
    assert_eq!(routed(&view, "second", "b").durable, [(ShardId(2), vec![LogId(10)])], "nothing is left over");
}

#[test]
fn changes_move_the_version_and_connections_keep_their_namespace() {
    let view = view();
    let namespace = view.namespace("/").unwrap();
    let before = namespace.version();
    view.apply(down(6, false, false, vec![Change::Binding(binding("b", "#"))]));
    assert!(namespace.version() > before);
    assert_eq!(routed(&view, "amq.topic", "x.y").durable.len(), 2);
    let gone = v1::QueueDeleted { namespace: 1, name: "a".into(), log: 9, ..Default::default() };
    view.apply(down(7, false, false, vec![Change::QueueDeleted(gone.clone())]));
    assert_eq!(routed(&view, "", "a").durable.len(), 1, "an older queue's tombstone spares the newer one");
    view.apply(down(8, false, false, vec![Change::QueueDeleted(v1::QueueDeleted { log: 10, ..gone })]));
    assert_eq!(routed(&view, "amq.topic", "x.y").durable, [(ShardId(1), vec![LogId(11)])]);

    let namespaces = vec![Change::Namespace(v1::Namespace { id: 1, name: "/".into() })];
    view.apply(down(20, true, false, namespaces));
    assert!(namespace.queue("b").is_none(), "the held object shows the new state");
    let events = view.apply(down(21, true, false, vec![]));
    assert!(events.contains(&ViewEvent::NamespaceDeleted(NamespaceId(1))));
}

#[test]
fn users_that_changed_over_a_reset_are_told() {
    let view = view();
    let user = |version| v1::User { name: "u".into(), version, ..v1::User::default() };
    assert_eq!(view.apply(down(6, false, false, vec![Change::User(user(1))])), [ViewEvent::User("u".into())]);
    let events = view.apply(down(9, true, false, vec![Change::User(user(2))]));
    assert!(events.contains(&ViewEvent::User("u".into())));
}

#[test]
fn transient_places_never_change() {
    let view = view();
    let places: Vec<u32> = ["", "a", "reply-1", "amq.gen-x"]
        .iter()
        .map(|name| view.transient_shard(NamespaceId(1), name).unwrap().0)
        .collect();
    assert!(places.iter().all(|shard| (1..=6).contains(shard)));
    assert_eq!(places, [5, 4, 5, 2]);
}
