//! A scripted HTTP receiver that records all it is sent.
//!
//! It speaks HTTP/1.1 by hand over plain sockets, because what it is asked to do (reset, stall, answer nonsense, close a
//! connection that was promised to stay) is what servers are built to prevent. Every request that arrived whole is
//! recorded before it is answered, so what was seen is what was on the wire, whatever the sender believes.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A request as it arrived.
#[derive(Clone)]
pub struct Request {
    /// On which connection, counted from 1.
    pub connection: u64,
    /// Which request this is of its message, from 1.
    pub copy: usize,
    /// When it had arrived.
    pub at: Instant,
    /// `POST /path HTTP/1.1`.
    pub line: String,
    /// Names in lower case, in the order they came.
    pub headers: Vec<(String, String)>,
    /// The body's bytes.
    pub body: Bytes,
}

impl Request {
    /// The value of a header; panics when it came twice.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut values = self.headers.iter().filter(|(known, _)| known == name).map(|(_, value)| value.as_str());
        let value = values.next();
        assert!(values.next().is_none(), "the header {name} came twice: {self:?}");
        value
    }

    /// The message's id; empty when none came.
    pub fn id(&self) -> &str {
        self.header("webhook-id").unwrap_or_default()
    }
}

impl fmt::Debug for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Request { connection, copy, line, headers, body, .. } = self;
        write!(f, "connection {connection}, copy {copy}: {line} {headers:?} with {} bytes", body.len())
    }
}

/// What the receiver does with a request.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Answers properly.
    Send {
        /// The status.
        status: u16,
        /// Headers beside the length.
        headers: Vec<(String, String)>,
        /// The body.
        body: Bytes,
    },
    /// Waits, then does the other thing.
    After(Duration, Box<Answer>),
    /// Answers as if the connection were to stay, and closes it.
    ThenClose(Box<Answer>),
    /// Writes these bytes, and closes.
    Raw(Bytes),
    /// Writes these bytes, and resets the connection.
    RawThenReset(Bytes),
    /// A head, and a body that does not end, as fast as the sender takes it.
    Endless(u16),
    /// A head, and a body that does not end, a byte at a time with this pause.
    Dripping(u16, Duration),
    /// Never answers; the connection stays open.
    Never,
    /// Closes the connection without an answer.
    Close,
    /// Resets the connection without an answer.
    Reset,
}

impl Answer {
    /// A status and nothing else.
    pub fn status(status: u16) -> Answer {
        Answer::Send { status, headers: Vec::new(), body: Bytes::new() }
    }

    /// The same with a header more.
    #[must_use]
    pub fn header(self, name: &str, value: &str) -> Answer {
        let Answer::Send { status, mut headers, body } = self else { panic!("{self:?} has no headers") };
        headers.push((name.to_owned(), value.to_owned()));
        Answer::Send { status, headers, body }
    }

    /// The same with a body.
    #[must_use]
    pub fn body(self, body: impl Into<Bytes>) -> Answer {
        let Answer::Send { status, headers, .. } = self else { panic!("{self:?} has no body") };
        Answer::Send { status, headers, body: body.into() }
    }

    /// A redirect.
    pub fn redirect(status: u16, location: &str) -> Answer {
        Answer::status(status).header("location", location)
    }

    /// The status a sender will see; 0 when the connection is cut instead.
    pub fn seen_status(&self) -> u16 {
        match self {
            Answer::Send { status, .. } | Answer::Endless(status) | Answer::Dripping(status, _) => *status,
            Answer::After(_, then) | Answer::ThenClose(then) => then.seen_status(),
            Answer::Raw(bytes) | Answer::RawThenReset(bytes) => {
                let status = bytes.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok());
                status.and_then(|digits| digits.parse().ok()).unwrap_or_default()
            }
            Answer::Never | Answer::Close | Answer::Reset => 0,
        }
    }

    /// The same, later.
    #[must_use]
    pub fn after(self, pause: Duration) -> Answer {
        Answer::After(pause, Box::new(self))
    }

    /// The same, and then the connection is closed although nothing announced it.
    #[must_use]
    pub fn then_close(self) -> Answer {
        Answer::ThenClose(Box::new(self))
    }
}

