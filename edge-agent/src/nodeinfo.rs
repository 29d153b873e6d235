//! What the board is, and what it lacks: read once at the start, and the
//! findings again whenever they may have changed.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;

use proxy::control::Capture;
use wire::node::NodeInfoV1;

use crate::config::Folders;
use crate::doctor;
use crate::durable::{self, Keep};

/// Most pods of a node, as the kubelet's default.
const PODS_MAX: u32 = 110;

/// Something that is missing or wrong: condition and message with the way out.
pub type Finding = (String, String);

/// Reads what the node is.
///
/// # Errors
/// The machine has no id and none can be made in the state folder.
pub fn read(folders: &Folders, labels: Vec<(String, String)>) -> io::Result<NodeInfoV1> {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    Ok(NodeInfoV1 {
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        arch: arch().to_owned(),
        arch_variant: arch_variant().to_owned(),
        kernel: text(uname.release()),
        os_image: os_image(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        machine_id: machine_id(folders)?,
        kernel_boot_id: first_line(Path::new("/proc/sys/kernel/random/boot_id")),
        hostname: text(uname.nodename()),
        address: String::new(),
        more_addresses: Vec::new(),
        tunnel_port: 0,
        cpu_millis: cpus() * 1000,
        memory_bytes: memory_bytes(&fs::read_to_string("/proc/meminfo").unwrap_or_default()),
        disk_bytes: disk_bytes(&folders.state),
        pods_max: PODS_MAX,
        resources: Vec::new(),
        oci: doctor::has_overlay(&text(uname.release())),
        wasm: wasm::engine::local(),
        board: String::new(),
        // Once the proxy has said how it takes what pods send, the whole is said again.
        findings: findings(folders, None, Some(Capture::SkLookup)),
        images: Vec::new(),
        labels,
        static_pods: Vec::new(),
        storage_folder: folders.storage().display().to_string(),
        removed_volumes: Vec::new(),
        ext: Vec::new(),
    })
}

/// What is missing or wrong on the board: what [`doctor`] says, as conditions.
/// `egress_error` is why pods have no way out, where the agent has seen that, and
/// `capture` how the proxy takes what they send.
#[must_use]
pub fn findings(
    folders: &Folders,
    egress_error: Option<String>,
    capture: Option<Capture>,
) -> Vec<Finding> {
    let mut facts = doctor::Facts::local(&folders.state, &folders.run);
    facts.egress_error = egress_error;
    facts.capture = capture.map(|capture| (capture, String::new()));
    doctor::conditions(&facts)
}

/// The node's address as seen towards `endpoint`, without sending anything.
#[must_use]
pub fn address_towards(endpoint: Option<SocketAddr>) -> Option<IpAddr> {
    let towards = |to: SocketAddr| {
        let any: SocketAddr =
            if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
        let socket = UdpSocket::bind(any).ok()?;
        socket.connect(to).ok()?;
        socket.local_addr().ok().map(|own| own.ip())
    };
    // Where no master is known or it is this machine: the way of the default route
    // (an address that is for documentation only).
    let elsewhere = || towards(([192, 0, 2, 1], 9).into());
    match endpoint.and_then(towards) {
        Some(own) if !own.is_loopback() => Some(own),
        own => elsewhere().or(own),
    }
}

fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

fn arch_variant() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "v8",
        "arm" if cfg!(target_feature = "v7") => "v7",
        "arm" => "v6",
        _ => "",
    }
}

fn os_image(os_release: &str) -> String {
    os_release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map(|value| value.trim().trim_matches('"').to_owned())
        .unwrap_or_else(|| "Linux".to_owned())
}

fn machine_id(folders: &Folders) -> io::Result<String> {
    let system = first_line(Path::new("/etc/machine-id"));
    if system.len() == 32 {
        return Ok(system);
    }
    let own = folders.state.join("machine-id");
    let made = first_line(&own);
    if made.len() == 32 {
        return Ok(made);
    }
    let id = uuid::Uuid::new_v4().simple().to_string();
    durable::write_text(&own, &format!("{id}\n"), Keep::ThroughPowerLoss)
        .map_err(|error| io::Error::other(crate::hooks::chain(&error)))?;
    Ok(id)
}

fn first_line(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

fn cpus() -> u64 {
    std::thread::available_parallelism().map_or(1, |n| n.get() as u64)
}

fn memory_bytes(meminfo: &str) -> u64 {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|value| value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .unwrap_or(0)
        .saturating_mul(1024)
}

fn disk_bytes(folder: &Path) -> u64 {
    rustix::fs::statvfs(folder).map_or(0, |info| info.f_blocks.saturating_mul(info.f_frsize))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_the_system_are_read_as_they_are() {
        assert_eq!(
            os_image("NAME=x\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
            "Debian GNU/Linux 12 (bookworm)"
        );
        assert_eq!(os_image(""), "Linux");
        assert_eq!(memory_bytes("MemTotal:         948316 kB\nMemFree: 1 kB\n"), 948_316 * 1024);
        assert_eq!(memory_bytes("nonsense"), 0);
    }

    #[test]
    fn a_machine_without_id_gets_one_that_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (folders, _locks) =
            Folders::open(&folder.path().join("state"), &folder.path().join("run")).unwrap();
        let first = machine_id(&folders).unwrap();
        assert_eq!(first.len(), 32);
        assert_eq!(machine_id(&folders).unwrap(), first);
        let info = read(&folders, vec![]).unwrap();
        assert!(info.memory_bytes > 0 && info.disk_bytes > 0 && info.cpu_millis >= 1000);
    }
}
