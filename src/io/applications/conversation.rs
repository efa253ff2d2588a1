//! What each packet of a client does. It is long, because each kind of packet has its method here.
//!
//! One method per packet: changes the shared state, writes the answer into the client's output, or ends the
//! connection with a reason. Never waits. A QoS 1 or 2 message is answered by `reply` alone, once its offer is accepted
//! or refused. Of a session that is kept, PUBREC leaves when the disk has the identifier, and PUBCOMP when the disk has
//! forgotten it: a kill in between repeats what the client sends again or knows that it is a repetition, and no message
//! is taken for an earlier one.

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv3::{subackv3, unsubackv3};
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use flowsdk::mqtt_serde::mqttv5::{disconnectv5, subackv5, subscribev5, unsubackv5};
use std::sync::Arc;
use switchback_control::Version;
use tokio::time::Instant;

use super::access::Deed;
use super::answers::{Answer, PUBACK, PUBCOMP, PUBREC, PUBREL, acknowledgement, answer, refusal};
use super::connection::{Client, End};
use super::message::{Message, way_up};
use super::router::Departure;
use super::session::{Reception, Session, Subscription, pubrel};
use super::upward::{Ack, Task, Verdict};
use super::{Offers, RECEIVE_MAX, RECEPTIONS_MAX, SUBSCRIPTIONS_MAX, checks, greeting};
use crate::corridor::Refusal;
use crate::io::packet::{self, Publish};
use crate::sorting::Way;

