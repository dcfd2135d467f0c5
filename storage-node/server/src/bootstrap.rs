//! Which cluster a data directory belongs to: found again, formed with others, or joined.
//!
//! A cluster is formed once, when every address in `initial_nodes` answers with an empty data directory: its id is a hash over
//! all their identities, so that each node computes the same one alone. An empty node that finds a peer with a cluster joins
//! that; otherwise it waits. Until a node knows that its cluster is formed, it begins so again at each start: it may be the one
//! that must form it. Danger: a node that formed a second cluster beside a living one would split it.

use crate::config::StorageConfig;
use longshore_io::Disk;
use longshore_log::{Identity, IdentityError};
use longshore_proto::VERSION;
use longshore_proto::transport::{self, TlsIdentity};
use longshore_proto::v1::meta_client::MetaClient;
use longshore_proto::v1::peer_client::PeerClient;
use longshore_proto::v1::{
    self, IdentifyRequest, MetaCommand, MetaError, RegisterNode, StorageNode as NodeInfo, meta_command,
};
use longshore_wire::NodeId;
use sha2::{Digest, Sha256};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Between two rounds of asking the others.
const ASK_EVERY: Duration = Duration::from_millis(200);
/// One question takes no longer.
const ASK_TIME: Duration = Duration::from_secs(2);
/// A node that ended while its cluster was being formed waits this long for all others, since it may be the one that must
/// form it.
const FORMING_TIME: Duration = Duration::from_secs(30);

/// What a node knows of itself once it belongs to a cluster.
#[derive(Clone, Debug)]
pub(crate) struct Membership {
    pub cluster: String,
    pub node: NodeId,
    /// The nodes that form the cluster, in order of their ids; empty if it was formed before.
    pub forming: Vec<NodeInfo>,
    /// The cluster is known to be formed.
    pub formed: bool,
    /// This directory belonged to it at an earlier start: it has a log, or has lost it.
    pub settled: bool,
}

