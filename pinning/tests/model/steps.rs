//! What can happen to a pool, and strategies that make random lives of it.

use proptest::collection::vec;
use proptest::prelude::*;
use vfio_ccw_pinning::{FRAME, Mode};

use super::guest::{BankShape, SLOTS};
use super::pinner::Character;

/// Programs that may be under way at one time.
pub const PROGRAMS: usize = 5;

/// A pool and the guest it starts with.
#[derive(Clone, Debug)]
pub struct Setup {
    pub character: Character,
    /// Frame size asked for, in bytes.
    pub granule: u64,
    /// What is plugged into the first slots.
    pub banks: Vec<BankShape>,
    /// In bytes.
    pub budget: u64,
}

/// Adjacent pages of 4 KiB in a slot, as many as are there; the slot is taken modulo those that have
/// memory, the first page modulo what is plugged there.
#[derive(Clone, Copy, Debug)]
pub struct Pages {
    pub slot: usize,
    pub first: u64,
    pub count: u64,
}

/// What a program does.
#[derive(Clone, Debug)]
pub enum Act {
    /// If idle, it starts with these pages; with a share of so many pages of 4 KiB, if any.
    Start { program: usize, wants: Vec<Pages>, share: Option<u64> },
    /// If it waits, it looks again.
    Look { program: usize },
    /// If it runs, it ends.
    End { program: usize, mode: Mode },
    /// If it waits, it gives up.
    GiveUp { program: usize },
    /// Not a program: what nobody uses is unpinned.
    UnpinIdle,
}

/// One step.
#[derive(Clone, Debug)]
pub enum Step {
    /// A program acts.
    Act(Act),
    /// A program will act inside a call of the pinner, when so many runs more have passed.
    Interrupt { after: u32, act: Act },
    /// A balloon takes pages.
    Withdraw(Pages),
    /// A balloon gives back what it took.
    GiveBack { guard: usize },
    /// The budget becomes so many bytes.
    Budget { bytes: u64 },
    /// A device in mode pinned comes.
    Lease,
    /// One goes.
    EndLease,
    /// Memory comes.
    Plug { slot: usize, shape: BankShape },
    /// Memory goes.
    Unplug { slot: usize },
    /// What could not go yet goes.
    Settle,
    /// The pinner will refuse so many runs to pin when others have passed.
    RefusePins { after: u32, times: u32 },
    /// The pinner will refuse so many runs to unpin when others have passed.
    RefuseUnpins { after: u32, times: u32 },
}

/// Pools of all kinds.
pub fn setups() -> impl Strategy<Value = Setup> {
    let most_runs = prop::option::weighted(0.3, 2..12u32);
    let character = (any::<bool>(), any::<bool>(), most_runs).prop_map(
        |(joins_frames, is_needed, most_runs)| Character {
            joins_frames,
            is_needed,
            most_runs: most_runs.filter(|_| !joins_frames),
            lingers: None,
        },
    );
    // The last: frames of two sizes, and little room.
    let large = 4 * FRAME;
    let kind = prop_oneof![
        (Just(FRAME), vec(banks(), 1..=3), budgets()).boxed(),
        (prop::sample::select(vec![2 * FRAME, large]), vec(banks(), 1..=3), budgets()).boxed(),
        (Just(large), two_sizes(), (4..10u64).prop_map(|frames| frames * FRAME)).boxed(),
    ];
    (character, kind).prop_map(|(character, (granule, banks, budget))| Setup {
        character,
        granule,
        banks,
        budget,
    })
}

fn two_sizes() -> impl Strategy<Value = Vec<BankShape>> {
    (1..3u64, 3..8u64).prop_map(|(large, small)| {
        let large = BankShape { frames: 4 * large, skew: 0 };
        vec![large, BankShape { frames: small, skew: 1 }]
    })
}

/// Steps of a life: half of the lives are of programs only, which then meet more often.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop_oneof![vec(program_step(), 1..60), vec(step(), 1..80)]
}

fn program_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => act().prop_map(Step::Act),
        1 => (prop_oneof![2 => Just(0), 1 => 1..4u32], interruption())
            .prop_map(|(after, act)| Step::Interrupt { after, act }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        32 => program_step(),
        2 => pages().prop_map(Step::Withdraw),
        2 => (0..4usize).prop_map(|guard| Step::GiveBack { guard }),
        3 => budgets().prop_map(|bytes| Step::Budget { bytes }),
        1 => Just(Step::Lease),
        1 => Just(Step::EndLease),
        1 => (0..SLOTS, banks()).prop_map(|(slot, shape)| Step::Plug { slot, shape }),
        1 => (0..SLOTS).prop_map(|slot| Step::Unplug { slot }),
        1 => Just(Step::Settle),
        1 => (0..5u32, 1..4u32).prop_map(|(after, times)| Step::RefusePins { after, times }),
        1 => (0..5u32, 1..4u32).prop_map(|(after, times)| Step::RefuseUnpins { after, times }),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let program = 0..PROGRAMS;
    prop_oneof![
        10 => start(),
        8 => program.clone().prop_map(|program| Act::Look { program }),
        8 => end(),
        1 => program.prop_map(|program| Act::GiveUp { program }),
        1 => Just(Act::UnpinIdle),
    ]
}

/// Most of what comes in between wants something: that is where it can go wrong.
fn interruption() -> impl Strategy<Value = Act> {
    prop_oneof![3 => start(), 1 => end(), 1 => act()]
}

fn start() -> impl Strategy<Value = Act> {
    let share = prop::option::weighted(0.1, 0..12u64);
    (0..PROGRAMS, vec(pages(), 1..4), share).prop_map(|(program, wants, share)| Act::Start {
        program,
        wants,
        share,
    })
}

fn end() -> impl Strategy<Value = Act> {
    let mode = prop::sample::select(vec![Mode::Cached, Mode::OnDemand]);
    (0..PROGRAMS, mode).prop_map(|(program, mode)| Act::End { program, mode })
}

fn banks() -> impl Strategy<Value = BankShape> {
    // Multiples of four and others, so that large frames fit into some and not into others.
    let frames = prop_oneof![1..10u64, prop::sample::select(vec![4, 8, 12])];
    (frames, prop_oneof![4 => Just(0), 1 => 1..4u64])
        .prop_map(|(frames, skew)| BankShape { frames, skew })
}

fn pages() -> impl Strategy<Value = Pages> {
    (0..SLOTS, 0..12u64, 1..6u64).prop_map(|(slot, first, count)| Pages { slot, first, count })
}

fn budgets() -> impl Strategy<Value = u64> {
    // Whole frames and others, too little for one, and more than there is.
    prop_oneof![
        8 => (1..12u64).prop_map(|frames| frames * FRAME),
        4 => (12..50u64).prop_map(|frames| frames * FRAME),
        1 => 0..4 * FRAME,
    ]
}
