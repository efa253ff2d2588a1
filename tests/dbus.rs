//! The D-Bus service on a bus of its own, read with busctl as a user would.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use switchback::api::{CALLS_MAX, Call, Calls, Failure};
use switchback::control::{Notice, Reason};
use switchback::io::dbus;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::ChildStdout;
use tokio::sync::{broadcast, mpsc, watch};

const NAME: &str = "org.switchback.Switchback1";
const PATH: &str = "/org/switchback/Switchback1";
/// More than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn busctl_reads_every_property_with_its_type() {
    let front = Front::on(Bus::open_to_all()).await;
    let read = |property: &'static str| front.busctl(&["get-property", NAME, PATH, NAME, property]);
    assert_eq!(read("State").await, "s \"online\"");
    assert_eq!(read("Connected").await, "b true");
    assert_eq!(read("Uplink").await, "s \"wlan0\"");
    assert_eq!(read("Class").await, "s \"wifi\"");
    assert_eq!(read("Since").await, "s \"2026-11-20T10:00:00.000Z\"");
    assert_eq!(read("LastInboundMs").await, "x 7", "asked of the loop, not of the older document");
    assert_eq!(read("NextAttemptMs").await, "x -1");
    assert_eq!(read("Session").await, "a{sv} 2 \"id\" x 17 \"rtt_ms\" d 31.5");
    let walk = "a{sv} 3 \"index\" x 0 \"stored\" as 2 \"wifi\" \"cell\" \"walk\" as 2 \"wlan0\" \"wwan0\"";
    assert_eq!(read("Failover").await, walk);
    assert_eq!(read("Uplinks").await, "aa{sv} 2 2 \"name\" s \"wlan0\" \"usable\" b true 1 \"name\" s \"wwan0\"");
    assert_eq!(read("Outbox").await, "a{sv} 1 \"messages\" x 3");
    assert_eq!(read("LastOutage").await, "a{sv} 0");
    assert_eq!(read("LastSwitch").await, "a{sv} 2 \"from\" s \"eth0\" \"switch_ms\" x 42");
    assert_eq!(read("Switches").await, "aa{sv} 0");
    assert_eq!(read("Failback").await, "a{sv} 0");
    assert_eq!(read("InhibitedUntil").await, "s \"\"");
}

#[tokio::test]
async fn it_introspects_with_methods_properties_and_the_signals_that_are_real() {
    let front = Front::on(Bus::open_to_all()).await;
    let listing = front.busctl(&["introspect", NAME, PATH, NAME]).await;
    for line in [
        ".Status method a{sv} a{sv}",
        ".FailoverSet method a{sv} a{sv}",
        ".FailbackSet method a{sv} a{sv}",
        ".Inhibit method a{sv} a{sv}",
        ".Events method a{sv} a{sv}",
        ".InhibitedUntil property s",
        ".Uplinks property aa{sv}",
        ".StateChanged signal ss",
        ".UplinkChanged signal s",
        ".Lost signal s",
        ".Outage signal s",
        ".Restored signal -",
    ] {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let found = listing.lines().any(|have| words(have).starts_with(&words(line)));
        assert!(found, "{line} is not in\n{listing}");
    }
    assert!(!listing.contains("Acked") && !listing.contains("RestartPending"));
}

#[tokio::test]
async fn a_method_is_a_verb_and_its_answer_the_verbs_keys() {
    let front = Front::on(Bus::open_to_all()).await;
    let call = ["call", NAME, PATH, NAME];
    let set = [&call[..], &["FailoverSet", "a{sv}", "1", "list", "as", "2", "wifi", "cell"]].concat();
    let answer = front.busctl(&set).await;
    assert_eq!(answer, "a{sv} 2 \"options\" a{sv} 1 \"list\" as 2 \"wifi\" \"cell\" \"verb\" s \"failover-set\"");
    for (method, verb) in [
        ("Status", "status"),
        ("FailoverShow", "failover-show"),
        ("FailoverClear", "failover-clear"),
        ("FailbackShow", "failback-show"),
        ("FailbackNow", "failback-now"),
        ("FailbackSet", "failback-set"),
        ("Inhibit", "inhibit"),
        ("Connect", "connect"),
        ("Disconnect", "disconnect"),
        ("Reconnect", "reconnect"),
        ("Flush", "flush"),
        ("OutboxShow", "outbox-show"),
        ("OutboxDrop", "outbox-drop"),
        ("Reset", "reset"),
        ("Events", "events"),
    ] {
        let answer = front.busctl(&[&call[..], &[method, "a{sv}", "0"]].concat()).await;
        assert!(answer.contains(&format!("\"verb\" s \"{verb}\"")), "{method}: {answer}");
    }
}

