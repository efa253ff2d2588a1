//! `[class.X]`: the classes of messages, and the lanes that they make.
//!
//! A lane is a class on certain uplinks: a queue with its own bounds and its own log. Four classes need no configuration;
//! every further uplink that a rule names for a class makes one more lane of it. Always true: the first lane is class
//! `normal` over any uplink, no two lanes share a directory, and all that is on disk fits in `outbox.max_size`.

use std::time::Duration;

use switchback_control::settings::LANES_MAX;
use switchback_control::{Carriers, Lane, LaneRules, Overflow};

use super::reader::{Reader, Section, Seen};
use super::tree::At;
use super::{LaneConfig, text};

/// Where what is not sorted goes, our own messages too.
const NORMAL: &str = "normal";
const CRITICAL: &str = "critical";
/// The longest name of a class: it is part of a directory's name.
const NAME_MAX: usize = 32;
/// Not names of classes: `switchback outbox drop` takes them for something else.
const WORDS: [&str; 2] = ["all", "rejected"];
/// Priority of a class that does not say: as `normal`.
const PRIORITY: u8 = 5;
/// Bytes of a class in memory, unless told otherwise.
const MEMORY_SIZE: u64 = 1 << 20;
/// Messages of a class in memory: at a hundred bytes each, what its bytes allow.
const MEMORY_MESSAGES: u64 = 10_000;
/// Sizes by share are multiples of this, so that people can read them.
const ROUND: u64 = 64 << 10;
/// Less than this on disk is no outbox: a message may have half of it.
const DISK_LEAST: u64 = 64 << 10;
/// An outage typically lasts this long: what may not even get so old is lost in most of them.
const OUTAGE: Duration = Duration::from_secs(60);

/// A class of messages, as built in or configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageClass {
    pub name: String,
    /// 0 to 9; the higher goes first.
    pub priority: u8,
    pub overflow: Overflow,
    pub carriers: Carriers,
    /// Shared by its lanes.
    pub max_messages: u64,
    /// Bytes, shared by its lanes.
    pub max_size: u64,
    pub max_age: Option<Duration>,
    /// Lives in memory only, and dies with the process.
    pub memory: bool,
}

/// A class before its size is known.
struct Asked {
    class: MessageClass,
    size: Option<Seen<u64>>,
    /// What it gets of the disk, beside the others that say no size.
    share: u64,
}

/// The classes, and the lanes that rules ask for.
pub struct Lanes {
    classes: Vec<Asked>,
    /// Which class, over what.
    lanes: Vec<(usize, Carriers)>,
}

/// All sizes known.
pub struct Laid {
    pub classes: Vec<MessageClass>,
    pub rules: Vec<LaneRules>,
    pub lanes: Vec<LaneConfig>,
}

impl Lanes {
    /// The classes that need no configuration.
    fn builtin() -> Lanes {
        let class = |name: &str, priority, overflow, share| Asked {
            class: MessageClass {
                name: name.into(),
                priority,
                overflow,
                carriers: Carriers::Any,
                max_messages: u64::MAX,
                max_size: 0,
                max_age: None,
                memory: false,
            },
            size: None,
            share,
        };
        let mut low = class("low", 0, Overflow::DropOldest, 2);
        (low.class.memory, low.class.max_messages) = (true, MEMORY_MESSAGES);
        let classes = vec![
            class(NORMAL, PRIORITY, Overflow::Refuse, 10),
            class(CRITICAL, 9, Overflow::Refuse, 2),
            class("bulk", 2, Overflow::DropOldest, 4),
            low,
        ];
        Lanes { classes, lanes: Vec::new() }
    }

    /// The built-in classes with `[class.X]` laid over them, and those that it adds, each with its lane.
    pub fn read(reader: &mut Reader, top: &Section<'_>) -> Lanes {
        let mut lanes = Lanes::builtin();
        let all = &top.section("class", "class");
        for name in all.names() {
            let section = &all.section("*", name);
            let known = lanes.classes.iter().position(|asked| asked.class.name == *name);
            let index = match known {
                Some(index) => index,
                None if is_name(name) => lanes.add(name),
                None => {
                    let message = format!(
                        "is no name for a class: at most {NAME_MAX} small letters, digits, \"-\" and \"_\", but not all or rejected"
                    );
                    reader.wrong(&section.at, &section.shown, message);
                    continue;
                }
            };
            if let Some(asked) = lanes.classes.get_mut(index) {
                read_class(reader, section, asked);
            }
        }
        lanes.lanes =
            lanes.classes.iter().enumerate().map(|(index, asked)| (index, asked.class.carriers.clone())).collect();
        if lanes.lanes.len() > LANES_MAX {
            let message = format!("{} classes are more than {LANES_MAX}, the most there may be", lanes.lanes.len());
            reader.wrong(&all.at, "class", message);
            lanes.lanes.truncate(LANES_MAX);
        }
        lanes
    }

