//! One local client's connection, from its first byte to its last.
//!
//! One task per client turns its packets into deeds on the shared state and into offers, and sends what is queued for
//! it. It reads as long as what it owes stays within its limits; then TCP makes the client wait, and only this client.
//! It acknowledges nothing before its offer is accepted. Malformed input ends the connection and nothing else. It
//! never waits for another client, nor for the network.

use std::collections::{BTreeSet, VecDeque};
use std::future::ready;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::disconnectv5;
use switchback_control::Version;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::task::{spawn_blocking, yield_now};
use tokio::time::{Instant, sleep_until, timeout};

use super::access::Deed;
use super::answers::{Answer, PUBREC, acknowledgement, answer};
use super::greeting::{self, Greeting};
use super::router::{Attached, Departure, Shared};
use super::session::Link;
use super::strangers::Stranger;
use super::upward::{Suspended, Upward, Verdict};
use super::{
    CONNECT_MAX, CONNECT_WAIT, CONTROL_MAX, Doors, GOODBYE_WAIT, OUTBOUND_MAX, OUTPUT_MAX, OUTPUT_TARGET, Offers,
    PACKET_WAIT, PACKETS_PER_TURN, READ_CHUNK, RECEIVE_MAX, STALL_MAX, TURN_MAX, checks,
};
use crate::io::packet::{self, Malformed, PACKET_MAX};
use crate::sorting::is_reserved;

/// Longest acknowledgement with a reason string: who takes less gets none.
const WORDS_MAX: usize = 128;

/// Why a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It broke, or stopped reading.
    Broken,
    /// The client said goodbye.
    Disconnected(Departure),
    /// We end it; the reason code of MQTT 5's DISCONNECT.
    Closed(u8),
}

/// Serves a connection until it is gone: a stranger until it has said who it is and there is a place for it.
pub async fn serve<S, O>(stream: S, doors: Arc<Doors<O>>, stranger: Stranger)
where
    S: AsyncRead + AsyncWrite + Send,
    O: Offers,
{
    let (mut reader, mut writer) = tokio::io::split(stream);
    let let_in = async {
        let (mut greeting, input) = greet(&mut reader, &mut writer).await?;
        if let Err(reason) = admit(&doors, &mut greeting).await {
            let refusal = greeting::refusal_packet(greeting.version, reason);
            say_goodbye(&mut reader, &mut writer, refusal).await;
            return None;
        }
        // The last messages of those that have left are still on their way. Never closed, so this never fails.
        let place = timeout(CONNECT_WAIT, Arc::clone(&doors.places).acquire_owned()).await.ok()?.ok()?;
        Some((greeting, input, place))
    };
    let known = tokio::select! {
        known = let_in => known,
        () = stranger.shown_out() => None,
    };
    let Some((greeting, input, place)) = known else { return };
    drop(stranger);
    // Only now, so that a stranger costs little.
    Box::pin(serve_known(reader, writer, doors, greeting, input)).await;
    // Everything it left has been offered.
    drop(place);
}

