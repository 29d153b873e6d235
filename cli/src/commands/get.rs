//! `pinnace get`: objects as tables, as `kubectl` prints them, or whole.

use anyhow::{anyhow, bail};
use serde::Serialize;
use serde_json::{Value, json};

use crate::arguments::Get;
use crate::cluster::Cluster;
use crate::failure::Failure;
use crate::jsonpath::Template;
use crate::kinds::{Kind, Kinds};
use crate::selection::{self, Selection};
use crate::table::{self, Column, Layout, Table, Widths};
use crate::urls::with_query;
use crate::{console, yaml};

const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// How many objects a page has.
const PAGE: &str = "500";

/// What objects become.
enum Format {
    Table { wide: bool },
    Json,
    Yaml,
    Name,
    JsonPath(Template),
}

impl Format {
    fn parse(text: Option<&str>) -> anyhow::Result<Self> {
        match text {
            None => Ok(Self::Table { wide: false }),
            Some("wide") => Ok(Self::Table { wide: true }),
            Some("json") => Ok(Self::Json),
            Some("yaml") => Ok(Self::Yaml),
            Some("name") => Ok(Self::Name),
            Some(other) => match other.strip_prefix("jsonpath=") {
                Some(template) => Template::parse(template).map(Self::JsonPath),
                None => bail!("-o {other}: there are json, yaml, wide, name and jsonpath=TEMPLATE"),
            },
        }
    }
}

pub(super) async fn run(cluster: &Cluster, arguments: &Get) -> anyhow::Result<()> {
    let format = Format::parse(arguments.output.as_deref())?;
    let kinds = Kinds::discover(cluster).await?;
    let selections = selection::parse(&kinds, &arguments.words)?;
    let named = selections.iter().any(|selection| !selection.names.is_empty());
    if named && (arguments.all_namespaces || arguments.selector.is_some()) {
        bail!("an object is found by its name or by -l and -A, not by both");
    }
    if arguments.watch && (selections.len() > 1 || selections.iter().any(|s| s.names.len() > 1)) {
        bail!("--watch follows one kind or one object");
    }
    let view = View { cluster, arguments };
    match format {
        Format::Table { wide } => view.tables(&selections, wide).await,
        format => view.objects(&selections, &format).await,
    }
}

struct View<'a> {
    cluster: &'a Cluster,
    arguments: &'a Get,
}

