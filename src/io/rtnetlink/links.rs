//! The kernel's links as far as we were told, and what of it is news.
//!
//! Pure: messages in, events out. Always true: a link is told once per difference, a link that is new is told
//! even when it is down, and an address is told only after its link. Links that no IP uplink can be (loopback,
//! tunnels into nothing) are never kept.

use std::collections::{BTreeMap, BTreeSet};

use switchback_control::{Class, Event, Name};

use super::wire::{Address, Message};

/// Most links kept: far above a gateway's, below what a container host could make hurt.
pub const LINKS_MAX: usize = 1024;
/// Most addresses kept of one link.
const ADDRESSES_MAX: usize = 256;

/// `IFF_UP | IFF_LOWER_UP`: switched on, and a carrier (`netdevice(7)`).
const UP: u32 = 0x1 | 0x1_0000;

/// `ARPHRD_ETHER`, `ARPHRD_PPP`, `ARPHRD_RAWIP`, and `ARPHRD_NONE`, which is what some modem drivers call raw IP.
const KINDS: [u16; 4] = [1, 512, 519, 0xfffe];

/// One link.
#[derive(Clone, Debug)]
pub struct Link {
    pub name: Name,
    /// Its class by the kernel's facts, once somebody looked; for life without NetworkManager.
    pub class: Option<Option<Class>>,
    up: bool,
    addresses: BTreeSet<Address>,
    address_told: bool,
}

impl Link {
    /// A usable address is on it.
    pub fn address(&self) -> bool {
        !self.addresses.is_empty()
    }
}

/// All of them, by the kernel's index.
#[derive(Default)]
pub struct Links {
    links: BTreeMap<u32, Link>,
    /// Seen since the dump under way began; what is not seen by its end is gone.
    seen_links: BTreeSet<u32>,
    seen_addresses: BTreeSet<(u32, Address)>,
}

impl Links {
    /// Takes one message; gives what is news.
    pub fn apply(&mut self, message: Message) -> Vec<Event> {
        match message {
            Message::Link { index, name, kind, flags } if KINDS.contains(&kind) => self.link(index, name, flags),
            Message::LinkGone { index } => self.gone(index),
            Message::Address { index, address, usable } => self.address(index, address, usable),
            Message::AddressGone { index, address } => self.address(index, address, false),
            Message::Link { .. } | Message::Done | Message::Failed(_) => Vec::new(),
        }
    }

    /// A dump of links begins, or of addresses.
    pub fn dump_begins(&mut self, addresses: bool) {
        if addresses { self.seen_addresses.clear() } else { self.seen_links.clear() }
    }

