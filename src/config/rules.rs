//! `[[publish]]` and `[[subscribe]]`: each rule by itself, and rules that are right one by one and together not what
//! anybody means.
//!
//! Of rules together it only warns, and only where it is certain: every message of a rule is concerned, whatever
//! applications publish.

use super::lanes::{Lanes, max_age};
use super::reader::{Reader, Section, Seen};
use super::tree::At;
use super::{PublishRule, SubscribeRule, text};
use crate::topics::covers;

/// All rules; `names` are the placeholders that topics may use.
pub fn rules(
    reader: &mut Reader,
    top: &Section<'_>,
    names: &[(&str, &str)],
    lanes: &mut Lanes,
) -> (Vec<PublishRule>, Vec<SubscribeRule>) {
    let (mut up, mut down) = (Vec::new(), Vec::new());
    let sections = top.sections("publish");
    for section in &sections {
        up.extend(publish(reader, section, names, lanes).map(|rule| (section.at.clone(), rule)));
    }
    for section in top.sections("subscribe") {
        down.extend(subscribe(reader, &section, names).map(|rule| (section.at.clone(), rule)));
    }
    if up.is_empty() && !sections.is_empty() {
        // No rule at all would send everything up; safe mode must not do that because the only rule was mistyped.
        up.push((top.at.clone(), PublishRule { topic: "$nothing".into(), ..PublishRule::default() }));
    }
    never_reached(reader, &up);
    comes_back(reader, &up, &down);
    (up.into_iter().map(|(_, rule)| rule).collect(), down.into_iter().map(|(_, rule)| rule).collect())
}

fn quality(reader: &mut Reader, section: &Section<'_>) -> u8 {
    reader.integer(section, "qos").and_then(|seen| u8::try_from(seen.value).ok()).unwrap_or(1)
}

fn needed_topic(reader: &mut Reader, section: &Section<'_>) -> Option<Seen<String>> {
    if !section.names().contains(&"topic") {
        let message = format!("is missing; each [[{}]] needs one, as in topic = \"a/#\"", section.shown);
        reader.wrong(&section.at, &format!("{}.topic", section.shown), message);
    }
    reader.text(section, "topic")
}

fn publish(
    reader: &mut Reader,
    section: &Section<'_>,
    names: &[(&str, &str)],
    lanes: &mut Lanes,
) -> Option<PublishRule> {
    let lane = lanes.of_rule(reader, section);
    let max_age = max_age(reader, section);
    let qos = quality(reader, section);
    if let Some(lane) = lane {
        lanes.warn_of_memory(reader, &section.at, lane, qos);
    }
    let online_only = reader.word(section, "offline", &[]).is_some_and(|seen| seen.value == "refuse");
    let await_cloud = reader.word(section, "answer", &[]).is_some_and(|seen| seen.value == "cloud");
    let to = reader.text(section, "to");
    let to = match to {
        None => Some("{topic}".to_string()),
        Some(seen) => {
            let to = text::expand(&seen.value, names, &["topic"]);
            let to = to.and_then(|to| text::topic(&to).map(|()| to));
            reader.checked(&seen.at, &seen.path, to)
        }
    };
    let topic = needed_topic(reader, section)?;
    let checked = if topic.value.starts_with('$') {
        Err("topics that begin with \"$\" never go up".to_string())
    } else {
        text::filter(&topic.value)
    };
    reader.checked(&topic.at, &topic.path, checked)?;
    Some(PublishRule { topic: topic.value, qos, to: to?, lane: lane?, max_age, online_only, await_cloud })
}

fn subscribe(reader: &mut Reader, section: &Section<'_>, names: &[(&str, &str)]) -> Option<SubscribeRule> {
    let qos = quality(reader, section);
    let to = reader.text(section, "to");
    let topic = needed_topic(reader, section)?;
    let filter = text::expand(&topic.value, names, &[]).and_then(|filter| text::filter(&filter).map(|()| filter));
    let filter = reader.checked(&topic.at, &topic.path, filter)?;
    let to = match to {
        None => "{topic}".to_string(),
        Some(seen) if seen.value.contains("{rest}") && !filter.ends_with('#') => {
            let message = "{rest} is what the \"#\" at the end of the topic stands for, and there is none".into();
            reader.wrong(&seen.at, &seen.path, message);
            return None;
        }
        Some(seen) => {
            let to = text::expand(&seen.value, names, &["rest", "topic"]);
            let to = to.and_then(|to| text::topic(&to).map(|()| to));
            reader.checked(&seen.at, &seen.path, to)?
        }
    };
    Some(SubscribeRule { topic: filter, to, qos })
}

/// A rule behind one that takes all its messages is never asked.
fn never_reached(reader: &mut Reader, rules: &[(At, PublishRule)]) {
    for (index, (at, rule)) in rules.iter().enumerate() {
        let before = rules.iter().take(index).find(|(_, earlier)| covers(&earlier.topic, &rule.topic));
        if let Some((earlier_at, earlier)) = before {
            let place = earlier_at.line.filter(|_| earlier_at.file == at.file);
            let place = place.map(|line| format!(" in line {line}")).unwrap_or_default();
            let message = format!(
                "\"{}\" is never reached: the first match wins, and \"{}\"{place} matches all of it; put it before that",
                rule.topic, earlier.topic
            );
            reader.warn(at, "publish.topic", message);
        }
    }
}

/// A subscription to all that a rule sends brings every message of it back, over the same uplink.
fn comes_back(reader: &mut Reader, publish: &[(At, PublishRule)], subscribe: &[(At, SubscribeRule)]) {
    let unruled = PublishRule::default();
    let rules = || publish.iter().map(|(_, rule)| rule).chain(Some(&unruled).filter(|_| publish.is_empty()));
    for (at, subscription) in subscribe {
        let sent = |rule: &PublishRule| rule.to.replace("{topic}", &rule.topic);
        if let Some(sent) = rules().map(sent).find(|sent| covers(&subscription.topic, sent)) {
            let message = format!(
                "\"{}\" matches all that goes up as \"{sent}\": the cloud sends every message of it back, and it is paid \
                 for twice; subscribe to the commands alone, as in \"gw/{{client_id}}/cmd/#\"",
                subscription.topic
            );
            reader.warn(at, "subscribe.topic", message);
        }
    }
}
