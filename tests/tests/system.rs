//! Whole-system tests: real processes, a real client, kill -9. `cargo xtask test` runs them on the release build;
//! `cargo xtask chaos` runs the `fault_` tests at full size.
//!
//! | module | tests |
//! |---|---|
//! | `restart` | `longshore dev` finds everything again |
//! | `crash` | processes killed and stopped under a publisher with confirms and a consumer |
//! | `rebuild` | wiped nodes come back with everything |
//! | `garbage` | disk use falls when most is acked |
//! | `handover` | leader transfer with unacked messages; request and reply over two gateways |
//! | `permissions` | who may do what, by AMQP code; users deleted and restricted |
//! | `explain` | `longshore explain`, reason by reason |
//! | `explain_rare` | the reasons that last a moment, or that other protocols will make |
//! | `fixture` | data of an earlier build is opened by this one |
//! | `large_transient` | 20 MiB in memory only, from one gateway to the other |
//! | `input` | bytes that no client should send |
//! | `metrics` | what every process shows of itself |
//! | `zones` | more nodes than copies, in three zones; a node that moves |
//! | `sync` | under strace: no confirm before two nodes have synced |

#[path = "system/crash.rs"]
mod crash;
#[path = "system/explain.rs"]
mod explain;
#[path = "system/explain_rare.rs"]
mod explain_rare;
#[path = "system/fixture.rs"]
mod fixture;
#[path = "system/garbage.rs"]
mod garbage;
#[path = "system/handover.rs"]
mod handover;
#[path = "system/input.rs"]
mod input;
#[path = "system/large_transient.rs"]
mod large_transient;
#[path = "system/metrics.rs"]
mod metrics;
#[path = "system/permissions.rs"]
mod permissions;
#[path = "system/rebuild.rs"]
mod rebuild;
#[path = "system/restart.rs"]
mod restart;
#[path = "system/sync.rs"]
mod sync;
#[path = "system/zones.rs"]
mod zones;
