//! Pods as JSON, and what their statuses say.

use serde_json::{Value, json};

use super::World;
use super::wait::{check, until};

/// Namespace that most tests use.
pub(crate) const NAMESPACE: &str = "default";

/// A pod with one container named `main`, which gets a second to end.
pub(crate) fn pod(name: &str, image: &str, command: &[&str], args: &[&str]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [{"name": "main", "image": image, "command": command, "args": args}],
        },
    })
}

/// A Deployment of that pod.
pub(crate) fn deployment(name: &str, replicas: u32, mut pod: Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": pod["spec"].take()},
        },
    })
}

/// Makes the pods of a Deployment leave a node a second after it was declared lost.
pub(crate) fn leave_at_once(deployment: &mut Value) {
    let tolerate = |key: &str| json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1});
    deployment["spec"]["template"]["spec"]["tolerations"] = json!([
        tolerate("node.kubernetes.io/not-ready"),
        tolerate("node.kubernetes.io/unreachable"),
    ]);
}

/// A shell script that runs until it is told to stop.
pub(crate) fn script(lines: &str) -> Vec<String> {
    let text = format!("trap 'exit 0' TERM\n{lines}\nwhile true; do sleep 0.2; done");
    vec!["/bin/sh".to_owned(), "-c".to_owned(), text]
}

/// The status of an object's condition; empty without one.
pub(crate) fn condition(object: &Value, kind: &str) -> String {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .and_then(|all| all.iter().find(|one| one["type"] == kind))
        .and_then(|one| one["status"].as_str())
        .unwrap_or_default()
        .to_owned()
}

/// An object's name.
pub(crate) fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap_or_default().to_owned()
}

/// The node a pod is bound to.
pub(crate) fn node(pod: &Value) -> String {
    pod["spec"]["nodeName"].as_str().unwrap_or_default().to_owned()
}

/// How often a pod's containers were restarted.
pub(crate) fn restarts(pod: &Value) -> u64 {
    let statuses = pod["status"]["containerStatuses"].as_array();
    statuses.into_iter().flatten().filter_map(|one| one["restartCount"].as_u64()).sum()
}

/// Reason and message of why the first container waits, or of how it ended.
pub(crate) fn trouble(pod: &Value) -> (String, String) {
    let state = &pod["status"]["containerStatuses"][0]["state"];
    let of = |state: &Value, key: &str| state[key].as_str().unwrap_or_default().to_owned();
    let which = if state["waiting"].is_object() { &state["waiting"] } else { &state["terminated"] };
    (of(which, "reason"), of(which, "message"))
}

pub(crate) fn is_ready(pod: &Value) -> bool {
    pod["status"]["phase"] == "Running"
        && condition(pod, "Ready") == "True"
        && pod["metadata"]["deletionTimestamp"].is_null()
}

impl World {
    /// Creates a pod.
    #[track_caller]
    pub(crate) fn create_pod(&self, pod: &Value) -> Value {
        self.api.create(&format!("/api/v1/namespaces/{NAMESPACE}/pods"), pod).ok()
    }

    /// Creates a Deployment.
    #[track_caller]
    pub(crate) fn create_deployment(&self, deployment: &Value) -> Value {
        let path = format!("/apis/apps/v1/namespaces/{NAMESPACE}/deployments");
        self.api.create(&path, deployment).ok()
    }

    #[track_caller]
    pub(crate) fn find_pod(&self, name: &str) -> Option<Value> {
        self.api.find(&format!("/api/v1/namespaces/{NAMESPACE}/pods/{name}"))
    }

    /// The pods with the label `app=…`.
    #[track_caller]
    pub(crate) fn pods_of(&self, app: &str) -> Vec<Value> {
        self.api.list(&format!("/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=app%3D{app}"))
    }

    /// Waits until a pod satisfies `probe`, and returns it.
    #[track_caller]
    pub(crate) fn pod_becomes(
        &self,
        name: &str,
        what: &str,
        probe: impl Fn(&Value) -> bool,
    ) -> Value {
        until(&format!("pod {name} {what}"), || {
            let pod = self.find_pod(name).ok_or("there is no such pod")?;
            check(probe(&pod), || {
                format!("nodeName {}, status {}", pod["spec"]["nodeName"], pod["status"])
            })?;
            Ok(pod)
        })
    }

    #[track_caller]
    pub(crate) fn pod_becomes_ready(&self, name: &str) -> Value {
        self.pod_becomes(name, "is Ready", is_ready)
    }

    /// Waits until exactly `n` pods of the app exist and all are Ready.
    #[track_caller]
    pub(crate) fn app_becomes_ready(&self, app: &str, n: usize) -> Vec<Value> {
        until(&format!("{n} pods of {app} are Ready"), || {
            let pods = self.pods_of(app);
            let shown = || -> Vec<String> {
                pods.iter()
                    .map(|pod| {
                        let phase = &pod["status"]["phase"];
                        format!("{} on {}: {phase} {:?}", name(pod), node(pod), trouble(pod))
                    })
                    .collect()
            };
            check(pods.len() == n && pods.iter().all(is_ready), || format!("{:#?}", shown()))?;
            Ok(pods)
        })
    }

    /// Deletes an object and waits until it is gone.
    #[track_caller]
    pub(crate) fn delete(&self, path: &str) {
        self.api.delete(path).ok();
        until(&format!("{path} is gone"), || {
            let found = self.api.find(path);
            check(found.is_none(), || found.unwrap_or_default().to_string())
        });
    }

    /// A pod's log, whole.
    pub(crate) fn log_of(&self, pod: &str) -> Result<String, String> {
        let answer = self.api.get(&format!("/api/v1/namespaces/{NAMESPACE}/pods/{pod}/log"));
        check(answer.status == 200, || format!("{} {}", answer.status, answer.text))?;
        Ok(answer.text)
    }

    /// Waits until a pod's log holds `needle`, and returns the log.
    #[track_caller]
    pub(crate) fn log_holds(&self, pod: &str, needle: &str) -> String {
        until(&format!("the log of {pod} holds {needle:?}"), || {
            let log = self.log_of(pod)?;
            check(log.contains(needle), || log.clone())?;
            Ok(log)
        })
    }

    /// The Events about an object, as `reason: message`.
    pub(crate) fn events_about(&self, name: &str) -> Vec<String> {
        let path = format!("/api/v1/events?fieldSelector=involvedObject.name%3D{name}");
        let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
        self.api
            .list(&path)
            .iter()
            .map(|event| format!("{}: {}", text(event, "reason"), text(event, "message")))
            .collect()
    }

    /// Waits for an Event about an object that holds all of `needles`.
    #[track_caller]
    pub(crate) fn event_appears(&self, name: &str, needles: &[&str]) -> String {
        until(&format!("an Event about {name} holds {needles:?}"), || {
            let events = self.events_about(name);
            events
                .iter()
                .find(|event| needles.iter().all(|needle| event.contains(needle)))
                .cloned()
                .ok_or_else(|| format!("{events:#?}"))
        })
    }
}
