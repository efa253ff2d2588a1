//! Typed reading of the merged tree: each getter gives a value in its range or notes why not and gives nothing.
//!
//! Kinds and ranges come from the schema, so that no getter carries a number of its own. Everything wrong is noted;
//! reading always goes on to the end. It knows no key by name. The file is long because there is one getter for each kind,
//! and they are read side by side.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use switchback_control::{Carriers, Selector};

use super::schema::{self, Key, Kind};
use super::text;
use super::tree::{At, Node, Table, Value};
use super::uplinks::class_in_disguise;
use super::{ConfigError, Warning};

/// Most items in any list: servers, patterns, failover order, rules.
pub const LIST_MAX: usize = 64;

/// Uplinks that one queue may name: they are part of a directory's name.
const CARRIERS_MAX: usize = 8;

/// Collects what is wrong while values are read.
#[derive(Default)]
pub struct Reader {
    pub errors: Vec<ConfigError>,
    pub warnings: Vec<Warning>,
    /// Schema paths that were asked for; a test compares them with the schema.
    pub read: BTreeSet<&'static str>,
}

/// A section, present or not.
#[derive(Clone)]
pub struct Section<'t> {
    table: Option<&'t Table>,
    /// As the schema calls it, `uplink.*`.
    pattern: String,
    /// As the user calls it, `uplink.cell`.
    pub shown: String,
    pub at: At,
}

/// A key that is present.
pub struct Item<'t> {
    pub node: &'t Node,
    pub path: String,
    key: &'static Key,
}

/// A value and where it was given.
#[derive(Clone, Debug)]
pub struct Seen<T> {
    pub value: T,
    pub at: At,
    pub path: String,
}

impl<'t> Section<'t> {
    pub fn top(table: &'t Table, at: At) -> Section<'t> {
        Section { table: Some(table), pattern: String::new(), shown: String::new(), at }
    }

    /// The section below, present or not; `name` is what the user calls it, `pattern` what the schema does.
    pub fn section(&self, pattern: &str, name: &str) -> Section<'t> {
        let found = self.table.and_then(|table| table.get(name));
        let table = found.and_then(|(_, node)| match &node.value {
            Value::Table(table) => Some(table),
            _ => None,
        });
        Section {
            table,
            pattern: join(&self.pattern, pattern),
            shown: join(&self.shown, name),
            at: found.map_or(self.at.clone(), |(at, _)| at.clone()),
        }
    }

    /// The sections of a list such as `[[publish]]`.
    pub fn sections(&self, name: &str) -> Vec<Section<'t>> {
        let Some((_, Node { value: Value::List(items), .. })) = self.table.and_then(|table| table.get(name)) else {
            return Vec::new();
        };
        items
            .iter()
            .filter_map(|node| match &node.value {
                Value::Table(table) => Some(Section {
                    table: Some(table),
                    pattern: join(&self.pattern, name),
                    shown: join(&self.shown, name),
                    at: node.at.clone(),
                }),
                _ => None,
            })
            .collect()
    }

    /// The names of what stands here.
    pub fn names(&self) -> Vec<&'t str> {
        self.table.map(|table| table.keys().map(String::as_str).collect()).unwrap_or_default()
    }
}

fn join(section: &str, name: &str) -> String {
    if section.is_empty() { name.to_string() } else { format!("{section}.{name}") }
}

impl Reader {
    /// Notes every key that the schema does not know, and every section that is none.
    pub fn unknown(&mut self, table: &Table, pattern: &str, shown: &str) {
        let children = schema::children(pattern);
        for (name, (at, node)) in table {
            let (path, child) = (join(shown, name), children.iter().find(|child| **child == name || **child == "*"));
            let Some(child) = child else {
                let near = schema::nearest(pattern, shown, name);
                self.errors.push(ConfigError::unknown(at, &path, near));
                continue;
            };
            let child = join(pattern, child);
            match (&node.value, schema::find(&child), child.as_str()) {
                (_, Some(_), _) => {}
                (Value::List(items), None, "publish" | "subscribe") => {
                    for item in items {
                        match &item.value {
                            Value::Table(table) => self.unknown(table, &child, &path),
                            _ => self.wrong(&item.at, &path, format!("holds sections; write [[{path}]]")),
                        }
                    }
                }
                (_, None, "publish" | "subscribe") => {
                    self.wrong(at, &path, format!("may come several times; write [[{path}]] with two brackets"));
                }
                (Value::Table(table), None, _) => self.unknown(table, &child, &path),
                (value, None, _) => {
                    let message = format!("is {}, but should be a section; write [{path}]", value.kind());
                    self.wrong(&node.at, &path, message);
                }
            }
        }
    }

