//! Thousands of hours in rough worlds, by seed.
//!
//! `SWITCHBACK_SIM_HOURS` asks for more hours than the everyday 1,000, `SWITCHBACK_SIM_FIRST` for others, from that seed on; `SWITCHBACK_SIM_SEED` replays one seed, with
//! its journal written as a story to the file that `SWITCHBACK_SIM_JOURNAL` names. `SWITCHBACK_SIM_DAYS` asks for more days
//! of what is only counted: false moves, and the time to leave a path. A failure prints its seed, the
//! end of its journal and the command that replays it.

mod story;
mod world;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use world::plan::{Plan, Rate};
use world::{Summary, World};

/// Rough hours of one seed; a little more than one calm hour follows.
const ROUGH_HOURS: u64 = 5;
/// Everyday hours; seconds, for the heart is built fast in every profile.
const EVERYDAY_HOURS: u64 = 1000;
/// Everyday days of one lossy path.
const EVERYDAY_DAYS: u64 = 2;
/// The first seed of every day, so that a green run is green again.
const FIRST_SEED: u64 = 1;
/// Lines of journal shown of a failure.
const SHOWN: usize = 60;

thread_local! {
    static PLACE: Cell<String> = const { Cell::new(String::new()) };
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|v| v.parse().ok())
}

/// One seed; `Err` holds what was broken.
fn run(seed: u64, record: bool) -> (Result<Summary, String>, Vec<String>) {
    let mut world = World::new(Plan::of(seed, ROUGH_HOURS), record);
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let result = result.map_err(|e| {
        let text = e.downcast_ref::<String>().cloned();
        let text = text.or_else(|| e.downcast_ref::<&str>().map(|s| s.to_string())).unwrap_or_default();
        // A panic of the heart itself does not name its seed.
        if text.starts_with("seed ") { text } else { format!("seed {seed} at 0s: {} panics: {text}", PLACE.take()) }
    });
    (result, world.journal())
}

fn report(seed: u64, what: &str) -> String {
    let (_, journal) = run(seed, true);
    let path = std::env::var("SWITCHBACK_SIM_JOURNAL").ok();
    if let Some(path) = &path {
        std::fs::write(path, journal.join("\n") + "\n").expect("the journal's file");
    }
    let tail = journal[journal.len().saturating_sub(SHOWN)..].join("\n");
    format!(
        "{tail}\n\n{what}\nreplay: SWITCHBACK_SIM_SEED={seed} SWITCHBACK_SIM_JOURNAL=journal.txt \
         cargo test --release -p switchback-control --test simulation"
    )
}

#[test]
fn thousands_of_rough_hours_break_nothing() {
    // Worlds end by panicking, quietly; where, is kept for the report.
    std::panic::set_hook(Box::new(|info| PLACE.set(info.location().map(|l| format!("{l}")).unwrap_or_default())));
    if let Some(seed) = number("SWITCHBACK_SIM_SEED") {
        let (result, _) = run(seed, false);
        match result {
            Ok(summary) => {
                let text = report(seed, "nothing was broken");
                println!("{}", text.lines().last().unwrap_or_default());
                println!("{summary:?}");
            }
            Err(what) => {
                println!("{}", report(seed, &what));
                std::process::exit(101);
            }
        }
        return;
    }
    let hours = number("SWITCHBACK_SIM_HOURS").unwrap_or(EVERYDAY_HOURS);
    let keep_going = std::env::var_os("SWITCHBACK_SIM_KEEP_GOING").is_some();
    let seeds = hours.div_ceil(ROUGH_HOURS + 1);
    let first = number("SWITCHBACK_SIM_FIRST").unwrap_or(FIRST_SEED);
    let next = AtomicU64::new(first);
    let total = Mutex::new(Summary::default());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                while keep_going || failures.lock().is_ok_and(|f| f.is_empty()) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + seeds {
                        return;
                    }
                    match run(seed, false).0 {
                        Ok(summary) => total.lock().expect("not poisoned").add(&summary),
                        Err(what) => failures.lock().expect("not poisoned").push((seed, what)),
                    }
                }
            });
        }
    });
    let total = total.into_inner().expect("not poisoned");
    let failures = failures.into_inner().expect("not poisoned");
    println!(
        "{:.0} simulated hours, seeds {first} to {}: {} steps, {} faults, {:.0} faults an hour",
        total.hours,
        first + seeds - 1,
        total.steps,
        total.faults,
        total.faults as f64 / total.hours.max(1.0)
    );
    println!(
        "{} dials, {} sessions, {} moves, {} accepted, {} arrived, {} refused, {} sent again",
        total.dials, total.sessions, total.moves, total.accepted, total.arrived, total.refused, total.again
    );
    if let Some((seed, what)) = failures.iter().min_by_key(|(seed, _)| *seed) {
        if keep_going {
            failures.iter().for_each(|(_, what)| println!("{what}"));
        }
        println!("{}\n{} of {seeds} seeds failed", report(*seed, what), failures.len());
        // The hook that kept the worlds' panics quiet would keep this one quiet as well.
        let _ = std::panic::take_hook();
        panic!("seed {seed}: {what}");
    }
    let _ = std::panic::take_hook();
    assert!(total.faults as f64 >= 20.0 * total.hours, "a world too gentle to prove anything");
}

