//! Pieces and their descriptors on a socket.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::control::MESSAGE_BYTES_MAX;

/// Most descriptors of a piece, as the kernel has it.
const FDS_MAX: usize = 253;

/// Refuses anybody but this user.
pub(super) fn check_peer(stream: &UnixStream) -> io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(stream)?;
    if peer.uid == rustix::process::geteuid() {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::PermissionDenied, "another user asks for the sockets"))
}

/// Sends a piece, and waits until the other has it.
pub(super) fn send(
    mut stream: &UnixStream,
    piece: &impl Serialize,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let body = postcard::to_stdvec(piece).map_err(io::Error::other)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes();
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other(format!("{} descriptors in one piece", fds.len())));
    }
    let sent = sendmsg(stream, &[IoSlice::new(&length)], &mut control, SendFlags::NOSIGNAL)?;
    stream.write_all(&length[sent..])?;
    stream.write_all(&body)?;
    wait(stream)
}

/// Receives a piece, and says so.
pub(super) fn receive<T: DeserializeOwned>(
    mut stream: &UnixStream,
) -> io::Result<(T, Vec<OwnedFd>)> {
    let mut length = [0; 4];
    let mut space = vec![std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let n = recvmsg(stream, &mut [IoSliceMut::new(&mut length)], &mut control, flags)?.bytes;
    if n == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    stream.read_exact(&mut length[n..])?;
    let n_bytes = u32::from_le_bytes(length) as usize;
    if n_bytes > MESSAGE_BYTES_MAX {
        let text = format!("a piece of {n_bytes} bytes; at most {MESSAGE_BYTES_MAX} are taken");
        return Err(io::Error::new(io::ErrorKind::InvalidData, text));
    }
    let mut body = Vec::new();
    stream.take(n_bytes as u64).read_to_end(&mut body)?;
    let piece = postcard::from_bytes(&body)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    acknowledge(stream)?;
    Ok((piece, fds))
}

pub(super) fn acknowledge(mut stream: &UnixStream) -> io::Result<()> {
    stream.write_all(&[1])
}

pub(super) fn wait(mut stream: &UnixStream) -> io::Result<()> {
    stream.read_exact(&mut [0])
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_piece_arrives_with_its_descriptors() {
        let (near, far) = UnixStream::pair().unwrap();
        let (kept, sent) = UnixStream::pair().unwrap();
        let sending = std::thread::spawn(move || {
            send(&near, &"first".to_owned(), &[sent.as_fd(), sent.as_fd()]).unwrap();
            send(&near, &vec![7_u8; 300_000], &[]).unwrap();
        });
        let (text, fds): (String, _) = receive(&far).unwrap();
        assert_eq!((text.as_str(), fds.len()), ("first", 2));
        let (bytes, none): (Vec<u8>, _) = receive(&far).unwrap();
        assert_eq!((bytes.len(), none.len()), (300_000, 0));
        sending.join().unwrap();
        let mut through = UnixStream::from(fds.into_iter().next().unwrap());
        through.write_all(b"x").unwrap();
        let mut byte = [0];
        (&kept).read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"x");
        check_peer(&kept).unwrap();
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let (mut near, far) = UnixStream::pair().unwrap();
            near.write_all(&bytes).unwrap();
            drop(near);
            let _ = receive::<super::super::Piece>(&far);
        }
    }
}
