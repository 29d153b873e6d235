//! One request to the door, from its head to its answer.
//!
//! | what | answer |
//! | --- | --- |
//! | no token, or another | 401, whatever is asked |
//! | `/version`, health, discovery | as the master's |
//! | pods: get, list, watch | what the agent knows |
//! | pods: log, exec, attach, portforward | as through the master |
//! | pods: delete | the pod begins anew, and a warning says so |
//! | nodes, events, namespaces: get, list | what the agent knows |
//! | reading anything else | 404, with the way out |
//! | changing anything else | 403 or 405, with the way out |

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use api::Value;
use api::resource::Resource;
use bytes::Bytes;
use front::answer::{self, Answer, BrokenOff};
use front::logs::LogRequest;
use front::negotiate::{Form, form};
use front::node;
use front::options::Selection;
use front::path::{Query, ResourcePath, Route};
use front::printers::{self, Printer};
use front::shape::Shape;
use front::status::{self, Reason, Status};
use front::table::Include;
use front::upgrade::{Upgrade, check_command, command_request};
use front::{containers, discovery};
use futures::{StreamExt as _, TryStreamExt as _};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use serde_json::json;
use tokio::time::timeout;
use wire::Uid;

use super::ledger::{Item, Missed};
use super::table::{RESOURCES, served};
use super::watch::{self, Options};
use super::{Door, objects_of};

/// How long a request may take until its answer begins.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest request body, in bytes: only a delete has one that counts.
const BODY_BYTES_MAX: usize = 64 << 10;
/// Forms of objects and lists.
const FORMS: &[Form] = &[Form::Table, Form::Metadata];

/// Which objects of a collection are meant.
#[derive(Clone, Debug)]
pub(super) struct Which {
    /// Of the cluster's table: it knows the fields that can be selected.
    pub(super) resource: &'static Resource,
    /// Empty for all.
    pub(super) namespace: String,
    /// Empty for all.
    pub(super) name: String,
    /// By labels and fields.
    pub(super) selection: Selection,
}

impl Which {
    fn read(at: &ResourcePath, query: &Query) -> Result<Self, Status> {
        let selection = query.selection()?;
        for wanted in &selection.fields.requirements {
            let field = wanted.field.as_str();
            let is_known = matches!(field, "metadata.name" | "metadata.namespace")
                || at.resource.field_selectors.contains(&field);
            if !is_known {
                return Err(Status::bad_request(at.resource.field_selector_error(field)));
            }
        }
        Ok(Self {
            resource: at.resource,
            namespace: at.namespace.clone(),
            name: at.name.clone(),
            selection,
        })
    }

    /// Whether an object is meant.
    pub(super) fn selects(&self, object: &Value) -> bool {
        let is = |wanted: &str, key: &str| {
            wanted.is_empty() || object["metadata"][key].as_str() == Some(wanted)
        };
        is(&self.namespace, "namespace")
            && is(&self.name, "name")
            && self.selection.labels.matches_object(object)
            && self.selection.fields.matches(|field| self.resource.field_value(object, field))
    }
}

impl Door {
    /// Every pod at its revision, and the newest revision.
    pub(super) fn items(&self) -> (Vec<Item>, u64) {
        let mut ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock, so that no older state is taken in after a newer one.
        let items = ledger.revise(self.sources.pods());
        (items, ledger.revision())
    }

    /// What a watch from `revision` has missed.
    pub(super) fn missed(&self, revision: u64) -> Result<Missed, Status> {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        ledger.since(revision).map_err(|floor| Status::expired(revision, floor))
    }

    /// Where to go instead.
    fn way_out(&self) -> String {
        format!(
            "this is the local API of node \"{}\": it serves its own pods (get, watch, logs, exec, \
             attach, port-forward, and delete as restart), its node and recent events; everything \
             else, and every change, is asked of the master",
            self.sources.node
        )
    }
}

