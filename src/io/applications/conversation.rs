//! What each packet of a client does.
//!
//! One method per packet: changes the shared state, writes the answer into the client's output, or ends the
//! connection with a reason. Never waits. A QoS 1 or 2 message is answered by `answer` alone, once its offer is
//! accepted or refused.

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv3::{subackv3, unsubackv3};
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use flowsdk::mqtt_serde::mqttv5::{disconnectv5, subackv5, subscribev5, unsubackv5};
use std::sync::Arc;
use switchback_control::Version;
use tokio::time::Instant;

use super::access::Deed;
use super::connection::{Client, End};
use super::message::{Message, way_up};
use super::router::Departure;
use super::session::{Reception, Session, Subscription, pubrel};
use super::upward::{Ack, Task, Verdict};
use super::{Offers, RECEIVE_MAX, checks, greeting};
use crate::corridor::Refusal;
use crate::io::packet::{self, Publish};
use crate::sorting::Way;

pub const PUBACK: u8 = 0x40;
pub const PUBREC: u8 = 0x50;
pub const PUBREL: u8 = 0x62;
pub const PUBCOMP: u8 = 0x70;

/// MQTT 5's "no subscription existed" (section 3.11.3).
const NO_SUBSCRIPTION: u8 = 0x11;

/// Appends PUBACK, PUBREC, PUBREL or PUBCOMP. 3.1.1 has no reason codes; with MQTT 5 success leaves it out, and the
/// length says that there are no properties (section 3.4.2).
pub fn acknowledge(output: &mut Vec<u8>, version: Version, kind: u8, id: u16, reason: u8) {
    let [high, low] = id.to_be_bytes();
    match (version, reason) {
        (Version::V5, 1..) => output.extend([kind, 3, high, low, reason]),
        (Version::V5, 0) | (Version::V311, _) => output.extend([kind, 2, high, low]),
    }
}

impl<O: Offers> Client<O> {
    /// One whole packet whose first byte has been checked.
    pub(super) fn take_packet(&mut self, frame: &[u8]) -> Result<(), End> {
        let packet = packet::parse(frame, self.version).map_err(|_| End::Closed(checks::MALFORMED))?;
        let packet = match Publish::from_packet(packet) {
            Ok(publish) => return self.take_publish(publish),
            Err(packet) => *packet,
        };
        match packet {
            MqttPacket::PubAck5(p) => self.with_session(|session| session.complete(p.packet_id)),
            MqttPacket::PubAck3(p) => self.with_session(|session| session.complete(p.message_id)),
            MqttPacket::PubRec5(p) if p.reason_code >= 0x80 => self.with_session(|s| s.complete(p.packet_id)),
            MqttPacket::PubRec5(p) => self.take_pubrec(p.packet_id),
            MqttPacket::PubRec3(p) => self.take_pubrec(p.message_id),
            MqttPacket::PubRel5(p) => self.take_pubrel(p.packet_id),
            MqttPacket::PubRel3(p) => self.take_pubrel(p.message_id),
            MqttPacket::PubComp5(p) => self.with_session(|session| session.complete(p.packet_id)),
            MqttPacket::PubComp3(p) => self.with_session(|session| session.complete(p.message_id)),
            MqttPacket::Subscribe5(p) => {
                let wanted = wanted(p.subscriptions, &p.properties).map_err(End::Closed)?;
                self.subscribe(p.packet_id, wanted)
            }
            MqttPacket::Subscribe3(p) => {
                let wanted = p.subscriptions.into_iter();
                let wanted =
                    wanted.map(|s| (s.topic_filter, Subscription { qos: s.qos, ..Subscription::default() }, 0));
                self.subscribe(p.message_id, wanted.collect())
            }
            MqttPacket::Unsubscribe5(p) => self.unsubscribe(p.packet_id, &p.topic_filters),
            MqttPacket::Unsubscribe3(p) => self.unsubscribe(p.message_id, &p.topic_filters),
            MqttPacket::PingReq5(_) | MqttPacket::PingReq3(_) => {
                self.output.extend([0xd0, 0]);
                Ok(())
            }
            MqttPacket::Disconnect5(p) => Err(self.goodbye(&p)),
            MqttPacket::Disconnect3(_) => Err(End::Disconnected(Departure { keep_will: false, expiry: None })),
            _ => Err(End::Closed(checks::PROTOCOL_ERROR)),
        }
    }

