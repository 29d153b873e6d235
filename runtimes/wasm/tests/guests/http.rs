//! Guests that answer HTTP requests, asked by a client in their pod.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use runtime::{Runtime, ShimRuntime, Workload};
use tokio::time::Instant;

use crate::node::Node;

tests! {
    requests_are_answered_by_an_instance_each,
    bodies_pass_through_in_pieces,
    a_request_that_fails_costs_itself_only,
    a_request_that_computes_leaves_the_others_their_turns,
    instances_share_the_memory_limit,
    a_guest_asks_other_servers,
    heads_are_bounded,
    more_requests_than_turns_wait,
    a_stop_lets_what_has_begun_finish,
    a_port_that_is_taken_is_said,
}

/// Port 80: bound by root before the guest's process is nobody.
async fn serve(node: &Node<'_>, memory_mib: u64) -> (ShimRuntime, String) {
    let runtime = node.runtime();
    let mut spec = node.spec(&node.guests.web, &[]);
    spec.resources.memory_limit_bytes = memory_mib << 20;
    let id = spec.id.clone();
    // It runs once it listens: no client below tries twice.
    runtime.start(spec).await.unwrap();
    (runtime, id)
}

async fn stop(node: &Node<'_>, runtime: &ShimRuntime, id: &str) {
    runtime.kill(id, libc::SIGTERM).unwrap();
    assert_eq!(node.until_exit(runtime, id).await.code, 0, "{}", node.log());
    runtime.remove(id).await.unwrap();
}

/// Sends `request` as it is and reads all of the answer.
fn send(request: &[u8]) -> String {
    let mut stream = TcpStream::connect("127.0.0.1:80").unwrap();
    // An answer may come before all of it is sent, and the connection end.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").into_bytes()
}

async fn get(node: &Node<'_>, path: &str) -> String {
    let request = request(path);
    node.in_pod(move || send(&request)).await
}

async fn requests_are_answered_by_an_instance_each(node: &Node<'_>) {
    let (runtime, id) = serve(node, 0).await;
    let answer = get(node, "/").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    assert!(answer.contains("Hej from /"), "{answer}");
    for _ in 0..3 {
        assert!(get(node, "/count").await.ends_with("\r\n2\r\n1\n\r\n0\r\n\r\n"));
    }
    assert!(get(node, "/file/config/greeting").await.contains("hello"));
    assert!(get(node, "/file/etc/passwd").await.contains("404"));
    // Two on one connection.
    let two = b"GET /count HTTP/1.1\r\nHost: pod\r\n\r\n\
                GET /count HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";
    let answer = node.in_pod(move || send(two)).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 2, "{answer}");
    node.until_log("/file/config/greeting").await;
    stop(node, &runtime, &id).await;
}

async fn bodies_pass_through_in_pieces(node: &Node<'_>) {
    // Far more than guest and host may hold.
    let (runtime, id) = serve(node, 8).await;
    const BYTES: usize = 64 << 20;
    let n_received = node.in_pod(|| {
        let mut stream = TcpStream::connect("127.0.0.1:80").unwrap();
        let head = format!(
            "POST /echo HTTP/1.1\r\nHost: pod\r\nContent-Length: {BYTES}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).unwrap();
        let mut to = stream.try_clone().unwrap();
        let sender = std::thread::spawn(move || {
            let piece = vec![b'x'; 1 << 20];
            (0..BYTES >> 20).try_for_each(|_| to.write_all(&piece))
        });
        let (mut n, mut buffer) = (0, vec![0; 1 << 16]);
        loop {
            match stream.read(&mut buffer).unwrap() {
                0 => break,
                more => n += buffer[..more].iter().filter(|byte| **byte == b'x').count(),
            }
        }
        sender.join().unwrap().unwrap();
        n
    });
    // And the one of the header's `text/plain`.
    let n = n_received.await;
    assert!((BYTES..BYTES + 8).contains(&n), "{n}: {}", node.log());
    stop(node, &runtime, &id).await;
}

async fn a_request_that_fails_costs_itself_only(node: &Node<'_>) {
    let (runtime, id) = serve(node, 0).await;
    let answer = get(node, "/panic").await;
    assert!(answer.starts_with("HTTP/1.1 500"), "{answer}");
    assert!(!answer.contains("wasm"), "what is inside stays inside: {answer}");
    node.until_log("pinnace: GET /panic: the guest ended:").await;
    assert!(get(node, "/").await.contains("Hej"));
    stop(node, &runtime, &id).await;
}

async fn a_request_that_computes_leaves_the_others_their_turns(node: &Node<'_>) {
    let (runtime, id) = serve(node, 0).await;
    let spinning = node
        .in_pod(|| {
            let spin = |_| {
                let mut stream = TcpStream::connect("127.0.0.1:80").unwrap();
                stream.write_all(&request("/spin")).unwrap();
                stream
            };
            (0..4).map(spin).collect::<Vec<_>>()
        })
        .await;
    node.until_log("/spin\n/spin\n/spin\n/spin").await;
    for _ in 0..5 {
        assert!(get(node, "/").await.contains("Hej"));
    }
    // Whose clients have left is ended; else the stop below would wait for ever.
    drop(spinning);
    stop(node, &runtime, &id).await;
}

async fn instances_share_the_memory_limit(node: &Node<'_>) {
    let (runtime, id) = serve(node, 32).await;
    assert!(get(node, "/allocate/8").await.contains("8388608"));
    let answer = get(node, "/allocate/64").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after"), "{answer}");
    node.until_log("memory limit of 33554432 bytes reached").await;
    // What one took is there for the next.
    for _ in 0..10 {
        assert!(get(node, "/allocate/8").await.contains("8388608"), "{}", node.log());
    }
    stop(node, &runtime, &id).await;
}

async fn a_guest_asks_other_servers(node: &Node<'_>) {
    let (runtime, id) = serve(node, 0).await;
    let server = node.in_pod(|| TcpListener::bind("127.0.0.1:0").unwrap()).await;
    let address = server.local_addr().unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = server.accept().unwrap();
        let mut head = [0; 1024];
        let n = stream.read(&mut head).unwrap();
        stream
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nahoy\n")
            .unwrap();
        String::from_utf8_lossy(&head[..n]).into_owned()
    });
    let answer = get(node, &format!("/fetch/{address}/a/b")).await;
    assert!(answer.contains("ahoy"), "{answer} {}", node.log());
    let asked = answering.join().unwrap();
    assert!(asked.starts_with("GET /a/b HTTP/1.1"), "{asked}");
    let refused = get(node, "/fetch/127.0.0.1:1/").await;
    assert!(refused.starts_with("HTTP/1.1 502"), "{refused}");
    stop(node, &runtime, &id).await;
}

