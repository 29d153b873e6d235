//! What becomes of a token: issued, checked, and ended.

use std::cell::Cell;
use std::sync::Arc;

use store::MemoryStore;

use super::*;
use crate::options::{DeleteOptions, WriteOptions};
use crate::status::Reason;

thread_local! {
    static NOW_S: Cell<u64> = const { Cell::new(1_800_000_000) };
}

fn clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(NOW_S.get())
}

/// Lets time pass; back, where it is negative.
fn pass(seconds: i64) {
    NOW_S.set(NOW_S.get().saturating_add_signed(seconds));
}

struct Cluster {
    api: Api,
    options: WriteOptions,
}

impl Cluster {
    async fn new() -> Self {
        let api = Api::new(Arc::new(MemoryStore::new()));
        let key = TokenKey::from_pkcs8(&TokenKey::generate()).unwrap();
        api.set_token_issuer(TokenIssuer::new(key, clock));
        api.bootstrap().await.unwrap();
        let cluster = Self { api, options: WriteOptions::by("test") };
        let build = json!({"metadata": {"name": "build"}, "automountServiceAccountToken": false});
        cluster.create("ServiceAccount", build).await;
        cluster
    }

    async fn create(&self, kind: &str, object: Value) -> Value {
        let resource = resource_of(kind);
        let namespace = if resource.namespaced { "default" } else { "" };
        let who = Identity::master("test");
        let written = self.api.create(&who, resource, namespace, object, &self.options).await;
        written.unwrap().value()
    }

    async fn delete(&self, kind: &str, name: &str) {
        let resource = resource_of(kind);
        let namespace = if resource.namespaced { "default" } else { "" };
        let target = Target::object(resource, namespace, name);
        let options = DeleteOptions { grace_period_seconds: Some(0), ..DeleteOptions::default() };
        self.api.delete(&Identity::master("test"), &target, &options).await.unwrap();
    }

    async fn pod(&self, name: &str, spec: Value) -> Value {
        let mut pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [{"name": "main", "image": "x"}]},
        });
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        self.create("Pod", pod).await
    }

    /// A `TokenRequest` for the account `build`; the answer, or reason and message.
    fn request(&self, spec: Value) -> Result<Value, (Reason, String)> {
        self.request_of("build", json!({"spec": spec}))
    }

    fn request_of(&self, account: &str, request: Value) -> Result<Value, (Reason, String)> {
        let target = Target::object(resource_of("ServiceAccount"), "default", account);
        let who = Identity::master("test");
        let made = self.api.create_token(&who, &target, request, &self.options);
        made.map(|(answer, _)| answer).map_err(|status| (status.reason, status.message))
    }

    fn token(&self, spec: Value) -> String {
        let answer = self.request(spec).unwrap();
        answer["status"]["token"].as_str().unwrap().to_owned()
    }

    /// The user of a token, or why it is nobody's.
    fn whose(&self, token: &str) -> String {
        match self.api.authenticate_token(token, &[]) {
            Ok((who, _)) => who.user,
            Err(error) => error.to_string(),
        }
    }
}

const BUILD: &str = "system:serviceaccount:default:build";

#[tokio::test]
async fn a_token_is_its_account_with_upstreams_groups_and_extra() {
    let cluster = Cluster::new().await;
    let node = cluster.create("Node", json!({"metadata": {"name": "n1"}})).await;
    let spec = json!({"serviceAccountName": "build", "nodeName": "n1"});
    let pod = cluster.pod("p", spec).await;
    let reference = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
    let answer = cluster.request(json!({"boundObjectRef": reference})).unwrap();
    assert_eq!(answer["spec"]["audiences"], json!([ISSUER]));
    assert_eq!(answer["spec"]["expirationSeconds"], 3600);
    assert_eq!(answer["status"]["expirationTimestamp"], "2027-01-15T09:00:00Z");
    assert_eq!(answer["metadata"]["name"], "build");
    let token = answer["status"]["token"].as_str().unwrap();
    let (who, audiences) = cluster.api.authenticate_token(token, &[]).unwrap();
    assert_eq!((who.user.as_str(), audiences), (BUILD, vec![ISSUER.to_owned()]));
    let groups = [SERVICE_ACCOUNTS, "system:serviceaccounts:default", AUTHENTICATED];
    assert_eq!(who.groups, groups);
    assert!(!who.uid.is_empty());
    let extra: Vec<String> =
        who.extra.iter().map(|(key, value)| format!("{key}={}", value.join(","))).collect();
    let uid = |object: &Value| object::meta(object, "uid").to_owned();
    assert!(extra[0].starts_with("authentication.kubernetes.io/credential-id=JTI="));
    assert_eq!(
        extra[1..],
        [
            "authentication.kubernetes.io/node-name=n1".to_owned(),
            format!("authentication.kubernetes.io/node-uid={}", uid(&node)),
            "authentication.kubernetes.io/pod-name=p".to_owned(),
            format!("authentication.kubernetes.io/pod-uid={}", uid(&pod)),
        ]
    );
    // Without a role it may do nothing but ask who it is.
    let target = Target::object(resource_of("Pod"), "default", "p");
    assert_eq!(cluster.api.get(&who, &target).unwrap_err().reason, Reason::Forbidden);
}

