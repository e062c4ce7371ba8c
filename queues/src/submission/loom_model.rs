//! The submission ring under the loom model checker.

use loom::thread;

use super::*;
use crate::sync::{Arc, AtomicBool, Ordering, check};

/// Takes what is there in `tries` attempts. Models do not wait for each other: loops that do are
/// what makes them large.
fn try_pop<T>(intake: &mut Intake<T>, tries: usize) -> Vec<T> {
    (0..tries).filter_map(|_| intake.pop()).collect()
}

/// Pushes entries until one is refused, and returns those that were not.
fn push_some(submitter: &Submitter<u32>, entries: &[u32]) -> Vec<u32> {
    entries.iter().copied().take_while(|entry| submitter.push(*entry).is_ok()).collect()
}

/// Two producers and a consumer on two slots: claims collide and slots are reused.
#[test]
fn two_producers() {
    check(2, || {
        let (submitter, mut intake) = ring(2);
        let other = submitter.clone();
        let first = thread::spawn(move || push_some(&submitter, &[10, 11]));
        let second = thread::spawn(move || push_some(&other, &[20]));
        let mut taken = try_pop(&mut intake, 2);
        let first = first.join().unwrap();
        let second = second.join().unwrap();
        taken.extend(try_pop(&mut intake, 3));
        let (low, high): (Vec<_>, Vec<_>) = taken.into_iter().partition(|entry| *entry < 20);
        assert_eq!((low, high), (first, second));
        assert!(intake.is_empty());
    });
}

/// A burst and a single push collide, and the consumer meets the burst half published. Taking
/// the first published entry after one look back would deliver 11 before 10.
#[test]
fn bursts() {
    check(3, || {
        let (submitter, mut intake) = ring(4);
        let other = submitter.clone();
        let first = thread::spawn(move || {
            assert_eq!(submitter.push_burst([10, 11].into_iter()), 2);
        });
        let second = thread::spawn(move || other.push(20).unwrap());
        let mut taken = try_pop(&mut intake, 2);
        first.join().unwrap();
        second.join().unwrap();
        taken.extend(try_pop(&mut intake, 3));
        assert_eq!(taken.len(), 3);
        taken.retain(|entry| *entry < 20);
        assert_eq!(taken, [10, 11]);
    });
}

/// A burst takes slots that the consumer is just giving back.
#[test]
fn bursts_reuse_slots() {
    check(3, || {
        let (submitter, mut intake) = ring(2);
        submitter.push_burst([1, 2].into_iter());
        let producer = thread::spawn(move || submitter.push_burst([3, 4].into_iter()));
        let mut taken = try_pop(&mut intake, 2);
        let pushed = producer.join().unwrap();
        taken.extend(try_pop(&mut intake, 2));
        assert_eq!(taken, [1, 2, 3, 4][..2 + pushed]);
    });
}

/// One producer has claimed and is stuck. What another has published is there for a consumer that
/// heard of it, whatever the consumer's view of the claim was.
#[test]
fn a_stuck_producer_holds_up_nobody() {
    check(3, || {
        let (submitter, mut intake) = ring(2);
        let other = submitter.clone();
        let told = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&told);
        let stuck = thread::spawn(move || {
            // As a burst does, of which nothing is published yet.
            if let Some((position, count)) = submitter.ring.claim(|_| 1) {
                submitter.ring.hint(position + count);
            }
        });
        let pushing = thread::spawn(move || {
            other.push(20).unwrap();
            tell.store(true, Ordering::Release);
        });
        if told.load(Ordering::Acquire) {
            assert!(!intake.is_empty());
            assert_eq!(intake.pop(), Some(20));
            assert_eq!(intake.pop(), None);
        }
        stuck.join().unwrap();
        pushing.join().unwrap();
    });
}

/// A push that knows of another one comes out after it, with a hole before both.
#[test]
fn order_follows_what_producers_know() {
    check(2, || {
        let (submitter, mut intake) = ring(4);
        let other = submitter.clone();
        let told = Arc::new(AtomicBool::new(false));
        let tell = Arc::clone(&told);
        submitter.ring.claim(|_| 1).unwrap();
        let first = thread::spawn(move || {
            submitter.push(1).unwrap();
            tell.store(true, Ordering::Release);
        });
        let second = thread::spawn(move || {
            let entry = if told.load(Ordering::Acquire) { 2 } else { 0 };
            other.push(entry).unwrap();
        });
        let mut taken = try_pop(&mut intake, 2);
        first.join().unwrap();
        second.join().unwrap();
        taken.extend(try_pop(&mut intake, 2));
        assert_eq!(taken.len(), 2);
        assert_ne!(taken, [2, 1]);
    });
}

/// Claims given back by one producer are reused by another while the consumer remembers them.
#[test]
fn claims_given_back() {
    check(2, || {
        let (submitter, mut intake) = ring(2);
        let other = submitter.clone();
        let giving_back = thread::spawn(move || {
            if let Some((position, left)) = submitter.ring.claim(|_| 1) {
                drop(ClaimedRun { ring: &submitter.ring, position, left });
            }
        });
        let pushing = thread::spawn(move || push_some(&other, &[1, 2, 3]));
        let mut taken = try_pop(&mut intake, 3);
        giving_back.join().unwrap();
        let pushed = pushing.join().unwrap();
        taken.extend(try_pop(&mut intake, 3));
        assert_eq!(taken, pushed);
        assert!(intake.is_empty());
    });
}

/// A remembered claim is given back, and another producer's run covers the same slot in the next lap.
/// The consumer learns of the run only by jumping over it.
#[test]
fn a_run_over_a_slot_given_back() {
    check(2, || {
        let (submitter, mut intake) = ring(4);
        let [giving_back, claiming, pushing] = [(); 3].map(|()| submitter.clone());
        let (position, left) = submitter.ring.claim(|_| 1).unwrap();
        submitter.push(1).unwrap();
        assert_eq!(intake.pop(), Some(1));

        let giving_back = thread::spawn(move || {
            drop(ClaimedRun { ring: &giving_back.ring, position, left });
        });
        let claiming = thread::spawn(move || {
            claiming.ring.claim(|start| claiming.ring.free_run(start, 3)).unwrap();
        });
        let pushing = thread::spawn(move || push_some(&pushing, &[5]));
        let mut taken = try_pop(&mut intake, 1);
        giving_back.join().unwrap();
        claiming.join().unwrap();
        let pushed = pushing.join().unwrap();
        taken.extend(try_pop(&mut intake, 2));
        assert_eq!(taken, pushed);
    });
}

/// Entries left behind are dropped by whichever end goes last.
#[test]
fn dropped_from_either_side() {
    check(3, || {
        let entry = Arc::new(());
        let (submitter, mut intake) = ring(2);
        let copy = Arc::clone(&entry);
        let sender = thread::spawn(move || {
            submitter.push(Arc::clone(&copy)).unwrap();
            submitter.push(copy).unwrap();
        });
        drop(intake.pop());
        drop(intake);
        sender.join().unwrap();
        assert_eq!(Arc::strong_count(&entry), 1);
    });
}
