//! The software channel subsystem: it executes channel programs against device models.
//!
//! What a control unit and a channel do in hardware happens here: [`execute`] walks the CCWs that an
//! ORB designates, gives each command to the [`Device`] with its data area ([`Data`]), and answers
//! with the status that the architecture gives, incorrect length and chaining rules included. It
//! sees memory only through a [`DmaSpace`]: what is not in a window does not exist.
//!
//! It runs the translated shadow programs of a service and, where the guest's ORB does not allow
//! prefetching, programs straight from guest memory: every CCW and IDAW is read once, when it is
//! executed.

mod channel;
mod data;
mod device;
mod dma;
mod fba;
mod interpreter;
mod null;
mod state;
mod stop;

pub use channel::CCW_LIMIT;
pub use data::{Data, Extent};
pub use device::{Device, Ending, Sense, SenseId};
pub use dma::{DmaSpace, Window, WindowAccess, WindowError};
pub use fba::Fba;
pub(crate) use interpreter::{End, execute_judged, performed};
pub use interpreter::{Entry, Run, execute};
pub use null::Null;
pub use state::{DeviceState, DeviceStateError, ExtentState, FbaState, LocatedState, SenseState};
pub use stop::Stop;
