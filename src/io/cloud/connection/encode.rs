//! An application's message as a packet for this server: what it may be, what it is called, and why it cannot go.
//!
//! Waits for nothing and writes nothing. A message has its identifier from here on.

use std::sync::atomic::Ordering;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback_control::Version;

use super::{Connection, Place};
use crate::corridor::{Body, Pledge};
use crate::io::clock;
use crate::io::cloud::{age, documents, speech};
use crate::io::packet::{Publish, properties_from_bytes};
use crate::sorting::{ACCEPTED, IDENTITY};
use crate::topics;

/// Why a message cannot be written.
pub(super) enum Unsent {
    /// Not before CONNACK.
    Early,
    /// Too old.
    Expired,
    /// Every identifier of QoS 2 is taken, or all that the server may bear.
    NoIdentifier,
    Never(String),
}

impl Connection<'_> {
    /// The packet of a message, its quality, and what must be durable before it goes, all within what the server allows.
    pub(super) fn encode(
        &self,
        body: &Body,
        again: bool,
        exchange: Option<u16>,
    ) -> Result<(Vec<u8>, u8, Option<Pledge>), Unsent> {
        let Place { shared, .. } = self.place;
        if !topics::valid_topic(&body.topic) {
            return Err(Unsent::Never(format!("\"{}\" is no topic", body.topic)));
        }
        let (limits, open) = {
            let desk = self.desk();
            (desk.limits.clone().unwrap_or_default(), desk.open.is_some())
        };
        let mut properties = properties_from_bytes(&body.properties);
        // What the server may have already is not taken back.
        if exchange.is_none() && !age::lower(&mut properties, age::of(body)) {
            return Err(Unsent::Expired);
        }
        let mut properties = speech::portable(properties, self.version);
        if self.version == Version::V5 {
            properties.push(Property::UserProperty(IDENTITY.into(), body.id.clone()));
            // No time rather than a wrong one: the clock may not be set yet.
            if let Some(time) = clock::time_of(body.accepted, &body.id) {
                properties.push(Property::UserProperty(ACCEPTED.into(), documents::time(time)));
            }
        }
        let qos = body.qos.min(2).min(limits.qos);
        if qos < body.qos && qos == 1 && !shared.said_downgraded.swap(true, Ordering::Relaxed) {
            log::warn!("the server takes QoS 1 at most: messages of QoS 2 go as that, and may be repeated");
        }
        let (id, known) = match qos {
            0 => (None, false),
            1 => {
                let (id, known) = shared.memory.number(body.seq);
                (Some(id), known)
            }
            _ if !open => return Err(Unsent::Early),
            _ if !self.desk().has_exact_room(body.seq, self.version) => return Err(Unsent::NoIdentifier),
            _ => match exchange.or_else(|| shared.memory.begin_exchange(body.seq)) {
                Some(id) => (Some(id), exchange.is_some()),
                None => return Err(Unsent::NoIdentifier),
            },
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
        let pledge = id.filter(|_| qos == 2).map(|id| Pledge { seq: body.seq, id, received: false });
        let fits = speech::publish(self.version, publish).and_then(|bytes| match bytes.len() > limits.packet {
            true => Err(format!("{} bytes are more than the server takes ({})", bytes.len(), limits.packet)),
            false => Ok(bytes),
        });
        match fits {
            Ok(bytes) => Ok((bytes, qos, pledge)),
            Err(why) => {
                // Not begun after all.
                if let (Some(pledge), None, Some(generation)) = (pledge, exchange, self.generation()) {
                    shared.memory.refused(generation, pledge.id);
                }
                Err(Unsent::Never(why))
            }
        }
    }
}
