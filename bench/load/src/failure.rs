//! How a request can fail: a small `Copy` value, turned into words only when somebody reads it.
//!
//! Status bits are those of the subchannel-status word, IBM "z/Architecture Principles of Operation"
//! (SA22-7832), chapter 16, "Device-Status Field" and "Subchannel-Status Field"; sense byte 0 is that
//! of the basic sense command, common to direct-access devices.

use std::fmt;

const UNIT_CHECK: u8 = 0x02;
const INCORRECT_LENGTH: u8 = 0x40;
const PROGRAM_CHECK: u8 = 0x20;
const PROTECTION_CHECK: u8 = 0x10;

const DEVICE_STATUS: [&str; 8] = [
    "attention",
    "status modifier",
    "control-unit end",
    "busy",
    "channel end",
    "device end",
    "unit check",
    "unit exception",
];
const SUBCHANNEL_STATUS: [&str; 8] = [
    "program-controlled interruption",
    "incorrect length",
    "program check",
    "protection check",
    "channel-data check",
    "channel-control check",
    "interface-control check",
    "chaining check",
];
const SENSE: [&str; 8] = [
    "command reject",
    "intervention required",
    "bus-out check",
    "equipment check",
    "data check",
    "overrun",
    "bit 6",
    "bit 7",
];

/// How one request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The start was refused at once with this condition code (1 to 3).
    Refused {
        /// Condition code of START SUBCHANNEL.
        condition_code: u8,
    },
    /// The start was accepted, and refused later with this deferred condition code (1 to 3).
    Deferred {
        /// Deferred condition code in the interruption-response block.
        condition_code: u8,
    },
    /// The program ended with a status other than normal ending.
    Status {
        /// Device status.
        device: u8,
        /// Subchannel status.
        subchannel: u8,
        /// First sense byte, 0 where there was none.
        sense: u8,
    },
    /// The program ended normally but transferred less than asked.
    Short {
        /// Bytes not transferred.
        residual: u32,
    },
    /// The service ended the request without running it to its end (reset, detach, shutdown).
    Abandoned,
}

impl Failure {
    /// What to count it under.
    pub fn kind(&self) -> FailureKind {
        match *self {
            Self::Refused { .. } => FailureKind::Refused,
            Self::Deferred { .. } => FailureKind::Deferred,
            Self::Short { .. } => FailureKind::Short,
            Self::Abandoned => FailureKind::Abandoned,
            Self::Status { device, subchannel, .. } => {
                // The program's own faults come first: they explain the unit check that may follow.
                if subchannel & PROGRAM_CHECK != 0 {
                    FailureKind::ProgramCheck
                } else if subchannel & PROTECTION_CHECK != 0 {
                    FailureKind::ProtectionCheck
                } else if device & UNIT_CHECK != 0 {
                    FailureKind::UnitCheck
                } else if subchannel & INCORRECT_LENGTH != 0 {
                    FailureKind::IncorrectLength
                } else {
                    FailureKind::OtherStatus
                }
            }
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Refused { condition_code } => {
                write!(
                    f,
                    "start refused with condition code {condition_code} ({})",
                    meaning(condition_code)
                )
            }
            Self::Deferred { condition_code } => write!(
                f,
                "start failed with deferred condition code {condition_code} ({})",
                meaning(condition_code)
            ),
            Self::Status { device, subchannel, sense } => {
                write!(f, "device status {device:#04x}{}", Bits(device, &DEVICE_STATUS))?;
                write!(
                    f,
                    ", subchannel status {subchannel:#04x}{}",
                    Bits(subchannel, &SUBCHANNEL_STATUS)
                )?;
                if sense != 0 {
                    write!(f, ", sense {sense:#04x}{}", Bits(sense, &SENSE))?;
                }
                Ok(())
            }
            Self::Short { residual } => write!(f, "{residual} bytes short without an error status"),
            Self::Abandoned => f.write_str("abandoned before it completed"),
        }
    }
}

fn meaning(condition_code: u8) -> &'static str {
    match condition_code {
        1 => "status pending",
        2 => "busy",
        3 => "not operational",
        _ => "no failure by definition",
    }
}

/// The names of the bits that are set, in parentheses, from the leftmost; nothing for zero.
struct Bits<'a>(u8, &'a [&'static str; 8]);

impl fmt::Display for Bits<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut opening = " (";
        for (bit, name) in self.1.iter().enumerate() {
            if self.0 & (0x80 >> bit) != 0 {
                write!(f, "{opening}{name}")?;
                opening = ", ";
            }
        }
        if self.0 != 0 { f.write_str(")") } else { Ok(()) }
    }
}

