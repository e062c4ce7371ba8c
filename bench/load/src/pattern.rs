//! Block contents that say which block and version they are.
//!
//! Every 512-byte block is 64 big-endian words made from a seed (which run wrote it), its block number
//! and a version (which write to it): three words that carry these in clear, then 61 words of a mixing
//! generator keyed with all three. So a read that returns the wrong block, an old version, another
//! run's data, half a write or a flipped bit is told from a right one, and most can be named:
//! "block 1234: expected version 3, found block 1230 version 7".
//!
//! ```
//! use vfio_ccw_load::pattern;
//!
//! let mut data = vec![0; 4096];
//! pattern::fill(1, 1230, 7, &mut data);
//! assert!(pattern::check(1, 1230, 7, &data).is_ok());
//! let miscompare = pattern::check(1, 1234, 3, &data).unwrap_err();
//! assert_eq!(miscompare.to_string(), "block 1234: expected version 3, found block 1230 version 7");
//! ```

use crate::random::{GOLDEN, mix};
use std::fmt;

/// Bytes of a block.
pub const BLOCK: usize = 512;

const WORD: usize = 8;
/// Block number, version, seed.
const HEADER_WORDS: usize = 3;

/// Fills `data` with blocks `first_block..` of `version`.
///
/// # Panics
/// Where `data` is not a whole number of blocks.
pub fn fill(seed: u64, first_block: u64, version: u32, data: &mut [u8]) {
    assert_whole_blocks(data.len());
    let (blocks, _) = data.as_chunks_mut::<BLOCK>();
    for (block, contents) in (first_block..).zip(blocks) {
        let identity = Identity { seed, block, version: version.into() };
        identity.write_to(contents);
    }
}

/// Compares `data` with blocks `first_block..` of `version`.
///
/// # Errors
/// The first block that differs, with what is there instead.
///
/// # Panics
/// Where `data` is not a whole number of blocks.
pub fn check(seed: u64, first_block: u64, version: u32, data: &[u8]) -> Result<(), Miscompare> {
    assert_whole_blocks(data.len());
    let (blocks, _) = data.as_chunks::<BLOCK>();
    for (block, contents) in (first_block..).zip(blocks) {
        let identity = Identity { seed, block, version: version.into() };
        if !identity.is_in(contents) {
            return Err(Miscompare { block, version, found: identity.diagnose(contents) });
        }
    }
    Ok(())
}

fn assert_whole_blocks(bytes: usize) {
    assert!(
        bytes.is_multiple_of(BLOCK),
        "{bytes} bytes are not a whole number of {BLOCK}-byte blocks"
    );
}

/// A block that does not hold what was last written to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Miscompare {
    /// Number of the block, in units of [`BLOCK`].
    pub block: u64,
    /// The version it should hold.
    pub version: u32,
    /// What it holds.
    pub found: Found,
}

/// What a block holds instead of its pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Found {
    /// A whole block of this run: another version, another block, or both.
    Other {
        /// Its block number.
        block: u64,
        /// Its version.
        version: u64,
    },
    /// A whole block that another run wrote.
    OtherRun {
        /// Its seed.
        seed: u64,
        /// Its block number.
        block: u64,
        /// Its version.
        version: u64,
    },
    /// The right header, and other data from this byte of the block on.
    Corrupt {
        /// First byte that differs, from the start of the block.
        at: usize,
        /// The byte there.
        byte: u8,
        /// The byte that should be there.
        expected: u8,
    },
    /// Nothing but zeros.
    Zeros,
    /// What a read buffer was filled with beforehand: the read transferred nothing here.
    Untouched,
    /// Not a block of any pattern.
    Foreign {
        /// Its first 8 bytes.
        start: [u8; WORD],
    },
}

