//! The configuration as users meet it: every first mistake gives a sentence with file, line, key and what to write,
//! and the shipped file says exactly what the code does.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

use switchback::config::{
    Config, Host, Match, PublishRule, SHIPPED, SocketOptions, SubscribeRule, costs, round_trips, show, worst_cases,
};
use switchback_control::{Class, Failback, Mode, Name, Selector, Standby, Start};

const SERVERS: &str = "servers = [\"mqtts://broker.example.com:8883\"]\n";

struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(text: &str) -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        place.write("switchback.toml", text);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_string()
    }

    fn load(&self) -> Result<(Config, Vec<String>), Vec<String>> {
        let host = Host { hostname: Some("gw7".into()), machine_id: Some("0123456789abcdef".into()) };
        let dir = format!("{}/", self.dir.path().display());
        let short = |text: String| text.replace(&dir, "");
        match Config::load_as(&self.path("switchback.toml"), &host) {
            Ok((config, warnings)) => Ok((config, warnings.iter().map(|w| short(w.to_string())).collect())),
            Err(errors) => Err(errors.iter().map(|e| short(e.to_string())).collect()),
        }
    }
}

/// `[cloud]` with servers, and `more` after it.
fn good(more: &str) -> (Config, Vec<String>) {
    Place::new(&format!("[cloud]\n{SERVERS}{more}")).load().unwrap()
}

/// The only error of a configuration; `more` begins on line 3.
fn bad(more: &str) -> String {
    let errors = Place::new(&format!("[cloud]\n{SERVERS}{more}")).load().unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    errors[0].clone()
}

fn warning(more: &str) -> String {
    let (_, warnings) = good(more);
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    warnings[0].clone()
}

#[test]
fn with_only_servers_everything_has_its_default() {
    let (config, warnings) = good("");
    assert_eq!(warnings, [""; 0]);
    assert_eq!(config.cloud.client_id, "gw7");
    assert_eq!(config.cloud.base, "switchback/gw7");
    assert_eq!(config.cloud.session_expiry, Duration::from_secs(86_400));
    assert_eq!(config.cloud.will_delay, Duration::from_secs(60));
    let lanes = config.settings.lanes.clone();
    assert_eq!(config.settings, switchback_control::Settings { lanes, ..switchback_control::Settings::default() });
    let named = |lane: &switchback::config::LaneConfig| format!("{} {}", lane.class, lane.directory);
    let lanes: Vec<String> = config.lanes.iter().map(named).collect();
    assert_eq!(lanes, ["normal outbox", "critical outbox-critical", "bulk outbox-bulk", "low "]);
    assert_eq!(config.local.mqtt.unwrap().to_string(), "127.0.0.1:1883");
    assert_eq!(config.status_listen.unwrap().to_string(), "127.0.0.1:8730");
    assert_eq!(config.outbox.max_size, 256 * 1024 * 1024);
    assert_eq!(config.outbox.commit_interval, None);
    assert!(config.publish.is_empty() && config.subscribe.is_empty() && config.named.is_empty());
    let secs = Duration::from_secs;
    let socket = |idle, interval, user| SocketOptions {
        keepalive_idle: secs(idle),
        keepalive_interval: secs(interval),
        keepalive_count: 3,
        user_timeout: secs(user),
        send_buffer: None,
    };
    let sockets = config.classes.each_ref().map(|class| class.socket.clone());
    assert_eq!(sockets, [socket(55, 17, 106), socket(55, 17, 106), socket(260, 20, 320)]);
}

#[test]
fn a_missing_file_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("none.toml");
    let errors = Config::load(&path).unwrap_err();
    let text = errors[0].to_string();
    assert!(text.starts_with(&format!("no configuration at {}: ", path.display())), "{text}");
    assert!(Config::salvage(&path).cloud.servers.is_empty());
}

#[test]
fn a_missing_server_says_what_to_write() {
    let want = "switchback.toml: \"cloud.servers\": is missing; write under [cloud]: \
                servers = [\"mqtts://broker.example.com:8883\"]";
    assert_eq!(Place::new("").load().unwrap_err(), [want]);
    assert_eq!(Place::new("\n[cloud]\n").load().unwrap_err(), [want.replacen(":", ":2:", 1)]);
    assert!(
        Place::new("[cloud]\nservers = []").load().unwrap_err()[0]
            .contains("is empty; write under [cloud]: servers = [")
    );
}

#[test]
fn an_unknown_key_names_the_nearest_right_one() {
    let cases = [
        ("severs = []", "unknown key \"cloud.severs\"; did you mean \"cloud.servers\"?"),
        ("[clod]\nx = 1\ny = 2", "unknown key \"clod\"; did you mean \"cloud\"?"),
        ("keepalive = \"30s\"", "unknown key \"cloud.keepalive\"; did you mean \"uplink.NAME.keep_alive\"?"),
        (
            "[uplink.cell]\nconect_timeout = \"60s\"",
            "unknown key \"uplink.cell.conect_timeout\"; did you mean \"uplink.cell.connect_timeout\"?",
        ),
        (
            "[uplink.cell.socket]\nkeepalive_idel = \"60s\"",
            "unknown key \"uplink.cell.socket.keepalive_idel\"; did you mean \"uplink.cell.socket.keepalive_idle\"?",
        ),
        ("[[publish]]\ntopic = \"a\"\nqoss = 1", "unknown key \"publish.qoss\"; did you mean \"publish.qos\"?"),
        ("xyzzy = 1", "unknown key \"cloud.xyzzy\""),
    ];
    for (text, want) in cases {
        let error = bad(text);
        assert!(error.ends_with(&format!(": {want}")), "{error}");
        let line = 3 + if text.starts_with("[[") { 2 } else { u32::from(text.starts_with("[uplink")) };
        assert!(error.starts_with(&format!("switchback.toml:{line}: ")), "{error}");
    }
}

