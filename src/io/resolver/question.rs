//! One DNS question and what a message says to it (RFC 1035).
//!
//! Pure: bytes in, words out. A message counts only with our number and our question in it; aliases are followed
//! within it, and no further. No bytes make it panic.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name as DnsName, Packet, PacketFlag, QTYPE, Question, RCODE, TYPE};

use super::{ALIASES_MAX, TTL_RANGE};

/// The state of one question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    Pending,
    Addresses(Vec<IpAddr>, Duration),
    /// Only another name to ask for.
    Alias(String, Duration),
    /// No such name, or none of this family.
    Nothing,
    Truncated,
    Failed,
}

impl Said {
    pub fn ttl(&self) -> Duration {
        match self {
            Said::Addresses(_, ttl) | Said::Alias(_, ttl) => *ttl,
            Said::Pending | Said::Nothing | Said::Truncated | Said::Failed => TTL_RANGE.1,
        }
    }

    pub fn addresses(&self) -> Vec<IpAddr> {
        match self {
            Said::Addresses(addresses, _) => addresses.clone(),
            Said::Pending | Said::Alias(..) | Said::Nothing | Said::Truncated | Said::Failed => Vec::new(),
        }
    }
}

/// One question, and how its answer is recognised.
#[derive(Debug)]
pub struct Query {
    id: u16,
    host: String,
    kind: TYPE,
    /// The message to send.
    pub bytes: Vec<u8>,
}

impl Query {
    /// Errors where `host` is no name that could be asked for.
    pub fn new(host: &str, kind: TYPE) -> io::Result<Query> {
        // The standard library keys its hasher from the kernel's randomness; enough for a number that a stranger off
        // the path must guess together with our port.
        let id = RandomState::new().build_hasher().finish() as u16;
        let mut packet = Packet::new_query(id);
        packet.set_flags(PacketFlag::RECURSION_DESIRED);
        let name = DnsName::new(host).map_err(io::Error::other)?;
        packet.questions.push(Question::new(name, QTYPE::TYPE(kind), CLASS::IN.into(), false));
        let bytes = packet.build_bytes_vec().map_err(io::Error::other)?;
        Ok(Query { id, host: host.to_owned(), kind, bytes })
    }

    /// What a message says to this question; `None` when it is no answer to it.
    pub fn read(&self, message: &[u8]) -> Option<Said> {
        if !could_hold_what_it_counts(message) {
            return None;
        }
        let packet = Packet::parse(message).ok()?;
        let [question] = packet.questions.as_slice() else { return None };
        let ours = packet.id() == self.id
            && packet.has_flags(PacketFlag::RESPONSE)
            && question.qtype == QTYPE::TYPE(self.kind)
            && question.qclass == CLASS::IN.into()
            && same(&question.qname, &self.host);
        if !ours {
            return None;
        }
        if packet.has_flags(PacketFlag::TRUNCATION) {
            return Some(Said::Truncated);
        }
        Some(match packet.rcode() {
            RCODE::NoError => self.chase(&packet),
            RCODE::NameError => Said::Nothing,
            _ => Said::Failed,
        })
    }

    /// Follows the aliases within one answer to the addresses at their end.
    fn chase(&self, packet: &Packet<'_>) -> Said {
        let mut at = self.host.clone();
        let mut ttl = TTL_RANGE.1;
        for _ in 0..ALIASES_MAX {
            let alias = packet.answers.iter().find_map(|record| match &record.rdata {
                RData::CNAME(target) if same(&record.name, &at) => Some((target.0.to_string(), record.ttl)),
                _ => None,
            });
            let Some((target, seconds)) = alias else { break };
            ttl = ttl.min(Duration::from_secs(u64::from(seconds)));
            at = target;
        }
        let mut addresses = Vec::new();
        for record in packet.answers.iter().filter(|record| same(&record.name, &at)) {
            let address: IpAddr = match &record.rdata {
                RData::A(a) if self.kind == TYPE::A => Ipv4Addr::from(a.address).into(),
                RData::AAAA(aaaa) if self.kind == TYPE::AAAA => Ipv6Addr::from(aaaa.address).into(),
                _ => continue,
            };
            ttl = ttl.min(Duration::from_secs(u64::from(record.ttl)));
            addresses.push(address);
        }
        match addresses.is_empty() {
            false => Said::Addresses(addresses, ttl),
            true if at.eq_ignore_ascii_case(&self.host) => Said::Nothing,
            true => Said::Alias(at, ttl),
        }
    }
}

/// The library makes room for as many records as a header counts, four megabytes for twelve bytes, before it looks for
/// them. A question has at least five bytes, a record eleven.
fn could_hold_what_it_counts(message: &[u8]) -> bool {
    let Some(counts) = message.get(4..12) else { return false };
    let least = counts.chunks_exact(2).zip([5, 11, 11, 11]).map(|(count, bytes)| match count {
        [high, low] => usize::from(u16::from_be_bytes([*high, *low])) * bytes,
        _ => 0,
    });
    least.sum::<usize>() <= message.len() - 12
}

fn same(name: &DnsName<'_>, host: &str) -> bool {
    name.to_string().trim_end_matches('.').eq_ignore_ascii_case(host.trim_end_matches('.'))
}
