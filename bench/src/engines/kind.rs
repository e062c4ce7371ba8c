//! The engines by name.

use std::str::FromStr;

/// What a job drives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineKind {
    /// FBA disks in this process.
    InProcess,
    /// FBA disks, or null devices, of `vfio-ccw serve`.
    Remote,
    /// Devices of the kernel's vfio-ccw.
    Kernel,
    /// Null devices in this process.
    Null,
    /// Baseline: the least system calls a synchronous user of vfio-ccw makes, and nothing else.
    SyncEpoll,
    /// Baseline: as QEMU does it, with one ppoll for all devices, and pins for each I/O.
    QemuShape,
    /// Baseline: `sync-epoll` that translates, and pins and unpins for each I/O.
    PerRequestPin,
    /// Baseline: rings to a thread and back, and nothing behind them.
    NullTranslate,
}

/// No engine of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no engine '{0}': use inprocess, remote, kernel or null, or a baseline: sync-epoll, qemu-shape, per-request-pin or null-translate"
)]
pub struct UnknownEngine(String);

impl EngineKind {
    /// All, in the order in which texts list them.
    pub const ALL: [EngineKind; 8] = [
        EngineKind::InProcess,
        EngineKind::Remote,
        EngineKind::Kernel,
        EngineKind::Null,
        EngineKind::SyncEpoll,
        EngineKind::QemuShape,
        EngineKind::PerRequestPin,
        EngineKind::NullTranslate,
    ];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::InProcess => "inprocess",
            EngineKind::Remote => "remote",
            EngineKind::Kernel => "kernel",
            EngineKind::Null => "null",
            EngineKind::SyncEpoll => "sync-epoll",
            EngineKind::QemuShape => "qemu-shape",
            EngineKind::PerRequestPin => "per-request-pin",
            EngineKind::NullTranslate => "null-translate",
        }
    }

    /// Whether it is another's way, to be compared with.
    pub fn is_baseline(self) -> bool {
        matches!(
            self,
            EngineKind::SyncEpoll
                | EngineKind::QemuShape
                | EngineKind::PerRequestPin
                | EngineKind::NullTranslate
        )
    }
}

impl FromStr for EngineKind {
    type Err = UnknownEngine;

    fn from_str(word: &str) -> Result<Self, UnknownEngine> {
        let kind = EngineKind::ALL.into_iter().find(|kind| kind.name() == word);
        kind.ok_or_else(|| UnknownEngine(word.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_engines() {
        for kind in EngineKind::ALL {
            assert_eq!(kind.name().parse(), Ok(kind));
        }
        let error = "libaio".parse::<EngineKind>().unwrap_err().to_string();
        assert!(EngineKind::ALL.iter().all(|kind| error.contains(kind.name())), "{error}");
    }
}
