//! `vfio-ccw top` from the outside: its report of a job that runs, and what it says of servers that are none.
#![cfg(feature = "cli")]

pub mod command_line;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;

use command_line::{Ended, Running, SMALL_VOLUME, number, run};
use serde_json::Value;

const STAGES: [&str; 7] = ["queue", "translate", "pin", "start", "device", "deliver", "total"];

/// A job that goes on until it is dropped, and where its metrics are.
fn job() -> (Running, String) {
    let load = ["--seconds", "600", "--subchannels", "8", "--buffers", "1MiB", "--memory", "4MiB"];
    let metrics = ["--metrics", "127.0.0.1:0", "--skip-verify"];
    let mut job = Running::start(load.iter().chain(&SMALL_VOLUME).chain(&metrics));
    let line = job.until_it_says("metrics: http://").expect("it serves metrics");
    let url = line.split_whitespace().find(|word| word.starts_with("http://"));
    let url = url.expect("an address").to_owned();
    (job, url)
}

/// A report, as soon as the load has begun.
fn report(url: &str) -> Value {
    loop {
        let report =
            run(["top", url, "--once", "--json", "--interval", "0.5"]).with_code(0).report();
        if number(&report, "iops") > 0.0 {
            return report;
        }
    }
}

#[test]
fn a_job_is_reported() {
    let (_job, url) = job();
    let report = report(&url);
    assert!(number(&report, "seconds") >= 0.5, "{report:#}");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(number(&report, "read_bytes_per_s") > 0.0, "{report:#}");
    assert!(number(&report["completions"]["ok"], "per_s") > 0.0, "{report:#}");
    for stage in STAGES {
        let row = &report["stages"][stage];
        let quantiles = ["p50_ns", "p99_ns", "p999_ns"].map(|name| number(row, name));
        assert!(quantiles.is_sorted() && quantiles[0] > 0.0, "{stage}: {report:#}");
        assert!(number(row, "requests_per_s") > 0.0, "{stage}: {report:#}");
    }
    assert_eq!(report["stages"]["total"]["share"], 1.0);
    let pool = &report["pool"];
    assert!(number(pool, "pinned_bytes") <= number(pool, "budget_bytes"), "{report:#}");
    assert!((0.0..=1.0).contains(&number(pool, "hit_rate")), "{report:#}");
    assert_eq!(report["server"], Value::Null);

    let text = run(["top", &url, "--once", "--interval", "0.2"]).with_code(0).stdout;
    for words in ["IOPS", "translate", "pin pool", "doorbells", "subchannel"] {
        assert!(text.contains(words), "no '{words}' in {text}");
    }
}

#[test]
fn without_a_terminal_there_is_only_a_report() {
    let message = run(["top", "127.0.0.1:1"]).error();
    assert!(message.contains("--once"), "{message}");
}

#[test]
fn misuse_is_named() {
    for (arguments, words) in [
        (["--once", "--interval", "0"], "0.2 to 3600"),
        (["--once", "https://localhost", "--json"], "only http://"),
        (["--once", "localhost:x", "--json"], "HOST:PORT"),
    ] {
        let ended = run(["top"].iter().chain(&arguments)).with_code(2);
        assert!(ended.stderr.contains(words), "{ended:#?}");
    }
    run(["top", "--json"]).with_code(2);
}

/// Asserts that there is no report, and why.
#[track_caller]
fn assert_no_metrics(ended: Ended, why: &str) {
    let ended = ended.with_code(1);
    assert_eq!(ended.stdout, "", "{ended:#?}");
    assert_eq!(ended.stderr.lines().count(), 1, "{ended:#?}");
    assert!(ended.stderr.contains("no metrics from") && ended.stderr.contains(why), "{ended:#?}");
}

#[test]
fn nobody_listens() {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_no_metrics(run(["top", &free.to_string(), "--once"]), "cannot connect");
}

/// A server that answers each client with `head` and then `more`, again and again, until the client goes.
fn server(head: &'static str, more: Option<&'static [u8]>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with the test's process.
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let _ = client.read(&mut [0; 1024]);
            let mut sent = client.write_all(head.as_bytes());
            while let (Ok(()), Some(more)) = (&sent, more) {
                sent = client.write_all(more);
            }
        }
    });
    address
}

#[test]
fn servers_that_are_none_are_clean_errors() {
    const OK: &str = "HTTP/1.1 200 OK\r\n\r\n";
    for (head, more, why) in [
        ("SSH-2.0-OpenSSH_9.2\r\n", None, "HTTP"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", None, "status 404"),
        ("HTTP/1.1 200 OK\r\n\r\n<html>hello</html>\n", None, "no metrics of vfio-ccw"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n\u{e9}\n", None, "no metrics of vfio-ccw"),
        (OK, Some(&[b'x'; 1 << 16][..]), "bytes"),
        (OK, Some(&b"vfio_ccw_a{b=\"\x1b[2J\n"[..]), "bytes"),
        ("", Some(&[0; 1 << 16][..]), "HTTP"),
    ] {
        let address = server(head, more).to_string();
        assert_no_metrics(run(["top", &address, "--once", "--json", "--interval", "0.2"]), why);
    }
}

#[test]
fn what_a_page_says_gives_the_terminal_no_orders() {
    let page = "HTTP/1.1 200 OK\r\n\r\nvfio_ccw_build_info{version=\"\x1b[2J\x07\"} 1\n\
                vfio_ccw_completions_total{outcome=\"\x1b]0;x\x07\"} 1e308\n\
                vfio_ccw_stage_duration_seconds_bucket{stage=\"total\",le=\"NaN\"} -1\n\
                vfio_ccw_pinned_bytes -Inf\nvfio_ccw_pin_budget_bytes NaN\n";
    let address = server(page, None).to_string();
    let text = run(["top", &address, "--once", "--interval", "0.2"]).with_code(0).stdout;
    assert!(text.contains("version ?[2J?"), "{text}");
    assert!(text.chars().all(|c| !c.is_control() || c == '\n'), "{text}");
}
