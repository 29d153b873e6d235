//! Images on their way: the master's own registry with the clients people have,
//! private registries, signatures, nodes that reach nobody but the master, and
//! disks that fill.

use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use image::build::Built;
use image::registry::{Content, HostRule};
use image::{Credential, Digest, Keyring, Reference, RegistryConfig, signature};
use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods;
use crate::harness::process::{must, read_lossy, run, write_file};
use crate::harness::programs::{guest, tool};
use crate::harness::run_program;
use crate::harness::wait::{block_on, check, until};

fn busybox() -> PathBuf {
    let places = ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from);
    places.into_iter().find(|path| path.exists()).expect("busybox-static is installed")
}

/// `host:port` of the master's API.
fn api_host(world: &World) -> String {
    let kubeconfig: Value = serde_json::from_str(&read_lossy(&world.master.kubeconfig())).unwrap();
    let server = kubeconfig["clusters"][0]["cluster"]["server"].as_str().unwrap().to_owned();
    server.trim_start_matches("https://").to_owned()
}

fn password(world: &World) -> String {
    world.pinnace("image login --for 1h").ok().trim().to_owned()
}

/// A client of the master's registry, as the CLI makes it.
fn masters(world: &World) -> image::Registry {
    let kubeconfig: Value = serde_json::from_str(&read_lossy(&world.master.kubeconfig())).unwrap();
    let ca = kubeconfig["clusters"][0]["cluster"]["certificate-authority-data"].as_str().unwrap();
    let rule = HostRule {
        host: image::MASTER_REGISTRY.into(),
        address: Some(api_host(world)),
        ca_pem: STANDARD.decode(ca).unwrap(),
        ..HostRule::default()
    };
    let credential = Credential::Basic { user: "x".into(), password: password(world) };
    let keyring = Keyring::single(image::MASTER_REGISTRY, credential);
    image::Registry::new(RegistryConfig { hosts: vec![rule], keyring, ..RegistryConfig::default() })
}

/// Builds busybox with the CLI into the master's registry.
fn build(world: &World, name: &str, more: &[&str]) -> String {
    let busybox = busybox();
    let mut words =
        vec!["image", "build", name, busybox.to_str().unwrap(), "--as", "bin/busybox", "--push"];
    words.extend(more);
    world.pinnace_with(&words, "").ok().trim().to_owned()
}

const SLEEP: [&str; 3] = ["/bin/busybox", "sleep", "1000"];

#[test]
fn one_registry_serves_every_client_and_the_nodes() {
    let mut world = World::with_nodes(1);
    let printed = build(&world, "team/shell:v1", &["-e", "A=1"]);
    assert!(printed.starts_with("pinnace.local/team/shell:v1@sha256:"), "{printed}");
    // The same input, the same image; nothing is sent twice.
    assert_eq!(build(&world, "team/shell:v1", &["-e", "A=1"]), printed);
    world.create_pod(&pods::pod("own", "pinnace.local/team/shell:v1", &SLEEP, &[]));
    world.pod_becomes_ready("own");
    // What skopeo brings from elsewhere runs, and what is here it can read.
    world.registry().push_busybox("shell:1", &["VERSION=1"]);
    let (api, from) = (api_host(&world), world.registry().image("shell:1"));
    let credentials = format!("anybody:{}", password(&world));
    let source = format!("docker://{from}");
    let target = format!("docker://{api}/copied:1");
    let copied = run_program(
        "skopeo",
        &[
            "copy",
            "--all",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--dest-creds",
            &credentials,
            &source,
            &target,
        ],
    );
    copied.ok();
    let inspect = ["inspect", "--tls-verify=false", "--creds", &credentials];
    let seen = run_program("skopeo", &[&inspect[..], &[&target]].concat()).ok();
    assert!(seen.contains("VERSION=1"), "{seen}");
    let stranger = run_program("skopeo", &["inspect", "--tls-verify=false", &target]).failed();
    assert!(
        stranger.contains("authentication required") || stranger.contains("unauthorized"),
        "{stranger}"
    );
    let wrong = ["inspect", "--tls-verify=false", "--creds", "admin:wrong"];
    run_program("skopeo", &[&wrong[..], &[&target]].concat()).failed();
    world.create_pod(&pods::pod("copied", "pinnace.local/copied:1", &["sleep", "1000"], &[]));
    world.pod_becomes_ready("copied");
    let list = world.pinnace("image ls").ok();
    assert!(list.contains("pinnace.local/copied") && list.contains("linux/"), "{list}");
    // An archive, written without any registry, is pushed as it is.
    let tar = world.dir().join("shell.tar");
    let (tar, busybox) = (tar.to_str().unwrap(), busybox());
    let words = ["image", "build", "shell:v2", busybox.to_str().unwrap(), "-o", tar];
    let built = world.pinnace_with(&words, "").ok();
    assert_eq!(world.pinnace_with(&["image", "push", tar, "shell:v2"], "").ok(), built);
    let seen = run_program("skopeo", &["inspect", "--raw", &format!("oci-archive:{tar}")]).ok();
    assert_eq!(Digest::of(seen.as_bytes()).to_string(), built.trim().rsplit('@').next().unwrap());
    // What is removed is gone; a pod that runs does not notice.
    world.pinnace("image rm copied:1").ok();
    run_program("skopeo", &[&inspect[..], &[&target]].concat()).failed();
    let failed = world.pinnace("image rm copied:1").failed();
    assert!(failed.contains("copied:1"), "{failed}");
    // A restarted master has it all, and the node needs it for nothing.
    world.restart_master();
    world.create_pod(&pods::pod(
        "again",
        "pinnace.local/shell:v2",
        &["/busybox", "sleep", "9"],
        &[],
    ));
    world.pod_becomes_ready("again");
}

