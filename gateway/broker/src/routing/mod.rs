//! Routing: which queues a message goes to. Pure; no clock, no I/O.
//!
//! Danger: a binding that is missed is a message lost without a trace, since an unroutable message is dropped by
//! rule. `routing/tests.rs` compares every exchange type with a naive model. Called by `metadata::Namespace`.
//!
//! Names are shared `Arc<str>`; keys are bytes, since clients may send any. A route never visits an exchange
//! twice, so bindings between exchanges may form cycles.

pub mod destinations;
pub mod headers;
pub mod topic;

#[cfg(test)]
mod tests;

use crate::api::{ArgumentsReader, BindingInfo, Destination, ExchangeInfo, ExchangeKind, Headers};
use bytes::Bytes;
use destinations::{Dest, DestinationSet};
use headers::HeaderTable;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use topic::TopicTrie;

/// What a message is routed by.
pub struct Input<'a> {
    /// The routing key.
    pub key: &'a [u8],
    /// Further keys (CC, BCC).
    pub more_keys: &'a [&'a [u8]],
    /// Its headers.
    pub headers: &'a dyn Headers,
}

/// Where a message goes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Matched {
    /// Queue names, sorted, each once.
    pub queues: Vec<Arc<str>>,
    /// It also goes to the queues that its keys name: the default exchange is an alternate exchange on its way.
    pub by_name: bool,
    /// Whether another message with the same exchange and key goes to the same queues.
    pub cacheable: bool,
}

/// A binding as the tables hold it. Equality is identity: source, destination, key and arguments.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Binding {
    source: Arc<str>,
    dest: Dest,
    key: Bytes,
    arguments: Bytes,
}

#[derive(Debug)]
enum Table {
    Direct(HashMap<Bytes, DestinationSet>),
    Fanout(DestinationSet),
    Topic(TopicTrie),
    Headers(HeaderTable),
}

impl Table {
    fn new(kind: ExchangeKind) -> Table {
        match kind {
            ExchangeKind::Direct => Table::Direct(HashMap::new()),
            ExchangeKind::Fanout => Table::Fanout(DestinationSet::default()),
            ExchangeKind::Topic => Table::Topic(TopicTrie::default()),
            ExchangeKind::Headers => Table::Headers(HeaderTable::default()),
        }
    }

    fn add(&mut self, binding: &Binding, arguments: ArgumentsReader) {
        let dest = binding.dest.clone();
        match self {
            Table::Direct(keys) => keys.entry(binding.key.clone()).or_default().add(dest),
            Table::Fanout(set) => set.add(dest),
            Table::Topic(trie) => trie.add(&binding.key, dest),
            Table::Headers(table) => table.add(&binding.arguments, &arguments(&binding.arguments), dest),
        }
    }

    fn remove(&mut self, binding: &Binding) {
        match self {
            Table::Direct(keys) => {
                if let Some(set) = keys.get_mut(&binding.key) {
                    set.remove(&binding.dest);
                    if set.is_empty() {
                        keys.remove(&binding.key);
                    }
                }
            }
            Table::Fanout(set) => set.remove(&binding.dest),
            Table::Topic(trie) => trie.remove(&binding.key, &binding.dest),
            Table::Headers(table) => table.remove(&binding.arguments, &binding.dest),
        }
    }

    fn matches(&self, key: &[u8], headers: &dyn Headers, out: &mut Vec<Dest>) {
        match self {
            Table::Direct(keys) => {
                if let Some(set) = keys.get(key) {
                    out.extend(set.iter().cloned());
                }
            }
            Table::Fanout(set) => out.extend(set.iter().cloned()),
            Table::Topic(trie) => trie.matches(key, out),
            Table::Headers(table) => table.matches(headers, out),
        }
    }
}

#[derive(Debug)]
struct Exchange {
    info: Arc<ExchangeInfo>,
    table: Table,
}

/// The exchanges and bindings of one namespace.
#[derive(Debug)]
pub struct Exchanges {
    arguments: ArgumentsReader,
    exchanges: HashMap<Arc<str>, Exchange>,
    by_source: HashMap<Arc<str>, HashSet<Arc<Binding>>>,
    by_destination: HashMap<Dest, HashSet<Arc<Binding>>>,
}

impl Exchanges {
    /// None yet. `arguments` reads the arguments of bindings to headers exchanges.
    pub fn new(arguments: ArgumentsReader) -> Exchanges {
        Exchanges {
            arguments,
            exchanges: HashMap::new(),
            by_source: HashMap::new(),
            by_destination: HashMap::new(),
        }
    }

    /// Adds or replaces an exchange. Bindings that came before it take effect.
    pub fn put_exchange(&mut self, info: ExchangeInfo) {
        let name: Arc<str> = info.name.as_str().into();
        let mut table = Table::new(info.kind);
        for binding in self.by_source.get(&name).into_iter().flatten() {
            table.add(binding, self.arguments);
        }
        self.exchanges.insert(name, Exchange { info: Arc::new(info), table });
    }

    /// Removes an exchange with the bindings from and to it.
    pub fn remove_exchange(&mut self, name: &str) {
        self.exchanges.remove(name);
        for binding in self.by_source.remove(name).into_iter().flatten() {
            self.forget_destination(&binding);
        }
        self.remove_destination(&Dest::Exchange(name.into()));
    }

    /// Removes the bindings to a queue that is gone.
    pub fn remove_queue(&mut self, name: &str) {
        self.remove_destination(&Dest::Queue(name.into()));
    }

