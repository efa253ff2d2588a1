//! The real daemon at work: a cloud that comes and goes, an application that publishes, and everything written down.
//!
//! Runs inside a network namespace of its own: the cloud is a thread at 192.0.2.1, the daemon lives in a second
//! namespace behind a cable, and there is neither NetworkManager nor a bus. A note of something seen carries how far the
//! trace was at that moment: what a note says was true at the latest when the trace had that length.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use switchback::control::Version;
use switchback::io::packet::{Publish, frame_length, parse};

/// Everything that can be said of a moment in the trace.
#[derive(Clone, Debug, PartialEq)]
pub enum Note {
    /// The application was told that this message is safe.
    Acked(String),
    /// The cloud has this message, and had not acknowledged it before.
    Got(String),
    /// Somebody asks for this failover list, and (later) was told that it holds.
    Asked(String),
    Held(String),
    /// The daemon of this start serves.
    Serves(u64),
}

/// A gateway and its cloud.
pub struct Stage {
    pub dir: PathBuf,
    holder: Child,
    daemon: Option<Child>,
    pub notes: Arc<Notes>,
    pub cloud: Arc<Cloud>,
}

/// Notes with the trace's length at their moment.
pub struct Notes {
    trace: PathBuf,
    all: Mutex<Vec<(u64, Note)>>,
    /// Told to somebody who will outlive this machine, before anything else happens.
    console: Option<File>,
}

impl Note {
    fn got(&self) -> Option<&str> {
        if let Note::Got(name) = self { Some(name) } else { None }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Acked(name) => write!(f, "acked {name}"),
            Note::Got(name) => write!(f, "got {name}"),
            Note::Asked(list) => write!(f, "asked {list}"),
            Note::Held(list) => write!(f, "held {list}"),
            Note::Serves(life) => write!(f, "serves {life}"),
        }
    }
}

impl Notes {
    pub fn note(&self, note: Note) {
        let mut all = self.all.lock().unwrap();
        let at = fs::metadata(&self.trace).map_or(0, |file| file.len());
        if let Some(mut console) = self.console.as_ref() {
            console.write_all(format!("power: {note}\n").as_bytes()).unwrap();
            // SAFETY: an open descriptor, and nothing else.
            unsafe { libc::tcdrain(console.as_raw_fd()) };
        }
        all.push((at, note));
    }

    /// Messages that are safe and not at the cloud, as far as this stage has seen.
    pub fn owed(&self) -> usize {
        let all = self.all.lock().unwrap();
        let got: HashSet<&str> = all.iter().filter_map(|(_, note)| note.got()).collect();
        all.iter().filter(|(_, note)| matches!(note, Note::Acked(name) if !got.contains(name.as_str()))).count()
    }

    pub fn all(&self) -> Vec<(u64, Note)> {
        self.all.lock().unwrap().clone()
    }
}

fn run(words: &[&str]) {
    let status = Command::new(words[0]).args(&words[1..]).status().unwrap_or_else(|e| panic!("{words:?}: {e}"));
    assert!(status.success(), "{words:?}: {status}");
}

