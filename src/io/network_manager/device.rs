//! What NetworkManager's and ModemManager's objects mean: devices, stages, reasons.
//!
//! Pure: reads the two mirrors, touches nothing. Numbers are those of `nm-dbus-interface.h` and
//! `ModemManager-enums.h`. Always true: a device is known by its interface name, never by its object path, since
//! paths may come back for other devices. ModemManager is asked where NetworkManager has no word for the cause:
//! a missing SIM, a registration that is lost or denied. Nearly half of the file is the tables of its tests.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use switchback_control::{Class, Name, Reason, Stage, Step};
use zbus::Variant;

use super::mirror::{Mirror, Wanted, number, text};
use crate::classify::{class_by_device, device_type};
use crate::config::Config;
use crate::uplinks::Details;

const ROOT: &str = "org.freedesktop.NetworkManager";
pub const DEVICE: &str = "org.freedesktop.NetworkManager.Device";
const WIRELESS: &str = "org.freedesktop.NetworkManager.Device.Wireless";
const ACCESS_POINT: &str = "org.freedesktop.NetworkManager.AccessPoint";
const ACTIVE: &str = "org.freedesktop.NetworkManager.Connection.Active";
const IP4: &str = "org.freedesktop.NetworkManager.IP4Config";
const IP6: &str = "org.freedesktop.NetworkManager.IP6Config";
const MODEM: &str = "org.freedesktop.ModemManager1.Modem";
const MODEM_3GPP: &str = "org.freedesktop.ModemManager1.Modem.Modem3gpp";

/// Where NetworkManager's own properties are.
const ROOT_PATH: &str = "/org/freedesktop/NetworkManager";

/// What is kept of NetworkManager's objects.
pub const NETWORK_MANAGER: Wanted = &[
    (ROOT, &["Startup", "Version"]),
    (
        DEVICE,
        &[
            "Interface",
            "IpInterface",
            "Udi",
            "Driver",
            "DeviceType",
            "Real",
            "StateReason",
            "Autoconnect",
            "AvailableConnections",
            "ActiveConnection",
            "Ip4Config",
            "Ip6Config",
            "Metered",
        ],
    ),
    (WIRELESS, &["ActiveAccessPoint"]),
    (ACCESS_POINT, &["Strength"]),
    (ACTIVE, &["StateFlags"]),
    (IP4, &["AddressData", "NameserverData"]),
    (IP6, &["AddressData", "Nameservers"]),
];

/// What is kept of ModemManager's objects.
pub const MODEM_MANAGER: Wanted =
    &[(MODEM, &["State", "StateFailedReason", "SignalQuality", "Ports"]), (MODEM_3GPP, &["RegistrationState"])];

/// One device as the two services describe it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sighting {
    pub path: String,
    /// The active connection's object, while there is one.
    pub active: Option<String>,
    /// `NMDeviceState`.
    pub state: i64,
    /// `NMDeviceStateReason` of that state.
    pub reason: i64,
    /// NetworkManager may activate it by itself; `nmcli device disconnect` takes that away.
    pub autoconnect: bool,
    /// A stored profile could be activated on it now.
    pub profile: bool,
    pub metered: Option<bool>,
    pub movable: Movable,
    /// Whether it is joined to an access point; `None` for what needs none.
    pub joined: Option<bool>,
    pub modem: Option<Modem>,
    pub details: Details,
}

/// Whether its routes may be given another metric; why not is told in `routes`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Movable {
    Yes,
    /// Only back to where its profile puts it.
    Back,
    No,
}

/// What ModemManager says of a modem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Modem {
    /// `MMModemState`.
    pub state: i64,
    /// `MMModemStateFailedReason`.
    pub failed: i64,
    /// `MMModem3gppRegistrationState`; `None` for a modem of another kind.
    pub registration: Option<i64>,
}

/// `MMModemState`.
mod modem_state {
    pub const FAILED: i64 = -1;
    pub const LOCKED: i64 = 2;
    pub const ENABLED: i64 = 6;
    pub const SEARCHING: i64 = 7;
    pub const REGISTERED: i64 = 8;
}

