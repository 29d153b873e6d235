//! [`OciLauncher`]: from a spec to a running process, in the shim.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libcontainer::container::Container;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use rustix::pipe::PipeFlags;

use runtime::cgroup::Hierarchies;
use runtime::dir::{ContainerDir, is_valid_id};
use runtime::exec::{Admit, Entered};
use runtime::{
    ContainerSpec, ExecRequest, ExecStdio, LaunchError, Launcher, Pid, PidNamespace, Seccomp,
    Workload, reason,
};

use crate::executor::{Confined, Failure};
use crate::rootfs::{self, PrivateMounts};
use crate::{capabilities, config, devices, exec, executor, propagate, seccomp, user};

/// Starts OCI containers. For the shim only: the process must have one thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct OciLauncher;

impl Launcher for OciLauncher {
    fn launch(
        &self,
        spec: &ContainerSpec,
        dir: &Path,
        out: OwnedFd,
        err: OwnedFd,
    ) -> Result<Entered, LaunchError> {
        let Workload::Oci { layers, scratch } = &spec.workload else {
            return Err(failed(spec, "it is not an OCI image"));
        };
        check_sandbox(spec)?;
        let beside = processes_of(spec, dir)?;
        let (wanted, filter) = confinement(spec)?;
        let nodes = nodes(spec)?;
        // From the host's mounts, so before they are left.
        let trees = propagate::take(spec).map_err(|e| failed(spec, e))?;
        let hierarchies = Hierarchies::detect().map_err(|e| failed(spec, format!("/proc: {e}")))?;

        let mounts = PrivateMounts::enter()
            .map_err(|e| failed(spec, format!("cannot make a mount namespace: {e}")))?;
        let root = rootfs::mount(layers, scratch).map_err(|e| failed(spec, e))?;
        let ids = user::resolve(
            spec,
            &rootfs::read_text(&root, "etc/passwd"),
            &rootfs::read_text(&root, "etc/group"),
        )?;
        rootfs::make_folder(&root, &spec.cwd).map_err(|e| {
            failed(spec, format!("workingDir {:?} cannot be made in the image: {e}", spec.cwd))
        })?;
        let mut given = wanted.clone();
        given.extend(executor::NEEDED);
        let facts = config::Facts {
            rootfs: &root,
            ids: &ids,
            capabilities: &given,
            unified_cgroups: hierarchies.unified_root().is_some(),
            devices: &nodes,
            processes: beside.as_ref().map(|fd| format!("/proc/self/fd/{}", fd.as_raw_fd())),
        };
        let bundle = write_bundle(spec, dir, &facts)?;

        // Limits before anything of the container runs; libcontainer only joins.
        hierarchies
            .create(&spec.cgroup, &spec.resources)
            .map_err(|e| failed(spec, format!("cannot set its limits: {e}")))?;
        // Inherited by the container. Lowering it may need a capability that the
        // agent lacks; then the kernel's default stands.
        let _ = fs::write("/proc/self/oom_score_adj", spec.resources.oom_score_adj.to_string());

        let (report, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)
            .map_err(|e| failed(spec, format!("cannot make a pipe: {e}")))?;
        let (console, theirs_of_console) = if spec.stdio.tty {
            let (ours, theirs) = exec::console(spec)?;
            (Some(ours), Some(Arc::new(theirs)))
        } else {
            (None, None)
        };
        let confined = Confined {
            filter: filter.map(Arc::new),
            no_new_privileges: spec.security.no_new_privileges,
            capabilities: wanted,
            report: Arc::new(theirs),
            console: theirs_of_console,
        };
        let mut container = create(spec, dir, &bundle, confined, out, err)
            .map_err(|error| failed(spec, chain(&error)))?;
        let pid = container.pid().ok_or_else(|| failed(spec, "libcontainer gave no process"))?;
        // libcontainer joins the hierarchies of one version; ours may be mixed.
        hierarchies
            .add(&spec.cgroup, pid.as_raw())
            .map_err(|e| failed(spec, format!("cannot put it into its cgroup: {e}")))?;
        let result = if spec.security.privileged {
            devices::allow_all(&hierarchies, &spec.cgroup)
        } else {
            let mut rules = devices::DEFAULT.to_vec();
            rules.extend(nodes.iter().map(devices::Node::rule));
            devices::enforce(&hierarchies, &spec.cgroup, &rules).map(drop)
        };
        result.map_err(|e| failed(spec, format!("cannot set its device rules: {e}")))?;
        propagate::put(&trees, pid.as_raw(), spec.security.privileged)
            .map_err(|e| failed(spec, format!("cannot put its volumes in place: {e}")))?;
        // Back among the host's mounts, where the folder is.
        drop(mounts);
        ContainerDir::new(dir)
            .begin()
            .map_err(|e| failed(spec, format!("cannot write its folder: {e}")))?;
        container.start().map_err(|error| failed(spec, chain(&error)))?;
        match Failure::read(fs::File::from(report)) {
            None => {
                let terminal = console.map(|console| exec::receive(&console)).transpose();
                let terminal = terminal
                    .map_err(|e| failed(spec, format!("it has no terminal to give: {e}")))?;
                Ok(Entered { pid: Pid(pid.as_raw()), terminal })
            }
            Some(failure) => Err(start_error(spec, &failure)),
        }
    }

