//! The status document as a page for people.
//!
//! Whatever is in the document is shown, so that a new key needs no change here; every text is escaped; nothing is
//! fetched from elsewhere and nothing runs.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// The page: everything in the document, nothing from elsewhere, drawn afresh every five seconds.
pub fn text(document: &Map<String, Value>) -> String {
    let state = escape(&word(document.get("state")));
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta http-equiv=\"refresh\" content=\"5\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>{state} - switchback</title>\n<style>\
         body{{font:16px/1.4 sans-serif;margin:2em;max-width:70em}}\
         table{{border-collapse:collapse;margin:1em 0;display:block;overflow-x:auto}}\
         th,td{{text-align:left;padding:.2em 1em .2em 0;border-bottom:1px solid #ccc;vertical-align:top}}\
         .yes{{color:#060}}.no{{color:#a00}}\
         @media(prefers-color-scheme:dark){{body{{background:#111;color:#ddd}}.yes{{color:#6c6}}.no{{color:#f66}}}}\
         </style></head>\n<body><h1 class=\"{}\">{state}</h1>\n",
        if document.get("connected").and_then(Value::as_bool) == Some(true) { "yes" } else { "no" },
    );
    let (mut tables, facts): (Vec<_>, Vec<_>) =
        document.iter().partition(|(_, v)| v.is_object() || objects(v).is_some());
    // What people look for first comes first.
    tables.sort_by_key(|(key, _)| ["uplinks", "session", "outbox"].iter().position(|first| first == key).unwrap_or(3));
    rows(&mut page, facts.into_iter().filter(|(key, _)| *key != "state"));
    for (key, value) in tables {
        let _ = writeln!(page, "<h2>{}</h2>", label(key));
        match (value, objects(value)) {
            (_, Some(items)) => columns(&mut page, &items),
            (Value::Object(object), None) => {
                let (nested, flat): (Vec<_>, Vec<_>) =
                    object.iter().partition(|(_, value)| named_objects(value).is_some());
                rows(&mut page, flat.into_iter());
                for (key, items) in nested.into_iter().filter_map(|(key, value)| Some((key, named_objects(value)?))) {
                    let _ = writeln!(page, "<h3>{}</h3>", label(key));
                    columns(&mut page, &items.iter().collect::<Vec<_>>());
                }
            }
            (_, None) => {}
        }
    }
    page.push_str("<p><a href=\"/status.json\">status.json</a> <a href=\"/metrics\">metrics</a></p></body></html>\n");
    page
}

/// The items of a list that holds objects and nothing else.
fn objects(value: &Value) -> Option<Vec<&Map<String, Value>>> {
    let items = value.as_array().filter(|items| !items.is_empty())?;
    items.iter().map(Value::as_object).collect()
}

/// The objects of an object that holds objects and nothing else, each with its key as its name.
fn named_objects(value: &Value) -> Option<Vec<Map<String, Value>>> {
    let items = value.as_object().filter(|items| !items.is_empty())?;
    let named = |(name, item): (&String, &Value)| {
        let mut item = item.as_object()?.clone();
        item.insert("name".into(), name.as_str().into());
        Some(item)
    };
    items.iter().map(named).collect()
}

/// One row a key.
fn rows<'d>(page: &mut String, pairs: impl Iterator<Item = (&'d String, &'d Value)>) {
    page.push_str("<table>");
    for (key, value) in pairs {
        let _ = writeln!(page, "<tr><th>{}</th><td>{}</td></tr>", label(key), cell(key, value));
    }
    page.push_str("</table>\n");
}

/// One row an object, one column a key; the first object's keys are everybody's, name first.
fn columns(page: &mut String, items: &[&Map<String, Value>]) {
    let mut keys: Vec<&String> = items.first().map(|first| first.keys().collect()).unwrap_or_default();
    keys.sort_by_key(|key| (*key != "name", *key != "class", *key != "step"));
    page.push_str("<table><tr>");
    keys.iter().for_each(|key| page.push_str(&format!("<th>{}</th>", label(key))));
    page.push_str("</tr>\n");
    for item in items {
        page.push_str("<tr>");
        for key in &keys {
            let _ = write!(page, "<td>{}</td>", item.get(*key).map_or_else(String::new, |value| cell(key, value)));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</table>\n");
}

/// Keys that stay in milliseconds: a round trip is too short for seconds.
fn stays_millis(key: &str) -> bool {
    key.ends_with("rtt_ms")
}

/// A key for people; a unit that `cell` writes behind the number goes.
fn label(key: &str) -> String {
    let stem = key.strip_suffix("_s").or_else(|| key.strip_suffix("_ms").filter(|_| !stays_millis(key)));
    escape(&stem.unwrap_or(key).replace('_', " "))
}

/// A value for people: milliseconds as seconds from one second on, nothing as a dash.
fn cell(key: &str, value: &Value) -> String {
    match value {
        Value::Number(number) if key.ends_with("_ms") && !stays_millis(key) => {
            number.as_f64().map_or_else(String::new, |millis| match millis < 1000.0 {
                true => format!("{millis:.0} ms"),
                false => format!("{:.1} s", millis / 1000.0),
            })
        }
        Value::Number(number) if key.ends_with("_s") => format!("{number} s"),
        Value::Array(items) => escape(&items.iter().map(|item| word(Some(item))).collect::<Vec<_>>().join(", ")),
        Value::Object(object) => {
            let pairs = object.iter().map(|(key, value)| format!("{key} {}", word(Some(value))));
            escape(&pairs.collect::<Vec<_>>().join(", "))
        }
        value => escape(&word(Some(value))),
    }
}

/// A value as one word.
pub fn word(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "-".into(),
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(true)) => "yes".into(),
        Some(Value::Bool(false)) => "no".into(),
        Some(other) => other.to_string(),
    }
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '&' => safe.push_str("&amp;"),
            '"' => safe.push_str("&quot;"),
            letter => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_page_shows_everything_and_runs_nothing() {
        let document = json!({
            "state": "<script>", "connected": false, "last_inbound_ms": 1500, "class": null,
            "uplinks": [{"class": "wifi", "name": "wlan0 & co", "rtt_ms": 31.5}],
            "outbox": {"messages": 3, "classes": {"normal": {"messages": 3, "oldest_s": 7}}},
            "last_switch": {"switch_ms": 42, "pause_ms": null},
        });
        let page = text(document.as_object().unwrap());
        assert!(!page.contains("<script>"), "{page}");
        assert!(
            page.contains("&lt;script&gt;")
                && page.contains("<th>last inbound</th><td>1.5 s</td>")
                && page.contains("wlan0 &amp; co"),
            "{page}"
        );
        assert!(page.contains("<th>switch</th><td>42 ms</td>"), "{page}");
        assert!(page.contains("<th>name</th><th>class</th>") && page.contains("<h3>classes</h3>"), "{page}");
        assert!(page.contains("<td>normal</td><td>3</td><td>7 s</td>"), "{page}");
        assert!(!page.contains("http://") && !page.contains("https://"), "{page}");
    }
}
