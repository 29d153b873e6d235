//! The verbs over HTTP: what method, path, query and body ask of `Api`, and
//! the form of the answer.

use std::sync::Arc;
use std::time::Duration;

use api::resource::{Resource, Storage, Verb};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use http::header::USER_AGENT;
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use front::answer::{self, Answer, BrokenOff};
use front::negotiate::{Form, accepts_gzip, form};
use front::path::{ResourcePath, propagation};
use front::printers;
use front::shape::Shape;
use front::table::Include;

use super::requests::Asked;
use super::{State, body, reviews, streams, watch};
use crate::fields;
use crate::logs::LogRequest;
use crate::object;
use crate::options::{
    DeleteOptions, FieldValidation, ListOptions, PatchKind, VersionMatch, WatchOptions,
    WriteOptions,
};
use crate::status::{self, Cause, Status};
use crate::verbs::{Deleted, Item, ListPages, Target, Written};

/// Forms of objects and lists.
const FORMS: &[Form] = &[Form::Table, Form::Metadata];
/// A watch that does not say ends after 30 to 60 minutes, so that connections spread.
const WATCH_SECONDS: u64 = 1800;
/// Longest name of a field manager.
const MANAGER_BYTES_MAX: usize = 128;

/// Answers a request for a collection, an object or a subresource.
pub(super) async fn handle(
    state: &Arc<State>,
    asked: &Asked,
    at: &ResourcePath,
    incoming: Incoming,
) -> Result<Answer, Status> {
    let request = Request { state, asked, at };
    let method = &asked.head.method;
    let watching = asked.query.flag("watch")?;
    let verb = match (method, at.name.is_empty()) {
        (&Method::GET | &Method::HEAD, _) if watching => Verb::Watch,
        (&Method::GET | &Method::HEAD, true) => Verb::List,
        (&Method::GET | &Method::HEAD, false) => Verb::Get,
        (&Method::POST, true) => Verb::Create,
        (&Method::POST, false) if !at.subresource.is_empty() => Verb::Create,
        (&Method::PUT, false) => Verb::Update,
        (&Method::PATCH, false) => Verb::Patch,
        (&Method::DELETE, true) => Verb::DeleteCollection,
        (&Method::DELETE, false) => Verb::Delete,
        _ => return Err(request.not_allowed()),
    };
    let served = match at.resource.subresource(&at.subresource) {
        Some(sub) => sub.verbs.contains(&verb),
        None => at.resource.allows(verb),
    };
    if !served {
        return Err(request.not_allowed());
    }
    if at.resource.storage == Storage::Virtual && matches!(verb, Verb::Get | Verb::List) {
        return request.measure().await;
    }
    match (verb, at.subresource.as_str()) {
        (Verb::Watch, _) => request.watch(),
        (Verb::List, _) => request.list(),
        (Verb::Get, "scale") => request.get_scale(),
        (Verb::Get, "log") => request.log().await,
        (Verb::Get | Verb::Create, "exec" | "attach") => streams::command(&request, verb).await,
        (Verb::Get | Verb::Create, "portforward") => streams::forward(&request, verb).await,
        (Verb::Get, _) => request.get(),
        (Verb::Delete, _) => request.delete(incoming).await,
        (Verb::DeleteCollection, _) => request.delete_collection(incoming).await,
        (Verb::Patch, _) => request.patch(incoming).await,
        (Verb::Update, _) => request.update(incoming).await,
        (Verb::Create, "binding") => request.bind(incoming).await,
        (Verb::Create, "token") => request.token(incoming).await,
        (Verb::Create, "eviction") => request.evict(incoming).await,
        (Verb::Create, _) if at.resource.storage == Storage::Virtual => {
            request.review(incoming).await
        }
        (Verb::Create, _) => request.create(incoming).await,
    }
}

pub(super) struct Request<'a> {
    pub(super) state: &'a Arc<State>,
    pub(super) asked: &'a Asked,
    pub(super) at: &'a ResourcePath,
}

