//! Pod to Service to pod on one node, through the data plane alone, beside HAProxy
//! (`mode tcp`, with and without `splice-auto`), nginx (`stream`) and the kernel's
//! DNAT (nftables), all in the same run, rounds interleaved. Clients and servers
//! are threads of this program on processor 0, every proxy has one thread on
//! processor 1; what is not asked sleeps. DNAT's table, and with it the kernel's
//! tracking of connections, is there only during its own turn.
//!
//! A round of each: one connection sends the bytes; one connection asks small
//! requests (64 bytes each way), one after the other; 16 clients at a time open new
//! connections with a request each, which the server closes.
//!
//! Processor time is user and system time of the proxy's process by
//! `/proc/PID/stat`, to 10 ms; the kernel's work in its name (sending) is in, work in
//! interrupts is where it happened to come. "Ends" is the same of this program.
//! Memory is private pages by `/proc/PID/smaps_rollup`; a connection at rest has
//! carried 64 bytes.

use std::fs;
use std::net::IpAddr;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::Context;
use tokio::time::sleep;

use crate::load::{self, ECHO, HOLD, ONCE, PORTS, SINK, Server};
use crate::plane::{self, Plane, other_address, pod};
use crate::proc::{cpu_time, memory};
use crate::report::{Samples, note, value};
use crate::world::{HUB, Host, World, line, run};

/// How many connections are at rest.
const AT_REST: [usize; 2] = [1_000, 9_000];
/// How many Services there are besides the one that is asked.
const SERVICES: [u32; 2] = [1_000, 10_000];
/// Time for what a change has stirred up to settle.
const SETTLE: Duration = Duration::from_secs(5);
/// Where DNAT leads to the server.
const DNAT: &str = "10.61.1.1";

/// Who is between client and server.
struct Target {
    name: &'static str,
    address: IpAddr,
    /// What its ports are above the server's.
    above: u16,
    process: Option<Child>,
    rounds: Rounds,
}

/// A value a round.
#[derive(Default)]
struct Rounds {
    gbit_s: Vec<f64>,
    s_gb: Vec<f64>,
    ends_s_gb: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
    us_request: Vec<f64>,
    per_second: Vec<f64>,
    us_connection: Vec<f64>,
}

/// How much is done in a round.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Amount {
    pub(crate) rounds: usize,
    pub(crate) megabytes: usize,
    pub(crate) requests: usize,
    pub(crate) connections: usize,
}

pub(crate) async fn measure(world: &mut World, amount: Amount) -> anyhow::Result<()> {
    load::raise_limits()?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")?;
    let (client, host) = (pod(world, "client", 0)?, pod(world, "server", 1)?);
    let server = Server::start(&host, 1)?;
    let mut plane = Plane::start(world)?;
    let status = plane.apply(plane::table(1, &[(1, true)], 0)?)?;
    note(&format!("the plane captures by {:?}", status.capture));
    let hub: IpAddr = HUB.parse()?;
    let target = |name, address, above, process| Target {
        name,
        address,
        above,
        process,
        rounds: Rounds::default(),
    };
    let mut targets = vec![
        target("direct", other_address(1), 0, None),
        target("DNAT", DNAT.parse()?, 0, None),
        target("HAProxy", hub, 10_000, Some(haproxy(world, "haproxy", 10_000, "")?)),
        target(
            "HAProxy, splice",
            hub,
            20_000,
            Some(haproxy(world, "splice", 20_000, "option splice-auto")?),
        ),
        target("nginx", hub, 30_000, Some(nginx(world, 30_000)?)),
        target("ours", plane::SERVICE.into(), 0, None),
    ];
    sleep(SETTLE).await;
    for target in &targets {
        if !target.name.contains("splice")
            && let Some(pid) = pid(target, &plane)
        {
            at_rest(target, pid, &client, &server).await?;
        }
    }
    for _ in 0..amount.rounds {
        for target in &mut targets {
            let pid = pid(target, &plane);
            if target.name == "DNAT" {
                for rest in [
                    "add table ip bench",
                    "add chain ip bench in { type nat hook prerouting priority -100; }",
                    &format!("add rule ip bench in ip daddr {DNAT} dnat to {}", other_address(1)),
                ] {
                    run(Command::new("nft").arg(rest)).context("DNAT")?;
                }
            }
            let result = round(target, pid, &client, amount);
            if target.name == "DNAT" {
                line("nft delete table ip bench")?;
            }
            result.with_context(|| target.name)?;
        }
    }
    show(&targets);
    plane.leave()?;
    services(world).await?;
    for process in targets.into_iter().filter_map(|target| target.process) {
        World::end(process)?;
    }
    Ok(())
}

