//! Messages right behind CONNECT, where the server's limits are known from before (R-CS-4): what goes, what waits, and
//! what becomes of it, whatever CONNACK then says.

use std::collections::BTreeMap;
use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use switchback::config::Config;
use switchback::io::packet::{self, PACKET_MAX, Publish};
use switchback_control::{Attempt, Event, Goodbye, Reason, Seq, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};

use crate::bench::*;
use crate::{BOTH, SHORT};

/// Receive Maximum 20.
const ROOMY: &[u8] = &[0x21, 0, 20];

/// A server under the test's hand, and the adapter that it meets.
struct Stage {
    rig: Rig,
    listener: TcpListener,
    version: Version,
}

impl Stage {
    async fn new(version: Version, base: &str) -> Stage {
        let (listener, port) = fake().await;
        let mut config = config(port);
        config.cloud.base = base.into();
        Stage { rig: Rig::new(config), listener, version }
    }

    /// One that has been met before, and then allowed this.
    async fn known(version: Version, properties: &[u8]) -> Stage {
        let mut stage = Stage::new(version, "").await;
        let (mut server, attempt) = stage.connect(&[]).await;
        stage.welcome(&mut server, false, properties).await;
        stage.rig.cloud.hang_up(attempt, Goodbye::Abort);
        stage
    }

    /// Dials, and orders CONNECT and these messages in one breath, as the loop does.
    async fn connect(&mut self, messages: &[(Seq, bool)]) -> (TcpStream, Attempt) {
        let attempt = self.rig.dial();
        let (server, _) = self.listener.accept().await.unwrap();
        self.rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        self.rig.cloud.connect(attempt, self.version, Duration::from_secs(30));
        messages.iter().for_each(|(seq, again)| self.rig.cloud.transmit(attempt, *seq, *again));
        (server, attempt)
    }

    async fn welcome(&mut self, server: &mut TcpStream, present: bool, properties: &[u8]) -> Event {
        server.write_all(&self.connack(present, 0, properties)).await.unwrap();
        // Nothing is acknowledged before, and no end either.
        let first = self.rig.until(|event| matches!(event, Event::Connected { .. } | Event::Acked { .. })).await;
        assert!(matches!(first, Event::Connected { present: p, .. } if p == present), "{first}");
        first
    }

    fn connack(&self, present: bool, code: u8, properties: &[u8]) -> Vec<u8> {
        let length = properties.len() as u8;
        match self.version {
            Version::V5 => [&[0x20, 3 + length, present.into(), code, length], properties].concat(),
            Version::V311 => vec![0x20, 2, present.into(), code],
        }
    }

    /// Messages of QoS 1 under these numbers.
    fn put(&self, seqs: std::ops::RangeInclusive<u64>) -> Vec<(Seq, bool)> {
        seqs.map(|n| (self.rig.stack.put(n, "t", format!("{n}").as_bytes(), 1), false)).collect()
    }

    /// The messages that come within a while.
    async fn published(&self, server: &mut TcpStream) -> Vec<Publish> {
        let packets = listen(server, self.version, SHORT).await;
        packets.into_iter().filter_map(|packet| Publish::from_packet(packet).ok()).collect()
    }

    fn is_quiet(&mut self) -> bool {
        std::iter::from_fn(|| self.rig.events.try_recv().ok()).all(|event| matches!(event, Event::Heard { .. }))
    }
}

fn seqs(messages: &[(Seq, bool)]) -> Vec<Seq> {
    messages.iter().map(|(seq, _)| *seq).collect()
}

fn payloads(publishes: &[Publish]) -> Vec<String> {
    publishes.iter().map(|publish| String::from_utf8(publish.payload.clone()).unwrap()).collect()
}

async fn acknowledge(server: &mut TcpStream, publishes: &[Publish]) {
    for publish in publishes {
        let [high, low] = publish.id.unwrap().to_be_bytes();
        server.write_all(&[0x40, 2, high, low]).await.unwrap();
    }
}

