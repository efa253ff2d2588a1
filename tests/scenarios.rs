//! Stories in the words of the journal, held to the heart's answers.
//!
//! A story is a text file in `tests/scenarios`: comments, one settings line, and then moments in order. A line at
//! column 0 is a time and what happened; what is indented below it is what the heart answered, and a line with an
//! equals sign what an operator would see from then on: the state word and the uplink. Between two events the heart
//! is told of its deadlines as they come; one that makes it do something stands in the story as `deadline`, and what the reader adds itself in parentheses. Apart from
//! events, a moment may be one of the reader's own words:
//!
//! * `pings unanswered #3` and `pings answered #3`: by default every ping is answered after 40 ms, unseen;
//! * `path eth0 works`, `path eth0 silent`, `path eth0 20s` (good and silent in turn): from then on the reader answers
//!   dials, CONNECTs and pings over it by itself, or not;
//! * `server refuses`, `server answers`: whether every dial is refused;
//! * `stall 20s`: the whole process stands still and hears nothing;
//! * `restart`: the process ends and starts with what was saved;
//! * after `acked` the reader says `heard`, as the adapter does, unseen unless it matters;
//! * `end`: nothing more happens, the deadlines up to here are still served.
//!
//! `SWITCHBACK_REWRITE=1` writes the answers anew; the reviewer reads the difference.

mod story;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use switchback_control::{Action, Attempt, Control, Event, Instant, Measure, Name, Reason, Saved, Unreleased};

use story::{Heading, Reader};

/// How soon the kernel tells what it has counted; the reader's knows nothing.
const LOOK_AFTER: u64 = 1;
/// How soon a ping is answered.
const PONG_AFTER: u64 = 40;

/// How a path behaves that the reader plays by itself.
#[derive(Clone, Copy)]
enum Path {
    Works,
    Silent,
    /// Good and silent in turn, each for so many milliseconds.
    Toggles(u64),
}

fn attempt_of(event: &Event) -> Option<Attempt> {
    match event {
        Event::Ponged { attempt }
        | Event::Measured { attempt, .. }
        | Event::Dialled { attempt, .. }
        | Event::DialFailed { attempt, .. }
        | Event::Connected { attempt, .. }
        | Event::Settled { attempt } => Some(*attempt),
        _ => None,
    }
}

struct Teller {
    heading: Heading,
    control: Control,
    reader: Reader,
    now: u64,
    saved: Saved,
    number: u64,
    /// What a restart finds in the store: everything stored and not released.
    highest: u64,
    stored: u64,
    released: u64,
    /// The reader's own events under way: when, and what.
    own: Vec<(u64, Event)>,
    /// What the reader plays by itself: paths by interface, and the server.
    paths: BTreeMap<Name, Path>,
    refuses: bool,
    through: BTreeMap<Attempt, Name>,
    silent: BTreeSet<Attempt>,
    shown: String,
    text: String,
}

/// Tells a story with the heart's own answers.
fn tell(source: &str) -> Result<String, String> {
    let mut lines = source.lines();
    let mut text = String::new();
    let heading = loop {
        let line = lines.next().ok_or("no settings line")?;
        let _ = writeln!(text, "{line}");
        if !line.starts_with('#') && !line.trim().is_empty() {
            break story::heading(line)?;
        }
    };
    let found = [Unreleased { runs: Vec::new(), highest: heading.highest }];
    let control =
        Control::restore(heading.settings.clone(), Saved::default(), &found, 0, heading.seed, Instant::from_millis(0));
    let mut teller = Teller {
        heading,
        control,
        reader: Reader::default(),
        now: 0,
        saved: Saved::default(),
        number: 0,
        highest: 0,
        stored: 0,
        released: 0,
        own: Vec::new(),
        paths: BTreeMap::new(),
        refuses: false,
        through: BTreeMap::new(),
        silent: BTreeSet::new(),
        shown: "off".into(),
        text,
    };
    for line in lines {
        teller.line(line).map_err(|e| format!("{line}: {e}"))?;
    }
    Ok(teller.text)
}