    fn take_publish(&mut self, publish: Publish) -> Result<(), End> {
        checks::publish(&publish).map_err(End::Closed)?;
        let ack = match (publish.qos, publish.id) {
            (1, Some(id)) => Ack::Puback(id),
            (2, Some(id)) => Ack::Pubrec(id),
            _ => Ack::None,
        };
        let mut for_locals = true;
        if let Ack::Pubrec(id) = ack {
            self.open_receptions.insert(id);
            match self.with_session(|session| session.received.insert(id, Reception::Waiting))? {
                None => {}
                Some(Reception::Accepted) => {
                    self.upward.push(ack, Task::Answer(Verdict::Accepted));
                    return self.within_quota();
                }
                // An earlier connection offered it; PUBREC comes when that is settled.
                Some(Reception::Waiting) => return self.within_quota(),
                Some(Reception::Refused) => for_locals = false,
            }
        }
        let now = Instant::now();
        let message = Arc::new(Message::new(publish, Some(Arc::clone(&self.id)), now));
        let task = match way_up(&self.doors.config, &message) {
            _ if !self.may(Deed::Publish, &message.topic) => {
                for_locals = false;
                Task::Answer(Verdict::Invalid(checks::NOT_AUTHORIZED))
            }
            Way::Up { draft, .. } => Task::Offer(draft),
            Way::Local => Task::Answer(Verdict::Accepted),
            Way::Impossible => {
                for_locals = false;
                Task::Answer(Verdict::Invalid(checks::TOPIC_INVALID))
            }
        };
        let mut kept = None;
        if for_locals {
            kept = self.doors.shared.with(|state| state.publish_local(&message, now));
        }
        self.upward.push_kept(ack, task, kept);
        self.within_quota()
    }

    /// The rules may have changed since its session subscribed.
    pub(super) fn drop_what_rules_forbid(&self) {
        let filters = self.with_session(|session| session.subscriptions.keys().cloned().collect::<Vec<_>>());
        for filter in filters.unwrap_or_default() {
            if !self.may(Deed::Subscribe, &filter) {
                self.doors.shared.with(|state| state.unsubscribe(&self.id, &filter, Instant::now()));
            }
        }
    }

    /// Whether a rule allows it; counted and said if not.
    fn may(&self, deed: Deed, topic: &str) -> bool {
        let allowed = self.doors.access.allows(self.user.as_deref(), &self.id, deed, topic);
        if !allowed {
            let denied = self.doors.shared.with(|state| {
                state.counts.denied += 1;
                state.counts.denied
            });
            if denied == 1 {
                log::warn!("local MQTT client {:?} may not use {topic:?} (said once; others are counted)", self.id);
            }
        }
        allowed
    }

    /// With MQTT 5 the client knows our Receive Maximum (section 3.3.4).
    fn within_quota(&self) -> Result<(), End> {
        let open = self.upward.pubacks_owed() + self.open_receptions.len();
        match self.version {
            Version::V5 if open > usize::from(RECEIVE_MAX) => Err(End::Closed(checks::RECEIVE_MAXIMUM_EXCEEDED)),
            Version::V5 | Version::V311 => Ok(()),
        }
    }

    /// Tells the client what became of its message.
    pub(super) fn answer(&mut self, (ack, verdict): (Ack, Verdict)) -> Result<(), End> {
        if verdict == Verdict::Refused(Refusal::Stopping) {
            // Unanswered: the client sends it again, to whoever comes after us.
            self.answer_late((ack, verdict));
            return Err(End::Closed(checks::SHUTTING_DOWN));
        }
        let reason = match verdict {
            Verdict::Accepted => 0,
            Verdict::Refused(Refusal::Full | Refusal::Dropped | Refusal::NotConnected | Refusal::Stopping) => {
                checks::QUOTA
            }
            Verdict::Refused(Refusal::TooLarge) => checks::IMPLEMENTATION,
            Verdict::Invalid(reason) => reason,
        };
        let tellable = reason == 0 || self.version == Version::V5;
        match ack {
            Ack::None => self.answer_late((ack, verdict)),
            Ack::Puback(id) if tellable => acknowledge(&mut self.output, self.version, PUBACK, id, reason),
            Ack::Pubrec(id) if tellable => {
                if !self.settle_own(id, reason == 0) {
                    self.answer_late((ack, verdict));
                    return Err(End::Closed(checks::TAKEN_OVER));
                }
                acknowledge(&mut self.output, self.version, PUBREC, id, reason);
            }
            Ack::Puback(_) | Ack::Pubrec(_) => {
                self.answer_late((ack, verdict));
                return Err(End::Closed(reason));
            }
        }
        Ok(())
    }

