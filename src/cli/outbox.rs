//! `outbox` and `reset`: what waits, in a table, and giving it up.
//!
//! What loses messages asks first, on a terminal; where nobody can be asked, `--yes` must say it. Words are made as in
//! `render`: what is missing is a dash, never an error.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::arguments::Arguments;
use super::render::{self, Table, clock, count, plain, size, span};
use super::{Output, Problem, ask, object};

/// Letters of an answer on the terminal that are read.
const ANSWER_MAX: u64 = 80;

/// `outbox` and what stands behind it.
pub fn outbox(arguments: &Arguments, words: &[&str], output: &mut Output<'_>) -> Result<u8, Problem> {
    match words {
        [] | ["show"] => show(arguments, output),
        ["drop", class] => give_up(arguments, class, output),
        ["drop", ..] => Err(Problem::usage("outbox drop takes one class, or all, or rejected")),
        [other, ..] => Err(Problem::usage(format!("outbox {other}: write show or drop CLASS|all|rejected"))),
    }
}

/// `reset` and what stands behind it.
pub fn reset(arguments: &Arguments, words: &[&str], output: &mut Output<'_>) -> Result<u8, Problem> {
    match words {
        [what @ ("outbox" | "failover" | "all")] => forget(arguments, what, output),
        _ => Err(Problem::usage("reset takes one of outbox, failover, all")),
    }
}

fn show(arguments: &Arguments, output: &mut Output<'_>) -> Result<u8, Problem> {
    let document = ask(arguments, "outbox-show", Map::new(), Duration::ZERO)?;
    output.answer(&document, table)?;
    Ok(0)
}

fn give_up(arguments: &Arguments, class: &str, output: &mut Output<'_>) -> Result<u8, Problem> {
    let what = match class {
        "all" => "everything that waits".to_string(),
        "rejected" => "what was set aside".to_string(),
        class => format!("what waits of class {class}"),
    };
    confirm(arguments, &format!("Give up {what}? Its applications were told that it is kept."))?;
    let document = ask(arguments, "outbox-drop", object(json!({ "class": class })), Duration::ZERO)?;
    output.answer(&document, dropped)?;
    Ok(0)
}

fn forget(arguments: &Arguments, what: &str, output: &mut Output<'_>) -> Result<u8, Problem> {
    if what != "failover" {
        confirm(arguments, "Give up everything that waits or was set aside? Applications were told that it is kept.")?;
    }
    let document = ask(arguments, "reset", object(json!({ "what": what })), Duration::ZERO)?;
    output.answer(&document, |document| match what {
        "failover" => render::failover(document),
        _ => dropped(document),
    })?;
    Ok(0)
}

/// Asks on the terminal, as apt does; without one, `--yes` must say it.
fn confirm(arguments: &Arguments, question: &str) -> Result<(), Problem> {
    if arguments.yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        return Err(Problem::new(1, "not done: this loses messages; write --yes where nobody can be asked"));
    }
    let _ = write!(io::stderr(), "{question} [y/N] ");
    let mut line = String::new();
    let read = io::stdin().lock().take(ANSWER_MAX).read_line(&mut line);
    match read.map(|_| line.trim().to_ascii_lowercase()) {
        Ok(answer) if answer == "y" || answer == "yes" => Ok(()),
        Ok(_) | Err(_) => Err(Problem::new(1, "not done")),
    }
}

/// The classes in which something waits or was given up; none where the line above says it all.
pub fn lively_classes(classes: &Value) -> Vec<(String, String)> {
    let mut lively = Vec::new();
    let mut more = false;
    for (name, class) in by_priority(classes) {
        let number = |key: &str| class[key].as_u64().unwrap_or(0);
        let mut parts = Vec::new();
        if number("messages") > 0 {
            parts.push(count(number("messages"), "message"));
            parts.extend(
                class["oldest_s"].as_u64().map(|seconds| format!("oldest {}", span(seconds.saturating_mul(1000)))),
            );
        }
        for (key, word) in [
            ("held", "held for another uplink"),
            ("dropped", "dropped"),
            ("expired", "expired"),
            ("refused", "refused"),
            ("rejected", "rejected"),
        ] {
            if number(key) > 0 {
                parts.push(format!("{} {word}", number(key)));
                more = true;
            }
        }
        if !parts.is_empty() {
            more |= name != "normal";
            lively.push((name, parts.join(", ")));
        }
    }
    if more { lively } else { Vec::new() }
}

/// Classes, what goes first first.
fn by_priority(classes: &Value) -> Vec<(String, &Value)> {
    let all = classes.as_object().into_iter().flatten();
    let mut classes: Vec<(String, &Value)> = all.map(|(name, class)| (plain(&name.as_str().into()), class)).collect();
    classes.sort_by_key(|(_, class)| std::cmp::Reverse(class["priority"].as_u64()));
    classes
}

/// The classes, and what was set aside.
fn table(document: &Value) -> String {
    let mut table = Table::new(&[
        "CLASS",
        "MESSAGES",
        "SIZE",
        "OLDEST",
        "IN FLIGHT",
        "HELD",
        "DROPPED",
        "EXPIRED",
        "REFUSED",
        "REJECTED",
        "KEPT IN",
    ]);
    for (name, class) in by_priority(&document["classes"]) {
        let number = |key: &str| class[key].as_u64().unwrap_or(0);
        let some = |key: &str| if number(key) > 0 { number(key).to_string() } else { "-".into() };
        let oldest = class["oldest_s"].as_u64().filter(|_| number("messages") > 0);
        table.row(vec![
            name,
            number("messages").to_string(),
            size(number("bytes")),
            oldest.map_or("-".into(), |seconds| span(seconds.saturating_mul(1000))),
            number("in_flight").to_string(),
            some("held"),
            some("dropped"),
            some("expired"),
            some("refused"),
            some("rejected"),
            if class["memory"] == true { "memory".into() } else { "disk".into() },
        ]);
    }
    let mut out = table.text(false);
    if by_priority(&document["classes"]).iter().any(|(_, class)| class["held"].as_u64().unwrap_or(0) > 0) {
        out += "held: the present uplink may not carry it\n";
    }
    let none = Vec::new();
    let aside = document["set_aside"].as_array().unwrap_or(&none);
    if !aside.is_empty() {
        out += &format!(
            "\nset aside, because the server will never take them ({}):\n",
            count(aside.len() as u64, "message")
        );
        let mut table = Table::new(&["WHEN", "CLASS", "TOPIC", "SIZE", "WHY"]);
        for message in aside {
            let bytes = message["bytes"].as_u64().map_or("-".into(), size);
            table.row(vec![
                message["time"].as_str().and_then(|time| time.parse().ok()).map_or("-".into(), clock),
                plain(&message["class"]),
                plain(&message["topic"]),
                bytes,
                plain(&message["why"]),
            ]);
        }
        out += &table.text(false);
        out += "`switchback outbox drop rejected` forgets them\n";
    }
    out
}

/// `outbox drop` and `reset`.
fn dropped(document: &Value) -> String {
    let number = |key: &str| document[key].as_u64().unwrap_or(0);
    let way = match number("in_flight") {
        0 => String::new(),
        some => format!("; {some} in flight go their way"),
    };
    format!("{} dropped{way}\n", count(number("messages"), "message"))
}
