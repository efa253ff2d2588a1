//! The file of local sessions and retained messages, as a start finds it.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::outbox::Memory;
use super::{Shape, Target, shape_of};
use crate::io::applications::entry::{Entry, Moment, decode, encode};
use crate::io::applications::keeping::{Alike, read_frame};
use crate::io::applications::router::State;
use crate::io::applications::store::Store;

pub const TARGET: Target = Target {
    name: "sessions",
    examples,
    words: &[b"switchback sessions 1\n", &[1], &[5], &[7], &[0xff; 8], b"\x02\x00\x00\x00\x05"],
    repair,
    read,
    memory: (1024, 2 * 1024 * 1024),
};

const DIR: &str = "/state";
const MAGIC: usize = 22;

/// Made by hand from the picture in `entry`, for its parts are nobody's business here.
fn examples() -> Vec<Vec<u8>> {
    let text = |text: &str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
    let entry = |kind: u8, fields: &[&[u8]]| {
        let rest = [&[kind][..], &fields.concat()].concat();
        [&(rest.len() as u32).to_le_bytes()[..], &rest].concat()
    };
    let app = text("app");
    let (never, number) = (u64::MAX.to_le_bytes(), 7_u64.to_le_bytes());
    let body = [&text("t/x")[..], &text("from"), &text("\x05\x02\0\0\0\x3c"), &text("payload")].concat();
    let message = [&[1, 0][..], &never, &body].concat();
    let short = u32::to_le_bytes(60);
    let all = [
        entry(1, &[&app, &[1], &text("user"), &short, &never, &[3, 0], &[4, 0, 5, 0]]),
        entry(3, &[&app, &text("a/#"), &[2, 1, 1], &9_u32.to_le_bytes()]),
        entry(4, &[&app, &text("b/+")]),
        entry(5, &[&app, &number, &[2, 0], &[1], &[1, 0], &1_u32.to_le_bytes(), &7_u32.to_le_bytes(), &message]),
        entry(5, &[&app, &number, &[2, 0], &[0]]),
        entry(6, &[&app, &number]),
        entry(7, &[&message]),
        entry(8, &[&text("t/x")]),
        entry(2, &[&app]),
    ];
    let file = |bodies: &[Vec<u8>]| {
        let disk = Memory::default();
        let mut store = Store::open(disk.clone(), Path::new(DIR), &mut |_| true);
        store.replace(bodies).unwrap();
        disk.get(&Path::new(DIR).join("sessions")).unwrap()
    };
    for entry in &all {
        assert!(decode(&mut entry.as_slice(), Moment::current()).is_some(), "{entry:?} is no example");
    }
    vec![file(&[]), file(&all), file(&[all.concat()]), file(&[all[..4].concat(), all[6].clone()])]
}

fn repair(input: &mut Vec<u8>) {
    let mut at = MAGIC;
    while let Some(head) = input.get(at..at + 12) {
        let length = u32::from_le_bytes(head[4..8].try_into().unwrap()) as usize;
        let Some(body) = input.get(at + 12..(at + 12).saturating_add(length)) else { break };
        let check = crc32c::crc32c(body).to_le_bytes();
        input[at + 8..at + 12].copy_from_slice(&check);
        let check = crc32c::crc32c(&input[at + 4..at + 12]).to_le_bytes();
        input[at..at + 4].copy_from_slice(&check);
        at += 12 + length;
    }
}

fn read(input: &[u8]) -> Shape {
    let disk = Memory::default();
    let path = Path::new(DIR).join("sessions");
    disk.put(path.clone(), input);
    let now = Instant::now();
    let moment = Moment { now, wall: 1_700_000_000_000 };
    let (mut state, mut frames, mut sense) = (State::default(), 0, true);
    let mut kinds = Vec::new();
    let mut store = Store::open(disk.clone(), Path::new(DIR), &mut |body| {
        frames += 1;
        let (mut left, mut readable) = (body, true);
        while readable && !left.is_empty() {
            let entry = decode(&mut left, moment);
            readable = entry.is_some();
            entry.iter().for_each(|entry| comes_back(entry, moment));
            kinds.extend(entry.as_ref().map(kind));
        }
        let made_sense = read_frame(&mut state, &mut Alike::default(), body, moment);
        assert_eq!(made_sense, readable, "whether a frame makes sense");
        sense &= made_sense;
        made_sense
    });
    let aside = disk.get(&Path::new(DIR).join("sessions.damaged"));
    assert!(sense || aside.is_some(), "what makes no sense is set aside");
    assert!(aside.is_none_or(|aside| aside == input), "what is set aside is what stood there");
    let whole = !store.wants_all(u64::MAX / 4);
    // What was restored lives: time passes over it without harm.
    state.begin_keeping(now);
    let _ = state.sweep(now + Duration::from_secs(3600));
    if !whole {
        store.replace(&[b"one".to_vec()]).unwrap();
    }
    store.append(&[b"two".to_vec()]).unwrap();
    let mut count = 0;
    Store::open(disk.clone(), Path::new(DIR), &mut |body| {
        count += 1;
        body == b"one" || body == b"two" || whole
    });
    assert_eq!(count, if whole { frames + 1 } else { 2 }, "what was written is found");
    kinds.dedup();
    kinds.truncate(6);
    shape_of(&(frames.min(4), sense, whole, kinds))
}

fn kind(entry: &Entry) -> u8 {
    match entry {
        Entry::Session { .. } => 1,
        Entry::Ended { .. } => 2,
        Entry::Subscribed { .. } => 3,
        Entry::Unsubscribed { .. } => 4,
        Entry::Queued { delivery, .. } => 5 + u8::from(delivery.is_some()),
        Entry::Done { .. } => 7,
        Entry::Retained { .. } => 8,
        Entry::Cleared { .. } => 9,
        Entry::Received { .. } => 10,
    }
}

/// What was read, written and read again is the same.
fn comes_back(entry: &Entry, moment: Moment) {
    let mut bytes = Vec::new();
    encode(&mut bytes, entry, moment);
    let again = decode(&mut bytes.as_slice(), moment).unwrap_or_else(|| panic!("{entry:?} does not come back"));
    assert_eq!(format!("{again:?}"), format!("{entry:?}"));
}
