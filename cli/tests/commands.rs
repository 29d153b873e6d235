//! The program itself against the real API server: what people type, what they
//! read, and how it ends. No nodes, no controllers: the tests play their parts.

#[path = "../../master/apiserver/tests/support/mod.rs"]
mod support;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use expect_test::{Expect, expect};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use wire::enrol::TokenV1;

/// No test waits longer for what is to happen.
const DEADLINE: Duration = Duration::from_secs(60);

struct Cluster {
    running: support::Running,
    dir: TempDir,
}

/// How a run ended.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    out: String,
    err: String,
}

impl Cluster {
    async fn start() -> Self {
        let running = support::start(Arc::new(store::MemoryStore::new())).await;
        let dir = tempfile::tempdir().unwrap();
        running.write_kubeconfig(&dir.path().join("config"), "admin", Some("system:masters"));
        Self { running, dir }
    }

    fn command(&self, line: &str) -> Command {
        let config = self.dir.path().join("config");
        command(self.dir.path(), &config, line)
    }

    async fn run(&self, line: &str) -> Ended {
        finish(self.command(line)).await
    }

    /// Runs a command that must succeed; its standard output.
    async fn ok(&self, line: &str) -> String {
        let ended = self.run(line).await;
        assert_eq!(ended.code, Some(0), "{line}: {ended:?}");
        ended.out
    }

    async fn check(&self, line: &str, expected: Expect) {
        let ended = self.run(line).await;
        let address = self.running.url();
        let err = ended.err.replace(&address, "https://SERVER");
        let dir = self.dir.path().display().to_string();
        let text = format!("{}{}", ended.out, err).replace(&dir, "DIR");
        let code = ended.code.map_or("killed".to_owned(), |code| code.to_string());
        expected.assert_eq(&format!("{text}exit {code}\n"));
    }

    fn file(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    async fn put(&self, method: &str, path: &str, body: &Value) {
        let headers = [("content-type", "application/json")];
        let reply = self.running.ask(method, path, &headers, body.to_string().as_bytes()).await;
        assert!((200..300).contains(&reply.code), "{method} {path}: {}", reply.text());
    }

    async fn object(&self, path: &str) -> Value {
        self.running.ask("GET", path, &[], b"").await.json()
    }

    /// A pod on a node that is not there, as its agent would report it.
    async fn pod(&self, name: &str, status: &Value) {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "web"}},
            "spec": {"nodeName": "pi-1", "containers": [{"name": "app", "image": "app:1"},
                                                        {"name": "side", "image": "side:1"}]},
        });
        let pods = "/api/v1/namespaces/default/pods";
        self.put("POST", pods, &pod).await;
        let mut pod = self.object(&format!("{pods}/{name}")).await;
        pod["status"] = status.clone();
        self.put("PUT", &format!("{pods}/{name}/status"), &pod).await;
    }
}

