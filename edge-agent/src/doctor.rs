//! `pinnace-agent doctor`: what is wrong with this board, why that matters, and
//! the exact way to mend it.
//!
//! ```text
//! facts (reads /proc, /sys, the identity, dials the master) ─► checks (a table) ─► report
//!                                                                └─► node conditions
//! ```
//!
//! The agent runs the same checks every minute and reports what they find as
//! conditions of its Node; [`conditions`]. A finding never keeps it from starting.

mod checks;
mod facts;
mod probe;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use serde::Serialize;

pub use facts::Facts;
pub(crate) use facts::has_overlay;

use checks::CHECKS;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Note,
    /// Something does less than it should.
    Warning,
    /// Something that pods need does not work.
    Error,
}

/// What is wrong, and the way out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Problem {
    pub(crate) severity: Severity,
    pub(crate) why: String,
    pub(crate) fix: String,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// The check, and the node's condition where it is one: `MemoryLimits`.
    pub name: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong and what follows, in one line.
    pub why: String,
    /// What to do, as a command where there is one.
    pub fix: String,
}

/// Everything the checks have found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// What is wrong, the worst first.
    pub findings: Vec<Finding>,
    /// What is well: the names of the checks that found nothing. One that had
    /// nothing to look at (no certificate, no master dialled) is in neither list.
    pub ok: Vec<&'static str>,
}

impl Report {
    /// Runs every check.
    #[must_use]
    pub fn of(facts: &Facts) -> Self {
        let (mut findings, mut ok) = (Vec::new(), Vec::new());
        for check in CHECKS {
            match (check.find)(facts) {
                Some(Problem { severity, why, fix }) => {
                    findings.push(Finding { name: check.name, severity, why, fix });
                }
                None if facts.shows(check.name) => ok.push(check.name),
                None => {}
            }
        }
        findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
        Self { findings, ok }
    }

    /// 0 where nothing or only notes were found, 1 for warnings, 2 for errors.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self.findings.first().map(|finding| finding.severity) {
            Some(Severity::Error) => 2,
            Some(Severity::Warning) => 1,
            Some(Severity::Note) | None => 0,
        }
    }

    /// For people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { name, severity, why, fix } in &self.findings {
            let word = match severity {
                Severity::Error => "ERROR",
                Severity::Warning => "WARNING",
                Severity::Note => "note",
            };
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{word:<8} {name}: {why}\n         fix: {fix}");
        }
        for check in CHECKS.iter().filter(|check| self.ok.contains(&check.name)) {
            let _ = writeln!(text, "{:<8} {}: {}", "ok", check.name, check.subject);
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn json(&self) -> String {
        let mut text =
            serde_json::to_string_pretty(self).expect("strings and lists are what JSON holds");
        text.push('\n');
        text
    }
}

/// What the node says about itself, as (condition, message). Notes are left out.
#[must_use]
pub fn conditions(facts: &Facts) -> Vec<(String, String)> {
    CHECKS
        .iter()
        .filter(|check| check.is_condition)
        .filter_map(|check| {
            let problem = (check.find)(facts)?;
            let message = format!("{}; {}", problem.why, problem.fix);
            (problem.severity > Severity::Note).then(|| (check.name.to_owned(), message))
        })
        .collect()
}
