//! Waits until workloads run, and shows how far they are and what is in the way.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::anyhow;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, sleep};

use crate::cluster::Cluster;
use crate::rollout::{Progress, progress};
use crate::{console, stuck};

/// Time between two looks, at first and later.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// After so long without news, it is worth to ask why.
const ASK_WHY_AFTER: Duration = Duration::from_secs(3);
/// How often to ask again.
const ASK_WHY_EVERY: Duration = Duration::from_secs(3);

/// Something to wait for.
#[derive(Clone, Debug)]
pub(crate) struct Workload {
    /// For people: `deployment.apps/web`.
    pub(crate) name: String,
    pub(crate) path: String,
}

/// Waits for all of `workloads`, `timeout` at most.
///
/// # Errors
/// One for each that failed or did not come in time, with what is in its way.
pub(crate) async fn wait(
    cluster: &Cluster,
    workloads: Vec<Workload>,
    timeout: Duration,
) -> anyhow::Result<()> {
    let mut display = Display::new();
    let start = Instant::now();
    let mut waiting: Vec<Waiting> =
        workloads.into_iter().map(|workload| Waiting::new(workload, start)).collect();
    for one in &waiting {
        display.add(&one.workload.name);
    }
    let mut failures = Vec::new();
    let mut pause = LOOK_EVERY.0;
    while !waiting.is_empty() {
        let mut still = Vec::new();
        for mut one in waiting {
            match one.look(cluster, &mut display).await {
                Ok(true) => {}
                Ok(false) => still.push(one),
                Err(error) => failures.push(error),
            }
        }
        waiting = still;
        if waiting.is_empty() {
            break;
        }
        if start.elapsed() >= timeout {
            for one in waiting {
                failures.push(one.timed_out(cluster, timeout).await);
            }
            break;
        }
        sleep(pause).await;
        pause = (pause * 5 / 4).min(LOOK_EVERY.1);
    }
    display.finish();
    console::all(failures)
}

struct Waiting {
    workload: Workload,
    message: String,
    news: Instant,
    asked: Option<Instant>,
}

impl Waiting {
    fn new(workload: Workload, now: Instant) -> Self {
        Self { workload, message: String::new(), news: now, asked: None }
    }

    /// Whether it is there.
    async fn look(&mut self, cluster: &Cluster, display: &mut Display) -> anyhow::Result<bool> {
        let name = &self.workload.name;
        let object = match cluster.get(&self.workload.path).await {
            Ok(object) => object,
            Err(failure) => {
                display.failed(name, &failure.to_string());
                return Err(anyhow::Error::new(failure).context(name.clone()));
            }
        };
        match progress(&object) {
            Progress::Nothing => Ok(true),
            Progress::Done(message) => {
                display.done(name, &message);
                Ok(true)
            }
            Progress::Failed(message) => {
                let reasons = stuck::reasons(cluster, &object).await.unwrap_or_default();
                display.failed(name, &message);
                Err(with_reasons(message, &reasons))
            }
            Progress::Waiting { message, ready, wanted } => {
                let now = Instant::now();
                if self.message != message {
                    self.message.clone_from(&message);
                    self.news = now;
                    display.waiting(name, &message, ready, wanted);
                }
                let silent = now.duration_since(self.news) >= ASK_WHY_AFTER;
                let due = self.asked.is_none_or(|asked| now.duration_since(asked) >= ASK_WHY_EVERY);
                if silent && due {
                    self.asked = Some(now);
                    let reasons = stuck::reasons(cluster, &object).await.unwrap_or_default();
                    display.reasons(name, &reasons);
                }
                Ok(false)
            }
        }
    }

    async fn timed_out(&self, cluster: &Cluster, timeout: Duration) -> anyhow::Error {
        let reasons = match cluster.get(&self.workload.path).await {
            Ok(object) => stuck::reasons(cluster, &object).await.unwrap_or_default(),
            Err(_) => Vec::new(),
        };
        let name = &self.workload.name;
        let message =
            format!("{name} is not ready after {} s: {}", timeout.as_secs(), self.message);
        with_reasons(message, &reasons)
    }
}

fn with_reasons(message: String, reasons: &[String]) -> anyhow::Error {
    let lines: String = reasons.iter().map(|reason| format!("\n  {reason}")).collect();
    anyhow!("{message}{lines}")
}

/// Bars on a terminal, lines elsewhere.
struct Display {
    bars: Option<MultiProgress>,
    of: BTreeMap<String, ProgressBar>,
    /// The reasons that were shown last, for each workload.
    shown: BTreeMap<String, Vec<String>>,
}

impl Display {
    fn new() -> Self {
        let bars = console::is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()));
        Self { bars, of: BTreeMap::new(), shown: BTreeMap::new() }
    }

    fn add(&mut self, name: &str) {
        let Some(bars) = &self.bars else { return };
        let bar = bars.add(ProgressBar::new_spinner());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix}  {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.set_prefix(name.to_owned());
        bar.enable_steady_tick(Duration::from_millis(120));
        self.of.insert(name.to_owned(), bar);
    }

    fn waiting(&self, name: &str, message: &str, ready: i64, wanted: i64) {
        match self.of.get(name) {
            Some(bar) => bar.set_message(format!("{ready}/{wanted} ready")),
            None => console::note(message),
        }
    }

    fn done(&self, name: &str, message: &str) {
        match self.of.get(name) {
            Some(bar) => {
                bar.set_style(ProgressStyle::default_spinner());
                bar.finish_with_message(message.to_owned());
            }
            None => console::note(message),
        }
    }

    fn failed(&self, name: &str, message: &str) {
        if let Some(bar) = self.of.get(name) {
            bar.abandon_with_message(message.to_owned());
        }
    }

    fn reasons(&mut self, name: &str, reasons: &[String]) {
        if self.shown.get(name).is_some_and(|shown| shown == reasons) {
            return;
        }
        for reason in reasons {
            match &self.bars {
                // Above the bars, where it stays.
                Some(bars) => {
                    let _ = bars.println(format!("{name}: {reason}"));
                }
                None => console::note(format_args!("{name}: {reason}")),
            }
        }
        self.shown.insert(name.to_owned(), reasons.to_vec());
    }

    fn finish(&self) {
        for bar in self.of.values().filter(|bar| !bar.is_finished()) {
            bar.abandon();
        }
    }
}
