//! How a node without a replica of meta comes by one: it asks the nodes that it was told of.

use crate::config::StorageConfig;
use crate::mailbox::Mailbox;
use longshore_node::{Input, Standing};
use longshore_proto::transport::{self, TlsIdentity};
use longshore_proto::v1::meta_client::MetaClient;
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::{self, WatchUp, meta_change};
use longshore_wire::{NodeId, ReplicaId};
use std::time::Duration;
use tokio::sync::watch;

/// A node without a replica of meta asks the others for one, and hears from them when it has been made. Where it has had one it
/// asks to replace that; else it becomes an observer, unless meta finds it a voter's place first.
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
            let command = match replica_of_meta(MetaClient::new(channel.clone()), node).await {
                Told::Nothing => continue,
                Told::Has(made) if made.learner && made.request == request => {
                    mailbox.report(Input::JoinMeta { replica: ReplicaId(made.id), request });
                    break;
                }
                Told::Has(old) => {
                    let replace = v1::ReplaceReplica { shard: 0, old: old.id, node: node.0, request };
                    Command::ReplaceReplica(replace)
                }
                Told::HasNone => Command::ObserveMeta(v1::ObserveMeta { node: node.0, request }),
            };
            let command = v1::MetaCommand { command: Some(command), ..v1::MetaCommand::default() };
            // Whoever leads answers it; the others refuse, and the next address is tried.
            let _ = MetaClient::new(channel).submit(command).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What another node says of this node's replica of meta.
enum Told {
    Has(v1::Replica),
    HasNone,
    /// It does not answer, or knows no meta itself.
    Nothing,
}

async fn replica_of_meta(mut client: MetaClient<tonic::transport::Channel>, node: NodeId) -> Told {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (ups, up) = tokio::sync::mpsc::channel(1);
    if ups.send(WatchUp { node: node.0, ..WatchUp::default() }).await.is_err() {
        return Told::Nothing;
    }
    let Ok(answer) = client.watch(tokio_stream::wrappers::ReceiverStream::new(up)).await else {
        return Told::Nothing;
    };
    let mut downs = answer.into_inner();
    let mut known = false;
    while let Ok(Ok(Some(down))) = tokio::time::timeout(PATIENCE, downs.message()).await {
        for change in down.changes.into_iter().filter_map(|change| change.change) {
            let meta_change::Change::Shard(shard) = change else { continue };
            let mine = shard.replicas.into_iter().find(|replica| replica.node == node.0 && !replica.leaving);
            if let (0, Some(replica)) = (shard.id, mine) {
                return Told::Has(replica);
            }
            known |= shard.id == 0;
        }
        if known && !down.more {
            return Told::HasNone;
        }
    }
    Told::Nothing
}
