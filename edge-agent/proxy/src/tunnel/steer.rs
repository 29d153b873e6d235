//! Two processes on one UDP port while one succeeds the other: packets of the old
//! one's connections go to it, all else to the new one.
//!
//! The kernel chooses among the sockets of a port by a program that the newest of
//! them brings (`SO_ATTACH_REUSEPORT_CBPF`). Names of QUIC's connections begin with
//! the mark of the process that gave them, and stand in front of every packet: after
//! one byte in those of a connection that is made, after six in those of its
//! handshake. A packet that begins a connection bears a name that its sender made
//! up, and goes to the new process. Once the old socket is closed the choice has no
//! meaning, and the kernel gives everything to the one that is left.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::AsRawFd;

use ring::rand::SecureRandom;

use super::quic::ID_BYTES;

/// The bit of a packet whose connection is being made.
const LONG: u32 = 0x80;
/// Which of those it is, and the value for the handshake.
const KIND: u32 = 0x30;
const HANDSHAKE: u32 = 0x20;

/// A mark for this process.
pub(super) fn mark() -> u16 {
    let mut mark = [0; 2];
    ring::rand::SystemRandom::new().fill(&mut mark).expect("the system has randomness");
    u16::from_be_bytes(mark)
}

/// How many sockets are on this UDP port: the kernel numbers them by age.
pub(super) fn n_on_port(port: u16) -> u32 {
    let mut n_sockets = 0;
    for table in ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"] {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        n_sockets += text.lines().filter(|line| port_of(line) == Some(port)).count();
    }
    u32::try_from(n_sockets).unwrap_or(u32::MAX)
}

/// The local port of a line of the kernel's table.
fn port_of(line: &str) -> Option<u16> {
    let (_, port) = line.split_whitespace().nth(1)?.rsplit_once(':')?;
    u16::from_str_radix(port, 16).ok()
}

/// Sends what is marked so, and what begins a connection, to the socket of this
/// number, and all else to the oldest.
pub(super) fn attach(socket: &impl AsRawFd, mark: u16, number: u32) -> io::Result<()> {
    let mut program = program(mark, number);
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = libc::sock_fprog { len: length, filter: program.as_mut_ptr() };
    let size = u32::try_from(size_of::<libc::sock_fprog>()).map_err(io::Error::other)?;
    // SAFETY: the kernel copies `size` bytes of `program`, and the instructions that
    // it points to; both live until the call returns.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads a packet's content from its first byte; a packet that is too short gives 0.
fn program(mark: u16, number: u32) -> [libc::sock_filter; 13] {
    let step = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter {
        // All of them are below 256.
        code: u16::try_from(code).unwrap_or(0),
        jt,
        jf,
        k,
    };
    let load = |at: u32| step(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at);
    let load_mark = |at: u32| step(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, at);
    let jump = |how: u32, k: u32, jt: u8, jf: u8| step(libc::BPF_JMP | how, jt, jf, k);
    let give = |number: u32| step(libc::BPF_RET | libc::BPF_K, 0, 0, number);
    let id_bytes = u32::try_from(ID_BYTES).unwrap_or(0);
    [
        load(0),
        jump(libc::BPF_JSET, LONG, 2, 0),
        load_mark(1),
        jump(libc::BPF_JA, 6, 0, 0),
        // 4: a connection that is being made.
        load(0),
        step(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K, 0, 0, KIND),
        jump(libc::BPF_JEQ, HANDSHAKE, 0, 5),
        load(5),
        jump(libc::BPF_JEQ, id_bytes, 0, 3),
        load_mark(6),
        // 10: whose name it is.
        jump(libc::BPF_JEQ, mark.into(), 1, 0),
        give(0),
        give(number),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_on_a_port_are_counted() {
        let socket = std::net::UdpSocket::bind("127.0.0.77:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert!(n_on_port(port) >= 1);
        assert_eq!(port_of("  1: 0100007F:1D13 00000000:0000 07"), Some(0x1d13));
        assert_eq!(port_of("  sl  local_address rem_address   st"), None);
        assert_eq!(port_of(""), None);
    }
}
