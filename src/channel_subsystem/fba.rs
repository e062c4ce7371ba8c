//! FBA DASD: a 9336-like fixed-block disk on a raw image file.
//!
//! The commands are those that Linux's `dasd_fba` sends, with the rules for order and extents that
//! Hercules' `fbadasd.c` keeps: DEFINE EXTENT once a program, LOCATE within it, then one READ or
//! WRITE for the located blocks. A WRITE with count zero makes the located blocks zeros, which is
//! how Linux discards.

use std::io;
use std::sync::Arc;

use vfio_ccw_metrics::DeviceClass;

use crate::architecture::command;
use crate::volume::{BLOCK, Direction, FileIo};

use super::{
    Data, Device, DeviceState, DeviceStateError, DmaSpace, Ending, Extent, ExtentState, FbaState,
    LocatedState, Sense, SenseId,
};

/// Sense bytes it has.
const SENSE_BYTES: u8 = 24;

/// DEFINE EXTENT mask: what writes are allowed (bits 0-1), diagnostics (bit 5).
mod mask {
    pub(super) const CONTROL: u8 = 0xc0;
    pub(super) const INHIBIT_WRITE: u8 = 0x40;
    pub(super) const RESERVED_CONTROL: u8 = 0x80;
    /// Reserved bits and the customer-engineer field, which this disk has not.
    pub(super) const REFUSED: u8 = 0x3b;
}

/// LOCATE operation codes.
mod operation {
    pub(super) const WRITE: u8 = 0x01;
    pub(super) const WRITE_VERIFY: u8 = 0x05;
    pub(super) const READ: u8 = 0x06;
}

/// A fixed-block disk, control unit 6310, device 9336-10.
#[derive(Debug)]
pub struct Fba {
    io: FileIo,
    blocks: u32,
    read_only: bool,
    extent: Option<DefinedExtent>,
    located: Option<Located>,
    sense: Sense,
    moved: Moved,
}

/// Bytes moved since the count was last taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Moved {
    read: u64,
    written: u64,
}

/// What DEFINE EXTENT set up: logical blocks `first..=last` stand at physical block `at`.
#[derive(Clone, Copy, Debug)]
struct DefinedExtent {
    may_write: bool,
    at: u32,
    first: u32,
    last: u32,
}

/// What LOCATE set up for the next command.
#[derive(Clone, Copy, Debug)]
struct Located {
    direction: Direction,
    offset: u64,
    blocks: u32,
}

impl Fba {
    const IDENTITY: SenseId =
        SenseId { cu_type: 0x6310, cu_model: 0x80, dev_type: 0x9336, dev_model: 0x10 };

    /// A disk over the volume that `io` reaches.
    pub(crate) fn new(io: FileIo, blocks: u32, read_only: bool) -> Self {
        Fba {
            io,
            blocks,
            read_only,
            extent: None,
            located: None,
            sense: Sense::none(SENSE_BYTES),
            moved: Moved::default(),
        }
    }

    /// READ DEVICE CHARACTERISTICS: 32 bytes as Linux's `dasd_fba_characteristics` lays them out.
    fn characteristics(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        // Operation modes: burst, data chaining.
        bytes[0] = 0x30;
        // Features: movable access mechanism.
        bytes[1] = 0x08;
        // Device class and unit type of a 9336.
        (bytes[2], bytes[3]) = (0x21, 0x11);
        bytes[4..6].copy_from_slice(&(BLOCK as u16).to_be_bytes());
        // Blocks per cyclical group and per access position: geometry nobody uses any more.
        bytes[6..10].copy_from_slice(&63u32.to_be_bytes());
        bytes[10..14].copy_from_slice(&315u32.to_be_bytes());
        bytes[14..18].copy_from_slice(&self.blocks.to_be_bytes());
        bytes
    }

    fn reject(&mut self) -> Ending {
        self.check(Sense::COMMAND_REJECT, 0)
    }

