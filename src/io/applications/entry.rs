//! What is kept of the sessions and of the retained messages, one entry for each change, and its form as bytes.
//!
//! ```text
//! entry    length of the rest u32 │ kind u8 │ fields                             (little endian)
//! text, bytes: length u32, bytes;   time: wall clock, milliseconds since the epoch
//! ```
//!
//! An entry states how something is now, so reading one twice changes nothing. Pure: what decodes was encoded here,
//! and no bytes make it panic. It is long, because each entry is written and read here, side by side. Times are of the wall clock, because no other one survives a restart; where that clock
//! went back, what was left is counted from now, so that nothing ends too early.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use tokio::time::Instant;

use super::message::Message;
use super::session::{Delivery, Subscription};
use crate::io::clock::SET_SINCE;
use crate::io::packet::{Publish, properties_from_bytes, properties_to_bytes};

/// One fact about the sessions or the retained messages.
#[derive(Clone, Debug)]
pub enum Entry {
    Session {
        id: Arc<str>,
        user: Option<String>,
        /// `None` for never.
        expiry: Option<Duration>,
        /// Wall clock; `None` while its client is here.
        away_since: Option<u64>,
        last_id: u16,
        /// The daemon went before the client did.
        cut_off: bool,
        /// The will and its delay.
        will: Option<(Publish, Duration)>,
    },
    /// QoS 2 messages of the client between PUBREC and PUBREL: all of them.
    Received {
        id: Arc<str>,
        packets: Vec<u16>,
    },
    /// The session and everything in it is gone.
    Ended {
        id: Arc<str>,
    },
    Subscribed {
        id: Arc<str>,
        filter: String,
        subscription: Subscription,
    },
    Unsubscribed {
        id: Arc<str>,
        filter: String,
    },
    /// A message for the client; `None` where only its PUBREL is left.
    Queued {
        id: Arc<str>,
        serial: u64,
        packet: u16,
        delivery: Option<Delivery>,
    },
    Done {
        id: Arc<str>,
        serial: u64,
    },
    Retained {
        message: Arc<Message>,
    },
    Cleared {
        topic: String,
    },
}

/// One moment on both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: Instant,
    pub wall: u64,
}

impl Moment {
    pub fn current() -> Moment {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        Moment { now: Instant::now(), wall }
    }

    pub fn to_wall(self, at: Instant) -> u64 {
        let ahead = at.saturating_duration_since(self.now).as_millis() as u64;
        let ago = self.now.saturating_duration_since(at).as_millis() as u64;
        self.wall.saturating_add(ahead).saturating_sub(ago)
    }
}

/// Appends an entry's bytes.
pub fn encode(out: &mut Vec<u8>, entry: &Entry, moment: Moment) {
    let start = out.len();
    out.extend([0; 4]);
    match entry {
        Entry::Session { id, user, expiry, away_since, last_id, cut_off, will } => {
            out.push(1);
            put(out, id.as_bytes());
            out.push(u8::from(user.is_some()));
            put(out, user.as_deref().unwrap_or_default().as_bytes());
            out.extend(seconds(*expiry).to_le_bytes());
            out.extend(away_since.unwrap_or(u64::MAX).to_le_bytes());
            out.extend(last_id.to_le_bytes());
            out.extend([u8::from(*cut_off), u8::from(will.is_some())]);
            if let Some((will, delay)) = will {
                out.extend(seconds(Some(*delay)).to_le_bytes());
                out.extend([will.qos, u8::from(will.retain)]);
                put(out, will.topic.as_bytes());
                put(out, &properties_to_bytes(&will.properties));
                put(out, &will.payload);
            }
        }
        Entry::Received { id, packets } => {
            out.push(9);
            put(out, id.as_bytes());
            packets.iter().for_each(|packet| out.extend(packet.to_le_bytes()));
        }
        Entry::Ended { id } => {
            out.push(2);
            put(out, id.as_bytes());
        }
        Entry::Subscribed { id, filter, subscription } => {
            out.push(3);
            put(out, id.as_bytes());
            put(out, filter.as_bytes());
            let Subscription { qos, no_local, retain_as_published, identifier } = subscription;
            out.extend([*qos, u8::from(*no_local), u8::from(*retain_as_published)]);
            out.extend(identifier.unwrap_or(0).to_le_bytes());
        }
        Entry::Unsubscribed { id, filter } => {
            out.push(4);
            put(out, id.as_bytes());
            put(out, filter.as_bytes());
        }
        Entry::Queued { id, serial, packet, delivery } => {
            out.push(5);
            put(out, id.as_bytes());
            out.extend(serial.to_le_bytes());
            out.extend(packet.to_le_bytes());
            out.push(u8::from(delivery.is_some()));
            if let Some(delivery) = delivery {
                out.extend([delivery.qos, u8::from(delivery.retain)]);
                out.extend((delivery.identifiers.len() as u32).to_le_bytes());
                delivery.identifiers.iter().for_each(|identifier| out.extend(identifier.to_le_bytes()));
                put_message(out, &delivery.message, moment);
            }
        }
        Entry::Done { id, serial } => {
            out.push(6);
            put(out, id.as_bytes());
            out.extend(serial.to_le_bytes());
        }
        Entry::Retained { message } => {
            out.push(7);
            put_message(out, message, moment);
        }
        Entry::Cleared { topic } => {
            out.push(8);
            put(out, topic.as_bytes());
        }
    }
    let length = (out.len() - start - 4) as u32;
    out.iter_mut().skip(start).zip(length.to_le_bytes()).for_each(|(to, from)| *to = from);
}

