//! MQTT packets on a byte stream, both versions, for both faces.
//!
//! Wraps the codec library: cuts frames out of a buffer under a size limit before anything is parsed, and
//! gives PUBLISH one shape for both versions. A malformed packet is an error that ends its connection; nothing
//! here panics on any input. It holds no session state and never does I/O.

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv3::publishv3;
use flowsdk::mqtt_serde::mqttv5::common::properties::{Property, encode_properities_hdr, parse_properties_hdr};
use flowsdk::mqtt_serde::mqttv5::publishv5;
use flowsdk::mqtt_serde::parser::ParseOk;
use switchback_control::Version;

/// Largest packet taken from anyone, in bytes: with its topic and identity it still fits a record of the outbox
/// (`outbox::MAX_RECORD`), and it is twice what the large cloud brokers take.
pub const PACKET_MAX: usize = 448 * 1024;

/// Why a byte stream is not MQTT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// The fixed header names more than the limit.
    TooLarge,
    /// The packet breaks the specification.
    Syntax,
}

/// Length of the first frame in `buffer`, once its header is there; `None` while more bytes are needed to know.
pub fn frame_length(buffer: &[u8], limit: usize) -> Result<Option<usize>, Malformed> {
    let mut remaining = 0usize;
    for (index, byte) in buffer.iter().skip(1).take(4).enumerate() {
        remaining |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let length = 2 + index + remaining;
            return if length > limit { Err(Malformed::TooLarge) } else { Ok(Some(length)) };
        }
    }
    if buffer.len() >= 5 { Err(Malformed::Syntax) } else { Ok(None) }
}

/// Takes the first whole packet out of `buffer`; `None` when it is not all there yet.
pub fn take(buffer: &mut Vec<u8>, version: Version, limit: usize) -> Result<Option<MqttPacket>, Malformed> {
    let Some(length) = frame_length(buffer, limit)? else { return Ok(None) };
    let Some(frame) = buffer.get(..length) else { return Ok(None) };
    let packet = parse(frame, version)?;
    buffer.drain(..length);
    Ok(Some(packet))
}

/// Parses exactly one frame.
pub fn parse(frame: &[u8], version: Version) -> Result<MqttPacket, Malformed> {
    // The codec subtracts past zero where bytes follow the frame.
    if frame_length(frame, usize::MAX)? != Some(frame.len()) {
        return Err(Malformed::Syntax);
    }
    let number = match version {
        Version::V5 => 5,
        Version::V311 => 4,
    };
    match MqttPacket::from_bytes_with_version(frame, number) {
        Ok(ParseOk::Packet(packet, _)) => Ok(packet),
        Ok(_) | Err(_) => Err(Malformed::Syntax),
    }
}

/// The version a CONNECT frame asks for: 4 or 5 (or another number, which the caller refuses). `None` when
/// the frame is no CONNECT at all.
pub fn connect_version(frame: &[u8]) -> Option<u8> {
    if frame.first() != Some(&0x10) {
        return None;
    }
    let header = 1 + frame.iter().skip(1).take(4).position(|b| b & 0x80 == 0)? + 1;
    let name = frame.get(header..header + 2)?;
    let length = usize::from(u16::from_be_bytes([*name.first()?, *name.get(1)?]));
    frame.get(header + 2 + length).copied()
}

/// A PUBLISH of either version.
#[derive(Clone, Debug, PartialEq)]
pub struct Publish {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    pub dup: bool,
    /// Packet identifier; `None` with QoS 0.
    pub id: Option<u16>,
    /// MQTT 5 properties; empty with 3.1.1.
    pub properties: Vec<Property>,
}

impl Publish {
    /// Takes a PUBLISH out of a packet, or gives the packet back.
    pub fn from_packet(packet: MqttPacket) -> Result<Publish, Box<MqttPacket>> {
        match packet {
            MqttPacket::Publish5(p) => Ok(Publish {
                topic: p.topic_name,
                payload: p.payload,
                qos: p.qos,
                retain: p.retain,
                dup: p.dup,
                id: p.packet_id,
                properties: p.properties,
            }),
            MqttPacket::Publish3(p) => Ok(Publish {
                topic: p.topic_name,
                payload: p.payload,
                qos: p.qos,
                retain: p.retain,
                dup: p.dup,
                id: p.message_id,
                properties: Vec::new(),
            }),
            other => Err(Box::new(other)),
        }
    }

