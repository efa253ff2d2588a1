//! What an application may send: single packets, and whole connections to the real listener.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use switchback_control::{Seq, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};

use super::state::place;
use super::{Shape, Target, as_it_is, mixed, shape_of};
use crate::config::Config;
use crate::corridor::{DOWNLINK_MAX, Downlink, Draft, Offer};
use crate::io::applications::{Applications, Offers, checks, greeting};
use crate::io::cloud::speech;
use crate::io::packet::{self, PACKET_MAX, Publish, frame_length, properties_from_bytes};
use crate::sorting;

pub const PACKETS: Target = Target {
    name: "local_packets",
    examples: || streams().into_iter().flat_map(|(four, five)| [with(4, &four), with(5, &five)]).collect(),
    words: WORDS,
    repair: right_lengths,
    read,
    memory: (512, 1024 * 1024),
};

pub const CONNECTION: Target = Target {
    name: "local_connection",
    examples: conversations,
    words: WORDS,
    repair: as_it_is,
    read: converse,
    // The whole face runs in this thread, with buffers of its own.
    memory: (2048, 16 * 1024 * 1024),
};

const WORDS: &[&[u8]] = &[
    b"\0\x04MQTT\x05",
    b"\0\x04MQTT\x04",
    b"\0\x06MQIsdp\x03",
    b"\0\x01#",
    b"\0\x01+",
    b"\0\x03a/b",
    b"\0\x05$SYS/",
    b"\0\x07$share/",
    b"\xed\xa0\x80",
    b"\xff\xff\xff\x7f",
    b"\x80\x80\x80\x80\x01",
    &[0x10],
    &[0x32],
    &[0x34],
    &[0x3d],
    &[0x62, 2],
    &[0x82],
    &[0xc0, 0],
    &[0xe0, 0],
    &[0xf0, 2, 0x18, 0],
    &[0x02, 0, 0, 0, 9],
    &[0x23, 0, 1],
    &[0x26, 0, 1, b'k', 0, 1, b'v'],
    b"\x26\0\x08sb-class\0\x08critical",
    &[0x0b, 0x80, 1],
    &[0x11, 0xff, 0xff, 0xff, 0xff],
    &[0x27, 0, 0, 0, 20],
];

fn packet(first: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut out = vec![first];
    let mut left = body.len();
    loop {
        let more = if left > 127 { 0x80 } else { 0 };
        out.push(left as u8 & 0x7f | more);
        left >>= 7;
        if left == 0 {
            break;
        }
    }
    [out, body].concat()
}

fn with(version: u8, stream: &[u8]) -> Vec<u8> {
    [&[version], stream].concat()
}

/// Streams of whole packets, as 3.1.1 and as 5.
fn streams() -> Vec<(Vec<u8>, Vec<u8>)> {
    let connect = |five: bool, flags: u8, rest: &[&[u8]]| {
        let (level, properties): (u8, &[u8]) = if five { (5, &[5, 0x11, 0, 0, 0, 60]) } else { (4, &[]) };
        packet(0x10, &[b"\0\x04MQTT", &[level, flags, 0, 30], properties, &rest.concat()])
    };
    let big = vec![7; 3000];
    let one = |five: bool| {
        let none: &[u8] = if five { &[0] } else { &[] };
        let will_properties: &[u8] = if five { &[5, 0x18, 0, 0, 0, 1] } else { &[] };
        let expiry: &[u8] = if five { &[12, 2, 0, 0, 0, 60, 0x26, 0, 1, b'k', 0, 1, b'v'] } else { &[] };
        let filters: &[u8] = &[0, 3, b'a', b'/', b'#', 2, 0, 3, b'+', b'/', b'x', 1];
        let talk = [
            packet(0x82, &[&[0, 1], none, filters]),
            packet(0x32, &[b"\0\x03a/b", &[0, 9], expiry, b"hello"]),
            packet(0x34, &[b"\0\x03a/c", &[0, 10], none, b"twice"]),
            packet(0x62, &[&[0, 10]]),
            packet(0x31, &[b"\0\x03q/x", none, b"kept"]),
            packet(0x40, &[&[0, 1]]),
            packet(0x50, &[&[0, 1]]),
            packet(0x70, &[&[0, 1]]),
            packet(0xa2, &[&[0, 2], none, b"\0\x03a/#"]),
            packet(0xc0, &[]),
            packet(0x30, &[b"\0\x03big", none, &big]),
            packet(0xe0, &[]),
        ];
        [
            connect(five, 0x02, &[b"\0\x03app"]),
            connect(five, 0x00, &[b"\0\x03app"]),
            connect(five, 0xee, &[b"\0\x03app", will_properties, b"\0\x04will\0\x04gone", b"\0\x04user\0\x04word"]),
        ]
        .map(|connect| [vec![connect], talk.to_vec()].concat().concat())
    };
    let (four, five) = (one(false), one(true));
    four.into_iter().zip(five).collect()
}