impl View<'_> {
    fn namespace(&self) -> Option<&str> {
        (!self.arguments.all_namespaces).then_some(self.cluster.namespace.as_str())
    }

    /// The pages of a collection, or each of the named objects.
    async fn fetch(
        &self,
        selection: &Selection,
        accept: &str,
        failures: &mut Vec<anyhow::Error>,
    ) -> Vec<Value> {
        let mut answers = Vec::new();
        for name in &selection.names {
            let path = selection.kind.object(&self.cluster.namespace, name);
            match self.cluster.get_as(&path, accept).await {
                Ok(answer) => answers.push(answer),
                Err(failure) if self.arguments.ignore_not_found && failure.is_not_found() => {}
                Err(failure) => failures.push(failure.into()),
            }
        }
        if !selection.names.is_empty() {
            return answers;
        }
        let path = selection.kind.collection(self.namespace());
        let mut token = String::new();
        loop {
            let query = [
                ("limit", PAGE),
                ("continue", &token),
                ("labelSelector", self.arguments.selector.as_deref().unwrap_or_default()),
                ("fieldSelector", self.arguments.field_selector.as_deref().unwrap_or_default()),
            ];
            match self.cluster.get_as(&with_query(&path, &query), accept).await {
                Ok(page) => {
                    let next = page["metadata"]["continue"].as_str().unwrap_or_default();
                    token = next.to_owned();
                    answers.push(page);
                }
                Err(failure) => {
                    failures.push(failure.into());
                    return answers;
                }
            }
            if token.is_empty() {
                return answers;
            }
        }
    }

    async fn tables(&self, selections: &[Selection], wide: bool) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        let mut n_rows = 0;
        let mut follow = None;
        let with_header = !self.arguments.no_headers;
        // Beside namespaced kinds, others leave the column empty, as in kubectl.
        let any_namespaced = selections.iter().any(|selection| selection.kind.namespaced);
        for selection in selections {
            let layout = Layout {
                wide,
                namespace: self.arguments.all_namespaces && any_namespaced,
                prefix: if selections.len() > 1 { selection.kind.named("") } else { String::new() },
                labels: self.arguments.show_labels,
            };
            let answers = self.fetch(selection, TABLE, &mut failures).await;
            let mut printer = Printer { columns: Vec::new(), widths: Widths::default(), layout };
            let mut rows = Vec::new();
            let mut revision = String::new();
            for answer in &answers {
                let answer = as_table(answer);
                rows.extend(printer.rows(&answer));
                let at = answer["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                at.clone_into(&mut revision);
            }
            if !rows.is_empty() {
                if n_rows > 0 && with_header {
                    console::line("")?;
                }
                n_rows += rows.len();
                console::write(printer.print(rows, with_header))?;
            }
            follow = Some((selection, printer, revision));
        }
        if n_rows == 0 && failures.is_empty() && !self.arguments.watch {
            self.say_nothing_found(selections);
        }
        if let (true, true, Some((selection, mut printer, revision))) =
            (self.arguments.watch, failures.is_empty(), follow)
        {
            let mut headed = n_rows > 0 || !with_header;
            return self
                .watch(selection, TABLE, revision, |object| {
                    let rows = printer.rows(&as_table(&object));
                    let text = printer.print(rows, !headed);
                    headed = true;
                    console::write(text)
                })
                .await;
        }
        console::all(failures)
    }

    fn say_nothing_found(&self, selections: &[Selection]) {
        if selections.iter().any(|selection| !selection.names.is_empty()) {
            return;
        }
        let namespaced = selections.iter().any(|selection| selection.kind.namespaced);
        match self.namespace() {
            Some(namespace) if namespaced => {
                console::note(format_args!("No resources found in {namespace} namespace."));
            }
            _ => console::note("No resources found"),
        }
    }

    async fn objects(&self, selections: &[Selection], format: &Format) -> anyhow::Result<()> {
        let mut failures = Vec::new();
        let mut objects = Vec::new();
        let mut revision = String::new();
        let single = matches!(selections, [Selection { names, .. }] if names.len() == 1);
        for selection in selections {
            for answer in self.fetch(selection, "application/json", &mut failures).await {
                let at = answer["metadata"]["resourceVersion"].as_str().unwrap_or_default();
                at.clone_into(&mut revision);
                objects.extend(items(answer, &selection.kind));
            }
        }
        let name = |object: &Value| {
            let kinds: Vec<&Kind> = selections.iter().map(|selection| &selection.kind).collect();
            named(&kinds, object)
        };
        objects.iter_mut().for_each(hide_managed_fields);
        if self.arguments.watch {
            for object in &objects {
                console::write(show_one(object, format, &name))?;
            }
            let selection = selections.first().ok_or_else(|| anyhow!("name a kind"))?;
            if failures.is_empty() {
                return self
                    .watch(selection, "application/json", revision, |mut object| {
                        hide_managed_fields(&mut object);
                        console::write(show_one(&object, format, &name))
                    })
                    .await;
            }
            return console::all(failures);
        }
        match (single, objects.as_slice()) {
            (true, []) => {}
            (true, [object]) => console::write(show_one(object, format, &name))?,
            _ => match format {
                Format::Name => {
                    let lines: String = objects.iter().map(|o| name(o) + "\n").collect();
                    if lines.is_empty() && failures.is_empty() {
                        self.say_nothing_found(selections);
                    }
                    console::write(lines)?;
                }
                _ => {
                    let list = json!({
                        "apiVersion": "v1", "kind": "List", "items": objects,
                        "metadata": {"resourceVersion": ""},
                    });
                    console::write(show_one(&list, format, &name))?;
                }
            },
        }
        console::all(failures)
    }

    /// Follows changes until the connection ends for good.
    async fn watch(
        &self,
        selection: &Selection,
        accept: &str,
        revision: String,
        mut show: impl FnMut(Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut revision = revision;
        let path = selection.kind.collection(self.namespace());
        let by_name = selection.names.first().map(|name| format!("metadata.name={name}"));
        let fields = by_name.or_else(|| self.arguments.field_selector.clone()).unwrap_or_default();
        loop {
            let query = [
                ("watch", "true"),
                ("resourceVersion", revision.as_str()),
                ("labelSelector", self.arguments.selector.as_deref().unwrap_or_default()),
                ("fieldSelector", &fields),
                ("allowWatchBookmarks", "true"),
            ];
            let mut events = self.cluster.stream_as(&with_query(&path, &query), accept).await?;
            while let Some((kind, object)) = events.event().await? {
                if let Some(at) = object["metadata"]["resourceVersion"]
                    .as_str()
                    .or_else(|| object["rows"][0]["object"]["metadata"]["resourceVersion"].as_str())
                {
                    at.clone_into(&mut revision);
                }
                if kind != "BOOKMARK" {
                    show(object)?;
                }
            }
            // The server ends watches now and then; they go on where they were.
        }
    }
}

/// A table as it is printed, page by page and then change by change.
struct Printer {
    columns: Vec<Column>,
    widths: Widths,
    layout: Layout,
}

impl Printer {
    fn rows(&mut self, answer: &Value) -> Vec<Vec<String>> {
        if let Some(columns) = table::columns(answer) {
            self.columns = columns;
        }
        let rows = answer["rows"].as_array().into_iter().flatten();
        rows.map(|row| table::row(&self.columns, row, &self.layout)).collect()
    }

