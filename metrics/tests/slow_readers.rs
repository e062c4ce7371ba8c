//! What clients that ask and do not read may hold of memory: one copy of a page for all of a moment.
//!
//! There is one test: whatever else ran in this process would be counted too.

pub mod counting;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use counting::{Counting, live_bytes};
use vfio_ccw_metrics::{Endpoint, Family, FamilyKind, Registry, Row};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// As many as the endpoint lets connect.
const READERS: usize = 64;

/// Renderings that the endpoint keeps at most.
const COPIES: usize = 16;

static FAMILIES: [Family; 4] = [
    Family { kind: FamilyKind::Counter, name: "vfio_ccw_subchannel_requests_total", help: "Rs." },
    Family {
        kind: FamilyKind::Counter,
        name: "vfio_ccw_subchannel_busy_seconds_total",
        help: "Bs.",
    },
    Family { kind: FamilyKind::Counter, name: "vfio_ccw_subchannel_errors_total", help: "Es." },
    Family {
        kind: FamilyKind::Gauge,
        name: "vfio_ccw_subchannel_oldest_request_seconds",
        help: "O.",
    },
];

#[test]
fn sixty_four_slow_readers_of_a_long_page_share_it() {
    let registry = Registry::new();
    let rows = || {
        let row = |number: u32| Row {
            labels: vec![("subchannel", format!("0.0.{number:04x}")), ("class", "fba".into())],
            values: vec![f64::from(number) * 1000.0, f64::from(number) / 8.0, 1.0, 0.25],
        };
        (0..4096).map(row).collect()
    };
    registry.rows(&FAMILIES, rows).expect("valid");
    let page = registry.render().len();
    assert!(page > 1 << 20, "{page} bytes");
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().expect("valid"), registry).expect("a port");

    let ask = || {
        let mut stream = TcpStream::connect(endpoint.local_addr()).expect("listening");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("valid");
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("accepted");
        stream
    };
    // One who reads, so that what is made once has been made.
    let mut reader = ask();
    reader.read_exact(&mut vec![0; page]).expect("the page");
    drop(reader);

    let before = live_bytes();
    let mut slow: Vec<_> = (0..READERS).map(|_| ask()).collect();
    let mut served = 0;
    for stream in &mut slow {
        let mut first = [0; 12];
        // The place of the one who read may not be free yet: then one of these is turned away.
        if stream.read_exact(&mut first).is_ok() {
            served += usize::from(&first == b"HTTP/1.1 200");
            assert!(&first == b"HTTP/1.1 200" || &first == b"HTTP/1.1 503");
        }
    }
    let held = live_bytes() - before;
    println!("{served} readers of {page} bytes hold {held} bytes");
    assert!(served > 0);
    // And what connections have besides: their header buffers, at most 16 KiB, and hyper's own; and what
    // the registry has while it renders.
    let limit = (COPIES + 4) * page + READERS * (64 << 10);
    assert!(held < limit as isize, "{held} bytes for {served} readers of {page} bytes");
}
