//! A saved service is stored as text and restored from it (feature `serde`).

use std::sync::Arc;

use vfio_ccw::architecture::{Ccw, Orb, command};
use vfio_ccw::{Cc, Delivery, DeviceOptions, DeviceSpec, Service, ServiceState, Silent};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

#[test]
fn a_state_goes_through_text_and_back() {
    let ranges = [(GuestAddress(0), 1 << 20)];
    let memory = Arc::new(GuestMemoryMmap::<()>::from_ranges(&ranges).unwrap());
    memory.write_slice(&Ccw::new(command::NOP, 0, 0).to_format_1(), GuestAddress(0x1000)).unwrap();
    let [here, there] = [(); 2].map(|()| {
        let service = Service::builder().build(memory.clone()).unwrap();
        service.quiesce(std::time::Duration::MAX).unwrap();
        service
    });
    let disk = here.attach(DeviceSpec::Null, Delivery::interrupt(Silent)).unwrap();
    assert_eq!(disk.ssch(&Orb::new(0x1000)), Ok(Cc::Cc0));

    let text = serde_json::to_string(&here.save().unwrap()).unwrap();
    let state: ServiceState = serde_json::from_str(&text).unwrap();
    for subchannel in &state.subchannels {
        let options = DeviceOptions::default().restore(subchannel.clone());
        there.attach_with(DeviceSpec::Null, Delivery::interrupt(Silent), options).unwrap();
    }
    there.restore(&state).unwrap();
    assert_eq!(there.save().unwrap(), state);
    there.resume();
    while there.tpi(0xff).is_none() {
        std::thread::yield_now();
    }
}
