//! QoS 2 towards the cloud: each message there once, whatever step our side or the wire dies at, and whatever the server
//! says out of turn.

use std::collections::BTreeMap;
use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback::config::Config;
use switchback::corridor::Pledge;
use switchback::io::packet::Publish;
use switchback_control::{Attempt, Event, Goodbye, Seq, Version};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use crate::bench::*;
use crate::{BOTH, SHORT};

/// A server under the test's hand that has an end-to-end session with us.
struct Stage {
    rig: Rig,
    listener: TcpListener,
    config: Config,
    version: Version,
}

impl Stage {
    async fn new(version: Version) -> Stage {
        let (listener, port) = fake().await;
        let mut config = config(port);
        config.cloud.base = String::new();
        Stage { rig: Rig::new(config.clone()), listener, config, version }
    }

    async fn open(&mut self, present: bool) -> (TcpStream, Attempt) {
        self.open_with(present, &[]).await
    }

    async fn open_with(&mut self, present: bool, properties: &[u8]) -> (TcpStream, Attempt) {
        let attempt = self.rig.dial();
        let (mut server, _) = self.listener.accept().await.unwrap();
        self.rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        self.rig.cloud.connect(attempt, self.version, Duration::from_secs(30));
        assert_eq!(listen(&mut server, self.version, Duration::from_millis(100)).await.len(), 1);
        let length = properties.len() as u8;
        let connack = match self.version {
            Version::V5 => [&[0x20, 3 + length, present.into(), 0, length], properties].concat(),
            Version::V311 => vec![0x20, 2, present.into(), 0],
        };
        server.write_all(&connack).await.unwrap();
        self.rig.until(|event| matches!(event, Event::Connected { .. })).await;
        (server, attempt)
    }

    /// Our side dies and is started again: memory is gone, the disk is there.
    fn kill(&mut self, attempt: Attempt) {
        self.rig.cloud.hang_up(attempt, Goodbye::Abort);
        self.rig = Rig::again(self.config.clone(), self.rig.stack.clone());
    }

    /// What comes within a while, as words.
    async fn heard(&self, server: &mut TcpStream) -> Vec<String> {
        listen(server, self.version, SHORT).await.into_iter().map(word).collect()
    }
}

/// Waits for a packet that a busy disk may delay; everything until then.
async fn await_word(stage: &Stage, server: &mut TcpStream, prefix: &str) -> Vec<String> {
    let mut words = Vec::new();
    timeout(PATIENCE, async {
        while !words.iter().any(|word: &String| word.starts_with(prefix)) {
            words.extend(stage.heard(server).await);
        }
    })
    .await
    .unwrap_or_else(|_| panic!("no {prefix}"));
    words
}

fn word(packet: MqttPacket) -> String {
    match packet {
        MqttPacket::PubRel5(p) => format!("release {} {:#04x}", p.packet_id, p.reason_code),
        MqttPacket::PubRel3(p) => format!("release {} 0x00", p.message_id),
        other => match Publish::from_packet(other) {
            Ok(p) => {
                let text = String::from_utf8(p.payload).unwrap();
                format!("{text} qos {} id {}{}", p.qos, p.id.unwrap_or(0), if p.dup { " again" } else { "" })
            }
            Err(other) => format!("{other:?}"),
        },
    }
}

fn received(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [0x50, 2, high, low]
}

fn completed(id: u16) -> [u8; 4] {
    let [high, low] = id.to_be_bytes();
    [0x70, 2, high, low]
}

const FIRST: u16 = 64_001;

#[tokio::test]
async fn the_four_steps_go_in_order_and_each_is_durable_before() {
    for version in BOTH {
        let mut stage = Stage::new(version).await;
        let (mut server, attempt) = stage.open(false).await;
        let seq = stage.rig.stack.put(1, "t", b"x", 2);
        stage.rig.cloud.transmit(attempt, seq, false);
        assert_eq!(stage.heard(&mut server).await, ["x qos 2 id 64001"]);
        assert_eq!(stage.rig.stack.pledges(), [Pledge { seq, id: FIRST, received: false }]);
        assert_eq!(stage.rig.stack.told().sent, [seq]);
        server.write_all(&received(FIRST)).await.unwrap();
        assert_eq!(stage.heard(&mut server).await, ["release 64001 0x00"]);
        assert_eq!(stage.rig.stack.pledges(), [Pledge { seq, id: FIRST, received: true }]);
        server.write_all(&completed(FIRST)).await.unwrap();
        stage.rig.until(|event| *event == Event::Completed { attempt, seq }).await;
        assert!(stage.rig.stack.pledges().is_empty());
    }
}