#[tokio::test]
async fn a_token_ends_with_its_time_and_clocks_may_differ_a_little() {
    let cluster = Cluster::new().await;
    let token = cluster.token(json!({"expirationSeconds": 600}));
    for (seconds, expected) in [
        (0, BUILD),
        (-59, BUILD),
        (-2, "service account token is not valid yet"),
        (-500_000_000, "service account token is not valid yet"),
        (500_000_061, BUILD),
        (600, BUILD),
        (60, BUILD),
        (1, "service account token has expired"),
        (500_000_000, "service account token has expired"),
    ] {
        pass(seconds);
        assert_eq!(cluster.whose(&token), expected, "after {seconds} s more");
    }
}

#[tokio::test]
async fn a_token_ends_with_its_account_and_with_what_it_is_bound_to() {
    let cluster = Cluster::new().await;
    cluster.create("Secret", json!({"metadata": {"name": "s"}})).await;
    cluster.create("Node", json!({"metadata": {"name": "n"}})).await;
    cluster.pod("p", json!({"serviceAccountName": "build"})).await;
    let bound = |kind: &str, name: &str| {
        cluster.token(json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name}}))
    };
    let (free, again) = (cluster.token(json!({})), cluster.token(json!({})));
    let tokens = [bound("Secret", "s"), bound("Node", "n"), bound("Pod", "p")];
    for token in tokens.iter().chain([&free, &again]) {
        assert_eq!(cluster.whose(token), BUILD);
    }
    let gone = "service account token has been invalidated: ";
    for ((kind, name), token) in [("Secret", "s"), ("Node", "n"), ("Pod", "p")].iter().zip(&tokens)
    {
        cluster.delete(kind, name).await;
        let what = format!("{} \"{name}\"", kind.to_lowercase());
        assert_eq!(cluster.whose(token), format!("{gone}{what} is gone"));
        // One of the same name is another one.
        let account = json!({"serviceAccountName": "build"});
        match *kind {
            "Pod" => drop(cluster.pod(name, account).await),
            _ => drop(cluster.create(kind, json!({"metadata": {"name": name}})).await),
        }
        assert_eq!(cluster.whose(token), format!("{gone}{what} is another one by now"));
    }
    cluster.delete("ServiceAccount", "build").await;
    assert_eq!(cluster.whose(&free), format!("{gone}serviceaccount \"build\" is gone"));
    cluster.create("ServiceAccount", json!({"metadata": {"name": "build"}})).await;
    let another = format!("{gone}serviceaccount \"build\" is another one by now");
    assert_eq!(cluster.whose(&again), another);
}

