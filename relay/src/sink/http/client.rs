//! Connections to one destination, and requests over them.
//!
//! Invariants
//! - One attempt is at most one request on the wire. Nothing here follows, resends or asks a proxy.
//! - What a destination says is read no faster than its [`Allowance`] lets it, over all its connections together. So one
//!   that pours costs others neither processors nor memory, and none of its connections outlives its attempt for long.

use std::error::Error;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, HeaderMap, HeaderValue};
use hyper::{Method, Uri, Version};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpInfo;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::ClientConfig;
use tokio::time::Instant;

use self::allowance::{Allowance, UnderWay};
use self::connect::Connector;
pub(super) use self::connect::Times;
use super::address::resolver::Resolver;
use super::request::Request;

mod allowance;
mod connect;

/// How long a connection is kept for the next request. Common servers close theirs after five seconds, and a request
/// that meets a closing connection is an attempt whose outcome nobody knows.
const IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// How many headers an answer may have where the protocol lets us say so, and how large they may be together.
const HEADERS_MAX: usize = 100;
const HEADERS_BYTES_MAX: u32 = 64 * 1024;

/// How much of a body is sent over HTTP/2 before anybody has read of it. Most of a large one is never read, and what was
/// sent all the same comes before the other answers.
///
/// Smaller windows would cost less still, but Node.js ends the connection when what it could not send of many answers adds
/// up (`maxSessionMemory`).
const STREAM_WINDOW_BYTES: u32 = 512 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;

/// Answers that are cut off whose last pieces, still on their way then, are known for what they are; and how many pieces
/// may come that are not, before a connection over which they come counts as an attack and ends.
const CUT_OFF_MAX: usize = 1024;
const UNKNOWN_PIECES_MAX: usize = 16 * 1024;

/// Sends requests to one address.
#[derive(Clone)]
pub(super) struct Client {
    inner: legacy::Client<Connector, Full<Bytes>>,
    allowance: Arc<Mutex<Allowance>>,
    uri: Uri,
}

/// Why no answer came.
pub(super) type Failure = legacy::Error;

impl Client {
    /// A client for the address.
    pub(super) fn new(uri: Uri, tls: ClientConfig, resolver: Resolver, times: Times) -> Client {
        let allowance = Arc::new(Mutex::new(Allowance::new(Instant::now())));
        let connector = Connector::new(tls, resolver, times, allowance.clone());
        // What it repeats by itself (`retry_canceled_requests`) is what no connection has taken yet: where one that was kept
        // ends before the first byte of a request is written over it, hyper gives the request back, and another connection
        // gets it. So that is no second attempt, and without it one would be counted that nobody was asked in. Whatever was
        // written, even in part, fails: `an_attempt_on_a_dying_connection_is_not_sent_again`.
        let inner = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIMEOUT)
            .http1_max_headers(HEADERS_MAX)
            .http1_max_buf_size(HEADERS_BYTES_MAX as usize)
            .http2_max_header_list_size(HEADERS_BYTES_MAX)
            .http2_initial_stream_window_size(STREAM_WINDOW_BYTES)
            .http2_initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .http2_max_concurrent_reset_streams(CUT_OFF_MAX)
            .http2_max_local_error_reset_streams(UNKNOWN_PIECES_MAX)
            .build(connector);
        Client { inner, allowance, uri }
    }

    /// Sends a request; the answer is there when its head is.
    pub(super) async fn post(&self, Request { headers, body }: Request) -> Result<Answer, Failure> {
        let under_way = UnderWay::begins(&self.allowance);
        let mut request = hyper::Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = headers;
        // Whatever they answer is taken. Some firewalls take a request that does not say so for an attack.
        request.headers_mut().entry(ACCEPT).or_insert(HeaderValue::from_static("*/*"));
        let response = self.inner.request(request).await?;
        if response.version() == Version::HTTP_2 {
            allowance::locked(&self.allowance).answered();
        }
        Ok(Answer { response, _under_way: under_way })
    }
}

/// The head of an answer, and its body as it comes.
pub(super) struct Answer {
    response: hyper::Response<Incoming>,
    _under_way: UnderWay,
}

impl Answer {
    pub(super) fn status(&self) -> u16 {
        self.response.status().as_u16()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Who answered.
    pub(super) fn remote(&self) -> Option<SocketAddr> {
        self.response.extensions().get().map(HttpInfo::remote_addr)
    }

    /// The next piece of the body; none at its end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, hyper::Error> {
        while let Some(frame) = self.response.body_mut().frame().await {
            if let Ok(data) = frame?.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// The first cause of a kind.
pub(super) fn cause<'a, E: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a E> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref())
}
