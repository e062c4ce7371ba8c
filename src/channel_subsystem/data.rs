//! The data area of a command: what its CCW designates, directly or through IDAWs, and what data
//! chaining adds to it.

use vfio_ccw_pinning::HostRange;

use crate::architecture::{Ccw, CcwFlags, CommandClass, Idaw1, IdawFormat, SubchannelStatus};

use super::channel::{Channel, Place};
use super::dma::DmaSpace;

/// A piece of a data area.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// Memory to read or write; for a command that reads backward, to fill from its end.
    Memory(HostRange),
    /// This many bytes are read from the device but not stored (SKIP).
    Skipped(usize),
}

impl Extent {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        match self {
            Extent::Memory(range) => range.len(),
            Extent::Skipped(len) => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A place in a data area, to go back to.
#[derive(Clone, Copy, Debug)]
pub struct Mark {
    ccw: Ccw,
    left: u32,
    next_block: u32,
    block: Block,
    following: u32,
}

/// What is left of the block being used: `left` bytes from `address`, upward or downward.
#[derive(Clone, Copy, Debug)]
struct Block {
    address: u64,
    left: u32,
}

/// A command's data area, used up from front to back.
#[derive(Debug)]
pub struct Data<'a> {
    channel: &'a Channel<'a>,
    place: &'a mut Place,
    ccw: Ccw,
    /// Bytes left of the current CCW's count.
    left: u32,
    /// Index of the next IDAW of the current CCW.
    next_block: u32,
    block: Block,
    /// The command that the device is executing.
    command: u8,
    /// Skip flags matter to commands that store.
    stores: bool,
    /// Data goes down from its address.
    backward: bool,
    check: SubchannelStatus,
    wanted_more: bool,
}

/// What the interpreter needs to know after a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// The CCW that was current at the end: the last of a data chain.
    pub(super) ccw: Ccw,
    /// Its residual count.
    pub(super) residual: u16,
    /// Program or other check met on the way.
    pub(super) check: SubchannelStatus,
    /// The device would have gone on.
    pub(super) wanted_more: bool,
}

impl<'a> Data<'a> {
    #[inline(always)]
    pub(super) fn new(channel: &'a Channel<'a>, place: &'a mut Place, ccw: Ccw) -> Self {
        Data {
            channel,
            place,
            ccw,
            left: u32::from(ccw.count),
            next_block: 0,
            block: Block { address: 0, left: 0 },
            command: ccw.command,
            stores: ccw.class().stores(),
            backward: ccw.class() == CommandClass::ReadBackward,
            check: SubchannelStatus::empty(),
            wanted_more: false,
        }
    }

    /// The command is over: what it used.
    #[inline(always)]
    pub(super) fn finish(self) -> Used {
        Used {
            ccw: self.ccw,
            residual: self.left as u16,
            check: self.check,
            wanted_more: self.wanted_more,
        }
    }

    /// Takes the next piece, at most `most` bytes. `None` at the end of the area or where a program
    /// error ends it; the channel knows which, the device just stops.
    pub fn next(&mut self, most: usize) -> Option<Extent> {
        if most == 0 || !self.check.is_empty() {
            return None;
        }
        while self.left == 0 {
            if !self.chain_data() {
                self.wanted_more |= self.check.is_empty();
                return None;
            }
        }
        let most = most.min(self.left as usize);
        if self.stores && self.ccw.flags.contains(CcwFlags::SKIP) {
            self.left -= most as u32;
            return Some(Extent::Skipped(most));
        }
        if self.block.left == 0 && !self.open_block() {
            return None;
        }
        let address = self.block.address;
        let most = most.min(self.block.left as usize);
        let most = self.channel.reach(address, most, self.backward);
        let range = match self.memory(address, most) {
            Ok(range) => range,
            Err(check) => {
                self.check = check;
                return None;
            }
        };
        let taken = range.len() as u32;
        let behind = match self.backward {
            false => address + u64::from(taken),
            // Below address 0 there is nothing left of the block.
            true => address.wrapping_sub(taken.into()),
        };
        self.block = Block { address: behind, left: self.block.left - taken };
        self.left -= taken;
        Some(Extent::Memory(range))
    }

    /// The memory from `address` on, at most `most` bytes.
    #[inline(always)]
    fn memory(&self, address: u64, most: usize) -> Result<HostRange, SubchannelStatus> {
        let iova = self.channel.iova(address).ok_or(SubchannelStatus::PROGRAM_CHECK)?;
        let range = match self.backward {
            false => self.channel.dma.bytes_from(iova, most),
            true => self.channel.dma.bytes_up_to(iova, most),
        };
        let range = range.ok_or_else(|| DmaSpace::fault(iova))?;
        if self.channel.is_protected(address, self.stores) {
            return Err(SubchannelStatus::PROTECTION_CHECK);
        }
        Ok(range)
    }

    /// Device to memory: stores `bytes`, or as many as there is room for. Returns how many.
    pub fn store(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(extent) = self.next(bytes.len() - done) {
            if let Extent::Memory(range) = extent {
                let piece = &bytes[done..done + range.len()];
                if self.backward {
                    for (from_end, byte) in piece.iter().enumerate() {
                        range.write(range.len() - 1 - from_end, &[*byte]);
                    }
                } else {
                    range.write(0, piece);
                }
            }
            done += extent.len();
        }
        done
    }

