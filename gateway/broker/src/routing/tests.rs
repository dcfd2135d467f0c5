//! Routing against a model that knows no trie, no table and no count.

use super::*;
use crate::api::{HeaderValue, NoHeaders};
use proptest::prelude::*;
use std::collections::BTreeSet;

/// Arguments in tests: `name=value` lines; a value `5` is an integer, an empty one is void.
fn read_arguments(bytes: &[u8]) -> Vec<(Bytes, HeaderValue)> {
    String::from_utf8_lossy(bytes)
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (Bytes::copy_from_slice(name.as_bytes()), value_of(value)))
        .collect()
}

fn value_of(text: &str) -> HeaderValue {
    match text {
        "" => HeaderValue::Void,
        text => match text.parse() {
            Ok(n) => HeaderValue::Int(n),
            Err(_) => HeaderValue::Bytes(Bytes::copy_from_slice(text.as_bytes())),
        },
    }
}

struct Map(Vec<(&'static str, &'static str)>);

impl Headers for Map {
    fn get(&self, name: &[u8]) -> Option<HeaderValue> {
        self.0.iter().find(|(n, _)| n.as_bytes() == name).map(|(_, value)| value_of(value))
    }
}

fn exchange(name: &str, kind: ExchangeKind, alternate: Option<&str>) -> ExchangeInfo {
    ExchangeInfo {
        name: name.into(),
        kind,
        durable: true,
        auto_delete: false,
        internal: false,
        arguments: Bytes::new(),
        alternate: alternate.map(str::to_owned),
    }
}

fn binding(source: &str, destination: Destination, key: &str, arguments: &str) -> BindingInfo {
    BindingInfo {
        source: source.into(),
        destination,
        routing_key: Bytes::copy_from_slice(key.as_bytes()),
        arguments: Bytes::copy_from_slice(arguments.as_bytes()),
    }
}

fn queue(name: &str) -> Destination {
    Destination::Queue(name.into())
}

fn routed(exchanges: &Exchanges, name: &str, key: &str, headers: &dyn Headers) -> Vec<String> {
    let input = Input { key: key.as_bytes(), more_keys: &[], headers };
    exchanges.route(name, &input).unwrap().queues.iter().map(|q| q.to_string()).collect()
}

#[test]
fn topic_patterns_of_the_specification() {
    let table = [
        ("a.*.c", "a.b.c", true),
        ("a.*.c", "a.c", false),
        ("a.#", "a", true),
        ("a.#", "a.b.c.d", true),
        ("#", "", true),
        ("*", "", false),
        ("", "", true),
        ("#.c", "a.b.c", true),
        ("#.#", "x", true),
        ("#.*", "", false),
        ("a.#.b.#.c", "a.b.c", true),
        ("a.#.b.#.c", "a.x.c", false),
        ("a..b", "a..b", true),
        ("a.*.b", "a..b", true),
        ("*.*", ".", true),
        ("#.a.#", "b.a", true),
    ];
    for (pattern, key, expected) in table {
        let mut exchanges = Exchanges::new(read_arguments);
        exchanges.put_exchange(exchange("t", ExchangeKind::Topic, None));
        exchanges.bind(&binding("t", queue("q"), pattern, ""));
        assert_eq!(!routed(&exchanges, "t", key, &NoHeaders).is_empty(), expected, "{pattern} {key}");
    }
}

#[test]
fn a_pattern_of_many_hashes_is_not_exponential() {
    let mut trie = TopicTrie::default();
    trie.add(["#.a"; 60].join(".").as_bytes(), Dest::Queue("q".into()));
    let mut out = Vec::new();
    trie.matches(vec!["a"; 120].join(".").as_bytes(), &mut out);
    assert_eq!(out.len(), 1);
}

