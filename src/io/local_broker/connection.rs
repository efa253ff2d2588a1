//! One connection to the local broker, from the first byte to the last.
//!
//! One loop reads, writes, answers and pings; it waits for none of these alone. The broker is not read while the line is
//! full, which is how its queue becomes the bound; it is not called dead for what we did not read. Messages of the cloud
//! go out once the broker has our subscriptions, so that none of them can come back.

use std::collections::BTreeMap;
use std::io;
use std::time::Duration;

use switchback_control::Version;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until, timeout};

use super::words::{self, Heard, Limits};
use super::{Bridge, End, FAREWELL_LIMIT};
use crate::config;
use crate::io::packet::{self, Malformed, PACKET_MAX};

/// How long a broker on this machine may take for the connection and its CONNACK, and then for any answer.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes read at once.
const READ: usize = 16 * 1024;
/// Bytes waiting to be written: beyond the first, no message of the cloud is added; beyond the second, nothing is read.
const OUT_FULL: usize = 64 * 1024;
const OUT_MAX: usize = 1024 * 1024;
/// Filters in one SUBSCRIBE, so that it stays small whatever the broker's largest packet.
const FILTERS_MAX: usize = 16;
/// Identifiers of SUBSCRIBE and UNSUBSCRIBE: from here on, far from those of messages.
const OWN_FIRST: u16 = 65_000;
/// Largest password file, in bytes: a length on the wire is two bytes.
const PASSWORD_MAX: u64 = 65_535;

const TOO_OLD: &str = "it does not speak MQTT 5: without it we would hear our own messages for ever, so we stay away; \
                       use mosquitto 2.0 or newer, or take local.broker out of the configuration";

/// What the loop has to remember.
struct Talk {
    input: Vec<u8>,
    out: Vec<u8>,
    limits: Limits,
    /// SUBSCRIBE and UNSUBSCRIBE without an answer, with their filters.
    asked: BTreeMap<u16, Vec<String>>,
    open: bool,
    /// When the next PINGREQ goes out, and when an answer is due.
    ping: Instant,
    due: Option<Instant>,
}

impl Bridge {
    /// Connects and stays until the connection ends or we are told to stop.
    pub(super) async fn converse(&mut self, stopped: &mut oneshot::Receiver<()>) -> End {
        let welcome = timeout(HANDSHAKE_LIMIT, welcome(self.broker.clone(), self.client_id.clone()));
        let Some(welcome) = self.meanwhile(stopped, welcome).await else { return End::Stopped };
        let welcome = welcome.unwrap_or_else(|_| Err(End::Away("it does not answer".into())));
        let (mut stream, mut talk) = match welcome {
            Ok((stream, present, limits, input)) => {
                self.line.begin(present);
                self.down.begin(present);
                if !present {
                    self.filters.forgotten();
                }
                let soon = Instant::now() + limits.keep_alive * 2 / 3;
                let due = Some(Instant::now() + ANSWER_LIMIT);
                (stream, Talk { input, out: Vec::new(), limits, asked: BTreeMap::new(), open: false, ping: soon, due })
            }
            Err(end) => return end,
        };
        self.filters.asking().await;
        if let Err(end) = self.ask(&mut talk) {
            return end;
        }
        self.talk(&mut stream, &mut talk, stopped).await
    }

