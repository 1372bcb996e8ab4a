//! The seam to the places messages go.
//!
//! A sink makes one attempt and judges it. It knows the message and the wire; it knows nothing of rows, partitions or
//! what happens next, never tries twice, and never fails: whatever goes wrong is a verdict.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use crate::message::{Message, MessageId, RelayId, Seq};
use crate::rate::RateLimit;
use crate::retry::RetryPolicy;
use crate::verdict::Verdict;

pub mod handler;
pub mod http;
pub(crate) mod text;

/// A place messages go to.
#[async_trait]
pub trait Sink: Send + Sync + 'static {
    /// Makes one attempt.
    ///
    /// It keeps to the time it is given: only it knows what the time went by on. The caller ends it a second later in any
    /// case, and may drop the future at any moment, for instance when ownership of the partition was lost.
    async fn attempt(&self, message: &Message, attempt: &Attempt) -> Judgement;

    /// True when it may delete the delivery's row itself, in a transaction of its own ([`Row::Deleted`]). Then it is only
    /// given deliveries that have a row of their own.
    fn deletes_rows(&self) -> bool {
        false
    }

    /// True when an attempt runs somebody's code in this process, which may abort it or allocate until it is killed. Then
    /// deliveries that may have done so are told from the others and tried alone.
    fn runs_in_process(&self) -> bool {
        true
    }
}

/// What the sink is told beside the message.
#[derive(Clone, Debug)]
pub struct Attempt {
    /// The destination's name.
    pub destination: Arc<str>,
    /// Which attempt this is, from 1.
    pub number: u32,
    /// How long it may take.
    pub timeout: Duration,
    /// The row the delivery lives in.
    pub unit: Unit,
}

/// The row a delivery lives in, as it was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A row of `outbox_messages` that other destinations share.
    Shared,
    /// A row of `outbox_messages`: this destination is the only one.
    Message {
        /// Its number.
        seq: Seq,
        /// Its id.
        id: MessageId,
        /// The routes it was routed by.
        routes_version: i64,
        /// Whose it is.
        held: Held,
    },
    /// A row of `outbox_deliveries`.
    Waiting {
        /// The row's id.
        id: i64,
        /// The message it is about.
        message_id: MessageId,
        /// Attempts judged so far.
        attempts: u32,
        /// Whose it is.
        held: Held,
    },
}

/// Who owns the partition of a row, as far as the one who attempts it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The partition.
    pub partition_no: u8,
    /// The relay.
    pub relay: RelayId,
    /// Since when: it rises with every change of owner.
    pub epoch: i64,
}

/// What an attempt did to that row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Row {
    /// Nothing: the relay writes the outcome.
    #[default]
    Untouched,
    /// It was deleted in a transaction that has committed; the delivery is settled.
    Deleted,
    /// It was to be deleted and was not there (any more) as it had been read. Nobody was called.
    NotFound,
}

/// What came of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// The HTTP status, or a short word such as `timeout`, `connect`, `panic`, `ok`.
    pub code: String,
    /// True when the receiver may have acted although no answer arrived.
    pub maybe: bool,
    /// What the receiver or the handler said, shortened; empty when it was delivered.
    pub text: String,
    /// What became of the delivery's row.
    pub row: Row,
    /// The address of who answered, or would have.
    pub remote: Option<SocketAddr>,
}

impl Judgement {
    /// The attempt succeeded.
    pub fn delivered(code: impl Into<String>) -> Judgement {
        Judgement {
            verdict: Verdict::Delivered,
            code: code.into(),
            maybe: false,
            text: String::new(),
            row: Row::Untouched,
            remote: None,
        }
    }

    /// The attempt failed in a way that says nothing about the receiver having acted.
    pub fn failed(verdict: Verdict, code: impl Into<String>, text: impl Into<String>) -> Judgement {
        Judgement { verdict, code: code.into(), maybe: false, text: text.into(), row: Row::Untouched, remote: None }
    }

    /// The code, and what was said, if anything was.
    pub(crate) fn said(&self) -> String {
        if self.text.is_empty() { self.code.clone() } else { format!("{}: {}", self.code, self.text) }
    }
}

/// What is said about a destination beside how it is reached; what is `None` follows the relay's defaults.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// The destination's name.
    pub name: String,
    /// The topic patterns it gets.
    pub topics: Vec<String>,
    /// How long an attempt may take.
    pub timeout: Option<Duration>,
    /// How many attempts may be under way at once, in this process.
    pub concurrency: Option<usize>,
    /// How often it is called, by all relays together.
    pub rate_limit: Option<RateLimit>,
    /// When failed attempts are repeated.
    pub retry: Option<RetryPolicy>,
    /// Whether messages of one key arrive in order.
    pub ordering: Ordering,
    /// What happens to a key after one of its messages was given up.
    pub after_dead_letter: AfterDeadLetter,
}

/// What happens to a key after one of its messages died.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AfterDeadLetter {
    /// The next message goes.
    #[default]
    Continue,
    /// The key stays blocked until an operator decides.
    Block,
}

/// Whether messages of one key arrive in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ordering {
    /// One after another.
    #[default]
    Key,
    /// In any order, side by side.
    None,
}

impl Ordering {
    /// The word in the table.
    pub fn as_str(self) -> &'static str {
        match self {
            Ordering::Key => "key",
            Ordering::None => "none",
        }
    }
}

impl Settings {
    /// A destination of this name that gets these topics.
    pub fn new<I>(name: impl Into<String>, topics: I) -> Settings
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        let topics = topics.into_iter().map(Into::into).collect();
        Settings {
            name: name.into(),
            topics,
            timeout: None,
            concurrency: None,
            rate_limit: None,
            retry: None,
            ordering: Ordering::default(),
            after_dead_letter: AfterDeadLetter::default(),
        }
    }
}
