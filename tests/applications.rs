//! The local applications' face over real sockets, as an application sees it.
//!
//! Long, because it is a list: one test for each thing an application may rely on or may try.

#[path = "applications/answers.rs"]
mod answers;
#[path = "applications/client.rs"]
mod client;
#[path = "applications/limits.rs"]
mod limits;
#[path = "applications/restarts.rs"]
mod restarts;

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::{Duration, Instant};

use client::{Client, Connect, Kind, Mode, Next, SOON, Server, eventually, free_address, text};
use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use flowsdk::mqtt_serde::mqttv5::disconnectv5::MqttDisconnect;
use flowsdk::mqtt_serde::mqttv5::unsubscribev5::MqttUnsubscribe;
use switchback::config::PublishRule;
use switchback::control::{Seq, Version};
use switchback::corridor::Refusal;
use switchback::io::applications::{CLIENTS_MAX, QUEUE_MAX, RECEIVE_MAX};
use switchback::io::packet::PACKET_MAX;

const BOTH: [Version; 2] = [Version::V311, Version::V5];

// ---- Going up

#[test]
fn an_acknowledgement_comes_when_the_offer_is_accepted_and_never_before() {
    for version in BOTH {
        let server = Server::start(Mode::Hold);
        let mut client = server.client(version, "a");
        client.publish("t", "1", 1, 7);
        client.publish("t", "2", 2, 8);
        server.desk.await_count(2);
        client.silent();
        client.ping();
        server.desk.answer(0, Ok(Seq(1)));
        assert_eq!(client.ack(), (Kind::Puback, 7, 0));
        client.silent();
        server.desk.answer(0, Ok(Seq(2)));
        assert_eq!(client.ack(), (Kind::Pubrec, 8, 0));
        client.send_ack(0x62, 8);
        assert_eq!(client.ack(), (Kind::Pubcomp, 8, 0));
    }
}

#[test]
fn many_are_offered_at_once_and_acknowledged_in_their_order() {
    for version in BOTH {
        let server = Server::start(Mode::Hold);
        let mut client = server.client(version, "a");
        for id in 1..=20 {
            client.publish("t", &id.to_string(), 1, id);
        }
        server.desk.await_count(20);
        for index in (0..20).rev() {
            client.silent_for(Duration::from_millis(5));
            server.desk.answer(index, Ok(Seq(0)));
        }
        for id in 1..=20 {
            assert_eq!(client.ack(), (Kind::Puback, id, 0));
        }
        let expected: Vec<String> = (1..=20).map(|id: u16| id.to_string()).collect();
        assert_eq!(server.desk.payloads(), expected);
    }
}

#[test]
fn a_refused_message_is_told_with_mqtt_5_and_sent_again_with_3_1_1() {
    let server = Server::start(Mode::Refuse(Refusal::Full));
    let mut new = server.client(Version::V5, "new");
    new.publish("t", "1", 1, 1);
    assert_eq!(new.ack(), (Kind::Puback, 1, 0x97));
    new.publish("t", "2", 2, 2);
    assert_eq!(new.ack(), (Kind::Pubrec, 2, 0x97));
    new.publish("t", "3", 0, 0);
    eventually("a counted refusal", || server.figures().refused == 1);
    new.ping();
    let mut old = server.client(Version::V311, "old");
    old.publish("t", "4", 1, 1);
    assert_eq!(old.closed_within(SOON), None);
}

#[test]
fn a_daemon_that_stops_acknowledges_nothing() {
    let server = Server::start(Mode::Refuse(Refusal::Stopping));
    let mut client = server.client(Version::V5, "a");
    client.publish("t", "1", 1, 1);
    assert_eq!(client.closed_within(SOON), Some(0x8b));
    let mut client = server.client(Version::V5, "a");
    server.stop();
    assert_eq!(client.closed_within(SOON), Some(0x8b));
}

#[test]
fn a_client_with_3_1_1_waits_at_the_limit_and_one_with_5_is_held_to_it() {
    let server = Server::start(Mode::Hold);
    let mut old = server.client(Version::V311, "old");
    for id in 1..=RECEIVE_MAX + 50 {
        old.publish("t", "x", 1, id);
    }
    server.desk.await_count(u64::from(RECEIVE_MAX));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(server.desk.count(), u64::from(RECEIVE_MAX));
    server.desk.accept_all();
    server.desk.await_count(u64::from(RECEIVE_MAX) + 50);
    server.desk.accept_all();
    for id in 1..=RECEIVE_MAX + 50 {
        assert_eq!(old.ack(), (Kind::Puback, id, 0));
    }
    let mut new = server.client(Version::V5, "new");
    for id in 1..=RECEIVE_MAX {
        new.publish("t", "x", if id % 2 == 0 { 1 } else { 2 }, id);
    }
    new.ping();
    new.publish("t", "x", 1, RECEIVE_MAX + 1);
    assert_eq!(new.closed_within(SOON), Some(0x93));
}

