//! Files that people write: the configuration, users, and topic rules.

use std::fs;

use super::state::place;
use super::{Shape, Target, as_it_is, mixed, shape_of};
use crate::config::{Config, Host, LocalConfig, costs, worst_cases};
use crate::io::applications::access::{Access, Deed};
use crate::topics;

pub const CONFIG: Target = Target {
    name: "configuration",
    examples: configurations,
    words: &[
        b"[cloud]\n",
        b"servers = [\"mqtts://a:1\"]\n",
        b"[[publish]]\n",
        b"topic = \"#\"\n",
        b"to = \"{topic}\"\n",
        b"[uplink.cell]\n",
        b"[class.bulk]\n",
        b"= \"1ms\"",
        b"= \"9999999999d\"",
        b"= \"18446744073709551615B\"",
        b"= -9223372036854775808",
        b"= 1e300",
        b"= inf",
        b"= [[[[[[",
        b"= {}",
        b"= 1979-05-27T07:32:00Z",
        b"{hostname}",
        b"{rest}",
        b"\"\"\"",
        b"\\uD800",
        b"a.b.c.d = 1\n",
        b"mqtt://[::1]:99999",
        b"\n",
        b"#",
    ],
    repair: as_it_is,
    read: configuration,
    memory: (2048, 8 * 1024 * 1024),
};

pub const USERS: Target = Target {
    name: "users",
    examples: || vec![format!("# people\n\n{USER}\nother:{}\n", &USER[3..]).into_bytes()],
    words: &[b":$7$", b"$101$", b"$0$", b"$4294967295$", b"==", b"\n", b"#", b"\0", b"gw:", b"\xc3\xa4"],
    repair: as_it_is,
    read: users,
    memory: (64, 256 * 1024),
};

pub const RULES: Target = Target {
    name: "rules",
    examples: || {
        vec![
            b"topic read open/#\nuser a\ntopic read cmd/+/x\ntopic write up/#\ntopic both\npattern own/%u/%c/#\n\0\
              a\0c\0own/a/c/#\0own/a/c/x/y"
                .to_vec(),
            b"topic readwrite #\n\0\0\0+/+\0a/b".to_vec(),
            b"pattern write a/%c\npattern read $SYS/#\n\0u\0me\0$SYS/+\0$SYS/x".to_vec(),
        ]
    },
    words: &[
        b"topic ",
        b"user ",
        b"pattern ",
        b"read ",
        b"write ",
        b"deny ",
        b"%u",
        b"%c",
        b"#",
        b"+",
        b"/",
        b"\0",
        b"$",
    ],
    repair: as_it_is,
    read: rules,
    memory: (64, 256 * 1024),
};

/// What mosquitto_passwd made of the password "secret".
const USER: &str = "gw:$7$101$I8XSt7+FbZbg+pT8$O+LBRm2p1esmknQLQaCsgm+LVM6zmMur58pWn3Pjn4g8QqOdyhAfBa5INVP1su1mPWexpmQX6dohDcVFFo/LdA==";

fn configurations() -> Vec<Vec<u8>> {
    let shipped = include_str!("../../config/switchback.toml");
    // The shipped file says everything in comments; a start from it with every default in force, part by part.
    let bare: String = shipped.lines().filter(|line| !line.starts_with("# ")).map(|line| format!("{line}\n")).collect();
    let said = |mark: &str| bare.lines().map(|line| format!("{}\n", line.strip_prefix(mark).unwrap_or(line))).collect();
    let all: String = said("#");
    let minimal = "[cloud]\nservers = [\"mqtts://broker.example.com:8883\"]\n";
    let mut examples = vec![minimal.as_bytes().to_vec(), all.replace(": ", "").into_bytes(), all.clone().into_bytes()];
    let mut part = minimal.to_owned();
    for line in all.lines() {
        if line.starts_with('[') && part.len() > 200 {
            examples.push(part.into_bytes());
            part = minimal.to_owned();
        }
        if line != "[cloud]" && !line.starts_with("servers") && !line.starts_with(':') {
            part += line;
            part.push('\n');
        }
    }
    examples.push(part.into_bytes());
    examples
}