    fn exec(
        &self,
        spec: &ContainerSpec,
        dir: &Path,
        inside: Pid,
        request: &ExecRequest,
        stdio: ExecStdio,
        admit: Admit<'_>,
    ) -> Result<Entered, LaunchError> {
        exec::enter(spec, dir, inside, request, stdio, admit)
    }
}

/// What confines everything that runs in the container, its first process and
/// the commands run later alike: capabilities, and the filter if it has one.
pub(crate) fn confinement(
    spec: &ContainerSpec,
) -> Result<(capabilities::Set, Option<seccomp::Program>), LaunchError> {
    let security = &spec.security;
    let available = capabilities::available();
    if security.privileged {
        return Ok((available, None));
    }
    let wanted =
        capabilities::resolve(&security.capabilities_add, &security.capabilities_drop, &available)?;
    let filter = match &security.seccomp {
        Seccomp::Default => Some(seccomp::default_filter(&wanted)),
        Seccomp::Unconfined => None,
        Seccomp::File(path) => Some(seccomp::load(path).map_err(|error| {
            failed(spec, format!("cannot load seccomp profile {}: {error}", path.display()))
        })?),
    };
    Ok((wanted, filter))
}

/// The device nodes that the container gets.
fn nodes(spec: &ContainerSpec) -> Result<Vec<devices::Node>, LaunchError> {
    if spec.security.privileged {
        return Ok(devices::all());
    }
    let given = spec.security.devices.iter().map(|path| devices::Node::at(path));
    given
        .collect::<Result<_, _>>()
        .map_err(|e| failed(spec, format!("cannot give it a device: {e}")))
}

/// The pod's namespaces must be there; libcontainer would say it less clearly.
fn check_sandbox(spec: &ContainerSpec) -> Result<(), LaunchError> {
    let sandbox = &spec.sandbox;
    let own = std::path::PathBuf::new();
    let pid = match &sandbox.pid {
        PidNamespace::Pod(path) => path,
        PidNamespace::Own | PidNamespace::Host | PidNamespace::Container(_) => &own,
    };
    let all = [("net", &sandbox.net), ("ipc", &sandbox.ipc), ("uts", &sandbox.uts), ("pid", pid)];
    for (name, path) in all {
        if !path.as_os_str().is_empty() && !path.exists() {
            return Err(LaunchError::new(
                reason::CREATE_POD_SANDBOX_ERROR,
                format!("the pod's {name} namespace {} is gone", path.display()),
            ));
        }
    }
    Ok(())
}

