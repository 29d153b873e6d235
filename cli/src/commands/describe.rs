//! `pinnace describe`: an object as people want to read it, with its events.
//!
//! Each kind says what is worth showing as a tree of [`outline::Entry`]; what
//! has no words of its own is shown whole. Data of Secrets is never shown.

mod node;
mod outline;
mod pod;
mod service;
mod workload;

use anyhow::bail;
use jiff::Timestamp;
use serde_json::Value;

use self::outline::{Entry, Outline, text};
use crate::arguments::Describe;
use crate::cluster::Cluster;
use crate::console;
use crate::failure::Failure;
use crate::kinds::{Kind, Kinds};
use crate::selection;
use crate::text::since;

pub(super) async fn run(cluster: &Cluster, arguments: &Describe) -> anyhow::Result<()> {
    let kinds = Kinds::discover(cluster).await?;
    let mut failures = Vec::new();
    let mut n_shown = 0;
    for selection in selection::parse(&kinds, &arguments.words)? {
        let kind = &selection.kind;
        let namespace = kind.namespaced.then_some(cluster.namespace.as_str());
        let mut objects = Vec::new();
        if selection.names.is_empty() {
            let selector = arguments.selector.as_deref().unwrap_or_default();
            objects = super::get::list(cluster, kind, namespace, selector, "").await?;
        } else if arguments.selector.is_some() {
            bail!("name the objects, or choose them with -l, not both");
        }
        for name in &selection.names {
            match cluster.get(&kind.object(&cluster.namespace, name)).await {
                Ok(object) => objects.push(object),
                Err(failure) => failures.push(failure.into()),
            }
        }
        for object in objects {
            let context = Context::gather(cluster, kind, &object).await?;
            if n_shown > 0 {
                console::write("\n\n")?;
            }
            n_shown += 1;
            console::write(describe(&object, &context, Timestamp::now()))?;
        }
    }
    if n_shown == 0 && failures.is_empty() {
        console::note("No resources found");
    }
    console::all(failures)
}

/// What is shown of an object, but is not in it.
#[derive(Debug, Default)]
struct Context {
    events: Vec<Value>,
    /// The pods of a node.
    pods: Vec<Value>,
    /// What is behind a Service.
    slices: Vec<Value>,
}

impl Context {
    async fn gather(cluster: &Cluster, kind: &Kind, object: &Value) -> Result<Self, Failure> {
        let name = api::meta::name(object);
        let namespace = api::meta::namespace(object);
        let mut fields = format!("involvedObject.name={name},involvedObject.kind={}", kind.kind);
        // Events of nodes carry the node's name in place of its uid.
        if kind.namespaced {
            fields.push_str(&format!(",involvedObject.uid={}", api::meta::uid(object)));
        }
        let events = Kind::core("events", "Event", true);
        let namespace = (!namespace.is_empty()).then_some(namespace);
        let mut events = super::get::list(cluster, &events, namespace, "", &fields).await?;
        events.sort_by(|a, b| event_time(a).cmp(event_time(b)));
        let pods = if kind.kind == "Node" {
            let on_node = format!("spec.nodeName={name}");
            super::get::list(cluster, &Kind::pods(), None, "", &on_node).await?
        } else {
            Vec::new()
        };
        let slices = if kind.kind == "Service" && kind.group.is_empty() {
            let of_service = format!("{}={name}", api::service::SERVICE_NAME_LABEL);
            let slices = Kind::endpoint_slices();
            super::get::list(cluster, &slices, namespace, &of_service, "").await?
        } else {
            Vec::new()
        };
        Ok(Self { events, pods, slices })
    }
}

fn describe(object: &Value, context: &Context, now: Timestamp) -> String {
    let mut outline = Outline::default();
    head(&mut outline, object, now);
    match object["kind"].as_str().unwrap_or_default() {
        "Pod" => pod::describe(&mut outline, object, now),
        "Node" => node::describe(&mut outline, object, &context.pods, now),
        "Deployment" | "ReplicaSet" => workload::describe(&mut outline, object, now),
        "Service" => service::describe(&mut outline, object, &context.slices),
        "ConfigMap" => config_map(&mut outline, object),
        "Secret" => secret(&mut outline, object),
        _ => outline.rest(object),
    }
    outline.push(events(&context.events, now));
    outline.render()
}

