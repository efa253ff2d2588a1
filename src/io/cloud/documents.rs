//! Our own messages to the cloud: whether the gateway is there, and who it is.
//!
//! JSON below `cloud.base`, in the keys of `status --json`. Pure. Holds no secret: the configuration goes as a digest.

use jiff::Timestamp;
use serde_json::{Value, json};
use switchback_control::{Attempt, Reason};

/// The version of what is written here; grows when a key changes its meaning.
const PROTOCOL: &str = "1";

/// What only the loop knows of a new session (R-CS-7).
#[derive(Clone, Debug, Default)]
pub struct Greeting {
    /// The kernel's boot ID.
    pub boot: String,
    /// The number of this start (R-SF-7).
    pub start: u64,
    /// Why the daemon was started (R-DG-9).
    pub reason: &'static str,
    /// Why it is in safe mode; `None`: it is not.
    pub safe_mode: Option<&'static str>,
    /// The first cause of the last outage; `None` before the first.
    pub outage: Option<Reason>,
}

/// `{base}/status`, and the will: retained, so that whoever looks later still sees it.
pub fn status(online: bool, session: Attempt, reason: Option<Reason>) -> Vec<u8> {
    write(&json!({
        "state": if online { "online" } else { "offline" },
        "session": session.0,
        "since": rfc3339(Timestamp::now()),
        "reason": reason.map(Reason::as_str),
    }))
}

/// `{base}/hello`.
pub fn hello(greeting: &Greeting, config_hash: &str, session: Attempt) -> Vec<u8> {
    write(&json!({
        "protocol": PROTOCOL,
        "version": env!("CARGO_PKG_VERSION"),
        "config": config_hash,
        "boot": greeting.boot,
        "start": greeting.start,
        "start_reason": greeting.reason,
        "safe_mode": greeting.safe_mode,
        "session": session.0,
        "last_outage": greeting.outage.map(Reason::as_str),
    }))
}

/// A moment of the wall clock, milliseconds since the epoch, as RFC 3339; the epoch itself where out of range.
pub fn time(millis: u64) -> String {
    let moment = i64::try_from(millis).ok().and_then(|millis| Timestamp::from_millisecond(millis).ok());
    rfc3339(moment.unwrap_or(Timestamp::UNIX_EPOCH))
}

fn rfc3339(moment: Timestamp) -> String {
    format!("{moment:.3}")
}

fn write(document: &Value) -> Vec<u8> {
    document.to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_carry_the_keys_of_the_contract() {
        let text = String::from_utf8(status(false, Attempt(7), Some(Reason::KeepaliveLimit))).unwrap();
        let read: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&read["state"], &read["session"]), (&json!("offline"), &json!(7)));
        assert_eq!(read["reason"], "keepalive-limit");
        let hello: Value = serde_json::from_slice(&hello(&Greeting::default(), "abc", Attempt(7))).unwrap();
        assert_eq!((&hello["protocol"], &hello["config"]), (&json!("1"), &json!("abc")));
        assert!(hello["last_outage"].is_null());
    }

    #[test]
    fn any_number_is_some_time() {
        assert_eq!(time(1_000), "1970-01-01T00:00:01.000Z");
        assert_eq!(time(u64::MAX), "1970-01-01T00:00:00.000Z");
    }
}
