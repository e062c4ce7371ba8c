//! What may be chosen for one device.

use vfio_ccw_pinning::Mode;

use crate::translation::Policy;

/// Choices for one device; what is not chosen is as the service was built.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    pub(super) policy: Policy,
    pub(super) mode: Option<Mode>,
    pub(super) budget: Option<u64>,
}

impl DeviceOptions {
    /// Judges each of its commands. Default: none is refused.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// When guest pages are pinned for it. Default: `ServiceBuilder::mode`.
    pub fn mode(mut self, mode: Mode) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Most bytes that are pinned for one of its programs; beyond it a program runs unpinned or, on
    /// a back end that needs pins, is refused. Mode pinned pins nothing for a program. Default:
    /// `ServiceBuilder::subchannel_budget`.
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = Some(bytes);
        self
    }
}

impl From<Policy> for DeviceOptions {
    fn from(policy: Policy) -> Self {
        DeviceOptions::default().policy(policy)
    }
}
