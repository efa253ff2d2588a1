//! What must be true after every step, whatever the world does (section 8 of the design).
//!
//! The oracle keeps its own small account of what the heart was told and what it asked for, and ends the run at
//! the first thing that may not be. It never reads the heart's inside, only what `status` shows.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use switchback_control::Switch;
use switchback_control::action::CONNECTIVITY_ACTIONS_MAX;
use switchback_control::{
    Action, Blame, Command, Event, Failback, Mode, Name, Notice, Order, Outcome, Reason, Saved, Settings, Stage,
    Standby, Step, event::INHIBIT_MAX, status::State,
};

use super::messages::Mail;
use super::plan::{Plan, Profile};
use super::{World, stamp};

/// What the heart was told of a dial, and what it did with it.
#[derive(Clone, Debug)]
pub struct Dialled {
    pub interface: Name,
    born: u64,
    proved: bool,
    /// Nothing has come back from the server yet.
    silent: bool,
    pub said_connect: bool,
    pub window: usize,
    /// What went out on it, even before it was a session.
    pub sent: BTreeSet<u64>,
}

/// What the heart was told of an interface.
#[derive(Clone, Debug, Default)]
struct Told {
    /// The last moment it was told something that makes it unfit.
    unfit_at: u64,
    /// The last failure of a dial or a session through it.
    failed_at: u64,
    by_user: bool,
    asked_by_us: bool,
    link: Option<bool>,
    address: Option<bool>,
    /// The two latest proofs.
    proofs: [u64; 2],
    /// Dials of the last minute beside a session, where a connection is to wait.
    warm_dials: VecDeque<u64>,
}

/// The session has come to another interface, and no record of it was written yet.
#[derive(Clone, Copy, Debug)]
struct Turn {
    from: Name,
    to: Name,
    reached: u64,
    leave: Leave,
}

/// How a session ended: when, when it had last answered, and since when the oldest message in flight waited.
#[derive(Clone, Copy, Debug, Default)]
struct Leave {
    at: u64,
    last_inbound: u64,
    held_up: Option<u64>,
    /// It ended before the next one opened: not a planned move of MQTT 5.
    broken: bool,
}

#[derive(Debug)]
pub struct Oracle {
    pub settings: Settings,
    pub live: BTreeMap<u64, Dialled>,
    pub session: Option<u64>,
    session_since: u64,
    session_lost: Option<u64>,
    last_inbound: u64,
    last_number: u64,
    pub mail: Mail,
    /// What servers have said in this life of the daemon: nothing goes out before CONNACK to one that never answered.
    pub known_windows: BTreeSet<usize>,
    told: BTreeMap<Name, Told>,
    /// By the device's name, which interface the kernel means.
    kernel: BTreeMap<Name, Name>,
    lost_told: bool,
    outage_told: bool,
    dials: VecDeque<u64>,
    spare_metered: VecDeque<u64>,
    deadlines: VecDeque<u64>,
    stalled: (u64, u64),
    held: bool,
    via: Option<u64>,
    commanded: u64,
    false_moves: u32,
    last_blame: Option<Blame>,
    started: u64,
    ended: u64,
    /// When a firewall last refused a dial in the server's name.
    pub firewalled: Option<u64>,
    slow_until: u64,
    /// While the server refuses over paths that are well: since when, and dials over others than the best.
    refused_since: Option<u64>,
    refused_others: u64,
    refused_dials: u64,
    /// The connection that carried the session last, and over which interface.
    carrier: Option<(Option<u64>, usize)>,
    /// The interface that carried the session last, if nobody has ended that on purpose, and the switch away from it.
    last_carrier: Option<Name>,
    switch: Option<Turn>,
    leaving: Leave,
    /// What operators have said about the way back, and until when it holds.
    ordered: Option<(Failback, u64)>,
    inhibited: u64,
    /// On a path that only loses packets.
    pub false_moves_allowed: u32,
}

/// Dials in any ten seconds, at most: five a second, every other one in both protocol versions, and a new start.
const DIALS_IN_TEN_SECONDS: usize = 80;
/// Rescues through metered interfaces in any hour, at most: the end of one hour's and the next one's, and trials that
/// began in a moment of silence.
const METERED_SPARES_AN_HOUR: usize = 40;
/// Dials in any minute through an interface where a connection is to wait: renewed every five seconds, and rescues.
const WARM_DIALS_A_MINUTE: usize = 30;
/// Deadlines served in any second, at most: more is a heart that spins.
const DEADLINES_A_SECOND: usize = 60;
/// Loss on a path counts as a reason to leave it for so long after it ended: what is known of it is smoothed.
const LOSS_REMEMBERED: u64 = 60_000;
/// The longest wait for a server is shorter, and a dial through a dead interface.
const WAITS_ARE_OVER: u64 = 140_000;
const DIAL_IS_OVER: u64 = 25_000;
/// The longest waits, by cause: a path, a server, or one that does not believe us.
const LONGEST_WAIT: u64 = 129_000;
const LONGEST_SLOW_WAIT: u64 = 3_601_000;
/// A dial or a spare that is neither session nor gone after this long has been forgotten.
const FORGOTTEN: u64 = 75_000;

