//! Which lanes there are: those of the configuration, and those that a changed one left behind.
//!
//! A lane's directory tells its class and its uplinks, so that what waits there is still sent after a class was renamed
//! or taken out. Always true: the configured lanes keep their places; what is left behind comes after them. It opens
//! nothing.

use std::io::{self, ErrorKind};
use std::path::Path;

use switchback_control::settings::LANES_MAX;
use switchback_control::{Carriers, LaneRules};

use crate::config::{Config, LaneConfig};
use crate::outbox::{can_read, is_aside};

/// Every directory of a lane begins with this.
const OUTBOX: &str = "outbox";
/// Of a lane left behind nothing new comes; this is only for what is there already.
const LEFT_BEHIND_BYTES: u64 = 1 << 20;

/// Adds the lanes to the configuration whose directories are in `state_dir` and which it does not name.
///
/// # Errors
/// When the directory is there and cannot be read.
pub(super) fn adopt(state_dir: &Path, config: &mut Config) -> io::Result<()> {
    let entries = match std::fs::read_dir(state_dir) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok().filter(|entry| entry.path().is_dir())?.file_name().into_string().ok())
        .filter(|name| name.starts_with(OUTBOX) && config.lanes.iter().all(|lane| lane.directory != *name))
        .collect();
    names.sort();
    for name in names {
        let place = state_dir.join(&name);
        if is_aside(&name) && !can_read(&place) {
            continue;
        }
        let Some((class, carriers)) = read_name(&name) else {
            log::warn!("{} is no outbox of ours; it is left alone", place.display());
            continue;
        };
        if config.lanes.len() >= LANES_MAX {
            log::error!("{} waits for a start with fewer than {LANES_MAX} queues", place.display());
            continue;
        }
        let like = config.lanes.iter().position(|lane| lane.class == class);
        let like = like.and_then(|index| config.settings.lanes.get(index)).cloned().unwrap_or_default();
        config.settings.lanes.push(LaneRules { carriers, memory_bytes: None, ..like });
        config.lanes.push(LaneConfig { class, directory: name, max_size: LEFT_BEHIND_BYTES, max_age: None });
    }
    Ok(())
}

/// The class and the uplinks that a directory's name tells. One that an older version has set aside, because ours wrote it, keeps
/// them in front of its ending.
fn read_name(name: &str) -> Option<(String, Carriers)> {
    let name = if is_aside(name) { name.rsplit_once('.')?.0 } else { name };
    let rest = name.strip_prefix(OUTBOX)?;
    let (class, carriers) = match rest.split_once('@') {
        None => (rest, Carriers::Any),
        Some((class, "unmetered")) => (class, Carriers::Unmetered),
        Some((class, list)) => {
            let list: Result<_, _> = list.split('+').map(str::parse).collect();
            (class, Carriers::Named(list.ok()?))
        }
    };
    let class = if class.is_empty() { "normal" } else { class.strip_prefix('-').filter(|class| !class.is_empty())? };
    Some((class.into(), carriers))
}

#[cfg(test)]
mod tests {
    use super::*;
    use switchback_control::{Class, Name, Selector};

    #[test]
    fn a_name_tells_class_and_uplinks() {
        let some = |class: &str, carriers| Some((class.to_owned(), carriers));
        let named = vec![Selector::Class(Class::Wifi), Selector::Name(Name::new("usb0").unwrap())];
        assert_eq!(read_name("outbox"), some("normal", Carriers::Any));
        assert_eq!(read_name("outbox-bulk"), some("bulk", Carriers::Any));
        assert_eq!(read_name("outbox-my-own@unmetered"), some("my-own", Carriers::Unmetered));
        assert_eq!(read_name("outbox-normal@wifi+usb0"), some("normal", Carriers::Named(named)));
        assert_eq!(read_name("outbox-bulk.aside-2"), some("bulk", Carriers::Any));
        for name in ["outboxes", "outbox-", "outbox.bak", "outbox-x@", "outbox-x@a/b", "inbox"] {
            assert_eq!(read_name(name), None, "{name}");
        }
    }

    #[test]
    fn what_no_lane_names_becomes_a_lane_behind_the_others() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["outbox", "outbox-critical", "outbox-old", "outbox-bulk@unmetered", "outbox.bak", "other"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let mut config = Config::defaults();
        adopt(dir.path(), &mut config).unwrap();
        let added: Vec<_> = config.lanes.iter().skip(4).map(|lane| lane.directory.as_str()).collect();
        assert_eq!(added, ["outbox-bulk@unmetered", "outbox-old"]);
        assert_eq!(config.settings.lanes.len(), config.lanes.len());
        assert_eq!(config.settings.lanes[4].carriers, Carriers::Unmetered);
        assert_eq!(config.settings.lanes[4].priority, config.settings.lanes[2].priority, "as its class goes");
        adopt(&dir.path().join("missing"), &mut config).unwrap();
    }
}
