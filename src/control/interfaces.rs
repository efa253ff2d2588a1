//! The picture of the interfaces: what the kernel and NetworkManager last said of each.
//!
//! Decides one thing: how ready an interface is to carry a session. The kernel is believed about carrier and
//! addresses (it speaks seconds earlier), NetworkManager about everything else, and its state only as far as the
//! kernel does not contradict it (R-FX-5). While NetworkManager is away its devices stay as last reported. Nothing
//! here asks for anything.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::event::{Device, Event, Stage, Step};
use crate::name::{Class, Name, Selector};
use crate::reason::Reason;
use crate::settings::Settings;
use crate::time::Instant;

/// How ready an interface is to carry a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    /// Link and address are there: it can be dialled through.
    Ready,
    /// NetworkManager is bringing it up and has come this far.
    Coming(Step),
    /// It could be activated.
    Activatable,
    /// It cannot be used now, and why.
    Not(Reason),
}

#[derive(Clone, Copy, Debug)]
struct Link {
    up: bool,
    address: Option<bool>,
}

#[derive(Clone, Copy, Debug)]
struct Known {
    device: Device,
    ready_since: Option<Instant>,
}

/// Every interface, as last reported.
#[derive(Debug, Default)]
pub struct Interfaces {
    known: BTreeMap<Name, Known>,
    /// By the kernel's name, which for a modem is not the device's.
    links: BTreeMap<Name, Link>,
    /// When the first device was reported.
    first_seen: Option<Instant>,
}

/// Interfaces remembered at most: far above any gateway, so that a machine full of containers harms nobody.
const INTERFACES_MAX: usize = 128;

impl Interfaces {
    /// Takes an event in. Returns the interfaces that became ready through it: new hope (R-CL-15).
    pub fn absorb(&mut self, now: Instant, event: &Event) -> Vec<Name> {
        match event {
            Event::LinkChanged { interface, up } => {
                let address = self.links.get(interface).and_then(|l| l.address);
                self.set_link(*interface, Link { up: *up, address });
            }
            Event::AddressChanged { interface, present } => {
                let up = self.links.get(interface).is_none_or(|l| l.up);
                self.set_link(*interface, Link { up, address: Some(*present) });
            }
            Event::LinkGone { interface } => {
                if self.links.contains_key(interface) {
                    self.set_link(*interface, Link { up: false, address: Some(false) });
                }
            }
            Event::DeviceSeen { interface, device } => {
                self.first_seen.get_or_insert(now);
                let ready_since = self.known.get(interface).and_then(|k| k.ready_since);
                if self.known.len() < INTERFACES_MAX || self.known.contains_key(interface) {
                    self.known.insert(*interface, Known { device: *device, ready_since });
                }
            }
            Event::DeviceGone { interface } => {
                self.known.remove(interface);
            }
            _ => return Vec::new(),
        }
        self.note_readiness(now)
    }

    fn set_link(&mut self, name: Name, link: Link) {
        if self.links.len() < INTERFACES_MAX || self.links.contains_key(&name) {
            self.links.insert(name, link);
        }
    }

    fn note_readiness(&mut self, now: Instant) -> Vec<Name> {
        let mut hope = Vec::new();
        let links = &self.links;
        for (name, known) in &mut self.known {
            let ready = readiness(&known.device, link_of(links, *name, &known.device)) == Readiness::Ready;
            match (ready, known.ready_since) {
                (true, None) => {
                    known.ready_since = Some(now);
                    hope.push(*name);
                }
                (false, Some(_)) => known.ready_since = None,
                (true, Some(_)) | (false, None) => {}
            }
        }
        hope
    }

    /// NetworkManager has begun to list its devices, and there is a link with an address that none of them has claimed:
    /// until when it is worth waiting for the rest of the list.
    pub fn listing_until(&self, limit: Duration) -> Option<Instant> {
        let claimed = |name: Name| self.find(name).is_some();
        let unclaimed = self.links.iter().any(|(name, link)| link.up && link.address == Some(true) && !claimed(*name));
        self.first_seen.filter(|_| unclaimed).map(|at| at + limit)
    }

    /// Whether NetworkManager or the kernel has it.
    pub fn present(&self, name: Name) -> bool {
        self.known.contains_key(&name)
    }

