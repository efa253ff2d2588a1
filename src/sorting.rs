//! Where a local message goes: to which topic of the cloud, in which lane, for how long.
//!
//! Asks the `[[publish]]` rules and what the message says of itself; applications and operators are sorted alike.
//! Always true: what goes up has a topic that a server takes, none on which the cloud takes the daemon to speak, and no
//! property that only we may write. It offers nothing to anybody.

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

/// Below `cloud.base` only the daemon says this.
const OWN_TOPICS: [&str; 5] = ["status", "hello", "outage", "vitals", "log"];

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
    /// `await_cloud`: its application is answered only when the cloud has it. `unknown_class`: what it calls its class is
    /// none; the rule's counts.
    Up { draft: Draft, await_cloud: bool, unknown_class: Option<String> },
    /// No rule matches: only local subscribers get it.
    Local,
    /// A rule makes a topic of it that no server takes.
    Impossible,
    /// It would be taken for a word of the daemon itself.
    Reserved,
}

/// Sorts a message.
pub fn sort(config: &Config, message: Local) -> Way {
    let unruled = PublishRule::default();
    let (topic, rule) = match topics::way_up(&config.publish, &message.topic) {
        topics::Way::Up { topic, rule } => (topic, rule.unwrap_or(&unruled)),
        topics::Way::Local => return Way::Local,
        topics::Way::Impossible => return Way::Impossible,
    };
    if is_own(&config.cloud.base, &topic) {
        return Way::Reserved;
    }
    let mut properties = message.properties;
    let class = own_class(&properties);
    let own_lane = class.and_then(|class| config.lane_of(class, rule.lane));
    let unknown_class = class.filter(|_| own_lane.is_none()).map(str::to_owned);
    let lane = own_lane.unwrap_or(rule.lane);
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
    Way::Up { draft, await_cloud: rule.await_cloud, unknown_class }
}

/// Whether what is published here would be taken for a word of the daemon itself.
pub fn is_reserved(config: &Config, topic: &str) -> bool {
    let way = topics::way_up(&config.publish, topic);
    matches!(way, topics::Way::Up { topic, .. } if is_own(&config.cloud.base, &topic))
}

