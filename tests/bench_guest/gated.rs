//! Devices that take as long as the test wants.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Condvar, Mutex};
use std::task::{Poll, Waker};

use vfio_ccw::DeviceSpec;
use vfio_ccw::architecture::{CommandClass, command};
use vfio_ccw::channel_subsystem::{Data, Device, DeviceState, DeviceStateError, Ending, Sense};
use vfio_ccw::server::ServedDevice;
use vfio_ccw_metrics::DeviceClass;

use super::STALL;

/// Bytes of each of its transfers.
pub const TRANSFER: usize = 64;

/// A gate that commands wait at.
#[derive(Debug, Default)]
pub struct Gate {
    inside: Mutex<Inside>,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct Inside {
    is_open: bool,
    /// Commands that came to the gate.
    arrivals: usize,
    wakers: Vec<Waker>,
}

impl Gate {
    /// A gate that is shut.
    pub fn shut() -> Arc<Self> {
        Arc::default()
    }

    /// A device whose transfers wait at this gate, and whose NOPs do not.
    pub fn device(self: &Arc<Self>) -> DeviceSpec {
        let gate = self.clone();
        DeviceSpec::model(DeviceClass::Other, move || Gated { gate: gate.clone(), commands: 0 })
    }

    /// The same, for a server.
    pub fn served(self: &Arc<Self>, devno: u16) -> ServedDevice {
        let gate = self.clone();
        ServedDevice::model(devno, move || Gated { gate, commands: 0 })
    }

    /// Lets everything pass from now on.
    pub fn open(&self) {
        let mut inside = self.inside.lock().expect("no panic here");
        inside.is_open = true;
        inside.wakers.drain(..).for_each(Waker::wake);
    }

    /// Waits until so many commands have come to it.
    #[track_caller]
    pub fn wait_for_arrivals(&self, count: usize) {
        let inside = self.inside.lock().expect("no panic here");
        let waited =
            self.arrived.wait_timeout_while(inside, STALL, |inside| inside.arrivals < count);
        assert!(!waited.expect("no panic here").1.timed_out(), "{count} commands never came");
    }

    fn arrive(&self) {
        self.inside.lock().expect("no panic here").arrivals += 1;
        self.arrived.notify_all();
    }

    /// Passes, or is stopped at it.
    async fn pass(&self, data: &Data<'_>) {
        let mut stopped = pin!(data.stopped());
        poll_fn(|cx| {
            let mut inside = self.inside.lock().expect("no panic here");
            if inside.is_open || stopped.as_mut().poll(cx).is_ready() {
                return Poll::Ready(());
            }
            inside.wakers.push(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// A device whose transfers wait at a gate; reads give the number of transfers so far, in every byte.
struct Gated {
    gate: Arc<Gate>,
    commands: u8,
}

impl Device for Gated {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn begin(&mut self) {}

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        if code == command::NOP {
            return Ending::immediate();
        }
        self.gate.arrive();
        self.gate.pass(data).await;
        self.commands += 1;
        if CommandClass::of(code).stores() {
            data.store(&[self.commands; TRANSFER]);
        } else {
            data.fetch(&mut [0; TRANSFER]);
        }
        Ending::done()
    }

    fn take_sense(&mut self) -> Sense {
        Sense::none(24)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Other(vec![self.commands])
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceStateError> {
        match state {
            DeviceState::Other(bytes) if bytes.len() == 1 => self.commands = bytes[0],
            DeviceState::Other(bytes) => {
                let why = format!("{} bytes instead of one", bytes.len());
                return Err(DeviceStateError::Other(why));
            }
            _ => return Err(DeviceStateError::Kind),
        }
        Ok(())
    }
}
