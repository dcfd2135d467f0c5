//! The node's main task: says who it is until it knows its cluster, opens the data, then serves until it is stopped
//! or a thread ends.

use crate::StartError;
use crate::bootstrap::{self, Membership};
use crate::config::{EngineConfig, StorageConfig};
use crate::ends::End;
use crate::http::StandingBoard;
use crate::join_meta::follow_meta_from_outside;
use crate::lobby::{OpenLobby, incoming};
use crate::mailbox::Mailbox;
use crate::outbound::Outbound;
use crate::peers::Peers;
use crate::registry::Registry;
use crate::services::{Service, Services};
use crate::store_thread::MonoClock;
use crate::threads::Threads;
use longshore_auth::hash_password;
use longshore_io::{Disk, Mono};
use longshore_log::Identity;
use longshore_node::{Node, NodeConfig};
use longshore_proto::MESSAGE_BYTES_MAX;
use longshore_proto::transport::{self, TlsIdentity};
use longshore_proto::v1::admin_server::AdminServer;
use longshore_proto::v1::meta_server::MetaServer;
use longshore_proto::v1::peer_server::PeerServer;
use longshore_proto::v1::storage_server::StorageServer;
use longshore_proto::v1::{self, FormCluster, Permission, User};
use longshore_wire::NodeId;
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

/// What the node's main task is made with.
pub(crate) struct Main {
    pub config: StorageConfig,
    pub tls: Option<TlsIdentity>,
    pub disk: Arc<dyn Disk>,
    pub own: Identity,
    pub board: StandingBoard,
    pub mailbox: Mailbox,
    pub stopped: watch::Receiver<bool>,
    pub failed: watch::Sender<Option<String>>,
    pub peers_told: watch::Sender<Option<Peers>>,
}

impl Main {
    /// Returns once it was told to stop.
    pub async fn run(self, listener: TcpListener) -> Result<(), StartError> {
        let told = Arc::new(Mutex::new(self.introduction()));
        let lobby = OpenLobby::open(&listener, &self.config, self.tls.as_ref(), &told)?;
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
        let peers = self.meet_peers(&found);
        let registry = Arc::new(Registry::new());
        let threads = self.threads(&found, &registry, &peers).start(node, writer, clock)?;
        if found.settled {
            let (config, tls) = (self.config.clone(), self.tls.clone());
            tokio::spawn(bootstrap::announce(config, tls, found.node, self.own.random));
        }
        let services =
            Services { mailbox: self.mailbox.clone(), registry, peers, node: found.node, identity: told };
        tokio::spawn(follow_meta_from_outside(
            self.config.clone(),
            self.tls.clone(),
            found.node,
            self.mailbox.clone(),
            self.board.watch(),
        ));
        self.serve(listener, Service(Arc::new(services)), threads).await
    }

    /// Who this node says it is, as far as it knows.
    fn introduction(&self) -> v1::Identity {
        v1::Identity {
            cluster: self.own.cluster.map(|id| bootstrap::hex(&id)).unwrap_or_default(),
            node: self.own.node.map_or(0, |node| node.0),
            identity: self.own.random.to_vec().into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            address: self.config.advertised().to_owned(),
            zone: self.config.zone.clone(),
            ..v1::Identity::default()
        }
    }

    /// The other nodes; those that the cluster is formed of can be reached at once.
    fn meet_peers(&self, found: &Membership) -> Peers {
        let peers = Peers::new(
            found.cluster.clone(),
            found.node,
            self.tls.clone(),
            self.mailbox.clone(),
            tokio::runtime::Handle::current(),
        );
        peers.set_addresses(
            found.forming.iter().map(|node| (NodeId(node.id), node.address.clone())).collect(),
        );
        let _ = self.peers_told.send(Some(peers.clone()));
        peers
    }

    fn threads(&self, found: &Membership, registry: &Arc<Registry>, peers: &Peers) -> Threads {
        let outbound = Outbound {
            peers: peers.clone(),
            mailbox: self.mailbox.clone(),
            runtime: tokio::runtime::Handle::current(),
            telling_meta: Arc::default(),
        };
        Threads {
            id: found.node,
            disk: Arc::clone(&self.disk),
            mailbox: self.mailbox.clone(),
            registry: Arc::clone(registry),
            peers: peers.clone(),
            outbound,
            standing: self.board.clone(),
            failed: self.failed.clone(),
        }
    }

    /// Answers until it is told to stop, or the first of the threads ends.
    async fn serve(
        self,
        listener: TcpListener,
        service: Service,
        mut threads: oneshot::Receiver<End>,
    ) -> Result<(), StartError> {
        let mut stopped = self.stopped;
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
        node.form(&found.forming, now)?;
        if found.forming.first().map(|node| NodeId(node.id)) != Some(found.node) {
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
}

/// A service that takes messages of the protocol's largest size; tonic's own limit is 4 MiB.
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
