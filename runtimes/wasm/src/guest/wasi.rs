//! What a guest sees of the world: arguments, variables, files, the pod's network.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use runtime::ContainerSpec;
use wasmtime::component::ResourceTable;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpHooks, WasiHttpView};

use super::limits::{Budget, Limits};

/// Most open files, sockets, streams, requests and so on of one instance.
const RESOURCES_MAX: usize = 4096;
/// Most bytes of the headers of a request or an answer, as they are in memory.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Most bytes of a body that are held at a time, for each direction.
const BODY_CHUNK_BYTES: usize = 64 << 10;

/// What every instance of a guest is given.
#[derive(Debug)]
pub(super) struct Context {
    args: Vec<String>,
    env: Vec<(String, String)>,
    cwd: String,
    /// Whether there is input: else it is at its end from the start.
    stdin: bool,
    /// The folders and files the guest may change, by their path in its root.
    writable: Vec<PathBuf>,
}

impl Context {
    /// Of a process that is in the guest's root already.
    pub(super) fn new(spec: &ContainerSpec) -> Self {
        let args =
            if spec.args.is_empty() { vec![spec.container.clone()] } else { spec.args.clone() };
        let writable = spec.mounts.iter().filter(|mount| !mount.read_only);
        Self {
            args,
            env: spec.env.clone(),
            cwd: spec.cwd.clone(),
            stdin: spec.stdio.stdin,
            writable: writable.map(|mount| PathBuf::from(&mount.destination)).collect(),
        }
    }

    /// The folders and files the guest may change.
    pub(super) fn writable(&self) -> &[PathBuf] {
        &self.writable
    }

    /// The root read-only, and in it the folders that may be written.
    ///
    /// # Errors
    ///
    /// A folder cannot be opened.
    pub(super) fn build<'a>(&'a self) -> wasmtime::Result<WasiCtxBuilder> {
        let mut wasi = WasiCtxBuilder::new();
        // Files are read and written on a thread beside: a guest that waits on its own
        // thread (a preview 1 `sleep` would) could not be stopped.
        wasi.inherit_stdout().inherit_stderr();
        if self.stdin {
            wasi.inherit_stdin();
        }
        wasi.args(&self.args).envs(&self.env);
        // The process is in the pod's network namespace: the pod's network is all there is.
        wasi.inherit_network().allow_ip_name_lookup(true).allow_tcp(true).allow_udp(true);
        open(&mut wasi, Path::new("/"), FsPerms::ReadOnly)?;
        // A file that may be written is found through its folder, where all else is
        // read-only to the kernel.
        let folder = |path: &'a Path| if path.is_dir() { Some(path) } else { path.parent() };
        let folders: BTreeSet<&Path> =
            self.writable.iter().filter_map(|path| folder(path)).collect();
        for path in folders {
            open(&mut wasi, path, FsPerms::ReadWrite)?;
        }
        if !self.cwd.is_empty() {
            wasi.initial_cwd(&self.cwd);
        }
        Ok(wasi)
    }
}

fn open(wasi: &mut WasiCtxBuilder, path: &Path, perms: FsPerms) -> wasmtime::Result<()> {
    let name = path.display().to_string();
    wasi.preopened_dir(path, &name, perms)
        .map_err(|err| err.context(format!("cannot open {name}")))?;
    Ok(())
}

/// The host's side of one instance of a component.
pub(super) struct ComponentState {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    hooks: Hooks,
    table: ResourceTable,
    pub(super) limits: Limits,
}

impl ComponentState {
    pub(super) fn new(wasi: WasiCtx, budget: &Budget) -> Self {
        let mut table = ResourceTable::new();
        table.set_max_capacity(RESOURCES_MAX);
        let mut http = WasiHttpCtx::new();
        http.set_field_size_limit(HEADER_BYTES_MAX);
        Self { wasi, http, hooks: Hooks, table, limits: Limits::new(budget) }
    }
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for ComponentState {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.hooks, table: &mut self.table, ctx: &mut self.http }
    }
}

/// Requests go out as they do by default, through the pod's network.
struct Hooks;

impl WasiHttpHooks for Hooks {
    fn p2_outgoing_body_chunk_size(&mut self) -> usize {
        BODY_CHUNK_BYTES
    }
}

/// Links what a component may import: WASI 0.2 and HTTP requests.
///
/// # Errors
///
/// A name is there twice, which is a bug.
pub(super) fn link(
    engine: &wasmtime::Engine,
) -> wasmtime::Result<wasmtime::component::Linker<ComponentState>> {
    let mut linker = wasmtime::component::Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    wasmtime_wasi_http::p2::add_only_http_to_linker_async(&mut linker)?;
    Ok(linker)
}