impl<'a> Request<'a> {
    pub(super) fn target(&self) -> Target<'a> {
        Target {
            resource: self.at.resource,
            namespace: &self.at.namespace,
            name: &self.at.name,
            subresource: &self.at.subresource,
        }
    }

    fn not_allowed(&self) -> Status {
        if self.asked.who.is_anonymous() {
            return Status::unauthorized();
        }
        Status::method_not_allowed()
    }

    fn form(&self) -> Result<(Form, Include), Status> {
        let form = form(&self.asked.head.headers, FORMS)?;
        Ok((form, Include::parse(self.asked.query.get("includeObject"))?))
    }

    fn get(&self) -> Result<Answer, Status> {
        let (form, include) = self.form()?;
        let bytes = self.state.api.get(&self.asked.who, &self.target())?;
        let gzip = accepts_gzip(&self.asked.head.headers);
        Ok(present(StatusCode::OK, self.at.resource, bytes, form, include, gzip))
    }

    fn get_scale(&self) -> Result<Answer, Status> {
        form(&self.asked.head.headers, &[])?;
        let scale = self.state.api.get_scale(&self.asked.who, &self.target())?;
        Ok(answer::json(StatusCode::OK, &scale))
    }

    async fn measure(&self) -> Result<Answer, Status> {
        let (form, include) = self.form()?;
        let (resource, target) = (self.at.resource, self.target());
        let selection = self.asked.query.selection()?;
        let mut found = self.state.api.measure(&self.asked.who, &target, selection).await?;
        let gzip = accepts_gzip(&self.asked.head.headers);
        if !target.name.is_empty() {
            let object = found.pop().ok_or_else(Status::no_such_path)?;
            let bytes = encode(&object).into();
            return Ok(present(StatusCode::OK, resource, bytes, form, include, gzip));
        }
        // There is no revision of what was never stored.
        let metadata = json!({});
        let list = shape(resource, form, include).list(resource, found, &metadata);
        Ok(answer::json_bytes(StatusCode::OK, encode(&list).into(), gzip))
    }

    fn list(&self) -> Result<Answer, Status> {
        let (form, include) = self.form()?;
        let query = &self.asked.query;
        let options = ListOptions {
            selection: query.selection()?,
            limit: query.number("limit")?,
            continue_token: query.get("continue").map(str::to_owned),
            resource_version: self.resource_version()?,
            version_match: query.version_match()?,
        };
        let (who, at) = (&self.asked.who, self.at);
        let gzip = accepts_gzip(&self.asked.head.headers);
        let mut pages = self.state.api.list_pages(who, at.resource, &at.namespace, &options)?;
        let first = pages.next_page()?.unwrap_or_default();
        let paged = options.limit.is_some_and(|limit| limit > 0);
        if form == Form::Object && !paged {
            return Ok(stream_list(at.resource, first, pages, gzip));
        }
        let mut items = first;
        while let Some(page) = pages.next_page()? {
            items.extend(page);
        }
        let metadata = list_metadata(pages.revision(), &pages.continue_token());
        let bytes = match form {
            Form::Object | Form::Discovery => {
                let mut bytes = list_head(at.resource, &metadata);
                push_items(&mut bytes, &items, true);
                bytes.extend_from_slice(b"]}");
                bytes
            }
            Form::Table | Form::Metadata => {
                let objects = items.iter().map(Item::value).collect();
                encode(&shape(at.resource, form, include).list(at.resource, objects, &metadata))
            }
        };
        Ok(answer::json_bytes(StatusCode::OK, bytes.into(), gzip))
    }

    fn watch(&self) -> Result<Answer, Status> {
        let (form, include) = self.form()?;
        let (query, at) = (&self.asked.query, self.at);
        let mut selection = query.selection()?;
        if !at.name.is_empty() {
            let name = api::selector::FieldRequirement {
                field: "metadata.name".to_owned(),
                value: at.name.clone(),
                equal: true,
            };
            selection.fields.requirements.push(name);
        }
        let initial = query.flag("sendInitialEvents")?;
        let bookmarks = query.flag("allowWatchBookmarks")?;
        let version_match = query.version_match()?;
        self.check_watch_list(initial, version_match)?;
        let jitter = self.state.api.store().revision() % WATCH_SECONDS;
        let default = Duration::from_secs(WATCH_SECONDS + jitter);
        let options = WatchOptions {
            selection,
            resource_version: self.resource_version()?,
            send_initial_events: initial,
            bookmarks,
            timeout: Some(query.watch_timeout()?.unwrap_or(default)),
        };
        let watch = self.state.api.watch(&self.asked.who, at.resource, &at.namespace, &options)?;
        Ok(watch::stream(self.state, watch, form, include))
    }

    /// `sendInitialEvents` and `resourceVersionMatch` go together.
    fn check_watch_list(
        &self,
        initial: bool,
        version_match: Option<VersionMatch>,
    ) -> Result<(), Status> {
        let given = self.asked.query.get("sendInitialEvents").is_some();
        let (field, message) = match version_match {
            None if given && initial => (
                "resourceVersionMatch",
                "Forbidden: sendInitialEvents requires setting \
                  resourceVersionMatch to NotOlderThan",
            ),
            Some(VersionMatch::Exact) => (
                "resourceVersionMatch",
                "Unsupported value: \"Exact\": supported values: \"NotOlderThan\"",
            ),
            Some(_) if !given => (
                "resourceVersionMatch",
                "Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents \
                 is provided",
            ),
            _ => return Ok(()),
        };
        let cause = Cause {
            reason: "FieldValueForbidden".to_owned(),
            message: message.to_owned(),
            field: field.to_owned(),
        };
        Err(Status::invalid("meta.k8s.io", "ListOptions", "", vec![cause]))
    }

    fn resource_version(&self) -> Result<Option<u64>, Status> {
        self.asked.query.number("resourceVersion")
    }

    async fn create(&self, incoming: Incoming) -> Result<Answer, Status> {
        let (options, object) = self.read_object(incoming).await?;
        let (who, at) = (&self.asked.who, self.at);
        let written =
            self.state.api.create(who, at.resource, &at.namespace, object, &options).await?;
        self.written(written)
    }

    async fn update(&self, incoming: Incoming) -> Result<Answer, Status> {
        let (options, object) = self.read_object(incoming).await?;
        let written =
            self.state.api.update(&self.asked.who, &self.target(), object, &options).await?;
        self.written(written)
    }

    async fn patch(&self, incoming: Incoming) -> Result<Answer, Status> {
        let kind = body::patch_kind(&self.asked.head.headers)?;
        let mut options = self.write_options()?;
        let given = self.asked.query.get("fieldManager").is_some();
        if kind == PatchKind::Apply && !given {
            let cause = Cause {
                reason: "FieldValueRequired".to_owned(),
                message: "Required value: is required for apply patch".to_owned(),
                field: "fieldManager".to_owned(),
            };
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]));
        }
        if kind != PatchKind::Apply && options.force {
            let cause = Cause {
                reason: "FieldValueForbidden".to_owned(),
                message: "Forbidden: may not be specified for non-apply patch".to_owned(),
                field: "force".to_owned(),
            };
            return Err(Status::invalid("meta.k8s.io", "PatchOptions", "", vec![cause]));
        }
        let bytes = body::read(incoming).await?;
        let decoded = body::patch(kind, &bytes)?;
        options.duplicate_fields = decoded.duplicates;
        let (who, target) = (&self.asked.who, self.target());
        let written = self.state.api.patch(who, &target, kind, decoded.object, &options).await?;
        self.written(written)
    }

    async fn delete(&self, incoming: Incoming) -> Result<Answer, Status> {
        let options = self.delete_options(incoming).await?;
        let deleted = self.state.api.delete(&self.asked.who, &self.target(), &options).await?;
        let (form, include) = self.form()?;
        let resource = self.at.resource;
        match deleted {
            // Pods are answered with; of everything else the uid is enough.
            Deleted::Gone(bytes) if resource.kind != "Pod" => {
                let object: Value = serde_json::from_slice(&bytes).unwrap_or_default();
                let uid = object::meta(&object, "uid");
                let status = status::deleted(resource, &self.at.name, uid);
                Ok(answer::json(StatusCode::OK, &status))
            }
            Deleted::Gone(bytes) | Deleted::Terminating(bytes) => {
                Ok(present(StatusCode::OK, resource, bytes, form, include, false))
            }
        }
    }

    async fn delete_collection(&self, incoming: Incoming) -> Result<Answer, Status> {
        let options = self.delete_options(incoming).await?;
        let selection = self.asked.query.selection()?;
        let (who, at) = (&self.asked.who, self.at);
        let api = &self.state.api;
        let deleted =
            api.delete_collection(who, at.resource, &at.namespace, &selection, &options).await?;
        let metadata = list_metadata(api.store().revision(), "");
        let mut bytes = list_head(at.resource, &metadata);
        for (n, deleted) in deleted.iter().enumerate() {
            if n > 0 {
                bytes.push(b',');
            }
            bytes.extend_from_slice(deleted.object());
        }
        bytes.extend_from_slice(b"]}");
        Ok(answer::json_bytes(StatusCode::OK, bytes.into(), false))
    }

    async fn bind(&self, incoming: Incoming) -> Result<Answer, Status> {
        let (options, binding) = self.read_object(incoming).await?;
        self.state.api.bind(&self.asked.who, &self.target(), binding, &options).await?;
        Ok(answer::json(StatusCode::CREATED, &status::success(201)))
    }

    async fn token(&self, incoming: Incoming) -> Result<Answer, Status> {
        let (options, request) = self.read_object(incoming).await?;
        let api = &self.state.api;
        let (token, warnings) =
            api.create_token(&self.asked.who, &self.target(), request, &options)?;
        let mut answer = answer::json(StatusCode::CREATED, &token);
        answer::warn(&mut answer, &warnings);
        Ok(answer)
    }

    async fn evict(&self, incoming: Incoming) -> Result<Answer, Status> {
        let (write, mut eviction) = self.read_object(incoming).await?;
        let validation = write.field_validation;
        fields::check("policy", "v1", "Eviction", &mut eviction, validation, &[])?;
        let mut options = read_delete_options(&eviction["deleteOptions"])?;
        options.dry_run |= write.dry_run;
        self.state.api.evict(&self.asked.who, &self.target(), &options).await?;
        Ok(answer::json(StatusCode::CREATED, &status::success(201)))
    }

    async fn review(&self, incoming: Incoming) -> Result<Answer, Status> {
        if self.asked.who.is_anonymous() {
            return Err(Status::unauthorized());
        }
        let (options, mut review) = self.read_object(incoming).await?;
        let resource = self.at.resource;
        object::set_type(&mut review, resource);
        let warnings = fields::check(
            resource.group,
            resource.version,
            resource.kind,
            &mut review,
            options.field_validation,
            &options.duplicate_fields,
        )?;
        let answered = reviews::answer(resource, review, &self.asked.who, &self.state.api)?;
        let mut answer = answer::json(StatusCode::CREATED, &answered);
        answer::warn(&mut answer, &warnings);
        Ok(answer)
    }

    async fn log(&self) -> Result<Answer, Status> {
        let request = LogRequest::read(&self.asked.query)?;
        let log = self.state.api.open_log(&self.asked.who, &self.target(), request).await?;
        let shutdown = self.state.shutdown.clone();
        let pieces = log
            .map_err(|error| BrokenOff(error.to_string()))
            .take_until(async move { shutdown.cancelled().await });
        Ok(answer::text_pieces(Box::pin(pieces)))
    }

    async fn read_object(&self, incoming: Incoming) -> Result<(WriteOptions, Value), Status> {
        let mut options = self.write_options()?;
        let bytes = body::read(incoming).await?;
        let decoded = body::object(&self.asked.head.headers, &bytes)?;
        options.duplicate_fields = decoded.duplicates;
        Ok((options, decoded.object))
    }

    fn write_options(&self) -> Result<WriteOptions, Status> {
        let query = &self.asked.query;
        let field_manager = match query.get("fieldManager") {
            Some(manager) => manager.to_owned(),
            None => self.client_name(),
        };
        let unfit = |c: char| c.is_control();
        if field_manager.len() > MANAGER_BYTES_MAX || field_manager.contains(unfit) {
            return Err(Status::bad_request(format!(
                "fieldManager: Invalid value: must be printable and at most {MANAGER_BYTES_MAX} \
                 bytes long"
            )));
        }
        Ok(WriteOptions {
            dry_run: query.dry_run()?,
            field_manager,
            field_validation: query.field_validation()?,
            force: query.flag("force")?,
            duplicate_fields: Vec::new(),
        })
    }

    /// The client's name for itself, up to the slash.
    fn client_name(&self) -> String {
        let agent = self.asked.head.headers.get(USER_AGENT).and_then(|agent| agent.to_str().ok());
        let name = agent.unwrap_or_default().split('/').next().unwrap_or_default().trim();
        let name: String =
            name.chars().filter(|c| !c.is_control()).take(MANAGER_BYTES_MAX).collect();
        if name.is_empty() { "unknown".to_owned() } else { name }
    }

    async fn delete_options(&self, incoming: Incoming) -> Result<DeleteOptions, Status> {
        let query = &self.asked.query;
        let bytes = body::read(incoming).await?;
        let mut options = if bytes.is_empty() {
            DeleteOptions::default()
        } else {
            let decoded = body::object(&self.asked.head.headers, &bytes)?;
            let mut object = decoded.object;
            let ignore = FieldValidation::Ignore;
            fields::check("", "v1", "DeleteOptions", &mut object, ignore, &[])?;
            read_delete_options(&object)?
        };
        options.dry_run |= query.dry_run()?;
        if options.grace_period_seconds.is_none() {
            options.grace_period_seconds = query.number("gracePeriodSeconds")?;
        }
        if options.propagation.is_none() {
            let orphan = match query.get("orphanDependents") {
                Some(_) => Some(query.flag("orphanDependents")?),
                None => None,
            };
            options.propagation = propagation(query.get("propagationPolicy"), orphan)?;
        }
        Ok(options)
    }

    fn written(&self, written: Written) -> Result<Answer, Status> {
        let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
        let (form, include) = match self.at.subresource.as_str() {
            "scale" => (Form::Object, Include::None),
            _ => self.form()?,
        };
        let gzip = accepts_gzip(&self.asked.head.headers);
        let mut answer = present(code, self.at.resource, written.object, form, include, gzip);
        answer::warn(&mut answer, &written.warnings);
        Ok(answer)
    }
}

