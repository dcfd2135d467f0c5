//! The node log: one synced, segmented log per data directory, shared by all Raft groups of the node
