//! What is answered to a request.

use std::fmt::Write;
use std::time::Instant;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{
    ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY,
};
use hyper::{Method, Request, Response, StatusCode};

use super::Limits;
use super::accept::negotiate;
use super::pages::{NoPage, Pages};
use super::scrape::Scrape;
use crate::page::PageFormat;
use crate::registry::Registry;

const PLAIN_TEXT: &str = PageFormat::Text.media_type();
const HTML: &str = "text/html; charset=utf-8";

/// What all connections are answered from.
#[derive(Debug)]
pub(super) struct Answers {
    registry: Registry,
    scrape: Scrape,
    pages: Pages,
}

impl Answers {
    pub(super) fn new(registry: Registry, limits: Limits) -> Self {
        let scrape = Scrape::new(registry.clone(), limits.page_age, limits.scrapes_sent);
        Self { registry, scrape, pages: Pages::new(limits.pages_made, limits.pages_sent) }
    }

    pub(super) async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        let path = request.uri().path();
        let page = self.registry.page_at(path);
        if !matches!(path, "/" | "/healthz" | "/metrics") && page.is_none() {
            return plain(StatusCode::NOT_FOUND, "not found; / lists what there is\n");
        }
        // hyper leaves the body out of the answer to HEAD.
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let refused =
                plain(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served here\n");
            return with(refused, ALLOW, "GET, HEAD");
        }
        if let Some(page) = page {
            let query = request.uri().query().unwrap_or_default().to_owned();
            return match self.pages.page(page, query).await {
                Ok((format, body)) => respond(StatusCode::OK, format.media_type(), body),
                Err(NoPage::Query(why)) => plain(StatusCode::BAD_REQUEST, why),
                Err(NoPage::Failed(why)) => plain(StatusCode::INTERNAL_SERVER_ERROR, why),
                Err(NoPage::Busy) => busy("enough pages are being made or sent; come again\n"),
            };
        }
        match path {
            "/" => respond(StatusCode::OK, HTML, self.index()),
            "/healthz" => plain(StatusCode::OK, "ok\n"),
            _ => {
                let accepted = request.headers().get_all(ACCEPT).iter();
                let format = negotiate(accepted.map(HeaderValue::as_bytes));
                let response = match self.scrape.at(format, Instant::now()) {
                    Some(page) => respond(StatusCode::OK, format.media_type(), page),
                    None => busy("too many clients do not read what they asked for; come again\n"),
                };
                with(response, VARY, "Accept")
            }
        }
    }

    fn index(&self) -> String {
        let mut html = String::from(
            "<!doctype html>\n<html lang=\"en\"><title>vfio-ccw</title>\n<h1>vfio-ccw</h1>\n<ul>\n\
             <li><a href=\"/metrics\">/metrics</a>: metrics for Prometheus\n\
             <li><a href=\"/healthz\">/healthz</a>: whether this process answers\n",
        );
        for page in self.registry.pages() {
            // Paths are of characters that need no escaping.
            let path = page.path;
            let what = page.what.replace('&', "&amp;").replace('<', "&lt;");
            writeln!(html, "<li><a href=\"{path}\">{path}</a>: {what}")
                .expect("writing to a String cannot fail");
        }
        html.push_str("</ul>\n</html>\n");
        html
    }
}

fn busy(why: &'static str) -> Response<Full<Bytes>> {
    with(plain(StatusCode::SERVICE_UNAVAILABLE, why), RETRY_AFTER, "1")
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    respond(status, PLAIN_TEXT, body)
}

fn respond(
    status: StatusCode,
    media_type: &'static str,
    body: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let response = with(response, CONTENT_TYPE, media_type);
    with(response, CACHE_CONTROL, "no-store")
}

fn with(
    mut response: Response<Full<Bytes>>,
    name: HeaderName,
    value: &'static str,
) -> Response<Full<Bytes>> {
    response.headers_mut().insert(name, HeaderValue::from_static(value));
    response
}
