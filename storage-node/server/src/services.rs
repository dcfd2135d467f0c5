//! The gRPC services: each call becomes inputs of the store thread, each answer comes back through the registry.
//! Nothing is decided here but who may open a stream.

use crate::mailbox::Mailbox;
use crate::peers::Peers;
use crate::registry::Registry;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use longshore_consensus::{Event, SnapshotMeta};
use longshore_node::{Input, Reply, Ticket, snapshot_meta};
use longshore_proto::v1::admin_server::Admin;
use longshore_proto::v1::gateway_item::Item;
use longshore_proto::v1::meta_server::Meta;
use longshore_proto::v1::peer_server::Peer;
use longshore_proto::v1::storage_server::Storage;
use longshore_proto::v1::*;
use longshore_proto::{VERSION, v1};
use longshore_wire::{NodeId, ReplicaId, SessionId, ShardId};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

type Replies<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A unary call waits this long for the store thread's answer.
const CALL_TIME: Duration = Duration::from_secs(15);
/// The sender of a snapshot waits this long for its installation.
const SNAPSHOT_TIME: Duration = Duration::from_secs(3_600);
/// State pages of one snapshot, in bytes.
const SNAPSHOT_BYTES_MAX: usize = 1 << 30;

/// What all services of a node share.
pub(crate) struct Services {
    pub mailbox: Mailbox,
    pub registry: Arc<Registry>,
    pub peers: Peers,
    pub node: NodeId,
    pub identity: Arc<Mutex<Identity>>,
}

impl Services {
    fn check(&self, cluster: &str, version: u32) -> Result<(), Status> {
        if version != VERSION {
            return Err(Status::failed_precondition(format!(
                "stream version {version}, this build speaks {VERSION}"
            )));
        }
        if cluster.is_empty() || cluster == self.peers.cluster() {
            return Ok(());
        }
        Err(Status::permission_denied(format!(
            "this node belongs to cluster {}, not {cluster}",
            self.peers.cluster()
        )))
    }

    async fn call(&self, input: impl FnOnce(Ticket) -> Input, bytes: usize) -> Result<Reply, Status> {
        let (ticket, answer) = self.registry.call();
        if !self.mailbox.send(input(ticket), bytes).await {
            return Err(Status::unavailable("the node is stopping"));
        }
        match tokio::time::timeout(CALL_TIME, answer).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(Status::unavailable("the node is stopping")),
            Err(_) => {
                self.registry.forget_call(ticket);
                Err(Status::deadline_exceeded("no answer in time: no majority, or overload"))
            }
        }
    }
}

/// A service over the shared part.
#[derive(Clone)]
pub(crate) struct Service(pub Arc<Services>);

#[tonic::async_trait]
impl Storage for Service {
    type LinkStream = Replies<NodeFrame>;

    async fn link(
        &self,
        request: Request<Streaming<GatewayFrame>>,
    ) -> Result<Response<Self::LinkStream>, Status> {
        let mut inbound = request.into_inner();
        let Some(first) = inbound.message().await? else { return Err(Status::cancelled("no hello")) };
        let mut items = first.items.into_iter().filter_map(|item| item.item);
        let Some(Item::Hello(hello)) = items.next() else {
            return Err(Status::invalid_argument("a stream begins with a hello"));
        };
        self.0.check(&hello.cluster, hello.version)?;
        let services = Arc::clone(&self.0);
        let (link, outbound) = services.registry.link();
        let welcome =
            Welcome { cluster: services.peers.cluster().to_owned(), node: services.node.0, version: VERSION };
        let welcome = NodeFrame { items: vec![NodeItem { item: Some(node_item::Item::Welcome(welcome)) }] };
        services.mailbox.send(Input::LinkOpened { link, session: SessionId(hello.session) }, 0).await;
        let rest: Vec<Item> = items.collect();
        tokio::spawn(async move {
            for item in rest {
                services.mailbox.send(Input::Link { link, item }, 0).await;
            }
            'stream: while let Ok(Some(frame)) = inbound.message().await {
                for item in frame.items.into_iter().filter_map(|item| item.item) {
                    let bytes = inbound_bytes(&item);
                    let item = owned(item);
                    if !services.mailbox.send(Input::Link { link, item }, bytes).await {
                        break 'stream;
                    }
                }
            }
            services.registry.close_link(link);
            services.mailbox.report(Input::LinkClosed { link });
        });
        let frames =
            futures_util::stream::once(async { welcome }).chain(ReceiverStream::new(outbound)).map(Ok);
        Ok(Response::new(Box::pin(frames)))
    }
}

