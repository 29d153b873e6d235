//! The views of a container's probes and hooks.

use serde::Deserialize;

use super::IntOrString;

/// How a container's health is asked for; defaults are filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Probe {
    /// What is asked.
    #[serde(flatten)]
    pub handler: Handler,
    /// Seconds between the start and the first question.
    pub initial_delay_seconds: i64,
    /// Seconds an answer may take.
    pub timeout_seconds: i64,
    /// Seconds between two questions.
    pub period_seconds: i64,
    /// Successes in a row that count as one.
    pub success_threshold: i64,
    /// Failures in a row that count as one.
    pub failure_threshold: i64,
    /// Seconds of grace for a run that it ends; the pod's where it is absent.
    pub termination_grace_period_seconds: Option<i64>,
}

/// What a probe asks or a hook does; one of them is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Handler {
    /// A command in the container.
    pub exec: Option<ExecAction>,
    /// An HTTP request.
    pub http_get: Option<HttpGetAction>,
    /// A TCP connection.
    pub tcp_socket: Option<TcpSocketAction>,
    /// A health check of gRPC (probes only).
    pub grpc: Option<GrpcAction>,
    /// A pause (hooks only).
    pub sleep: Option<SleepAction>,
}

/// A command in the container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct ExecAction {
    /// The command, its path first.
    pub command: Vec<String>,
}

/// An HTTP request.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HttpGetAction {
    /// The pod's address where it is empty.
    pub host: String,
    /// Number or name of the port.
    pub port: Option<IntOrString>,
    /// Path with query.
    pub path: String,
    /// `HTTP` or `HTTPS`.
    pub scheme: String,
    /// Header fields.
    pub http_headers: Vec<HttpHeader>,
}

/// A header field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HttpHeader {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// A TCP connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct TcpSocketAction {
    /// The pod's address where it is empty.
    pub host: String,
    /// Number or name of the port.
    pub port: Option<IntOrString>,
}

/// A health check of gRPC.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct GrpcAction {
    /// Number of the port.
    pub port: i64,
    /// The service asked about.
    pub service: Option<String>,
}

/// A pause.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct SleepAction {
    /// How long.
    pub seconds: i64,
}

/// What runs after a container's start and before its stop.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Lifecycle {
    /// Right after the start.
    pub post_start: Option<Handler>,
    /// Before the stop signal.
    pub pre_stop: Option<Handler>,
    /// Such as `SIGINT`; the image's where it is absent.
    pub stop_signal: Option<String>,
}