/// Takes the next entry; `None` for bytes that `encode` did not make, and at the end.
pub fn decode(bytes: &mut &[u8], moment: Moment) -> Option<Entry> {
    let mut outer = Bytes(bytes);
    let length = outer.u32()? as usize;
    let body = outer.take(length)?;
    *bytes = outer.0;
    let mut left = Bytes(body);
    let kind = left.byte()?;
    let entry = match kind {
        1 => Entry::Session {
            id: Arc::from(left.text()?),
            user: {
                let some = left.byte()? != 0;
                Some(left.text()?.to_owned()).filter(|_| some)
            },
            expiry: super::greeting::expiry(left.u32()?),
            away_since: Some(left.u64()?).filter(|since| *since != u64::MAX),
            last_id: left.u16()?,
            cut_off: left.byte()? != 0,
            will: if left.byte()? == 0 { None } else { Some(take_will(&mut left)?) },
        },
        2 => Entry::Ended { id: Arc::from(left.text()?) },
        3 => {
            let (id, filter) = (Arc::from(left.text()?), left.text()?.to_owned());
            let (qos, no_local, retain_as_published) = (left.byte()?, left.byte()? != 0, left.byte()? != 0);
            let identifier = Some(left.u32()?).filter(|identifier| *identifier != 0);
            Entry::Subscribed {
                id,
                filter,
                subscription: Subscription { qos, no_local, retain_as_published, identifier },
            }
        }
        4 => Entry::Unsubscribed { id: Arc::from(left.text()?), filter: left.text()?.to_owned() },
        5 => {
            let (id, serial, packet) = (Arc::from(left.text()?), left.u64()?, left.u16()?);
            let delivery = if left.byte()? == 0 { None } else { Some(take_delivery(&mut left, moment)?) };
            Entry::Queued { id, serial, packet, delivery }
        }
        6 => Entry::Done { id: Arc::from(left.text()?), serial: left.u64()? },
        7 => Entry::Retained { message: Arc::new(take_message(&mut left, moment)?) },
        8 => Entry::Cleared { topic: left.text()?.to_owned() },
        9 => {
            let id = Arc::from(left.text()?);
            Entry::Received { id, packets: std::iter::from_fn(|| left.u16()).collect() }
        }
        _ => return None,
    };
    Some(entry)
}

fn take_will(left: &mut Bytes<'_>) -> Option<(Publish, Duration)> {
    let delay = Duration::from_secs(u64::from(left.u32()?));
    let (qos, retain, topic) = (left.byte()?, left.byte()? != 0, left.text()?.to_owned());
    let properties = properties_from_bytes(left.bytes()?);
    let payload = left.bytes()?.to_vec();
    Some((Publish { topic, payload, qos, retain, dup: false, id: None, properties }, delay))
}

fn take_delivery(left: &mut Bytes<'_>, moment: Moment) -> Option<Delivery> {
    let (qos, retain, count) = (left.byte()?, left.byte()? != 0, left.u32()?);
    let mut identifiers = Vec::new();
    for _ in 0..count {
        identifiers.push(left.u32()?);
    }
    Some(Delivery { message: Arc::new(take_message(left, moment)?), qos, retain, identifiers })
}

fn put_message(out: &mut Vec<u8>, message: &Message, moment: Moment) {
    let Message { topic, payload, qos, retain, properties, expires, origin } = message;
    out.extend([*qos, u8::from(*retain)]);
    out.extend(expires.map_or(u64::MAX, |at| moment.to_wall(at)).to_le_bytes());
    put(out, topic.as_bytes());
    put(out, origin.as_deref().unwrap_or_default().as_bytes());
    put(out, &properties_to_bytes(properties));
    put(out, payload);
}

fn take_message(left: &mut Bytes<'_>, moment: Moment) -> Option<Message> {
    let (qos, retain, expires) = (left.byte()?, left.byte()? != 0, left.u64()?);
    let (topic, origin) = (left.text()?.to_owned(), left.text()?);
    let properties = properties_from_bytes(left.bytes()?);
    let payload = left.bytes()?.to_vec();
    let interval = properties.iter().find_map(|property| match property {
        Property::MessageExpiryInterval(seconds) => Some(u64::from(*seconds) * 1000),
        _ => None,
    });
    let expires = interval.and_then(|interval| {
        // Written while the clock was not set: how long it has lain here is not known.
        let expires = if expires < SET_SINCE { u64::MAX } else { expires };
        let remaining = expires.saturating_sub(moment.wall).min(interval);
        moment.now.checked_add(Duration::from_millis(remaining))
    });
    let origin = Some(origin).filter(|origin| !origin.is_empty()).map(Arc::from);
    Some(Message { topic, payload, qos, retain, properties, expires, origin })
}

