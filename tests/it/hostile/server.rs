//! Endpoints that do as their script says, which is nothing a server should do.
//!
//! Reading and writing are apart, so that what arrives is counted whatever is being written: a request that is sent twice
//! is seen twice.

use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio_rustls::TlsAcceptor;

/// What an endpoint speaks, or seems to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 within TLS.
    Http2,
    /// Should speak TLS, and does not; it waits for the first bytes.
    NoTls,
    /// Should speak HTTP, and does not even read.
    NotRead,
    /// Connections are made and nobody takes them.
    NotAccepted,
    /// Nobody listens.
    Refused,
}

/// One thing an endpoint does. After the last one it goes on with the next request.
#[derive(Clone)]
pub(super) enum Act {
    /// Writes this.
    Send(Bytes),
    /// Writes this again and again, as fast as it is taken.
    Flood(Bytes),
    /// Writes this byte by byte, again and again.
    Drip(Bytes, Duration),
    /// The first two for frames of HTTP/2, which name the stream of the request.
    Frames(fn(u32) -> Vec<u8>),
    FloodFrames(fn(u32) -> Vec<u8>),
    Wait(Duration),
    /// Closes the connection.
    Close,
    /// The same in a way that throws away what was not read yet.
    Reset,
    /// Does nothing any more.
    Hold,
}

/// What happens at one endpoint.
#[derive(Clone)]
pub(super) struct Script {
    pub(super) speaks: Speaks,
    /// When a connection was made.
    pub(super) greeting: Vec<Act>,
    /// For each request, the last one for all that follow.
    pub(super) answers: Vec<Vec<Act>>,
}

/// An endpoint; it ends when it is dropped.
pub(super) struct Endpoint {
    address: SocketAddr,
    speaks: Speaks,
    seen: Arc<Seen>,
    accepting: Option<JoinHandle<()>>,
    _unaccepted: Option<TcpListener>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicUsize,
    requests: AtomicUsize,
}

impl Endpoint {
    pub(super) async fn start(script: &Script, tls: &TlsAcceptor) -> Endpoint {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Seen::default());
        let mut endpoint = Endpoint { address, speaks: script.speaks, seen, accepting: None, _unaccepted: None };
        match script.speaks {
            Speaks::Refused => drop(listener),
            Speaks::NotAccepted => endpoint._unaccepted = Some(listener),
            _ => {
                let accepting = accept(listener, script.clone(), tls.clone(), Arc::clone(&endpoint.seen));
                endpoint.accepting = Some(tokio::spawn(accepting));
            }
        }
        endpoint
    }

    pub(super) fn url(&self) -> String {
        let scheme = if matches!(self.speaks, Speaks::Http2 | Speaks::NoTls) { "https" } else { "http" };
        format!("{scheme}://{}/hooks", self.address)
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// How many attempts arrived, as far as this endpoint can tell them: by requests, or by connections where none is read.
    pub(super) fn attempts(&self) -> Option<usize> {
        match self.speaks {
            Speaks::Http | Speaks::Http2 => Some(self.seen.requests.load(Ordering::SeqCst)),
            Speaks::NoTls | Speaks::NotRead => Some(self.seen.connections.load(Ordering::SeqCst)),
            Speaks::NotAccepted | Speaks::Refused => None,
        }
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
    }
}

async fn accept(listener: TcpListener, script: Script, tls: TlsAcceptor, seen: Arc<Seen>) {
    // Dropping the set with this task ends the connections as well.
    let mut serving = JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        seen.connections.fetch_add(1, Ordering::SeqCst);
        let _ = stream.set_nodelay(true);
        let (script, tls, seen) = (script.clone(), tls.clone(), Arc::clone(&seen));
        serving.spawn(async move { serve(stream, &script, &tls, &seen).await });
        while serving.try_join_next().is_some() {}
    }
}

async fn serve(stream: TcpStream, script: &Script, tls: &TlsAcceptor, seen: &Seen) {
    let acts = script.greeting.iter().chain(script.answers.iter().flatten());
    if acts.into_iter().any(|act| matches!(act, Act::Reset)) {
        // However it ends then, it ends so.
        let _ = stream.set_zero_linger();
    }
    match script.speaks {
        Speaks::Http2 => {
            if let Ok(stream) = tls.accept(stream).await {
                talk(stream, script, seen).await;
            }
        }
        _ => talk(stream, script, seen).await,
    }
}

