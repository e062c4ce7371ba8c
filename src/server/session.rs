//! What a client asks, and what it is answered. No I/O is done here.
//!
//! The answers are those of the kernel's driver, as [`VfioDevice`](crate::backend::VfioDevice) gives them; what a message has that a system call
//! has not is checked here, by the text of QEMU's `docs/interop/vfio-user.rst`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;

use zerocopy::IntoBytes;

use crate::backend::{
    DeviceInfo as VfioInfo, Errno, IrqData, IrqInfo, IrqSet, IrqSetFlags, RegionIndex, RegionInfo,
};
use crate::channel_subsystem::WindowAccess;
use crate::vfio_user::{
    Access, Capabilities, Command, DeviceInfo, DmaMap, DmaUnmap, FrameError, Header, IrqSetHead,
    LaneOffer, Message, Outbox, Version, VersionError,
};

use super::memory::Mapped;
use super::seat::Seat;
use super::tally;

/// Windows are made of these.
const PAGE: u64 = 4096;

/// Bytes of data in one message, as agreed upon.
const MOST_DATA: u32 = 1 << 20;

/// Why a client is sent away.
#[derive(Debug, thiserror::Error)]
pub(super) enum Goodbye {
    #[error("the first message is command {command}, and not the version")]
    NoVersion { command: u16 },
    #[error(transparent)]
    Version(#[from] VersionError),
    #[error("it replies to message {id}, and nothing was asked")]
    Reply { id: u16 },
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// What can be answered only when no program is in flight any more.
#[derive(Debug)]
pub(super) enum Later {
    Reset(Header),
    Unmap(Header, DmaUnmap),
}

/// How an answer ends that has been made.
type Answered = Result<Option<Later>, Errno>;

/// A range of addresses that the client has mapped.
#[derive(Debug)]
struct Range {
    len: u64,
    /// The memory there; none where the client has sent no descriptor.
    memory: Option<Arc<Mapped>>,
}

/// One client.
#[derive(Debug)]
pub(super) struct Session {
    seat: Rc<Seat>,
    agreed: Option<Capabilities>,
    ranges: BTreeMap<u64, Range>,
}

impl Session {
    pub(super) fn new(seat: Rc<Seat>) -> Self {
        Session { seat, agreed: None, ranges: BTreeMap::new() }
    }

    /// What a server can.
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            max_msg_fds: Some(1),
            max_data_xfer_size: Some(MOST_DATA.into()),
            max_dma_maps: Some(self.seat.house.most_windows as u64),
            pgsizes: Some(PAGE),
            lane: Some(crate::vfio_user::lane::VERSION),
            lane_server: Some(self.seat.house.number),
        }
    }

    /// Answers a message, into `out`. Where that has to wait until no program is in flight, says so: then
    /// [`Session::answer_later`] answers.
    ///
    /// # Errors
    ///
    /// [`Goodbye`]: nothing more can be said to this client.
    pub(super) fn answer(
        &mut self,
        message: Message<'_>,
        out: &mut Outbox,
    ) -> Result<Option<Later>, Goodbye> {
        let header = message.header;
        if !header.is_command() {
            return Err(Goodbye::Reply { id: header.id });
        }
        let command = Command::of(header.command);
        if let Some(tally) = &self.seat.house.tally {
            tally::add(&tally.standing.messages, 1);
        }
        if self.agreed.is_none() {
            return match command {
                Some(Command::Version) => self.agree(&message, out).map(|()| None),
                _ => Err(Goodbye::NoVersion { command: header.command }),
            };
        }
        let answered = self.carry_out(command, message, out);
        Ok(answered.unwrap_or_else(|errno| {
            self.refuse(&header, errno, out);
            None
        }))
    }

    fn carry_out(
        &mut self,
        command: Option<Command>,
        message: Message<'_>,
        out: &mut Outbox,
    ) -> Answered {
        let Some(command) = command else { return Err(Errno::NOT_SUPPORTED) };
        let takes_file =
            matches!(command, Command::DmaMap | Command::DeviceSetIrqs | Command::CcwLane);
        if message.has_lost_files || message.files.len() > usize::from(takes_file) {
            return Err(Errno::INVALID);
        }
        match command {
            // Once is enough.
            Command::Version => Err(Errno::INVALID),
            Command::DmaMap => self.map(message, out),
            Command::DmaUnmap => self.unmap(&message, out),
            Command::DeviceGetInfo => self.device_info(&message, out),
            Command::DeviceGetRegionInfo => self.region_info(&message, out),
            Command::DeviceGetIrqInfo => self.irq_info(&message, out),
            Command::DeviceSetIrqs => self.set_irqs(message, out),
            Command::RegionRead => self.read(&message, out),
            Command::RegionWrite => self.write(&message, out),
            Command::DeviceReset => self.reset(&message),
            Command::CcwLane => self.join_lane(message, out),
            // As the kernel says of a feature that a device has not.
            Command::DeviceFeature => Err(Errno(libc::ENOTTY)),
            Command::DeviceGetRegionIoFds
            | Command::RegionWriteMulti
            | Command::MigDataRead
            | Command::MigDataWrite
            | Command::DmaRead
            | Command::DmaWrite => Err(Errno::NOT_SUPPORTED),
        }
    }

