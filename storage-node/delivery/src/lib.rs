//! Delivery on a shard's leader: leases, credits, timers, transient queues; without I/O
