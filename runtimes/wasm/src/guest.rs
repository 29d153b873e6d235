//! The process of one guest.
//!
//! ```text
//! root      verify and map the code ► enter the pod ► listen, if it serves HTTP
//! nobody    drop everything ► link ► "started" ► run the guest ► exit with its code
//! ```
//!
//! The guest has one thread. SIGTERM ends a program wherever it is: while it
//! waits, through the runtime; while it computes, through wasmtime's epoch,
//! which the signal's handler advances. An HTTP server answers what it has
//! begun and then ends.

mod command;
mod cpu;
mod end;
mod http;
mod limits;
mod wasi;

use std::fs;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::time::Duration;

use runtime::{ContainerSpec, LaunchError, Workload, World, reason};
use tokio::signal::unix::{SignalKind, signal};
use wasmtime::Engine;
use wasmtime::Module;
use wasmtime::component::Component;

use crate::artifact::{self, ArtifactError};
use crate::confine::NOBODY;
use crate::{confine, engine};
use command::Program;
use cpu::Cpu;
pub(crate) use end::OOM_FILE;
use end::{End, Exit};
use limits::Budget;

/// Threads for file operations and name lookups; a guest does one thing at a time.
const FILE_THREADS_MAX: usize = 2;
/// How long such a thread waits for more work.
const FILE_THREAD_IDLE: Duration = Duration::from_secs(1);
/// Stack of such a thread; looking up a name takes the most.
const FILE_THREAD_STACK_BYTES: usize = 256 << 10;
/// How many tasks are run between two looks at sockets, timers and signals. A
/// task that computes keeps the thread for 10 ms, see [`cpu`].
const EVENT_INTERVAL: u32 = 2;

/// What the guest process tells its shim: nothing where it started, else why not.
pub(crate) type Report = Result<(), LaunchError>;

/// All of the child's life, from the fork to its end. `pipes` are where to
/// report, and where "go" comes from once the process is in its cgroup.
pub(crate) fn main(
    spec: &ContainerSpec,
    dir: &Path,
    target: &str,
    throttled: bool,
    pipes: io::Result<(PipeWriter, PipeReader)>,
) -> ! {
    // A panic must not unwind into the shim whose fork this is.
    let code = std::panic::catch_unwind(AssertUnwindSafe(|| {
        let Ok((mut report, go)) = pipes else { return 1 };
        let ready = prepare(spec, dir, target, throttled).and_then(|ready| {
            // In its cgroup it is found, also by another shim.
            wait_for_go(go).map_err(|err| failure(reason::CREATE_CONTAINER_ERROR, err))?;
            Ok(ready)
        });
        let result = ready.as_ref().map(|_| ()).map_err(Clone::clone);
        let line = serde_json::to_vec(&result).expect("a report is plain data");
        // Where the shim is gone nobody is left to tell.
        let _ = report.write_all(&line);
        drop(report);
        match ready {
            Ok(ready) => ready.run(),
            Err(_) => 1,
        }
    }));
    // Not `ExitCode`: the guest's code is an `i32`, and the shim takes its low byte.
    std::process::exit(code.unwrap_or(end::EXIT_TRAPPED))
}

fn wait_for_go(mut go: PipeReader) -> io::Result<()> {
    go.read_exact(&mut [0])
}

/// A guest that is ready to run, in a process that can do nothing else any more.
struct Ready {
    runtime: tokio::runtime::Runtime,
    work: Work,
    end: End,
}

enum Work {
    Program(Program),
    Server(http::Server),
}

/// Compiled code, mapped.
enum Code {
    Module(Module),
    Component(Component),
}

fn failure(reason: &str, message: impl std::fmt::Display) -> LaunchError {
    LaunchError::new(reason, message.to_string())
}

