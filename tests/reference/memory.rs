//! Guest memory and its keys, one byte at a time.

/// Runs of bytes at guest absolute addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    regions: Vec<(u64, Vec<u8>)>,
}

impl Memory {
    /// Regions given as (start, length), filled with what is hardly a program: as CCWs these bytes
    /// chain nothing, search nothing and read nothing backward.
    pub fn new(regions: &[(u64, usize)]) -> Self {
        let filled = |(start, len): &(u64, usize)| {
            (*start, (0..*len).map(|at| (at * 11 + at / 256) as u8 & 0x33).collect())
        };
        Memory { regions: regions.iter().map(filled).collect() }
    }

    /// The regions.
    pub fn regions(&self) -> &[(u64, Vec<u8>)] {
        &self.regions
    }

    /// Puts a program or a list into memory; what is not there stays out.
    pub fn put(&mut self, at: u64, bytes: &[u8]) {
        for (at, byte) in (at..).zip(bytes) {
            self.store(at, *byte);
        }
    }

    /// The byte at `at`.
    pub fn byte(&self, at: u64) -> Option<u8> {
        self.regions.iter().find_map(|(start, bytes)| {
            bytes.get(usize::try_from(at.checked_sub(*start)?).ok()?).copied()
        })
    }

    /// `N` bytes from `at` on.
    pub fn bytes<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        for (at, byte) in (at..).zip(&mut bytes) {
            *byte = self.byte(at)?;
        }
        Some(bytes)
    }

    /// Stores a byte; `false` where there is no memory.
    pub fn store(&mut self, at: u64, byte: u8) -> bool {
        for (start, bytes) in &mut self.regions {
            let offset = at.checked_sub(*start).and_then(|offset| usize::try_from(offset).ok());
            if let Some(place) = offset.and_then(|offset| bytes.get_mut(offset)) {
                *place = byte;
                return true;
            }
        }
        false
    }
}

/// Storage keys: access key and fetch protection of every frame.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Keys {
    /// Access key of the frames not named below.
    pub usual: u8,
    /// Frame number (address / 4,096), access key, fetch protection.
    pub odd: Vec<(u64, u8, bool)>,
}

impl Keys {
    /// Access key and fetch protection of the frame that holds `at`.
    pub fn of(&self, at: u64) -> (u8, bool) {
        let odd = self.odd.iter().find(|(frame, ..)| *frame == at / 4096);
        odd.map_or((self.usual, false), |(_, access, fetch)| (*access, *fetch))
    }
}
