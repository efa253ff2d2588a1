//! What operators' programs may ask: lines on the control socket, and options over D-Bus.

use serde_json::{Map, Value};

use super::{Shape, Target, as_it_is, mixed, shape_of};
use crate::api::{Verb, base64};
use crate::io::control_socket;
use crate::io::dbus::values::{to_dict, to_json};

pub const CONTROL: Target = Target {
    name: "control_lines",
    examples: lines,
    words: WORDS,
    repair: as_it_is,
    read: line,
    memory: (256, 1024 * 1024),
};

pub const DBUS: Target = Target {
    name: "dbus_options",
    examples: lines,
    words: WORDS,
    repair: as_it_is,
    read: options,
    memory: (1024, 1024 * 1024),
};

const WORDS: &[&[u8]] = &[
    b"\"verb\":",
    b"\"status\"",
    b"\"publish\"",
    b"\"topic\":",
    b"\"payload_base64\":\"AP8=\"",
    b"\"class\":\"critical\"",
    b"\"qos\":2",
    b"\"wait\":\"acked\"",
    b"\"timeout\":\"5s\"",
    b"\"since\":\"2h\"",
    b"\"list\":[\"wifi\"]",
    b"\"for\":\"99999999999999999999d\"",
    b"\"limit\":",
    b"true",
    b"null",
    b"-1",
    b"1e309",
    b"18446744073709551616",
    b"[[[[[[[[[[[[[[[[",
    b"{\"a\":",
    b"}",
    b"\"",
    b"\\u0000",
    b"\\ud800",
    b"\xff",
    b",",
];

fn lines() -> Vec<Vec<u8>> {
    let lines = [
        r#"{"verb":"status"}"#,
        r#"{"verb":"status","watch":true}"#,
        r#"{"verb":"publish","topic":"a/b","payload":"hi","class":"normal","qos":1,"retain":false,"wait":"stored","timeout":"5s"}"#,
        r#"{"verb":"publish","topic":"a/b","payload_base64":"AP8=","qos":0,"wait":"acked"}"#,
        r#"{"verb":"failover-set","list":["ethernet","wifi","wwan0"]}"#,
        r#"{"verb":"failback-set","mode":"auto","for":"2h"}"#,
        r#"{"verb":"failback-now","timeout":"30s"}"#,
        r#"{"verb":"inhibit","for":"10min"}"#,
        r#"{"verb":"connect","via":"wwan0","timeout":"20s"}"#,
        r#"{"verb":"disconnect","force":true}"#,
        r#"{"verb":"events","since":"2026-11-20T08:00:00Z","boot":true,"limit":50}"#,
        r#"{"verb":"events","since":"2026-11-20 08:00","follow":true}"#,
        r#"{"verb":"flush","timeout":null}"#,
        r#"{"verb":"explain"}"#,
        r#"{"deep":{"a":[1,2.5,-3,"x",{"b":[{"c":null}]}],"events":[],"walk":[[]]}}"#,
    ];
    lines.iter().map(|line| line.as_bytes().to_vec()).collect()
}

/// Longest complaint: it may quote what was written, and must not send all of it back.
const COMPLAINT_MAX: usize = 1000;

fn line(input: &[u8]) -> Shape {
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(bytes) = base64::decode(text)
    {
        assert_eq!(base64::decode(&base64::encode(&bytes)), Some(bytes));
    }
    let failure = match control_socket::parse(input) {
        Ok(asked) => match Verb::parse(&asked.verb, &asked.options) {
            Ok(verb) => return accepted(&verb),
            Err(failure) => failure,
        },
        Err(failure) => failure,
    };
    assert_eq!(failure.code, 2, "{failure:?}");
    assert!(failure.message.len() <= COMPLAINT_MAX, "a complaint of {} bytes", failure.message.len());
    let words = failure.message.split('"').step_by(2).take(4).collect::<String>();
    shape_of(&words)
}

fn accepted(verb: &Verb) -> Shape {
    match verb {
        Verb::Publish { topic, payload, qos, wait, .. } => {
            assert!(crate::topics::valid_topic(topic) && !topic.starts_with('$'));
            assert!(payload.len() <= crate::api::PAYLOAD_MAX);
            mixed((1, qos, wait.as_str(), payload.is_empty()))
        }
        Verb::FailoverSet { list } => {
            assert!(list.len() <= crate::api::LIST_MAX);
            mixed((2, list.len().min(5)))
        }
        other => shape_of(other),
    }
}

fn options(input: &[u8]) -> Shape {
    let Ok(Value::Object(object)) = serde_json::from_slice::<Value>(input) else { return 0 };
    let dict = to_dict(object);
    match to_json(&dict) {
        Ok(json) => {
            // Nulls are gone, numbers have one type each: from here on nothing changes any more.
            let again = to_json(&to_dict(json.clone())).expect("what came over the bus goes over it");
            assert_eq!(again, json);
            let types: Vec<String> = dict.values().take(4).map(|value| value.value_signature().to_string()).collect();
            let verb = verb_of(&json);
            mixed((types, verb))
        }
        Err(why) => {
            let why = why.rsplit(": ").next().unwrap_or_default().to_owned();
            assert!(why.len() < COMPLAINT_MAX);
            mixed(why)
        }
    }
}

fn verb_of(json: &Map<String, Value>) -> Option<u8> {
    let mut options = json.clone();
    let verb = options.remove("verb")?;
    Some(match Verb::parse(verb.as_str()?, &options) {
        Ok(_) => 1,
        Err(failure) => {
            assert!(failure.message.len() <= COMPLAINT_MAX);
            2
        }
    })
}
