//! The command line as scripts and people meet it, against a thread that speaks the protocol.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

/// A daemon that gives one prepared answer after the other and notes what was asked.
struct Daemon {
    dir: tempfile::TempDir,
    asked: Arc<Mutex<Vec<Value>>>,
}

fn daemon(answers: &[Value]) -> Daemon {
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("control.sock")).unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let (answers, noted) = (answers.to_vec(), asked.clone());
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut line = String::new();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut line).unwrap();
        noted.lock().unwrap().push(serde_json::from_str(&line).unwrap());
        for answer in answers {
            if writeln!(&stream, "{answer}").is_err() {
                return;
            }
        }
        linger(stream);
    });
    Daemon { dir, asked }
}

/// Keeps the connection until the client goes.
fn linger(stream: UnixStream) {
    let _ = BufReader::new(stream).read_line(&mut String::new());
}

fn good(result: Value) -> Value {
    json!({ "ok": true, "result": result })
}

fn command(dir: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_switchback"));
    command.args(args).env("RUNTIME_DIRECTORY", dir).stdin(Stdio::null());
    command
}

impl Daemon {
    fn run(&self, args: &[&str]) -> (i32, String, String) {
        finished(command(self.dir.path(), args).output().unwrap())
    }

    fn asked(&self) -> Value {
        self.asked.lock().unwrap()[0].clone()
    }
}

