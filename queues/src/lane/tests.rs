use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use proptest::prelude::*;

use super::memory::{ASLEEP, AWAKE, Line, RUNG};
use super::*;
use crate::event::Event;

fn ends(entries: u32) -> (Track, LaneSender, LaneReceiver) {
    let track = Track::in_process(entries).unwrap();
    let (sender, receiver) = (track.sender(), track.receiver());
    (track, sender, receiver)
}

/// Ends that have had `position` entries already.
fn ends_at(track: &Track, position: u32) -> (LaneSender, LaneReceiver) {
    track.memory.taken().store(position.into(), Ordering::Relaxed);
    let sender = LaneSender::starting_at(track.memory.clone(), position);
    (sender, LaneReceiver::starting_at(track.memory.clone(), position))
}

fn entry(number: u32) -> Entry {
    let word = u64::from(number) << 32 | u64::from(!number);
    Entry { head: number, body: std::array::from_fn(|place| word.rotate_left(place as u32)) }
}

/// Takes all that is there as one batch; the peers of these tests are honest.
fn pop_all(receiver: &mut LaneReceiver) -> Vec<Entry> {
    let taken = std::iter::from_fn(|| receiver.pop()).collect();
    receiver.release();
    taken
}

#[test]
fn entries_come_out_whole_and_in_order() {
    let (_, mut sender, mut receiver) = ends(8);
    let mut next = 0;
    for batch in [1, 8, 3, 0, 8, 5, 8, 2] {
        let numbers = next..next + batch;
        numbers.clone().for_each(|number| sender.push(&entry(number)).unwrap());
        assert!(pop_all(&mut receiver).into_iter().eq(numbers.map(entry)));
        next += batch;
    }
}

