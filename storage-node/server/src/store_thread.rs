//! The store thread: one loop of turns over the node; everything that a turn wants done leaves from here.
//!
//! Danger: outputs of a turn that failed must not be sent; the loop ends and the process with it.

use crate::http::StandingBoard;
use crate::log_thread::Write;
use crate::mailbox::Mailbox;
use crate::outbound::Outbound;
use crate::peers::Peers;
use crate::registry::Registry;
use crate::workers::Workers;
use longshore_io::{Disk, Mono, WallMs};
use longshore_node::{Input, Node, NodeError, Output};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The longest wait for an input.
const PATIENCE_MAX: Duration = Duration::from_millis(100);
/// Between two looks at the disk's free space.
const SPACE_EVERY: Duration = Duration::from_secs(1);
/// After it is asked to stop, the thread goes on for so long to hand its leaderships over.
const HANDOVER_TIME: Duration = Duration::from_secs(2);

/// A monotonic clock in microseconds since the process's first look at it.
#[derive(Clone, Copy)]
pub(crate) struct MonoClock(Instant);

impl MonoClock {
    pub fn start() -> MonoClock {
        MonoClock(Instant::now())
    }

    pub fn now(&self) -> Mono {
        Mono(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

fn wall() -> WallMs {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    WallMs(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the loop needs besides the node.
pub(crate) struct StoreThread {
    pub node: Node,
    pub clock: MonoClock,
    pub mailbox: Mailbox,
    pub registry: Arc<Registry>,
    pub peers: Peers,
    pub workers: Workers,
    pub writes: Sender<Write>,
    pub outbound: Outbound,
    pub standing: StandingBoard,
    pub disk: Arc<dyn Disk>,
}

impl StoreThread {
    /// Runs until it is told to stop or the node fails.
    pub fn run(mut self) -> Result<(), NodeError> {
        let (mut inputs, mut out) = (Vec::new(), Output::default());
        let mut again = true;
        let mut stop_at: Option<Instant> = None;
        let mut space_at = Instant::now();
        let mut own = Vec::new();
        loop {
            let patience = if again { Duration::ZERO } else { self.patience() };
            self.mailbox.take(&mut inputs, patience);
            if Instant::now() >= space_at {
                space_at = Instant::now() + SPACE_EVERY;
                if let Ok(free) = self.disk.free_bytes() {
                    own.push(Input::FreeBytes(free));
                }
            }
            inputs.append(&mut own);
            if stop_at.is_none() && inputs.iter().any(|input| matches!(input, Input::Stopping)) {
                stop_at = Some(Instant::now() + HANDOVER_TIME);
            }
            self.node.turn(self.clock.now(), wall(), &mut inputs, &mut out)?;
            again = out.again;
            self.send(&mut out);
            self.standing.set(self.node.standing());
            if stop_at.is_some_and(|at| Instant::now() >= at || self.node.leads() == 0) {
                break;
            }
        }
        self.mailbox.close();
        self.workers.stop();
        Ok(())
    }

    fn patience(&self) -> Duration {
        let wait = self.node.next_wakeup().since(self.clock.now());
        Duration::from_micros(wait).min(PATIENCE_MAX)
    }

    fn send(&mut self, out: &mut Output) {
        for write in out.writes.drain(..) {
            // The log thread only ends after a failure, which ends the process.
            let _ = self.writes.send(write);
        }
        for frame in out.frames.drain(..) {
            self.peers.send(frame);
        }
        for task in out.tasks.drain(..) {
            self.workers.run(task);
        }
        self.node.hand_out(self.clock.now(), out);
        if !out.items.is_empty() {
            self.registry.send_items(std::mem::take(&mut out.items));
        }
        for link in out.close_links.drain(..) {
            self.registry.close_link(link);
        }
        for (watch, down) in out.watch.drain(..) {
            self.registry.watch_down(watch, down);
        }
        for (ticket, reply) in out.replies.drain(..) {
            self.registry.reply(ticket, reply);
        }
        for (group, installed) in out.snapshots_installed.drain(..) {
            self.registry.snapshot_installed(group, installed);
        }
        if let Some(addresses) = out.addresses.take() {
            self.peers.set_addresses(addresses);
        }
        for snapshot in out.snapshots.drain(..) {
            self.outbound.snapshot(snapshot);
        }
        for fetch in out.fetches.drain(..) {
            self.outbound.fetch(fetch);
        }
        if !out.meta_commands.is_empty() {
            self.outbound.meta(std::mem::take(&mut out.meta_commands), self.node.standing().meta_leader);
        }
        out.again = false;
    }
}
