//! The rendered metrics, kept for a moment so that a flood of scrapes costs one rendering.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper::body::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::accept::Format;
use crate::registry::Registry;

/// All clients of a moment and a format share one copy. A client that does not read keeps its copy for
/// as long as its connection lasts; there are never more than a fixed number of copies.
#[derive(Debug)]
pub(super) struct Scrape {
    registry: Registry,
    max_age: Duration,
    copies: Arc<Semaphore>,
    text: Mutex<Option<(Instant, Bytes)>>,
    protobuf: Mutex<Option<(Instant, Bytes)>>,
}

struct Copy {
    page: Vec<u8>,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Copy {
    fn as_ref(&self) -> &[u8] {
        &self.page
    }
}

impl Scrape {
    pub(super) fn new(registry: Registry, max_age: Duration, copies: usize) -> Self {
        Self {
            registry,
            max_age,
            copies: Arc::new(Semaphore::new(copies)),
            text: Mutex::default(),
            protobuf: Mutex::default(),
        }
    }

    /// The metrics as of `now`, or of at most `max_age` before. `None` if so many clients have not read
    /// theirs that there would be too many copies.
    pub(super) fn at(&self, format: Format, now: Instant) -> Option<Bytes> {
        let rendered = match format {
            Format::Text => &self.text,
            Format::Protobuf => &self.protobuf,
        };
        let mut rendered = rendered.lock();
        if let Some((since, page)) = &*rendered
            && now.saturating_duration_since(*since) < self.max_age
        {
            return Some(page.clone());
        }
        // Gives its place back, unless somebody still reads it.
        *rendered = None;
        let place = Arc::clone(&self.copies).try_acquire_owned().ok()?;
        let mut page = match format {
            Format::Text => self.registry.render().into_bytes(),
            Format::Protobuf => self.registry.render_protobuf(),
        };
        // It may stay for a while; what it grew into is up to twice as long.
        page.shrink_to_fit();
        let page = Bytes::from_owner(Copy { page, _place: place });
        *rendered = Some((now, page.clone()));
        Some(page)
    }
}
