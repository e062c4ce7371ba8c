//! What a run ran on.

use std::fmt;
use std::fs;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// A machine, as far as it tells.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Model of the processors, empty where the kernel does not say.
    pub model: String,
    /// How many this process may use.
    pub processors: usize,
    /// How their clock is governed; none in most virtual machines.
    pub governor: Option<String>,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Release of the kernel.
    pub kernel: String,
    /// Such as `x86_64` or `s390x`.
    pub architecture: String,
    /// Whether the process runs in a container.
    pub container: bool,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        // s390x has `processor 0: version = .., machine = 3931`, others have `model name : ..`.
        let model = field(&cpuinfo, "model name").or_else(|| {
            let (_, rest) = cpuinfo.split_once("machine = ")?;
            rest.lines().next()
        });
        let kibibytes = field(&read("/proc/meminfo"), "MemTotal")
            .and_then(|words| words.strip_suffix(" kB")?.parse::<u64>().ok());
        let governor = read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor");
        Self {
            model: model.unwrap_or_default().to_owned(),
            processors: std::thread::available_parallelism().map_or(0, usize::from),
            governor: Some(governor.trim().to_owned()).filter(|governor| !governor.is_empty()),
            memory_bytes: kibibytes.unwrap_or(0) << 10,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            architecture: std::env::consts::ARCH.to_owned(),
            container: fs::exists("/.dockerenv").unwrap_or(false)
                || fs::exists("/run/.containerenv").unwrap_or(false),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let model = if self.model.is_empty() { &self.architecture } else { &self.model };
        let gibibytes = self.memory_bytes as f64 / f64::from(1 << 30);
        write!(
            f,
            "{} x {model}, {gibibytes:.0} GiB, Linux {}, {}",
            self.processors, self.kernel, self.architecture
        )?;
        if let Some(governor) = &self.governor {
            write!(f, ", governor {governor}")?;
        }
        f.write_str(if self.container { ", in a container" } else { "" })
    }
}

/// The value of the first line of `text` that begins with `name` and has a colon.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// Now, as in 2026-01-31T23:59:59Z.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_tells_what_it_is() {
        let here = Machine::here();
        assert!(here.processors > 0 && here.memory_bytes > 1 << 20, "{here:?}");
        assert!(here.to_string().contains(&here.kernel));
    }
}
