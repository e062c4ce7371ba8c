//! What a process has open.

use std::fs;

/// What this process has open.
pub fn descriptors() -> Vec<String> {
    let entries = fs::read_dir("/proc/self/fd").expect("there is /proc").flatten();
    let targets = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    let mut targets: Vec<_> = targets
        .map(|target| target.display().to_string())
        // The one that reads this.
        .filter(|target| !target.starts_with("/proc/"))
        .collect();
    targets.sort_unstable();
    targets
}
