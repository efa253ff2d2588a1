//! The bench: a real broker on loopback with its own authority, a wire that can be cut, a client that watches, and the
//! adapter under test. Ends only what it started.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use flowsdk::mqtt_serde::control_packet::MqttPacket;
use flowsdk::mqtt_serde::mqttv3;
use flowsdk::mqtt_serde::mqttv5::common::properties::Property;
use switchback::config::{Config, Server, SubscribeRule};
use switchback::corridor::{Body, Downlink, Pledge};
use switchback::io::cloud::{Before, Bodies, Cloud, Greeting};
use switchback::io::packet::{self, PACKET_MAX, Publish};
use switchback::outbox::Record;
use switchback::uplinks::{Details, Uplinks};
use switchback_control::{Attempt, Class, Event, Measure, Name, Reason, Seq, Version};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Certificates: an authority, a server for `localhost` and 127.0.0.1, a client, and another authority.
pub struct Papers {
    folder: TempDir,
}

impl Papers {
    pub fn get() -> &'static Papers {
        static PAPERS: OnceLock<Papers> = OnceLock::new();
        PAPERS.get_or_init(|| {
            let papers = Papers { folder: tempfile::tempdir().unwrap() };
            papers.authority("ca");
            papers.authority("other");
            papers.sign("server", "subjectAltName=DNS:localhost,IP:127.0.0.1");
            papers.sign("client", "extendedKeyUsage=clientAuth");
            papers
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn authority(&self, name: &str) {
        self.openssl(&format!(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj /CN=switchback-{name} \
             -addext basicConstraints=critical,CA:TRUE -keyout {name}.key -out {name}.pem"
        ));
    }

    fn sign(&self, name: &str, extension: &str) {
        std::fs::write(self.path("ext"), extension).unwrap();
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN={name} -keyout {name}.key -out {name}.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out {name}.pem"
        ));
    }

    fn openssl(&self, arguments: &str) {
        let done = Command::new("openssl")
            .current_dir(self.folder.path())
            .args(arguments.split_whitespace())
            .output()
            .expect("these tests need openssl(1)");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

pub fn free_port() -> u16 {
    StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// A mosquitto of our own.
pub struct Broker {
    child: Child,
    /// Its configuration and log; gone when it is.
    _folder: TempDir,
    pub port: u16,
}

impl Broker {
    /// `extra` are more lines of mosquitto.conf(5) for the one listener.
    pub fn start(extra: &str) -> Broker {
        let folder = tempfile::tempdir().unwrap();
        let port = free_port();
        let child = Broker::run(folder.path(), port, extra);
        Broker { child, _folder: folder, port }
    }

    fn run(folder: &Path, port: u16, extra: &str) -> Child {
        let user = if std::env::var("USER").as_deref() == Ok("root") || running_as_root() { "user root\n" } else { "" };
        let anonymous = if extra.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" };
        let text = format!("{user}persistence false\nlistener {port} 127.0.0.1\n{anonymous}{extra}\n");
        let conf = folder.join("mosquitto.conf");
        std::fs::write(&conf, text).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let program = ["/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto", "mosquitto"]
            .into_iter()
            .find(|path| !path.starts_with('/') || Path::new(path).exists())
            .unwrap();
        let mut child = Command::new(program)
            .arg("-v")
            .arg("-c")
            .arg(conf)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("these tests need mosquitto(8)");
        for _ in 0..400 {
            if std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return child;
            }
            std::thread::sleep(Duration::from_millis(25));
        }
        let _ = child.kill().and_then(|()| child.wait());
        panic!("mosquitto does not start: {}", std::fs::read_to_string(folder.join("log")).unwrap());
    }

    pub fn tls(extra: &str) -> Broker {
        let papers = Papers::get();
        Broker::start(&format!(
            "cafile {}\ncertfile {}\nkeyfile {}\n{extra}",
            papers.path("ca.pem").display(),
            papers.path("server.pem").display(),
            papers.path("server.key").display()
        ))
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn running_as_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|found| found.uid() == 0)
}

impl Drop for Broker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A wire to the broker that can swallow what comes back, be cut, and tells what went up.
pub struct Wire {
    pub port: u16,
    pub swallowing: Arc<AtomicBool>,
    up: Arc<Mutex<Vec<u8>>>,
    /// How often it was cut.
    cut: Arc<watch::Sender<u32>>,
}

impl Wire {
    pub async fn to(port: u16) -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wire = Wire {
            port: listener.local_addr().unwrap().port(),
            swallowing: Arc::default(),
            up: Arc::default(),
            cut: Arc::new(watch::Sender::new(0)),
        };
        let (swallowing, up, cut) = (wire.swallowing.clone(), wire.up.clone(), wire.cut.clone());
        tokio::spawn(async move {
            loop {
                let (mut near, _) = listener.accept().await.unwrap();
                let mut far = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
                let (swallowing, up) = (swallowing.clone(), up.clone());
                up.lock().unwrap().clear();
                let mut cut = cut.subscribe();
                tokio::spawn(async move {
                    let (mut a, mut b) = (vec![0; 65536], vec![0; 65536]);
                    loop {
                        tokio::select! {
                            n = near.read(&mut a) => match n {
                                Ok(n) if n > 0 => {
                                    up.lock().unwrap().extend(&a[..n]);
                                    far.write_all(&a[..n]).await.unwrap();
                                }
                                _ => break,
                            },
                            n = far.read(&mut b) => match n {
                                Ok(n) if n > 0 => if !swallowing.load(Ordering::Relaxed) {
                                    near.write_all(&b[..n]).await.unwrap();
                                },
                                _ => break,
                            },
                            _ = cut.changed() => break,
                        }
                    }
                });
            }
        });
        wire
    }

    pub fn cut(&self) {
        self.cut.send_modify(|times| *times += 1);
    }

    /// Every PUBLISH that went up on the last connection.
    pub fn published(&self, version: Version) -> Vec<Publish> {
        let mut bytes = self.up.lock().unwrap().clone();
        let mut found = Vec::new();
        while let Ok(Some(packet)) = packet::take(&mut bytes, version, PACKET_MAX) {
            found.extend(Publish::from_packet(packet).ok());
        }
        found
    }
}

/// Message bodies made up from their numbers, and what was told of them.
#[derive(Clone, Default)]
pub struct Stack {
    pub bodies: Arc<Mutex<Vec<Body>>>,
    pub told: Arc<Mutex<Told>>,
}

/// What the adapter has told. `pledges` is what a disk would hold, `broken` a disk that keeps nothing.
#[derive(Default)]
pub struct Told {
    pub sent: Vec<Seq>,
    pub rejected: Vec<(Seq, String)>,
    pub pledges: BTreeMap<u16, Pledge>,
    pub broken: bool,
    pub disk_takes: Option<Duration>,
    /// What memory does not have, and what of it the disk cannot read.
    pub on_disk: BTreeSet<Seq>,
    pub unreadable: BTreeSet<Seq>,
    /// The file for what the cloud's messages of QoS 2 were taken.
    pub taken: Option<PathBuf>,
}

impl Stack {
    pub fn put(&self, seq: u64, topic: &str, payload: &[u8], qos: u8) -> Seq {
        self.put_with(seq, topic, payload, qos, 1_900_000_000_000, vec![])
    }

