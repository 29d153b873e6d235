//! `pinnace logs`: what containers have written, of one pod or of many at once.

use anyhow::{Context, bail};
use serde_json::Value;
use tokio::sync::mpsc;

use crate::arguments::Logs;
use crate::cluster::Cluster;
use crate::kinds::{Kind, Kinds};
use crate::urls::with_query;
use crate::{console, stuck};

/// Lines of each pod with `-l`, as in kubectl.
const TAIL_OF_MANY: i64 = 10;
/// Most logs that are followed at once.
const FOLLOWED_MAX: usize = 50;
/// Lines that wait for a slow reader.
const QUEUE: usize = 1024;

/// One container's log.
struct Source {
    pod: String,
    container: String,
    path: String,
}

pub(super) async fn run(cluster: &Cluster, arguments: &Logs) -> anyhow::Result<()> {
    let pods = pods(cluster, arguments).await?;
    let many = pods.len() > 1 || arguments.selector.is_some();
    let mut sources = Vec::new();
    for pod in &pods {
        for container in containers(pod, arguments, many)? {
            sources.push(source(cluster, pod, container, arguments, many));
        }
    }
    if arguments.follow && sources.len() > FOLLOWED_MAX {
        bail!(
            "{} logs are too many to follow, {FOLLOWED_MAX} is the most: choose fewer with -l",
            sources.len()
        );
    }
    match sources.as_slice() {
        [] => {
            console::note(format_args!("No pods found in {} namespace.", cluster.namespace));
            Ok(())
        }
        [source] if !arguments.prefix => copy(cluster, source).await,
        _ if arguments.follow => follow(cluster, sources, arguments.prefix).await,
        _ => {
            let mut failures = Vec::new();
            for source in &sources {
                match lines(cluster, source, arguments.prefix).await {
                    Ok(()) => {}
                    Err(error) if console::is_closed(&error) => return Err(error),
                    Err(error) => failures.push(error),
                }
            }
            console::all(failures)
        }
    }
}

/// The pods that are meant.
async fn pods(cluster: &Cluster, arguments: &Logs) -> anyhow::Result<Vec<Value>> {
    let namespace = &cluster.namespace;
    if let Some(selector) = &arguments.selector {
        let pods = Kind::pods();
        return Ok(super::get::list(cluster, &pods, Some(namespace), selector, "").await?);
    }
    let target = arguments.target.as_deref().unwrap_or_default();
    let Some((kind, name)) = target.split_once('/') else {
        return Ok(vec![cluster.get(&Kind::pods().object(namespace, target)).await?]);
    };
    let kind = Kinds::discover(cluster).await?.one(kind)?;
    let object = cluster.get(&kind.object(namespace, name)).await?;
    if kind.kind == "Pod" {
        return Ok(vec![object]);
    }
    let mut pods = stuck::pods_of(cluster, &object).await?;
    // One that runs says more than one that does not.
    pods.sort_by_key(|pod| (pod["status"]["phase"] != "Running", api::meta::name(pod).to_owned()));
    let n_pods = pods.len();
    let Some(pod) = pods.into_iter().next() else { bail!("{} has no pods yet", kind.named(name)) };
    if n_pods > 1 {
        console::note(format_args!("Found {n_pods} pods, using pod/{}", api::meta::name(&pod)));
    }
    Ok(vec![pod])
}

/// The containers of a pod that are meant.
fn containers(pod: &Value, arguments: &Logs, many: bool) -> anyhow::Result<Vec<String>> {
    let names: Vec<String> = ["initContainers", "containers"]
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .filter_map(|container| container["name"].as_str().map(str::to_owned))
        .collect();
    if arguments.all_containers {
        return Ok(names);
    }
    if let Some(wanted) = arguments.container.as_ref().or(arguments.container_word.as_ref()) {
        if !names.contains(wanted) {
            bail!(
                "pod {} has no container \"{wanted}\": it has {}",
                api::meta::name(pod),
                names.join(", ")
            );
        }
        return Ok(vec![wanted.clone()]);
    }
    let first = pod["spec"]["containers"][0]["name"].as_str().unwrap_or_default();
    let preferred = api::meta::annotation(pod, "kubectl.kubernetes.io/default-container");
    let name = preferred.filter(|name| names.iter().any(|n| n == name)).unwrap_or(first);
    if names.len() > 1 && !many {
        console::note(format_args!("Defaulted container \"{name}\" out of: {}", names.join(", ")));
    }
    Ok(vec![name.to_owned()])
}

