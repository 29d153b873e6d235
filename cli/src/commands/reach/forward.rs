//! `pinnace port-forward`: a listener a port, a WebSocket a connection.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, bail};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use crate::arguments::PortForward;
use crate::cluster::Cluster;
use crate::console;

/// Bytes sent at once.
const PIECE_BYTES: usize = 16 << 10;
const DATA: u8 = 0;
const ERROR: u8 = 1;

/// `LOCAL:REMOTE`, `:REMOTE` for any local port, or `PORT` for the same on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pair {
    local: u16,
    remote: u16,
}

impl Pair {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let number = |word: &str| {
            word.parse::<u16>().with_context(|| format!("{text:?}: {word:?} is not a port"))
        };
        let pair = match text.split_once(':') {
            None => Self { local: number(text)?, remote: number(text)? },
            Some(("", remote)) => Self { local: 0, remote: number(remote)? },
            Some((local, remote)) => Self { local: number(local)?, remote: number(remote)? },
        };
        if pair.remote == 0 {
            bail!("{text:?}: a pod has no port 0");
        }
        Ok(pair)
    }
}

pub(super) async fn run(
    cluster: &Cluster,
    path: &str,
    arguments: &PortForward,
) -> anyhow::Result<()> {
    let address: IpAddr = match arguments.address.as_str() {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        text => text.parse().with_context(|| format!("--address {text}: not an IP address"))?,
    };
    let mut listeners = Vec::new();
    for text in &arguments.ports {
        let pair = Pair::parse(text)?;
        let at = SocketAddr::new(address, pair.local);
        let listener =
            TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))?;
        console::line(format_args!(
            "Forwarding from {} -> {}",
            listener.local_addr()?,
            pair.remote
        ))?;
        listeners.push((listener, pair.remote));
    }
    let all =
        listeners.into_iter().map(|(listener, remote)| serve(cluster, path, listener, remote));
    futures::future::try_join_all(all).await.map(drop)
}

async fn serve(
    cluster: &Cluster,
    path: &str,
    listener: TcpListener,
    remote: u16,
) -> anyhow::Result<()> {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let (stream, _) = accepted.context("cannot accept a connection")?;
                let connection = cluster.upgrade(&format!("{path}?ports={remote}")).await;
                match connection {
                    Ok(connection) => {
                        let socket = connection.into_stream();
                        connections.spawn(async move {
                            if let Err(error) = copy(stream, socket).await {
                                console::note(format_args!("port {remote}: {error:#}"));
                            }
                        });
                    }
                    Err(failure) => console::note(format_args!("port {remote}: {failure:#}")),
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn copy(mut stream: TcpStream, socket: impl super::session::Socket) -> anyhow::Result<()> {
    let (mut sink, mut messages) = socket.split();
    let (mut from_user, mut to_user) = stream.split();
    let up = async {
        let mut bytes = vec![DATA; PIECE_BYTES];
        loop {
            let n = from_user.read(&mut bytes[1..]).await?;
            if n == 0 {
                // This protocol cannot say that one side has said all.
                return anyhow::Ok(());
            }
            sink.send(Message::binary(bytes[..=n].to_vec())).await?;
        }
    };
    let down = async {
        let mut seen = [false; 2];
        while let Some(message) = messages.next().await {
            let bytes = match message? {
                Message::Binary(bytes) => bytes,
                Message::Close(_) => break,
                _ => continue,
            };
            let Some((&channel, rest)) = bytes.split_first() else { continue };
            // The first message of each channel names the port.
            let first = seen
                .get_mut(usize::from(channel))
                .is_some_and(|seen| !std::mem::replace(seen, true));
            match channel {
                _ if first => {}
                DATA => to_user.write_all(rest).await?,
                ERROR => bail!("{}", String::from_utf8_lossy(rest)),
                _ => {}
            }
        }
        to_user.shutdown().await?;
        anyhow::Ok(())
    };
    tokio::select! {
        result = up => result,
        result = down => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        let pair = |local, remote| Pair { local, remote };
        assert_eq!(Pair::parse("8080").unwrap(), pair(8080, 8080));
        assert_eq!(Pair::parse("80:8080").unwrap(), pair(80, 8080));
        assert_eq!(Pair::parse(":8080").unwrap(), pair(0, 8080));
        for bad in ["", ":", "x", "80:", "80:x", "0", "70000", "1:2:3"] {
            Pair::parse(bad).unwrap_err();
        }
    }
}
