//! `relay listen`: a destination to try things out with.
//!
//! Receives over plain HTTP, shows what came, and answers as it was told to. Nothing is stored, and nothing is checked but
//! signatures, when there is a secret. What arrives is shown as it came, with what could steer a terminal made visible; credentials are masked.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Request, StatusCode};
use chrono::{DateTime, Utc};
use outbox::signature::{Headers, VerifyError, VerifyingKey, verify};
use serde_json::{Map, Value, json};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use super::args::{Global, Listen};
use super::output::{Format, Output, say, shortened, visible};
use super::secret::verifying_key;
use super::stored::{hex, time};
use super::{Exit, Failure, block_on};
use crate::shutdown::shutdown_signal;

/// No message is larger than an outbox allows at the very most.
const BODY_MAX: usize = 64 << 20;

/// How much of a body is shown to people.
const BODY_SHOWN: usize = 400;

/// How long answers that are under way may take when it is over.
const GRACE: Duration = Duration::from_secs(2);

/// Headers that say what is shown anyway, or what every HTTP request has.
const KNOWN: &[&str] = &[
    "accept",
    "accept-encoding",
    "connection",
    "content-length",
    "content-type",
    "host",
    "idempotency-key",
    "outbox-attempt",
    "outbox-destination",
    "outbox-message-version",
    "outbox-sequence",
    "transfer-encoding",
    "user-agent",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
];

/// Receives until it is told to stop, or has received enough.
pub(super) fn run(global: &Global, listen: &Listen) -> Result<Exit, Failure> {
    if global.output().format() == Format::Json {
        let help = "use `-o jsonl`: one document per request, as they come";
        return Err(Failure::new(Exit::Usage, format!("relay: requests have no end\n  help: {help}")));
    }
    let key = listen.secret.as_deref().map(verifying_key).transpose()?;
    block_on(receive(global, listen, key))?
}

async fn receive(global: &Global, listen: &Listen, key: Option<VerifyingKey>) -> Result<Exit, Failure> {
    let address = SocketAddr::new(listen.address, listen.port);
    let listener = TcpListener::bind(address).await.map_err(|error| {
        let help = "another program may be using the port: choose one with --port, or --port 0 for a free one";
        Failure::new(Exit::Failed, format!("relay: cannot listen on {address}: {error}\n  help: {help}"))
    })?;
    let address = listener.local_addr()?;
    say(&format!("listening on http://{address}/ - Ctrl-C ends"));
    let (sender, mut requests) = mpsc::channel(64);
    let (stop, stopped) = watch::channel(false);
    let answers = Answers { status: listen.status, fail_first: listen.fail_first, delay: listen.delay };
    let receiver = Arc::new(Receiver { answers, key, seen: AtomicU64::new(0), sender });
    let router = Router::new().fallback(handle).with_state(receiver);
    let serving = tokio::spawn(async move {
        let mut stopped = stopped;
        let over = async move {
            // The sender is kept until the end, so this waits for the word.
            let _ = stopped.wait_for(|stop| *stop).await;
        };
        axum::serve(listener, router).with_graceful_shutdown(over).await
    });
    let mut left = global.limit.unwrap_or(u32::MAX);
    let shown = async {
        while left > 0 {
            let Some(request) = requests.recv().await else { break };
            show(&global.output(), &request)?;
            left -= 1;
        }
        Ok::<(), std::io::Error>(())
    };
    tokio::select! {
        ended = shown => ended?,
        () = shutdown_signal() => {}
    }
    let _ = stop.send(true);
    let _ = tokio::time::timeout(GRACE + listen.delay.unwrap_or_default(), serving).await;
    Ok(Exit::Ok)
}

/// How requests are answered.
struct Answers {
    status: u16,
    fail_first: u64,
    delay: Option<Duration>,
}

impl Answers {
    /// The status of the answer to the request with this number, from 0.
    fn status(&self, number: u64) -> u16 {
        if number < self.fail_first { 503 } else { self.status }
    }
}

struct Receiver {
    answers: Answers,
    key: Option<VerifyingKey>,
    seen: AtomicU64,
    sender: mpsc::Sender<Arrived>,
}

/// A request that arrived.
struct Arrived {
    at: DateTime<Utc>,
    method: String,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
    status: u16,
    /// What is wrong with the signature, when it was checked.
    signature: Option<Result<(), VerifyError>>,
}