fn head(outline: &mut Outline, object: &Value, now: Timestamp) {
    outline.text("Name", api::meta::name(object));
    outline.text_if("Namespace", api::meta::namespace(object));
    outline.lines("Labels", pairs(&object["metadata"]["labels"], "="));
    outline.lines("Annotations", pairs(&object["metadata"]["annotations"], ": "));
    let created = api::meta::creation_timestamp(object);
    outline.text("Created", &format!("{created} ({} ago)", since(created, now)));
    if let Some(deleted) = api::meta::deletion_timestamp(object) {
        outline.text("Terminating", &format!("gone by {deleted} at the latest"));
    }
    if let Some(owner) = api::meta::controller(object) {
        outline.text("Controlled By", &format!("{}/{}", owner.kind, owner.name));
    }
    let finalizers = api::meta::finalizers(object);
    if !finalizers.is_empty() {
        outline.text("Finalizers", &finalizers.join(", "));
    }
}

/// `key=value` of a map of texts, sorted; long values are cut.
fn pairs(map: &Value, separator: &str) -> Vec<String> {
    let mut pairs: Vec<String> = map
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, _)| *key != "kubectl.kubernetes.io/last-applied-configuration")
        .map(|(key, value)| format!("{key}{separator}{}", cut(&text(value))))
        .collect();
    pairs.sort();
    pairs
}

fn cut(text: &str) -> String {
    const MAX: usize = 140;
    if text.chars().count() <= MAX {
        return text.to_owned();
    }
    text.chars().take(MAX).chain("...".chars()).collect()
}

/// A table of the conditions of an object.
fn conditions(object: &Value, now: Timestamp) -> Option<Entry> {
    let rows: Vec<Vec<String>> = object["status"]["conditions"]
        .as_array()?
        .iter()
        .map(|condition| {
            let changed = condition["lastTransitionTime"].as_str().unwrap_or_default();
            let age = if changed.is_empty() { String::new() } else { since(changed, now) };
            let column = |key: &str| text(&condition[key]);
            vec![column("type"), column("status"), age, column("reason"), column("message")]
        })
        .collect();
    let header = ["Type", "Status", "Since", "Reason", "Message"];
    (!rows.is_empty()).then(|| Entry::table("Conditions", &header, rows))
}

fn event_time(event: &Value) -> &str {
    [&event["series"]["lastObservedTime"], &event["lastTimestamp"], &event["eventTime"]]
        .into_iter()
        .find_map(|time| time.as_str().filter(|time| !time.is_empty()))
        .unwrap_or_default()
}

fn events(events: &[Value], now: Timestamp) -> Entry {
    if events.is_empty() {
        return Entry::Text("Events".to_owned(), "<none>".to_owned());
    }
    let rows = events
        .iter()
        .map(|event| {
            let last = since(event_time(event), now);
            let count = event["series"]["count"].as_i64().or_else(|| event["count"].as_i64());
            let age = match count {
                Some(count) if count > 1 => {
                    let first = event["firstTimestamp"].as_str().unwrap_or_default();
                    format!("{last} (x{count} over {})", since(first, now))
                }
                _ => last,
            };
            let component = [&event["source"]["component"], &event["reportingComponent"]]
                .into_iter()
                .map(text)
                .find(|component| !component.is_empty())
                .unwrap_or_default();
            let message = text(&event["message"]);
            vec![text(&event["type"]), text(&event["reason"]), age, component, message]
        })
        .collect();
    Entry::table("Events", &["Type", "Reason", "Age", "From", "Message"], rows)
}

fn config_map(outline: &mut Outline, object: &Value) {
    let mut entries = Vec::new();
    for (key, value) in object["data"].as_object().into_iter().flatten() {
        let lines = text(value).lines().map(str::to_owned).collect();
        entries.push(Entry::Lines(key.clone(), lines));
    }
    for (key, value) in object["binaryData"].as_object().into_iter().flatten() {
        entries.push(Entry::Text(key.clone(), bytes_of(value)));
    }
    outline.push(Entry::block("Data", entries));
}

