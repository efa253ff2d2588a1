//! The status page: a few HTTP/1.1 GETs on the loopback (contract, "Status page"; RFC 9112).
//!
//! `/` for people, `/status.json` for scripts, `/metrics` for OpenMetrics scrapers, `/healthz` and `/readyz` for
//! whoever watches over the process. One request a connection, eight connections, eight kilobytes, ten seconds:
//! whatever a client does, it costs no more than that, and further clients wait in the kernel's queue. The numbers are
//! asked of the loop, so that ages are right; what one client learnt serves the others for a moment, so a hasty one
//! cannot busy the loop. Nothing here changes anything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::api::{Call, Calls};

mod html;
mod metrics;

/// Clients served at a time; a page, a scraper and a watcher need three.
pub const CONNECTIONS_MAX: usize = 8;
/// Bytes of a request's head; common browsers send under two kilobytes.
pub const REQUEST_BYTES_MAX: usize = 8 * 1024;
/// From accept to the end of the answer.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// How often a taken port, or an address that is not there, is tried again.
const RETRY_EVERY: Duration = Duration::from_secs(10);
/// A process out of descriptors waits this long before it accepts again.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How long one document serves everybody: at most five questions a second reach the loop.
const FRESH_FOR: Duration = Duration::from_millis(200);
/// A loop that has not answered after this is not well.
const LOOP_LIMIT: Duration = Duration::from_secs(2);
/// What is read and thrown away after the answer, so that a close does not cut it off (RFC 9112, 9.6).
const DRAIN_BYTES_MAX: usize = 64 * 1024;

type Document = Arc<Map<String, Value>>;

/// Serves the page at `listen` for as long as the loop shows a status. A port that cannot be had is said once and tried
/// again.
pub async fn serve(listen: SocketAddr, status: watch::Receiver<Document>, calls: Calls) {
    let page = Arc::new(Page { status, calls, last: Mutex::new(None) });
    let mut told = false;
    loop {
        match TcpListener::bind(listen).await {
            Ok(listener) => return accept(&listener, &page).await,
            Err(error) if !told => {
                told = true;
                log::warn!(
                    "status page: cannot listen on {listen} ({error}); trying again every 10 s. Another address can be set as status.listen"
                );
            }
            Err(_) => {}
        }
        sleep(RETRY_EVERY).await;
        if page.status.has_changed().is_err() {
            return;
        }
    }
}

