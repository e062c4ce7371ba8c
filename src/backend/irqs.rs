//! The three interrupts of a vfio-ccw device, and `VFIO_DEVICE_SET_IRQS`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::io::ReadWriteFlags;

use super::{Errno, bell};

/// Which interrupt; the numbers are the kernel's `VFIO_CCW_*_IRQ_INDEX`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Irq {
    /// An IRB is in the I/O region.
    Io = 0,
    /// A channel report is in the CRW region.
    Crw = 1,
    /// The owner of the device wants it back.
    Request = 2,
}

impl Irq {
    /// How many there are.
    pub const COUNT: u32 = 3;

    const ALL: [Irq; Irq::COUNT as usize] = [Irq::Io, Irq::Crw, Irq::Request];
}

bitflags::bitflags! {
    /// Flags of `struct vfio_irq_set`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct IrqSetFlags: u32 {
        /// There is no data.
        const DATA_NONE = 1;
        /// Data is a byte.
        const DATA_BOOL = 2;
        /// Data is an eventfd.
        const DATA_EVENTFD = 4;
        /// To mask; no interrupt of a vfio-ccw device can be masked.
        const ACTION_MASK = 8;
        /// To unmask.
        const ACTION_UNMASK = 16;
        /// To set what is signalled, or to signal it.
        const ACTION_TRIGGER = 32;
    }
}

/// `struct vfio_irq_set` without its data: which interrupts, and what about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IrqSet {
    /// What kind of data there is, and the action: [`IrqSetFlags`], others are an error.
    pub flags: u32,
    /// Number of the interrupt, as in [`Irq`].
    pub index: u32,
    /// First of its vectors: 0, there is one.
    pub start: u32,
    /// How many of its vectors: 0 or 1.
    pub count: u32,
}

/// The data of a [`IrqSet`].
#[derive(Debug)]
pub enum IrqData {
    /// For `DATA_NONE`.
    None,
    /// For `DATA_BOOL`: nonzero signals.
    Bool(u8),
    /// For `DATA_EVENTFD`: what to signal from now on, or nothing (-1 in the kernel's interface).
    EventFd(Option<OwnedFd>),
}

/// The eventfds that the user has given.
#[derive(Debug, Default)]
pub(super) struct Irqs {
    eventfds: [Option<File>; Irq::COUNT as usize],
}

impl Irqs {
    /// `VFIO_DEVICE_SET_IRQS`: the checks of `vfio_set_irqs_validate_and_prepare`, then
    /// `vfio_ccw_mdev_set_irqs`.
    pub(super) fn set(&mut self, set: &IrqSet, data: IrqData) -> Result<(), Errno> {
        let flags = IrqSetFlags::from_bits(set.flags).ok_or(Errno::INVALID)?;
        let irq = Irq::ALL.get(set.index as usize).ok_or(Errno::INVALID)?;
        let kind = match data {
            IrqData::None => IrqSetFlags::DATA_NONE,
            IrqData::Bool(_) => IrqSetFlags::DATA_BOOL,
            IrqData::EventFd(_) => IrqSetFlags::DATA_EVENTFD,
        };
        let kinds = IrqSetFlags::DATA_NONE | IrqSetFlags::DATA_BOOL | IrqSetFlags::DATA_EVENTFD;
        let triggers = flags.contains(IrqSetFlags::ACTION_TRIGGER);
        if set.start > 0 || set.count > 1 || flags & kinds != kind || !triggers {
            return Err(Errno::INVALID);
        }
        match data {
            IrqData::None | IrqData::Bool(1..) => self.signal(*irq),
            IrqData::Bool(0) => {}
            IrqData::EventFd(None) => self.eventfds[*irq as usize] = None,
            IrqData::EventFd(Some(descriptor)) => {
                if !is_eventfd(&descriptor) {
                    return Err(Errno::INVALID);
                }
                self.eventfds[*irq as usize] = Some(descriptor.into());
            }
        }
        Ok(())
    }

    /// A signal that the user has not taken is taken back.
    pub(super) fn unsignal(&self, irq: Irq) {
        self.eventfds[irq as usize].iter().for_each(take_back);
    }

    /// Adds one to the eventfd, if there is one. A counter that is full signals as it is, and writing to
    /// it would wait for its reader. As in the kernel, nobody hears of what else goes wrong with it.
    pub(super) fn signal(&self, irq: Irq) {
        self.eventfds[irq as usize].iter().for_each(bell::ring);
    }
}

