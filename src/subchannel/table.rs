//! Subchannels by their numbers.

use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use parking_lot::{Condvar, Mutex};

use super::Shared;

/// The most subchannels: four sets of 65,536.
pub(crate) const MOST_SUBCHANNELS: usize = 4 << 16;

/// Subchannels by their numbers over all sets. Looking one up takes no lock.
pub(crate) struct Table {
    places: Box<[ArcSwapOption<Shared>]>,
    numbers: Mutex<Numbers>,
    /// A number was given back.
    given_back: Condvar,
}

/// Which numbers are given out.
#[derive(Debug)]
struct Numbers {
    /// Those that were given back.
    free: BTreeSet<u32>,
    /// All from here on were never given out.
    fresh: u32,
}

impl Table {
    /// A table for `places` subchannels, at most [`MOST_SUBCHANNELS`].
    pub(crate) fn new(places: usize) -> Self {
        let places = places.min(MOST_SUBCHANNELS);
        Table {
            places: (0..places).map(|_| ArcSwapOption::empty()).collect(),
            numbers: Mutex::new(Numbers { free: BTreeSet::new(), fresh: 0 }),
            given_back: Condvar::new(),
        }
    }

    /// How many subchannels there can be.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// Gives out the lowest number that is free, or `wanted` if that is.
    pub(crate) fn reserve(&self, wanted: Option<u32>) -> Option<u32> {
        let mut numbers = self.numbers.lock();
        let number = match wanted {
            Some(wanted) => wanted,
            None => numbers.free.first().copied().unwrap_or(numbers.fresh),
        };
        if number as usize >= self.places.len() {
            return None;
        }
        if number >= numbers.fresh {
            let between = numbers.fresh..number;
            numbers.free.extend(between);
            numbers.fresh = number + 1;
            return Some(number);
        }
        numbers.free.remove(&number).then_some(number)
    }

    /// Takes a number back that nobody uses.
    pub(crate) fn give_back(&self, number: u32) {
        self.numbers.lock().free.insert(number);
        self.given_back.notify_all();
    }

    /// Waits until the task of `shared` has ended, at most `patience`; whether it has.
    pub(crate) fn wait_until_over(&self, shared: &Shared, patience: Duration) -> bool {
        let deadline = Instant::now().checked_add(patience);
        let mut numbers = self.numbers.lock();
        while !shared.is_over() {
            match deadline {
                Some(deadline)
                    if self.given_back.wait_until(&mut numbers, deadline).timed_out() =>
                {
                    return shared.is_over();
                }
                Some(_) => {}
                None => self.given_back.wait(&mut numbers),
            }
        }
        true
    }

    /// Puts a subchannel in its place, or takes it out.
    pub(crate) fn put(&self, number: u32, shared: Option<Arc<Shared>>) {
        self.places[number as usize].store(shared);
    }

    /// Takes out a subchannel, if it is still in its place; whether it was. Its number is not free yet:
    /// that is for [`Table::give_back`], when its task is over.
    pub(crate) fn remove(&self, shared: &Arc<Shared>) -> bool {
        let place = &self.places[shared.place()];
        let before = place.compare_and_swap(shared, None);
        before.as_ref().is_some_and(|before| Arc::ptr_eq(before, shared))
    }

    /// The subchannel of this number.
    pub(crate) fn look_up(&self, number: u32) -> Option<Arc<Shared>> {
        self.places.get(number as usize)?.load_full()
    }

    /// All subchannels, in the order of their numbers.
    pub(crate) fn all(&self) -> impl Iterator<Item = Arc<Shared>> + '_ {
        let fresh = self.numbers.lock().fresh;
        (0..fresh).filter_map(|number| self.look_up(number))
    }

    /// Whether no subchannel has one of these numbers.
    pub(crate) fn is_empty_in(&self, numbers: Range<u32>) -> bool {
        let end = numbers.end.min(self.numbers.lock().fresh);
        (numbers.start..end).all(|number| self.places[number as usize].load().is_none())
    }
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Table").field("places", &self.places.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_free_number_is_given_out() {
        let table = Table::new(6);
        let numbers: Vec<_> = (0..3).map(|_| table.reserve(None)).collect();
        assert_eq!(numbers, [Some(0), Some(1), Some(2)]);
        table.give_back(1);
        assert_eq!(table.reserve(Some(4)), Some(4));
        assert_eq!(table.reserve(Some(4)), None, "it is taken");
        assert_eq!((table.reserve(None), table.reserve(None)), (Some(1), Some(3)));
        assert_eq!((table.reserve(None), table.reserve(None)), (Some(5), None), "all are taken");
        assert_eq!(table.reserve(Some(6)), None, "there is no such place");
        assert!(table.is_empty_in(0..u32::MAX), "nothing was put there");
        table.give_back(0);
        assert_eq!(table.reserve(Some(0)), Some(0));
    }
}
