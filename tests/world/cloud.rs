//! Paths, connections and the cloud behind them.
//!
//! A connection has two lanes of packets. A packet that the path does not let through is sent again as Linux does: a
//! tail probe after one timeout, then timeouts that double from there; behind it everything waits, in order. The times
//! were compared with Linux 6.18 and mosquitto 2.0.11 on a wire that loses packets (the table is in `simulation.rs`) and
//! are about as rough. The cloud acknowledges what it has, takes a session over when a second connection comes with the
//! same identity, can be killed, frozen, cut off, slow, strict, and of another age.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use switchback_control::{Attempt, Class, Event, Goodbye, Measure, Name, Reason, Seq, Step, Version};

use super::plan::{Plan, Profile};
use super::{Dice, Source, What, World};

/// What goes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Up {
    Dns,
    Syn,
    Hello,
    Connect(Version, u64),
    Subscribe,
    Publish(u64),
    /// The third step of four of an exact message.
    Release(u64),
    Ping,
    Bye,
    Reset,
}

/// What comes down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    Name,
    SynAck,
    HelloDone,
    Welcome {
        present: bool,
        window: u16,
    },
    Subscribed,
    Acked(u64),
    /// The second and the fourth step of an exact message.
    Received(u64),
    Completed(u64),
    Rejected(u64),
    Pong,
    Command,
    /// The end, with the reason that the adapter will give; `heard` follows from its arrival.
    End(Reason),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Up,
    /// Packets vanish in the provider's router.
    Silent,
    /// Only what comes down is lost, or only what goes up.
    DownLost,
    UpLost,
    /// A firewall answers in the server's name.
    Refused,
    Portal,
    /// The uplink's name servers are dead.
    NoNames,
}

#[derive(Clone, Debug)]
pub struct Path {
    pub mode: Mode,
    pub rtt: u64,
    pub jitter: u64,
    /// Lost packets of a thousand on the way up and on the way down.
    pub loss: [u64; 2],
    base: u64,
    /// When a packet was last lost that nothing would have let through, or one of which a tenth or more are lost.
    pub lossy_at: u64,
    /// Since when nothing has been wrong with it.
    pub healthy_since: u64,
    pub faults: u64,
}

impl Path {
    pub fn new(class: Class, dice: &mut Dice) -> Path {
        let base = match class {
            Class::Ethernet => dice.between(2, 40),
            Class::Wifi => dice.between(5, 80),
            Class::Cell => dice.between(40, 250),
        };
        Path::of(base)
    }

    pub fn of(base: u64) -> Path {
        Path {
            mode: Mode::Up,
            rtt: base,
            jitter: base / 10,
            loss: [0; 2],
            base,
            lossy_at: 0,
            healthy_since: 0,
            faults: 0,
        }
    }

    pub fn heal(&mut self, now: u64) {
        let well = self.mode == Mode::Up && self.worst() == 0 && self.rtt == self.base;
        self.mode = Mode::Up;
        self.loss = [0; 2];
        self.rtt = self.base;
        self.jitter = self.base / 10;
        if !well {
            self.healthy_since = now;
        }
    }

    /// The loss of the worse way.
    pub fn worst(&self) -> u64 {
        self.loss[0].max(self.loss[1])
    }

    pub fn slow(&mut self, factor: u64) {
        self.rtt = (self.base * factor).min(8_000);
        self.jitter = self.rtt / 3;
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Dialling,
    Dialled,
    Connecting,
    Open,
}

#[derive(Debug)]
struct Lane<T> {
    queue: VecDeque<T>,
    tries: u32,
    waiting: bool,
    stuck_since: u64,
    arrives: u64,
    /// This try's timeout, before it doubles.
    timeout: u64,
    doublings: i32,
    /// Segments sent, and those of them that had been sent before: what `TCP_INFO` counts.
    sent: u32,
    again: u32,
}

impl<T> Default for Lane<T> {
    fn default() -> Lane<T> {
        let queue = VecDeque::new();
        Lane {
            queue,
            tries: 0,
            waiting: false,
            stuck_since: 0,
            arrives: 0,
            timeout: 0,
            doublings: 0,
            sent: 0,
            again: 0,
        }
    }
}

/// Small packets that one segment carries once they have had to wait.
const SEGMENT: usize = 8;
/// Linux' shortest and longest retransmission timeout, and what delayed acknowledgements add to the cloud's.
const RTO_MIN: u64 = 204;
const RTO_MAX: u64 = 120_000;
const DELAYED_ACK: u64 = 20;
/// So many of a thousand losses are answered by a tail probe before timeouts begin to double.
const TAIL_PROBES: u64 = 750;

impl<T> Lane<T> {
    /// A segment goes out, or out again.
    fn counts(&mut self) {
        self.sent += 1;
        self.again += u32::from(self.tries > 0);
    }

