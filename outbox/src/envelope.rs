//! A message with what is said about it.
//!
//! An envelope collects; nothing is checked before it is enqueued, so that options chain without `?`. What was collected
//! becomes a [`Row`] only when it keeps every rule of [`limits`](crate::limits).
//!
//! Absent: a way to choose the message id. It is drawn here, once per enqueue, so that no two messages share one.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use chrono::{DateTime, Datelike, Utc};
use uuid::Uuid;

use crate::dedup;
use crate::error::{Error, Refusal};
use crate::insert::{Payload, Row};
use crate::limits;
use crate::message::Message;

/// A message and its options, ready to be enqueued.
///
/// Made by [`envelope`] from a typed message or by [`Envelope::raw`] from bytes.
#[must_use = "an envelope does nothing until it is enqueued"]
pub struct Envelope {
    topic: Cow<'static, str>,
    key: Option<String>,
    payload: Result<Vec<u8>, serde_json::Error>,
    payload_max: usize,
    content_type: Cow<'static, str>,
    headers: BTreeMap<String, String>,
    destination: Option<String>,
    delivery: Delivery,
    expires_at: Option<DateTime<Utc>>,
    version: u16,
    dedup_key: Option<String>,
    dedup_window: Option<Duration>,
}

/// When a message may be delivered.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Delivery {
    Now,
    At(DateTime<Utc>),
    After(Duration),
}

/// Puts a message into an envelope, to set options on it.
///
/// ```
/// # use std::time::Duration;
/// # #[derive(serde::Serialize)]
/// # struct OrderPlaced { order_id: i64 }
/// # impl outbox::Message for OrderPlaced { const TOPIC: &'static str = "order.placed"; }
/// let message = OrderPlaced { order_id: 1 };
/// let reminder = outbox::envelope(&message).key("order-1").header("x-tenant", "7").delay(Duration::from_secs(3600));
/// ```
pub fn envelope<M: Message + ?Sized>(message: &M) -> Envelope {
    Envelope {
        topic: Cow::Borrowed(M::TOPIC),
        key: message.key().map(Cow::into_owned),
        payload: serde_json::to_vec(message),
        payload_max: limits::PAYLOAD_BYTES_MAX,
        content_type: Cow::Borrowed("application/json"),
        headers: BTreeMap::new(),
        destination: None,
        delivery: Delivery::Now,
        expires_at: None,
        version: M::VERSION,
        dedup_key: None,
        dedup_window: None,
    }
}

impl Envelope {
    /// Puts bytes into an envelope; receivers get exactly these.
    ///
    /// The content type is `application/octet-stream` until [`content_type`](Envelope::content_type) says otherwise.
    pub fn raw(topic: impl Into<Cow<'static, str>>, payload: impl Into<Vec<u8>>) -> Envelope {
        Envelope {
            topic: topic.into(),
            key: None,
            payload: Ok(payload.into()),
            payload_max: limits::PAYLOAD_BYTES_MAX,
            content_type: Cow::Borrowed("application/octet-stream"),
            headers: BTreeMap::new(),
            destination: None,
            delivery: Delivery::Now,
            expires_at: None,
            version: 1,
            dedup_key: None,
            dedup_window: None,
        }
    }

    /// Sets the ordering key: messages with the same key reach a destination in the order they were enqueued.
    pub fn key(mut self, key: impl Into<String>) -> Envelope {
        self.key = Some(key.into());
        self
    }

    /// Sets a header that travels with the message; the same name again replaces it. Names are kept in lower case.
    pub fn header(mut self, name: impl AsRef<str>, value: impl Into<String>) -> Envelope {
        self.headers.insert(name.as_ref().to_ascii_lowercase(), value.into());
        self
    }

    /// Marks what this message belongs to: sets the header `correlation-id`.
    pub fn correlation_id(self, id: impl Into<String>) -> Envelope {
        self.header("correlation-id", id)
    }

