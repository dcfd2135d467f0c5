//! The server of a node that does not know its cluster yet: it says who the node is, and nothing else.

use crate::StartError;
use crate::config::StorageConfig;
use crate::services::Lobby;
use longshore_proto::transport::{self, TlsIdentity};
use longshore_proto::v1;
use longshore_proto::v1::peer_server::PeerServer;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::server::TcpIncoming;

/// Answers under way may take so long to end.
const LOBBY_CLOSE_TIME: Duration = Duration::from_secs(1);

/// The lobby while it is open.
pub(crate) struct OpenLobby {
    close: oneshot::Sender<()>,
    serving: tokio::task::JoinHandle<()>,
}

impl OpenLobby {
    /// Answers on a second handle of `listener`: the node's own services take its place without a gap.
    pub fn open(
        listener: &TcpListener,
        config: &StorageConfig,
        tls: Option<&TlsIdentity>,
        told: &Arc<Mutex<v1::Identity>>,
    ) -> Result<OpenLobby, StartError> {
        let failed = |source| StartError::Listen { address: config.listen.clone(), source };
        let address = listener.local_addr().map_err(failed)?;
        let server = transport::server(tls)?.add_service(PeerServer::new(Lobby(Arc::clone(told))));
        let listener = duplicate(listener).and_then(TcpListener::from_std).map_err(failed)?;
        let (close, closed) = oneshot::channel::<()>();
        let until = async move {
            let _ = closed.await;
        };
        let serving = tokio::spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming(listener), until).await {
                tracing::warn!(%error, %address, "cannot answer who this node is");
            }
        });
        Ok(OpenLobby { close, serving })
    }

    /// Ends it and its connections. Danger: a gateway that kept one would find the services of a member unknown there
    /// for ever, and would never dial again.
    pub async fn close(mut self) {
        let _ = self.close.send(());
        if tokio::time::timeout(LOBBY_CLOSE_TIME, &mut self.serving).await.is_err() {
            self.serving.abort();
        }
    }
}

/// What a listener accepts, without Nagle's delay: a server's own setting does not reach streams that it is given.
pub(crate) fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

/// A second handle of a listening socket.
fn duplicate(listener: &TcpListener) -> std::io::Result<std::net::TcpListener> {
    use std::os::fd::AsFd;
    let fd = listener.as_fd().try_clone_to_owned()?;
    Ok(std::net::TcpListener::from(fd))
}
