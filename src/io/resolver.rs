//! Name servers: a server's name becomes addresses by asking the servers of one uplink, through that uplink.
//!
//! A dead uplink's name server is never asked on behalf of another (R-FX-3, R-IF-12), which no system resolver
//! offers. Every lookup ends within `LOOKUP_LIMIT`; where it fails, addresses that worked before stand in. An answer
//! counts only if it came from the server asked, on the port asked from, with our number and our question.
//! Names are taken as complete: no search list. `/etc/hosts` is honoured. It never says which uplink to use.
//!
//! It is long because asking, checking and remembering an answer are one story.

pub(crate) mod question;

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use simple_dns::TYPE;
use switchback_control::Name;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::time::{sleep_until, timeout};

use self::question::{Query, Said};
use crate::io::{socket, stagger};

/// A whole lookup takes no longer (R-FX-3).
pub const LOOKUP_LIMIT: Duration = Duration::from_secs(3);
/// A server that has not answered for this long is asked again, and the next one is asked too.
const PATIENCE: Duration = Duration::from_secs(1);
/// Wait for the other address family once one has answered (RFC 8305 section 3).
const FAMILY_DELAY: Duration = Duration::from_millis(50);
/// An answer is kept at least this long, so that one dial does not ask twice, and at most that long, so that a server
/// that moved is found within the hour.
const TTL_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3600));
/// Name servers of one uplink that are asked; the C library stops at three too.
const SERVERS_MAX: usize = 3;
/// Steps along CNAME records, in one answer and over answers; chains are short, loops are not.
const ALIASES_MAX: usize = 8;
/// Addresses of one name that are used; more only delays the verdict.
const ADDRESSES_MAX: usize = 16;
/// Names remembered, over all interfaces: a handful of servers times a handful of uplinks.
const REMEMBERED_MAX: usize = 128;
/// Longest `/etc/hosts` read, in bytes; blocklists are larger, and name no server of ours.
const HOSTS_MAX: u64 = 1024 * 1024;

/// Looks names up and remembers what it learnt.
#[derive(Debug)]
pub struct Resolver {
    memory: Mutex<Memory>,
    hosts: PathBuf,
    /// Used for an interface that has no name servers of its own.
    resolv_conf: PathBuf,
    port: u16,
}

#[derive(Debug, Default)]
struct Memory {
    answers: HashMap<(Name, String), Known>,
    /// Addresses that took a connection, the latest last.
    good: Vec<(Name, String, IpAddr)>,
}

#[derive(Clone, Debug)]
struct Known {
    addresses: Vec<IpAddr>,
    until: Instant,
}

impl Default for Resolver {
    fn default() -> Resolver {
        Resolver::reading("/etc/hosts".into(), "/etc/resolv.conf".into(), 53)
    }
}

impl Resolver {
    /// One that reads other files than the system's and asks on another port.
    pub fn reading(hosts: PathBuf, resolv_conf: PathBuf, port: u16) -> Resolver {
        Resolver { memory: Mutex::default(), hosts, resolv_conf, port }
    }

    /// The addresses of `host`, in the order in which to try them; empty when it cannot be resolved and never
    /// could be. `servers` are the uplink's own; `through` is its IP interface.
    pub async fn lookup(&self, host: &str, through: Name, servers: &[IpAddr]) -> Vec<IpAddr> {
        if let Ok(literal) = host.parse() {
            return vec![literal];
        }
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        let listed = listed(&self.read(&self.hosts), &host);
        if !listed.is_empty() {
            return self.ordered(&host, through, listed);
        }
        let key = (through, host);
        if let Some(addresses) = self.recall(&key) {
            return self.ordered(&key.1, through, addresses);
        }
        match self.ask_all(&key.1, through, servers).await {
            Some(found) if !found.addresses.is_empty() => {
                self.remember(key.clone(), &found);
                self.ordered(&key.1, through, found.addresses)
            }
            Some(_) | None => self.reserve(&key),
        }
    }

