//! Which rank among the host's routes an active connection gives its device, and how that is changed and undone.
//!
//! Pure: takes the settings that NetworkManager has applied to a device and gives those to apply instead. The profile
//! on disk is never touched. What was there before is written beside the change, as user data of the applied
//! settings: so whoever finds them later can undo it, also after a crash of ours, and a new activation undoes it anyway.
//!
//! Seen with NetworkManager 1.42: a reapplied IPv4 metric moves routes within a millisecond, new before old, and the
//! IPv4 address, carrier and connections stay. What does not stay is never asked for. A modem loses its address for
//! good, so modems keep their metric and the others go behind. IPv6 addresses from router advertisements are away for
//! seconds when the IPv6 metric changes, and before 1.56 whatever changes: so only IPv4 is changed, and before 1.56 a
//! device with such an address is left where it is. DHCP is asked anew, and a silent server would take the address away
//! after `dhcp-timeout`: that is put off for ever, and stays so until the next activation.

use std::collections::{BTreeMap, HashMap};

use switchback_control::Name;
use zbus::{OwnedVariant, Variant};

use super::device::{ACTIVATED, Movable, Sighting};
use super::mirror::{number, text};

/// Before every uplink's default (100 and more), behind a tunnel's (50): who wants everything in a tunnel means it.
const FIRST: i64 = 60;
/// Behind every uplink's default (a modem's is 700), before what fails NetworkManager's own check (20,000 more).
const LAST: i64 = 10_000;
/// NetworkManager's "for ever".
const FOR_EVER: i32 = i32::MAX;

/// Connection settings as NetworkManager gives and takes them (`a{sa{sv}}`).
pub type Settings = HashMap<String, HashMap<String, OwnedVariant>>;

/// Where a device is to stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rank {
    /// Where its profile puts it.
    Own,
    First,
    /// Behind the one that is first: where its profile puts it, unless that would be in front.
    Behind,
    /// Behind one that cannot be moved to the front.
    Last,
}

/// What is wanted of the host's routes, and how far that is. Empty until something was wanted: then nothing is touched.
#[derive(Default)]
pub struct Routes {
    wanted: Option<Option<Name>>,
    /// The active connections that were looked at since.
    looked: BTreeMap<Name, String>,
}

impl Routes {
    /// This device is to be first from now on, or none.
    pub fn prefer(&mut self, interface: Option<Name>) {
        self.wanted = Some(interface);
        self.looked.clear();
    }

    /// Whether anything was ever wanted.
    pub fn any(&self) -> bool {
        self.wanted.is_some()
    }

    /// NetworkManager is gone. The next one may give the same paths to other connections, and starts from the profiles.
    pub fn away(&mut self) {
        self.looked.clear();
    }

    /// The devices whose applied settings are to be looked at now, each once per activation and preference.
    pub fn due(&mut self, seen: &BTreeMap<Name, Sighting>, busy: impl Fn(Name) -> bool) -> Vec<(Name, String)> {
        let mut due = Vec::new();
        let settled = |seen: &Sighting| seen.movable != Movable::No && seen.state == ACTIVATED;
        for (name, sighting) in seen.iter().filter(|(name, seen)| settled(seen) && !busy(**name)) {
            let Some(active) = &sighting.active else { continue };
            if self.looked.get(name) != Some(active) {
                self.looked.insert(*name, active.clone());
                due.push((*name, sighting.path.clone()));
            }
        }
        due
    }

    /// Where a device is to stand now; `None` where it should be first and cannot.
    pub fn rank(&self, interface: Name, seen: &BTreeMap<Name, Sighting>) -> Option<Rank> {
        let free = |name| seen.get(&name).is_some_and(|seen| seen.movable == Movable::Yes);
        match self.wanted.flatten() {
            None => Some(Rank::Own),
            Some(first) if first == interface => free(first).then_some(Rank::First),
            Some(_) if !free(interface) => Some(Rank::Own),
            Some(first) if free(first) => Some(Rank::Behind),
            Some(_) => Some(Rank::Last),
        }
    }
}

