//! The cloud adapter against a real broker on loopback, and against servers that misbehave.

#[path = "cloud/bench.rs"]
mod bench;
#[path = "cloud/disk.rs"]
mod disk;
#[path = "cloud/early.rs"]
mod early;
#[path = "cloud/exact.rs"]
mod exact;
#[path = "cloud/pacing.rs"]
mod pacing;

use std::sync::atomic::Ordering;
use std::time::Duration;

use bench::*;
use flowsdk::mqtt_serde::control_packet::MqttPacket;
use switchback::config::Server;
use switchback::io::packet::Publish;
use switchback_control::{Attempt, Event, Goodbye, Reason, Seq, Step, Version};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{Instant, sleep, timeout};

const BOTH: [Version; 2] = [Version::V5, Version::V311];
const SHORT: Duration = Duration::from_millis(400);

#[tokio::test]
async fn a_session_opens_settles_sends_and_says_goodbye_in_both_versions() {
    for version in BOTH {
        let broker = Broker::start("");
        let mut watcher = Watcher::on(broker.port, "#").await;
        let mut rig = Rig::new(config(broker.port));
        let (attempt, present) = rig.open(version).await;
        assert!(!present);
        let status = watcher.json("switchback/gw/status").await;
        assert_eq!((&status["state"], &status["session"]), (&"online".into(), &attempt.0.into()));
        let hello = watcher.json("switchback/gw/hello").await;
        assert_eq!(
            (&hello["config"], &hello["boot"], &hello["last_outage"]),
            (&"cafe".into(), &"boot".into(), &"no-link".into())
        );

        let seqs: Vec<Seq> =
            (0..5).map(|n| rig.stack.put(n, "t/x", format!("{n}").as_bytes(), (n % 2) as u8)).collect();
        seqs.iter().for_each(|seq| rig.cloud.transmit(attempt, *seq, false));
        rig.acked(seqs).await;
        for n in 0..5 {
            assert_eq!(watcher.message().await, ("t/x".into(), format!("{n}")));
        }
        rig.cloud.ping(attempt);
        rig.until(|event| matches!(event, Event::Ponged { .. })).await;
        rig.cloud.drain(attempt);
        rig.until(|event| *event == Event::Drained { attempt, empty: true }).await;
        assert!(rig.cloud.liveness_bytes(lo()) > 0);

        let live = rig.cloud.live(attempt).unwrap();
        assert_eq!((live.peer.port(), live.tls.as_deref()), (broker.port, None));
        assert!(
            live.rtt_us.is_some() && live.bytes_sent > 100 && live.bytes_received > 10 && live.send_buffer.is_some()
        );
        assert_eq!(live.options.keepalive_idle, Duration::from_secs(55));

        let began = Instant::now();
        rig.cloud.hang_up(attempt, Goodbye::Offline);
        rig.cloud.finished().await;
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        let status = watcher.json("switchback/gw/status").await;
        assert_eq!((&status["state"], &status["reason"]), (&"offline".into(), &"user".into()));
        assert!(rig.cloud.live(attempt).is_none());
        while let Ok(event) = rig.events.try_recv() {
            assert!(matches!(event, Event::Heard { .. }), "{event}");
        }
    }
}

