//! What may be chosen for one device.

use vfio_ccw_pinning::Mode;

use crate::architecture::{Pmcw, PmcwFlags, Schib, SubchannelId};
use crate::subchannel::Cell;
use crate::translation::Policy;

use super::state::SubchannelState;

/// Choices for one device; what is not chosen is as the service was built.
#[derive(Clone, Debug, Default)]
pub struct DeviceOptions {
    pub(super) policy: Policy,
    pub(super) mode: Option<Mode>,
    pub(super) budget: Option<u64>,
    pub(super) number: Option<u32>,
    pub(super) devno: Option<u16>,
    pub(super) disabled: bool,
    pub(super) hot_plugged: bool,
    pub(super) state: Option<Box<SubchannelState>>,
    pub(super) unsolicited: Option<u64>,
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

/// Where the guest finds it.
impl DeviceOptions {
    /// The state of its subchannel, and what of its PMCW never changes.
    pub(super) fn cell(&self, id: SubchannelId, host: Option<&Schib>) -> (Cell, Pmcw) {
        let fixed = match host {
            // Its paths are the host's, with all that belongs to them.
            Some(host) => {
                let devno = self.devno.map_or(host.pmcw.devno, Into::into);
                Pmcw::single_path(devno.get()).with_paths_of(&host.pmcw)
            }
            None => Pmcw::single_path(self.devno.unwrap_or(id.number())),
        };
        let enabled = if self.disabled { PmcwFlags::empty() } else { PmcwFlags::ENABLED };
        (Cell::new(id, &fixed.with(PmcwFlags::DEVICE_VALID | enabled, 0)), fixed)
    }

    /// Its subchannel. Default: the lowest number that is free.
    pub fn subchannel(mut self, id: SubchannelId) -> Self {
        self.number = Some(id.index().unwrap_or(u32::MAX));
        self
    }

    /// Its device number. Default: the number of its subchannel; for the host's devices, that on the
    /// host.
    pub fn devno(mut self, devno: u16) -> Self {
        self.devno = Some(devno);
        self
    }

    /// The subchannel is disabled until the guest enables it with MODIFY SUBCHANNEL, as after a reset.
    /// Default: it is enabled.
    pub fn disabled(mut self) -> Self {
        self.disabled = true;
        self
    }

    /// Status that the device has of its own accord (somebody has pressed a key, a volume was mounted)
    /// comes as a completion with this `user_data`, if results go to a ring. Default: such status is
    /// dropped. It is for devices that are the host's; those started by instruction interrupt with it.
    pub fn unsolicited(mut self, user_data: u64) -> Self {
        self.unsolicited = Some(user_data);
        self
    }

    /// The guest runs already and is told with a channel report. Default: it will find it by itself.
    pub fn hot_plugged(mut self) -> Self {
        self.hot_plugged = true;
        self
    }
}

/// What it goes on from.
impl DeviceOptions {
    /// It goes on from what [`Service::save`](crate::Service::save) has saved, at the same subchannel;
    /// device number and enablement are those of the state. Policy, mode and budget are not part of it.
    pub fn restore(mut self, state: SubchannelState) -> Self {
        self.number = Some(state.number);
        self.state = Some(Box::new(state));
        self
    }
}

impl From<Policy> for DeviceOptions {
    fn from(policy: Policy) -> Self {
        DeviceOptions::default().policy(policy)
    }
}
