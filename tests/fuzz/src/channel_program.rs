//! Translated programs: the guest's ORB, CCWs, IDALs and MIDAWs, whatever they are.
//!
//! A program ends once with status that its CCWs can have, on memory that is the guest's, held, and
//! open to its key, with nothing written outside. It ends the same whether it was translated or
//! read by the channel as it ran, and also if the guest overwrites it as soon as it is started.

use vfio_ccw::architecture::{IrbHead, ScswFlags, SubchannelStatus};

use crate::bench::{Bench, Outcome};
use crate::case::Case;
use crate::input::Input;

/// One case.
pub fn run(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    Bench::lend(|bench| {
        let case = Case::read(&mut input, &mut bench.guest);
        bench.guest.remember();
        let fetched = bench.translated(&case, false);
        if bytes.first().is_some_and(|options| options & 0x80 != 0) {
            bench.guest.restore();
            compare(&case, &fetched, &bench.translated(&case, true));
        }
        // An unfetched program meets no limits, sees its own stores, and defines no extents.
        if case.wide && !case.extents && !fetched.large && !fetched.stored_program {
            bench.guest.restore();
            compare(&case, &fetched, &bench.unfetched(&case));
        }
    });
}

/// Asserts that two runs of a program came to the same.
fn compare(case: &Case, one: &Outcome, other: &Outcome) {
    let checked = |outcome: &Outcome| {
        outcome.ends.last().is_some_and(|irb| {
            irb.scsw.subchannel_status().contains(SubchannelStatus::PROGRAM_CHECK)
        })
    };
    // Where the channel gives up a loop is its own affair, and a policy that refuses commands may
    // let it do so earlier. And the translator may give up a CCW that is reached in several ways, as
    // a command and data-chained to another, say.
    let gave_up = one.loops && checked(one) && (checked(other) || case.refuses)
        || one.ambiguous && checked(one);
    if one.stored_program || gave_up {
        return;
    }
    let seen = |irbs: &[IrbHead]| irbs.iter().map(without_prefetch).collect::<Vec<_>>();
    assert_eq!(seen(&one.ends), seen(&other.ends), "{one:?}\n{other:?}");
    assert_eq!(seen(&one.intermediate), seen(&other.intermediate));
    if one.touched_program {
        let moved = |outcome: &Outcome| {
            outcome.log.iter().map(|command| (command.code, command.moved)).collect::<Vec<_>>()
        };
        assert_eq!(moved(one), moved(other));
    } else {
        assert_eq!(one.log, other.log);
    }
    assert!(one.contents == other.contents, "they stored different bytes");
}

fn without_prefetch(irb: &IrbHead) -> IrbHead {
    IrbHead { scsw: irb.scsw.without_flags(ScswFlags::PREFETCH), ..*irb }
}
