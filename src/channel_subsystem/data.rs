//! The data area of a command: what its CCW designates, directly or through IDAWs, and what data
//! chaining adds to it.

use vfio_ccw_pinning::HostRange;

use crate::architecture::{Ccw, CcwFlags, Idaw1, IdawFormat, SubchannelStatus};

use super::interpreter::Channel;

/// A piece of a data area.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// Memory to read or write.
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

/// What is left of the block being used.
#[derive(Clone, Copy, Debug)]
struct Block {
    iova: u64,
    left: u32,
}

/// A command's data area, used up from front to back.
#[derive(Debug)]
pub struct Data<'a> {
    channel: Channel<'a>,
    ccw: Ccw,
    /// Bytes left of the current CCW's count.
    left: u32,
    /// Index of the next IDAW of the current CCW.
    next_block: u32,
    block: Block,
    /// Skip flags matter to commands that store.
    stores: bool,
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
    pub(super) fn new(channel: Channel<'a>, ccw: Ccw) -> Self {
        Data {
            channel,
            ccw,
            left: u32::from(ccw.count),
            next_block: 0,
            block: Block { iova: 0, left: 0 },
            stores: ccw.class().stores(),
            check: SubchannelStatus::empty(),
            wanted_more: false,
        }
    }

    /// The command is over: the channel, where it now stands, and what the command used.
    pub(super) fn finish(self) -> (Channel<'a>, Used) {
        let used = Used {
            ccw: self.ccw,
            residual: self.left as u16,
            check: self.check,
            wanted_more: self.wanted_more,
        };
        (self.channel, used)
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
        let most = most.min(self.block.left as usize);
        let Some(range) = self.channel.dma.bytes_from(self.block.iova, most) else {
            self.check = SubchannelStatus::PROGRAM_CHECK;
            return None;
        };
        let taken = range.len() as u32;
        self.block =
            Block { iova: self.block.iova + u64::from(taken), left: self.block.left - taken };
        self.left -= taken;
        Some(Extent::Memory(range))
    }

    /// Device to memory: stores `bytes`, or as many as there is room for. Returns how many.
    pub fn store(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(extent) = self.next(bytes.len() - done) {
            if let Extent::Memory(range) = extent {
                range.write(0, &bytes[done..done + range.len()]);
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

    /// This place in the area.
    pub fn mark(&self) -> Mark {
        Mark {
            ccw: self.ccw,
            left: self.left,
            next_block: self.next_block,
            block: self.block,
            following: self.channel.next,
        }
    }

    /// Goes back to a place: what was taken since was not used after all.
    pub fn go_back(&mut self, mark: Mark) {
        self.ccw = mark.ccw;
        self.left = mark.left;
        self.next_block = mark.next_block;
        self.block = mark.block;
        self.channel.next = mark.following;
        self.wanted_more = false;
    }

    /// Makes the next CCW of a data chain current.
    fn chain_data(&mut self) -> bool {
        if !self.ccw.flags.contains(CcwFlags::CHAIN_DATA) {
            return false;
        }
        let Some(ccw) = self.channel.fetch_data_chained() else {
            self.check = SubchannelStatus::PROGRAM_CHECK;
            return false;
        };
        self.ccw = ccw;
        self.left = u32::from(ccw.count);
        self.next_block = 0;
        self.block = Block { iova: 0, left: 0 };
        true
    }

    /// Finds the next block of the current CCW.
    fn open_block(&mut self) -> bool {
        let opened = if self.ccw.flags.contains(CcwFlags::INDIRECT) {
            self.indirect_block()
        } else {
            self.direct_block()
        };
        match opened {
            Some(block) => {
                self.next_block += 1;
                self.block = block;
                true
            }
            None => {
                self.check = SubchannelStatus::PROGRAM_CHECK;
                false
            }
        }
    }

    /// A direct area is one block; it may not pass the end of 24- or 31-bit addresses.
    fn direct_block(&self) -> Option<Block> {
        let iova = u64::from(self.ccw.address) + u64::from(self.ccw.count) - u64::from(self.left);
        let left = self
            .left
            .min(self.channel.address_limit().checked_sub(iova)?.try_into().unwrap_or(u32::MAX));
        (left > 0).then_some(Block { iova, left })
    }

    fn indirect_block(&self) -> Option<Block> {
        let format = self.channel.idaws;
        let list = u64::from(self.ccw.address);
        if !list.is_multiple_of(u64::from(format.size())) || list >= self.channel.address_limit() {
            return None;
        }
        let at = list + u64::from(self.next_block) * u64::from(format.size());
        let iova = match format {
            IdawFormat::Format1 => Idaw1(self.channel.dma.load_word(at)?.into()).address()?,
            _ => u64::from_be_bytes(self.channel.dma.load_doubleword(at)?),
        };
        let offset = (iova % u64::from(format.block())) as u32;
        if self.next_block > 0 && offset != 0 {
            return None;
        }
        Some(Block { iova, left: format.block() - offset })
    }
}
