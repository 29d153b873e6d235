//! The OCI runtime specification of a container, as libcontainer reads it.
//!
//! What is not here is deliberate: limits and device rules are set on the
//! cgroup by us, for both kinds of containers alike; the seccomp filter and the
//! last capabilities are dealt with in `executor`; `oom_score_adj` is set on the
//! shim before it clones, because libcontainer fails where it may not be lowered.

use std::path::Path;

use runtime::{ContainerSpec, LaunchError, PidNamespace, reason};
use serde_json::{Value, json};

use crate::capabilities;
use crate::devices::{Kind, Node};
use crate::user::Ids;

/// What a command is looked for in where nothing else is said, as containerd has it.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Files of /proc and /sys that tell of or change the host, as containerd hides them.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] =
    ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Where no volume may appear: too much of what confines a container is there.
const RESERVED: &str = "/proc";

/// What was found out for the specification.
pub(crate) struct Facts<'a> {
    /// Where the overlay is mounted.
    pub(crate) rootfs: &'a Path,
    pub(crate) ids: &'a Ids,
    /// What libcontainer shall leave the process with; `executor` drops the rest.
    pub(crate) capabilities: &'a capabilities::Set,
    /// Whether the cgroup file system can be shown to the container.
    pub(crate) unified_cgroups: bool,
    /// Device nodes it is given besides the harmless ones.
    pub(crate) devices: &'a [Node],
    /// The process ids of the container that it is to see.
    pub(crate) processes: Option<String>,
}

/// Makes the specification.
///
/// # Errors
/// Something in the container's spec cannot be expressed.
pub(crate) fn runtime_spec(spec: &ContainerSpec, facts: &Facts<'_>) -> Result<Value, LaunchError> {
    let cwd = if spec.cwd.is_empty() { "/" } else { &spec.cwd };
    if !cwd.starts_with('/') {
        return Err(config_error(format!("workingDir {cwd:?} is not an absolute path")));
    }
    if spec.args.first().is_none_or(String::is_empty) {
        return Err(config_error(format!(
            "no command: image {:?} has no entrypoint, and the container names no command",
            spec.image
        )));
    }
    if spec.args.iter().any(|arg| arg.contains('\0')) {
        return Err(config_error("command or args hold a NUL byte".into()));
    }
    let names = capabilities::names(facts.capabilities);
    let mut process = json!({
        "terminal": false,
        "user": {
            "uid": facts.ids.uid,
            "gid": facts.ids.gid,
            "additionalGids": facts.ids.groups,
        },
        "args": spec.args,
        "env": environment(spec)?,
        "cwd": cwd,
        "capabilities": {
            "bounding": names,
            "effective": names,
            "permitted": names,
            "inheritable": [],
            "ambient": [],
        },
    });
    // libcontainer tests for presence, not for the value.
    if spec.security.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    let shows_all = spec.security.privileged || spec.security.unmasked_proc;
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": { "path": facts.rootfs, "readonly": spec.security.read_only_root },
        "process": process,
        "mounts": mounts(spec, facts.unified_cgroups)?,
        "linux": {
            // Absolute, or libcontainer might ask systemd.
            "cgroupsPath": spec.cgroup,
            "namespaces": namespaces(spec, facts.processes.as_deref()),
            "devices": facts.devices.iter().map(device).collect::<Vec<_>>(),
            "maskedPaths": if shows_all { &[][..] } else { &MASKED },
            "readonlyPaths": if shows_all { &[][..] } else { &READ_ONLY },
        },
    }))
}

/// The container's own namespaces, and the pod's; one that is not named is the host's.
fn namespaces(spec: &ContainerSpec, processes: Option<&str>) -> Vec<Value> {
    let sandbox = &spec.sandbox;
    let mut all = vec![json!({ "type": "mount" })];
    match &sandbox.pid {
        PidNamespace::Own => all.push(json!({ "type": "pid" })),
        PidNamespace::Pod(path) => all.push(json!({ "type": "pid", "path": path })),
        PidNamespace::Container(_) => all.push(json!({ "type": "pid", "path": processes })),
        PidNamespace::Host => {}
    }
    if !spec.security.privileged {
        all.push(json!({ "type": "cgroup" }));
    }
    for (kind, path) in [("network", &sandbox.net), ("ipc", &sandbox.ipc), ("uts", &sandbox.uts)] {
        if !path.as_os_str().is_empty() {
            all.push(json!({ "type": kind, "path": path }));
        }
    }
    all
}

