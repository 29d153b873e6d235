//! `exec`, `attach` and `portforward`: a request that becomes something else
//! than HTTP.
//!
//! ```text
//!                 ┌ WebSocket  v5, v4.channel.k8s.io            channels in messages
//! exec, attach ───┤
//!                 └ SPDY/3.1   v4 … v1 (kubectl ≤ 1.30, Java)   a stream a channel
//!                 ┌ WebSocket  SPDY/3.1+portforward.k8s.io      SPDY in messages
//! portforward ────┤ WebSocket  v4.channel.k8s.io, ?ports=       channels in messages
//!                 └ SPDY/3.1   portforward.k8s.io               two streams a connection
//! ```
//!
//! Whatever can be found wrong before the upgrade is answered as any other
//! request is; what comes after it goes to the error channel, as a `Status`.

mod forward;
mod spdy;
mod spdy_command;
mod spdy_connection;
mod websocket;

use std::io;
use std::sync::Arc;

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

use crate::answer::{self, Answer};
use crate::path::Query;
use crate::status::{Reason, Status};
use crate::streams::{CommandRequest, CommandStream, Forwarder, Input, Output};

/// Which SPDY subprotocol says it.
const SPDY_PROTOCOL: &str = "x-stream-protocol-version";
/// Most ports of one request, where ports are in the request.
const PORTS_MAX: usize = 16;

/// How a client wants to go on.
#[derive(Debug)]
enum Asked {
    WebSocket { accept: String, protocols: Vec<String> },
    Spdy { protocols: Vec<String> },
}

impl Asked {
    fn read(headers: &HeaderMap) -> Result<Self, Status> {
        let upgrade = words(headers, UPGRADE.as_str());
        let wants = |name: &str| upgrade.iter().any(|word| word.eq_ignore_ascii_case(name));
        let upgrades =
            words(headers, CONNECTION.as_str()).iter().any(|w| w.eq_ignore_ascii_case("upgrade"));
        if upgrades && wants("websocket") {
            let version = headers.get(SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes);
            let key = headers.get(SEC_WEBSOCKET_KEY);
            let (Some(key), Some(b"13")) = (key, version) else {
                return Err(Status::bad_request("WebSocket: version 13 with a key is needed"));
            };
            let protocols = words(headers, SEC_WEBSOCKET_PROTOCOL.as_str());
            return Ok(Self::WebSocket { accept: derive_accept_key(key.as_bytes()), protocols });
        }
        if upgrades && wants("SPDY/3.1") {
            return Ok(Self::Spdy { protocols: words(headers, SPDY_PROTOCOL) });
        }
        Err(Status::bad_request("Upgrade request required"))
    }

