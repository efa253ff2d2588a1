//! The task: one connection to the bus after another, two mirrors, calls under way.
//!
//! Listens first and looks afterwards. Answers to calls come in the same stream as the signals, so that a list of
//! objects stands in its place among them: signals before it are older, signals behind it are newer. Never waits
//! for an answer. Longer than most files since every way in and out of one connection stands side by side here.
//!
//! It is long because one task sees both services, and their order is what it is about.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use log::warn;
use switchback_control::{Attempt, Class, Event, Name, Reason};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};
use zbus::message::{Flags, Type};
use zbus::{Connection, Message, MessageStream, ObjectPath};

use super::device::{self, Sighting, sightings, starting};
use super::ledger::{Ledger, News};
use super::peer::{Peer, Service};
use super::routes::{Routes, Settings, ranked};
use super::{Bus, Request};
use crate::config::Config;
use crate::io::Events;
use crate::uplinks::{Details, Uplinks};

/// Calls without an answer that are remembered; the oldest is forgotten first.
const CALLS_MAX: usize = 64;
/// Signals waiting for the task; beyond it the bus waits, and its own queue (megabytes) takes over.
const SIGNALS_MAX: usize = 1024;
/// How soon a lost bus is looked for again: watching must resume within 10 s (R-IF-18).
const RECONNECT: Duration = Duration::from_secs(1);
/// How long a service may take to list its objects before it is asked again.
const LIST_LIMIT: Duration = Duration::from_secs(5);
/// How long the bus itself may take for anything.
const BUS_LIMIT: Duration = Duration::from_secs(5);
/// Smaller changes of a signal are not worth waking a display.
const SIGNAL_STEP: u8 = 5;

/// `NMDeviceReapplyFlags`, since 1.42: addresses and routes that others have added stay.
const PRESERVE_EXTERNAL_IP: u32 = 1;

const BUS: &str = "org.freedesktop.DBus";

/// A call that has not been answered.
enum Call {
    /// Signals before its answer are older than the answer and not needed.
    List(Service),
    Activate {
        interface: Name,
        attempt: Attempt,
    },
    Deactivate {
        interface: Name,
    },
    /// What is applied to the device at this path.
    Applied {
        interface: Name,
        path: String,
    },
    Reapply {
        interface: Name,
    },
}

impl Call {
    /// The device whose routes it is about.
    fn routes_of(&self) -> Option<Name> {
        match self {
            Call::Applied { interface, .. } | Call::Reapply { interface } => Some(*interface),
            Call::List(_) | Call::Activate { .. } | Call::Deactivate { .. } => None,
        }
    }
}

pub struct Watch {
    config: Arc<Config>,
    uplinks: Uplinks,
    events: Events,
    nm: Peer,
    mm: Peer,
    calls: BTreeMap<NonZeroU32, Call>,
    ledger: Ledger,
    routes: Routes,
    /// Who waits for routes to be as wanted.
    finishing: Option<oneshot::Sender<()>>,
    /// What was last told of NetworkManager itself.
    running: Option<bool>,
}

/// The daemon is going away: nobody takes events or holds a handle.
struct Stopped;

impl Watch {
    pub fn new(config: Arc<Config>, uplinks: Uplinks, events: Events) -> Watch {
        Watch {
            config,
            uplinks,
            events,
            nm: Peer::new(device::NETWORK_MANAGER),
            mm: Peer::new(device::MODEM_MANAGER),
            calls: BTreeMap::new(),
            ledger: Ledger::default(),
            routes: Routes::default(),
            finishing: None,
            running: None,
        }
    }

