//! What a pod's containers share besides volumes: namespaces, address,
//! `/dev/shm`, and `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use runtime::BoxFuture;
use wire::Uid;
use wire::pod::{ContainerV1, PodV1};

use crate::config::PodDirs;
use crate::network::{NamespacePaths, Network, NetworkError};
use crate::volumes::{is_mount, mount_tmpfs, unmount_below};

/// Size of `/dev/shm`, in bytes, as containerd has it.
const SHM_BYTES: u64 = 64 << 20;

/// Most name servers that a resolver reads.
const NAMESERVERS_MAX: usize = 3;

/// Joins pods to the network. [`Network`] does it with namespaces; tests have another.
pub trait PodNetwork: Send + Sync + 'static {
    /// Makes the pod's namespaces and gives it an address.
    fn attach<'a>(
        &'a self,
        uid: &'a Uid,
        paths: &'a NamespacePaths,
        hostname: &'a str,
    ) -> BoxFuture<'a, Result<Ipv4Addr, NetworkError>>;

    /// Takes both away again.
    fn detach<'a>(
        &'a self,
        uid: &'a Uid,
        paths: &'a NamespacePaths,
    ) -> BoxFuture<'a, Result<(), NetworkError>>;
}

impl PodNetwork for Network {
    fn attach<'a>(
        &'a self,
        uid: &'a Uid,
        paths: &'a NamespacePaths,
        hostname: &'a str,
    ) -> BoxFuture<'a, Result<Ipv4Addr, NetworkError>> {
        Box::pin(Self::attach(self, uid, paths, hostname))
    }

    fn detach<'a>(
        &'a self,
        uid: &'a Uid,
        paths: &'a NamespacePaths,
    ) -> BoxFuture<'a, Result<(), NetworkError>> {
        Box::pin(Self::detach(self, uid, paths))
    }
}

/// A sandbox could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// The network refused.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A file could not be written or removed.
    #[error("cannot {operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SandboxError {
    let path = path.to_owned();
    move |source| SandboxError::Io { operation, path, source }
}

/// Makes the pod's sandbox and returns its address. May be called again.
///
/// # Errors
/// The network refuses, or a file cannot be written.
pub async fn set_up(
    pod: &PodV1,
    dirs: &PodDirs,
    network: &dyn PodNetwork,
) -> Result<Ipv4Addr, SandboxError> {
    fs::create_dir_all(&dirs.run).map_err(io_error("make", &dirs.run))?;
    let paths = namespaces(dirs);
    if held_address(dirs).is_none() {
        // An agent that was killed half-way has left one whose address nobody knows.
        network.detach(&pod.uid, &paths).await?;
    }
    let address = network.attach(&pod.uid, &paths, &pod.hostname).await?;
    let shm = dirs.run.join("shm");
    fs::create_dir_all(&shm).map_err(io_error("make", &shm))?;
    if !is_mount(&shm) {
        mount_tmpfs(&shm, SHM_BYTES, "1777").map_err(io_error("mount a tmpfs at", &shm))?;
    }
    write(&dirs.run.join("address"), &address.to_string())?;
    write(&dirs.run.join("hosts"), &hosts(&pod.hostname, address))?;
    write(&dirs.run.join("hostname"), &format!("{}\n", pod.hostname))?;
    write(&dirs.run.join("resolv.conf"), &node_resolv_conf())?;
    Ok(address)
}

/// Takes the sandbox away. May be called again, also where there is none.
///
/// # Errors
/// The network refuses, or a mount cannot be detached.
pub async fn tear_down(
    uid: &Uid,
    dirs: &PodDirs,
    network: &dyn PodNetwork,
) -> Result<(), SandboxError> {
    network.detach(uid, &namespaces(dirs)).await?;
    let shm = dirs.run.join("shm");
    unmount_below(&shm).map_err(io_error("unmount", &shm))?;
    for folder in [shm, dirs.run.join("ns")] {
        match fs::remove_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("remove", &folder)(error));
            }
            _ => {}
        }
    }
    for name in ["address", "hosts", "hostname", "resolv.conf"] {
        let path = dirs.run.join(name);
        crate::durable::remove(&path).map_err(io_error("remove", &path))?;
    }
    Ok(())
}

/// The address that a pod holds since before this agent started.
#[must_use]
pub fn held_address(dirs: &PodDirs) -> Option<Ipv4Addr> {
    fs::read_to_string(dirs.run.join("address")).ok()?.trim().parse().ok()
}

