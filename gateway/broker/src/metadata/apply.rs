//! Applying what meta pushes. A reset is gathered aside and takes effect as one.

use super::*;
use v1::meta_change::Change;

/// A whole state on its way, in parts.
#[derive(Debug)]
pub(super) struct Staging {
    global: Global,
    states: HashMap<u32, NamespaceState>,
}

impl Metadata {
    /// Applies one message of the watch stream; a reset takes effect when its last part (`more` false) came.
    /// Changes that were applied before change nothing. Returns what others must act on.
    pub fn apply(&self, down: v1::WatchDown) -> Vec<ViewEvent> {
        let mut slot = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let mut events = Vec::new();
        if down.reset {
            *slot = Some(Staging { global: Global::default(), states: HashMap::new() });
        }
        match slot.as_mut() {
            Some(staging) => {
                for change in down.changes {
                    staging.apply(change, self.arguments);
                }
                if !down.more
                    && let Some(staging) = slot.take()
                {
                    self.adopt(staging, &mut events);
                    self.revision.store(down.revision, Ordering::Release);
                }
            }
            None => {
                for change in down.changes {
                    self.apply_change(change, &mut events);
                }
                if !down.more && down.revision > self.revision() {
                    self.revision.store(down.revision, Ordering::Release);
                }
            }
        }
        events.dedup();
        events
    }

    /// Forgets a reset that was not finished (its stream ended).
    pub fn abandon_reset(&self) {
        *self.staging.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn adopt(&self, mut staging: Staging, events: &mut Vec<ViewEvent>) {
        let mut global = write(&self.global);
        for (id, old) in &global.namespaces {
            match staging.states.remove(id) {
                Some(state) => {
                    // The same object stays, since connections hold it.
                    old.change(|current| *current = state);
                    staging.global.namespaces.insert(*id, old.clone());
                }
                None => {
                    old.change(|current| *current = NamespaceState::new(self.arguments));
                    events.push(ViewEvent::NamespaceDeleted(NamespaceId(*id)));
                }
            }
        }
        for (id, state) in staging.states {
            if let Some(namespace) = staging.global.namespaces.get(&id) {
                namespace.change(|current| *current = state);
            }
        }
        for (name, old) in &global.users {
            if staging.global.users.get(name) != Some(old) {
                events.push(ViewEvent::User(name.clone()));
            }
        }
        *global = staging.global;
        events.push(ViewEvent::Topology);
    }

    fn apply_change(&self, change: v1::MetaChange, events: &mut Vec<ViewEvent>) {
        let Some(change) = change.change else { return };
        if let Some(id) = namespace_of(&change) {
            if let Some(namespace) = self.namespace_by_id(NamespaceId(id)) {
                namespace.change(|state| state.apply(change));
            }
            return;
        }
        let mut global = write(&self.global);
        match &change {
            Change::User(user) => events.push(ViewEvent::User(user.name.clone())),
            Change::UserDeleted(name) => events.push(ViewEvent::User(name.clone())),
            Change::NamespaceDeleted(id) => {
                if let Some(namespace) = global.namespaces.get(id) {
                    namespace.change(|state| *state = NamespaceState::new(self.arguments));
                }
                events.push(ViewEvent::NamespaceDeleted(NamespaceId(*id)));
            }
            Change::Node(_) | Change::NodeRemoved(_) | Change::Shard(_) => events.push(ViewEvent::Topology),
            _ => {}
        }
        global.apply(change, self.arguments);
    }
}

impl Staging {
    fn apply(&mut self, change: v1::MetaChange, arguments: ArgumentsReader) {
        let Some(change) = change.change else { return };
        match namespace_of(&change) {
            // In any order: queues may come before their namespace.
            Some(id) => {
                self.states.entry(id).or_insert_with(|| NamespaceState::new(arguments)).apply(change);
            }
            None => {
                if let Change::Namespace(namespace) = &change {
                    self.states.entry(namespace.id).or_insert_with(|| NamespaceState::new(arguments));
                }
                self.global.apply(change, arguments);
            }
        }
    }
}

/// The namespace whose contents a change touches, if any.
fn namespace_of(change: &Change) -> Option<u32> {
    match change {
        Change::Queue(queue) => Some(queue.namespace),
        Change::QueueDeleted(gone) => Some(gone.namespace),
        Change::Exchange(exchange) => Some(exchange.namespace),
        Change::ExchangeDeleted(key) => Some(key.namespace),
        Change::Binding(binding) | Change::BindingDeleted(binding) => Some(binding.namespace),
        _ => None,
    }
}

impl NamespaceState {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Queue(queue) => {
                self.queues.insert(queue.name.as_str().into(), Arc::new(QueueEntry::new(queue)));
            }
            Change::QueueDeleted(gone) => {
                // A queue made anew under the name has another log and stays.
                let same =
                    self.queues.get(gone.name.as_str()).is_some_and(|entry| entry.queue.log == gone.log);
                if same {
                    self.queues.remove(gone.name.as_str());
                    self.exchanges.remove_queue(&gone.name);
                }
            }
            Change::Exchange(exchange) => self.exchanges.put_exchange(convert::exchange_info(&exchange)),
            Change::ExchangeDeleted(key) => self.exchanges.remove_exchange(&key.name),
            Change::Binding(binding) => self.exchanges.bind(&convert::binding_info(&binding)),
            Change::BindingDeleted(binding) => self.exchanges.unbind(&convert::binding_info(&binding)),
            _ => {}
        }
    }
}

impl Global {
    fn apply(&mut self, change: Change, arguments: ArgumentsReader) {
        match change {
            Change::Namespace(ns) => {
                self.namespaces.entry(ns.id).or_insert_with(|| {
                    let state = NamespaceState::new(arguments);
                    Arc::new(Namespace::new(NamespaceId(ns.id), &ns.name, state))
                });
            }
            Change::NamespaceDeleted(id) => {
                self.namespaces.remove(&id);
            }
            Change::User(user) => {
                self.users.insert(user.name.clone(), Arc::new(user));
            }
            Change::UserDeleted(name) => {
                self.users.remove(&name);
            }
            Change::Node(node) => {
                self.nodes.insert(node.id, node);
            }
            Change::NodeRemoved(id) => {
                self.nodes.remove(&id);
            }
            Change::Shard(shard) => {
                self.shards.insert(shard.id, shard);
            }
            Change::Gateway(gateway) => {
                self.gateways.insert(gateway.session, gateway);
            }
            Change::GatewayGone(session) => {
                self.gateways.remove(&session);
            }
            Change::Cluster(cluster) => self.cluster = Some(cluster),
            Change::Queue(_)
            | Change::QueueDeleted(_)
            | Change::Exchange(_)
            | Change::ExchangeDeleted(_)
            | Change::Binding(_)
            | Change::BindingDeleted(_) => {}
        }
    }
}
