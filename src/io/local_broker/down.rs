//! Messages from the cloud on their way to the local broker: published in order, each told as taken once the broker has it
//! for good (PUBACK or PUBCOMP), kept while the broker is away.
//!
//! Never more on their way than the broker allows. Identifiers are few and given out lowest first: a broker that holds a
//! half-finished one of a process that was killed then meets it again and clears it, instead of keeping its place for ever.

use std::collections::VecDeque;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::words::{self, Limits};
use crate::corridor::Downlink;
use crate::io::packet::{Publish, properties_from_bytes};
use crate::topics;

/// The user property of what we retained at the broker for the cloud, so that it never goes up.
const FROM_CLOUD: &str = "sb-from-cloud";

/// On their way to the broker at once: as many as the cloud may have open towards us.
const OPEN_MAX: usize = 16;
/// Here at a time, each as large as a packet at most; the rest waits in the channel, and then the cloud does.
const HERE_MAX: usize = 2 * OPEN_MAX;
/// The answer of a broker that has no room now (Quota exceeded).
const QUOTA: u8 = 0x97;

/// See the file's head.
#[derive(Default)]
pub struct Down {
    items: VecDeque<Item>,
    refused: u64,
    /// The reason last said for what the broker does not take.
    said: u8,
}

struct Item {
    publish: Publish,
    arrived: Instant,
    step: Step,
    /// On this connection.
    sent: bool,
    taken: oneshot::Sender<()>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Waiting,
    /// The broker may have it.
    Published,
    /// PUBREC came: from now on only PUBREL may be sent.
    Received,
}

impl Down {
    pub fn has_room(&self) -> bool {
        self.items.len() < HERE_MAX
    }

    pub fn waiting(&self) -> usize {
        self.items.len()
    }

    pub fn refused(&self) -> u64 {
        self.refused
    }

    pub fn push(&mut self, downlink: Downlink) {
        let Downlink { topic, payload, qos, retain, properties, taken } = downlink;
        let mut properties = properties_from_bytes(&properties);
        if retain {
            properties.push(Property::UserProperty(FROM_CLOUD.into(), "1".into()));
        }
        let publish = Publish { topic, payload, qos: qos.min(2), retain, dup: false, id: None, properties };
        self.items.push_back(Item { publish, arrived: Instant::now(), step: Step::Waiting, sent: false, taken });
    }

    /// A connection begins; `present` when the broker knows what the last one left open.
    pub fn begin(&mut self, present: bool) {
        for item in &mut self.items {
            item.sent = false;
            match (item.step, present) {
                (Step::Published, true) => item.publish.dup = true,
                (Step::Received, true) => {}
                (Step::Waiting | Step::Published | Step::Received, _) => {
                    (item.step, item.publish.dup, item.publish.id) = (Step::Waiting, false, None);
                }
            }
        }
    }

    /// What is to be sent next, if the broker may get more.
    pub fn next(&mut self, limits: &Limits) -> Option<Vec<u8>> {
        loop {
            let index = self.items.iter().position(|item| !item.sent)?;
            let on_the_way = self.items.iter().filter(|item| item.sent).count();
            if on_the_way >= OPEN_MAX.min(usize::from(limits.window)) {
                return None;
            }
            match self.send(index, limits) {
                Ok(bytes) => return Some(bytes),
                Err(Some(why)) => self.refuse(index, 0, &why),
                Err(None) => self.end(index, true),
            }
        }
    }

    /// PUBACK.
    pub fn acked(&mut self, id: u16, code: u8) {
        if let Some(index) = self.find(id, 1) {
            self.answered(index, code);
        }
    }

    /// PUBREC: what is said in return.
    pub fn received(&mut self, id: u16, code: u8) -> Option<[u8; 4]> {
        if let Some(index) = self.find(id, 2) {
            if code >= 0x80 {
                self.answered(index, code);
                return None;
            }
            self.items.get_mut(index)?.step = Step::Received;
        }
        // The broker may hold one of a process that was killed: it ends here.
        Some(words::release(id))
    }

    /// PUBCOMP.
    pub fn completed(&mut self, id: u16) {
        if let Some(index) = self.find(id, 2) {
            self.end(index, true);
        }
    }

    fn find(&self, id: u16, qos: u8) -> Option<usize> {
        self.items.iter().position(|item| item.sent && item.publish.id == Some(id) && item.publish.qos == qos)
    }

    /// The words for this one; an error with the reason when it can never be sent, without when it need not.
    fn send(&mut self, index: usize, limits: &Limits) -> Result<Vec<u8>, Option<String>> {
        let id = self.free_id();
        let Some(item) = self.items.get_mut(index) else { return Err(None) };
        if item.step == Step::Received {
            item.sent = true;
            return item.publish.id.map(|id| words::release(id).to_vec()).ok_or(None);
        }
        if item.step == Step::Waiting {
            // Its connection to the cloud has ended and the cloud sends it again: twice is once too often.
            if item.publish.qos == 2 && item.taken.is_closed() {
                return Err(None);
            }
            item.publish.qos = item.publish.qos.min(limits.qos);
            item.publish.id = (item.publish.qos > 0).then_some(id);
        }
        let mut publish = item.publish.clone();
        publish.retain &= limits.retain;
        if !words::age(&mut publish.properties, item.arrived.elapsed()) {
            return Err(Some("its time was over before the broker could take it".into()));
        }
        if !topics::valid_topic(&publish.topic) {
            return Err(Some("it has no valid local topic".into()));
        }
        let bytes = words::publish(publish).map_err(Some)?;
        if bytes.len() > limits.packet {
            return Err(Some("it is larger than the broker takes".into()));
        }
        (item.step, item.sent) = (Step::Published, true);
        if item.publish.qos == 0 {
            self.end(index, true);
        }
        Ok(bytes)
    }

    fn free_id(&self) -> u16 {
        let used = |id: &u16| self.items.iter().any(|item| item.publish.id == Some(*id));
        (1..u16::MAX).find(|id| !used(id)).unwrap_or(u16::MAX)
    }

    fn answered(&mut self, index: usize, code: u8) {
        match code {
            0..0x80 => self.end(index, true),
            // It may have room when the cloud sends the message again.
            QUOTA => self.end(index, false),
            _ => self.refuse(index, code, &format!("the broker refuses it (code {code:#04x})")),
        }
    }

    /// Nobody could ever take it, so the cloud need not repeat it.
    fn refuse(&mut self, index: usize, code: u8, why: &str) {
        self.refused += 1;
        let topic = self.items.get(index).map_or("", |item| item.publish.topic.as_str());
        if code == 0 || std::mem::replace(&mut self.said, code) != code {
            log::warn!("a message of the cloud for {topic} is given up: {why}");
        }
        self.end(index, true);
    }

    fn end(&mut self, index: usize, taken: bool) {
        if let Some(item) = self.items.remove(index).filter(|_| taken) {
            let _ = item.taken.send(());
        }
    }
}

/// Whether this tells what we retained for the cloud.
pub fn is_from_cloud(property: &Property) -> bool {
    matches!(property, Property::UserProperty(name, _) if name == FROM_CLOUD)
}