fn finished(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Without any daemon.
fn alone(args: &[&str]) -> (i32, String, String) {
    let dir = tempfile::tempdir().unwrap();
    finished(command(dir.path(), args).output().unwrap())
}

/// What goes to the daemon for these arguments.
fn request(args: &[&str]) -> Value {
    let daemon = daemon(&[good(json!({"result": "accepted", "stage": "stored"}))]);
    let (code, _, errors) = daemon.run(args);
    assert_eq!((code, errors.as_str()), (0, ""), "{args:?}");
    daemon.asked()
}

#[test]
fn every_verb_asks_what_it_should() {
    for (args, asked) in [
        (&["status"][..], json!({"verb": "status"})),
        (&["failover"], json!({"verb": "failover-show"})),
        (&["failover", "show", "--json"], json!({"verb": "failover-show"})),
        (&["failover", "set", "eth", "wwan0"], json!({"verb": "failover-set", "list": ["eth", "wwan0"]})),
        (&["failover", "set", "wifi,cell"], json!({"verb": "failover-set", "list": ["wifi", "cell"]})),
        (&["failover", "set", ""], json!({"verb": "failover-set", "list": []})),
        (&["failover", "clear"], json!({"verb": "failover-clear"})),
        (&["failback"], json!({"verb": "failback-show"})),
        (&["failback", "now", "--timeout", "5s"], json!({"verb": "failback-now", "timeout": "5s"})),
        (&["failback", "never"], json!({"verb": "failback-set", "mode": "never"})),
        (&["failback", "auto", "--for", "2d"], json!({"verb": "failback-set", "mode": "auto", "for": "2d"})),
        (&["inhibit"], json!({"verb": "inhibit"})),
        (&["inhibit", "10min"], json!({"verb": "inhibit", "for": "10min"})),
        (&["connect"], json!({"verb": "connect"})),
        (
            &["--json", "connect", "--via", "wlan0", "--timeout=5s"],
            json!({"verb": "connect", "via": "wlan0", "timeout": "5s"}),
        ),
        (&["connect", "--for", "10min"], json!({"verb": "connect", "for": "10min"})),
        (&["disconnect", "--force"], json!({"verb": "disconnect", "force": true})),
        (&["reconnect"], json!({"verb": "reconnect"})),
        (&["flush", "--timeout", "3s"], json!({"verb": "flush", "timeout": "3s"})),
        (
            &["events", "--since", "2h", "--boot", "--limit", "9"],
            json!({"verb": "events", "since": "2h", "boot": true, "limit": 9}),
        ),
        (&["outbox"], json!({"verb": "outbox-show"})),
        (&["outbox", "show", "--json"], json!({"verb": "outbox-show"})),
        (&["outbox", "drop", "bulk", "--yes"], json!({"verb": "outbox-drop", "class": "bulk"})),
        (&["outbox", "-y", "drop", "rejected"], json!({"verb": "outbox-drop", "class": "rejected"})),
        (&["reset", "all", "--yes"], json!({"verb": "reset", "what": "all"})),
        (&["reset", "failover"], json!({"verb": "reset", "what": "failover"})),
        (&["publish", "a/b"], json!({"verb": "publish", "topic": "a/b", "payload": ""})),
        (
            &["publish", "a", "ü", "--qos", "0", "--retain", "--wait", "acked", "--class", "normal"],
            json!({"verb": "publish", "topic": "a", "payload": "ü", "qos": 0, "retain": true, "wait": "acked",
                   "class": "normal"}),
        ),
        (&["publish", "a", "--", "-5"], json!({"verb": "publish", "topic": "a", "payload": "-5"})),
        (&["publish", "a", "x\ty"], json!({"verb": "publish", "topic": "a", "payload_base64": "eAl5"})),
    ] {
        assert_eq!(request(args), asked, "{args:?}");
    }
}

#[test]
fn a_payload_is_read_from_standard_input() {
    let daemon = daemon(&[good(json!({"result": "accepted", "stage": "acked"}))]);
    let mut child: Child = command(daemon.dir.path(), &["publish", "a", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(&[0, 255]).unwrap();
    let (code, out, _) = finished(child.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (0, "acked\n"));
    assert_eq!(daemon.asked(), json!({"verb": "publish", "topic": "a", "payload_base64": "AP8="}));
}

#[test]
fn wrong_usage_exits_2_and_says_what_to_write() {
    for (args, hint) in [
        (&[][..], "--help"),
        (&["simulate"], "unknown verb \"simulate\""),
        (&["simulate", "x"], "unknown verb \"simulate\""),
        (&["statsu"], "did you mean \"status\"?"),
        (&["status", "--wacth"], "did you mean \"--watch\"?"),
        (&["status", "--via", "x"], "status takes no option \"--via\""),
        (&["reconnect", "--for", "5s"], "reconnect takes no option \"--for\""),
        (&["failback", "nwo"], "failback nwo: write now, auto, never or nothing; did you mean \"now\"?"),
        (&["failback", "now", "then"], "failback now then: write now, auto, never or nothing"),
        (&["failback", "manual"], "belongs into the configuration (failover.failback)"),
        (&["failback", "now", "--for", "5s"], "failback now takes no option \"--for\""),
        (&["failback", "--timeout", "5s"], "failback takes no option \"--timeout\""),
        (&["failback", "now", "--timeout", "5"], "write for example \"5s\""),
        (&["inhibit", "5s", "6s"], "inhibit takes one duration"),
        (&["status", "now"], "status takes no \"now\""),
        (&["outbox", "drop"], "outbox drop takes one class, or all, or rejected"),
        (&["outbox", "shwo"], "write show or drop CLASS|all|rejected"),
        (&["reset", "everything"], "reset takes one of outbox, failover, all"),
        (&["failover", "put"], "write show, set NAME... or clear"),
        (&["publish"], "TOPIC [PAYLOAD|-]"),
        (&["publish", "a", "-5"], "write -- before"),
        (&["publish", "a", "b", "c"], "TOPIC [PAYLOAD|-]"),
        (&["publish", "a", "--qos", "x"], "\"x\" is no number"),
        (&["flush", "--timeout", "5"], "write for example \"5s\""),
        (&["flush", "--timeout", "99999d"], "longer than an hour"),
        (&["flush", "--timeout"], "missing argument"),
        (&["config"], "check [FILE]"),
        (&["config", "chekc"], "check [FILE]"),
        (&["config", "check", "a", "--config", "b"], "given twice"),
    ] {
        let (code, out, errors) = alone(args);
        assert_eq!((code, out.as_str()), (2, ""), "{args:?}\n{errors}");
        assert!(errors.starts_with("switchback: ") && errors.contains(hint), "{args:?}\n{errors}");
    }
}

#[test]
fn without_a_daemon_it_says_how_to_start_it_and_exits_3() {
    let (code, out, errors) = alone(&["status"]);
    assert_eq!((code, out.as_str()), (3, ""));
    assert!(errors.starts_with("switchback: switchbackd is not running (no control socket at /"), "{errors}");
    assert!(errors.ends_with("/control.sock): start it with `systemctl start switchback`\n"), "{errors}");

    // A socket that was left behind.
    let dir = tempfile::tempdir().unwrap();
    drop(UnixListener::bind(dir.path().join("control.sock")).unwrap());
    let (code, out, _) = finished(command(dir.path(), &["--json", "status"]).output().unwrap());
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, out["code"].as_u64()), (3, Some(3)));
    assert!(out["message"].as_str().unwrap().contains("nobody answers at"), "{out}");
}

#[test]
fn the_runtime_directory_option_wins_over_the_environment() {
    let daemon = daemon(&[good(json!({"state": "online"}))]);
    let empty = tempfile::tempdir().unwrap();
    let dir = daemon.dir.path().to_str().unwrap();
    let (code, ..) = finished(command(empty.path(), &["--runtime-dir", dir, "status"]).output().unwrap());
    assert_eq!(code, 0);
}

#[test]
fn a_daemon_that_hangs_up_or_talks_nonsense_is_survived() {
    let gone = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(gone.path().join("control.sock")).unwrap();
    let thread = std::thread::spawn(move || drop(listener.accept().unwrap()));
    let (code, _, errors) = finished(command(gone.path(), &["status"]).output().unwrap());
    thread.join().unwrap();
    assert_eq!(code, 3, "{errors}");
    assert!(errors.contains("has hung up"), "{errors}");
    for answer in [json!(5), json!({}), json!({"ok": "yes"}), json!([])] {
        let (code, _, errors) = daemon(&[answer]).run(&["status"]);
        assert_eq!(code, 1);
        assert!(errors.contains("does not understand"), "{errors}");
    }
    for result in [json!(null), json!([]), json!({"uplinks": 5, "session": {}, "last_outage": {}, "failback": {}})] {
        for verb in ["status", "failover", "events", "flush", "connect"] {
            let (code, _, errors) = daemon(&[good(result.clone())]).run(&[verb]);
            assert_eq!((code, errors.as_str()), (0, ""), "{verb}");
        }
    }
}

#[test]
fn what_the_daemon_refuses_decides_the_exit_status() {
    let refusal = |code| json!({"ok": false, "code": code, "message": "not connected", "reason": "no-server"});
    let (code, out, errors) = daemon(&[refusal(1)]).run(&["connect", "--timeout", "5s"]);
    assert_eq!((code, out.as_str(), errors.as_str()), (1, "", "switchback: not connected\n"));
    let (code, out, errors) = daemon(&[refusal(2)]).run(&["connect", "--json"]);
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, errors.as_str()), (2, ""));
    assert_eq!(out, json!({"code": 2, "message": "not connected", "reason": "no-server"}));
}

