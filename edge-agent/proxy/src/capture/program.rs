//! The program at the kernel's socket lookup, as eBPF instructions.
//!
//! ```text
//!  to a Service's range      key is live → ours, else refused
//!  from a pod of this node   to the node's own addresses → as ever, else ours
//!  from anybody else         to the node's pod range: its gateway → as ever, else refused
//!                            to the range of all pods → ours
//!                            else → as ever
//! ```
//!
//! "Ours" is the socket for the family and protocol in the map of sockets. "As ever"
//! is what would be without the program, so daemons of the host keep their ports.
//! "Refused" is no socket: the kernel answers with a reset, or port unreachable.
//!
//! It is called for what no established connection takes. It is emitted here, so
//! that neither a compiler for eBPF nor a loader is needed.

use std::net::IpAddr;

use super::Ranges;
use crate::table::{Net, Protocol};

/// Bytes of a key of the map of live addresses: address, port, protocol, zero.
pub(super) const KEY_BYTES: usize = 20;

/// Bytes of a key of the map of the node's own addresses; IPv4 is mapped.
pub(super) const ADDRESS_BYTES: usize = 16;

/// How many sockets there are: TCP and UDP, IPv4 and IPv6.
pub(super) const SOCKETS: u32 = 4;

/// Where a socket is in the map of sockets.
pub(super) fn socket_index(is_ipv6: bool, protocol: Protocol) -> u32 {
    u32::from(is_ipv6) * 2 + u32::from(protocol == Protocol::Udp)
}

/// An address as the maps have it.
pub(super) fn address_key(address: IpAddr) -> [u8; ADDRESS_BYTES] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// A live address, port and protocol as the map has it.
pub(super) fn live_key(address: IpAddr, port: u16, protocol: Protocol) -> [u8; KEY_BYTES] {
    let mut key = [0; KEY_BYTES];
    key[..ADDRESS_BYTES].copy_from_slice(&address_key(address));
    key[16..18].copy_from_slice(&port.to_ne_bytes());
    key[18] = protocol_number(protocol);
    key
}

fn protocol_number(protocol: Protocol) -> u8 {
    match protocol {
        Protocol::Tcp => 6,
        Protocol::Udp => 17,
    }
}

/// Descriptors of the maps that the program reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maps {
    pub(super) sockets: i32,
    pub(super) live: i32,
    pub(super) own: i32,
}

/// One instruction: the kernel's `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Offsets in `struct bpf_sk_lookup`.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const REMOTE_IP4: i16 = 16;
const REMOTE_IP6: i16 = 20;
const LOCAL_IP4: i16 = 40;
const LOCAL_IP6: i16 = 44;
const LOCAL_PORT: i16 = 60;
const INTERFACE: i16 = 64;

// Where things are on the stack, below the frame pointer.
const KEY: i16 = -24;
const KEY_PORT: i16 = -8;
const KEY_PROTOCOL: i16 = -6;
const KEY_ZERO: i16 = -5;
const INDEX: i16 = -4;

const FRAME: u8 = 10;
const LOOPBACK: i32 = 1;
const HELPER_MAP_LOOKUP: i32 = 1;
const HELPER_SK_RELEASE: i32 = 86;
const HELPER_SK_ASSIGN: i32 = 124;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Label(usize);

