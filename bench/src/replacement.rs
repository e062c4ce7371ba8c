//! How well the pool chooses what stays pinned: its hit rates next to those of an LRU map, of
//! quick_cache and of the optimum, on traces that a seed fixes.
//!
//! Nothing is pinned and nothing is timed: who hits what is a matter of policy alone, so the figures
//! are the same on every machine. All start cold and first uses, which nobody can hit, count as
//! misses. The optimum is Belady's ("A study of replacement algorithms for a virtual-storage
//! computer", IBM Systems Journal 1966): it knows the future and evicts what will be used again last.
//!
//! Beside the measured hit rate stands what [`Pool::sizing`] estimated for the same budget, from a
//! sample of frames, for an exact LRU.

use std::collections::BinaryHeap;
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lru::LruCache;
use serde::Serialize;
use vfio_ccw_load::{Access, Workload};
use vfio_ccw_pinning::{FRAME, GuestMap, Hold, Mode, Pool};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use crate::parts::pin_hit::Nothing;
use crate::ratio::FieldError;

/// Budgets in percent of the guest's frames.
const PERCENTS: [u32; 4] = [1, 5, 10, 25];

/// Pages of a program that streams.
const STREAM_PAGES: u32 = 16;

/// Every so many-th frame is of the hot set that is streamed over: 4 % of the guest, which is more
/// than the smallest budget and less than the others.
const HOT_EVERY: u32 = 25;

/// What is measured.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Frames of the guest, 4 KiB each; at least 100.
    pub frames: u32,
    /// Frame uses of each trace but the scan, whose length follows from the number of frames.
    pub uses: u32,
    /// Seed of all traces.
    pub seed: u64,
}

impl Setting {
    /// A guest of 256 MiB, each frame of which is used 16 times on average.
    pub fn new(seed: u64) -> Self {
        Setting { frames: 65_536, uses: 1 << 20, seed }
    }

    /// Runs all traces through all policies at all budgets.
    ///
    /// # Errors
    /// Where the pool cannot be made, refuses a program, or somebody keeps more than the budget.
    pub fn measure(&self) -> Result<HitRates, FieldError> {
        let mut rows = Vec::new();
        for trace in Trace::all(self)? {
            for percent in PERCENTS {
                let budget = (u64::from(self.frames) * u64::from(percent) / 100) as u32;
                let (pool, sizing) = pool(&trace, self.frames, budget)?;
                let lru = lru(&trace, budget)?;
                let quick_cache = quick_cache(&trace, budget)?;
                let optimum = optimum(&trace, self.frames, budget)?;
                let row = |name, rate: fn(&Hits) -> f64, sizing| Row {
                    trace: name,
                    budget_percent: percent,
                    budget_frames: budget,
                    pool: rate(&pool),
                    lru: rate(&lru),
                    quick_cache: rate(&quick_cache),
                    optimum: rate(&optimum),
                    sizing,
                };
                rows.push(row(trace.name, Hits::of_all, sizing));
                if trace.scan.is_some() {
                    rows.push(row(HOT_IN_SCAN, Hits::of_hot_in_scan, None));
                }
            }
        }
        rows.sort_by_key(|row| Trace::NAMES.iter().position(|name| *name == row.trace));
        Ok(HitRates { seed: self.seed, frames: self.frames, rows })
    }
}

/// All that was measured; serialises as one object.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct HitRates {
    /// Seed of the traces.
    pub seed: u64,
    /// Frames of the guest.
    pub frames: u32,
    /// Trace by trace, in ascending order of budget.
    pub rows: Vec<Row>,
}

/// Hit rates of one trace at one budget, as shares from 0 to 1 of the frame uses.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Row {
    /// Name of the trace.
    pub trace: &'static str,
    /// The budget in percent of the guest.
    pub budget_percent: u32,
    /// The budget in frames.
    pub budget_frames: u32,
    /// The pool.
    pub pool: f64,
    /// An LRU map, crate `lru`.
    pub lru: f64,
    /// Crate `quick_cache`.
    pub quick_cache: f64,
    /// Most that is possible. For [`HOT_IN_SCAN`]: what he who has most hits in all has there.
    pub optimum: f64,
    /// What the pool's own sizing help estimates for this budget, after the trace.
    pub sizing: Option<f64>,
}

impl HitRates {
    /// The rows as a table for people, in percent.
    pub fn table(&self) -> String {
        let mut table = format!(
            "hit rates in percent, {} frames, seed {}\n\n{:<18}  {:>6}  {:>6}  {:>6}  {:>11}  {:>7}  {:>8}\n",
            self.frames,
            self.seed,
            "trace",
            "budget",
            "pool",
            "lru",
            "quick_cache",
            "optimum",
            "sizing"
        );
        let percent = |share: f64| format!("{:.2}", share * 100.0);
        for row in &self.rows {
            // Writing to a string can not fail.
            let _ = writeln!(
                table,
                "{:<18}  {:>4} %  {:>6}  {:>6}  {:>11}  {:>7}  {:>8}",
                row.trace,
                row.budget_percent,
                percent(row.pool),
                percent(row.lru),
                percent(row.quick_cache),
                percent(row.optimum),
                row.sizing.map_or_else(|| "-".to_owned(), percent),
            );
        }
        table
    }
}