impl Oracle {
    pub fn new(plan: &Plan) -> Oracle {
        Oracle {
            settings: plan.settings.clone(),
            live: BTreeMap::new(),
            session: None,
            session_since: 0,
            session_lost: None,
            last_inbound: 0,
            last_number: 0,
            mail: Mail::new(&plan.settings),
            known_windows: BTreeSet::new(),
            told: BTreeMap::new(),
            kernel: BTreeMap::new(),
            lost_told: false,
            outage_told: false,
            dials: VecDeque::new(),
            spare_metered: VecDeque::new(),
            deadlines: VecDeque::new(),
            stalled: (0, 0),
            held: false,
            via: None,
            commanded: 0,
            false_moves: 0,
            last_blame: None,
            started: 0,
            ended: 0,
            firewalled: None,
            slow_until: 0,
            refused_since: None,
            refused_others: 0,
            refused_dials: 0,
            carrier: None,
            last_carrier: None,
            switch: None,
            leaving: Leave::default(),
            ordered: None,
            inhibited: 0,
            false_moves_allowed: 0,
        }
    }

    /// The daemon starts with this value.
    pub fn started(&mut self, now: u64, saved: &Saved) {
        self.started = now;
        self.last_blame = None;
        self.refused_since = None;
        self.held = saved.held;
    }

    /// Everything in memory is gone; what was promised is not.
    pub fn crashed(&mut self, now: u64) {
        self.live.clear();
        self.known_windows.clear();
        self.last_carrier = None;
        self.switch = None;
        self.ordered = None;
        self.inhibited = 0;
        self.session = None;
        self.session_lost = None;
        self.mail.crashed();
        self.told.clear();
        self.kernel.clear();
        self.lost_told = false;
        self.outage_told = false;
        self.deadlines.clear();
        self.spare_metered.clear();
        self.via = None;
        self.stalled = (now, now);
    }

    pub fn stalled(&mut self, from: u64, until: u64) {
        self.stalled = if from <= self.stalled.1 { (self.stalled.0, until) } else { (from, until) };
    }

    fn told(&mut self, name: Name) -> &mut Told {
        self.told.entry(name).or_default()
    }

    /// The device whose interface the kernel calls so.
    fn device_of(&self, kernel: Name) -> Name {
        self.kernel.iter().find(|(_, k)| **k == kernel).map_or(kernel, |(d, _)| *d)
    }

    pub fn recently_stalled(&self, now: u64, span: u64) -> bool {
        now <= self.stalled.1 + span
    }
}

impl World {
    /// Holds the heart to the invariants after one step.
    pub fn check(&mut self, event: &Event, actions: &[Action]) {
        if let Some(what) = self.judge(event, actions) {
            self.broken(&what);
        }
    }

    fn judge(&mut self, event: &Event, actions: &[Action]) -> Option<String> {
        let now = self.now;
        self.oracle.hear(now, event);
        let bodies = &self.bodies;
        let recovered = |seq: u64| bodies.get(&seq).map_or((0, false), |body| (u64::from(body.size), body.exact));
        self.oracle.mail.hear(now, event, recovered);
        if let Event::Asked(command) = event {
            self.people.heard(now, command);
        }
        let before = self.oracle.session;
        let connectivity = actions.iter().filter(|a| !a.is_message()).count();
        if connectivity > CONNECTIVITY_ACTIONS_MAX {
            return Some(format!("{connectivity} connectivity actions in one step"));
        }
        for action in actions {
            if let Some(what) = self.judge_action(event, action, actions) {
                return Some(format!("{action}: {what}"));
            }
        }
        let control = self.control()?;
        let deadline = control.next_deadline().map(|d| d.as_millis());
        if deadline.is_some_and(|d| d <= now) {
            return Some("the next deadline is not in the future".into());
        }
        if *event == Event::DeadlineReached {
            let deadlines = &mut self.oracle.deadlines;
            deadlines.push_back(now);
            while deadlines.front().is_some_and(|at| at + 1000 < now) {
                deadlines.pop_front();
            }
            if deadlines.len() > DEADLINES_A_SECOND {
                return Some("the heart spins".into());
            }
        }
        if let Some(what) = self.judge_messages(event, actions) {
            return Some(what);
        }
        if connectivity == 0 && crate::story::is_message(event) {
            return None;
        }
        self.judge_connection(before, event, actions, deadline)
    }

