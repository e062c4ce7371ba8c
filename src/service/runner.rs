//! What runs the future of one subchannel: the dispatcher directly, as long as it need not wait for
//! anything but its doorbell; its tokio task when it must.
//!
//! A task that is woken through the runtime costs two or three atomic operations on its state and a
//! way through two queues, as much as a whole program on a fast device. So the dispatcher, which has
//! just been told of the doorbell, polls the future itself, with the waker of its task: whatever the
//! future has to wait for then (a file, a timer, room in the pool) wakes the task, and the runtime
//! goes on where the dispatcher left off.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak, mpsc};
use std::task::{Context as TaskContext, Poll};

use vfio_ccw_queues::prefetch::Lines;

use crate::architecture::Function;
use crate::sleeper::Sleeper;
use crate::subchannel::{Shared, Urgent};

use super::mode_switch::SwitchBox;
use super::save::SavedTask;

/// A subchannel on its shard: its future, and what it is told.
pub(super) struct Runner {
    /// The subchannel, until it is over: its bit may have been another's.
    shared: Weak<Shared>,
    rung: Cell<bool>,
    /// Its task, once that has started.
    task: Sleeper,
    work: RefCell<Work>,
    /// HALT and CLEAR that were submitted to its ring.
    urgent: RefCell<VecDeque<Urgent>>,
    has_urgent: Cell<bool>,
    /// Where its next request will lie.
    next_entry: Cell<Lines>,
    /// The ring of its shard that it last ran for.
    ran: Cell<u32>,
    /// Its device.
    device: Cell<[Lines; 2]>,
    /// What it reads of what it shares with vCPUs.
    shared_lines: Lines,
    pub(super) switch: SwitchBox,
    /// Guest memory has another layout, or there is a switch.
    has_news: Cell<bool>,
    /// Its device is to be looked at, whether it has interrupted or not.
    looks: Cell<bool>,
    /// Who wants to know what it consists of.
    save: RefCell<Option<mpsc::Sender<SavedTask>>>,
    /// It is at rest, or nobody wants to know.
    rests: Cell<bool>,
}

/// How far the future of a subchannel is.
enum Work {
    Goes(Pin<Box<dyn Future<Output = ()>>>),
    /// It is over; where it panicked, this is what it said.
    Over(Option<Box<dyn Any + Send>>),
}

impl Runner {
    pub(super) fn new(shared: &Arc<Shared>) -> Rc<Self> {
        Runner::of(Arc::downgrade(shared), shared.lines())
    }

    fn of(shared: Weak<Shared>, shared_lines: Lines) -> Rc<Self> {
        Rc::new(Runner {
            shared,
            // What was submitted before this moment rang for nobody: the future looks once by itself.
            rung: Cell::new(true),
            task: Sleeper::default(),
            work: RefCell::new(Work::Over(None)),
            urgent: RefCell::default(),
            has_urgent: Cell::new(false),
            next_entry: Cell::default(),
            ran: Cell::new(0),
            device: Cell::default(),
            shared_lines,
            switch: SwitchBox::default(),
            has_news: Cell::new(false),
            looks: Cell::new(false),
            save: RefCell::new(None),
            rests: Cell::new(true),
        })
    }

    /// Whether it runs this subchannel.
    pub(super) fn is_of(&self, shared: &Arc<Shared>) -> bool {
        self.shared.as_ptr() == Arc::as_ptr(shared)
    }

    /// Starts the task that runs `future`.
    pub(super) fn spawn(self: &Rc<Self>, future: impl Future<Output = ()> + 'static) {
        *self.work.borrow_mut() = Work::Goes(Box::pin(future));
        let runner = Cancelled(self.clone());
        drop(tokio::task::spawn_local(async move {
            poll_fn(|cx| runner.0.poll_in_task(cx)).await;
        }));
    }

    /// Rings for the subchannel and lets it run until it waits.
    pub(super) fn ring(&self) {
        self.rung.set(true);
        self.run();
    }

