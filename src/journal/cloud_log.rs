//! Sentences of the journal on their way to the cloud (`cloud.log`): `{base}/log`, JSON `{time, level, text}` (R-SF-8).
//!
//! Each is offered as a message of class `normal` and keeps the time at which it was said, so that what was said while
//! offline arrives later as if it had not been. At most `LINES_MAX` a minute; what is more is counted and the count is
//! told with the next. Nothing here writes to any log, so no line can cause another.

use std::time::Duration;

use jiff::Timestamp;
use log::Level;
use serde_json::json;
use switchback_control::Instant;

use crate::api::rfc3339_ms;
use crate::config::{Cloud, CloudLog};
use crate::corridor::Draft;

/// Lines a minute: a switch says about five, and nobody pays for a hundred.
const LINES_MAX: u32 = 30;
const MINUTE: Duration = Duration::from_secs(60);

/// Lines that are to be offered.
#[derive(Debug)]
pub struct CloudLines {
    /// `None` where none are wanted.
    wanted: Option<Level>,
    topic: String,
    waiting: Vec<Draft>,
    began: Option<Instant>,
    said: u32,
    left_out: u64,
    offered: u64,
}

impl CloudLines {
    /// As configured.
    pub fn new(cloud: &Cloud) -> CloudLines {
        let wanted = match cloud.log {
            _ if cloud.base.is_empty() => None,
            CloudLog::Off => None,
            CloudLog::Warning => Some(Level::Warn),
            CloudLog::Info => Some(Level::Info),
        };
        let topic = format!("{}/log", cloud.base);
        CloudLines { wanted, topic, waiting: Vec::new(), began: None, said: 0, left_out: 0, offered: 0 }
    }

    /// Takes a sentence that was said just now.
    pub fn take(&mut self, level: Level, text: &str, now: Instant, wall: Timestamp) {
        if self.wanted.is_none_or(|wanted| level > wanted) {
            return;
        }
        if self.began.is_none_or(|began| now.since(began) >= MINUTE) {
            (self.began, self.said) = (Some(now), 0);
        }
        if self.said >= LINES_MAX {
            self.left_out += 1;
            return;
        }
        if self.left_out > 0 {
            let missing = format!("{} lines before this one were left out ({LINES_MAX} a minute)", self.left_out);
            self.left_out = 0;
            self.put(Level::Warn, &missing, wall);
        }
        self.put(level, text, wall);
    }

    /// What is to be offered now.
    pub fn drafts(&mut self) -> Vec<Draft> {
        std::mem::take(&mut self.waiting)
    }

    /// How many lines there were.
    pub fn offered(&self) -> u64 {
        self.offered
    }

    fn put(&mut self, level: Level, text: &str, wall: Timestamp) {
        let level = match level {
            Level::Error => "error",
            Level::Warn => "warning",
            Level::Info | Level::Debug | Level::Trace => "info",
        };
        let line = json!({ "time": rfc3339_ms(wall.as_millisecond()), "level": level, "text": text });
        let payload = line.to_string().into_bytes();
        self.waiting.push(Draft { topic: self.topic.clone(), payload, qos: 1, ..Draft::default() });
        self.said += 1;
        self.offered += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use serde_json::Value;

    fn lines(log: CloudLog, base: &str) -> CloudLines {
        CloudLines::new(&Cloud { log, base: base.into(), ..Config::defaults().cloud })
    }

    fn told(lines: &mut CloudLines) -> Vec<Value> {
        lines.drafts().iter().map(|draft| serde_json::from_slice(&draft.payload).unwrap()).collect()
    }

    #[test]
    fn only_what_is_wanted_goes_up_with_its_time() {
        let wall = Timestamp::from_millisecond(1_795_132_800_123).unwrap();
        let mut wanted = lines(CloudLog::Warning, "gw/7");
        wanted.take(Level::Info, "connected over eth0", Instant::default(), wall);
        wanted.take(Level::Warn, "connection lost", Instant::default(), wall);
        let drafts = wanted.drafts();
        assert_eq!((drafts.len(), drafts[0].topic.as_str(), drafts[0].qos), (1, "gw/7/log", 1));
        let line: Value = serde_json::from_slice(&drafts[0].payload).unwrap();
        assert_eq!(line, json!({"time": "2026-11-20T00:00:00.123Z", "level": "warning", "text": "connection lost"}));
        for mut none in [lines(CloudLog::Off, "gw/7"), lines(CloudLog::Info, "")] {
            none.take(Level::Error, "x", Instant::default(), wall);
            assert!(none.drafts().is_empty());
        }
    }

    #[test]
    fn a_flood_is_cut_and_the_cut_is_told() {
        let mut wanted = lines(CloudLog::Info, "b");
        for _ in 0..100 {
            wanted.take(Level::Info, "again", Instant::default(), Timestamp::UNIX_EPOCH);
        }
        assert_eq!(told(&mut wanted).len(), 30);
        wanted.take(Level::Info, "later", Instant::from_millis(60_000), Timestamp::UNIX_EPOCH);
        let texts: Vec<String> = told(&mut wanted).iter().map(|line| line["text"].to_string()).collect();
        assert_eq!(texts, ["\"70 lines before this one were left out (30 a minute)\"", "\"later\""]);
        assert_eq!(wanted.offered(), 32);
    }
}