#[test]
fn every_mistake_is_told_at_once_with_its_own_line() {
    let text = "[cloud]\nseverz = 1\ngrace = 60\n\n[outbox]\nmax_size = \"1TB\"\n[failover]\nfailback = \"autp\"\n";
    let errors = Place::new(text).load().unwrap_err();
    let lines: Vec<&str> = errors.iter().map(|e| e.split(": ").next().unwrap()).collect();
    let expected = [1, 2, 3, 6, 8].map(|line| format!("switchback.toml:{line}"));
    assert_eq!(lines, expected, "{errors:#?}");
    assert!(errors[4].contains("did you mean \"auto\"?"), "{errors:#?}");
}

#[test]
fn every_syntax_error_has_its_line() {
    let errors = Place::new("[cloud\nservers = [\"mqtt://b\"]\n").load().unwrap_err();
    assert!(errors[0].starts_with("switchback.toml:1: not valid TOML: "), "{errors:#?}");
    let errors =
        Place::new("[cloud]\nbase =\nservers = \"mqtt://b\ngrace = \"60s\"\nmode = auto\n").load().unwrap_err();
    for line in [2, 3, 5] {
        assert!(errors.iter().any(|e| e.starts_with(&format!("switchback.toml:{line}: "))), "{errors:#?}");
    }
    let twice = Place::new("[cloud]\nbase = \"a\"\nbase = \"b\"\n").load().unwrap_err();
    assert!(twice[0].starts_with("switchback.toml:3: not valid TOML: duplicate key"), "{twice:#?}");
}