#[tokio::test]
async fn a_failure_is_an_error_with_its_sentence() {
    let front = Front::on(Bus::open_to_all()).await;
    let publish = |topic: &'static str| {
        let call = ["call", NAME, PATH, NAME, "Publish", "a{sv}", "1", "topic", "s", topic];
        run(busctl(&front.bus.address), &call)
    };
    let (good, said) = publish("fail").await;
    assert!(!good && said.contains("Nothing was sent. (no-link)"), "{said}");
    let (good, said) = publish("usage").await;
    assert!(!good && said.contains("No such option."), "{said}");
    let names = |topic: &'static str| {
        let mut gdbus = Command::new("gdbus");
        gdbus.args(["call", "--address", &front.bus.address, "--dest", NAME, "--object-path", PATH]);
        let topic = format!("{{'topic': <'{topic}'>}}");
        let method = format!("{NAME}.Publish");
        run(gdbus, &["--method", &method, &topic])
    };
    assert!(names("fail").await.1.contains("org.switchback.Switchback1.Error.Failed"));
    assert!(names("usage").await.1.contains("org.switchback.Switchback1.Error.Usage"));
}

#[tokio::test]
async fn signals_tell_what_changes_and_properties_changed_is_gathered() {
    let front = Front::on(Bus::open_to_all()).await;
    let mut seen = front.monitor().await;
    // gdbus subscribes a moment after it says that the name is there.
    let repeat = async {
        loop {
            front.notices.send(Notice::Lost { reason: Reason::NoLink }).unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = repeat => {}
        () = seen.until("Lost \"no-link\"") => {}
    }
    front.notices.send(Notice::Outage { reason: Reason::NoLink }).unwrap();
    seen.until("Outage \"no-link\"").await;
    let start = Instant::now();
    for number in 0..100 {
        front.status.send_modify(|document| {
            Arc::make_mut(document).insert("outbox".into(), json!({"messages": number}));
        });
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lasted = start.elapsed();
    front.status.send_modify(|document| {
        let document = Arc::make_mut(document);
        document.insert("state".into(), json!("no-internet"));
        document.insert("uplink".into(), Value::Null);
        document.insert("last_outage".into(), json!({"last_reason": "no-link", "ended": null}));
    });
    seen.until("StateChanged \"no-internet\" \"no-link\"").await;
    seen.until("UplinkChanged \"\"").await;
    seen.until("PropertiesChanged State\":").await;
    let gathered = seen.all.iter().filter(|line| line.starts_with("PropertiesChanged")).count();
    let most = (lasted.as_millis() / 200 + 3) as usize;
    assert!((2..=most).contains(&gathered), "{gathered} in {lasted:?}");
    front.notices.send(Notice::Restored).unwrap();
    seen.until("Restored").await;
}

#[tokio::test]
async fn only_the_group_and_root_may_change_anything() {
    let front = Front::on(Bus::with_policy()).await;
    let as_nobody = |arguments: &'static [&'static str]| {
        let mut setpriv = Command::new("setpriv");
        setpriv.args(["--reuid=65534", "--regid=65534", "--clear-groups", "busctl"]);
        setpriv.arg(format!("--address={}", front.bus.address));
        run(setpriv, arguments)
    };
    let (good, said) = as_nobody(&["get-property", NAME, PATH, NAME, "State"]).await;
    assert!(good && said == "s \"online\"", "{said}");
    let (good, said) = as_nobody(&["call", NAME, PATH, NAME, "Status", "a{sv}", "0"]).await;
    assert!(good, "{said}");
    let (good, said) = as_nobody(&["call", NAME, PATH, NAME, "FailbackShow", "a{sv}", "0"]).await;
    assert!(good, "{said}");
    let (good, said) = as_nobody(&["introspect", NAME, PATH, NAME]).await;
    assert!(good, "{said}");
    for method in [
        "FailoverSet",
        "FailoverClear",
        "FailbackNow",
        "FailbackSet",
        "Inhibit",
        "Connect",
        "Disconnect",
        "Reconnect",
        "Publish",
        "Flush",
        "OutboxShow",
        "OutboxDrop",
        "Reset",
        "Events",
    ] {
        let call: &'static [&'static str] = vec!["call", NAME, PATH, NAME, method, "a{sv}", "0"].leak();
        let (good, said) = as_nobody(call).await;
        assert!(!good && said.contains("Access denied") || said.contains("not allowed"), "{method}: {said}");
        let (good, said) = run(busctl(&front.bus.address), call).await;
        assert!(good, "root, {method}: {said}");
    }
}