    fn judge_connection(
        &mut self,
        before: Option<u64>,
        event: &Event,
        actions: &[Action],
        deadline: Option<u64>,
    ) -> Option<String> {
        let now = self.now;
        let stopped = actions.contains(&Action::Exit);
        let status = self.control()?.status();
        let session = status.session.map(|s| s.attempt.0);
        let resting = matches!(status.state, State::Off | State::Idle);
        if session != self.oracle.session {
            return Some(format!("the session is {session:?}, but {:?} was opened", self.oracle.session));
        }
        let opened = matches!(event, Event::Connected { attempt, .. } if Some(attempt.0) == session);
        let prefers = |a: &Action| matches!(a, Action::Prefer { interface: Some(_) });
        if opened && self.oracle.settings.manage_routes && !actions.iter().any(prefers) {
            return Some("traffic is elsewhere, and routes are not".into());
        }
        if status.connected != (status.session.is_some_and(|s| s.settled))
            || status.uplink.is_some() != session.is_some()
        {
            return Some("status contradicts itself".into());
        }
        if let Some(what) = self.judge_spares(session) {
            return Some(what);
        }
        let o = &self.oracle;
        for (attempt, dialled) in &o.live {
            let most = FORGOTTEN + self.warm_renew(dialled.interface).unwrap_or(0);
            if session != Some(*attempt) && now > dialled.born + most && !o.recently_stalled(now, FORGOTTEN) {
                return Some(format!("#{attempt} was dialled at {} and forgotten", stamp(dialled.born)));
            }
        }
        let wanted = !o.held && o.settings.mode == Mode::Auto && !stopped;
        if wanted && resting {
            return Some(format!("a session is wanted and nothing is planned: {:?}", status.state));
        }
        if !resting && session.is_none() && deadline.is_none() {
            return Some("no session, and no deadline".into());
        }
        if wanted && session.is_none() && self.should_be_online() {
            return Some("a healthy path and a healthy cloud for minutes, and no session".into());
        }
        // A server may take the identity away without a word; then the heart has read it from the pattern.
        let read = status.last_outage.map(|outage| outage.last_reason.blame());
        let slow = [o.last_blame, read].iter().any(|b| matches!(b, Some(Blame::Credentials | Blame::Identity)));
        let longest = if slow { LONGEST_SLOW_WAIT } else { LONGEST_WAIT };
        if session.is_none() && status.next_attempt.is_some_and(|at| at.as_millis() > now + longest) {
            return Some("the next attempt is too far away".into());
        }
        let o = &self.oracle;
        if o.held && o.via.is_none() && session.is_some() && now > o.commanded + 11_000 {
            return Some("connected although told to stay disconnected".into());
        }
        if wanted
            && !o.lost_told
            && o.session_lost.is_some_and(|at| now > at + 1_100 && session.is_none() && !o.recently_stalled(now, 1_100))
        {
            return Some("the session is lost for more than a second and nobody was told".into());
        }
        let grace = o.settings.grace.as_millis() as u64;
        if wanted
            && !o.outage_told
            && o.session_lost.is_some_and(|at| now > at + grace + 1_100)
            && !o.recently_stalled(now, 1_100)
        {
            return Some("the grace is over and nobody was told of the outage".into());
        }
        if resting || stopped {
            self.oracle.lost_told = false;
            self.oracle.outage_told = false;
            self.oracle.session_lost = None;
            self.oracle.last_carrier = None;
            self.oracle.switch = None;
        }
        // The first answer on the new connection, at the latest, is the end of a switch.
        let answered = matches!(event, Event::Acked { attempt, .. } if Some(attempt.0) == session);
        if let Some(turn) = self.oracle.switch.filter(|_| answered && before == session) {
            return Some(format!("no record of the switch from {} to {}", turn.from, turn.to));
        }
        if status.connected {
            self.summary.online_ms += 0;
        }
        if let Profile::Rate(_) = self.plan.profile {
            self.count_switch(session);
            return None;
        }
        self.judge_loss(before, session, event, actions)
    }

    /// Where nothing but loss happens, every switch is counted.
    fn count_switch(&mut self, session: Option<u64>) {
        let Some(conn) = session.and_then(|s| self.conns.get(&s)) else { return };
        let (id, net) = (session, conn.net);
        match self.oracle.carrier {
            Some((_, 0)) if net != 0 => self.summary.left.push(self.now),
            Some((other, 0)) if other != id => self.summary.dropped.push(self.now),
            Some(_) | None => {}
        }
        self.oracle.carrier = Some((id, net));
    }

