//! A healthy board has no findings, and every fault alone has exactly its own.

use expect_test::{Expect, expect};
use proxy::control::Capture;
use runtime::cgroup::CgroupSupport;

use super::facts::{
    CertificateFacts, ClockFacts, DiskFacts, Facts, LimitFacts, LinkFacts, MountFacts, disks,
};
use super::probe::Stage;
use super::{CHECKS, Report, conditions};

const NOW_S: u64 = 1_780_000_000;

fn healthy() -> Facts {
    Facts {
        is_root: true,
        cgroups: Ok(CgroupSupport {
            unified: true,
            cpu: true,
            memory: true,
            pids: true,
            devices_v1: false,
        }),
        cmdline_file: Some("/boot/firmware/cmdline.txt".into()),
        cmdline_text: "console=serial0 root=PARTUUID=1".into(),
        has_overlay: true,
        has_bpf: true,
        has_seccomp: true,
        has_landlock: Some(true),
        has_user_namespaces: true,
        has_nft: true,
        capture: None,
        egress_error: None,
        clock: ClockFacts { wall_s: NOW_S, known_past_s: NOW_S - 1000 },
        state_mount: MountFacts {
            point: "/".into(),
            is_read_only: false,
            bytes: 100 << 30,
            bytes_free: 50 << 30,
            inodes: 1000,
            inodes_free: 500,
        },
        disks: vec![DiskFacts {
            name: "mmcblk0".into(),
            life_used_percent: Some(20),
            pre_eol: Some(1),
        }],
        run_dir: "/run/pinnace".into(),
        run_is_tmpfs: true,
        local_api: Some(Ok(())),
        limits: LimitFacts {
            inotify_instances: Some(128),
            pid_max: Some(32768),
            open_files: Some(65536),
        },
        identity: Ok(CertificateFacts {
            not_before_s: NOW_S - 1000,
            not_after_s: NOW_S + 90 * 86_400,
            fits_key: true,
        }),
        link: Some(vec![LinkFacts { endpoint: "10.0.0.1:8883".into(), failed: None }]),
    }
}

#[test]
fn a_healthy_board_has_no_findings() {
    let report = Report::of(&healthy());
    assert_eq!(report.findings, []);
    assert_eq!((report.ok.len(), report.exit_code()), (CHECKS.len(), 0));
    assert_eq!(conditions(&healthy()), []);
}

/// Breaks one thing, and expects one finding.
#[track_caller]
fn check(break_it: impl Fn(&mut Facts), expected: Expect) {
    let mut facts = healthy();
    break_it(&mut facts);
    let report = Report::of(&facts);
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    let text = report.text();
    let end = text.find("\nok ").expect("the others are well");
    expected.assert_eq(&format!("{}\nexit code {}", &text[..end], report.exit_code()));
}

