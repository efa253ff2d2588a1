//! `config check`, `config show`, `config default`: verbs that read files and need no daemon.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::arguments::Arguments;
use super::render::{self, Table};
use super::{Output, Problem};
use crate::config::{Config, ConfigError, DEFAULT_PATH, SHIPPED, Warning, WorstCase, duration_text, show, worst_cases};

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
            let cases = worst_cases(&config);
            let document = json!({
                "ok": true,
                "file": path.to_string_lossy(),
                "hash": config.hash,
                "errors": [],
                "warnings": warnings.iter().map(warning).collect::<Vec<_>>(),
                "worst_cases": cases.iter().map(worst_case).collect::<Vec<_>>(),
            });
            let mut text: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            text += &format!("{}: good, {}\n\n", path.display(), render::count(warnings.len() as u64, "warning"));
            text += &worst_case_table(&cases);
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
    output.answer(&document, |_| {
        let comment: String =
            worst_case_table(&cases).lines().map(|line| format!("# {line}\n").replace("# \n", "#\n")).collect();
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

fn worst_case(case: &WorstCase) -> Value {
    let ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    json!({
        "uplink": case.uplink,
        "carrier_detected_ms": ms(case.carrier_detected),
        "silence_suspected_ms": ms(case.silence_suspected),
        "silence_detected_ms": ms(case.silence_detected),
        "send_limit_ms": ms(case.send_limit),
        "carrier_failover_ms": ms(case.carrier_failover),
        "silence_failover_ms": ms(case.silence_failover),
    })
}

fn worst_case_table(cases: &[WorstCase]) -> String {
    let time = duration_text;
    let mut table = Table::new(&["UPLINK", "LINK LOST: SEEN", "MOVED", "SILENT, IDLE: SUSPECTED", "GIVEN UP", "MOVED"]);
    for case in cases {
        table.row(vec![
            case.uplink.clone(),
            "at once".into(),
            time(case.carrier_failover),
            time(case.silence_suspected),
            time(case.silence_detected),
            time(case.silence_failover),
        ]);
    }
    format!(
        "worst cases, from the settings alone:\n{}\
         moved: on line over the next uplink, if that one needs its whole connect_timeout; given up: where there is none\n",
        table.text(false)
    )
}
