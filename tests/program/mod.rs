//! The built program, and what tests ask of its output.

#![allow(dead_code, reason = "each test file uses a part of it")]

use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The program, without a word from Mesa's device-select layer, which speaks to stderr where no desktop session is.
pub fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_minference"));
    command.env("NODEVICE_SELECT", "1").env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command
}

pub fn run(args: &[&str]) -> Output {
    program().args(args).stdin(Stdio::null()).output().expect("the program starts")
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("stderr is UTF-8")
}

/// The one JSON object that a successful run with `--json` prints.
pub fn json_of(args: &[&str]) -> Value {
    let output = run(args);
    assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{args:?}: {e}"))
}

/// Status 2, nothing on stdout, and one line that says all of this.
pub fn refused(args: &[&str], says: &[&str]) {
    let output = run(args);
    let error = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {error}");
    assert!(output.stdout.is_empty(), "{args:?}");
    let lines: Vec<&str> = error.lines().filter(|line| !line.starts_with("device: ")).collect();
    assert_eq!(lines.len(), 1, "{args:?}: {error}");
    assert!(lines[0].starts_with("error: "), "{args:?}: {error}");
    for words in says {
        assert!(lines[0].contains(words), "{args:?}: {words:?} is not in {}", lines[0]);
    }
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}
