//! `publish`: a message of an operator, followed as far as asked.
//!
//! It goes the way of an application's, by the same rules; what the operator says of class and QoS wins over them.

use std::time::Duration;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback_control::{Lane, Seq};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::{Asker, Desk, answer};
use crate::api::{Failure, PublishResult, PublishStage, publish_document};
use crate::config::nearest;
use crate::corridor::{Corridor, Draft, Offer, Refusal};
use crate::sorting::{CLASS, Local, Way, sort};

/// Letters of a wrong name that a message repeats.
const NAME_SHOWN: usize = 60;

impl Desk {
    /// A message of an operator goes the way of an application's; and whether its rule wants the cloud's word.
    pub(super) fn draft(
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
    pub(super) fn known(&self, class: &str, others: &[&str]) -> Result<Vec<Lane>, Failure> {
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
}

/// How far it has to come: what was asked for, or what its rule says where nothing was. Of QoS 0 the cloud says nothing.
pub(super) fn last_stage(asked: PublishStage, qos: u8, await_cloud: bool) -> Result<PublishStage, Failure> {
    match (asked, qos) {
        (PublishStage::Acked, 0) => {
            let message = "wait: nobody acknowledges a message of QoS 0; wait for \"sent\", or give it qos 1";
            Err(Failure::usage(message))
        }
        (PublishStage::Stored, 0) if await_cloud => Ok(PublishStage::Sent),
        (PublishStage::Stored, _) if await_cloud => Ok(PublishStage::Acked),
        (asked, _) => Ok(asked),
    }
}

/// Offers a message and answers when it has come as far as asked, or why not.
pub(super) fn publish(corridor: &Corridor, reply: Asker, draft: Draft, wait: PublishStage, limit: Duration) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_of_an_acknowledgement_that_there_is_not() {
        use PublishStage::{Acked, Sent, Stored};
        let refused = last_stage(Acked, 0, false).unwrap_err();
        assert_eq!((refused.code, refused.message.contains("QoS 0")), (2, true), "{refused:?}");
        assert_eq!(last_stage(Stored, 0, true), Ok(Sent), "as far as such a message can be followed");
        for (asked, await_cloud, last) in [(Stored, false, Stored), (Stored, true, Acked), (Sent, true, Sent)] {
            assert_eq!(last_stage(asked, 1, await_cloud), Ok(last));
        }
    }
}