/// Answers a request, whatever it is.
pub(super) async fn handle(door: &Arc<Door>, request: Request<Incoming>) -> Answer {
    let (head, body) = request.into_parts();
    match timeout(REQUEST_TIMEOUT, admit(door, &head, body)).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(status)) => answer::failure(&status),
        Err(_) => {
            let problem = "request did not complete within the allotted timeout";
            answer::failure(&Status::new(Reason::Timeout, problem))
        }
    }
}

pub(super) async fn admit<B>(door: &Arc<Door>, head: &Parts, body: B) -> Result<Answer, Status>
where
    B: Body + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if !may_enter(door, &head.headers) {
        return Err(Status::unauthorized());
    }
    let route = Route::parse(head.uri.path()).map_err(|status| match status.reason {
        Reason::NotFound => Status::new(Reason::NotFound, door.way_out()),
        _ => status,
    })?;
    let query = Query::parse(head.uri.query().unwrap_or_default())?;
    if let Route::Resource(at) = route {
        let request = Asked { door, head, query: &query, at: &at };
        return request.answer(body).await;
    }
    if !matches!(head.method, Method::GET | Method::HEAD) {
        return Err(Status::new(Reason::MethodNotAllowed, door.way_out()));
    }
    path(door, head, &query, route)
}

fn may_enter(door: &Door, headers: &HeaderMap) -> bool {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return false };
    let text = value.to_str().unwrap_or_default();
    let Some((scheme, token)) = text.split_once(' ') else { return false };
    scheme.eq_ignore_ascii_case("bearer") && door.token.is(token.trim())
}

/// What is served beside the resources.
fn path(door: &Door, head: &Parts, query: &Query, route: Route) -> Result<Answer, Status> {
    let not_found = || Status::new(Reason::NotFound, door.way_out());
    let found = |value: Option<Value>| {
        let value = value.ok_or_else(not_found)?;
        form(&head.headers, &[])?;
        Ok(answer::json(StatusCode::OK, &value))
    };
    let is_aggregated =
        || form(&head.headers, &[Form::Discovery]).map(|form| form == Form::Discovery);
    match route {
        Route::CoreVersions if is_aggregated()? => Ok(aggregated(true)),
        Route::Groups if is_aggregated()? => Ok(aggregated(false)),
        Route::CoreVersions => {
            let host = head.headers.get(HOST).and_then(|host| host.to_str().ok());
            found(Some(discovery::core_versions(host.unwrap_or_default())))
        }
        Route::Groups => found(Some(discovery::groups(RESOURCES))),
        Route::Group(group) => found(discovery::group(RESOURCES, &group)),
        Route::Resources(group, version) => {
            found(discovery::resources(RESOURCES, &group, &version))
        }
        Route::Other(path) => match path.as_str() {
            "/version" => found(Some(front::version::version())),
            "/healthz" | "/livez" | "/readyz" => {
                let name = path.trim_start_matches('/');
                let text = match query.flag("verbose")? {
                    true => format!("[+]ping ok\n{name} check passed\n"),
                    false => "ok".to_owned(),
                };
                Ok(answer::text(StatusCode::OK, text))
            }
            "/" => found(Some(json!({
                "paths": ["/api", "/api/v1", "/apis", "/healthz", "/livez", "/readyz", "/version"],
            }))),
            _ => Err(not_found()),
        },
        Route::Resource(_) => Err(not_found()),
    }
}

fn aggregated(core: bool) -> Answer {
    let mut answer = answer::json(StatusCode::OK, &discovery::aggregated(RESOURCES, core));
    let kind = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    answer
}

/// A request for a collection, an object or what is below one.
struct Asked<'a> {
    door: &'a Arc<Door>,
    head: &'a Parts,
    query: &'a Query,
    at: &'a ResourcePath,
}