async fn serve_known<S, O>(
    mut reader: ReadHalf<S>,
    mut writer: WriteHalf<S>,
    doors: Arc<Doors<O>>,
    greeting: Greeting,
    input: Vec<u8>,
) where
    S: AsyncRead + AsyncWrite + Send,
    O: Offers,
{
    let now = Instant::now();
    let assigned = greeting.id.is_empty().then(|| doors.fresh_id());
    let id: Arc<str> = Arc::from(assigned.as_deref().unwrap_or(&greeting.id));
    let (version, keep_alive) = (greeting.version, greeting.keep_alive);
    let wants_words = greeting.wants_words && greeting.packet_max >= WORDS_MAX;
    let user = greeting.credentials.user.clone();
    let attached = doors.shared.with(|state| state.attach(&id, greeting, now));
    let Attached { link, epoch, present, due } = match attached {
        Ok(attached) => attached,
        Err(refusal) => {
            doors.tell_turned_away(|| format!("local MQTT client {id:?} is turned away: {refusal}"));
            say_goodbye(&mut reader, &mut writer, greeting::refusal_packet(version, refusal.reason())).await;
            return;
        }
    };
    let mut client = Client {
        upward: Upward::new(doors.offers.clone(), Arc::clone(&doors.upward_bytes)),
        output: greeting::welcome(version, present, assigned.as_deref()),
        doors,
        id,
        user,
        version,
        wants_words,
        link,
        epoch,
        input,
        late: VecDeque::new(),
        open_receptions: BTreeSet::new(),
        // MQTT 5 section 3.1.2.10: one and a half times what the client promised.
        patience: Some(keep_alive * 3 / 2).filter(|patience| !patience.is_zero()),
        heard: now,
        packet_began: None,
        stalled_since: None,
    };
    for will in due {
        client.offer_will(&will);
    }
    client.drop_what_rules_forbid();
    log::debug!("local MQTT client {:?} is here ({version}, session {present})", client.id);
    let end = client.run(&mut reader, &mut writer).await;
    log::debug!("local MQTT client {:?} is gone: {end:?}", client.id);
    client.leave(end);
    if let (End::Closed(reason), Version::V5) = (end, version) {
        let packet = MqttPacket::Disconnect5(disconnectv5::MqttDisconnect::new_simple(reason));
        client.output.extend(packet.to_bytes().unwrap_or_default());
    }
    if matches!(end, End::Closed(_)) {
        say_goodbye(&mut reader, &mut writer, std::mem::take(&mut client.output)).await;
    }
    drop((reader, writer));
    client.finish().await;
}

/// Whether the client may come in; the reason code if not. Afterwards the greeting names a user only if that is proven,
/// and no password.
async fn admit<O: Offers>(doors: &Doors<O>, greeting: &mut Greeting) -> Result<(), u8> {
    let credentials = std::mem::take(&mut greeting.credentials);
    if !doors.access.asks_nobody() {
        greeting.credentials.user = credentials.user.clone();
        let access = Arc::clone(&doors.access);
        let known = spawn_blocking(move || access.knows(&credentials)).await;
        if !known.unwrap_or(false) {
            doors.shared.with(|state| state.figures.strangers_refused += 1);
            doors.tell_turned_away(|| {
                format!("local MQTT client {:?} is not let in: user or password is wrong", greeting.id)
            });
            return Err(checks::BAD_PASSWORD);
        }
    }
    let user = greeting.credentials.user.as_deref();
    let Some((will, _)) = &greeting.will else { return Ok(()) };
    let reserved = is_reserved(&doors.config, &will.topic);
    if !reserved && doors.access.allows(user, &greeting.id, Deed::Publish, &will.topic) {
        return Ok(());
    }
    doors.shared.with(|state| if reserved { state.figures.reserved += 1 } else { state.figures.denied += 1 });
    doors.tell_turned_away(|| {
        format!("local MQTT client {:?} may not publish its will to {:?}", greeting.id, will.topic)
    });
    Err(checks::NOT_AUTHORIZED)
}

/// Reads the CONNECT; nothing but it may come first (section 3.1), and only a little memory is spent on it.
async fn greet<S>(reader: &mut ReadHalf<S>, writer: &mut WriteHalf<S>) -> Option<(Greeting, Vec<u8>)>
where
    S: AsyncRead + AsyncWrite,
{
    let mut input = Vec::new();
    let first = timeout(CONNECT_WAIT, async {
        loop {
            let mut chunk = [0; 128];
            let count = reader.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
            // No more than came: a stranger's memory is counted.
            input.reserve_exact(count);
            input.extend_from_slice(chunk.get(..count)?);
            if input.first() != Some(&0x10) {
                return None;
            }
            match packet::frame_length(&input, CONNECT_MAX) {
                Ok(Some(length)) if input.len() >= length => return Some(Ok(length)),
                Ok(_) => {}
                Err(malformed) => return Some(Err(malformed)),
            }
        }
    });
    let reply = match first.await.ok()?? {
        Ok(length) => match greeting::read(input.get(..length)?) {
            Ok(greeting) => {
                input.drain(..length);
                input.shrink_to_fit();
                return Some((greeting, input));
            }
            Err(rejected) => rejected.reply,
        },
        Err(Malformed::TooLarge) if packet::connect_version(&input) == Some(5) => {
            greeting::refusal_packet(Version::V5, checks::TOO_LARGE)
        }
        Err(_) => Vec::new(),
    };
    say_goodbye(reader, writer, reply).await;
    None
}

