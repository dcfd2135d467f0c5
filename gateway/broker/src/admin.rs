//! Administration: listings, users, namespaces, and why a message is not delivered.

use crate::api::*;
use crate::broker::Core;
use crate::engine::Engine;
use crate::metadata::{Namespace, convert};
use crate::permissions::compile;
use crate::queues;
use crate::transients::Purpose;
use longshore_auth::{ScramVerifier, hash_password};
use longshore_proto::v1::{self, gateway_item::Item, meta_command::Command};
use longshore_wire::{NodeId, SessionId, ShardId};
use std::sync::Arc;

/// Queues whose counts one listing asks for.
const COUNTED_MAX: usize = 1000;
/// Longest name of a user or a namespace, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Administrator's operations; whoever exposes them checks the identity.
#[derive(Clone, Debug)]
pub struct Admin {
    pub(crate) core: Arc<Core>,
}

pub(crate) fn missing(what: &'static str, name: &str) -> BrokerError {
    BrokerError::NotFound { what, name: name.to_owned() }
}

fn check_name(what: &str, name: &str) -> Result<(), BrokerError> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return Err(BrokerError::Invalid(format!("the name of a {what} has 1 to {NAME_BYTES_MAX} bytes")));
    }
    Ok(())
}

fn scram(verifier: ScramVerifier) -> v1::ScramVerifier {
    v1::ScramVerifier {
        salt: verifier.salt.into(),
        iterations: verifier.iterations,
        stored_key: verifier.stored_key.into(),
        server_key: verifier.server_key.into(),
    }
}

impl Admin {
    pub(crate) fn new(core: Arc<Core>) -> Admin {
        Admin { core }
    }

    pub(crate) fn engine(&self) -> Result<Arc<Engine>, BrokerError> {
        self.core.engine().ok_or(BrokerError::Unavailable("the gateway has no session"))
    }

    pub(crate) fn namespace(&self, name: &str) -> Result<Arc<Namespace>, BrokerError> {
        self.core.view.namespace(name).ok_or_else(|| missing("namespace", name))
    }

    async fn change(&self, command: Command, what: &'static str, name: &str) -> Result<(), BrokerError> {
        let engine = self.engine()?;
        let submitted = engine.meta.submit(command, false).await?;
        queues::meta_error(&submitted.reply, what, name)?;
        engine.applied_everywhere(submitted.reply.revision).await
    }

    /// Connections of this gateway.
    pub fn connections(&self) -> Vec<ConnectionListing> {
        let connections = self.core.engine().map(|engine| engine.connections()).unwrap_or_default();
        let listing = connections.iter().map(|connection| ConnectionListing {
            id: connection.id,
            user: connection.identity.user.to_string(),
            namespace: connection.namespace.name.to_string(),
            info: connection.info.clone(),
            consumers: connection.consumer_count(),
        });
        listing.collect()
    }

    /// Closes one; false if there is none.
    pub fn close_connection(&self, id: ConnectionId, words: &str) -> bool {
        let connection = self.core.engine().and_then(|engine| engine.connection(id));
        let found = connection.is_some();
        if let Some(connection) = connection {
            connection.close(CloseReason::Admin(words.to_owned()));
        }
        found
    }

    /// All gateways with a lease.
    pub fn gateways(&self) -> Vec<GatewayListing> {
        let gateways = self.core.view.gateways().into_iter().map(|gateway| GatewayListing {
            session: SessionId(gateway.session),
            name: gateway.name,
            addresses: gateway.addresses,
        });
        gateways.collect()
    }

    /// Storage nodes in service.
    pub fn nodes(&self) -> Vec<NodeListing> {
        let (engine, shards) = (self.core.engine(), self.shards());
        let listed = |node: v1::StorageNode| NodeListing {
            id: NodeId(node.id),
            connected: engine.as_ref().is_some_and(|engine| engine.is_linked(NodeId(node.id))),
            shards: shards.iter().filter(|(_, _, nodes)| nodes.contains(&node.id)).count(),
            leads: shards.iter().filter(|(_, leader, _)| *leader == Some(node.id)).count(),
            address: node.address,
            zone: node.zone,
            version: node.version,
        };
        self.core.view.nodes().into_iter().map(listed).collect()
    }

