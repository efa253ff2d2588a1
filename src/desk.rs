//! The desk: where calls of operators wait for their answers.
//!
//! A call is answered at once from what is known, or becomes an event for the heart and is answered when the heart
//! says what it came to. Every call gets exactly one answer; a caller that has gone away is forgotten. Nothing here
//! decides anything about networks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use jiff::Timestamp;
use serde_json::{Map, Value};
use switchback_control::{Command, Control, Event, Lane, Name, Order, Outcome, Reason, Request, Seq, Status};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::api::{
    Call, DROP_ALL, DROP_REJECTED, Failure, PublishResult, PublishStage, Reply, Reset, Since, Verb, classes,
    dropped_document, explain_document, failback_document, failover_document, in_words, left_in_words, live_lanes,
    publish_document, result_document,
};
use crate::config::{Config, nearest};
use crate::corridor::{Corridor, Draft, Offer, Refusal};
use crate::daemon::Hands;
use crate::io::black_box::{BlackBox, Query};
use crate::picture::{Picture, wall_clock};
use crate::sorting::{CLASS, Local, Way, sort};

/// Calls that wait for the heart at once. More are told to come back.
const WAITING_MAX: usize = 64;

/// A request whose answer nobody waits for: real ones count from 1.
const UNHEARD: Request = Request(0);
/// Letters of a wrong name that a message repeats.
const NAME_SHOWN: usize = 60;

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

