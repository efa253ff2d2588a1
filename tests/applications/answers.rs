//! What a publisher is told of its message, and when.
//!
//! Beside the tests of `applications.rs`: rules that wait for the cloud, refusals, classes, and topics that are not for
//! applications.

use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback::config::{Config, PublishRule};
use switchback::control::{Lane, Seq, Version};
use switchback::corridor::Refusal;
use switchback::io::applications::CONNECTIONS_MAX;

use super::BOTH;
use super::client::{Client, Connect, Kind, Mode, SOON, Server, config, eventually, free_address, text};

/// A server where `wait/#` is answered when the cloud has it, and the rest when the outbox does.
fn waiting(mode: Mode) -> Server {
    let suspend = PublishRule { topic: "wait/#".into(), await_cloud: true, ..PublishRule::default() };
    Server::with(mode, vec![suspend, PublishRule::default()], free_address())
}

fn with_base(base: &str, rules: Vec<PublishRule>) -> Server {
    let mut config: Config = config(rules, free_address());
    config.cloud.base = base.into();
    Server::configured(Mode::Accept, config, std::sync::Arc::new(tempfile::tempdir().unwrap()))
}

fn user(key: &str, value: &str) -> Property {
    Property::UserProperty(key.into(), value.into())
}

// ---- Answered when the cloud has it

#[test]
fn where_a_rule_says_so_the_answer_comes_when_the_cloud_has_it() {
    for version in BOTH {
        let server = waiting(Mode::Hold);
        let mut client = server.client(version, "a");
        client.publish("wait/x", "1", 1, 1);
        client.publish("wait/x", "2", 2, 2);
        server.desk.await_count(2);
        server.desk.accept_all();
        client.silent();
        client.ping();
        server.desk.deliver(true);
        assert_eq!(client.ack(), (Kind::Puback, 1, 0));
        client.silent();
        server.desk.deliver(true);
        assert_eq!(client.ack(), (Kind::Pubrec, 2, 0));
    }
}

#[test]
fn who_waits_for_the_cloud_holds_up_neither_others_nor_what_needs_no_answer() {
    for version in BOTH {
        let server = waiting(Mode::Accept);
        let mut client = server.client(version, "a");
        let mut other = server.client(version, "other");
        client.publish("wait/x", "1", 1, 1);
        // Its own answers stay in order.
        client.publish("t", "2", 1, 2);
        for _ in 0..3000 {
            client.publish("t", "x", 0, 0);
            client.publish("wait/x", "x", 0, 0);
        }
        client.ping();
        server.desk.await_count(6002);
        client.silent();
        other.publish("t", "y", 1, 1);
        assert_eq!(other.ack(), (Kind::Puback, 1, 0));
        server.desk.deliver(true);
        assert_eq!(client.ack(), (Kind::Puback, 1, 0));
        assert_eq!(client.ack(), (Kind::Puback, 2, 0));
    }
}

#[test]
fn what_the_cloud_will_never_have_is_told_with_mqtt_5_and_by_rule_done_with_3_1_1() {
    for version in BOTH {
        let server = waiting(Mode::Accept);
        let mut client = server.client(version, "a");
        client.publish("wait/x", "1", 1, 1);
        client.publish("wait/x", "2", 2, 2);
        server.desk.await_count(2);
        server.desk.deliver(false);
        server.desk.deliver(false);
        let reason = if version == Version::V5 { 0x80 } else { 0 };
        assert_eq!(client.ack(), (Kind::Puback, 1, reason));
        assert_eq!(client.ack(), (Kind::Pubrec, 2, reason));
        assert_eq!(server.figures().given_up, 2);
        client.ping();
    }
}

