//! The numbers that are shown: rates and quantiles of the time between two scrapes.

mod pool;
mod server;
mod shards;
mod stages;
mod subchannels;

use serde_json::{Map, Value, json};

pub(super) use pool::Pool;
pub(super) use server::Server;
pub(super) use shards::Shards;
pub(super) use stages::{Stage, stages};
pub(super) use subchannels::{Sort, Subchannel, subchannels};

use super::reading::Change;

/// Most outcomes, and most reasons of unit checks, that are told apart.
const MOST_ENDS: usize = 32;

/// Which requests are looked at, by class of device and by operation; all where none is named.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Choice {
    pub(super) class: Option<String>,
    pub(super) operation: Option<String>,
}

/// What became of requests, or why devices refused them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Ended {
    pub(super) name: String,
    pub(super) per_s: f64,
    /// Since the service was started.
    pub(super) total: f64,
}

/// All numbers. What the service does not say is missing.
#[derive(Clone, Debug)]
pub(super) struct Figures {
    pub(super) version: Option<String>,
    /// Time between the two scrapes.
    pub(super) seconds: f64,
    pub(super) iops: Option<f64>,
    pub(super) read_bytes_per_s: Option<f64>,
    pub(super) written_bytes_per_s: Option<f64>,
    /// By outcome, those that are all right first.
    pub(super) completions: Vec<Ended>,
    /// By sense.
    pub(super) unit_checks: Vec<Ended>,
    pub(super) in_flight: Option<f64>,
    pub(super) queued: Option<f64>,
    pub(super) oldest_s: Option<f64>,
    pub(super) slow_per_s: Option<f64>,
    pub(super) stages: Vec<Stage>,
    pub(super) subchannels: Vec<Subchannel>,
    /// Missing where nothing is pinned: a device server.
    pub(super) pool: Option<Pool>,
    pub(super) shards: Shards,
    /// Missing where it is no device server.
    pub(super) server: Option<Server>,
}

impl Figures {
    pub(super) fn of(change: Change<'_>, choice: &Choice, sort: Sort) -> Self {
        let later = change.later;
        let info = later.series("vfio_ccw_build_info").next();
        let version = info.and_then(|(labels, _)| labels.value("version")).map(str::to_owned);
        let mut completions = ended(change, "vfio_ccw_completions_total", "outcome");
        completions.sort_by_key(|ended| ended.name != "ok");
        Figures {
            version,
            seconds: change.seconds(),
            iops: change.rate("vfio_ccw_completions_total"),
            read_bytes_per_s: change.rate("vfio_ccw_read_bytes_total"),
            written_bytes_per_s: change.rate("vfio_ccw_written_bytes_total"),
            completions,
            unit_checks: ended(change, "vfio_ccw_unit_checks_total", "sense"),
            in_flight: later.value("vfio_ccw_requests_in_flight"),
            queued: later.value("vfio_ccw_requests_queued"),
            oldest_s: later.value("vfio_ccw_oldest_request_seconds"),
            slow_per_s: change.rate("vfio_ccw_slow_requests_total"),
            stages: stages(change, choice),
            subchannels: subchannels(change, choice, sort),
            pool: Pool::of(change),
            shards: Shards::of(change),
            server: Server::of(change),
        }
    }

    pub(super) fn json(&self, address: &str, choice: &Choice) -> Value {
        let all = |choice: &Option<String>| choice.clone().unwrap_or_else(|| "all".to_owned());
        let stages: Map<_, _> =
            self.stages.iter().map(|stage| (stage.name.to_owned(), stage.json())).collect();
        json!({
            "address": address,
            "version": self.version,
            "seconds": self.seconds,
            "class": all(&choice.class),
            "operation": all(&choice.operation),
            "iops": self.iops,
            "read_bytes_per_s": self.read_bytes_per_s,
            "written_bytes_per_s": self.written_bytes_per_s,
            "completions": ended_json(&self.completions),
            "unit_checks": ended_json(&self.unit_checks),
            "in_flight": self.in_flight,
            "queued": self.queued,
            "oldest_ns": self.oldest_s.map(ns),
            "slow_per_s": self.slow_per_s,
            "stages": stages,
            "subchannels": self.subchannels.iter().map(Subchannel::json).collect::<Vec<_>>(),
            "pool": self.pool.as_ref().map(Pool::json),
            "shards": self.shards.json(),
            "server": self.server.as_ref().map(Server::json),
        })
    }
}

/// Whole nanoseconds.
fn ns(seconds: f64) -> u64 {
    (seconds * 1e9).round() as u64
}

