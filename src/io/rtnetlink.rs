//! The kernel's links and addresses, over a route netlink socket (`rtnetlink(7)`).
//!
//! Says within milliseconds what NetworkManager says after seconds: a carrier that is lost, an address that is
//! gone. Listens first and lists afterwards, on one socket, so that everything comes in the kernel's order and
//! nothing falls between; when the kernel had to drop messages it lists again and tells the differences. Speaks
//! of IP interfaces (`wwan0`), never of control ports. While NetworkManager is not running it also tells of
//! links that NetworkManager never spoke of as unmanaged devices, so that a gateway without it works too.
//! Never changes anything in the kernel.
//!
//! The socket comes from `netlink-sys` and the few bytes are read here: the `rtnetlink` crate splits answers
//! and notifications into two unbounded queues, which loses their order, and drops a whole link when one of
//! its attributes is new to it.

mod links;
pub(crate) mod wire;

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use log::warn;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE};
use switchback_control::{Device, Event, Name, Stage};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::classify::{KernelFacts, class_by_kernel};
use crate::config::Config;
use crate::io::Events;
use crate::uplinks::Uplinks;
use links::Links;
use wire::{Envelope, Message};

/// `RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// Room for one datagram: the kernel fills at most 32 KiB of a dump into one.
const DATAGRAM_MAX: usize = 64 * 1024;
/// How soon a dead socket is replaced, and a list that failed asked for again.
const AGAIN: Duration = Duration::from_millis(200);

/// The handle.
#[derive(Clone)]
pub struct Rtnetlink {
    compare: mpsc::Sender<()>,
}

impl Rtnetlink {
    /// Compares with what the kernel says now and tells the differences (R-CL-17). One comparison at a time is enough.
    pub fn compare(&self) {
        // Full means that one is about to begin.
        let _ = self.compare.try_send(());
    }
}

/// Starts watching. Ends when every handle is dropped.
///
/// # Errors
/// The first socket could not be opened; later ones are opened again for as long as it takes.
pub fn start(config: Arc<Config>, uplinks: Uplinks, events: Events) -> io::Result<Rtnetlink> {
    let socket = open()?;
    let (compare, inbox) = mpsc::channel(1);
    let network_manager = uplinks.network_manager();
    let watch = Watch {
        config,
        uplinks,
        events,
        network_manager,
        links: Links::default(),
        devices: BTreeMap::new(),
        dump: None,
        sequence: 0,
        again: None,
    };
    tokio::spawn(watch.run(socket, inbox));
    Ok(Rtnetlink { compare })
}

/// The daemon is going away: nobody takes events or holds the handle.
struct Stopped;

/// A list under way.
#[derive(Clone, Copy)]
struct Dump {
    addresses: bool,
    sequence: u32,
    /// Something changed while the kernel was listing: it must be asked again.
    interrupted: bool,
}

struct Watch {
    config: Arc<Config>,
    uplinks: Uplinks,
    events: Events,
    /// Whether NetworkManager is running.
    network_manager: watch::Receiver<bool>,
    links: Links,
    /// What was told of links that NetworkManager never spoke of.
    devices: BTreeMap<Name, Device>,
    dump: Option<Dump>,
    sequence: u32,
    /// When to list again after a list that failed.
    again: Option<Instant>,
}

impl Watch {
    async fn run(mut self, mut socket: TokioSocket, mut inbox: mpsc::Receiver<()>) {
        loop {
            if self.serve(&socket, &mut inbox).await.is_err() {
                return;
            }
            socket = loop {
                sleep(AGAIN).await;
                match open() {
                    Ok(socket) => break socket,
                    Err(error) => warn!("route netlink: {error}"),
                }
            };
        }
    }

    /// One socket, until it dies.
    async fn serve(&mut self, socket: &TokioSocket, inbox: &mut mpsc::Receiver<()>) -> Result<(), Stopped> {
        let mut datagram = Vec::with_capacity(DATAGRAM_MAX);
        self.list(socket, false).await;
        loop {
            datagram.clear();
            let again = self.again;
            tokio::select! {
                received = socket.recv_from(&mut datagram) => match received {
                    // Anyone may send to a netlink socket; the kernel's port is 0.
                    Ok(from) if from.port_number() == 0 => self.take(socket, &datagram).await?,
                    Ok(_) => {}
                    // The kernel dropped messages for want of room.
                    Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => self.list(socket, false).await,
                    Err(error) => {
                        warn!("route netlink: {error}");
                        return Ok(());
                    }
                },
                changed = self.network_manager.changed() => {
                    if changed.is_err() {
                        return Err(Stopped);
                    }
                }
                asked = inbox.recv() => match asked {
                    Some(()) if self.dump.is_none() => self.list(socket, false).await,
                    Some(()) => {}
                    None => return Err(Stopped),
                },
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {
                    self.list(socket, false).await;
                }
            }
            self.tell_devices().await?;
        }
    }

