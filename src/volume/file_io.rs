//! File I/O from a shard, whichever way this machine allows.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::channel_subsystem::DmaSpace;

use super::workers::{Job, Ticket, Workers};
use super::{Direction, Fixed, Spans, uring};

/// A device's way to its volume. One transfer at a time.
#[derive(Debug)]
pub(crate) struct FileIo {
    way: Way,
    /// Tried first, where frames are pinned by registration.
    fixed: Option<Rc<Fixed>>,
    in_flight: Rc<Cell<usize>>,
    /// Lent to the transfer while one runs.
    spans: Option<Box<Spans>>,
}

#[derive(Debug)]
enum Way {
    /// The shard's tokio-uring runtime.
    Uring,
    /// A try on the shard, then a thread that may block.
    Workers(Arc<Workers>, Ticket),
}

impl FileIo {
    /// `workers`: where there is no tokio-uring runtime. `in_flight` counts the transfers of the
    /// shard that wait for the kernel.
    pub(crate) fn new(
        spans: Box<Spans>,
        workers: Option<Arc<Workers>>,
        in_flight: Rc<Cell<usize>>,
    ) -> Self {
        let way = match workers {
            Some(workers) => {
                let ticket = workers.ticket();
                Way::Workers(workers, ticket)
            }
            None => Way::Uring,
        };
        FileIo { way, fixed: None, in_flight, spans: Some(spans) }
    }

    /// Moves what lies in one registered frame through `fixed`.
    pub(crate) fn with_fixed(mut self, fixed: Option<Rc<Fixed>>) -> Self {
        self.fixed = fixed;
        self
    }

    /// The memory of the next transfer.
    ///
    /// # Errors
    ///
    /// A transfer was abandoned and still has it.
    pub(crate) fn spans(&mut self) -> io::Result<&mut Spans> {
        self.spans.as_deref_mut().ok_or_else(|| io::Error::from(io::ErrorKind::ResourceBusy))
    }

    /// The memory that transfers reach from now on. An abandoned one keeps its own.
    pub(crate) fn see(&mut self, memory: &Arc<DmaSpace>) {
        if let Some(spans) = &mut self.spans {
            spans.see(memory.clone());
        }
    }

    /// Moves all of the spans from or to `offset` in the file.
    ///
    /// # Errors
    ///
    /// What the system said; `UnexpectedEof` where the file has become shorter.
    pub(crate) async fn transfer(
        &mut self,
        direction: Direction,
        mut offset: u64,
    ) -> io::Result<()> {
        while self.spans()?.bytes() > 0 {
            let moved = self.some(Job::Transfer(direction), offset).await?;
            if moved == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.spans()?.advance(moved);
            offset += moved as u64;
        }
        Ok(())
    }

    /// Makes `bytes` bytes from `offset` read as zeros.
    ///
    /// # Errors
    ///
    /// What the system said, such as `Unsupported` where the file system cannot punch holes.
    pub(crate) async fn zero(&mut self, offset: u64, bytes: u64) -> io::Result<()> {
        self.some(Job::Zero(bytes), offset).await.map(drop)
    }

    /// One operation of the kernel, which may move less than all.
    async fn some(&mut self, job: Job, offset: u64) -> io::Result<usize> {
        let mut spans =
            self.spans.take().ok_or_else(|| io::Error::from(io::ErrorKind::ResourceBusy))?;
        if let Job::Transfer(direction) = job {
            let moved;
            (moved, spans) = self.straight(spans, direction, offset).await;
            if let Some(moved) = moved {
                self.spans = Some(spans);
                return moved;
            }
        }
        if let (Way::Workers(..), Job::Transfer(Direction::Read)) = (&self.way, job)
            && let Some(moved) = spans.read_without_blocking(offset)
        {
            self.spans = Some(spans);
            return moved;
        }
        let _counted = Counted::new(&self.in_flight);
        let (result, spans) = match &self.way {
            Way::Uring => uring::run(spans, job, offset).await,
            Way::Workers(workers, ticket) => workers.run(ticket, spans, job, offset).await,
        };
        self.spans = Some(spans);
        result
    }

    /// Through the ring for registered frames; `None` where the plain path has to do it.
    async fn straight(
        &self,
        spans: Box<Spans>,
        direction: Direction,
        offset: u64,
    ) -> (Option<io::Result<usize>>, Box<Spans>) {
        let Some(fixed) = &self.fixed else {
            return (None, spans);
        };
        let passage = match fixed.start(spans, direction, offset) {
            Ok(passage) => passage,
            Err(spans) => return (None, spans),
        };
        let _counted = Counted::new(&self.in_flight);
        match passage.await {
            // The frame was unpinned after its slot was found. The memory is there all the same,
            // and the plain path needs no slot.
            (Err(error), spans) if error.raw_os_error() == Some(libc::EFAULT) => (None, spans),
            (moved, spans) => (Some(moved), spans),
        }
    }
}

/// Counts a transfer while it runs, also when it is abandoned.
struct Counted<'a>(&'a Cell<usize>);

impl<'a> Counted<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Counted(count)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
