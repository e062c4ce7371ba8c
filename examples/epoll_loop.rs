//! A VMM's own event loop, with epoll and without an async runtime: completion rings and interrupts of
//! devices beside whatever else it waits for. Run it with `cargo run --example epoll_loop`.

use std::error::Error;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use vfio_ccw::architecture::{Ccw, Orb, command};
use vfio_ccw::{Cc, Completions, Delivery, DeviceSpec, Service, Subchannel};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Where the guest has put its channel program.
const PROGRAM: u32 = 0x1000;

/// Programs of each disk.
const ROUNDS: u64 = 1000;

/// What the loop waits for.
const RING: u64 = 0;
const INTERRUPT: u64 = 1;
const QUIT: u64 = 2;

fn main() -> Result<(), Box<dyn Error>> {
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)])?);
    let program = Ccw::new(command::READ_IPL, 0x10_0000, 512);
    memory.write_slice(&program.to_format_1(), GuestAddress(PROGRAM.into()))?;

    let service = Service::builder().build(memory)?;
    // One disk that completes to a ring, one that interrupts through an eventfd.
    let (delivery, completions) = Completions::ring(64)?;
    let by_ring = service.attach(DeviceSpec::Null, delivery)?;
    let interrupt = EventFd::new(libc::EFD_NONBLOCK)?;
    let delivery = Delivery::interrupt(interrupt.try_clone()?);
    let by_instruction = service.attach(DeviceSpec::Null, delivery)?;
    let quit = EventFd::new(0)?;

    let epoll = Epoll::new()?;
    let descriptors = [
        (completions.as_raw_fd(), RING),
        (interrupt.as_raw_fd(), INTERRUPT),
        (quit.as_raw_fd(), QUIT),
    ];
    for (descriptor, token) in descriptors {
        let event = EpollEvent::new(EventSet::IN, token);
        epoll.ctl(ControlOperation::Add, descriptor, event)?;
    }
    let mut vmm = Vmm { by_ring, by_instruction, completions, interrupt, quit, ended: [0; 2] };
    vmm.run(&epoll)
}

struct Vmm {
    by_ring: Subchannel,
    by_instruction: Subchannel,
    completions: Completions,
    interrupt: EventFd,
    quit: EventFd,
    /// Programs of each disk that have ended.
    ended: [u64; 2],
}

impl Vmm {
    fn run(&mut self, epoll: &Epoll) -> Result<(), Box<dyn Error>> {
        // In a VMM this is what vCPUs do.
        self.by_ring.submit(&Orb::new(PROGRAM), 0)?;
        assert_eq!(self.by_instruction.ssch(&Orb::new(PROGRAM))?, Cc::Cc0);

        let mut events = vec![EpollEvent::default(); 8];
        loop {
            // Armed, the descriptor becomes readable with the next completion: one write for each time.
            // Where there are completions already, there is no need to sleep.
            let timeout = if self.completions.arm() { -1 } else { 0 };
            let count = epoll.wait(timeout, &mut events)?;
            self.reap()?;
            for event in &events[..count] {
                match event.data() {
                    RING => {}
                    INTERRUPT => self.serve_interrupt()?,
                    QUIT => {
                        println!("{} and {} programs have ended", self.ended[0], self.ended[1]);
                        return Ok(());
                    }
                    other => unreachable!("token {other}"),
                }
            }
        }
    }

    fn reap(&mut self) -> Result<(), Box<dyn Error>> {
        let mut count = 0;
        self.completions.reap(usize::MAX, |completion| {
            assert!(completion.irb.scsw.is_clean_end(), "{completion:?}");
            count += 1;
        });
        for _ in 0..count {
            self.ended[0] += 1;
            if self.ended[0] < ROUNDS {
                self.by_ring.submit(&Orb::new(PROGRAM), self.ended[0])?;
            }
        }
        self.end_if_done()
    }

    fn serve_interrupt(&mut self) -> Result<(), Box<dyn Error>> {
        self.interrupt.read()?;
        let (cc, irb) = self.by_instruction.tsch();
        assert!(cc == Cc::Cc0 && irb.scsw.is_clean_end(), "{irb:?}");
        self.ended[1] += 1;
        if self.ended[1] < ROUNDS {
            assert_eq!(self.by_instruction.ssch(&Orb::new(PROGRAM))?, Cc::Cc0);
        }
        self.end_if_done()
    }

    fn end_if_done(&self) -> Result<(), Box<dyn Error>> {
        if self.ended == [ROUNDS; 2] {
            self.quit.write(1)?;
        }
        Ok(())
    }
}
