//! The answer of a bounded ring that has no room.

use std::fmt;

/// The ring had no free slot; the entry comes back in field 0.
///
/// This is back-pressure, not a fault. Retry after the consumer has taken entries, report the device
/// as busy, or create the ring with a larger capacity.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "no free slot in the ring: retry after the consumer has taken entries, or create the ring with a larger capacity"
)]
pub struct Full<T>(pub T);

impl<T> Full<T> {
    /// The entry that did not fit.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Does not ask for `T: Debug`, so that `Full` is an error for every entry type.
impl<T> fmt::Debug for Full<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Full").finish_non_exhaustive()
    }
}
