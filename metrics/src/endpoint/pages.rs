//! The pages that a registry knows by path: made away from the endpoint's own thread, few at a time.

use std::sync::Arc;

use hyper::body::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::spawn_blocking;

use crate::page::{Page, PageFormat, PageSource};

/// Who may be at work on pages at once, and how many finished ones may be waiting for their clients.
///
/// A page is made on a thread of the runtime's for blocking work, so that one which takes its time
/// holds up neither `/metrics` nor another connection. Who comes when all are taken is told to come
/// again rather than made to wait: it would hold a connection for it.
#[derive(Debug)]
pub(super) struct Pages {
    making: Arc<Semaphore>,
    sending: Arc<Semaphore>,
}

/// Why there is no page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NoPage {
    /// The query asks for what there is not; the page says why.
    Query(String),
    /// Enough pages are being made, or sent.
    Busy,
    /// It cannot be served.
    Failed(&'static str),
}

/// A page's body with its place among those that are sent, which it keeps until the client has all of
/// it or has gone.
struct Held {
    body: String,
    _place: OwnedSemaphorePermit,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.body.as_bytes()
    }
}

impl Pages {
    pub(super) fn new(making: usize, sending: usize) -> Self {
        Self {
            making: Arc::new(Semaphore::new(making)),
            sending: Arc::new(Semaphore::new(sending)),
        }
    }

    /// The page of `source` for `query`, which is what follows the question mark as the client sent it.
    pub(super) async fn page(
        &self,
        source: PageSource,
        query: String,
    ) -> Result<(PageFormat, Bytes), NoPage> {
        let place = Arc::clone(&self.sending).try_acquire_owned().map_err(|_full| NoPage::Busy)?;
        let turn = Arc::clone(&self.making).try_acquire_owned().map_err(|_full| NoPage::Busy)?;
        let path = source.path;
        // The turn goes along: when the client leaves, the work goes on, and counts until it is over.
        let made = spawn_blocking(move || {
            let page = (source.render)(&query);
            drop(turn);
            page
        });
        let Page { format, body } = match made.await {
            Ok(page) => page.map_err(NoPage::Query)?,
            Err(error) => {
                tracing::error!(path, %error, "a page could not be made");
                return Err(NoPage::Failed("making the page failed; the log says more\n"));
            }
        };
        if body.len() > Page::LIMIT {
            tracing::error!(path, bytes = body.len(), limit = Page::LIMIT, "a page is too long");
            return Err(NoPage::Failed("the page is too long to be served\n"));
        }
        Ok((format, Bytes::from_owner(Held { body, _place: place })))
    }
}
