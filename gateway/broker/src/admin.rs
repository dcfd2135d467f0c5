//! Administration: listings, users, namespaces, and why a message is not delivered.

use crate::api::*;

/// Administrator's operations; whoever exposes them checks the identity.
#[derive(Clone, Debug)]
pub struct Admin {}

impl Admin {
    /// Connections of this gateway.
    pub fn connections(&self) -> Vec<ConnectionListing> {
        todo!()
    }

    /// Closes one; false if there is none.
    pub fn close_connection(&self, id: ConnectionId, words: &str) -> bool {
        let _ = (id, words);
        todo!()
    }

    /// All gateways with a lease.
    pub fn gateways(&self) -> Vec<GatewayListing> {
        todo!()
    }

    /// Names of the namespaces.
    pub fn namespaces(&self) -> Vec<String> {
        todo!()
    }

    /// Queues known to meta; `counts` asks their leaders, at most 1,000 of them. Errors: `NotFound` (namespace).
    pub async fn queues(&self, namespace: &str, counts: bool) -> Result<Vec<QueueListing>, BrokerError> {
        let _ = (namespace, counts);
        todo!()
    }

    /// Exchanges of a namespace. Errors: `NotFound`.
    pub fn exchanges(&self, namespace: &str) -> Result<Vec<ExchangeInfo>, BrokerError> {
        let _ = namespace;
        todo!()
    }

    /// Bindings of a namespace. Errors: `NotFound`.
    pub fn bindings(&self, namespace: &str) -> Result<Vec<BindingInfo>, BrokerError> {
        let _ = namespace;
        todo!()
    }

    /// All users, without secrets.
    pub fn users(&self) -> Vec<UserInfo> {
        todo!()
    }

    /// Makes or changes a user. `password` `None`: keep the old one. Hashing takes a blocking thread. Errors: `Invalid`
    /// (a pattern, a name, no password for a new user), `NotFound` (a namespace), `Unavailable`.
    pub async fn put_user(&self, user: UserInfo, password: Option<&[u8]>) -> Result<(), BrokerError> {
        let _ = (user, password);
        todo!()
    }

    /// Sets or (with `None`) clears one permission. Errors: `NotFound`, `Invalid`, `Unavailable`.
    pub async fn set_permission(
        &self,
        user: &str,
        namespace: &str,
        patterns: Option<PermissionPatterns>,
    ) -> Result<(), BrokerError> {
        let _ = (user, namespace, patterns);
        todo!()
    }

    /// Deletes a user; its connections close. Errors: `NotFound`, `Unavailable`.
    pub async fn delete_user(&self, name: &str) -> Result<(), BrokerError> {
        let _ = name;
        todo!()
    }

    /// Makes a namespace. Errors: `Invalid`, `Unavailable`.
    pub async fn put_namespace(&self, name: &str) -> Result<(), BrokerError> {
        let _ = name;
        todo!()
    }

    /// Deletes a namespace and all in it; its connections close. Errors: `NotFound`, `Unavailable`.
    pub async fn delete_namespace(&self, name: &str) -> Result<(), BrokerError> {
        let _ = name;
        todo!()
    }

    /// Why messages of a queue are not delivered: a JSON object of meta's view and the leader's.
    /// Errors: `NotFound`; an absent leader is part of the answer.
    pub async fn explain(&self, namespace: &str, queue: &str) -> Result<String, BrokerError> {
        let _ = (namespace, queue);
        todo!()
    }
}
