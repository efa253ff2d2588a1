//! A fast MQTT 5 client of the lab's own: a publisher of numbered messages, and a recorder that can keep up with it.
//!
//! ```text
//! flood publish --topic load --count 100000 --open 100 [--size 200] [--class normal,critical] [--qos 1,2] [--rate N]
//!               [--first 1] [--id flood] [--port 1883] [--seconds 60] [--log FILE] [--once] [--keep]
//! flood record  --topic 'load/#' --out FILE [--id recorder] [--port 1883] [--seconds 3600]
//! ```
//!
//! The standard library only, and no line shared with the daemon. Message n goes to `TOPIC/CLASS` in the class and with
//! the QoS whose turn it is, and says its class as user property `sb-class`. Unless told `--once`, the publisher
//! comes back after a lost connection (to the same session with `--keep`) and offers again what was not acknowledged;
//! with QoS 2 a PUBREC counts as the acknowledgement, for with it the server has taken the message. It ends when all is acknowledged or
//! refused, or after `--seconds`, and prints one JSON object. `--log` gets a line for each message: `o N TIME` offered,
//! `a N TIME` acknowledged, `r N TIME REASON` refused. The recorder writes `TIME TOPIC N SB-ID DUP QOS` for each arrival,
//! whole after each read, so that it may be killed at any time. Talks to 127.0.0.1 in the namespace it was started in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PUBACK: u8 = 4;
const PUBREC: u8 = 5;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;
const RECEIVE_MAXIMUM: u8 = 0x21;
const USER_PROPERTY: u8 = 0x26;
const COME_BACK_AFTER: Duration = Duration::from_millis(20);
/// Bytes gathered before they are written: a burst of messages is one system call.
const WRITE_MOST: usize = 64 * 1024;

fn main() {
    let mut words = std::env::args().skip(1);
    let verb = words.next().unwrap_or_default();
    let options = Options::read(words);
    let done = match verb.as_str() {
        "publish" => publish(&options),
        "record" => record(&options),
        other => Err(io::Error::other(format!("{other:?} is neither publish nor record"))),
    };
    if let Err(error) = done {
        eprintln!("flood: {error}");
        std::process::exit(1);
    }
}

struct Options(HashMap<String, String>);

impl Options {
    fn read(words: impl Iterator<Item = String>) -> Options {
        let mut found = HashMap::new();
        let mut words = words.peekable();
        while let Some(word) = words.next() {
            let value = words.next_if(|next| !next.starts_with("--")).unwrap_or_default();
            found.insert(word.trim_start_matches('-').to_owned(), value);
        }
        Options(found)
    }

    fn text(&self, name: &str, default: &str) -> String {
        self.0.get(name).cloned().unwrap_or_else(|| default.to_owned())
    }

    fn number<T: std::str::FromStr>(&self, name: &str, default: T) -> T {
        self.0.get(name).and_then(|text| text.parse().ok()).unwrap_or(default)
    }

    fn list(&self, name: &str, default: &str) -> Vec<String> {
        self.text(name, default).split(',').map(str::to_owned).collect()
    }

    fn until(&self, default: u64) -> Instant {
        Instant::now() + Duration::from_secs_f64(self.number("seconds", default as f64))
    }
}

// Publishing

/// Where a message that was offered stands.
struct Open {
    id: u16,
    since: Instant,
}

struct Publisher {
    topic: String,
    classes: Vec<String>,
    qos: Vec<u8>,
    size: usize,
    next: u64,
    last: u64,
    at_once: usize,
    /// Offered and neither acknowledged nor refused, by number.
    open: BTreeMap<u64, Open>,
    by_id: HashMap<u16, u64>,
    /// Of QoS 2: received by the server, and not yet complete.
    received: HashSet<u16>,
    last_id: u16,
    waits: Vec<u32>,
    refused: u64,
    log: Option<File>,
    lines: String,
    out: Vec<u8>,
}