#[tokio::test]
async fn messages_go_in_one_piece_with_connect_and_before_connack() {
    for version in BOTH {
        let mut stage = Stage::known(version, ROOMY).await;
        let messages = stage.put(1..=5);
        let (mut server, attempt) = stage.connect(&messages).await;
        let mut piece = vec![0; 65536];
        let length = server.read(&mut piece).await.unwrap();
        piece.truncate(length);
        let mut packets = Vec::new();
        while let Some(packet) = packet::take(&mut piece, version, PACKET_MAX).unwrap() {
            packets.push(packet);
        }
        assert!(matches!(packets.first(), Some(MqttPacket::Connect5(_) | MqttPacket::Connect3(_))), "{packets:?}");
        let publishes: Vec<Publish> = packets.into_iter().filter_map(|p| Publish::from_packet(p).ok()).collect();
        assert_eq!(payloads(&publishes), ["1", "2", "3", "4", "5"]);
        // SYN and one segment.
        assert_eq!(stage.rig.measured(attempt).await.sent, 2);
        // CONNACK takes its time: nothing more is said, on either side.
        assert!(stage.published(&mut server).await.is_empty() && stage.is_quiet());
        stage.welcome(&mut server, true, ROOMY).await;
        acknowledge(&mut server, &publishes).await;
        stage.rig.acked(seqs(&messages)).await;
    }
}

#[tokio::test]
async fn a_server_that_we_do_not_know_yet_is_waited_for() {
    for version in BOTH {
        let mut stage = Stage::new(version, "switchback/gw").await;
        let messages = stage.put(1..=3);
        let (mut server, _) = stage.connect(&messages).await;
        assert!(stage.published(&mut server).await.is_empty());
        stage.welcome(&mut server, false, ROOMY).await;
        let topics: Vec<String> = stage.published(&mut server).await.into_iter().map(|publish| publish.topic).collect();
        assert_eq!(topics, ["switchback/gw/status", "switchback/gw/hello", "t", "t", "t"]);
    }
}

#[tokio::test]
async fn our_own_words_wait_for_connack_and_early_messages_do_not() {
    let mut stage = Stage::new(Version::V5, "switchback/gw").await;
    let (mut server, first) = stage.connect(&[]).await;
    stage.welcome(&mut server, false, ROOMY).await;
    stage.rig.cloud.hang_up(first, Goodbye::Abort);
    let messages = stage.put(1..=2);
    let (mut server, _) = stage.connect(&messages).await;
    assert_eq!(payloads(&stage.published(&mut server).await), ["1", "2"]);
    stage.welcome(&mut server, true, ROOMY).await;
    let topics: Vec<String> = stage.published(&mut server).await.into_iter().map(|publish| publish.topic).collect();
    assert_eq!(topics, ["switchback/gw/status", "switchback/gw/hello"]);
}

#[tokio::test]
async fn a_refusal_acknowledges_nothing_and_the_messages_keep_their_numbers() {
    for version in BOTH {
        let mut stage = Stage::known(version, ROOMY).await;
        let messages = stage.put(1..=5);
        let (mut server, _) = stage.connect(&messages).await;
        let before = stage.published(&mut server).await;
        let code = if version == Version::V5 { 0x88 } else { 3 };
        server.write_all(&stage.connack(false, code, &[])).await.unwrap();
        let ended = stage.rig.until(|event| matches!(event, Event::Closed { .. } | Event::Acked { .. })).await;
        assert!(matches!(ended, Event::Closed { reason: Reason::Refused, heard: true, .. }), "{ended}");

        let again: Vec<_> = messages.iter().map(|(seq, _)| (*seq, true)).collect();
        let (mut server, _) = stage.connect(&again).await;
        let after = stage.published(&mut server).await;
        assert_eq!((before.len(), after.len()), (5, 5));
        for (old, new) in before.iter().zip(&after) {
            assert_eq!((old.id, old.dup, new.dup), (new.id, false, true));
        }
        stage.welcome(&mut server, true, ROOMY).await;
        acknowledge(&mut server, &after).await;
        stage.rig.acked(seqs(&messages)).await;
    }
}

#[tokio::test]
async fn a_server_that_forgot_us_has_taken_early_messages_all_the_same() {
    for version in BOTH {
        let mut stage = Stage::known(version, ROOMY).await;
        let messages = stage.put(1..=3);
        let (mut server, attempt) = stage.connect(&messages).await;
        let early = stage.published(&mut server).await;
        stage.welcome(&mut server, false, ROOMY).await;
        // A new message meets none of their numbers.
        let new = stage.put(4..=4);
        stage.rig.cloud.transmit(attempt, Seq(4), false);
        let late = stage.published(&mut server).await;
        assert_eq!(payloads(&late), ["4"]);
        assert!(early.iter().all(|publish| publish.id != late[0].id));
        // Twice: the second counts for nothing.
        acknowledge(&mut server, &[early.clone(), early, late].concat()).await;
        stage.rig.acked([seqs(&messages), seqs(&new)].concat()).await;
        sleep(SHORT).await;
        assert!(stage.is_quiet());
    }
}

