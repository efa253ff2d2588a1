//! One candidate of a round: dialled, welcomed, or failed, and what a failure says of the others.
//!
//! A fault of the path sends the walk on at once; a fault of the server ends the round, because every path leads to the
//! same server, but for now and then; refused credentials and a stolen identity end it always (R-IF-10, R-CS-5, R-CS-10).
//! Every attempt has its own limit, so nobody has to answer for the walk to go on (R-CL-5).

use core::time::Duration;

use crate::action::{Action, Goodbye, Outcome};
use crate::backoff::QUICK_PHASE;
use crate::event::{Event, Step, Version};
use crate::failover::{Failover, Walk};
use crate::ground::{Ground, Line};
use crate::interfaces::Readiness;
use crate::name::{Class, Name};
use crate::reason::{Blame, Reason};
use crate::round::{Candidate, Round, dial_limit};
use crate::suspicion::rescue_limit;
use crate::time::Instant;

/// From CONNECT to CONNACK; the path has already proved itself, so this is the server's time.
pub const CONNACK_LIMIT: Duration = Duration::from_secs(10);
/// The same right after a path has died, while another is ready: several may have died together. And for a planned move,
/// which the old connection outlives.
pub const CONNACK_SOON: Duration = Duration::from_secs(4);
/// From CONNECT to CONNACK beyond two round trips, on a connection that waited and may be stale.
const WAITED_LIMIT: Duration = Duration::from_millis(500);
/// While the server itself refuses, other paths are tried only now and then: they lead to the same server. First after
/// this, for something on the way may refuse in its name; after the quick retries; and then this often.
const FIRST_LOOK: Duration = Duration::from_secs(1);
const FULL_WALK_SERVER: Duration = Duration::from_secs(300);
/// A server that hangs up without a word is asked in the other version once in so many rounds: the last of them, for it may
/// only be stopping.
const OTHER_VERSION_EVERY: u32 = 2;
/// What was made of a server's silence is put to the question again after this: it may have had another reason, and 3.1.1
/// carries no identities.
const GUESS_HOLDS: Duration = Duration::from_secs(3600);

impl Failover {
    pub fn next_candidate(&mut self, g: &mut Ground, mut round: Round) -> Walk {
        while let Some(interface) = round.rest.pop_front() {
            if g.interfaces.readiness(interface) == Readiness::Ready {
                let servers_left = g.turn.settings.servers.saturating_sub(1);
                return self.dial(g, round, interface, self.server, servers_left, None);
            }
        }
        self.round_failed(g, round)
    }

    pub fn dial(
        &mut self,
        g: &mut Ground,
        round: Round,
        interface: Name,
        server: u8,
        servers_left: u8,
        other_version: Option<Version>,
    ) -> Walk {
        let limit = self.dial_limit(g, interface);
        g.outages.tried(interface);
        let warm = if other_version.is_none() { self.warm.take(interface, server) } else { None };
        let attempt = warm.map_or_else(|| g.turn.number(), |taken| taken.attempt);
        if warm.is_none() {
            g.turn.ask(Action::Dial { interface, server, attempt });
        }
        let mut candidate = Candidate {
            interface,
            server,
            servers_left,
            attempt,
            born: g.turn.now,
            deadline: g.turn.now + limit,
            step: Step::Resolving,
            connecting: false,
            version: other_version.unwrap_or(self.version(server, g.turn.now)),
            other_version: other_version.is_some(),
            waited: warm.is_some_and(|taken| taken.since.is_some()),
        };
        if candidate.waited {
            self.say_connect(g, &mut candidate);
        }
        Walk::Trying { candidate, round }
    }

    pub fn dial_limit(&self, g: &Ground, interface: Name) -> Duration {
        let class = g.interfaces.class(interface).unwrap_or(Class::Ethernet);
        let alone = g.ready_count() < 2;
        dial_limit(class, alone, self.failed_rounds, g.uplink(interface).connect_timeout)
    }