fn configuration(input: &[u8]) -> Shape {
    let dir = place("config");
    let path = dir.join("switchback.toml");
    fs::write(&path, input).unwrap();
    let host = Host { hostname: Some("gw".into()), machine_id: Some("0123456789abcdef0123456789abcdef".into()) };
    let lines = input.iter().filter(|byte| **byte == b'\n').count() as u32 + 1;
    let complaint = |line: Option<u32>, text: String| {
        assert!(line.is_none_or(|line| (1..=lines).contains(&line)), "line {line:?} of {lines}: {text}");
        assert!(text.contains("switchback.toml"), "a complaint without a place: {text}");
        let words: String = text.split('"').step_by(2).collect();
        shape_of(&words.split_once("switchback.toml").map(|(_, words)| words.trim_start_matches([':', ' ']).to_owned()))
    };
    match Config::load_as(&path, &host) {
        Ok((config, warnings)) => {
            let said: Vec<Shape> =
                warnings.iter().take(3).map(|warning| complaint(warning.line, warning.to_string())).collect();
            // What was let in can be lived with.
            assert!(!config.cloud.servers.is_empty() && !config.cloud.client_id.is_empty());
            assert!(!config.lanes.is_empty() && config.lanes.len() == config.settings.lanes.len());
            let _ = (worst_cases(&config), costs(&config));
            let now = switchback_control::Instant::from_millis(1_000_000);
            let unreleased = [Default::default()];
            let control = switchback_control::Control::restore(
                config.settings.clone(),
                Default::default(),
                &unreleased,
                0,
                7,
                now,
            );
            assert!(control.next_deadline().is_none_or(|deadline| deadline >= now));
            mixed((said, config.publish.len().min(4), config.lanes.len().min(6), config.named.len().min(3)))
        }
        Err(errors) => {
            assert!(!errors.is_empty(), "refused without a word");
            let said: Vec<Shape> =
                errors.iter().take(3).map(|error| complaint(error.line, error.to_string())).collect();
            let _ = Config::salvage(&path);
            mixed(said)
        }
    }
}

fn local(password_file: Option<std::path::PathBuf>, acl_file: Option<std::path::PathBuf>) -> LocalConfig {
    LocalConfig { mqtt: None, password_file, acl_file, broker: None }
}

fn users(input: &[u8]) -> Shape {
    let path = place("users").join("passwords");
    fs::write(&path, input).unwrap();
    let access = Access::load(&local(Some(path), None));
    assert!(!access.asks_nobody(), "a file that cannot be read lets everybody in");
    shape_of(&access)
}

/// The rules, a user, a client, a filter and a topic, each behind a null character.
fn rules(input: &[u8]) -> Shape {
    let mut parts = input.split(|byte| *byte == 0);
    let mut next = || std::str::from_utf8(parts.next().unwrap_or_default()).unwrap_or_default();
    let (rules, user, client, filter, topic) = (next(), next(), next(), next(), next());
    let path = place("rules").join("acl");
    fs::write(&path, rules).unwrap();
    let access = Access::load(&local(None, Some(path)));
    let user = Some(user).filter(|user| !user.is_empty());
    let may_read = topics::valid_filter(filter) && access.allows(user, client, Deed::Subscribe, filter);
    let may_write = topics::valid_topic(topic) && access.allows(user, client, Deed::Publish, topic);
    if may_read && topics::valid_topic(topic) && topics::matches(filter, topic) {
        let covered = access.allows(user, client, Deed::Subscribe, topic);
        assert!(covered, "{filter:?} may be read, and {topic:?} in it may not");
    }
    mixed((shape_of(&access), may_read, may_write))
}