#[test]
fn a_stuck_outbox_makes_a_flood_wait_and_nobody_else() {
    let server = Server::start(Mode::Hold);
    let mut flood = server.client(Version::V5, "flood");
    let sender = std::thread::spawn(move || {
        let payload = "x".repeat(10_000);
        for _ in 0..5_000 {
            flood.publish("t", &payload, 0, 0);
        }
        flood
    });
    server.desk.await_count(50);
    let mut other = server.client(Version::V311, "other");
    for _ in 0..20 {
        let start = Instant::now();
        other.ping();
        assert!(start.elapsed() < Duration::from_millis(50), "{:?}", start.elapsed());
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(server.desk.count() < 150, "{}", server.desk.count());
    server.desk.forget();
    server.desk.set(Mode::Accept);
    server.desk.accept_all();
    sender.join().unwrap().ping();
    server.desk.await_count(5_000);
}

#[test]
fn what_was_sent_with_qos_0_before_the_end_still_goes_up() {
    let server = Server::start(Mode::Accept);
    for round in 1..=20 {
        let mut client = server.client(Version::V311, "");
        for _ in 0..50 {
            client.publish("t", "x", 0, 0);
        }
        client.disconnect();
        server.desk.await_count(round * 50);
    }
}

#[test]
fn qos_2_is_offered_once_however_often_it_is_sent() {
    for version in BOTH {
        let server = Server::start(Mode::Hold);
        let stays = Connect { id: "a", clean: false, expiry: 1000, ..Connect::default() };
        let mut watcher = server.client(version, "watcher");
        watcher.subscribe("#", 2);
        let mut first = Client::dial(server.address, version);
        first.connect(&stays);
        first.connack();
        first.publish("t", "x", 2, 5);
        server.desk.await_count(1);
        drop(first);
        eventually("the end", || server.figures().clients == 1);
        let mut second = Client::dial(server.address, version);
        second.connect(&stays);
        assert_eq!(second.connack(), (true, 0));
        second.publish_with("t", "x", 2, 5, false, true, Vec::new());
        second.silent();
        server.desk.accept_all();
        assert_eq!(second.ack(), (Kind::Pubrec, 5, 0));
        second.publish_with("t", "x", 2, 5, false, true, Vec::new());
        assert_eq!(second.ack(), (Kind::Pubrec, 5, 0));
        second.send_ack(0x62, 5);
        assert_eq!(second.ack(), (Kind::Pubcomp, 5, 0));
        assert_eq!(server.desk.count(), 1);
        assert_eq!(text(&watcher.message()), "x");
        watcher.silent();
        // The number is free again.
        second.publish("t", "y", 2, 5);
        server.desk.await_count(2);
    }
}

#[test]
fn rules_name_the_topic_in_the_cloud_and_the_rest_stays_local() {
    let rule =
        |topic: &str, qos, to: &str| PublishRule { topic: topic.into(), qos, to: to.into(), ..PublishRule::default() };
    let rules = vec![rule("up/+", 0, "gw/1/{topic}"), rule("up/#", 1, "other/{rest}")];
    let server = Server::with(Mode::Hold, rules, free_address());
    let mut client = server.client(Version::V5, "a");
    client.subscribe("local/#", 0);
    client.publish("local/x", "1", 1, 1);
    assert_eq!(text(&client.message_before_ack(Kind::Puback, 1)), "1");
    client.publish_with("up/x", "2", 2, 2, true, false, vec![Property::UserProperty("k".into(), "v".into())]);
    client.publish("up/x/y", "3", 1, 3);
    server.desk.await_count(2);
    let drafts = server.desk.drafts();
    assert_eq!((drafts[0].topic.as_str(), drafts[0].qos, drafts[0].retain), ("gw/1/up/x", 0, true));
    assert_eq!((drafts[1].topic.as_str(), drafts[1].qos, drafts[1].retain), ("other/x/y", 1, false));
    let properties = switchback::io::packet::properties_from_bytes(&drafts[0].properties);
    assert_eq!(properties, [Property::UserProperty("k".into(), "v".into())]);
}

#[test]
fn dollar_topics_never_go_up() {
    let server = Server::start(Mode::Accept);
    let mut new = server.client(Version::V5, "new");
    new.publish("$SYS/x", "1", 1, 1);
    assert_eq!(new.ack(), (Kind::Puback, 1, 0));
    let mut old = server.client(Version::V311, "old");
    old.publish("$SYS/x", "1", 1, 1);
    assert_eq!(old.ack(), (Kind::Puback, 1, 0));
    assert_eq!(server.desk.count(), 0);
}

// ---- Between applications

#[test]
fn every_qos_reaches_subscribers_of_both_versions() {
    for (publisher, subscriber) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let server = Server::start(Mode::Accept);
        let mut from = server.client(BOTH[publisher], "from");
        let mut to = server.client(BOTH[subscriber], "to");
        for qos in 0..=2 {
            assert_eq!(to.subscribe(&format!("q{qos}/+"), qos), qos);
        }
        for subscribed in 0..=2 {
            for published in 0..=2 {
                from.publish(&format!("q{subscribed}/x"), "m", published, 9);
                match published {
                    0 => {}
                    1 => assert_eq!(from.ack(), (Kind::Puback, 9, 0)),
                    _ => {
                        assert_eq!(from.ack(), (Kind::Pubrec, 9, 0));
                        from.send_ack(0x62, 9);
                        assert_eq!(from.ack(), (Kind::Pubcomp, 9, 0));
                    }
                }
                let message = to.message();
                assert_eq!((message.qos, message.retain, message.dup), (subscribed.min(published), false, false));
                match (message.qos, message.id) {
                    (1, Some(id)) => to.send_ack(0x40, id),
                    (2, Some(id)) => {
                        to.send_ack(0x50, id);
                        assert_eq!(to.ack(), (Kind::Pubrel, id, 0));
                        to.send_ack(0x70, id);
                    }
                    (_, id) => assert_eq!(id, None),
                }
            }
        }
        to.silent();
    }
}

#[test]
fn retained_messages_greet_new_subscribers() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let mut from = server.client(version, "from");
        for (topic, payload) in [("a/1", "x"), ("a/2", "y"), ("a/1", "z"), ("a/3", "gone"), ("a/3", "")] {
            from.publish_retained(topic, payload);
        }
        from.ping();
        let mut to = server.client(version, "to");
        to.subscribe("a/#", 0);
        for expected in ["z", "y"] {
            let message = to.message();
            assert_eq!((text(&message), message.retain), (expected, true));
        }
        from.publish_retained("a/2", "live");
        let message = to.message();
        assert_eq!((text(&message), message.retain), ("live", false));
        to.silent();
    }
}

#[test]
fn the_options_of_an_mqtt_5_subscription_hold() {
    let server = Server::start(Mode::Accept);
    let mut client = server.client(Version::V5, "a");
    client.publish_retained("r/1", "kept");
    // Retain handling 2 never sends, 1 only for a new subscription, 0 always.
    client.subscribe("r/#", 0x20);
    client.silent();
    client.subscribe("r/#", 0x10);
    client.silent();
    client.subscribe("r/+", 0x10);
    assert_eq!(text(&client.message()), "kept");
    client.subscribe("r/#", 0x00);
    assert_eq!(text(&client.message()), "kept");
    // No local.
    client.subscribe("n", 0x04);
    client.publish("n", "own", 0, 0);
    client.silent();
    // Retain as published, and identifiers.
    client.subscribe_with("p", 0x08, vec![Property::SubscriptionIdentifier(300)]);
    client.publish_with("p", "x", 0, 0, true, false, vec![Property::MessageExpiryInterval(100)]);
    let message = client.message();
    assert!(message.retain);
    assert!(message.properties.contains(&Property::SubscriptionIdentifier(300)));
    let expiry = message.properties.iter().find(|p| matches!(p, Property::MessageExpiryInterval(99 | 100)));
    assert!(expiry.is_some(), "{:?}", message.properties);
    client.send(&MqttPacket::Unsubscribe5(MqttUnsubscribe::new(3, vec!["p".into(), "none".into()], vec![])));
    match client.receive() {
        MqttPacket::UnsubAck5(p) => assert_eq!((p.packet_id, p.reason_codes), (3, vec![0, 0x11])),
        other => panic!("{other:?}"),
    }
    client.publish("p", "x", 0, 0);
    client.silent();
}