    /// Holds the message back until then, by the database's clock. It neither blocks its key nor waits for it.
    pub fn deliver_at(mut self, at: DateTime<Utc>) -> Envelope {
        self.delivery = Delivery::At(at);
        self
    }

    /// Holds the message back for so long, counted by the database's clock from when it is enqueued.
    pub fn delay(mut self, delay: Duration) -> Envelope {
        self.delivery = Delivery::After(delay);
        self
    }

    /// Gives the message up when it could not be delivered until then; it becomes a dead letter, `expired`.
    pub fn expires_at(mut self, at: DateTime<Utc>) -> Envelope {
        self.expires_at = Some(at);
        self
    }

    /// Sends the message to this destination only, whatever its topic.
    pub fn to(mut self, destination: impl Into<String>) -> Envelope {
        self.destination = Some(destination.into());
        self
    }

    /// Sets what the payload is.
    pub fn content_type(mut self, content_type: impl Into<Cow<'static, str>>) -> Envelope {
        self.content_type = content_type.into();
        self
    }

    /// Sets the version of the message's type.
    pub fn version(mut self, version: u16) -> Envelope {
        self.version = version;
        self
    }

    /// Enqueues nothing when a message of the same topic with the same key was enqueued within the
    /// [window](Envelope::dedup_window); the [`Receipt`](crate::Receipt) names that one.
    ///
    /// Keys have at most 255 bytes and are compared byte by byte. A rollback frees the key. While another transaction that
    /// enqueued the key is open, this one waits for its end; two that wait for each other end in an error, as every
    /// deadlock does. Costs a few statements more, and the rights SELECT, INSERT and UPDATE on `outbox_dedup_keys`.
    pub fn dedup_key(mut self, key: impl Into<String>) -> Envelope {
        self.dedup_key = Some(key.into());
        self
    }

    /// Sets how long the dedup key is taken, counted by the database's clock from when the message is enqueued. Without
    /// it, [`dedup::WINDOW_DEFAULT`](crate::dedup::WINDOW_DEFAULT), a day.
    pub fn dedup_window(mut self, window: Duration) -> Envelope {
        self.dedup_window = Some(window);
        self
    }

    /// Allows a payload of up to so many bytes instead of [`limits::PAYLOAD_BYTES_MAX`].
    ///
    /// Every relay holds payloads in memory, and receivers often accept less. [`limits::PAYLOAD_BYTES_CEILING`] stands.
    pub fn payload_max(mut self, bytes: usize) -> Envelope {
        self.payload_max = bytes;
        self
    }

    /// Checks what [`enqueue`](crate::enqueue) would check, and enqueues nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] or [`Error::Serialize`] for a message that can never be sent.
    pub fn check(self) -> Result<(), Error> {
        self.into_row().map(drop)
    }

    /// Checks everything and draws the id.
    pub(crate) fn into_row(self) -> Result<Row, Error> {
        let payload = self.payload.map_err(Error::Serialize)?;
        limits::check_topic(&self.topic)?;
        self.key.as_deref().map_or(Ok(()), limits::check_key)?;
        limits::check_payload_bytes(payload.len(), self.payload_max)?;
        limits::check_content_type(&self.content_type)?;
        limits::check_version(self.version)?;
        self.destination.as_deref().map_or(Ok(()), limits::check_destination)?;
        for (name, value) in &self.headers {
            limits::check_header(name, value)?;
        }
        limits::check_header_total(self.headers.iter().map(|(name, value)| (name.as_str(), value.as_str())))?;
        let (deliver_at, delay_ms) = match self.delivery {
            Delivery::Now => (None, None),
            Delivery::At(at) => (Some(check_instant("deliver_at", at)?), None),
            Delivery::After(delay) => (None, Some(check_span("delay", delay)?)),
        };
        self.dedup_key.as_deref().map_or(Ok(()), dedup::check_key)?;
        let dedup_window_ms = check_span("dedup_window", self.dedup_window.unwrap_or(dedup::WINDOW_DEFAULT))?;
        if dedup_window_ms == 0 || self.dedup_window.is_some() && self.dedup_key.is_none() {
            return Err(Refusal::new(
                "the message has a `dedup_window` that means nothing",
                "give it a `dedup_key`, and a window longer than zero",
            )
            .into());
        }
        let expires_at = self.expires_at.map(|at| check_instant("expires_at", at)).transpose()?;
        if let (Some(deliver_at), Some(expires_at)) = (deliver_at, expires_at)
            && expires_at <= deliver_at
        {
            return Err(Refusal::new(
                "the message expires before it may be delivered",
                "let `expires_at` lie after `deliver_at`",
            )
            .into());
        }
        Ok(Row {
            // Version 7 begins with the time, so an operator can find the row of an id without an index on it. What
            // follows is random: a restored database hands numbers out again, an id must never come twice.
            id: Uuid::now_v7(),
            topic: self.topic,
            key: self.key,
            payload: Payload::from(payload),
            content_type: self.content_type,
            headers: headers_json(&self.headers)?,
            destination: self.destination,
            deliver_at_ms: deliver_at,
            delay_ms,
            expires_at_ms: expires_at,
            version: i16::try_from(self.version).expect("checked against `VERSION_MAX`"),
            dedup_key: self.dedup_key,
            dedup_window_ms,
        })
    }
}

