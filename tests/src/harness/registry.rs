//! A registry (Debian's `docker-registry`) and the images in it.

use std::path::Path;
use std::process::Command;

use image::build::{Built, Entry, OciImage};
use image::{Platform, RegistryConfig};

use super::network::HUB;
use super::process::{Process, write_file};
use super::wait::{block_on, until};

/// In a namespace of its own, so it cannot be taken.
const PORT: u16 = 5000;
/// The port of the one that wants a password.
const PRIVATE_PORT: u16 = 5001;

/// The names under which the images have busybox.
const COMMANDS: [&str; 31] = [
    "cat", "cp", "dd", "echo", "env", "grep", "head", "hostname", "httpd", "id", "ip", "kill",
    "ls", "mknod", "mount", "nc", "printenv", "ps", "seq", "sh", "sleep", "touch", "true", "wget",
    "md5sum", "mkdir", "stty", "tar", "test", "tty", "rm",
];

/// `host:port` of the one that wants a password.
pub(crate) fn private_host() -> String {
    format!("{HUB}:{PRIVATE_PORT}")
}

/// A registry at the hub.
#[derive(Debug)]
pub(crate) struct Registry {
    _process: Process,
    client: image::Registry,
}

impl Registry {
    /// Starts it with its data below `dir`.
    pub(crate) fn start(dir: &Path) -> Self {
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '{HUB}:{PORT}'}}\n",
            dir.join("registry").display()
        );
        write_file(&config, &text);
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let process = Process::start(&mut command, &dir.join("registry.log"));
        until("the registry listens", || {
            std::net::TcpStream::connect((HUB, PORT)).map_err(|error| error.to_string())
        });
        let insecure_http = vec![format!("{HUB}:{PORT}")];
        let config = RegistryConfig { insecure_http, ..RegistryConfig::default() };
        Self { _process: process, client: image::Registry::new(config) }
    }

    /// A second registry over the same images, which wants user `user` and password
    /// `secret`, on a port that boards and master take for plain HTTP. Returns its
    /// `host:port`.
    pub(crate) fn start_private(&self, dir: &Path) -> (String, Process) {
        let users = dir.join("users");
        // bcrypt of `secret`.
        write_file(&users, "user:$2b$04$TnGVj6t0XpKFqkgid28Zi.2IWBu4wJgMnwOiRFTBXO54st4EEpVdu\n");
        let config = dir.join("private.yml");
        let host = private_host();
        let text = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\n\
             http: {{addr: '{host}'}}\nauth: {{htpasswd: {{realm: tests, path: {}}}}}\n",
            dir.join("registry").display(),
            users.display()
        );
        write_file(&config, &text);
        let mut command = Command::new("docker-registry");
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let process = Process::start(&mut command, &dir.join("private.log"));
        until("the private registry listens", || {
            std::net::TcpStream::connect((HUB, PRIVATE_PORT)).map_err(|error| error.to_string())
        });
        (host, process)
    }

    /// `host:port`, as image references and `--insecure-registry` have it.
    pub(crate) fn host(&self) -> String {
        format!("{HUB}:{PORT}")
    }

    /// How manifests name an image here.
    pub(crate) fn image(&self, name: &str) -> String {
        format!("{HUB}:{PORT}/{name}")
    }

    /// Pushes busybox for this machine, with `environment` in its configuration;
    /// returns how manifests name it.
    pub(crate) fn push_busybox(&self, name: &str, environment: &[&str]) -> String {
        self.push(name, &Built::index(vec![Built::oci(&busybox(Platform::host(), environment))]))
    }

    /// Pushes busybox under an index that offers it to another machine alone.
    pub(crate) fn push_for_architecture(&self, name: &str, architecture: &str) -> String {
        let other = busybox(Platform::linux(architecture, ""), &[]);
        self.push(name, &Built::index(vec![Built::oci(&other)]))
    }

    /// Pushes bytes, whatever they are, as a WASM artifact.
    pub(crate) fn push_wasm(&self, name: &str, module: Vec<u8>) -> String {
        self.push(name, &Built::wasm(module))
    }

    pub(crate) fn push(&self, name: &str, built: &Built) -> String {
        let image = self.image(name);
        let reference = image.parse().expect("the tests name images well");
        let pushed = block_on(built.push(&self.client, &reference));
        pushed.unwrap_or_else(|error| panic!("cannot push {image}: {error}"));
        image
    }
}

fn busybox(platform: Platform, environment: &[&str]) -> OciImage {
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| std::fs::read(path).ok())
        .expect("busybox-static is installed (scripts/setup)");
    let mut layer = vec![
        Entry::folder("bin", 0o755),
        Entry::folder("etc", 0o755),
        Entry::folder("tmp", 0o1777),
        Entry::file("bin/busybox", 0o755, program),
        Entry::file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n".to_vec()),
    ];
    layer.extend(COMMANDS.map(|name| Entry::symlink(&format!("bin/{name}"), "busybox")));
    let mut env = vec!["PATH=/bin".to_owned()];
    env.extend(environment.iter().map(|&pair| pair.to_owned()));
    OciImage {
        layers: vec![layer],
        platform,
        cmd: vec!["/bin/sh".to_owned()],
        env,
        working_dir: "/".to_owned(),
        ..OciImage::default()
    }
}
