//! Signals as numbers: an image or a manifest names them, a node sends them.

/// The number of a signal by its name, with or without `SIG`, or by its number in
/// digits; the same on every architecture that nodes have.
#[must_use]
pub fn signal_number(name: &str) -> Option<u8> {
    const NAMES: [&str; 31] = [
        "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG",
        "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    if let Ok(number) = name.parse::<u8>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let name = name.strip_prefix("SIG").unwrap_or(name);
    if let Some(offset) = name.strip_prefix("RTMIN") {
        let offset: u8 =
            if offset.is_empty() { 0 } else { offset.strip_prefix('+')?.parse().ok()? };
        return 34_u8.checked_add(offset).filter(|number| *number <= 64);
    }
    if let Some(offset) = name.strip_prefix("RTMAX") {
        let offset: u8 =
            if offset.is_empty() { 0 } else { offset.strip_prefix('-')?.parse().ok()? };
        return 64_u8.checked_sub(offset).filter(|number| *number >= 34);
    }
    let at = NAMES.iter().position(|known| *known == name)?;
    u8::try_from(at + 1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_their_numbers() {
        let numbers = ["SIGHUP", "SIGKILL", "SIGTERM", "SIGSYS", "SIGRTMIN", "SIGRTMIN+3"];
        assert_eq!(numbers.map(signal_number), [1, 9, 15, 31, 34, 37].map(Some));
        assert_eq!(["SIGRTMAX-1", "3", "INT"].map(signal_number), [Some(63), Some(3), Some(2)]);
        assert_eq!(["SIGNOPE", "SIGRTMIN+99", "", "0", "65"].map(signal_number), [None; 5]);
    }
}
