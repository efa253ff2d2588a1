//! Evidence that the cloud answers through an interface, and what it is worth.
//!
//! Remembers per interface the last good and bad evidence, how often a return to it failed, and how often it was
//! suspected in vain. Decides one thing: from when on an interface may be trusted with traffic again (hold-down,
//! R-FB-2, R-FB-4). Evidence comes from our own handshakes and sessions only; what NetworkManager believes about
//! connectivity never enters (R-FX-5).

use alloc::collections::BTreeMap;
use core::time::Duration;

use crate::bounds::PROOFS;
use crate::event::Measure;
use crate::name::Name;
use crate::quality::{Lateness, Quality};
use crate::reason::{Blame, Reason};
use crate::time::Instant;

/// A return that fails within this long counts as failed (R-FB-4).
const RETURN_PROVES: Duration = Duration::from_secs(300);
/// Good use this long forgets failed returns.
const RETURN_FORGIVEN: Duration = Duration::from_secs(3600);
/// The longest hold-down that doubling reaches.
const HOLD_MAX: Duration = Duration::from_secs(3600);
/// The time between two handshakes that prove a better interface (R-FB-2).
const BETWEEN_PROOFS: Duration = Duration::from_secs(1);
/// For each return that failed it is watched longer: so many more, this far apart, until the watch outlasts the rhythm in
/// which it comes and goes (R-FX-9).
const PROOFS_MORE: u32 = 4;
const PROOFS_MOST: u32 = 14;
const BETWEEN_MORE_PROOFS: Duration = Duration::from_secs(8);
const BETWEEN_METERED_PROOFS: Duration = Duration::from_secs(30);
/// A link that has come back more often than this, each time within `BLINK_KEPT` of the last, blinks: each further time
/// doubles its hold-down, up to `BLINK_HOLD_MAX`.
const BLINKS_FREE: u32 = 2;
const BLINK_KEPT: Duration = Duration::from_secs(600);
const BLINK_HOLD_MAX: Duration = Duration::from_secs(600);
/// Suspicions in vain are forgotten after this long without one.
const VAIN_FORGOTTEN: Duration = Duration::from_secs(300);
/// How often a metered interface is tried while a lower one serves (R-FB-1, R-FX-14).
const METERED_TRIAL: Duration = Duration::from_secs(300);
/// After this many failed trials in a row an unmetered interface, too, is tried only so often.
const PATIENT_TRIALS: u32 = 40;

/// What is known of one interface.
#[derive(Clone, Copy, Debug, Default)]
pub struct Evidence {
    /// When its path last failed; what the server says is no fault of the path.
    last_bad: Option<Instant>,
    /// Why the last try through it failed, unless one succeeded since: for displays.
    failure: Option<Reason>,
    moved_here: Option<Instant>,
    returns_failed: u32,
    trials_failed: u32,
    /// How often it has become ready, each time soon after the last, and when last.
    blinks: u32,
    last_blink: Option<Instant>,
    vain: u32,
    last_vain: Option<Instant>,
    /// How late the latest answer through it came, and when: what a new session on it is told.
    lateness: Lateness,
    quality: Quality,
}

/// Everything known, by interface.
#[derive(Debug, Default)]
pub struct Reachability {
    evidence: BTreeMap<Name, Evidence>,
}

impl Reachability {
    /// The cloud answered through it: a completed handshake, or a CONNACK.
    pub fn good(&mut self, name: Name) {
        // One answer does not make it calm: the hold-down goes on counting from the last failure.
        let evidence = self.entry(name);
        evidence.failure = None;
        evidence.trials_failed = 0;
    }

    /// A dial or a session through it failed. Only a fault of the path counts against the path.
    pub fn bad(&mut self, now: Instant, name: Name, reason: Reason) {
        let evidence = self.entry(name);
        evidence.failure = Some(reason);
        match reason.blame() {
            Blame::Path => {
                evidence.last_bad = Some(now);
                evidence.note_failed_return(now);
            }
            Blame::Server | Blame::Credentials | Blame::Identity | Blame::Ours => {}
        }
    }

    /// A trial of a better interface failed.
    pub fn trial_failed(&mut self, now: Instant, name: Name, reason: Reason) {
        let evidence = self.entry(name);
        evidence.failure = Some(reason);
        evidence.last_bad = Some(now);
        evidence.trials_failed = evidence.trials_failed.saturating_add(1);
    }

    /// Traffic returned to it.
    pub fn returned(&mut self, now: Instant, name: Name) {
        self.entry(name).moved_here = Some(now);
    }