/// So many hours with one lossy path; what was counted in them.
fn rate(seeds: u64, hours: u64, rate: Rate) -> Summary {
    let next = AtomicU64::new(FIRST_SEED);
    let total = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= FIRST_SEED + seeds {
                        return;
                    }
                    let mut world = World::new(Plan::rate(seed, hours, rate), false);
                    total.lock().expect("not poisoned").add(&world.run_rough());
                }
            });
        }
    });
    total.into_inner().expect("not poisoned")
}

/// Of 10,000 silences while an answer was owed, how many were longer than these milliseconds: measured with Linux 6.18,
/// mosquitto 2.0.11 and two messages a second on each of 150 to 200 connections, 30,000 to 80,000 messages a line, over a
/// wire that loses so many of a thousand packets on the way up and on the way down.
const LONGER_THAN: [u32; 5] = [200, 500, 1000, 2000, 5000];
#[rustfmt::skip]
const MEASURED: [(u64, [u64; 2], [f64; 5]); 6] = [
    (20,  [20, 20],   [ 393.0,    1.5,   0.0,   0.0,   0.0]),
    (20,  [50, 50],   [ 970.0,   20.4,   0.5,   0.1,   0.0]),
    (100, [50, 50],   [1064.0,  191.9,  26.3,   0.2,   0.0]),
    (20,  [200, 200], [3631.0,  980.7, 259.7,  53.2,   6.4]),
    (20,  [500, 0],   [4874.0, 1505.5, 689.2, 339.8, 172.3]),
    (20,  [0, 500],   [5029.0, 1838.2, 904.7, 434.4, 195.1]),
];

#[test]
fn the_world_is_about_as_rough_as_a_kernel_on_a_lossy_wire() {
    for (rtt, loss, measured) in MEASURED {
        let found = rate(6, 1, Rate { rtt, loss, alternative: false, dies: None }).silences;
        let longer = |ms: u32| found.iter().filter(|s| **s > ms).count() as f64 / found.len() as f64 * 1e4;
        let model = LONGER_THAN.map(longer);
        println!(
            "{rtt} ms, loss {loss:?}: longer than {LONGER_THAN:?} ms, of 10,000: {model:.1?}, measured {measured:.1?}"
        );
        for (model, measured) in model.into_iter().zip(measured) {
            // Rare ones are few in so short a time.
            let least = if measured < 30.0 { measured / 4.0 } else { measured * 0.6 };
            assert!(model + 1.0 >= least, "{model} is gentler than {measured}");
        }
    }
}

