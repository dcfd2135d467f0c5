//! Talks to meta: finds its leader among the storage nodes, submits commands, follows changes.

use crate::api::BrokerError;
use longshore_proto::MESSAGE_BYTES_MAX;
use longshore_proto::transport::{self, TlsIdentity};
use longshore_proto::v1::meta_client::MetaClient as Rpc;
use longshore_proto::v1::{self, MetaCommand, MetaError, MetaReply};
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::Instant;
use tonic::transport::Channel;

/// How long one attempt may take; barriers wait up to a lease.
const ATTEMPT: Duration = Duration::from_secs(6);
/// Before the next node is tried.
const NEXT_AFTER: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
struct Inner {
    addresses: Vec<String>,
    /// Who leads, as far as known.
    leader: Option<String>,
    /// Which address to try next where no leader is known.
    next: usize,
    channels: BTreeMap<String, Channel>,
}

/// Shared by all that talk to meta.
#[derive(Debug)]
pub(crate) struct MetaClient {
    tls: Option<TlsIdentity>,
    inner: Mutex<Inner>,
}

/// A reply, and whether the command may have been carried out by an earlier attempt already.
#[derive(Debug)]
pub(crate) struct Submitted {
    pub reply: MetaReply,
    pub repeated: bool,
}

impl MetaClient {
    /// For these nodes to begin with.
    pub fn new(addresses: Vec<String>, tls: Option<TlsIdentity>) -> MetaClient {
        MetaClient { tls, inner: Mutex::new(Inner { addresses, ..Inner::default() }) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nodes that meta tells of are tried too.
    pub fn learn(&self, addresses: impl IntoIterator<Item = String>) {
        let mut inner = self.lock();
        for address in addresses {
            if !inner.addresses.contains(&address) {
                inner.addresses.push(address);
            }
        }
    }

    /// The node to talk to now.
    pub fn connect(&self) -> Result<(String, Rpc<Channel>), String> {
        let mut inner = self.lock();
        let address = match &inner.leader {
            Some(leader) => leader.clone(),
            None => {
                let count = inner.addresses.len().max(1);
                let at = inner.next % count;
                inner.addresses.get(at).cloned().ok_or("no storage node is configured")?
            }
        };
        let channel = match inner.channels.get(&address) {
            Some(channel) => channel.clone(),
            None => {
                let channel = transport::channel(&address, self.tls.as_ref()).map_err(|e| e.to_string())?;
                inner.channels.insert(address.clone(), channel.clone());
                channel
            }
        };
        let rpc = Rpc::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX);
        Ok((address, rpc))
    }

    /// `address` did not answer, or says that another node leads.
    pub fn not_leader(&self, address: &str, told: Option<&v1::NotLeader>) {
        let mut inner = self.lock();
        let told = told.filter(|told| !told.address.is_empty() && told.address != address);
        if told.is_none() {
            inner.next = inner.next.wrapping_add(1);
        }
        inner.leader = told.map(|told| told.address.clone());
    }

    /// `address` leads.
    pub fn is_leader(&self, address: &str) {
        let mut inner = self.lock();
        if inner.leader.as_deref() != Some(address) {
            inner.leader = Some(address.to_owned());
        }
    }

    /// Submits a command until meta's leader answers it, or time is over.
    pub async fn submit(&self, command: MetaCommand, patience: Duration) -> Result<Submitted, BrokerError> {
        let deadline = Instant::now() + patience;
        let mut repeated = false;
        loop {
            if let Ok((address, mut rpc)) = self.connect() {
                let until = deadline.min(Instant::now() + ATTEMPT);
                match tokio::time::timeout_at(until, rpc.submit(command.clone())).await {
                    Ok(Ok(reply)) => {
                        let reply = reply.into_inner();
                        match reply.error() {
                            MetaError::MetaNotLeader => self.not_leader(&address, reply.not_leader.as_ref()),
                            MetaError::MetaUnavailable => repeated = true,
                            _ => {
                                self.is_leader(&address);
                                return Ok(Submitted { reply, repeated });
                            }
                        }
                    }
                    // Whether it was carried out is unknown; commands may be sent twice.
                    Ok(Err(_)) | Err(_) => {
                        repeated = true;
                        self.not_leader(&address, None);
                    }
                }
            }
            if Instant::now() + NEXT_AFTER >= deadline {
                return Err(BrokerError::Unavailable("meta did not answer in time"));
            }
            tokio::time::sleep(NEXT_AFTER).await;
        }
    }
}
