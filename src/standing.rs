//! Which configuration the daemon runs with, and why that is not the one that is written down (R-CF-4, R-PR-2).
//!
//! The first of these that leads to a server: the files as they are; the last configuration with which this gateway was
//! on line, which the state directory keeps as TOML (it names the files of secrets and holds none); what is right in files
//! that are wrong; nothing, which serves the applications of this machine and waits to be told a server. A crash loop
//! takes the second before the first, and only what the connection needs of it. Always true: a mistake in the files never
//! ends the daemon and never changes what it does while it runs; whatever is not as written is said. Nothing here
//! connects, and nothing writes to the configuration directory.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use switchback_control::{Standby, Start};

use crate::config::{Config, ConfigError, PublishRule, Warning, show};
use crate::outbox::{replace_file, set_aside};

/// The file in the state directory that holds what was last on line.
pub const LAST_GOOD: &str = "last-good.toml";
/// Its first line; another version is left to the program that wrote it.
const HEADER: &str = "# switchback last-good 1";
const NAME: &str = "# switchback last-good ";
/// How `show` writes that there is no server.
const NO_SERVERS: &str = "\nservers = []\n";
/// Bytes of each queue in a crash loop's safe mode.
const BARE_BYTES: u64 = 1 << 20;
/// A file in which nobody stands.
const NOBODY: &str = "/dev/null";
/// Mistakes told to scripts: whoever made more corrects these first.
const ERRORS_MAX: usize = 16;
/// Keys named in the sentence of a reload.
const KEYS_MAX: usize = 6;

/// What the daemon runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Running {
    AsWritten,
    /// As written before a reload that was refused.
    Before,
    LastGood,
    /// What is right in the files.
    Salvaged,
}

/// Why safe mode holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    Mistakes,
    /// No server is named yet, and nothing else is wrong.
    Unconfigured,
    CrashLoop,
}

/// What the daemon runs with, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub running: Running,
    /// `None`: not in safe mode.
    pub safe: Option<Cause>,
    /// What is wrong with the files.
    pub errors: Vec<ConfigError>,
    path: PathBuf,
    hash: String,
    /// The effective values, for comparing and keeping.
    text: String,
    /// When the files of local users and rules were last changed: they are read at the start only.
    stamps: Vec<Option<SystemTime>>,
}

/// What a start begins with.
#[derive(Clone, Debug)]
pub struct Chosen {
    pub config: Config,
    pub warnings: Vec<Warning>,
    pub standing: Standing,
}

/// What a reload found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reread {
    /// The same values; nothing to do.
    Same,
    /// Mistakes; the daemon goes on as it is, and the standing tells.
    Refused,
    /// Other values, in these keys.
    Changed(Vec<String>),
}

/// Decides what to start with. Never fails.
pub fn choose(path: &Path, state_dir: &Path, crash_loop: bool) -> Chosen {
    let last_good = state_dir.join(LAST_GOOD);
    let (config, warnings, running, errors) = match Config::load(path) {
        Ok((written, warnings)) => match read_last_good(&last_good).filter(|_| crash_loop) {
            Some(good) if good.hash != written.hash => (good, warnings, Running::LastGood, Vec::new()),
            Some(_) | None => (written, warnings, Running::AsWritten, Vec::new()),
        },
        Err(errors) => {
            let (mut config, running) = in_place_of(path, &last_good);
            if running == Running::Salvaged {
                shut(&mut config, &errors);
            }
            (config, Vec::new(), running, errors)
        }
    };
    let safe = match errors.is_empty() {
        true => crash_loop.then_some(Cause::CrashLoop),
        false if crash_loop => Some(Cause::CrashLoop),
        false => Some(cause_of(&errors, config.cloud.servers.is_empty())),
    };
    let (hash, text) = (config.hash.clone(), show(&config));
    let stamps = stamps(&config);
    let standing = Standing { running, safe, errors, path: path.to_owned(), hash, text, stamps };
    Chosen { config: standing.applied_to(config), warnings, standing }
}

fn cause_of(errors: &[ConfigError], no_servers: bool) -> Cause {
    match no_servers && errors.iter().all(ConfigError::is_nothing_yet) {
        true => Cause::Unconfigured,
        false => Cause::Mistakes,
    }
}

/// What to run with in place of files that are wrong.
fn in_place_of(path: &Path, last_good: &Path) -> (Config, Running) {
    if let Some(good) = read_last_good(last_good) {
        return (good, Running::LastGood);
    }
    let salvaged = Config::salvage(path);
    if salvaged.cloud.servers.is_empty() && is_ours(last_good) {
        // One of its files may be missing now: the rest still names a server.
        let remnant = Config::salvage(last_good);
        if !remnant.cloud.servers.is_empty() {
            return (remnant, Running::LastGood);
        }
    }
    (salvaged, Running::Salvaged)
}