    fn remove_destination(&mut self, dest: &Dest) {
        for binding in self.by_destination.remove(dest).into_iter().flatten() {
            self.forget_source(&binding);
        }
    }

    fn forget_destination(&mut self, binding: &Arc<Binding>) {
        if let Some(set) = self.by_destination.get_mut(&binding.dest) {
            set.remove(binding);
            if set.is_empty() {
                self.by_destination.remove(&binding.dest);
            }
        }
    }

    fn forget_source(&mut self, binding: &Arc<Binding>) {
        if let Some(set) = self.by_source.get_mut(&binding.source) {
            set.remove(binding);
            if set.is_empty() {
                self.by_source.remove(&binding.source);
            }
        }
        if let Some(exchange) = self.exchanges.get_mut(&binding.source) {
            exchange.table.remove(binding);
        }
    }

    /// Adds a binding; one that exists already changes nothing.
    pub fn bind(&mut self, info: &BindingInfo) {
        let binding = Arc::new(binding_of(info));
        if !self.by_source.entry(binding.source.clone()).or_default().insert(binding.clone()) {
            return;
        }
        self.by_destination.entry(binding.dest.clone()).or_default().insert(binding.clone());
        if let Some(exchange) = self.exchanges.get_mut(&binding.source) {
            exchange.table.add(&binding, self.arguments);
        }
    }

    /// Removes a binding; one that does not exist changes nothing.
    pub fn unbind(&mut self, info: &BindingInfo) {
        let binding = Arc::new(binding_of(info));
        if self.by_source.get(&binding.source).is_some_and(|set| set.contains(&binding)) {
            self.forget_source(&binding);
            self.forget_destination(&binding);
        }
    }

    /// The exchange of that name.
    pub fn exchange(&self, name: &str) -> Option<&Arc<ExchangeInfo>> {
        self.exchanges.get(name).map(|exchange| &exchange.info)
    }

    /// All exchanges, by name.
    pub fn exchanges(&self) -> Vec<Arc<ExchangeInfo>> {
        let mut all: Vec<_> = self.exchanges.values().map(|exchange| exchange.info.clone()).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Whether something is bound to the exchange as a source.
    pub fn has_bindings(&self, source: &str) -> bool {
        self.by_source.contains_key(source)
    }

    /// Whether a binding exists exactly so.
    pub fn is_bound(&self, info: &BindingInfo) -> bool {
        let binding = binding_of(info);
        self.by_source.get(&binding.source).is_some_and(|set| set.contains(&binding))
    }

    /// All bindings, sorted by source, destination and key.
    pub fn bindings(&self) -> Vec<BindingInfo> {
        let mut all: Vec<BindingInfo> = self.by_source.values().flatten().map(|b| info_of(b)).collect();
        all.sort_by(|a, b| {
            (&a.source, &a.destination, &a.routing_key, &a.arguments).cmp(&(
                &b.source,
                &b.destination,
                &b.routing_key,
                &b.arguments,
            ))
        });
        all
    }

    /// Routes through the named exchange (not the default one, whose routes are queue names). `None`: there is
    /// no such exchange.
    pub fn route(&self, exchange: &str, input: &Input<'_>) -> Option<Matched> {
        let first = self.exchanges.get(exchange)?;
        let cacheable = input.more_keys.is_empty();
        let mut matched = Matched { queues: Vec::new(), by_name: false, cacheable };
        let mut waiting = vec![first];
        let mut visited: Vec<&str> = vec![&first.info.name];
        let mut found = Vec::new();
        while let Some(exchange) = waiting.pop() {
            found.clear();
            exchange.table.matches(input.key, input.headers, &mut found);
            match exchange.table {
                Table::Headers(_) => matched.cacheable = false,
                Table::Fanout(_) => {}
                Table::Direct(_) | Table::Topic(_) => {
                    for key in input.more_keys {
                        exchange.table.matches(key, input.headers, &mut found);
                    }
                }
            }
            if found.is_empty()
                && let Some(alternate) = &exchange.info.alternate
            {
                if alternate.is_empty() {
                    matched.by_name = true;
                } else {
                    found.push(Dest::Exchange(alternate.as_str().into()));
                }
            }
            for dest in found.drain(..) {
                match dest {
                    Dest::Queue(name) => matched.queues.push(name),
                    Dest::Exchange(name) => {
                        if let Some(next) = self.exchanges.get(&name)
                            && !visited.contains(&next.info.name.as_str())
                        {
                            visited.push(&next.info.name);
                            waiting.push(next);
                        }
                    }
                }
            }
        }
        matched.queues.sort_unstable();
        matched.queues.dedup();
        Some(matched)
    }
}

fn binding_of(info: &BindingInfo) -> Binding {
    Binding {
        source: info.source.as_str().into(),
        dest: match &info.destination {
            Destination::Queue(name) => Dest::Queue(name.as_str().into()),
            Destination::Exchange(name) => Dest::Exchange(name.as_str().into()),
        },
        // Copied: what outlives a request must not pin its buffer.
        key: Bytes::copy_from_slice(&info.routing_key),
        arguments: Bytes::copy_from_slice(&info.arguments),
    }
}

fn info_of(binding: &Binding) -> BindingInfo {
    BindingInfo {
        source: binding.source.to_string(),
        destination: match &binding.dest {
            Dest::Queue(name) => Destination::Queue(name.to_string()),
            Dest::Exchange(name) => Destination::Exchange(name.to_string()),
        },
        routing_key: binding.key.clone(),
        arguments: binding.arguments.clone(),
    }
}
