//! Serves HTTP/1 for a guest that answers requests (`wasi:http/incoming-handler`).
//!
//! ```text
//! connection ──► request ──► a turn of INSTANCES_MAX ──► an instance of its own ──► answer
//! ```
//!
//! Every request meets a fresh instance, so nothing of one is left for the next.
//! Bodies pass through in pieces and are never held whole. A guest whose client
//! has left is ended: at once before it has answered, else after [`TAIL_MAX`].
//! SIGTERM closes the port; what has begun is answered, then the process ends.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::Signal;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use wasmtime::component::Component;
use wasmtime::{Engine, Store};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::p2::bindings::ProxyPre;
use wasmtime_wasi_http::p2::bindings::http::types::{ErrorCode, Scheme};
use wasmtime_wasi_http::p2::body::HyperOutgoingBody;

use super::cpu::Cpu;
use super::end::{Exit, say};
use super::limits::Budget;
use super::wasi::{self, ComponentState, Context};

/// Most connections at a time; others wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 256;
/// Most instances at a time; other requests wait.
const INSTANCES_MAX: u32 = 32;
/// How long a request waits for its turn.
const TURN_WAIT_MAX: Duration = Duration::from_secs(30);
/// How long a client may take for the head of a request, and between two requests.
const HEAD_WAIT_MAX: Duration = Duration::from_secs(30);
/// Most bytes of the head of a request.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// Most header fields of a request.
const HEADERS_MAX: usize = 128;
/// How long an instance may go on once its answer was sent or its client has left.
const TAIL_MAX: Duration = Duration::from_secs(30);
/// Pause after a connection could not be taken: there are no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

type Answer = Response<HyperOutgoingBody>;

/// Listens on every address of the pod.
///
/// # Errors
///
/// A sentence; most likely another container of the pod has the port.
pub(super) fn listen(port: u16) -> Result<std::net::TcpListener, String> {
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        io::Result::Ok(listener)
    };
    listen().map_err(|err| {
        format!(
            "cannot listen on port {port}, the container's first containerPort \
             (8080 where it has none): {err}"
        )
    })
}

/// The guest, linked, and its port.
pub(super) struct Server {
    listener: std::net::TcpListener,
    guest: Arc<Guest>,
}

struct Guest {
    proxy: ProxyPre<ComponentState>,
    context: Context,
    budget: Budget,
    cpu: Cpu,
    turns: Arc<Semaphore>,
}

impl Server {
    /// # Errors
    ///
    /// The component imports what there is not, or answers no requests.
    pub(super) fn new(
        engine: &Engine,
        component: &Component,
        listener: std::net::TcpListener,
        context: Context,
        budget: Budget,
        cpu: Cpu,
    ) -> wasmtime::Result<Self> {
        let linker = wasi::link(engine)?;
        let proxy = ProxyPre::new(linker.instantiate_pre(component)?)?;
        let turns = Arc::new(Semaphore::new(INSTANCES_MAX as usize));
        Ok(Self { listener, guest: Arc::new(Guest { proxy, context, budget, cpu, turns }) })
    }

    /// Answers requests until SIGTERM, and then those that have begun.
    pub(super) async fn serve(self, mut stop: Signal) -> Exit {
        let Self { listener, guest } = self;
        let listener = TcpListener::from_std(listener).expect("the runtime takes a listener");
        let (drain, draining) = watch::channel(false);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                _ = stop.recv() => break,
                Some(_) = connections.join_next() => {}
                accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                    match accepted {
                        Ok((stream, _)) => {
                            let (guest, draining) = (Arc::clone(&guest), draining.clone());
                            connections.spawn(serve_connection(guest, stream, draining));
                        }
                        Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
                    }
                }
            }
        }
        drop(listener);
        drain.send_replace(true);
        while connections.join_next().await.is_some() {}
        // Instances that go on after their answer.
        let _ = guest.turns.acquire_many(INSTANCES_MAX).await;
        Exit::with(0)
    }
}

