//! Makes connections, and counts what comes in over them.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tower_service::Service;

use super::allowance::{self, Allowance};
use crate::duration;
use crate::sink::http::address::resolver::Resolver;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

/// A machine that is gone, or cannot be reached any more, is found out by asking it so often when nothing is on its way.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_RETRIES: u32 = 3;

/// For how long a connection may have bytes on their way that nobody acknowledges, at least.
#[cfg(any(target_os = "linux", target_os = "android"))]
const UNACKNOWLEDGED_MIN: Duration = Duration::from_secs(30);

/// For how long it may, where an attempt may take so long.
///
/// Linux counts what the receiver has no room for as well, although its kernel answers: a receiver that is busy must not lose
/// its connection before the attempt has had its time.
#[cfg(any(target_os = "linux", target_os = "android"))]
fn unacknowledged_max(attempt: Duration) -> Duration {
    attempt.max(UNACKNOWLEDGED_MIN)
}

/// How long things may take.
#[derive(Clone, Copy)]
pub(in crate::sink::http) struct Times {
    /// Making a connection.
    pub(in crate::sink::http) connect: Duration,
    /// An attempt as a whole.
    #[cfg_attr(not(any(target_os = "linux", target_os = "android")), expect(dead_code))]
    pub(in crate::sink::http) attempt: Duration,
}

/// Makes connections of either kind within a time.
#[derive(Clone)]
pub(super) struct Connector {
    https: HttpsConnector<Tcp>,
    timeout: Duration,
}

impl Connector {
    pub(super) fn new(
        tls: ClientConfig,
        resolver: Resolver,
        times: Times,
        allowance: Arc<Mutex<Allowance>>,
    ) -> Connector {
        let mut http = HttpConnector::new_with_resolver(resolver);
        http.enforce_http(false);
        http.set_nodelay(true);
        http.set_keepalive(Some(KEEPALIVE));
        http.set_keepalive_interval(Some(KEEPALIVE));
        http.set_keepalive_retries(Some(KEEPALIVE_RETRIES));
        #[cfg(any(target_os = "linux", target_os = "android"))]
        http.set_tcp_user_timeout(Some(unacknowledged_max(times.attempt)));
        // Shared out among the addresses of a name.
        http.set_connect_timeout(Some(times.connect));
        let tcp = Tcp { http, allowance };
        let https = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions();
        Connector { https: https.wrap_connector(tcp), timeout: times.connect }
    }
}

impl Service<Uri> for Connector {
    type Response = MaybeHttpsStream<TokioIo<Metered>>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.https.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, timeout) = (self.https.call(uri), self.timeout);
        Box::pin(async move {
            match tokio::time::timeout(timeout, connecting).await {
                Ok(connected) => connected,
                Err(_elapsed) => {
                    let said = format!("no connection within {}", duration::format(timeout));
                    Err(io::Error::new(io::ErrorKind::TimedOut, said).into())
                }
            }
        })
    }
}

/// Makes connections below TLS.
#[derive(Clone)]
struct Tcp {
    http: HttpConnector<Resolver>,
    allowance: Arc<Mutex<Allowance>>,
}

impl Service<Uri> for Tcp {
    type Response = TokioIo<Metered>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.http.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (connecting, allowance) = (self.http.call(uri), self.allowance.clone());
        Box::pin(async move {
            let tcp = connecting.await?.into_inner();
            Ok(TokioIo::new(Metered { tcp, allowance, pause: None, in_a_row: 0 }))
        })
    }
}

/// A connection that is read no faster than is allowed.
pub(super) struct Metered {
    tcp: TcpStream,
    allowance: Arc<Mutex<Allowance>>,
    pause: Option<Pin<Box<Sleep>>>,
    /// Bytes read since others had their turn.
    in_a_row: usize,
}

/// What is read of a connection at a stretch: somebody who pours would keep the thread otherwise.
const IN_A_ROW_MAX: usize = 32 * 1024;

impl Connection for Metered {
    fn connected(&self) -> Connected {
        self.tcp.connected()
    }
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        // Asked anew after each pause: others may have read what had become free meanwhile.
        while let Some(pause) = allowance::locked(&this.allowance).pause(Instant::now()) {
            let until = Instant::now() + pause;
            let sleep = this.pause.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
            ready!(sleep.as_mut().poll(cx));
            this.pause = None;
        }
        this.pause = None;
        if this.in_a_row >= IN_A_ROW_MAX {
            this.in_a_row = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.tcp).poll_read(cx, buf))?;
        let read = buf.filled().len() - before;
        this.in_a_row += read;
        allowance::locked(&this.allowance).read(read);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

#[cfg(all(test, any(target_os = "linux", target_os = "android")))]
mod tests {
    use super::*;

    #[test]
    fn no_connection_is_given_up_before_its_attempt_for_a_receiver_that_has_no_room() {
        for (attempt, unacknowledged) in [(0, 30), (15, 30), (30, 30), (31, 31), (600, 600)] {
            assert_eq!(unacknowledged_max(Duration::from_secs(attempt)), Duration::from_secs(unacknowledged));
        }
    }
}