fn ended(change: Change<'_>, name: &str, label: &str) -> Vec<Ended> {
    let values = change.later.label_values(name, label).into_iter().take(MOST_ENDS);
    let all = values.map(|value| {
        let series = change.later.series(name).filter(|(labels, _)| labels.has(label, Some(value)));
        let growth = change.growth(name, |labels| labels.has(label, Some(value)));
        Ended {
            name: value.to_owned(),
            per_s: growth.unwrap_or(0.0) / change.seconds(),
            total: series.map(|(_, total)| total).filter(|total| total.is_finite()).sum(),
        }
    });
    all.collect()
}

fn ended_json(all: &[Ended]) -> Value {
    let pairs = all
        .iter()
        .map(|ended| (ended.name.clone(), json!({ "per_s": ended.per_s, "total": ended.total })));
    Value::Object(pairs.collect())
}

#[cfg(test)]
pub(super) mod tests {
    use std::fmt::Write;
    use std::time::{Duration, Instant};

    use super::super::reading::Reading;
    use super::*;

    /// Pages of a service, before and after two seconds of work.
    pub(crate) fn pages() -> [String; 2] {
        [1_u32, 3].map(|times| {
            let mut page = String::from("vfio_ccw_build_info{version=\"0.1.0\"} 1\n");
            let mut put =
                |series: &str, value: f64| writeln!(page, "vfio_ccw_{series} {value}").unwrap();
            let work = f64::from(times) * 1000.0;
            put("completions_total{outcome=\"unit_check\"}", work / 100.0);
            put("completions_total{outcome=\"ok\"}", work);
            put("completions_total{outcome=\"stopped\"}", 0.0);
            put("unit_checks_total{sense=\"equipment_check\"}", work / 100.0);
            put("read_bytes_total", work * 4096.0);
            put("written_bytes_total", work * 1024.0);
            put("requests_in_flight", 64.0);
            put("requests_queued", 2.0);
            put("oldest_request_seconds", 0.0012);
            put("slow_requests_total", 0.0);
            for (class, operation) in [("fba", "read"), ("fba", "write"), ("null", "control")] {
                for (stage, us) in [("queue", 20.0), ("device", 80.0), ("total", 100.0)] {
                    let labels =
                        format!("stage=\"{stage}\",class=\"{class}\",operation=\"{operation}\"");
                    for (le, part) in [("2.5e-05", us < 25.0), ("0.0001", true), ("+Inf", true)] {
                        let count = if part { work } else { 0.0 };
                        put(
                            &format!("stage_duration_seconds_bucket{{{labels},le=\"{le}\"}}"),
                            count,
                        );
                    }
                    put(&format!("stage_duration_seconds_sum{{{labels}}}"), work * us / 1e6);
                    put(&format!("stage_duration_seconds_count{{{labels}}}"), work);
                }
            }
            for (number, share) in [(0, 1.0), (1, 3.0), (2, 2.0)] {
                let labels = format!("{{subchannel=\"0.0.000{number}\",class=\"fba\"}}");
                put(&format!("subchannel_requests_total{labels}"), work / share);
                put(&format!("subchannel_busy_seconds_total{labels}"), work / 2000.0 * 0.3 * share);
                put(&format!("subchannel_errors_total{labels}"), f64::from(number) * work / 1000.0);
                put(&format!("subchannel_oldest_request_seconds{labels}"), 0.0001 * share);
            }
            put("pinned_bytes", 48.0 * 1_048_576.0);
            put("pinned_peak_bytes", 50.0 * 1_048_576.0);
            put("pin_budget_bytes", 64.0 * 1_048_576.0);
            put("pin_waiting_programs", 0.0);
            put("pin_gets_total", work * 10.0);
            put("pin_hits_total", work * 9.0);
            put("pin_misses_total", work);
            put("pin_evictions_total", work / 2.0);
            put("pin_waits_total", 0.0);
            put("pin_invalidations_total", 0.0);
            put("pin_estimated_hit_ratio{of_budget=\"0.5\"}", 0.75);
            put("pin_estimated_hit_ratio{of_budget=\"2\"}", f64::NAN);
            put("windows", 1.0);
            put("subchannels", 3.0);
            put("wait_seconds_total{how=\"looking\"}", f64::from(times) * 0.25);
            put("wait_seconds_total{how=\"in_vain\"}", 0.0);
            put("wait_seconds_total{how=\"asleep\"}", f64::from(times) * 0.5);
            put("doorbells_sent_total", work / 10.0);
            put("doorbells_suppressed_total", work * 0.9);
            page
        })
    }

