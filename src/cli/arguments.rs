//! What was typed: verbs, options and values, checked against what each verb takes.
//!
//! Options may stand anywhere. What a verb does not take is an error with the nearest right option; verbs of later
//! versions are unknown. Nothing is done here.

use std::ffi::OsString;
use std::path::PathBuf;

use lexopt::Arg;
use serde_json::{Map, Value};

use super::Problem;
use crate::config::nearest;

/// `switchback --help`.
pub const HELP: &str = "\
switchback: ask and tell switchbackd, which keeps this gateway connected to its cloud

usage: switchback [--runtime-dir DIR] [--json] VERB ...

  status [--watch]               one screen: state, uplinks, session, outbox, last outage
  doctor                         checks the machine and every uplink, and says what to do; needs
                                 no daemon
  explain                        why this uplink and not another, and what happens next
  failover [show]                the failover list as stored and as walked
  failover set NAME...           store another list: ethernet, wifi, cell, or interface names
  failover clear                 back to failover.order of the configuration
  failback                       whether and when traffic returns to a better uplink
  failback now [--timeout D]     back to the best uplink that is ready; waits for the outcome
  failback auto|never [--for D]  in place of failover.failback for D, else 24h; 0s ends it
  inhibit [DURATION]             no planned move for that long, at most 1h; 0s ends it
  connect [--via NAME | --for D] [--timeout D]
                                 connect and return at once, or wait for the outcome up to D;
                                 --via tries one uplink once and stores nothing; --for connects
                                 for so long, and then all is as it was before
  disconnect [--force]           flush, close, and stay away until `connect` or reboot
  reconnect [--timeout D]        close and connect again
  publish TOPIC [PAYLOAD|-]      a message, as any local application would publish it;
                                 - reads the payload from standard input
          [--class C] [--qos 0|1|2] [--retain] [--wait stored|sent|acked] [--timeout D]
  flush [--timeout D]            wait until everything is at the cloud
  outbox [show]                  what waits, class by class, and what the cloud refused for good
  outbox drop CLASS|all|rejected [--yes]
                                 give it up; what is in flight goes its way
  reset outbox|failover|all [--yes]
                                 forget what waits, the stored list, or both; the session goes on
  events [-f] [--since T] [--boot] [--limit N]
                                 the black box; T is \"2h\" or a time such as 2026-11-20T08:00:00Z
  config check [FILE]            errors, warnings, worst-case times; needs no daemon
  config show [FILE]             the values in force
  config default                 every key with its default, unit, range and why

  --json           JSON in place of words
  --runtime-dir D  where the daemon listens; else $RUNTIME_DIRECTORY, else /run/switchback
  --config FILE    for `config` and `doctor`; else /etc/switchback/switchback.toml
  --help, --version

exit status: 0 done, 1 it did not happen, 2 wrong usage or configuration, 3 no daemon
Durations are written 200ms, 45s, 5min, 2h. Write -- before a payload that begins with a dash.
";

/// Verbs and the options that each takes, besides `--json` and `--runtime-dir`.
const VERBS: &[(&str, &[&str])] = &[
    ("status", &["watch"]),
    ("doctor", &["config"]),
    ("explain", &[]),
    ("failover", &[]),
    ("failback", &["timeout", "for"]),
    ("inhibit", &[]),
    ("connect", &["via", "for", "timeout"]),
    ("disconnect", &["force"]),
    ("reconnect", &["timeout"]),
    ("publish", &["class", "qos", "retain", "wait", "timeout"]),
    ("flush", &["timeout"]),
    ("outbox", &["yes"]),
    ("reset", &["yes"]),
    ("events", &["follow", "since", "boot", "limit"]),
    ("config", &["config"]),
];

/// Most values on one command line: a failover list and its verb.
const VALUES_MAX: usize = 128;

/// What was typed.
#[derive(Debug, Default)]
pub struct Arguments {
    pub help: bool,
    pub version: bool,
    pub watch: bool,
    pub follow: bool,
    /// Not asked whether it is meant.
    pub yes: bool,
    pub runtime_dir: Option<PathBuf>,
    pub config: Option<PathBuf>,
    /// The verb and what stands behind it.
    pub values: Vec<OsString>,
    /// As they go to the daemon.
    pub options: Map<String, Value>,
}