    fn refuse(&self, header: &Header, errno: Errno, out: &mut Outbox) {
        tracing::debug!(device = %self.seat.name, command = header.command, %errno, "refused");
        if let Some(tally) = &self.seat.house.tally {
            tally::add(&tally.standing.refusals, 1);
        }
        if header.wants_reply() {
            out.push(header.refusal(errno.0.unsigned_abs()).as_bytes(), &[], None);
        }
    }

    /// The first message.
    fn agree(&mut self, message: &Message<'_>, out: &mut Outbox) -> Result<(), Goodbye> {
        let (theirs, asked) = Capabilities::read(message.payload)?;
        let version = Version { minor: theirs.minor.min(Version::OURS.minor), ..Version::OURS };
        let agreed = self.capabilities().subset_for(&asked);
        reply(&message.header, &[&agreed.to_payload(version)], None, out);
        tracing::debug!(device = %self.seat.name, ?version, ?agreed, "agreed");
        self.agreed = Some(agreed);
        Ok(())
    }

    fn map(&mut self, message: Message<'_>, out: &mut Outbox) -> Answered {
        let map: DmaMap = message.whole().ok_or(Errno::INVALID)?;
        let access = WindowAccess::from_bits(map.flags).ok_or(Errno::INVALID)?;
        let bits = map.address | map.size | map.offset;
        let size_of_map = size_of::<DmaMap>() as u32;
        if access.is_empty() || !bits.is_multiple_of(PAGE) || map.argsz < size_of_map {
            return Err(Errno::INVALID);
        }
        let last = (map.size.checked_sub(1))
            .and_then(|more| map.address.checked_add(more))
            .ok_or(Errno::INVALID)?;
        let below = self.ranges.range(..=last).next_back();
        if below.is_some_and(|(address, range)| address + (range.len - 1) >= map.address) {
            return Err(Errno::EXISTS);
        }
        if self.ranges.len() >= self.seat.house.most_windows {
            return Err(Errno::NO_SPACE);
        }
        // Without a descriptor the range is known and taken, but its memory is out of reach: programs that name
        // it meet nothing there. (DMA_READ and DMA_WRITE would be another way, which is not gone here.)
        let memory = match message.files.first() {
            Some(file) => Some(Arc::new(Mapped::new(file, map.offset, map.size, access)?)),
            None => None,
        };
        if let Some(memory) = &memory {
            let window = memory.window(map.address, access);
            self.seat.device.borrow_mut().map_dma(window)?;
        }
        if let Some(tally) = &self.seat.house.tally {
            tally::add(&tally.standing.windows, 1);
            tally::add(&tally.standing.window_bytes, map.size);
        }
        self.ranges.insert(map.address, Range { len: map.size, memory });
        reply(&message.header, &[], None, out);
        Ok(None)
    }

    fn unmap(&mut self, message: &Message<'_>, out: &mut Outbox) -> Answered {
        let unmap: DmaUnmap = message.whole().ok_or(Errno::INVALID)?;
        if unmap.argsz < size_of::<DmaUnmap>() as u32 || unmap.flags != 0 {
            return Err(Errno::INVALID);
        }
        match self.ranges.get(&unmap.address) {
            Some(range) if range.len == unmap.size => {}
            _ => return Err(Errno(libc::ENOENT)),
        }
        let mut device = self.seat.device.borrow_mut();
        // One in flight may touch any memory at any time; one that is suspended is over like it.
        device.vanish();
        if device.is_pending() {
            return Ok(Some(Later::Unmap(message.header, unmap)));
        }
        drop(device);
        self.finish_unmap(&message.header, &unmap, out);
        Ok(None)
    }

    fn finish_unmap(&mut self, header: &Header, unmap: &DmaUnmap, out: &mut Outbox) {
        if let Some(range) = self.ranges.remove(&unmap.address) {
            self.forget(&range);
            if range.memory.is_some() {
                let unmapped = self.seat.device.borrow_mut().unmap_idle(unmap.address, unmap.size);
                debug_assert_eq!(unmapped, Ok(unmap.size), "it was mapped like that");
            }
        }
        let argsz = size_of::<DmaUnmap>() as u32;
        reply(header, &[DmaUnmap { argsz, ..*unmap }.as_bytes()], None, out);
    }

