//! `pinnace delete`.

use anyhow::{anyhow, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::time::{Duration, Instant, sleep};

use crate::arguments::Delete;
use crate::cluster::{Cluster, Content};
use crate::kinds::{Kind, Kinds};
use crate::{console, selection};

/// Time between two looks whether an object is gone.
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// An object that goes away.
struct Going {
    named: String,
    path: String,
    uid: String,
}

pub(super) async fn run(cluster: &Cluster, arguments: &Delete) -> anyhow::Result<()> {
    let (targets, mut failures) = if arguments.files.is_empty() {
        (targets(cluster, arguments).await?, Vec::new())
    } else {
        super::apply::delete(cluster, arguments).await?
    };
    if targets.is_empty() && failures.is_empty() {
        console::note("No resources found");
    }
    let mut going = Vec::new();
    for (kind, namespace, name) in targets {
        let named = kind.named(&name);
        let path = kind.object(&namespace, &name);
        match delete(cluster, &path, arguments).await {
            Ok(uid) => {
                let forced = if arguments.force { " force deleted" } else { " deleted" };
                // As kubectl: the name in quotes, and where it was.
                let place = if namespace.is_empty() {
                    String::new()
                } else {
                    format!(" from {namespace} namespace")
                };
                let kind = kind.qualified_singular();
                console::line(format_args!("{kind} \"{name}\"{forced}{place}"))?;
                going.push(Going { named, path, uid });
            }
            Err(error) if arguments.ignore_not_found && crate::failure::is_not_found(&error) => {}
            Err(error) => failures.push(error),
        }
    }
    if arguments.wait {
        failures.extend(wait(cluster, going, arguments.timeout).await);
    }
    console::all(failures)
}

/// The objects that the words of the command line name.
async fn targets(
    cluster: &Cluster,
    arguments: &Delete,
) -> anyhow::Result<Vec<(Kind, String, String)>> {
    let kinds = Kinds::discover(cluster).await?;
    let mut targets = Vec::new();
    for selection in selection::parse(&kinds, &arguments.words)? {
        let kind = selection.kind;
        let namespace = if kind.namespaced { cluster.namespace.as_str() } else { "" };
        let mut names = selection.names;
        if names.is_empty() {
            if arguments.selector.is_none() && !arguments.all {
                bail!("{}: name the objects, or choose them with -l or --all", kind.plural);
            }
            let selector = arguments.selector.as_deref().unwrap_or_default();
            let objects = super::get::list(cluster, &kind, Some(namespace), selector, "").await?;
            names = objects.iter().map(|object| api::meta::name(object).to_owned()).collect();
        } else if arguments.selector.is_some() || arguments.all {
            bail!("name the objects, or choose them with -l or --all, not both");
        }
        targets.extend(names.into_iter().map(|n| (kind.clone(), namespace.to_owned(), n)));
    }
    Ok(targets)
}

/// Asks for the deletion; the uid of what goes.
async fn delete(cluster: &Cluster, path: &str, arguments: &Delete) -> anyhow::Result<String> {
    let mut body = json!({"propagationPolicy": "Background"});
    let grace = arguments.grace_period.or_else(|| arguments.force.then_some(0));
    if let Some(grace) = grace {
        body["gracePeriodSeconds"] = grace.into();
    }
    let answer = cluster.write(Method::DELETE, path, Content::Json, &body).await?.body;
    let uid = |value: &Value| value["uid"].as_str().map(str::to_owned);
    Ok(uid(&answer["details"]).or_else(|| uid(&answer["metadata"])).unwrap_or_default())
}

/// Waits until the objects are gone, or others of the same name are there.
async fn wait(cluster: &Cluster, going: Vec<Going>, timeout: Duration) -> Vec<anyhow::Error> {
    let start = Instant::now();
    let mut failures = Vec::new();
    let mut going = going;
    while !going.is_empty() {
        let mut still = Vec::new();
        for one in going {
            match cluster.find(&one.path).await {
                Ok(None) => {}
                Ok(Some(object)) if api::meta::uid(&object) != one.uid => {}
                Ok(Some(object)) => still.push((one, object)),
                Err(failure) => failures.push(anyhow::Error::new(failure).context(one.named)),
            }
        }
        if start.elapsed() >= timeout {
            for (one, object) in still {
                let finalizers = api::meta::finalizers(&object).join(", ");
                let why = if finalizers.is_empty() {
                    "its node may be away: see `pinnace get nodes`, or use --force".to_owned()
                } else {
                    format!("its finalizers wait: {finalizers}")
                };
                failures.push(anyhow!(
                    "{} is still there after {} s: {why}",
                    one.named,
                    timeout.as_secs()
                ));
            }
            return failures;
        }
        going = still.into_iter().map(|(one, _)| one).collect();
        if !going.is_empty() {
            sleep(LOOK_EVERY).await;
        }
    }
    failures
}
