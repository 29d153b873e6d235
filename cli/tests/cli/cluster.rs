//! Commands about the cluster itself, and every way to fail.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use expect_test::expect;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use wire::enrol::TokenV1;

use crate::harness::{Cluster, Ended, finish};

#[tokio::test]
async fn nodes_are_listed_labelled_cordoned_and_confirmed() {
    let cluster = Cluster::start().await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "pi-1"}});
    cluster.put("POST", "/api/v1/nodes", &node).await;
    cluster
        .check(
            "node label pi-1 pinnace.io/link-profile=lan site=north",
            expect![[r#"
        node/pi-1 labeled
        exit 0
    "#]],
        )
        .await;
    let list = cluster.ok("node list").await;
    assert!(list.lines().next().unwrap().ends_with("PROFILE"), "{list}");
    assert!(list.lines().nth(1).unwrap().ends_with("lan"), "{list}");
    cluster
        .check(
            "node cordon pi-1 pi-2",
            expect![[r#"
        node/pi-1 cordoned
        error: nodes "pi-2" not found
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "node cordon pi-1",
            expect![[r#"
        node/pi-1 already cordoned
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "node uncordon pi-1",
            expect![[r#"
        node/pi-1 uncordoned
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "node label pi-1 site-",
            expect![[r#"
        node/pi-1 labeled
        exit 0
    "#]],
        )
        .await;
    cluster
        .check(
            "node confirm --all",
            expect![[r#"
        error: https://SERVER is not a Pinnace master: it does not describe itself
        exit 1
    "#]],
        )
        .await;
    describe_cluster(&cluster).await;
    cluster
        .check(
            "node confirm --all",
            expect![[r#"
        node/pi-1 confirmed
        exit 0
    "#]],
        )
        .await;
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
    cluster
        .check(
            "token create",
            expect![[r#"
        error: https://SERVER is not a Pinnace master: it does not describe itself
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "token list",
            expect![[r#"
        No tokens found
        exit 0
    "#]],
        )
        .await;
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
    cluster
        .check(
            "token delete 00000000",
            expect![[r#"
        error: there is no token 00000000: see `pinnace token list`
        exit 1
    "#]],
        )
        .await;
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
    cluster
        .check(
            "--kubeconfig missing get pods",
            expect![[r#"
        error: cannot read the kubeconfig missing: No such file or directory (os error 2)
        exit 1
    "#]],
        )
        .await;
    cluster
        .check(
            "--context other get pods",
            expect![[r#"
        error: DIR/config: no context named "other" (there: it)
        exit 1
    "#]],
        )
        .await;
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
    cluster
        .check(
            "kubeconfig --merge",
            expect![[r#"
        error: DIR/.kube/config, which is left as it is: it is not a kubeconfig
        exit 1
    "#]],
        )
        .await;
}

/// Answers one request with `body`, as a master gives its backup.
async fn serve_backup(listener: TcpListener, body: Vec<u8>) {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        request.push(stream.read_u8().await.unwrap());
    }
    assert!(request.starts_with(b"GET /pinnace/v1/backup "), "{request:?}");
    let head =
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
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
    let original =
        store::LmdbStore::open(cluster.dir.path().join("db"), store::Config::default()).unwrap();
    let mut writer = store::archive::Writer::new(Vec::new()).unwrap();
    writer
        .entry("store", |out| {
            store::backup::create(&original, out).map(|_| ()).map_err(std::io::Error::other)
        })
        .unwrap();
    writer.entry("pki/ca.crt", |out| out.write_all(b"x")).unwrap();
    writer.entry("pki/ca.key", |out| out.write_all(b"y")).unwrap();
    let archive = writer.finish().unwrap();

    let ended = backup(&cluster, archive[..archive.len() - 9].to_vec()).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.err.contains("it ends early"), "{}", ended.err);
    let left = std::fs::read_dir(cluster.dir.path()).unwrap();
    assert!(
        !left.into_iter().any(|entry| entry.unwrap().path().to_str().unwrap().contains("saved"))
    );

    let ended = backup(&cluster, archive.clone()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.err);
    assert_eq!(std::fs::read(&saved).unwrap(), archive);
    assert_eq!(std::fs::metadata(&saved).unwrap().permissions().mode() & 0o777, 0o600);
    cluster
        .check(
            "backup create saved.backup",
            expect![[r#"
        error: saved.backup exists: choose another name, or give --overwrite
        exit 1
    "#]],
        )
        .await;
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
