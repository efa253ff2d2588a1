//! A copy of another service's D-Bus objects, kept by its own signals.
//!
//! Filled from one `GetManagedObjects` and kept true by `InterfacesAdded`, `InterfacesRemoved` and
//! `PropertiesChanged` (D-Bus specification, standard interfaces). Holds only the properties that are wanted,
//! so that a hundred access points in range cost little. Knows nothing of what the properties mean.

use std::collections::{BTreeMap, HashMap};

use zbus::Message;
use zbus::{OwnedObjectPath, OwnedVariant, Variant};

/// Most objects kept of one service: far above what a gateway has (each access point in range is one).
pub const OBJECTS_MAX: usize = 2048;

/// What to keep: interfaces and their properties.
pub type Wanted = &'static [(&'static str, &'static [&'static str])];

type Interfaces = HashMap<String, HashMap<String, OwnedVariant>>;
type Kept = BTreeMap<&'static str, BTreeMap<&'static str, OwnedVariant>>;

/// The objects by path.
pub struct Mirror {
    wanted: Wanted,
    objects: BTreeMap<String, Kept>,
}

impl Mirror {
    pub fn new(wanted: Wanted) -> Mirror {
        Mirror { wanted, objects: BTreeMap::new() }
    }

    /// Forgets everything: the service is gone, and its paths may come back for other things.
    pub fn clear(&mut self) {
        self.objects.clear();
    }

    /// Takes the answer to `GetManagedObjects` in place of all that was known. False when it is no such answer.
    pub fn fill(&mut self, answer: &Message) -> bool {
        let Ok(all) = answer.body().deserialize::<HashMap<OwnedObjectPath, Interfaces>>() else { return false };
        self.objects.clear();
        all.into_iter().for_each(|(path, interfaces)| self.add(path.as_str(), interfaces));
        true
    }

    /// Takes one signal of the service; true when something we keep changed.
    pub fn apply(&mut self, signal: &Message) -> bool {
        let header = signal.header();
        let body = signal.body();
        match header.member().map(|member| member.as_str()) {
            Some("InterfacesAdded") => {
                let Ok((path, interfaces)) = body.deserialize::<(OwnedObjectPath, Interfaces)>() else { return false };
                self.add(path.as_str(), interfaces);
                true
            }
            Some("InterfacesRemoved") => {
                let Ok((path, gone)) = body.deserialize::<(OwnedObjectPath, Vec<String>)>() else { return false };
                self.remove(path.as_str(), &gone);
                true
            }
            Some("PropertiesChanged") => {
                let Ok((interface, new, stale)) =
                    body.deserialize::<(String, HashMap<String, OwnedVariant>, Vec<String>)>()
                else {
                    return false;
                };
                header.path().is_some_and(|path| self.change(path.as_str(), &interface, new, &stale))
            }
            _ => false,
        }
    }

    /// One property; `None` when the object, interface or property is not there.
    pub fn get(&self, path: &str, interface: &str, property: &str) -> Option<&Variant<'static>> {
        Some(self.objects.get(path)?.get(interface)?.get(property)?)
    }

    pub fn text(&self, path: &str, interface: &str, property: &str) -> Option<&str> {
        match self.get(path, interface, property)? {
            Variant::Str(text) => Some(text.as_str()),
            Variant::ObjectPath(path) => Some(path.as_str()),
            _ => None,
        }
    }

    /// An object path property that points somewhere; D-Bus says `/` for nothing.
    pub fn link(&self, path: &str, interface: &str, property: &str) -> Option<&str> {
        self.text(path, interface, property).filter(|target| *target != "/" && !target.is_empty())
    }

    pub fn number(&self, path: &str, interface: &str, property: &str) -> Option<i64> {
        number(self.get(path, interface, property)?)
    }

    pub fn flag(&self, path: &str, interface: &str, property: &str) -> Option<bool> {
        match self.get(path, interface, property)? {
            Variant::Bool(flag) => Some(*flag),
            _ => None,
        }
    }

    /// The items of an array property; empty when it is not there.
    pub fn items(&self, path: &str, interface: &str, property: &str) -> &[Variant<'static>] {
        match self.get(path, interface, property) {
            Some(Variant::Array(array)) => array.inner(),
            _ => &[],
        }
    }

    /// Paths of all objects with this interface.
    pub fn with<'a>(&'a self, interface: &'a str) -> impl Iterator<Item = &'a str> {
        self.objects.iter().filter(move |(_, kept)| kept.contains_key(interface)).map(|(path, _)| path.as_str())
    }

    fn add(&mut self, path: &str, interfaces: Interfaces) {
        let mut wanted: Vec<_> = Vec::new();
        for (interface, properties) in interfaces {
            if let Some((interface, names)) = self.wanted.iter().find(|(name, _)| *name == interface) {
                wanted.push((*interface, keep(names, properties)));
            }
        }
        if wanted.is_empty() || (self.objects.len() >= OBJECTS_MAX && !self.objects.contains_key(path)) {
            return;
        }
        self.objects.entry(path.to_owned()).or_default().extend(wanted);
    }

    fn remove(&mut self, path: &str, interfaces: &[String]) {
        if let Some(kept) = self.objects.get_mut(path) {
            kept.retain(|interface, _| !interfaces.iter().any(|gone| gone == interface));
            if kept.is_empty() {
                self.objects.remove(path);
            }
        }
    }

    fn change(&mut self, path: &str, interface: &str, new: HashMap<String, OwnedVariant>, stale: &[String]) -> bool {
        let Some((_, names)) = self.wanted.iter().find(|(name, _)| *name == interface) else { return false };
        let Some(kept) = self.objects.get_mut(path).and_then(|object| object.get_mut(interface)) else { return false };
        let new = keep(names, new);
        let before = kept.len();
        kept.retain(|name, _| !stale.iter().any(|gone| gone == name));
        let changed = !new.is_empty() || kept.len() != before;
        kept.extend(new);
        changed
    }
}

