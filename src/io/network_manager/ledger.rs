//! What was told of each device, and what is news.
//!
//! Pure: sightings and the time come in, news goes out. Always true: a device is told once per difference; a
//! restart of NetworkManager alone takes nothing away; a device an operator took down stays marked until it is
//! activated again. Never looks at a bus.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use switchback_control::{Device, Name};
use tokio::time::Instant;

use super::device::{ACTIVATED, REASON_USER, Sighting, routable, stage};
use crate::uplinks::Details;

/// How long devices known before a restart of NetworkManager keep their last report while it has not come to
/// them: it shows a device that still works as unmanaged for some 50 ms, and must not end a session by that.
const RESTART_GRACE: Duration = Duration::from_secs(5);
/// How long a device that vanished without a word stays: a NetworkManager that is ending takes its devices off the
/// bus before its name, with links and addresses left as they are. A link that is unplugged the kernel tells at once.
const LEAVING_GRACE: Duration = Duration::from_secs(2);

/// `NMDeviceState`: left alone.
const UNMANAGED: i64 = 10;

/// One thing to pass on, in this order.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// For the table; most of these are as before.
    Noted(Name, Details),
    Seen(Name, Device),
    /// It is activated as before, but no longer joined to an access point.
    Unjoined(Name),
    Gone(Name),
}

/// Everything remembered of devices. Keyed by interface: object paths may come back for other devices.
#[derive(Default)]
pub struct Ledger {
    told: BTreeMap<Name, Device>,
    hands: BTreeMap<Name, Hand>,
    /// The wireless ones, and whether they were joined to an access point.
    joined: BTreeMap<Name, bool>,
    /// Devices from before a restart of NetworkManager that it has not come to yet, and until when that is waited for.
    held: BTreeSet<Name>,
    held_until: Option<Instant>,
    /// Devices that vanished without a word, and when that counts.
    leaving: BTreeMap<Name, Instant>,
}

/// Who took a device down, as far as its states tell over time.
#[derive(Clone, Copy, Debug, Default)]
struct Hand {
    state: i64,
    by_user: bool,
    ours: bool,
}

impl Ledger {
    /// Compares the devices as they are with what was told. `starting` while NetworkManager says so of itself.
    pub fn look(&mut self, seen: BTreeMap<Name, Sighting>, starting: bool, now: Instant) -> Vec<News> {
        self.let_go(&seen, starting, now);
        let mut news: Vec<News> = self.gone(&seen, now).into_iter().map(News::Gone).collect();
        for (interface, sighting) in seen {
            if !self.held.contains(&interface) {
                self.tell(interface, sighting, &mut news);
            }
        }
        news
    }

    /// NetworkManager is back: what it says of devices it knew before waits until it has come to them.
    pub fn returned(&mut self, now: Instant) {
        self.hands.clear();
        self.joined.clear();
        self.leaving.clear();
        self.held = self.told.keys().copied().collect();
        self.held_until = (!self.held.is_empty()).then(|| now + RESTART_GRACE);
    }

    /// NetworkManager is gone: its devices stay as last told.
    pub fn away(&mut self) {
        self.held.clear();
        self.held_until = None;
        self.leaving.clear();
    }

    /// We are about to take a device down, or could not: NetworkManager gives the same reason as for an operator.
    pub fn ours(&mut self, interface: Name, ours: bool) {
        self.hands.entry(interface).or_default().ours = ours;
    }

    /// When to look again though nothing was said.
    pub fn wake(&self) -> Option<Instant> {
        self.leaving.values().copied().chain(self.held_until).min()
    }

    fn tell(&mut self, interface: Name, seen: Sighting, news: &mut Vec<News>) {
        let hand = self.hands.entry(interface).or_default();
        hand.watch(&seen);
        let device = Device {
            class: seen.details.class,
            ip_interface: Some(seen.details.ip_interface).filter(|ip| *ip != interface),
            stage: stage(&seen, hand.by_user),
            address: seen.details.addresses.iter().any(routable),
            metered: seen.metered,
        };
        let was = seen.joined.and_then(|joined| self.joined.insert(interface, joined));
        // An ordinary disconnect is known by its state, which is told first.
        if (was, seen.joined, seen.state) == (Some(true), Some(false), ACTIVATED) {
            news.push(News::Unjoined(interface));
        }
        news.push(News::Noted(interface, seen.details));
        if self.told.insert(interface, device) != Some(device) {
            news.push(News::Seen(interface, device));
        }
    }

    /// Takes devices that are gone for good off the books.
    fn gone(&mut self, seen: &BTreeMap<Name, Sighting>, now: Instant) -> Vec<Name> {
        self.leaving.retain(|name, _| !seen.contains_key(name));
        let mut gone = Vec::new();
        for name in self.told.keys().filter(|name| !seen.contains_key(name) && !self.held.contains(name)) {
            // A device that is taken away in order is unmanaged first.
            let said = self.hands.get(name).is_some_and(|hand| hand.state == UNMANAGED);
            if said || *self.leaving.entry(*name).or_insert(now + LEAVING_GRACE) <= now {
                gone.push(*name);
            }
        }
        for name in &gone {
            self.leaving.remove(name);
            self.told.remove(name);
            self.hands.remove(name);
            self.joined.remove(name);
        }
        gone
    }