#[tokio::test]
async fn every_step_of_a_dial_is_told_in_order() {
    let broker = Broker::tls("");
    let mut config = config(broker.port);
    config.cloud.servers = vec![Server { host: "localhost".into(), port: broker.port, tls: true }];
    config.cloud.ca_file = Some(Papers::get().path("ca.pem"));
    let mut rig = Rig::new(config);
    let attempt = rig.dial();
    for step in [Step::Resolving, Step::Connecting, Step::Handshake] {
        assert_eq!(rig.events.recv().await.unwrap(), Event::DialProgressed { attempt, step });
    }
    let dialled = rig.events.recv().await.unwrap();
    let Event::Dialled { attempt: told, measure: first } = dialled else { panic!("{dialled}") };
    // SYN, ClientHello, Finished.
    assert!(told == attempt && !first.round_trip.is_zero() && first.sent >= 3 && first.again == 0, "{first:?}");
    let live = rig.cloud.live(attempt).unwrap();
    assert_eq!((live.tls.as_deref(), live.resumed), (Some("1.3"), false));
    // Parked, then open.
    assert_eq!(rig.measured(attempt).await.sent, first.sent);
    rig.cloud.connect(attempt, Version::V5, Duration::from_secs(30));
    rig.until(|event| *event == Event::Settled { attempt }).await;
    assert!(rig.measured(attempt).await.sent > first.sent);
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_the_next_handshake_is_shorter() {
    let broker = Broker::tls("require_certificate true\nuse_identity_as_username true");
    let papers = Papers::get();
    let mut config = config(broker.port);
    config.cloud.servers[0].tls = true;
    config.cloud.ca_file = Some(papers.path("ca.pem"));
    let bare = config.clone();
    config.cloud.cert_file = Some(papers.path("client.pem"));
    config.cloud.key_file = Some(papers.path("client.key"));
    let mut rig = Rig::new(config);
    let (first, _) = rig.open(Version::V5).await;
    let full = rig.cloud.live(first).unwrap();
    rig.cloud.hang_up(first, Goodbye::Moving);
    let (second, present) = rig.open(Version::V5).await;
    let short = rig.cloud.live(second).unwrap();
    assert!(present && !full.resumed && short.resumed);

    let mut rig = Rig::new(bare);
    let attempt = rig.dial();
    rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
    rig.cloud.connect(attempt, Version::V5, Duration::from_secs(30));
    assert_eq!(rig.end().await, (Reason::Authentication, true));
}

/// Prints what a reconnect costs, from the first byte to the session in order, without TCP's and IP's own.
#[tokio::test]
async fn a_resumed_reconnect_costs_less() {
    let broker = Broker::tls("require_certificate true\nuse_identity_as_username true");
    let papers = Papers::get();
    let mut config = config(broker.port);
    config.cloud.servers[0].tls = true;
    config.cloud.ca_file = Some(papers.path("ca.pem"));
    config.cloud.cert_file = Some(papers.path("client.pem"));
    config.cloud.key_file = Some(papers.path("client.key"));
    for base in ["switchback/gw", ""] {
        config.cloud.base = base.into();
        let mut rig = Rig::new(config.clone());
        let mut costs = Vec::new();
        for _ in 0..3 {
            let (attempt, _) = rig.open(Version::V5).await;
            let live = rig.cloud.live(attempt).unwrap();
            costs.push(live.bytes_sent + live.bytes_received);
            rig.cloud.hang_up(attempt, Goodbye::Moving);
            rig.cloud.finished().await;
        }
        println!("reconnect below \"{base}\", bytes: full {}, resumed {}, {}", costs[0], costs[1], costs[2]);
        assert!(costs[1].max(costs[2]) < costs[0] * 7 / 10, "{costs:?}");
    }
}

#[tokio::test]
async fn a_wrong_authority_is_named_and_a_changed_file_is_taken_without_a_restart() {
    let broker = Broker::tls("");
    let papers = Papers::get();
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    std::fs::copy(papers.path("other.pem"), &ca).unwrap();
    let mut config = config(broker.port);
    config.cloud.servers[0].tls = true;
    config.cloud.ca_file = Some(ca.clone());
    let mut rig = Rig::new(config);
    rig.dial();
    assert_eq!(rig.end().await, (Reason::Tls, true));
    // The right one, in place: taken without a restart.
    sleep(Duration::from_millis(20)).await;
    std::fs::copy(papers.path("ca.pem"), &ca).unwrap();
    rig.open(Version::V5).await;
}

#[tokio::test]
async fn a_password_is_read_at_each_connect() {
    let folder = tempfile::tempdir().unwrap();
    let hashes = folder.path().join("hashes");
    let made =
        std::process::Command::new("mosquitto_passwd").args(["-b", "-c"]).arg(&hashes).args(["gw", "right"]).status();
    assert!(made.unwrap().success());
    let broker = Broker::start(&format!("allow_anonymous false\npassword_file {}", hashes.display()));
    let password = folder.path().join("password");
    let mut config = config(broker.port);
    config.cloud.username = Some("gw".into());
    config.cloud.password_file = Some(password.clone());
    let mut rig = Rig::new(config);
    for version in BOTH {
        std::fs::write(&password, "wrong\n").unwrap();
        let attempt = rig.dial();
        rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        rig.cloud.connect(attempt, version, Duration::from_secs(30));
        assert_eq!(rig.end().await, (Reason::Authentication, true));
        std::fs::write(&password, "right\n").unwrap();
        let (attempt, _) = rig.open(version).await;
        rig.cloud.hang_up(attempt, Goodbye::Moving);
    }
}

#[tokio::test]
async fn what_was_in_flight_goes_again_under_its_number_where_the_session_is_present() {
    let broker = Broker::start("");
    for version in BOTH {
        let wire = Wire::to(broker.port).await;
        let mut config = config(wire.port);
        config.cloud.base = String::new();
        let mut rig = Rig::new(config);
        let (first, _) = rig.open(version).await;
        wire.swallowing.store(true, Ordering::Relaxed);
        let seqs: Vec<Seq> = (1..=5).map(|n| rig.stack.put(n, "t", b"x", 1)).collect();
        seqs.iter().for_each(|seq| rig.cloud.transmit(first, *seq, false));
        while wire.published(version).len() < 5 {
            sleep(Duration::from_millis(10)).await;
        }
        let before = wire.published(version);
        wire.cut();
        let (reason, heard) = rig.end().await;
        assert!(heard && matches!(reason, Reason::ServerShutDown | Reason::Reset), "{reason}");
        wire.swallowing.store(false, Ordering::Relaxed);

        let (second, present) = rig.open(version).await;
        assert!(present);
        let new = rig.stack.put(6, "t", b"x", 1);
        seqs.iter().for_each(|seq| rig.cloud.transmit(second, *seq, true));
        rig.cloud.transmit(second, new, false);
        rig.acked([seqs, vec![new]].concat()).await;
        let after = wire.published(version);
        for (old, again) in before.iter().zip(&after) {
            assert_eq!((old.id, old.dup, again.dup), (again.id, false, true));
        }
        assert!(!after[5].dup && before.iter().all(|old| old.id != after[5].id));
        if version == Version::V5 {
            let text = format!("{:?}", after[0].properties);
            assert!(
                text.contains("sb-id") && text.contains("boot.1.1") && text.contains("2030-03-17T17:46:40.000Z"),
                "{text}"
            );
        }
    }
}

#[tokio::test]
async fn a_forgotten_session_gets_messages_as_new_and_subscriptions_again() {
    let mut broker = Broker::start("");
    let wire = Wire::to(broker.port).await;
    let mut rig = Rig::new(subscribed(config(wire.port)));
    let (first, _) = rig.open(Version::V5).await;
    wire.swallowing.store(true, Ordering::Relaxed);
    let seq = rig.stack.put(1, "t", b"x", 1);
    rig.cloud.transmit(first, seq, false);
    while wire.published(Version::V5).iter().all(|publish| publish.topic != "t") {
        sleep(Duration::from_millis(10)).await;
    }
    broker.kill();
    rig.end().await;
    let port = broker.port;
    drop(broker);
    // Another broker behind the same wire, which knows nobody.
    let broker = Broker::start("");
    let wire = Wire::to(broker.port).await;
    let mut config = subscribed(config(wire.port));
    config.cloud.client_id = format!("gw-{port}");
    let mut rig = Rig::new(config);
    rig.stack.put(1, "t", b"x", 1);
    let (attempt, present) = rig.open(Version::V5).await;
    assert!(!present);
    rig.cloud.transmit(attempt, seq, true);
    rig.acked(vec![seq]).await;
    assert!(wire.published(Version::V5).iter().all(|publish| !publish.dup));
    let mut watcher = Watcher::on(broker.port, "none").await;
    watcher.publish("gw/cmd/door", b"open", 1).await;
    assert_eq!(rig.downlink().await.topic, "cmd/door");
}

#[tokio::test]
async fn a_killed_broker_closes_the_connection_and_refuses_the_next() {
    let mut broker = Broker::start("");
    let mut rig = Rig::new(config(broker.port));
    let (attempt, _) = rig.open(Version::V5).await;
    broker.kill();
    for n in 0..50 {
        let seq = rig.stack.put(n, "t", &[0; 1000], 1);
        rig.cloud.transmit(attempt, seq, false);
    }
    let (reason, heard) = rig.end().await;
    assert!(heard && matches!(reason, Reason::ServerShutDown | Reason::Reset), "{reason}");
    assert!(rig.cloud.live(attempt).is_none());
    rig.dial();
    assert_eq!(rig.end().await, (Reason::Refused, true));
}

/// mosquitto 2.0.11 closes without a word; a server that says why is in the next test.
#[tokio::test]
async fn a_second_client_with_our_name_ends_the_connection() {
    let broker = Broker::start("");
    let config = config(broker.port);
    let name = config.cloud.client_id.clone();
    let mut rig = Rig::new(config);
    rig.open(Version::V5).await;
    let _impostor = Watcher::impostor(broker.port, &name).await;
    let (reason, heard) = rig.end().await;
    assert!(heard && matches!(reason, Reason::ServerShutDown | Reason::SessionTakenOver), "{reason}");
}

#[tokio::test]
async fn a_server_that_says_why_it_hangs_up_is_understood_even_while_we_write() {
    for (code, reason) in [
        (0x8e, Reason::SessionTakenOver),
        (0x8b, Reason::ServerShutDown),
        (0x8d, Reason::KeepaliveLimit),
        (0x9c, Reason::ServerMoved),
        (0x97, Reason::Refused),
    ] {
        let (listener, port) = fake().await;
        let mut rig = Rig::new(config(port));
        let attempt = rig.dial();
        rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        let (mut server, _) = listener.accept().await.unwrap();
        rig.cloud.connect(attempt, Version::V5, Duration::from_secs(30));
        server.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
        rig.until(|event| matches!(event, Event::Connected { .. })).await;
        server.write_all(&[0xe0, 2, code, 0]).await.unwrap();
        // Closed with bytes unread, so that a reset follows the last word.
        drop(server);
        for n in 0..5 {
            let seq = rig.stack.put(n, "t", &[0; 1000], 1);
            rig.cloud.transmit(attempt, seq, false);
        }
        assert_eq!(rig.end().await, (reason, true));
    }
}

#[tokio::test]
async fn our_own_newer_connection_takes_over_and_the_older_one_is_silent_once_hung_up() {
    let broker = Broker::start("");
    let mut rig = Rig::new(config(broker.port));
    let (first, _) = rig.open(Version::V5).await;
    let second = rig.dial();
    rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == second)).await;
    rig.cloud.hang_up(first, Goodbye::Abort);
    rig.cloud.connect(second, Version::V5, Duration::from_secs(30));
    rig.until(|event| *event == Event::Settled { attempt: second }).await;
    let seq = rig.stack.put(1, "t", b"x", 1);
    rig.cloud.transmit(second, seq, true);
    rig.acked(vec![seq]).await;
    sleep(SHORT).await;
    while let Ok(event) = rig.events.try_recv() {
        assert_eq!(event, Event::Heard { attempt: second });
    }
}

