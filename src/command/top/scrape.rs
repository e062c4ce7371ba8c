//! One HTTP GET of a page of metrics, from a server that is taken to be hostile.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::time::{Duration, Instant};

use http_body_util::{BodyExt, Empty, LengthLimitError, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{ACCEPT, HOST};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::runtime::{self, Runtime};
use tokio::time::timeout;

use super::address::Address;
use super::reading::Reading;

/// What a server may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Time until there is a connection.
    connect: Duration,
    /// Time for the whole answer, from then on.
    answer: Duration,
    /// Bytes of a page; a service with every label there is has some hundred KiB.
    bytes: usize,
}

const LIMITS: Limits =
    Limits { connect: Duration::from_secs(2), answer: Duration::from_secs(5), bytes: 16 << 20 };

/// Fetches pages of one address.
#[derive(Debug)]
pub(super) struct Scraper {
    address: Address,
    limits: Limits,
    runtime: Runtime,
}

impl Scraper {
    pub(super) fn new(address: Address) -> io::Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        Ok(Scraper { address, limits: LIMITS, runtime })
    }

    /// Fetches the page. Returns within 7 s, whatever the server does.
    ///
    /// A connection each: one that is kept would have to be looked after between two scrapes, and the
    /// service closes it after some seconds anyway.
    pub(super) fn scrape(&self) -> Result<String, ScrapeError> {
        let Limits { connect, answer, .. } = self.limits;
        let page = self.runtime.block_on(async {
            let connected = timeout(connect, TcpStream::connect(self.address.peer())).await;
            let stream = connected.map_err(|_| ScrapeError::NoConnection(connect))?;
            let stream = stream.map_err(ScrapeError::Connect)?;
            let page = timeout(answer, self.request(stream)).await;
            page.map_err(|_| ScrapeError::NoAnswer(answer))?
        })?;
        String::from_utf8(page.into()).map_err(|_| ScrapeError::NotText)
    }

    /// Fetches the page and reads it.
    pub(super) fn reading(&self) -> Result<Reading, ScrapeError> {
        let page = self.scrape()?;
        Reading::of(&page, Instant::now()).ok_or(ScrapeError::NotOurs)
    }

    async fn request(&self, stream: TcpStream) -> Result<Bytes, ScrapeError> {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(self.address.page())
            .header(HOST, self.address.authority())
            .header(ACCEPT, "text/plain; version=0.0.4")
            .body(Empty::<Bytes>::new())
            .map_err(|_| ScrapeError::Request)?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            if response.status() != StatusCode::OK {
                return Err(ScrapeError::Status(response.status().as_u16()));
            }
            let body = Limited::new(response.into_body(), self.limits.bytes);
            match body.collect().await {
                Ok(body) => Ok(body.to_bytes()),
                Err(error) if error.is::<LengthLimitError>() => {
                    Err(ScrapeError::TooLong(self.limits.bytes))
                }
                Err(error) => Err(match error.downcast::<hyper::Error>() {
                    Ok(error) => ScrapeError::Http(*error),
                    Err(_) => ScrapeError::CutShort,
                }),
            }
        };
        let (mut exchange, mut connection) = (pin!(exchange), pin!(connection));
        let mut open = true;
        // The connection moves bytes while it is polled; it may end before what it brought is read.
        poll_fn(|context| {
            open = open && connection.as_mut().poll(context).is_pending();
            exchange.as_mut().poll(context)
        })
        .await
    }
}

/// Why there is no page.
#[derive(Debug, Error)]
pub(super) enum ScrapeError {
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    #[error("no connection within {} s", .0.as_secs_f64())]
    NoConnection(Duration),
    #[error("no whole answer within {} s", .0.as_secs_f64())]
    NoAnswer(Duration),
    #[error("no proper HTTP: {}", innermost(.0))]
    Http(#[from] hyper::Error),
    #[error("the answer was cut short")]
    CutShort,
    #[error("the page cannot be asked for")]
    Request,
    #[error("HTTP status {0}, no metrics")]
    Status(u16),
    #[error("the answer has more than {0} bytes")]
    TooLong(usize),
    #[error("the answer is not UTF-8 text")]
    NotText,
    #[error("the answer has no metrics of vfio-ccw")]
    NotOurs,
}

/// hyper's own words say little; what it stands on knows more.
fn innermost(error: &hyper::Error) -> String {
    let mut error: &dyn std::error::Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread::JoinHandle;

    use super::*;

    /// A server that sends `answer` to one client, and then holds the connection or closes it.
    fn serve(answer: Vec<u8>, hold: bool) -> (Scraper, JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = client.read(&mut request);
            // The client may have had enough.
            let _ = client.write_all(&answer);
            while hold && client.read(&mut request).is_ok_and(|bytes| bytes > 0) {}
        });
        let mut scraper = Scraper::new(address).unwrap();
        scraper.limits.bytes = 64 << 10;
        (scraper, server)
    }

    fn answer(text: &str) -> Result<String, ScrapeError> {
        let (scraper, server) = serve(text.as_bytes().to_vec(), false);
        let page = scraper.scrape();
        server.join().unwrap();
        page
    }

    #[test]
    fn a_page_comes_in_each_way_that_http_has() {
        let known = answer("HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\na 1\n").unwrap();
        let chunked =
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\na 1\n\r\n0\r\n\r\n";
        let until_closed = answer("HTTP/1.0 200 OK\r\n\r\na 1\n").unwrap();
        assert_eq!([known, answer(chunked).unwrap(), until_closed], ["a 1\n"; 3]);
    }

    #[test]
    fn what_is_no_page_is_an_error() {
        let error = |text: &str| answer(text).unwrap_err();
        assert!(matches!(error("SSH-2.0-OpenSSH_9.2\r\n"), ScrapeError::Http(_)));
        assert!(matches!(error(""), ScrapeError::Http(_)));
        let short = error("HTTP/1.1 200 OK\r\ncontent-length: 40\r\n\r\na 1\n");
        assert!(matches!(short, ScrapeError::Http(_)), "{short:?}");
        let status = error("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n");
        assert!(matches!(status, ScrapeError::Status(404)), "{status:?}");
        let bytes = answer("HTTP/1.1 200 OK\r\n\r\n").unwrap();
        assert_eq!(bytes, "");
    }

    #[test]
    fn a_page_without_end_is_cut_off() {
        let mut text = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
        text.resize(1 << 20, b'x');
        let (scraper, server) = serve(text, true);
        assert!(matches!(scraper.scrape(), Err(ScrapeError::TooLong(_))));
        drop(scraper);
        server.join().unwrap();
    }

    #[test]
    fn a_server_that_says_nothing_is_given_up() {
        let (mut scraper, server) = serve(Vec::new(), true);
        scraper.limits.answer = Duration::from_millis(50);
        assert!(matches!(scraper.scrape(), Err(ScrapeError::NoAnswer(_))));
        drop(scraper);
        server.join().unwrap();
    }

    #[test]
    fn bytes_that_are_no_text_are_refused() {
        let (scraper, server) = serve(b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe".to_vec(), false);
        assert!(matches!(scraper.scrape(), Err(ScrapeError::NotText)));
        server.join().unwrap();
    }
}
