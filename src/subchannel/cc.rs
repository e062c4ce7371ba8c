//! Condition codes.

/// Condition code of an I/O instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Cc {
    /// The function was started, or the information stored.
    Cc0 = 0,
    /// Status pending; for TSCH, no status pending; for STCRW, no report.
    Cc1 = 1,
    /// A function is in progress; for RSCH and XSCH, the function does not apply.
    Cc2 = 2,
    /// Not operational.
    Cc3 = 3,
}
