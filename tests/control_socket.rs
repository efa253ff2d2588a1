//! The control socket against well-behaved, careless and hostile clients.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use switchback::api::{Call, Failure, Verb};
use switchback::io::control_socket::{CLIENTS_MAX, FILE_NAME, LINE_MAX, Listener, WATCHERS_MAX, serve};
use switchback_control::Reason;
use tokio::sync::{broadcast, mpsc, watch};

/// A daemon that answers every right verb with the verb's own words.
struct Daemon {
    dir: tempfile::TempDir,
    status: watch::Sender<Arc<Map<String, Value>>>,
    events: broadcast::Sender<Arc<str>>,
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().unwrap().clone()
}

fn daemon() -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let (status, status_watch) = watch::channel(Arc::new(object(json!({"state": "off"}))));
    let (events, _) = broadcast::channel(4);
    let (socket_dir, lines) = (dir.path().to_path_buf(), events.clone());
    let (ready, started) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = Listener::bind(&socket_dir).unwrap();
            ready.send(()).unwrap();
            let (calls, mut asked) = mpsc::channel::<Call>(64);
            tokio::spawn(serve(listener, calls, status_watch, lines.clone()));
            while let Some(call) = asked.recv().await {
                let reply = match Verb::parse(&call.verb, &call.options) {
                    Ok(Verb::Status) => Ok(object(json!({"state": "online"}))),
                    Ok(Verb::Events { .. }) => {
                        // One line falls between the subscription and the answer, and stands in both.
                        let both = json!({"line": "both"});
                        let _ = lines.send(both.to_string().into());
                        Ok(object(json!({"events": [{"line": "old"}, both]})))
                    }
                    Ok(Verb::Connect { .. }) => Err(Failure::failed("no", Some(Reason::NoServer))),
                    Ok(Verb::Publish { payload, .. }) => Ok(object(json!({"size": payload.len()}))),
                    Ok(verb) => Ok(object(json!({"verb": format!("{verb:?}")}))),
                    Err(failure) => Err(failure),
                };
                let _ = call.reply.send(reply);
            }
        });
    });
    started.recv().unwrap();
    Daemon { dir, status, events }
}

struct Client {
    reader: BufReader<UnixStream>,
}

impl Daemon {
    fn path(&self) -> PathBuf {
        self.dir.path().join(FILE_NAME)
    }