fn command(home: &Path, config: &Path, line: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pinnace"));
    command
        .args(line.split_whitespace())
        .current_dir(home)
        .env_clear()
        .env("HOME", home)
        .env("KUBECONFIG", config)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

async fn finish(mut command: Command) -> Ended {
    let output = tokio::time::timeout(DEADLINE, command.output()).await.unwrap().unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

const MANIFEST: &str = "\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: app, image: 'registry/app:1'}]}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop}
data: {mode: fast}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop}
";

#[tokio::test]
async fn manifests_are_applied_changed_and_deleted() {
    let cluster = Cluster::start().await;
    cluster.file("hello.yaml", MANIFEST);
    cluster.check("apply -f hello.yaml --dry-run", expect![[r#"
        namespace/shop created (server dry run)
        configmap/settings not checked: namespace shop does not exist yet (server dry run)
        deployment.apps/web not checked: namespace shop does not exist yet (server dry run)
        exit 0
    "#]]).await;
    cluster.check("apply -f hello.yaml", expect![[r#"
        namespace/shop created
        configmap/settings created
        deployment.apps/web created
        exit 0
    "#]]).await;
    cluster.check("apply -f hello.yaml", expect![[r#"
        namespace/shop unchanged
        configmap/settings unchanged
        deployment.apps/web unchanged
        exit 0
    "#]]).await;
    cluster.file("hello.yaml", &MANIFEST.replace("mode: fast", "mode: slow"));
    cluster.check("apply -f hello.yaml --dry-run", expect![[r#"
        namespace/shop unchanged (server dry run)
        configmap/settings configured (server dry run)
        deployment.apps/web unchanged (server dry run)
        exit 0
    "#]]).await;
    cluster.check("apply -f hello.yaml", expect![[r#"
        namespace/shop unchanged
        configmap/settings configured
        deployment.apps/web unchanged
        exit 0
    "#]]).await;
    cluster.check("get cm/settings -n shop -o jsonpath={.data.mode}", expect![[r#"
        slowexit 0
    "#]]).await;
    cluster.check("scale deploy/web --replicas=3 -n shop", expect![[r#"
        deployment.apps/web scaled
        exit 0
    "#]]).await;
    cluster.check("get deploy -n shop -o jsonpath={.items[*].spec.replicas}", expect![[r#"
        3exit 0
    "#]]).await;
    // What somebody else set is taken over only on request.
    cluster.check("apply -f hello.yaml", expect![[r#"
        namespace/shop unchanged
        configmap/settings unchanged
        error: hello.yaml, document 1 (line 1): deployment.apps/web: Apply failed with 1 conflict: conflict with "pinnace" with subresource "scale" using apps/v1: .spec.replicas: leave these fields out, or take them over with --force-conflicts
        exit 1
    "#]]).await;
    cluster.check("apply -f hello.yaml --force-conflicts", expect![[r#"
        namespace/shop unchanged
        configmap/settings unchanged
        deployment.apps/web configured
        exit 0
    "#]]).await;
    cluster.check("delete cm settings nothing -n shop", expect![[r#"
        configmap "settings" deleted from shop namespace
        error: configmaps "nothing" not found
        exit 1
    "#]]).await;
    cluster.check("delete pods -n shop", expect![[r#"
        error: pods: name the objects, or choose them with -l or --all
        exit 1
    "#]]).await;
}

#[tokio::test]
async fn a_manifest_with_mistakes_stops_nothing_else() {
    let cluster = Cluster::start().await;
    std::fs::create_dir_all(cluster.dir.path().join("all")).unwrap();
    cluster.file(
        "all/a.yaml",
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndatta: {}\n---\n\
         apiVersion: v1\nkind: ConfigMap\nmetadata: {name: good}\n---\nkind: [\n",
    );
    cluster.file(
        "all/b.json",
        "{\"apiVersion\":\"apps/v1\",\"kind\":\"Deployment\",\"metadata\":{\"name\":\"b\"},\
         \"spec\":{\"replicas\":-1,\"selector\":{\"matchLabels\":{\"a\":\"b\"}},\"template\":{}}}\n\
         {\"apiVersion\":\"v1\",\"kind\":\"Frob\",\"metadata\":{\"name\":\"c\"}}",
    );
    cluster.check("apply -f all", expect![[r#"
        configmap/good created
        error: all/a.yaml, document 3 (line 9): line 10: cannot read YAML: unclosed bracket '['
        error: all/a.yaml, document 1 (line 1): configmap/a: ConfigMap in version "v1" cannot be handled as a ConfigMap: strict decoding error: unknown field "datta"
        error: all/b.json, document 1 (line 1): deployment.apps/b: Deployment.apps "b" is invalid: [spec.replicas: Invalid value: -1: must be greater than or equal to 0, spec.template.metadata.labels: Invalid value: {}: `selector` does not match template `labels`, spec.template.spec.containers: Required value, spec.template.spec.restartPolicy: Required value, spec.template.spec.dnsPolicy: Required value]
        error: all/b.json, document 2 (line 2): no kind "Frob" in "v1" is served here
        exit 1
    "#]]).await;
    cluster.check("apply -f missing.yaml", expect![[r#"
        error: cannot read missing.yaml: No such file or directory (os error 2)
        exit 1
    "#]]).await;
    cluster.check("apply -f https://example.org/a.yaml", expect![[r#"
        error: https://example.org/a.yaml: fetch it first, and check it: curl -fsS https://example.org/a.yaml | pinnace apply -f -
        exit 1
    "#]]).await;
    cluster.file("other.yaml", "apiVersion: v1\nkind: Secret\nmetadata: {name: s, namespace: x}\n");
    cluster.check("apply -f other.yaml -n y", expect![[r#"
        error: other.yaml, document 1 (line 1): secret/s is for namespace "x", but --namespace says "y": leave one of them out
        exit 1
    "#]]).await;
}

#[tokio::test]
async fn a_wait_ends_with_the_rollout_or_says_what_is_stuck() {
    let cluster = Cluster::start().await;
    cluster.file("hello.yaml", MANIFEST);
    let waiting = cluster.command("apply -f hello.yaml --wait --timeout 50s").spawn().unwrap();
    let path = "/apis/apps/v1/namespaces/shop/deployments/web";
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let mut deployment = loop {
        let reply = cluster.running.ask("GET", path, &[], b"").await;
        if reply.code == 200 {
            break reply.json();
        }
        assert!(tokio::time::Instant::now() < deadline, "the deployment does not come");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    deployment["status"] = json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2,
        "readyReplicas": 2, "availableReplicas": 2});
    cluster.put("PUT", &format!("{path}/status"), &deployment).await;
    let output = tokio::time::timeout(DEADLINE, waiting.wait_with_output()).await.unwrap().unwrap();
    let err = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{err}");
    assert!(err.ends_with("deployment \"web\" successfully rolled out\n"), "{err}");

    let waiting = json!({"phase": "Pending", "containerStatuses": [{
        "name": "app", "ready": false, "restartCount": 0, "image": "x", "imageID": "",
        "state": {"waiting": {"reason": "ImagePullBackOff", "message": "registry/x:1: not found"}}}]});
    cluster.pod("stuck", &waiting).await;
    cluster.file("set.yaml", "apiVersion: apps/v1\nkind: ReplicaSet\nmetadata: {name: s}\nspec:\n  \
        replicas: 1\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web}}\n    \
        spec: {containers: [{name: app, image: x}]}\n");
    let ended = cluster.run("apply -f set.yaml --wait --timeout 1s").await;
    assert_eq!(ended.code, Some(1));
    let reason = "pod stuck, container app: ImagePullBackOff: registry/x:1: not found";
    assert!(ended.err.contains(reason), "{}", ended.err);
}

#[tokio::test]
async fn objects_are_shown_as_in_kubectl() {
    let cluster = Cluster::start().await;
    let status = json!({"phase": "Running", "podIP": "10.42.0.5", "hostIP": "10.0.0.7",
        "conditions": [{"type": "Ready", "status": "True"}],
        "containerStatuses": [
            {"name": "app", "ready": true, "restartCount": 2, "image": "app:1", "imageID": "",
             "state": {"running": {}}},
            {"name": "side", "ready": true, "restartCount": 0, "image": "side:1", "imageID": "",
             "state": {"running": {}}}]});
    cluster.pod("web-1", &status).await;
    cluster.pod("a-longer-name", &json!({"phase": "Pending"})).await;
    let ages = |text: String| {
        let mut out = String::new();
        for line in text.lines() {
            // The one column that depends on when it was asked.
            let words: Vec<&str> = line.split("   ").collect();
            let words = words.iter().map(|word| {
                let digits = word.trim_end_matches('s');
                if digits.len() < word.len() && digits.parse::<u32>().is_ok() { "AGE" } else { word }
            });
            out.push_str(&words.collect::<Vec<_>>().join("   "));
            out.push('\n');
        }
        out
    };
    expect![[r#"
        NAME            READY   STATUS    RESTARTS   AGE
        a-longer-name   0/2     Pending   0          0s
        web-1           2/2     Running   2          0s
    "#]].assert_eq(&ages(cluster.ok("get pods").await));
    expect![[r#"
        NAMESPACE   NAME                READY   STATUS    RESTARTS   AGE   LABELS
        default     pod/a-longer-name   0/2     Pending   0          0s    app=web
        default     pod/web-1           2/2     Running   2          0s    app=web

        NAME                        STATUS   AGE   LABELS
        namespace/default           Active   AGE    kubernetes.io/metadata.name=default
        namespace/kube-node-lease   Active   AGE    kubernetes.io/metadata.name=kube-node-lease
        namespace/kube-public       Active   AGE    kubernetes.io/metadata.name=kube-public
        namespace/kube-system       Active   AGE    kubernetes.io/metadata.name=kube-system
    "#]].assert_eq(&ages(cluster.ok("get pods,ns -A --show-labels").await));
    expect![[r#"
        a-longer-name   0/2   Pending   0     0s    <none>      pi-1   <none>   <none>
        web-1           2/2   Running   2     0s    10.42.0.5   pi-1   <none>   <none>
    "#]].assert_eq(&ages(cluster.ok("get po -o wide --no-headers").await));
    cluster.check("get pods -o name", expect![[r#"
        pod/a-longer-name
        pod/web-1
        exit 0
    "#]]).await;
    cluster.check("get po/web-1 pod/nothing -o name", expect![[r#"
        pod/web-1
        error: pods "nothing" not found
        exit 1
    "#]]).await;
    cluster.check("get deploy", expect![[r#"
        No resources found in default namespace.
        exit 0
    "#]]).await;
    cluster.check("get deploy -A", expect![[r#"
        No resources found
        exit 0
    "#]]).await;
    cluster.check("get nodes", expect![[r#"
        No resources found
        exit 0
    "#]]).await;
    cluster.check("get pots", expect![[r#"
        error: the server doesn't have a resource type "pots": it has configmaps, events, namespaces, nodes, pods, secrets, serviceaccounts, deployments, replicasets, leases
        exit 1
    "#]]).await;
    cluster.check("get pods -l app==", expect![[r#"
        No resources found in default namespace.
        exit 0
    "#]]).await;
    cluster.check("get pods -o frob", expect![[r#"
        error: -o frob: there are json, yaml, wide, name and jsonpath=TEMPLATE
        exit 1
    "#]]).await;
    cluster.check("get pods -l app=nothing -o json", expect![[r#"
        {
            "apiVersion": "v1",
            "items": [],
            "kind": "List",
            "metadata": {
                "resourceVersion": ""
            }
        }
        exit 0
    "#]]).await;
    let yaml = cluster.ok("get pod web-1 -o yaml").await;
    let back: Value = serde_saphyr::from_str(&yaml).unwrap();
    let mut object = cluster.object("/api/v1/namespaces/default/pods/web-1").await;
    object["metadata"].as_object_mut().unwrap().shift_remove("managedFields");
    assert_eq!(back, object);
    let described = cluster.ok("describe pod web-1").await;
    for part in ["Node:", "pi-1/10.0.0.7", "Restart Count:  2", "Events:"] {
        assert!(described.contains(part), "{part} is not in {described}");
    }
}

#[tokio::test]
async fn a_watch_shows_what_changes() {
    let cluster = Cluster::start().await;
    cluster.pod("web-1", &json!({"phase": "Pending"})).await;
    let mut child = cluster.command("get pods -w -o name").spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = async || {
        tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap()
    };
    assert_eq!(next().await, "pod/web-1");
    cluster.pod("web-2", &json!({"phase": "Pending"})).await;
    assert_eq!(next().await, "pod/web-2");
}

#[tokio::test]
async fn logs_come_from_the_container_that_is_meant() {
    let cluster = Cluster::start().await;
    cluster.pod("web-1", &json!({"phase": "Running"})).await;
    cluster.pod("web-2", &json!({"phase": "Running"})).await;
    cluster.check("logs web-1", expect![[r#"
        app on pi-1 says hello
        Defaulted container "app" out of: app, side
        exit 0
    "#]]).await;
    cluster.check("logs web-1 side -f", expect![[r#"
        side on pi-1 says hello
        exit 0
    "#]]).await;
    cluster.check("logs -l app=web --prefix --all-containers", expect![[r#"
        [pod/web-1/app] app on pi-1 says hello
        [pod/web-1/side] side on pi-1 says hello
        [pod/web-2/app] app on pi-1 says hello
        [pod/web-2/side] side on pi-1 says hello
        exit 0
    "#]]).await;
    cluster.check("logs web-1 -c nothing", expect![[r#"
        error: pod web-1 has no container "nothing": it has app, side
        exit 1
    "#]]).await;
    cluster.check("logs nothing", expect![[r#"
        error: pods "nothing" not found
        exit 1
    "#]]).await;
    let followed = cluster.ok("logs -l app=web -f").await;
    let mut lines: Vec<&str> = followed.lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, ["app on pi-1 says hello"; 2]);
}

#[tokio::test]
async fn a_rollout_is_steered() {
    let cluster = Cluster::start().await;
    cluster.file("hello.yaml", MANIFEST);
    cluster.ok("apply -f hello.yaml").await;
    let path = "/apis/apps/v1/namespaces/shop/deployments/web";
    let deployment = cluster.object(path).await;
    for (revision, image) in [(1, "registry/app:0"), (2, "registry/app:1")] {
        let set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": format!("web-{revision}"), "namespace": "shop", "labels": {"app": "web"},
                "annotations": {"deployment.kubernetes.io/revision": revision.to_string()},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web",
                    "uid": deployment["metadata"]["uid"], "controller": true}]},
            "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web", "pod-template-hash": "x"}},
                "template": {"metadata": {"labels": {"app": "web", "pod-template-hash": "x"}},
                    "spec": {"containers": [{"name": "app", "image": image}]}}},
        });
        cluster.put("POST", "/apis/apps/v1/namespaces/shop/replicasets", &set).await;
    }
    cluster.check("rollout history deploy/web -n shop", expect![[r#"
        deployment.apps/web 
        REVISION   CHANGE-CAUSE
        1          <none>
        2          <none>
        exit 0
    "#]]).await;
    cluster.check("rollout undo deploy/web -n shop", expect![[r#"
        deployment.apps/web rolled back
        exit 0
    "#]]).await;
    let image = "-o jsonpath={.spec.template.spec.containers[0].image}";
    cluster.check(&format!("get deploy web -n shop {image}"), expect![[r#"
        registry/app:0exit 0
    "#]]).await;
    let labels = cluster.object(path).await["spec"]["template"]["metadata"]["labels"].clone();
    assert_eq!(labels, json!({"app": "web"}));
    cluster.check("rollout undo deploy/web -n shop --to-revision=7", expect![[r#"
        error: there is no revision 7: there are 1, 2
        exit 1
    "#]]).await;
    cluster.check("rollout pause deploy/web -n shop", expect![[r#"
        deployment.apps/web paused
        exit 0
    "#]]).await;
    cluster.check("rollout pause deploy/web -n shop", expect![[r#"
        error: deployment.apps/web is paused already
        exit 1
    "#]]).await;
    cluster.check("rollout restart deploy/web -n shop", expect![[r#"
        error: deployment.apps/web is paused: resume it first
        exit 1
    "#]]).await;
    cluster.check("rollout resume deploy/web -n shop", expect![[r#"
        deployment.apps/web resumed
        exit 0
    "#]]).await;
    cluster.check("rollout restart deploy/web -n shop", expect![[r#"
        deployment.apps/web restarted
        exit 0
    "#]]).await;
    cluster.check("rollout status deploy/web -n shop --watch=false", expect![[r#"
        Waiting for deployment spec update to be observed...
        exit 0
    "#]]).await;
}

#[tokio::test]
async fn nodes_are_listed_labelled_cordoned_and_confirmed() {
    let cluster = Cluster::start().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "pi-1"}});
    cluster.put("POST", "/api/v1/nodes", &node).await;
    cluster.check("node label pi-1 pinnace.io/link-profile=lan site=north", expect![[r#"
        node/pi-1 labeled
        exit 0
    "#]]).await;
    let list = cluster.ok("node list").await;
    assert!(list.lines().next().unwrap().ends_with("PROFILE"), "{list}");
    assert!(list.lines().nth(1).unwrap().ends_with("lan"), "{list}");
    cluster.check("node cordon pi-1 pi-2", expect![[r#"
        node/pi-1 cordoned
        error: nodes "pi-2" not found
        exit 1
    "#]]).await;
    cluster.check("node cordon pi-1", expect![[r#"
        node/pi-1 already cordoned
        exit 0
    "#]]).await;
    cluster.check("node uncordon pi-1", expect![[r#"
        node/pi-1 uncordoned
        exit 0
    "#]]).await;
    cluster.check("node label pi-1 site-", expect![[r#"
        node/pi-1 labeled
        exit 0
    "#]]).await;
    cluster.check("node confirm --all", expect![[r#"
        error: https://SERVER is not a Pinnace master: it does not describe itself
        exit 1
    "#]]).await;
    describe_cluster(&cluster).await;
    cluster.check("node confirm --all", expect![[r#"
        node/pi-1 confirmed
        exit 0
    "#]]).await;
    let node = cluster.object("/api/v1/nodes/pi-1").await;
    assert_eq!(node["metadata"]["annotations"]["pinnace.io/restore-confirmed"], "e7");
    assert!(node["metadata"]["labels"].get("site").is_none());
    cluster.check("node delete pi-1 pi-2", expect![[r#"
        node/pi-1 deleted
        Removing a node takes it out of the cluster: its pods are deleted and replaced on other nodes,
        and its certificate is no longer accepted. The board itself stops them only if it is still
        connected; to come back it has to join again (`pinnace token create`).
        error: nodes "pi-2" not found
        exit 1
    "#]]).await;
}

/// What a master says of itself.
async fn describe_cluster(cluster: &Cluster) {
    let path = "/api/v1/namespaces/kube-public";
    if cluster.running.ask("GET", path, &[], b"").await.code == 404 {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kube-public"}});
        cluster.put("POST", "/api/v1/namespaces", &namespace).await;
    }
    let info = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "cluster-info"},
        "data": {"node-endpoints": "10.0.0.1:8883,[fd00::1]:8883", "epoch": "e7"}});
    cluster.put("POST", &format!("{path}/configmaps"), &info).await;
}

#[tokio::test]
async fn a_token_is_one_line_and_pins_the_authority() {
    let cluster = Cluster::start().await;
    cluster.check("token create", expect![[r#"
        error: https://SERVER is not a Pinnace master: it does not describe itself
        exit 1
    "#]]).await;
    cluster.check("token list", expect![[r#"
        No tokens found
        exit 0
    "#]]).await;
    describe_cluster(&cluster).await;
    let line = "token create --ttl 2h --uses 3 --node-name pi-1 --node-name pi-2 --labels a=b,c=d";
    let ended = cluster.run(line).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.out.lines().count(), 1);
    assert!(!ended.err.contains("pn1."), "the token goes to standard output only");
    let token = TokenV1::from_text(&ended.out).unwrap();
    assert_eq!(token.endpoints, ["10.0.0.1:8883", "[fd00::1]:8883"]);
    let config = std::fs::read_to_string(cluster.dir.path().join("config")).unwrap();
    let config: Value = serde_saphyr::from_str(&config).unwrap();
    let pem = config["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
    let pem = String::from_utf8(STANDARD.decode(pem).unwrap()).unwrap();
    let body: String = pem.lines().filter(|line| !line.starts_with("---")).collect();
    let der = STANDARD.decode(body).unwrap();
    let digest = ring::digest::digest(&ring::digest::SHA256, &der);
    assert_eq!(token.ca_sha256, digest.as_ref());
    let path = format!("/api/v1/namespaces/kube-system/secrets/pinnace-token-{}", token.id);
    let secret = cluster.object(&path).await;
    let kept = api::enrolment::EnrolmentToken::from_secret(&secret).unwrap();
    assert_eq!((kept.secret, kept.uses_left), (token.secret, 3));
    assert_eq!(kept.node_names, ["pi-1", "pi-2"]);
    assert_eq!(kept.labels.len(), 2);
    let list = cluster.ok("token list").await;
    assert!(list.contains(&token.id) && list.contains("pi-1,pi-2"), "{list}");
    let deleted = cluster.ok(&format!("token delete {}", token.id)).await;
    assert_eq!(deleted, format!("token {} deleted\n", token.id));
    cluster.check("token delete 00000000", expect![[r#"
        error: there is no token 00000000: see `pinnace token list`
        exit 1
    "#]]).await;
}

#[tokio::test]
async fn every_way_to_fail_says_what_to_do() {
    let cluster = Cluster::start().await;
    let config = |name: &str| cluster.dir.path().join(name);
    cluster.running.write_kubeconfig(&config("nobody"), "nobody", None);
    cluster.check("--kubeconfig nobody get secrets", expect![[r#"
        error: secrets is forbidden: User "nobody" cannot list resource "secrets" in API group "" in the namespace "default": use another user or context (--context), or ask an administrator
        exit 1
    "#]]).await;
    let good = std::fs::read_to_string(config("config")).unwrap();
    let anonymous = good.split("users:").next().unwrap().replace(", user: it", "");
    cluster.file("anonymous", &anonymous);
    cluster.check("--kubeconfig anonymous get secrets", expect![[r#"
        error: Unauthorized (from https://SERVER): the credentials in the kubeconfig are not valid for this server: take a new kubeconfig from the master (admin.kubeconfig in its data folder)
        exit 1
    "#]]).await;
    let other = Cluster::start().await;
    let authority = |text: &str| {
        let line = text.lines().find(|line| line.contains("certificate-authority-data")).unwrap();
        line.to_owned()
    };
    let foreign = std::fs::read_to_string(other.dir.path().join("config")).unwrap();
    cluster.file("foreign", &good.replace(&authority(&good), &authority(&foreign)));
    cluster.check("--kubeconfig foreign get pods", expect![[r#"
        error: https://SERVER is not the master this kubeconfig is for: invalid peer certificate: BadSignature: take a new kubeconfig from the master, or correct certificate-authority-data
        exit 1
    "#]]).await;
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody_there = format!("https://{}", free.local_addr().unwrap());
    drop(free);
    cluster.file("down", &good.replace(&cluster.running.url(), &nobody_there));
    let ended = cluster.run("--kubeconfig down get pods").await;
    let expected = format!(
        "error: cannot reach {nobody_there}: Connection refused (os error 111): check that the \
         master runs and that the address in the kubeconfig is right\n"
    );
    assert_eq!((ended.code, ended.err), (Some(1), expected));
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_url = format!("http://{}", silent.local_addr().unwrap());
    cluster.file("silent", &good.replace(&cluster.running.url(), &silent_url));
    let ended = cluster.run("--kubeconfig silent --request-timeout 1s get pods").await;
    assert!(ended.err.contains("did not answer within 1 s"), "{}", ended.err);
    cluster.check("--kubeconfig missing get pods", expect![[r#"
        error: cannot read the kubeconfig missing: No such file or directory (os error 2)
        exit 1
    "#]]).await;
    cluster.check("--context other get pods", expect![[r#"
        error: DIR/config: no context named "other" (there: it)
        exit 1
    "#]]).await;
    let mut bare = cluster.command("get pods");
    bare.env_remove("KUBECONFIG");
    let ended = finish(bare).await;
    assert!(ended.err.contains(".kube/config does not exist; name one with"), "{}", ended.err);
    let usage = cluster.run("get").await;
    assert_eq!(usage.code, Some(2));
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_it_quietly() {
    let cluster = Cluster::start().await;
    for n in 0..30 {
        cluster.pod(&format!("web-{n}"), &json!({"phase": "Pending"})).await;
    }
    let mut command = cluster.command("get pods -o yaml");
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    command.stdout(writer);
    let ended = finish(command).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""));
}

#[tokio::test]
async fn a_kubeconfig_is_merged_beside_what_is_there() {
    let cluster = Cluster::start().await;
    let printed = cluster.ok("kubeconfig -n shop").await;
    let printed: Value = serde_saphyr::from_str(&printed).unwrap();
    assert_eq!(printed["contexts"][0]["context"]["namespace"], "shop");
    assert_eq!(printed["current-context"], "it");
    let home = cluster.dir.path().join(".kube/config");
    cluster.ok("kubeconfig --merge").await;
    assert_eq!(std::fs::metadata(&home).unwrap().permissions().mode() & 0o777, 0o600);
    let mut file = std::fs::OpenOptions::new().append(true).open(&home).unwrap();
    file.write_all(b"extra: kept\n").unwrap();
    cluster.ok("kubeconfig --merge").await;
    let merged: Value = serde_saphyr::from_str(&std::fs::read_to_string(&home).unwrap()).unwrap();
    assert_eq!(merged["extra"], "kept");
    assert_eq!(merged["clusters"].as_array().unwrap().len(), 1);
    let mut plain = cluster.command("get ns -o name");
    plain.env_remove("KUBECONFIG");
    assert!(finish(plain).await.out.contains("namespace/default"));
    cluster.file(".kube/config", "just text");
    cluster.check("kubeconfig --merge", expect![[r#"
        error: DIR/.kube/config, which is left as it is: it is not a kubeconfig
        exit 1
    "#]]).await;
}

/// Answers one request with `body`, as a master gives its backup.
async fn serve_backup(listener: TcpListener, body: Vec<u8>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    assert!(request.starts_with(b"GET /pinnace/v1/backup "), "{request:?}");
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    stream.shutdown().await.unwrap();
}

async fn backup(cluster: &Cluster, body: Vec<u8>) -> Ended {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    cluster.file(
        "plain",
        &format!(
            "current-context: c\nclusters: [{{name: c, cluster: {{server: '{url}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c}}}}]\n"
        ),
    );
    let (ended, ()) = tokio::join!(
        cluster.run("--kubeconfig plain backup create saved.backup"),
        serve_backup(listener, body)
    );
    ended
}

#[tokio::test]
async fn a_backup_is_checked_before_it_has_its_name() {
    let cluster = Cluster::start().await;
    cluster.check("backup create saved.backup", expect![[r#"
        error: cannot get a backup of the master: the server could not find the requested resource: see `pinnace version`, the server may be older
        exit 1
    "#]]).await;
    let saved = cluster.dir.path().join("saved.backup");
    let original = store::LmdbStore::open(&cluster.dir.path().join("db"), store::Config::default()).unwrap();
    let mut writer = store::archive::Writer::new(Vec::new()).unwrap();
    writer.entry("store", |out| store::backup::create(&original, out).map(|_| ()).map_err(std::io::Error::other)).unwrap();
    writer.entry("pki/ca.crt", |out| out.write_all(b"x")).unwrap();
    writer.entry("pki/ca.key", |out| out.write_all(b"y")).unwrap();
    let archive = writer.finish().unwrap();

    let ended = backup(&cluster, archive[..archive.len() - 9].to_vec()).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("it ends early"), "{}", ended.err);
    let left = std::fs::read_dir(cluster.dir.path()).unwrap();
    assert!(!left.into_iter().any(|entry| entry.unwrap().path().to_str().unwrap().contains("saved")));

    let ended = backup(&cluster, archive.clone()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(std::fs::read(&saved).unwrap(), archive);
    assert_eq!(std::fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
    cluster.check("backup create saved.backup", expect![[r#"
        error: saved.backup exists: choose another name, or give --overwrite
        exit 1
    "#]]).await;
    cluster.check("backup restore saved.backup --data-dir restored", expect![[r#"
        restored: 0 objects and the cluster's keys, as of revision 0. Start the master on it; nodes keep what the backup does not know until `pinnace node confirm`.
        exit 0
    "#]]).await;
    cluster.check("backup restore saved.backup --data-dir restored", expect![[r#"
        error: restored is not empty (there is pki): restore into an empty folder, and keep the old one until all is well
        exit 1
    "#]]).await;
    cluster.check("backup restore config --data-dir fresh", expect![[r#"
        error: config: the archive is damaged at byte 0: it is not a backup of a Pinnace cluster: use another one
        exit 1
    "#]]).await;
}

#[tokio::test]
async fn versions_and_completions_are_printed() {
    let cluster = Cluster::start().await;
    let version = cluster.ok("version").await;
    assert!(version.contains("Server Version: v1.35.0+pinnace-"), "{version}");
    assert!(cluster.ok("version --client -o json").await.contains("clientVersion"));
    for shell in ["bash", "zsh", "fish"] {
        assert!(cluster.ok(&format!("completion {shell}")).await.contains("rollout"));
    }
}
