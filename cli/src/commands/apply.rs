//! `pinnace apply`: brings objects to what manifests say, by server-side apply.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, anyhow};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::arguments::Apply;
use crate::cluster::{Cluster, Content};
use crate::console;
use crate::failure::{Failure, Refusal, is_not_found};
use crate::kinds::{Kind, Kinds};
use crate::manifest::{self, Document, Place};
use crate::progress::{self, Workload};
use crate::rollout::{self, Progress};
use crate::urls::with_query;

/// Who owns the fields that are applied.
const FIELD_MANAGER: &str = "pinnace";

pub(super) async fn run(cluster: &Cluster, arguments: &Apply) -> anyhow::Result<()> {
    let manifests = manifest::read(&arguments.files, arguments.recursive)?;
    let mut failures = manifests.failures;
    let mut documents = manifests.documents;
    documents.sort_by_key(rank);
    failures.extend(doubles(&documents));
    let kinds = Kinds::discover(cluster).await?;
    let namespaces: BTreeSet<String> = documents
        .iter()
        .filter(|document| document.text("kind") == "Namespace")
        .map(|document| api::meta::name(&document.object).to_owned())
        .collect();
    let mut workloads = Vec::new();
    for document in &documents {
        match apply(cluster, &kinds, document, arguments, &namespaces).await {
            Ok(applied) => {
                console::line(applied.line)?;
                workloads.extend(applied.workload);
            }
            Err(error) if console::is_closed(&error) => return Err(error),
            Err(error) => failures.push(error.context(document.place.to_string())),
        }
    }
    if arguments.wait && !arguments.dry_run {
        // What failed is told at once; the rest is worth waiting for all the same.
        for failure in std::mem::take(&mut failures) {
            console::error(&failure);
            failures.push(failure);
        }
        let told = !failures.is_empty();
        let waited = progress::wait(cluster, workloads, arguments.timeout).await;
        return match (waited, told) {
            (Ok(()), true) => Err(anyhow!("not everything was applied, see above")),
            (waited, _) => waited,
        };
    }
    console::all(failures)
}

/// Namespaces go before what may live in them, definitions before their objects.
fn rank(document: &Document) -> u8 {
    match document.text("kind") {
        "Namespace" => 0,
        "CustomResourceDefinition" => 1,
        "ServiceAccount" | "ConfigMap" | "Secret" => 2,
        _ => 3,
    }
}

/// One failure for each object that is described twice: only the last would count.
fn doubles(documents: &[Document]) -> Vec<anyhow::Error> {
    let mut seen: BTreeMap<(String, String, String, String), &Place> = BTreeMap::new();
    let mut failures = Vec::new();
    for document in documents {
        let key = (
            document.text("apiVersion").to_owned(),
            document.text("kind").to_owned(),
            api::meta::namespace(&document.object).to_owned(),
            api::meta::name(&document.object).to_owned(),
        );
        if let Some(first) = seen.get(&key) {
            let (_, kind, _, name) = key;
            failures.push(anyhow!(
                "{}: {kind} \"{name}\" is described already, in {first}: leave one of them out",
                document.place
            ));
        } else {
            seen.insert(key, &document.place);
        }
    }
    failures
}

struct Applied {
    line: String,
    workload: Option<Workload>,
}