    /// Watches and obeys until the daemon goes away.
    pub async fn run(mut self, bus: Bus, mut inbox: mpsc::Receiver<Request>) {
        loop {
            let served = match timeout(BUS_LIMIT, connect(&bus)).await {
                Ok(Ok(connection)) => self.serve(&connection, &mut inbox).await,
                Ok(Err(_)) | Err(_) => Ok(()),
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
                    Some(Ok(message)) => self.take(connection, message).await?,
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
            self.route(connection).await;
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
            let owner = match call("GetNameOwner", name).await {
                Ok(reply) => Some(reply.body().deserialize()?),
                // The bus answered: nobody owns it.
                Err(zbus::Error::FDO(error)) if matches!(*error, zbus::fdo::Error::NameHasNoOwner(_)) => None,
                Err(error) => return Err(error),
            };
            self.peer(service).owned_by(owner);
        }
        Ok(())
    }

    /// What the bus brought.
    async fn take(&mut self, connection: &Connection, message: Message) -> Result<(), Stopped> {
        match message.message_type() {
            Type::MethodReturn | Type::Error => {
                let Some(call) = message.header().reply_serial().and_then(|serial| self.calls.remove(&serial)) else {
                    return Ok(());
                };
                self.answered(connection, call, &message).await
            }
            Type::Signal => self.signalled(&message).await,
            Type::MethodCall => Ok(()),
        }
    }

    async fn answered(&mut self, connection: &Connection, call: Call, message: &Message) -> Result<(), Stopped> {
        match call {
            Call::List(service) => {
                let peer = self.peer(service);
                let good = message.message_type() == Type::MethodReturn && peer.mirror.fill(message);
                // NetworkManager's name can be owned before its root object is there.
                if good && (service == Service::ModemManager || starting(&peer.mirror).is_some()) {
                    peer.listed();
                    self.look().await
                } else {
                    peer.again_later();
                    Ok(())
                }
            }
            Call::Activate { interface, attempt } if message.message_type() == Type::Error => {
                let reason = refusal(message);
                self.send(Event::ActivationRefused { interface, attempt, reason }).await
            }
            Call::Deactivate { interface } if message.message_type() == Type::Error => {
                self.ledger.ours(interface, false);
                Ok(())
            }
            Call::Applied { interface, path } if message.message_type() == Type::MethodReturn => {
                self.reapply(connection, interface, &path, message).await;
                Ok(())
            }
            Call::Applied { interface, .. } | Call::Reapply { interface } if message.message_type() == Type::Error => {
                unrouted(interface, message);
                Ok(())
            }
            Call::Activate { .. } | Call::Deactivate { .. } | Call::Applied { .. } | Call::Reapply { .. } => Ok(()),
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
                    let call = Call::Deactivate { interface };
                    let sent = self.call(connection, "DeactivateConnection", &(active,), call).await;
                    self.ledger.ours(interface, sent);
                }
            }
            Request::Prefer { interface } => self.routes.prefer(interface),
            Request::Finish(done) => self.finishing = Some(done),
        }
        Ok(())
    }

    /// Has the routes of whatever has become active, or of all after a new preference, looked at and put in their place.
    async fn route(&mut self, connection: &Connection) {
        if self.nm.whole && self.routes.any() {
            let seen = sightings(&self.nm.mirror, &self.mm.mirror, &self.config);
            let busy = |name| self.calls.values().any(|call| call.routes_of() == Some(name));
            for (interface, path) in self.routes.due(&seen, busy) {
                let to = (Service::NetworkManager.name(), path.as_str(), device::DEVICE, "GetAppliedConnection");
                let call = Call::Applied { interface, path: path.clone() };
                self.send_call(connection, to, &0u32, call).await;
            }
        }
        if !self.calls.values().any(|call| call.routes_of().is_some()) {
            self.finishing = None;
        }
    }

    /// Applies what is applied with other metrics, if it needs them. The version makes sure that nobody else has
    /// changed it meanwhile.
    async fn reapply(&mut self, connection: &Connection, interface: Name, path: &str, applied: &Message) {
        let Ok((settings, version)) = applied.body().deserialize::<(Settings, u64)>() else { return };
        let seen = sightings(&self.nm.mirror, &self.mm.mirror, &self.config);
        let Some(rank) = self.routes.rank(interface, &seen) else {
            warn!(
                "the host's own traffic cannot be moved to {interface}: it has an IPv6 address, which NetworkManager before \
                 1.56 would take away for seconds; ipv6.method=disabled in its profile, or a newer one, helps"
            );
            return;
        };
        if let Some(settings) = ranked(settings, rank) {
            let to = (Service::NetworkManager.name(), path, device::DEVICE, "Reapply");
            self.send_call(connection, to, &(settings, version, PRESERVE_EXTERNAL_IP), Call::Reapply { interface })
                .await;
        }
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
        (destination, path, interface, member): (&str, &str, &str, &str),
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
        [self.nm.list_at, self.mm.list_at, self.ledger.wake()].into_iter().flatten().min()
    }

    /// Tells what has changed since it was last told.
    async fn look(&mut self) -> Result<(), Stopped> {
        if !self.nm.whole {
            return Ok(());
        }
        let now = Instant::now();
        if self.running != Some(true) {
            self.running = Some(true);
            self.ledger.returned(now);
            self.send(Event::NetworkManagerChanged { running: true }).await?;
        }
        let seen = sightings(&self.nm.mirror, &self.mm.mirror, &self.config);
        let starting = starting(&self.nm.mirror) == Some(true);
        for news in self.ledger.look(seen, starting, now) {
            match news {
                News::Noted(interface, details) => self.note(interface, details),
                News::Seen(interface, device) => self.send(Event::DeviceSeen { interface, device }).await?,
                News::Unjoined(interface) => self.send(Event::AccessPointLost { interface }).await?,
                News::Gone(interface) => {
                    self.uplinks.remove(interface);
                    self.send(Event::DeviceGone { interface }).await?;
                }
            }
        }
        self.uplinks.set_network_manager(true);
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
                    Some(Request::Prefer { interface }) => self.routes.prefer(interface),
                    Some(Request::Deactivate { .. } | Request::Compare | Request::Finish(_)) => {}
                    None => return Err(Stopped),
                },
            }
        }
    }

    /// Nobody will answer the calls under way.
    async fn refuse_all(&mut self) -> Result<(), Stopped> {
        self.routes.away();
        self.finishing = None;
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
        self.ledger.away();
        self.uplinks.set_network_manager(running);
        self.send(Event::NetworkManagerChanged { running }).await
    }

    /// Why nothing can be activated: NetworkManager is not there, or does not have the device.
    fn absent(&self, interface: Name) -> Reason {
        match self.uplinks.details(interface).map(|details| details.class) {
            Some(Class::Cell) if self.nm.whole => Reason::NoModem,
            Some(_) if self.nm.whole => Reason::NoLink,
            Some(_) | None => Reason::NoProfile,
        }
    }

    fn seen(&self, interface: Name) -> Option<Sighting> {
        sightings(&self.nm.mirror, &self.mm.mirror, &self.config).remove(&interface)
    }

    fn peer(&mut self, service: Service) -> &mut Peer {
        match service {
            Service::NetworkManager => &mut self.nm,
            Service::ModemManager => &mut self.mm,
        }
    }

    async fn send(&self, event: Event) -> Result<(), Stopped> {
        self.events.send(event).await.map_err(|_| Stopped)
    }
}