    /// The same when the client cannot be told: its session keeps what matters.
    pub(super) fn answer_late(&mut self, (ack, verdict): (Ack, Verdict)) {
        let accepted = verdict == Verdict::Accepted;
        self.doors.shared.with(|state| match ack {
            Ack::None => state.counts.refused += u64::from(!accepted),
            // It was not acknowledged, so the client sends it again.
            Ack::Puback(_) => {}
            Ack::Pubrec(id) => state.settle(&self.id, id, accepted),
        });
    }

    /// Notes a QoS 2 message as accepted, or forgets it. False where another connection has the session.
    fn settle_own(&mut self, id: u16, accepted: bool) -> bool {
        if !accepted {
            self.open_receptions.remove(&id);
        }
        let noted = self.with_session(|session| {
            if accepted {
                session.received.insert(id, Reception::Accepted);
            } else {
                session.received.remove(&id);
            }
        });
        noted.is_ok()
    }

    /// The will is offered like any other message of this client, after all it sent.
    pub(super) fn offer_will(&mut self, will: &Message) {
        if let Way::Up { draft, .. } = way_up(&self.doors.config, will) {
            self.upward.push(Ack::None, Task::Offer(draft));
        }
    }

    fn take_pubrec(&mut self, id: u16) -> Result<(), End> {
        self.with_session(|_| ())?;
        match self.doors.shared.with(|state| state.pubrec(&self.id, id, Instant::now())) {
            Some(0) => self.output.extend(pubrel(id)),
            // If it went out first and power was cut, the message would be sent again as a new one.
            Some(kept) => self.late.push_back((kept, pubrel(id))),
            None => acknowledge(&mut self.output, self.version, PUBREL, id, checks::ID_NOT_FOUND),
        }
        Ok(())
    }

    fn take_pubrel(&mut self, id: u16) -> Result<(), End> {
        let reason = match self.with_session(|session| session.received.get(&id).copied())? {
            Some(Reception::Accepted) => 0,
            None => checks::ID_NOT_FOUND,
            Some(Reception::Waiting | Reception::Refused) => return Err(End::Closed(checks::PROTOCOL_ERROR)),
        };
        self.with_session(|session| session.received.remove(&id))?;
        self.open_receptions.remove(&id);
        acknowledge(&mut self.output, self.version, PUBCOMP, id, reason);
        Ok(())
    }

    fn subscribe(&mut self, packet_id: u16, wanted: Vec<(String, Subscription, u8)>) -> Result<(), End> {
        if packet_id == 0 || wanted.is_empty() {
            return Err(End::Closed(checks::PROTOCOL_ERROR));
        }
        self.with_session(|_| ())?;
        let now = Instant::now();
        let allowed: Vec<bool> = wanted.iter().map(|(filter, ..)| self.may(Deed::Subscribe, filter)).collect();
        let reason_codes: Vec<u8> = self.doors.shared.with(|state| {
            let codes = wanted.iter().zip(&allowed).map(|((filter, subscription, retain_handling), allowed)| {
                if !allowed {
                    return checks::NOT_AUTHORIZED;
                }
                state.subscribe(&self.id, filter, *subscription, *retain_handling, now)
            });
            codes.collect()
        });
        let packet = match self.version {
            Version::V5 => MqttPacket::SubAck5(subackv5::MqttSubAck::new(packet_id, reason_codes, Vec::new())),
            Version::V311 => {
                let return_codes = reason_codes.into_iter().map(|code| code.min(0x80)).collect();
                MqttPacket::SubAck3(subackv3::MqttSubAck::new(packet_id, return_codes))
            }
        };
        self.send_kept(&packet)
    }

