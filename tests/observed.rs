//! What an operator sees of a service: that it is what has happened.

pub mod bench_guest;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bench_guest::fba::{self, Image};
use bench_guest::gated::{Gate, TRANSFER};
use bench_guest::wired::Wired;
use bench_guest::{Bench, STALL};
use vfio_ccw::architecture::{Ccw, DeviceStatus, Orb, SubchannelId, command};
use vfio_ccw::{
    Cc, Delivery, DeviceSpec, FlightRecorder, Service, ServiceBuilder, SubchannelSeries,
};
use vfio_ccw_metrics::{
    CounterKind, DeviceClass, Endpoint, Kind, Operation, Outcome, SenseClass, Stage,
};

const MEMORY: usize = 1 << 20;
const PROGRAM: u32 = 0x1000;
const BUFFER: u32 = 0x1_0000;

fn bench(builder: ServiceBuilder) -> Bench {
    let bench = Bench::with(builder, MEMORY);
    bench.put_program(PROGRAM, &[Ccw::new(command::READ_IPL, BUFFER, TRANSFER as u16)]);
    bench
}

/// The value of the series that `page` writes so.
#[track_caller]
fn value(page: &str, series: &str) -> f64 {
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    let value = line.unwrap_or_else(|| panic!("no {series} in {page}"));
    value.parse().expect("a number")
}

#[test]
fn requests_are_kept_by_what_they_do() {
    bench_guest::on_each_driver(MEMORY, |bench| {
        let image = Image::new(64);
        let mut disk = bench.attach(image.disk());
        let before = bench.service.totals();
        fba::put_transfer(bench, PROGRAM, command::FBA_READ, 5, 1, BUFFER);
        fba::put_transfer(bench, PROGRAM + 0x1000, command::FBA_WRITE, 5, 1, BUFFER);
        bench.put_program(PROGRAM + 0x2000, &[Ccw::new(command::NOP, 0, 0)]);
        let (read, write) = (PROGRAM + fba::CCWS, PROGRAM + 0x1000 + fba::CCWS);
        for (times, program) in [(3, read), (2, write), (4, PROGRAM + 0x2000)] {
            for _ in 0..times {
                assert!(disk.run(&Orb::new(program)).scsw.is_clean_end());
            }
        }
        let totals = bench.service.totals().minus(&before);
        for stage in Stage::ALL {
            for (operation, times) in
                [(Operation::Read, 3), (Operation::Write, 2), (Operation::Control, 4)]
            {
                let kind = Kind { class: DeviceClass::Fba, operation };
                let count = totals.stage_in(kind, stage).expect("attached").count();
                assert_eq!(count, times, "{stage} {operation}");
            }
        }
    });
}

#[test]
fn unit_checks_are_told_by_their_sense() {
    let bench = bench(Service::builder());
    let image = Image::new(64);
    let mut disk = bench.attach(image.disk());
    // A command that no such disk knows.
    bench.put_program(PROGRAM, &[Ccw::new(0x9b, BUFFER, 8)]);
    let irb = disk.run(&Orb::new(PROGRAM));
    let sense = SenseClass::of(irb.sense());
    let totals = bench.service.totals();
    assert_eq!(totals.unit_checks(sense), 1);
    assert!(matches!(sense, SenseClass::CommandReject | SenseClass::None), "{sense}");
    let page = bench.service.registry().render();
    assert_eq!(value(&page, &format!("vfio_ccw_unit_checks_total{{sense=\"{sense}\"}}")), 1.0);
}

#[test]
fn what_waits_and_what_runs_is_seen_while_it_does() {
    let bench = bench(Service::builder());
    let gate = Gate::shut();
    let mut held = bench.attach(gate.device());
    let mut other = bench.attach(DeviceSpec::Null);
    let page = || bench.service.registry().render();
    for (series, expected) in
        [("subchannels", 2.0), ("requests_queued", 0.0), ("requests_in_flight", 0.0)]
    {
        assert_eq!(value(&page(), &format!("vfio_ccw_{series}")), expected);
    }
    for user_data in 0..4 {
        held.subchannel.submit(&Orb::new(PROGRAM), user_data).unwrap();
    }
    gate.wait_for_arrivals(1);
    assert!(other.run(&Orb::new(PROGRAM)).scsw.is_clean_end());
    let (one, two) = (page(), page());
    assert_eq!(value(&one, "vfio_ccw_requests_queued"), 3.0);
    assert_eq!(value(&one, "vfio_ccw_requests_in_flight"), 1.0);
    let age = |page: &str| value(page, "vfio_ccw_oldest_request_seconds");
    assert!(age(&one) > 0.0 && age(&two) > age(&one), "{} then {}", age(&one), age(&two));
    let id = held.subchannel.id();
    let labels = format!("{{subchannel=\"{id}\",class=\"{}\"}}", DeviceClass::Other);
    let of_held =
        |page: &str, name: &str| value(page, &format!("vfio_ccw_subchannel_{name}{labels}"));
    assert_eq!(of_held(&one, "requests_total"), 0.0);
    assert_eq!(
        of_held(&one, "oldest_request_seconds"),
        age(&one).max(of_held(&one, "oldest_request_seconds"))
    );
    gate.open();
    for user_data in 0..4 {
        assert_eq!(held.completion().user_data, user_data);
    }
    let page = page();
    assert_eq!(age(&page), 0.0);
    assert_eq!(value(&page, "vfio_ccw_requests_queued"), 0.0);
    assert_eq!(of_held(&page, "requests_total"), 4.0);
    assert_eq!(of_held(&page, "errors_total"), 0.0);
    assert!(of_held(&page, "busy_seconds_total") > 0.0);
    // The next device in its place begins anew.
    bench.service.drain(held.subchannel, STALL).unwrap();
    let again = bench.attach(DeviceSpec::Null);
    assert_eq!(again.subchannel.id(), id);
    let labels = format!("{{subchannel=\"{id}\",class=\"null\"}}");
    let page = bench.service.registry().render();
    assert_eq!(value(&page, &format!("vfio_ccw_subchannel_requests_total{labels}")), 0.0);
    assert!(!page.contains(&format!("{{subchannel=\"{id}\",class=\"other\"}}")));
}

