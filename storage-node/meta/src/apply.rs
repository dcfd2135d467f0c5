//! From the bytes of an entry to a decision.
//!
//! Danger: total and deterministic, or replicas part. Bytes that are no command are answered `META_INVALID` and
//! change nothing but the applied index. Called by the node crate for each committed entry of group 0.

use crate::limits::MANY_MAX;
use crate::pages::PageKey;
use crate::{Applied, Meta};
use bytes::Bytes;
use longshore_proto::v1::meta_command::Command;
use longshore_proto::v1::{MetaCommand, MetaError, MetaReply};
use longshore_wire::context::EntryContext;
use longshore_wire::{Index, Term};
use prost::Message;

/// A decision: the reply, or a refusal, which changed nothing. Boxed: refusals are rare and replies are large.
pub(crate) type Decided = Result<MetaReply, Box<MetaReply>>;

/// A refusal with its words.
pub(crate) fn refusal(error: MetaError, message: impl Into<String>) -> Box<MetaReply> {
    Box::new(MetaReply { error: error.into(), message: message.into(), ..MetaReply::default() })
}

/// `META_INVALID` unless `holds`.
pub(crate) fn valid(holds: bool, message: &'static str) -> Result<(), Box<MetaReply>> {
    if holds { Ok(()) } else { Err(refusal(MetaError::MetaInvalid, message)) }
}

/// `META_LIMIT` unless there is room for one more.
pub(crate) fn room(count: usize, max: usize, of_what: &'static str) -> Result<(), Box<MetaReply>> {
    if count < max {
        return Ok(());
    }
    Err(refusal(MetaError::MetaLimit, format!("a cluster has at most {max} {of_what}")))
}

/// The part of a command that must not be absent.
pub(crate) fn given<T>(part: Option<T>, message: &'static str) -> Result<T, Box<MetaReply>> {
    part.ok_or_else(|| refusal(MetaError::MetaInvalid, message))
}

impl Meta {
    /// Applies the committed entry at `index`. `data` is an encoded `MetaCommand`; empty for entries that Raft makes
    /// for itself.
    pub fn apply(&mut self, index: Index, term: Term, context: &EntryContext, data: &Bytes) -> Applied {
        self.numbers.applied_index = index.0;
        self.numbers.applied_term = term.0;
        self.numbers.log_time_ms = self.numbers.log_time_ms.max(context.stamp.0);
        self.dirty.insert(PageKey::Numbers);
        if data.is_empty() {
            let reply = MetaReply { revision: self.numbers.revision, ..MetaReply::default() };
            return Applied { reply, changes: Vec::new() };
        }
        // From a slice, so that fields are copied: as parts of `data` they would keep whole entries in memory.
        let reply = match MetaCommand::decode(data.as_ref()) {
            Ok(MetaCommand { command: Some(Command::Many(many)), .. }) => self.decide_many(many.commands),
            Ok(MetaCommand { command: Some(command), .. }) => self.decide(command),
            Ok(MetaCommand { command: None, .. }) => {
                self.answer(Err(refusal(MetaError::MetaInvalid, "no command that this version knows")))
            }
            Err(error) => self.answer(Err(refusal(MetaError::MetaInvalid, error.to_string()))),
        };
        Applied { reply, changes: std::mem::take(&mut self.fresh) }
    }

    fn answer(&self, decided: Decided) -> MetaReply {
        let mut reply = decided.unwrap_or_else(|refusal| *refusal);
        reply.revision = self.numbers.revision;
        reply
    }

    /// Each command alone: a refusal does not touch the others.
    fn decide_many(&mut self, commands: Vec<MetaCommand>) -> MetaReply {
        if commands.len() > MANY_MAX {
            return self.answer(
                room(commands.len(), MANY_MAX, "commands in one entry").map(|()| MetaReply::default()),
            );
        }
        let replies = commands.into_iter().map(|command| match command.command {
            Some(command) => self.decide(command),
            None => self.answer(Err(refusal(MetaError::MetaInvalid, "no command that this version knows"))),
        });
        let many = replies.collect();
        MetaReply { many, ..self.answer(Ok(MetaReply::default())) }
    }

    fn decide(&mut self, command: Command) -> MetaReply {
        let formed = self.cluster.is_some() || matches!(command, Command::FormCluster(_));
        if !formed {
            let words = "the cluster is not formed yet; try again";
            return self.answer(Err(refusal(MetaError::MetaUnavailable, words)));
        }
        let decided = match command {
            Command::FormCluster(form) => self.form_cluster(form),
            Command::RegisterNode(register) => self.register_node(register),
            Command::RetireNode(retire) => self.retire_node(retire.node),
            Command::ReplaceReplica(replace) => self.replace_replica(replace),
            Command::ObserveMeta(observe) => self.observe_meta(observe.node, observe.request),
            Command::ReplicaPromoted(promoted) => self.replica_promoted(promoted.shard, promoted.replica),
            Command::ReplicaRemoved(removed) => self.replica_removed(removed.shard, removed.replica),
            Command::OpenGateway(open) => self.open_gateway(open),
            Command::CloseGateway(close) => self.close_gateway(close.session),
            Command::DropOwner(drop) => self.drop_owner(drop.session, drop.owner),
            Command::PutNamespace(put) => self.make_namespace(put.name),
            Command::DeleteNamespace(delete) => self.delete_namespace(&delete.name),
            Command::PutUser(put) => self.set_user(put),
            Command::DeleteUser(delete) => self.delete_user(&delete.name),
            Command::DeclareQueue(declare) => self.declare_queue(declare),
            Command::DeleteQueue(delete) => self.delete_queue(delete),
            Command::LogsDropped(dropped) => self.logs_dropped(&dropped.logs),
            Command::DeclareExchange(declare) => self.declare_exchange(declare),
            Command::DeleteExchange(delete) => self.delete_exchange(delete),
            Command::Bind(bind) => self.bind(bind),
            Command::Unbind(unbind) => self.unbind(unbind),
            Command::Barrier(_) => Err(refusal(MetaError::MetaInvalid, "a barrier is not replicated")),
            Command::Many(_) => Err(refusal(MetaError::MetaInvalid, "a Many inside of a Many")),
        };
        self.answer(decided)
    }
}
