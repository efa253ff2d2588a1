//! Each uplink by itself: what the kernel and NetworkManager say of it, and how far a connection through it comes.
//!
//! The picture is the daemon's own, made by the same adapters and the same heart, which is told to do nothing. Each
//! server is looked up by the uplink's name servers and connected to by a socket bound to it, up to the end of the TLS
//! handshake. The uplink that carries the session is not dialled through again when it costs money.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use switchback_control::status::UplinkStatus;
use switchback_control::{Class, Control, Event, Reason, Saved, Settings, Start};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::{Finding, Patient};
use crate::api::{in_words, known_as};
use crate::config::{Config, Server};
use crate::io::cloud::verdict;
use crate::io::resolver::Resolver;
use crate::io::tls::{self, Tls};
use crate::io::{clock, network_manager, rtnetlink, socket, stagger};
use crate::uplinks::{Details, Uplinks};

/// How long the adapters get to tell of every interface (a small machine that has just booted is slow), and how long a
/// silence means that they have, once NetworkManager has spoken or is known to be away.
const LOOK: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_millis(700);
/// Events of the adapters that may wait.
const EVENTS_MAX: usize = 256;
/// Longest wait for a connection, and for its TLS handshake: longer than a modem takes to wake.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The next address is tried when one is silent this long (RFC 8305 section 5).
const ADDRESS_DELAY: Duration = Duration::from_millis(250);

pub async fn examine(patient: &Patient, config: Arc<Config>) -> Vec<Finding> {
    let known = Uplinks::new();
    let control = look(config.clone(), known.clone()).await;
    let status = control.status();
    if status.uplinks.is_empty() {
        let advice = "is there a cable, a Wi-Fi profile, a modem? nmcli device";
        return vec![Finding::bad("uplinks", "none was found", advice)];
    }
    let place = |name| status.walk.iter().position(|other| *other == name).unwrap_or(status.walk.len());
    let by_rank: BTreeMap<usize, &UplinkStatus> =
        status.uplinks.iter().map(|uplink| (place(uplink.interface), uplink)).collect();
    let (resolver, tls) = (Resolver::default(), Tls::new(&config.cloud));
    let carries = patient.daemon.as_ref().ok().and_then(|status| status["uplink"].as_str());
    let mut findings = Vec::new();
    for uplink in by_rank.into_values() {
        let details = known.details(uplink.interface);
        let label = format!("{} ({})", known_as(&status, uplink.interface), uplink.class);
        let link = link(uplink, details.as_ref());
        let ready = link.health != super::Health::Bad;
        findings.push(link.through(&label));
        if carries == Some(uplink.name.as_str()) {
            findings.push(session(patient).through(&label));
            if uplink.metered {
                continue;
            }
        }
        for server in config.cloud.servers.iter().filter(|_| ready) {
            let through =
                Through { uplink, details: details.as_ref(), config: &config, resolver: &resolver, tls: &tls };
            findings.extend(through.reach(server).await.into_iter().map(|finding| finding.through(&label)));
        }
    }
    findings
}

/// A heart that only looks, once the adapters have told it everything.
async fn look(config: Arc<Config>, known: Uplinks) -> Control {
    let settings = Settings { start: Start::Idle, ..config.settings.clone() };
    let mut control = Control::restore(settings, Saved::default(), &[], 0, 0, clock::now());
    let (events, mut told) = mpsc::channel::<Event>(EVENTS_MAX);
    let _links = rtnetlink::start(config.clone(), known.clone(), events.clone());
    let _network_manager = network_manager::start(config, known, events);
    let until = Instant::now() + LOOK;
    let mut spoke = false;
    while Instant::now() < until {
        match timeout(SILENCE, told.recv()).await {
            Ok(Some(event)) => {
                spoke |= matches!(event, Event::NetworkManagerChanged { .. });
                drop(control.step(clock::now(), &event));
            }
            Ok(None) => break,
            Err(_) if spoke => break,
            Err(_) => {}
        }
    }
    control
}

fn link(uplink: &UplinkStatus, details: Option<&Details>) -> Finding {
    let addresses: Vec<String> =
        details.into_iter().flat_map(|details| &details.addresses).map(ToString::to_string).collect();
    let signal =
        details.and_then(|details| details.signal).map(|signal| format!(", signal {signal} %")).unwrap_or_default();
    if uplink.usable {
        let addresses = if addresses.is_empty() { "up".to_owned() } else { addresses.join(", ") };
        return Finding::good("link", format!("{addresses}{signal}"));
    }
    let reason = uplink.reason.unwrap_or(Reason::NoLink);
    Finding::bad("link", format!("{}{signal}", in_words(reason)), advice(reason, uplink))
}