/// A mistake must open nothing: where it may have been what keeps strangers out, nobody comes in, and where it was whom we trust,
/// nobody is trusted.
fn shut(config: &mut Config, errors: &[ConfigError]) {
    let about = |keys: &[&str]| {
        errors.iter().filter(|error| !error.is_nothing_yet()).any(|error| {
            error.key.is_empty() || keys.iter().any(|key| error.key == *key || error.nearest.as_deref() == Some(key))
        })
    };
    if about(&["local", "local.password_file", "local.acl_file"]) {
        config.local.password_file.get_or_insert_with(|| NOBODY.into());
    }
    if about(&["cloud.ca_file"]) {
        config.cloud.ca_file.get_or_insert_with(|| NOBODY.into());
    }
}

fn read_last_good(path: &Path) -> Option<Config> {
    if !is_ours(path) {
        return None;
    }
    let read = Config::load(path).map(|(config, _)| config);
    read.inspect_err(|errors| errors.iter().for_each(|error| log::warn!("{error}"))).ok()
}

fn is_ours(path: &Path) -> bool {
    match fs::read_to_string(path) {
        Ok(text) => text.lines().next() == Some(HEADER),
        Err(error) => {
            if error.kind() != ErrorKind::NotFound {
                log::warn!("{}: {error}", path.display());
            }
            false
        }
    }
}

impl Standing {
    /// The configuration that this standing allows.
    fn applied_to(&self, mut config: Config) -> Config {
        config.settings.safe_mode = self.safe.is_some();
        if config.cloud.servers.is_empty() {
            config.settings.start = Start::Idle;
        }
        if self.safe == Some(Cause::CrashLoop) {
            bare(&mut config);
        }
        config
    }

    /// Looks at the files again. Mistakes in them are remembered here; all else stays as it is.
    pub fn reread(&mut self) -> Reread {
        match Config::load(&self.path) {
            Err(errors) => {
                match &mut self.safe {
                    None => self.running = Running::Before,
                    Some(Cause::CrashLoop) => {}
                    Some(cause) => *cause = cause_of(&errors, self.text.contains(NO_SERVERS)),
                }
                self.errors = errors;
                Reread::Refused
            }
            Ok((config, _)) if self.safe.is_none() && config.hash == self.hash && stamps(&config) == self.stamps => {
                (self.running, self.errors) = (Running::AsWritten, Vec::new());
                Reread::Same
            }
            Ok((config, _)) => {
                let mut keys = changed_keys(&self.text, &show(&config));
                if stamps(&config) != self.stamps {
                    keys.push("local users or rules".into());
                }
                Reread::Changed(keys)
            }
        }
    }

    /// For people: what is not as it should be, and what to do. `None` when all is as written.
    pub fn sentence(&self) -> Option<String> {
        const THEN: &str = "then: systemctl reload switchback";
        let file = self.path.display();
        let mistake = || {
            let first = self.errors.first().map(ToString::to_string).unwrap_or_default();
            let more = self.errors.len().saturating_sub(1);
            if more > 0 { format!("{first} (and {more} more)") } else { first }
        };
        let running = match self.running {
            Running::AsWritten | Running::Before => "as before",
            Running::LastGood => "with the configuration that was last on line",
            Running::Salvaged if self.text.contains(NO_SERVERS) => "without a server",
            Running::Salvaged => "with what is right in it, and defaults for the rest",
        };
        match self.safe {
            Some(Cause::Unconfigured) => {
                Some(format!("not configured yet: set cloud.servers in {file} (see switchback.toml(5)), {THEN}"))
            }
            Some(Cause::Mistakes) => Some(format!("safe mode: {}; runs {running}. Correct it, {THEN}", mistake())),
            Some(Cause::CrashLoop) => Some(
                "safe mode after five bad ends in 30 s: nothing but the connection for ten minutes, applications are \
                 not served, stored messages wait; see journalctl -u switchback"
                    .into(),
            ),
            None if !self.errors.is_empty() => {
                Some(format!("the new configuration is not used: {}; runs {running}. Correct it, {THEN}", mistake()))
            }
            None => None,
        }
    }

