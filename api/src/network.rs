//! Networks of addresses, such as `10.43.0.0/16` or `fd00::/108`: what is inside,
//! which one comes nth, whether two overlap; and what is wrong with a text that
//! should be an address or a network, in Kubernetes' words.
//!
//! It does not know what a network is for.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network of addresses of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cidr {
    first: IpAddr,
    prefix: u8,
}

/// Why a text is no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// It is no address with a prefix.
    #[error(
        "cannot read \"{0}\" as a network: expected an address and a prefix, such as 10.43.0.0/16"
    )]
    Unreadable(String),
    /// Its address is not the first one.
    #[error("\"{text}\" is not the first address of its network: use {network}")]
    HostBits {
        /// What was given.
        text: String,
        /// The network it is in.
        network: Cidr,
    },
}

impl Cidr {
    /// The network of this prefix that holds `address`; a prefix that is too long
    /// for the family is the address alone.
    #[must_use]
    pub fn around(address: IpAddr, prefix: u8) -> Self {
        let prefix = prefix.min(width(address));
        let host_bits = u32::from(width(address) - prefix);
        let kept = u128::MAX.checked_shl(host_bits).unwrap_or(0);
        Self { first: from_number(address, number(address) & kept), prefix }
    }

    /// Reads a network whose address may be any one inside, as Kubernetes does.
    ///
    /// # Errors
    /// Where the text is no address with a prefix of its family.
    pub fn parse_any(text: &str) -> Result<Self, CidrError> {
        let error = || CidrError::Unreadable(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(error)?;
        let address: IpAddr = address.parse().map_err(|_| error())?;
        // `+8` and the like are numbers to Rust.
        if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
            return Err(error());
        }
        let prefix: u8 = prefix.parse().map_err(|_| error())?;
        if prefix > width(address) {
            return Err(error());
        }
        Ok(Self::around(address, prefix))
    }

    /// The first address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// Length of the prefix, in bits.
    #[must_use]
    pub fn prefix(&self) -> u8 {
        self.prefix
    }

    /// `IPv4` or `IPv6`, as Kubernetes names families.
    #[must_use]
    pub fn family(&self) -> &'static str {
        family(self.first)
    }

    /// Number of addresses; `u128::MAX` stands for all of IPv6.
    #[must_use]
    pub fn n_addresses(&self) -> u128 {
        1_u128.checked_shl(u32::from(width(self.first) - self.prefix)).unwrap_or(u128::MAX)
    }

    /// The `n`th address, the first one being 0.
    #[must_use]
    pub fn nth(&self, n: u128) -> Option<IpAddr> {
        (n < self.n_addresses()).then(|| from_number(self.first, number(self.first) + n))
    }

    /// Which address of the network this is; `None` where it is outside.
    #[must_use]
    pub fn position(&self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| number(address) - number(self.first))
    }

    /// Whether an address is inside.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && Self::around(address, self.prefix) == *self
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    /// Reads a network by its first address.
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let network = Self::parse_any(text)?;
        let address = text.split_once('/').and_then(|(address, _)| address.parse().ok());
        if address != Some(network.first) {
            return Err(CidrError::HostBits { text: text.to_owned(), network });
        }
        Ok(network)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.prefix)
    }
}

/// `IPv4` or `IPv6`, as Kubernetes names families.
#[must_use]
pub fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// What is wrong with `value` as an address.
#[must_use]
pub fn address(value: &str) -> Vec<String> {
    match value.parse::<IpAddr>() {
        Ok(_) => Vec::new(),
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
    }
}

/// What is wrong with `value` as a network.
#[must_use]
pub fn network(value: &str) -> Vec<String> {
    match Cidr::parse_any(value) {
        Ok(_) => Vec::new(),
        Err(_) => {
            vec!["must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)".to_owned()]
        }
    }
}