impl Arguments {
    /// The values as text; what is not UTF-8 looks odd in a message and fits no verb.
    pub fn words(&self) -> Vec<&str> {
        self.values.iter().map(|value| value.to_str().unwrap_or("\u{fffd}")).collect()
    }
}

/// Reads everything behind the program's name.
pub fn read(args: Vec<OsString>) -> Result<Arguments, Problem> {
    let mut parser = lexopt::Parser::from_args(args);
    let mut arguments = Arguments::default();
    let mut given: Vec<String> = Vec::new();
    while let Some(arg) = parser.next().map_err(usage)? {
        let name = match arg {
            Arg::Value(value) if arguments.values.len() < VALUES_MAX => {
                arguments.values.push(value);
                continue;
            }
            Arg::Value(_) => return Err(Problem::usage("too many arguments")),
            Arg::Short('f') => "follow".to_string(),
            Arg::Short('y') => "yes".to_string(),
            Arg::Short('h') => "help".to_string(),
            Arg::Short('V') => "version".to_string(),
            Arg::Short(letter) => {
                let message = format!("unknown option \"-{letter}\"; write -- before a value that begins with a dash");
                return Err(Problem::usage(message));
            }
            Arg::Long(name) => name.to_string(),
        };
        option(&name, &mut parser, &mut arguments)?;
        given.push(name);
    }
    if !arguments.help && !arguments.version {
        fitting(&arguments, &given)?;
    }
    Ok(arguments)
}

fn option(name: &str, parser: &mut lexopt::Parser, arguments: &mut Arguments) -> Result<(), Problem> {
    let text = |parser: &mut lexopt::Parser| {
        let value = parser.value().map_err(usage)?;
        value.into_string().map_err(|_| Problem::usage(format!("--{name}: is not UTF-8")))
    };
    match name {
        "help" => arguments.help = true,
        "version" => arguments.version = true,
        "json" => {}
        "watch" => arguments.watch = true,
        "follow" => arguments.follow = true,
        "yes" => arguments.yes = true,
        "runtime-dir" => arguments.runtime_dir = Some(parser.value().map_err(usage)?.into()),
        "config" => arguments.config = Some(parser.value().map_err(usage)?.into()),
        "force" | "retain" | "boot" => {
            arguments.options.insert(name.into(), true.into());
        }
        "qos" | "limit" => {
            let text = text(parser)?;
            let number: u64 = text.parse().map_err(|_| Problem::usage(format!("--{name}: \"{text}\" is no number")))?;
            arguments.options.insert(name.into(), number.into());
        }
        "via" | "timeout" | "for" | "class" | "wait" | "since" => {
            let text = text(parser)?;
            arguments.options.insert(name.into(), text.into());
        }
        _ => {
            let all = VERBS.iter().flat_map(|(_, options)| options.iter().copied());
            let near = nearest(name, all.chain(["json", "runtime-dir", "help", "version"]));
            let hint = near.map(|near| format!("; did you mean \"--{near}\"?")).unwrap_or_default();
            return Err(Problem::usage(format!("unknown option \"--{name}\"{hint}")));
        }
    }
    Ok(())
}

/// Every option must belong to the verb.
fn fitting(arguments: &Arguments, given: &[String]) -> Result<(), Problem> {
    let words = arguments.words();
    let Some(verb) = words.first() else { return Ok(()) };
    let Some((_, known)) = VERBS.iter().find(|(name, _)| name == verb) else {
        let near = nearest(verb, VERBS.iter().map(|(name, _)| *name));
        let hint = near.map(|near| format!("; did you mean \"{near}\"?")).unwrap_or_default();
        return Err(Problem::usage(format!("unknown verb \"{verb}\"{hint}")));
    };
    let everywhere = ["json", "runtime-dir"];
    match given.iter().find(|name| !known.contains(&name.as_str()) && !everywhere.contains(&name.as_str())) {
        Some(name) => Err(Problem::usage(format!("{verb} takes no option \"--{name}\""))),
        None => Ok(()),
    }
}

fn usage(error: lexopt::Error) -> Problem {
    Problem::usage(error.to_string())
}
