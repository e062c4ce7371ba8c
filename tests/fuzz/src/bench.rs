//! A guest on the bench: a case is translated or not, runs, and everything about it is checked.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use vfio_ccw::SHADOW_IOVA;
use vfio_ccw::architecture::{IrbHead, Orb, OrbFlags};
use vfio_ccw::channel_subsystem::{Device, Entry, Run, execute};
use vfio_ccw::translation::{Program, StorageKeys};
use vfio_ccw_pinning::{FRAME, FRAME_SHIFT, Hold, HostRange, Mode, Pinner, Pool, Stopped, pinner};

use crate::block_on::block_on;
use crate::case::Case;
use crate::guest::{self, Contents, GUEST_BYTES, Guest};
use crate::reachable::Reachable;
use crate::scripted::{Command, Scripted};
use crate::status;

/// Frames of guest memory.
const FRAMES: usize = GUEST_BYTES >> FRAME_SHIFT;
/// Times that a suspended program is resumed.
const RESUMES: usize = 3;
/// S in the flags of a CCW.
const SUSPEND: u8 = 0x02;

/// What a case's program did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Status of CCWs with the PCI flag.
    pub intermediate: Vec<IrbHead>,
    /// Status at each suspension, then at the end if it came to one.
    pub ends: Vec<IrbHead>,
    /// Commands that the device saw.
    pub log: Vec<Command>,
    /// Data was moved from or to the program itself.
    pub touched_program: bool,
    /// Data was stored into the program itself.
    pub stored_program: bool,
    /// Some TIC leads back.
    pub loops: bool,
    /// Some CCW can be reached in several ways.
    pub ambiguous: bool,
    /// There are too many CCWs or segments for default limits.
    pub large: bool,
    /// Guest memory afterwards.
    pub contents: Contents,
}

/// Everything that is made once and used for case after case.
#[derive(Debug)]
pub struct Bench {
    /// Guest memory.
    pub guest: Guest,
    program: Program,
    hold: Hold,
    pool: Pool,
    pinned: Pinned,
}

impl Default for Bench {
    fn default() -> Self {
        let guest = Guest::new();
        let pinned = Pinned::default();
        let pool = Pool::new(guest.map.clone(), Box::new(pinned.clone()), GUEST_BYTES as u64);
        Bench {
            guest,
            program: Program::default(),
            hold: Hold::default(),
            pool: pool.expect("room for the table"),
            pinned,
        }
    }
}

thread_local! {
    /// Never dropped: where a case panics, its frames are held, and that is not what to report.
    static BENCH: RefCell<ManuallyDrop<Bench>> = RefCell::default();
}

impl Bench {
    /// Lends this thread's bench, with clear memory.
    pub fn lend<R>(work: impl FnOnce(&mut Bench) -> R) -> R {
        BENCH.with_borrow_mut(|bench| {
            bench.guest.clear();
            work(bench)
        })
    }

    /// Runs a case with a translated program (ORB.P = 1) and checks it. With `scribble` the guest
    /// overwrites its program as soon as it is started.
    pub fn translated(&mut self, case: &Case, scribble: bool) -> Outcome {
        let orb = case.orb.with_flags(case.orb.flags() | OrbFlags::PREFETCH);
        let Bench { guest, program, hold, pool, pinned } = self;
        let (map, dma, shadow) = (guest.map.clone(), guest.dma.clone(), guest.shadow());
        let judge = |offset: usize, len: usize, stores: bool| {
            judge_keys(case, offset, len, stores);
            let frames =
                guest::frame(offset).start >> FRAME_SHIFT..(offset + len).div_ceil(FRAME as usize);
            for frame in frames {
                assert!(pinned.is_pinned(frame), "frame {frame} is used and not held");
            }
        };
        let mut device = Scripted::new(case.script, case.rules.class, guest, &judge);
        let mut used = 0;
        let outcome = run(case, orb, &mut device, |orb, entry, device, intermediate, reached| {
            program.fetch(orb, &map, &case.rules, hold);
            pool.hold_blocking(hold).expect("the budget is all of memory");
            let bytes = program.bytes();
            used = used.max(bytes);
            // No larger than it must be: what is written behind it is found out.
            let host = shadow.part(0, bytes).expect("so little memory holds no larger program");
            let emitted = program.emit(host, SHADOW_IOVA as u32).expect("room for its bytes");
            device.parameters = if case.extents { bytes } else { 0 };
            let kept = scribble.then(|| reached.scribble(device.guest()));
            let run = Run { orb: emitted, entry, dma: &dma, rules: None, stop: None };
            let irb = start(&run, device, |irb| intermediate.push(program.back_map(irb)));
            if let Some(kept) = kept {
                kept.put_back(device);
            }
            pool.release(hold, Mode::OnDemand);
            assert!(!hold.is_holding() && pool.pinned_bytes() == 0 && pinned.is_empty());
            program.back_map(irb)
        });
        self.guest.check(used);
        outcome
    }

