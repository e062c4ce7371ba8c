//! A disk driven by I/O instructions, as a VMM's intercept handlers do it: a vCPU thread that issues
//! START SUBCHANNEL, an interrupt, TEST SUBCHANNEL, and what HALT, CLEAR and hot-unplug look like. Run it
//! with `cargo run --example instructions`.

use std::error::Error;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vfio_ccw::architecture::{Ccw, CcwFlags, IrbHead, Orb, PmcwFlags, command};
use vfio_ccw::volume::Volume;
use vfio_ccw::{Cc, Delivery, DeviceSpec, Service, Subchannel};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Where the guest has put its channel program, its parameters and its data.
const PROGRAM: u32 = 0x1000;
const PARAMETERS: u32 = 0x2000;
const DATA: u32 = 0x3000;

type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

fn main() -> Outcome {
    // The VMM's own: guest memory, an image, and a way to interrupt (here an eventfd, as irqfd is).
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)])?);
    let image = tempfile::NamedTempFile::new()?;
    image.as_file().set_len(1 << 20)?;
    let volume = Arc::new(Volume::open(image.path(), false)?);
    let interrupt = Arc::new(EventFd::new(0)?);

    // The service: one shard thread, at most 8 MiB of guest memory pinned.
    let service = Service::builder().budget(8 << 20).build(memory.clone())?;
    let disk = service.attach(DeviceSpec::Fba(volume), Delivery::Interrupt(interrupt.clone()))?;
    println!("subchannel {}: {:?}", disk.number(), disk.stsch().pmcw);

    // A vCPU runs the guest's driver; its I/O instructions are intercepted and come here.
    let guest = Guest { disk: disk.clone(), memory, interrupt };
    thread::spawn(move || guest.run()).join().map_err(|_| "the vCPU thread panicked")??;

    // The guest can also be served by subchannel-identification word, as instructions name subchannels.
    let gr1 = u32::from(disk.id());
    let (cc, schib) = service.stsch(gr1)?;
    println!("STSCH {gr1:#010x}: cc {}, device {:#06x}", cc as u8, schib.pmcw.devno.get());

    // Hot-unplug: what was started ends, the guest is told with a channel report, later starts are told
    // that there is no device.
    service.drain(disk.clone(), Duration::from_secs(5))?;
    let (_, report) = service.stcrw();
    println!("detached: STCRW {report:?}, SSCH cc {}", disk.ssch(&Orb::new(PROGRAM))? as u8);
    Ok(())
}

struct Guest {
    disk: Subchannel,
    memory: Arc<GuestMemoryMmap>,
    interrupt: Arc<EventFd>,
}

impl Guest {
    /// Identifies the disk, writes a block, reads it back, disables the subchannel.
    fn run(&self) -> Outcome {
        // Nothing has ended yet: TEST SUBCHANNEL says so with cc 1.
        assert_eq!(self.disk.tsch().0, Cc::Cc1);

        self.start(&[Ccw::new(command::SENSE_ID, DATA, 7)])?;
        let mut id = [0; 7];
        self.memory.read_slice(&mut id, GuestAddress(DATA.into()))?;
        println!("SENSE ID: control unit {:02x?}, device {:02x?}", &id[1..3], &id[4..6]);

        self.memory.write_slice(&[0xc3; 512], GuestAddress(DATA.into()))?;
        self.transfer(command::FBA_WRITE, DATA)?;
        self.transfer(command::FBA_READ, DATA + 512)?;
        let mut back = [0; 512];
        self.memory.read_slice(&mut back, GuestAddress(u64::from(DATA) + 512))?;
        assert_eq!(back, [0xc3; 512]);
        println!("block 9: written and read back");

        // A program in an endless loop, and CLEAR SUBCHANNEL.
        self.put(&[
            Ccw::new(command::NOP, 0, 0).with(CcwFlags::CHAIN_COMMAND),
            Ccw::new(command::TIC, PROGRAM, 0),
        ])?;
        assert_eq!(self.disk.ssch(&Orb::new(PROGRAM))?, Cc::Cc0);
        assert_eq!(self.disk.csch(), Cc::Cc0);
        let irb = self.status()?;
        println!("cleared: {:?}", irb.scsw);

        let pmcw = self.disk.stsch().pmcw;
        let disabled = pmcw.with(pmcw.flags() - PmcwFlags::ENABLED, pmcw.isc());
        assert_eq!(self.disk.msch(&disabled.into())?, Cc::Cc0);
        println!("disabled: SSCH cc {}", self.disk.ssch(&Orb::new(PROGRAM))? as u8);
        Ok(())
    }

    /// DEFINE EXTENT, LOCATE and one READ or WRITE of block 9, as a guest's driver chains them.
    fn transfer(&self, code: u8, data: u32) -> Outcome {
        let operation = if code == command::FBA_WRITE { 0x01 } else { 0x06 };
        // Extent: 512-byte blocks, the first is 9, logical blocks 0 to 0. Locate: one block from 0.
        let extent = [0, 0, 2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0];
        let locate = [operation, 0, 0, 1, 0, 0, 0, 0];
        self.memory.write_slice(&extent, GuestAddress(PARAMETERS.into()))?;
        self.memory.write_slice(&locate, GuestAddress(u64::from(PARAMETERS) + 16))?;
        let chain = CcwFlags::CHAIN_COMMAND;
        self.start(&[
            Ccw::new(command::DEFINE_EXTENT, PARAMETERS, 16).with(chain),
            Ccw::new(command::FBA_LOCATE, PARAMETERS + 16, 8).with(chain),
            Ccw::new(code, data, 512),
        ])
    }

    /// START SUBCHANNEL, wait for the interrupt, TEST SUBCHANNEL.
    fn start(&self, program: &[Ccw]) -> Outcome {
        self.put(program)?;
        // cc 0: accepted, the vCPU goes on. cc 1: status pending. cc 2: busy. cc 3: no device.
        assert_eq!(self.disk.ssch(&Orb::new(PROGRAM).with_intparm(0x5a))?, Cc::Cc0);
        let irb = self.status()?;
        if irb.scsw.is_clean_end() { Ok(()) } else { Err(format!("{irb:?}").into()) }
    }

    fn put(&self, program: &[Ccw]) -> Outcome {
        for (address, ccw) in (PROGRAM..).step_by(8).zip(program) {
            self.memory.write_slice(&ccw.to_format_1(), GuestAddress(address.into()))?;
        }
        Ok(())
    }

    fn status(&self) -> Outcome<IrbHead> {
        loop {
            self.interrupt.read()?;
            // cc 1: an interruption of status that was cleared before it could be fetched.
            if let (Cc::Cc0, irb) = self.disk.tsch() {
                return Ok(irb);
            }
        }
    }
}