    /// It is complete: whatever it did not show is gone.
    pub fn dump_ends(&mut self, addresses: bool) -> Vec<Event> {
        if !addresses {
            let gone: Vec<u32> = self.links.keys().filter(|index| !self.seen_links.contains(index)).copied().collect();
            return gone.into_iter().flat_map(|index| self.gone(index)).collect();
        }
        let seen = std::mem::take(&mut self.seen_addresses);
        let mut news = Vec::new();
        for (index, link) in &mut self.links {
            link.addresses.retain(|address| seen.contains(&(*index, *address)));
            news.extend(tell_address(link));
        }
        news
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Link> {
        self.links.values_mut()
    }

    fn link(&mut self, index: u32, name: Name, flags: u32) -> Vec<Event> {
        let up = flags & UP == UP;
        self.seen_links.insert(index);
        let full = self.links.len() >= LINKS_MAX;
        let mut news = Vec::new();
        let mut addresses = BTreeSet::new();
        match self.links.get_mut(&index) {
            Some(link) if link.name == name => {
                if std::mem::replace(&mut link.up, up) != up {
                    news.push(Event::LinkChanged { interface: name, up });
                }
                return news;
            }
            // Renamed: the old one is gone, the new one has its addresses.
            Some(link) => {
                addresses = std::mem::take(&mut link.addresses);
                news.push(Event::LinkGone { interface: link.name });
            }
            None if full => return news,
            None => {}
        }
        let mut link = Link { name, class: None, up, addresses, address_told: false };
        news.push(Event::LinkChanged { interface: name, up });
        news.extend(tell_address(&mut link));
        self.links.insert(index, link);
        news
    }

    fn gone(&mut self, index: u32) -> Vec<Event> {
        self.seen_links.remove(&index);
        self.links.remove(&index).map(|link| Event::LinkGone { interface: link.name }).into_iter().collect()
    }

    fn address(&mut self, index: u32, address: Address, usable: bool) -> Vec<Event> {
        let Some(link) = self.links.get_mut(&index) else { return Vec::new() };
        if usable && link.addresses.len() < ADDRESSES_MAX {
            link.addresses.insert(address);
            self.seen_addresses.insert((index, address));
        } else {
            link.addresses.remove(&address);
            self.seen_addresses.remove(&(index, address));
        }
        tell_address(link).into_iter().collect()
    }
}

fn tell_address(link: &mut Link) -> Option<Event> {
    let present = link.address();
    let news = std::mem::replace(&mut link.address_told, present) != present;
    news.then_some(Event::AddressChanged { interface: link.name, present })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn link(index: u32, text: &str, flags: u32) -> Message {
        Message::Link { index, name: name(text), kind: 1, flags }
    }

    fn address(index: u32, text: &str) -> Message {
        Message::Address { index, address: (text.parse().unwrap(), 24), usable: true }
    }

    fn words(events: Vec<Event>) -> String {
        events.iter().map(Event::to_string).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_link_is_told_when_it_is_new_and_when_it_changes_only() {
        let mut links = Links::default();
        assert_eq!(words(links.apply(link(2, "eth0", 1))), "link eth0 down");
        assert_eq!(words(links.apply(link(2, "eth0", 0x1_1001))), "link eth0 up");
        assert_eq!(words(links.apply(link(2, "eth0", 0x1_0043))), "");
        // Switched off by an operator while the carrier stays.
        assert_eq!(words(links.apply(link(2, "eth0", 0x1_0000))), "link eth0 down");
        assert_eq!(words(links.apply(Message::LinkGone { index: 2 })), "link eth0 gone");
        assert_eq!(words(links.apply(Message::LinkGone { index: 2 })), "");
    }

    #[test]
    fn the_last_address_decides() {
        let mut links = Links::default();
        links.apply(link(2, "eth0", UP));
        assert_eq!(words(links.apply(address(2, "192.0.2.1"))), "address eth0 present");
        assert_eq!(words(links.apply(address(2, "2001:db8::1"))), "");
        let gone = |text: &str| Message::AddressGone { index: 2, address: (text.parse().unwrap(), 24) };
        assert_eq!(words(links.apply(gone("192.0.2.1"))), "");
        assert_eq!(words(links.apply(gone("2001:db8::1"))), "address eth0 absent");
        assert_eq!(words(links.apply(address(9, "192.0.2.1"))), "", "a link nobody told us of");
    }

    #[test]
    fn a_renamed_link_is_gone_and_new_and_keeps_its_addresses() {
        let mut links = Links::default();
        links.apply(link(2, "wlan0", UP));
        links.apply(address(2, "192.0.2.1"));
        assert_eq!(
            words(links.apply(link(2, "wlp3s0", UP))),
            "link wlan0 gone, link wlp3s0 up, address wlp3s0 present"
        );
    }

    #[test]
    fn loopback_is_no_link() {
        let mut links = Links::default();
        let lo = Message::Link { index: 1, name: name("lo"), kind: 772, flags: UP };
        assert_eq!(words(links.apply(lo)), "");
        assert_eq!(words(links.apply(address(1, "192.0.2.1"))), "");
    }

    #[test]
    fn what_a_dump_does_not_show_is_gone() {
        let mut links = Links::default();
        links.apply(link(2, "eth0", UP));
        links.apply(link(3, "usb0", UP));
        links.apply(address(2, "192.0.2.1"));
        links.dump_begins(false);
        assert_eq!(words(links.apply(link(2, "eth0", 1))), "link eth0 down");
        assert_eq!(words(links.dump_ends(false)), "link usb0 gone");
        links.dump_begins(true);
        assert_eq!(words(links.dump_ends(true)), "address eth0 absent");
    }

    #[test]
    fn what_changes_during_a_dump_is_not_undone_by_it() {
        let mut links = Links::default();
        links.dump_begins(false);
        links.apply(link(2, "eth0", UP));
        // Plugged in after its place in the dump had passed.
        links.apply(link(9, "usb0", UP));
        assert_eq!(words(links.dump_ends(false)), "");
        links.dump_begins(true);
        links.apply(address(9, "192.0.2.9"));
        assert_eq!(words(links.dump_ends(true)), "");
    }
}
