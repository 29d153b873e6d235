//! Names: `pinnace-proxy`'s example `dns` with 10,000 Services, beside dnsmasq with
//! as many hosts, over UDP. Each has one thread on processor 1; the load is a thread
//! of this program on processor 0. The questions are what pods ask: addresses of
//! both families, a name of the search path that is none, a port (SRV; dnsmasq has
//! none). Queries a second with 64 questions under way, and how long each took then;
//! then the time of a question alone. Processor time is the server's, by
//! `/proc/PID/stat`.

use std::fmt::Write as _;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::proc::{cpu_time, memory};
use crate::report::{Samples, note, value};
use crate::world::{World, program, run, until};

/// Questions under way.
const WINDOW: usize = 64;
/// Long enough that a question that has no answer by then has none.
const PATIENCE: Duration = Duration::from_secs(2);

/// Of one server, a value a round.
#[derive(Default)]
struct Rounds {
    per_second: Vec<f64>,
    busy_p99_us: Vec<f64>,
    us_query: Vec<f64>,
    p50_us: Vec<f64>,
    p99_us: Vec<f64>,
}

pub(crate) async fn measure(
    world: &mut World,
    rounds: usize,
    services: u32,
    queries: usize,
) -> anyhow::Result<()> {
    ensure!(rounds > 0 && queries > WINDOW, "too little to measure");
    let ours = program("dns")?;
    let names = run(Command::new(&ours).arg("names").arg(services.to_string()))?;
    let questions = names.lines().map(question).collect::<anyhow::Result<Vec<_>>>()?;
    let hosts = world.dir().join("hosts");
    let mut text = String::new();
    for n in 0..services {
        let [_, high, middle, low] = n.to_be_bytes();
        let ns = n / 100;
        writeln!(text, "10.{}.{middle}.{low} svc-{n:05}.ns-{ns:04}.svc.cluster.local", 43 + high)?;
    }
    fs::write(&hosts, text)?;
    let pinned = |name: &str, program: &str, arguments: &[&str]| {
        let mut command = Command::new("taskset");
        world.spawn(name, command.args(["-c", "1", program]).args(arguments))
    };
    let services = services.to_string();
    let ours = ours.to_str().context("a path in UTF-8")?;
    let hosts = format!("--addn-hosts={}", hosts.display());
    let dnsmasq = [
        "-k",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--port=5354",
        "--local=/cluster.local/",
        "--cache-size=10000",
        "--user=root",
        "--pid-file",
        "--listen-address=127.0.0.1",
        "--bind-interfaces",
        &hosts,
    ];
    let mut servers = [
        ("ours", 5353, pinned("dns", ours, &["127.0.0.1:5353", &services])?, Rounds::default()),
        (
            "dnsmasq",
            5354,
            pinned("dnsmasq", "dnsmasq", &dnsmasq).context("apt-get install dnsmasq-base")?,
            Rounds::default(),
        ),
    ];
    for (name, port, ..) in &servers {
        let at = SocketAddr::from(([127, 0, 0, 1], *port));
        until(&format!("{name} answers"), 20, async || {
            Ok(Load::new(at)?.ask(&questions[..1], 1, Duration::from_millis(200)).ok())
        })
        .await?;
    }
    for _ in 0..rounds {
        for (name, port, child, rounds) in &mut servers {
            let at = SocketAddr::from(([127, 0, 0, 1], *port));
            let all: Vec<_> = questions.iter().cycle().take(queries).cloned().collect();
            let pid = child.id();
            let work = move || -> anyhow::Result<_> {
                let mut processors = CpuSet::new();
                processors.set(0)?;
                sched_setaffinity(Pid::from_raw(0), &processors)?;
                let mut load = Load::new(at)?;
                let (begun, before) = (Instant::now(), cpu_time(pid));
                let busy = load.ask(&all, WINDOW, PATIENCE)?;
                let (took, used) = (begun.elapsed(), cpu_time(pid) - before);
                let alone = load.ask(&all[..all.len().min(20_000)], 1, PATIENCE)?;
                Ok((took, used, busy, alone))
            };
            let thread = std::thread::spawn(work);
            let result = thread.join().map_err(|_| anyhow::anyhow!("the load panicked"))?;
            let (took, used, busy, alone) = result.with_context(|| (*name).to_owned())?;
            rounds.per_second.push(queries as f64 / took.as_secs_f64());
            rounds.us_query.push(used.as_secs_f64() * 1e6 / queries as f64);
            rounds.busy_p99_us.push(Samples::of_durations(&busy).percentile(99) * 1e3);
            let alone = Samples::of_durations(&alone);
            rounds.p50_us.push(alone.median() * 1e3);
            rounds.p99_us.push(alone.percentile(99) * 1e3);
        }
    }
    let median = |all: &[f64]| Samples::new(all.to_vec()).median();
    note(&format!("medians of {rounds} rounds of {queries} questions, {services} Services"));
    for (name, _, child, rounds) in &servers {
        let text = format!(
            "{name}: {:.0} queries/s, {:.1} us of processor each, p99 {:.0} us with {WINDOW} under way; \
             alone p50 {:.0} us, p99 {:.0} us; {:.1} MB private",
            median(&rounds.per_second),
            median(&rounds.us_query),
            median(&rounds.busy_p99_us),
            median(&rounds.p50_us),
            median(&rounds.p99_us),
            memory(child.id())?.private as f64 * 1.024 / 1e3,
        );
        note(&text);
    }
    let (per_second, p99) = (median(&servers[0].3.per_second), median(&servers[0].3.p99_us));
    let shown = format!("{per_second:.0} queries/s");
    value("names, one processor", &shown, ">= 20000 queries/s", per_second >= 20_000.0);
    value("names, a question alone", &format!("p99 {p99:.0} us"), "p99 < 1000 us", p99 < 1000.0);
    for (_, _, child, _) in servers {
        World::end(child)?;
    }
    Ok(())
}