fn publish(options: &Options) -> io::Result<()> {
    let first = options.number("first", 1u64);
    let mut publisher = Publisher {
        topic: options.text("topic", "load"),
        classes: options.list("class", ""),
        qos: options.list("qos", "1").iter().filter_map(|word| word.parse().ok()).collect(),
        size: options.number("size", 200),
        next: first,
        last: first + options.number("count", 1u64) - 1,
        at_once: options.number("open", 100),
        open: BTreeMap::new(),
        by_id: HashMap::new(),
        received: HashSet::new(),
        last_id: 0,
        waits: Vec::new(),
        refused: 0,
        log: options.0.get("log").map(|path| OpenOptions::new().create(true).append(true).open(path)).transpose()?,
        lines: String::new(),
        out: Vec::new(),
    };
    let until = options.until(60);
    let pace = options.0.get("rate").and_then(|text| text.parse().ok()).map(|rate: f64| Pace {
        every: Duration::from_secs_f64(1.0 / rate),
        began: Instant::now(),
        first,
    });
    let began = Instant::now();
    let mut connections = 0;
    while !publisher.done() && Instant::now() < until {
        let ended = publisher.connection(options, pace.as_ref(), until);
        connections += 1;
        publisher.write_log()?;
        match ended {
            Ok(()) => break,
            Err(error) if options.0.contains_key("once") => return Err(error),
            Err(_) => std::thread::sleep(COME_BACK_AFTER),
        }
    }
    println!("{}", publisher.summary(first, began.elapsed(), connections));
    Ok(())
}

struct Pace {
    every: Duration,
    began: Instant,
    first: u64,
}

impl Pace {
    fn due(&self, number: u64) -> Instant {
        self.began + self.every.mul_f64((number - self.first) as f64)
    }
}

impl Publisher {
    fn done(&self) -> bool {
        self.next > self.last && self.open.is_empty() && self.received.is_empty()
    }

    /// One connection, until all is done, time is up (both `Ok`), or it breaks.
    fn connection(&mut self, options: &Options, pace: Option<&Pace>, until: Instant) -> io::Result<()> {
        let mut line = Line::open(options, "flood")?;
        let at_once = self.at_once.min(line.receive_maximum);
        self.out.clear();
        if !line.session_present {
            // Whose PUBREC came was taken; the rest is new to this server.
            self.received.clear();
        }
        self.again(line.session_present);
        while !self.done() && Instant::now() < until {
            while self.next <= self.last && self.open.len() + self.received.len() < at_once {
                if pace.is_some_and(|pace| pace.due(self.next) > Instant::now()) || self.out.len() > WRITE_MOST {
                    break;
                }
                self.offer();
            }
            line.stream.write_all(&self.out)?;
            self.out.clear();
            let due = pace.filter(|_| self.next <= self.last).map(|pace| pace.due(self.next));
            line.wait_until(due.unwrap_or(until).min(until))?;
            line.read()?;
            while let Some((first, body)) = line.packet() {
                self.answered(first, &body);
            }
            self.write_log()?;
        }
        // What was just released may still be on its way out.
        line.stream.write_all(&self.out)
    }

    fn offer(&mut self) {
        let number = self.next;
        self.next += 1;
        self.last_id = self.free_id();
        self.by_id.insert(self.last_id, number);
        self.open.insert(number, Open { id: self.last_id, since: Instant::now() });
        self.put(number, self.last_id, false);
        self.note('o', number, None);
    }

    fn free_id(&self) -> u16 {
        let mut id = self.last_id;
        loop {
            id = id.checked_add(1).unwrap_or(1);
            if !self.by_id.contains_key(&id) && !self.received.contains(&id) {
                return id;
            }
        }
    }

    /// On a new connection: everything open once more, in order.
    fn again(&mut self, session_present: bool) {
        let open: Vec<(u64, u16)> = self.open.iter().map(|(number, open)| (*number, open.id)).collect();
        for (number, id) in open {
            self.put(number, id, session_present);
        }
        for id in self.received.clone() {
            self.out.extend([PUBREL << 4 | 2, 2, (id >> 8) as u8, id as u8]);
        }
    }

