//! The control socket: `control.sock` in the runtime directory, one JSON object a line in both directions.
//!
//! A request is `{"verb":"publish","topic":"a",…}`: the verb and its options side by side. The answer is
//! `{"ok":true,"result":{…}}` or `{"ok":false,"code":1,"message":"…","reason":"…"|null}`. With `"watch":true` (status)
//! or `"follow":true` (events) further lines of the same shape follow until the client hangs up. Who may speak is
//! decided by the socket's owner, group and mode (0660), see `unix(7)`. A bad line costs a client one error and not its
//! connection; a slow, silent or greedy one costs nobody else anything. This adapter decides nothing about verbs: it
//! carries them to the loop.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::sync::{Semaphore, broadcast, oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::api::{Call, Calls, Failure, Reply};

/// The file's name in the runtime directory.
pub const FILE_NAME: &str = "control.sock";

/// Longest request, in bytes: the largest payload in base 64, with room.
pub const LINE_MAX: usize = 2 * 1024 * 1024;

/// Clients served at once; a further one waits in the kernel's backlog until one leaves (R-RS-5).
pub const CLIENTS_MAX: usize = 16;

/// Of these, clients that watch: they stay for long and must not keep out a single question.
pub const WATCHERS_MAX: usize = 8;

/// A client that neither completes a line nor takes its answer for this long is dropped (R-RS-5).
pub const IDLE_MAX: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(30) };

/// Bytes read in one go.
const CHUNK: usize = 16 * 1024;

/// The latest document of `status --json`.
pub type StatusWatch = watch::Receiver<Arc<Map<String, Value>>>;

/// Black-box lines as JSON text, as they happen.
pub type EventLines = broadcast::Sender<Arc<str>>;

/// The bound socket; its file goes when this goes.
#[derive(Debug)]
pub struct Listener {
    listener: StdListener,
    path: PathBuf,
    /// Device and inode of our file: a successor's must not be removed.
    file: (u64, u64),
}

impl Listener {
    /// Binds `control.sock` in `dir` for owner and group. A left-over socket on which nobody answers is replaced in one
    /// step, so that there is always either the old or the new one.
    ///
    /// # Errors
    /// `AddrInUse` when another daemon answers, `AlreadyExists` when something else than a socket stands there, and
    /// whatever the kernel says; the text names the path.
    pub fn bind(dir: &Path) -> io::Result<Listener> {
        let path = dir.join(FILE_NAME);
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        vacant(&path).map_err(named)?;
        let fresh = dir.join(format!(".{FILE_NAME}.{}", std::process::id()));
        let _ = fs::remove_file(&fresh);
        let bound = bind_at(&fresh, &path).inspect_err(|_| {
            let _ = fs::remove_file(&fresh);
        });
        let (listener, file) = bound.map_err(named)?;
        Ok(Listener { listener, path, file })
    }
}

/// Binds beside the place and moves there, so that nobody ever sees the socket with another mode.
fn bind_at(fresh: &Path, path: &Path) -> io::Result<(StdListener, (u64, u64))> {
    let listener = StdListener::bind(fresh)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(fresh, fs::Permissions::from_mode(0o660))?;
    let meta = fs::symlink_metadata(fresh)?;
    fs::rename(fresh, path)?;
    Ok((listener, (meta.dev(), meta.ino())))
}

fn vacant(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "something that is no socket stands there"));
        }
        Ok(_) => {}
    }
    match StdStream::connect(path) {
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another switchbackd is running")),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Err(error) => Err(error),
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|meta| (meta.dev(), meta.ino()) == self.file);
        if ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Serves clients until the task is dropped. Must run inside the runtime.
///
/// # Panics
/// Never; a listener that the runtime does not take is logged, and the daemon goes on without.
pub async fn serve(listener: Listener, calls: Calls, status: StatusWatch, events: EventLines) {
    let accepting = listener.listener.try_clone().and_then(UnixListener::from_std);
    let accepting = match accepting {
        Ok(accepting) => accepting,
        Err(error) => return log::error!("control socket {}: {error}", listener.path.display()),
    };
    let clients = Arc::new(Semaphore::new(CLIENTS_MAX));
    let watchers = Arc::new(Semaphore::new(WATCHERS_MAX));
    loop {
        let Ok(place) = clients.clone().acquire_owned().await else { return };
        match accepting.accept().await {
            Ok((stream, _)) => {
                let (calls, status, events, watchers) =
                    (calls.clone(), status.clone(), events.clone(), watchers.clone());
                tokio::spawn(async move {
                    let mut client =
                        Client { stream, buffer: Vec::new(), searched: 0, calls, status, events, watchers };
                    // A client that breaks off is its own business.
                    let _ = client.run().await;
                    drop(place);
                });
            }
            // Out of descriptors, mostly: wait for some to come back instead of turning in place.
            Err(_) => sleep(Duration::from_millis(200)).await,
        }
    }
}

