//! What a restart of the daemon leaves of sessions, wills and messages, after a stop and after a kill.
//!
//! A kill is what the disk holds at that moment, given to another server; what the first one still does changes nothing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback::control::Version;
use switchback::io::applications::{QUEUE_MAX, RESTART_GRACE};

use super::client::{Client, Connect, Kind, Mode, SOON, Server, config, eventually, free_address, text};
use super::{BOTH, staying};

// ---- QoS 2 from a client

#[test]
fn a_kill_after_pubrec_repeats_nothing_and_one_before_it_loses_nothing() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let (mut app, _) = staying(&server, version, "app");
        app.publish("t", "1", 2, 1);
        assert_eq!(app.ack(), (Kind::Pubrec, 1, 0));
        // The client has not seen it: it sends the message again.
        let next = server.after_a_kill();
        let (mut app, present) = staying(&next, version, "app");
        assert!(present);
        app.publish_with("t", "1", 2, 1, false, true, vec![]);
        assert_eq!(app.ack(), (Kind::Pubrec, 1, 0));
        app.send_ack(0x62, 1);
        assert_eq!(app.ack(), (Kind::Pubcomp, 1, 0));
        assert_eq!(next.desk.count(), 0);
        // Accepted by nobody when the daemon dies: it is offered to the next one.
        next.desk.set(Mode::Hold);
        app.publish("t", "2", 2, 2);
        next.desk.await_count(1);
        let third = next.after_a_kill();
        let (mut app, _) = staying(&third, version, "app");
        app.publish_with("t", "2", 2, 2, false, true, vec![]);
        assert_eq!(app.ack(), (Kind::Pubrec, 2, 0));
        assert_eq!(third.desk.payloads(), ["2"]);
    }
}

#[test]
fn a_kill_after_pubcomp_never_takes_the_next_message_for_the_last() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let (mut app, _) = staying(&server, version, "app");
        app.publish("t", "1", 2, 1);
        assert_eq!(app.ack(), (Kind::Pubrec, 1, 0));
        app.send_ack(0x62, 1);
        assert_eq!(app.ack(), (Kind::Pubcomp, 1, 0));
        // The number is free for another message, which the old daemon did not live to answer.
        let next = server.after_a_kill();
        let (mut app, _) = staying(&next, version, "app");
        app.publish_with("t", "2", 2, 1, false, true, vec![]);
        assert_eq!(app.ack(), (Kind::Pubrec, 1, 0));
        assert_eq!(next.desk.payloads(), ["2"]);
    }
}

#[test]
fn between_local_clients_a_kill_neither_repeats_nor_loses_what_was_answered() {
    let server = Server::start(Mode::Accept);
    let (mut to, _) = staying(&server, Version::V5, "to");
    to.subscribe("$local/#", 2);
    to.disconnect();
    eventually("the end", || server.figures().clients == 0);
    let (mut from, _) = staying(&server, Version::V311, "from");
    for id in 1..=20 {
        from.publish("$local/x", &id.to_string(), 2, id);
    }
    for id in 1..=20 {
        assert_eq!(from.ack(), (Kind::Pubrec, id, 0));
    }
    let next = server.after_a_kill();
    let (mut from, _) = staying(&next, Version::V311, "from");
    for id in 1..=20 {
        from.publish_with("$local/x", &id.to_string(), 2, id, false, true, vec![]);
        assert_eq!(from.ack(), (Kind::Pubrec, id, 0));
    }
    let (mut to, _) = staying(&next, Version::V5, "to");
    let got: Vec<String> = (1..=20).map(|_| text(&to.message()).to_owned()).collect();
    assert_eq!(got, (1..=20).map(|id| id.to_string()).collect::<Vec<_>>());
    to.silent();
}

// ---- Wills

fn mourned(server: &Server, id: &str, clean: bool, expiry: u32, delay: u32) -> Client {
    let mut client = Client::dial(server.address, Version::V5);
    client.connect(&Connect {
        id,
        clean,
        expiry,
        will: Some((&format!("w/{id}"), id, true, delay)),
        ..Connect::default()
    });
    assert_eq!(client.connack().1, 0);
    client
}

