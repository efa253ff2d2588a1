//! What we say to the local broker and what it may say to us: MQTT 5 only, because 3.1.1 has no word for "not my own".
//!
//! Pure: bytes in, words out. Holds no state, never panics on any input, and never logs a password.

use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use flowsdk::mqtt_serde::mqttv5::{connectv5, subscribev5, unsubscribev5};
use switchback_control::Version;

pub use crate::io::packet::{FAREWELL, PING, complete, release, taken};
use crate::io::packet::{Malformed, PACKET_MAX, Publish, lower_expiry};
use crate::topics;

/// Messages that the broker may have unacknowledged towards us; each may be as large as a packet and waits in memory while
/// the outbox has no room. mosquitto's own `max_inflight_messages` (20) is below it by default.
pub const RECEIVE_MAX: u16 = 100;

/// How long the broker keeps our session without us: longer than a gateway is down for repair, shorter than for ever, so
/// that a renamed gateway leaves nothing behind.
const SESSION_EXPIRY: Duration = Duration::from_secs(30 * 86_400);

/// Asked of the broker; it hangs up after one and a half times this.
pub const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// What a broker may say to a client.
#[derive(Debug)]
pub enum Heard {
    Connected {
        present: bool,
        code: u8,
        limits: Limits,
    },
    Publish(Publish),
    /// PUBACK.
    Acked {
        id: u16,
        code: u8,
    },
    /// PUBREC.
    Received {
        id: u16,
        code: u8,
    },
    /// PUBREL.
    Release {
        id: u16,
    },
    /// PUBCOMP.
    Completed {
        id: u16,
    },
    Subscribed {
        id: u16,
        codes: Vec<u8>,
    },
    Unsubscribed {
        id: u16,
    },
    Pong,
    Disconnected {
        code: u8,
    },
}

/// What the broker allows, from its CONNACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Receive Maximum.
    pub window: u16,
    /// Largest packet it takes, in bytes.
    pub packet: usize,
    pub qos: u8,
    pub retain: bool,
    /// Ours, or the server's own.
    pub keep_alive: Duration,
}

impl Limits {
    fn read(properties: &[Property]) -> Limits {
        // Above what three length bytes and a header can hold there is nothing.
        let mut limits = Limits { window: u16::MAX, packet: 268_435_455, qos: 2, retain: true, keep_alive: KEEP_ALIVE };
        for property in properties {
            match property {
                // Zero would be a protocol error; one is the least that works.
                Property::ReceiveMaximum(most) => limits.window = (*most).max(1),
                Property::MaximumPacketSize(most) => {
                    limits.packet = usize::try_from(*most).unwrap_or(usize::MAX).min(limits.packet);
                }
                Property::MaximumQoS(most) => limits.qos = *most,
                Property::RetainAvailable(available) => limits.retain = *available != 0,
                Property::ServerKeepAlive(seconds) if *seconds > 0 => {
                    limits.keep_alive = KEEP_ALIVE.min(Duration::from_secs(u64::from(*seconds)));
                }
                _ => {}
            }
        }
        limits
    }
}

/// Takes a packet for what it says; an error where no server may say such a thing.
pub fn understand(packet: MqttPacket) -> Result<Heard, Malformed> {
    Ok(match packet {
        MqttPacket::ConnAck5(p) => Heard::Connected {
            present: p.session_present,
            code: p.reason_code,
            limits: Limits::read(p.properties.as_deref().unwrap_or_default()),
        },
        MqttPacket::PubAck5(p) => Heard::Acked { id: p.packet_id, code: p.reason_code },
        MqttPacket::PubRec5(p) => Heard::Received { id: p.packet_id, code: p.reason_code },
        MqttPacket::PubRel5(p) => Heard::Release { id: p.packet_id },
        MqttPacket::PubComp5(p) => Heard::Completed { id: p.packet_id },
        MqttPacket::SubAck5(p) => Heard::Subscribed { id: p.packet_id, codes: p.reason_codes },
        MqttPacket::UnsubAck5(p) => Heard::Unsubscribed { id: p.packet_id },
        MqttPacket::PingResp5(_) => Heard::Pong,
        MqttPacket::Disconnect5(p) => Heard::Disconnected { code: p.reason_code },
        other => {
            let publish = Publish::from_packet(other).map_err(|_| Malformed::Syntax)?;
            // No aliases were allowed, so a topic is always there; a numbered message has a number.
            let whole = topics::valid_topic(&publish.topic) && publish.qos <= 2;
            if !whole || (publish.qos > 0 && publish.id.unwrap_or(0) == 0) {
                return Err(Malformed::Syntax);
            }
            Heard::Publish(publish)
        }
    })
}

