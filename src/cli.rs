//! The command line: arguments in, one request to the daemon, words for people or JSON for scripts out.
//!
//! Speaks only the control socket; `config` verbs need no daemon at all, and `doctor` looks for itself. Exit status: 0 done, 1 the thing asked for did
//! not happen, 2 wrong usage or bad configuration, 3 the daemon is not running. `arguments` reads what was typed,
//! `client` speaks with the daemon, `local` does what needs none, `outbox` what loses messages, `render` makes words. Nothing here panics on a closed
//! pipe or on what a daemon of another version says.

mod arguments;
mod client;
mod local;
mod outbox;
mod render;

use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use crate::api::{FLUSH_TIMEOUT, PAYLOAD_MAX, PUBLISH_TIMEOUT, RETURN_TIMEOUT, TIMEOUT_MAX, base64};
use crate::config::{DEFAULT_PATH, nearest, parse_duration};
use crate::doctor::{self, Patient};
use arguments::Arguments;
use client::Client;

/// Where the daemon listens, unless told otherwise.
pub const RUNTIME_DIR: &str = "/run/switchback";

/// Where the daemon keeps its state, unless told otherwise.
const STATE_DIR: &str = "/var/lib/switchback";

/// How long the daemon may take beyond what the verb itself may take.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often a live screen is drawn again when nothing happened, so that ages grow.
const REDRAW: Duration = Duration::from_secs(1);

/// Why the command line ends without having done what was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The exit status.
    pub code: u8,
    pub message: String,
    pub reason: Option<String>,
}

impl Problem {
    fn new(code: u8, message: impl Into<String>) -> Problem {
        Problem { code, message: message.into(), reason: None }
    }

    fn usage(message: impl Into<String>) -> Problem {
        Problem::new(2, message)
    }
}

/// Where words go and how they look.
pub struct Output<'w> {
    out: &'w mut dyn Write,
    json: bool,
    /// Colours, and a live screen in place of a growing list.
    terminal: bool,
    colours: bool,
}

impl Output<'_> {
    /// Text as it is; a reader that went away (`| head`) ends the program quietly.
    fn text(&mut self, text: &str) -> Result<(), Problem> {
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => Problem::new(0, ""),
            _ => Problem::new(1, format!("cannot write: {error}")),
        })
    }

    /// One answer: JSON where asked for, else what `words` makes of it.
    fn answer(&mut self, value: &Value, words: impl FnOnce(&Value) -> String) -> Result<(), Problem> {
        let text = if self.json { pretty(value) } else { words(value) };
        self.text(&text)
    }

    /// One of many answers: JSON stays on one line.
    fn one_line(&mut self, value: &Value, words: impl FnOnce(&Value) -> String) -> Result<(), Problem> {
        let text = if self.json { format!("{value}\n") } else { words(value) };
        self.text(&text)
    }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

/// The whole program; `args` begins with the program's name. Answers with the exit status.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    let stdout = io::stdout();
    let terminal = stdout.is_terminal();
    let colours = terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut out = stdout.lock();
    let args: Vec<OsString> = args.into_iter().skip(1).collect();
    // Known before the arguments are, so that a usage error is JSON as well.
    let json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    let mut output = Output { out: &mut out, json, terminal, colours };
    match arguments::read(args).and_then(|arguments| dispatch(&arguments, &mut output)) {
        Ok(code) => code,
        Err(problem) => report(&problem, &mut output),
    }
}

fn report(problem: &Problem, output: &mut Output<'_>) -> u8 {
    if problem.message.is_empty() {
        return problem.code;
    }
    if output.json {
        let value = json!({ "code": problem.code, "message": problem.message, "reason": problem.reason });
        let _ = output.text(&pretty(&value));
    } else {
        // Nobody may be there to read it; the exit status still tells.
        let _ = writeln!(io::stderr(), "switchback: {}", problem.message);
    }
    problem.code
}

fn dispatch(arguments: &Arguments, output: &mut Output<'_>) -> Result<u8, Problem> {
    if arguments.help {
        return output.text(arguments::HELP).map(|()| 0);
    }
    if arguments.version {
        return output.text(concat!("switchback ", env!("CARGO_PKG_VERSION"), "\n")).map(|()| 0);
    }
    match arguments.words().as_slice() {
        [] => Err(Problem::usage("what should be done? `switchback --help` lists the verbs")),
        ["config", rest @ ..] => local::config(arguments, rest, output),
        ["status"] => status(arguments, output),
        ["doctor"] => doctor(arguments, output),
        ["explain"] => explain(arguments, output),
        ["failover"] | ["failover", "show"] => failover(arguments, "failover-show", None, output),
        ["failover", "set", names @ ..] => failover(arguments, "failover-set", Some(names), output),
        ["failover", "clear"] => failover(arguments, "failover-clear", None, output),
        ["failover", other, ..] => Err(Problem::usage(format!("failover {other}: write show, set NAME... or clear"))),
        ["failback", rest @ ..] => failback(arguments, rest, output),
        ["inhibit"] => inhibit(arguments, None, output),
        ["inhibit", limit] => inhibit(arguments, Some(limit), output),
        ["inhibit", ..] => Err(Problem::usage("inhibit takes one duration: switchback inhibit 10min")),
        ["connect"] => timed(arguments, "connect", Duration::ZERO, output),
        ["disconnect"] => timed(arguments, "disconnect", FLUSH_TIMEOUT, output),
        ["reconnect"] => timed(arguments, "reconnect", Duration::ZERO, output),
        ["flush"] => timed(arguments, "flush", FLUSH_TIMEOUT, output),
        ["outbox", rest @ ..] => outbox::outbox(arguments, rest, output),
        ["reset", rest @ ..] => outbox::reset(arguments, rest, output),
        ["events"] => events(arguments, output),
        ["publish", ..] => publish(arguments, output),
        [verb, extra, ..] => Err(Problem::usage(format!("{verb} takes no \"{extra}\""))),
        [verb] => Err(Problem::usage(format!("unknown verb \"{verb}\""))),
    }
}

