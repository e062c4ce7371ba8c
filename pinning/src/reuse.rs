//! How large should the budget be? Live reuse distances answer for every budget at once.
//!
//! The *reuse distance* of a use is the size of all distinct frames used since the same frame was
//! used before, itself included. An LRU cache of `b` bytes hits exactly where the distance is at
//! most `b`, so one histogram of distances gives the hit rate of every budget (Mattson, Gecsei, Slutz
//! and Traiger, "Evaluation techniques for storage hierarchies", IBM Systems Journal 1970). The pool
//! does not evict in exact LRU order; LRU is the yardstick by which a budget is chosen.
//!
//! To measure each use would cost more than the use. So a fixed choice of frames is watched, one in
//! every block of adjacent numbers, and distances among them are scaled up: spatial sampling, as in
//! Waldspurger, Park, Garthwaite and Ahmad, "Efficient MRC construction with SHARDS", FAST 2015. One
//! frame a block fixes how many are watched and makes the block's number their index: nothing has to
//! be looked up, and nothing grows.
//!
//! ```text
//!  frames      0 . . . . . . . 63  64 . . . . . . 127  128 . . . . . 191
//!  watched             *                       *          *          which one: hash of the block
//!  block               0                  1                2
//!  positions   [ 1 | - | 0 | 2 | - | - ]    blocks in the order of last use; a Fenwick tree
//!                                           over them sums the pages used since any position
//! ```
//!
//! **Accuracy.** Where every frame is watched, distances are exact. Elsewhere the estimate rests on
//! the watched frames that fit into the budget. Seen with 1,024 of 65,536 frames watched, against
//! exact LRU: within 2 points for uniform and sequential use; for Zipf 0.99, 5 points off where 10
//! watched frames fit, 4 where 51 do, within 3 where 102 or more do. Two things make it worse. A few
//! huge frames among many small ones: it matters too much which of the huge ones are watched. And a
//! working set that just fits: then a small error in distance decides between hit and miss. A guest
//! that knows the hash can spoil the estimate, and nothing else.
//!
//! **Cost.** [`Watched::has`] is a multiply, two shifts and a compare, about 1 ns. A touch takes about
//! 50 ns, with its share of what is done now and then, closing up positions and fading: some ten
//! microseconds at one time.
//!
//! First uses count as misses, as they are, and fade with the rest.

use crate::FRAME_SHIFT;

/// log2 of how many frames of a large guest there are to each watched one.
const USUAL_BLOCK_SHIFT: u32 = 6;

/// Most frames that are watched; all arrays together then take about 350 KiB.
const MOST_WATCHED: u32 = 8192;

/// Frames that are watched in a guest that has 64 times as many or fewer: below 64 MiB in 4 KiB
/// frames the share rises, and from 256 frames down each is watched. The cost: a touch is some tens
/// of nanoseconds under a lock, and such a guest pays it for up to every use instead of for one in 64.
const FEWEST_WATCHED: u32 = 256;

/// Samples that count, for each watched frame: when there are so many, all counts are halved. Half as
/// many remain, so that what is used an eighth as often as the average still has its say.
const COUNTED_PER_WATCHED: u32 = 16;

/// The least of that. What a fade leaves of it, 8,192 samples, knows any share to a point or better
/// (standard deviation: 0.6 points of a share, 1.1 of the number of samples).
const COUNTED_AT_LEAST: u32 = 16_384;

/// Samples before there is an answer; it may be off by some points then.
const FEWEST_SAMPLES: u32 = 256;

/// 2^32 divided by the golden ratio, made odd: its multiples fall evenly over 32 bits, and so do the
/// leading bits (Knuth, "The Art of Computer Programming" 3, section 6.4).
const GOLDEN: u32 = 0x9e37_79b9;

/// Which frames are watched: one in every block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Watched {
    /// log2 of the frames in a block.
    block_shift: u32,
}

impl Watched {
    /// Whether [`ReuseDistances::touch`] wants to know of uses of `frame`.
    #[inline]
    pub(crate) fn has(self, frame: u32) -> bool {
        let block = self.block_of(frame);
        // The leading bits of the product, as many as tell the frames of a block apart.
        let watched = self.scale(block.wrapping_mul(GOLDEN));
        u64::from(frame) == u64::from(block) << self.block_shift | watched
    }

    fn block_of(self, frame: u32) -> u32 {
        frame >> self.block_shift
    }