/// MQTT 5's "no subscription existed" (section 3.11.3).
const NO_SUBSCRIPTION: u8 = 0x11;

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
            MqttPacket::Disconnect3(_) => Err(End::Disconnected(Departure { keep_will: false, ..Departure::BROKEN })),
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
        let mut again = false;
        if let Ack::Pubrec(id) = ack {
            self.open_receptions.insert(id);
            match self.begin_reception(id)? {
                None => {}
                // Local subscribers have it.
                Some(Reception::Refused) => again = true,
                Some(Reception::Accepted { .. }) => {
                    self.upward.push(ack, Task::Answer(Verdict::Accepted));
                    return self.within_quota();
                }
                // An earlier connection offered it; PUBREC comes when that is settled.
                Some(Reception::Waiting) => return self.within_quota(),
            }
        }
        let now = Instant::now();
        let message = Arc::new(Message::new(publish, Some(Arc::clone(&self.id)), now));
        let task = self.way_of(&message);
        let mut kept = None;
        if !matches!(task, Task::Answer(Verdict::Invalid(_))) && !again {
            kept = self.doors.shared.with(|state| state.publish_local(&message, now));
        }
        if let (Ack::Pubrec(id), Task::Answer(Verdict::Accepted)) = (ack, &task) {
            // In the same write as the copies for other sessions: so far the two cannot be parted.
            self.settle_own(id, true);
        }
        self.upward.push_kept(ack, task, kept);
        self.within_quota()
    }

    /// A message with QoS 2 begins: what is known of its identifier. It is open from now on.
    fn begin_reception(&mut self, id: u16) -> Result<Option<Reception>, End> {
        self.with_session(|session| match session.received.get(&id).copied() {
            known @ Some(Reception::Accepted { .. } | Reception::Waiting) => Ok(known),
            known => {
                if session.received.len() >= RECEPTIONS_MAX && known.is_none() {
                    return Err(End::Closed(checks::RECEIVE_MAXIMUM_EXCEEDED));
                }
                session.received.insert(id, Reception::Waiting);
                Ok(known)
            }
        })?
    }

    /// What is to be done for a message beyond this gateway's other clients.
    fn way_of(&self, message: &Message) -> Task {
        if !self.may(Deed::Publish, &message.topic) {
            return Task::Answer(Verdict::Invalid(checks::NOT_AUTHORIZED));
        }
        match way_up(&self.doors.config, message) {
            Way::Up { draft, await_cloud, unknown_class } => {
                if let Some(class) = unknown_class {
                    let said = self.doors.shared.with(|state| state.note_unknown_class(Instant::now()));
                    if let Some(count) = said {
                        log::warn!(
                            "local MQTT client {:?} calls a class {class:?}, which is none: the rule's class counts \
                             ({count} messages so far)",
                            self.id
                        );
                    }
                }
                Task::Offer { draft, await_cloud }
            }
            Way::Local => Task::Answer(Verdict::Accepted),
            Way::Impossible => Task::Answer(Verdict::Invalid(checks::TOPIC_INVALID)),
            Way::Reserved => {
                let said = self.doors.shared.with(|state| state.note_reserved(Instant::now()));
                if let Some(count) = said {
                    log::warn!(
                        "local MQTT client {:?}: {:?} goes to where the cloud expects the daemon itself to speak \
                         (cloud.base): refused ({count} messages so far)",
                        self.id,
                        message.topic
                    );
                }
                Task::Answer(Verdict::Invalid(checks::NOT_AUTHORIZED))
            }
        }
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
                state.figures.denied += 1;
                state.figures.denied
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
    pub(super) fn reply(&mut self, (ack, verdict): (Ack, Verdict)) -> Result<(), End> {
        self.count(verdict);
        let (kind, id) = match ack {
            Ack::None => {
                self.settle_late((ack, verdict));
                return match verdict {
                    Verdict::Refused(Refusal::Stopping) => Err(End::Closed(checks::SHUTTING_DOWN)),
                    _ => Ok(()),
                };
            }
            Ack::Puback(id) => (PUBACK, id),
            Ack::Pubrec(id) => (PUBREC, id),
        };
        let answer = answer(verdict, self.version);
        if let Answer::Close(reason) = answer {
            // Unanswered: the client sends it again, to us or to whoever comes after us.
            self.settle_late((ack, verdict));
            return Err(End::Closed(reason));
        }
        let mut kept = 0;
        if kind == PUBREC {
            let Some(noted) = self.settle_own(id, answer == Answer::Yes) else {
                self.settle_late((ack, verdict));
                return Err(End::Closed(checks::TAKEN_OVER));
            };
            kept = noted;
        }
        let packet = match answer {
            Answer::No(reason, why) if self.wants_words && !why.is_empty() => refusal(kind, id, reason, why),
            Answer::No(reason, _) | Answer::Close(reason) => acknowledgement(self.version, kind, id, reason),
            Answer::Yes => acknowledgement(self.version, kind, id, 0),
        };
        self.send_after(kept, packet);
        Ok(())
    }

    /// The same when the client cannot be told: its session keeps what matters.
    pub(super) fn reply_late(&mut self, (ack, verdict): (Ack, Verdict)) {
        self.count(verdict);
        self.settle_late((ack, verdict));
    }

    fn settle_late(&mut self, (ack, verdict): (Ack, Verdict)) {
        let accepted = answer(verdict, self.version) == Answer::Yes;
        self.doors.shared.with(|state| match ack {
            Ack::None => state.figures.refused += u64::from(verdict != Verdict::Accepted),
            // It was not acknowledged, so the client sends it again.
            Ack::Puback(_) => {}
            Ack::Pubrec(id) => state.settle(&self.id, self.epoch, id, accepted, Instant::now()),
        });
    }

    fn count(&self, verdict: Verdict) {
        if verdict == Verdict::GivenUp {
            self.doors.shared.with(|state| state.figures.given_up += 1);
        }
    }

    /// Notes a QoS 2 message as accepted, or forgets it: the write to wait for before its PUBREC. `None` where another
    /// connection has the session.
    fn settle_own(&mut self, id: u16, accepted: bool) -> Option<u64> {
        if !accepted {
            self.open_receptions.remove(&id);
        }
        self.doors.shared.with(|state| {
            let (session, ledger) = state.parts(&self.id, &self.link)?;
            Some(if accepted {
                session.accept(&self.id, id, ledger, Instant::now())
            } else {
                session.received.remove(&id);
                0
            })
        })
    }

    /// Sends a packet once this write has ended; in order with those that wait already.
    fn send_after(&mut self, kept: u64, packet: Vec<u8>) {
        if kept == 0 && self.late.is_empty() {
            self.output.extend(packet);
        } else {
            self.late.push_back((kept, packet));
        }
    }

    /// The will is offered like any other message of this client, after all it sent.
    pub(super) fn offer_will(&mut self, will: &Message) {
        if let Way::Up { draft, await_cloud, .. } = way_up(&self.doors.config, will) {
            self.upward.push(Ack::None, Task::Offer { draft, await_cloud });
        }
    }

    fn take_pubrec(&mut self, id: u16) -> Result<(), End> {
        self.with_session(|_| ())?;
        match self.doors.shared.with(|state| state.pubrec(&self.id, id, Instant::now())) {
            // If it went out first and power was cut, the message would be sent again as a new one.
            Some(kept) => self.send_after(kept, pubrel(id)),
            None => self.output.extend(acknowledgement(self.version, PUBREL, id, checks::ID_NOT_FOUND)),
        }
        Ok(())
    }

    fn take_pubrel(&mut self, id: u16) -> Result<(), End> {
        let known = self.with_session(|session| session.received.get(&id).copied())?;
        let mut kept = 0;
        let reason = match known {
            Some(Reception::Accepted { .. }) => {
                kept = self.doors.shared.with(|state| state.end_reception(&self.id, id, Instant::now()));
                0
            }
            None => checks::ID_NOT_FOUND,
            Some(Reception::Waiting | Reception::Refused) => return Err(End::Closed(checks::PROTOCOL_ERROR)),
        };
        self.open_receptions.remove(&id);
        // The identifier is free for another message once this is out, so the disk must not take that for the old one.
        self.send_after(kept, acknowledgement(self.version, PUBCOMP, id, reason));
        Ok(())
    }

    fn subscribe(&mut self, packet_id: u16, wanted: Vec<(String, Subscription, u8)>) -> Result<(), End> {
        if packet_id == 0 || wanted.is_empty() {
            return Err(End::Closed(checks::PROTOCOL_ERROR));
        }
        self.with_session(|_| ())?;
        let now = Instant::now();
        // More cannot all be new, and each costs a look at every rule and every retained message.
        let count = wanted.len();
        let served: Vec<_> = wanted.into_iter().take(SUBSCRIPTIONS_MAX).collect();
        let allowed: Vec<bool> = served.iter().map(|(filter, ..)| self.may(Deed::Subscribe, filter)).collect();
        let mut reason_codes: Vec<u8> = self.doors.shared.with(|state| {
            let codes = served.iter().zip(&allowed).map(|((filter, subscription, retain_handling), allowed)| {
                if !allowed {
                    return checks::NOT_AUTHORIZED;
                }
                state.subscribe(&self.id, filter, *subscription, *retain_handling, now)
            });
            codes.collect()
        });
        reason_codes.resize(count, checks::QUOTA);
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
        End::Disconnected(Departure { keep_will: packet.reason_code != 0, expiry, cut_off: false })
    }

    /// Sends what confirms a change of the session, once the change is on disk where the session is kept.
    fn send_kept(&mut self, packet: &MqttPacket) -> Result<(), End> {
        let bytes = packet.to_bytes().map_err(|_| End::Closed(checks::UNSPECIFIED))?;
        let persistent = self.with_session(|session| session.persistent())?;
        let kept = self.doors.shared.with(|state| state.ledger.next_write());
        self.send_after(if persistent { kept } else { 0 }, bytes);
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