#[tokio::test]
async fn killed_at_any_step_each_message_goes_on_where_it_was() {
    for version in BOTH {
        for kill in [true, false] {
            let mut stage = Stage::new(version).await;
            let (mut server, mut attempt) = stage.open(false).await;
            let seq = stage.rig.stack.put(1, "t", b"x", 2);
            let again = |stage: &mut Stage, attempt: Attempt| match kill {
                true => stage.kill(attempt),
                false => stage.rig.cloud.hang_up(attempt, Goodbye::Abort),
            };
            stage.rig.cloud.transmit(attempt, seq, false);
            assert_eq!(stage.heard(&mut server).await, ["x qos 2 id 64001"]);
            // After PUBLISH: the same again.
            again(&mut stage, attempt);
            (server, attempt) = stage.open(true).await;
            stage.rig.cloud.transmit(attempt, seq, true);
            assert_eq!(stage.heard(&mut server).await, ["x qos 2 id 64001 again"]);
            server.write_all(&received(FIRST)).await.unwrap();
            assert_eq!(stage.heard(&mut server).await, ["release 64001 0x00"]);
            // After PUBREL: only that, before or after the heart orders it.
            again(&mut stage, attempt);
            (server, attempt) = stage.open(true).await;
            stage.rig.cloud.transmit(attempt, seq, true);
            assert_eq!(stage.heard(&mut server).await, ["release 64001 0x00"]);
            server.write_all(&completed(FIRST)).await.unwrap();
            stage.rig.until(|event| *event == Event::Completed { attempt, seq }).await;
            assert!(stage.rig.stack.pledges().is_empty());
        }
    }
}

#[tokio::test]
async fn completed_before_the_heart_has_ordered_it_again_is_completed_when_it_does() {
    let mut stage = Stage::new(Version::V5).await;
    let seq = stage.rig.stack.put(1, "t", b"x", 2);
    stage.rig.stack.told().pledges.insert(FIRST, Pledge { seq, id: FIRST, received: true });
    stage.kill(Attempt(0));
    let (mut server, attempt) = stage.open(true).await;
    assert_eq!(stage.heard(&mut server).await, ["release 64001 0x00"]);
    server.write_all(&completed(FIRST)).await.unwrap();
    stage.rig.until(|event| *event == Event::Completed { attempt, seq }).await;
    stage.rig.cloud.transmit(attempt, seq, true);
    stage.rig.until(|event| *event == Event::Completed { attempt, seq }).await;
    assert!(stage.heard(&mut server).await.is_empty());
}

#[tokio::test]
async fn what_the_server_has_received_is_released_in_the_order_of_the_messages() {
    for received_on_disk in [true, false] {
        let mut stage = Stage::new(Version::V5).await;
        // The identifier of a message that came through went to a later one.
        let known = [(31, FIRST), (22, FIRST + 1), (23, FIRST + 2)].map(|(seq, id)| {
            let received = received_on_disk || id != FIRST + 1;
            (id, Pledge { seq: Seq(seq), id, received })
        });
        stage.rig.stack.told().pledges = BTreeMap::from(known);
        stage.rig.stack.put(22, "t", b"x", 2);
        stage.kill(Attempt(0));
        let (mut server, attempt) = stage.open(true).await;
        let heard = if received_on_disk {
            stage.heard(&mut server).await
        } else {
            // The server had the first of them, and its word comes in the moment in which the connection ends.
            let early = stage.heard(&mut server).await;
            assert_eq!(early, ["release 64003 0x00", "release 64001 0x00"]);
            stage.rig.cloud.transmit(attempt, Seq(22), true);
            stage.heard(&mut server).await;
            stage.rig.stack.told().disk_takes = Some(Duration::from_millis(200));
            server.write_all(&received(FIRST + 1)).await.unwrap();
            listen(&mut server, Version::V5, Duration::from_millis(50)).await;
            stage.rig.cloud.hang_up(attempt, Goodbye::Abort);
            server = stage.open(true).await.0;
            stage.heard(&mut server).await
        };
        assert_eq!(heard, ["release 64002 0x00", "release 64003 0x00", "release 64001 0x00"]);
    }
}