    /// Notes an address that took a connection: it is tried first from now on, and stands in for failed lookups.
    pub fn worked(&self, host: &str, through: Name, address: IpAddr) {
        let mut memory = self.memory();
        let entry = (through, host.trim_end_matches('.').to_ascii_lowercase(), address);
        memory.good.retain(|good| *good != entry);
        if memory.good.len() >= REMEMBERED_MAX {
            memory.good.remove(0);
        }
        memory.good.push(entry);
    }

    /// Has the next lookup ask again: nothing at these addresses answered, so the server may have moved (R-CS-1).
    pub fn doubt(&self, host: &str, through: Name) {
        if let Some(known) = self.memory().answers.get_mut(&(through, host.trim_end_matches('.').to_ascii_lowercase()))
        {
            known.until = Instant::now();
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        // What a panicking thread left behind is still addresses.
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, path: &PathBuf) -> String {
        use std::io::Read;
        let mut text = Vec::new();
        match std::fs::File::open(path).and_then(|file| file.take(HOSTS_MAX).read_to_end(&mut text)) {
            Ok(_) => String::from_utf8_lossy(&text).into_owned(),
            Err(_) => String::new(),
        }
    }

    fn recall(&self, key: &(Name, String)) -> Option<Vec<IpAddr>> {
        let memory = self.memory();
        let known = memory.answers.get(key).filter(|known| known.until > Instant::now())?;
        Some(known.addresses.clone())
    }

    fn remember(&self, key: (Name, String), found: &Found) {
        let mut memory = self.memory();
        if memory.answers.len() >= REMEMBERED_MAX {
            memory.answers.clear();
        }
        let until = Instant::now() + found.ttl.clamp(TTL_RANGE.0, TTL_RANGE.1);
        memory.answers.insert(key, Known { addresses: found.addresses.clone(), until });
    }

    /// What worked before: through this interface, then through any, then what was once answered here.
    fn reserve(&self, key: &(Name, String)) -> Vec<IpAddr> {
        let memory = self.memory();
        let good = |here: bool| {
            memory.good.iter().rev().filter(move |(name, host, _)| *host == key.1 && (*name == key.0) == here)
        };
        let stale = memory.answers.get(key).map(|known| known.addresses.as_slice()).unwrap_or_default();
        let mut reserve = Vec::new();
        for address in good(true).chain(good(false)).map(|(_, _, address)| address).chain(stale) {
            if !reserve.contains(address) && reserve.len() < ADDRESSES_MAX {
                reserve.push(*address);
            }
        }
        reserve
    }

    fn ordered(&self, host: &str, through: Name, addresses: Vec<IpAddr>) -> Vec<IpAddr> {
        let memory = self.memory();
        let good = memory.good.iter().rev().find(|(name, of, _)| *name == through && of == host);
        interleaved(addresses, good.map(|(_, _, address)| *address))
    }

    async fn ask_all(&self, host: &str, through: Name, servers: &[IpAddr]) -> Option<Found> {
        let servers = match servers {
            [] => name_servers(&self.read(&self.resolv_conf)),
            own => own.to_vec(),
        };
        let tries = servers.into_iter().take(SERVERS_MAX).map(|server| {
            let (host, server) = (host.to_owned(), SocketAddr::new(server, self.port));
            async move { ask(&host, through, server).await }
        });
        // A server that says "no such name" has answered: the others would say the same.
        match timeout(LOOKUP_LIMIT, stagger::first(tries.collect::<Vec<_>>(), PATIENCE)).await {
            Ok(Ok(found)) => Some(found),
            Ok(Err(failures)) => {
                log::debug!("lookup of {host} through {through} failed: {failures:?}");
                None
            }
            Err(_) => {
                log::debug!("lookup of {host} through {through}: no answer within {LOOKUP_LIMIT:?}");
                None
            }
        }
    }
}

/// What a server said; no addresses means that there are none.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Found {
    addresses: Vec<IpAddr>,
    ttl: Duration,
}

