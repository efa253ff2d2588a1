//! switchbackd: arguments, log, configuration; then it hands over to the loop.
//!
//! Everything that can be wrong at the start is said here in one sentence with what to do about it. Exit status 0 after
//! a stop that was asked for, 1 when the machine would not let it run, 2 for wrong usage. A bad configuration is no reason
//! to end, see `standing`.

use std::env;
use std::ffi::OsStr;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use switchback::api;
use switchback::config::Config;
use switchback::control::{Control, Reason};
use switchback::corridor::{Corridor, DOWNLINK_MAX, Downlink};
use switchback::daemon::{Daemon, Ended, Hands};
use switchback::desk::Desk;
use switchback::io::applications::Applications;
use switchback::io::black_box::{BlackBox, Kind};
use switchback::io::cloud::{Before, Cloud, Greeting};
use switchback::io::local_broker::LocalBroker;
use switchback::io::storage::{self, SavedFile};
use switchback::io::{EVENTS_MAX, clock, control_socket, dbus, network_manager, rtnetlink, status_page, systemd};
use switchback::journal::Journal;
use switchback::outbox;
use switchback::picture::{Document, LocalFigures, Picture};
use switchback::standing::{self, Chosen};
use switchback::starts::{Cause, Starts};
use switchback::uplinks::Uplinks;
use tokio::sync::{Notify, broadcast, mpsc, watch};

const USAGE: &str = "\
Usage: switchbackd [--config FILE] [--state-dir DIR] [--runtime-dir DIR]

