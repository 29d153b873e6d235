//! Answers HTTP requests (`wasi:http/incoming-handler`): an example of a server,
//! and a guest for the tests.
//!
//! | path | answer |
//! | --- | --- |
//! | `/` | `GREETING` from the environment, and what was asked for |
//! | `/echo` | the body of the request |
//! | `/count` | how many requests this instance has answered: always 1 |
//! | `/file/PATH` | a file |
//! | `/fetch/HOST:PORT/PATH` | what another server answers |
//! | `/slow/MS` | its first line at once, its second after that time |
//! | `/zeros/MIB` | that many zeros |
//! | `/allocate/MIB` | takes and touches that much memory |
//! | `/spin` | nothing: computes for ever |
//! | `/panic` | nothing: panics |

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::Duration;

use wasi::http::outgoing_handler::handle;
use wasi::http::types::{
    Fields, IncomingBody, IncomingRequest, OutgoingBody, OutgoingRequest, OutgoingResponse,
    ResponseOutparam, Scheme,
};
use wasi::io::streams::{InputStream, StreamError};

struct Web;

wasi::http::proxy::export!(Web);

static REQUESTS: AtomicU32 = AtomicU32::new(0);

impl wasi::exports::http::incoming_handler::Guest for Web {
    fn handle(request: IncomingRequest, out: ResponseOutparam) {
        let n = REQUESTS.fetch_add(1, Ordering::Relaxed) + 1;
        let path = request.path_with_query().unwrap_or_default();
        println!("{path}");
        let mut words = path.trim_start_matches('/').splitn(2, '/');
        let (verb, rest) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let number = || rest.parse::<usize>().unwrap_or(1);
        match verb {
            "" => {
                let greeting = std::env::var("GREETING").unwrap_or_else(|_| "Hello".to_owned());
                answer(out, 200, |body| body.write(format!("{greeting} from {path}\n").as_bytes()));
            }
            "echo" => {
                let body = request.consume().expect("the body is taken once");
                let from = body.stream().expect("its stream is taken once");
                answer(out, 200, |to| copy(&from, to));
            }
            "count" => answer(out, 200, |body| body.write(format!("{n}\n").as_bytes())),
            "file" => match std::fs::read(format!("/{rest}")) {
                Ok(bytes) => answer(out, 200, |body| body.write(&bytes)),
                Err(err) => {
                    let text = format!("{:?}\n", err.kind());
                    answer(out, 404, |body| body.write(text.as_bytes()));
                }
            },
            "fetch" => fetch(rest, out),
            "slow" => answer(out, 200, |body| {
                body.write(b"first\n");
                sleep(Duration::from_millis(number() as u64));
                body.write(b"second\n");
            }),
            "zeros" => answer(out, 200, |body| {
                for _ in 0..number() * 16 {
                    body.write(&[0; 64 << 10]);
                }
            }),
            "allocate" => {
                let bytes = vec![1_u8; number() << 20];
                let sum: usize = bytes.iter().map(|byte| usize::from(*byte)).sum();
                answer(out, 200, |body| body.write(format!("{sum}\n").as_bytes()));
            }
            "spin" => {
                let mut n = 0_u64;
                loop {
                    n = std::hint::black_box(n.wrapping_add(1));
                }
            }
            "panic" => panic!("as asked"),
            _ => answer(out, 404, |body| body.write(b"not here\n")),
        }
    }
}

/// The body of an answer. What a client that left would have got is dropped.
struct Body {
    stream: wasi::io::streams::OutputStream,
}

impl Body {
    fn write(&self, bytes: &[u8]) {
        for piece in bytes.chunks(4096) {
            if self.stream.blocking_write_and_flush(piece).is_err() {
                return;
            }
        }
    }
}

fn answer(out: ResponseOutparam, status: u16, write: impl FnOnce(&Body)) {
    let headers = Fields::new();
    headers
        .set("content-type", &[b"text/plain; charset=utf-8".to_vec()])
        .expect("the header is allowed");
    let response = OutgoingResponse::new(headers);
    response.set_status_code(status).expect("it is a status");
    let body = response.body().expect("the body is taken once");
    ResponseOutparam::set(out, Ok(response));
    let stream = body.write().expect("its stream is taken once");
    let to = Body { stream };
    write(&to);
    drop(to);
    let _ = OutgoingBody::finish(body, None);
}

fn copy(from: &InputStream, to: &Body) {
    loop {
        match from.blocking_read(64 << 10) {
            Ok(bytes) => to.write(&bytes),
            Err(StreamError::Closed) => return,
            Err(StreamError::LastOperationFailed(err)) => {
                println!("reading the body: {}", err.to_debug_string());
                return;
            }
        }
    }
}

fn fetch(rest: &str, out: ResponseOutparam) {
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let request = OutgoingRequest::new(Fields::new());
    let set = request.set_scheme(Some(&Scheme::Http)).is_ok()
        && request.set_authority(Some(authority)).is_ok()
        && request.set_path_with_query(Some(&format!("/{path}"))).is_ok();
    let sent = if set {
        handle(request, None).map_err(|err| format!("{err:?}"))
    } else {
        Err(rest.to_owned())
    };
    let received = sent.and_then(|response| {
        response.subscribe().block();
        let response = response.get().expect("it is there").expect("it is taken once");
        response.map_err(|err| format!("{err:?}"))
    });
    match received {
        Ok(response) => {
            let status = response.status();
            let body: IncomingBody = response.consume().expect("the body is taken once");
            let from = body.stream().expect("its stream is taken once");
            answer(out, status, |to| copy(&from, to));
        }
        Err(why) => answer(out, 502, |body| body.write(format!("{why}\n").as_bytes())),
    }
}
