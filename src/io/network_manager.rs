//! NetworkManager and ModemManager, over the system bus.
//!
//! Keeps a mirror of both services' objects by their own signals, and after every change tells what became
//! different of a device. Asks NetworkManager to activate or deactivate, and never waits for the outcome: it
//! comes as the device's next stage, or as a refusal. Always true: a device is told once per difference; its
//! table entry is written before its event; while NetworkManager is away its devices stay as last reported.
//! Never decides which device to activate, and never tries an activation again.
//!
//! One mirror instead of a proxy for each device: one call and one stream of signals give a picture that is
//! whole and in order, where proxies need some ten calls a device and can miss a change between them.

mod device;
mod mirror;

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use log::warn;
use switchback_control::{Attempt, Device, Event, Name, Reason};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use zbus::message::{Flags, Type};
use zbus::{Connection, Message, MessageStream, ObjectPath};

use crate::config::Config;
use crate::io::Events;
use crate::uplinks::{Details, Uplinks};
use device::{Sighting, routable, sightings, stage, starting};
use mirror::Mirror;

/// Requests waiting for the task: more than there are interfaces on any gateway.
const REQUESTS_MAX: usize = 64;
/// Calls without an answer that are remembered; the oldest is forgotten first.
const CALLS_MAX: usize = 64;
/// Signals waiting for the task; beyond it the bus waits, and its own queue (megabytes) takes over.
const SIGNALS_MAX: usize = 1024;
/// How soon a lost bus is looked for again: watching must resume within 10 s (R-IF-18).
const RECONNECT: Duration = Duration::from_secs(1);
/// How soon a service that owns its name but has no objects yet is asked again.
const LIST_AGAIN: Duration = Duration::from_millis(100);
/// How long a service may take to list its objects before it is asked again.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// How long devices known before a restart of NetworkManager keep their last report while it has not come to
/// them: it shows a device that still works as unmanaged for some 50 ms, and must not end a session by that.
const RESTART_GRACE: Duration = Duration::from_secs(5);
/// How long a device that vanished without a word stays: a NetworkManager that is ending takes its devices off the
/// bus before its name, with links and addresses left as they are. A link that is unplugged the kernel tells at once.
const LEAVING_GRACE: Duration = Duration::from_secs(2);
/// Smaller changes of a signal are not worth waking a display.
const SIGNAL_STEP: u8 = 5;

/// `NMDeviceState`: left alone.
const UNMANAGED: i64 = 10;

const BUS: &str = "org.freedesktop.DBus";

/// Which bus to speak on.
#[derive(Clone, Debug)]
pub enum Bus {
    /// The system bus, found as every D-Bus program finds it (`DBUS_SYSTEM_BUS_ADDRESS`).
    System,
    /// The bus at this address; for tests.
    Address(String),
}

/// The handle: everything is handed over at once.
#[derive(Clone)]
pub struct NetworkManager {
    requests: mpsc::Sender<Request>,
    uplinks: Uplinks,
}

enum Request {
    Activate { interface: Name, attempt: Attempt },
    Deactivate { interface: Name },
    Compare,
}

/// Starts watching and obeying. What is known of each interface goes into `uplinks`. Ends when every handle is
/// dropped.
pub fn start(config: Arc<Config>, uplinks: Uplinks, events: Events) -> NetworkManager {
    start_on(Bus::System, config, uplinks, events)
}

/// The same on another bus.
pub fn start_on(bus: Bus, config: Arc<Config>, uplinks: Uplinks, events: Events) -> NetworkManager {
    let (requests, inbox) = mpsc::channel(REQUESTS_MAX);
    let handle = NetworkManager { requests, uplinks: uplinks.clone() };
    tokio::spawn(Watch::new(config, uplinks, events).run(bus, inbox));
    handle
}

impl NetworkManager {
    /// Has NetworkManager activate the best stored profile. Answers as `DeviceSeen`, or as `ActivationRefused` with
    /// this number. NetworkManager takes a device that is active down first.
    pub fn activate(&self, interface: Name, attempt: Attempt) {
        self.ask(Request::Activate { interface, attempt });
    }

