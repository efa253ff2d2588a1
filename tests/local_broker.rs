//! The bridge to a broker on this machine, against a real mosquitto and against brokers that misbehave.

#[path = "local_broker/bench.rs"]
mod bench;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bench::*;
use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback::config::PublishRule;
use switchback::corridor::Refusal;
use switchback::io::packet::{self, PACKET_MAX};
use switchback_control::{Lane, Seq, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep, timeout};

const SHORT: Duration = Duration::from_millis(400);

fn numbers(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

#[tokio::test]
async fn what_applications_publish_goes_up_by_the_rules_and_nothing_else_does() {
    let (broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let rules = [PublishRule { qos: 2, ..rule("t/#", "gw/{topic}") }, rule("fixed", "else")];
    let rig = Rig::new(config(&rules), address(broker.port), state.path(), &heart);
    rig.connected().await;
    let mut app = Client::on(broker.port).await;
    for qos in 0..3 {
        app.publish("t/x", &format!("{qos}"), qos).await;
    }
    app.publish("other", "no", 1).await;
    app.publish_with("fixed", b"3".to_vec(), 1, true, vec![]).await;
    let up = |topic: &str, text: &str, qos, retain| Up { topic: topic.into(), text: text.into(), qos, retain };
    let expected = [
        up("gw/t/x", "0", 2, false),
        up("gw/t/x", "1", 2, false),
        up("gw/t/x", "2", 2, false),
        up("else", "3", 1, true),
    ];
    assert_eq!(heart.until(4).await, expected);
    until(|| rig.figures().held == 0, || format!("{:?}", rig.figures())).await;
    let figures = rig.figures();
    assert_eq!((figures.received, figures.refused), (4, 0));
    rig.bridge.stop().await;
    until(|| broker.log().contains("Received DISCONNECT from switchback-gw"), || broker.log()).await;
}

#[tokio::test]
async fn nothing_is_acknowledged_before_it_is_accepted_and_a_broken_connection_repeats_nothing() {
    let (broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Ponders));
    let wire = Wire::to(broker.port).await;
    let rig = Rig::on(wire.port, state.path(), &heart).await;
    let mut app = Client::on(broker.port).await;
    for n in 0..6 {
        app.publish("t", &n.to_string(), 1 + n % 2).await;
    }
    until(|| rig.figures().received == 6, || "six".into()).await;
    sleep(SHORT).await;
    assert_eq!((rig.figures().held, heart.texts().len()), (6, 0));
    assert!(!broker.log().contains("Received PUBACK from switchback-gw"));
    // The broker sends them all again, while they wait and after they were accepted.
    wire.cut();
    rig.parted().await;
    rig.connected().await;
    wire.swallowing.store(true, Ordering::Relaxed);
    heart.decide().await;
    until(|| rig.figures().held == 0, || "answers".into()).await;
    // The answers are lost.
    sleep(SHORT).await;
    wire.cut();
    wire.swallowing.store(false, Ordering::Relaxed);
    rig.parted().await;
    rig.connected().await;
    heart.set(Mood::Takes);
    app.publish("t", "last", 1).await;
    until(|| heart.texts().last().is_some_and(|text| text == "last"), || format!("{:?}", heart.texts())).await;
    // QoS 1 comes again, as it may, where its answer was lost; QoS 2 never.
    let exact = |text: &&String| matches!(text.as_str(), "1" | "3" | "5");
    assert_eq!(heart.texts().iter().filter(exact).count(), 3, "{:?}", heart.texts());
    assert!(heart.texts().len() <= 10);
}

#[tokio::test]
async fn a_broker_that_restarts_with_what_it_kept_loses_nothing_and_repeats_no_retained_message() {
    let (mut broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let mut app = Client::on(broker.port).await;
    app.publish_with("state", b"retained".to_vec(), 1, true, vec![]).await;
    let rig = Rig::on(broker.port, state.path(), &heart).await;
    // What was there before us goes up once.
    assert_eq!(heart.until(1).await[0].text, "retained");
    heart.set(Mood::Refuses(Refusal::Full));
    for n in 0..30 {
        app.publish("t", &n.to_string(), 1 + n % 2).await;
    }
    until(|| rig.figures().received >= 20, || "a window".into()).await;
    broker.stop();
    rig.parted().await;
    broker.again();
    rig.connected().await;
    heart.set(Mood::Takes);
    heart.until(31).await;
    sleep(SHORT).await;
    assert_eq!(heart.texts()[1..], numbers(0..30));
    // Our own restart does not send it up again either.
    rig.bridge.stop().await;
    let mut app = Client::on(broker.port).await;
    app.publish("t", "meanwhile", 1).await;
    broker.stop();
    broker.again();
    let _rig = Rig::on(broker.port, state.path(), &heart).await;
    heart.until(32).await;
    sleep(SHORT).await;
    assert_eq!(heart.texts()[31..], ["meanwhile"]);
    assert_eq!(
        said(broker.port).iter().filter(|line| line.contains("wait there")).count(),
        1,
        "{:?}",
        said(broker.port)
    );
}

#[tokio::test]
async fn a_broker_that_forgets_everything_cannot_make_us_lose_what_we_have() {
    let (mut broker, state, heart) = (
        Mosquitto::start("autosave_interval 0"),
        tempfile::tempdir().unwrap(),
        Heart::new(Mood::Refuses(Refusal::Full)),
    );
    let rig = Rig::on(broker.port, state.path(), &heart).await;
    let mut app = Client::on(broker.port).await;
    for n in 0..10 {
        app.publish("t", &n.to_string(), 1 + n % 2).await;
    }
    until(|| rig.figures().held == 10, || format!("{:?}", rig.figures())).await;
    broker.kill();
    rig.parted().await;
    broker.again();
    rig.connected().await;
    let mut app = Client::on(broker.port).await;
    app.publish("t", "10", 2).await;
    heart.set(Mood::Takes);
    heart.until(11).await;
    sleep(SHORT).await;
    assert_eq!(heart.texts(), numbers(0..11));
    // And goes on with the same identifiers for other messages.
    for n in 11..40 {
        app.publish("t", &n.to_string(), 1 + n % 2).await;
    }
    heart.until(40).await;
    assert_eq!(heart.texts(), numbers(0..40));
}

#[tokio::test]
async fn killed_again_and_again_in_a_stream_nothing_is_lost_and_repeats_are_few() {
    const COUNT: usize = 5_000;
    const KILLS: u64 = 8;
    let (broker, state) = (Mosquitto::start("max_queued_messages 0"), tempfile::tempdir().unwrap());
    for qos in [1, 2] {
        let mut heart = Heart::new(Mood::Takes);
        let mut rig = Rig::on(broker.port, state.path(), &heart).await;
        let mut app = Client::on(broker.port).await;
        let stream = tokio::spawn(async move {
            for n in 0..COUNT {
                app.publish("t", &n.to_string(), qos).await;
            }
        });
        let mut all: Vec<String> = Vec::new();
        for kill in 0..KILLS {
            rig.connected().await;
            sleep(Duration::from_micros(20_000 + 7_777 * kill)).await;
            // What was accepted is on disk; everything else is gone.
            drop(rig);
            all.extend(heart.texts());
            heart = Heart::new(if kill == 3 { Mood::Ponders } else { Mood::Takes });
            rig = Rig::new(config(&[]), address(broker.port), state.path(), &heart);
        }
        stream.await.unwrap();
        let last = (COUNT - 1).to_string();
        until(|| all.contains(&last) || heart.texts().contains(&last), || format!("{:?}", heart.texts().last())).await;
        sleep(SHORT).await;
        all.extend(heart.texts());
        let mut seen = std::collections::HashSet::new();
        let first: Vec<String> = all.iter().filter(|text| seen.insert(text.as_str())).cloned().collect();
        assert_eq!(first, numbers(0..COUNT));
        let repeats = all.len() - COUNT;
        println!("QoS {qos}: {repeats} repeats after {KILLS} kills");
        // A window is what mosquitto has open: 20.
        assert!(repeats <= KILLS as usize * 20, "{repeats} repeats");
    }
}

#[tokio::test]
async fn a_message_that_waits_for_the_outbox_grows_old() {
    let (broker, state) = (Mosquitto::start(""), tempfile::tempdir().unwrap());
    let heart = Heart::new(Mood::Refuses(Refusal::Full));
    let rig = Rig::on(broker.port, state.path(), &heart).await;
    let mut app = Client::on(broker.port).await;
    for (text, seconds) in [("dead", 1), ("alive", 60), ("dead too", 2)] {
        app.publish_with("t", text.into(), 1, false, vec![Property::MessageExpiryInterval(seconds)]).await;
    }
    sleep(Duration::from_millis(2500)).await;
    heart.set(Mood::Takes);
    until(|| rig.figures().held == 0, || format!("{:?}", rig.figures())).await;
    assert_eq!((heart.texts(), rig.figures().refused), (vec!["alive".to_owned()], 2));
}

#[tokio::test]
async fn what_comes_from_the_cloud_reaches_applications_and_never_goes_up_again() {
    let (mut broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let rig = Rig::on(broker.port, state.path(), &heart).await;
    let mut app = Client::on(broker.port).await;
    app.subscribe("cmd/#").await;
    for qos in 0..3 {
        let taken = rig.down("cmd/x", &format!("{qos}"), qos, false).await;
        timeout(PATIENCE, taken).await.unwrap().unwrap();
        let message = app.message().await;
        assert_eq!(
            (message.topic.as_str(), message.payload, message.qos),
            ("cmd/x", format!("{qos}").into_bytes(), qos)
        );
    }
    rig.down("cmd/kept", "retained", 1, true).await.await.unwrap();
    assert_eq!(app.message().await.payload, b"retained");
    // The subscription is new for the broker, which sends what it retained whoever published it.
    rig.bridge.stop().await;
    Client::named(broker.port, "switchback-gw", true).await;
    let rig = Rig::on(broker.port, state.path(), &heart).await;
    until(|| rig.figures().received == 1, || "what is retained".into()).await;
    broker.stop();
    broker.again();
    rig.parted().await;
    rig.connected().await;
    let mut app = Client::on(broker.port).await;
    app.publish("t", "own", 1).await;
    heart.until(1).await;
    sleep(SHORT).await;
    assert_eq!(heart.texts(), ["own"]);
}

#[tokio::test]
async fn commands_wait_for_the_broker_and_the_cloud_hears_of_it_when_it_has_them() {
    let (mut broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    Client::named(broker.port, "app", false).await.subscribe("cmd").await;
    broker.stop();
    let rig = Rig::new(config(&[]), address(broker.port), state.path(), &heart);
    let late = rig.down_with("cmd", "late", 1, false, vec![Property::MessageExpiryInterval(1)]).await;
    let mut told = Vec::new();
    for n in 0..40 {
        told.push(rig.down("cmd", &n.to_string(), 1 + n % 2, false).await);
    }
    // Their connection to the cloud has ended. What is exact comes again, so it must not go out twice.
    drop(rig.down("cmd", "exact", 2, false).await);
    drop(rig.down("cmd", "40", 1, false).await);
    sleep(Duration::from_millis(2500)).await;
    assert_eq!(rig.figures().downlinks_waiting, 43);
    assert!(told.iter_mut().all(|told| told.try_recv().is_err()));
    broker.again();
    let mut app = Client::named(broker.port, "app", false).await;
    // In order for each QoS: a broker hands on what is exact a round trip later (MQTT 5.0 section 4.6).
    let (odd, even): (Vec<String>, Vec<String>) =
        app.texts(41).await.into_iter().partition(|text| text.ends_with(['1', '3', '5', '7', '9']));
    assert_eq!(even, (0..41).step_by(2).map(|n| n.to_string()).collect::<Vec<_>>());
    assert_eq!(odd, (1..41).step_by(2).map(|n| n.to_string()).collect::<Vec<_>>());
    for told in told.into_iter().chain([late]) {
        timeout(PATIENCE, told).await.unwrap().unwrap();
    }
    until(|| rig.figures().downlinks_waiting == 0, || format!("{:?}", rig.figures())).await;
    assert_eq!(rig.figures().downlinks_refused, 1);
    app.silence().await;
}

#[tokio::test]
async fn commands_under_way_when_the_connection_breaks_arrive_and_exact_ones_once() {
    let (broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let wire = Wire::to(broker.port).await;
    let rig = Rig::on(wire.port, state.path(), &heart).await;
    let mut app = Client::on(broker.port).await;
    app.subscribe("cmd").await;
    for round in 0..5 {
        let mut told = Vec::new();
        for n in 0..10 {
            told.push(rig.down("cmd", &format!("{round}.{n}"), 2, false).await);
            if n == round * 2 {
                // Somewhere between PUBLISH and PUBCOMP.
                tokio::task::yield_now().await;
                wire.cut();
            }
        }
        for told in told {
            timeout(PATIENCE, told).await.unwrap().unwrap();
        }
        let texts = app.texts(10).await;
        assert_eq!(texts, (0..10).map(|n| format!("{round}.{n}")).collect::<Vec<_>>());
    }
    app.silence().await;
}

#[tokio::test]
async fn a_full_outbox_leaves_messages_with_the_broker_and_offers_rarely() {
    let (broker, state) = (Mosquitto::start("max_inflight_messages 0"), tempfile::tempdir().unwrap());
    for refusal in [Refusal::Full, Refusal::NotConnected] {
        let heart = Heart::new(Mood::Refuses(refusal));
        let rig = Rig::on(broker.port, state.path(), &heart).await;
        let mut app = Client::on(broker.port).await;
        for n in 0..300u16 {
            app.publish("t", &n.to_string(), 1 + (n % 2) as u8).await;
        }
        app.publish("t", "lost", 0).await;
        until(|| rig.figures().refused == 1, || format!("{:?}", rig.figures())).await;
        sleep(Duration::from_secs(1)).await;
        assert!(heart.offers.load(Ordering::Relaxed) < 30, "{:?}", heart.offers);
        let held = rig.figures().held;
        println!("held here: {held}");
        heart.set(Mood::Takes);
        heart.until(300).await;
        sleep(SHORT).await;
        assert_eq!(heart.texts(), numbers(0..300));
        assert_eq!(rig.figures().refused, 1);
        rig.bridge.stop().await;
    }
}

#[tokio::test]
async fn one_full_lane_does_not_hold_another() {
    let (broker, state) = (Mosquitto::start(""), tempfile::tempdir().unwrap());
    let heart = Heart::new(Mood::RefusesLane(Lane(2)));
    let rules = [PublishRule { lane: Lane(2), ..rule("bulk/#", "{topic}") }, rule("#", "{topic}")];
    let rig = Rig::new(config(&rules), address(broker.port), state.path(), &heart);
    rig.connected().await;
    let mut app = Client::on(broker.port).await;
    for n in 0..5 {
        app.publish("bulk/x", &format!("bulk {n}"), 1).await;
        app.publish("alarm", &format!("alarm {n}"), 1).await;
    }
    let alarms: Vec<String> = (0..5).map(|n| format!("alarm {n}")).collect();
    heart.until(5).await;
    assert_eq!(heart.texts(), alarms);
    assert_eq!(rig.figures().held, 10);
    heart.set(Mood::Takes);
    heart.until(10).await;
    assert_eq!(heart.texts()[5..], (0..5).map(|n| format!("bulk {n}")).collect::<Vec<_>>());
    until(|| rig.figures().held == 0, || format!("{:?}", rig.figures())).await;
}

#[tokio::test]
async fn what_can_never_go_up_is_acknowledged_and_counted() {
    let (broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let long = format!("{{topic}}/{}", "x".repeat(65_500));
    let rules = [rule("bad/#", ""), rule("long", &long), rule("own/#", "base/{rest}"), rule("t", "t")];
    let mut config = config(&rules);
    config.cloud.base = "base".into();
    let rig = Rig::new(config, address(broker.port), state.path(), &heart);
    rig.connected().await;
    let mut app = Client::on(broker.port).await;
    app.publish("bad/x", "1", 1).await;
    app.publish("own/status", "not ours", 1).await;
    app.publish_with("long", vec![b'x'; PACKET_MAX - 100], 2, false, vec![]).await;
    // mosquitto itself leaves out what is larger than we said that we take.
    app.publish_with("t", vec![b'x'; 2 * PACKET_MAX], 1, false, vec![]).await;
    app.publish("t", "fine", 1).await;
    heart.until(1).await;
    until(|| rig.figures().held == 0, || format!("{:?}", rig.figures())).await;
    assert_eq!((heart.texts().len(), rig.figures().refused, rig.figures().received), (1, 3, 4));
    heart.set(Mood::Refuses(Refusal::Dropped));
    app.publish("t", "dropped", 2).await;
    until(|| rig.figures().refused == 4, || format!("{:?}", rig.figures())).await;
    until(|| rig.figures().held == 0, || format!("{:?}", rig.figures())).await;
}

#[tokio::test]
async fn where_a_rule_wants_the_clouds_own_answer_the_broker_waits_for_it() {
    let (broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let rules = [PublishRule { await_cloud: true, ..rule("t", "t") }];
    let rig = Rig::new(config(&rules), address(broker.port), state.path(), &heart);
    rig.connected().await;
    let mut app = Client::on(broker.port).await;
    app.publish("t", "1", 1).await;
    app.publish("t", "2", 2).await;
    heart.until(2).await;
    sleep(SHORT).await;
    assert_eq!(rig.figures().held, 2);
    heart.deliver(Seq::new(Lane(0), 1));
    until(|| rig.figures().held == 1, || format!("{:?}", rig.figures())).await;
    // Given up on the way: it need not be offered again.
    heart.corridor.discard(Seq::new(Lane(0), 2), Seq::new(Lane(0), 2));
    until(|| rig.figures().held == 0, || format!("{:?}", rig.figures())).await;
    assert_eq!(rig.figures().refused, 1);
}

#[tokio::test]
async fn rules_that_overlap_and_rules_that_changed_send_each_message_once() {
    let (broker, state, heart) = (Mosquitto::start(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let mut app = Client::on(broker.port).await;
    let mut expected = Vec::new();
    for (round, rules) in [&["a/+", "+/b"][..], &["a/#", "a/b"], &["a/b"], &["a/+", "c"], &[]].iter().enumerate() {
        let rules: Vec<PublishRule> = rules.iter().map(|filter| rule(filter, "{topic}")).collect();
        let rig = Rig::new(config(&rules), address(broker.port), state.path(), &heart);
        rig.connected().await;
        app.publish("a/b", &round.to_string(), 2).await;
        expected.push(round.to_string());
        heart.until(expected.len()).await;
        sleep(SHORT / 2).await;
        assert_eq!(heart.texts(), expected);
        assert_eq!(rig.figures().received as usize, 1);
        rig.bridge.stop().await;
    }
}

#[tokio::test]
async fn a_broker_that_comes_late_is_missed_once_and_greeted_once() {
    let (mut broker, state, heart) = (Mosquitto::absent(""), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let rig = Rig::new(config(&[]), address(broker.port), state.path(), &heart);
    sleep(Duration::from_millis(1500)).await;
    assert!(!rig.figures().connected);
    broker.again();
    rig.connected().await;
    let said = said(broker.port);
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(said[0].contains("wait there until it is back") && said[1] == "connected", "{said:?}");
}

#[tokio::test]
async fn a_wrong_password_is_said_with_what_to_do_and_a_new_one_is_taken_without_a_restart() {
    let (folder, state, heart) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let hashes = folder.path().join("hashes");
    let made =
        std::process::Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&hashes).args(["gw", "right"]).status();
    assert!(made.unwrap().success());
    let broker = Mosquitto::start(&format!("allow_anonymous false\npassword_file {}", hashes.display()));
    let password = folder.path().join("password");
    let mut address = address(broker.port);
    address.username = Some("gw".into());
    address.password_file = Some(password.clone());
    let rig = Rig::new(config(&[]), address, state.path(), &heart);
    until(|| said(broker.port).len() == 1, || "the missing file".into()).await;
    std::fs::write(&password, "wrong\n").unwrap();
    until(|| said(broker.port).len() == 2, || "the refusal".into()).await;
    assert!(said(broker.port)[1].contains("local.broker_password_file"), "{:?}", said(broker.port));
    sleep(Duration::from_secs(1)).await;
    std::fs::write(&password, "right\n").unwrap();
    rig.connected().await;
    assert_eq!(said(broker.port).len(), 3, "{:?}", said(broker.port));
    assert!(said(broker.port).iter().all(|line| !line.contains("right") && !line.contains("wrong")));
}

#[tokio::test]
async fn a_broker_of_3_1_1_is_refused_with_a_sentence_and_never_subscribed_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (state, heart) = (tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let rig = Rig::new(config(&[]), address(port), state.path(), &heart);
    // As they refuse an unknown version, and as they might take it all the same.
    let began = Instant::now();
    for answer in [[0x20, 2, 0, 1], [0x20, 2, 0, 0], [0x20, 2, 0, 1]] {
        let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
        let mut buffer = vec![0; 1024];
        let count = stream.read(&mut buffer).await.unwrap();
        assert_eq!((buffer[0], packet::connect_version(&buffer[..count])), (0x10, Some(5)));
        stream.write_all(&answer).await.unwrap();
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 0, "it says nothing more");
    }
    assert!(began.elapsed() >= Duration::from_millis(600));
    assert!(!rig.figures().connected);
    let said = said(port);
    assert!(said.len() == 1 && said[0].contains("does not speak MQTT 5"), "{said:?}");
}

#[tokio::test]
async fn a_broker_that_falls_silent_is_left_and_one_that_talks_nonsense_too() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (state, heart) = (tempfile::tempdir().unwrap(), Heart::new(Mood::Takes));
    let rig = Rig::new(config(&[]), address(port), state.path(), &heart);
    let (mut stream, _) = listener.accept().await.unwrap();
    // CONNACK with a Server Keep Alive of 3 s, then SUBACK.
    stream.write_all(&[0x20, 6, 0, 0, 3, 0x13, 0, 3]).await.unwrap();
    let mut buffer = Vec::new();
    let mut ping = None;
    let began = Instant::now();
    loop {
        while let Some(packet) = packet::take(&mut buffer, Version::V5, PACKET_MAX).unwrap() {
            match packet {
                MqttPacket::Subscribe5(p) => {
                    let [high, low] = p.packet_id.to_be_bytes();
                    stream.write_all(&[0x90, 4, high, low, 0, 2]).await.unwrap();
                    rig.connected().await;
                }
                MqttPacket::PingReq5(_) => ping = ping.or(Some(began.elapsed())),
                _ => {}
            }
        }
        if timeout(PATIENCE, stream.read_buf(&mut buffer)).await.unwrap().unwrap_or(0) == 0 {
            break;
        }
    }
    assert!((1..4).contains(&ping.unwrap().as_secs()), "{ping:?}");
    assert!((11..16).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let (mut stream, _) = timeout(PATIENCE, listener.accept()).await.unwrap().unwrap();
    stream.write_all("HTTP/1.1 400 Bad Request\r\n".repeat(9).as_bytes()).await.unwrap();
    until(|| said(port).iter().any(|line| line.contains("no MQTT 5")), || format!("{:?}", said(port))).await;
}
