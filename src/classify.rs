//! Which class an interface belongs to: `match` rules first, then what kind of thing it is.
//!
//! Pure: facts from NetworkManager or from sysfs come in, a class or nothing goes out. Nothing means that the
//! interface is no uplink (a bridge, a tunnel, a container's cable) unless a rule names it. Never reads anything
//! itself and never looks at whether an interface works.

use switchback_control::{Class, Name};

use crate::config::{Config, Match, pattern_matches};

/// `NMDeviceType`, the ones that are uplinks by themselves.
pub mod device_type {
    pub const ETHERNET: u32 = 1;
    pub const WIFI: u32 = 2;
    pub const MODEM: u32 = 8;
    /// Counts as Ethernet where NetworkManager manages it: nobody manages a container's cable.
    pub const VETH: u32 = 20;
}

/// What sysfs says of a link, for life without NetworkManager.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelFacts {
    /// `DEVTYPE` of `/sys/class/net/NAME/uevent`; most Ethernet cards have none.
    pub devtype: Option<String>,
    /// It has a `wireless` or `phy80211` directory.
    pub wireless: bool,
    /// The driver's name; empty when there is none.
    pub driver: String,
    /// No hardware behind it (below `/sys/devices/virtual`).
    pub virtual_link: bool,
}

/// The class whose `match` rules name this interface. Classes are asked in their order, so the first one wins.
pub fn class_by_rule(config: &Config, name: Name, driver: &str) -> Option<Class> {
    let matches = |rule: &Match| match rule {
        Match::Name(pattern) => pattern_matches(pattern, name.as_str()),
        Match::Driver(pattern) => pattern_matches(pattern, driver),
    };
    Class::ALL.into_iter().zip(&config.classes).find(|(_, uplink)| uplink.matches.iter().any(matches)).map(|(c, _)| c)
}

/// The class of a device as NetworkManager describes it (`NMDeviceType`).
pub fn class_by_device(config: &Config, kind: u32, managed: bool, name: Name, driver: &str) -> Option<Class> {
    class_by_rule(config, name, driver).or(match kind {
        device_type::ETHERNET => Some(Class::Ethernet),
        device_type::WIFI => Some(Class::Wifi),
        device_type::MODEM => Some(Class::Cell),
        device_type::VETH if managed => Some(Class::Ethernet),
        _ => None,
    })
}

/// The class of a link as the kernel describes it.
pub fn class_by_kernel(config: &Config, name: Name, facts: &KernelFacts) -> Option<Class> {
    let text = name.as_str();
    let by_kind = || match facts.devtype.as_deref() {
        Some("wlan") => Some(Class::Wifi),
        Some("wwan") => Some(Class::Cell),
        // bridge, vlan, bond, vxlan …: built upon other links, which are the uplinks.
        Some(_) => None,
        None if facts.wireless => Some(Class::Wifi),
        // A call has no hardware in sysfs.
        None if text.starts_with("ppp") => Some(Class::Cell),
        None if facts.virtual_link => text.starts_with("eth").then_some(Class::Ethernet),
        None if text.starts_with("ww") => Some(Class::Cell),
        None if text.starts_with("wl") => Some(Class::Wifi),
        None if text.starts_with('e') => Some(Class::Ethernet),
        None => None,
    };
    class_by_rule(config, name, &facts.driver).or_else(by_kind)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The defaults with these `match` rules.
    pub(crate) fn config(rules: [&[Match]; 3]) -> Config {
        let mut config = Config::defaults();
        for (class, matches) in config.classes.iter_mut().zip(rules) {
            class.matches = matches.to_vec();
        }
        config
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn a_rule_wins_over_the_kind_of_device() {
        let config = config([&[], &[Match::Name("wlan0".into())], &[Match::Driver("rndis_*".into())]]);
        let class = |kind, n, driver| class_by_device(&config, kind, true, name(n), driver);
        assert_eq!(class(device_type::ETHERNET, "enx0", "rndis_host"), Some(Class::Cell));
        assert_eq!(class(device_type::VETH, "wlan0", "veth"), Some(Class::Wifi));
        assert_eq!(class(device_type::ETHERNET, "eth0", "r8169"), Some(Class::Ethernet));
    }

    #[test]
    fn tunnels_bridges_and_unmanaged_cables_are_no_uplinks() {
        let config = config([&[], &[], &[]]);
        for kind in [13, 14, 16, 29, 32] {
            assert_eq!(class_by_device(&config, kind, true, name("x0"), ""), None);
        }
        assert_eq!(class_by_device(&config, device_type::VETH, false, name("veth1"), "veth"), None);
    }

    #[test]
    fn the_kernel_alone_tells_classes_apart() {
        let config = config([&[], &[], &[Match::Name("usb*".into())]]);
        let facts = |devtype: Option<&str>, wireless, virtual_link| KernelFacts {
            devtype: devtype.map(String::from),
            wireless,
            driver: String::new(),
            virtual_link,
        };
        let class = |n, facts| class_by_kernel(&config, name(n), &facts);
        assert_eq!(class("enp3s0", facts(None, false, false)), Some(Class::Ethernet));
        assert_eq!(class("foo", facts(Some("wlan"), true, false)), Some(Class::Wifi));
        assert_eq!(class("foo", facts(None, true, false)), Some(Class::Wifi));
        assert_eq!(class("wwp0s20u1", facts(Some("wwan"), false, false)), Some(Class::Cell));
        assert_eq!(class("ppp0", facts(None, false, true)), Some(Class::Cell));
        assert_eq!(class("usb0", facts(None, false, false)), Some(Class::Cell));
        assert_eq!(class("eth0", facts(None, false, true)), Some(Class::Ethernet));
        assert_eq!(class("veth12", facts(None, false, true)), None);
        assert_eq!(class("ens-br", facts(Some("bridge"), false, true)), None);
        assert_eq!(class("tun0", facts(None, false, true)), None);
    }
}
