//! The status page over real sockets: every path, and clients that mean harm.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use switchback::api::{CALLS_MAX, Call};
use switchback::io::status_page::{self, CONNECTIONS_MAX, REQUEST_BYTES_MAX, REQUEST_LIMIT};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

#[tokio::test]
async fn every_path_answers_in_its_own_kind() {
    let page = Page::with(Loop::Answers).await;
    let (status, head, body) = page.get("/").await;
    assert_eq!(status, 200);
    assert!(head.contains("Content-Type: text/html") && head.contains("Cache-Control: no-store"), "{head}");
    assert!(body.contains("wlan0") && body.contains("refresh"), "{body}");
    let (status, head, body) = page.get("/status.json?pretty").await;
    assert_eq!((status, head.contains("application/json")), (200, true));
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(document["last_inbound_ms"], 7, "fresh from the loop");
    let (status, head, body) = page.get("/metrics").await;
    assert_eq!(status, 200);
    assert!(head.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8"), "{head}");
    assert!(body.contains("switchback_state{switchback_state=\"online\"} 1\n") && body.ends_with("# EOF\n"), "{body}");
    assert_eq!(page.get("/healthz").await.0, 200);
    assert_eq!(page.get("/readyz").await.0, 200);
    assert_eq!(page.get("/etc/passwd").await.0, 404);
    assert_eq!(page.get("/../secret").await.0, 404);
}

#[tokio::test]
async fn head_has_no_body_and_post_is_refused() {
    let page = Page::with(Loop::Answers).await;
    let (status, head, body) = page.send(b"HEAD /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!((status, body.as_str()), (200, ""));
    assert!(!head.contains("Content-Length: 0"));
    let (status, head, _) = page.send(b"POST / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc").await;
    assert_eq!((status, head.contains("Allow: GET, HEAD")), (405, true));
}

#[tokio::test]
async fn without_a_session_it_is_well_but_not_ready() {
    let page = Page::with(Loop::Offline).await;
    assert_eq!(page.get("/healthz").await.0, 200);
    let (status, _, body) = page.get("/readyz").await;
    assert_eq!((status, body.as_str()), (503, "no-internet\n"));
}

#[tokio::test]
async fn with_a_stuck_loop_it_says_so_and_shows_the_last_status() {
    let page = Page::with(Loop::Stuck).await;
    let start = Instant::now();
    assert_eq!(page.get("/healthz").await.0, 503);
    assert!(start.elapsed() < Duration::from_secs(4));
    let (status, _, body) = page.get("/status.json").await;
    let document: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((status, &document["last_inbound_ms"]), (200, &json!(412)));
}

#[tokio::test]
async fn hostile_input_gets_an_answer_or_the_door() {
    let page = Page::with(Loop::Answers).await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(2 * REQUEST_BYTES_MAX));
    let endless = format!("GET / HTTP/1.1\r\n{}", "x: y\r\n".repeat(REQUEST_BYTES_MAX));
    assert_eq!(page.send(long.as_bytes()).await.0, 431);
    assert_eq!(page.send(endless.as_bytes()).await.0, 431);
    for rubbish in [
        &b"\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1 \xff\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\r\n\r\n",
        b"\0\0\0\0\r\n\r\n",
    ] {
        assert_eq!(page.send(rubbish).await.0, 400, "{rubbish:?}");
    }
    // Leaves in the middle, and before anything.
    for part in [&b"GET / HT"[..], b""] {
        let mut stream = TcpStream::connect(page.address).await.unwrap();
        stream.write_all(part).await.unwrap();
    }
    assert_eq!(page.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn clients_that_say_nothing_are_dropped_and_the_others_wait_for_them() {
    let page = Page::with(Loop::Answers).await;
    let mut silent = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(page.address).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        silent.push(stream);
    }
    let start = Instant::now();
    assert_eq!(page.get("/healthz").await.0, 200, "served once there is room");
    let waited = start.elapsed();
    let limit = REQUEST_LIMIT;
    assert!(waited > limit - Duration::from_secs(2) && waited < limit + Duration::from_secs(3), "{waited:?}");
}

#[tokio::test]
async fn five_hundred_requests_in_a_row_succeed_and_ask_the_loop_seldom() {
    let page = Page::with(Loop::Answers).await;
    let start = Instant::now();
    for _ in 0..500 {
        assert_eq!(page.get("/metrics").await.0, 200);
    }
    let asked = u128::from(page.asked.load(Ordering::Relaxed));
    assert!(asked <= start.elapsed().as_millis() / 200 + 1, "{asked}");
}

#[tokio::test]
async fn a_taken_port_is_had_as_soon_as_it_is_free() {
    let address = Page::free_address();
    let blocker = TcpListener::bind(address).await.unwrap();
    let page = Page::start(address, Loop::Answers);
    tokio::time::sleep(Duration::from_millis(100)).await;
    drop(blocker);
    let start = Instant::now();
    while TcpStream::connect(address).await.is_err() {
        assert!(start.elapsed() < Duration::from_secs(12));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(page.get("/healthz").await.0, 200);
}

#[derive(Clone, Copy, PartialEq)]
enum Loop {
    Answers,
    Offline,
    Stuck,
}

struct Page {
    address: SocketAddr,
    asked: Arc<AtomicU32>,
    _status: watch::Sender<Arc<Map<String, Value>>>,
}

impl Page {
    async fn with(kind: Loop) -> Page {
        let free = Page::free_address();
        let page = Page::start(free, kind);
        while TcpStream::connect(free).await.is_err() {
            tokio::task::yield_now().await;
        }
        page
    }

    /// An address of the loopback that no other page of this or another test process has: a free port of
    /// 127.0.0.1 may be taken by somebody's outgoing connection before the page has it.
    fn free_address() -> SocketAddr {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let [_, _, high, low] = std::process::id().to_be_bytes();
        let number = LAST.fetch_add(1, Ordering::Relaxed) as u8 + 1;
        SocketAddr::from(([127, high | 0x80, low, number], 8730))
    }

    fn start(address: SocketAddr, kind: Loop) -> Page {
        let document = |inbound: u32| {
            let online = kind != Loop::Offline;
            let state = if online { "online" } else { "no-internet" };
            let document = json!({
                "state": state, "connected": online, "last_inbound_ms": inbound,
                "uplinks": [{"name": "wlan0", "class": "wifi", "usable": true}],
            });
            document.as_object().unwrap().clone()
        };
        let (status, shown) = watch::channel(Arc::new(document(412)));
        let (calls, mut inbox) = mpsc::channel::<Call>(CALLS_MAX);
        let asked = Arc::new(AtomicU32::new(0));
        let count = asked.clone();
        let fresh = document(7);
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Some(call) = inbox.recv().await {
                assert_eq!(call.verb, "status");
                count.fetch_add(1, Ordering::Relaxed);
                match kind {
                    Loop::Stuck => held.push(call),
                    Loop::Answers | Loop::Offline => drop(call.reply.send(Ok(fresh.clone()))),
                }
            }
        });
        tokio::spawn(status_page::serve(address, shown, calls));
        Page { address, asked, _status: status }
    }

    async fn get(&self, path: &str) -> (u16, String, String) {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").as_bytes()).await
    }

    /// Status, head and body.
    async fn send(&self, request: &[u8]) -> (u16, String, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        // A server that has heard enough may close while we still talk.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        if !body.is_empty() {
            assert!(head.contains(&format!("Content-Length: {}", body.len())), "{head}");
        }
        (status, head.to_owned(), body.to_owned())
    }
}