/// Takes back what the eventfd counts, without ever waiting, whatever its user has made of it.
fn take_back(eventfd: &File) {
    let mut count = [0; 8];
    let mut into = [io::IoSliceMut::new(&mut count)];
    // -1: as read(2).
    let _ = rustix::io::preadv2(eventfd, &mut into, u64::MAX, ReadWriteFlags::NOWAIT);
}

/// Whether this is an eventfd: bytes that are written to anything else would not be a signal. The kernel
/// tells nowhere else.
fn is_eventfd(descriptor: &OwnedFd) -> bool {
    let link = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
    link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::EventfdFlags;
    use std::io::{Read, Write};

    const TRIGGER: u32 = 32;

    fn set(flags: u32, index: u32) -> IrqSet {
        IrqSet { flags, index, start: 0, count: 1 }
    }

    /// An eventfd, and another descriptor of it.
    fn eventfd() -> (File, OwnedFd) {
        let eventfd = rustix::event::eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        (eventfd.try_clone().unwrap().into(), eventfd)
    }

    fn count(mut eventfd: &File) -> Option<u64> {
        let mut bytes = [0; 8];
        eventfd.read_exact(&mut bytes).ok()?;
        Some(u64::from_ne_bytes(bytes))
    }

    #[test]
    fn an_eventfd_is_set_signalled_and_taken_away() {
        let mut irqs = Irqs::default();
        let (seen, given) = eventfd();
        assert_eq!(irqs.set(&set(4 | TRIGGER, 1), IrqData::EventFd(Some(given))), Ok(()));
        irqs.signal(Irq::Io);
        assert_eq!(count(&seen), None, "another interrupt");
        irqs.signal(Irq::Crw);
        assert_eq!(irqs.set(&set(1 | TRIGGER, 1), IrqData::None), Ok(()));
        assert_eq!(irqs.set(&IrqSet { count: 0, ..set(1 | TRIGGER, 1) }, IrqData::None), Ok(()));
        assert_eq!(irqs.set(&set(2 | TRIGGER, 1), IrqData::Bool(7)), Ok(()));
        assert_eq!(count(&seen), Some(4));
        assert_eq!(irqs.set(&set(2 | TRIGGER, 1), IrqData::Bool(0)), Ok(()));
        assert_eq!(count(&seen), None);
        assert_eq!(irqs.set(&set(4 | TRIGGER, 1), IrqData::EventFd(None)), Ok(()));
        irqs.signal(Irq::Crw);
        assert_eq!(count(&seen), None);
    }

    #[test]
    fn a_full_counter_is_not_waited_for() {
        let full = u64::MAX - 1;
        let eventfd = rustix::event::eventfd(0, EventfdFlags::empty()).unwrap();
        let seen = File::from(eventfd.try_clone().unwrap());
        (&seen).write_all(&full.to_ne_bytes()).unwrap();
        let mut irqs = Irqs::default();
        irqs.set(&set(4 | TRIGGER, 0), IrqData::EventFd(Some(eventfd))).unwrap();
        irqs.signal(Irq::Io);
        assert!(count(&seen) >= Some(full));
    }

    #[test]
    fn what_the_kernel_refuses_is_refused() {
        let mut irqs = Irqs::default();
        for wrong in [
            set(1 | TRIGGER, 3),
            set(1 | TRIGGER, u32::MAX),
            set(1 | 8, 0),
            set(1 | 16, 0),
            set(1, 0),
            set(1 | 2 | TRIGGER, 0),
            set(1 | TRIGGER | 64, 0),
            set(4 | TRIGGER, 0),
            IrqSet { start: 1, ..set(1 | TRIGGER, 0) },
            IrqSet { count: 2, ..set(1 | TRIGGER, 0) },
            IrqSet { start: u32::MAX, count: u32::MAX, ..set(1 | TRIGGER, 0) },
        ] {
            assert_eq!(irqs.set(&wrong, IrqData::None), Err(Errno::INVALID), "{wrong:?}");
        }
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        let refused = irqs.set(&set(4 | TRIGGER, 0), IrqData::EventFd(Some(file)));
        assert_eq!(refused, Err(Errno::INVALID), "not an eventfd");
    }
}
