//! What the operator of this board lets pods do: the agent's configuration file.
//!
//! ```toml
//! # /etc/pinnace/agent.toml
//! allow_privileged = true                  # false: no privileged container, hostPath or host namespace
//! allowed_unsafe_sysctls = ["net.core.*"]  # besides the safe ones
//! pod_pids_max = 4096                      # processes and threads of one pod
//!
//! [devices."pinnace.io/serial"]            # what pods ask for under resources.limits
//! units = [["/dev/ttyUSB0"], ["/dev/ttyUSB1", "/dev/ttyUSB1-config"]]
//! shared = 1                               # how many containers may have one unit at once
//! ```
//!
//! A pod that asks for more is rejected, as the kubelet rejects one: it becomes
//! `Failed` with a reason, and its controller makes another one elsewhere. Pure
//! but for [`Policy::load`].

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use wire::pod::{PodV1, VolumeSourceV1};

use crate::pods::Eviction;

/// Where the file is unless the command line says otherwise.
pub const CONFIG_FILE: &str = "/etc/pinnace/agent.toml";
/// Processes and threads of a pod where the file does not say. Linux lets a
/// machine have 32768; a fork bomb in one pod must leave the others theirs.
const POD_PIDS_MAX: u64 = 4096;
/// Longest file.
const CONFIG_BYTES_MAX: u64 = 256 << 10;

/// What pods may do on this board.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// Privileged containers, `hostPath`, and the host's namespaces.
    pub allow_privileged: bool,
    /// Sysctls besides the safe ones; `*` at the end stands for anything.
    pub allowed_unsafe_sysctls: Vec<String>,
    /// Processes and threads of one pod; 0 for no limit.
    pub pod_pids_max: u64,
    /// Devices that pods ask for by name.
    pub devices: BTreeMap<String, DeviceClass>,
}

/// Devices of one name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceClass {
    /// What a container gets for each one it asks for: device nodes.
    pub units: Vec<Vec<PathBuf>>,
    /// How many containers may have the same unit at once.
    #[serde(default = "one")]
    pub shared: u32,
}

fn one() -> u32 {
    1
}

impl DeviceClass {
    /// How many can be asked for on this node.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        self.units.len() as u64 * u64::from(self.shared)
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            allow_privileged: true,
            allowed_unsafe_sysctls: Vec::new(),
            pod_pids_max: POD_PIDS_MAX,
            devices: BTreeMap::new(),
        }
    }
}

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It says what cannot be.
    #[error("{}: {message}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What, and where.
        message: String,
    },
}

impl Policy {
    /// Reads the file; the default where there is none.
    ///
    /// # Errors
    /// It cannot be read, or says what cannot be: an agent that ignored that
    /// might allow what its operator forbade.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let io = |source| PolicyError::Io { path: path.to_owned(), source };
        let content = |message: String| PolicyError::Content { path: path.to_owned(), message };
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(io(error)),
            Ok(found) if found.len() > CONFIG_BYTES_MAX => {
                return Err(content(format!("longer than {CONFIG_BYTES_MAX} bytes")));
            }
            Ok(_) => {}
        }
        let text = fs::read_to_string(path).map_err(io)?;
        Self::parse(&text).map_err(content)
    }

    fn parse(text: &str) -> Result<Self, String> {
        let policy: Self = toml::from_str(text).map_err(|error| error.to_string())?;
        for (name, class) in &policy.devices {
            let is_extended = name.split_once('/').is_some_and(|(domain, name)| {
                domain.contains('.') && !domain.ends_with("kubernetes.io") && !name.is_empty()
            });
            if !is_extended || name.len() > 253 {
                return Err(format!(
                    "devices.{name:?}: must be a domain of yours and a name, as example.com/serial"
                ));
            }
            if class.shared == 0 {
                return Err(format!("devices.{name:?}.shared: must be at least 1"));
            }
            let is_node = |path: &PathBuf| path.starts_with("/dev") && path.is_absolute();
            if class.units.iter().any(|unit| unit.is_empty() || !unit.iter().all(is_node)) {
                return Err(format!(
                    "devices.{name:?}.units: each is a list of device nodes below /dev"
                ));
            }
        }
        Ok(policy)
    }

    /// Why this node does not run a pod; `None` where it does.
    #[must_use]
    pub fn reject(&self, pod: &PodV1) -> Option<Eviction> {
        let rejected = |reason: &str, message: String| {
            let message = format!("Pod was rejected: {message}");
            Some(Eviction { reason: reason.to_owned(), message, grace_max_s: 30 })
        };
        if let Some((name, _)) =
            pod.security.sysctls.iter().find(|(name, _)| !self.allows_sysctl(pod, name))
        {
            return rejected(
                "SysctlForbidden",
                format!(
                    "forbidden sysctl: {name:?} not allowlisted; the node's {CONFIG_FILE} may list \
                     it under allowed_unsafe_sysctls"
                ),
            );
        }
        if self.allow_privileged {
            return None;
        }
        let asked = asked_of_the_host(pod)?;
        rejected(
            "PrivilegedForbidden",
            format!("{asked}, and this node's configuration has allow_privileged = false"),
        )
    }

    fn allows_sysctl(&self, pod: &PodV1, name: &str) -> bool {
        // Those of a namespace that the pod shares with the host are the host's.
        let namespaces = &pod.namespaces;
        let is_own =
            if name.starts_with("net.") { !namespaces.host_network } else { !namespaces.host_ipc };
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => pattern == name,
        };
        is_own
            && is_namespaced(name)
            && (api::pod_security::SAFE_SYSCTLS.contains(&name)
                || self.allowed_unsafe_sysctls.iter().any(matches))
    }
}