#[test]
fn filters_we_do_not_serve_are_refused_with_their_code() {
    let server = Server::start(Mode::Accept);
    let (mut old, mut new) = (server.client(Version::V311, "old"), server.client(Version::V5, "new"));
    assert_eq!((old.subscribe("$share/g/t", 1), new.subscribe("$share/g/t", 1)), (0x80, 0x9e));
    assert_eq!((old.subscribe("a/#/b", 1), new.subscribe("a/#/b", 1)), (0x80, 0x8f));
    old.ping();
    new.ping();
}

// ---- Sessions

#[test]
fn the_same_identifier_takes_the_connection_over() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let mut first = server.client(version, "same");
        let mut second = server.client(version, "same");
        assert_eq!(first.closed_within(SOON), (version == Version::V5).then_some(0x8e));
        second.ping();
        assert_eq!(server.figures().clients, 1);
    }
}

#[test]
fn a_persistent_session_waits_for_its_client_and_sends_again_what_was_not_acknowledged() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let stays = Connect { id: "stays", clean: false, expiry: 1000, ..Connect::default() };
        let mut first = Client::dial(server.address, version);
        first.connect(&stays);
        assert_eq!(first.connack(), (false, 0));
        first.subscribe("t", 2);
        let mut from = server.client(Version::V5, "from");
        from.publish("t", "one", 1, 1);
        from.publish("t", "two", 2, 2);
        let ids = [first.message().id.unwrap(), first.message().id.unwrap()];
        first.send_ack(0x50, ids[1]);
        assert_eq!(first.ack(), (Kind::Pubrel, ids[1], 0));
        first.disconnect();
        eventually("the end", || server.figures().clients == 1);
        from.publish("t", "three", 1, 3);
        from.publish("t", "lost", 0, 0);
        from.ping_through();
        let mut second = Client::dial(server.address, version);
        second.connect(&stays);
        assert_eq!(second.connack(), (true, 0));
        let again = second.message();
        assert_eq!((text(&again), again.dup, again.id), ("one", true, Some(ids[0])));
        assert_eq!(second.ack(), (Kind::Pubrel, ids[1], 0));
        let waited = second.message();
        assert_eq!((text(&waited), waited.dup), ("three", false));
        second.silent();
        second.disconnect();
        // A clean start forgets it all.
        let mut third = Client::dial(server.address, version);
        third.connect(&Connect { id: "stays", ..Connect::default() });
        assert_eq!(third.connack(), (false, 0));
        from.publish("t", "four", 1, 4);
        third.silent();
    }
}

#[test]
fn an_mqtt_5_session_ends_when_its_time_is_up() {
    let server = Server::start(Mode::Accept);
    let brief = Connect { id: "brief", clean: false, expiry: 1, ..Connect::default() };
    let mut client = Client::dial(server.address, Version::V5);
    client.connect(&brief);
    client.connack();
    client.disconnect();
    eventually("the end of the session", || server.figures().sessions == 0);
    // DISCONNECT can make it longer, but not out of nothing.
    let mut client = Client::dial(server.address, Version::V5);
    client.connect(&brief);
    assert_eq!(client.connack(), (false, 0));
    client.send(&MqttPacket::Disconnect5(MqttDisconnect::new(0, vec![Property::SessionExpiryInterval(1000)])));
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(server.figures().sessions, 1);
    let mut client = server.client(Version::V5, "other");
    client.send(&MqttPacket::Disconnect5(MqttDisconnect::new(0, vec![Property::SessionExpiryInterval(1000)])));
    assert_eq!(client.closed_within(SOON), Some(0x82));
}

#[test]
fn a_client_without_an_identifier_gets_one() {
    let server = Server::start(Mode::Accept);
    for version in BOTH {
        let (mut a, mut b) = (server.client(version, ""), server.client(version, ""));
        a.ping();
        b.ping();
    }
    let mut client = Client::dial(server.address, Version::V5);
    client.connect(&Connect::default());
    let MqttPacket::ConnAck5(connack) = client.receive() else { panic!() };
    let properties = connack.properties.unwrap();
    assert!(properties.iter().any(|p| matches!(p, Property::AssignedClientIdentifier(id) if id.starts_with("auto-"))));
    for announced in [
        Property::ReceiveMaximum(RECEIVE_MAX),
        Property::SharedSubscriptionAvailable(0),
        Property::TopicAliasMaximum(0),
        Property::MaximumPacketSize(PACKET_MAX as u32),
    ] {
        assert!(properties.contains(&announced), "{announced:?}");
    }
    let mut client = Client::dial(server.address, Version::V311);
    client.connect(&Connect { clean: false, ..Connect::default() });
    assert_eq!(client.connack(), (false, 2));
    client.closed_within(SOON);
}

#[test]
fn other_versions_are_told_so() {
    let server = Server::start(Mode::Accept);
    let mut client = Client::dial(server.address, Version::V311);
    client.raw(b"\x10\x0e\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00");
    assert_eq!(client.connack(), (false, 1));
    client.closed_within(SOON);
    let mut client = Client::dial(server.address, Version::V5);
    client.raw(b"\x10\x0d\x00\x04MQTT\x06\x02\x00\x00\x00\x00\x00");
    assert_eq!(client.connack(), (false, 0x84));
    client.closed_within(SOON);
}

