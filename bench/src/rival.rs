//! `runc` alone, beside which a start and a command are measured: one container
//! of the same program, without image, network or log.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::run;

/// A bundle with busybox in it.
#[derive(Debug)]
pub(crate) struct Rival {
    bundle: PathBuf,
    name: String,
}

impl Rival {
    /// Makes the bundle below `dir`.
    pub(crate) fn new(dir: &Path, name: &str) -> anyhow::Result<Self> {
        let bundle = dir.join("runc");
        for folder in ["bin", "proc", "dev", "sys"] {
            fs::create_dir_all(bundle.join("rootfs").join(folder))?;
        }
        fs::copy("/bin/busybox", bundle.join("rootfs/bin/busybox"))
            .context("busybox-static is missing: run scripts/setup")?;
        if !bundle.join("config.json").exists() {
            run(Command::new("runc").arg("spec").current_dir(&bundle))
                .context("runc is missing: apt-get install runc")?;
        }
        Ok(Self { bundle, name: format!("{name}-rival") })
    }

    /// Starts the container; `script` is given to its shell.
    fn spawn(&self, script: &str) -> anyhow::Result<Child> {
        let path = self.bundle.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path)?)?;
        config["process"]["terminal"] = json!(false);
        config["process"]["args"] = json!(["/bin/busybox", "sh", "-c", script]);
        fs::write(&path, config.to_string())?;
        let mut command = Command::new("runc");
        command.arg("run").arg("--bundle").arg(&self.bundle).arg(&self.name);
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        command.spawn().context("cannot start runc")
    }

    /// From the start of `runc` until its container has written a line.
    pub(crate) fn start(&self) -> anyhow::Result<Duration> {
        let started = Instant::now();
        let mut child = self.spawn("echo up")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("it has an output")?).read_line(&mut line)?;
        let took = started.elapsed();
        ensure!(line == "up\n", "runc's container says {line:?}");
        child.wait()?;
        Ok(took)
    }

    /// Runs `true` in a container of `runc`, `n` times.
    pub(crate) fn execs(&self, n: usize) -> anyhow::Result<Vec<Duration>> {
        let mut child = self.spawn("echo up; while :; do /bin/busybox sleep 1; done")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("it has an output")?).read_line(&mut line)?;
        let mut times = Vec::new();
        for _ in 0..n {
            let started = Instant::now();
            run(Command::new("runc").args(["exec", &self.name, "/bin/busybox", "true"]))?;
            times.push(started.elapsed());
        }
        run(Command::new("runc").args(["kill", &self.name, "KILL"]))?;
        child.wait()?;
        Ok(times)
    }
}

impl Drop for Rival {
    fn drop(&mut self) {
        let _ = run(Command::new("runc").args(["delete", "--force", &self.name]));
    }
}