#[tokio::test]
async fn messages_from_the_cloud_are_acknowledged_once_taken_and_come_again_otherwise() {
    let broker = Broker::start("");
    for version in BOTH {
        let mut rig = Rig::new(subscribed(config(broker.port)));
        rig.open(version).await;
        let mut watcher = Watcher::on(broker.port, "none").await;
        for qos in [0, 1, 2] {
            watcher.publish("gw/cmd/door/open", format!("{qos}").as_bytes(), qos).await;
            let downlink = rig.downlink().await;
            assert_eq!(
                (downlink.topic.as_str(), downlink.payload.as_slice()),
                ("cmd/door/open", format!("{qos}").as_bytes())
            );
            let _ = downlink.taken.send(());
        }
        watcher.publish("gw/cmd/light", b"on", 1).await;
        let kept = rig.downlink().await;
        // Not taken when the connection ends: the next one brings it again, and only it.
        let attempt = Attempt(1);
        rig.cloud.hang_up(attempt, Goodbye::Abort);
        let (second, present) = rig.open(version).await;
        assert!(present);
        let again = rig.downlink().await;
        assert_eq!((again.topic, again.payload), (kept.topic, kept.payload));
        let _ = again.taken.send(());
        sleep(SHORT).await;
        assert!(rig.downlinks.try_recv().is_err());
        rig.cloud.hang_up(second, Goodbye::Offline);
        rig.cloud.finished().await;
    }
}