    /// The age at which a connection that waits there is renewed; none where none is to wait.
    fn warm_renew(&self, device: Name) -> Option<u64> {
        let net = self.nets.iter().find(|n| n.device == device)?;
        let uplink = self.oracle.settings.uplink(net.spoken(), net.class);
        (uplink.standby == Standby::Warm).then_some(uplink.warm_renew.as_millis() as u64)
    }

    /// Beside the session one spare, and one connection that waits on each interface that is to have one.
    fn judge_spares(&self, session: Option<u64>) -> Option<String> {
        let mut seen = BTreeMap::new();
        let mut others = 0;
        for (attempt, dialled) in self.oracle.live.iter().filter(|(a, _)| session != Some(**a)) {
            others += u32::from(self.warm_renew(dialled.interface).is_none());
            // One that waits may have the spare beside it.
            let most = 1 + u32::from(self.warm_renew(dialled.interface).is_some());
            let here = seen.entry(dialled.interface).or_insert(0);
            *here += 1;
            if *here > most {
                return Some(format!("#{attempt} is one spare too many on {}", dialled.interface));
            }
        }
        (others > 1).then(|| format!("more than a session and a spare: {:?}", self.oracle.live.keys()))
    }

    /// The heart waits slowly, and says why: credentials, or somebody else with our identity.
    fn slow(&self) -> bool {
        let said = self.control().and_then(|c| c.status().last_outage).map(|o| o.last_reason.blame());
        [self.oracle.last_blame, said].contains(&Some(Blame::Credentials))
            || [self.oracle.last_blame, said].contains(&Some(Blame::Identity))
    }

    /// Whether there has been a way to the cloud for so long that every wait of the heart is over.
    fn should_be_online(&self) -> bool {
        let now = self.now;
        let o = &self.oracle;
        let ways = self.nets.len() as u64 * u64::from(o.settings.servers);
        // Who refuses in the server's name is believed for a while: other paths are looked at every five minutes only.
        let refused = o.firewalled.is_some_and(|at| now < at + 430_000);
        let over = WAITS_ARE_OVER + ways * DIAL_IS_OVER + if refused { 430_000 } else { 0 };
        let well = |since: u64| since != u64::MAX && now > since + over;
        let way = |net: &super::network::Net| {
            let told = o.told.get(&net.device).cloned().unwrap_or_default();
            net.usable() && well(net.path.healthy_since) && well(told.unfit_at) && !told.by_user
        };
        let slow = self.slow();
        well(self.broker.healthy_since)
            && well(o.started.max(o.ended).max(o.slow_until))
            && well(o.commanded)
            && !slow
            && !o.recently_stalled(now, over)
            && self.nets.iter().any(way)
    }

    /// Whether the heart gave up a session that lived.
    fn judge_loss(
        &mut self,
        before: Option<u64>,
        session: Option<u64>,
        event: &Event,
        actions: &[Action],
    ) -> Option<String> {
        let now = self.now;
        let lost = before.filter(|b| session != Some(*b))?;
        self.summary.moves += 1;
        let by_us = actions.iter().any(|a| matches!(a, Action::HangUp { attempt, .. } if attempt.0 == lost));
        let commanded = matches!(event, Event::Asked(_)) || now <= self.oracle.commanded + 12_000;
        let planned = matches!(event, Event::Connected { .. })
            || self.oracle.live.values().any(|d| d.said_connect)
            || self.oracle.settings.mode != Mode::Auto;
        if !by_us || commanded || planned && session.is_some() {
            return None;
        }
        let conn = self.conns.get(&lost);
        let net = conn.map(|c| c.net);
        let dead = net.is_none_or(|n| !self.nets[n].usable())
            || matches!(event, Event::LinkChanged { up: false, .. } | Event::AddressChanged { present: false, .. })
            || matches!(event, Event::LinkGone { .. } | Event::DeviceGone { .. } | Event::DeviceSeen { .. });
        // A 3.1.1 move says goodbye first; it is planned all the same. So is a farewell, however late.
        let moving = actions.iter().any(|a| {
            matches!(a, Action::HangUp { attempt, goodbye } if attempt.0 == lost && *goodbye != switchback_control::Goodbye::Abort)
        });
        let not_needed = self.oracle.settings.mode != Mode::Auto;
        if dead || moving || not_needed {
            return None;
        }
        // A path that loses too much to be of use may be left although it answers now and then.
        let lossy = net.is_some_and(|n| now < self.nets[n].path.lossy_at + LOSS_REMEMBERED);
        if now < self.oracle.last_inbound + 500 && !lossy {
            return Some(format!("dropped #{lost}, which answered {} ms ago", now - self.oracle.last_inbound));
        }
        if self.plan.profile == Profile::Lossy {
            self.oracle.false_moves += 1;
            if self.oracle.false_moves > self.oracle.false_moves_allowed {
                let hours = now / 3_600_000 + 1;
                return Some(format!("{} moves for nothing in {hours} hours of loss", self.oracle.false_moves));
            }
        }
        let net = net?;
        let path = &self.nets[net].path;
        let calm_since = path.healthy_since.max(self.broker.healthy_since);
        let opened = self.oracle.session_since;
        if calm_since != u64::MAX
            && now > calm_since + 120_000
            && now > opened
            && !self.oracle.recently_stalled(now, 60_000)
        {
            return Some(format!("dropped #{lost} on a path that is well since {}", stamp(calm_since)));
        }
        None
    }

