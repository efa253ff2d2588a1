//! What the oracle knows of messages: its own account of every one, by lane, and the rules of lanes.
//!
//! Every admitted message ends exactly once: acknowledged or rejected by the cloud, or given up by the stated rule of its
//! lane, and then counted. It is long, because every rule of the outbox stands here once more, in other words than in the heart.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use switchback_control::status::LaneStatus;
use switchback_control::{
    Action, Carriers, Class, Command, Event, Lane, LaneRules, Name, Overflow, Parcel, Refusal, Selector, Seq, Settings,
};

use super::plan::Profile;
use super::{World, stamp};

/// What an application waits for at most while the store works, and while nobody can keep its message.
const LATE: u64 = 1_200;
const IN_VAIN: u64 = 31_200;
/// The bounds of what may wait for "kept", of which lanes below the highest get seven parts of eight.
const UNKEPT_MAX: usize = 8192;
const UNKEPT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// One of so many messages may be of a lower lane while a higher one waits.
const SHARE: u64 = 16;
/// So many others may go before a message of a lane that could go as well.
const PATIENCE: u64 = 20 * SHARE;
/// And so many of no higher rank: there are at most four.
const PEERS: u64 = 16;

#[derive(Clone, Copy, Debug)]
struct Msg {
    size: u64,
    exact: bool,
    /// Found by the store at a start, or later: sent before, perhaps.
    restored: bool,
    at: u64,
    sent: bool,
    flying: bool,
    appended: bool,
    stored: bool,
    /// Acknowledged or given up: only its release is missing.
    over: bool,
}

#[derive(Debug, Default)]
struct Account {
    /// Numbers given out.
    admitted: u64,
    /// One less than the lowest that is not released; less than nothing before the first release.
    released: i128,
    line_last: u64,
    appended_last: u64,
    /// The store said so, and how far its oldest part goes.
    full: Option<u64>,
    waiting: BTreeSet<u64>,
    flying: u64,
    bytes: u64,
    /// Whose applications wait, oldest first; those answered are skipped.
    open: VecDeque<u64>,
    unkept: usize,
    unkept_bytes: u64,
    refused: u64,
    rejected: u64,
    dropped: u64,
    expired: u64,
    /// Others sent while this one could have been.
    passed: u64,
    /// Of these, of no higher rank.
    passed_by_peers: u64,
}

#[derive(Clone, Copy, Debug)]
struct Ticket {
    parcel: Parcel,
    seq: Option<Seq>,
}

#[derive(Debug)]
pub struct Mail {
    rules: Vec<LaneRules>,
    highest: u8,
    messages: BTreeMap<u64, Msg>,
    lanes: Vec<Account>,
    tickets: BTreeMap<u64, Ticket>,
    by_seq: BTreeMap<u64, u64>,
    /// And when each was sent.
    pub in_flight: BTreeMap<u64, u64>,
    pub line: u64,
    store_works: bool,
    /// Messages sent since one of a lower lane was last preferred.
    since_lower: u64,
    /// Accepted, and not yet at the cloud.
    owed: BTreeSet<u64>,
    /// Refused on this list because nobody could keep them: their end stands behind it.
    vain: BTreeSet<u64>,
    /// What operators wait for: where each lane stood.
    flushes: BTreeMap<u64, Vec<u64>>,
    /// Interfaces as last told: class and NetworkManager's word about cost.
    devices: BTreeMap<Name, (Class, Option<bool>, Option<Name>)>,
    steps: u64,
}

impl Mail {
    pub fn new(settings: &Settings) -> Mail {
        Mail {
            highest: settings.lanes.iter().map(|rules| rules.priority).max().unwrap_or(0),
            lanes: settings.lanes.iter().map(|_| Account::default()).collect(),
            rules: settings.lanes.clone(),
            messages: BTreeMap::new(),
            tickets: BTreeMap::new(),
            by_seq: BTreeMap::new(),
            in_flight: BTreeMap::new(),
            line: 0,
            store_works: true,
            since_lower: 0,
            owed: BTreeSet::new(),
            vain: BTreeSet::new(),
            flushes: BTreeMap::new(),
            devices: BTreeMap::new(),
            steps: 0,
        }
    }

    pub fn open_ticket(&self) -> Option<u64> {
        self.tickets.keys().next().copied()
    }

    /// The cloud has it.
    pub fn arrived(&mut self, seq: u64) {
        self.owed.remove(&seq);
    }