fn pid(target: &Target, plane: &Plane) -> Option<u32> {
    let ours = (target.name == "ours").then(|| plane.pid());
    ours.or_else(|| target.process.as_ref().map(Child::id))
}

fn pinned(program: &str) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", "1", program]);
    command
}

fn haproxy(world: &World, name: &str, above: u16, option: &str) -> anyhow::Result<Child> {
    let mut text = format!(
        "global\n nbthread 1\n maxconn 9600\n maxpipes 64\ndefaults\n mode tcp\n maxconn 9600\n {option}\n \
         timeout connect 5s\n timeout client 1h\n timeout server 1h\n"
    );
    for port in PORTS {
        text += &format!(
            "listen p{port}\n bind {HUB}:{}\n server s {}:{port}\n",
            port + above,
            other_address(1)
        );
    }
    let path = world.dir().join(format!("{name}.cfg"));
    fs::write(&path, text)?;
    world
        .spawn(name, pinned("haproxy").args(["-db", "-q", "-f"]).arg(&path))
        .context("apt-get install haproxy")
}

fn nginx(world: &World, above: u16) -> anyhow::Result<Child> {
    let folder = world.dir().join("nginx");
    fs::create_dir_all(&folder)?;
    let mut text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;\ndaemon off;\n\
         master_process off;\nworker_processes 1;\nworker_rlimit_nofile 20000;\n\
         pid {0}/pid;\nerror_log stderr;\nevents {{ worker_connections 19500; }}\n\
         stream {{\n tcp_nodelay on;\n proxy_half_close on;\n proxy_timeout 1h;\n",
        folder.display()
    );
    for port in PORTS {
        text += &format!(
            " server {{ listen {HUB}:{}; proxy_pass {}:{port}; }}\n",
            port + above,
            other_address(1)
        );
    }
    let path = folder.join("nginx.conf");
    fs::write(&path, text + "}\n")?;
    let mut command = pinned("nginx");
    command.args(["-e", "stderr", "-p"]).arg(&folder).arg("-c").arg(&path);
    world.spawn("nginx", &mut command).context("apt-get install nginx-light libnginx-mod-stream")
}

/// Bytes that nobody else has.
fn private(pid: u32) -> anyhow::Result<f64> {
    Ok(memory(pid)?.private as f64 * 1024.0)
}

async fn at_rest(target: &Target, pid: u32, client: &Host, server: &Server) -> anyhow::Result<()> {
    let base = private(pid)?;
    let mut text = format!("{}: {:.2} MB private", target.name, base / 1e6);
    let mut most: f64 = 0.0;
    for n in AT_REST {
        let held = server
            .hold(client, target.address, HOLD + target.above, n)
            .with_context(|| format!("{n} connections through {}", target.name))?;
        sleep(SETTLE).await;
        let each = (private(pid)? - base) / n as f64;
        text += &format!(", {:.0} bytes a connection at rest of {n}", each);
        most = most.max(each);
        drop(held);
        sleep(SETTLE).await;
    }
    text += &format!(", {:.2} MB after all are closed", private(pid)? / 1e6);
    if target.name == "ours" {
        value("memory, ours", &text, "<= 2500 bytes a connection", most <= 2500.0);
    } else {
        note(&format!("memory, {text}"));
    }
    Ok(())
}

fn round(
    target: &mut Target,
    pid: Option<u32>,
    client: &Host,
    amount: Amount,
) -> anyhow::Result<()> {
    let used = || pid.map_or(Duration::ZERO, cpu_time);
    let at = |port: u16| (target.address, port + target.above).into();
    let rounds = &mut target.rounds;

    let (before, ends) = (used(), cpu_time(std::process::id()));
    let took = load::send(client, at(SINK), amount.megabytes * 1_000_000)?;
    let gigabytes = amount.megabytes as f64 / 1e3;
    rounds.s_gb.push((used() - before).as_secs_f64() / gigabytes);
    rounds.ends_s_gb.push((cpu_time(std::process::id()) - ends).as_secs_f64() / gigabytes);
    rounds.gbit_s.push(gigabytes * 8.0 / took.as_secs_f64());

    let before = used();
    let times = Samples::of_durations(&load::ask(client, at(ECHO), amount.requests)?);
    let n_asked = (amount.requests + amount.requests / 10) as f64;
    rounds.us_request.push((used() - before).as_secs_f64() * 1e6 / n_asked);
    rounds.p50_us.push(times.median() * 1e3);
    rounds.p99_us.push(times.percentile(99) * 1e3);

    let before = used();
    let n = amount.connections / load::CLIENTS * load::CLIENTS;
    let took = load::reconnect(client, at(ONCE), n)?;
    rounds.us_connection.push((used() - before).as_secs_f64() * 1e6 / n as f64);
    rounds.per_second.push(n as f64 / took.as_secs_f64());
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    Samples::new(values.to_vec()).median()
}

fn show(targets: &[Target]) {
    let of = |name: &str| targets.iter().find(|one| one.name == name).map(|one| &one.rounds);
    let (Some(direct), Some(ours), Some(haproxy), Some(splice)) =
        (of("direct"), of("ours"), of("HAProxy"), of("HAProxy, splice"))
    else {
        return;
    };
    note(&format!(
        "medians of {} rounds; proxy's processor, and that of the ends",
        ours.s_gb.len()
    ));
    for Target { name, rounds, .. } in targets {
        note(&format!(
            "{name:15} {:.3} s/GB (ends {:.2}), {:.2} Gbit/s | small request p50 {:.0} p99 {:.0} us, \
             added {:.0} and {:.0}, {:.1} us of processor | {:.0} connections/s, {:.0} us of processor",
            median(&rounds.s_gb),
            median(&rounds.ends_s_gb),
            median(&rounds.gbit_s),
            median(&rounds.p50_us),
            median(&rounds.p99_us),
            median(&rounds.p50_us) - median(&direct.p50_us),
            median(&rounds.p99_us) - median(&direct.p99_us),
            median(&rounds.us_request),
            median(&rounds.per_second),
            median(&rounds.us_connection),
        ));
    }
    // Each round's own, so that what else runs here weighs on both.
    let ratio = |ours: &[f64], theirs: &[f64]| {
        let each = ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs.max(1e-9));
        Samples::new(each.collect())
    };
    let against = |what: &str, ours: &[f64], theirs: &[f64], bar: f64, is_most: bool| {
        let ratio = ratio(ours, theirs);
        let shown =
            format!("{:.2} x (min {:.2}, max {:.2})", ratio.median(), ratio.min(), ratio.max());
        let (sign, met) = match is_most {
            true => ("<=", ratio.median() <= bar),
            false => (">=", ratio.median() >= bar),
        };
        value(what, &shown, &format!("{sign} {bar} x"), met);
    };
    against("processor a GB, of HAProxy's", &ours.s_gb, &haproxy.s_gb, 0.5, true);
    against("processor a GB, of HAProxy's with splice", &ours.s_gb, &splice.s_gb, 0.95, true);
    against("throughput, of HAProxy's", &ours.gbit_s, &haproxy.gbit_s, 1.3, false);
    against("small request p50, of HAProxy's", &ours.p50_us, &haproxy.p50_us, 1.0, true);
    against("small request p99, of HAProxy's", &ours.p99_us, &haproxy.p99_us, 1.1, true);
    against(
        "processor a small request, of HAProxy's",
        &ours.us_request,
        &haproxy.us_request,
        0.95,
        true,
    );
    against(
        "new connections a second, of HAProxy's",
        &ours.per_second,
        &haproxy.per_second,
        1.0,
        false,
    );
    against(
        "processor a new connection, of HAProxy's",
        &ours.us_connection,
        &haproxy.us_connection,
        1.0,
        true,
    );
}

/// Memory of the plane with many Services, with three endpoints each.
async fn services(world: &World) -> anyhow::Result<()> {
    // A new one: what the load has freed would hold them.
    let mut plane = Plane::start(world)?;
    plane.apply(plane::table(1, &[(1, true)], 0)?)?;
    sleep(SETTLE).await;
    let base = private(plane.pid())?;
    for (n, generation) in SERVICES.into_iter().zip(2..) {
        plane.apply(plane::table(generation, &[(1, true)], n)?)?;
        sleep(SETTLE).await;
        let now = private(plane.pid())?;
        let shown = format!(
            "{:.2} MB private, of it {:.2} MB more than with one ({:.0} bytes each)",
            now / 1e6,
            (now - base) / 1e6,
            (now - base) / f64::from(n)
        );
        if n == 10_000 {
            value("memory, ours, 10,000 Services", &shown, "<= 15 MB", now <= 15e6);
        } else {
            note(&format!("memory, ours, {n} Services: {shown}"));
        }
    }
    plane.leave()
}
