//! GET of one object, and lists: whole, by pages, and as they are found.
//!
//! A list is read from the store a few hundred objects at a time, all at the
//! revision of the first read, so that no read transaction lasts and no list is
//! held in memory twice. A `continue` token carries that revision and where the
//! page ended; pages stay consistent while others write.

use std::borrow::Cow;
use std::collections::BTreeMap;

use api::resource::{Resource, Verb};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::StoreError;

use super::{Api, Target, store_error, stored};
use crate::identity::Identity;
use crate::measured::MeasuredRequest;
use crate::options::{ListOptions, Selection, VersionMatch};
use crate::status::Status;

/// Objects read from the store at once; at a few KB each, below the 1 MB that
/// one read transaction may copy.
const CHUNK: usize = 250;
/// Longest `continue` token that is read, in bytes.
const TOKEN_MAX: usize = 4096;

/// One object of a list.
#[derive(Clone, Debug)]
pub struct Item {
    /// The revision that wrote it.
    pub revision: u64,
    /// The object, as JSON.
    pub object: Bytes,
}

impl Item {
    /// The object, parsed.
    #[must_use]
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.object).unwrap_or(Value::Null)
    }
}

/// A list, or a page of one.
#[derive(Clone, Debug)]
pub struct List {
    /// All items are as they were at this revision; a watch from it misses nothing.
    pub revision: u64,
    /// How to get the rest; empty at the end.
    pub continue_token: String,
    /// The objects, by namespace and name.
    pub items: Vec<Item>,
}

/// A list that is read as it is consumed; see [`Api::list_pages`].
#[derive(Debug)]
pub struct ListPages {
    api: Api,
    filter: Filter,
    prefix: String,
    position: Option<String>,
    /// 0 until the first read, where the newest state is asked for.
    revision: u64,
    consistent: bool,
    left: Option<usize>,
    done: bool,
}

/// What a `continue` token says.
#[derive(Serialize, Deserialize)]
struct Token {
    v: String,
    /// 0: from whatever is there now.
    rv: u64,
    /// The last key of the page before, below the prefix of the list.
    start: String,
}

const TOKEN_VERSION: &str = "pinnace/1";

impl Api {
    /// The object, as JSON.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, or what the store says.
    pub fn get(&self, who: &Identity, target: &Target<'_>) -> Result<Bytes, Status> {
        self.authorize(who, Verb::Get, target)?;
        stored(target.resource)?;
        let found = self.inner.store.get(&target.key()).map_err(|e| store_error(&e))?;
        found.map(|found| found.value).ok_or_else(|| target.not_found())
    }

    /// The object, parsed.
    ///
    /// # Errors
    /// As [`Api::get`].
    pub fn get_value(&self, who: &Identity, target: &Target<'_>) -> Result<Value, Status> {
        let bytes = self.get(who, target)?;
        super::parse_stored(target.name, &bytes)
    }

    /// Objects that are measured now: one where `target` has a name, else all that
    /// are selected.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, or `ServiceUnavailable` where nobody can measure.
    pub async fn measure(
        &self,
        who: &Identity,
        target: &Target<'_>,
        selection: Selection,
    ) -> Result<Vec<Value>, Status> {
        let one = !target.name.is_empty();
        let verb = if one { Verb::Get } else { Verb::List };
        self.authorize_selected(who, verb, target, Some(&selection))?;
        let Some(source) = self.inner.measured.get() else {
            return Err(Status::unavailable("nothing is measured here: no link to the nodes"));
        };
        let request = MeasuredRequest {
            resource: target.resource,
            namespace: target.namespace.to_owned(),
            name: target.name.to_owned(),
            selection,
        };
        let found = source.measure(request).await?;
        if one && found.is_empty() {
            return Err(target.not_found());
        }
        Ok(found)
    }

    /// The objects of a resource, in one namespace or (where empty) in all.
    ///
    /// # Errors
    /// `Forbidden`, `BadRequest` for a selector or token that cannot be, `Expired`.
    pub fn list(
        &self,
        who: &Identity,
        resource: &'static Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<List, Status> {
        let mut pages = self.list_pages(who, resource, namespace, options)?;
        let mut items = Vec::new();
        while let Some(page) = pages.next_page()? {
            items.extend(page);
        }
        Ok(List { revision: pages.revision, continue_token: pages.continue_token(), items })
    }