    fn frames_per_block(self) -> u64 {
        1 << self.block_shift
    }

    /// Where the fraction `word / 2^32` of a block falls.
    fn scale(self, word: u32) -> u64 {
        (u64::from(word) << self.block_shift) >> u32::BITS
    }
}

/// A budget and the hit rate that it would have.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sizing {
    /// Bytes that may be pinned.
    pub budget: u64,
    /// Share of uses, 0 to 1, that would find their frame pinned.
    pub hit_rate: f64,
}

/// Reuse distances of the watched frames, fading with age. Its memory is fixed by
/// [`ReuseDistances::new`]; nothing allocates afterwards.
#[derive(Debug)]
pub(crate) struct ReuseDistances {
    watched: Watched,
    order: UseOrder,
    seen: Distances,
    /// Samples until the next fade.
    samples_to_fade: u32,
    /// Samples until there is an answer.
    samples_to_answer: u32,
    /// Counts samples, wrapping; see [`ReuseDistances::distance`].
    sample: u32,
}

impl ReuseDistances {
    /// For a guest with up to `frames` frames: at most one in 64 is watched and at most 8,192 in
    /// all, but 256 where there are as many. Frames with larger numbers never are.
    pub(crate) fn new(frames: u32) -> Self {
        let usual = (frames / FEWEST_WATCHED).max(1).ilog2().min(USUAL_BLOCK_SHIFT);
        let block_shift = (usual..u32::BITS)
            .find(|shift| frames.div_ceil(1 << shift) <= MOST_WATCHED)
            .unwrap_or(u32::BITS - 1);
        Self::watching(Watched { block_shift }, frames)
    }

    /// The same choice in a guest that has grown to `frames` frames; what was seen is forgotten.
    pub(crate) fn grow(&mut self, frames: u32) {
        if frames.div_ceil(1 << self.watched.block_shift) > self.order.blocks() {
            *self = Self::watching(self.watched, frames);
        }
    }

    fn watching(watched: Watched, frames: u32) -> Self {
        let blocks = frames.div_ceil(1 << watched.block_shift);
        ReuseDistances {
            watched,
            order: UseOrder::new(blocks as usize),
            seen: Distances::new(blocks as usize),
            samples_to_fade: Self::counted_at_most(blocks),
            samples_to_answer: FEWEST_SAMPLES,
            sample: 0,
        }
    }

    /// Which frames it wants to know of.
    pub(crate) fn watched(&self) -> Watched {
        self.watched
    }

    /// So many frames were used since the last call, sampled or not. Report this beside the touches,
    /// before them or after.
    ///
    /// It is what the number of touches is compared with: too few where the busiest frames are not
    /// watched, too many where one is (see [`Distances::share`]). Without it the estimate is good
    /// only where no few frames have many of the uses.
    pub(crate) fn used(&mut self, frames: u64) {
        self.seen.expect(frames as f64 / self.watched.frames_per_block() as f64);
    }

    /// The sampled `frame` was used, which is `pages` times 4 KiB large. Others are ignored.
    pub(crate) fn touch(&mut self, frame: u32, pages: u32) {
        let Some(block) = self.watched_block(frame) else {
            return;
        };
        let pages = pages.max(1);
        let distance = self.distance(block, pages);
        self.seen.count(block, distance);
        self.order.put_last(block, pages);
        self.samples_to_answer = self.samples_to_answer.saturating_sub(1);
        self.samples_to_fade -= 1;
        if self.samples_to_fade == 0 {
            self.seen.fade();
            self.samples_to_fade = Self::counted_at_most(self.order.blocks()) / 2;
        }
    }

    /// The share of uses, 0 to 1, that an LRU cache of `budget_bytes` would have hit of late; `None`
    /// before enough was seen.
    pub(crate) fn hit_rate(&self, budget_bytes: u64) -> Option<f64> {
        (self.samples_to_answer == 0).then(|| self.seen.share(budget_bytes >> FRAME_SHIFT))
    }

    /// Hit rates of budgets from a quarter of `budget` to eight times as much, and none beyond what
    /// holds the whole guest; empty before enough was seen.
    pub(crate) fn sizing(&self, budget: u64, guest: u64) -> Vec<Sizing> {
        let budgets = [budget / 4, budget / 2]
            .into_iter()
            .chain((0..4).map(|doubled| budget.saturating_mul(1 << doubled)));
        let mut sizings: Vec<Sizing> = Vec::new();
        for budget in budgets.map(|budget| budget.min(guest)) {
            if sizings.last().is_none_or(|last| last.budget < budget)
                && let Some(hit_rate) = self.hit_rate(budget)
            {
                sizings.push(Sizing { budget, hit_rate });
            }
        }
        sizings
    }