#[test]
fn publish_exits_by_its_result() {
    let result = |result, stage| daemon(&[good(json!({"result": result, "stage": stage}))]);
    let (code, out, _) = result("accepted", json!("stored")).run(&["publish", "a", "b"]);
    assert_eq!((code, out.as_str()), (0, "stored\n"));
    let (code, out, why) = result("time-limit", json!("stored")).run(&["publish", "a", "b", "--wait", "acked"]);
    assert_eq!((code, out.as_str()), (1, "time-limit (came as far as stored)\n"));
    assert!(why.contains("goes up when it can"), "{why}");
    for (word, hint) in
        [("would-block", "class is full"), ("not-connected", "and there is none"), ("lost", "not arrive")]
    {
        let (code, out, why) = result(word, json!(null)).run(&["publish", "a", "b"]);
        assert_eq!((code, out), (1, format!("{word}\n")));
        assert!(why.starts_with("switchback: ") && why.contains(hint), "{why}");
    }
    let (code, out, _) = result("would-block", json!(null)).run(&["publish", "a", "b", "--json"]);
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, out), (1, json!({"result": "would-block", "stage": null})));
}

#[test]
fn nothing_is_given_up_without_a_yes() {
    for args in [&["outbox", "drop", "bulk"][..], &["reset", "outbox"], &["reset", "all"]] {
        let (code, out, errors) = alone(args);
        assert_eq!((code, out.as_str()), (1, ""), "{args:?}");
        assert!(errors.contains("write --yes where nobody can be asked"), "{errors}");
    }
}