    fn print(&mut self, rows: Vec<Vec<String>>, with_header: bool) -> String {
        let header = table::header(&self.columns, &self.layout);
        Table { header, rows }.render(with_header, &mut self.widths)
    }
}

/// The answer as a table; one of our own where the server makes none.
fn as_table(answer: &Value) -> Value {
    if answer["kind"] == "Table" {
        return answer.clone();
    }
    let now = jiff::Timestamp::now();
    let row = |object: &Value| {
        let age = crate::text::since(api::meta::creation_timestamp(object), now);
        json!({"cells": [api::meta::name(object), age], "object": {"metadata": object["metadata"]}})
    };
    let rows: Vec<Value> = match answer["items"].as_array() {
        Some(items) => items.iter().map(row).collect(),
        None => vec![row(answer)],
    };
    json!({
        "kind": "Table", "metadata": answer["metadata"], "rows": rows,
        "columnDefinitions": [{"name": "Name", "priority": 0}, {"name": "Age", "priority": 0}],
    })
}

/// The objects of an answer; those of a list are told what they are.
fn items(mut answer: Value, kind: &Kind) -> Vec<Value> {
    let Value::Array(items) = answer["items"].take() else { return vec![strip_items(answer)] };
    let typed = |mut object: Value| {
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.as_str().into();
        object
    };
    items.into_iter().map(typed).collect()
}

/// An object without the `items` that indexing it has made.
fn strip_items(mut object: Value) -> Value {
    if let Some(map) = object.as_object_mut()
        && map.get("items").is_some_and(Value::is_null)
    {
        map.shift_remove("items");
    }
    object
}

fn hide_managed_fields(object: &mut Value) {
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.shift_remove("managedFields");
    }
}

fn named(kinds: &[&Kind], object: &Value) -> String {
    let name = api::meta::name(object);
    let kind = kinds.iter().find(|kind| {
        kind.kind == api::meta::kind(object)
            && kind.api_version() == api::meta::object_api_version(object)
    });
    kind.map_or_else(|| name.to_owned(), |kind| kind.named(name))
}

fn show_one(object: &Value, format: &Format, name: &dyn Fn(&Value) -> String) -> String {
    match format {
        Format::Yaml => yaml::emit(object),
        Format::Name => name(object) + "\n",
        Format::JsonPath(template) => template.fill(object),
        Format::Json | Format::Table { .. } => json_text(object),
    }
}

/// JSON as `kubectl` writes it: keys sorted, four spaces a level.
fn json_text(object: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    sorted(object).serialize(&mut serializer).expect("a value is JSON");
    let mut text = String::from_utf8(out).expect("JSON is UTF-8");
    text.push('\n');
    text
}

fn sorted(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<_> = map.iter().collect();
            entries.sort_by(|a, b| a.0.cmp(b.0));
            Value::Object(entries.into_iter().map(|(k, v)| (k.clone(), sorted(v))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(sorted).collect()),
        other => other.clone(),
    }
}

/// All objects of a collection, whole.
pub(super) async fn list(
    cluster: &Cluster,
    kind: &Kind,
    namespace: Option<&str>,
    selector: &str,
    fields: &str,
) -> Result<Vec<Value>, Failure> {
    let mut objects = Vec::new();
    let mut token = String::new();
    loop {
        let query = [
            ("limit", PAGE),
            ("continue", token.as_str()),
            ("labelSelector", selector),
            ("fieldSelector", fields),
        ];
        let page = cluster.get(&with_query(&kind.collection(namespace), &query)).await?;
        let next = page["metadata"]["continue"].as_str().unwrap_or_default().to_owned();
        objects.extend(items(page, kind));
        if next.is_empty() {
            return Ok(objects);
        }
        token = next;
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn json_is_sorted_and_indented_as_in_kubectl() {
        expect![[r#"
            {
                "a": [
                    1,
                    {
                        "c": 2,
                        "d": 1
                    }
                ],
                "b": {}
            }
        "#]]
        .assert_eq(&json_text(&json!({"b": {}, "a": [1, {"d": 1, "c": 2}]})));
    }

    #[test]
    fn a_server_without_tables_gets_one_of_ours() {
        let list = json!({"kind": "PodList", "metadata": {"resourceVersion": "7"}, "items": [
            {"metadata": {"name": "a", "creationTimestamp": "x"}}]});
        let table = as_table(&list);
        assert_eq!(table["rows"][0]["cells"], json!(["a", "<unknown>"]));
        assert_eq!(table["metadata"]["resourceVersion"], "7");
    }

    #[test]
    fn objects_of_a_list_are_told_what_they_are() {
        let kind = Kind::pods();
        let list = json!({"kind": "PodList", "items": [{"metadata": {"name": "a"}}]});
        assert_eq!(items(list, &kind)[0]["kind"], "Pod");
        let one = json!({"kind": "Pod", "metadata": {"name": "a"}});
        assert_eq!(items(one.clone(), &kind), [one]);
    }
}