    async fn talk(&mut self, stream: &mut TcpStream, talk: &mut Talk, stopped: &mut oneshot::Receiver<()>) -> End {
        let (mut reading, mut writing) = stream.split();
        // CONNACK may have brought more with it.
        if let Err(end) = self.understand(talk).await {
            return end;
        }
        loop {
            while talk.open
                && talk.out.len() < OUT_FULL
                && let Some(bytes) = self.down.next(&talk.limits)
            {
                talk.out.extend(bytes);
            }
            self.show(talk.open);
            let may_read = self.line.has_room() && talk.out.len() < OUT_MAX;
            if !may_read && talk.due.is_some() {
                talk.due = Some(Instant::now() + ANSWER_LIMIT);
            }
            talk.input.reserve(READ);
            tokio::select! {
                read = reading.read_buf(&mut talk.input), if may_read => {
                    match read {
                        Ok(0) => return End::Away("it closed the connection".into()),
                        Ok(_) => {}
                        Err(error) => return End::Away(error.to_string()),
                    }
                    if talk.open {
                        talk.due = None;
                    }
                    if let Err(end) = self.understand(talk).await {
                        return end;
                    }
                }
                written = writing.write(&talk.out), if !talk.out.is_empty() => match written {
                    Ok(count) => drop(talk.out.drain(..count)),
                    Err(error) => return End::Away(error.to_string()),
                },
                answer = self.line.next() => talk.out.extend(answer.into_iter().flatten()),
                Some(downlink) = self.downlinks.recv(), if talk.open && self.down.has_room() => self.down.push(downlink),
                () = sleep_until(talk.ping.min(talk.due.unwrap_or(talk.ping))) => {
                    let now = Instant::now();
                    if talk.due.is_some_and(|due| due <= now) {
                        return End::Away(format!("no answer within {} s", ANSWER_LIMIT.as_secs()));
                    }
                    if talk.ping <= now {
                        self.line.tell();
                        talk.out.extend(words::PING);
                        talk.ping = now + talk.limits.keep_alive * 2 / 3;
                        talk.due = talk.due.or(Some(now + ANSWER_LIMIT));
                    }
                }
                _ = &mut *stopped => {
                    talk.out.extend(words::FAREWELL);
                    let _ = timeout(FAREWELL_LIMIT / 2, writing.write_all(&talk.out)).await;
                    return End::Stopped;
                }
            }
        }
    }

    /// Subscribes to what is wanted and ends what is not any more.
    fn ask(&mut self, talk: &mut Talk) -> Result<(), End> {
        let (wanted, stale) = (self.filters.wanted().to_vec(), self.filters.stale());
        let subscribing = wanted.chunks(FILTERS_MAX).map(|filters| (filters, true));
        let both = subscribing.chain(stale.chunks(FILTERS_MAX).map(|filters| (filters, false)));
        for ((filters, want), id) in both.zip(OWN_FIRST..=u16::MAX) {
            let words = if want { words::subscribe(id, filters) } else { words::unsubscribe(id, filters) };
            talk.out.extend(words.map_err(|problem| End::Wrong(format!("cannot subscribe: {problem}")))?);
            talk.asked.insert(id, filters.to_vec());
        }
        if talk.asked.is_empty() {
            self.opened(talk);
        }
        Ok(())
    }

    async fn understand(&mut self, talk: &mut Talk) -> Result<(), End> {
        while let Some(packet) = packet::take(&mut talk.input, Version::V5, PACKET_MAX).map_err(malformed)? {
            match words::understand(packet).map_err(malformed)? {
                Heard::Publish(publish) => talk.out.extend(self.line.take(publish).into_iter().flatten()),
                Heard::Release { id } => {
                    self.line.released(id);
                    talk.out.extend(words::complete(id));
                }
                Heard::Acked { id, code } => self.down.acked(id, code),
                Heard::Received { id, code } => talk.out.extend(self.down.received(id, code).into_iter().flatten()),
                Heard::Completed { id } => self.down.completed(id),
                Heard::Subscribed { id, codes } => {
                    for (filter, code) in talk.asked.remove(&id).iter().flatten().zip(codes) {
                        complain(filter, code);
                    }
                    self.answered(talk).await;
                }
                Heard::Unsubscribed { id } => {
                    talk.asked.remove(&id);
                    self.answered(talk).await;
                }
                Heard::Pong => {}
                Heard::Disconnected { code: 0x8e } => {
                    return Err(End::Wrong(format!("another client has connected as {}", self.client_id)));
                }
                Heard::Disconnected { code } => {
                    return Err(End::Away(format!("it ended the connection (code {code:#04x})")));
                }
                Heard::Connected { .. } => return Err(malformed(Malformed::Syntax)),
            }
        }
        // What one large packet needed is given back.
        if talk.input.is_empty() {
            talk.input.shrink_to(READ);
        }
        Ok(())
    }

