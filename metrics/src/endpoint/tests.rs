//! The endpoint against well-behaved and hostile clients, over real sockets.
//!
//! Where a limit is a time, the test sets it short and waits for the effect for as long as it takes;
//! no test asserts how long something took. [`PATIENCE`] only keeps a failing test from hanging.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::time::Instant;

use super::accept::Format;
use super::scrape::Scrape;
use super::*;
use crate::page::Page;

const PATIENCE: Duration = Duration::from_secs(60);

/// No client in these tests waits as long.
const NEVER: Duration = Duration::from_secs(3600);

/// Limits of which only the sizes are ever reached; a test for a time lowers it.
const GENEROUS: Limits = Limits { header_read: NEVER, lifetime: NEVER, ..Limits::DEFAULT };

fn endpoint(limits: Limits) -> Endpoint {
    serving(&Registry::new(), limits)
}

fn serving(registry: &Registry, limits: Limits) -> Endpoint {
    let addr = SocketAddr::from(([127, 0, 0, 1], 0));
    Endpoint::bind_with(addr, registry.clone(), limits).expect("a free port")
}

fn connect(endpoint: &Endpoint) -> TcpStream {
    let stream = TcpStream::connect(endpoint.local_addr()).expect("listening");
    stream.set_read_timeout(Some(PATIENCE)).expect("valid");
    stream.set_write_timeout(Some(PATIENCE)).expect("valid");
    stream
}

/// Sends `request` on a connection of its own and returns all that comes back.
fn exchange(endpoint: &Endpoint, request: &str) -> String {
    let mut stream = connect(endpoint);
    stream.write_all(request.as_bytes()).expect("accepted");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer and the end");
    answer
}

fn fetch(endpoint: &Endpoint, method: &str, path: &str) -> String {
    exchange(endpoint, &format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"))
}

/// Sends a request and reads its short answer, leaving the connection open.
fn health_check(stream: &mut TcpStream) -> bool {
    let mut answer = Vec::new();
    let mut chunk = [0; 512];
    if stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n").is_err() {
        return false;
    }
    while !answer.ends_with(b"\r\n\r\nok\n") {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) => return false,
            Ok(n) => answer.extend_from_slice(&chunk[..n]),
        }
    }
    answer.starts_with(b"HTTP/1.1 200 ")
}

/// Waits for the server to end the connection: whether with an end of file or a reset is up to
/// what was still unread.
fn wait_until_closed(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    match stream.read_to_end(&mut rest) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset, "still open"),
    }
}

#[test]
fn metrics_are_served_as_prometheus_text() {
    let answer = fetch(&endpoint(GENEROUS), "GET", "/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"));
    assert!(answer.contains("\n# TYPE vfio_ccw_starts_total counter\n"));
    assert!(answer.contains("\n# TYPE vfio_ccw_stage_duration_seconds histogram\n"));
}

#[test]
fn index_health_and_query_strings_work() {
    let endpoint = endpoint(GENEROUS);
    assert!(fetch(&endpoint, "GET", "/").contains("<a href=\"/metrics\">"));
    assert!(fetch(&endpoint, "GET", "/healthz").ends_with("\r\n\r\nok\n"));
    assert!(fetch(&endpoint, "GET", "/metrics?x=1").starts_with("HTTP/1.1 200 "));
}

#[test]
fn head_is_get_without_the_body() {
    let answer = fetch(&endpoint(GENEROUS), "HEAD", "/metrics");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn other_paths_are_not_found() {
    let endpoint = endpoint(GENEROUS);
    for path in ["/metric", "/metrics/", "/../metrics", "//metrics"] {
        assert!(fetch(&endpoint, "GET", path).starts_with("HTTP/1.1 404 "), "{path}");
    }
}

#[test]
fn other_methods_are_not_allowed() {
    let endpoint = endpoint(GENEROUS);
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
        let answer = fetch(&endpoint, method, "/metrics");
        assert!(answer.starts_with("HTTP/1.1 405 "), "{method}: {answer}");
        assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
    }
}

