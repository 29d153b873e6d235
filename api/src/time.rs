//! Points in time as objects carry them: RFC 3339 in UTC.
//!
//! Nothing here, and nothing in this crate, reads a clock: the present is
//! always an argument.

pub use jiff::Timestamp;

/// `metav1.Time`: whole seconds, `2026-11-23T07:36:35Z`.
#[must_use]
pub fn rfc3339(time: Timestamp) -> String {
    let whole = Timestamp::from_second(time.as_second()).unwrap_or(time);
    format!("{whole:.0}")
}

/// `metav1.MicroTime`: six digits after the point, as Leases and Events have.
#[must_use]
pub fn rfc3339_micros(time: Timestamp) -> String {
    let whole = Timestamp::from_microsecond(time.as_microsecond()).unwrap_or(time);
    format!("{whole:.6}")
}

/// Reads either form, and any other RFC 3339 with an offset.
#[must_use]
pub fn parse(text: &str) -> Option<Timestamp> {
    // jiff also reads texts without `T` or with a zone's name; Kubernetes does not.
    let shape = text.len() <= 64 && text.is_ascii() && text.as_bytes().get(10) == Some(&b'T');
    if !shape || text.contains('[') {
        return None;
    }
    text.parse().ok()
}

/// Seconds from `earlier` to `later`; negative where they are the other way round.
#[must_use]
pub fn seconds_between(earlier: Timestamp, later: Timestamp) -> i64 {
    later.as_second() - earlier.as_second()
}

/// `45s`, `4m5s`, `12h`, `6d23h`, `2y35d`: as `kubectl` shows an age, two units at most.
///
/// Source: `k8s.io/apimachinery/pkg/util/duration`.
#[must_use]
pub fn human_duration(seconds: i64) -> String {
    // A clock that is a little behind is no news.
    if seconds < -1 {
        return "<invalid>".to_owned();
    }
    let seconds = seconds.max(0);
    let pair = |value: i64, unit: &str, rest: i64, small: &str| {
        if rest == 0 { format!("{value}{unit}") } else { format!("{value}{unit}{rest}{small}") }
    };
    let (minutes, hours) = (seconds / 60, seconds / 3600);
    let days = hours / 24;
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if hours < 24 * 8 => pair(days, "d", hours % 24, "h"),
        () if days < 365 * 2 => format!("{days}d"),
        () if days < 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        () => format!("{}y", days / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_read_back() {
        let time = parse("2026-11-23T08:36:35.123456789+01:00").unwrap();
        assert_eq!(rfc3339(time), "2026-11-23T07:36:35Z");
        assert_eq!(rfc3339_micros(time), "2026-11-23T07:36:35.123456Z");
        assert_eq!(rfc3339_micros(Timestamp::UNIX_EPOCH), "1970-01-01T00:00:00.000000Z");
        assert_eq!(parse(&rfc3339(time)).unwrap().as_second(), time.as_second());
        for bad in ["", "2026-11-23", "now", "2026-11-23 07:36:35Z", "2026-11-23T07:36:35"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
        assert_eq!(seconds_between(Timestamp::UNIX_EPOCH, Timestamp::from_second(5).unwrap()), 5);
    }
}
