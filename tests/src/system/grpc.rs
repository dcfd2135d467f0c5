//! A gateway's session by hand over gRPC: batches with what no AMQP client can ask for yet (delays).

use super::cluster::Cluster;
use super::{inspect, until};
use anyhow::{Context, Result, bail};
use longshore_proto::v1::meta_client::MetaClient;
use longshore_proto::v1::storage_client::StorageClient;
use longshore_proto::v1::{self, batch_outcome, gateway_item, meta_command, node_item};
use longshore_wire::batch::BatchBuilder;
use longshore_wire::{BatchNo, SessionId};
use std::time::Duration;

/// Meta's lease of a session is 4 s and is not renewed here: everything must be done by then.
const PATIENCE: Duration = Duration::from_secs(3);
/// The version of the gRPC streams that this speaks.
const VERSION: u32 = longshore_proto::VERSION;

/// Asks each node until meta's leader has opened a session.
async fn open_session(cluster: &Cluster) -> Result<SessionId> {
    until("a session of meta", PATIENCE, async || {
        for n in 0..3 {
            let channel = longshore_proto::transport::channel(&cluster.node_address(n), None)?;
            let open = v1::OpenGateway { name: "test".to_owned(), addresses: Vec::new() };
            let command = Some(meta_command::Command::OpenGateway(open));
            let command = v1::MetaCommand { command, ..v1::MetaCommand::default() };
            let Ok(reply) = MetaClient::new(channel).submit(command).await else { continue };
            let reply = reply.into_inner();
            if reply.not_leader.is_none() && reply.session != 0 {
                return Ok(Some(SessionId(reply.session)));
            }
        }
        Ok(None)
    })
    .await
}

/// Hands one batch, built for a session of its own, to the leader of `shard`, and waits until it is applied.
pub async fn submit(
    cluster: &Cluster,
    shard: u32,
    build: impl FnOnce(&mut BatchBuilder) -> Result<()>,
) -> Result<()> {
    let session = open_session(cluster).await?;
    let leader = cluster.node_address(inspect::leader(cluster, shard).await?);
    let told = inspect::ask(&leader, "node").await?;
    let name = told["cluster"].as_str().context("the cluster's id")?.to_owned();
    let mut builder = BatchBuilder::new(session);
    build(&mut builder)?;
    let batch = builder.finish(BatchNo(1));

    let (frames, queue) = tokio::sync::mpsc::channel(16);
    let send = async |item: gateway_item::Item| {
        let item = v1::GatewayItem { item: Some(item) };
        frames.send(v1::GatewayFrame { items: vec![item] }).await.context("the stream ended")
    };
    let hello = v1::Hello { cluster: name, session: session.0, version: VERSION, gateway: "test".to_owned() };
    send(gateway_item::Item::Hello(hello)).await?;
    let submit = v1::Submit { shard, batch };
    send(gateway_item::Item::Submit(submit.clone())).await?;
    let requests = futures_util::stream::unfold(queue, async |mut queue| {
        let next = queue.recv().await?;
        Some((next, queue))
    });
    let channel = longshore_proto::transport::channel(&leader, None)?;
    let mut answers = StorageClient::new(channel).link(Box::pin(requests)).await?.into_inner();
    let answered = tokio::time::timeout(PATIENCE, async {
        loop {
            let frame = answers.message().await?.context("the stream ended")?;
            for item in frame.items.into_iter().filter_map(|item| item.item) {
                let node_item::Item::Outcome(outcome) = item else { continue };
                match outcome.result {
                    Some(batch_outcome::Result::Outcomes(_)) => return Ok(()),
                    // Its session is being opened in the shard, which nothing tells: once more after a pause, as a
                    // gateway does, until the patience is over.
                    Some(batch_outcome::Result::Refused(_) | batch_outcome::Result::Expected(_)) => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        send(gateway_item::Item::Submit(submit.clone())).await?;
                    }
                    None => bail!("an outcome without a result"),
                }
            }
        }
    });
    answered.await.context("the batch was not answered")?
}