    /// As [`Api::list`], a few hundred objects at a time. The revision is known
    /// after the first page.
    ///
    /// # Errors
    /// As [`Api::list`].
    pub fn list_pages(
        &self,
        who: &Identity,
        resource: &'static Resource,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<ListPages, Status> {
        let target = Target::object(resource, namespace, "");
        self.authorize_selected(who, Verb::List, &target, Some(&options.selection))?;
        stored(resource)?;
        let filter = Filter::new(resource, options.selection.clone())?;
        self.list_unchecked(&filter, namespace, options)
    }

    /// [`Api::list_pages`] for somebody who may.
    pub(super) fn list_unchecked(
        &self,
        filter: &Filter,
        namespace: &str,
        options: &ListOptions,
    ) -> Result<ListPages, Status> {
        let mut pages = ListPages {
            api: self.clone(),
            filter: filter.clone(),
            prefix: filter.prefix(namespace),
            position: None,
            revision: 0,
            consistent: true,
            left: options.limit.filter(|limit| *limit > 0),
            done: false,
        };
        if let Some(token) = &options.continue_token {
            if options.resource_version.is_some_and(|revision| revision > 0) {
                return Err(Status::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let token = read_token(token)?;
            pages.position = Some(format!("{}{}", pages.resource_prefix(), token.start));
            pages.revision = token.rv;
            pages.consistent = token.rv > 0;
            return Ok(pages);
        }
        pages.revision = self.list_revision(options)?;
        Ok(pages)
    }

    /// The revision to list at; 0 for the newest.
    fn list_revision(&self, options: &ListOptions) -> Result<u64, Status> {
        let asked = options.resource_version.unwrap_or(0);
        let exact = match options.version_match {
            Some(VersionMatch::Exact) if options.resource_version.is_none() => {
                return Err(Status::bad_request(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            Some(VersionMatch::Exact) if asked == 0 => {
                return Err(Status::bad_request(
                    "resourceVersionMatch \"Exact\" is forbidden for resourceVersion \"0\"",
                ));
            }
            Some(VersionMatch::Exact) => true,
            Some(VersionMatch::NotOlderThan) if options.resource_version.is_none() => {
                return Err(Status::bad_request(
                    "resourceVersionMatch is forbidden unless resourceVersion is provided",
                ));
            }
            Some(VersionMatch::NotOlderThan) => false,
            // As Kubernetes does for lists by pages from before it had the parameter.
            None => asked > 0 && options.limit.is_some_and(|limit| limit > 0),
        };
        if exact {
            return Ok(asked);
        }
        let current = self.inner.store.revision();
        if asked > current {
            return Err(Status::too_large_revision(asked, current));
        }
        Ok(0)
    }
}

impl ListPages {
    /// The next few objects; `None` at the end of the list or of its page.
    ///
    /// # Errors
    /// `Expired` where the revision was compacted meanwhile.
    pub fn next_page(&mut self) -> Result<Option<Vec<Item>>, Status> {
        if self.done || self.left == Some(0) {
            return Ok(None);
        }
        let chunk = if self.filter.selects_all() {
            self.left.map_or(CHUNK, |left| left.min(CHUNK))
        } else {
            CHUNK
        };
        let options = store::ListOptions {
            start_after: self.position.clone(),
            limit: Some(chunk),
            at_revision: (self.consistent && self.revision > 0).then_some(self.revision),
        };
        let read = self.api.inner.store.list(&self.prefix, &options);
        let list = read.map_err(|error| self.list_error(&error))?;
        if self.revision == 0 || !self.consistent {
            self.revision = list.revision;
        }
        self.done = !list.more;
        let mut items = Vec::new();
        for found in list.items {
            if self.left == Some(0) {
                // The page is full and there may be more that matches.
                self.done = false;
                break;
            }
            self.position = Some(found.key.clone());
            if self.filter.matches(&found.key, &found.value) {
                items.push(Item { revision: found.revision, object: found.value });
                self.left = self.left.map(|left| left - 1);
            }
        }
        Ok(Some(items))
    }

    /// The revision of the list; 0 before the first page.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// How to go on after this page; empty at the end.
    #[must_use]
    pub fn continue_token(&self) -> String {
        if self.done {
            return String::new();
        }
        self.token(if self.consistent { self.revision } else { 0 })
    }

    fn token(&self, revision: u64) -> String {
        let Some(position) = &self.position else { return String::new() };
        let start = position.strip_prefix(&self.resource_prefix()).unwrap_or_default().to_owned();
        let token = Token { v: TOKEN_VERSION.to_owned(), rv: revision, start };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).expect("texts and a number"))
    }

    fn resource_prefix(&self) -> String {
        self.filter.resource.key_prefix()
    }

    fn list_error(&self, error: &StoreError) -> Status {
        match error {
            StoreError::Expired { .. } if self.position.is_some() => {
                Status::continue_expired(self.token(0))
            }
            other => store_error(other),
        }
    }
}

fn read_token(text: &str) -> Result<Token, Status> {
    let invalid =
        || Status::bad_request("continue key is not valid: it was not made by this server");
    if text.len() > TOKEN_MAX {
        return Err(invalid());
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| invalid())?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
    if token.v != TOKEN_VERSION || token.start.is_empty() || token.start.starts_with('/') {
        return Err(invalid());
    }
    Ok(token)
}

/// Which stored objects a list or watch is about.
#[derive(Clone, Debug)]
pub(super) struct Filter {
    pub(super) resource: &'static Resource,
    selection: Selection,
    /// A field other than name and namespace is compared: the object must be parsed.
    deep: bool,
}

/// The part of an object that a label selector needs.
#[derive(Deserialize)]
struct Labelled<'a> {
    #[serde(borrow)]
    metadata: Labels<'a>,
}

#[derive(Deserialize)]
struct Labels<'a> {
    #[serde(borrow, default)]
    labels: Option<BTreeMap<Cow<'a, str>, Cow<'a, str>>>,
}

impl Filter {
    pub(super) fn new(resource: &'static Resource, selection: Selection) -> Result<Self, Status> {
        for requirement in &selection.fields.requirements {
            if !resource.selects_field(&requirement.field) {
                let problem = resource.field_selector_error(&requirement.field);
                return Err(Status::bad_request(format!(
                    "Unable to find \"{}\" that match label selector \"{}\", field selector \
                     \"{}\": {problem}",
                    resource.qualified_plural(),
                    selection.labels,
                    selection.fields
                )));
            }
        }
        let deep = selection
            .fields
            .requirements
            .iter()
            .any(|r| !matches!(r.field.as_str(), "metadata.name" | "metadata.namespace"));
        Ok(Self { resource, selection, deep })
    }

