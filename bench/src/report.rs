//! What is printed, and the statistics in it. Knows no number of Pinnace.
#![allow(clippy::print_stdout, reason = "a program for people")]

use std::fs;
use std::time::Duration;

/// Prints what is measured, and on what.
pub(crate) fn begin(what: &str) {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, model)| model.trim());
    let n_cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    println!("== {what}");
    println!("   {n_cpus} x {model}, kernel {}; load average {}", kernel.trim(), load());
}

/// Prints under what load it ended.
pub(crate) fn end() {
    println!("   load average at the end {}", load());
}

/// One measured value. `bar` is what the design asks for, `met` whether it is reached.
pub(crate) fn value(what: &str, value: &str, bar: &str, met: bool) {
    let verdict = if met { "met" } else { "MISSED" };
    println!("{what}: {value} | bar {bar}: {verdict}");
}

/// A value without a bar, or what one should know about one.
pub(crate) fn note(text: &str) {
    println!("   {text}");
}

fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().take(3).collect::<Vec<_>>().join(" ")
}

/// Values in order, to take percentiles of.
#[derive(Debug, Clone)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    /// Panics without a value.
    pub(crate) fn new(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    pub(crate) fn of_durations(durations: &[Duration]) -> Self {
        Self::new(durations.iter().map(|one| one.as_secs_f64() * 1000.0).collect())
    }

    /// The smallest value that `percent` of all do not exceed (nearest rank).
    pub(crate) fn percentile(&self, percent: usize) -> f64 {
        let rank = (self.0.len() * percent).div_ceil(100).max(1);
        self.0[rank - 1]
    }

    pub(crate) fn median(&self) -> f64 {
        self.percentile(50)
    }

    pub(crate) fn min(&self) -> f64 {
        self.0[0]
    }

    pub(crate) fn max(&self) -> f64 {
        self.0[self.0.len() - 1]
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::Samples;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let samples = Samples::new((1..=60).rev().map(f64::from).collect());
        let all = [0, 1, 50, 99, 100].map(|percent| samples.percentile(percent));
        assert_eq!(all, [1.0, 1.0, 30.0, 60.0, 60.0]);
        assert_eq!(Samples::new(vec![7.0]).median(), 7.0);
    }
}