#[tokio::test]
async fn a_bus_that_goes_and_comes_back_is_found_again() {
    let mut bus = Bus::open_to_all();
    let socket = bus.dir.path().join("bus");
    let front = Front::start(&bus);
    front.wait_for_name(&bus).await;
    bus.stop();
    let _ = std::fs::remove_file(&socket);
    bus.daemon = Some(start_bus(&bus.dir.path().join("bus.conf")));
    let start = Instant::now();
    front.wait_for_name(&bus).await;
    assert!(start.elapsed() < Duration::from_secs(12));
}

#[tokio::test]
async fn sixteen_calls_that_hang_leave_room_for_no_more_and_harm_nothing_else() {
    let front = Front::on(Bus::open_to_all()).await;
    let hang = ["call", NAME, PATH, NAME, "Flush", "a{sv}", "1", "hang", "b", "true"];
    let mut clients: Vec<Child> = (0..16)
        .map(|_| busctl(&front.bus.address).args(hang).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
        .collect();
    let start = Instant::now();
    while front.hanging.load(Ordering::Relaxed) < 16 {
        assert!(start.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (good, said) = run(busctl(&front.bus.address), &["call", NAME, PATH, NAME, "Connect", "a{sv}", "0"]).await;
    assert!(!good && said.contains("16 calls are under way"), "{said}");
    assert_eq!(front.busctl(&["get-property", NAME, PATH, NAME, "State"]).await, "s \"online\"");
    assert_eq!(front.busctl(&["get-property", NAME, PATH, NAME, "LastInboundMs"]).await, "x 412", "the older document");
    for client in &mut clients {
        client.kill().unwrap();
        client.wait().unwrap();
    }
}

#[test]
fn without_a_bus_or_a_name_it_says_once_what_to_do() {
    const CHILD: &str = "SWITCHBACK_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        switchback::io::systemd::start_log();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (_status, shown) = watch::channel(Arc::new(Map::new()));
            let (_notices, told) = broadcast::channel(1);
            let (calls, _asked) = mpsc::channel(1);
            // On the system bus, found by DBUS_SYSTEM_BUS_ADDRESS.
            let _ = tokio::time::timeout(Duration::from_secs(1), dbus::serve(shown, told, calls)).await;
        });
        log::logger().flush();
        return;
    }
    let told = |address: &str| {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "without_a_bus_or_a_name_it_says_once_what_to_do", "--nocapture"]);
        child.env(CHILD, "1").env("DBUS_SYSTEM_BUS_ADDRESS", address).env_remove("JOURNAL_STREAM");
        String::from_utf8(child.output().unwrap().stderr).unwrap()
    };
    let alone = told("unix:path=/nonexistent/bus");
    assert!(alone.starts_with("warning: D-Bus: no system bus (") && alone.lines().count() == 1, "{alone}");
    let denied = Bus::start(
        "<policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/>\
         <deny own=\"*\"/></policy>",
    );
    let said = told(&denied.address);
    assert!(said.contains("does not let this user own") && said.lines().count() == 1, "{said}");
    let taken = Bus::open_to_all();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let said = runtime.block_on(async {
        let _owner = zbus::connection::Builder::address(taken.address.as_str()).name(NAME).build().await.unwrap();
        told(&taken.address)
    });
    assert!(said.contains("is a second switchbackd running?") && said.lines().count() == 1, "{said}");
}

/// The service, and the loop behind it.
struct Front {
    bus: Bus,
    status: watch::Sender<Arc<Map<String, Value>>>,
    notices: broadcast::Sender<Notice>,
    /// Calls that the loop does not answer.
    hanging: Arc<AtomicUsize>,
}

