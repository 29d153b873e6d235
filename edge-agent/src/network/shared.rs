//! What pods on the host's network still have of their own, and the kernel
//! settings of a pod's namespaces.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use nix::sched::{CloneFlags, setns, unshare};

use super::namespaces::{hold, is_namespace};
use super::{NamespacePaths, NetworkError, blocking, io_error};

/// Makes an IPC namespace and holds it at `path`, if it is not there yet.
///
/// # Errors
/// The kernel refuses.
pub async fn hold_ipc(path: &Path) -> Result<(), NetworkError> {
    let path = path.to_owned();
    blocking(move || {
        if is_namespace(&path) {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(io_error(format!("make {}", folder.display())))?;
        }
        in_a_thread(|| {
            unshare(CloneFlags::CLONE_NEWIPC)
                .map_err(io::Error::from)
                .map_err(io_error("make the pod's namespaces"))?;
            hold("ipc", &path)
        })
    })
    .await
}

/// Sets kernel settings in the pod's namespaces; those it shares with the host
/// are never written to.
///
/// # Errors
/// The kernel has no such setting, or refuses the value.
pub async fn set_sysctls(
    paths: &NamespacePaths,
    sysctls: &[(String, String)],
) -> Result<(), NetworkError> {
    let (paths, sysctls) = (paths.clone(), sysctls.to_vec());
    blocking(move || {
        in_a_thread(|| {
            let mut joined = Vec::new();
            for (path, kind, name) in [
                (&paths.net, CloneFlags::CLONE_NEWNET, "net"),
                (&paths.ipc, CloneFlags::CLONE_NEWIPC, "ipc"),
            ] {
                if is_namespace(path) {
                    let file = File::open(path).map_err(io_error("open the pod's namespace"))?;
                    setns(file.as_fd(), kind)
                        .map_err(io::Error::from)
                        .map_err(io_error("enter the pod's namespace"))?;
                    joined.push(name);
                }
            }
            for (name, value) in &sysctls {
                let needed = if name.starts_with("net.") { "net" } else { "ipc" };
                let set = || {
                    if !joined.contains(&needed) || name.contains(['/', '\0']) {
                        return Err(io::Error::from(io::ErrorKind::PermissionDenied));
                    }
                    // `/proc/sys` shows a thread the settings of its own namespaces.
                    let path = Path::new("/proc/sys").join(name.replace('.', "/"));
                    let mut file = fs::OpenOptions::new().write(true).open(path)?;
                    io::Write::write_all(&mut file, value.as_bytes())
                };
                set().map_err(io_error(format!("set sysctl {name} to {value:?}")))?;
            }
            Ok(())
        })
    })
    .await
}

/// Namespaces belong to a thread, so each change takes one of its own.
fn in_a_thread(work: impl FnOnce() -> Result<(), NetworkError> + Send) -> Result<(), NetworkError> {
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("pod-namespace".to_owned())
            .stack_size(256 << 10)
            .spawn_scoped(scope, work)
            .map_err(io_error("start a thread"))?
            .join()
            .expect("the thread does not panic")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn settings_change_in_the_pods_namespaces_alone() {
        let folder = tempfile::tempdir().unwrap();
        let paths = NamespacePaths::in_folder(folder.path());
        hold_ipc(&paths.ipc).await.unwrap();
        hold_ipc(&paths.ipc).await.unwrap();
        assert!(is_namespace(&paths.ipc));
        let host = || fs::read_to_string("/proc/sys/kernel/msgmax").unwrap();
        let before = host();
        let of = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        set_sysctls(&paths, &of("kernel.msgmax", "12345")).await.unwrap();
        let ipc = paths.ipc.clone();
        let inside = std::thread::spawn(move || {
            setns(File::open(ipc).unwrap().as_fd(), CloneFlags::CLONE_NEWIPC).unwrap();
            fs::read_to_string("/proc/sys/kernel/msgmax").unwrap()
        });
        assert_eq!(inside.join().unwrap(), "12345\n");
        assert_eq!(host(), before);
        // There is no network namespace here but the host's.
        let error = set_sysctls(&paths, &of("net.ipv4.tcp_syncookies", "1")).await.unwrap_err();
        assert!(error.to_string().contains("sysctl net.ipv4.tcp_syncookies"), "{error}");
        set_sysctls(&paths, &of("kernel.msgmax", "no")).await.unwrap_err();
        rustix::mount::unmount(&paths.ipc, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}