/// A server over what another one left.
fn over(server: Server, killed: bool) -> Server {
    if killed {
        // What is not waited for is on disk after a second.
        std::thread::sleep(Duration::from_millis(1300));
        return server.after_a_kill();
    }
    server.again()
}

#[test]
fn whoever_comes_back_after_a_restart_takes_the_will_back_and_the_others_are_mourned() {
    let servers = [true, false].map(|killed| {
        let server = Server::start(Mode::Accept);
        let clients = [
            mourned(&server, "brief", true, 0, 0),
            mourned(&server, "stays", false, 1000, 0),
            mourned(&server, "back-brief", true, 0, 0),
            mourned(&server, "back", false, 1000, 0),
        ];
        mourned(&server, "left", true, 0, 0).disconnect();
        eventually("the end", || server.figures().clients == 4);
        let next = over(server, killed);
        drop(clients);
        next
    });
    let start = Instant::now();
    let mut watchers = servers.each_ref().map(|server| {
        let mut watcher = server.client(Version::V5, "watcher");
        watcher.subscribe("w/#", 1);
        let back = [mourned(server, "back-brief", true, 0, 0), mourned(server, "back", false, 1000, 0)];
        watcher.silent();
        (watcher, back)
    });
    for ((watcher, back), server) in watchers.iter_mut().zip(&servers) {
        let limit = RESTART_GRACE + SOON;
        let mut gone: Vec<String> = Vec::new();
        for _ in 0..2 {
            let packet = watcher.receive_within(limit).expect("a will");
            gone.push(switchback::io::packet::Publish::from_packet(packet).unwrap().topic);
        }
        gone.sort();
        assert_eq!(gone, ["w/brief", "w/stays"]);
        assert!(start.elapsed() + Duration::from_secs(3) > RESTART_GRACE, "{:?}", start.elapsed());
        watcher.silent();
        assert_eq!(server.desk.count(), 2);
        back.iter_mut().for_each(Client::ping);
        // It was published once and for all: the next start knows.
        std::thread::sleep(Duration::from_millis(1300));
        assert_eq!(server.after_a_kill().figures().sessions, 3, "stays, back and back-brief");
    }
}

