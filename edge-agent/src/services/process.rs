//! `pinnace-agent proxy`: puts the data plane together with what the node is, and
//! runs it. Nothing of the agent runs in this process.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use proxy::Parts;
use proxy::control::Capture;
use proxy::dns::Dns;
use proxy::links::{Acceptor, BoxFuture, Connection, Uplink};
use proxy::tunnel::{self, Tunnel};
use proxy::{RunError, Settings};

use super::version;
use crate::hooks::chain;
use crate::identity::{Identity, IdentityError};
use crate::link::{Dialer, tls};

/// How long connections to an endpoint go on that is gone, as long as most pods have
/// to stop.
const GRACE: Duration = Duration::from_secs(30);
/// How long other nodes may take to hear that the links end.
const CLOSE_GRACE: Duration = Duration::from_secs(1);
/// The file with the last table, in the state folder.
const TABLE: &str = "proxy/table";

/// How the proxy runs.
#[derive(Clone, Debug)]
pub struct Options {
    /// The agent's folders.
    pub state_dir: PathBuf,
    /// As `state_dir`.
    pub run_dir: PathBuf,
    /// Where other nodes reach this one.
    pub tunnel_port: u16,
    /// The only way of capturing that is tried; `None` for the best that works.
    pub capture: Option<Capture>,
}

/// Why the proxy does not run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// The board has not joined, or its identity is damaged.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// A folder cannot be made.
    #[error("cannot make {}", path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The plane cannot begin.
    #[error(transparent)]
    Run(#[from] RunError),
}

impl Uplink for Dialer {
    fn dial<'a>(&'a self, alpn: &'static [u8]) -> BoxFuture<'a, io::Result<Box<dyn Connection>>> {
        Box::pin(async move {
            match Self::dial(self, alpn).await {
                Ok(stream) => Ok(Box::new(stream) as Box<dyn Connection>),
                Err(error) => Err(io::Error::other(chain(&error))),
            }
        })
    }
}

/// Runs until the agent says that it is to leave.
///
/// # Errors
/// It cannot begin.
pub async fn run(options: Options) -> Result<(), ProcessError> {
    let identity = Arc::new(Identity::load(&options.state_dir)?);
    let table_file = options.state_dir.join(TABLE);
    if let Some(folder) = table_file.parent() {
        std::fs::create_dir_all(folder)
            .map_err(|source| ProcessError::Folder { path: folder.to_owned(), source })?;
    }
    let settings = Settings {
        run_dir: options.run_dir,
        table_file,
        capture: options.capture,
        version: version(),
        grace: GRACE,
        confine: Some(Vec::new()),
    };
    let tunnel_port = options.tunnel_port;
    proxy::run(settings, |plane| assemble(identity, tunnel_port, plane)).await?;
    Ok(())
}

fn assemble(
    identity: Arc<Identity>,
    tunnel_port: u16,
    plane: Arc<dyn Acceptor>,
) -> io::Result<Parts> {
    let own = tunnel::Identity {
        chain: vec![identity.certificate.clone()],
        key: identity.key.clone_key(),
        cas: identity.cas.clone(),
        known_past: tls::known_past,
    };
    let uplink: Arc<dyn Uplink> = Arc::new(Dialer::new(identity));
    let start = |port| {
        let listen = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let config = tunnel::Config::new(listen);
        Tunnel::start(own.clone(), config, Arc::clone(&uplink), Arc::clone(&plane))
    };
    let tunnel = start(tunnel_port).or_else(|error| {
        tracing::error!(
            error = chain(&error),
            "other nodes do not reach this one but through the master: free the port, or choose \
             another with --tunnel-port"
        );
        start(0).map_err(|error| io::Error::other(chain(&error)))
    })?;
    let dns = Dns::new(proxy::dns::Settings::default());
    let (told, names) = (tunnel.clone(), dns.clone());
    let (fetched, paths, leaving) = (tunnel.clone(), tunnel.clone(), tunnel.clone());
    let (counted, closing) = (tunnel.clone(), tunnel.clone());
    Ok(Parts {
        changes: tunnel.changes(),
        links: Arc::new(tunnel),
        uplink,
        names: Arc::new(dns),
        table: Box::new(move |table| {
            told.set_table(table);
            // It says itself what of it cannot be followed.
            let _said = names.set_table(Arc::clone(table));
        }),
        leave: Box::new(move || leaving.leave()),
        n_linked: Box::new(move || counted.n_streams()),
        close: Box::new(move || {
            let closing = closing.clone();
            Box::pin(async move { closing.close(CLOSE_GRACE).await })
        }),
        paths: Box::new(move || paths.paths()),
        relay: Box::new(move |peer, ticket| fetched.relay(&peer, ticket)),
    })
}

/// Reads a way of capturing: `auto`, `sk-lookup`, `tproxy` or `listeners`.
#[must_use]
pub fn capture(text: &str) -> Option<Capture> {
    match text {
        "sk-lookup" => Some(Capture::SkLookup),
        "tproxy" => Some(Capture::Tproxy),
        "listeners" => Some(Capture::Listeners),
        _ => None,
    }
}