#[tokio::test]
async fn slow_applications_stop_nothing_but_their_own_messages() {
    // The second broker ignores our Receive Maximum.
    for extra in ["", "max_inflight_messages 0"] {
        slow_applications(extra).await;
    }
}

async fn slow_applications(extra: &str) {
    let broker = Broker::start(extra);
    let mut rig = Rig::new(subscribed(config(broker.port)));
    let (attempt, _) = rig.open(Version::V5).await;
    let mut watcher = Watcher::on(broker.port, "none").await;
    for n in 0..100 {
        watcher.publish("gw/cmd/n", format!("{n}").as_bytes(), 1).await;
    }
    // Nobody takes anything; ours still go and are acknowledged.
    let seq = rig.stack.put(1, "t", b"x", 1);
    rig.cloud.transmit(attempt, seq, false);
    rig.acked(vec![seq]).await;
    for n in 0..100 {
        let downlink = rig.downlink().await;
        assert_eq!(downlink.payload, format!("{n}").as_bytes());
        let _ = downlink.taken.send(());
    }
}

#[tokio::test]
async fn the_will_speaks_when_we_cannot() {
    let broker = Broker::start("");
    for version in BOTH {
        let mut rig = Rig::new(config(broker.port));
        let (attempt, _) = rig.open(version).await;
        let mut watcher = Watcher::on(broker.port, "switchback/gw/status").await;
        assert_eq!(watcher.json("switchback/gw/status").await["state"], "online");
        rig.cloud.hang_up(attempt, Goodbye::Abort);
        let will = watcher.json("switchback/gw/status").await;
        assert_eq!((&will["state"], &will["reason"]), (&"offline".into(), &"keepalive-limit".into()));
        // A move says nothing of the kind.
        let (attempt, _) = rig.open(version).await;
        assert_eq!(watcher.json("switchback/gw/status").await["state"], "online");
        rig.cloud.hang_up(attempt, Goodbye::Moving);
        rig.cloud.finished().await;
        assert!(timeout(SHORT, watcher.message()).await.is_err());
    }
}