/// The item with what may be kept for long in memory of its own: a slice of gRPC's buffer would keep all of that, several times as much.
fn owned(mut item: Item) -> Item {
    let kept = match &mut item {
        Item::Submit(submit) => &mut submit.batch,
        Item::TransientAppend(append) => &mut append.record,
        Item::TransientPart(part) => &mut part.bytes,
        _ => return item,
    };
    *kept = Bytes::copy_from_slice(kept);
    item
}

fn inbound_bytes(item: &Item) -> usize {
    match item {
        Item::Submit(submit) => submit.batch.len(),
        Item::TransientAppend(append) => append.record.len(),
        Item::TransientPart(part) => part.bytes.len(),
        Item::Attach(attach) => attach.held.len() * 32,
        Item::Hold(hold) => hold.held.len() * 32,
        _ => 0,
    }
}

#[tonic::async_trait]
impl Meta for Service {
    async fn submit(&self, request: Request<MetaCommand>) -> Result<Response<MetaReply>, Status> {
        let command = request.into_inner();
        let bytes = 1_024;
        match self.0.call(|ticket| Input::Meta { ticket, command }, bytes).await? {
            Reply::Meta(reply) => Ok(Response::new(*reply)),
            _ => Err(Status::internal("an answer of another kind")),
        }
    }

    type WatchStream = Replies<WatchDown>;

    async fn watch(
        &self,
        request: Request<Streaming<WatchUp>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut inbound = request.into_inner();
        let services = Arc::clone(&self.0);
        let (watch, outbound) = services.registry.watch();
        tokio::spawn(async move {
            while let Ok(Some(up)) = inbound.message().await {
                if !services.mailbox.send(Input::Watch { watch, up }, 0).await {
                    break;
                }
            }
            services.registry.close_watch(watch);
            services.mailbox.report(Input::WatchClosed { watch });
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound).map(Ok))))
    }
}

#[tonic::async_trait]
impl Peer for Service {
    type RaftStream = Replies<PeerFrame>;

