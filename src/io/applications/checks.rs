//! What the standard asks of a packet and the codec lets through.
//!
//! Each check answers with MQTT 5's reason code (section 2.4) for the DISCONNECT that follows. Pure; holds no state.

use std::mem::{Discriminant, discriminant};

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;

use crate::io::packet::Publish;
use crate::topics;

pub const UNSPECIFIED: u8 = 0x80;
pub const MALFORMED: u8 = 0x81;
pub const PROTOCOL_ERROR: u8 = 0x82;
pub const IMPLEMENTATION: u8 = 0x83;
pub const UNSUPPORTED_VERSION: u8 = 0x84;
pub const ID_INVALID: u8 = 0x85;
pub const BAD_PASSWORD: u8 = 0x86;
pub const NOT_AUTHORIZED: u8 = 0x87;
pub const SHUTTING_DOWN: u8 = 0x8b;
pub const BAD_AUTHENTICATION_METHOD: u8 = 0x8c;
pub const KEEP_ALIVE_TIMEOUT: u8 = 0x8d;
pub const TAKEN_OVER: u8 = 0x8e;
pub const FILTER_INVALID: u8 = 0x8f;
pub const TOPIC_INVALID: u8 = 0x90;
pub const ID_NOT_FOUND: u8 = 0x92;
pub const RECEIVE_MAXIMUM_EXCEEDED: u8 = 0x93;
pub const TOPIC_ALIAS_INVALID: u8 = 0x94;
pub const TOO_LARGE: u8 = 0x95;
pub const QUOTA: u8 = 0x97;
pub const NO_SHARED_SUBSCRIPTIONS: u8 = 0x9e;

/// Most properties in one packet: more is not telemetry, and each costs many times its bytes.
const PROPERTIES_MAX: usize = 64;

/// Whether a client may send a packet that begins with this byte (MQTT 5 sections 2.1.2 and 2.1.3).
pub fn header(first: u8) -> Result<(), u8> {
    let flags = first & 0x0f;
    let ok = match first >> 4 {
        3 => flags & 0x06 != 0x06 && flags & 0x0e != 0x08,
        6 | 8 | 10 => flags == 0x02,
        4 | 5 | 7 | 12 | 14 => flags == 0,
        // CONNECT again, AUTH without a method, or what only a server says.
        _ => return Err(PROTOCOL_ERROR),
    };
    if ok { Ok(()) } else { Err(MALFORMED) }
}

/// A PUBLISH as a client may send it.
pub fn publish(publish: &Publish) -> Result<(), u8> {
    properties(&publish.properties, |property| {
        matches!(
            property,
            Property::PayloadFormatIndicator(0 | 1)
                | Property::MessageExpiryInterval(_)
                | Property::ContentType(_)
                | Property::ResponseTopic(_)
                | Property::CorrelationData(_)
                | Property::TopicAlias(_)
        )
    })?;
    if publish.properties.iter().any(|p| matches!(p, Property::TopicAlias(_))) {
        // We announce a Topic Alias Maximum of 0.
        return Err(TOPIC_ALIAS_INVALID);
    }
    if publish.properties.iter().any(|p| matches!(p, Property::ResponseTopic(t) if !topics::valid_topic(t))) {
        return Err(PROTOCOL_ERROR);
    }
    if !topics::valid_topic(&publish.topic) {
        return Err(TOPIC_INVALID);
    }
    if publish.id == Some(0) { Err(PROTOCOL_ERROR) } else { Ok(()) }
}

/// No property twice but user properties, none that `allowed` does not know, no null character in a text.
pub fn properties(list: &[Property], allowed: fn(&Property) -> bool) -> Result<(), u8> {
    if list.len() > PROPERTIES_MAX {
        return Err(QUOTA);
    }
    let mut seen: Vec<Discriminant<Property>> = Vec::new();
    for property in list {
        if !texts(property).iter().all(|text| !text.contains('\0')) {
            return Err(MALFORMED);
        }
        if matches!(property, Property::UserProperty(..)) {
            continue;
        }
        let kind = discriminant(property);
        if !allowed(property) || seen.contains(&kind) {
            return Err(PROTOCOL_ERROR);
        }
        seen.push(kind);
    }
    Ok(())
}

fn texts(property: &Property) -> [&str; 2] {
    match property {
        Property::UserProperty(name, value) => [name, value],
        Property::ContentType(text) | Property::ResponseTopic(text) | Property::ReasonString(text) => [text, ""],
        _ => ["", ""],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_client_says_after_connect_passes() {
        for first in [0x30, 0x31, 0x32, 0x3a, 0x34, 0x3d, 0x40, 0x50, 0x62, 0x70, 0x82, 0xa2, 0xc0, 0xe0] {
            assert_eq!(header(first), Ok(()), "{first:x}");
        }
        for first in [0x36, 0x38, 0x39, 0x41, 0x60, 0x80, 0xc1] {
            assert_eq!(header(first), Err(MALFORMED), "{first:x}");
        }
        for first in [0x00, 0x10, 0x20, 0x90, 0xb0, 0xd0, 0xf0] {
            assert_eq!(header(first), Err(PROTOCOL_ERROR), "{first:x}");
        }
    }

    #[test]
    fn a_property_twice_is_a_protocol_error_but_user_properties_may_repeat() {
        let user = || Property::UserProperty("a".into(), "b".into());
        assert_eq!(properties(&[user(), user()], |_| false), Ok(()));
        let twice = [Property::MessageExpiryInterval(1), Property::MessageExpiryInterval(2)];
        assert_eq!(properties(&twice, |_| true), Err(PROTOCOL_ERROR));
        assert_eq!(properties(&[Property::UserProperty("a\0".into(), String::new())], |_| true), Err(MALFORMED));
        assert_eq!(properties(&vec![user(); PROPERTIES_MAX + 1], |_| true), Err(QUOTA));
    }
}
