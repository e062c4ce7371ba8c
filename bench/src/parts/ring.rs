//! Items through a ring, on one thread.
//!
//! The loops are generic over push and pop, so that a peer's ring goes through the same ones.

use std::hint::black_box;

use crate::ratio::FieldError;

/// Slots of each ring: large enough that a full ring is rare.
pub const CAPACITY: usize = 1024;

/// Items of a burst.
pub const BURST: usize = 32;

/// Pushes and pops `items` items in turn; the sum of those that came out.
#[inline]
pub fn alternate(
    items: u64,
    mut push: impl FnMut(u64) -> bool,
    mut pop: impl FnMut() -> Option<u64>,
) -> u64 {
    let mut sum = 0;
    for item in 0..items {
        if push(black_box(item)) {
            sum += pop().unwrap_or_default();
        }
    }
    sum
}

/// The items of one burst. `black_box` keeps the compiler from making the sum at compile time.
#[inline]
pub fn burst(first: u64) -> impl ExactSizeIterator<Item = u64> {
    (0..BURST).map(move |step| black_box(first + step as u64))
}

/// Sum of the first `items` items.
pub fn sum_of(items: u64) -> u64 {
    items * items.saturating_sub(1) / 2
}

/// A ring that is fast because it loses items must not win.
///
/// # Errors
/// Where it has lost some.
pub fn check_sum(sum: u64, expected: u64) -> Result<(), FieldError> {
    if sum == expected {
        Ok(())
    } else {
        Err(format!("the items that came out add up to {sum} instead of {expected}").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn a_ring_that_loses_items_is_found_out() {
        let slot = Cell::new(None);
        let keep = |item| slot.replace(Some(item)).is_none();
        let sum = alternate(100, keep, || slot.take());
        check_sum(sum, sum_of(100)).unwrap();
        let lose = |item| item % 10 > 0 && keep(item);
        let sum = alternate(100, lose, || slot.take());
        assert!(check_sum(sum, sum_of(100)).unwrap_err().to_string().contains("instead of 4950"));
    }
}