#[test]
fn few_subchannels_have_series_of_their_own() {
    const ALL: usize = 12;
    let ids = |page: &str| {
        let lines = page.lines().filter_map(|line| {
            line.strip_prefix("vfio_ccw_subchannel_requests_total{subchannel=\"")
        });
        lines
            .map(|line| line.split('"').next().unwrap().parse().unwrap())
            .collect::<Vec<SubchannelId>>()
    };
    let number = |number: u16| SubchannelId::new(0, number);
    for (series, expected) in [
        (SubchannelSeries::Off, vec![]),
        (SubchannelSeries::Busiest(2), vec![number(3), number(7)]),
        (SubchannelSeries::Busiest(256), (0..ALL as u16).map(number).collect()),
        (
            SubchannelSeries::Chosen(vec![number(9), number(1), number(100)]),
            vec![number(1), number(9)],
        ),
    ] {
        println!("{series:?}");
        let bench = bench(Service::builder().subchannel_series(series));
        let mut devices: Vec<_> = (0..ALL).map(|_| bench.attach(DeviceSpec::Null)).collect();
        for busy in [3, 7] {
            for _ in 0..10 {
                assert!(devices[busy].run(&Orb::new(PROGRAM)).scsw.is_clean_end());
            }
        }
        assert_eq!(ids(&bench.service.registry().render()), expected);
    }
    let too_many = Service::builder().subchannel_series(SubchannelSeries::Busiest(257));
    let error = too_many.build(bench_guest::memory(MEMORY)).expect_err("too many");
    assert!(error.to_string().contains("subchannel_series"), "{error}");
}

#[test]
fn all_that_a_service_shows_is_documented() {
    const DOCUMENT: &str = include_str!("../docs/METRICS.md");
    let bench = bench(Service::builder());
    let mut device = bench.attach(DeviceSpec::Null);
    device.run(&Orb::new(PROGRAM));
    let page = bench.service.registry().render();
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let types: Vec<_> = types.collect();
    assert!(types.len() > 40, "{page}");
    for (name, kind) in &types {
        assert!(DOCUMENT.contains(&format!("| `{name}` | {kind} |")), "{name}, a {kind}");
    }
    // And the other way round, but for what device servers have.
    for line in DOCUMENT.lines().filter_map(|line| line.strip_prefix("| `vfio_ccw_")) {
        let name = line.split('`').next().expect("a name");
        let is_shown = types.iter().any(|(shown, _)| *shown == format!("vfio_ccw_{name}"));
        assert!(is_shown || name.starts_with("server_"), "vfio_ccw_{name} is not there");
    }
}

#[test]
fn a_registry_outlives_its_service() {
    let bench = bench(Service::builder());
    let device = bench.service.attach(DeviceSpec::Null, Delivery::Future).unwrap();
    let registry = bench.service.registry().clone();
    assert!(registry.render().contains("vfio_ccw_subchannel_requests_total{"));
    drop((device, bench));
    let page = registry.render();
    assert!(!page.contains("vfio_ccw_subchannel_requests_total{"), "{page}");
    assert_eq!(value(&page, "vfio_ccw_pinned_bytes"), 0.0);
}