/// The row of the uses of the hot set while the scan goes on.
pub const HOT_IN_SCAN: &str = "scan: hot uses";

/// A program that uses adjacent frames.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Program {
    first: u32,
    frames: u32,
}

impl Program {
    fn of_one(frame: u32) -> Self {
        Program { first: frame, frames: 1 }
    }

    fn frames(self) -> std::ops::Range<u32> {
        self.first..self.first + self.frames
    }
}

/// Programs in the order in which they run.
#[derive(Debug, Clone, PartialEq)]
struct Trace {
    name: &'static str,
    programs: Vec<Program>,
    /// The program with which a scan starts, where there is one; programs of one frame are of the hot
    /// set then.
    scan: Option<usize>,
}

impl Trace {
    const NAMES: [&str; 6] =
        ["uniform", "zipf 0.99", "sequential", "90/10", "scan over hot set", HOT_IN_SCAN];

    fn all(setting: &Setting) -> Result<[Trace; 5], FieldError> {
        let [uniform, zipf, sequential, working_set, scan, _] = Self::NAMES;
        let hot = Access::WorkingSet { percent_hot_accesses: 90, percent_hot_blocks: 10 };
        let plain = |name, access| -> Result<Trace, FieldError> {
            let frames = draw(access, setting.frames, setting.uses, setting.seed)?;
            Ok(Trace { name, programs: frames.map(Program::of_one).collect(), scan: None })
        };
        Ok([
            plain(uniform, Access::Uniform)?,
            plain(zipf, Access::Zipf(0.99))?,
            plain(sequential, Access::Sequential)?,
            plain(working_set, hot)?,
            Self::scan_over_hot_set(scan, setting)?,
        ])
    }

    /// A hot set with Zipf popularity by itself for a while, then in turns with programs that stream
    /// through all memory, once.
    fn scan_over_hot_set(name: &'static str, setting: &Setting) -> Result<Trace, FieldError> {
        let hot = setting.frames / HOT_EVERY;
        let alone = setting.frames;
        let streaming = setting.frames / STREAM_PAGES;
        let mut uses = draw(Access::Zipf(0.99), hot, alone + streaming, setting.seed)?
            .map(|index| Program::of_one(index * HOT_EVERY));
        let mut programs: Vec<Program> = uses.by_ref().take(alone as usize).collect();
        let scan = Some(programs.len());
        for (number, hot_use) in uses.enumerate() {
            let first = number as u32 * STREAM_PAGES;
            programs.extend([hot_use, Program { first, frames: STREAM_PAGES }]);
        }
        Ok(Trace { name, programs, scan })
    }

    /// Counts the hits; `hits` runs one program and says how many of its frames were there.
    fn count(
        &self,
        mut hits: impl FnMut(Program) -> Result<u32, FieldError>,
    ) -> Result<Hits, FieldError> {
        let mut counted = Hits::default();
        for (number, program) in self.programs.iter().enumerate() {
            let hits = hits(*program)?;
            counted.uses += program.frames;
            counted.hits += hits;
            if program.frames == 1 && self.scan.is_some_and(|scan| number >= scan) {
                counted.hot_uses += 1;
                counted.hot_hits += hits;
            }
        }
        Ok(counted)
    }

    /// The same where each frame is looked up by itself.
    fn count_each(&self, mut is_hit: impl FnMut(u32) -> bool) -> Result<Hits, FieldError> {
        self.count(|program| Ok(program.frames().map(|frame| u32::from(is_hit(frame))).sum()))
    }
}

/// Draws `uses` of frames `0..frames`.
fn draw(
    access: Access,
    frames: u32,
    uses: u32,
    seed: u64,
) -> Result<impl Iterator<Item = u32>, FieldError> {
    let workload = Workload::new(u64::from(frames) * FRAME, FRAME as u32);
    let mut requests = Workload { access, seed, ..workload }.generator(1)?;
    Ok((0..uses).map(move |_| (requests.next(0).offset / FRAME) as u32))
}

/// What somebody found there.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Hits {
    uses: u32,
    hits: u32,
    /// Of these, uses of the hot set while the scan goes on.
    hot_uses: u32,
    hot_hits: u32,
}

impl Hits {
    fn of_all(&self) -> f64 {
        f64::from(self.hits) / f64::from(self.uses)
    }

