//! Slow, half-open and hostile clients: each meets a limit that has a name, and nobody else notices.
//!
//! Times are generous, because these run unoptimised and beside each other.

use std::process::Command;
use std::time::{Duration, Instant};

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use flowsdk::mqtt_serde::mqttv5::subscribev5::{MqttSubscribe, TopicSubscription};
use switchback::control::Version;
use switchback::io::applications::{
    CLIENTS_MAX, FILTER_MAX, LEVELS_MAX, PACKET_WAIT, RECEPTIONS_MAX, RETAINED_BYTES_MAX, RETAINED_MAX, STRANGERS_MAX,
    SUBSCRIPTIONS_MAX,
};
use switchback::io::packet::PACKET_MAX;

use super::client::{Client, Connect, Kind, Mode, Next, SOON, Server, eventually, text};

/// How long another client may wait for its PINGRESP meanwhile.
const UNDISTURBED: Duration = Duration::from_secs(1);

/// The longest wait of another client for a PINGRESP while this is going on.
fn longest_wait(server: &Server, mut going_on: impl FnMut() -> bool) -> Duration {
    let mut other = server.client(Version::V311, "other");
    let mut longest = Duration::ZERO;
    while going_on() {
        let start = Instant::now();
        other.ping();
        longest = longest.max(start.elapsed());
        std::thread::sleep(Duration::from_millis(1));
    }
    longest
}

fn subscribe(filters: &[String]) -> MqttPacket {
    let wanted = filters.iter().map(|filter| TopicSubscription::new(filter.clone(), 0, false, false, 0));
    MqttPacket::Subscribe5(MqttSubscribe::new(1, wanted.collect(), vec![]))
}