#[test]
fn a_wrong_value_says_what_to_write_instead() {
    let cases = [
        ("grace = 60", "is a number; write text with a unit, such as \"60s\""),
        ("grace = \"60\"", "\"60\" has no unit; write for example \"60s\""),
        ("grace = \"5m\"", "write for example \"5min\""),
        ("grace = \"200ms\"", "out of range (1s to 1h)"),
        ("grace = \"1500ms\"", "not a whole number of seconds"),
        ("grace = \"2h\"", "out of range (1s to 1h)"),
        ("grace = true", "is true or false; write text with a unit"),
        ("fleet_size = \"5\"", "is text; write a number from 1 to 10000000, without quotes"),
        ("fleet_size = 0", "0 is out of range (1 to 10000000)"),
        ("fleet_size = 1.5", "is a number with a point"),
        ("client_id = 5", "is a number; write text in double quotes"),
        ("client_id = \"\"", "must be 1 to 65535 bytes"),
        ("client_id = \"{hostnme}\"", "\"{hostnme}\" means nothing here; known: {hostname}, {machine-id}"),
        ("base = \"a/#\"", "has no \"+\" and no \"#\""),
        ("start = \"conect\"", "did you mean \"connect\"?"),
        ("start = 1", "is a number; write one of \"connect\", \"disconnected\", \"idle\""),
        ("mode = \"ondemand\"", "did you mean \"on-demand\"?"),
        ("session_expiry = \"1min\"", "must be longer than cloud.grace"),
        ("ca_file = \"ca.pem\"", "not a whole path; begin it with \"/\""),
        ("ca_file = \"/nonexistent/ca.pem\"", "there is no file /nonexistent/ca.pem"),
        ("ca_file = \"/proc\"", "/proc is not a file"),
        ("[failover]\norder = [\"wi fi\"]", "\"wi fi\" is no class (ethernet, wifi, cell)"),
        ("[failover]\norder = \"wifi\"", "is text; write a list of texts, as in [\"ethernet\""),
        ("[failover]\norder = [1]", "holds a number; write texts"),
        ("[failover]\nmanage_routes = \"auto\"", "write true or false, without quotes"),
        ("[uplink.cell]\nmetered = \"yes\"", "write true or false without quotes, or \"auto\""),
        ("[uplink.cell]\nconnect_timeout = \"4s\"", "out of range (5s to 1h)"),
        ("[uplink.cell]\nping_limits = \"30s\"", "is text; write two durations"),
        ("[uplink.cell]\nping_limits = [\"30s\"]", "takes exactly two durations"),
        ("[uplink.cell]\nping_after = \"5min\"", "\"300s\" is longer than keep_alive (\"240s\")"),
        ("[uplink.cell]\nmatch = [\"usb:x\"]", "\"usb:\" is not known"),
        ("[uplink.wwan0]\nmatch = [\"x\"]", "belongs to a class, not to one name"),
        ("[uplink.foo0]\nmetered = true", "add match = [\"foo0\"] under"),
        ("[uplink.\"a b\"]\nmetered = true", "neither a class"),
        ("[uplink.cell.socket]\nkeepalive_count = 200", "out of range (1 to 127)"),
        ("[uplink.cell.socket]\nsend_buffer = \"64K\"", "unknown unit \"K\""),
        ("[uplink.cell.socket]\nsend_buffer = 65536", "write text with a unit, such as \"64KiB\""),
        ("[uplink]\ncell = 1", "is a number, but should be a section; write [uplink.cell]"),
        ("[outbox]\nmax_size = \"1MiB\"", "out of range (4MiB to 64GiB)"),
        ("[outbox]\nlate = \"1ms\"", "out of range (10ms to 60s or \"auto\")"),
        ("[publish]\ntopic = \"a\"", "write [[publish]] with two brackets"),
        ("[[publish]]\nqos = 1", "is missing; each [[publish]] needs one"),
        ("[[publish]]\ntopic = \"a#\"", "\"#\" stands alone and last"),
        ("[[publish]]\ntopic = \"a+/b\"", "\"+\" stands alone"),
        ("[[publish]]\ntopic = \"$SYS/#\"", "never go up"),
        ("[[publish]]\ntopic = \"a\"\nqos = 3", "3 is out of range (0 to 2)"),
        ("[[publish]]\ntopic = \"a\"\nclass = \"critcal\"", "no class \"critcal\"; did you mean \"critical\"?"),
        (
            "[[publish]]\ntopic = \"a\"\nclass = \"x\"",
            "known: normal, critical, bulk, low; another needs a section [class.x]",
        ),
        (
            "[[publish]]\ntopic = \"a\"\nuplinks = \"metered\"",
            "\"metered\" is unknown; write \"any\", \"unmetered\" or a list",
        ),
        ("[[publish]]\ntopic = \"a\"\nuplinks = []", "takes 1 to 8 names"),
        ("[[publish]]\ntopic = \"a\"\nuplinks = [\"a b\"]", "\"a b\" is no class (ethernet, wifi, cell)"),
        ("[[publish]]\ntopic = \"a\"\nuplinks = 1", "is a number; write \"any\""),
        ("[[publish]]\ntopic = \"a\"\nmax_age = \"1500ms\"", "not a whole number of seconds"),
        ("[[publish]]\ntopic = \"a\"\noffline = \"drop\"", "not one of \"keep\", \"refuse\""),
        ("[class.bulk]\npriority = 10", "10 is out of range (0 to 9)"),
        ("[class.bulk]\nmax_size = \"4KiB\"", "out of range (64KiB to 64GiB)"),
        ("[class.bulk]\noverflow = \"drop\"", "not one of \"drop-oldest\", \"drop-newest\", \"refuse\""),
        ("[class.normal]\nuplinks = \"unmetered\"", "make another class"),
        ("[class.\"a/b\"]\npriority = 1", "is no name for a class"),
        ("[class]\nbulk = 1", "write [class.bulk]"),
        ("[class.bulk]\nprioriti = 1", "did you mean \"class.bulk.priority\"?"),
        (
            "[class.bulk]\nmax_size = \"1GiB\"",
            "are 1GiB together, of outbox.max_size = \"256MiB\" and leave 0B for normal, critical",
        ),
        ("[uplink.cell]\nmax_rate = \"1B\"", "out of range (1KiB to 1GiB)"),
        ("[local]\nbroker = \"mqtt://192.0.2.1\"", "must be on this machine and open"),
        ("[local]\nbroker = \"mqtts://127.0.0.1\"", "must be on this machine and open"),
        ("[local]\nbroker = \"mqtt://127.0.0.1:1884\"\nmqtt = \"127.0.0.1:1884\"", "is the port of local.broker"),
        (
            "[local]\nbroker = \"mqtt://127.0.0.1\"\nbroker_password_file = \"/etc/hostname\"",
            "needs local.broker_username",
        ),
        ("[[publish]]\ntopic = \"a\"\nto = \"x/{rest}\"", "\"{rest}\" means nothing here"),
        ("[[publish]]\ntopic = \"a\"\nto = \"x/+\"", "has no \"+\""),
        ("[[subscribe]]\ntopic = \"a/b\"\nto = \"x/{rest}\"", "{rest} is what the \"#\""),
        ("[[subscribe]]\ntopic = \"a/b\"\nqos = 3", "out of range (0 to 2)"),
        ("[local]\nmqtt = \"localhost:1883\"", "write for example \"127.0.0.1:1883\""),
        ("[local]\nmqtt = \"127.0.0.1\"", "not an address with a port"),
        ("[local]\nmqtt = 1883", "is a number; write text"),
        ("[status]\nlisten = \"127.0.0.1:1883\"", "the same address as local.mqtt"),
    ];
    for (text, hint) in cases {
        let error = bad(text);
        assert!(error.contains(hint), "{text}\n{error}");
        assert!(error.starts_with("switchback.toml:") && error.contains('"'), "{error}");
    }
}

#[test]
fn a_bad_server_is_named_with_its_line() {
    let errors = Place::new("[cloud]\nservers = [\n  \"mqtt://b\",\n  \"broker\",\n]\n").load().unwrap_err();
    let want = "switchback.toml:4: \"cloud.servers\": \"broker\" has no scheme; write \"mqtts://broker\" \
                (or mqtt:// without encryption)";
    assert_eq!(errors, [want]);
}