#[test]
fn a_will_is_published_unless_the_client_says_goodbye() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let mut watcher = server.client(Version::V5, "watcher");
        watcher.subscribe("will/#", 1);
        let dial = |id| {
            let mut client = Client::dial(server.address, version);
            client.connect(&Connect { id, will: Some(("will/x", "gone", true, 0)), ..Connect::default() });
            client.connack();
            client
        };
        dial("a").disconnect();
        watcher.silent();
        drop(dial("a"));
        assert_eq!(text(&watcher.message()), "gone");
        assert_eq!(server.desk.payloads(), ["gone"]);
        // Taken over, malformed: the will too.
        let first = dial("a");
        let mut second = dial("a");
        assert_eq!(text(&watcher.message()), "gone");
        second.raw(&[0xf0, 0x00]);
        assert_eq!(text(&watcher.message()), "gone");
        drop(first);
        if version == Version::V5 {
            let mut third = dial("a");
            third.raw(&[0xe0, 1, 4]);
            assert_eq!(text(&watcher.message()), "gone");
        }
        watcher.silent();
        let mut late = server.client(Version::V311, "late");
        late.subscribe("will/#", 0);
        assert!(late.message().retain);
    }
}

#[test]
fn a_delayed_will_comes_late_or_not_at_all() {
    let server = Server::start(Mode::Accept);
    let mut watcher = server.client(Version::V5, "watcher");
    watcher.subscribe("w", 0);
    let dial = || {
        let mut client = Client::dial(server.address, Version::V5);
        let will = Some(("w", "gone", false, 1));
        client.connect(&Connect { id: "a", clean: false, expiry: 60, will, ..Connect::default() });
        client.connack();
        client
    };
    drop(dial());
    std::thread::sleep(Duration::from_millis(300));
    let second = dial();
    assert!(watcher.receive_within(Duration::from_millis(1500)).is_none());
    drop(second);
    let start = Instant::now();
    assert_eq!(text(&watcher.message()), "gone");
    assert!(start.elapsed() > Duration::from_millis(800), "{:?}", start.elapsed());
    server.desk.await_count(1);
}

#[test]
fn silence_for_one_and_a_half_keep_alives_ends_the_connection() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let mut client = Client::dial(server.address, version);
        client.connect(&Connect { id: "a", keep_alive: 1, ..Connect::default() });
        client.connack();
        let start = Instant::now();
        for _ in 0..3 {
            std::thread::sleep(Duration::from_millis(900));
            client.ping();
        }
        assert_eq!(client.closed_within(SOON), (version == Version::V5).then_some(0x8d));
        let elapsed = start.elapsed();
        assert!((4_100..4_700).contains(&elapsed.as_millis()), "{elapsed:?}");
    }
}

// ---- Over a restart

/// A client whose session stays.
fn staying(server: &Server, version: Version, id: &str) -> (Client, bool) {
    let mut client = Client::dial(server.address, version);
    client.connect(&Connect { id, clean: false, expiry: 1000, ..Connect::default() });
    let (present, code) = client.connack();
    assert_eq!(code, 0);
    (client, present)
}

#[test]
fn what_was_acknowledged_for_a_client_that_is_away_survives_a_kill() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let (mut app, _) = staying(&server, version, "app");
        app.subscribe("cmd/#", 2);
        app.subscribe("gone", 2);
        app.send(&match version {
            Version::V5 => MqttPacket::Unsubscribe5(MqttUnsubscribe::new(3, vec!["gone".into()], vec![])),
            Version::V311 => MqttPacket::Unsubscribe3(
                flowsdk::mqtt_serde::mqttv3::unsubscribev3::MqttUnsubscribe::new(3, vec!["gone".into()]),
            ),
        });
        app.receive();
        app.disconnect();
        eventually("the end", || server.figures().clients == 0);
        server.downlink("cmd/1", b"one", 1).blocking_recv().unwrap();
        server.downlink("cmd/2", b"two", 2).blocking_recv().unwrap();
        let mut from = server.client(Version::V5, "from");
        from.publish("cmd/3", "three", 1, 1);
        assert_eq!(from.ack(), (Kind::Puback, 1, 0));
        let next = server.after_a_kill();
        let (mut app, present) = staying(&next, version, "app");
        assert!(present);
        let mut ids = Vec::new();
        for (expected, qos) in [("one", 1), ("two", 2), ("three", 1)] {
            let message = app.message();
            assert_eq!((text(&message), message.qos), (expected, qos));
            ids.push(message.id.unwrap());
        }
        app.send_ack(0x40, ids[0]);
        app.send_ack(0x50, ids[1]);
        assert_eq!(app.ack(), (Kind::Pubrel, ids[1], 0));
        // PUBREL is sent only when the disk knows of it: the identifier never stands for a second message.
        let third = next.after_a_kill();
        let (mut app, _) = staying(&third, version, "app");
        let mut rest = vec![app.receive(), app.receive()];
        rest.retain(|packet| matches!(packet, MqttPacket::PubRel5(_) | MqttPacket::PubRel3(_)));
        assert_eq!(rest.len(), 1);
        let mut from = third.client(Version::V5, "from");
        from.publish("gone", "x", 0, 0);
        from.ping();
    }
}

#[test]
fn a_stop_keeps_what_a_kill_would_repeat_and_a_clean_start_forgets_it_for_good() {
    let server = Server::start(Mode::Accept);
    let (mut app, _) = staying(&server, Version::V5, "app");
    app.subscribe("t", 1);
    let mut from = server.client(Version::V5, "from");
    from.publish_retained("kept", "r");
    for (id, payload) in [(1, "one"), (2, "two")] {
        from.publish("t", payload, 1, id);
        from.ack();
    }
    let (one, two) = (app.message(), app.message());
    app.send_ack(0x40, one.id.unwrap());
    app.ping();
    let server = server.again();
    let (mut app, present) = staying(&server, Version::V5, "app");
    assert!(present);
    let again = app.message();
    assert_eq!((text(&again), again.id, again.dup), ("two", two.id, true));
    app.send_ack(0x40, again.id.unwrap());
    app.silent();
    app.subscribe("kept", 0);
    assert_eq!(text(&app.message()), "r");
    app.disconnect();
    drop(server.client(Version::V5, "app"));
    let server = server.again();
    assert!(!staying(&server, Version::V5, "app").1);
}

#[test]
fn qos_2_from_a_client_is_taken_once_over_a_restart() {
    let server = Server::start(Mode::Accept);
    let (mut app, _) = staying(&server, Version::V311, "app");
    app.publish("t", "x", 2, 5);
    assert_eq!(app.ack(), (Kind::Pubrec, 5, 0));
    let server = server.again();
    let (mut app, _) = staying(&server, Version::V311, "app");
    app.publish_with("t", "x", 2, 5, false, true, Vec::new());
    assert_eq!(app.ack(), (Kind::Pubrec, 5, 0));
    assert_eq!(server.desk.count(), 0);
}

