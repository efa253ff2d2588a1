//! What became of messages, told once a minute at most: what was given up, class by class, and what waits too long.
//!
//! Looks at counts, never at messages, and compares them with those it told last. A class in which nothing was lost is
//! not mentioned; a wait that goes on is told again after ever longer pauses (R-SF-5, R-TX-12).

use std::time::Duration;

use log::Level;
use switchback_control::Instant;

use crate::api::{ClassFigures, messages, size, thousands};
use crate::config::{duration_text, size_text};

/// Losses are told at most this often.
const MINUTE: Duration = Duration::from_secs(60);
/// What waits longer than an acknowledgement may take is told (R-TX-10).
const DELAYED: Duration = Duration::from_secs(30);
/// The same wait is told again after this long, then after twice as long each time, up to the second.
const AGAIN: Duration = Duration::from_secs(300);
const AGAIN_MOST: Duration = Duration::from_secs(6 * 3600);

/// One sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    pub level: Level,
    pub text: String,
    /// Not for the cloud: it would learn of its own lines, or it hears of it otherwise.
    pub local: bool,
}

/// What can only be known from elsewhere at the moment of looking.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances<'w> {
    pub now: Instant,
    pub wall_ms: i64,
    pub connected: bool,
    /// Why there is no session.
    pub reason: Option<&'w str>,
    /// Our own lines for the cloud that were offered so far; they go with class `normal`.
    pub own_lines: u64,
}

/// What was told last.
#[derive(Debug, Default)]
pub struct Losses {
    told_at: Option<Instant>,
    told: Vec<ClassFigures>,
    own_lines: u64,
    /// Somebody gave messages up by a command since then.
    by_operator: bool,
    wait: Option<Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    since_wall_ms: i64,
    told_at: Instant,
    pause: Duration,
}

impl Losses {
    /// Messages are being given up by a command.
    pub fn operator_drops(&mut self) {
        self.by_operator = true;
    }

    /// What is to be told now.
    pub fn look(&mut self, classes: &[ClassFigures], around: Circumstances<'_>) -> Vec<Said> {
        let mut said = self.given_up(classes, around);
        said.extend(self.delayed(classes, around));
        said
    }

    /// What is to be told at the end, whenever it was told last.
    pub fn last_words(&mut self, classes: &[ClassFigures], around: Circumstances<'_>) -> Vec<Said> {
        self.told_at = None;
        let mut said = self.given_up(classes, around);
        for class in classes.iter().filter(|class| class.memory && class.messages > 0) {
            let text =
                format!("class {}: {} end here, for they are in memory only", class.class, messages(class.messages));
            said.push(Said { level: Level::Warn, text, local: true });
        }
        said
    }

    fn given_up(&mut self, classes: &[ClassFigures], around: Circumstances<'_>) -> Vec<Said> {
        if self.told_at.is_some_and(|at| around.now.since(at) < MINUTE) {
            return Vec::new();
        }
        let none = ClassFigures::default();
        let own = around.own_lines.saturating_sub(self.own_lines);
        let mut said = Vec::new();
        for now in classes {
            let before = self.told.iter().find(|told| told.class == now.class).unwrap_or(&none);
            let more = |of: fn(&ClassFigures) -> u64| of(now).saturating_sub(of(before));
            let losses = [more(|c| c.dropped), more(|c| c.expired), more(|c| c.refused), more(|c| c.rejected)];
            if losses.iter().sum::<u64>() > 0 {
                let own = now.class == "normal" && losses.iter().sum::<u64>() <= own;
                said.push(Said { level: Level::Warn, text: self.sentence(now, losses), local: own });
            }
        }
        if !said.is_empty() {
            (self.told_at, self.own_lines, self.by_operator) = (Some(around.now), around.own_lines, false);
            self.told = classes.to_vec();
        }
        said
    }

    fn sentence(&self, class: &ClassFigures, [dropped, expired, refused, rejected]: [u64; 4]) -> String {
        let why = match self.by_operator {
            true => "by an operator".to_string(),
            false => format!("full: {}", size_text(class.max_size)),
        };
        let kinds = [
            (dropped, "dropped", format!(" ({why})")),
            (expired, "expired", String::new()),
            (refused, "refused", String::new()),
            (rejected, "rejected by the server and set aside", " (`switchback outbox` tells why)".into()),
        ];
        let mut parts: Vec<String> = Vec::new();
        for (count, word, after) in kinds.into_iter().filter(|(count, ..)| *count > 0) {
            parts.push(match parts.is_empty() {
                true => format!("{} {word} in the last minute{after}", messages(count)),
                false => format!("{} {word}{after}", thousands(count)),
            });
        }
        format!("class {}: {}", class.class, parts.join(", "))
    }

