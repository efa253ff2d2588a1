//! A tiny MQTT client and a server around a desk that accepts, holds or refuses what is offered.
//!
//! The client blocks with a time limit and speaks both versions; it checks nothing by itself. The server runs in a
//! thread of its own with its own runtime, on a free port of the loopback.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv3::{connectv3, subscribev3};
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use flowsdk::mqtt_serde::mqttv5::{connectv5, subscribev5};
use switchback::config::{Config, LocalConfig, PublishRule};
use switchback::control::{Seq, Version};
use switchback::corridor::{DOWNLINK_MAX, Downlink, Draft, Offer, Refusal};
use switchback::io::applications::{ApplicationFigures, Applications, Offers};
use switchback::io::packet::{self, PACKET_MAX, Publish};
use tokio::sync::{mpsc, oneshot};

/// How long a test waits for what must come.
pub const SOON: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, PartialEq)]
pub enum Mode {
    Accept,
    Hold,
    Refuse(Refusal),
}

#[derive(Clone)]
pub struct Desk(Arc<Mutex<DeskState>>);

struct DeskState {
    mode: Mode,
    keep: bool,
    count: u64,
    drafts: Vec<Draft>,
    held: VecDeque<oneshot::Sender<Result<Seq, Refusal>>>,
    /// Who waits for the cloud, in the order of the offers.
    undelivered: VecDeque<oneshot::Sender<()>>,
}

impl Desk {
    pub fn new(mode: Mode) -> Desk {
        Desk(Arc::new(Mutex::new(DeskState {
            mode,
            keep: true,
            count: 0,
            drafts: Vec::new(),
            held: VecDeque::new(),
            undelivered: VecDeque::new(),
        })))
    }

    pub fn set(&self, mode: Mode) {
        self.0.lock().unwrap().mode = mode;
    }

    /// Only figures from now on.
    pub fn forget(&self) {
        self.0.lock().unwrap().keep = false;
    }

    pub fn count(&self) -> u64 {
        self.0.lock().unwrap().count
    }

    pub fn payloads(&self) -> Vec<String> {
        self.0.lock().unwrap().drafts.iter().map(|d| String::from_utf8_lossy(&d.payload).into_owned()).collect()
    }

    pub fn drafts(&self) -> Vec<Draft> {
        self.0.lock().unwrap().drafts.clone()
    }

    pub fn await_count(&self, count: u64) {
        eventually(&format!("{count} offers"), || self.count() >= count);
    }

    /// Answers the held offer at this place.
    pub fn answer(&self, index: usize, answer: Result<Seq, Refusal>) {
        let sender = self.0.lock().unwrap().held.remove(index).expect("an offer is held");
        sender.send(answer).ok();
    }

    /// The cloud has the oldest message that it has not got, or never will.
    pub fn deliver(&self, has: bool) {
        let sender = self.0.lock().unwrap().undelivered.pop_front().expect("an offer was made");
        if has {
            sender.send(()).ok();
        }
    }

    pub fn accept_all(&self) {
        for sender in std::mem::take(&mut self.0.lock().unwrap().held) {
            sender.send(Ok(Seq(0))).ok();
        }
    }
}

impl Offers for Desk {
    async fn offer(&self, draft: Draft) -> Offer {
        let (sender, accepted) = oneshot::channel();
        let (_, sent) = oneshot::channel();
        let (deliver, delivered) = oneshot::channel();
        let mut desk = self.0.lock().unwrap();
        desk.count += 1;
        if desk.keep {
            desk.drafts.push(draft);
            desk.undelivered.push_back(deliver);
        }
        match desk.mode {
            Mode::Accept => drop(sender.send(Ok(Seq(desk.count)))),
            Mode::Hold => desk.held.push_back(sender),
            Mode::Refuse(refusal) => drop(sender.send(Err(refusal))),
        }
        Offer { accepted, sent, delivered }
    }
}

pub fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < SOON, "{what} did not come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const SERVER: &str = "server";

/// A panic in a server's task would only end that task, and no test would see it; the daemon would abort.
fn end_with_the_server() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            usual(panic);
            if std::thread::current().name() == Some(SERVER) {
                std::process::abort();
            }
        }));
    });
}

pub struct Server {
    pub address: SocketAddr,
    pub desk: Desk,
    pub dir: Arc<tempfile::TempDir>,
    downlinks: mpsc::Sender<Downlink>,
    figures: mpsc::UnboundedSender<std::sync::mpsc::Sender<ApplicationFigures>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(mode: Mode) -> Server {
        Server::with(mode, Vec::new(), free_address())
    }