impl fmt::Debug for Envelope {
    /// Shows neither payload nor header values: they do not belong into logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Envelope")
            .field("topic", &self.topic)
            .field("payload_bytes", &self.payload.as_ref().map_or(0, Vec::len))
            .field("headers", &self.headers.keys())
            .field("destination", &self.destination)
            .finish_non_exhaustive()
    }
}

/// What can be enqueued: `&message`, or an [`Envelope`].
///
/// Sealed; implement [`Message`] for your own types.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be enqueued",
    label = "neither a reference to a message nor an envelope",
    note = "pass `&message` of a type that implements `outbox::Message`, or an `outbox::Envelope`",
    note = "a type becomes a message by `impl outbox::Message for … {{ const TOPIC: &'static str = \"what.happened\"; }}`"
)]
pub trait IntoEnvelope: sealed::Sealed {
    /// The message with its options.
    fn into_envelope(self) -> Envelope;
}

impl IntoEnvelope for Envelope {
    fn into_envelope(self) -> Envelope {
        self
    }
}

impl<M: Message + ?Sized> IntoEnvelope for &M {
    fn into_envelope(self) -> Envelope {
        envelope(self)
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for super::Envelope {}
    impl<M: super::Message + ?Sized> Sealed for &M {}
}

fn headers_json(headers: &BTreeMap<String, String>) -> Result<Cow<'static, str>, Error> {
    if headers.is_empty() {
        return Ok(Cow::Borrowed("{}"));
    }
    serde_json::to_string(headers).map(Cow::Owned).map_err(Error::Serialize)
}

/// An instant in whole milliseconds since 1970, rounded up: never early. All three databases hold the years until 9999.
fn check_instant(option: &str, at: DateTime<Utc>) -> Result<i64, Refusal> {
    if (1970..=9999).contains(&at.year()) {
        return Ok(at.timestamp_millis() + i64::from(!at.timestamp_subsec_nanos().is_multiple_of(1_000_000)));
    }
    Err(Refusal::new(
        format!("`{option}` lies in the year {}", at.year()),
        "give an instant between the years 1970 and 9999, or none",
    ))
}