#[test]
fn headers_match_in_all_four_modes() {
    let message = Map(vec![("a", "1"), ("x-b", "two")]);
    let table = [
        ("", true),
        ("a=1", true),
        ("a=2", false),
        ("x-match=all\na=1\nx-b=other", true),
        ("x-match=all-with-x\na=1\nx-b=other", false),
        ("x-match=all-with-x\na=1\nx-b=two", true),
        ("x-match=any\na=2\nx-b=two", false),
        ("x-match=any-with-x\na=2\nx-b=two", true),
        ("x-match=any", false),
        ("a=", true),
        ("c=", false),
    ];
    for (arguments, expected) in table {
        let mut exchanges = Exchanges::new(read_arguments);
        exchanges.put_exchange(exchange("h", ExchangeKind::Headers, None));
        exchanges.bind(&binding("h", queue("q"), "", arguments));
        assert_eq!(!routed(&exchanges, "h", "", &message).is_empty(), expected, "{arguments:?}");
    }
}

#[test]
fn cycles_end_and_alternates_take_what_is_left() {
    let mut exchanges = Exchanges::new(read_arguments);
    exchanges.bind(&binding("a", Destination::Exchange("b".into()), "k", ""));
    exchanges.bind(&binding("b", Destination::Exchange("a".into()), "", ""));
    exchanges.bind(&binding("b", queue("q1"), "", ""));
    exchanges.bind(&binding("b", queue("q2"), "", ""));
    exchanges.bind(&binding("left", queue("lost"), "", ""));
    // Bindings came first, as they may in a state that is sent in parts.
    exchanges.put_exchange(exchange("a", ExchangeKind::Direct, Some("left")));
    exchanges.put_exchange(exchange("b", ExchangeKind::Fanout, None));
    exchanges.put_exchange(exchange("left", ExchangeKind::Fanout, Some("a")));
    assert_eq!(routed(&exchanges, "a", "k", &NoHeaders), ["q1", "q2"]);
    assert_eq!(routed(&exchanges, "a", "other", &NoHeaders), ["lost"]);
    exchanges.remove_queue("lost");
    assert!(routed(&exchanges, "a", "other", &NoHeaders).is_empty());
    exchanges.remove_exchange("b");
    assert_eq!(exchanges.bindings(), []);
    assert!(exchanges.route("b", &Input { key: b"", more_keys: &[], headers: &NoHeaders }).is_none());
}

#[test]
fn two_bindings_to_one_queue_are_one_copy_until_both_are_gone() {
    let mut exchanges = Exchanges::new(read_arguments);
    exchanges.put_exchange(exchange("d", ExchangeKind::Direct, None));
    exchanges.bind(&binding("d", queue("q"), "k", "a=1"));
    exchanges.bind(&binding("d", queue("q"), "k", "a=2"));
    exchanges.bind(&binding("d", queue("q"), "k", "a=2"));
    exchanges.unbind(&binding("d", queue("q"), "k", "a=2"));
    exchanges.unbind(&binding("d", queue("q"), "k", "a=2"));
    assert_eq!(routed(&exchanges, "d", "k", &NoHeaders), ["q"]);
    exchanges.unbind(&binding("d", queue("q"), "k", "a=1"));
    assert!(routed(&exchanges, "d", "k", &NoHeaders).is_empty());
}

fn word_match(pattern: &[&str], key: &[&str]) -> bool {
    match (pattern.first(), key.first()) {
        (None, None) => true,
        (Some(&"#"), _) => {
            word_match(&pattern[1..], key) || (!key.is_empty() && word_match(pattern, &key[1..]))
        }
        (Some(&"*"), Some(_)) => word_match(&pattern[1..], &key[1..]),
        (Some(p), Some(k)) if p == k => word_match(&pattern[1..], &key[1..]),
        _ => false,
    }
}

fn split(key: &str) -> Vec<&str> {
    if key.is_empty() { Vec::new() } else { key.split('.').collect() }
}

#[derive(Clone, Debug)]
enum Step {
    Bind(usize, Destination, String),
    Unbind(usize, Destination, String),
    RemoveQueue(usize),
    Route(usize, String),
}