#[test]
fn the_outbox_is_a_table_of_classes_and_what_was_set_aside() {
    let class = |messages, held, dropped, priority, memory| {
        json!({"messages": messages, "bytes": messages * 300, "oldest_s": 61, "in_flight": 0, "dropped": dropped,
               "expired": 0, "refused": 0, "rejected": 0, "held": held, "memory": memory, "priority": priority})
    };
    let aside = json!([{"time": "2026-11-20T10:00:00.123Z", "topic": "a/b", "id": "x", "class": "normal",
                        "why": "not authorized (0x87)", "bytes": 2000, "payload": ""}]);
    let classes = json!({"bulk": class(12, 12, 3, 2, false), "low": class(0, 0, 0, 0, true)});
    let (code, out, _) = daemon(&[good(json!({"classes": classes, "set_aside": aside}))]).run(&["outbox"]);
    assert_eq!(code, 0);
    let want = "\
CLASS  MESSAGES  SIZE    OLDEST  IN FLIGHT  HELD  DROPPED  KEPT IN
bulk   12        3.6 kB  61s     0          12    3        disk
low    0         0 B     -       0          -     -        memory
held: the present uplink may not carry it

set aside, because the server will never take them (1 message):
WHEN                  CLASS   TOPIC  SIZE    WHY
2026-11-20 10:00:00Z  normal  a/b    2.0 kB  not authorized (0x87)
`switchback outbox drop rejected` forgets them
";
    assert_eq!(out, want);
    let status = json!({"outbox": {"messages": 12, "in_flight": 0, "classes": classes}});
    let (_, out, _) = daemon(&[good(status)]).run(&["status"]);
    assert!(out.contains("\n  bulk      12 messages, oldest 61s, 12 held for another uplink, 3 dropped\n"), "{out}");
    assert!(!out.contains("low"), "{out}");
    let dropped = json!({"result": "dropped", "messages": 12, "in_flight": 2});
    let (_, out, _) = daemon(&[good(dropped)]).run(&["outbox", "drop", "bulk", "-y"]);
    assert_eq!(out, "12 messages dropped; 2 in flight go their way\n");
}

#[test]
fn the_way_back_is_told_in_three_lines() {
    let soon = || (jiff::Timestamp::now() + jiff::SignedDuration::from_secs(599)).to_string();
    let holds = json!({"mode": "auto", "until": null, "target": "wlan0", "eligible_in_ms": 30_000,
                       "held_because": "hold-down", "inhibited_until": null});
    let (code, out, _) = daemon(&[good(holds)]).run(&["failback"]);
    let want = "failback   auto, as configured\nreturn     to wlan0 in 30s (hold-down)\ninhibited  no\n";
    assert_eq!((code, out.as_str()), (0, want));
    let holds = json!({"mode": "never", "until": soon(), "target": null, "eligible_in_ms": null,
                       "held_because": null, "inhibited_until": soon()});
    let (_, out, _) = daemon(&[good(holds)]).run(&["failback", "never"]);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with("failback   never until 20"), "{out}");
    assert!(lines[0].ends_with("Z (for 9min 58s); for good, set failover.failback"), "{out}");
    assert_eq!(lines[1], "return     no better uplink is ready");
    assert!(lines[2].starts_with("inhibited  until 20") && lines[2].ends_with("Z (for 9min 58s)"), "{out}");
}

#[test]
fn going_back_now_says_what_came_of_it() {
    let now = |result: Value| daemon(&[result]).run(&["failback", "now"]);
    let moved = |result: &str| good(json!({"result": result, "uplink": "wlan0"}));
    assert_eq!(now(moved("moved")), (0, "moved to wlan0\n".into(), String::new()));
    assert_eq!(now(moved("nothing-better")), (0, "stays on wlan0: nothing better is there\n".into(), String::new()));
    let why = "traffic stays on wwan0: the better uplink: no carrier (no-link)";
    let (code, out, errors) = now(json!({"ok": false, "code": 1, "message": why, "reason": "no-link"}));
    assert_eq!((code, out.as_str(), errors), (1, "", format!("switchback: {why}\n")));
}

