//! switchback(1): the command line. Everything is in `switchback::cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(switchback::cli::run(std::env::args_os()))
}
