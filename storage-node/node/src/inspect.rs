//! What this node hosts, as JSON, for the `longshore` command and for tests.

use crate::META;
use crate::host::Host;
use longshore_consensus::{Role, Store};
use longshore_io::Mono;
use longshore_proto::v1::InspectRequest;
use longshore_wire::ShardId;
use serde_json::{Value, json};

/// Answers one request; an unknown one with an error in the JSON.
pub(crate) fn json(host: &Host, store: &Store, now: Mono, request: &InspectRequest) -> String {
    let answer = match request.what.as_str() {
        "node" => node(host, store),
        "shards" => store.groups().map(|group| shard(host, store, now, group)).collect(),
        "logs" => logs(host, ShardId(request.shard)),
        other => json!({"error": format!("{other}: this node shows node, shards and logs")}),
    };
    answer.to_string()
}

fn node(host: &Host, store: &Store) -> Value {
    let garbage = host.records.garbage();
    json!({
        "node": host.node.0, "cluster": host.config.cluster, "leads": store.leads(), "groups": store.groups().count(),
        "gateways": host.links.len(), "blocked": host.blocked, "log_bytes": garbage.bytes,
        "log_live_bytes": garbage.live_bytes, "live_messages": garbage.live_pointers, "segments": garbage.segments,
        "store_files": garbage.stores, "tail_bytes": garbage.tail_bytes,
        "damaged": host.damaged.iter().map(|group| group.0).collect::<Vec<_>>(),
    })
}

fn shard(host: &Host, store: &Store, now: Mono, group: ShardId) -> Value {
    let Some(status) = store.status(group) else { return json!({"shard": group.0}) };
    let (role, term, leader) = match status.role {
        Role::Leader { term } => ("leader", term, Some(status.replica)),
        Role::Follower { term, leader } => ("follower", term, leader),
    };
    let ids = |list: &[longshore_wire::ReplicaId]| list.iter().map(|id| id.0).collect::<Vec<_>>();
    // While a change is under way a majority of the voters before it must agree, too.
    let mut voters = [&status.membership.voters[..], &status.membership.outgoing[..]].concat();
    voters.sort_unstable();
    voters.dedup();
    let state_hash = if group == META {
        Some(host.meta.meta.state_hash())
    } else {
        host.shards.get(&group).map(|host| host.shard.state_hash())
    };
    json!({
        "shard": group.0, "node": host.node.0, "replica": status.replica.0, "role": role, "term": term.0,
        "leader_node": leader.map(|leader| leader.node().0), "first": status.first.0, "last": status.last.0,
        "committed": status.committed.0, "applied": status.applied.0, "may_deliver": store.may_deliver(group, now),
        "voters": ids(&voters), "learners": ids(&status.membership.learners),
        "logs": host.shards.get(&group).map(|host| host.shard.logs().count()), "state_hash": state_hash,
    })
}

fn logs(host: &Host, shard: ShardId) -> Value {
    let Some(host) = host.shards.get(&shard) else { return json!([]) };
    let shown = host.shard.logs().map(|log| {
        let unsettled = log.cursors().map(|(_, cursor)| cursor.unsettled_count()).sum::<u64>();
        json!({"log": log.id().0, "first": log.first().0, "next": log.next().0, "unsettled": unsettled})
    });
    shown.collect()
}