type Script = Box<dyn Fn(&Request) -> Answer + Send + Sync>;
type Listener = Box<dyn Fn(&Request, u16) + Send + Sync>;

/// A receiver on a port of its own; it ends when it is dropped.
pub struct Receiver {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

struct Shared {
    script: Script,
    answering: Listener,
    seen: Mutex<Seen>,
    changed: Notify,
    connections: AtomicU64,
    connections_ended: AtomicU64,
    bytes_sent: AtomicU64,
}

#[derive(Default)]
struct Seen {
    requests: Vec<Request>,
    copies: HashMap<String, usize>,
}

impl Receiver {
    /// Answers each request as the script says.
    pub async fn start(script: impl Fn(&Request) -> Answer + Send + Sync + 'static) -> Receiver {
        Receiver::start_heard(script, |_, _| {}).await
    }

    /// Answers each request as the script says, and tells `answering` the status just before the sender can know it: what
    /// follows from an answer is never heard of before the answer.
    pub async fn start_heard(
        script: impl Fn(&Request) -> Answer + Send + Sync + 'static,
        answering: impl Fn(&Request, u16) + Send + Sync + 'static,
    ) -> Receiver {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("the listener is bound");
        let shared = Arc::new(Shared {
            script: Box::new(script),
            answering: Box::new(answering),
            seen: Mutex::default(),
            changed: Notify::new(),
            connections: AtomicU64::new(0),
            connections_ended: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
        });
        let accepting = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Receiver { address, shared, accepting }
    }

    /// Answers every request alike.
    pub async fn always(answer: Answer) -> Receiver {
        Receiver::start(move |_| answer.clone()).await
    }

    /// Answers the copies of each message one after another; the last answer repeats.
    pub async fn in_turn(answers: impl IntoIterator<Item = Answer>) -> Receiver {
        let answers: Vec<Answer> = answers.into_iter().collect();
        assert!(!answers.is_empty(), "a receiver needs an answer");
        Receiver::start(move |request| answers[request.copy.min(answers.len()) - 1].clone()).await
    }

    /// `http://` and the path given.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// All requests so far, in the order they arrived.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.seen.lock().expect("no script panics while the list is held").requests.clone()
    }

