//! The board's own API: the real `kubectl` and `pinnace` on a board whose master is
//! away.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::World;
use crate::harness::pods::{self, is_ready, name, script};
use crate::harness::process::{Output, Process, read_lossy, run, run_with};
use crate::harness::programs::{guest, program, tool};
use crate::harness::wait::{check, until};

/// The first board, and its own door.
struct Board<'a>(&'a World);

impl Board<'_> {
    fn kubeconfig(&self) -> PathBuf {
        self.0.agents[0].run_dir().join("kubeconfig")
    }

    fn command(&self, program: &std::path::Path) -> Command {
        let mut command = self.0.network.on_board(self.0.agents[0].number, program);
        command
            .env("KUBECONFIG", self.kubeconfig())
            .env("HOME", self.0.dir())
            .env_remove("http_proxy")
            .env_remove("https_proxy")
            .env_remove("HTTPS_PROXY");
        command
    }

    fn kubectl_command(&self) -> Command {
        let mut command = self.command(&tool("kubectl-1.35"));
        command.arg("--cache-dir").arg(self.0.dir().join("door-cache"));
        command
    }

    #[track_caller]
    fn kubectl_with(&self, words: &[&str], input: &str) -> Output {
        let mut command = self.kubectl_command();
        command.args(words);
        run_with(command, input)
    }

    #[track_caller]
    fn kubectl(&self, words: &str) -> Output {
        self.kubectl_with(&words.split_whitespace().collect::<Vec<_>>(), "")
    }

    #[track_caller]
    fn pinnace(&self, words: &str) -> Output {
        let mut command = self.command(&program("pinnace"));
        command.args(words.split_whitespace());
        run(command)
    }

    /// A pod as the door shows it, once it satisfies `probe`.
    #[track_caller]
    fn pod_becomes(&self, name: &str, what: &str, probe: impl Fn(&Value) -> bool) -> Value {
        until(&format!("the door shows that {name} {what}"), || {
            let out = self.kubectl(&format!("get pod {name} -o json"));
            check(out.code == 0, || out.to_string())?;
            let pod: Value = serde_json::from_str(&out.out).map_err(|error| error.to_string())?;
            check(probe(&pod), || pod["status"].to_string())?;
            Ok(pod)
        })
    }

    #[track_caller]
    fn opens(&self) {
        until("the door is open", || {
            let out = self.kubectl("get --raw /readyz");
            check(out.code == 0 && out.out == "ok", || out.to_string())
        });
    }
}

/// A world of one board with a pod of each runtime, and its master gone.
fn cut_off() -> World {
    let mut world = World::with_nodes(1);
    let image = world.registry().push_busybox("shell:1", &[]);
    let lines = script("echo run of web; echo tick 0");
    let words: Vec<&str> = lines.iter().map(String::as_str).collect();
    world.create_pod(&pods::pod("web", &image, &words, &[]));
    let module = world.registry().push_wasm("web:1", guest("web", "wasip2"));
    let mut site = pods::pod("site", &module, &[], &[]);
    let container = &mut site["spec"]["containers"][0];
    container["env"] = json!([{"name": "GREETING", "value": "Ahoy"}]);
    container["ports"] = json!([{"containerPort": 8080}]);
    world.create_pod(&site);
    for pod in ["web", "site"] {
        world.pod_becomes_ready(pod);
    }
    world.master.kill();
    world
}

