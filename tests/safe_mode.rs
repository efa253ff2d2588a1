//! The real daemon with configurations that are wrong, missing or put right: it never ends by itself, and says what to do.
//!
//! Without a network: what it is told to connect to is at a documentation address, and there is no bus. With a session, the
//! same is seen in the lab (`tests/lab/test_safe_mode.py`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Nothing that another program on this machine may use.
const QUIET: &str = "[local]\nmqtt = \"\"\n[status]\nlisten = \"\"\n";
const SERVERS: &str = "[cloud]\nservers = [\"mqtt://192.0.2.1:1883\"]\n";
const LIMIT: Duration = Duration::from_secs(20);

struct Gateway {
    dir: tempfile::TempDir,
    daemon: Option<Child>,
    /// What the daemon tells the service manager.
    told: Receiver<String>,
}

impl Gateway {
    fn new(config: &str) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        let manager = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        let (teller, told) = channel();
        // Taken out at once, as systemd does it: a full socket would hold up the daemon.
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = manager.recv(&mut bytes)
                && teller.send(String::from_utf8_lossy(&bytes[..count]).into_owned()).is_ok()
            {}
        });
        let gateway = Gateway { dir, daemon: None, told };
        gateway.write(config);
        gateway
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, config: &str) {
        fs::write(self.path("switchback.toml"), config).unwrap();
    }

    /// As the service manager does, which then hears what the daemon says of itself.
    fn start(&mut self) {
        let log = fs::File::options().append(true).create(true).open(self.path("log")).unwrap();
        let [config, state, runtime] = ["switchback.toml", "state", "run"].map(|name| self.path(name));
        let mut command = Command::new(env!("CARGO_BIN_EXE_switchbackd"));
        command.arg("--config").arg(config).arg("--state-dir").arg(state).arg("--runtime-dir").arg(runtime);
        command.env("NOTIFY_SOCKET", self.path("notify")).env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent");
        command.env_remove("JOURNAL_STREAM").stdin(Stdio::null()).stdout(Stdio::null());
        self.daemon = Some(command.stderr(log).spawn().unwrap());
    }

    fn signal(&self, name: &str) {
        let pid = self.daemon.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    }

    /// The exit status of an end that was asked for.
    fn stop(&mut self, signal: &str) -> Option<i32> {
        self.signal(signal);
        let until = Instant::now() + LIMIT;
        while Instant::now() < until {
            if let Some(status) = self.daemon.as_mut().unwrap().try_wait().unwrap() {
                self.daemon = None;
                return status.code();
            }
            sleep(Duration::from_millis(10));
        }
        panic!("it does not end: {}", self.log());
    }

    /// Waits until the service manager has heard this.
    fn hears(&self, wanted: &str) -> String {
        let until = Instant::now() + LIMIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let text = self.told.recv_timeout(left).unwrap_or_else(|_| panic!("never heard {wanted}: {}", self.log()));
            if text.contains(wanted) {
                return text;
            }
        }
    }

    fn status(&self) -> Value {
        let until = Instant::now() + LIMIT;
        loop {
            if let Ok(mut stream) = UnixStream::connect(self.path("run/control.sock")) {
                stream.write_all(b"{\"verb\":\"status\"}\n").unwrap();
                let mut answer = String::new();
                BufReader::new(stream).read_line(&mut answer).unwrap();
                let answer: Value = serde_json::from_str(&answer).unwrap_or_default();
                if answer["ok"] == true {
                    return answer["result"].clone();
                }
            }
            assert!(Instant::now() < until, "no answer: {}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    fn wait(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + LIMIT;
        loop {
            let status = self.status();
            if wanted(&status) {
                return status;
            }
            assert!(Instant::now() < until, "not {what}: {status:#}\n{}", self.log());
            sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn says(status: &Value) -> &str {
    status["configuration"]["says"].as_str().unwrap_or_default()
}

#[test]
fn a_gateway_without_servers_waits_says_what_to_do_and_takes_them_at_a_reload() {
    let mut gateway = Gateway::new(QUIET);
    gateway.start();
    gateway.hears("READY=1");
    let heard = gateway.hears("STATUS=");
    assert!(heard.starts_with("STATUS=not configured yet: set cloud.servers in "), "{heard}");
    assert!(heard.contains("systemctl reload switchback"), "{heard}");
    let status = gateway.status();
    assert_eq!((&status["state"], &status["start_reason"]), (&"safe-mode".into(), &"operator".into()));
    assert_eq!(status["configuration"]["safe_mode"], "unconfigured");
    assert_eq!(fs::read_to_string(gateway.path("run/state")).unwrap(), "safe-mode\n");

    gateway.write(&format!("{SERVERS}{QUIET}"));
    gateway.signal("HUP");
    gateway.hears("RELOADING=1");
    gateway.hears("READY=1");
    let status = gateway.wait("configured", |status| status["configuration"]["safe_mode"].is_null());
    assert_eq!((says(&status), &status["start_reason"]), ("", &"config".into()));
    assert_ne!(status["state"], "safe-mode");
    assert!(gateway.log().contains("(cloud.servers)"), "{}", gateway.log());
    assert_eq!(gateway.stop("TERM"), Some(0));
}

#[test]
fn a_bad_configuration_at_a_reload_changes_nothing_and_is_told_until_it_is_put_right() {
    let good = format!("{SERVERS}{QUIET}");
    let mut gateway = Gateway::new(&good);
    gateway.start();
    gateway.hears("READY=1");
    let hash = gateway.status()["configuration"]["hash"].clone();
    gateway.write(&format!("{good}[failover]\nhold_dwn = \"5s\"\n"));
    gateway.signal("HUP");
    let status = gateway.wait("refused", |status| !says(status).is_empty());
    assert!(says(&status).starts_with("the new configuration is not used: "), "{}", says(&status));
    let error = &status["configuration"]["errors"][0];
    assert_eq!((&error["line"], &error["nearest"]), (&8.into(), &"failover.hold_down".into()));
    assert_eq!((&status["configuration"]["running"], &status["configuration"]["hash"]), (&"before".into(), &hash));
    assert!(status["configuration"]["safe_mode"].is_null() && status["start_reason"] == "operator");
    gateway.hears("did you mean \"failover.hold_down\"");
    gateway.write(&good);
    gateway.signal("HUP");
    let status = gateway.wait("in order", |status| says(status).is_empty());
    assert_eq!(
        (&status["start_reason"], &status["configuration"]["running"]),
        (&"operator".into(), &"as-written".into())
    );
}

#[test]
fn a_bad_configuration_at_the_start_runs_what_was_last_on_line_else_what_is_right_in_it() {
    let bad = format!("{SERVERS}client_id = \"new\"\ngrace = 5\n{QUIET}");
    let mut gateway = Gateway::new(&bad);
    gateway.start();
    let status = gateway.status();
    let about = &status["configuration"];
    assert_eq!((&about["safe_mode"], &about["running"]), (&"mistakes".into(), &"salvaged".into()));
    assert!(says(&status).contains("switchback.toml:4: \"cloud.grace\""), "{}", says(&status));
    assert_eq!(gateway.stop("TERM"), Some(0));

    let good = format!("# switchback last-good 1\n{SERVERS}client_id = \"old\"\n{QUIET}");
    fs::write(gateway.path("state/last-good.toml"), good).unwrap();
    gateway.write("[cloud\n");
    gateway.start();
    let status = gateway.status();
    assert_eq!(status["configuration"]["running"], "last-good");
    assert!(says(&status).contains("last on line") && says(&status).contains("not valid TOML"), "{}", says(&status));
    assert_eq!(gateway.stop("TERM"), Some(0));
}

#[test]
fn five_bad_ends_in_a_row_leave_nothing_but_the_connection() {
    let mut gateway = Gateway::new(&format!("{SERVERS}{QUIET}"));
    let mut reasons = Vec::new();
    for _ in 0..4 {
        gateway.start();
        let status = gateway.status();
        assert!(status["configuration"]["safe_mode"].is_null(), "{}", says(&status));
        reasons.push(status["start_reason"].as_str().unwrap().to_owned());
        gateway.stop("KILL");
    }
    assert_eq!(reasons, ["operator", "crash", "crash", "crash"]);
    gateway.start();
    let status = gateway.status();
    assert_eq!((&status["configuration"]["safe_mode"], &status["local"]), (&"crash-loop".into(), &Value::Null));
    assert!(UnixStream::connect(gateway.path("run/mqtt.sock")).is_err(), "applications are not served");
    assert!(gateway.path("run/safe-mode/outbox").is_dir());
    assert_eq!(gateway.stop("TERM"), Some(0));
    gateway.start();
    assert!(gateway.status()["configuration"]["safe_mode"].is_null(), "a good end clears it");
}

#[test]
fn what_is_kept_for_bad_days_is_nobody_elses_to_read() {
    let state = tempfile::tempdir().unwrap();
    switchback::standing::keep(state.path(), "text");
    let mode = fs::metadata(state.path().join("last-good.toml")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