#[test]
fn a_push_survives_a_master_that_is_killed() {
    let mut world = World::master_only();
    let registry = masters(&world);
    let folder = world.dir().join("push");
    std::fs::create_dir(&folder).unwrap();
    let content: Vec<u8> =
        (0..6_000_000_u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    let digest = Digest::of(&content);
    let file = folder.join("blob");
    std::fs::write(&file, &content).unwrap();
    let image: Reference = "pinnace.local/big:1".parse().unwrap();
    let blob = Content::File { path: file, offset: 0, size: content.len() as u64 };
    let pushing = {
        let (registry, image) = (registry.clone(), image.clone());
        std::thread::spawn(move || {
            block_on(async { registry.push_blob(&image, digest, &blob).await })
        })
    };
    let uploads = world.master.data_dir().join("registry/uploads");
    let arrived = |uploads: &Path| -> u64 {
        let entries = std::fs::read_dir(uploads).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.metadata().ok()).map(|file| file.len()).sum()
    };
    let mut seen = 0;
    for _ in 0..2 {
        until("some of it has arrived", || {
            let now = arrived(&uploads);
            check(now > seen || pushing.is_finished(), || format!("{now} bytes"))
        });
        if pushing.is_finished() {
            break;
        }
        world.master.kill();
        seen = arrived(&uploads);
        world.restart_master();
    }
    pushing.join().unwrap().expect("the push goes on");
    let (_, mut stream) = block_on(registry.blob_pieces(&image, digest, 0)).unwrap();
    let mut back = Vec::new();
    while let Some(piece) = block_on(stream.next()).unwrap() {
        back.extend_from_slice(&piece);
    }
    assert_eq!(Digest::of(&back), digest);
    assert_eq!(arrived(&uploads), 0);
}

#[test]
fn a_private_image_is_for_those_with_its_secret() {
    let world = World::with_nodes(1);
    // Behind the same data, a registry that wants a password.
    world.registry().push_busybox("secret:1", &[]);
    let (host, _process) = world.registry().start_private(world.dir());
    let image = format!("{host}/secret:1");
    let pod = |name: &str| pods::pod(name, &image, &["sleep", "1000"], &[]);
    world.create_pod(&pod("stranger"));
    world.pod_becomes("stranger", "is refused", |pod| {
        pods::trouble(pod).1.contains("refuses image")
    });
    let auth = STANDARD.encode("user:secret");
    let config = json!({"auths": {&host: {"auth": auth}}}).to_string();
    let secret = |name: &str| {
        json!({"metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
               "data": {".dockerconfigjson": STANDARD.encode(&config)}})
    };
    world.api.create("/api/v1/namespaces/default/secrets", &secret("pull")).ok();
    let mut friend = pod("friend");
    friend["spec"]["imagePullSecrets"] = json!([{"name": "pull"}]);
    world.create_pod(&friend);
    world.pod_becomes_ready("friend");
    // That it is on the board now opens it to nobody else.
    let again = pod("stranger-2");
    world.create_pod(&again);
    world.pod_becomes("stranger-2", "is refused", |pod| {
        pods::trouble(pod).1.contains("refuses image")
    });
    // A ServiceAccount brings its secrets along.
    let account = "/api/v1/namespaces/default/serviceaccounts/default";
    world.api.merge(account, &json!({"imagePullSecrets": [{"name": "pull"}]})).ok();
    let created = world.create_pod(&pod("by-account"));
    assert_eq!(created["spec"]["imagePullSecrets"], json!([{"name": "pull"}]));
    world.pod_becomes_ready("by-account");
    assert!(!world.agents[0].log().contains("secret") || !world.agents[0].log().contains(&auth));
}

