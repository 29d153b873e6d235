//! Commands about objects: apply, get, describe, delete, logs, scale, rollout.

use std::time::Duration;

use expect_test::expect;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};

use crate::harness::{Cluster, DEADLINE, MANIFEST};

#[tokio::test]
async fn manifests_are_applied_changed_and_deleted() {
    let cluster = Cluster::start().await;
    cluster.file("hello.yaml", MANIFEST);
    cluster
        .check(
            "apply -f hello.yaml --dry-run",
            expect![[r#"
        namespace/shop created (server dry run)
        configmap/settings not checked: namespace shop does not exist yet (server dry run)
        deployment.apps/web not checked: namespace shop does not exist yet (server dry run)
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "apply -f hello.yaml",
            expect![[r#"
        namespace/shop created
        configmap/settings created
        deployment.apps/web created
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "apply -f hello.yaml",
            expect![[r#"
        namespace/shop unchanged
        configmap/settings unchanged
        deployment.apps/web unchanged
        exit 0
    "#]],
        )
        .await;
    cluster.file("hello.yaml", &MANIFEST.replace("mode: fast", "mode: slow"));
    cluster
        .check(
            "apply -f hello.yaml --dry-run",
            expect![[r#"
        namespace/shop unchanged (server dry run)
        configmap/settings configured (server dry run)
        deployment.apps/web unchanged (server dry run)
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "apply -f hello.yaml",
            expect![[r#"
        namespace/shop unchanged
        configmap/settings configured
        deployment.apps/web unchanged
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "get cm/settings -n shop -o jsonpath={.data.mode}",
            expect![[r#"
        slowexit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "scale deploy/web --replicas=3 -n shop",
            expect![[r#"
        deployment.apps/web scaled
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "get deploy -n shop -o jsonpath={.items[*].spec.replicas}",
            expect![[r#"
        3exit 0
    "#]],
        )
        .await;
    // What other commands of ours have set, the manifest takes back.
    cluster.check("apply -f hello.yaml", expect![[r#"
        namespace/shop unchanged
        configmap/settings unchanged
        deployment.apps/web configured
        Warning: deployment.apps/web: .spec.replicas was changed by pinnace since the last apply; the manifest counts
        exit 0
    "#]]).await;
    // What somebody else has set is taken over only on request.
    let path = "/apis/apps/v1/namespaces/shop/deployments/web";
    let patch = b"{\"spec\":{\"replicas\":5}}";
    let headers = [("content-type", "application/merge-patch+json")];
    let url = format!("{path}?fieldManager=somebody");
    assert_eq!(cluster.running.ask("PATCH", &url, &headers, patch).await.code, 200);
    let refused = cluster.run("apply -f hello.yaml").await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.err.contains("conflict with \"somebody\""), "{}", refused.err);
    cluster
        .check(
            "apply -f hello.yaml --force-conflicts",
            expect![[r#"
        namespace/shop unchanged
        configmap/settings unchanged
        deployment.apps/web configured
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "delete cm settings nothing -n shop",
            expect![[r#"
        configmap "settings" deleted from shop namespace
        error: configmaps "nothing" not found
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "delete pods -n shop",
            expect![[r#"
        error: pods: name the objects, or choose them with -l or --all
        exit 1
    "#]],
        )
        .await;
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
    cluster
        .check(
            "apply -f missing.yaml",
            expect![[r#"
        error: cannot read missing.yaml: No such file or directory (os error 2)
        exit 1
    "#]],
        )
        .await;
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
    // The one column that depends on when it was asked, in its least width.
    let ages = |text: String| {
        let mut out = String::new();
        for line in text.lines() {
            let mut line = line.to_owned();
            for seconds in (1..100).rev() {
                let (short, padded) = (format!(" {seconds}s"), format!(" {seconds}s "));
                line = line.replace(&padded, if seconds < 10 { " 0s " } else { " 0s  " });
                if let Some(start) = line.strip_suffix(&short) {
                    line = format!("{start} 0s");
                }
            }
            out.push_str(&line);
            out.push('\n');
        }
        out
    };
    expect![[r#"
        NAME            READY   STATUS    RESTARTS   AGE
        a-longer-name   0/2     Pending   0          0s
        web-1           2/2     Running   2          0s
    "#]]
    .assert_eq(&ages(cluster.ok("get pods").await));
    expect![[r#"
        NAMESPACE   NAME                READY   STATUS    RESTARTS   AGE   LABELS
        default     pod/a-longer-name   0/2     Pending   0          0s    app=web
        default     pod/web-1           2/2     Running   2          0s    app=web

        NAMESPACE   NAME                        STATUS   AGE   LABELS
                    namespace/default           Active   0s    kubernetes.io/metadata.name=default
                    namespace/kube-node-lease   Active   0s    kubernetes.io/metadata.name=kube-node-lease
                    namespace/kube-public       Active   0s    kubernetes.io/metadata.name=kube-public
                    namespace/kube-system       Active   0s    kubernetes.io/metadata.name=kube-system
    "#]]
    .assert_eq(&ages(cluster.ok("get pods,ns -A --show-labels").await));
    expect![[r#"
        a-longer-name   0/2   Pending   0     0s    <none>      pi-1   <none>   <none>
        web-1           2/2   Running   2     0s    10.42.0.5   pi-1   <none>   <none>
    "#]]
    .assert_eq(&ages(cluster.ok("get po -o wide --no-headers").await));
    cluster
        .check(
            "get pods -o name",
            expect![[r#"
        pod/a-longer-name
        pod/web-1
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "get po/web-1 pod/nothing -o name",
            expect![[r#"
        pod/web-1
        error: pods "nothing" not found
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "get deploy",
            expect![[r#"
        No resources found in default namespace.
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "get deploy -A",
            expect![[r#"
        No resources found
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "get nodes",
            expect![[r#"
        No resources found
        exit 0
    "#]],
        )
        .await;
    cluster.check("get pots", expect![[r#"
        error: the server doesn't have a resource type "pots": it has configmaps, endpoints, events, namespaces, nodes, persistentvolumeclaims, persistentvolumes, pods, secrets, serviceaccounts, services, deployments, replicasets, leases, endpointslices, nodes, pods, nodepaths, networkpolicies, runtimeclasses, storageclasses
        exit 1
    "#]]).await;
    cluster
        .check(
            "get pods -l app==",
            expect![[r#"
        No resources found in default namespace.
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "get pods -o frob",
            expect![[r#"
        error: -o frob: there are json, yaml, wide, name and jsonpath=TEMPLATE
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "get pods -l app=nothing -o json",
            expect![[r#"
        {
            "apiVersion": "v1",
            "items": [],
            "kind": "List",
            "metadata": {
                "resourceVersion": ""
            }
        }
        exit 0
    "#]],
        )
        .await;
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
    let mut next =
        async || tokio::time::timeout(DEADLINE, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(next().await, "pod/web-1");
    cluster.pod("web-2", &json!({"phase": "Pending"})).await;
    assert_eq!(next().await, "pod/web-2");
}

#[tokio::test]
async fn logs_come_from_the_container_that_is_meant() {
    let cluster = Cluster::start().await;
    cluster.pod("web-1", &json!({"phase": "Running"})).await;
    cluster.pod("web-2", &json!({"phase": "Running"})).await;
    cluster
        .check(
            "logs web-1",
            expect![[r#"
        app on pi-1 says hello
        Defaulted container "app" out of: app, side
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "logs web-1 side -f",
            expect![[r#"
        side on pi-1 says hello
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "logs -l app=web --prefix --all-containers",
            expect![[r#"
        [pod/web-1/app] app on pi-1 says hello
        [pod/web-1/side] side on pi-1 says hello
        [pod/web-2/app] app on pi-1 says hello
        [pod/web-2/side] side on pi-1 says hello
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "logs web-1 -c nothing",
            expect![[r#"
        error: pod web-1 has no container "nothing": it has app, side
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "logs nothing",
            expect![[r#"
        error: pods "nothing" not found
        exit 1
    "#]],
        )
        .await;
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
    cluster
        .check(
            "rollout history deploy/web -n shop",
            expect![[r#"
        deployment.apps/web 
        REVISION   CHANGE-CAUSE
        1          <none>
        2          <none>
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "rollout undo deploy/web -n shop",
            expect![[r#"
        deployment.apps/web rolled back
        exit 0
    "#]],
        )
        .await;
    let image = "-o jsonpath={.spec.template.spec.containers[0].image}";
    cluster
        .check(
            &format!("get deploy web -n shop {image}"),
            expect![[r#"
        registry/app:0exit 0
    "#]],
        )
        .await;
    let labels = cluster.object(path).await["spec"]["template"]["metadata"]["labels"].clone();
    assert_eq!(labels, json!({"app": "web"}));
    cluster
        .check(
            "rollout undo deploy/web -n shop --to-revision=7",
            expect![[r#"
        error: there is no revision 7: there are 1, 2
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "rollout pause deploy/web -n shop",
            expect![[r#"
        deployment.apps/web paused
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "rollout pause deploy/web -n shop",
            expect![[r#"
        error: deployment.apps/web is paused already
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "rollout restart deploy/web -n shop",
            expect![[r#"
        error: deployment.apps/web is paused: resume it first
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "rollout resume deploy/web -n shop",
            expect![[r#"
        deployment.apps/web resumed
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "rollout restart deploy/web -n shop",
            expect![[r#"
        deployment.apps/web restarted
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "rollout status deploy/web -n shop --watch=false",
            expect![[r#"
        Waiting for deployment spec update to be observed...
        exit 0
    "#]],
        )
        .await;
}
