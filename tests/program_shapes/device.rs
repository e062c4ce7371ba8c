//! A device whose answers are a pure function, so that two sides can ask it.

use vfio_ccw::architecture::{CommandClass, DeviceStatus, command};

use crate::translated::Answer;

/// Counts that programs and devices like, so that they often agree.
pub(super) const SIZES: [u16; 16] =
    [8, 16, 64, 1, 4, 100, 512, 2048, 4096, 0, 6000, 20_000, 2, 32, 200, 24];

/// Commands of one start after which the device has had enough: every loop ends.
const PATIENCE: usize = 30;

/// A device; seed 0 is one that takes whatever length the program has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Model {
    /// Decides everything.
    pub seed: u32,
}

impl Model {
    /// What the device does with command `number` since the start.
    pub fn answer(self, code: u8, number: usize) -> Answer {
        if number >= PATIENCE {
            return Answer::moves(0).with_status(DeviceStatus::UNIT_CHECK);
        }
        let class = CommandClass::of(code);
        if self.seed == 0 {
            return if class == CommandClass::Control {
                Answer::immediate()
            } else {
                Answer::all()
            };
        }
        let mut chance =
            Chance::new(u64::from(self.seed) << 32 | u64::from(code) << 16 | number as u64);
        let immediate = match class {
            _ if code == command::NOP => 95,
            CommandClass::Control => 40,
            _ => 1,
        };
        let mut answer = if chance.happens(immediate) {
            Answer::immediate()
        } else {
            match chance.below(100) {
                0..60 => Answer::all(),
                60..92 => {
                    Answer::moves(usize::from(SIZES[chance.below(SIZES.len() as u64) as usize]))
                }
                92..99 => Answer::moves(chance.below(1024) as usize),
                _ => Answer::moves(70_000),
            }
        };
        if chance.happens(2) {
            return answer.with_status(DeviceStatus::UNIT_CHECK);
        }
        if chance.happens(1) {
            let odd = [0x08, 0x04, 0x0d, 0x00, 0x8c, 0x2c, 0x1c];
            answer.status =
                DeviceStatus::from_bits_retain(odd[chance.below(odd.len() as u64) as usize]);
            return answer;
        }
        // Only commands of the SEARCH family end with status modifier.
        if command::is_search(code) && chance.happens(50) {
            answer = answer.with_status(DeviceStatus::STATUS_MODIFIER);
        }
        answer
    }
}

/// Numbers that follow from a seed (splitmix64).
struct Chance(u64);

impl Chance {
    fn new(seed: u64) -> Self {
        Chance(seed)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ mixed >> 31) % end
    }

    fn happens(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}