fn status() -> Value {
    json!({
        "state": "online-on-backup", "connected": true, "uplink": "wwan0", "class": "cell",
        "since": "2026-11-20T08:00:00.000Z", "last_inbound_ms": 412, "next_attempt_ms": null,
        "session": {"id": 17, "server": "broker.example.com:8883", "protocol": "5.0", "tls": "1.3", "present": true,
                    "rtt_ms": 31.0},
        "failover": {"stored": ["wifi", "cell"], "walk": ["wlan0", "wwan0", "eth0"], "index": 1},
        "uplinks": [
            {"name": "wlan0", "class": "wifi", "step": "no-internet", "usable": false, "reason": "no-server",
             "metered": false, "rtt_ms": null, "loss": 0.2, "signal": 71, "bytes_up": 1_234_567, "bytes_down": 999,
             "liveness_bytes": 408, "spare_handshakes": 1, "warm": true, "address": "192.0.2.7", "send_buffer": null},
            {"name": "wwan0", "class": "cell", "step": "online", "usable": true, "reason": null, "metered": true,
             "rtt_ms": 31.0, "loss": 0.0, "signal": null, "bytes_up": 1, "bytes_down": 2, "liveness_bytes": 0,
             "address": "\u{1b}[2J", "send_buffer": 65536}
        ],
        "outbox": {"messages": 3, "bytes": 600, "oldest_s": 12, "in_flight": 2, "dropped": 0, "classes": {}},
        "last_outage": {"first_cause": "no-link", "last_reason": "no-server", "began": "2026-11-20T07:59:59.500Z",
                        "ended": "2026-11-20T08:00:00.000Z", "attempts": 2, "uplinks_tried": 2, "detected_ms": 500,
                        "gap_ms": 1000},
        "last_switch": {"from": "wlan0", "to": "wwan0", "why": "acknowledgement-limit", "at": "2026-11-20T08:00:00.000Z",
                        "detection_ms": 560, "switch_ms": 42, "pause_ms": 610, "in_flight": 3, "repeated": 1,
                        "refused": 0},
        "switches": [], "inhibited_until": null,
        "failback": {"mode": "auto", "until": null, "target": "wlan0", "eligible_in_ms": 30_000,
                     "held_because": "hold-down"}
    })
}

#[test]
fn status_fits_one_screen() {
    let (code, out, _) = daemon(&[good(status())]).run(&["status"]);
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert_eq!(lines[0], "state       online-on-backup over wwan0 (cell)");
    assert!(lines[1].starts_with("since       2026-11-20 08:00:00Z"), "{out}");
    assert_eq!(
        lines[2..],
        [
            "last heard  412ms ago",
            "session     broker.example.com:8883, MQTT 5.0, TLS 1.3, resumed, round trip 31 ms, number 17",
            "outbox      3 messages, 600 B, oldest 12s, 2 in flight",
            "list        wifi cell -> wlan0 wwan0 eth0",
            "failback    to wlan0 in 30s (hold-down)",
            lines[7],
            lines[8],
            "",
            "   UPLINK  CLASS  STEP         SPARE  REASON     COST     RTT    LOSS  SIGNAL  UP      DOWN   LIVENESS  ADDRESS",
            "   wlan0   wifi   no-internet  warm   no-server  free     -      20 %  71 %    1.2 MB  999 B  408 B     192.0.2.7",
            "*  wwan0   cell   online       -      -          metered  31 ms  0 %   -       1 B     2 B    0 B       ?[2J",
        ],
        "{out}"
    );
    assert!(lines[7].contains("lasted 1.0s, seen after 500ms, no-link, then no-server, 2 attempts"), "{out}");
    let switch = ", wlan0 to wwan0, acknowledgement-limit seen after 560ms, moved in 42ms, pause 610ms";
    assert!(lines[8].starts_with("last switch 2026-11-20 08:00:00Z") && lines[8].ends_with(switch), "{out}");
    assert!(!out.contains('\u{1b}') && lines.len() <= 24);
}