/// Finds out. Waits as long as it takes; `identity` is what others are told meanwhile.
pub(crate) async fn find(
    config: &StorageConfig,
    tls: Option<&TlsIdentity>,
    disk: &Arc<dyn Disk>,
    own: Identity,
    told: &Arc<Mutex<v1::Identity>>,
) -> Result<Membership, IdentityError> {
    if let (Some(cluster), Some(node), true) = (own.cluster, own.node, own.settled) {
        return Ok(Membership {
            cluster: hex(&cluster),
            node,
            forming: Vec::new(),
            formed: true,
            settled: true,
        });
    }
    let mut addresses = config.initial_nodes.clone();
    if addresses.is_empty() {
        addresses.push(config.advertised().to_owned());
    }
    addresses.sort();
    addresses.dedup();
    let asked_since = Instant::now();
    loop {
        let answers = ask_all(&addresses, config.advertised(), tls, told).await;
        if let Some(membership) = member_of(config, tls, &own, &addresses, &answers, asked_since).await {
            let mut identity = own.clone();
            identity.cluster = unhex(&membership.cluster);
            identity.node = Some(membership.node);
            // The process may end before the cluster is formed, and this node may be the one that must form it.
            identity.settled = false;
            identity.store(disk.as_ref())?;
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            told.cluster.clone_from(&membership.cluster);
            told.node = membership.node.0;
            return Ok(membership);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

/// What the answers of one round make this node a member of.
async fn member_of(
    config: &StorageConfig,
    tls: Option<&TlsIdentity>,
    own: &Identity,
    addresses: &[String],
    answers: &[Option<v1::Identity>],
    asked_since: Instant,
) -> Option<Membership> {
    let peers = || answers.iter().flatten().filter(|answer| *answer.identity != own.random);
    let Some(known) = own.cluster.map(|cluster| hex(&cluster)) else {
        let with_cluster =
            peers().find(|peer| !peer.cluster.is_empty() && !is_forming_with_us(peer, answers, own));
        return match with_cluster {
            Some(peer) => join(config, tls, own, peer).await,
            None => form(addresses, answers, own),
        };
    };
    // It ended before it knew that its cluster is formed. Where it is, it has this node's identity already.
    let fellow = peers().find(|peer| peer.cluster == known);
    if let Some(peer) = fellow
        && let Some(membership) = join(config, tls, own, peer).await
    {
        return Some(membership);
    }
    let formed = form(addresses, answers, own).filter(|membership| membership.cluster == known);
    if formed.is_some() || fellow.is_none() || asked_since.elapsed() < FORMING_TIME {
        return formed;
    }
    // Meta may be waiting for this very node.
    own.node.map(|node| Membership {
        cluster: known,
        node,
        forming: Vec::new(),
        formed: false,
        settled: false,
    })
}

/// From now on the directory is of this cluster for good: it is formed, and the node's log is made. Blocking.
pub(crate) fn settle(disk: &dyn Disk) -> Result<(), IdentityError> {
    match Identity::load(disk)? {
        Some(identity) if !identity.settled => Identity { settled: true, ..identity }.store(disk),
        _ => Ok(()),
    }
}

async fn ask_all(
    addresses: &[String],
    own_address: &str,
    tls: Option<&TlsIdentity>,
    told: &Arc<Mutex<v1::Identity>>,
) -> Vec<Option<v1::Identity>> {
    let asks = addresses.iter().map(|address| async move {
        if address == own_address {
            return Some(told.lock().unwrap_or_else(PoisonError::into_inner).clone());
        }
        let channel = transport::channel(address, tls).ok()?;
        let request = IdentifyRequest { version: VERSION, cluster: String::new() };
        let mut client = PeerClient::new(channel);
        tokio::time::timeout(ASK_TIME, client.identify(request))
            .await
            .ok()?
            .ok()
            .map(|answer| answer.into_inner())
    });
    futures_util::future::join_all(asks).await
}

/// A peer that has just formed the cluster that we are about to form with it.
fn is_forming_with_us(peer: &v1::Identity, answers: &[Option<v1::Identity>], own: &Identity) -> bool {
    let all: Option<Vec<&v1::Identity>> = answers.iter().map(Option::as_ref).collect();
    all.is_some_and(|all| {
        all.iter().any(|answer| *answer.identity == own.random) && cluster_id(&all) == peer.cluster
    })
}

/// Zones count: who votes in meta follows from them, and two nodes must not begin with different voters.
fn cluster_id(all: &[&v1::Identity]) -> String {
    let mut sorted: Vec<_> = all.iter().map(|answer| (&answer.identity, &answer.zone)).collect();
    sorted.sort();
    let mut hash = Sha256::new();
    for (identity, zone) in sorted {
        hash.update(identity);
        if !zone.is_empty() {
            hash.update((zone.len() as u64).to_le_bytes());
            hash.update(zone);
        }
    }
    hex(&hash.finalize()[..16])
}

/// Forms the cluster if all of it is here, each with an identity and without a cluster (or with this very one).
fn form(addresses: &[String], answers: &[Option<v1::Identity>], own: &Identity) -> Option<Membership> {
    let all: Vec<&v1::Identity> = answers.iter().map(Option::as_ref).collect::<Option<_>>()?;
    let cluster = cluster_id(&all);
    if !all.iter().all(|answer| answer.cluster.is_empty() || answer.cluster == cluster) {
        return None;
    }
    let info = |(at, (address, answer)): (usize, (&String, &&v1::Identity))| NodeInfo {
        id: at as u32 + 1,
        address: address.clone(),
        zone: answer.zone.clone(),
        version: answer.version.clone(),
        retired: false,
        identity: answer.identity.clone(),
    };
    let forming: Vec<NodeInfo> = addresses.iter().zip(&all).enumerate().map(info).collect();
    let me = forming.iter().find(|node| *node.identity == own.random)?;
    let node = NodeId(me.id);
    tracing::info!(%cluster, %node, nodes = forming.len(), "forming a cluster");
    Some(Membership { cluster, node, forming, formed: false, settled: false })
}

/// Asks to be taken into a peer's cluster as a new node.
async fn join(
    config: &StorageConfig,
    tls: Option<&TlsIdentity>,
    own: &Identity,
    peer: &v1::Identity,
) -> Option<Membership> {
    let mut addresses = vec![peer.address.clone()];
    addresses.extend(config.initial_nodes.iter().filter(|address| *address != config.advertised()).cloned());
    let reply = register(config, tls, 0, &own.random, addresses).await?;
    if reply.error() != MetaError::MetaOk || reply.node == 0 {
        return None;
    }
    tracing::info!(cluster = %peer.cluster, node = reply.node, "joined a cluster");
    Some(Membership {
        cluster: peer.cluster.clone(),
        node: NodeId(reply.node),
        forming: Vec::new(),
        formed: true,
        settled: false,
    })
}

/// Tells meta where a node that belonged to the cluster before is now, in which zone, and of which version. The others would
/// look for it where it was; and nodes with a lower id are who dials it, so that it may hear of nobody until then.
pub(crate) async fn announce(
    config: StorageConfig,
    tls: Option<TlsIdentity>,
    node: NodeId,
    random: [u8; 16],
) {
    let mut addresses = config.initial_nodes.clone();
    addresses.push(config.advertised().to_owned());
    loop {
        match register(&config, tls.as_ref(), node.0, &random, addresses.clone()).await {
            Some(reply) if reply.error() == MetaError::MetaOk => return,
            Some(reply) => {
                let why = reply.message;
                tracing::error!(%why, "meta does not take this node's address, zone and version");
                return;
            }
            None => tokio::time::sleep(ASK_EVERY).await,
        }
    }
}

/// What meta's leader answers to this node's address, zone and version; `None` if it is not found at these addresses. `id`: 0
/// for a node that has never belonged to the cluster; with any other, meta takes it for that one or for none.
async fn register(
    config: &StorageConfig,
    tls: Option<&TlsIdentity>,
    id: u32,
    random: &[u8; 16],
    mut addresses: Vec<String>,
) -> Option<v1::MetaReply> {
    let info = NodeInfo {
        id,
        address: config.advertised().to_owned(),
        zone: config.zone.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        retired: false,
        identity: random.to_vec().into(),
    };
    let register = meta_command::Command::RegisterNode(RegisterNode { node: Some(info) });
    let command = MetaCommand { command: Some(register), ..MetaCommand::default() };
    let mut at = 0;
    while let Some(address) = addresses.get(at).cloned() {
        at += 1;
        let Some(reply) = submit(&address, tls, command.clone()).await else { continue };
        if let Some(leader) = &reply.not_leader
            && !leader.address.is_empty()
            && !addresses.contains(&leader.address)
        {
            addresses.push(leader.address.clone());
        }
        if !matches!(reply.error(), MetaError::MetaNotLeader | MetaError::MetaUnavailable) {
            return Some(reply);
        }
    }
    None
}

async fn submit(address: &str, tls: Option<&TlsIdentity>, command: MetaCommand) -> Option<v1::MetaReply> {
    let channel = transport::channel(address, tls).ok()?;
    let mut client = MetaClient::new(channel);
    tokio::time::timeout(ASK_TIME, client.submit(command)).await.ok()?.ok().map(|reply| reply.into_inner())
}

/// Lower-case hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    let byte = |at: usize| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok();
    let bytes: Option<Vec<u8>> = (0..16).map(byte).collect();
    bytes?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_computes_the_same_cluster() {
        let identity = |byte: u8| v1::Identity { identity: vec![byte; 16].into(), ..v1::Identity::default() };
        let (a, b, c) = (identity(1), identity(2), identity(3));
        let id = cluster_id(&[&a, &b, &c]);
        assert_eq!(id, cluster_id(&[&c, &a, &b]));
        assert_ne!(id, cluster_id(&[&a, &b]));
        let elsewhere = v1::Identity { zone: "east".into(), ..c.clone() };
        assert_ne!(id, cluster_id(&[&a, &b, &elsewhere]));
        assert_eq!(hex(&unhex(&id).unwrap()), id);
    }
}
