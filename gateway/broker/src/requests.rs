//! Requests to shards' leaders that carry a number, and who waits for their answers.

use crate::api::*;
use crate::engine::Engine;
use crate::session::consumers::item;
use crate::shard::Shard;
use longshore_proto::v1::{self, answer, gateway_item};
use longshore_wire::{NodeId, ShardId};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::Instant;

/// How long to wait before asking again whoever did not lead, or was busy.
const AGAIN_AFTER: Duration = Duration::from_millis(20);
/// How often to look for a leader, beside being told of one.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// An answer.
#[derive(Debug)]
pub(crate) enum Reply {
    /// To most requests.
    Answer(answer::Result),
    /// To a get.
    Got {
        /// The message, if there was one.
        delivery: Option<Leased>,
        /// Messages left.
        ready: u64,
    },
    /// Ask again: not the leader, or the link was lost.
    Again,
}

/// A message that a get took. Unless somebody takes it out it goes back to its queue, uncounted: whoever asked may be
/// gone before the answer, or between the answer and its reading.
#[derive(Debug)]
pub(crate) struct Leased {
    shard: Arc<Shard>,
    delivery: Option<Delivery>,
}

impl Leased {
    pub fn new(shard: Arc<Shard>, delivery: Delivery) -> Leased {
        Leased { shard, delivery: Some(delivery) }
    }

    /// The message; its taker settles it, or ends with the connection that the lease is noted for.
    pub fn take(mut self) -> Option<Delivery> {
        self.delivery.take()
    }
}

impl Drop for Leased {
    fn drop(&mut self) {
        if let Some(delivery) = &self.delivery {
            self.shard.give_back(&delivery.handle);
        }
    }
}

/// For whom a get is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GetFor {
    pub connection: ConnectionId,
    pub shard: ShardId,
}

#[derive(Debug)]
struct Pending {
    shard: ShardId,
    node: NodeId,
    get: Option<GetFor>,
    /// `None`: a get that nobody waits for any more; what it brings goes back.
    answer: Option<oneshot::Sender<Reply>>,
}

/// Whoever waits for an answer; ends the waiting when dropped.
#[derive(Debug)]
struct Expected<'a> {
    requests: &'a Requests,
    request: u64,
    answer: oneshot::Receiver<Reply>,
}

impl Drop for Expected<'_> {
    fn drop(&mut self) {
        self.requests.abandon(self.request);
    }
}