#[test]
fn kubectl_reads_and_reaches_into_the_boards_pods_without_the_master() {
    let world = cut_off();
    let board = Board(&world);
    board.opens();
    let ok = |words: &str| board.kubectl(words).ok();

    let out = ok("get pods -A -o wide");
    for needle in ["NOMINATED NODE", "default", "web", "site", "1/1", "Running", "10.42.", "node-1"]
    {
        assert!(out.contains(needle), "{needle}: {out}");
    }
    let pod = board.pod_becomes("web", "is ready", is_ready);
    assert_eq!(pod["spec"]["nodeName"], "node-1");
    let out = ok("get pods -l app=site -o name");
    assert_eq!(out, "pod/site\n");
    assert_eq!(ok("get pods --field-selector metadata.name=web -o name"), "pod/web\n");
    let out = ok("describe pod web");
    for needle in [
        "Node:             node-1/",
        "Image ID:",
        "ContainersReady             True",
        "Started container main",
    ] {
        assert!(out.contains(needle), "{needle}: {out}");
    }
    let out = ok("describe node node-1");
    assert!(out.contains("Ready") && out.contains("Non-terminated Pods"), "{out}");
    assert!(ok("get nodes").contains("Ready"));
    assert!(ok("get namespaces").contains("default"));
    assert!(ok("get events").contains("Started"));
    assert!(ok("api-resources").contains("pods"));
    assert!(ok("version").contains("pinnace"));
    // One kind has no prefix.
    assert!(ok("get all").contains("\nweb "));
    assert_eq!(ok("wait pod/web --for=condition=Ready --timeout=30s"), "pod/web condition met\n");

    assert_eq!(ok("logs web"), "run of web\ntick 0\n");
    assert_eq!(ok("logs web --tail=1"), "tick 0\n");
    assert!(ok("logs web --timestamps --since=1h").contains("Z run of web\n"));
    assert!(ok("logs -l app=web --prefix").contains("[pod/web/main] tick 0"));

    for web_sockets in ["true", "false"] {
        let exec = |words: &[&str], input: &str| {
            let mut command = board.kubectl_command();
            command.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", web_sockets).args(words);
            run_with(command, input)
        };
        let out = exec(&["exec", "web", "--", "sh", "-c", "echo out; echo err >&2; exit 3"], "");
        assert_eq!((out.code, out.out.as_str()), (3, "out\n"), "{out}");
        assert!(out.err.starts_with("err\n"), "{out}");
        let out = exec(&["exec", "-i", "web", "--", "cat"], "one\ntwo\n");
        assert_eq!((out.code, out.out.as_str()), (0, "one\ntwo\n"), "{out}");
    }
    let out = board.kubectl("exec site -- ls").failed();
    assert!(out.contains("error"), "{out}");

    // A port of a module.
    let log = world.dir().join("door-forward.log");
    let mut command = board.kubectl_command();
    let forward = Process::start(command.args(["port-forward", "site", ":8080"]), &log);
    let port: u16 = until("the port is open", || {
        let log = forward.log();
        let port = log.split_once("127.0.0.1:").and_then(|(_, rest)| rest.split_once(" -> "));
        port.and_then(|(port, _)| port.parse().ok()).ok_or(log)
    });
    let ask = format!(
        "exec 3<>/dev/tcp/127.0.0.1/{port}; \
         printf 'GET / HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n' >&3; cat <&3"
    );
    let mut command = world.network.on_board(world.agents[0].number, "bash".as_ref());
    command.args(["-c", &ask]);
    assert!(run(command).ok().contains("Ahoy from /"));
    drop(forward);

    // And the same with our own.
    assert!(board.pinnace("get pods -A").ok().contains("web"));
    assert!(board.pinnace("describe pod web").ok().contains("node-1"));
    assert_eq!(board.pinnace("logs web --tail 1").ok(), "tick 0\n");
    assert_eq!(board.pinnace("exec web -- echo hello").ok(), "hello\n");
}

