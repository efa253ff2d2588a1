//! What we say to the cloud and what it may say to us, in both versions of MQTT.
//!
//! The one place where 3.1.1 and 5.0 differ in form; the connection above it sees one shape. Pure: bytes in, words
//! out. Holds no state, never panics on any input, and never logs a password.

use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv3;
use flowsdk::mqtt_serde::mqttv5;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback_control::{Reason, Version};

use crate::config::Cloud;
pub use crate::io::packet::{FAREWELL, PING, complete, release, taken};
use crate::io::packet::{Malformed, PACKET_MAX, Publish};
use crate::topics;

/// Messages that the cloud may have unacknowledged towards us (MQTT 5 Receive Maximum): commands are few, each may be
/// as large as a packet, and all wait in memory while applications are slow.
pub const RECEIVE_MAX: u16 = 16;

/// Characters of a server's reason that are kept.
const REASON_MAX: usize = 200;

/// What a server may say to a client.
#[derive(Debug)]
pub enum Heard {
    Connected {
        present: bool,
        code: u8,
        limits: Limits,
    },
    Publish(Publish),
    /// PUBACK; `refused` says why, where the server does not take the message.
    Acked {
        id: u16,
        refused: Option<Rejection>,
    },
    /// PUBREC, likewise.
    Received {
        id: u16,
        refused: Option<Rejection>,
    },
    /// PUBCOMP, with whatever code: the exchange is over.
    Completed {
        id: u16,
    },
    Release {
        id: u16,
    },
    Subscribed {
        id: u16,
        codes: Vec<u8>,
    },
    Pong,
    Disconnected {
        code: u8,
    },
}

/// What the server allows, from its CONNACK.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Receive Maximum.
    pub window: u16,
    /// Largest packet it takes, in bytes.
    pub packet: usize,
    pub qos: u8,
    pub retain: bool,
    /// Server Keep Alive.
    pub keep_alive: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Limits {
        // Above what three length bytes and a header can hold there is nothing; 3.1.1 has no other limit.
        Limits { window: u16::MAX, packet: 268_435_455, qos: 2, retain: true, keep_alive: None }
    }
}