impl Asked<'_> {
    async fn answer<B>(&self, body: B) -> Result<Answer, Status>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let is_read = matches!(self.head.method, Method::GET | Method::HEAD);
        let Some(own) = served(self.at.resource) else {
            return Err(self.elsewhere(is_read));
        };
        let is_pod = own.kind == "Pod";
        match (&self.head.method, self.at.subresource.as_str()) {
            (_, "") if is_read && is_pod && self.query.flag("watch")? => self.watch(),
            (_, "") if is_read && !self.query.flag("watch")? => self.read(own),
            (_, "log") if is_read && is_pod => self.log().await,
            (&Method::GET | &Method::POST, "exec" | "attach") if is_pod => self.command(),
            (&Method::GET | &Method::POST, "portforward") if is_pod => self.forward(),
            (&Method::DELETE, "") if is_pod && !self.at.name.is_empty() => {
                let bytes = read_body(body).await?;
                self.restart(&bytes)
            }
            _ => Err(Status::new(Reason::MethodNotAllowed, self.door.way_out())),
        }
    }

    /// Something of the cluster that is not here.
    fn elsewhere(&self, is_read: bool) -> Status {
        let at = self.at;
        if is_read {
            let what = at.resource.qualified_plural();
            return Status::new(
                Reason::NotFound,
                format!("{what} are not served here: {}", self.door.way_out()),
            );
        }
        Status::forbidden(at.resource, &at.name, &self.door.way_out())
    }

    fn shape(&self) -> Result<Shape, Status> {
        let printer: &'static Printer = match self.at.resource.kind {
            "Pod" => &printers::POD,
            "Node" => &printers::NODE,
            "Event" => &printers::EVENT,
            _ => &printers::NAMESPACE,
        };
        let include = Include::parse(self.query.get("includeObject"))?;
        Ok(Shape { form: form(&self.head.headers, FORMS)?, include, printer })
    }

    fn read(&self, own: &Resource) -> Result<Answer, Status> {
        let shape = self.shape()?;
        let which = Which::read(self.at, self.query)?;
        let (objects, revision) = objects_of(self.door, own.kind);
        let mut objects: Vec<Value> =
            objects.into_iter().filter(|object| which.selects(object)).collect();
        let value = if self.at.name.is_empty() {
            let metadata = json!({"resourceVersion": revision.to_string()});
            shape.list(own, objects, &metadata)
        } else {
            let object =
                objects.pop().ok_or_else(|| Status::not_found(self.at.resource, &self.at.name))?;
            shape.object(object)
        };
        Ok(answer::json(StatusCode::OK, &value))
    }

    fn watch(&self) -> Result<Answer, Status> {
        let which = Which::read(self.at, self.query)?;
        let options = Options {
            revision: self.query.number("resourceVersion")?.unwrap_or(0),
            initial: self.query.flag("sendInitialEvents")?,
            bookmarks: self.query.flag("allowWatchBookmarks")?,
            timeout: self.query.watch_timeout()?,
        };
        watch::start(self.door, which, self.shape()?, &options)
    }

    /// The pod that is named.
    fn pod(&self) -> Result<(Uid, Value), Status> {
        let (items, _) = self.door.items();
        let is_it = |item: &Item| {
            item.object["metadata"]["name"] == *self.at.name
                && item.object["metadata"]["namespace"] == *self.at.namespace
        };
        // Of two of the same name, the one that is not on its way out.
        let is_going = |item: &Item| !item.object["metadata"]["deletionTimestamp"].is_null();
        let found = items.into_iter().filter(is_it).min_by_key(is_going);
        let item = found.ok_or_else(|| Status::not_found(self.at.resource, &self.at.name))?;
        Ok((item.uid, item.object))
    }

    fn container(&self, pod: &Value) -> Result<String, Status> {
        let asked = self.query.get("container").unwrap_or_default();
        containers::choose(&self.at.name, pod, asked)
    }

    fn open(&self, stream: wire::command::StreamV1) -> Result<node::NodeStream, Status> {
        let opened = self.door.sources.streams.open(stream).map_err(|why| {
            let mut status = Status::too_many_requests();
            status.message = why;
            status
        })?;
        Ok(Box::new(opened))
    }

    async fn log(&self) -> Result<Answer, Status> {
        let mut request = LogRequest::read(self.query)?;
        let (uid, pod) = self.pod()?;
        request.container = self.container(&pod)?;
        let now_ms = jiff::Timestamp::now().as_millisecond();
        let stream = self.open(node::log_stream(uid, &request, now_ms)?)?;
        let log = node::log(stream, &self.at.name).await?;
        let stop = self.door.stop.clone();
        let pieces = log
            .map_err(|error| BrokenOff(error.to_string()))
            .take_until(async move { stop.cancelled().await });
        Ok(answer::text_pieces(Box::pin(pieces)))
    }

    fn command(&self) -> Result<Answer, Status> {
        let mut wanted = command_request(self.query, self.at.subresource == "exec")?;
        let upgrade = Upgrade::command(self.head)?;
        check_command(&wanted)?;
        let (uid, pod) = self.pod()?;
        containers::check_running(pod["status"]["phase"].as_str().unwrap_or_default())?;
        wanted.target.container = self.container(&pod)?;
        let stream = self.open(node::command_stream(uid, wanted.clone()))?;
        let answer = upgrade.answer();
        self.spawn(upgrade.serve_command(wanted, node::command(stream)));
        Ok(answer)
    }

    fn forward(&self) -> Result<Answer, Status> {
        let upgrade = Upgrade::forward(self.head, self.query)?;
        let (uid, pod) = self.pod()?;
        containers::check_running(pod["status"]["phase"].as_str().unwrap_or_default())?;
        let stream = self.open(node::forward_stream(uid))?;
        let answer = upgrade.answer();
        self.spawn(upgrade.serve_forward(node::forward(stream)));
        Ok(answer)
    }

    /// Serves the connection once the answer is out, until it or the agent ends.
    fn spawn(&self, served: impl Future<Output = std::io::Result<()>> + Send + 'static) {
        let stop = self.door.stop.clone();
        self.door.upgraded.spawn(async move {
            let result = tokio::select! {
                result = served => result,
                () = stop.cancelled() => return,
            };
            if let Err(error) = result {
                tracing::debug!(%error, "a stream ended early");
            }
        });
    }

    /// A delete: the pod begins anew, for only the master can take it away.
    fn restart(&self, body: &[u8]) -> Result<Answer, Status> {
        let options = delete_options(&self.head.headers, body)?;
        let at = self.at;
        let (uid, pod) = self.pod()?;
        let conflict = |why: &str| Status::conflict(at.resource, &at.name, why);
        let wanted = options["preconditions"]["uid"].as_str().unwrap_or_default();
        if !wanted.is_empty() && pod["metadata"]["uid"] != wanted {
            return Err(conflict("the UID in the precondition is not the pod's"));
        }
        if !pod["metadata"]["deletionTimestamp"].is_null() {
            return Err(conflict("it is on its way out already"));
        }
        if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            let why = "it is over and does not begin again; only the master can remove it";
            return Err(conflict(why));
        }
        let dry = options["dryRun"].as_array().is_some_and(|list| list.contains(&json!("All")));
        if !(dry || self.query.dry_run()?) && self.door.sources.restarter.try_send(uid).is_err() {
            return Err(Status::too_many_requests());
        }
        // Without the uid: a client that waits for the object to go, or for another in
        // its place, takes what it finds for the other.
        let mut answer = answer::json(StatusCode::OK, &status::deleted(at.resource, &at.name, ""));
        let warning = format!(
            "pod {}/{} is restarted on node {}, not deleted: only the master can take it away",
            at.namespace, at.name, self.door.sources.node
        );
        answer::warn(&mut answer, &[warning]);
        Ok(answer)
    }
}

async fn read_body<B>(body: B) -> Result<Bytes, Status>
where
    B: Body + Send,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    match Limited::new(body, BODY_BYTES_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(Status::too_large(BODY_BYTES_MAX)),
        Err(error) => Err(Status::bad_request(format!("cannot read the request body: {error}"))),
    }
}

fn delete_options(headers: &HeaderMap, body: &[u8]) -> Result<Value, Status> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let bad = |error: &dyn std::fmt::Display| {
        Status::bad_request(format!("cannot read the DeleteOptions: {error}"))
    };
    if kind.starts_with("application/vnd.kubernetes.protobuf") {
        return api::protobuf::decode(body).map_err(|error| bad(&error));
    }
    serde_json::from_slice(body).map_err(|error| bad(&error))
}
