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

use world::plan::Plan;
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
    }
}
