//! The one loop: wait, step, note, perform, show.
//!
//! Everything that happens comes in here as an event, is given to the heart, and what the heart asks for is handed to
//! the adapters, in its order. Always true: one event at a time; only a changed `Saved` is waited for, and only for a
//! moment; the watchdog is fed here and nowhere else. There is no `if` about networking in this file.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use switchback_control::action::SAVE_LIMIT;
use switchback_control::{Action, Command, Control, Event, Instant, Notice, Saved};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::api::Call;
use crate::corridor::{Corridor, Draft, Offer};
use crate::desk::Desk;
use crate::io::applications::Offers;
use crate::io::black_box::{BlackBox, Kind};
use crate::io::clock::eras::Found;
use crate::io::clock::{self, Alarm, Steps};
use crate::io::cloud::Cloud;
use crate::io::network_manager::NetworkManager;
use crate::io::rtnetlink::Rtnetlink;
use crate::io::storage::SavedFile;
use crate::io::systemd;
use crate::journal::Journal;
use crate::outbox::asides;
use crate::picture::Picture;
use crate::standing::{Reread, Standing};
use crate::starts::Cause;

/// Events taken in before displays are renewed: a storm of messages must not starve them.
const BURST_MAX: usize = 256;
/// How often the watchdog is fed and ages are looked at, at least.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the picture of the world is compared with the kernel's and NetworkManager's: while not online, and
/// while online (R-CL-17).
const COMPARE_OFFLINE: Duration = Duration::from_secs(5);
const COMPARE_ONLINE: Duration = Duration::from_secs(60);
/// How often what is known of the clock is written down: a last known time that is an hour old is good enough to tell a clock
/// that is years behind. And how often at most, should somebody set it again and again.
const KEEP_CLOCK_EVERY: Duration = Duration::from_secs(3600);
const KEEP_CLOCK_LEAST: Duration = Duration::from_secs(60);

/// The adapters that obey.
pub struct Hands {
    pub network_manager: NetworkManager,
    /// Absent where the kernel gave no netlink socket; NetworkManager's word must do then.
    pub links: Option<Rtnetlink>,
    pub cloud: Cloud,
    pub corridor: Corridor,
    pub saved: Arc<SavedFile>,
}

/// The loop and what it turns.
pub struct Daemon {
    pub control: Control,
    pub hands: Hands,
    pub events: mpsc::Receiver<Event>,
    pub calls: mpsc::Receiver<Call>,
    pub desk: Desk,
    pub journal: Journal,
    pub picture: Picture,
    pub notices: broadcast::Sender<Notice>,
    pub black_box: BlackBox,
    pub state_file: PathBuf,
    pub state_dir: PathBuf,
    /// Something that displays show at once has changed since they were last renewed.
    pub changed: bool,
    /// What it runs with, and why it was started.
    pub standing: Standing,
    pub cause: Cause,
    /// Safe mode is over: to begin anew.
    pub renew: Arc<Notify>,
}

/// Why the loop has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Stopped,
    /// To begin anew, with another configuration.
    Renewed,
}

impl Offers for Corridor {
    fn offer(&self, draft: Draft) -> impl Future<Output = Offer> + Send {
        Corridor::offer(self, draft)
    }
}

/// What the loop waits for.
enum Woken {
    Event(Event),
    Call(Call),
    Heartbeat,
    Reload,
    Renew,
    /// Somebody may have set the wall clock.
    ClockStepped,
}

impl Daemon {
    /// Turns until the heart says exit.
    ///
    /// # Errors
    /// When the system gives no timer or signal handler.
    pub async fn run(mut self) -> std::io::Result<Ended> {
        let alarm = Alarm::new()?;
        let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
        let [terminate, interrupt, hangup] = kinds.map(signal);
        let mut signals = [terminate?, interrupt?, hangup?];
        let mut ended = Ended::Stopped;
        let mut heartbeat = interval(systemd::watchdog_interval().unwrap_or(HEARTBEAT).min(HEARTBEAT));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut compared = clock::now();
        let steps = Steps::new()?;
        // Soon: a kill in the first minute must not leave a later start without what stamps of this boot are read by.
        let mut keep_at = clock::now();
        self.stand();
        self.show();
        systemd::ready();
        let mut running = self.turn(Event::DeadlineReached).await;
        while running {
            alarm.set(self.control.next_deadline())?;
            match self.wait(&alarm, &steps, &mut signals, &mut heartbeat).await {
                Woken::ClockStepped => running = self.look_at_clock(true, &mut keep_at).await,
                Woken::Reload => {
                    if self.reload() {
                        self.renew.notify_one();
                    }
                }
                Woken::Renew => {
                    ended = Ended::Renewed;
                    running = self.turn(Event::Asked(Command::Stop)).await;
                }
                Woken::Event(event) => running = self.turn(event).await,
                Woken::Call(call) => running = self.answer(call).await,
                Woken::Heartbeat => {
                    systemd::feed();
                    self.count(false);
                    self.offer_lines();
                    self.compare_now_and_then(&mut compared);
                    running = self.look_at_clock(false, &mut keep_at).await;
                }
            }
            for _ in 1..BURST_MAX {
                match self.events.try_recv() {
                    Ok(event) if running => running = self.turn(event).await,
                    Ok(_) | Err(_) => break,
                }
            }
            self.show();
        }
        match ended {
            Ended::Stopped => systemd::stopping(),
            Ended::Renewed => systemd::reloading(),
        }
        self.count(ended == Ended::Stopped);
        self.black_box.close();
        Ok(ended)
    }