/// Sets the length of the last frame to what is there, so that a change is inside of it.
fn right_lengths(input: &mut Vec<u8>) {
    let mut at = 1;
    while let Some(Ok(Some(length))) = input.get(at..).map(|rest| frame_length(rest, usize::MAX)) {
        if at + length >= input.len() {
            let Some(header) = input[at + 1..].iter().position(|byte| byte & 0x80 == 0) else { return };
            let body = input[at + 2 + header..].to_vec();
            let frame = packet(input[at], &[&body]);
            input.truncate(at);
            input.extend(frame);
            return;
        }
        at += length;
    }
}

fn read(input: &[u8]) -> Shape {
    let Some((version, stream)) = input.split_first() else { return 0 };
    let version = if version % 2 == 0 { Version::V311 } else { Version::V5 };
    let (mut left, mut shapes) = (stream.to_vec(), Vec::new());
    let config = sorted_by();
    loop {
        let before = left.len();
        let first = left.first().copied();
        if first == Some(0x10) && shapes.is_empty() {
            // As the connection does: the greeting is cut out, then read by ourselves.
            let Ok(Some(length)) = frame_length(&left, PACKET_MAX) else { break };
            let Some(frame) = left.get(..length) else { break };
            shapes.push(greet(frame));
            left.drain(..length);
            continue;
        }
        let length = frame_length(&left, PACKET_MAX);
        let taken = packet::take(&mut left, version, PACKET_MAX);
        match taken {
            Ok(Some(packet)) => {
                let frame = &stream[stream.len() - before..];
                assert_eq!(length, Ok(Some(before - left.len())), "a packet is as long as its header says");
                assert!(length.unwrap().unwrap() <= PACKET_MAX);
                assert_eq!(packet::parse(&frame[..before - left.len()], version).as_ref(), Ok(&packet));
                let allowed = checks::header(first.unwrap_or(0));
                shapes.push(mixed((first, allowed)));
                if allowed.is_err() {
                    break;
                }
                shapes.push(upward(packet, version, &config));
            }
            Ok(None) => {
                assert_eq!(left.len(), before);
                assert!(length.is_ok_and(|length| length.is_none_or(|length| length > before)), "a packet lies there");
                break;
            }
            Err(malformed) => {
                assert_eq!(left.len(), before, "what is malformed is not taken");
                shapes.push(shape_of(&(malformed, first)));
                break;
            }
        }
    }
    shapes.dedup();
    shapes.truncate(8);
    mixed(shapes)
}

fn sorted_by() -> Config {
    thread_local! { static CONFIG: Config = Config::defaults(); }
    CONFIG.with(Config::clone)
}

fn greet(frame: &[u8]) -> Shape {
    match greeting::read(frame) {
        Ok(greeting) => {
            assert!(greeting.receive_max > 0 && greeting.packet_max > 0, "limits of nothing");
            assert!(frame.len() >= greeting.id.len() + greeting.credentials.password.len());
            assert!(!format!("{greeting:?}").contains("password: [1"), "a password is shown");
            let will = greeting.will.as_ref().map(|(will, delay)| (will.qos, will.retain, delay.is_zero()));
            shape_of(&(greeting.version, greeting.clean, greeting.expiry.is_some(), will, greeting.id.is_empty()))
        }
        Err(rejected) => {
            let reply = rejected.reply;
            if let Some(kind) = reply.first() {
                assert_eq!(*kind, 0x20, "only a CONNACK answers a CONNECT");
                assert!(reply.get(3).is_some_and(|code| *code != 0), "a refusal that says yes");
            }
            mixed(reply)
        }
    }
}

/// What a message becomes on its way to the cloud must be a packet that the cloud can read.
fn upward(packet: MqttPacket, version: Version, config: &Config) -> Shape {
    let publish = match Publish::from_packet(packet) {
        Ok(publish) => publish,
        Err(other) => {
            let printed = format!("{other:?}");
            return shape_of(&printed.split(['(', '{']).next());
        }
    };
    let verdict = checks::publish(&publish);
    if verdict.is_ok() {
        assert!(crate::topics::valid_topic(&publish.topic) && publish.qos <= 2);
        let local = sorting::Local {
            topic: publish.topic.clone(),
            payload: publish.payload.clone(),
            retain: publish.retain,
            properties: publish.properties.clone(),
        };
        if let sorting::Way::Up { draft, .. } = sorting::sort(config, local) {
            for cloud in [Version::V311, Version::V5] {
                let properties = speech::portable(properties_from_bytes(&draft.properties), cloud);
                let up = Publish {
                    topic: draft.topic.clone(),
                    payload: draft.payload.clone(),
                    qos: draft.qos,
                    retain: draft.retain,
                    dup: false,
                    id: (draft.qos > 0).then_some(1),
                    properties,
                };
                let bytes = speech::publish(cloud, up.clone()).expect("what was let in can be sent");
                let again = packet::parse(&bytes, cloud).expect("what we send is MQTT");
                assert_eq!(Publish::from_packet(again).ok(), Some(up));
            }
        }
    }
    let kinds: Vec<String> = publish.properties.iter().take(4).map(|p| format!("{p:?}")).collect();
    let kinds: Vec<&str> = kinds.iter().filter_map(|kind| kind.split('(').next()).collect();
    shape_of(&(version, verdict, publish.qos, kinds, publish.payload.is_empty(), publish.topic.is_empty()))
}