    /// The region of `frame` is gone: it takes no part in distances any more. What was counted stays
    /// and fades.
    pub(crate) fn forget(&mut self, frame: u32) {
        if let Some(block) = self.watched_block(frame) {
            self.order.remove(block);
        }
    }

    fn watched_block(&self, frame: u32) -> Option<usize> {
        let block = self.watched.block_of(frame);
        (self.watched.has(frame) && block < self.order.blocks()).then_some(block as usize)
    }

    /// Reuse distance in pages of a use of the watched frame of `block`, which has `pages`; `None`
    /// for its first use.
    ///
    /// Of the frames used since, one in each block's worth is watched: `k` watched ones stand for
    /// `k * frames_per_block` and up to `frames_per_block - 1` more, with equal right each. Samples
    /// take these in turn, spread by the golden ratio, so that the estimate is not a staircase.
    fn distance(&mut self, block: usize, pages: u32) -> Option<u64> {
        let since = self.order.pages_since(block)?;
        self.sample = self.sample.wrapping_add(1);
        let more = self.watched.scale(self.sample.wrapping_mul(GOLDEN));
        let itself_and_more = u64::from(pages) * (1 + more);
        let since = since.saturating_mul(self.watched.frames_per_block());
        Some(since.saturating_add(itself_and_more))
    }

    fn counted_at_most(watched: u32) -> u32 {
        (watched * COUNTED_PER_WATCHED).max(COUNTED_AT_LEAST)
    }
}

/// A block without a position, a position without a block.
const NONE: u32 = u32::MAX;

/// The watched frames in the order of their last use, one a block, with their weights.
///
/// Each use takes the next position; when positions run out, the live ones close up. There are
/// twice as many positions as blocks, so a compaction has at least as many uses to its credit as
/// there are blocks, and costs each a few steps.
#[derive(Debug)]
struct UseOrder {
    /// Position of each block's last use.
    position: Box<[u32]>,
    /// Pages of each block's watched frame, as of its last use.
    pages: Box<[u32]>,
    /// The block last used at each position.
    block: Box<[u32]>,
    /// Fenwick tree over positions: entry `i` sums the pages of the `i & -i` positions before `i`
    /// (Fenwick, "A new data structure for cumulative frequency tables", 1994).
    sums: Box<[u64]>,
    /// Pages at all positions.
    total: u64,
    /// The next position to be taken.
    next: usize,
}

impl UseOrder {
    fn new(blocks: usize) -> Self {
        let positions = 2 * blocks;
        UseOrder {
            position: vec![NONE; blocks].into(),
            pages: vec![0; blocks].into(),
            block: vec![NONE; positions].into(),
            sums: vec![0; positions + 1].into(),
            total: 0,
            next: 0,
        }
    }

    fn blocks(&self) -> u32 {
        self.position.len() as u32
    }

    /// Pages of the blocks used after `block` was; `None` where it was not, or was removed.
    fn pages_since(&self, block: usize) -> Option<u64> {
        let position = self.position[block];
        (position != NONE).then(|| self.total - self.pages_up_to(position as usize))
    }

    /// Makes `block` the one used last.
    fn put_last(&mut self, block: usize, pages: u32) {
        self.remove(block);
        if self.next == self.block.len() {
            self.close_up();
        }
        self.position[block] = self.next as u32;
        self.pages[block] = pages;
        self.block[self.next] = block as u32;
        self.change(self.next, i64::from(pages));
        self.next += 1;
    }

    fn remove(&mut self, block: usize) {
        let position = std::mem::replace(&mut self.position[block], NONE);
        if position != NONE {
            self.block[position as usize] = NONE;
            self.change(position as usize, -i64::from(self.pages[block]));
        }
    }

    /// Moves the blocks to the first positions, in their order.
    fn close_up(&mut self) {
        let mut kept = 0;
        for position in 0..self.next {
            let block = std::mem::replace(&mut self.block[position], NONE);
            if block != NONE {
                self.block[kept] = block;
                self.position[block as usize] = kept as u32;
                kept += 1;
            }
        }
        self.next = kept;
        self.sums.fill(0);
        for entry in 1..self.sums.len() {
            let block = self.block[entry - 1];
            if block != NONE {
                self.sums[entry] += u64::from(self.pages[block as usize]);
            }
            let above = entry + lowest_bit(entry);
            if above < self.sums.len() {
                self.sums[above] += self.sums[entry];
            }
        }
    }