impl Stage {
    /// `dir` takes the state, the trace and everything else. With a `console` nothing is traced, and notes go there.
    pub fn new(dir: &Path, console: Option<File>) -> Stage {
        for part in ["state", "run"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        if console.is_none() {
            let (library, source) =
                (dir.join("trace.so"), concat!(env!("CARGO_MANIFEST_DIR"), "/tests/power_cut/trace.c"));
            let made = Command::new("cc").args(["-shared", "-fPIC", "-O2", source, "-o"]).arg(&library).status();
            assert!(made.expect("cc is there").success());
        }
        let config = format!("{CONFIG}{}", std::env::var("POWER_CONFIG").unwrap_or_else(|_| CLASSES.to_owned()));
        fs::write(dir.join("switchback.toml"), config).unwrap();
        let mut holder = Command::new("unshare")
            .args(["-n", "sh", "-c", "echo; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("unshare is there");
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        let pid = holder.id().to_string();
        let inside = |words: &[&str]| run(&[&["nsenter", "-t", &pid, "-n", "--"], words].concat());
        run(&["ip", "link", "add", "cloud0", "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        run(&["ip", "address", "add", "192.0.2.1/24", "dev", "cloud0"]);
        run(&["ip", "link", "set", "cloud0", "up"]);
        inside(&["ip", "address", "add", "192.0.2.2/24", "dev", "eth0"]);
        inside(&["ip", "link", "set", "eth0", "up"]);
        let trace = dir.join("trace");
        let notes = Arc::new(Notes { trace, all: Mutex::default(), console });
        let cloud = Cloud::start(notes.clone());
        Stage { dir: dir.to_owned(), holder, daemon: None, notes, cloud }
    }

    /// Starts the daemon on its state directory, or another one that nobody traces.
    pub fn start(&mut self, state: &Path, traced: bool) {
        let log = std::env::var_os("POWER_LOG").map_or_else(|| self.dir.join("log"), PathBuf::from);
        let log = File::options().append(true).create(true).open(log).unwrap();
        let mut command = Command::new("nsenter");
        let daemon = std::env::var("POWER_DAEMON").unwrap_or_else(|_| env!("CARGO_BIN_EXE_switchbackd").into());
        command
            .args(["-t", &self.holder.id().to_string(), "-n", "--", &daemon, "--config"])
            .arg(self.dir.join("switchback.toml"))
            .arg("--state-dir")
            .arg(state);
        command.arg("--runtime-dir").arg(self.dir.join("run"));
        if traced {
            command.env("POWER_DIR", state).env("POWER_TRACE", self.dir.join("trace"));
            command.env("LD_PRELOAD", self.dir.join("trace.so"));
        }
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent").stdin(Stdio::null()).stdout(Stdio::null());
        self.daemon = Some(command.stderr(log).spawn().unwrap());
    }

    /// As kill -9 does it: the files stay as they are for everybody else.
    pub fn kill(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().unwrap();
            daemon.wait().unwrap();
        }
    }

    /// A line for the daemon's control socket; its answer.
    pub fn ask(&self, line: &str) -> io::Result<String> {
        let mut stream = UnixStream::connect(self.dir.join("run/control.sock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(format!("{line}\n").as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        Ok(answer)
    }

    pub fn lives(&mut self) -> bool {
        self.daemon.as_mut().is_some_and(|daemon| daemon.try_wait().unwrap().is_none())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        self.cloud.ends.store(true, Ordering::Relaxed);
    }
}

const CONFIG: &str = r#"
[cloud]
servers = ["mqtt://192.0.2.1:1883"]
client_id = "power"
base = ""
[local]
mqtt = ""
[status]
listen = ""
"#;

const CLASSES: &str = r##"
[[publish]]
topic = "critical/#"
class = "critical"
qos = 2
[[publish]]
topic = "bulk/#"
class = "bulk"
[[publish]]
topic = "twice/#"
qos = 2
[[publish]]
topic = "#"
"##;

/// A server that keeps its session, and acknowledges what it has noted.
pub struct Cloud {
    here: AtomicBool,
    ends: AtomicBool,
    open: Mutex<HashSet<u16>>,
    pub arrived: Mutex<HashMap<String, u64>>,
    /// How often a message with QoS 2 began to arrive.
    pub once: Mutex<HashMap<String, u64>>,
    /// Every packet of an exchange with QoS 2, by its number, in a few words.
    heard: Mutex<Vec<(u16, String)>>,
    notes: Arc<Notes>,
}

impl Cloud {
    fn start(notes: Arc<Notes>) -> Arc<Cloud> {
        let (here, ends) = (AtomicBool::new(true), AtomicBool::new(false));
        let cloud = Arc::new(Cloud {
            here,
            ends,
            open: Mutex::default(),
            arrived: Mutex::default(),
            once: Mutex::default(),
            heard: Mutex::default(),
            notes,
        });
        let listener = TcpListener::bind("192.0.2.1:1883").unwrap();
        listener.set_nonblocking(true).unwrap();
        let own = cloud.clone();
        thread::spawn(move || {
            while !own.ends.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, _)) if own.is_here() => {
                        let own = own.clone();
                        // A connection that breaks is what this is about.
                        thread::spawn(move || own.serve(stream));
                    }
                    _ => sleep(Duration::from_millis(5)),
                }
            }
        });
        cloud
    }

    pub fn is_here(&self) -> bool {
        self.here.load(Ordering::Relaxed) && !self.ends.load(Ordering::Relaxed)
    }

    /// Whether it takes connections; gone, it breaks those it has, maybe between a message and its answer. With `cable`
    /// the link is pulled as well: a server that throws out whoever comes is soon taken for one with another client of
    /// the same name, and left alone for minutes.
    pub fn be(&self, here: bool, cable: bool) {
        // The cable first: nobody must hear the server close.
        if here || cable {
            run(&["ip", "link", "set", "cloud0", if here { "up" } else { "down" }]);
        }
        self.here.store(here, Ordering::Relaxed);
    }

    /// Forgets everything: another server, as far as a new gateway is concerned.
    pub fn forget(&self) {
        self.open.lock().unwrap().clear();
        self.arrived.lock().unwrap().clear();
    }

    fn hear(&self, number: u16, what: String) {
        self.heard.lock().unwrap().push((number, what));
    }

    /// What was said under the numbers that this message had, and connections in between.
    pub fn story_of(&self, name: &str) -> String {
        let heard = self.heard.lock().unwrap();
        let about = format!("publish {name},");
        let numbers: HashSet<u16> = heard.iter().filter(|(_, what)| what.contains(&about)).map(|(id, _)| *id).collect();
        let told = heard.iter().filter(|(number, _)| *number == 0 || numbers.contains(number));
        told.map(|(number, what)| format!("  {number} {what}\n")).collect()
    }

    fn serve(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (mut input, mut chunk) = (Vec::new(), [0; 65536]);
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) => input.extend_from_slice(&chunk[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(error),
            }
            while let Ok(Some(length)) = frame_length(&input, usize::MAX)
                && input.len() >= length
            {
                if !self.is_here() {
                    return Ok(());
                }
                let frame: Vec<u8> = input.drain(..length).collect();
                let answer = self.answer(&frame);
                stream.write_all(&answer)?;
            }
            if !self.is_here() {
                return Ok(());
            }
        }
    }

    fn answer(&self, frame: &[u8]) -> Vec<u8> {
        let id = |at: usize| [frame[at], frame[at + 1]];
        match frame[0] >> 4 {
            1 => {
                self.hear(0, "connect".into());
                vec![0x20, 3, 1, 0, 0]
            }
            3 => {
                let packet = parse(frame, Version::V5).expect("the daemon speaks MQTT");
                let Ok(publish) = Publish::from_packet(packet) else { panic!("no PUBLISH") };
                let number = publish.id.unwrap_or(0);
                let name = String::from_utf8_lossy(&publish.payload).split(' ').next().unwrap().to_owned();
                if publish.qos == 2 {
                    self.hear(number, format!("publish {name}, dup {}", publish.dup));
                }
                if publish.qos < 2 || self.open.lock().unwrap().insert(number) {
                    self.notes.note(Note::Got(name.clone()));
                    if publish.qos == 2 {
                        *self.once.lock().unwrap().entry(name.clone()).or_default() += 1;
                    }
                    *self.arrived.lock().unwrap().entry(name).or_default() += 1;
                }
                let [high, low] = number.to_be_bytes();
                match publish.qos {
                    0 => Vec::new(),
                    1 => vec![0x40, 2, high, low],
                    _ => vec![0x50, 2, high, low],
                }
            }
            6 => {
                let [high, low] = id(2);
                let number = u16::from_be_bytes([high, low]);
                self.open.lock().unwrap().remove(&number);
                self.hear(number, "release".into());
                vec![0x70, 2, high, low]
            }
            8 => {
                let [high, low] = id(2);
                vec![0x90, 4, high, low, 0, 1]
            }
            12 => vec![0xd0, 0],
            _ => Vec::new(),
        }
    }
}

/// An application that publishes as fast as it is told that its messages are safe, until it is dropped.
pub struct Application {
    ends: Arc<AtomicBool>,
    /// It offers nothing new.
    rests: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

/// Messages it has on their way.
const IN_FLIGHT: usize = 24;

impl Application {
    pub fn start(stage: &Stage, counter: Arc<AtomicU64>, pace: Duration) -> Application {
        let (ends, rests) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        let (socket, notes) = (stage.dir.join("run/mqtt.sock"), stage.notes.clone());
        let (over, idle) = (ends.clone(), rests.clone());
        let thread = thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let _ = talk(&socket, &notes, &counter, pace, &|| {
                    let over = over.load(Ordering::Relaxed);
                    (over, over || idle.load(Ordering::Relaxed))
                });
                sleep(Duration::from_millis(20));
            }
        });
        Application { ends, rests, thread: Some(thread) }
    }

    /// Offers nothing new for now, or does again.
    pub fn rest(&self, rests: bool) {
        self.rests.store(rests, Ordering::Relaxed);
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// `told` says whether this is over, and whether nothing new is offered.
fn talk(
    socket: &Path,
    notes: &Notes,
    counter: &AtomicU64,
    pace: Duration,
    told: &dyn Fn() -> (bool, bool),
) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.write_all(b"\x10\x0f\0\x04MQTT\x04\x02\0\0\0\x03app")?;
    stream.set_read_timeout(Some(pace.max(Duration::from_millis(1))))?;
    let (mut waiting, mut input, mut chunk) = (HashMap::new(), Vec::new(), [0; 4096]);
    let (mut next, mut due) = (1_u16, Instant::now());
    loop {
        let (over, rests) = told();
        if over && waiting.is_empty() {
            return Ok(());
        }
        if waiting.len() < IN_FLIGHT && Instant::now() >= due && !rests {
            due = Instant::now() + pace;
            let number = counter.fetch_add(1, Ordering::Relaxed);
            let topic = ["normal/a", "critical/a", "bulk/a", "twice/a"][number as usize % 4];
            let qos = if number.is_multiple_of(3) { 2 } else { 1 };
            let filling = match number % 50 {
                49 => 60_000,
                rest => rest as usize * rest as usize,
            };
            let name = format!("m{number}q{qos}");
            let payload = format!("{name} {}", "x".repeat(filling));
            stream.write_all(&publish(topic, qos, next, payload.as_bytes()))?;
            waiting.insert(next, name);
            next = next % 60_000 + 1;
        }
        match stream.read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => input.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
        while let Ok(Some(length)) = frame_length(&input, usize::MAX)
            && input.len() >= length
        {
            let frame: Vec<u8> = input.drain(..length).collect();
            if matches!(frame[0], 0x40 | 0x50) {
                let id = u16::from_be_bytes([frame[2], frame[3]]);
                waiting.remove(&id).into_iter().for_each(|name| notes.note(Note::Acked(name)));
                if frame[0] == 0x50 {
                    stream.write_all(&[0x62, 2, frame[2], frame[3]])?;
                }
            }
        }
    }
}

fn publish(topic: &str, qos: u8, id: u16, payload: &[u8]) -> Vec<u8> {
    let publish = Publish {
        topic: topic.into(),
        payload: payload.to_vec(),
        qos,
        retain: false,
        dup: false,
        id: Some(id),
        properties: Vec::new(),
    };
    publish.into_packet(Version::V311).to_bytes().unwrap()
}