/// `MMModem3gppRegistrationState`.
mod registration {
    pub const IDLE: i64 = 0;
    pub const SEARCHING: i64 = 2;
    pub const DENIED: i64 = 3;
    pub const EMERGENCY_ONLY: i64 = 8;
}

/// `NMDeviceState`: works.
pub const ACTIVATED: i64 = 100;

/// `NMActivationStateFlags`: the device was set up by somebody else, and NetworkManager only watches.
const EXTERNAL: i64 = 0x80;

/// `NMDeviceStateReason`: someone took it down with nmcli or over D-Bus; also ourselves.
pub const REASON_USER: i64 = 39;
/// `NMDeviceStateReason`: taken down to be activated afresh.
const REASON_NEW_ACTIVATION: i64 = 60;

/// Whether NetworkManager has shown its root object, and if so, whether it is still starting.
pub fn starting(nm: &Mirror) -> Option<bool> {
    nm.with(ROOT).any(|path| path == ROOT_PATH).then(|| nm.flag(ROOT_PATH, ROOT, "Startup").unwrap_or(false))
}

/// Every device that is an uplink, by interface name.
pub fn sightings(nm: &Mirror, mm: &Mirror, config: &Config) -> BTreeMap<Name, Sighting> {
    let mut all: BTreeMap<Name, Sighting> = nm.with(DEVICE).filter_map(|path| sighting(nm, mm, config, path)).collect();
    // A modem's data port may be shown as a device of its own: it is the modem's.
    let data_ports: Vec<Name> =
        all.iter().filter(|(name, s)| s.details.ip_interface != **name).map(|(_, s)| s.details.ip_interface).collect();
    data_ports.iter().for_each(|port| {
        all.remove(port);
    });
    all
}

/// How far a device is. `by_user` as decided by whoever watches it over time.
pub fn stage(seen: &Sighting, by_user: bool) -> Stage {
    let class = seen.details.class;
    match seen.state {
        10 => Stage::Unmanaged,
        110 if seen.reason == REASON_NEW_ACTIVATION => Stage::Activating(link_step(seen)),
        30 | 110 => match seen.modem.and_then(|modem| modem.unreachable()) {
            Some(reason) if !by_user => Stage::Unavailable(reason),
            Some(_) | None => Stage::Disconnected { profile: seen.profile, by_user },
        },
        // 60: somebody is asked for a secret. Without an agent it fails within a second (reason 7).
        40 | 50 | 60 => Stage::Activating(link_step(seen)),
        70 | 80 => Stage::Activating(Step::Addressing),
        90 | 100 => Stage::Activated,
        120 => Stage::Failed(cause(seen).unwrap_or(match class {
            Class::Ethernet | Class::Wifi => Reason::NoLink,
            Class::Cell => Reason::NoBearer,
        })),
        // 20, and whatever later versions invent.
        _ => Stage::Unavailable(cause(seen).unwrap_or(match class {
            Class::Ethernet | Class::Wifi => Reason::NoLink,
            Class::Cell => Reason::NoModem,
        })),
    }
}

impl Modem {
    /// Why no bearer can be had now, where waiting for the network is all one can do. A modem that is disabled, or
    /// enabled and idle, registers when it is activated, so that is no cause; one that was registered and lost it is.
    fn unreachable(self) -> Option<Reason> {
        if self.state < modem_state::ENABLED {
            return None;
        }
        match self.registration {
            Some(registration::DENIED) => Some(Reason::RegistrationDenied),
            Some(registration::SEARCHING | registration::EMERGENCY_ONLY) => Some(Reason::NoRegistration),
            Some(registration::IDLE) if self.state >= modem_state::REGISTERED => Some(Reason::NoRegistration),
            Some(_) | None => (self.state == modem_state::SEARCHING).then_some(Reason::NoRegistration),
        }
    }