    fn forget(&self, range: &Range) {
        if let Some(memory) = &range.memory
            && memory.is_broken()
        {
            tracing::warn!(device = %self.seat.name, "a client's memory file has become shorter while it was mapped");
        }
        if let Some(tally) = &self.seat.house.tally {
            tally::take(&tally.standing.windows, 1);
            tally::take(&tally.standing.window_bytes, range.len);
        }
    }

    fn device_info(&self, message: &Message<'_>, out: &mut Outbox) -> Answered {
        let asked: DeviceInfo = message.whole().ok_or(Errno::INVALID)?;
        let argsz = size_of::<DeviceInfo>() as u32;
        if asked.argsz < argsz {
            return Err(Errno::INVALID);
        }
        let VfioInfo { flags, num_regions, num_irqs, .. } = self.seat.device.borrow().info();
        let info = DeviceInfo {
            argsz,
            flags: flags.get(),
            num_regions: num_regions.get(),
            num_irqs: num_irqs.get(),
        };
        reply(&message.header, &[info.as_bytes()], None, out);
        Ok(None)
    }

    fn region_info(&self, message: &Message<'_>, out: &mut Outbox) -> Answered {
        /// Of `struct vfio_region_info` without capabilities.
        const PLAIN: usize = 32;
        let ([argsz, _flags, index], _) = message.head::<[u32; 3]>().ok_or(Errno::INVALID)?;
        if message.payload.len() < PLAIN {
            return Err(Errno::INVALID);
        }
        let mut info = self.seat.device.borrow().region_info(index, argsz)?;
        // What the whole reply takes, whatever was asked for.
        let has_more = info.flags.get() & RegionInfo::CAPS != 0;
        let whole = if has_more { size_of::<RegionInfo>() } else { PLAIN };
        info.argsz.set(whole as u32);
        let shown = if info.cap_offset.get() == 0 { PLAIN } else { size_of::<RegionInfo>() };
        reply(&message.header, &[&info.as_bytes()[..shown]], None, out);
        Ok(None)
    }

    fn irq_info(&self, message: &Message<'_>, out: &mut Outbox) -> Answered {
        let [argsz, _flags, index, _count]: [u32; 4] = message.whole().ok_or(Errno::INVALID)?;
        if argsz < size_of::<IrqInfo>() as u32 {
            return Err(Errno::INVALID);
        }
        let info = self.seat.device.borrow().irq_info(index)?;
        reply(&message.header, &[info.as_bytes()], None, out);
        Ok(None)
    }

    fn set_irqs(&self, mut message: Message<'_>, out: &mut Outbox) -> Answered {
        let file: Option<OwnedFd> = message.files.pop();
        let (head, data) = message.head::<IrqSetHead>().ok_or(Errno::INVALID)?;
        if (head.argsz as usize) < message.payload.len() {
            return Err(Errno::INVALID);
        }
        let flags = IrqSetFlags::from_bits(head.flags).ok_or(Errno::INVALID)?;
        let kinds = IrqSetFlags::DATA_NONE | IrqSetFlags::DATA_BOOL | IrqSetFlags::DATA_EVENTFD;
        // Of either set there is one. (The driver does not look at other actions beside this one.)
        if (flags & kinds).iter().count() != 1 || flags - kinds != IrqSetFlags::ACTION_TRIGGER {
            return Err(Errno::INVALID);
        }
        let IrqSetHead { index, start, count, .. } = head;
        let set = IrqSet { flags: head.flags, index, start, count };
        let (has_file, is_without) = (file.is_some(), data.is_empty());
        let data = if flags.contains(IrqSetFlags::DATA_EVENTFD) {
            // No descriptor: the interrupt goes nowhere from now on.
            if has_file && count != 1 || !is_without {
                return Err(Errno::INVALID);
            }
            IrqData::EventFd(file)
        } else if has_file {
            return Err(Errno::INVALID);
        } else if flags.contains(IrqSetFlags::DATA_BOOL) {
            match data {
                [byte] if count == 1 => IrqData::Bool(*byte),
                _ => return Err(Errno::INVALID),
            }
        } else if !is_without {
            return Err(Errno::INVALID);
        } else if count == 0 && start == 0 {
            // "Disables all interrupts of the index."
            let flags = (IrqSetFlags::DATA_EVENTFD | IrqSetFlags::ACTION_TRIGGER).bits();
            let none = IrqSet { flags, index, start: 0, count: 1 };
            self.seat.device.borrow_mut().set_irqs(&none, IrqData::EventFd(None))?;
            reply(&message.header, &[], None, out);
            return Ok(None);
        } else {
            IrqData::None
        };
        self.seat.device.borrow_mut().set_irqs(&set, data)?;
        reply(&message.header, &[], None, out);
        Ok(None)
    }

