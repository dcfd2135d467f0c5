//! Runs `tests/transcripts/*.txt`: the rules of meta as stories. A line is a command; what follows `->` is the
//! reply, lines that begin with `*` are the changes that watchers get. `UPDATE_TRANSCRIPTS=1` writes what happened
//! into the files, to be read before it is committed.

use crate::common::{Live, shard_line, words_of};
use bytes::Bytes;
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::*;
use longshore_wire::{NodeId, ReplicaId};
use std::path::Path;

#[test]
fn transcripts_hold() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts");
    let mut files: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 5);
    let mut wrong = Vec::new();
    for path in files {
        let expected = std::fs::read_to_string(&path).unwrap();
        let happened = play(&expected);
        if happened != expected {
            if std::env::var_os("UPDATE_TRANSCRIPTS").is_some() {
                std::fs::write(&path, &happened).unwrap();
            } else {
                let lines = expected.lines().zip(happened.lines()).find(|(a, b)| a != b);
                wrong.push(format!("{}: {lines:?}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The transcript with replies and changes as they happened.
fn play(text: &str) -> String {
    let mut live = Live::new();
    let mut out = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with('*') {
            continue;
        }
        if line.is_empty() || line.starts_with('#') {
            out += &format!("{line}\n");
            continue;
        }
        let asked = line.split("->").next().unwrap().trim_end();
        out += &format!("{asked:<46} -> {}\n", run(&mut live, asked));
    }
    out
}

struct Words<'a>(Vec<&'a str>);

impl Words<'_> {
    fn at(&self, n: usize) -> String {
        self.0[n].to_owned()
    }
    fn number(&self, n: usize) -> u32 {
        self.0[n].parse().unwrap()
    }
    fn has(&self, flag: &str) -> bool {
        self.0.contains(&flag)
    }
    fn value(&self, key: &str) -> Option<String> {
        self.0.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('=')).map(str::to_owned)
    }
    fn text(&self, key: &str) -> String {
        self.value(key).unwrap_or_default()
    }
    fn int(&self, key: &str) -> u64 {
        self.value(key).map_or(0, |text| text.parse().unwrap())
    }
    fn namespace(&self) -> u32 {
        self.value("ns").map_or(1, |text| text.parse().unwrap())
    }
    /// `owner=3.7`: session and client connection.
    fn owner(&self) -> (u64, u64) {
        self.value("owner").map_or((0, 0), |text| pair(&text))
    }
    fn binding(&self) -> Binding {
        let (owner_session, owner) = self.owner();
        Binding {
            namespace: self.namespace(),
            source: self.at(1).replace("\"\"", ""),
            to_exchange: self.has("to-exchange"),
            destination: self.at(2),
            routing_key: Bytes::from(self.text("key")),
            arguments: Bytes::from(self.text("args")),
            owner_session,
            owner,
        }
    }
}

fn pair(text: &str) -> (u64, u64) {
    let (a, b) = text.split_once('.').unwrap();
    (a.parse().unwrap(), b.parse().unwrap())
}

fn replica_of(text: &str) -> u64 {
    let (node, incarnation) = pair(text);
    ReplicaId::new(NodeId(node as u32), incarnation as u16).0
}

fn run(live: &mut Live, line: &str) -> String {
    let words = Words(line.split_whitespace().collect());
    match words.0[0] {
        "repairs" => {
            let all = live.meta.repairs();
            let one = |c: &longshore_meta::ReplicaChange| {
                format!("shard {}: {} to {}", c.shard, words_of(c.old.0), c.node)
            };
            return if all.is_empty() {
                "none".into()
            } else {
                all.iter().map(one).collect::<Vec<_>>().join(", ")
            };
        }
        "restart" => {
            live.restart();
            return "the same state".into();
        }
        "shard" => return shard_line(live.meta.shard(longshore_wire::ShardId(words.number(1))).unwrap()),
        _ => {}
    }
    let applied = live.submit(command(&words));
    let mut out = crate::common::reply_line(&applied.reply);
    for change in &applied.changes {
        out += &format!("\n  * {}", crate::common::change_line(change));
    }
    out
}

fn command(words: &Words<'_>) -> Command {
    match words.0[0] {
        "form" => {
            let zones = words.text("zones");
            let zones: Vec<&str> = zones.split(',').collect();
            crate::common::form(words.int("nodes") as u32, words.int("shards") as u32, &zones)
        }
        "namespace" => Command::PutNamespace(PutNamespace { name: words.at(1) }),
        "delete-namespace" => Command::DeleteNamespace(DeleteNamespace { name: words.at(1) }),
        "user" => Command::PutUser(put_user(words)),
        "delete-user" => Command::DeleteUser(DeleteUser { name: words.at(1) }),
        "queue" => Command::DeclareQueue(DeclareQueue { queue: Some(queue(words)) }),
        "delete-queue" => {
            let (namespace, name, log) = (words.namespace(), words.at(1), words.int("log"));
            Command::DeleteQueue(DeleteQueue { namespace, name, log })
        }
        "logs-dropped" => Command::LogsDropped(LogsDropped { logs: vec![words.number(1).into()] }),
        "exchange" => Command::DeclareExchange(DeclareExchange {
            exchange: Some(Exchange {
                namespace: words.namespace(),
                name: words.at(1).replace("\"\"", ""),
                kind: words.at(2),
                durable: !words.has("transient"),
                auto_delete: words.has("auto-delete"),
                internal: words.has("internal"),
                arguments: Bytes::from(words.text("args")),
                alternate: words.text("alternate"),
            }),
        }),
        "delete-exchange" => Command::DeleteExchange(DeleteExchange {
            namespace: words.namespace(),
            name: words.at(1),
            if_unused: words.has("if-unused"),
        }),
        "bind" => Command::Bind(Bind { binding: Some(words.binding()) }),
        "unbind" => Command::Unbind(Unbind { binding: Some(words.binding()) }),
        "gateway" => Command::OpenGateway(OpenGateway { name: words.at(1), addresses: vec![] }),
        "close" => Command::CloseGateway(CloseGateway { session: words.number(1).into() }),
        "drop-owner" => {
            let (session, owner) = pair(words.0[1]);
            Command::DropOwner(DropOwner { session, owner })
        }
        "register" => Command::RegisterNode(RegisterNode {
            node: Some(StorageNode {
                id: words.int("id") as u32,
                address: words.at(1),
                identity: Bytes::from(words.text("identity")),
                zone: words.text("zone"),
                ..StorageNode::default()
            }),
        }),
        "retire" => Command::RetireNode(RetireNode { node: words.number(1) }),
        "replace" => Command::ReplaceReplica(ReplaceReplica {
            shard: words.number(1),
            old: replica_of(words.0[2]),
            node: words.number(3),
            request: 0,
        }),
        "observe" => Command::ObserveMeta(ObserveMeta { node: words.number(1), request: 0 }),
        "promoted" => Command::ReplicaPromoted(ReplicaPromoted {
            shard: words.number(1),
            replica: replica_of(words.0[2]),
        }),
        "removed" => Command::ReplicaRemoved(ReplicaRemoved {
            shard: words.number(1),
            replica: replica_of(words.0[2]),
        }),
        other => panic!("unknown command {other}"),
    }
}

fn put_user(words: &Words<'_>) -> PutUser {
    let permissions = words.value("on").map(|namespace| Permission {
        namespace: namespace.parse().unwrap(),
        configure: ".*".into(),
        write: ".*".into(),
        read: ".*".into(),
    });
    PutUser {
        user: Some(User {
            name: words.at(1),
            password_hash: words.text("hash"),
            administrator: words.has("administrator"),
            permissions: permissions.into_iter().collect(),
            ..User::default()
        }),
        permissions_only: words.has("permissions-only"),
        keep_password: words.has("keep-password"),
    }
}

fn queue(words: &Words<'_>) -> Queue {
    let (owner_session, owner) = words.owner();
    // `leader=2 made=5`: a transient log, the fifth that shard 2's leader made.
    let log = words.value("leader").map(|shard| {
        longshore_wire::LogId::transient(longshore_wire::ShardId(shard.parse().unwrap()), words.int("made"))
    });
    Queue {
        namespace: words.namespace(),
        name: words.at(1),
        log: log.unwrap_or_default().0,
        durable: words.has("durable"),
        exclusive: words.has("exclusive"),
        auto_delete: words.has("auto-delete"),
        arguments: Bytes::from(words.text("args")),
        kind: words.value("type").unwrap_or("classic".into()),
        owner_session,
        owner,
        ..Queue::default()
    }
}