    /// Asks for all links, or all addresses. A list under way is forgotten.
    async fn list(&mut self, socket: &TokioSocket, addresses: bool) {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        self.again = None;
        self.links.dump_begins(addresses);
        self.dump = Some(Dump { addresses, sequence: self.sequence, interrupted: false });
        if socket.send_to(&wire::dump(addresses, self.sequence), &SocketAddr::new(0, 0)).await.is_err() {
            self.list_later();
        }
    }

    fn list_later(&mut self) {
        self.dump = None;
        self.again = Some(Instant::now() + AGAIN);
    }

    async fn take(&mut self, socket: &TokioSocket, datagram: &[u8]) -> Result<(), Stopped> {
        for (envelope, message) in wire::messages(datagram) {
            let news = match message {
                Message::Done => self.listed(socket, envelope).await,
                Message::Failed(_) => {
                    if self.dump.is_some_and(|dump| dump.sequence == envelope.sequence) {
                        self.list_later();
                    }
                    Vec::new()
                }
                message => {
                    if let Some(dump) = self.dump.as_mut().filter(|dump| dump.sequence == envelope.sequence) {
                        dump.interrupted |= envelope.interrupted;
                    }
                    self.links.apply(message)
                }
            };
            for event in news {
                self.send(event).await?;
            }
        }
        Ok(())
    }

    /// A list is complete: links first, then addresses.
    async fn listed(&mut self, socket: &TokioSocket, envelope: Envelope) -> Vec<Event> {
        let Some(dump) = self.dump.filter(|dump| dump.sequence == envelope.sequence) else { return Vec::new() };
        if dump.interrupted || envelope.interrupted {
            self.list(socket, dump.addresses).await;
            return Vec::new();
        }
        let news = self.links.dump_ends(dump.addresses);
        self.dump = None;
        if !dump.addresses {
            self.list(socket, true).await;
        }
        news
    }

    /// Without NetworkManager: every link that could be an uplink, as nobody's device. With it, its word stands,
    /// and what it does not know is none.
    async fn tell_devices(&mut self) -> Result<(), Stopped> {
        let running = *self.network_manager.borrow_and_update();
        if running && self.devices.is_empty() {
            return Ok(());
        }
        let mut now = BTreeMap::new();
        if !running {
            for link in self.links.iter_mut().filter(|link| !self.uplinks.knows(link.name)) {
                let class =
                    link.class.get_or_insert_with(|| class_by_kernel(&self.config, link.name, &facts(link.name)));
                if let Some(class) = *class {
                    let stage = Stage::Unmanaged;
                    let address = link.address();
                    now.insert(link.name, Device { class, ip_interface: None, stage, address, metered: None });
                }
            }
        }
        let before = std::mem::take(&mut self.devices);
        // A device of that very name is NetworkManager's now.
        let gone = |name: &&Name| !now.contains_key(name) && self.uplinks.details(**name).is_none();
        for interface in before.keys().filter(gone) {
            self.send(Event::DeviceGone { interface: *interface }).await?;
        }
        for (interface, device) in now.iter().filter(|(name, device)| before.get(name) != Some(device)) {
            self.send(Event::DeviceSeen { interface: *interface, device: *device }).await?;
        }
        self.devices = now;
        Ok(())
    }

    async fn send(&self, event: Event) -> Result<(), Stopped> {
        self.events.send(event).await.map_err(|_| Stopped)
    }
}

/// A socket that hears of links and addresses.
fn open() -> io::Result<TokioSocket> {
    let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
    socket.socket_mut().bind(&SocketAddr::new(0, GROUPS))?;
    Ok(socket)
}

/// What sysfs says of a link; what cannot be read counts as absent.
fn facts(name: Name) -> KernelFacts {
    let link = Path::new("/sys/class/net").join(name.as_str());
    let uevent = std::fs::read_to_string(link.join("uevent")).unwrap_or_default();
    let driver = std::fs::read_link(link.join("device/driver")).unwrap_or_default();
    KernelFacts {
        devtype: uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE=")).map(str::to_owned),
        wireless: link.join("wireless").exists() || link.join("phy80211").exists(),
        driver: driver.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        virtual_link: std::fs::canonicalize(&link).is_ok_and(|path| path.starts_with("/sys/devices/virtual")),
    }
}