#[tokio::test]
async fn what_is_over_the_servers_quota_is_sent_again_and_blocks_nobody() {
    let (listener, port) = fake().await;
    let mut config = config(port);
    config.cloud.base = String::new();
    let mut rig = Rig::new(config);
    let attempt = rig.dial();
    let (mut server, _) = listener.accept().await.unwrap();
    rig.until(|event| matches!(event, Event::Dialled { .. })).await;
    rig.cloud.connect(attempt, Version::V5, Duration::from_secs(30));
    listen(&mut server, Version::V5, Duration::from_millis(100)).await;
    server.write_all(&[0x20, 3, 0, 0, 0]).await.unwrap();
    rig.until(|event| matches!(event, Event::Connected { .. })).await;
    let seqs: Vec<Seq> = [1, 2, 1].iter().zip(1..).map(|(qos, n)| rig.stack.put(n, "t", b"x", *qos)).collect();
    seqs.iter().for_each(|seq| rig.cloud.transmit(attempt, *seq, false));
    assert_eq!(listen(&mut server, Version::V5, SHORT).await.len(), 3);
    // The third is taken, the others are not: PUBACK and PUBREC with "quota exceeded".
    for answer in [&[0x40, 3, 0, 1, 0x97][..], &[0x50, 3, 0xfa, 0x01, 0x97], &[0x40, 2, 0, 2]] {
        server.write_all(answer).await.unwrap();
    }
    rig.acked(vec![seqs[2]]).await;
    assert_eq!(listen(&mut server, Version::V5, SHORT).await.len(), 0);
    let mut again = Vec::new();
    for packet in listen(&mut server, Version::V5, Duration::from_secs(1)).await {
        let publish = Publish::from_packet(packet).unwrap();
        assert!(!publish.dup);
        again.push(publish.qos);
        let [high, low] = publish.id.unwrap().to_be_bytes();
        let answer = if publish.qos == 2 { [0x50, 2, high, low] } else { [0x40, 2, high, low] };
        server.write_all(&answer).await.unwrap();
    }
    again.sort_unstable();
    assert_eq!(again, [1, 2]);
    rig.acked(vec![seqs[0]]).await;
    assert!(rig.stack.told().rejected.is_empty());
}