    fn check(&mut self, byte0: u8, byte1: u8) -> Ending {
        self.sense = Sense::new(byte0, byte1, SENSE_BYTES);
        Ending::unit_check()
    }

    fn define_extent(&mut self, data: &mut Data<'_>) -> Ending {
        let mut bytes = [0; 16];
        if data.fetch(&mut bytes) < bytes.len() || self.extent.is_some() {
            return self.reject();
        }
        let mask = bytes[0];
        if mask & mask::REFUSED != 0 || mask & mask::CONTROL == mask::RESERVED_CONTROL {
            return self.reject();
        }
        let (at, first, last) = (word(&bytes, 4), word(&bytes, 8), word(&bytes, 12));
        // 64-bit sums: a hostile extent must not wrap around into the volume.
        let inside =
            last >= first && u64::from(at) + u64::from(last - first) < u64::from(self.blocks);
        if !inside {
            return self.reject();
        }
        self.extent = Some(DefinedExtent {
            may_write: mask & mask::CONTROL != mask::INHIBIT_WRITE,
            at,
            first,
            last,
        });
        Ending::done()
    }

    fn locate(&mut self, data: &mut Data<'_>) -> Ending {
        let mut bytes = [0; 8];
        let complete = data.fetch(&mut bytes) == bytes.len();
        let Some(extent) = self.extent.filter(|_| complete && bytes[0] & 0xf0 == 0) else {
            return self.reject();
        };
        let direction = match bytes[0] {
            operation::READ => Direction::Read,
            operation::WRITE | operation::WRITE_VERIFY if !extent.may_write => {
                return self.reject();
            }
            operation::WRITE | operation::WRITE_VERIFY if self.read_only => {
                return self.check(Sense::COMMAND_REJECT, Sense::FILE_PROTECTED);
            }
            operation::WRITE | operation::WRITE_VERIFY => Direction::Write,
            _ => return self.reject(),
        };
        let blocks = u16::from_be_bytes([bytes[2], bytes[3]]).into();
        let block = word(&bytes, 4);
        let inside = blocks > 0
            && block >= extent.first
            && u64::from(block) + u64::from(blocks) - 1 <= u64::from(extent.last);
        if !inside {
            return self.reject();
        }
        let offset = (u64::from(extent.at) + u64::from(block - extent.first)) * BLOCK;
        self.located = Some(Located { direction, offset, blocks });
        Ending::done()
    }

    /// READ or WRITE of the located blocks.
    async fn transfer(&mut self, located: Located, data: &mut Data<'_>) -> Ending {
        let mark = data.mark();
        let start = located.offset;
        match self.move_blocks(located, data).await {
            Ok(end) => {
                match located.direction {
                    Direction::Read => self.moved.read += end - start,
                    Direction::Write => self.moved.written += end - start,
                }
                Ending::done()
            }
            Err(error) => {
                tracing::error!(%error, offset = start, blocks = located.blocks, "volume I/O failed");
                data.go_back(mark);
                self.check(Sense::EQUIPMENT_CHECK, 0)
            }
        }
    }

    /// Moves the located blocks, or as many as the area has room for; returns the offset behind.
    async fn move_blocks(&mut self, located: Located, data: &mut Data<'_>) -> io::Result<u64> {
        let Located { direction, mut offset, blocks } = located;
        let end = offset + u64::from(blocks) * BLOCK;
        let write = direction == Direction::Write;
        loop {
            let spans = self.io.spans()?;
            spans.clear();
            let (mut skipped, mut ended) = (0, false);
            while !spans.is_full() {
                let left = end - offset - spans.bytes() as u64;
                match data.next(left as usize) {
                    Some(Extent::Memory(range)) => spans.push(range),
                    Some(Extent::Skipped(bytes)) => {
                        skipped = bytes as u64;
                        break;
                    }
                    None => {
                        ended = true;
                        break;
                    }
                }
            }
            let moved = spans.bytes() as u64;
            if moved == 0 && skipped == 0 {
                if write && offset == located.offset && data.is_at_end_without_check() {
                    self.io.zero(offset, end - offset).await?;
                    return Ok(end);
                }
                return Ok(offset);
            }
            let ragged = (offset + moved) % BLOCK;
            let padding = if write && ended && ragged != 0 { BLOCK - ragged } else { 0 };
            if padding > 0 {
                // The disk writes whole blocks: a short last one is filled with zeros.
                spans.push_zeros(padding as usize);
            }
            self.io.transfer(direction, offset).await?;
            offset += moved + padding + skipped;
            if ended || offset == end {
                return Ok(offset);
            }
        }
    }
}