fn is_own(base: &str, topic: &str) -> bool {
    let below = topic.strip_prefix(base).and_then(|rest| rest.strip_prefix('/'));
    !base.is_empty() && below.is_some_and(|word| OWN_TOPICS.contains(&word))
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

#[cfg(test)]
mod tests {
    use switchback_control::{Carriers, LaneRules};

    use super::*;
    use crate::config::LaneConfig;
    use crate::io::packet::properties_from_bytes;

    fn user(key: &str, value: &str) -> Property {
        Property::UserProperty(key.into(), value.into())
    }

    fn sorted(config: &Config, topic: &str, properties: Vec<Property>) -> Way {
        sort(config, Local { topic: topic.into(), properties, ..Local::default() })
    }

    /// Lane, properties and the unknown class of what goes up.
    fn up(config: &Config, properties: Vec<Property>) -> (Lane, Vec<Property>, Option<String>) {
        match sorted(config, "t", properties) {
            Way::Up { draft, unknown_class, .. } => {
                (draft.lane, properties_from_bytes(&draft.properties), unknown_class)
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_message_names_its_class_and_the_name_goes_no_further() {
        let config = Config::defaults();
        for (class, lane) in [("normal", 0), ("critical", 1), ("bulk", 2), ("low", 3)] {
            assert_eq!(up(&config, vec![user(CLASS, class)]), (Lane(lane), vec![], None), "{class}");
        }
        // The first one counts.
        assert_eq!(up(&config, vec![user(CLASS, "bulk"), user(CLASS, "critical")]).0, Lane(2));
    }

    #[test]
    fn a_class_that_there_is_not_leaves_the_rule_s() {
        let rule = PublishRule { lane: Lane(2), ..PublishRule::default() };
        let config = Config { publish: vec![rule], ..Config::defaults() };
        for name in ["Critical", "", "urgent"] {
            assert_eq!(up(&config, vec![user(CLASS, name)]), (Lane(2), vec![], Some(name.into())), "{name}");
        }
        assert_eq!(up(&config, vec![]), (Lane(2), vec![], None));
    }

    #[test]
    fn an_own_class_keeps_to_the_uplinks_of_the_rule_where_it_has_a_lane_there() {
        let mut config = Config::defaults();
        let lane = |class: &str| LaneConfig { class: class.into(), ..config.lanes[0].clone() };
        let (unmetered, critical) = (lane("normal"), lane("critical"));
        config.lanes.extend([unmetered, critical]);
        let rules = LaneRules { carriers: Carriers::Unmetered, ..LaneRules::default() };
        config.settings.lanes.extend([rules.clone(), rules]);
        config.publish = vec![PublishRule { lane: Lane(4), ..PublishRule::default() }];
        assert_eq!(up(&config, vec![user(CLASS, "critical")]).0, Lane(5));
        assert_eq!(up(&config, vec![user(CLASS, "bulk")]).0, Lane(2), "over its own uplinks");
    }

    #[test]
    fn nobody_else_says_who_a_message_is_or_when_it_was_accepted() {
        let properties = vec![user(IDENTITY, "b.1.1"), user("k", "v"), user(ACCEPTED, "0"), user(IDENTITY, "b.1.2")];
        assert_eq!(up(&Config::defaults(), properties).1, [user("k", "v")]);
    }

    #[test]
    fn the_shorter_age_counts_and_the_rule_s_before_the_lane_s() {
        use Property::MessageExpiryInterval as Expiry;
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        let mut config = Config::defaults();
        assert_eq!(up(&config, vec![Expiry(9)]).1, [Expiry(9)]);
        config.lanes[0].max_age = seconds(60);
        assert_eq!(up(&config, vec![]).1, [Expiry(60)]);
        config.publish = vec![PublishRule { max_age: seconds(100), ..PublishRule::default() }];
        assert_eq!(up(&config, vec![]).1, [Expiry(100)]);
        assert_eq!(up(&config, vec![Expiry(99)]).1, [Expiry(99)]);
        assert_eq!(up(&config, vec![Expiry(101), user("k", "v")]).1, [Expiry(100), user("k", "v")]);
        config.publish[0].max_age = seconds(u64::MAX);
        assert_eq!(up(&config, vec![]).1, [Expiry(u32::MAX)]);
        config.publish[0].max_age = Some(Duration::from_millis(1));
        assert_eq!(up(&config, vec![]).1, [Expiry(1)], "zero would mean that it is over already");
    }

    #[test]
    fn no_rule_lets_an_application_speak_for_the_daemon() {
        let mut config = Config::defaults();
        config.cloud.base = "sb/gw".into();
        let is_up = |config: &Config, topic: &str| matches!(sorted(config, topic, vec![]), Way::Up { .. });
        for word in OWN_TOPICS {
            assert_eq!(sorted(&config, &format!("sb/gw/{word}"), vec![]), Way::Reserved);
        }
        for topic in ["sb/gw", "sb/gw/", "sb/gw/x", "sb/gw/status/x", "sb/gw2/status", "x/sb/gw/status", "status"] {
            assert!(is_up(&config, topic), "{topic}");
        }
        let rule = |topic: &str, to: &str| PublishRule { topic: topic.into(), to: to.into(), ..PublishRule::default() };
        config.publish = vec![rule("a/#", "sb/gw/{rest}"), rule("b", "sb/gw/hello"), rule("#", "{topic}")];
        assert_eq!(sorted(&config, "a/log", vec![]), Way::Reserved);
        assert_eq!(sorted(&config, "b", vec![]), Way::Reserved);
        assert!(is_up(&config, "a/x"));
        config.cloud.base = String::new();
        assert!(is_up(&config, "/status") && is_up(&config, "b") && is_up(&config, "status"));
    }
}
