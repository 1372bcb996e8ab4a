//! A receiver of HTTP deliveries that does as it is told and remembers what it was sent.
//!
//! A real server on a real port: what is recorded is what was on the wire. A request is recorded before it is answered,
//! so whoever has seen the answer's effect finds the request.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::serve::{IncomingStream, Listener};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// What a [`Receiver`] does with a request.
///
/// ```
/// use std::time::Duration;
/// use relay::testing::Answer;
///
/// let busy = Answer::status(503).header("retry-after", "30").body("come back later");
/// let slow = Answer::status(200).after(Duration::from_millis(50));
/// let cut = Answer::drop_connection();
/// # let _ = (busy, slow, cut);
/// ```
#[derive(Clone, Debug)]
pub struct Answer {
    /// `None` drops the connection.
    status: Option<StatusCode>,
    headers: Vec<(String, String)>,
    body: Bytes,
    pause: Duration,
}

impl Answer {
    /// A status and nothing else.
    ///
    /// # Panics
    /// When it is not from 200 to 999.
    pub fn status(status: u16) -> Answer {
        let known = StatusCode::from_u16(status).ok().filter(|status| !status.is_informational());
        let status = known.unwrap_or_else(|| panic!("{status} is not the status of an answer; take one from 200 on"));
        Answer { status: Some(status), headers: Vec::new(), body: Bytes::new(), pause: Duration::ZERO }
    }

    /// No answer: the connection is closed.
    pub fn drop_connection() -> Answer {
        Answer { status: None, headers: Vec::new(), body: Bytes::new(), pause: Duration::ZERO }
    }

    /// The same with a header more.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Answer {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same with a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Answer {
        self.body = body.into();
        self
    }

    /// The same after a pause.
    #[must_use]
    pub fn after(mut self, pause: Duration) -> Answer {
        self.pause = pause;
        self
    }
}

/// A request as it arrived.
#[derive(Clone)]
pub struct Received {
    /// The path with its query.
    pub path: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body's bytes.
    pub body: Bytes,
    /// What the script answered; `None` is a dropped connection.
    pub answered: Option<u16>,
}

impl Received {
    /// A header, empty when there is none or it is no text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// The message's id (`webhook-id`): the same for each attempt.
    pub fn id(&self) -> &str {
        self.header("webhook-id")
    }

    /// The message's topic (`ce-type`).
    pub fn topic(&self) -> &str {
        self.header("ce-type")
    }

    /// Which attempt this was, from 1 (`outbox-attempt`); 0 when the header is missing.
    pub fn attempt(&self) -> u32 {
        self.header("outbox-attempt").parse().unwrap_or_default()
    }

    /// The body as JSON.
    ///
    /// # Panics
    /// When it is none.
    pub fn json(&self) -> serde_json::Value {
        self.parse()
    }

    /// The body as a message.
    ///
    /// # Panics
    /// When it is none.
    pub fn parse<M: DeserializeOwned>(&self) -> M {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("the body cannot be read: {error}\n{self:?}"))
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "POST {} {} attempt {} of {}: ", self.path, self.topic(), self.attempt(), self.id())?;
        let text = String::from_utf8_lossy(&self.body);
        let shown: String = text.chars().take(200).collect();
        f.write_str(&shown)?;
        if shown.len() < text.len() {
            write!(f, "… ({} bytes)", self.body.len())?;
        }
        match self.answered {
            Some(status) => write!(f, " -> {status}"),
            None => f.write_str(" -> connection dropped"),
        }
    }
}

type Script = Box<dyn FnMut(&Received) -> Answer + Send>;

/// A receiver on a port of its own at 127.0.0.1; it ends when it is dropped.
///
/// ```
/// # use relay::testing::{Answer, Outbox, Receiver};
/// # use diesel::prelude::*;
/// # tokio::runtime::Runtime::new()?.block_on(async {
/// let outbox = Outbox::new();
/// let receiver = Receiver::answering([Answer::status(503)]).await;
/// let drain = || outbox.drain(outbox.relay().destination(relay::Http::new("billing", receiver.url("/hook"))));
///
/// # let conn = &mut outbox.connection();
/// conn.transaction(|conn| outbox::enqueue(conn, outbox::Envelope::raw("order.placed", r#"{"order_id":7}"#)))?;
/// assert_eq!(drain().await.retried, 1);
/// outbox.advance(std::time::Duration::from_secs(60));
/// assert_eq!(drain().await.delivered, 1);
///
/// let [first, second] = receiver.received::<2>();
/// assert_eq!((first.answered, second.answered), (Some(503), Some(200)));
/// assert_eq!(second.json()["order_id"], 7);
/// assert_eq!(first.id(), second.id());
/// # Ok::<(), outbox::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: JoinHandle<()>,
}

struct Shared {
    script: Mutex<Script>,
    received: Mutex<Vec<Received>>,
    changed: Notify,
}

impl Receiver {
    /// A receiver that answers 200 to everything.
    pub async fn start() -> Receiver {
        Receiver::scripted(|_| Answer::status(200)).await
    }

