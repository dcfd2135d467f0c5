//! The meta state machine: namespaces, users, queues, exchanges, bindings, nodes, leases