/// Connects, with room for a burst of signals.
async fn connect(bus: &Bus) -> zbus::Result<Connection> {
    let builder = match bus {
        Bus::System => zbus::connection::Builder::system(),
        Bus::Address(address) => zbus::connection::Builder::address(address.as_str()),
    };
    let signals = std::num::NonZeroUsize::new(SIGNALS_MAX).unwrap_or(std::num::NonZeroUsize::MIN);
    builder.max_queued(signals).method_timeout(BUS_LIMIT).build().await
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

/// NetworkManager would not change the routes of a device. That it is active no longer is no failure.
fn unrouted(interface: Name, error: &Message) {
    let header = error.header();
    let name = header.error_name().map(|name| name.as_str()).unwrap_or_default();
    let why: String = error.body().deserialize().unwrap_or_default();
    match name.rsplit('.').next() {
        Some("NotActive" | "UnknownObject" | "UnknownMethod") => {}
        Some("PermissionDenied" | "AccessDenied") => warn!(
            "NetworkManager does not let this user change the routes of {interface} ({why}); install the polkit rule of \
             the package, or set failover.manage_routes = false"
        ),
        _ => warn!(
            "NetworkManager would not change the routes of {interface} ({name}: {why}); the host's own traffic stays \
             where it is until the next switch; `nmcli device reapply {interface}` shows whether it can"
        ),
    }
}
