//! The three answers to "when is guest memory pinned?".

use std::fmt;
use std::str::FromStr;

/// When guest memory is pinned for a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Mode {
    /// The whole guest, before the first request: lowest latency, largest footprint.
    Pinned,
    /// Each program's pages, from its start to its end: smallest footprint, a call per miss. A page
    /// that another program wanted just then may stay until the room is needed.
    OnDemand,
    /// Each program's pages, kept afterwards while the budget has room: the default.
    #[default]
    Cached,
}

impl Mode {
    /// All modes, in the order reports list them.
    pub const ALL: [Mode; 3] = [Mode::Pinned, Mode::OnDemand, Mode::Cached];

    /// The name that options, reports and metric labels use.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Pinned => "pinned",
            Mode::OnDemand => "on-demand",
            Mode::Cached => "cached",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A word that names no mode.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a pinning mode: use pinned, on-demand or cached")]
pub struct UnknownMode(String);

impl FromStr for Mode {
    type Err = UnknownMode;

    fn from_str(word: &str) -> Result<Self, UnknownMode> {
        Mode::ALL
            .into_iter()
            .find(|mode| mode.name() == word)
            .ok_or_else(|| UnknownMode(word.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for mode in Mode::ALL {
            assert_eq!(mode.to_string().parse::<Mode>(), Ok(mode));
        }
        assert!("pin".parse::<Mode>().unwrap_err().to_string().contains("'pin'"));
    }
}
