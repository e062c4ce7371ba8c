//! Unit checks by what the device says was wrong.

use crate::stage::label_set;

label_set! {
    /// What a unit check was about: the first bit that is set in byte 0 of the sense data, which all
    /// classes of devices share (SA22-7204, "Sense").
    pub enum SenseClass {
        CommandReject = "command_reject", "The device does not perform the command, or not as it was asked to.";
        InterventionRequired = "intervention_required", "Somebody has to see to the device.";
        BusOutCheck = "bus_out_check", "A command or data came to the device damaged.";
        EquipmentCheck = "equipment_check", "The device is broken.";
        DataCheck = "data_check", "Data on the medium cannot be read.";
        Overrun = "overrun", "Data did not come or go in time.";
        Other = "other", "A bit that the class of the device gives a meaning.";
        None = "none", "No sense data came with the status: the guest has to ask for it.";
    }
}

impl SenseClass {
    /// What `sense` says.
    #[must_use]
    pub fn of(sense: &[u8]) -> Self {
        match sense.first().map(|byte| byte.leading_zeros()) {
            None => Self::None,
            Some(0) => Self::CommandReject,
            Some(1) => Self::InterventionRequired,
            Some(2) => Self::BusOutCheck,
            Some(3) => Self::EquipmentCheck,
            Some(4) => Self::DataCheck,
            Some(5) => Self::Overrun,
            Some(_) => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bit_says_what_it_is() {
        assert_eq!(SenseClass::of(&[]), SenseClass::None);
        let first = [0x80, 0x40, 0x20, 0x10, 0x08, 0x04, 0x02, 0x01, 0x00];
        let classes = first.map(|byte| SenseClass::of(&[byte, 0xff]));
        assert_eq!(classes[..6], SenseClass::ALL[..6]);
        assert_eq!(classes[6..], [SenseClass::Other; 3]);
        assert_eq!(SenseClass::of(&[0xff]), SenseClass::CommandReject);
    }
}