/// What to type when an interface is not ready.
fn advice(reason: Reason, uplink: &UplinkStatus) -> String {
    let name = uplink.name;
    match (reason, uplink.class) {
        (Reason::NoLink, Class::Ethernet) => format!("is the cable plugged in at both ends? ip link show {name}"),
        (Reason::NoLink, Class::Wifi) => format!("nmcli device wifi list ifname {name}; nmcli radio"),
        (Reason::NoProfile, Class::Wifi) => format!("nmcli device wifi connect SSID password KEY ifname {name}"),
        (Reason::NoProfile, Class::Cell) => "nmcli connection add type gsm ifname '*' apn APN".into(),
        (Reason::NoProfile, Class::Ethernet) => format!("nmcli device connect {name}"),
        (Reason::NoAddress, _) => format!("does a DHCP server answer there? nmcli device show {name}"),
        (Reason::NoCredentials, _) => format!("nmcli --ask connection up ifname {name}"),
        (Reason::User, _) => format!("nmcli device connect {name}"),
        (_, Class::Cell) => "mmcli -m any: is the SIM in, unlocked, and registered?".into(),
        (_, Class::Ethernet | Class::Wifi) => format!("nmcli device show {name}"),
    }
}

fn session(patient: &Patient) -> Finding {
    let none = Value::Null;
    let session = patient.daemon.as_ref().map_or(&none, |status| &status["session"]);
    let text = |key: &str| session[key].as_str().unwrap_or("?").to_owned();
    let seen = format!("with {}, MQTT {}, round trip {} ms", text("server"), text("protocol"), session["rtt_ms"]);
    Finding::good("session", seen)
}

/// One server through one uplink.
struct Through<'a> {
    uplink: &'a UplinkStatus,
    details: Option<&'a Details>,
    config: &'a Config,
    resolver: &'a Resolver,
    tls: &'a Tls,
}

impl Through<'_> {
    async fn reach(&self, server: &Server) -> Vec<Finding> {
        let mut findings = Vec::new();
        let device = self.uplink.name;
        let name_servers = self.details.map(|details| details.name_servers.clone()).unwrap_or_default();
        let began = Instant::now();
        let addresses = self.resolver.lookup(&server.host, device, &name_servers).await;
        let asked: Vec<String> = name_servers.iter().map(ToString::to_string).collect();
        if addresses.is_empty() {
            let advice = match asked.is_empty() {
                true => format!("no name server is known for {device}: nmcli device show {device}"),
                false => format!("{} did not answer or do not know it; is the name right?", asked.join(", ")),
            };
            findings.push(Finding::bad("name lookup", server.host.clone(), advice));
            return findings;
        }
        if server.host.parse::<std::net::IpAddr>().is_err() {
            let found: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let seen = format!("{} is {} ({} ms)", server.host, found.join(", "), began.elapsed().as_millis());
            findings.push(Finding::good("name lookup", seen));
        }
        let began = Instant::now();
        let options = self.config.uplink(device, self.uplink.class).socket.clone();
        let tries = addresses.into_iter().map(|address| {
            let to = SocketAddr::new(address, server.port);
            let options = options.clone();
            async move { socket::connect(to, device, &options).await }
        });
        let stream = match timeout(CONNECT_LIMIT, stagger::first(tries.collect::<Vec<_>>(), ADDRESS_DELAY)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(failures)) => {
                let reason = failures.first().map_or(Reason::NoServer, |failure| verdict(failure).reason);
                findings.push(Finding::bad("connection", format!("{server}: {}", in_words(reason)), blocked(server)));
                return findings;
            }
            Err(_) => {
                findings.push(Finding::bad("connection", format!("{server}: no answer"), blocked(server)));
                return findings;
            }
        };
        let seen = format!("{server} answers in {} ms", began.elapsed().as_millis());
        findings.push(Finding::good("connection", seen));
        if server.tls {
            let began = Instant::now();
            findings.push(match timeout(CONNECT_LIMIT, self.tls.connect(&server.host, stream)).await {
                Ok(Ok(_)) => Finding::good("TLS", format!("trusted, in {} ms", began.elapsed().as_millis())),
                Ok(Err(tls::Failure::Files(problem))) => Finding::bad("TLS", problem, "switchback config check"),
                Ok(Err(tls::Failure::Handshake(error))) => {
                    let reason = tls::reason(&error).unwrap_or(verdict(&error).reason);
                    Finding::bad("TLS", in_words(reason), self.tls.explain(&server.host, &error))
                }
                Err(_) => Finding::bad("TLS", "no answer to our greeting", "is this a port for TLS (8883)?"),
            });
        }
        findings
    }
}

fn blocked(server: &Server) -> String {
    format!("does a firewall on the way let port {} out? does the server run?", server.port)
}