    /// It did not get through: how long until the next try. `base` is the timeout of a connection that knows the path.
    fn fails(&mut self, base: u64, probe: bool) -> u64 {
        self.waiting = true;
        if self.tries == 0 {
            self.timeout = base;
            // The first timer is the tail probe's, which does not count as a timeout.
            self.doublings = if probe { -1 } else { 0 };
        }
        let wait = self.timeout << self.doublings.clamp(0, 12);
        self.tries += 1;
        self.doublings += 1;
        wait.min(RTO_MAX)
    }
}

#[derive(Debug)]
pub struct Conn {
    pub net: usize,
    pub phase: Phase,
    pub born: u64,
    epoch: u64,
    version: Version,
    keep_alive: u64,
    /// The adapter still has it.
    pub local: bool,
    /// The cloud still has it.
    pub remote: bool,
    up: Lane<Up>,
    down: Lane<Down>,
    last_up: u64,
    /// Packets handed to our kernel, arrived at the cloud's, and known by ours to have arrived; and when it last heard so.
    put: u64,
    arrived: u64,
    acked: u64,
    acked_at: u64,
    /// Published and not acknowledged, as the cloud sees it, and how many the cloud said it takes.
    owing: BTreeSet<u64>,
    window: u16,
    /// As the adapter sees it: what waits for an answer since when, and when anything last came.
    asked: BTreeMap<u64, u64>,
    last_down: u64,
}

#[derive(Clone, Copy, Debug)]
pub enum Change {
    Restart,
    Thaw,
    HostBack,
    Thief,
    /// This connection has said nothing for too long.
    Impatient(u64),
}

#[derive(Debug)]
pub struct Broker {
    pub up: bool,
    pub frozen: bool,
    pub host: bool,
    pub refuse: Option<Reason>,
    pub only_v311: bool,
    /// Tells a stranger's version by hanging up without a word.
    pub curt: bool,
    pub slow: u64,
    pub window: u16,
    pub keeps_sessions: bool,
    pub rejects: u64,
    /// How long it bears a connection that says nothing after the handshake.
    patience: u64,
    session: bool,
    /// Connections whose CONNECT it has accepted.
    introduced: BTreeSet<u64>,
    pub current: Option<u64>,
    backlog: Vec<(u64, Up)>,
    pub received: BTreeMap<u64, u32>,
    pub healthy_since: u64,
    pub generation: u64,
}

impl Broker {
    pub fn new(plan: &Plan, dice: &mut Dice) -> Broker {
        let broker = Broker::drawn(dice);
        match plan.profile {
            Profile::Rate(_) => {
                Broker { only_v311: false, curt: false, window: 65535, keeps_sessions: true, rejects: 0, ..broker }
            }
            _ => broker,
        }
    }

    fn drawn(dice: &mut Dice) -> Broker {
        Broker {
            up: true,
            frozen: false,
            host: true,
            refuse: None,
            only_v311: dice.chance(150),
            curt: dice.chance(300),
            slow: 0,
            window: *dice.pick(&[65535, 65535, 20, 5, 1]),
            keeps_sessions: dice.chance(600),
            rejects: if dice.chance(200) { 5 } else { 0 },
            patience: dice.spread(5_000, 20_000),
            session: false,
            introduced: BTreeSet::new(),
            current: None,
            backlog: Vec::new(),
            received: BTreeMap::new(),
            healthy_since: 0,
            generation: 0,
        }
    }