    /// Pages of a device server.
    pub(crate) fn server_pages() -> [String; 2] {
        [1_u32, 3].map(|times| {
            let times = f64::from(times);
            format!(
                "vfio_ccw_build_info{{version=\"0.1.0\"}} 1\nvfio_ccw_server_clients 2\n\
                 vfio_ccw_server_connections_total {times}\nvfio_ccw_server_messages_total {}\n\
                 vfio_ccw_server_lanes 8\nvfio_ccw_server_windows 3\n\
                 vfio_ccw_server_window_bytes 268435456\nvfio_ccw_completions_total{{outcome=\"ok\"}} {}\n",
                times * 20.0,
                times * 1000.0,
            )
        })
    }

    pub(crate) fn readings(pages: [String; 2]) -> [Reading; 2] {
        let now = Instant::now();
        let times = [now, now + Duration::from_secs(2)];
        std::array::from_fn(|n| Reading::of(&pages[n], times[n]).unwrap())
    }

    pub(crate) fn figures(pages: [String; 2], choice: &Choice, sort: Sort) -> Figures {
        let [earlier, later] = readings(pages);
        Figures::of(Change { earlier: &earlier, later: &later }, choice, sort)
    }

    fn close(value: &Value, expected: f64) -> bool {
        value.as_f64().is_some_and(|value| (value - expected).abs() < 1e-6 * expected.max(1.0))
    }

    #[test]
    fn a_service_has_all_of_it() {
        let choice = Choice::default();
        let json = figures(pages(), &choice, Sort::Busy).json("here", &choice);
        let number = |path: &str| json.pointer(path).unwrap_or_else(|| panic!("{path}: {json:#}"));
        for (path, expected) in [
            ("/seconds", 2.0),
            ("/iops", 1010.0),
            ("/read_bytes_per_s", 4_096_000.0),
            ("/completions/ok/per_s", 1000.0),
            ("/completions/unit_check/per_s", 10.0),
            ("/completions/unit_check/total", 30.0),
            ("/unit_checks/equipment_check/per_s", 10.0),
            ("/oldest_ns", 1_200_000.0),
            ("/stages/total/requests_per_s", 3000.0),
            ("/stages/total/mean_ns", 100_000.0),
            ("/stages/queue/share", 0.2),
            ("/stages/queue/p50_ns", 12_500.0),
            ("/subchannels/0/busy", 0.45),
            ("/subchannels/0/requests_per_s", 1000.0 / 3.0),
            ("/pool/hit_rate", 0.9),
            ("/pool/misses_per_s", 1000.0),
            ("/pool/estimated_hit_rate/0.5", 0.75),
            ("/shards/looking", 0.25),
            ("/shards/doorbells_suppressed_per_s", 900.0),
        ] {
            assert!(close(number(path), expected), "{path} is {}", number(path));
        }
        assert_eq!(number("/pool/estimated_hit_rate/2"), &Value::Null);
        assert_eq!(number("/stages/pin/p50_ns"), &Value::Null);
        assert_eq!((number("/server"), number("/class")), (&Value::Null, &json!("all")));
    }

    #[test]
    fn a_device_server_has_its_own() {
        let choice = Choice::default();
        let json = figures(server_pages(), &choice, Sort::Busy).json("here", &choice);
        assert_eq!(json["server"]["messages_per_s"], 20.0);
        assert_eq!(json["server"]["connections_per_s"], 1.0);
        assert_eq!(json["server"]["refusals_per_s"], Value::Null);
        assert_eq!((&json["pool"], &json["iops"]), (&Value::Null, &json!(1000.0)));
        assert_eq!(json["subchannels"], json!([]));
    }

    #[test]
    fn a_page_of_many_outcomes_is_not_shown_whole() {
        let line = |n| format!("vfio_ccw_completions_total{{outcome=\"{n}\"}} 1\n");
        let page: String = (0..10_000).map(line).collect();
        let figures = figures([page.clone(), page], &Choice::default(), Sort::Busy);
        assert_eq!(figures.completions.len(), MOST_ENDS);
    }

    #[test]
    fn a_page_with_one_number_is_enough() {
        let pages = ["vfio_ccw_x 1".to_owned(), "vfio_ccw_x NaN".to_owned()];
        let json = figures(pages, &Choice::default(), Sort::Busy).json("here", &Choice::default());
        assert_eq!((&json["iops"], &json["version"]), (&Value::Null, &Value::Null));
        assert_eq!(json["stages"]["total"]["requests_per_s"], Value::Null);
    }
}