    fn unsubscribe(&mut self, packet_id: u16, filters: &[String]) -> Result<(), End> {
        if packet_id == 0 || filters.is_empty() {
            return Err(End::Closed(checks::PROTOCOL_ERROR));
        }
        self.with_session(|_| ())?;
        let now = Instant::now();
        let reason_codes = self.doors.shared.with(|state| {
            let gone = filters.iter().map(|filter| state.unsubscribe(&self.id, filter, now));
            gone.map(|gone| if gone { 0 } else { NO_SUBSCRIPTION }).collect()
        });
        let packet = match self.version {
            Version::V5 => MqttPacket::UnsubAck5(unsubackv5::MqttUnsubAck::new(packet_id, reason_codes, Vec::new())),
            Version::V311 => MqttPacket::UnsubAck3(unsubackv3::MqttUnsubAck::new(packet_id)),
        };
        self.send_kept(&packet)
    }

    /// MQTT 5's DISCONNECT: only reason 0 takes the will back, and a session that was to end stays ended.
    fn goodbye(&mut self, packet: &disconnectv5::MqttDisconnect) -> End {
        let allowed =
            |property: &Property| matches!(property, Property::SessionExpiryInterval(_) | Property::ReasonString(_));
        if let Err(reason) = checks::properties(&packet.properties, allowed) {
            return End::Closed(reason);
        }
        let expiry = packet.properties.iter().find_map(|property| match property {
            Property::SessionExpiryInterval(seconds) => Some(greeting::expiry(*seconds)),
            _ => None,
        });
        let was = self.with_session(|session| session.expiry).ok().flatten();
        let zero = Some(std::time::Duration::ZERO);
        if was == zero && expiry.is_some_and(|expiry| expiry != zero) {
            return End::Closed(checks::PROTOCOL_ERROR);
        }
        End::Disconnected(Departure { keep_will: packet.reason_code != 0, expiry })
    }

    /// Sends what confirms a change of the session, once the change is on disk where the session is kept.
    fn send_kept(&mut self, packet: &MqttPacket) -> Result<(), End> {
        let bytes = packet.to_bytes().map_err(|_| End::Closed(checks::UNSPECIFIED))?;
        let persistent = self.with_session(|session| session.persistent())?;
        let kept = self.doors.shared.with(|state| state.ledger.next_write());
        if persistent && kept > 0 {
            self.late.push_back((kept, bytes));
        } else {
            self.output.extend(bytes);
        }
        Ok(())
    }

    /// The session, as long as it is ours.
    fn with_session<R>(&self, what: impl FnOnce(&mut Session) -> R) -> Result<R, End> {
        let owned = self.doors.shared.with(|state| {
            let (session, ledger) = state.parts(&self.id, &self.link)?;
            let result = what(session);
            session.note_gone(&self.id, ledger, Instant::now());
            Some(result)
        });
        owned.ok_or(End::Closed(checks::TAKEN_OVER))
    }
}

/// What a SUBSCRIBE of MQTT 5 asks for: filter, options, retain handling (section 3.8.3.1).
fn wanted(
    subscriptions: Vec<subscribev5::TopicSubscription>,
    properties: &[Property],
) -> Result<Vec<(String, Subscription, u8)>, u8> {
    checks::properties(properties, |p| matches!(p, Property::SubscriptionIdentifier(1..=268_435_455)))?;
    let identifier = properties.iter().find_map(|property| match property {
        Property::SubscriptionIdentifier(identifier) => Some(*identifier),
        _ => None,
    });
    let options = |s: subscribev5::TopicSubscription| {
        let shared_and_not_local = s.no_local && s.topic_filter.starts_with("$share/");
        if s.qos > 2 || s.retain_handling > 2 || shared_and_not_local {
            return Err(checks::PROTOCOL_ERROR);
        }
        let subscription =
            Subscription { qos: s.qos, no_local: s.no_local, retain_as_published: s.retain_as_published, identifier };
        Ok((s.topic_filter, subscription, s.retain_handling))
    };
    subscriptions.into_iter().map(options).collect()
}