    pub fn trying(&mut self, g: &mut Ground, mut candidate: Candidate, mut round: Round) -> Walk {
        let own = candidate.attempt;
        if !g.hope.is_empty() && round.via.is_none() {
            // What has just become ready is tried in this round, and this candidate is alone no more.
            round.admit(g.hope, g.walk);
            if !candidate.connecting {
                candidate.deadline = candidate.deadline.min(candidate.born + self.dial_limit(g, candidate.interface));
            }
        }
        if let Some(reason) = g.interfaces.dead(candidate.interface) {
            g.abandoned |= candidate.connecting;
            g.turn.ask(Action::HangUp { attempt: own, goodbye: Goodbye::Abort });
            return self.candidate_failed(g, candidate, round, reason);
        }
        let ended = match *g.event {
            Event::DialFailed { attempt, .. } | Event::Closed { attempt, .. } => attempt == own,
            _ => false,
        };
        if round.via.is_none() && !ended && !self.wants(g) {
            g.turn.ask(Action::HangUp { attempt: own, goodbye: Goodbye::Abort });
            g.abandoned |= candidate.connecting;
            g.line = Some(Line::Shut);
            return Walk::Resting;
        }
        match *g.event {
            Event::DialProgressed { attempt, step } if attempt == own => candidate.step = step,
            Event::Dialled { attempt, measure } if attempt == own && !candidate.connecting => {
                g.reach.good(candidate.interface);
                g.reach.measured(candidate.interface, measure);
                self.say_connect(g, &mut candidate);
            }
            Event::DialFailed { attempt, reason, .. } | Event::Closed { attempt, reason, .. } if attempt == own => {
                return self.candidate_failed(g, candidate, round, reason);
            }
            Event::Connected { attempt, present, window, keep_alive } if attempt == own && candidate.connecting => {
                return self.connected(g, &candidate, round.via, present, window, keep_alive);
            }
            _ => {}
        }
        if g.turn.now >= candidate.deadline {
            g.abandoned |= candidate.connecting;
            g.turn.ask(Action::HangUp { attempt: own, goodbye: Goodbye::Abort });
            let reason = candidate.timed_out();
            return self.candidate_failed(g, candidate, round, reason);
        }
        Walk::Trying { candidate, round }
    }

    /// Sends CONNECT on a dialled connection.
    pub fn say_connect(&mut self, g: &mut Ground, candidate: &mut Candidate) {
        candidate.connecting = true;
        candidate.step = Step::Handshake;
        candidate.deadline = g.turn.now
            + match candidate.waited {
                // If nobody is there any more, a new connection is soon made.
                true => {
                    let limit = rescue_limit(g.interfaces.class(candidate.interface));
                    g.reach.quality(candidate.interface).round_trip.map_or(limit, |r| limit.min(r * 2 + WAITED_LIMIT))
                }
                false if self.paths_are_dying(g) && g.ready_count() > 1 => CONNACK_SOON,
                false => CONNACK_LIMIT,
            };
        g.turn.ask(Action::Connect {
            attempt: candidate.attempt,
            version: candidate.version,
            keep_alive: g.uplink(candidate.interface).keep_alive,
        });
        if let Some(line) = self.early(candidate) {
            g.line = Some(line);
        }
    }

    /// Where a session is resumed, messages go out right behind CONNECT, within what the server last allowed (R-CS-4). A
    /// server that has forgotten us takes them all the same; one that refuses us has taken none.
    pub fn early(&self, candidate: &Candidate) -> Option<Line> {
        let window = *self.windows.get(&candidate.server)?;
        let known = self.versions.get(&candidate.server) == Some(&candidate.version);
        (candidate.connecting && known).then_some(Line::Open {
            attempt: candidate.attempt,
            interface: candidate.interface,
            window,
        })
    }

    /// The version that a server is known to speak, else 5.
    fn version(&self, server: u8, now: Instant) -> Version {
        let doubtful = self.guessed.get(&server).is_some_and(|since| now.since(*since) >= GUESS_HOLDS);
        self.versions.get(&server).copied().filter(|_| !doubtful).unwrap_or(Version::V5)
    }

    /// A server has said yes to this version. What is not 5 and it never asked for, only its silence suggests.
    pub fn spoke(&mut self, candidate: &Candidate, now: Instant) {
        let Candidate { server, version, .. } = *candidate;
        let before = self.versions.insert(server, version);
        if version == Version::V5 {
            self.guessed.remove(&server);
        } else if candidate.other_version && before != Some(version) {
            self.guessed.insert(server, now);
        }
    }

