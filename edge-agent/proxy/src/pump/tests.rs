//! Real connections on the loopback address.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

fn backend() -> SocketAddr {
    "10.42.1.2:80".parse().unwrap()
}

/// Client, server, and what carries bytes between them.
async fn relayed(relays: &Arc<Relays>) -> (TcpStream, TcpStream, JoinHandle<io::Result<End>>) {
    let (client, near) = pair().await;
    let (far, server) = pair().await;
    let task = tokio::spawn(relay(near, far, relays.enter(backend()), (false, false)));
    (client, server, task)
}

#[tokio::test]
async fn bulk_arrives_whole_and_an_end_leaves_the_other_direction_open() {
    let relays = Arc::new(Relays::default());
    let (mut client, mut server, task) = relayed(&relays).await;
    let bytes: Vec<u8> = (0..8_u32 << 20).map(|n| (n * 31 % 251).to_le_bytes()[0]).collect();
    let send = bytes.clone();
    let (sent, got) = tokio::join!(
        async {
            client.write_all(&send).await.unwrap();
            client.shutdown().await.unwrap();
            client
        },
        async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            got
        }
    );
    client = sent;
    assert!(got == bytes, "{} bytes arrived of {}", got.len(), bytes.len());
    server.write_all(b"thanks").await.unwrap();
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "thanks");
    assert!(matches!(task.await.unwrap(), Ok(End::Done)));
    assert_eq!(relays.len(), 0);
}

#[tokio::test]
async fn a_slow_reader_stops_the_writer_and_loses_nothing() {
    let relays = Arc::new(Relays::default());
    let (mut client, mut server, _task) = relayed(&relays).await;
    let writer = tokio::spawn(async move {
        for n in 0..4000_u32 {
            client.write_all(&[n.to_le_bytes()[0]; 4096]).await.unwrap();
        }
    });
    let mut piece = [0; 4096];
    for n in 0..4000_u32 {
        if n % 500 == 0 {
            tokio::task::yield_now().await;
        }
        server.read_exact(&mut piece).await.unwrap();
        assert!(piece.iter().all(|byte| u32::from(*byte) == n % 256), "piece {n}");
    }
    writer.await.unwrap();
}

#[tokio::test]
async fn a_reset_is_passed_on() {
    let relays = Arc::new(Relays::default());
    let (client, mut server, task) = relayed(&relays).await;
    client.set_zero_linger().unwrap();
    drop(client);
    let error = server.read(&mut [0; 8]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    task.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn those_of_one_backend_can_be_cut() {
    let relays = Arc::new(Relays::default());
    let (mut client, _server, task) = relayed(&relays).await;
    while relays.len() == 0 {
        tokio::task::yield_now().await;
    }
    relays.cut("10.42.1.3:80".parse().unwrap());
    assert!(!task.is_finished());
    relays.cut(backend());
    task.await.unwrap().unwrap_err();
    client.read(&mut [0; 8]).await.unwrap_err();
}

#[tokio::test]
async fn a_pause_loses_no_byte_and_the_pair_goes_on_elsewhere() {
    let relays = Arc::new(Relays::default());
    let (mut client, mut server, task) = relayed(&relays).await;
    client.write_all(b"before ").await.unwrap();
    let mut got = [0; 7];
    server.read_exact(&mut got).await.unwrap();
    relays.pause();
    let End::Paused(near, far, ended) = task.await.unwrap().unwrap() else { panic!("paused") };
    assert_eq!(ended, (false, false));
    client.write_all(b"between ").await.unwrap();
    let next = Arc::new(Relays::default());
    let task = tokio::spawn(relay(near, far, next.enter(backend()), ended));
    client.write_all(b"after").await.unwrap();
    client.shutdown().await.unwrap();
    let mut got = String::new();
    server.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "between after");
    drop(server);
    assert!(matches!(task.await.unwrap(), Ok(End::Done)));
}

#[tokio::test]
async fn a_direction_that_stays_open_in_silence_is_ended() {
    let relays = Arc::new(Relays::default());
    let (mut client, server, task) = relayed(&relays).await;
    client.shutdown().await.unwrap();
    let mut server = server;
    assert_eq!(server.read(&mut [0; 8]).await.unwrap(), 0);
    tokio::time::pause();
    let error = task.await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn other_connections_are_carried_too() {
    let (mut client, near) = pair().await;
    let (far, mut server) = tokio::io::duplex(1000);
    let task = tokio::spawn(relay_stream(near, Box::new(far)));
    let bytes = vec![7; 300_000];
    let (_, got) = tokio::join!(
        async {
            client.write_all(&bytes).await.unwrap();
            client.shutdown().await.unwrap();
        },
        async {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            got
        }
    );
    assert_eq!(got.len(), bytes.len());
    server.write_all(b"ok").await.unwrap();
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "ok");
    task.await.unwrap().unwrap();
}