    fn client(&self) -> Client {
        let stream = UnixStream::connect(self.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Client { reader: BufReader::new(stream) }
    }
}

impl Client {
    fn write(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    fn read(&mut self) -> Value {
        let mut line = String::new();
        self.reader.read_line(&mut line).unwrap();
        if line.is_empty() { Value::Null } else { serde_json::from_str(&line).unwrap() }
    }

    fn ask(&mut self, line: &str) -> Value {
        self.write(format!("{line}\n").as_bytes());
        self.read()
    }
}

#[test]
fn a_question_gets_one_answer_and_the_connection_stays() {
    let daemon = daemon();
    let mut client = daemon.client();
    let online = json!({"ok": true, "result": {"state": "online"}});
    assert_eq!(client.ask(r#"{"verb":"status"}"#), online);
    assert_eq!(client.ask(r#"{"verb":"status","watch":false}"#), online);
    assert_eq!(
        client.ask(r#"{"verb":"connect","timeout":"5s"}"#),
        json!({"ok": false, "code": 1, "message": "no", "reason": "no-server"})
    );
    assert_eq!(
        client.ask(r#"{"verb":"simulate"}"#),
        json!({"ok": false, "code": 2, "message": "unknown verb \"simulate\"", "reason": null})
    );
}

#[test]
fn bad_lines_cost_an_error_and_not_the_connection() {
    let daemon = daemon();
    let mut client = daemon.client();
    let deep = "[".repeat(100_000);
    for (line, hint) in [
        (&b"hello\n"[..], "not JSON"),
        (b"{\"verb\":\n", "not JSON"),
        (b"[]\n", "not a JSON object"),
        (b"null\n", "not a JSON object"),
        (b"{}\n", "verb: is missing"),
        (b"{\"verb\":1}\n", "verb: must be text"),
        (b"{\"verb\":\"\\u0000\"}\n", "unknown verb"),
        (b"\xff\xfe\x00\n", "not JSON"),
        (b"{\"verb\":\"status\",\"watch\":1}\n", "watch: must be true or false"),
        (b"{\"verb\":\"status\"} {\"verb\":\"status\"}\n", "not JSON"),
        (format!("{deep}\n").as_bytes(), "not JSON"),
    ] {
        client.write(line);
        let answer = client.read();
        assert_eq!((&answer["ok"], &answer["code"]), (&json!(false), &json!(2)), "{answer}");
        assert!(answer["message"].as_str().unwrap().contains(hint), "{answer}");
    }
    client.write(b"\n  \n");
    assert_eq!(client.ask(r#"{"verb":"status"}"#)["ok"], true);
}

#[test]
fn lines_may_come_in_pieces_and_several_at_once() {
    let daemon = daemon();
    let mut client = daemon.client();
    for byte in b"{\"verb\":\"status\"}\n" {
        client.write(&[*byte]);
    }
    assert_eq!(client.read()["ok"], true);
    client.write(b"{\"verb\":\"status\"}\n{\"verb\":\"nope\"}\n{\"verb\":\"flush\"}");
    client.reader.get_ref().shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(
        [client.read(), client.read(), client.read()].map(|a| a["ok"].clone()),
        [true, false, true].map(Value::from)
    );
    assert_eq!(client.read(), Value::Null);
}

#[test]
fn a_request_beyond_the_limit_is_refused_and_a_large_payload_is_taken() {
    let daemon = daemon();
    let mut client = daemon.client();
    let payload = "x".repeat(300_000);
    let answer = client.ask(&json!({"verb": "publish", "topic": "a", "payload": payload}).to_string());
    assert_eq!(answer["result"]["size"], 300_000);
    let stream = client.reader.get_ref().try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        let chunk = vec![b'x'; 65_536];
        // The daemon hangs up while we write; how that looks is the kernel's choice.
        (0..=LINE_MAX / chunk.len() + 4).try_for_each(|_| (&stream).write_all(&chunk))
    });
    let mut answer = String::new();
    match client.reader.read_line(&mut answer) {
        Ok(_) => assert!(answer.contains("a request is at most"), "{answer}"),
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
    }
    let _ = writer.join().unwrap();
    assert_eq!(daemon.client().ask(r#"{"verb":"status"}"#)["ok"], true);
}

#[test]
fn watching_status_gives_every_latest_value() {
    let daemon = daemon();
    let mut client = daemon.client();
    assert_eq!(client.ask(r#"{"verb":"status","watch":true}"#)["result"]["state"], "online");
    daemon.status.send_replace(Arc::new(object(json!({"state": "idle"}))));
    assert_eq!(client.read(), json!({"ok": true, "result": {"state": "idle"}}));
    daemon.status.send_replace(Arc::new(object(json!({"state": "off"}))));
    assert_eq!(client.read()["result"]["state"], "off");
}

#[test]
fn following_events_loses_and_repeats_nothing() {
    let daemon = daemon();
    let mut client = daemon.client();
    let first = client.ask(r#"{"verb":"events","follow":true}"#);
    assert_eq!(first["result"]["events"], json!([{"line": "old"}, {"line": "both"}]));
    daemon.events.send("{\"line\":\"new\"}".into()).unwrap();
    assert_eq!(client.read(), json!({"ok": true, "result": {"line": "new"}}));
}

#[test]
fn watchers_never_keep_out_a_question_and_free_their_place() {
    let daemon = daemon();
    let mut watchers: Vec<Client> = (0..WATCHERS_MAX).map(|_| daemon.client()).collect();
    for watcher in &mut watchers {
        assert_eq!(watcher.ask(r#"{"verb":"status","watch":true}"#)["ok"], true);
    }
    let refused = daemon.client().ask(r#"{"verb":"status","watch":true}"#);
    assert!(refused["message"].as_str().unwrap().contains("watching already"), "{refused}");
    assert_eq!(daemon.client().ask(r#"{"verb":"status"}"#)["ok"], true);
    watchers.pop();
    let freed = (0..100).any(|_| {
        std::thread::sleep(Duration::from_millis(20));
        daemon.client().ask(r#"{"verb":"status","watch":true}"#)["ok"] == true
    });
    assert!(freed);
}

#[test]
fn one_client_too_many_waits_and_is_served() {
    let daemon = daemon();
    let mut clients: Vec<Client> = (0..CLIENTS_MAX).map(|_| daemon.client()).collect();
    for client in &mut clients {
        assert_eq!(client.ask(r#"{"verb":"status"}"#)["ok"], true);
    }
    let mut late = daemon.client();
    late.write(b"{\"verb\":\"status\"}\n");
    late.reader.get_ref().set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    assert!(late.reader.read_line(&mut String::new()).is_err());
    drop(clients);
    late.reader.get_ref().set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(late.read()["ok"], true);
}

#[test]
fn five_hundred_connections_in_a_row_are_served() {
    let daemon = daemon();
    for _ in 0..500 {
        assert_eq!(daemon.client().ask(r#"{"verb":"status"}"#)["ok"], true);
    }
}

#[test]
fn the_socket_is_for_owner_and_group_and_replaces_only_what_is_dead() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(FILE_NAME);
    let left: Vec<String> = Vec::new();
    drop(UnixListener::bind(&path).unwrap());
    let first = Listener::bind(dir.path()).unwrap();
    assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    let second = Listener::bind(dir.path()).unwrap_err();
    assert_eq!(second.kind(), ErrorKind::AddrInUse);
    assert!(second.to_string().contains("another switchbackd is running"), "{second}");
    drop(first);
    assert!(!path.exists());
    std::fs::write(&path, "x").unwrap();
    assert_eq!(Listener::bind(dir.path()).unwrap_err().kind(), ErrorKind::AlreadyExists);
    assert_eq!(std::fs::read(&path).unwrap(), b"x");
    std::fs::remove_file(&path).unwrap();
    assert_eq!(names(dir.path()), left);
}

#[test]
fn a_listener_never_removes_its_successor() {
    let dir = tempfile::tempdir().unwrap();
    let first = Listener::bind(dir.path()).unwrap();
    std::fs::remove_file(dir.path().join(FILE_NAME)).unwrap();
    let second = Listener::bind(dir.path()).unwrap();
    drop(first);
    assert_eq!(names(dir.path()), [FILE_NAME]);
    drop(second);
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn a_place_that_does_not_exist_is_named() {
    let error = Listener::bind(Path::new("/nonexistent")).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/control.sock: "), "{error}");
}
