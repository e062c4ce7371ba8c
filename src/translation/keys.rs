//! Storage keys: what a program may touch with its subchannel key.

use std::fmt;

/// Key of a 4 KiB frame of guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageKey {
    /// Access-control bits, 0 to 15.
    pub access: u8,
    /// Fetches need the key too, not only stores.
    pub fetch_protected: bool,
}

impl StorageKey {
    /// Whether a program with subchannel key `key` may store here. Key 0 may do everything.
    pub fn allows_store(self, key: u8) -> bool {
        key == 0 || key == self.access
    }

    /// Whether a program with subchannel key `key` may fetch from here.
    pub fn allows_fetch(self, key: u8) -> bool {
        !self.fetch_protected || self.allows_store(key)
    }
}

/// Where a VMM keeps the storage keys of its guest (on KVM: `KVM_S390_GET_SKEYS`). Without it keys
/// are not checked, as in vfio-ccw and QEMU.
pub trait StorageKeys: Send + Sync {
    /// Key of the frame that holds guest absolute address `address`, which is in guest memory. Called
    /// on the shard for every frame that a program with a non-zero key touches, so it must be quick.
    fn key(&self, address: u64) -> StorageKey;
}

impl fmt::Debug for dyn StorageKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StorageKeys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_0_may_do_everything_and_others_what_matches() {
        let key = StorageKey { access: 5, fetch_protected: false };
        assert!(key.allows_store(0) && key.allows_store(5) && !key.allows_store(4));
        assert!(key.allows_fetch(4));
        let protected = StorageKey { fetch_protected: true, ..key };
        assert!(!protected.allows_fetch(4) && protected.allows_fetch(5));
        assert!(protected.allows_fetch(0));
    }
}
