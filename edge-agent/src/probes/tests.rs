//! Probes of servers that are well, unwell, slow, or something else.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

const LIMIT: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(200);

/// Serves every connection in `serve`, and returns the port.
async fn server<F: Future<Output = ()> + Send + 'static>(
    serve: impl Fn(TcpStream) -> F + Send + 'static,
) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream));
        }
    });
    port
}

/// A port on which nobody listens.
async fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Answers each path with its own words.
async fn web(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
    let mut bytes = Vec::new();
    let mut chunk = [0; 1024];
    while !bytes.windows(4).any(|four| four == b"\r\n\r\n") {
        match stream.read(&mut chunk).await {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => return,
        }
    }
    let request = String::from_utf8(bytes).unwrap();
    let path = request.split(' ').nth(1).unwrap();
    let answer = match path {
        "/ok" => "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok".to_owned(),
        "/early" => "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n\r\n".to_owned(),
        "/bad" => "HTTP/1.1 503 Service Unavailable\r\n\r\nno".to_owned(),
        "/there" => "HTTP/1.1 302 Found\r\nLocation: /bad\r\n\r\n".to_owned(),
        "/away" => "HTTP/1.1 302 Found\r\nLocation: http://other.test/\r\n\r\n".to_owned(),
        "/round" => "HTTP/1.1 302 Found\r\nLocation: /round\r\n\r\n".to_owned(),
        "/named" => {
            let is_named = request.contains("Host: app.test\r\n") && request.contains("X-A: 1\r\n");
            format!("HTTP/1.1 {} X\r\n\r\n", if is_named { 200 } else { 400 })
        }
        "/never" => return std::future::pending().await,
        "/hangs-up" => String::new(),
        _ => "what is this\r\n\r\n".to_owned(),
    };
    let _ = stream.write_all(answer.as_bytes()).await;
    let _ = stream.shutdown().await;
}

fn http_handler(port: u16, path: &str, https: bool) -> HandlerV1 {
    let headers = vec![("Host".into(), "app.test".into()), ("X-A".into(), "1".into())];
    HandlerV1::Http { host: String::new(), port, path: path.into(), https, headers }
}

fn unwell(reply: Reply) -> String {
    match reply {
        Reply::Unwell(why) => why,
        Reply::Well => "well".to_owned(),
    }
}

#[tokio::test]
async fn http_is_well_between_200_and_399() {
    let port = server(web).await;
    let base = format!("http://127.0.0.1:{port}");
    for (path, expected) in [
        ("/ok", "well".to_owned()),
        ("/early", "well".to_owned()),
        ("/named", "well".to_owned()),
        ("/away", "well".to_owned()),
        ("/bad", "HTTP probe failed with statuscode: 503".to_owned()),
        ("/there", "HTTP probe failed with statuscode: 503".to_owned()),
        ("/round", format!("Get \"{base}/round\": stopped after 10 redirects")),
        ("/hangs-up", format!("Get \"{base}/hangs-up\": EOF")),
        ("/other", format!("Get \"{base}/other\": malformed HTTP response")),
    ] {
        let reply = ask(&http_handler(port, path, false), "127.0.0.1", LIMIT).await;
        assert_eq!(unwell(reply), expected, "{path}");
    }
    let reply = ask(&http_handler(port, "/never", false), "127.0.0.1", SHORT).await;
    assert!(unwell(reply).contains("context deadline exceeded"));
    let port = closed_port().await;
    let reply = ask(&http_handler(port, "/ok", false), "127.0.0.1", LIMIT).await;
    let expected = format!(
        "Get \"http://127.0.0.1:{port}/ok\": dial tcp 127.0.0.1:{port}: connect: connection refused"
    );
    assert_eq!(unwell(reply), expected);
}