    /// The same by the doorbell, for ring number `now` of its shard.
    #[inline]
    pub(super) fn ring_at(&self, now: u32) {
        self.ran.set(now);
        self.ring();
    }

    /// The ring of its shard that it last ran for.
    #[inline]
    pub(super) fn ran(&self) -> u32 {
        self.ran.get()
    }

    /// Lets it look at its device.
    pub(super) fn look(&self) {
        self.looks.set(true);
        self.run();
        self.looks.set(false);
    }

    /// Whether it is run to look at its device.
    pub(super) fn looks(&self) -> bool {
        self.looks.get()
    }

    fn run(&self) {
        // Without a waker its task has not started yet, and will look by itself.
        self.task.with(|waker| {
            if self.poll(&mut TaskContext::from_waker(waker)).is_ready() {
                waker.wake_by_ref();
            }
        });
    }

    fn poll_in_task(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.task.remember(cx.waker());
        let polled = self.poll(cx);
        if polled.is_ready()
            && let Work::Over(panic) = &mut *self.work.borrow_mut()
            && let Some(panic) = panic.take()
        {
            // The runtime's business, as in any task.
            resume_unwind(panic);
        }
        polled
    }

    /// Polls the future, unless that is what this is called from.
    fn poll(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        let Ok(mut work) = self.work.try_borrow_mut() else { return Poll::Pending };
        let Work::Goes(future) = &mut *work else { return Poll::Ready(()) };
        // A panic is that of one subchannel, not of the dispatcher.
        let panic = match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx))) {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(())) => None,
            Err(panic) => Some(panic),
        };
        let over = std::mem::replace(&mut *work, Work::Over(panic));
        drop((work, over));
        Poll::Ready(())
    }

    /// Remembers a ring that was waited for but not answered.
    pub(super) fn keep(&self) {
        self.rung.set(true);
    }

    /// Waits until rung since the last time. Whoever rings polls the future.
    pub(super) fn poll_rung(&self) -> Poll<()> {
        match self.rung.replace(false) {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    }

    /// HALT or CLEAR was submitted.
    pub(super) fn push_urgent(&self, urgent: Urgent) {
        self.urgent.borrow_mut().push_back(urgent);
        self.has_urgent.set(true);
    }

    #[inline]
    pub(super) fn has_urgent(&self) -> bool {
        self.has_urgent.get()
    }

    /// The first HALT or CLEAR that overtakes a start of this epoch.
    pub(super) fn overtakes(&self, epoch: u32) -> Option<Function> {
        let urgent = self.urgent.borrow();
        urgent.iter().find(|urgent| urgent.is_after(epoch)).map(|urgent| urgent.function)
    }

    /// HALT or CLEAR that comes next.
    pub(super) fn first_urgent(&self) -> Option<Function> {
        self.urgent.borrow().front().map(|urgent| urgent.function)
    }

    pub(super) fn take_urgent(&self) -> Option<Urgent> {
        let mut urgent = self.urgent.borrow_mut();
        let first = urgent.pop_front();
        self.has_urgent.set(!urgent.is_empty());
        first
    }

    /// It is to come to rest.
    pub(super) fn be_restless(&self) {
        self.rests.set(false);
    }

    /// It is at rest; whether that is news.
    pub(super) fn comes_to_rest(&self) -> bool {
        !self.rests.replace(true)
    }

    /// Somebody wants to know what it consists of.
    pub(super) fn ask(&self, answer: mpsc::Sender<SavedTask>) {
        *self.save.borrow_mut() = Some(answer);
    }

    /// Who wants to know what it consists of.
    pub(super) fn take_question(&self) -> Option<mpsc::Sender<SavedTask>> {
        self.save.borrow_mut().take()
    }

    /// Something that tasks keep up with has changed.
    pub(super) fn tell_news(&self) {
        self.has_news.set(true);
        self.ring();
    }

    /// Whether something has changed since this was last asked.
    #[inline]
    pub(super) fn take_news(&self) -> bool {
        self.has_news.get() && self.has_news.replace(false)
    }

    /// Says where the next request will lie, before waiting for it.
    pub(super) fn expect(&self, next_entry: Lines) {
        self.next_entry.set(next_entry);
    }

    /// Asks for the next request's cache lines: [`Runner::ring`] will need them.
    #[inline]
    pub(super) fn prefetch(&self) {
        self.next_entry.get().prefetch();
    }

    /// Says where its device is.
    pub(super) fn works_with(&self, device: [Lines; 2]) {
        self.device.set(device);
    }

    /// Asks for what [`Runner::ring`] will work with.
    #[inline]
    pub(super) fn prefetch_work(&self) {
        if let Ok(work) = self.work.try_borrow()
            && let Work::Goes(future) = &*work
        {
            Lines::of(&**future).prefetch();
        }
        for lines in self.device.get() {
            lines.prefetch();
        }
        self.shared_lines.prefetch_to_read();
    }
}