/// Who wants the list as it is after this turn.
enum ListAsker {
    Show(Asker),
    /// `reset all`: wants to know what was forgotten; as many messages had been dropped before.
    Reset(Asker, u64),
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
                answer(reply, Ok(explain_document(&control.status(), wall_clock(), hold_down)));
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
            Verb::Connect { via, wait } => {
                let request = self.wait_or_answer(reply, wait)?;
                return Some(Event::Asked(Command::Connect { request, via }));
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
                let draft = self.draft(topic, payload, class, retain).map(|(draft, await_cloud)| {
                    let qos = qos.unwrap_or(draft.qos);
                    (Draft { qos, ..draft }, if await_cloud { wait.max(PublishStage::Acked) } else { wait })
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
            let status = control.status();
            let (asker, document) = match asker {
                ListAsker::Show(asker) => (asker, failover_document(&status)),
                ListAsker::Reset(asker, before) => (asker, dropped("reset", before, &status)),
            };
            let failed = |why| Failure::failed(format!("the list holds until the next start only: {why}"), None);
            answer(asker, unsaved.map_or(Ok(document), |why| Err(failed(why))));
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

    /// A message of an operator goes the way of an application's; and whether its rule wants the cloud's word.
    fn draft(
        &self,
        topic: String,
        payload: Vec<u8>,
        class: Option<String>,
        retain: bool,
    ) -> Result<(Draft, bool), Failure> {
        if let Some(class) = &class {
            self.known(class, &[])?;
        }
        let properties = class.map(|class| Property::UserProperty(CLASS.into(), class)).into_iter().collect();
        let failed = |why: String| Err(Failure::failed(why, None));
        match sort(&self.config, Local { topic: topic.clone(), payload, retain, properties }) {
            Way::Up { draft, await_cloud, unknown_class: _ } => Ok((draft, await_cloud)),
            Way::Local => failed(format!("no [[publish]] rule sends \"{topic}\" to the cloud")),
            Way::Impossible => {
                failed(format!("the [[publish]] rule for \"{topic}\" makes a topic that no server takes"))
            }
            Way::Reserved => {
                failed(format!("\"{topic}\" goes where the cloud expects switchback itself to speak (cloud.base)"))
            }
        }
    }

    /// The lanes of a class; what else may stand in its place is for the message.
    fn known(&self, class: &str, others: &[&str]) -> Result<Vec<Lane>, Failure> {
        let names = || self.config.lanes.iter().map(|lane| lane.class.as_str());
        let lanes = (0..u8::MAX).zip(names()).filter(|(_, name)| *name == class).map(|(lane, _)| Lane(lane));
        let lanes: Vec<Lane> = lanes.collect();
        if !lanes.is_empty() {
            return Ok(lanes);
        }
        let mut known: Vec<&str> = names().chain(others.iter().copied()).collect();
        known.sort_unstable();
        known.dedup();
        let hint = match nearest(class, known.iter().copied()) {
            Some(near) => format!("did you mean \"{near}\"?"),
            None => format!("known: {}", known.join(", ")),
        };
        let class: String = class.chars().filter(|c| !c.is_control()).take(NAME_SHOWN).collect();
        Err(Failure::usage(format!("class: there is no class \"{class}\"; {hint}")))
    }

    /// What waits, and what was set aside, which the store reads in its own time.
    fn show_outbox(&self, reply: Asker, mut status: Map<String, Value>) {
        let mut document = match status.remove("outbox") {
            Some(Value::Object(outbox)) => outbox,
            _ => Map::new(),
        };
        let corridor = self.corridor.clone();
        tokio::spawn(async move {
            document.insert("set_aside".into(), set_aside(&corridor).await.into());
            answer(reply, Ok(document));
        });
    }

    fn drop_class(&mut self, reply: Asker, class: &str, control: &Control) -> Vec<Event> {
        let lanes = match class {
            DROP_REJECTED => {
                forget_set_aside(&self.corridor, reply);
                return Vec::new();
            }
            DROP_ALL => vec![None],
            class => match self.known(class, &[DROP_ALL, DROP_REJECTED]) {
                Ok(lanes) => lanes.into_iter().map(Some).collect(),
                Err(failure) => {
                    answer(reply, Err(failure));
                    return Vec::new();
                }
            },
        };
        let waiting = Waiting::Dropped(reply, "dropped", control.status().delivery.dropped);
        let Some(request) = self.wait(waiting) else { return Vec::new() };
        // The last answer is the one for all: they come in order, each in its own turn.
        let first = lanes.len().saturating_sub(1);
        let one = |(index, lane)| {
            let request = if index == first { request } else { UNHEARD };
            Event::Asked(Command::Drop { request, lane })
        };
        lanes.into_iter().enumerate().map(one).collect()
    }

    fn reset(&mut self, reply: Asker, what: Reset, control: &Control) -> Vec<Event> {
        let before = control.status().delivery.dropped;
        let forget_list = || Event::Asked(Command::SetList { list: Vec::new() });
        let drop = |request| Event::Asked(Command::Drop { request, lane: None });
        match what {
            Reset::Failover => {
                self.list = Some(ListAsker::Show(reply));
                vec![forget_list()]
            }
            Reset::Outbox => {
                let reply = and_forget_set_aside(&self.corridor, reply);
                let Some(request) = self.wait(Waiting::Dropped(reply, "reset", before)) else { return Vec::new() };
                vec![drop(request)]
            }
            Reset::All => {
                self.list = Some(ListAsker::Reset(and_forget_set_aside(&self.corridor, reply), before));
                vec![drop(UNHEARD), forget_list()]
            }
        }
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

/// Offers a message and answers when it has come as far as asked, or why not.
fn publish(corridor: &Corridor, reply: Asker, draft: Draft, wait: PublishStage, limit: Duration) {
    let corridor = corridor.clone();
    tokio::spawn(async move {
        let mut stage = None;
        let result = timeout(limit, follow(&corridor, draft, wait, &mut stage)).await;
        let result = result.unwrap_or(Ok(PublishResult::TimeLimit));
        answer(reply, result.map(|result| publish_document(stage, result)));
    });
}

/// Offers a message and follows it to the stage asked for.
async fn follow(
    corridor: &Corridor,
    draft: Draft,
    wait: PublishStage,
    stage: &mut Option<PublishStage>,
) -> Result<PublishResult, Failure> {
    let Offer { mut accepted, mut sent, delivered } = corridor.offer(draft).await;
    let early = match wait {
        // The last byte may be gone before the message is kept.
        PublishStage::Sent => tokio::select! {
            biased;
            left = &mut sent => Early::Left(left.is_ok()),
            told = &mut accepted => Early::Told(told),
        },
        PublishStage::Stored | PublishStage::Acked => Early::Told((&mut accepted).await),
    };
    let told = match early {
        Early::Left(true) => {
            *stage = Some(PublishStage::Sent);
            return Ok(PublishResult::Accepted);
        }
        Early::Left(false) => accepted.await,
        Early::Told(told) => told,
    };
    match told {
        Ok(Ok(_)) => *stage = Some(PublishStage::Stored),
        Ok(Err(Refusal::Full | Refusal::Dropped)) => return Ok(PublishResult::WouldBlock),
        Ok(Err(Refusal::NotConnected)) => return Ok(PublishResult::NotConnected),
        Ok(Err(Refusal::TooLarge)) => {
            let message = "payload: the message is larger than its class takes (half of its max_size, at most 512 KiB)";
            return Err(Failure::usage(message));
        }
        Ok(Err(Refusal::Stopping)) | Err(_) => return Ok(PublishResult::Lost),
    }
    if wait == PublishStage::Stored {
        return Ok(PublishResult::Accepted);
    }
    // A receiver that has told what it had must not be asked again.
    if wait == PublishStage::Sent && !sent.is_terminated() && sent.await.is_ok() {
        *stage = Some(PublishStage::Sent);
        return Ok(PublishResult::Accepted);
    }
    Ok(match delivered.await {
        Ok(()) => {
            *stage = Some(PublishStage::Acked);
            PublishResult::Accepted
        }
        // Dropped, expired or rejected.
        Err(_) => PublishResult::Lost,
    })
}

/// What comes first.
enum Early {
    /// The last byte left; false when it never will.
    Left(bool),
    Told(Result<Result<Seq, Refusal>, oneshot::error::RecvError>),
}

/// What the server will never take, with its reasons.
async fn set_aside(_corridor: &Corridor) -> Vec<Value> {
    // The store does not tell yet: `Corridor::set_asides` belongs here.
    Vec::new()
}

/// Forgets it; how many there were.
async fn clear_set_aside(corridor: &Corridor) -> Result<usize, Failure> {
    // And `Corridor::clear_set_asides` here.
    Ok(set_aside(corridor).await.len())
}

/// `outbox drop rejected`.
fn forget_set_aside(corridor: &Corridor, reply: Asker) {
    let corridor = corridor.clone();
    tokio::spawn(async move {
        let cleared = clear_set_aside(&corridor).await;
        answer(reply, cleared.map(|count| dropped_document("dropped", count as u64, 0)));
    });
}

/// One who forgets what was set aside before the answer goes on.
fn and_forget_set_aside(corridor: &Corridor, reply: Asker) -> Asker {
    let (asker, heard) = oneshot::channel();
    let corridor = corridor.clone();
    tokio::spawn(async move {
        let cleared = clear_set_aside(&corridor).await;
        let heard: Reply = heard.await.unwrap_or_else(|_| Err(stopping()));
        answer(reply, cleared.and(heard));
    });
    asker
}

/// How many messages were given up since there were `before`.
fn dropped(word: &str, before: u64, status: &Status) -> Map<String, Value> {
    let delivery = &status.delivery;
    dropped_document(word, delivery.dropped.saturating_sub(before), u64::from(delivery.in_flight))
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
