//! The process of one guest.
//!
//! ```text
//! root      read config ► join cgroup ► verify and map the code ► enter the pod
//! nobody    drop everything ► say "started" ► run the guest ► exit with its code
//! ```
//!
//! The guest has one thread. SIGTERM ends the guest wherever it is: while it waits, through
//! the runtime; while it computes, through wasmtime's epoch, which the signal's
//! handler advances.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use runtime::dir::ContainerDir;
use runtime::{ContainerSpec, LaunchError, Workload, reason};
use tokio::signal::unix::{SignalKind, signal};
use wasmtime::component::{Component, Linker as ComponentLinker, ResourceTable};
use wasmtime::{Engine, Linker, Module, ResourceLimiter, Store, Trap};
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, I32Exit, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

use crate::confine::NOBODY;
use crate::{artifact, cgroup, confine, engine};

/// Threads for file operations and name lookups; a guest does one thing at a time.
const FILE_THREADS_MAX: usize = 2;
/// How long such a thread waits for more work.
const FILE_THREAD_IDLE: Duration = Duration::from_secs(1);
/// Stack of such a thread; looking up a name takes the most.
const FILE_THREAD_STACK_BYTES: usize = 256 << 10;

/// Exit code of a guest that was stopped: 128 + SIGTERM.
const EXIT_STOPPED: i32 = 143;
/// Exit code of a guest that reached its memory limit: 128 + SIGKILL, as a process.
const EXIT_OUT_OF_MEMORY: i32 = 137;
/// Exit code of a guest that trapped: 128 + SIGABRT.
const EXIT_TRAPPED: i32 = 134;

/// Name of the file in the container's folder that says the guest ran out of memory.
pub(crate) const OOM_FILE: &str = "oom";

/// What the guest process tells its shim: nothing where it started, else why not.
pub(crate) type Report = Result<(), LaunchError>;

/// Runs the guest of the container folder `dir`: the agent's hidden
/// `wasm-guest DIR`. Standard input is the pipe to the shim.
pub fn guest_main(dir: &Path) -> ExitCode {
    let Ok(pipe) = std::io::stdin().as_fd().try_clone_to_owned() else {
        return ExitCode::FAILURE;
    };
    let mut pipe = File::from(pipe);
    let mut report = |report: Report| {
        let line = serde_json::to_vec(&report).expect("a report is plain data");
        // Where the shim is gone nobody is left to tell.
        let _ = pipe.write_all(&line);
    };
    let ready = match prepare(dir) {
        Ok(ready) => ready,
        Err(failure) => {
            report(Err(failure));
            return ExitCode::FAILURE;
        }
    };
    report(Ok(()));
    drop(pipe);
    let code = ready.run();
    // Not `ExitCode`: the guest's code is an `i32`, and the shim takes its low byte.
    std::process::exit(code)
}

/// A guest that is ready to run, in a process that can do nothing else any more.
struct Ready {
    runtime: tokio::runtime::Runtime,
    engine: Engine,
    code: Code,
    wasi: WasiCtxBuilder,
    limits: Limits,
    oom: File,
}

enum Code {
    Module(Module),
    Component(Component),
}

fn failure(reason: &str, message: impl std::fmt::Display) -> LaunchError {
    LaunchError::new(reason, message.to_string())
}

