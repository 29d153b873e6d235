//! Small texts: durations as people type and read them, and names that come
//! from outside and go to a terminal.

use std::time::Duration;

/// Reads `90s`, `5m`, `1h30m`, `7d` or plain seconds, as clap wants it.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let malformed = || format!("{text:?} is no duration: write 30s, 5m, 1h30m or 7d");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok(Duration::from_secs(seconds));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(malformed)?;
        let number: u64 = rest[..digits].parse().map_err(|_| malformed())?;
        rest = &rest[digits..];
        let letters = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let unit_ms: u64 = match &rest[..letters] {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(malformed()),
        };
        rest = &rest[letters..];
        let part = number.checked_mul(unit_ms).ok_or_else(malformed)?;
        total = total.checked_add(Duration::from_millis(part)).ok_or_else(malformed)?;
    }
    if text.is_empty() { Err(malformed()) } else { Ok(total) }
}

pub(crate) use api::time::human_duration as age;

/// Time since a point in time that an object carries.
pub(crate) fn since(timestamp: &str, now: jiff::Timestamp) -> String {
    api::time::parse(timestamp)
        .map_or_else(|| "<unknown>".to_owned(), |then| age(api::time::seconds_between(then, now)))
}

/// `text` without what would move a terminal's cursor.
pub(crate) fn printable(text: &str) -> String {
    text.replace('\x1b', "^[").replace('\r', "\\r")
}

/// `1 pod`, `2 pods`.
pub(crate) fn count(n: usize, word: &str) -> String {
    if n == 1 { format!("1 {word}") } else { format!("{n} {word}s") }
}

/// Bytes for people: `512 B`, `1.4 MB`.
pub(crate) fn bytes(n: u64) -> String {
    let mut unit = (1u64, "B");
    for next in [(1000, "kB"), (1_000_000, "MB"), (1_000_000_000, "GB")] {
        if n >= next.0 {
            unit = next;
        }
    }
    if unit.0 == 1 {
        return format!("{n} B");
    }
    format!("{}.{} {}", n / unit.0, n % unit.0 * 10 / unit.0, unit.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_type_them() {
        for (text, seconds) in [("30", 30), ("45s", 45), ("1h30m", 5400), ("7d", 604_800)] {
            assert_eq!(duration(text), Ok(Duration::from_secs(seconds)), "{text}");
        }
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        for bad in ["", "x", "5x", "h", "5m3", "-5s", "1.5h", "99999999999999999999d", "9e9d"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ages_read_as_in_kubectl() {
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (0, "0s"),
            (119, "119s"),
            (245, "4m5s"),
            (3600, "60m"),
            (4 * 3600 + 120, "4h2m"),
            (47 * 3600, "47h"),
            (3 * 86_400 + 3600, "3d1h"),
            (800 * 86_400, "2y70d"),
        ] {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(bytes(512), "512 B");
        assert_eq!(bytes(1_432_000), "1.4 MB");
    }
}