    /// Writes down what became of messages.
    fn count(&mut self, end: bool) {
        let classes = self.picture.classes(&self.control, &self.hands);
        self.journal.count(&self.black_box, &self.control, &classes, end);
    }

    /// Facts before deadlines: what came in while we were busy may be the answer that a deadline waits for.
    async fn wait(
        &mut self,
        alarm: &Alarm,
        steps: &Steps,
        signals: &mut [Signal; 3],
        heartbeat: &mut tokio::time::Interval,
    ) -> Woken {
        let [terminate, interrupt, hangup] = signals;
        let renew = self.renew.clone();
        tokio::select! {
            biased;
            Some(event) = self.events.recv() => Woken::Event(event),
            Some(call) = self.calls.recv() => Woken::Call(call),
            _ = terminate.recv() => Woken::Event(Event::Asked(Command::Stop)),
            _ = interrupt.recv() => Woken::Event(Event::Asked(Command::Stop)),
            _ = hangup.recv() => Woken::Reload,
            () = renew.notified() => Woken::Renew,
            () = steps.next() => Woken::ClockStepped,
            () = alarm.rung() => Woken::Event(Event::DeadlineReached),
            _ = heartbeat.tick() => Woken::Heartbeat,
        }
    }

    /// One turn of the wheel; false when it was the last.
    async fn turn(&mut self, event: Event) -> bool {
        let actions = self.control.step(clock::now(), &event);
        self.changed |= self.journal.note(&self.black_box, &event, &actions, &self.control);
        let mut running = true;
        for action in actions {
            running &= self.perform(action).await;
        }
        self.desk.after_turn(&self.control);
        self.offer_lines();
        running
    }

    /// A call from one of the front doors: answered at once, or turned into events and answered later.
    async fn answer(&mut self, call: Call) -> bool {
        let mut running = true;
        for event in self.desk.take(call, &self.control, &self.hands, &self.picture, &self.black_box) {
            running &= self.turn(event).await;
        }
        running
    }

    /// `SIGHUP`: reads the configuration again; whether it is another one, and good. A bad one changes nothing.
    fn reload(&mut self) -> bool {
        systemd::reloading();
        match self.standing.reread() {
            Reread::Changed(keys) => {
                let keys = if keys.is_empty() { "as written".into() } else { keys.join(", ") };
                log::info!("the configuration is another one ({keys}): the session is opened anew with it");
                self.black_box.note(Kind::Note, &format!("reload: {keys}"));
                return true;
            }
            Reread::Same => log::info!("the configuration says what it said; nothing to do"),
            Reread::Refused => self.standing.errors.iter().for_each(|error| log::error!("{error}")),
        }
        self.stand();
        systemd::ready();
        false
    }

    /// Looks whether the wall clock has been set, and writes down what is known of it: at each change, and now and then.
    async fn look_at_clock(&mut self, stepped: bool, keep_at: &mut Instant) -> bool {
        let found = clock::look(stepped);
        let told = match found {
            Found::Nothing => None,
            Found::Set => Some("the clock is set: times of messages are right from now on"),
            Found::Moved => Some("the clock was set to another time"),
            Found::Lost => Some("the clock shows a time that has been: it is taken for one that is not set"),
        };
        if let Some(told) = told {
            log::info!("{told}");
            self.black_box.note(Kind::Note, told);
        }
        let now = clock::now();
        if found != Found::Nothing {
            *keep_at = (*keep_at).min(now + KEEP_CLOCK_LEAST);
        }
        if now >= *keep_at {
            *keep_at = now + KEEP_CLOCK_EVERY;
            self.keep_clock();
        }
        match stepped || found == Found::Set {
            true => self.turn(Event::ClockSet).await,
            false => true,
        }
    }

