//! The storage node's threads, gRPC services and metrics, around the sans-IO node.
//!
//! ```text
//! tokio: services, peers ──inputs──▶ mailbox ──▶ store thread: Node::turn ──┬─▶ log thread: write, sync ─▶ held frames
//!        streams ◀── registry ◀── items, replies, watch ────────────────────┤
//!        peers ◀── frames ──────────────────────────────────────────────────┤
//!        outbound calls ◀── snapshots, fetches, commands for meta ──────────┴─▶ workers: reads, jobs ─▶ mailbox
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`config`] | the node's settings |
//! | `bootstrap` | forming, joining or finding again a cluster |
//! | `store_thread`, `log_thread`, `workers` | the threads |
//! | `ends` | the end of one thread, by a panic too, ends the node |
//! | `mailbox`, `registry` | the way in and the way out |
//! | `services`, `peers`, `outbound` | gRPC |
//! | `http` | health and metrics |
#![forbid(unsafe_code)]

mod bootstrap;
pub mod config;
mod ends;
mod http;
mod log_thread;
mod mailbox;
mod outbound;
mod peers;
mod registry;
mod services;
mod store_thread;
mod workers;

use bootstrap::Membership;
use config::{EngineConfig, StorageConfig};
use ends::{End, Ends};
use http::StandingBoard;
use longshore_auth::hash_password;
use longshore_io::real::RealDisk;
use longshore_io::{Disk, Mono};
use longshore_log::{Identity, IdentityError};
use longshore_node::{Input, Node, NodeConfig, NodeError, OpenError, Standing};
use longshore_proto::MESSAGE_BYTES_MAX;
use longshore_proto::transport::{self, TlsIdentity, TransportError};
use longshore_proto::v1::admin_server::AdminServer;
use longshore_proto::v1::meta_client::MetaClient;
use longshore_proto::v1::meta_server::MetaServer;
use longshore_proto::v1::peer_server::PeerServer;
use longshore_proto::v1::storage_server::StorageServer;
use longshore_proto::v1::{self, FormCluster, Permission, User, WatchUp, meta_change};
use longshore_wire::{NodeId, ReplicaId};
use mailbox::Mailbox;
use outbound::Outbound;
use peers::Peers;
use registry::Registry;
use services::{Lobby, Service, Services};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use store_thread::{MonoClock, StoreThread};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;

/// The lobby's answers under way may take so long to end.
const LOBBY_CLOSE_TIME: Duration = Duration::from_secs(1);

/// Why a storage node could not start, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}: {why}")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The identity file.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A listener.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// TLS or an address.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// What the directory holds cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// The administrator's password cannot be hashed.
    #[error("the administrator's password: {0}")]
    Password(String),
    /// The node failed; what it acknowledged is safe.
    #[error("the storage node failed: {0}")]
    Failed(String),
    /// The node has stopped.
    #[error("the storage node has stopped")]
    Stopped,
}

