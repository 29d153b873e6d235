//! Streams over a connection of bytes: what arrives, what waits, what breaks.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::state::{self, State};
use super::*;

const KEEP_ALIVE: Duration = Duration::from_secs(10);

fn pair() -> (Mux, Mux) {
    let (near, far) = tokio::io::duplex(64 << 10);
    (Mux::start(near, true, KEEP_ALIVE), Mux::start(far, false, KEEP_ALIVE))
}

async fn streams() -> (Stream, Stream, Mux, Mux) {
    let (near, far) = pair();
    let stream = near.open().unwrap();
    let accepted = far.accept().await.unwrap();
    (stream, accepted, near, far)
}

fn bytes(n_bytes: usize) -> Vec<u8> {
    (0..n_bytes).map(|at| u8::try_from(at % 251).unwrap()).collect()
}

#[tokio::test]
async fn bytes_arrive_whole_both_ways_and_each_end_by_itself() {
    let (mut near, mut far, _a, _b) = streams().await;
    let sent = bytes(3 << 20);
    let (to_far, to_near) = (sent.clone(), sent.clone());
    let asking = async {
        near.write_all(&to_far).await.unwrap();
        near.shutdown().await.unwrap();
        let mut got = Vec::new();
        near.read_to_end(&mut got).await.unwrap();
        got
    };
    let answering = async {
        let mut got = Vec::new();
        far.read_to_end(&mut got).await.unwrap();
        // The other way is still open.
        far.write_all(&to_near).await.unwrap();
        far.shutdown().await.unwrap();
        got
    };
    let (answer, question) = tokio::join!(asking, answering);
    assert!(question == sent && answer == sent);
}

