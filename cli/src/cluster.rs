//! The connection to the master: requests over kube's client, with warnings
//! shown, failures explained and answers bounded.

use std::time::Duration;

use anyhow::Context;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyDataStream, BodyExt, Limited};
use kube::client::Body;
use serde_json::Value;

use crate::arguments::Global;
use crate::console;
use crate::failure::{Failure, Refusal};
use crate::kubeconfig;

/// Longest answer that is held in memory.
const ANSWER_BYTES_MAX: usize = 256 << 20;
/// Longest line of a watch.
const LINE_BYTES_MAX: usize = 32 << 20;
/// How often a request is sent again that the server had no room for.
const TRIES: u32 = 4;

/// A master, and whom it knows us as.
#[derive(Clone)]
pub(crate) struct Cluster {
    client: kube::Client,
    /// For messages: the server's URL.
    pub(crate) server: String,
    /// Where namespaced objects are looked for.
    pub(crate) namespace: String,
    /// Whether `-n` named the namespace.
    pub(crate) namespace_given: bool,
    /// The certificates (DER) that the server's may be signed by.
    pub(crate) authorities: Vec<Vec<u8>>,
    timeout: Option<Duration>,
}

/// The format of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Content {
    Json,
    ApplyPatch,
    JsonPatch,
    MergePatch,
    StrategicMergePatch,
}

impl Content {
    fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::ApplyPatch => "application/apply-patch+yaml",
            Self::JsonPatch => "application/json-patch+json",
            Self::MergePatch => "application/merge-patch+json",
            Self::StrategicMergePatch => "application/strategic-merge-patch+json",
        }
    }
}

/// What a request is answered with, when it is done.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: Value,
}

impl Cluster {
    /// Reads the kubeconfig; connects with the first request.
    pub(crate) async fn connect(global: &Global) -> anyhow::Result<Self> {
        let loaded = kubeconfig::load(global)?;
        let config = loaded.connection(global.context.as_deref()).await?;
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace =
            global.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let authorities = config.root_cert.clone().unwrap_or_default();
        let timeout = Some(global.request_timeout).filter(|timeout| !timeout.is_zero());
        let mut config = config;
        config.connect_timeout = Some(timeout.unwrap_or(Duration::from_secs(30)));
        let client = kube::Client::try_from(config).with_context(|| loaded.source.clone())?;
        let namespace_given = global.namespace.is_some();
        Ok(Self { client, server, namespace, namespace_given, authorities, timeout })
    }

    /// GET that becomes a WebSocket.
    pub(crate) async fn upgrade(&self, path: &str) -> anyhow::Result<kube::client::Connection> {
        let request = Request::get(path).body(Vec::new())?;
        match self.client.connect(request).await {
            Ok(connection) => Ok(connection),
            Err(kube::Error::Api(status)) => anyhow::bail!("{}", status.message),
            Err(error) => Err(error).with_context(|| format!("cannot connect to {}", self.server)),
        }
    }

    /// GET, for a JSON answer.
    pub(crate) async fn get(&self, path: &str) -> Result<Value, Failure> {
        self.get_as(path, "application/json").await
    }

    /// GET, for an answer of the kinds `accept`.
    pub(crate) async fn get_as(&self, path: &str, accept: &str) -> Result<Value, Failure> {
        let request = Request::get(path).header("Accept", accept);
        Ok(self.finish(request.body(Vec::new())).await?.body)
    }

    /// GET, or nothing where there is nothing.
    pub(crate) async fn find(&self, path: &str) -> Result<Option<Value>, Failure> {
        match self.get(path).await {
            Ok(value) => Ok(Some(value)),
            Err(failure) if failure.is_not_found() => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// A write.
    pub(crate) async fn write(
        &self,
        method: Method,
        path: &str,
        content: Content,
        body: &Value,
    ) -> Result<Answer, Failure> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("Accept", "application/json")
            .header("Content-Type", content.media_type())
            .header("User-Agent", concat!("pinnace/", env!("CARGO_PKG_VERSION")));
        self.finish(request.body(body.to_string().into_bytes())).await
    }

    /// DELETE, where the answer says nothing more.
    pub(crate) async fn delete_quietly(&self, path: &str) -> Result<(), Failure> {
        let request = Request::delete(path).header("Accept", "application/json");
        self.send(request.body(Vec::new())).await.map(drop)
    }

    /// GET, for the body as it comes.
    pub(crate) async fn stream(&self, path: &str) -> Result<Stream, Failure> {
        self.stream_as(path, "*/*").await
    }

    /// GET, for a body of the kinds `accept`, as it comes.
    pub(crate) async fn stream_as(&self, path: &str, accept: &str) -> Result<Stream, Failure> {
        let request =
            Request::get(path).header("Accept", accept).header("Accept-Encoding", "identity");
        let (parts, body) = self.send(request.body(Vec::new())).await?.into_parts();
        let server = self.server.clone();
        let headers = parts.headers;
        Ok(Stream { body: body.into_data_stream(), rest: BytesMut::new(), server, headers })
    }

    async fn finish(
        &self,
        request: Result<Request<Vec<u8>>, http::Error>,
    ) -> Result<Answer, Failure> {
        let all = async {
            let response = self.send(request).await?;
            let status = response.status();
            let body = self.collect(response.into_body()).await?;
            let body = serde_json::from_slice(&body).map_err(|error| Failure::Garbled {
                server: self.server.clone(),
                detail: error.to_string(),
            })?;
            Ok(Answer { status, body })
        };
        match self.timeout {
            None => all.await,
            Some(after) => tokio::time::timeout(after, all)
                .await
                .unwrap_or_else(|_| Err(Failure::Timeout { server: self.server.clone(), after })),
        }
    }

    async fn send(
        &self,
        request: Result<Request<Vec<u8>>, http::Error>,
    ) -> Result<http::Response<Body>, Failure> {
        let request = request.map_err(|error| Failure::Garbled {
            server: self.server.clone(),
            detail: format!("no such address: {error}"),
        })?;
        for attempt in 1.. {
            let sent = self.client.send(request.clone().map(Body::from));
            let sent = match self.timeout {
                None => sent.await,
                Some(after) => tokio::time::timeout(after, sent)
                    .await
                    .map_err(|_| Failure::Timeout { server: self.server.clone(), after })?,
            };
            let response = sent.map_err(|error| Failure::transport(&self.server, &error))?;
            let status = response.status();
            show_warnings(response.headers());
            if status.is_success() {
                return Ok(response);
            }
            // The server did nothing and says when it will.
            let wait = retry_after(response.headers())
                .filter(|_| attempt < TRIES && matches!(status.as_u16(), 429 | 503));
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
                continue;
            }
            let body = self.collect(response.into_body()).await?;
            return Err(Failure::Refused(Box::new(Refusal::read(
                &self.server,
                status.as_u16(),
                &body,
            ))));
        }
        unreachable!("the loop ends with an answer")
    }

