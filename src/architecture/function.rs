//! The functions that end a start function.

use std::fmt;

use super::ScswFlags;

/// Halt function or clear function: what HALT SUBCHANNEL and CLEAR SUBCHANNEL begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Function {
    /// The program ends at its next command; its subchannel says how far it came.
    Halt,
    /// The program ends at its next command, and nothing is left of it.
    Clear,
}

impl Function {
    /// Its bit of function control in the SCSW.
    pub fn control(self) -> ScswFlags {
        match self {
            Function::Halt => ScswFlags::HALT_FUNCTION,
            Function::Clear => ScswFlags::CLEAR_FUNCTION,
        }
    }
}

impl fmt::Display for Function {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Function::Halt => "halt",
            Function::Clear => "clear",
        })
    }
}
