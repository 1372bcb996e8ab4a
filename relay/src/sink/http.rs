//! HTTP destinations: one POST for one attempt.
//!
//! Invariants
//! - The verdict is known when the head of the answer is. The body is only read for what it says to people, within
//!   limits of its own, and cannot change the verdict.
//! - Whatever cannot be told apart counts as "the receiver may have it": only a connection that was never made proves
//!   that it has not.
//! - Addresses may hold secrets; they are not told in texts.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use hyper::Uri;
use hyper::header::HeaderValue;
use outbox::signature::Secret;
use tokio::time::Instant;
use url::Url;

use self::address::Policy;
use self::address::resolver::{Known, Resolver};
use self::classes::Classes;
use self::client::{Client, Times};
use self::mask::Mask;
use self::request::{Request, Setup};
use self::response::Excerpt;
use self::tls::Tls;
use crate::message::Message;
use crate::rate::RateLimit;
use crate::retry::RetryPolicy;
use crate::sink::AfterDeadLetter;
use crate::sink::{Attempt, Judgement, Ordering, Settings, Sink};
use crate::verdict::Verdict;

pub(crate) mod address;
mod attributes;
mod body;
mod classes;
mod client;
mod data;
mod failure;
mod mask;
mod mode;
mod request;
mod response;
mod tls;

pub use self::address::Network;
pub(crate) use self::attributes::is_source;
pub use self::classes::{Class, Status};
pub use self::mode::Mode;

/// How long a connection may take to be made, at most.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the body of an answer is read once its head has arrived.
const BODY_TIMEOUT: Duration = Duration::from_secs(2);

/// An HTTP destination under its name.
///
/// ```
/// let billing = relay::sink::http::Http::new("billing", "https://billing.internal/hooks/outbox")
///     .topics(["order.*", "refund.issued"])
///     .header("authorization", "Bearer …");
/// assert_eq!(billing.settings().name, "billing");
/// ```
#[derive(Clone)]
pub struct Http {
    settings: Settings,
    url: String,
    mode: Mode,
    headers: Vec<(String, String)>,
    keys: Vec<Secret>,
    tls: Tls,
    policy: Policy,
    classes: Classes,
}

impl Http {
    /// A destination that gets every topic unless [`topics`](Http::topics) says otherwise.
    pub fn new(name: impl Into<String>, url: impl Into<String>) -> Http {
        Http {
            settings: Settings::new(name, ["**"]),
            url: url.into(),
            mode: Mode::default(),
            headers: Vec::new(),
            keys: Vec::new(),
            tls: Tls::default(),
            policy: Policy::default(),
            classes: Classes::default(),
        }
    }