    async fn raft(
        &self,
        request: Request<Streaming<PeerFrame>>,
    ) -> Result<Response<Self::RaftStream>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|frame| frame.hello);
        let Some(hello) = first else { return Err(Status::invalid_argument("a stream begins with a hello")) };
        self.0.check(&hello.cluster, hello.version)?;
        let node = NodeId(hello.node);
        let services = Arc::clone(&self.0);
        let (out, outbound) = mpsc::channel(1);
        let id = services.peers.connected(node, out);
        tokio::spawn(async move {
            while let Ok(Some(frame)) = inbound.message().await {
                services.peers.received(node, frame.frame).await;
            }
            services.peers.disconnected(node, id);
            services.mailbox.report(Input::Consensus(Event::PeerUnreachable(node)));
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound).map(Ok))))
    }

    type FetchStream = Replies<FetchReply>;

    async fn fetch(&self, request: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        let mut wanted = request.into_inner();
        self.0.check(&wanted.cluster, VERSION)?;
        let services = Arc::clone(&self.0);
        let (out, outbound) = mpsc::channel(2);
        tokio::spawn(async move {
            loop {
                let asked = wanted.clone();
                let result = services.call(|ticket| Input::Fetch { ticket, request: asked }, 0).await;
                let reply = match result {
                    Ok(Reply::Fetched(reply)) => Ok(reply),
                    Ok(_) => Err(Status::internal("an answer of another kind")),
                    Err(status) => Err(status),
                };
                let next = reply.as_ref().ok().and_then(next_offset);
                if out.send(reply).await.is_err() {
                    return;
                }
                let Some(next) = next else { return };
                wanted.from = next;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(outbound))))
    }

    async fn snapshot(
        &self,
        request: Request<Streaming<SnapshotPart>>,
    ) -> Result<Response<SnapshotReply>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.unwrap_or_default();
        let head: SnapshotHead =
            first.head.ok_or_else(|| Status::invalid_argument("a snapshot begins with its head"))?;
        self.0.check(&head.cluster, VERSION)?;
        let meta: SnapshotMeta =
            snapshot_meta(&head).map_err(|error| Status::invalid_argument(error.to_string()))?;
        let group = ShardId(head.group);
        // Before the pages travel: while one is installed, its group's next leader would send the whole state in vain.
        let Some(installed) = self.0.registry.snapshot(group) else {
            return Ok(Response::new(SnapshotReply { installed: false }));
        };
        let mut bytes = first.pages.iter().map(Bytes::len).sum::<usize>();
        let mut pages: Vec<Bytes> = first.pages;
        while let Some(part) = inbound.message().await? {
            bytes += part.pages.iter().map(Bytes::len).sum::<usize>();
            if bytes > SNAPSHOT_BYTES_MAX {
                return Err(Status::out_of_range("the snapshot is too large"));
            }
            pages.extend(part.pages);
        }
        let event = Event::SnapshotArrived { group, from: ReplicaId(head.from), meta, pages };
        self.0.mailbox.send(Input::Consensus(event), bytes).await;
        let installed = matches!(tokio::time::timeout(SNAPSHOT_TIME, installed).await, Ok(Ok(true)));
        Ok(Response::new(SnapshotReply { installed }))
    }

    async fn identify(&self, _: Request<IdentifyRequest>) -> Result<Response<v1::Identity>, Status> {
        Ok(Response::new(self.0.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}

fn next_offset(reply: &FetchReply) -> Option<u64> {
    if reply.done || reply.unknown_snapshot {
        return None;
    }
    reply.records.last().map(|record| record.offset + 1)
}

#[tonic::async_trait]
impl Admin for Service {
    async fn inspect(&self, request: Request<InspectRequest>) -> Result<Response<InspectReply>, Status> {
        let request = request.into_inner();
        match self.0.call(|ticket| Input::Inspect { ticket, request }, 0).await? {
            Reply::Inspected(json) => Ok(Response::new(InspectReply { json })),
            _ => Err(Status::internal("an answer of another kind")),
        }
    }

    async fn transfer_leader(
        &self,
        request: Request<TransferLeaderRequest>,
    ) -> Result<Response<TransferLeaderReply>, Status> {
        let TransferLeaderRequest { shard, node } = request.into_inner();
        let input = |ticket| Input::TransferLeader { ticket, shard: ShardId(shard), to: NodeId(node) };
        match self.0.call(input, 0).await? {
            Reply::Transfer(result) => Ok(Response::new(TransferLeaderReply {
                started: result.is_ok(),
                message: result.err().unwrap_or_default(),
            })),
            _ => Err(Status::internal("an answer of another kind")),
        }
    }
}

/// Before a node knows its cluster it only says who it is.
#[derive(Clone)]
pub(crate) struct Lobby(pub Arc<Mutex<v1::Identity>>);

fn not_yet() -> Status {
    Status::unavailable("this node does not belong to a cluster yet")
}

#[tonic::async_trait]
impl Peer for Lobby {
    type RaftStream = Replies<PeerFrame>;

    async fn raft(&self, _: Request<Streaming<PeerFrame>>) -> Result<Response<Self::RaftStream>, Status> {
        Err(not_yet())
    }

    type FetchStream = Replies<FetchReply>;

    async fn fetch(&self, _: Request<FetchRequest>) -> Result<Response<Self::FetchStream>, Status> {
        Err(not_yet())
    }

    async fn snapshot(&self, _: Request<Streaming<SnapshotPart>>) -> Result<Response<SnapshotReply>, Status> {
        Err(not_yet())
    }

    async fn identify(&self, _: Request<IdentifyRequest>) -> Result<Response<v1::Identity>, Status> {
        Ok(Response::new(self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()))
    }
}