fn source(
    cluster: &Cluster,
    pod: &Value,
    container: String,
    arguments: &Logs,
    many: bool,
) -> Source {
    let name = api::meta::name(pod);
    let tail = arguments.tail.or_else(|| many.then_some(TAIL_OF_MANY)).filter(|tail| *tail >= 0);
    let tail = tail.map(|tail| tail.to_string()).unwrap_or_default();
    // The server counts in whole seconds, and 0 would be everything.
    let since = arguments.since.map(|since| since.as_secs().max(1).to_string());
    let flag = |set: bool| if set { "true" } else { "" };
    let query = [
        ("container", container.as_str()),
        ("follow", flag(arguments.follow)),
        ("previous", flag(arguments.previous)),
        ("timestamps", flag(arguments.timestamps)),
        ("tailLines", &tail),
        ("sinceSeconds", since.as_deref().unwrap_or_default()),
    ];
    let path = format!("{}/log", Kind::pods().object(&cluster.namespace, name));
    Source { pod: name.to_owned(), path: with_query(&path, &query), container }
}

impl Source {
    fn prefix(&self) -> String {
        format!("[pod/{}/{}] ", self.pod, self.container)
    }

    fn what(&self) -> String {
        format!("pod {}, container {}", self.pod, self.container)
    }
}

/// The log as it comes, byte for byte.
async fn copy(cluster: &Cluster, source: &Source) -> anyhow::Result<()> {
    let mut stream = cluster.stream(&source.path).await.with_context(|| source.what())?;
    while let Some(piece) = stream.piece().await.with_context(|| source.what())? {
        console::write(piece)?;
    }
    Ok(())
}

/// The log line by line.
async fn lines(cluster: &Cluster, source: &Source, prefix: bool) -> anyhow::Result<()> {
    let mut stream = cluster.stream(&source.path).await.with_context(|| source.what())?;
    while let Some(line) = stream.line().await.with_context(|| source.what())? {
        console::write(whole_line(source, &line, prefix))?;
    }
    Ok(())
}

fn whole_line(source: &Source, line: &[u8], prefix: bool) -> Vec<u8> {
    let mut out = if prefix { source.prefix().into_bytes() } else { Vec::new() };
    out.extend_from_slice(line);
    out.push(b'\n');
    out
}

/// Several logs at once; lines stay whole.
async fn follow(cluster: &Cluster, sources: Vec<Source>, prefix: bool) -> anyhow::Result<()> {
    let (sender, mut receiver) = mpsc::channel::<Vec<u8>>(QUEUE);
    let readers = sources.iter().map(|source| {
        let sender = sender.clone();
        async move {
            let mut stream = cluster.stream(&source.path).await.with_context(|| source.what())?;
            while let Some(line) = stream.line().await.with_context(|| source.what())? {
                if sender.send(whole_line(source, &line, prefix)).await.is_err() {
                    break;
                }
            }
            Ok::<(), anyhow::Error>(())
        }
    });
    let readers = futures::future::join_all(readers);
    drop(sender);
    let print = async {
        while let Some(line) = receiver.recv().await {
            console::write(line)?;
        }
        Ok::<(), anyhow::Error>(())
    };
    tokio::pin!(readers);
    tokio::pin!(print);
    tokio::select! {
        // Nobody reads any more, or it cannot be written.
        printed = &mut print => printed,
        ended = &mut readers => {
            // No sender is left, so this ends with what they queued.
            print.await?;
            console::all(ended.into_iter().filter_map(Result::err).collect())
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn logs(line: &str) -> Logs {
        let words = "pinnace logs ".to_owned() + line;
        match Arguments::try_parse_from(words.split_whitespace()).unwrap().command {
            Command::Logs(logs) => logs,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_container_that_is_meant_is_found() {
        let pod = json!({
            "metadata": {"name": "web"},
            "spec": {"initContainers": [{"name": "setup"}], "containers": [{"name": "app"}, {"name": "side"}]},
        });
        let check = |line: &str| containers(&pod, &logs(line), false);
        assert_eq!(check("web").unwrap(), ["app"]);
        assert_eq!(check("web side").unwrap(), ["side"]);
        assert_eq!(check("web -c setup").unwrap(), ["setup"]);
        assert_eq!(check("web --all-containers").unwrap(), ["setup", "app", "side"]);
        let error = check("web -c nope").unwrap_err().to_string();
        assert_eq!(error, "pod web has no container \"nope\": it has setup, app, side");
        let mut preferred = pod;
        api::meta::set_annotation(
            &mut preferred,
            "kubectl.kubernetes.io/default-container",
            "side",
        );
        assert_eq!(containers(&preferred, &logs("web"), false).unwrap(), ["side"]);
    }
}