    /// The topic patterns it gets.
    #[must_use]
    pub fn topics<I>(mut self, patterns: I) -> Http
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.settings.topics = patterns.into_iter().map(Into::into).collect();
        self
    }

    /// A header for every request, for instance `authorization`. It replaces one of that name that came with a message.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Http {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The shape of the requests; [`Mode::Binary`] unless this says otherwise.
    #[must_use]
    pub fn mode(mut self, mode: Mode) -> Http {
        self.mode = mode;
        self
    }

    /// Signs every request with this key, as [`outbox::signature`] says. Several keys make several signatures, the newest
    /// key first: so a receiver can change from the old to the new one whenever it likes.
    #[must_use]
    pub fn signing_key(mut self, key: Secret) -> Http {
        self.keys.push(key);
        self
    }

    /// The authorities one of which has to vouch for the server, as PEM; those of the system do not count any more. Without
    /// this they do.
    #[must_use]
    pub fn ca(mut self, pem: impl Into<String>) -> Http {
        self.tls.ca = Some(pem.into());
        self
    }

    /// The certificate that is shown to a server which asks for one (mTLS), with those between it and its authority, and
    /// its private key without a passphrase, both as PEM.
    #[must_use]
    pub fn client_certificate(mut self, chain: impl Into<String>, key: impl Into<String>) -> Http {
        self.tls.identity = Some((chain.into(), key.into()));
        self
    }

    /// Which addresses it may have, [`Network::Any`] unless this says otherwise. The addresses of metadata services, by
    /// which clouds hand out the credentials of their machines, are refused in any case.
    ///
    /// ```
    /// use relay::sink::http::{Http, Network};
    ///
    /// let theirs = Http::new("customer_7", "https://10.0.0.5/hooks").network(Network::Public);
    /// assert!(theirs.sink("/shop").is_err());
    /// ```
    #[must_use]
    pub fn network(mut self, network: Network) -> Http {
        self.policy.network = network;
        self
    }

    /// Lets it have an `http://` address, which everybody on the way can read and change. Addresses of this very machine,
    /// such as `http://127.0.0.1:8080/`, need no allowance.
    #[must_use]
    pub fn allow_http(mut self) -> Http {
        self.policy.allows_http = true;
        self
    }

    /// Which ports below 1024 it may have in [`Network::Public`], beside 80 and 443.
    #[must_use]
    pub fn ports(mut self, ports: impl IntoIterator<Item = u16>) -> Http {
        self.policy.ports = ports.into_iter().collect();
        self
    }

    /// How long an attempt may take.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Http {
        self.settings.timeout = Some(timeout);
        self
    }

    /// Judges answers with this status otherwise than by the table: `404`, or `5xx` for all that begin with that digit.
    /// A success is a success: what begins with 2 cannot be judged otherwise.
    #[must_use]
    pub fn classify(mut self, status: Status, class: Class) -> Http {
        self.classes.set(status, class);
        self
    }

    /// How often it is called, by all relays together; each keeps to the share of the partitions it owns.
    #[must_use]
    pub fn rate_limit(mut self, limit: RateLimit) -> Http {
        self.settings.rate_limit = Some(limit);
        self
    }

    /// How many attempts may be under way at once, from this process.
    #[must_use]
    pub fn concurrency(mut self, concurrency: usize) -> Http {
        self.settings.concurrency = Some(concurrency);
        self
    }

    /// When failed attempts are repeated.
    #[must_use]
    pub fn retry(mut self, policy: RetryPolicy) -> Http {
        self.settings.retry = Some(policy);
        self
    }

    /// Whether messages of one key arrive in order; they do unless this says otherwise.
    #[must_use]
    pub fn ordering(mut self, ordering: Ordering) -> Self {
        self.settings.ordering = ordering;
        self
    }

    /// What happens to a key after one of its messages was given up; the next one goes unless this says otherwise.
    #[must_use]
    pub fn after_dead_letter(mut self, choice: AfterDeadLetter) -> Self {
        self.settings.after_dead_letter = choice;
        self
    }

    /// What is said about the destination beside how it is reached.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The sink that sends the requests; `source` names this outbox to the receivers (CloudEvents `source`).
    ///
    /// # Errors
    /// When the address or a header cannot be used or may not be, or there is nothing to check a server's certificate
    /// against.
    pub fn sink(&self, source: &str) -> Result<HttpSink, HttpError> {
        self.sink_within(source, self.settings.timeout.unwrap_or(CONNECT_TIMEOUT * 3))
    }

    /// The same where an attempt may take so long. Making the connection may take less of it, so that what was never sent
    /// is told from what may have arrived.
    pub(crate) fn sink_within(&self, source: &str, timeout: Duration) -> Result<HttpSink, HttpError> {
        if !is_source(source) {
            return Err(HttpError::Source { source_name: source.to_owned() });
        }
        let url = address(&self.url)?;
        self.policy.url(&url).map_err(|refusal| HttpError::Url { problem: refusal.to_string() })?;
        let headers = request::fixed(&self.headers)?;
        let times = Times { connect: CONNECT_TIMEOUT.min(timeout / 5 * 4), attempt: timeout };
        let known = Known::default();
        let resolver = Resolver::new(self.policy.clone(), known.clone());
        let uri = Uri::try_from(url.as_str()).map_err(|problem| HttpError::Url { problem: problem.to_string() })?;
        let client = Client::new(uri, self.tls.config(&url)?, resolver, times);
        let mask = Mask::new(&url, &headers);
        let setup = Setup { mode: self.mode, source: source.to_owned(), headers, keys: self.keys.clone() };
        Ok(HttpSink { client, url, known, setup, classes: self.classes.clone(), mask })
    }
}

/// Header values are often secrets, and so are parts of addresses.
impl fmt::Debug for Http {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let headers: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("Http").field("settings", &self.settings).field("headers", &headers).finish_non_exhaustive()
    }
}

