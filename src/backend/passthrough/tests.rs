use std::future::poll_fn;

use parking_lot::Mutex;

use super::*;
use crate::architecture::{Crw, Schib};

/// A driver that answers as it is told to, and of which the tests are the channel.
#[derive(Debug, Default)]
struct Driver(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    eventfd: Option<EventFd>,
    irb: IrbHead,
    /// What writes of the I/O region and of the command region give; after these, all goes well.
    starts: VecDeque<i32>,
    commands: VecDeque<i32>,
    schib: Option<Schib>,
    is_lost: bool,
    /// What the driver has taken.
    taken: Vec<&'static str>,
}

impl Driver {
    /// Answers with these errnos, 0 for success, to what is asked next.
    fn answering(starts: &[i32], commands: &[i32]) -> Arc<Self> {
        let driver = Driver::default();
        driver.0.lock().starts.extend(starts);
        driver.0.lock().commands.extend(commands);
        Arc::new(driver)
    }

    /// The channel has status.
    fn interrupt(&self, irb: &IrbHead) {
        let mut state = self.0.lock();
        state.irb = *irb;
        state.eventfd.as_ref().unwrap().write(1).unwrap();
    }

    fn taken(&self) -> Vec<&'static str> {
        self.0.lock().taken.clone()
    }
}

fn result(errno: Option<i32>) -> Result<(), Errno> {
    match errno {
        None | Some(0) => Ok(()),
        Some(errno) => Err(Errno(errno)),
    }
}

impl Regions for Driver {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn has(&self, irq: Irq) -> bool {
        irq == Irq::Io
    }

    fn set_eventfd(&self, _irq: Irq, eventfd: Option<&EventFd>) -> Result<(), Errno> {
        self.0.lock().eventfd = eventfd.map(|eventfd| eventfd.try_clone().unwrap());
        Ok(())
    }

    fn write_io(&self, region: &IoRegion) -> Result<(), Errno> {
        let mut state = self.0.lock();
        // As the driver: also where the start is refused.
        state.irb = region.irb.head;
        let errno = state.starts.pop_front();
        result(errno)?;
        state.taken.push("start");
        Ok(())
    }

    fn read_irb(&self) -> Result<IrbHead, Errno> {
        Ok(self.0.lock().irb)
    }

    fn write_command(&self, function: Function) -> Result<(), Errno> {
        let mut state = self.0.lock();
        let errno = state.commands.pop_front();
        result(errno)?;
        state.taken.push(if function == Function::Halt { "halt" } else { "clear" });
        Ok(())
    }

    fn read_schib(&self) -> Result<Schib, Errno> {
        let state = self.0.lock();
        if state.is_lost { Err(Errno::NO_DEVICE) } else { Ok(state.schib.unwrap_or_default()) }
    }

    fn read_crw(&self) -> Result<Crw, Errno> {
        Ok(Crw::default())
    }

    fn reset(&self) -> Result<(), Errno> {
        self.0.lock().taken.push("reset");
        Ok(())
    }
}

type Device = Passthrough<Driver>;

fn on_a_shard(test: impl AsyncFnOnce()) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(test());
}

fn device(driver: &Arc<Driver>) -> Device {
    Passthrough::new(driver.clone(), Rc::new(Host::default())).unwrap()
}

fn start(device: &mut Device) -> Result<(), Errno> {
    device.start(&Orb::new(0x1000), Entry::Start)
}

/// Waits for the end of the program; with what it said before.
async fn end(device: &mut Device) -> (Result<(), Errno>, Vec<IrbHead>) {
    let mut said = Vec::new();
    let ended = poll_fn(|cx| device.poll_interrupt(cx, false, &mut |irb| said.push(irb))).await;
    (ended, said)
}

/// Lets the device look once, and the runtime hear of signals.
async fn step(device: &mut Device) -> Poll<Result<(), Errno>> {
    tokio::task::yield_now().await;
    poll_fn(|cx| Poll::Ready(device.poll_interrupt(cx, false, &mut |_| {}))).await
}

async fn perform(device: &mut Device, function: Function) {
    poll_fn(|cx| device.poll_function(cx, function)).await;
}

