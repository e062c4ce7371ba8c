//! A guest on the bench: its memory, the programs in it, and devices that run them.

pub mod dam;
pub mod fba;
pub mod fenced;
pub mod gated;
pub mod rewriting;
pub mod wired;

use std::sync::Arc;
use std::time::Duration;

use vfio_ccw::architecture::{Ccw, IrbHead, Orb};
use vfio_ccw::{
    Completion, Completions, DeviceSpec, Driver, DriverChoice, Policy, Service, ServiceBuilder,
    ServiceError, Subchannel,
};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Nothing here takes this long: who waits longer waits for something that was lost.
pub const STALL: Duration = Duration::from_secs(60);

/// A service and the memory of its guest, which starts at address 0.
#[derive(Debug)]
pub struct Bench {
    /// What the VMM holds of the guest's memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// The service under test.
    pub service: Service,
}

impl Bench {
    /// A service with every default over `bytes` of guest memory.
    pub fn new(bytes: usize) -> Self {
        Bench::with(Service::builder(), bytes)
    }

    /// The service that `builder` describes over `bytes` of guest memory.
    pub fn with(builder: ServiceBuilder, bytes: usize) -> Self {
        let memory = memory(bytes);
        let service = builder.build(memory.clone()).expect("the service starts");
        Bench { memory, service }
    }

    /// Attaches a device with a completion ring of its own.
    pub fn attach(&self, spec: DeviceSpec) -> Device {
        self.attach_with(spec, Policy::default())
    }

    /// The same for a device whose commands a policy judges.
    pub fn attach_with(&self, spec: DeviceSpec, policy: Policy) -> Device {
        let (delivery, completions) = Completions::ring(64).expect("an eventfd");
        let subchannel = self.service.attach_with(spec, delivery, policy);
        Device { subchannel: subchannel.expect("room for a device"), completions }
    }

    /// Writes bytes into guest memory.
    pub fn put(&self, at: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(at)).expect("inside guest memory");
    }

    /// Reads bytes from guest memory.
    pub fn peek(&self, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).expect("inside guest memory");
        bytes
    }

    /// Writes a format-1 program.
    pub fn put_program(&self, at: u32, ccws: &[Ccw]) {
        for (index, ccw) in ccws.iter().enumerate() {
            self.put(u64::from(at) + index as u64 * 8, &ccw.to_format_1());
        }
    }
}

/// Runs `test` on a fresh bench on each driver that works here.
pub fn on_each_driver(bytes: usize, test: impl Fn(&Bench)) {
    on_each_driver_of(Service::builder, bytes, test);
}

/// The same for the service that `builder` describes, with a registry of its own on each.
pub fn on_each_driver_of(
    builder: impl Fn() -> ServiceBuilder,
    bytes: usize,
    test: impl Fn(&Bench),
) {
    for driver in [Driver::IoUring, Driver::Epoll] {
        let memory = memory(bytes);
        match builder().driver(DriverChoice::Only(driver)).build(memory.clone()) {
            Err(error @ ServiceError::IoUring(_)) => println!("SKIPPED: {error}"),
            service => {
                println!("on {driver}");
                test(&Bench { memory, service: service.expect("the service starts") });
            }
        }
    }
}

/// `bytes` of guest memory from address 0.
pub fn memory(bytes: usize) -> Arc<GuestMemoryMmap> {
    let ranges = [(GuestAddress(0), bytes)];
    Arc::new(GuestMemoryMmap::from_ranges(&ranges).expect("address space for guest memory"))
}

/// A device and where its results come.
#[derive(Debug)]
pub struct Device {
    /// The VMM's handle.
    pub subchannel: Subchannel,
    /// The ring that only this device delivers to.
    pub completions: Completions,
}

impl Device {
    /// Waits for one completion and takes it.
    pub fn completion(&mut self) -> Completion {
        assert!(self.completions.wait(Some(STALL)).expect("poll"), "nothing completes");
        let mut taken = None;
        self.completions.reap(1, |completion| taken = Some(completion));
        taken.expect("there was one")
    }

    /// Runs one program and returns its status.
    pub fn run(&mut self, orb: &Orb) -> IrbHead {
        self.subchannel.submit(orb, 0x5ca1_ab1e).expect("an empty ring takes a request");
        let mut ended = None;
        while ended.is_none() {
            assert!(self.completions.wait(Some(STALL)).expect("poll"), "{orb:?} never ended");
            self.completions.reap(usize::MAX, |completion| {
                assert_eq!(completion.user_data, 0x5ca1_ab1e);
                assert!(ended.is_none(), "one start, one end, and nothing after it");
                ended = completion.is_final().then_some(completion.irb);
            });
        }
        ended.expect("reaped one")
    }
}