#[derive(Debug, Default)]
struct Assembler {
    code: Vec<Instruction>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    fn emit(&mut self, code: u8, dst: u8, src: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: dst | (src << 4), offset, immediate });
    }

    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    fn here(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// Whether anything goes there: the kernel takes no code that nothing reaches.
    fn is_used(&self, label: Label) -> bool {
        self.jumps.iter().any(|(_, to)| *to == label)
    }

    fn jump(&mut self, to: Label) {
        self.jump_if(0x05, 0, 0, to);
    }

    fn jump_if(&mut self, code: u8, register: u8, immediate: i32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.emit(code, register, 0, 0, immediate);
    }

    fn load(&mut self, register: u8, offset: i16) {
        self.emit(0x61, register, 6, offset, 0);
    }

    fn look_up(&mut self, map: i32, key: i16) {
        self.emit(0x18, 1, 1, 0, map); // r1 = map, in two instructions
        self.emit(0, 0, 0, 0, 0);
        self.emit(0xbf, 2, FRAME, 0, 0);
        self.emit(0x07, 2, 0, 0, i32::from(key));
        self.emit(0x85, 0, 0, 0, HELPER_MAP_LOOKUP);
    }

    fn return_(&mut self, value: i32) {
        self.emit(0xb7, 0, 0, 0, value);
        self.emit(0x95, 0, 0, 0, 0);
    }

    /// Goes to `miss` where the address at `offset` is not in `net`.
    fn unless_in(&mut self, offset: i16, net: &Net, miss: Label) {
        let (address, n_words) = match net.address() {
            IpAddr::V4(v4) => {
                let mut bytes = [0; 16];
                bytes[..4].copy_from_slice(&v4.octets());
                (bytes, 1)
            }
            IpAddr::V6(v6) => (v6.octets(), 4),
        };
        let mut bits = u32::from(net.prefix());
        let mut offset = offset;
        for word in address.chunks(4).take(n_words) {
            let here = bits.min(32);
            bits -= here;
            if here == 0 {
                break;
            }
            let mask = u32::MAX << (32 - here);
            // In the order of the network, as the context has addresses.
            let immediate = |bytes: [u8; 4]| i32::from_ne_bytes(bytes);
            self.load(2, offset);
            if mask != u32::MAX {
                self.emit(0x54, 2, 0, 0, immediate(mask.to_be_bytes()));
            }
            let value = immediate([word[0], word[1], word[2], word[3]]);
            self.jump_if(0x56, 2, value, miss);
            offset += 4;
        }
    }

    fn finish(mut self) -> Vec<Instruction> {
        for (at, label) in self.jumps {
            let to = self.labels[label.0].expect("every label is placed");
            let distance = to - at - 1;
            self.code[at].offset = i16::try_from(distance).expect("the program is short");
        }
        self.code
    }
}

/// The program for these ranges. `with_interface` is false for kernels before 5.17,
/// which do not say where a packet came from; then it is told by addresses alone.
pub(super) fn program(ranges: &Ranges, maps: Maps, with_interface: bool) -> Vec<Instruction> {
    let mut asm = Assembler::default();
    let [pass, drop, assign, check] = [(); 4].map(|()| asm.label());
    let [known, ipv4, ipv6, index] = [(); 4].map(|()| asm.label());

    asm.emit(0xbf, 6, 1, 0, 0); // r6 = context
    asm.load(7, PROTOCOL);
    asm.jump_if(0x15, 7, 6, known);
    asm.jump_if(0x55, 7, 17, pass);
    asm.here(known);
    asm.load(2, LOCAL_PORT);
    asm.emit(0x6b, FRAME, 2, KEY_PORT, 0);
    asm.emit(0x73, FRAME, 7, KEY_PROTOCOL, 0);
    asm.emit(0x72, FRAME, 0, KEY_ZERO, 0);
    asm.load(2, FAMILY);
    asm.jump_if(0x15, 2, libc::AF_INET, ipv4);
    asm.jump_if(0x15, 2, libc::AF_INET6, ipv6);
    asm.jump(pass);

    asm.here(ipv4);
    asm.emit(0x62, FRAME, 0, INDEX, 0);
    asm.emit(0x62, FRAME, 0, KEY, 0);
    asm.emit(0x62, FRAME, 0, KEY + 4, 0);
    asm.emit(0x62, FRAME, 0, KEY + 8, i32::from_ne_bytes([0, 0, 0xff, 0xff]));
    asm.load(2, LOCAL_IP4);
    asm.emit(0x63, FRAME, 2, KEY + 12, 0);
    let ends = Ends { pass, drop, assign, check };
    family(&mut asm, ranges, maps, with_interface, false, ends);

    asm.here(ipv6);
    asm.emit(0x62, FRAME, 0, INDEX, 2);
    for word in 0..4 {
        asm.load(2, LOCAL_IP6 + 4 * word);
        asm.emit(0x63, FRAME, 2, KEY + 4 * word, 0);
    }
    family(&mut asm, ranges, maps, with_interface, true, ends);

    if asm.is_used(check) {
        asm.here(check);
        asm.look_up(maps.live, KEY);
        asm.jump_if(0x15, 0, 0, drop);
        asm.jump(assign);
    }
    if asm.is_used(assign) {
        asm.here(assign);
        asm.emit(0x61, 2, FRAME, INDEX, 0);
        asm.jump_if(0x55, 7, 17, index);
        asm.emit(0x07, 2, 0, 0, 1);
        asm.here(index);
        asm.emit(0x63, FRAME, 2, INDEX, 0);
        asm.look_up(maps.sockets, INDEX);
        asm.jump_if(0x15, 0, 0, drop);
        asm.emit(0xbf, 8, 0, 0, 0);
        asm.emit(0xbf, 1, 6, 0, 0);
        asm.emit(0xbf, 2, 8, 0, 0);
        asm.emit(0xb7, 3, 0, 0, 0);
        asm.emit(0x85, 0, 0, 0, HELPER_SK_ASSIGN);
        asm.emit(0xbf, 1, 8, 0, 0);
        asm.emit(0x85, 0, 0, 0, HELPER_SK_RELEASE);
    }
    asm.here(pass);
    asm.return_(1);
    if asm.is_used(drop) {
        asm.here(drop);
        asm.return_(0);
    }
    asm.finish()
}

