//! How a thread waits for work: asleep, looking all the time, or looking for as long as that pays.
//!
//! Looking costs processor time; sleeping costs the system calls of a wake-up on both sides, and some
//! microseconds until the thread runs again. What is better depends on how long the wait will be, which
//! nobody knows, but waits resemble those before. [`Waiter`] looks where the next work is expected
//! soon, sleeps at once where it is not, and keeps to a budget of processor time.
//!
//! It is told the time, in nanoseconds from wherever the caller likes, and decides. It looks at nothing
//! and waits for nothing itself, so what it does can be tested without a clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How a thread waits for work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WaitStrategy {
    /// It sleeps until it is woken.
    Sleep,
    /// It looks all the time: a whole core, and the shortest way.
    Spin,
    /// It looks while work is expected soon, within a budget; else it sleeps.
    Adaptive(Adaptive),
}

/// Bounds of adaptive waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Adaptive {
    /// Longest time to look before sleeping; where more is expected, the thread sleeps at once.
    pub longest: Duration,
    /// Most of a core that may go into looking where that saves nothing, in per cent, 0 to 100: time
    /// looked in vain, and what a successful look took longer than a sleep costs
    /// ([`PRICE_OF_SLEEP`]).
    pub budget: u8,
}

/// What a sleep costs in processor time, roughly: the system calls of the sleeper and of whoever
/// wakes it, and getting back. So much looking saves as much as it costs.
pub const PRICE_OF_SLEEP: Duration = Duration::from_micros(5);

impl Default for Adaptive {
    /// 50 µs, and a quarter of a core.
    fn default() -> Self {
        Adaptive { longest: Duration::from_micros(50), budget: 25 }
    }
}

impl Default for WaitStrategy {
    fn default() -> Self {
        WaitStrategy::Adaptive(Adaptive::default())
    }
}

impl WaitStrategy {
    /// This strategy where there is more than one processor; on one, whoever looks keeps away whom it
    /// waits for, and it is [`WaitStrategy::Sleep`].
    #[must_use]
    pub fn on_this_machine(self) -> Self {
        self.among(2)
    }

    /// This strategy where there are processors for as many `threads` that wait for each other; with fewer it
    /// is [`WaitStrategy::Sleep`], as whoever looks keeps away whom it waits for.
    #[must_use]
    pub fn among(self, threads: usize) -> Self {
        match std::thread::available_parallelism() {
            Ok(processors) if processors.get() < threads => WaitStrategy::Sleep,
            _ => self,
        }
    }
}

impl fmt::Display for WaitStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WaitStrategy::Sleep => f.write_str("sleep"),
            WaitStrategy::Spin => f.write_str("spin"),
            WaitStrategy::Adaptive(Adaptive { longest, budget }) => {
                write!(f, "adaptive:{}:{budget}", longest.as_micros())
            }
        }
    }
}

/// A word that names no strategy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a way to wait: use sleep, spin, adaptive or adaptive:MICROSECONDS:PERCENT, such as adaptive:50:25 (at most 1000000 microseconds, 100 per cent)"
)]
pub struct UnknownWaitStrategy(String);

impl FromStr for WaitStrategy {
    type Err = UnknownWaitStrategy;

    fn from_str(word: &str) -> Result<Self, UnknownWaitStrategy> {
        let wrong = || UnknownWaitStrategy(word.to_owned());
        let mut parts = word.split(':');
        let strategy = match parts.next() {
            Some("sleep") => WaitStrategy::Sleep,
            Some("spin") => WaitStrategy::Spin,
            Some("adaptive") => {
                let mut adaptive = Adaptive::default();
                if let Some(micros) = parts.next() {
                    let micros = micros.parse().ok().filter(|micros| *micros <= 1_000_000);
                    adaptive.longest = Duration::from_micros(micros.ok_or_else(wrong)?);
                }
                if let Some(percent) = parts.next() {
                    let percent = percent.parse().ok().filter(|percent| *percent <= 100);
                    adaptive.budget = percent.ok_or_else(wrong)?;
                }
                WaitStrategy::Adaptive(adaptive)
            }
            _ => return Err(wrong()),
        };
        match parts.next() {
            None => Ok(strategy),
            Some(_) => Err(wrong()),
        }
    }
}

/// What to do while there is no work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Look again.
    Look,
    /// Sleep until woken.
    Sleep,
}