    pub fn candidate_failed(&mut self, g: &mut Ground, candidate: Candidate, mut round: Round, reason: Reason) -> Walk {
        let now = g.turn.now;
        // What went out right behind CONNECT waits again.
        g.line = Some(Line::Shut);
        if candidate.waited && g.interfaces.readiness(candidate.interface) == Readiness::Ready {
            let Candidate { interface, server, servers_left, .. } = candidate;
            let mut walk = self.dial(g, round, interface, server, servers_left, None);
            if let Walk::Trying { candidate, .. } = &mut walk {
                // What waited may not have been stale but the path dead.
                candidate.deadline = candidate.deadline.min(now + rescue_limit(g.interfaces.class(interface)));
            }
            return walk;
        }
        g.reach.bad(now, candidate.interface, reason);
        if self.wants(g) {
            g.outages.began(g.turn, self.started, reason, false);
        }
        g.outages.failed(reason);
        if reason == Reason::Refused {
            // Nobody listened for a moment: it was a restart, and no twin.
            self.kicks = 0;
        }
        round.note(reason);
        // A server that knows only 3.1.1 says so, or hangs up without a word. One that hangs up once is being stopped.
        let silent_refusal = candidate.connecting
            && reason == Reason::ServerShutDown
            && self.failed_rounds % OTHER_VERSION_EVERY == OTHER_VERSION_EVERY - 1;
        let other = match candidate.version {
            Version::V5 => Version::V311,
            Version::V311 => Version::V5,
        };
        if reason == Reason::Version {
            self.versions.insert(candidate.server, other);
        }
        if (reason == Reason::Version || silent_refusal) && !candidate.other_version {
            let Candidate { interface, server, servers_left, .. } = candidate;
            return self.dial(g, round, interface, server, servers_left, Some(other));
        }
        let blame = reason.blame();
        if candidate.servers_left > 0 && matches!(blame, Blame::Path | Blame::Server) {
            let server = (candidate.server + 1) % g.turn.settings.servers.max(1);
            let left = candidate.servers_left - 1;
            if g.interfaces.readiness(candidate.interface) == Readiness::Ready {
                return self.dial(g, round, candidate.interface, server, left, None);
            }
        }
        let walk_on = match blame {
            Blame::Path | Blame::Ours => true,
            // Where one path has just died, silence after CONNECT may well be the next one's.
            Blame::Server if reason == Reason::TimeLimit && self.paths_are_dying(g) => true,
            Blame::Server => self.other_paths_due(now) || round.only_fresh(),
            Blame::Credentials | Blame::Identity => false,
        };
        if walk_on { self.next_candidate(g, round) } else { self.round_failed(g, round) }
    }

    /// The session was lost by a fault of its path, or given up for a better one, and this is the first round since.
    fn paths_are_dying(&self, g: &Ground) -> bool {
        let by_path = |reason: Reason| match reason.blame() {
            Blame::Path | Blame::Ours => true,
            Blame::Server | Blame::Credentials | Blame::Identity => false,
        };
        self.failed_rounds == 0 && g.outages.first_cause().is_some_and(by_path)
    }

    /// The server refuses: whether it is time to see if it refuses over other paths as well. A firewall that
    /// refuses in its name looks the same.
    pub fn other_paths_due(&mut self, now: Instant) -> bool {
        let Some(since) = self.backoff.server_since() else { return false };
        let due_at = match self.last_full.filter(|at| *at >= since) {
            None => since + FIRST_LOOK,
            Some(at) if at < since + QUICK_PHASE => since + QUICK_PHASE,
            Some(at) => at + FULL_WALK_SERVER,
        };
        let due = now >= due_at;
        if due {
            self.last_full = Some(now);
        }
        due
    }

    pub fn round_failed(&mut self, g: &mut Ground, round: Round) -> Walk {
        let now = g.turn.now;
        let reason = round.verdict().unwrap_or(Reason::NoLink);
        if let Some(request) = round.via {
            return self.fail_via(g, request, reason);
        }
        self.failed_rounds = self.failed_rounds.saturating_add(1);
        self.server = 0;
        self.answer_all(g, Outcome::Failed(reason));
        let by_path = reason.blame() == Blame::Path;
        if by_path && !self.all_paths_failed {
            self.last_full = Some(now);
        }
        self.all_paths_failed = by_path;
        let wait = self.backoff.next(now, reason, g.turn.settings, g.turn.dice);
        self.told = false;
        self.since = now;
        if !self.wants(g) {
            return Walk::Resting;
        }
        Walk::Waiting { until: now + wait, cause: reason }
    }
}

/// Whether a new interface gives hope: it does unless the server itself does not believe us.
pub fn hopeful(cause: Reason) -> bool {
    match cause.blame() {
        // A firewall that refuses in the server's name is passed by over another interface.
        Blame::Path | Blame::Ours | Blame::Server => true,
        Blame::Credentials | Blame::Identity => false,
    }
}