fn prepare(
    spec: &ContainerSpec,
    dir: &Path,
    target: &str,
    throttled: bool,
) -> Result<Ready, LaunchError> {
    let create = |err: &dyn std::fmt::Display| failure(reason::CREATE_CONTAINER_ERROR, err);
    let wasm = |err: wasmtime::Error| create(&format!("{err:#}"));
    let (uid, gid) = user(spec)?;
    let mut end =
        End::open(dir).map_err(|err| create(&format!("cannot make {OOM_FILE}: {err}")))?;
    // Lowering it takes CAP_SYS_RESOURCE, which not every service manager leaves.
    let _ = fs::write("/proc/self/oom_score_adj", spec.resources.oom_score_adj.to_string());

    let config = engine::node_config(target).map_err(wasm)?;
    let engine = Engine::new(&config).map_err(wasm)?;
    let code = map(&engine, spec, target)?;
    let Workload::Wasm { signature, http_port, .. } = &spec.workload else {
        return Err(create(&"not a WASM container"));
    };
    confine::enter(spec, &dir.join("root")).map_err(|err| create(&err))?;
    end.open_inside();
    // While root, so that it may be below 1024.
    let listener = match signature.world {
        World::Command => None,
        World::Http => Some(http::listen(*http_port).map_err(|err| start(&err))?),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .event_interval(EVENT_INTERVAL)
        .max_blocking_threads(FILE_THREADS_MAX)
        .thread_keep_alive(FILE_THREAD_IDLE)
        .thread_stack_size(FILE_THREAD_STACK_BYTES)
        .build()
        .map_err(|err| create(&err))?;
    let limit_millis = if throttled { spec.resources.cpu_limit_millis } else { 0 };
    let cpu = Cpu::new(&engine, limit_millis, listener.is_some()).map_err(|err| create(&err))?;
    let budget = Budget::new(spec.resources.memory_limit_bytes);
    let context = wasi::Context::new(spec);
    let program = match listener {
        // Opened while root: a volume's folder may be closed to the guest's user.
        None => Some(context.build().map_err(wasm)?),
        Some(_) => None,
    };
    confine::drop_privileges(uid, gid, &spec.user.groups, context.writable())
        .map_err(|err| create(&err))?;

    let start_error = |err: wasmtime::Error| start(&format!("{err:#}"));
    let work = match (code, listener, program) {
        (Code::Component(component), Some(listener), _) => Work::Server(
            http::Server::new(&engine, &component, listener, context, budget, cpu)
                .map_err(start_error)?,
        ),
        (Code::Module(module), None, Some(wasi)) => Work::Program(
            Program::module(&engine, &module, wasi, budget, cpu).map_err(start_error)?,
        ),
        (Code::Component(component), None, Some(wasi)) => Work::Program(
            Program::component(&engine, &component, wasi, budget, cpu).map_err(start_error)?,
        ),
        _ => return Err(create(&"the artifact is of another kind than it was signed as")),
    };
    Ok(Ready { runtime, work, end })
}

fn start(err: &dyn std::fmt::Display) -> LaunchError {
    failure(reason::START_ERROR, err)
}

/// Who the guest runs as. A WASM image has no users, so a name means nothing.
fn user(spec: &ContainerSpec) -> Result<(u32, u32), LaunchError> {
    let uid = spec.user.uid.unwrap_or(NOBODY);
    let gid = spec.user.gid.unwrap_or(uid);
    if spec.user.non_root && uid == 0 {
        return Err(failure(
            reason::CREATE_CONTAINER_CONFIG_ERROR,
            "container's runAsUser breaks non-root policy",
        ));
    }
    Ok((uid, gid))
}

/// Verifies the compiled code and maps it.
#[allow(unsafe_code)]
fn map(engine: &Engine, spec: &ContainerSpec, target: &str) -> Result<Code, LaunchError> {
    let create = |err: &dyn std::fmt::Display| failure(reason::CREATE_CONTAINER_ERROR, err);
    let Workload::Wasm { artifact: path, sha256, signature, key, .. } = &spec.workload else {
        return Err(create(&"not a WASM container"));
    };
    let file = artifact::open_verified(path, *sha256, signature, key, target).map_err(|err| {
        if matches!(err, ArtifactError::Damaged { .. }) {
            // Nothing can be made of it; without it, the agent fetches it anew.
            let _ = fs::remove_file(path);
        }
        create(&err)
    })?;
    // By its descriptor, so that what is mapped is what was verified.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let invalid = |err: wasmtime::Error| create(&format!("{err:#}"));
    let kind = Engine::detect_precompiled_file(&path).unwrap_or(None);
    match kind {
        Some(wasmtime::Precompiled::Module) => {
            // SAFETY: these bytes are what the master compiled and signed, as just
            // verified; only root can write the file, and never does so in place.
            let module = unsafe { Module::deserialize_file(engine, &path) };
            module.map(Code::Module).map_err(invalid)
        }
        Some(wasmtime::Precompiled::Component) => {
            // SAFETY: as above.
            let component = unsafe { Component::deserialize_file(engine, &path) };
            component.map(Code::Component).map_err(invalid)
        }
        None => Err(create(&"the artifact is not compiled code")),
    }
}

impl Ready {
    /// Runs the guest to its end, or to SIGTERM; returns the exit code.
    fn run(self) -> i32 {
        let Self { runtime, work, mut end } = self;
        let exit = runtime.block_on(async {
            let mut stop = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
            match work {
                Work::Server(server) => server.serve(stop).await,
                Work::Program(program) => tokio::select! {
                    biased;
                    _ = stop.recv() => Exit::stopped(),
                    exit = program.run() => exit,
                },
            }
        });
        // What it waits for is over.
        runtime.shutdown_background();
        end.write(&exit);
        exit.code
    }
}