    fn change(&mut self, position: usize, pages: i64) {
        // Never wraps: what is taken away was added.
        self.total = self.total.wrapping_add_signed(pages);
        let mut entry = position + 1;
        while entry < self.sums.len() {
            self.sums[entry] = self.sums[entry].wrapping_add_signed(pages);
            entry += lowest_bit(entry);
        }
    }

    fn pages_up_to(&self, position: usize) -> u64 {
        let mut entry = position + 1;
        let mut pages = 0;
        while entry > 0 {
            pages += self.sums[entry];
            entry -= lowest_bit(entry);
        }
        pages
    }
}

fn lowest_bit(number: usize) -> usize {
    number & number.wrapping_neg()
}

/// log2 of the buckets to a doubling of the distance.
const BUCKETS_SHIFT: u32 = 5;

/// Buckets that cover every `u64`.
const BUCKETS: usize = ((u64::BITS - BUCKETS_SHIFT + 1) as usize) << BUCKETS_SHIFT;

/// How often each distance was seen: a log-linear histogram whose counts fade.
///
/// Counts have fractions, so that a halving loses nothing: with whole numbers, rare distances would
/// fade faster than common ones.
#[derive(Debug)]
struct Distances {
    /// Samples in each bucket.
    counts: Box<[f64]>,
    /// The same with each sample weighing as much as its frame had been used by then: the distances
    /// of the busiest frames.
    busy_counts: Box<[f64]>,
    /// Samples of each block's frame.
    uses: Box<[f64]>,
    /// Samples, first uses with their infinite distance included.
    samples: f64,
    /// Of these the weights.
    busy_samples: f64,
    /// Samples that a fair choice of frames would have given; 0 where nobody says.
    fair_samples: f64,
}

impl Distances {
    fn new(blocks: usize) -> Self {
        Distances {
            counts: vec![0.0; BUCKETS].into(),
            busy_counts: vec![0.0; BUCKETS].into(),
            uses: vec![0.0; blocks].into(),
            samples: 0.0,
            busy_samples: 0.0,
            fair_samples: 0.0,
        }
    }

    /// Counts a use of the frame of `block`; its first one has no distance.
    fn count(&mut self, block: usize, pages: Option<u64>) {
        self.uses[block] += 1.0;
        self.samples += 1.0;
        self.busy_samples += self.uses[block];
        if let Some(pages) = pages {
            let at = bucket(pages);
            self.counts[at] += 1.0;
            self.busy_counts[at] += self.uses[block];
        }
    }

    fn expect(&mut self, samples: f64) {
        self.fair_samples += samples;
    }

    fn fade(&mut self) {
        for counts in [&mut self.counts, &mut self.busy_counts, &mut self.uses] {
            counts.iter_mut().for_each(|count| *count *= 0.5);
        }
        self.samples *= 0.5;
        self.busy_samples *= 0.5;
        self.fair_samples *= 0.5;
    }

    /// The share of distances that are at most `pages`.
    ///
    /// Where frames are not used alike, the watched ones have more or fewer uses than their number
    /// makes fair, and the difference has to be given distances:
    ///
    /// * As far as chance explains it, the distances of the busiest watched frames, which are those
    ///   that make the difference. This is the regression estimator of survey sampling (Cochran,
    ///   "Sampling Techniques", chapter 7), with a frame's uses for the known quantity.
    /// * Where far too many uses are missing, frames busier than any watched one must have them, and
    ///   those never miss: the correction of SHARDS, there for every difference ("SHARDS-adj").
    fn share(&self, pages: u64) -> f64 {
        if pages == 0 {
            return 0.0;
        }
        let hits = within(&self.counts, pages);
        if self.fair_samples == 0.0 {
            return (hits / self.samples).min(1.0);
        }
        let missing = self.fair_samples - self.samples;
        let never_missing = self.beyond_chance(missing);
        let as_busiest = within(&self.busy_counts, pages) / self.busy_samples;
        let rate = never_missing + (1.0 - never_missing) * as_busiest;
        ((hits + missing * rate) / self.fair_samples).clamp(0.0, 1.0)
    }