struct Client {
    stream: UnixStream,
    buffer: Vec<u8>,
    /// How much of the buffer is known to hold no newline.
    searched: usize,
    calls: Calls,
    status: StatusWatch,
    events: EventLines,
    watchers: Arc<Semaphore>,
}

/// What stands in one line.
pub(crate) struct Asked {
    pub(crate) verb: String,
    pub(crate) options: Map<String, Value>,
    stream: Option<Stream>,
}

#[derive(Clone, Copy, PartialEq)]
enum Stream {
    Status,
    Events,
}

impl Client {
    async fn run(&mut self) -> io::Result<()> {
        while let Some(line) = self.line().await? {
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            match parse(&line) {
                Err(failure) => self.answer(&Err(failure)).await?,
                Ok(Asked { verb, options, stream: None }) => {
                    let reply = self.call(verb, options).await;
                    self.answer(&reply).await?;
                }
                Ok(Asked { verb, options, stream: Some(stream) }) => return self.watch(verb, options, stream).await,
            }
        }
        Ok(())
    }

    /// The next line without its end; `None` when the client has said all it wants to.
    async fn line(&mut self) -> io::Result<Option<Vec<u8>>> {
        match timeout(IDLE_MAX, self.read_line()).await {
            Ok(line) => line,
            Err(_) => Ok(None),
        }
    }