    fn judge_action(&mut self, event: &Event, action: &Action, actions: &[Action]) -> Option<String> {
        let now = self.now;
        match action {
            Action::Activate { interface, attempt } => {
                let told = self.oracle.told(*interface);
                if told.by_user {
                    return Some("an operator took it down".into());
                }
                told.asked_by_us = true;
                self.oracle.number(attempt.0)
            }
            Action::Deactivate { interface } => {
                let told = self.oracle.told(*interface);
                (!std::mem::take(&mut told.asked_by_us)).then(|| "we did not activate it".into())
            }
            Action::Dial { interface, attempt, .. } => self.judge_dial(event, *interface, attempt.0),
            Action::Connect { attempt, .. } => self.judge_connect(attempt.0),
            Action::HangUp { attempt, .. } => {
                if self.oracle.session == Some(attempt.0) {
                    self.oracle.session_ends(now);
                    if matches!(event, Event::Offered { .. }) {
                        self.oracle.leaving.held_up.get_or_insert(now);
                    }
                }
                self.oracle.line_ends(attempt.0);
                let dialled = self.oracle.live.remove(&attempt.0);
                if let Some(dialled) = &dialled
                    && !dialled.proved
                {
                    // Given up before it proved anything: as good as failed, unless it was not needed any more.
                    let silent = dialled.silent;
                    let replaced = self.warm_renew(dialled.interface).is_some();
                    let timed = matches!(event, Event::DeadlineReached) && now >= dialled.born + 4_000;
                    let dead = timed && silent && !replaced;
                    if dead {
                        self.oracle.told(dialled.interface).failed_at = now;
                    }
                }
                dialled.is_none().then(|| "it is dead already".into())
            }
            Action::Record(switch) => self.oracle.judge_record(now, event, switch),
            Action::Prefer { interface } => {
                let serves = |s: u64| self.oracle.live.get(&s).map(|d| d.interface);
                let session = self.oracle.session.and_then(serves);
                (interface.is_some() && *interface != session).then(|| "traffic is not there".into())
            }
            Action::Ping { attempt } | Action::Measure { attempt } | Action::Drain { attempt } => {
                (self.oracle.session != Some(attempt.0)).then(|| "not the session".into())
            }
            Action::Answer { request, outcome } => {
                if self.oracle.via == Some(request.0) {
                    self.oracle.via = None;
                }
                if self.people.must_flush == Some(request.0) && *outcome != Outcome::Done {
                    return Some("the cloud answers, and what was offered does not get through".into());
                }
                if let Some(what) = self.judge_flush(request.0, *outcome == Outcome::Done) {
                    return Some(what);
                }
                match self.people.open.remove(&request.0) {
                    None => Some("answered twice, or never asked".into()),
                    Some((_, by)) if now > by && !self.oracle.recently_stalled(now, 2_000) => {
                        Some(format!("answered {} ms late", now - by))
                    }
                    Some(_) => None,
                }
            }
            Action::Notify(notice) => self.oracle.notice(*notice),
            Action::Save(saved) => {
                self.oracle.held = saved.held;
                None
            }
            Action::Admit { .. }
            | Action::Transmit { .. }
            | Action::Append { .. }
            | Action::Accept { .. }
            | Action::Refuse { .. }
            | Action::Discard { .. }
            | Action::Release { .. }
            | Action::FindExpired { .. }
            | Action::SetAside { .. } => self.judge_message(event, action, actions),
            Action::Exit => None,
        }
    }