    /// One word for safe mode's cause.
    pub fn word(&self) -> Option<&'static str> {
        self.safe.map(|cause| match cause {
            Cause::Mistakes => "mistakes",
            Cause::Unconfigured => "unconfigured",
            Cause::CrashLoop => "crash-loop",
        })
    }

    /// The key `configuration` of the status document.
    pub fn document(&self) -> Value {
        let running = match self.running {
            Running::AsWritten => "as-written",
            Running::Before => "before",
            Running::LastGood => "last-good",
            Running::Salvaged => "salvaged",
        };
        let error = |error: &ConfigError| {
            json!({ "file": error.file.to_string_lossy(), "line": error.line, "key": error.key,
                    "message": error.message, "nearest": error.nearest })
        };
        json!({
            "safe_mode": self.word(),
            "running": running,
            "hash": self.hash,
            "says": self.sentence(),
            "errors": self.errors.iter().take(ERRORS_MAX).map(error).collect::<Vec<_>>(),
        })
    }

    /// What to keep once this configuration is on line; `None` where it is not the one that is written.
    pub fn worth_keeping(&self) -> Option<String> {
        let whole = self.safe.is_none() && self.running == Running::AsWritten;
        whole.then(|| {
            format!(
                "{HEADER}\n# What this gateway was last on line with; used while the files in its place are wrong.\n{}",
                self.text
            )
        })
    }
}

/// Keeps a configuration that was on line, unless it is there already. A disk that takes nothing costs only this.
pub fn keep(state_dir: &Path, text: &str) {
    let path = state_dir.join(LAST_GOOD);
    if fs::read(&path).is_ok_and(|kept| kept == text.as_bytes()) {
        return;
    }
    if fs::read_to_string(&path).is_ok_and(|kept| kept.starts_with(NAME) && kept.lines().next() != Some(HEADER)) {
        set_aside(&path, "it is of a newer version");
    }
    if let Err(error) = replace_file(&path, text.as_bytes()) {
        log::warn!("the configuration cannot be kept for bad days: {error}");
    }
}

/// Only what a plain connection needs: whatever crashed may have come from anywhere else.
fn bare(config: &mut Config) {
    config.publish = vec![PublishRule { topic: "$nothing".into(), ..PublishRule::default() }];
    config.subscribe.clear();
    config.status_listen = None;
    // Our own few messages wait in memory.
    config.lanes.iter_mut().for_each(|lane| lane.max_size = lane.max_size.min(BARE_BYTES));
    let settings = &mut config.settings;
    let uplinks = settings.classes.iter_mut().chain(settings.named.iter_mut().map(|(_, uplink)| uplink));
    for uplink in uplinks.filter(|uplink| uplink.standby == Standby::Warm) {
        uplink.standby = Standby::Up;
    }
}

fn stamps(config: &Config) -> Vec<Option<SystemTime>> {
    let files = [&config.local.password_file, &config.local.acl_file];
    files.map(|file| fs::metadata(file.as_ref()?).and_then(|found| found.modified()).ok()).into()
}

/// The keys in which two configurations differ, both as `show` writes them; the first few.
fn changed_keys(old: &str, new: &str) -> Vec<String> {
    let [old, new] = [old, new].map(|text| {
        let mut found = BTreeSet::new();
        if let Ok(table) = text.parse() {
            leaves(&toml::Value::Table(table), "", &mut found);
        }
        found
    });
    let keys: BTreeSet<&String> = old.symmetric_difference(&new).map(|(key, _)| key).collect();
    let more = keys.len().saturating_sub(KEYS_MAX);
    let mut named: Vec<String> = keys.into_iter().take(KEYS_MAX).cloned().collect();
    if more > 0 {
        named.push(format!("{more} more"));
    }
    named
}