#[test]
fn what_is_not_http_is_refused() {
    let endpoint = endpoint(GENEROUS);
    assert!(exchange(&endpoint, "\u{1}\u{2}\u{3}\r\n\r\n").starts_with("HTTP/1.1 400 "));
    assert!(fetch(&endpoint, "GET", "/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_huge_header_is_refused() {
    let endpoint = endpoint(GENEROUS);
    let filler = "a".repeat(4 * GENEROUS.header_bytes);
    let mut stream = connect(&endpoint);
    // A write may fail, and the answer may get lost in a reset: the server closes while more comes.
    let _ = write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: {filler}\r\n\r\n");
    let mut answer = Vec::new();
    match stream.read_to_end(&mut answer) {
        Ok(_) => assert!(answer.starts_with(b"HTTP/1.1 431 ")),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "still open");
            assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 431 "));
        }
    }
    assert!(fetch(&endpoint, "GET", "/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_connection_serves_several_requests() {
    let endpoint = endpoint(GENEROUS);
    let mut stream = connect(&endpoint);
    assert!((0..3).all(|_| health_check(&mut stream)));
}

#[test]
fn a_slow_header_holds_up_nobody_and_is_cut_off() {
    let endpoint = endpoint(Limits { header_read: Duration::from_millis(200), ..GENEROUS });
    let mut slow = connect(&endpoint);
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHos").expect("accepted");
    assert!(fetch(&endpoint, "GET", "/metrics").starts_with("HTTP/1.1 200 "));
    wait_until_closed(&mut slow);
}

#[test]
fn an_idle_connection_is_closed() {
    let endpoint = endpoint(Limits { header_read: Duration::from_millis(200), ..GENEROUS });
    let mut idle = connect(&endpoint);
    assert!(health_check(&mut idle));
    wait_until_closed(&mut idle);
}

#[test]
fn a_client_that_never_reads_is_cut_off() {
    let short = Duration::from_millis(200);
    let endpoint = endpoint(Limits { header_read: short, lifetime: short, ..GENEROUS });
    let mut greedy = connect(&endpoint);
    // Requests without end, and no answer read: buffers fill in both directions, until the server
    // cuts the connection and a write fails. A server that waits would make it time out.
    let failed = loop {
        if let Err(error) = greedy.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n") {
            break error.kind();
        }
    };
    assert!(
        matches!(failed, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "still connected: {failed:?}"
    );
    assert!(fetch(&endpoint, "GET", "/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn of_a_hundred_connections_the_first_sixty_four_are_served() {
    let endpoint = endpoint(GENEROUS);
    let mut seated: Vec<_> = (0..64).map(|_| connect(&endpoint)).collect();
    // An answer on each shows that it has been accepted and holds its place.
    assert!(seated.iter_mut().all(health_check));
    let mut turned_away: Vec<_> = (64..100).map(|_| connect(&endpoint)).collect();
    turned_away.iter_mut().for_each(wait_until_closed);
    assert!(seated.iter_mut().all(health_check));

    // A place that gets free is given away again; the server may take a moment to notice.
    drop(seated.pop());
    let give_up = Instant::now() + PATIENCE;
    while !health_check(&mut connect(&endpoint)) {
        assert!(Instant::now() < give_up, "the place is never given away again");
        std::thread::yield_now();
    }
}

#[test]
fn a_taken_port_is_reported_with_address_and_remedy() {
    let first = endpoint(GENEROUS);
    let addr = first.local_addr();
    let error = Endpoint::bind(addr, Registry::new()).expect_err("taken");
    assert!(matches!(error, EndpointError::InUse { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("metrics endpoint cannot listen on {addr}: ")), "{text}");
    assert!(text.contains("in use"), "{text}");
    assert!(text.ends_with("choose another with --metrics ADDR, or --metrics off"), "{text}");
}

#[test]
fn a_foreign_address_is_reported_with_the_remedy() {
    // Set aside for documentation (RFC 5737), so no host has it.
    let addr = SocketAddr::from(([192, 0, 2, 1], 9100));
    let error = Endpoint::bind(addr, Registry::new()).expect_err("not ours");
    assert!(matches!(error, EndpointError::Bind { .. }), "{error:?}");
    assert!(error.to_string().contains("192.0.2.1:9100"), "{error}");
    assert!(error.to_string().contains("--metrics off"), "{error}");
}

#[test]
fn shutting_down_closes_connections_and_frees_the_port() {
    let first = endpoint(GENEROUS);
    let addr = first.local_addr();
    let mut open = connect(&first);
    assert!(health_check(&mut open));
    first.shutdown();
    wait_until_closed(&mut open);
    let second = Endpoint::bind(addr, Registry::new()).expect("free again");
    assert!(fetch(&second, "GET", "/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_page_is_rendered_again_only_when_it_is_old() {
    use std::sync::atomic::{AtomicU64, Ordering};

    let renderings = Arc::new(AtomicU64::new(0));
    let registry = Registry::new();
    let count = Arc::clone(&renderings);
    let sample = move || count.fetch_add(1, Ordering::Relaxed) as f64;
    registry.gauge("vfio_ccw_renderings", "Renderings.", sample).expect("valid");
    let max_age = Duration::from_millis(100);
    let page = Scrape::new(registry, max_age, 2);

    let start = Instant::now();
    for age_ms in [0, 1, 50, 99] {
        page.at(Format::Text, start + Duration::from_millis(age_ms));
    }
    assert_eq!(renderings.load(Ordering::Relaxed), 1);
    let later = page.at(Format::Text, start + max_age).expect("room");
    assert_eq!(renderings.load(Ordering::Relaxed), 2);
    assert!(String::from_utf8_lossy(&later).contains("vfio_ccw_renderings 1\n"));
    let protobuf = page.at(Format::Protobuf, start + max_age).expect("room");
    assert_ne!(protobuf, later);

    // Both are still being read, so there is no room for a third.
    let much_later = start + 2 * max_age;
    assert_eq!(page.at(Format::Text, much_later), None);
    assert_eq!(renderings.load(Ordering::Relaxed), 3);
    drop(later);
    assert!(page.at(Format::Text, much_later).is_some());
    assert!(
        page.at(Format::Protobuf, start + max_age + max_age / 2).is_some_and(|p| p == protobuf)
    );
}

#[test]
fn pages_are_listed_served_and_replaced() {
    let registry = Registry::new();
    let endpoint = serving(&registry, GENEROUS);
    assert!(fetch(&endpoint, "GET", "/requests").starts_with("HTTP/1.1 404 "));
    registry
        .page("/requests", "the last <1000> requests", |_| Ok(Page::text("old")))
        .expect("valid");
    let page = |query: &str| match query {
        "no" => Err("no such query\n".to_owned()),
        query => Ok(Page::json(format!("[{query:?}]"))),
    };
    registry.page("/requests", "the last <100> requests", page).expect("valid");

    let index = fetch(&endpoint, "GET", "/");
    assert!(index.contains("<a href=\"/requests\">/requests</a>: the last &lt;100> requests"));
    assert!(!index.contains("1000"));
    let answer = fetch(&endpoint, "GET", "/requests");
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\n[\"\"]"), "{answer}");
    assert!(answer.contains("content-type: application/json\r\n"), "{answer}");
    assert!(fetch(&endpoint, "GET", "/requests?a=%20b").ends_with("\r\n\r\n[\"a=%20b\"]"));
    let answer = fetch(&endpoint, "GET", "/requests?no");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.ends_with("no such query\n"), "{answer}");
    assert!(fetch(&endpoint, "HEAD", "/requests").ends_with("\r\n\r\n"));
    assert!(fetch(&endpoint, "POST", "/requests").starts_with("HTTP/1.1 405 "));
    assert!(fetch(&endpoint, "GET", "/requests/").starts_with("HTTP/1.1 404 "));
}

#[test]
fn a_page_that_takes_long_holds_up_nothing_but_its_like() {
    let registry = Registry::new();
    let (enter, entered) = mpsc::channel();
    let (leave, left) = mpsc::channel::<()>();
    let left = parking_lot::Mutex::new(left);
    let slow = move |_: &str| {
        enter.send(()).expect("the test waits");
        left.lock().recv().expect("the test says when");
        Ok(Page::text("at last"))
    };
    registry.page("/slow", "takes long", slow).expect("valid");
    let endpoint = serving(&registry, GENEROUS);
    std::thread::scope(|scope| {
        let readers = [(); 2].map(|()| scope.spawn(|| fetch(&endpoint, "GET", "/slow")));
        for _ in 0..2 {
            entered.recv_timeout(PATIENCE).expect("both are being made");
        }
        let third = fetch(&endpoint, "GET", "/slow");
        assert!(
            third.starts_with("HTTP/1.1 503 ") && third.contains("retry-after: 1\r\n"),
            "{third}"
        );
        assert!(fetch(&endpoint, "GET", "/metrics").starts_with("HTTP/1.1 200 "));
        leave.send(()).expect("wanted");
        leave.send(()).expect("wanted");
        for reader in readers {
            assert!(reader.join().expect("no panic").ends_with("at last"));
        }
    });
}

#[test]
fn pages_that_are_not_read_take_no_more_memory_than_their_limit() {
    let registry = Registry::new();
    registry.page("/long", "long", |_| Ok(Page::text("x".repeat(Page::LIMIT)))).expect("valid");
    registry
        .page("/longer", "too long", |_| Ok(Page::text("x".repeat(Page::LIMIT + 1))))
        .expect("valid");
    let limits = Limits { pages_made: 1, pages_sent: 2, ..GENEROUS };
    let endpoint = serving(&registry, limits);
    let ask = || {
        let mut stream = connect(&endpoint);
        stream.write_all(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n").expect("accepted");
        let mut first = [0; 12];
        stream.read_exact(&mut first).expect("an answer");
        (first, stream)
    };
    // Each page is longer than what the socket's buffers take.
    let stuck = [ask(), ask()];
    assert!(stuck.iter().all(|(first, _)| first == b"HTTP/1.1 200"));
    assert_eq!(&ask().0, b"HTTP/1.1 503");
    assert!(fetch(&endpoint, "GET", "/metrics").starts_with("HTTP/1.1 200 "));
    drop(stuck);
    let give_up = Instant::now() + PATIENCE;
    while ask().0 != *b"HTTP/1.1 200" {
        assert!(Instant::now() < give_up, "the places are never given away again");
        std::thread::yield_now();
    }
    assert!(fetch(&endpoint, "GET", "/longer").starts_with("HTTP/1.1 500 "));
}

#[test]
fn a_page_that_panics_fails_alone() {
    let registry = Registry::new();
    registry.page("/broken", "broken", |_| panic!("a page that is broken")).expect("valid");
    let endpoint = serving(&registry, GENEROUS);
    for _ in 0..3 {
        assert!(fetch(&endpoint, "GET", "/broken").starts_with("HTTP/1.1 500 "));
    }
    assert!(fetch(&endpoint, "GET", "/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn who_asks_for_protobuf_gets_it() {
    let registry = Registry::new();
    let endpoint = serving(&registry, GENEROUS);
    let mut stream = connect(&endpoint);
    let request = "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Accept: application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;\
         encoding=delimited,text/plain;version=0.0.4;q=0.3\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("accepted");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer and the end");
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a header") + 4;
    let header = String::from_utf8_lossy(&answer[..end]);
    assert!(header.starts_with("HTTP/1.1 200 "), "{header}");
    assert!(header.contains(
        "content-type: application/vnd.google.protobuf; \
         proto=io.prometheus.client.MetricFamily; encoding=delimited\r\n"
    ));
    assert!(header.contains("vary: Accept\r\n"), "{header}");
    assert_eq!(answer[end..], registry.render_protobuf());
}

#[test]
fn a_client_of_http_1_0_is_served_and_left() {
    let answer = exchange(&endpoint(GENEROUS), "GET /metrics HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-length: ") && !answer.contains("chunked"), "{answer}");
    assert!(answer.ends_with('\n') && answer.contains("\n# TYPE vfio_ccw_starts_total counter\n"));
}

#[test]
fn requests_sent_at_once_are_answered_in_their_order() {
    let registry = Registry::new();
    registry.page("/a", "a", |_| Ok(Page::text("page a"))).expect("valid");
    let paths = ["/healthz", "/a", "/nowhere", "/metrics", "/healthz"];
    let mut requests: String =
        paths.iter().map(|path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).collect();
    requests.push_str("GET /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let answer = exchange(&serving(&registry, GENEROUS), &requests);
    let bodies = ["ok\n", "page a", "not found", "# HELP", "ok\n", "page a"];
    let answers: Vec<_> = answer.split("HTTP/1.1 ").skip(1).collect();
    assert_eq!(answers.len(), bodies.len(), "{answer}");
    for (answer, body) in answers.iter().zip(bodies) {
        let (_, is) = answer.split_once("\r\n\r\n").expect("a header");
        assert!(is.starts_with(body), "{answer}");
    }
}

#[test]
fn bad_targets_are_client_errors() {
    let endpoint = endpoint(GENEROUS);
    let long = format!("/{}", "a".repeat(8 << 10));
    for path in ["/%00", "/metrics%2f", "/.", "/metrics;x", "/Metrics", "*", "nowhere", &long] {
        let answer = fetch(&endpoint, "GET", path);
        assert!(answer.starts_with("HTTP/1.1 40"), "{path}: {answer}");
    }
    assert!(fetch(&endpoint, "GET", "/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn an_accept_header_of_any_size_ends_in_text_or_a_clean_error() {
    let endpoint = endpoint(GENEROUS);
    let ask = |accept: &str| {
        let mut stream = connect(&endpoint);
        // As with any huge header: the rest of the request or the answer may get lost in a reset.
        let _ = write!(
            stream,
            "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: {accept}\r\n\r\n"
        );
        let mut answer = Vec::new();
        let end = stream.read_to_end(&mut answer).map_err(|error| error.kind());
        assert!(matches!(end, Ok(_) | Err(ErrorKind::ConnectionReset)), "{end:?}");
        String::from_utf8_lossy(&answer).into_owned()
    };
    for unit in ["a/b,", ";q=1,", "\"\\", "*/*;q=0.1,", ",", "application/vnd.google.protobuf,"] {
        let answer = ask(&unit.repeat((15 << 10) / unit.len()));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{unit}");
        assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{unit}");
        let answer = ask(&unit.repeat((16 << 10) / unit.len() + 1));
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431 "), "{unit}: {answer}");
    }
    let many = "x: y\r\n".repeat(1000);
    let answer = exchange(&endpoint, &format!("GET / HTTP/1.1\r\n{many}\r\n"));
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert!(fetch(&endpoint, "GET", "/healthz").starts_with("HTTP/1.1 200 "));
}

#[test]
fn a_body_that_nobody_asked_for_is_not_read() {
    let endpoint = endpoint(GENEROUS);
    let mut stream = connect(&endpoint);
    stream
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        .expect("accepted");
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).expect("an answer before the body");
    assert_eq!(&answer, b"HTTP/1.1 200");
    // The server closes rather than read a gigabyte.
    let failed = loop {
        if let Err(error) = stream.write_all(&[b'x'; 4096]) {
            break error.kind();
        }
    };
    assert!(matches!(failed, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe), "{failed:?}");
}

#[test]
fn a_thousand_connections_and_stuck_scrapers_do_not_disturb_who_records() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let registry = Registry::new();
    let limits = Limits { scrapes_sent: 2, page_age: Duration::ZERO, ..GENEROUS };
    let endpoint = serving(&registry, limits);
    let shard = registry.shard("0");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let recording = scope.spawn(|| {
            let mut samples = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                shard.counters().starts.add(1);
                samples += 1;
            }
            samples
        });
        let starts = || registry.snapshot().counter(crate::CounterKind::Starts);
        let goes_on = || {
            let before = starts();
            let give_up = Instant::now() + PATIENCE;
            while crate::RECORDING && starts() == before {
                assert!(Instant::now() < give_up, "nothing is recorded any more");
                std::thread::yield_now();
            }
        };

        let mut seated: Vec<_> = (0..limits.connections).map(|_| connect(&endpoint)).collect();
        assert!(seated.iter_mut().all(health_check));
        // Without reading the answers.
        for stream in &mut seated {
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").expect("accepted");
        }
        goes_on();
        // By the hundred: a test may have 1,024 files open, and each end is one.
        for _ in 0..10 {
            let mut away: Vec<_> = (0..100).map(|_| connect(&endpoint)).collect();
            away.iter_mut().for_each(wait_until_closed);
            goes_on();
        }
        // They get their answers all the same.
        for stream in &mut seated {
            let mut first = [0; 9];
            stream.read_exact(&mut first).expect("an answer");
            assert_eq!(&first, b"HTTP/1.1 ");
        }
        stop.store(true, Ordering::Relaxed);
        let samples = recording.join().expect("no panic");
        assert_eq!(starts(), samples * u64::from(crate::RECORDING));
    });
}
