//! Lists of MIDAWs that have an equal in IDAWs: pieces that are blocks but for the start of the first
//! and the end of the last.

use crate::architecture::{Midaw, MidawFlags};

/// Walks the list at address `list` of a CCW of `count` bytes and gives start and end of each piece.
/// `None`: the list is in error (SA22-7832, "Modified-Indirect-Data Addressing"), or has pieces that
/// are skipped, ask for an interruption, or do not join at blocks of `block` bytes.
pub(crate) fn pieces(
    list: u64,
    count: u16,
    block: u64,
    load: impl Fn(u64) -> Option<Midaw>,
    mut piece: impl FnMut(u64, u64),
) -> Option<()> {
    if !list.is_multiple_of(16) {
        return None;
    }
    let mut left = count;
    let mut at = list;
    loop {
        let midaw = load(at).filter(Midaw::is_sound)?;
        let (start, end) = (midaw.address(), midaw.address().checked_add(midaw.count().into())?);
        let last = midaw.flags() == MidawFlags::LAST;
        let joins = (at == list || start.is_multiple_of(block))
            && (last || end.is_multiple_of(block) && midaw.flags().is_empty());
        left = left.checked_sub(midaw.count()).filter(|_| joins)?;
        piece(start, end);
        at += 16;
        if last {
            return (left == 0).then_some(());
        }
        // The list lies in one page.
        if at.is_multiple_of(4096) {
            return None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAST: MidawFlags = MidawFlags::LAST;

    fn walk(list: u64, count: u16, block: u64, midaws: &[Midaw]) -> Option<Vec<(u64, u64)>> {
        let mut found = Vec::new();
        let load = |at: u64| midaws.get(((at - list) / 16) as usize).copied();
        pieces(list, count, block, load, |start, end| found.push((start, end)))?;
        Some(found)
    }

    #[test]
    fn pieces_that_join_at_blocks_are_given() {
        let list = [
            Midaw::new(0x1f00, 0x100),
            Midaw::new(0x5000, 0x1000),
            Midaw::new(0x3000, 8).with(LAST),
        ];
        let found = walk(0x100, 0x1108, 4096, &list);
        assert_eq!(found.unwrap(), [(0x1f00, 0x2000), (0x5000, 0x6000), (0x3000, 0x3008)]);
        let halves = [Midaw::new(0x1800, 0x800), Midaw::new(0x2800, 8).with(LAST)];
        assert!(walk(0x100, 0x808, 2048, &halves).is_some());
        assert!(walk(0x100, 0x808, 4096, &halves).is_none(), "the second is no start of a block");
    }

    #[test]
    fn lists_in_error_or_without_an_equal_are_not() {
        let one = [Midaw::new(0x1000, 16).with(LAST)];
        assert!(walk(0x100, 16, 4096, &one).is_some());
        assert!(walk(0x108, 16, 4096, &one).is_none(), "not on a quadword");
        assert!(walk(0x100, 17, 4096, &one).is_none(), "counts differ");
        assert!(walk(0x100, 15, 4096, &one).is_none());
        assert!(walk(0x100, 16, 4096, &[Midaw::new(0x1000, 16)]).is_none(), "no last");
        for flags in [MidawFlags::SKIP, MidawFlags::INTERRUPT] {
            assert!(walk(0x100, 16, 4096, &[one[0].with(flags)]).is_none(), "{flags:?}");
        }
        let wraps = [Midaw::new(u64::MAX - 0xfff, 0x1000).with(LAST)];
        assert!(walk(0x100, 0x1000, 4096, &wraps).is_none());
        let pages = [Midaw::new(0x1000, 0x1000), Midaw::new(0x2000, 8).with(LAST)];
        assert!(walk(0xff0, 0x1008, 4096, &pages).is_none(), "the list crosses a page");
    }
}