    /// The first of `known` that the client offers.
    fn choose(&self, known: &[&'static str]) -> Result<&'static str, Status> {
        let (Self::WebSocket { protocols, .. } | Self::Spdy { protocols }) = self;
        let found = known.iter().find(|name| protocols.iter().any(|offer| offer == *name));
        found.copied().ok_or_else(|| {
            Status::new(
                Reason::Forbidden,
                format!(
                    "unable to upgrade: no common subprotocol: the client offers [{}], the server \
                     knows [{}]",
                    protocols.join(", "),
                    known.join(", ")
                ),
            )
        })
    }

    fn answer(&self, protocol: &'static str) -> Answer {
        let mut answer = answer::text(StatusCode::SWITCHING_PROTOCOLS, "");
        let headers = answer.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        let protocol = HeaderValue::from_static(protocol);
        match self {
            Self::WebSocket { accept, .. } => {
                headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
                if let Ok(accept) = HeaderValue::from_str(accept) {
                    headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
                }
                headers.insert(SEC_WEBSOCKET_PROTOCOL, protocol);
            }
            Self::Spdy { .. } => {
                headers.insert(UPGRADE, HeaderValue::from_static("SPDY/3.1"));
                headers.insert(http::HeaderName::from_static(SPDY_PROTOCOL), protocol);
            }
        }
        answer
    }
}

/// Comma-separated words of all header fields of a name.
fn words(headers: &HeaderMap, name: &str) -> Vec<String> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let words = values.flat_map(|value| value.split(',')).map(str::trim);
    words.filter(|word| !word.is_empty()).take(32).map(str::to_owned).collect()
}

/// A request that is to become a stream, before it is answered.
#[derive(Debug)]
pub struct Upgrade {
    asked: Asked,
    protocol: &'static str,
    ports: Vec<u16>,
    on_upgrade: OnUpgrade,
}

/// Reads what `exec` (`is_exec`) or `attach` wants; its target is still empty.
///
/// # Errors
/// `BadRequest`: a parameter makes no sense.
pub fn command_request(query: &Query, is_exec: bool) -> Result<CommandRequest, Status> {
    let flag = |name: &str| query.flag(name);
    let tty = flag("tty")?;
    Ok(CommandRequest {
        args: is_exec.then(|| query.all("command")),
        stdin: flag("stdin")?,
        stdout: flag("stdout")?,
        // A terminal has one output.
        stderr: flag("stderr")? && !tty,
        tty,
        ..CommandRequest::default()
    })
}

/// Whether a command can be run so.
///
/// # Errors
/// `BadRequest`: there is no command, or nothing of it is wanted.
pub fn check_command(request: &CommandRequest) -> Result<(), Status> {
    if request.args.as_ref().is_some_and(Vec::is_empty) {
        let problem = "you must specify at least one command for the container";
        return Err(Status::bad_request(problem));
    }
    if !(request.stdin || request.stdout || request.stderr) {
        let problem = "you must specify at least one of stdin, stdout, stderr";
        return Err(Status::bad_request(problem));
    }
    Ok(())
}

impl Upgrade {
    /// For `exec` and `attach`.
    ///
    /// # Errors
    /// The client asks for no upgrade, or for one that is not spoken here.
    pub fn command(head: &Parts) -> Result<Self, Status> {
        let asked = Asked::read(&head.headers)?;
        let known: &[&'static str] = match &asked {
            Asked::WebSocket { .. } => &["v5.channel.k8s.io", "v4.channel.k8s.io"],
            Asked::Spdy { .. } => {
                &["v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io"]
            }
        };
        let protocol = asked.choose(known)?;
        Ok(Self { asked, protocol, ports: Vec::new(), on_upgrade: on_upgrade(head)? })
    }

    /// For `portforward`.
    ///
    /// # Errors
    /// As for `exec`, or the ports make no sense.
    pub fn forward(head: &Parts, query: &Query) -> Result<Self, Status> {
        let asked = Asked::read(&head.headers)?;
        let known: &[&'static str] = match &asked {
            Asked::WebSocket { .. } => &["SPDY/3.1+portforward.k8s.io", "v4.channel.k8s.io"],
            Asked::Spdy { .. } => &["portforward.k8s.io"],
        };
        let protocol = asked.choose(known)?;
        let mut ports = Vec::new();
        if protocol == "v4.channel.k8s.io" {
            for text in query.all("ports").iter().flat_map(|list| list.split(',')) {
                match text.parse::<u16>() {
                    Ok(port) if port > 0 && ports.len() < PORTS_MAX => ports.push(port),
                    _ => {
                        return Err(Status::bad_request(format!(
                            "ports: Invalid value: \"{text}\": must be at most {PORTS_MAX} numbers \
                             from 1 to 65535"
                        )));
                    }
                }
            }
            if ports.is_empty() {
                return Err(Status::bad_request("query parameter \"ports\" is required"));
            }
        }
        Ok(Self { asked, protocol, ports, on_upgrade: on_upgrade(head)? })
    }

    /// The answer that switches protocols.
    #[must_use]
    pub fn answer(&self) -> Answer {
        self.asked.answer(self.protocol)
    }

    /// Serves a process on the connection, once the answer is out.
    ///
    /// # Errors
    /// The client is gone, or speaks something else.
    pub async fn serve_command(
        self,
        wanted: CommandRequest,
        stream: CommandStream,
    ) -> io::Result<()> {
        let Self { asked, protocol, on_upgrade, .. } = self;
        let io = TokioIo::new(on_upgrade.await.map_err(io::Error::other)?);
        match asked {
            Asked::WebSocket { .. } => websocket::command(io, protocol, stream).await,
            Asked::Spdy { .. } => spdy_command::serve(io, protocol, wanted, stream).await,
        }
    }