    async fn collect(&self, body: Body) -> Result<Bytes, Failure> {
        let collected = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
        collected
            .map(http_body_util::Collected::to_bytes)
            .map_err(|error| Failure::transport(&self.server, error.as_ref()))
    }
}

/// How long the server wants to be left alone; no more than a few seconds.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get("Retry-After")?.to_str().ok()?.parse().ok()?;
    (seconds <= 10).then(|| Duration::from_secs(seconds))
}

fn show_warnings(headers: &HeaderMap) {
    for value in headers.get_all("Warning") {
        if let Some(text) = std::str::from_utf8(value.as_bytes()).ok().and_then(warning_text) {
            console::warning(&text);
        }
    }
}

/// The text of `299 - "text"`.
fn warning_text(header: &str) -> Option<String> {
    let (_, rest) = header.split_once('"')?;
    let mut text = String::new();
    let mut escaped = false;
    for c in rest.chars() {
        match c {
            _ if escaped => {
                text.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => break,
            c => text.push(c),
        }
    }
    Some(crate::text::printable(&text)).filter(|text| !text.is_empty())
}

/// An answer that comes in pieces.
pub(crate) struct Stream {
    body: BodyDataStream<Body>,
    rest: BytesMut,
    server: String,
    headers: HeaderMap,
}

impl Stream {
    /// How many bytes the answer will have, where the server says so.
    pub(crate) fn length(&self) -> Option<u64> {
        self.headers.get("Content-Length")?.to_str().ok()?.parse().ok()
    }

    /// The next piece, as it came.
    pub(crate) async fn piece(&mut self) -> Result<Option<Bytes>, Failure> {
        if !self.rest.is_empty() {
            return Ok(Some(self.rest.split().freeze()));
        }
        match self.body.next().await {
            None => Ok(None),
            Some(Ok(bytes)) => Ok(Some(bytes)),
            Some(Err(error)) => Err(Failure::transport(&self.server, &error)),
        }
    }

    /// The next line, without its end; the last may have none.
    pub(crate) async fn line(&mut self) -> Result<Option<Bytes>, Failure> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.rest[searched..].iter().position(|byte| *byte == b'\n') {
                let mut line = self.rest.split_to(searched + at + 1);
                line.truncate(searched + at);
                return Ok(Some(line.freeze()));
            }
            searched = self.rest.len();
            if searched > LINE_BYTES_MAX {
                return Err(Failure::Garbled {
                    server: self.server.clone(),
                    detail: format!("a line of more than {LINE_BYTES_MAX} bytes"),
                });
            }
            match self.body.next().await {
                Some(Ok(bytes)) => self.rest.extend_from_slice(&bytes),
                None if self.rest.is_empty() => return Ok(None),
                None => return Ok(Some(self.rest.split().freeze())),
                Some(Err(error)) => return Err(Failure::transport(&self.server, &error)),
            }
        }
    }

    /// The next event of a watch: its type and its object.
    pub(crate) async fn event(&mut self) -> Result<Option<(String, Value)>, Failure> {
        loop {
            let Some(line) = self.line().await? else { return Ok(None) };
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let garbled = |detail: String| Failure::Garbled { server: self.server.clone(), detail };
            let mut event: Value =
                serde_json::from_slice(&line).map_err(|error| garbled(error.to_string()))?;
            let kind = event["type"].as_str().unwrap_or_default().to_owned();
            let object = event["object"].take();
            if kind == "ERROR" {
                let code = object["code"].as_u64().and_then(|code| u16::try_from(code).ok());
                let body = object.to_string();
                let refusal = Refusal::read(&self.server, code.unwrap_or(500), body.as_bytes());
                return Err(Failure::Refused(Box::new(refusal)));
            }
            return Ok(Some((kind, object)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_read_from_their_header() {
        let text = |header: &str| warning_text(header);
        assert_eq!(text("299 - \"unknown field \\\"a\\\"\"").unwrap(), "unknown field \"a\"");
        assert_eq!(text("299 - \"a\x1b[2J\"").unwrap(), "a^[[2J");
        assert_eq!(text("299 -"), None);
        assert_eq!(text("299 - \"\""), None);
    }
}
