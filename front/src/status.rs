//! What went wrong, in the words Kubernetes uses: the one place where errors
//! become a `Status` with a reason, a message, details and an HTTP code.
//!
//! Clients act on `reason` and on `details.causes`, people read `message`, and
//! some clients compare its text; so all texts are here, and nowhere else. It
//! does not know HTTP beyond the code, nor which handler failed.

use std::fmt;

use api::resource::Resource;
use serde_json::{Map, Value, json};

/// The word a client switches on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reason {
    /// 400.
    BadRequest,
    /// 401.
    Unauthorized,
    /// 403.
    Forbidden,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 406.
    NotAcceptable,
    /// 409: the name is taken.
    AlreadyExists,
    /// 409: the object changed, or another manager owns a field.
    Conflict,
    /// 410: the revision is compacted.
    Expired,
    /// 413.
    RequestEntityTooLarge,
    /// 415.
    UnsupportedMediaType,
    /// 422.
    Invalid,
    /// 429.
    TooManyRequests,
    /// 500.
    InternalError,
    /// 503.
    ServiceUnavailable,
    /// 504.
    Timeout,
}

impl Reason {
    /// The HTTP code that goes with it.
    #[must_use]
    pub fn code(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::Forbidden => 403,
            Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::NotAcceptable => 406,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired => 410,
            Self::RequestEntityTooLarge => 413,
            Self::UnsupportedMediaType => 415,
            Self::Invalid => 422,
            Self::TooManyRequests => 429,
            Self::InternalError => 500,
            Self::ServiceUnavailable => 503,
            Self::Timeout => 504,
        }
    }

    /// The word itself.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "BadRequest",
            Self::Unauthorized => "Unauthorized",
            Self::Forbidden => "Forbidden",
            Self::NotFound => "NotFound",
            Self::MethodNotAllowed => "MethodNotAllowed",
            Self::NotAcceptable => "NotAcceptable",
            Self::AlreadyExists => "AlreadyExists",
            Self::Conflict => "Conflict",
            Self::Expired => "Expired",
            Self::RequestEntityTooLarge => "RequestEntityTooLarge",
            Self::UnsupportedMediaType => "UnsupportedMediaType",
            Self::Invalid => "Invalid",
            Self::TooManyRequests => "TooManyRequests",
            Self::InternalError => "InternalError",
            Self::ServiceUnavailable => "ServiceUnavailable",
            Self::Timeout => "Timeout",
        }
    }
}

/// One of several things that are wrong with an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    /// A word such as `FieldValueRequired`.
    pub reason: String,
    /// What is wrong, without the field.
    pub message: String,
    /// The field's path, such as `spec.containers[0].image`; empty where it is not one field.
    pub field: String,
}

/// A failed request.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// What kind of failure.
    pub reason: Reason,
    /// The sentence for people.
    pub message: String,
    /// Name of the object, where it is about one.
    pub name: Box<str>,
    /// API group of the object.
    pub group: &'static str,
    /// Plural, or kind where the object is invalid.
    pub kind: &'static str,
    /// Every single cause.
    pub causes: Vec<Cause>,
    /// When to come back, in seconds; 0 for no advice.
    pub retry_after_seconds: u32,
    /// `metadata.continue`: how to go on with a list that expired.
    pub continue_token: Box<str>,
}

