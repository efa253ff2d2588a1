//! Where a local message goes: to which topic of the cloud, in which lane, for how long.
//!
//! Asks the `[[publish]]` rules and what the message says of itself; applications and operators are sorted alike.
//! Always true: what goes up has a topic that a server takes, and no property that only we may write. It offers
//! nothing to anybody.

use std::time::Duration;

use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback_control::Lane;

use crate::config::{Config, PublishRule};
use crate::corridor::Draft;
use crate::io::packet::properties_to_bytes;
use crate::topics;

/// The MQTT 5 user property in which a message names its class; it goes no further than here.
pub const CLASS: &str = "sb-class";
/// User properties in which the cloud reads who a message is and when it was accepted (R-SF-7): ours alone.
pub const IDENTITY: &str = "sb-id";
pub const ACCEPTED: &str = "sb-time";

/// A message as it came from a local client.
#[derive(Clone, Debug, Default)]
pub struct Local {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
    pub properties: Vec<Property>,
}

/// Where it goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    /// `await_cloud`: its application is answered only when the cloud has it.
    Up { draft: Draft, await_cloud: bool },
    /// No rule matches: only local subscribers get it.
    Local,
    /// A rule makes a topic of it that no server takes.
    Impossible,
}

/// Sorts a message.
pub fn sort(config: &Config, message: Local) -> Way {
    let unruled = PublishRule::default();
    let (topic, rule) = match topics::way_up(&config.publish, &message.topic) {
        topics::Way::Up { topic, rule } => (topic, rule.unwrap_or(&unruled)),
        topics::Way::Local => return Way::Local,
        topics::Way::Impossible => return Way::Impossible,
    };
    let mut properties = message.properties;
    let lane = own_class(&properties).and_then(|class| config.lane_of(class, rule.lane)).unwrap_or(rule.lane);
    properties.retain(|property| !is_ours(property));
    let by_lane = config.lanes.get(usize::from(lane.0)).and_then(|lane| lane.max_age);
    if let Some(age) = rule.max_age.or(by_lane) {
        limit_age(&mut properties, age);
    }
    let properties = properties_to_bytes(&properties);
    let draft = Draft {
        topic,
        payload: message.payload,
        qos: rule.qos,
        retain: message.retain,
        properties,
        lane,
        online_only: rule.online_only,
    };
    Way::Up { draft, await_cloud: rule.await_cloud }
}

/// The class that a message gives itself.
fn own_class(properties: &[Property]) -> Option<&str> {
    properties.iter().find_map(|property| match property {
        Property::UserProperty(key, value) if key == CLASS => Some(value.as_str()),
        _ => None,
    })
}

fn is_ours(property: &Property) -> bool {
    matches!(property, Property::UserProperty(key, _) if [CLASS, IDENTITY, ACCEPTED].contains(&key.as_str()))
}

/// The message expiry interval (MQTT 5.0 section 3.3.2.3.3) becomes at most this.
fn limit_age(properties: &mut Vec<Property>, age: Duration) {
    let most = u32::try_from(age.as_secs().max(1)).unwrap_or(u32::MAX);
    let own = properties.iter_mut().find_map(|property| match property {
        Property::MessageExpiryInterval(seconds) => Some(seconds),
        _ => None,
    });
    match own {
        Some(seconds) => *seconds = (*seconds).min(most),
        None => properties.push(Property::MessageExpiryInterval(most)),
    }
}

impl Config {
    /// The lane of this class: over the same uplinks as `like` where there is one, else over those of the class itself.
    pub fn lane_of(&self, class: &str, like: Lane) -> Option<Lane> {
        let carriers = |index: usize| self.settings.lanes.get(index).map(|rules| &rules.carriers);
        let like = carriers(usize::from(like.0));
        let of_class = |(_, lane): &(usize, &crate::config::LaneConfig)| lane.class == class;
        let lanes: Vec<usize> = self.lanes.iter().enumerate().filter(of_class).map(|(index, _)| index).collect();
        let same = lanes.iter().copied().find(|index| carriers(*index) == like);
        same.or(lanes.first().copied()).and_then(|index| u8::try_from(index).ok()).map(Lane)
    }
}
