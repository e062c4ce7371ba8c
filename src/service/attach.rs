//! What is attached, and starting the task of its subchannel on the shard.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::{Arc, mpsc};

use vfio_ccw_metrics::{DeviceClass, ShardMetrics};
use vfio_ccw_queues::submission::Intake;

use crate::architecture::{Crw, Orb};
use crate::backend::remote::{Link, Owner, Port, Remote, RemoteDevice};
use crate::backend::{Backend, Host, InProcess, Passthrough, Regions, Signalled, kernel};
use crate::channel_subsystem::{Device, DeviceState, DeviceStateError, Fba, Null};
use crate::subchannel::{Origin, Reports, Request, Shared, Tag};
use crate::translation::Policy;
use crate::volume::{FileIo, Spans, Volume};

use super::context::Context;
use super::delivery::Delivery;
use super::listener::Listener;
use super::mode_switch::Pinning;
use super::queue::Queue;
use super::runner::Runner;
use super::state::Restored;
use super::task;

/// What is attached.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum DeviceSpec {
    /// The null device.
    Null,
    /// An FBA disk on this volume.
    Fba(Arc<Volume>),
    /// A model of the VMM's own: [`DeviceSpec::model`].
    Model(Model),
    /// A device of the host's: [`DeviceSpec::kernel`].
    Kernel(HostDevice),
    /// A device of another process: [`DeviceSpec::remote`].
    Remote(RemoteSpec),
}

/// A device of another process on its way to a shard.
#[derive(Clone, Debug)]
pub struct RemoteSpec(pub(super) Arc<RemoteDevice>);

/// A device of the host's on its way to a shard. It is closed when it is detached, and every copy of this
/// is gone.
#[derive(Clone, Debug)]
pub struct HostDevice(pub(super) Arc<kernel::Device>);

/// How a device model of the VMM's own comes to a shard.
#[derive(Clone)]
pub struct Model {
    class: DeviceClass,
    place: Arc<dyn Fn(task::Seat, Option<Restoring>) + Send + Sync>,
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("class", &self.class).finish_non_exhaustive()
    }
}

