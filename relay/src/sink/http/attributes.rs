//! What CloudEvents says about a message, whether in headers or in a body.
//!
//! Invariants
//! - Every value is a CloudEvents String: not empty, no control character, no noncharacter. What is none is given in
//!   another way or left out, for a conforming receiver refuses the whole request otherwise.
//! - Nothing in here knows of an attempt: a message has the same attributes on each of them.
//!
//! Absent: `datacontenttype`, which is the content type of a request in binary mode and a member of the body in
//! structured mode.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono::{DateTime, SecondsFormat, Utc};

use crate::message::Message;

/// An attribute under the name it has as a header, and its value.
pub(super) type Attribute = (&'static str, String);

/// The name an attribute has in a body.
pub(super) fn bare(name: &'static str) -> &'static str {
    name.trim_start_matches("ce-")
}

/// The attributes of a message. `traceparent` is the trace context it was enqueued in.
pub(super) fn attributes(message: &Message, source: &str, traceparent: Option<&str>) -> Vec<Attribute> {
    let mut attributes = vec![
        ("ce-specversion", "1.0".to_owned()),
        ("ce-id", message.id.to_string()),
        ("ce-source", source.to_owned()),
        ("ce-type", message.topic.clone()),
        ("ce-time", time(message.created_at)),
    ];
    match message.ordering_key.as_deref() {
        None | Some(b"") => {}
        Some(key) => match std::str::from_utf8(key).ok().filter(|key| is_string(key)) {
            Some(key) => {
                attributes.push(("ce-subject", key.to_owned()));
                attributes.push(("ce-partitionkey", key.to_owned()));
            }
            // Bytes that are no text, or one with control characters: no String can hold them as they are.
            None => attributes.push(("ce-partitionkeybase64", STANDARD.encode(key))),
        },
    }
    if let Some(context) = traceparent.filter(|context| !context.is_empty() && is_string(context)) {
        attributes.push(("ce-traceparent", context.to_owned()));
    }
    attributes
}

/// An instant as RFC 3339 writes it, to the microsecond, which is what databases keep.
pub(super) fn time(at: DateTime<Utc>) -> String {
    at.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// True when CloudEvents allows the text as a String.
fn is_string(text: &str) -> bool {
    let is_noncharacter = |c: u32| (0xfdd0..=0xfdef).contains(&c) || c & 0xfffe == 0xfffe;
    text.chars().all(|c| !c.is_control() && !is_noncharacter(u32::from(c)))
}

#[cfg(test)]
mod tests {
    use super::super::request::tests::message;
    use super::*;

    fn of_key(key: &[u8]) -> Vec<Attribute> {
        let message = Message { ordering_key: Some(key.into()), ..message() };
        let mut attributes = attributes(&message, "/shop", None);
        attributes.drain(..5);
        attributes
    }

    #[test]
    fn a_key_is_given_as_text_or_as_bytes_and_never_changed() {
        for text in ["customer-1", "Euro \u{20ac} \u{1f600}", "100%\"sure\"", " ", "\u{202e}", "\u{e000}"] {
            let expected = [("ce-subject", text.to_owned()), ("ce-partitionkey", text.to_owned())];
            assert_eq!(of_key(text.as_bytes()), expected, "{text:?}");
        }
        for bytes in [&b"\xff\xfe"[..], b"a\r\nb", b"\0", b"\x7f", "\u{85}".as_bytes(), "\u{ffff}".as_bytes()] {
            let encoded = STANDARD.encode(bytes);
            assert_eq!(of_key(bytes), [("ce-partitionkeybase64", encoded)], "{bytes:?}");
        }
        assert_eq!(of_key(b""), [], "an attribute is never empty");
    }

    #[test]
    fn a_trace_context_that_is_none_is_left_out() {
        for context in ["", "a\tb"] {
            let attributes = attributes(&message(), "/shop", Some(context));
            assert!(attributes.iter().all(|(name, _)| *name != "ce-traceparent"), "{context:?}");
        }
    }
}
