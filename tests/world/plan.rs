//! What kind of world a seed is: how long, how rough, with which settings and interfaces.

use std::time::Duration;

use switchback_control::{Carriers, Class, Failback, LaneRules, Mode, Overflow, Selector, Settings, Standby};

use super::{Dice, name, store};

/// Which faults there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// Everything.
    Mixed,
    /// Healthy links; only the cloud fails.
    Cloud,
    /// Only links and paths fail.
    Paths,
    /// Carrier toggles quickly.
    Flapping,
    /// The store and the process fail, the rest is well.
    Store,
    /// Steady traffic over a lossy path, nothing else.
    Lossy,
    /// Two messages a second over a path that loses packets from the second minute on, and perhaps a clean one beside
    /// it; nothing else ever happens. What is found is counted, not judged.
    Rate(Rate),
}

/// The path of a `Profile::Rate`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub rtt: u64,
    /// Packets of a thousand that are lost on the way up and on the way down.
    pub loss: [u64; 2],
    /// There is a second interface without loss.
    pub alternative: bool,
    /// When the path dies silently and for good.
    pub dies: Option<u64>,
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub profile: Profile,
    pub rough_ms: u64,
    pub calm_ms: u64,
    pub settings: Settings,
    /// Device name, IP interface where it differs, class.
    pub interfaces: Vec<(&'static str, Option<&'static str>, Class)>,
    pub faults_per_hour: u64,
    /// The kernel's counts of a connection can be read.
    pub kernel_tells: bool,
    /// Messages of many kinds in several lanes, rather than one kind in one.
    pub has_lanes: bool,
    /// Bytes in the log of each lane.
    pub limits: Vec<u64>,
}

const HOUR: u64 = 3_600_000;
/// A little more than the longest wait of the heart (an hour), so that calm ends every wait.
pub const CALM: u64 = HOUR + 10 * 60_000;

impl Plan {
    pub fn of(seed: u64, rough_hours: u64) -> Plan {
        let mut dice = Dice::new(seed ^ 0x706c_616e);
        let profile = match dice.between(0, 99) {
            0..=54 => Profile::Mixed,
            55..=69 => Profile::Cloud,
            70..=79 => Profile::Paths,
            80..=86 => Profile::Flapping,
            87..=95 => Profile::Store,
            _ => Profile::Lossy,
        };
        let faults_per_hour = match profile {
            Profile::Mixed => dice.between(25, 120),
            Profile::Cloud => dice.between(24, 40),
            Profile::Paths => dice.between(24, 80),
            Profile::Flapping => dice.between(60, 200),
            Profile::Store => dice.between(40, 80),
            Profile::Lossy | Profile::Rate(_) => 24,
        };
        let (interfaces, mut settings) = (interfaces(&mut dice), settings(&mut dice, profile));
        let kernel_tells = dice.chance(900);
        let mut lots = Dice::new(seed ^ 0x6c61_6e65);
        let has_lanes = profile != Profile::Lossy && lots.chance(850);
        if has_lanes {
            settings.lanes = lanes(&mut lots);
            // Then NetworkManager's word counts.
            settings.classes[Class::Cell as usize].metered = *lots.pick(&[Some(true), None]);
        }
        let limits = store::limits(settings.lanes.len(), has_lanes, &mut lots);
        Plan {
            seed,
            profile,
            rough_ms: rough_hours * HOUR,
            calm_ms: CALM,
            interfaces,
            settings,
            faults_per_hour,
            kernel_tells,
            has_lanes,
            limits,
        }
    }
}

impl Rate {
    /// So much is lost each way on a path of 20 ms, with a clean one beside it.
    pub fn steady(loss: u64) -> Rate {
        Rate { rtt: 20, loss: [loss; 2], alternative: true, dies: None }
    }
}