struct Running {
    status: watch::Sender<Arc<Map<String, Value>>>,
    notices: broadcast::Sender<Notice>,
    /// Calls that the loop does not answer.
    hanging: Arc<AtomicUsize>,
}

impl Front {
    async fn on(bus: Bus) -> Front {
        let running = Front::start(&bus);
        running.wait_for_name(&bus).await;
        let Running { status, notices, hanging } = running;
        Front { bus, status, notices, hanging }
    }

    fn start(bus: &Bus) -> Running {
        let document = json!({
            "state": "online", "connected": true, "uplink": "wlan0", "class": "wifi",
            "since": "2026-11-20T10:00:00.000Z", "last_inbound_ms": 412, "next_attempt_ms": null,
            "session": {"id": 17, "rtt_ms": 31.5, "tls": null},
            "failover": {"stored": ["wifi", "cell"], "walk": ["wlan0", "wwan0"], "index": 0},
            "uplinks": [{"name": "wlan0", "usable": true}, {"name": "wwan0", "reason": null}],
            "outbox": {"messages": 3}, "last_outage": null, "failback": null,
            "last_switch": {"from": "eth0", "switch_ms": 42, "pause_ms": null}, "switches": [],
        });
        let (status, shown) = watch::channel(Arc::new(document.as_object().unwrap().clone()));
        let (notices, told) = broadcast::channel(16);
        let (calls, asked) = mpsc::channel(CALLS_MAX);
        let hanging = Arc::new(AtomicUsize::new(0));
        tokio::spawn(answer(asked, hanging.clone()));
        let address = bus.address.clone();
        tokio::spawn(async move { serve(&address, shown, told, calls).await });
        Running { status, notices, hanging }
    }

    fn busctl(&self, arguments: &[&str]) -> impl Future<Output = String> + use<> {
        let run = run(busctl(&self.bus.address), arguments);
        let arguments = format!("{arguments:?}");
        async move {
            let (good, said) = run.await;
            assert!(good, "{arguments}: {said}");
            said
        }
    }

