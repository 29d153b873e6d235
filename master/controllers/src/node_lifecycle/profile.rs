//! How often a node is to be heard of.

use std::time::Duration;

/// How often a node sends heartbeats, by what its link costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Every 10 s; NotReady within 16 s.
    Lan,
    /// Every minute; NotReady within 95 s.
    Wan,
    /// Every five minutes; NotReady within 460 s.
    Cellular,
}

impl Profile {
    /// Reads the label `pinnace.io/link-profile`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "lan" => Some(Self::Lan),
            "wan" => Some(Self::Wan),
            "cellular" => Some(Self::Cellular),
            _ => None,
        }
    }

    /// As the label spells it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "lan",
            Self::Wan => "wan",
            Self::Cellular => "cellular",
        }
    }

    /// Time between two heartbeats.
    #[must_use]
    pub fn heartbeat(self) -> Duration {
        Duration::from_secs(match self {
            Self::Lan => 10,
            Self::Wan => 60,
            Self::Cellular => 300,
        })
    }

    /// Silence after which the node is NotReady: 1.5 heartbeats and a little, so
    /// that one lost heartbeat is noticed and a late one is not.
    #[must_use]
    pub fn grace(self) -> Duration {
        let little = match self {
            Self::Lan => Duration::from_millis(500),
            Self::Wan => Duration::from_secs(4),
            Self::Cellular => Duration::from_secs(8),
        };
        self.heartbeat() * 3 / 2 + little
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_is_within_what_is_promised() {
        for (profile, promised_s) in
            [(Profile::Lan, 16), (Profile::Wan, 95), (Profile::Cellular, 460)]
        {
            assert!(profile.grace() < Duration::from_secs(promised_s));
            assert!(profile.grace() > profile.heartbeat() * 3 / 2);
            assert_eq!(Profile::parse(profile.as_str()), Some(profile));
        }
    }
}
