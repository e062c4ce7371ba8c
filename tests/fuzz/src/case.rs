//! One guest's case: an ORB, what stands in memory, the device's script, and the VMM's rules.

use std::sync::Arc;

use vfio_ccw::architecture::{Ccw, Orb};
use vfio_ccw::translation::{Limits, Policy, Rules, StorageKey, StorageKeys};
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_pinning::FRAME_SHIFT;
use zerocopy::FromBytes;

use crate::guest::{self, GUEST_BYTES, Guest};
use crate::input::Input;

/// Bits of ORB word 1 that a start must not have: transport mode, reserved bits, extension.
const REFUSED: u32 = 0x0004_003f;

/// Everything about a case but what stands in memory.
#[derive(Clone, Debug)]
pub struct Case {
    /// What START SUBCHANNEL is given; it passes the operand checks.
    pub orb: Orb,
    /// The device's endings, see [`crate::scripted::Scripted`].
    pub script: [u8; 8],
    /// What the guest does when its program is suspended: two bits each time.
    pub resumes: u8,
    /// What the VMM says.
    pub rules: Rules,
    /// Storage keys, if there are any.
    pub keys: Option<Keys>,
    /// Limits are those that no case reaches.
    pub wide: bool,
    /// Whether there is a policy.
    pub refuses: bool,
    /// Whether extents are looked at: such policies refuse programs without prefetch.
    pub extents: bool,
}

/// Two storage keys and which frames have which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keys {
    keys: [u8; 2],
    frames: u8,
}

impl StorageKeys for Keys {
    fn key(&self, address: u64) -> StorageKey {
        let bit = |number: u64| self.frames >> (number % 8) & 1;
        let frame = address >> FRAME_SHIFT;
        StorageKey {
            access: self.keys[usize::from(bit(frame))] & 0xf,
            fetch_protected: bit(frame + 3) == 1,
        }
    }
}

/// The header of a case, as seeds write it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Header {
    /// Bit 0: keys; bit 1: narrow limits; bits 2-3: policy; bits 4-6: class of the device; bit 7:
    /// the guest overwrites its program.
    pub options: u8,
    /// Two keys of four bits.
    pub keys: u8,
    /// Which of eight frames has the second key.
    pub frames: u8,
    /// What happens at suspensions.
    pub resumes: u8,
    /// The device's endings.
    pub script: [u8; 8],
}

impl Header {
    /// The bytes of a case with this header.
    pub fn case(&self, orb: &Orb) -> CaseBytes {
        let mut bytes = vec![self.options, self.keys, self.frames, self.resumes];
        bytes.extend(self.script);
        bytes.extend(zerocopy::IntoBytes::as_bytes(orb));
        CaseBytes(bytes)
    }
}

/// A case being written.
#[derive(Clone, Debug)]
pub struct CaseBytes(pub Vec<u8>);

impl CaseBytes {
    /// Adds bytes at a guest address on a doubleword.
    pub fn put(mut self, address: u64, bytes: &[u8]) -> Self {
        let offset = guest::linear(address).expect("an address in guest memory");
        assert!(offset.is_multiple_of(8) && bytes.len() < 256, "{address:#x}");
        self.0.extend((offset as u16 / 8).to_be_bytes());
        self.0.push(bytes.len() as u8);
        self.0.extend(bytes);
        self
    }

    /// Adds format-1 CCWs at a guest address.
    pub fn ccws(self, address: u64, ccws: &[Ccw]) -> Self {
        let bytes: Vec<u8> = ccws.iter().flat_map(|ccw| ccw.to_format_1()).collect();
        self.put(address, &bytes)
    }

    /// Adds format-0 CCWs at a guest address.
    pub fn ccws_0(self, address: u64, ccws: &[Ccw]) -> Self {
        let bytes: Vec<u8> = ccws.iter().flat_map(|ccw| ccw.to_format_0()).collect();
        self.put(address, &bytes)
    }

    /// Adds format-2 IDAWs at a guest address.
    pub fn idaws(self, address: u64, idaws: &[u64]) -> Self {
        let bytes: Vec<u8> = idaws.iter().flat_map(|idaw| idaw.to_be_bytes()).collect();
        self.put(address, &bytes)
    }
}

impl Case {
    /// Bytes before the first piece of memory; the last of them are the ORB.
    pub const HEADER: usize = 24;

    /// Reads a case and puts its memory into `guest`, which is clear.
    pub fn read(input: &mut Input<'_>, guest: &mut Guest) -> Self {
        let options = input.u8();
        let keys = input.u8();
        let keys = Keys { keys: [keys >> 4, keys & 0xf], frames: input.u8() };
        let resumes = input.u8();
        let script = input.array();
        let orb = orb(input.array());
        pieces(input, guest);
        let keys = (options & 1 != 0).then_some(keys);
        let wide = options & 2 == 0;
        let (policy, extents) = match options >> 2 & 3 {
            0 => (Policy::default(), false),
            1 => (Policy::read_only(), false),
            2 => (Policy::allow_list((0..=255).filter(|code| code % 5 != 0)), false),
            _ => (Policy::extents(8..64), true),
        };
        let limits = match wide {
            true => Limits::default(),
            false => Limits { ccws: 12, idaws: 24, segments: 3, bytes: 0x8000 },
        };
        let rules = Rules {
            limits,
            class: class(options >> 4),
            policy,
            keys: keys.map(|keys| Arc::new(keys) as _),
            pins_areas: false,
        };
        let refuses = !rules.policy.is_empty();
        Case { orb, script, resumes, rules, keys, wide, refuses, extents }
    }
}

/// An ORB that passes the operand checks of START SUBCHANNEL.
pub fn orb(bytes: [u8; 12]) -> Orb {
    let words: [[u8; 4]; 3] = zerocopy::transmute!(bytes);
    let [intparm, word1, cpa] = words.map(u32::from_be_bytes);
    let words = [intparm, word1 & !REFUSED, cpa & 0x7fff_ffff];
    let orb = Orb::read_from_bytes(words.map(u32::to_be_bytes).as_flattened()).expect("12 bytes");
    assert!(orb.check().is_ok(), "{orb:?}");
    orb
}

/// A device class.
pub fn class(number: u8) -> DeviceClass {
    match number & 7 {
        1 => DeviceClass::Null,
        2 => DeviceClass::Fba,
        3 => DeviceClass::Eckd,
        4 => DeviceClass::Tape,
        _ => DeviceClass::Other,
    }
}

/// Puts the rest of a case into memory: doubleword, length, bytes.
pub fn pieces(input: &mut Input<'_>, guest: &mut Guest) {
    while !input.is_empty() {
        let offset = usize::from(input.u16()) * 8 % GUEST_BYTES;
        let len = input.u8();
        guest.put(guest::address(offset), input.slice(len.into()));
    }
}
