//! Topic names and topic filters: what matches what, and how a rule turns one topic into another.
//!
//! MQTT 5.0 section 4.7 (the same in 3.1.1), without shared subscriptions, which are the broker's business.
//! Pure text: knows no rule table, no client and no version. A filter that is not valid matches whatever its
//! characters say; who takes one from outside asks `valid_filter` first.

use crate::config::PublishRule;

/// Longest topic or filter in bytes: a length on the wire is two bytes.
pub const TOPIC_MAX: usize = 65_535;

/// Whether `topic` may be published to: 1 to 65,535 bytes, no wildcard, no null character.
pub fn valid_topic(topic: &str) -> bool {
    !topic.is_empty() && topic.len() <= TOPIC_MAX && !topic.contains(['+', '#', '\0'])
}

/// Whether `filter` may be subscribed to: 1 to 65,535 bytes, no null character, `+` and `#` alone in their
/// levels, and `#` only as the last one.
pub fn valid_filter(filter: &str) -> bool {
    let level_ok = |(from_end, level): (usize, &str)| match level {
        "+" => true,
        "#" => from_end == 0,
        level => !level.contains(['+', '#']),
    };
    !filter.is_empty()
        && filter.len() <= TOPIC_MAX
        && !filter.contains('\0')
        && filter.split('/').rev().enumerate().all(level_ok)
}

/// Whether `filter` matches `topic`. A filter that begins with a wildcard does not match `$…`.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut topic = topic.split('/');
    for level in filter.split('/') {
        match (level, topic.next()) {
            // Also matches the parent level: here the topic has just ended.
            ("#", _) => return true,
            ("+", Some(_)) => {}
            (level, Some(found)) if level == found => {}
            (_, Some(_) | None) => return false,
        }
    }
    topic.next().is_none()
}

/// Whether `wide` matches every topic that `narrow` matches. It may say no where the one does and only a filter that nobody
/// writes, such as `+/#`, is the reason.
pub fn covers(wide: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    let mut narrow = narrow.split('/');
    for level in wide.split('/') {
        match (level, narrow.next()) {
            ("#", _) => return true,
            (_, Some("#") | None) => return false,
            ("+", Some(_)) => {}
            (level, Some(found)) if level == found => {}
            (_, Some(_)) => return false,
        }
    }
    narrow.next().is_none()
}

/// What the trailing `#` of `filter` stands for in `topic`, which it matches; empty where there is no `#`.
pub fn rest<'t>(filter: &str, topic: &'t str) -> &'t str {
    if filter != "#" && !filter.ends_with("/#") {
        return "";
    }
    match filter.matches('/').count() {
        0 => topic,
        before => topic.splitn(before + 1, '/').nth(before).unwrap_or(""),
    }
}

/// The topic that `to` makes of `topic`: `{topic}` is the whole, `{rest}` what the trailing `#` of `filter`
/// stands for. Where `{rest}` stands for nothing, the slash before it goes too, so that `cmd/{rest}` of the
/// parent level is `cmd`. The result may be no valid topic; ask `valid_topic`.
pub fn mapped(to: &str, filter: &str, topic: &str) -> String {
    let rest = rest(filter, topic);
    let mut out = String::with_capacity(to.len() + topic.len());
    let mut left = to;
    // One pass, so that braces inside a topic are never taken for ours.
    while let Some(at) = left.find('{') {
        let (before, from) = left.split_at(at);
        out.push_str(before);
        left = if let Some(after) = from.strip_prefix("{topic}") {
            out.push_str(topic);
            after
        } else if let Some(after) = from.strip_prefix("{rest}") {
            if rest.is_empty() && out.ends_with('/') {
                out.pop();
            }
            out.push_str(rest);
            after
        } else {
            out.push('{');
            from.strip_prefix('{').unwrap_or("")
        };
    }
    out.push_str(left);
    out
}

/// Where a local message goes in the cloud.
#[derive(Debug, PartialEq, Eq)]
pub enum Way<'r> {
    Up {
        topic: String,
        /// The rule that sends it; `None` where there are no rules at all.
        rule: Option<&'r PublishRule>,
    },
    /// No rule matches, or the topic begins with `$`: only local subscribers get it.
    Local,
    /// A rule makes a topic of it that no server takes.
    Impossible,
}

