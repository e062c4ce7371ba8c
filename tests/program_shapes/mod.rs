//! Channel programs that look like programs: chains, loops, lists, limits, and single bits gone
//! wrong.
//!
//! proptest makes and shrinks bytes; a [`Dice`] reads them as choices, the simplest first, so that a
//! failing program shrinks to few CCWs without flags.

mod device;
mod dice;
mod lists;
mod writer;

use std::fmt;

use proptest::array::{uniform4, uniform24};
use proptest::collection::vec;
use proptest::prelude::*;
use vfio_ccw::architecture::{Ccw, Orb, OrbFlags};

use crate::reference::memory::Keys;

use dice::Dice;
use writer::Writer;

pub use device::Model;

/// Guest memory: two adjacent regions, a hole, a region over each of the limits of 16 MiB and
/// 2 GiB, and one that only format-2 IDAWs and MIDAWs reach.
pub const REGIONS: [(u64, usize); 6] = [
    (0, 0x1_0000),
    (SEAM, 0x4000),
    (0x1_6000, 0x2000),
    (0xff_e000, 0x4000),
    (0x7fff_e000, 0x4000),
    (HIGH, 0x4000),
];

/// Where two regions touch.
const SEAM: u64 = 0x1_0000;
/// Where a hole begins.
const HOLE: u64 = 0x1_4000;
/// Past 4 GiB.
const HIGH: u64 = 0x1_0000_0000;

/// One guest, one device, one start and what follows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Case {
    /// What START SUBCHANNEL is given.
    pub orb: Orb,
    /// The CCWs: address and bytes.
    pub ccws: Vec<(u64, [u8; 8])>,
    /// The lists of IDAWs and MIDAWs: address and bytes.
    pub lists: Vec<(u64, Vec<u8>)>,
    /// Storage keys, if storage is protected.
    pub keys: Option<Keys>,
    /// The device.
    pub device: Model,
    /// What the guest does to the CCW that its program is suspended at, before it resumes it.
    pub resumptions: Vec<Edit>,
}

/// A change of the CCW that a program is suspended at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Edit {
    /// The suspend flag is cleared.
    Clear,
    /// Nothing: the program is suspended again.
    Keep,
    /// The CCW becomes a no-operation with command chaining.
    Replace,
    /// The CCW becomes a transfer to the program's start.
    Transfer,
}

impl Edit {
    /// The bytes of the CCW after the change.
    pub fn apply(self, ccw: [u8; 8], orb: &Orb) -> [u8; 8] {
        let new = match self {
            Edit::Clear | Edit::Keep => {
                let mut same = ccw;
                if self == Edit::Clear {
                    same[if orb.is_format_1() { 1 } else { 4 }] &= !0x02;
                }
                return same;
            }
            Edit::Replace => writer::no_operation(),
            Edit::Transfer => Ccw::new(vfio_ccw::architecture::command::TIC, orb.cpa(), 0),
        };
        writer::encode(new, orb)
    }
}

/// Where a program's data lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Mostly elsewhere.
    Apart,
    /// Often in the program itself.
    InTheProgram,
}

/// Programs, with the devices they meet.
pub fn cases(data: Data) -> impl Strategy<Value = Case> {
    let frame = uniform24(any::<u8>());
    let ccws = vec(uniform24(any::<u8>()), 1..=20);
    let mutations = vec(uniform4(any::<u8>()), 0..=3);
    let seed = prop_oneof![1 => Just(0), 9 => any::<u32>()];
    (frame, ccws, mutations, seed).prop_map(move |(frame, ccws, mutations, seed)| {
        let mut dice = Dice::new(&frame);
        let orb = orb(&mut dice);
        let mut writer = Writer::new(orb, data);
        for (index, choices) in ccws.iter().enumerate() {
            writer.write(&mut Dice::new(choices), index + 1 == ccws.len());
        }
        if !dice.chance(15) {
            writer.end();
        }
        let (cpa, ccws, lists) = writer.finish(dice.below(8));
        let keys = (orb.key() != 0).then(|| keys(&mut dice, orb.key()));
        let edits = [Edit::Clear, Edit::Clear, Edit::Keep, Edit::Replace, Edit::Transfer];
        let resumptions = (0..dice.below(4)).map(|_| dice.of(&edits)).collect();
        let device = Model { seed };
        let mut case = Case { orb: orb.with_cpa(cpa), ccws, lists, keys, device, resumptions };
        for choices in mutations {
            case.mutate(&mut Dice::new(&choices));
        }
        case
    })
}

