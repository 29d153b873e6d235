//! `pinnace rollout`: follow and steer rollouts.

use anyhow::{anyhow, bail};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use super::apply::patch;
use crate::arguments::Rollout;
use crate::cluster::{Cluster, Content};
use crate::kinds::{Kind, Kinds};
use crate::rollout::{Progress, progress};
use crate::{console, selection, stuck, table, yaml};

const REVISION: &str = "deployment.kubernetes.io/revision";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const RESTARTED_AT: &str = "kubectl.kubernetes.io/restartedAt";
const TEMPLATE_HASH: &str = "pod-template-hash";
/// Time between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(300);

pub(super) async fn run(cluster: &Cluster, command: &Rollout) -> anyhow::Result<()> {
    let kinds = Kinds::discover(cluster).await?;
    match command {
        Rollout::Status { words, timeout, watch } => {
            let (kind, name) = selection::one(&kinds, words)?;
            status(cluster, &kind, &name, *timeout, *watch).await
        }
        Rollout::History { words, revision } => {
            let (kind, name) = selection::one(&kinds, words)?;
            history(cluster, &kinds, &kind, &name, *revision).await
        }
        Rollout::Undo { words, to_revision } => {
            let (kind, name) = selection::one(&kinds, words)?;
            undo(cluster, &kinds, &kind, &name, *to_revision).await
        }
        Rollout::Restart { words } => {
            let (kind, name) = selection::one(&kinds, words)?;
            let deployment = deployment(cluster, &kind, &name).await?;
            if deployment["spec"]["paused"] == true {
                bail!("{} is paused: resume it first", kind.named(&name));
            }
            let now = api::time::rfc3339(jiff::Timestamp::now());
            let body =
                json!({"spec": {"template": {"metadata": {"annotations": {RESTARTED_AT: now}}}}});
            steer(cluster, &kind, &name, &body, "restarted").await
        }
        Rollout::Pause { words } => {
            let (kind, name) = selection::one(&kinds, words)?;
            set_paused(cluster, &kind, &name, true).await
        }
        Rollout::Resume { words } => {
            let (kind, name) = selection::one(&kinds, words)?;
            set_paused(cluster, &kind, &name, false).await
        }
    }
}

async fn steer(
    cluster: &Cluster,
    kind: &Kind,
    name: &str,
    body: &Value,
    done: &str,
) -> anyhow::Result<()> {
    let path = kind.object(&cluster.namespace, name);
    patch(cluster, &path, Content::StrategicMergePatch, body).await?;
    console::line(format_args!("{} {done}", kind.named(name)))
}

async fn deployment(cluster: &Cluster, kind: &Kind, name: &str) -> anyhow::Result<Value> {
    if kind.kind != "Deployment" {
        bail!("{}: only deployments have rollouts to steer", kind.named(name));
    }
    Ok(cluster.get(&kind.object(&cluster.namespace, name)).await?)
}

async fn set_paused(
    cluster: &Cluster,
    kind: &Kind,
    name: &str,
    paused: bool,
) -> anyhow::Result<()> {
    let deployment = deployment(cluster, kind, name).await?;
    let is_paused = deployment["spec"]["paused"] == true;
    let word = if paused { "paused" } else { "resumed" };
    if is_paused == paused {
        bail!("{} is {} already", kind.named(name), if paused { "paused" } else { "running" });
    }
    let body = json!({"spec": {"paused": if paused { json!(true) } else { Value::Null }}});
    steer(cluster, kind, name, &body, word).await
}

async fn status(
    cluster: &Cluster,
    kind: &Kind,
    name: &str,
    timeout: Duration,
    watch: bool,
) -> anyhow::Result<()> {
    let path = kind.object(&cluster.namespace, name);
    let start = Instant::now();
    let mut last = String::new();
    loop {
        let object = cluster.get(&path).await?;
        match progress(&object) {
            Progress::Nothing => bail!("{}: there is no rollout of such objects", kind.named(name)),
            Progress::Done(message) => return console::line(message),
            Progress::Failed(message) => {
                let reasons = stuck::reasons(cluster, &object).await.unwrap_or_default();
                return Err(with_reasons(message, &reasons));
            }
            Progress::Waiting { message, .. } => {
                if message != last {
                    console::line(&message)?;
                    last = message;
                }
                if !watch {
                    return Ok(());
                }
                if start.elapsed() >= timeout {
                    let reasons = stuck::reasons(cluster, &object).await.unwrap_or_default();
                    let message =
                        format!("{} is not done after {} s", kind.named(name), timeout.as_secs());
                    return Err(with_reasons(message, &reasons));
                }
            }
        }
        sleep(LOOK_EVERY).await;
    }
}

fn with_reasons(message: String, reasons: &[String]) -> anyhow::Error {
    let lines: String = reasons.iter().map(|reason| format!("\n  {reason}")).collect();
    anyhow!("{message}{lines}")
}