/// The sandbox as its containers join it.
#[must_use]
pub fn of(pod: &PodV1, dirs: &PodDirs) -> runtime::Sandbox {
    let paths = namespaces(dirs);
    runtime::Sandbox {
        hostname: pod.hostname.clone(),
        net: paths.net,
        ipc: paths.ipc,
        uts: paths.uts,
        shm: dirs.run.join("shm"),
    }
}

/// The files in `/etc` that the node gives a container, but those it mounts itself.
#[must_use]
pub fn file_mounts(container: &ContainerV1, dirs: &PodDirs) -> Vec<runtime::Mount> {
    ["hosts", "hostname", "resolv.conf"]
        .into_iter()
        .map(|name| runtime::Mount {
            source: dirs.run.join(name),
            destination: format!("/etc/{name}"),
            read_only: container.security.read_only_root,
        })
        .filter(|own| container.mounts.iter().all(|mount| mount.path != own.destination))
        .collect()
}

fn namespaces(dirs: &PodDirs) -> NamespacePaths {
    NamespacePaths::in_folder(&dirs.run.join("ns"))
}

fn write(path: &Path, text: &str) -> Result<(), SandboxError> {
    // In place: a container may hold a mount of this very file.
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(io_error("write", path))
}

fn hosts(hostname: &str, address: Ipv4Addr) -> String {
    format!(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n\
         {address}\t{hostname}\n"
    )
}

fn node_resolv_conf() -> String {
    // systemd-resolved answers on a loopback address, which a pod cannot reach;
    // what it asks itself is in the second file.
    let files = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];
    let texts = files.map(|path| fs::read_to_string(path).unwrap_or_default());
    resolv_conf(&[&texts[0], &texts[1]])
}

/// The name servers of the first text that has one a pod can reach.
fn resolv_conf(candidates: &[&str]) -> String {
    let is_loopback = |server: &str| server.starts_with("127.") || server == "::1";
    for text in candidates {
        let words = |line: &'_ str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let lines: Vec<Vec<String>> = text.lines().map(words).collect();
        let servers: Vec<&str> = lines
            .iter()
            .filter(|line| line.first().is_some_and(|word| word == "nameserver"))
            .filter_map(|line| line.get(1))
            .map(String::as_str)
            .filter(|server| !is_loopback(server))
            .take(NAMESERVERS_MAX)
            .collect();
        if servers.is_empty() {
            continue;
        }
        let options = lines.iter().find(|line| line.first().is_some_and(|word| word == "options"));
        let mut out: String =
            servers.iter().map(|server| format!("nameserver {server}\n")).collect();
        if let Some(options) = options {
            out.push_str(&options.join(" "));
            out.push('\n');
        }
        return out;
    }
    "# the node has no name server that its pods can reach\n".to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::container;
    use wire::pod::MountV1;

    #[test]
    fn pods_ask_the_nodes_upstreams_and_never_a_stub() {
        let table = [
            (["nameserver 9.9.9.9\nsearch lan\n", ""], "nameserver 9.9.9.9\n"),
            (
                ["nameserver 127.0.0.53\noptions edns0 trust-ad\n", "nameserver 192.0.2.1\n"],
                "nameserver 192.0.2.1\n",
            ),
            (
                ["nameserver ::1\nnameserver 192.0.2.2\noptions ndots:2\n", "nameserver 1.1.1.1"],
                "nameserver 192.0.2.2\noptions ndots:2\n",
            ),
            (
                ["nameserver a\nnameserver b\nnameserver c\nnameserver d", ""],
                "nameserver a\nnameserver b\nnameserver c\n",
            ),
            (["", ""], "# the node has no name server that its pods can reach\n"),
        ];
        for (texts, expected) in table {
            assert_eq!(resolv_conf(&texts), expected);
        }
    }

    #[test]
    fn a_containers_own_mount_wins() {
        let dirs = PodDirs { run: "/r".into(), disk: "/d".into(), logs: "/l".into() };
        let mut c = container("a");
        c.mounts.push(MountV1 {
            sub_path: "h".into(),
            read_only: true,
            ..MountV1::new("v", "/etc/hosts")
        });
        let destinations: Vec<String> =
            file_mounts(&c, &dirs).into_iter().map(|mount| mount.destination).collect();
        assert_eq!(destinations, ["/etc/hostname", "/etc/resolv.conf"]);
    }
}
