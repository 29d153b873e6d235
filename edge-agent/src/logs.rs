//! The logs of containers on this node, as shims write them and `kubectl logs`
//! asks for them.
//!
//! ```text
//! logs/<namespace>_<pod>_<uid>/<container>/<attempt>.log      the newest lines
//! logs/<namespace>_<pod>_<uid>/<container>/<attempt>.log.1    those before
//!
//! 2026-03-01T12:00:00.123456789Z stdout F a whole line
//! 2026-03-01T12:00:00.123456789Z stderr P the first part of a long line
//! ```
//!
//! Of each container the last two runs are kept, one for `--previous`.

mod read;
mod tail;

use std::fs::{self, DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use wire::command::{LogsV1, StreamEndV1};
use wire::status::StateV1;

use self::read::{Printer, Source};
use crate::id;
use crate::pods::owner::Board;

/// Runs of a container whose logs are kept.
const RUNS_KEPT: usize = 2;

/// Largest frame of a stream, in bytes.
const FRAME_BYTES_MAX: usize = 32 << 10;

/// Channel of log lines.
const CHANNEL_OUT: u8 = 1;
/// Channel of the last frame.
const CHANNEL_END: u8 = 3;

/// How often a log that is followed is looked at.
const FOLLOW_EVERY: std::time::Duration = std::time::Duration::from_millis(200);

/// The log of one run.
#[must_use]
pub fn path(pod_logs: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_logs.join(container).join(format!("{attempt}.log"))
}

/// The runs of a container that have a log, the newest last.
#[must_use]
pub fn attempts(pod_logs: &Path, container: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(pod_logs.join(container)) else { return Vec::new() };
    let mut all: Vec<u32> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".log")?.parse().ok())
        .collect();
    all.sort_unstable();
    all
}

