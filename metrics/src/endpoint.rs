//! The HTTP endpoint that Prometheus scrapes.
//!
//! One thread of its own with one small runtime, so that a scrape never runs on a shard, and a
//! service without io_uring or without a runtime has the same endpoint.
//!
//! Whoever can reach the port is taken to be hostile: [`Limits`] bounds what one client may hold
//! and what all of them together may cost.

use std::convert::Infallible;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{self, Runtime};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

use self::answer::Answers;
use crate::registry::Registry;

mod accept;
mod answer;
mod pages;
mod scrape;

/// What clients may take.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections open at once; further ones are closed as soon as they are accepted.
    connections: usize,
    /// Time for a client to send a request's header, and for a connection to stay idle.
    header_read: Duration,
    /// Age from which on a connection gets no further request; what it is reading then must be
    /// through within another `header_read`. Ends clients that trickle or do not read.
    lifetime: Duration,
    /// Bytes of a request's header.
    header_bytes: usize,
    /// Age up to which a rendered page serves further scrapes.
    page_age: Duration,
    /// Renderings of the metrics that are in memory at once, since clients have not read them.
    scrapes_sent: usize,
    /// Further pages that are made at once.
    pages_made: usize,
    /// Further pages that are made or sent at once: what they may hold of memory.
    pages_sent: usize,
}

/// Bytes that the kernel keeps for a client that does not read; it takes twice as many for itself.
const SEND_BUFFER: u32 = 128 << 10;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 128;

/// How long shutting down waits for pages that are being made.
const LAST_PAGES: Duration = Duration::from_secs(5);

impl Limits {
    const DEFAULT: Self = Self {
        connections: 64,
        header_read: Duration::from_secs(5),
        // Prometheus gives up on a scrape after 10 s unless told otherwise.
        lifetime: Duration::from_secs(15),
        header_bytes: 16 << 10,
        page_age: Duration::from_millis(100),
        scrapes_sent: 16,
        pages_made: 2,
        pages_sent: 8,
    };
}

/// A running HTTP server for `GET /metrics`, `/healthz`, the [pages](Registry::page) of the registry and
/// an index of all of them at `/`.
///
/// It stops when dropped.
///
/// A client may hold a connection idle for 5 s and use it for 15 s, 64 connections may be open at
/// once, a request header may have 16 KiB, and however often `/metrics` is asked for, it is
/// rendered at most every 100 ms: as text, or as protobuf with native histograms for who names that in
/// the header `Accept`. At most 16 renderings are in memory at once. Two further pages may be made at once, and eight made or sent; who
/// asks for another gets status 503.
///
/// ```
/// use vfio_ccw_metrics::{Endpoint, Registry};
///
/// let registry = Registry::new();
/// let endpoint = Endpoint::bind("127.0.0.1:0".parse()?, registry.clone())?;
/// println!("metrics: http://{}/metrics", endpoint.local_addr());
/// endpoint.shutdown();
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Endpoint {
    local_addr: SocketAddr,
    /// Held by a running server only. Dropping it is the signal to stop.
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

impl Endpoint {
    /// Listens on `addr` (port 0 picks a free one) and serves `registry` from a thread of its own.
    ///
    /// # Errors
    ///
    /// [`EndpointError::InUse`] if another socket has the address, [`EndpointError::Bind`] if the
    /// address cannot be had for another reason, and [`EndpointError::Start`] if the thread or its
    /// runtime cannot be made.
    pub fn bind(addr: SocketAddr, registry: Registry) -> Result<Self, EndpointError> {
        Self::bind_with(addr, registry, Limits::DEFAULT)
    }

    fn bind_with(
        addr: SocketAddr,
        registry: Registry,
        limits: Limits,
    ) -> Result<Self, EndpointError> {
        let start = |source| EndpointError::Start { source };
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(limits.pages_made)
            .thread_name("ccw-pages")
            .build()
            .map_err(start)?;
        let (listener, local_addr) = {
            let _context = runtime.enter();
            listen(addr).map_err(|source| EndpointError::from_listen(addr, source))?
        };
        let answers = Arc::new(Answers::new(registry, limits));
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("ccw-metrics".into())
            .spawn(move || serve(runtime, listener, answers, limits, stopped))
            .map_err(start)?;
        Ok(Self { local_addr, stop: Some(stop), thread: Some(thread) })
    }

    /// The address that is listened on, with the port that was picked.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }

    /// Stops listening, closes all connections and waits for the thread to end.
    pub fn shutdown(self) {
        drop(self);
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the metrics endpoint's thread panicked");
        }
    }
}