/// One setting of `ipv4` that ranks a device: smaller is better.
struct Key {
    name: &'static str,
    /// Where its former value is kept; NetworkManager wants a dot in it.
    mark: &'static str,
    default: i64,
    value: fn(i64) -> Variant<'static>,
}

/// The routes, and with them the order of name servers: one behind a dead uplink costs every lookup five seconds.
const KEYS: [Key; 2] = [
    Key { name: "route-metric", mark: "org.switchback.route-metric", default: -1, value: |n| Variant::I64(n) },
    Key { name: "dns-priority", mark: "org.switchback.dns-priority", default: 0, value: |n| Variant::I32(n as i32) },
];

/// The settings to apply for this rank; `None` when they have it.
pub fn ranked(mut settings: Settings, rank: Rank) -> Option<Settings> {
    let mut marks = marks(&settings);
    let ip = settings.get_mut("ipv4")?;
    let mut changed = false;
    for key in &KEYS {
        let now = ip.get(key.name).and_then(|value| number(value)).unwrap_or(key.default);
        let own = marks.remove(key.mark).and_then(|text| text.parse().ok()).unwrap_or(now);
        let wanted = place(own, rank, key.default);
        if wanted != own {
            marks.insert(key.mark.into(), own.to_string());
        }
        if wanted != now {
            ip.insert(key.name.into(), owned((key.value)(wanted))?);
            changed = true;
        }
    }
    if !changed {
        return None;
    }
    ip.insert("dhcp-timeout".into(), owned(Variant::I32(FOR_EVER))?);
    settings.remove("user");
    if !marks.is_empty() {
        settings.insert("user".into(), [("data".into(), owned(Variant::from(marks))?)].into());
    }
    Some(settings)
}

/// The value a rank asks for, given the device's own.
fn place(own: i64, rank: Rank, default: i64) -> i64 {
    match rank {
        // A negative DNS priority shuts others out; whoever wrote it means it.
        _ if own < default => own,
        Rank::First if own == default || own > FIRST => FIRST,
        Rank::Behind if own != default && own <= FIRST => LAST,
        Rank::Last => own.max(LAST),
        Rank::Own | Rank::First | Rank::Behind => own,
    }
}

/// The user data of the settings (`a{ss}`), ours among it.
fn marks(settings: &Settings) -> HashMap<String, String> {
    let data = settings.get("user").and_then(|user| user.get("data"));
    let Some(Variant::Dict(dict)) = data.map(|data| &**data) else { return HashMap::new() };
    dict.iter().filter_map(|(key, value)| Some((text(key)?.to_owned(), text(value)?.to_owned()))).collect()
}