    /// Has NetworkManager take down what is active on the interface; it may activate it again when asked.
    pub fn deactivate(&self, interface: Name) {
        self.ask(Request::Deactivate { interface });
    }

    /// Compares with what both services say now and tells the differences (R-CL-17).
    pub fn compare(&self) {
        self.ask(Request::Compare);
    }

    /// What is known of an interface.
    pub fn details(&self, interface: Name) -> Option<Details> {
        self.uplinks.details(interface)
    }

    /// A full queue means a stuck task; every attempt has its own limit, so nothing waits for ever.
    fn ask(&self, request: Request) {
        if self.requests.try_send(request).is_err() {
            warn!("NetworkManager: too many requests are waiting, one is dropped");
        }
    }
}

/// The two services.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Service {
    NetworkManager,
    ModemManager,
}

impl Service {
    const ALL: [Service; 2] = [Service::NetworkManager, Service::ModemManager];

    const fn name(self) -> &'static str {
        match self {
            Service::NetworkManager => "org.freedesktop.NetworkManager",
            Service::ModemManager => "org.freedesktop.ModemManager1",
        }
    }

    /// Where its `ObjectManager` is.
    const fn root(self) -> &'static str {
        match self {
            Service::NetworkManager => "/org/freedesktop",
            Service::ModemManager => "/org/freedesktop/ModemManager1",
        }
    }
}

/// What is known of one service on this connection.
struct Peer {
    service: Service,
    /// Its unique name while it runs. A signal of a former owner means nothing.
    owner: Option<String>,
    mirror: Mirror,
    /// The objects are listed and the mirror follows the signals.
    whole: bool,
    /// When to ask for the list (again).
    list_at: Option<Instant>,
}

impl Peer {
    fn new(service: Service, wanted: mirror::Wanted) -> Peer {
        Peer { service, owner: None, mirror: Mirror::new(wanted), whole: false, list_at: None }
    }

    /// Another process has the name, or none.
    fn owned_by(&mut self, owner: Option<String>) {
        self.list_at = owner.is_some().then(Instant::now);
        self.owner = owner;
        self.mirror.clear();
        self.whole = false;
    }
}

/// A call that has not been answered.
enum Call {
    /// Signals before its answer are older than the answer and not needed.
    List(Service),
    Activate {
        interface: Name,
        attempt: Attempt,
    },
    Deactivate,
}

/// Who took a device down, as far as its states tell over time.
#[derive(Clone, Copy, Debug, Default)]
struct Hand {
    state: i64,
    by_user: bool,
    ours: bool,
}

struct Watch {
    config: Arc<Config>,
    uplinks: Uplinks,
    events: Events,
    nm: Peer,
    mm: Peer,
    calls: BTreeMap<NonZeroU32, Call>,
    hands: BTreeMap<Name, Hand>,
    /// What was last told.
    told: BTreeMap<Name, Device>,
    running: Option<bool>,
    /// Devices from before a restart of NetworkManager that it has not come to yet, and until when that is waited for.
    held: BTreeSet<Name>,
    held_until: Option<Instant>,
    /// Devices that vanished without a word, and when that counts.
    leaving: BTreeMap<Name, Instant>,
}

/// The daemon is going away: nobody takes events or holds a handle.
struct Stopped;

impl Watch {
    fn new(config: Arc<Config>, uplinks: Uplinks, events: Events) -> Watch {
        Watch {
            config,
            uplinks,
            events,
            nm: Peer::new(Service::NetworkManager, device::NETWORK_MANAGER),
            mm: Peer::new(Service::ModemManager, device::MODEM_MANAGER),
            calls: BTreeMap::new(),
            hands: BTreeMap::new(),
            told: BTreeMap::new(),
            running: None,
            held: BTreeSet::new(),
            held_until: None,
            leaving: BTreeMap::new(),
        }
    }

