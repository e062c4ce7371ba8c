//! Latencies as an HdrHistogram interval log: a line a second for each job, with the job's name as tag. Any of
//! HdrHistogram's tools reads it; values are nanoseconds.

use std::fs::File;
use std::io::{self, BufWriter};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use hdrhistogram::serialization::V2DeflateSerializer;
use hdrhistogram::serialization::interval_log::{IntervalLogWriter, Tag};
use vfio_ccw_load::{Progress, Tick};

/// Time that a line is for, at least.
const INTERVAL: Duration = Duration::from_secs(1);

/// A log that lines are written to.
pub type Log<'f, 's> = IntervalLogWriter<'f, 's, BufWriter<File>, V2DeflateSerializer>;

/// Shows what `inner` shows, and writes the log.
pub struct Logged<'l, 'f, 's> {
    inner: Box<dyn Progress>,
    log: &'l mut Log<'f, 's>,
    /// When the log began.
    began: Instant,
    tag: String,
    /// What is not written yet, and since when.
    gathered: Option<(Duration, Histogram<u64>)>,
    /// The last thing that went wrong; the job goes on.
    failed: Option<String>,
}

impl<'l, 'f, 's> Logged<'l, 'f, 's> {
    /// For the job `name`, in a log that began at `began`.
    pub fn new(
        inner: Box<dyn Progress>,
        log: &'l mut Log<'f, 's>,
        began: Instant,
        name: &str,
    ) -> Self {
        // What the format separates its fields by is no part of a tag.
        let tag = name.replace([',', ' ', '\n', '\r'], "_");
        Self { inner, log, began, tag, gathered: None, failed: None }
    }

    /// Whether all has been written.
    pub fn result(self) -> io::Result<()> {
        self.failed.map_or(Ok(()), |reason| Err(io::Error::other(reason)))
    }

    fn write(&mut self) {
        let Some((since, latencies)) = self.gathered.take() else { return };
        let length = self.began.elapsed().saturating_sub(since);
        let written = self.log.write_histogram(&latencies, since, length, Tag::new(&self.tag));
        if let Err(error) = written {
            self.failed = Some(format!("{error:?}"));
        }
    }
}

impl Progress for Logged<'_, '_, '_> {
    fn tick(&mut self, tick: &Tick) {
        self.inner.tick(tick);
    }

    fn latencies(&mut self, from: Duration, to: Duration, latencies: &Histogram<u64>) {
        let now = self.began.elapsed();
        match &mut self.gathered {
            // Histograms of one shape always add.
            Some((_, gathered)) => *gathered += latencies,
            None => self.gathered = Some((now.saturating_sub(to - from), latencies.clone())),
        }
        if self.gathered.as_ref().is_some_and(|(since, _)| now - *since >= INTERVAL) {
            self.write();
        }
    }

    fn finish(&mut self) {
        self.write();
        self.inner.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::serialization::Deserializer;
    use hdrhistogram::serialization::interval_log::{
        IntervalLogHistogram, IntervalLogIterator, IntervalLogWriterBuilder, LogEntry,
    };
    use std::io::Write as _;
    use std::time::SystemTime;
    use vfio_ccw_load::Quiet;

    #[test]
    fn every_latency_is_in_the_log_under_its_job() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut out = BufWriter::new(file.reopen().unwrap());
        let mut serializer = V2DeflateSerializer::new();
        let mut log = IntervalLogWriterBuilder::new()
            .with_start_time(SystemTime::now())
            .begin_log_with(&mut out, &mut serializer)
            .unwrap();
        let mut latencies = Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        for (name, values) in [("a job, b", [5u64, 7]), ("other", [900, 901])] {
            let mut logged = Logged::new(Box::new(Quiet), &mut log, Instant::now(), name);
            for value in values {
                latencies.reset();
                latencies.record(value).unwrap();
                logged.latencies(Duration::ZERO, Duration::from_millis(250), &latencies);
            }
            logged.finish();
            logged.result().unwrap();
        }
        out.flush().unwrap();
        let text = std::fs::read(file.path()).unwrap();
        let entries: Vec<IntervalLogHistogram<'_>> = IntervalLogIterator::new(&text)
            .filter_map(|entry| match entry.unwrap() {
                LogEntry::Interval(interval) => Some(interval),
                _ => None,
            })
            .collect();
        let tags: Vec<_> = entries.iter().map(|entry| entry.tag().unwrap().as_str()).collect();
        assert_eq!(tags, ["a_job__b", "other"]);
        let coded = entries[1].encoded_histogram();
        let bytes = base64::Engine::decode(&base64::prelude::BASE64_STANDARD, coded).unwrap();
        let read: Histogram<u64> = Deserializer::new().deserialize(&mut &bytes[..]).unwrap();
        assert_eq!((read.len(), read.max()), (2, 901));
    }
}
