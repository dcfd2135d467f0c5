//! The broker of one gateway: what everything else hangs on.
//!
//! A gateway has one session at a time ([`Engine`]). When its lease is lost, all client connections close and the next
//! session begins under a new id; the view of meta is kept.

use crate::admin::Admin;
use crate::api::*;
use crate::connection::{Connection, EventReceiver};
use crate::connection_state::ConnectionState;
use crate::contain;
use crate::engine::Engine;
use crate::meta_batch::MetaBatch;
use crate::meta_client::MetaClient;
use crate::metadata::{Metadata, ViewEvent};
use crate::permissions::Permissions;
use longshore_auth::{Begun, Login, Outcome, Verifier};
use longshore_proto::transport::TlsIdentity;
use longshore_proto::v1::{self, MetaCommand, meta_command::Command};
use longshore_wire::SessionId;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

/// A client's own name is cut to this many bytes.
const CLIENT_NAME_BYTES_MAX: usize = 256;
/// A login waits so long for processor time.
const LOGIN_WAIT_MAX: Duration = Duration::from_secs(5);
/// Between attempts to open a session.
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Settings of a gateway's broker. All bounds in bytes or counts as their names say.
#[derive(Clone, Debug)]
pub struct BrokerConfig {
    /// Addresses (`host:port`) of storage nodes to begin with; meta tells of the others.
    pub nodes: Vec<String>,
    /// The gateway's name, for logs and listings.
    pub name: String,
    /// What clients can dial: `amqp=host:port`, ...
    pub addresses: Vec<String>,
    /// Largest message body, in bytes.
    pub message_bytes_max: u64,
    /// Bytes of publishes waiting for their outcome, per shard, at which connections must wait.
    pub shard_pending_bytes_max: usize,
    /// Bytes of publishes waiting for their outcome, per connection, at which it must wait.
    pub connection_pending_bytes_max: usize,
    /// Bytes of publishes waiting for their outcome, of all connections, at which they must wait; and bytes of events that
    /// their adapters have not taken, beyond which those that hold more than their share are closed.
    pub pending_bytes_max: usize,
    /// How long a rare operation waits for storage.
    pub operation_timeout: Duration,
    /// Reads binding arguments for headers exchanges.
    pub arguments: ArgumentsReader,
    /// TLS to the storage nodes: none on loopback.
    pub tls: Option<TlsIdentity>,
}

impl BrokerConfig {
    /// Defaults for these storage nodes.
    pub fn new(nodes: Vec<String>, name: impl Into<String>) -> BrokerConfig {
        BrokerConfig {
            nodes,
            name: name.into(),
            addresses: Vec::new(),
            message_bytes_max: 128 << 20,
            shard_pending_bytes_max: 64 << 20,
            connection_pending_bytes_max: 8 << 20,
            pending_bytes_max: 2 << 30,
            operation_timeout: Duration::from_secs(15),
            arguments: |_| Vec::new(),
            tls: None,
        }
    }
}

/// What outlives a session.
#[derive(Debug)]
pub(crate) struct Core {
    pub config: Arc<BrokerConfig>,
    pub view: Arc<Metadata>,
    pub client: Arc<MetaClient>,
    batch: MetaBatch,
    engine: RwLock<Option<Arc<Engine>>>,
    verifier: Mutex<Verifier>,
    revision: tokio::sync::watch::Sender<u64>,
    stopping: std::sync::atomic::AtomicBool,
}

impl Core {
    /// Applies what meta pushed and acts on it.
    pub fn apply(&self, engine: &Arc<Engine>, down: v1::WatchDown) {
        for event in self.view.apply(down) {
            match event {
                ViewEvent::User(name) => self.user_changed(engine, &name),
                ViewEvent::NamespaceDeleted(id) => {
                    for connection in engine.connections() {
                        if connection.namespace.id == id {
                            connection.close(CloseReason::NamespaceDeleted);
                        }
                    }
                }
                ViewEvent::Topology => {
                    self.client.learn(self.view.nodes().into_iter().map(|node| node.address));
                    engine.sync_links();
                }
            }
        }
        self.revision.send_replace(self.view.revision());
    }

    /// Connections of a user that was deleted or restricted end; others go by the new permissions.
    fn user_changed(&self, engine: &Engine, name: &str) {
        let user = self.view.user(name);
        for connection in engine.connections().into_iter().filter(|c| &*c.identity.user == name) {
            let permissions = user.as_ref().and_then(|user| Permissions::of(user, connection.namespace.id));
            let restricted = match (&user, &permissions) {
                (Some(user), Some(new)) => {
                    connection.permissions().is_narrowed_by(new)
                        || *user.password_hash != *connection.password_hash
                        || (user.loopback_only && !connection.info.peer.ip().is_loopback())
                        || (connection.identity.administrator && !user.administrator)
                }
                _ => true,
            };
            match permissions {
                Some(new) if !restricted => connection.set_permissions(new),
                _ => connection.close(CloseReason::UserChanged),
            }
        }
    }