fn prepare(dir: &Path) -> Result<Ready, LaunchError> {
    let config = ContainerDir::new(dir).spec().map_err(|err| {
        failure(reason::CREATE_CONTAINER_ERROR, format!("cannot read the config: {err}"))
    })?;
    let (uid, gid) = user(&config)?;
    cgroup::join(&config).map_err(|err| failure(reason::CREATE_CONTAINER_ERROR, err))?;
    let oom = File::create(dir.join(OOM_FILE)).map_err(|err| {
        failure(reason::CREATE_CONTAINER_ERROR, format!("cannot make {OOM_FILE}: {err}"))
    })?;

    let engine = Engine::new(&engine::node_config())
        .map_err(|err| failure(reason::CREATE_CONTAINER_ERROR, format!("{err:#}")))?;
    let code = map(&engine, &config)?;
    replace_stdin().map_err(|err| failure(reason::CREATE_CONTAINER_ERROR, err))?;
    confine::enter(&config, &dir.join("root"))
        .map_err(|err| failure(reason::CREATE_CONTAINER_ERROR, err))?;
    let (wasi, writable) = context(&config)
        .map_err(|err| failure(reason::CREATE_CONTAINER_ERROR, format!("{err:#}")))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(FILE_THREADS_MAX)
        .thread_keep_alive(FILE_THREAD_IDLE)
        .thread_stack_size(FILE_THREAD_STACK_BYTES)
        .build()
        .map_err(|err| failure(reason::CREATE_CONTAINER_ERROR, err))?;
    advance_epoch_on_sigterm(&engine);
    confine::drop_privileges(uid, gid, &config.user.groups, &writable)
        .map_err(|err| failure(reason::CREATE_CONTAINER_ERROR, err))?;
    let limits = Limits::new(config.resources.memory_limit_bytes);
    Ok(Ready { runtime, engine, code, wasi, limits, oom })
}

/// Who the guest runs as. A WASM image has no users, so a name means nothing.
fn user(config: &ContainerSpec) -> Result<(u32, u32), LaunchError> {
    let uid = config.user.uid.unwrap_or(NOBODY);
    let gid = config.user.gid.unwrap_or(uid);
    if config.user.non_root && uid == 0 {
        return Err(failure(
            reason::CREATE_CONTAINER_CONFIG_ERROR,
            "container's runAsUser breaks non-root policy",
        ));
    }
    Ok((uid, gid))
}

/// Verifies the compiled code and maps it.
#[allow(unsafe_code)]
fn map(engine: &Engine, config: &ContainerSpec) -> Result<Code, LaunchError> {
    let create = |err: &dyn std::fmt::Display| failure(reason::CREATE_CONTAINER_ERROR, err);
    let Workload::Wasm { artifact: path, sha256, signature, key } = &config.workload else {
        return Err(create(&"not a WASM container"));
    };
    let file =
        artifact::open_verified(path, *sha256, signature, key).map_err(|err| create(&err))?;
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

/// Puts `/dev/null` where the pipe to the shim was.
fn replace_stdin() -> std::io::Result<()> {
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    Ok(())
}

/// What the guest sees: its root read-only, and the mounts it may write.
fn context(config: &ContainerSpec) -> wasmtime::Result<(WasiCtxBuilder, Vec<PathBuf>)> {
    let mut wasi = WasiCtxBuilder::new();
    // Files are read and written on a thread beside: a guest that waits on its own
    // thread (a preview 1 `sleep` would) could not be stopped.
    wasi.inherit_stdout().inherit_stderr();
    if config.args.is_empty() {
        wasi.arg(&config.container);
    }
    wasi.args(&config.args).envs(&config.env);
    // The process is in the pod's network namespace: the pod's network is all there is.
    wasi.inherit_network().allow_ip_name_lookup(true);
    wasi.preopened_dir("/", "/", FsPerms::ReadOnly)?;
    let mut writable = Vec::new();
    for mount in config.mounts.iter().filter(|mount| !mount.read_only) {
        let path = PathBuf::from(&mount.destination);
        if path.is_dir() {
            wasi.preopened_dir(&path, &mount.destination, FsPerms::ReadWrite)?;
            writable.push(path);
        }
    }
    if !config.cwd.is_empty() {
        wasi.initial_cwd(&config.cwd);
    }
    Ok((wasi, writable))
}

/// Makes SIGTERM interrupt a guest that computes and never waits.
#[allow(unsafe_code)]
fn advance_epoch_on_sigterm(engine: &Engine) {
    let engine = engine.clone();
    let action = move || engine.increment_epoch();
    // SAFETY: the action is one atomic addition, which is safe in a signal handler.
    let registered = unsafe { signal_hook_registry::register(libc::SIGTERM, action) };
    registered.expect("SIGTERM can be handled");
}

impl Ready {
    /// Runs the guest to its end, or to SIGTERM; returns the exit code.
    fn run(mut self) -> i32 {
        let oom = self.oom;
        self.runtime.block_on(async {
            let mut stop = signal(SignalKind::terminate()).expect("SIGTERM can be handled");
            let guest = async {
                match self.code {
                    Code::Module(module) => {
                        run_module(&self.engine, &module, &mut self.wasi, self.limits).await
                    }
                    Code::Component(component) => {
                        run_component(&self.engine, &component, &mut self.wasi, self.limits).await
                    }
                }
            };
            tokio::select! {
                biased;
                _ = stop.recv() => EXIT_STOPPED,
                (result, out_of_memory) = guest => exit_code(result, out_of_memory, oom),
            }
        })
    }
}

/// The guest's memory, and whether it asked for more than it may have.
struct Limits {
    memory_bytes_max: usize,
    reached: bool,
}

impl Limits {
    /// `memory_bytes` is 0 for no limit.
    fn new(memory_bytes: u64) -> Self {
        let max = if memory_bytes == 0 { u64::MAX } else { memory_bytes };
        Self { memory_bytes_max: usize::try_from(max).unwrap_or(usize::MAX), reached: false }
    }
}

impl ResourceLimiter for Limits {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if self.memory_bytes_max < desired {
            // A guest that asks for more ends, as a process does whose cgroup is full.
            self.reached = true;
            wasmtime::bail!(
                "memory limit of {} bytes reached: {desired} bytes asked for",
                self.memory_bytes_max
            );
        }
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // 16 bytes an element or less; a million is far beyond real programs.
        Ok(desired <= 1 << 20)
    }
}

