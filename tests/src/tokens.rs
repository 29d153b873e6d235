//! Tokens of ServiceAccounts, from the account to the file in a container and back
//! to the API.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::api::Api;
use crate::harness::pods;
use crate::harness::wait::{check, until};

/// Where containers find what admission gives them.
const FOLDER: &str = "var/run/secrets/kubernetes.io/serviceaccount";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/selfsubjectreviews";

/// Whose token it is by the API server; the HTTP status where it is nobody's.
fn whoami(world: &World, token: &str) -> Result<Value, u16> {
    let api = Api::bearer(&world.master.kubeconfig(), token);
    let answer = api.create(REVIEWS, &json!({"kind": "SelfSubjectReview"}));
    if answer.status == 401 {
        answer.refused(401, "Unauthorized");
        return Err(401);
    }
    Ok(answer.ok()["status"]["userInfo"].take())
}

/// A file of the folder, as the first process of a pod sees it.
fn file(world: &World, pod: &str, name: &str) -> String {
    world.agents[0].proc(pod, &format!("root/{FOLDER}/{name}"))
}

fn claims(token: &str) -> Value {
    let claims = token.split('.').nth(1).unwrap_or_default();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap()
}

fn uid(object: &Value) -> String {
    object["metadata"]["uid"].as_str().unwrap().to_owned()
}

#[test]
fn a_pod_has_its_accounts_token_for_as_long_as_it_lives() {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let read = format!("wc -c < /{FOLDER}/token && ls -A /{FOLDER}/ && exec sleep 1000");
    let reader = pods::pod("reader", &image, &["/bin/sh", "-c", &read], &[]);
    world.create_pod(&reader);
    let mut without = pods::pod("without", &image, &["/bin/sleep", "1000"], &[]);
    without["spec"]["automountServiceAccountToken"] = json!(false);
    world.create_pod(&without);
    let reader = world.pod_becomes_ready("reader");
    let without = world.pod_becomes_ready("without");
    assert_eq!(without["spec"]["volumes"], Value::Null);
    let running = world.agents[0].running();
    let pid = running.iter().find(|one| one.pod == "without").expect("it runs").pid;
    let path = format!("/proc/{pid}/root/{FOLDER}");
    assert!(!std::path::Path::new(&path).exists(), "{path} exists");

    // What the program of the pod sees, and what is in it.
    let token = file(&world, "reader", "token");
    let log = world.kubectl("logs reader").ok();
    assert!(log.starts_with(&format!("{}\n", token.len())), "{log}");
    assert!(["ca.crt", "namespace", "token"].iter().all(|name| log.contains(name)), "{log}");
    assert_eq!(file(&world, "reader", "namespace"), "default");
    let ca = file(&world, "reader", "ca.crt");
    assert!(ca.starts_with("-----BEGIN CERTIFICATE-----"), "{ca}");
    let map = world.kubectl("get configmap kube-root-ca.crt -o jsonpath={.data.ca\\.crt}").ok();
    assert_eq!(map.trim(), ca.trim());

    // Whom the API server takes the pod for.
    let said = claims(&token);
    let own = &said["kubernetes.io"];
    assert_eq!(own["pod"], json!({"name": "reader", "uid": uid(&reader)}));
    assert_eq!((&own["namespace"], &own["node"]["name"]), (&json!("default"), &json!("node-1")));
    assert_eq!(said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap(), 3607);
    let who = whoami(&world, &token).unwrap();
    assert_eq!(who["username"], "system:serviceaccount:default:default");
    assert_eq!(
        who["groups"],
        json!(["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"])
    );
    assert_eq!(who["extra"]["authentication.kubernetes.io/pod-name"], json!(["reader"]));
    let api = Api::bearer(&world.master.kubeconfig(), &token);
    api.get("/api/v1/namespaces/default/secrets").refused(403, "Forbidden");
    assert_eq!(api.get("/.well-known/openid-configuration").ok()["issuer"], said["iss"]);
    assert_eq!(api.get("/openid/v1/jwks").ok()["keys"][0]["alg"], "ES256");
    let mut forged = token.clone().into_bytes();
    let at = forged.len() - 10;
    forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
    assert_eq!(whoami(&world, &String::from_utf8(forged).unwrap()), Err(401));

    // A restart of the agent, and of the master, changes neither token nor pod.
    let running = world.agents[0].processes_by_container();
    world.agents[0].kill();
    world.start_agent(0);
    world.master.kill();
    world.restart_master();
    world.node_becomes_ready("node-1");
    world.pod_becomes_ready("reader");
    assert_eq!(file(&world, "reader", "token"), token);
    assert_eq!(world.agents[0].processes_by_container(), running);
    assert_eq!(whoami(&world, &token).unwrap()["username"], who["username"]);

    // A board alone in its cabinet starts the pod with what it has.
    world.master.kill();
    world.lose_power(0);
    world.boot(0);
    until("the pods run again without the master", || {
        let running = world.agents[0].running();
        check(running.len() == 2, || format!("{running:?}"))
    });
    assert_eq!(file(&world, "reader", "token"), token);
    assert_eq!(file(&world, "reader", "namespace"), "default");
    world.restart_master();
    world.node_becomes_ready("node-1");
    let running = world.agents[0].processes_by_container();
    until("a board that does not know how old its token is has a new one", || {
        let now = file(&world, "reader", "token");
        check(now != token && whoami(&world, &now).is_ok(), || "the token is the old one".into())
    });
    assert_eq!(world.agents[0].processes_by_container(), running);
    // The old one is as good, until its time is over.
    whoami(&world, &token).unwrap();

    world.delete("/api/v1/namespaces/default/pods/reader");
    until("the pod is gone", || check(world.find_pod("reader").is_none(), || "it is there".into()));
    assert_eq!(whoami(&world, &token), Err(401));
    for kept in ["tokens", "set"] {
        let bytes = std::fs::read(world.agents[0].state_dir().join(kept)).unwrap();
        let secret = token.as_bytes();
        assert!(!bytes.windows(40).any(|part| part == &secret[..40]), "{kept} can be read");
    }
}