#[tokio::test]
async fn a_forgotten_session_has_no_exchanges() {
    let mut stage = Stage::new(Version::V5).await;
    let seqs = [1, 2].map(|n| stage.rig.stack.put(n, "t", b"x", 2));
    let known = seqs.map(|seq| (FIRST + seq.0 as u16, Pledge { seq, id: FIRST + seq.0 as u16, received: seq.0 == 1 }));
    stage.rig.stack.told().pledges = BTreeMap::from(known);
    stage.kill(Attempt(0));
    let (mut server, attempt) = stage.open(false).await;
    assert!(stage.rig.stack.pledges().is_empty());
    seqs.iter().for_each(|seq| stage.rig.cloud.transmit(attempt, *seq, true));
    assert_eq!(stage.heard(&mut server).await, ["x qos 2 id 64001", "x qos 2 id 64002"]);
}

#[tokio::test]
async fn a_refusal_sets_the_message_aside_and_an_unknown_word_is_answered() {
    let mut stage = Stage::new(Version::V5).await;
    let (mut server, attempt) = stage.open(false).await;
    let seq = stage.rig.stack.put(1, "t", b"x", 2);
    stage.rig.cloud.transmit(attempt, seq, false);
    stage.heard(&mut server).await;
    server.write_all(&[0x50, 3, 0xfa, 0x01, 0x87]).await.unwrap();
    stage.rig.until(|event| *event == Event::Rejected { attempt, seq }).await;
    assert_eq!(stage.rig.stack.told().rejected, [(seq, "not authorized (0x87)".to_owned())]);
    assert!(stage.rig.stack.pledges().is_empty());
    // PUBREC, PUBCOMP and PUBREL of numbers that nobody has.
    for bytes in [received(FIRST), received(7), completed(FIRST), completed(7), [0x62, 2, 0, 9]] {
        server.write_all(&bytes).await.unwrap();
    }
    let heard = stage.heard(&mut server).await;
    assert_eq!(heard[..2], ["release 64001 0x92", "release 7 0x92"]);
    assert!(heard.len() == 3 && heard[2].starts_with("PubComp5"), "{heard:?}");
}

#[tokio::test]
async fn with_every_identifier_taken_a_lane_waits_and_others_do_not() {
    let mut stage = Stage::new(Version::V5).await;
    let (mut server, attempt) = stage.open(false).await;
    for n in 1..=257 {
        let seq = stage.rig.stack.put(n, "t", b"x", 2);
        stage.rig.cloud.transmit(attempt, seq, false);
    }
    let other = stage.rig.stack.put(Seq::new(switchback_control::Lane(2), 1).0, "t", b"other", 1);
    stage.rig.cloud.transmit(attempt, other, false);
    let heard = stage.heard(&mut server).await;
    assert_eq!(heard.len(), 257);
    assert!(heard.iter().any(|word| word.starts_with("other qos 1")));
    server.write_all(&[received(64_100), completed(64_100)].concat()).await.unwrap();
    // PUBCOMP in front of PUBREL counts for nothing.
    assert_eq!(stage.heard(&mut server).await, ["release 64100 0x00"]);
    server.write_all(&completed(64_100)).await.unwrap();
    assert_eq!(stage.heard(&mut server).await, ["x qos 2 id 64100"]);
    // Dropped while they waited for the next connection: their exchanges are ended when their identifiers are missing.
    stage.rig.cloud.hang_up(attempt, Goodbye::Abort);
    (1..=10).for_each(|n| stage.rig.stack.remove(Seq(n)));
    let (mut server, attempt) = stage.open(true).await;
    let new = stage.rig.stack.put(300, "t", b"new", 2);
    stage.rig.cloud.transmit(attempt, new, false);
    let heard = stage.heard(&mut server).await;
    assert!(heard.len() == 10 && heard.iter().all(|word| word.starts_with("release")), "{heard:?}");
    server.write_all(&completed(64_003)).await.unwrap();
    assert_eq!(stage.heard(&mut server).await, ["new qos 2 id 64003"]);
}

