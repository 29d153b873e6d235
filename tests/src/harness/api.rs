//! The Kubernetes API as a test sees it: kube-rs's client, raw paths, JSON in
//! and out, with the answer's status and warnings kept.

use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{Method, Request};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

use super::wait::block_on;

/// For one request.
const TIME_LIMIT: Duration = Duration::from_secs(60);

/// A client of one cluster with one identity.
#[derive(Clone)]
pub(crate) struct Api {
    client: Client,
}

/// What the server answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// The texts of the `Warning` headers.
    pub(crate) warnings: Vec<String>,
    /// The body, where it is text.
    pub(crate) text: String,
    /// The body, where it is JSON; else null.
    pub(crate) body: Value,
}

impl Answer {
    /// The body; panics where the request failed.
    #[track_caller]
    pub(crate) fn ok(self) -> Value {
        assert!((200..300).contains(&self.status), "{} {}", self.status, self.text);
        self.body
    }

    /// The message of the `Status`; panics unless the request failed with this
    /// HTTP status and this reason.
    #[track_caller]
    pub(crate) fn refused(self, status: u16, reason: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text);
        assert_eq!(self.body["kind"], "Status", "{}", self.text);
        assert_eq!(self.body["reason"], reason, "{}", self.text);
        self.body["message"].as_str().unwrap_or_default().to_owned()
    }
}

impl Api {
    /// The administrator, by the kubeconfig that the master wrote.
    pub(crate) fn admin(kubeconfig: &Path) -> Self {
        Self::with(read(kubeconfig)).expect("the kubeconfig is complete")
    }

    /// Somebody without any credential.
    pub(crate) fn nobody(kubeconfig: &Path) -> Self {
        let mut config = read(kubeconfig);
        for user in &mut config.auth_infos {
            user.auth_info = Some(AuthInfo::default());
        }
        Self::with(config).expect("the kubeconfig is complete")
    }

    /// Whoever holds this certificate and key (PEM).
    pub(crate) fn holder(kubeconfig: &Path, certificate: &str, key: &str) -> Self {
        let mut config = read(kubeconfig);
        for user in &mut config.auth_infos {
            user.auth_info = Some(AuthInfo {
                client_certificate_data: Some(STANDARD.encode(certificate)),
                client_key_data: Some(STANDARD.encode(key).into()),
                ..AuthInfo::default()
            });
        }
        Self::with(config).expect("the kubeconfig is complete")
    }

    /// Whoever has this token.
    pub(crate) fn bearer(kubeconfig: &Path, token: &str) -> Self {
        let mut config = read(kubeconfig);
        for user in &mut config.auth_infos {
            let token = Some(token.to_owned().into());
            user.auth_info = Some(AuthInfo { token, ..AuthInfo::default() });
        }
        Self::with(config).expect("the kubeconfig is complete")
    }

    fn with(config: Kubeconfig) -> Result<Self, String> {
        let make = async {
            let options = KubeConfigOptions::default();
            let mut config = Config::from_custom_kubeconfig(config, &options)
                .await
                .map_err(|error| error.to_string())?;
            // A test wants to see the first answer.
            config.default_retry = false;
            Client::try_from(config).map_err(|error| error.to_string())
        };
        Ok(Self { client: block_on(make)? })
    }

    /// Sends a request; `Err` where no HTTP answer came.
    pub(crate) fn send(
        &self,
        method: Method,
        path: &str,
        kind: &str,
        body: String,
    ) -> Result<Answer, String> {
        let mut request = Request::builder().method(method).uri(path);
        if !kind.is_empty() {
            request = request.header("content-type", kind);
        }
        let request = request
            .header("accept", "application/json")
            .body(Body::from(body.into_bytes()))
            .map_err(|error| error.to_string())?;
        let talk = async {
            let answer = self.client.send(request).await.map_err(|error| chain(&error))?;
            let status = answer.status().as_u16();
            let warnings = answer
                .headers()
                .get_all("warning")
                .iter()
                .filter_map(|value| Some(value.to_str().ok()?.to_owned()))
                .collect();
            let bytes = answer.into_body().collect().await.map_err(|error| chain(&error))?;
            let text = String::from_utf8_lossy(&bytes.to_bytes()).into_owned();
            let body = serde_json::from_str(&text).unwrap_or(Value::Null);
            Ok(Answer { status, warnings, text, body })
        };
        block_on(async { tokio::time::timeout(TIME_LIMIT, talk).await })
            .unwrap_or_else(|_| Err(format!("no answer within {TIME_LIMIT:?}")))
    }

    #[track_caller]
    fn call(&self, method: Method, path: &str, kind: &str, body: String) -> Answer {
        self.send(method.clone(), path, kind, body)
            .unwrap_or_else(|error| panic!("{method} {path}: {error}"))
    }

    /// GET.
    #[track_caller]
    pub(crate) fn get(&self, path: &str) -> Answer {
        self.call(Method::GET, path, "", String::new())
    }

    /// The object at `path`, `None` where there is none.
    #[track_caller]
    pub(crate) fn find(&self, path: &str) -> Option<Value> {
        let answer = self.get(path);
        (answer.status != 404).then(|| answer.ok())
    }

    /// The items of the list at `path`.
    #[track_caller]
    pub(crate) fn list(&self, path: &str) -> Vec<Value> {
        match self.get(path).ok()["items"].take() {
            Value::Array(items) => items,
            other => panic!("{path}: items is {other}"),
        }
    }

    /// POST with strict field validation, as kubectl asks for.
    #[track_caller]
    pub(crate) fn create(&self, path: &str, object: &Value) -> Answer {
        let path = format!("{path}?fieldValidation=Strict");
        self.call(Method::POST, &path, "application/json", object.to_string())
    }

    /// PATCH by JSON merge patch.
    #[track_caller]
    pub(crate) fn merge(&self, path: &str, patch: &Value) -> Answer {
        self.call(Method::PATCH, path, "application/merge-patch+json", patch.to_string())
    }

    /// DELETE, in the background.
    #[track_caller]
    pub(crate) fn delete(&self, path: &str) -> Answer {
        let options = json!({"propagationPolicy": "Background"});
        self.call(Method::DELETE, path, "application/json", options.to_string())
    }
}

/// Reads a kubeconfig that the master wrote. It is JSON, which is YAML as well.
fn read(path: &Path) -> Kubeconfig {
    Kubeconfig::read_from(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// An error and what caused it.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
