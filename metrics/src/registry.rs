//! The registry: where shards and gauges meet, are summed, and are turned into text.

use std::sync::Arc;

use metrics::{Key, KeyName, Label, Level, Metadata, Recorder};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle, PrometheusRecorder};
use parking_lot::Mutex;
use thiserror::Error;

use crate::exposition::{STAGE_DURATION, WAIT, write_stage_durations, write_waits};
use crate::page::{Page, PageError, PageSource, check_path};
use crate::rows::{Family, FamilyKind, Row, Rows, write_rows};
use crate::sense::SenseClass;
use crate::shard::{CounterKind, Outcome, ShardMetrics};
use crate::totals::Totals;

pub(crate) const COMPLETIONS: &str = "vfio_ccw_completions_total";
pub(crate) const COMPLETIONS_HELP: &str = "Requests that ended, by outcome.";
pub(crate) const UNIT_CHECKS: &str = "vfio_ccw_unit_checks_total";
pub(crate) const UNIT_CHECKS_HELP: &str =
    "Requests that ended with unit check, by the class of their sense data.";
pub(crate) const BUILD_INFO: &str = "vfio_ccw_build_info";
pub(crate) const BUILD_INFO_HELP: &str = "Always 1; the label tells the version that runs.";

static METADATA: Metadata<'static> = Metadata::new(module_path!(), Level::INFO, None);

/// All shards and gauges of a service.
///
/// Clones share the same content. Nothing is global: a process may have several, and each has its
/// own exporter.
///
/// A shard whose [`ShardMetrics`] the service has dropped is summed a last time and then forgotten,
/// so counters never fall and memory does not grow when services come and go.
#[derive(Clone, Debug)]
pub struct Registry {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    recorder: PrometheusRecorder,
    exporter: PrometheusHandle,
    counters: [metrics::Counter; CounterKind::COUNT],
    completions: [metrics::Counter; Outcome::COUNT],
    unit_checks: [metrics::Counter; SenseClass::COUNT],
    rows: Mutex<Vec<Rows>>,
    gauges: Mutex<Vec<SampledGauge>>,
    pages: Mutex<Vec<PageSource>>,
    shards: Mutex<Shards>,
}

#[derive(Debug, Default)]
struct Shards {
    live: Vec<Arc<ShardMetrics>>,
    /// The sum of all shards that ended.
    retired: Totals,
}

#[derive(Clone)]
pub(crate) struct SampledGauge {
    pub(crate) key: Key,
    /// What the first gauge of the name said.
    pub(crate) help: Arc<str>,
    gauge: metrics::Gauge,
    sample: Arc<dyn Fn() -> f64 + Send + Sync>,
}

impl Registry {
    /// A registry without shards and gauges.
    #[must_use]
    pub fn new() -> Self {
        let recorder = PrometheusBuilder::new().build_recorder();
        let exporter = recorder.handle();

        let counters = CounterKind::ALL.map(|kind| {
            describe_counter(&recorder, kind.name(), kind.help());
            recorder.register_counter(&Key::from_static_name(kind.name()), &METADATA)
        });
        describe_counter(&recorder, COMPLETIONS, COMPLETIONS_HELP);
        let completions = Outcome::ALL.map(|outcome| {
            let label = Label::from_static_parts("outcome", outcome.name());
            recorder.register_counter(&Key::from_parts(COMPLETIONS, vec![label]), &METADATA)
        });
        describe_counter(&recorder, UNIT_CHECKS, UNIT_CHECKS_HELP);
        let unit_checks = SenseClass::ALL.map(|sense| {
            let label = Label::from_static_parts("sense", sense.name());
            recorder.register_counter(&Key::from_parts(UNIT_CHECKS, vec![label]), &METADATA)
        });
        let version = Label::from_static_parts("version", env!("CARGO_PKG_VERSION"));
        let build_info = Key::from_parts(BUILD_INFO, vec![version]);
        recorder.describe_gauge(BUILD_INFO.into(), None, BUILD_INFO_HELP.into());
        recorder.register_gauge(&build_info, &METADATA).set(1.0);

        Self {
            inner: Arc::new(Inner {
                recorder,
                exporter,
                counters,
                completions,
                unit_checks,
                rows: Mutex::default(),
                gauges: Mutex::default(),
                pages: Mutex::default(),
                shards: Mutex::default(),
            }),
        }
    }

