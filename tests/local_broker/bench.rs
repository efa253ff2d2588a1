//! The bench: a mosquitto that can be stopped, killed and started again, a client of it, a wire that can be cut, and a heart
//! of three words in place of the real one. Ends only what it started.

use std::net::{Ipv4Addr, TcpListener as StdListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use flowsdk::mqtt_serde::mqttv5::{connectv5, subscribev5};
use switchback::config::{Config, LocalBroker as Address, PublishRule, Server};
use switchback::corridor::{Corridor, Downlink, Refusal, StoreJob};
use switchback::io::local_broker::{Figures, LocalBroker};
use switchback::io::packet::{self, PACKET_MAX, Publish};
use switchback_control::{Event, Lane, Seq, Ticket, Version};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn free_port() -> u16 {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A mosquitto of our own, with persistence.
pub struct Mosquitto {
    child: Option<Child>,
    folder: TempDir,
    pub port: u16,
}

impl Mosquitto {
    /// `extra` are more lines of mosquitto.conf(5).
    pub fn start(extra: &str) -> Mosquitto {
        let mut broker = Mosquitto::absent(extra);
        broker.again();
        broker
    }

    /// Not running yet.
    pub fn absent(extra: &str) -> Mosquitto {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let user = if running_as_root() { "user root\n" } else { "" };
        let anonymous = if extra.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" };
        let place = folder.path().display();
        let text = format!(
            "{user}persistence true\npersistence_location {place}/\nlistener {port} 127.0.0.1\n{anonymous}{extra}\n"
        );
        std::fs::write(folder.path().join("mosquitto.conf"), text).unwrap();
        Mosquitto { child: None, folder, port }
    }

    /// Starts, or starts again with what it kept.
    pub fn again(&mut self) {
        let folder = self.folder.path();
        let log = std::fs::File::options().create(true).append(true).open(folder.join("log")).unwrap();
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|path| !path.starts_with('/') || Path::new(path).exists())
            .unwrap();
        let mut child = Command::new(program)
            .args(["-v", "-c"])
            .arg(folder.join("mosquitto.conf"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("these tests need mosquitto(8)");
        for _ in 0..400 {
            if std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port)).is_ok() {
                self.child = Some(child);
                return;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        let _ = child.kill().and_then(|()| child.wait());
        panic!("mosquitto does not start: {}", self.log());
    }

    /// Lets it save what it has, and end.
    pub fn stop(&mut self) {
        self.signal("-TERM");
        self.child.take().unwrap().wait().unwrap();
    }

    pub fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    fn signal(&self, signal: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([signal, &pid]).status().unwrap().success());
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn running_as_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

/// What the heart says to offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// Admits and accepts.
    Takes,
    /// Admits, and leaves the answer for later.
    Ponders,
    Refuses(Refusal),
    /// Refuses this lane only.
    RefusesLane(Lane),
}

/// A message that the heart accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Up {
    pub topic: String,
    pub text: String,
    pub qos: u8,
    pub retain: bool,
}

/// The heart in place of the real one.
pub struct Heart {
    pub corridor: Corridor,
    mood: Arc<Mutex<Mood>>,
    ups: Arc<Mutex<Vec<Up>>>,
    pondered: Arc<Mutex<Vec<(Ticket, Seq)>>>,
    pub offers: Arc<AtomicUsize>,
    task: JoinHandle<()>,
    _store: std::sync::mpsc::Receiver<StoreJob>,
}

impl Heart {
    pub fn new(mood: Mood) -> Heart {
        let (events, mut inbox) = mpsc::channel(64);
        let (jobs, store) = std::sync::mpsc::channel();
        let corridor = Corridor::new(events, jobs, "boot.1".into());
        let mood = Arc::new(Mutex::new(mood));
        let ups = Arc::<Mutex<Vec<Up>>>::default();
        let pondered = Arc::<Mutex<Vec<(Ticket, Seq)>>>::default();
        let offers = Arc::<AtomicUsize>::default();
        let (heart, moods, accepted, waiting, counted) =
            (corridor.clone(), mood.clone(), ups.clone(), pondered.clone(), offers.clone());
        let task = tokio::spawn(async move {
            let mut last = 0;
            while let Some(event) = inbox.recv().await {
                let Event::Offered { ticket, parcel } = event else { continue };
                counted.fetch_add(1, Ordering::Relaxed);
                last += 1;
                let mood = *moods.lock().unwrap();
                let seq = Seq::new(parcel.lane, last);
                match mood {
                    Mood::Refuses(refusal) => heart.refuse(ticket, refusal),
                    Mood::RefusesLane(lane) if lane == parcel.lane => heart.refuse(ticket, Refusal::Full),
                    Mood::Takes | Mood::RefusesLane(_) => {
                        heart.admit(ticket, seq);
                        note(&heart, &accepted, ticket, seq).await;
                    }
                    Mood::Ponders => {
                        heart.admit(ticket, seq);
                        waiting.lock().unwrap().push((ticket, seq));
                    }
                }
            }
        });
        Heart { corridor, mood, ups, pondered, offers, task, _store: store }
    }

    pub fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    /// Accepts what was only admitted.
    pub async fn decide(&self) {
        let pondered: Vec<(Ticket, Seq)> = self.pondered.lock().unwrap().drain(..).collect();
        for (ticket, seq) in pondered {
            note(&self.corridor, &self.ups, ticket, seq).await;
        }
    }

    /// The cloud has everything accepted so far in this lane.
    pub fn deliver(&self, through: Seq) {
        self.corridor.release(through);
    }

    pub fn ups(&self) -> Vec<Up> {
        self.ups.lock().unwrap().clone()
    }

    pub fn texts(&self) -> Vec<String> {
        self.ups().into_iter().map(|up| up.text).collect()
    }

    /// So many were accepted.
    pub async fn until(&self, count: usize) -> Vec<Up> {
        until(|| self.ups().len() >= count, || format!("{} of {count} messages", self.ups().len())).await;
        self.ups()
    }
}

async fn note(corridor: &Corridor, ups: &Mutex<Vec<Up>>, ticket: Ticket, seq: Seq) {
    let body = corridor.held(seq).unwrap();
    let text = String::from_utf8_lossy(&body.payload).into_owned();
    ups.lock().unwrap().push(Up { topic: body.topic.clone(), text, qos: body.qos, retain: body.retain });
    corridor.accept(ticket);
}

impl Drop for Heart {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn until(mut true_now: impl FnMut() -> bool, what: impl Fn() -> String) {
    let deadline = Instant::now() + PATIENCE;
    while !true_now() {
        assert!(Instant::now() < deadline, "does not come: {}", what());
        sleep(Duration::from_millis(10)).await;
    }
}

/// The bridge under test, with what it needs.
pub struct Rig {
    pub bridge: LocalBroker,
    downlinks: mpsc::Sender<Downlink>,
    pub port: u16,
}

pub fn rule(topic: &str, to: &str) -> PublishRule {
    PublishRule { topic: topic.into(), to: to.into(), ..PublishRule::default() }
}

pub fn config(rules: &[PublishRule]) -> Config {
    let mut config = Config::defaults();
    config.cloud.client_id = "gw".into();
    config.publish = rules.to_vec();
    config
}

pub fn address(port: u16) -> Address {
    let server = Server { host: "127.0.0.1".into(), port, tls: false };
    Address { server, username: None, password_file: None }
}

impl Rig {
    pub fn new(config: Config, address: Address, state: &Path, heart: &Heart) -> Rig {
        listen_to_the_log();
        let (downlinks, inbox) = mpsc::channel(64);
        let port = address.server.port;
        let bridge = LocalBroker::start(Arc::new(config), address, state, heart.corridor.clone(), inbox);
        Rig { bridge, downlinks, port }
    }

    /// Without rules, until it is connected.
    pub async fn on(port: u16, state: &Path, heart: &Heart) -> Rig {
        let rig = Rig::new(config(&[]), address(port), state, heart);
        rig.connected().await;
        rig
    }

    pub fn figures(&self) -> Figures {
        self.bridge.gauge().read()
    }

    pub async fn connected(&self) {
        until(|| self.figures().connected, || format!("a connection: {:?}", said(self.port))).await;
    }

    pub async fn parted(&self) {
        until(|| !self.figures().connected, || "the end of the connection".into()).await;
    }

    /// From the cloud.
    pub async fn down(&self, topic: &str, text: &str, qos: u8, retain: bool) -> oneshot::Receiver<()> {
        self.down_with(topic, text, qos, retain, vec![]).await
    }

    pub async fn down_with(
        &self,
        topic: &str,
        text: &str,
        qos: u8,
        retain: bool,
        properties: Vec<Property>,
    ) -> oneshot::Receiver<()> {
        let (taken, told) = oneshot::channel();
        let properties = packet::properties_to_bytes(&properties);
        let downlink = Downlink { topic: topic.into(), payload: text.into(), qos, retain, properties, taken };
        self.downlinks.send(downlink).await.unwrap();
        told
    }
}

/// An application: MQTT 5 at its bluntest.
pub struct Client {
    stream: TcpStream,
    buffer: Vec<u8>,
    last: u16,
}

impl Client {
    pub async fn on(port: u16) -> Client {
        Client::named(port, "", true).await
    }

    /// With a session that outlives it where `clean` is false.
    pub async fn named(port: u16, name: &str, clean: bool) -> Client {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut client = Client { stream, buffer: vec![], last: 0 };
        let properties = vec![Property::SessionExpiryInterval(if clean { 0 } else { 3600 })];
        let connect = connectv5::MqttConnect::new(name.into(), None, None, None, 60, clean, properties);
        client.say(MqttPacket::Connect5(connect)).await;
        let MqttPacket::ConnAck5(answer) = client.hear().await else { panic!("no CONNACK") };
        assert_eq!(answer.reason_code, 0);
        client
    }

    pub async fn subscribe(&mut self, filter: &str) {
        let filter = subscribev5::TopicSubscription::new_simple(filter.into(), 2);
        self.say(MqttPacket::Subscribe5(subscribev5::MqttSubscribe::new_simple(1, vec![filter]))).await;
        while !matches!(self.hear().await, MqttPacket::SubAck5(_)) {}
    }

    pub async fn publish(&mut self, topic: &str, text: &str, qos: u8) {
        self.publish_with(topic, text.into(), qos, false, vec![]).await;
    }

    /// Until the broker has it.
    pub async fn publish_with(
        &mut self,
        topic: &str,
        payload: Vec<u8>,
        qos: u8,
        retain: bool,
        properties: Vec<Property>,
    ) {
        self.last = self.last % 60_000 + 1;
        let id = (qos > 0).then_some(self.last);
        let publish = Publish { topic: topic.into(), payload, qos, retain, dup: false, id, properties };
        self.say(publish.into_packet(Version::V5)).await;
        if qos == 1 {
            while !matches!(self.hear().await, MqttPacket::PubAck5(_)) {}
        } else if qos == 2 {
            while !matches!(self.hear().await, MqttPacket::PubRec5(_)) {}
            self.answer(0x62, self.last).await;
            while !matches!(self.hear().await, MqttPacket::PubComp5(_)) {}
        }
    }

    /// The next message, acknowledged.
    pub async fn message(&mut self) -> Publish {
        loop {
            let packet = self.hear().await;
            if let MqttPacket::PubRel5(release) = packet {
                self.answer(0x70, release.packet_id).await;
            } else if let Ok(publish) = Publish::from_packet(packet) {
                if let Some(id) = publish.id {
                    self.answer(if publish.qos == 2 { 0x50 } else { 0x40 }, id).await;
                }
                return publish;
            }
        }
    }

    async fn answer(&mut self, first: u8, id: u16) {
        let [high, low] = id.to_be_bytes();
        self.stream.write_all(&[first, 2, high, low]).await.unwrap();
    }

    pub async fn texts(&mut self, count: usize) -> Vec<String> {
        let mut texts = Vec::new();
        for _ in 0..count {
            texts.push(String::from_utf8(self.message().await.payload).unwrap());
        }
        texts
    }

    /// Nothing comes for a while.
    pub async fn silence(&mut self) {
        let heard = timeout(Duration::from_millis(300), self.message()).await;
        assert!(heard.is_err(), "{heard:?}");
    }

    async fn say(&mut self, packet: MqttPacket) {
        self.stream.write_all(&packet.to_bytes().unwrap()).await.unwrap();
    }

    async fn hear(&mut self) -> MqttPacket {
        timeout(PATIENCE, async {
            loop {
                if let Some(packet) = packet::take(&mut self.buffer, Version::V5, PACKET_MAX).unwrap() {
                    return packet;
                }
                assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "the broker hung up");
            }
        })
        .await
        .expect("nothing comes")
    }
}

/// A wire to the broker that can be cut, and swallow what goes up.
pub struct Wire {
    pub port: u16,
    pub swallowing: Arc<AtomicBool>,
    cut: Arc<tokio::sync::Notify>,
}

impl Wire {
    pub async fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire =
            Wire { port: listener.local_addr().unwrap().port(), swallowing: Arc::default(), cut: Arc::default() };
        let (swallowing, cut) = (wire.swallowing.clone(), wire.cut.clone());
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let Ok(mut far) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await else { continue };
                let (swallowing, cut) = (swallowing.clone(), cut.clone());
                tokio::spawn(async move {
                    let (mut a, mut b) = (vec![0; 65536], vec![0; 65536]);
                    loop {
                        tokio::select! {
                            n = near.read(&mut a) => match n {
                                Ok(n) if n > 0 => if !swallowing.load(Ordering::Relaxed) {
                                    far.write_all(&a[..n]).await.unwrap();
                                },
                                _ => break,
                            },
                            n = far.read(&mut b) => match n {
                                Ok(n) if n > 0 => near.write_all(&b[..n]).await.unwrap(),
                                _ => break,
                            },
                            () = cut.notified() => break,
                        }
                    }
                });
            }
        });
        wire
    }

    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}

struct Ears;

static SAID: Mutex<Vec<String>> = Mutex::new(Vec::new());

impl log::Log for Ears {
    fn enabled(&self, _: &log::Metadata) -> bool {
        true
    }

    fn log(&self, record: &log::Record) {
        if record.level() <= log::Level::Info {
            SAID.lock().unwrap().push(record.args().to_string());
        }
    }

    fn flush(&self) {}
}

fn listen_to_the_log() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&Ears).unwrap();
        log::set_max_level(log::LevelFilter::Info);
    });
}

/// What was said about the broker on this port.
pub fn said(port: u16) -> Vec<String> {
    let name = format!("mqtt://127.0.0.1:{port}: ");
    SAID.lock().unwrap().iter().filter_map(|line| line.split(&name).nth(1).map(str::to_owned)).collect()
}
