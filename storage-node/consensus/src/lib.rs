//! Many Raft groups over one node log and one connection per pair of nodes
