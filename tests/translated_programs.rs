//! Random channel programs end as the architecture says, translated or not: what the guest can see
//! of them (memory, every IRB) and what the device can (commands and their data) is what a plain,
//! slow interpreter of the rules says.
//!
//! `PROPTEST_CASES` asks for another number of cases.

pub mod program_shapes;
pub mod reference;
pub mod translated;

use std::cell::RefCell;
use std::sync::Arc;

use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use vfio_ccw::architecture::{IrbHead, Orb, OrbFlags, SubchannelStatus};
use vfio_ccw::translation::{StorageKey, StorageKeys};
use zerocopy::{FromBytes, IntoBytes};

use program_shapes::{Case, Data, REGIONS};
use reference::facts::Facts;
use reference::memory::{Keys, Memory};
use reference::{Reference, Story};
use translated::{Answer, Outcome, Rig};

/// Cases of each test unless `PROPTEST_CASES` says otherwise.
const CASES: u32 = 100_000;

#[test]
fn translated_programs_end_as_the_reference_says() {
    let counts = compare(Data::Apart, OrbFlags::PREFETCH);
    counts.assert_all_reached(Facts::all() - Facts::SELF_MODIFIED);
}

#[test]
fn unfetched_programs_end_as_the_reference_says() {
    let counts = compare(Data::InTheProgram, OrbFlags::empty());
    counts.assert_all_reached(Facts::all());
}

/// Runs cases on both sides; `prefetch` is the ORB's bit P.
fn compare(data: Data, prefetch: OrbFlags) -> Counts {
    let mut config = Config { failure_persistence: None, ..Config::default() };
    if std::env::var_os("PROPTEST_CASES").is_none() {
        config.cases = CASES;
    }
    let bench = RefCell::new(Bench::new());
    let result = TestRunner::new(config).run(&program_shapes::cases(data), |mut case| {
        case.orb = case.orb.with_flags((case.orb.flags() - OrbFlags::PREFETCH) | prefetch);
        bench.borrow_mut().check(&case)
    });
    match result {
        Ok(()) => bench.into_inner().counts,
        Err(TestError::Fail(why, case)) => panic!("{why}\n{case:?}"),
        Err(error) => panic!("{error}"),
    }
}

/// Both sides, used for case after case.
struct Bench {
    rig: Rig,
    empty: Memory,
    counts: Counts,
}

impl Bench {
    fn new() -> Self {
        let rig = Rig::with_regions(&REGIONS, |_, _| Answer::all());
        Bench {
            rig,
            empty: Memory::new(&REGIONS),
            counts: Counts { cases: 0, restricted: 0, facts: [0; 64] },
        }
    }

    fn check(&mut self, case: &Case) -> Result<(), TestCaseError> {
        let mut memory = self.empty.clone();
        for (at, list) in &case.lists {
            memory.put(*at, list);
        }
        for (at, ccw) in &case.ccws {
            memory.put(*at, ccw);
        }
        for (start, bytes) in memory.regions() {
            self.rig.put(*start, bytes);
        }
        let device = case.device;
        self.rig.device.set_script(move |code, number| device.answer(code, number));
        self.rig.rules.keys =
            case.keys.clone().map(|keys| Arc::new(Guarded(keys)) as Arc<dyn StorageKeys>);
        let script = |code, number| device.answer(code, number);
        let mut guest = Reference {
            memory,
            keys: case.keys.clone(),
            script: &script,
            log: Vec::new(),
            commands: 0,
            facts: Facts::empty(),
        };
        let orb_bytes = orb_bytes(&case.orb);
        let mut story = guest.start(orb_bytes);
        let mut outcome = if case.orb.flags().contains(OrbFlags::PREFETCH) {
            self.rig.run(&case.orb)
        } else {
            self.rig.run_unfetched(&case.orb)
        };
        self.agree(case, &guest, &story, &outcome)?;
        for edit in &case.resumptions {
            // A run that could not be compared to its end is not gone on with.
            if !story.suspended || !outcome.is_suspended() {
                break;
            }
            let at = u64::from(story.ccw());
            let ccw = guest.memory.bytes(at).expect("it was read from there");
            let ccw = edit.apply(ccw, &case.orb);
            guest.memory.put(at, &ccw);
            self.rig.put(at, &ccw);
            story = guest.resume(orb_bytes, &story);
            outcome = self.rig.resume(&outcome);
            self.agree(case, &guest, &story, &outcome)?;
            if !story.suspended {
                guest.facts |= Facts::RESUMED;
            }
        }
        self.counts.add(guest.facts);
        Ok(())
    }