    /// The metrics for a new shard, to be written by its thread alone.
    ///
    /// Every call makes new ones, also for a label that was there before: two shards never share a
    /// writer.
    #[must_use]
    pub fn shard(&self, label: impl Into<String>) -> Arc<ShardMetrics> {
        let shard = Arc::new(ShardMetrics::new(label.into()));
        self.inner.shards.lock().live.push(Arc::clone(&shard));
        shard
    }

    /// Adds a gauge whose value `sample` tells whenever somebody looks.
    ///
    /// `sample` runs on the scraping thread and should neither block nor take long. It lives as
    /// long as the registry, so it should hold what it asks by `Weak`.
    ///
    /// # Errors
    ///
    /// [`SeriesError`] if `name` is not a name for a Prometheus gauge, or one of the registry's own.
    pub fn gauge(
        &self,
        name: &str,
        help: &str,
        sample: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Result<(), SeriesError> {
        self.gauge_with(name, help, &[], sample)
    }

    /// Adds a gauge as [`gauge`](Self::gauge) does, with labels.
    ///
    /// Gauges of one name differ by label values and share the first one's help text. The same name
    /// and labels again replace the earlier `sample`.
    ///
    /// # Errors
    ///
    /// [`SeriesError`] as for [`gauge`](Self::gauge), and for a label name that Prometheus does not
    /// allow.
    pub fn gauge_with(
        &self,
        name: &str,
        help_text: &str,
        labels: &[(&str, &str)],
        sample: impl Fn() -> f64 + Send + Sync + 'static,
    ) -> Result<(), SeriesError> {
        check_name(name, FamilyKind::Gauge)?;
        let mut pairs = Vec::with_capacity(labels.len());
        for &(label, value) in labels {
            check_label_name(name, label)?;
            pairs.push(Label::new(label.to_owned(), value.to_owned()));
        }
        let key = Key::from_parts(name.to_owned(), pairs);

        let mut gauges = self.inner.gauges.lock();
        let recorder = &self.inner.recorder;
        recorder.describe_gauge(KeyName::from(name.to_owned()), None, help_text.to_owned().into());
        let gauge = recorder.register_gauge(&key, &METADATA);
        let help = gauges.iter().find(|known| known.key.name() == name);
        let help = help.map_or_else(|| Arc::from(help_text), |known| Arc::clone(&known.help));
        gauges.retain(|known| known.key != key);
        gauges.push(SampledGauge { key, help, gauge, sample: Arc::new(sample) });
        Ok(())
    }

    /// Adds families whose rows `collect` tells whenever somebody looks: what is not told of is not there
    /// any more. Families of the same names replace the earlier ones.
    ///
    /// `collect` runs on the scraping thread, as the function of [`gauge`](Self::gauge). The label names
    /// of rows must be Prometheus label names.
    ///
    /// # Errors
    ///
    /// [`SeriesError`] if one of the names is not a name for what the family is.
    pub fn rows(
        &self,
        families: &'static [Family],
        collect: impl Fn() -> Vec<Row> + Send + Sync + 'static,
    ) -> Result<(), SeriesError> {
        families.iter().try_for_each(|family| check_name(family.name, family.kind))?;
        let mut rows = self.inner.rows.lock();
        rows.retain(|known| known.families != families);
        rows.push(Rows { families, collect: Arc::new(collect) });
        Ok(())
    }

    /// Adds a page to the endpoint, at `path`. The endpoint's index says `what` is there. The same path
    /// again replaces the earlier page.
    ///
    /// `render` is given the query: what follows the question mark in the request, as the client sent it
    /// (at most 16 KiB, nothing decoded), or nothing. An error is what is wrong with the query, and
    /// becomes status 400. A page longer than [`Page::LIMIT`] and a panic become status 500.
    ///
    /// `render` runs on threads of the endpoint's own, at most two at once, and may block and take a
    /// second; `/metrics` is served meanwhile. It lives as long as the registry, so it should hold what it
    /// asks by `Weak`.
    ///
    /// ```
    /// use vfio_ccw_metrics::{Page, Registry};
    ///
    /// let registry = Registry::new();
    /// registry.page("/requests", "the last requests", |query| match query {
    ///     "" => Ok(Page::text("none yet\n")),
    ///     "format=json" => Ok(Page::json("[]\n")),
    ///     other => Err(format!("{other:?} is not known; there is format=json\n")),
    /// })?;
    /// # Ok::<(), vfio_ccw_metrics::PageError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`PageError`] if `path` is one of the endpoint's own, or has characters that would need escaping.
    pub fn page(
        &self,
        path: &'static str,
        what: &'static str,
        render: impl Fn(&str) -> Result<Page, String> + Send + Sync + 'static,
    ) -> Result<(), PageError> {
        check_path(path)?;
        let mut pages = self.inner.pages.lock();
        pages.retain(|known| known.path != path);
        pages.push(PageSource { path, what, render: Arc::new(render) });
        Ok(())
    }

    #[cfg(feature = "endpoint")]
    pub(crate) fn pages(&self) -> Vec<PageSource> {
        self.inner.pages.lock().clone()
    }

    #[cfg(feature = "endpoint")]
    pub(crate) fn page_at(&self, path: &str) -> Option<PageSource> {
        self.inner.pages.lock().iter().find(|page| page.path == path).cloned()
    }

    /// The sum over all shards, those that ended included.
    #[must_use]
    pub fn snapshot(&self) -> Totals {
        let mut shards = self.inner.shards.lock();
        shards.retire();
        let mut totals = shards.retired.clone();
        for shard in &shards.live {
            totals.merge(&shard.totals());
        }
        totals
    }

    /// Each running shard's label and totals, in the order in which they were added.
    #[must_use]
    pub fn snapshot_by_shard(&self) -> Vec<(String, Totals)> {
        let mut shards = self.inner.shards.lock();
        shards.retire();
        shards.live.iter().map(|shard| (shard.label().to_owned(), shard.totals())).collect()
    }

    /// Everything in Prometheus' text format, version 0.0.4.
    #[must_use]
    pub fn render(&self) -> String {
        let Reading { totals, gauges, rows } = self.read();
        for (kind, counter) in CounterKind::ALL.into_iter().zip(&self.inner.counters) {
            counter.absolute(totals.counter(kind));
        }
        for (outcome, counter) in Outcome::ALL.into_iter().zip(&self.inner.completions) {
            counter.absolute(totals.completions(outcome));
        }
        for (sense, counter) in SenseClass::ALL.into_iter().zip(&self.inner.unit_checks) {
            counter.absolute(totals.unit_checks(sense));
        }
        for (SampledGauge { gauge, .. }, value) in gauges {
            gauge.set(value);
        }
        let mut text = self.inner.exporter.render();
        let written = rows
            .iter()
            .try_for_each(|(families, rows)| write_rows(families, rows, &mut text))
            .and_then(|()| write_waits(&totals, &mut text))
            .and_then(|()| write_stage_durations(&totals, &mut text));
        written.expect("writing to a String cannot fail");
        text
    }

    /// Everything in Prometheus' protobuf format: messages `io.prometheus.client.MetricFamily`, each
    /// after its length.
    ///
    /// Stage durations have native histograms beside the buckets that the text has.
    #[cfg(feature = "protobuf")]
    #[must_use]
    pub fn render_protobuf(&self) -> Vec<u8> {
        crate::protobuf::encode(&self.read())
    }

    /// Asks everybody.
    fn read(&self) -> Reading {
        let totals = self.snapshot();
        // Copies, so that the functions may use the registry itself.
        let gauges = self.inner.gauges.lock().clone();
        let gauges = gauges.into_iter().map(|gauge| {
            let value = (gauge.sample)();
            (gauge, value)
        });
        let gauges = gauges.collect();
        let rows = self.inner.rows.lock().clone();
        let rows = rows.iter().map(|rows| (rows.families, (rows.collect)())).collect();
        Reading { totals, gauges, rows }
    }
}

/// What everybody said at one moment: what both formats are made from.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) totals: Totals,
    pub(crate) gauges: Vec<(SampledGauge, f64)>,
    pub(crate) rows: Vec<(&'static [Family], Vec<Row>)>,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for SampledGauge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SampledGauge({})", self.key)
    }
}

