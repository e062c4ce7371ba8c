//! What is done with devices of the kernel's vfio-ccw: asking one what it is, and measuring some.

mod bare;
mod load;
mod sense_id;

use vfio_ccw::backend::kernel::{AddressSpace, Device, Interface, Location};

use super::Failure;

pub(super) use load::KernelLoad;
pub(super) use sense_id::SenseId;

/// How devices are reached.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Reach {
    /// What the devices see memory through: type1 (group and container), iommufd (character device) or auto
    /// (the latter where the kernel has it).
    #[arg(long, value_name = "INTERFACE", default_value = "auto", value_parser = interface)]
    interface: Choice,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Choice {
    Auto,
    Only(Interface),
}

fn interface(word: &str) -> Result<Choice, String> {
    match word {
        "auto" => Ok(Choice::Auto),
        "type1" => Ok(Choice::Only(Interface::Type1)),
        "iommufd" => Ok(Choice::Only(Interface::Iommufd)),
        other => Err(format!("'{other}' is not an interface: use type1, iommufd or auto")),
    }
}

impl Reach {
    /// Opens the devices that `words` name, in one address space.
    fn open(self, words: &[String]) -> Result<(AddressSpace, Vec<Device>), Failure> {
        let locations: Vec<_> =
            words.iter().map(|word| Location::find(word)).collect::<Result<_, _>>()?;
        let has_cdevs = locations.iter().all(|location| location.cdev.is_some());
        let space = match self.interface {
            Choice::Only(interface) => AddressSpace::new(interface)?,
            Choice::Auto if has_cdevs => AddressSpace::iommufd().or_else(|error| {
                tracing::info!(%error, "no iommufd: type1 instead");
                AddressSpace::container()
            })?,
            Choice::Auto => AddressSpace::container()?,
        };
        let devices = locations.iter().map(|location| space.open(location));
        let devices = devices.collect::<Result<_, _>>()?;
        Ok((space, devices))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interfaces_have_names() {
        assert_eq!(interface("type1"), Ok(Choice::Only(Interface::Type1)));
        assert_eq!(interface("iommufd"), Ok(Choice::Only(Interface::Iommufd)));
        assert_eq!(interface("auto"), Ok(Choice::Auto));
        assert!(interface("vfio").unwrap_err().contains("use type1, iommufd or auto"));
    }
}