#[test]
fn a_session_still_hears_of_the_cloud_when_its_client_was_away_meanwhile() {
    for version in BOTH {
        let server = waiting(Mode::Accept);
        let stays = Connect { id: "a", clean: false, expiry: 1000, ..Connect::default() };
        let dial = |present| {
            let mut client = Client::dial(server.address, version);
            client.connect(&stays);
            assert_eq!(client.connack(), (present, 0));
            client
        };
        let mut first = dial(false);
        first.publish("wait/x", "1", 2, 1);
        server.desk.await_count(1);
        drop(first);
        eventually("the end", || server.figures().clients == 0);
        let mut second = dial(true);
        second.publish_with("wait/x", "1", 2, 1, false, true, Vec::new());
        second.silent();
        server.desk.deliver(true);
        assert_eq!(second.ack(), (Kind::Pubrec, 1, 0));
        second.send_ack(0x62, 1);
        assert_eq!(second.ack(), (Kind::Pubcomp, 1, 0));
        assert_eq!(server.desk.count(), 1);
        // A session made anew under the same name is another one: the old answer is not its own.
        second.publish("wait/x", "2", 2, 7);
        server.desk.await_count(2);
        drop(second);
        eventually("the end", || server.figures().clients == 0);
        drop(server.client(version, "a"));
        eventually("the end", || server.figures().clients == 0);
        let mut third = dial(false);
        third.publish("wait/x", "3", 2, 7);
        server.desk.await_count(3);
        server.desk.deliver(true);
        third.silent();
        server.desk.deliver(true);
        assert_eq!(third.ack(), (Kind::Pubrec, 7, 0));
    }
}

#[test]
fn clients_that_left_while_the_cloud_was_away_keep_nobody_out() {
    let server = waiting(Mode::Accept);
    for number in 0..CONNECTIONS_MAX + 10 {
        let mut client = server.client(BOTH[number % 2], "");
        client.publish("wait/x", "1", 1, 1);
        client.publish("wait/x", "2", 2, 2);
        server.desk.await_count(2 * (number as u64 + 1));
    }
    server.client(Version::V5, "still").ping();
}

// ---- Refused

#[test]
fn every_refusal_has_its_code_and_its_words() {
    for (refusal, reason) in
        [(Refusal::Full, 0x97), (Refusal::Dropped, 0x97), (Refusal::NotConnected, 0x83), (Refusal::TooLarge, 0x83)]
    {
        let server = Server::start(Mode::Refuse(refusal));
        let mut client = server.client(Version::V5, "a");
        client.publish("t", "1", 1, 1);
        let MqttPacket::PubAck5(answer) = client.receive() else { panic!("no PUBACK") };
        assert_eq!((answer.packet_id, answer.reason_code), (1, reason));
        assert!(matches!(&answer.properties[..], [Property::ReasonString(words)] if !words.is_empty()));
        client.publish("t", "2", 2, 2);
        assert_eq!(client.ack(), (Kind::Pubrec, 2, reason));
        // Who takes only small packets gets no words.
        let mut small = Client::dial(server.address, Version::V5);
        small.connect(&Connect { id: "small", packet_max: 100, ..Connect::default() });
        assert_eq!(small.connack(), (false, 0));
        small.publish("t", "1", 1, 1);
        let MqttPacket::PubAck5(answer) = small.receive() else { panic!("no PUBACK") };
        assert_eq!((answer.reason_code, answer.properties.len()), (reason, 0));
    }
}

#[test]
fn a_3_1_1_client_hears_yes_for_what_its_class_drops_and_is_closed_for_the_rest() {
    let server = Server::start(Mode::Refuse(Refusal::Dropped));
    let mut client = server.client(Version::V311, "a");
    client.publish("t", "1", 1, 1);
    assert_eq!(client.ack(), (Kind::Puback, 1, 0));
    client.publish("t", "2", 2, 2);
    assert_eq!(client.ack(), (Kind::Pubrec, 2, 0));
    client.send_ack(0x62, 2);
    assert_eq!(client.ack(), (Kind::Pubcomp, 2, 0));
    client.publish("t", "3", 0, 0);
    eventually("a counted refusal", || server.figures().refused == 1);
    for refusal in [Refusal::Full, Refusal::NotConnected, Refusal::TooLarge] {
        let server = Server::start(Mode::Refuse(refusal));
        for qos in 1..=2 {
            let mut client = server.client(Version::V311, "a");
            client.publish("t", "1", qos, 1);
            assert_eq!(client.closed_within(SOON), None, "{refusal:?}");
        }
    }
}