    fn put(&mut self, number: u64, id: u16, again: bool) {
        let turn = (number - 1) as usize;
        let class = &self.classes[turn % self.classes.len()];
        let qos = self.qos[turn / self.classes.len() % self.qos.len()];
        let mut topic = self.topic.clone();
        let mut properties = Vec::new();
        if !class.is_empty() {
            topic = format!("{topic}/{class}");
            properties.push(USER_PROPERTY);
            put_text(&mut properties, "sb-class");
            put_text(&mut properties, class);
        }
        let mut body = Vec::with_capacity(self.size + 64);
        put_text(&mut body, &topic);
        body.extend(id.to_be_bytes());
        put_length(&mut body, properties.len());
        body.extend(&properties);
        let begin = body.len();
        let _ = write!(body, "{number} {:.6} ", wall());
        body.resize((begin + self.size).max(body.len()), b'.');
        self.out.push(0x30 | qos << 1 | u8::from(again) << 3);
        put_length(&mut self.out, body.len());
        self.out.extend(body);
    }

    fn answered(&mut self, first: u8, body: &[u8]) {
        let [high, low, rest @ ..] = body else { return };
        let id = u16::from_be_bytes([*high, *low]);
        let reason = rest.first().copied().unwrap_or(0);
        match first >> 4 {
            PUBACK => self.answer(id, reason),
            PUBREC => {
                self.answer(id, reason);
                if reason < 0x80 {
                    self.received.insert(id);
                    self.out.extend([PUBREL << 4 | 2, 2, *high, *low]);
                }
            }
            PUBCOMP => {
                self.received.remove(&id);
            }
            _ => {}
        }
    }

    fn answer(&mut self, id: u16, reason: u8) {
        let Some(number) = self.by_id.remove(&id) else { return };
        let Some(open) = self.open.remove(&number) else { return };
        if reason < 0x80 {
            self.waits.push(open.since.elapsed().as_micros().min(u32::MAX.into()) as u32);
            self.note('a', number, None);
        } else {
            self.refused += 1;
            self.note('r', number, Some(reason));
        }
    }

    fn note(&mut self, what: char, number: u64, reason: Option<u8>) {
        if self.log.is_some() {
            let reason = reason.map(|reason| format!(" {reason}")).unwrap_or_default();
            let _ = writeln!(self.lines, "{what} {number} {:.6}{reason}", wall());
        }
    }

    fn write_log(&mut self) -> io::Result<()> {
        if let Some(log) = &mut self.log {
            log.write_all(self.lines.as_bytes())?;
            self.lines.clear();
        }
        Ok(())
    }

    fn summary(&mut self, first: u64, took: Duration, connections: u32) -> String {
        self.waits.sort_unstable();
        let at = |share: f64| {
            let index = ((self.waits.len() as f64 * share) as usize).min(self.waits.len().saturating_sub(1));
            self.waits.get(index).map_or(-1.0, |micros| f64::from(*micros) / 1000.0)
        };
        format!(
            "{{\"offered\": {}, \"acked\": {}, \"refused\": {}, \"open\": {}, \"seconds\": {:.6}, \"connections\": {connections}, \
             \"ack_ms\": {{\"p50\": {}, \"p99\": {}, \"max\": {}}}}}",
            self.next - first,
            self.waits.len(),
            self.refused,
            self.open.len(),
            took.as_secs_f64(),
            at(0.5),
            at(0.99),
            at(1.0),
        )
    }
}

// Recording

fn record(options: &Options) -> io::Result<()> {
    let mut out = OpenOptions::new().create(true).append(true).open(options.text("out", "/dev/stdout"))?;
    let until = options.until(3600);
    while Instant::now() < until {
        if recording(options, &mut out, until).is_ok() {
            break;
        }
        std::thread::sleep(COME_BACK_AFTER);
    }
    Ok(())
}

