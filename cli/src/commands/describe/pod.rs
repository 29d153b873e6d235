//! Pods, and the templates of pods.

use jiff::Timestamp;
use serde_json::Value;

use super::outline::{Entry, Outline, text};
use super::{conditions, pairs};
use crate::text::since;

pub(super) fn describe(outline: &mut Outline, pod: &Value, now: Timestamp) {
    let status = &pod["status"];
    let node = text(&pod["spec"]["nodeName"]);
    let host = text(&status["hostIP"]);
    outline.text(
        "Node",
        &match (node.as_str(), host.as_str()) {
            ("", _) => "<none>".to_owned(),
            (node, "") => node.to_owned(),
            (node, host) => format!("{node}/{host}"),
        },
    );
    outline.text("Status", &text(&status["phase"]));
    outline.text_if("Reason", &text(&status["reason"]));
    outline.text_if("Message", &text(&status["message"]));
    outline.text(
        "IP",
        &match text(&status["podIP"]) {
            ip if ip.is_empty() => "<none>".to_owned(),
            ip => ip,
        },
    );
    template(outline, &pod["spec"], status, now);
    outline.extend(conditions(pod, now));
}

/// What a pod's spec holds, with the statuses of its containers where it has run.
pub(super) fn template(outline: &mut Outline, spec: &Value, status: &Value, now: Timestamp) {
    let lists = [
        ("Init Containers", "initContainers", "initContainerStatuses"),
        ("Containers", "containers", "containerStatuses"),
        ("Ephemeral Containers", "ephemeralContainers", "ephemeralContainerStatuses"),
    ];
    for (title, list, statuses) in lists {
        let containers: Vec<Entry> = spec[list]
            .as_array()
            .into_iter()
            .flatten()
            .map(|one| {
                let statuses = status[statuses].as_array().into_iter().flatten();
                let status = statuses.into_iter().find(|status| status["name"] == one["name"]);
                container(one, status, now)
            })
            .collect();
        if !containers.is_empty() {
            outline.push(Entry::Block(title.to_owned(), containers));
        }
    }
    let volumes = spec["volumes"].as_array().into_iter().flatten().map(volume).collect();
    outline.push(Entry::block("Volumes", volumes));
    outline.lines("Node Selectors", pairs(&spec["nodeSelector"], "="));
    let tolerations = spec["tolerations"].as_array().into_iter().flatten().map(toleration);
    outline.lines("Tolerations", tolerations.collect());
}

fn container(container: &Value, status: Option<&Value>, now: Timestamp) -> Entry {
    let mut outline = Outline::default();
    outline.text("Image", &text(&container["image"]));
    outline.text_if("Restart Policy", &text(&container["restartPolicy"]));
    outline.text_if("Target", &text(&container["targetContainerName"]));
    if let Some(status) = status {
        outline.text_if("Image ID", &text(&status["imageID"]));
        outline.text_if("Container ID", &text(&status["containerID"]));
    }
    let words = |key: &str| -> Vec<String> {
        container[key].as_array().into_iter().flatten().map(text).collect()
    };
    for (title, key) in [("Command", "command"), ("Args", "args")] {
        if container[key].is_array() {
            outline.lines(title, words(key));
        }
    }
    let ports: Vec<String> = container["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|port| {
            format!(
                "{}/{}",
                text(&port["containerPort"]),
                port["protocol"].as_str().unwrap_or("TCP")
            )
        })
        .collect();
    outline.text_if("Ports", &ports.join(", "));
    if let Some(status) = status {
        state(&mut outline, "State", &status["state"], now);
        state(&mut outline, "Last State", &status["lastState"], now);
        outline.text("Ready", if status["ready"] == true { "True" } else { "False" });
        outline.text("Restart Count", &text(&status["restartCount"]));
    }
    for (title, key) in [("Limits", "limits"), ("Requests", "requests")] {
        let amounts = pairs(&container["resources"][key], ": ");
        outline.text_if(title, &amounts.join(", "));
    }
    let probes = [
        ("Liveness", "livenessProbe"),
        ("Readiness", "readinessProbe"),
        ("Startup", "startupProbe"),
    ];
    for (title, key) in probes {
        outline.text_if(title, &probe(&container[key]));
    }
    for (title, key) in [("Post Start", "postStart"), ("Pre Stop", "preStop")] {
        outline.text_if(title, &handler(&container["lifecycle"][key]));
    }
    let from: Vec<String> =
        container["envFrom"].as_array().into_iter().flatten().map(env_from).collect();
    if !from.is_empty() {
        outline.lines("Environment From", from);
    }
    let env: Vec<String> = container["env"].as_array().into_iter().flatten().map(env).collect();
    outline.lines("Environment", env);
    let mounts = container["volumeMounts"].as_array().into_iter().flatten().map(mount).collect();
    outline.lines("Mounts", mounts);
    Entry::Block(text(&container["name"]), outline.0)
}