// ---- Classes and topics

#[test]
fn a_message_may_name_its_class_and_may_not_say_who_it_is() {
    let server = Server::start(Mode::Accept);
    let mut client = server.client(Version::V5, "a");
    client.subscribe("t", 0);
    let properties = vec![user("sb-class", "critical"), user("sb-id", "forged"), user("sb-time", "1"), user("k", "v")];
    client.publish_with("t", "1", 1, 1, false, false, properties);
    client.message_before_ack(Kind::Puback, 1);
    client.publish_with("t", "2", 1, 2, false, false, vec![user("sb-class", "urgent")]);
    client.message_before_ack(Kind::Puback, 2);
    let drafts = server.desk.drafts();
    assert_eq!((drafts[0].lane, drafts[1].lane), (Lane(1), Lane(0)));
    assert_eq!(switchback::io::packet::properties_from_bytes(&drafts[0].properties), [user("k", "v")]);
    assert!(drafts[1].properties.is_empty());
    assert_eq!(server.figures().unknown_class, 1);
}

#[test]
fn nobody_but_the_daemon_speaks_where_the_cloud_listens_to_the_daemon() {
    let up = PublishRule { topic: "up/#".into(), to: "sb/gw/{rest}".into(), ..PublishRule::default() };
    let server = with_base("sb/gw", vec![up, PublishRule::default()]);
    let mut new = server.client(Version::V5, "new");
    new.subscribe("#", 0);
    for (id, topic) in ["sb/gw/status", "sb/gw/hello", "up/outage", "up/vitals", "up/log"].into_iter().enumerate() {
        new.publish(topic, "forged", 1, id as u16 + 1);
        assert_eq!(new.ack(), (Kind::Puback, id as u16 + 1, 0x87), "{topic}");
        new.publish(topic, "forged", 2, 50);
        assert_eq!(new.ack(), (Kind::Pubrec, 50, 0x87), "{topic}");
    }
    new.publish("sb/gw/status", "forged", 0, 0);
    new.ping();
    let mut old = server.client(Version::V311, "old");
    old.publish("up/status", "forged", 1, 1);
    old.closed_within(SOON);
    assert_eq!((server.desk.count(), server.figures().reserved), (0, 12));
    // Nor with its last words.
    for version in BOTH {
        let mut client = Client::dial(server.address, version);
        client.connect(&Connect { id: "w", will: Some(("up/status", "gone", true, 0)), ..Connect::default() });
        assert_eq!(client.connack(), (false, if version == Version::V5 { 0x87 } else { 5 }));
    }
    new.publish("up/state", "mine", 1, 9);
    assert_eq!(text(&new.message_before_ack(Kind::Puback, 9)), "mine");
    let server = with_base("", vec![]);
    let mut client = server.client(Version::V5, "a");
    client.publish("/status", "mine", 1, 1);
    assert_eq!(client.ack(), (Kind::Puback, 1, 0));
}

#[test]
fn answers_leave_in_order_whatever_they_wait_for() {
    let server = waiting(Mode::Hold);
    let mut client = server.client(Version::V5, "a");
    client.publish("wait/x", "1", 1, 1);
    client.publish("t", "2", 1, 2);
    client.publish("t", "3", 1, 3);
    server.desk.await_count(3);
    server.desk.answer(2, Ok(Seq(3)));
    server.desk.answer(1, Err(Refusal::Full));
    server.desk.answer(0, Ok(Seq(1)));
    assert!(client.receive_within(Duration::from_millis(100)).is_none());
    server.desk.deliver(true);
    let answers = [client.ack(), client.ack(), client.ack()];
    assert_eq!(answers, [(Kind::Puback, 1, 0), (Kind::Puback, 2, 0x97), (Kind::Puback, 3, 0)]);
}