/// Makes a new log and removes those of runs long past.
///
/// The file exists from here on, also where the run never begins: its number is
/// how the node knows after a reboot how often a container was started.
///
/// # Errors
/// It cannot be made.
pub fn prepare(log: &Path) -> io::Result<()> {
    let folder = log.parent().unwrap_or_else(|| Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    OpenOptions::new().append(true).create(true).mode(0o600).open(log)?;
    let (Some(pod_logs), Some(container)) =
        (folder.parent(), folder.file_name().and_then(|name| name.to_str()))
    else {
        return Ok(());
    };
    let mut old = attempts(pod_logs, container);
    old.truncate(old.len().saturating_sub(RUNS_KEPT));
    for attempt in old {
        let path = path(pod_logs, container, attempt);
        for path in [path.with_extension("log.1"), path] {
            crate::durable::remove(&path)?;
        }
    }
    Ok(())
}

/// Serves one request for logs over a stream, and ends it with how it went.
///
/// # Errors
/// The other side is gone.
pub async fn serve(
    logs: &Path,
    board: &Board,
    request: &LogsV1,
    stream: impl AsyncRead + AsyncWrite + Unpin,
) -> io::Result<()> {
    let (mut from_master, mut to_master) = tokio::io::split(stream);
    // The master says nothing on a log stream; its end means that nobody reads.
    let hung_up = async {
        let mut ignored = [0; 64];
        while !matches!(from_master.read(&mut ignored).await, Ok(0) | Err(_)) {}
    };
    tokio::select! {
        () = hung_up => Ok(()),
        result = answer(logs, board, request, &mut to_master) => result,
    }
}

async fn answer(
    logs: &Path,
    board: &Board,
    request: &LogsV1,
    out: &mut (impl AsyncWrite + Unpin),
) -> io::Result<()> {
    let end = match find(logs, request) {
        Err(message) => StreamEndV1::NotFound(message),
        Ok((path, attempt)) => match copy(&path, attempt, board, request, out).await {
            Ok(()) => StreamEndV1::Done,
            Err(Broken::Log(error)) => {
                StreamEndV1::Failed(format!("cannot read {}: {error}", path.display()))
            }
            Err(Broken::Stream(error)) => return Err(error),
        },
    };
    let end = postcard::to_stdvec(&end).map_err(io::Error::other)?;
    frame(out, CHANNEL_END, &end).await?;
    out.flush().await?;
    out.shutdown().await
}

enum Broken {
    Log(io::Error),
    Stream(io::Error),
}

/// The log that is asked for.
fn find(logs: &Path, request: &LogsV1) -> Result<(PathBuf, u32), String> {
    let (uid, container) = (id::uid_text(&request.uid), &request.container);
    if container.contains(['/', '\0']) || container.starts_with('.') {
        return Err(format!("container \"{container}\" is not a container's name"));
    }
    let suffix = format!("_{uid}");
    let folder = fs::read_dir(logs)
        .ok()
        .and_then(|entries| {
            entries.flatten().find(|entry| {
                entry.file_name().to_str().is_some_and(|name| name.ends_with(&suffix))
            })
        })
        .map(|entry| entry.path());
    let name = folder
        .as_deref()
        .and_then(|path| path.file_name()?.to_str()?.strip_suffix(&suffix))
        .and_then(|name| name.split_once('_'))
        .map_or(uid.as_str(), |(_, name)| name)
        .to_owned();
    let runs = folder.as_deref().map_or_else(Vec::new, |path| attempts(path, container));
    let wanted = if request.previous { runs.iter().rev().nth(1) } else { runs.last() };
    match (folder, wanted) {
        (Some(folder), Some(attempt)) => Ok((path(&folder, container, *attempt), *attempt)),
        _ if request.previous => Err(format!(
            "previous terminated container \"{container}\" in pod \"{name}\" not found"
        )),
        _ => Err(format!("container \"{container}\" in pod \"{name}\" has not started yet")),
    }
}

async fn copy(
    path: &Path,
    attempt: u32,
    board: &Board,
    request: &LogsV1,
    out: &mut (impl AsyncWrite + Unpin),
) -> Result<(), Broken> {
    let mut source = Source::open(path, request.tail_lines).map_err(Broken::Log)?;
    let mut printer = Printer::new(request);
    let mut text = Vec::with_capacity(FRAME_BYTES_MAX);
    loop {
        // Asked before the end of the file is: what a container writes last is sent.
        let is_over = !request.follow || !is_running(board, request, attempt);
        loop {
            let n_read = source.read(|line| printer.print(line, &mut text)).map_err(Broken::Log)?;
            for piece in text.chunks(FRAME_BYTES_MAX) {
                frame(out, CHANNEL_OUT, piece).await.map_err(Broken::Stream)?;
            }
            text.clear();
            if printer.is_full() {
                return Ok(());
            }
            if n_read == 0 {
                break;
            }
            // Lets heartbeats through while a long log is read.
            tokio::task::yield_now().await;
        }
        if is_over {
            return Ok(());
        }
        out.flush().await.map_err(Broken::Stream)?;
        tokio::time::sleep(FOLLOW_EVERY).await;
    }
}

/// Whether the run that is read still runs.
fn is_running(board: &Board, request: &LogsV1, attempt: u32) -> bool {
    let board = board.borrow();
    board.get(&request.uid).is_some_and(|pod| {
        pod.all_containers().any(|container| {
            container.name == request.container
                && container.container_id
                    == id::container_id(&request.uid, &request.container, attempt)
                && matches!(container.state, StateV1::Running { .. })
        })
    })
}

/// Writes one frame: channel, length (u24, little-endian), bytes.
///
/// # Errors
/// The other side is gone.
async fn frame(out: &mut (impl AsyncWrite + Unpin), channel: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?.to_le_bytes();
    out.write_all(&[channel, length[0], length[1], length[2]]).await?;
    out.write_all(bytes).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;
    use std::io::Write as _;
    use tokio::sync::watch;
    use wire::pod::RuntimeV1;
    use wire::status::{ContainerStatusV1, PhaseV1, PodStatusV1};

    const UID: wire::Uid = [7; 16];

    fn pod_logs(logs: &Path) -> PathBuf {
        logs.join(format!("default_web-0_{}", id::uid_text(&UID)))
    }

    fn put(logs: &Path, attempt: u32, lines: &str) {
        let path = path(&pod_logs(logs), "a", attempt);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
        file.write_all(lines.as_bytes()).unwrap();
    }

    fn line(second: u32, text: &str) -> String {
        format!("2026-03-01T12:00:{second:02}.000000000Z stdout F {text}\n")
    }

    fn request() -> LogsV1 {
        LogsV1 { uid: UID, container: "a".into(), ..LogsV1::default() }
    }

    fn running(attempt: u32, state: StateV1) -> BTreeMap<wire::Uid, PodStatusV1> {
        let container = ContainerStatusV1 {
            name: "a".into(),
            image: String::new(),
            image_id: String::new(),
            runtime: RuntimeV1::Oci,
            container_id: id::container_id(&UID, "a", attempt),
            restarts: 0,
            started: true,
            ready: true,
            state,
            last: None,
        };
        let pod = PodStatusV1 {
            generation: 1,
            phase: PhaseV1::Running,
            containers: vec![container],
            ..PodStatusV1::new(UID, "", "")
        };
        BTreeMap::from([(UID, pod)])
    }

    async fn next_frame(stream: &mut (impl AsyncRead + Unpin)) -> (u8, Vec<u8>) {
        let channel = stream.read_u8().await.unwrap();
        let mut length = [0; 4];
        stream.read_exact(&mut length[..3]).await.unwrap();
        let mut bytes = vec![0; usize::try_from(u32::from_le_bytes(length)).unwrap()];
        stream.read_exact(&mut bytes).await.unwrap();
        (channel, bytes)
    }

    async fn all(logs: &Path, request: LogsV1) -> (String, StreamEndV1) {
        let (_sender, board) = watch::channel(BTreeMap::new());
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let logs = logs.to_owned();
        let server = tokio::spawn(async move { serve(&logs, &board, &request, theirs).await });
        let mut text = String::new();
        loop {
            let (channel, bytes) = next_frame(&mut ours).await;
            if channel == CHANNEL_END {
                server.await.unwrap().unwrap();
                return (text, postcard::from_bytes(&bytes).unwrap());
            }
            assert_eq!(channel, CHANNEL_OUT);
            text.push_str(&String::from_utf8(bytes).unwrap());
        }
    }

    #[tokio::test]
    async fn the_newest_run_or_the_one_before_is_sent() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), 3, &line(1, "old"));
        put(folder.path(), 11, &line(2, "new"));
        assert_eq!(all(folder.path(), request()).await, ("new\n".into(), StreamEndV1::Done));
        let previous = LogsV1 { previous: true, ..request() };
        assert_eq!(all(folder.path(), previous).await.0, "old\n");
    }

    #[tokio::test]
    async fn what_is_not_there_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let message = |end| match end {
            StreamEndV1::NotFound(message) => message,
            other => panic!("{other:?}"),
        };
        put(folder.path(), 0, &line(1, "x"));
        let previous = LogsV1 { previous: true, ..request() };
        assert_eq!(
            message(all(folder.path(), previous).await.1),
            "previous terminated container \"a\" in pod \"web-0\" not found"
        );
        let other = LogsV1 { container: "b".into(), ..request() };
        assert_eq!(
            message(all(folder.path(), other).await.1),
            "container \"b\" in pod \"web-0\" has not started yet"
        );
        let escape = LogsV1 { container: "../../etc".into(), ..request() };
        message(all(folder.path(), escape).await.1);
    }

    #[tokio::test]
    async fn tail_since_limit_and_timestamps_select() {
        let folder = tempfile::tempdir().unwrap();
        let text: String = (0..50).map(|n| line(n, &format!("line {n}"))).collect();
        // The shim has turned the file over in the middle.
        let middle = line(0, "line 0").len() * 10 + line(0, "line 10").len() * 15;
        put(folder.path(), 0, &text[middle..]);
        let newest = path(&pod_logs(folder.path()), "a", 0);
        fs::write(newest.with_extension("log.1"), &text[..middle]).unwrap();
        let expected = |from: u32| (from..50).map(|n| format!("line {n}\n")).collect::<String>();
        assert_eq!(all(folder.path(), request()).await.0, expected(0));
        for n in [0, 1, 3, 24, 25, 26, 49, 50, 51, 1000] {
            let tail = LogsV1 { tail_lines: Some(n), ..request() };
            let from = 50_u32.saturating_sub(u32::try_from(n).unwrap());
            assert_eq!(all(folder.path(), tail).await.0, expected(from), "tail {n}");
        }
        let at = "2026-03-01T12:00:48Z".parse::<jiff::Timestamp>().unwrap().as_millisecond();
        let since = LogsV1 { since_ms: Some(u64::try_from(at).unwrap()), ..request() };
        assert_eq!(all(folder.path(), since).await.0, expected(48));
        let limit = LogsV1 { limit_bytes: Some(10), ..request() };
        assert_eq!(all(folder.path(), limit).await.0, "line 0\nlin");
        let stamped = LogsV1 { timestamps: true, tail_lines: Some(1), ..request() };
        assert_eq!(all(folder.path(), stamped).await.0, "2026-03-01T12:00:49.000000000Z line 49\n");
    }

    #[tokio::test]
    async fn parts_of_a_line_are_joined_and_damaged_lines_are_passed_on() {
        let folder = tempfile::tempdir().unwrap();
        put(
            folder.path(),
            0,
            "2026-03-01T12:00:00.1Z stdout P one \n2026-03-01T12:00:00.2Z stdout F line\nnonsense\n",
        );
        let request = LogsV1 { timestamps: true, ..request() };
        assert_eq!(
            all(folder.path(), request).await.0,
            "2026-03-01T12:00:00.1Z one line\nnonsense\n"
        );
    }

    #[tokio::test]
    async fn following_goes_on_through_a_turned_file_until_the_container_ends() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), 0, &line(1, "first"));
        let (sender, board) = watch::channel(running(0, StateV1::Running { started_ms: 1 }));
        let (mut ours, theirs) = tokio::io::duplex(1 << 16);
        let logs = folder.path().to_owned();
        let request = LogsV1 { follow: true, ..request() };
        let server = tokio::spawn(async move { serve(&logs, &board, &request, theirs).await });
        assert_eq!(next_frame(&mut ours).await.1, b"first\n");
        put(folder.path(), 0, &line(2, "second"));
        assert_eq!(next_frame(&mut ours).await.1, b"second\n");
        put(folder.path(), 0, &line(3, "third"));
        let newest = path(&pod_logs(folder.path()), "a", 0);
        fs::rename(&newest, newest.with_extension("log.1")).unwrap();
        put(folder.path(), 0, &line(4, "fourth"));
        let mut seen = String::new();
        while seen != "third\nfourth\n" {
            seen.push_str(&String::from_utf8(next_frame(&mut ours).await.1).unwrap());
            assert!("third\nfourth\n".starts_with(&seen), "{seen}");
        }
        put(folder.path(), 0, &line(5, "last words"));
        sender.send_replace(running(1, StateV1::Running { started_ms: 1 }));
        assert_eq!(next_frame(&mut ours).await.1, b"last words\n");
        let (channel, end) = next_frame(&mut ours).await;
        assert_eq!(channel, CHANNEL_END);
        assert_eq!(postcard::from_bytes::<StreamEndV1>(&end).unwrap(), StreamEndV1::Done);
        server.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_reader_that_hangs_up_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), 0, &line(1, "first"));
        let (_sender, board) = watch::channel(running(0, StateV1::Running { started_ms: 1 }));
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        let request = LogsV1 { follow: true, ..request() };
        let logs = folder.path().to_owned();
        let server = tokio::spawn(async move { serve(&logs, &board, &request, theirs).await });
        drop(ours);
        tokio::time::timeout(std::time::Duration::from_secs(30), server)
            .await
            .expect("it ends")
            .unwrap()
            .ok();
    }

    #[test]
    fn only_the_last_two_runs_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        for attempt in 0..4 {
            put(folder.path(), attempt, "x\n");
        }
        let logs = pod_logs(folder.path());
        prepare(&path(&logs, "a", 4)).unwrap();
        assert_eq!(attempts(&logs, "a"), [3, 4]);
    }
}
