//! A shard: one thread, one runtime, and the tasks of its subchannels.
//!
//! The service's end is [`ShardLink`]: it sends devices, layouts of memory and mode switches by mail,
//! and waits for the end. On the thread the dispatcher (`dispatcher.rs`) is the main future; what
//! tasks share is in `context.rs`.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak, mpsc};
use std::thread::{self, JoinHandle};

use parking_lot::Mutex;
use vfio_ccw_metrics::ShardMetrics;
use vfio_ccw_pinning::{Pool, Registered};
use vfio_ccw_queues::WaitStrategy;

use crate::backend::kernel::AddressSpace;
use crate::shadow::Arena;
use crate::subchannel::{Door, MAILBOX, Reports, Shared, Table};
use crate::translation::{Limits, StorageKeys};
use crate::volume::{Fixed, Workers};

use super::activity::Activities;
use super::attach::{Attachment, Interrupts};
use super::context::Context;
use super::dispatcher::Dispatcher;
use super::mode_switch::{Aside, Switch};
use super::recorder::{FlightRecord, FlightRecorder, Recorder};
use super::runtime::{Driver, Runtime};
use super::save::SavedTask;
use super::unfetched::Unfetched;
use super::view::Layout;

/// What every shard of a service is made from.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) pool: Arc<Pool>,
    pub(super) aside: Arc<Aside>,
    /// The pool's pinner, where it is this one: each shard adds its ring.
    pub(super) registered: Option<Registered>,
    pub(super) limits: Limits,
    pub(super) keys: Option<Arc<dyn StorageKeys>>,
    pub(super) unfetched: Unfetched,
    pub(super) driver: Driver,
    pub(super) interrupts: Interrupts,
    pub(super) wait: WaitStrategy,
    pub(super) workers: Option<Arc<Workers>>,
    pub(super) reports: Arc<Reports>,
    /// What the host's devices see memory through.
    pub(super) space: Option<AddressSpace>,
    pub(super) activities: Arc<Activities>,
    pub(super) recorder: FlightRecorder,
}

/// What a service sends to a shard.
#[derive(Debug)]
pub(super) enum Mail {
    Attach(Box<Attachment>),
    /// There is another layout of guest memory: those that do nothing, too, must let go of the old one.
    Memory,
    /// For this subchannel.
    Switch(Arc<Shared>, Switch),
    /// No program begins from now on. The other end is held until none runs.
    Hold(mpsc::Sender<()>),
    /// Programs may begin again.
    LetGo,
    /// What do subchannels consist of?
    Save(mpsc::Sender<SavedTask>),
    /// What were the last requests?
    Recall(mpsc::Sender<Vec<FlightRecord>>),
}

/// The service's end of a shard.
#[derive(Debug)]
pub(super) struct ShardLink {
    common: Arc<Common>,
    thread: Option<JoinHandle<()>>,
}

/// What the thread and the service share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) door: Arc<Door>,
    pub(super) table: Arc<Table>,
    pub(super) mailbox: Mutex<Vec<Mail>>,
    pub(super) latest: Latest,
    pub(super) free_bits: Mutex<Vec<usize>>,
    /// Subchannels that have not come to rest.
    pub(super) restless: AtomicUsize,
    pub(super) ending: AtomicBool,
    ended: AtomicBool,
}

impl Common {
    /// Sends something to the shard. `false`: there is no thread any more.
    pub(super) fn send(&self, mail: Mail) -> bool {
        let mut mailbox = self.mailbox.lock();
        // Acquire: pairs with the Release in `Ended::drop`, which empties the box afterwards.
        if self.ended.load(Ordering::Acquire) {
            return false;
        }
        mailbox.push(mail);
        drop(mailbox);
        self.door.doorbell.ring(MAILBOX);
        true
    }
}

/// The layout of guest memory for programs that start now. It does not come by mail: a program that is
/// started after the layout was replaced must see the new one, also where its task has not slept since.
#[derive(Debug, Default)]
pub(super) struct Latest {
    version: AtomicU64,
    layout: Mutex<Option<Layout>>,
}

impl Latest {
    fn put(&self, layout: Layout) {
        *self.layout.lock() = Some(layout);
        // Release: pairs with the Acquire in `version`.
        self.version.fetch_add(1, Ordering::Release);
    }

    /// Changes so far. Whoever has seen a start that came after a change sees that change.
    #[inline]
    pub(super) fn version(&self) -> u64 {
        // Acquire: pairs with the Release in `put`.
        self.version.load(Ordering::Acquire)
    }

    pub(super) fn take(&self) -> Option<Layout> {
        self.layout.lock().take()
    }
}