    fn judge_dial(&mut self, event: &Event, interface: Name, attempt: u64) -> Option<String> {
        let now = self.now;
        if let Some(what) = self.oracle.number(attempt) {
            return Some(what);
        }
        let o = &mut self.oracle;
        let told = o.told(interface);
        if told.link == Some(false) || told.address == Some(false) {
            return Some("no link or no address there, as was told".into());
        }
        o.live.insert(
            attempt,
            Dialled {
                interface,
                born: now,
                proved: false,
                silent: true,
                said_connect: false,
                window: 0,
                sent: BTreeSet::new(),
            },
        );
        o.dials.push_back(now);
        while o.dials.front().is_some_and(|at| at + 10_000 < now) {
            o.dials.pop_front();
        }
        let servers = usize::from(o.settings.servers);
        if o.dials.len() > DIALS_IN_TEN_SECONDS * servers {
            return Some(format!("{} dials in ten seconds", o.dials.len()));
        }
        if let Some(what) = self.judge_refused(interface) {
            return Some(what);
        }
        let warm = self.warm_renew(interface).is_some() && self.oracle.session.is_some();
        let metered = self.control()?.status().uplinks.iter().any(|u| u.interface == interface && u.metered);
        let o = &mut self.oracle;
        let rescue = now >= o.last_inbound + 300;
        if warm {
            let dials = &mut o.told(interface).warm_dials;
            dials.push_back(now);
            while dials.front().is_some_and(|at| at + 60_000 < now) {
                dials.pop_front();
            }
            if dials.len() > WARM_DIALS_A_MINUTE * servers {
                return Some(format!("{} dials in a minute", dials.len()));
            }
        }
        let o = &mut self.oracle;
        if metered
            && !warm
            && rescue
            && o.settings.hold_down.as_secs() >= 30
            && o.session.is_some()
            && !matches!(event, Event::Asked(_))
        {
            o.spare_metered.push_back(now);
            while o.spare_metered.front().is_some_and(|at| at + 3_600_000 < now) {
                o.spare_metered.pop_front();
            }
            if o.spare_metered.len() > METERED_SPARES_AN_HOUR {
                return Some(format!("{} spares over metered interfaces in an hour", o.spare_metered.len()));
            }
        }
        None
    }

    /// While the server refuses on every path, the walk stays on the best one and backs off (R-IF-10, R-CS-10).
    fn judge_refused(&mut self, interface: Name) -> Option<String> {
        let now = self.now;
        let refusing = (!self.broker.up || self.broker.refuse.is_some()) && self.broker.host && !self.broker.frozen;
        if self.plan.profile != Profile::Cloud || !refusing || self.oracle.session.is_some() {
            self.oracle.refused_since = None;
            return None;
        }
        let status = self.control()?.status();
        let best = status.uplinks.iter().find(|u| u.usable).map(|u| u.interface);
        let o = &mut self.oracle;
        if o.refused_since.is_none() {
            (o.refused_since, o.refused_others, o.refused_dials) = (Some(now), 0, 0);
        }
        let elapsed = (now - o.refused_since?) / 1000;
        let servers = u64::from(o.settings.servers);
        o.refused_dials += 1;
        o.refused_others += u64::from(best != Some(interface));
        let others = status.uplinks.len() as u64 * 3 * servers * (1 + elapsed / 250);
        if o.refused_others > others {
            return Some(format!("{} dials away from the best while the server refuses", o.refused_others));
        }
        // The quick phase, then ever longer waits.
        let dials = others + 2 * servers * (60 + elapsed / 20);
        (o.refused_dials > dials).then(|| format!("{} dials in {elapsed} s to a server that refuses", o.refused_dials))
    }

    fn judge_connect(&mut self, attempt: u64) -> Option<String> {
        let now = self.now;
        let o = &mut self.oracle;
        let Some(dialled) = o.live.get_mut(&attempt) else { return Some("it is dead already".into()) };
        if !dialled.proved {
            return Some("its path has not proved itself".into());
        }
        if std::mem::replace(&mut dialled.said_connect, true) {
            return Some("said twice".into());
        }
        let interface = dialled.interface;
        let session = o.session?;
        // A planned move: not a rescue, not an operator's wish.
        let rescue = now >= o.last_inbound + 500;
        if o.via.is_some() || rescue || now < o.commanded + 12_000 {
            return None;
        }
        let told = o.told(interface).clone();
        let hold = o.settings.hold_down.as_millis() as u64;
        if o.failback(now) != Failback::Auto {
            return Some("moves back although told not to".into());
        }
        if now < o.inhibited {
            return Some(format!("moves although inhibited until {}", stamp(o.inhibited)));
        }
        if now < told.unfit_at + hold || now < told.failed_at + hold {
            return Some(format!("moves from #{session} before the hold-down is over"));
        }
        if told.proofs[0] + 40_000 < now && !o.recently_stalled(now, 30_000) {
            return Some("moves after one proof only".into());
        }
        None
    }
}