#[derive(Debug, Default)]
struct Inner {
    pending: HashMap<u64, Pending>,
    /// Gets whose pieces are under way, by (log, offset): request, messages left.
    open_gets: HashMap<(u64, u64), (u64, u64)>,
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    inner: Mutex<Inner>,
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, request: u64, shard: ShardId, node: NodeId, get: Option<GetFor>) -> Expected<'_> {
        let (answer, receiver) = oneshot::channel();
        self.lock().pending.insert(request, Pending { shard, node, get, answer: Some(answer) });
        Expected { requests: self, request, answer: receiver }
    }

    /// Nobody waits for it any more. A get is remembered until its answer, or the loss of whom it was asked: it may
    /// have taken a message.
    fn abandon(&self, request: u64) {
        let mut inner = self.lock();
        match inner.pending.get_mut(&request) {
            Some(pending) if pending.get.is_some() => pending.answer = None,
            _ => drop(inner.pending.remove(&request)),
        }
    }

    /// It went nowhere.
    fn forget(&self, request: u64) {
        self.lock().pending.remove(&request);
    }

    /// An answer came.
    pub fn resolve(&self, request: u64, reply: Reply) {
        let pending = self.lock().pending.remove(&request);
        // Outside of the lock: a message that nobody takes goes back to its shard here.
        if let Some(answer) = pending.and_then(|pending| pending.answer) {
            let _ = answer.send(reply);
        }
    }

    /// The node does not lead the shard.
    pub fn again(&self, request: u64) {
        self.resolve(request, Reply::Again);
    }

    /// For whom a get is, if its answer is still expected (though perhaps nobody waits for it).
    pub fn get_of(&self, request: u64) -> Option<GetFor> {
        self.lock().pending.get(&request).and_then(|pending| pending.get)
    }

    /// A get's message comes in pieces.
    pub fn open_get(&self, key: (u64, u64), request: u64, ready: u64) {
        self.lock().open_gets.insert(key, (request, ready));
    }

    /// All pieces of a get's message are there.
    pub fn take_open_get(&self, key: (u64, u64)) -> Option<(u64, u64)> {
        self.lock().open_gets.remove(&key)
    }

    /// The stream to a node died with what was asked on it.
    pub fn link_down(&self, node: NodeId) {
        self.ask_again(|pending| pending.node == node);
    }

    /// The shard is led by `node` now: what another node was asked, it may have forgotten.
    pub fn leader_changed(&self, shard: ShardId, node: NodeId) {
        self.ask_again(|pending| pending.shard == shard && pending.node != node);
    }

    fn ask_again(&self, whom: impl Fn(&Pending) -> bool) {
        let lost: Vec<Pending> = {
            let mut inner = self.lock();
            let Inner { pending, open_gets } = &mut *inner;
            let lost: HashMap<u64, Pending> = pending.extract_if(|_, pending| whom(pending)).collect();
            open_gets.retain(|_, (request, _)| !lost.contains_key(request));
            lost.into_values().collect()
        };
        for answer in lost.into_iter().filter_map(|pending| pending.answer) {
            let _ = answer.send(Reply::Again);
        }
    }

    /// The session is over.
    pub fn end(&self) {
        self.lock().pending.clear();
    }
}

impl Engine {
    /// Asks the leader of a shard, again and again until it answers or the operation's time is over.
    pub async fn ask(
        &self,
        shard: ShardId,
        get: Option<GetFor>,
        make: impl Fn(u64) -> gateway_item::Item,
    ) -> Result<Reply, BrokerError> {
        let deadline = Instant::now() + self.config.operation_timeout;
        let late = BrokerError::Unavailable("no leader answered in time");
        let shard = self.shard(shard);
        while Instant::now() < deadline && !self.lease.is_lost() {
            let (Some((_, node)), Some(outbox)) = shard.leader() else {
                let look = deadline.min(Instant::now() + LOOK_EVERY);
                let _ = tokio::time::timeout_at(look, shard.ready.notified()).await;
                continue;
            };
            let request = self.next_id();
            let mut expected = self.requests.begin(request, shard.id, node, get);
            if !outbox.push(item(make(request))) {
                // The link went between the look and the note: nobody would say so.
                self.requests.forget(request);
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            }
            match tokio::time::timeout_at(deadline, &mut expected.answer).await {
                Ok(Ok(Reply::Again)) => tokio::time::sleep(AGAIN_AFTER).await,
                Ok(Ok(Reply::Answer(answer::Result::Refused(reason)))) if is_busy(reason) => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                Ok(Ok(reply)) => return Ok(reply),
                Ok(Err(_)) => return Err(BrokerError::Closed),
                Err(_) => return Err(late),
            }
        }
        Err(late)
    }

    /// As [`Engine::ask`], for what is not a get; a refusal becomes an error about `queue`.
    pub async fn ask_for(
        &self,
        shard: ShardId,
        queue: &str,
        make: impl Fn(u64) -> gateway_item::Item,
    ) -> Result<answer::Result, BrokerError> {
        match self.ask(shard, None, make).await? {
            Reply::Answer(answer::Result::Refused(reason)) => {
                let reason = v1::Refused::try_from(reason).unwrap_or(v1::Refused::Unspecified);
                Err(crate::engine::refused(reason, queue))
            }
            Reply::Answer(result) => Ok(result),
            Reply::Got { .. } | Reply::Again => Err(BrokerError::Unavailable("an answer of another kind")),
        }
    }
}

fn is_busy(reason: i32) -> bool {
    reason == v1::Refused::Busy as i32 || reason == v1::Refused::Session as i32
}
