//! Conversations that no client would hold: random packets of both versions, whole and broken, in any order.
//!
//! Several clients at once share few identifiers, packet numbers and topics, so that they take over from each other, repeat
//! themselves and get each other's messages, while the outbox accepts, refuses, keeps waiting and gives up. Whatever they
//! say: nothing panics, every limit holds, what they are told is MQTT, and each connection ends in a way that the standard
//! has a word for. `SEED=number` repeats a run.

use std::collections::VecDeque;
use std::sync::Mutex;

use switchback_control::{Seq, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::config::PublishRule;
use crate::corridor::Refusal;
use crate::io::packet;

const ROUNDS: usize = 400;
const CLIENTS: usize = 4;

#[test]
fn no_conversation_panics_breaks_a_limit_or_ends_without_a_word() {
    let seed = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0xc0de_u64);
    println!("SEED={seed}");
    let mut random = Random(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut seen = Seen::default();
    for _ in 0..ROUNDS / 20 {
        // A new house now and then, and twenty rounds in each, so that sessions have a past.
        let house = House::new(&mut random);
        for _ in 0..20 {
            runtime.block_on(house.round(&mut random, &mut seen));
        }
        house.check_the_disk();
    }
    println!("{seen:?}");
    // The dice reach every corner.
    assert!(seen.let_in > ROUNDS && seen.turned_away > 20 && seen.messages > ROUNDS && seen.acknowledged > ROUNDS);
    for reason in [checks::MALFORMED, checks::PROTOCOL_ERROR, checks::TAKEN_OVER, checks::TOPIC_INVALID] {
        assert!(seen.reasons.contains(&reason), "{reason:x} never came: {:x?}", seen.reasons);
    }
}

#[derive(Debug, Default)]
struct Seen {
    let_in: usize,
    turned_away: usize,
    messages: usize,
    acknowledged: usize,
    reasons: std::collections::BTreeSet<u8>,
}

/// Everything that MQTT 5 lets a server say in DISCONNECT and that we have a reason to say.
const ENDINGS: [u8; 13] = [
    checks::UNSPECIFIED,
    checks::MALFORMED,
    checks::PROTOCOL_ERROR,
    checks::IMPLEMENTATION,
    checks::NOT_AUTHORIZED,
    checks::SHUTTING_DOWN,
    checks::KEEP_ALIVE_TIMEOUT,
    checks::TAKEN_OVER,
    checks::TOPIC_INVALID,
    checks::RECEIVE_MAXIMUM_EXCEEDED,
    checks::TOPIC_ALIAS_INVALID,
    checks::TOO_LARGE,
    checks::QUOTA,
];

// ---- The house

/// An outbox of moods: it answers at once, later, never or with no.
#[derive(Clone)]
struct Moody(Arc<Mutex<Mood>>);

type Accept = oneshot::Sender<Result<Seq, Refusal>>;
type Deliver = oneshot::Sender<()>;

struct Mood {
    random: Random,
    later: VecDeque<(Accept, Deliver)>,
}

impl Offers for Moody {
    async fn offer(&self, draft: Draft) -> Offer {
        assert!(topics::valid_topic(&draft.topic));
        let (accept, accepted) = oneshot::channel();
        let (_, sent) = oneshot::channel();
        let (deliver, delivered) = oneshot::channel();
        let mut mood = self.0.lock().unwrap();
        match mood.random.below(4) {
            0 => mood.later.push_back((accept, deliver)),
            1 => mood.answer(accept, deliver),
            _ => {
                let _ = accept.send(Ok(Seq(1)));
                let _ = deliver.send(());
            }
        }
        Offer { accepted, sent, delivered }
    }
}

impl Mood {
    fn answer(&mut self, accept: Accept, deliver: Deliver) {
        let refusals = [Refusal::Full, Refusal::Dropped, Refusal::NotConnected, Refusal::TooLarge, Refusal::Stopping];
        let _ = accept.send(match refusals.get(self.random.below(10)) {
            Some(refusal) => Err(*refusal),
            None => Ok(Seq(1)),
        });
        if self.random.below(2) == 0 {
            let _ = deliver.send(());
        }
    }

    fn answer_some(&mut self, all: bool) {
        while !self.later.is_empty() && (all || self.random.below(3) > 0) {
            if let Some((accept, deliver)) = self.later.pop_front() {
                self.answer(accept, deliver);
            }
        }
    }
}

struct House {
    doors: Arc<Doors<Moody>>,
    mood: Moody,
    dir: tempfile::TempDir,
    store: Mutex<Option<Store<Local>>>,
}

impl House {
    fn new(random: &mut Random) -> House {
        let dir = tempfile::tempdir().unwrap();
        let shared = Arc::<Shared>::default();
        let store = shared.with(|state| {
            let store = Store::open(Local, dir.path(), &mut |_| false);
            state.begin_keeping(Instant::now());
            store
        });
        let suspend = PublishRule { topic: "a/+".into(), await_cloud: true, ..PublishRule::default() };
        let broken = PublishRule { topic: "b".into(), to: "#".into(), ..PublishRule::default() };
        let mut config = Config { publish: vec![suspend, broken, PublishRule::default()], ..Config::defaults() };
        config.cloud.base = "gw".into();
        let mood = Moody(Arc::new(Mutex::new(Mood { random: Random(random.next()), later: VecDeque::new() })));
        let doors = Arc::new(Doors {
            config: Arc::new(config),
            offers: mood.clone(),
            shared,
            assigned: AtomicU64::new(0),
            started: 1,
            upward_bytes: Arc::default(),
            strangers: Arc::default(),
            access: Arc::default(),
            places: Arc::new(Semaphore::new(CONNECTIONS_MAX)),
        });
        House { doors, mood, dir, store: Mutex::new(Some(store)) }
    }

    /// A few clients talk at once, until all are gone.
    async fn round(&self, random: &mut Random, seen: &mut Seen) {
        let (finish, finished) = oneshot::channel();
        let store = self.store.lock().unwrap().take();
        let store = store.unwrap_or_else(|| Store::open(Local, self.dir.path(), &mut |_| true));
        let keeper = tokio::spawn(keeping::keep(Arc::clone(&self.doors.shared), store, finished));
        // Time has passed.
        if random.below(4) == 0 {
            let now = Instant::now() + Duration::from_secs(random.below(200) as u64);
            self.doors.shared.with(|state| state.sweep(now));
        }
        let mut talks = Vec::new();
        for _ in 0..CLIENTS {
            let (near, far) = duplex(1 << random.below(16));
            let stranger = self.doors.strangers.knock();
            let served = tokio::spawn(connection::serve(far, Arc::clone(&self.doors), stranger));
            let talk = Talk::new(random);
            talks.push((served, tokio::spawn(talk.hold(near))));
        }
        let (downlinks, inbox) = mpsc::channel(8);
        let down = tokio::spawn(bring_down(Arc::clone(&self.doors.shared), inbox));
        for _ in 0..random.below(20) {
            let (taken, _) = oneshot::channel();
            let (topic, payload) = (random.pick(&TOPICS).to_string(), vec![b'c'; random.below(50)]);
            let (qos, retain) = (random.below(3) as u8, random.below(4) == 0);
            let _ = downlinks.send(Downlink { topic, payload, qos, retain, properties: vec![], taken }).await;
            self.mood.0.lock().unwrap().answer_some(false);
            self.check_limits();
            tokio::task::yield_now().await;
        }
        drop(downlinks);
        for (served, talk) in talks {
            let (talk, heard) = loop {
                self.mood.0.lock().unwrap().answer_some(true);
                if talk.is_finished() {
                    break talk.await.expect("no panic in the client");
                }
                self.check_limits();
                tokio::task::yield_now().await;
            };
            talk.judge(&heard, seen);
            while !served.is_finished() {
                self.mood.0.lock().unwrap().answer_some(true);
                tokio::task::yield_now().await;
            }
            served.await.expect("no panic in the server");
        }
        down.await.expect("no panic on the way down");
        finish.send(()).unwrap();
        keeper.await.expect("no panic in the keeper");
        self.check_limits();
        assert_eq!((self.doors.shared.with(|state| state.figures().clients)), 0);
        assert_eq!(self.doors.upward_bytes.load(Ordering::Relaxed), 0);
    }

    fn check_limits(&self) {
        self.doors.shared.with(|state| {
            let figures = state.figures();
            assert!(figures.clients <= CLIENTS_MAX && figures.sessions <= SESSIONS_MAX);
            assert!(figures.retained <= RETAINED_MAX && figures.queued_bytes <= QUEUES_BYTES_MAX);
            for session in state.sessions.values() {
                assert!(session.subscriptions.len() <= SUBSCRIPTIONS_MAX && session.received.len() <= RECEPTIONS_MAX);
                assert!(session.backlog() <= QUEUE_MAX + OUTBOUND_MAX + crate::corridor::DOWNLINK_MAX);
                let bytes: usize = session.all().map(session::Outgoing::size).sum();
                assert_eq!(bytes, session.bytes());
            }
        });
    }

    /// What the last write left is what there is.
    fn check_the_disk(&self) {
        let mut read = router::State::default();
        let moment = Moment::current();
        let (mut alike, mut whole) = (keeping::Alike::default(), true);
        drop(Store::open(Local, self.dir.path(), &mut |body| {
            whole &= keeping::read_frame(&mut read, &mut alike, body, moment);
            whole
        }));
        assert!(whole);
        self.doors.shared.with(|state| {
            for (id, session) in state.sessions.iter().filter(|(_, session)| session.persistent()) {
                let Some(kept) = read.sessions.get(id) else { panic!("{id:?} is not on disk") };
                let filters = |session: &session::Session| session.subscriptions.keys().cloned().collect::<Vec<_>>();
                assert_eq!(filters(session), filters(kept), "{id:?} {session:?} {kept:?}");
                let serials = |session: &session::Session| {
                    session
                        .all()
                        .map(|outgoing| (outgoing.serial, outgoing.id))
                        .filter(|(serial, _)| *serial > 0)
                        .collect()
                };
                let (mut now, mut then): (Vec<_>, Vec<_>) = (serials(session), serials(kept));
                now.sort_unstable();
                then.sort_unstable();
                assert_eq!(now, then, "{id:?}");
                let accepted = |session: &session::Session| -> Vec<u16> {
                    let accepted =
                        session.received.iter().filter(|(_, r)| matches!(r, session::Reception::Accepted { .. }));
                    accepted.map(|(packet, _)| *packet).collect()
                };
                assert_eq!(accepted(session), accepted(kept), "{id:?}");
            }
        });
    }
}

// ---- The clients

const TOPICS: [&str; 10] = ["t", "a/1", "a/2", "b", "gw/status", "$own", "a/+", "", "x/y/z", "t"];
const FILTERS: [&str; 10] = ["#", "t", "a/#", "+/1", "$own", "a/#/b", "$share/g/t", "", "x/+/z", "+"];
const NAMES: [&str; 5] = ["one", "two", "three", "", "four"];

/// What a client says, packet by packet.
struct Talk {
    version: Version,
    packets: Vec<Vec<u8>>,
    /// Nothing in it was broken.
    whole: bool,
}

impl Talk {
    fn new(random: &mut Random) -> Talk {
        let version = if random.below(2) == 0 { Version::V5 } else { Version::V311 };
        let (mut packets, mut whole) = (vec![connect(random, version)], true);
        for _ in 0..random.below(40) {
            packets.push(something(random, version));
        }
        for packet in &mut packets {
            if random.below(60) == 0 {
                whole = false;
                (0..=random.below(3)).for_each(|_| damage(random, packet));
            }
        }
        if random.below(20) == 0 {
            let (a, b) = (random.below(packets.len()), random.below(packets.len()));
            packets.swap(a, b);
        }
        Talk { version, packets, whole }
    }

    /// Says it all and listens meanwhile; some go without a word, some wait for the end.
    async fn hold(self, stream: DuplexStream) -> (Talk, Vec<u8>) {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let mut heard = Vec::new();
        let listen = async { while matches!(reader.read_buf(&mut heard).await, Ok(1..)) {} };
        let say = async {
            for packet in &self.packets {
                if writer.write_all(packet).await.is_err() {
                    break;
                }
                tokio::task::yield_now().await;
            }
            let _ = writer.shutdown().await;
        };
        tokio::join!(listen, say);
        (self, heard)
    }

    /// What it heard is MQTT, in an order that makes sense.
    fn judge(&self, heard: &[u8], seen: &mut Seen) {
        let (mut left, mut first, mut last) = (heard.to_vec(), true, None);
        // Damage may have made another version of it.
        let version = match packet::connect_version(&self.packets.concat()) {
            Some(0..=4) => Version::V311,
            Some(5..) => Version::V5,
            None => self.version,
        };
        while let Some(packet) = packet::take(&mut left, version, 2 * PACKET_MAX).unwrap_or_else(|error| {
            panic!("{error:?} in what the server said to {:x?}: {heard:x?}", self.packets);
        }) {
            use flowsdk::mqtt_serde::control_packet::MqttPacket::*;
            assert!(last.is_none(), "something after the last word");
            let connack = match &packet {
                ConnAck5(p) => Some(p.reason_code),
                ConnAck3(p) => Some(p.return_code),
                _ => None,
            };
            assert_eq!(connack.is_some(), first, "CONNACK first and only once: {packet:?}");
            first = false;
            match &packet {
                Disconnect5(p) => {
                    assert!(ENDINGS.contains(&p.reason_code), "{:x}", p.reason_code);
                    seen.reasons.insert(p.reason_code);
                    last = Some(p.reason_code);
                }
                Publish5(_) | Publish3(_) => seen.messages += 1,
                PubAck5(_) | PubAck3(_) | PubRec5(_) | PubRec3(_) => seen.acknowledged += 1,
                _ => {}
            }
            match connack {
                Some(0) => seen.let_in += 1,
                Some(reason) => {
                    seen.turned_away += 1;
                    last = Some(reason);
                }
                None => {}
            }
        }
        assert!(!self.whole || left.is_empty() || last.is_none(), "half a packet");
    }
}

fn connect(random: &mut Random, version: Version) -> Vec<u8> {
    let (clean, with_will) = (random.below(2) == 0, random.below(3) == 0);
    let mut flags = u8::from(clean) << 1;
    let mut body = vec![0, 4, b'M', b'Q', b'T', b'T', if version == Version::V5 { 5 } else { 4 }];
    if with_will {
        flags |= 0x04 | (random.below(3) as u8) << 3 | (random.below(2) as u8) << 5;
    }
    body.extend([flags, 0, random.below(3) as u8 * 100]);
    if version == Version::V5 {
        let mut properties = Vec::new();
        if random.below(2) == 0 {
            properties.extend([0x11, 0, 0, 0, random.below(200) as u8]);
        }
        if random.below(3) == 0 {
            properties.extend([0x21, 0, 1 + random.below(3) as u8]);
        }
        if random.below(3) == 0 {
            properties.extend([0x27, 0, 0, random.below(2) as u8, 20 + random.below(200) as u8]);
        }
        if random.below(10) == 0 {
            properties.extend([0x17, random.below(3) as u8]);
        }
        body.push(properties.len() as u8);
        body.extend(properties);
    }
    text(&mut body, random.pick(&NAMES));
    if with_will {
        if version == Version::V5 {
            body.extend([5, 0x18, 0, 0, 0, random.below(100) as u8]);
        }
        text(&mut body, random.pick(&TOPICS));
        text(&mut body, "gone");
    }
    frame(0x10, body)
}

/// A packet that a client may send, or nearly.
fn something(random: &mut Random, version: Version) -> Vec<u8> {
    let v5 = version == Version::V5;
    let id = [0, random.below(8) as u8];
    match random.below(16) {
        0..=6 => {
            let most = if random.below(30) == 0 { 4 } else { 3 };
            let qos = random.below(most) as u8;
            let (dup, retain) = (random.below(8) == 0, random.below(4) == 0);
            let first = 0x30 | u8::from(dup) << 3 | qos << 1 | u8::from(retain);
            let mut body = Vec::new();
            let usual = if random.below(10) == 0 { TOPICS.len() } else { 3 };
            text(&mut body, random.pick(&TOPICS[..usual]));
            if qos > 0 {
                body.extend(id);
            }
            if v5 {
                let choices: [&[u8]; 8] = [
                    &[],
                    &[],
                    &[2, 0, 0, 0, 5],
                    &[0x26, 0, 1, b'k', 0, 1, b'v'],
                    &[0x26, 0, 8, b's', b'b', b'-', b'c', b'l', b'a', b's', b's', 0, 3, b'l', b'o', b'w'],
                    &[0x03, 0, 1, b'c'],
                    &[0x01, 1],
                    if random.below(8) == 0 { &[0x23, 0, 1] } else { &[] },
                ];
                let properties = random.pick(&choices);
                body.push(properties.len() as u8);
                body.extend_from_slice(properties);
            }
            body.extend(vec![b'x'; random.below(300)]);
            frame(first, body)
        }
        7 | 8 => {
            let mut body = vec![0, 1 + random.below(9) as u8];
            if v5 {
                body.extend_from_slice(random.pick::<&[u8]>(&[&[0], &[2, 0x0b, 7]]));
            }
            for _ in 0..=random.below(3) {
                text(&mut body, random.pick(&FILTERS));
                let most = if v5 && random.below(4) == 0 { 64 } else { 3 };
                body.push(random.below(most) as u8);
            }
            frame(0x82, body)
        }
        9 => {
            let mut body = vec![0, 1 + random.below(9) as u8];
            body.extend(v5.then_some(0));
            text(&mut body, random.pick(&FILTERS));
            frame(0xa2, body)
        }
        10 | 11 => frame(0x62, id.to_vec()),
        12 => frame(0x50, id.to_vec()),
        13 => frame(random.pick(&[0x40, 0x70]), id.to_vec()),
        14 => frame(0xc0, vec![]),
        _ => frame(random.pick(&[0xe0, 0xe0, 0x10, 0xf0, 0x20, 0x00]), vec![]),
    }
}

fn damage(random: &mut Random, packet: &mut Vec<u8>) {
    if packet.is_empty() {
        return;
    }
    let at = random.below(packet.len());
    match random.below(6) {
        0 => packet[at] = random.next() as u8,
        1 => packet[at] ^= 1 << random.below(8),
        2 => packet.truncate(at),
        3 => packet.insert(at, random.next() as u8),
        4 => packet.extend_from_within(at..),
        _ => drop(packet.remove(at)),
    }
}

fn text(body: &mut Vec<u8>, text: &str) {
    body.extend((text.len() as u16).to_be_bytes());
    body.extend(text.as_bytes());
}

fn frame(first: u8, body: Vec<u8>) -> Vec<u8> {
    let (mut packet, mut length) = (vec![first], body.len());
    loop {
        packet.push((length & 0x7f) as u8 | if length > 0x7f { 0x80 } else { 0 });
        length >>= 7;
        if length == 0 {
            break;
        }
    }
    packet.extend(body);
    packet
}

/// splitmix64: the same dice for the same seed, everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit.max(1) as u64) as usize
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
