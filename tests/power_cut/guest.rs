//! What runs inside the virtual machine of tests/power-vm, until its power is cut.
//!
//! The disk is mounted already. The daemon, its cloud and an application live here; every message is told on the console
//! before it is acknowledged to whoever sent it, so that whoever reads the console knows at least as much.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::thread::sleep;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::replay::Random;
use super::stage::{Application, Note, Stage};
use super::{LISTS, await_service, change_list, number};

/// The application goes no further ahead of the cloud than this: emulated, the disk takes messages faster than a cloud that
/// is there half of the time, and what is urgent would keep what is not from ever arriving.
const AHEAD: usize = 200;
/// The first seconds the cloud is there, so that what is owed can arrive.
const FIRST: Duration = Duration::from_secs(2);

#[test]
#[ignore = "runs in the virtual machine of tests/power-vm"]
fn in_the_machine() {
    let console = File::options().write(true).open("/dev/ttyS0").unwrap();
    let mut random = Random(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64);
    let mut stage = Stage::new(Path::new("/run/power"), Some(console));
    stage.start(Path::new("/state/switchback"), false);
    await_service(&mut stage);
    let boot = number("POWER_BOOT", 0);
    stage.notes.note(Note::Serves(boot));
    let counter = Arc::new(AtomicU64::new(boot * 1_000_000));
    let application = Application::start(&stage, counter, Duration::from_millis(8));
    sleep(FIRST);
    loop {
        application.rest(stage.notes.owed() > AHEAD);
        stage.cloud.be(random.below(3) > 0, true);
        change_list(&stage, LISTS[random.below(LISTS.len())]);
        sleep(Duration::from_millis(500 + random.below(3000) as u64));
        assert!(stage.lives(), "the daemon has ended:\n{}", stage.log());
    }
}