#[tokio::test]
async fn early_messages_keep_the_old_window_and_count_in_the_new_one() {
    let mut stage = Stage::known(Version::V5, &[0x21, 0, 10]).await;
    let messages = stage.put(1..=15);
    let (mut server, _) = stage.connect(&messages).await;
    let early = stage.published(&mut server).await;
    assert_eq!(early.len(), 10);
    // Receive Maximum 1: the ten come first.
    stage.welcome(&mut server, true, &[0x21, 0, 1]).await;
    assert!(stage.published(&mut server).await.is_empty());
    acknowledge(&mut server, &early[..9]).await;
    assert!(stage.published(&mut server).await.is_empty());
    acknowledge(&mut server, &early[9..]).await;
    for n in 11..=15 {
        let next = stage.published(&mut server).await;
        assert_eq!(payloads(&next), [format!("{n}")]);
        acknowledge(&mut server, &next).await;
    }
    stage.rig.acked(seqs(&messages)).await;
}

#[tokio::test]
async fn what_cannot_go_early_waits_and_holds_what_is_behind_it() {
    // Maximum Packet Size 300.
    let properties = &[0x27, 0, 0, 1, 44];
    for version in BOTH {
        let mut stage = Stage::known(version, properties).await;
        let first = stage.put(1..=1);
        let unsure = stage.rig.stack.put(2, "t", b"2", 0);
        let last = stage.put(3..=3);
        let (mut server, _) = stage.connect(&[first[0], (unsure, false), last[0]]).await;
        let early = stage.published(&mut server).await;
        assert_eq!(payloads(&early), ["1"]);
        stage.welcome(&mut server, true, properties).await;
        let late = stage.published(&mut server).await;
        assert_eq!(payloads(&late), ["2", "3"]);
    }
    let mut stage = Stage::known(Version::V5, properties).await;
    let large = stage.rig.stack.put(1, "t", &[b'x'; 300], 1);
    let messages = [(large, false), stage.put(2..=2)[0]];
    let (mut server, attempt) = stage.connect(&messages).await;
    assert!(stage.published(&mut server).await.is_empty() && stage.is_quiet());
    // It takes more now.
    stage.welcome(&mut server, true, &[]).await;
    let late = stage.published(&mut server).await;
    assert_eq!((late.len(), late[0].payload.len(), late[1].payload.len()), (2, 300, 1));
    stage.rig.cloud.hang_up(attempt, Goodbye::Abort);
    // It takes nothing but QoS 0 now; the next knows it before.
    let (mut server, attempt) = stage.connect(&[]).await;
    stage.welcome(&mut server, true, &[0x24, 0]).await;
    stage.rig.cloud.hang_up(attempt, Goodbye::Abort);
    let (mut server, _) = stage.connect(&stage.put(3..=3)).await;
    assert!(stage.published(&mut server).await.is_empty());
    stage.welcome(&mut server, true, &[0x24, 0]).await;
    assert_eq!(stage.published(&mut server).await[0].qos, 0);
}

/// Seen with vertx-mqtt and ThingsBoard, which close on any packet before CONNACK.
#[tokio::test]
async fn a_server_that_hangs_up_on_early_messages_is_not_given_any_for_ever() {
    for version in BOTH {
        let mut stage = Stage::known(version, ROOMY).await;
        let messages = stage.put(1..=2);
        for _ in 0..2 {
            let (mut server, _) = stage.connect(&messages).await;
            assert_eq!(stage.published(&mut server).await.len(), 2);
            drop(server);
            assert_eq!(stage.rig.end().await, (Reason::ServerShutDown, true));
        }
        let (mut server, _) = stage.connect(&messages).await;
        assert!(stage.published(&mut server).await.is_empty());
        stage.welcome(&mut server, true, ROOMY).await;
        assert_eq!(stage.published(&mut server).await.len(), 2);
    }
}

/// Short of documents, which would count as messages of a watcher.
fn plain(port: u16) -> Config {
    let mut config = config(port);
    config.cloud.base = String::new();
    config
}