fn secret(outline: &mut Outline, object: &Value) {
    outline.text("Type", &text(&object["type"]));
    let data = object["data"].as_object().into_iter().flatten();
    let entries = data.map(|(key, value)| Entry::Text(key.clone(), bytes_of(value))).collect();
    outline.push(Entry::block("Data", entries));
}

/// How many bytes a text in base64 stands for.
fn bytes_of(value: &Value) -> String {
    let encoded = value.as_str().unwrap_or_default();
    let padding = encoded.bytes().rev().take_while(|byte| *byte == b'=').count();
    format!("{} bytes", (encoded.len() / 4 * 3).saturating_sub(padding))
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(object: &Value, context: &Context, expected: Expect) {
        let now = "2026-11-23T08:00:00Z".parse().unwrap();
        expected.assert_eq(&describe(object, context, now));
    }

    fn event(reason: &str, message: &str) -> Value {
        json!({"type": "Warning", "reason": reason, "message": message, "count": 3,
               "firstTimestamp": "2026-11-23T07:50:00Z", "lastTimestamp": "2026-11-23T07:59:00Z",
               "source": {"component": "scheduler"}})
    }

    #[test]
    fn pods_are_described() {
        let pod = json!({
            "kind": "Pod",
            "metadata": {"name": "web-1", "namespace": "shop", "labels": {"app": "web", "a": "b"},
                "creationTimestamp": "2026-11-23T07:50:00Z",
                "ownerReferences": [{"kind": "ReplicaSet", "name": "web", "uid": "u", "controller": true}]},
            "spec": {"nodeName": "pi-1", "nodeSelector": {"arch": "arm64"},
                "initContainers": [{"name": "proxy", "image": "p", "restartPolicy": "Always",
                    "startupProbe": {"grpc": {"port": 9, "service": "s"}, "periodSeconds": 5}}],
                "containers": [{
                    "livenessProbe": {"httpGet": {"port": "web", "path": "/ok"}, "initialDelaySeconds": 3},
                    "lifecycle": {"preStop": {"sleep": {"seconds": 2}}},
                    "name": "app", "image": "registry/app:1", "command": ["run", "--fast"],
                    "ports": [{"containerPort": 8080, "protocol": "TCP"}],
                    "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "10m"}},
                    "env": [{"name": "MODE", "value": "x"},
                            {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
                    "volumeMounts": [{"name": "config", "mountPath": "/etc/app", "readOnly": true}]}],
                "volumes": [{"name": "config", "configMap": {"name": "app"}}]},
            "status": {"phase": "Pending", "hostIP": "10.0.0.7", "podIP": "10.42.0.9",
                "conditions": [{"type": "Ready", "status": "False", "reason": "ContainersNotReady",
                    "lastTransitionTime": "2026-11-23T07:55:00Z"}],
                "containerStatuses": [{"name": "app", "ready": false, "restartCount": 4,
                    "state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}},
                    "lastState": {"terminated": {"exitCode": 1, "reason": "Error",
                        "finishedAt": "2026-11-23T07:59:30Z"}}}]},
        });
        let context =
            Context { events: vec![event("BackOff", "restarting")], ..Context::default() };
        check(
            &pod,
            &context,
            expect![[r#"
            Name:            web-1
            Namespace:       shop
            Labels:          a=b
                             app=web
            Annotations:     <none>
            Created:         2026-11-23T07:50:00Z (10m ago)
            Controlled By:   ReplicaSet/web
            Node:            pi-1/10.0.0.7
            Status:          Pending
            IP:              10.42.0.9
            Init Containers:
              proxy:
                Image:           p
                Restart Policy:  Always
                Startup:         grpc :9 s every 5 s, timeout 1 s, 3 failures
                Environment:     <none>
                Mounts:          <none>
            Containers:
              app:
                Image:          registry/app:1
                Command:        run
                                --fast
                Ports:          8080/TCP
                State:          Waiting, CrashLoopBackOff: back-off 40s
                Last State:     Terminated, exit code 1, Error, 30s ago
                Ready:          False
                Restart Count:  4
                Limits:         memory: 64Mi
                Requests:       cpu: 10m
                Liveness:       http-get http://:web/ok after 3 s every 10 s, timeout 1 s, 3 failures
                Pre Stop:       sleep 2 s
                Environment:    MODE: x
                                KEY: <key k of secret s>
                Mounts:         /etc/app from config (ro)
            Volumes:
              config:  configMap app
            Node Selectors:  arch=arm64
            Tolerations:     <none>
            Conditions:
              Type   Status  Since  Reason              Message
              ----   ------  -----  ------              -------
              Ready  False   5m     ContainersNotReady
            Events:
              Type     Reason   Age                From       Message
              ----     ------   ---                ----       -------
              Warning  BackOff  60s (x3 over 10m)  scheduler  restarting
        "#]],
        );
    }

    #[test]
    fn nodes_are_described() {
        let node = json!({
            "kind": "Node",
            "metadata": {"name": "pi-1", "creationTimestamp": "2026-11-23T07:00:00Z"},
            "spec": {"podCIDR": "10.42.0.0/24", "unschedulable": true,
                "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]},
            "status": {
                "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}],
                "capacity": {"cpu": "4", "memory": "1Gi"}, "allocatable": {"cpu": "3900m", "memory": "900Mi"},
                "nodeInfo": {"architecture": "arm64", "osImage": "Debian", "kernelVersion": "6.12",
                    "kubeletVersion": "v0.1.0", "containerRuntimeVersion": "pinnace://0.1.0"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "AgentReady"}]},
        });
        let pod = |name: &str, phase: &str| {
            json!({"metadata": {"name": name, "namespace": "shop", "creationTimestamp": "2026-11-23T07:50:00Z"},
                   "spec": {"containers": [{"resources": {"requests": {"cpu": "100m", "memory": "64Mi"}}},
                                           {"resources": {"limits": {"memory": "1Gi"}}}]},
                   "status": {"phase": phase}})
        };
        let pods = vec![pod("web-1", "Running"), pod("old", "Succeeded")];
        check(
            &node,
            &Context { pods, ..Context::default() },
            expect![[r#"
            Name:           pi-1
            Labels:         <none>
            Annotations:    <none>
            Created:        2026-11-23T07:00:00Z (60m ago)
            Taints:         node.kubernetes.io/unschedulable:NoSchedule
            Unschedulable:  true
            Pod CIDR:       10.42.0.0/24
            Conditions:
              Type   Status  Since  Reason      Message
              ----   ------  -----  ------      -------
              Ready  True           AgentReady
            Addresses:      InternalIP: 10.0.0.7
            Capacity:       cpu: 4
                            memory: 1Gi
            Allocatable:    cpu: 3900m
                            memory: 900Mi
            System Info:
              architecture:             arm64
              osImage:                  Debian
              kernelVersion:            6.12
              kubeletVersion:           v0.1.0
              containerRuntimeVersion:  pinnace://0.1.0
            Pods (1 in total):
              Namespace  Name   CPU Requests  CPU Limits  Memory Requests  Memory Limits  Age
              ---------  ----   ------------  ----------  ---------------  -------------  ---
              shop       web-1  100m          0           64Mi             1Gi            10m
            Allocated:
              Resource  Requests   Limits
              --------  --------   ------
              cpu       100m (2%)  0 (0%)
              memory    64Mi (7%)  1Gi (113%)
            Events:         <none>
        "#]],
        );
    }

    #[test]
    fn deployments_are_described() {
        let deployment = json!({
            "kind": "Deployment",
            "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2026-11-23T07:00:00Z"},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "web"}},
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": 1}},
                "template": {"metadata": {"labels": {"app": "web"}},
                    "spec": {"containers": [{"name": "app", "image": "x"}]}}},
            "status": {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 1, "readyReplicas": 1},
        });
        check(
            &deployment,
            &Context::default(),
            expect![[r#"
            Name:         web
            Namespace:    shop
            Labels:       <none>
            Annotations:  <none>
            Created:      2026-11-23T07:00:00Z (60m ago)
            Selector:     app=web
            Replicas:     2 desired | 2 updated | 2 total | 1 available | 1 unavailable
            Strategy:     RollingUpdate, 1 max unavailable, 25% max surge
            Pod Template:
              Labels:          app=web
              Containers:
                app:
                  Image:        x
                  Environment:  <none>
                  Mounts:       <none>
              Volumes:         <none>
              Node Selectors:  <none>
              Tolerations:     <none>
            Events:       <none>
        "#]],
        );
    }

    #[test]
    fn services_are_described_with_what_is_behind_them() {
        let service = json!({
            "kind": "Service",
            "metadata": {"name": "web", "namespace": "shop", "creationTimestamp": "2026-11-23T07:00:00Z"},
            "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "clusterIPs": ["10.43.1.1"],
                "ports": [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web", "nodePort": 30080},
                    {"port": 53, "protocol": "UDP", "targetPort": 53}],
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "externalTrafficPolicy": "Local", "healthCheckNodePort": 30099},
            "status": {"loadBalancer": {"ingress": [{"ip": "192.168.1.1"}]}},
        });
        let slices = vec![json!({
            "ports": [{"port": 8080}],
            "endpoints": [
                {"addresses": ["10.42.0.3"], "conditions": {"ready": false, "terminating": true},
                    "nodeName": "pi-1", "targetRef": {"name": "web-2"}},
                {"addresses": ["10.42.0.2"], "conditions": {"ready": true}},
            ],
        })];
        let context = Context { slices, ..Context::default() };
        check(
            &service,
            &context,
            expect![[r#"
            Name:               web
            Namespace:          shop
            Labels:             <none>
            Annotations:        <none>
            Created:            2026-11-23T07:00:00Z (60m ago)
            Selector:           app=web
            Type:               LoadBalancer
            Addresses:          10.43.1.1
            Load Balancer:      192.168.1.1
            Ports:
              Name  Port    Target  Node Port
              ----  ----    ------  ---------
              http  80/TCP  web     30080
              -     53/UDP  53      -
            Session Affinity:   ClientIP for 60 s
            External Traffic:   Local
            Health Check Port:  30099
            Endpoints:
              Address         State        Node  Pod
              -------         -----        ----  ---
              10.42.0.2:8080  ready        -     -
              10.42.0.3:8080  terminating  pi-1  web-2
            Events:             <none>
        "#]],
        );
    }

    #[test]
    fn data_of_secrets_is_not_shown() {
        let secret = json!({
            "kind": "Secret", "type": "Opaque",
            "metadata": {"name": "s", "namespace": "d", "creationTimestamp": "2026-11-23T07:00:00Z"},
            "data": {"password": "aHVudGVyMg=="},
        });
        check(
            &secret,
            &Context::default(),
            expect![[r#"
            Name:         s
            Namespace:    d
            Labels:       <none>
            Annotations:  <none>
            Created:      2026-11-23T07:00:00Z (60m ago)
            Type:         Opaque
            Data:
              password:  7 bytes
            Events:       <none>
        "#]],
        );
    }

    #[test]
    fn other_kinds_are_shown_whole_and_config_maps_with_their_data() {
        let map = json!({
            "kind": "ConfigMap", "metadata": {"name": "c", "creationTimestamp": "x"},
            "data": {"a": "one", "script": "line 1\nline 2\u{1b}[2J\n"}, "binaryData": {"b": "AAAA"},
        });
        check(
            &map,
            &Context::default(),
            expect![[r#"
            Name:         c
            Labels:       <none>
            Annotations:  <none>
            Created:      x (<unknown> ago)
            Data:
              a:       one
              script:  line 1
                       line 2^[[2J
              b:       3 bytes
            Events:       <none>
        "#]],
        );
        let lease = json!({
            "kind": "Lease", "apiVersion": "coordination.k8s.io/v1",
            "metadata": {"name": "l", "creationTimestamp": "2026-11-23T07:00:00Z"},
            "spec": {"holderIdentity": "pi-1", "leaseDurationSeconds": 40, "list": [{"a": 1}, "x"], "none": {}},
        });
        check(
            &lease,
            &Context::default(),
            expect![[r#"
            Name:         l
            Labels:       <none>
            Annotations:  <none>
            Created:      2026-11-23T07:00:00Z (60m ago)
            Kind:         Lease
            Api Version:  coordination.k8s.io/v1
            Spec:
              Holder Identity:         pi-1
              Lease Duration Seconds:  40
              List:
                0:
                  A:  1
                1:  x
              None:                    <none>
            Events:       <none>
        "#]],
        );
    }
}
