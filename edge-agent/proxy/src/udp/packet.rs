//! Packets for raw sockets: answers to datagrams, from the address that was asked.
//!
//! A raw socket takes no port from anybody, and one serves all. Pure.

use std::net::{IpAddr, SocketAddr};

const UDP: u8 = 17;
const FRAGMENT: u8 = 44;
const HOPS: u8 = 64;
const IPV4_BYTES: usize = 20;
const IPV6_BYTES: usize = 40;
const UDP_BYTES: usize = 8;
const FRAGMENT_BYTES: usize = 8;

/// Every link carries packets of this size.
const FRAGMENT_MTU: usize = 1280;

/// Writes a whole packet into `packet`. False where the addresses are of two
/// families, or the datagram is too long for one.
pub(super) fn write(
    packet: &mut Vec<u8>,
    from: SocketAddr,
    to: SocketAddr,
    payload: &[u8],
) -> bool {
    packet.clear();
    let Ok(udp_bytes) = u16::try_from(UDP_BYTES + payload.len()) else { return false };
    let sum = match (from.ip(), to.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let total = u16::try_from(IPV4_BYTES + UDP_BYTES + payload.len());
            let Ok(total) = total else { return false };
            packet.extend([0x45, 0]);
            packet.extend(total.to_be_bytes());
            // The kernel fills in the identification and the checksum.
            packet.extend([0, 0, 0, 0, HOPS, UDP, 0, 0]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            sum(&packet[12..20])
        }
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            packet.extend([0x60, 0, 0, 0]);
            packet.extend(udp_bytes.to_be_bytes());
            packet.extend([UDP, HOPS]);
            packet.extend(from.octets());
            packet.extend(to.octets());
            sum(&packet[8..40])
        }
        _ => return false,
    };
    let udp = packet.len();
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(udp_bytes.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(payload);
    let sum = sum + u64::from(UDP) + u64::from(udp_bytes) + self::sum(&packet[udp..]);
    packet[udp + 6..udp + 8].copy_from_slice(&checksum(sum).to_be_bytes());
    true
}

/// A packet of [`write`] that is too large for a link, in pieces.
pub(super) fn fragments(packet: &[u8], id: u32) -> Vec<Vec<u8>> {
    let is_ipv6 = packet.first().is_some_and(|byte| byte >> 4 == 6);
    let header_bytes = if is_ipv6 { IPV6_BYTES } else { IPV4_BYTES };
    let Some((header, body)) = packet.split_at_checked(header_bytes) else { return Vec::new() };
    let extra = if is_ipv6 { FRAGMENT_BYTES } else { 0 };
    let piece_bytes = (FRAGMENT_MTU - header_bytes - extra) / 8 * 8;
    let n_pieces = body.len().div_ceil(piece_bytes);
    let pieces = body.chunks(piece_bytes).enumerate().map(|(n, piece)| {
        let is_last = n + 1 == n_pieces;
        // In units of 8 bytes: it fits, as a datagram has at most 65,535.
        let offset = u16::try_from(n * piece_bytes / 8).unwrap_or(u16::MAX);
        let mut out = header.to_vec();
        let length = |bytes: usize| u16::try_from(bytes).unwrap_or(u16::MAX).to_be_bytes();
        if is_ipv6 {
            out[4..6].copy_from_slice(&length(FRAGMENT_BYTES + piece.len()));
            out[6] = FRAGMENT;
            out.extend([UDP, 0]);
            out.extend(((offset << 3) | u16::from(!is_last)).to_be_bytes());
            out.extend(id.to_be_bytes());
        } else {
            out[2..4].copy_from_slice(&length(IPV4_BYTES + piece.len()));
            let id = id.to_be_bytes();
            out[4..6].copy_from_slice(&[id[2], id[3]]);
            let more = u16::from(!is_last) << 13;
            out[6..8].copy_from_slice(&(offset | more).to_be_bytes());
        }
        out.extend(piece);
        out
    });
    pieces.collect()
}

/// The sum of 16-bit words, as the Internet's checksum has it.
fn sum(bytes: &[u8]) -> u64 {
    let mut words = bytes.chunks_exact(2);
    let sum: u64 =
        words.by_ref().map(|word| u64::from(u16::from_be_bytes([word[0], word[1]]))).sum();
    sum + words.remainder().first().map_or(0, |byte| u64::from(*byte) << 8)
}

fn checksum(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    // None at all is written as 0, so a sum of 0 is written as the other zero.
    match !u16::try_from(sum).unwrap_or(0) {
        0 => 0xffff,
        sum => sum,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(from: &str, to: &str, payload: &[u8]) -> Vec<u8> {
        let mut packet = Vec::new();
        assert!(write(&mut packet, from.parse().unwrap(), to.parse().unwrap(), payload));
        packet
    }

    #[test]
    fn a_packet_adds_up() {
        for (from, to, addresses) in
            [("10.43.0.10:53", "10.42.1.7:4000", 12..20), ("[fd43::a]:53", "[fd42::7]:4000", 8..40)]
        {
            for payload in [&b""[..], b"x", b"even", b"an odd number"] {
                let packet = packet(from, to, payload);
                let udp = &packet[addresses.end..];
                let all = sum(&packet[addresses.clone()]) + sum(udp) + 17 + udp.len() as u64;
                assert!(matches!(checksum(all), 0 | 0xffff), "{from} {payload:?}");
                assert!(packet.ends_with(payload));
            }
        }
    }

    #[test]
    fn what_fits_in_no_packet_is_not_sent() {
        let mut packet = Vec::new();
        let (four, six) = ("10.0.0.1:1".parse().unwrap(), "[::1]:1".parse().unwrap());
        assert!(!write(&mut packet, four, six, b""));
        assert!(!write(&mut packet, four, four, &[0; 65_508]));
        assert!(write(&mut packet, four, four, &[0; 65_507]));
    }

    #[test]
    fn pieces_are_in_order_and_whole() {
        let payload: Vec<u8> = (0..5000_u32).map(|n| (n % 251).to_le_bytes()[0]).collect();
        let four = packet("10.43.0.10:53", "10.42.1.7:4000", &payload);
        let mut body: Vec<u8> = Vec::new();
        let pieces = fragments(&four, 7);
        for (n, piece) in pieces.iter().enumerate() {
            assert!(piece.len() <= FRAGMENT_MTU);
            let word = u16::from_be_bytes([piece[6], piece[7]]);
            assert_eq!(usize::from(word & 0x1fff) * 8, body.len());
            assert_eq!(word & 0x2000 != 0, n + 1 < pieces.len());
            assert_eq!(usize::from(u16::from_be_bytes([piece[2], piece[3]])), piece.len());
            body.extend(&piece[20..]);
        }
        assert_eq!(body, four[20..]);
        let six = packet("[fd43::a]:53", "[fd42::7]:4000", &payload);
        let body: Vec<u8> =
            fragments(&six, 7).iter().flat_map(|piece| piece[48..].to_vec()).collect();
        assert_eq!(body, six[40..]);
        assert!(fragments(&[], 7).is_empty());
    }
}