    /// A receiver that gives these answers to the first requests, in the order they arrive, and 200 to all others.
    pub async fn answering(answers: impl IntoIterator<Item = Answer>) -> Receiver {
        let mut answers: VecDeque<Answer> = answers.into_iter().collect();
        Receiver::scripted(move |_| answers.pop_front().unwrap_or_else(|| Answer::status(200))).await
    }

    /// A receiver that asks `script` how to answer a request (whose `answered` is not known yet).
    ///
    /// # Panics
    /// When no port is free.
    pub async fn scripted(script: impl FnMut(&Received) -> Answer + Send + 'static) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await;
        let listener = listener.unwrap_or_else(|error| panic!("no port to receive on: {error}"));
        let address = listener.local_addr().unwrap_or_else(|error| panic!("the port has no number: {error}"));
        let shared = Arc::new(Shared {
            script: Mutex::new(Box::new(script)),
            received: Mutex::default(),
            changed: Notify::new(),
        });
        let router = Router::new().fallback(receive).with_state(shared.clone());
        let service = router.into_make_service_with_connect_info::<Cut>();
        let serving = tokio::spawn(async move {
            // Ends with the receiver; `serve` itself only returns when the listener does.
            let _ = axum::serve(Cuttable(listener), service).await;
        });
        Receiver { address, shared, serving }
    }

    /// `http://127.0.0.1:…` and the path given.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}/{}", self.address, path.trim_start_matches('/'))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on does as this script says.
    pub fn script(&self, script: impl FnMut(&Received) -> Answer + Send + 'static) {
        *lock(&self.shared.script) = Box::new(script);
    }

    /// All requests so far, in the order they arrived.
    pub fn requests(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// The requests so far, which must be `N`.
    ///
    /// # Panics
    /// When they are more or fewer, with what arrived.
    #[track_caller]
    pub fn received<const N: usize>(&self) -> [Received; N] {
        let requests = self.requests();
        let count = requests.len();
        let told = told(&requests);
        requests.try_into().unwrap_or_else(|_| panic!("{N} requests expected, {count} received{told}"))
    }

    /// Waits until `count` requests or more have arrived, and returns all.
    ///
    /// # Panics
    /// When there are fewer after `limit`, with what arrived.
    pub async fn wait_for(&self, count: usize, limit: Duration) -> Vec<Received> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let changed = self.shared.changed.notified();
            tokio::pin!(changed);
            // Asked for before looking: what arrives in between is not missed.
            changed.as_mut().enable();
            let requests = self.requests();
            if requests.len() >= count {
                return requests;
            }
            if tokio::time::timeout_at(end, changed).await.is_err() {
                let requests = self.requests();
                assert!(
                    requests.len() >= count,
                    "{count} requests expected within {limit:?}, {} received{}",
                    requests.len(),
                    told(&requests)
                );
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl fmt::Debug for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").field("address", &self.address).field("requests", &self.requests()).finish()
    }
}

/// One line for each request.
fn told(requests: &[Received]) -> String {
    let lines: Vec<String> = requests.iter().map(|request| format!("\n  {request:?}")).collect();
    if lines.is_empty() { String::new() } else { format!(":{}", lines.concat()) }
}

async fn receive(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    request: Request,
) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    // A body that does not arrive whole is no request.
    let Ok(body) = to_bytes(body, usize::MAX).await else { return Response::new(Body::empty()) };
    let mut received = Received { path, headers: parts.headers, body, answered: None };
    let answer = {
        // Both under one lock: the order of the answers is the order of the requests.
        let mut script = lock(&shared.script);
        let answer = script(&received);
        received.answered = answer.status.map(|status| status.as_u16());
        lock(&shared.received).push(received);
        answer
    };
    shared.changed.notify_waiters();
    if !answer.pause.is_zero() {
        tokio::time::sleep(answer.pause).await;
    }
    let Some(status) = answer.status else {
        cut.0.store(true, Ordering::SeqCst);
        return Response::new(Body::empty());
    };
    let mut response = Response::builder().status(status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    response.body(Body::from(answer.body)).unwrap_or_else(|error| {
        let text = format!("the script's answer cannot be sent: {error}");
        Response::builder().status(599).body(Body::from(text)).expect("a status and a text can be sent")
    })
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A script that panicked has failed its test; the others still want to know what arrived.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Set when the connection is to be closed instead of written to.
#[derive(Clone)]
struct Cut(Arc<AtomicBool>);

impl Connected<IncomingStream<'_, Cuttable>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Cuttable>) -> Cut {
        stream.io().cut.clone()
    }
}

/// A listener whose connections can be cut.
struct Cuttable(TcpListener);

impl Listener for Cuttable {
    type Io = Stream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Stream, SocketAddr) {
        let (tcp, address) = Listener::accept(&mut self.0).await;
        (Stream { tcp, cut: Cut(Arc::default()) }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// A connection that fails to write once it is cut.
struct Stream {
    tcp: TcpStream,
    cut: Cut,
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, into)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.cut.0.load(Ordering::SeqCst) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}
