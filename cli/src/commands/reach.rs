//! `pinnace exec`, `attach`, `cp` and `port-forward`: into pods, wherever their
//! boards are.
//!
//! All over WebSocket, as kubectl since 1.30: messages whose first byte is a
//! channel. The exit code of a command becomes this program's.

mod copy;
mod forward;
mod session;
mod terminal;

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::bail;
use serde_json::Value;

use self::session::{Local, Session};
use self::terminal::RawMode;
use crate::arguments::{Attach, Copy, Exec, PortForward};
use crate::cluster::Cluster;
use crate::console;
use crate::kinds::Kind;

pub(super) async fn exec(cluster: &Cluster, arguments: &Exec) -> anyhow::Result<ExitCode> {
    let pod = pod(cluster, &arguments.pod).await?;
    let container = container(&pod, arguments.container.as_deref())?;
    let tty = tty(arguments.tty);
    let query = session::Query {
        command: &arguments.command,
        container: &container,
        stdin: arguments.stdin,
        tty,
    };
    let path = format!("{}/exec", path(cluster, &pod));
    talk(cluster, &query.path(&path), arguments.stdin, tty).await
}

pub(super) async fn attach(cluster: &Cluster, arguments: &Attach) -> anyhow::Result<ExitCode> {
    let pod = pod(cluster, &arguments.pod).await?;
    let container = container(&pod, arguments.container.as_deref())?;
    let has_terminal = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .any(|one| one["name"] == container.as_str() && one["tty"] == true);
    if arguments.tty && !has_terminal {
        console::note(format_args!(
            "Unable to use a TTY - container {container} did not allocate one"
        ));
    }
    let tty = has_terminal && tty(arguments.tty);
    let query = session::Query { command: &[], container: &container, stdin: arguments.stdin, tty };
    let path = format!("{}/attach", path(cluster, &pod));
    talk(cluster, &query.path(&path), arguments.stdin, tty).await
}

pub(super) async fn cp(cluster: &Cluster, arguments: &Copy) -> anyhow::Result<ExitCode> {
    copy::run(cluster, arguments).await?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn port_forward(
    cluster: &Cluster,
    arguments: &PortForward,
) -> anyhow::Result<ExitCode> {
    let pod = pod(cluster, &arguments.pod).await?;
    forward::run(cluster, &format!("{}/portforward", path(cluster, &pod)), arguments).await?;
    Ok(ExitCode::SUCCESS)
}

/// Whether there can be a terminal, where one is asked for.
fn tty(asked: bool) -> bool {
    let can = std::io::stdin().is_terminal();
    if asked && !can {
        console::note("Unable to use a TTY - input is not a terminal");
    }
    asked && can
}

/// Connects the user's own streams with those in the pod.
async fn talk(cluster: &Cluster, path: &str, stdin: bool, tty: bool) -> anyhow::Result<ExitCode> {
    let session = Session::open(cluster, path).await?;
    let raw = if tty { Some(RawMode::enter()?) } else { None };
    let ended = session.run(Local { stdin, tty }).await;
    // The user's terminal first, then what is to be said.
    drop(raw);
    Ok(ExitCode::from(ended?))
}

/// A pod by its name, with or without `pod/`.
async fn pod(cluster: &Cluster, name: &str) -> anyhow::Result<Value> {
    let name = match name.split_once('/') {
        None => name,
        Some(("pod" | "pods" | "po", name)) => name,
        Some((kind, _)) => bail!("{kind} is not a pod: name one as POD or pod/POD"),
    };
    Ok(cluster.get(&Kind::pods().object(&cluster.namespace, name)).await?)
}

fn path(cluster: &Cluster, pod: &Value) -> String {
    Kind::pods().object(&cluster.namespace, api::meta::name(pod))
}

/// The container that is meant: the one named, the annotated one, or the first.
fn container(pod: &Value, asked: Option<&str>) -> anyhow::Result<String> {
    let names: Vec<&str> = ["containers", "initContainers", "ephemeralContainers"]
        .iter()
        .flat_map(|list| pod["spec"][*list].as_array().into_iter().flatten())
        .filter_map(|container| container["name"].as_str())
        .collect();
    if let Some(asked) = asked {
        if !names.contains(&asked) {
            bail!(
                "pod {} has no container \"{asked}\": it has {}",
                api::meta::name(pod),
                names.join(", ")
            );
        }
        return Ok(asked.to_owned());
    }
    let preferred = api::meta::annotation(pod, "kubectl.kubernetes.io/default-container");
    let found = preferred.filter(|name| names.contains(name)).or_else(|| names.first().copied());
    let Some(name) = found else { bail!("pod {} has no container", api::meta::name(pod)) };
    if pod["spec"]["containers"].as_array().is_some_and(|all| all.len() > 1) {
        console::note(format_args!("Defaulted container \"{name}\" out of: {}", names.join(", ")));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_container_that_is_meant_is_found() {
        let mut pod = json!({
            "metadata": {"name": "web"},
            "spec": {"initContainers": [{"name": "setup"}], "containers": [{"name": "app"}, {"name": "side"}]},
        });
        assert_eq!(container(&pod, None).unwrap(), "app");
        assert_eq!(container(&pod, Some("setup")).unwrap(), "setup");
        let error = container(&pod, Some("nope")).unwrap_err().to_string();
        assert_eq!(error, "pod web has no container \"nope\": it has app, side, setup");
        let key = "kubectl.kubernetes.io/default-container";
        api::meta::set_annotation(&mut pod, key, "side");
        assert_eq!(container(&pod, None).unwrap(), "side");
    }
}