    /// Compares what both sides have told, as far as it can be.
    fn agree(
        &mut self,
        case: &Case,
        guest: &Reference<'_>,
        story: &Story,
        outcome: &Outcome,
    ) -> Result<(), TestCaseError> {
        let Some(difference) = self.difference(guest, story, outcome) else {
            return Ok(());
        };
        let prefetched = case.orb.flags().contains(OrbFlags::PREFETCH);
        let stopped = outcome.scsw().subchannel_status() == SubchannelStatus::PROGRAM_CHECK;
        // The shadow has its own number of TICs, so its loops end at another round, or the device
        // ends them first.
        let loops = story.limited || story.loops && stopped;
        if prefetched && loops {
            return Ok(());
        }
        // The restriction of the translator that docs/TRANSLATION.md names: a CCW that is reached in
        // two ways is a program check in one of them, or the TIC that leads there is.
        let stopped_at = outcome.scsw().cpa().wrapping_sub(8);
        if prefetched && stopped && story.program.is_reached_in_two_ways(stopped_at) {
            self.counts.restricted += 1;
            return Ok(());
        }
        Err(TestCaseError::fail(difference))
    }

    /// Where the two sides differ in what guest and device can see.
    fn difference(
        &self,
        guest: &Reference<'_>,
        story: &Story,
        outcome: &Outcome,
    ) -> Option<String> {
        if outcome.end.as_bytes() != story.end {
            let expected = head(&story.end);
            return Some(format!("ended with\n  {:?}, not\n  {expected:?}", outcome.end));
        }
        if outcome.intermediate.iter().map(IrbHead::as_bytes).ne(story.intermediate.iter()) {
            let expected: Vec<_> = story.intermediate.iter().map(head).collect();
            return Some(format!("interrupted\n  {:?}, not\n  {expected:?}", outcome.intermediate));
        }
        if self.rig.device.log != guest.log {
            return Some(format!("device:\n  {:?}, not\n  {:?}", self.rig.device.log, guest.log));
        }
        guest.memory.regions().iter().find_map(|(start, bytes)| {
            let real = self.rig.peek(*start, bytes.len());
            if real == *bytes {
                return None;
            }
            let at = real.iter().zip(bytes).position(|(real, expected)| real != expected)?;
            Some(format!("{:#x} holds {}, not {}", start + at as u64, real[at], bytes[at]))
        })
    }
}

fn orb_bytes(orb: &Orb) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes.copy_from_slice(orb.as_bytes());
    bytes
}

fn head(bytes: &[u8; 64]) -> IrbHead {
    IrbHead::read_from_bytes(bytes).expect("64 bytes")
}

/// The reference's keys, as the translator asks for them.
struct Guarded(Keys);

impl StorageKeys for Guarded {
    fn key(&self, address: u64) -> StorageKey {
        let (access, fetch_protected) = self.0.of(address);
        StorageKey { access, fetch_protected }
    }
}

/// How many cases reached what.
struct Counts {
    cases: u32,
    /// Cases that ended at a restriction of the translator.
    restricted: u32,
    facts: [u32; 64],
}

impl Counts {
    fn add(&mut self, facts: Facts) {
        self.cases += 1;
        for fact in facts.iter() {
            self.facts[fact.bits().trailing_zeros() as usize] += 1;
        }
    }

    /// Every fact in one of 5,000 cases, and what programs are for in one of 10.
    fn assert_all_reached(&self, facts: Facts) {
        println!("{:8} of {} were restricted", self.restricted, self.cases);
        assert!(self.restricted < self.cases / 50, "{} restricted", self.restricted);
        let often = Facts::CLEAN_END | Facts::STORED | Facts::FETCHED | Facts::COMMAND_CHAINED;
        for (name, fact) in facts.iter_names() {
            let count = self.facts[fact.bits().trailing_zeros() as usize];
            println!("{count:8} {name}");
            let least = self.cases / if often.contains(fact) { 10 } else { 5_000 };
            assert!(count >= least, "{name}: only {count} of {} cases", self.cases);
        }
    }
}