/// Why the endpoint could not be started.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Another socket listens on the address.
    #[error(
        "metrics endpoint cannot listen on {addr}: the address is in use ({source}); \
         choose another with --metrics ADDR, or --metrics off"
    )]
    InUse {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The address cannot be listened on, for example since it is not one of this host or since a
    /// port below 1024 needs a privilege.
    #[error(
        "metrics endpoint cannot listen on {addr}: {source}; \
         choose another with --metrics ADDR, or --metrics off"
    )]
    Bind {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The system has no room for the endpoint's thread or its event queue.
    #[error(
        "metrics endpoint cannot start its thread: {source}; \
         raise the limits on threads (ulimit -u) and open files (ulimit -n), or use --metrics off"
    )]
    Start {
        /// What the system said.
        source: io::Error,
    },
}

impl EndpointError {
    fn from_listen(addr: SocketAddr, source: io::Error) -> Self {
        if source.kind() == ErrorKind::AddrInUse {
            Self::InUse { addr, source }
        } else {
            Self::Bind { addr, source }
        }
    }
}

fn listen(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let socket = if addr.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Without it a port stays taken for a minute after its last connection.
    socket.set_reuseaddr(true)?;
    // Connections take it over from the socket that listens. Left to itself the kernel would let a
    // client that does not read have some MiB of its memory.
    socket.set_send_buffer_size(SEND_BUFFER)?;
    socket.bind(addr)?;
    let listener = socket.listen(BACKLOG)?;
    let local_addr = listener.local_addr()?;
    Ok((listener, local_addr))
}

/// Runs the server until the other end of `stopped` is dropped.
fn serve(
    runtime: Runtime,
    listener: TcpListener,
    answers: Arc<Answers>,
    limits: Limits,
    stopped: oneshot::Receiver<Infallible>,
) {
    runtime.block_on(async {
        tokio::spawn(accept(listener, answers, limits));
        let Err(_sender_dropped) = stopped.await;
    });
    // Ending the runtime drops its tasks, and with them the listener and every connection.
    runtime.shutdown_timeout(LAST_PAGES);
}

async fn accept(listener: TcpListener, answers: Arc<Answers>, limits: Limits) {
    let room = Arc::new(Semaphore::new(limits.connections));
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                if let Ok(seat) = Arc::clone(&room).try_acquire_owned() {
                    let answers = Arc::clone(&answers);
                    tokio::spawn(async move {
                        converse(stream, &answers, limits).await;
                        drop(seat);
                    });
                } else {
                    tracing::debug!(%peer, limit = limits.connections, "too many connections");
                }
            }
            Err(error) => {
                // Most likely out of file descriptors. The connection stays in the backlog, so
                // without a pause this would spin.
                tracing::warn!(%error, "metrics endpoint cannot accept a connection");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Serves one connection to its end.
async fn converse(stream: TcpStream, answers: &Answers, limits: Limits) {
    let answer = service_fn(async |request| Ok::<_, Infallible>(answers.answer(&request).await));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper starts this clock as soon as it is ready for a request, so it also limits the time
        // a connection may stay idle.
        .header_read_timeout(limits.header_read)
        .max_buf_size(limits.header_bytes)
        .serve_connection(TokioIo::new(stream), answer);
    let mut connection = pin!(connection);

    let ended = match timeout(limits.lifetime, connection.as_mut()).await {
        Ok(ended) => Ok(ended),
        Err(_elapsed) => {
            connection.as_mut().graceful_shutdown();
            timeout(limits.header_read, connection).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "metrics connection ended early"),
        Err(_elapsed) => tracing::debug!("metrics connection cut: the client does not read"),
    }
}

#[cfg(test)]
mod tests;