#[tokio::test]
async fn what_the_server_cannot_take_is_rejected_and_blocks_nobody() {
    let broker = Broker::start("max_packet_size 2000");
    let mut config = config(broker.port);
    config.cloud.base = String::new();
    let mut rig = Rig::new(config);
    let (attempt, _) = rig.open(Version::V5).await;
    let bad = [rig.stack.put(1, "t", &[0; 5000], 1), rig.stack.put(2, "t/#", b"x", 1), Seq(99)];
    let good = rig.stack.put(3, "t", b"x", 1);
    bad.iter().for_each(|seq| rig.cloud.transmit(attempt, *seq, false));
    rig.cloud.transmit(attempt, good, false);
    for seq in bad {
        rig.until(|event| *event == Event::Rejected { attempt, seq }).await;
    }
    rig.acked(vec![good]).await;
    let why: Vec<String> = rig.stack.told().rejected.iter().map(|(seq, why)| format!("{seq} {why}")).collect();
    assert!(why[0].contains("more than the server takes (2000)") && why[1].contains("is no topic"), "{why:?}");
    assert_eq!(why[2], "99 it is not in the outbox any more");
    assert_eq!(rig.stack.told().sent, [good]);
}

#[tokio::test]
async fn the_servers_window_is_never_exceeded_and_its_keep_alive_is_kept() {
    let (listener, port) = fake().await;
    let mut rig = Rig::new(config(port));
    let attempt = rig.dial();
    rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
    let (mut server, _) = listener.accept().await.unwrap();
    rig.cloud.connect(attempt, Version::V5, Duration::from_secs(30));
    let connect = listen(&mut server, Version::V5, SHORT).await;
    assert!(matches!(connect.as_slice(), [MqttPacket::Connect5(_)]), "{connect:?}");
    // Receive Maximum 4, Server Keep Alive 1.
    server.write_all(&[0x20, 9, 0, 0, 6, 0x21, 0, 4, 0x13, 0, 1]).await.unwrap();
    let connected = rig.until(|event| matches!(event, Event::Connected { .. })).await;
    let keep_alive = Duration::from_secs(1);
    assert_eq!(connected, Event::Connected { attempt, present: false, window: 2, keep_alive });
    for n in 0..10 {
        let seq = rig.stack.put(n, "t", b"x", 1);
        rig.cloud.transmit(attempt, seq, false);
    }
    let heard = listen(&mut server, Version::V5, Duration::from_millis(1600)).await;
    let publishes: Vec<_> = heard.iter().filter(|packet| matches!(packet, MqttPacket::Publish5(_))).collect();
    assert_eq!(publishes.len(), 4, "{heard:?}");
    assert!(heard.iter().any(|packet| matches!(packet, MqttPacket::PingReq5(_))), "{heard:?}");
    // What was written has arrived, though six more wait.
    rig.cloud.drain(attempt);
    rig.until(|event| *event == Event::Drained { attempt, empty: true }).await;
    // One is acknowledged with "not authorized": reported, and one more may go.
    server.write_all(&[0x40, 3, 0, 1, 0x87]).await.unwrap();
    rig.until(|event| *event == Event::Rejected { attempt, seq: Seq(0) }).await;
    assert_eq!(rig.stack.told().rejected, [(Seq(0), "not authorized (0x87)".to_owned())]);
    let heard = listen(&mut server, Version::V5, SHORT).await;
    assert_eq!(heard.iter().filter(|packet| matches!(packet, MqttPacket::Publish5(_))).count(), 1, "{heard:?}");
    // "Use another server".
    server.write_all(&[0xe0, 2, 0x9c, 0]).await.unwrap();
    assert_eq!(rig.end().await, (Reason::ServerMoved, true));
}