/// A running storage node.
pub struct StorageNode {
    address: SocketAddr,
    standing: watch::Receiver<Standing>,
    failure: watch::Receiver<Option<String>>,
    mailbox: Mailbox,
    peers: watch::Receiver<Option<Peers>>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl StorageNode {
    /// Listens, finds out which cluster it belongs to, opens its data and takes part. Returns once it listens; see
    /// [`StorageNode::ready`].
    pub async fn start(config: StorageConfig, tls: Option<TlsIdentity>) -> Result<StorageNode, StartError> {
        transport::check_plain(&config.listen, tls.as_ref())?;
        let disk = open_dir(&config)?;
        let own = own_identity(disk.as_ref())?;
        let listener = TcpListener::bind(&config.listen)
            .await
            .map_err(|source| StartError::Listen { address: config.listen.clone(), source })?;
        let address = listener
            .local_addr()
            .map_err(|source| StartError::Listen { address: config.listen.clone(), source })?;
        let board = StandingBoard::new();
        let (stop, stopped) = watch::channel(false);
        let (failed, failure) = watch::channel(None);
        let (peers_told, peers) = watch::channel(None);
        let mut tasks = JoinSet::new();
        listen_http(&config, &board, &stopped, &mut tasks).await?;
        let standing = board.watch();
        let mailbox = Mailbox::new();
        let main = Main {
            config,
            tls,
            disk,
            own,
            board,
            mailbox: mailbox.clone(),
            stopped,
            failed: failed.clone(),
            peers_told,
        };
        tasks.spawn(async move {
            match main.run(listener).await {
                Ok(()) => {}
                Err(StartError::Stopped) => tracing::debug!("the storage node has stopped"),
                Err(error) => {
                    tracing::error!(%error, "the storage node failed");
                    let _ = failed.send(Some(error.to_string()));
                }
            }
        });
        Ok(StorageNode { address, standing, failure, mailbox, peers, stop, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits until every group of the node has a leader.
    pub async fn ready(&self) -> Result<(), StartError> {
        let mut standing = self.standing.clone();
        tokio::select! {
            ready = standing.wait_for(|standing| standing.ready) => ready.map(|_| ()).map_err(|_| StartError::Stopped),
            error = self.failed() => Err(error),
        }
    }

    /// Resolves when the node has failed.
    pub async fn failed(&self) -> StartError {
        let mut failure = self.failure.clone();
        let result = failure.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        match result {
            Ok(why) => StartError::Failed(why),
            Err(_) => StartError::Stopped,
        }
    }

    /// Hands leaderships over, then ends within about `patience`.
    pub async fn shutdown(mut self, patience: Duration) {
        self.mailbox.report(Input::Stopping);
        let mut failure = self.failure.clone();
        let ended = async {
            let _ = failure.wait_for(Option::is_some).await;
        };
        let _ = tokio::time::timeout(patience, ended).await;
        let _ = self.stop.send(true);
        if let Some(peers) = self.peers.borrow().as_ref() {
            peers.stop();
        }
        self.tasks.abort_all();
    }
}

fn open_dir(config: &StorageConfig) -> Result<Arc<dyn Disk>, StartError> {
    let disk = RealDisk::open(&config.data_dir)
        .map_err(|error| StartError::DataDir { path: config.data_dir.clone(), why: error.to_string() })?;
    Ok(Arc::new(disk))
}

fn own_identity(disk: &dyn Disk) -> Result<Identity, StartError> {
    match Identity::load(disk)? {
        Some(identity) => Ok(identity),
        None => Ok(Identity::create(disk, rand::random())?),
    }
}

async fn listen_http(
    config: &StorageConfig,
    board: &StandingBoard,
    stopped: &watch::Receiver<bool>,
    tasks: &mut JoinSet<()>,
) -> Result<(), StartError> {
    if config.http_listen.is_empty() {
        return Ok(());
    }
    let failed = |source| StartError::Listen { address: config.http_listen.clone(), source };
    let listener = TcpListener::bind(&config.http_listen).await.map_err(failed)?;
    let router = http::router(board.watch());
    let mut stopped = stopped.clone();
    tasks.spawn(async move {
        let until = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        let _ = axum::serve(listener, router).with_graceful_shutdown(until).await;
    });
    Ok(())
}

/// What the node's main task is made with.
struct Main {
    config: StorageConfig,
    tls: Option<TlsIdentity>,
    disk: Arc<dyn Disk>,
    own: Identity,
    board: StandingBoard,
    mailbox: Mailbox,
    stopped: watch::Receiver<bool>,
    failed: watch::Sender<Option<String>>,
    peers_told: watch::Sender<Option<Peers>>,
}

/// The server of a node that does not know its cluster yet.
struct OpenLobby {
    close: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl OpenLobby {
    /// Ends it and its connections. Danger: a gateway that kept one would find the services of a member unknown there
    /// for ever, and would never dial again.
    async fn close(mut self) {
        let _ = self.close.send(());
        if tokio::time::timeout(LOBBY_CLOSE_TIME, &mut self.serving).await.is_err() {
            self.serving.abort();
        }
    }
}

impl Main {
    async fn run(self, listener: TcpListener) -> Result<(), StartError> {
        let told = Arc::new(Mutex::new(v1::Identity {
            cluster: self.own.cluster.map(|id| bootstrap::hex(&id)).unwrap_or_default(),
            node: self.own.node.map_or(0, |node| node.0),
            identity: self.own.random.to_vec().into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: self.config.advertised().to_owned(),
            ..v1::Identity::default()
        }));
        let lobby = self.serve_lobby(&listener, &told)?;
        let found =
            bootstrap::find(&self.config, self.tls.as_ref(), &self.disk, self.own.clone(), &told).await?;
        lobby.close().await;
        let clock = MonoClock::start();
        let config = node_config(&self.config, &found);
        let disk = Arc::clone(&self.disk);
        let now = clock.now();
        let opened = tokio::task::spawn_blocking(move || Node::open(config, disk, now)).await;
        let (mut node, writer) = opened.map_err(|error| StartError::Failed(error.to_string()))??;
        self.begin(&mut node, &found, now)?;
        self.settle_once_formed(&found);
        let runtime = tokio::runtime::Handle::current();
        let peers = Peers::new(
            found.cluster.clone(),
            found.node,
            self.tls.clone(),
            self.mailbox.clone(),
            runtime.clone(),
        );
        peers.set_addresses(
            found.forming.iter().map(|node| (NodeId(node.id), node.address.clone())).collect(),
        );
        let _ = self.peers_told.send(Some(peers.clone()));
        let registry = Arc::new(Registry::new());
        let outbound = Outbound {
            peers: peers.clone(),
            mailbox: self.mailbox.clone(),
            runtime,
            telling_meta: Arc::default(),
        };
        let failed = self.failed.clone();
        let mut threads =
            self.spawn_threads(node, writer, clock, &registry, &peers, outbound, failed, found.node)?;
        let services =
            Services { mailbox: self.mailbox.clone(), registry, peers, node: found.node, identity: told };
        let service = Service(Arc::new(services));
        tokio::spawn(follow_meta_from_outside(
            self.config.clone(),
            self.tls.clone(),
            found.node,
            self.mailbox.clone(),
            self.board.watch(),
        ));
        let mut stopped = self.stopped.clone();
        let server = transport::server(self.tls.as_ref())?
            .add_service(sized(StorageServer::new(service.clone()), StorageServer::max_decoding_message_size))
            .add_service(sized(MetaServer::new(service.clone()), MetaServer::max_decoding_message_size))
            .add_service(sized(PeerServer::new(service.clone()), PeerServer::max_decoding_message_size))
            .add_service(AdminServer::new(service));
        let until = async move {
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        tokio::select! {
            served = server.serve_with_incoming_shutdown(incoming(listener), until) => {
                served.map_err(|error| StartError::Failed(error.to_string()))
            }
            end = &mut threads => Err(match end {
                Ok(Ok(())) => StartError::Stopped,
                Ok(Err(why)) => StartError::Failed(why),
                Err(_) => StartError::Failed("its threads ended".to_owned()),
            }),
        }
    }

    /// Until the node knows its cluster, it only says who it is.
    fn serve_lobby(
        &self,
        listener: &TcpListener,
        told: &Arc<Mutex<v1::Identity>>,
    ) -> Result<OpenLobby, StartError> {
        let failed = |source| StartError::Listen { address: self.config.listen.clone(), source };
        let waker = listener.local_addr().map_err(failed)?;
        let server =
            transport::server(self.tls.as_ref())?.add_service(PeerServer::new(Lobby(Arc::clone(told))));
        let std_listener = duplicate(listener).map_err(failed)?;
        let listener = TcpListener::from_std(std_listener).map_err(failed)?;
        let (close, closed) = oneshot::channel::<()>();
        let until = async move {
            let _ = closed.await;
        };
        let serving = tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming(listener), until).await {
                tracing::warn!(%error, address = %waker, "cannot answer who this node is");
            }
        });
        Ok(OpenLobby { close, serving })
    }

    /// The directory is the cluster's for good once this node knows that the cluster is formed.
    fn settle_once_formed(&self, found: &Membership) {
        if found.settled {
            return;
        }
        let formed = found.formed;
        let (disk, mut standing) = (Arc::clone(&self.disk), self.board.watch());
        tokio::spawn(async move {
            if !formed && standing.wait_for(|standing| standing.formed).await.is_err() {
                return;
            }
            let settled = tokio::task::spawn_blocking(move || bootstrap::settle(disk.as_ref())).await;
            if let Ok(Err(error)) = settled {
                // The next start finds the cluster anew and tries again.
                tracing::warn!(%error, "cannot write down that this node belongs to its cluster");
            }
        });
    }

    /// A node of a new cluster makes its replica of meta; the first of them brings the administrator.
    fn begin(&self, node: &mut Node, found: &Membership, now: Mono) -> Result<(), StartError> {
        if found.forming.is_empty() {
            return Ok(());
        }
        let nodes: Vec<NodeId> = found.forming.iter().map(|node| NodeId(node.id)).collect();
        node.form(&nodes, now)?;
        if nodes.first() != Some(&found.node) {
            return Ok(());
        }
        let mut password = self.config.administrator_password.reveal().to_owned();
        if password.is_empty() {
            password = bootstrap::hex(&rand::random::<[u8; 12]>());
            println!(
                "administrator  {} with password {password} (shown this once)",
                self.config.administrator
            );
        }
        let form = FormCluster {
            cluster: found.cluster.clone(),
            shards: self.config.shards,
            nodes: found.forming.clone(),
            administrator: Some(administrator(&self.config, &password)?),
        };
        node.set_formation(form);
        Ok(())
    }

    #[allow(clippy::too_many_arguments)]
    fn spawn_threads(
        &self,
        node: Node,
        writer: longshore_log::LogWriter,
        clock: MonoClock,
        registry: &Arc<Registry>,
        peers: &Peers,
        outbound: Outbound,
        failed: watch::Sender<Option<String>>,
        id: NodeId,
    ) -> Result<oneshot::Receiver<End>, StartError> {
        let (ends, end) = Ends::new(failed, &self.mailbox);
        let (writes, log_writes) = std::sync::mpsc::channel();
        let workers =
            workers::Workers::start(&id.to_string(), &self.mailbox, &ends).map_err(StartError::Thread)?;
        let (mailbox, log_peers, log_ends) = (self.mailbox.clone(), peers.clone(), ends.clone());
        std::thread::Builder::new()
            .name(format!("log-{id}"))
            .spawn(move || {
                let _watched = log_ends.watch("log");
                if let Err(error) = log_thread::run(writer, &log_writes, &mailbox, &log_peers) {
                    log_ends.tell(Err(error.to_string()));
                }
            })
            .map_err(StartError::Thread)?;
        let store = StoreThread {
            node,
            clock,
            mailbox: self.mailbox.clone(),
            registry: Arc::clone(registry),
            peers: peers.clone(),
            workers,
            writes,
            outbound,
            standing: self.board.clone(),
            disk: Arc::clone(&self.disk),
        };
        std::thread::Builder::new()
            .name(format!("store-{id}"))
            .spawn(move || {
                let _watched = ends.watch("store");
                ends.tell(store.run().map_err(|error: NodeError| error.to_string()));
            })
            .map_err(StartError::Thread)?;
        Ok(end)
    }
}

/// What a listener accepts, without Nagle's delay: a server's own setting does not reach streams that it is given.
fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// A second handle of a listening socket.
fn duplicate(listener: &TcpListener) -> std::io::Result<std::net::TcpListener> {
    use std::os::fd::AsFd;
    let fd = listener.as_fd().try_clone_to_owned()?;
    Ok(std::net::TcpListener::from(fd))
}

fn sized<S>(server: S, limit: fn(S, usize) -> S) -> S {
    limit(server, MESSAGE_BYTES_MAX)
}

fn administrator(config: &StorageConfig, password: &str) -> Result<User, StartError> {
    let set = hash_password(password.as_bytes(), &mut rand::rng())
        .map_err(|error| StartError::Password(error.to_string()))?;
    let all = || ".*".to_owned();
    let root = Permission { namespace: 1, configure: all(), write: all(), read: all() };
    Ok(User {
        name: config.administrator.clone(),
        administrator: true,
        loopback_only: config.administrator_loopback_only,
        permissions: vec![root],
        password_hash: set.hash,
        scram_sha_256: Some(verifier(set.scram_sha_256)),
        scram_sha_512: Some(verifier(set.scram_sha_512)),
        ..User::default()
    })
}

fn verifier(scram: longshore_auth::ScramVerifier) -> v1::ScramVerifier {
    v1::ScramVerifier {
        salt: scram.salt.into(),
        iterations: scram.iterations,
        stored_key: scram.stored_key.into(),
        server_key: scram.server_key.into(),
    }
}

/// A node without a replica of meta asks the others for one, and hears from them when it has been made.
async fn follow_meta_from_outside(
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

fn node_config(config: &StorageConfig, found: &Membership) -> NodeConfig {
    let engine: &EngineConfig = &config.engine;
    let mut consensus = longshore_consensus::Config::new(found.node);
    consensus.tick_us = engine.election_timeout_ms * 1_000 / consensus.election_ticks as u64;
    consensus.seed = rand::random();
    let log = longshore_log::LogConfig {
        segment_bytes: engine.segment_bytes,
        free_segments_max: 2,
        raft_segments_max: 16,
        log_bytes_max: engine.behind_bytes_max,
        tail_bytes_max: (engine.tail_bytes_max / 4) as usize,
        salt: rand::random(),
        must_exist: found.settled,
        ..longshore_log::LogConfig::default()
    };
    let records = longshore_records::Config {
        tail_bytes_max: (engine.tail_bytes_max / 2) as usize,
        ..longshore_records::Config::default()
    };
    NodeConfig {
        cluster: found.cluster.clone(),
        node: found.node,
        consensus,
        log,
        records,
        checkpoint: longshore_checkpoint::Config::default(),
        delivery: longshore_delivery::Config::default(),
        checkpoint_bytes: engine.checkpoint_bytes,
        reserve_bytes: engine.reserve_bytes,
        rewrite_bytes_per_s: engine.rewrite_bytes_per_s,
    }
}