    /// Why the modem is of no use, or why it failed.
    fn cause(self) -> Option<Reason> {
        match (self.state, self.failed) {
            // SIM missing, SIM error, eSIM without profiles.
            (modem_state::FAILED, 2 | 3 | 5) | (modem_state::LOCKED, _) => Some(Reason::Sim),
            (modem_state::FAILED, _) => Some(Reason::NoModem),
            _ => self.unreachable(),
        }
    }
}

/// The most telling cause of a state: ModemManager's, where it has one, else NetworkManager's.
fn cause(seen: &Sighting) -> Option<Reason> {
    seen.modem.and_then(Modem::cause).or_else(|| reason(seen.reason))
}

/// `NMDeviceStateReason` in the operator's language; `None` for those that name no cause, or a cause that only
/// the kind of device tells.
pub fn reason(code: i64) -> Option<Reason> {
    match code {
        // none, unknown, now managed, configuration failed
        0 | 1 | 2 | 4 => None,
        // now unmanaged, connection removed
        3 | 38 => Some(Reason::NoProfile),
        // address configuration: unavailable, expired; DHCP; shared; auto-IP; duplicate; unsupported method
        5 | 6 | 15..=22 | 64 | 65 => Some(Reason::NoAddress),
        // no secrets, supplicant configuration
        7 | 9 => Some(Reason::NoCredentials),
        // supplicant: disconnected, failed, timed out
        8 | 10 | 11 => Some(Reason::NoLink),
        // PPP; modem: busy, no dial tone, no carrier, dial timed out, dial failed; APN
        12..=14 | 23..=27 | 29 => Some(Reason::NoBearer),
        // modem: initialisation, not found, ModemManager unavailable, failed
        28 | 43 | 52 | 57 => Some(Reason::NoModem),
        // registration: not searching, timed out, failed
        30 | 32 | 33 => Some(Reason::NoRegistration),
        31 => Some(Reason::RegistrationDenied),
        // PIN check, SIM not inserted, PIN, PUK, wrong SIM, PIN incorrect
        34 | 45..=48 | 59 => Some(Reason::Sim),
        37 => Some(Reason::Sleep),
        REASON_USER => Some(Reason::User),
        // firmware missing, removed: the kind of device tells what is missing
        35 | 36 => None,
        // carrier
        40 => Some(Reason::NoLink),
        // connection assumed, supplicant available, modem available
        41 | 42 | 58 => None,
        // Bluetooth, InfiniBand mode, BR2684, DCB, team, Open vSwitch, SR-IOV, Wi-Fi peer; SSID not found
        44 | 49 | 51 | 53 | 55 | 56 | 63 | 66 | 67 => Some(Reason::NoLink),
        // dependency, secondary connection, new activation, parent
        50 | 54 | 60..=62 => None,
        _ => None,
    }
}

/// What of the link layer is under way.
fn link_step(seen: &Sighting) -> Step {
    match (seen.details.class, seen.modem) {
        (Class::Ethernet | Class::Wifi, None) => Step::Joining,
        (_, Some(modem)) => match modem.state {
            0..=2 => Step::Sim,
            3..=7 => Step::Registering,
            _ => Step::Bearer,
        },
        (Class::Cell, None) => Step::Bearer,
    }
}