/// CONNECT to the session that both sides keep. `Err` with a sentence where it cannot be written down.
pub fn connect(client_id: String, username: Option<String>, password: Option<Vec<u8>>) -> Result<Vec<u8>, String> {
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    let keep_alive = u16::try_from(KEEP_ALIVE.as_secs()).unwrap_or(u16::MAX);
    let properties = vec![
        Property::SessionExpiryInterval(seconds(SESSION_EXPIRY)),
        Property::ReceiveMaximum(RECEIVE_MAX),
        Property::MaximumPacketSize(PACKET_MAX as u32),
    ];
    let connect = connectv5::MqttConnect::new(client_id, username, password, None, keep_alive, false, properties);
    bytes(MqttPacket::Connect5(connect))
}

/// SUBSCRIBE at QoS 2, without what we published ourselves, with the retain flag as it was, and with retained messages
/// only where the broker did not have the subscription: a restart does not send them all up again.
pub fn subscribe(id: u16, filters: &[String]) -> Result<Vec<u8>, String> {
    let subscription = |filter: &String| subscribev5::TopicSubscription::new(filter.clone(), 2, true, true, 1);
    let filters = filters.iter().map(subscription).collect();
    bytes(MqttPacket::Subscribe5(subscribev5::MqttSubscribe::new_simple(id, filters)))
}

/// UNSUBSCRIBE.
pub fn unsubscribe(id: u16, filters: &[String]) -> Result<Vec<u8>, String> {
    bytes(MqttPacket::Unsubscribe5(unsubscribev5::MqttUnsubscribe::new_simple(id, filters.to_vec())))
}

/// PUBLISH.
pub fn publish(publish: Publish) -> Result<Vec<u8>, String> {
    bytes(publish.into_packet(Version::V5))
}

/// Takes the time that a message waited here off its expiry interval (MQTT 5.0 section 3.3.2.3.3); false when none is left.
pub fn age(properties: &mut [Property], waited: Duration) -> bool {
    lower_expiry(properties, u32::try_from(waited.as_secs()).unwrap_or(u32::MAX))
}

fn bytes(packet: MqttPacket) -> Result<Vec<u8>, String> {
    packet.to_bytes().map_err(|error| format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::packet::parse;

    #[test]
    fn short_packets_read_back_as_themselves() {
        assert!(matches!(parse(&taken(1, 513), Version::V5).unwrap(), MqttPacket::PubAck5(p) if p.packet_id == 513));
        assert!(matches!(parse(&taken(2, 1), Version::V5).unwrap(), MqttPacket::PubRec5(_)));
        assert!(matches!(parse(&release(7), Version::V5).unwrap(), MqttPacket::PubRel5(p) if p.packet_id == 7));
        assert!(matches!(parse(&complete(1), Version::V5).unwrap(), MqttPacket::PubComp5(_)));
        assert!(matches!(parse(&PING, Version::V5).unwrap(), MqttPacket::PingReq5(_)));
        assert!(matches!(parse(&FAREWELL, Version::V5).unwrap(), MqttPacket::Disconnect5(_)));
    }

    #[test]
    fn a_subscription_leaves_out_our_own_and_says_so_on_the_wire() {
        let bytes = subscribe(1, &["a/#".into()]).unwrap();
        // QoS 2, No Local, Retain As Published, retained messages for a new subscription only.
        assert_eq!(bytes.last(), Some(&(2 | 0x04 | 0x08 | 0x10)));
    }

    #[test]
    fn a_message_ages_by_whole_seconds_and_dies_at_none() {
        let mut properties = [Property::ContentType("x".into()), Property::MessageExpiryInterval(3)];
        assert!(age(&mut properties, Duration::from_millis(2900)));
        assert_eq!(properties[1], Property::MessageExpiryInterval(1));
        assert!(!age(&mut properties, Duration::from_secs(1)));
        assert!(age(&mut [], Duration::MAX));
    }

    #[test]
    fn what_only_a_client_says_is_malformed() {
        assert!(understand(parse(&PING, Version::V5).unwrap()).is_err());
    }
}
