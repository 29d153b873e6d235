//! Eviction thresholds, written as the kubelet's: `memory.available<100Mi,nodefs.available<10%`.

use std::fmt;
use std::str::FromStr;

/// What the kubelet evicts at where nobody says otherwise.
pub const DEFAULT: &str = "memory.available<100Mi,nodefs.available<10%,imagefs.available<15%,\
                           nodefs.inodesFree<5%,imagefs.inodesFree<5%";

/// What can run short. In the order in which it is dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Memory that programs can still get.
    MemoryAvailable,
    /// Space where pods write.
    NodefsAvailable,
    /// Inodes there.
    NodefsInodesFree,
    /// Space where images are.
    ImagefsAvailable,
    /// Inodes there.
    ImagefsInodesFree,
    /// Process ids.
    PidAvailable,
}

/// The node's condition that a signal belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pressure {
    /// `MemoryPressure`.
    Memory,
    /// `DiskPressure`.
    Disk,
    /// `PIDPressure`.
    Pid,
}

impl Pressure {
    /// The condition.
    #[must_use]
    pub fn condition(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

impl Signal {
    /// Every signal.
    pub const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    /// As thresholds name it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    /// As the message of an evicted pod names it.
    #[must_use]
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// The condition it belongs to.
    #[must_use]
    pub fn pressure(self) -> Pressure {
        match self {
            Self::MemoryAvailable => Pressure::Memory,
            Self::PidAvailable => Pressure::Pid,
            _ => Pressure::Disk,
        }
    }

    /// An amount of it, for people.
    #[must_use]
    pub fn show(self, amount: u64) -> String {
        match self {
            Self::NodefsInodesFree | Self::ImagefsInodesFree | Self::PidAvailable => {
                amount.to_string()
            }
            _ => format!("{}Ki", amount / 1024),
        }
    }
}

/// Below what a signal is too low.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Least {
    /// Bytes, inodes or process ids.
    Amount(u64),
    /// Share of the capacity, in thousandths of a percent.
    Share(u32),
}

impl Least {
    /// In the signal's unit.
    #[must_use]
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Amount(amount) => amount,
            Self::Share(share) => {
                let least = u128::from(capacity) * u128::from(share) / 100_000;
                u64::try_from(least).unwrap_or(u64::MAX)
            }
        }
    }
}

/// One threshold a signal, at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thresholds {
    all: Vec<(Signal, Least)>,
}

impl Default for Thresholds {
    fn default() -> Self {
        DEFAULT.parse().expect("the kubelet's thresholds read")
    }
}

impl Thresholds {
    /// Every threshold, in the order of [`Signal`].
    pub fn iter(&self) -> impl Iterator<Item = (Signal, Least)> + '_ {
        self.all.iter().copied()
    }
}

/// Not a list of thresholds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ThresholdError {
    /// Not `signal<amount`.
    #[error("{0:?} is not SIGNAL<AMOUNT, such as memory.available<100Mi or nodefs.available<10%")]
    Form(String),
    /// No such signal.
    #[error("{0:?} is none of {all}", all = names())]
    Signal(String),
    /// Not an amount.
    #[error("{0:?} is neither a percentage from 0% to 100% nor an amount such as 100Mi")]
    Amount(String),
    /// Given twice.
    #[error("{0} is given twice")]
    Twice(&'static str),
}

fn names() -> String {
    Signal::ALL.map(Signal::name).join(", ")
}

impl FromStr for Thresholds {
    type Err = ThresholdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut all: Vec<(Signal, Least)> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let (name, amount) =
                part.split_once('<').ok_or_else(|| ThresholdError::Form(part.to_owned()))?;
            let signal = Signal::ALL
                .into_iter()
                .find(|signal| signal.name() == name.trim())
                .ok_or_else(|| ThresholdError::Signal(name.trim().to_owned()))?;
            let least = least(amount.trim())
                .ok_or_else(|| ThresholdError::Amount(amount.trim().to_owned()))?;
            if all.iter().any(|(other, _)| *other == signal) {
                return Err(ThresholdError::Twice(signal.name()));
            }
            all.push((signal, least));
        }
        all.sort_by_key(|(signal, _)| *signal);
        Ok(Self { all })
    }
}

impl fmt::Display for Thresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (signal, least)) in self.all.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match least {
                Least::Amount(amount) => write!(f, "{comma}{}<{amount}", signal.name())?,
                Least::Share(share) => {
                    write!(f, "{comma}{}<{}%", signal.name(), f64::from(*share) / 1000.0)?;
                }
            }
        }
        Ok(())
    }
}

fn least(text: &str) -> Option<Least> {
    if let Some(percent) = text.strip_suffix('%') {
        let (whole, part) = percent.split_once('.').unwrap_or((percent, ""));
        let is_plain = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || part.len() > 3 || !is_plain(whole) || !is_plain(part) {
            return None;
        }
        let share: u32 = format!("{whole}{part:0<3}").parse().ok()?;
        return (share <= 100_000).then_some(Least::Share(share));
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit: u64 = match unit {
        "" => 1,
        "k" => 1000,
        "M" => 1_000_000,
        "G" => 1_000_000_000,
        "Ki" => 1 << 10,
        "Mi" => 1 << 20,
        "Gi" => 1 << 30,
        "Ti" => 1 << 40,
        _ => return None,
    };
    Some(Least::Amount(number.parse::<u64>().ok()?.checked_mul(unit)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_read_as_the_kubelets() {
        let read: Thresholds = "nodefs.available<10%, memory.available<100Mi".parse().unwrap();
        assert_eq!(
            read.all,
            [
                (Signal::MemoryAvailable, Least::Amount(100 << 20)),
                (Signal::NodefsAvailable, Least::Share(10_000)),
            ]
        );
        assert_eq!(read.to_string().parse::<Thresholds>().unwrap(), read);
        assert_eq!(Least::Share(12_500).of(1000), 125);
        assert_eq!("".parse::<Thresholds>().unwrap().iter().count(), 0);
        assert_eq!(Thresholds::default().iter().count(), 5);
        let half: Thresholds = "pid.available<2.5%".parse().unwrap();
        assert_eq!(half.all, [(Signal::PidAvailable, Least::Share(2_500))]);
    }

    #[test]
    fn nonsense_is_named() {
        for (text, named) in [
            ("memory.available", "\"memory.available\""),
            ("memory.available>1", "memory.available>1"),
            ("memory.free<1Mi", "memory.free"),
            ("memory.available<1Xi", "1Xi"),
            ("memory.available<-1", "-1"),
            ("memory.available<101%", "101%"),
            ("memory.available<1.2345%", "1.2345%"),
            ("memory.available<%", "\"%\""),
            ("memory.available<99999999999Ti", "99999999999Ti"),
            ("memory.available<1,memory.available<2", "twice"),
        ] {
            let error = text.parse::<Thresholds>().unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