Holds the cloud connection of this gateway. Runs in the foreground, best under systemd.

  --config FILE       configuration (default /etc/switchback/switchback.toml, then conf.d/*.toml beside it)
  --state-dir DIR     failover list, outbox, black box (default $STATE_DIRECTORY or /var/lib/switchback)
  --runtime-dir DIR   control socket, mqtt.sock, state file (default $RUNTIME_DIRECTORY or /run/switchback)
  --version           print the version
  --help              print this

The environment variable SWITCHBACK_LOG sets how much is logged: error, warn, info (default) or debug.
Ask the running daemon with `switchback status`; check a configuration with `switchback config check`.";

/// Notices on their way to listeners that are behind.
const NOTICES_MAX: usize = 64;

/// How long safe mode lasts after a crash loop, before everything is tried again.
const CRASH_REST: Duration = Duration::from_secs(600);

struct Places {
    config: PathBuf,
    state: PathBuf,
    runtime: PathBuf,
}

fn main() -> ExitCode {
    // The package holds one program under two names: it is half as large.
    if env::args_os().next().is_some_and(|name| Path::new(&name).file_name() == Some(OsStr::new("switchback"))) {
        return ExitCode::from(switchback::cli::run(env::args_os()));
    }
    let places = match arguments() {
        Ok(Some(places)) => places,
        Ok(None) => return ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("switchbackd: {message}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    systemd::start_log();
    let code = run(&places);
    log::logger().flush();
    code
}

/// Serves until it is told to stop, and begins anew where the configuration has become another one.
fn run(places: &Places) -> ExitCode {
    // Whatever is wrong with the directories is said when they are used.
    let _ = std::fs::create_dir_all(&places.runtime);
    let _ = std::fs::create_dir_all(&places.state);
    let mut starts =
        Starts::begin(&places.runtime, &places.state, &clock::boot_id(), clock::now(), systemd::is_supervised());
    loop {
        let chosen = standing::choose(&places.config, &places.state, starts.crash_loop);
        chosen.warnings.iter().for_each(|warning| log::warn!("{warning}"));
        chosen.standing.errors.iter().for_each(|error| log::error!("{error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let ended = runtime.and_then(|runtime| {
            let ended = runtime.block_on(serve(chosen, &starts, places));
            // A thread that hangs on a dead disk must not keep the process.
            runtime.shutdown_background();
            ended
        });
        match ended {
            Ok(Ended::Stopped) => {
                if let Err(error) = clock::keep(&places.state) {
                    log::warn!("the time cannot be kept for the next start: {error}");
                }
                starts.end_well();
                return ExitCode::SUCCESS;
            }
            Ok(Ended::Renewed) => (starts.cause, starts.crash_loop) = (Cause::Config, false),
            Err(error) => {
                log::error!("{error}");
                return ExitCode::FAILURE;
            }
        }
    }
}

/// Builds the house and turns the wheel until it is asked to stop.
async fn serve(chosen: Chosen, starts: &Starts, places: &Places) -> io::Result<Ended> {
    let Chosen { mut config, standing, .. } = chosen;
    if let Err(error) = make_directory(&places.state, "--state-dir") {
        use ErrorKind::{AlreadyExists, NotADirectory, PermissionDenied};
        // Any other disk may get better, and meanwhile the cloud can be reached (R-SF-11): the store says so.
        if matches!(error.kind(), AlreadyExists | NotADirectory | PermissionDenied) {
            return Err(error);
        }
    }
    make_directory(&places.runtime, "--runtime-dir")?;
    // What crashed may stand in the outbox: it waits where it is, and our own few messages go through an empty one.
    let aside = places.runtime.join("safe-mode");
    let messages = if starts.crash_loop { &aside } else { &places.state };
    make_directory(messages, "--runtime-dir")?;
    clock::begin(&places.state);
    if !clock::is_set() {
        log::warn!("the clock of this machine is not set yet; times of messages follow when it is");
    }
    let boot_id = clock::boot_id();
    let opened = storage::open(messages, &mut config).map_err(|e| explain_store(messages, e))?;
    let config = Arc::new(config);
    for name in outbox::asides(&places.state) {
        log::warn!(
            "{}: set aside, and nothing of it is used; see `switchback doctor`",
            places.state.join(name).display()
        );
    }
    let saved = Arc::new(SavedFile::new(&places.state, &boot_id));
    let start = saved.next_start();
    let black_box = BlackBox::open(&places.state);
    let cause = starts.cause.as_str();
    black_box.note(Kind::Note, &format!("started: switchback {}, start {start}, {cause}", env!("CARGO_PKG_VERSION")));

    let (events, events_inbox) = mpsc::channel(EVENTS_MAX);
    let (calls, calls_inbox) = mpsc::channel(api::CALLS_MAX);
    let (downlinks, downlinks_inbox) = mpsc::channel(DOWNLINK_MAX);
    let notices = broadcast::Sender::new(NOTICES_MAX);
    let short_boot = boot_id.get(..8).unwrap_or(&boot_id);
    let corridor = Corridor::new(events.clone(), opened.jobs, format!("{short_boot}.{start}"));
    corridor.limit_records(opened.record_limits);
    let figures = opened.storage.figures();
    let store = opened.storage.start(corridor.clone(), events.clone())?;

    let uplinks = Uplinks::new();
    let local = match starts.crash_loop {
        true => Local::Nobody(downlinks_inbox),
        false => Local::start(&config, places, &corridor, downlinks_inbox),
    };
    let desk = Desk::new(config.clone(), corridor.clone());
    let picture = Picture::new(config.clone(), uplinks.clone(), figures, local.figures());
    let greet = {
        let shown = picture.subscribe();
        let safe_mode = standing.word();
        Arc::new(move || {
            let (boot, outage) = (boot_id.clone(), last_cause(&shown.borrow()));
            Greeting { boot, start, reason: cause, safe_mode, outage }
        })
    };
    let before = Before { pledges: opened.pledges, taken: Some(messages.join("taken")) };
    let hands = Hands {
        network_manager: network_manager::start(config.clone(), uplinks.clone(), events.clone()),
        links: rtnetlink::start(config.clone(), uplinks.clone(), events.clone())
            .inspect_err(|e| log::warn!("no kernel link events ({e}); relying on NetworkManager alone"))
            .ok(),
        cloud: Cloud::start(config.clone(), uplinks.clone(), corridor.clone(), downlinks, events, greet, before),
        corridor,
        saved: saved.clone(),
    };
    let listener = control_socket::Listener::bind(&places.runtime)?;
    let mut doors =
        vec![tokio::spawn(control_socket::serve(listener, calls.clone(), picture.subscribe(), black_box.lines()))];
    let renew = Arc::new(Notify::new());
    if starts.crash_loop {
        let renew = renew.clone();
        doors.push(tokio::spawn(async move {
            tokio::time::sleep(CRASH_REST).await;
            renew.notify_one();
        }));
    } else {
        doors.push(tokio::spawn(dbus::serve(picture.subscribe(), notices.subscribe(), calls.clone())));
    }
    if let Some(text) = standing.worth_keeping() {
        doors.push(tokio::spawn(keep(text, places.state.clone(), picture.subscribe())));
    }
    let page = config.status_listen.map(|at| tokio::spawn(status_page::serve(at, picture.subscribe(), calls)));

    let settings = config.settings.clone();
    let control = Control::restore(settings, saved.load(), &opened.unreleased, 0, seed(), clock::now());
    let daemon = Daemon {
        control,
        hands,
        events: events_inbox,
        calls: calls_inbox,
        desk,
        journal: Journal::new(config.clone()),
        picture,
        notices,
        black_box,
        state_file: places.runtime.join("state"),
        state_dir: places.state.clone(),
        changed: true,
        standing,
        cause: starts.cause,
        renew,
    };
    let (cloud, corridor) = (daemon.hands.cloud.clone(), daemon.hands.corridor.clone());
    let network_manager = daemon.hands.network_manager.clone();
    let ended = daemon.run().await;
    // The offline status and the DISCONNECT of a clean stop are still on their way, and so may be the host's routes.
    tokio::join!(cloud.finished(), network_manager.finished());
    doors.into_iter().chain(page).for_each(|door| door.abort());
    local.stop().await;
    corridor.close();
    finish(store).await;
    ended
}

/// Keeps the configuration as soon as it has been on line.
async fn keep(text: String, state: PathBuf, mut shown: watch::Receiver<Document>) {
    let connected = |document: &Document| document.get("connected").and_then(|value| value.as_bool()) == Some(true);
    if shown.wait_for(connected).await.is_ok() {
        // The disk may be slow; nobody waits for it.
        tokio::task::spawn_blocking(move || standing::keep(&state, &text));
    }
}

/// Who serves the local applications. With a broker of their own, nobody else does, not even on `mqtt.sock`: clients of
/// two servers would not hear each other, and a command would have to be taken by both.
enum Local {
    Applications(Applications),
    Broker(LocalBroker),
    /// In safe mode after a crash loop. What the cloud sends stays unread, so that it is sent again.
    Nobody(mpsc::Receiver<Downlink>),
}

impl Local {
    fn start(config: &Arc<Config>, places: &Places, corridor: &Corridor, downlinks: mpsc::Receiver<Downlink>) -> Local {
        let (config, corridor) = (config.clone(), corridor.clone());
        match config.local.broker.clone() {
            Some(broker) => Local::Broker(LocalBroker::start(config, broker, &places.state, corridor, downlinks)),
            None => {
                Local::Applications(Applications::start(config, &places.runtime, &places.state, corridor, downlinks))
            }
        }
    }

    /// What it counts, for displays.
    fn figures(&self) -> LocalFigures {
        fn document(figures: impl serde::Serialize) -> serde_json::Value {
            serde_json::to_value(figures).unwrap_or_default()
        }
        match self {
            Local::Applications(applications) => {
                let gauge = applications.gauge();
                Box::new(move || document(gauge.read()))
            }
            Local::Broker(broker) => {
                let gauge = broker.gauge();
                Box::new(move || document(gauge.read()))
            }
            Local::Nobody(_) => Box::new(|| serde_json::Value::Null),
        }
    }

    async fn stop(self) {
        match self {
            Local::Applications(applications) => applications.stop().await,
            Local::Broker(broker) => broker.stop().await,
            Local::Nobody(unread) => drop(unread),
        }
    }
}

/// Waits for the store to write what is left: R-UP-2 gives ten seconds, systemd more.
async fn finish(store: std::thread::JoinHandle<()>) {
    let joined = tokio::task::spawn_blocking(move || store.join());
    if tokio::time::timeout(std::time::Duration::from_secs(10), joined).await.is_err() {
        log::error!("the outbox's disk is too slow; messages not yet acknowledged may be lost");
    }
}

fn make_directory(path: &Path, option: &str) -> io::Result<()> {
    std::fs::create_dir_all(path).map_err(|error| {
        let hint = match error.kind() {
            ErrorKind::PermissionDenied => "run as root or as the user switchback, or choose another place with",
            _ => "choose another place with",
        };
        io::Error::new(error.kind(), format!("cannot make {}: {error}; {hint} {option}", path.display()))
    })
}

fn explain_store(state: &Path, error: io::Error) -> io::Error {
    let place = state.display();
    let sentence = match error.kind() {
        ErrorKind::ResourceBusy => format!("{place} is in use: another switchbackd is running (`switchback status`)"),
        ErrorKind::PermissionDenied => {
            format!("cannot write to {place}: run as root or as the user switchback, or choose another --state-dir")
        }
        ErrorKind::NotADirectory => format!("{place} is no directory: choose another --state-dir"),
        _ => format!("{place}: {error}"),
    };
    io::Error::new(error.kind(), sentence)
}

/// Why the last outage began, by the latest status document.
fn last_cause(shown: &serde_json::Map<String, serde_json::Value>) -> Option<Reason> {
    shown.get("last_outage")?.get("first_cause")?.as_str()?.parse().ok()
}

/// Spreads waits; no secret.
fn seed() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
    time ^ u64::from(std::process::id()).rotate_left(32)
}

/// The places to work in; `None` when the question was answered already.
fn arguments() -> Result<Option<Places>, String> {
    use lexopt::prelude::*;
    let from = |variable: &str, default: &str| {
        let given = env::var_os(variable).filter(|v| !v.is_empty());
        given.map_or_else(|| PathBuf::from(default), PathBuf::from)
    };
    let mut places = Places {
        config: "/etc/switchback/switchback.toml".into(),
        state: from("STATE_DIRECTORY", "/var/lib/switchback"),
        runtime: from("RUNTIME_DIRECTORY", "/run/switchback"),
    };
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next().map_err(|e| e.to_string())? {
        match argument {
            Long("config") | Short('c') => places.config = parser.value().map_err(|e| e.to_string())?.into(),
            Long("state-dir") => places.state = parser.value().map_err(|e| e.to_string())?.into(),
            Long("runtime-dir") => places.runtime = parser.value().map_err(|e| e.to_string())?.into(),
            Long("version") | Short('V') => {
                println!("switchbackd {}", env!("CARGO_PKG_VERSION"));
                return Ok(None);
            }
            Long("help") | Short('h') => {
                println!("{USAGE}");
                return Ok(None);
            }
            other => return Err(other.unexpected().to_string()),
        }
    }
    Ok(Some(places))
}