    pub fn with(mode: Mode, rules: Vec<PublishRule>, address: SocketAddr) -> Server {
        Server::configured(mode, config(rules, address), Arc::new(tempfile::tempdir().unwrap()))
    }

    /// A next server with the same state, after this one has stopped.
    pub fn again(self) -> Server {
        let (address, dir) = (self.address, Arc::clone(&self.dir));
        self.stop();
        Server::configured(Mode::Accept, config(Vec::new(), address), dir)
    }

    /// A next server with what the disk has now, as if this one had been killed.
    pub fn after_a_kill(&self) -> Server {
        let dir = tempfile::tempdir().unwrap();
        for entry in std::fs::read_dir(self.dir.path()).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_file() {
                std::fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
            }
        }
        Server::configured(Mode::Accept, config(Vec::new(), free_address()), Arc::new(dir))
    }

    pub fn configured(mode: Mode, config: Config, dir: Arc<tempfile::TempDir>) -> Server {
        end_with_the_server();
        let address = config.local.mqtt.unwrap();
        let desk = Desk::new(mode);
        let (downlinks, downlink_receiver) = mpsc::channel(DOWNLINK_MAX);
        let (figures, mut figures_receiver) = mpsc::unbounded_channel::<std::sync::mpsc::Sender<ApplicationFigures>>();
        let (stop, mut stopped) = oneshot::channel();
        let (offers, path) = (desk.clone(), dir.path().to_owned());
        let thread = std::thread::Builder::new().name(SERVER.into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let applications = Applications::start(Arc::new(config), &path, &path, offers, downlink_receiver);
                loop {
                    tokio::select! {
                        Some(reply) = figures_receiver.recv() => drop(reply.send(applications.figures())),
                        _ = &mut stopped => break,
                    }
                }
                applications.stop().await;
                assert!(!path.join("mqtt.sock").exists());
            });
        });
        let thread = thread.unwrap();
        Server { address, desk, dir, downlinks, figures, stop: Some(stop), thread: Some(thread) }
    }

    pub fn figures(&self) -> ApplicationFigures {
        let (sender, receiver) = std::sync::mpsc::channel();
        self.figures.send(sender).unwrap();
        receiver.recv_timeout(SOON).unwrap()
    }

    /// Sends a message as the cloud would; the receiver resolves when it is taken.
    pub fn downlink(&self, topic: &str, payload: &[u8], qos: u8) -> oneshot::Receiver<()> {
        let (taken, receiver) = oneshot::channel();
        let downlink =
            Downlink { topic: topic.into(), payload: payload.into(), qos, retain: false, properties: vec![], taken };
        self.downlinks.blocking_send(downlink).unwrap();
        receiver
    }

    pub fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }

    pub fn client(&self, version: Version, id: &str) -> Client {
        let mut client = Client::dial(self.address, version);
        client.connect(&Connect { id, ..Connect::default() });
        assert_eq!(client.connack(), (false, 0));
        client
    }
}

pub fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn config(publish: Vec<PublishRule>, address: SocketAddr) -> Config {
    Config {
        publish,
        local: LocalConfig { mqtt: Some(address), password_file: None, acl_file: None, broker: None },
        ..Config::defaults()
    }
}

pub struct Connect<'a> {
    pub id: &'a str,
    pub clean: bool,
    pub keep_alive: u16,
    /// MQTT 5 only.
    pub expiry: u32,
    pub receive_max: u16,
    pub packet_max: u32,
    /// Topic, payload, retained, delay.
    pub will: Option<(&'a str, &'a str, bool, u32)>,
}

impl Default for Connect<'_> {
    fn default() -> Self {
        Connect { id: "", clean: true, keep_alive: 0, expiry: 0, receive_max: 0, packet_max: 0, will: None }
    }
}

trait Wire: Read + Write + Send {
    fn limit(&self, limit: Duration);
    fn finish_writing(&self);
}

impl Wire for TcpStream {
    fn finish_writing(&self) {
        // The server may have closed already.
        self.shutdown(std::net::Shutdown::Write).ok();
    }

    fn limit(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).unwrap();
    }
}

impl Wire for UnixStream {
    fn finish_writing(&self) {
        self.shutdown(std::net::Shutdown::Write).ok();
    }

    fn limit(&self, limit: Duration) {
        self.set_read_timeout(Some(limit)).unwrap();
    }
}

pub struct Client {
    wire: Box<dyn Wire>,
    pub version: Version,
    input: Vec<u8>,
}

