//! Starts the node's own threads: the store's, the log's, and the workers.

use crate::StartError;
use crate::ends::{End, Ends};
use crate::http::StandingBoard;
use crate::log_thread;
use crate::mailbox::Mailbox;
use crate::outbound::Outbound;
use crate::peers::Peers;
use crate::registry::Registry;
use crate::store_thread::{MonoClock, StoreThread};
use crate::workers::Workers;
use longshore_io::Disk;
use longshore_log::LogWriter;
use longshore_node::{Node, NodeError};
use longshore_wire::NodeId;
use std::sync::Arc;
use tokio::sync::{oneshot, watch};

/// What the threads work with, besides the node and its log.
pub(crate) struct Threads {
    pub id: NodeId,
    pub disk: Arc<dyn Disk>,
    pub mailbox: Mailbox,
    pub registry: Arc<Registry>,
    pub peers: Peers,
    pub outbound: Outbound,
    pub standing: StandingBoard,
    /// Told why the node failed, if it does.
    pub failed: watch::Sender<Option<String>>,
}

impl Threads {
    /// Starts them; the receiver hears of the first that ends.
    pub fn start(
        self,
        node: Node,
        writer: LogWriter,
        clock: MonoClock,
    ) -> Result<oneshot::Receiver<End>, StartError> {
        let id = self.id;
        let (ends, end) = Ends::new(self.failed, &self.mailbox);
        let (writes, log_writes) = std::sync::mpsc::channel();
        let workers = Workers::start(&id.to_string(), &self.mailbox, &ends).map_err(StartError::Thread)?;
        let (mailbox, peers, log_ends) = (self.mailbox.clone(), self.peers.clone(), ends.clone());
        std::thread::Builder::new()
            .name(format!("log-{id}"))
            .spawn(move || {
                let _watched = log_ends.watch("log");
                if let Err(error) = log_thread::run(writer, &log_writes, &mailbox, &peers) {
                    log_ends.tell(Err(error.to_string()));
                }
            })
            .map_err(StartError::Thread)?;
        let store = StoreThread {
            node,
            clock,
            mailbox: self.mailbox,
            registry: self.registry,
            peers: self.peers,
            workers,
            writes,
            outbound: self.outbound,
            standing: self.standing,
            disk: self.disk,
        };
        std::thread::Builder::new()
            .name(format!("store-{id}"))
            .spawn(move || {
                let _watched = ends.watch("store");
                ends.tell(store.run().map_err(|error: NodeError| error.to_string()));
            })
            .map_err(StartError::Thread)?;
        Ok(end)
    }
}
