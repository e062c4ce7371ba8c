//! Guest programs, and what translates them.

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use vfio_ccw::SHADOW_IOVA;
use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, command};
use vfio_ccw::translation::{Program, Rules};
use vfio_ccw_pinning::{FRAME, GuestMap, Hold, Mode, Pool};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::pin_hit::Nothing;
use crate::ratio::FieldError;

/// Guest memory: the first part for CCWs, the second for IDALs, the rest for data.
const MEMORY: u64 = 128 << 20;
const IDALS: u64 = 8 << 20;
const DATA: u64 = 16 << 20;

/// Programs translated in turn, each with CCWs and data of its own.
pub const PROGRAMS: u64 = 64;

/// CCWs of a small program; they touch 16 pages.
pub const SMALL: u64 = 10;

/// CCWs of a large program, in segments of 256.
pub const LARGE: u64 = 16 * 256;

/// Programs of a guest whose pages are all pinned, and what translates them.
#[derive(Debug)]
pub struct Translation {
    pool: Pool,
    map: Arc<GuestMap>,
    shadow: GuestMap,
    rules: Rules,
    pub(super) orbs: Vec<Orb>,
    pub(super) program: Program,
    /// One a program.
    holds: Vec<Hold>,
}

impl Translation {
    /// `programs` programs of `ccws` CCWs.
    ///
    /// # Errors
    /// Where there is no memory for them.
    pub fn new(programs: u64, ccws: u64) -> Result<Self, FieldError> {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MEMORY as usize)])?;
        let map = Arc::new(GuestMap::new(Arc::new(memory))?);
        let shadow = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
        let shadow = GuestMap::new(Arc::new(shadow))?;
        let pool = Pool::new(map.clone(), Box::new(Nothing), MEMORY)?;
        let mut hold = Hold::default();
        hold.want_run(0, map.frames());
        pool.hold_blocking(&mut hold)?;
        pool.release(&mut hold, Mode::Cached);
        let orbs: Vec<Orb> = (0..programs).map(|program| lay_out(&map, program, ccws)).collect();
        let program = Program::default();
        let holds = (0..programs).map(|_| Hold::default()).collect();
        Ok(Self { pool, map, shadow, rules: Rules::default(), orbs, program, holds })
    }

    /// How many programs there are.
    pub fn programs(&self) -> usize {
        self.orbs.len()
    }

    /// Translates each program: reads and checks it, takes its pages, writes the shadow.
    ///
    /// # Errors
    /// Where a page was not pinned, or a shadow has no room.
    pub fn translate_all(&mut self) -> Result<(), FieldError> {
        let mut cx = Context::from_waker(Waker::noop());
        let (mut missed, mut last) = (0, 0);
        let host = self.shadow.regions()[0].host();
        for (orb, hold) in self.orbs.iter().zip(&mut self.holds) {
            self.program.fetch(orb, &self.map, &self.rules, hold);
            let taken = self.pool.poll_hold(hold, &mut cx);
            missed += u32::from(!matches!(taken, Poll::Ready(Ok(()))));
            last = self.program.emit(host, SHADOW_IOVA as u32).map_or(0, |orb| orb.cpa());
        }
        match (missed, u64::from(last)) {
            (0, SHADOW_IOVA) => Ok(()),
            (0, _) => Err("the last program's shadow has no room".into()),
            _ => Err(format!("{missed} programs missed in a warm pool").into()),
        }
    }

    /// Gives all pages back, as when the programs have ended.
    pub fn release_all(&mut self) {
        self.holds.iter_mut().for_each(|hold| self.pool.release(hold, Mode::Cached));
    }
}

/// Writes program number `program` of `ccws` CCWs and tells its ORB. Of ten CCWs, two have 16 bytes
/// of parameters in one page, seven have two pages and one has one page; every other one of those
/// has an IDAL. The 256th CCW of a segment is a TIC to the next.
fn lay_out(map: &GuestMap, program: u64, ccws: u64) -> Orb {
    // Each at another place of its page.
    let start = program * 0x1000 + program * 37 % 64 * 8;
    let mut idal = IDALS + program * 0x200;
    let mut page = DATA + program * 16 * FRAME;
    let write = |address: u64, bytes: &[u8]| assert!(map.write(address, bytes));
    for index in 0..ccws {
        // A hole behind each segment, so that the TIC is needed.
        let at = start + index * 8 + index / 256 * 64;
        let last = index + 1 == ccws;
        let chain = if last { CcwFlags::empty() } else { CcwFlags::CHAIN_COMMAND };
        if index % 256 == 255 && !last {
            write(at, &Ccw::new(command::TIC, (at + 8 + 64) as u32, 0).to_format_1());
            continue;
        }
        let pages = match index % 10 {
            0 | 1 => 0,
            9 => 1,
            _ => 2,
        };
        let ccw = if pages == 0 {
            Ccw::new(command::DEFINE_EXTENT, page as u32 + index as u32 % 10 * 16, 16)
        } else {
            page += FRAME;
            let bytes = pages * FRAME;
            let first = page;
            page += (pages - 1) * FRAME;
            if index % 2 == 0 {
                for piece in 0..pages {
                    write(idal + piece * 8, &(first + piece * FRAME).to_be_bytes());
                }
                idal += pages * 8;
                let list = (idal - pages * 8) as u32;
                Ccw::new(command::FBA_READ, list, bytes as u16).with(CcwFlags::INDIRECT)
            } else {
                Ccw::new(command::FBA_READ, first as u32, bytes as u16)
            }
        };
        write(at, &ccw.with(chain).to_format_1());
    }
    Orb::new(start as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_program_has_ten_ccws_and_sixteen_pages() {
        let mut translation = Translation::new(PROGRAMS, SMALL).unwrap();
        for orb in translation.orbs.clone() {
            translation.program.fetch(
                &orb,
                &translation.map,
                &translation.rules,
                &mut translation.holds[0],
            );
            assert_eq!(translation.holds[0].wanted(), 16, "{orb:?}");
            // Ten CCWs and the stop behind them; a word for each parameter and each page.
            assert_eq!(translation.program.bytes(), (11 + 2 + 15) * 8, "{orb:?}");
        }
    }

    #[test]
    fn a_large_program_is_read_to_its_end() {
        let mut translation = Translation::new(1, LARGE).unwrap();
        translation.program.fetch(
            &translation.orbs[0],
            &translation.map,
            &translation.rules,
            &mut translation.holds[0],
        );
        let parameters = (0..LARGE).filter(|index| index % 256 != 255 && index % 10 < 2).count();
        let pages: u64 = (0..LARGE)
            .filter(|index| index % 256 != 255 || index + 1 == LARGE)
            .map(|index| match index % 10 {
                0 | 1 => 0,
                9 => 1,
                _ => 2,
            })
            .sum();
        let words = translation.program.bytes() / 8;
        let ccws = words - parameters - pages as usize;
        assert!((4081..4120).contains(&ccws), "{ccws}: the TICs may be left out, breaks come in");
    }
}
