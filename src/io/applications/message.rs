//! A message between local applications: what is routed, queued, retained and offered upward.
//!
//! Shared, never copied per subscriber; always valid (`checks` has seen it). Knows the configuration's
//! `[[publish]]` rules, no socket and no session.

use std::sync::Arc;
use std::time::Duration;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use tokio::time::Instant;

use crate::config::Config;
use crate::io::packet::Publish;
use crate::sorting::{Local, Way, sort};

/// A message as local subscribers get it.
#[derive(Debug, PartialEq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub qos: u8,
    pub retain: bool,
    /// Without topic alias and subscription identifier, which belong to one connection.
    pub properties: Vec<Property>,
    /// When MQTT 5's message expiry interval ends.
    pub expires: Option<Instant>,
    /// The client that published it; `None` for what came from the cloud.
    pub origin: Option<Arc<str>>,
}

impl Message {
    pub fn new(publish: Publish, origin: Option<Arc<str>>, now: Instant) -> Message {
        let Publish { topic, payload, qos, retain, mut properties, .. } = publish;
        properties.retain(|p| !matches!(p, Property::TopicAlias(_) | Property::SubscriptionIdentifier(_)));
        let expires = properties.iter().find_map(|p| match p {
            Property::MessageExpiryInterval(seconds) => Some(now + Duration::from_secs(u64::from(*seconds))),
            _ => None,
        });
        Message { topic, payload, qos, retain, properties, expires, origin }
    }

    /// What it costs in memory, roughly, for the limits in bytes.
    pub fn size(&self) -> usize {
        /// The structures around topic and payload, and a guess for the properties.
        const OVERHEAD: usize = 128;
        self.topic.len() + self.payload.len() + 64 * self.properties.len() + OVERHEAD
    }

    pub fn expired(&self, now: Instant) -> bool {
        self.expires.is_some_and(|expires| expires <= now)
    }

    /// The properties a subscriber gets now: the expiry interval less the time it waited (MQTT 5 section 3.3.2.3.3).
    pub fn properties_at(&self, now: Instant) -> Vec<Property> {
        let mut properties = self.properties.clone();
        for property in &mut properties {
            if let (Property::MessageExpiryInterval(seconds), Some(expires)) = (property, self.expires) {
                *seconds = u32::try_from(expires.saturating_duration_since(now).as_secs()).unwrap_or(u32::MAX);
            }
        }
        properties
    }
}

/// Where this message goes in the cloud, if anywhere.
pub fn way_up(config: &Config, message: &Message) -> Way {
    let Message { topic, payload, retain, properties, .. } = message;
    let (topic, payload, properties) = (topic.clone(), payload.clone(), properties.clone());
    sort(config, Local { topic, payload, retain: *retain, properties })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PublishRule;

    fn ruled(rules: Vec<PublishRule>) -> Config {
        Config { publish: rules, ..Config::defaults() }
    }

    fn message(topic: &str) -> Message {
        let publish = Publish {
            topic: topic.into(),
            payload: b"1".to_vec(),
            qos: 0,
            retain: true,
            dup: false,
            id: None,
            properties: vec![Property::TopicAlias(3), Property::ContentType("x".into())],
        };
        Message::new(publish, None, Instant::now())
    }

    fn rule(topic: &str, qos: u8, to: &str) -> PublishRule {
        PublishRule { topic: topic.into(), qos, to: to.into(), ..PublishRule::default() }
    }

    #[test]
    fn without_rules_everything_goes_up_unchanged() {
        let Way::Up { draft, .. } = way_up(&ruled(vec![]), &message("a/b")) else { panic!() };
        assert_eq!((draft.topic.as_str(), draft.qos, draft.retain), ("a/b", 1, true));
        assert_eq!(crate::io::packet::properties_from_bytes(&draft.properties), [Property::ContentType("x".into())]);
    }

    #[test]
    fn the_first_rule_that_matches_wins_and_the_rest_stays_here() {
        let rules = ruled(vec![rule("t/+", 0, "gw/1/{topic}"), rule("t/#", 1, "all")]);
        let Way::Up { draft, .. } = way_up(&rules, &message("t/x")) else { panic!() };
        assert_eq!((draft.topic.as_str(), draft.qos), ("gw/1/t/x", 0));
        let Way::Up { draft, .. } = way_up(&rules, &message("t/x/y")) else { panic!() };
        assert_eq!(draft.topic, "all");
        assert_eq!(way_up(&rules, &message("u")), Way::Local);
        assert_eq!(way_up(&ruled(vec![rule("#", 1, "")]), &message("u")), Way::Impossible);
    }

    #[test]
    fn the_expiry_interval_shrinks_while_it_waits() {
        let now = Instant::now();
        let mut publish = Publish {
            topic: "a".into(),
            payload: vec![],
            qos: 0,
            retain: false,
            dup: false,
            id: None,
            properties: vec![Property::MessageExpiryInterval(10)],
        };
        let message = Message::new(publish.clone(), None, now);
        assert_eq!(message.properties_at(now + Duration::from_secs(4)), [Property::MessageExpiryInterval(6)]);
        assert!(!message.expired(now + Duration::from_secs(9)) && message.expired(now + Duration::from_secs(10)));
        publish.properties.clear();
        assert!(!Message::new(publish, None, now).expired(now + Duration::from_secs(1 << 40)));
    }
}
