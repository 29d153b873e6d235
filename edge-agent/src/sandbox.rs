//! What a pod's containers share besides volumes: namespaces, address,
//! `/dev/shm`, and `/etc/hosts`, `/etc/hostname` and `/etc/resolv.conf`.
//!
//! A pod on the host's network has the host's name, address and `/etc/hosts`,
//! and no network namespace of its own.

pub mod pause;
mod resolv;

use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use runtime::BoxFuture;
use wire::Uid;
use wire::pod::{ContainerV1, HostAliasV1, PodV1};

use crate::config::PodDirs;
use crate::env::Facts;
use crate::network::{ClusterDns, NamespacePaths, Network, NetworkError, hold_ipc, set_sysctls};
use crate::volumes::{is_mount, mount_tmpfs, unmount_below};

/// Size of `/dev/shm`, in bytes, as containerd has it.
const SHM_BYTES: u64 = 64 << 20;

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

    /// Where pods ask for the cluster's names, if there is a place.
    fn dns(&self) -> Option<ClusterDns> {
        None
    }
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

    fn dns(&self) -> Option<ClusterDns> {
        Self::dns(self)
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
    /// The process that holds the pod's process ids did not start.
    #[error("cannot make the pod's process namespace: {0}")]
    Processes(String),
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
    node: &Facts,
) -> Result<String, SandboxError> {
    fs::create_dir_all(&dirs.run).map_err(io_error("make", &dirs.run))?;
    let paths = namespaces(dirs);
    let shares = pod.namespaces;
    let address = if shares.host_network {
        if !shares.host_ipc {
            hold_ipc(&paths.ipc).await?;
        }
        node.host_ip.clone()
    } else {
        if held_address(dirs).is_none() {
            // An agent that was killed half-way has left one whose address nobody knows.
            network.detach(&pod.uid, &paths).await?;
        }
        let address = network.attach(&pod.uid, &paths, &pod.hostname).await?;
        write(&dirs.run.join("address"), &address.to_string())?;
        address.to_string()
    };
    if !pod.security.sysctls.is_empty() {
        set_sysctls(&paths, &pod.security.sysctls).await?;
    }
    let shm = dirs.run.join("shm");
    fs::create_dir_all(&shm).map_err(io_error("make", &shm))?;
    if !is_mount(&shm) {
        mount_tmpfs(&shm, SHM_BYTES, "1777").map_err(io_error("mount a tmpfs at", &shm))?;
    }
    let own = if shares.host_network {
        fs::read_to_string("/etc/hosts").unwrap_or_default()
    } else {
        own_hosts(&pod.hostname, &pod.fqdn, &address)
    };
    write(&dirs.run.join("hosts"), &hosts(&own, &pod.host_aliases))?;
    write(&dirs.run.join("hostname"), &format!("{}\n", hostname(pod)))?;
    let cluster = network.dns();
    let resolv = resolv::file(&pod.dns, shares.host_network, &pod.namespace, cluster.as_ref());
    write(&dirs.run.join("resolv.conf"), &resolv)?;
    Ok(address)
}

/// The name servers that the node itself asks, as it reaches them.
#[must_use]
pub fn upstreams() -> Vec<std::net::IpAddr> {
    resolv::node_upstreams()
}

/// The name that the pod's containers have.
fn hostname(pod: &PodV1) -> String {
    if pod.namespaces.host_network {
        let uname = rustix::system::uname();
        return uname.nodename().to_string_lossy().into_owned();
    }
    pod.hostname.clone()
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
    pause::let_go(&dirs.run).map_err(io_error("let go of", &dirs.run))?;
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
    for name in ["address", "hosts", "hostname", "resolv.conf", "pause"] {
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
    let shares = pod.namespaces;
    // An empty path is the host's.
    let unless = |is_host: bool, path: PathBuf| if is_host { PathBuf::new() } else { path };
    runtime::Sandbox {
        hostname: hostname(pod),
        net: unless(shares.host_network, paths.net),
        ipc: unless(shares.host_ipc, paths.ipc),
        uts: unless(shares.host_network, paths.uts),
        pid: if shares.host_pid {
            runtime::PidNamespace::Host
        } else if shares.share_process {
            runtime::PidNamespace::Pod(pause::namespace(&dirs.run))
        } else {
            runtime::PidNamespace::Own
        },
        shm: if shares.host_ipc { PathBuf::from("/dev/shm") } else { dirs.run.join("shm") },
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
            ..runtime::Mount::default()
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

/// The hosts that every pod knows, and the pod itself.
fn own_hosts(hostname: &str, fqdn: &str, address: &str) -> String {
    let names = if fqdn.is_empty() || fqdn == hostname {
        hostname.to_owned()
    } else {
        format!("{fqdn}\t{hostname}")
    };
    format!(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n\
         {address}\t{names}\n"
    )
}

/// `/etc/hosts` with the pod's `hostAliases` behind what is there anyway.
fn hosts(own: &str, aliases: &[HostAliasV1]) -> String {
    let mut text = own.to_owned();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
    }
    for alias in aliases {
        text.push_str(&format!("{}\t{}\n", alias.ip, alias.names.join("\t")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::container;
    use wire::pod::MountV1;

    #[test]
    fn aliases_follow_the_pods_own_name() {
        let own = own_hosts("web-0", "web-0.web.default.svc.cluster.local", "10.42.0.2");
        let alias = HostAliasV1 { ip: "192.0.2.1".into(), names: vec!["a".into(), "b.c".into()] };
        let text = hosts(&own, &[alias]);
        assert!(text.ends_with(
            "10.42.0.2\tweb-0.web.default.svc.cluster.local\tweb-0\n\n\
             # Entries added by HostAliases.\n192.0.2.1\ta\tb.c\n"
        ));
        assert!(hosts(&own_hosts("a", "", "1.2.3.4"), &[]).ends_with("1.2.3.4\ta\n"));
    }

    #[test]
    fn namespaces_of_the_host_have_no_path() {
        let dirs = PodDirs {
            run: "/r".into(),
            disk: "/d".into(),
            logs: "/l".into(),
            storage: "/s".into(),
        };
        let mut pod = crate::pods::tests::pod(vec![]);
        let own = of(&pod, &dirs);
        assert_eq!((own.net, own.pid), ("/r/ns/net".into(), runtime::PidNamespace::Own));
        pod.namespaces.host_network = true;
        let joined = of(&pod, &dirs);
        assert_eq!((joined.net, joined.uts), (PathBuf::new(), PathBuf::new()));
        assert_eq!((joined.ipc, joined.shm), ("/r/ns/ipc".into(), "/r/shm".into()));
        pod.namespaces.host_ipc = true;
        pod.namespaces.share_process = true;
        let joined = of(&pod, &dirs);
        assert_eq!((joined.ipc, joined.shm), (PathBuf::new(), "/dev/shm".into()));
        assert_eq!(joined.pid, runtime::PidNamespace::Pod("/r/ns/pid".into()));
        pod.namespaces.host_pid = true;
        assert_eq!(of(&pod, &dirs).pid, runtime::PidNamespace::Host);
    }

    #[test]
    fn a_containers_own_mount_wins() {
        let dirs = PodDirs {
            run: "/r".into(),
            disk: "/d".into(),
            logs: "/l".into(),
            storage: "/s".into(),
        };
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
