//! A subchannel's handle, and the I/O instructions on it.

use std::sync::Arc;

use vfio_ccw_pinning::Mode;

use crate::architecture::{IrbHead, Orb, OrbError, Schib, SchibError, SubchannelId};
use crate::service::delivery::Delivery;

use super::{Cc, Origin, Request, Shared};

/// A device's subchannel. Clones are handles on the same one; any thread may use them.
///
/// The instructions have the checks, their order and the condition codes of QEMU's
/// `target/s390x/ioinst.c` and `hw/s390x/css.c`, but for what each says. None waits: each takes effect
/// at one moment, with a compare-and-swap that is tried again only where another vCPU's, or the
/// channel's, has taken effect meanwhile. At most one system call is made, to wake a shard that sleeps.
///
/// [`Service`](crate::Service) has the same instructions for a subchannel-identification word, for an
/// intercept handler that has no handle yet.
#[derive(Clone, Debug)]
pub struct Subchannel {
    pub(super) shared: Arc<Shared>,
}

impl Subchannel {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Subchannel { shared }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Which subchannel it is.
    pub fn id(&self) -> SubchannelId {
        self.shared.cell().id()
    }

    /// Its number over all subchannel sets, from 0.
    pub fn number(&self) -> u32 {
        self.shared.number()
    }

    /// When pages are pinned for its programs.
    pub fn mode(&self) -> Mode {
        self.shared.mode()
    }

    /// START SUBCHANNEL.
    ///
    /// What goes wrong later shows in the IRB: channel status, or a deferred condition code.
    ///
    /// * cc 0: the start function is in progress;
    /// * cc 1: status is pending, fetch it with [`Subchannel::tsch`];
    /// * cc 2: a start, halt or clear function is in progress;
    /// * cc 3: no device, not enabled, no path left in ORB.LPM, its server gone, or attached to be started otherwise
    ///   ([`Subchannel::submit`], [`Subchannel::start`]).
    ///
    /// # Errors
    ///
    /// An operand exception of the guest; the subchannel was not looked at.
    pub fn ssch(&self, orb: &Orb) -> Result<Cc, OrbError> {
        orb.check()?;
        let shared = &self.shared;
        if !matches!(shared.delivery(), Delivery::Interrupt(_)) {
            return Ok(Cc::Cc3);
        }
        // Of the host's paths the host knows: where none is left, that shows in the IRB.
        let has_path =
            (shared.is_of_host() || orb.lpm() & shared.fixed().pam != 0) && !shared.is_cut();
        let tag = match shared.cell().ssch(orb.intparm(), has_path) {
            Ok(tag) => tag,
            Err(cc) => return Ok(cc),
        };
        let origin = Origin::Instruction(tag);
        shared.push_start(Request { orb: *orb, origin, submitted: shared.now() });
        Ok(Cc::Cc0)
    }

    /// TEST SUBCHANNEL: the IRB, and its status is cleared, with an interruption that was pending for
    /// it.
    ///
    /// Intermediate status (PCI, suspension) that was not fetched before the program ended comes with
    /// the ending status, as one.
    ///
    /// * cc 0: status was pending, the IRB has it;
    /// * cc 1: no status was pending; the IRB's SCSW shows what is in progress;
    /// * cc 3: no device, or not enabled. Status of programs that were accepted can still be fetched
    ///   when the device has gone.
    pub fn tsch(&self) -> (Cc, IrbHead) {
        let (cc, irb) = self.shared.cell().tsch();
        if cc == Cc::Cc0 {
            self.shared.look_for_alert();
        }
        (cc, irb)
    }

