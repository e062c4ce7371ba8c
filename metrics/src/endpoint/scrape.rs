//! The rendered metrics, kept for a moment so that a flood of scrapes costs one rendering.

use std::time::{Duration, Instant};

use hyper::body::Bytes;
use parking_lot::Mutex;

use crate::registry::Registry;

#[derive(Debug)]
pub(super) struct Scrape {
    registry: Registry,
    max_age: Duration,
    rendered: Mutex<Option<(Instant, Bytes)>>,
}

impl Scrape {
    pub(super) fn new(registry: Registry, max_age: Duration) -> Self {
        Self { registry, max_age, rendered: Mutex::default() }
    }

    /// The metrics as of `now`, or of at most `max_age` before. All clients share one copy.
    pub(super) fn at(&self, now: Instant) -> Bytes {
        let mut rendered = self.rendered.lock();
        if let Some((since, page)) = &*rendered
            && now.saturating_duration_since(*since) < self.max_age
        {
            return page.clone();
        }
        let page = Bytes::from(self.registry.render());
        *rendered = Some((now, page.clone()));
        page
    }
}