/// Asks one server for both address families until it has answered. No limit but the caller's.
async fn ask(host: &str, through: Name, server: SocketAddr) -> io::Result<Found> {
    let mut host = host.to_owned();
    let mut ttl = TTL_RANGE.1;
    for _ in 0..ALIASES_MAX {
        let socket = socket::datagram(server, through).await?;
        let [four, six] = ask_both(&socket, &host, through, server).await?;
        ttl = ttl.min(four.ttl()).min(six.ttl());
        let mut addresses = six.addresses();
        addresses.extend(four.addresses());
        addresses.truncate(ADDRESSES_MAX);
        match (four, six) {
            _ if !addresses.is_empty() => return Ok(Found { addresses, ttl }),
            (Said::Alias(target, _), _) | (_, Said::Alias(target, _)) => host = target,
            (Said::Nothing, Said::Nothing) => return Ok(Found { addresses, ttl }),
            _ => return Err(io::Error::other("the name server failed")),
        }
    }
    Err(io::Error::other("too many aliases"))
}

async fn ask_both(socket: &UdpSocket, host: &str, through: Name, server: SocketAddr) -> io::Result<[Said; 2]> {
    let queries = [Query::new(host, TYPE::A)?, Query::new(host, TYPE::AAAA)?];
    let mut said = [Said::Pending, Said::Pending];
    let mut buffer = vec![0; 4096];
    loop {
        for (query, _) in queries.iter().zip(&said).filter(|(_, said)| **said == Said::Pending) {
            socket.send(&query.bytes).await?;
        }
        let again = tokio::time::Instant::now() + PATIENCE;
        let mut until = again;
        loop {
            let length = tokio::select! {
                length = socket.recv(&mut buffer) => length?,
                () = sleep_until(until) => break,
            };
            let Some(datagram) = buffer.get(..length) else { continue };
            for (query, said) in queries.iter().zip(&mut said).filter(|(_, said)| **said == Said::Pending) {
                match query.read(datagram) {
                    Some(Said::Truncated) => {
                        *said = timeout(PATIENCE, ask_by_stream(query, through, server)).await.unwrap_or(Said::Failed);
                    }
                    Some(answer) => *said = answer,
                    None => {}
                }
            }
            if said.iter().all(|said| *said != Said::Pending) {
                return Ok(said);
            }
            if said.iter().any(|said| matches!(said, Said::Addresses(..))) {
                until = again.min(tokio::time::Instant::now() + FAMILY_DELAY);
            }
        }
        // The other family is still silent; what we have is enough.
        if said.iter().any(|said| matches!(said, Said::Addresses(..))) {
            return Ok(said);
        }
    }
}

/// The same question over TCP, for an answer that did not fit (RFC 1035 section 4.2.2).
async fn ask_by_stream(query: &Query, through: Name, server: SocketAddr) -> Said {
    let exchange = async {
        let mut stream = socket::stream(server, through).await?;
        let length = u16::try_from(query.bytes.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &query.bytes].concat()).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await?;
        io::Result::Ok(answer)
    };
    match exchange.await {
        Ok(answer) => match query.read(&answer) {
            Some(Said::Truncated) | None => Said::Failed,
            Some(said) => said,
        },
        Err(_) => Said::Failed,
    }
}

/// The last good address first, then the families in turn, IPv6 first (RFC 8305 section 4).
fn interleaved(addresses: Vec<IpAddr>, good: Option<IpAddr>) -> Vec<IpAddr> {
    let first = good.filter(|good| addresses.contains(good));
    let (six, four): (Vec<IpAddr>, Vec<IpAddr>) =
        addresses.into_iter().filter(|address| Some(*address) != first).partition(IpAddr::is_ipv6);
    let mut ordered: Vec<IpAddr> = first.into_iter().collect();
    let (mut six, mut four) = (six.into_iter(), four.into_iter());
    loop {
        let pair = [six.next(), four.next()];
        if pair == [None, None] {
            break;
        }
        ordered.extend(pair.into_iter().flatten());
    }
    ordered.truncate(ADDRESSES_MAX);
    ordered
}

