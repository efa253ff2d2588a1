//! What an interface is called, and which class it belongs to.
//!
//! A `Name` is a kernel interface name or a modem's control port (`cdc-wdm0`): at most 15 bytes, as the
//! kernel allows (`IFNAMSIZ` less its terminator), so it is copied freely and never allocates. A
//! `Selector` is one item of a failover list: a whole class or one name.

use core::fmt;
use core::str::FromStr;

/// Longest interface name the kernel accepts, in bytes (`IFNAMSIZ - 1`, see `netdevice(7)`).
pub const NAME_MAX: usize = 15;

/// The name of one interface, 1 to 15 bytes of printable ASCII without `/` and spaces.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    bytes: [u8; NAME_MAX],
    len: u8,
}

/// The text was empty, longer than 15 bytes, or held something that no interface name may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotAName;

impl Name {
    /// Takes `text` as a name, if the kernel would.
    pub fn new(text: &str) -> Result<Name, NotAName> {
        let ok = |b: u8| b.is_ascii_graphic() && b != b'/' && b != b':';
        if text.is_empty() || text.len() > NAME_MAX || text == "." || text == ".." || !text.bytes().all(ok) {
            return Err(NotAName);
        }
        let mut bytes = [0; NAME_MAX];
        for (to, from) in bytes.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Ok(Name { bytes, len: text.len() as u8 })
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.len as usize).and_then(|b| core::str::from_utf8(b).ok()).unwrap_or("")
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Name, NotAName> {
        Name::new(text)
    }
}

/// What kind of uplink an interface is. The order is the default tail of every walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Class {
    Ethernet,
    Wifi,
    Cell,
}

impl Class {
    /// Every class, in the order of the default tail.
    pub const ALL: [Class; 3] = [Class::Ethernet, Class::Wifi, Class::Cell];

    /// The word users write and read.
    pub const fn as_str(self) -> &'static str {
        match self {
            Class::Ethernet => "ethernet",
            Class::Wifi => "wifi",
            Class::Cell => "cell",
        }
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Class {
    type Err = NotAName;

    /// `eth` is taken for `ethernet`.
    fn from_str(text: &str) -> Result<Class, NotAName> {
        match text {
            "ethernet" | "eth" => Ok(Class::Ethernet),
            "wifi" => Ok(Class::Wifi),
            "cell" => Ok(Class::Cell),
            _ => Err(NotAName),
        }
    }
}

/// One item of a failover list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    Class(Class),
    Name(Name),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Class(class) => class.fmt(f),
            Selector::Name(name) => name.fmt(f),
        }
    }
}

impl FromStr for Selector {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Selector, NotAName> {
        match text.parse() {
            Ok(class) => Ok(Selector::Class(class)),
            Err(NotAName) => Name::new(text).map(Selector::Name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_the_kernel_would_take() {
        for good in ["e", "eth0", "cdc-wdm0", "enp0s31f6", "a23456789012345", "br-1.2@x"] {
            assert_eq!(Name::new(good).map(|n| n.as_str() == good), Ok(true), "{good}");
        }
        for bad in ["", ".", "..", "a b", "a/b", "a:b", "a234567890123456", "ä", "a\n"] {
            assert_eq!(Name::new(bad), Err(NotAName), "{bad}");
        }
    }

    #[test]
    fn eth_alone_is_the_class_and_eth0_is_a_name() {
        assert_eq!("eth".parse(), Ok(Selector::Class(Class::Ethernet)));
        assert_eq!("ethernet".parse(), Ok(Selector::Class(Class::Ethernet)));
        assert_eq!("eth0".parse(), Name::new("eth0").map(Selector::Name));
        assert_eq!(Selector::from_str("a b"), Err(NotAName));
    }
}