/// A span in whole milliseconds, rounded up: never early.
fn check_span(option: &str, span: Duration) -> Result<i64, Refusal> {
    const DAYS_MAX: u64 = 3660;
    if span > Duration::from_secs(DAYS_MAX * 24 * 60 * 60) {
        return Err(Refusal::new(
            format!("`{option}` is longer than {DAYS_MAX} days"),
            "give a shorter one; a late delivery can also be an instant, with `deliver_at`",
        ));
    }
    Ok(i64::try_from(span.as_nanos().div_ceil(1_000_000)).expect("some years of milliseconds fit"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct OrderPlaced {
        order_id: i64,
    }

    impl Message for OrderPlaced {
        const TOPIC: &'static str = "order.placed";
        const VERSION: u16 = 3;

        fn key(&self) -> Option<Cow<'_, str>> {
            Some(self.order_id.to_string().into())
        }
    }

    #[test]
    fn typed_message_becomes_json_under_its_topic_key_and_version() {
        let row = envelope(&OrderPlaced { order_id: 7 }).into_row().unwrap();
        assert_eq!((row.topic.as_ref(), row.key.as_deref(), row.version), ("order.placed", Some("7"), 3));
        assert_eq!(row.payload.text.as_deref(), Some(r#"{"order_id":7}"#));
        assert_eq!((row.content_type.as_ref(), row.headers.as_ref()), ("application/json", "{}"));
    }

    #[test]
    fn every_enqueue_draws_its_own_id() {
        let ids: std::collections::HashSet<Uuid> =
            (0..1000).map(|_| Envelope::raw("a", "x").into_row().unwrap().id).collect();
        assert_eq!(ids.len(), 1000);
    }

    #[test]
    fn headers_are_kept_in_lower_case_as_one_json_object() {
        let envelope = Envelope::raw("a", "x").header("X-B", "1").header("x-b", "\"2\\").correlation_id("c");
        assert_eq!(envelope.into_row().unwrap().headers, r#"{"correlation-id":"c","x-b":"\"2\\"}"#);
    }

    #[test]
    fn instants_and_delays_are_rounded_up() {
        let row = Envelope::raw("a", "x").delay(Duration::from_micros(1001)).into_row().unwrap();
        assert_eq!((row.deliver_at_ms, row.delay_ms), (None, Some(2)));
        for (nanos, ms) in [(0, 1000), (1, 1001), (999_999, 1001), (1_000_000, 1001)] {
            let at = DateTime::from_timestamp(1, nanos).unwrap();
            let row =
                Envelope::raw("a", "x").deliver_at(at).expires_at(at + Duration::from_secs(1)).into_row().unwrap();
            assert_eq!((row.deliver_at_ms, row.delay_ms, row.expires_at_ms), (Some(ms), None, Some(ms + 1000)));
        }
    }

    #[test]
    fn what_breaks_a_rule_becomes_no_row() {
        let at = |year: i32| DateTime::<Utc>::from_timestamp(0, 0).unwrap().with_year(year).unwrap();
        let message = || envelope(&OrderPlaced { order_id: 7 });
        let refused = [
            Envelope::raw("a b", "x"),
            message().key("k".repeat(256)),
            message().payload_max(3),
            Envelope::raw("a", vec![0; limits::PAYLOAD_BYTES_MAX + 1]),
            message().header("host", "a"),
            message().header("x-a", "b\r\nc: d"),
            message().content_type("json"),
            message().to("Billing"),
            message().version(0),
            message().deliver_at(at(10_000)),
            message().expires_at(at(1969)),
            message().deliver_at(at(2101)).expires_at(at(2100)),
            message().delay(Duration::MAX),
            message().dedup_key(""),
            message().dedup_key("k".repeat(256)),
            message().dedup_key("a\0"),
            message().dedup_key("k").dedup_window(Duration::ZERO),
            message().dedup_key("k").dedup_window(Duration::MAX),
            message().dedup_window(Duration::from_secs(1)),
        ];
        for envelope in refused {
            let text = format!("{envelope:?}");
            assert!(envelope.into_row().is_err_and(|error| error.is_refused()), "{text}");
        }
        assert!(message().deliver_at(at(2099)).expires_at(at(2100)).into_row().is_ok());
    }

    #[test]
    fn message_that_is_not_json_is_an_error_when_it_is_enqueued() {
        struct Broken;
        impl serde::Serialize for Broken {
            fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
                Err(serde::ser::Error::custom("no"))
            }
        }
        impl Message for Broken {
            const TOPIC: &'static str = "broken";
        }
        assert!(matches!(envelope(&Broken).key("k").into_row(), Err(Error::Serialize(_))));
    }
}
