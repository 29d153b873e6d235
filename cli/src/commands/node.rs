//! `pinnace node`: the boards of the cluster.

use anyhow::{Context, anyhow, bail};
use serde_json::{Map, Value, json};

use super::apply::{patch, remove};
use super::token::cluster_info;
use crate::arguments::Node;
use crate::cluster::{Cluster, Content};
use crate::console;
use crate::kinds::Kind;
use crate::table::{self, Layout, Table, Widths};

/// Says how often a node is heard from.
const PROFILE_LABEL: &str = "pinnace.io/link-profile";
/// Set to the store's epoch when an operator has looked at a node after a restore.
const CONFIRMED: &str = "pinnace.io/restore-confirmed";
/// Key of the store's epoch in the cluster's description.
const INFO_EPOCH: &str = "epoch";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

pub(super) async fn run(cluster: &Cluster, command: &Node) -> anyhow::Result<()> {
    match command {
        Node::List => list(cluster).await,
        Node::Cordon { names } => set_unschedulable(cluster, names, true).await,
        Node::Uncordon { names } => set_unschedulable(cluster, names, false).await,
        Node::Delete { names, yes } => delete(cluster, names, *yes).await,
        Node::Label { name, labels } => label(cluster, name, labels).await,
        Node::Confirm { names, all } => confirm(cluster, names, *all).await,
    }
}

fn path(name: &str) -> String {
    Kind::nodes().object("", name)
}

async fn list(cluster: &Cluster) -> anyhow::Result<()> {
    let answer = cluster.get_as(&Kind::nodes().collection(None), TABLE).await?;
    let Some(columns) = table::columns(&answer) else {
        bail!("{} does not make tables", cluster.server)
    };
    let layout = Layout::default();
    let mut header = table::header(&columns, &layout);
    header.push("PROFILE".to_owned());
    let rows: Vec<Vec<String>> = answer["rows"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|row| {
            let mut texts = table::row(&columns, row, &layout);
            let labels = &row["object"]["metadata"]["labels"];
            texts.push(labels[PROFILE_LABEL].as_str().unwrap_or("<default>").to_owned());
            texts
        })
        .collect();
    if rows.is_empty() {
        console::note("No nodes found: let a board join with `pinnace token create`");
        return Ok(());
    }
    console::write(Table { header, rows }.render(true, &mut Widths::default()))
}

async fn set_unschedulable(
    cluster: &Cluster,
    names: &[String],
    unschedulable: bool,
) -> anyhow::Result<()> {
    let word = if unschedulable { "cordoned" } else { "uncordoned" };
    let mut failures = Vec::new();
    for name in names {
        let changed = async {
            let node = cluster.get(&path(name)).await?;
            if (node["spec"]["unschedulable"] == true) == unschedulable {
                return console::line(format_args!("node/{name} already {word}"));
            }
            let value = if unschedulable { json!(true) } else { Value::Null };
            let body = json!({"spec": {"unschedulable": value}});
            patch(cluster, &path(name), Content::StrategicMergePatch, &body).await?;
            console::line(format_args!("node/{name} {word}"))
        };
        match changed.await {
            Err(error) if console::is_closed(&error) => return Err(error),
            Err(error) => failures.push(error),
            Ok(()) => {}
        }
    }
    console::all(failures)
}

async fn delete(cluster: &Cluster, names: &[String], yes: bool) -> anyhow::Result<()> {
    console::note(format_args!(
        "Removing a node takes it out of the cluster: its pods are deleted and replaced on other \
         nodes,\nand its certificate is no longer accepted. The board itself stops them only if \
         it is still\nconnected; to come back it has to join again (`pinnace token create`)."
    ));
    if !yes {
        let question = format!("Remove {}?", names.join(", "));
        if console::confirm(&question) == Some(false) {
            bail!("nothing was removed");
        }
    }
    let mut failures = Vec::new();
    for name in names {
        match remove(cluster, &path(name)).await {
            Ok(true) => console::line(format_args!("node/{name} deleted"))?,
            Ok(false) => failures.push(anyhow!("nodes \"{name}\" not found")),
            Err(error) => failures.push(error),
        }
    }
    console::all(failures)
}

async fn label(cluster: &Cluster, name: &str, labels: &[String]) -> anyhow::Result<()> {
    let body = json!({"metadata": {"labels": changes(labels)?}});
    patch(cluster, &path(name), Content::MergePatch, &body).await?;
    console::line(format_args!("node/{name} labeled"))
}

/// `KEY=VALUE` sets, `KEY-` removes.
fn changes(labels: &[String]) -> anyhow::Result<Map<String, Value>> {
    let mut changes = Map::new();
    for word in labels {
        let (key, value) = match (word.split_once('='), word.strip_suffix('-')) {
            (Some((key, value)), _) => (key, json!(value)),
            (None, Some(key)) => (key, Value::Null),
            (None, None) => bail!("\"{word}\": write KEY=VALUE to set a label, KEY- to remove it"),
        };
        let mut problems = api::names::qualified_name(key);
        problems.extend(value.as_str().map(api::names::label_value).unwrap_or_default());
        if let Some(problem) = problems.first() {
            bail!("label \"{word}\": {problem}");
        }
        changes.insert(key.to_owned(), value);
    }
    Ok(changes)
}

async fn confirm(cluster: &Cluster, names: &[String], all: bool) -> anyhow::Result<()> {
    let info = cluster_info(cluster).await?;
    let epoch = info["data"][INFO_EPOCH].as_str().filter(|epoch| !epoch.is_empty());
    let epoch = epoch.context("the master does not say which store it has: it may be older")?;
    let names = if all {
        let nodes = super::get::list(cluster, &Kind::nodes(), None, "", "").await?;
        nodes.iter().map(|node| api::meta::name(node).to_owned()).collect()
    } else {
        names.to_vec()
    };
    let mut failures = Vec::new();
    for name in &names {
        let body = json!({"metadata": {"annotations": {CONFIRMED: epoch}}});
        match patch(cluster, &path(name), Content::MergePatch, &body).await {
            Ok(_) => console::line(format_args!("node/{name} confirmed"))?,
            Err(failure) => failures.push(failure.into()),
        }
    }
    console::all(failures)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_set_and_removed() {
        let words = |words: &[&str]| -> Vec<String> {
            words.iter().map(|word| (*word).to_owned()).collect()
        };
        let set =
            changes(&words(&["site=north", "pinnace.io/link-profile=lan", "old-", "x="])).unwrap();
        assert_eq!(
            Value::Object(set),
            json!({"site": "north", "pinnace.io/link-profile": "lan", "old": null, "x": ""})
        );
        for bad in ["site", "a b=c", "a=b c", "=x", "-"] {
            assert!(changes(&words(&[bad])).is_err(), "{bad}");
        }
    }
}