    pub fn well(&self) -> bool {
        self.up && !self.frozen && self.host && self.refuse.is_none() && self.slow == 0
    }
}

impl World {
    pub fn dial(&mut self, interface: Name, server: u8, attempt: Attempt) {
        let usable = |n: &super::network::Net| n.device == interface && n.usable();
        let Some(net) = self.nets.iter().position(usable) else {
            let failed = Event::DialFailed { attempt, reason: Reason::NoRoute, heard: false };
            return self.tell(Source::Cloud, 0, failed);
        };
        let conn = Conn {
            net,
            phase: Phase::Dialling,
            born: self.now,
            epoch: self.nets[net].epoch,
            version: Version::V5,
            keep_alive: 30_000,
            local: true,
            remote: false,
            up: Lane::default(),
            down: Lane::default(),
            last_up: self.now,
            put: 0,
            arrived: 0,
            acked: 0,
            acked_at: self.now,
            owing: BTreeSet::new(),
            window: 65535,
            asked: BTreeMap::new(),
            last_down: self.now,
        };
        self.conns.insert(attempt.0, conn);
        // Servers after the first have their address as a literal.
        let first = if server == 0 && self.dice.chance(700) { Up::Dns } else { Up::Syn };
        if first == Up::Dns {
            self.after(3_000, What::DialLimit(attempt.0, 0));
        } else {
            self.tell(Source::Cloud, 0, Event::DialProgressed { attempt, step: Step::Connecting });
        }
        // The adapter's own patience differs from ours.
        let patience = self.dice.spread(5_000, 90_000);
        self.after(patience, What::DialLimit(attempt.0, 1));
        self.send(attempt.0, first);
    }

    pub fn dial_limit(&mut self, id: u64, kind: u8) {
        let Some(conn) = self.conns.get(&id) else { return };
        let resolving = conn.up.queue.front() == Some(&Up::Dns);
        if !conn.local || conn.phase != Phase::Dialling || (kind == 0 && !resolving && conn.remote) {
            return;
        }
        let still_resolving = kind == 0 && (resolving || self.waits_for_name(id));
        if kind == 0 && !still_resolving {
            return;
        }
        let reason = if kind == 0 { Reason::Dns } else { Reason::NoServer };
        self.conn_ends(id);
        self.tell(Source::Cloud, 0, Event::DialFailed { attempt: Attempt(id), reason, heard: false });
    }

    fn waits_for_name(&self, id: u64) -> bool {
        self.conns.get(&id).is_some_and(|c| c.down.queue.front() == Some(&Down::Name))
    }

    pub fn connect(&mut self, attempt: Attempt, version: Version, keep_alive: Duration) {
        if let Some(conn) = self.conns.get_mut(&attempt.0)
            && conn.local
        {
            conn.version = version;
            conn.phase = Phase::Connecting;
            let ka = keep_alive.as_millis() as u64;
            self.send(attempt.0, Up::Connect(version, ka));
        }
    }

    pub fn hang_up(&mut self, attempt: Attempt, goodbye: Goodbye) {
        let Some(conn) = self.conns.get_mut(&attempt.0) else { return };
        if !conn.local {
            return;
        }
        let last = if goodbye == Goodbye::Abort { Up::Reset } else { Up::Bye };
        conn.local = false;
        if last == Up::Reset {
            conn.up.queue.clear();
            conn.up.waiting = false;
        }
        self.put(attempt.0, last);
    }

    /// The process is gone: the kernel closes what it had.
    pub fn hang_up_everything(&mut self) {
        let open: Vec<u64> = self.conns.iter().filter(|(_, c)| c.local).map(|(id, _)| *id).collect();
        for id in open {
            self.hang_up(Attempt(id), Goodbye::Abort);
        }
    }

    pub fn look_at_queue(&mut self, attempt: Attempt) {
        if let Some(conn) = self.conns.get(&attempt.0)
            && conn.local
        {
            let empty = conn.up.queue.is_empty();
            let delay = self.dice.between(0, 5);
            self.tell(Source::Cloud, delay, Event::Drained { attempt, empty });
        }
    }

    pub fn measure(&mut self, attempt: Attempt) {
        if self.conns.get(&attempt.0).is_some_and(|c| c.local) {
            let measure = self.measured(attempt.0);
            let delay = self.dice.between(0, 5);
            self.tell(Source::Cloud, delay, Event::Measured { attempt, measure });
        }
    }