fn read_delete_options(object: &Value) -> Result<DeleteOptions, Status> {
    let version = object::text(object, &["preconditions", "resourceVersion"]);
    let resource_version = match version {
        "" => None,
        text => Some(text.parse().map_err(|_| {
            Status::bad_request(format!(
                "preconditions.resourceVersion: Invalid value: \"{text}\": not a number"
            ))
        })?),
    };
    let uid = object::text(object, &["preconditions", "uid"]);
    let policy = Some(object::text(object, &["propagationPolicy"])).filter(|p| !p.is_empty());
    Ok(DeleteOptions {
        grace_period_seconds: object["gracePeriodSeconds"].as_i64(),
        propagation: propagation(policy, object["orphanDependents"].as_bool())?,
        uid: (!uid.is_empty()).then(|| uid.to_owned()),
        resource_version,
        dry_run: object::texts(object, &["dryRun"]).contains(&"All"),
    })
}

/// One object in the form that is asked for.
fn present(
    code: StatusCode,
    resource: &Resource,
    bytes: Bytes,
    form: Form,
    include: Include,
    gzip: bool,
) -> Answer {
    if form == Form::Object || form == Form::Discovery {
        return answer::json_bytes(code, bytes, gzip);
    }
    let object = serde_json::from_slice::<Value>(&bytes).unwrap_or_default();
    answer::json(code, &shape(resource, form, include).object(object))
}