    fn of_hot_in_scan(&self) -> f64 {
        f64::from(self.hot_hits) / f64::from(self.hot_uses)
    }
}

/// The pool's hits, and the hit rate that it estimates for its budget in the end.
fn pool(trace: &Trace, frames: u32, budget: u32) -> Result<(Hits, Option<f64>), FieldError> {
    let bytes = u64::from(frames) * FRAME;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), bytes as usize)])?;
    let map = Arc::new(GuestMap::new(Arc::new(memory))?);
    let budget = u64::from(budget) * FRAME;
    let pool = Pool::new(map, Box::new(Nothing), budget)?;
    let mut hold = Hold::default();
    let mut cx = Context::from_waker(Waker::noop());
    let hits = trace.count(|program| {
        hold.clear();
        hold.want_run(program.first, program.frames);
        match pool.poll_hold(&mut hold, &mut cx) {
            Poll::Ready(result) => result?,
            Poll::Pending => return Err("the pool makes its only user wait".into()),
        }
        let hits = hold.tally().hits;
        pool.release(&mut hold, Mode::Cached);
        Ok(hits)
    })?;
    kept_within("the pool", pool.peak_bytes(), budget)?;
    let sizing = pool.sizing().iter().find(|sizing| sizing.budget == budget).copied();
    Ok((hits, sizing.map(|sizing| sizing.hit_rate)))
}

fn lru(trace: &Trace, budget: u32) -> Result<Hits, FieldError> {
    let capacity = NonZeroUsize::new(budget as usize).ok_or("the budget holds no frame")?;
    let mut cache = LruCache::new(capacity);
    trace.count_each(|frame| {
        let is_hit = cache.get(&frame).is_some();
        if !is_hit {
            cache.put(frame, ());
        }
        is_hit
    })
}

fn quick_cache(trace: &Trace, budget: u32) -> Result<Hits, FieldError> {
    // The one for a single thread: it has one shard, so all of the budget is one.
    let mut cache = quick_cache::unsync::Cache::new(budget as usize);
    let hits = trace.count_each(|frame| {
        let is_hit = cache.get(&frame).is_some();
        if !is_hit {
            cache.insert(frame, ());
        }
        is_hit
    })?;
    kept_within("quick_cache", cache.weight(), budget.into())?;
    Ok(hits)
}

fn kept_within(who: &str, kept: u64, budget: u64) -> Result<(), FieldError> {
    match kept <= budget {
        true => Ok(()),
        false => Err(format!("{who} kept {kept} and the budget was {budget}").into()),
    }
}