#[tokio::test]
async fn a_pod_that_is_being_deleted_counts_for_a_minute_more() {
    let cluster = Cluster::new().await;
    let spec = json!({"serviceAccountName": "build", "terminationGracePeriodSeconds": 30});
    let pod = cluster.pod("p", spec).await;
    // Somebody is to stop it first.
    let target = Target::object(resource_of("Pod"), "default", "p");
    let mut bound = pod.clone();
    bound["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let who = Identity::master("test");
    cluster.api.update(&who, &target, bound, &cluster.options).await.unwrap();
    NOW_S.set(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let reference = json!({"kind": "Pod", "apiVersion": "v1", "name": "p"});
    let token = cluster.token(json!({"boundObjectRef": reference}));
    cluster.api.delete(&who, &target, &DeleteOptions::default()).await.unwrap();
    assert_eq!(cluster.whose(&token), BUILD);
    pass(200);
    assert_eq!(
        cluster.whose(&token),
        "service account token has been invalidated: pod \"p\" was deleted"
    );
}

#[tokio::test]
async fn a_token_is_for_its_audience_alone() {
    let cluster = Cluster::new().await;
    let token = cluster.token(json!({"audiences": ["vault", "ci"]}));
    assert!(cluster.whose(&token).contains("is invalid for the target audiences"));
    let check = |audiences: &[&str]| {
        let audiences: Vec<String> = audiences.iter().map(|one| (*one).to_owned()).collect();
        cluster.api.authenticate_token(&token, &audiences).map(|(_, common)| common)
    };
    assert_eq!(check(&["ci", "other"]), Ok(vec!["ci".to_owned()]));
    assert!(matches!(check(&["other"]), Err(TokenError::Audience(..))));
    let both = cluster.token(json!({"audiences": ["vault", ISSUER]}));
    assert_eq!(cluster.whose(&both), BUILD);
}

#[tokio::test]
async fn what_no_cluster_of_ours_has_signed_is_nobodys() {
    let (cluster, stranger) = (Cluster::new().await, Cluster::new().await);
    let theirs = stranger.token(json!({}));
    assert_eq!(stranger.whose(&theirs), BUILD);
    let wrong = "the token is not one of this cluster: ";
    assert!(cluster.whose(&theirs).starts_with(wrong));
    assert!(cluster.whose("garbage").starts_with(wrong));
    // Signed by the key, and no token of an account.
    let issuer = cluster.api.token_issuer().unwrap();
    for claims in [json!({}), json!({"sub": BUILD, "exp": i64::MAX}), json!("x")] {
        let token = issuer.key.sign(&claims);
        assert_eq!(cluster.whose(&token), "the token's claims cannot be read");
    }
    let claims = issuer.key.verify(&cluster.token(json!({}))).unwrap();
    for (pointer, value, why) in [
        ("/iss", json!("https://elsewhere"), "the token's claims cannot be read"),
        ("/exp", json!(i64::MIN), "service account token has expired"),
        ("/nbf", json!(i64::MAX), "service account token is not valid yet"),
    ] {
        let mut changed = claims.clone();
        *changed.pointer_mut(pointer).unwrap() = value;
        assert_eq!(cluster.whose(&issuer.key.sign(&changed)), why, "{pointer}");
    }
    let without_key = Api::new(Arc::new(MemoryStore::new()));
    let refused = without_key.authenticate_token(&theirs, &[]);
    assert_eq!(refused.unwrap_err(), TokenError::Unavailable);
}

#[tokio::test]
async fn requests_that_cannot_be_met_are_refused_by_name() {
    let cluster = Cluster::new().await;
    cluster.pod("other", json!({})).await;
    cluster.pod("own", json!({"serviceAccountName": "build"})).await;
    let bound = |kind: &str, name: &str, uid: &str| json!({"boundObjectRef": {"kind": kind, "apiVersion": "v1", "name": name, "uid": uid}});
    let many: Vec<String> = (0..65).map(|n| n.to_string()).collect();
    let table = [
        (
            json!({"expirationSeconds": 599}),
            Reason::Invalid,
            "spec.expirationSeconds: Invalid value: 599: may not specify a duration less than 10 \
             minutes",
        ),
        (
            json!({"expirationSeconds": 4_294_967_297_i64}),
            Reason::Invalid,
            "may not specify a duration larger than 2^32 seconds",
        ),
        (json!({"audiences": many}), Reason::Invalid, "at most 64 audiences"),
        (bound("Pod", "none", ""), Reason::NotFound, "pods \"none\" not found"),
        (bound("Secret", "none", ""), Reason::NotFound, "secrets \"none\" not found"),
        (
            bound("Pod", "other", ""),
            Reason::BadRequest,
            "cannot bind token for serviceaccount \"build\" to pod running with different \
             serviceaccount name.",
        ),
        (bound("Pod", "own", "x"), Reason::Conflict, "does not match the UID in record"),
        (
            bound("Deployment", "web", ""),
            Reason::BadRequest,
            "cannot bind token for serviceaccount \"build\" to object type of v1, Kind=Deployment",
        ),
    ];
    for (spec, reason, message) in table {
        let (found, text) = cluster.request(spec.clone()).unwrap_err();
        assert_eq!(found, reason, "{spec}");
        assert!(text.contains(message), "{text}");
    }
    let missing = cluster.request_of("nobody", json!({"spec": {}})).unwrap_err();
    assert_eq!(missing, (Reason::NotFound, "serviceaccounts \"nobody\" not found".to_owned()));
    let renamed = json!({"metadata": {"name": "admin"}, "spec": {}});
    assert_eq!(cluster.request_of("build", renamed).unwrap_err().0, Reason::BadRequest);
    // Longer than any may be: cut, and said so.
    let long = cluster.request(json!({"expirationSeconds": 4_294_967_296_i64})).unwrap();
    assert_eq!(long["spec"]["expirationSeconds"], 31_536_000);
    let dry = WriteOptions { dry_run: true, ..WriteOptions::by("test") };
    let target = Target::object(resource_of("ServiceAccount"), "default", "build");
    let who = Identity::master("test");
    let (answer, _) = cluster.api.create_token(&who, &target, json!({"spec": {}}), &dry).unwrap();
    assert_eq!(answer["status"]["token"], "");
    let node = Identity::node("n1");
    let refused = cluster.api.create_token(&node, &target, json!({"spec": {}}), &dry);
    assert_eq!(refused.unwrap_err().reason, Reason::Forbidden);
}

#[tokio::test]
async fn pods_show_a_token_where_neither_they_nor_their_account_object() {
    let cluster = Cluster::new().await;
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let shown = |pod: &Value| -> Vec<String> {
        let all = ["initContainers", "containers"].map(|list| pod["spec"][list].as_array());
        let containers = all.into_iter().flatten().flatten();
        containers
            .map(|container| {
                let mounts = container["volumeMounts"].as_array().into_iter().flatten();
                let mount = mounts.filter(|mount| mount["mountPath"] == folder);
                mount.map(|mount| mount["name"].as_str().unwrap().to_owned()).collect()
            })
            .collect()
    };
    let pod = cluster.pod("a", json!({"initContainers": [{"name": "i", "image": "x"}]})).await;
    let spec = &pod["spec"];
    assert_eq!(
        (&spec["serviceAccountName"], &spec["serviceAccount"]),
        (&json!("default"), &json!("default"))
    );
    let volume = &spec["volumes"][0];
    let name = volume["name"].as_str().unwrap();
    assert!(name.starts_with("kube-api-access-") && name.len() == 21, "{name}");
    assert_eq!(shown(&pod), [name, name]);
    assert_eq!(spec["containers"][0]["volumeMounts"][0]["readOnly"], true);
    assert_eq!(
        volume["projected"].to_string(),
        r#"{"defaultMode":420,"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}]}}]}"#
    );

    // What is there already is left alone.
    let own = json!({"containers": [
        {"name": "main", "image": "x", "volumeMounts": [{"name": "mine", "mountPath": folder}]},
        {"name": "more", "image": "x"},
    ], "volumes": [{"name": "mine", "emptyDir": {}}]});
    let pod = cluster.pod("b", own).await;
    assert_eq!(shown(&pod)[0], "mine");
    assert!(shown(&pod)[1].starts_with("kube-api-access-"));
    let copied = json!({"containers": [{"name": "main", "image": "x"}],
        "volumes": [{"name": "kube-api-access-abcde", "emptyDir": {}}]});
    let pod = cluster.pod("c", copied).await;
    assert_eq!(shown(&pod), ["kube-api-access-abcde"]);
    assert_eq!(pod["spec"]["volumes"].as_array().unwrap().len(), 1);

    for (name, spec) in [
        ("d", json!({"automountServiceAccountToken": false})),
        ("e", json!({"serviceAccountName": "build"})),
    ] {
        let pod = cluster.pod(name, spec).await;
        assert_eq!((shown(&pod), &pod["spec"]["volumes"]), (vec![String::new()], &Value::Null));
    }
    // The pod's word counts more than the account's; the old name of the field counts too.
    let spec = json!({"serviceAccount": "build", "automountServiceAccountToken": true});
    let pod = cluster.pod("f", spec).await;
    assert_eq!(pod["spec"]["serviceAccountName"], "build");
    assert!(shown(&pod)[0].starts_with("kube-api-access-"));
}

#[tokio::test]
async fn a_pod_of_an_account_that_is_missing_is_refused() {
    let cluster = Cluster::new().await;
    let pod = json!({
        "metadata": {"name": "p"},
        "spec": {"serviceAccountName": "ghost", "containers": [{"name": "main", "image": "x"}]},
    });
    let who = Identity::master("test");
    let pods = resource_of("Pod");
    let refused = cluster.api.create(&who, pods, "default", pod, &cluster.options).await;
    let status = refused.unwrap_err();
    assert_eq!(status.reason, Reason::Forbidden);
    assert_eq!(
        status.message,
        "pods \"p\" is forbidden: error looking up service account default/ghost: serviceaccount \
         \"ghost\" not found"
    );
    // A mirror is as its node has it, and may reach for nothing of the cluster.
    let mirror = |spec: Value| {
        let mut pod = json!({
            "metadata": {"name": "m-n1", "annotations": {"kubernetes.io/config.mirror": "x"}},
            "spec": {"nodeName": "n1", "containers": [{"name": "main", "image": "x"}]},
        });
        for (key, value) in spec.as_object().unwrap() {
            pod["spec"][key] = value.clone();
        }
        pod
    };
    let node = Identity::node("n1");
    let token = json!({"serviceAccountToken": {"path": "token"}});
    for spec in [
        json!({"serviceAccountName": "default"}),
        json!({"volumes": [{"name": "t", "projected": {"sources": [token]}}]}),
    ] {
        let refused = cluster.api.create(&node, pods, "default", mirror(spec), &cluster.options);
        let message = refused.await.unwrap_err().message;
        assert!(message.contains("reference a service account"), "{message}");
    }
    let made = cluster.api.create(&node, pods, "default", mirror(json!({})), &cluster.options);
    let made = made.await.unwrap().value();
    assert_eq!(
        (&made["spec"]["volumes"], &made["spec"]["serviceAccountName"]),
        (&Value::Null, &Value::Null)
    );
}
