//! What it costs to be seen.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::peer_process::NullLoadProcess;
use crate::ratio::{FieldError, Round, Sample};

use super::Lacking;

/// Subchannels of the load, as in `null_iops_vs_sync`.
const SUBCHANNELS: u16 = 64;

/// I/Os of one measurement.
const IOS: u64 = 400_000;

/// I/Os a second of null devices: all that is measured is on / compiled out. Each in a process of its own that
/// stays from round to round.
pub fn metrics_overhead(round: &Round) -> Result<Sample, FieldError> {
    thread_local! {
        static PROCESSES: RefCell<Option<[NullLoadProcess; 2]>> = const { RefCell::new(None) };
    }
    PROCESSES.with_borrow_mut(|processes| {
        let [on, out] = match processes {
            Some(processes) => processes,
            None => {
                let without = unrecorded()?;
                let on = NullLoadProcess::start(&std::env::current_exe()?, SUBCHANNELS)?;
                processes.insert([on, NullLoadProcess::start(&without, SUBCHANNELS)?])
            }
        };
        round.compare(|| on.iops(IOS), || out.iops(IOS))
    })
}

/// This program built without recording. It is built where it was built before, beside this one.
fn unrecorded() -> Result<PathBuf, FieldError> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| error.to_string()));
    built.clone().map_err(|why| Lacking(why).into())
}

fn build() -> Result<PathBuf, FieldError> {
    let crate_folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let ours = std::env::current_exe()?;
    // target/PROFILE/vfio-ccw-bench, or target/PROFILE/deps/... of a test.
    let folder = ours.ancestors().find(|folder| folder.ends_with("target"));
    let folder = folder.unwrap_or(crate_folder).join("unrecorded");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(crate_folder);
    command.args(["build", "--quiet", "--release", "--locked", "--no-default-features"]);
    command.args(["--bin", "vfio-ccw-bench", "--target-dir"]).arg(&folder);
    // This program's own features are none of the other's.
    command.env_remove("CARGO_ENCODED_RUSTFLAGS");
    let output = command.output().map_err(|error| {
        format!("cargo, to build this program without recording, cannot be run: {error}")
    })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said: String = said.lines().take(3).collect::<Vec<_>>().join("; ");
        return Err(format!("this program cannot be built without recording: {said}").into());
    }
    Ok(folder.join("release/vfio-ccw-bench"))
}
