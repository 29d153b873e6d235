//! Which address a pod gets. Pure.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

/// The addresses a node gives to pods, such as `10.42.3.0/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    base: u32,
    prefix: u8,
}

/// A text that is not such a range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("pod CIDR {0:?} is not an IPv4 network with a prefix of 8 to 30, such as 10.42.3.0/24")]
pub struct CidrError(String);

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: Ipv4Addr = address.parse().map_err(|_| error())?;
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if !(8..=30).contains(&prefix) {
            return Err(error());
        }
        let base = u32::from(address);
        if base & (u32::MAX >> prefix) != 0 {
            return Err(error());
        }
        Ok(Self { base, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.base), self.prefix)
    }
}

impl Cidr {
    /// The node's own address among its pods: the first.
    #[must_use]
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.base + 1)
    }

    /// Whether an address lies in the range.
    #[must_use]
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        u32::from(address) & !(u32::MAX >> self.prefix) == self.base
    }

    /// The next address after `last` that is free: the network's own, the
    /// gateway's and the broadcast address are never given. An address is used
    /// again as late as possible, so that peers have forgotten its last owner.
    pub(super) fn next_free(
        &self,
        last: Option<Ipv4Addr>,
        is_taken: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<Ipv4Addr> {
        let n_usable = (u32::MAX >> self.prefix).saturating_sub(2);
        let first = self.base + 2;
        let start = last
            .filter(|last| self.contains(*last))
            .map_or(0, |last| u32::from(last).saturating_sub(first) + 1);
        (0..n_usable)
            .map(|step| Ipv4Addr::from(first + (start + step) % n_usable))
            .find(|address| !is_taken(*address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_networks_are_taken() {
        for good in ["10.42.3.0/24", "10.0.0.0/8", "192.168.4.4/30"] {
            assert_eq!(good.parse::<Cidr>().unwrap().to_string(), good);
        }
        for bad in ["", "10.42.3.0", "10.42.3.1/24", "10.42.3.0/31", "10.42.3.0/x", "::/64"] {
            assert!(bad.parse::<Cidr>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_address_is_given_once_and_reused_last() {
        let cidr: Cidr = "10.1.2.0/29".parse().unwrap();
        let mut taken: Vec<Ipv4Addr> = Vec::new();
        let mut last = None;
        while let Some(address) = cidr.next_free(last, |a| taken.contains(&a)) {
            taken.push(address);
            last = Some(address);
        }
        let expected: Vec<Ipv4Addr> = (2..7).map(|n| Ipv4Addr::new(10, 1, 2, n)).collect();
        assert_eq!(taken, expected);
        let freed: Vec<Ipv4Addr> = taken.drain(..2).collect();
        assert_eq!(cidr.next_free(last, |a| taken.contains(&a)), Some(freed[0]));
        assert_eq!(cidr.next_free(Some(freed[0]), |a| taken.contains(&a)), Some(freed[1]));
    }
}