#[test]
fn an_expired_session_does_not_come_back_and_an_unexpired_one_has_what_is_left() {
    let server = Server::start(Mode::Accept);
    for (id, expiry) in [("brief", 1), ("long", 1000)] {
        let mut client = Client::dial(server.address, Version::V5);
        client.connect(&Connect { id, clean: false, expiry, ..Connect::default() });
        client.connack();
        client.subscribe("t", 1);
        client.disconnect();
    }
    eventually("the end", || server.figures().clients == 0);
    let (address, dir) = (server.address, std::sync::Arc::clone(&server.dir));
    server.stop();
    std::thread::sleep(Duration::from_millis(1100));
    let server = Server::configured(Mode::Accept, client::config(Vec::new(), address), dir);
    eventually("the end of the brief one", || server.figures().sessions == 1);
    assert!(staying(&server, Version::V5, "long").1);
}

#[test]
fn nothing_is_written_while_nothing_that_is_kept_changes() {
    let server = Server::start(Mode::Accept);
    let mut to = server.client(Version::V5, "to");
    to.subscribe("#", 2);
    let mut from = server.client(Version::V311, "from");
    for id in 1..=10 {
        from.publish("t", "x", 1, id);
        from.ack();
        server.downlink("t", b"y", 0);
        to.message();
        to.message();
    }
    server.client(Version::V5, "brief").disconnect();
    let dir = std::sync::Arc::clone(&server.dir);
    server.stop();
    assert!(!dir.path().join("sessions").exists());
}

#[test]
fn what_a_client_takes_at_once_is_never_written() {
    let server = Server::start(Mode::Accept);
    let (mut app, _) = staying(&server, Version::V5, "app");
    app.subscribe("t", 1);
    let file = server.dir.path().join("sessions");
    std::thread::sleep(Duration::from_millis(1200));
    let before = std::fs::metadata(&file).unwrap().len();
    for number in 0..20 {
        let taken = server.downlink("t", format!("{number}").as_bytes(), 1);
        let id = app.message().id.unwrap();
        app.send_ack(0x40, id);
        taken.blocking_recv().unwrap();
    }
    std::thread::sleep(Duration::from_millis(1200));
    let grown = std::fs::metadata(&file).unwrap().len() - before;
    // A machine that stalls may write one after all.
    assert!(grown < 1000, "{grown} bytes");
}

#[test]
fn a_damaged_file_is_set_aside_and_the_server_starts() {
    let dir = std::sync::Arc::new(tempfile::tempdir().unwrap());
    std::fs::write(dir.path().join("sessions"), [7; 5000]).unwrap();
    let server = Server::configured(Mode::Accept, client::config(Vec::new(), free_address()), dir);
    let (mut app, present) = staying(&server, Version::V5, "app");
    assert!(!present && server.dir.path().join("sessions.damaged").exists());
    app.subscribe("t", 1);
    assert!(staying(&server.after_a_kill(), Version::V5, "app").1);
}

#[test]
fn a_disk_that_fails_holds_up_local_clients_never_and_the_cloud_only_for_those_away() {
    let server = Server::start(Mode::Accept);
    // In the way of the new file.
    std::fs::create_dir(server.dir.path().join("sessions.new")).unwrap();
    let (mut app, _) = staying(&server, Version::V5, "app");
    app.subscribe("t", 2);
    app.disconnect();
    eventually("the end", || server.figures().clients == 0);
    let mut from = server.client(Version::V5, "from");
    from.publish("t", "one", 1, 1);
    assert_eq!(from.ack(), (Kind::Puback, 1, 0));
    let mut taken = server.downlink("t", b"two", 1);
    std::thread::sleep(Duration::from_millis(300));
    assert!(taken.try_recv().is_err());
    std::fs::remove_dir(server.dir.path().join("sessions.new")).unwrap();
    eventually("the disk again", || server.dir.path().join("sessions").exists());
    taken.blocking_recv().unwrap();
    let (mut app, _) = staying(&server.after_a_kill(), Version::V5, "app");
    assert_eq!((text(&app.message()), text(&app.message())), ("one", "two"));
}

// ---- From the cloud

#[test]
fn the_cloud_is_told_when_every_client_that_is_here_has_acknowledged() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let (mut a, mut b) = (server.client(version, "a"), server.client(version, "b"));
        a.subscribe("cmd/#", 1);
        b.subscribe("cmd/#", 2);
        let mut taken = server.downlink("cmd/x", b"do", 2);
        let (to_a, to_b) = (a.message().id.unwrap(), b.message().id.unwrap());
        a.send_ack(0x40, to_a);
        a.ping();
        assert!(taken.try_recv().is_err());
        b.send_ack(0x50, to_b);
        taken.blocking_recv().unwrap();
        // Who goes, and leaves no session, is waited for no longer.
        let mut taken = server.downlink("cmd/y", b"do", 1);
        let to_a = a.message().id.unwrap();
        a.send_ack(0x40, to_a);
        a.ping();
        assert!(taken.try_recv().is_err());
        drop(b);
        taken.blocking_recv().unwrap();
    }
}

#[test]
fn what_the_cloud_sent_reaches_subscribers_and_never_goes_up() {
    let server = Server::start(Mode::Accept);
    let mut client = server.client(Version::V5, "a");
    client.subscribe("cmd/#", 1);
    let taken = server.downlink("cmd/x", b"do", 2);
    let message = client.message();
    assert_eq!((text(&message), message.qos), ("do", 1));
    client.send_ack(0x40, message.id.unwrap());
    taken.blocking_recv().unwrap();
    // Nobody wants this one.
    server.downlink("other", b"x", 1).blocking_recv().unwrap();
    assert_eq!(server.desk.count(), 0);
    assert_eq!((server.figures().retained, server.figures().unwanted), (0, 1));
}