#[test]
fn a_server_on_our_own_port_is_refused() {
    let errors = Place::new("[cloud]\nservers = [\"mqtt://localhost\"]").load().unwrap_err();
    assert!(errors[0].contains("\"local.mqtt\": port 1883 is also a server"), "{errors:?}");
}

#[test]
fn certificate_and_key_belong_together() {
    let place = Place::new("");
    let cert = place.write("c.pem", "x");
    place.write("switchback.toml", &format!("[cloud]\n{SERVERS}cert_file = \"{cert}\"\n"));
    let errors = place.load().unwrap_err();
    assert!(errors[0].contains("\"cloud.cert_file\": needs cloud.key_file as well"), "{errors:?}");
    place.write("switchback.toml", &format!("[cloud]\n{SERVERS}password_file = \"{cert}\"\n"));
    assert!(place.load().unwrap_err()[0].contains("needs cloud.username as well"));
}

#[test]
fn a_secret_that_everybody_may_read_is_warned_about() {
    let place = Place::new("");
    let secret = place.write("password", "x");
    place.write("switchback.toml", &format!("[cloud]\n{SERVERS}username = \"u\"\npassword_file = \"{secret}\"\n"));
    assert_eq!(place.load().unwrap().1, [""; 0]);
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let (config, warnings) = place.load().unwrap();
    assert_eq!(
        warnings,
        ["switchback.toml:4: \"cloud.password_file\": everybody may read password; write: chmod o= password"]
    );
    assert!(show(&config).contains("password_file = "));
}

#[test]
fn a_classs_warning_is_not_repeated_for_uplinks_laid_over_it() {
    let text = "[uplink.cell]\nconnect_timeout = \"10s\"\nkeep_alive = \"540s\"\n[uplink.wwan0]\n[uplink.wwan1]\n";
    assert_eq!(good(text).1.len(), 2);
}

#[test]
fn dangerous_values_are_warned_about() {
    let cases = [
        ("base = \"\"", "no last will"),
        ("client_id = \"localhost\"", "throw each other out"),
        ("linger = \"5s\"", "no effect without cloud.mode"),
        ("[uplink.cell]\nconnect_timeout = \"10s\"", "20s or more is safer"),
        (
            "[uplink.cell]\nstandby = \"warm\"",
            "\"warm\" costs about 129 MB a month on a metered uplink (a handshake every 60s)",
        ),
        ("[uplink.cell]\nkeep_alive = \"540s\"", "the carrier's network on the way may forget"),
        ("[uplink.wifi.socket]\nuser_timeout = \"2s\"", "after a short stall"),
        ("[uplink.wifi.socket]\nuser_timeout = \"10s\"", "before its ping limits (25s)"),
        ("[failover]\norder = [\"wfi\"]", "did you mean \"wifi\"?"),
        ("[uplink.ethernt]\nmetered = true", "did you mean \"ethernet\"?"),
        ("[outbox]\ncommit_interval = \"5s\"", "no effect without outbox.durability"),
        ("[class.bulk]\nuplinks = [\"wfi\", \"eth0\"]", "did you mean \"wifi\"?"),
        ("[[publish]]\ntopic = \"a\"\nuplinks = [\"cel\"]", "did you mean \"cell\"?"),
        (
            "[[publish]]\ntopic = \"#\"\n[[publish]]\ntopic = \"alarm/#\"\nclass = \"critical\"",
            ":5: \"publish.topic\": \"alarm/#\" is never reached: the first match wins, and \"#\" in line 3 matches all of it",
        ),
        ("[[subscribe]]\ntopic = \"#\"", "all that goes up as \"#\""),
        (
            "[[publish]]\ntopic = \"t/+\"\nto = \"gw/{client_id}/{topic}\"\n[[subscribe]]\ntopic = \"gw/+/#\"",
            ":6: \"subscribe.topic\": \"gw/+/#\" matches all that goes up as \"gw/gw7/t/+\"",
        ),
        ("[class.critical]\ndurability = \"memory\"", "loses what is critical"),
        ("[class.bulk]\nmax_age = \"10s\"", "less than outages typically last"),
        ("[[publish]]\ntopic = \"a\"\nmax_age = \"10s\"", "less than outages typically last"),
        ("[[publish]]\ntopic = \"a\"\nclass = \"low\"\nqos = 2", "a restart loses it"),
        ("[local]\nbroker = \"mqtt://localhost:1884\"\nmqtt = \"127.0.0.1:1885\"", "has no effect with local.broker"),
        ("[local]\nbroker_username = \"u\"", "has no effect without local.broker"),
        ("[local]\nmqtt = \"0.0.0.0:1883\"", "everybody who reaches this address may publish"),
        ("[local]\nacl_file = \"/etc/passwd\"", "every client is anonymous"),
        ("[status]\nlisten = \"0.0.0.0:8730\"", "may read the status page"),
    ];
    for (text, hint) in cases {
        // A name that is nearly a class has to be known as an interface, too.
        let text = text.replace("[uplink.ethernt]", "[uplink.ethernet]\nmatch = [\"ethernt\"]\n[uplink.ethernt]");
        let warning = warning(&text);
        assert!(warning.contains(hint) && warning.starts_with("switchback.toml:"), "{text}\n{warning}");
    }
    let (_, warnings) = Place::new("[cloud]\nservers = [\"mqtt://broker.example.com\"]").load().unwrap();
    assert!(warnings[0].contains("sends all messages unencrypted"), "{warnings:?}");
}