async fn heads_are_bounded(node: &Node<'_>) {
    let (runtime, id) = serve(node, 0).await;
    let check = |request: Vec<u8>, status: &'static str| async move {
        let answer = node.in_pod(move || send(&request)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{status}: {answer}");
    };
    let long = format!("GET / HTTP/1.1\r\nHost: pod\r\nA: {}\r\n\r\n", "x".repeat(200_000));
    check(long.into_bytes(), "431").await;
    let many = format!("GET / HTTP/1.1\r\nHost: pod\r\n{}\r\n", "A: b\r\n".repeat(1000));
    check(many.into_bytes(), "431").await;
    check(b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n".to_vec(), "400").await;
    check(b"\x16\x03\x01 not http\r\n\r\n".to_vec(), "400").await;
    assert!(get(node, "/").await.contains("Hej"));
    stop(node, &runtime, &id).await;
}

async fn more_requests_than_turns_wait(node: &Node<'_>) {
    let (runtime, id) = serve(node, 0).await;
    let answers = node.in_pod(|| {
        let threads: Vec<_> =
            (0..100).map(|_| std::thread::spawn(|| send(&request("/slow/20")))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    for answer in answers.await {
        assert!(answer.contains("first") && answer.contains("second"), "{answer}");
    }
    stop(node, &runtime, &id).await;
}

async fn a_stop_lets_what_has_begun_finish(node: &Node<'_>) {
    let (runtime, id) = serve(node, 0).await;
    let (mut stream, idle) = node
        .in_pod(|| {
            let idle = TcpStream::connect("127.0.0.1:80").unwrap();
            let mut stream = TcpStream::connect("127.0.0.1:80").unwrap();
            stream.write_all(b"GET /slow/700 HTTP/1.1\r\nHost: pod\r\n\r\n").unwrap();
            (stream, idle)
        })
        .await;
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains("first") {
        let mut piece = [0; 512];
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0);
        answer.extend_from_slice(&piece[..n]);
    }
    runtime.kill(&id, libc::SIGTERM).unwrap();
    let closed = node.in_pod(|| {
        let began = Instant::now();
        // The port is closed at once.
        while TcpStream::connect("127.0.0.1:80").is_ok() {
            assert!(began.elapsed() < Duration::from_secs(30));
            std::thread::yield_now();
        }
    });
    closed.await;
    stream.read_to_end(&mut answer).unwrap();
    assert!(String::from_utf8_lossy(&answer).contains("second"));
    assert_eq!(node.until_exit(&runtime, &id).await.code, 0, "{}", node.log());
    runtime.remove(&id).await.unwrap();
    drop(idle);
}

async fn a_port_that_is_taken_is_said(node: &Node<'_>) {
    let taken = node.in_pod(|| TcpListener::bind("0.0.0.0:8080").unwrap()).await;
    let mut spec = node.spec(&node.guests.web, &[]);
    let Workload::Wasm { http_port, .. } = &mut spec.workload else { panic!("not WASM") };
    *http_port = 8080;
    let refused = crate::basics::refusal(node, spec).await;
    assert!(
        refused.contains("cannot listen on port 8080") && refused.contains("in use"),
        "{refused}"
    );
    drop(taken);
    assert!(!fs::exists(node.path("run/containers/pod-guest-0")).unwrap());
}