fn owned(value: Variant<'_>) -> Option<OwnedVariant> {
    value.try_to_owned().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What NetworkManager 1.42 says is applied, as far as it matters here.
    fn applied(ipv4: &[(&str, Variant<'static>)]) -> Settings {
        let mut ip: HashMap<String, OwnedVariant> =
            ipv4.iter().map(|(key, value)| ((*key).to_owned(), value.try_to_owned().unwrap())).collect();
        ip.insert("method".into(), owned("auto".into()).unwrap());
        [("ipv4".into(), ip), ("ipv6".into(), HashMap::new())].into()
    }

    /// Metric and DNS priority, by value or default.
    fn numbers(settings: &Settings) -> (i64, i64) {
        let get = |key: &Key| settings["ipv4"].get(key.name).map_or(key.default, |value| number(value).unwrap());
        (get(&KEYS[0]), get(&KEYS[1]))
    }

    #[test]
    fn who_cannot_come_first_lets_the_others_stand_back() {
        let name = |text: &str| Name::new(text).unwrap();
        let seen = |eth0: Movable, wlan0: Movable| {
            [("eth0", eth0), ("wlan0", wlan0)].map(|(text, movable)| {
                let mut seen = sighting();
                seen.movable = movable;
                (name(text), seen)
            })
        };
        let ranks = |first: Option<&str>, eth0, wlan0| {
            let mut routes = Routes::default();
            routes.prefer(first.map(name));
            let seen = BTreeMap::from(seen(eth0, wlan0));
            [routes.rank(name("eth0"), &seen), routes.rank(name("wlan0"), &seen)]
        };
        use Movable::*;
        assert_eq!(ranks(Some("eth0"), Yes, Yes), [Some(Rank::First), Some(Rank::Behind)]);
        assert_eq!(ranks(Some("eth0"), Back, Yes), [None, Some(Rank::Last)]);
        assert_eq!(ranks(Some("eth0"), Yes, Back), [Some(Rank::First), Some(Rank::Own)]);
        assert_eq!(ranks(Some("wwan0"), Yes, Back), [Some(Rank::Last), Some(Rank::Own)]);
        assert_eq!(ranks(None, Back, Yes), [Some(Rank::Own), Some(Rank::Own)]);
    }

    #[test]
    fn each_activation_is_looked_at_once_per_preference() {
        let eth0 = Name::new("eth0").unwrap();
        let mut routes = Routes::default();
        let mut seen = BTreeMap::from([(eth0, sighting())]);
        routes.prefer(None);
        assert_eq!(routes.due(&seen, |_| true), [], "an earlier look is under way");
        assert_eq!(routes.due(&seen, |_| false).len(), 1);
        assert_eq!(routes.due(&seen, |_| false), []);
        routes.prefer(Some(eth0));
        assert_eq!(routes.due(&seen, |_| false).len(), 1);
        seen.insert(eth0, Sighting { active: Some("/2".into()), ..sighting() });
        assert_eq!(routes.due(&seen, |_| false).len(), 1);
        seen.insert(eth0, Sighting { state: 70, active: Some("/3".into()), ..sighting() });
        assert_eq!(routes.due(&seen, |_| false), []);
    }

    fn sighting() -> Sighting {
        let mut seen = super::super::device::tests::seen(switchback_control::Class::Ethernet, ACTIVATED, 0);
        seen.active = Some("/1".into());
        seen
    }

    #[test]
    fn a_device_is_put_first_and_back_and_no_sooner_touched_than_needed() {
        for (profile, own) in [
            (applied(&[]), (-1, 0)),
            (applied(&[("route-metric", 600i64.into()), ("dns-priority", 100i32.into())]), (600, 100)),
        ] {
            assert_eq!(ranked(profile.clone(), Rank::Own), None);
            assert_eq!(ranked(profile.clone(), Rank::Behind), None);
            let first = ranked(profile, Rank::First).unwrap();
            assert_eq!(numbers(&first), (FIRST, FIRST));
            assert_eq!(number(&first["ipv4"]["dhcp-timeout"]), Some(i64::from(FOR_EVER)));
            assert_eq!(ranked(first.clone(), Rank::First), None);
            assert_eq!(numbers(&ranked(first.clone(), Rank::Last).unwrap()), (LAST, LAST));
            for rank in [Rank::Own, Rank::Behind] {
                let back = ranked(first.clone(), rank).unwrap();
                assert_eq!(numbers(&back), own);
                assert!(!back.contains_key("user"), "no trace");
            }
        }
    }

    #[test]
    fn what_a_profile_puts_in_front_goes_behind_the_one_that_is_preferred() {
        let eager = applied(&[("route-metric", 10i64.into()), ("dns-priority", (-5i32).into())]);
        assert_eq!(ranked(eager.clone(), Rank::First), None, "it is first already");
        let behind = ranked(eager, Rank::Behind).unwrap();
        assert_eq!(numbers(&behind), (LAST, -5), "exclusive name servers are meant");
        assert_eq!(numbers(&ranked(behind, Rank::Own).unwrap()), (10, -5));
    }

    #[test]
    fn user_data_of_others_is_kept() {
        let data = HashMap::from([("a.b".to_owned(), "c".to_owned())]);
        let mut profile = applied(&[]);
        profile.insert("user".into(), [("data".into(), owned(Variant::from(data.clone())).unwrap())].into());
        let first = ranked(profile, Rank::First).unwrap();
        assert_eq!(marks(&first).len(), 3);
        assert_eq!(marks(&ranked(first, Rank::Own).unwrap()), data);
    }

    #[test]
    fn settings_without_ipv4_are_left_alone() {
        assert_eq!(ranked(Settings::new(), Rank::First), None);
    }
}