    /// STORE SUBCHANNEL: the subchannel-information block, as it was at one moment. Always cc 0; of a
    /// device that has gone, without the V bit (device number valid).
    ///
    /// Of the host's device, the path masks are those that the host finds now, which takes one system
    /// call: a channel path may have been varied without a report.
    pub fn stsch(&self) -> Schib {
        let (pmcw, scsw) = self.shared.cell().stsch(self.shared.fixed());
        let pmcw = match self.shared.host_schib() {
            // What QEMU takes over, too (`vfio_ccw_handle_store`).
            Some(host) => pmcw.with_path_states_of(&host.pmcw),
            None if self.shared.is_cut() => pmcw.without_paths(),
            None => pmcw,
        };
        Schib { pmcw, scsw, ..Schib::default() }
    }

    /// MODIFY SUBCHANNEL: takes over enablement, interruption subclass, interruption parameter,
    /// logical-path mask, and the limit, measurement and multipath controls. Measurement blocks are
    /// not updated, and the path-operational mask and concurrent sense stay as they are.
    ///
    /// * cc 0: done; without a device nothing is;
    /// * cc 1: status is pending;
    /// * cc 2: a start, halt or clear function is in progress.
    ///
    /// # Errors
    ///
    /// An operand exception of the guest; the subchannel was not looked at.
    pub fn msch(&self, schib: &Schib) -> Result<Cc, SchibError> {
        schib.check()?;
        let cc = self.shared.cell().msch(&schib.pmcw);
        self.shared.look_for_alert();
        Ok(cc)
    }

    /// HALT SUBCHANNEL: the program that runs is ended at its next command, one that has not begun or
    /// is suspended does not go on. Its status is that of the halt function.
    ///
    /// * cc 0: the halt function is in progress;
    /// * cc 1: status is pending, other than intermediate status with something else;
    /// * cc 2: a halt or clear function is in progress;
    /// * cc 3: no device, not enabled, or attached to a ring ([`Subchannel::submit_halt`]) or for
    ///   futures (drop them).
    pub fn hsch(&self) -> Cc {
        self.function(|shared| shared.cell().hsch())
    }

    /// CLEAR SUBCHANNEL: as [`Subchannel::hsch`], and status that is pending goes too. When it is done,
    /// no transfer for what was started before is under way.
    ///
    /// * cc 0: the clear function is in progress;
    /// * cc 3: as with [`Subchannel::hsch`].
    pub fn csch(&self) -> Cc {
        self.function(|shared| shared.cell().csch())
    }

    fn function(&self, issue: impl FnOnce(&Shared) -> Cc) -> Cc {
        let shared = &self.shared;
        if !matches!(shared.delivery(), Delivery::Interrupt(_)) {
            return Cc::Cc3;
        }
        let cc = issue(shared);
        if cc == Cc::Cc0 {
            shared.ring();
        }
        cc
    }

    /// RESUME SUBCHANNEL: a program that has suspended itself goes on, and its suspending CCW is
    /// fetched again. For any kind of delivery.
    ///
    /// * cc 0: it will go on;
    /// * cc 1: status is pending, fetch it with [`Subchannel::tsch`];
    /// * cc 2: nothing is suspended, or it was resumed already, or is being halted or cleared;
    /// * cc 3: no device, or not enabled.
    pub fn rsch(&self) -> Cc {
        let cc = self.shared.cell().rsch();
        if cc == Cc::Cc0 {
            self.shared.ring();
        }
        cc
    }

    /// CANCEL SUBCHANNEL: a start whose program has not begun, or is suspended, is as if it had never
    /// been: no interruption follows.
    ///
    /// * cc 0: cancelled;
    /// * cc 1: status is pending;
    /// * cc 2: there is nothing to cancel, or it cannot be any more;
    /// * cc 3: no device, not enabled, or not started by instruction.
    pub fn xsch(&self) -> Cc {
        // Cancelled requests lie in the ring until the shard comes by. It must not fill up with them:
        // beyond half of it, a start counts as begun.
        let crowded = !self.shared.has_room(self.shared.ring_entries() / 2);
        self.function(|shared| shared.cell().xsch(crowded))
    }
}
