//! The whole cluster in one thread: three storage nodes, two gateways, their clients; files, network and clock are
//! simulated, everything else is the shipped code, and every run follows from its seed.
//!
//! | module | what |
//! |---|---|
//! | `world` | time and the queue of what happens next |
//! | `machine` | a storage node's process on its disk: turns, the log thread, the workers |
//! | `wire` | frames, links, calls, snapshots and fetches between the parts |
//! | `gateway` | a gateway: session, lease, links; `shard_side` is what it keeps per shard |
//! | `clients` | producers and consumers on a gateway |
//! | `faults` | what breaks, and when |
//! | `history` | the oracle: it sees what clients sent and heard, nothing else |
//! | `reached` | counters of rare states |
//! | `run` | one seed from start to verdict |
//! | `scenes` | faults in an order that makes one kind of mistake show |

pub mod clients;
pub mod faults;
pub mod gateway;
pub mod history;
pub mod machine;
pub mod reached;
pub mod run;
pub mod scenes;
pub mod shard_side;
pub mod wire;
pub mod world;