impl Teller {
    fn line(&mut self, line: &str) -> Result<(), String> {
        if line.trim().is_empty() || line.starts_with('#') {
            let _ = writeln!(self.text, "{line}");
            return Ok(());
        }
        if line.starts_with(' ') {
            return Ok(());
        }
        let (time, what) = line.split_once(' ').ok_or("a time and what happened")?;
        let what = what.trim();
        if what == "deadline" || what.starts_with('(') {
            return Ok(());
        }
        let at = story::duration(time)?.as_millis() as u64;
        if at < self.now {
            return Err("time runs backwards".into());
        }
        self.serve_until(at);
        self.now = at;
        match what.split_whitespace().collect::<Vec<_>>().as_slice() {
            ["end"] => {
                self.show(what, &[], true);
            }
            ["stall", length] => {
                self.show(what, &[], true);
                self.now += story::duration(length)?.as_millis() as u64;
                self.own.clear();
            }
            ["path", name, how] => {
                let path = match *how {
                    "works" => Path::Works,
                    "silent" => Path::Silent,
                    every => Path::Toggles(story::duration(every)?.as_millis() as u64),
                };
                self.paths.insert(name.parse().map_err(|_| "not a name")?, path);
                self.show(what, &[], true);
            }
            ["server", how @ ("refuses" | "answers")] => {
                self.refuses = *how == "refuses";
                self.show(what, &[], true);
            }
            ["restart"] => self.restart(),
            ["pings", how @ ("answered" | "unanswered"), n] => {
                let n: u64 = n.trim_start_matches('#').parse().map_err(|_| "not an attempt")?;
                if *how == "unanswered" {
                    self.silent.insert(Attempt(n));
                    self.own.retain(|(_, event)| *event != Event::Ponged { attempt: Attempt(n) });
                } else {
                    self.silent.remove(&Attempt(n));
                }
                self.show(what, &[], true);
            }
            _ => {
                let event = self.reader.event(what)?;
                if event.to_string() != what {
                    return Err(format!("the journal would say {:?}", event.to_string()));
                }
                let actions = self.step(&event);
                self.show(what, &actions, true);
                if let Event::Acked { attempt, .. } | Event::Rejected { attempt, .. } = event {
                    // That bytes came in, the adapter says last.
                    let event = Event::Heard { attempt };
                    let actions = self.step(&event);
                    self.show(&format!("({event})"), &actions, false);
                }
            }
        }
        Ok(())
    }

    /// Serves deadlines and answers pings up to a moment, itself included for what was due before it.
    fn serve_until(&mut self, end: u64) {
        loop {
            let deadline = self.control.next_deadline().map(|d| d.as_millis().max(self.now));
            let own = self.own.iter().map(|(at, _)| *at).min();
            match (deadline, own) {
                (d, Some(p)) if p <= end && d.is_none_or(|d| p <= d) => {
                    self.now = self.now.max(p);
                    let index = self.own.iter().position(|(at, _)| *at == p).unwrap_or(0);
                    let (_, event) = self.own.remove(index);
                    if !self.arrives(&event) {
                        continue;
                    }
                    let actions = self.step(&event);
                    self.show(&format!("({event})"), &actions, false);
                }
                (Some(d), _) if d <= end => {
                    self.now = d;
                    let actions = self.step(&Event::DeadlineReached);
                    self.show("deadline", &actions, false);
                }
                _ => return,
            }
        }
    }

    fn step(&mut self, event: &Event) -> Vec<Action> {
        let actions = self.control.step(Instant::from_millis(self.now), event);
        if let Event::Stored { through } = event {
            self.stored = self.stored.max(through.0);
        }
        for action in &actions {
            match action {
                Action::Save(saved) => self.saved = saved.clone(),
                Action::Ping { attempt } if !self.silent.contains(attempt) => {
                    self.own.push((self.now + PONG_AFTER, Event::Ponged { attempt: *attempt }));
                }
                Action::Dial { attempt, interface, .. } => {
                    self.number = attempt.0;
                    self.through.insert(*attempt, *interface);
                    self.answer_dial(*attempt, *interface);
                }
                Action::Measure { attempt } => {
                    let measure = Measure::default();
                    self.own.push((self.now + LOOK_AFTER, Event::Measured { attempt: *attempt, measure }));
                }
                Action::Connect { attempt, keep_alive, .. } => self.answer_connect(*attempt, *keep_alive),
                Action::HangUp { attempt, .. } => self.own.retain(|(_, event)| attempt_of(event) != Some(*attempt)),
                Action::Activate { attempt, .. } => self.number = attempt.0,
                Action::Admit { seq, .. } => self.highest = seq.0,
                Action::Release { through } => self.released = through.0,
                _ => {}
            }
        }
        actions
    }

    fn answer_dial(&mut self, attempt: Attempt, interface: Name) {
        if self.refuses {
            let refused = Event::DialFailed { attempt, reason: Reason::Refused, heard: true };
            self.own.push((self.now + PONG_AFTER, refused));
        } else if self.paths.contains_key(&interface) {
            self.own.push((self.now + PONG_AFTER, Event::Dialled { attempt, measure: Measure::default() }));
        }
    }

    fn answer_connect(&mut self, attempt: Attempt, keep_alive: Duration) {
        if self.through.get(&attempt).is_some_and(|name| self.paths.contains_key(name)) {
            let connected = Event::Connected { attempt, present: true, window: 20, keep_alive };
            self.own.push((self.now + PONG_AFTER, connected));
            self.own.push((self.now + 2 * PONG_AFTER, Event::Settled { attempt }));
        }
    }