#[test]
fn rules_that_only_overlap_are_nobody_s_business() {
    let text = "[[publish]]\ntopic = \"alarm/#\"\n[[publish]]\ntopic = \"+/x\"\n[[publish]]\ntopic = \"#\"\n\
                to = \"gw/{client_id}/{topic}\"\n[[subscribe]]\ntopic = \"gw/{client_id}/cmd/#\"\nto = \"cmd/{rest}\"\n";
    assert_eq!(good(text).1, [""; 0]);
}

#[test]
fn the_examples_of_the_readme_pass_without_a_word() {
    let readme = include_str!("../README.md");
    let blocks = readme.split("```toml\n").skip(1).filter_map(|text| text.split("```").next());
    let place = Place::new("");
    let mut text: String = blocks.collect();
    assert!(text.contains("[cloud]") && text.contains("[[publish]]"), "{text}");
    for name in ["ca.pem", "password"] {
        text = text.replace(&format!("/etc/switchback/{name}"), &place.write(name, "x"));
    }
    place.write("switchback.toml", &text);
    assert_eq!(place.load().map(|(_, warnings)| warnings), Ok(vec![]));
}

#[test]
fn later_files_win_key_by_key() {
    let place = Place::new(&format!("[cloud]\n{SERVERS}client_id = \"a\"\nusername = \"u\"\n"));
    place.write("conf.d/10-id.toml", "[cloud]\nclient_id = \"b\"\n[uplink.cell]\nkeep_alive = \"100s\"\n");
    place.write("conf.d/20-id.toml", "cloud.client_id = \"c\"\nuplink.cell.metered = false\n");
    place.write("conf.d/.hidden.toml", "nonsense = 1\n");
    place.write("conf.d/30.toml.dpkg-old", "nonsense = 1\n");
    let (config, warnings) = place.load().unwrap();
    assert_eq!(warnings, [""; 0]);
    assert_eq!(config.cloud.client_id, "c");
    assert_eq!(config.cloud.username.as_deref(), Some("u"));
    assert_eq!(config.settings.classes[2].keep_alive, Duration::from_secs(100));
    assert_eq!(config.settings.classes[2].metered, Some(false));
    place.write("conf.d/30.toml", "\n\n[cloud]\nclient = \"x\"\n");
    assert!(place.load().unwrap_err()[0].starts_with("conf.d/30.toml:4: unknown key \"cloud.client\""));
}

#[test]
fn a_named_uplink_starts_from_its_class() {
    let (config, _) = good(
        "[uplink.cell]\nkeep_alive = \"100s\"\nmatch = [\"usb*\", \"driver:rndis_host\"]\n\
         [uplink.cell.socket]\nsend_buffer = \"64KiB\"\n\
         [uplink.usb0]\nmetered = false\n[uplink.usb0.socket]\nkeepalive_count = 5\n[uplink.eth1]\nstandby = \"off\"\n",
    );
    let usb = Name::new("usb0").unwrap();
    let uplink = config.settings.uplink(usb, Class::Ethernet);
    assert_eq!((uplink.metered, uplink.keep_alive.as_secs()), (Some(false), 100));
    assert_eq!(uplink.connect_timeout.as_secs(), 120);
    let socket = &config.uplink(usb, Class::Ethernet).socket;
    assert_eq!((socket.keepalive_idle.as_secs(), socket.keepalive_count), (120, 5));
    assert_eq!((socket.user_timeout.as_secs(), socket.send_buffer), (220, Some(65_536)));
    let eth = config.settings.uplink(Name::new("eth1").unwrap(), Class::Ethernet);
    assert_eq!((eth.standby, eth.keep_alive.as_secs()), (Standby::Off, 30));
    assert_eq!(config.classes[2].matches, [Match::Name("usb*".into()), Match::Driver("rndis_host".into())]);
}

#[test]
fn eth_is_accepted_for_ethernet() {
    let (config, _) =
        good("[failover]\norder = [\"eth\", \"ethernet\", \"wwan0\"]\n[uplink.eth]\nkeep_alive = \"31s\"\n");
    assert_eq!(config.settings.order, [Selector::Class(Class::Ethernet), Selector::Name(Name::new("wwan0").unwrap())]);
    assert_eq!(config.settings.classes[0].keep_alive.as_secs(), 31);
    assert!(bad("[uplink.eth]\n[uplink.ethernet]\n").contains("keep one"));
}

#[test]
fn a_shorter_keep_alive_takes_the_ping_with_it() {
    let (config, _) = good("[uplink.wifi]\nkeep_alive = \"6s\"\n");
    assert_eq!(config.settings.classes[1].ping_after, Some(Duration::from_secs(6)));
}