fn sighting(nm: &Mirror, mm: &Mirror, config: &Config, path: &str) -> Option<(Name, Sighting)> {
    if nm.flag(path, DEVICE, "Real") == Some(false) {
        return None;
    }
    let name = Name::new(nm.text(path, DEVICE, "Interface")?).ok()?;
    let kind = u32::try_from(nm.number(path, DEVICE, "DeviceType")?).ok()?;
    let (state, reason) = state(nm, path)?;
    let driver = nm.text(path, DEVICE, "Driver").unwrap_or_default();
    let class = class_by_device(config, kind, state > 10, name, driver)?;
    let modem_path = (kind == device_type::MODEM).then(|| nm.text(path, DEVICE, "Udi")).flatten();
    let details = Details {
        ip_interface: ip_interface(nm, mm, path, modem_path, name),
        class,
        driver: driver.to_owned(),
        addresses: [("Ip4Config", IP4), ("Ip6Config", IP6)]
            .into_iter()
            .filter_map(|(property, interface)| Some((nm.link(path, DEVICE, property)?, interface)))
            .flat_map(|(ip, interface)| nm.items(ip, interface, "AddressData").iter().filter_map(address))
            .collect(),
        name_servers: name_servers(nm, path),
        signal: signal(nm, mm, path, modem_path),
    };
    let active = nm.link(path, DEVICE, "ActiveConnection");
    let flags = active.and_then(|active| nm.number(active, ACTIVE, "StateFlags"));
    let sighting = Sighting {
        path: path.to_owned(),
        active: active.map(str::to_owned),
        state,
        reason,
        autoconnect: nm.flag(path, DEVICE, "Autoconnect").unwrap_or(true),
        profile: !nm.items(path, DEVICE, "AvailableConnections").is_empty(),
        metered: match nm.number(path, DEVICE, "Metered") {
            Some(1 | 3) => Some(true),
            Some(2 | 4) => Some(false),
            _ => None,
        },
        movable: match flags {
            Some(flags) if kind != device_type::MODEM && flags & EXTERNAL == 0 => {
                let six = details.addresses.iter().any(|address| address.is_ipv6() && routable(address));
                if six && !keeps_ipv6(nm) { Movable::Back } else { Movable::Yes }
            }
            Some(_) | None => Movable::No,
        },
        joined: nm.text(path, WIRELESS, "ActiveAccessPoint").map(|point| point != "/"),
        modem: modem_path.and_then(|modem| {
            Some(Modem {
                state: mm.number(modem, MODEM, "State")?,
                failed: mm.number(modem, MODEM, "StateFailedReason").unwrap_or(0),
                registration: mm.number(modem, MODEM_3GPP, "RegistrationState"),
            })
        }),
        details,
    };
    Some((name, sighting))
}

/// Whether this NetworkManager leaves IPv6 alone when only IPv4 is reapplied: 1.56 was the first.
fn keeps_ipv6(nm: &Mirror) -> bool {
    let version = nm.text(ROOT_PATH, ROOT, "Version").unwrap_or_default();
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(1), Some(56))
}

/// State and reason together. `State` alone is told a message earlier, while the reason still is that of the state
/// before: an operator's disconnect would look like nobody's.
fn state(nm: &Mirror, path: &str) -> Option<(i64, i64)> {
    let pair = nm.get(path, DEVICE, "StateReason")?;
    Some((field(pair, 0)?, field(pair, 1)?))
}

/// Where packets go. Before its first activation NetworkManager does not know a modem's data port; ModemManager
/// does (port type 2 is "net").
fn ip_interface(nm: &Mirror, mm: &Mirror, path: &str, modem: Option<&str>, name: Name) -> Name {
    let said = nm.text(path, DEVICE, "IpInterface").and_then(|text| Name::new(text).ok());
    let port = || {
        let ports = mm.items(modem?, MODEM, "Ports");
        ports.iter().find(|port| field(port, 1) == Some(2)).and_then(|port| match port {
            Variant::Structure(pair) => Name::new(text(pair.fields().first()?)?).ok(),
            _ => None,
        })
    };
    said.filter(|said| *said != name).or_else(port).unwrap_or(name)
}

fn name_servers(nm: &Mirror, path: &str) -> Vec<IpAddr> {
    let four = nm.link(path, DEVICE, "Ip4Config").map_or(&[][..], |ip| nm.items(ip, IP4, "NameserverData"));
    let six = nm.link(path, DEVICE, "Ip6Config").map_or(&[][..], |ip| nm.items(ip, IP6, "Nameservers"));
    four.iter().filter_map(address).chain(six.iter().filter_map(raw_address)).collect()
}

/// The signal of the access point in use, or of the modem; 0 to 100.
fn signal(nm: &Mirror, mm: &Mirror, path: &str, modem: Option<&str>) -> Option<u8> {
    let value = match modem {
        Some(modem) => field(mm.get(modem, MODEM, "SignalQuality")?, 0),
        None => nm.number(nm.link(path, WIRELESS, "ActiveAccessPoint")?, ACCESS_POINT, "Strength"),
    };
    u8::try_from(value?.clamp(0, 100)).ok()
}