    /// Nobody waits for the card.
    fn keep_clock(&self) {
        let dir = self.state_dir.clone();
        tokio::task::spawn_blocking(move || {
            if let Err(error) = clock::keep(&dir) {
                log::debug!("what is known of the clock cannot be kept: {error}");
            }
        });
    }

    /// Shows and says what it runs with.
    fn stand(&mut self) {
        self.picture.stand(&self.standing, self.cause.as_str(), asides(&self.state_dir));
        self.journal.remark(&self.black_box, self.standing.sentence());
        self.changed = true;
    }

    async fn perform(&mut self, action: Action) -> bool {
        let Hands { network_manager, cloud, corridor, .. } = &self.hands;
        match action {
            Action::Save(saved) => {
                let kept = self.save(saved).await;
                self.desk.saved(kept);
            }
            Action::Activate { interface, attempt } => network_manager.activate(interface, attempt),
            Action::Deactivate { interface } => network_manager.deactivate(interface),
            Action::Dial { interface, server, attempt } => cloud.dial(interface, server, attempt),
            Action::Connect { attempt, version, keep_alive } => cloud.connect(attempt, version, keep_alive),
            Action::HangUp { attempt, goodbye } => cloud.hang_up(attempt, goodbye),
            Action::Ping { attempt } => cloud.ping(attempt),
            Action::Measure { attempt } => cloud.measure(attempt),
            Action::Prefer { interface } => network_manager.prefer(interface),
            Action::Record(switch) => self.picture.count(&switch),
            Action::Drain { attempt } => cloud.drain(attempt),
            Action::Admit { ticket, seq } => corridor.admit(ticket, seq),
            Action::Transmit { attempt, seq, again } => cloud.transmit(attempt, seq, again),
            Action::Append { seq } => corridor.append(seq),
            Action::Accept { ticket } => corridor.accept(ticket),
            Action::Refuse { ticket, refusal } => corridor.refuse(ticket, refusal.into()),
            Action::Discard { from, through } => corridor.discard(from, through),
            Action::FindExpired { lane } => corridor.find_expired(lane),
            Action::Release { through } => corridor.release(through),
            Action::SetAside { seq } => corridor.set_aside(seq),
            Action::Answer { request, outcome } => self.desk.settle(request, outcome),
            Action::Notify(notice) => self.tell(notice),
            Action::Exit => return false,
        }
        true
    }

    /// Tells whoever listens; nobody listening is no error. An outage that is over is told to the cloud as well, as a
    /// message like any other, so that it is kept until the cloud has it (R-DG-6).
    fn tell(&mut self, notice: Notice) {
        let _ = self.notices.send(notice);
        if matches!(notice, Notice::Lost { .. }) {
            self.picture.lost(&self.control);
        }
        if notice == Notice::Restored
            && let Some(draft) = self.picture.outage_report(&self.control)
        {
            self.offer(draft);
        }
    }

    /// What the journal said and the cloud wants to know, as messages like any other.
    fn offer_lines(&mut self) {
        self.journal.lines().into_iter().for_each(|draft| self.offer(draft));
    }

    /// Our own messages; nobody waits for what becomes of them.
    fn offer(&self, draft: Draft) {
        let corridor = self.hands.corridor.clone();
        tokio::spawn(async move { corridor.offer(draft).await });
    }

    /// Makes the value durable before going on, but lets no slow card stop a switch. Says why it could not.
    async fn save(&self, saved: Saved) -> Result<(), String> {
        let file = self.hands.saved.clone();
        let written = tokio::task::spawn_blocking(move || file.save(&saved));
        let kept = match timeout(SAVE_LIMIT, written).await {
            Ok(Ok(kept)) => kept.map_err(|error| error.to_string()),
            Ok(Err(_)) | Err(_) => Err("the disk takes too long".into()),
        };
        kept.inspect_err(|why| log::error!("cannot save the failover list and its companions: {why}"))
    }

    fn show(&mut self) {
        let changed = std::mem::take(&mut self.changed);
        self.picture.renew(changed, &self.control, &self.hands, &self.state_file);
    }

    fn compare_now_and_then(&self, compared: &mut Instant) {
        let every = if self.control.status().connected { COMPARE_ONLINE } else { COMPARE_OFFLINE };
        let now = clock::now();
        if now.since(*compared) >= every {
            *compared = now;
            self.hands.network_manager.compare();
            if let Some(links) = &self.hands.links {
                links.compare();
            }
        }
    }
}