/// The process ids of the container that this one is to see, held open: they stay
/// what they are, whatever becomes of that container meanwhile.
fn processes_of(spec: &ContainerSpec, dir: &Path) -> Result<Option<OwnedFd>, LaunchError> {
    let PidNamespace::Container(id) = &spec.sandbox.pid else { return Ok(None) };
    let beside = dir.parent().filter(|_| is_valid_id(id)).map(|folder| folder.join(id));
    let beside = beside.ok_or_else(|| failed(spec, format!("{id:?} is no container's id")))?;
    let namespace = ContainerDir::new(beside).process_namespace();
    let problem = |e| failed(spec, format!("cannot see the processes of its target {id:?}: {e}"));
    namespace.map(Some).map_err(problem)
}

pub(crate) fn failed(spec: &ContainerSpec, what: impl std::fmt::Display) -> LaunchError {
    LaunchError::new(
        reason::CREATE_CONTAINER_ERROR,
        format!("cannot create container {:?}: {what}", spec.container),
    )
}

/// Writes `state/bundle/config.json`; it may hold secrets.
fn write_bundle(
    spec: &ContainerSpec,
    dir: &Path,
    facts: &config::Facts<'_>,
) -> Result<PathBuf, LaunchError> {
    let runtime_spec = config::runtime_spec(spec, facts)?;
    let bundle = dir.join("state").join("bundle");
    let write = || -> std::io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&bundle)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(bundle.join("config.json"))?;
        file.write_all(runtime_spec.to_string().as_bytes())
    };
    write().map_err(|e| failed(spec, format!("cannot write {}: {e}", bundle.display())))?;
    Ok(bundle)
}

/// Has libcontainer build everything up to the point where the program would start.
fn create(
    spec: &ContainerSpec,
    dir: &Path,
    bundle: &Path,
    confined: Confined,
    out: OwnedFd,
    err: OwnedFd,
) -> Result<Container, libcontainer::error::LibcontainerError> {
    let stdin = runtime::attach::container_stdin(spec, dir)
        .map_err(libcontainer::error::LibcontainerError::OtherIO)?;
    let mut builder = ContainerBuilder::new(spec.id.clone(), SyscallType::default())
        .with_executor(confined)
        .with_root_path(dir.join("state"))?
        .with_stdout(out)
        .with_stderr(err);
    if let Some(stdin) = stdin {
        builder = builder.with_stdin(stdin);
    }
    let container = builder.as_init(bundle).with_systemd(false).with_detach(true).build();
    // It makes its caller undumpable, which would hide /proc/self from it.
    let dumpable = rustix::process::DumpableBehavior::Dumpable;
    let _ = rustix::process::set_dumpable_behavior(dumpable);
    container
}

fn start_error(spec: &ContainerSpec, failure: &Failure) -> LaunchError {
    let command = spec.args.first().map_or("", String::as_str);
    let image = &spec.image;
    let message = match failure {
        Failure::Exec(libc::ENOENT) if command.contains('/') => format!(
            "executable {command:?} or the interpreter it names is not in image {image:?}: \
             check command and args"
        ),
        Failure::Exec(libc::ENOENT) => format!(
            "executable {command:?} not found in $PATH of image {image:?}: check command and args"
        ),
        Failure::Exec(libc::EACCES) => {
            format!("executable {command:?} of image {image:?} may not be executed by this user")
        }
        Failure::Exec(libc::ENOEXEC) => format!(
            "executable {command:?} of image {image:?} is not a program for this machine ({}): \
             is the image built for another architecture?",
            std::env::consts::ARCH
        ),
        Failure::Exec(errno) => format!(
            "executable {command:?} of image {image:?} cannot be executed: {}",
            std::io::Error::from_raw_os_error(*errno)
        ),
        Failure::Confine(what) => format!("container {:?} cannot {what}", spec.container),
    };
    LaunchError::new(reason::START_ERROR, message)
}

/// An error with all its causes, each said once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let more = cause.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = cause.source();
    }
    text
}
