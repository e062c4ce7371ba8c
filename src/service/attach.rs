//! What is attached, and starting the task of its subchannel on the shard.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use vfio_ccw_metrics::DeviceClass;
use vfio_ccw_queues::submission::Intake;

use crate::backend::{Backend, InProcess, Signalled};
use crate::channel_subsystem::{Device, Fba, Null};
use crate::subchannel::{Request, Shared};
use crate::translation::{Policy, Rules};
use crate::volume::{FileIo, Spans, Volume};

use super::context::Context;
use super::delivery::Delivery;
use super::mode_switch::Pinning;
use super::runner::Runner;
use super::task;

/// What is attached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The null device.
    Null,
    /// An FBA disk on this volume.
    Fba(Arc<Volume>),
}

impl DeviceSpec {
    fn class(&self) -> DeviceClass {
        match self {
            DeviceSpec::Null => DeviceClass::Null,
            DeviceSpec::Fba(_) => DeviceClass::Fba,
        }
    }
}

/// How a subchannel's task learns that its in-process device has ended a program.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Interrupts {
    /// The task runs the device itself: no switch, no system call.
    #[default]
    Direct,
    /// The device runs as a task of its own and signals an eventfd, as a device elsewhere would.
    EventFd,
}

/// A device on its way to its shard.
#[derive(Debug)]
pub(super) struct Attachment {
    pub(super) shared: Arc<Shared>,
    pub(super) intake: Intake<Request>,
    pub(super) device: DeviceSpec,
    pub(super) policy: Policy,
    pub(super) pinning: Pinning,
    /// Most bytes that are pinned for one program.
    pub(super) share: Option<u64>,
}

/// Starts the task of a subchannel.
pub(super) fn attach(context: &Rc<Context>, attachment: Attachment) {
    let Attachment { shared, intake, device, policy, pinning, share } = attachment;
    let runner = Runner::new(&shared);
    context.seat(shared.bit(), runner.clone());
    let outbox = context.outbox_of(shared.delivery());
    let is_by_instruction = matches!(shared.delivery(), Delivery::Interrupt(_));
    let rules = Arc::new(Rules {
        limits: context.plan.limits,
        class: device.class(),
        policy,
        keys: context.plan.keys.clone(),
    });
    let view = RefCell::new(context.view());
    let pinning = RefCell::new(pinning);
    let context = context.clone();
    let memory = context.view().dma.clone();
    let seat = task::Seat {
        context,
        shared,
        intake: Some(intake),
        next: Cell::new(None),
        late: Vec::new(),
        is_by_instruction,
        ended: Cell::new(None),
        runner,
        outbox,
        rules,
        view,
        pinning,
        share,
    };
    match device {
        DeviceSpec::Null => start(seat, Null::default()),
        DeviceSpec::Fba(volume) => {
            let spans = Spans::new(volume.clone(), memory);
            let context = &seat.context;
            let io = FileIo::new(spans, context.plan.workers.clone(), context.file_io())
                .with_fixed(context.fixed());
            start(seat, Fba::new(io, volume.blocks(), volume.is_read_only()));
        }
    }
}

fn start<D: Device + 'static>(seat: task::Seat, device: D) {
    let context = seat.context.clone();
    // Its histograms are made now, not in the middle of the first request.
    let _ = context.metrics.class(device.class());
    let memory = seat.view.borrow().dma.clone();
    let device = InProcess::with_rules(device, memory, Some(seat.rules.clone()));
    match context.plan.interrupts {
        Interrupts::Direct => run(seat, device),
        Interrupts::EventFd => match Signalled::new(device) {
            Ok(device) => run(seat, device),
            Err(error) => {
                tracing::error!(%error, "no eventfd for a device: its subchannel is not operational");
                seat.runner.clone().spawn(task::run_absent(seat));
            }
        },
    }
}

fn run<B: Backend + 'static>(seat: task::Seat, backend: B) {
    seat.runner.clone().spawn(task::run(seat, backend));
}
