//! I/O instructions by subchannel-identification word, and those that name no subchannel: what an
//! intercept handler calls.

use crate::architecture::{
    Crw, IoInterruption, IrbHead, Orb, OrbError, Schib, SchibError, SubchannelId, SubchannelIdError,
};
use crate::subchannel::{Cc, Subchannel};

use super::Service;

/// An operand exception of the guest: the instruction is suppressed, no subchannel was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OperandError {
    /// General register 1 names no subchannel.
    #[error(transparent)]
    Id(#[from] SubchannelIdError),
    /// The ORB of START SUBCHANNEL.
    #[error(transparent)]
    Orb(#[from] OrbError),
    /// The SCHIB of MODIFY SUBCHANNEL.
    #[error(transparent)]
    Schib(#[from] SchibError),
}

/// Instructions on the subchannel that `word` names: the contents of general register 1.
///
/// Operands come before the subchannel, as in QEMU (`target/s390x/ioinst.c`): what `word` and the block
/// say wrong is an [`OperandError`]; then comes cc 3 where there is no such subchannel, and then what
/// the method of the same name of [`Subchannel`] says. Alignment, access and privilege are the CPU's
/// business, before any of these; so is storing what they return.
///
/// ```
/// # use std::sync::Arc;
/// # use vfio_ccw::architecture::{IoInterruption, Orb};
/// # use vfio_ccw::{Cc, Delivery, DeviceSpec, Service, Silent};
/// # use vm_memory::{GuestAddress, GuestMemoryMmap};
/// # let ranges = [(GuestAddress(0), 1 << 20)];
/// # let service = Service::builder().build(Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges)?))?;
/// service.attach(DeviceSpec::Null, Delivery::interrupt(Silent))?;
///
/// let gr1 = 0x0001_0000; // subchannel 0.0.0000
/// assert_eq!(service.ssch(gr1, &Orb::new(0x1000))?, Cc::Cc0);
/// let interruption = loop {
///     if let Some(interruption) = service.tpi(0xff) {
///         break interruption;
///     }
/// };
/// let (cc, irb) = service.tsch(interruption.subchannel.into())?;
/// assert_eq!(cc, Cc::Cc0);
/// assert!(service.ssch(0, &Orb::new(0x1000)).is_err(), "an operand exception");
/// # let _ = irb;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
impl Service {
    /// The subchannel of this identification, if a device is attached there.
    pub fn subchannel(&self, id: SubchannelId) -> Option<Subchannel> {
        self.table.look_up(id.index()?).map(Subchannel::new)
    }

    fn named(&self, word: u32) -> Result<Option<Subchannel>, SubchannelIdError> {
        Ok(self.subchannel(SubchannelId::try_from(word)?))
    }

    /// START SUBCHANNEL, see [`Subchannel::ssch`].
    ///
    /// # Errors
    ///
    /// An operand exception.
    pub fn ssch(&self, word: u32, orb: &Orb) -> Result<Cc, OperandError> {
        let subchannel = self.named(word)?;
        orb.check()?;
        Ok(subchannel.map_or(Ok(Cc::Cc3), |subchannel| subchannel.ssch(orb))?)
    }

    /// TEST SUBCHANNEL, see [`Subchannel::tsch`]. With cc 3 there is nothing to store.
    ///
    /// # Errors
    ///
    /// An operand exception.
    pub fn tsch(&self, word: u32) -> Result<(Cc, IrbHead), OperandError> {
        let subchannel = self.named(word)?;
        Ok(subchannel.map_or_else(|| (Cc::Cc3, IrbHead::default()), |subchannel| subchannel.tsch()))
    }

    /// STORE SUBCHANNEL, see [`Subchannel::stsch`].
    ///
    /// * cc 0: the block; all zeros for a subchannel without a device that others follow;
    /// * cc 3: there is no subchannel with this number or a higher one.
    ///
    /// # Errors
    ///
    /// An operand exception.
    pub fn stsch(&self, word: u32) -> Result<(Cc, Schib), OperandError> {
        let id = SubchannelId::try_from(word)?;
        let empty = Schib::default();
        let Some(number) = id.index() else {
            return Ok((Cc::Cc3, empty));
        };
        Ok(match self.subchannel(id) {
            Some(subchannel) => (Cc::Cc0, subchannel.stsch()),
            None if self.is_last(number) => (Cc::Cc3, empty),
            None => (Cc::Cc0, empty),
        })
    }

    /// Whether no device has this number or a higher one in the same set.
    fn is_last(&self, number: u32) -> bool {
        let set_end = (number | 0xffff).saturating_add(1);
        self.table.is_empty_in(number..set_end)
    }

    /// MODIFY SUBCHANNEL, see [`Subchannel::msch`].
    ///
    /// # Errors
    ///
    /// An operand exception.
    pub fn msch(&self, word: u32, schib: &Schib) -> Result<Cc, OperandError> {
        let subchannel = self.named(word)?;
        schib.check()?;
        Ok(subchannel.map_or(Ok(Cc::Cc3), |subchannel| subchannel.msch(schib))?)
    }

    /// HALT SUBCHANNEL, see [`Subchannel::hsch`].
    ///
    /// # Errors
    ///
    /// An operand exception.
    pub fn hsch(&self, word: u32) -> Result<Cc, OperandError> {
        Ok(self.named(word)?.map_or(Cc::Cc3, |subchannel| subchannel.hsch()))
    }

    /// CLEAR SUBCHANNEL, see [`Subchannel::csch`].
    ///
    /// # Errors
    ///
    /// An operand exception.
    pub fn csch(&self, word: u32) -> Result<Cc, OperandError> {
        Ok(self.named(word)?.map_or(Cc::Cc3, |subchannel| subchannel.csch()))
    }

    /// RESUME SUBCHANNEL, see [`Subchannel::rsch`].
    ///
    /// # Errors
    ///
    /// An operand exception.
    pub fn rsch(&self, word: u32) -> Result<Cc, OperandError> {
        Ok(self.named(word)?.map_or(Cc::Cc3, |subchannel| subchannel.rsch()))
    }

    /// CANCEL SUBCHANNEL, see [`Subchannel::xsch`].
    ///
    /// # Errors
    ///
    /// An operand exception.
    pub fn xsch(&self, word: u32) -> Result<Cc, OperandError> {
        Ok(self.named(word)?.map_or(Cc::Cc3, |subchannel| subchannel.xsch()))
    }

    /// TEST PENDING INTERRUPTION: takes the interruption that comes first, of the subclasses that
    /// `subclasses` has, a bit each as in control register 6 (0x80 for subclass 0). Subclass 0 comes
    /// first; within a subclass, subchannels take turns. `Some` is cc 1: the code is to be stored. The
    /// status stays pending until TEST SUBCHANNEL.
    ///
    /// A VMM whose interrupt controller delivers what its triggers were told of does not call this for
    /// the same interruptions.
    pub fn tpi(&self, subclasses: u8) -> Option<IoInterruption> {
        self.interruptions.take(subclasses)
    }

    /// Whether an interruption of `subclasses` (as with [`Service::tpi`]) is pending: what a vCPU asks
    /// when it opens for I/O interruptions.
    pub fn has_interruption(&self, subclasses: u8) -> bool {
        self.interruptions.any(subclasses)
    }

    /// Tells triggers of interruptions of `subclasses` only (as with [`Service::tpi`]) from now on: those
    /// for which some vCPU is open. Interruptions of others stay pending, and their triggers are told
    /// when their subclass is among them again, unless the status was fetched before. Default: all.
    pub fn enable_interruptions(&self, subclasses: u8) {
        self.interruptions.enable(subclasses);
    }

    /// STORE CHANNEL REPORT WORD.
    ///
    /// * cc 0: a report;
    /// * cc 1: there is none, and the word is zero.
    pub fn stcrw(&self) -> (Cc, Crw) {
        self.reports.store()
    }

    /// The report that [`Service::stcrw`] gave could not be stored: it stays pending, as the
    /// instruction was suppressed.
    pub fn undo_stcrw(&self, crw: Crw) {
        self.reports.put_back(crw);
    }
}