    pub fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn is_stopping(&self) -> bool {
        self.stopping.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Session after session, until shutdown.
    async fn run(self: Arc<Self>) {
        while !self.is_stopping() {
            let open =
                v1::OpenGateway { name: self.config.name.clone(), addresses: self.config.addresses.clone() };
            let command = MetaCommand { command: Some(Command::OpenGateway(open)), ..MetaCommand::default() };
            let opened = self.client.submit(command, self.config.operation_timeout).await;
            match opened {
                Ok(opened) if opened.reply.session != 0 => {
                    self.session(SessionId(opened.reply.session)).await;
                }
                Ok(opened) => tracing::warn!(message = opened.reply.message, "meta gave no session"),
                Err(error) => tracing::warn!(%error, "no session yet"),
            }
            tokio::time::sleep(OPEN_AGAIN_AFTER).await;
        }
    }

    /// One session, from its opening to its loss.
    async fn session(self: &Arc<Self>, session: SessionId) {
        tracing::info!(%session, "session opened");
        let (config, view) = (self.config.clone(), self.view.clone());
        let engine = Engine::new(session, config, view, self.revision.subscribe(), self.batch.clone());
        let engine = Arc::new(engine);
        let watch = tokio::spawn(crate::watch::run(self.clone(), engine.clone()));
        if self.view.revision() > 0 {
            engine.sync_links();
        }
        *self.engine.write().unwrap_or_else(PoisonError::into_inner) = Some(engine.clone());
        engine.clone().run().await;
        let _ = watch.await;
        metrics::counter!("longshore_gateway_sessions_lost_total").increment(1);
        tracing::warn!(%session, "session ended");
    }
}

/// A gateway's broker. Clone it freely; needs a tokio runtime.
#[derive(Clone, Debug)]
pub struct Broker {
    core: Arc<Core>,
}

impl Broker {
    /// Starts the broker's tasks and returns once it has a session and the whole metadata.
    /// Errors: `Unavailable` when no storage node answered within `patience` (the tasks then end).
    pub async fn start(config: BrokerConfig, patience: Duration) -> Result<Broker, BrokerError> {
        let config = Arc::new(config);
        let client = Arc::new(MetaClient::new(config.nodes.clone(), config.tls.clone()));
        let view = Arc::new(Metadata::new(config.arguments));
        let core = Arc::new(Core {
            batch: MetaBatch::start(client.clone(), view.clone(), config.operation_timeout),
            view,
            client,
            config,
            engine: RwLock::new(None),
            verifier: Mutex::new(Verifier::new(&mut rand::rng(), Instant::now())),
            revision: tokio::sync::watch::Sender::new(0),
            stopping: std::sync::atomic::AtomicBool::new(false),
        });
        tokio::spawn(core.clone().run());
        let broker = Broker { core };
        let started = Instant::now();
        while !broker.is_ready() {
            if started.elapsed() > patience {
                broker.shutdown(Duration::ZERO).await;
                return Err(BrokerError::Unavailable("no storage node answered in time"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(broker)
    }

    /// Checks a login. `user` may be `namespace:user`. Spends the time of a password hash at most once per process
    /// and password; failed logins are limited.
    pub async fn authenticate(
        &self,
        user: &str,
        password: &[u8],
        peer: SocketAddr,
    ) -> Result<Identity, AuthError> {
        if !self.is_ready() {
            return Err(AuthError::Unavailable);
        }
        let (namespace, name) = match user.split_once(':') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, user),
        };
        let found = self.core.view.user(name);
        let hash = found.as_ref().map(|user| user.password_hash.clone()).filter(|hash| !hash.is_empty());
        self.check(name, hash.as_deref(), password, peer).await?;
        let found = found.ok_or(AuthError::Refused)?;
        if found.loopback_only && !peer.ip().is_loopback() {
            return Err(AuthError::LoopbackOnly);
        }
        let default = if found.default_namespace.is_empty() { "/" } else { &found.default_namespace };
        Ok(Identity {
            user: name.into(),
            namespace: namespace.unwrap_or(default).into(),
            administrator: found.administrator,
            version: found.version,
        })
    }

    async fn check(
        &self,
        user: &str,
        hash: Option<&str>,
        password: &[u8],
        peer: SocketAddr,
    ) -> Result<(), AuthError> {
        let login = Login { user, hash, password, address: peer.ip() };
        let started = Instant::now();
        loop {
            let begun = self.verifier().begin(&login, Instant::now());
            match begun {
                Begun::Accepted => return Ok(()),
                Begun::Throttled(_) => return Err(AuthError::Throttled),
                Begun::Wait(_) if started.elapsed() > LOGIN_WAIT_MAX => return Err(AuthError::Throttled),
                Begun::Wait(wait) => tokio::time::sleep(wait).await,
                Begun::Check(check) => {
                    // In a task of its own: it is finished also when the client goes away.
                    let core = self.core.clone();
                    let checked = tokio::task::spawn_blocking(move || {
                        let started = Instant::now();
                        let checked = contain::compute(|| check.run());
                        let mut verifier = core.verifier.lock().unwrap_or_else(PoisonError::into_inner);
                        verifier.finish(checked, started.elapsed(), Instant::now())
                    });
                    return match checked.await {
                        Ok(Outcome::Accepted) => Ok(()),
                        Ok(Outcome::Refused) => {
                            metrics::counter!("longshore_gateway_logins_refused_total").increment(1);
                            Err(AuthError::Refused)
                        }
                        Err(_) => Err(AuthError::Unavailable),
                    };
                }
            }
        }
    }

    fn verifier(&self) -> std::sync::MutexGuard<'_, Verifier> {
        self.core.verifier.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens a connection in `namespace`. Errors: `NotAllowed` (no permission there, or no such namespace: not told
    /// apart), `Unavailable` (no lease).
    pub fn connect(
        &self,
        identity: &Identity,
        namespace: &str,
        mut info: ConnectionInfo,
    ) -> Result<(Connection, EventReceiver), BrokerError> {
        let unavailable = BrokerError::Unavailable("the gateway has no lease");
        let engine = self.core.engine().filter(|engine| engine.lease.holds()).ok_or(unavailable)?;
        if self.core.is_stopping() {
            return Err(BrokerError::Unavailable("the gateway stops"));
        }
        let refused = || BrokerError::NotAllowed(namespace.to_owned());
        let user = self.core.view.user(&identity.user).ok_or_else(refused)?;
        let found = self.core.view.namespace(namespace).ok_or_else(refused)?;
        let permissions = Permissions::of(&user, found.id).ok_or_else(refused)?;
        if info.client.len() > CLIENT_NAME_BYTES_MAX {
            let cut = (0..=CLIENT_NAME_BYTES_MAX).rev().find(|at| info.client.is_char_boundary(*at));
            info.client.truncate(cut.unwrap_or(0));
        }
        let id = ConnectionId(engine.next_id());
        let hash = user.password_hash.as_str().into();
        let budget = engine.budget.clone();
        let state = ConnectionState::new(id, identity.clone(), found, info, permissions, hash, budget);
        let state = Arc::new(state);
        engine.add_connection(state.clone());
        // Registered: what changes from here on reaches it. What changed just before is looked at once more.
        self.core.user_changed(&engine, &identity.user);
        if let Some(reason) = engine.blocked() {
            state.events.push(Event::Blocked(Some(reason)));
        }
        if engine.lease.is_lost() {
            state.close(CloseReason::LeaseLost);
        }
        let receiver = EventReceiver::new(state.events.clone());
        Ok((Connection::new(engine, state), receiver))
    }

    /// Administration; callers check that the identity is an administrator.
    pub fn admin(&self) -> Admin {
        Admin::new(self.core.clone())
    }

    /// Whether the gateway holds its lease and has loaded what meta knows.
    pub fn is_ready(&self) -> bool {
        let lease = self.core.engine().is_some_and(|engine| engine.lease.holds());
        lease && self.core.view.revision() > 0 && self.core.view.cluster().is_some()
    }

    /// The current session; 0 before the first.
    pub fn session(&self) -> SessionId {
        self.core.engine().map_or(SessionId(0), |engine| engine.session)
    }

    /// Whether storage refuses publishes now, and why.
    pub fn blocked(&self) -> Option<String> {
        self.core.engine().and_then(|engine| engine.blocked())
    }

    /// Closes all connections ([`CloseReason::Shutdown`]), waits until they are dropped or `patience` is over, gives the
    /// lease back.
    pub async fn shutdown(&self, patience: Duration) {
        self.core.stopping.store(true, std::sync::atomic::Ordering::Release);
        let Some(engine) = self.core.engine() else { return };
        for connection in engine.connections() {
            connection.close(CloseReason::Shutdown);
        }
        let started = Instant::now();
        while !engine.connections().is_empty() && started.elapsed() < patience {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if !engine.lease.is_lost() {
            let close = Command::CloseGateway(v1::CloseGateway { session: engine.session.0 });
            let command = MetaCommand { command: Some(close), ..MetaCommand::default() };
            let _ = self.core.client.submit(command, patience.max(Duration::from_millis(200))).await;
        }
        engine.end(CloseReason::Shutdown);
    }
}