    /// Which part of `missing` samples cannot be chance, 0 to 1. The variance of the number of
    /// samples is about the sum of the squares of what each frame contributed; up to two standard
    /// deviations are chance, and far beyond them all is not.
    fn beyond_chance(&self, missing: f64) -> f64 {
        let variance: f64 = self.uses.iter().map(|uses| uses * uses).sum();
        if missing > 0.0 { (1.0 - 4.0 * variance / (missing * missing)).max(0.0) } else { 0.0 }
    }
}

/// The part of `counts` that distances up to `pages` have; within a bucket, each has its equal share.
fn within(counts: &[f64], pages: u64) -> f64 {
    let last = bucket(pages);
    let (before, width) = bucket_bounds(last);
    let part = (pages - before) as f64 / width as f64;
    counts[..last].iter().sum::<f64>() + counts[last] * part
}

/// The bucket of a distance of at least 1: one each up to 64, then 32 to each doubling. Buckets end
/// with their boundary, since budgets are often powers of two and have to include it.
fn bucket(pages: u64) -> usize {
    let below = pages.saturating_sub(1);
    let octave = (below | 1).ilog2().saturating_sub(BUCKETS_SHIFT);
    ((octave as usize) << BUCKETS_SHIFT) + (below >> octave) as usize
}