    /// Serves connections to ports, once the answer is out.
    ///
    /// # Errors
    /// The client is gone, or speaks something else.
    pub async fn serve_forward(self, forwarder: Arc<dyn Forwarder>) -> io::Result<()> {
        let Self { asked, protocol, ports, on_upgrade } = self;
        let io = TokioIo::new(on_upgrade.await.map_err(io::Error::other)?);
        match (asked, protocol) {
            (Asked::Spdy { .. }, _) => forward::over_spdy(io, forwarder).await,
            (_, "v4.channel.k8s.io") => websocket::forward(io, ports, forwarder).await,
            _ => forward::over_spdy(websocket::tunnel(io), forwarder).await,
        }
    }
}

fn on_upgrade(head: &Parts) -> Result<OnUpgrade, Status> {
    let found = head.extensions.get::<OnUpgrade>().cloned();
    found.ok_or_else(|| Status::bad_request("this connection cannot be upgraded: use HTTP/1.1"))
}

/// How a process ended, as the error channel says it: nothing where `plain` and
/// it went well, for the protocols before version 4.
fn ending(output: &Output) -> Value {
    match output {
        Output::Exited(0) => json!({"metadata": {}, "status": "Success"}),
        Output::Exited(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit status {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Output::Failed(status) => status.to_json(),
        Output::Stdout(_) | Output::Stderr(_) => Value::Null,
    }
}

/// The same for the protocols before version 4, which know text only.
fn ending_text(output: &Output) -> String {
    match output {
        Output::Exited(0) | Output::Stdout(_) | Output::Stderr(_) => String::new(),
        Output::Exited(code) => {
            format!("command terminated with non-zero exit code: exit status {code}")
        }
        Output::Failed(status) => status.message.clone(),
    }
}

/// What the stream says where it ends without a last word.
fn lost() -> Output {
    Output::Failed(Status::internal("the connection to the node was lost"))
}

/// Drops what of the output was not asked for.
fn is_wanted(wanted: &CommandRequest, output: &Output) -> bool {
    match output {
        Output::Stdout(_) => wanted.stdout,
        Output::Stderr(_) => wanted.stderr,
        Output::Exited(_) | Output::Failed(_) => true,
    }
}

/// Most bytes of input passed on at once.
const INPUT_BYTES_MAX: usize = 32 << 10;

/// Passes bytes on in pieces that the node takes.
async fn send_input(stream: &tokio::sync::mpsc::Sender<Input>, mut bytes: bytes::Bytes) -> bool {
    while !bytes.is_empty() {
        let piece = bytes.split_to(bytes.len().min(INPUT_BYTES_MAX));
        if stream.send(Input::Stdin(piece)).await.is_err() {
            return false;
        }
    }
    true
}

/// The size of a terminal, as clients send it.
fn window_size(text: &[u8]) -> Option<Input> {
    let size: Value = serde_json::from_slice(text).ok()?;
    let number = |name: &str| u16::try_from(size[name].as_u64()?).ok();
    Some(Input::Resize { columns: number("Width")?, rows: number("Height")? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ending_says_the_exit_code_as_kubernetes_does() {
        assert_eq!(
            ending(&Output::Exited(3)).to_string(),
            r#"{"metadata":{},"status":"Failure","message":"command terminated with non-zero exit code: exit status 3","reason":"NonZeroExitCode","details":{"causes":[{"reason":"ExitCode","message":"3"}]}}"#
        );
        assert_eq!(ending(&Output::Exited(0))["status"], "Success");
        assert_eq!(ending(&lost())["code"], 500);
        assert_eq!(ending_text(&Output::Exited(0)), "");
    }

    #[test]
    fn sizes_are_read_and_nonsense_is_not() {
        let size = window_size(br#"{"Width":80,"Height":24}"#).unwrap();
        assert_eq!(size, Input::Resize { columns: 80, rows: 24 });
        for bad in ["", "{}", "[]", r#"{"Width":-1,"Height":1}"#, r#"{"Width":70000,"Height":1}"#] {
            assert_eq!(window_size(bad.as_bytes()), None, "{bad}");
        }
    }
}