    /// One of our questions was answered.
    async fn answered(&mut self, talk: &mut Talk) {
        if talk.asked.is_empty() && !talk.open {
            self.filters.settled().await;
            self.opened(talk);
        }
    }

    fn opened(&mut self, talk: &mut Talk) {
        (talk.open, talk.due) = (true, None);
        self.say_open();
    }
}

/// Connects and says CONNECT: the stream, whether the session is present, the broker's limits, and what came behind them.
async fn welcome(broker: config::LocalBroker, client_id: String) -> Result<(TcpStream, bool, Limits, Vec<u8>), End> {
    let away = |error: io::Error| End::Away(error.to_string());
    let password = broker.password_file.as_deref().map(password).transpose().map_err(End::Wrong)?;
    let connect = words::connect(client_id, broker.username.clone(), password)
        .map_err(|problem| End::Wrong(format!("CONNECT cannot be written with this configuration: {problem}")))?;
    let mut stream = TcpStream::connect((broker.server.host.as_str(), broker.server.port)).await.map_err(away)?;
    stream.set_nodelay(true).map_err(away)?;
    stream.write_all(&connect).await.map_err(away)?;
    let mut input = Vec::with_capacity(READ);
    loop {
        if stream.read_buf(&mut input).await.map_err(away)? == 0 {
            return Err(End::Away("it hung up on our CONNECT".into()));
        }
        // What a broker that knows 3.1.1 only says is shorter than any CONNACK of MQTT 5.
        if let [0x20, 2, ..] = input.as_slice() {
            return Err(End::Wrong(TOO_OLD.into()));
        }
        let Some(packet) = packet::take(&mut input, Version::V5, PACKET_MAX).map_err(malformed)? else { continue };
        return match words::understand(packet).map_err(malformed)? {
            Heard::Connected { present, code: 0, limits } => Ok((stream, present, limits, input)),
            Heard::Connected { code, .. } => Err(refused(code)),
            _ => Err(malformed(Malformed::Syntax)),
        };
    }
}

/// Read at each connection, so that a new one needs no restart.
fn password(path: &std::path::Path) -> Result<Vec<u8>, String> {
    let wrong = |problem: String| format!("local.broker_password_file: {}: {problem}", path.display());
    if std::fs::metadata(path).is_ok_and(|found| found.len() > PASSWORD_MAX) {
        return Err(wrong("too long to be a password".into()));
    }
    let mut password = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    // Editors end a file with a line break; nobody's password does.
    while password.last().is_some_and(|byte| *byte == b'\n' || *byte == b'\r') {
        password.pop();
    }
    Ok(password)
}

fn malformed(problem: Malformed) -> End {
    log::debug!("the local broker sent a packet that is none: {problem:?}");
    End::Wrong("what it sends is no MQTT 5: is it a broker?".into())
}

/// What a CONNACK that refuses asks somebody to do.
fn refused(code: u8) -> End {
    End::Wrong(match code {
        0x84 => TOO_OLD.into(),
        0x85 => "it does not take our client identifier: allow it, or set cloud.client_id to one that it takes".into(),
        0x86 | 0x87 | 0x8c => {
            "it does not let us in: check local.broker_username and local.broker_password_file".into()
        }
        code => return End::Away(format!("it refuses the connection (code {code:#04x})")),
    })
}

/// What a subscription was granted, where that is not enough.
fn complain(filter: &str, code: u8) {
    match code {
        0x80.. => {
            log::error!("the local broker refuses the subscription to {filter} (code {code:#04x}): allow us to read it")
        }
        0 => log::warn!("the local broker grants QoS 0 for {filter}: what it loses on the way to us is lost"),
        _ => {}
    }
}