#[test]
fn placeholders_are_expanded_at_load() {
    let (config, _) = good(
        "client_id = \"{hostname}-{machine-id}\"\nbase = \"x/{client_id}/\"\n\
         [[publish]]\ntopic = \"t/#\"\nqos = 0\nto = \"gw/{client_id}/{topic}\"\n\
         [[subscribe]]\ntopic = \"gw/{client_id}/cmd/#\"\nto = \"cmd/{rest}\"\n",
    );
    let id = "gw7-0123456789abcdef";
    assert_eq!(config.cloud.base, format!("x/{id}"));
    assert_eq!(
        config.publish,
        [PublishRule { topic: "t/#".into(), qos: 0, to: format!("gw/{id}/{{topic}}"), ..PublishRule::default() }]
    );
    let rule = SubscribeRule { topic: format!("gw/{id}/cmd/#"), to: "cmd/{rest}".into(), qos: 1 };
    assert_eq!(config.subscribe, [rule]);
}

#[test]
fn what_is_shown_reads_back_as_the_same_configuration() {
    let place = Place::new("");
    let key = place.write("k.pem", "x");
    let text = format!(
        "[cloud]\nservers = [\"mqtts://[2001:db8::1]\", \"mqtt://127.0.0.1:1884\"]\nclient_id = \"a \\\"b\\\\ ü\"\n\
         cert_file = \"{key}\"\nkey_file = \"{key}\"\nusername = \"u\"\nfleet_size = 500\nstart = \"idle\"\n\
         mode = \"on-demand\"\nlinger = \"90s\"\ngrace = \"10s\"\nsession_expiry = \"2h\"\nlog = \"info\"\n\
         [failover]\norder = [\"wifi\", \"wwan0\"]\nfailback = \"manual\"\nhold_down = \"200ms\"\nmanage_routes = true\n\
         [uplink.cell]\nmatch = [\"usb*\", \"driver:rndis_host\"]\nstandby = \"off\"\nping_after = \"20s\"\n\
         [uplink.cell.socket]\nuser_timeout = \"100s\"\nsend_buffer = \"64KiB\"\n[uplink.\"usb0.5\"]\nmetered = false\n\
         [outbox]\nmax_size = \"100MB\"\ndurability = \"batch\"\ncommit_interval = \"10s\"\nlate = \"50ms\"\nwindow = 20\n\
         [class.bulk]\nmax_size = \"1MiB\"\noverflow = \"drop-newest\"\nuplinks = \"unmetered\"\n\
         [class.own]\npriority = 7\nmax_messages = 9\nmax_age = \"2h\"\ndurability = \"memory\"\n\
         [[publish]]\ntopic = \"t/#\"\nqos = 0\nto = \"gw/{{topic}}\"\nclass = \"own\"\nuplinks = [\"wifi\", \"eth0\"]\n\
         max_age = \"1h\"\noffline = \"refuse\"\nanswer = \"cloud\"\n[[subscribe]]\ntopic = \"c/#\"\nto = \"d/{{rest}}\"\n\
         [local]\nmqtt = \"\"\npassword_file = \"{key}\"\nacl_file = \"{key}\"\n[status]\nlisten = \"[::1]:80\"\n"
    );
    place.write("switchback.toml", &text);
    let (first, _) = place.load().unwrap();
    assert_eq!(first.settings.mode, Mode::OnDemand { linger: Duration::from_secs(90) });
    assert_eq!((first.settings.start, first.settings.failback), (Start::Idle, Failback::Manual));
    assert!(first.settings.manage_routes);
    assert_eq!((first.local.mqtt, first.local.password_file.is_some()), (None, true));
    place.write("switchback.toml", &show(&first));
    let (second, _) = place.load().unwrap();
    assert_eq!(first, second);

    place.write("switchback.toml", &text.replace("fleet_size = 500", "fleet_size = 501"));
    assert_ne!(place.load().unwrap().0.hash, first.hash);
}

#[test]
fn classes_and_rules_make_lanes_that_share_the_bounds_of_their_class() {
    let (config, warnings) = good(
        "[outbox]\nmax_size = \"100MiB\"\n[class.bulk]\nmax_size = \"20MiB\"\nmax_messages = 9\nuplinks = \"unmetered\"\n\
         [class.alarm]\npriority = 8\nmax_age = \"2h\"\n\
         [[publish]]\ntopic = \"a\"\nclass = \"alarm\"\n\
         [[publish]]\ntopic = \"b\"\nclass = \"bulk\"\nuplinks = [\"wlan0\", \"eth\", \"ethernet\"]\n\
         [[publish]]\ntopic = \"c\"\nclass = \"bulk\"\nuplinks = [\"ethernet\", \"wlan0\"]\nmax_age = \"1h\"\n\
         [[publish]]\ntopic = \"d\"\nclass = \"bulk\"\n[[publish]]\ntopic = \"e\"\n",
    );
    assert_eq!(warnings, [""; 0]);
    let lane =
        |lane: &switchback::config::LaneConfig| format!("{} {} {}", lane.class, lane.directory, lane.max_size >> 10);
    let lanes: Vec<String> = config.lanes.iter().map(lane).collect();
    // 80 MiB are left for shares of 10, 2 and 2.
    let want = [
        "normal outbox 58496",
        "critical outbox-critical 11648",
        "bulk outbox-bulk@unmetered 10240",
        "low  1024",
        "alarm outbox-alarm 11648",
        "bulk outbox-bulk@ethernet+wlan0 10240",
    ];
    assert_eq!(lanes, want);
    assert_eq!(config.publish.iter().map(|rule| rule.lane.0).collect::<Vec<_>>(), [4, 5, 5, 2, 0]);
    assert_eq!(config.publish[2].max_age, Some(Duration::from_secs(3600)));
    assert_eq!(config.lanes[4].max_age, Some(Duration::from_secs(7200)));
    let rules = &config.settings.lanes;
    assert_eq!((rules[2].max_messages, rules[5].max_messages, rules[4].priority), (4, 4, 8));
    assert_eq!((rules[3].memory_bytes, rules[0].memory_bytes), (Some(1 << 20), None));
}