/// Any integer, through variants.
pub fn number(value: &Variant<'_>) -> Option<i64> {
    match value {
        Variant::U8(n) => Some(i64::from(*n)),
        Variant::I16(n) => Some(i64::from(*n)),
        Variant::U16(n) => Some(i64::from(*n)),
        Variant::I32(n) => Some(i64::from(*n)),
        Variant::U32(n) => Some(i64::from(*n)),
        Variant::I64(n) => Some(*n),
        Variant::Variant(inner) => number(inner),
        _ => None,
    }
}

/// Any text, through variants.
pub fn text<'a>(value: &'a Variant<'_>) -> Option<&'a str> {
    match value {
        Variant::Str(text) => Some(text.as_str()),
        Variant::Variant(inner) => text(inner),
        _ => None,
    }
}

fn keep(names: &[&'static str], mut properties: HashMap<String, OwnedVariant>) -> BTreeMap<&'static str, OwnedVariant> {
    names.iter().filter_map(|name| Some((*name, properties.remove(*name)?))).collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use zbus::OwnedVariant;

    pub(crate) type Objects<'a> = &'a [(&'a str, &'a str, &'a [(&'a str, Variant<'static>)])];

    fn properties(all: &[(&str, Variant<'static>)]) -> HashMap<String, OwnedVariant> {
        all.iter().map(|(name, value)| ((*name).to_owned(), value.try_to_owned().unwrap())).collect()
    }

    /// The answer to `GetManagedObjects`.
    pub(crate) fn objects(all: Objects) -> Message {
        let mut body: HashMap<OwnedObjectPath, Interfaces> = HashMap::new();
        for (path, interface, values) in all {
            let path = OwnedObjectPath::try_from(*path).unwrap();
            body.entry(path).or_default().insert((*interface).to_owned(), properties(values));
        }
        let call = Message::method_call("/x", "GetManagedObjects").build(&()).unwrap();
        Message::method_return(&call.header()).build(&body).unwrap()
    }

    /// A `PropertiesChanged`.
    pub(crate) fn changed(path: &str, interface: &str, new: &[(&str, Variant<'static>)], stale: &[&str]) -> Message {
        let body = (interface, properties(new), stale.to_vec());
        Message::signal(path, "org.freedesktop.DBus.Properties", "PropertiesChanged").build(&body).unwrap()
    }

    const WANTED: Wanted = &[("a.Thing", &["Size", "Word"]), ("a.Other", &["Size"])];

    fn mirror() -> Mirror {
        let mut mirror = Mirror::new(WANTED);
        assert!(mirror.fill(&objects(&[
            ("/1", "a.Thing", &[("Size", 1u32.into()), ("Word", "one".into()), ("Noise", 9u32.into())]),
            ("/2", "a.Noise", &[("Size", 2u32.into())]),
        ])));
        mirror
    }

    #[test]
    fn only_what_is_wanted_is_kept() {
        let mirror = mirror();
        assert_eq!(mirror.number("/1", "a.Thing", "Size"), Some(1));
        assert_eq!(mirror.text("/1", "a.Thing", "Word"), Some("one"));
        assert!(mirror.get("/1", "a.Thing", "Noise").is_none());
        assert!(!mirror.objects.contains_key("/2"));
    }

    #[test]
    fn a_change_is_followed_and_noise_is_no_change() {
        let mut mirror = mirror();
        assert!(mirror.apply(&changed("/1", "a.Thing", &[("Size", 5u32.into())], &["Word"])));
        assert_eq!(mirror.number("/1", "a.Thing", "Size"), Some(5));
        assert_eq!(mirror.text("/1", "a.Thing", "Word"), None);
        assert!(!mirror.apply(&changed("/1", "a.Thing", &[("Noise", 5u32.into())], &[])));
        assert!(!mirror.apply(&changed("/9", "a.Thing", &[("Size", 5u32.into())], &[])), "an object nobody announced");
    }

    #[test]
    fn objects_come_and_go_by_interface() {
        let mut mirror = mirror();
        let interfaces: Interfaces = [("a.Other".to_owned(), properties(&[("Size", 7u32.into())]))].into();
        let path = OwnedObjectPath::try_from("/1").unwrap();
        let manager = "org.freedesktop.DBus.ObjectManager";
        let added = Message::signal("/", manager, "InterfacesAdded").build(&(&path, interfaces)).unwrap();
        assert!(mirror.apply(&added));
        assert_eq!(mirror.number("/1", "a.Other", "Size"), Some(7));
        let removed =
            |gone: &str| Message::signal("/", manager, "InterfacesRemoved").build(&(&path, vec![gone])).unwrap();
        assert!(mirror.apply(&removed("a.Thing")));
        assert_eq!(mirror.with("a.Other").count(), 1);
        assert!(mirror.apply(&removed("a.Other")));
        assert!(mirror.objects.is_empty());
    }

    #[test]
    fn an_answer_of_another_shape_is_no_list() {
        let call = Message::method_call("/x", "GetManagedObjects").build(&()).unwrap();
        let mut mirror = mirror();
        assert!(!mirror.fill(&Message::method_return(&call.header()).build(&"no").unwrap()));
        assert!(!mirror.apply(&Message::signal("/1", "a.B", "PropertiesChanged").build(&3u32).unwrap()));
    }
}
