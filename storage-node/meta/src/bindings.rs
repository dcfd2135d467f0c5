//! Bindings: the set, found by source, by destination and by owner.
//! Danger: the four maps must agree, or a binding survives its queue. Called by `apply` and `state`.

use crate::Meta;
use crate::apply::{Decided, given, refusal, room, valid};
use crate::limits::{ARGUMENTS_BYTES_MAX, BINDINGS_MAX, NAME_BYTES_MAX, ROUTING_KEY_BYTES_MAX};
use bytes::Bytes;
use longshore_proto::v1::{Bind, Binding, MetaError, MetaReply, Unbind};
use std::collections::{BTreeMap, BTreeSet};

/// What makes a binding the same: namespace, source, destination's kind and name, routing key, arguments.
type Sameness = (u32, String, bool, String, Bytes, Bytes);

fn sameness(binding: &Binding) -> Sameness {
    let Binding { namespace, source, to_exchange, destination, routing_key, arguments, .. } = binding;
    (*namespace, source.clone(), *to_exchange, destination.clone(), routing_key.clone(), arguments.clone())
}

fn first_of_source(namespace: u32, source: &str) -> Sameness {
    (namespace, source.to_owned(), false, String::new(), Bytes::new(), Bytes::new())
}

/// All bindings; each has a number, which is its page's key.
#[derive(Debug, Default)]
pub(crate) struct Bindings {
    by_id: BTreeMap<u64, Binding>,
    ids: BTreeMap<Sameness, u64>,
    /// (namespace, to an exchange, destination, id)
    destinations: BTreeSet<(u32, bool, String, u64)>,
    /// (session, client connection, id)
    owned: BTreeSet<(u64, u64, u64)>,
}

impl Bindings {
    pub fn get(&self, id: u64) -> Option<&Binding> {
        self.by_id.get(&id)
    }

    pub fn ids(&self) -> impl Iterator<Item = u64> {
        self.by_id.keys().copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Binding> {
        self.by_id.values()
    }

    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    pub fn find(&self, binding: &Binding) -> Option<u64> {
        self.ids.get(&sameness(binding)).copied()
    }

    pub fn insert(&mut self, id: u64, binding: Binding) {
        self.ids.insert(sameness(&binding), id);
        self.destinations.insert((binding.namespace, binding.to_exchange, binding.destination.clone(), id));
        if binding.owner_session != 0 {
            self.owned.insert((binding.owner_session, binding.owner, id));
        }
        self.by_id.insert(id, binding);
    }

    pub fn remove(&mut self, id: u64) -> Option<Binding> {
        let binding = self.by_id.remove(&id)?;
        self.ids.remove(&sameness(&binding));
        self.destinations.remove(&(binding.namespace, binding.to_exchange, binding.destination.clone(), id));
        self.owned.remove(&(binding.owner_session, binding.owner, id));
        Some(binding)
    }

    /// Bindings that hang on an exchange.
    pub fn hanging_on(&self, namespace: u32, source: &str) -> Vec<u64> {
        let all = self.ids.range(first_of_source(namespace, source)..);
        all.take_while(|(key, _)| key.0 == namespace && key.1 == source).map(|(_, id)| *id).collect()
    }

    pub fn has_source(&self, namespace: u32, source: &str) -> bool {
        let next = self.ids.range(first_of_source(namespace, source)..).next();
        next.is_some_and(|(key, _)| key.0 == namespace && key.1 == source)
    }

    /// Bindings that lead to a queue or exchange.
    pub fn leading_to(&self, namespace: u32, to_exchange: bool, destination: &str) -> Vec<u64> {
        let from = (namespace, to_exchange, destination.to_owned(), 0);
        let to = (namespace, to_exchange, destination.to_owned(), u64::MAX);
        self.destinations.range(from..=to).map(|(_, _, _, id)| *id).collect()
    }

    /// Bindings of a session, or of one of its client connections.
    pub fn owned(&self, session: u64, owner: Option<u64>) -> Vec<u64> {
        let from = (session, owner.unwrap_or(0), 0);
        let to = (session, owner.unwrap_or(u64::MAX), u64::MAX);
        self.owned.range(from..=to).map(|(_, _, id)| *id).collect()
    }

    pub fn of_namespace(&self, namespace: u32) -> Vec<u64> {
        let all = self.ids.range(first_of_source(namespace, "")..);
        all.take_while(|(key, _)| key.0 == namespace).map(|(_, id)| *id).collect()
    }
}

impl Meta {
    pub(crate) fn bind(&mut self, bind: Bind) -> Decided {
        let binding = given(bind.binding, "no binding given")?;
        self.check_binding(&binding)?;
        self.check_session(binding.owner_session)?;
        if self.exchange(binding.namespace, &binding.source).is_none() {
            return Err(refusal(MetaError::MetaNotFound, format!("no exchange '{}'", binding.source)));
        }
        if binding.to_exchange {
            if self.exchange(binding.namespace, &binding.destination).is_none() {
                return Err(refusal(
                    MetaError::MetaNotFound,
                    format!("no exchange '{}'", binding.destination),
                ));
            }
        } else if binding.owner_session == 0 && self.queue(binding.namespace, &binding.destination).is_none()
        {
            // A transient queue need not be known here; its owner answers for it.
            return Err(refusal(MetaError::MetaNotFound, format!("no queue '{}'", binding.destination)));
        }
        if self.bindings.find(&binding).is_some() {
            return Ok(MetaReply::default());
        }
        room(self.bindings.len(), BINDINGS_MAX, "bindings")?;
        self.put_binding(binding);
        Ok(MetaReply { created: true, ..MetaReply::default() })
    }

    /// A binding that does not exist is no error.
    pub(crate) fn unbind(&mut self, unbind: Unbind) -> Decided {
        let binding = given(unbind.binding, "no binding given")?;
        self.check_binding(&binding)?;
        let known = self.bindings.find(&binding);
        self.drop_bindings(known.into_iter().collect());
        Ok(MetaReply::default())
    }

    fn check_binding(&self, binding: &Binding) -> Result<(), Box<MetaReply>> {
        let longest = binding.source.len().max(binding.destination.len());
        valid(longest <= NAME_BYTES_MAX, "a name has 1 to 255 bytes")?;
        valid(binding.routing_key.len() <= ROUTING_KEY_BYTES_MAX, "the routing key is too long")?;
        valid(binding.arguments.len() <= ARGUMENTS_BYTES_MAX, "the arguments are too long")?;
        self.check_namespace(binding.namespace)?;
        if binding.source.is_empty() || binding.destination.is_empty() {
            return Err(refusal(MetaError::MetaForbidden, "the default exchange cannot be bound"));
        }
        Ok(())
    }
}
