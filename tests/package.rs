//! The package: what people read and type is held to the programs and to the configuration, so that no verb, option, key
//! or word can be forgotten. How it is built and installed is checked by `packaging/test`.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

use switchback::config::SHIPPED;
use switchback::control::Reason;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn read(name: &str) -> String {
    fs::read_to_string(format!("{ROOT}/{name}")).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn output(command: &mut Command) -> String {
    let done = command.output().unwrap();
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

fn help(program: &str) -> String {
    output(Command::new(program).arg("--help"))
}

/// What `switchback --help` lists: the word at the beginning of an entry.
fn verbs() -> BTreeSet<String> {
    let entry = |line: &str| {
        let word = line.strip_prefix("  ")?.split(' ').next()?;
        word.starts_with(|c: char| c.is_ascii_lowercase()).then(|| word.to_string())
    };
    let found: BTreeSet<String> = help(env!("CARGO_BIN_EXE_switchback")).lines().filter_map(entry).collect();
    assert!(found.contains("status") && found.len() > 8, "{found:?}");
    found
}

/// Every `--option` in a text, without the dashes.
fn options(text: &str) -> BTreeSet<String> {
    let name = |rest: &str| rest.split(|c: char| !(c.is_ascii_lowercase() || c == '-')).next().unwrap().to_string();
    text.match_indices("--").map(|(at, _)| name(&text[at + 2..])).filter(|name| !name.is_empty()).collect()
}

/// The words of a text, as completions write them: `'failback:go back` holds the word `failback`.
fn words(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || "-_".contains(c))).collect()
}

#[test]
fn the_manual_of_the_command_line_has_every_verb_option_and_reason() {
    let page = read("packaging/man/switchback.1");
    for verb in verbs() {
        assert!(page.contains(&format!("Ic {verb}")), "no {verb} in switchback(1)");
    }
    for option in options(&help(env!("CARGO_BIN_EXE_switchback"))) {
        assert!(page.contains(&format!("Fl -{option}")), "no --{option} in switchback(1)");
    }
    for reason in Reason::ALL {
        let shown = page
            .lines()
            .any(|l| l.starts_with(".It Li") && l.replace(',', "").split(' ').any(|w| w == reason.as_str()));
        assert!(shown, "no {reason} in switchback(1)");
    }
}

#[test]
fn the_manual_of_the_daemon_has_every_option() {
    let page = read("packaging/man/switchbackd.8");
    for option in options(&help(env!("CARGO_BIN_EXE_switchbackd"))) {
        assert!(page.contains(&format!("Fl -{option}")), "no --{option} in switchbackd(8)");
    }
}

#[test]
fn the_manual_of_the_configuration_has_every_key_below_its_section() {
    let page = output(&mut Command::new(format!("{ROOT}/packaging/manual")));
    let mut rest = page.as_str();
    let mut keys = 0;
    // In the order of the file, each where the one before ended: none can stand in for another of the same name.
    for line in SHIPPED.lines() {
        let bare = line.trim_start_matches("#:").trim_start_matches('#').trim_start();
        let key = bare
            .split_once(" = ")
            .map(|(key, _)| key)
            .filter(|key| key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        let shown = match key {
            Some(key) => vec![format!(".It Ic \\&{key} No"), format!("\n{key} = "), format!("\n\\fI{key} = ")],
            None if bare.starts_with('[') && bare.ends_with(']') => vec![format!(".Ss \\&{bare}\n")],
            None => continue,
        };
        let at = shown.iter().filter_map(|form| rest.find(form)).min();
        rest = &rest[at.unwrap_or_else(|| panic!("switchback.toml(5) has no {bare}"))..][1..];
        keys += usize::from(key.is_some());
    }
    assert!(keys > 60, "{keys}");
}

#[test]
fn completions_know_every_verb_and_option() {
    let help = help(env!("CARGO_BIN_EXE_switchback"));
    for shell in ["bash", "zsh", "fish"] {
        let text = read(&format!("packaging/completions/switchback.{shell}"));
        let known = words(&text);
        for verb in verbs() {
            assert!(known.contains(verb.as_str()), "{shell} does not complete {verb}");
        }
        for option in options(&help) {
            let shown = if shell == "fish" {
                text.contains(&format!("-l {option} "))
            } else {
                known.contains(format!("--{option}").as_str())
            };
            assert!(shown, "{shell} does not complete --{option}");
        }
    }
}

#[test]
fn bash_completes_what_was_begun() {
    let complete = |typed: &[&str]| {
        let script =
            "source \"$0\"; COMP_WORDS=(switchback \"$@\"); COMP_CWORD=$#; _switchback; echo \"${COMPREPLY[*]}\"";
        let file = format!("{ROOT}/packaging/completions/switchback.bash");
        output(Command::new("bash").args(["--norc", "-c", script, &file]).args(typed)).trim_end().to_string()
    };
    for verb in verbs() {
        assert!(complete(&[&verb[..3]]).split(' ').any(|word| word == verb), "{verb}");
    }
    assert_eq!(complete(&["failover", "s"]), "show set");
    assert_eq!(complete(&["failover", "set", "e"]).split(' ').next(), Some("ethernet"));
    assert_eq!(complete(&["publish", "--wait", "a"]), "acked");
    assert_eq!(complete(&["--runtime-dir", "/run/x", "status", "--w"]), "--watch");
    assert_eq!(complete(&["status", "--f"]), "");
}

#[test]
fn the_daemon_called_switchback_is_the_command_line() {
    let place = tempfile::tempdir().unwrap();
    let name = place.path().join("switchback");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_switchbackd"), &name).unwrap();
    assert_eq!(help(name.to_str().unwrap()), help(env!("CARGO_BIN_EXE_switchback")));
}

#[test]
fn the_changelog_begins_with_this_version() {
    let first = format!("switchback ({}) ", env!("CARGO_PKG_VERSION"));
    assert!(read("packaging/changelog").starts_with(&first), "packaging/changelog does not begin with {first}");
}