/// `name kind` as a question, with two bytes for its number in front.
fn question(line: &str) -> anyhow::Result<Vec<u8>> {
    let (name, kind) = line.split_once(' ').context("a name and a kind")?;
    // Recursion desired; one question.
    let mut bytes = vec![0, 0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len())?);
        bytes.extend(label.as_bytes());
    }
    let kind = match kind {
        "A" => 1,
        "AAAA" => 28,
        "SRV" => 33,
        other => anyhow::bail!("questions of kind {other} are not asked"),
    };
    bytes.extend([0, 0, kind, 0, 1]);
    Ok(bytes)
}

/// Who asks.
struct Load(UdpSocket);

impl Load {
    fn new(at: SocketAddr) -> anyhow::Result<Self> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(at)?;
        Ok(Self(socket))
    }

    /// Asks, with at most `window` under way; how long each took. None is lost.
    fn ask(
        &mut self,
        questions: &[Vec<u8>],
        window: usize,
        patience: Duration,
    ) -> anyhow::Result<Vec<Duration>> {
        self.0.set_read_timeout(Some(patience))?;
        let mut asked: Vec<Option<Instant>> = vec![None; 1 << 16];
        let mut times = Vec::with_capacity(questions.len());
        let mut next = questions.iter().enumerate();
        let mut packet = Vec::new();
        let mut answer = [0; 1500];
        while times.len() < questions.len() {
            while questions.len() - next.len() < times.len() + window {
                let Some((n, question)) = next.next() else { break };
                let id = u16::try_from(n & 0xffff)?;
                packet.clear();
                packet.extend(question);
                packet[..2].copy_from_slice(&id.to_be_bytes());
                asked[usize::from(id)] = Some(Instant::now());
                self.0.send(&packet)?;
            }
            let n = self.0.recv(&mut answer).context("a question has no answer")?;
            ensure!(n >= 12 && answer[2] & 0x80 != 0, "no answer in {n} bytes");
            let id = usize::from(u16::from_be_bytes([answer[0], answer[1]]));
            let begun = asked[id].take().context("an answer to no question")?;
            times.push(begun.elapsed());
        }
        Ok(times)
    }
}
