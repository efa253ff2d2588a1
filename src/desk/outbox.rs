//! `outbox` and `reset`: what waits and what was set aside is shown, or forgotten.
//!
//! The heart forgets what waits, lane by lane; the store what was set aside. Neither touches the session (R-CF-5).

use serde_json::{Map, Value};
use switchback_control::{Command, Control, Event, Request, Status};
use tokio::sync::oneshot;

use super::{Asker, Desk, ListAsker, Waiting, answer, stopping};
use crate::api::{DROP_ALL, DROP_REJECTED, Failure, Reply, Reset, dropped_document};
use crate::corridor::Corridor;

/// A request whose answer nobody waits for: real ones count from 1.
const UNHEARD: Request = Request(0);

impl Desk {
    /// What waits, and what was set aside, which the store reads in its own time.
    pub(super) fn show_outbox(&self, reply: Asker, mut status: Map<String, Value>) {
        let mut document = match status.remove("outbox") {
            Some(Value::Object(outbox)) => outbox,
            _ => Map::new(),
        };
        let corridor = self.corridor.clone();
        tokio::spawn(async move {
            let set_aside = corridor.set_asides().await;
            document.insert("set_aside".into(), serde_json::to_value(set_aside).unwrap_or_default());
            answer(reply, Ok(document));
        });
    }

    pub(super) fn drop_class(&mut self, reply: Asker, class: &str, control: &Control) -> Vec<Event> {
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
        let last = lanes.len().saturating_sub(1);
        let one = |(index, lane)| {
            let request = if index == last { request } else { UNHEARD };
            Event::Asked(Command::Drop { request, lane })
        };
        lanes.into_iter().enumerate().map(one).collect()
    }

    pub(super) fn reset(&mut self, reply: Asker, what: Reset, control: &Control) -> Vec<Event> {
        let forget_list = Event::Asked(Command::SetList { list: Vec::new() });
        if what == Reset::Failover {
            self.list = Some(ListAsker::Show(reply));
            return vec![forget_list];
        }
        let waiting =
            Waiting::Dropped(and_forget_set_aside(&self.corridor, reply), "reset", control.status().delivery.dropped);
        let Some(request) = self.wait(waiting) else { return Vec::new() };
        let drop = Event::Asked(Command::Drop { request, lane: None });
        if what == Reset::Outbox {
            return vec![drop];
        }
        self.list = Some(ListAsker::Reset(request));
        vec![forget_list, drop]
    }
}

/// Forgets what was set aside; how many there were.
async fn clear_set_aside(corridor: &Corridor) -> Result<usize, Failure> {
    let count = corridor.set_asides().await.len();
    match corridor.clear_set_asides().await {
        true => Ok(count),
        false => Err(Failure::failed("what was set aside is still there: the disk does not take the change", None)),
    }
}

/// `outbox drop rejected`.
fn forget_set_aside(corridor: &Corridor, reply: Asker) {
    let corridor = corridor.clone();
    tokio::spawn(async move {
        let cleared = clear_set_aside(&corridor).await;
        answer(reply, cleared.map(|count| dropped_document("dropped", count as u64, 0)));
    });
}

/// One who forgets what was set aside as well, once the rest is done.
fn and_forget_set_aside(corridor: &Corridor, reply: Asker) -> Asker {
    let (asker, heard) = oneshot::channel();
    let corridor = corridor.clone();
    tokio::spawn(async move {
        let heard: Reply = heard.await.unwrap_or_else(|_| Err(stopping()));
        answer(
            reply,
            match heard {
                Ok(document) => clear_set_aside(&corridor).await.map(|_| document),
                Err(failure) => Err(failure),
            },
        );
    });
    asker
}

/// How many messages were given up since there were `before`.
pub(super) fn dropped(word: &str, before: u64, status: &Status) -> Map<String, Value> {
    let delivery = &status.delivery;
    dropped_document(word, delivery.dropped.saturating_sub(before), u64::from(delivery.in_flight))
}
