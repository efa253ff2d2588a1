//! The desk: where calls of operators wait for their answers.
//!
//! A call is answered at once from what is known, or becomes an event for the heart and is answered when the heart
//! says what it came to. Every call gets exactly one answer; a caller that has gone away is forgotten. Nothing here
//! decides anything about networks.

mod outbox;
mod publish;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use outbox::dropped;
use publish::{last_stage, publish};
use serde_json::{Map, Value};
use switchback_control::{Command, Control, Event, Name, Order, Outcome, Reason, Request, Status};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::api::{
    Call, Failure, Reply, Since, Verb, classes, explain_document, failback_document, failover_document, in_words,
    left_in_words, live_lanes, result_document,
};
use crate::config::Config;
use crate::corridor::{Corridor, Draft};
use crate::daemon::Hands;
use crate::io::black_box::{BlackBox, Query};
use crate::picture::{Picture, wall_clock};

/// Calls that wait for the heart at once. More are told to come back.
const WAITING_MAX: usize = 64;

type Asker = oneshot::Sender<Reply>;

/// What a waiting call wants to hear.
enum Waiting {
    /// `connect --timeout`, `reconnect --timeout`.
    Connected(Asker),
    Disconnected(Asker),
    Flushed(Asker),
    /// `failback now`, and the uplink that carried the session when it was asked for.
    Returned(Asker, Option<Name>),
    /// `failback auto|never`, `inhibit`: what holds from now on.
    Ordered(Asker),
    /// `outbox drop`, `reset outbox`: the word of the answer, and how many messages had been dropped before.
    Dropped(Asker, &'static str, u64),
}

/// Who waits for a list to be stored in this turn.
enum ListAsker {
    /// Wants the list as it is then.
    Show(Asker),
    /// `reset all`, which goes on; it ends here when the list could not be stored.
    Reset(Request),
}

/// The desk.
pub struct Desk {
    config: Arc<Config>,
    corridor: Corridor,
    next: u64,
    waiting: HashMap<Request, Waiting>,
    list: Option<ListAsker>,
    /// What was to be saved in this turn could not be.
    unsaved: Option<String>,
    /// `connect` without a time: told that it is under way, unless this turn has settled it.
    begun: Option<Request>,
    /// Settled during this turn; answered after it, when the uplink is known.
    settled: Vec<(Waiting, Outcome)>,
}

impl Desk {
    /// An empty desk.
    pub fn new(config: Arc<Config>, corridor: Corridor) -> Desk {
        Desk {
            config,
            corridor,
            next: 0,
            waiting: HashMap::new(),
            list: None,
            unsaved: None,
            begun: None,
            settled: Vec::new(),
        }
    }

    /// Takes a call in: answers it, or returns the events that will.
    pub fn take(
        &mut self,
        call: Call,
        control: &Control,
        hands: &Hands,
        picture: &Picture,
        black_box: &BlackBox,
    ) -> Vec<Event> {
        let Call { verb, options, reply } = call;
        match Verb::parse(&verb, &options) {
            Ok(Verb::OutboxDrop { class }) => self.drop_class(reply, &class, control),
            Ok(Verb::Reset(what)) => self.reset(reply, what, control),
            Ok(verb) => self.take_one(verb, reply, control, hands, picture, black_box).into_iter().collect(),
            Err(failure) => {
                answer(reply, Err(failure));
                Vec::new()
            }
        }
    }