impl fmt::Display for Miscompare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "block {}: expected version {}, found ", self.block, self.version)?;
        match self.found {
            Found::Other { block, version } if block == self.block => {
                write!(f, "version {version}")
            }
            Found::Other { block, version } => write!(f, "block {block} version {version}"),
            Found::OtherRun { seed, block, version } => {
                write!(f, "block {block} version {version} of a run with seed {seed}")
            }
            Found::Corrupt { at, byte, expected } => {
                write!(f, "it corrupted from byte {at} on ({byte:#04x} instead of {expected:#04x})")
            }
            Found::Zeros => f.write_str("zeros"),
            Found::Untouched => f.write_str("the buffer untouched"),
            Found::Foreign { start } => {
                write!(f, "foreign data beginning {:016x}", u64::from_be_bytes(start))
            }
        }
    }
}

/// Miscompares of a job: how many, and the first few.
#[derive(Debug, Clone, Default)]
pub(crate) struct Miscompares {
    count: u64,
    first: Vec<(usize, Miscompare)>,
}

impl Miscompares {
    /// How many are kept: enough to see a regularity, few enough to read.
    const KEPT: usize = 8;

    pub(crate) fn add(&mut self, slot: usize, miscompare: Miscompare) {
        self.count += 1;
        if self.first.len() < Self::KEPT {
            self.first.push((slot, miscompare));
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The first few in words.
    pub(crate) fn described(&self) -> Vec<String> {
        self.first.iter().map(|(slot, miscompare)| format!("slot {slot}: {miscompare}")).collect()
    }
}

/// The byte that read buffers are filled with beforehand, so that data which is there from before is
/// not taken for data that was read.
pub(crate) const POISON: u8 = 0xa5;

/// All that determines the contents of a block.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Identity {
    seed: u64,
    block: u64,
    version: u64,
}

impl Identity {
    /// Key of the words after the header; mixed fully, so that one changed bit anywhere in the identity
    /// changes all of them.
    fn key(self) -> u64 {
        mix(mix(mix(self.seed) ^ self.block) ^ self.version)
    }

    fn header(self) -> [u64; HEADER_WORDS] {
        [self.block, self.version, self.seed]
    }

    fn write_to(self, contents: &mut [u8; BLOCK]) {
        let (words, _) = contents.as_chunks_mut::<WORD>();
        let (header, stream) = words.split_at_mut(HEADER_WORDS);
        for (word, value) in header.iter_mut().zip(self.header()) {
            *word = value.to_be_bytes();
        }
        let key = self.key();
        for (step, word) in (0..).zip(stream) {
            *word = stream_word(key, step).to_be_bytes();
        }
    }

    /// Whether `contents` is this block. Making the whole block and comparing once is faster than
    /// comparing word by word: neither loop then has a branch or a sum in it.
    fn is_in(self, contents: &[u8; BLOCK]) -> bool {
        let mut expected = [0; BLOCK];
        self.write_to(&mut expected);
        *contents == expected
    }

    /// Names what `contents` is, known not to be this block.
    fn diagnose(self, contents: &[u8; BLOCK]) -> Found {
        let (words, _) = contents.as_chunks::<WORD>();
        let word = |index: usize| u64::from_be_bytes(words[index]);
        let claimed = Self { block: word(0), version: word(1), seed: word(2) };
        if claimed == self {
            let mut expected = [0; BLOCK];
            self.write_to(&mut expected);
            let at = contents.iter().zip(&expected).position(|(found, expected)| found != expected);
            let at = at.unwrap_or_default();
            Found::Corrupt { at, byte: contents[at], expected: expected[at] }
        } else if claimed.is_in(contents) {
            let Self { seed, block, version } = claimed;
            if seed == self.seed {
                Found::Other { block, version }
            } else {
                Found::OtherRun { seed, block, version }
            }
        } else if contents.iter().all(|&byte| byte == 0) {
            Found::Zeros
        } else if contents.iter().all(|&byte| byte == POISON) {
            Found::Untouched
        } else {
            Found::Foreign { start: words[0] }
        }
    }
}

/// Word `step` after the header. A counter through one multiplication between two folds: half of
/// [`mix`], enough for data that nobody tries to guess, and twice as fast.
#[inline]
fn stream_word(key: u64, step: u64) -> u64 {
    let word = key.wrapping_add(step.wrapping_mul(GOLDEN));
    let word = (word ^ (word >> 32)).wrapping_mul(STREAM_FACTOR);
    word ^ (word >> 32)
}

/// An odd factor with about half of its bits set, without regularity.
const STREAM_FACTOR: u64 = 0xd6e8_feb8_6659_fd93;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn blocks(seed: u64, first: u64, version: u32, count: usize) -> Vec<u8> {
        let mut data = vec![0; count * BLOCK];
        fill(seed, first, version, &mut data);
        data
    }

