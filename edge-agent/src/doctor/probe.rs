//! How far the master is reached, step by step, so that the finding names the
//! step that fails: name, TCP, TLS.

use std::time::Duration;

use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use wire::MASTER_SERVER_NAME;
use wire::token::split_endpoint;

use super::facts::LinkFacts;
use crate::hooks::chain;
use crate::identity::Identity;
use crate::link::tls::node_config;

/// Time for one step.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// A step on the way to the master.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Looking up the name.
    Dns,
    /// Opening the connection.
    Tcp,
    /// Proving who is who.
    Tls,
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Dns => "name lookup",
            Self::Tcp => "TCP",
            Self::Tls => "TLS",
        })
    }
}

impl Stage {
    /// What to look at next.
    pub(super) fn fix(self, endpoint: &str) -> String {
        let (host, port) = split_endpoint(endpoint).unwrap_or((endpoint, 0));
        match self {
            Self::Dns => format!("getent hosts {host}; check /etc/resolv.conf, or join by address"),
            Self::Tcp => format!(
                "check that pinnace-master runs and that the way there lets TCP port {port} \
                 through: nc -vz {host} {port}"
            ),
            Self::Tls => "the master is another one or has new keys: if it was replaced, join \
                          again in an empty state folder"
                .to_owned(),
        }
    }
}

/// Dials every endpoint.
pub(super) async fn dial_all(identity: &Identity) -> Vec<LinkFacts> {
    let mut all = Vec::new();
    for endpoint in &identity.endpoints {
        let failed = dial(identity, endpoint).await.err();
        all.push(LinkFacts { endpoint: endpoint.clone(), failed });
    }
    all
}

async fn dial(identity: &Identity, endpoint: &str) -> Result<(), (Stage, String)> {
    let (host, port) = split_endpoint(endpoint)
        .ok_or_else(|| (Stage::Dns, format!("{endpoint:?} is not host:port")))?;
    let late = |_| "no answer within 5 s".to_owned();
    let addresses = timeout(STEP_TIMEOUT, tokio::net::lookup_host((host, port)))
        .await
        .map_err(late)
        .and_then(|found| found.map_err(|error| error.to_string()))
        .map_err(|why| (Stage::Dns, why))?
        .collect::<Vec<_>>();
    let stream = timeout(STEP_TIMEOUT, TcpStream::connect(addresses.as_slice()))
        .await
        .map_err(late)
        .and_then(|opened| opened.map_err(|error| error.to_string()))
        .map_err(|why| (Stage::Tcp, why))?;
    let config =
        node_config(identity, wire::ALPN_STREAM).map_err(|error| (Stage::Tls, chain(&error)))?;
    let name = ServerName::try_from(MASTER_SERVER_NAME).expect("a DNS name");
    let connector = tokio_rustls::TlsConnector::from(config);
    let mut stream = timeout(STEP_TIMEOUT, connector.connect(name, stream))
        .await
        .map_err(late)
        .and_then(|done| done.map_err(|error| error.to_string()))
        .map_err(|why| (Stage::Tls, why))?;
    // With TLS 1.3 the master refuses a client's certificate after the handshake
    // is done on this side: its word would be the first thing that comes.
    let mut byte = [0];
    match timeout(Duration::from_millis(500), tokio::io::AsyncReadExt::read(&mut stream, &mut byte))
        .await
    {
        Ok(Err(error)) => Err((Stage::Tls, error.to_string())),
        _ => Ok(()),
    }
}
