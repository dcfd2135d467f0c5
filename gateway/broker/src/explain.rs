//! `longshore explain`: what meta knows of a queue, what its leader says, and whose the consumers in it are.

use crate::admin::{Admin, missing};
use crate::api::{BrokerError, ConnectionId};
use crate::engine::Engine;
use crate::queues;
use crate::transients::Purpose;
use longshore_wire::{LogId, ShardId};
use serde_json::{Value, json};

impl Admin {
    /// Why messages of a queue are not delivered: a JSON object of meta's view and the leader's.
    /// Errors: `NotFound`; an absent leader is part of the answer.
    pub async fn explain(&self, namespace: &str, queue: &str) -> Result<Value, BrokerError> {
        let (engine, namespace) = (self.engine()?, self.namespace(namespace)?);
        let entry = namespace.queue(queue);
        let (log, shard) = match entry.as_ref().filter(|entry| entry.queue.durable) {
            Some(entry) => (entry.queue.log, entry.place().1),
            None => {
                let found = engine.find_transient(&namespace, queue, Purpose::Look).await?;
                let shard = self.core.view.transient_shard(namespace.id, queue);
                (found.log, shard.ok_or_else(|| missing("queue", queue))?)
            }
        };
        let leader = engine.shard(shard).leader();
        let answer = match leader {
            (Some(_), Some(_)) => queues::explain(&engine, shard, LogId(log), queue).await,
            _ => Err(BrokerError::Unavailable("no leader is known")),
        };
        let delivery = match answer {
            Ok(text) => {
                let mut delivery = serde_json::from_str(&text).unwrap_or(Value::String(text));
                self.name_consumers(&engine, shard, &mut delivery);
                delivery
            }
            Err(error) => json!({ "reason": "no leader", "error": error.to_string() }),
        };
        Ok(json!({
            "queue": queue,
            "namespace": &*namespace.name,
            "durable": entry.is_some_and(|entry| entry.queue.durable),
            "shard": shard.0,
            "log": log,
            "leader": leader.0.map(|(term, node)| json!({ "node": node.0, "term": term.0 })),
            "reachable": leader.1.is_some(),
            "gateways": self.gateways().len(),
            "publishes_blocked": engine.blocked(),
            "delivery": delivery,
        }))
    }

    /// The leader knows consumers by their gateway's session and a number: says which gateway that is, and of this one's
    /// own consumers which connection.
    fn name_consumers(&self, engine: &Engine, shard: ShardId, told: &mut Value) {
        match told {
            Value::Array(list) => list.iter_mut().for_each(|one| self.name_consumers(engine, shard, one)),
            Value::Object(fields) => {
                let number = |name: &str| fields.get(name).and_then(Value::as_u64);
                let (Some(session), Some(consumer)) = (number("session"), number("consumer")) else {
                    return fields.values_mut().for_each(|one| self.name_consumers(engine, shard, one));
                };
                if let Some(gateway) = self.gateways().into_iter().find(|g| g.session.0 == session) {
                    fields.insert("gateway".into(), gateway.name.into());
                }
                if session == engine.session.0
                    && let Some(connection) = connection_of(engine, shard, consumer)
                {
                    fields.insert("connection".into(), connection.0.into());
                }
            }
            _ => {}
        }
    }
}

fn connection_of(engine: &Engine, shard: ShardId, consumer: u64) -> Option<ConnectionId> {
    engine.shard(shard).with(|state| state.consumers.owner(consumer).map(|owner| owner.connection))
}