    /// Notes what is wrong with a key.
    pub fn wrong(&mut self, at: &At, path: &str, message: String) {
        self.errors.push(ConfigError::at(at, path, format!("\"{path}\": {message}")));
    }

    /// Notes what is allowed and probably not meant.
    pub fn warn(&mut self, at: &At, path: &str, message: String) {
        self.warnings.push(Warning::at(at, path, format!("\"{path}\": {message}")));
    }

    /// The key, if it is present.
    pub fn item<'t>(&mut self, section: &Section<'t>, name: &str) -> Option<Item<'t>> {
        let path = join(&section.shown, name);
        let Some(key) = schema::find(&join(&section.pattern, name)) else {
            // Only a defect of ours comes here; the test of the shipped file finds it.
            self.wrong(&section.at, &path, "is missing in the list of keys".into());
            return None;
        };
        self.read.insert(key.path);
        let (_, node) = section.table?.get(name)?;
        Some(Item { node, path, key })
    }

    fn wrong_type(&mut self, item: &Item<'_>, write: &str) {
        let message = format!("is {}; write {write}", item.node.value.kind());
        self.wrong(&item.node.at, &item.path, message);
    }

    /// Applies a check that answers with a sentence.
    pub fn checked<T>(&mut self, at: &At, path: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.wrong(at, path, message)).ok()
    }

    fn seen<T>(item: &Item<'_>, value: T) -> Option<Seen<T>> {
        Some(Seen { value, at: item.node.at.clone(), path: item.path.clone() })
    }

    /// Text, whatever it says.
    pub fn text(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<String>> {
        let item = self.item(section, name)?;
        match &item.node.value {
            Value::Text(text) => Self::seen(&item, text.clone()),
            _ => {
                self.wrong_type(&item, "text in double quotes");
                None
            }
        }
    }

    /// One of the words the schema allows; `later` are words of later versions,
    /// which the caller takes for the nearest one.
    pub fn word(&mut self, section: &Section<'_>, name: &str, later: &[&str]) -> Option<Seen<String>> {
        let item = self.item(section, name)?;
        let range = item.key.kind.range().unwrap_or_default();
        let Kind::Word(words) = item.key.kind else { return None };
        match &item.node.value {
            Value::Text(text) if words.contains(&text.as_str()) => return Self::seen(&item, text.clone()),
            Value::Text(text) if later.contains(&text.as_str()) => {
                let message = format!("\"{text}\" is not in this version; the nearest of {range} is taken");
                self.warn(&item.node.at, &item.path, message);
                return Self::seen(&item, text.clone());
            }
            Value::Text(text) => {
                let near = super::nearest::nearest(text, words.iter().copied());
                let hint = near.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
                self.wrong(&item.node.at, &item.path, format!("\"{text}\" is not one of {range}{hint}"));
            }
            _ => self.wrong_type(&item, &format!("one of {range}")),
        }
        None
    }

    /// A whole number in its range.
    pub fn integer(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<i64>> {
        let item = self.item(section, name)?;
        let Kind::Integer { min, max } = item.key.kind else { return None };
        match &item.node.value {
            Value::Integer(Some(number)) if (min..=max).contains(number) => Self::seen(&item, *number),
            Value::Integer(number) => {
                let number = number.map(|number| number.to_string()).unwrap_or("that".into());
                self.wrong(&item.node.at, &item.path, format!("{number} is out of range ({min} to {max})"));
                None
            }
            _ => {
                self.wrong_type(&item, &format!("a number from {min} to {max}, without quotes"));
                None
            }
        }
    }

    /// A duration in its range, or `None` inside for the word the schema allows instead.
    pub fn duration_or_word(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<Option<Duration>>> {
        let item = self.item(section, name)?;
        let Kind::Duration { min, max, whole, word } = item.key.kind else { return None };
        let value = match &item.node.value {
            Value::Text(text) if Some(text.as_str()) == word => None,
            value => Some(self.one_duration(&item, &item.node.at, value, min, max, whole)?),
        };
        Self::seen(&item, value)
    }

    /// A duration in its range.
    pub fn duration(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<Duration>> {
        let seen = self.duration_or_word(section, name)?;
        Some(Seen { value: seen.value?, at: seen.at, path: seen.path })
    }

    /// Exactly two durations.
    pub fn pair(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<[Duration; 2]>> {
        let item = self.item(section, name)?;
        let Kind::Pair { min, max } = item.key.kind else { return None };
        let Value::List(items) = &item.node.value else {
            self.wrong_type(&item, "two durations, as in [\"10s\", \"15s\"]");
            return None;
        };
        let [first, second] = items.as_slice() else {
            self.wrong(&item.node.at, &item.path, "takes exactly two durations, as in [\"10s\", \"15s\"]".into());
            return None;
        };
        let first = self.one_duration(&item, &first.at, &first.value, min, max, false);
        let second = self.one_duration(&item, &second.at, &second.value, min, max, false);
        Self::seen(&item, [first?, second?])
    }

    fn one_duration(
        &mut self,
        item: &Item<'_>,
        at: &At,
        value: &Value,
        min: u64,
        max: u64,
        whole: bool,
    ) -> Option<Duration> {
        let range = item.key.kind.range().unwrap_or_default();
        let text = match value {
            Value::Text(text) => text,
            Value::Integer(Some(number)) => {
                self.wrong(at, &item.path, format!("is a number; write text with a unit, such as \"{number}s\""));
                return None;
            }
            other => {
                let message = format!("is {}; write text with a unit, such as \"30s\"", other.kind());
                self.wrong(at, &item.path, message);
                return None;
            }
        };
        let duration = self.checked(at, &item.path, text::duration(text))?;
        if duration < Duration::from_millis(min) || duration > Duration::from_millis(max) {
            self.wrong(at, &item.path, format!("\"{text}\" is out of range ({range})"));
            return None;
        }
        if whole && duration.subsec_millis() != 0 {
            self.wrong(at, &item.path, format!("\"{text}\" is not a whole number of seconds"));
            return None;
        }
        Some(duration)
    }

    /// A size in its range, in bytes.
    pub fn size(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<u64>> {
        let item = self.item(section, name)?;
        let Kind::Size { min, max } = item.key.kind else { return None };
        let Value::Text(text) = &item.node.value else {
            self.wrong_type(&item, "text with a unit, such as \"64KiB\"");
            return None;
        };
        let bytes = self.checked(&item.node.at, &item.path, text::size(text))?;
        if !(min..=max).contains(&bytes) {
            let range = item.key.kind.range().unwrap_or_default();
            self.wrong(&item.node.at, &item.path, format!("\"{text}\" is out of range ({range})"));
            return None;
        }
        Self::seen(&item, bytes)
    }

    /// `true` or `false`.
    pub fn bool(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<bool>> {
        let item = self.item(section, name)?;
        let Value::Bool(yes) = item.node.value else {
            self.wrong_type(&item, "true or false, without quotes");
            return None;
        };
        Self::seen(&item, yes)
    }

    /// `true`, `false`, or `None` inside for `"auto"`.
    pub fn flag(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<Option<bool>>> {
        let item = self.item(section, name)?;
        match &item.node.value {
            Value::Bool(yes) => Self::seen(&item, Some(*yes)),
            Value::Text(text) if text == "auto" => Self::seen(&item, None),
            _ => {
                self.wrong_type(&item, "true or false without quotes, or \"auto\"");
                None
            }
        }
    }

    /// A list of texts, each with its place.
    pub fn list(&mut self, section: &Section<'_>, name: &str, example: &str) -> Option<Seen<Vec<Seen<String>>>> {
        let item = self.item(section, name)?;
        let Value::List(nodes) = &item.node.value else {
            self.wrong_type(&item, &format!("a list of texts, as in {example}"));
            return None;
        };
        if nodes.len() > LIST_MAX {
            self.wrong(&item.node.at, &item.path, format!("holds more than {LIST_MAX} items"));
            return None;
        }
        let mut texts = Vec::new();
        for node in nodes {
            match &node.value {
                Value::Text(text) => {
                    texts.push(Seen { value: text.clone(), at: node.at.clone(), path: item.path.clone() });
                }
                other => {
                    let message = format!("holds {}; write texts, as in {example}", other.kind());
                    self.wrong(&node.at, &item.path, message);
                }
            }
        }
        Self::seen(&item, texts)
    }

    /// `"any"`, `"unmetered"`, or a list of classes of uplinks and interface names, in one order whatever was written.
    pub fn carriers(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<Carriers>> {
        let item = self.item(section, name)?;
        let example = "\"any\", \"unmetered\" or a list such as [\"wifi\", \"eth0\"]";
        match &item.node.value {
            Value::Text(text) if text == "any" => return Self::seen(&item, Carriers::Any),
            Value::Text(text) if text == "unmetered" => return Self::seen(&item, Carriers::Unmetered),
            Value::List(_) => {}
            Value::Text(text) => {
                self.wrong(&item.node.at, &item.path, format!("\"{text}\" is unknown; write {example}"));
                return None;
            }
            _ => {
                self.wrong_type(&item, example);
                return None;
            }
        }
        let list = self.list(section, name, "[\"wifi\", \"eth0\"]")?;
        if list.value.is_empty() || list.value.len() > CARRIERS_MAX {
            self.wrong(&list.at, &list.path, format!("takes 1 to {CARRIERS_MAX} names; or write \"any\""));
            return None;
        }
        let mut selectors = Vec::new();
        for seen in list.value {
            let not = |_| format!("\"{}\" is no class (ethernet, wifi, cell) and no interface name", seen.value);
            let selector = self.checked(&seen.at, &seen.path, seen.value.parse::<Selector>().map_err(not))?;
            if let Selector::Name(name) = selector {
                class_in_disguise(self, &seen.at, &seen.path, name);
            }
            selectors.push(selector);
        }
        selectors.sort_unstable();
        selectors.dedup();
        Some(Seen { value: Carriers::Named(selectors), at: list.at, path: list.path })
    }

    /// `address:port`; `None` inside for `""`.
    pub fn address(&mut self, section: &Section<'_>, name: &str) -> Option<Seen<Option<SocketAddr>>> {
        let seen = self.text(section, name)?;
        if seen.value.is_empty() {
            return Some(Seen { value: None, at: seen.at, path: seen.path });
        }
        let hint = seen.value.replace("localhost", "127.0.0.1");
        let hint = if hint.contains(':') { hint } else { "127.0.0.1:1883".to_string() };
        let message = || {
            format!("\"{}\" is not an address with a port; write for example \"{hint}\", or \"\" for none", seen.value)
        };
        let address = seen.value.parse::<SocketAddr>().ok().filter(|address| address.port() != 0).ok_or_else(message);
        let address = self.checked(&seen.at, &seen.path, address)?;
        Some(Seen { value: Some(address), at: seen.at, path: seen.path })
    }

    /// A whole path to a readable file. `secret`: warned about when everybody may read it.
    pub fn file(&mut self, section: &Section<'_>, name: &str, secret: bool) -> Option<Seen<PathBuf>> {
        let seen = self.text(section, name)?;
        let path = Path::new(&seen.value);
        if !path.is_absolute() {
            self.wrong(&seen.at, &seen.path, format!("\"{}\" is not a whole path; begin it with \"/\"", seen.value));
            return None;
        }
        match fs::File::open(path).and_then(|file| file.metadata()) {
            Ok(meta) if !meta.is_file() => {
                self.wrong(&seen.at, &seen.path, format!("{} is not a file", seen.value));
            }
            Ok(meta) => {
                if secret && meta.permissions().mode() & 0o004 != 0 {
                    let message = format!("everybody may read {0}; write: chmod o= {0}", seen.value);
                    self.warn(&seen.at, &seen.path, message);
                }
                if meta.len() == 0 {
                    self.warn(&seen.at, &seen.path, format!("{} is empty", seen.value));
                }
            }
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                let message = format!("this user may not read {}; the user `switchback` must", seen.value);
                self.warn(&seen.at, &seen.path, message);
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.wrong(&seen.at, &seen.path, format!("there is no file {}", seen.value));
            }
            Err(error) => {
                self.wrong(&seen.at, &seen.path, format!("{} cannot be read: {error}", seen.value));
            }
        }
        Some(Seen { value: path.to_path_buf(), at: seen.at, path: seen.path })
    }
}