/// Nanoseconds spent in each way of waiting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Looking until there was work.
    pub looking: u64,
    /// Looking until it was time to sleep.
    pub in_vain: u64,
    /// Asleep.
    pub asleep: u64,
}

/// How long something took lately: an average that forgets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Forecast {
    /// Eight times the average, so that small values are not rounded away; 0: nothing is known.
    eightfold: u64,
}

impl Forecast {
    /// Takes a new observation into account, with an eighth of the weight.
    #[inline]
    pub fn observe(&mut self, nanos: u64) {
        let nanos = nanos.clamp(1, 1 << 50);
        self.eightfold = match self.eightfold {
            0 => nanos * 8,
            known => known - known / 8 + nanos,
        };
    }

    /// The average, in nanoseconds.
    #[must_use]
    pub fn nanos(self) -> Option<u64> {
        (self.eightfold > 0).then_some(self.eightfold / 8)
    }
}

/// What the thread is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Working,
    Looking {
        since: u64,
        until: u64,
    },
    /// `idle`: since when there has been no work.
    Asleep {
        idle: u64,
        since: u64,
    },
}

/// Decides for one thread how it waits.
///
/// ```
/// use vfio_ccw_queues::wait::{Advice, WaitStrategy, Waiter};
///
/// let mut waiter = Waiter::new(WaitStrategy::default(), 0);
/// // At first nothing is known, so it looks.
/// assert_eq!(waiter.idle(1_000, None), Advice::Look);
/// // Nothing came within the longest time: it sleeps.
/// assert_eq!(waiter.idle(90_000, None), Advice::Sleep);
/// waiter.sleep(90_000);
/// // It is woken after a second. The next wait may be as long: no look this time.
/// waiter.wake(1_000_000_000, None);
/// assert_eq!(waiter.idle(1_000_100_000, None), Advice::Sleep);
/// ```
#[derive(Debug)]
pub struct Waiter {
    strategy: WaitStrategy,
    state: State,
    /// From when there is no work to when there is.
    arrivals: Forecast,
    /// Nanoseconds that may go into looking.
    credit: u64,
    /// When the credit was that much.
    credited: u64,
    spent: Spent,
}

/// Time over which the budget is kept: looking may take more for a while, and less afterwards.
const BUDGET_PERIOD: Duration = Duration::from_millis(100);

/// Where the next work is expected, twice that time is looked for it: it may be late.
const LATENESS: u64 = 2;

/// Looking for less than this is not worth beginning.
const SHORTEST: u64 = 2_000;

impl Waiter {
    /// One that begins at `now`, with work to do and a full budget.
    #[must_use]
    pub fn new(strategy: WaitStrategy, now: u64) -> Self {
        let mut waiter = Waiter {
            strategy,
            state: State::Working,
            arrivals: Forecast::default(),
            credit: 0,
            credited: now,
            spent: Spent::default(),
        };
        waiter.credit = waiter.most_credit();
        waiter
    }

    /// There is no work at `now`. `expected`: something that is in progress will probably end then.
    pub fn idle(&mut self, now: u64, expected: Option<u64>) -> Advice {
        let until = match self.state {
            State::Looking { until, .. } => until,
            State::Working | State::Asleep { .. } => {
                let until = self.look_until(now, expected);
                self.state = State::Looking { since: now, until };
                until
            }
        };
        if now < until { Advice::Look } else { Advice::Sleep }
    }

    /// Until when to look for work, from `now` on.
    fn look_until(&mut self, now: u64, expected: Option<u64>) -> u64 {
        let adaptive = match self.strategy {
            WaitStrategy::Sleep => return now,
            WaitStrategy::Spin => return u64::MAX,
            WaitStrategy::Adaptive(adaptive) => adaptive,
        };
        let longest = nanos(adaptive.longest);
        self.earn(now);
        // Where nothing is known, anything may be.
        let arrival = self.arrivals.nanos().unwrap_or(longest);
        let ends = expected.map_or(u64::MAX, |expected| expected.saturating_sub(now));
        let wait = arrival.min(ends);
        if wait > longest {
            return now;
        }
        let window = (wait * LATENESS).max(SHORTEST).min(longest).min(self.credit);
        if window < SHORTEST.min(longest) { now } else { now + window }
    }