impl Status {
    /// A failure that is about no object.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
            name: Box::default(),
            group: "",
            kind: "",
            causes: Vec::new(),
            retry_after_seconds: 0,
            continue_token: Box::default(),
        }
    }

    fn about(mut self, resource: &Resource, name: &str) -> Self {
        self.name = name.into();
        self.group = resource.group;
        self.kind = resource.plural;
        self
    }

    /// `pods "x" not found`.
    #[must_use]
    pub fn not_found(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" not found", resource.qualified_plural());
        Self::new(Reason::NotFound, message).about(resource, name)
    }

    /// The path names nothing that is served.
    #[must_use]
    pub fn no_such_path() -> Self {
        Self::new(Reason::NotFound, "the server could not find the requested resource")
    }

    /// `pods "x" already exists`.
    #[must_use]
    pub fn already_exists(resource: &Resource, name: &str) -> Self {
        let message = format!("{} \"{name}\" already exists", resource.qualified_plural());
        Self::new(Reason::AlreadyExists, message).about(resource, name)
    }

    /// `Operation cannot be fulfilled on pods "x": {problem}`.
    #[must_use]
    pub fn conflict(resource: &Resource, name: &str, problem: &str) -> Self {
        let message = format!(
            "Operation cannot be fulfilled on {} \"{name}\": {problem}",
            resource.qualified_plural()
        );
        Self::new(Reason::Conflict, message).about(resource, name)
    }

    /// The object is not the one the writer has read.
    #[must_use]
    pub fn modified(resource: &Resource, name: &str) -> Self {
        Self::conflict(
            resource,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// Other managers own fields of a server-side apply: pairs of manager, as it
    /// is shown, and field path with a leading dot.
    #[must_use]
    pub fn apply_conflict<'a>(
        message: String,
        conflicts: impl Iterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut status = Self::new(Reason::Conflict, message);
        status.causes = conflicts
            .map(|(manager, field)| Cause {
                reason: "FieldManagerConflict".to_owned(),
                message: format!("conflict with {manager}"),
                field: field.to_owned(),
            })
            .collect();
        status
    }

    /// `Pod "x" is invalid: spec.containers: Required value`, with all causes.
    #[must_use]
    pub fn invalid(
        group: &'static str,
        kind: &'static str,
        name: &str,
        causes: Vec<Cause>,
    ) -> Self {
        let texts: Vec<String> = causes.iter().map(Cause::to_string).collect();
        let problem = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let target = if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") };
        let mut status =
            Self::new(Reason::Invalid, format!("{target} \"{name}\" is invalid: {problem}"));
        status.name = name.into();
        status.group = group;
        status.kind = kind;
        status.causes = causes;
        status
    }

    /// [`Status::invalid`] for one field of an object of `resource`.
    #[must_use]
    pub fn invalid_field(
        resource: &Resource,
        name: &str,
        reason: &str,
        field: &str,
        message: impl Into<String>,
    ) -> Self {
        let cause =
            Cause { reason: reason.to_owned(), message: message.into(), field: field.to_owned() };
        Self::invalid(resource.group, resource.kind, name, vec![cause])
    }

    /// A patch that cannot be carried out on the object as it is.
    #[must_use]
    pub fn unprocessable(problem: &str) -> Self {
        Self::new(
            Reason::Invalid,
            format!("the server rejected our request due to an error in our request: {problem}"),
        )
    }

    /// `pods "x" is forbidden: {problem}`.
    #[must_use]
    pub fn forbidden(resource: &Resource, name: &str, problem: &str) -> Self {
        let plural = resource.qualified_plural();
        let message = if name.is_empty() {
            format!("{plural} is forbidden: {problem}")
        } else {
            format!("{plural} \"{name}\" is forbidden: {problem}")
        };
        Self::new(Reason::Forbidden, message).about(resource, name)
    }

    /// A path outside the API groups that the user may not use.
    #[must_use]
    pub fn forbidden_path(user: &str, verb: &str, path: &str) -> Self {
        Self::new(
            Reason::Forbidden,
            format!("forbidden: User \"{user}\" cannot {verb} path \"{path}\""),
        )
    }

    /// New objects in a namespace that is going away.
    #[must_use]
    pub fn namespace_terminating(resource: &Resource, name: &str, namespace: &str) -> Self {
        let mut status = Self::forbidden(
            resource,
            name,
            &format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            ),
        );
        status.causes.push(Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
        status
    }

    /// The request makes no sense.
    #[must_use]
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    /// The body is not an object of its kind.
    #[must_use]
    pub fn undecodable(version: &str, kind: &str, problem: &str) -> Self {
        Self::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {problem}"
        ))
    }

    /// Nobody is signed in, and the path is not for everybody.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(Reason::Unauthorized, "Unauthorized")
    }

    /// The method does not exist on this path.
    #[must_use]
    pub fn method_not_allowed() -> Self {
        Self::new(
            Reason::MethodNotAllowed,
            "the server does not allow this method on the requested resource",
        )
    }

    /// None of the formats the client accepts is spoken here.
    #[must_use]
    pub fn not_acceptable(accepted: &str) -> Self {
        Self::new(
            Reason::NotAcceptable,
            format!("only the following media types are accepted: {accepted}"),
        )
    }

    /// The body's format is not spoken here.
    #[must_use]
    pub fn unsupported_media_type(accepted: &str) -> Self {
        Self::new(
            Reason::UnsupportedMediaType,
            format!(
                "the body of the request was in an unknown format - accepted media types include: {accepted}"
            ),
        )
    }

    /// The revision asked for is compacted.
    #[must_use]
    pub fn expired(asked: u64, oldest: u64) -> Self {
        Self::new(Reason::Expired, format!("too old resource version: {asked} ({oldest})"))
    }

    /// The revision of a list's pages is compacted; `token` goes on with what is there now.
    #[must_use]
    pub fn continue_expired(token: String) -> Self {
        let mut status = Self::new(
            Reason::Expired,
            "The provided continue parameter is too old to display a consistent list result. You \
             can start a new list without the continue parameter, or use the continue token in \
             this response to retrieve the remainder of the results. Continuing with the provided \
             token results in an inconsistent list - objects that were created, modified, or \
             deleted between the time the first chunk was returned and now may show up in the list.",
        );
        status.continue_token = token.into();
        status
    }

    /// The revision asked for is not reached yet.
    #[must_use]
    pub fn too_large_revision(asked: u64, current: u64) -> Self {
        let mut status = Self::new(
            Reason::Timeout,
            format!("Timeout: Too large resource version: {asked}, current: {current}"),
        );
        status.retry_after_seconds = 1;
        status.causes.push(Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        });
        status
    }

    /// The body is longer than `limit` bytes.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        Self::new(
            Reason::RequestEntityTooLarge,
            format!("Request entity too large: limit is {limit}"),
        )
    }

    /// The server has as much to do as it takes on.
    #[must_use]
    pub fn too_many_requests() -> Self {
        let mut status =
            Self::new(Reason::TooManyRequests, "Too many requests, please try again later.");
        status.retry_after_seconds = 1;
        status
    }

    /// The fault is ours.
    #[must_use]
    pub fn internal(problem: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, format!("Internal error occurred: {problem}"))
    }

    /// Something this depends on does not answer.
    #[must_use]
    pub fn unavailable(problem: impl Into<String>) -> Self {
        let mut status = Self::new(Reason::ServiceUnavailable, problem);
        status.retry_after_seconds = 1;
        status
    }

    /// The HTTP code.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.reason.code()
    }

    /// The object that clients read.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut metadata = Map::new();
        if !self.continue_token.is_empty() {
            metadata.insert("continue".to_owned(), json!(self.continue_token));
        }
        let mut details = Map::new();
        for (key, value) in [("name", &*self.name), ("group", self.group), ("kind", self.kind)] {
            if !value.is_empty() {
                details.insert(key.to_owned(), json!(value));
            }
        }
        if !self.causes.is_empty() {
            let causes: Vec<Value> = self.causes.iter().map(Cause::to_json).collect();
            details.insert("causes".to_owned(), Value::Array(causes));
        }
        if self.retry_after_seconds > 0 {
            details.insert("retryAfterSeconds".to_owned(), json!(self.retry_after_seconds));
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": metadata, "status": "Failure",
            "message": self.message, "reason": self.reason.as_str(),
        });
        if !details.is_empty() || self.reason == Reason::MethodNotAllowed {
            status["details"] = Value::Object(details);
        }
        status["code"] = json!(self.code());
        status
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Status {}