/// The distance that it starts after, and how many distances it covers.
fn bucket_bounds(bucket: usize) -> (u64, u64) {
    let octave = (bucket >> BUCKETS_SHIFT).saturating_sub(1);
    (((bucket - (octave << BUCKETS_SHIFT)) as u64) << octave, 1 << octave)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FRAME;

    /// Random words (SplitMix64; Steele, Lea and Flood, OOPSLA 2014).
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let word = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^ (word >> 31)
        }

        fn below(&mut self, bound: u32) -> u32 {
            ((u128::from(self.next()) * u128::from(bound)) >> 64) as u32
        }

        fn permutation(&mut self, count: u32) -> Vec<u32> {
            let mut order: Vec<u32> = (0..count).collect();
            for index in (1..count).rev() {
                order.swap(index as usize, self.below(index + 1) as usize);
            }
            order
        }
    }

    /// Distances with nothing sampled and nothing clever: the LRU stack itself, searched from the
    /// top.
    #[derive(Default)]
    struct Stack(Vec<(u32, u32)>);

    impl Stack {
        fn touch(&mut self, frame: u32, pages: u32) -> Option<u64> {
            let depth = self.0.iter().rev().position(|(other, _)| *other == frame);
            let distance = depth.map(|depth| {
                let place = self.0.len() - 1 - depth;
                self.0.remove(place);
                let above: u64 = self.0[place..].iter().map(|(_, pages)| u64::from(*pages)).sum();
                above + u64::from(pages)
            });
            self.0.push((frame, pages));
            distance
        }
    }

    /// The same for frames of one page and long traces: one mark for the last use of each frame on a
    /// line of time, counted word by word.
    struct MarkedLine {
        last: Vec<Option<usize>>,
        marks: Vec<u64>,
        /// Marks in each 64 words.
        groups: Vec<u32>,
        now: usize,
    }

    impl MarkedLine {
        fn new(frames: u32, uses: usize) -> Self {
            MarkedLine {
                last: vec![None; frames as usize],
                marks: vec![0; uses / 64 + 64],
                groups: vec![0; uses / 4096 + 1],
                now: 0,
            }
        }

        fn touch(&mut self, frame: u32) -> Option<u64> {
            let last = self.last[frame as usize].replace(self.now);
            let distance = last.map(|last| {
                let (word, group) = (last / 64, last / 4096);
                let after = (u64::MAX << (last % 64)) << 1;
                let in_word = (self.marks[word] & after).count_ones();
                let in_group: u32 = self.marks[word + 1..(group + 1) * 64]
                    .iter()
                    .map(|word| word.count_ones())
                    .sum();
                let beyond: u32 = self.groups[group + 1..].iter().sum();
                self.marks[word] &= !(1 << (last % 64));
                self.groups[group] -= 1;
                u64::from(in_word + in_group + beyond) + 1
            });
            self.marks[self.now / 64] |= 1 << (self.now % 64);
            self.groups[self.now / 4096] += 1;
            self.now += 1;
            distance
        }
    }

    fn use_frame(reuse: &mut ReuseDistances, frame: u32, pages: u32) {
        reuse.used(1);
        if reuse.watched.has(frame) {
            reuse.touch(frame, pages);
        }
    }

    fn hit_rate_of_pages(reuse: &ReuseDistances, pages: u64) -> f64 {
        reuse.hit_rate(pages * FRAME).expect("enough was seen")
    }

    const FRAMES: u32 = 65_536;
    /// Enough for 31,000 samples: two fades, and as much again as was left by the second.
    const USES: usize = 2_000_000;

    /// Compares estimate and truth for a trace over `FRAMES` frames, of which 1,024 are watched. The
    /// truth is that of the second half: first uses, which no cache could hit, fade from the estimate
    /// too.
    fn assert_close(name: &str, mut next: impl FnMut() -> u32) {
        let mut reuse = ReuseDistances::new(FRAMES);
        let mut line = MarkedLine::new(FRAMES, USES);
        let mut exact = vec![0u32; FRAMES as usize + 1];
        for number in 0..USES {
            let frame = next();
            use_frame(&mut reuse, frame, 1);
            if let (Some(distance), true) = (line.touch(frame), number >= USES / 2) {
                exact[distance as usize] += 1;
            }
        }
        // Budgets in percent, and by how much the estimate may be off. Into 1 % of the guest go 10
        // watched frames, into 5 % 51: too few for a good estimate where uses are skewed.
        for (percent, most) in [
            (1, 0.06),
            (5, 0.06),
            (10, 0.03),
            (25, 0.03),
            (50, 0.03),
            (75, 0.03),
            (95, 0.03),
            (100, 0.03),
        ] {
            let budget = u64::from(FRAMES) * percent / 100;
            let hits: u32 = exact[..=budget as usize].iter().sum();
            let truth = f64::from(hits) / (USES - USES / 2) as f64;
            let estimate = hit_rate_of_pages(&reuse, budget);
            println!("{name} at {percent} %: estimate {estimate:.4}, exact {truth:.4}");
            assert!(
                (estimate - truth).abs() < most,
                "{name} at {percent} %: estimate {estimate:.4}, exact {truth:.4}"
            );
        }
    }

    #[test]
    fn uniform_uses_are_estimated() {
        let mut random = Random(1);
        assert_close("uniform", || random.below(FRAMES));
    }

    #[test]
    fn zipf_uses_are_estimated() {
        let mut random = Random(2);
        let place = random.permutation(FRAMES);
        let mut sum = 0.0;
        let sums: Vec<f64> = (1..=FRAMES)
            .map(|rank| {
                sum += f64::from(rank).powf(-0.99);
                sum
            })
            .collect();
        assert_close("zipf 0.99", || {
            let point = sum * (random.next() >> 11) as f64 / (1u64 << 53) as f64;
            place[sums.partition_point(|below| *below <= point)]
        });
    }

    #[test]
    fn sequential_uses_are_estimated() {
        let mut next = 0;
        assert_close("sequential", || {
            next = (next + 1) % FRAMES;
            next
        });
    }

    #[test]
    fn a_working_set_is_estimated() {
        let mut random = Random(3);
        let place = random.permutation(FRAMES);
        let hot = FRAMES / 10;
        assert_close("90/10", || {
            let is_hot = random.below(10) < 9;
            let rank = if is_hot { random.below(hot) } else { hot + random.below(FRAMES - hot) };
            place[rank as usize]
        });
    }

    #[test]
    fn distances_are_exact_where_every_frame_is_watched() {
        // 100 frames and 200 positions: these uses close up hundreds of times.
        let mut random = Random(4);
        let mut reuse = ReuseDistances::new(100);
        let mut stack = Stack::default();
        for _ in 0..30_000 {
            let frame = random.below(100).min(random.below(100));
            // A frame may even change its size, as where its region was replaced.
            let pages = [1, 1, 16, 256, 262_144][random.below(5) as usize];
            assert!(reuse.watched.has(frame));
            assert_eq!(reuse.distance(frame as usize, pages), stack.touch(frame, pages));
            reuse.touch(frame, pages);
        }
        assert_eq!(
            reuse.order.total,
            stack.0.iter().map(|(_, pages)| u64::from(*pages)).sum::<u64>()
        );
    }

    #[test]
    fn a_watched_frame_stands_for_every_distance_within_a_block() {
        // Two watched frames in turn: between two uses of the one, the other stands for a block's
        // worth of frames, and for any number up to 63 more.
        let mut reuse = ReuseDistances::new(FRAMES);
        let other = (64..128).find(|frame| reuse.watched.has(*frame)).unwrap();
        reuse.touch(0, 1);
        let mut seen = [0u32; 64];
        for _ in 0..6400 {
            reuse.touch(other, 1);
            seen[reuse.distance(0, 1).unwrap() as usize - 65] += 1;
            reuse.order.put_last(0, 1);
        }
        assert!(seen.iter().all(|count| (80..=120).contains(count)), "{seen:?}");
    }

    #[test]
    fn weights_decide_which_budget_hits() {
        // Four frames in turn, 1 + 16 + 256 + 1 pages: everything hits with 274, nothing below.
        let mut reuse = ReuseDistances::new(4);
        for _ in 0..5000 {
            for (frame, pages) in [1, 16, 256, 1].into_iter().enumerate() {
                use_frame(&mut reuse, frame as u32, pages);
            }
        }
        // The bucket that 274 is in starts after 272.
        assert_eq!(hit_rate_of_pages(&reuse, 272), 0.0);
        assert!(hit_rate_of_pages(&reuse, 280) > 0.999);
    }

    #[test]
    fn large_frames_are_scaled_like_small_ones() {
        let hit_rates = [1u32, 256].map(|pages| {
            let mut random = Random(5);
            let mut reuse = ReuseDistances::new(FRAMES);
            for _ in 0..600_000 {
                use_frame(&mut reuse, random.below(FRAMES), pages);
            }
            hit_rate_of_pages(&reuse, u64::from(FRAMES / 4 * pages))
        });
        assert!((hit_rates[0] - hit_rates[1]).abs() < 0.005, "{hit_rates:?}");
    }

    #[test]
    fn what_was_fades() {
        let mut random = Random(6);
        let mut reuse = ReuseDistances::new(1024);
        assert_eq!(reuse.watched.block_shift, 2, "one in four");
        let mut hit_rate_after = |samples: u32, frames: u32| {
            for _ in 0..samples * 4 {
                use_frame(&mut reuse, random.below(frames), 1);
            }
            hit_rate_of_pages(&reuse, 128)
        };
        let wide = hit_rate_after(3 * COUNTED_AT_LEAST, 1024);
        assert!((wide - 0.125).abs() < 0.03, "uniform over eight times the budget: {wide}");
        // Half of what is counted is older than the last fade, a quarter than the one before it.
        let mixed = hit_rate_after(COUNTED_AT_LEAST / 2, 128);
        assert!(mixed > 0.4 && mixed < 0.75, "half of it is new: {mixed}");
        let narrow = hit_rate_after(4 * COUNTED_AT_LEAST, 128);
        assert!(narrow > 0.99, "the budget holds everything now: {narrow}");
        let wide = hit_rate_after(4 * COUNTED_AT_LEAST, 1024);
        assert!((wide - 0.125).abs() < 0.03, "and does not any more: {wide}");
    }

    #[test]
    fn a_forgotten_frame_is_new_and_weighs_nothing() {
        let mut reuse = ReuseDistances::new(8);
        for frame in 0..4 {
            reuse.touch(frame, 10);
        }
        assert_eq!(reuse.distance(0, 10), Some(40));
        reuse.forget(2);
        reuse.forget(2);
        assert_eq!(reuse.distance(0, 10), Some(30));
        assert_eq!(reuse.distance(2, 10), None);
        reuse.touch(2, 5);
        assert_eq!(reuse.distance(0, 10), Some(35));
        reuse.forget(7);
        reuse.forget(u32::MAX);
        assert_eq!(reuse.order.total, 35);
    }

    #[test]
    fn the_watched_are_few_and_evenly_spread() {
        for (frames, shift) in [
            (1, 0),
            (256, 0),
            (511, 0),
            (512, 1),
            (16_384, 6),
            (FRAMES, 6),
            (524_288, 6),
            (524_289, 7),
            (u32::MAX, 19),
        ] {
            let reuse = ReuseDistances::new(frames);
            assert_eq!(reuse.watched.block_shift, shift, "{frames} frames");
            assert!(reuse.order.blocks() <= MOST_WATCHED);
        }
        let reuse = ReuseDistances::new(FRAMES);
        let mut places = [0u32; 64];
        for block in 0..1024 {
            let watched: Vec<u32> =
                (0..64).filter(|place| reuse.watched.has(block * 64 + place)).collect();
            assert_eq!(watched.len(), 1, "block {block}");
            places[watched[0] as usize] += 1;
        }
        assert!(places.iter().all(|count| (12..=20).contains(count)), "{places:?}");
    }

    #[test]
    fn sizing_lists_larger_and_smaller_budgets_up_to_the_guest() {
        let mut reuse = ReuseDistances::new(64);
        assert_eq!(reuse.sizing(16 * FRAME, 64 * FRAME), []);
        for _ in 0..1000 {
            (0..32).for_each(|frame| use_frame(&mut reuse, frame, 1));
        }
        let sizing = reuse.sizing(16 * FRAME, 64 * FRAME);
        let budgets: Vec<u64> = sizing.iter().map(|sizing| sizing.budget / FRAME).collect();
        assert_eq!(budgets, [4, 8, 16, 32, 64]);
        assert!(
            sizing.iter().all(|sizing| (sizing.hit_rate > 0.99) == (sizing.budget >= 32 * FRAME))
        );
    }

    #[test]
    fn no_answer_before_enough_was_seen() {
        let mut reuse = ReuseDistances::new(64);
        for _ in 1..FEWEST_SAMPLES {
            use_frame(&mut reuse, 5, 1);
            assert_eq!(reuse.hit_rate(1 << 30), None);
        }
        use_frame(&mut reuse, 5, 1);
        assert!(reuse.hit_rate(1 << 30).is_some());
    }

    #[test]
    fn one_frame_for_ever_needs_one_page() {
        let mut reuse = ReuseDistances::new(1);
        for _ in 0..100_000 {
            reuse.touch(0, 1);
        }
        // Nobody said how many uses there were.
        assert!((0.999..=1.0).contains(&hit_rate_of_pages(&reuse, 1)));
        for _ in 0..100_000 {
            use_frame(&mut reuse, 0, 1);
        }
        assert_eq!(hit_rate_of_pages(&reuse, 0), 0.0);
        assert!(hit_rate_of_pages(&reuse, 1) > 0.9999);

        // The same where most frames are not watched, and whether or not this one is.
        let mut reuse = ReuseDistances::new(FRAMES);
        for frame in [0, 1] {
            assert_eq!(reuse.watched.has(frame), frame == 0);
            for _ in 0..100_000 {
                use_frame(&mut reuse, frame, 1);
            }
            assert!(hit_rate_of_pages(&reuse, 66) > 0.99, "frame {frame}");
        }
    }

    #[test]
    fn each_frame_once_never_hits() {
        let mut reuse = ReuseDistances::new(1 << 20);
        (0..1 << 20).for_each(|frame| use_frame(&mut reuse, frame, 1));
        assert_eq!(hit_rate_of_pages(&reuse, 1 << 20), 0.0);
    }

    #[test]
    fn odd_numbers_do_no_harm() {
        let mut reuse = ReuseDistances::new(0);
        reuse.touch(0, 1);
        reuse.forget(0);
        assert_eq!(reuse.hit_rate(u64::MAX), None);

        let mut reuse = ReuseDistances::new(u32::MAX);
        let watched = (0..1 << 20).find(|frame| *frame > 0 && reuse.watched.has(*frame)).unwrap();
        for frame in [0, watched] {
            reuse.touch(frame, 0);
            reuse.touch(frame, u32::MAX);
        }
        for frame in (u32::MAX - (1 << 20)..=u32::MAX).filter(|frame| frame % 3 == 0) {
            use_frame(&mut reuse, frame, u32::MAX);
        }
        reuse.used(u64::MAX);
        for _ in 0..FEWEST_SAMPLES {
            reuse.touch(watched, u32::MAX);
        }
        let share = reuse.hit_rate(u64::MAX).unwrap();
        assert!((0.0..=1.0).contains(&share), "{share}");
    }

    #[test]
    fn buckets_cover_every_distance_without_a_gap() {
        let mut end = 0;
        for number in 0..BUCKETS {
            let (before, width) = bucket_bounds(number);
            assert_eq!(u128::from(before), end, "bucket {number}");
            end += u128::from(width);
            // The very last distance is one more than a word holds.
            let last = u64::try_from(end).unwrap_or(u64::MAX);
            assert_eq!((bucket(before + 1), bucket(last)), (number, number));
            assert!(width == 1 || width * 32 <= before, "bucket {number} is too wide");
        }
        assert_eq!(end, 1 << 64);
    }
}