async fn serve_connection(
    guest: Arc<Guest>,
    stream: TcpStream,
    mut draining: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let guest = Arc::clone(&guest);
        async move { Ok::<_, Infallible>(guest.answer(request).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_WAIT_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let drain = async move {
        let _ = draining.wait_for(|draining| *draining).await;
    };
    // What a client did wrong it was told; the log is the guest's.
    tokio::select! {
        _ = connection.as_mut() => {}
        () = drain => {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

impl Guest {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> Answer {
        if request.uri().authority().is_none() && !request.headers().contains_key(HOST) {
            return text(StatusCode::BAD_REQUEST, "the request names no host");
        }
        let turn = tokio::time::timeout(TURN_WAIT_MAX, Arc::clone(&self.turns).acquire_owned());
        let Ok(Ok(turn)) = turn.await else { return busy() };
        let what = format!("{} {}", request.method(), request.uri().path());
        let (sender, receiver) = oneshot::channel();
        let task = tokio::spawn(Arc::clone(self).run(request, sender, turn));
        // Dropped with this future, when the client leaves.
        let mut instance = Instance { task: Some(task), tail: Duration::ZERO };
        match receiver.await {
            Ok(Ok(answer)) => {
                instance.tail = TAIL_MAX;
                // Kept until the body is sent, or nobody wants it any more.
                answer.map(|body| {
                    body.map_frame(move |frame| {
                        let _ = &instance;
                        frame
                    })
                    .boxed_unsync()
                })
            }
            Ok(Err(code)) => {
                say(&format!("{what}: the guest answered with an error: {code:?}"));
                text(StatusCode::BAD_GATEWAY, "the guest answered with an error")
            }
            Err(_) => {
                let task = instance.task.take().expect("it is taken here only");
                match task.await {
                    Ok(Err(Failure { message, out_of_memory })) => {
                        say(&format!("{what}: the guest ended: {message}"));
                        if out_of_memory {
                            return busy();
                        }
                    }
                    Ok(Ok(())) => say(&format!("{what}: the guest ended without an answer")),
                    Err(err) => say(&format!("{what}: the guest was ended: {err}")),
                }
                text(StatusCode::INTERNAL_SERVER_ERROR, "the guest ended without an answer")
            }
        }
    }

    /// Runs one instance to its end.
    async fn run(
        self: Arc<Self>,
        request: Request<Incoming>,
        sender: oneshot::Sender<Result<Answer, ErrorCode>>,
        _turn: OwnedSemaphorePermit,
    ) -> Result<(), Failure> {
        let failure =
            |err: wasmtime::Error| Failure { message: format!("{err:#}"), out_of_memory: false };
        let wasi = self.context.build().map_err(failure)?.build();
        let mut store = Store::new(self.proxy.engine(), ComponentState::new(wasi, &self.budget));
        store.limiter(|state| &mut state.limits);
        self.cpu.apply(&mut store);
        let result = async {
            let mut http = store.data_mut().http();
            let request = http.new_incoming_request(Scheme::Http, request)?;
            let out = http.new_response_outparam(sender)?;
            let proxy = self.proxy.instantiate_async(&mut store).await?;
            proxy.wasi_http_incoming_handler().call_handle(&mut store, request, out).await
        };
        let result = result.await;
        result.map_err(|err| Failure {
            message: format!("{err:#}"),
            out_of_memory: store.data().limits.reached().is_some(),
        })
    }
}

/// Why an instance ended before its time.
struct Failure {
    message: String,
    out_of_memory: bool,
}

/// An instance at work. Dropped, it has `tail` to come to its end.
struct Instance {
    task: Option<JoinHandle<Result<(), Failure>>>,
    tail: Duration,
}

impl Drop for Instance {
    fn drop(&mut self) {
        let Some(mut task) = self.task.take() else { return };
        if self.tail.is_zero() {
            task.abort();
            return;
        }
        if task.is_finished() {
            return;
        }
        let tail = self.tail;
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if tokio::time::timeout(tail, &mut task).await.is_err() {
                    task.abort();
                }
            });
        }
    }
}

fn busy() -> Answer {
    let mut answer = text(StatusCode::SERVICE_UNAVAILABLE, "too much to do at the moment");
    answer.headers_mut().insert(RETRY_AFTER, hyper::header::HeaderValue::from_static("1"));
    answer
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let body = Full::new(Bytes::from(format!("{text}\n")));
    let mut answer = Response::new(body.map_err(|never| match never {}).boxed_unsync());
    *answer.status_mut() = status;
    let plain = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(CONTENT_TYPE, plain);
    answer
}