/// False moves on a path that loses packets while another is clean, and what is promised. `SWITCHBACK_SIM_DAYS` asks for
/// more days than the everyday ones: then the rates are worth reading.
#[test]
fn a_lossy_path_is_left_for_nothing_no_oftener_than_promised() {
    let days = number("SWITCHBACK_SIM_DAYS").unwrap_or(EVERYDAY_DAYS);
    // Loss in a thousand each way, and moves allowed in so many hours; twice that is allowed to chance.
    for (loss, hours) in [(20, 96.0), (50, 24.0), (200, 1.0)] {
        let found = rate(if loss > 100 { days.div_ceil(4) } else { days }, 24, Rate::steady(loss));
        let (left, allowed) = (found.left.len() as f64, found.hours / hours);
        println!(
            "{} % loss each way: {left} moves in {:.0} h, {:.2} in 24 h; {} losses of the session; {:.1} dials an hour",
            loss as f64 / 10.0,
            found.hours,
            left * 24.0 / found.hours,
            found.dropped.len(),
            found.dials as f64 / found.hours
        );
        assert!(left <= (2.0 * allowed).max(1.0), "more than {allowed:.1} in {:.0} h", found.hours);
    }
}

/// The times that so many seeds took to leave the path, from `from` on, in order.
fn times_to_leave(seeds: u64, rate: Rate, from: impl Fn(u64) -> u64) -> Vec<u64> {
    let one = |seed: u64| {
        let from = from(seed);
        let dies = rate.dies.map(|_| from);
        let plan = Plan { rough_ms: from + 240_000, ..Plan::rate(seed, 1, Rate { dies, ..rate }) };
        let found = World::new(plan, false).run_rough();
        found.left.into_iter().find(|at| *at >= from).map_or(u64::MAX, |at| at - from)
    };
    let mut times: Vec<u64> = (FIRST_SEED..FIRST_SEED + seeds).map(one).collect();
    times.sort_unstable();
    times
}

fn percentiles(times: &[u64]) -> [u64; 4] {
    [50, 90, 95, 99].map(|p| times[(times.len() * p / 100).min(times.len() - 1)])
}

#[test]
fn a_path_that_loses_half_of_the_packets_is_left_within_half_a_minute() {
    let seeds = number("SWITCHBACK_SIM_DAYS").unwrap_or(EVERYDAY_DAYS) * 50;
    // One way, TCP makes good more of it: nine of ten are left in time.
    for (loss, percent) in [([500, 500], 99), ([500, 0], 90), ([0, 500], 90)] {
        let times = times_to_leave(seeds, Rate { loss, ..Rate::steady(0) }, |_| 61_000);
        println!("half lost {loss:?}: left after {:?} ms (50, 90, 95, 99 %)", percentiles(&times));
        let at = times[times.len() * percent / 100];
        assert!(at <= 30_000, "left after {at} ms");
    }
}

#[test]
fn a_silent_death_is_seen_at_once_where_nothing_was_lost_and_in_seconds_where_much_was() {
    let seeds = number("SWITCHBACK_SIM_DAYS").unwrap_or(EVERYDAY_DAYS) * 50;
    for (loss, limits) in [(0, [900, 1_100]), (20, [4_000, 8_000]), (50, [6_000, 8_000])] {
        let rate = Rate { dies: Some(0), ..Rate::steady(loss) };
        let [half, _, _, all] = percentiles(&times_to_leave(seeds, rate, |seed| 1_260_000 + seed * 37 % 1_000));
        println!("silent after {} % loss: left after {half} and {all} ms (50, 99 %)", loss as f64 / 10.0);
        assert!(half <= limits[0] && all <= limits[1].max(limits[0]), "{half} and {all} ms");
    }
}

impl Summary {
    fn add(&mut self, other: &Summary) {
        self.hours += other.hours;
        self.steps += other.steps;
        self.faults += other.faults;
        self.dials += other.dials;
        self.sessions += other.sessions;
        self.accepted += other.accepted;
        self.arrived += other.arrived;
        self.again += other.again;
        self.refused += other.refused;
        self.moves += other.moves;
        self.left.extend(&other.left);
        self.dropped.extend(&other.dropped);
        self.silences.extend(&other.silences);
    }
}
