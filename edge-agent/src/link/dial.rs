//! Connections of their own to the node port, for artifacts and streams.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use wire::MASTER_SERVER_NAME;
use wire::token::split_endpoint;

use super::tls::{TlsError, node_config};
use crate::identity::Identity;

/// Time for TCP and TLS to one endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for TCP to see what it sent acknowledged.
const USER_TIMEOUT_MS: u32 = 30_000;

/// Why no endpoint was reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The identity cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// None answered as the master does; the last failure is the source.
    #[error("cannot connect to the master at {endpoints}")]
    Unreachable {
        /// What was tried.
        endpoints: String,
        /// What the last one said.
        #[source]
        source: std::io::Error,
    },
}

/// Opens TLS connections to the master, verified and authenticated as the link is.
#[derive(Clone, Debug)]
pub struct Dialer {
    identity: Arc<Identity>,
    /// The endpoint that answered last.
    best: Arc<AtomicUsize>,
}

impl Dialer {
    /// Dials the endpoints of `identity`.
    #[must_use]
    pub fn new(identity: Arc<Identity>) -> Self {
        Self { identity, best: Arc::default() }
    }

    /// Connects with `alpn`, [`wire::ALPN_BLOB`] or [`wire::ALPN_STREAM`]. Tries
    /// every endpoint, the one that answered last first.
    ///
    /// # Errors
    /// Where no endpoint answers within 10 s as the master does.
    pub async fn dial(&self, alpn: &[u8]) -> Result<TlsStream<TcpStream>, DialError> {
        let connector = TlsConnector::from(node_config(&self.identity, alpn)?);
        let endpoints = &self.identity.endpoints;
        let best = self.best.load(Ordering::Relaxed);
        let mut failed = std::io::Error::other("no endpoint is known");
        for offset in 0..endpoints.len() {
            let at = (best + offset) % endpoints.len();
            match timeout(CONNECT_TIMEOUT, connect(&connector, &endpoints[at])).await {
                Ok(Ok(stream)) => {
                    self.best.store(at, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => failed = error,
                Err(elapsed) => failed = elapsed.into(),
            }
        }
        Err(DialError::Unreachable { endpoints: endpoints.join(", "), source: failed })
    }
}

async fn connect(
    connector: &TlsConnector,
    endpoint: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let (host, port) = split_endpoint(endpoint)
        .ok_or_else(|| std::io::Error::other(format!("\"{endpoint}\" is not host:port")))?;
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    rustix::net::sockopt::set_tcp_user_timeout(&stream, USER_TIMEOUT_MS)?;
    let name = ServerName::try_from(MASTER_SERVER_NAME).expect("a DNS name");
    connector.connect(name, stream).await
}