fn connect(arguments: &Arguments) -> Result<Client, Problem> {
    let from_systemd = || {
        let dirs = std::env::var_os("RUNTIME_DIRECTORY").filter(|dirs| !dirs.is_empty())?;
        // systemd separates several by colons; the first is ours (systemd.exec(5)).
        Some(PathBuf::from(dirs.to_string_lossy().split(':').next().unwrap_or_default()))
    };
    let dir = arguments.runtime_dir.clone().or_else(from_systemd).unwrap_or_else(|| PathBuf::from(RUNTIME_DIR));
    Client::connect(&dir)
}

fn ask(arguments: &Arguments, verb: &str, options: Map<String, Value>, limit: Duration) -> Result<Value, Problem> {
    let mut client = connect(arguments)?;
    client.send(verb, options)?;
    client.receive(limit + PATIENCE)
}

fn status(arguments: &Arguments, output: &mut Output<'_>) -> Result<u8, Problem> {
    let colours = output.colours;
    if !arguments.watch {
        let document = ask(arguments, "status", Map::new(), Duration::ZERO)?;
        output.answer(&document, |document| render::status(document, Duration::ZERO, colours))?;
        return Ok(0);
    }
    let mut client = connect(arguments)?;
    client.send("status", object(json!({ "watch": true })))?;
    let mut document = client.receive(PATIENCE)?;
    loop {
        let live = output.terminal && !output.json;
        let clear = if live { "\x1b[H\x1b[2J" } else { "" };
        output.one_line(&document, |document| {
            format!("{clear}{}\n", render::status(document, Duration::ZERO, colours))
        })?;
        let drawn = Instant::now();
        document = loop {
            match client.next(live.then_some(REDRAW))? {
                Some(document) => break document,
                None if live => {
                    output.text(&format!("{clear}{}\n", render::status(&document, drawn.elapsed(), colours)))?;
                }
                None => {}
            }
        };
    }
}

/// Exits 1 when something is bad. Needs no daemon, but asks it how it is.
fn doctor(arguments: &Arguments, output: &mut Output<'_>) -> Result<u8, Problem> {
    let patient = Patient {
        config: arguments.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH)),
        state_dir: std::env::var_os("STATE_DIRECTORY").map_or_else(|| PathBuf::from(STATE_DIR), PathBuf::from),
        daemon: ask(arguments, "status", Map::new(), Duration::ZERO).map_err(|problem| problem.message),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Problem::new(1, format!("the system gives no timers: {error}")))?;
    let document = doctor::document(&runtime.block_on(doctor::examine(&patient)));
    output.answer(&document, doctor::in_words)?;
    Ok(u8::from(document["health"] == "bad"))
}

fn explain(arguments: &Arguments, output: &mut Output<'_>) -> Result<u8, Problem> {
    let document = ask(arguments, "explain", Map::new(), Duration::ZERO)?;
    output.answer(&document, render::explain)?;
    Ok(0)
}

fn failover(arguments: &Arguments, verb: &str, names: Option<&[&str]>, output: &mut Output<'_>) -> Result<u8, Problem> {
    // People who write commas mean the same.
    let list = names.map(|names| {
        let names = names.iter().flat_map(|name| name.split(',')).filter(|name| !name.is_empty());
        object(json!({ "list": names.collect::<Vec<_>>() }))
    });
    let document = ask(arguments, verb, list.unwrap_or_default(), Duration::ZERO)?;
    output.answer(&document, render::failover)?;
    Ok(0)
}

