//! The classes of messages and the lanes that they make.
//!
//! A lane is a class on certain uplinks: a queue with its own bounds and its own log. The four classes that need no
//! configuration stand here. Always true: the first lane is class `normal` over any uplink, and no two lanes share a
//! directory.

use std::time::Duration;

use switchback_control::{Carriers, LaneRules, Overflow};

use super::LaneConfig;

/// A class of messages, as built in or configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MessageClass {
    pub name: String,
    /// 0 to 9; the higher goes first.
    pub priority: u8,
    pub overflow: Overflow,
    pub carriers: Carriers,
    pub max_messages: u64,
    /// Sixteenths of `outbox.max_size`, unless a size is given.
    pub share: u64,
    pub max_size: Option<u64>,
    pub max_age: Option<Duration>,
    /// Lives in memory only, and dies with the process.
    pub memory: bool,
}

/// Bytes of a class in memory, unless told otherwise.
const MEMORY_SIZE: u64 = 1 << 20;
/// Messages of a class in memory: at a hundred bytes each, what its bytes allow.
const MEMORY_MESSAGES: u64 = 10_000;

/// The classes that need no configuration.
pub fn classes() -> Vec<MessageClass> {
    let class = |name: &str, priority, overflow, share| MessageClass {
        name: name.into(),
        priority,
        overflow,
        carriers: Carriers::Any,
        max_messages: u64::MAX,
        share,
        max_size: None,
        max_age: None,
        memory: false,
    };
    vec![
        class("normal", 5, Overflow::Refuse, 10),
        class("critical", 9, Overflow::Refuse, 2),
        class("bulk", 2, Overflow::DropOldest, 4),
        MessageClass {
            memory: true,
            max_messages: MEMORY_MESSAGES,
            max_size: Some(MEMORY_SIZE),
            ..class("low", 0, Overflow::DropOldest, 0)
        },
    ]
}

/// The lane of a class over these uplinks, of an outbox of this size.
pub fn lane(class: &MessageClass, carriers: &Carriers, outbox: u64) -> (LaneRules, LaneConfig) {
    let max_size = class.max_size.unwrap_or(outbox / 16 * class.share);
    let rules = LaneRules {
        priority: class.priority,
        carriers: carriers.clone(),
        overflow: class.overflow,
        max_messages: class.max_messages,
        memory_bytes: class.memory.then_some(max_size),
    };
    let directory = if class.memory { String::new() } else { directory(&class.name, carriers) };
    (rules, LaneConfig { class: class.name.clone(), directory, max_size, max_age: class.max_age })
}

/// The lanes that there are without any rule.
pub fn builtin(outbox: u64) -> (Vec<LaneRules>, Vec<LaneConfig>) {
    classes().iter().map(|class| lane(class, &class.carriers, outbox)).unzip()
}

/// Where a lane's messages are: `outbox` is class normal over any uplink, `outbox-bulk@unmetered` speaks for itself.
fn directory(class: &str, carriers: &Carriers) -> String {
    let class = if class == "normal" && *carriers == Carriers::Any { String::new() } else { format!("-{class}") };
    match carriers {
        Carriers::Any => format!("outbox{class}"),
        Carriers::Unmetered => format!("outbox{class}@unmetered"),
        Carriers::Named(list) => {
            let names: Vec<String> = list.iter().map(ToString::to_string).collect();
            format!("outbox{class}@{}", names.join("+"))
        }
    }
}
