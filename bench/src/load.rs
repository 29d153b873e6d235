//! Pods as far as load goes: servers and clients as threads of this program, each in
//! the network namespace of its pod, all on processor 0. Knows nothing of who is
//! between them.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::world::Host;

/// Takes all bytes, then says a byte.
pub(crate) const SINK: u16 = 8001;
/// Gives back what it gets, until the client has enough.
pub(crate) const ECHO: u16 = 8002;
/// Answers one request, and closes.
pub(crate) const ONCE: u16 = 8003;
/// Takes a request, and keeps the connection.
pub(crate) const HOLD: u16 = 8004;
/// Says a byte by which it is known, and closes.
pub(crate) const WHO: u16 = 8005;
/// All of them.
pub(crate) const PORTS: [u16; 5] = [SINK, ECHO, ONCE, HOLD, WHO];

/// Bytes of a small request, and of its answer.
pub(crate) const REQUEST: usize = 64;
/// Clients that connect at a time.
pub(crate) const CLIENTS: usize = 16;
/// The processor of clients and servers.
const PROCESSOR: usize = 0;
const PIECE: usize = 64 << 10;
/// Nothing takes this long that is right.
const PATIENCE: Duration = Duration::from_secs(30);

/// Lets this program have as many connections as it may.
pub(crate) fn raise_limits() -> anyhow::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("RLIMIT_NOFILE")
}

/// Works in the namespace, on the processor of clients and servers.
fn within<T: Send + 'static>(
    host: &Host,
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> thread::JoinHandle<anyhow::Result<T>> {
    let host = host.clone();
    thread::spawn(move || {
        host.enter()?;
        let mut processors = CpuSet::new();
        processors.set(PROCESSOR)?;
        sched_setaffinity(Pid::from_raw(0), &processors)?;
        work()
    })
}

fn joined<T>(thread: thread::JoinHandle<anyhow::Result<T>>) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow!("a thread of the load panicked"))?
}

/// What listens in a pod, for as long as this program runs.
#[derive(Debug)]
pub(crate) struct Server {
    held: Arc<Mutex<Vec<TcpStream>>>,
}

impl Server {
    /// Listens on [`PORTS`]; `name` is what [`WHO`] says.
    pub(crate) fn start(host: &Host, name: u8) -> anyhow::Result<Self> {
        let held = Arc::<Mutex<Vec<TcpStream>>>::default();
        for port in PORTS {
            let listener = joined(within(host, move || {
                TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("port {port}"))
            }))?;
            for _ in 0..CLIENTS {
                let (listener, held) = (listener.try_clone()?, Arc::clone(&held));
                within(host, move || {
                    for stream in listener.incoming() {
                        // A client that goes away is the client's affair: it says so.
                        let _ = stream.and_then(|stream| serve(port, name, stream, &held));
                    }
                    Ok(())
                });
            }
        }
        Ok(Self { held })
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Vec<TcpStream>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens connections that say something and then nothing more; gives them back
    /// when the server has all of them.
    pub(crate) fn hold(
        &self,
        from: &Host,
        to: IpAddr,
        port: u16,
        n: usize,
    ) -> anyhow::Result<Held<'_>> {
        let before = self.held().len();
        let clients = joined(within(from, move || {
            let open = |at| -> anyhow::Result<TcpStream> {
                let mut stream = connect((to, port).into())?;
                stream.write_all(&[7; REQUEST]).with_context(|| format!("connection {at}"))?;
                Ok(stream)
            };
            (0..n).map(open).collect::<anyhow::Result<Vec<_>>>()
        }))?;
        let end = Instant::now() + PATIENCE;
        while self.held().len() < before + n {
            ensure!(Instant::now() < end, "only {} of {n} come through", self.held().len());
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Held { clients, server: self })
    }
}

/// Connections at rest, until this is dropped.
#[derive(Debug)]
pub(crate) struct Held<'a> {
    clients: Vec<TcpStream>,
    server: &'a Server,
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.clients.clear();
        self.server.held().clear();
    }
}

fn serve(
    port: u16,
    name: u8,
    mut stream: TcpStream,
    held: &Mutex<Vec<TcpStream>>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST];
    match port {
        SINK => {
            let mut piece = vec![0; PIECE];
            while stream.read(&mut piece)? > 0 {}
            stream.write_all(&[1])
        }
        ECHO => loop {
            let n = stream.read(&mut request)?;
            if n == 0 {
                return Ok(());
            }
            stream.write_all(&request[..n])?;
        },
        ONCE => {
            stream.read_exact(&mut request)?;
            stream.write_all(&request)
        }
        HOLD => {
            stream.read_exact(&mut request)?;
            held.lock().unwrap_or_else(PoisonError::into_inner).push(stream);
            Ok(())
        }
        _ => stream.write_all(&[name]),
    }
}

fn connect(to: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("to {to}"))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Sends bytes over one connection, until the server has them all.
pub(crate) fn send(from: &Host, to: SocketAddr, n_bytes: usize) -> anyhow::Result<Duration> {
    joined(within(from, move || {
        let begun = Instant::now();
        let mut stream = connect(to)?;
        let piece = vec![7; PIECE];
        let mut left = n_bytes;
        while left > 0 {
            let n_now = left.min(PIECE);
            stream.write_all(&piece[..n_now])?;
            left -= n_now;
        }
        stream.shutdown(Shutdown::Write)?;
        stream.read_exact(&mut [0]).with_context(|| format!("{to} does not say it has all"))?;
        Ok(begun.elapsed())
    }))
}

/// Small requests one after the other over one connection; each one's time.
pub(crate) fn ask(from: &Host, to: SocketAddr, n: usize) -> anyhow::Result<Vec<Duration>> {
    joined(within(from, move || {
        let mut stream = connect(to)?;
        let mut answer = [0; REQUEST];
        let mut once = || -> anyhow::Result<Duration> {
            let begun = Instant::now();
            stream.write_all(&[7; REQUEST])?;
            stream.read_exact(&mut answer)?;
            Ok(begun.elapsed())
        };
        // What the first ones find out is not what is measured.
        for _ in 0..n / 10 {
            once()?;
        }
        (0..n).map(|_| once()).collect()
    }))
}

/// New connections with a request each, [`CLIENTS`] at a time; the time for all.
pub(crate) fn reconnect(from: &Host, to: SocketAddr, n: usize) -> anyhow::Result<Duration> {
    let begun = Instant::now();
    let client = move || {
        for _ in 0..n / CLIENTS {
            let mut stream = connect(to)?;
            stream.write_all(&[7; REQUEST])?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer)?;
            ensure!(answer.len() == REQUEST, "{to} answers {} bytes", answer.len());
        }
        Ok(())
    };
    let clients: Vec<_> = (0..CLIENTS).map(|_| within(from, client)).collect();
    clients.into_iter().try_for_each(joined)?;
    Ok(begun.elapsed())
}

/// Connects until the server of this name answers; how many others did before.
/// Only refusals are errors.
pub(crate) fn until_served_by(from: &Host, to: SocketAddr, name: u8) -> anyhow::Result<usize> {
    joined(within(from, move || {
        let end = Instant::now() + PATIENCE;
        for n_others in 0.. {
            let mut who = [0];
            connect(to)?.read_exact(&mut who)?;
            if who[0] == name {
                return Ok(n_others);
            }
            ensure!(Instant::now() < end, "{to} is never served by {name}");
        }
        Ok(0)
    }))
}