    /// Every present interface, in name order.
    pub fn names(&self) -> impl Iterator<Item = Name> + '_ {
        self.known.keys().copied()
    }

    /// The class NetworkManager or a `match` rule gives it.
    pub fn class(&self, name: Name) -> Option<Class> {
        self.known.get(&name).map(|k| k.device.class)
    }

    /// The device called `name`, or whose IP interface is called so.
    pub fn find(&self, name: Name) -> Option<Name> {
        if self.known.contains_key(&name) {
            return Some(name);
        }
        self.known.iter().find(|(_, k)| k.device.ip_interface == Some(name)).map(|(n, _)| *n)
    }

    /// What people call it: the IP interface where there is one.
    pub fn spoken(&self, name: Name) -> Name {
        self.known.get(&name).and_then(|k| k.device.ip_interface).unwrap_or(name)
    }

    /// How ready it is.
    pub fn readiness(&self, name: Name) -> Readiness {
        match self.known.get(&name) {
            Some(known) => readiness(&known.device, link_of(&self.links, name, &known.device)),
            None => Readiness::Not(Reason::NoLink),
        }
    }

    /// Since when it has been ready without a break.
    pub fn ready_since(&self, name: Name) -> Option<Instant> {
        self.known.get(&name).and_then(|k| k.ready_since)
    }

    /// Proof that what runs over it is dead: the kernel took its carrier or its address, or it is gone. The word of
    /// NetworkManager alone is no proof.
    pub fn dead(&self, name: Name) -> Option<Reason> {
        let Some(known) = self.known.get(&name) else { return Some(Reason::NoLink) };
        let link = link_of(&self.links, name, &known.device)?;
        match link {
            Link { up: false, .. } => Some(Reason::NoLink),
            Link { address: Some(false), .. } => Some(Reason::NoAddress),
            Link { .. } => None,
        }
    }

    /// Whether its bytes cost money: the configuration's word, else NetworkManager's, else the class.
    pub fn metered(&self, name: Name, settings: &Settings) -> bool {
        let Some(known) = self.known.get(&name) else { return false };
        let by_class = known.device.class == Class::Cell;
        let configured = settings.uplink(self.spoken(name), known.device.class).metered;
        configured.or(known.device.metered).unwrap_or(by_class)
    }

    /// The walk: the list expanded over what is present, then the default tail (R-IF-4). The number is how many
    /// items the list itself gave.
    pub fn walk(&self, list: &[Selector]) -> (Vec<Name>, usize) {
        let named = |name: Name| list.iter().any(|s| matches!(s, Selector::Name(n) if self.find(*n) == Some(name)));
        let mut walk: Vec<Name> = Vec::new();
        let push = |walk: &mut Vec<Name>, name: Name| {
            if !walk.contains(&name) {
                walk.push(name);
            }
        };
        for selector in list {
            match selector {
                Selector::Name(name) => {
                    if let Some(found) = self.find(*name) {
                        push(&mut walk, found);
                    }
                }
                Selector::Class(class) => {
                    for name in self.of_class(*class).filter(|n| !named(*n)) {
                        push(&mut walk, name);
                    }
                }
            }
        }
        let listed = walk.len();
        for class in Class::ALL {
            for name in self.of_class(class) {
                push(&mut walk, name);
            }
        }
        (walk, listed)
    }

    /// The items of a list that nothing present answers to.
    pub fn absent(&self, list: &[Selector]) -> Vec<Selector> {
        let absent = |s: &Selector| match s {
            Selector::Name(name) => self.find(*name).is_none(),
            Selector::Class(class) => self.of_class(*class).next().is_none(),
        };
        list.iter().copied().filter(absent).collect()
    }

    /// Whether the selector means this interface.
    pub fn answers(&self, name: Name, selector: Selector) -> bool {
        match selector {
            Selector::Name(named) => self.find(named) == Some(name),
            Selector::Class(class) => self.class(name) == Some(class),
        }
    }

    fn of_class(&self, class: Class) -> impl Iterator<Item = Name> + '_ {
        self.known.iter().filter(move |(_, k)| k.device.class == class).map(|(n, _)| *n)
    }
}

fn link_of(links: &BTreeMap<Name, Link>, name: Name, device: &Device) -> Option<Link> {
    links.get(&device.ip_interface.unwrap_or(name)).copied()
}

fn readiness(device: &Device, link: Option<Link>) -> Readiness {
    let address = link.and_then(|l| l.address).unwrap_or(device.address);
    let carrier = link.is_none_or(|l| l.up);
    // What the kernel itself has seen is there, however odd NetworkManager's word of it (R-FX-5); an operator's wish
    // is no such word.
    let there = link.is_some_and(|l| l.up && l.address == Some(true));
    match device.stage {
        Stage::Disconnected { by_user: true, .. } => Readiness::Not(Reason::User),
        _ if there => Readiness::Ready,
        Stage::Unavailable(reason) | Stage::Failed(reason) => Readiness::Not(reason),
        Stage::Disconnected { profile: false, .. } => Readiness::Not(Reason::NoProfile),
        // Without a carrier a cable can never come up; a radio gets its carrier by being activated.
        Stage::Disconnected { .. } if !carrier && device.class == Class::Ethernet => Readiness::Not(Reason::NoLink),
        Stage::Disconnected { .. } => Readiness::Activatable,
        Stage::Activating(step) if !(carrier && address) => Readiness::Coming(step),
        Stage::Unmanaged | Stage::Activated | Stage::Activating(_) => match (carrier, address) {
            (false, _) => Readiness::Not(Reason::NoLink),
            (true, false) => Readiness::Not(Reason::NoAddress),
            (true, true) => Readiness::Ready,
        },
    }
}