    pub fn put_with(
        &self,
        seq: u64,
        topic: &str,
        payload: &[u8],
        qos: u8,
        accepted: u64,
        properties: Vec<Property>,
    ) -> Seq {
        self.bodies.lock().unwrap().push(Arc::new(Record {
            seq: Seq(seq),
            accepted,
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain: false,
            class: 0,
            id: format!("boot.1.{seq}"),
            properties: packet::properties_to_bytes(&properties),
        }));
        Seq(seq)
    }

    /// The next answer of a disk that answers all at once, whenever it has synced.
    async fn disk(&self) {
        let takes = self.told().disk_takes.unwrap_or(Duration::from_millis(2));
        sleep(takes).await;
    }

    fn find(&self, seq: Seq) -> Option<Body> {
        self.bodies.lock().unwrap().iter().find(|body| body.seq == seq).cloned()
    }

    pub fn remove(&self, seq: Seq) {
        self.bodies.lock().unwrap().retain(|body| body.seq != seq);
    }

    pub fn pledges(&self) -> Vec<Pledge> {
        self.told().pledges.values().copied().collect()
    }

    pub fn told(&self) -> std::sync::MutexGuard<'_, Told> {
        self.told.lock().unwrap()
    }
}

impl Bodies for Stack {
    fn held(&self, seq: Seq) -> Option<Body> {
        let told = self.told();
        if told.on_disk.contains(&seq) { None } else { self.find(seq) }
    }

    async fn read(&self, seqs: Vec<Seq>) -> Vec<Option<Body>> {
        self.disk().await;
        seqs.into_iter().take_while(|seq| !self.told().unreadable.contains(seq)).map(|seq| self.find(seq)).collect()
    }

    fn sent(&self, seq: Seq) {
        self.told().sent.push(seq);
    }

    fn rejected(&self, seq: Seq, why: String) {
        self.told().rejected.push((seq, why));
    }

    async fn pledge(&self, pledge: Pledge) -> bool {
        self.disk().await;
        let mut told = self.told();
        if !told.broken {
            told.pledges.insert(pledge.id, pledge);
        }
        !told.broken
    }