#[tokio::test]
async fn a_real_broker_takes_early_messages_with_and_without_its_session() {
    for version in BOTH {
        let broker = Broker::start("");
        let mut watcher = Watcher::on(broker.port, "t").await;
        let config = plain(broker.port);
        let name = config.cloud.client_id.clone();
        let mut rig = Rig::new(config);
        let (first, _) = rig.open(version).await;
        rig.cloud.hang_up(first, Goodbye::Moving);
        rig.cloud.finished().await;
        for present in [true, false] {
            if !present {
                // A clean start under our name.
                drop(Watcher::impostor(broker.port, &name).await);
            }
            let attempt = rig.dial();
            rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
            rig.cloud.connect(attempt, version, Duration::from_secs(30));
            let seqs: Vec<Seq> = (1..=10).map(|n| rig.stack.put(n, "t", format!("{n}").as_bytes(), 1)).collect();
            seqs.iter().for_each(|seq| rig.cloud.transmit(attempt, *seq, false));
            let event = rig.until(|event| matches!(event, Event::Connected { .. } | Event::Acked { .. })).await;
            assert!(matches!(event, Event::Connected { present: p, .. } if p == present), "{event}");
            rig.acked(seqs).await;
            for n in 1..=10 {
                assert_eq!(watcher.message().await.1, format!("{n}"));
            }
            rig.cloud.hang_up(attempt, Goodbye::Moving);
            rig.cloud.finished().await;
        }
        assert!(timeout(SHORT, watcher.message()).await.is_err());
    }
}

/// What the heart does for a planned move with MQTT 5: the new connection waits ready, what is in flight is let finish
/// while new messages wait, then CONNECT and they go out on the new one, and the server ends the old one.
#[tokio::test]
async fn two_hundred_moves_under_load_lose_and_repeat_nothing() {
    const MOVES: u64 = 200;
    const ON_EACH: u64 = 20;
    const WAITING: u64 = 5;
    let door = free_port();
    let broker = Broker::tls(&format!("max_queued_messages 0\nset_tcp_nodelay true\nlistener {door} 127.0.0.1"));
    // The broker opens its doors one after the other, and was waited for at the first.
    while TcpStream::connect(("127.0.0.1", door)).await.is_err() {
        sleep(Duration::from_millis(10)).await;
    }
    let mut watcher = Watcher::on(door, "t").await;
    let mut config = plain(broker.port);
    config.cloud.servers[0].tls = true;
    config.cloud.ca_file = Some(Papers::get().path("ca.pem"));
    let mut rig = Rig::new(config);
    let (mut live, _) = rig.open(Version::V5).await;
    let mut last = 0;
    let mut pause = Duration::ZERO;
    let mut early = 0;
    for _ in 0..MOVES {
        let next = rig.dial();
        let batch: Vec<Seq> = fresh(&rig, &mut last, ON_EACH);
        batch.iter().for_each(|seq| rig.cloud.transmit(live, *seq, false));
        let mut dialled = false;
        let mut open = batch.len();
        while !dialled || open > 0 {
            match rig.events.recv().await.unwrap() {
                Event::Dialled { attempt, .. } => dialled |= attempt == next,
                Event::Acked { attempt, .. } => open -= usize::from(attempt == live),
                // The one before, told before it was hung up.
                Event::Closed { attempt, .. } => assert!(attempt < live),
                _ => {}
            }
        }
        let began = Instant::now();
        let waiting = fresh(&rig, &mut last, WAITING);
        rig.cloud.connect(next, Version::V5, Duration::from_secs(30));
        waiting.iter().for_each(|seq| rig.cloud.transmit(next, *seq, false));
        let (mut connected, mut open) = (false, waiting.len());
        while open > 0 {
            match rig.events.recv().await.unwrap() {
                Event::Connected { attempt, present, .. } => {
                    assert!(attempt == next && present);
                    connected = true;
                }
                Event::Acked { attempt, .. } => {
                    assert!(attempt == next && connected);
                    open -= 1;
                    early += 1;
                }
                Event::Closed { attempt, .. } => assert_eq!(attempt, live),
                _ => {}
            }
        }
        pause = pause.max(began.elapsed());
        rig.cloud.hang_up(live, Goodbye::Abort);
        live = next;
    }
    println!("{MOVES} moves, {last} messages, {early} of them right behind CONNECT, longest {pause:?}");
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    while let Ok((_, text)) = timeout(SHORT, watcher.message()).await {
        *seen.entry(text).or_default() += 1;
    }
    let expected: BTreeMap<String, usize> = (1..=last).map(|n| (format!("{n}"), 1)).collect();
    assert_eq!(seen, expected);
}

fn fresh(rig: &Rig, last: &mut u64, count: u64) -> Vec<Seq> {
    (0..count)
        .map(|_| {
            *last += 1;
            rig.stack.put(*last, "t", format!("{last}").as_bytes(), 1)
        })
        .collect()
}
