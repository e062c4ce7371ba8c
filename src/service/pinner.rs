//! What pins guest pages, where no device of the host's does.

use std::fmt;
use std::str::FromStr;

/// Which pinner a service has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PinnerChoice {
    /// Pages are locked in RAM (`mlock`): free while they stay, some microseconds when they come or
    /// go.
    #[default]
    Resident,
    /// Pages are registered with the shards' io_urings, and file I/O goes straight into them:
    /// pages come and go at a tenth of the cost, and each use costs a little more. For mode
    /// on-demand, and for budgets much smaller than what is in use. At most 16,384 frames; needs
    /// driver io_uring; RLIMIT_MEMLOCK is charged once for each shard.
    Registered,
}

impl PinnerChoice {
    /// All choices, in the order in which help texts list them.
    pub const ALL: [PinnerChoice; 2] = [PinnerChoice::Resident, PinnerChoice::Registered];

    /// The name that options, reports and metric labels use.
    pub fn name(self) -> &'static str {
        match self {
            PinnerChoice::Resident => "resident",
            PinnerChoice::Registered => "registered",
        }
    }
}

impl fmt::Display for PinnerChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no pinner.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a pinner: use resident or registered")]
pub struct UnknownPinner(String);

impl FromStr for PinnerChoice {
    type Err = UnknownPinner;

    fn from_str(word: &str) -> Result<Self, UnknownPinner> {
        PinnerChoice::ALL
            .into_iter()
            .find(|pinner| pinner.name() == word)
            .ok_or_else(|| UnknownPinner(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for pinner in PinnerChoice::ALL {
            assert_eq!(pinner.to_string().parse(), Ok(pinner));
        }
        assert!("mlock".parse::<PinnerChoice>().unwrap_err().to_string().contains("'mlock'"));
    }
}