impl Cause {
    fn to_json(&self) -> Value {
        let mut cause = json!({"reason": self.reason, "message": self.message});
        if !self.field.is_empty() {
            cause["field"] = json!(self.field);
        }
        cause
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.field.is_empty() {
            f.write_str(&self.message)
        } else {
            write!(f, "{}: {}", self.field, self.message)
        }
    }
}

/// The answer to a delete that left nothing behind.
#[must_use]
pub fn deleted(resource: &Resource, name: &str, uid: &str) -> Value {
    let mut details = Map::new();
    details.insert("name".to_owned(), json!(name));
    if !resource.group.is_empty() {
        details.insert("group".to_owned(), json!(resource.group));
    }
    details.insert("kind".to_owned(), json!(resource.plural));
    details.insert("uid".to_owned(), json!(uid));
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
        "details": details,
    })
}

/// The answer to a request that made nothing, such as a binding.
#[must_use]
pub fn success(code: u16) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": code})
}

#[cfg(test)]
mod tests {
    use api::resource::by_kind;

    use super::*;

    #[test]
    fn texts_are_kubernetes_own() {
        let pods = by_kind("", "Pod").unwrap();
        let deployments = by_kind("apps", "Deployment").unwrap();
        assert_eq!(
            Status::not_found(deployments, "web").to_json().to_string(),
            "{\"kind\":\"Status\",\"apiVersion\":\"v1\",\"metadata\":{},\"status\":\"Failure\",\
             \"message\":\"deployments.apps \\\"web\\\" not found\",\"reason\":\"NotFound\",\
             \"details\":{\"name\":\"web\",\"group\":\"apps\",\"kind\":\"deployments\"},\"code\":404}"
        );
        assert_eq!(
            Status::modified(pods, "a").message,
            "Operation cannot be fulfilled on pods \"a\": the object has been modified; please \
             apply your changes to the latest version and try again"
        );
        let required = Cause {
            reason: "FieldValueRequired".to_owned(),
            message: "Required value".to_owned(),
            field: "spec.containers".to_owned(),
        };
        let one = Status::invalid("", "Pod", "a", vec![required.clone()]);
        assert_eq!(one.message, "Pod \"a\" is invalid: spec.containers: Required value");
        let two = Status::invalid("apps", "Deployment", "a", vec![required.clone(), required]);
        assert_eq!(
            two.message,
            "Deployment.apps \"a\" is invalid: [spec.containers: Required value, spec.containers: \
             Required value]"
        );
        assert_eq!(two.to_json()["details"]["causes"][1]["field"], "spec.containers");
    }
}