/// A desk that takes everything at once, and counts.
#[derive(Clone, Default)]
struct Desk(Arc<AtomicU64>);

impl Offers for Desk {
    async fn offer(&self, _: Draft) -> Offer {
        let (sender, accepted) = oneshot::channel();
        let (_, sent) = oneshot::channel();
        let (_, delivered) = oneshot::channel();
        let _ = sender.send(Ok(Seq(self.0.fetch_add(1, Ordering::Relaxed) + 1)));
        Offer { accepted, sent, delivered }
    }
}

struct Face {
    runtime: tokio::runtime::Runtime,
    desk: Desk,
    socket: std::path::PathBuf,
    /// Somebody who behaves, beside all others.
    good: Option<UnixStream>,
    _applications: Applications,
    _cloud: mpsc::Sender<Downlink>,
}

impl Face {
    fn new() -> Face {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let (dir, desk) = (place("connection"), Desk::default());
        let (cloud, downlinks) = mpsc::channel(DOWNLINK_MAX);
        let mut config = Config::defaults();
        config.local.mqtt = None;
        let applications = runtime.block_on(async {
            let face = Applications::start(Arc::new(config), &dir, &dir, desk.clone(), downlinks);
            tokio::task::yield_now().await;
            face
        });
        Face { runtime, desk, socket: dir.join("mqtt.sock"), good: None, _applications: applications, _cloud: cloud }
    }
}

thread_local! { static FACE: RefCell<Option<Face>> = const { RefCell::new(None) }; }

fn conversations() -> Vec<Vec<u8>> {
    streams().into_iter().flat_map(|(four, five)| [four, five]).collect()
}

const PATIENCE: Duration = Duration::from_secs(20);

fn converse(input: &[u8]) -> Shape {
    FACE.with_borrow_mut(|face| {
        let face = face.get_or_insert_with(Face::new);
        let (socket, desk, good) = (&face.socket, &face.desk, &mut face.good);
        face.runtime.block_on(async {
            let talk = async {
                if good.is_none() {
                    let mut stream = UnixStream::connect(socket).await.expect("the listener listens");
                    stream.write_all(&packet(0x10, &[b"\0\x04MQTT\x04\x02\0\0\0\x04good"])).await.unwrap();
                    let mut answer = [0; 4];
                    stream.read_exact(&mut answer).await.unwrap();
                    assert_eq!(answer, [0x20, 2, 0, 0]);
                    *good = Some(stream);
                }
                let offered = desk.0.load(Ordering::Relaxed);
                let mut stream = UnixStream::connect(socket).await.expect("the listener listens");
                // It may close before it has read everything; what it said counts all the same.
                let (mut reader, mut writer) = stream.split();
                let mut said = Vec::new();
                let write = async {
                    let _ = writer.write_all(input).await;
                    let _ = writer.shutdown().await;
                };
                let (_, _) = tokio::join!(write, reader.read_to_end(&mut said));
                let version = if packet::connect_version(input) >= Some(5) { Version::V5 } else { Version::V311 };
                // What is below $ goes to nobody else.
                let stays_here = input.contains(&b'$');
                let shape = judge(&mut said, version, desk.0.load(Ordering::Relaxed) - offered, stays_here);
                // Its neighbour has noticed nothing, unless it was thrown out under its own name.
                if let Some(stream) = good.as_mut() {
                    let mut answer = [0; 2];
                    let alive = stream.write_all(&[0xc0, 0]).await.is_ok()
                        && stream.read_exact(&mut answer).await.is_ok()
                        && answer == [0xd0, 0];
                    assert!(alive || input.windows(4).any(|word| word == b"good"), "the neighbour is gone");
                    if !alive {
                        *good = None;
                    }
                }
                shape
            };
            tokio::time::timeout(PATIENCE, talk).await.expect("a connection that was closed ends")
        })
    })
}

/// What the face said is MQTT, begins with its answer to the greeting, and acknowledges no more than it offered.
fn judge(said: &mut Vec<u8>, version: Version, offered: u64, stays_here: bool) -> Shape {
    let (mut shapes, mut accepted) = (Vec::new(), 0);
    while !said.is_empty() {
        let first = said[0];
        let packet = packet::take(said, version, usize::MAX).expect("what we say is MQTT").expect("whole packets");
        assert!(!shapes.is_empty() || first == 0x20, "the answer to CONNECT comes first, not {first:x}");
        // PUBREC is not counted: a number that comes again is answered again, and its message offered once.
        let acked = match &packet {
            MqttPacket::PubAck5(ack) => ack.reason_code < 0x80,
            MqttPacket::PubAck3(_) => true,
            _ => false,
        };
        accepted += u64::from(acked);
        shapes.push(mixed(first));
    }
    assert!(accepted <= offered || stays_here, "{accepted} acknowledged, {offered} offered");
    shapes.dedup();
    shapes.truncate(10);
    mixed((shapes, offered.min(3)))
}
