//! How a node without a replica of meta comes by one: it asks the nodes that it was told of.

use crate::config::StorageConfig;
use crate::mailbox::Mailbox;
use longshore_node::{Input, Standing};
use longshore_proto::transport::{self, TlsIdentity};
use longshore_proto::v1::meta_client::MetaClient;
use longshore_proto::v1::{self, WatchUp, meta_change};
use longshore_wire::{NodeId, ReplicaId};
use std::time::Duration;
use tokio::sync::watch;

/// A node without a replica of meta asks the others for one, and hears from them when it has been made.
pub(crate) async fn follow_meta_from_outside(
    config: StorageConfig,
    tls: Option<TlsIdentity>,
    node: NodeId,
    mailbox: Mailbox,
    mut standing: watch::Receiver<Standing>,
) {
    const PAUSE: Duration = Duration::from_millis(500);
    loop {
        let request = match standing.wait_for(|standing| standing.meta_request.is_some()).await {
            Ok(wanting) => wanting.meta_request.unwrap_or_default(),
            Err(_) => return,
        };
        for address in config.initial_nodes.iter().filter(|address| *address != config.advertised()) {
            let Ok(channel) = transport::channel(address, tls.as_ref()) else { continue };
            match replica_of_meta(MetaClient::new(channel.clone()), node).await {
                Some(made) if made.learner && made.request == request => {
                    mailbox.report(Input::JoinMeta { replica: ReplicaId(made.id), request });
                    break;
                }
                Some(old) => {
                    let replace = v1::ReplaceReplica { shard: 0, old: old.id, node: node.0, request };
                    let command = v1::meta_command::Command::ReplaceReplica(replace);
                    let command = v1::MetaCommand { command: Some(command), ..v1::MetaCommand::default() };
                    // Whoever leads answers it; the others refuse, and the next address is tried.
                    let _ = MetaClient::new(channel).submit(command).await;
                }
                None => {}
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The replica of meta on `node` as another node knows it; waits a while for one to appear.
async fn replica_of_meta(
    mut client: MetaClient<tonic::transport::Channel>,
    node: NodeId,
) -> Option<v1::Replica> {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (ups, up) = tokio::sync::mpsc::channel(1);
    ups.send(WatchUp { node: node.0, ..WatchUp::default() }).await.ok()?;
    let mut downs = client.watch(tokio_stream::wrappers::ReceiverStream::new(up)).await.ok()?.into_inner();
    while let Ok(Ok(Some(down))) = tokio::time::timeout(PATIENCE, downs.message()).await {
        for change in down.changes.into_iter().filter_map(|change| change.change) {
            let meta_change::Change::Shard(shard) = change else { continue };
            let mine = shard.replicas.into_iter().find(|replica| replica.node == node.0 && !replica.leaving);
            if let (0, Some(replica)) = (shard.id, mine) {
                return Some(replica);
            }
        }
    }
    None
}