    #[test]
    fn header_words_can_be_read() {
        let data = blocks(0xabcd, 1230, 7, 2);
        assert_eq!(data[BLOCK..BLOCK + 8], 1231u64.to_be_bytes());
        assert_eq!(data[BLOCK + 8..BLOCK + 16], 7u64.to_be_bytes());
        assert_eq!(data[BLOCK + 16..BLOCK + 24], 0xabcdu64.to_be_bytes());
    }

    /// Computed apart from this code, from the description of the pattern.
    const FOLD_OF_SEED_1_BLOCK_2_VERSION_3: u64 = 0x5afb_d059_a78a_b7d4;

    #[test]
    fn contents_do_not_change_from_release_to_release() {
        // A volume written by one release must verify with the next.
        let data = blocks(1, 2, 3, 1);
        let fold = data
            .chunks_exact(8)
            .fold(0u64, |fold, word| mix(fold ^ u64::from_be_bytes(word.try_into().unwrap())));
        assert_eq!(fold, FOLD_OF_SEED_1_BLOCK_2_VERSION_3, "{fold:#x}");
    }

    #[test]
    fn each_cause_is_named() {
        let text = |data: &[u8]| check(9, 5, 3, data).unwrap_err().to_string();
        assert_eq!(text(&blocks(9, 5, 2, 1)), "block 5: expected version 3, found version 2");
        assert_eq!(
            text(&blocks(9, 4, 8, 1)),
            "block 5: expected version 3, found block 4 version 8"
        );
        assert_eq!(
            text(&blocks(8, 5, 3, 1)),
            "block 5: expected version 3, found block 5 version 3 of a run with seed 8"
        );
        assert_eq!(text(&[0; BLOCK]), "block 5: expected version 3, found zeros");
        assert_eq!(
            text(&[POISON; BLOCK]),
            "block 5: expected version 3, found the buffer untouched"
        );
        assert!(text(&[1; BLOCK]).ends_with("foreign data beginning 0101010101010101"));

        let mut torn = blocks(9, 5, 3, 1);
        torn[100..].copy_from_slice(&blocks(9, 5, 2, 1)[100..]);
        let miscompare = check(9, 5, 3, &torn).unwrap_err();
        assert!(matches!(miscompare.found, Found::Corrupt { at: 100.., .. }), "{miscompare}");
    }

    #[test]
    fn the_block_that_differs_is_named() {
        let mut data = blocks(9, 100, 1, 8);
        data[6 * BLOCK + 77] ^= 1;
        let miscompare = check(9, 100, 1, &data).unwrap_err();
        assert_eq!(miscompare.block, 106);
        assert!(matches!(miscompare.found, Found::Corrupt { at: 77, .. }));
    }

    proptest! {
        #[test]
        fn what_was_filled_checks(seed: u64, first in 0..u64::MAX / 2, version: u32, count in 0usize..9) {
            prop_assert_eq!(check(seed, first, version, &blocks(seed, first, version, count)), Ok(()));
        }

        #[test]
        fn any_flipped_bit_is_found(seed: u64, block in 0..u64::MAX / 2, version: u32, bit in 0..BLOCK * 8) {
            let mut data = blocks(seed, block, version, 1);
            data[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(check(seed, block, version, &data).is_err());
        }
    }
}