impl Device for Fba {
    fn class(&self) -> DeviceClass {
        DeviceClass::Fba
    }

    fn begin(&mut self) {
        self.extent = None;
        self.located = None;
    }

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        // READ and WRITE must follow LOCATE directly.
        let located = self.located.take();
        match code {
            command::NOP => Ending::immediate(),
            command::SENSE => {
                let sense = self.take_sense();
                data.store(sense.as_bytes());
                Ending::done()
            }
            command::SENSE_ID => {
                data.store(&Fba::IDENTITY.to_bytes());
                Ending::done()
            }
            command::READ_DEVICE_CHARACTERISTICS => {
                data.store(&self.characteristics());
                Ending::done()
            }
            command::DEFINE_EXTENT => self.define_extent(data),
            command::FBA_LOCATE => self.locate(data),
            command::FBA_READ | command::FBA_WRITE => {
                let direction =
                    if code == command::FBA_READ { Direction::Read } else { Direction::Write };
                match located.filter(|located| located.direction == direction) {
                    Some(located) => self.transfer(located, data).await,
                    None => self.reject(),
                }
            }
            _ => self.reject(),
        }
    }

    fn see(&mut self, memory: &Arc<DmaSpace>) {
        self.io.see(memory);
    }

    fn save(&self) -> DeviceState {
        let extent = self.extent.map(|DefinedExtent { may_write, at, first, last }| ExtentState {
            may_write,
            at,
            first,
            last,
        });
        let located = self.located.map(|Located { direction, offset, blocks }| LocatedState {
            writes: direction == Direction::Write,
            at: (offset / BLOCK) as u32,
            blocks,
        });
        let sense = (&self.sense).into();
        DeviceState::Fba(FbaState { blocks: self.blocks, sense, extent, located })
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        let DeviceState::Fba(FbaState { blocks, sense, extent, located }) = state else {
            return Err(DeviceStateError::Kind);
        };
        let here = self.blocks;
        if *blocks != here {
            return Err(DeviceStateError::Blocks { saved: *blocks, here });
        }
        // 64-bit sums: a hostile state must not wrap around into the volume either.
        let outside = DeviceStateError::Outside { blocks: here };
        let is_inside = |at: u32, more: u32| u64::from(at) + u64::from(more) < u64::from(here);
        if extent.is_some_and(|extent| {
            extent.last < extent.first || !is_inside(extent.at, extent.last - extent.first)
        }) {
            return Err(outside);
        }
        if located.is_some_and(|located| {
            located.blocks == 0 || !is_inside(located.at, located.blocks - 1)
        }) {
            return Err(outside);
        }
        if self.read_only && located.is_some_and(|located| located.writes) {
            return Err(DeviceStateError::WriteProtected);
        }
        self.sense = sense.try_into()?;
        self.extent = extent.map(|ExtentState { may_write, at, first, last }| DefinedExtent {
            may_write,
            at,
            first,
            last,
        });
        self.located = located.map(|LocatedState { writes, at, blocks }| Located {
            direction: if writes { Direction::Write } else { Direction::Read },
            offset: u64::from(at) * BLOCK,
            blocks,
        });
        Ok(())
    }

    fn take_sense(&mut self) -> Sense {
        std::mem::replace(&mut self.sense, Sense::none(SENSE_BYTES))
    }

    fn take_moved(&mut self) -> (u64, u64) {
        let Moved { read, written } = std::mem::take(&mut self.moved);
        (read, written)
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