    /// Lets go of held devices that are active again, and of all when the grace is over or NetworkManager has started.
    fn let_go(&mut self, seen: &BTreeMap<Name, Sighting>, starting: bool, now: Instant) {
        if !starting || self.held_until.is_some_and(|until| until <= now) {
            self.held.clear();
        }
        self.held.retain(|name| seen.get(name).is_none_or(|sighting| sighting.state < ACTIVATED));
        if self.held.is_empty() {
            self.held_until = None;
        }
    }
}

impl Hand {
    /// Follows a device from state to state. At first sight only a device that may not autoconnect counts as
    /// taken down by an operator: otherwise it may have been us, before a restart.
    fn watch(&mut self, seen: &Sighting) {
        if seen.state == self.state {
            return;
        }
        let before = std::mem::replace(&mut self.state, seen.state);
        match seen.state {
            30 | 110 if seen.reason == REASON_USER => self.by_user = !self.ours && (before != 0 || !seen.autoconnect),
            // With the cable out and in again, NetworkManager still leaves a disconnected device alone.
            10 | 20 => self.by_user = self.by_user && !seen.autoconnect,
            40..=100 => {
                self.by_user = false;
                // On its way up when we asked it down, it may pass through more states before it turns.
                self.ours = self.ours && before > 30;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::device::{MODEM_MANAGER, Movable, NETWORK_MANAGER, sightings};
    use super::super::mirror::Mirror;
    use super::super::mirror::tests::{changed, objects};
    use super::*;
    use switchback_control::Class;

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    fn at(state: i64, reason: i64) -> Sighting {
        let details = Details {
            ip_interface: name("eth0"),
            class: Class::Ethernet,
            driver: String::new(),
            addresses: Vec::new(),
            name_servers: Vec::new(),
            signal: None,
        };
        Sighting {
            path: "/1".into(),
            active: None,
            state,
            reason,
            autoconnect: true,
            profile: true,
            metered: None,
            movable: Movable::Yes,
            joined: None,
            modem: None,
            details,
        }
    }

    struct Desk {
        ledger: Ledger,
        now: Instant,
        starting: bool,
    }

    impl Desk {
        fn new() -> Desk {
            Desk { ledger: Ledger::default(), now: Instant::now(), starting: false }
        }

        /// What is told when eth0 looks like this, or is not there.
        fn look(&mut self, sighting: Option<Sighting>) -> String {
            let seen = sighting.map(|sighting| (name("eth0"), sighting)).into_iter().collect();
            let news = self.ledger.look(seen, self.starting, self.now);
            let words = news.iter().filter_map(|news| match news {
                News::Noted(..) => None,
                News::Seen(_, device) => Some(device.stage.to_string()),
                News::Unjoined(_) => Some("unjoined".into()),
                News::Gone(_) => Some("gone".into()),
            });
            words.collect::<Vec<_>>().join(", ")
        }

        fn see(&mut self, state: i64, reason: i64) -> String {
            self.look(Some(at(state, reason)))
        }

        fn pass(&mut self, seconds: u64) {
            self.now += Duration::from_secs(seconds);
        }
    }

    #[test]
    fn a_device_is_told_once_per_difference() {
        let mut desk = Desk::new();
        assert_eq!(desk.see(100, 0), "activated");
        assert_eq!(desk.see(100, 0), "");
        assert_eq!(desk.see(90, 0), "");
        assert_eq!(desk.see(120, 5), "failed no-address");
    }

    #[test]
    fn an_operators_disconnect_lasts_over_a_pulled_cable_until_the_next_activation() {
        let mut desk = Desk::new();
        desk.see(100, 0);
        let no = |state, reason| Some(Sighting { autoconnect: false, ..at(state, reason) });
        assert_eq!(desk.look(no(110, 39)), "disconnected user");
        assert_eq!(desk.look(no(30, 39)), "");
        assert_eq!(desk.look(no(20, 40)), "unavailable no-link");
        assert_eq!(desk.look(no(30, 40)), "disconnected user");
        assert_eq!(desk.see(40, 0), "joining");
        assert_eq!(desk.see(30, 0), "disconnected");
    }

    #[test]
    fn what_we_took_down_is_not_an_operators_doing() {
        let mut desk = Desk::new();
        desk.see(50, 0);
        desk.ledger.ours(name("eth0"), true);
        // It went on a little before it turned.
        desk.see(70, 0);
        assert_eq!(desk.see(110, 39), "disconnected");
        assert_eq!(desk.see(30, 39), "");
        desk.see(40, 0);
        assert_eq!(desk.see(110, 39), "disconnected user", "the next time it was not us");
    }

    #[test]
    fn what_was_down_before_we_came_is_an_operators_only_if_it_may_not_come_back_by_itself() {
        assert_eq!(Desk::new().see(30, 39), "disconnected");
        let no = Sighting { autoconnect: false, ..at(30, 39) };
        assert_eq!(Desk::new().look(Some(no)), "disconnected user");
    }

    const WLAN: &str = "/org/freedesktop/NetworkManager/Devices/3";
    const DEVICE: &str = "org.freedesktop.NetworkManager.Device";
    const WIRELESS: &str = "org.freedesktop.NetworkManager.Device.Wireless";

    /// A wireless device that is joined, and what is told of it after each of these signals of NetworkManager.
    fn told_after(signals: &[zbus::Message]) -> Vec<String> {
        let word = |text: &str| zbus::Variant::from(text.to_owned());
        let device: &[_] =
            &[("Interface", word("eth0")), ("DeviceType", 2u32.into()), ("StateReason", (100u32, 0u32).into())];
        let mut nm = Mirror::new(NETWORK_MANAGER);
        assert!(nm.fill(&objects(&[(WLAN, DEVICE, device), (WLAN, WIRELESS, &[("ActiveAccessPoint", point("/1"))])])));
        let config = crate::classify::tests::config([&[], &[], &[]]);
        let mut desk = Desk::new();
        let mut told = Vec::new();
        for signal in [None].into_iter().chain(signals.iter().map(Some)) {
            signal.map(|signal| nm.apply(signal));
            told.push(desk.look(sightings(&nm, &Mirror::new(MODEM_MANAGER), &config).into_values().next()));
        }
        assert_eq!(told.remove(0), "activated");
        told
    }

    fn point(path: &'static str) -> zbus::Variant<'static> {
        zbus::ObjectPath::try_from(path).unwrap().into()
    }

    fn joined_to(path: &'static str) -> zbus::Message {
        changed(WLAN, WIRELESS, &[("ActiveAccessPoint", point(path))], &[])
    }

    fn turned(state: u32, reason: u32) -> zbus::Message {
        changed(WLAN, DEVICE, &[("StateReason", (state, reason).into())], &[])
    }

    #[test]
    fn a_lost_access_point_is_told_once_while_the_device_stays_activated() {
        // It vanishes, comes back as another one, blinks, and at last NetworkManager gives up.
        let signals = [joined_to("/"), joined_to("/"), joined_to("/2"), joined_to("/"), turned(120, 53)];
        assert_eq!(told_after(&signals), ["unjoined", "", "", "unjoined", "failed no-link"]);
    }

    #[test]
    fn roaming_and_an_ordinary_disconnect_lose_no_access_point() {
        assert_eq!(told_after(&[joined_to("/2")]), [""]);
        let signals = [turned(110, 39), joined_to("/"), turned(30, 39), turned(50, 0), joined_to("/1"), turned(100, 0)];
        let told = ["disconnected user", "", "", "joining", "", "activated"];
        assert_eq!(told_after(&signals), told);
    }

    #[test]
    fn a_restart_of_network_manager_takes_nothing_away() {
        let mut desk = Desk::new();
        desk.see(100, 0);
        // It ends: first the devices leave the bus, then its name.
        assert_eq!(desk.look(None), "");
        desk.ledger.away();
        assert_eq!(desk.ledger.wake(), None);
        desk.pass(60);
        desk.ledger.returned(desk.now);
        desk.starting = true;
        for state in [10, 20, 30, 50, 70, 100] {
            assert_eq!(desk.see(state, 0), "", "{state}");
        }
        assert_eq!(desk.see(120, 5), "failed no-address", "from here on its word counts");
    }

    #[test]
    fn a_device_that_did_not_survive_the_restart_is_told() {
        let mut desk = Desk::new();
        desk.see(100, 0);
        desk.ledger.away();
        desk.ledger.returned(desk.now);
        desk.starting = true;
        assert_eq!(desk.see(20, 40), "");
        desk.pass(5);
        assert_eq!(desk.see(20, 40), "unavailable no-link");
        desk.ledger.away();
        desk.ledger.returned(desk.now);
        desk.starting = false;
        assert_eq!(desk.look(None), "");
        desk.pass(2);
        assert_eq!(desk.look(None), "gone");
    }

    #[test]
    fn a_device_taken_away_in_order_is_gone_at_once() {
        let mut desk = Desk::new();
        desk.see(10, 36);
        assert_eq!(desk.look(None), "gone");
    }

    #[test]
    fn a_device_that_comes_back_in_time_was_never_gone() {
        let mut desk = Desk::new();
        desk.see(100, 0);
        assert_eq!(desk.look(None), "");
        desk.pass(1);
        assert_eq!(desk.see(100, 0), "");
        assert_eq!(desk.ledger.wake(), None);
        desk.pass(60);
        assert_eq!(desk.look(None), "", "its time begins anew");
    }
}