const KINDS: [ExchangeKind; 4] =
    [ExchangeKind::Direct, ExchangeKind::Fanout, ExchangeKind::Topic, ExchangeKind::Topic];

fn key(pattern: bool) -> impl Strategy<Value = String> {
    let word = if pattern {
        prop_oneof![Just("a"), Just("b"), Just("*"), Just("#")].boxed()
    } else {
        prop_oneof![Just("a"), Just("b"), Just("c")].boxed()
    };
    prop::collection::vec(word, 0..5).prop_map(|words| words.join("."))
}

fn step() -> impl Strategy<Value = Step> {
    let dest = || {
        prop_oneof![
            4 => (0..5usize).prop_map(|n| Destination::Queue(format!("q{n}"))),
            1 => (0..4usize).prop_map(|n| Destination::Exchange(format!("e{n}"))),
        ]
    };
    prop_oneof![
        4 => (0..4usize, dest(), key(true)).prop_map(|(e, d, k)| Step::Bind(e, d, k)),
        2 => (0..4usize, dest(), key(true)).prop_map(|(e, d, k)| Step::Unbind(e, d, k)),
        1 => (0..5usize).prop_map(Step::RemoveQueue),
        5 => (0..4usize, key(false)).prop_map(|(e, k)| Step::Route(e, k)),
    ]
}

/// Every binding is looked at, every time.
fn model_route(bindings: &BTreeSet<(usize, Destination, String)>, first: usize, key: &str) -> Vec<String> {
    let (mut queues, mut seen, mut waiting) = (BTreeSet::new(), BTreeSet::from([first]), vec![first]);
    while let Some(at) = waiting.pop() {
        for (_, dest, pattern) in bindings.iter().filter(|(source, ..)| *source == at) {
            let hit = match KINDS[at] {
                ExchangeKind::Direct => pattern == key,
                ExchangeKind::Fanout => true,
                _ => word_match(&split(pattern), &split(key)),
            };
            match dest {
                Destination::Queue(name) if hit => {
                    queues.insert(name.clone());
                }
                Destination::Exchange(name) if hit => {
                    let n: usize = name[1..].parse().unwrap();
                    if seen.insert(n) {
                        waiting.push(n);
                    }
                }
                _ => {}
            }
        }
    }
    queues.into_iter().collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn routes_as_the_model_does(steps in prop::collection::vec(step(), 1..80)) {
        let mut exchanges = Exchanges::new(read_arguments);
        for (n, kind) in KINDS.into_iter().enumerate() {
            exchanges.put_exchange(exchange(&format!("e{n}"), kind, None));
        }
        let mut model = BTreeSet::new();
        for step in steps {
            match step {
                Step::Bind(e, dest, key) => {
                    exchanges.bind(&binding(&format!("e{e}"), dest.clone(), &key, ""));
                    model.insert((e, dest, key));
                }
                Step::Unbind(e, dest, key) => {
                    exchanges.unbind(&binding(&format!("e{e}"), dest.clone(), &key, ""));
                    model.remove(&(e, dest, key));
                }
                Step::RemoveQueue(n) => {
                    exchanges.remove_queue(&format!("q{n}"));
                    model.retain(|(_, dest, _)| *dest != Destination::Queue(format!("q{n}")));
                }
                Step::Route(e, key) => {
                    let got = routed(&exchanges, &format!("e{e}"), &key, &NoHeaders);
                    prop_assert_eq!(got, model_route(&model, e, &key));
                }
            }
        }
    }

    #[test]
    fn a_trie_without_bindings_has_only_its_root(patterns in prop::collection::vec(key(true), 0..40)) {
        let mut trie = TopicTrie::default();
        for pattern in &patterns {
            trie.add(pattern.as_bytes(), Dest::Queue("q".into()));
        }
        for pattern in &patterns {
            trie.remove(pattern.as_bytes(), &Dest::Queue("q".into()));
        }
        prop_assert_eq!(trie.node_count(), 1);
    }
}
