//! The fake's meta: just enough for the broker.

use super::{Fake, State};
use longshore_auth::hash_password;
use longshore_proto::v1::{self, MetaError, MetaReply, meta_change::Change, meta_command::Command};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::{Request, Response, Status, Streaming};

fn user(name: &str, version: u64) -> v1::User {
    let set = hash_password(name.as_bytes(), &mut rand::rng()).unwrap();
    let all = || ".*".to_owned();
    v1::User {
        name: name.into(),
        password_hash: set.hash,
        version,
        permissions: vec![v1::Permission { namespace: 1, configure: all(), write: all(), read: all() }],
        ..v1::User::default()
    }
}

impl State {
    pub fn change(&mut self, change: Change) -> u64 {
        self.revision += 1;
        let change = v1::MetaChange { revision: self.revision, change: Some(change) };
        self.changes.push(change.clone());
        let revision = self.revision;
        let down = v1::WatchDown { revision, changes: vec![change], ..v1::WatchDown::default() };
        self.watchers.retain(|watcher| watcher.send(Ok(down.clone())).is_ok());
        self.revision
    }

    fn carry_out(&mut self, command: Command) -> MetaReply {
        let mut reply = MetaReply::default();
        match command {
            Command::OpenGateway(_) => {
                self.sessions += 1;
                self.live.insert(self.sessions);
                reply.session = self.sessions;
            }
            Command::DeclareQueue(declare) => self.declare(declare.queue.unwrap(), &mut reply),
            Command::DeleteQueue(delete) => {
                match self.queues.remove(&(delete.namespace, delete.name.clone())) {
                    Some(queue) => {
                        let gone = v1::QueueDeleted {
                            namespace: delete.namespace,
                            name: delete.name,
                            log: queue.log,
                            ..v1::QueueDeleted::default()
                        };
                        self.change(Change::QueueDeleted(gone));
                        self.logs.remove(&queue.log);
                    }
                    None => reply.error = MetaError::MetaNotFound.into(),
                }
            }
            Command::DeclareExchange(declare) => {
                self.change(Change::Exchange(declare.exchange.unwrap()));
            }
            Command::Bind(bind) => {
                self.change(Change::Binding(bind.binding.unwrap()));
            }
            Command::Unbind(unbind) => {
                self.change(Change::BindingDeleted(unbind.binding.unwrap()));
            }
            Command::DeleteUser(delete) => {
                self.change(Change::UserDeleted(delete.name));
            }
            Command::Many(many) => {
                let commands = many.commands.into_iter().filter_map(|command| command.command);
                reply.many = commands.map(|command| self.carry_out(command)).collect();
            }
            Command::DropOwner(drop) => {
                let mine = |q: &v1::Queue| q.owner_session == drop.session && q.owner == drop.owner;
                let names: Vec<_> =
                    self.queues.iter().filter(|(_, q)| mine(q)).map(|(k, _)| k.clone()).collect();
                for (namespace, name) in names {
                    let log = self.queues.remove(&(namespace, name.clone())).map_or(0, |queue| queue.log);
                    let gone = v1::QueueDeleted { namespace, name, log, ..v1::QueueDeleted::default() };
                    self.change(Change::QueueDeleted(gone));
                }
            }
            _ => {}
        }
        reply.revision = self.revision;
        reply
    }

    fn declare(&mut self, mut queue: v1::Queue, reply: &mut MetaReply) {
        let key = (queue.namespace, queue.name.clone());
        if let Some(existing) = self.queues.get(&key) {
            if existing.durable != queue.durable {
                reply.error = MetaError::MetaInequivalent.into();
            }
            reply.queue = Some(existing.clone());
            return;
        }
        self.next_log += 1;
        queue.log = self.next_log;
        queue.spans = vec![v1::Span { from_offset: 0, shard: 1 }];
        self.queues.insert(key, queue.clone());
        self.change(Change::Queue(queue.clone()));
        reply.queue = Some(queue);
        reply.created = true;
    }
}

impl Fake {
    pub(super) fn seed(&self) {
        let mut state = self.lock();
        state.change(Change::Namespace(v1::Namespace { id: 1, name: "/".into() }));
        state.change(Change::Cluster(v1::Cluster { id: "fake".into(), shards: 1, ..v1::Cluster::default() }));
        state.change(Change::User(user("guest", 1)));
        let (id, address) = (1, self.address.to_string());
        state.change(Change::Node(v1::StorageNode { id, address, ..v1::StorageNode::default() }));
        state.change(Change::Exchange(v1::Exchange {
            namespace: 1,
            name: "amq.topic".into(),
            kind: "topic".into(),
            durable: true,
            ..v1::Exchange::default()
        }));
    }
}

#[tonic::async_trait]
impl v1::meta_server::Meta for Fake {
    async fn submit(&self, request: Request<v1::MetaCommand>) -> Result<Response<MetaReply>, Status> {
        let command = request.into_inner().command.unwrap();
        let reply = {
            let mut state = self.lock();
            if !matches!(command, Command::Barrier(_)) {
                state.meta_entries += 1;
            }
            state.carry_out(command)
        };
        self.until(|state| !state.meta_held).await;
        Ok(Response::new(reply))
    }

    type WatchStream = UnboundedReceiverStream<Result<v1::WatchDown, Status>>;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchUp>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let mut inbound = request.into_inner();
        let (sender, receiver) = mpsc::unbounded_channel();
        let first = inbound.message().await?.unwrap();
        {
            let mut state = self.lock();
            let lease_lost = !state.live.contains(&first.session);
            let down = v1::WatchDown {
                lease_lost,
                revision: state.revision,
                reset: true,
                changes: state.changes.clone(),
                renewed: if state.deaf || lease_lost { 0 } else { first.renewal },
                ..v1::WatchDown::default()
            };
            let _ = sender.send(Ok(down));
            state.watchers.push(sender.clone());
        }
        let fake = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(up)) = inbound.message().await {
                let state = fake.lock();
                let lease_lost = !state.live.contains(&up.session);
                let renewed = if state.deaf { 0 } else { up.renewal };
                let revision = state.revision;
                let down = v1::WatchDown { revision, renewed, lease_lost, ..v1::WatchDown::default() };
                if !state.deaf || lease_lost {
                    let _ = sender.send(Ok(down));
                }
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}