    /// What was accepted, did not arrive, and could have.
    pub fn lost(&self, carried: impl Fn(&LaneRules) -> bool) -> Vec<Seq> {
        let all = self.owed.iter().map(|seq| Seq(*seq));
        all.filter(|seq| carried(&self.rules[seq.lane().0 as usize])).take(10).collect()
    }

    /// Everything in memory is gone; what was promised on disk is not.
    pub fn crashed(&mut self) {
        self.tickets.clear();
        self.by_seq.clear();
        self.in_flight.clear();
        self.flushes.clear();
        self.devices.clear();
        self.store_works = true;
        let memory: Vec<bool> = self.rules.iter().map(|rules| rules.memory_bytes.is_some()).collect();
        self.owed.retain(|seq| !memory[Seq(*seq).lane().0 as usize]);
    }

    /// The daemon starts with the highest number and what the store found in each lane; `later` is what it will find there later.
    pub fn started(
        &mut self,
        highest: &[u64],
        found: &[BTreeMap<u64, u64>],
        later: &[BTreeMap<u64, u64>],
        exact: impl Fn(u64) -> bool,
    ) {
        self.messages.clear();
        for (index, account) in self.lanes.iter_mut().enumerate() {
            *account = Account { admitted: highest[index], ..Account::default() };
            account.released = found[index].keys().next().map_or(account.admitted as i128, |first| *first as i128 - 1);
        }
        for (index, found) in found.iter().enumerate() {
            self.restore(Lane(index as u8), found, &exact);
        }
        let has = |seq: &u64| {
            let (lane, number) = (Seq(*seq).lane().0 as usize, Seq(*seq).number());
            found[lane].contains_key(&number) || later[lane].contains_key(&number)
        };
        if let Some(seq) = self.owed.iter().find(|seq| !has(seq)) {
            panic!("{} was accepted, and the store does not have it", Seq(*seq));
        }
    }

    fn restore(&mut self, lane: Lane, found: &BTreeMap<u64, u64>, exact: impl Fn(u64) -> bool) {
        let account = &mut self.lanes[lane.0 as usize];
        for (number, size) in found {
            let seq = Seq::new(lane, *number).0;
            account.waiting.insert(*number);
            account.bytes += size;
            let (exact, size) = (exact(seq), *size);
            let msg = Msg {
                size,
                exact,
                restored: true,
                at: 0,
                sent: false,
                flying: false,
                appended: true,
                stored: true,
                over: false,
            };
            self.messages.insert(seq, msg);
        }
    }

    /// A session or its line has ended, or messages go another way: what was in flight waits again.
    pub fn ground(&mut self) {
        self.lanes.iter_mut().for_each(|account| account.line_last = 0);
        for seq in std::mem::take(&mut self.in_flight).into_keys() {
            let msg = self.messages.get_mut(&seq).expect("in flight");
            msg.flying = false;
            let account = &mut self.lanes[Seq(seq).lane().0 as usize];
            account.flying -= 1;
            account.waiting.insert(Seq(seq).number());
        }
    }

    fn over(&mut self, seq: Seq) {
        let msg = self.messages.get_mut(&seq.0).expect("known");
        msg.over = true;
        let account = &mut self.lanes[seq.lane().0 as usize];
        account.bytes -= msg.size;
        account.flying -= u64::from(msg.flying);
        msg.flying = false;
        account.waiting.remove(&seq.number());
        self.in_flight.remove(&seq.0);
    }

    fn held(&self, lane: usize) -> u64 {
        self.lanes[lane].waiting.len() as u64 + self.lanes[lane].flying
    }

    /// The server's answer counts where it was sent.
    pub fn answered(&mut self, attempt: u64, seq: Seq, rejected: bool) {
        if self.line == attempt && self.in_flight.contains_key(&seq.0) {
            self.over(seq);
            self.lanes[seq.lane().0 as usize].rejected += u64::from(rejected);
        }
    }