/// What is wrong with an address that others are to send to.
#[must_use]
pub fn special(address: IpAddr) -> Vec<String> {
    let mut errors = Vec::new();
    let (link_local, multicast) = match address {
        IpAddr::V4(v4) => (v4.is_link_local(), v4.octets()[..3] == [224, 0, 0]),
        IpAddr::V6(v6) => (v6.is_unicast_link_local(), v6.segments()[0] & 0xff0f == 0xff02),
    };
    if address.is_unspecified() {
        errors.push(format!("may not be unspecified ({address})"));
    }
    if address.is_loopback() {
        errors.push("may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned());
    }
    if link_local {
        errors.push("may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned());
    }
    if multicast {
        errors.push(
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        );
    }
    errors
}

fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

/// The address with this number, of the family of `like`.
fn from_number(like: IpAddr, number: u128) -> IpAddr {
    match like {
        // What is above the 32 bits was shifted in by `around` and is no part of it.
        IpAddr::V4(_) => {
            let low = u32::try_from(number & u128::from(u32::MAX)).unwrap_or(u32::MAX);
            Ipv4Addr::from(low).into()
        }
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn networks_are_read_by_their_first_address() {
        for (text, error) in [
            ("10.43.0.0/16", ""),
            ("0.0.0.0/0", ""),
            ("fd00::/108", ""),
            ("::/0", ""),
            ("10.43.0.1/32", ""),
            (
                "10.43.0.1/16",
                "\"10.43.0.1/16\" is not the first address of its network: use 10.43.0.0/16",
            ),
        ] {
            let read = text.parse::<Cidr>();
            assert_eq!(read.as_ref().map_or_else(ToString::to_string, |_| String::new()), error);
            if let Ok(read) = read {
                assert_eq!(read.to_string(), text);
            }
        }
        for bad in ["", "10.43.0.0", "10.43.0.0/33", "::/129", "10.43.0.0/+8", "x/8", "1.2.3.4/"] {
            assert!(matches!(bad.parse::<Cidr>(), Err(CidrError::Unreadable(_))), "{bad}");
        }
    }

    #[test]
    fn addresses_are_counted() {
        let network: Cidr = "10.43.0.0/16".parse().unwrap();
        assert_eq!(network.n_addresses(), 65536);
        assert_eq!(network.nth(10).unwrap().to_string(), "10.43.0.10");
        assert_eq!(network.nth(65536), None);
        assert_eq!(network.position("10.43.1.0".parse().unwrap()), Some(256));
        assert_eq!(network.position("10.44.0.0".parse().unwrap()), None);
        assert_eq!(network.position("::1".parse().unwrap()), None);
        let wide: Cidr = "fd00::/108".parse().unwrap();
        assert_eq!(wide.n_addresses(), 1 << 20);
        assert_eq!(wide.nth(1).unwrap().to_string(), "fd00::1");
        assert_eq!("::/0".parse::<Cidr>().unwrap().n_addresses(), u128::MAX);
    }

    proptest! {
        #[test]
        fn two_networks_overlap_where_they_share_an_address(
            a in any::<u32>(), b in any::<u32>(), p in 0_u8..=32, q in 0_u8..=32, n in any::<u32>(),
        ) {
            let of = |n: u32, prefix| Cidr::around(Ipv4Addr::from(n).into(), prefix);
            let (a, b) = (of(a, p), of(b, q));
            prop_assert_eq!(a.overlaps(&b), b.overlaps(&a));
            let address = IpAddr::from(Ipv4Addr::from(n));
            if a.contains(address) && b.contains(address) {
                prop_assert!(a.overlaps(&b));
            }
            let inside = a.nth(u128::from(n) % a.n_addresses()).unwrap();
            prop_assert!(a.contains(inside));
            prop_assert_eq!(a.nth(a.position(inside).unwrap()), Some(inside));
            prop_assert_eq!(a.to_string().parse::<Cidr>(), Ok(a));
        }

        #[test]
        fn any_text_is_judged(text in "\\PC{0,40}") {
            let _ = Cidr::parse_any(&text);
            let _ = (address(&text), network(&text));
        }
    }
}