    fn redeem(&self, id: u16) {
        self.told().pledges.remove(&id);
    }

    fn redeem_all(&self) {
        self.told().pledges.clear();
    }
}

/// The adapter under test and both ends of its channels.
pub struct Rig {
    pub cloud: Cloud,
    pub events: mpsc::Receiver<Event>,
    pub downlinks: mpsc::Receiver<Downlink>,
    pub stack: Stack,
    last: u64,
}

pub fn lo() -> Name {
    Name::new("lo").unwrap()
}

pub fn config(port: u16) -> Config {
    let mut config = Config::defaults();
    config.cloud.servers = vec![Server { host: "127.0.0.1".into(), port, tls: false }];
    config.cloud.client_id = format!("gw-{port}");
    config.cloud.base = "switchback/gw".into();
    config.cloud.will_delay = Duration::ZERO;
    config.hash = "cafe".into();
    config
}

pub fn subscribed(mut config: Config) -> Config {
    config.subscribe = vec![SubscribeRule { topic: "gw/cmd/#".into(), to: "cmd/{rest}".into(), qos: 2 }];
    config
}

impl Rig {
    pub fn new(config: Config) -> Rig {
        Rig::again(config, Stack::default())
    }

    /// The adapter as it is started with what is known from before.
    pub fn again(config: Config, stack: Stack) -> Rig {
        let uplinks = Uplinks::new();
        uplinks.set(
            lo(),
            Details {
                ip_interface: lo(),
                class: Class::Ethernet,
                driver: String::new(),
                addresses: vec![],
                // Nobody answers DNS here: what is looked up and not in /etc/hosts fails.
                name_servers: vec![Ipv4Addr::new(127, 0, 0, 99).into()],
                signal: None,
            },
        );
        let (events, inbox) = mpsc::channel(1024);
        let (downlinks, downlinks_inbox) = mpsc::channel(4);
        let greet = Arc::new(|| Greeting {
            boot: "boot".into(),
            start: 3,
            outage: Some(Reason::NoLink),
            ..Greeting::default()
        });
        let before = Before { pledges: stack.pledges(), taken: stack.told().taken.clone() };
        let cloud = Cloud::start(Arc::new(config), uplinks, stack.clone(), downlinks, events, greet, before);
        Rig { cloud, events: inbox, downlinks: downlinks_inbox, stack, last: 0 }
    }

    pub fn dial(&mut self) -> Attempt {
        self.last += 1;
        self.cloud.dial(lo(), 0, Attempt(self.last));
        Attempt(self.last)
    }

    /// Dials and connects; panics unless that works. Whether the session was present.
    pub async fn open(&mut self, version: Version) -> (Attempt, bool) {
        let attempt = self.dial();
        self.until(|event| matches!(event, Event::Dialled { attempt: a, .. } if *a == attempt)).await;
        self.cloud.connect(attempt, version, Duration::from_secs(30));
        let connected = self.until(|event| matches!(event, Event::Connected { .. })).await;
        let Event::Connected { present, .. } = connected else { unreachable!() };
        self.until(|event| *event == Event::Settled { attempt }).await;
        (attempt, present)
    }

    /// The next event that satisfies; an end of anything is a failure where it is not what is looked for.
    pub async fn until(&mut self, mut wanted: impl FnMut(&Event) -> bool) -> Event {
        let found = timeout(PATIENCE, async {
            loop {
                let event = self.events.recv().await.unwrap();
                if wanted(&event) {
                    return event;
                }
                assert!(!matches!(event, Event::Closed { .. } | Event::DialFailed { .. }), "{event}");
            }
        });
        found.await.expect("the event does not come")
    }

    /// How the attempt ends.
    pub async fn end(&mut self) -> (Reason, bool) {
        match self.until(|event| matches!(event, Event::Closed { .. } | Event::DialFailed { .. })).await {
            Event::Closed { reason, heard, .. } | Event::DialFailed { reason, heard, .. } => (reason, heard),
            _ => unreachable!(),
        }
    }

    /// Each is through: acknowledged, or as good as that with another quality than 1.
    pub async fn acked(&mut self, mut seqs: Vec<Seq>) {
        while !seqs.is_empty() {
            let event = self.until(|event| matches!(event, Event::Acked { .. } | Event::Completed { .. })).await;
            let (Event::Acked { seq, .. } | Event::Completed { seq, .. }) = event else { unreachable!() };
            assert!(seqs.contains(&seq), "{event}");
            seqs.retain(|other| *other != seq);
        }
    }

