//! Whether it pays to look at a program right after its start.

/// Whether it pays to look at a program right after its start: on devices that answer while the start is
/// still being written it saves a way through the runtime, on all others it is a system call for nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AtOnce {
    is_due: bool,
    /// How often it has paid lately, against how often it has not.
    paid: i8,
    starts: u8,
}

impl AtOnce {
    /// Of so many starts one is looked at where it does not pay, to see whether it still does not.
    const SELDOM: u8 = 64;
    const MOST: i8 = 8;

    /// A program was started.
    pub(super) fn started(&mut self) {
        self.starts = (self.starts + 1) % Self::SELDOM;
        self.is_due = self.paid > 0 || self.starts == 1;
    }

    /// Whether it is to be looked at now; once for each start.
    pub(super) fn take(&mut self) -> bool {
        std::mem::take(&mut self.is_due)
    }

    /// It was looked at, and had ended or not.
    pub(super) fn learn(&mut self, pays: bool) {
        self.paid = (self.paid + if pays { 1 } else { -1 }).clamp(0, Self::MOST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(at_once: &mut AtOnce, pays: bool, starts: u32) -> usize {
        let look = |_: &u32| {
            at_once.started();
            let looks = at_once.take();
            if looks {
                at_once.learn(pays);
            }
            looks
        };
        (0..starts).filter(look).count()
    }

    #[test]
    fn it_looks_where_it_pays_and_seldom_where_it_does_not() {
        let mut at_once = AtOnce::default();
        assert_eq!(looks(&mut at_once, false, 640), 10);
        assert!(
            looks(&mut at_once, true, 640) >= 640 - 64,
            "found out by the next one at the latest"
        );
        assert!(looks(&mut at_once, false, 640) <= 10 + 8, "and so the other way round");
        assert!(!at_once.take(), "nothing was started");
    }
}