#[tokio::test]
async fn a_server_with_less_and_a_disk_that_keeps_nothing_get_the_message_all_the_same() {
    let mut stage = Stage::new(Version::V5).await;
    // Maximum QoS 1.
    let (mut server, attempt) = stage.open_with(false, &[0x24, 1]).await;
    let seq = stage.rig.stack.put(1, "t", b"x", 2);
    stage.rig.cloud.transmit(attempt, seq, false);
    assert_eq!(stage.heard(&mut server).await, ["x qos 1 id 1"]);

    let mut stage = Stage::new(Version::V5).await;
    stage.rig.stack.told().broken = true;
    let (mut server, attempt) = stage.open(false).await;
    let seq = stage.rig.stack.put(1, "t", b"x", 2);
    stage.rig.cloud.transmit(attempt, seq, false);
    assert_eq!(stage.heard(&mut server).await, ["x qos 2 id 64001"]);
    server.write_all(&received(FIRST)).await.unwrap();
    assert_eq!(stage.heard(&mut server).await, ["release 64001 0x00"]);
}

#[tokio::test]
async fn what_is_too_old_is_not_sent_and_what_is_left_of_its_time_goes_with_the_rest() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as u64;
    for version in BOTH {
        let mut stage = Stage::new(version).await;
        let (mut server, attempt) = stage.open(false).await;
        let put = |n, text: &str, age: u64, interval| {
            let properties = vec![Property::MessageExpiryInterval(interval)];
            stage.rig.stack.put_with(n, "t", text.as_bytes(), 1, now - age * 1000, properties)
        };
        let seqs = [put(1, "old", 100, 60), put(2, "young", 100, 600), put(3, "ahead", 0, 60)];
        seqs.iter().for_each(|seq| stage.rig.cloud.transmit(attempt, *seq, false));
        let packets = listen(&mut server, version, SHORT).await;
        let heard: Vec<Publish> = packets.into_iter().filter_map(|p| Publish::from_packet(p).ok()).collect();
        assert_eq!(heard.iter().map(|p| p.payload.as_slice()).collect::<Vec<_>>(), [&b"young"[..], b"ahead"]);
        if version == Version::V5 {
            let left = heard[0].properties.iter().find_map(|property| match property {
                Property::MessageExpiryInterval(left) => Some(*left),
                _ => None,
            });
            assert!((490..=500).contains(&left.unwrap()), "{left:?}");
        }
        let [old, ..] = seqs;
        stage.rig.until(|event| matches!(event, Event::Expired { from, .. } if *from == old)).await;
    }
}

/// The session moves while applications have a command: its repetition is theirs already.
#[tokio::test]
async fn a_command_that_is_with_the_applications_comes_once_whatever_becomes_of_the_connection() {
    for version in BOTH {
        let (listener, port) = fake().await;
        let mut config = subscribed(config(port));
        config.cloud.base = String::new();
        let mut stage = Stage { rig: Rig::new(config.clone()), listener, config, version };
        let (mut server, attempt) = stage.open(true).await;
        let command = |dup: bool| {
            let head = if dup { 0x3c } else { 0x34 };
            match version {
                Version::V5 => [&[head, 14, 0, 8][..], b"gw/cmd/d", &[0, 7, 0, b'x']].concat(),
                Version::V311 => [&[head, 13, 0, 8][..], b"gw/cmd/d", &[0, 7, b'x']].concat(),
            }
        };
        server.write_all(&command(false)).await.unwrap();
        let first = stage.rig.downlink().await;
        stage.rig.cloud.hang_up(attempt, Goodbye::Abort);
        let (mut server, _) = stage.open(true).await;
        // SUBSCRIBE.
        stage.heard(&mut server).await;
        server.write_all(&command(true)).await.unwrap();
        assert_eq!(stage.heard(&mut server).await.len(), 0, "PUBREC before anybody took it");
        first.taken.send(()).unwrap();
        assert_eq!(await_word(&stage, &mut server, "PubRec").await.len(), 1);
        server.write_all(&command(true)).await.unwrap();
        assert_eq!(await_word(&stage, &mut server, "PubRec").await.len(), 1);
        assert!(stage.rig.downlinks.try_recv().is_err(), "it came twice");
        // A server that has forgotten its session gives the identifier to another message.
        let (mut server, _) = stage.open(false).await;
        server.write_all(&command(false)).await.unwrap();
        stage.rig.downlink().await;
    }
}