/// Ends the future with its task, also where the runtime drops that.
struct Cancelled(Rc<Runner>);

impl Drop for Cancelled {
    fn drop(&mut self) {
        if let Ok(mut work) = self.0.work.try_borrow_mut() {
            let over = std::mem::replace(&mut *work, Work::Over(None));
            drop((work, over));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::Notify;
    use tokio::task::{LocalSet, yield_now};

    fn on_a_shard(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(LocalSet::new().run_until(test));
    }

    /// Counts rings, and waits for something else in between.
    async fn count(runner: Rc<Runner>, seen: Rc<Cell<u32>>, other: Rc<Notify>) {
        while seen.get() < 4 {
            poll_fn(|_| runner.poll_rung()).await;
            seen.set(seen.get() + 1);
            if seen.get() == 3 {
                other.notified().await;
            }
        }
    }

    #[test]
    fn the_future_runs_where_it_is_rung_for_and_in_its_task_where_it_waits() {
        on_a_shard(async {
            let (runner, seen) = (Runner::of(Weak::new(), Lines::default()), Rc::new(Cell::new(0)));
            let other = Rc::new(Notify::new());
            runner.spawn(count(runner.clone(), seen.clone(), other.clone()));
            runner.ring();
            assert_eq!(seen.get(), 0, "its task has not started");
            yield_now().await;
            assert_eq!(seen.get(), 1);
            runner.ring();
            assert_eq!(seen.get(), 2, "here and now");
            runner.ring();
            assert_eq!(seen.get(), 3);
            runner.ring();
            assert_eq!(seen.get(), 3, "it waits for something else");
            other.notify_one();
            while seen.get() < 4 {
                yield_now().await;
            }
            assert!(matches!(*runner.work.borrow(), Work::Over(None)));
            runner.ring();
            yield_now().await;
            assert_eq!((seen.get(), Rc::strong_count(&seen)), (4, 1), "the future is dropped");
        });
    }

    #[test]
    fn a_panic_stays_in_its_task() {
        on_a_shard(async {
            let runner = Runner::of(Weak::new(), Lines::default());
            let own = runner.clone();
            runner.spawn(async move {
                poll_fn(|_| own.poll_rung()).await;
                poll_fn(|_| own.poll_rung()).await;
                panic!("of the subchannel");
            });
            yield_now().await;
            runner.ring();
            assert!(matches!(*runner.work.borrow(), Work::Over(Some(_))), "not of who rang");
            yield_now().await;
            yield_now().await;
            assert!(matches!(*runner.work.borrow(), Work::Over(None)), "the task has it");
            runner.ring();
        });
    }

    #[test]
    fn a_future_goes_with_its_runtime() {
        let (runner, alive) = (Runner::of(Weak::new(), Lines::default()), Rc::new(()));
        let guard = alive.clone();
        on_a_shard(async {
            runner.spawn(async move {
                std::future::pending::<()>().await;
                drop(guard);
            });
            yield_now().await;
        });
        assert_eq!(Rc::strong_count(&alive), 1);
    }
}
