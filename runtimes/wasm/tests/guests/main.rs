//! Real guests, compiled, signed and run behind real shims, as root, in
//! namespaces of their own.
//!
//! This program is its own shim (`… shim DIR`) and its own compiler
//! (`… compile TARGET`), so it has no libtest harness: `main` runs the tests one
//! after the other, those whose name holds the first argument.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]

mod node;
/// Tests by name, for the runner.
macro_rules! tests {
    ($($name:ident,)*) => {
        pub(crate) fn tests() -> Vec<(&'static str, $crate::node::Test)> {
            vec![$((stringify!($name), |node| Box::pin($name(node)))),*]
        }
    };
}
mod basics;
mod bench;
mod compiler;
mod files;
mod hostile;
mod http;
mod network;

use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use pinnace_wasm::WasmLauncher;
use runtime::exec::Entered;
use runtime::{ContainerSpec, LaunchError, Launcher, Pid};

use node::{Guests, Node};

/// Far beyond what anything here takes on a loaded machine.
const DEADLINE: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("shim") => return shim(&args[2], WasmLauncher::default()),
        Some("shim-pulley") => return shim(&args[2], WasmLauncher::for_target("pulley64")),
        Some("shim-throttled") => return shim(&args[2], WasmLauncher::default().throttled()),
        Some("compile") => return pinnace_wasm::compile::child::compile_main(&args[2]),
        Some("shim-plain") => return runtime::shim_main(Path::new(&args[2]), |_| Box::new(Plain)),
        Some("nothing") => return ExitCode::SUCCESS,
        // What a broken compiler might do.
        Some("hang") => std::thread::park(),
        Some("fail") => return ExitCode::FAILURE,
        _ => {}
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: guests are confined by root");
        return ExitCode::SUCCESS;
    }
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)
        .unwrap();
    let guests = Guests::build();
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if args.get(1).is_some_and(|first| first == "bench") {
        let n_rounds = args.get(2).map_or(20, |n| n.parse().expect("a number of rounds"));
        executor.block_on(bench::measure(&Node::new(&guests), n_rounds));
        return ExitCode::SUCCESS;
    }
    let filter = args.iter().skip(1).find(|arg| !arg.starts_with('-'));
    let mut n_passed = 0;
    let mut failed = Vec::new();
    let tests = [
        basics::tests(),
        files::tests(),
        network::tests(),
        http::tests(),
        hostile::tests(),
        compiler::tests(),
    ];
    for (name, test) in tests.into_iter().flatten() {
        if filter.is_some_and(|filter| !name.contains(filter.as_str())) {
            continue;
        }
        print!("test {name} ... ");
        let _ = std::io::stdout().flush();
        let node = Node::new(&guests);
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            executor.block_on(async {
                tokio::time::timeout(DEADLINE, test(&node)).await.expect("in time");
            });
        }));
        println!("{}", if result.is_ok() { "ok" } else { "FAILED" });
        match result {
            Ok(()) => n_passed += 1,
            Err(_) => failed.push(name),
        }
    }
    println!("\n{n_passed} passed, {} failed {failed:?}", failed.len());
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn shim(dir: &str, launcher: WasmLauncher) -> ExitCode {
    runtime::shim_main(Path::new(dir), |_| Box::new(launcher.clone()))
}

/// Starts a command that waits: what a shim costs without WASM.
struct Plain;

impl Launcher for Plain {
    fn launch(
        &self,
        _: &ContainerSpec,
        _: &Path,
        out: OwnedFd,
        err: OwnedFd,
    ) -> Result<Entered, LaunchError> {
        let child = Command::new("/bin/sleep").arg("1000").stdout(out).stderr(err).spawn();
        Ok(Pid(i32::try_from(child.unwrap().id()).unwrap()).into())
    }
}