    /// What our kernel has counted. Loss makes its round trip look longer than it is.
    fn measured(&mut self, id: u64) -> Measure {
        let Some(conn) = self.conns.get(&id).filter(|_| self.plan.kernel_tells) else { return Measure::default() };
        let (sent, again, path) = (conn.up.sent, conn.up.again, &self.nets[conn.net].path);
        let (rtt, most) = (path.rtt, path.jitter + path.worst() * path.worst() / 500);
        let round_trip = Duration::from_millis(rtt + self.dice.between(0, most));
        let acked_ago = Duration::from_millis(self.now - conn.acked_at);
        Measure {
            round_trip,
            sent,
            again,
            acked_ago,
            owed: u32::try_from(conn.put - conn.acked).unwrap_or(u32::MAX) * 100,
        }
    }

    /// The adapter sends; nothing is sent on a connection that it no longer has.
    pub fn send(&mut self, id: u64, packet: Up) {
        let now = self.now;
        if let Some(conn) = self.conns.get_mut(&id).filter(|c| c.local) {
            if let Up::Publish(seq) = packet {
                conn.asked.insert(seq, now);
            }
            self.put(id, packet);
        }
    }

    /// Something came in: how long had it been silent while an answer was owed?
    fn broke_silence(&mut self, id: u64, packet: &Down) {
        let now = self.now;
        let counts = matches!(self.plan.profile, Profile::Rate(_)) && !self.calm;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let oldest = conn.asked.values().min().copied();
        if let Some(oldest) = oldest.filter(|_| counts && now > conn.last_down && self.nets[conn.net].path.worst() > 0)
        {
            self.summary.silences.push((now - oldest.max(conn.last_down)) as u32);
        }
        conn.last_down = now;
        if let Down::Acked(seq) | Down::Rejected(seq) = packet {
            conn.asked.remove(seq);
        }
    }

    /// The adapter has the message's body, and sends it unless it is too old by now.
    pub fn transmit(&mut self, id: u64, seq: Seq) {
        let expired = self.bodies.get(&seq.0).and_then(|body| body.expires).is_some_and(|at| at <= self.now);
        if !expired {
            return self.send(id, Up::Publish(seq.0));
        }
        if self.conns.get(&id).is_some_and(|conn| conn.local) {
            let attempt = Some(Attempt(id));
            self.tell(Source::Cloud, 0, Event::Expired { attempt, from: seq, through: seq });
        }
    }

    fn put(&mut self, id: u64, packet: Up) {
        let now = self.now;
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.up.queue.is_empty() {
            conn.up.stuck_since = now;
        }
        conn.put += 1;
        conn.up.queue.push_back(packet);
        if !conn.up.waiting {
            self.try_up(id);
        }
    }

    fn put_down(&mut self, id: u64, packet: Down) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.down.queue.push_back(packet);
        if !conn.down.waiting {
            self.try_down(id);
        }
    }

    /// Whether a packet gets through now.
    fn passes(&mut self, id: u64, up: bool) -> bool {
        let Some(conn) = self.conns.get(&id) else { return false };
        let (at, epoch) = (conn.net, conn.epoch);
        let dns = conn.up.queue.front() == Some(&Up::Dns) || conn.down.queue.front() == Some(&Down::Name);
        let net = &self.nets[at];
        let (now, bad) = (self.now, net.path.worst() >= 100);
        let open = match net.path.mode {
            Mode::Up => true,
            Mode::Silent => false,
            Mode::DownLost => up,
            Mode::UpLost => !up,
            Mode::Refused | Mode::Portal => up,
            Mode::NoNames => !dns,
        };
        let loss = net.path.loss[usize::from(!up)];
        let host = self.broker.host || dns;
        let passes = net.usable() && net.epoch == epoch && open && host;
        if bad || !passes {
            self.nets[at].path.lossy_at = now;
        }
        passes && !self.dice.chance(loss)
    }

    fn one_way(&mut self, id: u64) -> u64 {
        let Some(conn) = self.conns.get(&id) else { return 0 };
        let path = &self.nets[conn.net].path;
        let (rtt, jitter) = (path.rtt, path.jitter);
        rtt / 2 + self.dice.between(0, jitter / 2)
    }

