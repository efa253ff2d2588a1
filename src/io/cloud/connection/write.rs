//! What goes out on a connection: CONNECT and acknowledgements first, then our own messages, then the applications', in
//! order.
//!
//! One chunk at a time is gathered, written and flushed before the next is looked at, so that a dead uplink strands
//! little and what was not yet written can still be sent elsewhere.

use std::future::pending;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback_control::{Event, Goodbye, Reason, Seq, Version};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::{Connection, Desk, Place, own_message};
use crate::corridor::Body;
use crate::io::cloud::dial::Ended;
use crate::io::cloud::documents;
use crate::io::cloud::speech;
use crate::io::packet::{Publish, properties_from_bytes};
use crate::topics;

/// Bytes gathered before they are written: one TLS record, and what the kernel takes unsent.
const CHUNK: usize = 16 * 1024;

impl Connection<'_> {
    pub(super) async fn write(&self, mut half: impl AsyncWrite + Unpin) -> Ended {
        let mut last = Instant::now();
        loop {
            let mut chunk = Vec::new();
            let mut sent = Vec::new();
            let last_words = self.gather(&mut chunk, &mut sent).await;
            if chunk.is_empty() {
                self.idle(last).await;
                continue;
            }
            let written = async {
                half.write_all(&chunk).await?;
                half.flush().await
            };
            if let Err(error) = written.await {
                return self.broken(&error);
            }
            last = Instant::now();
            self.desk().busy = false;
            for seq in sent {
                self.tell(Event::Acked { attempt: self.place.voice.attempt, seq }).await;
            }
            if last_words {
                // The end of our stream; the server closes when it has read it, which ends the reading.
                let _ = half.shutdown().await;
                pending::<()>().await;
            }
        }
    }

    /// Waits for something to write, and pings when the keep alive is three quarters over (MQTT 5.0 section 3.1.2.10
    /// allows one and a half of it; the rest is for the way).
    async fn idle(&self, last: Instant) {
        let keep_alive = self.desk().open.as_ref().map(|open| open.keep_alive).filter(|keep| !keep.is_zero());
        let due = async {
            match keep_alive {
                Some(keep_alive) => sleep_until(last + keep_alive * 3 / 4).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = self.wake.notified() => {}
            () = due => self.ping(),
        }
    }

    pub(super) fn ping(&self) {
        self.place.shared.costs.ping(self.place.facts.interface);
        self.desk().control.extend(speech::PING);
        self.wake.notify_one();
    }

    /// Fills `chunk` with what is to be written next and `sent` with what is done once it is; true when these are the
    /// last words.
    async fn gather(&self, chunk: &mut Vec<u8>, sent: &mut Vec<Seq>) -> bool {
        loop {
            let next = {
                let mut desk = self.desk();
                if !desk.control.is_empty() {
                    chunk.append(&mut desk.control);
                }
                if let Some(goodbye) = desk.goodbye {
                    desk.busy = true;
                    self.farewell(&mut desk, goodbye, chunk);
                    return true;
                }
                desk.busy = !chunk.is_empty();
                if desk.is_full() || chunk.len() >= CHUNK {
                    return false;
                }
                if let Some(own) = desk.own.pop_front() {
                    desk.in_flight += u16::from(own.qos > 0);
                    Next::Own(own)
                } else if let Some((seq, again)) = desk.queue.pop_front() {
                    desk.busy = true;
                    Next::Message(seq, again)
                } else {
                    return false;
                }
            };
            match next {
                Next::Own(publish) => match speech::publish(self.version, publish) {
                    Ok(bytes) => chunk.extend(bytes),
                    Err(problem) => log::warn!("our own message cannot be written: {problem}"),
                },
                Next::Message(seq, again) => self.gather_message(seq, again, chunk, sent).await,
            }
        }
    }

    async fn gather_message(&self, seq: Seq, again: bool, chunk: &mut Vec<u8>, sent: &mut Vec<Seq>) {
        let Place { shared, voice, .. } = self.place;
        let encoded = match (shared.fetch)(seq).await {
            Some(body) => self.encode(&body, again),
            None => Err("it is not in the outbox any more".to_owned()),
        };
        match encoded {
            Ok((bytes, 1..)) => {
                chunk.extend(bytes);
                let mut desk = self.desk();
                desk.in_flight = desk.in_flight.saturating_add(1);
                if desk.open.is_none() {
                    desk.early.push(seq);
                }
            }
            // What has no acknowledgement, or breaks a limit that may be old, waits for CONNACK, and all behind it.
            Ok(_) | Err(_) if self.desk().open.is_none() => {
                let mut desk = self.desk();
                desk.queue.push_front((seq, again));
                desk.limits = None;
            }
            Ok((bytes, 0)) => {
                chunk.extend(bytes);
                sent.push(seq);
            }
            Err(problem) => {
                shared.memory.forget(seq);
                log::warn!("message {} can never be sent: {problem}", seq.0);
                self.tell(Event::Rejected { attempt: voice.attempt, seq }).await;
            }
        }
    }

    /// The packet of a message and its quality, within what the server allows; an error where it can never be sent.
    fn encode(&self, body: &Body, again: bool) -> Result<(Vec<u8>, u8), String> {
        if !topics::valid_topic(&body.topic) {
            return Err(format!("\"{}\" is no topic", body.topic));
        }
        let limits = self.desk().limits.clone().unwrap_or_default();
        let qos = body.qos.min(1).min(limits.qos);
        let mut properties = speech::portable(properties_from_bytes(&body.properties), self.version);
        if self.version == Version::V5 {
            properties.push(Property::UserProperty("sb-id".into(), body.id.clone()));
            properties.push(Property::UserProperty("sb-time".into(), documents::time(body.accepted)));
        }
        let (id, known) = match qos {
            0 => (None, false),
            _ => {
                let (id, known) = self.place.shared.memory.number(body.seq);
                (Some(id), known)
            }
        };
        let publish = Publish {
            topic: body.topic.clone(),
            payload: body.payload.clone(),
            qos,
            retain: body.retain && limits.retain,
            // A repetition only towards a server that may have the first under the same number.
            dup: again && known,
            id,
            properties,
        };
        let bytes = speech::publish(self.version, publish)?;
        if bytes.len() > limits.packet {
            return Err(format!("{} bytes are more than the server takes ({})", bytes.len(), limits.packet));
        }
        Ok((bytes, qos))
    }

    fn farewell(&self, desk: &mut Desk, goodbye: Goodbye, chunk: &mut Vec<u8>) {
        let Place { shared, voice, .. } = self.place;
        let base = &shared.config.cloud.base;
        if goodbye == Goodbye::Offline && desk.open.is_some() && !base.is_empty() {
            let payload = documents::status(false, voice.attempt, Some(Reason::User));
            let full = desk.is_full();
            let publish = own_message(desk, format!("{base}/status"), payload, true).map(|publish| match full {
                // One more numbered message would break the server's limit, and it the connection.
                true => Publish { qos: 0, id: None, ..publish },
                false => publish,
            });
            match publish.map(|publish| speech::publish(self.version, publish)) {
                Some(Ok(bytes)) => chunk.extend(bytes),
                Some(Err(problem)) => log::warn!("the offline status cannot be written: {problem}"),
                None => {}
            }
        }
        chunk.extend(speech::FAREWELL);
    }
}

enum Next {
    Own(Publish),
    Message(Seq, bool),
}