    async fn run(mut self, bus: Bus, mut inbox: mpsc::Receiver<Request>) {
        loop {
            let served = match connect(&bus).await {
                Ok(connection) => self.serve(&connection, &mut inbox).await,
                Err(_) => Ok(()),
            };
            if served.is_err() || self.bus_lost(&mut inbox).await.is_err() {
                return;
            }
        }
    }

    /// One connection to the bus, from first look to loss.
    async fn serve(&mut self, connection: &Connection, inbox: &mut mpsc::Receiver<Request>) -> Result<(), Stopped> {
        // First listen, then look: nothing falls between.
        let mut messages = MessageStream::from(connection);
        if self.subscribe(connection).await.is_err() {
            return Ok(());
        }
        if self.nm.owner.is_none() {
            self.set_running(false).await?;
        }
        loop {
            let wake = self.wake();
            tokio::select! {
                message = messages.next() => match message {
                    Some(Ok(message)) => self.take(message).await?,
                    Some(Err(_)) | None => return Ok(()),
                },
                request = inbox.recv() => {
                    let Some(request) = request else { return Err(Stopped) };
                    self.obey(connection, request).await?;
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => {
                    self.list(connection).await;
                    self.look().await?;
                }
            }
        }
    }

    /// Asks for the signals of both services and finds out who runs.
    async fn subscribe(&mut self, connection: &Connection) -> zbus::Result<()> {
        let call = async |member: &'static str, text: &str| {
            connection.call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), member, &text).await
        };
        for service in Service::ALL {
            let name = service.name();
            for rule in [
                format!("type='signal',sender='{BUS}',member='NameOwnerChanged',arg0='{name}'"),
                format!("type='signal',sender='{name}',interface='{BUS}.ObjectManager'"),
                format!("type='signal',sender='{name}',interface='{BUS}.Properties'"),
            ] {
                call("AddMatch", &rule).await?;
            }
            // An error says that nobody owns it.
            let owner = call("GetNameOwner", name).await.ok().and_then(|reply| reply.body().deserialize().ok());
            self.peer(service).owned_by(owner);
        }
        Ok(())
    }

    /// What the bus brought.
    async fn take(&mut self, message: Message) -> Result<(), Stopped> {
        match message.message_type() {
            Type::MethodReturn | Type::Error => {
                let Some(call) = message.header().reply_serial().and_then(|serial| self.calls.remove(&serial)) else {
                    return Ok(());
                };
                self.answered(call, &message).await
            }
            Type::Signal => self.signalled(&message).await,
            Type::MethodCall => Ok(()),
        }
    }

    async fn answered(&mut self, call: Call, message: &Message) -> Result<(), Stopped> {
        match call {
            Call::List(service) => {
                let peer = self.peer(service);
                let good = message.message_type() == Type::MethodReturn && peer.mirror.fill(message);
                // NetworkManager's name can be owned before its root object is there.
                if good && (service == Service::ModemManager || starting(&peer.mirror).is_some()) {
                    peer.whole = true;
                    peer.list_at = None;
                    self.look().await
                } else {
                    peer.list_at = peer.owner.is_some().then(|| Instant::now() + LIST_AGAIN);
                    Ok(())
                }
            }
            Call::Activate { interface, attempt } if message.message_type() == Type::Error => {
                let reason = refusal(message);
                self.send(Event::ActivationRefused { interface, attempt, reason }).await
            }
            Call::Activate { .. } | Call::Deactivate => Ok(()),
        }
    }

    async fn signalled(&mut self, message: &Message) -> Result<(), Stopped> {
        let header = message.header();
        let Some(sender) = header.sender().map(|sender| sender.as_str()) else { return Ok(()) };
        if sender == BUS {
            let Ok((name, _, owner)) = message.body().deserialize::<(String, String, String)>() else { return Ok(()) };
            let Some(service) = Service::ALL.into_iter().find(|service| service.name() == name) else { return Ok(()) };
            let peer = self.peer(service);
            peer.owned_by(Some(owner).filter(|owner| !owner.is_empty()));
            if service == Service::NetworkManager && peer.owner.is_none() {
                self.refuse_all().await?;
                self.set_running(false).await?;
            }
            // ModemManager's leaving is told by NetworkManager, which drops its device.
            return Ok(());
        }
        let changed = [&mut self.nm, &mut self.mm]
            .into_iter()
            .find(|peer| peer.owner.as_deref() == Some(sender))
            .is_some_and(|peer| peer.whole && peer.mirror.apply(message));
        if changed { self.look().await } else { Ok(()) }
    }

    async fn obey(&mut self, connection: &Connection, request: Request) -> Result<(), Stopped> {
        match request {
            Request::Compare => {
                for peer in [&mut self.nm, &mut self.mm] {
                    if peer.whole {
                        peer.list_at = Some(Instant::now());
                    }
                }
            }
            Request::Activate { interface, attempt } => {
                let path = self.seen(interface).map(|seen| seen.path);
                let sent = match path.as_deref().map(ObjectPath::try_from) {
                    Some(Ok(device)) => {
                        // No profile named: the best available one. No specific object: the best access point.
                        let body = (nowhere(), device, nowhere());
                        self.call(connection, "ActivateConnection", &body, Call::Activate { interface, attempt }).await
                    }
                    Some(Err(_)) | None => false,
                };
                if !sent {
                    let reason = self.absent(interface);
                    self.send(Event::ActivationRefused { interface, attempt, reason }).await?;
                }
            }
            Request::Deactivate { interface } => {
                let active = self.seen(interface).and_then(|seen| seen.active);
                if let Some(Ok(active)) = active.as_deref().map(ObjectPath::try_from) {
                    // NetworkManager will give the same reason as for a deactivation by an operator.
                    self.hands.entry(interface).or_default().ours = true;
                    self.call(connection, "DeactivateConnection", &(active,), Call::Deactivate).await;
                }
            }
        }
        Ok(())
    }

    /// Calls NetworkManager; the answer comes with the other messages, in its place among them.
    async fn call<B>(&mut self, connection: &Connection, member: &'static str, body: &B, call: Call) -> bool
    where
        B: serde::Serialize + zbus::Type,
    {
        let name = Service::NetworkManager.name();
        self.send_call(connection, (name, "/org/freedesktop/NetworkManager", name, member), body, call).await
    }

    async fn send_call<B>(
        &mut self,
        connection: &Connection,
        (destination, path, interface, member): (&'static str, &'static str, &'static str, &'static str),
        body: &B,
        call: Call,
    ) -> bool
    where
        B: serde::Serialize + zbus::Type,
    {
        // Never the cause that a service is started: whether it runs is the system's affair.
        let message = Message::method_call(path, member)
            .destination(destination)
            .interface(interface)
            .with_flags(Flags::NO_AUTO_START)
            .build(body);
        let Ok(message) = message else { return false };
        if self.calls.len() >= CALLS_MAX {
            self.calls.pop_first();
        }
        self.calls.insert(message.primary_header().serial_num(), call);
        connection.send(&message).await.is_ok()
    }

    /// Asks for the objects of every service whose time has come.
    async fn list(&mut self, connection: &Connection) {
        let now = Instant::now();
        for service in Service::ALL {
            let peer = self.peer(service);
            if peer.list_at.is_none_or(|at| at > now) {
                continue;
            }
            // Until it answers, the mirror follows the signals as before; when it does not, it is asked again.
            peer.list_at = Some(now + LIST_LIMIT);
            self.calls.retain(|_, call| !matches!(call, Call::List(listed) if *listed == service));
            let to = (service.name(), service.root(), "org.freedesktop.DBus.ObjectManager", "GetManagedObjects");
            self.send_call(connection, to, &(), Call::List(service)).await;
        }
    }

    /// When something is due by itself.
    fn wake(&self) -> Option<Instant> {
        let leaving = self.leaving.values().min().copied();
        [self.nm.list_at, self.mm.list_at, self.held_until, leaving].into_iter().flatten().min()
    }

    /// Tells what has changed since it was last told.
    async fn look(&mut self) -> Result<(), Stopped> {
        if !self.nm.whole {
            return Ok(());
        }
        if self.running != Some(true) {
            self.returned();
            self.send(Event::NetworkManagerChanged { running: true }).await?;
        }
        let seen = sightings(&self.nm.mirror, &self.mm.mirror, &self.config);
        self.let_go(&seen);
        for interface in self.gone(&seen) {
            self.told.remove(&interface);
            self.hands.remove(&interface);
            self.uplinks.remove(interface);
            self.send(Event::DeviceGone { interface }).await?;
        }
        for (interface, sighting) in seen {
            if !self.held.contains(&interface) {
                self.tell(interface, sighting).await?;
            }
        }
        self.uplinks.set_network_manager(true);
        Ok(())
    }

    /// Devices that are gone for good.
    fn gone(&mut self, seen: &BTreeMap<Name, Sighting>) -> Vec<Name> {
        let now = Instant::now();
        self.leaving.retain(|name, _| !seen.contains_key(name));
        let mut gone = Vec::new();
        for name in self.told.keys().filter(|name| !seen.contains_key(name) && !self.held.contains(name)) {
            // A device that is taken away is unmanaged first.
            let said = self.hands.get(name).is_some_and(|hand| hand.state <= UNMANAGED);
            if said || *self.leaving.entry(*name).or_insert(now + LEAVING_GRACE) <= now {
                gone.push(*name);
            }
        }
        gone.iter().for_each(|name| {
            self.leaving.remove(name);
        });
        gone
    }

    async fn tell(&mut self, interface: Name, seen: Sighting) -> Result<(), Stopped> {
        let hand = self.hands.entry(interface).or_default();
        hand.watch(&seen);
        let device = Device {
            class: seen.details.class,
            ip_interface: Some(seen.details.ip_interface).filter(|ip| *ip != interface),
            stage: stage(&seen, hand.by_user),
            address: seen.details.addresses.iter().any(routable),
            metered: seen.metered,
        };
        self.note(interface, seen.details);
        if self.told.get(&interface) != Some(&device) {
            self.told.insert(interface, device);
            self.send(Event::DeviceSeen { interface, device }).await?;
        }
        Ok(())
    }

    /// Writes the table, but not for a signal that only trembles.
    fn note(&self, interface: Name, mut new: Details) {
        let old = self.uplinks.details(interface);
        if let Some((before, after)) = old.as_ref().and_then(|old| Some((old.signal?, new.signal?)))
            && before.abs_diff(after) < SIGNAL_STEP
        {
            new.signal = Some(before);
        }
        if old.as_ref() != Some(&new) {
            self.uplinks.set(interface, new);
        }
    }

    /// NetworkManager is back: what it says of devices it knew before waits until it has come to them.
    fn returned(&mut self) {
        self.running = Some(true);
        self.hands.clear();
        self.held = self.told.keys().copied().collect();
        self.held_until = (!self.held.is_empty()).then(|| Instant::now() + RESTART_GRACE);
        self.leaving.clear();
    }

    /// Lets go of held devices that are active again, and of all when the grace is over or NetworkManager has started.
    fn let_go(&mut self, seen: &BTreeMap<Name, Sighting>) {
        let over = self.held_until.is_some_and(|until| until <= Instant::now());
        if over || starting(&self.nm.mirror) == Some(false) {
            self.held.clear();
        }
        self.held.retain(|name| seen.get(name).is_none_or(|sighting| sighting.state < 100));
        if self.held.is_empty() {
            self.held_until = None;
        }
    }

    /// The bus went away or was never there. Waits a little, refusing what is asked meanwhile.
    async fn bus_lost(&mut self, inbox: &mut mpsc::Receiver<Request>) -> Result<(), Stopped> {
        self.nm.owned_by(None);
        self.mm.owned_by(None);
        self.refuse_all().await?;
        self.set_running(false).await?;
        let again = Instant::now() + RECONNECT;
        loop {
            tokio::select! {
                () = sleep_until(again) => return Ok(()),
                request = inbox.recv() => match request {
                    Some(Request::Activate { interface, attempt }) => {
                        let reason = self.absent(interface);
                        self.send(Event::ActivationRefused { interface, attempt, reason }).await?;
                    }
                    Some(Request::Deactivate { .. } | Request::Compare) => {}
                    None => return Err(Stopped),
                },
            }
        }
    }

    /// Nobody will answer the calls under way.
    async fn refuse_all(&mut self) -> Result<(), Stopped> {
        for (_, call) in std::mem::take(&mut self.calls) {
            if let Call::Activate { interface, attempt } = call {
                let reason = self.absent(interface);
                self.send(Event::ActivationRefused { interface, attempt, reason }).await?;
            }
        }
        Ok(())
    }

    async fn set_running(&mut self, running: bool) -> Result<(), Stopped> {
        if self.running == Some(running) {
            return Ok(());
        }
        self.running = Some(running);
        self.leaving.clear();
        self.uplinks.set_network_manager(running);
        self.send(Event::NetworkManagerChanged { running }).await
    }

    /// Why nothing can be activated: NetworkManager is not there, or does not have the device.
    fn absent(&self, interface: Name) -> Reason {
        match self.uplinks.details(interface).map(|details| details.class) {
            Some(switchback_control::Class::Cell) if self.nm.whole => Reason::NoModem,
            Some(_) if self.nm.whole => Reason::NoLink,
            Some(_) | None => Reason::NoProfile,
        }
    }

    fn seen(&self, interface: Name) -> Option<Sighting> {
        sightings(&self.nm.mirror, &self.mm.mirror, &self.config).remove(&interface)
    }

    fn peer(&mut self, service: Service) -> &mut Peer {
        let peer = match service {
            Service::NetworkManager => &mut self.nm,
            Service::ModemManager => &mut self.mm,
        };
        debug_assert_eq!(peer.service, service);
        peer
    }

    async fn send(&self, event: Event) -> Result<(), Stopped> {
        self.events.send(event).await.map_err(|_| Stopped)
    }
}

