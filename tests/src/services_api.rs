//! Services as their users make, look at, change and remove them: what the master
//! gives, keeps and refuses, and who is behind them. What reaches them over the
//! network is tested elsewhere.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods;
use crate::harness::process::Output;
use crate::harness::wait::{check, until};

/// A Service object.
fn service(name: &str, spec: Value) -> String {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec})
        .to_string()
}

fn get(world: &World, path: &str) -> Value {
    world.master.api().send(Method::GET, path, "", String::new()).unwrap().ok()
}

fn service_of(world: &World, name: &str) -> Value {
    get(world, &format!("/api/v1/namespaces/default/services/{name}"))
}

/// Addresses in the slices of a Service; only the ready ones where asked.
fn addresses(world: &World, name: &str, only_ready: bool) -> BTreeSet<String> {
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{name}"
    );
    let mut all = BTreeSet::new();
    for slice in get(world, &path)["items"].as_array().unwrap() {
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            if !only_ready || endpoint["conditions"]["ready"] == true {
                all.insert(endpoint["addresses"][0].as_str().unwrap().to_owned());
            }
        }
    }
    all
}

#[track_caller]
fn fails_with(output: &Output, text: &str) {
    assert_ne!(output.code, 0, "{output}");
    assert!(output.err.contains(text), "{text:?} is missing in {output}");
}