    /// Memory to device: fills `bytes`, or as much as there is. Returns how many.
    pub fn fetch(&mut self, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while let Some(extent) = self.next(bytes.len() - done) {
            if let Extent::Memory(range) = extent {
                range.read(0, &mut bytes[done..done + range.len()]);
            }
            done += extent.len();
        }
        done
    }

    /// Whether the area has come to its end in the channel's eyes: count zero, no data chaining, or
    /// an error.
    pub fn is_at_end(&self) -> bool {
        !self.check.is_empty() || self.left == 0 && !self.ccw.flags.contains(CcwFlags::CHAIN_DATA)
    }

    /// Whether it has come to its end by count alone, not by an error.
    pub fn is_at_end_without_check(&self) -> bool {
        self.check.is_empty() && self.is_at_end()
    }

    /// Resolves when the program is to end before its end (HALT, CLEAR, detachment). A device that waits
    /// for something that may never come, such as a person, waits for this, too, and then ends its
    /// command in any way; it has nothing under way that could still move data.
    pub async fn stopped(&self) {
        match self.channel.stop {
            Some(stop) => stop.stopped().await,
            None => std::future::pending().await,
        }
    }

    /// This place in the area.
    pub fn mark(&self) -> Mark {
        Mark {
            ccw: self.ccw,
            left: self.left,
            next_block: self.next_block,
            block: self.block,
            following: self.place.next,
        }
    }

    /// Goes back to a place: what was taken since was not used after all.
    pub fn go_back(&mut self, mark: Mark) {
        self.ccw = mark.ccw;
        self.left = mark.left;
        self.next_block = mark.next_block;
        self.block = mark.block;
        self.place.next = mark.following;
        self.wanted_more = false;
        if mark.ccw.flags.contains(CcwFlags::MODIFIED_INDIRECT) {
            // A list that is no more what it was has no pieces: a program check, if it is used again.
            self.channel.load_pieces(self.place, &mark.ccw);
        }
    }

    /// Makes the next CCW of a data chain current.
    fn chain_data(&mut self) -> bool {
        if !self.ccw.flags.contains(CcwFlags::CHAIN_DATA) {
            return false;
        }
        let ccw = match self.channel.fetch_data_chained(self.place, self.command) {
            Ok(ccw) => ccw,
            Err(check) => {
                self.check = check.status;
                self.left = check.count.into();
                return false;
            }
        };
        self.ccw = ccw;
        self.left = u32::from(ccw.count);
        self.next_block = 0;
        self.block = Block { address: 0, left: 0 };
        true
    }

    /// Finds the next block of the current CCW.
    fn open_block(&mut self) -> bool {
        let opened = if self.ccw.flags.contains(CcwFlags::MODIFIED_INDIRECT) {
            self.modified_indirect_block()
        } else if self.ccw.flags.contains(CcwFlags::INDIRECT) {
            self.indirect_block()
        } else {
            self.direct_block().ok_or(SubchannelStatus::PROGRAM_CHECK)
        };
        match opened {
            Ok(block) => {
                self.next_block += 1;
                self.block = block;
                true
            }
            Err(check) => {
                self.check = check;
                false
            }
        }
    }

    /// A direct area is one block; it may not pass the end of 24- or 31-bit addresses, nor go below
    /// address 0.
    fn direct_block(&self) -> Option<Block> {
        let limit = self.channel.address_limit();
        let start = u64::from(self.ccw.address);
        let done = u64::from(self.ccw.count) - u64::from(self.left);
        let (address, room) = if self.backward {
            let address = start.checked_sub(done)?;
            (address, if address < limit { address + 1 } else { 0 })
        } else {
            (start + done, limit.checked_sub(start + done)?)
        };
        let left = self.left.min(room.try_into().unwrap_or(u32::MAX));
        (left > 0).then_some(Block { address, left })
    }

    fn indirect_block(&self) -> Result<Block, SubchannelStatus> {
        const PROGRAM_CHECK: SubchannelStatus = SubchannelStatus::PROGRAM_CHECK;
        let format = self.channel.idaws;
        let (block, size) = (u64::from(format.block()), u64::from(format.size()));
        let list = u64::from(self.ccw.address);
        if !list.is_multiple_of(size) || list >= self.channel.address_limit() {
            return Err(PROGRAM_CHECK);
        }
        let at = list + u64::from(self.next_block) * size;
        let address = match format {
            IdawFormat::Format1 => {
                Idaw1(self.channel.word(at)?.into()).address().ok_or(PROGRAM_CHECK)?
            }
            _ => u64::from_be_bytes(self.channel.doubleword(at)?),
        };
        let offset = address % block;
        let (at_edge, left) = match self.backward {
            false => (offset == 0, block - offset),
            true => (offset == block - 1, offset + 1),
        };
        if self.next_block > 0 && !at_edge {
            return Err(PROGRAM_CHECK);
        }
        Ok(Block { address, left: left as u32 })
    }

    fn modified_indirect_block(&self) -> Result<Block, SubchannelStatus> {
        let piece = self.place.pieces.get(self.next_block as usize);
        let (start, end) = *piece.ok_or(SubchannelStatus::PROGRAM_CHECK)?;
        Ok(Block { address: start, left: (end - start) as u32 })
    }
}
