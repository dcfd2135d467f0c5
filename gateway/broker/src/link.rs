//! One stream to one storage node, in a task of its own, opened again whenever it dies.

use crate::engine::Engine;
use crate::outbox::{Frames, Outbox};
use crate::session::consumers::item;
use longshore_proto::v1::storage_client::StorageClient;
use longshore_proto::v1::{self, gateway_item, node_item};
use longshore_proto::{MESSAGE_BYTES_MAX, VERSION, transport};
use longshore_wire::NodeId;
use std::sync::Arc;
use std::time::Duration;

const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_millis(1000);
/// A node that does not say welcome by then is tried anew.
const WELCOME_WITHIN: Duration = Duration::from_secs(3);

/// Keeps a stream to `node` until the session ends. Not restarted: it ends with the engine only.
pub(crate) async fn run(engine: Arc<Engine>, node: NodeId, address: String) {
    let mut backoff = BACKOFF_MIN;
    while !engine.lease.is_lost() {
        let outbox = Arc::new(Outbox::default());
        match stream(&engine, node, &address, &outbox).await {
            Ok(()) => backoff = BACKOFF_MIN,
            Err(error) => {
                tracing::debug!(%node, address, error, "no link to the storage node");
                backoff = (backoff * 2).min(BACKOFF_MAX);
            }
        }
        outbox.close();
        engine.link_down(node);
        metrics::counter!("longshore_gateway_links_lost_total").increment(1);
        tokio::time::sleep(backoff).await;
    }
}

/// One life of the stream. `Ok`: it was in use and died, which is ordinary.
async fn stream(
    engine: &Arc<Engine>,
    node: NodeId,
    address: &str,
    outbox: &Arc<Outbox>,
) -> Result<(), String> {
    let channel = transport::channel(address, engine.config.tls.as_ref()).map_err(|e| e.to_string())?;
    let mut client = StorageClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let cluster = engine.view.cluster().ok_or("the cluster is not known yet")?.id;
    outbox.push(item(gateway_item::Item::Hello(v1::Hello {
        cluster: cluster.clone(),
        session: engine.session.0,
        version: VERSION,
        gateway: engine.config.name.clone(),
    })));
    let opened = tokio::time::timeout(WELCOME_WITHIN, async {
        let mut inbound = client.link(Frames(outbox.clone())).await.map_err(|e| e.to_string())?.into_inner();
        let first = inbound.message().await.map_err(|e| e.to_string())?;
        Ok::<_, String>((inbound, first.ok_or("the node closed the stream")?))
    });
    let (mut inbound, mut first) = opened.await.map_err(|_| "no welcome in time".to_owned())??;
    check_welcome(&cluster, node, &mut first)?;
    engine.link_up(node, outbox);
    engine.on_frame(node, first);
    while let Ok(Some(frame)) = inbound.message().await {
        // Confirms and deliveries wait while the lease is in doubt.
        if !engine.lease.holds() && !engine.lease.wait().await {
            break;
        }
        engine.on_frame(node, frame);
    }
    Ok(())
}

/// The first item must be a welcome of the right cluster and node.
fn check_welcome(cluster: &str, node: NodeId, first: &mut v1::NodeFrame) -> Result<(), String> {
    if first.items.is_empty() {
        return Err("an empty frame instead of a welcome".into());
    }
    let Some(node_item::Item::Welcome(welcome)) = first.items.remove(0).item else {
        return Err("no welcome".into());
    };
    if welcome.version != VERSION {
        return Err(format!("the node speaks version {}, this gateway {VERSION}", welcome.version));
    }
    if welcome.cluster != cluster {
        return Err(format!("the node belongs to cluster {}, not {}", welcome.cluster, cluster));
    }
    if welcome.node != node.0 {
        return Err(format!("node {} answers at the address of node {node}", welcome.node));
    }
    Ok(())
}