#[test]
fn the_last_requests_can_be_looked_at() {
    let bench = bench(
        Service::builder()
            .flight_recorder(FlightRecorder { requests: 4, ..FlightRecorder::default() }),
    );
    let image = Image::new(64);
    let (mut null, mut disk) = (bench.attach(DeviceSpec::Null), bench.attach(image.disk()));
    for _ in 0..5 {
        null.run(&Orb::new(PROGRAM));
    }
    let area = PROGRAM + 0x1000;
    fba::put_transfer(&bench, area, command::FBA_READ, 5, 1, BUFFER);
    disk.run(&Orb::new(area + fba::CCWS));
    bench.put_program(PROGRAM, &[Ccw::new(0x9b, BUFFER, 8)]);
    disk.run(&Orb::new(PROGRAM));
    let records = bench.service.flights();
    let kinds: Vec<_> = (records.iter())
        .map(|record| (record.subchannel, record.kind.operation, record.outcome))
        .collect();
    let (null, disk) = (null.subchannel.id(), disk.subchannel.id());
    assert_eq!(
        kinds,
        [
            (null, Operation::Read, Outcome::Ok),
            (null, Operation::Read, Outcome::Ok),
            (disk, Operation::Read, Outcome::Ok),
            (disk, Operation::Control, Outcome::UnitCheck),
        ]
    );
    let read = &records[2];
    assert_eq!(read.orb, Orb::new(area + fba::CCWS));
    let commands: Vec<_> = read.ccws.iter().map(|ccw| (ccw.command, ccw.count)).collect();
    assert_eq!(commands, [(0x63, 16), (0x43, 8), (0x42, 512)]);
    assert_eq!(read.all_ccws, 3);
    let timed = [Stage::Queue, Stage::Translate, Stage::Pin, Stage::Start, Stage::Device];
    assert!(timed.iter().all(|stage| read.stages[stage.index()].is_some()), "{read}");
    assert!(read.age >= timed.iter().filter_map(|stage| read.stages[stage.index()]).sum());
    let line = read.to_string();
    for words in ["fba read: ok", "63 DEFEXT count=16", "43 LOCATE count=8", "42 read count=512"] {
        assert!(line.contains(words), "{line}");
    }
    assert_eq!(read.json()["ccws"][2]["command"], "42");
    assert!(records[3].irb.scsw.device_status().contains(DeviceStatus::UNIT_CHECK));
}

#[test]
fn slow_requests_are_counted_and_known_by_their_time() {
    // Everything is slower than that.
    let slow = FlightRecorder { slow: Duration::from_nanos(1), ..FlightRecorder::default() };
    for by_ring in [true, false] {
        let bench = bench(Service::builder().flight_recorder(slow));
        if by_ring {
            let mut device = bench.attach(DeviceSpec::Null);
            for _ in 0..3 {
                device.run(&Orb::new(PROGRAM));
            }
        } else {
            let wired = Wired::attach(&bench.service, DeviceSpec::Null);
            for _ in 0..3 {
                assert_eq!(wired.subchannel.ssch(&Orb::new(PROGRAM)), Ok(Cc::Cc0));
                drop(wired.interruption());
                wired.status();
            }
        }
        let records = bench.service.flights();
        assert_eq!(records.len(), 3);
        for record in &records {
            let total = record.stages[Stage::Total.index()].expect("slow, so it is known");
            let stages = record.stages[..Stage::Total.index()].iter().copied();
            assert_eq!(stages.sum::<Option<Duration>>(), Some(total), "{record}");
        }
        assert_eq!(bench.service.totals().counter(CounterKind::SlowRequests), 3);
    }
}

#[test]
fn a_shard_without_a_recorder_has_nothing_to_show() {
    let none = FlightRecorder { requests: 0, ..FlightRecorder::default() };
    let bench = bench(Service::builder().flight_recorder(none));
    let mut device = bench.attach(DeviceSpec::Null);
    device.run(&Orb::new(PROGRAM));
    assert!(bench.service.flights().is_empty());
    let many = FlightRecorder { requests: 65_537, ..FlightRecorder::default() };
    let error = Service::builder().flight_recorder(many).build(bench_guest::memory(MEMORY));
    assert!(error.expect_err("too many").to_string().contains("flight_recorder"));
}

#[test]
fn the_endpoint_has_a_page_of_the_last_requests() {
    let bench = bench(Service::builder());
    let mut device = bench.attach(DeviceSpec::Null);
    device.run(&Orb::new(PROGRAM));
    let registry = bench.service.registry().clone();
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().unwrap(), registry).unwrap();
    let get = |path: &str| {
        let mut stream = TcpStream::connect(endpoint.local_addr()).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let id = device.subchannel.id();
    let text = get("/requests");
    assert!(text.contains(&format!("\r\n\r\n{id} shard 0 null read: ok, ")), "{text}");
    let json = get("/requests?format=json");
    let (_, json) = json.split_once("\r\n\r\n").unwrap();
    let json: serde_json::Value = serde_json::from_str(json).expect(json);
    assert_eq!(json[0]["subchannel"], id.to_string());
    assert_eq!(json.as_array().map(Vec::len), Some(1));
    assert!(get("/requests?x").starts_with("HTTP/1.0 400 "));
    assert!(get("/").contains("/requests"));
    // A service that has gone has nothing to show.
    drop((device, bench));
    assert!(get("/requests").ends_with("\r\n\r\n"));
}