    /// Takes down what the heart is told; what is wrong with it afterwards is judged by its actions.
    pub fn hear(&mut self, now: u64, event: &Event, recovered: impl Fn(u64) -> (u64, bool)) {
        match event {
            Event::Acked { attempt, seq } | Event::Completed { attempt, seq } => self.answered(attempt.0, *seq, false),
            Event::Rejected { attempt, seq } => self.answered(attempt.0, *seq, true),
            Event::Offered { ticket, parcel } => {
                self.tickets.insert(ticket.0, Ticket { parcel: *parcel, seq: None });
            }
            Event::Stored { through } => {
                let first = Seq::new(through.lane(), 0).0;
                for (_, msg) in self.messages.range_mut(first..=through.0) {
                    msg.stored |= msg.appended;
                }
            }
            Event::StorageFailed { .. } => self.store_works = false,
            Event::StorageHealed => {
                self.store_works = true;
                self.lanes.iter_mut().for_each(|account| account.appended_last = 0);
                self.messages.values_mut().for_each(|msg| msg.appended = msg.stored);
            }
            Event::LaneFull { through } => self.lanes[through.lane().0 as usize].full = Some(through.number()),
            Event::LaneRoomy { lane } => self.lanes[lane.0 as usize].full = None,
            Event::Recovered { lane, runs, .. } => {
                let numbers = runs.iter().cloned().flatten();
                let found: BTreeMap<u64, (u64, bool)> =
                    numbers.map(|number| (number, recovered(Seq::new(*lane, number).0))).collect();
                if let Some(first) = found.keys().next() {
                    let account = &mut self.lanes[lane.0 as usize];
                    account.released = *first as i128 - 2;
                    account.line_last = 0;
                }
                let sizes = found.iter().map(|(number, (size, _))| (*number, *size)).collect();
                self.restore(*lane, &sizes, |seq| found[&Seq(seq).number()].1);
            }
            Event::DeviceSeen { interface, device } => {
                self.devices.insert(*interface, (device.class, device.metered, device.ip_interface));
            }
            Event::Asked(Command::Flush { request, .. }) => {
                // Numbers recovered later are lower, and count.
                let marks = self.lanes.iter().map(|account| account.admitted).collect();
                self.flushes.insert(request.0, marks);
            }
            _ => {}
        }
        let _ = now;
    }

    /// Whether a lane may go over an interface, by what was told of it.
    pub fn carries(&self, rules: &LaneRules, interface: Name, settings: &Settings) -> bool {
        let (class, word, kernel) = self.devices.get(&interface).copied().unwrap_or((Class::Cell, None, None));
        match &rules.carriers {
            Carriers::Any => true,
            Carriers::Unmetered => !settings.classes[class as usize].metered.or(word).unwrap_or(class == Class::Cell),
            Carriers::Named(list) => list.iter().any(|selector| match selector {
                Selector::Class(own) => *own == class,
                Selector::Name(name) => *name == interface || Some(*name) == kernel,
            }),
        }
    }
}

/// Whether messages can go out, as far as it can be told from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    None,
    Through(Name),
    /// Between CONNECT and CONNACK.
    Unknown,
}

impl World {
    fn way(&self) -> Way {
        let o = &self.oracle;
        let between = o.live.iter().any(|(attempt, dialled)| dialled.said_connect && o.session != Some(*attempt));
        match o.session.and_then(|session| o.live.get(&session)) {
            _ if between => Way::Unknown,
            Some(dialled) => Way::Through(dialled.interface),
            None => Way::None,
        }
    }

    fn is_away(&self, lane: usize) -> Option<bool> {
        let mail = &self.oracle.mail;
        match self.way() {
            Way::None => Some(true),
            Way::Through(name) => Some(!mail.carries(&mail.rules[lane], name, &self.oracle.settings)),
            Way::Unknown => None,
        }
    }

    /// Nobody can keep what comes: by what is known, and none where that is not known.
    fn is_stuck(&self, lane: usize) -> Option<bool> {
        let mail = &self.oracle.mail;
        let rules = &mail.rules[lane];
        let disk = rules.memory_bytes.is_none();
        let full = mail.lanes[lane].full.is_some() && rules.overflow != Overflow::DropOldest;
        self.is_away(lane).map(|away| away && (full || disk && !mail.store_works))
    }

    /// What is true of messages after every step.
    pub fn judge_messages(&mut self, event: &Event, actions: &[Action]) -> Option<String> {
        self.judge_lateness().or_else(|| self.judge_lanes(event, actions)).or_else(|| self.judge_counts(event, actions))
    }