#[derive(Clone, Copy)]
struct Ends {
    pass: Label,
    drop: Label,
    assign: Label,
    check: Label,
}

/// What is decided within one family of addresses. Falls through to nowhere.
fn family(
    asm: &mut Assembler,
    ranges: &Ranges,
    maps: Maps,
    with_interface: bool,
    is_ipv6: bool,
    ends: Ends,
) {
    let (local, remote) = if is_ipv6 { (LOCAL_IP6, REMOTE_IP6) } else { (LOCAL_IP4, REMOTE_IP4) };
    let of_family = |net: &&Net| net.address().is_ipv6() == is_ipv6;
    let pods: Vec<(&Net, Net)> = (ranges.pods.iter().filter(of_family))
        .filter_map(|net| {
            Some((net, Net::new(super::gateway(net), if is_ipv6 { 128 } else { 32 })?))
        })
        .collect();

    for net in ranges.services.iter().filter(of_family) {
        let next = asm.label();
        asm.unless_in(local, net, next);
        asm.jump(ends.check);
        asm.here(next);
    }
    let [from_pod, others] = [(); 2].map(|()| asm.label());
    if !pods.is_empty() {
        if with_interface {
            asm.load(2, INTERFACE);
            asm.jump_if(0x15, 2, LOOPBACK, others);
        }
        for (net, gateway) in &pods {
            let next = asm.label();
            asm.unless_in(remote, net, next);
            asm.unless_in(remote, gateway, from_pod);
            asm.here(next);
        }
        asm.jump(others);
        asm.here(from_pod);
        asm.look_up(maps.own, KEY);
        asm.jump_if(0x55, 0, 0, ends.pass);
        asm.jump(ends.assign);
    }
    asm.here(others);
    for (net, gateway) in &pods {
        let next = asm.label();
        asm.unless_in(local, net, next);
        asm.unless_in(local, gateway, ends.drop);
        asm.jump(ends.pass);
        asm.here(next);
    }
    for net in ranges.cluster.iter().filter(of_family) {
        let next = asm.label();
        asm.unless_in(local, net, next);
        asm.jump(ends.assign);
        asm.here(next);
    }
    asm.jump(ends.pass);
}
