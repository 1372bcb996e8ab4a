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

/// True for what CloudEvents allows as a source: a URI reference (RFC 3986), and not an empty one.
pub(crate) fn is_source(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte);
    let escapes = text.split('%').skip(1);
    let mut escapes = escapes.map(|after| after.get(..2).is_some_and(|hex| hex.bytes().all(|b| b.is_ascii_hexdigit())));
    // A colon in the first segment ends a scheme.
    let first = text.split(['/', '?', '#']).next().unwrap_or_default();
    let has_scheme = |scheme: &str| {
        scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    // Brackets stand around an IPv6 address and nowhere else.
    let brackets = |part: &str| part.contains(['[', ']']);
    let authority =
        text.split_once("//").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    !text.is_empty()
        && text.bytes().all(is_allowed)
        && escapes.all(|is_right| is_right)
        && text.matches('#').count() <= 1
        && first.split_once(':').is_none_or(|(scheme, _)| has_scheme(scheme))
        && !brackets(&text.replacen(authority, "", 1))
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
    fn a_source_is_a_uri_reference() {
        for source in [
            "/",
            "/shop",
            "shop",
            "urn:shop:1",
            "https://shop.example/a?b#c",
            "//h:1/x",
            "mailto:a@b",
            "%20",
            "http://[::1]:8/",
        ] {
            assert!(is_source(source), "{source}");
        }
        for source in [
            "",
            "my shop",
            "<shop>",
            "{shop}",
            "1:2",
            ":",
            "a%2",
            "100%",
            "%zz",
            "a#b#c",
            "a\\b",
            "caf\u{e9}",
            "/[x]",
            "a|b",
        ] {
            assert!(!is_source(source), "{source}");
        }
    }

    #[test]
    fn a_trace_context_that_is_none_is_left_out() {
        for context in ["", "a\tb"] {
            let attributes = attributes(&message(), "/shop", Some(context));
            assert!(attributes.iter().all(|(name, _)| *name != "ce-traceparent"), "{context:?}");
        }
    }
}