    pub fn judge_message(&mut self, event: &Event, action: &Action, actions: &[Action]) -> Option<String> {
        match action {
            Action::Admit { ticket, seq } => self.judge_admit(ticket.0, *seq),
            Action::Transmit { attempt, seq, again } => self.judge_transmit(attempt.0, *seq, *again),
            Action::Append { seq } => self.judge_append(*seq),
            Action::Accept { ticket } => self.judge_accept(ticket.0),
            Action::Refuse { ticket, refusal } => self.judge_refuse(event, ticket.0, *refusal, actions),
            Action::Discard { from, through } => self.judge_discard(event, *from, *through, actions),
            Action::Release { through } => self.judge_release(*through),
            Action::SetAside { seq } => {
                let rejected = matches!(event, Event::Rejected { seq: told, .. } if told == seq);
                (!rejected).then(|| "the server did not reject it".into())
            }
            _ => None,
        }
    }

    fn judge_admit(&mut self, ticket: u64, seq: Seq) -> Option<String> {
        let lane = seq.lane().0 as usize;
        let (stuck, way) = (self.is_stuck(lane), self.way());
        let now = self.now;
        let mail = &mut self.oracle.mail;
        let Some(open) = mail.tickets.get_mut(&ticket) else { return Some("nobody offered it".into()) };
        if open.parcel.lane.0 as usize != lane || open.seq.replace(seq).is_some() {
            return Some("in another lane, or admitted twice".into());
        }
        let parcel = open.parcel;
        if parcel.online_only && way == Way::None {
            return Some("it asked for a session".into());
        }
        if stuck == Some(true) {
            return Some("nobody can keep it".into());
        }
        let (disk, account) = (mail.rules[lane].memory_bytes.is_none(), &mut mail.lanes[lane]);
        if seq.number() <= account.admitted {
            return Some("the number was used before".into());
        }
        account.admitted = seq.number();
        account.waiting.insert(seq.number());
        account.bytes += u64::from(parcel.size);
        account.open.push_back(seq.number());
        account.unkept += 1;
        account.unkept_bytes += u64::from(parcel.size);
        mail.by_seq.insert(seq.0, ticket);
        let msg = Msg {
            size: u64::from(parcel.size),
            exact: parcel.exact && disk,
            restored: false,
            at: now,
            sent: false,
            flying: false,
            appended: false,
            stored: false,
            over: false,
        };
        mail.messages.insert(seq.0, msg);
        let (held, rules) = (mail.held(lane), &mail.rules[lane]);
        if way == Way::Unknown {
            return None;
        }
        if held > rules.max_messages {
            return Some(format!("{held} messages, {} allowed", rules.max_messages));
        }
        let (most, bytes) = (rules.memory_bytes.unwrap_or(u64::MAX), mail.lanes[lane].bytes);
        (bytes > most).then(|| format!("{bytes} bytes in memory, {most} allowed"))
    }

    fn judge_transmit(&mut self, attempt: u64, seq: Seq, again: bool) -> Option<String> {
        let now = self.now;
        let lane = seq.lane().0 as usize;
        let o = &mut self.oracle;
        let early = o.session != Some(attempt);
        let Some(dialled) = o.live.get_mut(&attempt) else { return Some("it is dead already".into()) };
        if early && (!dialled.said_connect || o.known_windows.is_empty()) {
            return Some("not the session, nor behind its CONNECT to a server that knows us".into());
        }
        if !dialled.sent.insert(seq.0) {
            return Some("sent twice on one connection".into());
        }
        let interface = dialled.interface;
        let known = o.known_windows.iter().copied().max().unwrap_or(0);
        let window = if early { known } else { dialled.window };
        if o.mail.line != attempt {
            o.mail.ground();
            o.mail.line = attempt;
        }
        if !o.mail.carries(&o.mail.rules[lane], interface, &o.settings) {
            return Some(format!("its lane may not go over {interface}"));
        }
        let works = o.mail.store_works;
        let Some(msg) = o.mail.messages.get_mut(&seq.0).filter(|msg| !msg.over) else {
            return Some("it is over, or never was".into());
        };
        if msg.exact && !msg.stored && works {
            return Some("exact, and not durable".into());
        }
        if again != (msg.sent || msg.restored) {
            return Some("sent before and not marked so, or the other way round".into());
        }
        msg.sent = true;
        msg.flying = true;
        let account = &mut o.mail.lanes[lane];
        if seq.number() <= account.line_last {
            return Some("out of order".into());
        }
        account.line_last = seq.number();
        if account.waiting.range(..seq.number()).next().is_some() {
            return Some("an older one waits".into());
        }
        account.waiting.remove(&seq.number());
        account.flying += 1;
        o.mail.in_flight.insert(seq.0, now);
        if o.mail.in_flight.len() > window {
            return Some(format!("{} in flight, {window} allowed", o.mail.in_flight.len()));
        }
        let settings = &o.settings;
        o.mail.judge_turn(lane, interface, window, settings)
    }

