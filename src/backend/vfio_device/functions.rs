//! The subchannel of a VFIO device: what START, HALT and CLEAR SUBCHANNEL do to it, and what becomes of the
//! program in flight.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use crate::architecture::{Function, IrbHead, Orb, OrbFlags, Scsw, ScswFlags, SubchannelStatus};
use crate::backend::irqs::Irqs;
use crate::backend::{AsyncRegion, Backend, Errno, IoRegion, Irq};
use crate::channel_subsystem::{Entry, performed};

use super::VfioDevice;

/// How far the subchannel is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Stage {
    /// No program is in flight.
    Idle,
    /// One was started, and perhaps told to end.
    Runs(Option<Order>),
    /// One has suspended itself, with this status.
    Suspended(IrbHead),
}

/// What a program that runs was told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Order {
    /// To end by HALT or CLEAR SUBCHANNEL, which interrupts.
    Stop(Function),
    /// To end, and nobody is to hear of it.
    Vanish,
}

impl VfioDevice {
    /// [`VfioDevice::run`] as a poll function.
    pub fn poll_run(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Stage::Runs(order) = self.stage else { return Poll::Ready(()) };
        let (mut teller, orb) = (
            Teller {
                io: &mut self.io,
                irqs: &self.irqs,
                gathered: &mut self.gathered,
                is_unread: &mut self.is_unread,
            },
            &self.started,
        );
        let polled = self.device.poll_interrupt(cx, false, &mut |irb| {
            if order.is_none() {
                teller.tell(as_started(irb, orb));
            }
        });
        // Signals are not the device's own: there is nothing that could fail.
        let ended = ready!(polled).and_then(|()| self.device.irb()).unwrap_or_default();
        let ended = as_started(ended, &self.started);
        self.stage = Stage::Idle;
        match order {
            None if ended.scsw.flags().contains(ScswFlags::SUSPENDED) => {
                self.stage = Stage::Suspended(ended);
                if ended.scsw.flags().contains(ScswFlags::STATUS_PENDING) {
                    self.interrupt(ended);
                }
            }
            None => self.interrupt(ended),
            Some(Order::Stop(function)) => {
                let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
                self.interrupt(performed(function, active, Some(&ended)));
            }
            Some(Order::Vanish) => {}
        }
        self.present_unsolicited();
        Poll::Ready(())
    }

    /// Starts what stands in the I/O region; `false`: it asks for nothing.
    pub(super) fn start(&mut self) -> Result<bool, Errno> {
        if self.is_gone {
            return Err(Errno::IO);
        }
        let functions = self.io.scsw.flags();
        let starts = functions.contains(ScswFlags::START_FUNCTION);
        let entry = match self.stage {
            Stage::Idle => Entry::Start,
            // The driver does not know this, see `IoRegion::resume`.
            Stage::Suspended(_) if starts && functions.contains(ScswFlags::RESUME_PENDING) => {
                Entry::Resume
            }
            Stage::Suspended(_) | Stage::Runs(_) => return Err(Errno::BUSY),
        };
        if !starts {
            let others = ScswFlags::HALT_FUNCTION | ScswFlags::CLEAR_FUNCTION;
            return if functions.intersects(others) {
                Err(Errno::NOT_SUPPORTED)
            } else {
                Ok(false)
            };
        }
        let orb = self.io.orb;
        if orb.flags().contains(OrbFlags::TRANSPORT_MODE) {
            return Err(Errno::NOT_SUPPORTED);
        }
        self.started = orb;
        self.pmcw.intparm.set(orb.intparm());
        let paths = self.usable_paths(&orb);
        if paths == 0 {
            self.stage = Stage::Idle;
            self.interrupt(path_not_operational(&orb));
            return Ok(true);
        }
        // The first of them: the highest bit.
        self.pmcw.lpum = 0x80 >> paths.leading_zeros();
        if std::mem::take(&mut self.are_windows_new) {
            self.device.set_memory(Arc::new(self.windows.space()));
        }
        // To the channel P = 0 would say that addresses are not I/O virtual ones. It prefetches nothing
        // anyway.
        self.device.start(&orb.with_flags(orb.flags() | OrbFlags::PREFETCH), entry)?;
        self.stage = Stage::Runs(None);
        Ok(true)
    }

    /// Does what the asynchronous-command region asks for.
    pub(super) fn act(&mut self) -> Result<(), Errno> {
        if self.is_gone {
            return Err(Errno::IO);
        }
        match self.command.command.get() {
            AsyncRegion::HALT => self.stop(Function::Halt),
            AsyncRegion::CLEAR => self.stop(Function::Clear),
            _ => Err(Errno::INVALID),
        }
    }

    /// HALT or CLEAR SUBCHANNEL. Where nothing runs it is performed at once.
    fn stop(&mut self, function: Function) -> Result<(), Errno> {
        let irb = match self.stage {
            Stage::Runs(Some(Order::Stop(_))) if function == Function::Halt => {
                return Err(Errno::BUSY);
            }
            Stage::Runs(_) => {
                self.device.stop(function);
                self.stage = Stage::Runs(Some(Order::Stop(function)));
                return Ok(());
            }
            Stage::Idle => performed(function, ScswFlags::empty(), None),
            Stage::Suspended(irb) => {
                let mut performed = performed(function, ScswFlags::SUSPENDED, Some(&irb));
                if function == Function::Halt {
                    // What was halted; QEMU shows it, too.
                    performed.scsw = performed.scsw.with_flags(ScswFlags::SUSPENDED);
                }
                performed
            }
        };
        self.stage = Stage::Idle;
        self.interrupt(irb);
        self.present_unsolicited();
        Ok(())
    }