/// Sends the last words and lets the client close first for a moment: closing with unread bytes would make the
/// kernel reset the connection and lose them.
async fn say_goodbye<S>(reader: &mut ReadHalf<S>, writer: &mut WriteHalf<S>, words: Vec<u8>)
where
    S: AsyncRead + AsyncWrite,
{
    if words.is_empty() {
        return;
    }
    let talk = async {
        writer.write_all(&words).await?;
        writer.shutdown().await?;
        let mut rest = [0; 64];
        while reader.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whatever comes of it, the connection ends now.
    let _ = timeout(GOODBYE_WAIT, talk).await;
}

/// A client that has been let in. What its packets do stands in `conversation`.
pub struct Client<O> {
    pub(super) doors: Arc<Doors<O>>,
    pub(super) id: Arc<str>,
    /// Who it is, where there is a password file.
    pub(super) user: Option<String>,
    pub(super) version: Version,
    /// Takes a reason string with a PUBACK.
    pub(super) wants_words: bool,
    pub(super) link: Arc<Link>,
    /// Which session it was when the connection began.
    pub(super) epoch: u64,
    pub(super) upward: Upward<O>,
    pub(super) input: Vec<u8>,
    pub(super) output: Vec<u8>,
    /// Packets that leave once a write has ended, in order.
    pub(super) late: VecDeque<(u64, Vec<u8>)>,
    /// QoS 2 messages of this connection between PUBLISH and PUBCOMP: they count against our Receive Maximum.
    pub(super) open_receptions: BTreeSet<u16>,
    /// How long the client may be silent.
    pub(super) patience: Option<Duration>,
    pub(super) heard: Instant,
    /// When the packet that is not all there yet began to arrive.
    pub(super) packet_began: Option<Instant>,
    /// When the client last read something, while there is something to read.
    pub(super) stalled_since: Option<Instant>,
}

impl<O: Offers> Client<O> {
    async fn run<S>(&mut self, reader: &mut ReadHalf<S>, writer: &mut WriteHalf<S>) -> End
    where
        S: AsyncRead + AsyncWrite,
    {
        loop {
            let more = match self.turn() {
                Ok(more) => more,
                Err(end) => return end,
            };
            if more {
                // The others' turn: one client's flood is never in their way for long.
                yield_now().await;
            }
            let reading = !more && self.may_read();
            if reading {
                self.input.reserve(READ_CHUNK);
            } else {
                // Its silence is our doing, and so is half a packet.
                self.heard = Instant::now();
                self.packet_began = self.packet_began.map(|_| self.heard);
            }
            let deadline = self.deadline(reading);
            let wait_until = deadline.map_or_else(Instant::now, |(at, _)| at);
            let link = Arc::clone(&self.link);
            tokio::select! {
                () = link.wake.notified() => {}
                answer = self.upward.next(), if !self.upward.is_empty() => {
                    if let Err(end) = self.reply(answer).and_then(|()| self.more_answers()) {
                        return end;
                    }
                }
                count = reader.read_buf(&mut self.input), if reading => match count {
                    Ok(0) | Err(_) => return End::Broken,
                    Ok(_) => {}
                },
                count = writer.write(&self.output), if !self.output.is_empty() => match count {
                    Ok(0) | Err(_) => return End::Broken,
                    Ok(count) => {
                        self.output.drain(..count);
                        self.stalled_since = None;
                    }
                },
                () = ready(()), if more => {}
                () = sleep_until(wait_until), if deadline.is_some() => {
                    let Some((_, end)) = deadline.filter(|(at, _)| *at <= Instant::now()) else { continue };
                    // Where this machine was late, what the client sent in time is still in the kernel.
                    let silent = end == End::Closed(checks::KEEP_ALIVE_TIMEOUT);
                    let late = async { reader.read_buf(&mut self.input).await.is_ok_and(|count| count > 0) };
                    if !(silent && timeout(Duration::ZERO, late).await == Ok(true)) {
                        return end;
                    }
                }
            }
        }
    }

    /// Does what can be done without waiting, up to a limit; true when there is more.
    fn turn(&mut self) -> Result<bool, End> {
        if let Some(reason) = self.link.farewell() {
            return Err(End::Closed(reason));
        }
        let more = self.take_packets()?;
        let (id, link, output, late) = (&self.id, &self.link, &mut self.output, &mut self.late);
        self.doors.shared.with(|state| {
            let (session, ledger) = state.parts(id, link).ok_or(End::Closed(checks::TAKEN_OVER))?;
            for (packet_id, kept) in session.settled.drain(..) {
                late.push_back((kept, acknowledgement(self.version, PUBREC, packet_id, 0)));
            }
            let ready = late.iter().take_while(|(kept, _)| ledger.may_go_on(*kept)).count();
            late.drain(..ready).for_each(|(_, packet)| output.extend(packet));
            let now = Instant::now();
            while late.is_empty() && output.len() < OUTPUT_TARGET {
                let Some(packet) = session.next(now, ledger) else { break };
                output.extend_from_slice(&packet);
            }
            session.note_gone(id, ledger, now);
            Ok(())
        })?;
        if self.output.is_empty() {
            self.stalled_since = None;
        } else {
            self.stalled_since.get_or_insert_with(Instant::now);
        }
        Ok(more)
    }

    /// Whether what the client sends next can be taken.
    fn may_read(&self) -> bool {
        self.output.len() < OUTPUT_MAX
            && self.late.len() < OUTBOUND_MAX
            && self.upward.has_room()
            // A client with MQTT 5 knows this limit and is held to it; one with 3.1.1 has to wait.
            && (self.version == Version::V5 || self.upward.owed() < usize::from(RECEIVE_MAX))
    }

    /// When to give the client up if nothing happens, and how.
    fn deadline(&self, reading: bool) -> Option<(Instant, End)> {
        let silence = self.patience.filter(|_| reading);
        let silence = silence.map(|patience| (self.heard + patience, End::Closed(checks::KEEP_ALIVE_TIMEOUT)));
        let half = self.packet_began.filter(|_| reading).map(|began| (began + PACKET_WAIT, End::Broken));
        let stall = self.stalled_since.map(|since| (since + STALL_MAX, End::Broken));
        [silence, half, stall].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Takes whole packets out of the input; true when it stopped at `PACKETS_PER_TURN` or `TURN_MAX`.
    fn take_packets(&mut self) -> Result<bool, End> {
        let input = std::mem::take(&mut self.input);
        let mut left: &[u8] = &input;
        let mut result = Ok(());
        let (mut packets, mut spent) = (0, Duration::ZERO);
        let began = Instant::now();
        while packets < PACKETS_PER_TURN && spent < TURN_MAX && self.may_read() {
            let frame = match next_frame(left) {
                Ok(Some(frame)) => frame,
                Ok(None) => break,
                Err(reason) => {
                    result = Err(End::Closed(reason));
                    break;
                }
            };
            left = left.get(frame.len()..).unwrap_or_default();
            self.heard = Instant::now();
            self.packet_began = None;
            packets += 1;
            spent = self.heard.saturating_duration_since(began);
            result = self.take_packet(frame);
            if result.is_err() {
                break;
            }
        }
        let used = input.len() - left.len();
        self.input = input;
        self.input.drain(..used);
        if self.input.is_empty() {
            self.packet_began = None;
            if self.input.capacity() > 4 * READ_CHUNK {
                self.input = Vec::new();
            }
        } else {
            self.packet_began.get_or_insert_with(Instant::now);
        }
        result.map(|()| packets >= PACKETS_PER_TURN || spent >= TURN_MAX)
    }

    /// Takes the answers that are there already, so that they leave in one write.
    fn more_answers(&mut self) -> Result<(), End> {
        // Not waited for here: `run` asks again with its own waker before it sleeps.
        let mut context = Context::from_waker(Waker::noop());
        while let Poll::Ready(answer) = self.upward.poll_next(&mut context) {
            self.reply(answer)?;
        }
        Ok(())
    }

    /// Tells the others that the client is gone.
    fn leave(&mut self, end: End) {
        let departure = match end {
            End::Disconnected(departure) => departure,
            // The daemon stops, not the client: the next start waits for it before it publishes the will.
            End::Closed(checks::SHUTTING_DOWN) => Departure { cut_off: true, ..Departure::BROKEN },
            End::Broken | End::Closed(_) => Departure::BROKEN,
        };
        let now = Instant::now();
        let will = self.doors.shared.with(|state| state.detach(&self.id, &self.link, departure, now));
        self.doors.shared.changed.notify_one();
        if let Some(will) = will {
            self.offer_will(&will);
        }
    }

    /// Offers what was read before the connection ended: with QoS 0 nobody would send it again.
    async fn finish(mut self) {
        let suspended = self.upward.part().await;
        if !suspended.is_empty() {
            let (shared, id) = (Arc::clone(&self.doors.shared), Arc::clone(&self.id));
            // Each is a message in the outbox, which has its own limits; it holds no place here.
            tokio::spawn(settle_suspended(shared, id, self.epoch, self.version, suspended));
        }
        while !self.upward.is_empty() {
            let answer = self.upward.next().await;
            self.reply_late(answer);
        }
    }
}

/// Tells a session what became of messages that wait for the cloud, however long that takes.
async fn settle_suspended(shared: Arc<Shared>, id: Arc<str>, epoch: u64, version: Version, suspended: Vec<Suspended>) {
    for mut message in suspended {
        let verdict = message.verdict().await;
        let accepted = answer(verdict, version) == Answer::Yes;
        shared.with(|state| {
            state.figures.given_up += u64::from(verdict == Verdict::GivenUp);
            state.settle(&id, epoch, message.id, accepted, Instant::now());
        });
    }
}

/// The first whole packet of the input.
fn next_frame(left: &[u8]) -> Result<Option<&[u8]>, u8> {
    let Some(first) = left.first() else { return Ok(None) };
    checks::header(*first)?;
    let limit = if first >> 4 == 3 { PACKET_MAX } else { CONTROL_MAX };
    match packet::frame_length(left, limit) {
        Ok(length) => Ok(length.and_then(|length| left.get(..length))),
        Err(Malformed::TooLarge) => Err(checks::TOO_LARGE),
        Err(Malformed::Syntax) => Err(checks::MALFORMED),
    }
}

#[cfg(test)]
mod tests {
    use super::super::strangers::Strangers;
    use super::*;
    use crate::corridor::{Draft, Offer};

    #[derive(Clone)]
    struct Nobody;

    impl Offers for Nobody {
        async fn offer(&self, _: Draft) -> Offer {
            std::future::pending().await
        }
    }

    fn size<F: Future>(_: fn(tokio::net::TcpStream, Arc<Doors<Nobody>>, Stranger) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_stranger_costs_four_kilobytes_at_most() {
        let stranger = Arc::<Strangers>::default().knock();
        // The runtime's own words for a task and the two halves of its stream.
        const RUNTIME: usize = 256;
        let cost = size(serve::<tokio::net::TcpStream, Nobody>) + size_of_val(&stranger) + CONNECT_MAX + RUNTIME;
        assert!(cost <= 4096, "{cost}");
    }
}