#[test]
fn a_client_that_does_not_read_holds_up_the_cloud_for_a_short_time_only() {
    let server = Server::start(Mode::Accept);
    let mut slow = server.client(Version::V311, "slow");
    slow.subscribe("cmd/#", 1);
    let mut quick = server.client(Version::V311, "quick");
    quick.subscribe("cmd/#", 0);
    let start = Instant::now();
    let mut waited = Vec::new();
    // Never acknowledged: first the window, then the queue fills.
    for number in 0..QUEUE_MAX + 150 {
        waited.push(server.downlink("cmd/x", &[b'x'; 100], 1));
        quick.message();
        if number == QUEUE_MAX + 120 {
            assert!(waited.last_mut().unwrap().try_recv().is_err(), "taken too early");
        }
    }
    for taken in waited {
        taken.blocking_recv().unwrap();
    }
    assert!(start.elapsed() < Duration::from_secs(9), "{:?}", start.elapsed());
    slow.closed_within(SOON);
    assert_eq!((server.figures().slow_dropped, server.figures().clients), (1, 1));
    quick.ping();
}

// ---- Rough company

#[test]
fn a_slow_subscriber_slows_nobody() {
    let server = Server::start(Mode::Accept);
    let mut slow = server.client(Version::V5, "slow");
    slow.subscribe("#", 0);
    let mut from = server.client(Version::V5, "from");
    let payload = "x".repeat(50_000);
    for id in 1..=400 {
        from.publish("t", &payload, 1, id);
        assert_eq!(from.ack(), (Kind::Puback, id, 0));
    }
    assert!(server.figures().dropped > 0);
}

