//! Asks a container how it is, over the network: HTTP, TCP, gRPC. One connection
//! a question, from the node, and nothing that outlives the answer.
//!
//! Commands are asked through the runtime, by [`crate::hooks`]. When to ask, and
//! what follows, is decided in [`crate::pods`].

mod grpc;
mod http;
mod tls;

use std::io;
use std::time::Duration;

use tokio::net::TcpStream;
use wire::pod::HandlerV1;

/// What a container says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// It is well.
    Well,
    /// It is not, or does not answer in time, and how that showed.
    Unwell(String),
}

impl From<Result<(), String>> for Reply {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::Unwell, |()| Self::Well)
    }
}

/// Asks a container at `address`, the pod's; takes `limit` at most.
pub async fn ask(handler: &HandlerV1, address: &str, limit: Duration) -> Reply {
    match handler {
        HandlerV1::Http { .. } => match http(handler, address, limit).await {
            Ok(200..=399) => Reply::Well,
            Ok(status) => Reply::Unwell(format!("HTTP probe failed with statuscode: {status}")),
            Err(why) => Reply::Unwell(why),
        },
        HandlerV1::Tcp { host, port } => {
            let host = or(host, address);
            let connected = tokio::time::timeout(limit, connect(host, *port)).await;
            let dial = dial(host, *port);
            match connected {
                Ok(Ok(_)) => Reply::Well,
                Ok(Err(error)) => Reply::Unwell(format!("{dial}: {}", what(&error))),
                Err(_) => Reply::Unwell(format!("{dial}: i/o timeout")),
            }
        }
        HandlerV1::Grpc { port, service } => {
            let authority = authority(address, *port);
            match tokio::time::timeout(limit, grpc::check(address, *port, service)).await {
                Ok(result) => result.into(),
                Err(_) => Reply::Unwell(format!(
                    "timeout: health rpc to \"{authority}\" did not complete within {}s",
                    limit.as_secs()
                )),
            }
        }
        HandlerV1::Exec(_) | HandlerV1::Sleep(_) => {
            Reply::Unwell("this handler is not asked over the network".to_owned())
        }
    }
}

/// Sends the request of an HTTP handler, and gives the status of the answer.
///
/// # Errors
/// Why there is none, for people.
pub async fn http(handler: &HandlerV1, address: &str, limit: Duration) -> Result<u16, String> {
    let HandlerV1::Http { host, port, path, https, headers } = handler else {
        return Err("not an HTTP handler".to_owned());
    };
    let url = http::Url {
        https: *https,
        host: or(host, address).to_owned(),
        port: *port,
        path: path.clone(),
    };
    let shown = url.to_string();
    match tokio::time::timeout(limit, http::get(url, headers)).await {
        Ok(Ok(status)) => Ok(status),
        Ok(Err(why)) => Err(format!("Get \"{shown}\": {why}")),
        Err(_) => Err(format!(
            "Get \"{shown}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)"
        )),
    }
}

fn or<'a>(host: &'a str, address: &'a str) -> &'a str {
    if host.is_empty() { address } else { host }
}

/// `host:port`, with brackets where the host needs them.
fn authority(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

fn dial(host: &str, port: u16) -> String {
    format!("dial tcp {}", authority(host, port))
}

async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// An error in the words that users of Kubernetes search for.
fn what(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "read: connection reset by peer".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::UnexpectedEof => "EOF".to_owned(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
