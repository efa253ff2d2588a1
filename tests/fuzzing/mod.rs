//! Every parser against bytes that nobody meant to write.
//!
//! Compiled into the library's own tests, because most parsers are nobody's business outside. A target brings real
//! examples, words of its language, and one function that reads an input and checks what must hold whatever was read;
//! beyond that, every reading must end without a panic, within `CPU_MAX` of this thread's time, and within a stated
//! multiple of its input in memory. What reads in a way not seen before becomes an example itself.
//!
//! `cargo test fuzzing` takes a moment for each target, always the same way. `tests/fuzz` runs for longer:
//! `FUZZ_SECONDS=600 FUZZ_TARGET=outbox FUZZ_SEED=7 tests/fuzz`. A failure prints its seed and leaves its input in
//! `tests/fuzzing/kept/TARGET/`, where every later run reads it first; `FUZZ_INPUT=FILE` reads nothing else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
// Repairs have one shape for all targets.
#![allow(clippy::ptr_arg)]

mod accounts;
mod cloud;
mod configuration;
mod doors;
mod kernel;
mod local;
mod mutate;
mod outbox;
mod sessions;
mod state;

use std::cell::Cell;
use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Once};
use std::time::{Duration, Instant};

use accounts::{cpu_time, peak_of};
use mutate::{Random, mutate};

/// How an input was read, so that another way of being read is noticed. Close to what coverage would tell.
pub type Shape = u64;

/// One parser.
pub struct Target {
    pub name: &'static str,
    /// Real ones.
    pub examples: fn() -> Vec<Vec<u8>>,
    /// Words worth putting in.
    pub words: &'static [&'static [u8]],
    /// Makes checksums and lengths right again, so that a change gets past them; most of the time.
    pub repair: fn(&mut Vec<u8>),
    /// Reads, checks, and panics where something does not hold.
    pub read: fn(&[u8]) -> Shape,
    /// Bytes of memory that reading may take at a time, for each byte read and at least.
    pub memory: (usize, usize),
}

const TARGETS: &[Target] = &[
    outbox::TARGET,
    sessions::TARGET,
    state::SAVED,
    local::PACKETS,
    local::CONNECTION,
    cloud::TARGET,
    doors::CONTROL,
    doors::DBUS,
    configuration::CONFIG,
    configuration::USERS,
    configuration::RULES,
    kernel::NETLINK,
    kernel::ANSWERS,
    kernel::FILES,
];

/// Of this thread's own time, in a development build on a slow and busy machine. More is a parser that is not linear.
const CPU_MAX: Duration = Duration::from_secs(2);
/// An input that takes longer than this by the clock hangs.
const HANGS: Duration = Duration::from_secs(60);
/// How long an ordinary run takes for each target.
const ORDINARY: Duration = Duration::from_millis(300);
/// Longest input that a mutation makes.
pub const INPUT_MAX: usize = 128 * 1024;
/// Inputs remembered for being read differently.
const CORPUS_MAX: usize = 4096;

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The shape of anything by what it prints: letters count, numbers and texts only by their length.
pub fn shape_of(value: &impl std::fmt::Debug) -> Shape {
    let (mut hasher, mut run) = (DefaultHasher::new(), 0_u32);
    for letter in format!("{value:?}").chars().take(4000) {
        if letter.is_ascii_digit() {
            run += 1;
        } else {
            (run.checked_ilog2(), letter).hash(&mut hasher);
            run = 0;
        }
    }
    hasher.finish()
}

pub fn mixed(parts: impl Hash) -> Shape {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// Where inputs that once failed are kept.
fn kept_in(target: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzzing/kept").join(target)
}

fn kept(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(kept_in(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

thread_local! { static QUIET: Cell<bool> = const { Cell::new(false) }; }

/// While a failing input is made smaller, it fails again and again; nobody wants to read that.
fn hush() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let told = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if !QUIET.get() {
                told(panic);
            }
        }));
    });
}

struct Run<'t> {
    target: &'t Target,
    seed: u64,
    executions: u64,
    watched: Arc<Watched>,
}

/// What the watchdog sees.
#[derive(Default)]
struct Watched {
    executions: AtomicU64,
    over: AtomicBool,
    input: Mutex<Vec<u8>>,
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        self.watched.over.store(true, Ordering::Relaxed);
    }
}