async fn apply(
    cluster: &Cluster,
    kinds: &Kinds,
    document: &Document,
    arguments: &Apply,
    namespaces: &BTreeSet<String>,
) -> anyhow::Result<Applied> {
    let kind = kinds.of(document.text("apiVersion"), document.text("kind"))?;
    let name = api::meta::name(&document.object).to_owned();
    let named = kind.named(&name);
    let namespace = namespace_of(cluster, &kind, &document.object)?;
    let mut object = document.object.clone();
    if kind.namespaced {
        object["metadata"]["namespace"] = namespace.as_str().into();
    }
    let path = kind.object(&namespace, &name);
    let before = cluster.find(&path).await.with_context(|| named.clone())?;
    let url = |force: bool| {
        let query = [
            ("fieldManager", FIELD_MANAGER),
            ("fieldValidation", "Strict"),
            ("force", if force { "true" } else { "" }),
            ("dryRun", if arguments.dry_run { "All" } else { "" }),
        ];
        with_query(&path, &query)
    };
    let write = async |force: bool| {
        cluster.write(Method::PATCH, &url(force), Content::ApplyPatch, &object).await
    };
    let suffix = if arguments.dry_run { " (server dry run)" } else { "" };
    let mut answer = write(arguments.force_conflicts).await;
    if let Err(Failure::Refused(refusal)) = &answer
        && let Some(fields) = own_conflicts(refusal)
    {
        console::warning(&format!(
            "{named}: {fields} was changed by pinnace since the last apply; the manifest counts"
        ));
        answer = write(true).await;
    }
    let answer = match answer {
        Ok(answer) => answer,
        // In a dry run, the namespaces of the same manifests do not come to be.
        Err(failure)
            if arguments.dry_run
                && before.is_none()
                && namespaces.contains(&namespace)
                && is_missing_namespace(&failure) =>
        {
            let line =
                format!("{named} not checked: namespace {namespace} does not exist yet{suffix}");
            return Ok(Applied { line, workload: None });
        }
        Err(failure) => return Err(anyhow::Error::new(failure).context(named)),
    };
    let result = match &before {
        _ if answer.status == StatusCode::CREATED => "created",
        None => "created",
        Some(before) if essence(before) == essence(&answer.body) => "unchanged",
        Some(_) => "configured",
    };
    let line = format!("{named} {result}{suffix}");
    let waits = !matches!(rollout::progress(&answer.body), Progress::Nothing);
    let workload = waits.then_some(Workload { name: named, path });
    Ok(Applied { line, workload })
}

/// The fields in conflict, where only other commands of this program own them:
/// after `pinnace scale`, say, a manifest may take `spec.replicas` back.
fn own_conflicts(refusal: &Refusal) -> Option<String> {
    let own = format!("conflict with \"{FIELD_MANAGER}\"");
    let is_conflict = refusal.code == 409 && refusal.message.starts_with("Apply failed");
    let all_own = refusal.causes.iter().all(|(_, message)| message.starts_with(&own));
    if !is_conflict || refusal.causes.is_empty() || !all_own {
        return None;
    }
    let fields: Vec<&str> = refusal.causes.iter().map(|(field, _)| field.as_str()).collect();
    Some(fields.join(", "))
}

fn is_missing_namespace(failure: &Failure) -> bool {
    matches!(failure, Failure::Refused(refusal) if refusal.code == 404 && refusal.kind == "namespaces")
}

/// The namespace an object belongs to; `-n` must not contradict the manifest.
pub(super) fn namespace_of(
    cluster: &Cluster,
    kind: &Kind,
    object: &Value,
) -> anyhow::Result<String> {
    let own = api::meta::namespace(object);
    if !kind.namespaced {
        return Ok(String::new());
    }
    if own.is_empty() {
        return Ok(cluster.namespace.clone());
    }
    if cluster.namespace_given && own != cluster.namespace {
        return Err(anyhow!(
            "{} is for namespace \"{own}\", but --namespace says \"{}\": leave one of them out",
            kind.named(api::meta::name(object)),
            cluster.namespace
        ));
    }
    Ok(own.to_owned())
}

/// What an apply can change: all but the status and the bookkeeping.
fn essence(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(map) = object.as_object_mut() {
        map.shift_remove("status");
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for key in ["managedFields", "resourceVersion", "generation"] {
            metadata.shift_remove(key);
        }
    }
    object
}

/// What deletes objects of manifests, in an order that leaves namespaces for last.
pub(super) async fn delete(
    cluster: &Cluster,
    arguments: &crate::arguments::Delete,
) -> anyhow::Result<(Vec<(Kind, String, String)>, Vec<anyhow::Error>)> {
    let manifests = manifest::read(&arguments.files, arguments.recursive)?;
    let mut failures = manifests.failures;
    let mut documents = manifests.documents;
    documents.sort_by_key(|document| std::cmp::Reverse(rank(document)));
    let kinds = Kinds::discover(cluster).await?;
    let mut targets = Vec::new();
    for document in &documents {
        let target = kinds
            .of(document.text("apiVersion"), document.text("kind"))
            .and_then(|kind| Ok((namespace_of(cluster, &kind, &document.object)?, kind)));
        match target {
            Ok((namespace, kind)) => {
                targets.push((kind, namespace, api::meta::name(&document.object).to_owned()));
            }
            Err(error) => failures.push(error.context(document.place.to_string())),
        }
    }
    Ok((targets, failures))
}