/// Why an HTTP destination cannot be used as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The address is none, or not one that messages can be sent to.
    #[error("the url cannot be used: {problem}")]
    Url {
        /// What is wrong with it.
        problem: String,
    },
    /// The source is none that CloudEvents allows.
    #[error("the source `{source_name}` cannot be used: it is no URI reference such as `/shop`")]
    Source {
        /// What was given.
        source_name: String,
    },
    /// A header cannot be sent, or is one the relay sets itself.
    #[error("the header `{name}` cannot be used: {problem}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// TLS cannot be set up; on a bare system the package `ca-certificates` is missing.
    #[error("TLS cannot be set up; are the system's root certificates installed (package `ca-certificates`)?")]
    Tls(#[source] rustls::Error),
    /// A certificate or its key is none, or they do not belong together.
    #[error("the {what} cannot be used: {problem}")]
    Certificate {
        /// Which of them.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

fn address(text: &str) -> Result<Url, HttpError> {
    let error = |problem: String| HttpError::Url { problem };
    let mut url = Url::parse(text).map_err(|problem| error(format!("{problem}; write it like https://host/path")))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(error(format!("its scheme is `{}`; messages are sent to http and https only", url.scheme())));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(error("it holds a user name or password; set an `authorization` header instead".into()));
    }
    url.set_fragment(None);
    Ok(url)
}

/// Sends messages to an address.
#[derive(Clone)]
pub struct HttpSink {
    client: Client,
    url: Url,
    /// Where its name led to.
    known: Known,
    setup: Setup,
    classes: Classes,
    mask: Mask,
}

#[async_trait]
impl Sink for HttpSink {
    fn runs_in_process(&self) -> bool {
        false
    }

    async fn attempt(&self, message: &Message, attempt: &Attempt) -> Judgement {
        match request::request(message, attempt, &self.setup, SystemTime::now()) {
            Ok(request) => match self.send(request, attempt).await {
                Ok((judgement, excerpt)) => judgement.with_words(&excerpt, &self.mask),
                Err(judgement) => self.placed(judgement),
            },
            Err(problem) => Judgement::failed(Verdict::Undecodable, "undecodable", problem),
        }
    }
}

impl HttpSink {
    /// With the address the attempt was made at, where there was one and it is known although nobody has answered. While a
    /// name is being looked up none is: it may lead elsewhere now.
    fn placed(&self, judgement: Judgement) -> Judgement {
        if matches!(judgement.code.as_str(), "dns" | "address") {
            return judgement;
        }
        let literal = self.url.host_str().and_then(address::literal);
        let address = literal.or_else(|| self.known.address());
        let remote = address.zip(self.url.port_or_known_default()).map(SocketAddr::from);
        Judgement { remote, ..judgement }
    }

    /// Sends a message that says in a header, too, that it is none. What the receiver says comes back in any case.
    pub(crate) async fn ping(&self, message: &Message, attempt: &Attempt) -> Judgement {
        let request = request::request(message, attempt, &self.setup, SystemTime::now());
        let mut request = request.expect("a ping brings no header of its own, so nothing in it is refused");
        request.headers.insert("outbox-ping", HeaderValue::from_static("true"));
        match self.send(request, attempt).await {
            Ok((mut judgement, excerpt)) => {
                if judgement.text.is_empty() {
                    judgement.text = excerpt.text(&self.mask);
                }
                judgement
            }
            Err(judgement) => judgement,
        }
    }

    /// One request, and the judgement of its answer with the beginning of the body; or the judgement of there being none.
    async fn send(&self, request: Request, attempt: &Attempt) -> Result<(Judgement, Excerpt), Judgement> {
        let deadline = Instant::now() + attempt.timeout;
        let mut answer = match tokio::time::timeout_at(deadline, self.client.post(request)).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => return Err(failure::judge(&error)),
            Err(_elapsed) => return Err(failure::timeout(attempt.timeout)),
        };
        let judgement = Judgement {
            remote: answer.remote(),
            ..response::judge(answer.status(), answer.headers(), &self.classes, &self.mask, SystemTime::now())
        };
        let mut excerpt = Excerpt::of(answer.headers());
        let until = deadline.min(Instant::now() + BODY_TIMEOUT);
        while excerpt.wants_more() {
            // A short body is read even where nobody wants it: only then can the connection serve the next request.
            match tokio::time::timeout_at(until, answer.chunk()).await {
                Ok(Ok(Some(chunk))) => excerpt.push(&chunk),
                Ok(Ok(None)) => {
                    excerpt.end();
                    break;
                }
                Ok(Err(_)) | Err(_) => break,
            }
        }
        Ok((judgement, excerpt))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_cannot_work_are_refused_with_the_reason() {
        for (url, told) in [
            ("", "write it like https://host/path"),
            ("billing.internal/hooks", "write it like https://host/path"),
            ("localhost:8080/hooks", "its scheme is `localhost`"),
            ("ftp://billing.internal/", "http and https only"),
            ("http://", "write it like https://host/path"),
            ("http://user:secret@billing.internal/", "set an `authorization` header"),
            ("http://billing.internal/?token=secret", "`allow_http = true`"),
            ("https://169.254.169.254/?token=secret", "`169.254.169.254`, a link-local address"),
            ("https://[::ffff:a9fe:a9fe]/?token=secret", "no setting allows it"),
        ] {
            let error = Http::new("billing", url).sink("/").map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(told), "{url}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let http = Http::new("billing", "http://h/?token=hunter2").header("authorization", "Bearer hunter2");
        let shown = format!("{http:?}");
        assert!(shown.contains("authorization") && !shown.contains("hunter2"), "{shown}");
    }
}
