//! A track of a lane whose peer writes what it likes into the memory, at either end of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vfio_ccw_queues::lane::{Entry, LaneError, Track};

use crate::input::Input;

/// Slots; small, so that laps come soon.
const SLOTS: u32 = 4;
const WORDS: usize = Track::bytes(SLOTS) / 8;

/// Memory that a track may lie in.
#[repr(align(64))]
struct Shared([AtomicU64; WORDS]);

/// One case: steps of one end, and of its peer, which knows nothing but the memory.
pub fn run(bytes: &[u8]) {
    let shared = Arc::new(Shared([const { AtomicU64::new(0) }; WORDS]));
    let start = std::ptr::NonNull::from(&shared.0).cast();
    // SAFETY: so many words, which are accessed as atomics only, for as long as `shared` is kept. Test: the seeds
    // of `lane`.
    let track = unsafe { Track::new(start, SLOTS, shared.clone()) }.expect("aligned");
    let (mut sender, mut receiver) = (track.sender(), track.receiver());
    let (mut taken, mut written) = (0u64, 0u64);
    let mut input = Input::new(bytes);
    while !input.is_empty() {
        match input.u8() % 8 {
            // The peer.
            0 => {
                let place = usize::from(input.u8()) % WORDS;
                shared.0[place].store(input.u64(), Ordering::Relaxed);
                written += 1;
            }
            // The peer, as it ought to: the next entry.
            1 => {
                let position = taken as u32;
                let slot = 16 + 8 * (position % SLOTS) as usize;
                let word = u64::from(input.u8()) << 32 | u64::from(position.wrapping_add(1));
                shared.0[slot].store(word, Ordering::Release);
                written += 1;
            }
            2 => {
                let found = (0..2 * SLOTS).map_while(|_| receiver.pop()).count() as u64;
                taken += found;
            }
            3 => receiver.release(),
            4 => drop(receiver.prepare_sleep()),
            5 => receiver.awake(),
            6 => {
                let entry = Entry { head: input.u8().into(), body: [input.u64(); 7] };
                match sender.push(&entry) {
                    Ok(()) => written += 1,
                    Err(LaneError::Full | LaneError::Broken { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            _ => {
                assert!(sender.room().is_ok_and(|room| room <= SLOTS) || sender.room().is_err());
                let _ = sender.must_wake();
            }
        }
        // A word that was written is one entry at most: nothing comes from nowhere.
        assert!(taken <= written, "{taken} entries of {written} words");
    }
}
