//! More nodes than copies, in three zones: each shard has a copy in each, a whole zone may go, a node may move.

use anyhow::{Result, bail};
use futures_util::future::try_join_all;
use longshore_tests::system::cluster::Cluster;
use longshore_tests::system::inspect::{describe, node_id, shards, wait_for_three_voters};
use longshore_tests::system::load::Load;
use longshore_tests::system::{admin, goes_on, run, until};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Two nodes in each.
const ZONES: [&str; 3] = ["east", "north", "west"];
const NODES: usize = 2 * ZONES.len();
/// Meta and the shards that hold logs.
const SHARDS: usize = 7;

/// Waits until every shard has three voters in three zones and no node that is gone, as every replica sees it, and every node
/// has meta.
async fn wait_for_a_copy_in_each_zone(cluster: &Cluster) -> Result<()> {
    until("a copy of every shard in each zone", Duration::from_secs(60), async || {
        let mut zones = BTreeMap::new();
        let mut views = Vec::new();
        for n in 0..NODES {
            let address = cluster.node_address(n);
            zones.insert(node_id(&address).await?, n / 2);
            views.extend(shards(&address).await?);
        }
        let meta = views.iter().filter(|view| view.shard == 0);
        let (voting, all) =
            (meta.clone().filter(|view| view.voters.contains(&view.node)).count(), meta.count());
        if (voting, all) != (3, NODES) {
            bail!("{voting} of {all} replicas of meta vote");
        }
        if views.len() != NODES + 3 * (SHARDS - 1) {
            bail!("{} replicas", views.len());
        }
        for view in &views {
            let of: BTreeSet<_> = view.voters.iter().filter_map(|node| zones.get(node)).collect();
            let gone = view.learners.iter().filter(|node| !zones.contains_key(node)).count();
            let learning = if view.shard == 0 { NODES - 3 } else { 0 };
            if (view.voters.len(), of.len(), view.learners.len(), gone) != (3, 3, learning, 0) {
                bail!("{view:?}");
            }
        }
        Ok(Some(()))
    })
    .await
}

async fn writes_go_on(loads: &[Load]) -> Result<Duration> {
    let took = try_join_all(loads.iter().map(|load| load.goes_on(goes_on()))).await?;
    Ok(took.into_iter().max().unwrap_or_default())
}

#[test]
fn fault_a_whole_zone_killed_each_in_turn() -> Result<()> {
    run("zones", Duration::from_secs(400), async |dir| {
        let mut cluster = Cluster::prepare_nodes(dir, NODES, 1, &[])?;
        for n in 0..NODES {
            cluster.set_node(n, &format!("storage.zone={}", ZONES[n / 2]));
        }
        cluster.start_all().await?;
        wait_for_a_copy_in_each_zone(&cluster).await?;
        let queues = ["a", "b", "c", "d"];
        let loads = try_join_all(queues.map(|queue| Load::start(cluster.amqp(), queue))).await?;
        for (zone, name) in ZONES.iter().enumerate() {
            let nodes = [2 * zone, 2 * zone + 1];
            for n in nodes {
                cluster.kill_node(n)?;
            }
            println!("{name} killed, writes went on after {:?}", writes_go_on(&loads).await?);
            // One of them comes back as it was, the other one with nothing.
            std::fs::remove_dir_all(cluster.data_dir(nodes[0]))?;
            for n in nodes {
                cluster.start_node(n).await?;
            }
            let spread = wait_for_a_copy_in_each_zone(&cluster).await;
            if spread.is_err() {
                println!("{}", describe(&cluster).await);
            }
            spread?;
        }
        for load in loads {
            load.finish().await?;
        }
        Ok(())
    })
}

#[test]
fn a_node_that_comes_back_elsewhere_is_found_there() -> Result<()> {
    run("moved", Duration::from_secs(120), async |dir| {
        let mut cluster = Cluster::start(dir, 1, &[]).await?;
        let load = Load::start(cluster.amqp(), "q").await?;
        // The last node: the others dial it, so it hears of nobody until they know where it is.
        cluster.kill_node(2)?;
        cluster.move_node(2)?;
        cluster.set_node(2, "storage.zone=east");
        cluster.start_node(2).await?;
        wait_for_three_voters(&cluster, Duration::from_secs(60)).await?;
        until("the listing to name it", Duration::from_secs(20), async || {
            let nodes = admin::admin(&cluster.management(0), &["nodes"]).await?;
            let named = |node: &serde_json::Value| {
                node["address"] == cluster.node_address(2)
                    && node["zone"] == "east"
                    && node["connected"] == true
            };
            let found = nodes.as_array().is_some_and(|nodes| nodes.len() == 3 && nodes.iter().any(named));
            if found { Ok(Some(())) } else { bail!("{nodes}") }
        })
        .await?;
        // It counts for the majority.
        cluster.kill_node(0)?;
        load.goes_on(goes_on()).await?;
        load.finish().await
    })
}
