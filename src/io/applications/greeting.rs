//! CONNECT and CONNACK: who the client is, what it asks for, and what it is told.
//!
//! Reads CONNECT itself, because the codec calls an empty will or password malformed, which both standards allow,
//! and cannot say why it refuses. Pure: bytes in, a greeting or a refusal out. Passwords are held for as long
//! as a hash takes, and never shown.

use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv3::connackv3;
use flowsdk::mqtt_serde::mqttv5::common::properties::{Property, parse_properties_hdr};
use flowsdk::mqtt_serde::mqttv5::connackv5;
use switchback_control::Version;

use super::access::Credentials;
use super::{RECEIVE_MAX, checks};
use crate::io::packet::{PACKET_MAX, Publish};
use crate::topics;

/// What a CONNECT asks for.
#[derive(Debug)]
pub struct Greeting {
    pub version: Version,
    /// Empty where the client wants one assigned.
    pub id: String,
    pub clean: bool,
    /// Zero for none.
    pub keep_alive: Duration,
    /// How long the session outlives its connection; `None` for ever.
    pub expiry: Option<Duration>,
    /// Most QoS 1 and 2 messages the client takes at a time.
    pub receive_max: usize,
    /// Largest packet the client takes, in bytes.
    pub packet_max: usize,
    /// It takes reason strings (MQTT 5 section 3.1.2.11.7).
    pub wants_words: bool,
    pub will: Option<(Publish, Duration)>,
    pub credentials: Credentials,
}

/// Why there will be no session. `reply` is the CONNACK to send first, if any.
#[derive(Debug, PartialEq)]
pub struct Rejected {
    pub reply: Vec<u8>,
}

/// Reads a whole CONNECT frame.
pub fn read(frame: &[u8]) -> Result<Greeting, Rejected> {
    let mut bytes = Bytes { left: frame };
    parse(&mut bytes).map_err(|refusal| match refusal {
        Refused::Silently => Rejected { reply: Vec::new() },
        Refused::With(version, code) => Rejected { reply: refusal_packet(version, code) },
    })
}

/// The CONNACK that says no. `code` is MQTT 5's reason code; 3.1.1 gets its nearest return code.
pub fn refusal_packet(version: Version, code: u8) -> Vec<u8> {
    let packet = match version {
        Version::V5 => MqttPacket::ConnAck5(connackv5::MqttConnAck::new(false, code, None)),
        Version::V311 => {
            let code = match code {
                checks::UNSUPPORTED_VERSION => 1,
                checks::ID_INVALID => 2,
                checks::QUOTA => 3,
                checks::BAD_PASSWORD => 4,
                checks::NOT_AUTHORIZED | checks::TOPIC_INVALID => 5,
                // 3.1.1 has no words for the rest: the connection is closed.
                _ => return Vec::new(),
            };
            MqttPacket::ConnAck3(connackv3::MqttConnAck::new(false, code))
        }
    };
    packet.to_bytes().unwrap_or_default()
}

/// The CONNACK that says yes, and what we can do. `assigned` is the identifier we chose.
pub fn welcome(version: Version, present: bool, assigned: Option<&str>) -> Vec<u8> {
    let packet = match version {
        Version::V5 => {
            let mut properties = vec![
                Property::ReceiveMaximum(RECEIVE_MAX),
                Property::MaximumPacketSize(PACKET_MAX as u32),
                // Maximum QoS is only sent when it is not 2.
                Property::RetainAvailable(1),
                Property::WildcardSubscriptionAvailable(1),
                Property::SubscriptionIdentifierAvailable(1),
                Property::SharedSubscriptionAvailable(0),
                Property::TopicAliasMaximum(0),
            ];
            properties.extend(assigned.map(|id| Property::AssignedClientIdentifier(id.to_owned())));
            MqttPacket::ConnAck5(connackv5::MqttConnAck::new(present, 0, Some(properties)))
        }
        Version::V311 => MqttPacket::ConnAck3(connackv3::MqttConnAck::new(present, 0)),
    };
    packet.to_bytes().unwrap_or_default()
}

enum Refused {
    Silently,
    With(Version, u8),
}