    async fn read_line(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let fresh = self.buffer.get(self.searched..).unwrap_or_default();
            if let Some(end) = fresh.iter().position(|byte| *byte == b'\n') {
                let mut line: Vec<u8> = self.buffer.drain(..=self.searched + end).collect();
                line.pop();
                self.searched = 0;
                // A payload of megabytes is not kept reserved for a client that then only asks for status.
                self.buffer.shrink_to(CHUNK);
                return Ok(Some(line));
            }
            self.searched = self.buffer.len();
            if self.buffer.len() > LINE_MAX {
                let failure = Failure::usage(format!("a request is at most {LINE_MAX} bytes"));
                self.answer(&Err(failure)).await?;
                return Ok(None);
            }
            self.buffer.reserve(CHUNK);
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                // A last line without its end is still a request.
                let rest = std::mem::take(&mut self.buffer);
                self.searched = 0;
                return Ok((!rest.is_empty()).then_some(rest));
            }
        }
    }

    async fn call(&self, verb: String, options: Map<String, Value>) -> Reply {
        let stopping = || Failure::failed("switchbackd is stopping", None);
        let (reply, answer) = oneshot::channel();
        self.calls.send(Call { verb, options, reply }).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }

    async fn answer(&mut self, reply: &Reply) -> io::Result<()> {
        let text = match reply {
            Ok(result) => json!({ "ok": true, "result": result }).to_string(),
            Err(Failure { code, message, reason }) => {
                let reason = reason.map(|reason| reason.as_str());
                json!({ "ok": false, "code": code, "message": message, "reason": reason }).to_string()
            }
        };
        self.send(&text).await
    }

    async fn send(&mut self, text: &str) -> io::Result<()> {
        let write = async {
            self.stream.write_all(text.as_bytes()).await?;
            self.stream.write_all(b"\n").await
        };
        timeout(IDLE_MAX, write).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
    }

    /// The first answer, then everything new, until the client hangs up. What it writes meanwhile is not read.
    async fn watch(&mut self, verb: String, options: Map<String, Value>, stream: Stream) -> io::Result<()> {
        let Ok(_place) = self.watchers.clone().try_acquire_owned() else {
            let failure = Failure::failed(format!("{WATCHERS_MAX} others are watching already; end one"), None);
            return self.answer(&Err(failure)).await;
        };
        // Both are opened before the question, so that nothing falls between the answer and the stream.
        let mut lines = self.events.subscribe();
        let mut status = self.status.clone();
        status.mark_unchanged();
        let reply = self.call(verb, options).await;
        self.answer(&reply).await?;
        let Ok(first) = reply else { return Ok(()) };
        match stream {
            Stream::Status => self.watch_status(&mut status).await,
            Stream::Events => {
                self.skip_known(&mut lines, &first).await?;
                self.watch_events(&mut lines).await
            }
        }
    }

    async fn watch_status(&mut self, status: &mut StatusWatch) -> io::Result<()> {
        loop {
            let changed = tokio::select! {
                changed = status.changed() => changed,
                () = gone(&mut self.stream) => return Ok(()),
            };
            if changed.is_err() {
                return Ok(());
            }
            let document = status.borrow_and_update().clone();
            self.send(&json!({ "ok": true, "result": &*document }).to_string()).await?;
        }
    }

    /// Lines written between subscribing and the answer stand in both; the answer counts.
    async fn skip_known(
        &mut self,
        lines: &mut broadcast::Receiver<Arc<str>>,
        first: &Map<String, Value>,
    ) -> io::Result<()> {
        let known = first.get("events").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        loop {
            match lines.try_recv() {
                Ok(line) => {
                    let parsed: Option<Value> = serde_json::from_str(&line).ok();
                    if parsed.is_none_or(|parsed| !known.contains(&parsed)) {
                        self.send_line(&line).await?;
                    }
                }
                Err(TryRecvError::Lagged(count)) => self.send_gap(count).await?,
                Err(TryRecvError::Empty | TryRecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn watch_events(&mut self, lines: &mut broadcast::Receiver<Arc<str>>) -> io::Result<()> {
        loop {
            let line = tokio::select! {
                line = lines.recv() => line,
                () = gone(&mut self.stream) => return Ok(()),
            };
            match line {
                Ok(line) => self.send_line(&line).await?,
                Err(RecvError::Lagged(count)) => self.send_gap(count).await?,
                Err(RecvError::Closed) => return Ok(()),
            }
        }
    }

    async fn send_line(&mut self, line: &str) -> io::Result<()> {
        self.send(&format!("{{\"ok\":true,\"result\":{line}}}")).await
    }

    /// A client that is too slow is told what it missed; the lines themselves stay in the black box.
    async fn send_gap(&mut self, count: u64) -> io::Result<()> {
        let line = format!("{count} lines were left out; `switchback events` has them");
        let note = json!({ "time": null, "uptime_ms": null, "boot": null, "kind": "note", "line": line });
        self.send_line(&note.to_string()).await
    }
}

/// Resolves when the client has hung up; what it still says is thrown away.
async fn gone(stream: &mut UnixStream) {
    let mut waste = [0; 256];
    while matches!(stream.read(&mut waste).await, Ok(count) if count > 0) {}
}

pub(crate) fn parse(line: &[u8]) -> Result<Asked, Failure> {
    let example = "write one object a line, as in {\"verb\":\"status\"}";
    let value: Value =
        serde_json::from_slice(line).map_err(|error| Failure::usage(format!("not JSON: {error}; {example}")))?;
    let Value::Object(mut options) = value else {
        return Err(Failure::usage(format!("not a JSON object; {example}")));
    };
    let verb = match options.remove("verb") {
        Some(Value::String(verb)) => verb,
        Some(_) => return Err(Failure::usage("verb: must be text")),
        None => return Err(Failure::usage(format!("verb: is missing; {example}"))),
    };
    let (key, kind) = match verb.as_str() {
        "status" => ("watch", Stream::Status),
        "events" => ("follow", Stream::Events),
        _ => return Ok(Asked { verb, options, stream: None }),
    };
    let stream = match options.remove(key) {
        None | Some(Value::Null | Value::Bool(false)) => None,
        Some(Value::Bool(true)) => Some(kind),
        Some(_) => return Err(Failure::usage(format!("{key}: must be true or false"))),
    };
    Ok(Asked { verb, options, stream })
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;
    use tokio::time::Instant;

    use super::*;

    #[tokio::test]
    async fn half_a_line_is_dropped_after_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::bind(dir.path()).unwrap();
        let (calls, _asked) = mpsc::channel(1);
        let (_status, watch) = watch::channel(Arc::new(Map::new()));
        let (events, _) = broadcast::channel(1);
        tokio::spawn(serve(listener, calls, watch, events));
        let mut client = UnixStream::connect(dir.path().join(FILE_NAME)).await.unwrap();
        client.write_all(b"{\"verb\":").await.unwrap();
        let began = Instant::now();
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).await.unwrap();
        assert!(rest.is_empty() && began.elapsed() >= IDLE_MAX);
    }

    #[tokio::test]
    async fn a_watcher_that_never_reads_is_dropped_after_the_limit() {
        let dir = tempfile::tempdir().unwrap();
        let listener = Listener::bind(dir.path()).unwrap();
        let (calls, mut asked) = mpsc::channel::<Call>(1);
        let (_status, watch) = watch::channel(Arc::new(Map::new()));
        let (events, _) = broadcast::channel::<Arc<str>>(64);
        tokio::spawn(serve(listener, calls, watch, events.clone()));
        let mut client = UnixStream::connect(dir.path().join(FILE_NAME)).await.unwrap();
        client.write_all(b"{\"verb\":\"events\",\"follow\":true}\n").await.unwrap();
        let _ = asked.recv().await.unwrap().reply.send(Ok(Map::new()));
        let line: Arc<str> = format!("\"{}\"", "x".repeat(60_000)).into();
        let began = Instant::now();
        // Once the watcher is dropped, nobody listens any more.
        while events.send(line.clone()).is_ok() || began.elapsed() < IDLE_MAX {
            sleep(Duration::from_millis(5)).await;
            assert!(began.elapsed() < IDLE_MAX * 20, "still there");
        }
    }
}
