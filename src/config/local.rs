//! `[local]` and `[status]`: where we listen on this machine, or which broker serves its applications in our place.
//!
//! Always true of what is taken: no two of our ports are one, none is also a server of ours, and a broker of somebody else
//! is on this machine. Nothing is opened here.

use std::net::SocketAddr;

use super::reader::{Reader, Section, Seen};
use super::{Config, LocalBroker, text};

/// Takes both sections.
pub fn listeners(reader: &mut Reader, top: &Section<'_>, config: &mut Config) {
    let (local, status) = (top.section("local", "local"), top.section("status", "status"));
    let open = |reader: &mut Reader, seen: &Seen<Option<SocketAddr>>, what: &str| {
        if seen.value.is_some_and(|address| !address.ip().is_loopback()) {
            reader.warn(&seen.at, &seen.path, format!("everybody who reaches this address may {what}"));
        }
    };
    let mqtt = reader.address(&local, "mqtt");
    config.local.password_file = reader.file(&local, "password_file", true).map(|seen| seen.value);
    let acl = reader.file(&local, "acl_file", false);
    if let Some(seen) = &acl
        && config.local.password_file.is_none()
    {
        let message = "without local.password_file every client is anonymous: lines below a user never count";
        reader.warn(&seen.at, &seen.path, message.into());
    }
    config.local.acl_file = acl.map(|seen| seen.value);
    let broker = local_broker(reader, &local, config);
    let page = reader.address(&status, "listen");
    if let Some(seen) = &mqtt {
        if config.local.password_file.is_none() {
            open(reader, seen, "publish through this gateway");
        }
        config.local.mqtt = seen.value;
    }
    if let Some(broker) = broker {
        if let Some(Seen { value: Some(own), at, path }) = &mqtt {
            let message = "has no effect with local.broker, which serves the applications; write \"\" or leave it out";
            match own.port() == broker.server.port {
                true => reader.wrong(at, path, "is the port of local.broker; write \"\" or leave it out".into()),
                false => reader.warn(at, path, message.into()),
            }
        }
        config.local.mqtt = None;
        config.local.broker = Some(broker);
    }
    if let Some(seen) = &page {
        open(reader, seen, "read the status page");
        config.status_listen = seen.value;
    }
    let at = page.as_ref().or(mqtt.as_ref()).map_or(top.at.clone(), |seen| seen.at.clone());
    if config.local.mqtt.is_some() && config.local.mqtt == config.status_listen {
        reader.wrong(&at, "status.listen", "is the same address as local.mqtt".into());
    }
    let Some(own) = config.local.mqtt else { return };
    if config.cloud.servers.iter().any(|server| text::is_loopback(&server.host) && server.port == own.port()) {
        let at = mqtt.map_or(top.section("cloud", "cloud").at, |seen| seen.at);
        let message =
            format!("port {} is also a server of cloud.servers on this machine; give one another port", own.port());
        reader.wrong(&at, "local.mqtt", message);
    }
}

/// `local.broker`: a broker of somebody else on this machine. Then we do not listen for TCP ourselves.
fn local_broker(reader: &mut Reader, local: &Section<'_>, config: &Config) -> Option<LocalBroker> {
    let username = reader.text(local, "broker_username");
    let password = reader.file(local, "broker_password_file", true);
    let seen = reader.text(local, "broker").filter(|seen| !seen.value.is_empty());
    let Some(seen) = seen else {
        for (at, path) in username.iter().map(|s| (&s.at, &s.path)).chain(password.iter().map(|s| (&s.at, &s.path))) {
            reader.warn(at, path, "has no effect without local.broker".into());
        }
        return None;
    };
    if let Some(password) = password.as_ref().filter(|_| username.is_none()) {
        let message = "needs local.broker_username as well (MQTT 3.1.1 knows no password alone)";
        reader.wrong(&password.at, &password.path, message.into());
    }
    let server = reader.checked(&seen.at, &seen.path, text::server(&seen.value))?;
    let wrong = if server.tls || !text::is_loopback(&server.host) {
        Some("must be on this machine and open, as in \"mqtt://127.0.0.1:1883\"".to_string())
    } else if config.cloud.servers.iter().any(|s| text::is_loopback(&s.host) && s.port == server.port) {
        Some(format!(
            "port {} is also a server of cloud.servers on this machine: messages would go in circles",
            server.port
        ))
    } else {
        None
    };
    if let Some(message) = wrong {
        reader.wrong(&seen.at, &seen.path, message);
        return None;
    }
    let (username, password_file) = (username.map(|seen| seen.value), password.map(|seen| seen.value));
    Some(LocalBroker { server, username, password_file })
}