#[test]
fn the_door_is_roots_alone_and_names_the_way_out() {
    let world = cut_off();
    let board = Board(&world);
    board.opens();
    let mode = fs::metadata(board.kubeconfig()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let mut nobody = Command::new("setpriv");
    nobody.args(["--reuid=65534", "--regid=65534", "--clear-groups", "cat"]);
    nobody.arg(board.kubeconfig());
    let refused = run(nobody).failed();
    assert!(refused.contains("ermission denied"), "{refused}");

    let text = read_lossy(&board.kubeconfig());
    let token = text.lines().find_map(|line| line.trim().strip_prefix("token: ")).unwrap();
    let stranger = world.dir().join("stranger");
    fs::write(&stranger, text.replace(token, "\"not-the-token\"")).unwrap();
    let mut command = board.kubectl_command();
    command.env("KUBECONFIG", &stranger).args(["get", "pods"]);
    let refused = run(command).failed();
    assert!(refused.contains("nauthorized") || refused.contains("logged in"), "{refused}");

    // It listens where nobody else is.
    let out = world.network.output_on_board(world.agents[0].number, "ss -Hltn").out;
    let ours: Vec<&str> = out.lines().filter(|line| line.contains(":6460 ")).collect();
    assert!(ours.len() == 1 && ours[0].contains("127.0.0.1:6460"), "{out}");

    let said = board.kubectl("label pod web a=b").failed();
    assert!(said.contains("local API of node \"node-1\""), "{said}");
    let said = board.kubectl("get --raw /apis/apps/v1/deployments").failed();
    assert!(said.contains("is asked of the master"), "{said}");
    let said = board.kubectl("get deployments").failed();
    assert!(said.contains("the server doesn't have a resource type"), "{said}");
}

#[test]
fn a_delete_restarts_and_the_masters_return_restarts_nothing() {
    let mut world = cut_off();
    let board = Board(&world);
    board.opens();
    let before = board.pod_becomes("web", "is ready", is_ready);
    let file = world.dir().join("door-watch");
    let mut command = board.kubectl_command();
    command.args(["get", "pods", "-w", "--no-headers"]);
    let watch = Process::start(&mut command, &file);
    until("the watch has begun", || {
        let shown = read_lossy(&file);
        check(shown.contains("web") && shown.contains("site"), || shown.clone())
    });
    let followed = world.dir().join("door-follow");
    let mut command = board.kubectl_command();
    let mut follow = Process::start(command.args(["logs", "-f", "web"]), &followed);
    until("the log is followed", || {
        let shown = follow.log();
        check(shown.contains("tick 0"), || shown)
    });

    for pod in ["web", "site"] {
        let out = board.kubectl(&format!("delete pod {pod}"));
        assert_eq!(out.code, 0, "{out}");
        assert!(out.out.starts_with(&format!("pod \"{pod}\" deleted")), "{out}");
        assert!(out.err.contains("is restarted on node node-1, not deleted"), "{out}");
        let after = board
            .pod_becomes(pod, "was restarted", |pod| pods::restarts(pod) == 1 && is_ready(pod));
        assert_eq!(name(&after), pod);
        if pod == "web" {
            assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
            let last = &after["status"]["containerStatuses"][0]["lastState"]["terminated"];
            assert_eq!(last["exitCode"], 0, "it was asked to end, and did: {after}");
        }
    }
    assert!(follow.ended().success(), "a log that is followed ends with its run");
    until("the watch has seen it", || {
        let shown = read_lossy(&file);
        let seen = |pod: &str| {
            shown
                .lines()
                .any(|line| line.starts_with(pod) && line.contains("1/1") && line.contains("1 ("))
        };
        check(seen("web") && seen("site"), || shown.clone())
    });
    drop(watch);
    assert_eq!(board.kubectl("logs web --previous").ok(), "run of web\ntick 0\n");
    let out = board.pinnace("delete pod web");
    assert!(out.code == 0 && out.err.contains("not deleted"), "{out}");
    board
        .pod_becomes("web", "was restarted again", |pod| pods::restarts(pod) == 2 && is_ready(pod));

    // The next agent has the same key, and touches nothing.
    let running = world.agents[0].processes_by_container();
    let credentials = read_lossy(&board.kubeconfig());
    world.agents[0].kill();
    world.start_agent(0);
    let board = Board(&world);
    board.opens();
    assert_eq!(read_lossy(&board.kubeconfig()), credentials);
    board.pod_becomes("web", "is still ready", |pod| pods::restarts(pod) == 2 && is_ready(pod));
    assert_eq!(world.agents[0].processes_by_container(), running);

    // A boot without the master: a new key, the same pods.
    world.lose_power(0);
    world.boot(0);
    let board = Board(&world);
    board.opens();
    assert_ne!(read_lossy(&board.kubeconfig()), credentials);
    for pod in ["web", "site"] {
        let pod = board.pod_becomes(pod, "is back", is_ready);
        assert!(pods::restarts(&pod) >= 1, "{pod}");
    }
    assert_eq!(board.kubectl("exec web -- echo hello").ok(), "hello\n");

    let running = world.agents[0].processes_by_container();
    world.restart_master();
    world.node_becomes_ready("node-1");
    for (pod, n) in [("web", 3), ("site", 2)] {
        let pod = world.pod_becomes(pod, "is told to the master", |pod| {
            pods::restarts(pod) == n && is_ready(pod)
        });
        if name(&pod) == "web" {
            assert_eq!(pod["metadata"]["uid"], before["metadata"]["uid"]);
        }
    }
    assert_eq!(world.agents[0].processes_by_container(), running);
    // What the master takes away goes, here too.
    world.delete("/api/v1/namespaces/default/pods/web");
    let board = Board(&world);
    until("it is gone from the door", || {
        let out = board.kubectl("get pods");
        check(out.code == 0 && !out.out.contains("web"), || out.to_string())
    });
}

#[test]
fn a_taken_port_shuts_the_door_and_nothing_else() {
    let mut world = World::with_nodes(1);
    let number = world.agents[0].number;
    world.agents[0].stop();
    world.agents[0].give("--local-api=off");
    world.start_agent(0);
    world.node_becomes_ready("node-1");
    let kubeconfig = world.agents[0].run_dir().join("kubeconfig");
    until("there is no kubeconfig", || check(!kubeconfig.exists(), || "it is there".to_owned()));
    world.agents[0].stop();
    let mut squatter = world.network.on_board(number, "python3".as_ref());
    let listen = "import socket,time\ns=socket.socket()\ns.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\ns.bind(('127.0.0.1',6460))\ns.listen()\nprint('up',flush=True)\ntime.sleep(600)";
    let log = world.dir().join("squatter");
    let squatter = Process::start(squatter.args(["-c", listen]), &log);
    until("the port is taken", || check(squatter.log().contains("up"), || squatter.log()));
    world.agents[0].give("");
    world.start_agent(0);
    world.node_becomes_ready("node-1");
    until("it is said", || {
        let log = world.agents[0].log();
        check(log.contains("the board has no API of its own"), || log.clone())
    });
    let mut doctor = world.network.on_board(number, &program("pinnace-agent"));
    doctor.args(["doctor", "--offline", "--state-dir"]).arg(world.agents[0].state_dir());
    doctor.arg("--run-dir").arg(world.agents[0].run_dir());
    let said = run(doctor).out;
    let line = said.lines().find(|line| line.contains("LocalApi"));
    assert!(line.is_some_and(|line| line.contains("127.0.0.1:6460")), "{said}");
    drop(squatter);
}