    /// The program in flight is over, or ends in `run`, without an interrupt.
    pub(crate) fn vanish(&mut self) {
        if let Stage::Runs(_) = self.stage {
            self.device.stop(Function::Clear);
            self.stage = Stage::Runs(Some(Order::Vanish));
        } else {
            self.stage = Stage::Idle;
        }
    }

    pub(super) async fn end_program(&mut self) {
        self.vanish();
        self.run().await;
    }

    /// Stores an IRB, leaves in the subchannel what is left of it, and signals. Controls of the last start
    /// stay in the status of whatever comes.
    fn interrupt(&mut self, mut irb: IrbHead) {
        irb.scsw = irb.scsw.with_controls_of(&self.started);
        let taken =
            ScswFlags::FUNCTION_CONTROL | ScswFlags::ACTIVITY_CONTROL | ScswFlags::STATUS_CONTROL;
        self.scsw = irb.scsw.without_flags(taken);
        let mut teller = Teller {
            io: &mut self.io,
            irqs: &self.irqs,
            gathered: &mut self.gathered,
            is_unread: &mut self.is_unread,
        };
        teller.tell(irb);
    }

    pub(super) fn present_unsolicited(&mut self) {
        if matches!(self.stage, Stage::Idle) && !self.unsolicited.is_empty() && !self.is_gone {
            let status = std::mem::take(&mut self.unsolicited);
            let scsw = Scsw::new(ScswFlags::ALERT | ScswFlags::STATUS_PENDING);
            let scsw = scsw.with_status(status, SubchannelStatus::empty(), 0);
            self.interrupt(IrbHead { scsw, ..IrbHead::default() });
        }
    }

    /// What STORE SUBCHANNEL shows.
    pub(super) fn stored_scsw(&self) -> Scsw {
        let in_flight = match self.stage {
            Stage::Idle => return self.scsw,
            Stage::Suspended(irb) => return irb.scsw.without_flags(ScswFlags::STATUS_CONTROL),
            Stage::Runs(order) => order,
        };
        let active = ScswFlags::SUBCHANNEL_ACTIVE | ScswFlags::DEVICE_ACTIVE;
        let pending = match in_flight {
            Some(Order::Stop(Function::Halt)) => ScswFlags::HALT_FUNCTION | ScswFlags::HALT_PENDING,
            Some(Order::Stop(Function::Clear)) => {
                ScswFlags::CLEAR_FUNCTION | ScswFlags::CLEAR_PENDING
            }
            Some(Order::Vanish) | None => ScswFlags::empty(),
        };
        Scsw::new(ScswFlags::START_FUNCTION | active | pending).with_controls_of(&self.started)
    }

    /// The paths that a start may use. With none in the ORB the subchannel's are meant (the driver fills
    /// them in, `cp_get_orb`).
    fn usable_paths(&self, orb: &Orb) -> u8 {
        let asked = if orb.lpm() == 0 { self.pmcw.lpm } else { orb.lpm() };
        asked & self.pmcw.pam
    }

    /// The mask of the installed paths that have this identifier.
    pub(super) fn paths_of(&self, chpid: u8) -> u8 {
        let path = |index: usize| 0x80 >> index;
        (0..8).filter(|index| self.pmcw.chpid[*index] == chpid).map(path).sum::<u8>()
            & self.pmcw.pim
    }
}

/// Where IRBs go.
struct Teller<'a> {
    io: &'a mut IoRegion,
    irqs: &'a Irqs,
    gathered: &'a mut Option<VecDeque<IrbHead>>,
    is_unread: &'a mut bool,
}

impl Teller<'_> {
    /// Stores an IRB where the user sees it, and signals. The interrupt writes no more than that: Linux's
    /// `struct irb` has no extended-measurement word, and what stands in its place stays.
    fn tell(&mut self, irb: IrbHead) {
        self.io.irb.head = irb;
        match self.gathered {
            Some(gathered) => gathered.push_back(irb),
            None => {
                *self.is_unread = true;
                self.irqs.signal(Irq::Io);
            }
        }
    }
}

/// An IRB of the channel, with the controls of the ORB that the user started.
fn as_started(mut irb: IrbHead, orb: &Orb) -> IrbHead {
    irb.scsw = irb.scsw.with_controls_of(orb);
    irb
}

/// Status of a start none of whose paths there is: deferred condition code 3, as QEMU gives it
/// (`sch_handle_start_func_virtual`).
fn path_not_operational(orb: &Orb) -> IrbHead {
    let flags = ScswFlags::START_FUNCTION
        | ScswFlags::START_PENDING
        | ScswFlags::ALERT
        | ScswFlags::STATUS_PENDING;
    let scsw = Scsw::new(flags).with_cpa(orb.cpa()).with_deferred_cc(3);
    IrbHead { scsw, ..IrbHead::default() }
}
