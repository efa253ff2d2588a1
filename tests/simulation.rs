//! Thousands of hours in rough worlds, by seed.
//!
//! `SWITCHBACK_SIM_HOURS` asks for more hours than the everyday 1,000; `SWITCHBACK_SIM_SEED` replays one seed, with
//! its journal written as a story to the file that `SWITCHBACK_SIM_JOURNAL` names. A failure prints its seed, the
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
    let next = AtomicU64::new(FIRST_SEED);
    let total = Mutex::new(Summary::default());
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, |n| n.get()) {
            scope.spawn(|| {
                while keep_going || failures.lock().is_ok_and(|f| f.is_empty()) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= FIRST_SEED + seeds {
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
        "{:.0} simulated hours, seeds {FIRST_SEED} to {}: {} steps, {} faults, {:.0} faults an hour",
        total.hours,
        FIRST_SEED + seeds - 1,
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

#[test]
fn the_world_loses_as_a_kernel_does() {
    for (rtt, loss) in [
        (20, [20, 20]),
        (20, [50, 50]),
        (100, [50, 50]),
        (20, [200, 200]),
        (20, [500, 0]),
        (20, [0, 500]),
        (20, [500, 500]),
    ] {
        let found = rate(12, 1, Rate { rtt, loss, alternative: false, dies: None });
        let mut silences = found.silences;
        silences.sort_unstable();
        let at = |p: f64| silences[((silences.len() as f64 * p) as usize).min(silences.len() - 1)];
        println!(
            "{rtt} ms {loss:?}: {} silences, {:?}, dropped {}",
            silences.len(),
            [0.5, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999].map(at),
            found.dropped.len()
        );
        let over = |ms: u32| silences.iter().filter(|s| **s > ms).count() as f64 / silences.len() as f64 * 1e4;
        println!("   over, of 10,000: {:.1?}", [200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 8000].map(over));
    }
}

#[test]
fn false_moves() {
    let days = number("SWITCHBACK_SIM_DAYS").unwrap_or(2);
    for loss in [20, 50, 200] {
        let found = rate(days, 24, Rate { rtt: 20, loss: [loss, loss], alternative: true, dies: None });
        println!(
            "{loss} per mille: {} left, {} dropped in {} h, {} dials",
            found.left.len(),
            found.dropped.len(),
            found.hours,
            found.dials
        );
    }
}

#[test]
fn detection() {
    for loss in [0, 5, 20, 50] {
        let mut all = Vec::new();
        for seed in 1..=400 {
            let dies = 1_260_000 + seed * 37 % 1000;
            let plan = Plan::rate(seed, 1, Rate { rtt: 20, loss: [loss, loss], alternative: true, dies: Some(dies) });
            let mut world = World::new(plan, false);
            let found = world.run_rough();
            all.extend(found.left.iter().find(|at| **at >= dies).map(|at| at - dies));
        }
        all.sort_unstable();
        println!(
            "dead after {loss} per mille: {} left after {:?}",
            all.len(),
            [0.1, 0.5, 0.9, 0.99].map(|p| all[(all.len() as f64 * p) as usize])
        );
    }
    for loss in [[500, 500], [500, 0], [0, 500], [300, 300]] {
        let mut all = Vec::new();
        for seed in 1..=400 {
            let plan = Plan::rate(seed, 1, Rate { rtt: 20, loss, alternative: true, dies: None });
            let mut world = World::new(plan, false);
            all.push(world.run_rough().left.first().map_or(3_600_000, |at| at - 61_000));
        }
        all.sort_unstable();
        println!(
            "brown-out {loss:?}: left after {:?}",
            [0.1, 0.5, 0.9, 0.99].map(|p| all[(all.len() as f64 * p) as usize])
        );
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
