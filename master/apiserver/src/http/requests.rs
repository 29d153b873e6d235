//! One request, from its head to its answer: who asks, what for, and what is
//! served beside the resources.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::StreamExt;
use http::request::Parts;
use http::{Method, Request, StatusCode};
use hyper::body::Incoming;
use tokio::time::timeout;

use super::{Counted, State, authenticate, health, mounts, openapi, resources};
use crate::authorize::Decision;
use crate::identity::Identity;
use crate::status::Status;
use front::answer::{self, Answer, BrokenOff};
use front::discovery;
use front::negotiate::{Form, form};
use front::path::{Query, Route};

/// How long a request may take until its answer begins.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Who asks, and what the head of the request says.
pub(super) struct Asked {
    pub(super) who: Identity,
    pub(super) head: Parts,
    pub(super) query: Query,
}

impl Asked {
    /// What the client calls this server: host and port.
    fn server(&self) -> Option<&str> {
        let host = self.head.headers.get(http::header::HOST).and_then(|host| host.to_str().ok());
        host.or_else(|| self.head.uri.authority().map(http::uri::Authority::as_str))
    }
}

/// Answers a request, whatever it is.
pub(super) async fn handle(
    state: Arc<State>,
    certificate: Option<Arc<Identity>>,
    request: Request<Incoming>,
) -> Answer {
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let below = |prefix: &str| {
        path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    if let Some(mount) = state.mounts.iter().find(|mount| below(mount.prefix())) {
        // Without the limits of time and length that hold for the API.
        let answer = mounts::serve(&state, &**mount, certificate.as_deref(), request).await;
        state.metrics.answered(answer.status().as_u16());
        return answer;
    }
    let answer = match timeout(REQUEST_TIMEOUT, admit(&state, certificate, request)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) => answer::failure(&status),
        Err(_) => {
            let problem = "request did not complete within the allotted timeout";
            answer::failure(&Status::new(crate::status::Reason::Timeout, problem))
        }
    };
    let code = answer.status().as_u16();
    state.metrics.answered(code);
    tracing::debug!(%method, path, code, "request");
    answer
}

async fn admit(
    state: &Arc<State>,
    certificate: Option<Arc<Identity>>,
    request: Request<Incoming>,
) -> Result<Answer, Status> {
    let (head, body) = request.into_parts();
    let tokens = state.tokens.as_deref();
    let who = authenticate::request_identity(certificate.as_deref(), &head.headers, tokens)?;
    let route = Route::parse(head.uri.path());
    let query = Query::parse(head.uri.query().unwrap_or_default())?;
    let asked = Asked { who, head, query };
    if let Ok(Route::Resource(at)) = route {
        let Ok(_permit) = state.requests.try_acquire() else {
            state.metrics.refused.fetch_add(1, Ordering::Relaxed);
            return Err(Status::too_many_requests());
        };
        let _counted = Counted::new(state, |metrics| &metrics.requests);
        return resources::handle(state, &asked, &at, body).await;
    }
    // A name that does not exist is nobody's business who is not signed in.
    authorize_path(state, &asked)?;
    let route = route?;
    if !matches!(asked.head.method, Method::GET | Method::HEAD) {
        return Err(Status::method_not_allowed());
    }
    serve_path(state, &asked, route).await
}

fn authorize_path(state: &State, asked: &Asked) -> Result<(), Status> {
    let verb = asked.head.method.as_str().to_ascii_lowercase();
    let path = asked.head.uri.path();
    match state.api.authorizer().authorize_path(&asked.who, &verb, path) {
        Decision::Allow => Ok(()),
        Decision::Deny(_) if asked.who.is_anonymous() => Err(Status::unauthorized()),
        Decision::Deny(_) => Err(Status::forbidden_path(&asked.who.user, &verb, path)),
    }
}

async fn serve_path(state: &State, asked: &Asked, route: Route) -> Result<Answer, Status> {
    let headers = &asked.head.headers;
    let aggregated = |core: bool| {
        let mut answer =
            answer::json(StatusCode::OK, &discovery::aggregated(api::resource::all(), core));
        let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
        let kind = http::HeaderValue::from_static(kind);
        answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
        answer
    };
    let found = |value: Option<serde_json::Value>| {
        let value = value.ok_or_else(Status::no_such_path)?;
        form(headers, &[])?;
        Ok(answer::json(StatusCode::OK, &value))
    };
    match route {
        Route::CoreVersions if form(headers, &[Form::Discovery])? == Form::Discovery => {
            Ok(aggregated(true))
        }
        Route::Groups if form(headers, &[Form::Discovery])? == Form::Discovery => {
            Ok(aggregated(false))
        }
        Route::CoreVersions => {
            found(Some(discovery::core_versions(asked.server().unwrap_or_default())))
        }
        Route::Groups => found(Some(discovery::groups(api::resource::all()))),
        Route::Group(group) => found(discovery::group(api::resource::all(), &group)),
        Route::Resources(group, version) => {
            found(discovery::resources(api::resource::all(), &group, &version))
        }
        Route::Resource(_) => Err(Status::no_such_path()),
        Route::Other(path) => serve_other(state, asked, &path).await,
    }
}

async fn serve_other(state: &State, asked: &Asked, path: &str) -> Result<Answer, Status> {
    if let Some(document) = path.strip_prefix("/openapi/v3") {
        return openapi::serve(&asked.head.headers, &asked.query, document).await;
    }
    match path {
        "/version" => Ok(answer::json(StatusCode::OK, &front::version::version())),
        "/healthz" | "/livez" | "/readyz" => {
            // A process that answers lives; whether its parts are well is the others' question.
            let checks = if path == "/livez" { &[][..] } else { &state.checks };
            let verbose = asked.query.flag("verbose")?;
            let (well, text) = health::health(path, verbose, checks);
            let code = if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            Ok(answer::text(code, text))
        }
        "/.well-known/openid-configuration" => {
            let server = asked.server().unwrap_or_default();
            let document = state.api.openid_configuration(server);
            Ok(answer::json(StatusCode::OK, &document.ok_or_else(Status::no_such_path)?))
        }
        "/openid/v1/jwks" => {
            let issuer = state.api.token_issuer().ok_or_else(Status::no_such_path)?;
            let mut answer = answer::json(StatusCode::OK, &issuer.key_set());
            let kind = http::HeaderValue::from_static("application/jwk-set+json");
            answer.headers_mut().insert(http::header::CONTENT_TYPE, kind);
            Ok(answer)
        }
        "/metrics" => Ok(answer::text(StatusCode::OK, state.metrics.text(&**state.api.store()))),
        "/" => {
            let paths = [
                "/.well-known/openid-configuration",
                "/api",
                "/api/v1",
                "/apis",
                "/healthz",
                "/livez",
                "/metrics",
                "/openapi/v3",
                "/openid/v1/jwks",
                "/readyz",
                "/version",
            ];
            Ok(answer::json(StatusCode::OK, &serde_json::json!({"paths": paths})))
        }
        _ => {
            let download = state.downloads.iter().find(|download| download.path() == path);
            let pieces = download.ok_or_else(Status::no_such_path)?.open().await?;
            Ok(answer::binary_pieces(Box::pin(
                pieces.map(|piece| piece.map_err(|err| BrokenOff(err.to_string()))),
            )))
        }
    }
}