async fn talk(stream: impl AsyncRead + AsyncWrite, script: &Script, seen: &Seen) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (arrived, mut requests) = mpsc::unbounded_channel();
    let reading = async {
        let _ = match script.speaks {
            Speaks::Http => read_http(&mut reader, &arrived, seen).await,
            Speaks::Http2 => read_http2(&mut reader, &arrived, seen).await,
            Speaks::NoTls => read_bytes(&mut reader, &arrived).await,
            Speaks::NotRead | Speaks::NotAccepted | Speaks::Refused => std::future::pending().await,
        };
    };
    let acting = async {
        if act(&mut writer, &script.greeting, 0).await.is_break() {
            return;
        }
        while let Some((number, stream)) = requests.recv().await {
            let answer = script.answers.get(number).or(script.answers.last());
            let Some(answer) = answer else { continue };
            if act(&mut writer, answer, stream).await.is_break() {
                return;
            }
        }
    };
    // Who is gone is not written to any more.
    tokio::select! { () = reading => {}, () = acting => {} }
}

/// Breaks when the connection is to end.
async fn act(writer: &mut (impl AsyncWrite + Unpin), acts: &[Act], stream: u32) -> ControlFlow<()> {
    for act in acts {
        let written = match act {
            Act::Send(bytes) => writer.write_all(bytes).await,
            Act::Frames(frames) => writer.write_all(&frames(stream)).await,
            Act::Flood(bytes) => flood(writer, bytes).await,
            Act::FloodFrames(frames) => flood(writer, &frames(stream)).await,
            Act::Drip(bytes, pause) => drip(writer, bytes, *pause).await,
            Act::Wait(pause) => {
                tokio::time::sleep(*pause).await;
                Ok(())
            }
            Act::Hold => std::future::pending().await,
            Act::Reset => return ControlFlow::Break(()),
            Act::Close => {
                let _ = writer.shutdown().await;
                return ControlFlow::Break(());
            }
        };
        if written.is_err() || writer.flush().await.is_err() {
            return ControlFlow::Break(());
        }
    }
    ControlFlow::Continue(())
}

async fn flood(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> std::io::Result<()> {
    // In large pieces: what is measured is whoever reads.
    let piece = bytes.repeat((64 * 1024 / bytes.len()).max(1));
    loop {
        writer.write_all(&piece).await?;
    }
}

async fn drip(writer: &mut (impl AsyncWrite + Unpin), bytes: &[u8], pause: Duration) -> std::io::Result<()> {
    for byte in bytes.iter().cycle() {
        writer.write_all(std::slice::from_ref(byte)).await?;
        tokio::time::sleep(pause).await;
    }
    Ok(())
}

/// Number of the request, from 0, and its stream.
type Arrived = mpsc::UnboundedSender<(usize, u32)>;

async fn read_http(reader: &mut (impl AsyncRead + Unpin), arrived: &Arrived, seen: &Seen) -> std::io::Result<()> {
    let mut unread = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            more(reader, &mut unread).await?;
        };
        let text = String::from_utf8_lossy(&unread[..head]).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok()).unwrap_or(0);
        while unread.len() < head + length {
            more(reader, &mut unread).await?;
        }
        unread.drain(..head + length);
        let _ = arrived.send((seen.requests.fetch_add(1, Ordering::SeqCst), 0));
    }
}

async fn read_http2(reader: &mut (impl AsyncRead + Unpin), arrived: &Arrived, seen: &Seen) -> std::io::Result<()> {
    const PREFACE: usize = 24;
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const END_STREAM: u8 = 1;
    let mut preface = [0; PREFACE];
    reader.read_exact(&mut preface).await?;
    let mut number = 0;
    loop {
        let mut head = [0; 9];
        reader.read_exact(&mut head).await?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await?;
        if kind == HEADERS {
            number = seen.requests.fetch_add(1, Ordering::SeqCst);
        }
        if (kind == HEADERS || kind == DATA) && flags & END_STREAM != 0 {
            let _ = arrived.send((number, stream));
        }
    }
}

/// Whatever comes first is taken for a request.
async fn read_bytes(reader: &mut (impl AsyncRead + Unpin), arrived: &Arrived) -> std::io::Result<()> {
    let mut unread = Vec::new();
    more(reader, &mut unread).await?;
    let _ = arrived.send((0, 0));
    loop {
        more(reader, &mut unread).await?;
        unread.clear();
    }
}

async fn more(reader: &mut (impl AsyncRead + Unpin), unread: &mut Vec<u8>) -> std::io::Result<()> {
    match reader.read_buf(unread).await? {
        0 => Err(std::io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}