#[test]
fn the_rule_that_makes_one_queue_too_many_is_named() {
    let rule = |number| format!("[[publish]]\ntopic = \"a\"\nuplinks = [\"eth{number}\"]\n");
    let error = bad(&(0..13).map(rule).collect::<String>());
    assert!(
        error.starts_with("switchback.toml:41: \"publish.uplinks\": class \"normal\" over eth12 would be"),
        "{error}"
    );
}

#[test]
fn a_broker_of_somebody_else_takes_the_place_of_the_listener() {
    let (config, warnings) = good("[local]\nbroker = \"mqtt://127.0.0.1:1883\"\nbroker_username = \"u\"\n");
    assert_eq!(warnings, [""; 0]);
    assert_eq!(config.local.mqtt, None);
    let broker = config.local.broker.unwrap();
    assert_eq!((broker.server.to_string(), broker.username.as_deref()), ("mqtt://127.0.0.1:1883".into(), Some("u")));
    let circle =
        Place::new("[cloud]\nservers = [\"mqtt://localhost:1884\"]\n[local]\nbroker = \"mqtt://127.0.0.1:1884\"");
    assert!(circle.load().unwrap_err()[0].contains("messages would go in circles"));
}

#[test]
fn an_uplinks_rate_comes_from_its_class_unless_it_has_its_own() {
    let (config, _) =
        good("[uplink.cell]\nmax_rate = \"64KiB\"\nmax_messages = 10\n[uplink.wwan0]\nmax_rate = \"1MiB\"\n");
    let rate = |name: &str| config.uplink(Name::new(name).unwrap(), Class::Cell).rate;
    assert_eq!((rate("wwan1").bytes, rate("wwan1").messages), (Some(65_536), Some(10)));
    assert_eq!((rate("wwan0").bytes, rate("wwan0").messages), (Some(1 << 20), Some(10)));
    assert_eq!(config.classes[0].rate, switchback::config::Rate::default());
}

#[test]
fn the_worst_cases_follow_the_settings() {
    let (config, _) = good("[uplink.wwan0]\nping_after = \"60s\"\n");
    let cases: Vec<(String, u64, u64, u64, u64)> = worst_cases(&config)
        .into_iter()
        .map(|case| {
            let secs = |d: Duration| d.as_secs();
            (
                case.uplink,
                secs(case.silence_suspected),
                secs(case.silence_detected),
                secs(case.carrier_failover),
                secs(case.silence_failover),
            )
        })
        .collect();
    assert_eq!(
        cases,
        [
            ("ethernet".into(), 11, 35, 120, 131),
            ("wifi".into(), 11, 35, 120, 131),
            ("cell".into(), 226, 285, 60, 286),
            ("wwan0".into(), 61, 120, 120, 181),
        ]
    );
}

#[test]
fn the_costs_follow_the_settings() {
    let (config, _) = good("fleet_size = 6000\n[uplink.wwan0]\nkeep_alive = \"400s\"\nwarm_renew = \"50s\"\n");
    let costs = costs(&config);
    let [wifi, cell, wwan0] = [1, 2, 3].map(|at| &costs[at]);
    assert_eq!((wifi.session, wifi.up_most), (259_200 * 204, None));
    assert_eq!((cell.session, cell.up_most), (11_520 * 204, Some(10_845_000)));
    assert_eq!(wwan0.session, 6_912 * 204, "the kernel's keepalive waits longer than the ping");
    assert_eq!((cell.warm, cell.warm_full, cell.up_return), (129_600_000, 216_000_000, 6_000));
    assert_eq!((cell.warm_handshakes, wwan0.warm_handshakes), (100.0, 120.0));
    assert_eq!(wifi.warm, 43_200 * 3_104, "the kernel asks once before the connection is renewed");
    assert_eq!([Standby::Off, Standby::Up, Standby::Warm].map(round_trips), [None, Some(2.5), Some(0.5)]);
}

#[test]
fn safe_mode_keeps_what_is_right() {
    let place = Place::new(&format!("[cloud]\n{SERVERS}client_id = \"gw\"\ngrace = 5\nbad = 1\n"));
    let config = Config::salvage(&place.path("switchback.toml"));
    assert_eq!((config.cloud.client_id.as_str(), config.settings.grace.as_secs()), ("gw", 60));
    place.write("switchback.toml", &format!("[cloud]\n{SERVERS}[[publish]]\ntopic = \"a#\"\n"));
    let config = Config::salvage(&place.path("switchback.toml"));
    assert_eq!(config.publish.len(), 1, "a mistyped only rule must not send everything up");
    place.write("switchback.toml", "[cloud]\nservers = [\"x\"]\n");
    assert!(Config::salvage(&place.path("switchback.toml")).cloud.servers.is_empty());
    place.write("switchback.toml", &format!("[cloud]\n{SERVERS}"));
    place.write("conf.d/50-broken.toml", "[cloud\n");
    place.write("conf.d/60-good.toml", "[cloud]\nclient_id = \"later\"\n");
    let config = Config::salvage(&place.path("switchback.toml"));
    assert_eq!((config.cloud.servers.len(), config.cloud.client_id.as_str()), (1, "later"));
}