fn failback(arguments: &Arguments, words: &[&str], output: &mut Output<'_>) -> Result<u8, Problem> {
    let (verb, option) = match words {
        [] | ["show"] => ("failback-show", ""),
        ["now"] => ("failback-now", "timeout"),
        ["auto" | "never"] => ("failback-set", "for"),
        ["manual"] => {
            let message = "failback manual: that belongs into the configuration (failover.failback); for a while, \
                           `failback never` does the same";
            return Err(Problem::usage(message));
        }
        [other, ..] => {
            let near = nearest(other, ["now", "auto", "never", "show"]);
            let hint = near.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
            let words = words.join(" ");
            return Err(Problem::usage(format!("failback {words}: write now, auto, never or nothing{hint}")));
        }
    };
    if let Some(name) = arguments.options.keys().find(|name| *name != option) {
        let words = words.iter().map(|word| format!(" {word}")).collect::<String>();
        return Err(Problem::usage(format!("failback{words} takes no option \"--{name}\"")));
    }
    let mut options = arguments.options.clone();
    if let [mode @ ("auto" | "never")] = words {
        options.insert("mode".into(), (*mode).into());
    }
    let limit = if verb == "failback-now" { arguments.limit(RETURN_TIMEOUT)? } else { Duration::ZERO };
    let document = ask(arguments, verb, options, limit)?;
    output.answer(&document, |document| match verb {
        "failback-now" => render::returned(document),
        _ => render::way_back(document),
    })?;
    Ok(0)
}

fn inhibit(arguments: &Arguments, limit: Option<&str>, output: &mut Output<'_>) -> Result<u8, Problem> {
    let options = limit.map(|limit| object(json!({ "for": limit }))).unwrap_or_default();
    let document = ask(arguments, "inhibit", options, Duration::ZERO)?;
    output.answer(&document, render::way_back)?;
    Ok(0)
}

/// Verbs that answer with one result, perhaps after a while.
fn timed(arguments: &Arguments, verb: &str, default: Duration, output: &mut Output<'_>) -> Result<u8, Problem> {
    let limit = arguments.limit(default)?;
    let document = ask(arguments, verb, arguments.options.clone(), limit)?;
    output.answer(&document, render::result)?;
    Ok(0)
}

fn publish(arguments: &Arguments, output: &mut Output<'_>) -> Result<u8, Problem> {
    let usage = || Problem::usage("publish takes a topic and a payload: switchback publish TOPIC [PAYLOAD|-]");
    let (topic, payload) = match arguments.values.as_slice() {
        [_, topic] => (topic, None),
        [_, topic, payload] => (topic, Some(payload)),
        _ => return Err(usage()),
    };
    let payload = match payload {
        None => Vec::new(),
        Some(dash) if dash == "-" => standard_input()?,
        Some(text) => std::os::unix::ffi::OsStrExt::as_bytes(text.as_os_str()).to_vec(),
    };
    let mut options = arguments.options.clone();
    let topic = topic.to_str().ok_or_else(|| Problem::usage("topic: is not UTF-8"))?;
    options.insert("topic".into(), topic.into());
    // Control characters grow sixfold in JSON text; base 64 grows by a third, whatever comes.
    match String::from_utf8(payload) {
        Ok(text) if !text.contains(|c: char| c.is_control()) => options.insert("payload".into(), text.into()),
        Ok(text) => options.insert("payload_base64".into(), base64::encode(text.as_bytes()).into()),
        Err(error) => options.insert("payload_base64".into(), base64::encode(error.as_bytes()).into()),
    };
    let document = ask(arguments, "publish", options, arguments.limit(PUBLISH_TIMEOUT)?)?;
    output.answer(&document, render::publish)?;
    if let Some(why) = render::unpublished(&document).filter(|_| !output.json) {
        let _ = writeln!(io::stderr(), "switchback: {why}");
    }
    Ok(if document["result"] == "accepted" { 0 } else { 1 })
}

fn standard_input() -> Result<Vec<u8>, Problem> {
    let mut payload = Vec::new();
    let limit = PAYLOAD_MAX as u64 + 1;
    let read = io::stdin().lock().take(limit).read_to_end(&mut payload);
    read.map_err(|error| Problem::new(1, format!("cannot read standard input: {error}")))?;
    match payload.len() > PAYLOAD_MAX {
        true => Err(Problem::usage(format!("payload: is larger than {PAYLOAD_MAX} bytes"))),
        false => Ok(payload),
    }
}

fn events(arguments: &Arguments, output: &mut Output<'_>) -> Result<u8, Problem> {
    let mut client = connect(arguments)?;
    let mut options = arguments.options.clone();
    if arguments.follow {
        options.insert("follow".into(), true.into());
    }
    client.send("events", options)?;
    let document = client.receive(PATIENCE)?;
    let none = Vec::new();
    for line in document["events"].as_array().unwrap_or(&none) {
        output.one_line(line, render::event)?;
    }
    if !arguments.follow {
        return Ok(0);
    }
    loop {
        if let Some(line) = client.next(None)? {
            output.one_line(&line, render::event)?;
        }
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

impl Arguments {
    /// How long the verb itself may take.
    fn limit(&self, default: Duration) -> Result<Duration, Problem> {
        let Some(text) = self.options.get("timeout").and_then(Value::as_str) else { return Ok(default) };
        let limit = parse_duration(text).map_err(|message| Problem::usage(format!("--timeout: {message}")))?;
        match limit <= TIMEOUT_MAX {
            true => Ok(limit),
            false => Err(Problem::usage(format!("--timeout: \"{text}\" is longer than an hour"))),
        }
    }
}