impl Hand {
    /// Follows a device from state to state. At first sight only a device that may not autoconnect counts as
    /// taken down by an operator: otherwise it may have been us, before a restart.
    fn watch(&mut self, seen: &Sighting) {
        if seen.state == self.state {
            return;
        }
        let first = std::mem::replace(&mut self.state, seen.state) == 0;
        match seen.state {
            30 | 110 if seen.reason == device::REASON_USER => {
                self.by_user = !self.ours && (!first || !seen.autoconnect);
            }
            // Without a cable, NetworkManager keeps in mind that it may not autoconnect; without that, it is new.
            10 | 20 => self.by_user = self.by_user && !seen.autoconnect,
            40..=100 => *self = Hand { state: seen.state, by_user: false, ours: false },
            _ => {}
        }
    }
}

/// Connects, with room for a burst of signals.
async fn connect(bus: &Bus) -> zbus::Result<Connection> {
    let builder = match bus {
        Bus::System => zbus::connection::Builder::system(),
        Bus::Address(address) => zbus::connection::Builder::address(address.as_str()),
    };
    let signals = std::num::NonZeroUsize::new(SIGNALS_MAX).unwrap_or(std::num::NonZeroUsize::MIN);
    builder.max_queued(signals).method_timeout(LIST_LIMIT).build().await
}

/// D-Bus's "no object".
fn nowhere() -> ObjectPath<'static> {
    ObjectPath::from_static_str_unchecked("/")
}

/// Why NetworkManager would not start an activation.
fn refusal(error: &Message) -> Reason {
    let header = error.header();
    let name = header.error_name().map(|name| name.as_str()).unwrap_or_default();
    match name.rsplit('.').next() {
        Some("PermissionDenied" | "AccessDenied") => {
            // A person must act: the polkit rule of the package is missing or was changed.
            warn!("NetworkManager does not let this user activate connections ({name}); see the polkit rule");
            Reason::NoProfile
        }
        Some("UnknownDevice" | "UnknownObject") => Reason::NoLink,
        _ => Reason::NoProfile,
    }
}