impl Plan {
    /// So many hours of one lossy path.
    pub fn rate(seed: u64, hours: u64, rate: Rate) -> Plan {
        let mut interfaces = vec![("eth0", None, Class::Ethernet)];
        if rate.alternative {
            interfaces.push(("wlan0", None, Class::Wifi));
        }
        Plan {
            seed,
            profile: Profile::Rate(rate),
            rough_ms: hours * HOUR,
            calm_ms: CALM,
            settings: Settings::default(),
            interfaces,
            faults_per_hour: 1,
            kernel_tells: true,
            has_lanes: false,
            limits: vec![1 << 40],
        }
    }
}

fn interfaces(dice: &mut Dice) -> Vec<(&'static str, Option<&'static str>, Class)> {
    let all = [
        ("eth0", None, Class::Ethernet),
        ("wlan0", None, Class::Wifi),
        ("cdc-wdm0", Some("wwan0"), Class::Cell),
        ("eth1", None, Class::Ethernet),
        ("usb0", None, Class::Cell),
        ("wlan1", None, Class::Wifi),
    ];
    let mut chosen: Vec<_> = all.into_iter().filter(|_| dice.chance(550)).collect();
    if chosen.is_empty() {
        chosen.push(*dice.pick(&all));
    }
    chosen.truncate(5);
    chosen
}

fn settings(dice: &mut Dice, profile: Profile) -> Settings {
    let mut s = Settings::default();
    let secs = Duration::from_secs;
    if dice.chance(400) {
        s.order = list(dice);
    }
    s.hold_down = secs(*dice.pick(&[5, 30, 30, 30, 60, 120]));
    s.grace = secs(*dice.pick(&[10, 60, 60]));
    s.failback = *dice.pick(&[Failback::Auto, Failback::Auto, Failback::Auto, Failback::Auto, Failback::Manual]);
    s.servers = *dice.pick(&[1, 1, 1, 2, 3]);
    s.fleet_size = *dice.pick(&[1, 1, 1, 1000]);
    s.window = *dice.pick(&[256, 256, 20, 1]);
    s.late = *dice.pick(&[None, None, Some(Duration::from_millis(300)), Some(secs(1))]);
    for uplink in &mut s.classes {
        if dice.chance(150) {
            uplink.standby = Standby::Off;
        } else if dice.chance(250) {
            uplink.standby = Standby::Warm;
            uplink.warm_renew = secs(*dice.pick(&[10, 60, 60, 300]));
        }
    }
    s.manage_routes = dice.chance(300);
    if profile == Profile::Mixed && dice.chance(150) {
        s.mode = *dice.pick(&[Mode::Manual, Mode::OnDemand { linger: secs(30) }]);
    }
    s
}

/// Lanes as somebody might configure them.
fn lanes(dice: &mut Dice) -> Vec<LaneRules> {
    let lane = |dice: &mut Dice| {
        let memory = dice.chance(250);
        LaneRules {
            priority: *dice.pick(&[1, 3, 5, 9]),
            carriers: match dice.between(0, 99) {
                0..=59 => Carriers::Any,
                60..=79 => Carriers::Unmetered,
                _ => Carriers::Named(list(dice)),
            },
            overflow: *dice.pick(&[Overflow::DropOldest, Overflow::DropNewest, Overflow::Refuse]),
            max_messages: if dice.chance(500) { dice.spread(1, 5_000) } else { u64::MAX },
            memory_bytes: memory.then(|| dice.spread(1_000, 1_000_000)),
        }
    };
    let count = dice.between(1, 5);
    (0..count).map(|_| lane(dice)).collect()
}

/// A failover list as an operator might write one.
pub fn list(dice: &mut Dice) -> Vec<Selector> {
    let words: [Selector; 8] = [
        Selector::Class(Class::Ethernet),
        Selector::Class(Class::Wifi),
        Selector::Class(Class::Cell),
        Selector::Name(name("eth0")),
        Selector::Name(name("wlan0")),
        Selector::Name(name("wwan0")),
        Selector::Name(name("eth7")),
        Selector::Name(name("eth1")),
    ];
    let mut list = Vec::new();
    for _ in 0..dice.between(0, 4) {
        let word = *dice.pick(&words);
        if !list.contains(&word) {
            list.push(word);
        }
    }
    list
}
