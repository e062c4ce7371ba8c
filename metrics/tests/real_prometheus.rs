//! Prometheus itself scrapes the endpoint: once as text with the classic buckets, once as protobuf with
//! native histograms. What it answers to queries is held against the samples. Its `promtool` checks the
//! names.
//!
//! Runs where there is a `prometheus` in PATH (of version 2.40 or later, for native histograms);
//! elsewhere it is SKIPPED.

pub mod samples;

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use samples::{Numbers, exact_quantile};
use serde_json::Value;
use vfio_ccw_metrics::{
    CounterKind, DeviceClass, Endpoint, Family, FamilyKind, Kind, Operation, PROMETHEUS_BOUNDS_NS,
    Registry, Row, Stage,
};

/// Keeps a failing test from hanging; nothing is expected to take as long.
const PATIENCE: Duration = Duration::from_secs(120);

const SAMPLES: usize = 200_000;

/// A bucket of the native histogram from end to end.
const NATIVE_BUCKET: f64 = 1.090_508;

/// A Prometheus of its own, ended when the test is over, however it ends.
struct Prometheus {
    process: Child,
    api: SocketAddr,
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _killed = self.process.kill();
        let _reaped = self.process.wait();
    }
}

impl Prometheus {
    /// Scrapes `target` five times a second, keeping what it gets below `home`.
    fn start(home: &Path, target: SocketAddr, arguments: &[&str]) -> Self {
        fs::create_dir(home).expect("a new directory");
        let config = home.join("prometheus.yml");
        let text = format!(
            "global:\n  scrape_interval: 200ms\n  scrape_timeout: 200ms\nscrape_configs:\n\
             - job_name: vfio-ccw\n  static_configs:\n  - targets: ['{target}']\n"
        );
        fs::write(&config, text).expect("written");
        let give_up = Instant::now() + PATIENCE;
        loop {
            // Prometheus does not tell which port it was given, so one is picked for it. Somebody else
            // may have it by then: it ends, and the next one is tried.
            let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
            let api = listener.local_addr().expect("bound");
            drop(listener);
            let log = fs::File::create(home.join("log")).expect("created");
            let process = Command::new("prometheus")
                .arg(format!("--config.file={}", config.display()))
                .arg(format!("--storage.tsdb.path={}", home.join("data").display()))
                .arg(format!("--web.listen-address={api}"))
                .args(arguments)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()
                .expect("prometheus is in PATH");
            let mut prometheus = Self { process, api };
            while prometheus.process.try_wait().expect("our child").is_none() {
                if prometheus.get("/-/ready").is_some_and(|it| it.starts_with("HTTP/1.0 200 ")) {
                    return prometheus;
                }
                assert!(Instant::now() < give_up, "prometheus does not get ready");
                std::thread::sleep(Duration::from_millis(50));
            }
            let log = fs::read_to_string(home.join("log")).unwrap_or_default();
            assert!(log.contains("address already in use"), "prometheus ended: {log}");
        }
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.api).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).expect("valid");
        write!(stream, "GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    /// The values of an expression, now.
    fn query(&self, expression: &str) -> Vec<f64> {
        let escaped: String = expression.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let answer = self.get(&format!("/api/v1/query?query={escaped}")).expect("an answer");
        let (_, body) = answer.split_once("\r\n\r\n").expect("a body");
        let answer: Value = serde_json::from_str(body).expect("JSON");
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        let series = answer["data"]["result"].as_array().expect("a vector");
        let value = |series: &Value| series["value"][1].as_str()?.parse().ok();
        series.iter().map(|series| value(series).expect("a number")).collect()
    }

    /// The one value of an expression.
    fn value(&self, expression: &str) -> f64 {
        let values = self.query(expression);
        assert_eq!(values.len(), 1, "{expression}: {values:?}");
        values[0]
    }

    /// Waits until an expression has one value, and that one.
    fn wait_for(&self, expression: &str, value: f64) {
        let give_up = Instant::now() + PATIENCE;
        loop {
            let values = self.query(expression);
            if values == [value] {
                return;
            }
            assert!(Instant::now() < give_up, "{expression} is {values:?} instead of {value}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

static FAMILIES: [Family; 1] = [Family {
    kind: FamilyKind::Counter,
    name: "vfio_ccw_subchannel_requests_total",
    help: "Requests.",
}];

fn classic_bucket_of(seconds: f64) -> usize {
    PROMETHEUS_BOUNDS_NS.partition_point(|&bound| (bound as f64 / 1e9) < seconds)
}

#[test]
fn promtool_has_nothing_to_say_about_the_text() {
    let mut command = Command::new("promtool");
    command.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let Ok(mut promtool) = command.stderr(Stdio::piped()).spawn() else {
        println!("SKIPPED: no promtool in PATH");
        return;
    };
    let registry = Registry::new();
    let shard = registry.shard("0");
    DeviceClass::ALL.into_iter().for_each(|class| shard.attached(class));
    let row = || vec![Row { labels: vec![("subchannel", "0.0.0001".into())], values: vec![1.0] }];
    registry.rows(&FAMILIES, row).expect("valid");
    registry.gauge("vfio_ccw_pinned_bytes", "Guest memory pinned now.", || 1.0).expect("valid");
    let mut stdin = promtool.stdin.take().expect("piped");
    stdin.write_all(registry.render().as_bytes()).expect("read");
    drop(stdin);
    let said = promtool.wait_with_output().expect("our child");
    let said_all = [said.stdout, said.stderr].concat();
    assert!(said.status.success() && said_all.is_empty(), "{}", String::from_utf8_lossy(&said_all));
}

#[test]
fn prometheus_reads_text_and_protobuf_and_its_quantiles_are_right() {
    if Command::new("prometheus").arg("--version").output().is_err() {
        println!("SKIPPED: no prometheus in PATH");
        return;
    }
    let registry = Registry::new();
    registry.gauge("vfio_ccw_pinned_bytes", "Bytes \"pinned\".", || 65536.5).expect("valid");
    let row =
        || vec![Row { labels: vec![("subchannel", "0.0.\\\n\"".into())], values: vec![7.25] }];
    registry.rows(&FAMILIES, row).expect("valid");
    let endpoint = Endpoint::bind("127.0.0.1:0".parse().expect("valid"), registry.clone());
    let endpoint = endpoint.expect("a free port");
    let home = tempfile::tempdir().expect("a directory");
    let target = endpoint.local_addr();
    let classic = Prometheus::start(&home.path().join("classic"), target, &[]);
    let native_on = ["--enable-feature=native-histograms"];
    let native = Prometheus::start(&home.path().join("native"), target, &native_on);

    let kind = Kind { class: DeviceClass::Fba, operation: Operation::Read };
    let shard = registry.shard("0");
    shard.attached(kind.class);
    let labels = "stage=\"device\",class=\"fba\",operation=\"read\"";
    let name = "vfio_ccw_stage_duration_seconds";
    let classic_count = format!("{name}_count{{{labels}}}");
    let native_count = format!("histogram_count({name}{{{labels}}})");
    // Prometheus begins to scrape some seconds after its start. Series without a sample are there too.
    classic.wait_for(&classic_count, 0.0);
    native.wait_for(&native_count, 0.0);

    // Recorded while both scrape.
    let recorder = std::thread::spawn(move || {
        let mut numbers = Numbers(7);
        let samples = (0..SAMPLES).map(|n| {
            if n % (SAMPLES / 20) == 0 {
                std::thread::sleep(Duration::from_millis(50));
            }
            let ns = numbers.latency_ns(90_000.0, 1.1);
            shard.durations(kind).record(Stage::Device, ns);
            shard.counters().starts.add(1);
            ns
        });
        samples.collect::<Vec<u64>>()
    });
    let mut samples = recorder.join().expect("no panic");
    let sum = samples.iter().sum::<u64>() as f64 / 1e9;
    samples.sort_unstable();

    let count = SAMPLES as f64;
    classic.wait_for(&classic_count, count);
    native.wait_for(&native_count, count);

    for prometheus in [&classic, &native] {
        assert_eq!(prometheus.value("up"), 1.0);
        prometheus.wait_for(CounterKind::Starts.name(), count);
        assert_eq!(prometheus.value("vfio_ccw_pinned_bytes"), 65536.5);
        let row = "vfio_ccw_subchannel_requests_total{subchannel=\"0.0.\\\\\\n\\\"\"}";
        assert_eq!(prometheus.value(row), 7.25);
        assert_eq!(prometheus.query("vfio_ccw_completions_total").len(), 10);
        assert_eq!(prometheus.query("vfio_ccw_wait_seconds_total").len(), 3);
    }
    // Those without a sample are native all the same.
    let all = format!("histogram_count({name}{{class=\"fba\"}})");
    assert_eq!(native.query(&all).len(), Operation::COUNT * Stage::COUNT);
    let empty =
        format!("histogram_count({name}{{stage=\"pin\",class=\"fba\",operation=\"read\"}})");
    assert_eq!(native.value(&empty), 0.0);
    assert_eq!(native.query(&format!("{name}_bucket")).len(), 0, "one kind of histogram at a time");

    let close = |value: f64, expected: f64| (value - expected).abs() <= expected * 1e-9;
    assert!(close(native.value(&format!("histogram_sum({name}{{{labels}}})")), sum));
    assert!(close(classic.value(&format!("{name}_sum{{{labels}}}")), sum));
    for q in [0.01, 0.25, 0.5, 0.9, 0.99, 0.999] {
        let exact = exact_quantile(&samples, q) as f64 / 1e9;
        let of_native = native.value(&format!("histogram_quantile({q}, {name}{{{labels}}})"));
        let of_classic =
            classic.value(&format!("histogram_quantile({q}, {name}_bucket{{{labels}}})"));
        println!(
            "q {q}: exact {exact:.3e} s, native {of_native:.3e} s, classic {of_classic:.3e} s"
        );
        let ratio = of_native / exact;
        assert!(
            (1.0 / NATIVE_BUCKET..=NATIVE_BUCKET * (1.0 + 1.0 / 32.0)).contains(&ratio),
            "q {q}: native {of_native} for {exact}"
        );
        let bucket = classic_bucket_of(exact);
        assert!(
            (bucket..=bucket + 1).contains(&classic_bucket_of(of_classic)),
            "q {q}: classic {of_classic} for {exact}"
        );
        assert!(classic_bucket_of(of_native).abs_diff(classic_bucket_of(of_classic)) <= 1);
    }
    // The usual form of a query, over time; how much of it the window has is up to the clock.
    let rate = format!("histogram_count(increase({name}{{{labels}}}[5m]))");
    assert!(native.value(&rate) > 0.0);
    let rate = format!("histogram_quantile(0.99, sum(rate({name}{{{labels}}}[5m])))");
    let of_rate = native.value(&rate);
    assert!(of_rate > 0.0 && of_rate < 1.0, "{of_rate}");
}
