//! Lanes under the loom model checker.
//!
//! Each fence was removed, and made acquire-release, and each release and acquire was made relaxed, one
//! at a time: each time some model failed. They say which.

use loom::thread;

use super::*;
use crate::sync::{Arc, AtomicU64, Ordering, check};

fn ends(entries: u32) -> (LaneSender, LaneReceiver) {
    let track = Track::in_process(entries).unwrap();
    (track.sender(), track.receiver())
}

/// All words differ from those of other entries, so that a torn one shows.
fn entry(number: u32) -> Entry {
    Entry { head: number, body: [u64::from(number); 7] }
}

/// Pushes entries numbered from 1 until one is refused, and returns how many were not.
fn push_some(sender: &mut LaneSender, most: u32) -> u32 {
    (1..=most).take_while(|number| sender.push(&entry(*number)).is_ok()).count() as u32
}

/// Takes what is there in `tries` attempts, each a batch.
fn try_pop(receiver: &mut LaneReceiver, tries: usize) -> Vec<Entry> {
    (0..tries)
        .filter_map(|_| {
            let entry = receiver.pop();
            receiver.release();
            entry
        })
        .collect()
}

/// Four entries through two slots. Fails when the release or the acquire of the sequence number is made
/// relaxed; when that of the count is, which shows in `Line::order`; and when there seems to be room
/// for one more.
#[test]
fn no_entry_is_torn_or_lost() {
    check(3, || {
        let (mut sender, mut receiver) = ends(2);
        let producer = thread::spawn(move || push_some(&mut sender, 4));
        let mut taken = try_pop(&mut receiver, 3);
        let pushed = producer.join().unwrap();
        taken.extend(try_pop(&mut receiver, 2));
        assert!(taken.into_iter().eq((1..=pushed).map(entry)));
        assert!(receiver.is_idle());
    });
}

/// Whatever the interleaving, a consumer that went to sleep with an entry there has been rung, and one
/// that did not finds it. Fails without the fence of `must_wake`, without that of `prepare_sleep`, and
/// when either is acquire-release only.
#[test]
fn no_wakeup_is_lost() {
    check(3, || {
        let (mut sender, mut receiver) = ends(2);
        let producer = thread::spawn(move || {
            sender.push(&entry(1)).unwrap();
            sender.must_wake()
        });
        let sleeps = receiver.prepare_sleep();
        if !sleeps {
            assert_eq!(receiver.pop(), Some(entry(1)));
        }
        let rung = producer.join().unwrap();
        assert!(rung || !sleeps);
    });
}

/// A consumer that gets up by itself, perhaps while the producer rings, and sleeps again: the next sleep
/// ends too. Fails as the model before.
#[test]
fn no_second_wakeup_is_lost() {
    check(3, || {
        let (mut sender, mut receiver) = ends(2);
        let signals = Arc::new(AtomicU64::new(0));
        let eventfd = Arc::clone(&signals);
        let producer = thread::spawn(move || {
            for number in [1, 2] {
                sender.push(&entry(number)).unwrap();
                if sender.must_wake() {
                    signals.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        receiver.prepare_sleep();
        receiver.awake();
        eventfd.swap(0, Ordering::Relaxed);
        try_pop(&mut receiver, 1);
        let sleeps = receiver.prepare_sleep();
        producer.join().unwrap();
        if sleeps && !receiver.is_idle() {
            assert_ne!(eventfd.load(Ordering::Relaxed), 0);
        }
    });
}

/// A consumer that was rung sees what was pushed before, whatever woke it. Fails when the swap in
/// `awake` is relaxed, and without the fence of `must_wake`.
#[test]
fn who_was_rung_sees_the_entry() {
    check(3, || {
        let (mut sender, mut receiver) = ends(2);
        let told = Arc::new(AtomicU64::new(0));
        let tell = Arc::clone(&told);
        let sleeps = receiver.prepare_sleep();
        assert!(sleeps);
        let producer = thread::spawn(move || {
            sender.push(&entry(1)).unwrap();
            tell.store(u64::from(sender.must_wake()), Ordering::Relaxed);
        });
        if told.load(Ordering::Relaxed) == 1 {
            receiver.awake();
            assert_eq!(receiver.pop(), Some(entry(1)));
        }
        producer.join().unwrap();
    });
}