    fn take_one(
        &mut self,
        verb: Verb,
        reply: Asker,
        control: &Control,
        hands: &Hands,
        picture: &Picture,
        black_box: &BlackBox,
    ) -> Option<Event> {
        match verb {
            Verb::Status => answer(reply, Ok(picture.document(control, hands))),
            Verb::Explain => {
                let hold_down = self.config.settings.hold_down;
                let mut document = explain_document(&control.status(), wall_clock(), hold_down);
                document.insert("configuration".into(), picture.remark());
                answer(reply, Ok(document));
            }
            Verb::FailoverShow => answer(reply, Ok(failover_document(&control.status()))),
            Verb::FailoverSet { list } => {
                self.list = Some(ListAsker::Show(reply));
                return Some(Event::Asked(Command::SetList { list }));
            }
            Verb::FailoverClear => {
                self.list = Some(ListAsker::Show(reply));
                return Some(Event::Asked(Command::SetList { list: Vec::new() }));
            }
            Verb::FailbackShow | Verb::Inhibit { limit: None } => {
                answer(reply, Ok(failback_document(&control.status(), wall_clock())));
            }
            Verb::FailbackNow { timeout } => {
                let late = "traffic has not moved within the time given; it may yet";
                let asker = with_limit(reply, timeout, late);
                let request = self.wait(Waiting::Returned(asker, control.status().uplink))?;
                return Some(Event::Asked(Command::Failback { request, order: Order::Now }));
            }
            Verb::FailbackSet { mode, limit } => {
                let request = self.wait(Waiting::Ordered(reply))?;
                return Some(Event::Asked(Command::Failback { request, order: Order::From(mode, limit) }));
            }
            Verb::Inhibit { limit: Some(limit) } => {
                let request = self.wait(Waiting::Ordered(reply))?;
                return Some(Event::Asked(Command::Inhibit { request, limit }));
            }
            Verb::Connect { .. } | Verb::Reconnect { .. } if self.config.cloud.servers.is_empty() => {
                let why = "no server is configured: set cloud.servers, then: systemctl reload switchback";
                answer(reply, Err(Failure::failed(why, None)));
            }
            Verb::Connect { via, stay, wait } => {
                let request = self.wait_or_answer(reply, wait)?;
                return Some(Event::Asked(Command::Connect { request, via, stay }));
            }
            Verb::Reconnect { wait } => {
                let request = self.wait_or_answer(reply, wait)?;
                return Some(Event::Asked(Command::Reconnect { request }));
            }
            Verb::Disconnect { force } => {
                let request = self.wait(Waiting::Disconnected(reply))?;
                return Some(Event::Asked(Command::Disconnect { request, force }));
            }
            Verb::Flush { timeout } => {
                let request = self.wait(Waiting::Flushed(reply))?;
                return Some(Event::Asked(Command::Flush { request, limit: timeout }));
            }
            Verb::Publish { topic, payload, class, qos, retain, wait, timeout } => {
                let draft = self.draft(topic, payload, class, retain).and_then(|(draft, await_cloud)| {
                    let qos = qos.unwrap_or(draft.qos);
                    Ok((Draft { qos, ..draft }, last_stage(wait, qos, await_cloud)?))
                });
                match draft {
                    Ok((draft, wait)) => publish(&self.corridor, reply, draft, wait, timeout),
                    Err(failure) => answer(reply, Err(failure)),
                }
            }
            Verb::OutboxShow => self.show_outbox(reply, picture.document(control, hands)),
            // Taken before: they are several events.
            Verb::OutboxDrop { .. } | Verb::Reset(_) => {}
            Verb::Events { since, boot, limit } => read_events(reply, black_box, since, boot, limit),
        }
        None
    }

    /// `Action::Answer`: what a request came to.
    pub fn settle(&mut self, request: Request, outcome: Outcome) {
        if let Some(waiting) = self.waiting.remove(&request) {
            self.settled.push((waiting, outcome));
        }
    }

    /// `Action::Save` was performed, or why not.
    pub fn saved(&mut self, kept: Result<(), String>) {
        self.unsaved = kept.err();
    }

    /// Answers what this turn has settled.
    pub fn after_turn(&mut self, control: &Control) {
        let unsaved = self.unsaved.take();
        if let Some(asker) = self.list.take() {
            let failed =
                unsaved.map(|why| Failure::failed(format!("the list holds until the next start only: {why}"), None));
            match (asker, failed) {
                (ListAsker::Show(asker), None) => answer(asker, Ok(failover_document(&control.status()))),
                (ListAsker::Show(asker), Some(failed)) => answer(asker, Err(failed)),
                (ListAsker::Reset(request), Some(failed)) => {
                    if let Some(waiting) = self.waiting.remove(&request) {
                        answer(waiting.into_asker(), Err(failed));
                    }
                }
                (ListAsker::Reset(_), None) => {}
            }
        }
        if let Some(begun) = self.begun.take().and_then(|request| self.waiting.remove(&request)) {
            answer(begun.into_asker(), Ok(result_document("connecting", None)));
        }
        if self.settled.is_empty() {
            return;
        }
        let status = control.status();
        for (waiting, outcome) in self.settled.drain(..) {
            let (asker, reply) = spell_out(waiting, outcome, &status, &self.config);
            answer(asker, reply);
        }
    }

