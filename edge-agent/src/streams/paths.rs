//! How this node reaches the others, for `pinnace net`: what the proxy last said.

use std::io;

use proxy::control::{Capture, Status};
use tokio::io::{AsyncRead, AsyncWrite};
use wire::usage::{PathV1, PathsV1};

use super::frames;

/// Answers.
///
/// # Errors
/// The connection breaks.
pub(super) async fn serve(
    status: Option<&Status>,
    connection: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let bytes = postcard::to_stdvec(&paths(status)).map_err(io::Error::other)?;
    frames::answer(connection, &bytes).await
}

fn paths(status: Option<&Status>) -> PathsV1 {
    let Some(status) = status else {
        return PathsV1 {
            capture: "none".to_owned(),
            degraded: "the proxy has not said how it is".to_owned(),
            paths: Vec::new(),
        };
    };
    let capture = match status.capture {
        Capture::SkLookup => "sk-lookup",
        Capture::Tproxy => "tproxy",
        Capture::Listeners => "listeners",
        Capture::None => "none",
    };
    let path = |path: &proxy::control::Path| PathV1 {
        peer: path.peer.clone(),
        lane: path.lane.clone(),
        remote: path.remote.clone(),
        rtt_us: path.rtt_us,
        loss_per_10000: path.loss_per_10000,
        tx_bytes: path.tx_bytes,
        rx_bytes: path.rx_bytes,
        age_s: path.age_s,
        why: path.why.clone(),
    };
    PathsV1 {
        capture: capture.to_owned(),
        degraded: status.degraded.clone(),
        paths: status.paths.iter().map(path).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_proxy_said_is_told_and_its_silence_too() {
        let silent = paths(None);
        assert_eq!((silent.capture.as_str(), silent.degraded.is_empty()), ("none", false));
        let path = proxy::control::Path { peer: "b".into(), rtt_us: 7, ..Default::default() };
        let status = Status { capture: Capture::Tproxy, paths: vec![path], ..Status::default() };
        let told = paths(Some(&status));
        assert_eq!((told.capture.as_str(), told.paths[0].rtt_us), ("tproxy", 7));
    }
}