async fn handle(State(receiver): State<Arc<Receiver>>, request: Request<Body>) -> StatusCode {
    let at = Utc::now();
    let (head, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_MAX).await else {
        return StatusCode::PAYLOAD_TOO_LARGE;
    };
    let signature = receiver.key.as_ref().map(|key| verified(key, &head.headers, &body));
    let status = match &signature {
        Some(Err(_)) => 401,
        _ => receiver.answers.status(receiver.seen.fetch_add(1, Ordering::Relaxed)),
    };
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let (method, body) = (head.method.to_string(), body.to_vec());
    let arrived = Arrived { at, method, path, headers: head.headers, body, status, signature };
    // When nobody shows requests any more, it is over anyway.
    let _ = receiver.sender.send(arrived).await;
    // Shown first: a sender that loses patience meanwhile ends this right here.
    tokio::time::sleep(receiver.answers.delay.unwrap_or_default()).await;
    StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

fn verified(key: &VerifyingKey, headers: &HeaderMap, body: &[u8]) -> Result<(), VerifyError> {
    let found = Headers::find(|name| headers.get(name).and_then(|value| value.to_str().ok()))?;
    verify([key], &found, body)
}

impl Arrived {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    }

    /// What is said about the message under this name: in a header in mode `binary`, in the body in the other ones.
    fn said(&self, name: &str) -> Option<String> {
        if self.headers.contains_key("ce-specversion") {
            return self.header(&format!("ce-{name}"));
        }
        let body: Value = serde_json::from_slice(&self.body).ok()?;
        // A payload may have such a name, too: only an envelope has these as well.
        let is_envelope = body.get("specversion").is_some() || body.get("timestamp").is_some();
        body.get(name).filter(|_| is_envelope)?.as_str().map(str::to_owned)
    }

    fn topic(&self) -> Option<String> {
        self.said("type")
    }

    /// In mode `raw` it has one header, in quotation marks.
    fn message_id(&self) -> Option<String> {
        let quoted = || self.header("idempotency-key").map(|id| id.trim_matches('"').to_owned());
        self.header("webhook-id").or_else(quoted)
    }

    /// The headers people may want to see, in the order of their names.
    fn others(&self) -> Vec<(String, String)> {
        let is_other = |name: &str| !KNOWN.contains(&name) && !name.starts_with("ce-");
        let names = self.headers.keys().map(|name| name.as_str()).filter(|name| is_other(name));
        let mut others: Vec<(String, String)> = names.map(|name| (name.to_owned(), self.masked(name))).collect();
        others.sort();
        others
    }

    fn masked(&self, name: &str) -> String {
        match name {
            "authorization" | "proxy-authorization" | "cookie" => "(masked)".to_owned(),
            _ => self.header(name).unwrap_or_default(),
        }
    }

    fn as_text(&self) -> String {
        let mut line = format!("{} {} {} -> {}", time(self.at), self.method, self.path, self.status);
        let attempt = self.header("outbox-attempt");
        for (title, value) in
            [("", self.topic()), ("", self.message_id()), ("attempt ", attempt), ("key ", self.said("partitionkey"))]
        {
            if let Some(value) = value {
                line.push_str(&format!("  {title}{value}"));
            }
        }
        let mut text = format!("{}\n", visible(&line));
        match &self.signature {
            Some(Ok(())) => text.push_str("    signature: right\n"),
            Some(Err(error)) => text.push_str(&format!("    signature: {error}\n")),
            None => {}
        }
        for (name, value) in self.others() {
            text.push_str(&format!("    {}: {}\n", visible(&name), visible(&value)));
        }
        let body = std::str::from_utf8(&self.body).map_or_else(|_| hex(&self.body), visible);
        if !body.is_empty() {
            text.push_str(&format!("    {}\n", shortened(&body, BODY_SHOWN)));
        }
        text
    }

    fn as_json(&self) -> Value {
        let headers: Map<String, Value> =
            self.headers.keys().map(|name| (name.to_string(), json!(self.masked(name.as_str())))).collect();
        let number = |name: &str| self.header(name).and_then(|value| value.parse::<i64>().ok());
        let body = match std::str::from_utf8(&self.body) {
            Ok(text) => json!(text),
            Err(_) => json!({ "hex": hex(&self.body) }),
        };
        json!({
            "at": self.at,
            "method": self.method,
            "path": self.path,
            "message_id": self.message_id(),
            "attempt": number("outbox-attempt"),
            "topic": self.topic(),
            "key": self.said("partitionkey"),
            "destination": self.header("outbox-destination"),
            "seq": number("outbox-sequence"),
            "headers": headers,
            "body": body,
            "signature": self.signature.as_ref().map(|signature| match signature {
                Ok(()) => "right".to_owned(),
                Err(error) => error.to_string(),
            }),
            "status": self.status,
        })
    }
}

fn show(output: &Output, request: &Arrived) -> std::io::Result<()> {
    output.one(&request.as_text(), &request.as_json())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_requests_fail_when_asked_to() {
        let answers = Answers { status: 204, fail_first: 2, delay: None };
        assert_eq!([0, 1, 2, 3].map(|number| answers.status(number)), [503, 503, 204, 204]);
    }

    #[test]
    fn topic_key_and_id_are_found_in_every_mode() {
        let arrived = |headers: &[(&'static str, &'static str)], body: &str| {
            let headers = headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
            let (method, path, body) = ("POST".to_owned(), "/".to_owned(), body.as_bytes().to_vec());
            let arrived = Arrived { at: Utc::now(), method, path, headers, body, status: 200, signature: None };
            let seen = arrived.as_json();
            [&seen["topic"], &seen["key"], &seen["message_id"]].map(|value| value.as_str().unwrap_or("-").to_owned())
        };
        let id = ("webhook-id", "m1");
        let payload = "{\"type\": \"van\", \"partitionkey\": 1}";
        assert_eq!(
            arrived(&[id, ("ce-specversion", "1.0"), ("ce-type", "t"), ("ce-partitionkey", "k")], payload),
            ["t", "k", "m1"]
        );
        let event = "{\"specversion\": \"1.0\", \"type\": \"t\", \"partitionkey\": \"k\", \"data\": {}}";
        assert_eq!(arrived(&[id], event), ["t", "k", "m1"]);
        assert_eq!(arrived(&[id], "{\"type\": \"t\", \"timestamp\": \"x\", \"data\": null}"), ["t", "-", "m1"]);
        assert_eq!(arrived(&[("idempotency-key", "\"m1\"")], payload), ["-", "-", "m1"]);
    }
}