impl Run<'_> {
    /// Reads one input; a sentence where something does not hold.
    fn attempt(&self, input: &[u8]) -> Result<Shape, String> {
        let began = cpu_time();
        let (outcome, peak) = peak_of(|| catch_unwind(AssertUnwindSafe(|| (self.target.read)(input))));
        let took = cpu_time().saturating_sub(began);
        let shape = outcome.map_err(|panic| {
            let text = panic.downcast_ref::<String>().cloned();
            text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
        })?;
        let (each, least) = self.target.memory;
        if took > CPU_MAX {
            return Err(format!("took {took:?} for {} bytes", input.len()));
        }
        if peak > each * input.len() + least {
            return Err(format!("took {peak} bytes of memory for {} bytes", input.len()));
        }
        Ok(shape)
    }

    fn execute(&mut self, input: &[u8]) -> Shape {
        self.executions += 1;
        {
            let mut watched = self.watched.input.lock().unwrap();
            watched.clear();
            watched.extend_from_slice(input);
        }
        self.watched.executions.store(self.executions, Ordering::Relaxed);
        match self.attempt(input) {
            Ok(shape) => shape,
            Err(why) => {
                let smaller = self.shrunk(input.to_vec());
                complain(self.target.name, self.seed, self.executions, &smaller, &why);
                panic!("{}: {why}", self.target.name);
            }
        }
    }

    /// Leaves out what can be left out of an input that fails.
    fn shrunk(&self, mut input: Vec<u8>) -> Vec<u8> {
        let until = Instant::now() + Duration::from_secs(10);
        QUIET.set(true);
        let mut step = input.len() / 2;
        while step > 0 && Instant::now() < until {
            let mut at = 0;
            while at < input.len() && Instant::now() < until {
                let mut smaller = input.clone();
                smaller.drain(at..(at + step).min(input.len()));
                if self.attempt(&smaller).is_err() { input = smaller } else { at += step }
            }
            step /= 2;
        }
        QUIET.set(false);
        input
    }
}

fn complain(target: &str, seed: u64, execution: u64, input: &[u8], why: &str) {
    let dir = kept_in(target);
    let path = dir.join(format!("{:016x}", mixed(input)));
    let written = fs::create_dir_all(&dir).and_then(|()| fs::write(&path, input));
    let path = path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(&path).display();
    eprintln!(
        "fuzz: {target}: {why}\n  seed {seed}, execution {execution}; kept {written:?}; \
         again: FUZZ_TARGET={target} FUZZ_INPUT={path} tests/fuzz"
    );
}

/// Ends the process when one input takes for ever: a test that hangs tells nobody why.
fn watch(target: &'static str, seed: u64, watched: Arc<Watched>) {
    std::thread::spawn(move || {
        let (mut last, mut since) = (0, Instant::now());
        while !watched.over.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(200));
            let now = watched.executions.load(Ordering::Relaxed);
            if now != last {
                (last, since) = (now, Instant::now());
            } else if since.elapsed() > HANGS {
                complain(target, seed, now, &watched.input.lock().unwrap(), "does not end");
                std::process::exit(1);
            }
        }
    });
}

fn fuzz(name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seconds = variable("FUZZ_SECONDS").map(|text| text.parse::<f64>().expect("FUZZ_SECONDS is a number"));
    if seconds.is_some() && variable("FUZZ_TARGET").is_some_and(|wanted| wanted != name) {
        return;
    }
    hush();
    let seed = variable("FUZZ_SEED").map_or(1, |text| text.parse().expect("FUZZ_SEED is a number"));
    let watched = Arc::<Watched>::default();
    watch(target.name, seed, watched.clone());
    let mut run = Run { target, seed, executions: 0, watched };
    if let Some(path) = variable("FUZZ_INPUT") {
        run.execute(&fs::read(path).expect("FUZZ_INPUT is a file"));
    } else {
        explore(&mut run, seconds.map_or(ORDINARY, Duration::from_secs_f64));
    }
}

fn explore(run: &mut Run<'_>, limit: Duration) {
    let target = run.target;
    let mut corpus = (target.examples)();
    corpus.extend(kept(target.name));
    let mut seen: HashSet<Shape> = corpus.iter().map(|input| run.execute(input)).collect();
    let examples = corpus.len();
    let mut random = Random(run.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ mixed(target.name));
    let until = Instant::now() + limit;
    while Instant::now() < until {
        // Each base several times: choosing is cheap, and the clock is not.
        for _ in 0..8 {
            let base = random.below(corpus.len());
            let other = random.below(corpus.len());
            let mut input = mutate(&corpus[base], &corpus[other], target.words, &mut random);
            if random.below(4) > 0 {
                (target.repair)(&mut input);
            }
            let shape = run.execute(&input);
            if seen.insert(shape) {
                match corpus.len() < CORPUS_MAX {
                    true => corpus.push(input),
                    false => corpus[examples + random.below(CORPUS_MAX - examples)] = input,
                }
            }
        }
    }
    eprintln!(
        "fuzz: {}: {} executions, {} shapes, seed {}, nothing found",
        target.name,
        run.executions,
        seen.len(),
        run.seed
    );
}

/// For targets whose inputs have nothing to repair.
fn as_it_is(_: &mut Vec<u8>) {}

macro_rules! targets {
    ($($name:ident)*) => { $(#[test] fn $name() { super::fuzz(stringify!($name)); })* };
}

mod reads {
    targets! { outbox sessions saved local_packets local_connection cloud_packets control_lines dbus_options }
    targets! { configuration users rules netlink name_answers host_files }
}

#[test]
fn every_target_is_run() {
    let text = include_str!("mod.rs");
    for target in TARGETS {
        assert!(text.matches(&format!(" {} ", target.name)).count() > 0, "{} is not run", target.name);
    }
}