/// A real broker, our side killed again and again under load: each message arrives once, in order.
#[tokio::test]
async fn over_thirty_kills_under_load_a_real_broker_gets_each_message_once() {
    let broker = Broker::start("max_queued_messages 0\nset_tcp_nodelay true");
    let mut watcher = Watcher::on(broker.port, "t").await;
    let mut config = config(broker.port);
    config.cloud.base = String::new();
    let mut rig = Rig::new(config.clone());
    let all: Vec<Seq> = (1..=600).map(|n| rig.stack.put(n, "t", format!("{n}").as_bytes(), 2)).collect();
    let mut open = all.clone();
    let (mut round, mut attempts) = (0u64, 0);
    while !open.is_empty() {
        round += 1;
        let version = BOTH[round as usize % 2];
        let (attempt, _) = rig.open(version).await;
        attempts += 1;
        open.iter().take(100).for_each(|seq| rig.cloud.transmit(attempt, *seq, round > 1));
        // Each round a little longer, so that every step is met.
        let time = if round <= 30 { Duration::from_micros(400 * round) } else { Duration::from_millis(500) };
        let _ = timeout(time, async {
            loop {
                if let Event::Completed { seq, .. } = rig.events.recv().await.unwrap() {
                    open.retain(|other| *other != seq);
                }
            }
        })
        .await;
        rig.cloud.hang_up(attempt, Goodbye::Abort);
        rig.cloud.finished().await;
        // What was completed and not yet heard of is released by the store before its pledge goes, as it promises.
        while let Ok(event) = rig.events.try_recv() {
            if let Event::Completed { seq, .. } = event {
                open.retain(|other| *other != seq);
            }
        }
        rig = Rig::again(config.clone(), rig.stack.clone());
    }
    println!("{} messages over {attempts} lives", all.len());
    let mut seen = Vec::new();
    while let Ok((_, text)) = timeout(SHORT, watcher.message()).await {
        seen.push(text);
    }
    let expected: Vec<String> = (1..=600).map(|n| format!("{n}")).collect();
    assert_eq!(seen, expected);
}

/// From the cloud: what was taken before a restart does not come again, and another message under its number does.
#[tokio::test]
async fn what_was_taken_from_the_cloud_is_known_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    for version in BOTH {
        let mut stage = Stage::new(version).await;
        let mut config = subscribed(stage.config.clone());
        config.subscribe[0].topic = "#".into();
        config.subscribe[0].to = "{topic}".into();
        stage.config = config;
        stage.rig.stack.told().taken = Some(folder.path().join(format!("taken-{version:?}")));
        stage.kill(Attempt(0));
        let message = |text: &str, dup| {
            let publish = Publish {
                topic: "t".into(),
                payload: text.into(),
                qos: 2,
                retain: false,
                dup,
                id: Some(5),
                properties: vec![],
            };
            publish.into_packet(version).to_bytes().unwrap()
        };
        let (mut server, attempt) = stage.open(true).await;
        server.write_all(&message("first", false)).await.unwrap();
        let downlink = stage.rig.downlink().await;
        let _ = downlink.taken.send(());
        await_word(&stage, &mut server, "PubRec").await;
        stage.kill(attempt);
        let (mut server, attempt) = stage.open(true).await;
        server.write_all(&message("first", true)).await.unwrap();
        await_word(&stage, &mut server, "PubRec").await;
        assert!(stage.rig.downlinks.try_recv().is_err());
        server.write_all(&[0x62, 2, 0, 5]).await.unwrap();
        await_word(&stage, &mut server, "PubComp").await;
        stage.kill(attempt);
        let (mut server, _) = stage.open(true).await;
        server.write_all(&message("second", true)).await.unwrap();
        assert_eq!(stage.rig.downlink().await.payload, b"second");
    }
}