#[tokio::test]
async fn a_stream_that_is_dropped_is_reset_and_never_looks_whole() {
    let (mut near, mut far, _a, _b) = streams().await;
    near.write_all(b"half of it").await.unwrap();
    let mut got = [0; 4];
    far.read_exact(&mut got).await.unwrap();
    drop(near);
    let mut rest = Vec::new();
    let problem = far.read_to_end(&mut rest).await.unwrap_err();
    assert_eq!(problem.kind(), io::ErrorKind::ConnectionReset);
    assert_eq!(far.write(b"x").await.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn what_was_finished_is_read_to_its_end_even_if_the_sender_has_gone() {
    let (mut near, mut far, _a, _b) = streams().await;
    near.write_all(b"all of it").await.unwrap();
    near.shutdown().await.unwrap();
    drop(near);
    let mut got = String::new();
    far.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "all of it");
    let deadline = Instant::now() + Duration::from_secs(30);
    while far.write(b"x").await.is_ok() {
        assert!(Instant::now() < deadline, "nobody reads it");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reader_that_is_slow_holds_up_its_own_stream_only() {
    let (mut slow, _unread, near, far) = streams().await;
    let (progress_to, mut progress) = mpsc::channel(64);
    let stuck = tokio::spawn(async move {
        let piece = bytes(DATA_MAX);
        loop {
            slow.write_all(&piece).await.unwrap();
            progress_to.send(piece.len()).await.unwrap();
        }
    });
    for n_round in 0..64 {
        let mut quick = near.open().unwrap();
        let mut accepted = far.accept().await.unwrap();
        let sent = bytes(200_000);
        let writing = async {
            quick.write_all(&sent).await.unwrap();
            quick.shutdown().await.unwrap();
        };
        let mut got = Vec::new();
        let (_, read) = tokio::join!(writing, accepted.read_to_end(&mut got));
        read.unwrap();
        assert!(got == sent, "{n_round}");
    }
    stuck.abort();
    let mut n_bytes = 0;
    while let Ok(n_more) = progress.try_recv() {
        n_bytes += n_more;
    }
    assert_eq!(n_bytes, WINDOW as usize, "no more than the window");
    assert!(far.shared.state().n_buffered() <= WINDOW as usize);
}

#[tokio::test]
async fn streams_are_bounded_and_those_that_ended_make_room() {
    let (near, far) = pair();
    let mut open: Vec<Stream> = (0..STREAMS_MAX).map(|_| near.open().unwrap()).collect();
    let problem = near.open().unwrap_err();
    assert_eq!(problem.kind(), io::ErrorKind::ResourceBusy);
    open.clear();
    for _ in 0..STREAMS_MAX {
        drop(far.accept().await.unwrap());
    }
    let mut one = near.open().unwrap();
    let mut accepted = far.accept().await.unwrap();
    one.write_all(b"ok").await.unwrap();
    let mut got = [0; 2];
    accepted.read_exact(&mut got).await.unwrap();
    assert_eq!(far.shared.state().n_streams(), 1);
}

#[tokio::test]
async fn datagrams_arrive_and_are_dropped_rather_than_kept() {
    let (near, far) = pair();
    assert!(near.send_datagram(b"one"));
    assert_eq!(far.datagram().await.unwrap(), b"one".as_slice());
    let large = bytes(65_000);
    assert!(near.send_datagram(&large));
    assert_eq!(far.datagram().await.unwrap(), large);
    // The writer has no chance to run meanwhile.
    let n_sent = (0..1000).take_while(|_| near.send_datagram(&large)).count();
    assert!(n_sent < 10, "{n_sent}");
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_falls_silent_is_gone_and_one_that_is_there_stays() {
    let (near, far) = pair();
    tokio::time::sleep(KEEP_ALIVE * 20).await;
    assert!(near.open().is_ok() && far.open().is_ok());
    let (near, _silent) = tokio::io::duplex(64 << 10);
    let mux = Mux::start(near, true, KEEP_ALIVE);
    let mut stream = mux.open().unwrap();
    let why = mux.closed().await;
    assert!(why.contains("30 s"), "{why}");
    stream.read_u8().await.unwrap_err();
    assert!(mux.accept().await.is_none() && mux.open().is_err());
}

#[tokio::test]
async fn the_end_of_a_connection_breaks_what_is_under_way() {
    let (mut near, mut far, a, b) = streams().await;
    near.write_all(b"x").await.unwrap();
    far.read_u8().await.unwrap();
    a.close();
    assert_eq!(b.closed().await, "the peer closed it");
    let mut rest = Vec::new();
    far.read_to_end(&mut rest).await.unwrap_err();
    near.read_to_end(&mut rest).await.unwrap_err();
    assert!(rest.is_empty());
}

/// Stream, kind and content of a frame.
type Told<'a> = (u32, u8, &'a [u8]);

/// Frames of somebody who breaks the rules.
async fn told(frames: &[Told<'_>]) -> String {
    let (near, mut far) = tokio::io::duplex(1 << 20);
    let mux = Mux::start(near, false, KEEP_ALIVE);
    for (id, kind, content) in frames {
        let mut bytes = id.to_le_bytes().to_vec();
        bytes.push(*kind);
        bytes.extend_from_slice(&u32::try_from(content.len()).unwrap().to_le_bytes()[..3]);
        bytes.extend_from_slice(content);
        far.write_all(&bytes).await.unwrap();
    }
    let reader = async { tokio::io::copy(&mut far, &mut tokio::io::sink()).await };
    tokio::select! {
        why = mux.closed() => why,
        _ = reader => mux.closed().await,
    }
}

#[tokio::test]
async fn a_peer_that_breaks_the_rules_is_cut_off() {
    let full = bytes(DATA_MAX);
    let mut too_much = vec![(1, 0, b"".as_slice())];
    too_much.extend(std::iter::repeat_n((1, 1, full.as_slice()), 5));
    let too_long = bytes(DATA_MAX + 1);
    let credit = u32::MAX.to_le_bytes();
    let cases: [(&[Told<'_>], &str); 9] = [
        (&too_much, "more on stream 1"),
        (&[(1, 0, b""), (1, 2, b""), (1, 1, b"x")], "more on stream 1"),
        (&[(1, 0, b""), (1, 1, &too_long)], "16385 bytes"),
        (&[(1, 1, b"x")], "never opened"),
        (&[(2, 1, b"x")], "never opened"),
        (&[(2, 0, b"")], "stream 2 as a new one"),
        (&[(3, 0, b""), (1, 0, b"")], "stream 1 as a new one"),
        (&[(1, 0, b""), (1, 4, &credit)], "endless credit"),
        (&[(0, 6, b"x")], "a ping of 1 bytes"),
    ];
    for (frames, expected) in cases {
        let why = told(frames).await;
        assert!(why.contains(expected), "{why}: {expected}");
    }
}

/// Who asks without end and never listens costs no memory.
#[tokio::test]
async fn answers_that_nobody_reads_are_bounded() {
    let (near, mut far): (_, DuplexStream) = tokio::io::duplex(4096);
    let mux = Mux::start(near, false, KEEP_ALIVE);
    let mut ping = vec![0; 8];
    (ping[4], ping[5]) = (6, 8);
    ping.extend_from_slice(&[0; 8]);
    let asked = async {
        loop {
            far.write_all(&ping).await.unwrap();
        }
    };
    let _stuck = tokio::time::timeout(Duration::from_millis(500), asked).await;
    assert!(mux.shared.state().n_waiting() < ANSWERS_MAX + READ_BYTES * 2);
}

proptest! {
    #[test]
    fn garbage_is_an_error_and_never_a_panic(
        frames in proptest::collection::vec(
            (0_u32..6, 0_u8..10, proptest::collection::vec(any::<u8>(), 0..20)),
            0..50,
        ),
    ) {
        let mut state = State::new(true);
        state.open().unwrap();
        for (id, kind, content) in frames {
            if let Err(error) = state.heard(id, kind, &content, 0) {
                state.end(&error.to_string());
            }
        }
        prop_assert!(state.n_buffered() <= 3 * WINDOW as usize);
        let head_of = [1, 0, 0, 0, state::DATAGRAM, 0xff, 0xff, 0xff];
        prop_assert!(head(&head_of).is_err());
    }
}