    /// The retransmission timeout of a connection: 200 ms beyond the round trip, and more where loss makes the samples
    /// vary (measured: half the first retries come after 300 ms at 20 % loss).
    fn timeout(&mut self, id: u64, up: bool, first: bool) -> u64 {
        if first {
            return 1000;
        }
        let (rtt, loss) = self.conns.get(&id).map_or((100, 0), |c| {
            let path = &self.nets[c.net].path;
            (path.rtt, path.worst())
        });
        RTO_MIN + rtt + if up { 0 } else { DELAYED_ACK } + self.dice.between(0, loss * (100 + rtt) / 100)
    }

    fn try_up(&mut self, id: u64) {
        while let Some(first) = self.conns.get(&id).and_then(|c| c.up.queue.front().cloned()) {
            let passes = self.passes(id, true);
            let delay = self.one_way(id);
            let base = self.timeout(id, true, matches!(first, Up::Syn | Up::Dns));
            let probe = self.dice.chance(TAIL_PROBES);
            let now = self.now;
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let lane = &mut conn.up;
            lane.counts();
            if passes {
                lane.tries = 0;
                lane.arrives = lane.arrives.max(now + delay);
                let at = lane.arrives;
                let packets: Vec<Up> = lane.queue.drain(..lane.queue.len().min(SEGMENT)).collect();
                packets.into_iter().for_each(|packet| self.at(at, What::ArriveUp(id, packet)));
            } else if first == Up::Reset {
                // A reset is sent once.
                lane.queue.clear();
                return self.forget(id);
            } else {
                let delay = lane.fails(base, probe);
                return self.after(delay, What::Retry(id, true));
            }
        }
    }

    /// The cloud's kernel acknowledges what has arrived, again after our kernel has sent again what it did not hear of.
    pub fn kernel_acks(&mut self, id: u64, arrived: u64, tries: u32) {
        if self.passes(id, false) {
            let delay = self.one_way(id);
            self.after(delay, What::KernelAcked(id, arrived));
        } else if tries < 8 {
            self.after(RTO_MIN << tries, What::KernelAcks(id, arrived, tries + 1));
        }
    }