/// Unsolicited status that comes while nothing runs, of which `take` can be told.
async fn idle(device: &mut Device, take: usize) -> Vec<IrbHead> {
    let mut told = Vec::new();
    tokio::task::yield_now().await;
    poll_fn(|cx| {
        device.poll_idle(cx, &mut |irb| {
            let takes = told.len() < take;
            if takes {
                told.push(*irb);
            }
            takes
        });
        Poll::Ready(())
    })
    .await;
    told
}

fn irb(word0: u32, device: DeviceStatus) -> IrbHead {
    let scsw = Scsw::new(ScswFlags::from_bits_retain(word0));
    IrbHead { scsw: scsw.with_status(device, SubchannelStatus::empty(), 0), ..IrbHead::default() }
}

/// What the driver was seen to give: the end of a program, of a halt, of a clear, a key pressed.
fn ended() -> IrbHead {
    irb(0x0080_4007, DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END)
}

fn halted() -> IrbHead {
    irb(0x0080_2001, DeviceStatus::empty())
}

fn cleared() -> IrbHead {
    irb(0x0080_1001, DeviceStatus::empty())
}

fn attention() -> IrbHead {
    irb(0x0080_0011, DeviceStatus::ATTENTION)
}

#[test]
fn a_program_ends_with_its_irb() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        for _ in 0..3 {
            start(&mut device).unwrap();
            assert!(step(&mut device).await.is_pending());
            driver.interrupt(&ended());
            assert_eq!(end(&mut device).await, (Ok(()), vec![]));
            assert_eq!(device.irb(), Ok(ended()));
        }
        assert_eq!(driver.taken(), ["start"; 3]);
    });
}

#[test]
fn what_passes_is_tried_again() {
    on_a_shard(async || {
        let passing = [[libc::EAGAIN; 20], [libc::EBUSY; 20]].concat();
        let driver = Driver::answering(&passing, &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        let channel = driver.clone();
        let waits = async {
            while driver.taken().is_empty() {
                tokio::task::yield_now().await;
            }
            channel.interrupt(&ended());
        };
        let (ended, ()) = side_by_side(end(&mut device), waits).await;
        assert_eq!(ended.0, Ok(()));
        assert_eq!(driver.taken(), ["start"], "once");
    });
}

/// Both, side by side.
async fn side_by_side<A, B>(a: impl Future<Output = A>, b: impl Future<Output = B>) -> (A, B) {
    let (mut a, mut b) = (Box::pin(a), Box::pin(b));
    let (mut got_a, mut got_b) = (None, None);
    poll_fn(move |cx| {
        if got_a.is_none()
            && let Poll::Ready(a) = a.as_mut().poll(cx)
        {
            got_a = Some(a);
        }
        if got_b.is_none()
            && let Poll::Ready(b) = b.as_mut().poll(cx)
        {
            got_b = Some(b);
        }
        match (got_a.take(), got_b.take()) {
            (Some(a), Some(b)) => Poll::Ready((a, b)),
            (a, b) => {
                (got_a, got_b) = (a, b);
                Poll::Pending
            }
        }
    })
    .await
}

#[test]
fn refusals_say_why() {
    on_a_shard(async || {
        let errors =
            [libc::EINVAL, libc::EIO, libc::ENODEV, libc::EACCES, libc::EAGAIN, libc::EFAULT];
        let driver = Driver::answering(&errors, &[]);
        let mut device = device(&driver);
        assert_eq!(start(&mut device), Err(Errno(libc::EINVAL)));
        assert_eq!(start(&mut device), Err(Errno::NO_DEVICE), "EIO: the driver has lost it");
        assert_eq!(start(&mut device), Err(Errno::NO_DEVICE));
        assert_eq!(start(&mut device), Err(Errno(libc::EACCES)));
        assert_eq!(start(&mut device), Ok(()));
        assert_eq!(end(&mut device).await.0, Err(Errno(libc::EFAULT)), "at the second try");
        assert_eq!(start(&mut device), Ok(()), "and then it works");
    });
}

#[test]
fn a_late_signal_is_no_end() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        driver.interrupt(&ended());
        assert_eq!(end(&mut device).await.0, Ok(()));
        driver.0.lock().eventfd.as_ref().unwrap().write(1).unwrap();
        start(&mut device).unwrap();
        assert!(step(&mut device).await.is_pending(), "the IRB was wiped by the start");
        assert!(step(&mut device).await.is_pending());
        driver.interrupt(&ended());
        assert_eq!(end(&mut device).await.0, Ok(()));
    });
}