#[test]
fn a_will_that_was_due_later_is_due_then_also_after_a_restart() {
    let server = Server::start(Mode::Accept);
    drop(mourned(&server, "a", false, 1000, 4));
    let start = Instant::now();
    eventually("the end", || server.figures().clients == 0);
    let server = over(server, false);
    let mut watcher = server.client(Version::V5, "watcher");
    watcher.subscribe("w/#", 1);
    assert_eq!(text(&watcher.message()), "a");
    assert!((3000..5500).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
}

// ---- What expires while nobody is there

#[test]
fn what_expired_while_the_daemon_was_away_is_not_delivered() {
    for version in BOTH {
        let server = Server::start(Mode::Accept);
        let (mut app, _) = staying(&server, version, "app");
        app.subscribe("t/#", 2);
        app.disconnect();
        eventually("the end", || server.figures().clients == 0);
        let mut from = server.client(Version::V5, "from");
        let expiry = |seconds| vec![Property::MessageExpiryInterval(seconds)];
        for (id, topic, qos, seconds) in [(1, "t/1", 1, 1), (2, "t/2", 2, 1), (3, "t/3", 1, 100), (4, "t/4", 2, 100)] {
            from.publish_with(topic, "x", qos, id, true, false, expiry(seconds));
            from.ack();
        }
        from.disconnect();
        let (address, dir) = (server.address, Arc::clone(&server.dir));
        server.stop();
        std::thread::sleep(Duration::from_millis(1200));
        let server = Server::configured(Mode::Accept, config(Vec::new(), address), dir);
        let (mut app, present) = staying(&server, version, "app");
        assert!(present);
        let (mut topics, mut released) = (Vec::new(), 0);
        while topics.len() < 2 || released < 2 {
            match switchback::io::packet::Publish::from_packet(app.receive()) {
                Ok(publish) => {
                    match publish.properties.first() {
                        Some(Property::MessageExpiryInterval(left)) => assert!((90..100).contains(left), "{left}"),
                        other => assert!(other.is_none() && version == Version::V311),
                    }
                    topics.push(publish.topic);
                    app.send_ack(if publish.qos == 1 { 0x40 } else { 0x50 }, publish.id.unwrap());
                }
                // One for what was received, and one in case the client has the expired one: it forgets the number.
                Err(packet) => {
                    let id = match *packet {
                        MqttPacket::PubRel5(p) => p.packet_id,
                        MqttPacket::PubRel3(p) => p.message_id,
                        other => panic!("{other:?}"),
                    };
                    app.send_ack(0x70, id);
                    released += 1;
                }
            }
        }
        app.ping();
        assert_eq!((server.figures().queued, server.figures().queued_bytes), (0, 0));
        assert_eq!(topics, ["t/3", "t/4"]);
        app.silent();
        let mut late = server.client(version, "late");
        late.subscribe("t/#", 0);
        assert_eq!([late.message().topic, late.message().topic], ["t/3", "t/4"]);
        late.silent();
    }
}

#[test]
fn a_session_that_ended_while_the_daemon_was_away_leaves_only_its_will() {
    let server = Server::start(Mode::Accept);
    let mut brief = mourned(&server, "brief", false, 1, 0);
    brief.subscribe("t", 1);
    let (address, dir) = (server.address, Arc::clone(&server.dir));
    server.stop();
    std::thread::sleep(Duration::from_millis(1200));
    let server = Server::configured(Mode::Accept, config(Vec::new(), address), dir);
    assert_eq!(server.figures().sessions, 1);
    // It is no session to go on with.
    let mut again = Client::dial(server.address, Version::V5);
    again.connect(&Connect { id: "brief", clean: false, expiry: 1, ..Connect::default() });
    assert_eq!(again.connack(), (false, 0));
}

// ---- A client that is away for long

#[test]
fn a_full_queue_keeps_the_first_commands_drops_the_later_ones_and_holds_up_nobody() {
    let server = Server::start(Mode::Accept);
    let (mut app, _) = staying(&server, Version::V5, "app");
    app.subscribe("cmd/#", 2);
    app.disconnect();
    eventually("the end", || server.figures().clients == 0);
    let mut other = server.client(Version::V5, "other");
    other.subscribe("cmd/#", 0);
    for number in 0..QUEUE_MAX + 20 {
        server.downlink("cmd/x", number.to_string().as_bytes(), 2).blocking_recv().unwrap();
        assert_eq!(text(&other.message()), number.to_string());
    }
    let figures = server.figures();
    assert_eq!((figures.dropped, figures.commands_dropped, figures.queued), (20, 20, QUEUE_MAX));
    // A restart makes no room either.
    let server = server.after_a_kill();
    server.downlink("cmd/x", b"more", 1).blocking_recv().unwrap();
    assert!(server.figures().commands_dropped <= 1 && server.figures().queued <= QUEUE_MAX + 101);
    let (mut app, _) = staying(&server, Version::V5, "app");
    for number in 0..100 {
        assert_eq!(text(&app.message()), number.to_string());
    }
}

#[test]
fn what_expired_makes_room_for_what_comes() {
    let server = Server::with(Mode::Accept, Vec::new(), free_address());
    let (mut app, _) = staying(&server, Version::V5, "app");
    app.subscribe("t", 1);
    app.disconnect();
    eventually("the end", || server.figures().clients == 0);
    let mut from = server.client(Version::V5, "from");
    for number in 0..QUEUE_MAX {
        let seconds = if number % 2 == 0 { 1 } else { 1000 };
        from.publish_with("t", "old", 1, 1, false, false, vec![Property::MessageExpiryInterval(seconds)]);
        from.ack();
    }
    std::thread::sleep(Duration::from_millis(1100));
    from.publish("t", "new", 1, 1);
    from.ack();
    let figures = server.figures();
    assert_eq!((figures.dropped, figures.queued), (0, QUEUE_MAX / 2 + 1));
}