#[tokio::test]
async fn an_old_server_is_told_from_a_wrong_password() {
    for (answer, version, reason) in [
        (&[0x20, 2, 0, 1][..], Version::V5, Reason::Version),
        (&[0x20, 3, 0, 0x84, 0], Version::V5, Reason::Version),
        (&[0x20, 3, 0, 0x89, 0], Version::V5, Reason::Refused),
        (&[0x20, 2, 0, 3], Version::V311, Reason::Refused),
        (&[0x20, 2, 0, 5], Version::V311, Reason::Authentication),
        (&[0xd0, 0], Version::V311, Reason::Protocol),
        (&[0xff, 0xff, 0xff, 0xff, 0xff], Version::V5, Reason::Protocol),
        (&[], Version::V5, Reason::ServerShutDown),
    ] {
        let (listener, port) = fake().await;
        let mut rig = Rig::new(config(port));
        let attempt = rig.dial();
        let (mut server, _) = listener.accept().await.unwrap();
        rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        rig.cloud.connect(attempt, version, Duration::from_secs(30));
        server.read_u8().await.unwrap();
        server.write_all(answer).await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(rig.end().await, (reason, true), "{answer:x?}");
    }
}

#[tokio::test]
async fn a_parked_connection_says_nothing_and_its_end_is_noticed() {
    let (listener, port) = fake().await;
    let mut rig = Rig::new(config(port));
    let attempt = rig.dial();
    let (mut server, _) = listener.accept().await.unwrap();
    rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
    assert!(timeout(SHORT, server.read_u8()).await.is_err());
    drop(server);
    assert_eq!(rig.end().await, (Reason::ServerShutDown, true));
    // Hung up while parked: closed, and nothing is told.
    let attempt = rig.dial();
    let (mut server, _) = listener.accept().await.unwrap();
    rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
    rig.cloud.hang_up(attempt, Goodbye::Abort);
    assert!(server.read_u8().await.is_err());
    assert!(rig.events.try_recv().is_err());
}

#[tokio::test]
async fn a_parked_connection_keeps_tickets_and_is_kept_alive_as_configured() {
    let broker = Broker::tls("");
    let mut config = config(broker.port);
    config.cloud.servers[0].tls = true;
    config.cloud.ca_file = Some(Papers::get().path("ca.pem"));
    let mut rig = Rig::new(config);
    for resumed in [false, true] {
        let attempt = rig.dial();
        rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        let live = rig.cloud.live(attempt).unwrap();
        let options = live.options;
        assert_eq!(live.resumed, resumed);
        assert_eq!((options.keepalive_idle, options.keepalive_count), (Duration::from_secs(55), 3));
        assert!(!options.user_timeout.is_zero());
        // The server's tickets come right after the handshake.
        sleep(SHORT).await;
        rig.cloud.hang_up(attempt, Goodbye::Abort);
    }
}