async fn accept(listener: &TcpListener, page: &Arc<Page>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut ended = page.status.clone();
    loop {
        let Ok(place) = room.clone().acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = gone(&mut ended) => return,
        };
        match accepted {
            Ok((stream, _)) => {
                let page = page.clone();
                tokio::spawn(async move {
                    // Too slow, or gone: the connection is dropped either way.
                    let _ = timeout(REQUEST_LIMIT, page.converse(stream)).await;
                    drop(place);
                });
            }
            Err(_) => sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Returns when the loop shows no status any more.
async fn gone(status: &mut watch::Receiver<Document>) {
    while status.changed().await.is_ok() {}
}

struct Page {
    status: watch::Receiver<Document>,
    calls: Calls,
    /// The last document the loop gave, and when.
    last: Mutex<Option<(Instant, Document)>>,
}

/// An answer, complete but for the protocol's own lines.
struct Answer {
    status: &'static str,
    kind: &'static str,
    body: String,
}

impl Page {
    async fn converse(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let (answer, body) = match read_head(&mut stream).await? {
            Head::Request(head) => match parse(&head) {
                Ok((path, body)) => (self.answer(path).await, body),
                Err(answer) => (answer, true),
            },
            Head::TooLong => (Answer::plain("431 Request Header Fields Too Large", "too long\n"), true),
            Head::Nothing => return Ok(()),
        };
        let mut text = format!(
            "HTTP/1.1 {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\nCache-Control: no-store\r\n\
             X-Content-Type-Options: nosniff\r\nAllow: GET, HEAD\r\n\
             Content-Security-Policy: default-src 'none'; style-src 'unsafe-inline'\r\n\r\n",
            answer.status,
            answer.kind,
            answer.body.len()
        );
        if body {
            text.push_str(&answer.body);
        }
        stream.write_all(text.as_bytes()).await?;
        stream.shutdown().await?;
        let mut rest = [0; 1024];
        let mut drained = 0;
        while drained < DRAIN_BYTES_MAX {
            match stream.read(&mut rest).await? {
                0 => break,
                count => drained += count,
            }
        }
        Ok(())
    }

    async fn answer(&self, path: &str) -> Answer {
        match path {
            "/" => Answer {
                status: "200 OK",
                kind: "text/html; charset=utf-8",
                body: html::text(self.shown().await.as_ref()),
            },
            "/status.json" => {
                let body = serde_json::to_string_pretty(self.shown().await.as_ref()).unwrap_or_default() + "\n";
                Answer { status: "200 OK", kind: "application/json", body }
            }
            "/metrics" => {
                Answer { status: "200 OK", kind: metrics::KIND, body: metrics::text(self.shown().await.as_ref()) }
            }
            "/healthz" if self.ask().await.is_some() => Answer::plain("200 OK", "ok\n"),
            "/healthz" => Answer::plain("503 Service Unavailable", "the loop does not answer\n"),
            "/readyz" => {
                let shown = self.shown().await;
                if shown.get("connected").and_then(Value::as_bool) == Some(true) {
                    Answer::plain("200 OK", "ok\n")
                } else {
                    Answer::plain("503 Service Unavailable", &format!("{}\n", html::word(shown.get("state"))))
                }
            }
            _ => Answer::plain("404 Not Found", "not here; try /, /status.json, /metrics, /healthz, /readyz\n"),
        }
    }

    /// The status: the loop's answer, or the one it showed last when it does not answer.
    async fn shown(&self) -> Document {
        match self.ask().await {
            Some(document) => document,
            None => self.status.borrow().clone(),
        }
    }

    /// The loop's own answer, at most `FRESH_FOR` old; `None` when it does not answer.
    async fn ask(&self) -> Option<Document> {
        // The lock is held while asking: those who come meanwhile get the same answer.
        let mut last = self.last.lock().await;
        if let Some((at, document)) = last.as_ref()
            && at.elapsed() < FRESH_FOR
        {
            return Some(document.clone());
        }
        *last = None;
        let (reply, answer) = oneshot::channel();
        let call = Call { verb: "status".into(), options: Map::new(), reply };
        let asked = async { self.calls.send(call).await.ok().map(|()| answer) };
        let document = timeout(LOOP_LIMIT, async { asked.await?.await.ok()?.ok() }).await.ok()??;
        let document = Arc::new(document);
        *last = Some((Instant::now(), document.clone()));
        Some(document)
    }
}

impl Answer {
    fn plain(status: &'static str, body: &str) -> Answer {
        Answer { status, kind: "text/plain; charset=utf-8", body: body.to_owned() }
    }
}

enum Head {
    Request(Vec<u8>),
    TooLong,
    /// The client left without a whole request.
    Nothing,
}

async fn read_head(stream: &mut TcpStream) -> std::io::Result<Head> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let count = stream.read(&mut chunk).await?;
        if count == 0 {
            return Ok(Head::Nothing);
        }
        // The end may lie across two reads.
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(chunk.get(..count).unwrap_or_default());
        if head.get(from..).is_some_and(|tail| tail.windows(4).any(|four| four == b"\r\n\r\n")) {
            return Ok(Head::Request(head));
        }
        if head.len() >= REQUEST_BYTES_MAX {
            return Ok(Head::TooLong);
        }
    }
}

/// The path without its query, and whether a body is wanted; or the answer to a request that is none.
fn parse(head: &[u8]) -> Result<(&str, bool), Answer> {
    let bad = || Answer::plain("400 Bad Request", "this is not HTTP\n");
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let line = str::from_utf8(line).map_err(|_| bad())?;
    let mut words = line.split(' ');
    let (Some(method), Some(target), Some(version), None) = (words.next(), words.next(), words.next(), words.next())
    else {
        return Err(bad());
    };
    if !version.starts_with("HTTP/1.") || !target.starts_with('/') {
        return Err(bad());
    }
    let path = target.split(['?', '#']).next().unwrap_or_default();
    match method {
        "GET" => Ok((path, true)),
        "HEAD" => Ok((path, false)),
        _ => Err(Answer::plain("405 Method Not Allowed", "only GET and HEAD\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_line_is_read_strictly() {
        let path = |line: &str| parse(line.as_bytes()).ok().map(|(path, body)| (path.to_owned(), body));
        assert_eq!(path("GET /metrics?x=1 HTTP/1.1\r\n\r\n"), Some(("/metrics".into(), true)));
        assert_eq!(path("HEAD / HTTP/1.0\r\n\r\n"), Some(("/".into(), false)));
        assert_eq!(path("POST / HTTP/1.1\r\n\r\n"), None);
        assert_eq!(path("GET http://elsewhere/ HTTP/1.1\r\n\r\n"), None);
        assert_eq!(path("GET / HTTP/1.1 more\r\n\r\n"), None);
        assert_eq!(path("\r\n\r\n"), None);
        assert!(parse(&[0xff; 40]).is_err());
    }
}
