//! Compiles in a process of its own: a module that makes the compiler take all
//! memory, run for ever or misbehave costs that process and nothing else.
//!
//! ```text
//! master ──► module ──► child, confined ──► code
//! ```
//!
//! | byte | of the child's answer |
//! | --- | --- |
//! | 0 | `C` for a program, `H` for an HTTP server, `E` for an error |
//! | 1… | the code, or the error's text |

use std::ffi::OsString;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;
use wire::artifact::WorldV1;

use super::{CompileError, Compiled, MODULE_BYTES_MAX, check, compile};
use crate::confine::confine_compiler;

/// Most addresses the compiler may take. A module of 3 MB takes 300 MB.
const MEMORY_BYTES_MAX: u64 = 2 << 30;
/// Most CPU time, in seconds, of all threads.
const CPU_SECONDS_MAX: u64 = 240;
/// Most time on a clock.
const TIME_MAX: Duration = Duration::from_secs(300);
/// Most threads: memory is what bounds them.
const THREADS_MAX: usize = 4;
/// Most compiled bytes: what a node takes.
const CODE_BYTES_MAX: u64 = 512 << 20;
/// Most bytes of an error's text.
const ERROR_BYTES_MAX: usize = 4096;
/// The compiler gives way to the rest of the master.
const NICE: i32 = 10;

const PROGRAM: u8 = b'C';
const SERVER: u8 = b'H';
const ERROR: u8 = b'E';

/// Starts compilers: `program args… TARGET`, which is to call [`compile_main`].
#[derive(Clone, Debug)]
pub struct Compiler {
    program: PathBuf,
    args: Vec<OsString>,
    time_max: Duration,
}

impl Compiler {
    /// Compilers that are `program args… TARGET`.
    #[must_use]
    pub fn new(program: PathBuf, args: Vec<OsString>) -> Self {
        Self { program, args, time_max: TIME_MAX }
    }

    /// The same with less time than the usual five minutes.
    #[must_use]
    pub fn with_time(self, time_max: Duration) -> Self {
        Self { time_max, ..self }
    }

    /// Compiles `module` for `target`, one of [`crate::engine::TARGETS`].
    ///
    /// # Errors
    ///
    /// Where it is not a portable module that nodes can run, or takes too much.
    pub async fn compile(&self, module: &[u8], target: &str) -> Result<Compiled, CompileError> {
        check(module, target)?;
        let failed = |err: std::io::Error| CompileError::TooMuch(format!("failed: {err}"));
        let n_threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut child = Command::new(&self.program)
            .args(&self.args)
            .arg(target)
            .env_clear()
            .env("RAYON_NUM_THREADS", n_threads.min(THREADS_MAX).to_string())
            .env("MALLOC_ARENA_MAX", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let mut stdin = child.stdin.take().expect("it is a pipe");
        let stdout = child.stdout.take().expect("it is a pipe");
        let work = async {
            // A child that is gone already says why by how it ended.
            let _ = stdin.write_all(module).await;
            drop(stdin);
            let mut answer = Vec::new();
            stdout.take(CODE_BYTES_MAX + 1).read_to_end(&mut answer).await?;
            Ok((answer, child.wait().await?))
        };
        let (mut answer, status) = match tokio::time::timeout(self.time_max, work).await {
            Ok(result) => result.map_err(failed)?,
            Err(_) => {
                let seconds = self.time_max.as_secs_f32();
                return Err(CompileError::TooMuch(format!("took more than {seconds} s")));
            }
        };
        if !status.success() {
            return Err(CompileError::TooMuch(format!(
                "took more than {} GiB of memory or {CPU_SECONDS_MAX} s of CPU time, or failed \
                 ({status})",
                MEMORY_BYTES_MAX >> 30
            )));
        }
        if CODE_BYTES_MAX < answer.len() as u64 {
            return Err(CompileError::TooMuch(format!(
                "gave more than {} MiB of code",
                CODE_BYTES_MAX >> 20
            )));
        }
        let world = match answer.first() {
            Some(&PROGRAM) => WorldV1::Command,
            Some(&SERVER) => WorldV1::Http,
            Some(&ERROR) => {
                return Err(CompileError::Said(String::from_utf8_lossy(&answer[1..]).into_owned()));
            }
            _ => return Err(CompileError::TooMuch("gave no answer".to_owned())),
        };
        answer.remove(0);
        Ok(Compiled { code: answer, world })
    }
}

/// The compiler's process: all of it, from the master's hidden subcommand on.
#[must_use]
pub fn compile_main(target: &str) -> ExitCode {
    let _ = rustix::process::nice(NICE);
    let mut module = Vec::new();
    let most = MODULE_BYTES_MAX as u64 + 1;
    if std::io::stdin().take(most).read_to_end(&mut module).is_err() {
        return ExitCode::FAILURE;
    }
    // Nothing of the module has been looked at yet.
    let result = match confine_compiler(MEMORY_BYTES_MAX, CPU_SECONDS_MAX) {
        Ok(()) => compile(&module, target).map_err(|err| err.to_string()),
        Err(err) => Err(format!("the compiler cannot be confined: {err}")),
    };
    let mut out = std::io::stdout().lock();
    let written = match result {
        Ok(Compiled { code, world }) => {
            let first = if world == WorldV1::Http { SERVER } else { PROGRAM };
            out.write_all(&[first]).and_then(|()| out.write_all(&code))
        }
        Err(mut text) => {
            let end = (0..=ERROR_BYTES_MAX.min(text.len())).rev();
            text.truncate(end.into_iter().find(|at| text.is_char_boundary(*at)).unwrap_or(0));
            out.write_all(&[ERROR]).and_then(|()| out.write_all(text.as_bytes()))
        }
    };
    match written.and_then(|()| out.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
