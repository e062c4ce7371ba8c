//! Disks driven through rings, as io_uring is: submissions with user data, completions with the same, one
//! ring for as many disks as one likes. Run it with `cargo run --example ring`.

use std::error::Error;
use std::sync::Arc;
use std::time::Duration;

use vfio_ccw::architecture::{Ccw, Orb, ScswFlags, command};
use vfio_ccw::{Completions, DeviceSpec, Service, SubmitError};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where the guest has put its channel programs, one for each disk, and what they read into.
const PROGRAMS: u32 = 0x1000;
const DATA: u32 = 0x10_0000;

const DISKS: u32 = 4;

fn main() -> Result<(), Box<dyn Error>> {
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 16 << 20)])?);
    for disk in 0..DISKS {
        let read = Ccw::new(command::READ_IPL, DATA + disk * 0x1000, 512);
        memory.write_slice(&read.to_format_1(), GuestAddress((PROGRAMS + disk * 8).into()))?;
    }

    let service = Service::builder().build(memory)?;
    // Results that find the ring full are kept aside and counted, never lost.
    let (delivery, mut completions) = Completions::ring(64)?;
    let disks = (0..DISKS)
        .map(|_| service.attach(DeviceSpec::Null, delivery.clone()))
        .collect::<Result<Vec<_>, _>>()?;

    // As many as each disk's submission ring takes, none of it blocks.
    let mut submitted = 0;
    for (disk, program) in disks.iter().zip((PROGRAMS..).step_by(8)) {
        loop {
            match disk.submit(&Orb::new(program), submitted) {
                Ok(()) => submitted += 1,
                Err(SubmitError::Full { entries }) => {
                    println!("{}: {entries} programs submitted", disk.id());
                    break;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    let mut ended = 0;
    while ended < submitted {
        completions.wait(Some(Duration::from_secs(10)))?;
        completions.reap(32, |completion| {
            assert!(completion.irb.scsw.is_clean_end(), "{completion:?}");
            ended += 1;
        });
    }
    println!("{ended} programs have ended");

    // CLEAR overtakes what waits: everything completes, the clear itself last.
    let [first, ..] = &disks[..] else { unreachable!("there are four") };
    for user_data in 1..=8 {
        first.submit(&Orb::new(PROGRAMS), user_data)?;
    }
    first.submit_clear(100)?;
    let mut over = false;
    while !over {
        completions.wait(Some(Duration::from_secs(10)))?;
        completions.reap(32, |completion| {
            let flags = completion.irb.scsw.flags();
            let cleared = flags.contains(ScswFlags::CLEAR_FUNCTION);
            println!("{}: {}", completion.user_data, if cleared { "cleared" } else { "ended" });
            over = completion.user_data == 100;
        });
    }
    Ok(())
}
