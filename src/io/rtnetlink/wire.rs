//! The few route netlink messages we need, as bytes (`rtnetlink(7)`, `netlink(7)`).
//!
//! Reads fixed headers and three attributes and skips everything else, so that no attribute a newer kernel
//! invents can hide a link. Never trusts a length; what does not fit is left out. Numbers are in the machine's
//! own byte order, as the kernel sends them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use switchback_control::Name;

/// One message of the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// A link as it is now. `kind` is its `ARPHRD_*`, `flags` its `IFF_*`.
    Link {
        index: u32,
        name: Name,
        kind: u16,
        flags: u32,
    },
    LinkGone {
        index: u32,
    },
    /// An address as it is now. `usable`: reaches beyond its link and has passed duplicate detection.
    Address {
        index: u32,
        address: Address,
        usable: bool,
    },
    AddressGone {
        index: u32,
        address: Address,
    },
    /// The dump with the envelope's sequence number is complete.
    Done,
    /// The request with the envelope's sequence number failed with this errno.
    Failed(i32),
}

/// An address with its prefix length: what makes it another address of the same interface.
pub type Address = (IpAddr, u8);

/// Which request a message answers (0: none), and whether the dump was disturbed by a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    pub sequence: u32,
    pub interrupted: bool,
}

const HEADER: usize = 16;
/// The dump was inconsistent (`NLM_F_DUMP_INTR`).
const DUMP_INTERRUPTED: u16 = 0x10;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `RT_SCOPE_UNIVERSE`.
const SCOPE_GLOBAL: u8 = 0;
/// `IFA_F_DADFAILED | IFA_F_TENTATIVE`.
const NOT_YET_OURS: u32 = 0x08 | 0x40;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;

/// The request for all links, or all addresses.
pub fn dump(addresses: bool, sequence: u32) -> Vec<u8> {
    let (kind, body) = if addresses { (libc::RTM_GETADDR, 8usize) } else { (libc::RTM_GETLINK, 16) };
    let length = (HEADER + body) as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_DUMP) as u16;
    let mut bytes = Vec::with_capacity(HEADER + body);
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(sequence.to_ne_bytes());
    bytes.resize(HEADER + body, 0);
    bytes
}

/// The messages of one datagram, those we do not need left out.
pub fn messages(datagram: &[u8]) -> Vec<(Envelope, Message)> {
    let mut all = Vec::new();
    let mut rest = datagram;
    while let Some(length) = u32_at(rest, 0).map(|length| length as usize) {
        let Some(message) = rest.get(..length).filter(|message| message.len() >= HEADER) else { break };
        all.extend(one(message));
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    all
}

fn one(message: &[u8]) -> Option<(Envelope, Message)> {
    let kind = u16_at(message, 4)?;
    let envelope = Envelope { sequence: u32_at(message, 8)?, interrupted: u16_at(message, 6)? & DUMP_INTERRUPTED != 0 };
    let body = message.get(HEADER..)?;
    let content = match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => link(kind == libc::RTM_NEWLINK, body)?,
        libc::RTM_NEWADDR | libc::RTM_DELADDR => address(kind == libc::RTM_NEWADDR, body)?,
        kind if i32::from(kind) == libc::NLMSG_DONE => Message::Done,
        kind if i32::from(kind) == libc::NLMSG_ERROR => {
            let errno = u32_at(body, 0)?.cast_signed().wrapping_neg();
            (errno != 0).then_some(Message::Failed(errno))?
        }
        _ => return None,
    };
    Some((envelope, content))
}

/// `struct ifinfomsg`: family, padding, type (2), index (4), flags (4), change (4).
fn link(there: bool, body: &[u8]) -> Option<Message> {
    // A bridge tells of its ports under another family; their going is not the link's.
    if *body.first()? != AF_UNSPEC {
        return None;
    }
    let index = u32_at(body, 4)?;
    if !there {
        return Some(Message::LinkGone { index });
    }
    let text = attribute(body.get(16..)?, IFLA_IFNAME)?;
    let text = text.split(|b| *b == 0).next()?;
    let name = Name::new(std::str::from_utf8(text).ok()?).ok()?;
    Some(Message::Link { index, name, kind: u16_at(body, 2)?, flags: u32_at(body, 8)? })
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index (4).
fn address(there: bool, body: &[u8]) -> Option<Message> {
    let &[family, prefix, flags, scope, ..] = body else { return None };
    let index = u32_at(body, 4)?;
    let attributes = body.get(8..)?;
    // On a point-to-point link the first is the peer's and the second ours.
    let raw = attribute(attributes, IFA_LOCAL).or_else(|| attribute(attributes, IFA_ADDRESS))?;
    let ip = match family {
        AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(raw).ok()?)),
        AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(raw).ok()?)),
        _ => return None,
    };
    let address = (ip, prefix);
    if !there {
        return Some(Message::AddressGone { index, address });
    }
    let flags = attribute(attributes, IFA_FLAGS).and_then(|raw| u32_at(raw, 0)).unwrap_or(u32::from(flags));
    Some(Message::Address { index, address, usable: scope == SCOPE_GLOBAL && flags & NOT_YET_OURS == 0 })
}

