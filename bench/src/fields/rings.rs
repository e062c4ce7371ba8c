//! Rings against the rings that others use.
//!
//! Both sides run the same loop, generic over push and pop, so that a difference is one of the rings.
//! Peers are used as their documentation says is fastest: rtrb in bursts through `write_chunk_uninit`
//! with `fill_from_iter` and `read_chunk` with its iterator.

use crate::parts::ring::{self, BURST, CAPACITY, burst, check_sum, sum_of};
use crate::ratio::{FieldError, Round, Sample};
use crossbeam_queue::ArrayQueue;
use std::hint::{black_box, spin_loop};
use std::sync::Barrier;
use std::time::Instant;
use vfio_ccw_queues::{Full, spsc, submission};

/// Items of one measurement on one thread: a few milliseconds.
const ITEMS: u64 = 1 << 20;
/// Items of each of two producers.
const ITEMS_PER_PRODUCER: u64 = 1 << 17;

/// The size of a submission: what to start, where, and whose it is.
type Entry = [u64; 5];

/// Push and pop in turn on one thread, in nanoseconds for a pair.
pub fn spsc_vs_rtrb(round: &Round) -> Result<Sample, FieldError> {
    round.compare(
        || {
            let (mut producer, mut consumer) = spsc::ring::<u64>(CAPACITY);
            alternate(|item| producer.push(item).is_ok(), || consumer.pop())
        },
        || {
            let (mut producer, mut consumer) = rtrb::RingBuffer::<u64>::new(CAPACITY);
            alternate(|item| producer.push(item).is_ok(), || consumer.pop().ok())
        },
    )
}

/// Bursts in and out in turn on one thread, in nanoseconds for an item.
pub fn burst32_vs_rtrb_chunk(round: &Round) -> Result<Sample, FieldError> {
    round.compare(
        || {
            let (mut producer, mut consumer) = spsc::ring::<u64>(CAPACITY);
            alternate_bursts(
                |first| producer.push_burst(burst(first)),
                |sum| {
                    consumer.pop_burst(BURST, |item| *sum = sum.wrapping_add(item));
                },
            )
        },
        || {
            let (mut producer, mut consumer) = rtrb::RingBuffer::<u64>::new(CAPACITY);
            alternate_bursts(
                |first| {
                    producer
                        .write_chunk_uninit(BURST)
                        .map_or(0, |chunk| chunk.fill_from_iter(burst(first)))
                },
                |sum| {
                    if let Ok(chunk) = consumer.read_chunk(BURST) {
                        chunk.into_iter().for_each(|item| *sum = sum.wrapping_add(item));
                    }
                },
            )
        },
    )
}

/// Two producer threads and one consumer, in nanoseconds for an item.
pub fn mpsc_vs_array_queue(round: &Round) -> Result<Sample, FieldError> {
    round.compare(
        || {
            let (submitter, mut intake) = submission::ring::<Entry>(CAPACITY);
            contend(|entry| submitter.push(entry).map_err(Full::into_inner), || intake.pop())
        },
        || {
            let queue = ArrayQueue::<Entry>::new(CAPACITY);
            contend(|entry| queue.push(entry), || queue.pop())
        },
    )
}

fn alternate(
    push: impl FnMut(u64) -> bool,
    pop: impl FnMut() -> Option<u64>,
) -> Result<f64, FieldError> {
    let start = Instant::now();
    let sum = ring::alternate(ITEMS, push, pop);
    let nanos = start.elapsed().as_nanos() as f64;
    check_sum(sum, sum_of(ITEMS))?;
    Ok(nanos / ITEMS as f64)
}

fn alternate_bursts(
    mut push: impl FnMut(u64) -> usize,
    mut pop: impl FnMut(&mut u64),
) -> Result<f64, FieldError> {
    let mut sum = 0;
    let mut item = 0;
    let start = Instant::now();
    while item < ITEMS {
        if push(item) != BURST {
            return Err("an empty ring took less than a burst".into());
        }
        pop(&mut sum);
        item += BURST as u64;
    }
    let nanos = start.elapsed().as_nanos() as f64;
    check_sum(sum, sum_of(ITEMS))?;
    Ok(nanos / ITEMS as f64)
}

/// The consumer runs on this thread; the clock starts when all three are there.
fn contend(
    push: impl Fn(Entry) -> Result<(), Entry> + Sync,
    mut pop: impl FnMut() -> Option<Entry>,
) -> Result<f64, FieldError> {
    let ready = Barrier::new(3);
    let produce = || {
        ready.wait();
        for item in 0..ITEMS_PER_PRODUCER {
            let mut entry = [black_box(item); 5];
            let mut patience = Patience::default();
            while let Err(refused) = push(entry) {
                entry = refused;
                patience.wait();
            }
        }
    };
    let (nanos, sum) = std::thread::scope(|scope| {
        scope.spawn(produce);
        scope.spawn(produce);
        ready.wait();
        let start = Instant::now();
        let (mut sum, mut left) = (0, 2 * ITEMS_PER_PRODUCER);
        let mut patience = Patience::default();
        while left > 0 {
            match pop() {
                Some(entry) => {
                    sum += entry[4];
                    left -= 1;
                    patience = Patience::default();
                }
                None => patience.wait(),
            }
        }
        (start.elapsed().as_nanos() as f64, sum)
    });
    check_sum(sum, 2 * sum_of(ITEMS_PER_PRODUCER))?;
    Ok(nanos / (2 * ITEMS_PER_PRODUCER) as f64)
}

/// How to wait for the other side: spin a little, then let it have the processor, for there may be
/// fewer processors than threads.
#[derive(Default)]
struct Patience {
    spins: u32,
}

impl Patience {
    fn wait(&mut self) {
        if self.spins < 64 {
            self.spins += 1;
            spin_loop();
        } else {
            std::thread::yield_now();
        }
    }
}
