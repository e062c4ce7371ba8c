//! A server and its client that have ended hold nothing any more: alone in its process, as descriptors, mappings and
//! threads are counted.

pub mod bench_guest;
pub mod descriptors;
pub mod served;

use std::thread;

use bench_guest::gated::Gate;
use descriptors::descriptors;
use served::{BOTH_WAYS, Rig, Served, mappings};
use vfio_ccw::architecture::{Ccw, Orb, command};
use vfio_ccw::server::{ServedDevice, Server, ServerError};
use vfio_ccw::{Driver, DriverChoice, Service};

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").expect("there is /proc").count()
}

#[test]
fn descriptors_are_closed_and_memory_is_given_back() {
    let image = bench_guest::fba::Image::new(64);
    for driver in [Driver::IoUring, Driver::Epoll] {
        for way in BOTH_WAYS {
            let before = (descriptors(), threads());
            for round in 0..3 {
                println!("{driver}, {way:?}, round {round}");
                let gate = Gate::shut();
                let devices = vec![
                    ServedDevice::null(0x1000),
                    ServedDevice::fba(0x1001, image.volume(false)),
                    gate.served(0x1002),
                ];
                let server = Server::new().driver(DriverChoice::Only(driver));
                let served = match Served::with(server, devices) {
                    Err(error @ ServerError::IoUring(_)) => {
                        println!("SKIPPED: {error}");
                        continue;
                    }
                    served => served.expect("the server starts"),
                };
                let rig = Rig { bench: served::bench(Service::builder(), MEMORY), served, way };
                rig.bench.put_program(PROGRAM, &[Ccw::new(command::SENSE_ID, 0x2000, 7)]);
                let mut all: Vec<_> = (0..3).map(|number| rig.attach(number)).collect();
                for device in &mut all[..2] {
                    assert!(device.run(&Orb::new(PROGRAM)).scsw.is_clean_end());
                }
                // One device leaves before the rest, and one has a program that runs.
                let leaves = all.remove(0);
                rig.bench.service.detach(leaves.subchannel.clone());
                all[1].subchannel.submit(&Orb::new(PROGRAM), 1).unwrap();
                gate.wait_for_arrivals(1);
                assert!(mappings("guest") > 1, "the server maps the guest, too");
                let Rig { bench, served, .. } = rig;
                // Either may be the first to go, and handles may outlive their service.
                match round {
                    0 => {
                        gate.open();
                        served.end().unwrap();
                        drop(bench);
                    }
                    _ => {
                        thread::scope(|scope| {
                            let ends = scope.spawn(|| drop(bench));
                            gate.open();
                            ends.join().unwrap();
                        });
                        served.end().unwrap();
                    }
                }
                drop((all, leaves));
                assert_eq!(mappings("guest"), 0);
                assert_eq!(mappings("vfio-ccw-lane"), 0);
                assert_eq!((descriptors(), threads()), before);
            }
        }
    }
}