fn orb(dice: &mut Dice<'_>) -> Orb {
    let mut flags = OrbFlags::PREFETCH;
    flags.set(OrbFlags::FORMAT_1, !dice.chance(35));
    flags |= dice.of(&[
        OrbFlags::FORMAT_2_IDAWS,
        OrbFlags::FORMAT_2_IDAWS | OrbFlags::IDAW_2K,
        OrbFlags::empty(),
        // T without H means nothing.
        OrbFlags::IDAW_2K,
    ]);
    for (flag, percent) in [
        (OrbFlags::SUSPEND_CONTROL, 40),
        (OrbFlags::SUPPRESS_SUSPENDED, 25),
        (OrbFlags::SUPPRESS_LENGTH, 30),
        (OrbFlags::MIDAW, 40),
        (OrbFlags::ADDRESS_LIMIT, 5),
        (OrbFlags::INITIAL_STATUS, 5),
        (OrbFlags::MODIFICATION | OrbFlags::SYNCHRONISATION | OrbFlags::STREAMING, 5),
    ] {
        flags.set(flag, dice.chance(percent));
    }
    let key = if dice.chance(30) { 1 + dice.below(15) as u8 } else { 0 };
    Orb::new(0).with_flags(flags).with_key(key)
}

/// Keys that mostly match: a few frames do not.
fn keys(dice: &mut Dice<'_>, key: u8) -> Keys {
    let frames = [0x6, 0x1, 0x2, 0x7, 0x8, 0xf, 0x10, 0x13, 0xfff, 0x7_ffff, 0x10_0000];
    let odd = (0..dice.below(4))
        .map(|_| (dice.of(&frames), if dice.chance(70) { key ^ 1 } else { key }, dice.chance(50)));
    let odd = odd.collect();
    // Key 9 everywhere: nothing may be stored, but all may be fetched.
    Keys { usual: if dice.chance(5) { 9 } else { key }, odd }
}

impl Case {
    /// Turns one bit of the program, of a list or of the ORB.
    fn mutate(&mut self, dice: &mut Dice<'_>) {
        if !dice.chance(12) {
            return;
        }
        let (index, choice) = (usize::from(dice.byte()), dice.word());
        let bit = 1 << (choice % 8);
        let byte = usize::from(choice / 8);
        if index < 160 {
            let count = self.ccws.len();
            self.ccws[index % count].1[byte % 8] ^= bit;
        } else if index < 230 {
            let count = self.lists.len().max(1);
            if let Some((_, list)) = self.lists.get_mut(index % count) {
                let len = list.len();
                list[byte % len] ^= bit;
            }
        } else {
            let flags = [
                OrbFlags::FORMAT_1,
                OrbFlags::FORMAT_2_IDAWS,
                OrbFlags::IDAW_2K,
                OrbFlags::SUSPEND_CONTROL,
                OrbFlags::MIDAW,
                OrbFlags::SUPPRESS_LENGTH,
            ];
            self.orb = match byte % 8 {
                0..6 => self.orb.with_flags(self.orb.flags() ^ flags[byte % 8]),
                _ => self.orb.with_cpa((self.orb.cpa() ^ 1 << (choice % 31)) & 0x7fff_ffff),
            };
        }
    }
}

impl fmt::Debug for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.orb)?;
        for (at, bytes) in &self.ccws {
            writeln!(f, "  {at:#010x} {:?}", Ccw::decode(*bytes, self.orb.is_format_1()))?;
        }
        for (at, bytes) in &self.lists {
            writeln!(f, "  {at:#010x} {bytes:02x?}")?;
        }
        writeln!(f, "  {:?} {:?} {:?}", self.keys, self.device, self.resumptions)
    }
}