/// Sections 3.1 of both standards, in the order of the bytes.
fn parse(bytes: &mut Bytes) -> Result<Greeting, Refused> {
    let (version, flags, keep_alive) = variable_header(bytes)?;
    let fail = |code| Refused::With(version, code);
    let mut greeting = Greeting {
        version,
        id: String::new(),
        clean: flags & 0x02 != 0,
        keep_alive: Duration::from_secs(u64::from(keep_alive)),
        expiry: Some(Duration::ZERO),
        receive_max: usize::from(u16::MAX),
        packet_max: usize::MAX,
        wants_words: true,
        will: None,
        credentials: Credentials::default(),
    };
    match version {
        Version::V5 => {
            let properties = bytes.properties().ok_or(fail(checks::MALFORMED))?;
            apply(&mut greeting, &properties).map_err(fail)?;
        }
        Version::V311 if !greeting.clean => greeting.expiry = None,
        Version::V311 => {}
    }
    greeting.id = bytes.text().ok_or(fail(checks::MALFORMED))?;
    if version == Version::V311 && greeting.id.is_empty() && !greeting.clean {
        return Err(fail(checks::ID_INVALID));
    }
    if flags & 0x04 != 0 {
        let will = will(bytes, version, flags).map_err(fail)?;
        greeting.will = Some(will);
    }
    if flags & 0x80 != 0 {
        greeting.credentials.user = Some(bytes.text().ok_or(fail(checks::MALFORMED))?);
    }
    if flags & 0x40 != 0 {
        greeting.credentials.password = bytes.binary().ok_or(fail(checks::MALFORMED))?.to_vec();
    }
    if bytes.left.is_empty() { Ok(greeting) } else { Err(fail(checks::MALFORMED)) }
}

fn variable_header(bytes: &mut Bytes) -> Result<(Version, u8, u16), Refused> {
    bytes.fixed_header().ok_or(Refused::Silently)?;
    let name = bytes.text().ok_or(Refused::Silently)?;
    let level = bytes.byte().ok_or(Refused::Silently)?;
    let version = match (name.as_str(), level) {
        ("MQTT", 5) => Version::V5,
        ("MQTT", 4) => Version::V311,
        // Older clients read 3.1.1's answer, newer ones are told in the newest words we know.
        ("MQTT", 6..) => return Err(Refused::With(Version::V5, checks::UNSUPPORTED_VERSION)),
        ("MQTT" | "MQIsdp", _) => return Err(Refused::With(Version::V311, checks::UNSUPPORTED_VERSION)),
        _ => return Err(Refused::Silently),
    };
    let malformed = || Refused::With(version, checks::MALFORMED);
    let flags = bytes.byte().ok_or_else(malformed)?;
    let keep_alive = bytes.number().ok_or_else(malformed)?;
    let no_will_but_its_flags = flags & 0x04 == 0 && flags & 0x38 != 0;
    let password_alone = version == Version::V311 && flags & 0xc0 == 0x40;
    if flags & 0x01 != 0 || flags & 0x18 == 0x18 || no_will_but_its_flags || password_alone {
        return Err(malformed());
    }
    Ok((version, flags, keep_alive))
}

fn apply(greeting: &mut Greeting, properties: &[Property]) -> Result<(), u8> {
    checks::properties(properties, |property| {
        matches!(
            property,
            Property::SessionExpiryInterval(_)
                | Property::ReceiveMaximum(1..)
                | Property::MaximumPacketSize(1..)
                | Property::TopicAliasMaximum(_)
                | Property::RequestResponseInformation(0 | 1)
                | Property::RequestProblemInformation(0 | 1)
                | Property::AuthenticationMethod(_)
                | Property::AuthenticationData(_)
        )
    })?;
    for property in properties {
        match property {
            Property::SessionExpiryInterval(seconds) => greeting.expiry = expiry(*seconds),
            Property::ReceiveMaximum(number) => greeting.receive_max = usize::from(*number),
            Property::MaximumPacketSize(bytes) => greeting.packet_max = *bytes as usize,
            Property::RequestProblemInformation(wanted) => greeting.wants_words = *wanted != 0,
            Property::AuthenticationMethod(_) => return Err(checks::BAD_AUTHENTICATION_METHOD),
            _ => {}
        }
    }
    Ok(())
}

/// MQTT 5's session expiry interval: the largest number means never.
pub fn expiry(seconds: u32) -> Option<Duration> {
    (seconds != u32::MAX).then(|| Duration::from_secs(u64::from(seconds)))
}

fn will(bytes: &mut Bytes, version: Version, flags: u8) -> Result<(Publish, Duration), u8> {
    let mut properties = match version {
        Version::V5 => bytes.properties().ok_or(checks::MALFORMED)?,
        Version::V311 => Vec::new(),
    };
    let mut delay = Duration::ZERO;
    checks::properties(&properties, |property| !matches!(property, Property::SubscriptionIdentifier(_)))?;
    properties.retain(|property| match property {
        Property::WillDelayInterval(seconds) => {
            delay = Duration::from_secs(u64::from(*seconds));
            false
        }
        _ => true,
    });
    let publish = Publish {
        topic: bytes.text().ok_or(checks::MALFORMED)?,
        payload: bytes.binary().ok_or(checks::MALFORMED)?.to_vec(),
        qos: (flags >> 3) & 0x03,
        retain: flags & 0x20 != 0,
        dup: false,
        id: None,
        properties,
    };
    checks::publish(&publish)?;
    if publish.topic.starts_with('$') { Err(checks::TOPIC_INVALID) } else { Ok((publish, delay)) }
}