#[test]
fn channel_end_and_device_end_are_told_as_one() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        // PCI, then channel end alone, both while the device is active.
        driver.interrupt(&irb(0x0080_40c9, DeviceStatus::empty()));
        let mut said = Vec::new();
        tokio::task::yield_now().await;
        poll_fn(|cx| Poll::Ready(device.poll_interrupt(cx, false, &mut |irb| said.push(irb))))
            .await
            .is_pending();
        assert_eq!(said.len(), 1);
        let mut channel_end = irb(0x0080_4045, DeviceStatus::CHANNEL_END);
        channel_end.scsw = channel_end.scsw.with_cpa(0x1010).with_status(
            DeviceStatus::CHANNEL_END,
            SubchannelStatus::empty(),
            7,
        );
        driver.interrupt(&channel_end);
        assert!(step(&mut device).await.is_pending());
        driver.interrupt(&irb(0x0080_4003, DeviceStatus::DEVICE_END));
        assert_eq!(end(&mut device).await.0, Ok(()));
        let scsw = device.irb().unwrap().scsw;
        assert!(scsw.is_clean_end(), "{scsw:?}");
        assert_eq!((scsw.cpa(), scsw.count()), (0x1010, 7));
        assert!(scsw.flags().contains(ScswFlags::PRIMARY | ScswFlags::SECONDARY));
    });
}

#[test]
fn a_halt_ends_the_program_and_is_performed_once() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[libc::EAGAIN]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        device.stop(Function::Halt);
        assert!(step(&mut device).await.is_pending());
        assert!(step(&mut device).await.is_pending());
        assert_eq!(driver.taken(), ["start", "halt"], "at the second try");
        driver.interrupt(&halted());
        assert_eq!(end(&mut device).await.0, Ok(()));
        perform(&mut device, Function::Halt).await;
        assert_eq!(driver.taken(), ["start", "halt"]);
    });
}

#[test]
fn a_halt_that_comes_too_late_is_performed_afterwards() {
    on_a_shard(async || {
        // EBUSY: the program's own status is pending.
        let driver = Driver::answering(&[], &[libc::EBUSY]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        device.stop(Function::Halt);
        assert!(step(&mut device).await.is_pending());
        driver.interrupt(&ended());
        assert_eq!(end(&mut device).await.0, Ok(()));
        assert_eq!(device.irb(), Ok(ended()));
        let channel = driver.clone();
        let waits = async {
            while !driver.taken().contains(&"halt") {
                tokio::task::yield_now().await;
            }
            channel.interrupt(&halted());
        };
        side_by_side(perform(&mut device, Function::Halt), waits).await;
        assert_eq!(driver.taken(), ["start", "halt"]);
    });
}

#[test]
fn the_next_program_waits_for_the_end_of_a_function() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        device.stop(Function::Clear);
        assert!(step(&mut device).await.is_pending());
        assert_eq!(driver.taken(), ["start", "clear"]);
        // The program has ended by itself before the clear function.
        driver.interrupt(&ended());
        assert_eq!(end(&mut device).await.0, Ok(()));
        start(&mut device).unwrap();
        assert!(step(&mut device).await.is_pending());
        assert_eq!(driver.taken(), ["start", "clear"], "its IRB would be taken for the program's");
        driver.interrupt(&cleared());
        assert!(step(&mut device).await.is_pending());
        assert_eq!(driver.taken(), ["start", "clear", "start"]);
        driver.interrupt(&ended());
        assert_eq!(end(&mut device).await.0, Ok(()));
    });
}