    fn judge_append(&mut self, seq: Seq) -> Option<String> {
        let mail = &mut self.oracle.mail;
        let lane = seq.lane().0 as usize;
        let Some(msg) = mail.messages.get_mut(&seq.0) else { return Some("unknown".into()) };
        if mail.rules[lane].memory_bytes.is_some() {
            return Some("its lane lives in memory".into());
        }
        if std::mem::replace(&mut msg.appended, true) || seq.number() <= mail.lanes[lane].appended_last {
            return Some("appended twice, or out of order".into());
        }
        mail.lanes[lane].appended_last = seq.number();
        None
    }

    fn close(&mut self, ticket: u64) -> Option<(Parcel, Option<Seq>)> {
        let mail = &mut self.oracle.mail;
        let Ticket { parcel, seq } = mail.tickets.remove(&ticket)?;
        if let Some(seq) = seq {
            mail.by_seq.remove(&seq.0);
            let account = &mut mail.lanes[seq.lane().0 as usize];
            account.unkept -= 1;
            account.unkept_bytes -= u64::from(parcel.size);
        }
        Some((parcel, seq))
    }

    fn judge_accept(&mut self, ticket: u64) -> Option<String> {
        let Some((_, Some(seq))) = self.close(ticket) else { return Some("nobody waits for it".into()) };
        let lane = seq.lane().0 as usize;
        let mail = &mut self.oracle.mail;
        let msg = *mail.messages.get(&seq.0)?;
        let disk = mail.rules[lane].memory_bytes.is_none();
        if disk && !msg.stored && !msg.over {
            // What has expired is answered so as well: its end stands behind it on the list.
            mail.by_seq.insert(seq.0, u64::MAX);
        }
        if disk && msg.stored && !msg.over && !self.store.has(seq) {
            return Some("not durable in truth".into());
        }
        if !self.broker.received.contains_key(&seq.0) && !msg.over {
            self.oracle.mail.owed.insert(seq.0);
        }
        None
    }

    fn judge_refuse(&mut self, event: &Event, ticket: u64, refusal: Refusal, actions: &[Action]) -> Option<String> {
        let now = self.now;
        let Some((parcel, seq)) = self.close(ticket) else { return Some("nobody offered it".into()) };
        let lane = parcel.lane.0 as usize;
        let (stuck, way) = (self.is_stuck(lane), self.way());
        let mail = &mut self.oracle.mail;
        if let Some(seq) = seq {
            let gone = |a: &Action| matches!(a, Action::Discard { from, through } if (*from..=*through).contains(&seq));
            let waited = now - mail.messages.get(&seq.0).map_or(now, |msg| msg.at);
            let in_vain = stuck != Some(false) && waited >= 30_000;
            if refusal == Refusal::Full {
                mail.vain.insert(seq.0);
            }
            return match refusal {
                _ if !actions.iter().any(gone) => Some("ours already, and not given up".into()),
                Refusal::Full if !in_vain => Some("ours already, and somebody can keep it".into()),
                Refusal::Dropped | Refusal::Full => None,
                Refusal::NotConnected => Some("ours already".into()),
            };
        }
        let rules = &mail.rules[lane];
        let refused =
            if refusal == Refusal::Dropped { &mut mail.lanes[lane].dropped } else { &mut mail.lanes[lane].refused };
        *refused += 1;
        let parts = if rules.priority == mail.highest { 8 } else { 7 };
        let unkept = mail.lanes.iter().map(|account| account.unkept).sum::<usize>();
        let unkept_bytes = mail.lanes.iter().map(|account| account.unkept_bytes).sum::<u64>();
        let crowded = unkept >= UNKEPT_MAX / 8 * parts || unkept_bytes >= UNKEPT_BYTES_MAX / 8 * parts as u64;
        let (held, account) = (mail.held(lane), &mail.lanes[lane]);
        let most = rules.memory_bytes.unwrap_or(u64::MAX);
        let flying: u64 = mail.in_flight.keys().filter(|seq| Seq(**seq).lane() == parcel.lane).count() as u64;
        let over = held >= rules.max_messages || account.bytes + u64::from(parcel.size) > most;
        let never =
            account.flying >= rules.max_messages || mail.flying_bytes(parcel.lane) + u64::from(parcel.size) > most;
        debug_assert_eq!(flying, account.flying);
        let no_room = over && (rules.overflow != Overflow::DropOldest || never);
        let fair = match refusal {
            _ if !matches!(event, Event::Offered { .. }) => false,
            Refusal::NotConnected => parcel.online_only && !matches!(way, Way::Through(_)),
            Refusal::Full | Refusal::Dropped if way == Way::Unknown => true,
            Refusal::Dropped => (no_room || stuck == Some(true)) && rules.overflow == Overflow::DropNewest,
            Refusal::Full => crowded || stuck == Some(true) || no_room && rules.overflow != Overflow::DropNewest,
        };
        (!fair).then(|| format!("there is room, {held} held, {unkept} not kept"))
    }

