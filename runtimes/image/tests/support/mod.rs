//! Debian's `docker-registry`, started by a test on a port of the system's choice.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use pinnace_image::{Reference, Registry, RegistryConfig};

/// Debian's docker-registry in a temporary folder.
pub struct DockerRegistry {
    process: Child,
    host: String,
    _folder: tempfile::TempDir,
}

impl DockerRegistry {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("config.yml");
        let root = folder.path().join("data");
        fs::write(
            &config,
            format!(
                "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
                 http: {{addr: '127.0.0.1:0'}}\n",
                root.display()
            ),
        )
        .unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is installed (apt-get install docker-registry)");
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let host = loop {
            let line = lines.next().expect("the registry says where it listens").unwrap();
            if let Some((_, rest)) = line.split_once("listening on ") {
                break rest
                    .chars()
                    .take_while(|c| c.is_ascii_digit() || ".:".contains(*c))
                    .collect();
            }
        };
        // Its pipe has to be emptied, or it would stand still.
        std::thread::spawn(move || lines.for_each(drop));
        Self { process, host, _folder: folder }
    }

    pub fn client(&self) -> Registry {
        client(&self.host)
    }

    pub fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.host).parse().unwrap()
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A client that speaks to one registry without TLS.
pub fn client(host: &str) -> Registry {
    let config =
        RegistryConfig { insecure_http: vec![host.to_owned()], ..RegistryConfig::default() };
    Registry::new(config)
}
