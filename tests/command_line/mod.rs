//! Running the `vfio-ccw` command and looking at what it leaves.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Output, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

/// No job here takes this long: one that does hangs.
const STALL: Duration = Duration::from_secs(90);

/// The command as cargo built it.
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_vfio-ccw");

/// A call of `program`, the command or a copy of it, with nothing on standard input.
pub fn call<S: AsRef<OsStr>>(program: &Path, arguments: impl IntoIterator<Item = S>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A call of the command.
pub fn vfio_ccw<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Command {
    call(Path::new(PROGRAM), arguments)
}

/// Arguments of a small main job. Its guest is small enough to be locked whole where RLIMIT_MEMLOCK
/// is 8 MiB, the kernel's default.
pub const SMALL_JOB: [&str; 13] = [
    "--seconds",
    "0.5",
    "--subchannels",
    "16",
    "--buffers",
    "1MiB",
    "--memory",
    "4MiB",
    "--seed",
    "7",
    "--metrics",
    "off",
    "--quiet",
];

/// The scratch volume of a small job.
pub const SMALL_VOLUME: [&str; 2] = ["--size", "16MiB"];

/// What a call has left.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ended {
    /// Asserts the exit status and that nothing panicked.
    #[track_caller]
    pub fn with_code(self, code: i32) -> Self {
        assert_eq!(self.status.code(), Some(code), "{self:#?}");
        assert!(!self.stderr.contains("panicked"), "{self:#?}");
        self
    }

    /// The message of an error: one line and nothing else on standard error, exit status 2.
    #[track_caller]
    pub fn error(self) -> String {
        let ended = self.with_code(2);
        assert_eq!(ended.stderr.lines().count(), 1, "{ended:#?}");
        let message = ended.stderr.trim_end().strip_prefix("vfio-ccw: ").map(str::to_owned);
        message.unwrap_or_else(|| panic!("no message of the command: {ended:#?}"))
    }

    /// The report that was asked for with `--json -`.
    #[track_caller]
    pub fn report(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("{error} in what should be JSON only: {self:#?}"))
    }
}

/// A number of a report.
#[track_caller]
pub fn number(report: &Value, key: &str) -> f64 {
    report[key].as_f64().unwrap_or_else(|| panic!("no number '{key}': {report:#}"))
}

/// Asserts that a report is of work that was done, and that nothing of it went wrong.
#[track_caller]
pub fn assert_nothing_wrong(report: &Value) {
    assert!(number(report, "ios") > 0.0 && number(report, "iops") > 0.0, "{report:#}");
    for fault in ["lost", "duplicate", "miscompares", "errors"] {
        assert_eq!(number(report, fault), 0.0, "{fault}: {report:#}");
    }
}

/// Runs a call to its end.
#[track_caller]
pub fn end(command: &mut Command) -> Ended {
    let child = command.spawn().expect("the command starts");
    let Output { status, stdout, stderr } = collect(child);
    let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
    Ended { status, stdout: text(stdout), stderr: text(stderr) }
}

/// Runs the command to its end.
#[track_caller]
pub fn run<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Ended {
    end(&mut vfio_ccw(arguments))
}

fn collect(mut child: Child) -> Output {
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    let status = wait(&mut child);
    let all = |reader: Option<JoinHandle<Vec<u8>>>| {
        reader.map_or(Vec::new(), |reader| reader.join().expect("the reader ends"))
    };
    Output { status, stdout: all(stdout), stderr: all(stderr) }
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).expect("a pipe can be read");
        bytes
    })
}

/// Waits for the end of a child; one that hangs is killed.
pub fn wait(child: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("the child is ours") {
            return status;
        }
        if begin.elapsed() > STALL {
            child.kill().expect("the child is ours");
            panic!("the command hung and was killed");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A job that runs until it is told to end. Dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Option<Child>,
    stderr: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    /// Starts the command.
    pub fn start<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Self {
        let mut child = vfio_ccw(arguments).spawn().expect("the command starts");
        let stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        Running { child: Some(child), stderr, said: String::new() }
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.as_ref().expect("not ended").id()
    }

    /// Reads standard error until a line that contains `words`; `None` where it ends before.
    pub fn until_it_says(&mut self, words: &str) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.stderr.read_line(&mut line).expect("UTF-8 from a pipe") == 0 {
                return None;
            }
            self.said.push_str(&line);
            if line.contains(words) {
                return Some(line);
            }
        }
    }

    /// Waits for the end.
    pub fn end(mut self) -> Ended {
        let child = self.child.take().expect("not ended");
        let Output { status, stdout, .. } = collect(child);
        let mut stderr = std::mem::take(&mut self.said);
        self.stderr.read_to_string(&mut stderr).expect("UTF-8 from a pipe");
        Ended { status, stdout: String::from_utf8(stdout).expect("UTF-8"), stderr }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