#[test]
fn services_are_made_and_changed_with_kubectl() {
    let world = World::master_only();
    let kubectl = |words: &str| world.kubectl(words).ok();

    // What is there before anybody asked.
    let out = kubectl("get services -A");
    assert!(out.contains("10.43.0.1 ") && out.contains("443/TCP"), "{out}");
    assert!(out.contains("10.43.0.10 ") && out.contains("53/UDP,53/TCP"), "{out}");
    let out = kubectl("get endpointslices kubernetes");
    assert!(out.contains("IPv4") && out.contains("10.201.0.1"), "{out}");
    let out = kubectl("get endpoints kubernetes");
    assert!(out.contains("10.201.0.1:"), "{out}");
    let out = kubectl("cluster-info");
    assert!(out.contains("CoreDNS") && out.contains("is running at"), "{out}");

    // Every type by its own command.
    assert_eq!(kubectl("create service clusterip web --tcp=80:8080"), "service/web created\n");
    assert_eq!(kubectl("create service nodeport node --tcp=80"), "service/node created\n");
    kubectl("create service loadbalancer front --tcp=80");
    kubectl("create service externalname db --external-name=db.example.com");
    kubectl("create service clusterip bare --clusterip=None");
    let out = kubectl("get svc -o wide");
    for line in ["app=web", "db.example.com", "<pending>", "None", "80:3"] {
        assert!(out.contains(line), "{line}: {out}");
    }
    let out = kubectl("get all");
    assert!(out.contains("service/web"), "{out}");
    let web = service_of(&world, "web");
    let address = web["spec"]["clusterIP"].as_str().unwrap().to_owned();
    assert_eq!(web["spec"]["ports"][0]["targetPort"], 8080);
    let out = kubectl("describe service web");
    for text in
        ["Selector:", "app=web", "IP Family Policy:", "SingleStack", &address, "TargetPort:"]
    {
        assert!(out.contains(text), "{text}: {out}");
    }

    // `expose` reads the workload.
    let image = "registry.example.com/web:1";
    let deployment = pods::deployment("shop", 0, pods::pod("", image, &["/web"], &[]));
    world.kubectl_with(&["apply", "-f", "-"], &deployment.to_string()).ok();
    let out = kubectl("expose deployment shop --port=80 --target-port=http --type=NodePort");
    assert_eq!(out, "service/shop exposed\n");
    assert_eq!(service_of(&world, "shop")["spec"]["selector"], json!({"app": "shop"}));

    // Applied on both sides; the address stays, whatever is left out.
    let manifest = service("api", json!({"selector": {"app": "api"}, "ports": [{"port": 80}]}));
    world.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    let before = service_of(&world, "api")["spec"]["clusterIP"].clone();
    let out = world.kubectl_with(&["apply", "-f", "-"], &manifest).ok();
    assert_eq!(out, "service/api unchanged\n");
    let changed = service("api", json!({"selector": {"app": "api"}, "ports": [{"port": 81}]}));
    let out = world.kubectl_with(&["diff", "-f", "-"], &changed);
    assert_eq!(out.code, 1, "{out}");
    world.kubectl_with(&["apply", "-f", "-"], &changed).ok();
    world.kubectl_with(&["replace", "-f", "-"], &manifest).ok();
    world
        .kubectl_with(
            &["apply", "--server-side", "--force-conflicts", "-f", "-"],
            &service(
                "api",
                json!({"type": "NodePort", "selector": {"app": "api"}, "ports": [{"port": 80}]}),
            ),
        )
        .ok();
    let after = service_of(&world, "api");
    assert_eq!(after["spec"]["clusterIP"], before);
    let node_port = after["spec"]["ports"].as_array().unwrap().iter().find(|p| p["port"] == 80);
    assert!(node_port.unwrap()["nodePort"].as_u64().unwrap() >= 30000, "{after}");

    // Names and numbers that are somebody's are refused, all that is wrong at once.
    let output = world.kubectl_with(
        &["create", "-f", "-"],
        &service("second", json!({"clusterIP": address, "ports": [{"port": 80}]})),
    );
    fails_with(
        &output,
        &format!("failed to allocate IP {address}: provided IP is already allocated"),
    );
    let taken = service_of(&world, "node")["spec"]["ports"][0]["nodePort"].clone();
    let output = world.kubectl_with(
        &["create", "-f", "-"],
        &service("second", json!({"type": "NodePort", "ports": [{"port": 80, "nodePort": taken}]})),
    );
    fails_with(&output, "provided port is already allocated");
    let output = world.kubectl_with(
        &["create", "-f", "-"],
        &service("Second", json!({"clusterIP": "10.99.0.1", "ports": [{"port": 0}]})),
    );
    for text in ["metadata.name", "spec.ports[0].port"] {
        fails_with(&output, text);
    }
    let patch = r#"{"spec":{"clusterIP":"10.43.200.200","clusterIPs":["10.43.200.200"]}}"#;
    let output = world.kubectl_with(&["patch", "service", "web", "-p", patch], "");
    fails_with(&output, "may not change once set");
    let output = world.kubectl_with(
        &["create", "--dry-run=server", "-o", "yaml", "-f", "-"],
        &service("dry", json!({"ports": [{"port": 80}]})),
    );
    assert!(output.ok().contains("clusterIP: 10.43."), "a dry run shows an address");

    // What is removed is free again, and what must be there comes back.
    kubectl("delete service web");
    world
        .kubectl_with(
            &["create", "-f", "-"],
            &service("second", json!({"clusterIP": address, "ports": [{"port": 80}]})),
        )
        .ok();
    kubectl("delete service kubernetes");
    kubectl("delete service kube-dns -n kube-system");
    until("both are back", || {
        let out = kubectl("get services -A");
        check(out.contains("10.43.0.1 ") && out.contains("10.43.0.10 "), || out.clone())
    });

    // Our own command line.
    let out = world.pinnace("get svc,ep,endpointslices,netpol").ok();
    assert!(out.contains("front") && out.contains("<pending>"), "{out}");
    let out = world.pinnace("describe service front").ok();
    for text in ["LoadBalancer", "Endpoints:", "Node Port"] {
        assert!(out.contains(text), "{text}: {out}");
    }
}