/// Whether a sysctl exists once for each network or IPC namespace: any other
/// would change the whole board, whatever a configuration says.
fn is_namespaced(name: &str) -> bool {
    let is_plain = name.split('.').all(|part| !part.is_empty() && !part.contains('/'));
    is_plain
        && (name == "kernel.sem"
            || ["kernel.shm", "kernel.msg", "fs.mqueue.", "net."]
                .iter()
                .any(|start| name.starts_with(start)))
}

/// What a pod asks of the host that an operator may not want to give.
fn asked_of_the_host(pod: &PodV1) -> Option<String> {
    let namespaces = &pod.namespaces;
    for (is_asked, what) in [
        (namespaces.host_network, "hostNetwork"),
        (namespaces.host_pid, "hostPID"),
        (namespaces.host_ipc, "hostIPC"),
    ] {
        if is_asked {
            return Some(format!("it asks for {what}"));
        }
    }
    if let Some(container) = pod.all_containers().find(|c| c.security.privileged) {
        return Some(format!("container {:?} asks to be privileged", container.name));
    }
    pod.volumes.iter().find_map(|volume| match &volume.source {
        VolumeSourceV1::HostPath { path, .. } | VolumeSourceV1::Local { path, .. } => {
            Some(format!("volume {:?} is the host's {path}", volume.name))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::{container, pod};
    use wire::pod::{HostPathKindV1, VolumeV1};

    #[test]
    fn a_file_is_read_in_full_or_refused() {
        let policy = Policy::parse(
            "allow_privileged = false\npod_pids_max = 100\nallowed_unsafe_sysctls = [\"net.core.*\"]\n\
             [devices.\"pinnace.io/serial\"]\nunits = [[\"/dev/ttyS0\"], [\"/dev/ttyS1\", \"/dev/null\"]]\nshared = 2\n",
        )
        .unwrap();
        assert!(!policy.allow_privileged);
        assert_eq!(policy.devices["pinnace.io/serial"].capacity(), 4);
        assert_eq!(Policy::parse("").unwrap(), Policy::default());
        for (text, expected) in [
            ("allow_priviledged = false", "unknown field `allow_priviledged`"),
            ("[devices.serial]\nunits = []", "must be a domain of yours"),
            ("[devices.\"cpu\"]\nunits = []", "must be a domain of yours"),
            ("[devices.\"a.b/c\"]\nunits = [[]]", "device nodes below /dev"),
            ("[devices.\"a.b/c\"]\nunits = [[\"/etc/passwd\"]]", "device nodes below /dev"),
            ("[devices.\"a.b/c\"]\nunits = []\nshared = 0", "at least 1"),
            ("\u{0}", "1"),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn sysctls_are_safe_allowed_or_forbidden() {
        let policy = Policy {
            allowed_unsafe_sysctls: vec![
                "net.core.*".into(),
                "kernel.msgmax".into(),
                "vm.*".into(),
            ],
            ..Policy::default()
        };
        let rejects = |name: &str, change: &dyn Fn(&mut PodV1)| {
            let mut pod = pod(vec![container("c")]);
            pod.security.sysctls = vec![(name.into(), "1".into())];
            change(&mut pod);
            policy.reject(&pod).map(|eviction| eviction.reason)
        };
        for name in [
            "net.ipv4.tcp_syncookies",
            "kernel.shm_rmid_forced",
            "net.core.somaxconn",
            "kernel.msgmax",
        ] {
            assert_eq!(rejects(name, &|_| {}), None, "{name}");
        }
        for name in [
            "kernel.msgmnb",
            "net.ipv4.ip_forward",
            "vm.swappiness",
            "kernel.panic",
            "net/core/x",
            "net..x",
        ] {
            assert_eq!(rejects(name, &|_| {}).as_deref(), Some("SysctlForbidden"), "{name}");
        }
        let host = |pod: &mut PodV1| pod.namespaces.host_network = true;
        assert!(rejects("net.ipv4.tcp_syncookies", &host).is_some(), "the host's");
        assert!(rejects("kernel.msgmax", &host).is_none());
    }

    #[test]
    fn an_operator_keeps_pods_from_the_host() {
        let check = |change: &dyn Fn(&mut PodV1), expected: Option<&str>| {
            let mut pod = pod(vec![container("c")]);
            change(&mut pod);
            assert_eq!(Policy::default().reject(&pod), None);
            let strict = Policy { allow_privileged: false, ..Policy::default() };
            let message = strict.reject(&pod).map(|eviction| eviction.message);
            match expected {
                None => assert_eq!(message, None),
                Some(text) => assert!(message.as_ref().unwrap().contains(text), "{message:?}"),
            }
        };
        check(&|_| {}, None);
        check(&|pod| pod.namespaces.share_process = true, None);
        check(&|pod| pod.namespaces.host_network = true, Some("hostNetwork"));
        check(&|pod| pod.namespaces.host_pid = true, Some("hostPID"));
        check(&|pod| pod.containers[0].security.privileged = true, Some("container \"c\""));
        let volume = VolumeV1 {
            name: "v".into(),
            source: VolumeSourceV1::HostPath { path: "/etc".into(), kind: HostPathKindV1::Any },
        };
        check(&move |pod| pod.volumes = vec![volume.clone()], Some("the host's /etc"));
    }
}