impl ShardLink {
    /// Starts shard `index` of `shards` with room for `subchannels`.
    ///
    /// # Errors
    ///
    /// No eventfd, thread, runtime or shadow memory.
    pub(super) fn start(
        index: usize,
        shards: usize,
        subchannels: usize,
        table: Arc<Table>,
        plan: Plan,
        layout: Layout,
        metrics: Arc<ShardMetrics>,
    ) -> io::Result<Self> {
        let common = Arc::new(Common {
            door: Arc::new(Door::new(subchannels)?),
            table,
            mailbox: Mutex::new(Vec::new()),
            latest: Latest::default(),
            restless: AtomicUsize::new(0),
            free_bits: Mutex::new((1..=subchannels).rev().collect()),
            ending: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let arena = Arena::new(index, shards)?;
        let space = plan.space.as_ref();
        let shown = space.map(|space| space.map(arena.iova(), arena.host())).transpose();
        let shown = shown.map_err(io::Error::other)?;
        let mapping = arena.mapping();
        let (ready, started) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name(format!("ccw-shard-{index}")).spawn({
            let common = common.clone();
            move || {
                let _ended = Ended(common.clone());
                // Until no device reads a shadow any more.
                let _shown = (shown, mapping);
                match Runtime::new(plan.driver) {
                    Ok(runtime) => {
                        let recorder = Recorder::new(plan.recorder, index);
                        runtime.block_on(run(common, plan, layout, arena, metrics, recorder, ready))
                    }
                    // The starter hears of it; if it is gone, nobody wants the shard.
                    Err(error) => drop(ready.send(Err(error))),
                }
            }
        })?;
        let link = ShardLink { common, thread: Some(thread) };
        started
            .recv()
            .map_err(|_| io::Error::other("the shard's thread ended before it was ready"))??;
        Ok(link)
    }

    pub(super) fn door(&self) -> Arc<Door> {
        self.common.door.clone()
    }

    /// A bit for a new subchannel; `None` where all are taken.
    pub(super) fn take_bit(&self) -> Option<usize> {
        self.common.free_bits.lock().pop()
    }

    /// Sends a device to the shard. `false`: there is no thread any more.
    pub(super) fn attach(&self, attachment: Attachment) -> bool {
        self.send(Mail::Attach(Box::new(attachment)))
    }

    /// Shows the shard another layout of guest memory.
    pub(super) fn show(&self, layout: Layout) {
        self.common.latest.put(layout);
        if !self.send(Mail::Memory) {
            drop(self.common.latest.take());
        }
    }

    /// Lets no program begin from now on. `coming` is held until none runs.
    pub(super) fn hold(&self, coming: mpsc::Sender<()>) {
        self.send(Mail::Hold(coming));
    }

    /// Lets programs begin again.
    pub(super) fn let_go(&self) {
        self.send(Mail::LetGo);
    }

    /// Subchannels that have not come to rest, as far as is known.
    pub(super) fn restless(&self) -> usize {
        // Relaxed: for the message of an error.
        self.common.restless.load(Ordering::Relaxed)
    }

    /// Asks what its subchannels consist of.
    pub(super) fn save(&self, answer: mpsc::Sender<SavedTask>) {
        self.send(Mail::Save(answer));
    }

    /// Sends a switch to a subchannel.
    pub(super) fn switch(&self, shared: Arc<Shared>, switch: Switch) {
        self.send(Mail::Switch(shared, switch));
    }

    /// What others can ask the shard through, while it is there.
    pub(super) fn common(&self) -> Weak<Common> {
        Arc::downgrade(&self.common)
    }

    fn send(&self, mail: Mail) -> bool {
        self.common.send(mail)
    }

    /// Ends the shard when its last subchannel has left, and waits for that.
    pub(super) fn end(&mut self) {
        // Release: pairs with the Acquire in the dispatcher.
        self.common.ending.store(true, Ordering::Release);
        self.common.door.doorbell.ring(MAILBOX);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("a shard's thread has panicked");
        }
    }
}

/// Says that the thread is over, also when it panics.
struct Ended(Arc<Common>);

impl Drop for Ended {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in `Common::send`.
        self.0.ended.store(true, Ordering::Release);
        // Nobody reads what is left: its senders must not wait for an answer.
        let unread = std::mem::take(&mut *self.0.mailbox.lock());
        drop((unread, self.0.latest.take()));
        self.0.door.close();
    }
}

/// The thread's main future.
async fn run(
    common: Arc<Common>,
    plan: Plan,
    layout: Layout,
    arena: Arena,
    metrics: Arc<ShardMetrics>,
    recorder: Recorder,
    ready: mpsc::SyncSender<io::Result<()>>,
) {
    let prepared = (layout.view(&arena).map_err(io::Error::other)).and_then(|view| {
        let fixed = plan.registered.as_ref().map(Fixed::new).transpose();
        Ok((view, fixed.map_err(io::Error::other)?, Dispatcher::new(&common.door, plan.wait)?))
    });
    let (view, fixed, mut dispatcher) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return drop(ready.send(Err(error))),
    };
    if let Some(fixed) = &fixed {
        tokio::task::spawn_local(fixed.clone().drive());
    }
    let context = Context::new(common, plan, view, arena, fixed, metrics, recorder);
    let context = Rc::new(context);
    if ready.send(Ok(())).is_err() {
        return;
    }
    poll_fn(|cx| dispatcher.poll(&context, cx)).await;
}