    /// Whether it was waiting, so that [`Waiter::found`] wants to know of work.
    #[inline]
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.state != State::Working
    }

    /// There is work at `now`, which was seen by looking.
    pub fn found(&mut self, now: u64) {
        if let State::Looking { since, .. } = self.state {
            let spun = now.saturating_sub(since);
            self.spent.looking += spun;
            self.charge(spun.saturating_sub(nanos(PRICE_OF_SLEEP)));
            self.arrived_after(spun);
        }
        self.state = State::Working;
    }

    /// The thread goes to sleep at `now`.
    pub fn sleep(&mut self, now: u64) {
        let idle = match self.state {
            State::Looking { since, .. } => {
                let spun = now.saturating_sub(since);
                self.spent.in_vain += spun;
                self.charge(spun);
                since
            }
            State::Working => now,
            State::Asleep { idle, .. } => idle,
        };
        self.state = State::Asleep { idle, since: now };
    }

    /// The thread is up again at `now`, for work that came at `rang`; `None`: that is not known.
    pub fn wake(&mut self, now: u64, rang: Option<u64>) {
        if let State::Asleep { idle, since } = self.state {
            self.spent.asleep += now.saturating_sub(since);
            // One from before this wait was for another.
            let rang = rang.filter(|rang| *rang >= idle);
            self.arrived_after(rang.unwrap_or(now).saturating_sub(idle));
        }
        self.state = State::Working;
    }

    fn arrived_after(&mut self, wait: u64) {
        if let WaitStrategy::Adaptive(adaptive) = self.strategy {
            // A night without work must not be remembered for longer than a pause.
            self.arrivals.observe(wait.min(4 * nanos(adaptive.longest)));
        }
    }

    fn most_credit(&self) -> u64 {
        match self.strategy {
            WaitStrategy::Adaptive(Adaptive { budget, .. }) => {
                nanos(BUDGET_PERIOD) * u64::from(budget.min(100)) / 100
            }
            WaitStrategy::Sleep | WaitStrategy::Spin => 0,
        }
    }

    fn earn(&mut self, now: u64) {
        if let WaitStrategy::Adaptive(Adaptive { budget, .. }) = self.strategy {
            let passed = now.saturating_sub(self.credited).min(nanos(BUDGET_PERIOD));
            let earned = passed * u64::from(budget.min(100)) / 100;
            // What is less than a nanosecond is not lost: the time it came from is kept.
            if earned > 0 {
                self.credit = (self.credit + earned).min(self.most_credit());
                self.credited = now;
            }
        }
    }

    fn charge(&mut self, nanos: u64) {
        self.credit = self.credit.saturating_sub(nanos);
    }

    /// What has been spent since this was last asked; a look or sleep that goes on counts when it ends.
    pub fn take_spent(&mut self) -> Spent {
        std::mem::take(&mut self.spent)
    }
}