    fn judge_discard(&mut self, event: &Event, from: Seq, through: Seq, actions: &[Action]) -> Option<String> {
        let now = self.now;
        let index = from.lane().0 as usize;
        let (stuck, way) = (self.is_stuck(index), self.way());
        let mail = &mut self.oracle.mail;
        let rules = mail.rules[index].clone();
        let expired =
            matches!(event, Event::Expired { from: a, through: b, .. } if (*a..=*b).contains(&from) && through <= *b);
        let oldest = rules.overflow == Overflow::DropOldest;
        let ordered =
            matches!(event, Event::Asked(Command::Drop { lane, .. }) if lane.is_none_or(|l| l == from.lane()));
        let numbers: Vec<u64> =
            mail.messages.range(from.0..=through.0).filter(|(_, m)| !m.over).map(|(s, _)| *s).collect();
        if numbers.len() as u64 != through.number() - from.number() + 1 {
            return Some("some of them are over, or never were".into());
        }
        let offered = match event {
            Event::Offered { parcel, .. } if parcel.lane == from.lane() => Some(u64::from(parcel.size)),
            _ => None,
        };
        let (held, bytes) = (mail.held(index), mail.lanes[index].bytes);
        let (mut last, mut vain) = (0, false);
        for seq in numbers {
            let seq = Seq(seq);
            let msg = mail.messages[&seq.0];
            let unsent = matches!(event, Event::Expired { attempt: Some(_), .. });
            if msg.flying && !unsent {
                return Some(format!("{seq} is in flight"));
            }
            let full = oldest && mail.lanes[index].full.is_some_and(|full| seq.number() <= full);
            let in_vain = !msg.stored && now >= msg.at + 30_000 && stuck != Some(false);
            if !expired
                && !ordered
                && !full
                && !in_vain
                && oldest
                && mail.lanes[index].waiting.first().is_some_and(|first| *first < seq.number())
            {
                return Some(format!("{seq} is not the oldest"));
            }
            last = msg.size;
            // Answered as accepted on this list, in place of its end.
            let answered = mail.by_seq.get(&seq.0) == Some(&u64::MAX);
            if answered {
                mail.by_seq.remove(&seq.0);
            }
            vain |= in_vain;
            let account = &mut mail.lanes[index];
            match () {
                () if mail.vain.remove(&seq.0) => account.refused += 1,
                () if expired => account.expired += 1,
                () if answered => return Some(format!("{seq} was promised and is dropped")),
                () if ordered || full || oldest && offered.is_some() => account.dropped += 1,
                () if in_vain && rules.overflow == Overflow::DropNewest && mail.store_works => account.dropped += 1,
                () => return Some("no rule gives it up".into()),
            }
            mail.over(seq);
            mail.owed.remove(&seq.0);
        }
        // One less would not have been enough for what was offered.
        let most = rules.memory_bytes.unwrap_or(u64::MAX);
        let gone = through.number() - from.number() + 1;
        let by_offer = offered.filter(|_| oldest && mail.lanes[index].full.is_none_or(|full| from.number() > full));
        if let Some(size) = by_offer.filter(|_| way != Way::Unknown && !vain) {
            let fewer = held - gone + 1;
            let lighter = mail.lanes[index].bytes + last;
            // The message itself is among them by now.
            let admitted = actions.iter().any(|a| matches!(a, Action::Admit { .. }));
            if !admitted {
                return Some("dropped for a message that is not taken".into());
            }
            if fewer < rules.max_messages && lighter + size <= most {
                return Some(format!("{held} messages, {bytes} bytes: more is dropped than must be"));
            }
        }
        None
    }

