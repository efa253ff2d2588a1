//! The desk: where calls of operators wait for their answers.
//!
//! A call is answered at once from what is known, or becomes an event for the heart and is answered when the heart
//! says what it came to. Every call gets exactly one answer; a caller that has gone away is forgotten. Nothing here
//! decides anything about networks.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Map, Value};
use switchback_control::{Command, Control, Event, Name, Outcome, Reason, Request};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::api::{
    Call, Failure, PublishResult, PublishStage, Reply, Since, Verb, explain_document, failover_document,
    publish_document, result_document,
};
use crate::config::Config;
use crate::corridor::{Corridor, Draft, Refusal};
use crate::daemon::Hands;
use crate::io::black_box::{BlackBox, Query};
use crate::io::clock;
use crate::picture::Picture;
use crate::topics::{Way, way_up};

/// Calls that wait for the heart at once. More are told to come back.
const WAITING_MAX: usize = 64;

type Asker = oneshot::Sender<Reply>;

/// What a waiting call wants to hear.
enum Waiting {
    /// `connect --timeout`, `reconnect --timeout`.
    Connected(Asker),
    Disconnected(Asker),
    Flushed(Asker),
}

/// The desk.
pub struct Desk {
    config: Arc<Config>,
    corridor: Corridor,
    next: u64,
    waiting: HashMap<Request, Waiting>,
    /// Wants the list as it is after this turn.
    list: Option<Asker>,
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

    /// Takes a call in: answers it, or returns the event that will.
    pub fn take(
        &mut self,
        call: Call,
        control: &Control,
        hands: &Hands,
        picture: &Picture,
        black_box: &BlackBox,
    ) -> Option<Event> {
        let Call { verb, options, reply } = call;
        let verb = match Verb::parse(&verb, &options) {
            Ok(verb) => verb,
            Err(failure) => {
                answer(reply, Err(failure));
                return None;
            }
        };
        match verb {
            Verb::Status => answer(reply, Ok(picture.document(control, hands))),
            Verb::Explain => answer(reply, Ok(explain_document(&control.status(), clock::now()))),
            Verb::FailoverShow => answer(reply, Ok(failover_document(&control.status()))),
            Verb::FailoverSet { list } => {
                self.list = Some(reply);
                return Some(Event::Asked(Command::SetList { list }));
            }
            Verb::FailoverClear => {
                self.list = Some(reply);
                return Some(Event::Asked(Command::SetList { list: Vec::new() }));
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
            Verb::Publish { topic, payload, qos: _, retain, wait, timeout } => {
                self.publish(reply, &topic, payload, retain, wait, timeout);
            }
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
            answer(
                asker,
                match unsaved {
                    None => Ok(failover_document(&control.status())),
                    Some(why) => Err(Failure::failed(format!("the list holds until the next start only: {why}"), None)),
                },
            );
        }
        if let Some(begun) = self.begun.take().and_then(|request| self.waiting.remove(&request)) {
            answer(begun.into_asker(), Ok(result_document("connecting", None)));
        }
        if self.settled.is_empty() {
            return;
        }
        let uplink = control.status().uplink;
        for (waiting, outcome) in self.settled.drain(..) {
            let (asker, reply) = spell_out(waiting, outcome, uplink);
            answer(asker, reply);
        }
    }

    /// With `wait` the call is answered with the outcome; without, after this turn.
    fn wait_or_answer(&mut self, reply: Asker, wait: Option<Duration>) -> Option<Request> {
        let Some(limit) = wait else {
            self.begun = self.wait(Waiting::Connected(reply));
            return self.begun;
        };
        let (asker, outcome) = oneshot::channel();
        tokio::spawn(async move {
            let late = || Failure::failed("not connected within the time given", Some(Reason::TimeLimit));
            let heard = timeout(limit, outcome).await.map_err(|_| late());
            answer(reply, heard.and_then(|outcome| outcome.unwrap_or_else(|_| Err(stopping()))));
        });
        self.wait(Waiting::Connected(asker))
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

    /// A message of an operator goes the way of an application's.
    fn publish(&self, reply: Asker, topic: &str, payload: Vec<u8>, retain: bool, wait: PublishStage, limit: Duration) {
        let (topic, qos) = match way_up(&self.config.publish, topic) {
            Way::Up { topic, qos } => (topic, qos),
            Way::Local => {
                let message = format!("no [[publish]] rule sends \"{topic}\" to the cloud");
                return answer(reply, Err(Failure::failed(message, None)));
            }
            Way::Impossible => {
                let message = format!("the [[publish]] rule for \"{topic}\" makes a topic that no server takes");
                return answer(reply, Err(Failure::failed(message, None)));
            }
        };
        let (corridor, draft) = (self.corridor.clone(), Draft { topic, payload, qos, retain, properties: Vec::new() });
        tokio::spawn(async move {
            let mut stage = None;
            let result = timeout(limit, follow(&corridor, draft, wait, &mut stage)).await;
            answer(reply, Ok(publish_document(stage, result.unwrap_or(PublishResult::TimeLimit))));
        });
    }
}

impl Waiting {
    fn asker(&self) -> &Asker {
        match self {
            Waiting::Connected(asker) | Waiting::Disconnected(asker) | Waiting::Flushed(asker) => asker,
        }
    }

    fn into_asker(self) -> Asker {
        match self {
            Waiting::Connected(asker) | Waiting::Disconnected(asker) | Waiting::Flushed(asker) => asker,
        }
    }
}

/// Offers a message and follows it to the stage asked for. `Sent` is answered with the acknowledgement, which proves
/// it.
async fn follow(
    corridor: &Corridor,
    draft: Draft,
    wait: PublishStage,
    stage: &mut Option<PublishStage>,
) -> PublishResult {
    let offer = corridor.offer(draft).await;
    match offer.accepted.await {
        Ok(Ok(_)) => *stage = Some(PublishStage::Stored),
        Ok(Err(Refusal::Full | Refusal::TooLarge)) => return PublishResult::WouldBlock,
        Ok(Err(Refusal::Stopping)) | Err(_) => return PublishResult::Lost,
    }
    if wait == PublishStage::Stored {
        return PublishResult::Accepted;
    }
    match offer.delivered.await {
        Ok(()) => {
            *stage = Some(PublishStage::Acked);
            PublishResult::Accepted
        }
        Err(_) => PublishResult::Lost,
    }
}

fn spell_out(waiting: Waiting, outcome: Outcome, uplink: Option<Name>) -> (Asker, Reply) {
    let done = |word: &str, uplink| Ok(result_document(word, uplink));
    let failed = |what: &str, reason: Reason| Err(Failure::failed(format!("{what}: {reason}"), Some(reason)));
    match (waiting, outcome) {
        (Waiting::Connected(asker), Outcome::Done) => (asker, done("connected", uplink)),
        (Waiting::Disconnected(asker), Outcome::Done) => (asker, done("disconnected", None)),
        (Waiting::Flushed(asker), Outcome::Done) => (asker, done("flushed", uplink)),
        (Waiting::Connected(asker), Outcome::Failed(reason)) => (asker, failed("not connected", reason)),
        (Waiting::Disconnected(asker), Outcome::Failed(reason)) => (asker, failed("ended otherwise", reason)),
        (Waiting::Flushed(asker), Outcome::Failed(reason)) => (asker, failed("not everything is through", reason)),
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