/// What failures are counted under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum FailureKind {
    /// [`Failure::Refused`].
    Refused,
    /// [`Failure::Deferred`].
    Deferred,
    /// The channel program was at fault.
    ProgramCheck,
    /// The channel program touched what it must not.
    ProtectionCheck,
    /// The device reports a unit check.
    UnitCheck,
    /// More or fewer bytes than the program provided for.
    IncorrectLength,
    /// Any other status.
    OtherStatus,
    /// [`Failure::Short`].
    Short,
    /// [`Failure::Abandoned`].
    Abandoned,
}

impl FailureKind {
    /// All kinds, in the order of reports.
    pub const ALL: [Self; 9] = [
        Self::Refused,
        Self::Deferred,
        Self::ProgramCheck,
        Self::ProtectionCheck,
        Self::UnitCheck,
        Self::IncorrectLength,
        Self::OtherStatus,
        Self::Short,
        Self::Abandoned,
    ];

    /// Name in reports, in lower case with underscores.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Deferred => "deferred",
            Self::ProgramCheck => "program_check",
            Self::ProtectionCheck => "protection_check",
            Self::UnitCheck => "unit_check",
            Self::IncorrectLength => "incorrect_length",
            Self::OtherStatus => "other_status",
            Self::Short => "short",
            Self::Abandoned => "abandoned",
        }
    }
}

/// Counts by kind, with the first example of each; adding one allocates nothing.
#[derive(Debug, Clone, Default)]
pub(crate) struct FailureTally {
    rows: [Option<(u64, usize, Failure)>; FailureKind::ALL.len()],
}

impl FailureTally {
    pub(crate) fn add(&mut self, slot: usize, failure: Failure) {
        let (count, ..) = self.rows[failure.kind() as usize].get_or_insert((0, slot, failure));
        *count += 1;
    }

    pub(crate) fn total(&self) -> u64 {
        self.rows.iter().flatten().map(|(count, ..)| count).sum()
    }

    /// The kinds that occurred.
    pub(crate) fn rows(&self) -> Vec<ErrorRow> {
        let row = |(kind, row): (&FailureKind, &Option<(u64, usize, Failure)>)| {
            row.map(|(count, slot, first)| ErrorRow {
                kind: kind.name().to_owned(),
                count,
                first: format!("slot {slot}: {first}"),
            })
        };
        FailureKind::ALL.iter().zip(&self.rows).filter_map(row).collect()
    }
}

/// How often one kind of failure occurred.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ErrorRow {
    /// [`FailureKind::name`].
    pub kind: String,
    /// How often.
    pub count: u64,
    /// The first one, in words.
    pub first: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_code_and_meaning() {
        let status = Failure::Status { device: 0x0e, subchannel: 0x40, sense: 0x80 };
        assert_eq!(
            status.to_string(),
            "device status 0x0e (channel end, device end, unit check), \
             subchannel status 0x40 (incorrect length), sense 0x80 (command reject)"
        );
        assert_eq!(
            Failure::Status { device: 0, subchannel: 0x20, sense: 0 }.to_string(),
            "device status 0x00, subchannel status 0x20 (program check)"
        );
        assert!(Failure::Refused { condition_code: 3 }.to_string().contains("3 (not operational)"));
        assert!(
            Failure::Deferred { condition_code: 1 }
                .to_string()
                .contains("deferred condition code 1")
        );
        assert!(Failure::Short { residual: 512 }.to_string().starts_with("512 bytes short"));
    }

    #[test]
    fn status_bits_choose_the_kind() {
        let kind = |device, subchannel| Failure::Status { device, subchannel, sense: 0 }.kind();
        assert_eq!(kind(0x0e, 0x00), FailureKind::UnitCheck);
        assert_eq!(kind(0x0e, 0x40), FailureKind::UnitCheck);
        assert_eq!(kind(0x0c, 0x40), FailureKind::IncorrectLength);
        assert_eq!(kind(0x02, 0x20), FailureKind::ProgramCheck);
        assert_eq!(kind(0x0c, 0x10), FailureKind::ProtectionCheck);
        assert_eq!(kind(0x0d, 0x00), FailureKind::OtherStatus);
    }

    #[test]
    fn tally_counts_by_kind_and_keeps_the_first() {
        let mut tally = FailureTally::default();
        tally.add(3, Failure::Abandoned);
        tally.add(4, Failure::Abandoned);
        tally.add(5, Failure::Refused { condition_code: 2 });
        assert_eq!(tally.total(), 3);
        let rows = tally.rows();
        assert_eq!((rows[0].kind.as_str(), rows[0].count), ("refused", 1));
        assert_eq!((rows[1].kind.as_str(), rows[1].count), ("abandoned", 2));
        assert!(rows[1].first.starts_with("slot 3:"));
    }

    #[test]
    fn kinds_are_listed_in_the_order_of_their_numbers() {
        for (index, kind) in FailureKind::ALL.iter().enumerate() {
            assert_eq!(*kind as usize, index);
        }
    }
}