    /// With `wait` the call is answered with the outcome; without, after this turn.
    fn wait_or_answer(&mut self, reply: Asker, wait: Option<Duration>) -> Option<Request> {
        let Some(limit) = wait else {
            self.begun = self.wait(Waiting::Connected(reply));
            return self.begun;
        };
        self.wait(Waiting::Connected(with_limit(reply, limit, "not connected within the time given")))
    }

    fn wait(&mut self, waiting: Waiting) -> Option<Request> {
        self.waiting.retain(|_, waiting| !waiting.asker().is_closed());
        if self.waiting.len() >= WAITING_MAX {
            let busy = Failure::failed("too many commands are waiting; try again in a moment", None);
            answer(waiting.into_asker(), Err(busy));
            return None;
        }
        self.next += 1;
        let request = Request(self.next);
        self.waiting.insert(request, waiting);
        Some(request)
    }
}

impl Waiting {
    fn asker(&self) -> &Asker {
        match self {
            Waiting::Connected(asker)
            | Waiting::Disconnected(asker)
            | Waiting::Flushed(asker)
            | Waiting::Returned(asker, _)
            | Waiting::Dropped(asker, ..)
            | Waiting::Ordered(asker) => asker,
        }
    }

    fn into_asker(self) -> Asker {
        match self {
            Waiting::Connected(asker)
            | Waiting::Disconnected(asker)
            | Waiting::Flushed(asker)
            | Waiting::Returned(asker, _)
            | Waiting::Dropped(asker, ..)
            | Waiting::Ordered(asker) => asker,
        }
    }
}

/// One who hears what a request comes to, or `late` when that takes longer than the limit.
fn with_limit(reply: Asker, limit: Duration, late: &'static str) -> Asker {
    let (asker, outcome) = oneshot::channel();
    tokio::spawn(async move {
        let late = |_| Failure::failed(late, Some(Reason::TimeLimit));
        let heard = timeout(limit, outcome).await.map_err(late);
        answer(reply, heard.and_then(|outcome| outcome.unwrap_or_else(|_| Err(stopping()))));
    });
    asker
}

fn spell_out(waiting: Waiting, outcome: Outcome, status: &Status, config: &Config) -> (Asker, Reply) {
    let uplink = status.uplink;
    let done = |word: &str, uplink| Ok(result_document(word, uplink));
    let failed = |what: &str, reason: Reason| Err(Failure::failed(format!("{what}: {reason}"), Some(reason)));
    match (waiting, outcome) {
        (Waiting::Connected(asker), Outcome::Done) => (asker, done("connected", uplink)),
        (Waiting::Disconnected(asker), Outcome::Done) => (asker, done("disconnected", None)),
        (Waiting::Flushed(asker), Outcome::Done) => (asker, done("flushed", uplink)),
        (Waiting::Connected(asker), Outcome::Failed(reason)) => (asker, failed("not connected", reason)),
        (Waiting::Disconnected(asker), Outcome::Failed(reason)) => (asker, failed("ended otherwise", reason)),
        (Waiting::Flushed(asker), Outcome::Failed(reason)) => {
            let left = left_in_words(status, &classes(status, &live_lanes(config)));
            let left = if left.is_empty() { in_words(reason) } else { left };
            (asker, Err(Failure::failed(format!("not everything is through: {left}"), Some(reason))))
        }
        (Waiting::Dropped(asker, word, before), Outcome::Done) => (asker, Ok(dropped(word, before, status))),
        (Waiting::Dropped(asker, ..), Outcome::Failed(reason)) => (asker, failed("not dropped", reason)),
        (Waiting::Returned(asker, from), outcome) => (asker, returned(from, outcome, status)),
        (Waiting::Ordered(asker), Outcome::Done) => (asker, Ok(failback_document(status, wall_clock()))),
        (Waiting::Ordered(asker), Outcome::Failed(reason)) => (asker, failed("not done", reason)),
    }
}

/// What `failback now` has come to: it is done when traffic moved up, or when nothing stands higher.
fn returned(from: Option<Name>, outcome: Outcome, status: &Status) -> Reply {
    let place =
        |name: Option<Name>| status.walk.iter().position(|item| Some(*item) == name).unwrap_or(status.walk.len());
    let failed = |why: String, reason| {
        let stays = match status.uplink {
            Some(uplink) => format!("traffic stays on {uplink}: {why}"),
            None => format!("there is no session to move: {why}"),
        };
        Err(Failure::failed(stays, reason))
    };
    match outcome {
        Outcome::Done if place(status.uplink) < place(from) => Ok(result_document("moved", status.uplink)),
        Outcome::Done if place(status.uplink) == 0 && from.is_some() => {
            Ok(result_document("nothing-better", status.uplink))
        }
        Outcome::Done => failed("the move did not come about".into(), None),
        Outcome::Failed(reason) => {
            let why = match (reason, status.uplink) {
                (Reason::User, None) => "`switchback connect` opens one".into(),
                (Reason::User, Some(_)) => "another command came first".into(),
                (Reason::AcknowledgementLimit, _) => "it owes answers just now; try again in a moment".into(),
                (reason, _) => format!("the better uplink: {}", in_words(reason)),
            };
            failed(why, Some(reason))
        }
    }
}

/// The black box is read by its own thread; the loop goes on.
fn read_events(reply: Asker, black_box: &BlackBox, since: Option<Since>, boot_only: bool, limit: usize) {
    let since = match since {
        Some(Since::Wall(millis)) => Timestamp::from_millisecond(millis).ok(),
        Some(Since::Ago(ago)) => Timestamp::now().checked_sub(ago).ok(),
        None => None,
    };
    let black_box = black_box.clone();
    tokio::spawn(async move {
        let lines = black_box.read(Query { since, boot_only, limit }).await;
        let parsed = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok()).collect();
        answer(reply, Ok(Map::from_iter([("events".to_owned(), Value::Array(parsed))])));
    });
}