/// The revisions of a deployment, oldest first: number and ReplicaSet.
async fn revisions(
    cluster: &Cluster,
    kinds: &Kinds,
    deployment: &Value,
) -> anyhow::Result<Vec<(u64, Value)>> {
    let sets = kinds.one("replicasets.apps")?;
    let selector = stuck::selector(&deployment["spec"]["selector"]);
    let namespace = api::meta::namespace(deployment);
    let sets = super::get::list(cluster, &sets, Some(namespace), &selector, "").await?;
    Ok(own_revisions(sets, api::meta::uid(deployment)))
}

fn own_revisions(sets: Vec<Value>, uid: &str) -> Vec<(u64, Value)> {
    let mut revisions: Vec<(u64, Value)> = sets
        .into_iter()
        .filter(|set| api::meta::controller(set).is_some_and(|owner| owner.uid == uid))
        .filter_map(|set| {
            let revision = api::meta::annotation(&set, REVISION)?.parse().ok()?;
            Some((revision, set))
        })
        .collect();
    revisions.sort_by_key(|(revision, _)| *revision);
    revisions
}

async fn history(
    cluster: &Cluster,
    kinds: &Kinds,
    kind: &Kind,
    name: &str,
    wanted: Option<u64>,
) -> anyhow::Result<()> {
    let deployment = deployment(cluster, kind, name).await?;
    let revisions = revisions(cluster, kinds, &deployment).await?;
    if let Some(wanted) = wanted {
        let set = &find(&revisions, wanted)?.1;
        let heading = format!("{} with revision #{wanted}", kind.named(name));
        let template = yaml::emit(&template(set));
        return console::write(format!("{heading}\n{template}"));
    }
    let rows = revisions
        .iter()
        .map(|(revision, set)| {
            let cause = api::meta::annotation(set, CHANGE_CAUSE).unwrap_or("<none>");
            [revision.to_string(), cause.to_owned()]
        })
        .collect();
    console::line(format_args!("{} ", kind.named(name)))?;
    console::write(table::simple(["REVISION", "CHANGE-CAUSE"], rows))
}

fn find(revisions: &[(u64, Value)], wanted: u64) -> anyhow::Result<&(u64, Value)> {
    revisions.iter().find(|(revision, _)| *revision == wanted).ok_or_else(|| {
        let known: Vec<String> = revisions.iter().map(|(r, _)| r.to_string()).collect();
        anyhow!("there is no revision {wanted}: there are {}", known.join(", "))
    })
}

/// The pod template of a revision, as it was before the controller marked it.
fn template(set: &Value) -> Value {
    let mut template = set["spec"]["template"].clone();
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.shift_remove(TEMPLATE_HASH);
    }
    template
}

async fn undo(
    cluster: &Cluster,
    kinds: &Kinds,
    kind: &Kind,
    name: &str,
    wanted: Option<u64>,
) -> anyhow::Result<()> {
    let deployment = deployment(cluster, kind, name).await?;
    if deployment["spec"]["paused"] == true {
        bail!("{} is paused: resume it first", kind.named(name));
    }
    let revisions = revisions(cluster, kinds, &deployment).await?;
    let (_, set) = match wanted {
        Some(wanted) => find(&revisions, wanted)?,
        None => revisions
            .len()
            .checked_sub(2)
            .and_then(|at| revisions.get(at))
            .ok_or_else(|| anyhow!("{} has no earlier revision", kind.named(name)))?,
    };
    let template = template(set);
    let mut current = json!({"spec": {"template": deployment["spec"]["template"]}});
    current = self::template(&current);
    if current == template {
        let named = kind.named(name);
        return console::line(format_args!(
            "{named} skipped rollback (current template already matches)"
        ));
    }
    // Fails where somebody changed the deployment since it was read.
    let version = api::meta::resource_version(&deployment);
    let body = json!([
        {"op": "test", "path": "/metadata/resourceVersion", "value": version},
        {"op": "replace", "path": "/spec/template", "value": template},
    ]);
    let path = kind.object(&cluster.namespace, name);
    patch(cluster, &path, Content::JsonPatch, &body).await?;
    console::line(format_args!("{} rolled back", kind.named(name)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(revision: &str, uid: &str) -> Value {
        json!({"metadata": {
            "annotations": {REVISION: revision},
            "ownerReferences": [{"uid": uid, "controller": true}],
        }})
    }

    #[test]
    fn revisions_are_those_of_the_deployment_in_order() {
        let sets = vec![set("10", "a"), set("9", "a"), set("11", "b"), set("x", "a")];
        let revisions: Vec<u64> = own_revisions(sets, "a").iter().map(|(n, _)| *n).collect();
        assert_eq!(revisions, [9, 10]);
    }

    #[test]
    fn a_template_is_restored_without_the_controllers_mark() {
        let set = json!({"spec": {"template": {
            "metadata": {"labels": {"app": "web", TEMPLATE_HASH: "abc"}}, "spec": {"x": 1}}}});
        let expected = json!({"metadata": {"labels": {"app": "web"}}, "spec": {"x": 1}});
        assert_eq!(template(&set), expected);
        assert_eq!(
            find(&[(1, json!({}))], 2).unwrap_err().to_string(),
            "there is no revision 2: there are 1"
        );
    }
}
