//! `/healthz`, `/livez`, `/readyz` and `/metrics`.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};

use store::Store;

/// A part of the master that must work before it is ready.
pub trait HealthCheck: Send + Sync + 'static {
    /// What it is called in `/readyz?verbose`.
    fn name(&self) -> &str;

    /// Why it is not well; `None` where it is.
    fn problem(&self) -> Option<String>;
}

/// What is counted; exported at `/metrics`.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// Answers by their first digit, 1 to 5.
    pub(super) answers: [AtomicU64; 6],
    /// Connections that are open.
    pub(super) connections: AtomicU64,
    /// Requests that are being answered, watches left out.
    pub(super) requests: AtomicU64,
    /// Watches that are open.
    pub(super) watches: AtomicU64,
    /// Requests refused because there were too many.
    pub(super) refused: AtomicU64,
}

impl Metrics {
    /// Notes an answer.
    pub(super) fn answered(&self, code: u16) {
        let class = usize::from(code / 100).min(5);
        self.answers[class].fetch_add(1, Ordering::Relaxed);
    }

    /// The text that Prometheus reads.
    pub(super) fn text(&self, store: &dyn Store) -> String {
        let mut out = String::with_capacity(2048);
        let mut metric = |name: &str, kind: &str, help: &str, values: &[(&str, u64)]| {
            let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in values {
                let _ = writeln!(out, "{name}{labels} {value}");
            }
        };
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let answers: Vec<(String, u64)> = (1..=5)
            .map(|class| (format!("{{code=\"{class}xx\"}}"), load(&self.answers[class])))
            .collect();
        let answers: Vec<(&str, u64)> = answers.iter().map(|(l, v)| (l.as_str(), *v)).collect();
        let counters = store.counters();
        let name = "pinnace_api_answers_total";
        metric(name, "counter", "Answers by class of code.", &answers);
        let gauges = [
            ("pinnace_api_connections", "Open connections.", &self.connections),
            ("pinnace_api_requests", "Requests being answered.", &self.requests),
            ("pinnace_api_watches", "Open watches.", &self.watches),
        ];
        for (name, help, value) in gauges {
            metric(name, "gauge", help, &[("", load(value))]);
        }
        let help = "Requests refused because there were too many.";
        metric("pinnace_api_refused_total", "counter", help, &[("", load(&self.refused))]);
        let revision = store.revision();
        metric("pinnace_store_revision", "gauge", "Newest revision.", &[("", revision)]);
        let totals = [
            ("pinnace_store_commits_total", "Durable commits.", counters.commits),
            ("pinnace_store_transactions_total", "Transactions.", counters.transactions),
            ("pinnace_store_conflicts_total", "Transactions refused.", counters.conflicts),
            ("pinnace_store_bytes_total", "Bytes of durable commits.", counters.bytes_durable),
        ];
        for (name, help, value) in totals {
            metric(name, "counter", help, &[("", value)]);
        }
        out
    }
}

/// The answer to `/readyz` and its kin: whether all is well, and the text.
pub(super) fn health(
    path: &str,
    verbose: bool,
    checks: &[std::sync::Arc<dyn HealthCheck>],
) -> (bool, String) {
    let mut lines = String::from("[+]ping ok\n");
    let mut well = true;
    for check in checks {
        match check.problem() {
            None => {
                let _ = writeln!(lines, "[+]{} ok", check.name());
            }
            Some(problem) => {
                well = false;
                let _ = writeln!(lines, "[-]{} failed: {problem}", check.name());
            }
        }
    }
    let name = path.trim_start_matches('/');
    let text = match (well, verbose) {
        (true, false) => "ok".to_owned(),
        (true, true) => format!("{lines}{name} check passed\n"),
        (false, _) => format!("{lines}{name} check failed\n"),
    };
    (well, text)
}
