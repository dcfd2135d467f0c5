//! What storage nodes say of themselves, over the Admin service; and leader transfer.

use super::cluster::Cluster;
use super::until;
use anyhow::{Context, Result, bail};
use longshore_proto::v1::admin_client::AdminClient;
use longshore_proto::v1::{InspectRequest, TransferLeaderRequest};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::Duration;

/// An answer that does not come is none.
const CALL_TIME: Duration = Duration::from_secs(3);

/// One shard as one of its replicas sees it.
#[derive(Clone, Debug)]
pub struct ShardView {
    /// Its number; 0 is meta.
    pub shard: u32,
    /// The node that answered.
    pub node: u32,
    /// Whether that node leads.
    pub leads: bool,
    /// The nodes of its voters.
    pub voters: Vec<u32>,
    /// The nodes of its learners.
    pub learners: Vec<u32>,
    /// How far it has applied.
    pub applied: u64,
}

/// Asks the node at `address` about itself: `node` or `shards`.
pub async fn ask(address: &str, what: &str) -> Result<Value> {
    let channel = longshore_proto::transport::channel(address, None)?;
    let request = InspectRequest { what: what.to_owned(), ..InspectRequest::default() };
    let mut client = AdminClient::new(channel);
    let reply = tokio::time::timeout(CALL_TIME, client.inspect(request)).await??;
    Ok(serde_json::from_str(&reply.into_inner().json)?)
}

fn number(value: &Value, key: &str) -> u64 {
    value.get(key).and_then(Value::as_u64).unwrap_or(0)
}

fn nodes_of(value: &Value, key: &str) -> Vec<u32> {
    let ids = value.get(key).and_then(Value::as_array).into_iter().flatten();
    ids.filter_map(Value::as_u64).map(|replica| (replica >> 16) as u32).collect()
}

/// The id of the node at `address`.
pub async fn node_id(address: &str) -> Result<u32> {
    Ok(number(&ask(address, "node").await?, "node") as u32)
}

/// All shards of the node at `address`, meta included.
pub async fn shards(address: &str) -> Result<Vec<ShardView>> {
    let answer = ask(address, "shards").await?;
    let list = answer.as_array().context("a list of shards")?.iter().map(|shard| ShardView {
        shard: number(shard, "shard") as u32,
        node: number(shard, "node") as u32,
        leads: shard.get("role").and_then(Value::as_str) == Some("leader"),
        voters: nodes_of(shard, "voters"),
        learners: nodes_of(shard, "learners"),
        applied: number(shard, "applied"),
    });
    Ok(list.collect())
}

/// The place in the cluster's list of the node that leads a shard; waits for one.
pub async fn leader(cluster: &Cluster, shard: u32) -> Result<usize> {
    until(&format!("a leader of shard {shard}"), Duration::from_secs(20), async || {
        for n in 0..cluster.nodes() {
            let Ok(list) = shards(&cluster.node_address(n)).await else { continue };
            if list.iter().any(|view| view.shard == shard && view.leads) {
                return Ok(Some(n));
            }
        }
        Ok(None)
    })
    .await
}

/// What all nodes say of their shards, a line each: for the output of a test that failed.
pub async fn describe(cluster: &Cluster) -> String {
    let mut text = String::new();
    for n in 0..cluster.nodes() {
        let answer = match ask(&cluster.node_address(n), "shards").await {
            Ok(shards) => shards.to_string(),
            Err(error) => format!("{error:#}"),
        };
        text += &format!("node {n}: {answer}\n");
    }
    text
}

/// Waits until every replica of every shard shows three voters on the three nodes that run now, and no learner. The leader alone
/// is not enough: until the others know of the change, they count on a node that is gone.
pub async fn wait_for_three_voters(cluster: &Cluster, limit: Duration) -> Result<()> {
    until("three voters of every shard", limit, async || {
        let (mut ids, mut views) = (Vec::new(), Vec::new());
        for n in 0..cluster.nodes() {
            let address = cluster.node_address(n);
            ids.push(node_id(&address).await?);
            views.extend(shards(&address).await?);
        }
        ids.sort_unstable();
        let led: BTreeSet<u32> = views.iter().filter(|view| view.leads).map(|view| view.shard).collect();
        if led.len() < 7 || views.len() < 21 {
            bail!("{} of 7 shards have a leader, {} of 21 replicas are there", led.len(), views.len());
        }
        for view in &views {
            let mut voters = view.voters.clone();
            voters.sort_unstable();
            if voters != ids || !view.learners.is_empty() {
                let (shard, node) = (view.shard, view.node);
                bail!(
                    "shard {shard} on {node}: voters {voters:?}, learners {:?}, nodes {ids:?}",
                    view.learners
                );
            }
        }
        Ok(Some(()))
    })
    .await
}

/// Waits until the leaders are spread: shard s is led by the (s mod 3)th node. From then on no leadership moves by
/// itself while all nodes live, and transient queues stay.
pub async fn wait_for_spread_leaders(cluster: &Cluster) -> Result<()> {
    until("the leaders to be spread", Duration::from_secs(60), async || {
        let (mut ids, mut led) = (Vec::new(), Vec::new());
        for n in 0..cluster.nodes() {
            let address = cluster.node_address(n);
            ids.push(node_id(&address).await?);
            led.extend(shards(&address).await?.into_iter().filter(|view| view.leads));
        }
        ids.sort_unstable();
        let at_home = led.iter().filter(|view| view.node == ids[view.shard as usize % ids.len()]).count();
        if at_home == 7 && led.len() == 7 {
            Ok(Some(()))
        } else {
            bail!("{at_home} of {} are at home", led.len())
        }
    })
    .await
}

/// Moves a shard's leadership to the node at place `to` and waits until it leads.
pub async fn transfer(cluster: &Cluster, shard: u32, to: usize) -> Result<()> {
    let node = node_id(&cluster.node_address(to)).await?;
    until(&format!("shard {shard} to be led by node {node}"), Duration::from_secs(20), async || {
        let from = leader(cluster, shard).await?;
        if from == to {
            return Ok(Some(()));
        }
        let channel = longshore_proto::transport::channel(&cluster.node_address(from), None)?;
        let reply = AdminClient::new(channel).transfer_leader(TransferLeaderRequest { shard, node }).await?;
        let reply = reply.into_inner();
        if !reply.started {
            bail!("{}", reply.message);
        }
        // Asked again at once, the leader would begin the transfer anew; asked only once, it may have given it up.
        until("the transfer that was begun", Duration::from_secs(2), async || {
            Ok((leader(cluster, shard).await? == to).then_some(()))
        })
        .await?;
        Ok(Some(()))
    })
    .await
}
