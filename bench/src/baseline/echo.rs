//! `null-translate`: requests go through a submission ring to a thread, which sends each back at once through a completion
//! ring. Nothing is translated, pinned or started: what is left is what the rings and the switch between threads cost.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::retry_on_intr;
use vfio_ccw::WaitStrategy;
use vfio_ccw::architecture::Orb;
use vfio_ccw_load::{Completion, Engine, EngineError, Request};
use vfio_ccw_pinning::GuestMap;
use vfio_ccw_queues::completion::{self, CompletionReceiver, CompletionSender};
use vfio_ccw_queues::doorbell::Doorbell;
use vfio_ccw_queues::submission::{self, Intake, Submitter};

use super::sync_loop::nowhere;

/// Looks at an empty ring before the thread sleeps: some 50 µs, as the service's shards do.
const LOOKS: u32 = 2000;

/// Bytes of an interruption-response block as the service delivers it, without the logout.
const IRB: usize = 64;

/// A request on its way there.
#[derive(Debug, Clone, Copy)]
struct Start {
    slot: usize,
    orb: Orb,
}

/// And back.
#[derive(Debug, Clone, Copy)]
struct End {
    slot: usize,
    /// As large as an answer is; nobody looks at it.
    _irb: [u8; IRB],
}

/// A thread that answers, and the rings between it and this one.
#[derive(Debug)]
pub struct Echo {
    memory: Arc<GuestMap>,
    orbs: Vec<Orb>,
    starts: Submitter<Start>,
    ends: CompletionReceiver<End>,
    door: Arc<Doorbell>,
    ending: Arc<AtomicBool>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Echo {
    /// One with a slot for each of `orbs`; its threads wait by `wait`.
    ///
    /// # Errors
    /// Where the kernel refuses a descriptor or a thread.
    pub fn new(memory: Arc<GuestMap>, orbs: Vec<Orb>, wait: WaitStrategy) -> io::Result<Self> {
        let capacity = orbs.len().next_power_of_two().max(2);
        let (starts, intake) = submission::ring(capacity);
        let (answers, mut ends) = completion::ring(capacity)?;
        ends.wait_by(wait.on_this_machine());
        let door = Arc::new(Doorbell::new(1)?);
        let ending = Arc::new(AtomicBool::new(false));
        let looks = if wait.on_this_machine() == WaitStrategy::Sleep { 0 } else { LOOKS };
        let thread = std::thread::Builder::new().name("echo".into()).spawn({
            let (door, ending) = (door.clone(), ending.clone());
            move || answer(intake, &answers, &door, &ending, looks)
        })?;
        Ok(Self { memory, orbs, starts, ends, door, ending, thread: Some(thread) })
    }
}

/// Sends everything back until it is told to end.
fn answer(
    mut intake: Intake<Start>,
    answers: &CompletionSender<End>,
    door: &Doorbell,
    ending: &AtomicBool,
    looks: u32,
) -> io::Result<()> {
    let mut looked = 0;
    loop {
        door.drain(|_| {});
        let taken = intake.pop_burst(usize::MAX, |start| {
            std::hint::black_box(start.orb);
            answers.push(End { slot: start.slot, _irb: [0; IRB] });
        });
        if taken > 0 {
            answers.notify();
            looked = 0;
        } else if looked < looks {
            looked += 1;
            std::hint::spin_loop();
        } else {
            // Acquire: pairs with the Release in `drop`, which rings after it.
            if ending.load(Ordering::Acquire) {
                return Ok(());
            }
            if door.prepare_sleep() {
                let mut fds = [PollFd::new(door, PollFlags::IN)];
                let slept = retry_on_intr(|| poll(&mut fds, None));
                door.awake();
                slept?;
            }
            looked = 0;
        }
    }
}

impl Engine for Echo {
    fn slots(&self) -> usize {
        self.orbs.len()
    }

    fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError> {
        for request in requests {
            let start = Start { slot: request.slot, orb: self.orbs[request.slot] };
            if self.starts.push(start).is_err() {
                // A slot has one request at most, and the ring room for all slots.
                return Err(EngineError::Closed { reason: "the submission ring is full".into() });
            }
        }
        self.door.ring(0);
        Ok(())
    }

    fn reap(
        &mut self,
        done: &mut Vec<Completion>,
        wait: Option<Duration>,
    ) -> Result<(), EngineError> {
        let mut take = |ends: &mut CompletionReceiver<End>| {
            let push = |end: End| done.push(Completion { slot: end.slot, outcome: Ok(()) });
            ends.pop_burst(usize::MAX, push)
        };
        if take(&mut self.ends) == 0 && wait.is_some() {
            self.ends.wait(wait)?;
            take(&mut self.ends);
        }
        Ok(())
    }

    fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        if self.memory.write(gpa, bytes) { Ok(()) } else { Err(nowhere(gpa, bytes.len())) }
    }

    fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        if self.memory.read(gpa, bytes) { Ok(()) } else { Err(nowhere(gpa, bytes.len())) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        // Release: pairs with the Acquire in the thread.
        self.ending.store(true, Ordering::Release);
        self.door.ring(0);
        if let Some(thread) = self.thread.take() {
            // Its errors would have shown as requests that are lost.
            drop(thread.join());
        }
    }
}