    async fn monitor(&self) -> Seen {
        let mut gdbus = tokio::process::Command::new("gdbus");
        gdbus.args(["monitor", "--address", &self.bus.address, "--dest", NAME]);
        let mut child = gdbus.stdout(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = Seen { lines, all: Vec::new(), _child: child };
        seen.until("The name").await;
        seen
    }
}

impl Running {
    async fn wait_for_name(&self, bus: &Bus) {
        let start = Instant::now();
        while !run(busctl(&bus.address), &["get-property", NAME, PATH, NAME, "State"]).await.0 {
            assert!(start.elapsed() < PATIENCE, "the name never came");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

async fn serve(
    address: &str,
    shown: watch::Receiver<Arc<Map<String, Value>>>,
    told: broadcast::Receiver<Notice>,
    calls: Calls,
) {
    dbus::serve_on(Some(address), shown, told, calls).await;
}

/// A loop that tells what it was asked.
async fn answer(mut calls: mpsc::Receiver<Call>, count: Arc<AtomicUsize>) {
    let mut hanging = Vec::new();
    while let Some(Call { verb, options, reply }) = calls.recv().await {
        let failure = |code, message: &str, reason| Failure { code, message: message.into(), reason };
        let answer = match options.get("topic").and_then(Value::as_str) {
            Some("fail") => Err(failure(1, "Nothing was sent.", Some(Reason::NoLink))),
            Some(_) => Err(failure(2, "No such option.", None)),
            None if options.contains_key("hang") => {
                hanging.push(reply);
                count.store(hanging.len(), Ordering::Relaxed);
                continue;
            }
            None => Ok(json!({"verb": verb, "options": options, "last_inbound_ms": 7}).as_object().unwrap().clone()),
        };
        let answer = answer.map(|mut keys| {
            if keys.get("verb").and_then(Value::as_str) != Some("status") {
                keys.remove("last_inbound_ms");
            }
            keys
        });
        let _ = reply.send(answer);
    }
}

/// What `gdbus monitor` says, folded to "Member arguments".
struct Seen {
    lines: Lines<BufReader<ChildStdout>>,
    all: Vec<String>,
    _child: tokio::process::Child,
}

impl Seen {
    async fn until(&mut self, wanted: &str) {
        let search = async {
            loop {
                let line = self.lines.next_line().await.unwrap().expect("the monitor ended");
                let line = line.rsplit_once("Switchback1.").or(line.rsplit_once("Properties.")).map_or(&*line, |p| p.1);
                // gdbus: Member ('a', 'b') as Member "a" "b"; a dictionary by its first key and on.
                let plain = line.replace("', '", "\" \"").replace("('", "\"").replace("',)", "\"").replace("')", "\"");
                let plain = match plain.split_once("{'") {
                    Some((_, rest)) if plain.contains("Properties") => {
                        format!("PropertiesChanged {}", rest.replace('\'', "\""))
                    }
                    _ => plain,
                };
                self.all.push(plain.clone());
                if plain.starts_with("PropertiesChanged") && wanted.starts_with("PropertiesChanged") {
                    if wanted.split(' ').all(|word| plain.contains(word)) {
                        return;
                    }
                } else if plain.starts_with(wanted) {
                    return;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, search).await;
        assert!(found.is_ok(), "{wanted} never came: {:#?}", self.all);
    }
}

/// A message bus of its own, gone with the value.
struct Bus {
    dir: tempfile::TempDir,
    address: String,
    daemon: Option<Child>,
}

impl Bus {
    fn open_to_all() -> Bus {
        Bus::start(
            "<policy context=\"default\"><allow send_destination=\"*\" eavesdrop=\"true\"/><allow eavesdrop=\"true\"/>\
             <allow own=\"*\"/></policy>",
        )
    }

    /// As a distribution's system bus: everything closed but what the policy files open.
    fn with_policy() -> Bus {
        let policy = concat!(env!("CARGO_MANIFEST_DIR"), "/packaging/org.switchback.Switchback1.conf");
        Bus::start(&format!(
            "<policy context=\"default\"><allow user=\"*\"/><deny own=\"*\"/><deny send_type=\"method_call\"/>\
             <allow send_type=\"signal\"/><allow send_requested_reply=\"true\" send_type=\"method_return\"/>\
             <allow send_requested_reply=\"true\" send_type=\"error\"/><allow receive_type=\"method_call\"/>\
             <allow receive_type=\"method_return\"/><allow receive_type=\"error\"/><allow receive_type=\"signal\"/>\
             <allow send_destination=\"org.freedesktop.DBus\"/></policy><include>{policy}</include>"
        ))
    }

    fn start(policy: &str) -> Bus {
        let dir = tempfile::tempdir().unwrap();
        // Other users must get to the socket.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let address = format!("unix:path={}/bus", dir.path().display());
        let config = dir.path().join("bus.conf");
        let text = format!(
            "<!DOCTYPE busconfig PUBLIC \"-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN\" \
             \"http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd\">\
             <busconfig><listen>{address}</listen><auth>EXTERNAL</auth>{policy}</busconfig>"
        );
        std::fs::write(&config, text).unwrap();
        let daemon = Some(start_bus(&config));
        Bus { dir, address, daemon }
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Returns when the bus takes connections.
fn start_bus(config: &Path) -> Child {
    let mut daemon = Command::new("dbus-daemon");
    daemon.arg("--nofork").arg(format!("--config-file={}", config.display()));
    // It complains about the limits of the machine it runs on.
    daemon.stdin(Stdio::null()).stderr(Stdio::null());
    let daemon = daemon.spawn().expect("dbus-daemon is installed");
    let start = Instant::now();
    while UnixStream::connect(config.with_file_name("bus")).is_err() {
        assert!(start.elapsed() < PATIENCE, "dbus-daemon does not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    daemon
}

fn busctl(address: &str) -> Command {
    let mut busctl = Command::new("busctl");
    busctl.arg(format!("--address={address}"));
    busctl
}

/// Whether it went well, and what it said, on both outputs.
fn run(mut command: Command, arguments: &[&str]) -> impl Future<Output = (bool, String)> + use<> {
    command.args(arguments).stdin(Stdio::null());
    async {
        let Output { status, stdout, stderr } = tokio::process::Command::from(command).output().await.unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        (status.success(), text.trim().to_owned())
    }
}
