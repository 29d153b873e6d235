//! Files: a guest has its pod's volumes and nothing else, whatever it tries.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use runtime::Mount;

use crate::node::Node;

tests! {
    links_do_not_lead_out_of_a_volume,
    a_guest_makes_no_link_that_leads_out,
    parts_of_volumes_are_parts_only,
    a_single_file_is_mounted_as_it_is_said,
    there_is_no_proc_and_no_dev,
}

/// The line of the log that begins with `start`.
fn line<'a>(log: &'a str, start: &str) -> &'a str {
    log.lines().find(|line| line.starts_with(start)).unwrap_or_else(|| panic!("{start}: {log}"))
}

async fn links_do_not_lead_out_of_a_volume(node: &Node<'_>) {
    // Made by somebody else who writes the volume: another container, or the host.
    fs::write(node.path("secret"), "the host's").unwrap();
    let volume = node.path("writable");
    symlink(node.path("secret"), volume.join("absolute")).unwrap();
    symlink("../secret", volume.join("relative")).unwrap();
    symlink("../../../../../../proc/1/environ", volume.join("deep")).unwrap();
    symlink("/config/greeting", volume.join("beside")).unwrap();
    symlink(".", volume.join("here")).unwrap();
    for module in [&node.guests.module, &node.guests.component] {
        let names = ["absolute", "relative", "deep", "beside", "here/../../secret"];
        let mut args = Vec::new();
        let paths: Vec<String> = names.iter().map(|name| format!("/data/{name}")).collect();
        for path in &paths {
            args.extend(["read", path.as_str(), "write", path.as_str()]);
        }
        args.extend(["write", "/data/here/ok", "read", "/data/here/ok"]);
        let (exit, log) = node.run(node.spec(module, &args)).await;
        assert_eq!(exit.code, 0, "{log}");
        assert!(!log.contains("the host's") && !log.contains("PATH="), "{log}");
        for path in &paths {
            let tried = log.lines().filter(|line| line.starts_with(&format!("{path}: ")));
            assert!(tried.clone().count() == 2, "{log}");
            assert!(tried.into_iter().all(|line| !line.contains("written")), "{log}");
        }
        assert_eq!(line(&log, "/data/here/ok: \""), "/data/here/ok: \"x\"", "{log}");
    }
    assert_eq!(fs::read_to_string(node.path("secret")).unwrap(), "the host's");
    assert_eq!(fs::read_to_string(node.path("read-only/greeting")).unwrap(), "hello");
}

async fn a_guest_makes_no_link_that_leads_out(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let args = [
            "symlink",
            "/etc/passwd",
            "/data/a",
            "read",
            "/data/a",
            "symlink",
            "../../../etc/passwd",
            "/data/b",
            "read",
            "/data/b",
            "link",
            "/config/greeting",
            "/data/c",
            "rename",
            "/config/greeting",
            "/data/d",
            "rename",
            "/data/b",
            "/config/e",
            "link",
            "/data/../../../etc/passwd",
            "/data/f",
        ];
        let (exit, log) = node.run(node.spec(module, &args)).await;
        assert_eq!(exit.code, 0, "{log}");
        assert!(!log.contains("root:"), "{log}");
        for verb in ["link", "rename"] {
            for line in log.lines().filter(|line| line.starts_with(&format!("{verb}: "))) {
                assert!(!line.contains("done"), "{log}");
            }
        }
        for name in ["a", "b"] {
            let _ = fs::remove_file(node.path("writable").join(name));
        }
    }
    assert_eq!(fs::read_to_string(node.path("read-only/greeting")).unwrap(), "hello");
    let names: Vec<_> = fs::read_dir(node.path("writable")).unwrap().flatten().collect();
    assert!(names.is_empty(), "{names:?}");
}

async fn parts_of_volumes_are_parts_only(node: &Node<'_>) {
    fs::create_dir(node.path("writable/part")).unwrap();
    fs::set_permissions(node.path("writable/part"), PermissionsExt::from_mode(0o777)).unwrap();
    fs::write(node.path("writable/other"), "other").unwrap();
    for module in [&node.guests.module, &node.guests.component] {
        let args = ["write", "/part/x", "read", "/part/../other", "list", "/"];
        let mut spec = node.spec(module, &args);
        spec.mounts = vec![Mount {
            source: node.path("writable/part"),
            destination: "/part".to_owned(),
            read_only: false,
            ..Default::default()
        }];
        let (_, log) = node.run(spec).await;
        assert!(log.contains("/part/x: written"), "{log}");
        assert!(!log.contains("\"other\""), "{log}");
        assert!(log.contains(r#"/: ["part"]"#), "{log}");
    }
}

async fn a_single_file_is_mounted_as_it_is_said(node: &Node<'_>) {
    for (read_only, expected) in [(false, "x"), (true, "old")] {
        for module in [&node.guests.module, &node.guests.component] {
            let file = node.path("single");
            fs::write(&file, "old").unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(0o666)).unwrap();
            let args = ["write", "/etc/single", "write", "/etc/other", "read", "/etc/single"];
            let mut spec = node.spec(module, &args);
            spec.mounts.push(Mount {
                source: file.clone(),
                destination: "/etc/single".to_owned(),
                read_only,
                ..Default::default()
            });
            let (_, log) = node.run(spec).await;
            assert_eq!(fs::read_to_string(&file).unwrap(), expected, "{log}");
            assert!(!log.contains("/etc/other: written"), "{log}");
            assert!(log.contains(&format!("/etc/single: \"{expected}\"")), "{log}");
        }
    }
}

async fn there_is_no_proc_and_no_dev(node: &Node<'_>) {
    for module in [&node.guests.module, &node.guests.component] {
        let paths =
            ["/proc/self/environ", "/proc/1/root/etc/passwd", "/dev/kmsg", "/sys/kernel/notes"];
        let args: Vec<&str> = paths.iter().flat_map(|path| ["read", *path]).collect();
        let (_, log) = node.run(node.spec(module, &args)).await;
        for path in paths {
            assert_eq!(line(&log, path), format!("{path}: NotFound"), "{log}");
        }
    }
}