#[test]
fn a_client_that_reads_nothing_for_30_seconds_is_dropped() {
    let server = Server::start(Mode::Accept);
    let mut slow = server.client(Version::V5, "slow");
    slow.subscribe("#", 0);
    let mut from = server.client(Version::V5, "from");
    for id in 1..=400 {
        from.publish("t", &"x".repeat(50_000), 1, id);
        from.ack();
    }
    let start = Instant::now();
    while server.figures().clients > 1 {
        assert!(start.elapsed() < Duration::from_secs(40), "still there");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(start.elapsed() > Duration::from_secs(25), "{:?}", start.elapsed());
}

#[test]
fn who_says_nothing_or_half_a_thing_is_dropped() {
    let server = Server::start(Mode::Accept);
    let mut mute = Client::dial(server.address, Version::V5);
    let mut half = Client::dial(server.address, Version::V5);
    half.raw(&[0x10, 0x20, 0]);
    let mut later = server.client(Version::V5, "later");
    later.raw(&[0x30, 0x20, 0]);
    let start = Instant::now();
    mute.closed_within(Duration::from_secs(15));
    half.closed_within(Duration::from_secs(15));
    assert!((9_000..12_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    later.closed_within(Duration::from_secs(40));
    assert!((29_000..33_000).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

#[test]
fn connections_that_say_nothing_keep_nobody_out() {
    let server = Server::start(Mode::Accept);
    let start = Instant::now();
    let mut silent: Vec<Client> = (0..90).map(|_| Client::dial(server.address, Version::V311)).collect();
    for number in 0..20 {
        server.client(BOTH[number % 2], &format!("c{number}")).ping();
    }
    // The oldest gave way, the youngest may still speak.
    assert_eq!(silent[0].closed_within(SOON), None);
    let mut last = silent.pop().unwrap();
    last.connect(&Connect { id: "last", ..Connect::default() });
    assert_eq!(last.connack(), (false, 0));
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
}

#[test]
fn the_65th_client_is_turned_away_and_may_come_back() {
    let server = Server::start(Mode::Accept);
    let mut clients: Vec<Client> =
        (0..CLIENTS_MAX).map(|number| server.client(BOTH[number % 2], &format!("c{number}"))).collect();
    for (version, code) in [(Version::V311, 3), (Version::V5, 0x97)] {
        let mut more = Client::dial(server.address, version);
        more.connect(&Connect { id: "more", ..Connect::default() });
        assert_eq!(more.connack(), (false, code));
        more.closed_within(SOON);
    }
    // One that only comes back is no further client.
    let mut again = server.client(Version::V311, "c0");
    again.ping();
    clients.pop().unwrap().disconnect();
    eventually("a free place", || server.figures().clients < CLIENTS_MAX);
    server.client(Version::V5, "more").ping();
    for client in &mut clients[1..] {
        client.ping();
    }
}

#[test]
fn five_hundred_connections_in_a_row_leave_nothing_behind() {
    let server = Server::start(Mode::Accept);
    server.client(Version::V311, "warm").disconnect();
    let files = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = files();
    for number in 0..500_u16 {
        let mut client = server.client(BOTH[usize::from(number % 2)], "");
        client.subscribe("t", 1);
        client.publish("t", "x", 1, 1);
        client.message_before_ack(Kind::Puback, 1);
        client.disconnect();
    }
    eventually("the end of all", || server.figures().sessions == 0);
    assert_eq!(server.desk.count(), 500);
    // Other tests run in this process too: far fewer than 500 is the point.
    assert!(files() < before + 200, "{before} -> {}", files());
}

#[test]
fn hostile_bytes_end_their_own_connection_only() {
    let server = Server::start(Mode::Accept);
    let mut good = server.client(Version::V311, "good");
    good.subscribe("good", 0);
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed_u64);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let talk = sample_conversation();
    for round in 0..1_500 {
        let version = BOTH[round % 2];
        let mut bytes = Vec::new();
        for packet in &talk[round % 2] {
            bytes.extend(packet);
            if random.below(4) == 0 {
                bytes.extend(packet);
            }
        }
        for _ in 0..=random.below(6) {
            let at = random.below(bytes.len());
            match random.below(4) {
                0 => bytes[at] = random.below(256) as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => drop(bytes.drain(at..(at + random.below(5)).min(bytes.len()))),
                _ => bytes.insert(at, random.below(256) as u8),
            }
        }
        let mut client = Client::dial(server.address, version);
        client.try_raw(&bytes);
        client.finish_writing();
        client.read_to_end();
        if round % 50 == 0 {
            good.publish("good", "still here", 0, 0);
            assert_eq!(text(&good.message()), "still here");
        }
    }
    good.ping();
}

#[test]
fn broken_packets_have_their_reason() {
    let server = Server::start(Mode::Accept);
    let cases: [(&[u8], u8); 13] = [
        (&[0x30, 0xff, 0xff, 0xff, 0x7f], 0x95),
        (&[0x82, 0xff, 0xff, 0x7f], 0x95),
        (&[0x30, 0x80, 0x80, 0x80, 0x80, 0x01], 0x81),
        (&[0x36, 5, 0, 1, b't', 0, 1, 0], 0x81),
        (&[0x32, 6, 0, 1, b't', 0, 0, 0], 0x82),
        (&[0x30, 4, 0, 1, b'#', 0], 0x90),
        (&[0x30, 3, 0, 0, 0], 0x90),
        (&[0x30, 7, 0, 1, b't', 3, 0x23, 0, 1], 0x94),
        (&[0x30, 6, 0, 1, b't', 2, 0x0b, 1], 0x82),
        (&[0x82, 3, 0, 1, 0], 0x82),
        (&[0x82, 7, 0, 1, 0, 0, 1, b't', 0x03], 0x82),
        (&[0x10, 0], 0x82),
        (&[0x20, 2, 0, 0], 0x82),
    ];
    for (bytes, reason) in cases {
        let mut client = server.client(Version::V5, "a");
        client.raw(bytes);
        assert_eq!(client.closed_within(SOON), Some(reason), "{bytes:x?}");
    }
    let mut first = Client::dial(server.address, Version::V5);
    first.raw(&[0xc0, 0]);
    first.closed_within(SOON);
    let mut large = Client::dial(server.address, Version::V5);
    large.raw(b"\x10\xff\x7f\x00\x04MQTT\x05\x02\x00\x00\x00");
    assert_eq!(large.connack(), (false, 0x95));
}

#[test]
fn a_clients_own_limits_are_kept() {
    let server = Server::start(Mode::Accept);
    let mut small = Client::dial(server.address, Version::V5);
    small.connect(&Connect { id: "small", receive_max: 2, packet_max: 100, ..Connect::default() });
    small.connack();
    small.subscribe("t", 1);
    let mut from = server.client(Version::V5, "from");
    let large = "x".repeat(200);
    for payload in ["1", &large, "2", "3"] {
        from.publish("t", payload, 1, 1);
        from.ack();
    }
    let (one, two) = (small.message(), small.message());
    assert_eq!((text(&one), text(&two)), ("1", "2"));
    small.silent();
    small.send_ack(0x40, two.id.unwrap());
    assert_eq!(text(&small.message()), "3");
}

// ---- Who may do what

/// Two users, "gw" and "two", with the password "secret", as mosquitto_passwd writes them.
fn guarded(rules: &str) -> Server {
    const HASH: &str = "$7$101$I8XSt7+FbZbg+pT8$\
        O+LBRm2p1esmknQLQaCsgm+LVM6zmMur58pWn3Pjn4g8QqOdyhAfBa5INVP1su1mPWexpmQX6dohDcVFFo/LdA==";
    let dir = tempfile::tempdir().unwrap();
    let (users, acl) = (dir.path().join("users"), dir.path().join("acl"));
    std::fs::write(&users, format!("gw:{HASH}\ntwo:{HASH}\n")).unwrap();
    std::fs::write(&acl, rules).unwrap();
    let mut config = client::config(Vec::new(), free_address());
    (config.local.password_file, config.local.acl_file) = (Some(users), Some(acl));
    Server::configured(Mode::Accept, config, std::sync::Arc::new(dir))
}

fn log_in(server: &Server, id: &str, user: &str, password: &str, flags: u8) -> (Client, (bool, u8)) {
    let mut body = b"\x00\x04MQTT\x04".to_vec();
    body.extend([0xc0 | flags, 0, 0]);
    for text in [id, user, password] {
        body.extend((text.len() as u16).to_be_bytes());
        body.extend(text.as_bytes());
    }
    let mut client = Client::dial(server.address, Version::V311);
    client.raw(&[0x10, body.len() as u8]);
    client.raw(&body);
    let answer = client.connack();
    (client, answer)
}

#[test]
fn only_known_users_come_in_and_only_to_the_topics_their_rules_cover() {
    let server = guarded("user gw\ntopic read cmd/#\ntopic write up/#\n");
    assert_eq!(log_in(&server, "a", "gw", "Secret", 2).1, (false, 4));
    assert_eq!(log_in(&server, "a", "nobody", "secret", 2).1, (false, 4));
    let mut anonymous = Client::dial(server.address, Version::V5);
    anonymous.connect(&Connect::default());
    assert_eq!(anonymous.connack(), (false, 0x86));
    let (mut known, answer) = log_in(&server, "a", "gw", "secret", 2);
    assert_eq!(answer, (false, 0));
    assert_eq!((known.subscribe("cmd/+", 1), known.subscribe("up/#", 1), known.subscribe("#", 1)), (1, 0x80, 0x80));
    known.publish("up/x", "1", 1, 1);
    assert_eq!(known.ack(), (Kind::Puback, 1, 0));
    known.publish("cmd/x", "1", 0, 0);
    known.silent();
    // 3.1.1 has no word for it.
    known.publish("cmd/x", "1", 1, 2);
    known.closed_within(SOON);
    assert_eq!(server.desk.count(), 1);
    assert_eq!((server.figures().strangers_refused, server.figures().denied), (3, 4));
}

#[test]
fn a_session_is_for_the_user_who_made_it() {
    let server = guarded("pattern readwrite #\n");
    let (mut mine, _) = log_in(&server, "s", "gw", "secret", 0);
    mine.subscribe("t", 1);
    assert_eq!(log_in(&server, "s", "two", "secret", 0).1, (false, 5));
    mine.ping();
    mine.disconnect();
    eventually("the end", || server.figures().clients == 0);
    server.downlink("t", b"for gw", 1).blocking_recv().unwrap();
    let (mut theirs, answer) = log_in(&server, "s", "two", "secret", 0);
    assert_eq!(answer, (false, 0));
    theirs.silent();
}

#[test]
fn a_broken_user_file_lets_nobody_in() {
    let dir = tempfile::tempdir().unwrap();
    let users = dir.path().join("users");
    std::fs::write(&users, "gw:secret\n").unwrap();
    let mut config = client::config(Vec::new(), free_address());
    config.local.password_file = Some(users);
    let server = Server::configured(Mode::Accept, config, std::sync::Arc::new(dir));
    assert_eq!(log_in(&server, "a", "gw", "secret", 2).1, (false, 4));
}

// ---- The doors

#[test]
fn the_unix_socket_serves_its_group() {
    let server = Server::start(Mode::Accept);
    let path = server.dir.path().join("mqtt.sock");
    let mut client = Client::dial_unix(&path, Version::V311);
    client.connect(&Connect { id: "u", ..Connect::default() });
    assert_eq!(client.connack(), (false, 0));
    client.publish("t", "x", 1, 1);
    assert_eq!(client.ack(), (Kind::Puback, 1, 0));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
}

#[test]
fn a_port_that_is_taken_is_served_once_it_is_free() {
    let squatter = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = squatter.local_addr().unwrap();
    let server = Server::with(Mode::Accept, Vec::new(), address);
    let mut by_socket = Client::dial_unix(&server.dir.path().join("mqtt.sock"), Version::V5);
    by_socket.connect(&Connect { id: "u", ..Connect::default() });
    assert_eq!(by_socket.connack(), (false, 0));
    std::thread::sleep(Duration::from_millis(300));
    drop(squatter);
    server.client(Version::V311, "a").ping();
    by_socket.ping();
}

#[test]
fn the_usual_command_line_clients_work() {
    let server = Server::start(Mode::Accept);
    let port = server.address.port().to_string();
    for version in ["mqttv311", "mqttv5"] {
        let run = |program: &str, arguments: &[&str]| {
            let mut command = Command::new(program);
            command.args(["-h", "127.0.0.1", "-p", &port, "-V", version]).args(arguments);
            command.stdout(std::process::Stdio::piped()).spawn().expect("mosquitto-clients is installed")
        };
        let subscriber = run("mosquitto_sub", &["-t", "m/#", "-q", "2", "-C", "3", "-W", "10"]);
        eventually("the subscriber", || server.figures().sessions == 1);
        std::thread::sleep(Duration::from_millis(200));
        for qos in ["0", "1", "2"] {
            let publisher = run("mosquitto_pub", &["-t", "m/x", "-q", qos, "-m", qos]);
            assert!(publisher.wait_with_output().unwrap().status.success());
        }
        let output = subscriber.wait_with_output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "0\n1\n2\n");
        eventually("the end", || server.figures().sessions == 0);
    }
    let old = Command::new("mosquitto_pub")
        .args(["-h", "127.0.0.1", "-p", &port, "-V", "mqttv31", "-t", "m/x", "-m", "x"])
        .output()
        .unwrap();
    assert!(!old.status.success());
    assert!(String::from_utf8_lossy(&old.stderr).contains("protocol version"), "{old:?}");
}

#[test]
fn how_fast_it_is() {
    let server = Server::start(Mode::Accept);
    server.desk.forget();
    for version in BOTH {
        let mut client = server.client(version, "fast");
        let (total, payload) = (50_000_u32, "x".repeat(200));
        let (mut sent, mut done) = (0, 0);
        let start = Instant::now();
        while done < total {
            while sent < total && sent - done < u32::from(RECEIVE_MAX) {
                client.publish("t/fast", &payload, 1, (sent % 60_000) as u16 + 1);
                sent += 1;
            }
            client.ack();
            done += 1;
        }
        let rate = f64::from(total) / start.elapsed().as_secs_f64();
        println!("{version}: {rate:.0} messages/s, QoS 1, 200 bytes, {RECEIVE_MAX} open");
    }
}

// ---- What the tests need

impl Client {
    fn silent_for(&mut self, limit: Duration) {
        assert!(matches!(self.next(limit), Next::Silence));
    }

    /// A message and an acknowledgement, in any order.
    fn message_before_ack(&mut self, kind: Kind, id: u16) -> switchback::io::packet::Publish {
        let mut message = None;
        let mut acknowledged = false;
        while message.is_none() || !acknowledged {
            match switchback::io::packet::Publish::from_packet(self.receive()) {
                Ok(publish) => {
                    if let Some(id) = publish.id {
                        self.send_ack(0x40, id);
                    }
                    message = Some(publish);
                }
                Err(packet) => match *packet {
                    MqttPacket::PubAck5(p) => acknowledged = (kind, p.packet_id) == (Kind::Puback, id),
                    MqttPacket::PubAck3(p) => acknowledged = (kind, p.message_id) == (Kind::Puback, id),
                    other => panic!("{other:?}"),
                },
            }
        }
        message.unwrap()
    }

    /// Waits until everything sent so far has been taken, whatever acknowledgements come meanwhile.
    fn ping_through(&mut self) {
        self.raw(&[0xc0, 0]);
        while !matches!(self.receive(), MqttPacket::PingResp5(_) | MqttPacket::PingResp3(_)) {}
    }
}

/// splitmix64: the same bytes for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % limit.max(1) as u64) as usize
    }
}

/// A short life of a client in both versions, packet by packet.
fn sample_conversation() -> [Vec<Vec<u8>>; 2] {
    let old: [&[u8]; 9] = [
        b"\x10\x1c\x00\x04MQTT\x04\x2e\x00\x3c\x00\x01h\x00\x04will\x00\x04gone\x00\x00",
        b"\x82\x08\x00\x01\x00\x03a/#\x02",
        b"\x32\x0a\x00\x03a/b\x00\x02xyz",
        b"\x34\x0a\x00\x03a/b\x00\x03xyz",
        b"\x62\x02\x00\x03",
        b"\x40\x02\x00\x01",
        b"\xa2\x07\x00\x04\x00\x03a/#",
        b"\xc0\x00",
        b"\xe0\x00",
    ];
    let new: [&[u8]; 9] = [
        b"\x10\x20\x00\x04MQTT\x05\x26\x00\x3c\x05\x11\x00\x00\x00\x01\x00\x01h\x00\x00\x04will\x00\x04gone",
        b"\x82\x0b\x00\x01\x02\x0b\x05\x00\x03a/#\x02",
        b"\x32\x12\x00\x03a/b\x00\x02\x07\x26\x00\x01k\x00\x01vxyz",
        b"\x34\x0b\x00\x03a/b\x00\x03\x00xyz",
        b"\x62\x02\x00\x03",
        b"\x40\x04\x00\x01\x00\x00",
        b"\xa2\x08\x00\x04\x00\x00\x03a/#",
        b"\xc0\x00",
        b"\xe0\x02\x00\x00",
    ];
    [old, new].map(|talk| talk.into_iter().map(<[u8]>::to_vec).collect())
}
