//! How much memory this process may lock, read before it tries.

use std::fs;
use std::io;

/// Capability number of CAP_IPC_LOCK (`include/uapi/linux/capability.h`).
const CAP_IPC_LOCK: u32 = 14;

/// The process's standing with RLIMIT_MEMLOCK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memlock {
    /// Soft limit in bytes; `None` where there is none or CAP_IPC_LOCK lifts it.
    pub limit: Option<u64>,
    /// Bytes locked at the moment (`VmLck`).
    pub locked: u64,
}

impl Memlock {
    /// Reads the limit, the capability and what is locked now.
    ///
    /// # Errors
    ///
    /// Where `/proc/self/status` cannot be read.
    pub fn of_this_process() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let limit = if has_capability(&status, CAP_IPC_LOCK) { None } else { soft_limit() };
        Ok(Memlock { limit, locked: locked_bytes(&status) })
    }

    /// Bytes that can still be locked; `None` for "as many as there are".
    pub fn room(&self) -> Option<u64> {
        self.limit.map(|limit| limit.saturating_sub(self.locked))
    }
}

fn soft_limit() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the struct is valid for writing and outlives the call.
    // Test: `this_process_has_a_sane_answer`.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) };
    (result == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

fn has_capability(status: &str, capability: u32) -> bool {
    field(status, "CapEff")
        .and_then(|hex| u64::from_str_radix(hex, 16).ok())
        .is_some_and(|mask| mask >> capability & 1 == 1)
}

fn locked_bytes(status: &str) -> u64 {
    field(status, "VmLck")
        .and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_fields_are_understood() {
        let status = "Name:\tx\nVmLck:\t     128 kB\nCapEff:\t0000000000004000\n";
        assert_eq!(locked_bytes(status), 128 << 10);
        assert!(has_capability(status, CAP_IPC_LOCK));
        assert!(!has_capability(status, 13));
        assert_eq!(locked_bytes("Name:\tx\n"), 0);
        assert!(!has_capability("CapEff:\tzz\n", 0));
    }

    #[test]
    fn room_is_what_the_limit_leaves() {
        assert_eq!(Memlock { limit: Some(100), locked: 30 }.room(), Some(70));
        assert_eq!(Memlock { limit: Some(100), locked: 300 }.room(), Some(0));
        assert_eq!(Memlock { limit: None, locked: 300 }.room(), None);
    }

    #[test]
    fn this_process_has_a_sane_answer() {
        let memlock = Memlock::of_this_process().unwrap();
        assert!(memlock.limit.is_none_or(|limit| limit > 0), "{memlock:?}");
    }
}
