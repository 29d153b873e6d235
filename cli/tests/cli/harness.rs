//! A cluster of nothing but an API server, and a way to run the program on it.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use expect_test::Expect;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::Command;

use crate::support;

pub(crate) const DEADLINE: Duration = Duration::from_secs(60);

pub(crate) struct Cluster {
    pub(crate) running: support::Running,
    pub(crate) dir: TempDir,
}

/// How a run ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let running = support::start(Arc::new(store::MemoryStore::new())).await;
        let dir = tempfile::tempdir().unwrap();
        running.write_kubeconfig(&dir.path().join("config"), "admin", Some("system:masters"));
        Self { running, dir }
    }

    pub(crate) fn command(&self, line: &str) -> Command {
        let config = self.dir.path().join("config");
        command(self.dir.path(), &config, line)
    }

    pub(crate) async fn run(&self, line: &str) -> Ended {
        finish(self.command(line)).await
    }

    /// Runs a command that must succeed; its standard output.
    pub(crate) async fn ok(&self, line: &str) -> String {
        let ended = self.run(line).await;
        assert_eq!(ended.code, Some(0), "{line}: {ended:?}");
        ended.out
    }

    pub(crate) async fn check(&self, line: &str, expected: Expect) {
        let ended = self.run(line).await;
        let address = self.running.url();
        let err = ended.err.replace(&address, "https://SERVER");
        let dir = self.dir.path().display().to_string();
        let text = format!("{}{}", ended.out, err).replace(&dir, "DIR");
        let code = ended.code.map_or_else(|| "killed".to_owned(), |code| code.to_string());
        expected.assert_eq(&format!("{text}exit {code}\n"));
    }

    pub(crate) fn file(&self, name: &str, text: &str) {
        std::fs::write(self.dir.path().join(name), text).unwrap();
    }

    pub(crate) async fn put(&self, method: &str, path: &str, body: &Value) {
        let headers = [("content-type", "application/json")];
        let reply = self.running.ask(method, path, &headers, body.to_string().as_bytes()).await;
        assert!((200..300).contains(&reply.code), "{method} {path}: {}", reply.text());
    }

    pub(crate) async fn object(&self, path: &str) -> Value {
        self.running.ask("GET", path, &[], b"").await.json()
    }

    /// A pod on a node that is not there, as its agent would report it.
    pub(crate) async fn pod(&self, name: &str, status: &Value) {
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

pub(crate) fn command(home: &Path, config: &Path, line: &str) -> Command {
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

pub(crate) async fn finish(mut command: Command) -> Ended {
    let output = tokio::time::timeout(DEADLINE, command.output()).await.unwrap().unwrap();
    Ended {
        code: output.status.code(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

pub(crate) const MANIFEST: &str = "\
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
