//! A disk driven with futures, which need no particular runtime, and a time limit for a program: a future
//! that is dropped clears it. Run it with `cargo run --example futures`.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use vfio_ccw::architecture::{Ccw, CcwFlags, Orb, command};
use vfio_ccw::{Delivery, DeviceSpec, Service};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the guest has put its channel programs.
const PROGRAM: u32 = 0x1000;
const ENDLESS: u32 = 0x2000;

fn main() -> Result<(), Box<dyn Error>> {
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)])?);
    let read = Ccw::new(command::READ_IPL, 0x10_0000, 512);
    memory.write_slice(&read.to_format_1(), GuestAddress(PROGRAM.into()))?;
    // READ and TIC back to it: until the channel has executed 65,536 CCWs.
    let again = read.with(CcwFlags::CHAIN_COMMAND);
    memory.write_slice(&again.to_format_1(), GuestAddress(ENDLESS.into()))?;
    let back = Ccw::new(command::TIC, ENDLESS, 0);
    memory.write_slice(&back.to_format_1(), GuestAddress(u64::from(ENDLESS) + 8))?;

    let service = Service::builder().build(memory)?;
    let disk = service.attach(DeviceSpec::Null, Delivery::Future)?;

    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
    runtime.block_on(async {
        // Several at once; they run in order.
        let starts: Vec<_> =
            (0..4).map(|_| disk.start(&Orb::new(PROGRAM))).collect::<Result<_, _>>()?;
        for start in starts {
            let irb = start.await;
            println!("{:?}", irb.scsw);
        }

        // One that gets no time: when the limit drops its future, the program is cleared.
        let limit = Duration::from_micros(1);
        match tokio::time::timeout(limit, disk.start(&Orb::new(ENDLESS))?).await {
            Ok(irb) => println!("ended in {limit:?}: {:?}", irb.scsw),
            Err(_) => println!("cleared after {limit:?}"),
        }
        let irb = disk.start(&Orb::new(PROGRAM))?.await;
        println!("the next one: {:?}", irb.scsw);
        Ok::<(), vfio_ccw::SubmitError>(())
    })?;
    Ok(())
}