impl Shards {
    /// Moves the numbers of shards that nobody writes any more to `retired`.
    fn retire(&mut self) {
        let Self { live, retired } = self;
        live.retain_mut(|shard| {
            // `get_mut` succeeds once the registry is the only owner, and then sees all that the
            // last owner wrote before it let go (it acquires what that drop released).
            let ended = Arc::get_mut(shard).map(|shard| shard.totals());
            ended.as_ref().inspect(|totals| retired.merge(totals)).is_none()
        });
    }
}

/// A metric that cannot be added.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SeriesError {
    /// The name has characters that Prometheus does not allow.
    #[error(
        "metric name {name:?} is not a Prometheus name; use letters, digits and underscores, \
         not beginning with a digit"
    )]
    Name {
        /// The name as given.
        name: String,
    },
    /// The name belongs to the registry, or its ending says that it is something else.
    #[error(
        "metric name {name:?} is reserved; use one that the registry does not use itself; a counter's \
         ends in _total, a gauge's in none of _total, _bucket, _sum and _count"
    )]
    Reserved {
        /// The name as given.
        name: String,
    },
    /// A label name has characters that Prometheus does not allow.
    #[error(
        "label name {label:?} of {name:?} is not a Prometheus label name; use letters, \
         digits and underscores, not beginning with a digit or with two underscores"
    )]
    Label {
        /// The metric's name.
        name: String,
        /// The label name as given.
        label: String,
    },
}

