//! `switchback doctor`: looks at everything that a newcomer trips over, and says what to do about it.
//!
//! Configuration, daemon, bus, NetworkManager and its rights, clock, disk, the port for applications; then, through each
//! uplink by itself, link, address, name lookup, connection and TLS to each server. It needs no daemon and disturbs none:
//! it changes nothing, activates nothing, and never sends CONNECT, which would take the session over. Every finding that
//! is not good comes with the next thing to type.
//!
//! `host` looks at this machine, `uplinks` through its interfaces.

mod host;
mod uplinks;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::config::{Config, ConfigError};

/// Where to look, and what the daemon says of itself.
pub struct Patient {
    pub config: PathBuf,
    pub state_dir: PathBuf,
    /// Its status document; or why there is none, in a sentence.
    pub daemon: Result<Value, String>,
}

/// How one thing is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Good,
    /// It works, and somebody should know.
    Odd,
    /// The gateway cannot do its work over this.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The uplink it was looked at through; `None` for the machine itself.
    pub uplink: Option<String>,
    /// One word or two: `clock`, `name lookup`.
    pub what: &'static str,
    pub health: Health,
    /// What was seen.
    pub seen: String,
    /// What to do, for what is not good.
    pub advice: Option<String>,
}

impl Finding {
    fn new(what: &'static str, health: Health, seen: impl Into<String>) -> Finding {
        Finding { uplink: None, what, health, seen: seen.into(), advice: None }
    }

    fn good(what: &'static str, seen: impl Into<String>) -> Finding {
        Finding::new(what, Health::Good, seen)
    }

    fn odd(what: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { advice: Some(advice.into()), ..Finding::new(what, Health::Odd, seen) }
    }

    fn bad(what: &'static str, seen: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { advice: Some(advice.into()), ..Finding::new(what, Health::Bad, seen) }
    }

    fn through(self, uplink: &str) -> Finding {
        Finding { uplink: Some(uplink.to_owned()), ..self }
    }
}

/// Looks at everything, in the order in which it matters.
pub async fn examine(patient: &Patient) -> Vec<Finding> {
    let loaded = Config::load(&patient.config);
    let mut findings = vec![configuration(&loaded)];
    let config = Arc::new(loaded.map(|(config, _)| config).unwrap_or_else(|_| Config::defaults()));
    findings.extend(host::examine(patient, &config).await);
    findings.extend(uplinks::examine(patient, config).await);
    findings
}

fn configuration(loaded: &Result<(Config, Vec<crate::config::Warning>), Vec<ConfigError>>) -> Finding {
    match loaded {
        Err(errors) => {
            let first = errors.first().map(ToString::to_string).unwrap_or_default();
            let more = errors.len().saturating_sub(1);
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            Finding::bad("configuration", format!("{first}{more}"), "switchback config check")
        }
        Ok((config, warnings)) => {
            let servers: Vec<String> = config.cloud.servers.iter().map(ToString::to_string).collect();
            let seen = format!("good: {}", servers.join(", "));
            match warnings.first() {
                None => Finding::good("configuration", seen),
                Some(warning) => Finding::odd("configuration", warning.to_string(), "switchback config check"),
            }
        }
    }
}

/// The findings for scripts.
pub fn document(findings: &[Finding]) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "uplink": finding.uplink,
            "what": finding.what,
            "health": finding.health.to_string(),
            "seen": finding.seen,
            "advice": finding.advice,
        })
    };
    let worst = findings.iter().map(|finding| finding.health).max().unwrap_or(Health::Good);
    json!({ "health": worst.to_string(), "findings": findings.iter().map(finding).collect::<Vec<_>>() })
}

/// The findings for people: one line each, and the advice below it.
pub fn in_words(document: &Value) -> String {
    let mut text = String::new();
    let mut uplink = &Value::Null;
    let text_of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    for finding in document["findings"].as_array().into_iter().flatten() {
        if finding["uplink"] != *uplink {
            uplink = &finding["uplink"];
            text.push_str(&format!("\n{}\n", text_of(uplink)));
        }
        let [health, what, seen] = ["health", "what", "seen"].map(|key| text_of(&finding[key]));
        text.push_str(&format!("{health:<4}  {what:<15} {seen}\n"));
        if let Some(advice) = finding["advice"].as_str() {
            text.push_str(&format!("{:<22}-> {advice}\n", ""));
        }
    }
    text
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Health::Good => "good",
            Health::Odd => "odd",
            Health::Bad => "bad",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_are_told_by_uplink_with_what_to_do() {
        let findings = [
            Finding::good("clock", "set"),
            Finding::bad("name lookup", "nothing", "ask").through("eth0 (ethernet)"),
            Finding::odd("TLS", "1.2", "tell").through("eth0 (ethernet)"),
        ];
        let document = document(&findings);
        assert_eq!(document["health"], "bad");
        assert_eq!(
            in_words(&document),
            "good  clock           set\n\neth0 (ethernet)\nbad   name lookup     nothing\n                      -> ask\nodd   TLS             1.2\n                      -> tell\n"
        );
    }
}