    /// Shards that hold logs: id, the node that leads as far as this gateway knows, and the nodes that hold them.
    pub fn shards(&self) -> Vec<(ShardId, Option<u32>, Vec<u32>)> {
        let engine = self.core.engine();
        let shards = self.core.view.shards().into_iter().map(|shard| {
            let id = ShardId(shard.id);
            let leader = engine.as_ref().and_then(|engine| engine.shard(id).leader().0);
            (id, leader.map(|(_, node)| node.0), shard.replicas.iter().map(|replica| replica.node).collect())
        });
        shards.collect()
    }

    /// Names of the namespaces.
    pub fn namespaces(&self) -> Vec<String> {
        self.core.view.namespaces().iter().map(|namespace| namespace.name.to_string()).collect()
    }

    /// Queues known to meta; `counts` asks their leaders, at most 1,000 of them. Errors: `NotFound` (namespace).
    pub async fn queues(&self, namespace: &str, counts: bool) -> Result<Vec<QueueListing>, BrokerError> {
        let (engine, namespace) = (self.engine()?, self.namespace(namespace)?);
        let mut listings = Vec::new();
        for entry in namespace.queues() {
            let shard = if entry.queue.durable {
                entry.place().1
            } else {
                self.core.view.transient_shard(namespace.id, &entry.queue.name).unwrap_or(ShardId(0))
            };
            let mut listing = QueueListing {
                info: convert::queue_info(&entry, 0, 0),
                shard,
                namespace: namespace.id,
                counts: None,
            };
            if counts && listings.len() < COUNTED_MAX {
                let log = match entry.queue.durable {
                    true => Some(listing.info.log.0),
                    false => {
                        let found = engine.find_transient(&namespace, &entry.queue.name, Purpose::Look);
                        found.await.ok().map(|queue| queue.log)
                    }
                };
                if let Some(log) = log {
                    let stat = |request| {
                        Item::LogStat(v1::LogStat { request, shard: shard.0, log, ..Default::default() })
                    };
                    listing.counts = queues::counts_of(engine.ask_for(shard, &entry.queue.name, stat).await);
                }
            }
            listings.push(listing);
        }
        Ok(listings)
    }

    /// Exchanges of a namespace. Errors: `NotFound`.
    pub fn exchanges(&self, namespace: &str) -> Result<Vec<ExchangeInfo>, BrokerError> {
        Ok(self.namespace(namespace)?.exchanges().iter().map(|info| (**info).clone()).collect())
    }

    /// Bindings of a namespace. Errors: `NotFound`.
    pub fn bindings(&self, namespace: &str) -> Result<Vec<BindingInfo>, BrokerError> {
        Ok(self.namespace(namespace)?.bindings())
    }

    /// All users, without secrets.
    pub fn users(&self) -> Vec<UserInfo> {
        let info = |user: &Arc<v1::User>| UserInfo {
            name: user.name.clone(),
            administrator: user.administrator,
            default_namespace: user.default_namespace.clone(),
            loopback_only: user.loopback_only,
            permissions: user.permissions.iter().filter_map(|p| self.permission_info(p)).collect(),
        };
        self.core.view.users().iter().map(info).collect()
    }

    fn permission_info(&self, permission: &v1::Permission) -> Option<(String, PermissionPatterns)> {
        let namespace = self.core.view.namespace_by_id(longshore_wire::NamespaceId(permission.namespace))?;
        let patterns = PermissionPatterns {
            configure: permission.configure.clone(),
            write: permission.write.clone(),
            read: permission.read.clone(),
        };
        Some((namespace.name.to_string(), patterns))
    }