    pub fn kernel_acked(&mut self, id: u64, arrived: u64) {
        let now = self.now;
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.acked = conn.acked.max(arrived);
            conn.acked_at = now;
        }
    }

    fn try_down(&mut self, id: u64) {
        while let Some(first) = self.conns.get(&id).and_then(|c| c.down.queue.front().cloned()) {
            let passes = self.passes(id, false);
            let delay = self.one_way(id);
            let base = self.timeout(id, false, matches!(first, Down::SynAck | Down::Name));
            let probe = self.dice.chance(TAIL_PROBES);
            let resent = self.dice.chance(700);
            let now = self.now;
            let Some(conn) = self.conns.get_mut(&id) else { return };
            let lane = &mut conn.down;
            if passes {
                lane.tries = 0;
                lane.arrives = lane.arrives.max(now + delay);
                let at = lane.arrives;
                let packets: Vec<Down> = lane.queue.drain(..lane.queue.len().min(SEGMENT)).collect();
                packets.into_iter().for_each(|packet| self.at(at, What::ArriveDown(id, packet)));
            } else {
                let delay = lane.fails(base, probe);
                // With it an acknowledgement was lost: most of the time our kernel sends again what had arrived.
                conn.up.sent += u32::from(resent);
                conn.up.again += u32::from(resent);
                return self.after(delay, What::Retry(id, false));
            }
        }
    }

    pub fn retry(&mut self, id: u64, up: bool) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let lane_waits = if up { conn.up.waiting } else { conn.down.waiting };
        if !lane_waits {
            return;
        }
        if up {
            conn.up.waiting = false;
            self.try_up(id);
        } else {
            conn.down.waiting = false;
            self.try_down(id);
        }
    }

    /// Something reached the cloud, or the name server, or whoever answers in their place.
    pub fn arrive_up(&mut self, id: u64, packet: Up) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        conn.last_up = self.now;
        let net = conn.net;
        let remote = conn.remote;
        match (self.nets[net].path.mode, &packet) {
            (_, Up::Dns) => return self.put_down(id, Down::Name),
            (Mode::Refused, Up::Syn) => {
                self.oracle.firewalled = Some(self.now);
                return self.end_locally(id, Reason::Refused, true);
            }
            (Mode::Refused | Mode::Portal, _) if remote && self.conns[&id].phase >= Phase::Connecting => {
                return self.end_locally(id, Reason::Reset, true);
            }
            (Mode::Portal, Up::Syn) => {
                let reason = *self.dice.pick(&[Reason::CaptivePortal, Reason::Tls]);
                return self.end_locally(id, reason, false);
            }
            (Mode::Refused | Mode::Portal, _) => return,
            _ => {}
        }
        if !self.broker.host {
            return;
        }
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.arrived += 1;
            let arrived = conn.arrived;
            self.kernel_acks(id, arrived, 0);
        }
        match packet {
            Up::Syn if !self.broker.up => self.put_down(id, Down::End(Reason::Refused)),
            // The kernel answers for a frozen process.
            Up::Syn => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.remote = true;
                }
                self.put_down(id, Down::SynAck);
            }
            Up::Bye | Up::Reset => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.remote = false;
                }
                if self.broker.current == Some(id) {
                    self.broker.current = None;
                }
                // What was read before the connection ended still counts in a frozen broker's queue.
                self.forget(id);
            }
            _ if !remote => {
                let reason = if self.conns[&id].phase == Phase::Open { Reason::Reset } else { Reason::Refused };
                self.put_down(id, Down::End(reason));
            }
            packet if self.broker.frozen => self.broker.backlog.push((id, packet)),
            packet => self.serve(id, packet),
        }
    }

    /// The cloud's process reads one packet.
    fn serve(&mut self, id: u64, packet: Up) {
        match packet {
            Up::Dns | Up::Syn | Up::Bye | Up::Reset => {}
            Up::Hello => {
                self.put_down(id, Down::HelloDone);
                self.after(self.broker.patience, What::Broker(Change::Impatient(id)));
            }
            Up::Connect(version, keep_alive) => self.serve_connect(id, version, keep_alive),
            Up::Subscribe => self.put_down(id, Down::Subscribed),
            Up::Ping => self.put_down(id, Down::Pong),
            Up::Release(seq) => {
                if let Some(conn) = self.conns.get_mut(&id)
                    && conn.owing.remove(&seq)
                {
                    self.put_down(id, Down::Completed(seq));
                }
            }
            Up::Publish(_) if !self.broker.introduced.contains(&id) => {
                self.broken("a message before CONNECT");
            }
            Up::Publish(seq) => {
                *self.broker.received.entry(seq).or_insert(0) += 1;
                self.oracle.mail.arrived(seq);
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.owing.insert(seq);
                    if conn.owing.len() > usize::from(conn.window) {
                        self.broken("more in flight than the server's Receive Maximum");
                    }
                }
                if self.broker.slow > 0 {
                    let delay = self.dice.between(0, self.broker.slow);
                    self.after(delay, What::Ack(id, seq));
                } else {
                    self.ack(id, seq);
                }
            }
        }
    }

    pub fn ack(&mut self, id: u64, seq: u64) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !conn.remote || !conn.owing.remove(&seq) || !self.broker.up {
            return;
        }
        let rejected = self.broker.rejects > 0 && self.dice.chance(self.broker.rejects);
        let exact = self.bodies.get(&seq).is_some_and(|body| body.exact);
        if exact && !rejected {
            // Its place is taken until the fourth step.
            self.conns.get_mut(&id).into_iter().for_each(|conn| _ = conn.owing.insert(seq));
            return self.put_down(id, Down::Received(seq));
        }
        self.put_down(id, if rejected { Down::Rejected(seq) } else { Down::Acked(seq) });
    }

    fn serve_connect(&mut self, id: u64, version: Version, keep_alive: u64) {
        if self.broker.only_v311 && version == Version::V5 {
            let reason = if self.broker.curt { Reason::ServerShutDown } else { Reason::Version };
            return self.remote_ends(id, reason);
        }
        if let Some(reason) = self.broker.refuse {
            return self.remote_ends(id, reason);
        }
        if let Some(older) = self.broker.current.replace(id)
            && older != id
            && let Some(conn) = self.conns.get(&older)
        {
            // 3.1.1 has no word for it.
            let reason = if conn.version == Version::V5 { Reason::SessionTakenOver } else { Reason::ServerShutDown };
            self.remote_ends(older, reason);
            self.broker.current = Some(id);
        }
        let present = self.broker.session && self.broker.keeps_sessions;
        self.broker.session = true;
        let window = if version == Version::V5 { self.broker.window } else { 65535 };
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.keep_alive = keep_alive;
            conn.window = window;
        }
        self.broker.introduced.insert(id);
        self.summary.sessions += 1;
        self.put_down(id, Down::Welcome { present, window });
    }

    /// The cloud ends a connection.
    fn remote_ends(&mut self, id: u64, reason: Reason) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.remote
        {
            conn.remote = false;
            conn.owing.clear();
            if self.broker.current == Some(id) {
                self.broker.current = None;
            }
            self.put_down(id, Down::End(reason));
        }
    }

    /// Something reached the adapter.
    pub fn arrive_down(&mut self, id: u64, packet: Down) {
        let now = self.now;
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.acked_at = now;
        }
        let attempt = Attempt(id);
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if !conn.local {
            return self.forget(id);
        }
        let net = conn.net;
        let same = self.nets[net].usable() && self.nets[net].epoch == conn.epoch;
        if !same {
            return;
        }
        self.broke_silence(id, &packet);
        match packet {
            Down::Name => {
                self.tell(Source::Cloud, 0, Event::DialProgressed { attempt, step: Step::Connecting });
                self.send(id, Up::Syn);
            }
            Down::SynAck => {
                self.tell(Source::Cloud, 0, Event::DialProgressed { attempt, step: Step::Handshake });
                self.send(id, Up::Hello);
            }
            Down::HelloDone => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.phase = Phase::Dialled;
                }
                let measure = self.measured(id);
                self.tell(Source::Cloud, 0, Event::Dialled { attempt, measure });
            }
            Down::Welcome { present, window } => {
                if let Some(conn) = self.conns.get_mut(&id) {
                    conn.phase = Phase::Open;
                    let keep_alive = Duration::from_millis(conn.keep_alive);
                    self.tell(Source::Cloud, 0, Event::Connected { attempt, present, window, keep_alive });
                }
                self.send(id, Up::Subscribe);
            }
            Down::Subscribed => {
                self.tell(Source::Cloud, 0, Event::Heard { attempt });
                self.tell(Source::Cloud, 0, Event::Settled { attempt });
            }
            Down::Acked(seq) => {
                self.tell(Source::Cloud, 0, Event::Acked { attempt, seq: Seq(seq) });
                self.tell(Source::Cloud, 0, Event::Heard { attempt });
            }
            Down::Received(seq) => {
                self.tell(Source::Cloud, 0, Event::Heard { attempt });
                self.send(id, Up::Release(seq));
            }
            Down::Completed(seq) => {
                self.tell(Source::Cloud, 0, Event::Completed { attempt, seq: Seq(seq) });
                self.tell(Source::Cloud, 0, Event::Heard { attempt });
            }
            Down::Rejected(seq) => self.tell(Source::Cloud, 0, Event::Rejected { attempt, seq: Seq(seq) }),
            Down::Pong => self.tell(Source::Cloud, 0, Event::Ponged { attempt }),
            Down::Command => self.tell(Source::Cloud, 0, Event::Heard { attempt }),
            Down::End(reason) => self.end_locally(id, reason, true),
        }
    }

    /// The adapter's end of a connection ends, and says so.
    fn end_locally(&mut self, id: u64, reason: Reason, heard: bool) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (local, phase) = (conn.local, conn.phase);
        self.conn_ends(id);
        if !local {
            return;
        }
        let attempt = Attempt(id);
        let event = match phase {
            Phase::Dialling => Event::DialFailed { attempt, reason, heard },
            Phase::Dialled | Phase::Connecting | Phase::Open => Event::Closed { attempt, reason, heard },
        };
        self.tell(Source::Cloud, 0, event);
    }

    fn conn_ends(&mut self, id: u64) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.local = false;
            conn.up.queue.clear();
            conn.up.waiting = false;
        }
        self.forget(id);
    }

    fn forget(&mut self, id: u64) {
        if self.conns.get(&id).is_some_and(|c| !c.local && !c.remote) {
            self.conns.remove(&id);
        }
    }

    /// Every ten seconds: what kernels and brokers do by their own clocks.
    pub fn sweep(&mut self) {
        self.after(10_000, What::Sweep);
        let now = self.now;
        let ids: Vec<u64> = self.conns.keys().copied().collect();
        for id in ids {
            let Some(conn) = self.conns.get(&id) else { continue };
            let class = self.nets[conn.net].class;
            let user_timeout = if class == Class::Cell { 320_000 } else { 106_000 };
            let stuck = conn.up.waiting && now > conn.up.stuck_since + user_timeout;
            let silent = now > conn.last_up + conn.keep_alive * 3 / 2 + 5_000;
            if conn.local && stuck {
                self.end_locally(id, Reason::Reset, false);
            } else if !conn.local && (stuck || now > conn.born + 7_200_000) {
                self.conns.remove(&id);
                if self.broker.current == Some(id) {
                    self.broker.current = None;
                }
            } else if conn.remote && conn.phase == Phase::Open && silent && self.broker.up && !self.broker.frozen {
                self.remote_ends(id, Reason::ServerShutDown);
            }
        }
        if self.dice.chance(30)
            && let Some(id) = self.broker.current
            && self.broker.up
            && !self.broker.frozen
        {
            self.put_down(id, Down::Command);
        }
    }

    pub fn broker_dies(&mut self) {
        self.broker.up = false;
        self.broker.frozen = false;
        self.broker.backlog.clear();
        self.broker.current = None;
        if !self.broker.keeps_sessions {
            self.broker.session = false;
        }
        self.broker_ends_all();
    }

    fn broker_ends_all(&mut self) {
        let ids: Vec<u64> = self.conns.iter().filter(|(_, c)| c.remote).map(|(id, _)| *id).collect();
        for id in ids {
            let reason = *self.dice.pick(&[Reason::ServerShutDown, Reason::ServerShutDown, Reason::Reset]);
            self.remote_ends(id, reason);
            self.forget(id);
        }
    }

    pub fn broker(&mut self, change: Change) {
        match change {
            Change::Restart => self.broker.up = true,
            Change::Thaw => self.thaw(),
            Change::HostBack => self.broker.host = true,
            Change::Impatient(id) => {
                let awake = self.broker.up && !self.broker.frozen;
                if awake && !self.broker.introduced.contains(&id) {
                    self.remote_ends(id, Reason::ServerShutDown);
                }
                return;
            }
            Change::Thief => {
                if let Some(id) = self.broker.current
                    && self.broker.up
                    && !self.broker.frozen
                {
                    let v5 = self.conns.get(&id).is_some_and(|c| c.version == Version::V5);
                    self.remote_ends(id, if v5 { Reason::SessionTakenOver } else { Reason::ServerShutDown });
                }
            }
        }
        if self.broker.well() {
            // One that refuses without a word needs another round to be understood.
            let puzzle = if self.broker.curt { 140_000 } else { 0 };
            self.broker.healthy_since = self.now + puzzle;
        }
    }

    fn thaw(&mut self) {
        self.broker.frozen = false;
        for (id, packet) in std::mem::take(&mut self.broker.backlog) {
            if self.conns.get(&id).is_some_and(|c| c.remote) {
                self.serve(id, packet);
            } else if let Up::Publish(seq) = packet
                && self.broker.introduced.contains(&id)
            {
                // Read from a socket that is closed by now: the cloud has it all the same.
                *self.broker.received.entry(seq).or_insert(0) += 1;
                self.oracle.mail.arrived(seq);
            }
        }
    }

    pub fn calm_cloud(&mut self) {
        self.broker.refuse = None;
        self.broker.slow = 0;
        self.broker.host = true;
        self.broker.up = true;
        if self.broker.frozen {
            self.thaw();
        }
        self.broker.healthy_since = self.now;
    }
}