    /// Link and address are there, again or for the first time.
    pub fn appeared(&mut self, now: Instant, name: Name) {
        let evidence = self.entry(name);
        let again = evidence.last_blink.is_some_and(|at| now.since(at) < BLINK_KEPT);
        evidence.blinks = if again { evidence.blinks.saturating_add(1) } else { 1 };
        evidence.last_blink = Some(now);
    }

    /// It was suspected, and answered after all.
    pub fn suspected_in_vain(&mut self, now: Instant, name: Name) {
        let evidence = self.entry(name);
        evidence.vain = evidence.vain_at(now).saturating_add(1);
        evidence.last_vain = Some(now);
    }

    /// How often it was suspected in vain lately.
    pub fn vain(&self, now: Instant, name: Name) -> u32 {
        self.evidence.get(&name).map_or(0, |e| e.vain_at(now))
    }

    /// An answer through it came so late.
    pub fn late(&mut self, name: Name, lateness: Lateness) {
        self.entry(name).lateness = lateness;
    }

    /// How late the latest answer through it came.
    pub fn lateness(&self, name: Name) -> Lateness {
        self.evidence.get(&name).map_or(Lateness::default(), |e| e.lateness)
    }

    /// A handshake through it, or a while of a session, has shown this.
    pub fn measured(&mut self, name: Name, measure: Measure) {
        self.entry(name).quality.note(measure);
    }

    /// How good its path is, as far as measured.
    pub fn quality(&self, name: Name) -> Quality {
        self.evidence.get(&name).map_or(Quality::default(), |e| e.quality)
    }

    /// Why the last try through it failed, unless one succeeded since.
    pub fn last_failure(&self, name: Name) -> Option<Reason> {
        self.evidence.get(&name).and_then(|e| e.failure)
    }

    /// From when on it may be tried for a return, when it has been ready since `ready_since`.
    pub fn trusted_from(&self, name: Name, ready_since: Instant, hold_down: Duration, metered: bool) -> Instant {
        let evidence = self.evidence.get(&name).copied().unwrap_or_default();
        let calm_since = evidence.last_bad.map_or(ready_since, |at| at.max(ready_since));
        let doubled = hold_down.saturating_mul(1 << evidence.returns_failed.min(16)).min(HOLD_MAX.max(hold_down));
        let blinking = evidence.blinks.saturating_sub(BLINKS_FREE).min(16);
        let doubled = doubled.max(hold_down.saturating_mul(1 << blinking).min(BLINK_HOLD_MAX));
        let tired = evidence.trials_failed > 0 && (metered || evidence.trials_failed > PATIENT_TRIALS);
        calm_since + if tired { doubled.max(METERED_TRIAL) } else { doubled }
    }

    /// How many handshakes in a row it must complete before traffic returns to it, and the time between two.
    pub fn proofs(&self, name: Name, metered: bool) -> (u32, Duration) {
        match self.evidence.get(&name).map_or(0, |e| e.returns_failed) {
            0 => (PROOFS, BETWEEN_PROOFS),
            // Each costs a handshake; the rhythm of a metered one is caught by the time between them.
            failed if metered => (PROOFS + failed.min(2), BETWEEN_METERED_PROOFS),
            failed => (PROOFS_MOST.min(PROOFS + PROOFS_MORE * failed.min(PROOFS_MOST)), BETWEEN_MORE_PROOFS),
        }
    }

    /// The interface is gone: so is what was known of it, but for its record of failed returns and of blinking.
    pub fn vanished(&mut self, name: Name) {
        if let Some(evidence) = self.evidence.get_mut(&name) {
            let Evidence { returns_failed, blinks, last_blink, .. } = *evidence;
            *evidence = Evidence { returns_failed, blinks, last_blink, ..Evidence::default() };
        }
    }

    fn entry(&mut self, name: Name) -> &mut Evidence {
        self.evidence.entry(name).or_default()
    }
}

impl Evidence {
    fn note_failed_return(&mut self, now: Instant) {
        let Some(at) = self.moved_here.take() else { return };
        let used = now.since(at);
        if used < RETURN_PROVES {
            self.returns_failed = self.returns_failed.saturating_add(1);
        } else if used > RETURN_FORGIVEN {
            self.returns_failed = 0;
        }
    }

    fn vain_at(&self, now: Instant) -> u32 {
        match self.last_vain {
            Some(at) if now.since(at) < VAIN_FORGOTTEN => self.vain,
            Some(_) | None => 0,
        }
    }
}
