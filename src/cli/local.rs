//! `config check`, `config show`, `config default`: verbs that read files and need no daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use switchback_control::bounds::{MARGIN_MAX, METERED_RACES, METERED_RESCUES, MOVE_MARGIN, PROOFS, SUSPECT_MARGIN};
use switchback_control::{LaneRules, Standby};

use super::arguments::Arguments;
use super::render::{self, Table};
use super::{Output, Problem};
use crate::config::{
    BROWN_OUT, Config, ConfigError, Cost, DEFAULT_PATH, HANDSHAKE, HANDSHAKE_FULL, LaneConfig, PING, SHIPPED, Warning,
    WorstCase, costs, duration_text, overflow_word, round_trips, show, size_text, standby_word, uplinks_text,
    worst_cases,
};

/// `outbox.late` where it is "auto": at most.
const LATE_MOST: Duration = Duration::from_secs(1);

/// Answers with the exit status: 0, or 2 for a configuration that cannot be used.
pub fn config(arguments: &Arguments, words: &[&str], output: &mut Output<'_>) -> Result<u8, Problem> {
    let path = |file: Option<&&str>| match (file, &arguments.config) {
        (Some(_), Some(_)) => Err(Problem::usage("the file is given twice; leave out --config")),
        (Some(file), None) => Ok(PathBuf::from(file)),
        (None, Some(file)) => Ok(file.clone()),
        (None, None) => Ok(PathBuf::from(DEFAULT_PATH)),
    };
    match words {
        ["check"] => check(&path(None)?, output),
        ["check", file] => check(&path(Some(file))?, output),
        ["show"] => effective(&path(None)?, output),
        ["show", file] => effective(&path(Some(file))?, output),
        ["default"] => output.answer(&json!({ "toml": SHIPPED }), |_| SHIPPED.to_string()).map(|()| 0),
        _ => Err(Problem::usage("config takes check [FILE], show [FILE] or default")),
    }
}

fn check(path: &Path, output: &mut Output<'_>) -> Result<u8, Problem> {
    let (document, text, code) = match Config::load(path) {
        Ok((config, warnings)) => {
            let (cases, costs) = (worst_cases(&config), costs(&config));
            let document = json!({
                "ok": true,
                "file": path.to_string_lossy(),
                "hash": config.hash,
                "errors": [],
                "warnings": warnings.iter().map(warning).collect::<Vec<_>>(),
                "worst_cases": cases.iter().map(worst_case).collect::<Vec<_>>(),
                "costs": costs.iter().map(cost).collect::<Vec<_>>(),
                "queues": lanes(&config),
                "longest_wait_ms": ms(longest_wait(&config)),
            });
            let mut text: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            text += &format!("{}: good, {}\n\n", path.display(), render::count(warnings.len() as u64, "warning"));
            text += &worst_case_table(&cases);
            text += &format!("\n{}", cost_table(&costs, config.settings.fleet_size));
            text += &format!("\n{}", lanes_table(&config));
            (document, text, 0)
        }
        Err(errors) => {
            let document = json!({
                "ok": false,
                "file": path.to_string_lossy(),
                "hash": null,
                "errors": errors.iter().map(error).collect::<Vec<_>>(),
                "warnings": [],
                "worst_cases": [],
                "costs": [],
                "queues": [],
                "longest_wait_ms": null,
            });
            (document, failed(&errors), 2)
        }
    };
    output.answer(&document, |_| text)?;
    Ok(code)
}

fn effective(path: &Path, output: &mut Output<'_>) -> Result<u8, Problem> {
    let config = match Config::load(path) {
        Ok((config, _)) => config,
        Err(errors) => return Err(Problem::usage(failed(&errors).trim_end().to_string())),
    };
    let text = show(&config);
    let cases = worst_cases(&config);
    let mut document =
        text.parse::<toml::Table>().ok().and_then(|table| serde_json::to_value(table).ok()).unwrap_or_default();
    document["worst_cases"] = cases.iter().map(worst_case).collect();
    document["queues"] = lanes(&config).into();
    document["longest_wait_ms"] = ms(longest_wait(&config)).into();
    output.answer(&document, |_| {
        let comment: String = format!("{}\n{}", worst_case_table(&cases), lanes_table(&config))
            .lines()
            .map(|line| format!("# {line}\n").replace("# \n", "#\n"))
            .collect();
        format!("# {}, hash {}\n\n{text}\n{comment}", path.display(), config.hash)
    })?;
    Ok(0)
}