type Outcome = wasmtime::Result<Result<(), ()>>;

struct ModuleState {
    wasi: WasiP1Ctx,
    limits: Limits,
}

async fn run_module(
    engine: &Engine,
    module: &Module,
    wasi: &mut WasiCtxBuilder,
    limits: Limits,
) -> (Outcome, bool) {
    let mut store = Store::new(engine, ModuleState { wasi: wasi.build_p1(), limits });
    store.limiter(|state| &mut state.limits);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    let result = async {
        let mut linker = Linker::new(engine);
        wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut ModuleState| {
            &mut state.wasi
        })?;
        let instance = linker.instantiate_async(&mut store, module).await?;
        let start = instance.get_typed_func::<(), ()>(&mut store, "_start")?;
        start.call_async(&mut store, ()).await.map(Ok)
    }
    .await;
    (result, store.data().limits.reached)
}

struct ComponentState {
    wasi: WasiCtx,
    table: ResourceTable,
    limits: Limits,
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

async fn run_component(
    engine: &Engine,
    component: &Component,
    wasi: &mut WasiCtxBuilder,
    limits: Limits,
) -> (Outcome, bool) {
    let state = ComponentState { wasi: wasi.build(), table: ResourceTable::new(), limits };
    let mut store = Store::new(engine, state);
    store.limiter(|state| &mut state.limits);
    store.set_epoch_deadline(1);
    store.epoch_deadline_async_yield_and_update(1);
    let result = async {
        let mut linker = ComponentLinker::new(engine);
        wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
        let command =
            wasmtime_wasi::p2::bindings::Command::instantiate_async(&mut store, component, &linker)
                .await?;
        command.wasi_cli_run().call_run(&mut store).await
    }
    .await;
    (result, store.data().limits.reached)
}

/// The exit code a process would have had, and a last line for the log where
/// the guest did not end by itself.
fn exit_code(result: Outcome, out_of_memory: bool, mut oom: File) -> i32 {
    let err = match result {
        Ok(Ok(())) => return 0,
        Ok(Err(())) => return 1,
        Err(err) => err,
    };
    if let Some(exit) = err.downcast_ref::<I32Exit>() {
        return exit.0;
    }
    // The log is where a user looks; where it cannot be written nothing is lost but it.
    let _ = writeln!(std::io::stderr(), "pinnace: the guest ended: {err:#}");
    if out_of_memory {
        let _ = oom.write_all(b"1");
        EXIT_OUT_OF_MEMORY
    } else if err.downcast_ref::<Trap>().is_some() {
        EXIT_TRAPPED
    } else {
        1
    }
}
