//! Every way in which a request fails, and the way out, on one line.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use serde_json::Value;

/// Why a request has no good answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No connection, or it broke.
    Unreachable { server: String, detail: String },
    /// The server's certificate is not one the kubeconfig trusts.
    Certificate { server: String, detail: String },
    /// No answer in time.
    Timeout { server: String, after: Duration },
    /// The server said no.
    Refused(Box<Refusal>),
    /// The answer makes no sense.
    Garbled { server: String, detail: String },
}

/// A `Status` of the API.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: String,
    pub(crate) message: String,
    /// Every single cause: field and what is wrong with it.
    pub(crate) causes: Vec<(String, String)>,
    /// Plural or kind it is about.
    pub(crate) kind: String,
    pub(crate) server: String,
}

impl Refusal {
    /// Reads a `Status`; whatever else came is shown as it is, cut short.
    pub(crate) fn read(server: &str, code: u16, body: &[u8]) -> Self {
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        match serde_json::from_slice::<Value>(body) {
            Ok(status) if status["kind"] == "Status" => Self {
                code,
                reason: text(&status, "reason"),
                message: text(&status, "message"),
                causes: status["details"]["causes"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|cause| (text(cause, "field"), text(cause, "message")))
                    .collect(),
                kind: text(&status["details"], "kind"),
                server: server.to_owned(),
            },
            _ => {
                let body: String = String::from_utf8_lossy(body).trim().chars().take(300).collect();
                let message = if body.is_empty() { format!("HTTP status {code}") } else { body };
                Self { code, message, server: server.to_owned(), ..Self::default() }
            }
        }
    }

    /// What the user can do, where it is not plain from the message.
    fn way_out(&self) -> Option<String> {
        match (self.code, self.reason.as_str()) {
            (401, _) => Some(
                "the credentials in the kubeconfig are not valid for this server: take a new \
                 kubeconfig from the master (admin.kubeconfig in its data folder)"
                    .to_owned(),
            ),
            (403, _) if self.message.contains("terminated") => {
                Some("wait until the namespace is gone".to_owned())
            }
            (403, _) => {
                Some("use another user or context (--context), or ask an administrator".to_owned())
            }
            (404, _) if self.kind == "namespaces" => {
                Some("see `pinnace get namespaces`".to_owned())
            }
            (404, _) if self.kind.is_empty() => {
                Some("see `pinnace version`, the server may be older".to_owned())
            }
            (409, "AlreadyExists") => None,
            (409, _) if self.message.starts_with("Apply failed") => {
                Some("leave these fields out, or take them over with --force-conflicts".to_owned())
            }
            (409, _) => Some("somebody else changed it meanwhile: try again".to_owned()),
            (429 | 503 | 504, _) => Some("try again in a moment".to_owned()),
            _ => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let message = if self.message.is_empty() { &self.reason } else { &self.message };
        f.write_str(message.trim_end())?;
        // A server's message need not hold all that is wrong.
        for (field, problem) in &self.causes {
            if !message.contains(problem.as_str()) {
                write!(f, "; {field}: {problem}")?;
            }
        }
        if self.code == 401 || self.reason.is_empty() {
            write!(f, " (from {})", self.server)?;
        }
        match self.way_out() {
            Some(hint) => write!(f, ": {hint}"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unreachable { server, detail } => write!(
                f,
                "cannot reach {server}: {detail}: check that the master runs and that the \
                 address in the kubeconfig is right"
            ),
            Self::Certificate { server, detail } => write!(
                f,
                "{server} is not the master this kubeconfig is for: {detail}: take a new \
                 kubeconfig from the master, or correct certificate-authority-data"
            ),
            Self::Timeout { server, after } => write!(
                f,
                "{server} did not answer within {} s: try again, or allow more with \
                 --request-timeout",
                after.as_secs_f32()
            ),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Garbled { server, detail } => {
                write!(f, "cannot understand the answer of {server}: {detail}")
            }
        }
    }
}

impl Error for Failure {}

impl Failure {
    /// What went wrong below HTTP.
    pub(crate) fn transport(server: &str, error: &(dyn Error + 'static)) -> Self {
        let mut chain = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next {
            chain.push(error.to_string());
            next = error.source();
        }
        let server = server.to_owned();
        let all = chain.join(": ");
        let last = chain.pop().unwrap_or_default();
        if all.contains("certificate") || all.contains("UnknownIssuer") {
            return Self::Certificate { server, detail: last };
        }
        // Of "client error (Connect): tcp connect error: Connection refused", the end says it.
        Self::Unreachable { server, detail: last }
    }

    /// Whether what was asked for is not there.
    pub(crate) fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(refusal) if refusal.code == 404)
    }
}

/// Whether an error says that what was asked for is not there.
pub(crate) fn is_not_found(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(Failure::is_not_found)
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(code: u16, body: &Value, expected: Expect) {
        let body = body.to_string();
        let refusal = Refusal::read("https://10.0.0.1:6443", code, body.as_bytes());
        expected.assert_eq(&Failure::Refused(Box::new(refusal)).to_string());
    }

    fn status(reason: &str, message: &str, details: &Value) -> Value {
        json!({"kind": "Status", "reason": reason, "message": message, "details": details})
    }

    #[test]
    fn every_refusal_says_what_and_how_to_go_on() {
        check(
            401,
            &status("Unauthorized", "Unauthorized", &json!({})),
            expect![
                "Unauthorized (from https://10.0.0.1:6443): the credentials in the kubeconfig are not valid for this server: take a new kubeconfig from the master (admin.kubeconfig in its data folder)"
            ],
        );
        check(
            403,
            &status(
                "Forbidden",
                "pods is forbidden: User \"eve\" cannot list",
                &json!({"kind": "pods"}),
            ),
            expect![[
                r#"pods is forbidden: User "eve" cannot list: use another user or context (--context), or ask an administrator"#
            ]],
        );
        check(
            404,
            &status("NotFound", "pods \"web\" not found", &json!({"kind": "pods"})),
            expect![[r#"pods "web" not found"#]],
        );
        check(
            409,
            &status(
                "Conflict",
                "Operation cannot be fulfilled on pods \"web\": the object has been modified",
                &json!({}),
            ),
            expect![[
                r#"Operation cannot be fulfilled on pods "web": the object has been modified: somebody else changed it meanwhile: try again"#
            ]],
        );
        check(
            409,
            &status(
                "Conflict",
                "Apply failed with 1 conflict: conflict with \"kubectl\": .spec.replicas",
                &json!({}),
            ),
            expect![[
                r#"Apply failed with 1 conflict: conflict with "kubectl": .spec.replicas: leave these fields out, or take them over with --force-conflicts"#
            ]],
        );
        check(
            502,
            &json!("bad gateway"),
            expect![[r#""bad gateway" (from https://10.0.0.1:6443)"#]],
        );
    }

    #[test]
    fn an_invalid_object_shows_all_causes() {
        let details = json!({"causes": [
            {"field": "spec.replicas", "message": "must not be negative"},
            {"field": "spec.selector", "message": "Required value"},
        ]});
        check(
            422,
            &status(
                "Invalid",
                "Deployment.apps \"web\" is invalid: spec.replicas: must not be negative",
                &details,
            ),
            expect![[
                r#"Deployment.apps "web" is invalid: spec.replicas: must not be negative; spec.selector: Required value"#
            ]],
        );
    }
}