impl Client {
    pub fn dial(address: SocketAddr, version: Version) -> Client {
        let start = std::time::Instant::now();
        loop {
            match TcpStream::connect(address) {
                Ok(stream) => {
                    stream.set_nodelay(true).unwrap();
                    return Client { wire: Box::new(stream), version, input: Vec::new() };
                }
                Err(error) => assert!(start.elapsed() < SOON, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn dial_unix(path: &std::path::Path, version: Version) -> Client {
        eventually("the Unix socket", || path.exists());
        Client { wire: Box::new(UnixStream::connect(path).unwrap()), version, input: Vec::new() }
    }

    pub fn raw(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).unwrap();
    }

    /// False when the server is gone.
    pub fn try_raw(&mut self, bytes: &[u8]) -> bool {
        self.wire.write_all(bytes).is_ok()
    }

    /// The server sees the end of the input and can still answer.
    pub fn finish_writing(&mut self) {
        self.wire.finish_writing();
    }

    /// Reads whatever comes until the server has closed.
    pub fn read_to_end(&mut self) {
        self.wire.limit(SOON);
        match self.wire.read_to_end(&mut Vec::new()) {
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => panic!("not closed"),
            Ok(_) | Err(_) => {}
        }
    }

    pub fn send(&mut self, packet: &MqttPacket) {
        self.raw(&packet.to_bytes().unwrap());
    }

    pub fn connect(&mut self, connect: &Connect) {
        let packet = match self.version {
            Version::V5 => {
                let mut properties = vec![Property::SessionExpiryInterval(connect.expiry)];
                if connect.receive_max > 0 {
                    properties.push(Property::ReceiveMaximum(connect.receive_max));
                }
                if connect.packet_max > 0 {
                    properties.push(Property::MaximumPacketSize(connect.packet_max));
                }
                let will = connect.will.map(|(topic, payload, retain, delay)| {
                    let mut will =
                        flowsdk::mqtt_serde::mqttv5::willv5::Will::new(topic.into(), payload.into(), 1, retain);
                    will.properties.will_delay_interval = Some(delay);
                    will
                });
                MqttPacket::Connect5(connectv5::MqttConnect::new(
                    connect.id.into(),
                    None,
                    None,
                    will,
                    connect.keep_alive,
                    connect.clean,
                    properties,
                ))
            }
            Version::V311 => {
                let mut packet = connectv3::MqttConnect::new(connect.id.into(), connect.keep_alive, connect.clean);
                packet.will = connect.will.map(|(topic, payload, retain, _)| connectv3::Will {
                    retain,
                    qos: 1,
                    topic: topic.into(),
                    message: payload.into(),
                });
                MqttPacket::Connect3(packet)
            }
        };
        self.send(&packet);
    }

    /// Session present and the code.
    pub fn connack(&mut self) -> (bool, u8) {
        match self.receive() {
            MqttPacket::ConnAck5(p) => (p.session_present, p.reason_code),
            MqttPacket::ConnAck3(p) => (p.session_present, p.return_code),
            other => panic!("{other:?}"),
        }
    }

    pub fn publish(&mut self, topic: &str, payload: &str, qos: u8, id: u16) {
        self.publish_with(topic, payload, qos, id, false, false, Vec::new());
    }

    pub fn publish_retained(&mut self, topic: &str, payload: &str) {
        self.publish_with(topic, payload, 0, 0, true, false, Vec::new());
    }

    #[allow(clippy::too_many_arguments)]
    pub fn publish_with(
        &mut self,
        topic: &str,
        payload: &str,
        qos: u8,
        id: u16,
        retain: bool,
        dup: bool,
        properties: Vec<Property>,
    ) {
        let id = (qos > 0).then_some(id);
        let publish = Publish { topic: topic.into(), payload: payload.into(), qos, retain, dup, id, properties };
        let packet = publish.into_packet(self.version);
        self.send(&packet);
    }

    /// Subscribes and answers with the code; the options byte is MQTT 5's.
    pub fn subscribe(&mut self, filter: &str, options: u8) -> u8 {
        self.subscribe_with(filter, options, Vec::new())
    }

    pub fn subscribe_with(&mut self, filter: &str, options: u8, properties: Vec<Property>) -> u8 {
        let packet = match self.version {
            Version::V5 => MqttPacket::Subscribe5(subscribev5::MqttSubscribe::new(
                77,
                vec![subscribev5::TopicSubscription::new(
                    filter.into(),
                    options & 3,
                    options & 4 != 0,
                    options & 8 != 0,
                    options >> 4,
                )],
                properties,
            )),
            Version::V311 => MqttPacket::Subscribe3(subscribev3::MqttSubscribe::new(
                77,
                vec![subscribev3::SubscriptionTopic { topic_filter: filter.into(), qos: options }],
            )),
        };
        self.send(&packet);
        match self.receive() {
            MqttPacket::SubAck5(p) => p.reason_codes[0],
            MqttPacket::SubAck3(p) => p.return_codes[0],
            other => panic!("{other:?}"),
        }
    }

    pub fn disconnect(mut self) {
        self.raw(&[0xe0, 0]);
    }

    pub fn ping(&mut self) {
        self.raw(&[0xc0, 0]);
        let packet = self.receive();
        assert!(matches!(packet, MqttPacket::PingResp5(_) | MqttPacket::PingResp3(_)), "{packet:?}");
    }

    pub fn receive(&mut self) -> MqttPacket {
        self.receive_within(SOON).expect("a packet in time")
    }

    /// The next packet; `None` when none comes in time. Panics when the connection ends.
    pub fn receive_within(&mut self, limit: Duration) -> Option<MqttPacket> {
        match self.next(limit) {
            Next::Packet(packet) => Some(*packet),
            Next::Silence => None,
            Next::Closed => panic!("the connection was closed"),
        }
    }

    pub fn next(&mut self, limit: Duration) -> Next {
        self.wire.limit(limit);
        loop {
            if let Some(packet) = packet::take(&mut self.input, self.version, 2 * PACKET_MAX).expect("a packet") {
                return Next::Packet(Box::new(packet));
            }
            let mut chunk = [0; 4096];
            match self.wire.read(&mut chunk) {
                Ok(0) => return Next::Closed,
                Ok(count) => self.input.extend_from_slice(&chunk[..count]),
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Next::Silence,
                Err(_) => return Next::Closed,
            }
        }
    }

    /// Reads until the server has closed; the reason of its DISCONNECT if it sent one.
    pub fn closed_within(&mut self, limit: Duration) -> Option<u8> {
        let start = std::time::Instant::now();
        let mut reason = None;
        loop {
            match self.next(limit) {
                Next::Closed => return reason,
                Next::Packet(packet) => {
                    if let MqttPacket::Disconnect5(p) = *packet {
                        reason = Some(p.reason_code);
                    }
                }
                Next::Silence => panic!("not closed"),
            }
            assert!(start.elapsed() < limit, "not closed");
        }
    }

    pub fn silent(&mut self) {
        let packet = self.receive_within(Duration::from_millis(150));
        assert!(packet.is_none(), "{packet:?}");
    }

    /// The next packet, which is an acknowledgement: its kind, number and reason.
    pub fn ack(&mut self) -> (Kind, u16, u8) {
        match self.receive() {
            MqttPacket::PubAck5(p) => (Kind::Puback, p.packet_id, p.reason_code),
            MqttPacket::PubAck3(p) => (Kind::Puback, p.message_id, 0),
            MqttPacket::PubRec5(p) => (Kind::Pubrec, p.packet_id, p.reason_code),
            MqttPacket::PubRec3(p) => (Kind::Pubrec, p.message_id, 0),
            MqttPacket::PubRel5(p) => (Kind::Pubrel, p.packet_id, p.reason_code),
            MqttPacket::PubRel3(p) => (Kind::Pubrel, p.message_id, 0),
            MqttPacket::PubComp5(p) => (Kind::Pubcomp, p.packet_id, p.reason_code),
            MqttPacket::PubComp3(p) => (Kind::Pubcomp, p.message_id, 0),
            other => panic!("{other:?}"),
        }
    }

    /// Sends an acknowledgement: 0x40 PUBACK, 0x50 PUBREC, 0x62 PUBREL, 0x70 PUBCOMP.
    pub fn send_ack(&mut self, kind: u8, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.raw(&[kind, 2, high, low]);
    }

    /// The next packet, which is a message.
    pub fn message(&mut self) -> Publish {
        Publish::from_packet(self.receive()).unwrap_or_else(|other| panic!("{other:?}"))
    }
}

pub enum Next {
    Packet(Box<MqttPacket>),
    Silence,
    Closed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Puback,
    Pubrec,
    Pubrel,
    Pubcomp,
}

/// The text of a message.
pub fn text(publish: &Publish) -> &str {
    std::str::from_utf8(&publish.payload).unwrap()
}