/// Sends a patch that changes one thing of an object.
pub(super) async fn patch(
    cluster: &Cluster,
    path: &str,
    content: Content,
    body: &Value,
) -> Result<Value, Failure> {
    let url = with_query(path, &[("fieldManager", FIELD_MANAGER)]);
    Ok(cluster.write(Method::PATCH, &url, content, body).await?.body)
}

/// Creates an object in a collection.
pub(super) async fn create(
    cluster: &Cluster,
    collection: &str,
    body: &Value,
) -> Result<Value, Failure> {
    let url = with_query(collection, &[("fieldManager", FIELD_MANAGER)]);
    Ok(cluster.write(Method::POST, &url, Content::Json, body).await?.body)
}

/// Deletes one object; whether it was there.
pub(super) async fn remove(cluster: &Cluster, path: &str) -> anyhow::Result<bool> {
    let body = json!({"propagationPolicy": "Background"});
    match cluster.write(Method::DELETE, path, Content::Json, &body).await {
        Ok(_) => Ok(true),
        Err(failure) => {
            let error = anyhow::Error::new(failure);
            if is_not_found(&error) { Ok(false) } else { Err(error) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(n: usize, kind: &str, name: &str) -> Document {
        Document {
            place: Place { file: "a.yaml".to_owned(), document: n, line: n },
            object: json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}}),
        }
    }

    #[test]
    fn namespaces_come_first_and_the_rest_keeps_its_order() {
        let mut documents = [
            document(1, "Pod", "b"),
            document(2, "ConfigMap", "c"),
            document(3, "Pod", "a"),
            document(4, "Namespace", "n"),
        ];
        documents.sort_by_key(rank);
        let order: Vec<usize> = documents.iter().map(|d| d.place.document).collect();
        assert_eq!(order, [4, 2, 1, 3]);
    }

    #[test]
    fn an_object_that_is_described_twice_is_named() {
        let documents = [document(1, "Pod", "a"), document(2, "Pod", "a"), document(3, "Pod", "b")];
        let failures: Vec<String> = doubles(&documents).iter().map(ToString::to_string).collect();
        assert_eq!(
            failures,
            ["a.yaml, document 2 (line 2): Pod \"a\" is described already, in a.yaml, document 1 \
              (line 1): leave one of them out"]
        );
    }

    #[test]
    fn only_conflicts_with_ourselves_are_ours_to_settle() {
        let refusal = |managers: &[&str]| Refusal {
            code: 409,
            message: "Apply failed with conflicts".to_owned(),
            causes: managers
                .iter()
                .map(|manager| {
                    (".spec.replicas".to_owned(), format!("conflict with \"{manager}\" using v1"))
                })
                .collect(),
            ..Refusal::default()
        };
        assert_eq!(own_conflicts(&refusal(&["pinnace"])).as_deref(), Some(".spec.replicas"));
        assert_eq!(own_conflicts(&refusal(&["pinnace", "kubectl"])), None);
        assert_eq!(own_conflicts(&refusal(&["pinnace-other"])), None);
        assert_eq!(own_conflicts(&refusal(&[])), None);
    }

    #[test]
    fn only_what_an_apply_can_change_counts_as_a_change() {
        let before =
            json!({"metadata": {"resourceVersion": "1", "labels": {}}, "spec": 1, "status": 1});
        let after =
            json!({"metadata": {"resourceVersion": "2", "labels": {}}, "spec": 1, "status": 2});
        assert_eq!(essence(&before), essence(&after));
        let labelled = json!({"metadata": {"labels": {"a": "b"}}, "spec": 1});
        assert_ne!(essence(&before), essence(&labelled));
    }
}
