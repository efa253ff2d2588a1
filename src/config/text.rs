//! The small languages inside values: durations, sizes, servers, topics, placeholders, patterns.
//!
//! Each function takes text and answers with a value or one sentence that says what to write instead. None of
//! them knows keys or ranges.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use super::{Match, Server};

/// Longest topic or client identifier, in bytes (MQTT 5.0, 1.5.4).
pub const MQTT_TEXT_MAX: usize = 65_535;

/// Longest `match` pattern: longer than any interface or driver name.
const PATTERN_MAX: usize = 64;

const DURATION_UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

const SIZE_UNITS: [(&str, u64); 7] = [
    ("B", 1),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
];

/// `"45s"`, `"5min"`, `"200ms"`, `"2h"`, `"7d"`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let unit = if text.trim().ends_with('m') { "min" } else { "s" };
    quantity(text, &DURATION_UNITS, unit, "ms, s, min, h, d").map(Duration::from_millis)
}

/// `"64KiB"`, `"256MiB"`, `"1MB"`; bytes.
pub fn size(text: &str) -> Result<u64, String> {
    quantity(text, &SIZE_UNITS, "KiB", "B, KB, MB, GB, KiB, MiB, GiB")
}

fn quantity(text: &str, units: &[(&str, u64)], likely: &str, all: &str) -> Result<u64, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).unwrap_or(("", text));
    let example = if number.is_empty() { "30" } else { number };
    let Some((_, factor)) = units.iter().find(|(name, _)| *name == unit.trim()) else {
        let what = if number.is_empty() {
            "is not a number with a unit".to_string()
        } else if unit.trim().is_empty() {
            "has no unit".to_string()
        } else {
            format!("has the unknown unit \"{}\"", unit.trim())
        };
        return Err(format!("\"{text}\" {what}; write for example \"{example}{likely}\" (units: {all})"));
    };
    if number.is_empty() {
        return Err(format!("\"{text}\" has no number; write for example \"{example}{likely}\""));
    }
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(*factor))
        .ok_or_else(|| format!("\"{text}\" is too large for anything"))
}

/// The shortest text that means exactly this; seconds are kept below ten minutes, as people think in them.
pub fn duration_text(duration: Duration) -> String {
    let ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let (unit, factor) = match ms {
        0 => ("s", 1000),
        _ if ms % 1000 != 0 => ("ms", 1),
        _ if ms < 600_000 || ms % 60_000 != 0 => ("s", 1000),
        _ if ms % 86_400_000 == 0 => ("d", 86_400_000),
        _ if ms % 3_600_000 == 0 => ("h", 3_600_000),
        _ => ("min", 60_000),
    };
    format!("{}{unit}", ms / factor)
}

/// The shortest text that means exactly this many bytes.
pub fn size_text(bytes: u64) -> String {
    let binary = [("GiB", 1u64 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
    match binary.into_iter().find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor)) {
        Some((unit, factor)) => format!("{}{unit}", bytes / factor),
        None => format!("{bytes}B"),
    }
}