    /// The packet to send; properties are left out with 3.1.1.
    pub fn into_packet(self, version: Version) -> MqttPacket {
        match version {
            Version::V5 => MqttPacket::Publish5(publishv5::MqttPublish {
                topic_name: self.topic,
                packet_id: self.id,
                payload: self.payload,
                qos: self.qos,
                retain: self.retain,
                dup: self.dup,
                properties: self.properties,
            }),
            Version::V311 => MqttPacket::Publish3(publishv3::MqttPublish {
                dup: self.dup,
                qos: self.qos,
                retain: self.retain,
                topic_name: self.topic,
                message_id: self.id,
                payload: self.payload,
            }),
        }
    }
}

/// The answer to a PUBLISH of this quality: PUBACK or PUBREC. Both versions agree on the form that means success, here and
/// below.
pub fn taken(qos: u8, id: u16) -> [u8; 4] {
    short(if qos == 2 { 0x50 } else { 0x40 }, id)
}

/// PUBREL.
pub fn release(id: u16) -> [u8; 4] {
    short(0x62, id)
}

/// PUBCOMP; success even where the number is unknown, as a repeated PUBREL must end somewhere.
pub fn complete(id: u16) -> [u8; 4] {
    short(0x70, id)
}

/// PINGREQ.
pub const PING: [u8; 2] = [0xc0, 0];

/// DISCONNECT without the will; a session that may stay does.
pub const FAREWELL: [u8; 2] = [0xe0, 0];

/// A packet of a first byte and an identifier.
fn short(first: u8, id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [first, 2, high, low]
}

/// Takes off the message expiry interval so many seconds that are over of it (MQTT 5.0 section 3.3.2.3.3); false when
/// nothing is left.
pub fn lower_expiry(properties: &mut [Property], age: u32) -> bool {
    let interval = properties.iter_mut().find_map(|property| match property {
        Property::MessageExpiryInterval(seconds) => Some(seconds),
        _ => None,
    });
    match interval {
        Some(seconds) if age > 0 && *seconds <= age => false,
        Some(seconds) => {
            *seconds -= age;
            true
        }
        None => true,
    }
}

/// Properties as the outbox keeps them: the bytes of the protocol. Empty for none.
pub fn properties_to_bytes(properties: &Vec<Property>) -> Vec<u8> {
    if properties.is_empty() { Vec::new() } else { encode_properities_hdr(properties).unwrap_or_default() }
}

/// The reverse of `properties_to_bytes`; unreadable bytes give no properties.
pub fn properties_from_bytes(bytes: &[u8]) -> Vec<Property> {
    if bytes.is_empty() { Vec::new() } else { parse_properties_hdr(bytes).map(|(p, _)| p).unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_longer_than_the_limit_is_refused_before_it_is_read() {
        assert_eq!(frame_length(&[0x30, 0xff, 0xff, 0xff, 0x7f], PACKET_MAX), Err(Malformed::TooLarge));
    }

    #[test]
    fn a_length_of_five_bytes_is_malformed() {
        assert_eq!(frame_length(&[0x30, 0x80, 0x80, 0x80, 0x80], PACKET_MAX), Err(Malformed::Syntax));
    }

    #[test]
    fn bytes_after_a_frame_are_no_part_of_it() {
        // The topic's length reaches past the frame into what follows.
        let bytes = [0x30, 3, 0, 2, b't', 0, 0, 0];
        assert_eq!(parse(&bytes, Version::V5), Err(Malformed::Syntax));
        assert_eq!(parse(&[], Version::V5), Err(Malformed::Syntax));
    }

    #[test]
    fn a_publish_survives_both_versions() {
        for version in [Version::V5, Version::V311] {
            let publish = Publish {
                topic: "a/b".into(),
                payload: b"x".to_vec(),
                qos: 1,
                retain: true,
                dup: false,
                id: Some(7),
                properties: Vec::new(),
            };
            let mut bytes = publish.clone().into_packet(version).to_bytes().unwrap();
            let packet = take(&mut bytes, version, PACKET_MAX).unwrap().unwrap();
            assert!(bytes.is_empty());
            assert_eq!(Publish::from_packet(packet).ok(), Some(publish));
        }
    }

    #[test]
    fn no_prefix_of_a_packet_is_taken_for_a_packet() {
        let publish = Publish {
            topic: "t".into(),
            payload: vec![1; 300],
            qos: 0,
            retain: false,
            dup: false,
            id: None,
            properties: vec![],
        };
        let bytes = publish.into_packet(Version::V5).to_bytes().unwrap();
        for end in 0..bytes.len() {
            assert!(matches!(take(&mut bytes[..end].to_vec(), Version::V5, PACKET_MAX), Ok(None)), "{end}");
        }
    }
}