#[test]
fn a_program_that_could_not_begin_is_never_started_once_it_is_halted() {
    on_a_shard(async || {
        let driver = Driver::answering(&[libc::EBUSY; 4], &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        device.stop(Function::Halt);
        assert_eq!(end(&mut device).await.0, Err(Errno::CANCELED));
        assert!(driver.taken().is_empty());
    });
}

#[test]
fn unsolicited_status_is_told_when_it_can_be() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        driver.interrupt(&attention());
        assert!(idle(&mut device, 0).await.is_empty());
        assert_eq!(idle(&mut device, 9).await, [attention()]);
        assert!(idle(&mut device, 9).await.is_empty(), "once");
        driver.interrupt(&attention());
        assert_eq!(idle(&mut device, 9).await, [attention()], "the same status once more");
        // It comes between two programs, and nobody has looked.
        driver.interrupt(&attention());
        start(&mut device).unwrap();
        driver.interrupt(&ended());
        assert_eq!(end(&mut device).await.0, Ok(()));
        assert_eq!(idle(&mut device, 9).await, [attention()]);
        // It comes while a program runs.
        driver.0.lock().schib =
            Some(Schib { scsw: Scsw::new(ScswFlags::START_FUNCTION), ..Schib::default() });
        start(&mut device).unwrap();
        driver.interrupt(&attention());
        assert!(step(&mut device).await.is_pending());
        driver.interrupt(&ended());
        assert_eq!(end(&mut device).await.0, Ok(()));
        assert_eq!(idle(&mut device, 9).await, [attention()]);
    });
}

#[test]
fn status_that_was_overwritten_is_not_waited_for() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        // Two IRBs, of which the second is found. The subchannel has no start function any more.
        driver.interrupt(&ended());
        driver.interrupt(&attention());
        assert_eq!(end(&mut device).await.0, Err(Errno(libc::EPROTO)));
        assert_eq!(driver.taken(), ["start", "reset"], "nobody touches its pages");
        assert_eq!(idle(&mut device, 9).await, [attention()]);
        start(&mut device).unwrap();
        driver.interrupt(&ended());
        assert_eq!(end(&mut device).await.0, Ok(()));
    });
}

#[test]
fn a_device_that_is_gone_has_nothing_left_to_wait_for() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        assert!(step(&mut device).await.is_pending());
        device.host.lose();
        assert_eq!(end(&mut device).await.0, Err(Errno::NO_DEVICE));
        assert_eq!(start(&mut device), Err(Errno::NO_DEVICE));
        perform(&mut device, Function::Clear).await;
        assert_eq!(driver.taken(), ["start"], "nothing more is asked of it");
    });
}

#[test]
fn a_program_without_an_end_does_not_keep_its_device() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        device.release = Some(Instant::now());
        let channel = driver.clone();
        let waits = async {
            while !driver.taken().contains(&"clear") {
                tokio::task::yield_now().await;
            }
            channel.interrupt(&cleared());
        };
        let (ended, ()) = side_by_side(end(&mut device), waits).await;
        assert_eq!(ended.0, Ok(()));
    });
}

#[test]
fn a_function_whose_end_was_never_signalled_is_not_waited_for() {
    on_a_shard(async || {
        let driver = Driver::answering(&[], &[]);
        let mut device = device(&driver);
        start(&mut device).unwrap();
        device.stop(Function::Clear);
        // Under way still, and then over without an interrupt.
        let clear = Scsw::new(ScswFlags::CLEAR_FUNCTION | ScswFlags::CLEAR_PENDING);
        driver.0.lock().schib = Some(Schib { scsw: clear, ..Schib::default() });
        let channel = driver.clone();
        let waits = async {
            tokio::time::sleep(FUNCTION_LOOK * 2).await;
            assert_eq!(driver.taken(), ["start", "clear"]);
            channel.0.lock().schib = None;
        };
        let (ended, ()) = side_by_side(end(&mut device), waits).await;
        assert_eq!(ended.0, Ok(()));
        perform(&mut device, Function::Clear).await;
        assert_eq!(driver.taken(), ["start", "clear", "reset"]);
    });
}
