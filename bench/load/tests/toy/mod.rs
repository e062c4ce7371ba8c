//! An engine in memory that completes at once, and can be told to do each thing wrong.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use vfio_ccw_load::{Completion, Direction, Engine, EngineError, Failure, Progress, Request, Tick};

/// What to do wrong, by number of the request (from 0, over all slots); one fault each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Never completes.
    Lose,
    /// Completes twice in one reaping.
    Duplicate,
    /// Completes a slot that does not exist as well.
    Phantom,
    /// Completes when the driver has given it up.
    Delay,
    /// Flips a bit of what is written or read.
    Corrupt,
    /// Reads or writes the neighbouring block.
    Misdirect,
    /// Says that it is done, and does nothing.
    Skip,
    /// Transfers the first half and then fails.
    Tear,
}

pub struct Toy {
    slots: usize,
    volume: Vec<u8>,
    memory: RefCell<Vec<u8>>,
    ready: Vec<Completion>,
    delayed: Vec<Completion>,
    /// Set by [`Toy::given_up`]: the driver counts a request as lost.
    given_up: Rc<Cell<bool>>,
    faults: Vec<(u64, Fault)>,
    /// Every n-th request fails with this.
    failing: Option<(u64, Failure)>,
    /// After this many requests the engine as a whole is gone.
    pub dies_after: u64,
    pub requests: Vec<Request>,
}

impl Toy {
    pub fn new(slots: usize, volume_bytes: usize) -> Self {
        Self {
            slots,
            volume: vec![0; volume_bytes],
            memory: RefCell::new(vec![0; slots << 16]),
            ready: Vec::new(),
            delayed: Vec::new(),
            given_up: Rc::default(),
            faults: Vec::new(),
            failing: None,
            dies_after: u64::MAX,
            requests: Vec::new(),
        }
    }

    pub fn with(mut self, number: u64, fault: Fault) -> Self {
        self.faults.push((number, fault));
        self
    }

    pub fn failing(mut self, every: u64, failure: Failure) -> Self {
        self.failing = Some((every, failure));
        self
    }

    /// Watches the job for the toy: tells it when a request counts as lost.
    pub fn given_up(&self) -> GivenUp {
        GivenUp(Rc::clone(&self.given_up))
    }

    fn transfer(&mut self, request: &Request, bytes: usize, shift: usize) {
        let at = (request.offset as usize + shift) % self.volume.len();
        let buffer = request.buffer as usize;
        let mut memory = self.memory.borrow_mut();
        let (guest, volume) =
            (&mut memory[buffer..buffer + bytes], &mut self.volume[at..at + bytes]);
        match request.direction {
            Direction::Read => guest.copy_from_slice(volume),
            Direction::Write => volume.copy_from_slice(guest),
        }
    }

    fn carry_out(&mut self, number: u64, request: &Request) {
        let bytes = request.bytes as usize;
        let done = Completion { slot: request.slot, outcome: Ok(()) };
        if let Some((every, failure)) = self.failing
            && number % every == every - 1
        {
            self.ready.push(Completion { outcome: Err(failure), ..done });
            return;
        }
        let fault = self.faults.iter().find(|(at, _)| *at == number).map(|(_, fault)| *fault);
        match fault {
            Some(Fault::Skip | Fault::Lose | Fault::Delay) => {}
            Some(Fault::Misdirect) => self.transfer(request, bytes, bytes),
            Some(Fault::Tear) => self.transfer(request, bytes / 2, 0),
            _ => self.transfer(request, bytes, 0),
        }
        match fault {
            Some(Fault::Lose) => return,
            Some(Fault::Delay) => return self.delayed.push(done),
            Some(Fault::Duplicate) => self.ready.push(done),
            Some(Fault::Phantom) => {
                self.ready.push(Completion { slot: self.slots, outcome: Ok(()) })
            }
            Some(Fault::Corrupt) if request.direction == Direction::Read => {
                self.memory.borrow_mut()[request.buffer as usize + 300] ^= 4;
            }
            Some(Fault::Corrupt) => self.volume[request.offset as usize + 300] ^= 4,
            Some(Fault::Tear) => {
                return self.ready.push(Completion { outcome: Err(Failure::Abandoned), ..done });
            }
            _ => {}
        }
        self.ready.push(done);
    }
}

/// Sees by the ticks that the driver has given a request up. Time alone would not tell: how far the
/// driver has come when a given time has passed is up to the machine.
pub struct GivenUp(Rc<Cell<bool>>);

impl Progress for GivenUp {
    fn tick(&mut self, tick: &Tick) {
        self.0.set(tick.faults > 0);
    }
}

impl Engine for Toy {
    fn slots(&self) -> usize {
        self.slots
    }

    fn submit(&mut self, requests: &[Request]) -> Result<(), EngineError> {
        for request in requests {
            let number = self.requests.len() as u64;
            if number >= self.dies_after {
                return Err(EngineError::Closed { reason: "the toy is broken".to_owned() });
            }
            self.requests.push(*request);
            self.carry_out(number, request);
        }
        Ok(())
    }

    fn reap(
        &mut self,
        done: &mut Vec<Completion>,
        wait: Option<Duration>,
    ) -> Result<(), EngineError> {
        if self.ready.is_empty()
            && let Some(wait) = wait
        {
            std::thread::sleep(wait);
        }
        if self.given_up.get() {
            self.ready.append(&mut self.delayed);
        }
        done.append(&mut self.ready);
        Ok(())
    }

    fn write_guest(&self, gpa: u64, bytes: &[u8]) -> Result<(), EngineError> {
        let mut memory = self.memory.borrow_mut();
        let gpa_end = gpa as usize + bytes.len();
        let range =
            memory.get_mut(gpa as usize..gpa_end).ok_or_else(|| outside(gpa, bytes.len()))?;
        range.copy_from_slice(bytes);
        Ok(())
    }

    fn read_guest(&self, gpa: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        let memory = self.memory.borrow();
        let gpa_end = gpa as usize + bytes.len();
        bytes.copy_from_slice(
            memory.get(gpa as usize..gpa_end).ok_or_else(|| outside(gpa, bytes.len()))?,
        );
        Ok(())
    }
}

fn outside(gpa: u64, bytes: usize) -> EngineError {
    EngineError::Memory { gpa, bytes, reason: "outside of the toy's memory".to_owned() }
}
