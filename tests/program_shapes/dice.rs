//! Choices from bytes that proptest makes and shrinks: zero is always the simplest choice.

/// Bytes, used up one choice after the other; behind their end come zeros.
pub(super) struct Dice<'a> {
    bytes: std::slice::Iter<'a, u8>,
}

impl<'a> Dice<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Dice { bytes: bytes.iter() }
    }

    pub(super) fn byte(&mut self) -> u8 {
        self.bytes.next().copied().unwrap_or(0)
    }

    /// A number below `end`, which is at most 256.
    pub(super) fn below(&mut self, end: u32) -> u32 {
        u32::from(self.byte()) * end / 256
    }

    /// Whether something happens that does in `percent` of all cases.
    pub(super) fn chance(&mut self, percent: u32) -> bool {
        self.below(100) >= 100 - percent
    }

    /// One of these.
    pub(super) fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }

    /// Two bytes.
    pub(super) fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }
}
