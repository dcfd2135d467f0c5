//! What the tests share: a meta whose pages are checked at each restart, and words for what it says.

use bytes::Bytes;
use longshore_meta::{Applied, Meta};
use longshore_proto::v1::meta_change::Change;
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::*;
use longshore_wire::context::EntryContext;
use longshore_wire::{Index, LogId, LogTime, ReplicaId, Term};
use prost::Message;
use std::collections::BTreeMap;

/// A meta, and its pages as a checkpoint would hold them.
pub struct Live {
    pub meta: Meta,
    pub pages: BTreeMap<Bytes, Bytes>,
    index: u64,
}

impl Live {
    pub fn new() -> Live {
        Live { meta: Meta::new(), pages: BTreeMap::new(), index: 0 }
    }

    pub fn submit(&mut self, command: Command) -> Applied {
        let bytes = MetaCommand { command: Some(command), ..MetaCommand::default() }.encode_to_vec();
        self.apply(Bytes::from(bytes))
    }

    pub fn apply(&mut self, bytes: Bytes) -> Applied {
        self.index += 1;
        let context = EntryContext { stamp: LogTime(1000 + self.index) };
        self.meta.apply(Index(self.index), Term(1), &context, &bytes)
    }

    pub fn checkpoint(&mut self) {
        for (key, value) in self.meta.take_dirty_pages() {
            match value {
                Some(value) => self.pages.insert(key, value),
                None => self.pages.remove(&key),
            };
        }
    }

    /// Goes on from the checkpoint's pages; they must be the whole state.
    pub fn restart(&mut self) {
        self.checkpoint();
        assert_eq!(self.pages.clone().into_iter().collect::<Vec<_>>(), self.meta.all_pages());
        let again = Meta::restore(self.pages.clone()).unwrap();
        assert_eq!(again.state_hash(), self.meta.state_hash());
        assert_eq!(again.whole_state(), self.meta.whole_state());
        assert_eq!((again.applied(), again.applied_term()), (self.meta.applied(), self.meta.applied_term()));
        self.meta = again;
    }
}

/// Nodes 1 to `nodes`; `zones` are theirs in turn, if there are any.
pub fn form(nodes: u32, shards: u32, zones: &[&str]) -> Command {
    let zone = |id: u32| zones.get(id as usize - 1).copied().unwrap_or_default().to_owned();
    let node = |id| StorageNode {
        id,
        zone: zone(id),
        address: format!("node{id}:7400"),
        identity: Bytes::from(format!("i{id}")),
        ..StorageNode::default()
    };
    let administrator = User { name: "admin".into(), administrator: true, ..User::default() };
    Command::FormCluster(FormCluster {
        cluster: "test".into(),
        shards,
        nodes: (1..=nodes).map(node).collect(),
        administrator: Some(administrator),
    })
}

/// A replica as `node.incarnation`.
pub fn words_of(replica: u64) -> String {
    format!("{}.{}", ReplicaId(replica).node(), replica & 0xFFFF)
}

fn log_words(log: u64) -> String {
    match LogId(log).transient_shard() {
        Some(shard) => format!("transient({shard},{})", log & 0xFFFF_FFFF_FFFF),
        None => log.to_string(),
    }
}

pub fn shard_line(shard: &Shard) -> String {
    let mark = |r: &Replica| match (r.learner, r.leaving, r.observer) {
        (_, true, true) => " observing and leaving",
        (_, false, true) => " observing",
        (true, true, _) => " learning and leaving",
        (true, false, _) => " learning",
        (false, true, _) => " leaving",
        (false, false, _) => "",
    };
    let one = |r: &Replica| format!("{}{}", words_of(r.id), mark(r));
    format!("shard {}: {}", shard.id, shard.replicas.iter().map(one).collect::<Vec<_>>().join(", "))
}

pub fn reply_line(reply: &MetaReply) -> String {
    let mut out = match reply.error() {
        MetaError::MetaOk => "ok".to_owned(),
        other => other.as_str_name().trim_start_matches("META_").to_lowercase().replace('_', "-"),
    };
    if reply.error() == MetaError::MetaInequivalent {
        out += &format!(" ({})", reply.message);
    }
    if reply.created {
        out += ", created";
    }
    if let Some(queue) = &reply.queue {
        out += &format!(", log {}", log_words(queue.log));
    }
    let numbers =
        [("session", reply.session), ("node", reply.node.into()), ("namespace", reply.namespace.into())];
    for (name, number) in numbers.into_iter().filter(|(_, number)| *number != 0) {
        out += &format!(", {name} {number}");
    }
    if reply.replica != 0 {
        out += &format!(", replica {}", words_of(reply.replica));
    }
    out
}

fn binding_words(binding: &Binding) -> String {
    let kind = if binding.to_exchange { "exchange" } else { "queue" };
    let key = String::from_utf8_lossy(&binding.routing_key);
    format!("{} to {kind} {} by '{key}'", binding.source, binding.destination)
}

pub fn change_line(change: &MetaChange) -> String {
    match change.change.as_ref().unwrap() {
        Change::Namespace(n) => format!("namespace {} is {}", n.name, n.id),
        Change::NamespaceDeleted(id) => format!("namespace {id} deleted"),
        Change::User(u) => {
            let on: Vec<_> = u.permissions.iter().map(|p| p.namespace).collect();
            format!("user {} hash '{}' on {on:?}", u.name, u.password_hash)
        }
        Change::UserDeleted(name) => format!("user {name} deleted"),
        Change::Queue(q) => {
            let shards: Vec<_> = q.spans.iter().map(|s| s.shard).collect();
            format!("queue {} log {} in {shards:?}", q.name, log_words(q.log))
        }
        Change::QueueDeleted(q) => format!("queue {} log {} deleted", q.name, log_words(q.log)),
        Change::Exchange(x) => format!("exchange {} {}", x.name, x.kind),
        Change::ExchangeDeleted(x) => format!("exchange {} deleted", x.name),
        Change::Binding(b) => format!("binding {}", binding_words(b)),
        Change::BindingDeleted(b) => format!("binding {} deleted", binding_words(b)),
        Change::Node(n) => {
            format!("node {} at {}{}", n.id, n.address, if n.retired { " retired" } else { "" })
        }
        Change::NodeRemoved(id) => format!("node {id} removed"),
        Change::Shard(s) => shard_line(s),
        Change::Gateway(g) => format!("gateway {} session {}", g.name, g.session),
        Change::GatewayGone(session) => format!("session {session} gone"),
        Change::Cluster(c) => format!("cluster {} of {} shards", c.id, c.shards),
    }
}