fn shape(resource: &Resource, form: Form, include: Include) -> Shape {
    Shape { form, include, printer: printers::printer(resource) }
}

fn list_metadata(revision: u64, continue_token: &str) -> Value {
    let mut metadata = json!({"resourceVersion": revision.to_string()});
    if !continue_token.is_empty() {
        metadata["continue"] = json!(continue_token);
    }
    metadata
}

fn list_head(resource: &Resource, metadata: &Value) -> Vec<u8> {
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        resource.list_kind,
        resource.api_version()
    );
    head.into_bytes()
}

fn push_items(bytes: &mut Vec<u8>, items: &[Item], mut first: bool) {
    bytes.reserve(items.iter().map(|item| item.object.len() + 1).sum());
    for item in items {
        if !std::mem::take(&mut first) {
            bytes.push(b',');
        }
        bytes.extend_from_slice(&item.object);
    }
}

/// A whole list, read from the store as fast as the client takes it.
fn stream_list(resource: &Resource, first: Vec<Item>, pages: ListPages, gzip: bool) -> Answer {
    let mut head = list_head(resource, &list_metadata(pages.revision(), ""));
    push_items(&mut head, &first, true);
    let gzip = gzip && head.len() >= 64 * 1024;
    let empty = first.is_empty();
    let rest = stream::unfold(Some((pages, empty)), |at| async move {
        let (mut pages, empty) = at?;
        match pages.next_page() {
            Ok(Some(items)) => {
                let mut bytes = Vec::new();
                push_items(&mut bytes, &items, empty);
                let empty = empty && items.is_empty();
                Some((Ok(Bytes::from(bytes)), Some((pages, empty))))
            }
            Ok(None) => Some((Ok(Bytes::from_static(b"]}\n")), None)),
            Err(status) => Some((Err(BrokenOff(status.message)), None)),
        }
    });
    let head = stream::once(async move { Ok(Bytes::from(head)) });
    answer::json_pieces(Box::pin(head.chain(rest)), gzip)
}

fn encode(value: &Value) -> Vec<u8> {
    serde_json::to_vec(value).expect("a Value always serialises")
}
