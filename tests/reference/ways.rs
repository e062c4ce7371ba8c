//! In which ways a program may come to its CCWs.

use std::collections::{BTreeMap, BTreeSet};

use super::memory::Memory;
use super::{CC, CD, Ccw, Orb, is_backward, is_search, stores};

/// What the command that leads a data chain means for a CCW of it: whether its data is stored,
/// whether it goes backward, whether a status modifier may follow.
type Way = (bool, bool, bool);

/// A program as it stood in memory when it was started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Program {
    pub(super) orb: Orb,
    pub(super) memory: Memory,
}

impl Program {
    /// Whether the CCW at `at`, or the one that a TIC there leads to, can be reached in more than
    /// one way: as a command of its own, or in data chains of other commands.
    pub fn is_reached_in_two_ways(&self, at: u32) -> bool {
        let ways = self.ways();
        let at = self.ccw(at).filter(|ccw| self.is_tic(ccw)).map_or(at, |tic| tic.address);
        ways.get(&at).is_some_and(|ways| ways.len() > 1)
    }

    fn ccw(&self, at: u32) -> Option<Ccw> {
        Some(Ccw::decode(at, self.memory.bytes(at.into())?, self.orb.format_1()))
    }

    fn is_tic(&self, ccw: &Ccw) -> bool {
        ccw.is_tic(self.orb.format_1())
    }

    /// Every CCW that some answers of some device lead to, with the ways that lead there.
    fn ways(&self) -> BTreeMap<u32, BTreeSet<Way>> {
        let mut ways = BTreeMap::<u32, BTreeSet<Way>>::new();
        let mut seen = BTreeSet::new();
        let mut ahead = vec![(self.orb.cpa, None)];
        while let Some((at, leader)) = ahead.pop() {
            let Some(ccw) = self.ccw(at).filter(|_| seen.insert((at, leader))) else {
                continue;
            };
            if self.is_tic(&ccw) {
                ahead.push((ccw.address, leader));
                continue;
            }
            let command = leader.unwrap_or(ccw.command);
            let way = (stores(command), is_backward(command), is_search(command));
            ways.entry(at).or_default().insert(way);
            if ccw.has(CD) {
                ahead.push((at.wrapping_add(8), Some(command)));
            } else if ccw.has(CC) {
                ahead.push((at.wrapping_add(8), None));
                // The translator reads what may follow either command.
                if is_search(command) || is_search(ccw.command) {
                    ahead.push((at.wrapping_add(16), None));
                }
            }
        }
        ways
    }
}