fn leaves(value: &toml::Value, path: &str, found: &mut BTreeSet<(String, String)>) {
    match value {
        toml::Value::Table(table) => {
            for (key, value) in table {
                leaves(value, &if path.is_empty() { key.clone() } else { format!("{path}.{key}") }, found);
            }
        }
        value => drop(found.insert((path.to_owned(), value.to_string()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[cloud]\nservers = [\"mqtt://192.0.2.1:1883\"]\nclient_id = \"gw\"\n";

    struct Place(tempfile::TempDir);

    impl Place {
        fn new(text: &str) -> Place {
            let place = Place(tempfile::tempdir().unwrap());
            place.write(text);
            place
        }

        fn path(&self) -> PathBuf {
            self.0.path().join("switchback.toml")
        }

        fn write(&self, text: &str) {
            fs::write(self.path(), text).unwrap();
        }

        fn choose(&self, crash_loop: bool) -> Chosen {
            choose(&self.path(), self.0.path(), crash_loop)
        }
    }

    #[test]
    fn what_was_on_line_is_taken_in_place_of_what_is_wrong() {
        let place = Place::new(GOOD);
        let before = place.choose(false);
        keep(place.0.path(), &before.standing.worth_keeping().unwrap());
        for wrong in ["[cloud\n", "[cloud]\nserver = 5\n", "", &format!("{GOOD}bad = 1\n")] {
            place.write(wrong);
            let chosen = place.choose(false);
            assert_eq!((chosen.standing.running, chosen.standing.safe), (Running::LastGood, Some(Cause::Mistakes)));
            assert_eq!(chosen.config.cloud, before.config.cloud, "{wrong:?}");
            assert!(chosen.config.settings.safe_mode && chosen.standing.worth_keeping().is_none());
        }
        fs::remove_file(place.path()).unwrap();
        assert_eq!(place.choose(false).standing.running, Running::LastGood, "and of what is missing");
    }

    #[test]
    fn a_mistake_opens_nothing() {
        let users = "[local]\npassword_file = \"/nowhere/users\"\n";
        let chosen = Place::new(&format!("{GOOD}{users}")).choose(false);
        assert_eq!(chosen.config.local.password_file, Some("/nowhere/users".into()));
        for typo in ["[local]\npasword_file = \"/x\"\n", "[local]\nacl_file = 5\n"] {
            let chosen = Place::new(&format!("{GOOD}{typo}")).choose(false);
            assert_eq!(chosen.config.local.password_file, Some(NOBODY.into()), "{typo}");
        }
        let chosen = Place::new(&format!("{GOOD}ca_fil = \"/x\"\n")).choose(false);
        assert_eq!((chosen.config.cloud.ca_file, chosen.config.local.password_file), (Some(NOBODY.into()), None));
        let place = Place::new(GOOD);
        fs::create_dir(place.0.path().join("conf.d")).unwrap();
        fs::write(place.0.path().join("conf.d/local.toml"), "[local\n").unwrap();
        assert_eq!(place.choose(false).config.local.password_file, Some(NOBODY.into()));
        assert_eq!(Place::new("").choose(false).config.local.password_file, None);
    }

    #[test]
    fn a_kept_configuration_of_a_newer_version_is_not_used_and_not_lost() {
        let place = Place::new("[cloud\n");
        let newer = "# switchback last-good 2\n[cloud]\nservers = [\"mqtt://192.0.2.9:1883\"]\n";
        fs::write(place.0.path().join(LAST_GOOD), newer).unwrap();
        let chosen = place.choose(false);
        assert_eq!((chosen.standing.running, chosen.config.cloud.servers.len()), (Running::Salvaged, 0));
        assert_eq!(chosen.config.settings.start, Start::Idle);
        place.write(GOOD);
        keep(place.0.path(), &place.choose(false).standing.worth_keeping().unwrap());
        assert_eq!(fs::read_to_string(place.0.path().join("last-good.toml.aside")).unwrap(), newer);
    }

    #[test]
    fn a_crash_loop_takes_what_was_on_line_and_only_the_connection_of_it() {
        let place = Place::new(&format!("{GOOD}[uplink.wifi]\nstandby = \"warm\"\n[[publish]]\ntopic = \"a\"\n"));
        let chosen = place.choose(true);
        assert_eq!((chosen.standing.running, chosen.standing.safe), (Running::AsWritten, Some(Cause::CrashLoop)));
        assert_eq!((chosen.config.publish[0].topic.as_str(), chosen.config.status_listen), ("$nothing", None));
        assert!(chosen.config.settings.classes.iter().all(|uplink| uplink.standby == Standby::Up));
        keep(place.0.path(), &Place::new(GOOD).choose(false).standing.worth_keeping().unwrap());
        place.write(&GOOD.replace("192.0.2.1", "192.0.2.2"));
        let chosen = place.choose(true);
        assert_eq!(
            (chosen.standing.running, chosen.config.cloud.servers[0].host.as_str()),
            (Running::LastGood, "192.0.2.1")
        );
        assert!(chosen.standing.sentence().unwrap().contains("five bad ends"));
    }

    #[test]
    fn a_reload_tells_which_keys_are_others() {
        let place = Place::new(GOOD);
        let mut standing = place.choose(false).standing;
        assert_eq!(standing.reread(), Reread::Same);
        place.write(&format!("{GOOD}grace = \"5min\"\n[failover]\nhold_down = \"1min\"\n"));
        assert_eq!(standing.reread(), Reread::Changed(vec!["cloud.grace".into(), "failover.hold_down".into()]));
        place.write("x");
        assert_eq!(standing.reread(), Reread::Refused);
        assert!(standing.sentence().unwrap().contains("runs as before"));
        let users = place.0.path().join("users");
        fs::write(&users, "").unwrap();
        place.write(&format!("{GOOD}[local]\npassword_file = \"{}\"\n", users.display()));
        let mut standing = place.choose(false).standing;
        assert_eq!(standing.reread(), Reread::Same);
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        fs::File::options().write(true).open(&users).unwrap().set_modified(later).unwrap();
        assert_eq!(standing.reread(), Reread::Changed(vec!["local users or rules".into()]));
    }
}