fn recording(options: &Options, out: &mut File, until: Instant) -> io::Result<()> {
    let mut line = Line::open(options, "flood-recorder")?;
    let mut body = vec![0, 1, 0];
    put_text(&mut body, &options.text("topic", "#"));
    // Maximum QoS 2, and what is retained from before is not sent.
    body.push(0x22);
    let mut packet = vec![0x82];
    put_length(&mut packet, body.len());
    packet.extend(body);
    line.stream.write_all(&packet)?;
    let mut on_their_way = HashSet::new();
    while Instant::now() < until {
        line.wait_until(until)?;
        line.read()?;
        let (mut text, mut answers) = (String::new(), Vec::new());
        while let Some((first, body)) = line.packet() {
            match first >> 4 {
                3 => arrived(first, &body, &mut text, &mut answers, &mut on_their_way),
                PUBREL => {
                    if let [high, low, ..] = body[..] {
                        on_their_way.remove(&u16::from_be_bytes([high, low]));
                        answers.extend([PUBCOMP << 4, 2, high, low]);
                    }
                }
                9 => {
                    let _ = writeln!(text, "subscribed {:.6}", wall());
                }
                _ => {}
            }
        }
        out.write_all(text.as_bytes())?;
        line.stream.write_all(&answers)?;
    }
    Ok(())
}

fn arrived(first: u8, body: &[u8], text: &mut String, answers: &mut Vec<u8>, on_their_way: &mut HashSet<u16>) {
    let qos = first >> 1 & 3;
    let mut at = 0;
    let Some(topic) = take_text(body, &mut at) else { return };
    if qos > 0 {
        let Some([high, low]) = body.get(at..at + 2).and_then(|id| <[u8; 2]>::try_from(id).ok()) else { return };
        at += 2;
        answers.extend([if qos == 1 { PUBACK } else { PUBREC } << 4, 2, high, low]);
        if qos == 2 && !on_their_way.insert(u16::from_be_bytes([high, low])) {
            return;
        }
    }
    let Some(length) = take_length(body, &mut at) else { return };
    let properties = body.get(at..at + length).unwrap_or_default();
    let payload = body.get(at + length..).unwrap_or_default();
    let number = payload.split(|byte| *byte == b' ').next().unwrap_or_default();
    let _ = writeln!(
        text,
        "{:.6} {} {} {} {} {qos}",
        wall(),
        String::from_utf8_lossy(topic),
        String::from_utf8_lossy(number),
        identity(properties).unwrap_or_else(|| "-".into()),
        first >> 3 & 1,
    );
}

/// The user property `sb-id`, where the properties are of the kinds that a PUBLISH may carry.
fn identity(properties: &[u8]) -> Option<String> {
    let mut at = 0;
    while let Some(kind) = properties.get(at) {
        at += 1;
        match kind {
            0x01 => at += 1,
            0x23 => at += 2,
            0x02 => at += 4,
            0x0b => {
                take_length(properties, &mut at)?;
            }
            &USER_PROPERTY => {
                let key = take_text(properties, &mut at)?;
                let value = take_text(properties, &mut at)?;
                if key == b"sb-id" {
                    return Some(String::from_utf8_lossy(value).into_owned());
                }
            }
            _ => {
                take_text(properties, &mut at)?;
            }
        }
    }
    None
}

// The line

struct Line {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// Read and taken out of `buffer` so far.
    taken: usize,
    session_present: bool,
    receive_maximum: usize,
}