/// Belady's optimum: each frame used comes in, and the one whose next use is latest goes for it.
fn optimum(trace: &Trace, frames: u32, budget: u32) -> Result<Hits, FieldError> {
    /// A frame that is not there. Every use has an earlier number.
    const ABSENT: u32 = u32::MAX;
    /// The next use of a frame that is not used again.
    const NEVER: u32 = u32::MAX - 1;

    let uses: Vec<u32> = trace.programs.iter().flat_map(|program| program.frames()).collect();
    let mut upcoming = vec![NEVER; frames as usize];
    let mut next_use = vec![NEVER; uses.len()];
    for (number, frame) in uses.iter().enumerate().rev() {
        next_use[number] = std::mem::replace(&mut upcoming[*frame as usize], number as u32);
    }

    // The next use of each frame that is there; the heap also has former ones, which are skipped.
    let mut there = vec![ABSENT; frames as usize];
    let mut latest = BinaryHeap::new();
    let mut room = budget;
    let mut next_use = next_use.into_iter();
    trace.count_each(|frame| {
        let next = next_use.next().unwrap_or(NEVER);
        let is_hit = there[frame as usize] != ABSENT;
        if !is_hit && room > 0 {
            room -= 1;
        } else if !is_hit {
            while let Some((next, victim)) = latest.pop() {
                if there[victim as usize] == next {
                    there[victim as usize] = ABSENT;
                    break;
                }
            }
        }
        there[frame as usize] = next;
        latest.push((next, frame));
        is_hit
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_ccw_load::random::SplitMix64;

    const SMALL: Setting = Setting { frames: 2000, uses: 40_000, seed: 3 };

    fn trace(frames: impl IntoIterator<Item = u32>) -> Trace {
        let programs = frames.into_iter().map(Program::of_one).collect();
        Trace { name: "test", programs, scan: None }
    }

    /// Most hits there can be, by trying every choice.
    fn most_hits(uses: &[u32], there: &mut Vec<u32>, budget: usize) -> u32 {
        let [frame, rest @ ..] = uses else { return 0 };
        if there.contains(frame) {
            return 1 + most_hits(rest, there, budget);
        }
        if there.len() < budget {
            there.push(*frame);
            let hits = most_hits(rest, there, budget);
            there.pop();
            return hits;
        }
        (0..budget)
            .map(|place| {
                let victim = std::mem::replace(&mut there[place], *frame);
                let hits = most_hits(rest, &mut there.clone(), budget);
                there[place] = victim;
                hits
            })
            .max()
            .unwrap_or(0)
    }

    #[test]
    fn the_optimum_is_what_trying_everything_finds() {
        let mut random = SplitMix64::new(1);
        for _ in 0..200 {
            let uses: Vec<u32> = (0..12).map(|_| random.below(5) as u32).collect();
            for budget in 1..4 {
                let most = most_hits(&uses, &mut Vec::new(), budget);
                let optimum = optimum(&trace(uses.iter().copied()), 5, budget as u32).unwrap();
                assert_eq!(optimum.hits, most, "{uses:?} in {budget}");
            }
        }
    }

    #[test]
    fn lru_hits_what_was_used_lately() {
        let hits = lru(&trace([1, 2, 1, 3, 2, 1]), 2).unwrap();
        assert_eq!((hits.uses, hits.hits), (6, 1));
    }

    #[test]
    fn with_room_for_all_only_first_uses_miss() {
        let all = trace((0..50).chain(0..50).chain(0..50));
        let expected = Hits { uses: 150, hits: 100, ..Hits::default() };
        assert_eq!(pool(&all, 50, 50).unwrap().0, expected);
        assert_eq!(lru(&all, 50).unwrap(), expected);
        assert_eq!(optimum(&all, 50, 50).unwrap(), expected);
    }

    #[test]
    fn nobody_beats_the_optimum_and_all_grow_with_the_budget() {
        let rates = SMALL.measure().unwrap();
        assert_eq!(rates.rows.len(), Trace::NAMES.len() * PERCENTS.len());
        for rows in rates.rows.chunks(PERCENTS.len()) {
            assert_eq!(rows.iter().map(|row| row.budget_percent).collect::<Vec<_>>(), PERCENTS);
            assert!(rows.is_sorted_by(|low, high| low.lru <= high.lru));
            // The optimum of all is not one of a part.
            for row in rows.iter().filter(|row| row.trace != HOT_IN_SCAN) {
                assert!(row.pool.max(row.lru).max(row.quick_cache) <= row.optimum, "{row:?}");
                assert!(row.sizing.is_some_and(|share| (0.0..=1.0).contains(&share)), "{row:?}");
            }
        }
    }

    #[test]
    fn a_stream_leaves_the_hot_set_to_the_pool() {
        let rates = SMALL.measure().unwrap();
        let row = rates.rows.iter().find(|row| row.trace == HOT_IN_SCAN && row.budget_percent == 5);
        let row = row.unwrap();
        assert!(row.pool > row.lru + 0.1, "{row:?}");
    }

    #[test]
    fn a_seed_fixes_everything_and_another_changes_it() {
        assert_eq!(Trace::all(&SMALL).unwrap(), Trace::all(&SMALL).unwrap());
        let other = Setting { seed: 4, ..SMALL };
        let [uniform, .., scan] = Trace::all(&SMALL).unwrap();
        let [other_uniform, .., other_scan] = Trace::all(&other).unwrap();
        assert!(uniform != other_uniform && scan != other_scan);
    }

    #[test]
    fn the_scan_meets_every_frame_once_between_hot_uses() {
        let [.., scan] = Trace::all(&SMALL).unwrap();
        let programs = &scan.programs[scan.scan.unwrap()..];
        let (hot, stream): (Vec<Program>, Vec<Program>) =
            programs.iter().partition(|program| program.frames == 1);
        assert_eq!(hot.len(), stream.len());
        assert!(hot.iter().all(|program| program.first.is_multiple_of(HOT_EVERY)));
        let streamed: Vec<u32> = stream.iter().flat_map(|program| program.frames()).collect();
        assert!(streamed.into_iter().eq(0..SMALL.frames / STREAM_PAGES * STREAM_PAGES));
    }

    #[test]
    fn the_table_has_a_line_for_each_row() {
        let row = Row {
            trace: "uniform",
            budget_percent: 1,
            budget_frames: 20,
            pool: 0.25,
            lru: 0.5,
            quick_cache: 0.125,
            optimum: 1.0,
            sizing: None,
        };
        let rates = HitRates { seed: 7, frames: 2000, rows: vec![row] };
        let table = rates.table();
        assert!(table.contains("seed 7"), "{table}");
        let line = table.lines().last().unwrap();
        let cells: Vec<&str> = line.split_whitespace().collect();
        assert_eq!(cells, ["uniform", "1", "%", "25.00", "50.00", "12.50", "100.00", "-"]);
        let json = serde_json::to_value(&rates).unwrap();
        assert_eq!(json["rows"][0]["quick_cache"], 0.125);
    }
}
