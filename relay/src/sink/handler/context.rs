//! What a handler is told beside the message.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use chrono::{DateTime, Utc};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::message::{Headers, Message, MessageId};
use crate::sink::Attempt;

/// What a handler is told beside the message. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Context {
    about: Arc<About>,
    over: watch::Receiver<()>,
}

#[derive(Debug)]
struct About {
    message: Message,
    destination: Arc<str>,
    attempt: u32,
    deadline: Instant,
}

/// Ends the attempt of a [`Context`] when it is dropped.
pub(super) struct AttemptGuard {
    _alive: watch::Sender<()>,
}

impl Context {
    /// The context of an attempt that begins now, and what ends it.
    pub(super) fn begin(message: &Message, attempt: &Attempt) -> (Context, AttemptGuard) {
        let (alive, over) = watch::channel(());
        let about = About {
            message: message.clone(),
            destination: attempt.destination.clone(),
            attempt: attempt.number,
            deadline: Instant::now() + attempt.timeout,
        };
        (Context { about: Arc::new(about), over }, AttemptGuard { _alive: alive })
    }

    /// The id of the message. The same message always comes with the same id; whoever must not act twice remembers it.
    pub fn message_id(&self) -> MessageId {
        self.about.message.id
    }

    /// Which attempt this is, from 1.
    pub fn attempt(&self) -> u32 {
        self.about.attempt
    }

    /// The destination's name.
    pub fn destination(&self) -> &str {
        &self.about.destination
    }

    /// The topic of the message.
    pub fn topic(&self) -> &str {
        &self.about.message.topic
    }

    /// The version of the message type its producer wrote.
    pub fn version(&self) -> u16 {
        self.about.message.version
    }

    /// The ordering key, bytes that are not UTF-8 replaced.
    pub fn ordering_key(&self) -> Option<Cow<'_, str>> {
        self.about.message.ordering_key.as_deref().map(String::from_utf8_lossy)
    }

    /// The headers the producer stored.
    pub fn headers(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        match &self.about.message.headers {
            Headers::Decoded(headers) => headers,
            Headers::Undecodable(_) => &NONE,
        }
    }

    /// One of these headers, its name in any case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers().iter();
        headers.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// When the message was enqueued, by the database's clock.
    pub fn created_at(&self) -> DateTime<Utc> {
        self.about.message.created_at
    }

    /// When the attempt ends, whether the handler has finished or not.
    pub fn deadline(&self) -> Instant {
        self.about.deadline
    }

    /// Waits until the attempt is over: its time is up, the relay has to let go of it, or the handler has returned.
    ///
    /// The handler itself need not ask, it is dropped then; this is for work it has handed to other tasks or threads.
    pub async fn cancelled(&self) {
        // Nothing is ever sent: the only change is that the sender goes.
        let _ = self.over.clone().changed().await;
    }

    /// True when the attempt is over; for work on other threads, between two steps.
    pub fn is_cancelled(&self) -> bool {
        self.over.has_changed().is_err()
    }

    pub(super) fn message(&self) -> &Message {
        &self.about.message
    }
}