    /// Whether an event of the reader's own gets through its path now.
    fn arrives(&self, event: &Event) -> bool {
        if matches!(event, Event::Measured { .. }) {
            return true;
        }
        let name = attempt_of(event).and_then(|attempt| self.through.get(&attempt));
        match name.and_then(|name| self.paths.get(name)) {
            None | Some(Path::Works) => true,
            Some(Path::Silent) => false,
            Some(Path::Toggles(every)) => (self.now / every).is_multiple_of(2),
        }
    }

    fn restart(&mut self) {
        let run = self.released + 1..=self.stored;
        let runs = if run.is_empty() { Vec::new() } else { vec![run] };
        self.control = Control::restore(
            self.heading.settings.clone(),
            self.saved.clone(),
            &[Unreleased { runs, highest: self.highest }],
            self.number,
            self.heading.seed,
            Instant::from_millis(self.now),
        );
        self.own.clear();
        self.silent.clear();
        self.show("restart", &[], true);
    }

    /// Writes a moment and its answers; an unasked one only when it shows something.
    fn show(&mut self, what: &str, actions: &[Action], always: bool) {
        let hidden = |a: &&Action| match a {
            Action::Measure { .. } => true,
            Action::Ping { attempt } => !self.silent.contains(attempt),
            a => a.is_message() && !self.heading.messages,
        };
        let mut deeds: Vec<String> = actions.iter().filter(|a| !hidden(a)).map(|a| format!("      {a}")).collect();
        let status = self.control.status();
        let seen = match status.uplink {
            Some(name) => format!("{} {name}", status.state),
            None => status.state.to_string(),
        };
        if seen != self.shown {
            deeds.push(format!("    = {seen}"));
            self.shown = seen;
        }
        if always || !deeds.is_empty() {
            let time = story::millis(Duration::from_millis(self.now));
            let _ = writeln!(self.text, "{time:<8} {what}");
            deeds.iter().for_each(|deed| {
                let _ = writeln!(self.text, "{deed}");
            });
        }
    }
}

fn folder() -> PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/scenarios")
}

/// The first place where two texts differ, for people.
fn difference(expected: &str, found: &str) -> String {
    let (e, f): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let at = e.iter().zip(&f).position(|(a, b)| a != b).unwrap_or(e.len().min(f.len()));
    let context =
        |lines: &[&str], sign: &str| lines.iter().skip(at).take(8).map(|l| format!("{sign} {l}\n")).collect::<String>();
    let before: String = e.iter().take(at).skip(at.saturating_sub(6)).map(|l| format!("  {l}\n")).collect();
    format!("line {}:\n{before}{}{}", at + 1, context(&e, "-"), context(&f, "+"))
}

#[test]
fn every_story_goes_as_it_is_told() {
    let rewrite = std::env::var_os("SWITCHBACK_REWRITE").is_some();
    let mut stories: Vec<PathBuf> = std::fs::read_dir(folder())
        .expect("the folder of stories")
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    stories.sort();
    assert!(stories.len() >= 16, "stories are missing: {}", stories.len());
    let mut failures = Vec::new();
    for path in stories {
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let source = std::fs::read_to_string(&path).expect("a story");
        match tell(&source) {
            Err(what) => failures.push(format!("{name}: {what}")),
            Ok(text) if text == source => {}
            Ok(text) if rewrite => std::fs::write(&path, text).expect("a story"),
            Ok(text) => failures.push(format!("{name}, {}", difference(&source, &text))),
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn what_the_journal_says_can_be_read_back() {
    let lines = [
        "link wlan0 up",
        "link wlan0 gone",
        "address eth0 absent",
        "device eth0 ethernet activated address",
        "device cdc-wdm0 cell registering ip wwan0 metered",
        "device wlan0 wifi disconnected user",
        "device wlan0 wifi disconnected no-profile unmetered",
        "device wlan0 wifi unavailable no-link",
        "device eth0 gone",
        "networkmanager gone",
        "activation #3 refused wlan0 no-profile",
        "dial #4 handshake",
        "dialled #4",
        "dial #4 failed refused heard",
        "connected #4 resumed window 20 keep-alive 30s",
        "settled #4",
        "closed #4 session-taken-over heard",
        "heard #4",
        "ponged #4",
        "acked #4 17",
        "rejected #4 17",
        "drained #4 empty",
        "offered 3 200",
        "stored 17",
        "storage full",
        "storage failed",
        "storage healed",
        "asked connect via wwan0",
        "asked disconnect force",
        "asked reconnect",
        "asked flush 1500ms",
        "asked list wifi eth0",
        "asked stop",
        "deadline",
    ];
    for line in lines {
        assert_eq!(Reader::default().event(line).map(|e| e.to_string()), Ok(line.into()));
    }
}
