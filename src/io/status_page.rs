//! The status page: a few HTTP/1.1 GETs on the loopback (contract, "Status page"; RFC 9112).
//!
//! `/` for people, `/status.json` for scripts, `/metrics` for OpenMetrics scrapers, `/healthz` and `/readyz` for
//! whoever watches over the process. One request a connection, eight connections, eight kilobytes, ten seconds:
//! whatever a client does, it costs no more than that, and further clients wait in the kernel's queue. The numbers are
//! asked of the loop, so that ages are right; what one client learnt serves the others for a moment, so a hasty one
//! cannot busy the loop. Nothing here changes anything.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore, oneshot, watch};
use tokio::time::{Instant, sleep, timeout};

use crate::api::{Call, Calls};

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
            "/" => {
                Answer { status: "200 OK", kind: "text/html; charset=utf-8", body: html(self.shown().await.as_ref()) }
            }
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
                    Answer::plain("503 Service Unavailable", &format!("{}\n", word(shown.get("state"))))
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

/// The page for people: everything in the document, nothing from elsewhere, drawn afresh every five seconds.
fn html(document: &Map<String, Value>) -> String {
    let state = escape(&word(document.get("state")));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{state} - switchback</title>\n<style>\
         body{{font:16px/1.4 sans-serif;margin:2em;max-width:70em}}\
         table{{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}}\
         th,td{{text-align:left;padding:.2em 1em .2em 0;border-bottom:1px solid #ccc;vertical-align:top}}\
         .yes{{color:#060}}.no{{color:#a00}}\
         @media(prefers-color-scheme:dark){{body{{background:#111;color:#ddd}}.yes{{color:#6c6}}.no{{color:#f66}}}}\
         </style></head>\n<body><h1 class=\"{}\">{state}</h1>\n",
        if document.get("connected").and_then(Value::as_bool) == Some(true) { "yes" } else { "no" },
    );
    let (tables, facts): (Vec<_>, Vec<_>) = document.iter().partition(|(_, v)| v.is_object() || objects(v).is_some());
    rows(&mut page, facts.into_iter().filter(|(key, _)| *key != "state"));
    for (key, value) in tables {
        let _ = writeln!(page, "<h2>{}</h2>", escape(&key.replace('_', " ")));
        match (value, objects(value)) {
            (_, Some(items)) => columns(&mut page, &items),
            (Value::Object(object), None) => rows(&mut page, object.iter()),
            (_, None) => {}
        }
    }
    page.push_str("<p><a href=\"/status.json\">status.json</a> <a href=\"/metrics\">metrics</a></p></body></html>\n");
    page
}

/// The items of a list that holds objects and nothing else.
fn objects(value: &Value) -> Option<Vec<&Map<String, Value>>> {
    let items = value.as_array().filter(|items| !items.is_empty())?;
    items.iter().map(Value::as_object).collect()
}

/// One row a key.
fn rows<'d>(page: &mut String, pairs: impl Iterator<Item = (&'d String, &'d Value)>) {
    page.push_str("<table>");
    for (key, value) in pairs {
        let _ = writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", escape(&key.replace('_', " ")), cell(key, value));
    }
    page.push_str("</table>\n");
}

/// One row an object, one column a key; the first object's keys are everybody's, name first.
fn columns(page: &mut String, items: &[&Map<String, Value>]) {
    let mut keys: Vec<&String> = items.first().map(|first| first.keys().collect()).unwrap_or_default();
    keys.sort_by_key(|key| (*key != "name", *key != "class", *key != "step"));
    page.push_str("<table><tr>");
    keys.iter().for_each(|key| page.push_str(&format!("<th>{}</th>", escape(&key.replace('_', " ")))));
    page.push_str("</tr>\n");
    for item in items {
        page.push_str("<tr>");
        for key in &keys {
            let _ = write!(page, "<td>{}</td>", item.get(*key).map_or_else(String::new, |value| cell(key, value)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

/// A value for people: milliseconds as seconds, nothing as a dash.
fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Number(number) if key.ends_with("_ms") && !key.ends_with("rtt_ms") => {
            number.as_f64().map_or_else(String::new, |millis| format!("{:.1} s", millis / 1000.0))
        }
        Value::Array(items) => escape(&items.iter().map(|item| word(Some(item))).collect::<Vec<_>>().join(", ")),
        Value::Object(object) => {
            let pairs = object.iter().map(|(key, value)| format!("{key} {}", word(Some(value))));
            escape(&pairs.collect::<Vec<_>>().join(", "))
        }
        value => escape(&word(Some(value))),
    }
}

/// A value as one word.
fn word(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(true)) => "yes".into(),
        Some(Value::Bool(false)) => "no".into(),
        Some(other) => other.to_string(),
    }
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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

    #[test]
    fn the_page_shows_everything_and_runs_nothing() {
        let document = json!({
            "state": "<script>", "connected": false, "last_inbound_ms": 1500, "class": null,
            "uplinks": [{"class": "wifi", "name": "wlan0 & co", "rtt_ms": 31.5}],
            "outbox": {"messages": 3, "classes": {"normal": 3}},
        });
        let page = html(document.as_object().unwrap());
        assert!(!page.contains("<script>"), "{page}");
        assert!(page.contains("&lt;script&gt;") && page.contains("1.5 s") && page.contains("wlan0 &amp; co"), "{page}");
        assert!(page.contains("<th>name</th><th>class</th>") && page.contains("normal 3"), "{page}");
        assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
    }
}