fn stopping() -> Failure {
    Failure::failed("switchbackd is stopping", Some(Reason::Restart))
}

/// A caller that has gone away does not want to know any more.
fn answer(asker: Asker, reply: Reply) {
    let _ = asker.send(reply);
}

#[cfg(test)]
mod tests {
    use switchback_control::{Instant, Saved, Settings};

    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    /// The walk is eth0, wlan0, wwan0.
    fn over(uplink: Option<&str>) -> Status {
        let (saved, start) = (Saved::default(), Instant::default());
        let control = Control::restore(Settings::default(), saved, &[], 0, 1, start);
        let walk = ["eth0", "wlan0", "wwan0"].map(name).to_vec();
        Status { uplink: uplink.map(name), walk, ..control.status() }
    }

    #[test]
    fn going_back_is_done_when_traffic_moved_up_or_nothing_stands_higher() {
        let returned = |from, outcome, to| match returned(Some(name(from)), outcome, &over(to)) {
            Ok(document) => format!("{} {}", document["result"].as_str().unwrap(), document["uplink"]),
            Err(failure) => failure.message,
        };
        let stays = "traffic stays on wlan0: ";
        for (from, outcome, to, want) in [
            ("wwan0", Outcome::Done, Some("wlan0"), "moved \"wlan0\"".to_string()),
            ("usb0", Outcome::Done, Some("wwan0"), "moved \"wwan0\"".into()),
            ("eth0", Outcome::Done, Some("eth0"), "nothing-better \"eth0\"".into()),
            ("wlan0", Outcome::Done, Some("wlan0"), format!("{stays}the move did not come about")),
            ("wwan0", Outcome::Done, None, "there is no session to move: the move did not come about".into()),
            (
                "wlan0",
                Outcome::Failed(Reason::NoLink),
                Some("wlan0"),
                format!("{stays}the better uplink: no carrier (no-link)"),
            ),
            ("wlan0", Outcome::Failed(Reason::User), Some("wlan0"), format!("{stays}another command came first")),
            (
                "wlan0",
                Outcome::Failed(Reason::User),
                None,
                "there is no session to move: `switchback connect` opens one".into(),
            ),
        ] {
            assert_eq!(returned(from, outcome, to), want);
        }
    }
}
