//! What the log says when something is slow, or breaks.

pub mod bench_guest;

use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bench_guest::Bench;
use vfio_ccw::architecture::{Ccw, Orb, SubchannelStatus, command};
use vfio_ccw::channel_subsystem::{Data, Device, Ending, Sense};
use vfio_ccw::{DeviceSpec, FlightRecorder, Service};
use vfio_ccw_metrics::DeviceClass;

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;
const BUFFER: u32 = 0x1_0000;

/// What was logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("no panic here").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn take(&self) -> String {
        let bytes = std::mem::take(&mut *self.0.lock().expect("no panic here"));
        String::from_utf8(bytes).expect("text")
    }
}

/// A device that breaks over WRITE.
struct Brittle;

impl Device for Brittle {
    fn class(&self) -> DeviceClass {
        DeviceClass::Other
    }

    fn begin(&mut self) {}

    async fn command(&mut self, code: u8, data: &mut Data<'_>) -> Ending {
        assert_ne!(code, 0x01, "as the test wants it");
        data.store(&[7; 8]);
        Ending::done()
    }

    fn take_sense(&mut self) -> Sense {
        Sense::none(24)
    }
}

/// One test, as all log to one place.
#[test]
fn slow_requests_and_panics_are_told_with_channel_programs() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(move || writer.clone());
    tracing::subscriber::set_global_default(subscriber.finish()).expect("the only one");

    // Each is slow, and one of them is told of.
    let slow = FlightRecorder { slow: Duration::from_nanos(1), ..FlightRecorder::default() };
    let bench = Bench::with(Service::builder().flight_recorder(slow), MEMORY);
    bench.put_program(PROGRAM, &[Ccw::new(command::READ_IPL, BUFFER, 8)]);
    let mut device = bench.attach(DeviceSpec::Null);
    for _ in 0..10 {
        assert!(device.run(&Orb::new(PROGRAM)).scsw.is_clean_end());
    }
    let id = device.subchannel.id();
    // What is delivered was told of before.
    let text = log.take();
    let slow: Vec<_> = text.lines().filter(|line| line.contains("a slow request")).collect();
    assert!((1..10).contains(&slow.len()), "{text}");
    for words in [&format!("{id} shard 0 null read: ok"), "total ", "02 read count=8"] {
        assert!(slow[0].contains(words), "{text}");
    }
    assert!(!text.contains("before the panic"), "{text}");

    // The one that breaks takes nobody along, and its last requests are told.
    let mut brittle = bench.attach(DeviceSpec::model(DeviceClass::Other, || Brittle));
    let text = log.take();
    assert!(!text.contains("ERROR"), "{text}");
    assert!(brittle.run(&Orb::new(PROGRAM)).scsw.is_clean_end());
    bench.put_program(PROGRAM + 8, &[Ccw::new(0x01, BUFFER, 8)]);
    let irb = brittle.run(&Orb::new(PROGRAM + 8));
    let broken = SubchannelStatus::INTERFACE_CONTROL_CHECK;
    assert_eq!(irb.scsw.subchannel_status(), broken);
    assert!(device.run(&Orb::new(PROGRAM)).scsw.is_clean_end());
    let text = log.take();
    let last: Vec<_> = text.lines().filter(|line| line.contains("before the panic")).collect();
    assert!(last.len() >= 2, "{text}");
    let id = brittle.subchannel.id();
    let [.., before, broken] = last[..] else { unreachable!() };
    assert!(before.contains(&format!("{id} shard 0 other read: ok")), "{text}");
    assert!(broken.contains(&format!("{id} shard 0 other write: other_channel")), "{text}");
}