#[test]
fn the_layout_is_what_is_documented() {
    assert_eq!([Track::bytes(2), Track::bytes(65_536)], [256, 128 + 4_194_304]);
    let (track, mut sender, mut receiver) = ends(2);
    for head in [5, 6, 7] {
        sender.push(&Entry { head, body: [1, 2, 3, 4, 5, 6, 7] }).unwrap();
        receiver.pop().unwrap();
        receiver.release();
    }
    assert!(receiver.prepare_sleep());
    // SAFETY: the memory of `track`, which lives, of that many words; nobody writes it now. Test: this
    // one.
    let words: [u64; 32] =
        unsafe { (*track.memory.state().as_ptr().cast::<[u64; 32]>()).to_owned() };
    let mut expected = [0; 32];
    (expected[0], expected[8]) = (1, 3);
    expected[16..24].copy_from_slice(&[7 << 32 | 3, 1, 2, 3, 4, 5, 6, 7]);
    expected[24..].copy_from_slice(&[6 << 32 | 2, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(words, expected);
}

#[test]
fn positions_wrap() {
    for entries in [2, 4, 64] {
        let track = Track::in_process(entries).unwrap();
        // More than a lap before the wrap: sequence number 0 is looked for in slots that were used.
        let (mut sender, mut receiver) = ends_at(&track, u32::MAX - 2 * entries);
        for number in 0..4 * entries {
            assert!(receiver.is_idle(), "{receiver:?}");
            sender.push(&entry(number)).unwrap();
            assert_eq!(receiver.pop(), Some(entry(number)));
            receiver.release();
            assert_eq!(sender.room(), Ok(entries), "{sender:?}");
        }
    }
}

#[test]
fn a_full_lap_fits_over_the_wrap() {
    let track = Track::in_process(4).unwrap();
    let (mut sender, mut receiver) = ends_at(&track, u32::MAX - 5);
    for _ in 0..4 {
        (0..4).for_each(|number| sender.push(&entry(number)).unwrap());
        assert_eq!(sender.push(&entry(4)), Err(LaneError::Full));
        assert!(pop_all(&mut receiver).into_iter().eq((0..4).map(entry)));
    }
}

#[test]
fn full_until_released() {
    let (_, mut sender, mut receiver) = ends(2);
    sender.push(&entry(0)).unwrap();
    assert_eq!(sender.room(), Ok(1));
    sender.push(&entry(1)).unwrap();
    assert_eq!((sender.push(&entry(9)), sender.room()), (Err(LaneError::Full), Ok(0)));
    assert_eq!(receiver.pop(), Some(entry(0)));
    assert_eq!(sender.push(&entry(9)), Err(LaneError::Full));
    receiver.release();
    sender.push(&entry(2)).unwrap();
    assert_eq!(sender.push(&entry(9)), Err(LaneError::Full));
    assert_eq!(pop_all(&mut receiver), [entry(1), entry(2)]);
}

#[test]
fn what_was_taken_is_published_once_for_a_batch() {
    let (track, mut sender, mut receiver) = ends(4);
    (0..3).for_each(|number| sender.push(&entry(number)).unwrap());
    let published = || track.memory.taken().load(Ordering::Relaxed);
    receiver.pop().unwrap();
    receiver.pop().unwrap();
    assert_eq!(published(), 0);
    receiver.release();
    assert_eq!(published(), 2);
    // Nothing was taken since: nothing is written.
    track.memory.taken().store(77, Ordering::Relaxed);
    receiver.release();
    assert_eq!(published(), 77);
}

#[test]
fn a_count_that_cannot_be_is_an_error() {
    let (track, mut sender, mut receiver) = ends(4);
    let claim = |taken: u64| track.memory.taken().store(taken, Ordering::Relaxed);
    (0..4).for_each(|number| sender.push(&entry(number)).unwrap());
    (0..2).for_each(|_| assert!(receiver.pop().is_some()));
    receiver.release();
    assert_eq!(sender.room(), Ok(2));
    for taken in [0, 1, 5, 1 << 31, u32::MAX] {
        claim(taken.into());
        let broken = Err(LaneError::Broken { taken, before: 2, pushed: 4 });
        assert_eq!(sender.room(), broken);
    }
    // `push` looks when it has to, and puts nothing in then.
    claim(5);
    (4..6).for_each(|number| sender.push(&entry(number)).unwrap());
    let broken = LaneError::Broken { taken: 5, before: 2, pushed: 6 };
    claim(1);
    assert_eq!(sender.push(&entry(9)), Err(LaneError::Broken { taken: 1, before: 2, pushed: 6 }));
    claim(7);
    assert_eq!(sender.push(&entry(9)), Err(LaneError::Broken { taken: 7, before: 2, pushed: 6 }));
    assert!(broken.to_string().contains("taken 5 entries, which has to be from 2 to 6"));
    // The high half says nothing, and what was pushed is there.
    claim(0xffff_ffff << 32 | 4);
    assert_eq!(sender.room(), Ok(2));
    assert!(pop_all(&mut receiver).into_iter().eq((2..6).map(entry)));
}

#[test]
fn any_bits_are_an_entry_and_no_more_are_taken_than_asked_for() {
    let (track, _, mut receiver) = ends(2);
    for (position, noise) in
        (0..1_000u32).map(|n| (n, u64::from(n).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    {
        let [first, body @ ..] = &track.memory.slot(position).words;
        body.iter().for_each(|word| word.store(noise, Ordering::Relaxed));
        for wrong in [position, position.wrapping_sub(1), position + 2, position + 3, u32::MAX] {
            first.store(noise << 32 | u64::from(wrong), Ordering::Relaxed);
            assert_eq!((receiver.pop(), receiver.is_idle()), (None, true));
        }
        first.store(noise << 32 | u64::from(position + 1), Ordering::Relaxed);
        assert!(!receiver.is_idle());
        assert_eq!(receiver.pop(), Some(Entry { head: noise as u32, body: [noise; 7] }));
    }
    // Never released: 1,000 entries through two slots are a hostile peer's, and were one by one.
    receiver.release();
    assert_eq!(track.memory.taken().load(Ordering::Relaxed), 1_000);
}

#[test]
fn a_running_consumer_is_not_rung() {
    let (track, mut sender, mut receiver) = ends(2);
    let state = || track.memory.state().load(Ordering::Relaxed);
    sender.push(&entry(0)).unwrap();
    assert!(!sender.must_wake());
    assert!(!receiver.prepare_sleep(), "there is an entry");
    assert_eq!(state(), AWAKE);
    assert!(!sender.must_wake());
    assert_eq!(pop_all(&mut receiver), [entry(0)]);
}

#[test]
fn one_signal_for_each_sleep() {
    let (track, mut sender, mut receiver) = ends(2);
    let state = || track.memory.state().load(Ordering::Relaxed);
    for number in 0..4 {
        assert!(receiver.prepare_sleep());
        assert_eq!(state(), ASLEEP);
        sender.push(&entry(number)).unwrap();
        assert!(sender.must_wake());
        assert_eq!(state(), RUNG);
        assert!(!sender.must_wake());
        receiver.awake();
        assert_eq!(state(), AWAKE);
        assert_eq!(pop_all(&mut receiver), [entry(number)]);
    }
    // It got up by itself, and slept again without that anybody noticed.
    assert!(receiver.prepare_sleep());
    receiver.awake();
    assert!(!sender.must_wake());
    assert!(receiver.prepare_sleep());
    assert!(sender.must_wake());
    assert!(receiver.prepare_sleep(), "the ring of the last sleep is forgotten");
    assert!(sender.must_wake());
}

#[test]
fn a_state_that_is_none_counts_as_awake() {
    let (track, mut sender, receiver) = ends(2);
    let state = track.memory.state();
    for garbage in [3, 4, 1 << 32 | 1, u64::MAX] {
        state.store(garbage, Ordering::Relaxed);
        assert!(!sender.must_wake());
        assert_eq!(state.load(Ordering::Relaxed), garbage, "and is left alone");
        receiver.awake();
        assert_eq!(state.load(Ordering::Relaxed), AWAKE);
        state.store(garbage, Ordering::Relaxed);
        assert!(receiver.prepare_sleep());
        assert!(sender.must_wake());
    }
    // A peer that takes the announcement back does not keep the entry from being found.
    sender.push(&entry(0)).unwrap();
    state.store(RUNG, Ordering::Relaxed);
    assert!(!receiver.prepare_sleep());
}

#[test]
fn what_cannot_be_a_track_is_refused() {
    for entries in [0, 1, 3, 65_535, 65_537, 131_072, u32::MAX] {
        let error = Track::in_process(entries).unwrap_err();
        assert_eq!(error, LaneError::Entries { entries });
        assert_eq!(
            error.to_string(),
            format!("a lane with {entries} entries: use a power of two from 2 to 65536")
        );
    }
    let start = NonNull::new(ptr::without_provenance_mut(64 * 5 + 8)).unwrap();
    // SAFETY: refused before it is accessed. Test: this one.
    let error = unsafe { Track::new(start, 2, Arc::new(())) }.unwrap_err();
    assert_eq!(error, LaneError::Alignment { address: 328 });
    assert!(error.to_string().contains("0x148"));
    for entries in [Track::FEWEST, Track::MOST] {
        Track::in_process(entries).unwrap();
    }
}

#[test]
fn nothing_outside_is_touched() {
    const CANARY: u64 = 0x00c0_ffee_00c0_ffee;
    for entries in [2, 8] {
        let words = Track::bytes(entries) / 8;
        let line = |inside: bool| {
            let word = if inside { 0 } else { CANARY };
            Line { words: std::array::from_fn(|_| AtomicU64::new(word)) }
        };
        let lines = Arc::new(Vec::from_iter(
            (0..words / 8 + 2).map(|number| line((1..=words / 8).contains(&number))),
        ));
        let start = NonNull::from(&lines.as_slice()[1..]).cast();
        let keeps: Arc<dyn Any + Send + Sync> = lines.clone();
        // SAFETY: all lines but the first and the last of a vector that `keeps` holds. Test: this one.
        let track = unsafe { Track::new(start, entries, keeps) }.unwrap();
        let (mut sender, mut receiver) = ends_at(&track, u32::MAX - 2 * entries);
        for number in 0..4 * entries {
            sender.push(&Entry { head: number, body: [u64::MAX; 7] }).unwrap();
            receiver.prepare_sleep();
            assert_eq!(pop_all(&mut receiver).len(), 1);
            receiver.prepare_sleep();
        }
        for canary in [lines.first().unwrap(), lines.last().unwrap()] {
            assert!(canary.words.iter().all(|word| word.load(Ordering::Relaxed) == CANARY));
        }
        // And all inside but the words that are nobody's.
        let untouched = lines.iter().flat_map(|line| &line.words);
        let untouched = untouched.filter(|word| word.load(Ordering::Relaxed) == 0).count();
        assert_eq!(untouched, 14);
    }
}

#[test]
fn memory_is_kept_by_each_end() {
    let lines = Arc::new([const { AtomicU64::new(0) }; 40]);
    let start = lines.iter().find(|word| (&raw const **word).cast::<Line>().is_aligned()).unwrap();
    let start = NonNull::from(start).cast();
    let gone = Arc::downgrade(&lines);
    // SAFETY: the first aligned one of 40 words is the eighth at the latest, and 32 are used. Test:
    // this one.
    let track = unsafe { Track::new(start, 2, lines) }.unwrap();
    let (sender, receiver) = (track.sender(), track.clone().receiver());
    drop(track);
    drop(sender);
    assert_eq!(gone.strong_count(), 1);
    drop(receiver);
    assert_eq!(gone.strong_count(), 0);
}

/// One memory at two addresses, each with inaccessible pages around it, as two processes have it.
#[cfg(not(miri))]
#[test]
fn two_mappings_of_one_memory() {
    let file = std::os::fd::OwnedFd::from(mapping::file());
    let (one, other) = (mapping::of(&file, 64), mapping::of(&file, 64));
    let (mut sender, mut receiver) = (one.sender(), other.receiver());
    assert!(receiver.prepare_sleep());
    for lap in 0..3 {
        (0..64).for_each(|number| sender.push(&entry(lap + number)).unwrap());
        assert_eq!(sender.push(&entry(0)), Err(LaneError::Full));
        assert_eq!((sender.must_wake(), sender.must_wake()), (lap == 0, false));
        receiver.awake();
        assert!(pop_all(&mut receiver).into_iter().eq((lap..lap + 64).map(entry)));
    }
}

#[cfg(not(miri))]
mod mapping {
    use std::fs::File;
    use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

    use super::*;

    const PAGE: usize = 4096;

    /// Addresses that are given back in the end.
    struct Mapping {
        start: *mut libc::c_void,
        bytes: usize,
    }

    // SAFETY: an address is the same on all threads. Test: `two_mappings_of_one_memory`.
    unsafe impl Send for Mapping {}
    // SAFETY: as above. Test: `two_mappings_of_one_memory`.
    unsafe impl Sync for Mapping {}

    impl Drop for Mapping {
        fn drop(&mut self) {
            // SAFETY: mapped in `of` with that size; whoever used it kept this. Test: the assertion.
            assert_eq!(unsafe { libc::munmap(self.start, self.bytes) }, 0);
        }
    }

    pub(super) fn file() -> File {
        // SAFETY: a name that lives, and a descriptor that is nobody's. Test: the assertion.
        let file = unsafe {
            let descriptor = libc::memfd_create(c"lane".as_ptr(), libc::MFD_CLOEXEC);
            assert!(descriptor >= 0);
            File::from_raw_fd(descriptor)
        };
        file.set_len(PAGE as u64 * 2).unwrap();
        file
    }

    /// The track ends where the file does, and an inaccessible page follows; one is before, too.
    pub(super) fn of(file: &OwnedFd, entries: u32) -> Track {
        let bytes = 4 * PAGE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let fixed = libc::MAP_SHARED | libc::MAP_FIXED;
        // SAFETY: new addresses, of which two pages are then the file's. Test: the assertions.
        let (start, inner) = unsafe {
            let start = libc::mmap(ptr::null_mut(), bytes, libc::PROT_NONE, private, -1, 0);
            assert_ne!(start, libc::MAP_FAILED);
            let inner = start.byte_add(PAGE);
            assert_eq!(libc::mmap(inner, 2 * PAGE, protection, fixed, file.as_raw_fd(), 0), inner);
            (start, inner)
        };
        let keeps = Arc::new(Mapping { start, bytes });
        let start = inner.wrapping_byte_add(2 * PAGE - Track::bytes(entries));
        // SAFETY: the end of two pages that `keeps` keeps mapped. Test: `two_mappings_of_one_memory`.
        unsafe { Track::new(NonNull::new(start.cast()).unwrap(), entries, keeps) }.unwrap()
    }
}

/// Two threads with an eventfd each way of waiting: every entry arrives whole, and every sleep ends.
#[test]
fn across_threads() {
    const COUNT: u32 = if cfg!(miri) { 200 } else { 200_000 };
    let (_, mut sender, mut receiver) = ends(16);
    let event = Event::new().unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut next = 0;
            while next < COUNT {
                // Batches of 1 to 7, so that there are sleeps.
                for _ in 0..=next % 7 {
                    match sender.push(&entry(next)) {
                        Ok(()) => next += 1,
                        Err(LaneError::Full) => thread::yield_now(),
                        Err(error) => panic!("{error}"),
                    }
                }
                if sender.must_wake() {
                    event.signal();
                }
            }
        });
        let mut next = 0;
        while next < COUNT {
            for _ in 0..5 {
                let Some(taken) = receiver.pop() else { break };
                assert_eq!(taken, entry(next));
                next += 1;
            }
            receiver.release();
            event.collect();
            if next < COUNT && receiver.prepare_sleep() {
                let rung = event.wait(Some(Duration::from_secs(60))).unwrap();
                assert!(rung || !receiver.is_idle(), "asleep for a minute");
                receiver.awake();
            }
        }
    });
}

