//! What a server may say, in both versions.

use switchback_control::Version;

use super::{Shape, Target, mixed, shape_of};
use crate::io::cloud::speech::{self, Heard};
use crate::io::packet::{self, PACKET_MAX, frame_length};
use crate::topics;

pub const TARGET: Target = Target {
    name: "cloud_packets",
    examples,
    words: &[
        &[0x20, 2],
        &[0x20, 3, 0, 0x87, 0],
        &[0x21, 0, 10],
        &[0x27, 0, 0, 1, 0],
        &[0x24, 0],
        &[0x25, 0],
        &[0x13, 0, 30],
        &[0x12, 0, 1, b'x'],
        &[0x1f, 0, 1, b'r'],
        &[0x32],
        &[0x34],
        &[0x40, 4],
        &[0x50, 2],
        &[0x62, 2],
        &[0x90, 4],
        &[0xd0, 0],
        &[0xe0, 2, 0x8e, 0],
        &[0xf0, 2],
        b"\0\x03a/#",
        b"\xff\xff\xff\x7f",
        b"\xed\xa0\x80",
    ],
    repair,
    read,
    memory: (512, 1024 * 1024),
};

fn examples() -> Vec<Vec<u8>> {
    let five: [&[u8]; 9] = [
        &[0x20, 14, 1, 0, 11, 0x21, 0, 10, 0x27, 0, 0, 64, 0, 0x13, 0, 30],
        &[0x20, 3, 0, 0x87, 0],
        b"\x32\x15\0\x07gw1/cmd\0\x07\x05\x02\0\0\0\x3chi!",
        b"\x34\x0c\0\x03a/b\0\x08\0word",
        &[0x62, 2, 0, 8],
        &[0x40, 4, 0, 1, 0x97, 0],
        &[0x90, 5, 0, 1, 0, 1, 0x87],
        &[0xd0, 0],
        b"\xe0\x09\x8e\x07\x1f\0\x04gone",
    ];
    let old: [&[u8]; 7] = [
        &[0x20, 2, 1, 0],
        &[0x20, 2, 0, 5],
        b"\x32\x0c\0\x07gw1/cmd\0\x07x",
        &[0x62, 2, 0, 8],
        &[0x40, 2, 0, 1],
        &[0x90, 4, 0, 1, 1, 0x80],
        &[0xd0, 0],
    ];
    let one = |version: u8, packets: &[&[u8]]| [&[version], packets.concat().as_slice()].concat();
    let mut all: Vec<Vec<u8>> = five.iter().map(|packet| one(5, &[packet])).collect();
    all.extend(old.iter().map(|packet| one(4, &[packet])));
    all.extend([one(5, &five), one(4, &old)]);
    all
}

/// Sets the first frame's length to what is there.
fn repair(input: &mut Vec<u8>) {
    if let (3..130, true) = (input.len(), input.get(2).is_some_and(|length| *length < 128)) {
        input[2] = (input.len() - 3) as u8;
    }
}

fn read(input: &[u8]) -> Shape {
    let Some((version, stream)) = input.split_first() else { return 0 };
    let version = if version % 2 == 0 { Version::V311 } else { Version::V5 };
    let (mut left, mut shapes) = (stream.to_vec(), Vec::new());
    loop {
        let (before, first) = (left.len(), left.first().copied());
        let length = frame_length(&left, PACKET_MAX);
        match packet::take(&mut left, version, PACKET_MAX) {
            Ok(Some(packet)) => {
                assert_eq!(length, Ok(Some(before - left.len())));
                match speech::understand(packet) {
                    Ok(heard) => shapes.push(check(&heard, version)),
                    Err(malformed) => {
                        shapes.push(shape_of(&malformed));
                        break;
                    }
                }
            }
            Ok(None) => break,
            Err(malformed) => {
                assert_eq!(left.len(), before);
                shapes.push(shape_of(&(first, malformed)));
                break;
            }
        }
    }
    shapes.dedup();
    shapes.truncate(6);
    mixed(shapes)
}

fn check(heard: &Heard, version: Version) -> Shape {
    match heard {
        Heard::Connected { present, code, limits } => {
            assert!(limits.window > 0, "a window of nothing");
            let _ = (speech::refused(version, *code), speech::advice(version, *code));
            shape_of(&(1, present, code, limits.qos, limits.retain, limits.keep_alive.is_some()))
        }
        Heard::Publish(publish) => {
            assert!(topics::valid_topic(&publish.topic) && publish.qos <= 2);
            assert!(publish.qos == 0 || publish.id.is_some_and(|id| id > 0));
            // What goes on to applications can be written in both versions.
            for local in [Version::V311, Version::V5] {
                let mut publish = publish.clone();
                publish.properties = speech::portable(publish.properties, local);
                let bytes = speech::publish(local, publish).expect("what came can be passed on");
                assert!(packet::parse(&bytes, local).is_ok());
            }
            shape_of(&(2, publish.qos, publish.properties.len().min(4), publish.payload.is_empty()))
        }
        Heard::Disconnected { code } => {
            let _ = speech::disconnected(*code);
            mixed((3, code))
        }
        Heard::Acked { refused, .. } => mixed((4, refused.is_some())),
        Heard::Received { refused, .. } => mixed((7, refused.is_some())),
        Heard::Completed { .. } => 8,
        Heard::Subscribed { codes, .. } => mixed((5, codes.iter().take(2).collect::<Vec<_>>())),
        Heard::Release { .. } | Heard::Pong => 6,
    }
}