    fn add(&mut self, name: &str) -> usize {
        let mut asked = Lanes::builtin().classes.swap_remove(0);
        (asked.class.name, asked.share) = (name.into(), 2);
        self.classes.push(asked);
        self.classes.len() - 1
    }

    /// What a `[[publish]]` rule says of class and uplinks, as a lane; and whether it lives in memory.
    pub fn of_rule(&mut self, reader: &mut Reader, section: &Section<'_>) -> Option<Lane> {
        let named = reader.text(section, "class");
        let uplinks = reader.carriers(section, "uplinks");
        let name = named.as_ref().map_or(NORMAL, |seen| seen.value.as_str());
        let Some(class) = self.classes.iter().position(|asked| asked.class.name == name) else {
            let seen = named.as_ref()?;
            let names = self.classes.iter().map(|asked| asked.class.name.as_str());
            let hint = match super::nearest(name, names.clone()) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => {
                    format!("known: {}; another needs a section [class.{name}]", names.collect::<Vec<_>>().join(", "))
                }
            };
            reader.wrong(&seen.at, &seen.path, format!("there is no class \"{name}\"; {hint}"));
            return None;
        };
        let own = self.classes.get(class).map(|asked| asked.class.carriers.clone()).unwrap_or(Carriers::Any);
        let carriers = uplinks.as_ref().map_or(own, |seen| seen.value.clone());
        let known = self.lanes.iter().position(|lane| *lane == (class, carriers.clone()));
        let index = known.unwrap_or(self.lanes.len());
        if known.is_none() {
            if index >= LANES_MAX {
                let at = uplinks.as_ref().map_or(&section.at, |seen| &seen.at);
                let message = format!(
                    "class \"{name}\" over {} would be queue number {}; there are at most {LANES_MAX}, one for each class \
                     on its uplinks",
                    uplinks_text(&carriers),
                    index + 1
                );
                reader.wrong(at, "publish.uplinks", message);
                return None;
            }
            self.lanes.push((class, carriers));
        }
        u8::try_from(index).ok().map(Lane)
    }

    /// Warns of a rule that wants more than memory can hold to.
    pub fn warn_of_memory(&self, reader: &mut Reader, at: &At, lane: Lane, qos: u8) {
        let class = self.lanes.get(usize::from(lane.0)).and_then(|(class, _)| self.classes.get(*class));
        if let Some(asked) = class.filter(|asked| asked.class.memory && qos == 2) {
            let message =
                format!("2 is exactly once, but class \"{}\" lives in memory: a restart loses it", asked.class.name);
            reader.warn(at, "publish.qos", message);
        }
    }

    /// Gives every class its size and every lane its part of it.
    pub fn lay(self, reader: &mut Reader, at: &At, outbox: u64) -> Laid {
        let on_disk = |asked: &&Asked| !asked.class.memory;
        let given = |asked: &Asked| asked.size.as_ref().map(|seen| seen.value);
        let said: u64 = self.classes.iter().filter(on_disk).filter_map(given).sum();
        let silent = || self.classes.iter().filter(on_disk).filter(|asked| asked.size.is_none());
        let shares: u64 = silent().map(|asked| asked.share).sum();
        let rest = outbox.saturating_sub(said);
        if said > outbox || (shares > 0 && rest < DISK_LEAST * shares) {
            let names: Vec<&str> = silent().map(|asked| asked.class.name.as_str()).collect();
            let others = match names.as_slice() {
                [] => String::new(),
                names => format!(" and leave {} for {}", text::size_text(rest), names.join(", ")),
            };
            let message = format!(
                "the sizes of all classes on disk are {} together, of outbox.max_size = \"{}\"{others}; make one of them \
                 smaller, or the outbox larger",
                text::size_text(said),
                text::size_text(outbox)
            );
            let first = self.classes.iter().filter(on_disk).find_map(|asked| asked.size.as_ref());
            reader.wrong(
                first.map_or(at, |seen| &seen.at),
                first.map_or("outbox.max_size", |seen| &seen.path),
                message,
            );
        }
        let size = |asked: &Asked| match (given(asked), asked.class.memory) {
            (Some(size), _) => size,
            (None, true) => MEMORY_SIZE,
            (None, false) => (rest / shares.max(1) * asked.share / ROUND * ROUND).max(DISK_LEAST),
        };
        let classes: Vec<MessageClass> =
            self.classes.iter().map(|asked| MessageClass { max_size: size(asked), ..asked.class.clone() }).collect();
        let of = |class: usize| self.lanes.iter().filter(|(other, _)| *other == class).count().max(1) as u64;
        let lay = |(class, carriers): &(usize, Carriers)| Some(lane(classes.get(*class)?, carriers, of(*class)));
        let (rules, lanes) = self.lanes.iter().filter_map(lay).unzip();
        Laid { classes, rules, lanes }
    }
}