/// Someone writes all over the memory while both ends run, each a number of times that it chose.
#[test]
fn a_vandal_changes_nothing_but_what_comes_out() {
    const ROUNDS: u32 = if cfg!(miri) { 100 } else { 100_000 };
    let (track, mut sender, mut receiver) = ends(4);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut noise = 1u64;
            while !done.load(Ordering::Relaxed) {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                // Often what makes sense: a small number.
                let value = noise >> (noise % 64);
                let memory = &track.memory;
                match noise % 3 {
                    0 => memory.state().store(value, Ordering::Relaxed),
                    1 => memory.taken().store(value, Ordering::Relaxed),
                    _ => memory.slot(noise as u32 >> 8).first().store(value, Ordering::Relaxed),
                }
            }
        });
        let producer = scope.spawn(|| {
            for number in 0..ROUNDS {
                let _ = sender.push(&entry(number));
                assert!(matches!(sender.room(), Ok(0..=4) | Err(LaneError::Broken { .. })));
                let _ = sender.must_wake();
            }
        });
        for _ in 0..ROUNDS {
            let _ = receiver.pop();
            receiver.release();
            let _ = receiver.prepare_sleep();
            receiver.awake();
        }
        producer.join().unwrap();
        done.store(true, Ordering::Relaxed);
    });
}

