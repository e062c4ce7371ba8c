//! docs/METRICS.md names every metric and label value, and none that there is not.

pub mod text_format;

use std::collections::{BTreeMap, BTreeSet};

use vfio_ccw_metrics::{
    CounterKind, DeviceClass, Operation, Outcome, Registry, SenseClass, Stage, Waiting,
};

const DOCUMENT: &str = include_str!("../../docs/METRICS.md");

/// What a service or a server adds to the registry, with its type.
const OF_THE_SERVICE: [(&str, &str); 23] = [
    ("vfio_ccw_pinned_bytes", "gauge"),
    ("vfio_ccw_pinned_peak_bytes", "gauge"),
    ("vfio_ccw_pin_budget_bytes", "gauge"),
    ("vfio_ccw_pin_estimated_hit_ratio", "gauge"),
    ("vfio_ccw_pin_waiting_programs", "gauge"),
    ("vfio_ccw_pin_invalidations_total", "counter"),
    ("vfio_ccw_windows", "gauge"),
    ("vfio_ccw_subchannels", "gauge"),
    ("vfio_ccw_requests_queued", "gauge"),
    ("vfio_ccw_requests_in_flight", "gauge"),
    ("vfio_ccw_oldest_request_seconds", "gauge"),
    ("vfio_ccw_subchannel_requests_total", "counter"),
    ("vfio_ccw_subchannel_busy_seconds_total", "counter"),
    ("vfio_ccw_subchannel_errors_total", "counter"),
    ("vfio_ccw_subchannel_oldest_request_seconds", "gauge"),
    ("vfio_ccw_server_connections_total", "counter"),
    ("vfio_ccw_server_messages_total", "counter"),
    ("vfio_ccw_server_refusals_total", "counter"),
    ("vfio_ccw_server_clients", "gauge"),
    ("vfio_ccw_server_lanes", "gauge"),
    ("vfio_ccw_server_windows", "gauge"),
    ("vfio_ccw_server_window_bytes", "gauge"),
    ("vfio_ccw_pin_failures_total", "counter"),
];

/// Every metric with its type.
fn known() -> BTreeMap<String, String> {
    let registry = Registry::new();
    let shard = registry.shard("0");
    DeviceClass::ALL.into_iter().for_each(|class| shard.attached(class));
    let families = text_format::parse(&registry.render());
    let rendered = families.into_iter().map(|(name, family)| (name, family.kind));
    let added = OF_THE_SERVICE.map(|(name, kind)| (name.to_owned(), kind.to_owned()));
    rendered.chain(added).collect()
}

/// The cells of each row that begins with a name in code, by that name.
fn rows() -> BTreeMap<&'static str, Vec<&'static str>> {
    let mut rows = BTreeMap::new();
    for line in DOCUMENT.lines().filter(|line| line.starts_with("| `")) {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        let name = cells.next().expect("a first cell").trim_matches('`');
        assert!(
            rows.insert(name, cells.collect()).is_none() || !name.contains("vfio"),
            "{name} twice"
        );
    }
    rows
}

#[test]
fn every_metric_has_a_row_with_its_type() {
    let rows = rows();
    for (name, kind) in known() {
        let row = rows.get(name.as_str()).unwrap_or_else(|| panic!("{name} is not documented"));
        assert_eq!(row[0], kind, "{name}");
    }
}

#[test]
fn every_label_value_is_explained_with_its_label() {
    let rows: BTreeMap<_, _> = DOCUMENT
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once("` | "))
        .rev()
        .collect();
    let labels: [(&str, Vec<&str>); 6] = [
        ("stage", Stage::ALL.map(Stage::name).into()),
        ("class", DeviceClass::ALL.map(DeviceClass::name).into()),
        ("operation", Operation::ALL.map(Operation::name).into()),
        ("outcome", Outcome::ALL.map(Outcome::name).into()),
        ("sense", SenseClass::ALL.map(SenseClass::name).into()),
        ("how", Waiting::ALL.map(Waiting::name).into()),
    ];
    for (label, values) in labels {
        let row = rows.get(label).unwrap_or_else(|| panic!("label {label} is not documented"));
        for value in values {
            assert!(row.contains(&format!("`{value}`")), "{label}={value} is not documented");
        }
    }
    for kind in CounterKind::ALL {
        assert!(DOCUMENT.contains(&format!("| `{}` | counter |", kind.name())), "{}", kind.name());
    }
}

#[test]
fn every_name_in_the_document_is_known() {
    let known = known();
    let mut names = BTreeSet::new();
    for (at, _) in DOCUMENT.match_indices("vfio_ccw_") {
        let rest = &DOCUMENT[at..];
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let before = DOCUMENT[..at].chars().next_back();
        if before.is_none_or(|c| !c.is_ascii_alphanumeric()) {
            names.insert(&rest[..end.unwrap_or(rest.len())]);
        }
    }
    assert!(names.len() >= known.len());
    // Of the library, not of Prometheus.
    names.remove("vfio_ccw_metrics");
    for name in names {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        let is_series = family.is_some_and(|it| known.get(it).is_some_and(|it| it == "histogram"));
        assert!(known.contains_key(name) || is_series, "{name} is in the document only");
    }
}