    /// Where in the device's file an access begins, and how long it is.
    fn place(access: &Access) -> Result<u64, Errno> {
        let region = RegionIndex::new(access.region)?;
        let end = access.offset.checked_add(access.count.into()).ok_or(Errno::INVALID)?;
        if end > region.size() as u64 || access.count > MOST_DATA {
            return Err(Errno::INVALID);
        }
        Ok((u64::from(access.region) << RegionIndex::SHIFT) + access.offset)
    }

    fn read(&self, message: &Message<'_>, out: &mut Outbox) -> Answered {
        let access: Access = message.whole().ok_or(Errno::INVALID)?;
        let place = Session::place(&access)?;
        // No region is longer than this.
        let mut bytes = [0; RegionIndex::Io.size()];
        let bytes = &mut bytes[..access.count as usize];
        self.seat.device.borrow_mut().read(place, bytes)?;
        reply(&message.header, &[access.as_bytes(), bytes], None, out);
        Ok(None)
    }

    fn write(&self, message: &Message<'_>, out: &mut Outbox) -> Answered {
        let (access, data) = message.head::<Access>().ok_or(Errno::INVALID)?;
        if data.len() != access.count as usize {
            return Err(Errno::INVALID);
        }
        let place = Session::place(&access)?;
        if self.seat.is_held_up() {
            // Each program, HALT and CLEAR would add one.
            return Err(Errno::BUSY);
        }
        let mut device = self.seat.device.borrow_mut();
        let was_pending = device.is_pending();
        if self.seat.house.draining.get() && access.region == RegionIndex::Io as u32 {
            return Err(Errno::NO_DEVICE);
        }
        let written = device.write(place, data)?;
        if !was_pending && device.is_pending() {
            self.seat.note_start();
        }
        let count = u32::try_from(written).unwrap_or(access.count);
        reply(&message.header, &[Access { count, ..access }.as_bytes()], None, out);
        Ok(None)
    }

    fn reset(&self, message: &Message<'_>) -> Answered {
        if !message.payload.is_empty() {
            return Err(Errno::INVALID);
        }
        self.seat.device.borrow_mut().vanish();
        Ok(Some(Later::Reset(message.header)))
    }

    fn join_lane(&self, mut message: Message<'_>, out: &mut Outbox) -> Answered {
        if self.agreed.is_none_or(|agreed| agreed.lane.is_none()) {
            return Err(Errno::NOT_SUPPORTED);
        }
        let offer: LaneOffer = message.whole().ok_or(Errno::INVALID)?;
        let file = message.files.pop().ok_or(Errno::INVALID)?;
        if offer.argsz as usize != size_of::<LaneOffer>() {
            return Err(Errno::INVALID);
        }
        let kick = self.seat.house.lanes.join(&self.seat, &offer, &file)?;
        reply(&message.header, &[], Some(kick), out);
        Ok(None)
    }

    /// Answers what had to wait; no program is in flight.
    pub(super) fn answer_later(&mut self, later: &Later, out: &mut Outbox) {
        match later {
            Later::Reset(header) => {
                let device = self.seat.device.borrow();
                if !self.seat.has_berth() {
                    // Linux takes a signal without a new IRB for the end of what it starts next. On a lane the
                    // eventfd is that of other devices, too.
                    device.unsignal_io();
                }
                match device.after_reset() {
                    Ok(()) => reply(header, &[], None, out),
                    Err(errno) => self.refuse(header, errno, out),
                }
            }
            Later::Unmap(header, unmap) => self.finish_unmap(header, unmap, out),
        }
    }

    /// The client has gone, and no program of its is in flight: what it gave is given up.
    pub(super) fn close(&mut self) {
        self.seat.leave_berth();
        for range in std::mem::take(&mut self.ranges).into_values() {
            self.forget(&range);
        }
        self.seat.device.borrow_mut().forget_user();
    }
}

/// Answers a command, unless nobody wants to know.
fn reply(header: &Header, payload: &[&[u8]], file: Option<OwnedFd>, out: &mut Outbox) {
    if !header.wants_reply() {
        return;
    }
    let bytes: usize = payload.iter().map(|part| part.len()).sum();
    out.push(header.reply(bytes as u32).as_bytes(), payload, file);
}