/// As MQTT 5 writes it: the largest number means never.
fn seconds(expiry: Option<Duration>) -> u32 {
    expiry.map_or(u32::MAX, |expiry| u32::try_from(expiry.as_secs()).unwrap_or(u32::MAX))
}

fn put(out: &mut Vec<u8>, part: &[u8]) {
    out.extend((part.len() as u32).to_le_bytes());
    out.extend_from_slice(part);
}

struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take(2)?.try_into().ok()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = self.u32()? as usize;
        self.take(length)
    }

    fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_entry_comes_back_and_no_cut_of_it_does() {
        let moment = Moment::current();
        let message = Arc::new(Message {
            topic: "t/x".into(),
            payload: vec![0, 255, 7],
            qos: 2,
            retain: true,
            properties: vec![Property::MessageExpiryInterval(60), Property::ContentType("x".into())],
            expires: Some(moment.now + Duration::from_secs(40)),
            origin: Some(Arc::from("from")),
        });
        let delivery = Delivery { message: Arc::clone(&message), qos: 1, retain: false, identifiers: vec![7, 8] };
        let subscription = Subscription { qos: 2, no_local: true, retain_as_published: true, identifier: Some(9) };
        let id: Arc<str> = Arc::from("app");
        let will = Publish {
            topic: "will".into(),
            payload: b"gone".to_vec(),
            qos: 1,
            retain: true,
            dup: false,
            id: None,
            properties: vec![Property::ContentType("x".into())],
        };
        let all = [
            Entry::Session {
                id: id.clone(),
                user: Some("u".into()),
                expiry: Some(Duration::from_secs(9)),
                away_since: Some(5),
                last_id: 3,
                cut_off: true,
                will: Some((will, Duration::from_secs(7))),
            },
            Entry::Session {
                id: id.clone(),
                user: None,
                expiry: None,
                away_since: None,
                last_id: 0,
                cut_off: false,
                will: None,
            },
            Entry::Received { id: id.clone(), packets: vec![4, 5] },
            Entry::Ended { id: id.clone() },
            Entry::Subscribed { id: id.clone(), filter: "a/#".into(), subscription },
            Entry::Unsubscribed { id: id.clone(), filter: "a/#".into() },
            Entry::Queued { id: id.clone(), serial: 1, packet: 2, delivery: Some(delivery) },
            Entry::Queued { id: id.clone(), serial: 1, packet: 2, delivery: None },
            Entry::Done { id, serial: 1 },
            Entry::Retained { message },
            Entry::Cleared { topic: "t".into() },
        ];
        for entry in &all {
            let mut bytes = Vec::new();
            encode(&mut bytes, entry, moment);
            let mut left = bytes.as_slice();
            assert_eq!(format!("{:?}", decode(&mut left, moment).unwrap()), format!("{entry:?}"));
            assert!(left.is_empty());
            for end in 0..bytes.len() {
                assert!(decode(&mut &bytes[..end], moment).is_none(), "{entry:?} cut at {end}");
            }
            for at in 0..bytes.len() {
                let mut changed = bytes.clone();
                changed[at] ^= 0xff;
                let _ = decode(&mut changed.as_slice(), moment);
            }
        }
    }

    #[test]
    fn a_wall_clock_that_went_back_ends_nothing_early_and_keeps_nothing_longer_than_asked() {
        let moment = Moment::current();
        let message = Message {
            topic: "t".into(),
            payload: vec![],
            qos: 1,
            retain: false,
            properties: vec![Property::MessageExpiryInterval(60)],
            expires: Some(moment.now + Duration::from_secs(40)),
            origin: None,
        };
        let mut bytes = Vec::new();
        put_message(&mut bytes, &message, moment);
        let read = |wall| take_message(&mut Bytes(&bytes), Moment { wall, ..moment }).unwrap().expires.unwrap();
        assert_eq!(read(0), moment.now + Duration::from_secs(60));
        assert_eq!(read(moment.wall + 30_000), moment.now + Duration::from_secs(10));
        assert_eq!(read(moment.wall + 90_000), moment.now);
        let unset = Moment { wall: 5_000, ..moment };
        let mut bytes = Vec::new();
        put_message(&mut bytes, &message, unset);
        let read = take_message(&mut Bytes(&bytes), moment).unwrap().expires.unwrap();
        assert_eq!(read, moment.now + Duration::from_secs(60), "a clock that was not set ends nothing early");
    }
}
