//! Tests in a process of their own, which they may confine or kill: the test binary once more, with
//! that one test.

use std::env;
use std::process::{Command, Output};

/// Tells a test that it has the process to itself.
const ALONE: &str = "VFIO_CCW_TEST_ALONE";

/// Runs `body` in a child process and gives what it leaves, or `None` where the test cannot run here.
/// Called first in test `name`, with its path in this crate. `body` says why it cannot run.
pub(super) fn alone(name: &str, body: impl FnOnce() -> Result<(), String>) -> Option<Output> {
    if env::var(ALONE).as_deref() == Ok(name) {
        if let Err(reason) = body() {
            println!("SKIPPED: {reason}");
        }
        return None;
    }
    let mut command = Command::new(env::current_exe().expect("a test has a binary"));
    let command = command.args([name, "--exact", "--nocapture"]).env(ALONE, name);
    let output = command.output().expect("it runs again");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(stdout.contains("running 1 test"), "{name} is no test: {stdout}");
    match stdout.lines().find(|line| line.contains("SKIPPED")) {
        Some(line) => {
            println!("{line}");
            None
        }
        None => Some(output),
    }
}

/// The child ended well.
pub(super) fn passed(output: &Output) {
    assert!(output.status.success(), "{output:#?}");
}

/// The child died of `signal`.
pub(super) fn killed_by(output: &Output, signal: i32) {
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(output.status.signal(), Some(signal), "{output:#?}");
}