fn device(node: &Node) -> Value {
    json!({
        "path": node.path,
        "type": if node.kind == Kind::Block { "b" } else { "c" },
        "major": node.major,
        "minor": node.minor,
        "fileMode": node.mode,
        "uid": node.uid,
        "gid": node.gid,
    })
}

fn config_error(message: String) -> LaunchError {
    LaunchError::new(reason::CREATE_CONTAINER_CONFIG_ERROR, message)
}

/// `NAME=value`, the last of each name, with a PATH.
fn environment(spec: &ContainerSpec) -> Result<Vec<String>, LaunchError> {
    let mut all: Vec<(&str, &str)> = vec![("PATH", DEFAULT_PATH)];
    all.push(("HOSTNAME", &spec.sandbox.hostname));
    if spec.stdio.tty {
        all.push(("TERM", "xterm"));
    }
    for (name, value) in &spec.env {
        if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
            return Err(config_error(format!("{name:?} cannot be the name of a variable")));
        }
        match all.iter_mut().find(|(known, _)| known == name) {
            Some(entry) => entry.1 = value,
            None => all.push((name, value)),
        }
    }
    Ok(all.into_iter().map(|(name, value)| format!("{name}={value}")).collect())
}

fn mounts(spec: &ContainerSpec, unified_cgroups: bool) -> Result<Vec<Value>, LaunchError> {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
    let of_system = if spec.security.privileged { "rw" } else { "ro" };
    let mut all = vec![
        mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
        // The one place where device nodes work; only those given are made there.
        mount("/dev", "tmpfs", &["nosuid", "noexec", "strictatime", "mode=755", "size=64k"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", of_system]),
    ];
    if unified_cgroups {
        let options = ["nosuid", "noexec", "nodev", "relatime", of_system];
        all.push(mount("/sys/fs/cgroup", "cgroup", &options));
    }
    if spec.sandbox.shm.as_os_str().is_empty() {
        let options = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"];
        all.push(mount("/dev/shm", "tmpfs", &options));
    } else {
        all.push(json!({
            "destination": "/dev/shm",
            "type": "bind",
            "source": spec.sandbox.shm,
            "options": ["rbind", "nosuid", "noexec", "nodev"],
        }));
    }
    for volume in &spec.mounts {
        let destination = destination(&volume.destination)?;
        if destination == "/dev" {
            // Not libcontainer's, which would make nodes in it: see `propagate`.
            continue;
        }
        // A volume in the place of one of the system's replaces it, as containerd has it.
        all.retain(|mount| mount["destination"] != destination);
        let mut options = vec!["rbind"];
        if !spec.security.privileged {
            options.push("nodev");
        }
        options.push(match (volume.read_only, volume.recursive_read_only) {
            (true, true) => "rro",
            (true, false) => "ro",
            (false, _) => "rw",
        });
        all.push(json!({
            "destination": destination,
            "type": "bind",
            "source": volume.source,
            "options": options,
        }));
    }
    Ok(all)
}

/// A `mountPath` without its last slash.
///
/// # Errors
/// It is not absolute, has parts that lead elsewhere, or is reserved.
fn destination(path: &str) -> Result<&str, LaunchError> {
    let destination = path.trim_end_matches('/');
    let plain = destination.starts_with('/')
        && destination[1..].split('/').all(|part| !matches!(part, "" | "." | ".."));
    if !plain || destination.contains('\0') {
        return Err(config_error(format!(
            "mountPath {path:?} is not an absolute path without \"..\""
        )));
    }
    if destination == RESERVED {
        return Err(config_error(format!("mountPath {destination:?} would hide the system's")));
    }
    Ok(destination)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use runtime::{Mount, Resources, Sandbox, Security, User, Workload};

    /// A spec to change in a test.
    pub(crate) fn spec() -> ContainerSpec {
        ContainerSpec {
            id: "web-main-0".into(),
            pod_uid: "uid-1".into(),
            namespace: "default".into(),
            pod: "web".into(),
            container: "main".into(),
            attempt: 0,
            image: "demo:v1".into(),
            workload: Workload::Oci { layers: vec![], scratch: "/tmp/scratch".into() },
            args: vec!["/bin/true".into()],
            env: vec![("A".into(), "1".into()), ("A".into(), "2".into())],
            cwd: String::new(),
            user: User::default(),
            mounts: vec![],
            resources: Resources::default(),
            security: Security::default(),
            stdio: runtime::Stdio::default(),
            sandbox: Sandbox { hostname: "web".into(), ..Sandbox::default() },
            cgroup: "/pinnace/poduid-1/main-0".into(),
            log: "/tmp/log".into(),
        }
    }

    fn make(spec: &ContainerSpec) -> Result<Value, LaunchError> {
        let facts = Facts {
            rootfs: Path::new("/r"),
            ids: &Ids::default(),
            capabilities: &capabilities::Set::new(),
            unified_cgroups: false,
            devices: &[],
            processes: None,
        };
        runtime_spec(spec, &facts)
    }

    #[test]
    fn the_last_variable_of_a_name_wins_and_path_is_there() {
        let made = make(&spec()).unwrap();
        let expected = json!([format!("PATH={DEFAULT_PATH}"), "HOSTNAME=web", "A=2"]);
        assert_eq!(made["process"]["env"], expected);
    }

    #[test]
    fn no_new_privileges_is_absent_unless_wanted() {
        let mut spec = spec();
        assert_eq!(make(&spec).unwrap()["process"].get("noNewPrivileges"), None);
        spec.security.no_new_privileges = true;
        assert_eq!(make(&spec).unwrap()["process"]["noNewPrivileges"], json!(true));
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let check = |change: &dyn Fn(&mut ContainerSpec), expected: &str| {
            let mut spec = spec();
            change(&mut spec);
            let error = make(&spec).unwrap_err();
            assert_eq!(error.reason, reason::CREATE_CONTAINER_CONFIG_ERROR);
            assert!(error.message.contains(expected), "{}", error.message);
        };
        let at = |destination: &str| {
            vec![Mount {
                source: "/x".into(),
                destination: destination.into(),
                read_only: true,
                ..Mount::default()
            }]
        };
        check(&|s| s.cwd = "app".into(), "workingDir \"app\"");
        check(&|s| s.args.clear(), "image \"demo:v1\" has no entrypoint");
        check(&|s| s.env.push(("a=b".into(), String::new())), "\"a=b\"");
        check(&|s| s.mounts = at("/a/../etc"), "\"/a/../etc\"");
        check(&|s| s.mounts = at("data"), "\"data\"");
        check(&|s| s.mounts = at("/"), "\"/\"");
        check(&|s| s.mounts = at("/proc/"), "\"/proc\"");
    }

    #[test]
    fn volumes_have_no_devices() {
        let mut spec = spec();
        let volume = Mount {
            source: "/x".into(),
            destination: "/d".into(),
            read_only: true,
            ..Mount::default()
        };
        spec.mounts = vec![volume];
        let made = make(&spec).unwrap();
        let last = made["mounts"].as_array().unwrap().last().unwrap().clone();
        assert_eq!(last["options"], json!(["rbind", "nodev", "ro"]));
    }

    #[test]
    fn a_privileged_container_sees_the_machine() {
        let mut spec = spec();
        spec.sandbox.net = "/ns/net".into();
        let made = make(&spec).unwrap();
        let kinds = |made: &Value| {
            let all = made["linux"]["namespaces"].as_array().unwrap().iter();
            all.map(|n| n["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(kinds(&made), "mount pid cgroup network");
        assert_eq!(made["linux"]["maskedPaths"].as_array().unwrap().len(), MASKED.len());
        spec.security.privileged = true;
        spec.sandbox = Sandbox { pid: PidNamespace::Host, ..Sandbox::default() };
        spec.mounts = vec![
            Mount { source: "/sys".into(), destination: "/sys/".into(), ..Mount::default() },
            Mount { source: "/dev".into(), destination: "/dev".into(), ..Mount::default() },
        ];
        let made = make(&spec).unwrap();
        assert_eq!(kinds(&made), "mount");
        assert_eq!(made["linux"]["maskedPaths"], json!([]));
        assert_eq!(made["linux"]["readonlyPaths"], json!([]));
        let of = |path: &str| {
            let all = made["mounts"].as_array().unwrap().iter();
            all.filter(|m| m["destination"] == path).map(|m| m["type"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(of("/sys"), [json!("bind")]);
        assert_eq!(of("/dev"), [json!("tmpfs")], "the host's is put over it later");
    }
}
