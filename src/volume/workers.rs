//! File operations where there is no io_uring: a try that does not block, then threads that may.
//!
//! The locks are the standard library's: parking_lot's allocate when a thread first has to wait, and
//! nothing here may allocate once it runs.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread::{self, JoinHandle};

use super::{Direction, Spans};

/// Mode of fallocate(2) that makes a range read as zeros and keeps the file's size.
pub(super) const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// What is to be done with the file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Job {
    /// Move the spans.
    Transfer(Direction),
    /// Make this many bytes zeros.
    Zero(u64),
}

/// A few threads that do file operations which may block. Ended by dropping.
#[derive(Debug)]
pub(crate) struct Workers {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Queue {
    state: Mutex<QueueState>,
    ready: Condvar,
}

#[derive(Debug, Default)]
struct QueueState {
    errands: VecDeque<Errand>,
    /// Devices that may have an errand in the queue, one each.
    devices: usize,
    closed: bool,
}

#[derive(Debug)]
struct Errand {
    spans: Box<Spans>,
    job: Job,
    offset: u64,
    ticket: Ticket,
}

/// Where a device waits for its errand. Made once, used for one errand after another.
#[derive(Clone, Debug, Default)]
pub(super) struct Ticket(Arc<Mutex<TicketState>>);

#[derive(Debug, Default)]
struct TicketState {
    done: Option<(io::Result<usize>, Box<Spans>)>,
    waker: Option<Waker>,
}

impl Workers {
    /// Starts `threads` threads.
    ///
    /// # Errors
    ///
    /// The system has no thread to give.
    pub(crate) fn start(threads: usize) -> io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let mut workers = Workers { queue, threads: Vec::new() };
        for index in 0..threads {
            let queue = workers.queue.clone();
            let thread = thread::Builder::new()
                .name(format!("ccw-file-{index}"))
                .spawn(move || queue.work())?;
            workers.threads.push(thread);
        }
        Ok(workers)
    }

    /// A place where one more device waits for its errands. The queue has room for all of them.
    pub(super) fn ticket(&self) -> Ticket {
        let mut state = lock(&self.queue.state);
        state.devices += 1;
        let missing = state.devices.saturating_sub(state.errands.len());
        state.errands.reserve(missing);
        Ticket::default()
    }

    /// Has one operation done.
    pub(super) async fn run(
        &self,
        ticket: &Ticket,
        spans: Box<Spans>,
        job: Job,
        offset: u64,
    ) -> (io::Result<usize>, Box<Spans>) {
        lock(&self.queue.state).errands.push_back(Errand {
            spans,
            job,
            offset,
            ticket: ticket.clone(),
        });
        self.queue.ready.notify_one();
        poll_fn(|cx| {
            let mut state = lock(&ticket.0);
            match state.done.take() {
                Some(done) => Poll::Ready(done),
                None => {
                    state.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        lock(&self.queue.state).closed = true;
        self.queue.ready.notify_all();
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so on its own.
            let _ = thread.join();
        }
    }
}

/// What the locks guard stays whole when a thread panics: every change is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    fn work(&self) {
        loop {
            let mut state = lock(&self.state);
            let errand = loop {
                if let Some(errand) = state.errands.pop_front() {
                    break errand;
                }
                if state.closed {
                    return;
                }
                state = self.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
            };
            drop(state);
            errand.run();
        }
    }
}

impl Errand {
    fn run(self) {
        let result = match self.job {
            Job::Transfer(direction) => self.spans.transfer(direction, self.offset, 0),
            Job::Zero(bytes) => self.spans.zero(self.offset, bytes),
        };
        let waker = {
            let mut state = lock(&self.ticket.0);
            state.done = Some((result, self.spans));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Spans {
    /// Reads what is in the page cache; `None` where it would block or the file cannot tell.
    pub(super) fn read_without_blocking(&self, offset: u64) -> Option<io::Result<usize>> {
        match self.transfer(Direction::Read, offset, libc::RWF_NOWAIT) {
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EAGAIN | libc::EOPNOTSUPP | libc::ENOSYS)
                ) =>
            {
                None
            }
            result => Some(result),
        }
    }

    fn transfer(&self, direction: Direction, offset: u64, flags: i32) -> io::Result<usize> {
        let (fd, list) = (self.volume().as_raw_fd(), self.remaining());
        let offset = libc::off64_t::try_from(offset)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the list and the memory its entries name live in or behind `self` for the call;
        // other writers of that memory are expected, see `HostRange`.
        // Test: `both_directions_move_data`.
        let moved = unsafe {
            match direction {
                Direction::Read => {
                    libc::preadv2(fd, list.as_ptr(), list.len() as i32, offset, flags)
                }
                Direction::Write => {
                    libc::pwritev2(fd, list.as_ptr(), list.len() as i32, offset, flags)
                }
            }
        };
        usize::try_from(moved).map_err(|_| io::Error::last_os_error())
    }

    fn zero(&self, offset: u64, bytes: u64) -> io::Result<usize> {
        let range = libc::off64_t::try_from(offset)
            .and_then(|offset| Ok((offset, libc::off64_t::try_from(bytes)?)));
        let (offset, bytes) = range.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: plain integers and a descriptor that `self` keeps open.
        // Test: `both_directions_move_data`.
        match unsafe { libc::fallocate64(self.volume().as_raw_fd(), PUNCH, offset, bytes) } {
            0 => Ok(0),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::spans::tests::fixture;
    use super::*;
    use crate::volume::FileIo;
    use std::cell::Cell;
    use std::rc::Rc;

    #[test]
    fn both_directions_move_data() {
        let (file, map, spans) = fixture(8);
        let workers = Arc::new(Workers::start(2).unwrap());
        let mut io = FileIo::new(spans, Some(workers), Rc::new(Cell::new(0)));
        let host = map.regions()[0].host();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            map.write(0, &[5; 600]);
            io.spans().unwrap().push(host.part(0, 600).unwrap());
            io.spans().unwrap().push_zeros(424);
            io.transfer(Direction::Write, 1024).await.unwrap();
            io.spans().unwrap().clear();
            io.spans().unwrap().push(host.part(0x2000, 512).unwrap());
            io.spans().unwrap().push(host.part(0x8000, 512).unwrap());
            io.transfer(Direction::Read, 1024).await.unwrap();
            io.zero(1024, 512).await.unwrap();
            io.spans().unwrap().clear();
            io.spans().unwrap().push(host.part(0, 512).unwrap());
            let beyond = io.transfer(Direction::Read, 8 * 512).await.unwrap_err();
            assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
        });
        let mut bytes = [0; 512];
        map.read(0x2000, &mut bytes);
        assert_eq!(bytes, [5; 512]);
        map.read(0x8000, &mut bytes);
        assert_eq!((bytes[87], bytes[88]), (5, 0));
        let file = std::fs::read(file.path()).unwrap();
        assert_eq!((file[1024], file[1536]), (0, 5));
    }
}