#[test]
fn kubectl_makes_tokens_and_a_pod_of_no_account_is_refused() {
    let world = World::master_only();
    let kubectl = |words: &str| world.kubectl(words);
    kubectl("create namespace shop").ok();
    kubectl("create serviceaccount till -n shop").ok();
    let token = kubectl("create token till -n shop --duration=20m").ok();
    let token = token.trim();
    let said = claims(token);
    assert_eq!(said["sub"], "system:serviceaccount:shop:till");
    assert_eq!(said["exp"].as_i64().unwrap() - said["iat"].as_i64().unwrap(), 1200);
    let who = whoami(&world, token).unwrap();
    assert_eq!(who["username"], "system:serviceaccount:shop:till");

    // The administrator's own identity is in the kubeconfig; a token of its own is another.
    let kubeconfig: Value =
        serde_json::from_str(&std::fs::read_to_string(world.master.kubeconfig()).unwrap()).unwrap();
    let mut other = kubeconfig;
    other["users"][0]["user"] = json!({"token": token});
    let path = world.dir().join("till.kubeconfig");
    std::fs::write(&path, other.to_string()).unwrap();
    let as_till = |words: &str| {
        let mut command = world.kubectl_command();
        command.args(words.split(' ')).env("KUBECONFIG", &path);
        crate::harness::process::run_with(command, "")
    };
    let out = as_till("auth whoami").ok();
    assert!(out.contains("system:serviceaccount:shop:till"), "{out}");
    let out = as_till("get pods -n shop");
    assert!(out.err.contains("cannot list resource \"pods\""), "{out}");
    assert!(as_till("auth can-i list pods").out.starts_with("no"));

    for (words, problem) in [
        ("create token ghost", "serviceaccounts \"ghost\" not found"),
        ("create token default --duration=5m", "may not specify a duration less than 10 minutes"),
        (
            "create token default --bound-object-kind=Pod --bound-object-name=none",
            "pods \"none\" not found",
        ),
    ] {
        let out = kubectl(words);
        assert!(out.code != 0 && out.err.contains(problem), "{out}");
    }
    let vault = kubectl("create token till -n shop --audience=vault").ok();
    assert_eq!(whoami(&world, vault.trim()), Err(401), "it is for somebody else");
    let review = |token: &str, audiences: Value| {
        let spec = json!({"token": token, "audiences": audiences});
        let path = "/apis/authentication.k8s.io/v1/tokenreviews";
        world.api.create(path, &json!({"spec": spec})).ok()["status"].take()
    };
    let status = review(vault.trim(), json!(["vault", "ci"]));
    assert_eq!((&status["authenticated"], &status["audiences"]), (&json!(true), &json!(["vault"])));
    assert_eq!(status["user"]["username"], "system:serviceaccount:shop:till");
    assert_eq!(review(vault.trim(), json!([]))["authenticated"], false);
    assert_eq!(review("garbage", json!([]))["authenticated"], false);

    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "ghost", "containers": [{"name": "main", "image": "x"}]},
    });
    let message = world.api.create("/api/v1/namespaces/shop/pods", &pod).refused(403, "Forbidden");
    assert!(
        message.contains(
            "error looking up service account shop/ghost: serviceaccount \"ghost\" not found"
        ),
        "{message}"
    );
    until("every namespace says who vouches for the API server", || {
        let shown = kubectl(
            "get configmaps -A --no-headers --field-selector=metadata.name=kube-root-ca.crt",
        )
        .out;
        check(shown.lines().count() == 5, || shown.clone())
    });
    kubectl("delete configmap kube-root-ca.crt -n shop").ok();
    until("it is there again", || {
        let out = kubectl("get configmap kube-root-ca.crt -n shop");
        check(out.code == 0, || out.to_string())
    });

    // The account goes, and with it what it gave; one of the same name is another.
    kubectl("delete serviceaccount till -n shop").ok();
    assert_eq!(whoami(&world, token), Err(401));
    kubectl("create serviceaccount till -n shop").ok();
    assert_eq!(whoami(&world, token), Err(401));
}
