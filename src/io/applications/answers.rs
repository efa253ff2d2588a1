//! What a publisher is told of its message.
//!
//! MQTT 5 has reason codes (section 3.4.2.1), and a reason string for people. 3.1.1 has neither: a PUBACK there always
//! means yes, and the only no is to close the connection, after which the client sends the message again (3.1.1 section
//! 3.3.5).
//!
//! | what became of it | MQTT 5 | 3.1.1 |
//! |---|---|---|
//! | accepted | 0x00 | PUBACK |
//! | the outbox is full | 0x97 | closed: it is sent again |
//! | its class is full and drops | 0x97 | PUBACK: that it may be dropped is the rule of its class |
//! | no session, and its rule asks for one | 0x83 | closed |
//! | larger than a record | 0x83 | closed |
//! | accepted, and given up before the cloud had it | 0x80 | PUBACK: by rule, or set aside; again would be the same |
//! | no rule of the access list allows it | 0x87 | closed |
//!
//! Whoever waits for the cloud, and connects again meanwhile, sends its QoS 1 messages again, as to any server: they go up
//! twice. With QoS 2 in a session that lasts they do not.
//!
//! Pure: writes bytes, and neither counts nor logs.

use switchback_control::Version;

use super::checks;
use super::upward::Verdict;
use crate::corridor::Refusal;

pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x62;
pub const PUBCOMP: u8 = 0x70;

/// What to do about a message that has come to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    Yes,
    /// MQTT 5's reason code, and why in words.
    No(u8, &'static str),
    /// It cannot be said; the reason is for our log.
    Close(u8),
}

/// See the table at the file's head.
pub fn answer(verdict: Verdict, version: Version) -> Answer {
    let (reason, why) = match verdict {
        Verdict::Accepted => return Answer::Yes,
        Verdict::Refused(Refusal::Stopping) => return Answer::Close(checks::SHUTTING_DOWN),
        Verdict::Refused(Refusal::Full) => (checks::QUOTA, "the outbox is full, or its disk fails"),
        Verdict::Refused(Refusal::Dropped) => (checks::QUOTA, "dropped by the rule of its class, which is full"),
        Verdict::Refused(Refusal::NotConnected) => (checks::IMPLEMENTATION, "the cloud is away"),
        Verdict::Refused(Refusal::TooLarge) => (checks::IMPLEMENTATION, "larger than a message may be"),
        Verdict::GivenUp => (checks::UNSPECIFIED, "given up: too old, dropped by its class, or refused by the cloud"),
        Verdict::Invalid(reason) => (reason, ""),
    };
    match (version, verdict) {
        (Version::V5, _) => Answer::No(reason, why),
        (Version::V311, Verdict::Refused(Refusal::Dropped) | Verdict::GivenUp) => Answer::Yes,
        (Version::V311, _) => Answer::Close(reason),
    }
}

/// PUBACK, PUBREC, PUBREL or PUBCOMP. 3.1.1 has no reason codes; with MQTT 5 success leaves it out, and the length says
/// that there are no properties (section 3.4.2).
pub fn acknowledgement(version: Version, kind: u8, id: u16, reason: u8) -> Vec<u8> {
    let [high, low] = id.to_be_bytes();
    match (version, reason) {
        (Version::V5, 1..) => vec![kind, 3, high, low, reason],
        (Version::V5, 0) | (Version::V311, _) => vec![kind, 2, high, low],
    }
}

/// The same with a reason string (section 3.4.2.2.2), of less than a hundred bytes.
pub fn refusal(kind: u8, id: u16, reason: u8, why: &str) -> Vec<u8> {
    const REASON_STRING: u8 = 0x1f;
    debug_assert!(why.len() < 100);
    let (Ok(length), [high, low]) = (u8::try_from(why.len()), id.to_be_bytes()) else { return Vec::new() };
    let mut packet = vec![kind, length + 7, high, low, reason, length + 3, REASON_STRING, 0, length];
    packet.extend_from_slice(why.as_bytes());
    packet
}

#[cfg(test)]
mod tests {
    use flowsdk::mqtt_serde::control_packet::MqttPacket;
    use flowsdk::mqtt_serde::mqttv5::common::properties::Property;

    use super::*;
    use crate::io::packet;

    #[test]
    fn a_no_with_words_is_what_the_standard_says() {
        for refused in [Refusal::Full, Refusal::Dropped, Refusal::NotConnected, Refusal::TooLarge] {
            let Answer::No(reason, why) = answer(Verdict::Refused(refused), Version::V5) else { panic!("{refused:?}") };
            let MqttPacket::PubRec5(packet) =
                packet::parse(&refusal(PUBREC, 0x1234, reason, why), Version::V5).unwrap()
            else {
                panic!("no PUBREC")
            };
            assert_eq!((packet.packet_id, packet.reason_code), (0x1234, reason));
            assert_eq!(packet.properties, [Property::ReasonString(why.into())]);
        }
    }

    #[test]
    fn the_older_version_hears_yes_where_again_would_be_the_same() {
        for (verdict, heard) in [
            (Verdict::Accepted, Answer::Yes),
            (Verdict::Refused(Refusal::Full), Answer::Close(0x97)),
            (Verdict::Refused(Refusal::Dropped), Answer::Yes),
            (Verdict::Refused(Refusal::NotConnected), Answer::Close(0x83)),
            (Verdict::Refused(Refusal::TooLarge), Answer::Close(0x83)),
            (Verdict::GivenUp, Answer::Yes),
            (Verdict::Invalid(0x87), Answer::Close(0x87)),
        ] {
            assert_eq!(answer(verdict, Version::V311), heard, "{verdict:?}");
        }
        assert_eq!(answer(Verdict::Refused(Refusal::Stopping), Version::V5), Answer::Close(0x8b));
    }
}