fn nanos(duration: Duration) -> u64 {
    duration.as_nanos().try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONGEST: u64 = 50_000;

    fn adaptive(budget: u8) -> WaitStrategy {
        WaitStrategy::Adaptive(Adaptive { longest: Duration::from_nanos(LONGEST), budget })
    }

    /// A guest that starts its next program `gap` after the last has ended, seen by a thread that looks
    /// every 500 ns and takes 20 µs to wake up. Returns how many waits ended without a sleep.
    fn run(waiter: &mut Waiter, now: &mut u64, gap: u64, waits: usize) -> usize {
        let mut looked = 0;
        for _ in 0..waits {
            let comes = *now + gap;
            loop {
                if *now >= comes {
                    waiter.found(*now);
                    looked += 1;
                    break;
                }
                if waiter.idle(*now, None) == Advice::Sleep {
                    waiter.sleep(*now);
                    *now = comes + 20_000;
                    waiter.wake(*now, Some(comes));
                    break;
                }
                *now += 500;
            }
            *now += 1_000;
        }
        looked
    }

    #[test]
    fn the_two_simple_strategies_do_what_they_say() {
        let mut sleeper = Waiter::new(WaitStrategy::Sleep, 0);
        assert_eq!(sleeper.idle(5, Some(6)), Advice::Sleep);
        let mut spinner = Waiter::new(WaitStrategy::Spin, 0);
        assert_eq!(spinner.idle(5, None), Advice::Look);
        assert_eq!(spinner.idle(u64::MAX - 1, None), Advice::Look);
    }

    #[test]
    fn it_looks_where_work_comes_soon_and_sleeps_where_it_does_not() {
        let (mut waiter, mut now) = (Waiter::new(adaptive(25), 0), 0);
        assert_eq!(run(&mut waiter, &mut now, 4_000, 1000), 1000, "looking is free here");
        assert!(run(&mut waiter, &mut now, 1_000_000, 100) <= 1);
        let before = waiter.take_spent();
        assert_eq!(run(&mut waiter, &mut now, 1_000_000, 100), 0);
        let spent = waiter.take_spent();
        assert_eq!((spent.looking, spent.in_vain), (0, 0), "it does not even try");
        assert!(before.looking > 0 && spent.asleep > 99 * 1_000_000);
        // After that pause it takes some work that comes soon to know better.
        assert!(run(&mut waiter, &mut now, 4_000, 100) > 70);
    }

    #[test]
    fn waking_up_slowly_is_not_taken_for_slow_work() {
        let (mut waiter, mut now) = (Waiter::new(adaptive(100), 0), 0);
        waiter.idle(now, None);
        waiter.sleep(now);
        now += 10 * LONGEST;
        waiter.wake(now, Some(1_000));
        assert_eq!(waiter.idle(now, None), Advice::Look, "it had come after a microsecond");
    }

    #[test]
    fn what_is_in_progress_is_looked_for_when_it_is_due() {
        let mut waiter = Waiter::new(adaptive(100), 0);
        waiter.sleep(0);
        waiter.wake(1 << 40, None);
        let now = 1 << 41;
        assert_eq!(waiter.idle(now, None), Advice::Sleep);
        waiter.sleep(now);
        waiter.wake(now, None);
        for (due, advice) in [(1_000, Advice::Look), (LONGEST + 1, Advice::Sleep)] {
            let mut waiter = Waiter::new(adaptive(100), 0);
            waiter.sleep(0);
            waiter.wake(1 << 40, None);
            assert_eq!(waiter.idle(now, Some(now + due)), advice, "due in {due} ns");
        }
    }

    #[test]
    fn words_name_strategies() {
        for word in ["sleep", "spin", "adaptive:50:25", "adaptive:0:0", "adaptive:1000000:100"] {
            let strategy: WaitStrategy = word.parse().expect(word);
            assert_eq!(strategy.to_string(), word);
        }
        assert_eq!("adaptive".parse(), Ok(WaitStrategy::default()));
        let micros = "adaptive:7".parse::<WaitStrategy>().expect("a time is enough");
        assert_eq!(micros.to_string(), "adaptive:7:25");
        for wrong in [
            "",
            "nap",
            "sleep:1",
            "adaptive:x",
            "adaptive:1:101",
            "adaptive:1:2:3",
            "adaptive:1000001",
            "adaptive:-1",
        ] {
            let error = wrong.parse::<WaitStrategy>().expect_err(wrong);
            assert!(error.to_string().contains("use sleep"), "{error}");
        }
    }

    proptest! {
        /// Whatever comes when: what is charged for looking stays within the budget.
        #[test]
        fn the_budget_is_kept(
            budget in 0..=100u8,
            gaps in prop::collection::vec((0..200_000u64, 1..50usize), 1..40),
        ) {
            let (mut waiter, mut now) = (Waiter::new(adaptive(budget), 0), 0);
            let mut waits = 0;
            for (gap, count) in gaps {
                run(&mut waiter, &mut now, gap, count);
                waits += count as u64;
            }
            let spent = waiter.take_spent();
            let free = waits * nanos(PRICE_OF_SLEEP);
            let period = nanos(BUDGET_PERIOD);
            // A look ends up to 500 ns late, and may begin with a last bit of credit.
            let slack = waits * 500;
            let allowed = (now + period) * u64::from(budget) / 100 + free + slack;
            prop_assert!(spent.looking + spent.in_vain <= allowed, "{spent:?} > {allowed}");
        }

        /// All time between the first wait and the last work is accounted for.
        #[test]
        fn time_is_accounted_for(gaps in prop::collection::vec(1..100_000u64, 1..50)) {
            let (mut waiter, mut now) = (Waiter::new(adaptive(25), 0), 0);
            let waits = gaps.len() as u64;
            for gap in gaps {
                run(&mut waiter, &mut now, gap, 1);
            }
            let spent = waiter.take_spent();
            prop_assert_eq!(spent.looking + spent.in_vain + spent.asleep, now - waits * 1_000);
        }
    }
}