#[tokio::test]
async fn a_connection_that_only_proved_the_path_is_counted_with_its_bytes() {
    let broker = Broker::tls("");
    let mut config = config(broker.port);
    config.cloud.servers[0].tls = true;
    config.cloud.ca_file = Some(Papers::get().path("ca.pem"));
    let mut rig = Rig::new(config);
    for goodbye in [Goodbye::Abort, Goodbye::Moving] {
        let attempt = rig.dial();
        rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        rig.cloud.hang_up(attempt, goodbye);
    }
    rig.cloud.finished().await;
    let bytes = rig.cloud.liveness_bytes(lo());
    assert_eq!(rig.cloud.spare_handshakes(lo()), 2);
    assert!((2_000..10_000).contains(&bytes), "{bytes}");
    // One that carried a session is none.
    let (attempt, _) = rig.open(Version::V5).await;
    rig.cloud.hang_up(attempt, Goodbye::Moving);
    rig.cloud.finished().await;
    assert_eq!((rig.cloud.spare_handshakes(lo()), rig.cloud.liveness_bytes(lo())), (2, bytes));
}

#[tokio::test]
async fn a_portal_that_answers_in_http_is_recognised() {
    let (listener, port) = fake().await;
    let mut config = config(port);
    config.cloud.servers[0].tls = true;
    config.cloud.ca_file = Some(Papers::get().path("ca.pem"));
    for (answer, expected) in [
        (&b"HTTP/1.1 302 Found\r\nLocation: http://portal.example/\r\n\r\n"[..], (Reason::CaptivePortal, false)),
        (b"220 mail.example ESMTP\r\n", (Reason::Tls, true)),
        (b"", (Reason::ServerShutDown, true)),
    ] {
        let mut rig = Rig::new(config.clone());
        rig.dial();
        let (mut server, _) = listener.accept().await.unwrap();
        server.read_exact(&mut [0; 64]).await.unwrap();
        // All of the greeting, so that closing does not reset.
        let _ = timeout(SHORT, server.read_to_end(&mut Vec::new())).await;
        server.write_all(answer).await.unwrap();
        server.shutdown().await.unwrap();
        assert_eq!(rig.end().await, expected);
    }
}

#[tokio::test]
async fn a_name_that_nobody_knows_and_an_interface_that_is_gone_fail_as_that() {
    let mut config = config(1);
    config.cloud.servers[0].host = "broker.example".into();
    let mut rig = Rig::new(config.clone());
    rig.dial();
    assert_eq!(rig.end().await, (Reason::Dns, false));
    config.cloud.servers[0].host = "127.0.0.1".into();
    let mut rig = Rig::new(config);
    rig.cloud.dial(switchback_control::Name::new("none0").unwrap(), 0, Attempt(9));
    assert_eq!(rig.end().await, (Reason::NoRoute, false));
}

#[tokio::test]
async fn a_refused_subscription_does_not_keep_the_session_from_settling() {
    let (listener, port) = fake().await;
    let mut config = subscribed(config(port));
    config.cloud.base = String::new();
    let mut rig = Rig::new(config);
    for round in 0..2 {
        let attempt = rig.dial();
        let (mut server, _) = listener.accept().await.unwrap();
        rig.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        rig.cloud.connect(attempt, Version::V311, Duration::from_secs(30));
        server.read_u8().await.unwrap();
        server.write_all(&[0x20, 2, round.min(1), 0]).await.unwrap();
        rig.until(|event| matches!(event, Event::Connected { .. })).await;
        let mut rest = vec![0; 4096];
        // The rest of CONNECT, then SUBSCRIBE, asked again although the session is present.
        let mut seen: Vec<u8> = Vec::new();
        while !seen.windows(8).any(|bytes| bytes == b"gw/cmd/#") {
            let n = server.read(&mut rest).await.unwrap();
            seen.extend(&rest[..n]);
        }
        server.write_all(&[0x90, 3, 0xfd, 0xe8, 0x80]).await.unwrap();
        rig.until(|event| *event == Event::Settled { attempt }).await;
        rig.cloud.hang_up(attempt, Goodbye::Abort);
    }
}
