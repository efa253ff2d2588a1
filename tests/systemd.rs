//! What systemd is told, and the files it is given.

use std::os::unix::net::UnixDatagram;
use std::process::{Command, Output};
use std::time::Duration;

use switchback::io::systemd;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Set for the child that speaks to the service manager of the test.
const CHILD: &str = "SWITCHBACK_TEST_CHILD";

#[test]
fn the_service_manager_hears_ready_status_watchdog_and_stopping() {
    if std::env::var_os(CHILD).is_some() {
        assert_eq!(systemd::watchdog_interval(), Some(Duration::from_secs(30)));
        systemd::ready();
        systemd::status("online wlan0\nsecond line");
        systemd::feed();
        systemd::stopping();
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let child = child("the_service_manager_hears_ready_status_watchdog_and_stopping")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "60000000")
        .output()
        .unwrap();
    assert!(child.status.success(), "{}", text(&child));
    for wanted in ["READY=1\n", "STATUS=online wlan0\n", "WATCHDOG=1\n", "STOPPING=1\n"] {
        let mut bytes = [0; 100];
        let count = socket.recv(&mut bytes).unwrap();
        assert_eq!(std::str::from_utf8(&bytes[..count]).unwrap(), wanted);
    }
}

#[test]
fn outside_systemd_nothing_happens() {
    if std::env::var_os(CHILD).is_some() {
        systemd::ready();
        systemd::feed();
        assert_eq!(systemd::watchdog_interval(), None);
        return;
    }
    let child = child("outside_systemd_nothing_happens").output().unwrap();
    assert!(child.status.success(), "{}", text(&child));
}

#[test]
fn without_a_journal_lines_are_plain_and_the_level_is_kept() {
    if std::env::var_os(CHILD).is_some() {
        systemd::start_log();
        log::info!(target: "switchback", SWITCHBACK_STATE = "online", SWITCHBACK_ATTEMPT = 8; "online wlan0");
        log::debug!(target: "switchback", "not this");
        log::warn!("but this");
        log::info!(target: "zbus", "and not what a library says");
        log::logger().flush();
        return;
    }
    let child = child("without_a_journal_lines_are_plain_and_the_level_is_kept").output().unwrap();
    assert!(child.status.success(), "{}", text(&child));
    assert_eq!(String::from_utf8_lossy(&child.stderr), "online wlan0\nwarning: but this\n");
}

#[test]
fn an_unknown_level_is_said() {
    if std::env::var_os(CHILD).is_some() {
        systemd::start_log();
        log::logger().flush();
        return;
    }
    let child = child("an_unknown_level_is_said").env(systemd::LEVEL_VARIABLE, "loud").output().unwrap();
    assert!(text(&child).contains("warning: SWITCHBACK_LOG=loud is not a level; use error, warn, info or debug"));
}

#[test]
fn the_unit_is_what_systemd_understands_and_exposes_little() {
    // The programs and their manual pages are not installed where this is tested.
    let dir = tempfile::tempdir().unwrap();
    let unit = dir.path().join("switchback.service");
    let text_of = std::fs::read_to_string(format!("{ROOT}/systemd/switchback.service")).unwrap();
    let shown = text_of.replace("/usr/sbin/switchbackd", "/bin/true");
    let shown: String = shown.lines().filter(|l| !l.starts_with("Documentation=")).map(|l| format!("{l}\n")).collect();
    std::fs::write(&unit, shown).unwrap();
    let verified = run(Command::new("systemd-analyze").arg("verify").arg(&unit));
    // Older systemd does not know the two back-off settings, and says so of other machines' units too.
    let complaints: Vec<_> = text(&verified)
        .lines()
        .filter(|line| line.contains("switchback.service") && !line.contains("'Restart"))
        .map(str::to_owned)
        .collect();
    assert!(complaints.is_empty(), "{complaints:#?}");
    let exposed =
        run(Command::new("systemd-analyze").args(["security", "--offline=true", "--threshold=13"]).arg(&unit));
    assert!(exposed.status.success(), "more than 1.3:\n{}", text(&exposed));
}

#[test]
fn the_unit_starts_for_ever_and_waits_for_no_network() {
    let unit = std::fs::read_to_string(format!("{ROOT}/systemd/switchback.service")).unwrap();
    let has = |line: &str| unit.lines().any(|l| l == line);
    assert!(has("Type=notify") && has("WatchdogSec=60s") && has("Restart=always") && has("StartLimitIntervalSec=0"));
    assert!(has("After=dbus.service NetworkManager.service") && has("User=switchback"));
    assert!(has("ExecReload=/bin/kill -HUP $MAINPID"));
    assert!(has("RestartSec=1s") && has("RestartMaxDelaySec=5s"), "five starts must fit into the 30 s of a crash loop");
    let settings: Vec<_> = unit.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(!settings.iter().any(|line| line.contains("network-online") || line.contains("RestartPrevent")));
}

#[test]
fn the_user_and_the_directories_are_what_systemd_understands() {
    let users =
        run(Command::new("systemd-sysusers").arg("--dry-run").arg(format!("{ROOT}/systemd/switchback.sysusers.conf")));
    assert!(users.status.success() && !text(&users).contains("ignoring"), "{}", text(&users));
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    std::fs::write(root.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\n").unwrap();
    std::fs::write(root.path().join("etc/group"), "root:x:0:\nswitchback:x:999:\n").unwrap();
    let made = run(Command::new("systemd-tmpfiles")
        .arg("--create")
        .arg(format!("--root={}", root.path().display()))
        .arg(format!("{ROOT}/systemd/switchback.tmpfiles.conf")));
    assert!(made.status.success(), "{}", text(&made));
    assert!(root.path().join("etc/switchback/conf.d").is_dir());
}

/// This test again, alone, as a process of its own: what it does depends on the environment.
fn child(test: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    for variable in ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", systemd::LEVEL_VARIABLE] {
        command.env_remove(variable);
    }
    command
}

fn run(command: &mut Command) -> Output {
    command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error} (the tests need systemd installed, not running)"))
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