fn is_name(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
    (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(letter) && !name.starts_with('-') && !WORDS.contains(&name)
}

fn read_class(reader: &mut Reader, section: &Section<'_>, asked: &mut Asked) {
    let class = &mut asked.class;
    if let Some(seen) = reader.integer(section, "priority") {
        class.priority = u8::try_from(seen.value).unwrap_or(class.priority);
    }
    if let Some(seen) = reader.word(section, "durability", &[]) {
        let memory = seen.value == "memory";
        if memory && class.name == CRITICAL {
            let message = "\"memory\" loses what is critical with every restart and power cut; \"disk\" keeps it";
            reader.warn(&seen.at, &seen.path, message.into());
        }
        if memory != class.memory {
            class.max_messages = if memory { MEMORY_MESSAGES } else { u64::MAX };
        }
        class.memory = memory;
    }
    asked.size = reader.size(section, "max_size");
    if let Some(seen) = reader.integer(section, "max_messages") {
        class.max_messages = u64::try_from(seen.value).unwrap_or(class.max_messages);
    }
    if let Some(seen) = reader.word(section, "overflow", &[]) {
        class.overflow = match seen.value.as_str() {
            "drop-oldest" => Overflow::DropOldest,
            "drop-newest" => Overflow::DropNewest,
            _ => Overflow::Refuse,
        };
    }
    if let Some(seen) = reader.carriers(section, "uplinks") {
        if class.name == NORMAL && seen.value != Carriers::Any {
            let message = "stays \"any\": what no rule sorts goes there, and our own messages; make another class";
            reader.wrong(&seen.at, &seen.path, message.into());
        } else {
            class.carriers = seen.value;
        }
    }
    class.max_age = max_age(reader, section);
}

/// `max_age` of a class or a rule.
pub fn max_age(reader: &mut Reader, section: &Section<'_>) -> Option<Duration> {
    let seen = reader.duration(section, "max_age")?;
    if seen.value < OUTAGE {
        let message = format!(
            "\"{}\" is less than outages typically last: most of what waits in one will be dropped",
            text::duration_text(seen.value)
        );
        reader.warn(&seen.at, &seen.path, message);
    }
    Some(seen.value)
}

/// A lane of a class that has so many.
fn lane(class: &MessageClass, carriers: &Carriers, lanes: u64) -> (LaneRules, LaneConfig) {
    let max_size = class.max_size / lanes;
    let max_messages = if class.max_messages == u64::MAX { u64::MAX } else { (class.max_messages / lanes).max(1) };
    let rules = LaneRules {
        priority: class.priority,
        carriers: carriers.clone(),
        overflow: class.overflow,
        max_messages,
        memory_bytes: class.memory.then_some(max_size),
    };
    let directory = if class.memory { String::new() } else { directory(&class.name, carriers) };
    (rules, LaneConfig { class: class.name.clone(), directory, max_size, max_age: class.max_age })
}

/// The classes and lanes that there are without any configuration.
pub fn builtin(outbox: u64) -> Laid {
    let mut lanes = Lanes::builtin();
    lanes.lanes = (0..lanes.classes.len()).map(|index| (index, Carriers::Any)).collect();
    let nowhere = At { file: std::sync::Arc::from(std::path::Path::new(super::DEFAULT_PATH)), line: None };
    lanes.lay(&mut Reader::default(), &nowhere, outbox)
}

/// Where a lane's messages are: `outbox` is class normal over any uplink, `outbox-bulk@unmetered` speaks for itself.
fn directory(class: &str, carriers: &Carriers) -> String {
    let class = if class == NORMAL && *carriers == Carriers::Any { String::new() } else { format!("-{class}") };
    match carriers {
        Carriers::Any => format!("outbox{class}"),
        Carriers::Unmetered => format!("outbox{class}@unmetered"),
        Carriers::Named(_) => format!("outbox{class}@{}", uplinks_text(carriers)),
    }
}

/// As people say it: `any`, `unmetered`, `wifi+eth0`.
pub fn uplinks_text(carriers: &Carriers) -> String {
    match carriers {
        Carriers::Any => "any".into(),
        Carriers::Unmetered => "unmetered".into(),
        Carriers::Named(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join("+"),
    }
}

/// As it is written in `class.*.overflow`.
pub fn overflow_word(overflow: Overflow) -> &'static str {
    match overflow {
        Overflow::DropOldest => "drop-oldest",
        Overflow::DropNewest => "drop-newest",
        Overflow::Refuse => "refuse",
    }
}