#[test]
fn policies_and_slices_of_ones_own_are_kept_and_checked() {
    let world = World::master_only();
    let policy = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": {"name": "only-web"},
        "spec": {"podSelector": {"matchLabels": {"app": "db"}}, "ingress": [
            {"from": [{"podSelector": {"matchLabels": {"app": "web"}}}], "ports": [{"port": 5432}]}]},
    });
    world.kubectl_with(&["apply", "-f", "-"], &policy.to_string()).ok();
    let out = world.kubectl("get netpol").ok();
    assert!(out.contains("POD-SELECTOR") && out.contains("app=db"), "{out}");
    let out = world.kubectl("describe networkpolicy only-web").ok();
    for text in ["5432/TCP", "PodSelector: app=web", "Policy Types: Ingress"] {
        assert!(out.contains(text), "{text}: {out}");
    }
    let mut wrong = policy;
    wrong["metadata"]["name"] = "wrong".into();
    wrong["spec"]["ingress"][0]["from"] =
        json!([{"ipBlock": {"cidr": "10.0.0.0/16", "except": ["10.1.0.0/24"]}}]);
    let output = world.kubectl_with(&["apply", "-f", "-"], &wrong.to_string());
    fails_with(&output, "must be a strict subset of `cidr`");

    // A Service without a selector, and what is behind it by hand.
    let outside = service("outside", json!({"ports": [{"port": 80, "targetPort": 8080}]}));
    world.kubectl_with(&["apply", "-f", "-"], &outside).ok();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "outside-1", "labels": {"kubernetes.io/service-name": "outside"}},
        "addressType": "IPv4", "ports": [{"port": 8080}],
        "endpoints": [{"addresses": ["192.168.7.7"], "conditions": {"ready": true}}],
    });
    world.kubectl_with(&["apply", "-f", "-"], &slice.to_string()).ok();
    assert_eq!(addresses(&world, "outside", true), ["192.168.7.7".to_owned()].into());
    let out = world.kubectl("describe service outside").ok();
    assert!(out.contains("192.168.7.7:8080"), "{out}");
}

#[test]
fn endpoints_follow_the_readiness_of_pods() {
    let world = World::master_only();
    let api = world.master.api();
    world.kubectl("create service clusterip web --tcp=80:8080").ok();
    // The master alone: this test plays the node, and holds what it is to see going.
    let address = |n: usize| format!("10.42.77.{}", n + 2);
    for n in 0..3 {
        let mut pod = pods::pod(&format!("web-{n}"), "registry.example.com/web:1", &["/web"], &[]);
        pod["metadata"]["labels"] = json!({"app": "web"});
        pod["metadata"]["finalizers"] = json!(["tests.example/hold"]);
        pod["spec"]["schedulerName"] = "nobody".into();
        world.create_pod(&pod);
    }
    let ready = |n: usize, status: &str| {
        let patch = json!({"status": {"phase": "Running", "podIP": address(n),
            "podIPs": [{"ip": address(n)}],
            "conditions": [{"type": "Ready", "status": status}]}});
        let path = format!("/api/v1/namespaces/default/pods/web-{n}/status");
        let kind = "application/merge-patch+json";
        api.send(Method::PATCH, &path, kind, patch.to_string()).unwrap().ok();
    };
    let become_these = |what: &str, only_ready: bool, pods: &[usize]| {
        let expected: BTreeSet<String> = pods.iter().map(|n| address(*n)).collect();
        until(what, || {
            let found = addresses(&world, "web", only_ready);
            check(found == expected, || format!("{found:?}"))
        });
    };
    become_these("nobody has an address", false, &[]);
    (0..3).for_each(|n| ready(n, "True"));
    become_these("all are ready", true, &[0, 1, 2]);
    ready(1, "False");
    become_these("one is not", true, &[0, 2]);
    become_these("but is known", false, &[0, 1, 2]);
    let out = world.kubectl("get endpoints web").ok();
    assert!(out.contains("10.42.77.2:8080,10.42.77.4:8080"), "{out}");
    let out = world.kubectl("get endpointslices -l kubernetes.io/service-name=web").ok();
    assert!(out.contains("IPv4") && out.contains("8080"), "{out}");

    // One that goes is known until it has gone.
    world.kubectl("delete pod web-0 --wait=false").ok();
    become_these("on its way out", true, &[2]);
    become_these("but is known too", false, &[0, 1, 2]);
    let patch = r#"{"metadata":{"finalizers":null}}"#;
    world.kubectl_with(&["patch", "pod", "web-0", "--type=merge", "-p", patch], "").ok();
    become_these("gone", false, &[1, 2]);

    // The slices go with the Service.
    world.kubectl("delete service web").ok();
    until("its slices are gone", || {
        let out = world.kubectl("get endpointslices,endpoints").ok();
        check(!out.contains("web"), || out.clone())
    });
}