/// The `address` of one item of `AddressData` or `NameserverData` (`a{sv}`).
fn address(item: &Variant<'_>) -> Option<IpAddr> {
    let Variant::Dict(dict) = item else { return None };
    let (_, value) = dict.iter().find(|(key, _)| text(key) == Some("address"))?;
    text(value)?.parse().ok()
}

/// An IPv6 address as sixteen bytes (`ay`).
fn raw_address(item: &Variant<'_>) -> Option<IpAddr> {
    let Variant::Array(bytes) = item else { return None };
    let bytes: Vec<u8> = bytes.inner().iter().filter_map(|b| u8::try_from(number(b)?).ok()).collect();
    Some(IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)))
}

/// One number of a structure.
fn field(value: &Variant<'_>, index: usize) -> Option<i64> {
    match value {
        Variant::Structure(fields) => number(fields.fields().get(index)?),
        _ => None,
    }
}

/// Whether an address reaches further than its own link.
pub fn routable(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(four) => !four.is_link_local() && !four.is_loopback() && !four.is_unspecified(),
        IpAddr::V6(six) => !six.is_unicast_link_local() && !six.is_loopback() && !six.is_unspecified(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::mirror::tests::objects;
    use super::*;
    use std::collections::HashMap;

    pub(crate) fn seen(class: Class, state: i64, reason: i64) -> Sighting {
        let name = Name::new("x0").unwrap();
        let details = Details {
            ip_interface: name,
            class,
            driver: String::new(),
            addresses: Vec::new(),
            name_servers: Vec::new(),
            signal: None,
        };
        Sighting {
            path: String::new(),
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

    fn modem(state: i64, failed: i64, registration: i64) -> Option<Modem> {
        Some(Modem { state, failed, registration: Some(registration) })
    }

    #[test]
    fn every_reason_of_network_manager_has_a_word_or_leaves_it_to_the_kind_of_device() {
        use Reason::*;
        // Numbers 0 to 67 of NMDeviceStateReason, in their order.
        let table = [
            None,
            None,
            None,
            Some(NoProfile),
            None,
            Some(NoAddress),
            Some(NoAddress),
            Some(NoCredentials),
            Some(NoLink),
            Some(NoCredentials),
            Some(NoLink),
            Some(NoLink),
            Some(NoBearer),
            Some(NoBearer),
            Some(NoBearer),
            Some(NoAddress),
            Some(NoAddress),
            Some(NoAddress),
            Some(NoAddress),
            Some(NoAddress),
            Some(NoAddress),
            Some(NoAddress),
            Some(NoAddress),
            Some(NoBearer),
            Some(NoBearer),
            Some(NoBearer),
            Some(NoBearer),
            Some(NoBearer),
            Some(NoModem),
            Some(NoBearer),
            Some(NoRegistration),
            Some(RegistrationDenied),
            Some(NoRegistration),
            Some(NoRegistration),
            Some(Sim),
            None,
            None,
            Some(Sleep),
            Some(NoProfile),
            Some(User),
            Some(NoLink),
            None,
            None,
            Some(NoModem),
            Some(NoLink),
            Some(Sim),
            Some(Sim),
            Some(Sim),
            Some(Sim),
            Some(NoLink),
            None,
            Some(NoLink),
            Some(NoModem),
            Some(NoLink),
            None,
            Some(NoLink),
            Some(NoLink),
            Some(NoModem),
            None,
            Some(Sim),
            None,
            None,
            None,
            Some(NoLink),
            Some(NoAddress),
            Some(NoAddress),
            Some(NoLink),
            Some(NoLink),
        ];
        for (code, wanted) in (0i64..).zip(table) {
            assert_eq!(reason(code), wanted, "{code}");
        }
        assert_eq!(reason(68), None);
    }

    #[test]
    fn every_state_of_network_manager_is_a_stage() {
        use Class::*;
        for (class, state, code, wanted) in [
            (Ethernet, 10, 0, "unmanaged"),
            (Ethernet, 20, 40, "unavailable no-link"),
            (Ethernet, 20, 2, "unavailable no-link"),
            (Cell, 20, 2, "unavailable no-modem"),
            (Ethernet, 30, 40, "disconnected"),
            (Ethernet, 40, 0, "joining"),
            (Wifi, 60, 8, "joining"),
            (Cell, 50, 0, "bearer"),
            (Wifi, 70, 0, "addressing"),
            (Wifi, 80, 0, "addressing"),
            (Wifi, 90, 0, "activated"),
            (Wifi, 100, 0, "activated"),
            (Ethernet, 110, 60, "joining"),
            (Ethernet, 110, 36, "disconnected"),
            (Wifi, 120, 7, "failed no-credentials"),
            (Wifi, 120, 53, "failed no-link"),
            (Ethernet, 120, 5, "failed no-address"),
            (Cell, 120, 1, "failed no-bearer"),
            (Cell, 130, 0, "unavailable no-modem"),
        ] {
            assert_eq!(stage(&seen(class, state, code), false).to_string(), wanted, "{class} {state} {code}");
        }
        assert_eq!(stage(&seen(Ethernet, 30, 39), true).to_string(), "disconnected user");
    }

    #[test]
    fn modem_manager_names_the_cause_that_network_manager_does_not_know() {
        for (state, code, modem, wanted) in [
            (20, 2, modem(-1, 2, 0), "unavailable sim"),
            (20, 2, modem(-1, 1, 0), "unavailable no-modem"),
            (20, 2, modem(2, 0, 0), "unavailable sim"),
            // A PIN may be in the profile.
            (30, 0, modem(2, 0, 0), "disconnected"),
            (30, 0, modem(3, 0, 0), "disconnected"),
            (30, 0, modem(6, 0, 0), "disconnected"),
            (30, 0, modem(7, 0, 2), "unavailable no-registration"),
            (30, 0, modem(8, 0, 0), "unavailable no-registration"),
            (30, 0, modem(6, 0, 3), "unavailable registration-denied"),
            (30, 0, modem(8, 0, 5), "disconnected"),
            (50, 0, modem(2, 0, 0), "sim"),
            (50, 0, modem(7, 0, 2), "registering"),
            (50, 0, modem(10, 0, 1), "bearer"),
            (120, 1, modem(7, 0, 2), "failed no-registration"),
            // Packets tell better than ModemManager whether a bearer still works.
            (100, 0, modem(7, 0, 2), "activated"),
        ] {
            let seen = Sighting { modem, ..seen(Class::Cell, state, code) };
            assert_eq!(stage(&seen, false).to_string(), wanted, "{state} {modem:?}");
        }
    }

    #[test]
    fn a_modem_and_its_data_port_are_one_uplink_and_tunnels_are_none() {
        let text = |text: &str| Variant::from(text.to_owned());
        let path = |path: &'static str| Variant::from(zbus::ObjectPath::try_from(path).unwrap());
        let item = |address: &str| HashMap::from([("address".to_owned(), text(address))]);
        let device = |interface: &str, kind: u32, state: u32| {
            vec![
                ("Interface", text(interface)),
                ("DeviceType", kind.into()),
                ("StateReason", (state, 0u32).into()),
                ("Real", true.into()),
            ]
        };
        let mut cell = device("cdc-wdm0", 8, 100);
        cell.extend([
            ("Udi", text("/Modem/0")),
            ("IpInterface", text("")),
            ("Ip4Config", path("/Ip/4")),
            ("Ip6Config", path("/Ip/6")),
            ("Metered", 3u32.into()),
        ]);
        let mut nm = Mirror::new(NETWORK_MANAGER);
        assert!(nm.fill(&objects(&[
            (ROOT_PATH, ROOT, &[("Startup", true.into())]),
            ("/1", DEVICE, &cell),
            ("/2", DEVICE, &device("wwan0", 1, 10)),
            ("/3", DEVICE, &device("tun0", 16, 100)),
            ("/4", DEVICE, &device("veth3", 20, 10)),
            (
                "/Ip/4",
                IP4,
                &[
                    ("AddressData", vec![item("203.0.113.100")].into()),
                    ("NameserverData", vec![item("203.0.113.1")].into()),
                ],
            ),
            (
                "/Ip/6",
                IP6,
                &[("Nameservers", vec![vec![0x20u8, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]].into())]
            ),
        ])));
        let mut mm = Mirror::new(MODEM_MANAGER);
        let ports = vec![("cdc-wdm0".to_owned(), 6u32), ("wwan0".to_owned(), 2u32)];
        assert!(mm.fill(&objects(&[(
            "/Modem/0",
            MODEM,
            &[("State", 11i32.into()), ("Ports", ports.into()), ("SignalQuality", (70u32, true).into())]
        )])));
        assert_eq!(starting(&nm), Some(true));
        let config = crate::classify::tests::config([&[], &[], &[]]);
        let all = sightings(&nm, &mm, &config);
        let [(name, seen)] = &all.iter().collect::<Vec<_>>()[..] else { panic!("{all:?}") };
        assert_eq!(name.as_str(), "cdc-wdm0");
        assert_eq!(seen.details.ip_interface.as_str(), "wwan0");
        assert_eq!(seen.details.signal, Some(70));
        assert_eq!(seen.details.name_servers, ["203.0.113.1", "2001:db8::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
        assert_eq!((seen.metered, seen.profile, seen.state), (Some(true), false, 100));
        assert!(seen.details.addresses.iter().any(routable));
    }

    #[test]
    fn what_may_be_done_to_routes_depends_on_the_device_and_on_the_version() {
        let text = |text: &str| Variant::from(text.to_owned());
        let path = |path: &'static str| Variant::from(zbus::ObjectPath::try_from(path).unwrap());
        let movable = |version: &str, kind: u32, flags: u32, address: &str| {
            let item = HashMap::from([("address".to_owned(), text(address))]);
            let device: &[_] = &[
                ("Interface", text("x0")),
                ("DeviceType", kind.into()),
                ("StateReason", (100u32, 0u32).into()),
                ("ActiveConnection", path("/Active/1")),
                ("Ip6Config", path("/Ip/6")),
            ];
            let mut nm = Mirror::new(NETWORK_MANAGER);
            assert!(nm.fill(&objects(&[
                (ROOT_PATH, ROOT, &[("Version", text(version))]),
                ("/1", DEVICE, device),
                ("/Active/1", ACTIVE, &[("StateFlags", flags.into())]),
                ("/Ip/6", IP6, &[("AddressData", vec![item].into())]),
            ])));
            let config = crate::classify::tests::config([&[], &[], &[]]);
            sightings(&nm, &Mirror::new(MODEM_MANAGER), &config).into_values().next().unwrap().movable
        };
        assert_eq!(movable("1.42.4", 1, 0x1c, "fe80::1"), Movable::Yes);
        assert_eq!(movable("1.42.4", 1, 0x1c, "2001:db8::1"), Movable::Back);
        assert_eq!(movable("1.56.0", 1, 0x1c, "2001:db8::1"), Movable::Yes);
        assert_eq!(movable("1.9.1", 1, 0x1c, "2001:db8::1"), Movable::Back);
        assert_eq!(movable("1.42.4", 8, 0x1c, "fe80::1"), Movable::No);
        assert_eq!(movable("1.42.4", 1, 0x9c, "fe80::1"), Movable::No);
    }

    #[test]
    fn addresses_of_the_link_alone_do_not_count() {
        for (text, wanted) in [
            ("192.0.2.1", true),
            ("10.0.0.1", true),
            ("169.254.7.7", false),
            ("fe80::1", false),
            ("fd00::1", true),
            ("2001:db8::1", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(routable(&text.parse().unwrap()), wanted, "{text}");
        }
    }
}
