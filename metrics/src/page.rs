//! Further pages of the endpoint: who may be asked for one by its path.

use std::fmt;
use std::sync::Arc;

use thiserror::Error;

/// What the body of a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageFormat {
    /// Lines to read.
    Text,
    /// JSON.
    Json,
}

impl PageFormat {
    /// As the header `Content-Type` says it.
    #[must_use]
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::Text => "text/plain; charset=utf-8",
            Self::Json => "application/json",
        }
    }
}

/// A page as it is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// What the body is.
    pub format: PageFormat,
    /// At most [`LIMIT`](Self::LIMIT) bytes of it are served; a longer one is an error.
    pub body: String,
}

impl Page {
    /// Bytes that a page may have.
    ///
    /// A client that does not read holds a page for as long as its connection lasts, so that each byte
    /// here may be in memory several times.
    pub const LIMIT: usize = 4 << 20;

    /// A page of text.
    #[must_use]
    pub fn text(body: impl Into<String>) -> Self {
        Self { format: PageFormat::Text, body: body.into() }
    }

    /// A page of JSON.
    #[must_use]
    pub fn json(body: impl Into<String>) -> Self {
        Self { format: PageFormat::Json, body: body.into() }
    }
}

/// A page that cannot be added.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PageError {
    /// Not a path that needs no escaping anywhere.
    #[error(
        "{path:?} is not a path for a page; use a slash, then lower-case letters, digits, \
         dashes, dots, underscores and slashes"
    )]
    Path {
        /// The path as given.
        path: &'static str,
    },
    /// The endpoint serves something of its own there.
    #[error("the endpoint itself serves {path}; use another path for the page")]
    Reserved {
        /// The path as given.
        path: &'static str,
    },
}

/// Makes a page for a query, or says what is wrong with the query.
pub(crate) type Render = dyn Fn(&str) -> Result<Page, String> + Send + Sync;

/// A path, what is there, and who makes it.
#[derive(Clone)]
pub(crate) struct PageSource {
    pub(crate) path: &'static str,
    #[cfg_attr(
        not(feature = "endpoint"),
        expect(dead_code, reason = "for the index of the endpoint")
    )]
    pub(crate) what: &'static str,
    #[cfg_attr(not(feature = "endpoint"), expect(dead_code, reason = "only the endpoint asks"))]
    pub(crate) render: Arc<Render>,
}

impl fmt::Debug for PageSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageSource({})", self.path)
    }
}

pub(crate) fn check_path(path: &'static str) -> Result<(), PageError> {
    let plain =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._/".contains(&byte);
    if ["/", "/metrics", "/healthz"].contains(&path) {
        Err(PageError::Reserved { path })
    } else if path.starts_with('/') && path.bytes().all(plain) {
        Ok(())
    } else {
        Err(PageError::Path { path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_need_no_escaping_and_leave_the_endpoints_own_alone() {
        for path in ["/requests", "/a/b-2.txt", "/_"] {
            assert_eq!(check_path(path), Ok(()));
        }
        for path in ["/", "/metrics", "/healthz"] {
            assert_eq!(check_path(path), Err(PageError::Reserved { path }));
        }
        for path in ["", "requests", "/Requests", "/a b", "/a?b", "/<a>", "/\u{e4}", "/a%20"] {
            assert_eq!(check_path(path), Err(PageError::Path { path }));
        }
    }
}