fn state(outline: &mut Outline, title: &str, state: &Value, now: Timestamp) {
    let ago = |key: &str, state: &Value| match state[key].as_str() {
        Some(time) if !time.is_empty() => format!(", {} ago", since(time, now)),
        _ => String::new(),
    };
    let reason = |state: &Value| {
        let mut all = text(&state["reason"]);
        let message = text(&state["message"]);
        if !message.is_empty() {
            all.push_str(if all.is_empty() { "" } else { ": " });
            all.push_str(&message);
        }
        if all.is_empty() { all } else { format!(", {all}") }
    };
    for name in ["running", "waiting", "terminated"] {
        let state = &state[name];
        if !state.is_object() {
            continue;
        }
        let said = match name {
            "running" => format!("Running{}", ago("startedAt", state)),
            "waiting" => format!("Waiting{}", reason(state)),
            _ => {
                let code = text(&state["exitCode"]);
                let signal = text(&state["signal"]);
                let signal = if matches!(signal.as_str(), "" | "0") {
                    signal
                } else {
                    format!(", signal {signal}")
                };
                let signal = if signal == "0" { String::new() } else { signal };
                format!(
                    "Terminated, exit code {code}{signal}{}{}",
                    reason(state),
                    ago("finishedAt", state)
                )
            }
        };
        outline.text(title, &said);
    }
}

fn probe(probe: &Value) -> String {
    if !probe.is_object() {
        return String::new();
    }
    let number = |key: &str, or: i64| probe[key].as_i64().unwrap_or(or);
    let how = handler(probe);
    let delay = match number("initialDelaySeconds", 0) {
        0 => String::new(),
        seconds => format!(" after {seconds} s"),
    };
    format!(
        "{how}{delay} every {} s, timeout {} s, {} failures",
        number("periodSeconds", 10),
        number("timeoutSeconds", 1),
        number("failureThreshold", 3)
    )
}

/// What a probe asks or a hook does.
fn handler(handler: &Value) -> String {
    let (get, tcp) = (&handler["httpGet"], &handler["tcpSocket"]);
    let (grpc, sleep) = (&handler["grpc"], &handler["sleep"]);
    if get.is_object() {
        let scheme = text(&get["scheme"]).to_lowercase();
        let scheme = if scheme.is_empty() { "http" } else { &scheme };
        let (host, port, path) = (text(&get["host"]), text(&get["port"]), text(&get["path"]));
        format!("http-get {scheme}://{host}:{port}{path}")
    } else if tcp.is_object() {
        format!("tcp-socket {}:{}", text(&tcp["host"]), text(&tcp["port"]))
    } else if grpc.is_object() {
        format!("grpc :{} {}", text(&grpc["port"]), text(&grpc["service"])).trim_end().to_owned()
    } else if sleep.is_object() {
        format!("sleep {} s", text(&sleep["seconds"]))
    } else if handler["exec"].is_object() {
        let words = handler["exec"]["command"].as_array().into_iter().flatten().map(text);
        format!("exec [{}]", words.collect::<Vec<_>>().join(" "))
    } else {
        String::new()
    }
}

fn env(variable: &Value) -> String {
    let name = text(&variable["name"]);
    let from = &variable["valueFrom"];
    for (key, word) in [("configMapKeyRef", "config map"), ("secretKeyRef", "secret")] {
        if from[key].is_object() {
            let (key, map) = (text(&from[key]["key"]), text(&from[key]["name"]));
            return format!("{name}: <key {key} of {word} {map}>");
        }
    }
    for key in ["fieldRef", "resourceFieldRef"] {
        let path = [&from[key]["fieldPath"], &from[key]["resource"]];
        if let Some(path) = path.into_iter().map(text).find(|path| !path.is_empty()) {
            return format!("{name}: <{path}>");
        }
    }
    format!("{name}: {}", super::cut(&text(&variable["value"])))
}

fn env_from(source: &Value) -> String {
    for (key, word) in [("configMapRef", "config map"), ("secretRef", "secret")] {
        if source[key].is_object() {
            return format!("{word} {}", text(&source[key]["name"]));
        }
    }
    text(source)
}

fn mount(mount: &Value) -> String {
    let read_only = if mount["readOnly"] == true { "ro" } else { "rw" };
    format!("{} from {} ({read_only})", text(&mount["mountPath"]), text(&mount["name"]))
}

fn volume(volume: &Value) -> Entry {
    let source = volume.as_object().into_iter().flatten().find(|(key, _)| *key != "name");
    let said = match source {
        None => "<nothing>".to_owned(),
        Some((kind, source)) => {
            let name = ["name", "secretName", "claimName", "path"];
            let name = name.iter().map(|key| text(&source[*key])).find(|name| !name.is_empty());
            name.map_or_else(|| kind.clone(), |name| format!("{kind} {name}"))
        }
    };
    Entry::Text(text(&volume["name"]), said)
}

fn toleration(toleration: &Value) -> String {
    let part = |key: &str, sign: &str| match text(&toleration[key]) {
        part if part.is_empty() => part,
        part => format!("{sign}{part}"),
    };
    let seconds = match toleration["tolerationSeconds"].as_i64() {
        Some(seconds) => format!(" for {seconds}s"),
        None => String::new(),
    };
    let exists = if toleration["operator"] == "Exists" { " op=Exists" } else { "" };
    format!("{}{}{}{exists}{seconds}", part("key", ""), part("value", "="), part("effect", ":"))
}
