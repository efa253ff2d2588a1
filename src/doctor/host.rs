//! This machine: the daemon, the bus, NetworkManager and its rights, clock, disk, the port for applications.

use std::io::ErrorKind;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;
use tokio::time::timeout;
use zbus::{Connection, OwnedVariant};

use super::{Finding, Patient};
use crate::config::Config;
use crate::io::clock;
use crate::outbox::asides;

/// Longest wait for any one answer of the bus.
const BUS_LIMIT: Duration = Duration::from_secs(3);
/// No clock of a machine that this program was made for says less.
const BUILT: &str = "2026-01-01T00:00:00Z";
/// Where rules for polkit are, the distribution's and an administrator's.
const POLKIT_RULES: [&str; 2] = ["/usr/share/polkit-1/rules.d", "/etc/polkit-1/rules.d"];
/// What we ask of NetworkManager.
const CONTROL: &str = "org.freedesktop.NetworkManager.network-control";
/// Largest rule file read, in bytes.
const RULES_MAX: u64 = 64 * 1024;

pub async fn examine(patient: &Patient, config: &Config) -> Vec<Finding> {
    let mut findings = vec![daemon(&patient.daemon)];
    findings.extend(patient.daemon.as_ref().ok().and_then(outbox));
    match timeout(BUS_LIMIT, Connection::system()).await {
        Ok(Ok(bus)) => {
            findings.push(Finding::good("system bus", "answers"));
            findings.push(network_manager(&bus).await);
            findings.push(rights(&bus).await);
            findings.push(time(&bus).await);
        }
        Ok(Err(error)) => findings.push(no_bus(&error.to_string())),
        Err(_) => findings.push(no_bus("it does not answer")),
    }
    findings.push(disk(&patient.state_dir, config.outbox.max_size));
    findings.extend(aside(&patient.state_dir));
    findings.extend(port(config, patient.daemon.is_ok()));
    findings.extend(files(config));
    findings
}

fn daemon(daemon: &Result<Value, String>) -> Finding {
    match daemon {
        Err(why) => Finding::bad("daemon", why.clone(), "systemctl start switchback; journalctl -u switchback -e"),
        Ok(status) => {
            let state = status["state"].as_str().unwrap_or("?");
            match (status["connected"].as_bool(), status["uplink"].as_str()) {
                _ if let Some(says) = status["configuration"]["says"].as_str() => {
                    Finding::bad("daemon", format!("{state}: {says}"), "switchback config check")
                }
                (Some(true), Some(uplink)) => Finding::good("daemon", format!("{state} over {uplink}")),
                _ if matches!(state, "off" | "idle") => {
                    Finding::odd("daemon", format!("{state}: nobody wants a session"), "switchback connect")
                }
                _ => Finding::bad("daemon", format!("{state}: no session"), "see below, or: switchback explain"),
            }
        }
    }
}

/// What the daemon says of its disk, where it is no good.
fn outbox(status: &Value) -> Option<Finding> {
    let trouble = status["outbox"]["trouble"].as_str()?;
    let advice = "free some space, or look into dmesg; until then only the cloud makes a message safe";
    Some(Finding::bad("outbox", format!("the disk keeps nothing: {trouble}"), advice))
}

fn no_bus(why: &str) -> Finding {
    let advice = "systemctl start dbus; without it, interfaces that have an address are used as they are";
    Finding::bad("system bus", why, advice)
}

async fn property(bus: &Connection, service: &str, path: &str, name: &str) -> zbus::Result<OwnedVariant> {
    let what = (service, name);
    let asked = bus.call_method(Some(service), path, Some("org.freedesktop.DBus.Properties"), "Get", &what);
    match timeout(BUS_LIMIT, asked).await {
        Ok(answer) => answer?.body().deserialize(),
        Err(_) => Err(zbus::Error::Failure("no answer".into())),
    }
}

async fn network_manager(bus: &Connection) -> Finding {
    const NAME: &str = "org.freedesktop.NetworkManager";
    match property(bus, NAME, "/org/freedesktop/NetworkManager", "Version").await.map(String::try_from) {
        Ok(Ok(version)) => Finding::good("NetworkManager", version),
        Ok(Err(_)) => Finding::odd("NetworkManager", "does not say its version", "is it NetworkManager 1.42 or newer?"),
        Err(error) => Finding::bad(
            "NetworkManager",
            format!("does not answer: {error}"),
            "systemctl start NetworkManager (apt install network-manager)",
        ),
    }
}

