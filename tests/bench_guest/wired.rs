//! Devices that interrupt.

use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use vfio_ccw::architecture::{IoInterruption, IrbHead, SubchannelId};
use vfio_ccw::{Cc, Delivery, DeviceOptions, DeviceSpec, Service, Subchannel, Trigger};

use super::STALL;

/// Word that an interruption is pending: the channel goes on when it is dropped.
#[derive(Debug)]
pub struct Interruption {
    /// The subchannel.
    pub subchannel: SubchannelId,
    _held: Sender<()>,
}

/// A wire into an interrupt controller.
struct Wire(Mutex<Sender<Interruption>>);

impl Trigger<IoInterruption> for Wire {
    fn trigger(&self, what: &IoInterruption) -> io::Result<()> {
        let (held, let_go) = channel();
        let interruption = Interruption { subchannel: what.subchannel, _held: held };
        self.0.lock().expect("no panic here").send(interruption).map_err(io::Error::other)?;
        // Ends with an error when the other side is dropped.
        let _ = let_go.recv();
        Ok(())
    }
}

/// A device whose results are interruptions. Each holds the shard, and with it the program, until
/// its [`Interruption`] is dropped.
#[derive(Debug)]
pub struct Wired {
    /// The VMM's handle.
    pub subchannel: Subchannel,
    interruptions: Receiver<Interruption>,
}

impl Wired {
    /// Attaches a device.
    pub fn attach(service: &Service, spec: DeviceSpec) -> Self {
        Wired::attach_with(service, spec, DeviceOptions::default())
    }

    /// The same with options.
    pub fn attach_with(service: &Service, spec: DeviceSpec, options: DeviceOptions) -> Self {
        let (out, interruptions) = channel();
        let delivery = Delivery::Interrupt(Arc::new(Wire(Mutex::new(out))));
        let subchannel = service.attach_with(spec, delivery, options).expect("room for a device");
        Wired { subchannel, interruptions }
    }

    /// Waits for an interruption. Dropped at once, it holds nothing.
    #[track_caller]
    pub fn interruption(&self) -> Interruption {
        let interruption = self.interruptions.recv_timeout(STALL).expect("nothing interrupts");
        assert_eq!(interruption.subchannel, self.subchannel.id());
        interruption
    }

    /// Whether an interruption came that nobody has waited for.
    pub fn is_interrupted(&self) -> bool {
        self.interruptions.try_recv().is_ok()
    }

    /// Waits for interruptions until one has status: that of a program which was quicker goes with CLEAR.
    pub fn next_status(&self) -> IrbHead {
        loop {
            drop(self.interruption());
            let (cc, irb) = self.subchannel.tsch();
            if cc == Cc::Cc0 {
                return irb;
            }
        }
    }

    /// Fetches the status, which must be pending.
    #[track_caller]
    pub fn status(&self) -> IrbHead {
        let (cc, irb) = self.subchannel.tsch();
        assert_eq!(cc, Cc::Cc0, "{irb:?}");
        irb
    }
}