impl Limits {
    fn read(properties: &[Property]) -> Limits {
        let mut limits = Limits::default();
        for property in properties {
            match property {
                // Zero would be a protocol error; one is the least that works.
                Property::ReceiveMaximum(most) => limits.window = (*most).max(1),
                Property::MaximumPacketSize(most) => {
                    limits.packet = usize::try_from(*most).unwrap_or(usize::MAX).min(limits.packet);
                }
                Property::MaximumQoS(most) => limits.qos = *most,
                Property::RetainAvailable(available) => limits.retain = *available != 0,
                // Zero leaves it to us, so what we asked for stays.
                Property::ServerKeepAlive(seconds) if *seconds > 0 => {
                    limits.keep_alive = Some(Duration::from_secs(u64::from(*seconds)));
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
        MqttPacket::ConnAck3(p) => {
            Heard::Connected { present: p.session_present, code: p.return_code, limits: Limits::default() }
        }
        MqttPacket::PubAck5(p) => Heard::Acked { id: p.packet_id, refused: rejection(p.reason_code, &p.properties) },
        MqttPacket::PubAck3(p) => Heard::Acked { id: p.message_id, refused: None },
        MqttPacket::PubRec5(p) => Heard::Received { id: p.packet_id, refused: rejection(p.reason_code, &p.properties) },
        MqttPacket::PubRec3(p) => Heard::Received { id: p.message_id, refused: None },
        MqttPacket::PubComp5(p) => Heard::Completed { id: p.packet_id },
        MqttPacket::PubComp3(p) => Heard::Completed { id: p.message_id },
        MqttPacket::PubRel5(p) => Heard::Release { id: p.packet_id },
        MqttPacket::PubRel3(p) => Heard::Release { id: p.message_id },
        MqttPacket::SubAck5(p) => Heard::Subscribed { id: p.packet_id, codes: p.reason_codes },
        MqttPacket::SubAck3(p) => Heard::Subscribed { id: p.message_id, codes: p.return_codes },
        MqttPacket::PingResp5(_) | MqttPacket::PingResp3(_) => Heard::Pong,
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

/// The will, in place of which a clean goodbye publishes its own.
pub struct Will {
    pub topic: String,
    pub payload: Vec<u8>,
}

/// CONNECT. `Err` with a sentence where it cannot be written down.
pub fn connect(
    version: Version,
    cloud: &Cloud,
    password: Option<Vec<u8>>,
    keep_alive: Duration,
    will: Option<Will>,
) -> Result<Vec<u8>, String> {
    let keep_alive = u16::try_from(keep_alive.as_secs()).unwrap_or(u16::MAX);
    let seconds = |duration: Duration| u32::try_from(duration.as_secs()).unwrap_or(u32::MAX);
    bytes(match version {
        Version::V5 => {
            let will = will.map(|will| {
                let mut will = mqttv5::will::Will::new(will.topic, will.payload, 1, true);
                will.properties.will_delay_interval = Some(seconds(cloud.will_delay));
                will
            });
            let properties = vec![
                Property::SessionExpiryInterval(seconds(cloud.session_expiry)),
                Property::ReceiveMaximum(RECEIVE_MAX),
                Property::MaximumPacketSize(PACKET_MAX as u32),
            ];
            MqttPacket::Connect5(mqttv5::connectv5::MqttConnect::new(
                cloud.client_id.clone(),
                cloud.username.clone(),
                password,
                will,
                keep_alive,
                false,
                properties,
            ))
        }
        Version::V311 => {
            let mut connect = mqttv3::connectv3::MqttConnect::new(cloud.client_id.clone(), keep_alive, false);
            connect.username = cloud.username.clone();
            // 3.1.1 has no password without a name (section 3.1.2.9).
            connect.password = password.filter(|_| connect.username.is_some());
            connect.will = will.map(|will| mqttv3::connectv3::Will {
                retain: true,
                qos: 1,
                topic: will.topic,
                message: will.payload,
            });
            MqttPacket::Connect3(connect)
        }
    })
}

/// SUBSCRIBE to filters with their highest quality of service.
pub fn subscribe(version: Version, id: u16, filters: &[(String, u8)]) -> Result<Vec<u8>, String> {
    let filters = filters.iter().cloned();
    bytes(match version {
        Version::V5 => MqttPacket::Subscribe5(mqttv5::subscribev5::MqttSubscribe::new_simple(
            id,
            filters.map(|(filter, qos)| mqttv5::subscribev5::TopicSubscription::new_simple(filter, qos)).collect(),
        )),
        Version::V311 => MqttPacket::Subscribe3(mqttv3::subscribev3::MqttSubscribe::new(
            id,
            filters.map(|(topic_filter, qos)| mqttv3::subscribev3::SubscriptionTopic { topic_filter, qos }).collect(),
        )),
    })
}

/// PUBLISH.
pub fn publish(version: Version, publish: Publish) -> Result<Vec<u8>, String> {
    bytes(publish.into_packet(version))
}

/// PUBREL for a number that we know nothing of, so that the server can forget it too (MQTT 5.0 section 3.6.2.1).
pub fn release_unknown(version: Version, id: u16) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    match version {
        Version::V5 => vec![0x62, 3, high, low, 0x92],
        Version::V311 => release(id).into(),
    }
}

/// That a server does not take a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// In words.
    pub why: String,
    /// For how long it is worth trying again: none where it will never be taken.
    pub worth: Duration,
}

/// A quota that is used up: those of brokers are by the minute, rarely by the hour.
const WORTH_QUOTA: Duration = Duration::from_secs(3600);
/// An error that says nothing of the message.
const WORTH_ERROR: Duration = Duration::from_secs(60);

/// Why a server does not take a message (MQTT 5.0 sections 3.4.2.1 and 3.5.2.1); `None` where it does.
fn rejection(code: u8, properties: &[Property]) -> Option<Rejection> {
    if code < 0x80 {
        return None;
    }
    let word = match code {
        0x83 => "implementation specific error",
        0x87 => "not authorized",
        0x90 => "topic name invalid",
        0x91 => "packet identifier in use",
        0x97 => "quota exceeded",
        0x99 => "payload format invalid",
        _ => "unspecified error",
    };
    let text = properties.iter().find_map(|property| match property {
        Property::ReasonString(text) => Some(text.chars().filter(|c| !c.is_control()).take(REASON_MAX).collect()),
        _ => None,
    });
    let why =
        text.map_or_else(|| format!("{word} ({code:#04x})"), |text: String| format!("{word} ({code:#04x}): {text}"));
    let worth = match code {
        0x97 => WORTH_QUOTA,
        0x80 | 0x83 | 0x91 => WORTH_ERROR,
        _ => Duration::ZERO,
    };
    Some(Rejection { why, worth })
}

/// Why a CONNACK refuses.
pub fn refused(version: Version, code: u8) -> Reason {
    match (version, code) {
        (Version::V5, 0x84) | (Version::V311, 1) => Reason::Version,
        (Version::V5, 0x86 | 0x87 | 0x8a | 0x8c) | (Version::V311, 4 | 5) => Reason::Authentication,
        (Version::V5, 0x9c | 0x9d) => Reason::ServerMoved,
        (Version::V5, 0x81 | 0x82) => Reason::Protocol,
        (Version::V5 | Version::V311, _) => Reason::Refused,
    }
}

/// What to do about a refusal, where a person must do it.
pub fn advice(version: Version, code: u8) -> Option<&'static str> {
    match (version, code) {
        (Version::V5, 0x85) | (Version::V311, 2) => {
            Some("the server does not take this client identifier: set cloud.client_id to one it knows")
        }
        (Version::V5, 0x86 | 0x87 | 0x8c) | (Version::V311, 4 | 5) => Some(
            "the server does not accept our credentials: check cloud.username, cloud.password_file and cloud.cert_file",
        ),
        (Version::V5, 0x8a) => Some("this client is banned: ask who runs the server"),
        (Version::V5, 0x90 | 0x9a | 0x9b) => {
            Some("the server does not take our last will: allow the topics below cloud.base, or set cloud.base = \"\"")
        }
        _ => None,
    }
}

/// Why a server disconnects (MQTT 5.0 section 3.14.2.1).
pub fn disconnected(code: u8) -> Reason {
    match code {
        0x81 | 0x82 | 0x93 | 0x94 | 0x95 | 0x99 => Reason::Protocol,
        0x87 => Reason::Authentication,
        0x8d => Reason::KeepaliveLimit,
        0x8e => Reason::SessionTakenOver,
        0x9c | 0x9d => Reason::ServerMoved,
        0x89 | 0x96 | 0x97 | 0x98 | 0x9f | 0xa0 => Reason::Refused,
        _ => Reason::ServerShutDown,
    }
}

/// The properties that may travel with a message of an application: aliases and identifiers belong to one
/// connection, and what does not belong into a PUBLISH would end it.
pub fn portable(properties: Vec<Property>, version: Version) -> Vec<Property> {
    if version == Version::V311 {
        return Vec::new();
    }
    let may = |property: &Property| match property {
        Property::PayloadFormatIndicator(_)
        | Property::MessageExpiryInterval(_)
        | Property::ContentType(_)
        | Property::CorrelationData(_)
        | Property::UserProperty(..) => true,
        Property::ResponseTopic(topic) => topics::valid_topic(topic),
        _ => false,
    };
    properties.into_iter().filter(may).collect()
}

fn bytes(packet: MqttPacket) -> Result<Vec<u8>, String> {
    packet.to_bytes().map_err(|error| format!("{error:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::packet::parse;

    #[test]
    fn short_packets_read_back_as_themselves_in_both_versions() {
        for version in [Version::V5, Version::V311] {
            assert!(matches!(parse(&taken(1, 513), version).unwrap(), MqttPacket::PubAck5(_) | MqttPacket::PubAck3(_)));
            assert!(matches!(parse(&taken(2, 1), version).unwrap(), MqttPacket::PubRec5(_) | MqttPacket::PubRec3(_)));
            assert!(matches!(parse(&complete(1), version).unwrap(), MqttPacket::PubComp5(_) | MqttPacket::PubComp3(_)));
            assert!(matches!(parse(&release(1), version).unwrap(), MqttPacket::PubRel5(_) | MqttPacket::PubRel3(_)));
            let unknown = parse(&release_unknown(version, 1), version).unwrap();
            assert!(matches!(unknown, MqttPacket::PubRel5(_) | MqttPacket::PubRel3(_)));
            assert!(matches!(parse(&PING, version).unwrap(), MqttPacket::PingReq5(_) | MqttPacket::PingReq3(_)));
            assert!(matches!(
                parse(&FAREWELL, version).unwrap(),
                MqttPacket::Disconnect5(_) | MqttPacket::Disconnect3(_)
            ));
        }
    }

    #[test]
    fn a_message_without_number_or_topic_is_malformed() {
        let publish = |topic: &str, id| Publish {
            topic: topic.into(),
            payload: vec![],
            qos: 1,
            retain: false,
            dup: false,
            id,
            properties: vec![],
        };
        let heard = |p: Publish| understand(p.into_packet(Version::V311));
        assert!(heard(publish("a", Some(1))).is_ok());
        assert!(heard(publish("a", Some(0))).is_err());
        assert!(heard(publish("", Some(1))).is_err());
        assert!(heard(publish("a/#", Some(1))).is_err());
        assert!(understand(parse(&PING, Version::V5).unwrap()).is_err());
    }

    #[test]
    fn a_rejection_is_told_in_words_and_in_the_servers_own() {
        assert_eq!(rejection(0x10, &[]), None);
        assert_eq!(rejection(0x97, &[]).unwrap().why, "quota exceeded (0x97)");
        let said = [Property::ReasonString("come\nback".to_owned() + &"!".repeat(500))];
        let words = rejection(0x87, &said).unwrap().why;
        assert!(words.starts_with("not authorized (0x87): comeback!!") && words.len() < 240, "{words}");
    }

    #[test]
    fn what_belongs_to_one_connection_stays_behind() {
        let properties = vec![
            Property::TopicAlias(1),
            Property::SubscriptionIdentifier(1),
            Property::ContentType("x".into()),
            Property::ResponseTopic("a/#".into()),
        ];
        assert_eq!(portable(properties.clone(), Version::V5), [Property::ContentType("x".into())]);
        assert!(portable(properties, Version::V311).is_empty());
    }
}
