//! Shapes of channel programs that need no disk: they stand in guest memory once, and run over and over.
//!
//! | word | program | bytes moved |
//! |---|---|---|
//! | `plain` | one WRITE of a page, by its address | 4,096 |
//! | `idal` | one WRITE of 64 pages: eight data-chained CCWs, each with an IDAL of eight words | 262,144 |
//! | `chain` | 200 command-chained WRITEs of 64 bytes | 12,800 |
//! | `search` | SEARCH ID EQUAL and a TIC back to it; the third turn finds, and a READ of a page follows | 4,096 |
//! | `sense` | SENSE ID: any device knows it, so it is what a kernel's device is given | 7 |

use std::str::FromStr;

use vfio_ccw::DeviceSpec;
use vfio_ccw::architecture::{Ccw, CcwFlags, DeviceStatus, Orb, command};
use vfio_ccw::channel_subsystem::{Data, Device, Ending, Sense};
use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_pinning::{FRAME, GuestMap};

/// What programs of a job look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One WRITE of a page.
    Plain,
    /// 64 pages through IDALs.
    Idal,
    /// 200 CCWs.
    Chain,
    /// A loop of SEARCH and TIC.
    Search,
    /// SENSE ID.
    Sense,
}

/// No shape of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "there is no program '{0}': use plain, idal, chain, search or sense, or disk for transfers of a disk"
)]
pub struct UnknownShape(String);

/// A write and a read, as any device may have them.
const WRITE: u8 = 0x01;
const READ: u8 = 0x06;
const SEARCH_ID_EQUAL: u8 = 0x31;

/// Pages of `idal`, and those that one of its CCWs has: a count of 16 bits reaches no further than 15.
const PAGES: u64 = 64;
const PAGES_OF_A_CCW: u64 = 8;

/// CCWs of `chain`, and bytes that each writes.
const LINKS: u64 = 200;
const LINK: u16 = 64;

/// Turns of `search`.
const TURNS: u32 = 3;

/// Guest address of the first program, and from one program to the next.
const PROGRAMS: u64 = 0x1_0000;
const PROGRAM: u64 = FRAME;

/// Where in its page a program's IDALs stand.
const IDALS: u64 = 0xc00;

impl Shape {
    /// All, in the order in which texts list them.
    pub const ALL: [Shape; 5] =
        [Shape::Plain, Shape::Idal, Shape::Chain, Shape::Search, Shape::Sense];

    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Shape::Plain => "plain",
            Shape::Idal => "idal",
            Shape::Chain => "chain",
            Shape::Search => "search",
            Shape::Sense => "sense",
        }
    }

    /// Bytes that a program moves.
    pub fn bytes(self) -> u32 {
        match self {
            Shape::Plain | Shape::Search => FRAME as u32,
            Shape::Idal => (PAGES * FRAME) as u32,
            Shape::Chain => LINKS as u32 * u32::from(LINK),
            Shape::Sense => 7,
        }
    }

    /// Guest memory of one slot's data.
    fn room(self) -> u64 {
        u64::from(self.bytes()).next_multiple_of(FRAME)
    }

    /// Guest memory that `slots` slots take.
    pub fn memory(self, slots: usize) -> u64 {
        PROGRAMS + slots as u64 * (PROGRAM + self.room())
    }

    /// The device that the program is for, where the software channel subsystem runs it.
    pub fn device(self) -> DeviceSpec {
        match self {
            Shape::Search => DeviceSpec::model(DeviceClass::Null, Searched::default),
            _ => DeviceSpec::Null,
        }
    }

    /// Writes the program of `slot` of `slots`; the ORB starts it. None where memory ends before it does.
    pub fn write(self, memory: &GuestMap, slot: usize, slots: usize) -> Option<Orb> {
        let (slot, slots) = (slot as u64, slots as u64);
        let page = PROGRAMS + slot * PROGRAM;
        // Programs begin anywhere in the first half of their page: at its start they would all compete for one set
        // of each cache.
        let start = page + slot * 64 % 0x400;
        let data = PROGRAMS + slots * PROGRAM + slot * self.room();
        let (start, data) = (u32::try_from(start).ok()?, u32::try_from(data).ok()?);
        let cc = CcwFlags::CHAIN_COMMAND;
        let mut ccws = Vec::new();
        match self {
            Shape::Plain => ccws.push(Ccw::new(WRITE, data, FRAME as u16)),
            Shape::Idal => {
                let ccw_count = PAGES / PAGES_OF_A_CCW;
                for index in 0..ccw_count {
                    let list = page + IDALS + index * PAGES_OF_A_CCW * 8;
                    for word in 0..PAGES_OF_A_CCW {
                        let address = u64::from(data) + (index * PAGES_OF_A_CCW + word) * FRAME;
                        if !memory.write(list + word * 8, &address.to_be_bytes()) {
                            return None;
                        }
                    }
                    let bytes = (PAGES_OF_A_CCW * FRAME) as u16;
                    let ccw = Ccw::new(WRITE, list as u32, bytes).with(CcwFlags::INDIRECT);
                    let is_last = index + 1 == ccw_count;
                    ccws.push(if is_last { ccw } else { ccw.with(CcwFlags::CHAIN_DATA) });
                }
            }
            Shape::Chain => {
                for link in 0..LINKS as u32 {
                    let ccw = Ccw::new(WRITE, data + link * u32::from(LINK), LINK);
                    ccws.push(if link + 1 == LINKS as u32 { ccw } else { ccw.with(cc) });
                }
            }
            Shape::Search => {
                ccws.push(Ccw::new(SEARCH_ID_EQUAL, data, 5).with(cc));
                ccws.push(Ccw::new(command::TIC, start, 0));
                ccws.push(Ccw::new(READ, data, FRAME as u16));
            }
            Shape::Sense => {
                ccws.push(Ccw::new(command::SENSE_ID, data, 7).with(CcwFlags::SUPPRESS_LENGTH));
            }
        }
        let mut at = u64::from(start);
        for ccw in ccws {
            if !memory.write(at, &ccw.to_format_1()) {
                return None;
            }
            at += 8;
        }
        // The end of the data is there, too.
        let end = u64::from(data) + self.room() - 1;
        memory.write(end, &[0]).then(|| Orb::new(start))
    }
}

impl FromStr for Shape {
    type Err = UnknownShape;

    fn from_str(word: &str) -> Result<Self, UnknownShape> {
        let shape = Shape::ALL.into_iter().find(|shape| shape.name() == word);
        shape.ok_or_else(|| UnknownShape(word.chars().take(64).collect()))
    }
}

/// A device whose third SEARCH finds what it looks for; reads give zeros.
#[derive(Debug, Default)]
struct Searched {
    turns: u32,
}

impl Device for Searched {
    fn class(&self) -> DeviceClass {
        DeviceClass::Null
    }

    fn begin(&mut self) {
        self.turns = 0;
    }

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        let done = Ending::done();
        match code {
            SEARCH_ID_EQUAL => {
                data.fetch(&mut [0; 5]);
                self.turns += 1;
                if self.turns == TURNS {
                    return Ending { status: done.status | DeviceStatus::STATUS_MODIFIER, ..done };
                }
            }
            READ => {
                data.store(&[0; FRAME as usize]);
            }
            _ => return Ending::unit_check(),
        }
        done
    }

    fn take_sense(&mut self) -> Sense {
        Sense::new(Sense::COMMAND_REJECT, 0, 24)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_shapes() {
        for shape in Shape::ALL {
            assert_eq!(shape.name().parse(), Ok(shape));
        }
        assert!("disc".parse::<Shape>().unwrap_err().to_string().contains("search or sense"));
    }
}
