//! The laws of the house as a test.
//!
//! What the compiler does not enforce and a reviewer would have to look for every time: imports go down only, the heart
//! depends on nothing, every file says what it is, nothing can panic by a careless word, and names say something.

use std::fs;
use std::path::{Path, PathBuf};

/// A longer file explains itself in its first paragraph, or is split.
const LINES_MAX: usize = 400;
/// Words that name nothing.
const EMPTY_WORDS: [&str; 7] = ["manager", "handler", "helper", "util", "common", "misc", "service"];
/// The one place where `unsafe` may stand.
const UNSAFE_ALLOWED: &str = "src/io/socket.rs";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, by its path from the root, with its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut open = vec![root().join(folder)];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

/// The part of a file that is not its unit tests: what stands before the first module under `#[cfg(test)]`.
fn without_tests(text: &str) -> &str {
    let module = |at: &usize| text[*at..].lines().nth(1).is_some_and(|l| l.contains("mod ") && l.ends_with('{'));
    text.match_indices("#[cfg(test)]\n").map(|(at, _)| at).find(module).map_or(text, |at| &text[..at])
}

fn is_test_file(name: &str) -> bool {
    name.starts_with("tests/") || name.contains("/tests/") || name.ends_with("tests.rs")
}

fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    without_tests(text).lines().enumerate().map(|(n, l)| (n + 1, l)).filter(|(_, l)| !l.trim_start().starts_with("//"))
}

/// Lines of production code below `src` for which `bad` holds.
fn offences(bad: impl Fn(&str, &str) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    for (name, text) in sources("src").into_iter().filter(|(name, _)| !is_test_file(name)) {
        for (number, line) in code_lines(&text).filter(|(_, line)| bad(&name, line)) {
            found.push(format!("{name}:{number}: {}", line.trim()));
        }
    }
    found
}

#[test]
fn the_heart_depends_on_nothing() {
    let manifest = fs::read_to_string(root().join("src/control/Cargo.toml")).unwrap();
    let table: toml::Table = manifest.parse().unwrap();
    assert!(!table.contains_key("dependencies"), "the heart takes no crates");
    let lib = fs::read_to_string(root().join("src/control/lib.rs")).unwrap();
    assert!(lib.contains("#![no_std]") && lib.contains("#![forbid(unsafe_code)]"));
}

#[test]
fn the_heart_uses_no_floating_point() {
    let found =
        offences(|name, line| name.starts_with("src/control/") && (line.contains("f64") || line.contains("f32")));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn imports_go_down_only() {
    let above = |name: &str| -> &[&str] {
        if name.starts_with("src/control/") {
            &["switchback", "std"]
        } else if name.starts_with("src/outbox/") {
            &["crate::io", "crate::api", "crate::corridor", "crate::daemon", "crate::config", "tokio", "zbus"]
        } else if name.starts_with("src/io/") {
            &["crate::daemon", "crate::desk", "crate::journal", "crate::picture"]
        } else {
            &[]
        }
    };
    let found = offences(|name, line| {
        let line = line.trim_start();
        line.starts_with("use ") && above(name).iter().any(|a| line.starts_with(&format!("use {a}::")))
    });
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn no_adapter_reads_another() {
    // What adapters share is not an adapter: packets, clocks, sockets and what is below them.
    let shared = ["packet", "clock", "socket", "tls", "resolver", "stagger", "Events"];
    let found = offences(|name, line| {
        let Some(own) = name.strip_prefix("src/io/").and_then(|n| n.split(['/', '.']).next()) else { return false };
        let Some(other) = line.trim_start().strip_prefix("use crate::io::") else { return false };
        let other = other.split([':', ';', '{', ' ']).next().unwrap_or_default();
        !other.is_empty() && other != own && !shared.contains(&other)
    });
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn every_file_says_what_it_is() {
    let all = sources("src").into_iter().chain(sources("tests"));
    let silent: Vec<String> =
        all.filter(|(_, text)| !text.trim_start().starts_with("//!")).map(|(name, _)| name).collect();
    assert_eq!(silent, Vec::<String>::new(), "these files open without a word");
}

#[test]
fn nothing_panics_by_a_careless_word() {
    let words = [".unwrap()", ".expect(", "panic!(", "unreachable!(", "todo!(", "unimplemented!("];
    let found = offences(|_, line| words.iter().any(|word| line.contains(word)));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn unsafe_stands_in_one_place() {
    let found = offences(|name, line| name != UNSAFE_ALLOWED && line.contains("unsafe ") && line.contains('{'));
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn names_say_something() {
    let empty = |path: &Path| {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        stem.split('_').any(|word| EMPTY_WORDS.contains(&word)) && stem != "network_manager"
    };
    let found: Vec<String> =
        sources("src").into_iter().map(|(name, _)| name).filter(|name| empty(Path::new(name))).collect();
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn long_files_explain_themselves() {
    let explained = |text: &str| text.lines().take_while(|l| l.starts_with("//!")).any(|l| l.contains("long"));
    let found: Vec<String> = sources("src")
        .into_iter()
        .filter(|(name, text)| {
            !is_test_file(name) && without_tests(text).lines().count() > LINES_MAX && !explained(text)
        })
        .map(|(name, text)| format!("{name}: {} lines", without_tests(&text).lines().count()))
        .collect();
    assert_eq!(found, Vec::<String>::new(), "split these, or say in their first paragraph why they are so long");
}

#[test]
fn every_dependency_has_its_reason() {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let dependencies = manifest.split("[dependencies]").nth(1).unwrap().split("\n[").next().unwrap();
    let mut before = "";
    for line in dependencies.lines().filter(|l| !l.trim().is_empty()) {
        let own = line.starts_with("switchback-control");
        let grouped = before.starts_with('#') || !before.is_empty();
        assert!(line.starts_with('#') || own || grouped, "no reason for: {line}");
        before = line;
    }
}
