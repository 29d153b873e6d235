//! The real `kubectl` against the API server over TLS.
//!
//! Ignored where no `kubectl` is named: `KUBECTL=/path/to/kubectl cargo test
//! --release -p pinnace-apiserver --test kubectl -- --ignored`.

#![allow(clippy::unwrap_used, reason = "a test may fail anywhere")]

#[path = "../../../tests/src/kubectl_matrix.rs"]
#[allow(unreachable_pub, reason = "public where the whole master is tested")]
mod kubectl_matrix;
mod support;

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use api::resource::by_kind;
use kubectl_matrix::{CASES, Case};
use pinnace_apiserver::{Identity, MASTERS, Target, WriteOptions};
use serde_json::json;
use store::MemoryStore;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// Longest that one command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(60);

struct Kubectl {
    program: PathBuf,
    home: tempfile::TempDir,
}

struct Output {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Kubectl {
    fn new(running: &support::Running, user: &str, group: Option<&str>) -> Self {
        let program = std::env::var_os("KUBECTL").expect("KUBECTL names the kubectl to test with");
        let home = tempfile::tempdir().unwrap();
        running.write_kubeconfig(&home.path().join("config"), user, group);
        Self { program: program.into(), home }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env("KUBECONFIG", self.home.path().join("config"))
            .env("HOME", self.home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn run(&self, case: &Case) -> Output {
        let mut child = self.command(case.args).envs(case.env.iter().copied()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(case.stdin.as_bytes()).await.unwrap();
        drop(stdin);
        let output = timeout(COMMAND_TIMEOUT, child.wait_with_output()).await;
        let output = output.unwrap_or_else(|_| panic!("{:?} hangs", case.args)).unwrap();
        Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    async fn ok(&self, args: &'static [&'static str], stdin: &'static str) -> String {
        let case = Case { args, stdin, env: &[], code: 0, stdout: &[], stderr: &[] };
        let output = self.run(&case).await;
        assert_eq!(output.code, 0, "{args:?}: {}{}", output.stdout, output.stderr);
        output.stdout
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs KUBECTL"]
async fn users_see_what_they_know() {
    let dir = tempfile::tempdir().unwrap();
    let running = support::start(support::on_disk(dir.path())).await;
    let kubectl = Kubectl::new(&running, "admin", Some(MASTERS));
    let mut failures = String::new();
    for case in CASES {
        let output = kubectl.run(case).await;
        let missing: Vec<&&str> = case
            .stdout
            .iter()
            .filter(|text| !output.stdout.contains(**text))
            .chain(case.stderr.iter().filter(|text| !output.stderr.contains(**text)))
            .collect();
        if output.code != case.code || !missing.is_empty() {
            failures.push_str(&format!(
                "kubectl {:?}\n  exit {} (expected {}), missing {missing:?}\n  stdout: {}\n  \
                 stderr: {}\n",
                case.args, output.code, case.code, output.stdout, output.stderr
            ));
        }
    }
    assert!(failures.is_empty(), "{failures}");
    running.stop().await;
}

const WEB: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: c, image: "a:1"}]}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs KUBECTL"]
async fn waiting_commands_see_changes_as_they_happen() {
    let running = support::start(Arc::new(MemoryStore::new())).await;
    let kubectl = Kubectl::new(&running, "admin", Some(MASTERS));
    let admin = Identity::authenticated("admin", &[MASTERS]);
    let options = WriteOptions::default();

    let mut watching = kubectl.command(&["get", "deployments", "-w"]).spawn().unwrap();
    let mut lines = BufReader::new(watching.stdout.take().unwrap()).lines();
    kubectl.ok(&["apply", "-f", "-"], WEB).await;
    let rollout = kubectl.command(&["rollout", "status", "deployment/web"]).spawn().unwrap();
    let mut header = timeout(COMMAND_TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    if header.starts_with("NAME") {
        header = timeout(COMMAND_TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    }
    assert!(header.starts_with("web "), "{header}");

    // What a controller would report.
    let deployments = by_kind("apps", "Deployment").unwrap();
    let target = Target::object(deployments, "default", "web");
    let mut object = running.api.get_value(&admin, &target).unwrap();
    object["status"] = json!({
        "observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1,
        "availableReplicas": 1, "conditions": [{"type": "Available", "status": "True"}],
    });
    running.api.update_status(&admin, &target, object, &options).await.unwrap();
    let changed = timeout(COMMAND_TIMEOUT, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(changed.starts_with("web    1/1     1            1"), "{changed}");
    let rollout = timeout(COMMAND_TIMEOUT, rollout.wait_with_output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&rollout.stdout);
    assert!(text.contains("deployment \"web\" successfully rolled out"), "{text}");
    kubectl.ok(&["wait", "deployment/web", "--for=condition=Available", "--timeout=30s"], "").await;
    watching.start_kill().unwrap();
    watching.wait().await.unwrap();

    // A pod on a node: its log, and a delete that waits for the node.
    let pod =
        json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "a:1"}]}});
    let pods = by_kind("", "Pod").unwrap();
    running.api.create(&admin, pods, "default", pod, &options).await.unwrap();
    let target = Target::object(pods, "default", "p");
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    running.api.bind(&admin, &target, binding, &options).await.unwrap();
    assert_eq!(kubectl.ok(&["logs", "p"], "").await, "c on n1 says hello\n");
    let deleting = kubectl.command(&["delete", "pod", "p"]).spawn().unwrap();
    let deadline = tokio::time::Instant::now() + COMMAND_TIMEOUT;
    while running.api.get_value(&admin, &target).unwrap()["metadata"]["deletionTimestamp"].is_null()
    {
        assert!(tokio::time::Instant::now() < deadline, "never asked to end");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let now =
        pinnace_apiserver::DeleteOptions { grace_period_seconds: Some(0), ..Default::default() };
    running.api.delete(&Identity::node("n1"), &target, &now).await.unwrap();
    let deleted = timeout(COMMAND_TIMEOUT, deleting.wait_with_output()).await.unwrap().unwrap();
    assert!(deleted.status.success());
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs KUBECTL"]
async fn a_user_without_a_role_sees_what_is_served_and_no_object() {
    let running = support::start(Arc::new(MemoryStore::new())).await;
    let kubectl = Kubectl::new(&running, "somebody", None);
    let check = async |args: &'static [&'static str], code: i32, text: &'static str| {
        let case = Case { args, stdin: "", env: &[], code, stdout: &[], stderr: &[] };
        let output = kubectl.run(&case).await;
        let all = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(output.code, code, "{args:?}: {all}");
        assert!(all.contains(text), "{args:?}: {all}");
    };
    check(&["version"], 0, "Server Version").await;
    check(&["api-resources"], 0, "deployments").await;
    check(&["explain", "pod"], 0, "KIND:       Pod").await;
    check(&["auth", "can-i", "get", "pods"], 1, "no").await;
    let forbidden = "Error from server (Forbidden): pods is forbidden: User \"somebody\" cannot \
                     list resource \"pods\" in API group \"\" in the namespace \"default\"";
    check(&["get", "pods"], 1, forbidden).await;
    running.stop().await;
}