impl Line {
    /// CONNECT, answered within five seconds. With `--keep` the session outlives the connection by an hour.
    fn open(options: &Options, id: &str) -> io::Result<Line> {
        let stream = TcpStream::connect(("127.0.0.1", options.number("port", 1883)))?;
        stream.set_nodelay(true)?;
        let mut line = Line { stream, buffer: Vec::new(), taken: 0, session_present: false, receive_maximum: 65_535 };
        let mut body = Vec::new();
        put_text(&mut body, "MQTT");
        let seconds = if options.0.contains_key("keep") { 3600u32 } else { 0 };
        body.extend([5, 0, 0, 0]);
        body.extend([5, 0x11]);
        body.extend(seconds.to_be_bytes());
        put_text(&mut body, &options.text("id", id));
        let mut packet = vec![0x10];
        put_length(&mut packet, body.len());
        packet.extend(body);
        line.stream.write_all(&packet)?;
        let until = Instant::now() + Duration::from_secs(5);
        let (first, body) = loop {
            line.wait_until(until)?;
            line.read()?;
            if let Some(packet) = line.packet() {
                break packet;
            }
            if Instant::now() > until {
                return Err(ErrorKind::TimedOut.into());
            }
        };
        if first != 0x20 || body.get(1) != Some(&0) {
            return Err(io::Error::other(format!("CONNECT was answered with {first:#x} {body:?}")));
        }
        line.session_present = body[0] == 1;
        line.receive_maximum = receive_maximum(&body[2..]).unwrap_or(65_535).into();
        Ok(line)
    }

    fn wait_until(&self, due: Instant) -> io::Result<()> {
        let patience = due.saturating_duration_since(Instant::now()).max(Duration::from_micros(50));
        self.stream.set_read_timeout(Some(patience))
    }

    /// What has come, at least something unless patience ends.
    fn read(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.taken);
        self.taken = 0;
        let mut chunk = [0; 65_536];
        match self.stream.read(&mut chunk) {
            Ok(0) => Err(ErrorKind::UnexpectedEof.into()),
            Ok(size) => {
                self.buffer.extend(&chunk[..size]);
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The next whole packet: its first byte and its body.
    fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let rest = &self.buffer[self.taken..];
        let mut at = 1;
        let length = take_length(rest, &mut at)?;
        let body = rest.get(at..at + length)?.to_vec();
        let first = rest[0];
        self.taken += at + length;
        Some((first, body))
    }
}

/// The server's Receive Maximum among the properties of a CONNACK.
fn receive_maximum(properties: &[u8]) -> Option<u16> {
    let mut at = 0;
    take_length(properties, &mut at)?;
    while let Some(kind) = properties.get(at) {
        at += 1;
        match *kind {
            RECEIVE_MAXIMUM => return Some(u16::from_be_bytes([*properties.get(at)?, *properties.get(at + 1)?])),
            0x24 | 0x25 | 0x28 | 0x29 | 0x2a => at += 1,
            0x13 | 0x22 => at += 2,
            0x11 | 0x27 => at += 4,
            USER_PROPERTY => {
                take_text(properties, &mut at)?;
                take_text(properties, &mut at)?;
            }
            _ => {
                take_text(properties, &mut at)?;
            }
        }
    }
    None
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u16).to_be_bytes());
    out.extend(text.as_bytes());
}

fn put_length(out: &mut Vec<u8>, mut length: usize) {
    while length > 127 {
        out.push((length & 127) as u8 | 128);
        length >>= 7;
    }
    out.push(length as u8);
}

/// A text's bytes at `at`, which moves behind it.
fn take_text<'a>(bytes: &'a [u8], at: &mut usize) -> Option<&'a [u8]> {
    let size = u16::from_be_bytes([*bytes.get(*at)?, *bytes.get(*at + 1)?]).into();
    let text = bytes.get(*at + 2..)?.get(..size)?;
    *at += 2 + size;
    Some(text)
}

/// A variable byte integer at `at`, which moves behind it.
fn take_length(bytes: &[u8], at: &mut usize) -> Option<usize> {
    let mut length = 0;
    for shift in [0, 7, 14, 21] {
        let byte = *bytes.get(*at)?;
        *at += 1;
        length |= usize::from(byte & 127) << shift;
        if byte < 128 {
            return Some(length);
        }
    }
    None
}

fn wall() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