/// The first attribute of this type: length (2), type (2), value, padded to four.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let length = usize::from(u16_at(rest, 0)?);
        // The two highest bits are flags (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
        let kind = u16_at(rest, 2)? & 0x3fff;
        let value = rest.get(4..length)?;
        if kind == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One attribute, padded.
    fn attr(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(((4 + value.len()) as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(((HEADER + body.len()) as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }

    fn link_body(family: u8, name: &[u8], flags: u32) -> Vec<u8> {
        let mut body = vec![family, 0];
        body.extend(1u16.to_ne_bytes());
        body.extend(7u32.to_ne_bytes());
        body.extend(flags.to_ne_bytes());
        body.extend([0; 4]);
        body.extend(attr(0x8000 | 60, b"a nested thing we do not know"));
        body.extend(attr(IFLA_IFNAME, name));
        body
    }

    fn address_body(family: u8, scope: u8, flags: u32, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![family, 25, 0, scope];
        body.extend(7u32.to_ne_bytes());
        body.extend(attributes.iter().flat_map(|(kind, value)| attr(*kind, value)));
        body.extend(attr(IFA_FLAGS, &flags.to_ne_bytes()));
        body
    }

    #[test]
    fn a_link_is_read_past_attributes_nobody_knows() {
        let bytes = message(libc::RTM_NEWLINK, 0x10, 3, &link_body(0, b"eth0\0", 0x1_0001));
        let [(envelope, link)] = &messages(&bytes)[..] else { panic!() };
        assert_eq!(*envelope, Envelope { sequence: 3, interrupted: true });
        assert_eq!(*link, Message::Link { index: 7, name: Name::new("eth0").unwrap(), kind: 1, flags: 0x1_0001 });
    }

    #[test]
    fn a_port_that_leaves_a_bridge_is_not_a_link_that_is_gone() {
        assert!(messages(&message(libc::RTM_DELLINK, 0, 0, &link_body(7, b"eth0\0", 0))).is_empty());
    }

    #[test]
    fn of_a_point_to_point_link_our_own_address_counts() {
        let body = address_body(2, 0, 0, &[(IFA_ADDRESS, &[192, 0, 2, 1]), (IFA_LOCAL, &[192, 0, 2, 9])]);
        let address = ("192.0.2.9".parse().unwrap(), 25);
        assert_eq!(
            messages(&message(libc::RTM_NEWADDR, 0, 0, &body))[0].1,
            Message::Address { index: 7, address, usable: true }
        );
    }

    #[test]
    fn tentative_and_link_local_addresses_are_not_usable() {
        for (scope, flags, usable) in [(0, 0, true), (0, 0x40, false), (0, 0x08, false), (253, 0, false)] {
            let body = address_body(10, scope, flags, &[(IFA_ADDRESS, &[0x20; 16])]);
            let [(_, Message::Address { usable: found, .. })] = messages(&message(libc::RTM_NEWADDR, 0, 0, &body))[..]
            else {
                panic!()
            };
            assert_eq!(found, usable, "{scope} {flags}");
        }
    }

    #[test]
    fn an_acknowledgement_is_no_failure() {
        assert!(messages(&message(2, 0, 1, &0i32.to_ne_bytes())).is_empty());
        assert_eq!(messages(&message(2, 0, 1, &(-16i32).to_ne_bytes()))[0].1, Message::Failed(16));
    }

    #[test]
    fn cut_and_twisted_bytes_are_left_out() {
        let mut bytes = message(libc::RTM_NEWLINK, 0, 0, &link_body(0, b"eth0\0", 1));
        bytes.extend(message(libc::RTM_NEWADDR, 0, 0, &address_body(2, 0, 0, &[(IFA_LOCAL, &[192, 0, 2, 9])])));
        for end in 0..bytes.len() {
            messages(&bytes[..end]);
        }
        for at in 0..bytes.len() {
            for value in [0, 1, 3, 4, 0x7f, 0x80, 0xff] {
                let mut twisted = bytes.clone();
                twisted[at] = value;
                messages(&twisted);
            }
        }
    }
}
