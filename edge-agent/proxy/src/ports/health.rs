//! The health check of a Service: a load balancer outside asks each node whether it
//! has endpoints of its own. As kube-proxy answers, so that any balancer understands.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::plane::Plane;
use crate::table::{Endpoint, Table};

/// How long a client may take to ask.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Most bytes of a question; they are not looked at.
const REQUEST_BYTES_MAX: usize = 8 << 10;
/// Most questions at a time of one Service.
const QUESTIONS_MAX: usize = 64;
const PAUSE: Duration = Duration::from_millis(50);

/// Answers until it is aborted.
pub(super) async fn serve(
    plane: Arc<Plane>,
    listener: Arc<TcpListener>,
    namespace: String,
    name: String,
) {
    let questions = Arc::new(Semaphore::new(QUESTIONS_MAX));
    loop {
        let Ok(permit) = Arc::clone(&questions).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        let text = answer(&namespace, &name, n_local(&plane.view().table, &namespace, &name));
        tokio::spawn(async move {
            let _ = tokio::time::timeout(TIMEOUT, reply(stream, text)).await;
            drop(permit);
        });
    }
}

/// How many endpoints of a Service are on this node and ready, or end but serve.
fn n_local(table: &Table, namespace: &str, name: &str) -> usize {
    let service = table.services.iter().find(|s| s.namespace == namespace && s.name == name);
    let here = |endpoint: &&Endpoint| {
        endpoint.node == table.node.name
            && (endpoint.ready || endpoint.serving && endpoint.terminating)
    };
    let ports = service.into_iter().flat_map(|service| &service.ports);
    ports.map(|port| port.endpoints.iter().filter(here).count()).max().unwrap_or(0)
}

/// The whole answer.
fn answer(namespace: &str, name: &str, n_local: usize) -> String {
    let status = if n_local > 0 { "200 OK" } else { "503 Service Unavailable" };
    // Names of namespaces and Services hold nothing that JSON would escape.
    let body = format!(
        "{{\n\t\"service\": {{\n\t\t\"namespace\": \"{namespace}\",\n\t\t\"name\": \"{name}\"\n\t}},\n\t\
         \"localEndpoints\": {n_local},\n\t\"serviceProxyHealthy\": true\n}}\n"
    );
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nX-Content-Type-Options: nosniff\r\n\
         X-Load-Balancing-Endpoint-Weight: {n_local}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

async fn reply(mut stream: TcpStream, text: String) -> io::Result<()> {
    let mut request: Vec<u8> = Vec::new();
    let mut piece = [0; 512];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        let n = stream.read(&mut piece).await?;
        if n == 0 || request.len() > REQUEST_BYTES_MAX {
            return Ok(());
        }
        request.extend(&piece[..n]);
    }
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_one_that_balancers_know() {
        let text = answer("default", "web", 2);
        assert!(text.starts_with("HTTP/1.1 200 OK\r\n"), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(head.contains("X-Load-Balancing-Endpoint-Weight: 2"));
        assert!(body.contains("\"localEndpoints\": 2"));
        assert!(answer("default", "web", 0).starts_with("HTTP/1.1 503 "));
    }
}