    pub async fn measured(&mut self, attempt: Attempt) -> Measure {
        self.cloud.measure(attempt);
        let event = self.until(|event| matches!(event, Event::Measured { attempt: a, .. } if *a == attempt)).await;
        let Event::Measured { measure, .. } = event else { unreachable!() };
        measure
    }

    pub async fn downlink(&mut self) -> Downlink {
        timeout(PATIENCE, self.downlinks.recv()).await.expect("no message from the cloud").unwrap()
    }
}

/// Another client of the broker, 3.1.1 and blunt.
pub struct Watcher {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Watcher {
    pub async fn on(port: u16, filter: &str) -> Watcher {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let mut watcher = Watcher { stream, buffer: vec![] };
        watcher.login(&format!("watcher-{}", watcher.stream.local_addr().unwrap().port())).await;
        let topic = mqttv3::subscribev3::SubscriptionTopic { topic_filter: filter.into(), qos: 2 };
        watcher.say(MqttPacket::Subscribe3(mqttv3::subscribev3::MqttSubscribe::new(1, vec![topic]))).await;
        assert!(matches!(watcher.hear().await, MqttPacket::SubAck3(_)));
        watcher
    }

    /// Takes a client identifier from whoever has it.
    pub async fn impostor(port: u16, client_id: &str) -> Watcher {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        let mut watcher = Watcher { stream, buffer: vec![] };
        watcher.login(client_id).await;
        watcher
    }

    async fn login(&mut self, client_id: &str) {
        let connect = mqttv3::connectv3::MqttConnect::new(client_id.into(), 60, true);
        self.say(MqttPacket::Connect3(connect)).await;
        assert!(matches!(self.hear().await, MqttPacket::ConnAck3(_)));
    }

    pub async fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) {
        let publish = Publish {
            topic: topic.into(),
            payload: payload.into(),
            qos,
            retain: false,
            dup: false,
            id: (qos > 0).then_some(77),
            properties: vec![],
        };
        self.say(publish.into_packet(Version::V311)).await;
        match qos {
            0 => {}
            1 => assert!(matches!(self.hear().await, MqttPacket::PubAck3(_))),
            _ => {
                assert!(matches!(self.hear().await, MqttPacket::PubRec3(_)));
                self.stream.write_all(&[0x62, 2, 0, 77]).await.unwrap();
                assert!(matches!(self.hear().await, MqttPacket::PubComp3(_)));
            }
        }
    }

    async fn say(&mut self, packet: MqttPacket) {
        self.stream.write_all(&packet.to_bytes().unwrap()).await.unwrap();
    }

    async fn hear(&mut self) -> MqttPacket {
        timeout(PATIENCE, async {
            loop {
                if let Some(packet) = packet::take(&mut self.buffer, Version::V311, PACKET_MAX).unwrap() {
                    return packet;
                }
                assert_ne!(self.stream.read_buf(&mut self.buffer).await.unwrap(), 0, "the broker hung up");
            }
        })
        .await
        .expect("nothing comes")
    }

    /// The next message: its topic and text. Acknowledges what wants it.
    pub async fn message(&mut self) -> (String, String) {
        loop {
            let publish = match Publish::from_packet(self.hear().await).map_err(|other| *other) {
                Ok(publish) => publish,
                Err(MqttPacket::PubRel3(p)) => {
                    let [high, low] = p.message_id.to_be_bytes();
                    self.stream.write_all(&[0x70, 2, high, low]).await.unwrap();
                    continue;
                }
                Err(other) => panic!("{other:?}"),
            };
            if let Some(id) = publish.id {
                let first = if publish.qos == 2 { 0x50 } else { 0x40 };
                self.stream.write_all(&[first, 2, (id >> 8) as u8, id as u8]).await.unwrap();
            }
            return (publish.topic, String::from_utf8(publish.payload).unwrap());
        }
    }

    pub async fn json(&mut self, topic: &str) -> serde_json::Value {
        loop {
            let (found, text) = self.message().await;
            if found == topic {
                return serde_json::from_str(&text).unwrap();
            }
        }
    }
}

/// A server of few words: what it says after reading something is up to the test.
pub async fn fake() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let SocketAddr::V4(address) = listener.local_addr().unwrap() else { unreachable!() };
    (listener, address.port())
}

/// Reads whole packets off a fake server's stream for a while.
pub async fn listen(stream: &mut TcpStream, version: Version, time: Duration) -> Vec<MqttPacket> {
    let mut buffer = Vec::new();
    let mut packets = Vec::new();
    let _ = timeout(time, async {
        loop {
            while let Some(packet) = packet::take(&mut buffer, version, PACKET_MAX).unwrap() {
                packets.push(packet);
            }
            if stream.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                sleep(time).await;
            }
        }
    })
    .await;
    packets
}