    fn judge_release(&mut self, through: Seq) -> Option<String> {
        let mail = &mut self.oracle.mail;
        let account = &mut mail.lanes[through.lane().0 as usize];
        let number = through.number() as i128;
        if number <= account.released || through.number() > account.admitted.max(account.line_last) {
            return Some(format!("released {} already, admitted {}", account.released, account.admitted));
        }
        account.released = number;
        let first = Seq::new(through.lane(), 0).0;
        let missing = mail.messages.range(first..=through.0).find(|(_, msg)| !msg.over).map(|(seq, _)| Seq(*seq));
        if let Some(seq) = missing {
            return Some(format!("{seq} is not over"));
        }
        let done: Vec<u64> = mail.messages.range(first..=through.0).map(|(seq, _)| *seq).collect();
        for seq in done {
            mail.messages.remove(&seq);
        }
        None
    }

    /// While the store works, no message waits longer for its promise than `late` allows; and where nobody can keep it,
    /// its application learns so.
    fn judge_lateness(&mut self) -> Option<String> {
        let now = self.now;
        if self.oracle.recently_stalled(now, IN_VAIN) || matches!(self.plan.profile, Profile::Lossy | Profile::Rate(_))
        {
            return None;
        }
        for lane in 0..self.oracle.mail.lanes.len() {
            let stuck = self.is_stuck(lane);
            let mail = &mut self.oracle.mail;
            let account = &mut mail.lanes[lane];
            let open = |number: &u64| mail.by_seq.contains_key(&Seq::new(Lane(lane as u8), *number).0);
            while account.open.front().is_some_and(|number| !open(number)) {
                account.open.pop_front();
            }
            let Some(number) = account.open.front() else { continue };
            let seq = Seq::new(Lane(lane as u8), *number);
            let at = mail.messages.get(&seq.0).map_or(now, |msg| msg.at);
            let memory = mail.rules[lane].memory_bytes.is_some();
            if memory && now > at + LATE {
                return Some(format!("{seq} waits since {}, and memory has it", stamp(at)));
            }
            if stuck == Some(true) && account.flying == 0 && now > at + IN_VAIN {
                return Some(format!("{seq} waits since {} for nobody", stamp(at)));
            }
            // The first that the store was not given.
            let messages = &mail.messages;
            let fresh = account.open.iter().map(|number| Seq::new(Lane(lane as u8), *number));
            let mut fresh = fresh.filter(|seq| mail.by_seq.contains_key(&seq.0)).take(64);
            let late = fresh.find(|seq| messages.get(&seq.0).is_some_and(|msg| !msg.appended && now > msg.at + LATE));
            if let Some(seq) = late.filter(|_| mail.store_works && !memory) {
                return Some(format!("{seq} is late and not appended"));
            }
        }
        None
    }

    /// What may not go out before it is durable is with the store at once, what would make room on a full card is gone, and
    /// what was found late is fenced off.
    fn judge_lanes(&self, event: &Event, actions: &[Action]) -> Option<String> {
        let mail = &self.oracle.mail;
        for (lane, account) in mail.lanes.iter().enumerate() {
            let seq = |number: &u64| Seq::new(Lane(lane as u8), *number);
            let msg = account.open.back().and_then(|number| mail.messages.get(&seq(number).0));
            if mail.store_works && msg.is_some_and(|msg| msg.exact && !msg.appended && !msg.over) {
                return Some("an exact message is not with the store".into());
            }
            let room = account.full.filter(|_| mail.rules[lane].overflow == Overflow::DropOldest);
            let old = account.waiting.first().filter(|first| room.is_some_and(|full| **first <= full));
            if let Some(number) = old {
                return Some(format!("{} is still there, and its lane is full", seq(number)));
            }
        }
        if let Event::Recovered { lane, runs, .. } = event
            && let Some(first) = runs.first().map(|run| *run.start())
        {
            let fence = Action::Release { through: Seq::new(*lane, first - 1) };
            return (!actions.contains(&fence)).then(|| format!("{fence} is missing"));
        }
        None
    }