impl Oracle {
    /// Whether traffic may return by itself, as an operator or the configuration last said.
    fn failback(&self, now: u64) -> Failback {
        self.ordered.filter(|(_, until)| now < *until).map_or(self.settings.failback, |(failback, _)| failback)
    }

    fn number(&mut self, attempt: u64) -> Option<String> {
        if attempt <= self.last_number {
            return Some("the attempt's number was used before".into());
        }
        self.last_number = attempt;
        None
    }

    /// One record for each switch, and its numbers are those that were seen from outside.
    fn judge_record(&mut self, now: u64, event: &Event, record: &Switch) -> Option<String> {
        let Some(Turn { from, to, reached, leave }) = self.switch.take() else {
            return Some("no switch to record, or recorded twice".into());
        };
        let ms = |d: Duration| d.as_millis() as u64;
        let at = record.at.as_millis();
        if (record.from, record.to) != (from, to) {
            return Some(format!("it was from {from} to {to}"));
        }
        if at + ms(record.switch) != reached {
            return Some(format!("it was reached at {}", stamp(reached)));
        }
        if at > leave.at && leave.broken {
            return Some(format!("the session ended at {}", stamp(leave.at)));
        }
        let owed = match (leave.broken, record.why) {
            (false, _) => 0,
            // Answers still come, later and later.
            (true, Reason::Loss) => leave.held_up.map_or(0, |since| at.saturating_sub(since)),
            (true, _) => at.saturating_sub(leave.last_inbound),
        };
        if ms(record.detection) > owed + 1 {
            return Some(format!("nothing was owed for longer than {owed} ms"));
        }
        let answered = matches!(event, Event::Acked { .. });
        let truth = leave.held_up.filter(|_| answered && leave.broken).map(|since| now - since);
        let pause = record.pause.map(ms);
        let unplanned = leave.broken && at == leave.at && record.why != Reason::InterfaceChange;
        (unplanned && !self.recently_stalled(now, 60_000) && pause != truth)
            .then(|| format!("the pause was {truth:?} ms"))
    }

    fn notice(&mut self, notice: Notice) -> Option<String> {
        match notice {
            Notice::Lost { .. } if std::mem::replace(&mut self.lost_told, true) => Some("told twice".into()),
            Notice::Lost { .. } => None,
            Notice::Outage { .. } if !self.lost_told => Some("an outage without a loss".into()),
            Notice::Outage { .. } if std::mem::replace(&mut self.outage_told, true) => Some("told twice".into()),
            Notice::Outage { .. } => None,
            Notice::Restored if !self.lost_told => Some("restored what was not lost".into()),
            Notice::Restored => {
                self.lost_told = false;
                self.outage_told = false;
                self.session.is_none().then(|| "restored without a session".into())
            }
        }
    }

    fn session_ends(&mut self, now: u64) {
        let (last_inbound, mine) = (self.last_inbound, self.session.take() == Some(self.mail.line));
        let held_up = self.mail.in_flight.values().min().copied().filter(|_| mine);
        self.leaving = Leave { at: now, last_inbound, held_up, broken: true };
        if mine {
            self.mail.ground();
        }
        self.ended = now;
        self.session_lost.get_or_insert(now);
    }

    /// What went out there waits again, even behind a CONNECT that was never answered.
    fn line_ends(&mut self, attempt: u64) {
        if self.mail.line == attempt && self.session != Some(attempt) {
            self.mail.ground();
        }
    }