#[test]
fn the_memory_controller_of_raspberry_pi_os() {
    let off = |facts: &mut Facts| facts.cgroups.as_mut().unwrap().memory = false;
    check(
        off,
        expect![[r#"
        WARNING  MemoryLimits: the memory cgroup controller is off: memory limits do not hold, and one pod can take the whole board down
                 fix: sudo sed -i '1 s/$/ cgroup_enable=memory/' /boot/firmware/cmdline.txt && sudo reboot
        exit code 1"#]],
    );
    check(
        |facts| {
            off(facts);
            facts.cmdline_text.push_str(" cgroup_enable=memory");
        },
        expect![[r#"
            WARNING  MemoryLimits: the memory cgroup controller is off: memory limits do not hold, and one pod can take the whole board down
                     fix: reboot: /boot/firmware/cmdline.txt has cgroup_enable=memory already, and the running kernel was not told yet
            exit code 1"#]],
    );
}

/// The name of the only finding, with its severity.
#[track_caller]
fn finds(break_it: impl Fn(&mut Facts)) -> String {
    let mut facts = healthy();
    break_it(&mut facts);
    let report = Report::of(&facts);
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    let finding = &report.findings[0];
    assert!(!finding.why.is_empty() && !finding.fix.is_empty(), "{finding:?}");
    for text in [&finding.why, &finding.fix] {
        assert!(!text.contains('\n') && !text.contains("  "), "{text:?}");
    }
    format!("{:?} {}", finding.severity, finding.name)
}

#[test]
fn every_fault_alone_is_one_finding() {
    let disk = |used, pre_eol| {
        move |facts: &mut Facts| {
            facts.disks[0].life_used_percent = used;
            facts.disks[0].pre_eol = pre_eol;
        }
    };
    type Fault = Box<dyn Fn(&mut Facts)>;
    let table: Vec<(Fault, &str)> = vec![
        (Box::new(|f| f.is_root = false), "Error Root"),
        (Box::new(|f| f.cgroups = Err("none is mounted".into())), "Error Cgroups"),
        (Box::new(|f| f.cgroups.as_mut().unwrap().cpu = false), "Warning CpuLimits"),
        (Box::new(|f| f.cgroups.as_mut().unwrap().pids = false), "Warning PidLimits"),
        (Box::new(|f| f.has_overlay = false), "Error Overlay"),
        (Box::new(|f| f.has_bpf = false), "Warning DeviceRules"),
        (Box::new(|f| f.has_seccomp = false), "Error Seccomp"),
        (Box::new(|f| f.has_landlock = Some(false)), "Note Landlock"),
        (Box::new(|f| f.has_user_namespaces = false), "Note UserNamespaces"),
        (Box::new(|f| f.has_nft = false), "Warning PodEgress"),
        (Box::new(|f| f.egress_error = Some("no table".into())), "Warning PodEgress"),
        (Box::new(|f| f.capture = Some((Capture::Tproxy, "old".into()))), "Note DataPlane"),
        (Box::new(|f| f.capture = Some((Capture::Listeners, "old".into()))), "Warning DataPlane"),
        (Box::new(|f| f.clock.wall_s = 12), "Warning ClockImplausible"),
        (Box::new(|f| f.clock.wall_s += 10 * 365 * 86_400), "Warning ClockImplausible"),
        (Box::new(|f| f.clock.known_past_s += 30 * 86_400), "Warning ClockImplausible"),
        (Box::new(|f| f.state_mount.is_read_only = true), "Error DiskReadOnly"),
        (Box::new(|f| f.state_mount.bytes_free = 9 << 30), "Warning DiskSpace"),
        (Box::new(|f| f.state_mount.inodes_free = 49), "Warning DiskSpace"),
        (Box::new(disk(Some(80), Some(1))), "Warning DiskWorn"),
        (Box::new(disk(Some(110), None)), "Error DiskWorn"),
        (Box::new(disk(Some(10), Some(2))), "Warning DiskWorn"),
        (Box::new(disk(Some(10), Some(3))), "Error DiskWorn"),
        (Box::new(|f| f.run_is_tmpfs = false), "Warning RunFolder"),
        (Box::new(|f| f.local_api = Some(Err("taken".into()))), "Warning LocalApi"),
        (Box::new(|f| f.limits.inotify_instances = Some(8)), "Warning InotifyLimit"),
        (Box::new(|f| f.limits.pid_max = Some(1000)), "Warning PidMax"),
        (Box::new(|f| f.limits.open_files = Some(256)), "Warning FileLimit"),
        (Box::new(|f| f.identity = Err("join first".into())), "Error Joined"),
        (Box::new(|f| f.identity.as_mut().unwrap().fits_key = false), "Error Certificate"),
        (Box::new(|f| f.identity.as_mut().unwrap().not_after_s = NOW_S - 1), "Error Certificate"),
        (
            Box::new(|f| f.identity.as_mut().unwrap().not_after_s = NOW_S + 86_400),
            "Warning Certificate",
        ),
        (
            Box::new(|f| {
                f.link.as_mut().unwrap()[0].failed = Some((Stage::Tcp, "refused".into()));
            }),
            "Error Link",
        ),
    ];
    for (at, (fault, expected)) in table.iter().enumerate() {
        assert_eq!(finds(fault), *expected, "row {at}");
    }
    // No check is without a row.
    let covered: std::collections::BTreeSet<&str> =
        table.iter().filter_map(|(_, name)| name.split(' ').nth(1)).collect();
    for check in CHECKS.iter().filter(|check| check.name != "MemoryLimits") {
        assert!(covered.contains(check.name), "{} has no row", check.name);
    }
}

#[test]
fn one_endpoint_that_answers_is_enough_and_what_cannot_be_seen_is_no_fault() {
    let mut facts = healthy();
    facts.link.as_mut().unwrap().push(LinkFacts {
        endpoint: "master.lan:8883".into(),
        failed: Some((Stage::Dns, "no such name".into())),
    });
    facts.has_landlock = None;
    facts.local_api = None;
    facts.capture = None;
    facts.limits = LimitFacts::default();
    facts.disks = vec![DiskFacts::default()];
    assert_eq!(Report::of(&facts).findings, []);
}

#[test]
fn a_wrong_clock_is_said_once_and_not_by_the_certificate_too() {
    let mut facts = healthy();
    facts.clock.wall_s += 20 * 365 * 86_400;
    let names: Vec<&str> = Report::of(&facts).findings.iter().map(|finding| finding.name).collect();
    assert_eq!(names, ["ClockImplausible"]);
}

#[test]
fn findings_are_conditions_but_notes_and_what_needs_the_link() {
    let mut facts = healthy();
    facts.cgroups.as_mut().unwrap().memory = false;
    facts.has_landlock = Some(false);
    facts.link.as_mut().unwrap()[0].failed = Some((Stage::Tls, "no".into()));
    let found = conditions(&facts);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "MemoryLimits");
    assert!(found[0].1.contains("cgroup_enable=memory"), "{found:?}");
}

#[test]
fn json_holds_what_the_text_says() {
    let mut facts = healthy();
    facts.has_overlay = false;
    let json: serde_json::Value = serde_json::from_str(&Report::of(&facts).json()).unwrap();
    assert_eq!(json["findings"][0]["name"], "Overlay");
    assert_eq!(json["findings"][0]["severity"], "error");
    assert_eq!(json["ok"].as_array().unwrap().len(), CHECKS.len() - 1);
}

#[test]
fn wear_is_read_as_the_card_says_it() {
    let folder = tempfile::tempdir().unwrap();
    let device = |name: &str, life: &str, eol: &str| {
        let device = folder.path().join(name).join("device");
        std::fs::create_dir_all(&device).unwrap();
        std::fs::write(device.join("life_time"), life).unwrap();
        std::fs::write(device.join("pre_eol_info"), eol).unwrap();
    };
    device("mmcblk0", "0x01 0x0b\n", "0x02\n");
    device("mmcblk0boot0", "0x0b 0x0b\n", "0x03\n");
    device("mmcblk1", "0x00 0x00\n", "0x00\n");
    device("mmcblk2", "garbage\n", "");
    device("sda", "0x0b 0x0b\n", "0x03\n");
    let found: Vec<(String, Option<u32>, Option<u32>)> = disks(folder.path())
        .into_iter()
        .map(|disk| (disk.name, disk.life_used_percent, disk.pre_eol))
        .collect();
    assert_eq!(
        found,
        [
            ("mmcblk0".to_owned(), Some(110), Some(2)),
            ("mmcblk1".to_owned(), None, None),
            ("mmcblk2".to_owned(), None, None),
        ]
    );
}

#[test]
fn this_machine_can_be_looked_at() {
    let folder = tempfile::tempdir().unwrap();
    let facts = Facts::local(&folder.path().join("not/there"), folder.path());
    let report = Report::of(&facts);
    // No certificate, no master and no running agent to look at.
    assert_eq!(report.findings.len() + report.ok.len(), CHECKS.len() - 3);
    assert!(report.findings.iter().any(|finding| finding.name == "Joined"));
}