    /// What displays show is what happened.
    fn judge_counts(&mut self, event: &Event, actions: &[Action]) -> Option<String> {
        self.oracle.mail.steps += 1;
        let telling =
            |a: &Action| matches!(a, Action::Discard { .. } | Action::Refuse { .. } | Action::SetAside { .. });
        if !actions.iter().any(telling) && !self.oracle.mail.steps.is_multiple_of(16) {
            return None;
        }
        if let Some(seq) = self.oracle.mail.by_seq.iter().find(|(_, ticket)| **ticket == u64::MAX) {
            return Some(format!("{} was promised, and nobody has it", Seq(*seq.0)));
        }
        let lanes = self.control()?.status().lanes;
        let (mail, sure) = (&self.oracle.mail, self.way() != Way::Unknown);
        for (index, (found, account)) in lanes.iter().zip(&mail.lanes).enumerate() {
            let LaneStatus { messages, in_flight, refused, rejected, dropped, expired, .. } = *found;
            let counted = (account.refused, account.rejected, account.dropped, account.expired);
            if (refused, rejected, dropped, expired) != counted {
                return Some(format!("lane {index} shows {found:?} after {event}, and {counted:?} is true"));
            }
            let held = (mail.held(index), account.flying);
            if sure && mail.line == self.oracle.session.unwrap_or(0) && (messages, in_flight) != held {
                return Some(format!("lane {index} shows {found:?} after {event}, and {held:?} is true"));
            }
        }
        None
    }

    /// An operator was told that everything before his question is through.
    pub fn judge_flush(&mut self, request: u64, done: bool) -> Option<String> {
        let mail = &mut self.oracle.mail;
        let marks = mail.flushes.remove(&request)?;
        let open = |(lane, mark): (usize, &u64)| {
            let account = &mail.lanes[lane];
            let seq = |number: u64| Seq::new(Lane(lane as u8), number);
            let flying = mail.in_flight.range(seq(0).0..=seq(*mark).0).next().map(|(seq, _)| Seq(*seq));
            account.waiting.range(..=*mark).next().map(|number| seq(*number)).or(flying)
        };
        let open = marks.iter().enumerate().find_map(open);
        open.filter(|_| done).map(|seq| format!("{seq} is not through"))
    }
}

impl Mail {
    fn flying_bytes(&self, lane: Lane) -> u64 {
        let own = self.in_flight.keys().filter(|seq| Seq(**seq).lane() == lane);
        own.filter_map(|seq| self.messages.get(seq)).map(|msg| msg.size).sum()
    }

    /// Something of the lane waits and could go out, as far as the lane itself is concerned.
    fn could(&self, lane: usize, interface: Name, settings: &Settings) -> bool {
        let Some(first) = self.lanes[lane].waiting.first() else { return false };
        let msg = &self.messages[&Seq::new(Lane(lane as u8), *first).0];
        let held = msg.exact && !msg.stored && self.store_works;
        !held && self.carries(&self.rules[lane], interface, settings)
    }

    /// After a message of this lane went out: whether it was its turn.
    fn judge_turn(&mut self, lane: usize, interface: Name, window: usize, settings: &Settings) -> Option<String> {
        let rank = self.rules[lane].priority;
        let could: Vec<bool> = (0..self.lanes.len()).map(|lane| self.could(lane, interface, settings)).collect();
        let higher = (0..could.len()).any(|other| could[other] && self.rules[other].priority > rank);
        if higher && self.since_lower + 1 < SHARE {
            return Some(format!("a higher one waits, and only {} went since the last time", self.since_lower));
        }
        self.since_lower = if higher { 0 } else { self.since_lower + 1 };
        let low = self.lanes.iter().zip(&self.rules).filter(|(_, rules)| rules.priority < self.highest);
        let low: u64 = low.map(|(account, _)| account.flying).sum();
        let reserve = if window < 4 { 0 } else { (window / 8).max(1) };
        if rank < self.highest && low as usize + reserve > window {
            return Some(format!("{low} of {window} are not of the highest lane"));
        }
        let crowded = low as usize + reserve >= window;
        for (other, could) in could.into_iter().enumerate() {
            let account = &mut self.lanes[other];
            let waits = other != lane && could && !(crowded && self.rules[other].priority < self.highest);
            let peer = rank <= self.rules[other].priority;
            account.passed = if waits { account.passed + 1 } else { 0 };
            account.passed_by_peers = if waits { account.passed_by_peers + u64::from(peer) } else { 0 };
            if account.passed > PATIENCE || account.passed_by_peers > PEERS {
                let (all, peers) = (account.passed, account.passed_by_peers);
                return Some(format!(
                    "lane {other} could go, and {all} others went before it, {peers} of no higher rank"
                ));
            }
        }
        None
    }
}