    /// What an uplink that is there may carry, and what has not gone out for long.
    fn delayed(&mut self, classes: &[ClassFigures], around: Circumstances<'_>) -> Option<Said> {
        let free = |class: &&ClassFigures| class.messages > class.held;
        let oldest = classes.iter().filter(free).filter_map(|class| class.oldest_accepted).min();
        let age = |at: i64| Duration::from_millis(u64::try_from(around.wall_ms.saturating_sub(at)).unwrap_or(0));
        let late = oldest.filter(|at| age(*at) >= DELAYED);
        let said = |level, text| Some(Said { level, text, local: true });
        let Some(oldest) = late else {
            let wait = self.wait.take()?;
            let waited = span(age(wait.since_wall_ms));
            return said(
                Level::Info,
                format!("what waited goes out again; the oldest had waited for at most {waited}"),
            );
        };
        let pause = match self.wait {
            Some(wait) if around.now.since(wait.told_at) < wait.pause => return None,
            Some(wait) => (wait.pause * 2).min(AGAIN_MOST),
            None => AGAIN,
        };
        let since_wall_ms = self.wait.map_or(oldest, |wait| wait.since_wall_ms.min(oldest));
        self.wait = Some(Wait { since_wall_ms, told_at: around.now, pause });
        let waiting = classes.iter().filter(free);
        let (count, bytes) =
            waiting.fold((0, 0), |(count, bytes), class| (count + class.messages - class.held, bytes + class.bytes));
        let why = match (around.connected, around.reason) {
            (true, _) => "the session is open, the cloud's answers are late".to_string(),
            (false, Some(reason)) => format!("no session ({reason})"),
            (false, None) => "no session".into(),
        };
        let text = format!(
            "sending is delayed: {} ({}) wait, the oldest for {}: {why}",
            messages(count),
            size(bytes),
            span(age(oldest))
        );
        said(Level::Warn, text)
    }
}

fn span(age: Duration) -> String {
    duration_text(Duration::from_secs(age.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64, connected: bool) -> Circumstances<'static> {
        let reason = (!connected).then_some("no-link");
        let wall_ms = 1_000_000 + i64::try_from(seconds * 1000).unwrap();
        Circumstances { now: Instant::from_millis(seconds * 1000), wall_ms, connected, reason, own_lines: 0 }
    }

    fn class(name: &str, dropped: u64, expired: u64) -> ClassFigures {
        ClassFigures { class: name.into(), max_size: 64 << 20, dropped, expired, ..ClassFigures::default() }
    }

    fn texts(said: Vec<Said>) -> Vec<String> {
        said.into_iter().map(|said| said.text).collect()
    }

    #[test]
    fn losses_are_told_once_a_minute_and_only_where_there_are_any() {
        let mut losses = Losses::default();
        assert_eq!(losses.look(&[class("bulk", 0, 0)], at(0, true)), []);
        let told = texts(losses.look(&[class("bulk", 1204, 3), class("low", 0, 0)], at(5, true)));
        assert_eq!(told, ["class bulk: 1,204 messages dropped in the last minute (full: 64MiB), 3 expired"]);
        assert_eq!(losses.look(&[class("bulk", 2000, 3)], at(60, true)), []);
        let told = texts(losses.look(&[class("bulk", 2001, 4)], at(65, true)));
        assert_eq!(told, ["class bulk: 797 messages dropped in the last minute (full: 64MiB), 1 expired"]);
        assert_eq!(losses.look(&[class("bulk", 2001, 4)], at(500, true)), []);
        losses.operator_drops();
        let told = texts(losses.look(&[class("bulk", 2002, 4)], at(505, true)));
        assert_eq!(told, ["class bulk: 1 message dropped in the last minute (by an operator)"]);
    }

    #[test]
    fn the_end_leaves_nothing_untold() {
        let mut losses = Losses::default();
        losses.look(&[class("bulk", 1, 0)], at(5, true));
        let low = ClassFigures { messages: 10, memory: true, ..class("low", 0, 0) };
        let told = texts(losses.last_words(&[class("bulk", 11, 0), low], at(6, true)));
        let dropped = "class bulk: 10 messages dropped in the last minute (full: 64MiB)";
        assert_eq!(told, [dropped, "class low: 10 messages end here, for they are in memory only"]);
    }

    #[test]
    fn the_cloud_is_not_told_of_its_own_lines() {
        let mut losses = Losses::default();
        let own = Circumstances { own_lines: 2, ..at(5, true) };
        assert!(losses.look(&[class("normal", 2, 0)], own)[0].local);
        let more = Circumstances { own_lines: 3, ..at(70, true) };
        assert!(!losses.look(&[class("normal", 4, 0)], more)[0].local);
    }

    #[test]
    fn a_wait_is_told_with_its_reason_again_after_longer_pauses_and_when_it_ends() {
        let mut losses = Losses::default();
        let waits = ClassFigures {
            messages: 14,
            held: 2,
            bytes: 2_100_000,
            oldest_accepted: Some(1_000_000),
            ..class("bulk", 0, 0)
        };
        let waits = [waits];
        assert_eq!(losses.look(&waits, at(29, false)), []);
        let told = texts(losses.look(&waits, at(35, false)));
        let want = "sending is delayed: 12 messages (2.1 MB) wait, the oldest for 35s: no session (no-link)";
        assert_eq!(told, [want]);
        assert_eq!(losses.look(&waits, at(334, false)), []);
        assert_eq!(losses.look(&waits, at(335, false)).len(), 1);
        assert_eq!(losses.look(&waits, at(900, true)), []);
        assert!(
            texts(losses.look(&waits, at(935, true)))[0].ends_with("the session is open, the cloud's answers are late")
        );
        let told = texts(losses.look(&[class("bulk", 0, 0)], at(1000, true)));
        assert_eq!(told, ["what waited goes out again; the oldest had waited for at most 1000s"]);
        assert_eq!(losses.look(&[class("bulk", 0, 0)], at(1005, true)), []);
        let held = ClassFigures { messages: 2, held: 2, oldest_accepted: Some(0), ..class("bulk", 0, 0) };
        assert_eq!(losses.look(&[held], at(2000, true)), [], "what waits for another uplink waits as it should");
    }
}
