//! A circle of places with a hand that goes around it.
//!
//! Who evicts at the hand and lets new ones into the places that became vacant has a FIFO; who
//! spares what was used since the last round has a CLOCK. Both without a write on a hit.

/// A place that no frame stands in.
const VACANT: u32 = u32::MAX;

/// Frames in a circle.
#[derive(Debug, Default)]
pub(crate) struct Clock {
    places: Vec<u32>,
    vacant: Vec<u32>,
    hand: usize,
    /// Pages of 4 KiB that its frames weigh.
    pages: u32,
}

impl Clock {
    /// Makes room for `frames` in all, so that entering allocates nothing.
    pub(crate) fn reserve(&mut self, frames: usize) {
        self.places.reserve(frames.saturating_sub(self.places.len()));
        self.vacant.reserve(frames.saturating_sub(self.vacant.len()));
    }

    /// Frames in it.
    pub(crate) fn len(&self) -> usize {
        self.places.len() - self.vacant.len()
    }

    /// Pages of 4 KiB that its frames weigh.
    pub(crate) fn pages(&self) -> u32 {
        self.pages
    }

    /// Places there are: as many steps take the hand around once.
    pub(crate) fn places(&self) -> usize {
        self.places.len()
    }

    /// Gives `frame` a place: the one that became vacant last, or a new one.
    pub(crate) fn enter(&mut self, frame: u32, pages: u32) -> u32 {
        self.pages += pages;
        match self.vacant.pop() {
            Some(place) => {
                self.places[place as usize] = frame;
                place
            }
            None => {
                self.places.push(frame);
                (self.places.len() - 1) as u32
            }
        }
    }

    /// Takes the frame out of `place`.
    pub(crate) fn leave(&mut self, place: u32, pages: u32) {
        debug_assert!(self.places[place as usize] != VACANT, "place {place} left twice");
        self.pages -= pages;
        self.places[place as usize] = VACANT;
        self.vacant.push(place);
        if self.len() == 0 {
            // Nobody walks over places that only a large past has left behind.
            self.places.clear();
            self.vacant.clear();
            self.hand = 0;
        }
    }

    /// The frame in `place`.
    pub(crate) fn frame(&self, place: u32) -> u32 {
        self.places[place as usize]
    }

    /// Moves the hand on by one place and returns the frame that stands there, if one does.
    pub(crate) fn step(&mut self) -> Option<u32> {
        let frame = *self.places.get(self.hand)?;
        self.hand = (self.hand + 1) % self.places.len();
        (frame != VACANT).then_some(frame)
    }

    /// All frames.
    pub(crate) fn frames(&self) -> impl Iterator<Item = u32> {
        self.places.iter().copied().filter(|frame| *frame != VACANT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hand_meets_frames_in_the_order_in_which_they_came() {
        let mut clock = Clock::default();
        let mut places: Vec<u32> = (0..3).map(|frame| clock.enter(frame, 1)).collect();
        for next in 3..9 {
            let oldest = clock.step().unwrap();
            assert_eq!(oldest, next - 3);
            clock.leave(places.remove(0), 1);
            places.push(clock.enter(next, 1));
        }
        assert_eq!((clock.len(), clock.pages()), (3, 3));
    }

    #[test]
    fn an_empty_circle_has_no_places() {
        let mut clock = Clock::default();
        let (one, two) = (clock.enter(1, 512), clock.enter(2, 1));
        assert_eq!((clock.frame(one), clock.pages()), (1, 513));
        clock.leave(one, 512);
        assert_eq!((clock.step(), clock.step()), (None, Some(2)));
        clock.leave(two, 1);
        assert_eq!((clock.places(), clock.step()), (0, None));
    }
}
