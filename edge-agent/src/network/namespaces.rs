//! A pod's namespaces, held by bind mounts of nsfs, without a process in them.
//!
//! `unshare` and `setns` change one thread, so each call takes a thread of its
//! own, which ends with it: no thread of the agent ever is in another namespace.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::links::{self, Netlink};
use super::{Attachment, NamespacePaths, NetworkError, io_error};

/// `NSFS_MAGIC` of linux/magic.h.
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// Whether a file holds a namespace.
#[must_use]
pub fn is_namespace(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|info| {
        // The type of the field differs between architectures.
        #[allow(clippy::unnecessary_cast)]
        let kind = info.f_type as i64;
        kind == NSFS_MAGIC
    })
}

/// Makes the namespaces that are missing and joins the network one to the node's.
pub(super) fn create(
    paths: &NamespacePaths,
    hostname: &str,
    attachment: &Attachment,
) -> Result<(), NetworkError> {
    let all = [&paths.net, &paths.ipc, &paths.uts];
    if !all.iter().all(|path| is_namespace(path)) {
        remove(paths)?;
    }
    if let Some(folder) = paths.net.parent() {
        fs::create_dir_all(folder).map_err(io_error(format!("make {}", folder.display())))?;
    }
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("pod-network".to_owned())
            .stack_size(256 << 10)
            .spawn_scoped(scope, || create_here(paths, hostname, attachment))
            .map_err(io_error("start a thread"))?
            .join()
            .expect("the thread does not panic")
    })
}

fn create_here(
    paths: &NamespacePaths,
    hostname: &str,
    attachment: &Attachment,
) -> Result<(), NetworkError> {
    let runtime = links::runtime()?;
    runtime.block_on(async {
        // A netlink socket belongs to the namespace it was opened in.
        let host = Netlink::open()?;
        if is_namespace(&paths.net) {
            let net = File::open(&paths.net).map_err(io_error("open the pod's namespace"))?;
            setns(net.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(io::Error::from)
                .map_err(io_error("enter the pod's namespace"))?;
        } else {
            let kinds =
                CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWIPC | CloneFlags::CLONE_NEWUTS;
            unshare(kinds)
                .map_err(io::Error::from)
                .map_err(io_error("make the pod's namespaces"))?;
            rustix::system::sethostname(hostname.as_bytes())
                .map_err(io::Error::from)
                .map_err(io_error(format!("set the host name {hostname:?}")))?;
            // As container engines have it: programs that are not root listen where they
            // like, in a network of their own. Old kernels lack the file.
            let _ = fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0");
            hold("ipc", &paths.ipc)?;
            hold("uts", &paths.uts)?;
            // The last one: `is_namespace` of all three means all is done.
            hold("net", &paths.net)?;
        }
        let net = File::open(&paths.net).map_err(io_error("open the pod's namespace"))?;
        let pod = Netlink::open()?;
        links::join(&host, &pod, net.as_fd(), attachment).await
    })
}

pub(super) fn hold(kind: &str, path: &Path) -> Result<(), NetworkError> {
    let what = || format!("hold a namespace at {}", path.display());
    File::create(path).map_err(io_error(what()))?;
    mount_bind(format!("/proc/thread-self/ns/{kind}"), path)
        .map_err(io::Error::from)
        .map_err(io_error(what()))
}

/// Lets the namespaces go; they end with the last process in them.
pub(super) fn remove(paths: &NamespacePaths) -> Result<(), NetworkError> {
    for path in [&paths.net, &paths.ipc, &paths.uts] {
        let what = || format!("let go of {}", path.display());
        // Twice where two agents crossed; a bound, for a mount can always be added.
        for _ in 0..8 {
            if !is_namespace(path) {
                break;
            }
            unmount(path, UnmountFlags::DETACH)
                .map_err(io::Error::from)
                .map_err(io_error(what()))?;
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(what())(error));
            }
            _ => {}
        }
    }
    Ok(())
}
