//! The daemon's control socket from the client's end: blocking, one connection, one request, then answers.
//!
//! Says in words what is wrong when nobody answers. It waits no longer than it is told and never repeats a request.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::Problem;
use crate::io::control_socket::FILE_NAME;

/// Longest answer, in bytes: all lines `events` may give, with room.
const ANSWER_MAX: usize = 16 * 1024 * 1024;

/// One connection.
pub struct Client {
    reader: BufReader<UnixStream>,
    /// The beginning of a line whose end has not come yet.
    line: Vec<u8>,
}

impl Client {
    /// Connects to the daemon that listens in `dir`.
    ///
    /// # Errors
    /// Code 3 when there is none, 1 when this user may not.
    pub fn connect(dir: &Path) -> Result<Client, Problem> {
        let path = dir.join(FILE_NAME);
        let stream = UnixStream::connect(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound | ErrorKind::NotADirectory => {
                not_running(&format!("no control socket at {}", path.display()))
            }
            ErrorKind::ConnectionRefused => not_running(&format!("nobody answers at {}", path.display())),
            ErrorKind::PermissionDenied => Problem::new(
                1,
                format!("this user may not use {}: use sudo, or join the group `switchback`", path.display()),
            ),
            _ => Problem::new(1, format!("{}: {error}", path.display())),
        })?;
        Ok(Client { reader: BufReader::new(stream), line: Vec::new() })
    }

    /// Sends one request.
    pub fn send(&mut self, verb: &str, mut options: Map<String, Value>) -> Result<(), Problem> {
        options.insert("verb".into(), verb.into());
        let text = format!("{}\n", Value::Object(options));
        let stream = self.reader.get_mut();
        let sent = stream.set_write_timeout(Some(super::PATIENCE)).and_then(|()| stream.write_all(text.as_bytes()));
        sent.map_err(|error| lost(&error))
    }

    /// The answer, within the limit.
    ///
    /// # Errors
    /// What the daemon says against it, or that it says nothing.
    pub fn receive(&mut self, limit: Duration) -> Result<Value, Problem> {
        let silent = || Problem::new(1, format!("switchbackd does not answer (waited {} s)", limit.as_secs()));
        self.next(Some(limit))?.ok_or_else(silent)
    }

    /// The next line of a stream; `None` when the limit passed first.
    pub fn next(&mut self, limit: Option<Duration>) -> Result<Option<Value>, Problem> {
        let deadline = limit.map(|limit| Instant::now() + limit);
        while !self.line.ends_with(b"\n") {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                return Ok(None);
            }
            self.reader.get_ref().set_read_timeout(left).map_err(|error| lost(&error))?;
            let room = ANSWER_MAX.saturating_sub(self.line.len()) as u64;
            match self.reader.by_ref().take(room).read_until(b'\n', &mut self.line) {
                Ok(0) => return Err(lost(&ErrorKind::UnexpectedEof.into())),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(lost(&error)),
            }
        }
        let line = std::mem::take(&mut self.line);
        answer(&line).map(Some)
    }
}

fn answer(line: &[u8]) -> Result<Value, Problem> {
    let strange = || Problem::new(1, "switchbackd says something that this version does not understand");
    let mut value: Value = serde_json::from_slice(line).map_err(|_| strange())?;
    match value["ok"].as_bool() {
        Some(true) => Ok(value["result"].take()),
        Some(false) => Err(Problem {
            code: value["code"].as_u64().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).max(1),
            message: value["message"].as_str().unwrap_or("it did not happen").to_string(),
            reason: value["reason"].as_str().map(str::to_string),
        }),
        None => Err(strange()),
    }
}

fn not_running(why: &str) -> Problem {
    Problem::new(3, format!("switchbackd is not running ({why}): start it with `systemctl start switchback`"))
}

fn lost(error: &io::Error) -> Problem {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
            Problem::new(3, "switchbackd has hung up; it may be stopping or starting again")
        }
        _ => Problem::new(1, format!("the control socket fails: {error}")),
    }
}