    /// How many connections were made.
    pub fn connections(&self) -> u64 {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// How many of them have ended, whoever ended them.
    pub fn connections_ended(&self) -> u64 {
        self.shared.connections_ended.load(Ordering::SeqCst)
    }

    /// How many bytes of bodies without end were taken from it.
    pub fn endless_bytes_sent(&self) -> u64 {
        self.shared.bytes_sent.load(Ordering::SeqCst)
    }

    /// Waits until the requests (or the receiver) are as wanted and returns them; panics with what was seen when `limit` has passed.
    pub async fn wait_until(
        &self,
        limit: Duration,
        wanted: &str,
        condition: impl Fn(&[Request]) -> bool,
    ) -> Vec<Request> {
        let until = tokio::time::Instant::now() + limit;
        loop {
            // Asked for before looking: what changes in between is not missed.
            let changed = self.shared.changed.notified();
            let requests = self.requests();
            if condition(&requests) {
                return requests;
            }
            if tokio::time::timeout_at(until, changed).await.is_err() {
                let requests = self.requests();
                let lines: Vec<String> = requests.iter().map(|request| format!("{request:?}")).collect();
                panic!("not within {limit:?}: {wanted}; {} requests were seen:\n{}", lines.len(), lines.join("\n"));
            }
        }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropping the set with this task ends the connections as well.
    let mut serving = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let number = shared.connections.fetch_add(1, Ordering::SeqCst) + 1;
        let shared = Arc::clone(&shared);
        serving.spawn(async move {
            serve(stream, number, &shared).await;
            shared.connections_ended.fetch_add(1, Ordering::SeqCst);
            shared.changed.notify_waiters();
        });
        while serving.try_join_next().is_some() {}
    }
}

async fn serve(mut stream: TcpStream, connection: u64, shared: &Shared) {
    let mut unread = Vec::new();
    while let Some(mut request) = read(&mut stream, &mut unread, connection).await {
        {
            let mut seen = shared.seen.lock().expect("no script panics while the list is held");
            let id = request.id().to_owned();
            let copy = seen.copies.entry(id).or_default();
            *copy += 1;
            request.copy = *copy;
            seen.requests.push(request.clone());
        }
        shared.changed.notify_waiters();
        let mut answer = (shared.script)(&request);
        while let Answer::After(pause, then) = answer {
            tokio::time::sleep(pause).await;
            answer = *then;
        }
        (shared.answering)(&request, answer.seen_status());
        // A sender that has gone is no matter of ours.
        if !write(&mut stream, answer, shared).await.unwrap_or(false) {
            return;
        }
    }
}

/// Reads one whole request; `None` when the sender is gone or sends what is no request.
async fn read(stream: &mut TcpStream, unread: &mut Vec<u8>, connection: u64) -> Option<Request> {
    let head_end = loop {
        if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        more(stream, unread).await?;
    };
    let head = String::from_utf8_lossy(&unread[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let line = lines.next()?.to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.map_or(Some(0), |(_, value)| value.parse::<usize>().ok())?;
    let whole = head_end + 4 + length;
    while unread.len() < whole {
        more(stream, unread).await?;
    }
    let body = Bytes::copy_from_slice(&unread[head_end + 4..whole]);
    unread.drain(..whole);
    Some(Request { connection, copy: 0, at: Instant::now(), line, headers, body })
}

async fn more(stream: &mut TcpStream, unread: &mut Vec<u8>) -> Option<()> {
    match stream.read_buf(unread).await {
        Ok(0) | Err(_) => None,
        Ok(_) => Some(()),
    }
}

/// Writes an answer; true when the connection may serve another request.
async fn write(stream: &mut TcpStream, answer: Answer, shared: &Shared) -> std::io::Result<bool> {
    match answer {
        Answer::Send { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
            for (name, value) in headers {
                head.push_str(&format!("{name}: {value}\r\n"));
            }
            head.push_str("\r\n");
            stream.write_all(&[head.as_bytes(), &body].concat()).await?;
            return Ok(true);
        }
        Answer::ThenClose(then) => {
            Box::pin(write(stream, *then, shared)).await?;
            stream.shutdown().await?;
        }
        Answer::After(..) => unreachable!("the caller has waited"),
        Answer::Raw(bytes) => {
            stream.write_all(&bytes).await?;
            stream.shutdown().await?;
        }
        Answer::RawThenReset(bytes) => {
            stream.write_all(&bytes).await?;
            reset_when_read(stream).await?;
        }
        Answer::Endless(status) => {
            stream.write_all(chunked_head(status).as_bytes()).await?;
            let chunk = [b"2000\r\n".as_slice(), &[b'x'; 0x2000], b"\r\n"].concat();
            loop {
                stream.write_all(&chunk).await?;
                shared.bytes_sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
            }
        }
        Answer::Dripping(status, pause) => {
            stream.write_all(chunked_head(status).as_bytes()).await?;
            loop {
                stream.write_all(b"1\r\nx\r\n").await?;
                shared.bytes_sent.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(pause).await;
            }
        }
        Answer::Never => {
            // Until the sender gives up.
            let mut ignored = Vec::new();
            while more(stream, &mut ignored).await.is_some() {}
        }
        Answer::Close => stream.shutdown().await?,
        Answer::Reset => stream.set_zero_linger()?,
    }
    Ok(false)
}

/// A reset overtakes what the other side has not read yet, so it waits until the kernel has handed that over.
async fn reset_when_read(stream: &mut TcpStream) -> std::io::Result<()> {
    tokio::time::sleep(Duration::from_millis(100)).await;
    stream.set_zero_linger()
}

fn chunked_head(status: u16) -> String {
    format!("HTTP/1.1 {status} Scripted\r\ntransfer-encoding: chunked\r\n\r\n")
}