    fn permission_message(
        &self,
        namespace: &str,
        patterns: &PermissionPatterns,
    ) -> Result<v1::Permission, BrokerError> {
        for pattern in [&patterns.configure, &patterns.write, &patterns.read] {
            compile(pattern)
                .map_err(|error| BrokerError::Invalid(format!("'{pattern}' is not a pattern: {error}")))?;
        }
        Ok(v1::Permission {
            namespace: self.namespace(namespace)?.id.0,
            configure: patterns.configure.clone(),
            write: patterns.write.clone(),
            read: patterns.read.clone(),
        })
    }

    /// Makes or changes a user. `password` `None`: keep the old one. Hashing takes a blocking thread. Errors: `Invalid`
    /// (a pattern, a name, no password for a new user), `NotFound` (a namespace), `Unavailable`.
    pub async fn put_user(&self, user: UserInfo, password: Option<&[u8]>) -> Result<(), BrokerError> {
        check_name("user", &user.name)?;
        if user.name.contains(':') {
            return Err(BrokerError::Invalid(
                "a user's name has no ':', which divides it from a namespace".into(),
            ));
        }
        if password.is_none() && self.core.view.user(&user.name).is_none() {
            return Err(BrokerError::Invalid("a new user needs a password".into()));
        }
        let permissions = user
            .permissions
            .iter()
            .map(|(namespace, patterns)| self.permission_message(namespace, patterns))
            .collect::<Result<Vec<_>, _>>()?;
        let mut message = v1::User {
            name: user.name.clone(),
            administrator: user.administrator,
            default_namespace: user.default_namespace,
            loopback_only: user.loopback_only,
            permissions,
            ..v1::User::default()
        };
        if let Some(password) = password {
            let password = password.to_vec();
            let hashed =
                tokio::task::spawn_blocking(move || hash_password(&password, &mut rand::rng())).await;
            let set = hashed
                .map_err(|_| BrokerError::Unavailable("the gateway stops"))?
                .map_err(|error| BrokerError::Invalid(error.to_string()))?;
            message.password_hash = set.hash;
            message.scram_sha_256 = Some(scram(set.scram_sha_256));
            message.scram_sha_512 = Some(scram(set.scram_sha_512));
        }
        let keep_password = password.is_none();
        let put = v1::PutUser { user: Some(message), permissions_only: false, keep_password };
        self.change(Command::PutUser(put), "user", &user.name).await
    }

    /// Sets or (with `None`) clears one permission. Errors: `NotFound`, `Invalid`, `Unavailable`.
    pub async fn set_permission(
        &self,
        user: &str,
        namespace: &str,
        patterns: Option<PermissionPatterns>,
    ) -> Result<(), BrokerError> {
        let existing = self.core.view.user(user).ok_or_else(|| missing("user", user))?;
        let id = self.namespace(namespace)?.id.0;
        let mut permissions = existing.permissions.clone();
        permissions.retain(|permission| permission.namespace != id);
        if let Some(patterns) = &patterns {
            permissions.push(self.permission_message(namespace, patterns)?);
        }
        let changed = v1::User { name: user.to_owned(), permissions, ..v1::User::default() };
        let put = v1::PutUser { user: Some(changed), permissions_only: true, keep_password: true };
        self.change(Command::PutUser(put), "user", user).await
    }

    /// Deletes a user; its connections close. Errors: `NotFound`, `Unavailable`.
    pub async fn delete_user(&self, name: &str) -> Result<(), BrokerError> {
        let delete = v1::DeleteUser { name: name.to_owned() };
        self.change(Command::DeleteUser(delete), "user", name).await
    }

    /// Makes a namespace. Errors: `Invalid`, `Unavailable`.
    pub async fn put_namespace(&self, name: &str) -> Result<(), BrokerError> {
        check_name("namespace", name)?;
        let put = v1::PutNamespace { name: name.to_owned() };
        self.change(Command::PutNamespace(put), "namespace", name).await
    }

    /// Deletes a namespace and all in it; its connections close. Errors: `NotFound`, `Unavailable`.
    pub async fn delete_namespace(&self, name: &str) -> Result<(), BrokerError> {
        let delete = v1::DeleteNamespace { name: name.to_owned() };
        self.change(Command::DeleteNamespace(delete), "namespace", name).await
    }
}
