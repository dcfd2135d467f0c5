//! Exchanges: declared, deleted, and gone with their last binding where they are auto-delete.
//! Danger: one deletion can cause others; each must be told to watchers, in order. Called by `apply`.

use crate::apply::{Decided, given, refusal, room, valid};
use crate::limits::{ARGUMENTS_BYTES_MAX, EXCHANGES_MAX, NAME_BYTES_MAX};
use crate::{Meta, PREDECLARED};
use longshore_proto::v1::{Binding, DeclareExchange, DeleteExchange, Exchange, MetaError, MetaReply};

/// Names that begin so are the broker's.
const RESERVED_PREFIX: &str = "amq.";
const KINDS: [&str; 4] = ["direct", "fanout", "topic", "headers"];

impl Meta {
    pub(crate) fn declare_exchange(&mut self, declare: DeclareExchange) -> Decided {
        let asked = given(declare.exchange, "no exchange given")?;
        valid(asked.name.len() <= NAME_BYTES_MAX, "an exchange's name has 1 to 255 bytes")?;
        valid(asked.alternate.len() <= NAME_BYTES_MAX, "an exchange's name has 1 to 255 bytes")?;
        valid(asked.arguments.len() <= ARGUMENTS_BYTES_MAX, "the arguments are too long")?;
        self.check_namespace(asked.namespace)?;
        if asked.name.is_empty() {
            return Err(refusal(MetaError::MetaForbidden, "the default exchange cannot be declared"));
        }
        if let Some(known) = self.exchange(asked.namespace, &asked.name) {
            let exchange = Some(known.clone());
            let Some(what) = difference(known, &asked) else {
                return Ok(MetaReply { exchange, ..MetaReply::default() });
            };
            let mut refused = refusal(MetaError::MetaInequivalent, what);
            refused.exchange = exchange;
            return Err(refused);
        }
        valid(KINDS.contains(&asked.kind.as_str()), "unknown kind of exchange")?;
        if asked.name.starts_with(RESERVED_PREFIX) {
            return Err(refusal(MetaError::MetaForbidden, "names beginning with 'amq.' are reserved"));
        }
        let predeclared = PREDECLARED.len() * self.namespaces.len();
        room(self.exchanges.len(), EXCHANGES_MAX + predeclared, "exchanges")?;
        self.put_exchange(asked.clone());
        Ok(MetaReply { exchange: Some(asked), created: true, ..MetaReply::default() })
    }

    pub(crate) fn delete_exchange(&mut self, delete: DeleteExchange) -> Decided {
        let DeleteExchange { namespace, name, if_unused } = delete;
        if name.is_empty() || PREDECLARED.iter().any(|(known, _)| *known == name) {
            return Err(refusal(MetaError::MetaForbidden, format!("exchange '{name}' cannot be deleted")));
        }
        if self.exchange(namespace, &name).is_none() {
            return Err(refusal(MetaError::MetaNotFound, format!("no exchange '{name}'")));
        }
        if if_unused && self.bindings.has_source(namespace, &name) {
            return Err(refusal(MetaError::MetaInUse, format!("exchange '{name}' is in use")));
        }
        self.remove_exchanges(vec![(namespace, name)]);
        Ok(MetaReply::default())
    }

    /// Removes exchanges with their bindings, and the auto-delete exchanges that lose their last binding by it.
    fn remove_exchanges(&mut self, mut going: Vec<(u32, String)>) {
        while let Some(key) = going.pop() {
            for id in self.bindings.hanging_on(key.0, &key.1) {
                self.drop_binding(id);
            }
            let sources: Vec<_> = self
                .bindings
                .leading_to(key.0, true, &key.1)
                .into_iter()
                .filter_map(|id| self.drop_binding(id))
                .collect();
            self.drop_exchange(&key);
            going.extend(self.left_without_bindings(&sources));
        }
    }

    /// The auto-delete exchanges among the sources of `dropped` bindings that have none left, each once.
    fn left_without_bindings(&self, dropped: &[Binding]) -> Vec<(u32, String)> {
        let mut keys: Vec<_> =
            dropped.iter().map(|binding| (binding.namespace, binding.source.clone())).collect();
        keys.sort_unstable();
        keys.dedup();
        keys.retain(|key| {
            let goes = self.exchanges.get(key).is_some_and(|exchange| exchange.auto_delete);
            goes && !self.bindings.has_source(key.0, &key.1)
        });
        keys
    }

    /// Drops bindings, and the auto-delete exchanges that lose their last one by it.
    pub(crate) fn drop_bindings(&mut self, ids: Vec<u64>) {
        let dropped: Vec<_> = ids.into_iter().filter_map(|id| self.drop_binding(id)).collect();
        let going = self.left_without_bindings(&dropped);
        self.remove_exchanges(going);
    }

    /// Drops all bindings to a queue or exchange.
    pub(crate) fn drop_bindings_into(&mut self, namespace: u32, to_exchange: bool, name: &str) {
        let ids = self.bindings.leading_to(namespace, to_exchange, name);
        self.drop_bindings(ids);
    }
}

/// What differs between an exchange and what is asked for, in AMQP's words.
fn difference(known: &Exchange, asked: &Exchange) -> Option<&'static str> {
    let same = [
        (known.kind == asked.kind, "type"),
        (known.durable == asked.durable, "durable"),
        (known.auto_delete == asked.auto_delete, "auto_delete"),
        (known.internal == asked.internal, "internal"),
        (known.alternate == asked.alternate, "alternate-exchange"),
        (known.arguments == asked.arguments, "arguments"),
    ];
    same.into_iter().find(|(same, _)| !same).map(|(_, what)| what)
}