#[test]
fn nothing_runs_in_a_namespace_that_nobody_has_signed_for() {
    let world = World::with_nodes(1);
    let dir = world.dir().to_owned();
    let (key, public) = (dir.join("cosign.key"), dir.join("cosign.pub"));
    must(&format!("openssl ecparam -name prime256v1 -genkey -noout -out {}", key.display()));
    must(&format!("openssl ec -in {} -pubout -out {}", key.display(), public.display()));
    let annotate = |policy: &str, keys: &str| {
        let annotations = json!({"pinnace.io/image-policy": policy, "pinnace.io/image-keys": keys});
        let patch = json!({"metadata": {"annotations": annotations}});
        world.api.merge("/api/v1/namespaces/default", &patch).ok();
    };
    annotate("signature", &read_lossy(&public));
    let printed = build(&world, "signed:1", &[]);
    let digest: Digest = printed.rsplit('@').next().unwrap().parse().unwrap();
    let pod = |name: &str, image: &str| pods::pod(name, image, &SLEEP, &[]);
    world.create_pod(&pod("early", "pinnace.local/signed:1"));
    let refused = world.pod_becomes("early", "is refused", |pod| {
        pods::trouble(pod).1.contains("it has no signature")
    });
    assert!(pods::trouble(&refused).1.contains("namespace \"default\""), "{refused}");
    // Signed as `cosign sign --key` does it.
    let payload = signature::payload("pinnace.local/signed", digest);
    write_file(&dir.join("payload"), std::str::from_utf8(&payload).unwrap());
    must(&format!(
        "openssl dgst -sha256 -sign {} -out {} {}",
        key.display(),
        dir.join("sig").display(),
        dir.join("payload").display()
    ));
    let text = STANDARD.encode(std::fs::read(dir.join("sig")).unwrap());
    let place: Reference =
        format!("pinnace.local/signed:{}", signature::tag(digest)).parse().unwrap();
    let registry = masters(&world);
    block_on(Built::signatures(vec![(payload, text)]).push(&registry, &place)).unwrap();
    world.pod_becomes_ready("early");
    // A module is checked by the master, and its code on the board opens it to nobody.
    let module = guest("greeter", "wasip1");
    let wasm = world.registry().push_wasm("greeter:1", module);
    world.create_pod(&pods::pod("module", &wasm, &[], &[]));
    world.pod_becomes("module", "is refused", |pod| {
        pods::trouble(pod).1.contains("it has no signature")
    });
    // By digest alone; and a slip opens nothing.
    annotate("digest", "");
    world.create_pod(&pod("by-tag", "pinnace.local/signed:1"));
    world.pod_becomes("by-tag", "is refused", |pod| pods::trouble(pod).1.contains("by digest"));
    world.create_pod(&pod("by-digest", &format!("pinnace.local/signed@{digest}")));
    world.pod_becomes_ready("by-digest");
    annotate("sigantures", "");
    world.create_pod(&pod("slip", &format!("pinnace.local/signed@{digest}")));
    world.pod_becomes("slip", "is refused", |pod| pods::trouble(pod).1.contains("sigantures"));
}

#[test]
fn a_node_that_reaches_only_the_master_gets_every_image() {
    let mut world = World::with_nodes(0);
    let at = world.add_board("node-1");
    // It speaks TLS to the registry, which has none: out of reach.
    world.agents[at].know_no_registry();
    let token = world.token();
    world.agents[at].join(&world.network, &token).ok();
    world.start_agent(at);
    world.node_becomes_ready("node-1");
    let image = world.registry().push_busybox("shell:1", &[]);
    world.create_pod(&pods::pod("far", &image, &["sleep", "1000"], &[]));
    world.pod_becomes_ready("far");
    let cached =
        std::fs::read_dir(world.master.data_dir().join("image-cache/blobs")).unwrap().count();
    assert!(cached >= 3, "{cached} files");
    // What no pod of the node names is nothing to it.
    let other = world.registry().push_busybox("other:1", &[]);
    world.pinnace(&format!("image prepull {other} --wait --timeout 60s")).ok();
    let node = world.api.get("/api/v1/nodes/node-1").ok();
    assert!(node["status"]["images"].to_string().contains("other:1"), "{node}");
}