/// Whether the daemon's account may activate connections: NetworkManager says so to itself, and for others the rule tells.
async fn rights(bus: &Connection) -> Finding {
    const NAME: &str = "org.freedesktop.NetworkManager";
    if rustix::process::geteuid().is_root() {
        return match rule() {
            Some(path) => Finding::good("polkit rule", path.display().to_string()),
            None => Finding::odd(
                "polkit rule",
                format!("none in {} names the account switchback", POLKIT_RULES.join(" or ")),
                "install the package, or run the daemon as root; else it cannot activate connections",
            ),
        };
    }
    let asked = bus.call_method(Some(NAME), "/org/freedesktop/NetworkManager", Some(NAME), "GetPermissions", &());
    let permissions = match timeout(BUS_LIMIT, asked).await {
        Ok(Ok(answer)) => answer.body().deserialize::<std::collections::HashMap<String, String>>().ok(),
        Ok(Err(_)) | Err(_) => None,
    };
    match permissions.as_ref().and_then(|permissions| permissions.get(CONTROL)).map(String::as_str) {
        Some("yes") => Finding::good("polkit rule", "this account may activate connections"),
        Some(other) => Finding::odd(
            "polkit rule",
            format!("this account may not activate connections ({other})"),
            "fine for people; look again as the daemon's account: sudo -u switchback switchback doctor",
        ),
        None => Finding::odd("polkit rule", "NetworkManager does not say", "sudo switchback doctor"),
    }
}

/// The first file with rules that speaks of our account.
fn rule() -> Option<PathBuf> {
    let files = POLKIT_RULES.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
    let ours = |path: &PathBuf| {
        let small = std::fs::metadata(path).is_ok_and(|meta| meta.len() <= RULES_MAX);
        small && std::fs::read_to_string(path).is_ok_and(|text| text.contains("\"switchback\""))
    };
    files.map(|entry| entry.path()).find(ours)
}

async fn time(bus: &Connection) -> Finding {
    let now = clock::wall();
    let shown = now.strftime("%F %T UTC").to_string();
    if BUILT.parse().is_ok_and(|built: jiff::Timestamp| now < built) {
        let advice = "timedatectl set-ntp true, or timedatectl set-time; certificates are not valid at this time";
        return Finding::bad("clock", format!("{shown} cannot be"), advice);
    }
    let is = async |name| {
        let answer = property(bus, "org.freedesktop.timedate1", "/org/freedesktop/timedate1", name).await;
        answer.ok().and_then(|value| bool::try_from(value).ok())
    };
    match is("NTPSynchronized").await {
        Some(true) => Finding::good("clock", format!("{shown}, synchronised")),
        Some(false) => {
            // Where nothing can, timedatectl only says so.
            let able = is("CanNTP").await != Some(false);
            let advice = if able { "timedatectl set-ntp true" } else { "apt install systemd-timesyncd" };
            Finding::odd("clock", format!("{shown}, not synchronised"), advice)
        }
        None => Finding::good("clock", shown),
    }
}

fn disk(state: &Path, outbox: u64) -> Finding {
    let place = state.display();
    let system = match rustix::fs::statvfs(state) {
        Ok(system) => system,
        Err(rustix::io::Errno::NOENT) => {
            return Finding::odd("disk", format!("{place} is not there"), "the daemon makes it at its first start");
        }
        Err(error) => return Finding::bad("disk", format!("{place}: {error}"), "is the file system well? dmesg"),
    };
    let free = system.f_bavail.saturating_mul(system.f_frsize);
    if system.f_flag.contains(rustix::fs::StatVfsMountFlags::RDONLY) {
        let advice = "mount -o remount,rw; until then messages are taken only while the cloud answers";
        return Finding::bad("disk", format!("{place} is read-only"), advice);
    }
    let seen = format!("{place}: {} MiB free, the outbox may take {} MiB", free >> 20, outbox >> 20);
    match free < outbox / 8 {
        true => Finding::odd("disk", seen, "free some space, or lower outbox.max_size"),
        false => Finding::good("disk", seen),
    }
}

/// What a newer version wrote, or was damaged.
fn aside(state: &Path) -> Option<Finding> {
    let names = asides(state);
    (!names.is_empty()).then(|| {
        let seen = format!("set aside in {}: {}", state.display(), names.join(", "));
        Finding::odd("state", seen, "install the newer version again to use it, or remove what nobody needs any more")
    })
}

/// Whether applications find us where they look. With a daemon that runs, its own log tells.
fn port(config: &Config, running: bool) -> Option<Finding> {
    let address = config.local.mqtt.filter(|_| !running)?;
    match TcpStream::connect_timeout(&address, Duration::from_secs(1)) {
        Ok(_) => Some(Finding::bad(
            "local port",
            format!("{address} is taken by another program"),
            "stop it, or set local.mqtt to another port; a mosquitto may also stay: see local.broker",
        )),
        Err(_) => Some(Finding::good("local port", format!("{address} is free"))),
    }
}

/// Files that TLS and the login need, as far as this account can see them.
fn files(config: &Config) -> Vec<Finding> {
    let cloud = &config.cloud;
    let named = [
        ("ca_file", &cloud.ca_file),
        ("cert_file", &cloud.cert_file),
        ("key_file", &cloud.key_file),
        ("password_file", &cloud.password_file),
    ];
    let unreadable = |(key, path): (&str, &Option<PathBuf>)| {
        let path = path.as_ref()?;
        let error = std::fs::File::open(path).err()?;
        let advice = match error.kind() {
            ErrorKind::PermissionDenied => {
                format!("chgrp switchback {0}; chmod 640 {0}; or look again as root", path.display())
            }
            _ => format!("put it there, or correct cloud.{key}"),
        };
        Some(Finding::bad("files", format!("cloud.{key} {}: {error}", path.display()), advice))
    };
    named.into_iter().filter_map(unreadable).collect()
}