/// What a test does next, or the peer.
#[derive(Clone, Copy, Debug)]
enum Step {
    Push,
    Room,
    MustWake,
    Pop,
    Release,
    PrepareSleep,
    Awake,
    State(u64),
    Taken(u64),
    Slot(u32, usize, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let word = || prop_oneof![0..12u64, any::<u64>(), any::<u32>().prop_map(u64::from)];
    prop_oneof![
        4 => Just(Step::Push),
        4 => Just(Step::Pop),
        1 => Just(Step::Room),
        1 => Just(Step::MustWake),
        1 => Just(Step::Release),
        1 => Just(Step::PrepareSleep),
        1 => Just(Step::Awake),
        1 => word().prop_map(Step::State),
        1 => word().prop_map(Step::Taken),
        2 => (any::<u32>(), 0..8usize, word()).prop_map(|(slot, at, word)| Step::Slot(slot, at, word)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 4 } else { 256 }, ..Default::default() })]

    /// No step panics, whatever the peer wrote between them, and what the sender has said of its room
    /// holds.
    #[test]
    fn any_steps_are_survived(
        steps in prop::collection::vec(step(), 0..200),
        start in prop_oneof![Just(0), (u32::MAX - 20)..=u32::MAX],
    ) {
        let track = Track::in_process(4).unwrap();
        let (mut sender, mut receiver) = ends_at(&track, start);
        let mut promised = 0u32;
        for step in steps {
            match step {
                Step::Push => {
                    let pushed = sender.push(&entry(7));
                    prop_assert!(pushed.is_ok() || promised == 0);
                    promised = promised.saturating_sub(1);
                }
                Step::Room => if let Ok(room) = sender.room() {
                    prop_assert!((promised..=4).contains(&room));
                    promised = room;
                },
                Step::MustWake => {
                    let asleep = track.memory.state().load(Ordering::Relaxed) == ASLEEP;
                    prop_assert_eq!(sender.must_wake(), asleep);
                }
                Step::Pop => {
                    let idle = receiver.is_idle();
                    prop_assert_eq!(receiver.pop().is_none(), idle);
                }
                Step::Release => receiver.release(),
                Step::PrepareSleep => prop_assert_eq!(receiver.prepare_sleep(), receiver.is_idle()),
                Step::Awake => receiver.awake(),
                Step::State(word) => track.memory.state().store(word, Ordering::Relaxed),
                Step::Taken(word) => track.memory.taken().store(word, Ordering::Relaxed),
                Step::Slot(slot, at, word) => {
                    track.memory.slot(slot).words[at].store(word, Ordering::Relaxed);
                }
            }
        }
    }
}
