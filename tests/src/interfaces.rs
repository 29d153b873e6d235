//! What other programs rely on: flags, the ready line, files, exit statuses.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::process::Command;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::harness::api::Api;
use crate::harness::master::parse_ready;
use crate::harness::network::{HUB, Network};
use crate::harness::process::{Process, read_lossy, run};
use crate::harness::programs::program;
use crate::harness::wait::until;
use crate::harness::{Place, World};

#[test]
fn the_ready_line_names_both_endpoints_once_they_answer() {
    let world = World::master_only();
    let log = world.master.log();
    let line = log.lines().find(|line| line.starts_with("ready ")).unwrap();
    let (api, nodes) = parse_ready(line);
    assert_eq!(line, format!("ready api=https://{api} nodes=mqtts://{nodes}"));
    assert_ne!(api.port(), 0);
    assert_ne!(nodes.port(), 0);
    let nobody = Api::nobody(&world.master.kubeconfig());
    assert_eq!(nobody.get("/readyz").status, 200);
    std::net::TcpStream::connect(nodes).unwrap();
}

#[test]
fn the_kubeconfig_holds_all_a_client_needs_and_only_its_owner_may_read_it() {
    let world = World::master_only();
    for path in [world.master.kubeconfig(), world.master.data_dir().join("admin.kubeconfig")] {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
        let config: Value = serde_json::from_str(&read_lossy(&path)).unwrap();
        let pem = |value: &Value| {
            let bytes = STANDARD.decode(value.as_str().unwrap()).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        let (cluster, user) = (&config["clusters"][0]["cluster"], &config["users"][0]["user"]);
        assert!(cluster["server"].as_str().unwrap().starts_with(&format!("https://{HUB}:")));
        assert!(pem(&cluster["certificate-authority-data"]).contains("BEGIN CERTIFICATE"));
        assert!(pem(&user["client-certificate-data"]).contains("BEGIN CERTIFICATE"));
        assert!(pem(&user["client-key-data"]).contains("PRIVATE KEY"));
        assert_eq!(config["current-context"], config["contexts"][0]["name"]);
    }
    let keys = fs::read_dir(world.master.data_dir().join("pki")).unwrap();
    for key in keys {
        let key = key.unwrap();
        let mode = key.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", key.path().display());
    }
    let out = world.kubectl("auth whoami -o jsonpath={.status.userInfo.groups}").ok();
    assert!(out.contains("system:masters"), "{out}");
}

#[test]
fn sigterm_ends_the_master_cleanly_and_it_starts_again() {
    let mut world = World::master_only();
    assert_eq!(world.master.stop(), Some(0), "{}", world.master.log());
    world.restart_master();
    assert_eq!(world.master.stop(), Some(0), "{}", world.master.log());
}

#[test]
fn a_second_master_on_the_same_data_is_refused_and_told_why() {
    let world = World::master_only();
    // Other ports, so that the folder alone is in the way.
    let mut second = Command::new(program("pinnace-master"));
    second.arg("--data-dir").arg(world.master.data_dir());
    second.args(["--api-listen", &format!("{HUB}:0"), "--node-listen", &format!("{HUB}:0")]);
    let error = run(second).failed();
    let folder = world.master.data_dir();
    assert!(error.contains(folder.to_str().unwrap()), "{error}");
    assert!(error.contains("in use") || error.contains("another"), "{error}");
    // The first one does not care.
    world.api.get("/api/v1/namespaces").ok();
}

#[test]
fn bad_flags_are_named_with_their_value() {
    let place = Place::new();
    let refused = |flags: &[&str], needles: &[&str]| {
        let mut command = Command::new(program("pinnace-master"));
        command.arg("--data-dir").arg(place.dir().join("data")).args(flags);
        let error = run(command).failed();
        for needle in needles {
            assert!(error.contains(needle), "{flags:?}: {error}");
        }
    };
    refused(&["--api-listen", "6443"], &["--api-listen", "6443"]);
    refused(&["--pod-cidr", "10.42.0.0"], &["--pod-cidr", "10.42.0.0"]);
    refused(&["--link-profile", "satellite"], &["--link-profile", "satellite"]);
    refused(&["--advertise", "pi/x"], &["--advertise", "pi/x"]);
    refused(&["--api-listen", "192.0.2.1:0"], &["--api-listen", "192.0.2.1:0"]);
}

#[test]
fn the_master_runs_as_any_user() {
    let place = Place::new();
    let _network = Network::new(place.name());
    let (user, group) = (65534, 65534);
    let home = place.dir().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(user), Some(group)).unwrap();
    // Where the workspace is need not be open to everybody.
    let master = place.dir().join("pinnace-master");
    fs::copy(program("pinnace-master"), &master).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
        .arg(&master)
        .arg("--data-dir")
        .arg(home.join("data"))
        .args(["--api-listen", "127.0.0.1:0", "--node-listen", "127.0.0.1:0"])
        .arg("--write-kubeconfig")
        .arg(home.join("kubeconfig"));
    let mut process = Process::start(&mut command, &place.dir().join("master.log"));
    until("the master is ready", || {
        assert!(process.is_running(), "{}", process.log());
        let log = process.log();
        log.lines().find(|line| line.starts_with("ready ")).map(drop).ok_or_else(|| log.clone())
    });
    let api = Api::admin(&home.join("kubeconfig"));
    assert!(api.list("/api/v1/namespaces").len() >= 3);
    process.signal(Signal::SIGTERM);
    assert_eq!(process.ended().code(), Some(0), "{}", process.log());
}

#[test]
fn an_agent_that_has_not_joined_says_how_to() {
    let place = Place::new();
    let mut command = Command::new(program("pinnace-agent"));
    let state = place.dir().join("state");
    command.arg("run").arg("--state-dir").arg(&state);
    command.arg("--run-dir").arg(place.dir().join("run"));
    let error = run(command).failed();
    let way_out = format!("pinnace-agent join TOKEN --state-dir {}", state.display());
    assert!(error.contains(&way_out), "{error}");
}
