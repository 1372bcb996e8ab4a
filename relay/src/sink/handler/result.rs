//! What a handler returns.

use std::error::Error;
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::sink::{Judgement, text};
use crate::verdict::Verdict;

/// What a handler returns; `HandlerResult<Reply>` when it has something to say.
pub type HandlerResult<T = ()> = Result<T, HandlerError>;

/// What a handler gives back to whoever waits for the result of its message.
///
/// Most handlers have nothing to give back and return `Ok(())`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reply {
    content: Option<(String, Bytes)>,
}

impl Reply {
    /// Nothing.
    pub fn none() -> Reply {
        Reply::default()
    }

    /// A value as JSON.
    ///
    /// The handler has done its work when it says this, so a value that does not serialise is no failure of the
    /// delivery: the reply is then nothing, and a warning says so.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Reply {
        match serde_json::to_vec(value) {
            Ok(body) => Reply::bytes("application/json", body),
            Err(error) => {
                tracing::warn!(error = %error, "the reply of a handler is not JSON and was dropped");
                Reply::none()
            }
        }
    }

    /// Bytes of a content type.
    pub fn bytes(content_type: impl Into<String>, body: impl Into<Bytes>) -> Reply {
        Reply { content: Some((content_type.into(), body.into())) }
    }

    /// The content type and the body, when there is something.
    pub fn content(&self) -> Option<(&str, &Bytes)> {
        self.content.as_ref().map(|(content_type, body)| (content_type.as_str(), body))
    }
}

impl From<()> for Reply {
    fn from((): ()) -> Reply {
        Reply::none()
    }
}

/// Why a handler did not do it, and what is to happen next.
///
/// Any error turns into one with `?` and then means "try again later". That is also why this is not itself a
/// [`std::error::Error`].
pub struct HandlerError {
    verdict: Verdict,
    code: &'static str,
    source: Box<dyn Error + Send + Sync>,
}

impl HandlerError {
    /// Try again, on the destination's schedule.
    pub fn retry(error: impl Into<Box<dyn Error + Send + Sync>>) -> HandlerError {
        HandlerError::new(Verdict::Retry { after: None }, error)
    }

    /// Try again, but not before `after`.
    pub fn retry_after(after: Duration, error: impl Into<Box<dyn Error + Send + Sync>>) -> HandlerError {
        HandlerError::new(Verdict::Retry { after: Some(after) }, error)
    }

    /// This message will never be accepted: it becomes a dead letter now.
    pub fn reject(error: impl Into<Box<dyn Error + Send + Sync>>) -> HandlerError {
        HandlerError::new(Verdict::Reject { gone: false }, error)
    }

    /// Nothing can be done for any message at the moment: the whole destination waits for `pause`, and no attempt is
    /// counted.
    pub fn hold(pause: Duration, error: impl Into<Box<dyn Error + Send + Sync>>) -> HandlerError {
        HandlerError::new(Verdict::Hold { pause: Some(pause) }, error)
    }

    /// A person has to change something first (a missing credential, a wrong address): try again, slowly.
    pub fn misconfigured(error: impl Into<Box<dyn Error + Send + Sync>>) -> HandlerError {
        HandlerError::new(Verdict::Misconfigured, error)
    }

    /// What is to happen next.
    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    pub(super) fn undecodable(text: String) -> HandlerError {
        HandlerError { code: "undecodable", ..HandlerError::new(Verdict::Undecodable, text) }
    }

    pub(super) fn unknown_version(topic: &str, written: u16, known: u16) -> HandlerError {
        let text = format!(
            "the message is version {written} of `{topic}` and the handler knows up to {known}; deploy one that knows it"
        );
        HandlerError { code: "unknown_version", ..HandlerError::retry(text) }
    }

    pub(super) fn unknown_topic(topic: &str, known: &str) -> HandlerError {
        let text = format!("the handler has no function for topic `{topic}`; it knows {known}");
        HandlerError { code: "unknown_topic", ..HandlerError::retry(text) }
    }

    fn new(verdict: Verdict, error: impl Into<Box<dyn Error + Send + Sync>>) -> HandlerError {
        HandlerError { verdict, code: "error", source: error.into() }
    }

    pub(super) fn judgement(&self) -> Judgement {
        Judgement::failed(self.verdict, self.code, text::chain(&*self.source))
    }
}

impl<E: Into<Box<dyn Error + Send + Sync>>> From<E> for HandlerError {
    fn from(error: E) -> HandlerError {
        HandlerError::retry(error)
    }
}

impl fmt::Display for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.source.fmt(f)
    }
}

impl fmt::Debug for HandlerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HandlerError").field("verdict", &self.verdict).field("source", &self.source).finish()
    }
}
