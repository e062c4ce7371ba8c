//! A service that has ended holds nothing any more: alone in its process, as descriptors are counted.

pub mod descriptors;

use std::sync::Arc;

use descriptors::descriptors;
use vfio_ccw::{Completions, Delivery, DeviceSpec, Service, Silent};
use vm_memory::{GuestAddress, GuestMemoryMmap};

#[test]
fn descriptors_are_closed_and_memory_is_given_back() {
    let ranges = [(GuestAddress(0), 1 << 20)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).expect("address space"));
    let before = descriptors();
    for round in 0..3 {
        let service = Service::builder().build(memory.clone()).expect("a service");
        let (ring, completions) = Completions::ring(64).expect("an eventfd");
        let interrupt = Delivery::interrupt(Silent);
        let all = [ring, interrupt, Delivery::Future];
        let subchannels =
            all.map(|delivery| service.attach(DeviceSpec::Null, delivery).expect("attaches"));
        assert_ne!(descriptors(), before);
        // Handles may outlive their service, and hold no more than themselves.
        drop((service, completions));
        drop(subchannels);
        assert_eq!(descriptors(), before, "round {round}");
        assert_eq!(Arc::strong_count(&memory), 1, "round {round}");
    }
}