    /// The shortest range of keys that holds everything selected.
    pub(super) fn prefix(&self, namespace: &str) -> String {
        let pinned = self.selection.fields.pinned("metadata.namespace").unwrap_or_default();
        let namespace =
            if namespace.is_empty() && self.resource.namespaced { pinned } else { namespace };
        let mut prefix = self.resource.namespace_prefix(namespace);
        let whole = !self.resource.namespaced || !namespace.is_empty();
        if let (true, Some(name)) = (whole, self.selection.fields.pinned("metadata.name")) {
            prefix.push_str(name);
        }
        prefix
    }

    pub(super) fn selects_all(&self) -> bool {
        self.selection.is_empty()
    }

    /// Whether the object stored at `key` is selected.
    pub(super) fn matches(&self, key: &str, object: &[u8]) -> bool {
        if self.selects_all() {
            return true;
        }
        let Some(object_key) = self.resource.object_key(key) else { return false };
        if !self.selection.fields.is_empty() {
            let parsed = if self.deep { serde_json::from_slice(object).ok() } else { None };
            let absent = Value::Null;
            let parsed: &Value = parsed.as_ref().unwrap_or(&absent);
            let selected = self.selection.fields.matches(|field| match field {
                "metadata.name" => object_key.name.clone(),
                "metadata.namespace" => object_key.namespace.clone(),
                other => self.resource.field_value(parsed, other),
            });
            if !selected {
                return false;
            }
        }
        if self.selection.labels.is_empty() {
            return true;
        }
        let labels = serde_json::from_slice::<Labelled<'_>>(object)
            .ok()
            .and_then(|object| object.metadata.labels)
            .unwrap_or_default();
        self.selection.labels.matches_with(|key| labels.get(key).map(AsRef::as_ref))
    }
}