fn check_name(name: &str, kind: FamilyKind) -> Result<(), SeriesError> {
    if !is_identifier(name) {
        return Err(SeriesError::Name { name: name.to_owned() });
    }
    let own = [BUILD_INFO, STAGE_DURATION, COMPLETIONS, UNIT_CHECKS, WAIT];
    let is_own = own.contains(&name) || CounterKind::ALL.iter().any(|kind| kind.name() == name);
    let ends_well = match kind {
        FamilyKind::Counter => name.ends_with("_total"),
        // As the series of a histogram do, or a counter.
        FamilyKind::Gauge => {
            !["_total", "_bucket", "_sum", "_count"].iter().any(|ending| name.ends_with(ending))
        }
    };
    if is_own || !ends_well {
        return Err(SeriesError::Reserved { name: name.to_owned() });
    }
    Ok(())
}

fn check_label_name(name: &str, label: &str) -> Result<(), SeriesError> {
    if is_identifier(label) && !label.starts_with("__") {
        Ok(())
    } else {
        Err(SeriesError::Label { name: name.to_owned(), label: label.to_owned() })
    }
}

fn is_identifier(name: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    name.bytes().next().is_some_and(letter)
        && name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
}

fn describe_counter(recorder: &PrometheusRecorder, name: &'static str, help: &'static str) {
    recorder.describe_counter(KeyName::from_const_str(name), None, help.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RECORDING;
    use crate::stage::{DeviceClass, Kind, Operation, Stage};

    fn writes(class: DeviceClass) -> Kind {
        Kind { class, operation: Operation::Write }
    }

    #[test]
    fn shards_are_summed_and_listed() {
        let registry = Registry::new();
        let shards = [registry.shard("0"), registry.shard("1")];
        for shard in &shards {
            shard.counters().starts.add(4);
            shard.durations(writes(DeviceClass::Eckd)).record(Stage::Queue, 100);
        }
        let times = u64::from(RECORDING);
        let totals = registry.snapshot();
        assert_eq!(totals.counter(CounterKind::Starts), 8 * times);
        assert_eq!(totals.stage(Stage::Queue).count(), 2 * times);
        let each = registry.snapshot_by_shard();
        assert_eq!(each.len(), 2);
        for ((label, totals), shard) in each.iter().zip(&shards) {
            assert_eq!(label, shard.label());
            assert_eq!(totals.counter(CounterKind::Starts), 4 * times);
        }
    }

    #[test]
    fn a_shard_that_ended_stays_in_the_sum_and_leaves_memory() {
        let registry = Registry::new();
        for restart in 1..=3 {
            let shard = registry.shard("0");
            shard.counters().starts.add(10);
            shard.durations(writes(DeviceClass::Fba)).record(Stage::Total, 5);
            drop(shard);
            let totals = registry.snapshot();
            let times = restart * u64::from(RECORDING);
            assert_eq!(totals.counter(CounterKind::Starts), 10 * times);
            assert_eq!(totals.stage(Stage::Total).count(), times);
            assert!(registry.snapshot_by_shard().is_empty());
        }
    }

    #[test]
    fn a_gauge_is_sampled_at_each_render_and_may_be_replaced() {
        use std::sync::atomic::{AtomicU64, Ordering};

        let registry = Registry::new();
        let depth = Arc::new(AtomicU64::new(3));
        let seen = Arc::clone(&depth);
        let add = |registry: &Registry, sample: Box<dyn Fn() -> f64 + Send + Sync>| {
            registry.gauge_with("vfio_ccw_ring_depth", "Entries.", &[("ring", "a\"b")], sample)
        };
        add(&registry, Box::new(move || seen.load(Ordering::Relaxed) as f64)).expect("valid");
        let line = |value: &str| format!("vfio_ccw_ring_depth{{ring=\"a\\\"b\"}} {value}\n");
        assert!(registry.render().contains(&line("3")));
        depth.store(9, Ordering::Relaxed);
        assert!(registry.render().contains(&line("9")));

        add(&registry, Box::new(|| 0.5)).expect("valid");
        let text = registry.render();
        assert!(text.contains(&line("0.5")), "{text}");
        assert_eq!(text.matches("vfio_ccw_ring_depth{").count(), 1);
        assert_eq!(Arc::strong_count(&depth), 1, "the replaced function is gone");
    }

    #[test]
    fn a_sampling_function_may_use_the_registry() {
        let registry = Registry::new();
        let weak = Arc::downgrade(&registry.inner);
        let running = move || {
            let registry = weak.upgrade().map(|inner| Registry { inner });
            registry.map_or(0.0, |registry| registry.snapshot_by_shard().len() as f64)
        };
        registry.gauge("vfio_ccw_shards", "Running shards.", running).expect("valid");
        let shard = registry.shard("0");
        assert!(registry.render().contains("vfio_ccw_shards 1\n"));
        drop(shard);
        assert!(registry.render().contains("vfio_ccw_shards 0\n"));
    }

    #[test]
    fn rows_come_and_go() {
        static FAMILIES: [Family; 2] = [
            Family { kind: FamilyKind::Counter, name: "vfio_ccw_x_total", help: "Xs." },
            Family { kind: FamilyKind::Gauge, name: "vfio_ccw_y", help: "Ys." },
        ];
        let registry = Registry::new();
        let there = Arc::new(Mutex::new(vec![("a", 1.0), ("b", 2.0)]));
        let seen = there.clone();
        let collect = move || {
            let row = |(label, value): &(&str, f64)| Row {
                labels: vec![("of", (*label).to_owned())],
                values: vec![*value, value / 4.0],
            };
            seen.lock().iter().map(row).collect()
        };
        registry.rows(&FAMILIES, collect).expect("valid");
        let text = registry.render();
        for line in ["vfio_ccw_x_total{of=\"a\"} 1\n", "vfio_ccw_y{of=\"b\"} 0.5\n"] {
            assert!(text.contains(line), "{text}");
        }
        there.lock().remove(0);
        let text = registry.render();
        assert!(!text.contains("of=\"a\"") && text.contains("of=\"b\""), "{text}");
        registry.rows(&FAMILIES, Vec::new).expect("valid");
        assert!(!registry.render().contains("of="), "replaced");
        assert_eq!(Arc::strong_count(&there), 1);
    }

    #[test]
    fn names_that_would_spoil_the_scrape_are_refused() {
        let registry = Registry::new();
        let refused = |name: &str| registry.gauge(name, "Help.", || 0.0).expect_err(name);
        for name in ["", "9lives", "a-b", "a b", "ä"] {
            assert_eq!(refused(name), SeriesError::Name { name: name.into() });
        }
        for name in ["vfio_ccw_starts_total", "x_bucket", "x_count", BUILD_INFO, STAGE_DURATION] {
            assert_eq!(refused(name), SeriesError::Reserved { name: name.into() });
        }
        for label in ["", "__name__", "a.b", "1"] {
            let error = registry.gauge_with("x", "Help.", &[(label, "v")], || 0.0);
            let expected = SeriesError::Label { name: "x".into(), label: label.into() };
            assert_eq!(error, Err(expected));
        }
        assert!(registry.inner.gauges.lock().is_empty());
    }
}
