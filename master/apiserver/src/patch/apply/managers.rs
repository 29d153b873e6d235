//! `metadata.managedFields`: who set which fields, how and when.

use serde_json::{Map, Value, json};

use super::field_set::FieldSet;

/// Most entries of managers that do not apply; older ones are taken together.
///
/// Source: `k8s.io/apimachinery/pkg/util/managedfields`.
const UPDATERS_MAX: usize = 10;
/// The manager of entries that were taken together.
const ANCIENT: &str = "ancient-changes";

/// How a manager writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

/// One entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manager {
    pub(super) name: String,
    pub(super) operation: Operation,
    pub(super) api_version: String,
    pub(super) subresource: String,
    pub(super) time: Option<String>,
    pub(super) fields: FieldSet,
}

impl Manager {
    /// Whether both are the same manager. One that applies is the same in every version.
    pub(super) fn is(&self, other: &Self) -> bool {
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// As conflicts name it.
    pub(super) fn describe(&self) -> String {
        let mut text = format!("{:?}", self.name);
        if !self.subresource.is_empty() {
            text.push_str(&format!(" with subresource {:?}", self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(&format!(" using {}", self.api_version));
        }
        text
    }
}

/// All entries of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Managers {
    pub(super) list: Vec<Manager>,
}

impl Managers {
    /// Reads `metadata.managedFields`; `None` where an entry makes no sense.
    pub(super) fn read(entries: &[Value]) -> Option<Self> {
        entries.iter().map(read_entry).collect::<Option<_>>().map(|list| Self { list })
    }

    /// The entries of `object`; none where it has none that make sense.
    pub(super) fn of(object: &Value) -> Self {
        entries(object).and_then(Self::read).unwrap_or_default()
    }

    /// The entry of `manager`, made where it is missing.
    pub(super) fn entry(&mut self, manager: &Manager) -> &mut Manager {
        let at = self.list.iter().position(|other| other.is(manager)).unwrap_or_else(|| {
            self.list.push(manager.clone());
            self.list.len() - 1
        });
        &mut self.list[at]
    }

    /// The fields of everyone.
    pub(super) fn all_fields(&self) -> FieldSet {
        self.list.iter().fold(FieldSet::default(), |all, manager| all.union(manager.fields.clone()))
    }

    /// Writes the entries into `object`, in Kubernetes' order.
    pub(super) fn write(mut self, object: &mut Value) {
        self.list.retain(|manager| !manager.fields.is_empty());
        self.take_oldest_together();
        self.list.sort_by(|a, b| {
            let key = |m: &Manager| {
                (
                    m.operation,
                    m.time.clone(),
                    m.name.clone(),
                    m.api_version.clone(),
                    m.subresource.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        let metadata = api::meta::metadata_mut(object);
        if self.list.is_empty() {
            metadata.shift_remove("managedFields");
        } else {
            let entries: Vec<Value> = self.list.iter().map(write_entry).collect();
            metadata.insert("managedFields".to_owned(), entries.into());
        }
    }

    fn take_oldest_together(&mut self) {
        let updaters =
            |list: &[Manager]| list.iter().filter(|m| m.operation == Operation::Update).count();
        let too_many = updaters(&self.list).saturating_sub(UPDATERS_MAX);
        if too_many == 0 {
            return;
        }
        let mut times: Vec<_> = self
            .list
            .iter()
            .filter(|m| m.operation == Operation::Update && m.name != ANCIENT)
            .map(|m| (m.time.clone(), m.name.clone(), m.subresource.clone()))
            .collect();
        times.sort();
        // They become one entry, which counts too where it is new.
        let is_new = !self.list.iter().any(|m| m.name == ANCIENT);
        for (time, name, subresource) in times.into_iter().take(too_many + usize::from(is_new)) {
            let same = |m: &Manager| {
                m.operation == Operation::Update
                    && m.time == time
                    && m.name == name
                    && m.subresource == subresource
            };
            let Some(at) = self.list.iter().position(same) else { continue };
            let old = self.list.remove(at);
            let ancient = self.entry(&Manager {
                name: ANCIENT.to_owned(),
                operation: Operation::Update,
                time: None,
                fields: FieldSet::default(),
                subresource: String::new(),
                api_version: old.api_version.clone(),
            });
            ancient.fields.add(old.fields);
            ancient.time = ancient.time.take().max(old.time);
        }
    }
}

/// `metadata.managedFields`, where it is a list.
pub(super) fn entries(object: &Value) -> Option<&[Value]> {
    api::meta::metadata(object)?.get("managedFields")?.as_array().map(Vec::as_slice)
}

/// Whether a client asked to forget all managers: `managedFields: [{}]`.
pub(super) fn is_reset(entries: &[Value]) -> bool {
    matches!(entries, [Value::Object(fields)] if fields.is_empty())
}

fn read_entry(entry: &Value) -> Option<Manager> {
    let text =
        |field: &str| entry.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let operation = match text("operation").as_str() {
        "Apply" => Operation::Apply,
        "Update" => Operation::Update,
        _ => return None,
    };
    if !matches!(text("fieldsType").as_str(), "FieldsV1" | "") {
        return None;
    }
    let fields = match entry.get("fieldsV1") {
        Some(fields) => FieldSet::from_json(fields)?,
        None => FieldSet::default(),
    };
    Some(Manager {
        name: text("manager"),
        operation,
        api_version: text("apiVersion"),
        subresource: text("subresource"),
        time: Some(text("time")).filter(|time| !time.is_empty()),
        fields,
    })
}

fn write_entry(manager: &Manager) -> Value {
    let mut entry = Map::new();
    entry.insert("manager".to_owned(), manager.name.as_str().into());
    entry.insert("operation".to_owned(), format!("{:?}", manager.operation).into());
    entry.insert("apiVersion".to_owned(), manager.api_version.as_str().into());
    if let Some(time) = &manager.time {
        entry.insert("time".to_owned(), time.as_str().into());
    }
    entry.insert("fieldsType".to_owned(), json!("FieldsV1"));
    entry.insert("fieldsV1".to_owned(), manager.fields.to_json());
    if !manager.subresource.is_empty() {
        entry.insert("subresource".to_owned(), manager.subresource.as_str().into());
    }
    Value::Object(entry)
}