/// Asks the `[[publish]]` rules: the first match wins, and without any rule everything goes up unchanged.
pub fn way_up<'r>(rules: &'r [PublishRule], topic: &str) -> Way<'r> {
    if topic.starts_with('$') {
        return Way::Local;
    }
    let rule = rules.iter().find(|rule| matches(&rule.topic, topic));
    let up = match rule {
        Some(rule) => mapped(&rule.to, &rule.topic, topic),
        None if rules.is_empty() => topic.to_owned(),
        None => return Way::Local,
    };
    if !valid_topic(&up) { Way::Impossible } else { Way::Up { topic: up, rule } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_the_standard_hold() {
        for topic in ["sport/tennis/player1", "sport/tennis/player1/ranking", "sport/tennis/player1/score/wimbledon"] {
            assert!(matches("sport/tennis/player1/#", topic), "{topic}");
        }
        assert!(matches("sport/#", "sport"));
        assert!(matches("#", "a/b"));
        assert!(matches("sport/tennis/+", "sport/tennis/player1"));
        assert!(!matches("sport/tennis/+", "sport/tennis/player1/ranking"));
        assert!(!matches("sport/+", "sport"));
        assert!(matches("sport/+", "sport/"));
        assert!(matches("+/+", "/finance"));
        assert!(matches("/+", "/finance"));
        assert!(!matches("+", "/finance"));
    }

    #[test]
    fn a_leading_wildcard_does_not_reach_dollar_topics() {
        assert!(!matches("#", "$SYS/uptime"));
        assert!(!matches("+/uptime", "$SYS/uptime"));
        assert!(matches("$SYS/#", "$SYS/uptime"));
        assert!(matches("$SYS/+", "$SYS/uptime"));
        assert!(matches("a/#", "a/$x"));
    }

    #[test]
    fn a_filter_covers_what_lies_in_it() {
        for (wide, narrow) in
            [("#", "a/#"), ("a/#", "a"), ("a/+", "a/b"), ("a/+/c", "a/+/c"), ("+/#", "a/b"), ("a", "a")]
        {
            assert!(covers(wide, narrow), "{wide} {narrow}");
        }
        for (wide, narrow) in [("a/#", "#"), ("a/b", "a/+"), ("a/+", "a/#"), ("a", "a/b"), ("a/b", "a"), ("#", "$x/#")]
        {
            assert!(!covers(wide, narrow), "{wide} {narrow}");
        }
    }

    #[test]
    fn wildcards_stand_alone_and_the_hash_stands_last() {
        for filter in ["#", "+", "a/#", "+/a/+", "/", "a//b", "a/+/#"] {
            assert!(valid_filter(filter), "{filter}");
        }
        for filter in ["", "a#", "a/b#", "#/a", "a/#/b", "a+", "+a/b", "##", "#/#", "a/#/#", "a\0b"] {
            assert!(!valid_filter(filter), "{filter}");
        }
        assert!(!valid_filter(&"a".repeat(TOPIC_MAX + 1)));
    }

    #[test]
    fn a_topic_has_no_wildcards() {
        assert!(valid_topic("a/b") && valid_topic("/") && valid_topic("$x"));
        assert!(!valid_topic("") && !valid_topic("a/+") && !valid_topic("#") && !valid_topic("a\0"));
    }

    #[test]
    fn the_rest_is_what_the_hash_matched() {
        assert_eq!(rest("gw/1/cmd/#", "gw/1/cmd/a/b"), "a/b");
        assert_eq!(rest("gw/+/cmd/#", "gw/7/cmd/a"), "a");
        assert_eq!(rest("gw/1/cmd/#", "gw/1/cmd"), "");
        assert_eq!(rest("gw/1/cmd/#", "gw/1/cmd/"), "");
        assert_eq!(rest("#", "a/b"), "a/b");
        assert_eq!(rest("a/+", "a/b"), "");
    }

    #[test]
    fn a_rule_names_the_new_topic() {
        assert_eq!(mapped("cmd/{rest}", "gw/1/cmd/#", "gw/1/cmd/door/open"), "cmd/door/open");
        assert_eq!(mapped("cmd/{rest}", "gw/1/cmd/#", "gw/1/cmd"), "cmd");
        assert_eq!(mapped("gw/1/{topic}", "telemetry/#", "telemetry/t"), "gw/1/telemetry/t");
        assert_eq!(mapped("fixed", "a", "a"), "fixed");
        assert_eq!(mapped("{other}/{topic}", "#", "{rest}"), "{other}/{rest}");
    }

    proptest! {
        #[test]
        fn every_valid_topic_matches_itself_and_everything_below_its_parents(
            topic in "[a-c]{0,2}(/[a-c]{0,2}){0,4}"
        ) {
            prop_assume!(valid_topic(&topic));
            prop_assert!(matches(&topic, &topic));
            let levels: Vec<&str> = topic.split('/').collect();
            for count in 1..=levels.len() {
                let filter = format!("{}/#", levels[..count].join("/"));
                prop_assert!(valid_filter(&filter));
                prop_assert!(matches(&filter, &topic));
                prop_assert_eq!(rest(&filter, &topic), levels[count..].join("/"));
            }
        }

        #[test]
        fn what_covers_a_filter_matches_all_that_it_matches(
            wide in "[ab+]{1}(/[ab+]{1}){0,2}(/#)?",
            narrow in "[ab+]{1}(/[ab+]{1}){0,2}(/#)?",
            topic in "[ab]{1}(/[ab]{1}){0,3}"
        ) {
            prop_assert!(covers(&narrow, &narrow) && covers("#", &narrow));
            if covers(&wide, &narrow) && matches(&narrow, &topic) {
                prop_assert!(matches(&wide, &topic), "{} {} {}", wide, narrow, topic);
            }
        }

        #[test]
        fn no_text_makes_it_panic(a in ".*", b in ".*", c in ".*") {
            let _ = (valid_filter(&a), valid_topic(&b), matches(&a, &b), rest(&a, &b), mapped(&c, &a, &b));
        }
    }
}