#[test]
fn a_configuration_that_was_never_written_is_told_from_a_wrong_one() {
    let place = Place::new("");
    let nothing_yet = |text: Option<&str>| {
        match text {
            Some(text) => drop(place.write("switchback.toml", text)),
            None => fs::remove_file(place.path("switchback.toml")).unwrap(),
        }
        Config::load(&place.path("switchback.toml")).unwrap_err().iter().all(|error| error.is_nothing_yet())
    };
    assert!(nothing_yet(Some(SHIPPED)) && nothing_yet(Some("")) && nothing_yet(Some("[cloud]\nservers = []\n")));
    assert!(!nothing_yet(Some("[cloud]\nserver = []\n")) && !nothing_yet(Some("[cloud]\nservers = [1]\n")));
    assert!(nothing_yet(None));
}

#[test]
fn no_text_whatsoever_makes_the_reader_fail() {
    use proptest::prelude::*;
    use proptest::test_runner::{Config as Runs, TestRunner};
    const WORDS: &[&str] = &[
        "[", "]", "=", "\"", "cloud", "uplink", "cell", ".", "\n", "servers", "match", "5s", "{", "}", "'", "é", "-9",
    ];
    let text = proptest::collection::vec(proptest::sample::select(WORDS), 0..40).prop_map(|parts| parts.concat());
    let mut runner = TestRunner::new(Runs { cases: 300, failure_persistence: None, ..Runs::default() });
    runner
        .run(&text, |text| {
            let _ = Place::new(&text).load();
            Ok(())
        })
        .unwrap();
}

// The shipped file.

/// Lines with this mark are taken out of their comment; the others stay.
fn uncommented(mark: &str) -> String {
    let is_key = |rest: &str| rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '[');
    SHIPPED
        .lines()
        .map(|line| match line.strip_prefix(mark) {
            Some(rest) if is_key(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect()
}

#[test]
fn the_shipped_file_with_everything_uncommented_is_the_defaults() {
    let (shipped, warnings) = Place::new(&uncommented("#")).load().unwrap();
    assert_eq!(warnings, [""; 0]);
    assert_eq!(shipped, good("").0);
}

#[test]
fn the_shipped_file_lacks_only_the_servers() {
    let errors = Place::new(SHIPPED).load().unwrap_err();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains("\"cloud.servers\": is missing"), "{errors:#?}");
}

#[test]
fn every_key_stands_in_the_shipped_file_with_its_range_and_why() {
    let [defaults, examples] = ["#", "#: "].map(|mark| uncommented(mark).parse::<toml::Table>().unwrap());
    for (path, range) in switchback::config::keys() {
        let uplinks = match path.split('.').next().unwrap() {
            "uplink" => &["ethernet", "wifi", "cell"][..],
            "class" => &["normal", "critical", "bulk", "low"][..],
            _ => &[""][..],
        };
        for uplink in uplinks {
            let path = path.replace('*', uplink);
            assert!(has(&defaults, &path) || has(&examples, &path), "{path} is not in the shipped file");
        }
        let name = path.rsplit('.').next().unwrap();
        let above = explanation(name, path);
        if let Some(range) = range {
            assert!(above.contains(&range), "{path}: the comment lacks \"{range}\":\n{above}");
            let both = above.contains("arger") && above.contains("maller");
            let words = above.contains("One of ") || path.ends_with("qos") || path == "cloud.fleet_size";
            assert!(both || words, "{path}: the comment does not say what larger and smaller cost:\n{above}");
        }
        assert!(above.len() > 20, "{path} is not explained");
    }
}

fn has(table: &toml::Table, path: &str) -> bool {
    let mut value = toml::Value::Table(table.clone());
    path.split('.').all(|part| {
        let next = match &value {
            toml::Value::Array(items) => items[0].get(part).cloned(),
            other => other.get(part).cloned(),
        };
        next.map(|next| value = next).is_some()
    })
}

/// The comment above the first mention of a key in its section, as one line.
fn explanation(name: &str, path: &str) -> String {
    let first = if path.starts_with("class") { "normal" } else { "ethernet" };
    let section = path.rsplit_once('.').unwrap().0.replace('*', first);
    let from = ["\n[", "\n#: [["].iter().find_map(|open| SHIPPED.find(&format!("{open}{section}]"))).unwrap();
    let lines: Vec<&str> = SHIPPED[from..].lines().collect();
    let is =
        |line: &str, mark: &str| line.strip_prefix(mark).is_some_and(|rest| rest.starts_with(&format!("{name} =")));
    let at = lines.iter().position(|line| is(line, "#") || is(line, "#: ")).unwrap_or_else(|| panic!("{path}"));
    let mut above: Vec<&str> = lines[..at]
        .iter()
        .rev()
        .skip_while(|line| line.starts_with("#: "))
        .take_while(|line| line.starts_with("# "))
        .map(|line| line.trim_start_matches("# "))
        .collect();
    above.reverse();
    above.join(" ")
}