/// The addresses that `/etc/hosts` gives a name (hosts(5)).
pub(crate) fn listed(hosts: &str, host: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split('#').next().unwrap_or("").split_ascii_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.trim_end_matches('.').eq_ignore_ascii_case(host)).then_some(address)
    };
    hosts.lines().filter_map(line).take(ADDRESSES_MAX).collect()
}

/// The `nameserver` lines of resolv.conf(5).
pub(crate) fn name_servers(text: &str) -> Vec<IpAddr> {
    let line = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()?.parse().ok()).flatten()
    };
    text.lines().filter_map(line).take(SERVERS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use simple_dns::rdata::{A, AAAA, CNAME, RData};
    use simple_dns::{CLASS, Name as DnsName, Packet, PacketFlag, QTYPE, RCODE, ResourceRecord};
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::net::TcpListener;

    /// How the fake name server behaves.
    #[derive(Clone, Copy, PartialEq)]
    enum Manner {
        Honest,
        NoSuchName,
        Failing,
        /// For IPv4; of IPv6 it says that there is none.
        HalfFailing,
        Silent,
        SilentOnce,
        WrongId,
        WrongQuestion,
        Truncating,
        Chain,
        LooseAlias,
    }

    struct Fake {
        address: SocketAddr,
        asked: Arc<AtomicUsize>,
    }

    fn reply(message: &[u8], manner: Manner, by_stream: bool) -> Option<Vec<u8>> {
        let query = Packet::parse(message).unwrap();
        let question = query.questions[0].clone().into_owned();
        let mut packet = query.into_reply();
        packet.set_flags(PacketFlag::RESPONSE);
        let record =
            |name: &str, data| ResourceRecord::new(DnsName::new(name).unwrap().into_owned(), CLASS::IN, 60, data);
        let asked = question.qname.to_string();
        let address = match question.qtype {
            QTYPE::TYPE(TYPE::A) => RData::A(A { address: u32::from(Ipv4Addr::new(192, 0, 2, 7)) }),
            _ => RData::AAAA(AAAA { address: u128::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)) }),
        };
        let alias = |to: &str| RData::CNAME(CNAME(DnsName::new(to).unwrap().into_owned()));
        match manner {
            Manner::Honest | Manner::SilentOnce => packet.answers.push(record(&asked, address)),
            Manner::NoSuchName => *packet.rcode_mut() = RCODE::NameError,
            Manner::Failing => *packet.rcode_mut() = RCODE::ServerFailure,
            Manner::HalfFailing if question.qtype == QTYPE::TYPE(TYPE::A) => {
                *packet.rcode_mut() = RCODE::ServerFailure;
            }
            Manner::HalfFailing => {}
            Manner::Silent => return None,
            Manner::WrongId => {
                packet.set_id(packet.id().wrapping_add(1));
                packet.answers.push(record(&asked, address));
            }
            Manner::WrongQuestion => {
                packet.questions[0].qname = DnsName::new("other.example").unwrap().into_owned();
                packet.answers.push(record(&asked, address));
            }
            Manner::Truncating if by_stream => packet.answers.push(record(&asked, address)),
            Manner::Truncating => packet.set_flags(PacketFlag::TRUNCATION),
            Manner::Chain => {
                packet.answers.push(record("B.example", alias("c.example")));
                packet.answers.push(record(&asked, alias("b.example")));
                packet.answers.push(record("c.example", address));
            }
            Manner::LooseAlias if asked == "end.example" => packet.answers.push(record(&asked, address)),
            Manner::LooseAlias => packet.answers.push(record(&asked, alias("end.example"))),
        }
        Some(packet.build_bytes_vec().unwrap())
    }

    async fn fake(ip: &str, port: u16, manner: Manner) -> Fake {
        let socket = UdpSocket::bind((ip, port)).await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        tokio::spawn(async move {
            let mut buffer = [0; 1500];
            loop {
                let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
                if count.fetch_add(1, Ordering::Relaxed) < 2 && manner == Manner::SilentOnce {
                    continue;
                }
                if let Some(answer) = reply(&buffer[..length], manner, false) {
                    socket.send_to(&answer, from).await.unwrap();
                }
            }
        });
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut query = vec![0; usize::from(stream.read_u16().await.unwrap())];
                stream.read_exact(&mut query).await.unwrap();
                let answer = reply(&query, manner, true).unwrap();
                stream.write_u16(answer.len() as u16).await.unwrap();
                stream.write_all(&answer).await.unwrap();
            }
        });
        Fake { address, asked }
    }

    fn resolver(port: u16) -> Resolver {
        Resolver::reading("/nonexistent".into(), "/nonexistent".into(), port)
    }

    fn lo() -> Name {
        Name::new("lo").unwrap()
    }

    async fn ask_one(manner: Manner) -> (Vec<IpAddr>, Duration) {
        let server = fake("127.0.0.1", 0, manner).await;
        let began = Instant::now();
        let found = resolver(server.address.port()).lookup("broker.example", lo(), &[server.address.ip()]).await;
        (found, began.elapsed())
    }

    fn both() -> Vec<IpAddr> {
        vec!["2001:db8::7".parse().unwrap(), "192.0.2.7".parse().unwrap()]
    }

    #[tokio::test]
    async fn both_families_are_found_ipv6_first() {
        assert_eq!(ask_one(Manner::Honest).await.0, both());
    }

    #[tokio::test]
    async fn aliases_are_followed_within_an_answer_and_over_answers() {
        assert_eq!(ask_one(Manner::Chain).await.0, both());
        assert_eq!(ask_one(Manner::LooseAlias).await.0, both());
    }

    #[tokio::test]
    async fn an_answer_that_does_not_fit_is_fetched_over_tcp() {
        assert_eq!(ask_one(Manner::Truncating).await.0, both());
    }

    #[tokio::test]
    async fn a_lost_question_is_asked_again() {
        let (found, took) = ask_one(Manner::SilentOnce).await;
        assert_eq!(found, both());
        assert!(took >= PATIENCE && took < LOOKUP_LIMIT, "{took:?}");
    }

    #[tokio::test]
    async fn answers_to_other_questions_are_not_believed_and_silence_ends() {
        for manner in [Manner::WrongId, Manner::WrongQuestion, Manner::Silent] {
            let (found, took) = ask_one(manner).await;
            assert!(found.is_empty());
            assert!(took >= LOOKUP_LIMIT && took < LOOKUP_LIMIT + PATIENCE, "{took:?}");
        }
    }

    #[tokio::test]
    async fn no_such_name_is_an_answer_and_ends_at_once() {
        let (found, took) = ask_one(Manner::NoSuchName).await;
        assert!(found.is_empty() && took < PATIENCE, "{took:?}");
    }

    #[tokio::test]
    async fn a_failing_server_hands_over_at_once_and_a_silent_one_soon() {
        for (manner, least) in
            [(Manner::Failing, Duration::ZERO), (Manner::HalfFailing, Duration::ZERO), (Manner::Silent, PATIENCE)]
        {
            let good = fake("127.0.0.3", 0, Manner::Honest).await;
            let port = good.address.port();
            let bad = fake("127.0.0.2", port, manner).await;
            let began = Instant::now();
            let servers = [bad.address.ip(), good.address.ip()];
            assert_eq!(resolver(port).lookup("broker.example", lo(), &servers).await, both());
            let took = began.elapsed();
            assert!(took >= least && took < least + PATIENCE, "{took:?}");
        }
    }

    #[tokio::test]
    async fn an_answer_is_kept_for_its_time_and_per_interface_until_it_is_doubted() {
        let server = fake("127.0.0.1", 0, Manner::Honest).await;
        let resolver = resolver(server.address.port());
        let asked = || server.asked.load(Ordering::Relaxed);
        for _ in 0..3 {
            assert_eq!(resolver.lookup("Broker.example.", lo(), &[server.address.ip()]).await, both());
        }
        assert_eq!(asked(), 2);
        let other = Name::new("other0").unwrap();
        assert_eq!(resolver.lookup("broker.example", other, &[server.address.ip()]).await, both());
        assert_eq!(asked(), 4);
        resolver.doubt("broker.example", lo());
        assert_eq!(resolver.lookup("broker.example", lo(), &[server.address.ip()]).await, both());
        assert_eq!(asked(), 6);
    }

    #[tokio::test]
    async fn where_lookups_fail_the_last_good_address_stands_in() {
        let server = fake("127.0.0.1", 0, Manner::Failing).await;
        let resolver = resolver(server.address.port());
        let address: IpAddr = "192.0.2.9".parse().unwrap();
        resolver.worked("broker.example", Name::new("eth0").unwrap(), address);
        assert_eq!(resolver.lookup("broker.example", lo(), &[server.address.ip()]).await, [address]);
        assert!(resolver.lookup("else.example", lo(), &[server.address.ip()]).await.is_empty());
    }

    #[tokio::test]
    async fn literals_and_listed_hosts_ask_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let hosts = folder.path().join("hosts");
        std::fs::write(&hosts, "192.0.2.1 a broker.example # comment\n2001:db8::1\tBroker.Example\n").unwrap();
        let resolver = Resolver::reading(hosts, "/nonexistent".into(), 1);
        assert_eq!(resolver.lookup("192.0.2.4", lo(), &[]).await, ["192.0.2.4".parse::<IpAddr>().unwrap()]);
        let listed = ["2001:db8::1".parse::<IpAddr>().unwrap(), "192.0.2.1".parse().unwrap()];
        assert_eq!(resolver.lookup("broker.example", lo(), &[]).await, listed);
        assert!(resolver.lookup("comment", lo(), &[]).await.is_empty());
    }

    #[tokio::test]
    async fn without_own_servers_those_of_resolv_conf_are_asked() {
        let server = fake("127.0.0.1", 0, Manner::Honest).await;
        let folder = tempfile::tempdir().unwrap();
        let conf = folder.path().join("resolv.conf");
        std::fs::write(&conf, "# x\nsearch example\nnameserver 127.0.0.1\noptions edns0\n").unwrap();
        let resolver = Resolver::reading("/nonexistent".into(), conf, server.address.port());
        assert_eq!(resolver.lookup("broker.example", lo(), &[]).await, both());
    }

    #[test]
    fn the_last_good_address_is_tried_first_and_families_take_turns() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<IpAddr>>();
        let addresses = of(&["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2"]);
        assert_eq!(
            interleaved(addresses.clone(), Some("192.0.2.3".parse().unwrap())),
            of(&["192.0.2.3", "2001:db8::1", "192.0.2.1", "2001:db8::2", "192.0.2.2"])
        );
        assert_eq!(interleaved(addresses, Some("192.0.2.99".parse().unwrap()))[0], of(&["2001:db8::1"])[0]);
    }

    #[test]
    fn no_bytes_from_a_name_server_make_it_panic() {
        let query = Query::new("broker.example", TYPE::A).unwrap();
        let honest = reply(&query.bytes, Manner::Chain, false).unwrap();
        for at in 0..honest.len() {
            for value in [0, 1, 0x3f, 0x7f, 0x80, 0xc0, 0xff] {
                let mut broken = honest.clone();
                broken[at] = value;
                query.read(&broken);
                query.read(&broken[..at]);
            }
        }
    }
}
