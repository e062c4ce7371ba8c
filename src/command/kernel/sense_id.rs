//! Asking a device what it is, through the whole pipeline.

use std::time::Duration;

use serde_json::json;
use vfio_ccw::architecture::{Ccw, CcwFlags, IrbHead, Orb, command};
use vfio_ccw::{Completions, DeviceSpec, Service, Subchannel};

use super::Reach;
use crate::command::{Failure, guest, say};

/// Bytes that SENSE ID gives at most: identity and eight command-information words.
const BYTES: u16 = 64;

/// Where program and data are.
const PROGRAM: u32 = 0x1000;
const DATA: u32 = 0x2000;

/// How long a device may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Options of `sense-id`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    vfio-ccw sense-id 0.0.0313                    a subchannel that vfio_ccw has\n  \
    vfio-ccw sense-id /dev/vfio/devices/vfio0     a character device\n  \
    vfio-ccw sense-id --interface type1 --json 3:5e5bbff1-3c2e-4b9c-8f5e-0a1b2c3d4e5f\n\n\
    vfio-ccw doctor lists the devices that there are.")]
pub(in crate::command) struct SenseId {
    /// The device: subchannel, UUID of the mediated device, GROUP:UUID, path in /sys, or character device.
    #[arg(value_name = "DEVICE")]
    device: String,
    #[command(flatten)]
    reach: Reach,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl SenseId {
    /// Asks, and prints the answer. `false`: the device gave none.
    pub(in crate::command) fn run(&self) -> Result<bool, Failure> {
        let (space, devices) = self.reach.open(std::slice::from_ref(&self.device))?;
        let interface = space.interface();
        let memory = guest::memory(1 << 20)?;
        let service = Service::builder().address_space(space).build(memory)?;
        let (delivery, mut completions) = Completions::ring(16)?;
        let device = devices.into_iter().next().ok_or("no device")?;
        let location = device.location().map(ToString::to_string).unwrap_or_default();
        let subchannel = service.attach(DeviceSpec::kernel(device), delivery)?;
        let pmcw = subchannel.stsch().pmcw;

        let sense_id = Ccw::new(command::SENSE_ID, DATA, BYTES).with(CcwFlags::SUPPRESS_LENGTH);
        if !service.memory().write(PROGRAM.into(), &sense_id.to_format_1()) {
            return Err("guest memory is too small".into());
        }
        let irb = run(&subchannel, &mut completions)?;
        let mut data = [0; BYTES as usize];
        service.memory().read(DATA.into(), &mut data);
        let identity = Identity::of(&irb, &data);
        if self.json {
            say(json!({
                "device": location,
                "interface": interface.to_string(),
                "devno": format!("{:04x}", pmcw.devno.get()),
                "paths": { "installed": pmcw.pim, "available": pmcw.pam, "operational": pmcw.pom,
                           "chpids": pmcw.chpid },
                "scsw": format!("{:?}", irb.scsw),
                "identity": identity.as_ref().map(Identity::json),
            }))?;
        } else {
            say(format_args!("{location}, device {:04x}, by {interface}", pmcw.devno.get()))?;
            match &identity {
                Some(identity) => say(identity.text())?,
                None => say(format_args!("no answer: {irb:?}"))?,
            }
        }
        Ok(identity.is_some())
    }
}

fn run(subchannel: &Subchannel, completions: &mut Completions) -> Result<IrbHead, Failure> {
    subchannel.submit(&Orb::new(PROGRAM), 0)?;
    completions.wait(Some(PATIENCE))?;
    let mut irb = None;
    completions.reap(1, |completion| irb = Some(completion.irb));
    irb.ok_or_else(|| format!("the device has not answered in {PATIENCE:?}").into())
}

/// What a device says that it is.
struct Identity {
    control_unit: (u16, u8),
    device: (u16, u8),
    /// Command-information words.
    commands: Vec<[u8; 4]>,
}

impl Identity {
    /// Of the answer in `data`, where the program has ended well.
    fn of(irb: &IrbHead, data: &[u8; BYTES as usize]) -> Option<Self> {
        if !irb.scsw.is_clean_end() || data[0] != 0xff {
            return None;
        }
        let word = |at: usize| u16::from_be_bytes([data[at], data[at + 1]]);
        let words = data[8..].as_chunks::<4>().0;
        // Bits 0 and 1 of a word that is one are 01 (Linux `read_ciw`).
        let commands = words.iter().take_while(|word| word[0] >> 6 == 1).copied().collect();
        Some(Identity { control_unit: (word(1), data[3]), device: (word(4), data[6]), commands })
    }

    fn text(&self) -> String {
        let model = |(kind, model): (u16, u8)| format!("{kind:04x}/{model:02x}");
        let mut text =
            format!("control unit {}, device {}", model(self.control_unit), model(self.device));
        for [kind, code, high, low] in &self.commands {
            let bytes = u16::from_be_bytes([*high, *low]);
            text += &format!("\ncommand of type {:x}: {code:02x}, {bytes} bytes", kind & 0x0f);
        }
        text
    }

    fn json(&self) -> serde_json::Value {
        let model =
            |(kind, model): (u16, u8)| json!({ "type": format!("{kind:04x}"), "model": model });
        let commands = self.commands.iter().map(|[kind, code, high, low]| {
            json!({ "type": kind & 0x0f, "command": code, "bytes": u16::from_be_bytes([*high, *low]) })
        });
        json!({
            "control_unit": model(self.control_unit),
            "device": model(self.device),
            "commands": commands.collect::<Vec<_>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vfio_ccw::architecture::{DeviceStatus, Scsw, SubchannelStatus};

    #[test]
    fn an_identity_is_read_with_its_commands() {
        let clean = DeviceStatus::CHANNEL_END | DeviceStatus::DEVICE_END;
        let scsw = Scsw::default().with_status(clean, SubchannelStatus::empty(), 0);
        let irb = IrbHead { scsw, ..IrbHead::default() };
        let mut data = [0; BYTES as usize];
        assert!(Identity::of(&irb, &data).is_none(), "the first byte is not ff");
        data[..7].copy_from_slice(&[0xff, 0x39, 0x90, 0xe9, 0x33, 0x90, 0x0a]);
        data[8..16].copy_from_slice(&[0x40, 0xfa, 0x01, 0x00, 0x41, 0x27, 0x00, 0x04]);
        let identity = Identity::of(&irb, &data).unwrap();
        assert_eq!(identity.text().lines().next(), Some("control unit 3990/e9, device 3390/0a"));
        assert!(identity.text().contains("type 0: fa, 256 bytes"), "{}", identity.text());
        assert_eq!(identity.json()["commands"][1]["command"], 0x27);
        assert!(Identity::of(&IrbHead::default(), &data).is_none(), "it did not end well");
    }
}
