//! JSON as D-Bus values, and back.
//!
//! An object is `a{sv}`, and null is a missing key, for D-Bus has no null. A key never changes its type: integers are
//! always `x`, an empty list keeps the type of a full one. What comes in is bounded before it is copied.

use std::collections::BTreeMap;

use serde_json::{Map, Value};
use zbus::{OwnedVariant, Signature, Variant};

use crate::api::base64;

/// `a{sv}`.
pub type Dict = BTreeMap<String, OwnedVariant>;

/// Options nested deeper than this are refused; ours are flat, or a list of texts.
const DEPTH_MAX: usize = 8;
/// Bytes of all texts in the options of one call: the largest payload in base 64, with room.
const OPTIONS_BYTES_MAX: usize = 1024 * 1024;
/// Keys that hold a list of objects: `aa{sv}` also when it is empty.
const OBJECT_LISTS: [&str; 4] = ["uplinks", "switches", "events", "set_aside"];

/// A text of the document; "" when absent.
pub fn text(document: &Map<String, Value>, key: &str) -> String {
    document.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A flag of the document; false when absent.
pub fn flag(document: &Map<String, Value>, key: &str) -> bool {
    document.get(key).and_then(Value::as_bool).unwrap_or(false)
}

/// An object of the document; empty when absent.
pub fn dict(document: &Map<String, Value>, key: &str) -> Dict {
    document.get(key).and_then(Value::as_object).cloned().map(to_dict).unwrap_or_default()
}

/// A list of objects of the document; empty when absent.
pub fn dicts(document: &Map<String, Value>, key: &str) -> Vec<Dict> {
    let items = document.get(key).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    items.iter().filter_map(Value::as_object).cloned().map(to_dict).collect()
}

/// JSON keys as `a{sv}`; null is a missing key.
pub fn to_dict(object: Map<String, Value>) -> Dict {
    let typed = |key: String, value: Value| {
        let empty = value.as_array().is_some_and(Vec::is_empty) && OBJECT_LISTS.contains(&key.as_str());
        let variant = if empty { Variant::from(Vec::<Dict>::new()).try_into().ok() } else { to_variant(value) };
        variant.map(|variant| (key, variant))
    };
    object.into_iter().filter_map(|(key, value)| typed(key, value)).collect()
}

/// Integers are `x` whatever their size, so that a key never changes its type; a list is `as`, `aa{sv}` or `av`.
fn to_variant(value: Value) -> Option<OwnedVariant> {
    let variant = match value {
        Value::Null => return None,
        Value::Bool(value) => Variant::from(value),
        Value::Number(value) => match (value.as_i64(), value.as_u64(), value.as_f64()) {
            (Some(value), _, _) => Variant::from(value),
            (None, Some(value), _) => Variant::from(value),
            (None, None, value) => Variant::from(value?),
        },
        Value::String(value) => Variant::from(value),
        Value::Object(object) => Variant::from(to_dict(object)),
        Value::Array(items) if items.iter().all(Value::is_string) => {
            let texts = items.into_iter().filter_map(|item| item.as_str().map(str::to_owned));
            Variant::from(texts.collect::<Vec<_>>())
        }
        Value::Array(items) if items.iter().all(Value::is_object) => {
            let objects = items.into_iter().filter_map(|item| match item {
                Value::Object(object) => Some(to_dict(object)),
                _ => None,
            });
            Variant::from(objects.collect::<Vec<_>>())
        }
        Value::Array(items) => Variant::from(items.into_iter().filter_map(to_variant).collect::<Vec<_>>()),
    };
    // Only a file descriptor can fail to be owned.
    OwnedVariant::try_from(variant).ok()
}

/// Options as JSON, or what is wrong with them. Bytes (`ay`) become text in base 64 under the key that says so.
pub fn to_json(options: &Dict) -> Result<Map<String, Value>, String> {
    let mut left = OPTIONS_BYTES_MAX;
    let one = |(key, value): (&String, &OwnedVariant)| {
        let wrong = |why| format!("option {key}: {why}");
        match bytes(value) {
            Some(bytes) => {
                left = left.checked_sub(bytes.len()).ok_or("more than 1 MiB").map_err(wrong)?;
                Ok((format!("{key}_base64"), Value::String(base64::encode(&bytes))))
            }
            None => Ok((key.clone(), to_value(value, DEPTH_MAX, &mut left).map_err(wrong)?)),
        }
    };
    options.iter().map(one).collect()
}

fn bytes(variant: &Variant<'_>) -> Option<Vec<u8>> {
    match variant {
        Variant::Array(items) if *items.element_signature() == Signature::U8 => {
            items.iter().map(|item| u8::try_from(item).ok()).collect()
        }
        _ => None,
    }
}

fn to_value(variant: &Variant<'_>, depth: usize, left: &mut usize) -> Result<Value, &'static str> {
    let depth = depth.checked_sub(1).ok_or("nested too deeply")?;
    // Every value costs something, so that a long list of nothing is not free.
    *left = left.checked_sub(8).ok_or("more than 1 MiB")?;
    let mut string = |text: &str| {
        *left = left.checked_sub(text.len()).ok_or("more than 1 MiB")?;
        Ok(Value::String(text.to_owned()))
    };
    match variant {
        Variant::Bool(value) => Ok(Value::from(*value)),
        Variant::U8(value) => Ok(Value::from(*value)),
        Variant::I16(value) => Ok(Value::from(*value)),
        Variant::U16(value) => Ok(Value::from(*value)),
        Variant::I32(value) => Ok(Value::from(*value)),
        Variant::U32(value) => Ok(Value::from(*value)),
        Variant::I64(value) => Ok(Value::from(*value)),
        Variant::U64(value) => Ok(Value::from(*value)),
        Variant::F64(value) => serde_json::Number::from_f64(*value).map(Value::Number).ok_or("not a finite number"),
        Variant::Str(value) => string(value.as_str()),
        Variant::ObjectPath(value) => string(value.as_str()),
        Variant::Variant(inner) => to_value(inner, depth, left),
        Variant::Array(items) => items.iter().map(|item| to_value(item, depth, left)).collect(),
        Variant::Dict(dict) => {
            let pairs = dict.iter().map(|(key, value)| match key {
                Variant::Str(key) => Ok((key.as_str().to_owned(), to_value(value, depth, left)?)),
                _ => Err("a key that is not text"),
            });
            Ok(Value::Object(pairs.collect::<Result<_, _>>()?))
        }
        Variant::Structure(_) | Variant::Signature(_) | Variant::Fd(_) => Err("a type that no option has"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn a_document_survives_the_way_over_the_bus_but_for_nulls() {
        let document = object(json!({
            "state": "online", "connected": true, "last_inbound_ms": 412, "next_attempt_ms": null,
            "session": {"id": 17, "rtt_ms": 31.5, "tls": null},
            "failover": {"stored": ["wifi", "cell"], "walk": [], "index": 0},
            "uplinks": [{"name": "wlan0", "usable": true}, {"name": "wwan0", "reason": null}],
        }));
        let expected = object(json!({
            "state": "online", "connected": true, "last_inbound_ms": 412,
            "session": {"id": 17, "rtt_ms": 31.5},
            "failover": {"stored": ["wifi", "cell"], "walk": [], "index": 0},
            "uplinks": [{"name": "wlan0", "usable": true}, {"name": "wwan0"}],
        }));
        assert_eq!(to_json(&to_dict(document)).unwrap(), expected);
    }

    #[test]
    fn options_that_no_verb_has_are_refused() {
        let refused = |value: Variant<'_>| {
            let options = Dict::from([("list".to_owned(), OwnedVariant::try_from(value).unwrap())]);
            to_json(&options).is_err()
        };
        assert!(refused(Variant::from(f64::NAN)));
        assert!(refused(Variant::from((1_u8, 2_u8))));
        assert!(refused(Variant::from("x".repeat(OPTIONS_BYTES_MAX))));
        assert!(refused(Variant::from(vec![0_u8; OPTIONS_BYTES_MAX + 1])));
        let deep = (0..20).fold(Variant::from(1_u8), |inner, _| Variant::Variant(Box::new(inner)));
        assert!(refused(deep));
        assert!(!refused(Variant::from(vec!["wifi", "cell"])));
    }

    #[test]
    fn bytes_go_as_base64_and_empty_lists_keep_their_type() {
        let options = Dict::from([("payload".to_owned(), Variant::from(vec![0_u8, 255]).try_into().unwrap())]);
        assert_eq!(to_json(&options).unwrap(), object(json!({"payload_base64": "AP8="})));
        let keys = to_dict(object(json!({"events": [], "walk": []})));
        assert_eq!(keys["events"].value_signature(), "aa{sv}");
        assert_eq!(keys["walk"].value_signature(), "as");
    }
}
