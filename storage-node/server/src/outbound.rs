//! Calls of this node to its peers that need connections of their own: snapshots, fetches, commands for meta's leader.

use crate::mailbox::Mailbox;
use crate::peers::Peers;
use longshore_consensus::Event;
use longshore_node::{FetchSend, Input, SnapshotSend};
use longshore_proto::v1::meta_client::MetaClient;
use longshore_proto::v1::peer_client::PeerClient;
use longshore_proto::v1::{Many, MetaCommand, SnapshotPart, meta_command};
use longshore_wire::{NodeId, ShardId};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The receiver of a snapshot has this long.
const SNAPSHOT_TIME: Duration = Duration::from_secs(3_600);
/// A peer must bring the next records within this time.
const FETCH_TIME: Duration = Duration::from_secs(30);
/// A command for meta's leader is given up after this long; it comes again.
const META_TIME: Duration = Duration::from_secs(5);
/// One message of a fetch carries a record with its whole body, of up to 128 MiB.
const FETCH_BYTES_MAX: usize = 256 << 20;
/// Commands for meta in one call.
const COMMANDS_MAX: usize = 256;

/// Starts such calls; their ends come back through the mailbox.
#[derive(Clone)]
pub(crate) struct Outbound {
    pub peers: Peers,
    pub mailbox: Mailbox,
    pub runtime: tokio::runtime::Handle,
    /// A call to meta's leader is under way.
    pub telling_meta: Arc<AtomicBool>,
}

impl Outbound {
    /// Sends a snapshot, tells consensus how it went. Like all calls here it may come from any thread.
    pub fn snapshot(&self, send: SnapshotSend) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let (group, to) = (ShardId(send.head.group), send.to);
            let sent = tokio::time::timeout(SNAPSHOT_TIME, this.send_snapshot(send)).await;
            let installed = matches!(sent, Ok(Ok(true)));
            if let Ok(Err(status)) = sent {
                tracing::warn!(%group, %to, %status, "a snapshot could not be sent");
            }
            this.mailbox.report(Input::Consensus(Event::SnapshotSent { group, to, installed }));
        });
    }

    async fn send_snapshot(&self, send: SnapshotSend) -> Result<bool, tonic::Status> {
        let unknown = || tonic::Status::unavailable("the receiver's address is not known");
        let channel = self.peers.channel(send.to_node).ok_or_else(unknown)?;
        let head = SnapshotPart { head: Some(send.head), pages: Vec::new() };
        let pages = send.pages.into_iter().map(|page| SnapshotPart { head: None, pages: vec![page] });
        let parts: Vec<SnapshotPart> = std::iter::once(head).chain(pages).collect();
        let mut client = PeerClient::new(channel);
        Ok(client.snapshot(tokio_stream::iter(parts)).await?.into_inner().installed)
    }

    /// Fetches records from a peer.
    pub fn fetch(&self, send: FetchSend) {
        let this = self.clone();
        self.runtime.spawn(async move {
            let (group, fetch) = (send.group, send.fetch);
            if let Err(status) = this.fetch_all(send).await {
                tracing::warn!(%group, %status, "records could not be fetched from a peer");
                this.mailbox.report(Input::Fetched { fetch, reply: None });
            }
        });
    }

    async fn fetch_all(&self, send: FetchSend) -> Result<(), tonic::Status> {
        let unknown = || tonic::Status::unavailable("the peer's address is not known");
        let channel = self.peers.channel(send.to_node).ok_or_else(unknown)?;
        let mut client = PeerClient::new(channel).max_decoding_message_size(FETCH_BYTES_MAX);
        let mut replies = client.fetch(send.request).await?.into_inner();
        loop {
            let next = tokio::time::timeout(FETCH_TIME, replies.message()).await;
            let next = next.map_err(|_| tonic::Status::deadline_exceeded("the peer is too slow"))??;
            let Some(reply) = next else { return Err(tonic::Status::aborted("the peer ended too early")) };
            let done = reply.done || reply.unknown_snapshot;
            let bytes = reply
                .records
                .iter()
                .map(|r| r.record.len() + r.parts.iter().map(bytes::Bytes::len).sum::<usize>())
                .sum();
            self.mailbox.send(Input::Fetched { fetch: send.fetch, reply: Some(reply) }, bytes).await;
            if done {
                return Ok(());
            }
        }
    }

    /// Tells the leader of meta what this node wants; one call at a time, since it all comes again.
    pub fn meta(&self, mut commands: Vec<MetaCommand>, leader: Option<NodeId>) {
        let Some(leader) = leader else { return };
        if self.telling_meta.swap(true, Ordering::AcqRel) {
            return;
        }
        commands.truncate(COMMANDS_MAX);
        let this = self.clone();
        self.runtime.spawn(async move {
            let Some(channel) = this.peers.channel(leader) else {
                return this.telling_meta.store(false, Ordering::Release);
            };
            let many = meta_command::Command::Many(Many { commands });
            let command = MetaCommand { command: Some(many), ..MetaCommand::default() };
            let mut client = MetaClient::new(channel);
            let _ = tokio::time::timeout(META_TIME, client.submit(command)).await;
            this.telling_meta.store(false, Ordering::Release);
        });
    }
}
