//! Guest program in, shadow program out.
//!
//! The guest's CCWs and IDALs are read once, into a [`Program`]; the device runs what is written
//! from there. Errors are **lazy**: a CCW that cannot be translated becomes a CCW that the channel
//! refuses with a program check when, and only when, execution reaches it; an address that cannot
//! be translated becomes an IDAW that is mapped nowhere. So translation itself never fails, and a
//! guest sees its mistakes where the architecture shows them.
//!
//! | stage | file |
//! |---|---|
//! | fetch and check the guest program | `fetch.rs` |
//! | write the shadow program | `emit.rs` |
//! | map addresses of the shadow back | `back_map.rs` |
//!
//! Translated now: CCW formats 0 and 1; command and data chaining; TIC, also backward and into
//! other segments; direct data and IDAW formats 1 and 2; SLI, SKIP, PCI, zero counts. Refused with a
//! program check when reached: MIDAWs and suspension, which no ORB accepted here can ask for.

mod back_map;
mod emit;
mod fetch;
mod program;

pub(crate) use program::Program;

/// Bounds on one channel program. What exceeds them ends in a program check at that CCW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// CCWs in all segments.
    pub ccws: usize,
    /// IDAWs of the shadow program.
    pub idaws: usize,
    /// Segments: runs of CCWs reached by TIC, with the first.
    pub segments: usize,
}

impl Default for Limits {
    /// 4,096 CCWs in 16 segments (what the kernel driver takes), 65,536 IDAWs (256 MiB of data).
    fn default() -> Self {
        Limits { ccws: 4096, idaws: 65_536, segments: 16 }
    }
}