/// `mqtts://host[:port]` or `mqtt://host[:port]`; an IPv6 address stands in brackets.
pub fn server(text: &str) -> Result<Server, String> {
    let example = "write for example \"mqtts://broker.example.com:8883\"";
    let Some((scheme, rest)) = text.split_once("://") else {
        return Err(format!("\"{text}\" has no scheme; write \"mqtts://{text}\" (or mqtt:// without encryption)"));
    };
    let (tls, default_port) = match scheme {
        "mqtts" => (true, 8883),
        "mqtt" => (false, 1883),
        "ssl" | "tls" => return Err(format!("\"{scheme}://\" is called mqtts:// here; write \"mqtts://{rest}\"")),
        "tcp" => return Err(format!("\"tcp://\" is called mqtt:// here; write \"mqtt://{rest}\"")),
        "ws" | "wss" => return Err(format!("\"{scheme}://\" (MQTT over WebSocket) is not in this version; {example}")),
        _ => return Err(format!("\"{scheme}://\" is not a scheme for MQTT; {example}")),
    };
    if rest.contains('@') {
        return Err("a user name does not go into the address; write cloud.username and cloud.password_file".into());
    }
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[') {
        Some(inner) => {
            let (host, after) = inner.split_once(']').ok_or(format!("\"{text}\" lacks the closing \"]\""))?;
            host.parse::<Ipv6Addr>().map_err(|_| format!("\"{host}\" is not an IPv6 address"))?;
            (host, after.strip_prefix(':').or(if after.is_empty() { None } else { Some(after) }))
        }
        None if rest.matches(':').count() > 1 => {
            return Err(format!("an IPv6 address stands in brackets; write \"{scheme}://[{rest}]\""));
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    if !is_host(host) {
        return Err(format!("\"{host}\" is neither a host name nor an address; {example}"));
    }
    let port = match port.map(str::parse::<u16>) {
        None => default_port,
        Some(Ok(port)) if port != 0 => port,
        Some(_) => return Err(format!("\"{}\" is not a port (1 to 65535)", port.unwrap_or(""))),
    };
    Ok(Server { host: host.to_string(), port, tls })
}

/// A host name (RFC 1123, underscores tolerated as resolvers do) or an address literal.
fn is_host(host: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    host.parse::<IpAddr>().is_ok() || (!name.is_empty() && name.len() <= 253 && name.split('.').all(label))
}

/// Whether only this machine is meant.
pub fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Checks a topic filter (MQTT 5.0, 4.7).
pub fn filter(text: &str) -> Result<(), String> {
    plain_topic_text(text)?;
    let levels: Vec<&str> = text.split('/').collect();
    for (index, level) in levels.iter().enumerate() {
        if level.contains('#') && (*level != "#" || index + 1 != levels.len()) {
            return Err(format!("\"{text}\": \"#\" stands alone and last, as in \"a/b/#\""));
        }
        if level.contains('+') && *level != "+" {
            return Err(format!("\"{text}\": \"+\" stands alone between slashes, as in \"a/+/c\""));
        }
    }
    Ok(())
}

/// Checks a topic to publish to: a filter without wildcards.
pub fn topic(text: &str) -> Result<(), String> {
    plain_topic_text(text)?;
    match text.contains(['+', '#']) {
        true => Err(format!("\"{text}\": a topic to publish to has no \"+\" and no \"#\"")),
        false => Ok(()),
    }
}

fn plain_topic_text(text: &str) -> Result<(), String> {
    if text.is_empty() {
        return Err("a topic is at least one character".into());
    }
    if text.len() > MQTT_TEXT_MAX {
        return Err(format!("a topic is at most {MQTT_TEXT_MAX} bytes"));
    }
    match text.chars().any(char::is_control) {
        true => Err(format!("{text:?}: control characters are not allowed in topics")),
        false => Ok(()),
    }
}

/// Replaces `{name}` by its value; names in `kept` stay as they are. Anything else in braces is an error.
pub fn expand(text: &str, known: &[(&str, &str)], kept: &[&str]) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        out.push_str(before);
        let Some((name, after)) = after.split_once('}') else {
            return Err(format!("\"{text}\" has \"{{\" without \"}}\""));
        };
        match known.iter().find(|(known, _)| *known == name) {
            Some((_, value)) => out.push_str(value),
            None if kept.contains(&name) => {
                out.push('{');
                out.push_str(name);
                out.push('}');
            }
            None => {
                let names: Vec<String> = known
                    .iter()
                    .map(|(name, _)| *name)
                    .chain(kept.iter().copied())
                    .map(|n| format!("{{{n}}}"))
                    .collect();
                return Err(format!("\"{{{name}}}\" means nothing here; known: {}", names.join(", ")));
            }
        }
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

/// `usb*` or `driver:rndis_host`.
pub fn pattern(text: &str) -> Result<Match, String> {
    let (driver, pattern) = match text.split_once(':') {
        None => (false, text),
        Some(("driver", pattern)) => (true, pattern),
        Some((kind, _)) => {
            return Err(format!("\"{kind}:\" is not known; write an interface name like \"usb*\", or \"driver:NAME\""));
        }
    };
    let ok = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
    if pattern.is_empty() || pattern.len() > PATTERN_MAX || !pattern.bytes().all(ok) {
        return Err(format!("\"{text}\" is not a pattern; write for example \"usb*\" or \"driver:rndis_host\""));
    }
    Ok(if driver { Match::Driver(pattern.to_string()) } else { Match::Name(pattern.to_string()) })
}

/// Whether a shell pattern with `*` and `?` fits the whole of `text`.
pub fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    // The classic walk with one remembered star: linear memory, no recursion, whatever the pattern.
    let (mut p, mut t, mut star) = (0, 0, None);
    while let Some(byte) = text.get(t) {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, t));
                p += 1;
            }
            Some(b'?') => (p, t) = (p + 1, t + 1),
            Some(wanted) if wanted == byte => (p, t) = (p + 1, t + 1),
            Some(_) | None => match star {
                Some((at, from)) => {
                    star = Some((at, from + 1));
                    (p, t) = (at + 1, from + 1);
                }
                None => return false,
            },
        }
    }
    pattern.iter().skip(p).all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_in_every_unit() {
        for (text, ms) in [("45s", 45_000), ("5min", 300_000), ("200ms", 200), ("2h", 7_200_000), ("7d", 604_800_000)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
    }

    #[test]
    fn a_bad_duration_says_what_to_write() {
        assert_eq!(
            duration("45"),
            Err("\"45\" has no unit; write for example \"45s\" (units: ms, s, min, h, d)".into())
        );
        assert!(duration("5m").unwrap_err().contains("\"5min\""));
        for text in ["", "s", "-3s", "1.5s", "99999999999999999999s", "18446744073709551615d", "5 parsecs", "٣s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_of_a_duration_means_the_same() {
        for ms in [0, 1, 200, 1000, 45_000, 240_000, 600_000, 660_000, 3_600_000, 86_400_000, 90_061_000] {
            let duration_in = Duration::from_millis(ms);
            assert_eq!(duration(&duration_text(duration_in)), Ok(duration_in));
        }
    }

    #[test]
    fn what_is_written_of_a_size_means_the_same() {
        for bytes in [0, 1, 1000, 1024, 65_536, 1_000_000, 1 << 28, (1 << 30) + 1] {
            assert_eq!(size(&size_text(bytes)), Ok(bytes));
        }
        assert_eq!(size("1MB"), Ok(1_000_000));
        assert!(size("64K").is_err());
    }

    #[test]
    fn servers_have_default_ports_and_brackets() {
        let is = |text: &str, host: &str, port, tls| {
            assert_eq!(server(text), Ok(Server { host: host.into(), port, tls }), "{text}");
        };
        is("mqtt://b", "b", 1883, false);
        is("mqtts://b.example.com", "b.example.com", 8883, true);
        is("mqtts://b.example.com:443/", "b.example.com", 443, true);
        is("mqtt://192.0.2.1:1884", "192.0.2.1", 1884, false);
        is("mqtts://[2001:db8::1]:8884", "2001:db8::1", 8884, true);
        is("mqtts://[2001:db8::1]", "2001:db8::1", 8883, true);
    }

    #[test]
    fn a_bad_server_says_what_to_write() {
        for (text, hint) in [
            ("broker.example.com", "mqtts://broker.example.com"),
            ("ssl://b:8883", "mqtts://b:8883"),
            ("tcp://b", "mqtt://b"),
            ("wss://b", "not in this version"),
            ("https://b", "not a scheme"),
            ("mqtts://u:p@b", "cloud.username"),
            ("mqtts://2001:db8::1", "brackets"),
            ("mqtts://b:0", "not a port"),
            ("mqtts://b:99999", "not a port"),
            ("mqtts://", "neither"),
            ("mqtts://a b", "neither"),
            ("mqtts://b/path", "neither"),
            ("mqtts://[::1", "closing"),
            ("mqtts://[::1]8883x", "not a port"),
        ] {
            let error = server(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn filters_follow_the_standard() {
        for good in ["#", "+", "a", "/", "a/#", "a/+/c", "+/+", "/a"] {
            assert_eq!(filter(good), Ok(()), "{good}");
        }
        for bad in ["", "a#", "#/a", "a/b#", "a+", "a/+b", "a\0b"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn placeholders_are_replaced_kept_or_refused() {
        assert_eq!(expand("gw/{client_id}/{topic}", &[("client_id", "g1")], &["topic"]), Ok("gw/g1/{topic}".into()));
        assert!(expand("{hostnme}", &[("hostname", "h")], &[]).unwrap_err().contains("{hostname}"));
        assert!(expand("a{b", &[], &[]).is_err());
    }

    #[test]
    fn shell_patterns_fit_whole_names() {
        for (pattern, text, fits) in [
            ("usb*", "usb0", true),
            ("usb*", "xusb0", false),
            ("*", "", true),
            ("w?an0", "wwan0", true),
            ("w?an0", "wlan01", false),
            ("*a*b*", "xaxxbx", true),
            ("*a*b", "xaxxbx", false),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }
}