fn failed(errors: &[ConfigError]) -> String {
    let lines: String = errors.iter().map(|error| format!("{error}\n")).collect();
    if errors.len() > 1 { format!("{lines}{}\n", render::count(errors.len() as u64, "error")) } else { lines }
}

fn error(error: &ConfigError) -> Value {
    json!({ "file": error.file.to_string_lossy(), "line": error.line, "key": error.key, "message": error.message,
            "nearest": error.nearest })
}

fn warning(warning: &Warning) -> Value {
    json!({ "file": warning.file.to_string_lossy(), "line": warning.line, "key": warning.key,
            "message": warning.message })
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn worst_case(case: &WorstCase) -> Value {
    json!({
        "uplink": case.uplink,
        "carrier_detected_ms": ms(case.carrier_detected),
        // Beyond the time that an answer is expected to take.
        "late_suspected_ms": ms(SUSPECT_MARGIN),
        "late_moved_ms": ms(MOVE_MARGIN),
        "brown_out_ms": ms(BROWN_OUT),
        "silence_suspected_ms": ms(case.silence_suspected),
        "silence_detected_ms": ms(case.silence_detected),
        "send_limit_ms": ms(case.send_limit),
        "takes_over_round_trips": round_trips(case.standby),
        "carrier_failover_ms": ms(case.carrier_failover),
        "silence_failover_ms": ms(case.silence_failover),
    })
}

fn worst_case_table(cases: &[WorstCase]) -> String {
    // Fractions of a second tell nobody anything here.
    let time = |duration: Duration| duration_text(Duration::from_secs(ms(duration).div_ceil(1000)));
    let head = ["UPLINK", "TAKES OVER IN", "LINK LOST: SEEN", "MOVED", "SILENT, IDLE: SUSPECTED", "GIVEN UP", "MOVED"];
    let mut table = Table::new(&head);
    for case in cases {
        table.row(vec![
            case.uplink.clone(),
            round_trips(case.standby).map_or("its activation".into(), |trips| format!("{trips} round trips")),
            "at once".into(),
            time(case.carrier_failover),
            time(case.silence_suspected),
            time(case.silence_detected),
            time(case.silence_failover),
        ]);
    }
    format!(
        "worst cases, from the settings alone:\n{}\
         moved: on line over the next uplink, if that one needs its whole connect_timeout; given up: where there is none\n\
         with traffic: suspected when an answer is {} late, moved at {} if another path has proved itself by then\n\
         (up to {} more on a path that loses packets); a path that loses too much to be of use is left within {}\n",
        table.text(false),
        duration_text(SUSPECT_MARGIN),
        duration_text(MOVE_MARGIN),
        duration_text(MARGIN_MAX),
        duration_text(BROWN_OUT),
    )
}

fn cost(cost: &Cost) -> Value {
    json!({
        "uplink": cost.uplink,
        "standby": standby_word(cost.standby),
        "metered": cost.metered,
        "session_bytes_month": cost.session,
        "off": { "bytes_month": 0, "handshakes_per_s": 0.0 },
        "up": { "bytes_month": 0, "handshakes_per_s": 0.0, "return_bytes": cost.up_return,
                "suspicion_bytes_month_max": cost.up_most },
        "warm": { "bytes_month": cost.warm, "full_bytes_month": cost.warm_full,
                  "handshakes_per_s": cost.warm_handshakes },
    })
}

fn lanes(config: &Config) -> Vec<Value> {
    let lane = |(lane, rules): (&LaneConfig, &LaneRules)| {
        json!({
            "class": lane.class,
            "uplinks": uplinks_text(&rules.carriers),
            "priority": rules.priority,
            "directory": Some(&lane.directory).filter(|directory| !directory.is_empty()),
            "memory": rules.memory_bytes.is_some(),
            "max_bytes": lane.max_size,
            "max_messages": Some(rules.max_messages).filter(|most| *most != u64::MAX),
            "overflow": overflow_word(rules.overflow),
            "max_age_s": lane.max_age.map(|age| age.as_secs()),
        })
    };
    config.lanes.iter().zip(&config.settings.lanes).map(lane).collect()
}

fn lanes_table(config: &Config) -> String {
    let mut table = Table::new(&["CLASS", "UPLINKS", "PRIORITY", "DIRECTORY", "AT MOST", "WHEN FULL", "MAX AGE"]);
    let mut lost = Vec::new();
    for (lane, rules) in config.lanes.iter().zip(&config.settings.lanes) {
        let most = match rules.max_messages {
            u64::MAX => size_text(lane.max_size),
            messages => format!("{}, {messages} messages", size_text(lane.max_size)),
        };
        if rules.memory_bytes.is_some() && !lost.contains(&lane.class) {
            lost.push(lane.class.clone());
        }
        table.row(vec![
            lane.class.clone(),
            uplinks_text(&rules.carriers),
            rules.priority.to_string(),
            if lane.directory.is_empty() { "memory".into() } else { lane.directory.clone() },
            most,
            overflow_word(rules.overflow).into(),
            lane.max_age.map_or("-".into(), duration_text),
        ]);
    }
    let mut text = format!("queues, each in order; the higher priority goes first:\n{}", table.text(false));
    for class in lost {
        text += &format!("{class} lives in memory only: lost when the daemon ends\n");
    }
    let wait = duration_text(longest_wait(config));
    text + &match config.outbox.commit_interval {
        Some(interval) => format!(
            "an acknowledgement may take {wait} and one sync: outbox.late, and commit_interval = \"{}\" (durability batch)\n",
            duration_text(interval)
        ),
        None => format!("an acknowledgement may take {wait} (outbox.late) and one sync\n"),
    }
}

/// How long an application may wait for its acknowledgement, the sync itself aside (R-SF-12).
fn longest_wait(config: &Config) -> Duration {
    config.settings.late.unwrap_or(LATE_MOST) + config.outbox.commit_interval.unwrap_or_default()
}

fn cost_table(costs: &[Cost], fleet_size: u32) -> String {
    let size = render::size;
    let mut table = Table::new(&["UPLINK", "SESSION", "OFF", "UP", "WARM", "WARM, AT THE SERVER"]);
    for cost in costs {
        let mark = |standby, text: String| if cost.standby == standby { format!("*{text}") } else { text };
        let up = cost.up_most.map_or("0 B".into(), |most| format!("0 B, at most {}", size(most)));
        let server = match fleet_size {
            1 => "-".into(),
            _ => format!("{:.1} handshakes/s", cost.warm_handshakes),
        };
        table.row(vec![
            cost.uplink.clone(),
            size(cost.session),
            mark(Standby::Off, "0 B".into()),
            mark(Standby::Up, up),
            mark(Standby::Warm, format!("{} to {}", size(cost.warm), size(cost.warm_full))),
            server,
        ]);
    }
    format!(
        "what readiness costs in a month of 30 days, * as chosen by standby:\n{}\
         session: while it carries an idle session ({PING} B for each ping); off, up, warm: while another uplink does\n\
         up: a return costs {PROOFS} handshakes; suspicion at most {} at once and one every {} on a metered uplink\n\
         warm: a handshake every warm_renew, {} where the server resumes, {} in full, less without client certificate\n",
        table.text(false),
        METERED_RESCUES.at_once + METERED_RACES.at_once,
        duration_text(METERED_RESCUES.every),
        size(HANDSHAKE),
        size(HANDSHAKE_FULL),
    )
}