    /// Runs a case whose program the channel reads from guest memory (ORB.P = 0) and checks it.
    pub fn unfetched(&mut self, case: &Case) -> Outcome {
        let orb = case.orb.with_flags(case.orb.flags() - OrbFlags::PREFETCH);
        let guest = &mut self.guest;
        let dma = guest.dma.clone();
        let judge = |offset: usize, len: usize, stores: bool| {
            judge_keys(case, offset, len, stores);
        };
        let mut device = Scripted::new(case.script, case.rules.class, guest, &judge);
        let outcome = run(case, orb, &mut device, |orb, entry, device, intermediate, _| {
            let run = Run { orb: *orb, entry, dma: &dma, rules: Some(&case.rules), stop: None };
            start(&run, device, |irb| intermediate.push(irb))
        });
        self.guest.check(0);
        outcome
    }
}

/// Starts a case, resumes it as the guest wants, and checks every status. `start` runs the program
/// until it ends or is suspended.
fn run<'a>(
    case: &Case,
    mut orb: Orb,
    device: &mut Scripted<'a>,
    mut start: impl FnMut(&Orb, Entry, &mut Scripted<'a>, &mut Vec<IrbHead>, &Reachable) -> IrbHead,
) -> Outcome {
    let mut outcome = Outcome::default();
    let mut entry = Entry::Start;
    loop {
        let reached = Reachable::of(&orb, device.guest());
        let (touches, intermediate) = (device.touches.len(), outcome.intermediate.len());
        let irb = start(&orb, entry, device, &mut outcome.intermediate, &reached);
        outcome.loops |= reached.loops;
        outcome.ambiguous |= reached.ambiguous;
        outcome.large |= reached.cut_off || reached.targets.len() > 40;
        for (offset, len, stores) in &device.touches[touches..] {
            let overlaps = reached.overlaps(*offset, *len);
            outcome.touched_program |= overlaps;
            outcome.stored_program |= overlaps && *stores;
        }
        let fixed = orb.flags().contains(OrbFlags::PREFETCH) || !outcome.stored_program;
        let reached = fixed.then_some(&reached);
        for irb in &outcome.intermediate[intermediate..] {
            status::check_intermediate(&orb, irb, reached);
        }
        status::check_end(&orb, &irb, reached);
        outcome.ends.push(irb);
        let round = outcome.ends.len() - 1;
        let choice = case.resumes >> (2 * round.min(RESUMES)) & 3;
        if !status::is_suspended(&irb) || round == RESUMES || choice == 0 {
            break;
        }
        let suspended = irb.scsw.cpa().wrapping_sub(8);
        if choice == 1 {
            clear_suspend_flag(device.guest(), &orb, suspended);
        }
        orb = orb.with_cpa(suspended);
        entry = Entry::Resume;
    }
    assert!(device.begun <= 1, "a resumed program has begun already");
    outcome.log = std::mem::take(&mut device.log);
    outcome.contents = Contents(device.guest().contents().to_vec());
    outcome
}

fn start(
    run: &Run<'_>,
    device: &mut impl Device,
    mut intermediate: impl FnMut(IrbHead),
) -> IrbHead {
    block_on(execute(run, device, &mut intermediate))
}

/// What Linux's channel programs do before RESUME SUBCHANNEL.
fn clear_suspend_flag(guest: &mut Guest, orb: &Orb, ccw: u32) {
    let flags = u64::from(ccw) + if orb.is_format_1() { 1 } else { 4 };
    if let Some([byte]) = guest.expected(flags) {
        guest.put(flags, &[byte & !SUSPEND]);
    }
}

/// Asserts that the storage keys allow what the device is about to do.
fn judge_keys(case: &Case, offset: usize, len: usize, stores: bool) {
    let Some(keys) = case.keys else { return };
    for offset in [offset, offset + len - 1] {
        let key = keys.key(guest::address(offset));
        let matches = case.orb.key() == 0 || case.orb.key() == key.access;
        let allowed = matches || !stores && !key.fetch_protected;
        assert!(allowed, "{key:?} at {:#x}, stores: {stores}", guest::address(offset));
    }
}

/// A pinner that only knows what is pinned.
#[derive(Clone, Debug, Default)]
struct Pinned(Arc<[AtomicBool; FRAMES]>);

impl Pinned {
    fn is_pinned(&self, frame: usize) -> bool {
        // Relaxed, here and below: one thread.
        self.0[frame].load(Ordering::Relaxed)
    }

    fn is_empty(&self) -> bool {
        (0..FRAMES).all(|frame| !self.is_pinned(frame))
    }

    fn set(&self, address: u64, frames: HostRange, pinned: bool) {
        for at in (address..address + frames.len() as u64).step_by(FRAME as usize) {
            let frame = guest::linear(at).expect("guest memory") >> FRAME_SHIFT;
            let before = self.0[frame].swap(pinned, Ordering::Relaxed);
            assert_ne!(before, pinned, "frame {frame} is pinned or unpinned twice");
        }
    }
}

impl Pinner for Pinned {
    fn name(&self) -> &'static str {
        "notebook"
    }

    fn pin(&self, runs: &[pinner::Run<'_>]) -> Result<(), Stopped> {
        runs.iter().for_each(|run| self.set(run.address, run.host, true));
        Ok(())
    }

    fn unpin(&self, runs: &[pinner::Run<'_>]) -> Result<(), Stopped> {
        runs.iter().for_each(|run| self.set(run.address, run.host, false));
        Ok(())
    }

    fn joins_frames(&self) -> bool {
        true
    }

    fn keeps_place(&self) -> bool {
        true
    }
}