fn codes(client: &mut Client) -> Vec<u8> {
    match client.receive() {
        MqttPacket::SubAck5(p) => p.reason_codes,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_longest_topic_is_served_and_no_longer_filter_than_filter_max() {
    let server = Server::start(Mode::Accept);
    let mut client = server.client(Version::V5, "a");
    client.subscribe("#", 0);
    for topic in ["t".repeat(65_535), "/".repeat(65_535)] {
        client.publish(&topic, "x", 1, 1);
        assert_eq!(client.message_before_ack(Kind::Puback, 1).topic, topic);
    }
    assert_eq!(client.subscribe(&"f".repeat(FILTER_MAX), 0), 0);
    assert_eq!(client.subscribe(&"f".repeat(FILTER_MAX + 1), 0), 0x97);
    assert_eq!(client.subscribe(&"/".repeat(LEVELS_MAX - 1), 0), 0);
    assert_eq!(client.subscribe(&"/".repeat(LEVELS_MAX), 0), 0x97);
}

#[test]
fn ten_thousand_subscriptions_are_too_many() {
    let server = Server::start(Mode::Accept);
    let mut client = server.client(Version::V5, "a");
    let filters: Vec<String> = (0..1000).map(|number| format!("f/{number}")).collect();
    for packet in 0..10 {
        client.send(&subscribe(&filters));
        let codes = codes(&mut client);
        let served = codes.iter().filter(|code| **code == 0).count();
        assert_eq!((codes.len(), served), (1000, SUBSCRIPTIONS_MAX), "packet {packet}");
        assert!(codes[SUBSCRIPTIONS_MAX..].iter().all(|code| *code == 0x97));
    }
    assert_eq!(client.subscribe("one more", 0), 0x97);
    let mut old = server.client(Version::V311, "old");
    for number in 0..SUBSCRIPTIONS_MAX {
        assert_eq!(old.subscribe(&format!("f/{number}"), 0), 0);
    }
    assert_eq!(old.subscribe("one more", 0), 0x80);
    old.ping();
}

#[test]
fn a_bomb_of_subscribes_with_wildcards_over_all_that_is_retained_disturbs_nobody() {
    let server = Server::start(Mode::Accept);
    let mut from = server.client(Version::V5, "from");
    for number in 0..RETAINED_MAX {
        from.publish_retained(&format!("a/b/c/{number}"), "x");
    }
    from.ping();
    let mut bomb = server.client(Version::V5, "bomb");
    let packet = subscribe(&vec!["+/#".to_string(); 10_000]).to_bytes().unwrap();
    let thread = std::thread::spawn(move || {
        (0..20).for_each(|_| bomb.raw(&packet));
        let mut answers = 0;
        while answers < 20 {
            answers += usize::from(matches!(bomb.receive(), MqttPacket::SubAck5(_)));
        }
    });
    let longest = longest_wait(&server, || !thread.is_finished());
    println!("longest wait: {longest:?}");
    assert!(longest < UNDISTURBED, "{longest:?}");
    thread.join().unwrap();
}

#[test]
fn many_deep_filters_make_a_message_dear_and_disturb_nobody() {
    let server = Server::start(Mode::Accept);
    let deep = |number: usize| format!("{}{number}", "+/".repeat(LEVELS_MAX - 1));
    let filters: Vec<String> = (0..SUBSCRIPTIONS_MAX).map(deep).collect();
    let mut hostile: Vec<Client> = Vec::new();
    for number in 0..8 {
        let mut client = server.client(Version::V5, &format!("h{number}"));
        for part in filters.chunks(32) {
            client.send(&subscribe(part));
            assert!(codes(&mut client).iter().all(|code| *code == 0));
        }
        hostile.push(client);
    }
    let mut from = server.client(Version::V5, "from");
    let topic = "x/".repeat(LEVELS_MAX);
    let thread = std::thread::spawn(move || {
        for _ in 0..100 {
            from.publish(&topic, "x", 0, 0);
        }
        from.ping();
    });
    let longest = longest_wait(&server, || !thread.is_finished());
    println!("longest wait: {longest:?}");
    assert!(longest < UNDISTURBED, "{longest:?}");
    thread.join().unwrap();
}

#[test]
fn who_never_sends_pubrel_is_closed_at_receptions_max() {
    let server = Server::start(Mode::Accept);
    let mut client = Client::dial(server.address, Version::V311);
    client.connect(&Connect { id: "a", clean: false, ..Connect::default() });
    client.connack();
    for id in 1..=RECEPTIONS_MAX as u16 {
        client.publish("t", "x", 2, id);
        assert_eq!(client.ack(), (Kind::Pubrec, id, 0));
    }
    client.publish("t", "x", 2, RECEPTIONS_MAX as u16 + 1);
    client.closed_within(SOON);
    assert_eq!(server.desk.count(), RECEPTIONS_MAX as u64);
    // It can go on where it was.
    let mut client = Client::dial(server.address, Version::V311);
    client.connect(&Connect { id: "a", clean: false, ..Connect::default() });
    assert_eq!(client.connack(), (true, 0));
    client.send_ack(0x62, 1);
    assert_eq!(client.ack(), (Kind::Pubcomp, 1, 0));
    client.publish("t", "x", 2, RECEPTIONS_MAX as u16 + 1);
    assert_eq!(client.ack(), (Kind::Pubrec, RECEPTIONS_MAX as u16 + 1, 0));
}

#[test]
fn a_flood_of_retained_messages_is_delivered_and_kept_up_to_its_limits() {
    for (payload, kept) in [(10, RETAINED_MAX), (10_000, RETAINED_BYTES_MAX / 10_000)] {
        let server = Server::start(Mode::Accept);
        let mut watcher = server.client(Version::V5, "watcher");
        watcher.subscribe("r/1999", 0);
        let mut from = server.client(Version::V5, "from");
        for number in 0..2000 {
            from.publish_retained(&format!("r/{number}"), &"x".repeat(payload));
        }
        from.ping();
        assert_eq!(watcher.message().topic, "r/1999");
        let figures = server.figures();
        assert!(figures.retained <= kept && figures.retained > kept * 9 / 10, "{figures:?}");
        assert_eq!(figures.retained as u64 + figures.retained_refused, 2000);
    }
}

#[test]
fn a_bomb_of_user_properties_is_refused() {
    let server = Server::start(Mode::Accept);
    let mut client = server.client(Version::V5, "a");
    let bomb = vec![Property::UserProperty("k".into(), "v".into()); 40_000];
    client.publish_with("t", "x", 1, 1, false, false, bomb);
    assert_eq!(client.closed_within(SOON), Some(0x97));
}

#[test]
fn a_byte_at_a_time_is_given_no_longer_than_all_at_once() {
    let server = Server::start(Mode::Accept);
    let drip = |mut client: Client, bytes: Vec<u8>| {
        std::thread::spawn(move || {
            let start = Instant::now();
            for byte in bytes {
                if !client.try_raw(&[byte]) || matches!(client.next(Duration::from_millis(400)), Next::Closed) {
                    return start.elapsed();
                }
            }
            panic!("never closed");
        })
    };
    let mut greeting = b"\x10\xff\x0f\x00\x04MQTT\x05\x02\x00\x00\x00".to_vec();
    greeting.resize(500, 0);
    let stranger = drip(Client::dial(server.address, Version::V5), greeting);
    let mut publish = vec![0x30, 0xff, 0x7f, 0, 1, b't', 0];
    publish.resize(500, b'x');
    let client = drip(server.client(Version::V5, "a"), publish);
    assert!(stranger.join().unwrap() < Duration::from_secs(13));
    let took = client.join().unwrap();
    assert!(took > PACKET_WAIT && took < PACKET_WAIT + Duration::from_secs(4), "{took:?}");
}

/// Runs `siege` in a process of its own, whose memory is nobody else's.
#[test]
fn the_worst_that_all_clients_can_do_together_fits_in_memory() {
    let program = std::env::current_exe().unwrap();
    let output = Command::new(program).args(["--exact", "limits::siege", "--ignored", "--nocapture"]).output().unwrap();
    let words = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{words}\n{}", String::from_utf8_lossy(&output.stderr));
    print!("{words}");
}

fn peak_memory_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
#[ignore = "run by the test above"]
fn siege() {
    let server = Server::start(Mode::Accept);
    server.desk.forget();
    server.client(Version::V5, "warm").ping();
    let before = peak_memory_kib();
    // Everybody asks for everything, reads nothing, and sends all but the last byte of the largest packet.
    let mut greedy: Vec<Client> = (0..CLIENTS_MAX - 2)
        .map(|number| {
            let mut client = Client::dial(server.address, Version::V5);
            client.connect(&Connect { id: &format!("g{number}"), clean: false, expiry: 1000, ..Connect::default() });
            client.connack();
            client.subscribe("#", 1);
            client
        })
        .collect();
    let mut part = vec![0x30];
    let (mut length, body) = (PACKET_MAX - 4, PACKET_MAX - 5);
    while length > 0 {
        part.push((length & 0x7f) as u8 | if length > 0x7f { 0x80 } else { 0 });
        length >>= 7;
    }
    part.extend([0, 1, b't', 0]);
    part.resize(body, b'x');
    for client in &mut greedy {
        client.raw(&part);
    }
    let _strangers: Vec<Client> = (0..STRANGERS_MAX).map(|_| Client::dial(server.address, Version::V5)).collect();
    let mut from = server.client(Version::V5, "from");
    let payload = "x".repeat(300_000);
    for id in 1..=300 {
        from.publish("t", &payload, 1, id);
        assert_eq!(from.ack(), (Kind::Puback, id, 0));
    }
    for number in 0..2000 {
        from.publish_retained(&format!("{number}/{}", "t".repeat(1000)), "x");
    }
    from.ping();
    let figures = server.figures();
    let grown = (peak_memory_kib() - before) / 1024;
    println!("{grown} MiB at most; {figures:?}");
    assert!(figures.clients >= 2 && figures.dropped > 0);
    // Inputs and outputs of 64 clients, all queues, what is retained, and as much again for what is being copied.
    assert!(grown < 200, "{grown} MiB");
    eventually("a ping", || {
        from.ping();
        true
    });
    assert_eq!(text(&greedy.remove(0).message()).len(), 300_000);
}
