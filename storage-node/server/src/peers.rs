//! One connection per pair of nodes: a bidirectional gRPC stream that carries all groups' frames, both ways.
//!
//! The node with the lower id dials. Each side has two bounded queues per peer: control frames (heartbeats, votes,
//! acknowledgements) go before bulk ones. A full queue drops its frame, which Raft repairs.

use crate::mailbox::Mailbox;
use bytes::Bytes;
use longshore_consensus::{Event, Frame, Lane};
use longshore_node::Input;
use longshore_proto::transport::{self, TlsIdentity};
use longshore_proto::v1::peer_client::PeerClient;
use longshore_proto::v1::{PeerFrame, PeerHello};
use longshore_proto::{MESSAGE_BYTES_MAX, VERSION};
use longshore_wire::NodeId;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

/// Frames that may wait for one peer in each lane; a frame has at most about 1 MiB.
const CONTROL_FRAMES_MAX: usize = 1_024;
const BULK_FRAMES_MAX: usize = 64;
/// Between two tries to reach a peer.
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

struct Sender {
    /// Tells one connection from the next.
    id: u64,
    control: mpsc::Sender<Bytes>,
    bulk: mpsc::Sender<Bytes>,
}

#[derive(Default)]
struct State {
    senders: BTreeMap<NodeId, Sender>,
    addresses: BTreeMap<NodeId, String>,
    dialers: BTreeMap<NodeId, tokio::task::JoinHandle<()>>,
    next: u64,
}

/// All peers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers {
    state: Arc<Mutex<State>>,
    me: Arc<Me>,
}

struct Me {
    cluster: String,
    node: NodeId,
    tls: Option<TlsIdentity>,
    mailbox: Mailbox,
    runtime: tokio::runtime::Handle,
}

impl Peers {
    pub fn new(
        cluster: String,
        node: NodeId,
        tls: Option<TlsIdentity>,
        mailbox: Mailbox,
        runtime: tokio::runtime::Handle,
    ) -> Peers {
        Peers { state: Arc::default(), me: Arc::new(Me { cluster, node, tls, mailbox, runtime }) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends a frame if the peer is connected and its queue has room.
    pub fn send(&self, frame: Frame) {
        let state = self.lock();
        let Some(sender) = state.senders.get(&frame.to) else { return };
        let lane = if frame.lane == Lane::Control { &sender.control } else { &sender.bulk };
        if lane.try_send(frame.bytes).is_err() {
            metrics::counter!("longshore_peer_frames_dropped_total").increment(1);
        }
    }

    /// Takes the addresses that meta knows; dials those of higher ids.
    pub fn set_addresses(&self, addresses: Vec<(NodeId, String)>) {
        let mut state = self.lock();
        let addresses: BTreeMap<_, _> =
            addresses.into_iter().filter(|(node, _)| *node != self.me.node).collect();
        let State { dialers, addresses: old, .. } = &mut *state;
        dialers.retain(|node, dialer| {
            let stays = addresses.get(node) == old.get(node);
            if !stays {
                dialer.abort();
            }
            stays
        });
        for (node, address) in addresses.iter().filter(|(node, _)| **node > self.me.node) {
            dialers
                .entry(*node)
                .or_insert_with(|| self.me.runtime.spawn(self.clone().dial_for_ever(*node, address.clone())));
        }
        state.addresses = addresses;
    }

    /// Where a peer listens.
    pub fn address(&self, node: NodeId) -> Option<String> {
        self.lock().addresses.get(&node).cloned()
    }

    /// A channel to a peer, for what needs a connection of its own.
    pub fn channel(&self, node: NodeId) -> Option<Channel> {
        transport::channel(&self.address(node)?, self.me.tls.as_ref()).ok()
    }

    /// The cluster.
    pub fn cluster(&self) -> &str {
        &self.me.cluster
    }

    /// Ends all connections.
    pub fn stop(&self) {
        let mut state = self.lock();
        for dialer in std::mem::take(&mut state.dialers).into_values() {
            dialer.abort();
        }
        state.senders.clear();
    }

    async fn dial_for_ever(self, node: NodeId, address: String) {
        loop {
            match transport::channel(&address, self.me.tls.as_ref()) {
                Ok(channel) => {
                    if let Err(status) = self.dial(node, channel).await {
                        tracing::debug!(%node, %address, %status, "no connection to a peer");
                    }
                    self.me.mailbox.report(Input::Consensus(Event::PeerUnreachable(node)));
                }
                Err(error) => tracing::warn!(%node, %error, "cannot dial a peer"),
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    async fn dial(&self, node: NodeId, channel: Channel) -> Result<(), tonic::Status> {
        let mut client = PeerClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        let (out, frames) = mpsc::channel(1);
        let hello = PeerHello { cluster: self.me.cluster.clone(), node: self.me.node.0, version: VERSION };
        let _ = out.send(PeerFrame { hello: Some(hello), frame: Bytes::new() }).await;
        let mut inbound = client.raft(ReceiverStream::new(frames)).await?.into_inner();
        let id = self.connected(node, out);
        let result = async {
            while let Some(frame) = inbound.message().await? {
                self.received(node, frame.frame).await;
            }
            Ok(())
        }
        .await;
        self.disconnected(node, id);
        result
    }

    /// A stream to or from a peer is up: `out` takes what goes to it. Returns the connection's number.
    pub fn connected(&self, node: NodeId, out: mpsc::Sender<PeerFrame>) -> u64 {
        let (control, mut control_frames) = mpsc::channel::<Bytes>(CONTROL_FRAMES_MAX);
        let (bulk, mut bulk_frames) = mpsc::channel::<Bytes>(BULK_FRAMES_MAX);
        self.me.runtime.spawn(async move {
            loop {
                let frame = tokio::select! {
                    biased;
                    frame = control_frames.recv() => frame,
                    frame = bulk_frames.recv() => frame,
                };
                let Some(frame) = frame else { return };
                if out.send(PeerFrame { hello: None, frame }).await.is_err() {
                    return;
                }
            }
        });
        let mut state = self.lock();
        state.next += 1;
        let id = state.next;
        state.senders.insert(node, Sender { id, control, bulk });
        tracing::info!(%node, "connected to a peer");
        id
    }

    /// The stream is down.
    pub fn disconnected(&self, node: NodeId, id: u64) {
        let mut state = self.lock();
        if state.senders.get(&node).is_some_and(|sender| sender.id == id) {
            state.senders.remove(&node);
            tracing::info!(%node, "lost the connection to a peer");
        }
    }

    /// A frame came in.
    pub async fn received(&self, from: NodeId, bytes: Bytes) {
        let size = bytes.len();
        // Its entries are kept for a while: a slice of gRPC's buffer would keep all of that.
        let bytes = Bytes::copy_from_slice(&bytes);
        self.me.mailbox.send(Input::Consensus(Event::Frame { from, bytes }), size).await;
    }
}