/// What is left of the frame; `None` when it ends too early. `topics::TOPIC_MAX` bounds every text by its length field.
struct Bytes<'a> {
    left: &'a [u8],
}

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, left) = self.left.split_at_checked(count)?;
        self.left = left;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn number(&mut self) -> Option<u16> {
        Some(u16::from_be_bytes(self.take(2)?.try_into().ok()?))
    }

    fn binary(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::from(length))
    }

    /// UTF-8 without the null character (section 1.5.4).
    fn text(&mut self) -> Option<String> {
        let text = std::str::from_utf8(self.binary()?).ok()?;
        debug_assert!(text.len() <= topics::TOPIC_MAX);
        (!text.contains('\0')).then(|| text.to_owned())
    }

    fn properties(&mut self) -> Option<Vec<Property>> {
        let (properties, used) = parse_properties_hdr(self.left).ok()?;
        self.take(used)?;
        Some(properties)
    }

    fn fixed_header(&mut self) -> Option<()> {
        if self.byte()? != 0x10 {
            return None;
        }
        let length = self.left.iter().position(|byte| byte & 0x80 == 0)?;
        self.take(length + 1).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn connect(name: &str, level: u8, flags: u8, rest: &[u8]) -> Vec<u8> {
        let mut body = vec![0, name.len() as u8];
        body.extend(name.as_bytes());
        body.extend([level, flags, 0, 30]);
        body.extend(rest);
        let mut frame = vec![0x10, body.len() as u8];
        frame.extend(body);
        frame
    }

    #[test]
    fn both_versions_are_read() {
        let old = read(&connect("MQTT", 4, 0x02, &[0, 1, b'a'])).unwrap();
        assert_eq!((old.version, old.id.as_str(), old.clean), (Version::V311, "a", true));
        assert_eq!((old.keep_alive, old.expiry), (Duration::from_secs(30), Some(Duration::ZERO)));
        assert_eq!(read(&connect("MQTT", 4, 0x00, &[0, 1, b'a'])).unwrap().expiry, None);
        let new = read(&connect("MQTT", 5, 0x02, &[5, 0x11, 0, 0, 0, 9, 0, 0])).unwrap();
        assert_eq!((new.version, new.id.as_str(), new.expiry), (Version::V5, "", Some(Duration::from_secs(9))));
    }

    #[test]
    fn an_empty_will_is_allowed() {
        let will = read(&connect("MQTT", 5, 0x26, &[0, 0, 1, b'a', 0, 0, 1, b't', 0, 0])).unwrap().will.unwrap();
        assert_eq!((will.0.topic.as_str(), will.0.payload.len(), will.0.retain), ("t", 0, true));
    }

    #[test]
    fn every_refusal_has_its_code() {
        let reply = |frame: Vec<u8>| read(&frame).unwrap_err().reply;
        assert_eq!(reply(connect("MQIsdp", 3, 2, &[0, 1, b'a'])), [0x20, 2, 0, 1]);
        assert_eq!(reply(connect("MQTT", 3, 2, &[0, 1, b'a'])), [0x20, 2, 0, 1]);
        assert_eq!(reply(connect("MQTT", 6, 2, &[0, 1, b'a'])), [0x20, 3, 0, 0x84, 0]);
        assert_eq!(reply(connect("MQTT", 4, 0, &[0, 0])), [0x20, 2, 0, 2]);
        assert_eq!(reply(connect("HTTP", 4, 2, &[0, 1, b'a'])), Vec::<u8>::new());
        assert_eq!(reply(connect("MQTT", 4, 3, &[0, 1, b'a'])), Vec::<u8>::new());
        assert_eq!(reply(connect("MQTT", 5, 3, &[0, 0, 1, b'a'])), [0x20, 3, 0, 0x81, 0]);
        assert_eq!(reply(connect("MQTT", 5, 2, &[3, 0x21, 0, 0, 0, 1, b'a'])), [0x20, 3, 0, 0x82, 0]);
        assert_eq!(reply(connect("MQTT", 5, 2, &[4, 0x15, 0, 1, b'x', 0, 1, b'a'])), [0x20, 3, 0, 0x8c, 0]);
        assert_eq!(reply(connect("MQTT", 4, 0x06, &[0, 1, b'a', 0, 2, b'$', b'S', 0, 0])), [0x20, 2, 0, 5]);
    }

    #[test]
    fn no_cut_or_changed_greeting_panics() {
        let frame = connect("MQTT", 5, 0xe6, &[0, 0, 1, b'a', 0, 0, 1, b't', 0, 0, 0, 1, b'u', 0, 1, b'p']);
        assert!(read(&frame).is_ok());
        for end in 0..frame.len() {
            assert!(read(&frame[..end]).is_err());
        }
        for index in 0..frame.len() {
            for byte in 0..=255 {
                let mut changed = frame.clone();
                changed[index] = byte;
                let _ = read(&changed);
            }
        }
    }
}