impl DeviceSpec {
    /// A device model of the VMM's own, of class `class`, which `make` makes on the shard's thread: the
    /// model need not be `Send`, and one thread runs it.
    ///
    /// A command that waits for something that may never come must wait for
    /// [`Data::stopped`](crate::channel_subsystem::Data::stopped) as well, or HALT, CLEAR and the
    /// service's end wait with it.
    ///
    /// ```
    /// use vfio_ccw::channel_subsystem::{Data, Device, Ending, Sense};
    /// use vfio_ccw::{Completions, DeviceSpec, Service};
    /// use vfio_ccw_metrics::DeviceClass;
    ///
    /// /// Reads give the number of commands so far; there is nothing else.
    /// #[derive(Default)]
    /// struct Counter(u8);
    ///
    /// impl Device for Counter {
    ///     fn class(&self) -> DeviceClass {
    ///         DeviceClass::Other
    ///     }
    ///
    ///     fn begin(&mut self) {}
    ///
    ///     async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
    ///         if code != 0x02 {
    ///             return Ending::unit_check();
    ///         }
    ///         self.0 = self.0.wrapping_add(1);
    ///         data.store(&[self.0]);
    ///         Ending::done()
    ///     }
    ///
    ///     fn take_sense(&mut self) -> Sense {
    ///         Sense::new(Sense::COMMAND_REJECT, 0, 24)
    ///     }
    /// }
    ///
    /// # let memory = std::sync::Arc::new(vm_memory::GuestMemoryMmap::<()>::from_ranges(&[(
    /// #     vm_memory::GuestAddress(0), 1 << 20)])?);
    /// # let service = Service::builder().build(memory)?;
    /// let (delivery, _completions) = Completions::ring(64)?;
    /// service.attach(DeviceSpec::model(DeviceClass::Other, Counter::default), delivery)?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn model<D: Device + 'static>(
        class: DeviceClass,
        make: impl Fn() -> D + Send + Sync + 'static,
    ) -> Self {
        let place = move |seat, restoring| start(seat, make(), restoring);
        DeviceSpec::Model(Model { class, place: Arc::new(place) })
    }

    /// A device of the kernel's vfio-ccw, of the address space that the service was built with.
    pub fn kernel(device: kernel::Device) -> Self {
        DeviceSpec::Kernel(HostDevice(Arc::new(device)))
    }

    /// A device that another process serves over vfio-user.
    ///
    /// ```no_run
    /// # use std::path::Path;
    /// # use vfio_ccw::backend::remote::RemoteDevice;
    /// # use vfio_ccw::{Completions, DeviceSpec, Service};
    /// # fn attach(service: &Service) -> Result<(), Box<dyn std::error::Error>> {
    /// let (delivery, _completions) = Completions::ring(64)?;
    /// let device = RemoteDevice::connect(Path::new("/run/vfio-ccw/fba0.sock"))?;
    /// service.attach(DeviceSpec::remote(device), delivery)?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn remote(device: RemoteDevice) -> Self {
        DeviceSpec::Remote(RemoteSpec(Arc::new(device)))
    }

    pub(super) fn class(&self) -> DeviceClass {
        match self {
            DeviceSpec::Null => DeviceClass::Null,
            DeviceSpec::Fba(_) => DeviceClass::Fba,
            DeviceSpec::Model(model) => model.class,
            DeviceSpec::Kernel(device) => device.0.class(),
            DeviceSpec::Remote(device) => device.0.class(),
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
    /// What completions with unsolicited status carry.
    pub(super) unsolicited: Option<u64>,
    /// On the heap: thousands of these may be on their way, and few have that.
    pub(super) restored: Option<Box<(Restored, Restoring)>>,
}

/// What the device goes on from, and who wants to know whether it does.
#[derive(Debug)]
pub(super) struct Restoring {
    pub(super) device: DeviceState,
    pub(super) answer: mpsc::Sender<Result<(), DeviceStateError>>,
}

/// Starts the task of a subchannel.
pub(super) fn attach(context: &Rc<Context>, attachment: Attachment) {
    let Attachment { shared, intake, device, policy, pinning, share, unsolicited, restored } =
        attachment;
    let runner = Runner::new(&shared);
    context.seat(shared.bit(), runner.clone());
    let outbox = context.outbox_of(shared.delivery());
    let is_by_instruction = matches!(shared.delivery(), Delivery::Interrupt(_));
    let pins_areas = matches!(device, DeviceSpec::Kernel(_));
    let rules = context.rules(device.class(), policy, pins_areas);
    let view = RefCell::new(context.view());
    let pinning = RefCell::new(pinning);
    let (suspended, starts, restoring) = match restored.map(|restored| *restored) {
        Some((Restored { suspended, starts, .. }, restoring)) => {
            let submitted = context.clock.raw();
            let request = |(orb, user_data): (Orb, Option<u64>)| {
                let origin = match user_data {
                    Some(user_data) => Origin::Ring { user_data, epoch: 0 },
                    None => Origin::Instruction(Tag::default()),
                };
                Request { orb, origin, submitted }
            };
            (suspended.map(Box::new), starts.into_iter().map(request).collect(), Some(restoring))
        }
        None => (None, VecDeque::new(), None),
    };
    let queue = RefCell::new(Queue::new(starts, intake, is_by_instruction));
    let context = context.clone();
    let memory = context.view().dma.clone();
    let number = shared.number();
    let seat = task::Seat {
        context,
        number,
        shared,
        queue,
        is_by_instruction,
        restored: suspended,
        ended: Cell::new(None),
        runner,
        outbox,
        rules,
        view,
        pinning,
        share,
        unsolicited,
    };
    match device {
        DeviceSpec::Null => start(seat, Null::default(), restoring),
        DeviceSpec::Fba(volume) => {
            let spans = Spans::new(volume.clone(), memory);
            let context = &seat.context;
            let io = FileIo::new(spans, context.plan.workers.clone(), context.file_io())
                .with_fixed(context.fixed());
            start(seat, Fba::new(io, volume.blocks(), volume.is_read_only()), restoring);
        }
        DeviceSpec::Model(model) => (model.place)(seat, restoring),
        DeviceSpec::Kernel(device) => start_host(seat, device.0, restoring),
        DeviceSpec::Remote(device) => start_remote(seat, &device.0, restoring),
    }
}

/// Starts the task of a device of another process, and the one that has its connection.
fn start_remote(seat: task::Seat, device: &RemoteDevice, restoring: Option<Restoring>) {
    // Its histograms are made now, not in the middle of the first request.
    seat.context.metrics.attached(device.class());
    let Some(first) = device.take() else {
        tracing::error!("a remote device was attached twice: its subchannel is not operational");
        return seat.runner.clone().spawn(task::run_absent(seat));
    };
    let owner = RemoteOwner {
        runner: seat.runner.clone(),
        shared: seat.shared.clone(),
        reports: seat.context.plan.reports.clone(),
        metrics: seat.context.metrics.clone(),
        was_cut: Cell::new(false),
    };
    let memory = seat.view.borrow().dma.clone();
    let port = Port::new(device.class(), Box::new(owner), memory);
    let link = Link {
        port: port.clone(),
        path: device.path().to_owned(),
        trunks: seat.context.trunks.clone(),
        knows_lanes: device.knows_lanes(),
    };
    let link = tokio::task::spawn_local(link.run(first)).abort_handle();
    run(seat, Remote::new(port, link), restoring);
}

/// The subchannel of a device of another process, as the link to that sees it.
struct RemoteOwner {
    runner: Rc<Runner>,
    shared: Arc<Shared>,
    reports: Arc<Reports>,
    metrics: Arc<ShardMetrics>,
    was_cut: Cell<bool>,
}

impl Owner for RemoteOwner {
    fn look(&self) {
        self.runner.look();
    }

    fn ring(&self) {
        self.runner.ring();
    }

    fn cut(&self, is_cut: bool) {
        self.shared.set_cut(is_cut);
        if self.was_cut.replace(is_cut) != is_cut {
            self.metrics.counters().reconnects.add(u64::from(!is_cut));
            // The guest looks at the subchannel, and finds its path gone, or back.
            self.reports.report_subchannel(self.shared.cell().id());
        }
    }

    fn report(&self, crw: Crw) {
        self.reports.report(crw);
    }
}

/// Starts the task of a device of the host's, and the one that listens to the host.
fn start_host<R: Regions>(seat: task::Seat, regions: Arc<R>, restoring: Option<Restoring>) {
    // Its histograms are made now, not in the middle of the first request.
    seat.context.metrics.attached(regions.class());
    let host = Rc::new(Host::default());
    let device = Passthrough::new(regions.clone(), host.clone())
        .and_then(|device| Ok((device, Listener::new(&regions, host, &seat)?)));
    match device {
        Ok((device, listener)) => {
            let device = device.with_listener(listener.spawn());
            run(seat, device, restoring);
        }
        Err(error) => {
            tracing::error!(%error, "the interrupts of a device cannot be watched: its subchannel is not operational");
            seat.runner.clone().spawn(task::run_absent(seat));
        }
    }
}

fn start<D: Device + 'static>(seat: task::Seat, device: D, restoring: Option<Restoring>) {
    let context = seat.context.clone();
    // Its histograms are made now, not in the middle of the first request.
    context.metrics.attached(device.class());
    let memory = seat.view.borrow().dma.clone();
    let device = InProcess::with_rules(device, memory, Some(seat.rules.clone()));
    match context.plan.interrupts {
        Interrupts::Direct => run(seat, device, restoring),
        Interrupts::EventFd => match Signalled::new(device) {
            Ok(device) => run(seat, device, restoring),
            Err(error) => {
                tracing::error!(%error, "no eventfd for a device: its subchannel is not operational");
                seat.runner.clone().spawn(task::run_absent(seat));
            }
        },
    }
}

fn run<B: Backend + 'static>(seat: task::Seat, mut backend: B, restoring: Option<Restoring>) {
    let runner = seat.runner.clone();
    if let Some(Restoring { device, answer }) = restoring {
        let restored = backend.restore(&device);
        let goes_on = restored.is_ok();
        // Whoever attaches it waits for this.
        drop(answer.send(restored));
        if !goes_on {
            return runner.spawn(task::run_absent(seat));
        }
    }
    runner.works_with(backend.lines());
    runner.spawn(task::run(seat, backend));
}