#[tokio::test]
async fn https_is_asked_whatever_its_certificate() {
    let own = rcgen::generate_simple_self_signed(["nobody.test".to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let port = server(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                web(stream).await;
            }
        }
    })
    .await;
    let well = ask(&http_handler(port, "/ok", true), "127.0.0.1", LIMIT).await;
    assert_eq!(well, Reply::Well);
    let bad = ask(&http_handler(port, "/bad", true), "127.0.0.1", LIMIT).await;
    assert_eq!(unwell(bad), "HTTP probe failed with statuscode: 503");
    // TLS where there is none.
    let plain = server(web).await;
    let reply = ask(&http_handler(plain, "/ok", true), "127.0.0.1", LIMIT).await;
    assert!(unwell(reply).starts_with("Get \"https://"));
}

#[tokio::test]
async fn tcp_is_well_when_somebody_accepts() {
    let open = server(|stream| async { drop(stream) }).await;
    let tcp = |port| HandlerV1::Tcp { host: String::new(), port };
    assert_eq!(ask(&tcp(open), "127.0.0.1", LIMIT).await, Reply::Well);
    let closed = closed_port().await;
    let expected = format!("dial tcp 127.0.0.1:{closed}: connect: connection refused");
    assert_eq!(unwell(ask(&tcp(closed), "127.0.0.1", LIMIT).await), expected);
}

/// A gRPC server that knows the services `up` and `down`, on a library that
/// speaks all of HTTP/2.
async fn health(stream: TcpStream) {
    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
            assert_eq!(request.headers()["content-type"], "application/grpc");
            assert_eq!(request.headers()["te"], "trailers");
            let mut body = request.into_body();
            let mut message = Vec::new();
            while let Some(Ok(chunk)) = body.data().await {
                let _ = body.flow_control().release_capacity(chunk.len());
                message.extend_from_slice(&chunk);
            }
            let status = match message.get(5..) {
                Some([]) | Some([0x0a, 2, b'u', b'p']) => 1,
                Some([0x0a, 4, b'd', b'o', b'w', b'n']) => 2,
                _ => 0,
            };
            let head = http_head(status == 0);
            // Whoever asked may be gone already.
            let Ok(mut stream) = respond.send_response(head, status == 0) else { return };
            if status != 0 {
                let message = Bytes::from(vec![0, 0, 0, 0, 2, 8, status]);
                let _ = stream.send_data(message, false);
                let mut trailers = ::http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let _ = stream.send_trailers(trailers);
            }
        });
    }
}

fn http_head(is_error: bool) -> ::http::Response<()> {
    let head = ::http::Response::builder().header("content-type", "application/grpc");
    let head = if is_error { head.header("grpc-status", "5") } else { head };
    head.body(()).unwrap()
}

#[tokio::test]
async fn grpc_is_well_when_it_serves() {
    let port = server(health).await;
    let grpc = |port, service: &str| HandlerV1::Grpc { port, service: service.to_owned() };
    for (service, expected) in [
        ("", "well".to_owned()),
        ("up", "well".to_owned()),
        ("down", "service unhealthy (responded with \"NOT_SERVING\")".to_owned()),
        (
            "other",
            format!(
                "error: \"127.0.0.1:{port}\" does not answer grpc.health.v1.Health/Check for service \"other\""
            ),
        ),
    ] {
        let reply = ask(&grpc(port, service), "127.0.0.1", LIMIT).await;
        assert_eq!(unwell(reply), expected, "{service}");
    }
    let long = "s".repeat(300);
    let reply = ask(&grpc(port, &long), "127.0.0.1", LIMIT).await;
    assert!(unwell(reply).contains("does not answer"), "a long name is sent whole");
    // Something else than gRPC, and nobody.
    let plain = server(web).await;
    assert!(unwell(ask(&grpc(plain, ""), "127.0.0.1", LIMIT).await).contains("failed"));
    let closed = closed_port().await;
    assert!(unwell(ask(&grpc(closed, ""), "127.0.0.1", LIMIT).await).contains("refused"));
    let silent = server(|stream| async move {
        let _held = stream;
        std::future::pending().await
    })
    .await;
    assert!(unwell(ask(&grpc(silent, ""), "127.0.0.1", SHORT).await).contains("timeout"));
}