#[test]
fn status_as_json_is_the_daemons_document() {
    let (_, out, _) = daemon(&[good(status())]).run(&["status", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap(), status());
}

#[test]
fn watching_status_prints_every_change_and_ends_with_the_daemon() {
    let answers = [good(json!({"state": "idle"})), good(json!({"state": "online"}))];
    let daemon = daemon(&answers);
    let mut child =
        command(daemon.dir.path(), &["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "{\"state\":\"idle\"}");
    assert_eq!(lines.next().unwrap().unwrap(), "{\"state\":\"online\"}");
    assert_eq!(daemon.asked(), json!({"verb": "status", "watch": true}));
    assert!(child.try_wait().unwrap().is_none());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn events_are_lines_with_time_and_deeds_further_in() {
    let event = |kind, line| json!({"time": "2026-11-20T08:00:00.123456Z", "uptime_ms": 5, "boot": "b", "kind": kind, "line": line});
    let first = good(json!({"events": [event("event", "link wlan0 down"), event("action", "hang up #7 abort")]}));
    let (code, out, _) = daemon(std::slice::from_ref(&first)).run(&["events"]);
    assert_eq!(code, 0);
    assert_eq!(out, "2026-11-20T08:00:00.123456Z  link wlan0 down\n2026-11-20T08:00:00.123456Z    hang up #7 abort\n");
    let daemon = daemon(&[first, good(event("note", "more"))]);
    let mut child = command(daemon.dir.path(), &["events", "-f", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines: Vec<String> = BufReader::new(child.stdout.take().unwrap()).lines().take(3).map(Result::unwrap).collect();
    assert_eq!(serde_json::from_str::<Value>(&lines[2]).unwrap(), event("note", "more"));
    // A closed pipe ends it quietly the next time it writes; here nothing comes any more.
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    let many: Vec<Value> = (0..10_000).map(|n| json!({"time": "t", "kind": "event", "line": n.to_string()})).collect();
    let daemon = daemon(&[good(json!({ "events": many }))]);
    let mut child =
        command(daemon.dir.path(), &["events"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let (code, _, errors) = finished(child.wait_with_output().unwrap());
    assert_eq!((code, errors.as_str()), (0, ""));
}

#[test]
fn failover_shows_the_walk() {
    let document = json!({"stored": ["wifi", "eth9"], "walk": ["wlan0", "wwan0"], "tail": ["wwan0"], "index": 0,
                          "active": "wlan0", "absent": ["eth9"]});
    let (_, out, _) = daemon(&[good(document)]).run(&["failover"]);
    assert_eq!(
        out,
        "stored  wifi eth9\n   #  UPLINK\n>  0  wlan0   active\n   1  wwan0   default tail\nabsent  eth9\n"
    );
}

// What needs no daemon.

fn file(text: &str) -> (tempfile::TempDir, String) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("switchback.toml");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap().to_string();
    (dir, path)
}

#[test]
fn config_check_tells_errors_with_file_and_line() {
    let (_dir, path) = file("[cloud]\nclient_id = \"gw\"\nseverz = []\n");
    let (code, out, _) = alone(&["config", "check", &path]);
    assert_eq!(code, 2);
    let missing = "\"cloud.servers\": is missing; write under [cloud]: servers = [\"mqtts://broker.example.com:8883\"]";
    let unknown = "unknown key \"cloud.severz\"; did you mean \"cloud.servers\"?";
    assert_eq!(out, format!("{path}:1: {missing}\n{path}:3: {unknown}\n2 errors\n"));
    let (code, out, _) = alone(&["--json", "config", "check", "--config", &path]);
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(code, 2);
    let error = &out["errors"][1];
    assert_eq!(
        (&error["line"], &error["key"], &error["nearest"]),
        (&json!(3), &json!("cloud.severz"), &json!("cloud.servers"))
    );
    let (code, out, _) = alone(&["config", "check", "/nonexistent/x.toml"]);
    assert_eq!(code, 2);
    assert!(out.starts_with("no configuration at /nonexistent/x.toml: "), "{out}");
}

#[test]
fn config_check_tells_warnings_and_worst_cases() {
    let (_dir, path) = file("[cloud]\nservers = [\"mqtts://b\"]\nclient_id = \"gw\"\nbase = \"\"\n");
    let (code, out, _) = alone(&["config", "check", &path]);
    assert_eq!(code, 0);
    let lines: Vec<&str> = out.lines().collect();
    assert!(lines[0].starts_with(&format!("warning: {path}:4: \"cloud.base\": is empty: no last will")), "{out}");
    assert_eq!(lines[1], format!("{path}: good, 1 warning"));
    let wifi = "wifi      2.5 round trips  at once          120s   12s                      35s       132s";
    assert!(lines.contains(&wifi), "{out}");
    let low = "low       any      0         memory           1MiB, 10000 messages  drop-oldest  -";
    assert!(lines.iter().any(|line| line.starts_with(low.trim_end_matches("  -"))), "{out}");
    assert!(lines.contains(&"low lives in memory only: lost when the daemon ends"), "{out}");
    assert!(lines.contains(&"an acknowledgement may take 1s (outbox.late) and one sync"), "{out}");
    let cell = "cell      2.3 MB   0 B  *0 B, at most 10.8 MB  129.6 MB to 216.0 MB";
    assert!(lines.contains(&cell), "{out}");
    let (_, out, _) = alone(&["config", "check", &path, "--json"]);
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["worst_cases"][0]["silence_detected_ms"], 35_000);
    assert_eq!(out["warnings"][0]["key"], "cloud.base");
    assert_eq!((&out["longest_wait_ms"], &out["queues"][2]["class"]), (&json!(1000), &json!("bulk")));
    assert_eq!((&out["queues"][3]["directory"], &out["queues"][3]["memory"]), (&Value::Null, &json!(true)));
    assert_eq!(out["costs"][2]["standby"], "up");
    assert_eq!(out["costs"][2]["warm"]["bytes_month"], 129_600_000);
}

#[test]
fn config_check_tells_how_long_batch_makes_an_application_wait() {
    let text = "[cloud]\nservers = [\"mqtts://b\"]\nclient_id = \"gw\"\n[outbox]\ndurability = \"batch\"\ncommit_interval = \"10s\"\n";
    let (_dir, path) = file(text);
    let (_, out, _) = alone(&["config", "check", &path]);
    let wait =
        "an acknowledgement may take 11s and one sync: outbox.late, and commit_interval = \"10s\" (durability batch)\n";
    assert!(out.contains(wait), "{out}");
    assert!(alone(&["config", "show", &path]).1.contains(wait), "{out}");
}

#[test]
fn config_show_reads_back_and_default_is_the_shipped_file() {
    let (_dir, path) = file("[cloud]\nservers = [\"mqtts://b\"]\nclient_id = \"gw\"\n");
    let (code, shown, _) = alone(&["config", "show", &path]);
    assert_eq!(code, 0);
    let (_dir, again) = file(&shown);
    assert_eq!(alone(&["config", "check", &again]).0, 0);
    let (_, out, _) = alone(&["config", "show", &path, "--json"]);
    let out: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(out["uplink"]["cell"]["socket"]["keepalive_idle"], "260s");
    let (code, out, _) = alone(&["config", "default"]);
    assert_eq!((code, out.as_str()), (0, include_str!("../config/switchback.toml")));
}

#[test]
fn help_and_version_need_nothing() {
    let (code, out, _) = alone(&["--help"]);
    assert!(code == 0 && out.contains("exit status:"));
    assert!(out.lines().all(|line| line.len() <= 100));
    let (code, out, _) = alone(&["status", "--version"]);
    assert_eq!((code, out), (0, format!("switchback {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn a_user_who_may_not_is_told_how() {
    use std::fs::{Permissions, copy, set_permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let daemon = daemon(&[]);
    set_permissions(daemon.dir.path(), Permissions::from_mode(0o700)).unwrap();
    // Nothing is forbidden to root: become somebody else, where we can, with a program that they can reach.
    let open = tempfile::tempdir().unwrap();
    set_permissions(open.path(), Permissions::from_mode(0o755)).unwrap();
    let program = open.path().join("switchback");
    copy(env!("CARGO_BIN_EXE_switchback"), &program).unwrap();
    let nobody = Command::new(&program)
        .args(["status"])
        .env("RUNTIME_DIRECTORY", daemon.dir.path())
        .uid(65_534)
        .stdin(Stdio::null())
        .output();
    let Ok(output) = nobody else { return };
    let (code, _, errors) = finished(output);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("use sudo, or join the group `switchback`"), "{errors}");
}