#[test]
fn images_that_nobody_needs_go_when_the_disk_fills_and_no_others() {
    let mut world = World::with_nodes(1);
    let used = world.registry().push_busybox("used:1", &["A=1"]);
    let wanted = world.registry().push_busybox("wanted:1", &["A=2"]);
    let old = world.registry().push_busybox("old:1", &["A=3"]);
    world.create_pod(&pods::pod("old", &old, &["sleep", "1000"], &[]));
    world.create_pod(&pods::pod("used", &used, &["sleep", "1000"], &[]));
    world.pod_becomes_ready("old");
    let before = world.pod_becomes_ready("used");
    world.pinnace(&format!("image prepull {wanted} --wait --timeout 60s")).ok();
    world.delete("/api/v1/namespaces/default/pods/old");
    until("the pod is gone", || check(world.find_pod("old").is_none(), || "still there".into()));
    // Any disk is fuller than this.
    world.agents[0].kill();
    world.agents[0].give("--image-gc-high 1 --image-gc-low 0");
    world.start_agent(0);
    let images = || {
        let node = world.api.get("/api/v1/nodes/node-1").ok();
        node["status"]["images"].to_string()
    };
    until("the old image is gone", || {
        let images = images();
        check(!images.contains("old:1") && images.contains("used:1"), || images)
    });
    assert!(images().contains("wanted:1"), "{}", images());
    let after = world.pod_becomes_ready("used");
    assert_eq!(pods::restarts(&after), pods::restarts(&before));
    // The node says that it could do no more.
    until("the node says so", || {
        let node = world.api.get("/api/v1/nodes/node-1").ok();
        let said = pods::condition(&node, "ImageGC");
        check(said == "True", || node["status"]["conditions"].to_string())
    });
}

#[test]
fn hostile_images_end_in_a_clear_status_with_nothing_written_outside() {
    let world = World::with_nodes(1);
    let escape = world.dir().join("escaped");
    let name = escape.to_str().unwrap().trim_start_matches('/').to_owned();
    let up = "../".repeat(40);
    let forged = |path: &str, kind: tar::EntryType| {
        let mut header = tar::Header::new_gnu();
        let bytes = path.as_bytes();
        header.as_old_mut().name[..bytes.len()].copy_from_slice(bytes);
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(1);
        header.set_cksum();
        let mut tar = header.as_bytes().to_vec();
        tar.extend_from_slice(&[b'x'; 512]);
        tar.extend_from_slice(&[0; 1024]);
        tar
    };
    let path: String = format!("{up}{name}").chars().take(99).collect();
    let cases = [
        ("escape", forged(&path, tar::EntryType::Regular), "\"..\" in its path"),
        ("unknown", forged("x", tar::EntryType::new(b'?')), "unknown type"),
        ("whiteout", forged("x", tar::EntryType::Char), "a forged whiteout"),
        ("nothing", b"no archive".to_vec(), "is damaged"),
    ];
    let platform = image::Platform::host();
    let config =
        json!({"architecture": platform.architecture, "os": "linux", "variant": platform.variant});
    for (case, tar, expected) in cases {
        let kind = "application/vnd.oci.image.layer.v1.tar+gzip";
        let (blob, diff_id) = (image::build::gzip(&tar), Digest::of(&tar));
        let built = Built::raw(config.clone(), vec![(kind, blob.into(), diff_id)]);
        let image = world.registry().push(&format!("evil/{case}:1"), &built);
        world.create_pod(&pods::pod(case, &image, &["/x"], &[]));
        world.pod_becomes(case, "is refused", |pod| pods::trouble(pod).1.contains(expected));
    }
    assert!(!escape.exists());
    let layers = world.agents[0].state_dir().join("images/layers");
    assert_eq!(std::fs::read_dir(layers).unwrap().count(), 0);
    // The board goes on.
    let good = world.registry().push_busybox("shell:1", &[]);
    world.create_pod(&pods::pod("good", &good, &["sleep", "1000"], &[]));
    world.pod_becomes_ready("good");
}

#[test]
fn oras_pushes_and_pulls_what_is_no_image() {
    let world = World::master_only();
    // Under another name than the module it imports.
    let script = world.dir().join("client.py");
    write_file(&script, include_str!("oras.py"));
    let note = world.dir().join("note.txt");
    write_file(&note, "kept\n");
    let mut command = Command::new(tool("oras/bin/python3"));
    command.current_dir(world.dir()).arg(&script).arg(api_host(&world)).arg(password(&world));
    let said = run(command).ok();
    assert!(said.contains("pulled kept"), "{said}");
}