    /// Takes down what the heart is told.
    fn hear(&mut self, now: u64, event: &Event) {
        match event {
            Event::LinkChanged { interface, up } => {
                let name = self.device_of(*interface);
                let told = self.told(name);
                told.link = Some(*up);
                if !*up {
                    told.unfit_at = now;
                }
            }
            Event::AddressChanged { interface, present } => {
                let name = self.device_of(*interface);
                let told = self.told(name);
                told.address = Some(*present);
                if !*present {
                    told.unfit_at = now;
                }
            }
            Event::LinkGone { interface } => {
                let name = self.device_of(*interface);
                let told = self.told(name);
                told.link = Some(false);
                told.unfit_at = now;
            }
            Event::DeviceGone { interface } => {
                let told = self.told(*interface);
                *told = Told { unfit_at: now, ..Told::default() };
                self.kernel.remove(interface);
            }
            Event::DeviceSeen { interface, device } => {
                if let Some(kernel) = device.ip_interface {
                    self.kernel.insert(*interface, kernel);
                    // What the kernel had said under its own name is meant for this device.
                    if let Some(k) = self.told.remove(&kernel) {
                        let told = self.told(*interface);
                        told.link = k.link;
                        told.address = k.address;
                        told.unfit_at = told.unfit_at.max(k.unfit_at);
                    }
                }
                let told = self.told(*interface);
                told.by_user = matches!(device.stage, Stage::Disconnected { by_user: true, .. });
                if told.by_user {
                    told.asked_by_us = false;
                }
                match device.stage {
                    Stage::Unmanaged | Stage::Activated | Stage::Activating(_) => {}
                    // The kernel's word weighs more.
                    Stage::Unavailable(_) | Stage::Disconnected { by_user: false, .. } | Stage::Failed(_)
                        if told.link == Some(true) && told.address == Some(true) => {}
                    Stage::Unavailable(_) | Stage::Disconnected { .. } | Stage::Failed(_) => told.unfit_at = now,
                }
            }
            Event::DialProgressed { attempt, step } => {
                if let Some(dialled) = self.live.get_mut(&attempt.0) {
                    dialled.silent = *step != Step::Handshake;
                }
            }
            Event::Dialled { attempt, .. } => {
                if let Some(dialled) = self.live.get_mut(&attempt.0) {
                    dialled.proved = true;
                    let name = dialled.interface;
                    let told = self.told(name);
                    told.proofs = [told.proofs[1], now];
                }
            }
            Event::DialFailed { attempt, reason, heard } | Event::Closed { attempt, reason, heard } => {
                if matches!(self.last_blame, Some(Blame::Credentials | Blame::Identity)) {
                    self.slow_until = now;
                }
                self.last_blame = Some(reason.blame());
                self.line_ends(attempt.0);
                if let Some(dialled) = self.live.remove(&attempt.0) {
                    // A far end that resets what had proved itself has spoken through this interface.
                    if reason.blame() == Blame::Path && !(*heard && dialled.proved) {
                        self.told(dialled.interface).failed_at = now;
                    }
                    if self.session == Some(attempt.0) {
                        self.session_ends(now);
                    }
                }
            }
            Event::Connected { attempt, window, .. } => {
                if let Some(dialled) = self.live.get_mut(&attempt.0)
                    && dialled.said_connect
                {
                    dialled.window = usize::from((*window).min(self.settings.window).max(1));
                    self.known_windows.insert(dialled.window);
                    let to = dialled.interface;
                    let leave = if self.session.is_none() { self.leaving } else { Leave::default() };
                    self.switch = self.last_carrier.replace(to).filter(|from| *from != to).map(|from| Turn {
                        from,
                        to,
                        reached: now,
                        leave,
                    });
                    if self.session.is_none() {
                        self.session_lost = None;
                    }
                    self.session = Some(attempt.0);
                    self.session_since = now;
                    self.last_inbound = now;
                    self.session_lost = None;
                    if self.mail.line != attempt.0 {
                        self.mail.ground();
                        self.mail.line = attempt.0;
                    }
                }
            }
            Event::Heard { attempt } | Event::Ponged { attempt } | Event::Settled { attempt } => {
                if self.session == Some(attempt.0) {
                    self.last_inbound = now;
                }
            }
            Event::Acked { attempt, .. } | Event::Completed { attempt, .. } | Event::Rejected { attempt, .. } => {
                if self.session == Some(attempt.0) {
                    self.last_inbound = now;
                }
            }
            Event::Offered { .. } => {
                if self.session.is_none() {
                    self.leaving.held_up.get_or_insert(now);
                }
            }
            Event::Asked(command) => self.hear_command(now, command),
            Event::ClockSet
            | Event::NetworkManagerChanged { .. }
            | Event::ActivationRefused { .. }
            | Event::AccessPointLost { .. }
            | Event::Measured { .. }
            | Event::Drained { .. }
            | Event::Stored { .. }
            | Event::StorageFailed { .. }
            | Event::StorageHealed
            | Event::Expired { .. }
            | Event::LaneFull { .. }
            | Event::LaneRoomy { .. }
            | Event::Recovered { .. }
            | Event::DeadlineReached => {}
        }
    }

    fn hear_command(&mut self, now: u64, command: &Command) {
        match command {
            Command::Failback { order: Order::From(failback, limit), .. } => {
                self.ordered = Some((*failback, now + limit.as_millis() as u64));
                return;
            }
            Command::Inhibit { limit, .. } => {
                self.inhibited = now + (*limit).min(INHIBIT_MAX).as_millis() as u64;
                return;
            }
            Command::Connect { via: Some(_), request, .. } | Command::Failback { order: Order::Now, request } => {
                self.via = Some(request.0);
            }
            Command::Connect { via: None, .. } | Command::Reconnect { .. } => self.held = false,
            Command::Disconnect { .. } => self.held = true,
            Command::Flush { .. } | Command::Drop { .. } | Command::SetList { .. } | Command::Stop => {}
        }
        self.commanded = now;
    }
}
